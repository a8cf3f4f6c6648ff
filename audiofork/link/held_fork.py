"""What a relay process tells its next daemon of a fork; a part of `Held`."""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.link.fork_spec import LegPart


@dataclass(frozen=True, slots=True)
class HeldFork:
    """A fork that an earlier daemon has left to its relay process, which goes on with it.

    It is held until it is adopted, or ended.

    Attributes:
        way: As in its `ForkSpec`; so are the next two.
        legs: What its legs bring.
        sample_rate: In Hz.
        leg_ids: The ids of their channels, by part; those that were not ordered are missing.
        has_ended: Whether it has ended meanwhile.
        attached: The parts whose legs are connected.
        mute_in: Whether in is muted; `mute_out` likewise.
        is_spare: Whether it moves, and another relay has it still, or already.
        turn: As in its `ForkSpec`.
        age_s: Seconds since it was requested; 0: unknown.
    """

    fork_id: str
    way: str
    legs: tuple[LegPart, ...]
    sample_rate: int
    leg_ids: dict[str, str]
    has_ended: bool = False
    attached: tuple[LegPart, ...] = ()
    mute_in: bool = False
    mute_out: bool = False
    is_spare: bool = False
    turn: int = 0
    age_s: float = 0.0
