"""Two legs' frames in pairs, by clocks that the test owns."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.link.messages import LegPart
from audiofork.relay.pairing import PATIENCE_FRAMES, WINDOW_PAIRS, Pairing

IN, OUT = LegPart.IN, LegPart.OUT
SILENCE = b"-"
TICK_US = 20_000


class Stage:
    """A pairing whose legs are there, and the pairs that it emits."""

    def __init__(self, *there: LegPart) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.pairing = Pairing(
            lambda side_in, side_out: self.pairs.append((side_in, side_out)), SILENCE
        )
        for part in there:
            self.pairing.attach(part)

    def put(self, *frames: str) -> None:
        """Put frames that are named by their part and tick: `i7` is one of in, `o7` one of out."""
        for frame in frames:
            self.pairing.put(IN if frame.startswith("i") else OUT, frame.encode())

    def ticks(self, first: int, end: int, parts: str = "io", *, without: str = "") -> None:
        """Let ticks pass, at each of which each part brings a frame, but for those named."""
        frames = (f"{part}{n}" for n in range(first, end) for part in parts)
        self.put(*(frame for frame in frames if frame not in without.split()))

    def take(self) -> list[str]:
        """Return what was handed out since, like `i7 o7`; a dash is silence."""
        taken = [f"{side_in.decode()} {side_out.decode()}" for side_in, side_out in self.pairs]
        self.pairs.clear()
        return taken


def pairs(first: int, end: int, later: int = 0) -> list[str]:
    """Return the pairs of frames of in and of frames of out that are later by so many ticks."""
    return [f"i{n} o{n + later}" for n in range(first, end)]


@pytest.fixture
def stage() -> Stage:
    return Stage(IN, OUT)


# --- Pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["io", "oi"])
def test_frames_of_a_tick_are_handed_out_as_soon_as_both_are_there(
    stage: Stage, order: str
) -> None:
    for n in range(3):
        stage.put(f"{order[0]}{n}")
        assert stage.take() == []
        stage.put(f"{order[1]}{n}")
        assert stage.take() == pairs(n, n + 1)


def test_pair_is_in_and_out_whichever_comes_first(stage: Stage) -> None:
    stage.put("i0", "o0", "o1", "i1", "i2", "i3", "o2", "o3")
    assert stage.take() == pairs(0, 4)


def test_part_that_is_not_there_is_filled_at_once() -> None:
    stage = Stage(OUT)
    stage.put("o0")
    assert stage.take() == ["- o0"]
    stage.put("o1")
    assert stage.take() == ["- o1"]


def test_flush_hands_out_what_waits_with_silence(stage: Stage) -> None:
    stage.put("i0", "o0", "i1", "i2", "i3")
    assert stage.take() == pairs(0, 1)
    stage.pairing.flush()
    assert stage.take() == ["i1 -", "i2 -", "i3 -"]
    stage.pairing.flush()
    assert stage.take() == []
    stage.put("i4", "o4")
    assert stage.take() == pairs(4, 5)


def test_detach_hands_out_what_waited_for_the_leg_and_waits_no_more(stage: Stage) -> None:
    stage.put("i0", "o0", "i1", "i2")
    assert stage.take() == pairs(0, 1)
    stage.pairing.detach(OUT)
    assert stage.take() == ["i1 -", "i2 -"]
    stage.put("i3")
    assert stage.take() == ["i3 -"]


def test_detach_leaves_the_frames_of_the_leg_to_the_other_one(stage: Stage) -> None:
    stage.put("i0", "o0", "i1", "i2")
    assert stage.take() == pairs(0, 1)
    stage.pairing.detach(IN)
    assert stage.take() == []
    stage.put("o1", "o2", "o3")
    assert stage.take() == ["i1 o1", "i2 o2", "- o3"]


def test_detach_of_both_leaves_nothing_waiting(stage: Stage) -> None:
    stage.put("i0", "o0", "i1")
    stage.pairing.detach(IN)
    stage.pairing.detach(OUT)
    assert stage.take() == ["i0 o0", "i1 -"]


# --- Frames that come at once --------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([IN, OUT]), st.integers(1, 12)), max_size=40))
def test_frames_that_come_at_once_make_the_same_pairs_as_one_by_one(
    heaps: list[tuple[LegPart, int]],
) -> None:
    singly, at_once = Stage(IN, OUT), Stage(IN, OUT)
    for stage in (singly, at_once):
        stage.put("i-1", "o-1")
        stage.pairing.expect_batches(5)
    for n, (part, count) in enumerate(heaps):
        frames = [f"{part.value[0]}{n}.{place}" for place in range(count)]
        singly.put(*frames)
        at_once.pairing.put_batch(part, [frame.encode() for frame in frames])
        assert at_once.pairing.waiting == singly.pairing.waiting
        for stage in (singly, at_once):
            stage.pairing.watch()
    assert at_once.take() == singly.take()


def test_pairs_that_are_complete_at_once_are_emitted_together(stage: Stage) -> None:
    emitted: list[tuple[list[bytes], list[bytes]]] = []
    stage.pairing.emit_batch = lambda sides_in, sides_out: emitted.append((sides_in, sides_out))
    stage.put("i0", "o0")
    stage.pairing.put_batch(OUT, [b"o1", b"o2"])
    stage.pairing.put_batch(IN, [b"i1", b"i2", b"i3"])
    stage.pairing.put_batch(OUT, [b"o3"])
    assert emitted == [([b"i1", b"i2"], [b"o1", b"o2"]), ([b"i3"], [b"o3"])]
    assert stage.take() == pairs(0, 1)


# --- Legs that come later, or bring nothing ------------------------------------------------------


@pytest.mark.parametrize("silent_ticks", [0, 1, 2, 5, 60])
def test_leg_that_comes_later_is_aligned_from_its_first_frame_on(silent_ticks: int) -> None:
    """However long it takes from its connection to its first frame."""
    stage = Stage(OUT)
    stage.ticks(0, 100, "o")
    stage.pairing.attach(IN)
    first = 100 + silent_ticks
    stage.ticks(100, first, "o")
    assert len(stage.take()) >= first - 1  # no more than one waits
    stage.ticks(first, first + 200)
    assert stage.take() == pairs(first, first + 200, later=-1 if silent_ticks else 0)


def test_leg_in_place_of_a_lost_one_is_aligned_from_its_first_frame_on(stage: Stage) -> None:
    stage.ticks(0, 100)
    stage.pairing.detach(OUT)
    assert stage.take() == pairs(0, 100)
    stage.ticks(100, 150, "i")
    assert stage.take() == [f"i{n} -" for n in range(100, 150)]
    stage.pairing.attach(OUT)
    stage.ticks(150, 160, "i")
    assert stage.take() == [f"i{n} -" for n in range(150, 159)]
    stage.ticks(160, 360, "oi")
    assert stage.take() == pairs(159, 359, later=1)


def test_leg_that_falls_silent_is_waited_for_so_long_and_then_filled(stage: Stage) -> None:
    stage.ticks(0, 10)
    assert stage.take() == pairs(0, 10)
    stage.ticks(10, 10 + PATIENCE_FRAMES, "i")
    assert stage.take() == []
    for n in range(10, 60):
        stage.put(f"i{n + PATIENCE_FRAMES}")
        assert stage.take() == [f"i{n} -"]


def test_leg_that_was_silent_for_longer_is_aligned_after_a_window(stage: Stage) -> None:
    stage.ticks(0, 10)
    stage.ticks(10, 110, "i")
    stage.take()
    stage.ticks(110, 300, "oi")
    behind = pairs(85, 85 + WINDOW_PAIRS, later=25)
    silences = [f"i{n} -" for n in range(135, 159)]
    assert stage.take() == behind + silences + pairs(159, 299, later=1)


# --- Ticks that a clock misses -------------------------------------------------------------------


@pytest.mark.parametrize("missed", range(100, 152, 3))
def test_missed_tick_is_mended_after_a_window_by_one_silence(stage: Stage, missed: int) -> None:
    stage.ticks(0, missed)
    assert stage.take() == pairs(0, missed)
    stage.ticks(missed, 400, without=f"o{missed}")
    end = missed + WINDOW_PAIRS
    assert stage.take() == [*pairs(missed, end, later=1), f"i{end} -", *pairs(end + 1, 400)]


def test_missed_tick_of_the_part_that_comes_first_just_turns_the_order(stage: Stage) -> None:
    """The frames are no frame apart by that; after the next one they would be."""
    stage.ticks(0, 200, without="i100")
    assert stage.take() == pairs(0, 100) + pairs(101, 200, later=-1)
    stage.ticks(200, 400, without="i200")
    mended = [*pairs(201, 201 + WINDOW_PAIRS, later=-2), "- o249"]
    assert stage.take() == mended + pairs(251, 400, later=-1)


def test_ticks_missed_at_once_are_mended_together(stage: Stage) -> None:
    stage.ticks(0, 400, without="o100 o101 o102 o103")
    assert stage.take() == [
        *pairs(0, 100),
        *pairs(100, 150, later=4),
        *("i150 -", "i151 -", "i152 -", "i153 -"),
        *pairs(154, 400),
    ]


def test_tick_that_both_miss_needs_no_silence(stage: Stage) -> None:
    stage.ticks(0, 300, without="i100 o100")
    assert stage.take() == pairs(0, 100) + pairs(101, 300)


def test_missed_tick_is_not_mended_twice_when_the_leg_comes_anew(stage: Stage) -> None:
    stage.ticks(0, 145, without="o100")
    stage.take()
    stage.pairing.detach(OUT)
    stage.pairing.attach(OUT)
    stage.take()
    stage.ticks(145, 400)
    assert stage.take() == pairs(145, 400)


# --- Jitter --------------------------------------------------------------------------------------


@dataclass
class Leg:
    """The frames of a leg as they are made and as they come; each frame is named by its time.

    Attributes:
        made_us: When each frame was made.
        jitter_us: How much later a frame may come, from the second second on.
        stalls: Between which ticks the network holds frames back, to deliver them at once.
    """

    part: LegPart
    made_us: list[int]
    jitter_us: int = 0
    stalls: Collection[tuple[int, int]] = field(default=())

    def deliveries(self, rng: random.Random) -> Iterable[tuple[float, LegPart, bytes]]:
        """Yield when each frame comes, in the order in which they are made."""
        stalls = deque(self.stalls)
        held_until_us = latest_us = 0.0
        for made_us in self.made_us:
            if stalls and made_us >= stalls[0][0] * TICK_US:
                held_until_us = stalls.popleft()[1] * TICK_US - 1
            at_us = made_us + (rng.random() * self.jitter_us if made_us > 1_000_000 else 0)
            latest_us = max(latest_us, at_us, held_until_us)
            yield latest_us, self.part, b"%d" % made_us


def clock(ticks: int, phase_us: int, drift: float = 0.0, missed: Collection[int] = ()) -> list[int]:
    """Return when a clock makes frames, in so many ticks of a true one; `missed` are those too."""
    period_us = TICK_US * (1 + drift)
    times = (phase_us + int(n * period_us) for n in range(int(ticks / (1 + drift))))
    return [time for time in times if time // TICK_US not in missed]


def joined(*legs: Leg, seed: int = 1) -> list[tuple[int | None, int | None]]:
    """Join two legs; return the times at which what is handed out was made, None for silence."""
    rng = random.Random(seed)
    stage = Stage(*(leg.part for leg in legs))
    came = sorted((one for leg in legs for one in leg.deliveries(rng)), key=itemgetter(0))
    for _, part, frame in came:
        stage.pairing.put(part, frame)
    assert len(stage.pairing._waiting) <= 1 + max(leg.jitter_us for leg in legs) // TICK_US
    stage.pairing.flush()
    times = {frame: int(frame) for _, _, frame in came}
    return [(times.get(side_in), times.get(side_out)) for side_in, side_out in stage.pairs]


@pytest.mark.parametrize("phase_us", [0, 1, 5_000, 10_000, 15_000, 19_999])
@pytest.mark.parametrize("jitter_us", [0, 15_000, 60_000])
def test_jitter_causes_no_silence(phase_us: int, jitter_us: int) -> None:
    made_in, made_out = clock(3000, 0), clock(3000, phase_us)
    got = joined(Leg(IN, made_in, jitter_us), Leg(OUT, made_out, jitter_us))
    assert got == list(zip(made_in, made_out, strict=True))


@pytest.mark.parametrize("held", [2, 10, PATIENCE_FRAMES])
@pytest.mark.parametrize("part", [IN, OUT])
@pytest.mark.parametrize("phase_us", [0, 7_000, 19_000])
def test_frames_that_come_late_and_at_once_cause_no_silence(
    part: LegPart, held: int, phase_us: int
) -> None:
    made = {IN: clock(3000, 0), OUT: clock(3000, phase_us)}
    stalls = [(begin, begin + held) for begin in range(100, 2900, held + 7)]
    legs = (Leg(one, made[one], stalls=stalls if one is part else ()) for one in (IN, OUT))
    assert joined(*legs) == list(zip(made[IN], made[OUT], strict=True))


def test_stall_of_both_legs_that_ends_with_all_of_one_first_causes_no_silence(
    stage: Stage,
) -> None:
    """As when we ourselves were held up: each leg is read as a whole."""
    end = 100 + PATIENCE_FRAMES
    stage.ticks(0, 100)
    stage.ticks(100, end, "i")
    stage.ticks(100, end, "o")
    stage.ticks(end, 300)
    assert stage.take() == pairs(0, 300)


# --- Clocks that drift ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("slow", [IN, OUT])
def test_slow_clock_is_given_a_silence_for_each_frame_that_it_falls_behind(slow: LegPart) -> None:
    true, late = clock(30_000, 0), clock(30_000, 5_000, drift=0.0002)
    made = {IN: late, OUT: true} if slow is IN else {IN: true, OUT: late}
    got = joined(Leg(IN, made[IN], 5_000), Leg(OUT, made[OUT], 5_000))
    place = 0 if slow is IN else 1
    assert [pair[1 - place] for pair in got] == true
    assert [time for pair in got if (time := pair[place]) is not None] == late
    assert len(true) - len(late) == 6 == sum(pair[place] is None for pair in got)
    assert all(abs(a - b) < 30_000 for a, b in got if a is not None and b is not None)


# --- A long call --------------------------------------------------------------------------------

TICKS = 60_000


class LongCall:
    """What befalls two legs in 20 minutes: each event a second or more after the one before.

    Attributes:
        missed: Ticks that a part misses: single ones, and now and then seven at once.
        stalls: Frames of a part that are held back.
        unsettled: Ticks that were missed or within a window after that.
    """

    def __init__(self, rng: random.Random) -> None:
        self.missed: dict[LegPart, set[int]] = {IN: set(), OUT: set()}
        self.stalls: dict[LegPart, list[tuple[int, int]]] = {IN: [], OUT: []}
        self.unsettled: set[int] = set()
        tick = 100
        while tick < TICKS - 200:
            part = rng.choice((IN, OUT))
            if rng.random() < 0.3:
                end = tick + rng.randrange(2, PATIENCE_FRAMES)
                self.stalls[part].append((tick, end))
            else:
                end = tick + (7 if len(self.unsettled) // TICK_US % 2 else 1)
                self.missed[part].update(range(tick, end))
                self.unsettled.update(range(tick, end + WINDOW_PAIRS + 2))
            tick = end + WINDOW_PAIRS + 5 + round(rng.expovariate(1 / 700))


def expected_silences(
    missed: dict[LegPart, set[int]], apart_us: float, drift: float
) -> dict[LegPart, int]:
    """Return how many each part needs that frames of in and out are less than 20 ms apart.

    Args:
        apart_us: How much later a frame of out is than that of in.
    """
    silences = {IN: 0, OUT: 0}
    before = 0
    for tick in sorted((missed[IN] ^ missed[OUT]) | {TICKS}):
        apart_us += drift * TICK_US * (tick - before)
        before = tick
        if tick < TICKS:
            apart_us += TICK_US if tick in missed[OUT] else -TICK_US
        while abs(apart_us) >= TICK_US:
            late = OUT if apart_us > 0 else IN
            silences[late] += 1
            apart_us -= TICK_US if late is OUT else -TICK_US
    silences[IN] += apart_us < 0  # in place of the last frame, which has yet to come
    return silences


@pytest.mark.slow
@pytest.mark.parametrize(("drift", "seed"), [(0.0, 1), (0.0002, 2), (-0.0002, 3)])
def test_in_20_minutes_two_legs_lose_nothing_and_stay_together(drift: float, seed: int) -> None:
    rng = random.Random(seed)
    call = LongCall(rng)
    phase_us, jitter_us = rng.randrange(5_000, 15_000), 3_000
    made_in = clock(TICKS, 0, missed=call.missed[IN])
    made_out = clock(TICKS, phase_us, drift, call.missed[OUT])
    got = joined(
        Leg(IN, made_in, jitter_us, call.stalls[IN]),
        Leg(OUT, made_out, jitter_us, call.stalls[OUT]),
        seed=seed,
    )
    assert [side_in for side_in, _ in got if side_in is not None] == made_in
    assert [side_out for _, side_out in got if side_out is not None] == made_out
    silences = {
        IN: sum(side_in is None for side_in, _ in got),
        OUT: sum(side_out is None for _, side_out in got),
    }
    expected = expected_silences(call.missed, phase_us, drift)
    if drift:  # by when a clock has slipped a frame, jitter decides
        assert all(abs(silences[part] - expected[part]) <= 8 for part in (IN, OUT))
    else:
        assert silences == expected
    drifted_us = abs(drift) * TICK_US * WINDOW_PAIRS
    for side_in, side_out in got:
        if side_in is None or side_out is None:
            continue
        if max(side_in, side_out) // TICK_US not in call.unsettled:
            assert abs(side_in - side_out) < TICK_US + jitter_us + drifted_us


# --- Whatever happens ----------------------------------------------------------------------------

parts = st.sampled_from([IN, OUT])
happenings = st.one_of(
    st.tuples(st.just("put"), parts, st.integers(1, 60)),
    st.tuples(st.sampled_from(["attach", "detach", "flush"]), parts, st.just(1)),
)


@given(st.lists(happenings, max_size=60))
def test_no_frame_is_lost_doubled_or_out_of_order(events: list[tuple[str, LegPart, int]]) -> None:
    stage = Stage()
    there: set[LegPart] = set()
    put: dict[LegPart, list[bytes]] = {IN: [], OUT: []}
    for what, part, count in events:
        if what == "flush":
            stage.pairing.flush()
        elif what == "attach":
            there.add(part)
            stage.pairing.attach(part)
        elif what == "detach":
            there.discard(part)
            stage.pairing.detach(part)
        elif part in there:
            for _ in range(count):
                put[part].append(f"{part}{len(put[part])}".encode())
                stage.pairing.put(part, put[part][-1])
        assert len(stage.pairing._waiting) <= (PATIENCE_FRAMES if there else 0)
    stage.pairing.flush()
    assert (SILENCE, SILENCE) not in stage.pairs
    for place, part in enumerate((IN, OUT)):
        assert [pair[place] for pair in stage.pairs if pair[place] != SILENCE] == put[part]
