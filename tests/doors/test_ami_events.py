import uuid
from dataclasses import replace
from unicodedata import category

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.doors.ami_events import (
    ANSWERS_TO_DOOR,
    ANSWERS_TO_ORIGIN,
    MAX_RESPONSE_BYTES,
    AmiEvents,
    without_controls,
)
from audiofork.errors import AmiActionFailed, AmiError, AmiUnavailable
from audiofork.forks.events import (
    CommandHandled,
    CommandOutcome,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
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
from audiofork.forks.requests import Origin, Request, StartFork, parse_request
from audiofork.link.messages import EndReason, ForkStats, ServerCommand
from audiofork.text import MAX_REASON_CHARACTERS, harmless
from tests.control_plane import FakeAmi

NAME, UNIQUEID = "PJSIP/100-0000002a", "1700000000.1"
FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
URL = "ws://example.org/a?token=secret"
OF_FORK = {"AudioForkID": FORK_ID, "Channel": NAME, "Uniqueid": UNIQUEID, "WsServer": URL}


FORK = ForkInfo(FORK_ID, NAME, UNIQUEID, URL, sample_rate=8000)
TAKEN_UP = replace(FORK, from_earlier_run=True)


def request(**fields: str) -> Request:
    return parse_request({"channel": NAME, "wsserver": URL, **fields})


def requested(fork: ForkInfo = FORK, **fields: str) -> Requested:
    start = request(**fields)
    assert isinstance(start, StartFork)
    return Requested(fork, start)


def stopped(fork: ForkInfo = FORK, detail: str = "", **stats: int) -> Stopped:
    return Stopped(fork, EndReason.HANGUP, detail, 12.34, ForkStats(**stats))


@pytest.fixture
def ami() -> FakeAmi:
    ami = FakeAmi()
    ami.channels = {UNIQUEID: NAME}
    return ami


@pytest.fixture
def door(ami: FakeAmi) -> AmiEvents:
    return AmiEvents(ami)  # type: ignore[arg-type]


# --- What is told --------------------------------------------------------------------------------


def test_starting_sets_variables_and_raises_nothing(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(requested())
    assert ami.variables[UNIQUEID] == {
        "AUDIOFORK_ID": FORK_ID,
        "AUDIOFORK_WSSERVER": URL,
        "AUDIOFORK_WSSERVER_3f2a91c0_1111_4222_8333_444455556666": URL,
        "AUDIOFORK_STATUS": "STARTING",
    }
    assert ami.events == []


def test_starting_stores_the_id_in_the_variable_of_the_request(
    ami: FakeAmi, door: AmiEvents
) -> None:
    door.on_event(requested(options="i(MY_FORK)"))
    assert ami.variables[UNIQUEID]["MY_FORK"] == FORK_ID
    # The others are there when the status is.
    assert list(ami.variables[UNIQUEID])[-1] == "AUDIOFORK_STATUS"


def test_variables_of_a_fork_of_an_earlier_run_are_left_as_they_are(
    ami: FakeAmi, door: AmiEvents
) -> None:
    door.on_event(requested(TAKEN_UP))
    assert (ami.variables, ami.events) == ({}, [])


def test_connected_fork_has_a_status_of_its_own(ami: FakeAmi, door: AmiEvents) -> None:
    connected = replace(FORK, connects=True)
    door.on_event(requested(connected))
    assert ami.variables[UNIQUEID]["AUDIOFORK_CONNECT"] == "STARTING"
    assert ami.variables[UNIQUEID]["AUDIOFORK_CONNECT_ID"] == FORK_ID
    door.on_event(Started(FORK))
    door.on_event(Ended(FORK, EndReason.STOPPED, ForkStats(), has_failed=False))
    assert ami.variables[UNIQUEID]["AUDIOFORK_CONNECT"] == "STARTING"
    door.on_event(Parting(connected, EndReason.SINK_GONE, has_failed=True))
    assert ami.variables[UNIQUEID]["AUDIOFORK_CONNECT"] == "FAILED"


def test_end_of_a_connected_fork_is_not_told_to_the_next_one_of_its_call(
    ami: FakeAmi, door: AmiEvents
) -> None:
    connected = replace(FORK, connects=True)
    door.on_event(requested(connected))
    door.on_event(Parting(connected, EndReason.STOPPED, has_failed=False))
    door.on_event(requested(replace(connected, id=str(uuid.UUID(int=1)))))
    door.on_event(Ended(connected, EndReason.STOPPED, ForkStats(), has_failed=False))
    variables = ami.variables[UNIQUEID]
    assert (variables["AUDIOFORK_CONNECT"], variables["AUDIOFORK_STATUS"]) == ("STARTING",) * 2


def test_refusal_of_a_request_is_left_to_its_door(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Refused(request(), "No way"))
    assert (ami.variables, ami.events) == ({}, [])


def test_started(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Started(replace(FORK, sample_rate=16000)))
    assert ami.events == [("AudioForkStarted", {**OF_FORK, "SampleRate": "16000"})]
    assert ami.told == ["STREAMING", "AudioForkStarted"]


def test_reconnecting_after_a_loss(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Reconnecting(FORK, Away.SERVER, 2, "a\r\nb", was_streaming=True))
    event = {**OF_FORK, "Attempt": "2", "Reason": "a??b"}
    assert ami.events == [("AudioForkReconnecting", event)]
    assert ami.told == ["RECONNECTING", "AudioForkReconnecting"]


def test_reconnecting_before_the_first_connection_leaves_the_status(
    ami: FakeAmi, door: AmiEvents
) -> None:
    door.on_event(Reconnecting(FORK, Away.SERVER, 1, "refused", was_streaming=False))
    assert ami.told == ["AudioForkReconnecting"]


def test_resumed(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Resumed(FORK, Away.SERVER, 17))
    assert ami.events == [("AudioForkResumed", {**OF_FORK, "FramesDropped": "17"})]
    assert ami.told == ["STREAMING", "AudioForkResumed"]


def test_resumed_in_part_leaves_the_status(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Resumed(FORK, Away.IN, gap_ms=180, is_streaming=False))
    headers = {**OF_FORK, "FramesDropped": "0", "GapMs": "180"}
    assert ami.events == [("AudioForkResumed", headers)]
    assert ami.told == ["AudioForkResumed"]


def test_first_and_last_event_of_a_fork_of_an_earlier_run_say_so(
    ami: FakeAmi, door: AmiEvents
) -> None:
    door.on_event(Started(TAKEN_UP))
    door.on_event(stopped(TAKEN_UP, "why"))
    assert [headers["TakenUp"] for _, headers in ami.events] == ["yes", "yes"]


@pytest.mark.parametrize(("failed", "status"), [(True, "FAILED"), (False, "STOPPED")])
def test_ended_sets_the_reason_before_the_status(
    ami: FakeAmi, door: AmiEvents, failed: bool, status: str
) -> None:
    door.on_event(Ended(FORK, EndReason.SINK_GONE, ForkStats(), failed))
    variables = list(ami.variables[UNIQUEID].items())
    assert variables == [("AUDIOFORK_REASON", "sink-gone"), ("AUDIOFORK_STATUS", status)]
    assert ami.events == []


def test_failed(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(Failed(FORK, EndReason.LEG_FAILED, "why", 1, ForkStats()))
    event = {**OF_FORK, "Reason": "leg-failed", "Detail": "why"}
    assert ami.events == [("AudioForkFailed", event)]


def test_stopped_has_the_totals(ami: FakeAmi, door: AmiEvents) -> None:
    end = stopped(frames_in=617, frames_sent=610, frames_dropped=7, reconnects=2)
    door.on_event(replace(end, relays_lost=1, post_process_status="0"))
    event = {
        **OF_FORK,
        "Reason": "hangup",
        "Duration": "12.3",
        "FramesIn": "617",
        "FramesSent": "610",
        "FramesDropped": "7",
        "Reconnects": "2",
        "RelaysLost": "1",
        "PostProcessStatus": "0",
    }
    assert ami.events == [("AudioForkStopped", event)]


def test_stopped_tells_of_missing_frames_if_there_were_any(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(stopped(frames_missing=7))
    assert ami.events[0][1]["FramesMissing"] == "7"
    door.on_event(stopped())
    assert "FramesMissing" not in ami.events[1][1]


def test_stopped_tells_of_ignored_messages_if_there_were_any(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(stopped(messages_ignored=3))
    assert ami.events[-1][1]["MessagesIgnored"] == "3"
    assert "MessagesUnused" not in ami.events[-1][1]
    door.on_event(stopped(messages_unused=4))
    assert ami.events[-1][1]["MessagesUnused"] == "4"


def test_stopped_tells_what_became_of_the_server_s_audio_where_it_may_speak(
    ami: FakeAmi, door: AmiEvents
) -> None:
    stats = ForkStats(frames_played=9, frames_cleared=4, frames_unplayed=2, underruns=1)
    told = {"FramesPlayed": "9", "FramesCleared": "4", "FramesUnplayed": "2", "Underruns": "1"}
    end = replace(stopped(), stats=stats)
    door.on_event(replace(end, fork=replace(FORK, speaks=True)))
    assert told.items() <= ami.events[0][1].items()
    door.on_event(end)
    assert not told.keys() & ami.events[1][1].keys()


def test_stopped_tells_of_refused_commands_if_there_were_any(ami: FakeAmi, door: AmiEvents) -> None:
    door.on_event(stopped(commands_refused=3))
    assert ami.events[0][1]["CommandsRefused"] == "3"
    door.on_event(stopped())
    assert "CommandsRefused" not in ami.events[1][1]


def test_command_of_a_server_is_told_with_its_outcome_and_a_harmless_reason(
    ami: FakeAmi, door: AmiEvents
) -> None:
    command = ServerCommand.TRANSFER
    door.on_event(CommandHandled(FORK, command, "sales,100", CommandOutcome.DONE))
    door.on_event(CommandHandled(FORK, command, "x", CommandOutcome.REFUSED, "no\r\nway"))
    what = {**OF_FORK, "Command": "transfer"}
    assert ami.events == [
        ("AudioForkCommand", {**what, "Value": "sales,100", "Outcome": "done"}),
        (
            "AudioForkCommand",
            {**what, "Value": "x", "Outcome": "refused", "Reason": "no??way"},
        ),
    ]


def test_action_id_of_the_request_is_in_every_event(ami: FakeAmi, door: AmiEvents) -> None:
    fork = replace(FORK, action_id="7")
    door.on_event(Started(fork))
    door.on_event(Reconnecting(fork, Away.SERVER, 1, "", was_streaming=True))
    door.on_event(Resumed(fork, Away.SERVER))
    door.on_event(MessageReceived(fork, "hello"))
    door.on_event(Failed(fork, EndReason.FAULT, "", 1, ForkStats()))
    door.on_event(stopped(fork))
    assert len(ami.events) == 6
    assert {headers["ActionID"] for _, headers in ami.events} == {"7"}


# --- Messages of the server ----------------------------------------------------------------------


def told_message(ami: FakeAmi) -> str:
    """Return the message of the last event, which the variable must have too."""
    name, headers = ami.events[-1]
    assert name == "AudioForkMessage"
    assert headers["Message"] == ami.variables[UNIQUEID]["AUDIOFORK_RESPONSE"]
    return headers["Message"]


def test_message_is_set_before_it_is_told(
    ami: FakeAmi, door: AmiEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami, "raise_event", lambda *_: ami.told.append(str(ami.variables)))
    door.on_event(MessageReceived(FORK, "hello"))
    assert ami.told == ["{'1700000000.1': {'AUDIOFORK_RESPONSE': 'hello'}}"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("", "", id="empty"),
        pytest.param('{"text": "hello"}', '{"text": "hello"}', id="json"),
        pytest.param("a\r\nAction: Hangup\r\n\r\n", "aAction: Hangup", id="line-ends"),
        pytest.param("a\0b\tc\x1bd\x7fe\x85f\x9fg", "abcdefg", id="control-characters"),
        pytest.param("a\u2028b\u2029c", "abc", id="unicode-line-ends"),
        pytest.param("a\ud800b", "ab", id="half-a-character"),
        pytest.param("Zoë \U0001f600", "Zoë \U0001f600", id="beyond-ascii"),
        pytest.param("oui\u00a0? 今\u3000日", "oui\u00a0? 今\u3000日", id="other-blanks"),
        pytest.param("می\u200cخواهم", "می\u200cخواهم", id="joiner"),
    ],
)
def test_message_loses_control_characters_alone(
    ami: FakeAmi, door: AmiEvents, text: str, shown: str
) -> None:
    door.on_event(MessageReceived(FORK, text))
    assert told_message(ami) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a" * 900, "a" * 900, id="fits"),
        pytest.param("a" * 901, "a" * 900, id="one-more"),
        pytest.param("é" * 451, "é" * 450, id="two-bytes-even"),
        pytest.param("a" + "é" * 450, "a" + "é" * 449, id="two-bytes-odd"),
        pytest.param("aa" + "\U0001f600" * 225, "aa" + "\U0001f600" * 224, id="four-bytes"),
        pytest.param("\0" * 1000 + "a" * 900, "a" * 900, id="controls-do-not-count"),
        pytest.param("a" * 65536, "a" * 900, id="64-kib"),
    ],
)
def test_message_is_cut_at_900_bytes_between_two_characters(
    ami: FakeAmi, door: AmiEvents, text: str, shown: str
) -> None:
    door.on_event(MessageReceived(FORK, text))
    assert told_message(ami) == shown


@given(st.text())
@example("\ud800\n")
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    ami = FakeAmi()  # which fails on what the real link does not take
    ami.channels = {UNIQUEID: NAME}
    AmiEvents(ami).on_event(MessageReceived(FORK, text))  # type: ignore[arg-type]
    assert len(told_message(ami).encode()) <= MAX_RESPONSE_BYTES
    assert not {"Cc", "Cs"} & {category(character) for character in without_controls(text)}
    assert harmless(text).isprintable()
    assert len(harmless(text)) == min(len(text), MAX_REASON_CHARACTERS)


# --- Refusals ------------------------------------------------------------------------------------

FIELDS = {"channel": NAME, "uniqueid": "", "wsserver": URL, "actionid": "7"}


async def test_refused_start_sets_variables_and_raises_an_event(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture
) -> None:
    door.refused(FIELDS, "No way")
    ((name, headers),) = ami.events
    assert name == "AudioForkFailed"
    uuid.UUID(headers.pop("AudioForkID"))
    assert headers == {
        "Channel": NAME,
        "Uniqueid": "",
        "WsServer": URL,
        "Reason": "No way",
        "ActionID": "7",
    }
    assert ami.variables == {NAME: {"AUDIOFORK_REASON": "No way", "AUDIOFORK_STATUS": "FAILED"}}
    assert ami.told == ["FAILED", "AudioForkFailed"]
    assert caplog.messages == [
        f"request for channel {NAME} to ws://example.org/a?... refused: No way"
    ]


@pytest.mark.parametrize(("door_name", "is_told"), [("dialplan", True), ("AMI", False)])
async def test_refused_connect_ends_the_wait_of_the_dialplan_that_asked(
    ami: FakeAmi, door: AmiEvents, door_name: str, is_told: bool
) -> None:
    fields = {**FIELDS, "command": "ConnectAudioFork"}
    door.refused(fields, "No way", Origin(door_name, UNIQUEID))
    assert ("AUDIOFORK_CONNECT" in ami.variables[NAME]) is is_told


@pytest.mark.parametrize(
    "url",
    [
        *("ws:user:hunter2@host", "ws://user:hunt/er2@host", "user:hunter2@host"),
        "ws://user:hunter2" + "x" * 300 + "@host",
    ],
)
async def test_refused_shows_no_password_of_a_url(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    door.refused({**FIELDS, "wsserver": url}, "No way")
    assert "hunt" not in f"{ami.variables} {ami.events} {caplog.text}"
    assert dict(ami.events[-1][1])["WsServer"] in ("ws://...", "...")


async def test_refused_without_a_channel_or_url_is_logged_as_such(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture
) -> None:
    door.refused({}, "No channel specified")
    assert caplog.messages == ["request for channel (none) refused: No channel specified"]
    assert ami.variables == {}
    assert "ActionID" not in ami.events[0][1]


@pytest.mark.parametrize("command", ["StopAudioFork", "AUDIOFORKMUTE"])
async def test_refused_stop_or_mute_leaves_the_variables(
    ami: FakeAmi, door: AmiEvents, command: str
) -> None:
    door.refused({**FIELDS, "command": command, "audioforkid": FORK_ID}, "No such fork")
    assert ami.events[0][1]["AudioForkID"] == FORK_ID
    assert ami.variables == {}


@pytest.mark.parametrize("name", ["channel", "uniqueid", "wsserver", "actionid", "audioforkid"])
async def test_refused_shows_nothing_of_a_field_that_could_do_harm(
    ami: FakeAmi, door: AmiEvents, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    door.refused({**FIELDS, name: "a\r\nb" + "é" * 2000}, "c\r\nd" + "é" * 2000)
    headers = ami.events[0][1]
    assert "a??bé" in str(headers)
    assert headers["Reason"].startswith("c??dé")
    assert all(len(value) <= MAX_REASON_CHARACTERS for value in headers.values())
    assert "\r" not in caplog.text


async def test_refused_start_on_a_channel_that_is_not_there_sets_no_variable(
    ami: FakeAmi, door: AmiEvents
) -> None:
    door.refused({**FIELDS, "channel": "nobody"}, "No such channel")
    assert ami.events[0][1]["Reason"] == "No such channel"
    assert ami.posts == []


async def test_flood_of_refusals_is_answered_so_far_and_logged_once(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        door.refused(FIELDS, "No way", Origin("AMI", str(number)))
    assert len(ami.events) == ANSWERS_TO_DOOR
    assert len(caplog.messages) == 1
    door.refused(FIELDS, "No way", Origin("dialplan", UNIQUEID))
    assert len(ami.events) == ANSWERS_TO_DOOR + 1
    assert len(caplog.messages) == 2


async def test_flood_of_one_origin_leaves_answers_for_others(ami: FakeAmi, door: AmiEvents) -> None:
    for _ in range(1000):
        door.refused(FIELDS, "No way", Origin("AMI", NAME))
    assert len(ami.events) == ANSWERS_TO_ORIGIN
    door.refused(FIELDS, "No way", Origin("AMI", "other"))
    assert len(ami.events) == ANSWERS_TO_ORIGIN + 1


# --- What cannot be set --------------------------------------------------------------------------


def test_variable_of_a_channel_that_is_gone_is_not_worth_a_warning(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture
) -> None:
    ami.channels.clear()
    door.on_event(Started(FORK))
    assert caplog.messages == []
    assert ami.told == ["AudioForkStarted"]


@pytest.mark.parametrize(
    "exc", [AmiActionFailed("Setvar", "Permission denied"), AmiUnavailable("down")], ids=str
)
def test_variable_that_cannot_be_set_is_logged(
    ami: FakeAmi, door: AmiEvents, caplog: pytest.LogCaptureFixture, exc: AmiError
) -> None:
    ami.faults["Setvar"] = exc
    door.on_event(Started(FORK))
    assert caplog.messages == [f"AUDIOFORK_STATUS of {UNIQUEID} cannot be set: {exc}"]
    assert ami.told == ["AudioForkStarted"]


@pytest.mark.parametrize("tells_keys", [True, False])
def test_key_is_an_event_only_where_that_is_wished(ami: FakeAmi, tells_keys: bool) -> None:
    AmiEvents(ami, tells_keys=tells_keys).on_event(Pressed(FORK, "#", 120))  # type: ignore[arg-type]
    event = ("AudioForkDtmf", {**OF_FORK, "Digit": "#", "DurationMs": "120"})
    assert ami.events == [event] * tells_keys
