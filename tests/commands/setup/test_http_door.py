"""Setup turns the HTTP interface on: on this machine alone, with a token for root alone."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiofork import config_file, shipped
from audiofork.commands.setup import http_door
from audiofork.commands.setup.http_door import PORTS, free_port, how_to_open, ports_of
from audiofork.config_values import Address
from tests.commands.setup.site import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The ports at which nobody listens."""
    ports = set(PORTS)
    monkeypatch.setattr(http_door, "_is_free", lambda port: port in ports)
    return ports


def tokens_of(machine: Machine) -> list[list[str]]:
    lines = (machine.ini.parent / "http-tokens").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def write_ini(machine: Machine, text: str) -> None:
    machine.ini.parent.mkdir()
    machine.ini.write_text(text)


def test_door_is_on_loopback_with_one_token_for_everything(
    machine: Machine, free: set[int]
) -> None:
    assert machine.setup().do() == 0
    loaded = config_file.load(machine.ini, {}).http
    assert loaded.listen == Address("127.0.0.1", 9080)
    path = machine.ini.parent / "http-tokens"
    assert loaded.tokens_file == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    ((name, roles, token),) = tokens_of(machine)
    assert (name, roles) == ("admin", "view,listen,control")
    assert len(token) == 43
    assert token not in machine.last()


def test_end_says_how_to_open_the_page_and_where_the_token_is(
    machine: Machine, free: set[int]
) -> None:
    machine.setup().do()
    first, second = machine.said[-1].strip().splitlines()
    assert second == (
        f"it asks for a token: the last word of a line of {machine.ini.parent}/http-tokens"
    )
    assert first == (
        "the page and the HTTP interface: http://127.0.0.1:9080/ on this machine; from another "
        f"one: ssh -L 9080:127.0.0.1:9080 {socket.gethostname()}, then the same address there"
    )


def test_undo_takes_the_tokens_back_and_keeps_those_that_were_added(
    machine: Machine, free: set[int]
) -> None:
    tree = machine.tree()
    machine.setup().do()
    path = machine.ini.parent / "http-tokens"
    path.write_text(path.read_text() + "grafana view 0123456789abcdefghij\n")
    path.chmod(0o600)
    machine.setup().undo()
    aside = path.with_name("http-tokens.undone")
    assert "grafana" in aside.read_text()
    assert aside.stat().st_mode & 0o777 == 0o600
    aside.unlink()
    aside.parent.rmdir()
    assert machine.tree() == tree


def test_second_run_keeps_token_and_port_whoever_listens_there_now(
    machine: Machine, free: set[int]
) -> None:
    machine.setup().do()
    before = tokens_of(machine)
    free.clear()
    assert machine.setup().do() == 0
    assert tokens_of(machine) == before
    assert "nothing to change: every file is as setup leaves it" in machine.said


def test_tokens_that_are_gone_are_made_anew(machine: Machine, free: set[int]) -> None:
    machine.setup().do()
    (machine.ini.parent / "http-tokens").unlink()
    machine.setup().do()
    assert len(tokens_of(machine)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[http]\nlisten =\n",
        "[http]\nsocket = /run/audiofork/http.sock\n",
        "[http]\nlisten = 192.0.2.7:443\ntokens_file = /etc/tokens\ncert_file = /etc/cert.pem\n",
    ],
)
def test_door_that_the_administrator_has_configured_stays_as_it_is(
    machine: Machine, free: set[int], text: str
) -> None:
    write_ini(machine, text)
    machine.setup().do()
    assert text in machine.ini.read_text()
    assert config_file.parse(machine.ini.read_text(), {}, source="x", secrets_of=()).http == (
        config_file.parse(text, {}, source="x").http
    )
    assert not (machine.ini.parent / "http-tokens").exists()


def test_section_that_appears_twice_is_read_as_one(machine: Machine, free: set[int]) -> None:
    text = "[http]\n[log]\n[http]\nlisten =\n"
    write_ini(machine, text)
    assert machine.setup().do() == 0
    assert not (machine.ini.parent / "http-tokens").exists()


def test_first_port_that_is_free_and_not_of_another_door_is_taken(
    machine: Machine, free: set[int]
) -> None:
    free.discard(9080)
    text = "[audiosocket]\nlisten = 127.0.0.1:9081\n[relay]\nworkers = 2\n[front]\n"
    write_ini(machine, f"{text}listen = 127.0.0.1:9083\n")
    machine.setup().do()
    assert str(config_file.load(machine.ini, {}).http.listen) == "127.0.0.1:9084"


def test_without_a_free_port_the_door_stays_off_and_that_is_said(
    machine: Machine, free: set[int]
) -> None:
    free.clear()
    assert machine.setup().do() == 0
    assert config_file.load(machine.ini, {}).http.listen is None
    assert not (machine.ini.parent / "http-tokens").exists()
    assert any("ports 9080 to 9089 are all in use" in said for said in machine.said)
    assert not any("the page and the HTTP interface" in said for said in machine.said)


@contextlib.contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_at_which_somebody_listens_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as taken:
        monkeypatch.setattr(http_door, "PORTS", (taken,))
        assert free_port() is None
    assert free_port() == taken
    assert free_port({taken}) is None


def test_ports_of_a_daemon_that_takes_any_port_are_not_known() -> None:
    text = "[audiosocket]\nlisten = 127.0.0.1:0\n"
    assert ports_of(config_file.parse(text, {}, source="x")) == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (
            "[http]\nlisten = 192.0.2.7:443\ntokens_file = /t\ncert_file = /c\n",
            "https://192.0.2.7:",
        ),
        ("[http]\nlisten = [::1]:9080\ntokens_file = /t\n", "http://[::1]:9080/\n"),
    ],
)
def test_how_to_open_follows_the_configuration(text: str, words: str) -> None:
    told = how_to_open(config_file.parse(text, {}, source="x"), Path("/tokens"))
    assert words in told
    assert bool(told) == bool(text)
    assert "ssh -L" not in told


def test_tokens_are_for_the_daemons_group_where_there_is_one(
    machine: Machine, free: set[int], units: Path
) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    machine.setup(group=group, units=units).do()
    path = machine.ini.parent / "http-tokens"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_gid == os.getegid()
    assert config_file.load(machine.ini, {}).http.tokens_file == str(path)
    assert "systemctl reload audiofork" in path.read_text()


def test_tokens_are_handed_to_a_daemon_whose_group_does_not_stay(
    machine: Machine, free: set[int], units: Path
) -> None:
    machine.setup(units=units).do()
    path = machine.ini.parent / "http-tokens"
    assert path.stat().st_mode & 0o777 == 0o600
    http = config_file.load(machine.ini, {}).http
    assert http.tokens_file == "${CREDENTIALS_DIRECTORY}/http-tokens"
    assert "systemctl restart audiofork" in path.read_text()
    assert machine.said[-1].endswith(f"the last word of a line of {path}")
    unit = (units / "audiofork.service").read_text()
    assert f"LoadCredential=http-tokens:{path}\n" in unit
    path.unlink()
    machine.setup(units=units).do()
    assert len(tokens_of(machine)) == 1


@pytest.fixture
def units(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("audiofork.commands.setup.daemon_files.refuse_hidden", lambda _: None)
    folder = machine.root / "units"
    folder.mkdir()
    return folder


def test_unit_hands_the_tokens_to_the_service_and_starts_without_them() -> None:
    """With both lines of one name systemd takes the second where the file is missing."""
    lines = shipped.text(shipped.SERVICE).splitlines()
    assert "LoadCredential=http-tokens:/etc/audiofork/http-tokens" in lines
    assert "SetCredential=http-tokens:# none" in lines
