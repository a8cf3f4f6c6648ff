"""What a relay host takes from no controller."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from audiofork.link.dialogue import Dialogue
from audiofork.link.messages import (
    Beeps,
    Command,
    Direction,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ExpectLeg,
    ForkSpec,
    LegPart,
    Voice,
)
from audiofork.relay.host_checks import fault_of

ID = str(uuid.UUID(int=1))
SPEC = ForkSpec(ID, "PJSIP/a", "ws://h/", Direction.IN, (LegPart.IN,))


@pytest.mark.parametrize(
    "command",
    [
        SPEC,
        replace(SPEC, voice=Voice((LegPart.IN,)), frame_ms=20, reconnect_interval_s=0.25),
        replace(SPEC, legs=(LegPart.IN, LegPart.OUT), gain_in=-4, gain_out=4, sample_rate=192_000),
        ExpectLeg(ID, LegPart.IN, ID),
        ExpectCheckLeg(ID),
        EndFork("any", EndReason.STOPPED),
    ],
    ids=lambda command: type(command).__name__,
)
def test_command_of_a_controller_has_no_fault(command: Command) -> None:
    assert fault_of(command) == ""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fork_id": "a"}, "fork_id is no UUID"),
        ({"fork_id": "{" * 100_000}, "fork_id is no UUID"),
        ({"url": "ws://" + "a" * 200_000}, "channel or url is too long"),
        ({"legs": ()}, "legs are none that there are"),
        ({"legs": (LegPart.IN,) * 100}, "legs are none that there are"),
        ({"sample_rate": 10**12}, "sample_rate is none that there is"),
        ({"sample_rate": 0}, "sample_rate is none that there is"),
        ({"gain_in": 10**9}, "gain is too great"),
        ({"frame_ms": 10**9}, "frame_ms is none that there is"),
        ({"frame_ms": 0}, "frame_ms is none that there is"),
        ({"reconnect_interval_s": 0.0}, "a time is none that may be"),
        ({"reconnect_interval_s": float("nan")}, "a time is none that may be"),
        ({"reconnect_attempts": -1}, "attempts are too many"),
        ({"beeps": Beeps(float("inf"))}, "a time is none that may be"),
        ({"dialogue": Dialogue(closing_wait_s=1e9)}, "a time is none that may be"),
        ({"voice": Voice((LegPart.OUT,))}, "voice has other legs"),
        ({"voice": Voice((LegPart.IN,), buffer_s=1e12)}, "a time is none that may be"),
    ],
)
def test_value_that_no_controller_sends_is_a_fault(change: dict[str, Any], fault: str) -> None:
    assert fault_of(replace(SPEC, **change)) == fault


@pytest.mark.parametrize("leg_uuid", ["", "a", "0" * 31, "{" * 10_000])
def test_leg_without_a_uuid_is_a_fault(leg_uuid: str) -> None:
    assert fault_of(ExpectLeg(ID, LegPart.IN, leg_uuid)) == "leg_uuid is no UUID"
    assert fault_of(ExpectCheckLeg(leg_uuid)) == "leg_uuid is no UUID"
