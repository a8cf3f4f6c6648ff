"""The profiles that are shipped, as the administrator copies them."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.config_file import load
from audiofork.forks.profiles import Profiles
from testbed.speech_services import SERVICES, SpeechService

FOLDER = Path(__file__).parent.parent.parent / "etc/profiles"


def test_every_service_that_a_profile_can_reach_has_one() -> None:
    names = {path.stem for path in FOLDER.glob("*.ini")}
    assert names == {*(service.name for service in SERVICES), "azure"}


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: one.name)
def test_shipped_profile_can_be_used_with_a_key(
    service: type[SpeechService], tmp_path: Path
) -> None:
    folder = tmp_path / "profiles.d"
    folder.mkdir()
    text = (FOLDER / f"{service.name}.ini").read_text(encoding="utf-8")
    text = text.replace("/etc/audiofork/profiles.d", str(folder))
    (folder / f"{service.name}.ini").write_text(text)
    (folder / f"{service.name}.key").write_text("k3y\n")
    (tmp_path / "audiofork.ini").touch()
    found = load(tmp_path / "audiofork.ini", {}).profile
    assert list(found) == [service.name]
    assert found[service.name].url.startswith(service.origin)
    Profiles(found)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ini")), ids=lambda path: path.stem)
def test_shipped_profile_says_where_its_facts_come_from_and_what_was_not_tried(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "; From " in text
    assert "not against" in text or "cannot be reached by a profile" in text
