"""The command line: what is said, and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import grp
import itertools
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audiofork import __version__
from audiofork.cli import main
from audiofork.doors import control_client as client
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.daemon_client import Listing
from audiofork.errors import AmiUnavailable, DaemonBusy, NoSuchChannel, RequestRefused
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.requests import MuteFork, Request, StartFork, StopFork
from audiofork.forks.view import ForkView
from audiofork.system import hot_path
from tests.commands.views import FORK_ID, VIEW


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the log of this process alone, which the other tests read."""
    monkeypatch.setattr("audiofork.log.set_up", lambda config: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "audiofork.ini"


def test_version_is_told_and_what_relays_frames() -> None:
    result = CliRunner().invoke(main, ["--version"])
    told = f"audiofork, version {__version__}, hot path: {hot_path()}\n"
    assert (result.exit_code, result.output) == (0, told)


def test_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["fly"]).exit_code == 2


def test_run_without_its_configuration_exits_with_3(config: Path) -> None:
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert "No such file" in result.output


def test_configuration_that_one_may_not_read_exits_with_3_and_says_who_may_not(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(config))

    config.touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr("audiofork.config_file.read_file", refuse)
    result = CliRunner().invoke(main, ["list", "-c", str(config)])
    assert result.exit_code == 3
    assert f"audiofork: {config}: Permission denied (for the user " in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--socket"],
        ["migrate"],
        ["migrate", "--asterisk-config"],
        ["setup", "--asterisk=127.0.0.2", "--asterisk-config"],
        ["receive", "--listen=192.0.2.1:1", "--directory"],
        ["receive", "--tls-cert"],
    ],
    ids=" ".join,
)
def test_what_one_may_not_read_is_no_wrong_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    path = tmp_path / "own"
    path.touch() if arguments[-1] in ("--socket", "--tls-cert", "migrate") else path.mkdir()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    result = CliRunner().invoke(main, [*arguments, str(path)])
    assert "is not readable" not in result.output
    assert result.exit_code != 2, result.output


def test_run_with_a_bad_option_names_the_line_and_exits_with_3(config: Path) -> None:
    config.write_text("[asterisk]\nhost = localhost\nprot = 5038\n")
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert f"{config}:3: unknown option prot in [asterisk]" in result.output


def test_run_with_unusable_authorities_exits_with_3(config: Path, tmp_path: Path) -> None:
    config.write_text(f"[websocket]\nca_list_file = {tmp_path}/none.pem\n")
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert result.output == (
        f"audiofork: {config}:2: [websocket] ca_list_file, cert_file: the authorities of "
        f"{tmp_path}/none.pem cannot be used: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        (
            "",
            ":2: [asterisk b]: only a cluster has several Asterisks, and [cluster] servers names ",
        ),
        (
            "[cluster]\nservers = nats://a:1\n",
            ":2: [asterisk b]: only `audiofork control` serves an Asterisk with a name",
        ),
    ],
)
def test_run_with_an_asterisk_with_a_name_exits_with_3(
    config: Path, cluster: str, told: str
) -> None:
    config.write_text(f"[asterisk]\n[asterisk b]\nport = 1\n{cluster}")
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert f"audiofork: {config}{told}" in result.output


def test_run_on_a_taken_port_says_so_and_exits_with_1(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(f"[audiosocket]\nlisten = {address}\n")
        result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 1
    assert result.output == (
        f"audiofork: {config}:2: [audiosocket] listen: cannot listen on {address}: Address already "
        "in use (another program listens there; as root, ss -ltnp shows which)\n"
    )
    assert caplog.messages[0] == f"audiofork {__version__}, hot path: {hot_path()}"


# --- The commands that ask the daemon ------------------------------------------------------------


class FakeDaemon:
    """The daemon's control socket alone, in a thread of its own.

    Attributes:
        requests: What was asked for so far.
        checks: What checks were asked for.
        error: What a request is answered with, if anything.
        views: The forks there are.
        legs_left: How many legs of ended ones Asterisk still has.
        news: What is told of a start to who waits.
        goes: Whether it ends after that; `hangs`: whether nothing comes after that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.checks: list[dict[str, str]] = []
        self.error: Exception | None = None
        self.views: list[ForkView] = []
        self.legs_left = 0
        self.news = [StartNews(StartResult.STREAMING, VIEW, 312)]
        self.goes = self.hangs = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(5)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        answers = ControlAnswers(
            *(self._ask, self._list, lambda: self.legs_left),
            follow=self._follow,
            check=self._check,
        )
        control = ControlSocket(self.path, answers)
        await control.start()
        self._ready.set()
        await self._stop.wait()
        await control.close()

    async def _ask(self, request: Request) -> list[str]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return [FORK_ID]

    async def _list(self) -> list[ForkView]:
        return self.views

    async def _follow(self, _fork_id: str) -> AsyncGenerator[StartNews, None]:
        for one in self.news:
            yield one
        if self.goes:
            self._stop.set()
        if self.goes or self.hangs:
            await asyncio.Event().wait()

    async def _check(self, fields: Mapping[str, str]) -> AsyncGenerator[dict[str, Any]]:
        self.checks.append(dict(fields))
        if self.error is not None:
            raise self.error
        yield {"line": "ok    login: audiofork"}
        yield {"line": "FAIL  audio: none comes"}
        yield {"exit_code": 1}

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself, perhaps just now
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    one = FakeDaemon(tmp_path / "control.sock")
    yield one
    one.stop()


def ask(daemon: FakeDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--socket", str(daemon.path)])


@pytest.mark.parametrize("more", [[], ["--no-wait"]])
def test_start_prints_the_id_alone_on_standard_output(daemon: FakeDaemon, more: list[str]) -> None:
    arguments = ["PJSIP/100-0000002a", "ws://localhost/", "--options", "D(in)M"]
    further = ["--post-process", "ls", "--params", "ticket=47%2011"]
    result = ask(daemon, "start", *arguments, *further, *more)
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    request = daemon.requests[0]
    assert isinstance(request, StartFork)
    assert (request.target.channel, request.target.uniqueid) == ("PJSIP/100-0000002a", "")
    assert (request.url, request.options.direction) == ("ws://localhost/", "in")
    assert (request.post_process, request.params) == ("ls", {"ticket": "47 11"})


START = ["start", "PJSIP/100-0000002a", "ws://localhost/"]
AWAY = dataclasses.replace(
    VIEW,
    state="attaching",
    waits_for="the server",
    last_error="Connection refused",
    last_error_s=1.0,
    away_s=5.0,
    attempt=2,
    next_attempt_s=3.2,
)


def test_start_says_after_how_long_the_fork_streams(daemon: FakeDaemon) -> None:
    result = ask(daemon, *START)
    assert result.stderr == "fork 3f2a91c0 streams, 312 ms after the request\n"


def test_start_says_what_it_waits_for_once_and_anew_when_that_changes(daemon: FakeDaemon) -> None:
    waiting = dataclasses.replace(AWAY, next_attempt_s=None, waits_for="the server and the leg")
    sooner, third = (
        dataclasses.replace(AWAY, next_attempt_s=0.4),
        dataclasses.replace(AWAY, attempt=3),
    )
    views = [waiting, waiting, AWAY, sooner, third]
    daemon.news = [*(StartNews(StartResult.WAITING, view) for view in views), *daemon.news]
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    assert result.stderr.splitlines() == [
        "fork 3f2a91c0 waits for the server and the leg",
        "fork 3f2a91c0 has waited 5 s for the server: Connection refused; attempt 2 in 3 s",
        "fork 3f2a91c0 has waited 5 s for the server: Connection refused; attempt 3 in 3 s",
        "fork 3f2a91c0 streams, 312 ms after the request",
    ]


def test_start_of_a_fork_that_ends_exits_with_1_and_says_why_and_what_to_do(
    daemon: FakeDaemon,
) -> None:
    ended = dataclasses.replace(VIEW, state="ended")
    daemon.news = [
        StartNews(StartResult.ENDED, ended, reason="sink-gone", detail="Connection refused")
    ]
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (1, f"{FORK_ID}\n")
    assert result.stderr == (
        f"audiofork: fork {FORK_ID} of PJSIP/100-0000002a has ended before it streamed: sink-gone "
        "(Connection refused); is the server running, and does the URL name its host and port? "
        "Then start again\n"
    )


def test_start_that_takes_longer_than_the_timeout_exits_with_1_and_leaves_the_fork(
    daemon: FakeDaemon,
) -> None:
    daemon.news = [StartNews(StartResult.WAITING, AWAY)] * 2
    result = ask(daemon, *START, "--timeout", "0.000001")
    assert (result.exit_code, result.stdout) == (1, f"{FORK_ID}\n")
    assert result.stderr == (
        f"audiofork: fork {FORK_ID} does not stream after 1e-06 s: it has waited 5 s for "
        "the server: Connection refused; attempt 2 in 3 s. It keeps trying; to end it: "
        f"audiofork stop {FORK_ID}\n"
    )
    assert [type(request) for request in daemon.requests] == [StartFork]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("hangup", "The call was hung up meanwhile"),
        ("stopped", "Somebody stopped it meanwhile"),
        ("sink-gone", "It is being ended"),
    ],
)
def test_start_of_a_fork_that_is_being_ended_says_so_and_not_how_to_end_it(
    daemon: FakeDaemon, ending: str, words: str
) -> None:
    away = dataclasses.replace(AWAY, waits_for="the server to deliver the rest", ending=ending)
    daemon.news = [StartNews(StartResult.WAITING, away)] * 2
    result = ask(daemon, *START, "--timeout", "0.000001")
    assert result.exit_code == 1
    assert result.stderr == (
        f"audiofork: fork {FORK_ID} does not stream after 1e-06 s: it has waited 5 s for the "
        f"server to deliver the rest: Connection refused; attempt 2 in 3 s. {words}; it continues "
        "for at most 30 s, to deliver what was said until then\n"
    )


def test_start_whose_daemon_goes_exits_with_4_and_says_what_becomes_of_the_fork(
    daemon: FakeDaemon,
) -> None:
    daemon.news, daemon.goes = [StartNews(StartResult.WAITING, AWAY)], True
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (4, f"{FORK_ID}\n")
    assert f"the daemon at {daemon.path} has closed the connection, before fork" in result.stderr
    assert "With [daemon] on_stop = keep it continues when the daemon is back" in result.stderr


def test_start_by_a_daemon_that_does_not_tell_says_so_and_exits_with_0(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was started before the update of the command."""
    monkeypatch.setattr("audiofork.doors.control_answers.flag_of", lambda fields, name: False)
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    assert (
        "fork 3f2a91c0 was granted, but the daemon does not report when it streams" in result.stderr
    )


def test_start_without_a_wait_asks_for_no_news(daemon: FakeDaemon) -> None:
    daemon.news = []
    result = ask(daemon, *START, "--no-wait")
    assert (result.exit_code, result.output) == (0, f"{FORK_ID}\n")


def test_ctrl_c_leaves_a_fork_that_was_started_and_exits_with_130(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiofork.commands.fork_commands.wait", interrupt)
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (130, f"{FORK_ID}\n")
    left = f"audiofork: fork {FORK_ID} is left as it is; to end it: audiofork stop {FORK_ID}\n"
    assert result.stderr == left
    assert [type(request) for request in daemon.requests] == [StartFork]


def test_ctrl_c_before_the_daemon_has_answered_says_how_to_find_out(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(daemon: client.Client, *_: object, **_wishes: str) -> None:
        daemon.forks()
        raise KeyboardInterrupt

    monkeypatch.setattr(client.Client, "start_and_follow", interrupt)
    result = ask(daemon, *START)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "audiofork list shows whether it started" in result.stderr


@pytest.mark.parametrize("ending", ["\n", "", "\r\n", " \nws://second/\n"])
def test_start_reads_the_url_from_standard_input_in_place_of_a_dash(
    daemon: FakeDaemon, ending: str
) -> None:
    url = "ws://localhost/?token=hunter2"
    arguments = ["start", "PJSIP/100-0000002a", "-", "--socket", str(daemon.path)]
    result = CliRunner().invoke(main, arguments, input=url + ending)
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    request = daemon.requests[0]
    assert isinstance(request, StartFork)
    assert request.url == url


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("ws://localhost/", "--options", "-"), "A(hunter2)\n"),
        (("-", "--options", "-"), "ws://localhost/\nA(hunter2)"),
        (("--options", "-", "-"), "ws://localhost/\nA(hunter2)\n"),
    ],
)
def test_start_reads_the_options_from_standard_input_in_place_of_a_dash(
    daemon: FakeDaemon, arguments: tuple[str, ...], lines: str
) -> None:
    words = ["start", "1.1", *arguments, "--socket", str(daemon.path)]
    result = CliRunner().invoke(main, words, input=lines)
    assert result.exit_code == 0, result.output
    request = daemon.requests[0]
    assert isinstance(request, StartFork)
    assert (request.url, request.options_text) == ("ws://localhost/", "A(hunter2)")


@pytest.mark.parametrize("line", ["", "\n"])
def test_start_without_the_url_that_a_dash_promises_is_a_usage_error(
    daemon: FakeDaemon, line: str
) -> None:
    arguments = ["start", "PJSIP/100-0000002a", "-", "--socket", str(daemon.path)]
    result = CliRunner().invoke(main, arguments, input=line)
    assert result.exit_code == 2
    assert "standard input has no line for it" in result.output
    assert daemon.requests == []


def test_help_of_start_says_how_a_token_stays_out_of_the_list_of_processes() -> None:
    result = CliRunner().invoke(main, ["start", "--help"])
    assert "If URL is -, it is read from standard input" in result.output


def test_channel_without_a_slash_is_a_uniqueid(daemon: FakeDaemon) -> None:
    ask(daemon, "start", "1700000000.42", "ws://localhost/")
    ask(daemon, "stop", "1700000000.42")
    targets = [request.target for request in daemon.requests]
    assert [(target.channel, target.uniqueid) for target in targets] == [("", "1700000000.42")] * 2


def test_stop_of_a_uuid_is_of_one_fork_and_of_a_name_of_a_channel(daemon: FakeDaemon) -> None:
    assert ask(daemon, "stop", FORK_ID.upper()).output == f"{FORK_ID}\n"
    assert ask(daemon, "stop", "PJSIP/100-0000002a").output == f"{FORK_ID}\n"
    one, all_of_channel = daemon.requests
    assert isinstance(one, StopFork)
    assert isinstance(all_of_channel, StopFork)
    assert (one.fork_id, one.target.channel) == (FORK_ID, "")
    assert (all_of_channel.fork_id, all_of_channel.target.channel) == ("", "PJSIP/100-0000002a")


@pytest.mark.parametrize(
    ("arguments", "mute_in", "mute_out"),
    [
        (["on"], True, True),
        (["off", "--direction", "both"], False, False),
        (["on", "--direction", "read"], True, None),
        (["off", "--direction", "write"], None, False),
    ],
)
def test_mute_of_a_direction_leaves_the_other(
    daemon: FakeDaemon, arguments: list[str], mute_in: bool | None, mute_out: bool | None
) -> None:
    assert ask(daemon, "mute", FORK_ID, *arguments).exit_code == 0
    request = daemon.requests[0]
    assert isinstance(request, MuteFork)
    assert (request.fork_id, request.mute_in, request.mute_out) == (FORK_ID, mute_in, mute_out)


def test_list_is_a_table_with_urls_without_their_query(daemon: FakeDaemon) -> None:
    daemon.views = [VIEW]
    result = ask(daemon, "list")
    assert result.exit_code == 0
    heading, row = result.output.splitlines()
    assert heading.split() == [
        *("ID", "CHANNEL", "DIRECTION", "TAP", "RATE", "STATE", "MUTED", "AGE"),
        *("IN", "SENT", "DROPPED", "URL", "NEXT", "LAST", "ERROR"),
    ]
    assert row.split() == [
        *(FORK_ID, "PJSIP/100-0000002a", "stereo", "snoop", "16000", "streaming", "-", "1:02:03"),
        *("1000", "990", "0", "wss://example.org/live?...", "-", "-"),
    ]
    assert [row.index("PJSIP"), row.index("stereo")] == [
        heading.index("CHANNEL"),
        heading.index("DIRECTION"),
    ]


def test_list_has_dashes_for_a_tap_that_is_not_chosen_yet(daemon: FakeDaemon) -> None:
    daemon.views = [dataclasses.replace(VIEW, tap="", sample_rate=0)]
    assert ask(daemon, "list").output.splitlines()[1].split()[3:5] == ["-", "-"]


def test_list_of_nothing_says_so(daemon: FakeDaemon) -> None:
    assert ask(daemon, "list").output == "no forks\n"
    assert ask(daemon, "list", "--json").output == "[]\n"


LEFT = "2 legs of ended forks stay until their channels have media or end"


def test_list_tells_the_legs_that_are_left_below_the_forks(daemon: FakeDaemon) -> None:
    daemon.legs_left = 2
    assert ask(daemon, "list").output == f"no forks\n{LEFT}\n"
    daemon.views = [VIEW]
    heading, row, last = ask(daemon, "list").output.splitlines()
    assert (heading.split()[0], row.split()[0], last) == ("ID", FORK_ID, LEFT)


def test_list_as_json_has_the_forks_alone(daemon: FakeDaemon) -> None:
    daemon.legs_left = 2
    assert ask(daemon, "list", "--json").output == "[]\n"


def test_listing_of_a_daemon_that_tells_no_legs_has_none(daemon: FakeDaemon) -> None:
    """One that was started before the update of the command."""
    with client.Client(daemon.path) as one:
        assert one.listing() == Listing([])
        daemon.legs_left = 2
        assert one.listing() == Listing([], 2)
        assert one.forks() == []


def test_list_as_json_has_every_field(daemon: FakeDaemon) -> None:
    daemon.views = [VIEW]
    forks = json.loads(ask(daemon, "list", "--json").output)
    assert forks[0]["url"] == "wss://example.org/live?token=secret"
    assert forks[0]["uniqueid"] == "1700000000.42"
    assert forks[0]["age_s"] == 3723.9
    assert (forks[0]["tap"], forks[0]["sample_rate"]) == ("snoop", 16000)


def test_list_in_a_pipe_has_a_line_for_each_fork_however_long(daemon: FakeDaemon) -> None:
    daemon.views = [VIEW] * 3
    for arguments in ([], ["--wide"]):
        assert len(ask(daemon, "list", *arguments).output.splitlines()) == 4


def test_watch_shows_the_list_until_ctrl_c(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.views = [VIEW]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        daemon.views = []
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = ask(daemon, "list", "--watch")
    assert result.exit_code == 0
    assert naps == [1.0] * 3
    assert result.output.count("1 forks (1 streaming)\nframes a second: 0 in, ") == 1
    assert result.output.count("no forks") == 2


def test_watch_goes_on_when_the_daemon_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = [FakeDaemon(tmp_path / "control.sock")]
    naps = itertools.count()

    def sleep(_seconds: float) -> None:
        match next(naps):
            case 1:
                daemons[0].stop()
            case 4:
                daemons.append(FakeDaemon(daemons[0].path))
            case 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    try:
        result = ask(daemons[0], "list", "--watch")
    finally:
        for daemon in daemons:
            daemon.stop()
    assert result.exit_code == 0
    assert result.stdout.count("no forks") == 4
    closed, away, back = result.stderr.splitlines()
    again = "; trying again each second"
    assert closed.startswith(f"the daemon at {daemons[0].path} ")
    assert closed.endswith(again)
    assert away.startswith(f"no daemon at {daemons[0].path}: No such file or directory; ")
    assert back == "the daemon is back"


class Terminal:
    """A terminal of 80 columns and 24 lines, with a command in it.

    Attributes:
        seen: All that it was sent.
    """

    def __init__(self, *arguments: str) -> None:
        self._ours, its = pty.openpty()
        termios.tcsetwinsize(its, (24, 80))
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "audiofork", *arguments],
            **dict.fromkeys(("stdin", "stdout", "stderr"), its),  # type: ignore[call-overload]
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        os.close(its)
        self.seen = ""

    def until(self, text: str, times: int = 1) -> None:
        """Read until it was sent a text so many times; its end is a failure."""
        while self.seen.count(text) < times:
            assert self._read(), f"it has ended: {self.seen!r}"

    def exit_code(self) -> int:
        """Read to the end; return the exit code."""
        while self._read():
            pass
        return self.process.wait(10)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 20)
        assert ready, f"it hangs: {self.seen!r}"
        try:
            piece = os.read(self._ours, 65_536)
        except OSError:  # EIO: nobody has the other end any more
            piece = b""
        self.seen += piece.decode()
        return bool(piece)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def test_list_in_a_terminal_of_80_columns_wraps_no_line(daemon: FakeDaemon) -> None:
    daemon.views = [VIEW, AWAY]
    with contextlib.closing(Terminal("list", "--socket", str(daemon.path))) as terminal:
        assert terminal.exit_code() == 0
    lines = terminal.seen.split("\r\n")
    assert max(map(len, lines)) <= 80
    assert "has waited 5 s for the server: Connection refused; attempt 2 in 3 s" in lines[-2]


@pytest.mark.slow
@pytest.mark.parametrize("ends_by", [signal.SIGINT, signal.SIGTERM])
def test_watch_redraws_a_terminal_in_place_and_leaves_it_as_it_was(
    daemon: FakeDaemon, ends_by: signal.Signals
) -> None:
    daemon.views = [VIEW]
    arguments = ("list", "--watch", "--socket", str(daemon.path))
    with contextlib.closing(Terminal(*arguments)) as terminal:
        terminal.until("\x1b[J", times=2)
        terminal.process.send_signal(ends_by)
        assert terminal.exit_code() == 0
    assert terminal.seen.startswith("\x1b[?1049h")
    assert terminal.seen.endswith("\x1b[?1049l")
    assert terminal.seen.count("\x1b[H") == terminal.seen.count("\x1b[J")


def test_start_in_a_terminal_counts_down_in_one_line_that_is_gone_at_the_end(
    daemon: FakeDaemon,
) -> None:
    sooner = dataclasses.replace(AWAY, next_attempt_s=2.2)
    news = (StartNews(StartResult.WAITING, view) for view in (AWAY, sooner))
    daemon.news = [*news, *daemon.news]
    with contextlib.closing(Terminal(*START, "--socket", str(daemon.path))) as terminal:
        assert terminal.exit_code() == 0
    first, *shown, last = terminal.seen.split("\r\x1b[K")
    assert first == f"{FORK_ID}\r\n"
    away = "fork 3f2a91c0 has waited 5 s for the server: Connection refused; attempt 2 in"
    assert shown == [f"{away} 3 s"[:79], f"{away} 2 s"[:79]]
    assert last == "fork 3f2a91c0 streams, 312 ms after the request\r\n"


def test_ctrl_c_in_a_terminal_leaves_a_fork_that_waits_and_says_how_to_end_it(
    daemon: FakeDaemon,
) -> None:
    daemon.news, daemon.hangs = [StartNews(StartResult.WAITING, AWAY)], True
    with contextlib.closing(Terminal(*START, "--socket", str(daemon.path))) as terminal:
        terminal.until("Connection refused")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.exit_code() == 130
    assert f"to end it: audiofork stop {FORK_ID}" in terminal.seen
    assert [type(request) for request in daemon.requests] == [StartFork]


def test_watch_without_a_daemon_at_the_start_exits_with_4(daemon: FakeDaemon) -> None:
    daemon.stop()
    result = ask(daemon, "list", "--watch")
    assert result.exit_code == 4
    assert f"audiofork: no daemon at {daemon.path}" in result.output


def test_channel_that_is_not_there_is_named_and_exits_with_1(daemon: FakeDaemon) -> None:
    daemon.error = NoSuchChannel()
    result = ask(daemon, "start", "PJSIP/none", "ws://localhost/")
    assert (result.exit_code, result.output) == (
        1,
        'audiofork: No such channel: PJSIP/none; asterisk -rx "core show channels concise" lists '
        "the full names\n",
    )


@pytest.mark.parametrize("arguments", [["stop"], ["mute", "on"]], ids=["stop", "mute"])
@pytest.mark.parametrize("target", [FORK_ID, "PJSIP/1-1", "1700000000.42"])
def test_target_without_a_fork_is_named(
    daemon: FakeDaemon, arguments: list[str], target: str
) -> None:
    daemon.error = RequestRefused("No such fork")
    verb, *rest = arguments
    result = ask(daemon, verb, target, *rest)
    assert (result.exit_code, result.output) == (
        1,
        f"audiofork: No such fork: {target}; audiofork list shows all forks\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--options", "D(up)"], "Options: D takes in, out, both or stereo, not 'up'"),
        (["--options", "S" * 65_536], "the request is longer than 65536 bytes"),
        (["--post-process", "a\nb"], "PostProcess: control characters are not allowed"),
    ],
)
def test_bad_argument_is_refused_in_the_daemons_words(
    daemon: FakeDaemon, arguments: list[str], words: str
) -> None:
    result = ask(daemon, "start", "PJSIP/1-1", "ws://localhost/", *arguments)
    assert (result.exit_code, result.output) == (1, f"audiofork: {words}\n")


def test_asterisk_out_of_the_daemons_reach_exits_with_4(daemon: FakeDaemon) -> None:
    daemon.error = AmiUnavailable("not connected to Asterisk yet")
    result = ask(daemon, "stop", FORK_ID)
    assert result.exit_code == 4
    assert "Asterisk cannot be asked: not connected to Asterisk yet" in result.output


def test_bug_of_the_daemon_exits_with_1(daemon: FakeDaemon) -> None:
    daemon.error = ZeroDivisionError()
    assert ask(daemon, "stop", FORK_ID).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "PJSIP/1-1"],
        ["stop"],
        ["mute", "PJSIP/1-1"],
        ["mute", "PJSIP/1-1", "loud"],
        ["mute", "PJSIP/1-1", "on", "--direction", "up"],
        ["list", "PJSIP/1-1"],
    ],
)
def test_arguments_that_make_no_sense_are_a_usage_error(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize("given", ["nan", "inf", "1e999", "5m", ""])
@pytest.mark.parametrize(
    "arguments",
    [["start", "PJSIP/1-1", "ws://h/", "--timeout"], ["receive", "--quota"]],
    ids=["start", "receive"],
)
def test_what_is_no_amount_is_a_usage_error_that_says_so(arguments: list[str], given: str) -> None:
    result = CliRunner().invoke(main, [*arguments, given])
    assert result.exit_code == 2
    assert f"{arguments[-1]}': expected a number, got {given!r}" in result.output


def test_no_daemon_exits_with_4_and_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["list", "--socket", str(tmp_path / "none.sock")])
    assert result.exit_code == 4
    assert "none.sock: No such file or directory; is it running (systemctl status" in result.output


def test_socket_of_a_dead_daemon_exits_with_4(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    result = CliRunner().invoke(main, ["list", "--socket", str(tmp_path / "dead.sock")])
    assert result.exit_code == 4
    assert "Connection refused (no program listens there); is it running" in result.output


def test_socket_whose_path_is_too_long_is_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    result = CliRunner().invoke(main, ["list", "--socket", str(path)])
    assert result.exit_code == 4
    assert result.output == (
        f"audiofork: no daemon at {path}: the path of a socket has no more than 107 bytes; choose "
        "a shorter one in [control] socket\n"
    )


def test_socket_that_one_may_not_use_names_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Locked)
    result = CliRunner().invoke(main, ["list", "--socket", "/run/audiofork/control.sock"])
    assert result.exit_code == 4
    assert "; run this as root, or as a member of the socket's group" in result.output


def test_socket_of_another_user_names_its_group_and_how_to_join_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    path = tmp_path / "control.sock"
    path.touch()
    group = grp.getgrgid(path.stat().st_gid).gr_name
    monkeypatch.setattr(socket, "socket", Locked)
    result = CliRunner().invoke(main, ["list", "--socket", str(path)])
    assert result.exit_code == 4
    assert f"a member of the group {group} (usermod -aG {group} USER, " in result.output


def answer(listening: socket.socket, line: bytes) -> None:
    """Answer the first line of the first connection with this one."""
    with listening.accept()[0] as connection:
        connection.recv(1000)
        connection.sendall(line)


@pytest.mark.parametrize("line", [b"hello\n", b"[1]\n", b"{}\n", b"7\n"])
def test_socket_of_another_program_is_said_to_be_that(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        answering = threading.Thread(target=answer, args=(other, line))
        answering.start()
        result = CliRunner().invoke(main, ["stop", "PJSIP/1", "--socket", str(path)])
        answering.join()
    assert result.exit_code == 4
    assert f"what answers at {path} is not the daemon of audiofork" in result.output


def test_daemon_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stuck:
        stuck.bind(str(tmp_path / "stuck.sock"))
        stuck.listen()
        result = CliRunner().invoke(main, ["list", "--socket", str(tmp_path / "stuck.sock")])
    assert result.exit_code == 4
    assert "no answer of the daemon" in result.output


def test_socket_is_found_by_the_configuration_though_its_secret_cannot_be_read(
    daemon: FakeDaemon, config: Path
) -> None:
    config.write_text(f"[asterisk]\nsecret_file = /none\n[control]\nsocket = {daemon.path}\n")
    result = CliRunner().invoke(main, ["list", "-c", str(config)])
    assert (result.exit_code, result.output) == (0, "no forks\n")


def test_configuration_without_a_socket_exits_with_3(config: Path) -> None:
    config.write_text("[control]\nsocket =\n")
    result = CliRunner().invoke(main, ["list", "-c", str(config)])
    assert result.exit_code == 3
    assert "[control] socket is empty" in result.output


def test_list_without_its_configuration_exits_with_3(config: Path) -> None:
    result = CliRunner().invoke(main, ["list", "-c", str(config)])
    assert result.exit_code == 3
    assert "No such file" in result.output


def test_check_without_its_configuration_exits_with_3(config: Path) -> None:
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.exit_code == 3
    assert "No such file" in result.output


def test_check_with_unusable_authorities_exits_with_3(config: Path, tmp_path: Path) -> None:
    config.write_text(f"[websocket]\nca_list_file = {tmp_path}/none.pem\n")
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.exit_code == 3
    assert "none.pem" in result.output


def test_check_without_an_asterisk_exits_with_4(config: Path) -> None:
    config.write_text("[asterisk]\nport = 9\nsecret = x\n[control]\nsocket =\n")
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.exit_code == 4
    assert f"ok    configuration: {config}" in result.output
    assert "FAIL  Asterisk at 127.0.0.1:9: " in result.output


def test_check_exits_with_1_after_a_fault(config: Path) -> None:
    config.write_text("[control]\nsocket =\n")
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.exit_code == 1
    assert "FAIL  login: no secret is configured" in result.output


# --- What a newcomer sees ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *main.commands])
def test_help_names_the_exit_codes(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"], terminal_width=200)
    assert result.exit_code == 0
    for code in ("0 done", "1 failed", "2 the command", "3 the configuration", "4 the daemon"):
        assert code in result.output


def test_help_tells_of_each_command_in_a_whole_line() -> None:
    listing = CliRunner().invoke(main, ["--help"]).output.partition("Commands:")[2]
    assert len(listing.partition("Exit codes")[0].strip().splitlines()) == len(main.commands)
    assert "..." not in listing


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "start", "stop", "mute", "cluster", "drain"])
def test_command_that_only_asks_does_not_import_what_it_asks(command: str) -> None:
    program = f"""
import sys
from click.testing import CliRunner
from audiofork.cli import main
assert CliRunner().invoke(main, ["{command}", "--help"]).exit_code == 0
print(*(one for one in sys.modules if one.startswith("audiofork.")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    imported = done.stdout.decode().split()
    assert "audiofork.commands.asking" in imported
    rooms = ("audiofork.relay.", "audiofork.forks.", "audiofork.asterisk.")
    assert [one for one in imported if one.startswith((*rooms, "audiofork.daemon"))] == []


def test_command_that_is_nearly_one_gets_the_nearest() -> None:
    result = CliRunner().invoke(main, ["strat"])
    assert result.exit_code == 2
    assert "Did you mean 'start'?" in result.output


@pytest.mark.parametrize("command", ["run", "check"])
def test_variable_of_no_option_is_an_error_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "a.ini").touch()
    monkeypatch.setenv("AUDIOFORK_LOG_LEVL", "hunter2")
    result = CliRunner().invoke(main, [command, "-c", str(tmp_path / "a.ini")])
    assert result.exit_code == 3
    assert result.output.endswith(
        "audiofork: the environment variable AUDIOFORK_LOG_LEVL matches no option; did you mean "
        "AUDIOFORK_LOG_LEVEL?\n"
    )


@pytest.mark.parametrize("command", [["run"], ["check"], ["sweep"], ["list"], ["stop", "x/1"]])
def test_configuration_that_is_missing_says_what_makes_one(
    tmp_path: Path, command: list[str]
) -> None:
    result = CliRunner().invoke(main, [*command, "-c", str(tmp_path / "none.ini")])
    assert result.exit_code == 3
    assert result.output.endswith(
        f"audiofork: {tmp_path}/none.ini: No such file or directory; `audiofork setup` makes one, "
        "-c names another\n"
    )


# --- A check by the daemon, and which commands need what -----------------------------------------


def checkable(daemon: FakeDaemon, config: Path) -> Path:
    """Write a configuration whose secrets only systemd's service has; return its path."""
    folder = "${CREDENTIALS_DIRECTORY}"
    config.write_text(
        f"[asterisk]\nport = 9\nsecret_file = {folder}/ami-secret\n"
        f"[ari]\nurl = http://127.0.0.1:9/ari\npassword_file = {folder}/ami-secret\n"
        f"[control]\nsocket = {daemon.path}\n"
    )
    return config


def test_check_is_done_by_the_daemon_that_has_the_secrets(daemon: FakeDaemon, config: Path) -> None:
    result = CliRunner().invoke(main, ["check", "-c", str(checkable(daemon, config))])
    assert result.output == "ok    login: audiofork\nFAIL  audio: none comes\n"
    assert result.exit_code == 1
    assert daemon.checks == [{"command": "CheckAudioFork", "config": str(config)}]


def test_taps_are_asked_of_the_daemon(daemon: FakeDaemon, config: Path) -> None:
    CliRunner().invoke(main, ["check", "--taps", "-c", str(checkable(daemon, config))])
    assert [check.get("taps") for check in daemon.checks] == ["yes"]


def test_check_that_the_daemon_refuses_is_done_from_here_and_says_why(
    daemon: FakeDaemon, config: Path
) -> None:
    daemon.error = RequestRefused("it runs with another configuration, /etc/other.ini")
    config.write_text(f"[asterisk]\nport = 9\nsecret = x\n[control]\nsocket = {daemon.path}\n")
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    first, second, *_ = result.output.splitlines()
    assert first == (
        "skip  check: from here, not by a daemon: the daemon refuses: it runs with another "
        "configuration, /etc/other.ini"
    )
    assert second == f"ok    configuration: {config}"
    assert "FAIL  Asterisk at 127.0.0.1:9: " in result.output
    assert result.exit_code == 4


def test_check_from_here_does_not_ask_the_daemon_for_one(daemon: FakeDaemon, config: Path) -> None:
    config.write_text(f"[asterisk]\nport = 9\nsecret = x\n[control]\nsocket = {daemon.path}\n")
    result = CliRunner().invoke(main, ["check", "--here", "-c", str(config)])
    assert result.output.startswith(f"ok    configuration: {config}\n")
    assert daemon.checks == []


def test_check_without_a_daemon_is_done_from_here_and_says_so(config: Path, tmp_path: Path) -> None:
    config.write_text(f"[asterisk]\nport = 9\n[control]\nsocket = {tmp_path}/none.sock\n")
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.output.startswith("skip  check: from here, not by a daemon\n")
    assert f"skip  daemon: no daemon at {tmp_path}/none.sock" in result.output


def test_check_while_another_runs_says_so_and_exits_with_1(
    daemon: FakeDaemon, config: Path
) -> None:
    daemon.error = DaemonBusy("another check runs; ask again in a few seconds")
    result = CliRunner().invoke(main, ["check", "-c", str(checkable(daemon, config))])
    assert result.output == "audiofork: another check runs; ask again in a few seconds\n"
    assert result.exit_code == 1


COMMANDS = [
    ["list"],
    ["start", "PJSIP/1-1", "ws://localhost/"],
    ["stop", FORK_ID],
    ["mute", FORK_ID, "on"],
    ["check"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=[one[0] for one in COMMANDS])
def test_commands_that_ask_the_daemon_need_no_secret(
    daemon: FakeDaemon, config: Path, command: list[str]
) -> None:
    result = CliRunner().invoke(main, [*command, "-c", str(checkable(daemon, config))])
    assert "ami-secret" not in result.output
    assert result.exit_code == (1 if command == ["check"] else 0)


@pytest.mark.parametrize("command", COMMANDS, ids=[one[0] for one in COMMANDS])
@pytest.mark.parametrize(
    "fault", ["[websocket]\nretrys = 1\n", "[relay]\nworkers = -1\n", "[ra]\n"]
)
def test_fault_elsewhere_keeps_nobody_from_asking_a_daemon_that_runs(
    daemon: FakeDaemon, config: Path, command: list[str], fault: str
) -> None:
    path = checkable(daemon, config)
    path.write_text(path.read_text() + fault)
    result = CliRunner().invoke(main, [*command, "-c", str(path)])
    assert result.exit_code == (1 if command == ["check"] else 0)


@pytest.mark.parametrize("command", COMMANDS, ids=[one[0] for one in COMMANDS])
@pytest.mark.parametrize(
    ("control", "told"),
    [("sokcet = /x\n", "sokcet"), ("sock\n", ""), ("socket = /a\nsocket = /b\n", "twice")],
)
def test_fault_where_the_socket_is_named_exits_with_3(
    config: Path, command: list[str], control: str, told: str
) -> None:
    config.write_text(f"[control]\n{control}")
    result = CliRunner().invoke(main, [*command, "-c", str(config)])
    assert result.exit_code == 3
    assert f"{config}:" in result.output
    assert told in result.output


def test_sweep_needs_the_secret_of_ami_alone(config: Path, tmp_path: Path) -> None:
    """A daemon that is dead can give it to nobody."""
    text = "[ari]\nurl = http://127.0.0.1:9/ari\npassword_file = /none\n"
    text += f"[control]\nsocket = {tmp_path}/none.sock\n[asterisk]\nport = 9\n"
    config.write_text(text + "secret = x\n")
    assert CliRunner().invoke(main, ["sweep", "-c", str(config)]).exit_code == 4
    config.write_text(text + "secret_file = /none\n")
    assert CliRunner().invoke(main, ["sweep", "-c", str(config)]).exit_code == 3


def test_check_from_here_checks_the_rest_where_a_secret_cannot_be_read(
    config: Path, tmp_path: Path
) -> None:
    config.write_text(
        "[asterisk]\nport = 9\nsecret = x\nsecret_file = ${CREDENTIALS_DIRECTORY}/s\n"
        "[ari]\nurl = http://127.0.0.1:9/ari\npassword_file = ${CREDENTIALS_DIRECTORY}/s\n"
        f"[control]\nsocket = {tmp_path}/none.sock\n"
    )
    result = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert result.exit_code == 1
    assert f"FAIL  login: {config}:4: [asterisk] secret_file: " in result.output
    assert f"FAIL  ARI: {config}:7: [ari] password_file: " in result.output
    assert "ok    open files: " in result.output


@pytest.mark.parametrize("name", ["pbx.1", "a b", "*", "", "x" * 64])
def test_buckets_of_what_cannot_be_an_asterisk_s_name_is_a_usage_error(name: str) -> None:
    result = CliRunner().invoke(main, ["buckets", "pbx", name])
    assert result.exit_code == 2
    assert "63 at most" in result.output
