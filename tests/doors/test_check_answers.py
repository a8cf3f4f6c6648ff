"""A daemon tells a check that it is reached: who it is, and nobody else's legs."""

from __future__ import annotations

import uuid

import pytest

from audiofork.asterisk.ami_protocol import CheckRaised
from audiofork.doors.check_answers import MAX_ASKED, CheckAnswers
from audiofork.link.messages import CheckLeg, Command, ExpectCheckLeg
from tests.control_plane import FakeAmi

RUN = "0d0d0d0d-0000-4000-8000-000000000001"


class Rig:
    def __init__(self, workers: int = 1) -> None:
        self.ami = FakeAmi()
        self.sent: list[Command] = []
        self.answers = CheckAnswers(self.ami.raise_event, self.sent.append, lambda: workers, RUN)  # type: ignore[arg-type]

    def ask(self, token: str = "t", leg_uuid: str = "") -> str:
        leg_uuid = leg_uuid or str(uuid.uuid4())
        self.answers.on_raised(CheckRaised(token, leg_uuid))
        return leg_uuid

    @property
    def said(self) -> list[tuple[str, str]]:
        """What was told to Asterisk: tokens and answers."""
        for name, headers in self.ami.events:
            assert (name, headers["Command"]) == ("AudioFork", "AudioForkCheck")
            assert headers["Run"] == RUN
        return [(event["AudioForkID"], event["Answer"]) for _, event in self.ami.events]


def test_leg_of_a_check_is_expected_and_each_step_is_told_with_its_token() -> None:
    rig = Rig()
    leg_uuid = rig.ask("token")
    assert rig.sent == [ExpectCheckLeg(leg_uuid)]
    assert rig.said == []
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=False))
    assert rig.said == [("token", "ready")]
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=True))
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=True))
    assert rig.said == [("token", "ready"), ("token", "came")]


def test_leg_is_expected_when_all_relay_processes_do() -> None:
    rig = Rig(workers=2)
    leg_uuid = rig.ask()
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=False))
    assert rig.said == []
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=False))
    assert rig.said == [("t", "ready")]


@pytest.mark.parametrize("leg_uuid", ["x", "", "1" * 900, f"{RUN}0"])
def test_what_is_no_uuid_is_passed_over(leg_uuid: str) -> None:
    rig = Rig()
    rig.answers.on_raised(CheckRaised("t", leg_uuid))
    assert rig.sent == []


def test_answers_of_daemons_are_not_answered() -> None:
    rig = Rig()
    rig.answers.on_raised(CheckRaised("t", str(uuid.uuid4()), "ready", RUN))
    rig.answers.on_raised(CheckRaised("t"))
    assert rig.sent == []


def test_leg_of_nobody_is_not_told_of() -> None:
    rig = Rig()
    rig.answers.on_report(CheckLeg(str(uuid.uuid4()), has_come=True))
    assert rig.said == []


def test_the_same_leg_asked_for_twice_is_expected_once() -> None:
    rig = Rig()
    leg_uuid = rig.ask("first")
    rig.ask("second", leg_uuid.upper())
    assert rig.sent == [ExpectCheckLeg(leg_uuid)]
    rig.answers.on_report(CheckLeg(leg_uuid, has_come=True))
    assert rig.said == [("first", "came")]


def test_of_a_flood_the_latest_are_kept() -> None:
    rig = Rig()
    legs = [rig.ask(str(number)) for number in range(MAX_ASKED + 1)]
    for leg_uuid in legs:
        rig.answers.on_report(CheckLeg(leg_uuid, has_come=True))
    assert [token for token, _ in rig.said] == [str(n) for n in range(1, MAX_ASKED + 1)]
