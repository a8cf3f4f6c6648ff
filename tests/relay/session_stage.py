"""A session between legs and a sink that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from audiofork.link.messages import (
    Direction,
    ForkEnded,
    LegPart,
    Report,
    SetMute,
)
from audiofork.relay.formats.base import Audio, Command, Event
from audiofork.relay.pacer import Pacer
from audiofork.relay.pipeline import message_frame_bytes
from audiofork.relay.session import Session
from audiofork.relay.sink import Sink
from tests.relay.pipeline_stage import FORK_ID, PAIRS, FakeLeg, spec_of


class FakeBacklog:
    """Counts the waiting frames, at most five."""

    def __init__(self) -> None:
        self.dropped = 0
        self.waiting = 0

    def __len__(self) -> int:
        return self.waiting

    def put(self, count: int = 1) -> None:
        self.dropped += max(0, self.waiting + count - 5)
        self.waiting = min(5, self.waiting + count)


class FakeSink:
    """A sink that opens, fails and finishes closing when the test says so.

    Attributes:
        frames: All frames that it got; each must be `frame_bytes` long.
        events: All events that it got, each with the number of frames before it.
    """

    def __init__(self, frame_bytes: int) -> None:
        self.frame_bytes = frame_bytes
        self.frame_ms = 20
        self.parts_sent = 0
        self.missing = 1  # frames, of the next message
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str, float], None] = lambda *_: None
        self.on_text: Callable[[str], None] = lambda text: None
        self.on_audio: Callable[[Audio], None] = lambda audio: None
        self.on_command: Callable[[Command], None] = lambda command: None
        self.reconnects = 0
        self.subprotocol = ""
        self.dropped_in_gap = 0
        self.messages_unused = 0
        self.on_its_way = (0.0, 0)
        self.frames: list[bytes] = []
        self.events: list[tuple[int, Event]] = []
        self.frames_sent = 0
        self.backlog = FakeBacklog()
        self.is_open = False
        self.closes: list[tuple[int, str]] = []
        self.hurried = False
        self.over = asyncio.get_running_loop().create_future()
        self.may_close = asyncio.Event()
        self.may_close.set()

    def open(self) -> None:
        self.is_open = True
        self.frames_sent += self.backlog.waiting
        self.backlog.waiting = 0
        self.on_open()

    def lose(self, unacknowledged: int) -> None:
        """Lose the server, which did not get the latest frames."""
        self.is_open = False
        self.frames_sent -= unacknowledged
        self.backlog.put(unacknowledged)
        self.reconnects += 1

    def send(self, frame: bytes) -> None:
        assert len(frame) == self.frame_bytes
        self.frames.append(frame)
        if self.is_open:
            self.frames_sent += 1
        else:
            self.backlog.put()

    def send_batch(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def on_the_way(self) -> tuple[float, int]:
        return self.on_its_way

    def send_part(self) -> None:
        self.parts_sent += 1

    def send_event(self, event: Event) -> None:
        self.events.append((len(self.frames), event))

    def hurry(self) -> None:
        self.hurried = True

    async def run(self) -> None:
        await self.over

    async def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        await self.may_close.wait()
        if not self.over.done():
            self.over.set_result(None)


class SessionStage:
    """A session with its legs, its sink and its reports."""

    def __init__(self, direction: Direction, **wishes: Any) -> None:
        spec = spec_of(direction, **wishes)
        self.sink = FakeSink(message_frame_bytes(spec))
        self.legs = {part: FakeLeg(spec.sample_rate) for part in spec.legs}
        self.leg = self.legs[spec.legs[0]]
        self.reports: list[Report] = []
        self.session = Session(spec, cast(Sink, self.sink), self._on_report, Pacer())
        self.on_report: Callable[[Report], None] = lambda report: None
        self._usual: dict[LegPart, int] = {}  # size of the latest frame of each part

    def _on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.on_report(report)

    async def ended(self) -> ForkEnded:
        """Wait for the end; return the report of it, which must be the last and the only one."""
        async with asyncio.timeout(5):
            await self.session.done.wait()
        (ended,) = [report for report in self.reports if isinstance(report, ForkEnded)]
        assert self.reports[-1] is ended
        return ended

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(report, kind) for report in self.reports)

    def attach(self, *parts: LegPart) -> None:
        """Connect the legs of these parts; of all parts if none is named."""
        for part in parts or self.legs:
            self._usual.pop(part, None)
            self.session.inlets[part].attach(self.legs[part])

    def close_leg(self, part: LegPart | None = None) -> None:
        self.session.inlets[part or self.only_part].on_leg_closed()

    @property
    def only_part(self) -> LegPart:
        """The part of a fork that has just one."""
        (part,) = self.legs
        return part

    def audio(self, frame: bytes, part: LegPart | None = None) -> None:
        """Deliver a frame of a part, as the listener does; check that every frame is counted."""
        part = part or self.only_part
        if len(frame) == self._usual.get(part):
            self.legs[part].on_usual(frame)
        else:
            self.session.inlets[part].on_audio(frame)
        self._usual[part] = len(frame)
        stats = self.session.stats()
        waiting = len(self.sink.backlog)
        assert stats.frames_in == stats.frames_sent + stats.frames_dropped + waiting

    def stream(self) -> None:
        """Connect both ends and send a frame."""
        self.attach()
        self.sink.open()
        self.audio(bytes(640 if self.only_part is PAIRS else 320))
        self.sink.frames.clear()

    def mute(self, mute_in: bool | None, mute_out: bool | None) -> None:
        self.session.set_mute(SetMute(FORK_ID, mute_in, mute_out))


Begin = Callable[..., SessionStage]
