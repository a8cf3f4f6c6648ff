"""What `migrate` does with files: what it shows, how it replaces them, what it says."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiofork.commands import migrate_files
from audiofork.commands.migrate import Task, local_branch, run
from audiofork.commands.terminal import EXIT_DONE, EXIT_FAILED
from tests.commands.test_migrate import start

NEEDS_INCLUDE = (
    "extensions.conf needs the line: #include extensions_audiofork.conf (audiofork setup adds it)"
)


class Said:
    """What `run` said: the diff, and the notes."""

    def __init__(self) -> None:
        self.diff: list[bytes] = []
        self.notes: list[str] = []

    def run(
        self, *paths: Path, write: bool = False, folder: Path | None = None, branch: int = 18
    ) -> int:
        return run(Task(paths, folder, branch, write), self.diff.append, self.notes.append)

    @property
    def patch(self) -> bytes:
        return b"".join(line + b"\n" for line in self.diff)


BEFORE = "[a]\nexten => s,1,AudioFork(ws://h/,T(on))\n same => n,NoOp(\u00fc)\n"
AFTER = BEFORE.replace("AudioFork(ws://h/,T(on))", start("ws://h/", "T(on)"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "extensions.conf"
    path.write_bytes(BEFORE.encode("latin-1"))
    return path


def test_run_shows_a_diff_and_changes_nothing(file: Path) -> None:
    said = Said()
    assert said.run(file) == EXIT_DONE
    assert file.read_bytes() == BEFORE.encode("latin-1")
    assert said.diff[:2] == [b"--- %s" % bytes(file), b"+++ %s" % bytes(file)]
    before, after = (text.splitlines()[1].encode() for text in (BEFORE, AFTER))
    assert said.diff[4:6] == [b"-" + before, b"+" + after]
    assert said.notes[0].startswith(f"{file}:2: T: certificates are verified")
    assert said.notes[1:] == [
        f"{file}: 1 to rewrite with --write",
        NEEDS_INCLUDE,
    ]


def test_run_with_write_keeps_mode_and_other_bytes_and_a_copy(file: Path) -> None:
    file.chmod(0o640)
    copy = file.with_name("extensions.conf.before-migrate")
    said = Said()
    assert said.run(file, write=True) == EXIT_DONE
    assert file.read_bytes() == AFTER.encode("latin-1")
    assert copy.read_bytes() == BEFORE.encode("latin-1")
    assert [stat.S_IMODE(one.stat().st_mode) for one in (file, copy)] == [0o640, 0o640]
    assert sorted(os.listdir(file.parent)) == [file.name, copy.name]
    assert f"{file}: 1 rewritten; old file: {copy}" in said.notes
    inode = file.stat().st_ino
    again = Said()
    assert again.run(file, write=True) == EXIT_DONE
    assert again.diff == []
    assert file.stat().st_ino == inode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_run_with_write_keeps_the_owner(file: Path) -> None:
    os.chown(file, 4321, 4322)
    assert Said().run(file, write=True) == EXIT_DONE
    for one in (file, file.with_name("extensions.conf.before-migrate")):
        assert (one.stat().st_uid, one.stat().st_gid) == (4321, 4322)


def test_run_with_write_replaces_no_copy_of_an_earlier_run(file: Path) -> None:
    first = Said()
    first.run(file, write=True)
    file.write_text("exten => s,1,StopAudioFork()\n")
    second = Said()
    assert second.run(file, write=True) == EXIT_DONE
    names = ["extensions.conf.before-migrate", "extensions.conf.before-migrate.2"]
    copies = [file.with_name(name) for name in names]
    assert [one.read_bytes() for one in copies] == [
        BEFORE.encode("latin-1"),
        b"exten => s,1,StopAudioFork()\n",
    ]
    assert str(copies[1]) in second.notes[-1]


def test_copy_is_not_one_that_asterisk_would_include(tmp_path: Path) -> None:
    main, part = tmp_path / "extensions.conf", tmp_path / "custom/part.conf"
    part.parent.mkdir()
    main.write_text('#include "custom/*"\n')
    part.write_text("exten => s,1,AudioFork(ws://h/)\n")
    assert Said().run(main, write=True) == EXIT_DONE
    names = sorted(os.listdir(part.parent))
    assert names == [".part.conf.before-migrate", "part.conf"]


def test_file_that_changes_meanwhile_is_left(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(path: Path, _limit: int) -> bytes:
        return path.read_bytes() + b"\n"

    monkeypatch.setattr(migrate_files, "read_file", changed)
    said = Said()
    assert said.run(file, write=True) == EXIT_FAILED
    assert f"{file}: not rewritten: it has changed while it was being rewritten" in said.notes
    assert file.read_bytes() == BEFORE.encode("latin-1")
    assert os.listdir(file.parent) == [file.name]


def test_run_with_write_follows_a_link_to_the_file(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "sub/extensions.conf"
    link.parent.mkdir()
    link.symlink_to(file)
    assert Said().run(link, write=True) == EXIT_DONE
    assert link.is_symlink()
    assert os.listdir(link.parent) == [link.name]
    assert file.read_bytes() == AFTER.encode("latin-1")


# What patch(1) could take for something else, or put out of shape.
CONTENTS = {
    "plain": b"[a]\nexten => s,1,AudioFork(ws://h/)\n",
    "no newline at the end": b"[a]\nexten => s,1,AudioFork(ws://h/)",
    "crlf": b"[a]\r\nexten => s,1,AudioFork(ws://h/)\r\n same => n,NoOp()\r\n",
    "crlf, then lf": b"[a]\r\nexten => s,1,AudioFork(ws://h/)\n same => n,NoOp()\r\n",
    "crlf, no newline at the end": b"[a]\r\nexten => s,1,AudioFork(ws://h/)",
    "lone carriage returns": b"[a]\n;a\rb\nexten => s,1,AudioFork(ws://h/)\n;c\r\r\n",
    "latin-1": b"[a]\n;\xe4\xff\nexten => s,1,AudioFork(ws://h/)\n same => n,NoOp(\xfc)\n",
    "byte order mark": b"\xef\xbb\xbfexten => s,1,AudioFork(ws://h/)\n",
    "other line ends": b"[a]\n;a\x0bb\x0cc\x85d\xe2\x80\xa8e\nexten => s,1,AudioFork(ws://h/)\n;\x1b[m",
    "lines like a diff": b"--- a\n+++ b\n@@ -1 +1 @@\nexten => s,1,AudioFork(ws://h/)\n-x\n\\ No\n",
    "blanks at the ends": b"\n \t\nexten => s,1,AudioFork(ws://h/) \t\n \n\n",
    "many": b"exten => s,1,AudioFork(ws://h/)\n;\n;\n;\n;\n;\n;\n;\n same => n,StopAudioFork()\n"
    * 3,
}


@pytest.mark.parametrize("before", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["extensions.conf", 'a "b\\\tc\u00e4', "link"])
def test_diff_makes_the_very_bytes_of_each_other_by_patch(
    tmp_path: Path, before: bytes, name: str
) -> None:
    file = tmp_path / ("target" if name == "link" else name)
    file.write_bytes(before)
    if name == "link":
        (tmp_path / name).symlink_to(file)
    shown, written = Said(), Said()
    assert shown.run(tmp_path / name) == EXIT_DONE
    patch(shown.patch)
    after = file.read_bytes()
    patch(shown.patch, "-R")
    assert file.read_bytes() == before
    assert written.run(tmp_path / name, write=True) == EXIT_DONE
    assert written.diff == shown.diff
    assert file.read_bytes() == after != before
    patch(written.patch, "-R")
    assert file.read_bytes() == before


def patch(text: bytes, *options: str) -> None:
    """Run patch(1) as docs/migration.md says."""
    program = shutil.which("patch")
    assert program, "patch is needed: apt install patch"
    command = [program, "--directory=/", "--strip=1", "--no-backup-if-mismatch", *options]
    done = subprocess.run(command, input=text, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert b"fuzz" not in done.stdout
    assert b"Strip" not in done.stdout


@given(
    before=st.lists(
        st.sampled_from([b"exten => s,1,AudioFork(ws://h/)", b"\xe9", b"", b"- a", b"\\ b", b"@@"]),
        max_size=30,
    ).flatmap(lambda parts: st.sampled_from([b"\n".join(parts), b"\r\n".join(parts)]))
)
@settings(max_examples=30, deadline=None)
def test_any_lines_come_back_from_the_diff(before: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "extensions.conf")
        file.write_bytes(before)
        said = Said()
        said.run(file, write=True)
        if said.diff:
            patch(said.patch, "-R")
        assert file.read_bytes() == before


@pytest.mark.slow
def test_diff_of_a_big_file_is_a_patch(tmp_path: Path) -> None:
    lines = b"[a]\n" + b"exten => s,1,AudioFork(ws://h/)\n same => n,NoOp(a)\n;\n;\n" * 25_000
    file = tmp_path / "extensions.conf"
    file.write_bytes(lines)
    said = Said()
    assert said.run(file) == EXIT_DONE
    patch(said.patch)
    assert file.read_bytes().count(b"Gosub(audiofork,start,1(ws://h/,s(echo)))") == 25_000


def test_run_reads_no_device_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = Said()
    assert said.run(Path("/dev/zero"), tmp_path / "pipe") == EXIT_FAILED
    assert [note.rpartition(": ")[2] for note in said.notes] == ["not a regular file"] * 2


def test_run_tells_of_what_is_left_and_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.write_text("exten => s,1,AudioFork()\n same => n,AudioFork(ws://h/)\n")
    said = Said()
    assert said.run(tmp_path / "none.conf", file) == EXIT_FAILED
    assert said.notes[0] == f"{tmp_path / 'none.conf'}: No such file or directory"
    assert said.notes[1] == f"{file}:1: left as it is: it names no server"
    assert said.notes[2] == f"{file}: 1 to rewrite with --write, 1 left to do by hand"


def test_run_that_cannot_write_leaves_the_file_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fail)
    said = Said()
    assert said.run(file, write=True) == EXIT_FAILED
    expected = f"{file}: not rewritten: Operation not permitted"
    assert any(note.startswith(expected) for note in said.notes)
    assert file.read_bytes() == BEFORE.encode("latin-1")
    assert os.listdir(file.parent) == [file.name]


def test_generated_file_that_is_rewritten_is_told(tmp_path: Path) -> None:
    head = "; a\n; Do NOT edit this file as it is auto-generated by FreePBX\n"
    with_call, without = tmp_path / "a.conf", tmp_path / "b.conf"
    with_call.write_text(head + "exten => s,1,AudioFork(ws://h/)\n")
    without.write_text(head + "exten => s,1,NoOp()\n")
    said = Said()
    assert said.run(with_call, without) == EXIT_FAILED
    assert said.notes[:3] == [
        f"{with_call}:2: the file is generated: change its source",
        f"{with_call}: 1 to rewrite with --write, 1 left to do by hand",
        f"{without}: nothing to rewrite",
    ]


@pytest.mark.slow
def test_command_rewrites_all_files_where_its_notes_cannot_be_written(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.conf" for number in range(3)]
    for one in files:
        one.write_bytes(BEFORE.encode("latin-1"))
    command = [sys.executable, "-m", "audiofork", "migrate", "--write", *map(str, files)]
    with open("/dev/full", "w") as full:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full, timeout=60, check=True)
    assert len({one.read_bytes() for one in files}) == 1
    assert files[0].read_bytes() != BEFORE.encode("latin-1")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--asterisk-version=22", "--asterisk-version=21.0.0-rc1"])
def test_command_names_macros_of_an_asterisk_without_them_and_exits_1(
    tmp_path: Path, option: str
) -> None:
    (tmp_path / "extensions.conf").write_text("#include part.conf\n")
    (tmp_path / "part.conf").write_bytes(b"exten => s,1,Dial(SIP/a,60,gM(in))\n;\xe4\x1b\n")
    done = migrate("--asterisk-config", str(tmp_path), option)
    assert (done.returncode, done.stdout) == (EXIT_FAILED, b"")
    part = f"{tmp_path}/part.conf:1: "
    first, second, *_ = (
        done.stderr.decode()
        .removeprefix(f"{tmp_path}/extensions.conf: nothing to rewrite\n")
        .splitlines()
    )
    assert first.startswith(f"{part}M(in) of Dial()")
    assert second.startswith(f"{part}SIP/a: ")


@pytest.mark.slow
def test_command_has_nothing_left_to_do_for_an_asterisk_with_macros(tmp_path: Path) -> None:
    file = tmp_path / "extensions.conf"
    file.write_bytes(b"exten => s,1,Dial(SIP/a,60,gM(in))\n same => n,AudioFork(ws://h/\xe4)\n")
    done = migrate("--asterisk-version", "18.26.4", "--write", str(file))
    assert done.returncode == EXIT_DONE
    assert b"M(in) of Dial()" in done.stderr
    assert b"SIP/a" not in done.stderr
    patch(done.stdout, "-R")
    assert b"AudioFork(ws://h/\xe4)\n" in file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "22x"])
def test_command_refuses_a_version_that_is_none(version: str) -> None:
    done = migrate("--asterisk-version", version)
    assert done.returncode == 2
    assert b"expected a number as 22 or 18.26.4" in done.stderr


@pytest.mark.parametrize(
    ("script", "branch"),
    [
        ("echo Asterisk 20.9.1~dfsg", 20),
        ("echo Asterisk certified/18.9-cert5", 18),
        ("echo Asterisk GIT-master-f0c1c1a", None),
        ("exit 1", None),
        (None, None),
    ],
)
def test_version_is_that_of_the_asterisk_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, branch: int | None
) -> None:
    if script is not None:
        (tmp_path / "asterisk").write_text(f'#!/bin/sh\n[ "$1" = -V ] || exit 1\n{script}\n')
        (tmp_path / "asterisk").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_branch() == branch


def migrate(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "audiofork", "migrate", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60)
