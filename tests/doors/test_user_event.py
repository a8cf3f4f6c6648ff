import asyncio
import uuid

import pytest

from audiofork.asterisk.ami_protocol import RequestReceived
from audiofork.doors.ami_events import AmiEvents
from audiofork.doors.inbox import OF_ORIGIN
from audiofork.doors.user_event import NOBODY_WAITS, UserEvents
from audiofork.errors import AmiActionFailed, AmiError, AmiTimeout, AmiUnavailable
from audiofork.forks.requests import Origin, Request
from audiofork.link.messages import EndReason, SetMute
from audiofork.text import A_BUG
from tests.control_plane import NAME, START, UNIQUEID, UNKNOWN_ID, URL, Clock, Rig
from tests.doors.test_caller_data import encoded


@pytest.mark.parametrize("change", [{"channel": "nobody"}, {"options": "x"}], ids=str)
async def test_log_has_one_line_for_a_refusal(
    rig: Rig, caplog: pytest.LogCaptureFixture, change: dict[str, str]
) -> None:
    await rig.request(**{**START, **change})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "refused: " in record.getMessage()
    assert change.get("channel", NAME) in f"{vars(record).get('channel')} {record.getMessage()}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"channel": "nobody"}, "No such channel", id="channel"),
        pytest.param({"uniqueid": "9.9"}, "No such channel", id="uniqueid"),
        pytest.param({"wsserver": "http://a/"}, "WsServer: the scheme must be", id="scheme"),
        pytest.param({"wsserver": "ws:///a"}, "WsServer: no host", id="no-host"),
        pytest.param({"wsserver": "ws://u:p@a/"}, "WsServer: credentials are", id="credentials"),
        pytest.param({"wsserver": "ws://a/#b"}, "WsServer: a fragment is", id="fragment"),
        pytest.param({"wsserver": "ws://a/ b"}, "WsServer: blanks are", id="blank"),
        pytest.param({"wsserver": ""}, "WsServer: missing", id="no-url"),
        pytest.param(
            {"wsserver": "ws://\u2100" + "a" * 990}, "WsServer: not a URL", id="long-url-in-reason"
        ),
        pytest.param({"wsserver": "ws://" + "a" * 2000}, "WsServer: longer than", id="long-url"),
        pytest.param({"options": "y"}, "Options: unknown option 'y'", id="letter"),
        pytest.param({"options": "D(up)"}, "Options: D takes in, out", id="argument"),
        pytest.param({"options": "D(" + "é" * 900 + ")"}, "Options: D takes", id="long-argument"),
        pytest.param({"options": "D("}, "Options: missing closing", id="parenthesis"),
        pytest.param({"actionid": "a\r\nb"}, "ActionID: control", id="control-characters"),
        pytest.param({"foo": "a\x01b", "bar\n": ""}, "foo: control", id="unknown-field"),
        pytest.param({"command": "Dance"}, "PostProcess: shell commands are", id="verb"),
    ],
)
async def test_bad_start_is_refused_with_event_and_variables(
    rig: Rig, change: dict[str, str], reason: str
) -> None:
    fields = {**START, **change}
    await rig.request(**fields)
    assert rig.sent == []
    assert rig.tap.started == []
    ((name, headers),) = rig.ami.events
    assert name == "AudioForkFailed"
    assert headers["Reason"].startswith(reason)
    assert {"AudioForkID", "Channel", "Uniqueid", "WsServer", "Reason", "ActionID"} == set(headers)
    assert headers["ActionID"] == fields["actionid"].replace("\r", "?").replace("\n", "?")
    if change.get("uniqueid") or change.get("channel"):
        assert rig.ami.variables == {}
    else:
        (variables,) = rig.ami.variables.values()
        assert variables["AUDIOFORK_STATUS"] == "FAILED"
        assert variables["AUDIOFORK_REASON"] == headers["Reason"]
        assert rig.ami.told == ["FAILED", "AudioForkFailed"]


@pytest.mark.parametrize("name", ["channel", "uniqueid", "wsserver", "options", "audioforkid"])
@pytest.mark.parametrize("command", ["StartAudioFork", "StopAudioFork"])
async def test_control_characters_never_reach_asterisk(rig: Rig, name: str, command: str) -> None:
    # FakeAmi fails on them.
    await rig.request(**{**START, "command": command, name: "a\r\nAction: Hangup\0\x85\u2028"})
    assert rig.last_event[1]["Reason"].endswith("control characters are not allowed")
    assert rig.sent == []


async def test_start_without_channel_is_refused_with_an_event_alone(rig: Rig) -> None:
    await rig.request(channel="", uniqueid="", wsserver=URL)
    name, headers = rig.last_event
    uuid.UUID(headers["AudioForkID"])
    assert (name, headers) == (
        "AudioForkFailed",
        {
            "AudioForkID": headers["AudioForkID"],
            "Channel": "",
            "Uniqueid": "",
            "WsServer": URL,
            "Reason": "No channel specified",
        },
    )
    assert rig.ami.variables == {}


async def test_refusal_of_a_known_request_carries_its_own_fork_id(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    uuid.UUID(rig.last_event[1]["AudioForkID"])


@pytest.mark.parametrize(
    "exc",
    [AmiTimeout("no answer"), AmiUnavailable("no answer"), AmiActionFailed("Getvar", "no answer")],
    ids=["timeout", "unavailable", "permission"],
)
async def test_start_that_cannot_be_looked_up_is_refused(rig: Rig, exc: AmiError) -> None:
    rig.ami.faults["Getvar"] = exc
    await rig.request(**START)
    reason = rig.last_event[1]["Reason"]
    assert reason.startswith("Asterisk cannot be asked: ")
    assert reason.endswith("no answer")
    assert rig.sent == []


async def test_refusal_leaves_running_forks_alone(rig: Rig) -> None:
    await rig.stream()
    told = list(rig.ami.told)
    await rig.request(channel="nobody", wsserver=URL)
    await rig.request(channel=NAME, options="x", wsserver=URL)
    assert rig.ends == []
    assert len(rig.forks) == 1
    assert [news for news in rig.ami.told[len(told) :] if news.startswith("Audio")] == [
        "AudioForkFailed"
    ] * 2


@pytest.mark.parametrize(
    ("stop_id", "event_id"), [("8", "8"), ("", "7")], ids=["own-id", "without-id"]
)
async def test_stop_with_action_id_is_answered_with_it(
    rig: Rig, stop_id: str, event_id: str
) -> None:
    await rig.stream()
    await rig.request(command="StopAudioFork", channel=NAME, actionid=stop_id)
    await rig.obey()
    assert rig.last_event[1]["ActionID"] == event_id


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"audioforkid": UNKNOWN_ID}, "No such fork", id="id"),
        pytest.param({"channel": NAME}, "No such fork", id="channel-without-fork"),
        pytest.param({"uniqueid": UNIQUEID}, "No such fork", id="uniqueid-without-fork"),
        pytest.param({"channel": "nobody"}, "No such channel", id="channel"),
        pytest.param({"channel": NAME, "audioforkid": "1"}, "AudioForkID: not a", id="no-uuid"),
        pytest.param({}, "No channel specified", id="nothing"),
    ],
)
async def test_stop_of_nothing_is_answered_and_touches_no_channel(
    rig: Rig, fields: dict[str, str], reason: str
) -> None:
    await rig.request(command="STOPAUDIOFORK", actionid="8", **fields)
    ((name, headers),) = rig.ami.events
    assert name == "AudioForkFailed"
    assert headers["Reason"].startswith(reason)
    assert headers["ActionID"] == "8"
    if "audioforkid" in fields:
        assert headers["AudioForkID"] == fields["audioforkid"]
    else:
        uuid.UUID(headers["AudioForkID"])
    assert rig.ami.variables == {}


async def test_stop_without_an_answer_of_asterisk_is_answered(rig: Rig) -> None:
    await rig.stream()
    rig.ami.faults["Getvar"] = AmiUnavailable("down")
    await rig.request(command="StopAudioFork", channel=NAME)
    assert rig.last_event[0] == "AudioForkFailed"
    assert rig.ends == []


async def test_mute_by_event_that_is_refused_is_answered_with_an_event_alone(rig: Rig) -> None:
    await rig.stream()
    before = dict(rig.variables)
    await rig.request(command="AudioForkMute", channel=NAME, state="1", actionid="8")
    name, headers = rig.last_event
    assert name == "AudioForkFailed"
    assert headers["Reason"] == "No direction specified. Must be read, write or both"
    assert headers["ActionID"] == "8"
    assert rig.variables == before
    assert NAME not in rig.ami.variables


async def test_mute_by_event_is_granted(rig: Rig) -> None:
    fork_id = await rig.stream()
    told = list(rig.ami.told)
    fields = {"command": "AudioForkMute", "channel": NAME, "direction": "write", "state": "on"}
    await rig.request(**fields, actionid="8")
    assert rig.sent[-1] == SetMute(fork_id, False, True)
    assert rig.ami.told == told
    # The fork's events go on to answer the start.
    await rig.ended(fork_id, EndReason.HANGUP)
    assert rig.last_event[1]["ActionID"] == "7"


async def test_shutdown_waits_for_the_answer_to_a_stop(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(command="StopAudioFork", channel=NAME)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.last_event[1]["Reason"] == "No such fork"


async def test_fault_in_a_request_is_logged_and_answered(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(clock)
    monkeypatch.setattr(rig.taps, "is_leg", lambda name, uniqueid: 1 / 0)
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == A_BUG
    assert rig.last_event[1]["ActionID"] == "7"
    assert len(rig.forks) == 0
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.message == "a request could not be handled"


async def test_field_that_comes_twice_is_refused(rig: Rig) -> None:
    rig.user_events.on_request(RequestReceived(dict(START), repeated="WsServer"))
    await rig.user_events.finish()
    ((name, headers),) = rig.ami.events
    assert name == "AudioForkFailed"
    assert headers["Reason"] == "WsServer: appears twice"
    assert rig.sent == []


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [({}, True), ({"uniqueid": "9.9"}, False), ({"encoding": "base64"}, False)],
    ids=str,
)
async def test_connect_for_which_no_dialplan_would_wait_is_refused_with_what_to_do(
    rig: Rig, change: dict[str, str], is_refused: bool
) -> None:
    fields = {"command": "ConnectAudioFork", "wsserver": URL, "uniqueid": UNIQUEID, **change}
    rig.user_events.on_request(RequestReceived(fields, raised_by=UNIQUEID))
    await rig.user_events.finish()
    reason = rig.last_event[1]["Reason"] if rig.ami.events else ""
    assert (reason == NOBODY_WAITS[:240]) is is_refused
    if is_refused:
        assert "Gosub(audiofork,connect,1(URL))" in reason
        assert rig.sent == []


async def test_field_that_a_caller_has_written_is_refused_with_what_to_do(rig: Rig) -> None:
    fields = {**START, "encoding": "base64", "wsserver": encoded(URL)}
    fields["dialled"] = encoded(f"1,WsServer: {URL}")
    rig.user_events.on_request(RequestReceived(fields))
    await rig.user_events.finish()
    ((_, headers),) = rig.ami.events
    assert headers["Reason"].startswith("WsServer is part of the caller's number or name; give the")
    assert headers["WsServer"] == URL
    assert rig.sent == []


async def test_starts_are_told_apart_by_the_channel_that_runs_the_dialplan_or_that_is_named(
    rig: Rig,
) -> None:
    asked: list[Request] = []

    async def ask(request: Request) -> None:
        asked.append(request)

    door = UserEvents(ask, AmiEvents(rig.ami))  # type: ignore[arg-type]
    for event in (
        RequestReceived({**START, "channel": "PJSIP/other"}, raised_by=UNIQUEID),
        RequestReceived(START),
        RequestReceived({"command": "StopAudioFork", "uniqueid": "2.2", "channel": NAME}),
    ):
        door.on_request(event)
    await door.finish()
    assert [request.origin for request in asked] == [
        Origin("dialplan", UNIQUEID),
        Origin("AMI", NAME),
        Origin("AMI", "2.2"),
    ]


async def test_flood_of_one_requester_is_refused_beyond_what_may_wait_and_another_is_served(
    rig: Rig,
) -> None:
    for _ in range(OF_ORIGIN + 10):
        rig.user_events.on_request(RequestReceived({"channel": "nobody", "wsserver": URL}))
    rig.user_events.on_request(RequestReceived(dict(START)))
    assert {event["Reason"] for _, event in rig.ami.events} == {"too many requests at once"}
    await rig.clock.settle()
    assert len(rig.live) == 1
    await rig.user_events.finish()
    await rig.clock.settle()


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_request_to_one_that_does_not_lead_is_answered_unless_another_does(
    rig: Rig, elsewhere: bool
) -> None:
    async def is_led_elsewhere() -> bool:
        return elsewhere

    answers = AmiEvents(rig.ami)  # type: ignore[arg-type]
    door = UserEvents(rig.forks.ask, answers, is_led_elsewhere)
    rig.forks.suspend("the broker is away", 0)
    for fields in (dict(START), {"command": "StopAudioFork", "channel": NAME}):
        door.on_request(RequestReceived(fields))
    await door.finish()
    reasons = [headers["Reason"] for _, headers in rig.ami.events]
    assert reasons == ([] if elsewhere else ["the broker is away"] * 2)
