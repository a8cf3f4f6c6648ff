import asyncio
import types
import uuid
from collections.abc import AsyncIterator

import pytest

from audiofork.config import SecurityConfig
from audiofork.control import forks as forks_module
from audiofork.control.ami import ChannelHangup, OriginateFailed, RequestReceived
from audiofork.control.forks import (
    HANGUP_GRACE_S,
    LEG_LOSS_GRACE_S,
    LEG_TIMEOUT_S,
    Forks,
)
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    InvalidTransition,
)
from audiofork.model import (
    Command,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    SinkOpened,
    Streaming,
)

from .conftest import Clock, FakeAmi

NAME, UNIQUEID = "PJSIP/100-0000002a", "1700000000.1"
URL = "ws://example.org/a?token=secret"
UNKNOWN_ID = "3f2a91c0-1111-4222-8333-444455556666"
START = {"channel": NAME, "wsserver": URL, "actionid": "7"}
LEG_PREFIX = "audiofork-"


class FakeTap:
    """A tap whose legs come about only in the test."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str, Direction]] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.swept = 0

    async def start(self, fork_id: str, uniqueid: str, direction: Direction) -> None:
        self.started.append((fork_id, uniqueid, direction))
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    async def sweep(self) -> int:
        self.swept += 1
        return 2

    def is_leg(self, uniqueid: str) -> bool:
        return uniqueid.startswith(LEG_PREFIX)


class Rig:
    """A registry between an Asterisk, a tap and a relay that are all the test's."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ami = FakeAmi()
        self.ami.channels = {UNIQUEID: NAME, "2.2": "PJSIP/200-0000002b"}
        self.tap = FakeTap()
        self.sent: list[Command] = []
        self.live: list[str] = []  # what the relay has
        self.forks = Forks(self.ami, self.tap, SecurityConfig(), self._send)  # type: ignore[arg-type]

    def _send(self, command: Command) -> None:
        self.sent.append(command)
        if isinstance(command, ForkSpec):
            self.live.append(command.fork_id)

    async def request(self, **fields: str) -> None:
        self.forks.on_event(RequestReceived(fields))
        await self.clock.settle()

    async def start(self, **fields: str) -> str:
        """Start a fork; return its id."""
        before = len(self.sent)
        await self.request(**{**START, **fields})
        (spec,) = self.sent[before:]
        assert isinstance(spec, ForkSpec)
        return spec.fork_id

    async def attach(self, **fields: str) -> str:
        fork_id = await self.start(**fields)
        self.forks.on_report(LegAttached(fork_id))
        self.forks.on_report(SinkOpened(fork_id))
        return fork_id

    async def stream(self, **fields: str) -> str:
        """Start a fork and let its audio flow; return its id."""
        fork_id = await self.attach(**fields)
        self.forks.on_report(Streaming(fork_id))
        return fork_id

    async def lose_leg(self, fork_id: str, frames_in: int = 50) -> None:
        self.forks.on_report(LegLost(fork_id, frames_in))
        await self.clock.settle()

    async def ended(
        self, fork_id: str, reason: EndReason, detail: str = "", stats: ForkStats | None = None
    ) -> None:
        """Report the end of a fork."""
        self.live.remove(fork_id)
        self.forks.on_report(ForkEnded(fork_id, reason, detail, stats or ForkStats()))
        await self.clock.settle()

    async def obey(self) -> EndFork:
        """Do what the last command says: end a fork."""
        command = self.sent[-1]
        assert isinstance(command, EndFork)
        await self.ended(command.fork_id, command.reason, command.detail)
        return command

    async def shut_down(self) -> None:
        """Shut the registry down, which has no forks and so must not wait."""
        shutdown = asyncio.create_task(self.forks.shut_down())
        await self.clock.settle()
        done = shutdown.done()
        shutdown.cancel()
        assert done, "waits for forks that are not there"

    @property
    def ends(self) -> list[EndFork]:
        return [command for command in self.sent if isinstance(command, EndFork)]

    @property
    def last_event(self) -> tuple[str, dict[str, str]]:
        return self.ami.events[-1]

    @property
    def variables(self) -> dict[str, str]:
        return self.ami.variables[UNIQUEID]


@pytest.fixture
async def rig(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Rig]:
    """The rig; after the test nothing may be left in the registry, no task and no timer."""
    monkeypatch.setattr(forks_module, "time", types.SimpleNamespace(monotonic=clock))
    rig = Rig(clock)
    yield rig
    # What a task raises, also by an assert of FakeAmi, ends up in the log.
    assert [record for record in caplog.get_records("call") if record.exc_info] == []
    for fork_id in list(rig.live):
        await rig.ended(fork_id, EndReason.STOPPED)
    await clock.settle()
    assert len(rig.forks) == 0
    assert not rig.forks._tasks
    assert not rig.forks._by_channel
    assert asyncio.all_tasks() == {asyncio.current_task()}
    sent, told = list(rig.sent), list(rig.ami.told)
    await clock.advance(60)
    assert (rig.sent, rig.ami.told) == (sent, told)
    await rig.shut_down()


# --- Start to end --------------------------------------------------------------------------------


async def test_start_asks_the_relay_then_the_tap(rig: Rig) -> None:
    fork_id = await rig.start(options="D(stereo)")
    assert str(uuid.UUID(fork_id)) == fork_id
    assert rig.sent == [ForkSpec(fork_id, NAME, URL, Direction.STEREO)]
    assert rig.tap.started == [(fork_id, UNIQUEID, Direction.STEREO)]
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
    assert start.getMessage().endswith("started, both to ws://example.org/a?...")
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
        pytest.param({"command": "Dance"}, "Command: expected", id="verb"),
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
    assert rig.last_event == (
        "AudioForkFailed",
        {
            "AudioForkID": "",
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


@pytest.mark.parametrize("uniqueid", [LEG_PREFIX + UNKNOWN_ID, LEG_PREFIX])
async def test_start_on_a_leg_is_refused(rig: Rig, uniqueid: str) -> None:
    rig.ami.channels[uniqueid] = "AudioSocket/127.0.0.1:9093-1"
    await rig.request(channel="AudioSocket/127.0.0.1:9093-1", wsserver=URL)
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
        rig.forks.on_event(RequestReceived(dict(START)))
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
    assert headers["AudioForkID"] == fields.get("audioforkid", "")
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
    rig.tap.fault = AmiTimeout("no answer")
    rig.tap.gate.set()
    await rig.clock.settle()
    assert len(rig.ends) == 1


# --- Hangup and the loss of the leg --------------------------------------------------------------


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
    rig.forks.on_report(LegAttached(fork_id))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_stop_within_the_grace_of_a_hangup_goes_first(rig: Rig) -> None:
    await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.request(command="StopAudioFork", uniqueid=UNIQUEID)
    await rig.clock.advance(1)
    assert [end.reason for end in rig.ends] == [EndReason.STOPPED]


async def test_leg_loss_with_the_channel_gone_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    del rig.ami.channels[UNIQUEID]
    await rig.lose_leg(fork_id)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_loss_with_the_channel_gone_a_little_later_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    assert rig.ends == []
    del rig.ami.channels[UNIQUEID]
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_loss_with_the_hangup_told_a_little_later_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_loss_while_the_channel_lives_is_a_failed_leg(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "Asterisk closed the leg")]
    await rig.obey()
    assert rig.last_event[1]["Detail"] == "Asterisk closed the leg"


@pytest.mark.parametrize(
    ("hangup", "reason"),
    [(False, EndReason.NO_SUCH_CHANNEL), (True, EndReason.HANGUP)],
    ids=["no-hangup", "hangup"],
)
async def test_leg_loss_without_a_frame_and_without_channel(
    rig: Rig, hangup: bool, reason: EndReason
) -> None:
    fork_id = await rig.attach()
    del rig.ami.channels[UNIQUEID]
    if hangup:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.lose_leg(fork_id, frames_in=0)
    assert [end.reason for end in rig.ends] == [reason]


@pytest.mark.parametrize(
    ("hangup", "reason"),
    [(False, EndReason.LEG_FAILED), (True, EndReason.HANGUP)],
    ids=["no-hangup", "hangup"],
)
@pytest.mark.parametrize("exc", [AmiUnavailable("down"), AmiTimeout("late")], ids=["down", "late"])
async def test_leg_loss_that_asterisk_does_not_explain(
    rig: Rig, hangup: bool, reason: EndReason, exc: AmiError
) -> None:
    fork_id = await rig.stream()
    rig.ami.faults["Getvar"] = exc
    if hangup:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.lose_leg(fork_id)
    assert [end.reason for end in rig.ends] == [reason]


async def test_leg_loss_of_a_fork_that_ends_meanwhile_asks_for_no_second_end(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.ended(fork_id, EndReason.SINK_GONE)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == []


# --- Failures of the leg -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc",
    [
        AmiActionFailed("Originate", "Permission denied"),
        AmiTimeout("Originate: no answer within 5 s"),
        AmiUnavailable("the link to Asterisk was lost"),
    ],
    ids=["refused", "timeout", "link"],
)
async def test_leg_that_asterisk_does_not_make_fails_the_fork(rig: Rig, exc: AmiError) -> None:
    rig.tap.fault = exc
    await rig.request(**START)
    end = await rig.obey()
    assert (end.reason, end.detail) == (EndReason.LEG_FAILED, str(exc))
    assert rig.last_event[0] == "AudioForkFailed"
    assert rig.last_event[1]["Reason"] == "leg-failed"
    assert rig.last_event[1]["Detail"] == str(exc)
    assert rig.variables["AUDIOFORK_REASON"] == "leg-failed"
    assert rig.ami.told == ["STARTING", "FAILED", "AudioForkFailed"]


async def test_originate_failure_fails_its_fork_alone_and_says_the_reason(rig: Rig) -> None:
    await rig.start()
    fork_id = await rig.start()
    rig.forks.on_event(OriginateFailed(LEG_PREFIX + fork_id, "3"))
    assert rig.ends == [
        EndFork(fork_id, EndReason.LEG_FAILED, "Asterisk could not connect the leg (reason 3)")
    ]


@pytest.mark.parametrize("action_id", ["", LEG_PREFIX + UNKNOWN_ID, LEG_PREFIX, "{}"])
async def test_originate_failure_of_others_is_ignored(rig: Rig, action_id: str) -> None:
    fork_id = await rig.start()
    rig.forks.on_event(OriginateFailed(action_id.format(fork_id), "3"))
    assert rig.ends == []


async def test_leg_that_never_connects_fails_the_fork(rig: Rig) -> None:
    fork_id = await rig.start()
    await rig.clock.advance(LEG_TIMEOUT_S - 0.1)
    assert rig.ends == []
    await rig.clock.advance(0.2)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "the leg did not connect")]


async def test_leg_that_connects_has_no_time_limit(rig: Rig) -> None:
    await rig.attach()
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert rig.ends == []


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


# --- Reports that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        LegAttached(UNKNOWN_ID),
        LegLost(UNKNOWN_ID, 0),
        SinkOpened(UNKNOWN_ID),
        Streaming(UNKNOWN_ID),
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


async def test_link_up_without_forks_sweeps(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.forks.on_link_up()
    assert rig.tap.swept == 1
    assert "hung up 2 legs" in caplog.text


async def test_link_up_with_forks_leaves_their_legs_alone(rig: Rig) -> None:
    await rig.stream()
    await rig.forks.on_link_up()
    assert rig.tap.swept == 0
    assert rig.ends == []


async def test_shutdown_without_forks_returns_at_once_and_refuses_new_ones(rig: Rig) -> None:
    await rig.shut_down()
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "the daemon stops"
    assert rig.sent == []


async def test_shutdown_ends_the_running_forks_and_waits_for_them(rig: Rig) -> None:
    forks = [await rig.stream(), await rig.attach(), await rig.start()]
    shutdown = asyncio.create_task(rig.forks.shut_down())
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
    shutdown = asyncio.create_task(rig.forks.shut_down())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.last_event[1]["Reason"] == "No such fork"


async def test_shutdown_while_a_start_is_looked_up_refuses_it(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    shutdown = asyncio.create_task(rig.forks.shut_down())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.sent == []
    assert rig.last_event[0] == "AudioForkFailed"
    assert "shutdown" in rig.last_event[1]["Reason"]


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
    await rig.forks.close()


async def test_close_gives_up_what_waits_for_asterisk(rig: Rig) -> None:
    tasks_before = asyncio.all_tasks()
    rig.ami.gates["Getvar"] = asyncio.Event()
    other = Forks(rig.ami, rig.tap, SecurityConfig(), rig.sent.append)  # type: ignore[arg-type]
    other.on_event(RequestReceived(dict(START)))
    await rig.clock.settle()
    await other.close()
    assert asyncio.all_tasks() == tasks_before
    assert rig.sent == []


async def test_close_leaves_no_timer(rig: Rig) -> None:
    sent: list[Command] = []
    other = Forks(rig.ami, rig.tap, SecurityConfig(), sent.append)  # type: ignore[arg-type]
    other.on_event(RequestReceived(dict(START)))
    await rig.clock.settle()
    await other.close()
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert [type(command) for command in sent] == [ForkSpec]
