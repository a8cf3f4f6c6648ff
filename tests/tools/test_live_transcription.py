"""The live-transcription example, with engines that need no speech."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

EXAMPLE = Path(__file__).parents[2] / "examples/live-transcription"
sys.path.insert(0, str(EXAMPLE))

import transcribe  # noqa: E402

from tests.namer import DEADLY, SLOW, WORDY  # noqa: E402

ENGINE = "tests.namer:Namer"


def frame(sample: int, samples: int = 160) -> bytes:
    return samples * sample.to_bytes(2, "little", signed=True)


def pair(left: int, right: int) -> bytes:
    return 160 * (frame(left, 1) + frame(right, 1))


class Server:
    def __init__(self, port: int, printed: list[str]) -> None:
        self._port = port
        self.printed = printed

    def client(self, target: str = "/live") -> connect:
        return connect(f"ws://127.0.0.1:{self._port}{target}", compression=None, proxy=None)

    async def wait_printed(self, text: str) -> str:
        """Return the first line with this text in it, once it is there."""
        async with asyncio.timeout(10):
            while True:
                for line in self.printed:
                    if text in line:
                        return line
                await asyncio.sleep(0.01)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    printed: list[str] = []
    monkeypatch.setattr(transcribe, "say", printed.append)
    handle = transcribe.Transcriber(ENGINE, 4).handle
    async with serve(handle, "127.0.0.1", 0, compression=None) as listening:
        yield Server(next(iter(listening.sockets)).getsockname()[1], printed)


async def texts(client: ClientConnection, count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [str(await client.recv()) for _ in range(count)]


# --- From audio to text --------------------------------------------------------------------------


async def test_final_text_comes_back_and_is_printed(server: Server) -> None:
    async with server.client("/live?token=secret") as client:
        for sample in (0, 1000, 0, -7):
            await client.send(frame(sample))
        assert await texts(client, 2) == ["1000", "-7"]
    await server.wait_printed("/live ended")
    assert server.printed[0] == "/live began"
    assert {"/live 1000", "/live -7", "/live in all 4"} < set(server.printed)
    assert not any("secret" in line for line in server.printed)


async def test_partial_text_is_printed_once_a_second_only(server: Server) -> None:
    async with server.client() as client:
        for sample in range(1, 30):
            await client.send(frame(sample))
            await texts(client, 1)
    await server.wait_printed("/live ended")
    assert 1 <= sum(line.endswith(" ...") for line in server.printed) <= 2


@pytest.mark.parametrize(
    ("target", "message", "expected"),
    [
        ("/", pair(1, 2), {"in: 1", "out: 2"}),
        ("/?channels=2", pair(1, 2) + pair(3, 4), {"in: 1", "out: 2", "in: 3", "out: 4"}),
    ],
    ids=["by-size", "by-query"],
)
async def test_stereo_has_a_recogniser_for_each_party(
    server: Server, target: str, message: bytes, expected: set[str]
) -> None:
    async with server.client(target) as client:
        await client.send(message)
        assert set(await texts(client, len(expected))) == expected


async def test_two_frames_in_a_message_are_mono_if_the_query_says_so(server: Server) -> None:
    async with server.client("/?channels=1") as client:
        await client.send(frame(1) + frame(2))
        assert await texts(client, 2) == ["1", "2"]


async def test_other_messages_do_no_harm(server: Server) -> None:
    async with server.client() as client:
        for message in ("text", b"", frame(5)[:319], b"\0", frame(6)):
            await client.send(message)
        assert (await texts(client, 2))[0] == "5"


async def test_text_comes_back_as_one_line_of_900_bytes_at_most(server: Server) -> None:
    async with server.client() as client:
        await client.send(frame(WORDY))
        (text,) = await texts(client, 1)
    assert text.startswith("one two three éé")
    assert len(text.encode()) in (899, 900)


async def test_connection_torn_off_still_gives_last_text(server: Server) -> None:
    async with server.client() as client:
        await client.send(frame(1))
        await texts(client, 1)
        client.transport.abort()
    await server.wait_printed("/live in all 1")
    await server.wait_printed("/live ended")


# --- Many, and slow ones -------------------------------------------------------------------------


async def test_slow_recogniser_does_not_hold_up_another(server: Server) -> None:
    async with server.client("/slow") as slow, server.client("/quick") as quick:
        for _ in range(30):
            await slow.send(frame(SLOW))  # 1.5 s of work
        await slow.send(frame(1))
        await quick.send(frame(2))
        assert await texts(quick, 1) == ["2"]
        assert "/slow 1" not in server.printed
        assert await texts(slow, 1) == ["1"]


async def test_add_more_than_fits_drops_oldest_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(transcribe, "say", printed.append)
    connection = cast(ServerConnection, None)  # nothing is sent
    party = transcribe.Party("/live", "", ENGINE, connection)
    for number in range(600):
        party.add(frame(number))
    assert len(party._waiting) == transcribe.MAX_WAITING_BYTES == 500 * 320
    assert bytes(party._waiting[:320]) == frame(100)
    assert party.dropped_bytes == 100 * 320
    assert printed == ["/live too slow: 1 s dropped", "/live too slow: 2 s dropped"]


async def test_recogniser_that_dies_closes_its_connection_alone(server: Server) -> None:
    async with server.client("/other") as other, server.client("/dies") as dies:
        await dies.send(frame(DEADLY))
        with pytest.raises(ConnectionClosed) as closed:
            await texts(dies, 1)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        await other.send(frame(1))
        assert await texts(other, 1) == ["1"]


async def test_too_many_forks_are_told_to_come_back(server: Server) -> None:
    clients = [await server.client() for _ in range(5)]
    with pytest.raises(ConnectionClosed) as closed:
        await texts(clients[4], 1)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    await clients[0].close()
    await server.wait_printed("/live ended")
    async with server.client() as client:
        await client.send(frame(1))
        assert await texts(client, 1) == ["1"]
    for client in clients:
        await client.close()


# --- The program ---------------------------------------------------------------------------------


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(EXAMPLE / "transcribe.py"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--engine", ENGINE], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def alive(pid: str) -> bool:
    stat = Path("/proc", pid, "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_program_ended_leaves_no_process(
    program: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert program.stdout is not None
    found = re.search(r"ws://127.0.0.1:(\d+)/", program.stdout.readline())
    assert found is not None
    async with connect(f"ws://127.0.0.1:{found[1]}/live", proxy=None) as client:
        await client.send(frame(1))
        assert await texts(client, 1) == ["1"]
        processes = children(program.pid)
        assert processes
        program.send_signal(number)
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(program.wait) == (0 if number != signal.SIGKILL else -9)
            while any(map(alive, processes)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "8080x"], "expected HOST:PORT"),
        (["--engine", "nothing"], "--engine nothing"),
        (["--engine", "none:X"], "No module named 'none'"),
        (["--engine", "json:X"], "has no attribute 'X'"),
    ],
)
def test_program_wrong_argument_is_said(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE / "transcribe.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_port_that_is_taken_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, str(EXAMPLE / "transcribe.py"), "--listen", listen]
        done = subprocess.run(
            [*command, "--engine", ENGINE],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen on {listen}: ")
    assert done.stderr.endswith("; choose with --listen\n")
