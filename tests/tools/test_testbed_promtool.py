"""Where promtool comes from."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from testbed import debian
from testbed.asterisk import CACHE_VARIABLE
from testbed.promtool import PromtoolUnavailable, find_promtool


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without promtool and network; the value is what was to be fetched of Debian."""
    wanted: list[str] = []

    def fetch(one: debian.Wanted, target: Path) -> None:
        wanted.extend(one.packages)
        raise debian.FetchFailed("no mirror answers")

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return wanted


def test_installed_promtool_is_taken_and_nothing_fetched(
    tmp_path: Path, fetched: list[str]
) -> None:
    program = tmp_path / "bin/promtool"
    program.parent.mkdir()
    program.touch(0o755)
    assert find_promtool() == [str(program)]
    assert not fetched


def test_promtool_that_cannot_be_fetched_is_told_with_the_reason(fetched: list[str]) -> None:
    with pytest.raises(PromtoolUnavailable, match=r"^no promtool in PATH, .*\nno mirror answers$"):
        find_promtool()
    assert fetched == ["prometheus"]


def test_tree_that_is_damaged_is_told(tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / f"cache/promtool-sid-{platform.machine()}").mkdir(parents=True)
    with pytest.raises(
        PromtoolUnavailable, match="is damaged: remove it, and it is fetched again$"
    ):
        find_promtool()
    assert not fetched
