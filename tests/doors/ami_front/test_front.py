from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from audiofork.config import Address, AsteriskConfig, FrontConfig
from audiofork.doors import ami_front as front_module
from audiofork.doors.ami_front import Front
from audiofork.doors.ami_front_protocol import HELD_BYTES, TOO_MANY_LINES
from audiofork.errors import AmiUnavailable, ConfigError, NoSuchChannel, RequestRefused
from audiofork.forks.requests import MuteFork, Request, StartFork, StopFork
from audiofork.text import A_BUG
from tests.relay.peers import until

GREETING = b"Asterisk Call Manager/11.0.0\r\n"
PING = b"Action: Ping\r\nActionID: 1\r\n\r\n"
START = b"Action: AudioFork\r\nActionID: 7\r\nChannel: SIP/1\r\nWsServer: ws://h/\r\n\r\n"
STARTED = b"Response: Success\r\nActionID: 7\r\nAudioForkID: fork-1\r\n\r\n"
STOP = b"Action: StopAudioFork\r\nActionID: 8\r\nChannel: SIP/1\r\n\r\n"
MUTE = b"Action: AudioForkMute\r\nChannel: SIP/1\r\nDirection: both\r\nState: 1\r\n\r\n"
EVENT = b"Event: Hangup\r\nChannel: SIP/1\r\n\r\n"
DENIED = b"Response: Error\r\nActionID: 7\r\nMessage: Permission denied\r\n\r\n"
HOST = "127.0.0.1"
MEMORY_LIMIT_BYTES = 64 * 1024

_PROBE = re.compile(rb"Action: (\w+)\r\nActionID: (audiofork-[0-9a-f]+-\d+)\r\n[^\r]+\r\n\r\n")


class Asterisk:
    """Takes connections, keeps what comes but for probes, and answers those.

    Attributes:
        links: Each connection, the oldest first.
        verdict: The Message of the answers to probes; None for no answer.
    """

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.verdict: str | None = "Module not loaded"
        self.port = 0
        self.greeting = GREETING
        self._server: asyncio.Server | None = None
        self._came = asyncio.Condition()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for link in self.links:
                link.writer.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, reader, writer)
        self.links.append(link)
        writer.write(self.greeting)
        async with self._came:
            self._came.notify_all()
        await link.run()

    async def link(self, number: int = 0) -> Link:
        """Return one connection when it is there."""
        async with asyncio.timeout(5), self._came:
            await self._came.wait_for(lambda: len(self.links) > number)
        return self.links[number]


class Link:
    """One connection to the fake Asterisk.

    Attributes:
        received: What came, without probes.
        probes: The actions that probes asked for.
        reading: Cleared, nothing is read.
        ended: The client's side has said its last byte.
        last_words: What is sent then.
    """

    def __init__(
        self, asterisk: Asterisk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._asterisk = asterisk
        self._reader = reader
        self.writer = writer
        self.received = bytearray()
        self.probes: list[bytes] = []
        self.probe_ids: list[bytes] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.ended = asyncio.Event()
        self.last_words = b""
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := await self._reader.read(65536):
                await self.reading.wait()
                # A probe may be split over two reads; it is no longer than 200 bytes.
                last = bytes(self.received[-200:]) + chunk
                self.received[-200:] = _PROBE.sub(self._answer, last)
                async with self._changed:
                    self._changed.notify_all()
        self.ended.set()
        if self.last_words:
            self.writer.write(self.last_words)
        self.writer.close()
        async with self._changed:
            self._changed.notify_all()

    def _answer(self, found: re.Match[bytes]) -> bytes:
        self.probes.append(found[1])
        self.probe_ids.append(found[2])
        if self._asterisk.verdict is not None:
            self.writer.write(self.verdict(self._asterisk.verdict))
        return b""

    def verdict(self, text: str) -> bytes:
        return (
            b"Response: Error\r\nActionID: "
            + self.probe_ids[-1]
            + f"\r\nMessage: {text}\r\n\r\n".encode()
        )

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(condition)

    async def wait_received(self, expected: bytes) -> None:
        """Wait for so many bytes, and compare them."""
        await self.wait_for(lambda: len(self.received) >= len(expected) or self.ended.is_set())
        assert self.received == expected


class Control:
    """Answers requests as the registry would; keeps them.

    Attributes:
        gate: Cleared, requests wait.
        fault: Raised in place of an answer.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.answered = asyncio.Event()
        self.fault: Exception | None = None

    async def ask(self, request: Request) -> list[str]:
        self.requests.append(request)
        self.asked.set()
        await self.gate.wait()
        self.answered.set()
        if self.fault is not None:
            raise self.fault
        return [f"fork-{len(self.requests)}"] if isinstance(request, StartFork) else []


class Client:
    """A client of the front, by bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def expect(self, expected: bytes) -> None:
        """Read so many bytes, and compare them."""
        async with asyncio.timeout(20):
            got = await self.reader.readexactly(len(expected))
        assert got == expected

    async def expect_end(self) -> None:
        async with asyncio.timeout(5):
            assert await self.reader.read() == b""

    def close(self) -> None:
        self.writer.close()


class Rig:
    """A front between a fake Asterisk and its clients."""

    def __init__(self) -> None:
        self.asterisk = Asterisk()
        self.control = Control()
        self.front: Front
        self.address: Address
        self._clients: list[Client] = []

    async def start(self, tls: ssl.SSLContext | None = None, **config: str) -> None:
        await self.asterisk.start(tls)
        self.front = Front(
            FrontConfig(Address(HOST, 0), **config),
            AsteriskConfig(
                host="localhost" if tls else HOST,
                port=self.asterisk.port,
                tls=tls is not None,
                ca_file=config.get("tls_cert_file", ""),
            ),
            self.control.ask,
        )
        self.address = await self.front.start()

    async def connect(self, tls: ssl.SSLContext | None = None, limit: int = 65536) -> Client:
        """Return a client that has not read its greeting."""
        streams = await asyncio.open_connection(
            HOST,
            self.address.port,
            ssl=tls,
            server_hostname="localhost" if tls else None,
            limit=limit,
        )
        self._clients.append(Client(*streams))
        return self._clients[-1]

    async def client(self) -> tuple[Client, Link]:
        """Return a client that was greeted, and its connection at Asterisk."""
        number = len(self.asterisk.links)
        client = await self.connect()
        await client.expect(GREETING)
        return client, await self.asterisk.link(number)

    def held_bytes(self) -> int:
        """Return how much the front holds for its clients."""
        return sum(
            len(session._client_stream._held)
            + sum(len(part) for part in session._parts if isinstance(part, bytes))
            + sum(
                end._transport.get_write_buffer_size()
                for end in (session.client, session.asterisk)
                if end._transport is not None
            )
            for session in self.front._sessions
        )

    async def sessions(self, count: int) -> None:
        """Wait until the front has so many clients."""
        async with asyncio.timeout(5):
            while len(self.front._sessions) != count:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for client in self._clients:
            client.close()
        await self.front.close()
        await self.asterisk.stop()
        for client in self._clients:
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()


@pytest.fixture
async def bare_rig() -> AsyncIterator[Rig]:
    """A rig that is not started; after the test nothing may be left of it."""
    loop, faults = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: faults.append(repr(context)))
    rig = Rig()
    yield rig
    await rig.stop()
    assert not rig.front._sessions
    assert not rig.front._tasks
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 (the fakes' own end by themselves)
            await asyncio.sleep(0.005)
    assert not faults


@pytest.fixture
async def rig(bare_rig: Rig) -> Rig:
    await bare_rig.start()
    return bare_rig


# --- What passes ---------------------------------------------------------------------------------


async def test_all_but_our_actions_passes_both_ways(rig: Rig) -> None:
    client, link = await rig.client()
    client.send(b"\xff\0garbage\r\n\r\n" + PING)
    await link.wait_received(b"\xff\0garbage\r\n\r\n" + PING)
    link.writer.write(EVENT + b"\xff\0")
    await client.expect(EVENT + b"\xff\0")


def messages(source: random.Random, count: int) -> list[bytes]:
    """Return messages of all sizes, some with bytes that belong in none."""
    return [
        b"Action: Setvar\r\nActionID: %d\r\nValue: %s\r\n\r\n"
        % (number, source.randbytes(source.choice([0, 3, 40, 900])).replace(b"\n", b"\0\r"))
        for number in range(count)
    ]


async def send_in_pieces(writer: asyncio.StreamWriter, data: bytes, source: random.Random) -> None:
    position = 0
    while position < len(data):
        size = source.choice([1, 7, 100, 1460, 20_000])
        writer.write(data[position : position + size])
        position += size
        await (asyncio.sleep(0) if size < 100 else writer.drain())


@pytest.mark.slow
async def test_20000_messages_pass_both_ways_at_once_byte_for_byte(rig: Rig) -> None:
    source = random.Random(3)
    up, down = (b"".join(messages(source, 20_000)) for _ in range(2))
    client, link = await rig.client()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_in_pieces(client.writer, up, source))
        tasks.create_task(send_in_pieces(link.writer, down, source))
        tasks.create_task(client.expect(down))
        tasks.create_task(link.wait_received(up))


async def test_own_actions_among_others_under_load_leave_both_streams_whole(rig: Rig) -> None:
    """Events flow all the while; each answer of ours stands between two of them."""
    source = random.Random(4)
    others = messages(source, 2000)
    events = [b"Event: E%d\r\nX: %s\r\n\r\n" % (n, b"y" * (n % 500)) for n in range(5000)]
    client, link = await rig.client()
    stream = b"".join(other + (START if n % 20 == 0 else b"") for n, other in enumerate(others))
    came: list[bytes] = []

    async def read() -> None:
        while len(came) < len(events) + 100:
            came.append(await client.reader.readuntil(b"\r\n\r\n"))

    async def send_events() -> None:
        for event in events:  # whole, since the fake's answers come in between
            link.writer.write(event)
            await link.writer.drain()
            await asyncio.sleep(0)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(send_in_pieces(client.writer, stream, source))
        tasks.create_task(send_events())
        tasks.create_task(read())
        tasks.create_task(link.wait_received(b"".join(others)))
    ours = [message for message in came if message.startswith(b"Response")]
    assert [message for message in came if message.startswith(b"Event")] == events
    assert ours == [STARTED.replace(b"fork-1", b"fork-%d" % (n + 1)) for n in range(100)]


async def test_100_clients_each_get_their_own(rig: Rig) -> None:
    pairs = [await rig.client() for _ in range(100)]
    for number, (client, link) in enumerate(pairs):
        client.send(b"Action: %d\r\n\r\n" % number + START.replace(b"7", b"%d" % number))
        link.writer.write(b"Event: %d\r\n\r\n" % number)
    for number, (client, link) in enumerate(pairs):
        await link.wait_received(b"Action: %d\r\n\r\n" % number)
        answers = {await client.reader.readuntil(b"\r\n\r\n") for _ in range(2)}
        assert b"Event: %d\r\n\r\n" % number in answers
        assert any(b"ActionID: %d\r\nAudioForkID" % number in answer for answer in answers)


# --- Our actions ---------------------------------------------------------------------------------


async def test_start_is_answered_with_the_id_and_never_reaches_asterisk(rig: Rig) -> None:
    client, link = await rig.client()
    client.send(PING + START + PING)
    await client.expect(STARTED)
    await link.wait_received(PING + PING)
    (request,) = rig.control.requests
    assert isinstance(request, StartFork)
    assert (request.target.channel, request.url, request.action_id) == ("SIP/1", "ws://h/", "7")
    assert link.probes == [b"ModuleCheck"]


async def test_start_brings_parameters_for_the_server(rig: Rig) -> None:
    client, _ = await rig.client()
    client.send(START.replace(b"\r\n\r\n", b"\r\nOptions: x(json)\r\nParams: a=1&b=%26\r\n\r\n"))
    await client.expect(STARTED)
    (request,) = rig.control.requests
    assert isinstance(request, StartFork)
    assert request.params == {"a": "1", "b": "&"}


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ("", ("echo",)),
        ("D(in)s(bot)", ("bot",)),
        ("x(json)", ("echo",)),
        ("x(jambonz)", ("audio.jambonz.org",)),
        ("x( Chan_WebSocket )", ("media",)),
    ],
)
async def test_start_offers_the_subprotocol_of_the_module_where_no_other_is_wanted(
    rig: Rig, options: str, offered: tuple[str, ...]
) -> None:
    client, _ = await rig.client()
    client.send(START.replace(b"\r\n\r\n", f"\r\nOptions: {options}\r\n\r\n".encode()))
    await client.expect(STARTED)
    (request,) = rig.control.requests
    assert isinstance(request, StartFork)
    assert request.options.handshake.subprotocols == offered


async def test_stop_and_mute_are_answered(rig: Rig) -> None:
    client, link = await rig.client()
    rig.asterisk.verdict = "No such channel"
    client.send(STOP + MUTE)
    await client.expect(b"Response: Success\r\nActionID: 8\r\n\r\nResponse: Success\r\n\r\n")
    stop, mute = rig.control.requests
    assert isinstance(stop, StopFork)
    assert isinstance(mute, MuteFork)
    assert (mute.mute_in, mute.mute_out) == (True, True)
    assert link.probes == [b"Hangup", b"Hangup"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"Action: AudioFork\r\nWsServer: ws://h/", "No channel specified"),
        (
            b"Action: AudioFork\r\nChannel: SIP/1",
            "Could not start monitoring channel: WsServer: missing",
        ),
        (
            b"Action: AudioFork\r\nChannel: SIP/\x011\r\nWsServer: ws://h/",
            "Could not start monitoring channel: Channel: control characters are not allowed",
        ),
        (
            b"Action: AudioFork\r\nChannel: SIP/\xff\r\nWsServer: ws://h/",
            "Could not start monitoring channel: Channel: control characters are not allowed",
        ),
        (b"Action: StopAudioFork", "No channel specified"),
        (
            b"Action: StopAudioFork\r\nAudioForkID: 7",
            "Could not stop monitoring channel: AudioForkID: not a UUID",
        ),
        (b"Action: AudioForkMute\r\nDirection: both\r\nState: 1", "No channel specified"),
        (
            b"Action: AudioForkMute\r\nChannel: SIP/1\r\nState: 1",
            "No direction specified. Must be read, write or both",
        ),
        (b"Action: AudioForkMute\r\nChannel: SIP/1\r\nDirection: both", "No state specified"),
    ],
)
async def test_bad_request_is_refused_in_the_words_of_the_module(
    rig: Rig, message: bytes, text: str
) -> None:
    client, _ = await rig.client()
    client.send(message + b"\r\n\r\n")
    await client.expect(f"Response: Error\r\nMessage: {text}\r\n\r\n".encode())
    assert not rig.control.requests


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (NoSuchChannel(), b"No such channel"),
        (RequestRefused("No such fork"), b"Could not start monitoring channel: No such fork"),
        (AmiUnavailable("no link"), b"Could not start monitoring channel: no link"),
        (
            ZeroDivisionError("boom"),
            b"Could not start monitoring channel: " + A_BUG.encode(),
        ),
    ],
)
async def test_request_that_fails_is_answered_and_the_client_goes_on(
    rig: Rig, fault: Exception, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client, link = await rig.client()
    rig.control.fault = fault
    client.send(START + PING)
    await client.expect(b"Response: Error\r\nActionID: 7\r\nMessage: " + text + b"\r\n\r\n")
    await link.wait_received(PING)
    assert ("Traceback" in caplog.text) == isinstance(fault, ZeroDivisionError)


async def test_each_client_asks_as_an_origin_of_its_own(rig: Rig) -> None:
    for client in ((await rig.client())[0], (await rig.client())[0]):
        client.send(START + START)
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
    first, again, second, _ = (request.origin for request in rig.control.requests)
    assert first == again != second
    assert {first.door, second.door} == {"front"}


async def test_refusals_of_all_clients_are_one_line_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.control.fault = NoSuchChannel()
    for client in ((await rig.client())[0], (await rig.client())[0]):
        client.send(START * 5)
        for _ in range(5):
            assert b"No such channel" in await client.reader.readuntil(b"\r\n\r\n")
    assert caplog.text.count("No such channel") == 1


async def test_session_without_the_class_is_refused_as_asterisk_refuses(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    client, link = await rig.client()
    rig.asterisk.verdict = "Permission denied"
    client.send(START)
    await client.expect(DENIED)
    assert not rig.control.requests
    assert "audiofork of AMI client 127.0.0.1:" in caplog.text
    assert ": Permission denied" in caplog.text
    rig.asterisk.verdict = "Module not loaded"  # as after a login
    client.send(START)
    await client.expect(STARTED)


async def test_answer_comes_after_those_to_earlier_actions(rig: Rig) -> None:
    client, link = await rig.client()
    rig.asterisk.verdict = None
    client.send(PING + START)
    await link.wait_for(lambda: bool(link.probes))
    pong = b"Response: Success\r\nActionID: 1\r\n\r\n"
    link.writer.write(pong + link.verdict("Module not loaded"))
    await client.expect(pong + STARTED)


async def test_later_actions_wait_for_the_answer_and_events_do_not(rig: Rig) -> None:
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(PING + START + PING)
    client.send(STOP + PING)
    await rig.control.asked.wait()
    link.writer.write(EVENT)
    await client.expect(EVENT)
    assert link.received == PING
    assert len(rig.control.requests) == 1
    rig.control.gate.set()
    await client.expect(STARTED + b"Response: Success\r\nActionID: 8\r\n\r\n")
    await link.wait_received(PING * 3)


async def test_answer_is_not_put_into_a_message_under_way(rig: Rig) -> None:
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(START)
    await rig.control.asked.wait()
    link.writer.write(EVENT[:9])
    await client.expect(EVENT[:9])
    rig.control.gate.set()
    await rig.control.answered.wait()
    await asyncio.sleep(0.01)
    link.writer.write(EVENT[9:] + EVENT)
    await client.expect(EVENT[9:] + STARTED + EVENT)


async def test_own_action_with_10000_headers_is_refused_and_asterisk_sees_nothing(
    rig: Rig,
) -> None:
    client, link = await rig.client()
    client.send(START[:-2] + b"X: y\r\n" * 10_000 + b"\r\n" + PING)
    await client.expect(f"Response: Error\r\nActionID: 7\r\nMessage: {TOO_MANY_LINES}".encode())
    await link.wait_received(PING)
    assert not rig.control.requests


# --- Ends ----------------------------------------------------------------------------------------


async def test_client_that_says_its_last_byte_gets_all_answers(rig: Rig) -> None:
    """As with `nc`: all is sent at once, then only read."""
    client, link = await rig.client()
    link.last_words = EVENT
    rig.control.gate.clear()
    client.send(START + PING + b"Act")
    client.writer.write_eof()
    await rig.control.asked.wait()
    await asyncio.sleep(0.01)
    assert not link.ended.is_set()
    rig.control.gate.set()
    await client.expect(STARTED + EVENT)
    await link.wait_received(PING + b"Act")
    await client.expect_end()


async def test_client_that_goes_leaves_what_it_asked_for_to_be_done(rig: Rig) -> None:
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(START + PING)
    await rig.control.asked.wait()
    client.writer.transport.abort()
    await asyncio.sleep(0.02)
    rig.control.gate.set()
    await rig.control.answered.wait()
    await link.wait_for(link.ended.is_set)
    await rig.sessions(0)


async def test_client_that_goes_while_asterisk_hangs_is_forgotten_in_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "LINGER_S", 0.1)
    client, link = await rig.client()
    link.reading.clear()
    client.send(PING)
    client.writer.transport.abort()
    await rig.sessions(0)
    link.reading.set()


async def test_asterisk_that_goes_takes_the_client_along_when_all_is_sent(rig: Rig) -> None:
    client, link = await rig.client()
    link.writer.write(EVENT * 1000)
    link.writer.close()
    await client.expect(EVENT * 1000)
    await client.expect_end()
    await rig.sessions(0)


async def test_asterisk_that_goes_does_not_wait_long_for_a_client_that_reads_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So little is on its way to it that it would not be cut for that."""
    monkeypatch.setattr(front_module, "STALL_S", 0.2)
    await rig.connect(limit=1)
    link = await rig.asterisk.link()
    (session,) = rig.front._sessions
    transport = session.client._transport
    assert transport is not None
    while not transport.get_write_buffer_size():
        link.writer.write(b"x" * 1000)
        await asyncio.sleep(0)
    assert transport.get_write_buffer_size() < front_module.FULL_BYTES
    link.writer.close()
    await rig.sessions(0)


async def test_asterisk_that_goes_during_an_own_action_takes_the_client_along(rig: Rig) -> None:
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(START + START)
    await rig.control.asked.wait()
    link.writer.close()
    await client.expect_end()
    rig.control.gate.set()
    await rig.sessions(0)
    assert len(rig.control.requests) == 1


async def test_asterisk_that_is_away_closes_clients_and_is_logged_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.asterisk.stop()
    for _ in range(3):
        client = await rig.connect()
        client.send(START)
        with contextlib.suppress(ConnectionResetError):
            await client.expect_end()
    await rig.sessions(0)
    assert caplog.text.count("no connection to Asterisk at 127.0.0.1") == 1
    await rig.asterisk.start()
    rig.asterisk.links.clear()
    await rig.client()
    await rig.asterisk.stop()
    client = await rig.connect()
    await rig.sessions(0)
    assert caplog.text.count("no connection to Asterisk at 127.0.0.1") == 2


async def test_client_that_goes_while_asterisk_is_slow_to_connect_is_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def connect(*_: object, **__: object) -> None:
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    sock = socket.create_connection((HOST, rig.address.port))
    await rig.sessions(1)
    next(iter(rig.front._sessions)).client.abort()
    await rig.sessions(0)
    sock.close()
    await until(lambda: not rig.front._tasks)


async def test_connect_that_takes_too_long_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def connect(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(front_module, "CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    sock = socket.create_connection((HOST, rig.address.port))
    await rig.sessions(1)
    await rig.sessions(0)
    sock.close()
    assert "no answer in time" in caplog.text


async def test_close_parts_with_all_and_may_come_twice(rig: Rig) -> None:
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(START)
    await rig.control.asked.wait()
    await rig.front.close()
    await client.expect_end()
    await link.wait_for(link.ended.is_set)
    assert not rig.control.answered.is_set()
    await rig.front.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, rig.address.port)


async def test_close_before_start_does_nothing(rig: Rig) -> None:
    await Front(FrontConfig(), AsteriskConfig(), rig.control.ask).close()


async def test_start_without_an_address_or_on_a_taken_one_raises(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"\[front\] listen"):
        await Front(FrontConfig(), AsteriskConfig(), rig.control.ask).start()
    with pytest.raises(OSError, match="in use"):
        await Front(FrontConfig(rig.address), AsteriskConfig(), rig.control.ask).start()


# --- Bad clients ---------------------------------------------------------------------------------


async def undisturbed(client: Client, link: Link) -> None:
    """Check that another client gets through at once, both ways."""
    before = bytes(link.received)
    async with asyncio.timeout(1):
        client.send(PING)
        await link.wait_received(before + PING)
        link.writer.write(EVENT)
        await client.expect(EVENT)


async def flood(rig: Rig, writer: asyncio.StreamWriter) -> int:
    """Send without end until nothing is taken for 2000 turns; return the most that was held.

    All of it goes on in this loop: turns count, and not the time that a busy machine makes of them.
    """
    most = turns = 0
    while most < 4 * MEMORY_LIMIT_BYTES and turns < 2000:
        turns = 0
        writer.write(b"x" * 50_000)
        while writer.transport.get_write_buffer_size() and turns < 2000:
            await asyncio.sleep(0)
            most = max(most, rig.held_bytes())
            turns += 1
    return most


async def test_10_mb_without_a_line_end_pass_and_hold_nothing_up(rig: Rig) -> None:
    other = await rig.client()
    client, link = await rig.client()
    for _ in range(1000):
        client.send(b"x" * 10_000)
        await client.writer.drain()
        assert rig.held_bytes() <= MEMORY_LIMIT_BYTES
    await undisturbed(*other)
    await link.wait_for(lambda: len(link.received) == 10_000_000)
    client.send(b"\r\n\r\n" + START)
    await client.expect(STARTED)


async def test_endless_line_that_asterisk_does_not_read_is_held_to_64_kib(rig: Rig) -> None:
    other = await rig.client()
    client, link = await rig.client()
    link.reading.clear()
    most = await flood(rig, client.writer)
    assert HELD_BYTES < most <= MEMORY_LIMIT_BYTES
    await undisturbed(*other)
    client.writer.transport.abort()
    link.reading.set()


async def test_client_that_sends_before_asterisk_is_there_loses_nothing_and_is_held_to_64_kib(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, connect = asyncio.Event(), rig.front.connect

    async def late(end: Any) -> bool:
        await gate.wait()
        return await connect(end)

    monkeypatch.setattr(rig.front, "connect", late)
    client = await rig.connect()
    client.send(PING + START + PING)
    assert await flood(rig, client.writer) <= MEMORY_LIMIT_BYTES
    gate.set()
    link = await rig.asterisk.link()
    await client.expect(GREETING + STARTED)
    await link.wait_for(lambda: len(link.received) > MEMORY_LIMIT_BYTES)
    assert link.received.startswith(PING + PING + b"xxx")


async def test_client_that_sends_on_during_an_own_action_is_held_to_64_kib(rig: Rig) -> None:
    other = await rig.client()
    client, link = await rig.client()
    rig.control.gate.clear()
    client.send(START)
    await rig.control.asked.wait()
    assert await flood(rig, client.writer) <= MEMORY_LIMIT_BYTES
    await undisturbed(*other)
    rig.control.gate.set()
    await client.expect(STARTED)
    await link.wait_for(lambda: len(link.received) > MEMORY_LIMIT_BYTES)


async def test_client_that_reads_nothing_is_held_to_64_kib_and_cut(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(front_module, "STALL_S", 0.3)
    other = await rig.client()
    number = len(rig.asterisk.links)
    client = await rig.connect(limit=1)  # the stream stops reading at twice its limit
    link = await rig.asterisk.link(number)
    most = await flood(rig, link.writer)
    assert HELD_BYTES < most <= MEMORY_LIMIT_BYTES
    await undisturbed(*other)
    await link.wait_for(link.ended.is_set)
    assert "disconnected: it reads nothing" in caplog.text
    await rig.sessions(1)
    assert client.reader.exception() is None
    await undisturbed(*other)


async def test_client_that_reads_slowly_is_not_cut(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is behind all the time, for several times STALL_S."""
    monkeypatch.setattr(front_module, "STALL_S", 0.3)
    number = len(rig.asterisk.links)
    client = await rig.connect(limit=1)
    link = await rig.asterisk.link(number)
    (session,) = rig.front._sessions
    assert session.client._transport is not None
    sock = session.client._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    stream = EVENT * 100_000
    link.writer.write(stream)
    got = client.reader
    async with asyncio.timeout(20):
        assert await got.readexactly(len(GREETING)) == GREETING
        for position in range(0, len(stream), 60_000):
            piece = stream[position : position + 60_000]
            assert await got.readexactly(len(piece)) == piece
            await asyncio.sleep(0.015)
    assert rig.front._sessions == {session}


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[trustme.CA, str, ssl.SSLContext]:
    """An authority, a file with a certificate, its key and the authority, a server's context."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    path = tmp_path / "cert.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    authority.cert_pem.write_to_path(path, append=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    return authority, str(path), context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_on_both_sides_carries_all_under_load(
    bare_rig: Rig, certificate: tuple[trustme.CA, str, ssl.SSLContext]
) -> None:
    authority, path, server_tls = certificate
    await bare_rig.start(server_tls, tls_cert_file=path)
    source = random.Random(5)
    up, down = (b"".join(messages(source, 5000)) for _ in range(2))
    client = await bare_rig.connect(client_tls(authority))
    link = await bare_rig.asterisk.link()
    await client.expect(GREETING)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_in_pieces(client.writer, up, source))
        tasks.create_task(send_in_pieces(link.writer, down, source))
        tasks.create_task(client.expect(down))
        tasks.create_task(link.wait_received(up))
    client.send(START)
    await client.expect(STARTED)
    client.close()
    await link.wait_for(link.ended.is_set)
    await bare_rig.sessions(0)


async def test_client_that_speaks_no_tls_or_nothing_disturbs_nobody(
    bare_rig: Rig,
    certificate: tuple[trustme.CA, str, ssl.SSLContext],
) -> None:
    authority, path, server_tls = certificate
    await bare_rig.start(server_tls, tls_cert_file=path)
    silent = await bare_rig.connect()
    plain = await bare_rig.connect()
    plain.send(PING)
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(5):
            await plain.reader.read()
    client = await bare_rig.connect(client_tls(authority))
    await client.expect(GREETING)
    assert len(bare_rig.asterisk.links) == 1
    silent.writer.transport.abort()


async def test_asterisk_with_a_certificate_of_somebody_else_is_not_spoken_to(
    bare_rig: Rig,
    certificate: tuple[trustme.CA, str, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority, path, _ = certificate
    stranger = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(stranger)
    await bare_rig.start(stranger, tls_cert_file=path)
    client = await bare_rig.connect(client_tls(authority))
    client.send(PING)
    with contextlib.suppress(OSError):
        assert await client.reader.read() == b""
    await bare_rig.sessions(0)
    assert "no connection to Asterisk" in caplog.text
    assert "comes from an authority that is not trusted here" in caplog.text
    assert not bare_rig.asterisk.links


@pytest.mark.parametrize(
    ("front", "asterisk", "option"),
    [
        ({"tls_cert_file": "/nowhere"}, {}, r"\[front\] tls_cert_file"),
        ({"tls_key_file": "/nowhere"}, {}, r"\[front\] tls_key_file"),
        ({}, {"tls": True, "ca_file": "/nowhere"}, r"\[asterisk\] ca_file"),
    ],
)
async def test_start_with_a_file_that_cannot_be_used_names_the_option(
    front: dict[str, str], asterisk: dict[str, object], option: str
) -> None:
    one = Front(
        FrontConfig(Address(HOST, 0), **front),
        AsteriskConfig(**asterisk),  # type: ignore[arg-type]
        Control().ask,
    )
    with pytest.raises(ConfigError, match=option):
        await one.start()
