"""Plays the server's audio and tones over legs, a frame every 20 ms."""

from __future__ import annotations

import asyncio
import audioop
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from audiofork.audiosocket import PTIME_S, SAMPLE_BYTES, SAMPLE_RATES, Kind, frame_bytes
from audiofork.link.messages import ForkSpec, LegPart
from audiofork.relay.beep import TAIL_S, Beeper, tone
from audiofork.relay.formats.base import Audio, Event
from audiofork.relay.pacer import SLOT_S, Pacer
from audiofork.relay.pipeline import LegHandle
from audiofork.relay.playout import Playout, PlayoutCounts

_NOTHING = PlayoutCounts()
# A spurt that begins so much later, or later still, has the leg's next turn, or a later one.
_LATEST_S = PTIME_S - SLOT_S / 2
_FIRST_RATE = SAMPLE_RATES[Kind.SLIN]  # of frames to a leg that has brought no audio yet


@lru_cache(maxsize=16)
def _silence(sample_rate: int) -> bytes:
    """Return a frame of silence, the same object for all legs."""
    return bytes(frame_bytes(sample_rate))


class Hearer(Protocol):
    """What gets the frames that are spoken: a leg, or who listens."""

    def speak(self, frame: bytes) -> bool:
        """Play a frame; return whether the party hears it."""


class Speaker:
    """All that a fork plays over its legs: the server's audio and beeps, added.

    Owned by a session; a `Player` of the pacer. The server's audio goes over the legs of the voice,
    the same over each, beeps over the fork's first leg, which the party hears. A steady voice plays
    silence where there is nothing else, so its leg gets a frame every 20 ms as long as it is
    attached. While no leg of the voice is attached the server's audio waits for the next one.

    Args:
        spec: The fork: its voice and beeps.
        pacer: What calls `tick`.
        tell: Called with each event for the server.

    Attributes:
        parts: The parts whose legs are spoken over.
        tone_part: The one of them whose leg carries beeps.
        beeper: Says when there is a beep.
        playout: The server's audio that waits; None: the server is not heard.
        is_steady: Whether the leg gets a frame every 20 ms for ever.
    """

    def __init__(self, spec: ForkSpec, pacer: Pacer, tell: Callable[[Event], None]) -> None:
        voice = spec.voice
        self.tone_part = spec.legs[0]
        self._voice_parts = voice.parts if voice is not None else ()
        self.parts = frozenset((self.tone_part, *self._voice_parts))
        self.beeper = Beeper(spec.beeps, self._begin_tone)
        self.playout: Playout | None = None
        if voice is not None:
            self.playout = Playout(voice.buffer_s, spec.sample_rate, tell, pacer.now)
        self.is_steady = voice is not None and voice.steady
        self._pacer = pacer
        self._legs: dict[LegPart, LegHandle] = {}
        # Those of them that carry the server's audio, and behind them who listens.
        self._voice_legs: list[Hearer] = []
        self._listener: Hearer | None = None
        self._rate = spec.sample_rate
        self._tone: list[bytes] = []  # what has yet to be played of it
        self._after_tone: Callable[[], None] | None = None
        self._tail: asyncio.TimerHandle | None = None

    @property
    def counts(self) -> PlayoutCounts:
        """What became of the server's audio."""
        return self.playout.counts if self.playout is not None else _NOTHING

    # --- The leg ---

    @property
    def can_beep(self) -> bool:
        """Whether there is a leg for beeps."""
        return self.tone_part in self._legs

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """Speak over a leg of one of `parts`: its first, or one that replaces it."""
        self._legs[part] = leg
        self._choose_voice_legs()
        if self in self._pacer:
            return
        if self.is_steady:
            self._pacer.place_anywhere(self)
        elif self._voice_legs and self.playout is not None and self.playout.begins_at is not None:
            self._pacer.place(self, self._pacer.now())

    def _choose_voice_legs(self) -> None:
        self._voice_legs = [self._legs[part] for part in self._voice_parts if part in self._legs]
        if self._voice_legs and self._listener is not None:
            self._voice_legs.append(self._listener)

    def overhear(self, listener: Hearer | None) -> None:
        """Let somebody hear the server's audio, as it is played over the legs; None: nobody."""
        self._listener = listener
        self._choose_voice_legs()

    @property
    def next_frame(self) -> bytes | None:
        """The server's frame that is played next; empty: it is late; None: it says nothing."""
        return self.playout.next_frame if self.playout is not None and self._voice_legs else None

    def detach(self, part: LegPart) -> None:
        """Speak no more over a leg: it is gone, or about to go; without any, audio waits."""
        self._legs.pop(part, None)
        self._choose_voice_legs()
        if part is self.tone_part:
            self.beeper.stop()
            self._stop_tone()
        if not self._legs:
            self._pacer.remove(self)

    # --- What is to be played ---

    def put(self, audio: Audio) -> None:
        """Play audio of the server after what waits; there is a playout."""
        playout = self.playout
        assert playout is not None
        was_silent, was_late = playout.begins_at is None, playout.is_late
        playout.put(audio.samples, audio.sample_rate)
        if not (was_silent or was_late):
            return  # as nearly always
        begins_at = playout.begins_at
        if begins_at is None or not self._voice_legs:
            return
        if was_silent:
            self._begin(begins_at)
        elif not playout.is_late and not self._tone:
            self._pacer.place(self, begins_at)  # at once, and not when it would be given up

    def _begin(self, at: float) -> None:
        if self not in self._pacer:
            self._pacer.place(self, at)

    def end(self) -> None:
        """Drop the server's audio that waits: the fork ends."""
        if self.playout is not None:
            self.playout.drop_rest()

    def beep(self, then: Callable[[], None]) -> None:
        """Beep now, and nothing else from now on; call `then` when the party has heard it."""
        self.beeper.stop()
        self._stop_tone()
        self._begin_tone()
        self._after_tone = then

    def _begin_tone(self) -> None:
        if self.can_beep:
            self._tone = list(tone(self._rate))
            self._begin(self._pacer.now())

    def _stop_tone(self) -> None:
        self._tone.clear()
        self._after_tone = None
        if self._tail is not None:
            self._tail.cancel()
            self._tail = None

    # --- Every 20 ms ---

    def tick(self, now: float) -> None:
        """See `Player.tick`."""
        for leg in self._legs.values():
            if leg.spoken_rate != self._rate and not self._takes(leg.spoken_rate):
                return
        playout = self.playout
        frame = playout.take(now) if playout is not None and self._voice_legs else None
        if self._tone:
            self._play_tone(self._tone.pop(0), frame)
        elif frame is None:
            self._stay_silent(now)
        else:
            was_written = False
            for hearer in self._voice_legs:
                was_written |= hearer.speak(frame)
            self._note_spoken(was_written)

    def _play_tone(self, sound: bytes, frame: bytes | None) -> None:
        """Play a frame of the tone, and one of the server's audio, added where both are heard."""
        tone_leg = self._legs[self.tone_part]
        added = sound if frame is None else audioop.add(sound, frame, SAMPLE_BYTES)
        is_voiced = tone_leg in self._voice_legs
        was_written = tone_leg.speak(added if is_voiced else sound) and is_voiced
        if frame is not None:
            for leg in self._voice_legs:
                was_written |= leg is not tone_leg and leg.speak(frame)
            self._note_spoken(was_written)
        if not self._tone:
            self._tell_end_of_tone()

    def _note_spoken(self, was_written: bool) -> None:
        """Note what became of a frame that was taken from the playout."""
        playout = self.playout
        assert playout is not None
        if not was_written:
            playout.take_back()
        if playout.marks:
            playout.tell_marks()

    def _tell_end_of_tone(self) -> None:
        if self._after_tone is not None:
            then, self._after_tone = self._after_tone, None
            self._tail = asyncio.get_running_loop().call_later(TAIL_S, then)

    def _stay_silent(self, now: float) -> None:
        """Play silence over a steady voice, unless a spurt is about to begin, or to go on.

        That begins when it is due, in place of this frame, and not at the next turn of the leg.
        """
        playout = self.playout if self._voice_legs else None
        begins_at = playout.begins_at if playout is not None else None
        if begins_at is None and not self.is_steady:
            self._pacer.remove(self)
        elif begins_at is not None and begins_at < now + _LATEST_S:
            self._pacer.place(self, begins_at)
        elif self.is_steady:
            for leg in self._voice_legs:
                leg.speak(_silence(self._rate))

    def _takes(self, spoken_rate: int) -> bool:
        """Play at another rate from now on; return whether the leg can be spoken to.

        A wide leg that has brought no audio yet may be one of an Asterisk that has one kind of
        message for all rates. A steady one is not: the party of a bot may well say nothing first.
        """
        if not spoken_rate:
            return self.is_steady or self._rate == _FIRST_RATE
        self._rate = spoken_rate
        if self._tone:
            self._tone = list(tone(spoken_rate)[-len(self._tone) :])
        if self.playout is not None:
            self.playout.set_rate(spoken_rate)
        return True
