"""Every option of a fork, on the real Asterisk."""

from __future__ import annotations

import asyncio
import audioop
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from audiofork.link.messages import Direction, LegPart
from audiofork.relay import beep
from audiofork.relay.shape import Sides, shape_of
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, peak, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder, Recording
from testbed.sip import SipUser
from tests.system.conftest import (
    Target,
    counts_blocks,
    each_tap,
    needs_pairs,
    needs_whole_in,
    place_call,
    set_globals,
    start_fork,
    start_fork_heard,
)

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(100, seed=21)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=22)
QUIET = [b"\xff" * 160]
MUTE_SLACK_BLOCKS = 12


tap = each_tap


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_post_process = yes\n"}


async def recorded_call(
    ami: AmiClient, caller: SipUser, recorder: Recorder, options: str
) -> Recording:
    """Fork an Echo() call with these options while known blocks are spoken; return what came."""
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, recorder.url("/"), options)
    await target.call.play(BLOCKS + WARM_UP)
    await target.call.hangup()
    return await recorder.wait_closed("/")


# --- Volume ---


@needs_whole_in()
@pytest.mark.parametrize(
    ("option", "sides"),
    [("v(1)", Sides(gain_in=1)), ("v(-2)", Sides(gain_in=-2)), ("W(4)", Sides(gain_in=4))],
)
@counts_blocks
async def test_volume_of_in_is_a_factor_of_two_a_step(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, option: str, sides: Sides
) -> None:
    recording = await recorded_call(ami, caller, recorder, f"D(in){option}")
    shape = shape_of(LegPart.IN, Direction.IN, sides)
    assert report(find_blocks(recording.audio, [shape(block) for block in HEARD]), 100).intact


@needs_pairs()
@counts_blocks
async def test_volume_of_out_leaves_in_as_it_is(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    recording = await recorded_call(ami, caller, recorder, "D(stereo)V(-1)")
    left = audioop.tomono(recording.audio, 2, 1, 0)
    right = audioop.tomono(recording.audio, 2, 0, 1)
    shape = shape_of(LegPart.IN, Direction.IN, Sides(gain_in=-1))
    assert report(find_blocks(left, HEARD), 100).intact
    assert report(find_blocks(right, [shape(block) for block in HEARD]), 100).intact


# --- Mute ---

# The fork's direction, the side that is muted, and what of a message is silent then.
Mute = str
WHOLE: Sequence[Mute] = ("in-read-all", "both-both-all", "in-write-nothing")
PARTED: Sequence[Mute] = ("out-write-all", "stereo-read-left", "stereo-write-right")


@needs_pairs(mutes=[PARTED])
@pytest.mark.parametrize("mutes", [WHOLE, PARTED])
async def test_mute_puts_silence_in_the_stream_which_goes_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, mutes: Sequence[Mute]
) -> None:
    """All of them at once, each in a call of its own."""
    targets = [await place_call(ami, caller) for _ in mutes]
    delays_s = await asyncio.gather(
        *(muted(one, ami, target, recorder) for one, target in zip(mutes, targets, strict=True))
    )
    for one, delay_s in zip(mutes, delays_s, strict=True):
        print(f"{one}: obeyed after {statistics.median(delay_s) * 1000:.0f} ms, 60 are allowed")


async def muted(one: Mute, ami: AmiClient, target: Target, recorder: Recorder) -> list[float]:
    """Mute and unmute a fork three times; return after how many seconds each was obeyed."""
    direction, side, silent = one.split("-")
    target.call.talk()
    start_fork(ami, target.channel, recorder.url(f"/{one}"), f"D({direction})")
    recording = await recorder.wait_messages(f"/{one}", 50)
    loop = asyncio.get_running_loop()
    delays_s = []
    for state, wanted in 3 * [("1", silent), ("0", "nothing")]:
        asked, seen = loop.time(), len(recording.messages)
        mute(ami, target, side, state)
        parts: list[tuple[float, str]] = []
        async with asyncio.timeout(20):
            while not obeyed(parts, wanted):
                await recorder.wait_messages(f"/{one}", seen + len(parts) + 25)
                pairs = list(zip(recording.times, recording.messages, strict=True))[seen:]
                parts = [(at - asked, silent_part(message, direction)) for at, message in pairs]
        delays_s.append(delay(parts, wanted))
    await target.call.hangup()
    return delays_s


def obeyed(parts: list[tuple[float, str]], wanted: str) -> bool:
    """Return whether a mute, or its end, is obeyed by the latest messages; see `delay`."""
    latest = {part for _, part in parts[-10:]}
    return wanted in latest and (wanted == "nothing" or latest <= {wanted, "all"})


def delay(parts: list[tuple[float, str]], wanted: str) -> float:
    """Return after how many seconds a mute, or its end, was obeyed.

    Args:
        parts: Of each message when it came, and what of it is silent.
        wanted: What of it is to be silent.
    """
    if wanted == "nothing":
        # A caller who is held up leaves a gap of silence later, which is no mute.
        late = list(itertools.takewhile(lambda one: one[1] != wanted, parts))
    else:  # not a frame of what was said while muted
        late = [one for one in parts if one[1] not in (wanted, "all")]
    return max((at for at, _ in late), default=0.0)


async def test_mute_of_long_messages_begins_and_ends_where_it_was_asked_for(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A message of a second has not been read yet when the command comes, but for its begin."""
    blocks = make_blocks(250, seed=11)
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), "D(in)F(1000)")
    await target.call.play(QUIET * 75)
    await target.call.play(blocks[:60])
    mute(ami, target, "both", "1")
    await target.call.play(blocks[60:170])
    mute(ami, target, "both", "0")
    await target.call.play(blocks[170:] + QUIET * 75)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    found = set(find_blocks(recording.audio, [decode(block) for block in blocks]))
    # What Asterisk has still on its way comes a little later; it may lose a block.
    assert len(found.intersection(range(60 - MUTE_SLACK_BLOCKS))) >= 45
    assert found.isdisjoint(range(60 + MUTE_SLACK_BLOCKS, 170 - MUTE_SLACK_BLOCKS))
    assert len(found.intersection(range(170 + MUTE_SLACK_BLOCKS, 250))) >= 65


def mute(ami: AmiClient, target: Target, side: str, state: str, **more: str) -> None:
    ami.send(
        "UserEvent",
        UserEvent="AudioFork",
        Command="AudioForkMute",
        Channel=target.channel,
        Direction=side,
        State=state,
        **more,
    )


def silent_part(message: bytes | str, direction: str) -> str:
    """Tell what of a message is silent: all, left, right or nothing."""
    assert isinstance(message, bytes)
    if direction != "stereo":
        return "nothing" if any(message) else "all"
    left = any(audioop.tomono(message, 2, 1, 0))
    right = any(audioop.tomono(message, 2, 0, 1))
    return {(0, 0): "all", (0, 1): "left", (1, 0): "right", (1, 1): "nothing"}[left, right]


async def test_mute_of_one_fork_leaves_the_others(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    first = start_fork(ami, target.channel, recorder.url("/first"))
    start_fork(ami, target.channel, recorder.url("/second"))
    started = await ami.wait_user_event("AudioForkStarted", ActionID=first)
    await recorder.wait_messages("/second", 10)
    mute(ami, target, "both", "on", AudioForkID=started["AudioForkID"])
    await asyncio.sleep(0.2)
    seen = len(recorder.at("/first")[0].messages), len(recorder.at("/second")[0].messages)
    await asyncio.sleep(0.5)
    assert not any(b"".join(recorder.at("/first")[0].messages[seen[0] :]))  # type: ignore[arg-type]
    assert any(b"".join(recorder.at("/second")[0].messages[seen[1] :]))  # type: ignore[arg-type]
    await target.call.hangup()


# --- Time, bridge ---


@needs_whole_in()
@counts_blocks
async def test_keep_time_fills_what_the_party_does_not_send(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """The caller speaks 2 s, is silent for 2 s without sending anything, and speaks again."""
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), "D(in)S")
    await recorder.wait_messages("/", 10)
    began, seen = recorder.at("/")[0].times[-1], len(recorder.at("/")[0].messages)
    await target.call.play(BLOCKS)
    await asyncio.sleep(2)
    await target.call.play(BLOCKS + WARM_UP)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    count = len(recording.messages) - seen
    assert count == pytest.approx((recording.times[-1] - began) * 50, abs=6)
    # Asterisk may hand out the first frame twice when a party begins to send.
    found = [number for number, _ in itertools.groupby(find_blocks(recording.audio, HEARD))]
    assert found == [*range(100), *range(100)]


async def test_bridged_only_carries_audio_from_bridge_to_bridge(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Alone, in a bridge, sent away by a blind transfer, and in a bridge again."""
    await set_globals(ami, WSSERVER=recorder.url("/"), OPTIONS="D(in)b")
    async with SipUser("callee", ("127.0.0.1", asterisk.sip_port), answer=True) as callee:
        await callee.register()
        target = await place_call(ami, caller, "wait")
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/"), "D(in)b")
        recording = await recorder.wait(lambda r: r.path == "/")
        await asyncio.sleep(0.5)
        assert recording.messages == []
        await redirect(ami, target, "callee")
        await recorder.wait_messages("/", 25)
        await redirect(ami, target, "wait")
        await asyncio.sleep(0.3)
        seen = len(recording.messages)
        await asyncio.sleep(0.5)
        assert len(recording.messages) == seen
        await redirect(ami, target, "callee")
        await recorder.wait_messages("/", seen + 25)
        await target.call.hangup()
        await recorder.wait_closed("/")


async def redirect(ami: AmiClient, target: Target, extension: str) -> None:
    await ami.action(
        "Redirect", Channel=target.channel, Context="testbed", Exten=extension, Priority="1"
    )


# --- Beeps ---


def beeps_in(received: list[tuple[float, bytes]]) -> list[float]:
    """Return when each beep began, by its level: what else is heard is silence."""
    begins: list[float] = []
    last_loud = float("-inf")
    for at, payload in received:
        if peak(audioop.ulaw2lin(payload, 2)) > beep.AMPLITUDE // 2:
            if at - last_loud > 0.3:
                begins.append(at)
            last_loud = at
    return begins


@pytest.mark.serial
async def test_beeps_are_heard_by_the_party_on_time_and_by_nobody_else(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """One at the start, one each second, one at the stop; the callee hears none."""
    async with SipUser("callee", ("127.0.0.1", asterisk.sip_port), answer=True, record=True) as two:
        await two.register()
        target = await place_call(ami, caller, "callee")
        other = await two.incoming()
        target.call.recording = True
        target.call.play(QUIET, loop=True)
        other.play(QUIET, loop=True)
        await asyncio.sleep(0.5)
        action_id = start_fork(ami, target.channel, recorder.url("/"), "D(both)B(1)pP")
        started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
        await asyncio.sleep(3.5)
        ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Command="StopAudioFork",
            AudioForkID=started["AudioForkID"],
        )
        await recorder.wait_closed("/")
        await asyncio.sleep(0.5)
        heard = beeps_in([(r.at_s, r.payload) for r in target.call.received])
        assert len(heard) == 5  # start, three periodic, stop
        gaps_s = [after - before for before, after in itertools.pairwise(heard)]
        assert gaps_s[:3] == pytest.approx([1.0, 1.0, 1.0], abs=0.05)
        assert beeps_in([(r.at_s, r.payload) for r in other.received]) == []
        await target.call.hangup()


async def test_id_variable_holds_the_fork_id(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/"), "i(MY_FORK)a")
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    assert await ami.variable(target.channel, "MY_FORK") == started["AudioForkID"]
    assert "option a is accepted but has no effect" in daemon.log()
    await target.call.hangup()


async def test_text_of_the_server_lands_in_the_dialplan(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/"))
    recording = await recorder.wait_messages("/", 5)
    assert recording.connection is not None
    await recording.connection.send("hello\r\nEvent: Zoë\0")
    message = await ami.wait_user_event("AudioForkMessage", ActionID=action_id)
    assert message["Message"] == "helloEvent: Zoë"
    assert await ami.variable(target.channel, "AUDIOFORK_RESPONSE") == "helloEvent: Zoë"
    await target.call.hangup()


async def test_texts_beyond_20_a_second_are_counted_not_passed_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/"))
    recording = await recorder.wait_messages("/", 5)
    assert recording.connection is not None
    for number in range(50):
        await recording.connection.send(f"{number} " + "x" * 60_000)
    await asyncio.sleep(0.5)
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    messages = [h for _, h in ami.events if h.get("UserEvent") == "AudioForkMessage"]
    assert 20 <= len(messages) <= 40
    assert int(stopped["MessagesIgnored"]) == 50 - len(messages)
    assert max(len(headers["Message"]) for headers in messages) == 900


async def test_post_process_command_runs_at_the_end_with_values_of_the_start(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    """A channel variable full of shell syntax stays a value."""
    nasty = "$(touch pwned) `id` ; \"quoted\" 'single' & |"
    target = await place_call(ami, caller)
    target.call.talk()
    await ami.action("Setvar", Channel=target.channel, Variable="NOTE", Value=nasty)
    out = tmp_path / "out"
    action_id = start_fork(
        ami,
        target.channel,
        recorder.url("/"),
        PostProcess=f'printf "%s|%s" ^{{NOTE}} "^{{CHANNEL(name)}}" > {out}; exit 7',
    )
    await recorder.wait_messages("/", 5)
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert stopped["PostProcessStatus"] == "7"
    assert out.read_text() == f"{nasty}|{target.channel}"


async def test_post_process_command_comes_with_the_third_argument_of_the_gosub(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await set_globals(ami, WSSERVER=recorder.url("/"), OPTIONS="D(both)", POST=f"echo done > {out}")
    target = await place_call(ami, caller, "post")
    target.call.talk()
    await recorder.wait_messages("/", 5)
    await target.call.hangup()
    await ami.wait_user_event("AudioForkStopped", PostProcessStatus="0")
    assert out.read_text() == "done\n"


async def test_mute_by_gosub(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, WSSERVER=recorder.url("/"), OPTIONS="D(both)")
    target = await place_call(ami, caller, "mute")
    target.call.talk()
    await ami.wait_user_event("Muted")
    await asyncio.sleep(0.2)
    seen = len(recorder.at("/")[0].messages)
    await recorder.wait_messages("/", seen + 20)
    assert not any(b"".join(recorder.at("/")[0].messages[seen:]))  # type: ignore[arg-type]
    await target.call.hangup()


# --- The server comes and goes ---


@needs_whole_in()
@counts_blocks
async def test_server_that_goes_and_comes_back_gets_what_waited(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """The connection breaks in mid-call; every block reaches the server, in order."""
    target = await place_call(ami, caller)
    action_id = start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await target.call.play(WARM_UP)
    playing = target.call.play(BLOCKS + WARM_UP)
    first = await recorder.wait_messages("/", 60)
    assert first.connection is not None
    await first.connection.close(1012, "restart")
    reconnecting = await ami.wait_user_event("AudioForkReconnecting", ActionID=action_id)
    assert reconnecting["Reason"] == "the server closed with 1012 restart"
    resumed = await ami.wait_user_event("AudioForkResumed", ActionID=action_id)
    assert resumed["FramesDropped"] == "0"
    assert await ami.variable(target.channel, "AUDIOFORK_STATUS") == "STREAMING"
    await playing
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert stopped["Reconnects"] == "1"
    audio = b"".join(recording.audio for recording in recorder.recordings)
    found = report(find_blocks(audio, HEARD), 100)
    # What was on its way when the server closed is lost to a server that reads no more.
    assert found.missing <= 3
    assert not found.duplicated
    assert not found.out_of_order


# --- Longer messages ---


@needs_pairs(direction=["out", "stereo"])
@needs_whole_in()
@pytest.mark.parametrize("direction", ["in", "out"])
@counts_blocks
async def test_messages_of_100_ms_hold_every_block_up_to_the_stop(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, direction: str
) -> None:
    """Echo() sends back what it hears. What is left at the end goes in a shorter message."""
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), f"D({direction})F(100)")
    await target.call.play(QUIET * 25)
    await target.call.play(BLOCKS + QUIET * 25)
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=target.channel)
    stopped = await ami.wait_user_event("AudioForkStopped", WsServer=recorder.url("/"))
    assert stopped["FramesIn"] == stopped["FramesSent"]
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert len(recording.audio) == 320 * int(stopped["FramesSent"])
    assert report(find_blocks(recording.audio, HEARD), len(BLOCKS)).intact
    sizes = [len(message) for message in recording.messages]
    assert sizes.count(1600) >= 0.9 * len(sizes)
    assert max(sizes) == 1600


async def test_fork_that_is_stopped_before_its_first_message_is_full_has_started(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    url = recorder.url("/unfinished")
    start_fork(ami, target.channel, url, "D(in)F(1000)")
    await recorder.wait(lambda r: r.path == "/unfinished")
    await target.call.play(QUIET * 25)
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=target.channel)
    stopped = await ami.wait_user_event("AudioForkStopped", WsServer=url)
    assert int(stopped["FramesSent"]) > 0
    told = [h for _, h in ami.events if h.get("AudioForkID") == stopped["AudioForkID"]]
    events = [h["UserEvent"] for h in told if h["UserEvent"] != "AudioFork"]
    assert events == ["AudioForkStarted", "AudioForkStopped"]
    await target.call.hangup()


async def test_server_that_demands_a_token_and_a_subprotocol_gets_the_audio(
    ami: AmiClient, caller: SipUser, daemon: Daemon
) -> None:
    """And what a secret is stands neither in the log nor in the event."""
    got: list[bytes] = []

    async def take(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, bytes)
            got.append(message)

    def check(connection: ServerConnection, request: Request) -> Response | None:
        wanted = {"Authorization": "Bearer t0ken-7", "X-Call": "a;b"}
        if all(request.headers.get(name) == value for name, value in wanted.items()):
            return None
        return connection.respond(401, "no\n")

    known = [Subprotocol("v1.bot")]
    async with serve(take, "127.0.0.1", 0, process_request=check, subprotocols=known) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        target = await place_call(ami, caller)
        wrong = start_fork(ami, target.channel, url, "D(in)A(wrong)s(v1.bot)")
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=wrong)
        options = "D(in)A(t0ken-7)H(X-Call:a;b)s(v2.bot&v1.bot)"
        action_id = start_fork(ami, target.channel, url, options)
        await target.call.play(BLOCKS)
        started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert started["Subprotocol"] == "v1.bot"
    assert failed["Reason"] == "sink-refused"
    assert failed["Detail"].endswith("HTTP 401 Unauthorized; it wants a token or a login: option A")
    assert len(got) >= len(BLOCKS) - 20
    assert "t0ken-7" not in daemon.log()
