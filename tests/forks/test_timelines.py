"""What is kept of what happens to a running fork."""

from __future__ import annotations

import dataclasses

import pytest

from audiofork.asterisk.channels import Target
from audiofork.forks import timelines as module
from audiofork.forks.events import (
    About,
    Attack,
    AttackKind,
    CommandHandled,
    CommandOutcome,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
    Muted,
    Parting,
    Pressed,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import Options
from audiofork.forks.requests import Origin, StartFork
from audiofork.forks.timelines import (
    FIRST_MOMENTS,
    KEPT_ENDED,
    MOST_CHARACTERS,
    MOST_MOMENTS,
    MOST_OF_A_FORK,
    Moment,
    Timelines,
)
from audiofork.link.messages import EndReason, ForkStats, ServerCommand, SinkMessage
from tests.control_plane import NAME, UNIQUEID, Rig
from tests.told_clock import Clock

URL = "wss://example.org/live?token=hunter2"
FORK = ForkInfo(
    *("3f2a91c0-1111-4222-8333-444455556666", NAME, UNIQUEID, URL),
    sample_rate=8000,
    about=About(direction="both", tap="snoop"),
)
START = StartFork(Target(NAME), URL, Options(), origin=Origin("dialplan", NAME))
RESUMED = dataclasses.replace(FORK, from_earlier_run=True)


@pytest.fixture
def timelines() -> Timelines:
    return Timelines(Clock())


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        (
            Requested(FORK, START),
            "requested",
            f"by dialplan {NAME}, both by snoop at 8000 Hz to wss://example.org/live?...",
        ),
        (
            Requested(RESUMED, dataclasses.replace(START, origin=Origin())),
            "resumed",
            "taken up from an earlier run of the daemon, both by snoop at 8000 Hz to "
            "wss://example.org/live?...",
        ),
        (Started(FORK), "started", "audio flows"),
        (Started(FORK, "audio"), "started", "audio flows, subprotocol audio"),
        (
            Reconnecting(FORK, Away.SERVER, 2, "Connection refused", was_streaming=True),
            "reconnecting",
            "the server is away, attempt 2 follows: Connection refused",
        ),
        (Resumed(FORK, Away.SERVER, 17), "resumed", "the server is back, 17 frames dropped"),
        (Resumed(FORK, Away.OUT, gap_ms=120), "resumed", "the leg of out is back after 120 ms"),
        (Resumed(FORK, Away.PAIRS), "resumed", "the leg is back"),
        (MessageReceived(FORK, "hello"), "message", "hello"),
        (Pressed(FORK, "5", 90), "dtmf", "a key, pressed for 90 ms"),
        (Muted(FORK, True, False), "muted", "read"),
        (Muted(FORK, False, True), "muted", "write"),
        (Muted(FORK, True, True), "muted", "both"),
        (Muted(FORK, False, False), "unmuted", "nothing is muted"),
        (
            CommandHandled(FORK, ServerCommand.TRANSFER, "sales,1", CommandOutcome.DONE),
            "command",
            "transfer sales,1: done",
        ),
        (
            CommandHandled(FORK, ServerCommand.HANGUP, "", CommandOutcome.REFUSED, "no"),
            "command",
            "hangup: refused: no",
        ),
        (Ended(FORK, EndReason.HANGUP, ForkStats(), False), "ended", "hangup"),
        (
            Ended(FORK, EndReason.SINK_GONE, ForkStats(), False, "it broke"),
            "ended",
            "sink-gone (it broke)",
        ),
        (
            Stopped(FORK, EndReason.HANGUP, "", 1.0, ForkStats(), post_process_status="3"),
            "post-process",
            "exit status 3",
        ),
    ],
)
def test_event_is_told_in_words(timelines: Timelines, event: object, kind: str, text: str) -> None:
    if not isinstance(event, Requested):
        timelines.on_event(Requested(FORK, START))
    timelines.on_event(event)  # type: ignore[arg-type]
    assert timelines.of(FORK.id)[-1] == Moment(1000.0, kind, text)
    assert len(timelines.of(FORK.id)) == 1 + (not isinstance(event, Requested))


@pytest.mark.parametrize(
    "event",
    [
        Parting(FORK, EndReason.HANGUP, False),
        Stopped(FORK, EndReason.HANGUP, "", 1.0, ForkStats()),
        Failed(FORK, EndReason.SINK_GONE, "", 1.0, ForkStats()),
        Refused(START, "no"),
        Attack(AttackKind.WRONG_UUID, "from somewhere"),
    ],
)
def test_event_that_says_nothing_new_leaves_no_moment(timelines: Timelines, event: object) -> None:
    timelines.on_event(event)  # type: ignore[arg-type]
    assert timelines.of(FORK.id) == ()


def test_fork_that_is_unknown_has_no_moments(timelines: Timelines) -> None:
    assert timelines.of("elsewhere") == ()


def test_fork_that_is_muted_and_then_refused_leaves_nothing(timelines: Timelines) -> None:
    timelines.on_event(Muted(FORK, True, True))
    assert not timelines._timelines


def test_fork_that_cannot_be_resumed_has_its_end_alone(timelines: Timelines) -> None:
    timelines.on_event(Ended(RESUMED, EndReason.HANGUP, ForkStats(), False, "while away"))
    assert timelines.of(FORK.id) == (Moment(1000.0, "ended", "hangup (while away)"),)


def test_moments_are_in_their_order_and_of_their_fork() -> None:
    clock = Clock()
    timelines = Timelines(clock)
    other = dataclasses.replace(FORK, id="other")
    for fork in (FORK, other):
        timelines.on_event(Requested(fork, START))
    for at, fork in ((1.0, FORK), (2.0, other), (3.0, FORK)):
        clock.now_s = at
        timelines.on_event(MessageReceived(fork, str(at)))
    assert timelines.of(FORK.id)[1:] == (
        Moment(1.0, "message", "1.0"),
        Moment(3.0, "message", "3.0"),
    )
    assert timelines.of("other")[1:] == (Moment(2.0, "message", "2.0"),)


def test_relay_host_is_named_where_audio_begins_to_flow_or_flows_again() -> None:
    hosts = {FORK.id: "r1"}
    timelines = Timelines(Clock(), lambda fork_id: hosts.get(fork_id, ""))
    timelines.on_event(Requested(FORK, START))
    timelines.on_event(Started(FORK, ""))
    timelines.on_event(Reconnecting(FORK, Away.RELAY, 1, "it is lost", was_streaming=True))
    hosts[FORK.id] = "r2"
    timelines.on_event(Resumed(FORK, Away.RELAY, gap_ms=700))
    texts = [moment.text for moment in timelines.of(FORK.id)]
    assert texts[1] == "audio flows, at the relay host r1"
    assert texts[3].endswith(", at the relay host r2")
    assert "relay host" not in texts[0] + texts[2]


def test_first_and_latest_moments_are_kept(timelines: Timelines) -> None:
    timelines.on_event(Requested(FORK, START))
    for number in range(1000):
        timelines.on_event(MessageReceived(FORK, str(number)))
    texts = [moment.text for moment in timelines.of(FORK.id)][1:]
    latest = MOST_MOMENTS - FIRST_MOMENTS
    assert texts == [*map(str, range(FIRST_MOMENTS - 1)), *map(str, range(1000 - latest, 1000))]


def test_long_texts_are_cut_and_all_of_a_fork_are_bounded(timelines: Timelines) -> None:
    timelines.on_event(Requested(FORK, START))
    for number in range(1000):
        timelines.on_event(MessageReceived(FORK, f"{number} " + "x" * 100_000))
    moments = timelines.of(FORK.id)[1:]
    assert {len(moment.text) for moment in moments} == {MOST_CHARACTERS}
    kept = sum(len(moment.text) for moment in moments)
    assert kept <= MOST_OF_A_FORK + FIRST_MOMENTS * MOST_CHARACTERS
    assert moments[-1].text.startswith("999 ")


def test_texts_are_harmless(timelines: Timelines) -> None:
    timelines.on_event(Requested(FORK, START))
    timelines.on_event(MessageReceived(FORK, "a\r\nb\x1b[31m\u2028\u202e"))
    moment = timelines.of(FORK.id)[-1]
    assert moment.text == "a??b?[31m??"


def test_fork_that_has_ended_is_known_until_many_others_have_ended(timelines: Timelines) -> None:
    for number in range(KEPT_ENDED + 1):
        one = dataclasses.replace(FORK, id=str(number))
        timelines.on_event(Ended(one, EndReason.HANGUP, ForkStats(), False))
        timelines.on_event(Stopped(one, EndReason.HANGUP, "", 1.0, ForkStats()))
        assert timelines.of(str(number))
    assert timelines.of("0") == ()
    assert timelines.of("1")
    assert len(timelines._timelines) == KEPT_ENDED


async def test_life_of_a_real_fork_makes_a_timeline(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkMessage(fork_id, "hello"))
    await rig.ask(command="AudioForkMute", direction="read", state="on", channel=NAME)
    await rig.ended(fork_id, EndReason.HANGUP)
    timelines = Timelines()
    for event in rig.events:
        timelines.on_event(event)
    kinds = [moment.kind for moment in timelines.of(fork_id)]
    assert kinds == ["requested", "started", "message", "muted", "ended"]


def test_module_has_a_name_for_each_part() -> None:
    assert {module.part(what) for what in Away} == {
        *("the server", "the relay process", "the daemon"),
        *("the leg", "the leg of in", "the leg of out"),
    }
