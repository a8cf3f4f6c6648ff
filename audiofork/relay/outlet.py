"""Writes frames and events to an open connection, and keeps them while there is none.

Messages are framed and masked here: the library's `send()` is a coroutine and costs three times
as much (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from audiofork.audiosocket import PTIME_MS, PTIME_S
from audiofork.relay.backlog import Backlog
from audiofork.relay.formats.base import Event, Message, MessageFormat
from audiofork.relay.latencies import Latencies
from audiofork.relay.unacked import Unacked, Written

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library's wheel for this platform has no C code
    from websockets.utils import apply_mask

# How often the kernel is asked for its unsent bytes: counted in frames while frames are sent, in
# seconds while they wait.
FRAMES_BETWEEN_CHECKS: Final = 5
# While the kernel has sent all, it is two messages, since they fit the budget; but so many frames
# at most, because they are kept until then.
MOST_BETWEEN_CHECKS: Final = 10
CHECK_INTERVAL_S: Final = 0.01
# How often it is measured how long a frame takes to be acknowledged; so it is nearly free.
CHECKS_BETWEEN_MARKS: Final = 5
# Most events that wait for a server; the oldest are dropped.
MOST_EVENTS = 100


def _masks() -> Iterator[bytes]:
    """Yield masking keys; drawn in blocks, since each draw is a system call."""
    while True:
        block = os.urandom(4096)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


_next_mask: Final = _masks().__next__
_BINARY, _TEXT = 0x82, 0x81  # the first byte of a message that is one frame (RFC 6455, 5.2)


def encode(message: Message) -> bytes:
    """Return a message as a final, masked WebSocket frame (RFC 6455, 5.2)."""
    if isinstance(message, str):
        opcode, payload = _TEXT, message.encode()
    else:
        opcode, payload = _BINARY, message
    header, _ = _envelope(opcode, len(payload))
    mask = _next_mask()
    return b"".join((header, mask, apply_mask(payload, mask)))


def encode_all(messages: Sequence[Message]) -> bytes:
    """Return messages as WebSocket frames, one after the other."""
    if len(messages) == 1:
        return encode(messages[0])
    return b"".join([encode(message) for message in messages])


@functools.lru_cache(maxsize=64)
def _envelope(opcode: int, length: int) -> tuple[bytes, int]:
    """Return the header before the mask, and the bytes of the whole message on the wire.

    All forks get the same two objects, so that they stay in the processor's caches.
    """
    if length < 126:
        header = bytes((opcode, 0x80 | length))
    elif length < 65_536:
        header = bytes((opcode, 0xFE)) + length.to_bytes(2, "big")
    else:
        header = bytes((opcode, 0xFF)) + length.to_bytes(8, "big")
    return header, len(header) + 4 + length


class Flow(enum.IntEnum):
    """What delays the next frame on its way to the server; a lower value is a shorter delay."""

    FREE = 0
    """Nothing: it is sent at once, in a message of its own."""
    FORMED = 1
    """Its message: it is sent when the message is complete; that may need more frames."""
    KERNEL = 2
    """The kernel: it holds as much as the latency budget allows, and is asked again soon."""
    TRANSPORT = 3
    """The transport: its buffer is full; it calls `resume()` when it has room."""
    SHUT = 4
    """There is no connection that takes frames."""


# Frames are sent up to this value. A global name, because Python 3.11 looks up enum members slowly.
_LAST_THAT_TAKES: Final = Flow.FORMED


class _FastPath:
    """Sends a frame that needs no waiting: the hot path, with all the data that it needs.

    It is small and separate from its outlet. Frames of other forks come between two frames of this
    fork and push its data out of the processor's caches; so little data must be read again.

    Attributes:
        flow: What delays the next frame.
        header: The header of a message of one frame.
        write: Writes a message to the connection.
        writes: The messages that were written and are not acknowledged yet; see `Unacked`.
        keep: Called with a frame that cannot be sent at once.
        check: Called when `frames_sent` reaches `next_check`; asks the kernel for its unsent bytes.
        frames_sent: Frames in messages that were written.
        next_check: The value of `frames_sent` at which `check` is called.
        audio: Encodes frames into messages, unless a message is just its frames.
        dropped: Frames that were dropped before the next one.
    """

    __slots__ = (
        *("flow", "header", "write", "writes", "frames_sent", "next_check"),
        *("keep", "check", "audio", "dropped"),
    )

    def __init__(
        self,
        header: bytes,
        keep: Callable[[bytes], object],
        check: Callable[[], object],
        audio: Callable[[Sequence[bytes], int], Sequence[Message]],
    ) -> None:
        self.flow = Flow.SHUT
        self.header = header
        self.write: Callable[[bytes], object] = lambda _: None
        self.writes: list[Written] = []
        self.frames_sent = 0
        self.next_check = 0
        self.keep = keep
        self.check = check
        self.audio = audio
        self.dropped = 0

    def send(self, frame: bytes) -> None:
        """Send a frame now, or keep it in the backlog; never waits."""
        if self.flow:
            self.keep(frame)
            return
        write = self.write  # a local name first: to call an attribute directly is slower
        mask = _next_mask()
        write(b"".join((self.header, mask, apply_mask(frame, mask))))
        self.writes.append(frame)
        self.frames_sent = sent = self.frames_sent + 1
        if sent >= self.next_check:
            self.check()

    def send_encoded(self, frame: bytes) -> None:
        """As `send`, for a format whose messages are not just the frames."""
        if self.flow:
            self.keep(frame)
            return
        sent = self.frames_sent
        frames = (frame,)
        data = encode_all(self.audio(frames, sent + self.dropped))
        self.write(data)
        self.writes.append((frames, len(data)))
        self.frames_sent = sent = sent + 1
        if sent >= self.next_check:
            self.check()


class Outlet:
    """Writes frames and events, in order, to one connection after the other.

    Owned by a sink, which calls `attach()`, `greet()`, `open()` and `detach()` for each connection.
    Frames offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.

    Args:
        message_format: Makes the messages of frames and events.
        frame_bytes: Size of every frame in bytes.
        frame_ms: Audio in a full message, in milliseconds.
        backlog_s: Seconds of audio that may wait here.
        latency_budget_s: Seconds of audio that may wait below, in the transport and in the kernel.
        latencies: Counts how long frames take; None: of no interest.

    Attributes:
        send: Sends a frame now, or keeps it in the backlog; never waits.
        budget_bytes: The latency budget, in bytes on the wire.
        dropped_before: The value of `backlog.dropped` when frames last began to wait.
        is_ending: Whether no more frames will come, so that the last message may be short.
        on_idle: Called when no frame waits any more.
    """

    def __init__(
        self,
        message_format: MessageFormat,
        *,
        frame_bytes: int,
        frame_ms: int,
        backlog_s: float,
        latency_budget_s: float,
        latencies: Latencies | None = None,
    ) -> None:
        self._format = message_format
        self._per_message = frame_ms // PTIME_MS
        header, frame_wire_bytes = _envelope(_BINARY, frame_bytes)
        self._unacked_of = functools.partial(
            Unacked, frame_wire_bytes=frame_wire_bytes, latencies=latencies or Latencies()
        )
        path = _FastPath(header, self._keep, self._check_room, message_format.audio)
        self._path = path
        self.send = path.send if message_format.is_verbatim else path.send_encoded
        # At least two messages: one that was just written does not show that the server is slow.
        budget_frames = max(int(latency_budget_s * 1000) // PTIME_MS, 2 * self._per_message)
        _, wire_bytes = _envelope(_BINARY, message_format.payload_bytes(frame_bytes))
        self.budget_bytes = budget_frames * wire_bytes
        self.backlog = Backlog(max(backlog_s, frame_ms / 1000))
        # Each with the number of the frame that it must precede.
        self._events: list[tuple[int, Event]] = []
        self._unacked: Unacked | None = None
        # FORMED: sends an incomplete message when due; KERNEL: asks the kernel again.
        self._timer: asyncio.TimerHandle | None = None
        self._told_dropped = 0  # how many lost frames the server has been told of
        self.dropped_before = 0
        self.is_ending = False
        self.on_idle: Callable[[], None] = lambda: None

    @property
    def frames_sent(self) -> int:
        return self._path.frames_sent

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that takes frames, now or when it has room."""
        return self._path.flow is not Flow.SHUT

    def on_the_way(self) -> tuple[float, int]:
        """Return the round trip to the server in milliseconds, and the bytes not acknowledged.

        Both are 0 while there is no connection; else this asks the kernel.
        """
        if self._unacked is None:
            return 0.0, 0
        unacked_bytes = self._unacked.on_the_way()
        return self._unacked.rtt_us / 1000, unacked_bytes

    @property
    def missing(self) -> int:
        """Frames that the last waiting message still lacks; a whole message if none waits."""
        return self._per_message - len(self.backlog) % self._per_message

    @property
    def _takes(self) -> bool:
        return self._path.flow <= _LAST_THAT_TAKES

    @property
    def _number(self) -> int:
        """The number of the next frame to send; all frames before it were sent or dropped."""
        return self._path.frames_sent + self.backlog.dropped

    # --- The connection ---

    def attach(self, transport: asyncio.Transport) -> None:
        """Use a connection whose handshake is over; nothing is written to it before `greet()`."""
        self._unacked = self._unacked_of(transport)
        self._path.write = transport.write
        self._path.writes = self._unacked.writes

    def greet(self) -> None:
        """Write the format's opening; `open()` follows, now or when the server has answered."""
        self._told_dropped = self.backlog.dropped
        self._write_all(self._format.opening(self._number, self.backlog.dropped))

    def open(self, *, is_full: bool) -> None:
        """Write what waited, and then all that comes.

        Args:
            is_full: Whether the transport is full; then it calls `resume()` when it has room.
        """
        self._path.flow = Flow.FORMED
        if is_full:
            self.pause()
        elif self._takes:
            self._proceed()

    def shut(self) -> None:
        """Keep frames from now on: the connection is closing, or lost."""
        self._hold(Flow.SHUT)

    def detach(self) -> None:
        """Put back at the front what was written and the server has not acknowledged."""
        self.shut()
        assert self._unacked is not None
        lost = self._unacked.close()
        self._unacked = None
        frames = [item for item in lost if isinstance(item, bytes)]
        self._path.frames_sent -= len(frames)
        events = _numbered_events(lost, self._number)
        self._events = [*events, *self._events][-MOST_EVENTS:]
        self.backlog.put_back(frames)

    def note_control(self, wire_bytes: int) -> None:
        """Count what the library has written: pings, pongs, the close."""
        if self._unacked is not None:
            self._unacked.writes.append(((), wire_bytes))

    def pause(self) -> None:
        """Keep frames until `resume()`: the transport is full."""
        if self.is_open:
            self._hold(Flow.TRANSPORT)

    def resume(self) -> None:
        """Send again: the transport has room."""
        if self._path.flow is Flow.TRANSPORT:
            self._proceed()

    def _hold(self, flow: Flow) -> None:
        self._stop_timer()
        if self._takes:
            self.dropped_before = self.backlog.dropped
        self._path.flow = flow

    def _proceed(self) -> None:
        """Send what waits, then all that comes, unless the kernel holds too much."""
        if not self._has_room():
            return
        self._path.flow = Flow.FORMED
        self._send_waiting()
        if self._takes and self._per_message == 1:
            self._path.dropped = self.backlog.dropped
            self._path.flow = Flow.FREE

    def _check_room(self) -> None:
        if self._takes:  # else the transport is full, and calls `resume()` when it has room
            self._has_room()
            assert self._unacked is not None
            if self._unacked.updates >= CHECKS_BETWEEN_MARKS:
                # A frame came every 20 ms after it: that is how long it has waited.
                self._unacked.mark(len(self.backlog) * PTIME_S)

    def _has_room(self) -> bool:
        """Return whether the kernel's unsent bytes fit the budget; if not, hold for a while."""
        assert self._unacked is not None
        self._unacked.update()
        not_sent = self._unacked.not_sent
        interval = 0 if not_sent else min(2 * self._per_message, MOST_BETWEEN_CHECKS)
        self._path.next_check = self.frames_sent + max(FRAMES_BETWEEN_CHECKS, interval)
        if not_sent <= self.budget_bytes:
            return True
        self._hold(Flow.KERNEL)
        self._start_timer(CHECK_INTERVAL_S, self._proceed)
        return False

    # --- What cannot be sent at once ---

    def send_event(self, event: Event) -> None:
        """Send an event after the frames that came before it; never waits."""
        self._events.append((self._number + len(self.backlog), event))
        del self._events[:-MOST_EVENTS]
        if self._takes:
            self._send_waiting()

    def reply(self, messages: Sequence[Message]) -> None:
        """Write messages at once, before all that waits, if the connection takes any.

        A server that asks and does not read fills the transport, and gets no more answers.
        """
        if self._path.flow < Flow.TRANSPORT:
            self._write_all(messages)

    def send_part(self) -> None:
        """Send the frames of an incomplete message now, without the frames that it lacks."""
        if self._takes and self.backlog:
            self._send_message()

    def finish(self) -> None:
        """Send what waits, also an incomplete message: no more frames will come."""
        self.is_ending = True
        if self._takes:
            self._send_waiting()

    def send_closing(self, reason: str) -> None:
        """Send the format's last messages, if the connection takes any."""
        if self.is_open:
            self._write_all(self._format.closing(reason, self._number, self.backlog.dropped))

    def send_batch(self, frames: list[bytes]) -> None:
        """Send frames that came at once, or keep them in the backlog; never waits."""
        # Events wait only behind frames, or while the connection takes nothing.
        is_message = len(frames) == self._per_message and not self.backlog
        if is_message and self._path.flow == _LAST_THAT_TAKES:
            self._write_frames(frames)
        else:
            for frame in frames:
                self._keep(frame)

    def _keep(self, frame: bytes) -> None:
        self.backlog.put(frame)
        # While a timer runs and the message is incomplete, there is nothing to send yet.
        is_part = self._timer is not None and len(self.backlog) < self._per_message
        if not is_part and self._takes:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits, in order, while the connection takes it and messages are full."""
        while self._takes:
            if self._events and self._events[0][0] <= self._number:
                self._write_event()
            elif not self.backlog:
                break
            elif len(self.backlog) < self._per_message and not (self._events or self.is_ending):
                self._start_part()
                return
            else:
                self._send_message()
        if not self.backlog:
            self.on_idle()

    def _send_message(self) -> None:
        """Send the next message: its frames that wait, but only those before the next event."""
        self._stop_timer()
        count = min(self._per_message, len(self.backlog))
        if self._events:
            count = min(count, self._events[0][0] - self._number)
        self._write_frames([self.backlog.take() for _ in range(count)])

    def _write_frames(self, frames: list[bytes]) -> None:
        """Write frames as one message, and all that precedes it."""
        path = self._path
        backlog = self.backlog
        number = path.frames_sent + backlog.dropped
        if backlog.dropped != self._told_dropped:
            self._tell_of_gap(number)
        data = encode_all(path.audio(frames, number))
        path.write(data)
        path.writes.append((frames, len(data)))
        path.frames_sent += len(frames)
        if path.frames_sent >= path.next_check:
            self._check_room()

    def _tell_of_gap(self, number: int) -> None:
        """Tell the server of the frames that were dropped just before this one."""
        lost = self.backlog.dropped - self._told_dropped
        self._told_dropped += lost
        self._write_all(self._format.gap(number, lost))

    def _write_event(self) -> None:
        number, event = self._events.pop(0)
        self._write_all(self._format.event(event, number), event)

    def _write_all(self, messages: Iterable[Message], event: Event | None = None) -> None:
        """Write messages without frames; record the event with the last one.

        So the event counts as delivered only if all its messages were acknowledged.
        """
        wire = [encode(message) for message in messages]
        for index, message in enumerate(wire, 1):
            self._path.write(message)
            carried = (event,) if event is not None and index == len(wire) else ()
            self._path.writes.append((carried, len(message)))

    def _start_part(self) -> None:
        """Wait for the missing frames of a message, at most as long as a full message lasts."""
        if self._timer is None:
            self._start_timer(self._per_message * PTIME_S, self.send_part)

    def _start_timer(self, delay_s: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_due, then)

    def _on_due(self, then: Callable[[], None]) -> None:
        self._timer = None
        then()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _numbered_events(items: Iterable[bytes | Event], number: int) -> Iterator[tuple[int, Event]]:
    """Yield each event with the number of the frame that follows it.

    Args:
        items: Frames and events in the order of the stream.
        number: The number of the first frame among them.
    """
    for item in items:
        if isinstance(item, bytes):
            number += 1
        else:
            yield number, item
