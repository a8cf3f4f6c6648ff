"""The relay as a whole: a leg on one side, a WebSocket server on the other."""

from __future__ import annotations

import asyncio
import functools
import ssl
import struct
import uuid
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import trustme

from audiofork.config import Address, AudioSocketConfig, Config, SecurityConfig, WebSocketConfig
from audiofork.errors import ConfigError
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
    ReopenLeg,
    Report,
    SetGate,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkRetrying,
    StatsTaken,
    Streaming,
    TakeStats,
    Tls,
    leg_uuid,
)
from audiofork.relay.beep import tone
from audiofork.relay.worker import Worker, client_tls
from testbed.recorder import Recorder
from tests.relay.conftest import server_tls
from tests.relay.peers import HANGUP, Leg, StalledServer, numbered, until, unused_port

pytestmark = pytest.mark.usefixtures("nothing_left")


USUAL_PART = {
    Direction.IN: LegPart.IN,
    Direction.OUT: LegPart.PAIRS,
    Direction.BOTH: LegPart.MIX,
    Direction.STEREO: LegPart.PAIRS,
}


class Relay:
    """A worker, and what it reports."""

    def __init__(self, websocket: WebSocketConfig) -> None:
        self.reports: list[Report] = []
        listen = AudioSocketConfig(listen=Address("127.0.0.1", 0))
        self.worker = Worker(Config(audiosocket=listen, websocket=websocket), self.reports.append)
        self.legs: list[Leg] = []
        self.first_parts: dict[str, LegPart] = {}

    def begin(self, url: str, direction: Direction = Direction.BOTH, **wishes: Any) -> str:
        """Order a fork, by the leg that is usual for the direction; return its id."""
        fork_id = str(uuid.uuid4())
        wishes = {"legs": (USUAL_PART[direction],), **wishes}
        spec = ForkSpec(fork_id, "PJSIP/100-0000002a", url, direction, **wishes)
        self.first_parts[fork_id] = spec.legs[0]
        self.worker.handle(spec)
        return fork_id

    async def attach(self, fork_id: str, part: LegPart | None = None) -> Leg:
        """Connect the leg of a fork, the first if none is named."""
        part = part or self.first_parts[fork_id]
        before = self.reports.count(LegAttached(fork_id, part))
        leg = await self.connect(leg_uuid(fork_id, part))
        await until(lambda: self.reports.count(LegAttached(fork_id, part)) > before)
        return leg

    async def connect(self, presented: str) -> Leg:
        """Connect, and present a UUID."""
        leg = await Leg.connect(self.worker.address)
        self.legs.append(leg)
        leg.send_uuid(presented)
        return leg

    async def reported(self, kind: type[Any], fork_id: str) -> Any:
        """Wait for a report of a fork, and return it."""
        await until(lambda: self.of(fork_id, kind))
        return self.of(fork_id, kind)[0]

    def of(self, fork_id: str, kind: type[Any] = object) -> list[Any]:
        reports = [report for report in self.reports if not isinstance(report, StatsTaken)]
        return [r for r in reports if r.fork_id == fork_id and isinstance(r, kind)]


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = Relay(WebSocketConfig(reconnect_attempts=1))
    address = await relay.worker.start()
    assert address == relay.worker.address
    yield relay
    await relay.worker.close()
    for leg in relay.legs:
        await leg.close()
    # Nothing may be left of any fork.
    assert relay.worker.sessions == {}
    assert relay.worker._listener._issued == {}
    assert relay.worker._listener._legs == set()
    begun = {report.fork_id for report in relay.reports if not isinstance(report, StatsTaken)}
    assert all(len(relay.of(fork_id, ForkEnded)) == 1 for fork_id in begun)
    assert all(isinstance(relay.of(fork_id)[-1], ForkEnded) for fork_id in begun)


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
    relay: Relay,
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
    relay: Relay, recorder: Recorder, reason: EndReason, code: int
) -> None:
    fork_id = relay.begin(recorder.url())
    await relay.reported(SinkOpened, fork_id)
    relay.worker.handle(EndFork(fork_id, reason, "some detail"))
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (code, reason.value)
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.detail) == (reason, "some detail")


async def test_leg_that_asterisk_closes_leaves_the_end_to_the_control_plane(
    relay: Relay, recorder: Recorder
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


async def test_server_that_is_not_there_ends_the_fork_and_hangs_up(relay: Relay) -> None:
    fork_id = relay.begin(f"ws://127.0.0.1:{unused_port()}/")
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_GONE
    assert relay.worker.sessions == {}
    leg = await Leg.connect(relay.worker.address)
    relay.legs.append(leg)
    leg.send_uuid(fork_id)
    assert await leg.read_to_end() == HANGUP
    assert relay.of(fork_id) == [ended]


async def test_server_that_closes_hangs_up_the_leg(relay: Relay, recorder: Recorder) -> None:
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


async def test_leg_without_pairs_fails_the_fork(relay: Relay, recorder: Recorder) -> None:
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
    relay: Relay, stalled: StalledServer
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


async def test_forks_side_by_side_keep_their_frames_apart(relay: Relay, recorder: Recorder) -> None:
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


async def test_end_of_an_unknown_fork_is_ignored(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    relay.worker.handle(EndFork(str(uuid.uuid4()), EndReason.STOPPED))
    await relay.reported(SinkOpened, fork_id)
    assert set(relay.worker.sessions) == {fork_id}
    assert not any(isinstance(report, ForkEnded) for report in relay.reports)


async def test_end_again_is_ignored(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.HANGUP
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert relay.worker.sessions == {}


async def test_end_in_the_same_turn_as_the_begin_ends_it(relay: Relay) -> None:
    fork_id = relay.begin(f"ws://127.0.0.1:{unused_port()}/")
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.stats) == (EndReason.STOPPED, ForkStats())


async def test_close_says_shutdown_to_every_server(relay: Relay, recorder: Recorder) -> None:
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
    with pytest.raises(OSError):
        await Leg.connect(relay.worker.address)


async def test_close_with_a_stalled_server_ends_in_time(
    relay: Relay, recorder: Recorder, stalled: StalledServer, soon: float
) -> None:
    good, bad = relay.begin(recorder.url()), relay.begin(stalled.url)
    for fork_id in (good, bad):
        await relay.reported(SinkOpened, fork_id)
    async with asyncio.timeout(soon + 1):
        await relay.worker.close()
    for fork_id in (good, bad):
        assert relay.of(fork_id, ForkEnded)[0].reason is EndReason.SHUTDOWN
    assert (await recorder.wait_closed("/")).close_code == 1001


async def test_close_without_forks_listens_no_more(relay: Relay) -> None:
    await relay.worker.close()
    with pytest.raises(OSError):
        await Leg.connect(relay.worker.address)


async def test_configure_applies_to_forks_from_now_on(relay: Relay, stalled: StalledServer) -> None:
    stalled.hold_handshake = True
    websocket = WebSocketConfig(connect_timeout=0.05, reconnect_attempts=1)
    relay.worker.configure(Config(websocket=websocket))
    fork_id = relay.begin(stalled.url)
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.detail) == (EndReason.SINK_GONE, "no answer in time")


async def test_configured_so_a_name_that_points_to_this_machine_is_refused(
    relay: Relay, recorder: Recorder
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
    relay: Relay, recorder: Recorder, direction: Direction, messages: list[bytes]
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


async def test_wide_frames_arrive_in_messages_as_wide(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.STEREO, **WIDE)
    legs = [await relay.attach(fork_id, part) for part in (LegPart.IN, LegPart.OUT)]
    for count in range(1, 4):
        for leg in legs:
            leg.send(b"\x12\x02\x80" + INS[count] * 2)
        recording = await recorder.wait_messages("/", count)
    assert recording.messages == [pairs(INS[n] * 2, INS[n] * 2) for n in (1, 2, 3)]


async def test_one_leg_of_two_may_come_again_and_only_when_it_is_let(
    relay: Relay, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **SIDES)
    leg_in = await relay.attach(fork_id, LegPart.IN)
    leg_out = await relay.attach(fork_id, LegPart.OUT)
    await leg_out.close()
    assert await relay.reported(LegLost, fork_id) == LegLost(fork_id, LegPart.OUT, 0)
    early = await relay.connect(leg_uuid(fork_id, LegPart.OUT))
    assert await early.read_to_end() == HANGUP
    relay.worker.handle(ReopenLeg(fork_id, LegPart.OUT))
    of_in = await relay.connect(leg_uuid(fork_id, LegPart.IN))
    assert await of_in.read_to_end() == HANGUP
    leg_out = await relay.attach(fork_id, LegPart.OUT)
    leg_in.send_audio(INS[0])
    leg_out.send_audio(OUTS[0])
    assert (await recorder.wait_messages("/", 1)).messages == SUMS[:1]


async def test_uuids_of_both_legs_are_worth_nothing_after_the_end(
    relay: Relay, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **SIDES)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    await relay.reported(ForkEnded, fork_id)
    assert relay.worker._listener._issued == {}
    for part in SIDES["legs"]:
        leg = await relay.connect(leg_uuid(fork_id, part))
        assert await leg.read_to_end() == HANGUP
    relay.worker.handle(ReopenLeg(fork_id, LegPart.IN))
    assert relay.worker._listener._issued == {}


async def test_leg_that_was_reopened_and_has_not_come_is_withdrawn_with_the_fork(
    relay: Relay, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url(), Direction.OUT, legs=(LegPart.OUT,))
    leg = await relay.attach(fork_id, LegPart.OUT)
    await leg.close()
    assert await relay.reported(LegLost, fork_id) == LegLost(fork_id, LegPart.OUT, 0)
    relay.worker.handle(ReopenLeg(fork_id, LegPart.OUT))
    assert len(relay.worker._listener._issued) == 1
    relay.worker.handle(EndFork(fork_id, EndReason.HANGUP))
    await relay.reported(ForkEnded, fork_id)
    assert relay.worker._listener._issued == {}


async def test_leg_of_another_rate_fails_the_fork(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.BOTH, **WIDE)
    legs = [await relay.attach(fork_id, part) for part in (LegPart.IN, LegPart.OUT)]
    legs[1].send_audio(OUTS[0])
    for leg in legs:
        assert await leg.read_to_end() == HANGUP
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == "the leg sends frames of 320 bytes, not 640 (16000 Hz)"


async def test_beep_of_a_wide_fork_is_heard_over_the_leg_of_in_in_its_kind(
    relay: Relay, recorder: Recorder
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
    relay: Relay, recorder: Recorder
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
    relay: Relay, recorder: Recorder
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


async def test_gate_opens_a_fork_that_began_shut(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url(), Direction.IN, gate_open=False)
    leg = await relay.attach(fork_id)
    await relay.reported(SinkOpened, fork_id)
    relay.worker.handle(SetGate(fork_id, True))
    leg.send_audio(INS[0])
    assert (await recorder.wait_messages("/", 1)).messages == INS[:1]


@pytest.mark.parametrize("kind", [SetMute, functools.partial(SetGate, is_open=True)])
async def test_command_to_an_unknown_fork_is_ignored(relay: Relay, kind: Any) -> None:
    relay.worker.handle(kind(str(uuid.uuid4())))
    assert relay.reports == []


async def test_statistics_are_taken_of_all_forks(relay: Relay, recorder: Recorder) -> None:
    relay.worker.handle(TakeStats(1))
    busy, idle = relay.begin(recorder.url("/busy")), relay.begin(recorder.url("/idle"))
    leg = await relay.attach(busy)
    leg.send_audio(*INS)
    await recorder.wait_messages("/busy", 10)
    relay.worker.handle(TakeStats(2))
    taken = [report for report in relay.reports if isinstance(report, StatsTaken)]
    stats = {busy: ForkStats(10, 10, 0), idle: ForkStats()}
    assert taken == [StatsTaken(1, {}), StatsTaken(2, stats)]


async def test_text_of_the_server_is_reported(relay: Relay, recorder: Recorder) -> None:
    fork_id = relay.begin(recorder.url())
    await relay.reported(SinkOpened, fork_id)
    connection = recorder.at("/")[0].connection
    assert connection is not None
    await connection.send("hello")
    assert await relay.reported(SinkMessage, fork_id) == SinkMessage(fork_id, "hello")


# --- A fork's own wishes for its sink ------------------------------------------------------------


async def test_attempts_of_a_fork_go_before_the_configured_ones(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 0.01)
    url = f"ws://127.0.0.1:{unused_port()}/"
    more = relay.begin(url, reconnect_attempts=3, reconnect_interval_s=0.01)
    alike = relay.begin(url)
    for fork_id, attempts in (more, [2, 3]), (alike, []):
        await relay.reported(ForkEnded, fork_id)
        assert [report.attempt for report in relay.of(fork_id, SinkRetrying)][:2] == attempts


async def test_no_limit_of_attempts_is_a_wish_too(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 0.001)
    url = f"ws://127.0.0.1:{unused_port()}/"
    fork_id = relay.begin(url, reconnect_attempts=0, reconnect_interval_s=0.001)
    await until(lambda: len(relay.of(fork_id, SinkRetrying)) >= 10)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.STOPPED


async def test_interval_of_a_fork_limits_each_of_its_attempts(
    relay: Relay, stalled: StalledServer
) -> None:
    stalled.hold_handshake = True
    fork_id = relay.begin(stalled.url, reconnect_interval_s=0.05)
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.detail) == (EndReason.SINK_GONE, "no answer in time")


async def test_interval_of_a_fork_limits_its_waits(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 3600)
    url = f"ws://127.0.0.1:{unused_port()}/"
    fork_id = relay.begin(url, reconnect_attempts=3, reconnect_interval_s=0.01)
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.SINK_GONE


@pytest.fixture(scope="session")
def our_cert(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return files with a client's certificate: `cert` and `key` apart, and `both` in one."""
    folder = tmp_path_factory.mktemp("client")
    issued = ca.issue_cert("client.example")
    issued.cert_chain_pems[0].write_to_path(folder / "cert")
    issued.private_key_pem.write_to_path(folder / "key")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both")
    return {name: str(folder / name) for name in ("cert", "key", "both")}


@pytest.fixture
async def strict(ca: trustme.CA) -> AsyncIterator[Recorder]:
    """Run a server that asks for a certificate."""
    context = server_tls(ca.issue_cert("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    async with Recorder(context) as server:
        yield server


async def test_authorities_of_a_fork_go_before_the_configured_ones(
    relay: Relay, tls: ssl.SSLContext, ca_file: Path
) -> None:
    async with Recorder(tls) as recorder:
        trusting = relay.begin(recorder.url("/a"), Direction.IN, tls=Tls(ca_file=str(ca_file)))
        doubting = relay.begin(recorder.url("/b"))
        leg = await relay.attach(trusting)
        leg.send_audio(*INS)
        assert (await recorder.wait_messages("/a", 10)).messages == INS
        ended = await relay.reported(ForkEnded, doubting)
        await relay.worker.close()
    assert ended.reason is EndReason.SINK_REFUSED
    assert ended.detail.startswith("certificate not accepted: ")


@pytest.mark.parametrize("own", [True, False], ids=["fork's own", "configured"])
@pytest.mark.parametrize("files", [("cert", "key"), ("both", "")], ids=["apart", "in one"])
async def test_certificate_is_shown_to_a_server_that_asks(
    relay: Relay,
    strict: Recorder,
    ca_file: Path,
    our_cert: dict[str, str],
    files: tuple[str, str],
    own: bool,
) -> None:
    cert, key = (our_cert.get(name, "") for name in files)
    if own:
        wishes = Tls(ca_file=str(ca_file), cert_file=cert, key_file=key)
    else:
        websocket = WebSocketConfig(cert_file=cert, priv_key_file=key)
        relay.worker.configure(Config(websocket=websocket))
        wishes = Tls(ca_file=str(ca_file))
    fork_id = relay.begin(strict.url(), tls=wishes)
    await relay.reported(SinkOpened, fork_id)
    await relay.worker.close()


async def test_key_in_one_file_with_a_certificate_is_not_mixed_with_the_configured(
    relay: Relay,
    strict: Recorder,
    ca: trustme.CA,
    ca_file: Path,
    our_cert: dict[str, str],
    tmp_path,
) -> None:
    other = tmp_path / "other.pem"
    ca.issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(other)
    websocket = WebSocketConfig(cert_file=our_cert["cert"], priv_key_file=our_cert["key"])
    relay.worker.configure(Config(websocket=websocket))
    fork_id = relay.begin(strict.url(), tls=Tls(ca_file=str(ca_file), cert_file=str(other)))
    await relay.reported(SinkOpened, fork_id)
    await relay.worker.close()


async def test_server_that_asks_for_a_certificate_refuses_a_fork_without(
    relay: Relay, strict: Recorder, ca_file: Path
) -> None:
    fork_id = relay.begin(strict.url(), tls=Tls(ca_file=str(ca_file)))
    await relay.reported(ForkEnded, fork_id)
    assert not relay.of(fork_id, SinkOpened)


@pytest.mark.parametrize("host", ["localhost", "elsewhere.example"])
async def test_insecure_fork_takes_any_certificate_and_no_other_fork_does(
    relay: Relay, host: str
) -> None:
    async with Recorder(server_tls(trustme.CA().issue_cert(host))) as recorder:
        careless = relay.begin(recorder.url(), tls=Tls(insecure=True))
        careful = relay.begin(recorder.url())
        await relay.reported(SinkOpened, careless)
        assert (await relay.reported(ForkEnded, careful)).reason is EndReason.SINK_REFUSED
        await relay.worker.close()


@pytest.mark.parametrize("wish", ["ca_file", "cert_file"])
async def test_file_of_a_fork_that_cannot_be_used_refuses_it_naming_the_file(
    relay: Relay, recorder: Recorder, tmp_path: Path, wish: str
) -> None:
    path = str(tmp_path / "missing.pem")
    fork_id = relay.begin(recorder.url(), tls=Tls(**{wish: path}))  # type: ignore[arg-type]
    (ended,) = relay.of(fork_id)
    assert (ended.reason, ended.stats) == (EndReason.SINK_REFUSED, ForkStats())
    assert path in ended.detail and "cannot be used" in ended.detail
    assert relay.worker.sessions == {}


def test_equal_wishes_share_a_context(ca_file: Path) -> None:
    assert client_tls(str(ca_file)) is client_tls(str(ca_file))
    assert client_tls(str(ca_file), insecure=True).verify_mode is ssl.CERT_NONE
    assert client_tls(str(ca_file)).verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "garbage"])
def test_certificate_that_cannot_be_used_is_a_config_error(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"certificate .*own\.pem cannot be used"):
        client_tls("", str(path))
