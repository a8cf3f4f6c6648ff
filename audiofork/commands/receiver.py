"""Runs a WebSocket server that writes each fork to a WAV file and shows its level.

It is for first tests: a new user can hear what a fork sends. Files are written from the event loop,
about once a second, so a disk that hangs delays all forks.
"""

from __future__ import annotations

import asyncio
import audioop
import math
import os
import re
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, CloseCode

from audiofork.audiosocket import frame_bytes
from audiofork.commands.panel import Panel
from audiofork.commands.receiver_limits import DEFAULTS, Limits, Output, Second, Space, size
from audiofork.commands.waiting import clock_time
from audiofork.commands.wav import SAMPLE_BYTES
from audiofork.config import SAMPLE_RATES, Address
from audiofork.errors import ReceiverError
from audiofork.text import printable, reason_of, why
from audiofork.tls_contexts import server_context

Say = Callable[[str], None]

DEFAULT_RATE = 8000
FULL_SCALE = 32768  # the largest magnitude of an int16

SHOW_INTERVAL_S = 1.0
MAX_LINES = 20  # more forks than this are summed up in one line, which can still be read
CLOSE_TIMEOUT_S = 1.0
# A connection that sends no handshake delays the end of the receiver by this.
HANDSHAKE_TIMEOUT_S = 2.0
KEPT_TAKES = 1000
MAX_MESSAGE_BYTES = 1_048_576  # one second of stereo at 192,000 Hz has 768,000

# Audio is written once per interval, or when so much waits: a client may send faster than live.
MAX_PENDING_BYTES = 65_536  # at 8000 Hz: two seconds of stereo

LABEL_LENGTH = 80  # a file name may have 255 bytes; time, number and .wav are added
TEXT_LENGTH = 200
BAR_LENGTH = 20
BAR_FLOOR_DBFS = -60.0  # the level of an empty bar: in a phone call, quieter is of no interest


@dataclass(frozen=True)
class Take:
    """The recording of a fork that has ended.

    Attributes:
        label: The name of the fork in the lines shown.
        path: The file; None: no audio came, or the file could not be created.
        duration_s: Length of the audio in seconds.
        peaks_dbfs: Loudest sample of each channel in dBFS, -inf for digital silence; empty: no
            audio came. The first of two channels is what the party said.
        messages: Number of binary messages.
        close_code: The close code of the WebSocket; 1006: the connection broke.
        close_reason: The close reason of the WebSocket, with control characters replaced.
    """

    label: str
    path: Path | None
    duration_s: float
    peaks_dbfs: tuple[float, ...]
    messages: int
    close_code: int
    close_reason: str


# --- Names, levels, files ------------------------------------------------------------------------


def label_of(target: str) -> str:
    """Return a name for a fork, of A-Z a-z 0-9 . _ - so that it can be part of a file name.

    Args:
        target: Path and query of the request; `channel` in the query is preferred to the path.
    """
    path, query = _split(target)
    wanted = query.get("channel", [""])[0] or unquote(path)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip(".-")
    return name[:LABEL_LENGTH] or "fork"


def channels_of(target: str) -> int:
    """Return 1 or 2 if the query of a request has `channels=1` or `channels=2`, else 0."""
    value = _split(target)[1].get("channels", [""])[0]
    return int(value) if value in ("1", "2") else 0


def rate_of(target: str) -> int:
    """Return the sample rate in Hz from `rate` in the query of a request; 8000: there is no `rate`.

    Raises:
        ValueError: The rate is not in SAMPLE_RATES.
    """
    value = _split(target)[1].get("rate", [str(DEFAULT_RATE)])[0]
    if value not in map(str, SAMPLE_RATES):
        raise ValueError(f"rate: expected one of {', '.join(map(str, SAMPLE_RATES))}, got {value}")
    return int(value)


def _split(target: str) -> tuple[str, dict[str, list[str]]]:
    # A host is put before it: the beginning of a path with two slashes would be taken for one.
    parts = urlsplit("//host/" + target.lstrip("/"))
    return parts.path, parse_qs(parts.query)


def dbfs(peak: int) -> float:
    """Return a peak of 0 to 32768 in decibels below full scale; -inf for 0."""
    return 20 * math.log10(peak / FULL_SCALE) if peak else -math.inf


def peaks_of(audio: bytes | bytearray, channels: int) -> list[int]:
    """Return the largest magnitude in each channel of slin, 0 to 32768."""
    if channels == 1:
        return [audioop.max(audio, SAMPLE_BYTES)]
    left = audioop.tomono(audio, SAMPLE_BYTES, 1, 0)
    right = audioop.tomono(audio, SAMPLE_BYTES, 0, 1)
    return [audioop.max(left, SAMPLE_BYTES), audioop.max(right, SAMPLE_BYTES)]


def _level(level_dbfs: float, *, bar: bool = False) -> str:
    text = "silence" if level_dbfs == -math.inf else f"{level_dbfs:.1f} dBFS"
    if not bar:
        return text
    share = 1 - max(level_dbfs, BAR_FLOOR_DBFS) / BAR_FLOOR_DBFS
    return f"{text:>10} " + ("#" * round(share * BAR_LENGTH)).ljust(BAR_LENGTH, ".")


def _levels(peaks: list[int], *, bars: bool = False) -> str:
    """Return the peaks of one channel, or of in and out, as text."""
    parts = [_level(dbfs(peak), bar=bars) for peak in peaks]
    if len(parts) == 1:
        return parts[0]
    return "  ".join(f"{name} {part}" for name, part in zip(("in", "out"), parts, strict=True))


def shown(text: str) -> str:
    """Return a text from the network as one short line, which cannot control a terminal."""
    cut = text[:TEXT_LENGTH] + ("..." if len(text) > TEXT_LENGTH else "")
    return printable(cut, " ")


class _Peaks:
    """Keeps the largest magnitude of each channel, 0 to 32768; empty lists before any audio.

    Attributes:
        ever: Those since the fork began.
        recent: Those since the last line was shown.
    """

    def __init__(self) -> None:
        self.ever: list[int] = []
        self.recent: list[int] = []

    def add(self, peaks: list[int]) -> None:
        self.ever = [max(pair) for pair in zip(peaks, self.ever or peaks, strict=True)]
        self.recent = [max(pair) for pair in zip(peaks, self.recent or peaks, strict=True)]


class _Recording:
    """Records a fork. Owned by the handler of its connection, which calls `end`."""

    def __init__(self, label: str, target: str, folder: Path, space: Space, say: Say) -> None:
        self.label = label
        self._say = say
        # The name has the time of the connection. The file is created at the first audio, which
        # shows the number of channels.
        stem = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{label_of(target)}"
        self._output = Output(stem, space)
        self._channels = channels_of(target)
        self._sample_rate = self._rate_of(target)
        self._sample_bytes = SAMPLE_BYTES * (self._channels or 1)
        self._begun = False
        self._warned = False
        self._pending = bytearray()
        self._audio_bytes = 0  # those written, without what is pending
        self.peaks = _Peaks()
        self.messages = 0

    def _rate_of(self, target: str) -> int:
        try:
            return rate_of(target)
        except ValueError as exc:
            self._say(f"{self.label}: {shown(str(exc))}, taken for {DEFAULT_RATE}")
            return DEFAULT_RATE

    @property
    def duration_s(self) -> float:
        return self._audio_bytes / (self._sample_rate * self._sample_bytes)

    @property
    def size_bytes(self) -> int:
        """The bytes of its audio."""
        return self._audio_bytes + len(self._pending)

    def add(self, message: bytes) -> None:
        """Add a binary message to what is pending; kept short, since it runs for each message."""
        self.messages += 1
        if not self._begun and message:
            self._begin(len(message))
        excess = len(message) % self._sample_bytes
        if excess:
            message = self._cut(message, excess)
        self._pending += message
        if len(self._pending) > MAX_PENDING_BYTES * self._sample_rate // DEFAULT_RATE:
            self.flush()

    def _begin(self, first_bytes: int) -> None:
        """Find the number of channels, by the query or the size of a frame, and create the file."""
        self._begun = True
        mono_bytes = frame_bytes(self._sample_rate)
        pair_bytes = 2 * mono_bytes
        if first_bytes not in (mono_bytes, pair_bytes) and not self._channels:
            self._say(
                f"{self.label}: first message of {first_bytes} bytes, taken for mono; "
                "?channels=2 in the URL says stereo"
            )
        self._channels = self._channels or (2 if first_bytes == pair_bytes else 1)
        self._sample_bytes = SAMPLE_BYTES * self._channels
        try:
            path = self._output.open(self._channels, self._sample_rate)
        except OSError as exc:
            folder = self._output.folder
            self._say(f"{self.label}: not recorded, no file in {folder}: {reason_of(exc)}")
            return
        kind = "mono" if self._channels == 1 else "stereo, in left, out right"
        if self._sample_rate != DEFAULT_RATE:
            kind += f", {self._sample_rate} Hz"
        self._say(f"{self.label}: recording {path}, {kind}")

    def _cut(self, message: bytes, excess: int) -> bytes:
        """Drop the bytes after the last whole sample: the next message begins with a new one."""
        if not self._warned:
            self._warned = True
            self._say(
                f"{self.label}: expected multiples of {self._sample_bytes} bytes, got a message "
                f"of {len(message)}; such messages are cut"
            )
        return message[:-excess]

    def flush(self) -> None:
        """Measure and write the audio that is pending."""
        if not self._pending:
            return
        audio, self._pending = self._pending, bytearray()
        self._audio_bytes += len(audio)
        self.peaks.add(peaks_of(audio, self._channels))
        if why := self._output.write(audio):
            self._say(f"{self.label}: {self._output.path} ends here, {why}")

    @property
    def full(self) -> str:
        """Why there is no room for more audio; empty: there is room."""
        return self._output.full

    def line(self, width: int) -> str:
        """Return the line that shows the fork now, with a label padded to `width` characters."""
        recent = self.peaks.recent
        levels = _levels(recent, bars=True) if recent else " no audio"
        return f"  {self.label:<{width}} {self.duration_s:7.1f} s  {levels}"

    def end(self, close_code: int, close_reason: str) -> Take:
        """Write the rest, close the file, and show a line with the totals."""
        self.flush()
        self._output.close()
        peaks_dbfs = tuple(map(dbfs, self.peaks.ever))
        reason = shown(close_reason)
        audio = (
            f"{self.duration_s:.1f} s, peak {_levels(self.peaks.ever)}"
            if peaks_dbfs
            else "no audio"
        )
        self._say(
            f"{self.label}: ended, {self._output.path or 'no file'}, {audio}, "
            f"{self.messages} messages, closed with {close_code} {reason}".rstrip()
        )
        return Take(
            *(self.label, self._output.path, self.duration_s, peaks_dbfs, self.messages),
            *(close_code, reason),
        )


# --- The server ----------------------------------------------------------------------------------


class Receiver:
    """Receives any number of forks at once.

    Args:
        directory: The folder for the files; created if it does not exist.
        say: Called with each line to show.
        levels: Whether to show levels each second, besides the start and end of each fork.
        panel: Where levels are shown in place, with the bytes and the quota; None: a line for each.
        limits: How much may be written. A fork beyond that is closed with 1008, a code after which
            clients do not connect again.

    Attributes:
        takes: The last KEPT_TAKES forks that ended, oldest first.
    """

    def __init__(
        self,
        directory: Path,
        say: Say,
        *,
        levels: bool = True,
        limits: Limits = DEFAULTS,
        panel: Panel | None = None,
    ) -> None:
        self._directory = directory
        self._say = say
        self._levels = levels
        self._panel = panel
        self._began = time.monotonic()
        self._limits = limits
        self._space: Space | None = None
        self._second = Second()
        self._recordings: dict[str, _Recording] = {}  # by label
        self._server: Server | None = None
        self._timer: asyncio.Task[None] | None = None
        self._ended = 0
        self.takes: deque[Take] = deque(maxlen=KEPT_TAKES)

    async def start(self, address: Address, tls: ssl.SSLContext | None = None) -> Address:
        """Listen; return the address, with the port that the system chose if `address` has port 0.

        Raises:
            ReceiverError: The directory cannot be written to, or the address cannot be used.
        """
        self._space = _prepare(self._directory, self._limits)
        try:
            self._server = await serve(
                self._handle,
                address.host,
                address.port,
                ssl=tls,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=HANDSHAKE_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
            )
        except OSError as exc:
            raise ReceiverError(f"cannot listen on {address}: {reason_of(exc)}") from exc
        self._timer = asyncio.create_task(self._tick())
        return Address(address.host, next(iter(self._server.sockets)).getsockname()[1])

    async def close(self) -> None:
        """Close every connection (1001) and file; may be called more than once."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        assert self._space is not None
        if full := self._why_full(self._space):
            self._second.refuse(full)
            await connection.close(CloseCode.POLICY_VIOLATION, full)
            return
        target = connection.request.path
        label = self._free_label(label_of(target))
        recording = _Recording(label, target, self._directory, self._space, self._say)
        self._recordings[label] = recording
        close = Close(CloseCode.ABNORMAL_CLOSURE, "")
        try:
            await self._receive(connection, recording)
        except ConnectionClosed as exc:
            # If the client sent no close frame, ours: the message was too big, or no pong came.
            close = exc.rcvd or exc.sent or close
        finally:
            del self._recordings[label]
            self.takes.append(recording.end(close.code, close.reason))
            self._ended += 1

    async def _receive(self, connection: ServerConnection, recording: _Recording) -> None:
        recv, add = connection.recv, recording.add
        while True:
            message = await recv()
            if isinstance(message, bytes):
                add(message)
            elif self._second.may_show_text():
                self._say(f"{recording.label}: text: {shown(message)}")
            if recording.full:
                await connection.close(CloseCode.POLICY_VIOLATION, recording.full)

    def _why_full(self, space: Space) -> str:
        try:
            return space.why_full(MAX_PENDING_BYTES)
        except OSError:  # reported when the file cannot be created
            return ""

    def _free_label(self, wanted: str) -> str:
        """Return a label, with a number added if a running fork has the same one."""
        label, number = wanted, 1
        while label in self._recordings:
            number += 1
            label = f"{wanted}-{number}"
        return label

    # One timer serves all forks: hundreds of timers would wake the loop hundreds of times a second.
    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            await asyncio.sleep(SHOW_INTERVAL_S - (loop.time() - begin) % SHOW_INTERVAL_S)
            self.show()

    def show(self) -> None:
        """Write the audio since the last call, and show its levels; called once a second."""
        recordings = list(self._recordings.values())
        for recording in recordings:
            recording.flush()
        if self._levels and self._panel is not None:
            self._panel.show([*_lines(recordings, sizes=True), self._summary(len(recordings))])
        elif self._levels and recordings:
            for line in _lines(recordings):
                self._say(line)
        for recording in recordings:
            recording.peaks.recent = []
        for line in self._second.lines():
            self._say(line)
        self._second = Second()

    def _summary(self, count: int) -> str:
        """Return how long it runs, the forks, and what they have taken of the quota."""
        elapsed = clock_time(time.monotonic() - self._began)
        forks = f"{count} {'fork' if count == 1 else 'forks'} now, {self._ended} ended"
        return f"{elapsed}  {forks}, {self._space}; Ctrl-C ends"


def _lines(recordings: list[_Recording], *, sizes: bool = False) -> list[str]:
    if len(recordings) <= MAX_LINES:
        width = max((len(recording.label) for recording in recordings), default=0)
        return [
            recording.line(width) + (f"  {size(recording.size_bytes)}" if sizes else "")
            for recording in recordings
        ]
    heard = [recording for recording in recordings if recording.peaks.recent]
    summary = f"  {len(recordings)} forks, {len(heard)} with audio"
    if heard:
        loudest = max(heard, key=lambda recording: max(recording.peaks.recent))
        summary += f", loudest: {loudest.label} {_level(dbfs(max(loudest.peaks.recent)))}"
    return [summary]


def _prepare(directory: Path, limits: Limits) -> Space:
    """Create the directory, check that a file can be created in it, and return its `Space`."""
    probe = directory / f".audiofork-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=True)
        probe.unlink()
        return Space(directory, limits)
    except OSError as exc:
        raise ReceiverError(f"cannot write to {directory}: {reason_of(exc)}") from exc


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context of the receiver.

    Raises:
        ReceiverError: The files cannot be read, or the key does not belong to the certificate.
    """
    try:
        return server_context(certificate, key, may_ask=True)
    except OSError as exc:
        raise ReceiverError(f"cannot use the certificate: {why(exc)}") from exc
