import asyncio
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.asterisk.ami import BridgeChanged, ChannelHangup, OriginateFailed, RequestReceived
from audiofork.asterisk.taps.ways import Wish
from audiofork.config import SecurityConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    InvalidTransition,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks import ending
from audiofork.forks.bridges import WIDEBAND_SETTLES_S
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.fork import ForkView, effective_url
from audiofork.forks.journal import Entry
from audiofork.forks.legs import (
    ASTERISK_AWAY_S,
    LEG_LOSS_GRACE_S,
    LEG_TIMEOUT_S,
    MAX_NEW_LEGS,
)
from audiofork.forks.recovery import RELAY_DIED
from audiofork.forks.requests import StartFork, parse_request
from audiofork.forks.statistics import STATS_TIMEOUT_S
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    RelayLost,
    ReopenLeg,
    SetGate,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    StatsTaken,
    Streaming,
    Tls,
)
from tests.control_plane import (
    LEG_PREFIX,
    NAME,
    START,
    UNIQUEID,
    UNKNOWN_ID,
    URL,
    WALL_CLOCK_AHEAD_S,
    Clock,
    Rig,
)

PAIRS = LegPart.PAIRS

# --- Start to end --------------------------------------------------------------------------------


async def test_start_asks_the_relay_then_the_tap(rig: Rig) -> None:
    fork_id = await rig.start(options="D(stereo)")
    assert str(uuid.UUID(fork_id)) == fork_id
    assert rig.sent == [ForkSpec(fork_id, NAME, URL, Direction.STEREO, (PAIRS,))]
    assert rig.tap.started == [(fork_id, UNIQUEID)]
    assert rig.ami.events == []
    assert rig.variables == {
        "AUDIOFORK_ID": fork_id,
        "AUDIOFORK_WSSERVER": URL,
        f"AUDIOFORK_WSSERVER_{fork_id.replace('-', '_')}": URL,
        "AUDIOFORK_STATUS": "STARTING",
    }


@pytest.mark.parametrize(
    "target",
    [{"channel": NAME}, {"uniqueid": UNIQUEID}, {"channel": "other", "uniqueid": UNIQUEID}],
    ids=["name", "uniqueid", "uniqueid-goes-first"],
)
async def test_start_by_name_or_uniqueid_learns_both_from_asterisk(
    rig: Rig, target: dict[str, str]
) -> None:
    await rig.request(**target, wsserver=URL)
    spec = rig.sent[0]
    assert isinstance(spec, ForkSpec)
    rig.forks.on_report(Streaming(spec.fork_id))
    _, headers = rig.last_event
    assert (headers["Channel"], headers["Uniqueid"]) == (NAME, UNIQUEID)


async def test_first_frame_is_told_after_the_variables(rig: Rig) -> None:
    fork_id = await rig.stream()
    assert rig.ami.told == ["STARTING", "STREAMING", "AudioForkStarted"]
    assert rig.last_event == (
        "AudioForkStarted",
        {
            "AudioForkID": fork_id,
            "Channel": NAME,
            "Uniqueid": UNIQUEID,
            "WsServer": URL,
            "SampleRate": "8000",
            "ActionID": "7",
        },
    )


async def test_attached_leg_and_open_sink_are_not_told(rig: Rig) -> None:
    await rig.attach()
    assert rig.ami.told == ["STARTING"]


async def test_end_is_told_with_reason_duration_and_counts(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.clock.advance(12.34)
    await rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(617, 610, 7))
    assert rig.last_event == (
        "AudioForkStopped",
        {
            "AudioForkID": fork_id,
            "Channel": NAME,
            "Uniqueid": UNIQUEID,
            "WsServer": URL,
            "Reason": "hangup",
            "Duration": "12.3",
            "FramesIn": "617",
            "FramesSent": "610",
            "FramesDropped": "7",
            "Reconnects": "0",
            "ActionID": "7",
        },
    )
    assert rig.variables["AUDIOFORK_REASON"] == "hangup"
    assert rig.ami.told[-2:] == ["STOPPED", "AudioForkStopped"]


async def test_request_without_action_id_gets_events_without(rig: Rig) -> None:
    await rig.stream(actionid="")
    assert "ActionID" not in rig.last_event[1]


async def test_long_url_is_whole_in_variables_and_events(rig: Rig) -> None:
    url = "ws://example.org/".ljust(1000, "a")
    await rig.stream(wsserver=url)
    assert rig.variables["AUDIOFORK_WSSERVER"] == url
    assert rig.last_event[1]["WsServer"] == url


async def test_log_shows_no_query(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await rig.ended(await rig.stream(), EndReason.STOPPED)
    await rig.request(channel="nobody", wsserver=URL)
    assert "ws://example.org/a?..." in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("reason", "level", "text"),
    [
        (EndReason.HANGUP, "INFO", "ended: hangup (why), 12.3 s, frames 5 in, 3 sent, 2 dropped"),
        (EndReason.SINK_GONE, "WARNING", "ended: sink-gone (why), 12.3 s, frames 5 in, "),
    ],
)
async def test_log_has_one_line_for_the_start_and_one_for_the_end(
    rig: Rig, caplog: pytest.LogCaptureFixture, reason: EndReason, level: str, text: str
) -> None:
    caplog.set_level("INFO")
    fork_id = await rig.stream()
    await rig.clock.advance(12.34)
    await rig.ended(fork_id, reason, "why", ForkStats(5, 3, 2))
    start, end = caplog.records
    assert start.getMessage().endswith(
        "started, both by chanspy at 8000 Hz to ws://example.org/a?..."
    )
    assert end.levelname == level
    assert text in end.getMessage()
    for record in (start, end):
        assert (vars(record)["fork"], vars(record)["channel"]) == (fork_id, NAME)


@pytest.mark.parametrize("change", [{"channel": "nobody"}, {"options": "x"}], ids=str)
async def test_log_has_one_line_for_a_refusal(
    rig: Rig, caplog: pytest.LogCaptureFixture, change: dict[str, str]
) -> None:
    await rig.request(**{**START, **change})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "refused: " in record.getMessage()
    assert change.get("channel", NAME) in f"{vars(record).get('channel')} {record.getMessage()}"


async def test_two_forks_on_one_channel_go_their_own_ways(rig: Rig) -> None:
    first, second = await rig.stream(), await rig.stream()
    assert len(rig.forks) == 2
    await rig.ended(first, EndReason.SINK_GONE)
    assert len(rig.forks) == 1
    await rig.request(command="StopAudioFork", audioforkid=second)
    assert rig.ends == [EndFork(second, EndReason.STOPPED)]


# --- Refusals ------------------------------------------------------------------------------------


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
        pytest.param({"options": "x"}, "Options: unknown option 'x'", id="letter"),
        pytest.param({"options": "D(up)"}, "Options: D takes in, out", id="argument"),
        pytest.param({"options": "D(" + "é" * 900 + ")"}, "Options: D takes", id="long-argument"),
        pytest.param({"options": "D("}, "Options: missing closing", id="parenthesis"),
        pytest.param({"actionid": "a\r\nb"}, "ActionID: control", id="control-characters"),
        pytest.param({"foo": "a\x01b", "bar\n": ""}, "foo: control", id="unknown-field"),
        pytest.param({"command": "Dance"}, "PostProcess: not allowed", id="verb"),
    ],
)
async def test_bad_start_is_refused_with_event_and_variables(
    rig: Rig, change: dict[str, str], reason: str
) -> None:
    fields = {**START, **change}
    await rig.request(**fields)
    assert rig.sent == rig.tap.started == []
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


async def test_start_outside_allow_urls_is_refused(rig: Rig) -> None:
    rig.forks.security = SecurityConfig(allow_urls=("wss://*.example.org",))
    await rig.request(**START)
    assert "allow_urls" in rig.last_event[1]["Reason"]
    assert rig.sent == []


async def test_refusal_of_a_known_request_carries_its_own_fork_id(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    uuid.UUID(rig.last_event[1]["AudioForkID"])


@pytest.mark.parametrize(
    ("uniqueid", "name"),
    [
        (LEG_PREFIX + UNKNOWN_ID, "AudioSocket/127.0.0.1:9093-1"),
        (LEG_PREFIX, "AudioSocket/127.0.0.1:9093-1"),
        ("3.3", "AudioSocket/us-1"),
    ],
    ids=["leg", "prefix-alone", "far-end-of-a-leg"],
)
async def test_start_on_a_leg_is_refused(rig: Rig, uniqueid: str, name: str) -> None:
    rig.ami.channels[uniqueid] = name
    await rig.request(channel=name, wsserver=URL)
    assert rig.last_event[1]["Reason"] == "the channel is itself the leg of a fork"
    assert rig.sent == []


async def test_start_beyond_max_forks_is_refused_until_one_ends(rig: Rig) -> None:
    rig.forks.security = SecurityConfig(max_forks=2)
    first = await rig.stream()
    await rig.stream()
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "2 forks run already (max_forks)"
    assert len(rig.forks) == 2
    await rig.ended(first, EndReason.STOPPED)
    await rig.stream()


async def test_starts_at_once_beyond_max_forks_leave_as_many_as_allowed(rig: Rig) -> None:
    rig.forks.security = SecurityConfig(max_forks=2)
    for _ in range(5):
        rig.user_events.on_request(RequestReceived(dict(START)))
    await rig.clock.settle()
    assert len(rig.live) == len(rig.forks) == 2
    assert len(rig.ami.events) == 3


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


async def test_start_on_a_channel_that_goes_between_two_questions_is_refused(rig: Rig) -> None:
    rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    del rig.ami.channels[UNIQUEID]
    rig.ami.gates["Getvar"].set()
    await rig.clock.settle()
    assert rig.last_event[1]["Reason"] == "No such channel"


async def test_start_on_a_channel_without_a_name_is_refused(rig: Rig) -> None:
    rig.ami.channels["3.3"] = ""
    await rig.request(uniqueid="3.3", wsserver=URL)
    assert rig.last_event[1]["Reason"] == "No such channel"


async def test_hangup_while_the_start_is_looked_up_leaves_no_timer_behind(rig: Rig) -> None:
    rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(uniqueid=UNIQUEID, wsserver=URL)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    del rig.ami.channels[UNIQUEID]
    rig.ami.gates["Getvar"].set()
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.last_event[1]["Reason"] == "No such channel"
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


# --- Stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["audioforkid", "channel", "uniqueid"])
async def test_stop_ends_the_fork_once(rig: Rig, by: str) -> None:
    fork_id = await rig.stream()
    fields = {"audioforkid": fork_id.upper(), "channel": NAME, "uniqueid": UNIQUEID}
    for _ in range(2):
        await rig.request(command="StopAudioFork", **{by: fields[by]})
    assert rig.ends == [EndFork(fork_id, EndReason.STOPPED)]
    await rig.obey()
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["Reason"] == rig.variables["AUDIOFORK_REASON"] == "stopped"


async def test_stop_by_channel_ends_every_fork_on_it_and_no_other(rig: Rig) -> None:
    mine = {await rig.stream(), await rig.stream()}
    await rig.stream(channel="PJSIP/200-0000002b")
    await rig.request(command="StopAudioFork", channel=NAME)
    assert {end.fork_id for end in rig.ends} == mine
    assert len(rig.ends) == 2


async def test_stop_before_the_first_frame_is_stopped_not_failed(rig: Rig) -> None:
    await rig.attach()
    await rig.request(command="StopAudioFork", channel=NAME)
    await rig.obey()
    assert rig.ami.told[-2:] == ["STOPPED", "AudioForkStopped"]


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


@pytest.mark.parametrize("start", [{"uniqueid": UNIQUEID}, {"channel": NAME}], ids=str)
@pytest.mark.parametrize("stop", [{"uniqueid": UNIQUEID}, {"channel": NAME}], ids=str)
async def test_stop_while_the_start_is_looked_up_is_not_lost(
    rig: Rig, start: dict[str, str], stop: dict[str, str]
) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**start, wsserver=URL)
    await rig.request(**stop, command="StopAudioFork", actionid="8")
    gate.set()
    await rig.clock.settle()
    if rig.live:
        await rig.obey()
    assert len(rig.forks) == 0
    ((_, headers),) = rig.ami.events
    assert "stopped" in headers["Reason"]
    assert headers["ActionID"] == "8"


async def test_stop_while_the_leg_is_asked_for_ends_the_fork(rig: Rig) -> None:
    rig.tap.gate = asyncio.Event()
    fork_id = await rig.start()
    await rig.request(command="StopAudioFork", uniqueid=UNIQUEID)
    assert rig.ends == [EndFork(fork_id, EndReason.STOPPED)]
    await rig.obey()
    rig.tap.fault = LegUncertain("no answer")
    rig.tap.gate.set()
    await rig.clock.settle()
    assert len(rig.ends) == 1


# --- Doors that want an answer -------------------------------------------------------------------


async def test_ask_for_a_start_gives_its_id(rig: Rig) -> None:
    (fork_id,) = await rig.ask(**START)
    assert rig.spec.fork_id == fork_id
    await rig.clock.settle()
    assert rig.tap.started == [(fork_id, UNIQUEID)]
    assert rig.variables["AUDIOFORK_ID"] == fork_id


async def test_ask_for_a_start_does_not_wait_for_the_leg(rig: Rig) -> None:
    rig.tap.gate = asyncio.Event()
    await rig.ask(**START)
    rig.tap.gate.set()
    await rig.clock.settle()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"channel": "nobody"}, "No such channel", id="channel"),
        pytest.param({"wsserver": "ws:///a"}, "WsServer: no host", id="url"),
        pytest.param({"wsserver": "wss://other/"}, "WsServer: not among", id="allow-urls"),
        pytest.param({"options": "T(insecure)"}, "Options: T(insecure) is not", id="insecure"),
        pytest.param({"postprocess": "true"}, "PostProcess: not allowed", id="post-process"),
        pytest.param(
            {"channel": "AudioSocket/1"}, "the channel is itself the leg of a fork", id="leg"
        ),
    ],
)
async def test_ask_for_a_start_that_is_refused_raises_and_leaves_nothing(
    rig: Rig, change: dict[str, str], text: str
) -> None:
    rig.allow(allow_urls=("ws://example.org", "wss://example.org"))
    rig.ami.channels[LEG_PREFIX + UNKNOWN_ID] = "AudioSocket/1"
    with pytest.raises(RequestRefused) as caught:
        await rig.ask(**{**START, **change})
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, NoSuchChannel) is (text == "No such channel")
    assert len(rig.forks) == 0
    assert await rig.forks.views() == []
    # The answer is the door's to give.
    assert rig.sent == rig.tap.started == rig.ami.events == []
    assert rig.ami.variables == {}


async def test_ask_for_a_start_with_a_command_that_cannot_be_run_leaves_nothing(rig: Rig) -> None:
    rig.allow(allow_post_process=True)
    with pytest.raises(RequestRefused, match="^PostProcess: "):
        await rig.ask(**START, postprocess="eval ^{CALLERID(name)}")
    assert len(rig.forks) == 0
    assert rig.ami.actions == []


@pytest.mark.parametrize("command", ["StartAudioFork", "StopAudioFork", "AudioForkMute"])
async def test_ask_that_asterisk_does_not_answer_raises(rig: Rig, command: str) -> None:
    rig.ami.faults["Getvar"] = AmiTimeout("Getvar: no answer within 5 s")
    with pytest.raises(AmiTimeout):
        await rig.ask(**START, command=command, direction="both", state="1")
    assert len(rig.forks) == 0


@pytest.mark.parametrize("question", ["Getvar", "Status"])
async def test_ask_given_up_while_it_is_looked_up_leaves_nothing(rig: Rig, question: str) -> None:
    rig.ami.gates[question] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    assert len(rig.forks) == 1
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert asked.cancelled()
    assert len(rig.forks) == 0
    assert rig.sent == []


async def test_ask_for_a_stop_gives_the_ids(rig: Rig) -> None:
    mine = {await rig.stream(), await rig.stream()}
    assert set(await rig.ask(command="StopAudioFork", channel=NAME)) == mine
    assert {end.fork_id for end in rig.ends} == mine


@pytest.mark.parametrize("command", ["StopAudioFork", "AudioForkMute"])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"channel": NAME}, "No such fork"),
        ({"uniqueid": "9.9"}, "No such fork"),
        ({"audioforkid": UNKNOWN_ID}, "No such fork"),
        ({"channel": "nobody"}, "No such channel"),
    ],
    ids=str,
)
async def test_ask_for_a_stop_or_mute_of_nothing_raises(
    rig: Rig, command: str, target: dict[str, str], text: str
) -> None:
    await rig.stream(channel="PJSIP/200-0000002b")
    sent = list(rig.sent)
    with pytest.raises(RequestRefused, match=f"^{text}$"):
        await rig.ask(**target, command=command, direction="both", state="1")
    assert rig.sent == sent


async def test_forks_that_are_still_looked_up_count_at_the_door(rig: Rig) -> None:
    rig.allow(max_forks=1)
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    questions = len(rig.ami.actions)
    with pytest.raises(RequestRefused, match=r"^1 forks run already \(max_forks\)$"):
        await rig.ask(**START)
    assert len(rig.ami.actions) == questions
    gate.set()
    assert await asked == rig.live


async def test_fork_that_was_refused_counts_no_more(rig: Rig) -> None:
    rig.allow(max_forks=1)
    for _ in range(2):
        with pytest.raises(NoSuchChannel):
            await rig.ask(**{**START, "channel": "nobody"})
    await rig.ask(**START)


# --- Options -------------------------------------------------------------------------------------


async def test_options_reach_the_relay(rig: Rig) -> None:
    rig.allow(allow_insecure_tls=True)
    rig.taps.parts, rig.taps.keeps_time = (LegPart.OUT,), False
    fork_id = await rig.start(options="D(out)v(1)V(-2)SB(9)pPT(insecure)R(7)r(0)")
    assert rig.spec == ForkSpec(
        fork_id=fork_id,
        channel=NAME,
        url="wss://example.org/a?token=secret",
        direction=Direction.OUT,
        legs=(LegPart.OUT,),
        gain_in=1,
        gain_out=-2,
        keep_time=True,
        gate_open=True,
        beeps=Beeps(9.0, at_start=True, at_end=True),
        tls=Tls(insecure=True),
        reconnect_interval_s=7.0,
        reconnect_attempts=0,
    )


@pytest.mark.parametrize(
    ("options", "speaks"), [("", False), ("bS", False), ("p", True), ("P", True), ("B", True)]
)
async def test_leg_speaks_to_the_party_only_for_beeps(rig: Rig, options: str, speaks: bool) -> None:
    fork_id = await rig.start(options=options)
    assert rig.tap.speaking == ([fork_id] if speaks else [])


async def test_id_is_stored_in_the_variable_of_option_i(rig: Rig) -> None:
    fork_id = await rig.start(options="i(MY_FORK)")
    assert rig.variables["MY_FORK"] == rig.variables["AUDIOFORK_ID"] == fork_id


@pytest.mark.parametrize(
    ("options", "level", "text"),
    [
        ("a", "INFO", "option a is accepted and means nothing"),
        ("T(insecure)", "WARNING", "the server's certificate is not checked: T(insecure)"),
    ],
)
async def test_log_has_a_note_on_the_option(
    rig: Rig, caplog: pytest.LogCaptureFixture, options: str, level: str, text: str
) -> None:
    caplog.set_level("INFO")
    rig.allow(allow_insecure_tls=True)
    await rig.start(options=options)
    assert (level, text) in [(record.levelname, record.message) for record in caplog.records]


# --- TLS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "effective"),
    [
        ("ws://a:8080/b?c", "T(on)", "wss://a:8080/b?c"),
        ("WS://a/", "T(ca=/ca.pem)", "wss://a/"),
        ("wss://a/", "T(on)", "wss://a/"),
        ("ws://a/", "", "ws://a/"),
        ("wss://a/", "", "wss://a/"),
        ("http://a/", "T(on)", "http://a/"),
        ("ws", "T(on)", "ws"),
    ],
)
def test_option_t_makes_wss_of_ws_and_of_nothing_else(
    url: str, options: str, effective: str
) -> None:
    request = parse_request({**START, "wsserver": url, "options": options})
    assert isinstance(request, StartFork)
    assert effective_url(request) == effective


async def test_url_that_is_used_is_the_one_that_is_told(rig: Rig) -> None:
    await rig.stream(options="T(on)", wsserver="ws://example.org/")
    assert rig.spec.url == "wss://example.org/"
    assert rig.last_event[1]["WsServer"] == rig.variables["AUDIOFORK_WSSERVER"] == rig.spec.url


async def test_url_that_is_used_is_the_one_that_must_be_allowed(rig: Rig) -> None:
    rig.allow(allow_urls=("wss://example.org",))
    with pytest.raises(RequestRefused, match="allow_urls"):
        await rig.ask(**START)
    await rig.ask(**START, options="T(on)")
    rig.allow(allow_urls=("ws://example.org",))
    with pytest.raises(RequestRefused, match="allow_urls"):
        await rig.ask(**START, options="T(on)")


async def test_insecure_tls_is_refused_unless_allowed(rig: Rig) -> None:
    await rig.request(**START, options="T(ca=/a.pem:insecure)")
    reason = "Options: T(insecure) is not allowed (allow_insecure_tls)"
    assert rig.last_event[1]["Reason"] == rig.ami.variables[NAME]["AUDIOFORK_REASON"] == reason
    assert rig.sent == []
    rig.allow(allow_insecure_tls=True)
    await rig.start(options="T(insecure)")


async def test_fork_that_the_relay_ends_at_once_gets_no_leg_and_stays_failed(rig: Rig) -> None:
    rig.spec_fault = "the authorities of /none.pem cannot be used"
    (fork_id,) = await rig.ask(**START, options="T(ca=/none.pem)")
    await rig.clock.settle()
    assert rig.tap.started == []
    assert rig.ami.told == ["STARTING", "FAILED", "AudioForkFailed"]
    assert rig.last_event[1]["AudioForkID"] == fork_id
    assert rig.last_event[1]["Detail"] == rig.spec_fault


# --- Bridges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bridged", [True, False])
async def test_bridged_only_begins_as_the_status_says(rig: Rig, bridged: bool) -> None:
    rig.ami.bridged = {UNIQUEID} if bridged else {"2.2"}
    await rig.start(options="b")
    assert rig.spec.gate_open is bridged


async def test_without_bridged_only_nobody_asks_and_the_gate_stays_open(rig: Rig) -> None:
    fork_id = await rig.stream()
    for entered in (True, False):
        rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    assert rig.spec.gate_open
    assert rig.sent == [ForkSpec(fork_id, NAME, URL, Direction.BOTH, (PAIRS,))]
    assert "Status" not in [name for name, _, _ in rig.ami.actions]


async def test_bridge_moves_the_gate_of_the_channel_s_own_forks_alone(rig: Rig) -> None:
    fork_id = await rig.stream(options="b")
    await rig.stream(options="b", channel="PJSIP/200-0000002b")
    await rig.stream()
    before = len(rig.sent)
    for entered in (True, False, True):
        rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    rig.forks.on_event(BridgeChanged("9.9", True))
    assert rig.sent[before:] == [SetGate(fork_id, is_open) for is_open in (True, False, True)]


async def test_bridge_event_without_news_moves_no_gate(rig: Rig) -> None:
    rig.ami.bridged = {UNIQUEID}
    await rig.stream(options="b")
    rig.forks.on_event(BridgeChanged(UNIQUEID, True))
    assert [type(command) for command in rig.sent] == [ForkSpec]


@pytest.mark.parametrize("entered", [True, False])
async def test_bridge_event_during_the_look_up_wins_over_the_status(
    rig: Rig, entered: bool
) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    rig.ami.bridged = set() if entered else {UNIQUEID}
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    gate.set()
    await asked
    # The relay hears of it with the fork, not before.
    assert [type(command) for command in rig.sent] == [ForkSpec]
    assert rig.spec.gate_open is entered
    rig.forks.on_event(BridgeChanged(UNIQUEID, not entered))
    assert rig.sent[-1] == SetGate(rig.spec.fork_id, not entered)


async def test_bridged_only_on_a_channel_that_goes_before_its_status_is_refused(rig: Rig) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    rig.ami.channels.clear()
    gate.set()
    with pytest.raises(NoSuchChannel):
        await asked


async def test_link_up_catches_up_with_bridges(rig: Rig) -> None:
    fork_id = await rig.stream(options="b")
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.ami.bridged = {UNIQUEID, "2.2"}
    await rig.forks.on_link_up()
    assert rig.sent[2:] == [SetGate(fork_id, True)]
    rig.ami.channels.clear()
    await rig.forks.on_link_up()
    assert len(rig.sent) == 3


# --- Mute ----------------------------------------------------------------------------------------


async def mute(rig: Rig, direction: str, state: str, **fields: str) -> list[str]:
    fields = fields or {"channel": NAME}
    return await rig.ask(command="AudioForkMute", direction=direction, state=state, **fields)


async def muted(rig: Rig) -> list[str]:
    return [view.muted for view in await rig.forks.views()]


@pytest.mark.parametrize(
    ("direction", "sides"),
    [("read", (True, False)), ("write", (False, True)), ("both", (True, True))],
)
async def test_mute_silences_the_side_until_it_is_undone(
    rig: Rig, direction: str, sides: tuple[bool, bool]
) -> None:
    fork_id = await rig.stream()
    assert await mute(rig, direction, "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, *sides)
    assert await muted(rig) == [direction]
    await mute(rig, direction, "0")
    assert rig.sent[-1] == SetMute(fork_id, False, False)
    assert await muted(rig) == [""]


async def test_mutes_of_both_sides_add_up(rig: Rig) -> None:
    fork_id = await rig.stream()
    await mute(rig, "read", "on")
    await mute(rig, "write", "on")
    assert rig.sent[-1] == SetMute(fork_id, True, True)
    assert await muted(rig) == ["both"]
    await mute(rig, "read", "off")
    assert rig.sent[-1] == SetMute(fork_id, False, True)
    assert await muted(rig) == ["write"]


@pytest.mark.parametrize("by", [{"channel": NAME}, {"uniqueid": UNIQUEID}], ids=str)
async def test_mute_by_channel_is_for_all_its_forks_and_no_other(
    rig: Rig, by: dict[str, str]
) -> None:
    mine = {await rig.stream(), await rig.attach()}
    await rig.stream(channel="PJSIP/200-0000002b")
    assert set(await mute(rig, "both", "1", **by)) == mine
    assert await muted(rig) == ["both", "both", ""]


async def test_mute_by_id_is_for_one_fork(rig: Rig) -> None:
    await rig.stream()
    second = await rig.stream()
    assert await mute(rig, "read", "1", audioforkid=second) == [second]
    assert await muted(rig) == ["", "read"]


@pytest.mark.parametrize("by_id", [True, False])
async def test_mute_while_the_start_is_looked_up_reaches_the_relay_after_it(
    rig: Rig, by_id: bool
) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    (view,) = await rig.forks.views()
    by = {"audioforkid": view.id} if by_id else {"channel": NAME}
    muting = asyncio.create_task(mute(rig, "read", "1", **by))
    await rig.clock.settle()
    gate.set()
    assert await asked == await muting == [view.id]
    assert [type(command) for command in rig.sent] == [ForkSpec, SetMute]


@pytest.mark.parametrize("command", ["StopAudioFork", "AudioForkMute"])
async def test_stop_or_mute_by_id_of_a_start_that_is_refused_finds_no_fork(
    rig: Rig, command: str
) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**{**START, "channel": "nobody"})
    (view,) = await rig.forks.views()
    fields = {"command": command, "direction": "read", "state": "1", "audioforkid": view.id}
    asked = asyncio.create_task(rig.ask(**fields))
    await rig.clock.settle()
    gate.set()
    with pytest.raises(RequestRefused, match="^No such fork$"):
        await asked
    assert rig.sent == []


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


# --- The choice of tap and sample rate -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rates"), [("", ()), ("L(16000)", (16000,)), ("L(0,8000)", (0, 8000))]
)
async def test_rates_that_are_wished_for_are_those_of_option_l(
    rig: Rig, options: str, rates: tuple[int, ...]
) -> None:
    await rig.start(options=options)
    assert rig.taps.asked == [(UNIQUEID, rates)]


async def test_rate_that_is_chosen_is_ordered_told_logged_and_shown(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.taps.sample_rate = 16000
    await rig.stream(options="L(16000,8000)")
    assert rig.spec.sample_rate == 16000
    assert [order.sample_rate for order in rig.tap.orders] == [16000]
    assert rig.last_event[0] == "AudioForkStarted"
    assert rig.last_event[1]["SampleRate"] == "16000"
    (view,) = await rig.forks.views()
    assert (view.tap, view.sample_rate) == ("chanspy", 16000)
    assert "started, both by chanspy at 16000 Hz to " in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_what_is_not_as_it_was_wished_for_is_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.taps.note = "8000 Hz in place of 16000: set [ari]"
    await rig.start()
    assert (rig.taps.note, "WARNING") in [(one.message, one.levelname) for one in caplog.records]


async def test_start_without_a_tap_is_refused_with_the_reason_and_leaves_nothing(rig: Rig) -> None:
    rig.taps.faults[UNIQUEID] = RequestRefused("16000 Hz needs the snoop tap: set [ari]")
    await rig.request(**START)
    assert rig.last_event[0] == "AudioForkFailed"
    assert rig.last_event[1]["Reason"] == "16000 Hz needs the snoop tap: set [ari]"
    assert rig.sent == rig.tap.orders == []
    assert rig.journal.entries == {}
    assert len(rig.forks) == 0


@pytest.mark.parametrize(
    "exc", [NoSuchChannel(), AmiUnavailable("down")], ids=lambda exc: type(exc).__name__
)
async def test_ask_for_a_start_whose_channel_s_rate_cannot_be_asked_for_raises(
    rig: Rig, exc: Exception
) -> None:
    rig.taps.faults[UNIQUEID] = exc
    with pytest.raises(type(exc)):
        await rig.ask(**START)
    assert len(rig.forks) == 0


async def test_views_show_a_fork_without_tap_and_rate_while_they_are_chosen(rig: Rig) -> None:
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    (view,) = await rig.forks.views()
    assert (view.state, view.uniqueid, view.tap, view.sample_rate) == ("requested", UNIQUEID, "", 0)
    rig.taps.gate.set()
    await rig.clock.settle()
    assert [view.state for view in await rig.forks.views()] == ["attaching"]


async def test_stop_while_the_tap_is_chosen_is_not_lost(rig: Rig) -> None:
    rig.taps.gate = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    assert len(await rig.ask(command="StopAudioFork", channel=NAME)) == 1
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="^ended before it began: stopped$"):
        await asked
    assert rig.sent == rig.tap.orders == []


async def test_hangup_while_the_tap_is_chosen_refuses_the_start(rig: Rig) -> None:
    rig.taps.gate = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S)
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="^ended before it began: hangup$"):
        await asked
    assert rig.sent == []


async def test_hangup_just_before_the_tap_is_chosen_ends_the_fork_after_the_grace(
    rig: Rig,
) -> None:
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.taps.gate.set()
    await rig.clock.settle()
    assert rig.ends == []
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(rig.spec.fork_id, EndReason.HANGUP)]


async def test_mute_while_the_tap_is_chosen_waits_for_it_and_reaches_the_relay_after_the_fork(
    rig: Rig,
) -> None:
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    assert not muting.done()
    assert (rig.sent, await muted(rig)) == ([], [""])
    rig.taps.gate.set()
    await rig.clock.settle()
    assert await muting == rig.live
    assert [type(command) for command in rig.sent] == [ForkSpec, SetMute]


@pytest.mark.parametrize("ends", ["refused", "stopped"])
async def test_mute_while_the_tap_is_chosen_for_a_fork_that_does_not_begin_finds_none(
    rig: Rig, ends: str
) -> None:
    rig.taps.gate = asyncio.Event()
    if ends == "refused":
        rig.taps.faults[UNIQUEID] = RequestRefused("no way")
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    if ends == "stopped":
        await rig.ask(command="StopAudioFork", channel=NAME)
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="^No such fork$"):
        await muting
    assert (rig.sent, rig.journal.entries) == ([], {})


async def test_mute_that_waits_for_one_fork_mutes_no_other_that_has_ended_meanwhile(
    rig: Rig,
) -> None:
    """What it noted of that in the journal would bring the fork back at the next start."""
    ended = await rig.stream()
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "both", "1"))
    await rig.clock.settle()
    await rig.ended(ended, EndReason.STOPPED)
    rig.taps.gate.set()
    await rig.clock.settle()
    assert await muting == rig.live
    assert rig.sent[-1] == SetMute(rig.live[0], True, True)
    assert set(rig.journal.entries) == set(rig.live)


# What is to be had when [ari] is not set, in most calls.
MIXED = (LegPart.MIX,)


def why_mixed(fork_id: str) -> str:
    return (
        f"AudioForkMute: fork {fork_id}: in and out come mixed by Asterisk (ChanSpy), so one of "
        "them cannot be muted alone; mute both, or set up [ari] for forks to come"
    )


async def noted(rig: Rig) -> object:
    """Return all that says what is muted, wherever it stands."""
    return len(rig.sent), await muted(rig), dict(rig.journal.entries), list(rig.ami.told)


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_mute_of_one_side_of_a_mixed_fork_is_refused_and_nothing_is_noted(
    rig: Rig, direction: str
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    before = await noted(rig)
    with pytest.raises(RequestRefused) as caught:
        await mute(rig, direction, "1")
    assert str(caught.value) == why_mixed(fork_id)
    assert await noted(rig) == before


async def test_mute_of_one_side_of_a_mixed_fork_by_event_is_answered_with_the_reason(
    rig: Rig,
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    fields = {"command": "AudioForkMute", "channel": NAME, "direction": "read", "state": "1"}
    await rig.request(**fields, actionid="8")
    name, headers = rig.last_event
    assert (name, headers["ActionID"]) == ("AudioForkFailed", "8")
    assert headers["Reason"] == why_mixed(fork_id)
    assert await muted(rig) == [""]


async def test_mute_of_one_side_is_refused_too_for_a_fork_that_turns_out_to_be_mixed(
    rig: Rig,
) -> None:
    rig.taps.parts, rig.taps.gate = MIXED, asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="come mixed by Asterisk"):
        await muting
    await rig.clock.settle()
    assert [type(command) for command in rig.sent] == [ForkSpec]
    assert await muted(rig) == [""]


async def test_both_sides_of_a_mixed_fork_are_muted_and_unmuted_at_once(rig: Rig) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    assert await mute(rig, "both", "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, True, True)
    with pytest.raises(RequestRefused, match="come mixed by Asterisk"):
        await mute(rig, "read", "0")
    assert await muted(rig) == ["both"]
    await mute(rig, "both", "0")
    assert rig.sent[-1] == SetMute(fork_id, False, False)


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_state_that_one_side_of_a_mixed_fork_has_already_is_granted(
    rig: Rig, direction: str
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    assert await mute(rig, direction, "0") == [fork_id]
    await mute(rig, "both", "1")
    assert await mute(rig, direction, "1") == [fork_id]
    assert await muted(rig) == ["both"]


@pytest.mark.parametrize(
    "parts",
    [(LegPart.PAIRS,), (LegPart.IN, LegPart.OUT), (LegPart.IN,), (LegPart.OUT,)],
    ids=lambda parts: "-".join(parts),
)
@pytest.mark.parametrize("direction", ["read", "write"])
async def test_one_side_of_a_fork_that_is_not_mixed_is_muted_alone(
    rig: Rig, direction: str, parts: tuple[LegPart, ...]
) -> None:
    rig.taps.parts = parts
    fork_id = await rig.stream()
    assert await mute(rig, direction, "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, direction == "read", direction == "write")


@pytest.mark.parametrize("mixed_first", [True, False])
async def test_mute_of_one_side_by_channel_is_refused_for_all_if_one_fork_is_mixed(
    rig: Rig, mixed_first: bool
) -> None:
    kinds = [MIXED, (PAIRS,)] if mixed_first else [(PAIRS,), MIXED]
    fork_ids = {}
    for rig.taps.parts in kinds:
        fork_ids[rig.taps.parts] = await rig.stream()
    before = await noted(rig)
    with pytest.raises(RequestRefused) as caught:
        await mute(rig, "read", "1")
    assert str(caught.value) == why_mixed(fork_ids[MIXED])
    assert await noted(rig) == before
    assert set(await mute(rig, "both", "1")) == set(fork_ids.values())
    assert await muted(rig) == ["both", "both"]


# --- List ----------------------------------------------------------------------------------------


async def test_views_show_all_forks_oldest_first(rig: Rig) -> None:
    first = await rig.stream(options="D(stereo)")
    await rig.clock.advance(2.5)
    second = await rig.start(channel="PJSIP/200-0000002b", options="T(on)")
    await rig.clock.advance(1.5)
    rig.stats = {first: ForkStats(200, 190, 7, 1)}
    assert await rig.forks.views() == [
        ForkView(
            *(first, NAME, UNIQUEID, URL, "stereo", "streaming", 4.0, 200, 190, 7, ""),
            tap="chanspy",
            sample_rate=8000,
        ),
        ForkView(
            id=second,
            channel="PJSIP/200-0000002b",
            uniqueid="2.2",
            url="wss" + URL.removeprefix("ws"),
            direction="both",
            state="attaching",
            age_s=1.5,
            frames_in=0,
            frames_sent=0,
            frames_dropped=0,
            muted="",
            tap="chanspy",
            sample_rate=8000,
        ),
    ]


async def test_views_show_a_fork_that_is_looked_up(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    (view,) = await rig.forks.views()
    assert (view.channel, view.uniqueid, view.state) == (NAME, "", "requested")
    assert (view.tap, view.sample_rate) == ("", 0)
    gate.set()
    await rig.clock.settle()


async def test_views_without_an_answer_of_the_relay_time_out(rig: Rig) -> None:
    rig.stats = None
    views = asyncio.create_task(rig.forks.views())
    await rig.clock.advance(STATS_TIMEOUT_S - 0.1)
    assert not views.done()
    await rig.clock.advance(0.2)
    with pytest.raises(TimeoutError):
        await views
    rig.forks.on_report(StatsTaken(1, {}))  # late, and of no harm


async def test_views_at_once_each_get_an_answer(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.stats = None
    asked = [asyncio.create_task(rig.forks.views()) for _ in range(2)]
    await rig.clock.settle()
    for ticket in (2, 1):
        rig.forks.on_report(StatsTaken(ticket, {fork_id: ForkStats(frames_in=ticket)}))
    assert [(await views)[0].frames_in for views in asked] == [1, 2]


async def test_ended_fork_is_listed_no_more(rig: Rig) -> None:
    await rig.ended(await rig.stream(), EndReason.HANGUP)
    assert await rig.forks.views() == []


# --- Hangup --------------------------------------------------------------------------------------


async def test_hangup_ends_the_fork_after_a_grace(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S - 0.01)
    assert rig.ends == []
    await rig.clock.advance(0.02)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_hangup_request_and_hangup_are_one(rig: Rig) -> None:
    await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S * 0.75)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S * 0.5)
    assert len(rig.ends) == 1
    await rig.clock.advance(1)
    assert len(rig.ends) == 1


async def test_hangup_ends_every_fork_of_the_channel_and_no_other(rig: Rig) -> None:
    mine = {await rig.stream(), await rig.stream()}
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.forks.on_event(ChannelHangup("9.9"))
    rig.forks.on_event(ChannelHangup(""))
    await rig.clock.advance(1)
    assert {end.fork_id for end in rig.ends} == mine


async def test_hangup_before_the_leg_attaches_still_ends_the_fork(rig: Rig) -> None:
    fork_id = await rig.start()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_stop_within_the_grace_of_a_hangup_goes_first(rig: Rig) -> None:
    await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.request(command="StopAudioFork", uniqueid=UNIQUEID)
    await rig.clock.advance(1)
    assert [end.reason for end in rig.ends] == [EndReason.STOPPED]


# --- The link to Asterisk is away, and back -------------------------------------------------------


async def lose_link_and_leg(rig: Rig, fork_id: str) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("the link is lost")
    await rig.lose_leg(fork_id)
    await rig.clock.advance(ASTERISK_AWAY_S - 1)
    assert rig.ends == []
    del rig.ami.faults["Getvar"]


async def test_leg_lost_with_the_link_is_replaced_when_the_link_is_back(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_link_and_leg(rig, fork_id)
    await rig.forks.on_link_up()
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.sent[-1] == ReopenLeg(fork_id, PAIRS)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.last_event[1]["GapMs"] == "4150"
    assert rig.ends == []


async def test_leg_lost_with_the_link_and_the_channel_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_link_and_leg(rig, fork_id)
    del rig.ami.channels[UNIQUEID]
    await rig.forks.on_link_up()
    await rig.clock.advance(1)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


@pytest.mark.parametrize("leg_lost", [True, False])
async def test_restart_of_asterisk_ends_its_forks_and_new_ones_work(
    rig: Rig, leg_lost: bool
) -> None:
    fork_id = await rig.stream()
    if leg_lost:
        await lose_link_and_leg(rig, fork_id)
    rig.ami.channels = {"3.3": "PJSIP/300-00000001"}
    rig.ami.asterisk_started = "later"
    await rig.forks.on_link_up()
    await rig.clock.advance(1)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "Asterisk was restarted")]
    await rig.obey()
    assert rig.last_event[1]["Reason"] == "leg-failed"
    assert rig.last_event[1]["Detail"] == "Asterisk was restarted"
    await rig.stream(channel="PJSIP/300-00000001")
    await rig.forks.on_link_up()
    assert len(rig.ends) == 1


@pytest.mark.parametrize("runs", [("", "later"), ("today", "")])
async def test_asterisk_that_does_not_say_when_it_started_is_asked_for_the_channel(
    rig: Rig, runs: tuple[str, str]
) -> None:
    rig.ami.asterisk_started = runs[0]
    fork_id = await rig.stream()
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.ami.asterisk_started = runs[1]
    del rig.ami.channels[UNIQUEID]
    await rig.forks.on_link_up()
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_link_up_ends_the_forks_whose_channels_went_meanwhile(rig: Rig) -> None:
    gone = {await rig.stream(), await rig.attach()}
    await rig.stream(channel="PJSIP/200-0000002b")
    del rig.ami.channels[UNIQUEID]
    asked = len(rig.ami.actions)
    await rig.forks.on_link_up()
    assert [name for name, _, _ in rig.ami.actions[asked:]] == ["CoreShowChannels"]
    await rig.clock.advance(HANGUP_GRACE_S)
    assert {end.fork_id for end in rig.ends} == gone
    assert {end.reason for end in rig.ends} == {EndReason.HANGUP}


async def test_channel_that_is_younger_than_the_list_lives(rig: Rig) -> None:
    gate = rig.ami.gates["CoreShowChannels"] = asyncio.Event()
    linked = asyncio.create_task(rig.forks.on_link_up())
    await rig.clock.settle()
    fork_id = await rig.stream()
    name = rig.ami.channels.pop(UNIQUEID)
    gate.set()
    await linked
    rig.ami.channels[UNIQUEID] = name
    await rig.clock.advance(1)
    assert rig.live == [fork_id]
    assert rig.ends == []


async def test_sweep_that_fails_is_said_and_nothing_else(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID]
    rig.ami.faults["Hangup"] = AmiTimeout("Hangup: no answer")
    rig.forks.resume_after_login([ENTRY])
    await rig.forks.on_link_up()
    assert "may remain: Hangup: no answer" in caplog.text
    assert rig.live == [ENTRY.fork_id]


# --- A relay process that dies with its forks -----------------------------------------------------


async def test_forks_of_a_dead_relay_process_are_ordered_anew_and_this_is_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id, other = await rig.stream(options="D(in)"), await rig.stream(actionid="8")
    spec = rig.sent[0]
    rig.sent.clear()
    await rig.lose_relay(fork_id)
    assert rig.sent == [spec]
    assert rig.ami.told[-2:] == ["RECONNECTING", "AudioForkReconnecting"]
    assert rig.last_event[1]["AudioForkID"] == fork_id
    assert (rig.last_event[1]["Attempt"], rig.last_event[1]["Reason"]) == ("1", RELAY_DIED)
    assert [view.state for view in await rig.forks.views()] == ["reconnecting", "streaming"]
    assert rig.tap.legs[-1] not in rig.tap.legs[:-1]
    assert rig.tap.started[-1] == (fork_id, UNIQUEID)
    await rig.clock.advance(0.25)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert rig.ami.told.count("AudioForkResumed") == 1
    assert (rig.last_event[1]["FramesDropped"], rig.last_event[1]["GapMs"]) == ("0", "250")
    told = list(rig.ami.told)
    rig.forks.on_report(Streaming(fork_id))  # the first of the new process, not of the fork
    assert rig.ami.told == told
    assert [view.state for view in await rig.forks.views()] == ["streaming"] * 2
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert rig.ends == []
    assert rig.live == [other, fork_id]
    assert "a relay process died; attempt 1 follows" in caplog.text


async def test_fork_of_a_dead_relay_process_waits_for_its_server_too(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told[-2:] == ["AudioForkReconnecting", "AudioForkResumed"]  # the leg alone
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused"))
    rig.forks.on_report(SinkOpened(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    rig.forks.on_report(Streaming(fork_id))
    assert [view.state for view in await rig.forks.views()] == ["streaming"]


async def test_gap_counts_from_the_death_of_the_relay_process(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id, away_s=1.5)
    await rig.clock.advance(0.5)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.last_event[1]["GapMs"] == "2000"


async def test_fork_that_was_attaching_when_its_relay_process_died_starts_all_the_same(
    rig: Rig,
) -> None:
    fork_id = await rig.start()
    await rig.lose_relay(fork_id)
    assert rig.ami.told == ["STARTING", "AudioForkReconnecting"]
    rig.forks.on_event(OriginateFailed(rig.tap.legs[0], "0"))  # the first leg found nobody
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(Streaming(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkStarted"]
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert rig.ends == []


async def test_refusal_of_a_leg_for_a_dead_relay_process_is_no_news(rig: Rig) -> None:
    rig.tap.gate, rig.tap.fault = asyncio.Event(), LegRefused("Originate: no")
    fork_id = await rig.start()
    gate, rig.tap.gate, rig.tap.fault = rig.tap.gate, None, None
    await rig.lose_relay(fork_id)
    rig.tap.fault = LegRefused("Originate: no")
    gate.set()
    await rig.clock.settle()
    assert rig.ends == []


async def test_new_relay_process_hears_what_has_changed_since_the_start(rig: Rig) -> None:
    rig.ami.bridged = set()
    fork_id = await rig.stream(options="b")
    rig.forks.on_event(BridgeChanged(UNIQUEID, True))
    await rig.request(command="AudioForkMute", channel=NAME, direction="read", state="1")
    rig.sent.clear()
    await rig.lose_relay(fork_id)
    spec, mute = rig.sent
    assert isinstance(spec, ForkSpec) and spec.gate_open
    assert mute == SetMute(fork_id, True, False)


async def test_too_many_dead_relay_processes_end_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(MAX_NEW_LEGS):
        await rig.lose_relay(fork_id)
        rig.forks.on_report(SinkOpened(fork_id))
        rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.lose_relay(fork_id)
    name, headers = rig.last_event
    assert (name, headers["Reason"]) == ("AudioForkStopped", "leg-failed")
    assert headers["Detail"] == f"the leg was lost 4 times in 10 s, last: {RELAY_DIED}"
    assert headers["RelaysLost"] == "4"
    assert len(rig.forks) == 0 and rig.live == []
    assert rig.journal.entries == {}


@pytest.mark.parametrize("how", ["stopped", "hangup"])
async def test_fork_that_was_ending_ends_with_its_relay_process(rig: Rig, how: str) -> None:
    fork_id = await rig.stream()
    if how == "stopped":
        await rig.request(command="StopAudioFork", channel=NAME)
    else:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.lose_relay(fork_id)
    name, headers = rig.last_event
    assert (name, headers["Reason"], headers["Detail"]) == ("AudioForkStopped", how, RELAY_DIED)
    assert len(rig.forks) == 0
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.live == []


async def test_totals_of_a_fork_say_that_they_began_anew(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    await rig.request(command="StopAudioFork", channel=NAME)
    await rig.ended(fork_id, EndReason.STOPPED, stats=ForkStats(5, 5))
    assert rig.last_event[1]["RelaysLost"] == "1"
    assert rig.last_event[1]["FramesIn"] == "5"
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.SINK_GONE)
    assert "RelaysLost" not in rig.last_event[1]


async def test_leg_that_was_lost_just_before_its_relay_process_is_replaced_once(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.lose_relay(fork_id)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 2
    assert not any(isinstance(command, ReopenLeg) for command in rig.sent)


async def test_fork_that_ended_when_its_relay_process_died_is_no_news(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.SINK_GONE)
    told = list(rig.ami.told)
    rig.forks.on_report(RelayLost((fork_id,)))
    await rig.clock.settle()
    assert rig.ami.told == told


async def test_fork_whose_tls_files_went_since_ends_when_its_relay_process_dies(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    rig.spec_fault = "the certificate cannot be used"
    await rig.lose_relay(fork_id)
    assert rig.last_event[1]["Reason"] == "sink-refused"
    assert len(rig.tap.legs) == 1 and len(rig.forks) == 0


# --- The journal, and forks of an earlier run ----------------------------------------------------

ENTRY = Entry(
    fork_id=UNKNOWN_ID,
    channel="PJSIP/old-name",
    uniqueid=UNIQUEID,
    url=URL,
    options="D(stereo)v(2)",
    post_process="",
    action_id="7",
    values={},
    mute_in=False,
    mute_out=False,
    started=WALL_CLOCK_AHEAD_S + 900,  # 100 s before the test begins
    asterisk_started="today",
)


async def take_up(rig: Rig, *entries: Entry) -> None:
    rig.journal.entries = {entry.fork_id: entry for entry in entries}
    rig.forks.resume_after_login(entries)
    await rig.forks.on_link_up()
    await rig.clock.settle()


async def test_running_fork_is_in_the_journal_until_it_ends(rig: Rig) -> None:
    fork_id = await rig.start(options="D(in)")
    assert rig.journal.entries == {
        fork_id: Entry(
            fork_id=fork_id,
            channel=NAME,
            uniqueid=UNIQUEID,
            url=URL,
            options="D(in)",
            post_process="",
            action_id="7",
            values={},
            mute_in=False,
            mute_out=False,
            started=WALL_CLOCK_AHEAD_S + 1000,
            asterisk_started="today",
        )
    }
    await rig.ended(fork_id, EndReason.STOPPED)
    assert rig.journal.entries == {}


async def test_refused_start_is_not_in_the_journal(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    assert rig.journal.entries == {}


async def test_fork_that_the_relay_ends_at_once_is_not_left_in_the_journal(rig: Rig) -> None:
    rig.spec_fault = "no such file"
    await rig.request(**START)
    assert rig.journal.entries == {}


async def test_mute_is_in_the_journal(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.request(command="AudioForkMute", channel=NAME, direction="read", state="1")
    entry = rig.journal.entries[fork_id]
    assert (entry.mute_in, entry.mute_out) == (True, False)


async def test_fork_of_an_earlier_run_is_taken_up(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await take_up(rig, ENTRY)
    (spec,) = rig.sent
    assert spec == ForkSpec(UNKNOWN_ID, NAME, URL, Direction.STEREO, (PAIRS,), gain_in=2)
    assert rig.tap.started == [(UNKNOWN_ID, UNIQUEID)]
    assert rig.tap.legs[0] != LEG_PREFIX + UNKNOWN_ID  # the old leg may still have that name
    assert rig.taps.kept == [set()]
    assert rig.ami.told == []
    rig.forks.on_report(LegAttached(UNKNOWN_ID, PAIRS))
    rig.forks.on_report(Streaming(UNKNOWN_ID))
    assert rig.ami.told == ["STREAMING", "AudioForkStarted"]
    assert rig.last_event[1] == {
        "AudioForkID": UNKNOWN_ID,
        "Channel": NAME,
        "Uniqueid": UNIQUEID,
        "WsServer": URL,
        "SampleRate": "8000",
        "ActionID": "7",
        "TakenUp": "yes",
    }
    assert "resumed, stereo by chanspy at 8000 Hz to ws://example.org/a?..." in caplog.text
    assert "of 1 forks that an earlier run left, 1 live" in caplog.text


async def test_taken_up_fork_counts_its_age_from_its_own_start(rig: Rig) -> None:
    await take_up(rig, ENTRY)
    (view,) = await rig.forks.views()
    assert view.age_s == pytest.approx(100)
    await rig.clock.advance(5)
    await rig.ended(UNKNOWN_ID, EndReason.HANGUP)
    assert rig.last_event[1]["Duration"] == "105.0"


async def test_taken_up_fork_stays_in_the_journal_as_it_was(rig: Rig) -> None:
    await take_up(rig, ENTRY)
    assert rig.journal.entries == {UNKNOWN_ID: replace(ENTRY, channel=NAME)}
    await rig.ended(UNKNOWN_ID, EndReason.HANGUP)
    assert rig.journal.entries == {}


async def test_taken_up_fork_stays_muted(rig: Rig) -> None:
    await take_up(rig, replace(ENTRY, mute_out=True))
    assert rig.sent[-1] == SetMute(UNKNOWN_ID, False, True)
    (view,) = await rig.forks.views()
    assert view.muted == "write"


async def test_taken_up_fork_of_a_bridged_channel_has_its_gate_open(rig: Rig) -> None:
    rig.ami.bridged.add(UNIQUEID)
    await take_up(rig, replace(ENTRY, options="b"))
    assert rig.spec.gate_open is False
    assert rig.sent[-1] == SetGate(UNKNOWN_ID, True)


async def test_taken_up_fork_can_be_stopped_and_ends_with_its_channel(rig: Rig) -> None:
    other = replace(ENTRY, fork_id=str(uuid.uuid4()))
    await take_up(rig, ENTRY, other)
    await rig.request(command="StopAudioFork", audioforkid=UNKNOWN_ID)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.STOPPED)]
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends[1:] == [EndFork(other.fork_id, EndReason.HANGUP)]


@pytest.mark.parametrize("at_start", [True, False], ids=["leg-refused", "leg-closed"])
async def test_taken_up_fork_whose_channel_goes_unnoticed_ends_with_hangup(
    rig: Rig, at_start: bool
) -> None:
    rig.tap.fault = NoSuchChannel() if at_start else None
    await take_up(rig, ENTRY)
    if not at_start:
        del rig.ami.channels[UNIQUEID]
        rig.forks.on_report(LegLost(UNKNOWN_ID, PAIRS, 0))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.HANGUP)]


async def test_leg_that_an_earlier_run_asked_for_in_vain_is_no_news(rig: Rig) -> None:
    await take_up(rig, ENTRY)
    rig.forks.on_event(OriginateFailed(LEG_PREFIX + UNKNOWN_ID, "8"))
    assert rig.ends == []


@pytest.mark.parametrize(
    ("change", "run", "reason", "detail"),
    [
        pytest.param(
            {"uniqueid": "9.9"},
            "today",
            "hangup",
            "the call ended while the daemon was away; its frames are not known",
            id="gone",
        ),
        pytest.param(
            {}, "later", "leg-failed", "Asterisk was restarted while the daemon was away", id="run"
        ),
        pytest.param(
            {"url": "http://a/"},
            "today",
            "stopped",
            "not resumed: WsServer: the scheme must be ws or wss",
            id="url",
        ),
        pytest.param(
            {"options": "x"},
            "today",
            "stopped",
            "not resumed: Options: unknown option 'x'",
            id="x",
        ),
    ],
)
async def test_fork_that_cannot_be_taken_up_ends(
    rig: Rig, change: dict[str, str], run: str, reason: str, detail: str
) -> None:
    rig.ami.asterisk_started = run
    entry = replace(ENTRY, **change)  # type: ignore[arg-type]
    await take_up(rig, entry)
    assert rig.sent == rig.tap.legs == []
    assert rig.journal.entries == {}
    assert rig.last_event == (
        "AudioForkStopped",
        {
            "AudioForkID": UNKNOWN_ID,
            "Channel": "PJSIP/old-name",
            "Uniqueid": entry.uniqueid,
            "WsServer": entry.url,
            "Reason": reason,
            "Duration": "100.0",
            "FramesIn": "0",
            "FramesSent": "0",
            "FramesDropped": "0",
            "Reconnects": "0",
            "TakenUp": "yes",
            "Detail": detail,
            "ActionID": "7",
        },
    )


@pytest.mark.parametrize("limit", ["max_forks", "max_forks_per_channel"])
async def test_limits_hold_for_forks_of_an_earlier_run(rig: Rig, limit: str) -> None:
    rig.allow(**{limit: 1})
    other = replace(ENTRY, fork_id=str(uuid.uuid4()))
    await take_up(rig, ENTRY, other)
    assert rig.live == [UNKNOWN_ID]
    assert rig.last_event[1]["AudioForkID"] == other.fork_id
    assert f"({limit})" in rig.last_event[1]["Detail"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_post_process_of_a_call_that_ended_meanwhile_runs_if_it_is_allowed(
    rig: Rig, tmp_path: Path, allowed: bool
) -> None:
    rig.allow(allow_post_process=allowed)
    entry = replace(
        ENTRY,
        uniqueid="9.9",
        post_process=f"echo ^{{UNIQUEID}} > {tmp_path}/out",
        values={"UNIQUEID": "9.9"},
    )
    await take_up(rig, entry)
    await rig.until(lambda: rig.ami.events)
    assert rig.last_event[1].get("PostProcessStatus") == ("0" if allowed else None)
    assert (tmp_path / "out").exists() is allowed


async def test_forks_of_an_earlier_run_wait_until_asterisk_can_be_asked(rig: Rig) -> None:
    rig.ami.faults["CoreShowChannels"] = AmiUnavailable("lost again")
    with pytest.raises(AmiUnavailable):
        await take_up(rig, ENTRY)
    assert rig.journal.entries == {UNKNOWN_ID: ENTRY}
    del rig.ami.faults["CoreShowChannels"]
    await rig.forks.on_link_up()
    assert rig.live == [UNKNOWN_ID]
    await rig.forks.on_link_up()
    assert rig.live == [UNKNOWN_ID]


OTHER = replace(ENTRY, fork_id=str(uuid.uuid4()), uniqueid="2.2")


async def test_taken_up_fork_has_its_tap_chosen_anew(rig: Rig) -> None:
    rig.taps.parts, rig.taps.sample_rate = (LegPart.IN, LegPart.OUT), 16000
    await take_up(rig, replace(ENTRY, options="L(16000)"))
    assert rig.taps.asked == [(UNIQUEID, (16000,))]
    assert rig.spec.legs == (LegPart.IN, LegPart.OUT)
    assert [order.part for order in rig.tap.orders] == [LegPart.IN, LegPart.OUT]
    assert {order.sample_rate for order in rig.tap.orders} == {rig.spec.sample_rate} == {16000}
    (view,) = await rig.forks.views()
    assert view.sample_rate == 16000


@pytest.mark.parametrize(
    ("exc", "reason", "detail"),
    [
        pytest.param(
            RequestRefused("16000 Hz needs the snoop tap: set [ari]"),
            "stopped",
            "not resumed: 16000 Hz needs the snoop tap: set [ari]",
            id="refused",
        ),
        pytest.param(
            NoSuchChannel(),
            "hangup",
            "the call ended while the daemon was away; its frames are not known",
            id="gone",
        ),
    ],
)
async def test_fork_of_an_earlier_run_without_a_tap_ends_and_the_next_is_taken_up(
    rig: Rig, exc: Exception, reason: str, detail: str
) -> None:
    rig.taps.faults[UNIQUEID] = exc
    await take_up(rig, ENTRY, OTHER)
    ((name, headers),) = rig.ami.events
    assert (name, headers["AudioForkID"]) == ("AudioForkStopped", UNKNOWN_ID)
    assert (headers["Reason"], headers["Detail"]) == (reason, detail)
    assert rig.live == list(rig.journal.entries) == [OTHER.fork_id]


async def test_link_lost_while_forks_are_taken_up_leaves_the_rest_for_the_next_login(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.taps.faults["2.2"] = AmiUnavailable("the link is lost")
    third = replace(ENTRY, fork_id=str(uuid.uuid4()))
    with pytest.raises(AmiUnavailable):
        await take_up(rig, ENTRY, OTHER, third)
    assert rig.live == [UNKNOWN_ID]
    assert len(rig.journal.entries) == 3
    assert rig.ami.events == []
    del rig.taps.faults["2.2"]
    await rig.forks.on_link_up()
    await rig.clock.settle()
    assert rig.live == [UNKNOWN_ID, OTHER.fork_id, third.fork_id]
    assert [leg.fork_id for leg in rig.tap.orders] == rig.live
    assert "of 2 forks that an earlier run left, 2 live" in caplog.text


async def test_stop_of_the_daemon_while_forks_are_taken_up_leaves_the_rest_for_the_next_start(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.taps.gate = asyncio.Event()
    taking_up = asyncio.create_task(take_up(rig, ENTRY, OTHER))
    await rig.clock.settle()
    await rig.shut_down()
    rig.taps.gate.set()
    await taking_up
    assert list(rig.journal.entries) == [UNKNOWN_ID, OTHER.fork_id]
    assert rig.sent == rig.ami.events == []
    assert "an earlier run left" not in caplog.text
    rig.journal.entries.clear()


async def test_forks_of_an_earlier_run_are_left_alone_by_a_daemon_that_stops(rig: Rig) -> None:
    gone = replace(OTHER, uniqueid="9.9")
    await rig.shut_down()
    await take_up(rig, ENTRY, gone)
    assert rig.journal.entries == {UNKNOWN_ID: ENTRY, gone.fork_id: gone}
    assert rig.sent == rig.ami.events == []
    rig.journal.entries.clear()


async def test_shutdown_that_keeps_leaves_the_forks_in_the_journal(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.allow(allow_post_process=True)
    forks = [await rig.stream(postprocess="echo no"), await rig.attach()]
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.SHUTDOWN) for fork_id in forks]
    assert rig.ami.told[-4:] == ["RECONNECTING", "AudioForkReconnecting"] * 2
    assert rig.last_event[1]["Reason"] == "the daemon is restarted"
    told = list(rig.ami.told)
    for fork_id in forks:
        await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert rig.ami.told == told
    assert list(rig.journal.entries) == forks
    rig.journal.entries.clear()


async def test_shutdown_that_keeps_ends_what_ends_anyway(rig: Rig) -> None:
    hung_up, refused = await rig.stream(), await rig.stream(channel="PJSIP/200-0000002b")
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    assert rig.ami.told.count("AudioForkReconnecting") == 1
    await rig.ended(hung_up, EndReason.SHUTDOWN)
    await rig.ended(refused, EndReason.SINK_REFUSED)
    await shutdown
    assert rig.ami.told.count("AudioForkStopped") == 2
    assert rig.journal.entries == {}


async def test_shutdown_that_cannot_keep_ends_the_forks_and_says_so(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.works = False
    fork_id = await rig.stream()
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert "cannot be kept without a journal that works" in caplog.text
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.journal.entries == {}


# --- The sink ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "streaming", "news"),
    [
        (EndReason.SINK_GONE, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.SINK_REFUSED, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.FAULT, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.HANGUP, False, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SHUTDOWN, False, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SINK_GONE, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SINK_REFUSED, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.FAULT, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.LEG_FAILED, True, ["STOPPED", "AudioForkStopped"]),
    ],
)
async def test_end_is_a_failure_only_before_the_first_frame(
    rig: Rig, reason: EndReason, streaming: bool, news: list[str]
) -> None:
    fork_id = await (rig.stream() if streaming else rig.attach())
    await rig.ended(fork_id, reason, "why")
    assert rig.ami.told[-2:] == news
    assert rig.last_event[1]["Reason"] == rig.variables["AUDIOFORK_REASON"] == reason.value
    assert rig.last_event[1]["Detail"] == "why"


@pytest.mark.parametrize("streaming", [False, True])
async def test_control_characters_of_the_server_do_not_reach_asterisk(
    rig: Rig, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await (rig.stream() if streaming else rig.attach())
    await rig.ended(
        fork_id, EndReason.SINK_REFUSED, "a\r\nAction: Hangup\0\x85\u2028\ud800" + "é" * 999
    )
    detail = rig.last_event[1]["Detail"]
    assert detail.startswith("a??Action: Hangup????é")
    assert len(detail) == 200
    assert "\r" not in caplog.text


async def test_end_that_the_relay_reports_needs_no_command(rig: Rig) -> None:
    await rig.ended(await rig.stream(), EndReason.SINK_GONE)
    await rig.request(command="StopAudioFork", channel=NAME)
    assert rig.ends == []
    assert rig.last_event[1]["Reason"] == "No such fork"


# --- The server is away, and back ----------------------------------------------------------------


async def test_server_lost_and_back_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "close code 1006"))
    assert rig.ami.told[-2:] == ["RECONNECTING", "AudioForkReconnecting"]
    assert rig.last_event[1]["Attempt"] == "1"
    assert rig.last_event[1]["Reason"] == "close code 1006"
    assert [view.state for view in await rig.forks.views()] == ["reconnecting"]
    rig.forks.on_report(SinkRetrying(fork_id, 2, "refused"))
    assert rig.last_event[1]["Attempt"] == "2"
    rig.forks.on_report(SinkResumed(fork_id, 17))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert rig.last_event[1]["FramesDropped"] == "17"
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert "attempt 2 follows: refused" in caplog.text
    assert "the server is back, 17 frames dropped" in caplog.text


async def test_server_that_is_not_there_yet_leaves_the_status_at_starting(rig: Rig) -> None:
    fork_id = await rig.start()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "refused"))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(SinkResumed(fork_id, 0))
    assert rig.ami.told == ["STARTING", "AudioForkReconnecting"]
    rig.forks.on_report(Streaming(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkStarted"]


async def test_resumed_while_nothing_was_lost_is_not_told(rig: Rig) -> None:
    fork_id = await rig.stream()
    told = list(rig.ami.told)
    rig.forks.on_report(SinkResumed(fork_id, 0))
    assert rig.ami.told == told


async def test_server_that_does_not_come_back_ends_a_fork_that_streamed(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "refused"))
    await rig.ended(fork_id, EndReason.SINK_GONE, stats=ForkStats(9, 5, 4, reconnects=0))
    assert rig.ami.told[-2:] == ["STOPPED", "AudioForkStopped"]


async def test_stop_while_the_server_is_away_ends_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "refused"))
    assert await rig.ask(command="StopAudioFork", channel=NAME) == [fork_id]
    await rig.obey()
    assert rig.last_event[1]["Reason"] == "stopped"


async def test_reconnects_and_ignored_messages_are_in_the_last_event(rig: Rig) -> None:
    fork_id = await rig.stream()
    stats = ForkStats(9, 5, 4, reconnects=3, messages_ignored=2)
    await rig.ended(fork_id, EndReason.HANGUP, stats=stats)
    headers = rig.last_event[1]
    assert (headers["Reconnects"], headers["MessagesIgnored"]) == ("3", "2")


@pytest.mark.parametrize("streaming", [True, False])
async def test_message_of_the_server_is_told(rig: Rig, streaming: bool) -> None:
    fork_id = await (rig.stream() if streaming else rig.attach())
    rig.forks.on_report(SinkMessage(fork_id, "hello\r\nAction: Hangup"))
    assert rig.last_event[0] == "AudioForkMessage"
    message = "helloAction: Hangup"
    assert rig.last_event[1]["Message"] == rig.variables["AUDIOFORK_RESPONSE"] == message
    assert rig.last_event[1]["AudioForkID"] == fork_id


# --- The post-process command --------------------------------------------------------------------


@pytest.fixture
def post_process_rig(rig: Rig) -> Rig:
    rig.allow(allow_post_process=True)
    rig.ami.values = {"CALLERID(name)": "'; touch pwned; $(id)", "EMPTY": ""}
    return rig


def told_of_end(rig: Rig) -> list[str]:
    return [name for name, _ in rig.ami.events if name.endswith(("Stopped", "Failed"))]


@pytest.mark.parametrize("field", ["postprocess", "command"])
async def test_post_process_is_refused_unless_allowed(rig: Rig, field: str) -> None:
    await rig.request(**START, **{field: "/bin/true"})
    assert rig.last_event[1]["Reason"] == "PostProcess: not allowed (allow_post_process)"
    assert rig.sent == rig.ami.actions == []


@pytest.mark.parametrize("field", ["postprocess", "command"])
async def test_post_process_runs_with_the_values_of_the_start(
    post_process_rig: Rig, tmp_path: Path, field: str
) -> None:
    rig = post_process_rig
    script = f"printf '[%s]' ^{{CALLERID(name)}} ^{{EMPTY}} > {tmp_path}/out; exit 3"
    fork_id = await rig.stream(**{field: script})
    rig.ami.values = {"CALLERID(name)": "later"}
    assert not (tmp_path / "out").exists()
    del rig.ami.channels[UNIQUEID]  # as it is after a hangup
    await rig.ended(fork_id, EndReason.HANGUP)
    await rig.until(lambda: told_of_end(rig))
    assert (tmp_path / "out").read_text() == "['; touch pwned; $(id)][]"
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "3"
    assert rig.last_event[1]["Reason"] == "hangup"


async def test_post_process_is_waited_for_before_the_event_but_not_by_the_variables(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"touch {tmp_path}/runs; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    fork_id = await rig.stream(postprocess=script)
    await rig.ended(fork_id, EndReason.STOPPED)
    await rig.until((tmp_path / "runs").exists)
    assert told_of_end(rig) == []
    assert rig.variables["AUDIOFORK_STATUS"] == "STOPPED"
    assert len(rig.forks) == 0
    (tmp_path / "go").touch()
    await rig.until(lambda: told_of_end(rig))
    assert rig.last_event[1]["PostProcessStatus"] == "0"


async def test_post_process_of_a_fork_that_failed_runs_too(post_process_rig: Rig) -> None:
    rig = post_process_rig
    fork_id = await rig.attach(postprocess="exit 4")
    await rig.ended(fork_id, EndReason.SINK_GONE, "refused")
    await rig.until(lambda: told_of_end(rig))
    name, headers = rig.last_event
    assert (name, headers["Reason"], headers["Detail"]) == (
        "AudioForkFailed",
        "sink-gone",
        "refused",
    )
    assert headers["PostProcessStatus"] == "4"


async def test_post_process_of_a_start_that_is_refused_does_not_run(
    post_process_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = post_process_rig
    monkeypatch.setattr(ending.post_process, "run", lambda *_: pytest.fail("runs"))
    await rig.request(**{**START, "channel": "nobody"}, postprocess="true")
    assert rig.last_event[1]["Reason"] == "No such channel"
    assert "PostProcessStatus" not in rig.last_event[1]


async def test_post_process_values_of_a_channel_that_goes_refuse_the_start(
    post_process_rig: Rig,
) -> None:
    rig = post_process_rig
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, postprocess="echo ^{EMPTY}"))
    await rig.clock.settle()
    gate.set()
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.clock.settle()
    rig.ami.channels.clear()
    gate.set()
    with pytest.raises(NoSuchChannel):
        await asked


async def test_post_process_that_cannot_be_run_is_said(
    post_process_rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = post_process_rig

    async def run(*_: object) -> int:
        raise OSError("no more processes")

    monkeypatch.setattr(ending.post_process, "run", run)
    await rig.ended(await rig.stream(postprocess="true"), EndReason.HANGUP)
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "not run"
    assert "the post-process command cannot be run: no more processes" in caplog.text


async def test_post_process_is_waited_for_by_a_shutdown(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    fork_id = await rig.stream(postprocess=script)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    assert not shutdown.done()
    (tmp_path / "go").touch()
    await rig.until(shutdown.done)
    assert told_of_end(rig) == ["AudioForkStopped"]


async def test_post_process_that_outlasts_the_daemon_is_said_and_killed(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"touch {tmp_path}/runs; sleep 60; touch {tmp_path}/late"
    await rig.ended(await rig.stream(postprocess=script), EndReason.SHUTDOWN)
    await rig.until((tmp_path / "runs").exists)
    closing = asyncio.create_task(rig.close())
    await rig.until(closing.done)
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "interrupted"


# --- Reports that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        LegAttached(UNKNOWN_ID, PAIRS),
        LegLost(UNKNOWN_ID, PAIRS, 0),
        SinkOpened(UNKNOWN_ID),
        Streaming(UNKNOWN_ID),
        SinkRetrying(UNKNOWN_ID, 1, ""),
        SinkResumed(UNKNOWN_ID, 0),
        SinkMessage(UNKNOWN_ID, "a"),
        ForkEnded(UNKNOWN_ID, EndReason.STOPPED, "", ForkStats()),
    ],
    ids=lambda report: type(report).__name__,
)
async def test_report_of_an_unknown_fork_is_logged_and_nothing_else(
    rig: Rig, caplog: pytest.LogCaptureFixture, report: LegAttached
) -> None:
    rig.forks.on_report(report)
    assert "report of a fork that is not known" in caplog.text
    assert rig.sent == rig.ami.told == []


async def test_first_frame_twice_is_a_bug(rig: Rig) -> None:
    fork_id = await rig.stream()
    with pytest.raises(InvalidTransition):
        rig.forks.on_report(Streaming(fork_id))


# --- Variables that cannot be set ----------------------------------------------------------------


async def test_variables_of_a_channel_that_is_gone_are_not_worth_a_warning(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    del rig.ami.channels[UNIQUEID]
    await rig.ended(fork_id, EndReason.HANGUP)
    assert "cannot be set" not in caplog.text


@pytest.mark.parametrize(
    "exc", [AmiActionFailed("Setvar", "Permission denied"), AmiUnavailable("down")]
)
async def test_variables_that_cannot_be_set_are_logged_and_the_fork_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture, exc: AmiError
) -> None:
    rig.ami.faults["Setvar"] = exc
    await rig.stream()
    assert f"AUDIOFORK_STATUS of {UNIQUEID} cannot be set: {exc}" in caplog.text
    assert rig.last_event[0] == "AudioForkStarted"


# --- The daemon's own start and end --------------------------------------------------------------


def hung_up(rig: Rig) -> list[str]:
    return [dict(headers)["Channel"] for name, headers, _ in rig.ami.actions if name == "Hangup"]


async def test_link_up_without_forks_sweeps(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID, f"{LEG_PREFIX}{UNKNOWN_ID}-0a1b2c3d"]
    await rig.forks.on_link_up()
    assert rig.taps.kept == [set()]
    assert hung_up(rig) == rig.taps.left
    assert "hung up 2 legs" in caplog.text


async def test_sweep_of_a_leg_that_is_gone_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID, f"{LEG_PREFIX}{UNKNOWN_ID}-0a1b2c3d"]
    rig.ami.faults["Hangup"] = AmiActionFailed("Hangup", "No such channel")
    await rig.forks.on_link_up()
    assert hung_up(rig) == rig.taps.left
    assert "may remain" not in caplog.text


async def test_link_up_with_forks_sweeps_but_keeps_their_legs(rig: Rig) -> None:
    forks = {await rig.stream(), await rig.start()}
    await rig.forks.on_link_up()
    assert rig.taps.kept == [{LEG_PREFIX + fork_id for fork_id in forks}]
    assert rig.ends == []


async def test_shutdown_without_forks_returns_at_once_and_refuses_new_ones(rig: Rig) -> None:
    await rig.shut_down()
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "the daemon stops"
    assert rig.sent == []


async def test_shutdown_ends_the_running_forks_and_waits_for_them(rig: Rig) -> None:
    forks = [await rig.stream(), await rig.attach(), await rig.start()]
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.SHUTDOWN) for fork_id in forks]
    for fork_id in forks:
        assert not shutdown.done()
        await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert rig.ami.told.count("AudioForkStopped") == 3


async def test_shutdown_waits_for_the_answer_to_a_stop(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(command="StopAudioFork", channel=NAME)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.last_event[1]["Reason"] == "No such fork"


async def test_shutdown_while_a_start_is_looked_up_refuses_it(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.sent == []
    assert rig.last_event[0] == "AudioForkFailed"
    assert "shutdown" in rig.last_event[1]["Reason"]


async def test_shutdown_while_a_door_asks_for_a_start_refuses_it(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    with pytest.raises(RequestRefused, match="^ended before it began: shutdown$"):
        await asked
    with pytest.raises(RequestRefused, match="^the daemon stops$"):
        await rig.ask(**START)
    assert rig.sent == rig.ami.events == []


async def test_fault_in_a_request_is_logged_and_answered(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(clock)
    monkeypatch.setattr(rig.taps, "is_leg", lambda name, uniqueid: 1 / 0)
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "a fault of the daemon"
    assert rig.last_event[1]["ActionID"] == "7"
    assert len(rig.forks) == 0
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.message == "a request could not be handled"


async def test_fault_during_a_shutdown_does_not_cut_it_short(clock: Clock) -> None:
    rig = Rig(clock)
    rig.tap.gate, rig.tap.fault = asyncio.Event(), RuntimeError("boom")
    fork_id = await rig.start()
    shutdown = asyncio.create_task(rig.stop())
    await clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    rig.tap.gate.set()
    await shutdown


async def test_fault_in_one_start_is_logged_with_its_traceback(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(clock)
    rig.tap.fault = RuntimeError("boom")
    await rig.request(**START)
    rig.tap.fault = None
    await rig.stream()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "boom"
    await rig.close()


async def test_close_gives_up_what_waits_for_asterisk(clock: Clock) -> None:
    tasks_before = asyncio.all_tasks()
    rig = Rig(clock)
    rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    await rig.close()
    assert asyncio.all_tasks() == tasks_before
    assert rig.sent == []


async def test_close_leaves_no_timer(clock: Clock) -> None:
    rig = Rig(clock)
    await rig.request(**START)
    await rig.close()
    await clock.advance(LEG_TIMEOUT_S + 1)
    assert [type(command) for command in rig.sent] == [ForkSpec]


# --- Wideband audio that comes later --------------------------------------------------------------

PEER, PEER_ID = "PJSIP/200-0000002b", "2.2"


def why_wide(wide: str) -> str:
    return f"D(both) in a call with {wide}"


@pytest.fixture
def narrow(rig: Rig) -> Rig:
    """The rig at a narrowband site, with a bridge of the channel and another."""
    rig.taps.narrowband = True
    rig.ami.values_of = {UNIQUEID: {"BRIDGEPEER": PEER}, PEER_ID: {"BRIDGEPEER": NAME}}
    return rig


async def enter(rig: Rig, uniqueid: str) -> None:
    rig.forks.on_event(BridgeChanged(uniqueid, True))
    await rig.clock.settle()


@pytest.mark.parametrize("enters", [UNIQUEID, PEER_ID], ids=["own", "peer"])
async def test_wideband_that_enters_the_bridge_of_pairs_ends_the_fork_with_the_reason(
    narrow: Rig, enters: str
) -> None:
    fork_id = await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, enters)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("g722"))]


async def test_wideband_that_enters_ends_all_forks_of_that_bridge_and_no_other(
    narrow: Rig,
) -> None:
    mine = [await narrow.stream(), await narrow.start(), await narrow.stream(channel=PEER)]
    narrow.ami.channels["3.3"] = "PJSIP/300-0000002c"
    await narrow.stream(channel="PJSIP/300-0000002c")
    narrow.taps.wide_in = dict.fromkeys([UNIQUEID, PEER_ID, "3.3"], "opus")
    await enter(narrow, PEER_ID)
    assert {end.fork_id for end in narrow.ends} == set(mine)
    await enter(narrow, UNIQUEID)
    assert len(narrow.ends) == len(mine)


async def test_bridge_without_wideband_leaves_its_forks_alone(narrow: Rig) -> None:
    await narrow.stream()
    narrow.taps.wide_in[PEER_ID] = "g722"  # of a call that is not this one's
    await enter(narrow, UNIQUEID)
    await enter(narrow, PEER_ID)
    assert narrow.ends == []


async def test_bridge_that_is_left_is_not_looked_at(narrow: Rig) -> None:
    await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    narrow.forks.on_event(BridgeChanged(UNIQUEID, False))
    await narrow.clock.settle()
    assert narrow.ends == []


async def test_wideband_that_a_bridge_takes_its_time_to_show_ends_its_forks(narrow: Rig) -> None:
    """Whoever enters is not its sole member, nor named as one of the first eleven."""
    fork_id = await narrow.stream()
    await enter(narrow, "4.4")
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await narrow.clock.advance(WIDEBAND_SETTLES_S - 0.1)
    assert narrow.ends == []
    await narrow.clock.advance(0.2)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("g722"))]


async def test_who_enters_while_a_look_is_due_has_one_more_that_is_late_enough(
    narrow: Rig,
) -> None:
    fork_id = await narrow.stream()
    await enter(narrow, "4.4")
    await narrow.clock.advance(WIDEBAND_SETTLES_S - 1)
    await enter(narrow, "5.5")
    await narrow.clock.advance(1.1)  # the first look finds nothing
    narrow.taps.wide_in[UNIQUEID] = "opus"
    await narrow.clock.advance(WIDEBAND_SETTLES_S)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("opus"))]


async def test_wideband_that_came_while_the_link_was_away_is_found_after_the_login(
    narrow: Rig,
) -> None:
    fork_id = await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "slin16"
    await narrow.forks.on_link_up()
    await narrow.clock.settle()
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("slin16"))]


@pytest.mark.parametrize("parts", [(LegPart.MIX,), (LegPart.IN,), (LegPart.IN, LegPart.OUT)])
async def test_wideband_does_not_matter_to_legs_that_are_no_pairs(
    narrow: Rig, parts: tuple[LegPart, ...]
) -> None:
    narrow.taps.parts = parts
    await narrow.stream()
    questions = len(narrow.ami.actions)
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, UNIQUEID)
    assert (narrow.ends, len(narrow.ami.actions)) == ([], questions)


async def test_bridges_are_not_looked_at_where_the_site_claims_nothing(narrow: Rig) -> None:
    narrow.taps.narrowband = False
    await narrow.stream()
    questions = len(narrow.ami.actions)
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, UNIQUEID)
    assert (narrow.ends, len(narrow.ami.actions)) == ([], questions)


@pytest.mark.parametrize("why", ["gone", "down"])
async def test_bridge_that_cannot_be_asked_about_leaves_its_forks_alone(
    narrow: Rig, why: str
) -> None:
    await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    if why == "gone":
        del narrow.ami.channels[PEER_ID]
    else:
        narrow.ami.faults["Getvar"] = AmiUnavailable("down")
    await enter(narrow, PEER_ID)
    assert narrow.ends == []


# --- What a fork needs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ("", Wish(Direction.BOTH)),
        ("D(in)", Wish(Direction.IN)),
        ("D(out)B(9)", Wish(Direction.OUT, speaks=True)),
        ("D(stereo)p", Wish(Direction.STEREO, speaks=True)),
        ("P", Wish(Direction.BOTH, speaks=True)),
        ("v(1)", Wish(Direction.BOTH, apart=True)),
        ("V(-2)", Wish(Direction.BOTH, apart=True)),
        ("v(1)V(2)", Wish(Direction.BOTH, apart=True)),
        ("v(1)V(1)", Wish(Direction.BOTH)),
        ("L(16000)S", Wish(Direction.BOTH)),
    ],
)
async def test_tap_is_chosen_by_what_the_options_need(rig: Rig, options: str, wish: Wish) -> None:
    await rig.start(options=options)
    assert rig.taps.wishes == [wish]


@pytest.mark.parametrize(
    ("mutes", "apart"),
    [((True, False), True), ((False, True), True), ((True, True), False), ((False, False), False)],
)
async def test_fork_of_an_earlier_run_needs_its_sides_apart_if_one_is_muted(
    rig: Rig, mutes: tuple[bool, bool], apart: bool
) -> None:
    mute_in, mute_out = mutes
    await take_up(rig, replace(ENTRY, options="", mute_in=mute_in, mute_out=mute_out))
    assert rig.taps.wishes == [Wish(Direction.BOTH, apart=apart)]
    assert rig.live == [UNKNOWN_ID]


async def test_fork_of_an_earlier_run_with_one_side_muted_is_not_taken_up_if_all_is_mixed(
    rig: Rig,
) -> None:
    rig.taps.faults[UNIQUEID] = RequestRefused("in and out come mixed")
    await take_up(rig, replace(ENTRY, options="", mute_in=True))
    assert (rig.sent, rig.tap.orders, rig.journal.entries) == ([], [], {})
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["Reason"] == "stopped"


@pytest.mark.parametrize(
    ("options", "leg_keeps_time", "needs_silence"),
    [
        ("D(in)", False, False),
        ("D(in)S", False, True),
        ("D(in)S", True, False),
        ("", False, True),
        ("S", False, True),
        ("", True, False),
        ("D(out)", False, True),
        ("D(stereo)", True, False),
    ],
)
async def test_relay_keeps_the_time_that_is_promised_and_that_the_leg_does_not_keep(
    rig: Rig, options: str, leg_keeps_time: bool, needs_silence: bool
) -> None:
    rig.taps.keeps_time = leg_keeps_time
    await rig.start(options=options)
    assert rig.spec.keep_time is needs_silence
