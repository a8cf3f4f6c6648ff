"""Who is in a cluster, as all beats together tell."""

from __future__ import annotations

import asyncio
import contextvars
import json
from dataclasses import replace
from typing import Any

import pytest

from audiofork.cluster.beats import Beat, ControlBeat, control_beat_of
from audiofork.cluster.buckets import HOSTS_TTL_S
from audiofork.cluster.roster import CONTROL_DEAD_S, MOST_KNOWN, REMEMBERED_S, Roster
from audiofork.errors import NoMessage
from audiofork.log import asterisk
from tests.cluster.conftest import Connect

HOST = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0")
CONTROLLER = ControlBeat("c1", "pbx", "run", True, 12.5, 7, "192.0.2.9:4222", "1.0")


class Told(Roster):
    """A roster that is told beats, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(None, 0.7, lambda: self.now)  # type: ignore[arg-type]

    def hear(self, *beats: Beat | ControlBeat) -> None:
        for beat in beats:
            if isinstance(beat, Beat):
                self.on_beat(f"audiofork.beat.{beat.name}", beat.encode())
            else:
                self.on_control_beat(beat.subject, beat.encode())

    @property
    def states(self) -> dict[str, str]:
        hosts = {one.beat.name: one.state.value for one in self.hosts}
        return hosts | {one.beat.name: one.state.value for one in self.controllers}


@pytest.fixture
def roster() -> Told:
    return Told()


def test_hosts_are_open_or_draining_and_dead_when_nothing_is_heard(roster: Told) -> None:
    roster.hear(HOST, replace(HOST, name="r2", is_draining=True))
    assert roster.states == {"r1": "open", "r2": "draining"}
    roster.now += 0.5
    roster.hear(HOST)
    roster.now += 0.5
    assert roster.states == {"r1": "open", "r2": "dead"}


def test_controllers_lead_or_stand_by_and_are_dead_later_than_hosts(roster: Told) -> None:
    roster.hear(CONTROLLER, replace(CONTROLLER, name="c2", leads=False))
    assert roster.states == {"c1": "leads", "c2": "stands by"}
    roster.now += CONTROL_DEAD_S - 0.1
    assert roster.states == {"c1": "leads", "c2": "stands by"}
    roster.now += 0.2
    assert roster.states == {"c1": "dead", "c2": "dead"}


def test_run_of_a_controller_is_told_of_when_it_is_heard_first_and_not_at_its_end(
    roster: Told,
) -> None:
    told: list[float] = []
    roster.on_new_controller = lambda: told.append(roster.now)
    roster.hear(HOST, CONTROLLER, CONTROLLER)
    assert told == [100.0]
    roster.now += 1
    roster.hear(replace(CONTROLLER, run_id="another"), replace(CONTROLLER, asterisk="other"))
    assert told == [100.0, 101.0, 101.0]
    roster.hear(replace(CONTROLLER, run_id="a third", is_last=True))
    assert told == [100.0, 101.0, 101.0]


def test_controller_that_is_started_anew_takes_the_place_of_its_earlier_run(
    roster: Told, caplog: pytest.LogCaptureFixture
) -> None:
    again = replace(CONTROLLER, run_id="again", leads=False)
    roster.hear(CONTROLLER, again, again)
    assert [one.beat.run_id for one in roster.controllers] == ["again"]
    assert not caplog.records


def test_two_controllers_with_one_name_are_both_told_and_logged_once(
    roster: Told, caplog: pytest.LogCaptureFixture
) -> None:
    twin = replace(CONTROLLER, run_id="twin", leads=False)
    roster.hear(*[CONTROLLER, twin] * 5)
    assert [one.state.value for one in roster.controllers] == ["leads", "stands by"]
    roster.now += CONTROL_DEAD_S + 0.1
    roster.hear(CONTROLLER)
    assert [one.state.value for one in roster.controllers] == ["leads", "dead"]
    roster.hear(replace(twin, is_last=True))
    assert [one.state.value for one in roster.controllers] == ["leads"]
    assert [one.message for one in caplog.records] == [
        "two controllers of pbx have the name c1: give one another [cluster] name"
    ]


def test_controller_that_does_not_lead_here_any_more_is_not_told_to_lead(roster: Told) -> None:
    roster.hear(CONTROLLER, replace(CONTROLLER, name="c2"))
    roster.is_led_here = lambda beat: beat.name != "c1"
    assert roster.states == {"c1": "stands by", "c2": "leads"}


def test_last_beats_of_many_asterisks_are_not_all_kept(roster: Told) -> None:
    for number in range(MOST_KNOWN + 1):
        roster.hear(replace(CONTROLLER, asterisk=f"pbx{number}", is_last=True))
    assert len(roster.asterisks) == MOST_KNOWN


def test_who_says_that_it_ends_is_forgotten_at_once(roster: Told) -> None:
    roster.hear(HOST, CONTROLLER, replace(HOST, name="r2"))
    roster.hear(replace(HOST, is_last=True), replace(CONTROLLER, is_last=True))
    assert roster.states == {"r2": "open"}
    assert roster.asterisks == ["pbx"]  # it may have forks


def test_controllers_of_the_same_name_beside_other_asterisks_are_others(roster: Told) -> None:
    roster.hear(CONTROLLER, replace(CONTROLLER, asterisk="other"))
    assert [one.beat.asterisk for one in roster.controllers] == ["other", "pbx"]
    assert roster.asterisks == ["other", "pbx"]


def test_dead_ones_are_forgotten_after_a_while(roster: Told) -> None:
    roster.hear(HOST, CONTROLLER)
    roster.now += REMEMBERED_S - 1
    assert roster.states == {"r1": "dead", "c1": "dead"}
    assert roster.asterisks == ["pbx"]
    roster.now += 2
    assert roster.states == {}
    assert roster.asterisks == []


def test_nobody_dies_while_the_broker_is_away_and_all_have_their_time_when_it_is_back(
    roster: Told,
) -> None:
    roster.hear(HOST, CONTROLLER)
    roster.on_broker(False)
    roster.now += 60
    assert roster.states == {"r1": "open", "c1": "leads"}
    roster.on_broker(True)
    assert roster.states == {"r1": "open", "c1": "leads"}
    roster.now += 60
    assert roster.states == {"r1": "dead", "c1": "dead"}


def test_it_is_complete_when_each_host_must_have_told_since_it_hears(roster: Told) -> None:
    assert roster.is_complete_in_s == pytest.approx(0.35)
    roster.now += 0.25
    assert roster.is_complete_in_s == pytest.approx(0.1)
    roster.now += 60
    assert roster.is_complete_in_s == 0
    roster.on_broker(False)
    roster.on_broker(True)
    assert roster.is_complete_in_s == pytest.approx(0.35)


def test_host_that_is_registered_is_waited_for_and_dead_when_it_is_silent(roster: Told) -> None:
    roster.on_registered(HOST)
    assert roster.states == {"r1": "open"}
    assert roster.missing == set()
    roster.now += 1
    assert roster.states == {"r1": "dead"}
    assert roster.missing == {"r1"}
    roster.hear(HOST)
    assert roster.states == {"r1": "open"}
    assert roster.missing == set()


def test_registration_says_nothing_of_a_host_that_was_heard(roster: Told) -> None:
    roster.hear(replace(HOST, is_draining=True))
    roster.now += 0.5
    roster.on_registered(HOST)
    assert roster.states == {"r1": "draining"}
    roster.now += 0.5
    assert roster.states == {"r1": "dead"}


def test_registration_that_was_taken_back_is_none(roster: Told) -> None:
    roster.on_registered(replace(HOST, is_last=True))
    assert roster.states == {}


def test_host_is_missing_as_long_as_a_registration_would_stay(roster: Told) -> None:
    roster.hear(HOST)
    roster.now += HOSTS_TTL_S
    assert roster.missing == {"r1"}
    roster.now += 1
    assert roster.missing == set()
    assert roster.states == {"r1": "dead"}


def test_listener_gets_each_beat_of_a_host_until_it_leaves(roster: Told) -> None:
    heard: list[Beat] = []
    leave = roster.listen(heard.append)
    roster.hear(HOST, CONTROLLER)
    leave()
    roster.hear(HOST)
    assert heard == [HOST]


def test_listener_is_called_in_the_context_in_which_it_began(roster: Told) -> None:
    heard: list[str] = []

    def listen(name: str) -> None:
        asterisk.set(name)
        roster.listen(lambda _: heard.append(asterisk.get()))

    for name in ("pbx-a", "pbx-b"):
        contextvars.copy_context().run(listen, name)
    roster.hear(HOST)
    assert heard == ["pbx-a", "pbx-b"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "c2"},
        {"asterisk": "*"},
        {"asterisk": 1},
        {"since_s": "long"},
        {"epoch": True},
        {"leads": 1},
        {"name": None},
    ],
)
def test_bad_beat_of_a_controller_has_no_effect(roster: Told, change: dict[str, Any]) -> None:
    fields = {**json.loads(CONTROLLER.encode()), **change}
    payload = json.dumps(fields).encode()
    with pytest.raises(NoMessage):
        roster.on_control_beat(CONTROLLER.subject, payload)
    assert roster.controllers == []


def test_name_that_would_be_a_pattern_of_subjects_is_refused(roster: Told) -> None:
    with pytest.raises(NoMessage):
        roster.hear(replace(HOST, name="*"))
    with pytest.raises(NoMessage):
        roster.hear(replace(CONTROLLER, asterisk="*"))
    assert roster.states == {}


def test_field_of_a_later_version_is_passed_over_and_one_that_is_missing_has_its_default() -> None:
    fields = {**json.loads(CONTROLLER.encode()), "new": [1]}
    del fields["server"]
    beat = control_beat_of(CONTROLLER.subject, json.dumps(fields).encode())
    assert beat == replace(CONTROLLER, server="")


@pytest.mark.slow
def test_so_many_are_known_and_no_more(roster: Told) -> None:
    for number in range(MOST_KNOWN):
        roster.hear(replace(HOST, name=f"r{number}"), replace(CONTROLLER, name=f"c{number}"))
    for beat in (HOST, CONTROLLER):
        with pytest.raises(NoMessage, match="there are 1000 others already"):
            roster.hear(replace(beat, name="new"))
    assert len(roster.hosts) == len(roster.controllers) == MOST_KNOWN
    roster.hear(replace(HOST, name="r0", is_draining=True))
    assert roster.states["r0"] == "draining"


@pytest.mark.nats
async def test_beats_are_heard_over_the_broker(connect: Connect) -> None:
    ear, mouth = await connect("ear"), await connect("mouth")
    roster = Roster(ear, 60)
    await roster.start()
    await ear.flush()
    mouth.publish("audiofork.beat.r1", HOST.encode())
    mouth.publish(CONTROLLER.subject, CONTROLLER.encode())
    async with asyncio.timeout(30):
        while not (roster.hosts and roster.controllers):  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    assert [one.beat for one in roster.hosts] == [HOST]
    assert [one.beat for one in roster.controllers] == [CONTROLLER]
