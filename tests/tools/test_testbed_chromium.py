"""Chromium, and where it comes from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from testbed import chromium, debian
from testbed.asterisk import CACHE_VARIABLE
from testbed.chromium import ChromiumUnavailable


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without Chromium and network; the value is what was to be fetched of Debian."""
    wanted: list[str] = []

    def fetch(one: debian.Wanted, target: Path) -> None:
        wanted.extend(one.packages)
        raise debian.FetchFailed("no mirror answers")

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return wanted


def put_in_path(name: str, script: str) -> Path:
    program = Path(os.environ["PATH"], name)
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_chromium_in_path_is_taken_and_nothing_fetched(fetched: list[str]) -> None:
    program = put_in_path("chromium-browser", "echo Chromium 140.0.1 built on Debian")
    assert chromium.find_chromium() == program
    assert chromium.version(program) == "Chromium 140.0.1"
    assert fetched == []


def test_chromium_that_cannot_be_had_is_told_with_the_reason(fetched: list[str]) -> None:
    with pytest.raises(ChromiumUnavailable, match=r"(?s)not installed.*no mirror answers"):
        chromium.find_chromium()
    assert "chromium" in fetched


def test_chromium_that_does_not_run_is_told_with_its_words(fetched: list[str]) -> None:
    program = put_in_path("chromium", "echo no such library >&2; exit 127")
    with pytest.raises(ChromiumUnavailable, match="does not run: no such library"):
        chromium.version(program)


def test_unpacked_chromium_and_its_children_run_by_their_own_loader(tmp_path: Path) -> None:
    tree, target = tmp_path / "tree", tmp_path / "target"
    libraries = "usr/lib/machine-linux-gnu"
    for name in (
        f"{libraries}/libc.so.6",
        f"{libraries}/libLLVM.so.19",
        "usr/lib/chromium/chromium",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    loader = tree / "lib64/ld-linux-machine.so.2"
    loader.parent.mkdir()
    loader.write_text('#!/bin/sh\necho "$FONTCONFIG_FILE" "$@"\n')
    loader.chmod(0o755)
    chromium.DEBIANS.finish(tree, target)
    tree.rename(target)

    said = subprocess.run([target / "usr/bin/chromium", "--x"], capture_output=True, text=True)
    folders = f"{target}/{libraries}:{target}/{libraries}/pulseaudio"
    assert said.stdout.split() == [
        f"{target}/etc/fonts.conf",
        *("--library-path", folders, f"{target}/usr/lib/chromium/chromium", "--no-zygote"),
        *(f"--browser-subprocess-path={target}/usr/bin/chromium", "--x"),
    ]
    assert not (target / libraries / "libLLVM.so.19").exists()
    assert str(target / "usr/share/fonts") in (target / "etc/fonts.conf").read_text()
