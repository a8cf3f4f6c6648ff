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


def begun(clock: FakeLoop, **beeps: Any) -> tuple[Beeper, list[float]]:
    """Return a beeper that has begun, and the list of its beeps' times since then."""
    began, times = clock.time(), list[float]()
    beeper = Beeper(Beeps(**beeps), lambda: times.append(clock.time() - began))
    beeper.begin()
    return beeper, times


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


@pytest.mark.parametrize("samples", [SAMPLES, (0, *reversed(SAMPLES))], ids=["begin", "end"])
def test_tone_swells_and_fades(samples: tuple[int, ...]) -> None:
    assert samples[0] == 0
    assert all(abs(sample) <= 8192 * n / 40 + 1 for n, sample in enumerate(samples[:40]))
    assert max(map(abs, samples[20:40])) > 4000


def test_interval_of_a_thousand_beeps_does_not_drift(clock: FakeLoop) -> None:
    clock.late_s = 0.004
    _, times = begun(clock, interval_s=15)
    clock.advance(15 * 1000 + 1)
    assert [at - 15 * n for n, at in enumerate(times, 1)] == pytest.approx([0.004] * 1000, abs=1e-6)


def test_first_beep_of_an_interval_comes_at_its_end(clock: FakeLoop) -> None:
    _, times = begun(clock, interval_s=15)
    clock.advance(14.9)
    assert times == []
    clock.advance(0.2)
    assert times == pytest.approx([15])


def test_beep_for_the_start_comes_with_the_first_begin_alone(clock: FakeLoop) -> None:
    beeper, times = begun(clock, at_start=True, interval_s=15)
    clock.advance(1)
    beeper.stop()
    beeper.begin()
    clock.advance(15.1)
    assert times == pytest.approx([0, 16])


@pytest.mark.parametrize("beeps", [{}, {"at_end": True}], ids=["none", "at the end"])
def test_begin_without_a_wish_for_it_beeps_never(clock: FakeLoop, beeps: dict[str, Any]) -> None:
    _, times = begun(clock, **beeps)
    assert (clock.armed, times) == (0, [])


def test_stop_ends_the_interval(clock: FakeLoop) -> None:
    beeper, times = begun(clock, interval_s=15)
    beeper.stop()
    clock.advance(60)
    assert (clock.armed, times) == (0, [])


def test_stop_without_a_beep_does_nothing(clock: FakeLoop) -> None:
    Beeper(Beeps(interval_s=15), lambda: None).stop()
    assert clock.armed == 0
