"""A worker in a process of its own, at the end of a link."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from audiofork import log as logs
from audiofork.config import Address, AudioSocketConfig, Config, WebSocketConfig
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegPart,
    StatsTaken,
    Streaming,
    TakeStats,
)
from audiofork.link.stream import (
    Close,
    Configure,
    Down,
    Link,
    Listening,
    NotListening,
    Ping,
    Pong,
    Up,
    decode_up,
    encode,
)
from audiofork.relay import process as process_module
from audiofork.relay.process import Process
from audiofork.relay.worker import Worker
from audiofork.text import A_BUG
from testbed.recorder import Recorder
from tests.relay.peers import Leg, counted, numbered, until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "audiofork.relay.process"]
CONFIG = Config(audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)))
TIMEOUT_S = 30  # a busy machine may take long to start Python


class Control:
    """The control plane's end, and the process at the other."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self.process = process
        self.end = end
        self.heard: list[Up] = []
        self.closed = asyncio.Event()
        self.link = Link(decode_up, self.heard.append, self.closed.set)

    def send(self, message: Down) -> None:
        self.link.send(message)

    async def hears(self, kind: type[Any], count: int = 1) -> Any:
        """Return the message of that class that came last, once there are so many."""
        await until(lambda: self.closed.is_set() or len(self.of(kind)) >= count, TIMEOUT_S)
        assert len(self.of(kind)) >= count, f"it has ended: {self.heard}"
        return self.of(kind)[-1]

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    async def obeyed(self) -> None:
        """Wait until all that was sent is done: what a leg or a sink does may come before."""
        self.send(TakeStats(0))
        await self.hears(StatsTaken, len(self.of(StatsTaken)) + 1)

    async def start(self, config: Config = CONFIG) -> Address:
        self.send(Configure.of(config))
        listening: Listening = await self.hears(Listening)
        return listening.address

    async def stream(self, recorder: Recorder, path: str, count: int = 10) -> tuple[str, Leg]:
        """Relay so many frames of a new fork; return its id and its leg."""
        fork_id = str(uuid.uuid4())
        url, legs = recorder.url(path), (LegPart.IN,)
        self.send(ForkSpec(fork_id, "PJSIP/100-0000002a", url, Direction.IN, legs))
        self.send(ExpectLeg(fork_id, LegPart.IN, fork_id))
        await self.obeyed()
        leg = await Leg.connect(self.of(Listening)[-1].address)
        leg.send_uuid(fork_id)
        await until(lambda: LegAttached(fork_id, LegPart.IN) in self.heard)
        leg.send_audio(*numbered(count))
        await recorder.wait_messages(path, count)
        return fork_id, leg

    async def ends(self) -> int:
        return await asyncio.to_thread(self.process.wait, TIMEOUT_S)


def start(end: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(COMMAND, stdin=end.fileno(), stderr=subprocess.PIPE)


@pytest.fixture
async def control() -> AsyncIterator[Control]:
    ours, theirs = socket.socketpair()
    one = Control(start(theirs), ours)
    theirs.close()
    await one.link.open(ours)
    yield one
    one.link.close()
    one.process.kill()
    one.process.communicate()


async def test_fork_is_relayed_and_its_life_reported(control: Control, recorder: Recorder) -> None:
    await control.start()
    fork_id, leg = await control.stream(recorder, "/fork")
    assert await control.hears(Streaming) == Streaming(fork_id)
    control.send(TakeStats(7))
    stats = await control.hears(StatsTaken, 2)
    assert isinstance(stats, StatsTaken)
    assert (stats.ticket, counted(stats.stats)) == (7, {fork_id: ForkStats(10, 10)})
    control.send(EndFork(fork_id, EndReason.STOPPED))
    ended = await control.hears(ForkEnded)
    assert ended == ForkEnded(fork_id, EndReason.STOPPED, "", ForkStats(10, 10))
    recording = await recorder.wait_closed("/fork")
    assert recording.messages == numbered(10)
    assert recording.close_reason == "stopped"
    await leg.close()


async def test_ping_is_answered(control: Control) -> None:
    control.send(Ping())  # even before all else
    await control.hears(Pong)


async def test_close_ends_the_forks_in_order_and_reports_them(
    control: Control, recorder: Recorder
) -> None:
    await control.start()
    fork_id, leg = await control.stream(recorder, "/fork")
    control.send(Close())
    ended = await control.hears(ForkEnded)
    assert ended == ForkEnded(fork_id, EndReason.SHUTDOWN, "", ForkStats(10, 10))
    recording = await recorder.wait_closed("/fork")
    assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    assert await control.ends() == 0
    await leg.close()


async def test_end_of_the_daemon_ends_the_forks_in_order(
    control: Control, recorder: Recorder
) -> None:
    address = await control.start()
    _, leg = await control.stream(recorder, "/fork")
    control.link.close()
    recording = await recorder.wait_closed("/fork")
    assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    assert recording.messages == numbered(10)
    assert await control.ends() == 0
    await leg.close()
    with socket.create_server((address.host, address.port)):
        pass  # the port is free


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_are_left_to_the_daemon(control: Control, number: signal.Signals) -> None:
    await control.start()
    os.kill(control.process.pid, number)
    control.send(Ping())
    await control.hears(Pong)
    assert control.process.poll() is None


async def test_line_that_is_no_message_ends_the_process_in_order(
    control: Control, recorder: Recorder
) -> None:
    await control.start()
    _, leg = await control.stream(recorder, "/fork")
    control.link._transport.write(b"nonsense\n")
    recording = await recorder.wait_closed("/fork")
    assert recording.close_code == 1001
    assert await control.ends() == 0
    await leg.close()


async def test_address_that_is_taken_is_reported(control: Control) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Address("127.0.0.1", other.getsockname()[1])
        control.send(Configure.of(Config(audiosocket=AudioSocketConfig(listen=listen))))
        answer = await control.hears(NotListening)
    assert answer.number == 98
    assert "in use" in answer.text


async def test_new_configuration_counts_for_new_forks(control: Control, recorder: Recorder) -> None:
    await control.start()
    _, first = await control.stream(recorder, "/before")
    control.send(Configure.of(replace(CONFIG, websocket=WebSocketConfig(frame_ms=40))))
    fork_id = str(uuid.uuid4())
    control.send(ForkSpec(fork_id, "PJSIP/1", recorder.url("/after"), Direction.IN))
    control.send(ExpectLeg(fork_id, LegPart.MIX, fork_id))
    await control.obeyed()
    second = await Leg.connect(control.of(Listening)[-1].address)
    second.send_uuid(fork_id)
    second.send_audio(*numbered(10))
    recording = await recorder.wait_messages("/after", 5)
    assert {len(message) for message in recording.messages} == {640}
    await first.close()
    await second.close()


async def test_configuration_that_cannot_be_used_leaves_the_old_one(
    control: Control, recorder: Recorder
) -> None:
    await control.start()
    websocket = WebSocketConfig(ca_list_file="/nowhere.pem", frame_ms=40)
    control.send(Configure.of(replace(CONFIG, websocket=websocket)))
    _, leg = await control.stream(recorder, "/fork")
    assert {len(message) for message in recorder.recordings[0].messages} == {320}
    await leg.close()


async def test_first_configuration_that_cannot_be_used_is_reported(control: Control) -> None:
    websocket = WebSocketConfig(ca_list_file="/nowhere.pem")
    control.send(Configure.of(replace(CONFIG, websocket=websocket)))
    answer = await control.hears(NotListening)
    assert "/nowhere.pem" in answer.text


def test_without_a_link_it_says_who_starts_it() -> None:
    done = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert "started by the daemon" in done.stderr


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the log of this process alone, which the other tests read."""
    monkeypatch.setattr(logs, "set_up", lambda config: None)


@asynccontextmanager
async def in_this_process() -> AsyncIterator[tuple[Link[Up], list[Up]]]:
    """Run what a process runs in this loop; return the daemon's end, and what it hears."""
    ours, theirs = socket.socketpair()
    heard: list[Up] = []
    closed = asyncio.Event()
    link = Link(decode_up, heard.append, closed.set)
    await link.open(ours)
    root = logging.getLogger()  # which the process sets up for itself
    handlers, level = root.handlers[:], root.level
    running = asyncio.create_task(Process().run(theirs))
    try:
        yield link, heard
    finally:
        link.send(Close())
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(running, closed.wait())
        root.handlers[:] = handlers
        root.setLevel(level)


async def test_fault_ends_the_fork_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Worker.handle

    def fail(worker: Worker, command: Any) -> None:
        if isinstance(command, ForkSpec):
            raise RuntimeError("a bug")
        handle(worker, command)

    monkeypatch.setattr(Worker, "handle", fail)
    async with in_this_process() as (link, heard):
        link.send(Configure.of(CONFIG))
        link.send(ForkSpec("a", "", "", Direction.IN))
        link.send(TakeStats(1))
        await until(lambda: StatsTaken(1, {}) in heard)
    assert ForkEnded("a", EndReason.FAULT, A_BUG, ForkStats()) in heard


async def test_address_that_is_about_to_be_free_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker of a daemon that was killed takes a moment to hear of it."""
    start = Worker.start

    async def free_after_first(worker: Worker) -> Address:
        try:
            return await start(worker)
        finally:
            other.close()

    monkeypatch.setattr(Worker, "start", free_after_first)
    monkeypatch.setattr(process_module, "LISTEN_TIMEOUT_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Address("127.0.0.1", other.getsockname()[1])
        async with in_this_process() as (link, heard):
            link.send(Configure.of(Config(audiosocket=AudioSocketConfig(listen=listen))))
            await until(lambda: heard)
    assert heard == [Listening(listen)]


def test_encoded_ping_is_what_the_tests_of_the_bytes_say() -> None:
    assert encode(Ping()) == b'["Ping",{}]\n'
