"""Streams of another sample rate, as a phone line has to hear them."""

from __future__ import annotations

import array
import audioop
import math
import time

import pytest

from audiofork.relay import resampler as resampler_module
from audiofork.relay.resampler import LAG_S, Resampler, load_in_background

RATES = [(24_000, 8000), (16_000, 8000), (48_000, 8000), (8000, 16_000), (24_000, 16_000)]


def sine(rate: int, hz: int) -> bytes:
    """Return a second of a tone at -12 dBFS."""
    return array.array(
        "h", (round(8192 * math.sin(math.tau * hz * n / rate)) for n in range(rate))
    ).tobytes()


def level_db(samples: bytes) -> float:
    """Return the level beside the tone's own, without the first and the last 50 ms."""
    edge = len(samples) // 40 * 2
    return 20 * math.log10(max(audioop.rms(samples[edge:-edge], 2), 0.1) * math.sqrt(2) / 8192)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
@pytest.mark.parametrize("hz", [400, 1000, 3400])
def test_tone_of_the_telephone_band_keeps_its_level(rate_in: int, rate_out: int, hz: int) -> None:
    resampler = Resampler(rate_in, rate_out)
    heard = resampler.feed(sine(rate_in, hz)) + resampler.end()
    assert level_db(heard) == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("hz", [5000, 6500])
def test_tone_above_the_band_is_not_heard_as_another(rate: int, hz: int) -> None:
    resampler = Resampler(rate, 8000)
    assert level_db(resampler.feed(sine(rate, hz)) + resampler.end()) < -60


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_stream_is_held_back_by_no_more_than_the_lag(rate_in: int, rate_out: int) -> None:
    resampler = Resampler(rate_in, rate_out)
    audio, size, given = sine(rate_in, 400), rate_in // 25, 0
    for start in range(0, len(audio), size):
        given += len(resampler.feed(audio[start : start + size]))
        due = (start + size) * rate_out // rate_in
        assert due - given <= LAG_S * rate_out * 2
        assert resampler.held_bytes == pytest.approx(due - given, abs=2)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
@pytest.mark.parametrize("samples", [1, 160, 24_000])
def test_stream_lasts_as_long_as_before(rate_in: int, rate_out: int, samples: int) -> None:
    resampler = Resampler(rate_in, rate_out)
    heard = resampler.feed(bytes(samples * 2)) + resampler.end()
    assert len(heard) // 2 == pytest.approx(samples * rate_out / rate_in, abs=1)
    assert resampler.held_bytes <= 2


def test_end_of_nothing_is_nothing() -> None:
    assert Resampler(24_000, 8000).end() == b""


def test_libraries_are_loaded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampler_module, "_libraries", None)
    load_in_background()
    load_in_background()  # the one that runs is enough
    while resampler_module._libraries is None:
        time.sleep(0.001)
    assert Resampler(24_000, 8000).feed(bytes(9600))
