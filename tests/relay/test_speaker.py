"""What is written to a leg and when, on a clock that the test owns."""

from __future__ import annotations

import audioop
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from audiofork.link.messages import Beeps, Direction, LegPart, Voice
from audiofork.relay.beep import tone
from audiofork.relay.formats.base import Audio, Event, Mark
from audiofork.relay.pacer import Pacer
from audiofork.relay.speaker import Speaker
from tests.relay.peers import FakeLoop, numbered
from tests.relay.pipeline_stage import IN, OUT, FakeLeg, spec_of

SILENCE = bytes(320)
WHISPER = Voice((IN,))
STEADY = Voice((IN,), steady=True)


class TimedLeg(FakeLeg):
    """Keeps when it was spoken to, in ms since it was made."""

    def __init__(self, spoken_rate: int, clock: FakeLoop) -> None:
        super().__init__(spoken_rate)
        self._clock = clock
        self._began = clock.time()
        self.times: list[int] = []

    def speak(self, frame: bytes) -> bool:
        self.times.append(round((self._clock.time() - self._began) * 1000))
        return super().speak(frame)


class Stage:
    """A speaker with its leg."""

    def __init__(self, clock: FakeLoop, voice: Voice | None, rate: int, **beeps: Any) -> None:
        spec = spec_of(Direction.IN, voice=voice, sample_rate=rate, beeps=Beeps(**beeps))
        self.clock = clock
        self.told: list[Event] = []
        self.speaker = Speaker(spec, Pacer(), self.told.append)
        self.leg = TimedLeg(rate, clock)
        self.heard: list[float] = []  # when the end of a tone was told

    def then(self) -> None:
        self.heard.append(self.clock.time())

    def put(self, *frames: bytes, rate: int = 8000) -> None:
        for frame in frames:
            self.speaker.put(Audio(frame, rate))

    @property
    def said(self) -> list[bytes]:
        """What was spoken but for silence."""
        return [frame for frame in self.leg.spoken if any(frame)]


@pytest.fixture
def stage_of(clock: FakeLoop) -> Callable[..., Stage]:
    """Make speakers whose leg is attached."""

    def make(voice: Voice | None, rate: int = 8000, **beeps: Any) -> Stage:
        stage = Stage(clock, voice, rate, **beeps)
        stage.speaker.attach(IN, stage.leg)
        return stage

    return make


StageOf = Callable[..., Stage]
ONE_TO_9 = numbered(9, 1)


# --- A whisper ------------------------------------------------------------------------------------


def test_whisper_is_written_only_while_there_is_speech(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER)
    clock.advance(1.003)
    assert (stage.leg.spoken, clock.armed) == ([], 0)
    stage.put(b"".join(ONE_TO_9))
    clock.advance(1)
    assert stage.leg.spoken == ONE_TO_9
    assert stage.leg.times == [1044 + 20 * n for n in range(9)]
    assert clock.armed == 0


def test_whisper_in_real_time_is_one_frame_behind(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER)
    clock.advance(0.006)
    for frame in numbered(500, 1):
        stage.put(frame)
        clock.advance(0.02)
    clock.advance(1)
    assert stage.leg.spoken == numbered(500, 1)
    assert stage.leg.times == [26 + 20 * n for n in range(500)]
    assert stage.speaker.counts.underruns == 0


def test_each_spurt_begins_when_it_is_due(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER)
    for at_ms in 7, 509, 1001:
        clock.advance(at_ms / 1000 - (clock.time() - 1000))
        stage.put(SILENCE)
    clock.advance(1)
    assert stage.leg.times == [26, 528, 1020]


# --- A steady leg ---------------------------------------------------------------------------------


def test_steady_leg_gets_a_frame_every_20_ms_while_it_is_attached(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(STEADY)
    clock.advance(59.99)
    assert stage.leg.spoken == [SILENCE] * 3000
    assert len({id(frame) for frame in stage.leg.spoken}) == 1
    assert stage.leg.times == [stage.leg.times[0] + 20 * n for n in range(3000)]
    assert stage.speaker.counts.played == 0
    stage.speaker.detach(IN)
    assert clock.armed == 0


@pytest.mark.parametrize("at_ms", range(200, 221))
def test_steady_leg_begins_a_spurt_when_it_is_due(
    stage_of: StageOf, clock: FakeLoop, at_ms: int
) -> None:
    stage = stage_of(STEADY)
    clock.advance(at_ms / 1000)
    stage.put(*ONE_TO_9)
    clock.advance(1)
    first = stage.leg.spoken.index(ONE_TO_9[0])
    assert stage.leg.times[first] - at_ms in (19, 20)
    assert stage.leg.spoken[first : first + 9] == ONE_TO_9
    gaps = [b - a for a, b in zip(stage.leg.times, stage.leg.times[1:], strict=False)]
    assert 20 <= gaps[first - 1] < 40
    assert gaps[first + 8] == 36  # one more frame could have come
    assert set(gaps[: first - 1] + gaps[first : first + 8] + gaps[first + 9 :]) == {20}


def test_steady_leg_is_silent_at_once_after_a_clear(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(STEADY)
    stage.put(b"\1" * 160_000)
    clock.advance(2)
    assert stage.speaker.playout is not None
    stage.speaker.playout.clear()
    count = len(stage.leg.spoken)
    clock.advance(1)
    assert stage.leg.spoken[count:] == [SILENCE] * 50


# --- A server that sends in real time, silence too ------------------------------------------------


class RealTime:
    """A server that sends words of 8 frames, 4 of silence between them, and 40 every 12 s.

    Args:
        stalls: When, and for how long, in seconds, nothing of it comes.
        ahead: How many frames it sends at once at the beginning, and is ahead by from then on.
        at_once: How many frames it sends together, once they are all there.
        silence: A frame of its pauses.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        stalls: Sequence[tuple[float, float]] = (),
        ahead: int = 0,
        at_once: int = 1,
        silence: bytes = SILENCE,
    ) -> None:
        self.stage = stage
        self.stalls = stalls
        self.ahead = ahead
        self.at_once = at_once
        self.silence = silence

    def frame(self, number: int) -> bytes:
        return numbered(1, number)[0] if speaks(number) else self.silence

    def comes_at(self, number: int) -> float:
        """Return after how many seconds a frame comes."""
        together = number - number % self.at_once + self.at_once - 1
        at = max(0, together - self.ahead) * 0.02
        return max(
            [at, *(begin + length for begin, length in self.stalls if begin <= at < begin + length)]
        )

    def run(self, seconds: int) -> list[int]:
        """Let it speak; return by how many ms each frame with sound was later than the first."""
        clock, leg = self.stage.clock, self.stage.leg
        clock.advance(0.005)
        began = clock.time()
        for number in range(seconds * 50):
            clock.call_at(began + self.comes_at(number), self.stage.put, self.frame(number))
        clock.advance(seconds + 1)
        spoken = zip(leg.times, leg.spoken, strict=True)
        heard = [(at, frame) for at, frame in spoken if any(frame) and frame != self.silence]
        sent = [number for number in range(seconds * 50) if speaks(number)]
        assert [frame for _, frame in heard] == [self.frame(number) for number in sent]
        counts = self.stage.speaker.counts
        assert (counts.played, counts.unplayed) == (seconds * 50, 0)
        began_ms = heard[0][0]
        return [at - began_ms - 20 * n for (at, _), n in zip(heard, sent, strict=True)]


def speaks(number: int) -> bool:
    return number % 12 < 8 and number % 600 < 560


ALAW_SILENCE = audioop.alaw2lin(b"\xd5" * 160, 2)


@pytest.mark.parametrize("stall_ms", [57, 113])
@pytest.mark.parametrize("silence", [SILENCE, ALAW_SILENCE], ids=["zeros", "alaw"])
def test_delay_that_was_of_no_use_lately_ends_after_a_pause(
    stage_of: StageOf, clock: FakeLoop, stall_ms: int, silence: bytes
) -> None:
    stage = stage_of(STEADY)
    late = RealTime(stage, stalls=[(2.003, stall_ms / 1000)], silence=silence).run(40)
    assert max(late[:60]) == 0
    assert min(late[100:350]) >= stall_ms - 23  # there is no pause before
    assert late[-300:] == pytest.approx([0] * 300, abs=4)
    assert stage.speaker.counts.underruns == 1


@pytest.mark.parametrize("voice", [STEADY, WHISPER], ids=["steady", "whisper"])
@pytest.mark.parametrize("late_ms", range(20, 36))
def test_frame_that_is_a_little_late_for_its_turn_is_played_when_it_comes(
    stage_of: StageOf, clock: FakeLoop, voice: Voice, late_ms: int
) -> None:
    stage = stage_of(voice)
    clock.advance(0.5005)  # so that no frame comes at the very moment of a turn
    for frame in ONE_TO_9[:3]:
        stage.put(frame)
        clock.advance(0.02)
    clock.advance(late_ms / 1000)
    came = clock.time() - stage.leg._began
    for frame in ONE_TO_9[3:]:
        stage.put(frame)
        clock.advance(0.02)
    clock.advance(0.5)
    first = stage.leg.spoken.index(ONE_TO_9[0])
    assert stage.leg.spoken[first : first + 9] == ONE_TO_9  # no silence between
    times = stage.leg.times[first : first + 9]
    assert times[3] - 1000 * came <= 22
    late = max(0, times[3] - times[2] - 20)
    assert late <= max(0, late_ms - 18)
    assert [b - a for a, b in itertools.pairwise(times[3:])] == [20] * 5
    assert stage.speaker.counts.underruns == (late > 0)


@pytest.mark.parametrize("late_ms", [60, 150])
def test_steady_leg_is_never_without_a_packet_for_40_ms(
    stage_of: StageOf, clock: FakeLoop, late_ms: int
) -> None:
    stage = stage_of(STEADY)
    RealTime(stage, stalls=[(at + 0.003, late_ms / 1000) for at in range(1, 10)]).run(12)
    assert max(b - a for a, b in itertools.pairwise(stage.leg.times)) < 40


def test_frame_that_is_late_while_a_tone_sounds_waits_for_the_next_turn(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(STEADY)
    clock.advance(0.5)
    stage.speaker.beep(stage.then)
    stage.put(ONE_TO_9[0])
    clock.advance(0.046)
    stage.put(ONE_TO_9[1])
    clock.advance(1)
    gaps = {b - a for a, b in itertools.pairwise(stage.leg.times)}
    assert gaps == {20}


def test_clear_while_a_frame_is_late_ends_the_spurt(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER)
    stage.put(ONE_TO_9[0])
    clock.advance(0.045)
    playout = stage.speaker.playout
    assert playout is not None
    assert playout.is_late
    playout.clear()
    stage.put(ONE_TO_9[1])
    assert playout.begins_at == pytest.approx(clock.time() + 0.02)
    clock.advance(1)
    assert stage.leg.spoken == ONE_TO_9[:2]


def test_delay_of_less_than_a_frame_ends_after_a_pause(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(STEADY)
    late = RealTime(stage, stalls=[(0, 0.012)]).run(40)
    assert late[-300:] == pytest.approx([-12] * 300, abs=4)
    assert stage.speaker.counts.underruns == 0


@pytest.mark.parametrize(("every_s", "underruns"), [(1, 1), (4, 5)])
def test_delay_that_is_of_use_again_and_again_is_kept_between_pauses(
    stage_of: StageOf, clock: FakeLoop, every_s: int, underruns: int
) -> None:
    stage = stage_of(STEADY)
    RealTime(stage, stalls=[(at + 0.003, 0.08) for at in range(1, 60, every_s)]).run(60)
    assert stage.speaker.counts.underruns <= underruns


def test_long_lead_of_a_server_is_meant(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(STEADY)
    late = RealTime(stage, ahead=12, stalls=[(20.003, 0.1), (45.003, 0.2)]).run(60)
    assert set(late) == {0}
    assert stage.speaker.counts.underruns == 0


@pytest.mark.parametrize("at_once", [2, 3, 5, 10])
def test_speech_in_bursts_keeps_its_rhythm(
    stage_of: StageOf, clock: FakeLoop, at_once: int
) -> None:
    stage = stage_of(STEADY)
    late = RealTime(stage, at_once=at_once).run(60)
    assert set(late) == {0}
    assert stage.speaker.counts.underruns == 0


# --- Marks ----------------------------------------------------------------------------------------


def test_mark_is_told_after_the_write_of_its_frame(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER)
    assert stage.speaker.playout is not None
    written: list[int] = []
    stage.speaker.playout._tell = lambda _: written.append(len(stage.leg.spoken))
    for frame in ONE_TO_9[:3]:
        stage.put(frame)
        stage.speaker.playout.mark("")
    clock.advance(1)
    assert written == [1, 2, 3]


# --- Legs that come and go ------------------------------------------------------------------------


def test_what_waits_is_played_over_the_leg_that_replaces_a_lost_one(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(WHISPER)
    stage.put(*ONE_TO_9)
    clock.advance(0.05)
    assert len(stage.leg.spoken) == 2
    stage.speaker.detach(IN)
    assert clock.armed == 0
    clock.advance(5)
    stage.speaker.attach(IN, stage.leg)
    clock.advance(1)
    assert stage.leg.spoken == ONE_TO_9
    assert (stage.speaker.counts.played, stage.speaker.counts.unplayed) == (9, 0)


def test_what_comes_before_the_leg_waits_for_it(clock: FakeLoop) -> None:
    stage = Stage(clock, WHISPER, 8000)
    stage.put(*ONE_TO_9)
    clock.advance(5)
    stage.speaker.attach(IN, stage.leg)
    clock.advance(1)
    assert stage.leg.spoken == ONE_TO_9


def test_wide_leg_is_not_spoken_to_before_its_kind_is_known(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(WHISPER, 16_000)
    stage.leg.spoken_rate = 0
    stage.put(bytes(640), rate=16_000)
    clock.advance(1)
    assert stage.leg.spoken == []
    stage.leg.spoken_rate = 16_000
    clock.advance(0.1)
    assert stage.leg.spoken == [bytes(640)]


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_steady_leg_that_has_brought_nothing_is_spoken_to(
    stage_of: StageOf, clock: FakeLoop, rate: int
) -> None:
    stage = stage_of(STEADY, rate)
    stage.leg.spoken_rate = 0
    clock.advance(0.09)
    assert stage.leg.spoken == [bytes(rate // 25)] * 5


def test_wide_leg_that_asterisk_takes_for_8000_hz_is_spoken_to_at_that(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(WHISPER, 16_000)
    stage.leg.spoken_rate = 8000
    stage.put(b"\1\1" * 16_000, rate=16_000)
    clock.advance(2)
    assert {len(frame) for frame in stage.leg.spoken} == {320}
    assert 50 <= len(stage.leg.spoken) <= 51


def test_frames_for_a_leg_that_takes_none_count_as_unplayed(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(WHISPER)
    stage.put(*ONE_TO_9)
    clock.advance(0.09)
    stage.leg.is_full = True
    clock.advance(1)
    assert (stage.speaker.counts.played, stage.speaker.counts.unplayed) == (4, 5)


# --- Two legs -------------------------------------------------------------------------------------


class TwoLegs:
    """A speaker of a fork with two legs, both attached."""

    def __init__(self, clock: FakeLoop, *voice: LegPart) -> None:
        spec = spec_of(
            Direction.STEREO, legs=(IN, OUT), voice=Voice(voice), beeps=Beeps(at_start=True)
        )
        self.speaker = Speaker(spec, Pacer(), lambda _: None)
        self.legs = {part: TimedLeg(8000, clock) for part in (IN, OUT)}
        for part, leg in self.legs.items():
            self.speaker.attach(part, leg)

    def put(self, *frames: bytes) -> None:
        for frame in frames:
            self.speaker.put(Audio(frame, 8000))

    @property
    def said(self) -> tuple[list[bytes], list[bytes]]:
        return self.legs[IN].spoken, self.legs[OUT].spoken


def test_voice_of_two_legs_goes_over_each_and_counts_once(clock: FakeLoop) -> None:
    two = TwoLegs(clock, IN, OUT)
    two.put(*ONE_TO_9)
    clock.advance(1)
    assert two.said == (ONE_TO_9, ONE_TO_9)
    assert two.speaker.counts.played == 9
    assert clock.armed == 0


def test_voice_goes_on_over_the_other_leg_when_one_is_lost(clock: FakeLoop) -> None:
    two = TwoLegs(clock, IN, OUT)
    two.put(*ONE_TO_9)
    clock.advance(0.05)
    two.speaker.detach(IN)
    clock.advance(1)
    assert two.said == (ONE_TO_9[:2], ONE_TO_9)
    assert two.speaker.counts.unplayed == 0


def test_voice_waits_for_its_own_leg_while_another_is_attached(clock: FakeLoop) -> None:
    two = TwoLegs(clock, OUT)
    two.put(*ONE_TO_9)
    clock.advance(0.05)
    two.speaker.detach(OUT)
    two.speaker.beeper.begin()
    clock.advance(5)
    assert two.said == (tone(8000), ONE_TO_9[:2])
    two.speaker.attach(OUT, two.legs[OUT])
    clock.advance(1)
    assert two.said == (tone(8000), ONE_TO_9)
    assert (two.speaker.counts.played, clock.armed) == (9, 0)


@pytest.mark.parametrize("voice", [(OUT,), (IN, OUT)])
def test_tone_is_heard_over_the_first_leg_alone(
    clock: FakeLoop, voice: tuple[LegPart, ...]
) -> None:
    two = TwoLegs(clock, *voice)
    speech = numbered(10, 1)
    two.put(*speech)
    two.speaker.beeper.begin()
    clock.advance(1)
    first = two.said[0]
    assert two.said[1] == speech
    if IN in voice:
        mixed = [audioop.add(a, b, 2) for a, b in zip(tone(8000)[1:], speech, strict=False)]
        assert first == [tone(8000)[0], *mixed, *speech[len(mixed) :]]
    else:
        assert first == tone(8000)


# --- Tones ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", [None, WHISPER, STEADY])
def test_tone_is_written_a_frame_every_20_ms_and_not_counted(
    stage_of: StageOf, clock: FakeLoop, voice: Voice | None
) -> None:
    stage = stage_of(voice, at_start=True)
    stage.speaker.beeper.begin()
    clock.advance(0.3)
    assert stage.said == tone(8000)
    times = stage.leg.times
    assert times == [times[0] + 20 * n for n in range(len(times))]
    assert stage.speaker.counts.played == 0
    assert clock.armed == (voice is STEADY)


def test_tone_is_added_to_the_servers_audio(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER, at_start=True)
    speech = numbered(12, 1)
    stage.put(*speech)
    clock.advance(0.035)
    stage.speaker.beeper.begin()
    clock.advance(1)
    mixed = [audioop.add(a, b, 2) for a, b in zip(tone(8000), speech[1:], strict=False)]
    assert stage.leg.spoken == [speech[0], *mixed, speech[11]]
    assert stage.speaker.counts.played == 12


def test_spurt_within_a_tone_begins_when_the_leg_has_its_turn(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(WHISPER, at_start=True)
    stage.speaker.beeper.begin()
    clock.advance(0.105)
    stage.put(*ONE_TO_9)
    clock.advance(1)
    mixed = [audioop.add(a, b, 2) for a, b in zip(tone(8000)[7:], ONE_TO_9, strict=False)]
    assert stage.leg.spoken == [*tone(8000)[:7], *mixed, *ONE_TO_9[3:]]


def test_end_of_the_last_beep_is_told_after_the_tail(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(None)
    began = clock.time()
    stage.speaker.beep(stage.then)
    clock.advance(1)
    assert stage.leg.spoken == tone(8000)
    assert stage.heard == pytest.approx([began + 0.28], abs=0.003)
    assert clock.armed == 0


@pytest.mark.parametrize("after_s", [0.001, 0.07, 0.25])
def test_detach_silences_at_once_and_tells_no_end(
    stage_of: StageOf, clock: FakeLoop, after_s: float
) -> None:
    stage = stage_of(WHISPER, interval_s=15)
    stage.speaker.beeper.begin()
    stage.speaker.beep(stage.then)
    clock.advance(after_s)
    count = len(stage.leg.spoken)
    stage.speaker.detach(IN)
    clock.advance(60)
    assert (len(stage.leg.spoken), stage.heard, clock.armed) == (count, [], 0)


def test_tone_goes_on_at_the_rate_that_the_leg_turns_out_to_have(
    stage_of: StageOf, clock: FakeLoop
) -> None:
    stage = stage_of(None, 16_000, at_start=True)
    stage.speaker.beeper.begin()
    clock.advance(0.07)
    stage.leg.spoken_rate = 8000
    clock.advance(1)
    assert stage.leg.spoken == tone(16_000)[:4] + tone(8000)[4:]


def test_marks_are_told_while_a_tone_sounds(stage_of: StageOf, clock: FakeLoop) -> None:
    stage = stage_of(WHISPER, at_start=True)
    stage.put(ONE_TO_9[0])
    assert stage.speaker.playout is not None
    stage.speaker.playout.mark("a")
    stage.speaker.beeper.begin()
    clock.advance(0.1)
    assert stage.told == [Mark("a")]
