"""The documentation says what the code does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import testbed.attacks.__main__  # noqa: F401 (adds all of them)
from audiofork import errors
from audiofork.asterisk.taps.ways import as_markdown
from audiofork.forks.lifecycle import FORK_LIFE
from audiofork.link.messages import EndReason
from audiofork.relay.sink_states import SINK_LIFE
from audiofork.states import StateTable
from testbed.attacks import ATTACKS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("table", [FORK_LIFE, SINK_LIFE], ids=["fork", "sink"])
def test_state_diagram_is_the_table(table: StateTable[Any, Any]) -> None:
    assert table.diagram() in (ROOT / "docs/architecture.md").read_text()


def test_every_end_reason_is_explained() -> None:
    usage = (ROOT / "docs/usage.md").read_text()
    assert [reason for reason in EndReason if f"| `{reason}` |" not in usage] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze not there")
def test_services_are_hardened() -> None:
    """An exposure of 2.0 or less; the tool counts in tenths."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
    for unit in (ROOT / "systemd").glob("*.service"):
        subprocess.run([*command, unit], check=True, capture_output=True)


def test_table_of_ways_is_the_code() -> None:
    assert as_markdown() in (ROOT / "docs/asterisk.md").read_text()


def tree_of(cls: type[BaseException], indent: str = "") -> list[str]:
    """Return the classes below one as the docstring of errors.py draws them, in their order."""
    lines = []
    for one in cls.__subclasses__():
        if one.__module__ == errors.__name__:
            lines += [f"{indent}+-- {one.__name__}", *tree_of(one, indent + "|   ")]
    return lines


def test_tree_of_the_exceptions_is_the_code() -> None:
    assert errors.__doc__ is not None
    _, _, drawn = errors.__doc__.partition(f"{errors.AudioForkError.__name__}\n")
    names = [re.split(r"(?<=\w) +", line)[0] for line in drawn.splitlines()]
    assert names == tree_of(errors.AudioForkError)


def test_every_module_stands_in_the_table_of_its_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    told, room = set(), ""
    for line in text[text.index("| room | module |") :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        _, named, modules, *_ = line.split("|")
        room = named.strip(" `") or room
        told |= {room + name for name in re.findall(r"`([\w/]+\.py)`", modules)}
    package = ROOT / "audiofork"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert told == {name for name in there if not name.endswith("__init__.py")}


def test_tests_and_attacks_that_security_names_are_there() -> None:
    text = (ROOT / "docs/security.md").read_text()
    folder = Path("tests")
    for name in re.findall(r"`((?:tests/[\w/]+/|tests/)?test_\w+\.py)`", text):
        if "/" in name:  # those that follow without a folder are in the same
            folder = Path(name).parent
        assert (ROOT / folder / Path(name).name).exists(), name
    named = [
        word
        for part in re.findall(r"`make attacks`:((?:[\s,]+`\w+`)+)", text)
        for word in re.findall(r"`(\w+)`", part)
    ]
    assert sorted(named) == sorted(ATTACKS.names)


def test_no_gosub_of_an_example_can_end_a_call() -> None:
    """Each asks first whether the context is there; one into a missing context ends the call."""
    files = [ROOT / "docs/usage.md", *ROOT.glob("etc/**/*.conf"), *ROOT.glob("examples/*/*.*")]
    bare = re.compile(r"(?<!1\)\}\?)Gosub\(audiofork,")
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert [line for line in lines if bare.search(line)] == []
    assert sum("?Gosub(audiofork," in line for line in lines) > 10
