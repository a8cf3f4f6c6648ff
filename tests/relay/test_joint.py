"""A fork that moves goes on after the last frame that the first relay has sent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.relay.joint import MAX_KEPT, MAX_TAIL, KeptFrames, Tail
from tests.relay.peers import numbered

SILENCE = bytes(320)


def kept(frames: list[bytes]) -> KeptFrames:
    one = KeptFrames()
    for frame in frames:
        one.add(frame)
    return one


def looks(frames: list[bytes]) -> tuple[int, ...]:
    tail = Tail()
    for frame in frames:
        tail.add(frame)
    return tail.looks


def after(frames: KeptFrames, tail: tuple[int, ...]) -> tuple[list[bytes], int, bool]:
    """Return the frames after a tail, how many are still to come of it, and if it was found."""
    place = frames.place_after(tail)
    if place is None:
        return [], 0, False
    latest = [one.audio for one in frames.latest(max(0, place))]
    return latest, max(0, -place), True


def test_frames_after_those_that_were_sent_are_returned() -> None:
    frames = numbered(60)
    assert after(kept(frames[10:60]), looks(frames[:40])) == (frames[40:60], 0, True)


def test_frames_that_were_sent_and_are_still_to_come_are_counted() -> None:
    frames = numbered(60)
    assert after(kept(frames[10:38]), looks(frames[:40])) == ([], 2, True)


def test_frames_that_nobody_has_in_common_have_no_place() -> None:
    assert after(kept(numbered(30, 100)), looks(numbered(30))) == ([], 0, False)


def test_few_frames_alike_are_no_place() -> None:
    frames = numbered(60)
    assert not after(kept(frames[37:60]), looks(frames[:40]))[2]
    assert after(kept(frames[35:60]), looks(frames[:40]))[2]


def test_nothing_kept_or_nothing_told_has_no_place() -> None:
    assert after(kept([]), looks(numbered(9))) == ([], 0, False)
    assert after(kept(numbered(9)), ()) == ([], 0, False)


def test_of_silence_the_latest_frames_are_taken_for_the_same() -> None:
    assert after(kept([SILENCE] * 50), looks([SILENCE] * 70)) == ([], 0, True)


def test_speech_before_silence_tells_the_place() -> None:
    frames = [*numbered(20), *[SILENCE] * 20]
    assert after(kept(frames[10:38]), looks(frames[:35])) == (frames[35:38], 0, True)


@pytest.mark.parametrize("lost", [0, 1])
def test_silence_that_one_leg_has_among_its_frames_hides_no_place_behind_it(lost: int) -> None:
    """In place of a frame that came late there, or beside it."""
    frames = numbered(80)
    other = [*frames[10:40], SILENCE, *frames[40 + lost : 78]]
    assert after(kept(other), looks(frames[:70])) == (frames[70:78], 0, True)


def test_few_different_frames_behind_others_that_differ_are_no_place() -> None:
    speech = numbered(60)
    mine = [*speech[:30], *speech[30:34] * 5]
    other = [*speech[40:60], *speech[30:34] * 5]
    assert not after(kept(other), looks(mine))[2]


def test_only_so_many_are_told_and_kept() -> None:
    frames = numbered(MAX_KEPT + 7)
    assert len(looks(frames)) == MAX_TAIL
    one = kept(frames)
    assert (len(one), one.lost) == (MAX_KEPT, 7)


@pytest.mark.slow
@given(st.data())
def test_no_frame_is_lost_or_doubled_where_frames_differ(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    words = random.Random(seed)
    frames = [SILENCE if words.random() < 0.3 else words.randbytes(4) * 80 for _ in range(120)]
    sent = data.draw(st.integers(10, 100))
    begins = data.draw(st.integers(0, sent - 8))
    until = data.draw(st.integers(begins + 8, 120))
    rest, to_come, found = after(kept(frames[begins:until]), looks(frames[:sent]))
    alike = frames[begins : min(sent, until)]
    if all(frame == SILENCE for frame in alike):
        return
    assert found
    later = frames[until : until + 120]
    assert rest + later[to_come:] == frames[sent:]


def test_first_frames_of_the_second_leg_may_be_others() -> None:
    frames, odd = numbered(60), numbered(4, 100)
    assert after(kept([*odd[:3], *frames[13:60]]), looks(frames[:40])) == (frames[40:60], 0, True)
    silent = [*frames[:20], *[SILENCE] * 20]
    assert after(kept([*odd[:3], *silent[13:38]]), looks(silent)) == ([], 2, True)
    assert not after(kept([*odd, *silent[30:38]]), looks(silent))[2]  # as good as nothing


def test_latest_frames_are_as_many_as_there_are() -> None:
    frames = numbered(5)
    for count, latest in ((2, frames[3:]), (9, frames), (0, [])):
        assert [one.audio for one in kept(frames).latest(count)] == latest
