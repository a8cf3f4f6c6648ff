"""The control socket, served on a real Unix socket: requests in, answers out, and bad company."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from audiofork.doors import control_answers
from audiofork.doors import control_socket as control
from audiofork.doors.control_answers import MAX_ERROR_CHARACTERS, ControlAnswers
from audiofork.doors.control_protocol import MAX_LINE_BYTES
from audiofork.doors.control_socket import ControlSocket
from audiofork.errors import (
    AmiActionFailed,
    AmiTimeout,
    AmiUnavailable,
    ConfigError,
    DaemonBusy,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.requests import MuteFork, Origin, Request, StartFork, StopFork
from audiofork.forks.view import ForkView
from audiofork.text import A_BUG

FORK_ID = "3f2a91c0-0000-4000-8000-000000000001"
START = {"Command": "StartAudioFork", "Channel": "PJSIP/1-1", "WsServer": "ws://localhost/"}
LIST = {"Command": "ListAudioForks"}
RUN = "0d0d0d0d-0000-4000-8000-000000000001"
VIEW = ForkView(
    id=FORK_ID,
    channel="PJSIP/1-1",
    uniqueid="1.1",
    url="ws://localhost/?token=x",
    direction="both",
    state="streaming",
    age_s=1.5,
    frames_in=3,
    frames_sent=2,
    frames_dropped=1,
    muted="",
    tap="snoop",
    sample_rate=16000,
)


class Registry:
    """Stands in for the forks: keeps what it is asked, answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: Exception | None = None
        self.views = [VIEW]
        self.legs_left = 0
        self.news: list[StartNews] = []
        self.beats = False
        self.followed: list[str] = []
        self.deserted = asyncio.Event()
        self.checks: list[dict[str, str]] = []
        self.checks_ended = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def ask(self, request: Request) -> list[str]:
        self.requests.append(request)
        if isinstance(request, StartFork):
            await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return [FORK_ID]

    async def list(self) -> list[ForkView]:
        return self.views

    async def follow(self, fork_id: str) -> AsyncGenerator[StartNews, None]:
        self.followed.append(fork_id)
        try:
            for one in self.news:
                yield one
            while self.beats:
                yield StartNews(StartResult.WAITING, VIEW)
                await asyncio.sleep(0.01)
        finally:
            self.deserted.set()

    async def check(self, fields: Mapping[str, str]) -> AsyncGenerator[dict[str, Any]]:
        self.checks.append(dict(fields))
        try:
            yield {"line": "ok    one"}
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
            yield {"exit_code": 1}
        finally:
            self.checks_ended += 1


class Client:
    """A client that sends bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *lines: bytes | dict[str, Any]) -> None:
        for line in lines:
            data = json.dumps(line).encode() if isinstance(line, dict) else line
            self.writer.write(data + b"\n")

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            line = await self.reader.readline()
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    async def ask(self, line: bytes | dict[str, Any]) -> dict[str, Any]:
        self.send(line)
        return await self.answer()

    async def rest(self) -> bytes:
        """Return what comes until the daemon closes the connection."""
        async with asyncio.timeout(5):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
async def registry() -> Registry:
    return Registry()


@pytest.fixture
async def server(path: Path, registry: Registry) -> AsyncIterator[ControlSocket]:
    answers = ControlAnswers(
        *(registry.ask, registry.list, lambda: registry.legs_left),
        follow=registry.follow,
        check=registry.check,
        run_id=RUN,
    )
    one = ControlSocket(path, answers)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def clients(server: ControlSocket, path: Path) -> AsyncIterator[list[Client]]:
    """Those who connect by `connect`; closed at the end."""
    opened: list[Client] = []
    yield opened
    for client in opened:
        await client.close()


@pytest.fixture
async def client(clients: list[Client], path: Path) -> Client:
    return await connect(clients, path)


async def connect(clients: list[Client], path: Path) -> Client:
    clients.append(Client(*await asyncio.open_unix_connection(str(path), limit=10_000_000)))
    return clients[-1]


# --- Requests and answers ------------------------------------------------------------------------


async def test_start_is_granted_with_the_id(client: Client, registry: Registry) -> None:
    assert await client.ask({**START, "Options": "D(in)"}) == {"ok": True, "forks": [FORK_ID]}
    request = registry.requests[0]
    assert isinstance(request, StartFork)
    assert (request.target.channel, request.url) == ("PJSIP/1-1", "ws://localhost/")


async def test_each_connection_asks_as_an_origin_of_its_own(
    clients: list[Client], path: Path, registry: Registry
) -> None:
    for client in (await connect(clients, path), await connect(clients, path)):
        await client.ask(START)
        await client.ask({"Command": "StopAudioFork", "AudioForkID": FORK_ID})
    first, again, second, _ = (request.origin for request in registry.requests)
    assert first == again != second
    assert {first.door, second.door} == {"control socket"}


async def test_stop_and_mute_are_granted_with_the_ids(client: Client, registry: Registry) -> None:
    stop = {"Command": "StopAudioFork", "AudioForkID": FORK_ID}
    mute = {"command": "AUDIOFORKMUTE", "channel": "PJSIP/1-1", "direction": "read", "state": "on"}
    assert (await client.ask(stop))["forks"] == [FORK_ID]
    assert (await client.ask(mute))["forks"] == [FORK_ID]
    assert [type(request) for request in registry.requests] == [StopFork, MuteFork]


async def test_list_shows_each_fork_with_all_its_fields(client: Client) -> None:
    assert await client.ask(LIST) == {
        "ok": True,
        "forks": [asdict(VIEW)],
        "legs_left": 0,
        "run": RUN,
    }


async def test_list_tells_how_many_legs_of_ended_forks_are_left(
    client: Client, registry: Registry
) -> None:
    registry.views, registry.legs_left = [], 3
    assert await client.ask(LIST) == {"ok": True, "forks": [], "legs_left": 3, "run": RUN}


async def test_list_of_1000_forks_arrives_whole(client: Client, registry: Registry) -> None:
    registry.views = [VIEW] * 1000
    assert len((await client.ask(LIST))["forks"]) == 1000


async def test_requests_of_one_connection_are_answered_in_order(client: Client) -> None:
    client.send(LIST, b"garbage", START, LIST)
    answers = [await client.answer() for _ in range(4)]
    assert [answer["ok"] for answer in answers] == [True, False, True, True]


async def test_last_line_without_its_end_is_answered_and_the_connection_closed(
    client: Client,
) -> None:
    client.writer.write(json.dumps(LIST).encode())
    client.writer.write_eof()
    assert json.loads(await client.rest())["ok"] is True


# --- A start that is waited for ------------------------------------------------------------------

WAIT = {**START, "Wait": "yes"}


async def test_start_that_waits_is_granted_with_the_id_first_and_then_told_to_its_end(
    client: Client, registry: Registry
) -> None:
    registry.news = [
        StartNews(StartResult.WAITING, VIEW),
        StartNews(StartResult.STREAMING, VIEW, 312),
    ]
    client.send(WAIT, LIST)
    granted, waiting, streaming, listed = [await client.answer() for _ in range(4)]
    assert granted == {"ok": True, "forks": [FORK_ID], "waits": True}
    assert waiting == {
        **{"ok": True, "result": "waiting", "fork": asdict(VIEW)},
        **{"ms": None, "reason": "", "detail": ""},
    }
    assert streaming == {**waiting, "result": "streaming", "ms": 312}
    assert listed["forks"] == [asdict(VIEW)]
    assert registry.followed == [FORK_ID]


@pytest.mark.parametrize("fields", [{}, {"Wait": "no"}, {"wait": "0"}])
async def test_start_that_does_not_wait_has_one_answer(
    client: Client, registry: Registry, fields: dict[str, str]
) -> None:
    client.send({**START, **fields}, LIST)
    assert await client.answer() == {"ok": True, "forks": [FORK_ID]}
    assert len((await client.answer())["forks"]) == 1
    assert registry.followed == []


async def test_wait_that_is_neither_yes_nor_no_refuses_the_start(
    client: Client, registry: Registry
) -> None:
    answer = await client.ask({**START, "Wait": "30"})
    assert answer["error"].startswith("Wait: expected 1, 0, on, off, yes, no, true or false")
    assert registry.requests == []


async def test_refused_start_that_waits_has_one_answer(client: Client, registry: Registry) -> None:
    registry.error = NoSuchChannel()
    client.send(WAIT, LIST)
    assert (await client.answer())["error"] == "No such channel"
    assert (await client.answer())["ok"] is True


async def test_client_that_goes_while_it_waits_is_noticed_at_the_next_news(
    client: Client, registry: Registry
) -> None:
    registry.beats = True
    client.send(WAIT)
    await client.answer()
    await client.close()
    async with asyncio.timeout(5):
        await registry.deserted.wait()


async def test_start_is_granted_and_not_followed_where_too_many_wait_already(
    clients: list[Client], path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server is away there is room for who asks why."""
    monkeypatch.setattr(control_answers, "MAX_WAITING", 2)
    registry.beats = True
    waiting = [await connect(clients, path) for _ in range(2)]
    for client in waiting:
        assert (await client.ask(WAIT))["waits"] is True
    late = await connect(clients, path)
    assert await late.ask(WAIT) == {"ok": True, "forks": [FORK_ID]}
    assert (await late.ask(LIST))["ok"] is True
    await waiting[0].close()
    async with asyncio.timeout(5):
        await registry.deserted.wait()
    assert (await late.ask(WAIT))["waits"] is True


async def test_close_ends_a_start_that_is_waited_for_without_a_line_in_the_log(
    client: Client, registry: Registry, server: ControlSocket, caplog: pytest.LogCaptureFixture
) -> None:
    registry.beats = True
    client.send(WAIT)
    await client.answer()
    await server.close()
    await client.rest()
    assert registry.deserted.is_set()
    assert caplog.text == ""


# --- Checks --------------------------------------------------------------------------------------

CHECK = {"Command": "CheckAudioFork", "Config": "/etc/audiofork/audiofork.ini"}


async def test_check_is_answered_line_by_line_and_the_next_request_after_it(
    client: Client, registry: Registry
) -> None:
    registry.go_on.clear()
    client.send(CHECK, LIST)
    assert await client.answer() == {"ok": True, "line": "ok    one"}
    registry.go_on.set()
    assert await client.answer() == {"ok": True, "exit_code": 1}
    assert "forks" in await client.answer()
    assert registry.checks == [{"command": "CheckAudioFork", "config": CHECK["Config"]}]


async def test_check_keeps_no_other_connection_waiting(
    clients: list[Client], path: Path, registry: Registry
) -> None:
    registry.go_on.clear()
    one, other = await connect(clients, path), await connect(clients, path)
    await one.ask(CHECK)
    assert (await other.ask(LIST))["ok"]
    registry.go_on.set()
    assert "exit_code" in await one.answer()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestRefused("it runs with another configuration, /x.ini"), "refused"),
        (DaemonBusy("another check runs"), "busy"),
        (TimeoutError(), "fault"),
    ],
)
async def test_check_that_fails_says_so_after_its_lines(
    client: Client, registry: Registry, error: Exception, code: str
) -> None:
    registry.error = error
    assert (await client.ask(CHECK))["line"] == "ok    one"
    answer = await client.answer()
    assert (answer["ok"], answer["code"]) == (False, code)
    assert registry.checks_ended == 1


async def test_check_of_a_daemon_that_stops_is_ended(
    client: Client, registry: Registry, server: ControlSocket
) -> None:
    registry.go_on.clear()
    await client.ask(CHECK)
    await server.close()
    assert registry.checks_ended == 1


async def test_close_while_a_client_is_served_is_nothing_to_log(
    client: Client, registry: Registry, server: ControlSocket, caplog: pytest.LogCaptureFixture
) -> None:
    registry.go_on.clear()
    await client.ask(CHECK)
    await server.close()
    await client.rest()
    assert caplog.records == []


async def test_check_is_refused_where_there_is_none(path: Path, registry: Registry) -> None:
    server = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
    await server.start()
    clients: list[Client] = []
    answer = await (await connect(clients, path)).ask(CHECK)
    assert answer == {"ok": False, "code": "refused", "error": "this daemon runs no checks"}
    await clients[0].close()
    await server.close()


# --- Refusals ------------------------------------------------------------------------------------

NOT_JSON = "expected a JSON object in one line of UTF-8"
NO_COMMAND = (
    "Command: expected StartAudioFork, StopAudioFork, AudioForkMute, ConnectAudioFork, "
    "ListAudioForks, CheckAudioFork or one of the history"
)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", NOT_JSON),
        (b"GET / HTTP/1.1\r", NOT_JSON),
        (b"[]", NOT_JSON),
        (b"null", NOT_JSON),
        (b'"Command"', NOT_JSON),
        (b"1" * 5000, NOT_JSON),
        (b"[" * 60_000, NOT_JSON),
        (b'{"a":' * 10_000, NOT_JSON),
        (b'{"Command": "ListAudioForks"', NOT_JSON),
        (b'{"Command": "\xff"}', NOT_JSON),
        ('{"Command": "ListAudioForks"}'.encode("utf-16"), NOT_JSON),
        ('{"Command": "ListAudioForks"}'.encode("utf-8-sig"), NOT_JSON),
        (b'{"Command": 1}', "Command: expected a string"),
        (b'{"Command": "ListAudioForks", "Channel": null}', "Channel: expected a string"),
        (
            b"{}",
            NO_COMMAND,
        ),
        (
            b'{"Command": "rm -rf /", "Channel": "a", "WsServer": "ws://localhost/"}',
            NO_COMMAND,
        ),
        (b'{"Command": "StartAudioFork"}', "No channel specified"),
        (b'{"Command": "StartAudioFork", "Channel": "a"}', "WsServer: missing"),
        (
            b'{"Command": "StartAudioFork", "Channel": "a\\r\\nAction: Originate"}',
            "Channel: control characters are not allowed",
        ),
        (
            b'{"Command": "StopAudioFork", "Channel": "\\ud800"}',
            "Channel: control characters are not allowed",
        ),
        (b'{"Command": "StopAudioFork", "AudioForkID": "1"}', "AudioForkID: not a UUID"),
        (
            b'{"Command": "AudioForkMute", "Channel": "a"}',
            "No direction specified. Must be read, write or both",
        ),
        (
            b'{"Command": "AudioForkMute", "Channel": "a", "Direction": "both"}',
            "No state specified",
        ),
    ],
)
async def test_bad_line_is_refused_with_its_reason_and_the_next_is_served(
    client: Client, registry: Registry, line: bytes, error: str
) -> None:
    assert await client.ask(line) == {"ok": False, "code": "refused", "error": error}
    assert (await client.ask(LIST))["ok"] is True
    assert registry.requests == []


async def test_option_string_of_60_kib_is_refused_with_the_parsers_words(client: Client) -> None:
    answer = await client.ask({**START, "Options": "S" * 60 * 1024})
    assert answer["error"] == "Options: longer than 4096 bytes"


async def test_option_string_of_64_kib_does_not_fit_a_request(client: Client) -> None:
    client.send({**START, "Options": "S" * 65_536})
    answer = json.loads(await client.rest())
    assert answer == {
        "ok": False,
        "code": "refused",
        "error": f"the request is longer than {MAX_LINE_BYTES} bytes",
    }


async def test_error_that_repeats_a_huge_name_is_cut(client: Client) -> None:
    answer = await client.ask(json.dumps({"x" * 60_000: 1}).encode())
    assert len(answer["error"]) == MAX_ERROR_CHARACTERS


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NoSuchChannel(), "refused", "No such channel"),
        (RequestRefused("1 forks run already"), "refused", "1 forks run already"),
        (AmiUnavailable("no link"), "asterisk", "Asterisk cannot be asked: no link"),
        (
            AmiTimeout("Getvar: no answer"),
            "asterisk",
            "Asterisk cannot be asked: Getvar: no answer",
        ),
        (
            AmiActionFailed("Getvar", "Permission denied"),
            "refused",
            "Asterisk cannot be asked: Getvar: Permission denied",
        ),
    ],
)
async def test_refusal_of_the_forks_is_passed_on_with_its_code(
    client: Client, registry: Registry, error: Exception, code: str, text: str
) -> None:
    registry.error = error
    assert await client.ask(START) == {"ok": False, "code": code, "error": text}


async def test_bug_is_logged_with_its_traceback_and_ends_nothing(
    client: Client, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.error = ZeroDivisionError("a bug")
    with caplog.at_level(logging.ERROR):
        answer = await client.ask(START)
    assert answer == {
        "ok": False,
        "code": "fault",
        "error": A_BUG,
    }
    assert "ZeroDivisionError: a bug" in caplog.text
    assert (await client.ask(LIST))["ok"] is True


# --- Any bytes -----------------------------------------------------------------------------------


class Loop:
    """A server that lives through all examples, which are not coroutines."""

    def __init__(self, path: Path) -> None:
        self._runner = asyncio.Runner()
        self._path = path
        self.registry = Registry()
        self._server = ControlSocket(path, ControlAnswers(self.registry.ask, self.registry.list))
        self._runner.run(self._server.start())

    def answers(self, data: bytes) -> list[dict[str, Any]]:
        return self._runner.run(self._talk(data))

    async def _talk(self, data: bytes) -> list[dict[str, Any]]:
        client = Client(*await asyncio.open_unix_connection(str(self._path)))
        client.writer.write(data)
        client.writer.write_eof()
        answers = (await client.rest()).splitlines()
        await client.close()
        return [json.loads(answer) for answer in answers]

    def close(self) -> None:
        self._runner.run(self._server.close())
        self._runner.close()


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    one = Loop(tmp_path_factory.mktemp("fuzz") / "control.sock")
    yield one
    one.close()


names = st.sampled_from(["Command", "channel", "WsServer", "Options", "State", "x"]) | st.text()
values = st.sampled_from(["StartAudioFork", "AudioForkMute", "ws://localhost/", "on"]) | st.text()
requests = st.dictionaries(names, values | st.none() | st.integers()).map(
    lambda fields: json.dumps(fields).encode()
)


@pytest.mark.slow
@settings(deadline=None)
@given(lines=st.lists(st.binary() | requests, max_size=5))
def test_any_bytes_give_one_documented_answer_a_line_and_nothing_else(
    loop: Loop, lines: list[bytes]
) -> None:
    data = b"\n".join(lines)
    answers = loop.answers(data)
    # Only \n ends a line; what follows the last one is a line if there is anything.
    assert len(answers) == data.count(b"\n") + (data.rpartition(b"\n")[2] != b"")
    for answer in answers:
        if answer["ok"]:
            assert answer == {"ok": True, "forks": [FORK_ID]}
        else:
            assert set(answer) == {"ok", "code", "error"}
            assert answer["code"] == "refused"
            assert 0 < len(answer["error"]) <= MAX_ERROR_CHARACTERS


# --- Bad company ---------------------------------------------------------------------------------


async def test_line_that_never_ends_is_cut_and_its_connection_closed(
    client: Client, path: Path
) -> None:
    taken, answer = await asyncio.to_thread(send_without_end, path)
    assert taken < 20 * MAX_LINE_BYTES  # the rest was not even taken
    assert json.loads(answer)["error"] == f"the request is longer than {MAX_LINE_BYTES} bytes"
    assert (await client.ask(LIST))["ok"] is True


def send_without_end(path: Path) -> tuple[int, bytes]:
    """Send until nobody takes it any more; return how much was taken, and the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
        sender.settimeout(5)
        sender.connect(str(path))
        taken = 0
        try:
            while taken < 100_000_000:
                taken += sender.send(b"x" * 65_536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return taken, sender.recv(65_536)


async def test_100_connections_at_once_are_all_answered(clients: list[Client], path: Path) -> None:
    opened = await asyncio.gather(*(connect(clients, path) for _ in range(100)))
    answers = await asyncio.gather(*(one.ask(START) for one in opened))
    assert answers == [{"ok": True, "forks": [FORK_ID]}] * 100


async def test_connection_beyond_the_limit_is_told_so(
    clients: list[Client], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 3)
    for _ in range(3):
        assert (await (await connect(clients, path)).ask(LIST))["ok"] is True
    one_more = await connect(clients, path)
    assert json.loads(await one_more.rest())["error"] == "3 connections are open already"
    await clients[0].close()
    await asyncio.sleep(0.05)
    assert (await (await connect(clients, path)).ask(LIST))["ok"] is True


@pytest.mark.serial
async def test_client_that_reads_nothing_disturbs_nobody(
    clients: list[Client], path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.5)
    registry.views = [VIEW] * 5000  # 1.5 MB, more than any buffer holds
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deaf.connect(str(path))
    deaf.sendall((json.dumps(LIST).encode() + b"\n") * 50)
    await asyncio.sleep(0.05)
    client = await connect(clients, path)
    async with asyncio.timeout(control.PATIENCE_S):  # the deaf one is still there
        assert (await client.ask(START))["ok"] is True
    await asyncio.sleep(0.6)
    assert await asyncio.to_thread(read_all, deaf) < 50 * 1_000_000  # it was dropped
    deaf.close()


def read_all(sock: socket.socket) -> int:
    sock.settimeout(5)
    count = 0
    try:
        while chunk := sock.recv(1_000_000):
            count += len(chunk)
    except ConnectionResetError:
        pass
    return count


async def test_client_that_says_nothing_is_dropped_after_a_while(
    clients: list[Client], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.05)
    client = await connect(clients, path)
    client.writer.write(b'{"Comm')
    assert await client.rest() == b""


async def test_request_that_takes_its_time_holds_up_no_other_connection(
    clients: list[Client], path: Path, registry: Registry
) -> None:
    registry.go_on.clear()
    slow, quick = await connect(clients, path), await connect(clients, path)
    slow.send(START)
    assert (await quick.ask(LIST))["ok"] is True
    registry.go_on.set()
    assert (await slow.answer())["ok"] is True


async def test_client_that_leaves_before_its_answer_is_no_error(
    clients: list[Client], path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.go_on.clear()
    rude = await connect(clients, path)
    rude.send(START)
    await asyncio.sleep(0.02)
    rude.writer.transport.abort()
    registry.go_on.set()
    client = await connect(clients, path)
    assert (await client.ask(LIST))["ok"] is True
    assert caplog.text == ""


def test_client_that_leaves_between_two_parts_of_its_answer_is_no_error(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """By uvloop, whose transports raise where others pass over what is written too late."""
    path = tmp_path / "control.sock"

    async def leave() -> None:
        was_sent, is_gone, has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def check(_: Mapping[str, str]) -> AsyncGenerator[dict[str, Any], None]:
            try:
                yield {"line": "one"}
                was_sent.set()
                await is_gone.wait()
                yield {"line": "two"}
            finally:
                has_ended.set()

        server = ControlSocket(path, ControlAnswers(registry.ask, registry.list, check=check))
        await server.start()
        async with asyncio.timeout(5):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(path))
                client.send(json.dumps(CHECK).encode() + b"\n")
                await was_sent.wait()
            await asyncio.sleep(0.02)  # what it has not read resets the connection
            is_gone.set()
            await has_ended.wait()
        await server.close()

    uvloop.run(leave())
    assert caplog.text == ""


# --- The socket file -----------------------------------------------------------------------------


def is_there(path: Path) -> bool:
    return path.exists()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def important_file(tmp_path: Path) -> Path:
    path = tmp_path / "important"
    path.write_text("important")
    return path


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
async def test_socket_may_be_used_by_owner_and_group_whatever_the_umask(
    path: Path, registry: Registry, mask: int
) -> None:
    old = os.umask(mask)
    try:
        server = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
        await server.start()
        assert os.umask(mask) == mask
    finally:
        os.umask(old)
    assert mode_of(path) == 0o660
    await server.close()


async def test_close_removes_the_socket_and_ends_connections(
    server: ControlSocket, client: Client, path: Path
) -> None:
    await client.ask(LIST)
    async with asyncio.timeout(1):
        await server.close()
    assert not is_there(path)
    assert await client.rest() == b""
    await server.close()  # a second time does nothing


async def test_close_while_a_request_is_under_way_does_not_wait_for_it(
    server: ControlSocket, client: Client, registry: Registry
) -> None:
    registry.go_on.clear()
    client.send(START)
    await asyncio.sleep(0.02)
    async with asyncio.timeout(1):
        await server.close()
    assert await client.rest() == b""


@pytest.mark.parametrize("turns", range(6))
def test_client_that_comes_just_before_the_close_is_dropped(path: Path, turns: int) -> None:
    """On the daemon's own loop: asyncio's has a gap here (python/cpython#109564)."""
    assert uvloop.run(close_upon_a_client(path, turns)) == 0


async def close_upon_a_client(path: Path, turns: int) -> int:
    """Close the server so many turns of the loop after a connect; return what was sent."""
    registry = Registry()
    server = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
    await server.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.connect(str(path))
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await server.close()
        return await asyncio.to_thread(read_all, late)


async def test_socket_of_a_dead_daemon_is_replaced(path: Path, registry: Registry) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()
    server = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
    await server.start()
    client = Client(*await asyncio.open_unix_connection(str(path)))
    assert (await client.ask(LIST))["ok"] is True
    await client.close()
    await server.close()


async def test_socket_of_a_live_daemon_is_left_alone(
    server: ControlSocket, client: Client, path: Path, registry: Registry
) -> None:
    second = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
    with pytest.raises(ConfigError, match=r"control\.sock: another daemon listens there$"):
        await second.start()
    await second.close()
    assert (await client.ask(LIST))["ok"] is True
    assert is_there(path)


async def test_close_leaves_the_socket_that_another_daemon_put_there(
    server: ControlSocket, path: Path, registry: Registry
) -> None:
    os.unlink(path)
    second = ControlSocket(path, ControlAnswers(registry.ask, registry.list))
    await second.start()
    await server.close()
    client = Client(*await asyncio.open_unix_connection(str(path)))
    assert (await client.ask(LIST))["ok"] is True
    await client.close()
    await second.close()


async def test_file_in_the_sockets_place_is_refused_and_kept(
    important_file: Path, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        await ControlSocket(important_file, ControlAnswers(registry.ask, registry.list)).start()
    assert is_there(important_file)


async def test_link_to_a_file_is_refused_and_kept(
    important_file: Path, path: Path, registry: Registry
) -> None:
    os.symlink(important_file, path)
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        await ControlSocket(path, ControlAnswers(registry.ask, registry.list)).start()
    assert is_there(path)


async def test_folder_that_does_not_exist_is_refused(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "none" / "control.sock"
    with pytest.raises(ConfigError, match=r"\[control\] socket .*: No such file or directory"):
        await ControlSocket(path, ControlAnswers(registry.ask, registry.list)).start()


async def test_path_of_108_bytes_is_refused_and_one_of_107_works(
    tmp_path: Path, registry: Registry
) -> None:
    name = "s" * (107 - len(str(tmp_path)) - 1)
    with pytest.raises(ConfigError, match="the path is longer than 107 bytes"):
        await ControlSocket(
            tmp_path / f"{name}s", ControlAnswers(registry.ask, registry.list)
        ).start()
    server = ControlSocket(tmp_path / name, ControlAnswers(registry.ask, registry.list))
    await server.start()
    await server.close()


# --- Without a cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"Command": "ListAudioForkCluster"}, "this daemon is in no cluster"),
        ({"Command": "DrainAudioForkRelay", "Relay": "r1"}, "this daemon is in no cluster"),
        ({**LIST, "Asterisk": "pbx-b"}, "Asterisk: this daemon is in no cluster"),
        ({**START, "asterisk": "pbx-b"}, "Asterisk: this daemon is in no cluster"),
    ],
)
async def test_what_is_for_a_cluster_is_refused_where_there_is_none(
    client: Client, registry: Registry, request_: dict[str, str], error: str
) -> None:
    answer = await client.ask(request_)
    assert answer == {"ok": False, "code": "refused", "error": error}
    assert registry.requests == []


async def test_relay_host_is_drained_that_is_there_and_another_refused() -> None:
    drained: list[tuple[str, bool]] = []

    def drain(name: str, is_on: bool) -> bool:
        drained.append((name, is_on))
        return name == "r1"

    registry = Registry()
    answers = ControlAnswers(registry.ask, registry.list, drain=drain)

    async def ask(**fields: str) -> list[dict[str, Any]]:
        line = json.dumps({"Command": "DrainAudioForkRelay", **fields}).encode()
        return [one async for one in answers(line, Origin("control socket", "1"))]

    assert await ask(Relay="r1") == await ask(Relay="r1", Undo="yes") == [{"ok": True}]
    refused = {"ok": False, "code": "refused", "error": "there is no relay host r2"}
    assert await ask(Relay="r2") == [refused]
    assert drained == [("r1", True), ("r1", False), ("r2", True)]
