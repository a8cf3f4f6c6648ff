"""Which Asterisk a machine has, and whom it runs as."""

from __future__ import annotations

import grp
from pathlib import Path

import pytest

from audiofork.commands.setup import find as finding
from audiofork.commands.setup.daemon_files import Paths, plan_units, refuse_hidden
from audiofork.commands.setup.draft import Draft
from audiofork.commands.setup.find import find
from audiofork.errors import SetupError


@pytest.fixture(autouse=True)
def no_other_asterisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def conf(folder: Path, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asterisk.conf").write_text(text)
    return folder


def settings(version: str, **lines: object) -> str:
    said = "".join(f"  {name.replace('_', ' ')}:   {value}\\n" for name, value in lines.items())
    return f"[ $1 = -V ] && echo Asterisk 1.2 || printf '  Version:  {version}\\n{said}'"


def test_running_asterisk_tells_its_version_and_folder(tmp_path: Path) -> None:
    script = settings("20.9.2", Configuration_directory=tmp_path / "conf")
    program(tmp_path / "usr/sbin/asterisk", script)
    found = find(root=tmp_path)
    assert (str(found.version), found.folder, found.runs) == ("20.9.2", tmp_path / "conf", True)


@pytest.mark.parametrize(
    ("binary", "folder"),
    [
        ("usr/sbin/asterisk", "etc/asterisk"),
        ("usr/local/sbin/asterisk", "usr/local/etc/asterisk"),
        ("opt/asterisk/sbin/asterisk", "opt/asterisk/etc/asterisk"),
    ],
)
def test_asterisk_that_does_not_run_is_found_where_it_usually_is(
    tmp_path: Path, binary: str, folder: str
) -> None:
    program(tmp_path / binary, '[ "$1" = -V ] && echo Asterisk certified/20.7-cert2 || exit 1')
    found = find(root=tmp_path) if conf(tmp_path / folder) else None
    assert found is not None
    assert (found.folder, found.runs) == (tmp_path / folder, False)
    assert found.version.branch == 20


def test_folder_that_is_named_leads_to_its_own_program(tmp_path: Path) -> None:
    etc = conf(tmp_path / "opt/my/etc/asterisk")
    own = program(tmp_path / "opt/my/sbin/asterisk", settings("21.0.0"))
    program(tmp_path / "usr/sbin/asterisk", settings("18.0.0"))
    found = find(etc, root=tmp_path)
    assert found.command == (str(own), "-C", str(etc / "asterisk.conf"))
    elsewhere = program(tmp_path / "bin/asterisk", settings("22.0.0"))
    conf(etc, f"[directories]\nastsbindir => {elsewhere.parent}\n")
    assert find(etc, root=tmp_path).command[0] == str(elsewhere)


def test_asterisk_without_a_folder_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "usr/sbin/asterisk", '[ "$1" = -V ] && echo Asterisk 20.1 || exit 1')
    with pytest.raises(SetupError, match=r"does not run, and there is no asterisk\.conf in"):
        find(root=tmp_path)


def test_program_that_is_broken_is_told(tmp_path: Path) -> None:
    program(tmp_path / "usr/sbin/asterisk", "echo no library >&2; exit 127")
    conf(tmp_path / "etc/asterisk")
    with pytest.raises(SetupError, match="does not tell a version: no library"):
        find(root=tmp_path)


def test_group_is_that_of_the_process(tmp_path: Path) -> None:
    pid = tmp_path / "asterisk.pid"
    pid.write_text("321\n")
    status = tmp_path / "proc/321/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tasterisk\nUid:\t7\t8\t8\t8\nGid:\t77\t88\t88\t88\n")
    script = settings("20.1", PID_file=pid, Configuration_directory=tmp_path)
    program(tmp_path / "usr/sbin/asterisk", script)
    assert find(root=tmp_path).group == 88


@pytest.mark.parametrize("text", ["[options]\nrungroup = {}\n", "[options]\nrunuser => {}\n"])
def test_group_of_an_asterisk_that_does_not_run_is_in_asterisk_conf(
    tmp_path: Path, text: str
) -> None:
    program(tmp_path / "usr/sbin/asterisk", '[ "$1" = -V ] && echo Asterisk 20.1 || exit 1')
    conf(tmp_path / "etc/asterisk", text.format("daemon"))
    assert find(root=tmp_path).group == grp.getgrnam("daemon").gr_gid


def test_freepbx_is_known_by_its_file(tmp_path: Path) -> None:
    program(tmp_path / "usr/sbin/asterisk", settings("20.1", Configuration_directory=tmp_path))
    assert not find(root=tmp_path).generated
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/freepbx.conf").touch()
    assert find(root=tmp_path).generated


def test_no_asterisk_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"no Asterisk was found .*{tmp_path}/usr/sbin"):
        find(root=tmp_path)


def test_asterisk_that_does_not_answer_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "_ASK_TIMEOUT_S", 0.2)
    program(tmp_path / "usr/sbin/asterisk", '[ "$1" = -V ] && echo Asterisk 20.1 || sleep 3')
    conf(tmp_path / "etc/asterisk")
    assert not find(root=tmp_path).runs


@pytest.mark.parametrize("path", ["/root/v/bin/audiofork", "/home/me/audiofork", "/tmp/x"])
def test_program_that_the_service_could_not_see_is_refused(path: str) -> None:
    with pytest.raises(SetupError, match="which the service may not see"):
        refuse_hidden(path)
    with pytest.raises(SetupError, match="which the service may not see"):
        refuse_hidden("/opt/link", lambda _: path)


def test_units_of_a_package_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "audiofork.service").touch()
    draft = Draft()
    plan_units(draft, Paths(units=tmp_path / "etc", packaged_units=(tmp_path,)))
    assert not draft.changes()
    assert not draft.notes
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/audiofork.service").touch()
    plan_units(draft, Paths(units=tmp_path / "etc", packaged_units=(tmp_path,)))
    assert draft.changes() == []
    assert "hides the package's" in draft.notes[0]
