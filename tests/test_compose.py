"""compose.yaml: what it starts fits together, and each option that it sets is one."""

from __future__ import annotations

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
