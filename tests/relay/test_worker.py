"""The relay as a whole: a leg on one side, a WebSocket server on the other."""

from __future__ import annotations

import asyncio
import functools
import struct
import uuid
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from audiofork.config import Address, AudioSocketConfig, Config, SecurityConfig, WebSocketConfig
from audiofork.errors import ConfigError
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    SetGate,
    SetMute,
    SinkMessage,
    SinkOpened,
    StatsTaken,
    StrangersRefused,
    Streaming,
    TakeStats,
)
from audiofork.relay import worker as worker_module
from audiofork.relay.beep import tone
from audiofork.relay.client_tls import client_tls
from audiofork.relay.worker import Worker
from testbed.recorder import Recorder
from tests.relay.peers import HANGUP, Leg, StalledServer, counted, numbered, until, unused_port
from tests.relay.relay_stage import RelayStage

pytestmark = pytest.mark.usefixtures("nothing_left")


def pairs(ins: bytes, outs: bytes) -> bytes:
    """Interleave two mono frames."""
    samples = zip(struct.iter_unpack("2s", ins), struct.iter_unpack("2s", outs), strict=True)
    return b"".join(first + second for (first,), (second,) in samples)


INS = [struct.pack("<160h", *range(n, n + 160)) for n in range(10)]
OUTS = [struct.pack("<160h", *range(n, n + 480, 3)) for n in range(1000, 1010)]
SUMS = [struct.pack("<160h", *range(1000 + 2 * n, 1640 + 2 * n, 4)) for n in range(10)]
PAIRS = [pairs(first, second) for first, second in zip(INS, OUTS, strict=True)]


@pytest.mark.parametrize(
    ("direction", "part", "frames", "messages"),
    [
        (Direction.IN, LegPart.IN, INS, INS),
        (Direction.OUT, LegPart.OUT, OUTS, OUTS),
        (Direction.OUT, LegPart.PAIRS, PAIRS, OUTS),
        (Direction.BOTH, LegPart.PAIRS, PAIRS, SUMS),
        (Direction.BOTH, LegPart.MIX, INS, INS),
        (Direction.STEREO, LegPart.PAIRS, PAIRS, PAIRS),
    ],
    ids=["in", "out", "out of pairs", "both of pairs", "both mixed by Asterisk", "stereo"],
)
async def test_frames_of_a_leg_arrive_as_the_direction_says(
    relay: RelayStage,
    recorder: Recorder,
    direction: Direction,
    part: LegPart,
    frames: list[bytes],
    messages: list[bytes],
) -> None:
    fork_id = relay.begin(recorder.url("/fork"), direction, legs=(part,))
    leg = await relay.attach(fork_id)
    leg.send_audio(*frames)
    recording = await recorder.wait_messages("/fork", len(frames))
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert recording.messages == messages
    assert ended == ForkEnded(fork_id, EndReason.STOPPED, "", ForkStats(10, 10, 0))
    kinds = [type(report) for report in relay.of(fork_id)]
    assert sorted(kinds[:2], key=str) == [LegAttached, SinkOpened]
    assert kinds[2:] == [Streaming, ForkEnded]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EndReason.HANGUP, 1000),
        (EndReason.STOPPED, 1000),
        (EndReason.SHUTDOWN, 1001),
        (EndReason.FAULT, 1011),
    ],
)
async def test_end_reason_reaches_the_server_as_close_code(
    relay: RelayStage, recorder: Recorder, reason: EndReason, code: int
) -> None:
    fork_id = relay.begin(recorder.url())
    await relay.reported(SinkOpened, fork_id)
    relay.worker.handle(EndFork(fork_id, reason, "some detail"))
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (code, reason.value)
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.detail) == (reason, "some detail")


async def test_leg_that_asterisk_closes_leaves_the_end_to_the_control_plane(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url())
    leg = await relay.attach(fork_id)
    leg.send_audio(*INS)
    await recorder.wait_messages("/", 10)
    await leg.close()
    assert await relay.reported(LegLost, fork_id) == LegLost(fork_id, LegPart.MIX, 10)
    assert not relay.of(fork_id, ForkEnded)
    assert fork_id in relay.worker.sessions
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.stats) == (EndReason.HANGUP, ForkStats(10, 10, 0))


async def test_server_that_is_not_there_ends_the_fork_and_hangs_up(relay: RelayStage) -> None:
    fork_id = relay.begin(f"ws://127.0.0.1:{unused_port()}/")
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_GONE
    assert relay.worker.sessions == {}
    leg = await Leg.connect(relay.worker.address)
    relay.legs.append(leg)
    leg.send_uuid(fork_id)
    assert await leg.read_to_end() == HANGUP
    assert relay.of(fork_id) == [ended]


async def test_server_that_closes_hangs_up_the_leg(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    leg = await relay.attach(fork_id)
    leg.send_audio(*INS)
    recording = await recorder.wait_messages("/", 10)
    assert recording.connection is not None
    await recording.connection.close(4001, "no more")
    assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_REFUSED
    assert ended.detail == "the server closed with 4001 no more"


async def test_leg_without_pairs_fails_the_fork(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.STEREO)
    await relay.reported(SinkOpened, fork_id)
    leg = await relay.attach(fork_id)
    leg.send_audio(*INS)
    assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.LEG_FAILED
    assert "ChanSpy" in ended.detail
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.messages) == (1011, [])


async def test_frames_of_a_leg_that_is_faster_than_the_server_arrive(
    relay: RelayStage, stalled: StalledServer
) -> None:
    stalled.hold_handshake = True
    fork_id = relay.begin(stalled.url)
    leg = await relay.attach(fork_id)
    leg.send_audio(*INS)
    await until(lambda: stalled.asked and relay.worker.sessions[fork_id].stats().frames_in == 10)
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    assert await leg.read_to_end() == HANGUP
    stalled.answer()
    stalled.read_on()
    ended = await relay.reported(ForkEnded, fork_id)
    assert stalled.frames == INS
    assert (stalled.close_code, stalled.close_reason) == (1000, "hangup")
    assert ended.stats == ForkStats(10, 10, 0)


async def test_forks_side_by_side_keep_their_frames_apart(
    relay: RelayStage, recorder: Recorder
) -> None:
    paths = [f"/{n}" for n in range(10)]
    forks = {path: relay.begin(recorder.url(path), Direction.IN) for path in paths}
    legs = {path: await relay.attach(fork_id) for path, fork_id in forks.items()}
    for n, leg in enumerate(legs.values()):
        leg.send_audio(*numbered(5, 100 * n))
    for n, path in enumerate(paths):
        recording = await recorder.wait_messages(path, 5)
        assert recording.messages == numbered(5, 100 * n)
    relay.worker.handle(EndFork(forks["/3"], EndReason.STOPPED))
    await relay.reported(ForkEnded, forks["/3"])
    assert set(relay.worker.sessions) == set(forks.values()) - {forks["/3"]}
    legs["/4"].send_audio(*numbered(1, 7))
    await recorder.wait_messages("/4", 6)


async def test_end_of_an_unknown_fork_is_ignored(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    relay.worker.handle(EndFork(str(uuid.uuid4()), EndReason.STOPPED))
    await relay.reported(SinkOpened, fork_id)
    assert set(relay.worker.sessions) == {fork_id}
    assert not any(isinstance(report, ForkEnded) for report in relay.reports)


async def test_end_again_is_ignored(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.HANGUP
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert relay.worker.sessions == {}


async def test_end_in_the_same_turn_as_the_begin_ends_it(relay: RelayStage) -> None:
    fork_id = relay.begin(f"ws://127.0.0.1:{unused_port()}/")
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.stats) == (EndReason.STOPPED, ForkStats())


async def test_close_says_shutdown_to_every_server(relay: RelayStage, recorder: Recorder) -> None:
    forks = [relay.begin(recorder.url(f"/{n}")) for n in range(3)]
    legs = [await relay.attach(fork_id) for fork_id in forks]
    for leg in legs:
        leg.send_audio(*INS)
    for n in range(3):
        await recorder.wait_messages(f"/{n}", 10)
    await relay.worker.close()
    for leg in legs:
        assert await leg.read_to_end() == HANGUP
    for n, fork_id in enumerate(forks):
        recording = await recorder.wait_closed(f"/{n}")
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
        assert relay.of(fork_id, ForkEnded)[0].reason is EndReason.SHUTDOWN
    with pytest.raises(ConnectionRefusedError):
        await Leg.connect(relay.worker.address)


async def test_close_with_a_stalled_server_ends_in_time(
    relay: RelayStage, recorder: Recorder, stalled: StalledServer, soon: float
) -> None:
    good, bad = relay.begin(recorder.url()), relay.begin(stalled.url)
    for fork_id in (good, bad):
        await relay.reported(SinkOpened, fork_id)
    async with asyncio.timeout(soon + 1):
        await relay.worker.close()
    for fork_id in (good, bad):
        assert relay.of(fork_id, ForkEnded)[0].reason is EndReason.SHUTDOWN
    assert (await recorder.wait_closed("/")).close_code == 1001


async def test_close_without_forks_listens_no_more(relay: RelayStage) -> None:
    await relay.worker.close()
    with pytest.raises(ConnectionRefusedError):
        await Leg.connect(relay.worker.address)


async def test_configure_applies_to_forks_from_now_on(
    relay: RelayStage, stalled: StalledServer
) -> None:
    stalled.hold_handshake = True
    websocket = WebSocketConfig(connect_timeout=0.05, reconnect_attempts=1)
    relay.worker.configure(Config(websocket=websocket))
    fork_id = relay.begin(stalled.url)
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_GONE
    assert " within 0.05 s: " in ended.detail


async def test_configured_so_a_name_that_points_to_this_machine_is_refused(
    relay: RelayStage, recorder: Recorder
) -> None:
    relay.worker.configure(Config(security=SecurityConfig(allow_private=False)))
    fork_id = relay.begin(f"ws://localhost:{recorder.port}/")
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_REFUSED
    assert "localhost resolves to the private address" in ended.detail
    relay.worker.configure(Config(security=SecurityConfig(allow_private=True)))
    fork_id = relay.begin(recorder.url())
    await relay.reported(SinkOpened, fork_id)


async def test_leg_from_where_none_may_come_is_closed() -> None:
    listen = AudioSocketConfig(Address("127.0.0.1", 0), allow=(IPv4Network("10.0.0.0/8"),))
    worker = Worker(Config(audiosocket=listen), lambda report: None)
    leg = await Leg.connect(await worker.start())
    assert await leg.read_to_end() == HANGUP
    await worker.close()
    await leg.close()


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "garbage"])
def test_authorities_file_that_cannot_be_used_is_a_config_error(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"authorities of .*ca\.pem cannot be used"):
        client_tls(str(path))


# --- A leg for each side -------------------------------------------------------------------------

SIDES: dict[str, Any] = {"legs": (LegPart.IN, LegPart.OUT)}
WIDE: dict[str, Any] = SIDES | {"sample_rate": 16_000}


@pytest.mark.parametrize(
    ("direction", "messages"), [(Direction.BOTH, SUMS), (Direction.STEREO, PAIRS)]
)
async def test_frames_of_two_legs_arrive_joined(
    relay: RelayStage, recorder: Recorder, direction: Direction, messages: list[bytes]
) -> None:
    fork_id = relay.begin(recorder.url(), direction, **SIDES)
    leg_in = await relay.attach(fork_id, LegPart.IN)
    leg_out = await relay.attach(fork_id, LegPart.OUT)
    for count, (side_in, side_out) in enumerate(zip(INS, OUTS, strict=True), 1):
        leg_in.send_audio(side_in)
        leg_out.send_audio(side_out)
        recording = await recorder.wait_messages("/", count)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    for leg in (leg_in, leg_out):
        assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert recording.messages == messages
    assert ended.stats == ForkStats(10, 10, 0)


async def test_wide_frames_arrive_in_messages_as_wide(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.STEREO, **WIDE)
    legs = [await relay.attach(fork_id, part) for part in (LegPart.IN, LegPart.OUT)]
    for count in range(1, 4):
        for leg in legs:
            leg.send(b"\x12\x02\x80" + INS[count] * 2)
        recording = await recorder.wait_messages("/", count)
    assert recording.messages == [pairs(INS[n] * 2, INS[n] * 2) for n in (1, 2, 3)]


async def test_one_leg_of_two_may_come_again_and_only_when_it_is_let(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **SIDES)
    leg_in = await relay.attach(fork_id, LegPart.IN)
    leg_out = await relay.attach(fork_id, LegPart.OUT)
    await leg_out.close()
    assert await relay.reported(LegLost, fork_id) == LegLost(fork_id, LegPart.OUT, 0)
    used = relay.leg_uuids[fork_id, LegPart.OUT]
    relay.expect(fork_id, LegPart.OUT)
    early = await relay.connect(used)
    assert await early.read_to_end() == HANGUP
    leg_out = await relay.attach(fork_id, LegPart.OUT)
    leg_in.send_audio(INS[0])
    leg_out.send_audio(OUTS[0])
    assert (await recorder.wait_messages("/", 1)).messages == SUMS[:1]


async def test_uuids_of_both_legs_are_worth_nothing_after_the_end(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **SIDES)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    await relay.reported(ForkEnded, fork_id)
    assert relay.worker._listener._uuids._issued == {}
    for part in SIDES["legs"]:
        leg = await relay.connect(relay.leg_uuids[fork_id, part])
        assert await leg.read_to_end() == HANGUP
    relay.expect(fork_id, LegPart.IN)
    assert relay.worker._listener._uuids._issued == {}


async def test_leg_that_was_reopened_and_has_not_come_is_withdrawn_with_the_fork(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.OUT, legs=(LegPart.OUT,))
    leg = await relay.attach(fork_id, LegPart.OUT)
    await leg.close()
    assert await relay.reported(LegLost, fork_id) == LegLost(fork_id, LegPart.OUT, 0)
    relay.expect(fork_id, LegPart.OUT)
    assert len(relay.worker._listener._uuids._issued) == 1
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    await relay.reported(ForkEnded, fork_id)
    assert relay.worker._listener._uuids._issued == {}


async def test_leg_of_another_rate_fails_the_fork(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **WIDE)
    legs = [await relay.attach(fork_id, part) for part in (LegPart.IN, LegPart.OUT)]
    legs[1].send_audio(OUTS[0])
    for leg in legs:
        assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == "the leg sends frames of 320 bytes, not 640 (16000 Hz)"


async def test_beep_of_a_wide_fork_is_heard_over_the_leg_of_in_in_its_kind(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, beeps=Beeps(at_end=True), **WIDE)
    legs = [await relay.attach(fork_id, part) for part in (LegPart.IN, LegPart.OUT)]
    for leg in legs:
        leg.send(b"\x12\x02\x80" + INS[0] * 2)
    await recorder.wait_messages("/", 1)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    heard = b"".join(b"\x12\x02\x80" + frame for frame in tone(16_000))
    assert await legs[0].read_to_end() == heard + HANGUP
    assert await legs[1].read_to_end() == HANGUP


async def test_beep_of_a_wide_fork_is_of_8000_hz_where_the_leg_comes_as_that(
    relay: RelayStage, recorder: Recorder
) -> None:
    """Asterisk before 20.17, 21.12, 22.7 and 23.1 has one kind for all rates."""
    beeps = Beeps(at_end=True)
    fork_id = relay.begin(recorder.url(), Direction.IN, sample_rate=16_000, beeps=beeps)
    leg = await relay.attach(fork_id)
    leg.send(b"\x10\x02\x80" + INS[0] * 2)
    assert (await recorder.wait_messages("/", 1)).messages == [INS[0] * 2]
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    heard = b"".join(b"\x10\x01\x40" + frame for frame in tone(8000))
    assert await leg.read_to_end() == heard + HANGUP


# --- Commands to a fork that runs ----------------------------------------------------------------


async def test_mute_and_gate_reach_their_fork_and_no_other(
    relay: RelayStage, recorder: Recorder
) -> None:
    forks = [relay.begin(recorder.url(f"/{n}"), Direction.STEREO) for n in range(2)]
    legs = [await relay.attach(fork_id) for fork_id in forks]
    relay.worker.handle(SetMute(forks[0], mute_out=True))
    for n, leg in enumerate(legs):
        leg.send_audio(PAIRS[0])
        await recorder.wait_messages(f"/{n}", 1)
    relay.worker.handle(SetMute(forks[0], mute_out=False))
    relay.worker.handle(SetGate(forks[0], False))
    for leg in legs:
        leg.send_audio(PAIRS[1])
    recording = await recorder.wait_messages("/1", 2)
    assert recording.messages == PAIRS[:2]
    relay.worker.handle(EndFork(forks[0], EndReason.STOPPED))
    ended = await relay.reported(ForkEnded, forks[0])
    assert ended.stats == ForkStats(1, 1, 0)
    assert recorder.at("/0")[0].messages == [pairs(INS[0], bytes(320))]


async def test_gate_opens_a_fork_that_began_shut(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.IN, gate_open=False)
    leg = await relay.attach(fork_id)
    await relay.reported(SinkOpened, fork_id)
    relay.worker.handle(SetGate(fork_id, True))
    leg.send_audio(INS[0])
    assert (await recorder.wait_messages("/", 1)).messages == INS[:1]


@pytest.mark.parametrize("kind", [SetMute, functools.partial(SetGate, is_open=True)])
async def test_command_to_an_unknown_fork_is_ignored(relay: RelayStage, kind: Any) -> None:
    relay.worker.handle(kind(str(uuid.uuid4())))
    assert relay.reports == []


async def test_statistics_are_taken_of_all_forks(relay: RelayStage, recorder: Recorder) -> None:
    relay.worker.handle(TakeStats(1))
    busy, idle = relay.begin(recorder.url("/busy")), relay.begin(recorder.url("/idle"))
    leg = await relay.attach(busy)
    leg.send_audio(*INS)
    await recorder.wait_messages("/busy", 10)
    relay.worker.handle(TakeStats(2))
    first, second = (report for report in relay.reports if isinstance(report, StatsTaken))
    assert first == StatsTaken(1, {})
    assert counted(second.stats) == {busy: ForkStats(10, 10, 0), idle: ForkStats()}
    assert second.stats[busy].rtt_ms > 0


async def test_statistics_of_many_forks_let_others_have_turns(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FORKS_AT_ONCE", 2)
    forks = [relay.begin("ws://127.0.0.1:1/", reconnect_attempts=9) for _ in range(5)]
    relay.worker.handle(TakeStats(1))
    assert not [report for report in relay.reports if isinstance(report, StatsTaken)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (taken,) = (report for report in relay.reports if isinstance(report, StatsTaken))
    assert list(taken.stats) == forks


async def test_fork_that_ends_while_statistics_are_taken_is_no_fault(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FORKS_AT_ONCE", 1)
    first, second = (relay.begin("ws://127.0.0.1:1/", reconnect_attempts=9) for _ in range(2))
    relay.worker.handle(TakeStats(1))
    session = relay.worker.sessions.pop(second)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    relay.worker.sessions[second] = session
    (taken,) = (report for report in relay.reports if isinstance(report, StatsTaken))
    assert list(taken.stats) == [first]


async def test_text_of_the_server_is_reported(relay: RelayStage, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    await relay.reported(SinkOpened, fork_id)
    connection = recorder.at("/")[0].connection
    assert connection is not None
    await connection.send("hello")
    assert await relay.reported(SinkMessage, fork_id) == SinkMessage(fork_id, "hello")


async def test_leg_of_a_contested_uuid_is_lost_and_its_fork_waits_for_another(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.IN, legs=(LegPart.IN,))
    first = await relay.attach(fork_id)
    first.send_audio(INS[0])
    await recorder.wait_messages("/", 1)
    second = await relay.connect(relay.leg_uuids[fork_id, LegPart.IN])
    assert await second.read_to_end() == await first.read_to_end() == HANGUP
    lost = await relay.reported(LegLost, fork_id)
    assert lost == LegLost(fork_id, LegPart.IN, 1, contested=True)
    assert relay.reports.count(StrangersRefused(1, "127.0.0.1")) == 1
    relay.expect(fork_id, LegPart.IN)
    third = await relay.attach(fork_id)
    third.send_audio(INS[1])
    assert (await recorder.wait_messages("/", 2)).messages == INS[:2]


async def test_leg_that_another_is_expected_for_is_hung_up_and_not_reported_lost(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.IN, legs=(LegPart.IN,))
    first = await relay.attach(fork_id)
    relay.expect(fork_id, LegPart.IN)
    assert await first.read_to_end() == HANGUP
    second = await relay.attach(fork_id)
    second.send_audio(INS[0])
    assert (await recorder.wait_messages("/", 1)).messages == INS[:1]
    assert relay.of(fork_id, LegLost) == []


async def test_uuid_of_a_leg_that_never_came_is_void_once_another_is_expected(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.IN, legs=(LegPart.IN,))
    before = relay.leg_uuids[fork_id, LegPart.IN]
    relay.expect(fork_id, LegPart.IN)
    late = await relay.connect(before)
    assert await late.read_to_end() == HANGUP
    await relay.attach(fork_id)
