"""Other versions of Python, and where they come from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import debian, pythons
from testbed.asterisk import CACHE_VARIABLE
from testbed.pythons import PythonUnavailable


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without Python and network; the value is what was to be fetched of Debian."""
    wanted: list[str] = []

    def fetch(one: debian.Wanted, target: Path) -> None:
        wanted.extend((one.suite, *one.packages))
        raise debian.FetchFailed("no mirror answers")

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return wanted


def put_in_path(version: str, script: str) -> Path:
    """Put a program of this name into the only folder of PATH."""
    program = Path(os.environ["PATH"], f"python{version}")
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_python_in_path_is_taken_and_nothing_fetched(fetched: list[str]) -> None:
    program = put_in_path("3.14", "echo 3.14")
    assert pythons.find("3.14") == program
    assert fetched == []


@pytest.mark.parametrize(
    "script",
    ["echo 3.13", "echo No module named ensurepip >&2; exit 1"],
    ids=["other-version", "without-venv"],
)
def test_python_in_path_that_does_not_serve_is_fetched(fetched: list[str], script: str) -> None:
    put_in_path("3.14", script)
    with pytest.raises(PythonUnavailable, match="no mirror answers"):
        pythons.find("3.14")
    assert fetched == ["sid", "python3.14-venv"]


def test_version_that_no_release_of_debian_has_is_told(fetched: list[str]) -> None:
    with pytest.raises(PythonUnavailable, match=r"no python3\.12 in PATH, and no release"):
        pythons.find("3.12")
    assert fetched == []


def test_damaged_one_in_the_cache_is_named(fetched: list[str], tmp_path: Path) -> None:
    tree = tmp_path / f"cache/python3.13-trixie-{platform.machine()}"
    tree.mkdir(parents=True)
    with pytest.raises(PythonUnavailable, match=f"{tree} is damaged: remove it"):
        pythons.find("3.13")


def test_program_tells_the_paths_of_those_to_be_had_and_why_others_are_not(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    program = put_in_path("3.14", "echo 3.14")
    assert pythons.main(["3.12", "3.14"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{program}\n"
    assert "no python3.12 in PATH" in err


def test_program_fails_where_none_is_to_be_had(fetched: list[str]) -> None:
    assert pythons.main(["3.12"]) == 1


def test_child_of_this_python_is_one_of_the_same_kind() -> None:
    """With its own loader and libraries, too, under `make pythons`."""
    told = "import platform, sys; print(sys.version, sys.prefix, platform.libc_ver())"
    child = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert child.stdout == f"{sys.version} {sys.prefix} {platform.libc_ver()}\n"


def test_unpacked_python_is_run_by_its_own_loader_as_the_script(tmp_path: Path) -> None:
    """The loader here is a stand-in that tells its arguments."""
    tree, target = tmp_path / "kept", tmp_path / "where it lies"
    for name in ("usr/lib/x/ld-linux-x.so.2", "usr/lib/x/libc.so.6", "usr/bin/python3.14"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tree / name).chmod(0o755)
    settings = tree / "usr/lib/python3.14/_sysconfigdata_x.py"
    settings.parent.mkdir()
    settings.write_text("{'WHEEL_PKG_DIR': '/usr/share/python-wheels/'}")
    pythons.debians("3.14").finish(tree, target)
    tree.rename(target)
    link = tmp_path / "python"
    link.symlink_to(target / "usr/bin/python3.14")
    told = subprocess.run([link, "-c", "two words"], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        *("--library-path", str(target / "usr/lib/x"), "--argv0", str(link)),
        *(str(target / "usr/bin/python3.14.elf"), "-c", "two words"),
    ]
    wheels = f"{{'WHEEL_PKG_DIR': '{target}/usr/share/python-wheels/'}}"
    assert (target / "usr/lib/python3.14/_sysconfigdata_x.py").read_text() == wheels
