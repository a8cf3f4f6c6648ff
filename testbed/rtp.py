"""Handles the audio of test calls: RTP packets, SDP, and sending on time.

One Pacer wakes up for all calls of a user, so a hundred of them cost a few
hundred wake-ups a second instead of one for each packet.
"""

import asyncio
import audioop
import heapq
import itertools
import math
import random
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

PTIME_MS = 20
TICK_MS = 2  # divides PTIME_MS, so packets without jitter keep their exact distance

HEADER = struct.Struct("!BBHII")
MAX_PACKET_BYTES = 2048
SEND_BUFFER_BYTES = 256 * 1024


class SdpError(ValueError):
    """The peer's SDP offers no audio we can use."""


class Codec(NamedTuple):
    """The format of the audio in a 20-ms RTP packet."""

    name: str
    payload_type: int
    sample_rate: int
    frame_bytes: int

    @property
    def frame_samples(self) -> int:
        return self.sample_rate * PTIME_MS // 1000


ULAW = Codec("PCMU", 0, 8000, 160)
# Samples are big-endian on the wire, unlike slin elsewhere: see swap_bytes.
SLIN = Codec("L16", 97, 8000, 320)
SLIN16 = Codec("L16", 98, 16000, 640)  # Asterisk's slin16
G722 = Codec("G722", 9, 8000, 160)  # audio at 16000 Hz, though its RTP clock says 8000 (RFC 3551)


def swap_bytes(samples: bytes) -> bytes:
    """Turn slin into payload of SLIN and SLIN16, or payload into slin; whole int16 samples."""
    return audioop.byteswap(samples, 2)


class Packet(NamedTuple):
    """One RTP packet (RFC 3550, section 5.1); header extensions are dropped."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes

    @classmethod
    def parse(cls, datagram: bytes) -> "Packet":
        """Take a datagram apart.

        Raises:
            ValueError: It is not RTP version 2, or is cut short.
        """
        if len(datagram) < HEADER.size:
            raise ValueError(f"expected at least {HEADER.size} bytes, got {len(datagram)}")
        flags, kind, sequence, timestamp, ssrc = HEADER.unpack_from(datagram)
        if flags >> 6 != 2:
            raise ValueError(f"expected RTP version 2, got {flags >> 6}")
        payload = _payload(datagram, flags)
        return cls(kind & 0x7F, kind >= 0x80, sequence, timestamp, ssrc, payload)

    def encode(self) -> bytes:
        kind = self.payload_type | (0x80 if self.marker else 0)
        return HEADER.pack(0x80, kind, self.sequence, self.timestamp, self.ssrc) + self.payload


def _payload(datagram: bytes, flags: int) -> bytes:
    start = HEADER.size + 4 * (flags & 0x0F)
    if flags & 0x10:
        if len(datagram) < start + 4:
            raise ValueError("header extension is cut short")
        start += 4 + 4 * int.from_bytes(datagram[start + 2 : start + 4], "big")
    end = len(datagram) - (datagram[-1] if flags & 0x20 else 0)
    if end < start:
        raise ValueError(f"header ends at byte {start}, payload at {end}")
    return datagram[start:end]


@dataclass(frozen=True)
class Sdp:
    """The part of a session description that a call needs: one audio line."""

    host: str
    port: int
    codecs: tuple[tuple[int, str, int], ...]  # payload type, name, sample rate
    direction: str = "sendrecv"  # sendonly: the other party is on hold
    version: int = 1  # another for each that changes something

    @classmethod
    def parse(cls, body: bytes) -> "Sdp":
        text = body.decode("utf-8", "replace")
        audio = re.search(r"^m=audio (\d+) RTP/AVP ([\d ]+)", text, re.M)
        host = re.search(r"^c=IN IP4 ([\d.]+)", text, re.M)
        if audio is None or host is None:
            raise SdpError("expected an audio line and an IPv4 address")
        maps = re.findall(r"^a=rtpmap:(\d+) ([\w-]+)/(\d+)", text, re.M)
        named = {int(number): (name.upper(), int(rate)) for number, name, rate in maps}
        named.setdefault(0, ("PCMU", 8000))  # static, may come without a=rtpmap
        named.setdefault(9, ("G722", 8000))
        offered = [int(number) for number in audio[2].split()]
        codecs = tuple((number, *named[number]) for number in offered if number in named)
        return cls(host[1], int(audio[1]), codecs)

    def encode(self) -> bytes:
        numbers = " ".join(str(number) for number, _, _ in self.codecs)
        lines = [
            "v=0",
            f"o=- 1 {self.version} IN IP4 {self.host}",
            "s=-",
            f"c=IN IP4 {self.host}",
            "t=0 0",
            f"m=audio {self.port} RTP/AVP {numbers}",
            *(f"a=rtpmap:{number} {name}/{rate}" for number, name, rate in self.codecs),
            f"a=ptime:{PTIME_MS}",
            f"a={self.direction}",
        ]
        return "\r\n".join([*lines, ""]).encode()

    def choose(self, known: Sequence[Codec]) -> Codec:
        """Pick the peer's first codec that is known, with the peer's payload type."""
        for number, name, rate in self.codecs:
            for codec in known:
                if (codec.name, codec.sample_rate) == (name, rate):
                    return codec._replace(payload_type=number)
        raise SdpError(f"expected one of {[codec.name for codec in known]}, got {self.codecs}")


class Slot(NamedTuple):
    """When one packet is sent, counted from the start of play."""

    frame: int  # counts silent ones too, so it is also the timestamp in frames
    send_ms: float
    marker: bool


def schedule(
    *, jitter_ms: float = 0, seed: int = 0, talk_ms: int = 0, silent_ms: int = 0
) -> Iterator[Slot]:
    """Yield the slots of an endless play.

    Args:
        jitter_ms: Each packet is late by 0 to this much at random, and at least
            as late as the one before it: late packets pile up, as behind a busy
            router, and never overtake.
        seed: Of the random delays.
        talk_ms, silent_ms: With silent_ms, frames within the silent parts have
            no slot, as from a phone that does not send silence (DTX).
    """
    if silent_ms and talk_ms < PTIME_MS:
        raise ValueError(f"talk_ms: expected at least {PTIME_MS}, got {talk_ms}")
    rng = random.Random(seed)
    period_ms = talk_ms + silent_ms
    send_ms = 0.0
    expected = -1  # so that the first packet is marked
    for frame in itertools.count():
        ideal_ms = frame * PTIME_MS
        if silent_ms and ideal_ms % period_ms >= talk_ms:
            continue
        delay_ms = rng.uniform(0, jitter_ms) if jitter_ms else 0
        send_ms = max(send_ms, ideal_ms + delay_ms)
        yield Slot(frame, send_ms, marker=frame != expected)
        expected = frame + 1


def sent_indices(count: int, talk_ms: int, silent_ms: int) -> list[int]:
    """Return the numbers of the packets, of `count`, that are sent with these times of DTX."""
    slots = schedule(talk_ms=talk_ms, silent_ms=silent_ms)
    return [slot.frame for slot in itertools.takewhile(lambda s: s.frame < count, slots)]


class Received(NamedTuple):
    """One payload as it arrived."""

    at_s: float  # time.monotonic()
    payload: bytes


class RtpPort:
    """The UDP socket of one call: sends what a Playback gives it, counts what arrives.

    The socket is read by the loop directly: asyncio's datagram transport takes a
    buffer of 256 kB for each read, which makes it 15 us a packet instead of 4.
    """

    def __init__(self, host: str, codec: Codec, *, record: bool = False) -> None:
        self.codec = codec
        self.remote: tuple[str, int] | None = None
        self.recording = record
        self.received: list[Received] = []
        self.packets_received = 0
        self.packets_sent = 0
        self.send_failures = 0
        self._sequence = random.getrandbits(16)
        self._ssrc = random.getrandbits(32)
        self._timestamp_base = random.getrandbits(32)
        self._frames = 0  # of 20 ms since opening, up to the last one sent
        self._opened_s = monotonic()
        self._wanted: tuple[int, asyncio.Future[None]] | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._on_readable)

    def close(self) -> None:
        """Free the socket; does nothing when it is free already."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._wanted is not None and not self._wanted[1].done():
            self._wanted[1].set_exception(ConnectionError("call ended"))

    def sdp(self, host: str) -> Sdp:
        """Describe this end, with the codec in use."""
        codec = self.codec
        return Sdp(host, self.port, ((codec.payload_type, codec.name, codec.sample_rate),))

    def first_frame(self) -> int:
        """Number the first frame of a play that starts now, on the call's own clock."""
        elapsed = int((monotonic() - self._opened_s) * 1000 / PTIME_MS)
        return max(elapsed, self._frames + 1)

    def send(self, payload: bytes, frame: int, marker: bool) -> None:
        """Send one payload whose timestamp is that of the frame."""
        self._frames = frame
        self._sequence = (self._sequence + 1) & 0xFFFF
        timestamp = (self._timestamp_base + frame * self.codec.frame_samples) & 0xFFFFFFFF
        kind = self.codec.payload_type | (0x80 if marker else 0)
        header = HEADER.pack(0x80, kind, self._sequence, timestamp, self._ssrc)
        if self.remote is None or self._socket.fileno() < 0:
            return
        try:
            self._socket.sendto(header + payload, self.remote)
        except OSError:
            self.send_failures += 1
        else:
            self.packets_sent += 1

    async def wait_received(self, count: int, timeout_s: float = 15) -> None:
        """Wait until this many packets have arrived since the call began; one caller at a time.

        Raises:
            TimeoutError: Fewer arrived in time.
            ConnectionError: The call ended before.
        """
        if self.packets_received >= count:
            return
        if self._socket.fileno() < 0:
            raise ConnectionError("call ended")
        arrived: asyncio.Future[None] = self._loop.create_future()
        self._wanted = count, arrived
        async with asyncio.timeout(timeout_s):
            await arrived

    def _on_readable(self) -> None:
        try:
            datagram = self._socket.recv(MAX_PACKET_BYTES)
        except OSError:
            return
        # RTCP for a neighbouring port number may end up here; its type is another one.
        if len(datagram) < HEADER.size or datagram[1] & 0x7F != self.codec.payload_type:
            return
        self.packets_received += 1
        if self.recording:
            self._record(datagram)
        if self._wanted is not None and self.packets_received >= self._wanted[0]:
            self._tell_wanted()

    def _record(self, datagram: bytes) -> None:
        at_s = monotonic()
        try:
            self.received.append(Received(at_s, _payload(datagram, datagram[0])))
        except ValueError:
            return  # malformed: counted, not kept

    def _tell_wanted(self) -> None:
        assert self._wanted is not None
        arrived = self._wanted[1]
        self._wanted = None
        if not arrived.done():
            arrived.set_result(None)


class Playback:
    """One play() under way: which payload is next, and when.

    done holds the number of packets sent when the last one has gone or the call
    has ended; cancelling it stops the play.
    """

    def __init__(
        self, port: RtpPort, payloads: Sequence[bytes], slots: Iterator[Slot], *, loop: bool
    ) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._port = port
        self._payloads = payloads
        self._slots = slots
        self._loop = loop
        self._first_frame = port.first_frame()
        self._start_tick = 0
        self._sent = 0
        self._slot = next(slots)

    def start(self, tick: int) -> int:
        """Start at a tick of the pacer; return the tick of the first packet."""
        self._start_tick = tick
        return self._due_tick()

    def send_next(self) -> int | None:
        """Send the packet that is due; return the tick of the next one, if there is one."""
        if self.done.done():
            return None
        frame = self._slot.frame
        payload = self._payloads[frame % len(self._payloads)]
        self._port.send(payload, self._first_frame + frame, self._slot.marker)
        self._sent += 1
        self._slot = next(self._slots)
        if self._slot.frame >= len(self._payloads) and not self._loop:
            self.finish()
            return None
        return self._due_tick()

    def finish(self) -> None:
        """End the play where it is."""
        if not self.done.done():
            self.done.set_result(self._sent)

    def _due_tick(self) -> int:
        # Rounded up: late by less than a tick, never early.
        return self._start_tick + math.ceil(self._slot.send_ms / TICK_MS)


class Pacer:
    """Sends the packets of many plays, each at its tick; a tick is 2 ms.

    Ticks count from the zero of time.monotonic(): a late wake-up sends what is
    overdue and delays nothing after it.
    """

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Playback]] = []
        self._order = itertools.count()  # breaks ties, first come first
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = 0

    def add(self, playback: Playback, delay_ms: float = 0) -> None:
        """Begin a play now, or a little later."""
        now_tick = int((monotonic() * 1000 + delay_ms) / TICK_MS)
        tick = playback.start(now_tick + 1)
        heapq.heappush(self._due, (tick, next(self._order), playback))
        self._arm()

    def close(self) -> None:
        """Stop sending; plays under way are finished where they are."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, _, playback in self._due:
            playback.finish()
        self._due.clear()

    def _arm(self) -> None:
        tick = self._due[0][0]
        if self._timer is not None:
            if self._timer_tick <= tick:
                return
            self._timer.cancel()
        # uvloop rounds to whole milliseconds: half of one more keeps it from waking up too early.
        delay_s = max(0.0, (tick * TICK_MS + 0.5) / 1000 - monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)
        self._timer_tick = tick

    def _wake(self) -> None:
        self._timer = None
        now_tick = int(monotonic() * 1000 / TICK_MS)
        due = self._due
        while due and due[0][0] <= now_tick:
            _, order, playback = due[0]
            tick = playback.send_next()
            if tick is None:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (tick, order, playback))
        if due:
            self._arm()
