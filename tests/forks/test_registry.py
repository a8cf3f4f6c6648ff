import asyncio

import pytest

from audiofork.asterisk.ami_protocol import ForgedMessage
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    InvalidTransition,
    LegUncertain,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.events import Attack, AttackKind
from audiofork.forks.statistics import STATS_TIMEOUT_S
from audiofork.forks.view import ForkView
from audiofork.link.messages import (
    EndFork,
    EndReason,
    ForkEnded,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    StatsTaken,
    StrangersRefused,
    Streaming,
)
from tests.control_plane import (
    LEG_PREFIX,
    NAME,
    START,
    UNIQUEID,
    UNKNOWN_ID,
    URL,
    WALL_CLOCK_AHEAD_S,
    Rig,
)

PAIRS = LegPart.PAIRS


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
        pytest.param(
            {"postprocess": "true"},
            "PostProcess: shell commands are not allowed",
            id="post-process",
        ),
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
    assert rig.sent == []
    assert rig.tap.started == []
    assert rig.ami.events == []
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


@pytest.mark.parametrize("command", ["StopAudioFork", "AudioForkMute"])
@pytest.mark.parametrize("name", ["audioforkid", "uniqueid"])
@pytest.mark.parametrize("shown", [8, 9, 20, 35])
async def test_ask_by_the_beginning_of_an_id_names_the_fork_and_does_nothing(
    rig: Rig, command: str, name: str, shown: int
) -> None:
    fork_id = await rig.stream()
    sent = list(rig.sent)
    given = fork_id[:shown]
    with pytest.raises(RequestRefused) as caught:
        await rig.ask(**{name: given}, command=command, direction="both", state="1")
    assert str(caught.value) == (
        f"No such fork {given}; did you mean {fork_id}, on channel {NAME}?"
    )
    assert rig.sent == sent


async def test_ask_by_an_id_that_is_nearly_one_names_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    given = fork_id[:-1] + ("0" if fork_id[-1] != "0" else "1")
    with pytest.raises(RequestRefused, match=f"^No such fork {given}; did you mean {fork_id}, "):
        await rig.ask(audioforkid=given, command="StopAudioFork")


@pytest.mark.parametrize("given", ["3f2a91c", "170000.12", "zzzzzzzz"])
async def test_ask_by_what_is_no_part_of_an_id_names_no_fork(rig: Rig, given: str) -> None:
    await rig.stream()
    with pytest.raises(RequestRefused, match="^No such fork$"):
        await rig.ask(uniqueid=given, command="StopAudioFork")


async def test_starts_that_are_looked_up_at_once_leave_as_many_as_allowed(rig: Rig) -> None:
    rig.allow(max_forks=1)
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = [asyncio.create_task(rig.ask(**START)) for _ in range(3)]
    await rig.clock.settle()
    gate.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert results[0] == rig.live
    assert [str(one) for one in results[1:]] == ["1 forks run already (max_forks)"] * 2


async def test_start_that_is_looked_up_takes_no_place_until_its_channel_is_found(
    rig: Rig,
) -> None:
    rig.allow(max_forks=1)
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    bogus = [asyncio.create_task(rig.ask(**{**START, "channel": "nobody"})) for _ in range(3)]
    await rig.clock.settle()
    good = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    gate.set()
    assert await good == rig.live
    for one in bogus:
        with pytest.raises(NoSuchChannel):
            await one


async def test_fork_that_was_refused_counts_no_more(rig: Rig) -> None:
    rig.allow(max_forks=1)
    for _ in range(2):
        with pytest.raises(NoSuchChannel):
            await rig.ask(**{**START, "channel": "nobody"})
    await rig.ask(**START)


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
            format="raw",
            requested_at=WALL_CLOCK_AHEAD_S + 1000,
            backlog=3,
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
            waits_for="the server and the leg",
            format="raw",
            requested_at=WALL_CLOCK_AHEAD_S + 1002.5,
        ),
    ]


async def test_views_and_news_show_the_relay_host_of_a_fork(rig: Rig) -> None:
    first, second = await rig.stream(), await rig.start(channel="PJSIP/200-0000002b")
    rig.hosts = {first: "r1"}
    rig.stats = {}
    views = {view.id: view.relay_host for view in await rig.forks.views()}
    assert views == {first: "r1", second: ""}
    assert (await anext(rig.forks.follow(first))).fork.relay_host == "r1"


async def test_views_show_a_fork_that_is_looked_up(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    (view,) = await rig.forks.views()
    assert (view.channel, view.uniqueid, view.state) == (NAME, "", "requested")
    assert (view.tap, view.sample_rate) == ("", 0)
    gate.set()
    await rig.clock.settle()


async def test_views_without_an_answer_of_the_relay_are_those_of_the_last_time(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    rig.stats = None
    for known in (0, 7):
        views = asyncio.create_task(rig.forks.views())
        await rig.clock.advance(STATS_TIMEOUT_S - 0.1)
        assert not views.done()
        await rig.clock.advance(0.2)
        assert [view.frames_in for view in await views] == [known]
        rig.forks.on_report(StatsTaken(1, {fork_id: ForkStats(frames_in=7)}))  # late
    assert caplog.text.count("those shown are of the last time") == 2


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


@pytest.mark.parametrize(
    ("options", "chosen", "told", "said"),
    [
        ("s(echo)", "echo", "echo", "subprotocol: echo"),
        ("s(v2&v1)", "", None, "subprotocol: none of v2, v1"),
        ("", "", None, ""),
    ],
)
async def test_subprotocol_that_the_server_chose_is_told(
    rig: Rig,
    caplog: pytest.LogCaptureFixture,
    options: str,
    chosen: str,
    told: str | None,
    said: str,
) -> None:
    caplog.set_level("INFO")
    fork_id = await rig.start(options=options)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    rig.forks.on_report(SinkOpened(fork_id, chosen))
    rig.forks.on_report(Streaming(fork_id))
    assert rig.last_event[0] == "AudioForkStarted"
    assert rig.last_event[1].get("Subprotocol") == told
    assert said in caplog.text
    assert bool(said) == ("accepted the connection" in caplog.text)


async def test_secrets_of_the_options_are_in_no_event_variable_or_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await rig.start(options="A(S3CRET)H(X-Key:S3CRET)")
    await rig.ask(command="StopAudioFork", channel=NAME)
    await rig.obey()
    assert ("Authorization", "Bearer S3CRET") in rig.spec.handshake.headers
    assert "S3CRET" not in f"{caplog.text}{rig.ami.events}{rig.variables}"


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
    assert "report for an unknown fork" in caplog.text
    assert rig.sent == []
    assert rig.ami.told == []


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


async def test_strangers_at_the_audiosocket_port_are_an_attack(rig: Rig) -> None:
    rig.forks.on_report(StrangersRefused(7, "192.0.2.1"))
    rig.forks.on_report(StrangersRefused(2, ""))
    assert rig.events == [
        Attack(AttackKind.WRONG_UUID, "at the AudioSocket port, from 192.0.2.1", 7),
        Attack(AttackKind.WRONG_UUID, "at the AudioSocket port, from nobody", 2),
    ]
    assert rig.counters.attacks == {AttackKind.WRONG_UUID: 9}


async def test_message_that_a_caller_has_forged_is_told_as_an_attack(rig: Rig) -> None:
    rig.forks.on_event(ForgedMessage("Hangup of PJSIP/100-1: Uniqueid is not there once"))
    (attack,) = [event for event in rig.events if isinstance(event, Attack)]
    assert attack == Attack(
        AttackKind.FORGED_EVENT, "Hangup of PJSIP/100-1: Uniqueid is not there once"
    )
