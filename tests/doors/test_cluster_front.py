"""What the AMI front of a controller that stands by makes of the leader's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from audiofork.config import ClusterConfig, Config
from audiofork.doors.cluster_answers import ClusterAnswers
from audiofork.doors.cluster_front import ClusterFront
from audiofork.doors.control_answers import Answers
from audiofork.errors import AmiUnavailable, NobodyLeads, RequestRefused
from audiofork.forks.requests import Origin, StopFork, parse_request

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


class Leader:
    """Answers with what a test says, or raises that."""

    def __init__(self, answer: dict[str, Any] | Exception | None) -> None:
        self._answer = answer
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    async def ask(self, asterisk: str, fields: Mapping[str, str], _origin: Origin) -> Answers:
        self.asked.append((asterisk, fields))
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is not None:
            yield self._answer


async def stopped(leader: Leader) -> list[str]:
    front = ClusterFront(
        Config(cluster=ClusterConfig(asterisk="pbx")), cast(ClusterAnswers, leader)
    )
    fields = {"Command": "StopAudioFork", "AudioForkID": FORK_ID}
    request = parse_request(fields, Origin("front", "me"))
    assert isinstance(request, StopFork)
    return await front._ask(request)


async def test_request_goes_to_the_leader_and_returns_its_forks() -> None:
    leader = Leader({"ok": True, "forks": [FORK_ID]})
    assert await stopped(leader) == [FORK_ID]
    ((asterisk, fields),) = leader.asked
    assert (asterisk, fields["AudioForkID"]) == ("pbx", FORK_ID)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ok": False, "code": "refused", "error": "No such fork"}, RequestRefused("No such fork")),
        ({"ok": False, "code": "busy", "error": "too many"}, RequestRefused("too many")),
        ({"ok": False, "code": "fault", "error": "a bug"}, RequestRefused("a bug")),
        ({"ok": False, "code": "cluster", "error": "ask again"}, AmiUnavailable("ask again")),
        (
            {"ok": False, "code": "asterisk", "error": "Asterisk cannot be asked: away"},
            AmiUnavailable("away"),
        ),
        (NobodyLeads("nobody leads"), AmiUnavailable("nobody leads")),
        (None, RequestRefused("no answer")),
    ],
)
async def test_request_that_is_not_granted_raises_what_the_front_can_answer(
    answer: dict[str, Any] | Exception | None, expected: Exception
) -> None:
    with pytest.raises(type(expected), match=str(expected)):
        await stopped(Leader(answer))
