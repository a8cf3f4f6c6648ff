"""The tone, and when its frames go out, on a clock that the test owns."""

from __future__ import annotations

import audioop
import math
import struct
from typing import Any

import pytest

from audiofork.link.messages import Beeps
from audiofork.relay.beep import Beeper, tone
from tests.relay.peers import FakeLoop

SAMPLES = struct.unpack("<1600h", b"".join(tone(8000)))


class Stage:
    """A beeper, and what it says when."""

    def __init__(self, clock: FakeLoop) -> None:
        self.clock = clock
        self.began = clock.time()
        self.frames: list[bytes] = []
        self.times: list[float] = []  # since the beginning
        self.heard: list[float] = []  # when the end of a tone was told
        self.rate = 8000
        self.beeper = self.beeper_for()

    def beeper_for(self, **beeps: Any) -> Beeper:
        """Return a beeper for these wishes, which says what the stage hears."""
        return Beeper(Beeps(**beeps), self._speak, lambda: self.rate)

    def _speak(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.times.append(self.clock.time() - self.began)

    def then(self) -> None:
        self.heard.append(self.clock.time() - self.began)


@pytest.fixture
def stage(clock: FakeLoop) -> Stage:
    return Stage(clock)


def test_tone_is_ten_frames() -> None:
    assert [len(frame) for frame in tone(8000)] == [320] * 10


def test_tone_is_1400_hz() -> None:
    assert audioop.cross(b"".join(tone(8000)), 2) / 2 == pytest.approx(1400 * 0.2, abs=1)


def test_tone_is_at_minus_12_dbfs() -> None:
    steady = b"".join(tone(8000)[1:-1])
    level = 20 * math.log10(audioop.rms(steady, 2) * math.sqrt(2) / 32768)
    assert level == pytest.approx(-12, abs=0.1)
    assert max(map(abs, SAMPLES)) <= 8192


@pytest.mark.parametrize("rate", [12_000, 16_000, 44_100, 48_000, 192_000])
def test_tone_at_another_rate_is_the_same_tone(rate: int) -> None:
    frames = tone(rate)
    assert [len(frame) for frame in frames] == [rate // 50 * 2] * 10
    slin = b"".join(frames)
    assert audioop.cross(slin, 2) / 2 == pytest.approx(1400 * 0.2, abs=1)
    level = 20 * math.log10(audioop.rms(b"".join(frames[1:-1]), 2) * math.sqrt(2) / 32768)
    assert level == pytest.approx(-12, abs=0.1)
    samples = struct.unpack(f"<{len(slin) // 2}h", slin)
    swell = rate // 200  # 5 ms
    assert all(abs(sample) <= 8192 * n / swell + 1 for n, sample in enumerate(samples[:swell]))
    assert max(map(abs, samples[swell // 2 : swell])) > 4000


def test_beep_at_another_rate_sends_frames_of_that_rate(clock: FakeLoop) -> None:
    spoken: list[bytes] = []
    Beeper(Beeps(), spoken.append, lambda: 16_000).beep()
    clock.advance(1)
    assert spoken == tone(16_000)
    assert len(spoken[0]) == 640


def test_each_beep_asks_for_its_rate_when_it_begins(stage: Stage) -> None:
    stage.beeper_for(interval_s=15).begin()
    stage.clock.advance(15.1)
    stage.rate = 16_000  # changes nothing of a beep that has begun
    stage.clock.advance(15)
    assert stage.frames == tone(8000) + tone(16_000)[:6]


@pytest.mark.parametrize("samples", [SAMPLES, (0, *reversed(SAMPLES))], ids=["begin", "end"])
def test_tone_swells_and_fades(samples: tuple[int, ...]) -> None:
    assert samples[0] == 0
    assert all(abs(sample) <= 8192 * n / 40 + 1 for n, sample in enumerate(samples[:40]))
    assert max(map(abs, samples[20:40])) > 4000


@pytest.mark.parametrize("late_s", [0, 0.005, 0.015])
def test_beep_sends_its_frames_20_ms_apart(stage: Stage, late_s: float) -> None:
    stage.clock.late_s = late_s
    stage.beeper.beep()
    stage.clock.advance(1)
    assert stage.frames == tone(8000)
    due = [0.02 * n for n in range(10)]
    assert stage.times == pytest.approx([0, *(at + late_s for at in due[1:])])
    assert stage.clock.armed == 0


def test_end_of_a_beep_is_told_after_the_tail(stage: Stage) -> None:
    stage.beeper.beep(stage.then)
    stage.clock.advance(0.29)
    assert (len(stage.frames), stage.heard) == (10, [])
    stage.clock.advance(1)
    assert stage.heard == pytest.approx([0.3])
    assert stage.clock.armed == 0


def test_interval_of_a_thousand_beeps_does_not_drift(stage: Stage) -> None:
    stage.clock.late_s = 0.004
    stage.beeper_for(interval_s=15).begin()
    stage.clock.advance(15 * 1000 + 1)
    assert stage.frames == tone(8000) * 1000
    late = [at - 15 * n for n, at in enumerate(stage.times[::10], 1)]
    assert late == pytest.approx([0.004] * 1000, abs=1e-6)


def test_first_beep_of_an_interval_comes_at_its_end(stage: Stage) -> None:
    stage.beeper_for(interval_s=15).begin()
    stage.clock.advance(14.9)
    assert stage.frames == []
    stage.clock.advance(0.2)
    assert stage.frames


def test_beep_for_the_start_comes_with_the_first_begin_alone(stage: Stage) -> None:
    beeper = stage.beeper_for(at_start=True, interval_s=15)
    beeper.begin()
    stage.clock.advance(1)
    assert stage.frames == tone(8000)
    beeper.stop()
    beeper.begin()
    stage.clock.advance(14.9)
    assert stage.frames == tone(8000)
    stage.clock.advance(1)
    assert stage.frames == tone(8000) * 2


@pytest.mark.parametrize("beeps", [{}, {"at_end": True}], ids=["none", "at the end"])
def test_begin_without_a_wish_for_it_beeps_never(stage: Stage, beeps: dict[str, Any]) -> None:
    stage.beeper_for(**beeps).begin()
    assert (stage.clock.armed, stage.frames) == (0, [])


def test_beep_between_two_repeated_ones_leaves_them_alone(stage: Stage) -> None:
    beeper = stage.beeper_for(interval_s=2)
    beeper.begin()
    beeper.beep(stage.then)
    stage.clock.advance(4.5)
    assert stage.times[::10] == pytest.approx([0, 2, 4])
    assert stage.heard == pytest.approx([0.3])


@pytest.mark.parametrize("after_s", [0.001, 0.07, 0.25])
def test_stop_silences_at_once_and_tells_no_end(stage: Stage, after_s: float) -> None:
    beeper = stage.beeper_for(interval_s=15)
    beeper.begin()
    beeper.beep(stage.then)
    stage.clock.advance(after_s)
    count = len(stage.frames)
    beeper.stop()
    assert stage.clock.armed == 0
    stage.clock.advance(60)
    assert (len(stage.frames), stage.heard) == (count, [])


def test_beep_after_a_stop_is_whole(stage: Stage) -> None:
    stage.beeper.beep()
    stage.clock.advance(0.05)
    stage.beeper.stop()
    stage.frames.clear()
    stage.beeper.beep(stage.then)
    stage.clock.advance(1)
    assert stage.frames == tone(8000)
    assert len(stage.heard) == 1


def test_stop_without_a_beep_does_nothing(stage: Stage) -> None:
    stage.beeper.stop()
    assert stage.clock.armed == 0
