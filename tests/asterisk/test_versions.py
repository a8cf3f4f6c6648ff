"""What each version of Asterisk has, by what it says of itself."""

import pytest

from audiofork.asterisk.versions import (
    AUDIOSOCKET_RATES,
    AUDIOSOCKET_RESTS,
    CHANSPY_IN_WHOLE,
    CHANSPY_PAIRS,
    LEG_ENDS_WITH_PEER,
    UNKNOWN,
    WHISPER_LEAKS,
    Since,
    Version,
    releases,
)

FACTS = {
    "pairs": CHANSPY_PAIRS,
    "in-whole": CHANSPY_IN_WHOLE,
    "rests": AUDIOSOCKET_RESTS,
    "ends": LEG_ENDS_WITH_PEER,
    "rates": AUDIOSOCKET_RATES,
    "leaks": WHISPER_LEAKS,
}


@pytest.mark.parametrize(
    ("text", "branch", "minor"),
    [
        ("22.10.1", 22, 10),
        ("18.0.0", 18, 0),
        ("20.4.0", 20, 4),
        ("22.10.1~dfsg+~cs6.17.6.74", 22, 10),
        ("22.11.0-rc1", 22, 11),
        ("certified/20.7-cert2", 20, 7),
        ("certified-18.9-cert4", 18, 9),
        ("Asterisk 18.26.4", 18, 26),
        ("Asterisk certified/22.8-cert1", 22, 8),
    ],
)
def test_release_is_read_from_what_asterisk_says(text: str, branch: int, minor: int) -> None:
    version = Version.parse(text)
    assert (version.branch, version.minor, version.is_known) == (branch, minor, True)
    assert str(version) == text


@pytest.mark.parametrize(
    "text", ["GIT-22-f0c1c1a", "GIT-master-8f3d2a1M", "SVN-branch-13-r12345", "22", "", "unknown"]
)
def test_text_that_names_no_release_is_kept_and_nothing_is_read_from_it(text: str) -> None:
    version = Version.parse(text)
    assert (version.branch, version.minor, version.is_known) == (None, None, False)
    assert str(version) == text


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("13.38.3", []),
        ("16.30.1", []),
        ("18.0.0", []),
        ("18.19.0", []),
        ("18.20.0", ["rests"]),
        ("18.22.0", ["pairs", "rests"]),
        ("18.25.0", ["pairs", "in-whole", "rests"]),
        ("18.26.4", ["pairs", "in-whole", "rests"]),
        ("19.8.1", []),
        ("20.4.0", []),
        ("20.5.0", ["rests"]),
        ("20.7.0", ["pairs", "rests"]),
        ("certified/20.7-cert2", ["pairs", "rests"]),
        ("20.10.0", ["pairs", "in-whole", "rests"]),
        ("20.13.0", ["pairs", "in-whole", "rests"]),
        ("20.14.0", ["pairs", "in-whole", "rests", "ends"]),
        ("20.17.0", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("20.21.0", ["pairs", "in-whole", "rests", "ends", "rates", "leaks"]),
        ("21.0.0", ["rests"]),
        ("21.2.0", ["pairs", "rests"]),
        ("21.5.0", ["pairs", "in-whole", "rests"]),
        ("21.9.0", ["pairs", "in-whole", "rests", "ends"]),
        ("21.12.0", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("22.0.0", ["pairs", "in-whole", "rests"]),
        ("22.3.0", ["pairs", "in-whole", "rests"]),
        ("22.4.0", ["pairs", "in-whole", "rests", "ends"]),
        ("22.7.0", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("22.10.1", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("22.11.0-rc1", ["pairs", "in-whole", "rests", "ends", "rates", "leaks"]),
        ("23.0.0", ["pairs", "in-whole", "rests", "ends"]),
        ("23.1.0", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("23.4.0", ["pairs", "in-whole", "rests", "ends", "rates"]),
        ("23.5.0", ["pairs", "in-whole", "rests", "ends", "rates", "leaks"]),
        ("24.0.0", ["pairs", "in-whole", "rests", "ends", "rates", "leaks"]),
        ("GIT-22-f0c1c1a", ["pairs", "in-whole", "rests", "ends", "rates"]),
    ],
)
def test_version_has_what_its_branch_has_since_then(text: str, facts: list[str]) -> None:
    version = Version.parse(text)
    assert [name for name, since in FACTS.items() if version.has(since)] == facts


def test_version_that_is_unknown_has_all_features_and_no_fault_of_later_releases() -> None:
    assert [name for name, since in FACTS.items() if not UNKNOWN.has(since)] == ["leaks"]


@pytest.mark.parametrize(
    ("since", "text"),
    [
        (CHANSPY_PAIRS, "18.22, 20.7, 21.2, 22"),
        (LEG_ENDS_WITH_PEER, "20.14, 21.9, 22.4"),
        ({22: 4, 18: 0}, "18, 22.4"),
    ],
)
def test_releases_are_told_by_branch_the_oldest_first(since: Since, text: str) -> None:
    assert releases(since) == text
