"""The receiver: real WebSocket clients, real files."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as sync_connect

from audiofork.commands import receiver as receiver_module
from audiofork.commands import receiver_limits as limits_module
from audiofork.commands.panel import Panel
from audiofork.commands.receiver import (
    BAR_LENGTH,
    LABEL_LENGTH,
    MAX_LINES,
    Receiver,
    Take,
    channels_of,
    dbfs,
    label_of,
    peaks_of,
    rate_of,
    shown,
    tls_context,
)
from audiofork.commands.receiver_limits import (
    DEFAULTS,
    FILE_BYTES,
    LOOK_AGAIN_S,
    TEXTS_SHOWN,
    Limits,
    Space,
)
from audiofork.commands.wav import WavFile
from audiofork.config import SAMPLE_RATES, Address
from audiofork.errors import ReceiverError
from tests.commands.test_cli import Terminal

pytestmark = pytest.mark.slow

FRAME = struct.pack("<160h", *([1000, -2000] * 80))
PAIR = struct.pack("<320h", *([16384, -8192] * 160))
ANY_PORT = Address("127.0.0.1", 0)


class Bench:
    """A receiver that listens, with what it said."""

    def __init__(self, directory: Path, *, levels: bool = True, limits: Limits = DEFAULTS) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.receiver = Receiver(directory, self.lines.append, levels=levels, limits=limits)
        self.port = 0

    def client(self, target: str = "/") -> connect:
        """Return a connect to a path."""
        return connect(f"ws://127.0.0.1:{self.port}{target}", compression=None, proxy=None)

    async def wait(self, true: Callable[[], bool]) -> None:
        """Wait until something is true that depends on bytes on their way."""
        async with asyncio.timeout(10):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def take(self) -> Take:
        """Return the next fork that ended."""
        await self.wait(lambda: bool(self.receiver.takes))
        return self.receiver.takes.popleft()

    async def said(self, text: str) -> str:
        """Return the first line with this text in it."""
        await self.wait(lambda: any(text in line for line in self.lines))
        return next(line for line in self.lines if text in line)

    async def received(self, messages: int, label: str = "fork") -> None:
        """Wait until a fork has so many messages."""
        forks = self.receiver._recordings
        await self.wait(lambda: label in forks and forks[label].messages >= messages)

    async def record(self, target: str, *messages: bytes | str) -> Take:
        """Send messages, close, and return what came of it."""
        async with self.client(target) as client:
            for message in messages:
                await client.send(message)
        return await self.take()

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "recordings")
    bench.port = (await bench.receiver.start(ANY_PORT)).port
    yield bench
    await bench.receiver.close()


def content(path: Path | None, sample_rate: int = 8000) -> tuple[int, bytes]:
    """Return the channels and the audio of a file, as any player would see them."""
    assert path is not None
    with wave.open(str(path)) as file:
        assert (file.getsampwidth(), file.getframerate()) == (2, sample_rate)
        return file.getnchannels(), file.readframes(file.getnframes())


def only(directory: Path) -> Path:
    """Return the one file in a directory."""
    (path,) = directory.iterdir()
    return path


# --- Pure parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "label"),
    [
        ("/in", "in"),
        ("/", "fork"),
        ("", "fork"),
        ("/a/b.c_d-e", "a-b.c_d-e"),
        ("/in?channel=PJSIP/100-0000002a", "PJSIP-100-0000002a"),
        ("/in?channel=PJSIP%2F100-0000002a&channels=2", "PJSIP-100-0000002a"),
        ("/in?channel=", "in"),
        ("/../../etc/passwd", "etc-passwd"),
        ("/?channel=../../etc/passwd", "etc-passwd"),
        ("//host/path", "host-path"),
        ("/%2e%2e%2f%2e%2e%2fetc", "etc"),
        ("/a%00b%0a%1b[31m", "a-b-31m"),
        ("/..", "fork"),
        ("/-rf", "rf"),
        ("/%C3%A9%F0%9F%8E%A7", "fork"),
        ("/%ff%fe", "fork"),
        ("/" + 5000 * "x", LABEL_LENGTH * "x"),
    ],
)
def test_label(target: str, label: str) -> None:
    """A label is what stands in the request, as far as it may stand in a file name."""
    assert label_of(target) == label


@given(st.text())
def test_label_any_target_is_safe(target: str) -> None:
    label = label_of(target)
    assert re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{LABEL_LENGTH - 1}}}", label)
    assert channels_of(target) in (0, 1, 2)
    with contextlib.suppress(ValueError):
        assert rate_of(target) in SAMPLE_RATES


@pytest.mark.parametrize(
    ("target", "channels"),
    [("/", 0), ("/?channels=1", 1), ("/?channels=2", 2), ("/?channels=3", 0), ("/?channels=", 0)],
)
def test_channels_of(target: str, channels: int) -> None:
    assert channels_of(target) == channels


def test_rate_of_no_rate_is_8000() -> None:
    assert [rate_of(target) for target in ("/", "/?rate=", "/rate=16000")] == 3 * [8000]


@pytest.mark.parametrize("rate", SAMPLE_RATES)
def test_rate_of_each_valid_rate(rate: int) -> None:
    assert rate_of(f"/in?channels=2&rate={rate}") == rate


@pytest.mark.parametrize("value", ["0", "11025", "016000", "+16000", "-16000", "16kHz", "\u0668"])
def test_rate_of_anything_else_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"rate: expected one of 8000, .*, 192000, got "):
        rate_of(f"/?rate={quote(value)}")


def test_levels() -> None:
    """A peak of 0 dBFS is the largest sample there is, on either side of zero."""
    assert dbfs(32768) == 0
    assert dbfs(0) == -math.inf
    assert dbfs(16384) == pytest.approx(-6.02, abs=0.01)
    assert peaks_of(struct.pack("<3h", 5, -32768, 7), 1) == [32768]
    assert peaks_of(PAIR, 2) == [16384, 8192]


def test_shown_control_characters_replaced_and_cut() -> None:
    assert shown("a\x1b[2J\r\nb\u202e") == "a [2J  b "
    assert len(shown(1000 * "x")) < 300


# --- Files ---------------------------------------------------------------------------------------


async def test_mono(bench: Bench) -> None:
    """A first message of 320 bytes makes a mono file, named by time and path."""
    take = await bench.record("/in", FRAME, FRAME, FRAME)
    assert content(take.path) == (1, 3 * FRAME)
    assert take.path is not None
    assert re.fullmatch(r"\d{8}-\d{6}-in\.wav", take.path.name)
    assert (take.label, take.messages) == ("in", 3)
    assert take.duration_s == pytest.approx(0.06)
    assert take.peaks_dbfs == pytest.approx((dbfs(2000),))
    assert (take.close_code, take.close_reason) == (1000, "")


async def test_stereo(bench: Bench) -> None:
    """A first message of 640 bytes makes a stereo file with a peak for each channel."""
    take = await bench.record("/", PAIR, PAIR)
    assert content(take.path) == (2, 2 * PAIR)
    assert take.duration_s == pytest.approx(0.04)
    assert take.peaks_dbfs == pytest.approx((dbfs(16384), dbfs(8192)))


@pytest.mark.parametrize("channels", [1, 2])
async def test_channels_in_query_decide(bench: Bench, channels: int) -> None:
    """Coalesced messages: the size does not tell, so the query does."""
    take = await bench.record(f"/?channels={channels}", 2 * PAIR, PAIR, FRAME)
    assert content(take.path) == (channels, 3 * PAIR[:640] + FRAME)


async def test_unusual_size_taken_for_mono_and_said(bench: Bench) -> None:
    take = await bench.record("/", 4 * FRAME)
    assert content(take.path)[0] == 1
    await bench.said("first message of 1280 bytes, taken for mono; ?channels=2")


@pytest.mark.parametrize("rate", SAMPLE_RATES)
@pytest.mark.parametrize(("channels", "kind"), [(1, "mono"), (2, "stereo, in left, out right")])
async def test_rate_size_of_first_message_tells_channels(
    bench: Bench, rate: int, channels: int, kind: str
) -> None:
    """A frame is rate / 50 samples of each channel: at 16000 Hz 640 bytes are mono."""
    frame = struct.pack("<h", 1000) * (rate // 50 * channels)
    take = await bench.record(f"/in?rate={rate}", frame, frame)
    assert content(take.path, rate) == (channels, 2 * frame)
    assert take.duration_s == pytest.approx(0.04)
    assert take.peaks_dbfs == channels * (pytest.approx(dbfs(1000)),)
    said = await bench.said(": recording ")
    assert said.endswith(f", {kind}" if rate == 8000 else f", {kind}, {rate} Hz")
    assert len(bench.lines) == 2


async def test_rate_with_channels_takes_any_size(bench: Bench) -> None:
    take = await bench.record("/?rate=16000&channels=2", FRAME, PAIR)
    assert content(take.path, 16000) == (2, FRAME + PAIR)


async def test_rate_unusual_size_taken_for_mono_and_said(bench: Bench) -> None:
    """At 16000 Hz a message of 320 bytes is half a frame."""
    take = await bench.record("/?rate=16000", FRAME)
    assert content(take.path, 16000) == (1, FRAME)
    await bench.said("first message of 320 bytes, taken for mono; ?channels=2")


async def test_rate_unknown_said_once_and_taken_for_8000(bench: Bench) -> None:
    """What came is recorded all the same, and control characters reach no terminal."""
    take = await bench.record("/in?rate=11025%1b[2J", PAIR, PAIR)
    assert content(take.path) == (2, 2 * PAIR)
    assert take.duration_s == pytest.approx(0.04)
    assert [line for line in bench.lines if "expected" in line] == [
        "in: rate: expected one of 8000, 12000, 16000, 24000, 32000, 44100, 48000, 96000, 192000, "
        "got 11025 [2J, taken for 8000"
    ]


async def test_file_private(bench: Bench) -> None:
    """Nobody but the owner may hear the call."""
    take = await bench.record("/", FRAME)
    assert take.path is not None
    assert take.path.stat().st_mode & 0o777 == 0o600


async def test_same_second_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there is never written again, whoever made it."""
    monkeypatch.setattr(time, "strftime", lambda _: "20260131-142501")
    (bench.directory / "20260131-142501-in.wav").write_bytes(b"not yours")
    (bench.directory / "20260131-142501-in-2.wav").symlink_to("/nonexistent/file")
    for _ in range(2):
        await bench.record("/in", FRAME)
    assert bench.files() == [f"20260131-142501-in{part}.wav" for part in ("-2", "-3", "-4", "")]
    assert (bench.directory / "20260131-142501-in.wav").read_bytes() == b"not yours"


@pytest.mark.parametrize("target", ["/../../etc/passwd", "/a%00b", "/" + 4000 * "x", "/?channel=/"])
async def test_hostile_names_stay_in_directory(bench: Bench, target: str) -> None:
    """The target goes onto the wire as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(
        f"GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readline()
    # A masked binary message of 2 bytes with a mask of zeros.
    writer.write(b"\x82\x82\0\0\0\0ab")
    await bench.said(": recording ")
    writer.close()
    take = await bench.take()
    assert take.path is not None
    assert take.path.resolve().parent == bench.directory.resolve()
    assert len(take.path.name) < 110


async def test_playable_before_the_end(bench: Bench) -> None:
    """What came until the last interval can be heard, even if the receiver is killed now."""
    async with bench.client() as client:
        await client.send(FRAME)
        await bench.received(1)
        path = only(bench.directory)
        assert content(path) == (1, b"")
        bench.receiver.show()
        assert content(path) == (1, FRAME)
        await client.send(FRAME)
        await bench.received(2)
        bench.receiver.show()
        assert content(path) == (1, 2 * FRAME)


async def test_fast_client_written_before_the_interval(bench: Bench) -> None:
    """A backlog that comes at once does not pile up in memory."""
    async with bench.client() as client:
        for _ in range(300):
            await client.send(FRAME)
        await bench.received(300)
        path = only(bench.directory)
        assert len(content(path)[1]) > receiver_module.MAX_PENDING_BYTES
    assert content((await bench.take()).path) == (1, 300 * FRAME)


async def test_rate_fast_client_may_have_the_same_time_pending(bench: Bench) -> None:
    """Twice the rate, twice the bytes: live audio is written once a second at any rate."""
    most = bytes(2 * receiver_module.MAX_PENDING_BYTES)
    async with bench.client("/?rate=16000") as client:
        await client.send(most)
        await bench.received(1)
        path = only(bench.directory)
        assert content(path, 16000) == (1, b"")
        await client.send(b"ab")
        await bench.received(2)
        assert content(path, 16000) == (1, most + b"ab")


async def test_long_file_header_does_not_overflow(tmp_path: Path) -> None:
    file = WavFile(tmp_path / "long", 2, 8000)
    file._data_bytes = 1 << 33
    assert len(file._header()) == 44
    file.close()


# --- What clients do -----------------------------------------------------------------------------


async def test_many_at_once(bench: Bench) -> None:
    """A hundred forks, half of them of the same name, each in a file of its own."""

    async def send(number: int) -> None:
        frame = struct.pack("<160h", *(160 * [number + 1]))
        async with bench.client("/same" if number % 2 else f"/fork-{number}") as client:
            for _ in range(10):
                await client.send(frame)
                await asyncio.sleep(0)

    await asyncio.gather(*(send(number) for number in range(100)))
    await bench.wait(lambda: len(bench.receiver.takes) == 100)
    recorded = [content(take.path) for take in bench.receiver.takes]
    samples = sorted(struct.unpack("<h", audio[:2])[0] for _, audio in recorded)
    assert samples == list(range(1, 101))
    assert all(len(set(struct.iter_unpack("<h", audio))) == 1 for _, audio in recorded)
    assert {len(audio) for _, audio in recorded} == {3200}
    assert len(bench.files()) == 100


async def test_same_label_numbered_while_running(bench: Bench) -> None:
    async with bench.client("/in") as first, bench.client("/in") as second:
        await first.send(FRAME)
        await second.send(FRAME)
        await bench.said("in-2: recording")
        bench.receiver.show()
    assert [line.split()[0] for line in bench.lines if "dBFS" in line][:2] == ["in", "in-2"]


async def test_sudden_disconnect(bench: Bench) -> None:
    """A client that vanishes leaves a complete file, and 1006 as the close code."""
    client = await bench.client()
    await client.send(FRAME)
    await bench.received(1)
    client.transport.abort()
    take = await bench.take()
    assert content(take.path) == (1, FRAME)
    assert take.close_code == 1006
    await bench.said("closed with 1006")


async def test_close_code_and_reason_shown(bench: Bench) -> None:
    client = await bench.client("/in")
    await client.send(FRAME)
    await client.close(4001, "so\x1b[2Jlong")
    take = await bench.take()
    assert (take.close_code, take.close_reason) == (4001, "so [2Jlong")
    line = await bench.said("in: ended")
    assert re.search(r"-in\.wav, 0\.0 s, peak -24\.3 dBFS, 1 messages, closed with 4001 so", line)


async def test_text_shown_not_written(bench: Bench) -> None:
    take = await bench.record("/", "hello\n\x07there", FRAME, "bye")
    assert content(take.path) == (1, FRAME)
    assert take.messages == 1
    assert "fork: text: hello  there" in bench.lines
    assert "fork: text: bye" in bench.lines


async def test_odd_bytes_warned_once_and_alignment_kept(bench: Bench) -> None:
    take = await bench.record("/", FRAME, FRAME[:-1], b"\x01", FRAME)
    assert content(take.path) == (1, FRAME + FRAME[:-2] + FRAME)
    assert sum("such messages are cut" in line for line in bench.lines) == 1


async def test_odd_bytes_stereo_keeps_the_sides(bench: Bench) -> None:
    take = await bench.record("/", PAIR, PAIR[:-2], PAIR)
    assert content(take.path) == (2, PAIR + PAIR[:-4] + PAIR)


async def test_no_audio_leaves_no_file(bench: Bench) -> None:
    take = await bench.record("/", b"", "only text")
    assert (take.path, take.peaks_dbfs, take.duration_s) == (None, (), 0)
    assert bench.files() == []
    await bench.said("ended, no file, no audio, 1 messages")


async def test_message_too_big_ends_that_fork_only(bench: Bench) -> None:
    async with bench.client("/good") as good:
        bad = await bench.client("/bad")
        with contextlib.suppress(Exception):
            await bad.send(bytes(2 << 20))
        assert (await bench.take()).close_code == 1009
        await good.send(FRAME)
    assert content((await bench.take()).path) == (1, FRAME)


async def test_not_a_websocket_is_turned_away(bench: Bench) -> None:
    for greeting in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00", b"", b"x" * 70_000):
        _, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        writer.write(greeting)
        writer.close()
    assert content((await bench.record("/", FRAME)).path) == (1, FRAME)


# --- Disks ---------------------------------------------------------------------------------------


async def test_no_file_can_be_created(bench: Bench) -> None:
    """The fork is told of and measured; when the directory is back, others are recorded."""
    bench.directory.rmdir()
    take = await bench.record("/bad", FRAME)
    assert take.path is None
    assert take.peaks_dbfs == pytest.approx((dbfs(2000),))
    assert f"bad: not recorded, no file in {bench.directory}: No such file or directory" in (
        bench.lines
    )
    bench.directory.mkdir()
    assert content((await bench.record("/good", FRAME)).path) == (1, FRAME)


async def test_disk_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork whose file cannot grow says so once; the other ones go on."""
    async with bench.client("/bad") as bad, bench.client("/good") as good:
        for client in (bad, good):
            await client.send(FRAME)
        await bench.received(1, "bad")
        await bench.received(1, "good")
        bench.receiver.show()
        file = bench.receiver._recordings["bad"]._output._file
        assert file is not None
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file._file)
        os.close(full)
        for _ in range(2):
            await bad.send(FRAME)
            await good.send(FRAME)
        await bench.received(3, "bad")
        await bench.received(3, "good")
        bench.receiver.show()
    takes = {take.label: take for take in [await bench.take(), await bench.take()]}
    assert content(takes["bad"].path) == (1, FRAME)
    assert content(takes["good"].path) == (1, 3 * FRAME)
    complaints = [line for line in bench.lines if "No space left on device" in line]
    assert len(complaints) == 1
    assert complaints[0].startswith("bad: ")
    assert "ends here" in complaints[0]


def test_disk_full_leaves_no_half_write(tmp_path: Path) -> None:
    """A write that fails half-way is taken back: the file ends with a whole sample."""
    code = f"""
import pathlib, resource, signal
from audiofork.commands.receiver_limits import (
    DEFAULTS,
    FILE_BYTES,
    LOOK_AGAIN_S,
    TEXTS_SHOWN,
    Limits,
    Space,
)
from audiofork.commands.wav import WavFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1001, 1001))
file = WavFile(pathlib.Path({str(tmp_path)!r}) / "x", 2, 8000)
file.write(bytes(800))
try:
    file.write(bytes(800))
except OSError:
    file.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert content(tmp_path / "x.wav") == (2, bytes(800))
    assert (tmp_path / "x.wav").stat().st_size == 844


# --- Limits ---------------------------------------------------------------------------------------


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Callable[[Limits], Awaitable[Bench]]]:
    benches: list[Bench] = []

    async def start(limits: Limits) -> Bench:
        benches.append(Bench(tmp_path / "recordings", limits=limits))
        benches[-1].port = (await benches[-1].receiver.start(ANY_PORT)).port
        return benches[-1]

    yield start
    for bench in benches:
        await bench.receiver.close()


async def send_until_closed(client: ClientConnection, message: bytes) -> None:
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send(message)


async def test_fork_beyond_the_quota_is_closed_for_good_and_its_file_is_whole(
    limited: Callable[[Limits], Awaitable[Bench]],
) -> None:
    bench = await limited(Limits(quota_bytes=200_000, keep_free_bytes=0))
    async with bench.client("/in") as client:
        await send_until_closed(client, FRAME)
        assert (client.close_code, client.close_reason) == (
            1008,
            "the recordings take 0.000186265 GiB (--quota)",
        )
    take = await bench.take()
    assert take.path is not None
    assert 100_000 < take.path.stat().st_size <= 200_000
    channels, audio = content(take.path)
    assert (channels, audio) == (1, FRAME * (len(audio) // 320))
    assert "ends here, the recordings take" in await bench.said("ends here")
    async with bench.client("/next") as client:
        async with asyncio.timeout(10):
            await client.wait_closed()
        assert client.close_code == 1008
    bench.receiver.show()
    assert "1 connections refused: the recordings take" in await bench.said("refused")
    assert len(bench.files()) == 1


async def test_other_forks_go_on_until_the_quota_is_reached_by_them(
    limited: Callable[[Limits], Awaitable[Bench]],
) -> None:
    bench = await limited(Limits(quota_bytes=200_000, keep_free_bytes=0))
    async with bench.client("/good") as good, bench.client("/flood") as flood:
        await good.send(FRAME)
        await bench.received(1, "good")
        bench.receiver.show()
        await send_until_closed(flood, FRAME * 200)
        assert good.close_code is None


def test_quota_counts_what_is_there_and_empty_files_too(tmp_path: Path) -> None:
    now = [0.0]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old.wav").write_bytes(bytes(10_000))
    for number in range(3):
        (tmp_path / f"{number}.wav").touch()
    used = 10_000 + 3 * FILE_BYTES
    space = Space(tmp_path, Limits(used + 100, 0), lambda: now[0])
    assert space.why_full(100) == ""
    assert space.why_full(101) != ""
    (tmp_path / "sub" / "old.wav").unlink()
    assert space.why_full(101) != ""
    now[0] += LOOK_AGAIN_S  # somebody has made room, which is seen in time
    assert space.why_full(101) == ""
    space.take(10_100)
    assert space.why_full() == ""
    assert space.why_full(1) != ""


def test_room_on_the_disk_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    # As statvfs says; what others write meanwhile is left out.
    monkeypatch.setattr(limits_module, "_free_bytes", lambda _: free)
    space = Space(tmp_path, Limits(0, free - 1000))
    assert space.why_full(1000) == ""
    assert space.why_full(1001).endswith(" of the disk are free (--keep-free)")
    assert Space(tmp_path, Limits(0, 0)).why_full(1 << 60) == ""


def test_free_room_is_that_of_the_disk(tmp_path: Path) -> None:
    assert Space(tmp_path, Limits(0, 1)).why_full() == ""
    assert Space(tmp_path, Limits(0, 1 << 60)).why_full().startswith("less than 1.07374e+09 GiB")


async def test_flood_of_texts_shows_the_first_of_a_second_and_counts_the_rest(
    bench: Bench,
) -> None:
    async with bench.client() as client:
        for number in range(500):
            await client.send(f"text {number}")
        await client.send(FRAME)
        await bench.received(1)
        bench.receiver.show()
        shown_texts = [line for line in bench.lines if ": text: " in line]
        told = [int(line.split()[0]) for line in bench.lines if "more texts not shown" in line]
        assert len(shown_texts) + sum(told) == 500
        assert len(shown_texts) <= TEXTS_SHOWN * (1 + len(told))


async def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """Root may write anywhere, but no directory can be made in a file."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file/below"):
        receiver = Receiver(directory, print)
        with pytest.raises(ReceiverError, match="cannot write to .*/file"):
            await receiver.start(ANY_PORT)
        await receiver.close()


async def test_port_taken(bench: Bench, tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, print)
    with pytest.raises(ReceiverError, match=f"127.0.0.1:{bench.port}: Address already in use"):
        await receiver.start(Address("127.0.0.1", bench.port))
    await receiver.close()


# --- Lines ---------------------------------------------------------------------------------------


async def test_on_a_terminal_levels_bytes_and_quota_are_shown_in_place(tmp_path: Path) -> None:
    shows: list[list[str]] = []
    panel = Panel(lambda text: None)
    panel.show = lambda lines: shows.append(list(lines))  # type: ignore[method-assign]
    bench = Bench(tmp_path)
    limits = Limits(1 << 30, 0)
    bench.receiver = Receiver(tmp_path, bench.lines.append, limits=limits, panel=panel)
    bench.port = (await bench.receiver.start(ANY_PORT)).port
    try:
        bench.receiver.show()
        (nobody,) = shows[-1]
        assert nobody.startswith("0:00:0")
        assert nobody.endswith("0 forks now, 0 ended, 0 B written, 0 B of 1 GiB used; Ctrl-C ends")
        async with bench.client("/a") as client:
            for _ in range(100):
                await client.send(b"\xff\x7f" * 160)
            await bench.received(100, "a")
            bench.receiver.show()
            fork, summary = shows[-1]
        assert fork == f"  a     2.0 s   -0.0 dBFS {BAR_LENGTH * '#'}  31.2 KiB"
        assert "1 fork now, 0 ended, 35.2 KiB written, 35.2 KiB of 1 GiB used" in summary
        await bench.take()
        bench.receiver.show()
        assert "0 forks now, 1 ended" in shows[-1][-1]
        assert not any(line.startswith("  ") for line in bench.lines)
    finally:
        await bench.receiver.close()


async def test_without_a_quota_the_bytes_are_shown_alone(tmp_path: Path) -> None:
    space = Space(tmp_path, Limits(0, 0))
    space.take(3 << 20)
    assert str(space) == "3.0 MiB written"


def test_command_in_a_terminal_shows_what_comes_and_leaves_its_lines_at_the_end(
    tmp_path: Path,
) -> None:
    arguments = ("receive", "--listen=127.0.0.1:0", f"--directory={tmp_path}")
    with contextlib.closing(Terminal(*arguments)) as terminal:
        terminal.until("0 forks now, 0 ended")
        port = re.search(r"127\.0\.0\.1:(\d+)", terminal.seen)
        assert port is not None
        with sync_connect(f"ws://127.0.0.1:{port[1]}/call") as client:
            client.send(FRAME)
            terminal.until("1 fork now")
            terminal.until("call     0.0 s")
        terminal.until("call: ended")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.exit_code() == 0
        assert re.search(r"\x1b\[[12]A\r\x1b\[J$", terminal.seen)


async def test_level_lines(bench: Bench) -> None:
    """One line for each fork: name, seconds, peak since the last one, a bar."""
    loud = struct.pack("<h", -32768) * 160
    async with bench.client("/a") as mono, bench.client("/long") as pair:
        await mono.send(loud)
        await pair.send(PAIR)
        await bench.received(1, "a")
        await bench.received(1, "long")
        bench.receiver.show()
        bench.receiver.show()
        await mono.send(bytes(320))
        await bench.received(2, "a")
        bench.receiver.show()
    shown = [line for line in bench.lines if line.startswith("  ")]
    assert shown[0] == f"  a        0.0 s    0.0 dBFS {BAR_LENGTH * '#'}"
    assert shown[1].startswith("  long     0.0 s  in  -6.0 dBFS ####")
    assert "  out -12.0 dBFS #" in shown[1]
    assert shown[2] == "  a        0.0 s   no audio"
    assert shown[4] == f"  a        0.0 s     silence {BAR_LENGTH * '.'}"


async def test_many_forks_share_a_line(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(bench.client(f"/f{i}")) for i in range(MAX_LINES + 1)
        ]
        bench.receiver.show()
        await clients[3].send(PAIR)
        await bench.received(1, "f3")
        bench.receiver.show()
    assert [line for line in bench.lines if line.startswith("  ")] == [
        f"  {MAX_LINES + 1} forks, 0 with audio",
        f"  {MAX_LINES + 1} forks, 1 with audio, loudest: f3 -6.0 dBFS",
    ]


async def test_timer_shows_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "SHOW_INTERVAL_S", 0.01)
    bench = Bench(tmp_path)
    bench.port = (await bench.receiver.start(ANY_PORT)).port
    async with bench.client() as client:
        await client.send(FRAME)
        await bench.said("dBFS")
        assert content(only(tmp_path)) == (1, FRAME)
    await bench.receiver.close()


async def test_quiet(tmp_path: Path) -> None:
    """Without levels the files are written all the same."""
    bench = Bench(tmp_path, levels=False)
    bench.port = (await bench.receiver.start(ANY_PORT)).port
    async with bench.client() as client:
        await client.send(FRAME)
        await bench.received(1)
        bench.receiver.show()
        assert content(only(tmp_path)) == (1, FRAME)
        assert len(bench.lines) == 1
    await bench.receiver.close()


async def test_close_completes_files_and_says_goodbye(bench: Bench) -> None:
    client = await bench.client()
    await client.send(FRAME)
    await bench.received(1)
    await bench.receiver.close()
    await bench.receiver.close()
    assert content((await bench.take()).path) == (1, FRAME)
    await client.wait_closed()
    assert client.close_code == 1001


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "cert.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    bench = Bench(tmp_path / "recordings")
    port = (await bench.receiver.start(ANY_PORT, tls_context(certificate, None))).port
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with connect(f"wss://127.0.0.1:{port}/in", ssl=trust, proxy=None) as client:
        await client.send(FRAME)
    assert content((await bench.take()).path) == (1, FRAME)
    await bench.receiver.close()


def test_tls_bad_certificate(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(ReceiverError, match=f"cannot use the certificate: .*{name}"):
            tls_context(tmp_path / name, None)


# --- The command ---------------------------------------------------------------------------------


class Command:
    """`audiofork receive` as a process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "audiofork", "receive", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Return the exit code and the rest of the output."""
        if number is not None:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=20)
        return self.process.returncode, rest


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def start(*arguments: str) -> Command:
        commands.append(Command(tmp_path, *arguments))
        return commands[-1]

    yield start
    for one in commands:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()


async def _client(line: str) -> ClientConnection:
    found = re.search(r"listening on (ws://127\.0\.0\.1:\d+/)", line)
    assert found is not None, line
    return await connect(found[1] + "in", compression=None, proxy=None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_command_ends_well(
    tmp_path: Path, command: Callable[..., Command], number: signal.Signals
) -> None:
    """A signal completes the files; the exit code is 0."""
    receive = command("--listen", "127.0.0.1:0")
    client = await _client(receive.line())
    await client.send(FRAME)
    assert "in: recording recordings/" in receive.line()
    code, rest = await asyncio.to_thread(receive.end, number)
    assert code == 0, rest
    assert "in: ended, recordings/" in rest
    path = only(tmp_path / "recordings")
    assert content(path) == (1, FRAME)
    await client.wait_closed()


async def test_command_killed_leaves_playable_file(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    receive = command("--listen", "127.0.0.1:0", "--directory", "here")
    client = await _client(receive.line())
    await client.send(FRAME)
    assert "recording" in receive.line()
    assert "dBFS" in receive.line()  # a second later
    await client.send(FRAME)
    receive.end(signal.SIGKILL)
    path = only(tmp_path / "here")
    assert content(path) == (1, FRAME)
    await client.wait_closed()


async def test_command_goes_on_when_nobody_reads(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    """`audiofork receive | head -1` still records."""
    receive = command("--listen", "127.0.0.1:0")
    client = await _client(receive.line())
    assert receive.process.stdout is not None
    receive.process.stdout.close()
    await client.send(FRAME)
    await client.close()
    receive.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(receive.process.wait, 20) == 0
    path = only(tmp_path / "recordings")
    assert content(path) == (1, FRAME)


def test_command_failures(tmp_path: Path, command: Callable[..., Command]) -> None:
    """What cannot work is said in one line."""
    (tmp_path / "file").touch()
    code, said = command("--directory", "file").end()
    assert (code, said) == (
        1,
        "audiofork: cannot write to file: File exists (something with that name already exists)\n",
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = command("--listen", where).end()
    assert code == 1
    assert said.startswith(f"audiofork: cannot listen on {where}: Address already in use (another")
    code, said = command("--listen", "no-such-host.invalid:1").end()
    assert code == 1
    assert said.startswith("audiofork: cannot listen on no-such-host.invalid:1: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--listen", "8080"), ("--tls-key", "key.pem")])
def test_command_usage(command: Callable[..., Command], arguments: tuple[str, ...]) -> None:
    assert command(*arguments).end()[0] == 2


async def test_end_does_not_wait_for_a_connection_that_sends_no_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "HANDSHAKE_TIMEOUT_S", 0.05)
    bench = Bench(tmp_path / "recordings")
    port = (await bench.receiver.start(ANY_PORT)).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        await bench.receiver.close()
        assert await reader.read() == b""
    writer.close()
