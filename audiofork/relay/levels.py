"""How loud each side of a fork is, as long as somebody looks.

Nobody is told unless he asks. Each take returns what was measured since the one before, and marks
every leg: its next frame is measured, and the frames after that go their usual way again, by the
same callables as if nobody had looked. So a frame has no flag to test, and one in ten is measured.
"""

from __future__ import annotations

import asyncio
import audioop
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from audiofork.audiosocket import SAMPLE_BYTES
from audiofork.link.messages import ForkSpec, LegPart, LevelsTaken
from audiofork.relay.pipeline import LegHandle, TakeBatch, TakeFrame, leg_frame_bytes
from audiofork.relay.shape import left, right

# Nobody looks any more when levels have not been taken for so long.
FORGET_S = 1.0
# How often levels are taken; it decides only how long a level stays while no frame comes.
TAKE_MS = 200
LOUDEST = 32_767  # the other end of int16 is as loud
_ABSENT = (-1, -1)
_SILENT = (0, 0)

Take = Callable[[], Sequence[int]]
"""Returns the levels of one side, peak and RMS, or of both, in and out."""


class HasInput(Protocol):
    """What passes the frames of a leg on that do not take the fast path."""

    on_audio: TakeFrame


class HasVoice(Protocol):
    """What plays the server's audio over legs."""

    @property
    def next_frame(self) -> bytes | None: ...


class Measured(Protocol):
    """A fork whose levels can be taken."""

    def new_meter(self) -> ForkMeter: ...


class Meters:
    """The meters of all forks of a worker; there are none while nobody looks."""

    def __init__(self) -> None:
        self._meters: dict[str, ForkMeter] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, forks: Mapping[str, Measured]) -> LevelsTaken:
        """Return the levels of all forks, and have the next frame of each leg measured."""
        before = self._meters
        self._meters = meters = {
            fork_id: before.get(fork_id) or fork.new_meter() for fork_id, fork in forks.items()
        }
        values: list[int] = []
        for meter in meters.values():
            for take in meter.takes:
                values.extend(take())
            values.append(meter.is_mixed)
        self._forget_later()
        return LevelsTaken.of(meters, values)

    def _forget_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(FORGET_S, self.close)

    def close(self) -> None:
        """Measure nothing any more; the next take begins anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        meters, self._meters = self._meters, {}
        for meter in meters.values():
            meter.stop()


class ForkMeter:
    """The levels of one fork: of what its legs bring, before volume, mute and gate.

    The out of a connected fork is what its server says.

    Args:
        spec: The fork.
        legs: Those that are connected, at any moment.
        inputs: What passes their frames on, where those are not usual.
        voice: What plays the server's audio.
        frame_ms: Audio in a message: if it is longer than a take, frames may come in heaps.

    Attributes:
        takes: Give the levels of in, and then those of out.
        is_mixed: Whether in is the mix of both.
    """

    __slots__ = ("_legs", "is_mixed", "takes")

    def __init__(
        self,
        spec: ForkSpec,
        legs: Mapping[LegPart, LegHandle],
        inputs: Mapping[LegPart, HasInput],
        voice: HasVoice,
        frame_ms: int,
    ) -> None:
        patience = 1 + frame_ms // TAKE_MS
        self._legs = {
            part: _LegMeter(
                part, leg_frame_bytes(part, spec.sample_rate), legs, one_input, patience
            )
            for part, one_input in inputs.items()
        }
        self.is_mixed = LegPart.MIX in self._legs
        self.takes = self._choose_takes(voice if spec.is_connected else None)

    def _choose_takes(self, voice: HasVoice | None) -> tuple[Take, ...]:
        takes = {part: meter.take for part, meter in self._legs.items()}
        if LegPart.PAIRS in takes:
            return (takes[LegPart.PAIRS],)
        take_in = takes.get(LegPart.MIX) or takes.get(LegPart.IN) or _take_absent
        if voice is not None:
            return take_in, _VoiceMeter(voice).take
        return take_in, takes.get(LegPart.OUT, _take_absent)

    def stop(self) -> None:
        """Measure no frame any more."""
        for meter in self._legs.values():
            meter.stop()


def _take_absent() -> Sequence[int]:
    return _ABSENT


def _measure(frame: bytes) -> tuple[int, int]:
    """Return the peak and the RMS of samples."""
    peak = audioop.max(frame, SAMPLE_BYTES)
    return min(peak, LOUDEST), min(audioop.rms(frame, SAMPLE_BYTES), LOUDEST)


class _LegMeter:
    """Measures the next frame of a leg, whichever way it takes.

    It puts itself in the place of the leg's `on_usual` and of the input's `on_audio`, and nothing
    in that of `on_batch`, so that the next batch comes frame by frame. With the
    first frame that comes by either of them, both get back what they had.
    """

    __slots__ = (
        *("_frame_bytes", "_input", "_is_fresh", "_leg", "_legs", "_levels", "_missed"),
        *("_on_audio", "_on_batch", "_on_usual", "_part", "_patience"),
    )

    def __init__(
        self,
        part: LegPart,
        frame_bytes: int,
        legs: Mapping[LegPart, LegHandle],
        one_input: HasInput,
        patience: int,
    ) -> None:
        self._part = part
        self._frame_bytes = frame_bytes
        self._legs = legs
        self._input = one_input
        self._on_audio = one_input.on_audio
        self._patience = patience  # takes
        self._leg: LegHandle | None = None
        self._on_usual = self._on_audio
        self._on_batch: TakeBatch | None = None
        self._is_fresh = False
        self._missed = 0  # takes without a new frame
        self._levels: tuple[int, ...] = self._silence

    @property
    def _silence(self) -> tuple[int, ...]:
        return 2 * _SILENT if self._part is LegPart.PAIRS else _SILENT

    def take(self) -> Sequence[int]:
        """Return the levels of the latest frame that was measured; measure the next one."""
        if self._is_fresh:
            self._is_fresh = False
            self._missed = 0
        else:
            self._missed += 1
            if self._missed > self._patience:
                self._levels = self._silence
        leg = self._legs.get(self._part)
        if leg is not None and leg.on_usual is not self:
            self._leg, self._on_usual, self._on_batch = leg, leg.on_usual, leg.on_batch
            leg.on_usual, leg.on_batch = self, None
            self._input.on_audio = self._on_unusual
        return self._levels

    def __call__(self, frame: bytes) -> None:
        """Pass on a frame that takes the fast path, and measure it."""
        on_usual = self._on_usual
        self.stop()
        on_usual(frame)
        self._note(frame)

    def _on_unusual(self, frame: bytes) -> None:
        self.stop()
        self._on_audio(frame)
        self._note(frame)

    def _note(self, frame: bytes) -> None:
        if len(frame) != self._frame_bytes:
            return
        if self._part is LegPart.PAIRS:
            self._levels = (*_measure(left(frame)), *_measure(right(frame)))
        else:
            self._levels = _measure(frame)
        self._is_fresh = True

    def stop(self) -> None:
        """Let frames go their usual way."""
        self._input.on_audio = self._on_audio
        leg, self._leg = self._leg, None
        if leg is not None and leg.on_usual is self:  # the pipeline may have set another way
            leg.on_usual, leg.on_batch = self._on_usual, self._on_batch


class _VoiceMeter:
    """Measures the frame of the server's audio that is played next."""

    def __init__(self, voice: HasVoice) -> None:
        self._voice = voice
        self._levels = _SILENT

    def take(self) -> Sequence[int]:
        frame = self._voice.next_frame
        if frame is None:
            self._levels = _SILENT
        elif frame:  # else it is late, and what was said last counts
            self._levels = _measure(frame)
        return self._levels
