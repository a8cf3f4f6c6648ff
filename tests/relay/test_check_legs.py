"""Legs of the command check: expected, told of, hung up, and nobody's stranger."""

from __future__ import annotations

import logging
import uuid

import pytest

from audiofork.link.messages import CheckLeg, ExpectCheckLeg, StrangersRefused
from audiofork.relay import check_legs
from audiofork.relay.check_legs import MAX_EXPECTED
from tests.relay.peers import HANGUP, until
from tests.relay.relay_stage import RelayStage

pytestmark = pytest.mark.usefixtures("nothing_left")


def expect(relay: RelayStage) -> str:
    leg_uuid = str(uuid.uuid4())
    relay.worker.handle(ExpectCheckLeg(leg_uuid))
    return leg_uuid


def wrong(relay: RelayStage) -> list[object]:
    return [report for report in relay.reports if isinstance(report, StrangersRefused)]


async def test_leg_that_comes_is_told_of_hung_up_and_no_stranger(
    relay: RelayStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg_uuid = expect(relay)
    assert relay.reports == [CheckLeg(leg_uuid, has_come=False)]
    leg = await relay.connect(leg_uuid)
    assert await leg.read_to_end() == HANGUP
    assert relay.reports == [CheckLeg(leg_uuid, has_come=False), CheckLeg(leg_uuid, has_come=True)]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_leg_is_expected_once(relay: RelayStage) -> None:
    leg_uuid = expect(relay)
    for _ in range(2):
        leg = await relay.connect(leg_uuid)
        assert await leg.read_to_end() == HANGUP
    assert relay.reports.count(CheckLeg(leg_uuid, has_come=True)) == 1
    assert wrong(relay) == [StrangersRefused(1, "127.0.0.1")]


async def test_leg_that_sends_audio_at_once_disturbs_nothing(relay: RelayStage) -> None:
    leg_uuid = expect(relay)
    leg = await relay.connect(leg_uuid)
    leg.send_audio(*[bytes(320)] * 10)
    await leg.read_to_end()
    assert CheckLeg(leg_uuid, has_come=True) in relay.reports


async def test_leg_that_does_not_come_is_forgotten(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_legs, "REMEMBERED_S", 0.01)
    leg_uuid = expect(relay)
    await until(lambda: not relay.worker._check_legs._expected)
    leg = await relay.connect(leg_uuid)
    assert await leg.read_to_end() == HANGUP
    assert CheckLeg(leg_uuid, has_come=True) not in relay.reports


async def test_no_more_than_some_are_expected_and_the_oldest_goes_first(relay: RelayStage) -> None:
    first, *others = [expect(relay) for _ in range(MAX_EXPECTED + 1)]
    relay.worker.handle(ExpectCheckLeg(others[0]))  # once more: it is expected already
    for leg_uuid in (first, *others):
        await (await relay.connect(leg_uuid)).read_to_end()
    came = [report for report in relay.reports if isinstance(report, CheckLeg) and report.has_come]
    assert [report.leg_uuid for report in came] == others
