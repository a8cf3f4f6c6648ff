"""The way of frames through a session into its sink: each is sent, dropped or waiting."""

from __future__ import annotations

import random
from typing import Any

import pytest

from audiofork.link.messages import (
    Direction,
    EndReason,
    ForkStats,
    Format,
    LegLost,
    LegPart,
    PressKey,
    Streaming,
)
from audiofork.relay.formats.base import Dtmf, Mute
from tests.relay.pipeline_stage import BOTH_LEGS, FORK_ID, IN, OUT, PAIRS, mono_of
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_usual_frames_go_straight_to_the_sink_only_when_streaming(begin: Begin) -> None:
    stage = begin(Direction.BOTH)
    leg = stage.leg
    stage.attach()
    for n in (1, 2):
        stage.audio(mono_of(n))
        assert leg.on_usual != stage.sink.send
    stage.sink.open()
    for n in (3, 4):
        assert leg.on_usual != stage.sink.send
        stage.audio(mono_of(n))
    assert leg.on_usual == stage.sink.send
    stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(n) for n in (1, 2, 3, 4, 5)]
    assert stage.session.stats() == ForkStats(5, 5, 0)


async def test_usual_frames_after_the_end_are_not_sent(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    stage.audio(mono_of(1))
    stage.session.end(EndReason.HANGUP)
    stage.audio(mono_of(2))
    assert stage.sink.frames == [mono_of(1)]
    assert (await stage.ended()).stats == ForkStats(2, 2, 0)


async def test_usual_frames_while_the_server_is_away_wait_and_the_oldest_go(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    for n in range(10):
        stage.audio(mono_of(n))
    stage.sink.lose(2)
    for n in range(7):
        stage.audio(mono_of(n))
    assert stage.session.stats() == ForkStats(18, 9, 4, reconnects=1)
    stage.sink.open()
    assert stage.session.stats() == ForkStats(18, 14, 4, reconnects=1)


FORKS: dict[str, dict[str, Any]] = {
    "in": {"direction": Direction.IN},
    "in louder": {"direction": Direction.IN, "gain_in": 1},
    "mix": {"direction": Direction.BOTH},
    "mix quieter": {"direction": Direction.BOTH, "gain_in": -1, "gain_out": -1},
    "both": {"direction": Direction.BOTH, "legs": (PAIRS,)},
    "out": {"direction": Direction.OUT},
    "stereo": {"direction": Direction.STEREO, "gain_out": -1},
    "out by a leg of its own": {"direction": Direction.OUT, "legs": (OUT,), "gain_out": 2},
    "wide in": {"direction": Direction.IN, "sample_rate": 16_000},
    "both by two legs": {"direction": Direction.BOTH, "legs": (IN, OUT), "gate_open": False},
    "stereo by two legs": {"direction": Direction.STEREO, "legs": (IN, OUT), "gain_in": -2},
}


def live(stage: SessionStage, rng: random.Random, *, usually: bool) -> list[ForkStats]:
    """Let 600 things happen to a fork, checking that all frames are counted.

    Args:
        usually: Bring frames as usual ones where they are; else have each looked at.

    Returns:
        The statistics after each.
    """
    session, sink = stage.session, stage.sink
    size = session.spec.sample_rate // 50 * (4 if PAIRS in stage.legs else 2)
    gate_open, offered = session.spec.gate_open, 0
    stats = []

    def bring(frame: bytes, part: LegPart) -> None:
        if not usually:
            stage._usual.clear()
        stage.audio(frame, part)

    stage.attach()
    for _ in range(600):
        what = rng.choice(("frames", "frames", "unexpected", "mute", "gate", "open", "lose", "leg"))
        part = rng.choice(list(stage.legs))
        if what == "frames":
            for _ in range(rng.randrange(1, 5)):
                for each in stage.legs:
                    bring(rng.randbytes(size), each)
                offered += gate_open
        elif what == "unexpected" and stage.count(Streaming):  # before that it would end some
            bring(bytes(size + 2), part)
            offered += gate_open
        elif what == "mute":
            stage.mute(rng.choice((None, True, False)), rng.choice((None, True, False)))
        elif what == "gate":
            gate_open = rng.random() < 0.7
            session.set_gate(gate_open)
        elif what == "open" and not sink.is_open:
            sink.open()
        elif what == "lose" and sink.is_open:
            sink.lose(min(sink.frames_sent, rng.randrange(4)))
        elif what == "leg":
            stage.close_leg(part)
            stage.attach(part)
        stats.append(session.stats())
        assert stats[-1].frames_in == offered
    return stats


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wishes", FORKS.values(), ids=FORKS)
async def test_usual_frames_fare_as_if_each_were_looked_at(
    begin: Begin, wishes: dict[str, Any], seed: int
) -> None:
    quick, careful = begin(**wishes), begin(**wishes)
    quick_stats = live(quick, random.Random(seed), usually=True)
    assert quick_stats == live(careful, random.Random(seed), usually=False)
    assert quick.sink.frames == careful.sink.frames
    assert quick.reports == careful.reports
    assert quick.count(Streaming) == 1
    assert len(quick.sink.frames) > 100


# --- The gate, and frames of an unexpected size ---------------------------------------------------


async def test_gate_lets_audio_through_or_not(begin: Begin) -> None:
    stage = begin(gate_open=False)
    stage.attach()
    stage.sink.open()
    for n, is_open in enumerate((False, True, False, True)):
        stage.session.set_gate(is_open)
        stage.audio(mono_of(n))
    assert stage.sink.frames == [mono_of(1), mono_of(3)]
    assert stage.session.stats() == ForkStats(2, 2, 0)
    stage.close_leg()
    assert stage.reports[-1] == LegLost(FORK_ID, IN, 4)


async def test_gate_stays_shut_after_the_end(begin: Begin) -> None:
    stage = begin(Direction.BOTH)
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    stage.session.set_gate(True)
    stage.audio(mono_of(5))
    assert (await stage.ended()).stats == ForkStats()
    assert stage.sink.frames == []


@pytest.mark.parametrize("legs", [(OUT,), BOTH_LEGS], ids=["one leg", "two legs"])
@pytest.mark.parametrize("size", [320, 638, 642, 1280])
async def test_first_frame_of_another_rate_fails_the_leg_naming_both_sizes_and_the_rate(
    begin: Begin, legs: tuple[LegPart, ...], size: int
) -> None:
    direction = Direction.OUT if legs == (OUT,) else Direction.BOTH
    stage = begin(direction, legs=legs, sample_rate=16_000)
    stage.attach()
    stage.audio(bytes(size), OUT)
    assert [leg.hang_ups for leg in stage.legs.values()] == [1] * len(legs)
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == f"the leg sends frames of {size} bytes, not 640 (16000 Hz)"
    assert ended.stats == ForkStats(1, 0, 1)
    assert stage.sink.frames == []


@pytest.mark.parametrize("legs", [(OUT,), BOTH_LEGS], ids=["one leg", "two legs"])
async def test_frame_of_unexpected_size_while_the_gate_is_shut_is_not_counted_and_ends_nothing(
    begin: Begin, legs: tuple[LegPart, ...]
) -> None:
    direction = Direction.OUT if legs == (OUT,) else Direction.BOTH
    stage = begin(direction, legs=legs, gate_open=False)
    stage.attach()
    stage.audio(bytes(640), OUT)
    stage.session.set_gate(True)
    assert stage.session.stats() == ForkStats()
    for part in legs:
        stage.audio(mono_of(5), part)
    assert len(stage.sink.frames) == 1
    stage.session.end(EndReason.STOPPED)
    stage.audio(bytes(640), OUT)
    assert (await stage.ended()).stats.frames_dropped == 0


# --- Several frames in a message ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "wishes", "frame", "batched"),
    [
        (Direction.IN, {}, bytes(320), [(320, 100)]),
        (Direction.BOTH, {}, bytes(320), [(320, 100)]),
        (Direction.OUT, {}, bytes(640), [(640, 100)]),
        (Direction.OUT, {"legs": (OUT,), "sample_rate": 16000}, bytes(640), [(640, 100)]),
        (Direction.IN, {"keep_time": True}, bytes(320), []),
    ],
    ids=["in", "mix", "pairs", "wide", "time-is-kept"],
)
async def test_reads_of_the_only_leg_are_batched_once_audio_flows_and_a_message_has_ended(
    direction: Direction, wishes: dict[str, Any], frame: bytes, batched: list[tuple[int, int]]
) -> None:
    stage = SessionStage(direction, **wishes)
    stage.sink.frame_ms = 100
    stage.attach()
    leg = stage.legs[stage.only_part]
    stage.audio(frame)
    stage.audio(frame)
    assert leg.batched == []
    stage.sink.open()
    stage.sink.is_open = False  # a part of a message waits
    stage.audio(frame)
    assert leg.batched == []
    stage.sink.open()
    stage.audio(frame)
    assert leg.batched == batched
    stage.close_leg()
    stage.attach()  # another in its place
    stage.audio(frame)
    assert leg.batched == 2 * batched
    stage.session.end(EndReason.STOPPED)


async def test_reads_are_not_batched_where_each_frame_is_a_message() -> None:
    stage = SessionStage(Direction.IN)
    stage.sink.open()
    stage.attach()
    for _ in range(3):
        stage.audio(bytes(320))
    assert stage.legs[IN].batched == []
    stage.session.end(EndReason.STOPPED)


async def test_reads_of_two_legs_are_batched_once_both_have_begun_anew_if_one_comes() -> None:
    stage = SessionStage(Direction.STEREO, legs=(IN, OUT))
    stage.sink.frame_ms = 100
    stage.sink.open()
    stage.attach()
    for _ in range(3):  # the first waits, and then gets silence
        stage.audio(bytes(320), IN)
    assert [leg.batched for leg in stage.legs.values()] == [[], []]
    stage.audio(bytes(320), OUT)
    assert [leg.batched for leg in stage.legs.values()] == [[(320, 100)]] * 2
    stage.close_leg(OUT)
    stage.attach(OUT)
    assert not stage.legs[IN].is_batching
    for _ in range(2):
        stage.audio(bytes(320), IN)
        stage.audio(bytes(320), OUT)
    assert all(leg.is_batching for leg in stage.legs.values())
    stage.session.end(EndReason.STOPPED)


@pytest.mark.parametrize("is_late", [True, False])
async def test_part_of_a_message_that_was_read_is_sent_if_it_is_late(is_late: bool) -> None:
    stage = SessionStage(Direction.IN)
    stage.sink.missing = 3
    assert stage.session.inlets[IN].on_batch_read(is_late) == 3
    assert stage.sink.parts_sent == is_late
    stage.session.end(EndReason.STOPPED)


async def test_end_sends_what_the_leg_has_not_read_yet() -> None:
    stage = SessionStage(Direction.IN)
    stage.sink.frame_ms = 100
    stage.sink.open()
    stage.attach()
    stage.audio(b"\1" * 320)
    leg = stage.legs[IN]
    leg.on_rest = lambda: stage.session.inlets[IN].on_audio(b"\2" * 320)
    stage.session.end(EndReason.STOPPED)
    assert stage.sink.frames == [b"\1" * 320, b"\2" * 320]
    assert leg.hang_ups == 1


async def test_key_comes_after_what_the_leg_has_not_read_yet() -> None:
    """With several frames in a message, a second of audio may wait in the kernel."""
    stage = SessionStage(Direction.IN)
    stage.sink.frame_ms = 100
    stage.sink.open()
    stage.attach()
    stage.audio(b"\1" * 320)
    stage.legs[IN].on_rest = lambda: stage.session.inlets[IN].on_audio(b"\2" * 320)
    stage.session.press(PressKey(FORK_ID, "5", 80))
    assert stage.sink.events == [(2, Dtmf("5", 80))]
    stage.session.end(EndReason.STOPPED)


async def test_mute_is_told_before_the_first_frame_that_it_silences() -> None:
    stage = SessionStage(Direction.IN, format=Format.JSON)
    stage.sink.frame_ms = 100
    stage.sink.open()
    stage.attach()
    stage.audio(b"\1" * 320)
    stage.legs[IN].on_rest = lambda: stage.session.inlets[IN].on_audio(b"\2" * 320)
    stage.mute(True, None)
    stage.audio(b"\3" * 320)
    assert stage.sink.frames == [b"\1" * 320, b"\2" * 320, bytes(320)]
    stage.mute(None, True)
    stage.mute(False, None)
    assert stage.sink.events == [
        (2, Mute(is_in=True, is_out=False)),
        (3, Mute(is_in=True, is_out=True)),
        (3, Mute(is_in=False, is_out=True)),
    ]
    stage.session.end(EndReason.STOPPED)
    stage.mute(True, True)
    assert len(stage.sink.events) == 3


async def test_mute_goes_to_no_format_that_cannot_tell_of_it() -> None:
    """It would only cut messages of several frames in two."""
    for one in Format:
        stage = SessionStage(Direction.IN, format=one)
        stage.mute(True, True)
        assert bool(stage.sink.events) == one.has_mute
        stage.session.end(EndReason.STOPPED)
