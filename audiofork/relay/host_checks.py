"""What a relay host takes from a controller: no values that no controller sends.

A controller has the key for it, but keys are stolen, and a relay host has the forks of others.
"""

from __future__ import annotations

import math
import uuid

from audiofork.config_values import FRAMES_MS, SAMPLE_RATES
from audiofork.link.messages import Command, ExpectCheckLeg, ExpectLeg, ForkSpec, LegPart

MOST_ASTERISKS = 1000
# Legs of checks that were ordered and have not come.
MOST_CHECK_LEGS = 1000
MAX_GAIN = 4  # steps of a factor of two
MAX_S = 86_400.0
MAX_ATTEMPTS = 1_000_000
MAX_CHARACTERS = 100_000

_LEGS = {(part,) for part in LegPart} | {(LegPart.IN, LegPart.OUT)}


def fault_of(command: Command) -> str:
    """Return what is wrong with the values of a command; empty: nothing."""
    if isinstance(command, ExpectLeg | ExpectCheckLeg):
        return "" if _is_uuid(command.leg_uuid) else "leg_uuid is no UUID"
    if isinstance(command, ForkSpec):
        return next((name for name, is_right in _checks(command) if not is_right), "")
    return ""


def _checks(spec: ForkSpec) -> tuple[tuple[str, bool], ...]:
    frame_ms, voice = spec.frame_ms, spec.voice
    attempts = spec.reconnect_attempts
    return (
        ("fork_id is no UUID", _is_uuid(spec.fork_id)),
        ("channel or url is too long", len(spec.channel) + len(spec.url) <= MAX_CHARACTERS),
        ("legs are none that there are", spec.legs in _LEGS),
        ("sample_rate is none that there is", spec.sample_rate in SAMPLE_RATES),
        ("gain is too great", max(abs(spec.gain_in), abs(spec.gain_out)) <= MAX_GAIN),
        ("frame_ms is none that there is", frame_ms is None or frame_ms in FRAMES_MS),
        ("a time is none that may be", all(0 <= one <= MAX_S for one in _times(spec))),
        ("attempts are too many", attempts is None or 0 <= attempts <= MAX_ATTEMPTS),
        ("voice has other legs", voice is None or set(voice.parts) <= set(spec.legs)),
    )


def _times(spec: ForkSpec) -> tuple[float, ...]:
    """Return all times in seconds; what is no number is not from 0 to anything."""
    voice_s = spec.voice.buffer_s if spec.voice is not None else 0.0
    times = (spec.beeps.interval_s, spec.dialogue.closing_wait_s, voice_s)
    interval_s = spec.reconnect_interval_s
    return times if interval_s is None else (*times, interval_s or math.nan)


def _is_uuid(text: str) -> bool:
    try:
        return len(text) <= 36 and bool(uuid.UUID(text))
    except ValueError:
        return False
