"""The benchmark runs, and its sink finds what is lost, doubled, out of order or changed.

No test asserts how fast something is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any
from uuid import uuid4

import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from audiofork.link.messages import Direction, ForkSpec
from audiofork.relay.formats.choice import format_of
from bench import ab, build, capacity, measure, quota, rows
from bench.program import Answer, Program, ProgramFailed
from bench.relay_only import FORMS
from bench.rows import Bench, Result, Row, Span
from bench.run import ROWS, beside_raw, beside_silent, line, select

ROOT = Path(__file__).parents[2]
SHORT = Span(warm_s=0.1, measured_s=0.4)


@pytest.fixture(scope="session")
def tools() -> build.Tools:
    return build.tools()


@pytest.fixture
def sink(tools: build.Tools) -> Iterator[Program]:
    with Program([tools.sink]) as program:
        yield program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


# --- Whole rows ---


def test_smallest_row_runs_and_loses_nothing() -> None:
    done = run("--rows", "smallest", "--seconds", "1", "--json")
    assert done.returncode == 0, done.stderr
    floor, audiofork = json.loads(done.stdout)
    for result, name in ((floor, "floor"), (audiofork, "audiofork")):
        assert (result["relay"], result["name"]) == (name, "50-ws-mono")
        assert (result["lost"], result["wrong"]) == (0, 0)
        assert result["frames"] > 0
        assert result["cpu_us"] > 0


def test_smallest_row_with_a_frame_left_out_exits_1() -> None:
    done = run("--rows", "smallest", "--seconds", "0.5", "--fault", "skip")
    assert done.returncode == 1, done.stderr
    assert len(done.stdout.splitlines()) > 2


def test_unknown_row_is_named_with_those_that_are() -> None:
    done = run("--rows", "50-ws-mono,51-ws-mono")
    assert done.returncode == 1
    assert "no row 51-ws-mono; there are: all, 50-ws-mono," in done.stderr


@pytest.mark.parametrize(
    ("fault", "lost", "wrong"),
    [("none", 0, 0), ("skip", 1, 0), ("double", 0, 1), ("swap", 0, 1), ("corrupt", 0, 1)],
)
@pytest.mark.parametrize(
    "row", [Row(3), Row(3, mixed=True), Row(3, joined=True)], ids=lambda row: row.name
)
def test_a_fault_of_the_generator_is_counted_behind_the_floor(
    tools: build.Tools, tmp_path: Path, fault: str, lost: int, wrong: int, row: Row
) -> None:
    bench = Bench(tools, tmp_path, SHORT, fault)
    result = bench.run("floor", rows.floor_relay(tools), row)
    has_no_pair = row.joined and fault == "double"  # the last of the leg that has sent one more
    assert (result.lost, result.wrong) == (lost + has_no_pair, wrong)
    assert result.intact == (fault == "none")


@pytest.mark.parametrize("mixed", [False, True], ids=["mono", "mixed"])
def test_audiofork_relays_every_frame_over_tls(
    tools: build.Tools, tmp_path: Path, mixed: bool
) -> None:
    assert tools.has_tls, "apt install libssl-dev"
    bench = Bench(tools, tmp_path, SHORT)
    result = bench.run("audiofork", rows.audiofork_relay(), Row(3, "wss", mixed))
    assert result.intact
    assert result.frames > 0


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_floor_with_voice_writes_to_the_leg_what_the_server_sends(
    tools: build.Tools, tmp_path: Path, scheme: str
) -> None:
    bench = Bench(tools, tmp_path, SHORT)
    tls = ("--tls", bench._server_file) if scheme == "wss" else ()
    frame = struct.pack("=HHIQ", 0xAF10, 0, 0, 0) + bytes(304)
    with Program([tools.sink, *tls, "--echo", "320"]) as server:
        url = f"{scheme}://localhost:{server.hear()['port']}"
        known = ("--ca", bench._ca_file)
        with Program([tools.floor, "--voice", "--url", url, *known]) as floor:
            at = ("127.0.0.1", floor.hear()["port"])
            with socket.create_connection(at, timeout=10) as leg:
                leg.sendall(b"\x01\x00\x10" + bytes(16))
                for _ in range(3):
                    leg.sendall(b"\x10\x01\x40" + frame)
                    message = leg.recv(323, socket.MSG_WAITALL)
                    assert (message[:3], len(message)) == (b"\x10\x01\x40", 323)


def test_two_workers_relay_every_frame(tools: build.Tools, tmp_path: Path) -> None:
    bench = Bench(tools, tmp_path, SHORT)
    result = bench.run("audiofork", rows.audiofork_relay(), Row(4, workers=2))
    assert result.intact
    assert result.frames > 0


@pytest.mark.serial
def test_two_legs_make_one_stream_in_messages_of_any_length(
    tools: build.Tools, tmp_path: Path
) -> None:
    bench = Bench(tools, tmp_path, SHORT)
    for row in (Row(3, joined=True), Row(3, joined=True, frame_ms=100)):
        result = bench.run("audiofork", rows.audiofork_relay(), row)
        assert result.intact
        assert result.frames == row.frame_ms // 20 * result.messages > 0
        assert row.for_floor == Row(3, joined=True)


def test_rows_that_are_not_in_the_table_can_be_named() -> None:
    assert select("1000-wss-mono,10-ws-mono") == [Row(1000, "wss"), Row(10)]
    assert Row(1000, "wss") not in ROWS


@pytest.mark.serial
def test_frames_of_100_ms_make_one_message_of_five_and_are_not_called_late(
    tools: build.Tools, tmp_path: Path
) -> None:
    bench = Bench(tools, tmp_path, SHORT)
    result = bench.run("audiofork", rows.audiofork_relay(), Row(3, frame_ms=100))
    assert result.intact
    assert result.frames == 5 * result.messages > 0
    assert late_column(result) == "-"
    assert late_column(replace(result, row=Row(3), late=7)) == "7"


def late_column(result: Result) -> str:
    return line(result, result).split()[10]


def test_rows_with_workers_and_longer_messages_are_set_beside_the_plain_floor() -> None:
    rows_wanted = select("400-wss-mono-2w,400-ws-mixed-2w,200-ws-mono-F100,200-ws-mono-voice40")
    assert rows_wanted == [
        Row(400, "wss", workers=2),
        Row(400, mixed=True, workers=2),
        Row(200, frame_ms=100),
        Row(200, voice_ms=40),
    ]
    floors = [row.for_floor for row in rows_wanted]
    plain = [Row(400, "wss"), Row(400, mixed=True), Row(200)]
    assert floors == [*plain, Row(200, voice_ms=40)]  # which has to speak, too


def test_relay_that_never_connects_fails_with_what_it_says(
    tools: build.Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CONNECT_TIMEOUT_S", 0.5)
    idle = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); "
    idle += "print('{\"port\": %d}' % s.getsockname()[1], flush=True); "
    idle += "print('no way', file=sys.stderr, flush=True); time.sleep(60)"
    bench = Bench(tools, tmp_path, SHORT)
    with pytest.raises(ProgramFailed, match="idle did not connect: no way"):
        bench.run("idle", lambda setting: Program([sys.executable, "-c", idle]), Row(1))


# --- The sink, fed by hand ---


def frame(number: int, *, leg: int = 7, magic: int = 0xAF5A) -> bytes:
    """Return a mono frame as the generator makes it."""
    stamp = struct.pack("<HHIQ", magic, leg, number, time.monotonic_ns())
    return stamp + bytes((i * 37 + 11) & 0xFF for i in range(16, 320))


async def feed(sink: Program, *messages: bytes) -> Answer:
    """Send messages over one connection; return what the sink has counted."""
    port = sink.hear()["port"]
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        await send_all(connection, messages)
    return sink.ask()


async def send_all(connection: ClientConnection, messages: tuple[bytes, ...]) -> None:
    for message in messages:
        await connection.send(message)
    await (await connection.ping())  # answered once all before it is counted


COUNTS = ("frames", "lost", "duplicates", "out_of_order", "corrupt", "wrong_leg")


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [
        ([0, 1, 2, 3], (4, 0, 0, 0, 0, 0)),
        ([0, 1, 3], (3, 1, 0, 0, 0, 0)),
        ([2, 3], (2, 2, 0, 0, 0, 0)),
        ([0, 1, 1, 2], (4, 0, 1, 0, 0, 0)),
        ([0, 2, 1, 3], (4, 0, 0, 1, 0, 0)),
        ([0, 5, 1, 2, 1, 900], (6, 896, 1, 2, 0, 0)),
    ],
    ids=["good", "gap", "late start", "twice", "swapped", "all of it"],
)
async def test_numbers_are_checked(
    sink: Program, numbers: list[int], counts: tuple[int, ...]
) -> None:
    answer = await feed(sink, *(frame(number) for number in numbers))
    assert tuple(answer[name] for name in COUNTS) == counts
    assert answer["messages"] == len(numbers)


async def test_each_frame_of_a_message_is_checked(sink: Program) -> None:
    together = b"".join(frame(number) for number in range(50))
    answer = await feed(sink, together, frame(50) + frame(52), frame(53))
    assert tuple(answer[name] for name in COUNTS) == (53, 1, 0, 0, 0, 0)
    assert answer["messages"] == 3


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        (frame(1, leg=8), (2, 0, 0, 0, 0, 1)),
        (frame(1, magic=1), (1, 0, 0, 0, 1, 0)),
        (frame(1)[:-1] + b"\x00", (2, 0, 0, 0, 1, 0)),
        (frame(1)[:-2], (1, 0, 0, 0, 1, 0)),
        (frame(1) + b"\x00\x00", (2, 0, 0, 0, 1, 0)),
    ],
    ids=["another leg's", "no stamp", "one byte changed", "too short", "too long"],
)
async def test_what_is_no_good_frame_is_counted(
    sink: Program, message: bytes, counts: tuple[int, ...]
) -> None:
    answer = await feed(sink, frame(0), message)
    assert tuple(answer[name] for name in COUNTS) == counts


async def test_latency_is_measured_from_the_stamp_and_forgotten_when_told(sink: Program) -> None:
    port = sink.hear()["port"]
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        old = frame(0)
        while time.monotonic_ns() < struct.unpack_from("<Q", old, 8)[0] + 25_000_000:
            pass
        await send_all(connection, (old,))
        first = sink.ask()
        assert first["late"] == 1
        # A cell of the histogram is told by its lower edge.
        assert 24_000 < first["p50_us"] <= first["p99_us"] <= first["max_us"]
        second = sink.ask()
        assert (second["frames"], second["late"], second["max_us"]) == (1, 0, 0)


async def test_close_is_answered_with_its_code_and_texts_are_counted(sink: Program) -> None:
    port = sink.hear()["port"]
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        await connection.send("metadata")
        await connection.close(1001, "shutdown")
    assert connection.close_code == 1001
    answer = sink.ask()
    assert (answer["texts"], answer["open"], answer["broken"]) == (1, 0, 0)


async def test_lost_connection_and_oversized_message_are_counted_as_broken(sink: Program) -> None:
    port = sink.hear()["port"]
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        connection.transport.abort()
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(bytes(70_000))
        await connection.wait_closed()
    answer = sink.ask()
    assert (answer["open"], answer["broken"]) == (0, 2)


async def test_unchecked_sink_tells_the_first_message_of_each_path(tools: build.Tools) -> None:
    with Program([tools.sink, "--unchecked"]) as sink:
        port = sink.hear()["port"]
        began_ns = time.monotonic_ns()
        async with connect(f"ws://127.0.0.1:{port}/a?b=1", compression=None) as connection:
            await send_all(connection, (b"x", b"y"))
            first = sink.hear()
            assert first["first"] == "/a?b=1"
            assert began_ns < first["at_ns"] < time.monotonic_ns()
        assert sink.ask()["messages"] == 2


async def test_counted_sink_takes_each_message_of_audio_for_a_frame(tools: build.Tools) -> None:
    spec = replace(SPEC, **FORMS["twilio"]())
    twilio = format_of(spec, 20)
    with Program([tools.sink, "--counted"]) as sink:
        port = sink.hear()["port"]
        async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:
            for text in (*twilio.opening(0, 0), *twilio.audio((bytes(320),), 0)):
                await connection.send(text)
            await send_all(connection, (bytes(160),))
            answer = sink.ask()
    assert (answer["texts"], answer["messages"], answer["frames"]) == (3, 2, 2)
    assert tuple(answer[name] for name in COUNTS[1:]) == (0,) * (len(COUNTS) - 1)


async def test_sink_speaks_tls(tools: build.Tools, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Program([tools.sink, "--tls", tmp_path / "server.pem"]) as sink:
        url = f"wss://localhost:{sink.hear()['port']}/"
        async with connect(url, ssl=context, compression=None) as connection:
            await send_all(connection, tuple(frame(number) for number in range(100)))
            assert tuple(sink.ask()[name] for name in COUNTS) == (100, 0, 0, 0, 0, 0)


# --- Formats ---

SPEC = ForkSpec("3f2a91c0-d1e8-4c52-9a7b-0123456789ab", "bench", "ws://h/", Direction.IN)


def test_each_form_has_a_row_beside_raw_and_is_one_that_a_fork_can_have() -> None:
    measured = {row.form for row in ROWS if replace(row, form="raw") in ROWS}
    assert measured == set(FORMS)
    made = {name: format_of(replace(SPEC, **what()), 20) for name, what in FORMS.items()}
    counted = {row.form for row in ROWS if row.is_counted}
    assert {name for name, one in made.items() if not one.is_verbatim} == counted


def costing(row: Row, cpu_us: float, memory_kib: float) -> Result:
    """Return a result of audiofork that tells what it costs."""
    values = dict.fromkeys(
        "frames messages user_share waited_percent frames_per_wake p50_us p99_us max_us lost wrong"
        " late idle_kib".split(),
        0,
    )
    what: dict[str, Any] = {**values, "cpu_us": cpu_us, "memory_kib": memory_kib}
    return Result("audiofork", row, **what, generator={"late_p99_us": 0})


def test_what_a_voice_costs_is_told_beside_the_silent_row() -> None:
    silent, speaking = costing(Row(200), 16.0, 30.0), costing(Row(200, voice_ms=20), 32.0, 33.0)
    floor = replace(silent, relay="floor", cpu_us=10.0)
    floor_speaking = replace(speaking, relay="floor", cpu_us=19.0)
    told = list(beside_silent([(floor, floor), (silent, floor), (speaking, floor_speaking)]))
    assert len(told) == 1
    assert told[0].startswith("200-ws-mono-voice20 takes 2.00 times")
    assert told[0].endswith("1.90 times.")
    assert list(beside_silent([(speaking, floor_speaking)])) == []


def test_what_a_form_costs_is_told_beside_raw_and_it_has_no_delays() -> None:
    raw, twilio = costing(Row(400), 16.0, 30.0), costing(Row(400, form="twilio"), 20.0, 33.0)
    other = costing(Row(200, form="json"), 20.0, 33.0)
    assert list(beside_raw([raw, twilio, other])) == [
        "400-ws-mono-twilio takes 1.25 times raw, and +3 kB a fork."
    ]
    assert line(twilio, raw).split()[8:11] == ["-", "-", "-"]
    assert line(raw, raw).split()[8:11] == ["0.00", "0.00", "0"]


# --- What it measures with ---


def test_cpu_time_of_children_is_counted() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\n"
    told = "print('{}', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin + told!r}])"
    with Program([sys.executable, "-c", parent]) as program:
        program.hear(60)
        pids = measure.tree(program.pid)
        assert len(pids) == 2
        assert measure.cpu(program.pid).total_s >= 0.29
        assert measure.memory_kib(program.pid) > measure.memory_kib(pids[1]) > 0
        subprocess.run(["kill", str(pids[1])], check=True)


def test_program_that_ends_is_told_with_its_last_words() -> None:
    with (
        Program([sys.executable, "-c", "raise SystemExit('why it ended')"]) as program,
        pytest.raises(ProgramFailed, match="why it ended"),
    ):
        program.hear()


def test_missing_compiler_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.CannotBuild, match="apt install gcc"):
        build.tools()


def test_relay_of_another_tree_is_the_one_that_runs(tools: build.Tools, tmp_path: Path) -> None:
    """What is installed, or lies in the current folder, must not take its place."""
    copytree(ROOT / "audiofork", tmp_path / "audiofork")
    uuids = tmp_path / "uuids"
    uuids.write_text("")
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    setting = rows.Setting(Row(1), "ws://localhost:1", authority, uuids)
    for tree in (tmp_path, ROOT):
        with rows.audiofork_relay(tree)(setting) as relay:
            assert relay.hear(30)["package"] == str(tree / "audiofork")


@pytest.mark.parametrize(
    ("workers", "apart", "ports", "processes"),
    [(1, False, 1, 1), (1, True, 1, 2), (2, False, 2, 3)],
    ids=["one", "one apart", "two"],
)
def test_relay_tells_the_port_of_each_leg_and_leaves_no_process_behind(
    tmp_path: Path, workers: int, apart: bool, ports: int, processes: int
) -> None:
    uuids = tmp_path / "uuids"
    uuids.write_text("".join(f"{uuid4()}\n" for _ in range(4)))
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    setting = rows.Setting(Row(4, workers=workers), "ws://localhost:1", authority, uuids)
    with rows.audiofork_relay(apart=apart)(setting) as relay:
        counts: Counter[int] = Counter(relay.hear(30)["ports"])
        pids = measure.tree(relay.pid)
    assert list(counts.values()) == ports * [4 // ports]
    assert len(pids) == processes
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_check_out_gives_a_revision_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "folder"
    repository.mkdir()
    folder.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", str(repository)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    (repository / "file").write_text("then")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "One"], check=True)
    (repository / "file").write_text("now")
    monkeypatch.setattr(rows, "ROOT", repository)
    ab.check_out("HEAD", folder)
    assert (folder / "file").read_text() == "then"
    with pytest.raises(ab.NoSuchRevision, match="nonsense"):
        ab.check_out("nonsense", folder)


# --- The capacity ---


class Limit:
    """Good up to a number; none is tried twice."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tried: list[int] = []

    def is_good(self, forks: int) -> bool:
        assert forks not in self.tried
        self.tried.append(forks)
        return forks <= self.limit


@pytest.mark.parametrize("limit", [0, 1, 63, 64, 100, 237, 2048, 3999])
def test_search_encloses_the_limit(limit: int) -> None:
    fake = Limit(limit)
    search = capacity.search_by_turns({1: fake.is_good})[1]
    assert search.bad is not None
    assert search.good <= limit < search.bad
    assert search.bad - search.good <= max(1, search.bad // capacity.FINENESS)
    assert len(fake.tried) <= 12


def test_search_ends_at_the_most_forks_if_all_are_good() -> None:
    search = capacity.search_by_turns({1: Limit(10000).is_good})[1]
    assert (search.good, search.bad) == (capacity.MOST_FORKS, None)


def test_searches_take_turns_until_each_is_done() -> None:
    turns: list[int] = []
    limits = {1: Limit(200), 2: Limit(400)}

    def is_good(workers: int, forks: int) -> bool:
        turns.append(workers)
        return limits[workers].is_good(forks)

    tries = {workers: functools.partial(is_good, workers) for workers in limits}
    searches = capacity.search_by_turns(tries)
    assert turns[:6] == [1, 2, 1, 2, 1, 2]
    assert all(search.done for search in searches.values())


def test_search_begins_nothing_when_its_time_is_over() -> None:
    def is_good(forks: int) -> bool:
        time.sleep(max(0, until - time.monotonic()))
        return True

    until = time.monotonic() + 0.2
    assert capacity.search_by_turns({1: is_good}, until)[1].good == capacity.FIRST_FORKS
    assert capacity.search_by_turns({1: is_good}, until)[1].good == 0


@pytest.mark.parametrize(
    ("late", "lost", "kept_up"),
    [(0, 0, True), (1, 0, True), (2, 0, False), (0, 1, False)],
    ids=["good", "one late", "two late", "one lost"],
)
def test_one_frame_in_10000_may_be_late_and_none_lost(late: int, lost: int, kept_up: bool) -> None:
    measured = {"cpu_us": 20.0, "user_share": None, "waited_percent": 0.0, "frames_per_wake": 1.0}
    times = {"p50_us": 100.0, "p99_us": 200.0, "max_us": 300.0}
    memory = {"memory_kib": 30.0, "idle_kib": 30000}
    counts = {"frames": 10000, "messages": 10000, "lost": lost, "wrong": 0, "late": late}
    values: dict[str, Any] = measured | times | memory | counts
    assert capacity.in_time(Result("audiofork", Row(67), **values, generator={})) == kept_up


@pytest.fixture
def sleeper() -> Iterator[Program]:
    told = "import time; print('{}', flush=True); time.sleep(60)"
    with Program([sys.executable, "-c", told]) as program:
        program.hear(60)
        yield program


def cgroup(pid: int) -> Path:
    return quota.hierarchy() / f"audiofork-bench-{os.getpid()}-{pid}"


needs_cgroups = pytest.mark.skipif(
    not os.access(quota.hierarchy(), os.W_OK), reason="takes root, and cgroups"
)


@needs_cgroups
def test_held_process_is_alone_in_a_cgroup_that_is_removed(sleeper: Program) -> None:
    folder = cgroup(sleeper.pid)
    with quota.held([sleeper.pid], 25):
        assert (folder / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
        for name, value in quota.settings(folder, 25).items():
            assert (folder / name).read_text().strip() == value
    assert not folder.exists()
    os.kill(sleeper.pid, 0)


@needs_cgroups
def test_cgroup_of_a_process_that_has_ended_is_removed(sleeper: Program) -> None:
    folder = cgroup(sleeper.pid)
    with quota.held([sleeper.pid], 25):
        subprocess.run(["kill", "-9", str(sleeper.pid)], check=True)
        assert folder.exists()
    assert not folder.exists()


@needs_cgroups
def test_no_cgroup_stays_if_one_process_cannot_be_held(sleeper: Program) -> None:
    gone = 2**22 + 1  # more than a process id can be
    with (
        pytest.raises(quota.NoQuota, match="no CPU quota can be set"),
        quota.held([sleeper.pid, gone], 25),
    ):
        pass
    assert not cgroup(sleeper.pid).exists()
    assert not cgroup(gone).exists()


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        (
            "cpu.cfs_quota_us",
            {
                "cpu.cfs_period_us": "5000",
                "cpu.cfs_quota_us": "1250",
                "cpu.shares": "262144",
            },
        ),
        ("cgroup.subtree_control", {"cpu.max": "1250 5000", "cpu.weight": "10000"}),
    ],
    ids=["v1", "v2"],
)
def test_quota_is_a_share_of_each_period(
    tmp_path: Path, file: str, settings: dict[str, str]
) -> None:
    (tmp_path / file).touch()
    assert quota.settings(tmp_path, 25) == settings


def test_capacity_without_cgroups_says_so_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quota, "V1_ROOT", tmp_path / "none")
    monkeypatch.setattr(quota, "V2_ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["capacity"])
    with pytest.raises(SystemExit) as stopped:
        capacity.main()
    assert stopped.value.code == 2
    assert f"bench: {tmp_path} has no CPU quotas" in capsys.readouterr().err
