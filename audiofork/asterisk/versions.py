"""Features and faults of Asterisk versions, as measured or read in its sources.

They begin with different releases on each branch, so each fact here names the first release of each
branch that has it. docs/asterisk.md says which versions were tested.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# "22.10.1~dfsg+~cs6.17", "certified/20.7-cert2", "Asterisk 18.26.4", "22.11.0-rc1". The version of
# a build from a development branch ("GIT-22-f0c1c1a") has no release number.
_RELEASE = re.compile(r"(?:^|[\s/-])(\d+)\.(\d+)")

# A fact: the first release that has it, by branch. A branch that is not named has it only if it is
# later than all named branches.
Since = Mapping[int, int]

CHANSPY_PAIRS: Since = {18: 22, 20: 7, 21: 2, 22: 0}
"""ChanSpy has option D: in and out interleaved."""
CHANSPY_IN_WHOLE: Since = {18: 25, 20: 10, 21: 5, 22: 0}
"""ChanSpy's option o feeds only `in`. Before, `out` fills up unread; then both are flushed."""
AUDIOSOCKET_RESTS: Since = {18: 20, 20: 5, 21: 0}
"""AudioSocket() waits between frames. Before, it polls without a wait: 100 % CPU for each leg."""
LEG_ENDS_WITH_PEER: Since = {20: 14, 21: 9, 22: 4}
"""A leg ends when its connection ends. Before, the end of file is read again and again."""
AUDIOSOCKET_RATES: Since = {20: 17, 21: 12, 22: 7, 23: 1}
"""AudioSocket has a message kind for each sample rate. Before, all rates come as 8000 Hz."""
EVENT_FILTERS_BY_NAME: Since = {18: 26, 20: 11, 21: 6, 22: 1}
"""manager.conf knows `eventfilter(action(include),name(...))`."""
WHISPER_LEAKS: Since = {20: 21, 22: 11, 23: 5}
"""Whispering leaks a timer while the party hears nothing, and may silence the other party."""


@dataclass(frozen=True, slots=True)
class Version:
    """A release of Asterisk.

    Attributes:
        branch, minor: 22 and 10 of 22.10.1; both None if the version has no release number.
        text: The version as Asterisk reports it.
    """

    branch: int | None
    minor: int | None
    text: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse Asterisk's version text; a certified release counts as its base release."""
        found = _RELEASE.search(text)
        if found is None:
            return cls(None, None, text)
        return cls(int(found[1]), int(found[2]), text)

    @property
    def is_known(self) -> bool:
        """Whether the text contains a release number."""
        return self.branch is not None

    def has(self, since: Since) -> bool:
        """Return whether this release has a feature or fault.

        A version without a release number counts as a fixed latest one: it has all features, but
        not the fault WHISPER_LEAKS.
        """
        if self.branch is None or self.minor is None:
            return since is not WHISPER_LEAKS
        if self.branch in since:
            return self.minor >= since[self.branch]
        return self.branch > max(since)

    def __str__(self) -> str:
        return self.text


UNKNOWN = Version(None, None, "(version unknown)")


def releases(since: Since) -> str:
    """Return the first releases that have a fact, for people: `18.22, 20.7, 21.2, 22`."""
    return ", ".join(
        f"{branch}.{minor}" if minor else f"{branch}" for branch, minor in sorted(since.items())
    )
