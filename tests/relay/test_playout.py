"""What becomes of the server's audio until it is played, at times that the test says."""

from __future__ import annotations

import array
import audioop
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiofork.relay import playout as playout_module
from audiofork.relay.formats.base import BufferLevel, Cleared, Event, Mark
from audiofork.relay.playout import Playout
from tests.relay.peers import numbered

SILENCE = bytes(320)


class Stage:
    """A playout, with what it plays and tells.

    Attributes:
        played: The frames, None for silence, and the events between them.
    """

    def __init__(self, buffer_s: float = 60, rate: int = 8000) -> None:
        self.played: list[bytes | Event | None] = []
        self.playout = Playout(buffer_s, rate, self.played.append, lambda: self.now)
        self.now = 1000.0

    def put(self, samples: bytes, rate: int = 8000) -> None:
        self.playout.put(samples, rate)

    def tick(self, count: int = 1) -> None:
        """Play so many frames, each 20 ms after the one before."""
        for _ in range(count):
            self.now += 0.02
            self.played.append(self.playout.take(self.now))
            self.playout.tell_marks()

    @property
    def frames(self) -> list[bytes]:
        return [item for item in self.played if isinstance(item, bytes)]

    @property
    def events(self) -> list[Event]:
        return [item for item in self.played if not isinstance(item, bytes | None)]

    @property
    def accounted(self) -> int:
        counts = self.playout.counts
        return counts.played + counts.cleared + counts.unplayed + self.playout.waiting


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- Frames ---------------------------------------------------------------------------------------


def test_pieces_are_played_in_order_bit_exact(stage: Stage) -> None:
    audio = numbered(50)
    stage.put(b"".join(audio))
    stage.tick(60)
    assert stage.frames == audio
    assert stage.playout.counts.played == 50


@pytest.mark.parametrize("size", [1, 2, 3, 7, 160, 319, 320, 321, 640, 1001, 16_000])
def test_pieces_of_any_length_are_played_bit_exact(stage: Stage, size: int) -> None:
    audio = b"".join(numbered(50))
    for start in range(0, len(audio), size):
        stage.put(audio[start : start + size])
    stage.tick(60)
    assert b"".join(stage.frames) == audio


@pytest.mark.parametrize("sizes", [(160, 320, 320, 160), (1, 320, 320, 319), (321, 320, 639)])
def test_piece_of_a_frame_after_a_part_of_one_is_played_bit_exact(
    stage: Stage, sizes: tuple[int, ...]
) -> None:
    audio = b"".join(numbered(10, 1))[: sum(sizes)]
    start = 0
    for size in sizes:
        stage.put(audio[start : start + size])
        start += size
    stage.tick(10)
    assert b"".join(stage.frames)[: len(audio)] == audio


def test_piece_of_a_frame_follows_what_is_being_resampled(stage: Stage) -> None:
    stage.put(sine(24_000, 0.2), 24_000)
    while stage.playout._rest:  # all that is ready fills whole frames; some is held back
        stage.put(b"\1\1" * 3, 24_000)
    stage.put(numbered(1, 7)[0])
    stage.tick(30)
    audio = b"".join(stage.frames)
    place = audio.index(numbered(1, 7)[0])
    assert not any(audio[place + 320 :])


def test_30_s_at_once_are_played_a_frame_at_a_time(stage: Stage) -> None:
    audio = numbered(1500)
    stage.put(b"".join(audio))
    stage.tick(2)
    assert len(stage.frames) == 1
    stage.tick(1600)
    assert stage.frames == audio
    assert stage.playout.waiting == 0


def test_rest_at_the_end_of_a_spurt_is_padded_with_silence(stage: Stage) -> None:
    stage.put(b"\1" * 330)
    stage.tick(6)
    assert stage.played == [None, b"\1" * 320, b"\1" * 10 + bytes(310), None, None, None]


def test_nothing_is_played_of_nothing(stage: Stage) -> None:
    stage.put(b"")
    stage.put(b"\1")  # half a sample
    stage.tick(100)
    assert stage.played == [None] * 100
    assert stage.playout.begins_at is None


def test_half_sample_finds_its_other_half_though_the_spurt_is_over(stage: Stage) -> None:
    stage.put(bytes(320) + b"\1")
    stage.tick(10)
    stage.put(b"\2" + bytes(318))
    stage.tick(10)
    assert stage.frames == [SILENCE, b"\1\2" + bytes(318)]


def test_half_sample_that_is_left_shifts_nothing_that_comes_later(stage: Stage) -> None:
    stage.put(bytes(320) + b"\1")
    stage.tick(60)
    stage.put(numbered(1, 5)[0])
    stage.tick(10)
    assert stage.frames == [SILENCE, *numbered(1, 5)]


@pytest.mark.parametrize("forget", [Playout.clear, Playout.forget_half_sample])
def test_half_sample_is_forgotten(stage: Stage, forget: Callable[[Playout], None]) -> None:
    stage.put(b"\1")
    forget(stage.playout)
    stage.put(numbered(1, 5)[0])
    stage.tick(10)
    assert stage.frames == numbered(1, 5)


# --- When a spurt begins --------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "wait_s"), [(2, 0.019), (320, 0.019), (322, 0.04), (3200, 0.04)])
def test_spurt_begins_after_a_wait_that_depends_on_the_servers_clock(
    stage: Stage, size: int, wait_s: float
) -> None:
    stage.put(bytes(size))
    assert stage.playout.begins_at == pytest.approx(1000 + wait_s)
    assert stage.playout.take(1000 + wait_s - 0.001) is None
    assert stage.playout.take(1000 + wait_s) is not None


def test_frames_that_come_a_little_late_are_played_without_a_gap(stage: Stage) -> None:
    audio = numbered(100)
    stage.put(audio[0])
    for index, frame in enumerate(audio[1:]):
        stage.tick()
        if index % 2:
            stage.put(frame)
        else:
            late_s, stage.now = stage.now, stage.now + 0.015
            stage.put(frame)
            stage.now = late_s
    stage.tick(5)
    assert stage.played[:100] == audio
    assert stage.playout.counts.underruns == 0


def test_audio_that_comes_too_late_is_an_underrun_and_waits_again(stage: Stage) -> None:
    first, second = numbered(2)
    stage.put(first)
    stage.tick(3)
    stage.put(second)
    stage.tick(3)
    assert stage.played == [first, None, None, second, None, None]
    assert stage.playout.counts.underruns == 1


def test_next_utterance_is_no_underrun(stage: Stage) -> None:
    for frame in numbered(3):
        stage.put(frame)
        stage.tick(20)
    stage.put(SILENCE)
    stage.tick(2)
    stage.playout.clear()
    stage.put(SILENCE)
    assert stage.playout.counts.underruns == 0


# --- Marks and clear ------------------------------------------------------------------------------


def test_mark_comes_back_after_its_last_frame_in_order(stage: Stage) -> None:
    one, two, three = numbered(3)
    stage.put(one)
    stage.playout.mark("a")
    stage.put(two)
    stage.playout.mark("b")
    stage.playout.mark("c")
    stage.put(three)
    stage.tick(5)
    assert stage.played == [one, Mark("a"), two, Mark("b"), Mark("c"), three, None, None]


def test_mark_comes_back_at_once_if_nothing_waits(stage: Stage) -> None:
    stage.playout.mark("a")
    assert stage.played == [Mark("a")]


@pytest.mark.parametrize("size", [2, 318, 322, 600])
def test_mark_after_a_part_of_a_frame_comes_back_with_that_frame(stage: Stage, size: int) -> None:
    stage.put(b"\1" * size)
    stage.playout.mark("a")
    stage.put(b"\2" * 6400)
    stage.tick(40)
    place = stage.played.index(Mark("a"))
    before = b"".join(frame for frame in stage.played[:place] if isinstance(frame, bytes))
    assert before.count(b"\1") == size
    assert len(before) - size < 320


def test_clear_drops_what_waits_and_tells_the_marks_before(stage: Stage) -> None:
    stage.put(b"".join(numbered(100)) + b"\1\2")
    stage.playout.mark("a")
    stage.playout.mark("b")
    stage.tick(3)
    stage.playout.clear()
    stage.tick(3)
    assert stage.played[3:] == [Mark("a"), Mark("b"), Cleared(99 * 20), None, None, None]
    counts = stage.playout.counts
    assert (counts.played, counts.cleared, counts.unplayed) == (2, 99, 0)


def test_clear_tells_of_audio_that_did_not_fit_in_the_same_spurt() -> None:
    stage = Stage(buffer_s=1)
    stage.put(bytes(320 * 60))
    stage.tick(11)
    stage.playout.clear()
    assert stage.events[-1] == Cleared((10 + 40) * 20)
    stage.put(bytes(320 * 10))
    stage.playout.clear()
    assert stage.events[-1] == Cleared(200)


def test_what_waits_for_audio_is_done_in_its_place_and_forgotten_by_a_clear(stage: Stage) -> None:
    done: list[str] = []
    stage.put(b"".join(numbered(2)))
    stage.playout.then(lambda: done.append(f"after {len(stage.frames)}"))
    stage.put(b"".join(numbered(2)))
    stage.tick(4)
    assert done == ["after 2"]
    stage.playout.then(lambda: done.append("never"))
    stage.playout.mark("a")
    stage.playout.clear()
    stage.tick(4)
    assert (done, stage.events) == (["after 2"], [Mark("a"), Cleared(20)])
    stage.playout.then(lambda: done.append("at once"))
    assert done[1:] == ["at once"]


def test_audio_after_a_clear_is_a_new_spurt(stage: Stage) -> None:
    stage.put(b"\1" * 330)
    stage.playout.clear()
    stage.put(numbered(1, 7)[0])
    stage.tick(3)
    assert stage.frames == numbered(1, 7)


def test_clear_of_nothing_is_told(stage: Stage) -> None:
    stage.playout.clear()
    assert stage.played == [Cleared()]
    assert stage.playout.counts.cleared == 0


@pytest.mark.parametrize(("rate", "size"), [(24_000, 2), (24_000, 6), (48_000, 14)])
def test_mark_behind_a_piece_too_short_to_be_resampled_comes_back(
    stage: Stage, rate: int, size: int
) -> None:
    stage.put(bytes(size), rate)
    stage.playout.mark("end")
    stage.now += 1
    stage.playout.take(stage.now)
    stage.playout.take(stage.now + 0.02)
    assert stage.events == [Mark("end")]


def test_marks_beyond_the_most_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playout_module, "MOST_MARKS", 3)
    stage.put(SILENCE)
    assert [stage.playout.mark(str(n)) for n in range(5)] == [True, True, True, False, False]
    stage.tick(3)
    assert stage.events == [Mark("0"), Mark("1"), Mark("2")]


# --- The end, and the buffer's cap ----------------------------------------------------------------


def test_what_is_left_at_the_end_counts_as_unplayed(stage: Stage) -> None:
    stage.put(bytes(3202))
    stage.playout.mark("a")
    stage.tick(3)
    stage.playout.drop_rest()
    stage.tick(3)
    assert (stage.playout.counts.played, stage.playout.counts.unplayed) == (2, 9)
    assert stage.events == []


def test_end_of_a_full_buffer_is_told_to_nobody() -> None:
    stage = Stage(buffer_s=1)
    stage.put(bytes(16_000))
    stage.playout.drop_rest()
    assert stage.events == [BufferLevel(is_high=True)]
    assert stage.playout.counts.unplayed == 50


def test_what_does_not_fit_is_dropped_and_counted_and_told() -> None:
    stage = Stage(buffer_s=1)
    audio = numbered(80)
    for frame in audio:
        stage.put(frame)
    assert stage.events == [BufferLevel(is_high=True)]
    assert (stage.playout.waiting, stage.playout.counts.unplayed) == (50, 30)
    stage.tick(26)
    assert stage.events == [BufferLevel(is_high=True), BufferLevel(is_high=False)]
    stage.tick(40)
    assert stage.frames == audio[:50]


def test_one_piece_beyond_the_cap_is_cut() -> None:
    stage = Stage(buffer_s=0.1)
    stage.put(b"".join(numbered(20)))
    stage.tick(20)
    assert stage.frames == numbered(5)
    assert stage.playout.counts.unplayed == 15


def test_level_is_told_once_until_it_has_fallen() -> None:
    stage = Stage(buffer_s=1)
    stage.put(bytes(320 * 40))
    stage.tick(5)
    stage.put(bytes(320 * 5))
    assert stage.events == [BufferLevel(is_high=True)]
    stage.playout.clear()
    assert stage.events[1:] == [BufferLevel(is_high=False), Cleared(41 * 20)]


def test_frame_that_could_not_be_written_counts_as_unplayed(stage: Stage) -> None:
    stage.put(SILENCE)
    stage.tick()
    stage.playout.take_back()
    assert (stage.playout.counts.played, stage.playout.counts.unplayed) == (0, 1)


# --- Other rates ----------------------------------------------------------------------------------


def sine(rate: int, seconds: float, hz: int = 400) -> bytes:
    """Return a tone at -12 dBFS."""
    period = rate // hz
    one = array.array("h", (8192 if n < period // 2 else -8192 for n in range(period)))
    return one.tobytes() * round(seconds * hz)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("own_rate", [8000, 16_000])
def test_audio_of_any_rate_is_played_as_long_as_it_lasts(rate: int, own_rate: int) -> None:
    stage = Stage(rate=own_rate)
    stage.put(sine(rate, 1), rate)
    stage.playout.mark("end")
    stage.tick(70)
    assert {len(frame) for frame in stage.frames} == {own_rate // 25}
    assert 50 <= len(stage.frames) <= 51
    assert audioop.rms(b"".join(stage.frames), 2) == pytest.approx(8192, rel=0.1)
    assert stage.played.index(Mark("end")) >= 50
    assert (stage.playout.waiting, stage.playout.counts.underruns) == (0, 0)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_resampled_audio_in_real_time_has_no_gap(rate: int) -> None:
    stage = Stage()
    audio = sine(rate, 1)
    size = rate // 25
    for start in range(0, len(audio), size):
        stage.put(audio[start : start + size], rate)
        stage.tick()
    stage.tick(10)
    first = next(index for index, item in enumerate(stage.played) if item is not None)
    assert None not in stage.played[first : first + 50]
    assert stage.playout.counts.underruns == 0


def test_clear_drops_what_is_being_resampled(stage: Stage) -> None:
    stage.put(sine(24_000, 1), 24_000)
    stage.tick(5)
    stage.playout.clear()
    assert stage.playout.waiting == 0
    stage.put(bytes(960 * 10), 24_000)
    stage.tick(20)
    assert audioop.max(b"".join(stage.frames[-10:]), 2) <= 2  # the library adds some dither


def test_server_that_changes_its_rate_is_played_on(stage: Stage) -> None:
    for rate in 24_000, 8000, 16_000:
        stage.put(sine(rate, 0.2), rate)
    stage.tick(50)
    assert 30 <= len(stage.frames) <= 32
    assert None not in stage.played[stage.played.index(stage.frames[0]) :][:30]


def test_leg_of_another_rate_plays_what_waits() -> None:
    stage = Stage(rate=16_000)
    stage.put(sine(16_000, 1), 16_000)
    stage.playout.mark("end")
    stage.tick(11)
    stage.playout.set_rate(8000)
    stage.tick(60)
    assert [len(frame) for frame in stage.frames[:11]] == [640] * 10 + [320]
    assert 50 <= len(stage.frames) <= 51
    assert audioop.rms(b"".join(stage.frames[12:48]), 2) == pytest.approx(8192, rel=0.1)
    assert stage.events == [Mark("end")]


# --- Whatever a server does -----------------------------------------------------------------------


@dataclass
class Model:
    """What should become of the audio: each byte is played once, or dropped in order."""

    stage: Stage
    marks_set: int = 0
    sent: int = 0  # samples

    def do(self, step: str, amount: int) -> None:
        if step == "audio":
            self.audio(amount)
        elif step == "tick":
            self.stage.tick(amount)
        elif step == "mark":
            self.mark()
        else:
            self.stage.playout.clear()

    def audio(self, samples: int) -> None:
        values = range(self.sent + 1, self.sent + samples + 1)
        self.sent += samples
        self.stage.put(array.array("H", (value % 65_535 + 1 for value in values)).tobytes())

    def mark(self) -> None:
        assert self.stage.playout.mark(str(self.marks_set))
        self.marks_set += 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("audio"), st.integers(0, 2000)),
        st.tuples(st.just("tick"), st.integers(1, 5)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, buffer_s=st.sampled_from([0.1, 60]))
def test_all_is_accounted_for_at_any_moment(steps: list[tuple[str, int]], buffer_s: float) -> None:
    stage = Stage(buffer_s)
    model = Model(stage)
    for step, amount in steps:
        before = stage.accounted
        model.do(step, amount)
        assert before <= stage.accounted <= before + (amount + 319) // 160 * (step == "audio")
    stage.tick(stage.playout.waiting + 5)
    assert stage.playout.waiting == 0
    # Each mark once, in order.
    marks = [event for event in stage.events if isinstance(event, Mark)]
    assert marks == [Mark(str(n)) for n in range(model.marks_set)]
    # Samples in order, none twice; and all, where none was dropped.
    heard = [s for frame in stage.frames for s in array.array("H", frame) if s]
    assert heard == sorted(set(heard))
    if not (stage.playout.counts.cleared or stage.playout.counts.unplayed):
        assert len(heard) == model.sent


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_cuts_anywhere_change_nothing(data: bytes, cuts: list[int]) -> None:
    stage = Stage()
    for piece in pieces(data, cuts):
        stage.put(piece)
    stage.tick(20)
    whole = data[: len(data) // 2 * 2]
    assert b"".join(stage.frames)[: len(whole)] == whole


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        yield data[start:end]
