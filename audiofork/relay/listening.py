"""Reports what a fork's server gets, as long as somebody listens.

All who listen to a fork share this. Frames are given here after the sink has got them, and reports
wait for nobody: so listening takes no frame from the fork and makes none late.
"""

from __future__ import annotations

import audioop

from audiofork.audiosocket import SAMPLE_BYTES, frame_bytes
from audiofork.link.messages import Direction, HeardAudio, LegPart, SendReport
from audiofork.relay.pairing import Pairing
from audiofork.relay.pipeline import TakeFrame
from audiofork.relay.session import Session
from audiofork.relay.shape import join_of

FRAMES_IN_MESSAGE = 5  # 100 ms

_interleave = join_of(Direction.STEREO)


class Listening:
    """Gathers the frames of one fork into reports, from now on until `stop` or `finish`.

    The server of a connected fork is its other party: what it says is heard as out.

    Args:
        session: The fork.
        report: Called with each report.
    """

    def __init__(self, session: Session, report: SendReport) -> None:
        self._session = session
        self._report = report
        self._rate = session.spec.sample_rate
        self._frames: list[bytes] = []
        self._count = 0  # of those that were reported
        self._voice: _Voice | None = None
        self._sides = session.heard_sides
        if session.spec.is_connected:
            self._voice = voice = _Voice(self._put, self._rate)
            self._sides = (LegPart.IN, LegPart.OUT)
            session.overhear(voice.put_in, voice)
        else:
            session.overhear(self._put)

    def _put(self, frame: bytes) -> None:
        self._frames.append(frame)
        if len(self._frames) == FRAMES_IN_MESSAGE:
            self._send()

    def _send(self) -> None:
        number, self._count = self._count, self._count + len(self._frames)
        samples = b"".join(self._frames)
        self._frames.clear()
        fork_id = self._session.spec.fork_id
        self._report(HeardAudio(fork_id, number, self._rate, self._sides, samples))

    def stop(self) -> None:
        """Report nothing any more: nobody listens."""
        self._session.overhear(None)

    def finish(self) -> None:
        """Report what is left: the fork has ended."""
        self.stop()
        if self._voice is not None:
            self._voice.flush()
        if self._frames:
            self._send()


class _Voice:
    """Pairs what the party of a connected fork says with what the server says; a `Hearer`.

    Args:
        emit: Called with each frame of in and out interleaved.
        sample_rate: In Hz, of the fork.
    """

    def __init__(self, emit: TakeFrame, sample_rate: int) -> None:
        self._frame_bytes = frame_bytes(sample_rate)
        self._pairing = Pairing(
            lambda side_in, side_out: emit(_interleave(side_in, side_out)), bytes(self._frame_bytes)
        )
        self._pairing.attach(LegPart.IN)
        self._pairing.attach(LegPart.OUT)

    def put_in(self, frame: bytes) -> None:
        """Take what the party says."""
        self._pairing.put(LegPart.IN, frame)

    def speak(self, frame: bytes) -> bool:
        """Take what the server says, at the rate that Asterisk plays it at; nobody hears it here.

        That is 8000 Hz for all wideband legs in versions that know no other kind of message.
        """
        if len(frame) != self._frame_bytes:
            samples, wanted = len(frame) // SAMPLE_BYTES, self._frame_bytes // SAMPLE_BYTES
            frame, _ = audioop.ratecv(frame, SAMPLE_BYTES, 1, samples, wanted, None)
            frame = frame[: self._frame_bytes].ljust(self._frame_bytes, b"\0")
        self._pairing.put(LegPart.OUT, frame)
        return False

    def flush(self) -> None:
        """Emit what waits for the other side."""
        self._pairing.flush()
