"""Silence where a leg brings nothing, on a clock that the test owns."""

from __future__ import annotations

import random

import pytest

from audiofork.audiosocket import PTIME_S
from audiofork.relay.silence_filler import SilenceFiller
from tests.relay.peers import FakeLoop


class Stage:
    """A silence filler, and the stream that it keeps the time of."""

    def __init__(self, clock: FakeLoop, *, steady: bool = False) -> None:
        self.clock = clock
        self.began = clock.time()
        self.frames = 0
        self.silences: list[float] = []  # when each was sent
        self.looks = 0  # how often the filler has asked the time
        self.filler = SilenceFiller(
            self._silence,
            lambda: self.frames + len(self.silences),
            self._look,
            steady=steady,
        )

    def _look(self) -> float:
        self.looks += 1
        return self.clock.time()

    def _silence(self) -> None:
        self.silences.append(self.elapsed_s)

    def frame(self) -> None:
        """Send a frame of the leg."""
        self.frames += 1

    def talk(self, count: int, jitter: list[float] | None = None) -> None:
        """Let frames come, one each 20 ms, each as late as is said."""
        now = self.clock.time()
        for n in range(count):
            late_s = jitter[n] if jitter else 0.0
            self.clock.call_at(now + n * PTIME_S + late_s, self.frame)
        self.clock.advance(count * PTIME_S)

    @property
    def elapsed_s(self) -> float:
        return self.clock.time() - self.began

    @property
    def ahead(self) -> float:
        """By how many frames the stream is ahead of the clock."""
        return round(self.frames + len(self.silences) - self.elapsed_s / PTIME_S, 6)


@pytest.fixture
def stage(clock: FakeLoop) -> Stage:
    return Stage(clock)


def test_silence_begins_within_220_ms_and_keeps_time_from_then_on(stage: Stage) -> None:
    stage.filler.start()
    stage.clock.advance(10)
    began = stage.silences[0]
    assert 0.12 <= began <= 0.22
    later = [at for at in stage.silences if at > began]
    gaps = [after - before for before, after in zip(later, later[1:], strict=False)]
    assert max(gaps) < 3 * PTIME_S
    assert len(later) == pytest.approx((10 - began) / PTIME_S, abs=1)
    assert -8 <= stage.ahead <= -6


@pytest.mark.parametrize("last_ms", range(1000, 1120, 3))
def test_silence_begins_within_220_ms_of_the_last_frame_and_follows_50_times_a_second(
    stage: Stage, last_ms: int
) -> None:
    stage.filler.start()
    stage.clock.advance(last_ms % 20 / 1000)
    stage.talk(last_ms // 20)
    last = stage.elapsed_s - PTIME_S
    stage.clock.advance(1.2)
    assert 0.12 <= stage.silences[0] - last <= 0.221
    for second in range(5):
        count = len(stage.silences)
        stage.clock.advance(1)
        assert len(stage.silences) - count == pytest.approx(50, abs=1), second


@pytest.mark.parametrize("before", ["nothing", "a pause"])
@pytest.mark.parametrize("late_ms", [0, 10, 25, 40, 55, 85, 115])
def test_clock_is_looked_at_10_times_a_second_while_frames_come(
    stage: Stage, late_ms: int, before: str
) -> None:
    """Each fork has a timer, so this is what many forks cost."""
    stage.filler.start()
    if before == "a pause":
        stage.talk(100)
        stage.clock.advance(3)
    stage.clock.advance(late_ms / 1000)
    stage.talk(50)
    silences, looks = len(stage.silences), stage.looks
    stage.talk(5000)
    assert stage.looks - looks == pytest.approx(1000, abs=10)
    assert len(stage.silences) <= silences + 1  # one may be due still since the pause


def test_frames_on_time_need_no_silence(stage: Stage) -> None:
    stage.filler.start()
    stage.talk(3000)
    assert stage.silences == []


@pytest.mark.parametrize("begin_ms", [0, 7, 13, 19])
@pytest.mark.parametrize("jitter", ["drawn", "up and down", "always late"])
def test_frames_late_by_100_ms_need_no_silence(stage: Stage, begin_ms: int, jitter: str) -> None:
    stage.filler.start()
    stage.clock.advance(begin_ms / 1000)
    draw = random.Random(begin_ms)
    late_s = {
        "drawn": [draw.uniform(0, 0.1) for _ in range(1000)],
        "up and down": [0.1 * (n // 10 % 2) for n in range(1000)],
        "always late": [0.1] * 1000,
    }[jitter]
    stage.talk(1000, [late - begin_ms / 1000 for late in late_s])
    stage.clock.advance(0.1)
    assert (stage.frames, stage.silences) == (1000, [])


def test_frames_that_are_missing_here_and_there_are_replaced(stage: Stage) -> None:
    stage.filler.start()
    for _ in range(50):
        stage.talk(19)
        stage.clock.advance(PTIME_S)
    assert 40 <= len(stage.silences) <= 46
    assert -10 <= stage.ahead <= -4


def test_burst_after_a_gap_puts_off_the_next_silence(stage: Stage) -> None:
    stage.filler.start()
    stage.talk(50)
    stage.clock.advance(1)
    in_gap = len(stage.silences)
    assert 37 <= in_gap <= 45
    for _ in range(50):  # what was held up comes after all
        stage.frame()
    stage.talk(50)
    assert len(stage.silences) == in_gap
    stage.clock.advance(in_gap * PTIME_S)
    assert len(stage.silences) == in_gap
    stage.clock.advance(1)
    assert 87 <= len(stage.silences) <= 91
    assert -8 <= stage.ahead <= -6


def test_stream_of_ten_minutes_is_as_long_as_the_clock_says(stage: Stage) -> None:
    draw = random.Random(3)
    stage.filler.start()
    least = 0.0
    while stage.elapsed_s < 600:
        stage.talk(draw.randrange(300))
        least = min(least, stage.ahead)
        pause = draw.randrange(100)
        stage.clock.advance(pause * PTIME_S)
        least = min(least, stage.ahead)
        for _ in range(draw.choice([0, 0, pause])):
            stage.frame()
    stage.clock.advance(max(stage.ahead, 0) * PTIME_S + 1)
    assert least >= -13  # 0.26 s
    assert -8 <= stage.ahead <= -6
    assert stage.frames > 10_000
    assert len(stage.silences) > 1000


def test_stop_ends_the_silence_and_start_forgets_the_pause(stage: Stage) -> None:
    stage.filler.start()
    stage.talk(50)
    stage.filler.stop()
    assert stage.clock.armed == 0
    stage.clock.advance(60)
    assert stage.silences == []
    stage.filler.start()
    stage.clock.advance(0.11)
    assert stage.silences == []
    stage.clock.advance(0.89)
    assert 42 <= len(stage.silences) <= 45
    assert stage.silences[0] >= 61


def test_start_again_forgets_a_burst_too(stage: Stage) -> None:
    stage.filler.start()
    for _ in range(500):
        stage.frame()
    stage.filler.stop()
    stage.filler.start()
    stage.clock.advance(1)
    assert 42 <= len(stage.silences) <= 45


def test_start_while_it_runs_arms_no_second_timer(stage: Stage) -> None:
    stage.filler.start()
    stage.filler.start()
    assert stage.clock.armed == 1


def test_stop_without_a_start_does_nothing(stage: Stage) -> None:
    stage.filler.stop()
    assert stage.clock.armed == 0


@pytest.mark.parametrize("turns", [4, 8, 12, 50])
def test_frames_read_after_a_stall_of_the_loop_need_no_silence(stage: Stage, turns: int) -> None:
    """uvloop calls timers first, and then reads what came while it stood still."""
    stage.filler.start()
    stage.talk(50)
    stage.clock.stall(turns * PTIME_S)
    stage.clock.advance(0)
    for _ in range(turns):
        stage.frame()
    stage.talk(50)
    assert stage.silences == []


def test_stall_of_the_loop_in_which_nothing_came_is_filled(stage: Stage) -> None:
    stage.filler.start()
    stage.talk(50)
    stage.clock.stall(1)
    stage.clock.advance(0.2)
    assert len(stage.silences) >= 42
    assert -8 <= stage.ahead < -4


@pytest.mark.parametrize("turns", [4, 8, 12, 50])
def test_frames_read_after_a_stall_that_follows_a_pause_need_no_more_silence(
    stage: Stage, turns: int
) -> None:
    stage.filler.start()
    stage.talk(50)
    stage.clock.advance(1)
    stage.talk(50)
    silences = len(stage.silences)
    stage.clock.stall(turns * PTIME_S)
    stage.clock.advance(0)
    for _ in range(turns):
        stage.frame()
    stage.talk(50)
    assert len(stage.silences) <= silences + 1  # one may be due still since the pause


# --- For a listener that answers ------------------------------------------------------------------


@pytest.mark.parametrize("pause_ms", range(100, 130, 7))
@pytest.mark.parametrize("talk", [1, 53])
def test_steady_silence_never_comes_at_once_in_pauses_of_any_phase(
    clock: FakeLoop, pause_ms: int, talk: int
) -> None:
    stage = Stage(clock, steady=True)
    stage.filler.start()
    for _ in range(20):
        stage.talk(talk)
        began = stage.elapsed_s
        stage.clock.advance(1 + pause_ms / 1000)
        in_pause = [at for at in stage.silences if at > began]
        assert 0.05 <= in_pause[0] - began <= 0.22
        assert len(in_pause) >= (stage.elapsed_s - in_pause[0]) / PTIME_S - 1
    gaps = [
        after - before for before, after in zip(stage.silences, stage.silences[1:], strict=False)
    ]
    assert min(gaps) >= PTIME_S - 0.001


def test_steady_silence_comes_50_times_a_second_though_each_tick_is_late(
    clock: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_later = clock.call_later
    monkeypatch.setattr(clock, "call_later", lambda wait, *rest: call_later(wait + 0.003, *rest))
    stage = Stage(clock, steady=True)
    stage.filler.start()
    stage.clock.advance(1)
    before = len(stage.silences)
    stage.clock.advance(20)
    assert len(stage.silences) - before == pytest.approx(1000, abs=2)
