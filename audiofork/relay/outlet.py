"""The way of frames and events into an open connection, and where they wait when it is shut.

Messages are framed and masked here: the library's `send()` is a coroutine and costs three times
as much (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from audiofork.audiosocket import PTIME_MS, PTIME_S
from audiofork.relay.backlog import Backlog
from audiofork.relay.formats.base import Event, Message, MessageFormat
from audiofork.relay.unacked import Unacked, Written

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library's wheel for this platform has no C code
    from websockets.utils import apply_mask

# How often the kernel is asked what it holds back: by frames while all is well, else by time.
FRAMES_BETWEEN_CHECKS = 5
CHECK_INTERVAL_S = 0.01
# Events that wait for a server; those before them are dropped.
MOST_EVENTS = 100


def _masks() -> Iterator[bytes]:
    """Yield masking keys; drawn in blocks, since each draw is a system call."""
    while True:
        block = os.urandom(4096)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


_next_mask = _masks().__next__
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


@functools.lru_cache(maxsize=64)
def _envelope(opcode: int, length: int) -> tuple[bytes, int]:
    """Return what comes before the mask, and how many bytes the whole takes on the wire.

    The same two objects to all forks alike, for the processor caches' sake.
    """
    if length < 126:
        header = bytes((opcode, 0x80 | length))
    elif length < 65_536:
        header = bytes((opcode, 0xFE)) + length.to_bytes(2, "big")
    else:
        header = bytes((opcode, 0xFF)) + length.to_bytes(8, "big")
    return header, len(header) + 4 + length


class Flow(enum.IntEnum):
    """What stands between the next frame and its server; the less, the lower."""

    FREE = 0
    """Nothing: it goes at once, in a message of its own."""
    FORMED = 1
    """It goes as soon as its message is complete; other frames may belong to that."""
    KERNEL = 2
    """The kernel holds as much as the latency budget allows, and is asked again soon."""
    TRANSPORT = 3
    """The transport does, and tells when it has room."""
    SHUT = 4
    """There is no connection that may be given frames."""


# Up to here frames are taken. A name of its own: members of an enum are slow to look up (3.11).
_LAST_THAT_TAKES = Flow.FORMED


class _FastPath:
    """The way of a frame that goes at once, and all that it needs: the hot path.

    Small and apart from its outlet, because a frame of another fork comes before the next of this
    one, and what it touches is no longer in the processor's caches by then.

    Attributes:
        flow: What stands in the way.
        header: Of a message of one frame.
        write: Gives the connection a message; `note` notes it as not acknowledged.
        keep: Takes a frame that cannot go at once.
        frames_sent: Those in messages that were written.
        next_check: At so many frames sent, `check` is called.
    """

    __slots__ = (
        *("flow", "header", "write", "note", "frames_sent", "next_check"),
        *("keep", "check"),
    )

    def __init__(
        self, header: bytes, keep: Callable[[bytes], object], check: Callable[[], object]
    ) -> None:
        self.flow = Flow.SHUT
        self.header = header
        self.write: Callable[[bytes], object] = lambda _: None
        self.note: Callable[[Written], object] = lambda _: None
        self.frames_sent = 0
        self.next_check = 0
        self.keep = keep
        self.check = check

    def send(self, frame: bytes) -> None:
        """Send a frame now, or keep it in the backlog; never waits."""
        if self.flow:
            self.keep(frame)
            return
        # Looked up before they are called: that is faster than a call of an attribute.
        write, note = self.write, self.note
        mask = _next_mask()
        write(b"".join((self.header, mask, apply_mask(frame, mask))))
        note(frame)
        self.frames_sent = sent = self.frames_sent + 1
        if sent >= self.next_check:
            self.check()


class Outlet:
    """Gives frames and events to one connection after the other, in order.

    Owned by a sink, which calls `attach()`, `open()` and `detach()` for each connection. Frames
    offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.

    Args:
        frame_bytes: Size of every frame.
        frame_ms: Audio in a full message.
        backlog_s: How much audio may wait here.
        latency_budget_s: How much audio may wait below: in the transport, and in the kernel.

    Attributes:
        send: Sends a frame now, or keeps it in the backlog; never waits.
        budget_bytes: The latency budget, on the wire.
        dropped_before: Frames that had been dropped when frames last began to wait.
        is_ending: No more frames are to come: the last message goes as it is.
        on_idle: Called when nothing waits any more.
    """

    def __init__(
        self,
        message_format: MessageFormat,
        *,
        frame_bytes: int,
        frame_ms: int,
        backlog_s: float,
        latency_budget_s: float,
    ) -> None:
        self._format = message_format
        self._per_message = frame_ms // PTIME_MS
        header, self._frame_wire_bytes = _envelope(_BINARY, frame_bytes)
        self._path = _FastPath(header, self._keep, self._check_room)
        self.send = self._path.send
        # A message that was just written is no sign of a slow server.
        budget_frames = max(int(latency_budget_s * 1000) // PTIME_MS, 2 * self._per_message)
        _, wire_bytes = _envelope(_BINARY, message_format.payload_bytes(frame_bytes))
        self.budget_bytes = budget_frames * wire_bytes
        self.backlog = Backlog(max(backlog_s, frame_ms / 1000))
        # Each with the number of the frame before which it goes.
        self._events: deque[tuple[int, Event]] = deque(maxlen=MOST_EVENTS)
        self._unacked: Unacked | None = None
        self._timer: asyncio.TimerHandle | None = None  # FORMED: for a part; KERNEL: to ask again
        self.dropped_before = 0
        self.is_ending = False
        self.on_idle: Callable[[], None] = lambda: None

    @property
    def frames_sent(self) -> int:
        return self._path.frames_sent

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is given frames, as far as it has room."""
        return self._path.flow is not Flow.SHUT

    @property
    def missing(self) -> int:
        """How many frames the last message of what waits still lacks; of nothing, all."""
        return self._per_message - len(self.backlog) % self._per_message

    @property
    def _takes(self) -> bool:
        return self._path.flow <= _LAST_THAT_TAKES

    @property
    def _number(self) -> int:
        """The number of the next frame to go: each before it was sent, or dropped."""
        return self._path.frames_sent + self.backlog.dropped

    # --- The connection ---

    def attach(self, transport: asyncio.Transport) -> None:
        """Take a connection whose handshake is over; it gets nothing before `open()`."""
        self._unacked = Unacked(transport, self._frame_wire_bytes)
        self._path.write = transport.write
        self._path.note = self._unacked.add

    def open(self, *, is_full: bool) -> None:
        """Give the connection the opening, then what waited, and then all that comes.

        Args:
            is_full: The transport has no room, and `resume()` is going to be called.
        """
        self._path.flow = Flow.FORMED
        self._write_all(self._format.opening())
        if is_full:
            self.pause()
        elif self._takes:
            self._proceed()

    def shut(self) -> None:
        """Keep frames: the connection is closing, or lost."""
        self._hold(Flow.SHUT)

    def detach(self) -> None:
        """Take back what the connection was given and its server has not acknowledged."""
        self.shut()
        assert self._unacked is not None
        lost = self._unacked.close()
        self._unacked = None
        frames = [item for item in lost if isinstance(item, bytes)]
        self._path.frames_sent -= len(frames)
        events = _numbered_events(lost, self._number)
        self._events = deque((*events, *self._events), maxlen=MOST_EVENTS)
        self.backlog.put_back(frames)

    def note_control(self, wire_bytes: int) -> None:
        """Note what the library has written: pings, pongs, the close."""
        if self._unacked is not None:
            self._unacked.add(((), wire_bytes))

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
        """Send what waits, then all that comes, as far as the connection takes it."""
        if not self._has_room():
            return
        self._path.flow = Flow.FORMED
        self._send_waiting()
        if self._takes and self._per_message == 1 and self._format.is_verbatim:
            self._path.flow = Flow.FREE

    def _check_room(self) -> None:
        if self._takes:  # else the transport is full, and says when it is no more
            self._has_room()

    def _has_room(self) -> bool:
        """Return whether the kernel holds no more than the budget; if it does, hold for a while."""
        self._path.next_check = self.frames_sent + FRAMES_BETWEEN_CHECKS
        assert self._unacked is not None
        self._unacked.update()
        if self._unacked.not_sent <= self.budget_bytes:
            return True
        self._hold(Flow.KERNEL)
        self._start_timer(CHECK_INTERVAL_S, self._proceed)
        return False

    # --- The way of what cannot go at once ---

    def send_event(self, event: Event) -> None:
        """Send an event after the frames that came before it; never waits."""
        self._events.append((self._number + len(self.backlog), event))
        if self._takes:
            self._send_waiting()

    def send_part(self) -> None:
        """Send what waits for the rest of its message, without that."""
        if self._takes and self.backlog:
            self._send_message()

    def finish(self) -> None:
        """Send what waits, and from now on each message as it is: no more frames are to come."""
        self.is_ending = True
        if self._takes:
            self._send_waiting()

    def send_closing(self, reason: str) -> None:
        """Send what the server is to get last."""
        if self.is_open:
            self._write_all(self._format.closing(reason))

    def _keep(self, frame: bytes) -> None:
        self.backlog.put(frame)
        is_part = self._timer is not None and len(self.backlog) < self._per_message
        if not is_part and self._takes:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits, in order, as far as the server takes it and it fills messages."""
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
        """Send the next message: all its frames that wait, but none behind an event."""
        self._stop_timer()
        number = self._number
        count = min(self._per_message, len(self.backlog))
        if self._events:
            count = min(count, self._events[0][0] - number)
        frames = [self.backlog.take() for _ in range(count)]
        path = self._path
        message = encode(self._format.audio(frames, number))
        path.write(message)
        path.note((frames, len(message)))
        path.frames_sent += count
        if path.frames_sent >= path.next_check:
            self._check_room()

    def _write_event(self) -> None:
        number, event = self._events.popleft()
        self._write_all(self._format.event(event, number), event)

    def _write_all(self, messages: Iterable[Message], event: Event | None = None) -> None:
        """Write messages that carry no frames; the last one stands for the event of all."""
        wire = [encode(message) for message in messages]
        for index, message in enumerate(wire, 1):
            self._path.write(message)
            carried = (event,) if event is not None and index == len(wire) else ()
            self._path.note((carried, len(message)))

    def _start_part(self) -> None:
        """Wait for the rest of a message, but not longer than the message lasts."""
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
    """Yield each event with the number of the frame that follows; the first frame's is given."""
    for item in items:
        if isinstance(item, bytes):
            number += 1
        else:
            yield number, item
