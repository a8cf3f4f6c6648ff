"""What each version of Asterisk can do, and where it harms, as measured or read in its sources.

Features and faults come and go with releases, on each branch at another number, so each fact here
names the first release of each branch that has it. docs/asterisk.md tells which versions were run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# "22.10.1~dfsg+~cs6.17", "certified/20.7-cert2", "Asterisk 18.26.4", "22.11.0-rc1". A build
# from a development branch ("GIT-22-f0c1c1a") tells no release.
_RELEASE = re.compile(r"(?:^|[\s/-])(\d+)\.(\d+)")

# A fact: the first release that has it, by branch. A branch that is older than all named lacks
# it, and so does one between two named; a later one has it.
Since = Mapping[int, int]

CHANSPY_PAIRS: Since = {18: 22, 20: 7, 21: 2, 22: 0}
"""ChanSpy's option D: in and out side by side."""
CHANSPY_IN_WHOLE: Since = {18: 25, 20: 10, 21: 5, 22: 0}
"""ChanSpy's option o feeds `in` alone. Before that `out` fills up unread; both are flushed then."""
AUDIOSOCKET_RESTS: Since = {18: 20, 20: 5, 21: 0}
"""AudioSocket() waits between frames. Before that it polls without a wait: a core for each leg."""
LEG_ENDS_WITH_PEER: Since = {20: 14, 21: 9, 22: 4}
"""A leg ends when its connection does. Before that an end of file is read again and again."""
AUDIOSOCKET_RATES: Since = {20: 17, 21: 12, 22: 7, 23: 1}
"""AudioSocket has a kind of its own for each sample rate. Before that all comes as 8000 Hz."""
WHISPER_LEAKS: Since = {20: 21, 22: 11, 23: 5}
"""A timer of whispered channels leaks while nothing is heard, and may silence the other party."""


@dataclass(frozen=True, slots=True)
class Version:
    """A release of Asterisk.

    Attributes:
        branch, minor: 22 and 10 of 22.10.1; None and None where the version tells no release.
        text: As Asterisk says it.
    """

    branch: int | None
    minor: int | None
    text: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read what Asterisk says of itself; a certified release counts as what it is based on."""
        found = _RELEASE.search(text)
        if found is None:
            return cls(None, None, text)
        return cls(int(found[1]), int(found[2]), text)

    @property
    def is_known(self) -> bool:
        """Whether the text names a release."""
        return self.branch is not None

    def has(self, since: Since) -> bool:
        """Return whether this release has what others have since then.

        A version that tells no release counts as the latest: all features, no fault that is known
        of certain releases alone.
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
    """Return the releases that have something first, for people: `18.22, 20.7, 21.2, 22`."""
    return ", ".join(
        f"{branch}.{minor}" if minor else f"{branch}" for branch, minor in sorted(since.items())
    )
