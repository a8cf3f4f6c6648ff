"""The commands and reports of a fork that moves from one relay host to another, without a gap.

The second relay gets the fork and its own legs while the first goes on; it keeps what they bring.
Then the first stops, and tells how its last frames looked; the second goes on after them.
"""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.link.fork_stats import ForkStats


@dataclass(frozen=True, slots=True)
class NoteFrames:
    """Command to the first relay: note how the frames look from now on."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class TellFrame:
    """Command to the first relay, which notes frames: answer the next with `FrameCame`, once."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Command to the first relay: stop, answer with `HandedOver`, send what waits, and end."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Command to the second relay: go on after these frames.

    Attributes:
        tail, other_tail: Of `HandedOver`; empty: the first did not tell.
        latest: How many frames have come since the first relay stopped, about; where the place
            after the tail is not found, so many of the latest are sent.
        is_whole: Whether no frame has come to both, so that all that have come are sent.
    """

    fork_id: str
    tail: tuple[int, ...] = ()
    other_tail: tuple[int, ...] = ()
    latest: int = 0
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class CountBefore:
    """Command to the second relay: what the first has counted; it tells the sum from now on."""

    fork_id: str
    stats: ForkStats


@dataclass(frozen=True, slots=True)
class FrameCame:
    """Report of the first relay: a leg has just brought a frame, so the next one takes a while."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Report of the first relay: its frames end here.

    Attributes:
        tail: How the latest frames of its first leg looked.
        other_tail: Those of its second leg; empty: it has none.
    """

    fork_id: str
    tail: tuple[int, ...]
    other_tail: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Report of the second relay: it sends.

    Attributes:
        is_exact: Whether the place after the tail was found; if not, some frames may be missing,
            or may have come twice.
    """

    fork_id: str
    is_exact: bool


@dataclass(frozen=True, slots=True)
class MoveReady:
    """Report: a fork that moves by a bridge has its new leg and server: the call may be bridged."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Report: the fork's legs are those of `MoveFork` from now on; the earlier ones go.

    The reports that follow are those of its new relay, `TakenOver` one of the first.

    Attributes:
        to: The relay host that has it now.
    """

    fork_id: str
    to: str


@dataclass(frozen=True, slots=True)
class NotMoved:
    """Report: a fork stays where it is, and the legs of `MoveFork` are not wanted.

    Attributes:
        why: For people.
    """

    fork_id: str
    why: str


@dataclass(frozen=True, slots=True)
class RelayDraining:
    """Report: a relay host wants to be rid of these forks.

    Attributes:
        relay_host: Its name.
        moves_calls: Whether also of those whose server is the other party, which might end by
            themselves.
    """

    fork_ids: tuple[str, ...]
    relay_host: str = ""
    moves_calls: bool = False
