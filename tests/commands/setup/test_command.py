"""The command line of setup: who may do what, what is printed, and the exit code."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audiofork import shipped
from audiofork.cli import main
from audiofork.commands.setup import by_hand, command
from audiofork.commands.setup.run import Setup
from tests.commands.setup.site import FILES, Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    one = Machine(tmp_path)

    def for_this_machine(say: object, confirm: object, ini: Path, state: Path) -> Setup:
        made = one.setup()
        made.say, made.confirm = say, confirm  # type: ignore[assignment]
        return made

    monkeypatch.setattr(command, "for_this_machine", for_this_machine)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return one


def run(machine: Machine, *arguments: str, answer: str | None = None) -> Result:
    command = ["setup", *arguments]
    if "--undo" not in arguments:
        command += ["--asterisk-config", str(machine.etc)]
    return CliRunner().invoke(main, command, input=answer)


def test_yes_asks_nothing_and_ends_with_the_check(machine: Machine) -> None:
    result = run(machine, "--yes")
    assert (result.exit_code, machine.checks) == (0, [machine.ini])
    assert "Make these changes?" not in result.output


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_without_yes_one_question_is_asked_and_no_answer_is_a_no(
    machine: Machine, answer: str, code: int
) -> None:
    tree = machine.tree()
    result = run(machine, answer=answer)
    assert result.exit_code == code
    assert result.output.count("Make these changes?") == 1
    assert (machine.tree() == tree) == (code == 1)
    assert ("nothing was changed" in result.output) == (code == 1)


def test_undo_takes_all_back(machine: Machine) -> None:
    tree = machine.tree()
    run(machine, "--yes")
    assert run(machine, "--undo").exit_code == 0
    assert machine.tree() == tree


@pytest.mark.parametrize("other", ["--dry-run", "--asterisk=192.0.2.7", "--asterisk-config=/"])
def test_undo_takes_no_other_option(machine: Machine, other: str) -> None:
    assert CliRunner().invoke(main, ["setup", "--undo", other]).exit_code == 2


def test_without_root_it_says_what_to_put_where_and_changes_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tree = machine.tree()
    result = run(machine)
    assert result.exit_code == 1
    assert result.output.startswith(
        "nothing was changed: it takes root. As root, `audiofork setup`"
    )
    for name in (shipped.MANAGER_CONF, shipped.ARI_CONF, shipped.EXTENSIONS_CONF):
        for line in shipped.text(name).splitlines():
            assert line.strip() in result.output
    assert run(machine, "--dry-run").exit_code == 0
    assert run(machine, "--undo").exit_code == 1
    assert machine.tree() == tree


def test_dry_run_that_may_not_read_a_file_says_what_to_put_where(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> int:
        raise PermissionError(13, "Permission denied", "/etc/asterisk/manager.conf")

    monkeypatch.setattr(Setup, "show", refuse)
    result = run(machine, "--dry-run")
    assert result.exit_code == 1
    assert result.output.startswith("/etc/asterisk/manager.conf can be read by root alone")


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--asterisk=127.0.0.2"], ["--undo"]])
def test_record_and_configuration_that_root_alone_may_read_are_no_wrong_command_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert run(machine, "--yes").exit_code == 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    result = CliRunner().invoke(
        main, ["setup", "-c", str(machine.ini), "--state", str(machine.root / "state"), *arguments]
    )
    assert result.exit_code != 2, result.output
    assert "is not readable" not in result.output


def test_for_another_host_it_says_what_to_put_where(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "_our_address", lambda host: "192.0.2.5")
    tree = machine.tree()
    result = CliRunner().invoke(main, ["setup", "--asterisk", "127.0.0.2"])
    assert result.exit_code == 0
    assert "host = 127.0.0.2\n" in result.output
    assert "url = http://127.0.0.2:8088/ari\n" in result.output
    assert "permit = 192.0.2.5\n" in result.output
    assert "listen = 192.0.2.5:9093\n" in result.output
    assert result.output.count("    bindaddr = 127.0.0.2\n") == 2
    assert machine.tree() == tree


@pytest.mark.parametrize("given", ["::1", "[::1]"])
def test_an_ipv6_host_has_brackets_where_a_port_follows(given: str) -> None:
    result = CliRunner().invoke(main, ["setup", "--asterisk", given])
    assert result.exit_code == 0
    for line in (
        "host = ::1",
        "url = http://[::1]:8088/ari",
        "listen = [::1]:9093",
        "permit = ::1",
    ):
        assert f"    {line}\n" in result.output
    assert result.output.count("    bindaddr = ::1\n") == 2


def test_asterisk_is_told_to_listen_on_the_address_of_a_host_and_not_on_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 5038))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    text = by_hand.text(Path("/etc/audiofork/audiofork.ini"), "pbx.example.org")
    assert text.count("    bindaddr = 192.0.2.7\n") == 2
    assert "    host = pbx.example.org\n" in text


@pytest.mark.parametrize("given", ["", "http://pbx/", "pbx:5038", "my pbx", "1::2::3", "p\nbx"])
def test_what_is_no_host_is_refused(given: str) -> None:
    result = CliRunner().invoke(main, ["setup", "--asterisk", given])
    assert result.exit_code == 2
    assert f"expected a name or an address, got {given!r}" in result.output


def test_host_that_is_not_known_leaves_our_address_to_the_reader() -> None:
    text = by_hand.text(Path("/etc/audiofork/audiofork.ini"), "no.such.host.invalid")
    assert "listen = (the address of this machine):9093" in text
    assert text.count("    bindaddr = (the address of no.such.host.invalid)\n") == 2


def test_what_is_in_the_way_ends_with_1_and_a_bad_configuration_with_3(machine: Machine) -> None:
    machine.write("extensions.conf", FILES["extensions.conf"] + b"[audiofork]\n")
    result = run(machine, "--yes")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("audiofork: ")
    machine.ini.parent.mkdir()
    machine.ini.write_text("[nothing]\n")
    result = run(machine, "--yes")
    assert result.exit_code == 3
    assert f"{machine.ini}:1: unknown section [nothing]" in result.output


def test_file_that_cannot_be_read_is_named(machine: Machine) -> None:
    (machine.etc / "ari.conf").unlink()
    (machine.etc / "ari.conf").mkdir()
    result = run(machine, "--yes")
    assert result.exit_code == 1
    said = f"audiofork: {machine.etc}/ari.conf: a folder, not a file; nothing was changed"
    assert result.output.splitlines()[-1] == said
