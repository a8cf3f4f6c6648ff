"""What a fork's relay has reported so far, so that what is reported anew is not taken for news."""

from __future__ import annotations

from dataclasses import dataclass, field

from audiofork.link.messages import (
    Command,
    CountBefore,
    ExpectLeg,
    ForkReport,
    HeldFork,
    LegAttached,
    LegLost,
    LegPart,
    PressKey,
    SetMute,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)


@dataclass(slots=True)
class Told:
    """What was reported of a fork, and what was ordered of it last.

    A session with a relay host may end and another begin, and the fork goes on; reports and
    commands of that moment may be lost.

    Attributes:
        opened, streaming: Whether these were reported.
        retrying: The last report of a connection that is missing.
        attached: The parts whose legs were reported as connected.
        ordered: The last command of each kind, or of each kind and part.
    """

    opened: bool = False
    streaming: bool = False
    retrying: SinkRetrying | None = None
    attached: set[LegPart | None] = field(default_factory=set)
    ordered: dict[tuple[type[Command], LegPart | None], Command] = field(default_factory=dict)

    def is_news(self, report: ForkReport) -> bool:
        """Note a report; return whether it says something new."""
        if isinstance(report, LegAttached):
            known = report.part in self.attached
            self.attached.add(report.part)
            return not known
        if isinstance(report, LegLost):
            known = report.part not in self.attached
            self.attached.discard(report.part)
            return not known
        if isinstance(report, SinkRetrying):
            known = self.retrying == report
            self.retrying = report
            return not known
        if isinstance(report, SinkResumed):
            known = self.retrying is None
            self.retrying = None
            return not known
        if isinstance(report, SinkOpened):
            known, self.opened = self.opened, True
            return not known
        if isinstance(report, Streaming):
            known, self.streaming = self.streaming, True
            return not known
        return True

    def note_order(self, command: Command) -> None:
        """Note a command for the fork, in place of an earlier one of its kind."""
        if isinstance(command, PressKey | CountBefore):  # twice would be once too often
            return
        part = command.part if isinstance(command, ExpectLeg) else None
        self.attached.discard(part)
        before = self.ordered.get((type(command), part))
        if isinstance(command, SetMute) and isinstance(before, SetMute):
            command = SetMute(
                command.fork_id,
                before.mute_in if command.mute_in is None else command.mute_in,
                before.mute_out if command.mute_out is None else command.mute_out,
            )
        self.ordered[type(command), part] = command

    def orders_for(self, held: HeldFork) -> list[Command]:
        """Return what to order of a fork that may have missed some of it, but not twice."""
        commands = []
        for command in self.ordered.values():
            has_leg = (
                isinstance(command, ExpectLeg)
                and held.leg_ids.get(command.part.value) == command.leg_id
            )
            if not has_leg:  # it would be dropped for another that never comes
                commands.append(command)
        return commands
