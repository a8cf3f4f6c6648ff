import asyncio
import uuid

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup, RequestReceived
from audiofork.asterisk.taps.ways import Audience, Wish
from audiofork.config import Place, ProfileConfig, SecurityConfig
from audiofork.errors import AmiUnavailable, NoSuchChannel, RequestRefused
from audiofork.forks.call_info import FIELDS
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.fork import effective_url
from audiofork.forks.requests import StartFork, parse_request
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndFork,
    EndReason,
    ForkSpec,
    LegPart,
    ServerCommand,
    Streaming,
    Tls,
    Voice,
)
from tests.control_plane import (
    ANY_URL,
    COMMANDS,
    LEG_PREFIX,
    NAME,
    START,
    UNIQUEID,
    UNKNOWN_ID,
    URL,
    WAY,
    Rig,
)

PAIRS = LegPart.PAIRS


# --- Start to end --------------------------------------------------------------------------------


async def test_start_asks_the_relay_then_the_tap(rig: Rig) -> None:
    fork_id = await rig.start(options="D(stereo)")
    assert str(uuid.UUID(fork_id)) == fork_id
    assert rig.spec == ForkSpec(
        fork_id, NAME, URL, Direction.STEREO, (PAIRS,), steady=True, commands=COMMANDS, way=WAY
    )
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


# --- Refusals ------------------------------------------------------------------------------------


async def test_start_outside_allow_urls_is_refused(rig: Rig) -> None:
    rig.forks.security = SecurityConfig(allow_urls=("wss://*.example.org",))
    await rig.request(**START)
    assert "allow_urls" in rig.last_event[1]["Reason"]
    assert rig.sent == []


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


@pytest.mark.parametrize(
    ("allowed", "listed"),
    [((), "none"), (("wss://bot.example.org/", "@speech"), "wss://bot.example.org/ @speech")],
)
async def test_voice_outside_allow_speak_is_refused_with_what_is_allowed(
    rig: Rig, allowed: tuple[str, ...], listed: str
) -> None:
    rig.allow(allow_speak=allowed)
    await rig.request(**START, options="k(party)")
    assert rig.last_event[1]["Reason"] == (
        "Options: k(party): the server of this URL may not be heard in calls, [security] "
        f"allow_speak has {listed}"
    )
    assert rig.sent == []


@pytest.mark.parametrize("allowed", ["ws://example.org/a", "*://*.org", "ws://*/*"])
async def test_voice_of_a_url_of_allow_speak_is_granted(rig: Rig, allowed: str) -> None:
    rig.allow(allow_speak=("@speech", allowed))
    await rig.start(options="k(party)")


@pytest.mark.parametrize(
    ("allowed", "is_granted"),
    [("@bot", True), ("@*", True), ("@b*", True), ("@bots", False), ("*://*", False)],
)
async def test_voice_of_a_profile_is_granted_by_its_name_alone(
    rig: Rig, allowed: str, is_granted: bool
) -> None:
    section = ProfileConfig(
        url="wss://bot.example.org/?key=S3CRET",
        options="k(party)",
        commands=("hangup",),
        transfer_to=(Place("sales", "100"),),
    )
    rig.profiles.configure({"bot": section})
    rig.allow(allow_speak=(allowed,))
    await rig.request(channel=NAME, wsserver="@bot")
    if is_granted:
        assert rig.spec.voice == Voice((PAIRS,))
        assert rig.spec.commands == (*COMMANDS, ServerCommand.HANGUP)
    else:
        assert rig.last_event[1]["Reason"] == (
            "Options: k(party): @bot may not be heard in calls, [security] allow_speak has "
            f"{allowed}"
        )


async def test_start_beyond_max_forks_is_refused_until_one_ends(rig: Rig) -> None:
    rig.allow(max_forks=2)
    first = await rig.stream()
    await rig.stream()
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "2 forks run already (max_forks)"
    assert len(rig.forks) == 2
    await rig.ended(first, EndReason.STOPPED)
    await rig.stream()


async def test_starts_at_once_beyond_max_forks_leave_as_many_as_allowed(rig: Rig) -> None:
    rig.allow(max_forks=2)
    for _ in range(5):
        rig.user_events.on_request(RequestReceived(dict(START)))
    await rig.clock.settle()
    assert len(rig.live) == len(rig.forks) == 2
    assert len(rig.ami.events) == 3


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
        commands=COMMANDS,
        way=WAY,
    )


@pytest.mark.parametrize(
    ("options", "voice"),
    [("k(party)", Voice((LegPart.PAIRS,), buffer_s=7.5)), ("", None)],
)
async def test_server_that_may_speak_gets_a_voice_with_the_buffer_of_the_configuration(
    rig: Rig, options: str, voice: Voice | None
) -> None:
    rig.allow(allow_speak=ANY_URL)
    rig.forks.set_playout_buffer(7.5)
    await rig.start(options=options)
    assert rig.spec.voice == voice


async def test_reload_changes_what_servers_may_ask_for_in_later_forks(rig: Rig) -> None:
    await rig.start()
    rig.allow(allow_commands=("mark", "pause"))
    await rig.start()
    assert [spec.commands for spec in rig.sent if isinstance(spec, ForkSpec)] == [
        COMMANDS,
        (ServerCommand.MARK, ServerCommand.PAUSE),
    ]


@pytest.mark.parametrize(
    ("options", "heard_by"),
    [
        ("k(party)", Audience.PARTY),
        ("k(peer)", Audience.PEER),
        ("", None),
    ],
)
async def test_one_leg_is_heard_by_those_that_option_k_names(
    rig: Rig, options: str, heard_by: Audience | None
) -> None:
    rig.allow(allow_speak=ANY_URL)
    await rig.start(options=options)
    assert [leg.heard_by for leg in rig.tap.orders] == [heard_by]


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
        ("a", "INFO", "option a is accepted but has no effect"),
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
    await rig.request(**START, options="T(ca=a.pem:insecure)")
    reason = "Options: T(insecure) is not allowed (allow_insecure_tls)"
    assert rig.last_event[1]["Reason"] == rig.ami.variables[NAME]["AUDIOFORK_REASON"] == reason
    assert rig.sent == []
    rig.allow(allow_insecure_tls=True)
    await rig.start(options="T(insecure)")


async def test_fork_that_the_relay_ends_at_once_gets_no_leg_and_stays_failed(rig: Rig) -> None:
    rig.spec_fault = "the authorities of none.pem cannot be used"
    (fork_id,) = await rig.ask(**START, options="T(ca=none.pem)")
    await rig.clock.settle()
    assert rig.tap.started == []
    assert rig.ami.told == ["STARTING", "FAILED", "AudioForkFailed"]
    assert rig.last_event[1]["AudioForkID"] == fork_id
    assert rig.last_event[1]["Detail"] == rig.spec_fault


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
    assert ", both by chanspy at 16000 Hz to " in caplog.text
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
    assert rig.sent == []
    assert rig.tap.orders == []
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
    assert rig.sent == []
    assert rig.tap.orders == []


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


# --- What a fork needs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ("", Wish(Direction.BOTH)),
        ("D(in)", Wish(Direction.IN)),
        ("D(out)B(9)", Wish(Direction.OUT, speaks=True)),
        ("D(stereo)p", Wish(Direction.STEREO, speaks=True)),
        ("P", Wish(Direction.BOTH, speaks=True)),
        ("Pk(peer)", Wish(Direction.BOTH, speaks=True, audience=Audience.PEER)),
        ("k(BOTH)", Wish(Direction.BOTH, audience=Audience.BOTH)),
        ("v(1)", Wish(Direction.BOTH, apart=True)),
        ("V(-2)", Wish(Direction.BOTH, apart=True)),
        ("v(1)V(2)", Wish(Direction.BOTH, apart=True)),
        ("v(1)V(1)", Wish(Direction.BOTH)),
        ("L(16000)S", Wish(Direction.BOTH)),
    ],
)
async def test_tap_is_chosen_by_what_the_options_need(rig: Rig, options: str, wish: Wish) -> None:
    rig.allow(allow_speak=ANY_URL)
    await rig.start(options=options)
    assert rig.taps.wishes == [wish]


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


# --- What the server is told of the call ---------------------------------------------------------


async def test_fork_with_metadata_asks_once_and_orders_what_is_known(rig: Rig) -> None:
    rig.ami.values_of[UNIQUEID] = {
        "CALLERID(num)": "7",
        "CONTEXT": "from-phones",
        "EXTEN": "100",
        "CHANNEL(pjsip,call-id)": "x@y",
    }
    before = len(rig.ami.actions)
    fork_id = await rig.start(options="M", params="a=1")
    known = [headers for name, headers, _ in rig.ami.actions[before:] if name == "Getvar"]
    assert len(known) == 3, "name and uniqueid, as ever, and one more"
    metadata = rig.spec.metadata
    assert metadata is not None
    assert metadata.params == {"a": "1"}
    assert metadata.call == {
        **dict.fromkeys(FIELDS, ""),
        "fork_id": fork_id,
        "channel": NAME,
        "uniqueid": UNIQUEID,
        "call_started": "2023-11-14T22:13:20Z",
        "caller_number": "7",
        "context": "from-phones",
        "exten": "100",
        "sip_call_id": "x@y",
    }


async def test_start_by_the_gosub_tells_what_was_dialled(rig: Rig) -> None:
    rig.ami.values_of[UNIQUEID] = {
        "CONTEXT": "audiofork",
        "EXTEN": "start",
        "STACK_PEEK(1,c,1)": "from-phones",
        "STACK_PEEK(1,e,1)": "100",
    }
    await rig.start(options="M")
    assert rig.spec.metadata is not None
    call = rig.spec.metadata.call
    assert (call["context"], call["exten"]) == ("from-phones", "100")


async def test_parameters_may_be_those_of_channel_variables(rig: Rig) -> None:
    rig.ami.values_of[UNIQUEID] = {"AUDIOFORK_PARAM_ticket": "T & 7"}
    await rig.start(options="M(ticket&none)", params="ticket=1&b=2")
    assert rig.spec.metadata is not None
    assert rig.spec.metadata.params == {"ticket": "T & 7", "b": "2", "none": ""}


async def test_parameters_that_are_too_long_with_those_of_variables_refuse_the_fork(
    rig: Rig,
) -> None:
    rig.ami.values_of[UNIQUEID] = {"AUDIOFORK_PARAM_b": "x" * 200}
    await rig.request(channel=NAME, wsserver=URL, options="M(b)", params=f"a={'x' * 8000}")
    assert rig.last_event[1]["Reason"] == "Params: longer than 8192 bytes, all together"
    assert not rig.sent


async def test_parameters_without_the_option_that_sends_them_are_refused(rig: Rig) -> None:
    await rig.request(channel=NAME, wsserver=URL, params="a=1")
    assert rig.last_event[1]["Reason"] == "Params: they are sent to the server with option M or x"


async def test_parameters_are_refused_where_the_format_cannot_send_them(rig: Rig) -> None:
    await rig.request(channel=NAME, wsserver=URL, options="x(openai-realtime)", params="a=1")
    told = rig.last_event[1]["Reason"]
    assert told == "Params: the format openai-realtime sends none, leave them out"


async def test_fork_without_metadata_asks_nothing_more(rig: Rig) -> None:
    await rig.start()
    assert rig.spec.metadata is None
    assert "BASE64_ENCODE" not in str(rig.ami.actions)


async def test_fields_of_the_url_are_filled_in_for_all_that_follows(rig: Rig) -> None:
    rig.ami.values_of[UNIQUEID] = {"CALLERID(num)": "+49 7"}
    fork_id = await rig.start(wsserver="ws://example.org/{uniqueid}?from={caller_number}")
    url = f"ws://example.org/{UNIQUEID}?from=%2B49%207"
    assert rig.spec.url == url
    assert rig.variables["AUDIOFORK_WSSERVER"] == url
    assert rig.journal.entries[fork_id].url == url


async def test_url_that_its_fields_lead_out_of_the_allowed_is_refused(rig: Rig) -> None:
    security = SecurityConfig(allow_urls=("ws://example.org/100/*",))
    rig.forks.security = security
    rig.ami.values_of[UNIQUEID] = {"EXTEN": "200"}
    await rig.request(channel=NAME, wsserver="ws://example.org/{exten}/x")
    assert "not among the URLs" in rig.last_event[1]["Reason"]
    assert not rig.sent
