"""compose.yaml: what it starts fits together, and each option that it sets is one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from audiofork import config_file
from audiofork.config import Config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLUSTER = {name for name, service in SERVICES.items() if "cluster" in service.get("profiles", ())}
SCRIPTS = ROOT / "packaging/compose"
IMAGE_OF_ASTERISK = (SCRIPTS / "asterisk.Dockerfile").read_text()
SHIPPED = "/usr/share/audiofork/"
DAEMONS = [name for name, service in SERVICES.items() if service.get("image") == "audiofork"]


def needed(name: str) -> set[str]:
    """Return a service, and all that are started with it."""
    service = SERVICES[name]
    others = set(service.get("depends_on", {}))
    shared = service.get("network_mode", "").removeprefix("service:")
    others |= {shared} if shared else set()
    return {name}.union(*map(needed, others))


def config_of(name: str) -> Config:
    """Return the configuration of a service; its secrets are not there."""
    environment = SERVICES[name].get("environment", {})
    loaded = config_file.load(ROOT / "etc/audiofork.ini", environment, secrets_of=())
    config_file.refuse_unknown_variables(loaded, environment)
    return loaded


def test_demo_and_cluster_have_nothing_in_common_that_both_would_act_on() -> None:
    alone = {"asterisk", "audiofork", "receiver", "call"}
    assert needed("call") == alone
    assert needed("cluster-call") == CLUSTER
    assert set(SERVICES) == alone | CLUSTER
    volumes = [
        {volume.partition(":")[0] for name in names for volume in SERVICES[name].get("volumes", ())}
        for names in (alone, CLUSTER)
    ]
    assert volumes[0] & volumes[1] == set()
    assert volumes[0] | volumes[1] == set(COMPOSE["volumes"])


@pytest.mark.parametrize("names", [needed("call"), needed("cluster-call")], ids=["demo", "cluster"])
def test_each_image_of_ours_is_built_by_a_service_that_is_started(names: set[str]) -> None:
    images = {SERVICES[name]["image"] for name in names} - {"nats:2"}
    assert images == {SERVICES[name]["image"] for name in names if "build" in SERVICES[name]}


@pytest.mark.parametrize("name", SERVICES)
def test_image_that_is_built_here_is_asked_of_no_registry(name: str) -> None:
    """Compose asks one for each image that is not there yet, also of services that build it."""
    ours = SERVICES[name]["image"].startswith("audiofork")
    assert SERVICES[name].get("pull_policy") == ("never" if ours else None)


@pytest.mark.parametrize("name", DAEMONS)
def test_service_is_sandboxed_and_its_options_are_known(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    config_of(name)


def test_programs_of_the_cluster_find_each_other() -> None:
    configs = {name: config_of(name) for name in DAEMONS if name in CLUSTER}
    relays = [name for name in configs if SERVICES[name].get("command") == ["relay"]]
    controls = [name for name in configs if SERVICES[name].get("command") == ["control"]]
    assert (len(relays), len(controls)) == (2, 2)
    for name in (*relays, *controls):
        assert configs[name].cluster.servers == ("nats://nats:4222",)
        assert configs[name].cluster.own_name == name
    for name in relays:
        assert str(configs[name].audiosocket.advertise) == f"{name}:9093"
        assert "secret" not in str(SERVICES[name])
    assert {configs[name].cluster.asterisk for name in controls} == {"pbx"}
    dialplan = (ROOT / "packaging/compose/extensions.conf").read_text()
    (allowed,) = {configs[name].security.allow_urls for name in controls}
    assert f"({allowed[0]}/demo," in dialplan


def test_image_has_the_client_of_the_broker() -> None:
    assert "'/src[cluster]'" in (ROOT / "Dockerfile").read_text()


def test_new_container_resumes_forks_of_the_one_that_was_stopped() -> None:
    assert config_of("audiofork").daemon.on_stop == "keep"
    assert "journal:/var/lib/audiofork" in SERVICES["audiofork"]["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_in_the_network_of_another_is_restarted_with_it(name: str) -> None:
    """It stays in the network of the old container otherwise. Compose sees to it by itself only
    where depends_on says nothing of the other."""
    owner = SERVICES[name].get("network_mode", "").removeprefix("service:")
    condition = SERVICES[name].get("depends_on", {}).get(owner, {"restart": True})
    assert condition.get("restart") is True or not owner


@pytest.mark.parametrize("call", ["call", "cluster-call"])
def test_call_waits_for_a_server_that_listens_and_is_between_parties_of_the_dialplan(
    call: str,
) -> None:
    (server,) = [name for name in SERVICES[call]["depends_on"] if "receiver" in name]
    assert SERVICES[call]["depends_on"][server] == {"condition": "service_healthy"}
    assert "8080" in str(SERVICES[server]["healthcheck"]["test"])
    script, *parties = SERVICES[call]["entrypoint"]
    assert f"packaging/compose/{script.removeprefix(SHIPPED)} " in IMAGE_OF_ASTERISK
    dialplan = (SCRIPTS / "extensions.conf").read_text()
    assert all(f"\nexten => {party},1," in dialplan for party in parties)


def run(script: str, folder: Path, *arguments: str, **programs: str) -> str:
    """Run a shell script with programs that are scripts as well; return what it has printed."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "FOLDER": str(folder)}
    command = ["sh", "-c", script, "sh", *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=30
    ).stdout


def test_asterisk_started_twice_has_each_line_once_and_in_the_section_that_counts(
    tmp_path: Path,
) -> None:
    etc = tmp_path / "etc/asterisk"
    for folder in (etc, tmp_path / "run/ami-secret", tmp_path / "run/asterisk"):
        folder.mkdir(parents=True)
    (etc / "modules.conf").write_text("[modules]\nautoload = yes\n\n[global]\n")
    for name in ("ari.conf", "extensions.conf", "http.conf", "manager.conf"):
        (etc / name).write_text("[general]\n;enabled = no\n")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for file in (*(ROOT / "etc/asterisk").glob("*.conf"), SCRIPTS / "extensions.conf"):
        (shipped / file.name).write_text(file.read_text())
    script = (SCRIPTS / "start").read_text().replace(SHIPPED.rstrip("/"), str(shipped))
    script = script.replace("/etc/asterisk", str(etc)).replace("/run/a", f"{tmp_path}/run/a")
    for _ in range(2):
        run(script, tmp_path, asterisk="", chgrp="", chown="")
    modules = (etc / "modules.conf").read_text()
    assert modules.count("noload => res_timing_timerfd.so\n") == 1
    assert modules.index("noload") < modules.index("[global]")
    assert (etc / "extensions.conf").read_text().count("#include extensions_demo.conf") == 1
    assert (etc / "manager.conf").read_text() == "[general]\nenabled = yes\n"
    secret = (tmp_path / "run/ami-secret/ami-secret").read_text().strip()
    assert f"secret = {secret}\n" in (etc / "manager.d/audiofork.conf").read_text()


def test_call_ends_when_its_channels_are_gone(tmp_path: Path) -> None:
    (tmp_path / "channels").write_text("x\n" * 3)
    asterisk = """case "$2" in
        "channel originate"*) echo "$2";;
        "core show channels concise")
            test -s $FOLDER/channels || exit 0
            sed -i 1d $FOLDER/channels
            echo "Local/one@demo-00000000;1!demo";;
    esac"""
    script = (SCRIPTS / "call").read_text()
    printed = run(script, tmp_path, "one", "two", asterisk=asterisk, sleep="")
    assert printed == "channel originate Local/one@demo extension two@demo\n"
    assert (tmp_path / "channels").read_text() == ""


def test_call_that_is_stopped_hangs_up(tmp_path: Path) -> None:
    asterisk = """echo "$2"
        test "$2" != "core show channels concise" || echo "Local/one@demo-00000000;1" """
    script = (SCRIPTS / "call").read_text()
    printed = run(script, tmp_path, "one", "two", asterisk=asterisk, sleep="kill $PPID")
    assert printed.splitlines()[-1] == "channel request hangup all"
