"""What the commands ask of a controller of a cluster, and what they make of its answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audiofork.cli import main
from audiofork.commands.cluster_command import table
from audiofork.doors.control_answers import Answers
from audiofork.doors.control_socket import ControlSocket
from audiofork.forks.requests import Origin
from tests.commands.test_listing import fork
from tests.commands.views import FORK_ID

HOST = {
    **{"name": "r1", "zone": "north", "address": "192.0.2.1:9092", "forks": 12, "capacity": 500},
    **{"cpu": 0.256, "version": "1.0", "state": "open"},
}
CONTROLLER = {
    **{"name": "c1", "asterisk": "pbx", "state": "leads", "since_s": 3723.4, "epoch": 7},
    **{"server": "192.0.2.9:4222", "version": "1.0"},
}
CLUSTER: dict[str, Any] = {
    **{"ok": True, "name": "c1", "asterisk": "pbx", "server": "192.0.2.9:4222"},
    **{"hosts": [HOST], "controllers": [CONTROLLER]},
}


class FakeController:
    """The control socket of a controller, in a thread of its own.

    Attributes:
        asked: What it was asked.
        answer: What it answers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, str]] = []
        self.answer: dict[str, Any] = {"ok": True, "forks": [FORK_ID]}
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
        control = ControlSocket(self.path, self._answers)
        await control.start()
        self._ready.set()
        await self._stop.wait()
        await control.close()

    async def _answers(self, line: bytes, origin: Origin) -> Answers:
        self.asked.append(json.loads(line))
        yield self.answer

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[FakeController]:
    one = FakeController(tmp_path / "control.sock")
    yield one
    one.stop()


def ask(controller: FakeController, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--socket", str(controller.path)])


# --- Another Asterisk ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["start", "PJSIP/1-1", "ws://h/", "--no-wait"],
        ["connect", "PJSIP/1-1", "ws://h/", "--no-wait"],
        ["stop", FORK_ID],
        ["mute", FORK_ID, "on"],
    ],
    ids=lambda command: command[0],
)
def test_request_for_another_asterisk_names_it(
    controller: FakeController, command: list[str]
) -> None:
    result = ask(controller, *command, "--asterisk", "pbx-b")
    assert (result.exit_code, result.output) == (0, f"{FORK_ID}\n")
    ask(controller, *command)
    assert [fields.get("Asterisk") for fields in controller.asked] == ["pbx-b", None]


def test_list_of_another_asterisk_names_it(controller: FakeController) -> None:
    controller.answer = {"ok": True, "forks": []}
    assert ask(controller, "list", "--asterisk", "pbx-b").output == "no forks\n"
    assert controller.asked == [{"Command": "ListAudioForks", "Asterisk": "pbx-b"}]


def test_controller_that_finds_nobody_who_leads_is_told_and_exits_with_4(
    controller: FakeController,
) -> None:
    error = "no controller of pbx-b leads at the moment"
    controller.answer = {"ok": False, "code": "cluster", "error": error}
    result = ask(controller, "stop", FORK_ID, "--asterisk", "pbx-b")
    assert (result.exit_code, result.output) == (4, f"audiofork: {error}\n")


@pytest.mark.parametrize("option", [["--asterisk", "pbx-b"], ["--all"]])
def test_other_controllers_are_not_asked_over_http(option: list[str]) -> None:
    result = CliRunner().invoke(main, ["list", *option, "--url", "http://localhost:1"])
    assert result.exit_code == 2
    assert "through the control socket, not with --url" in result.output


# --- All of them ---------------------------------------------------------------------------------


def test_list_of_all_shows_the_asterisk_and_the_relay_host_of_each_fork(
    controller: FakeController,
) -> None:
    forks = [{"asterisk": name, **fork(relay_host="r1")} for name in ("pbx-a", "pbx-b")]
    controller.answer = {"ok": True, "forks": forks, "legs_left": 0, "missing": {}}
    result = ask(controller, "list", "--all")
    assert result.exit_code == 0
    heading, first, second = result.output.splitlines()
    assert heading.split()[:4] == ["ID", "CHANNEL", "ASTERISK", "RELAY"]
    assert first.split()[2:4] == ["pbx-a", "r1"]
    assert second.split()[2:4] == ["pbx-b", "r1"]
    assert json.loads(ask(controller, "list", "--all", "--json").output) == forks
    assert controller.asked[0] == {"Command": "ListAudioForks", "Asterisk": "*"}


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_list_that_lacks_an_asterisk_says_so_and_exits_with_1(
    controller: FakeController, more: list[str]
) -> None:
    missing = {"pbx-b": "no controller of pbx-b leads", "pbx-c": "\x1b[2J"}
    controller.answer = {"ok": True, "forks": [], "missing": missing}
    result = ask(controller, "list", "--all", *more)
    assert result.exit_code == 1
    assert result.stdout == ("[]\n" if more else "no forks\n")
    assert result.stderr == (
        "audiofork: the forks of pbx-b are missing: no controller of pbx-b leads\n"
        "the forks of pbx-c are missing: ?[2J\n"
    )


def test_all_and_one_do_not_go_together(controller: FakeController) -> None:
    result = ask(controller, "list", "--all", "--asterisk", "pbx-b")
    assert result.exit_code == 2
    assert controller.asked == []


# --- The cluster ---------------------------------------------------------------------------------


def test_cluster_is_shown_as_two_tables(controller: FakeController) -> None:
    controller.answer = CLUSTER
    result = ask(controller, "cluster")
    assert result.exit_code == 0
    assert controller.asked == [{"Command": "ListAudioForkCluster"}]
    assert [line.split() for line in result.output.splitlines()] == [
        ["RELAY", "HOST", "ZONE", "ADDRESS", "FORKS", "CAPACITY", "CPU", "STATE", "VERSION"],
        ["r1", "north", "192.0.2.1:9092", "12", "500", "26%", "open", "1.0"],
        [],
        ["CONTROLLER", "ASTERISK", "STATE", "SINCE", "EPOCH", "NATS", "SERVER", "VERSION"],
        ["c1", "pbx", "leads", "1:02:03", "7", "192.0.2.9:4222", "1.0"],
    ]


def test_cluster_as_json_has_all_that_was_answered(controller: FakeController) -> None:
    controller.answer = CLUSTER
    shown = json.loads(ask(controller, "cluster", "--json").output)
    assert {"ok": True, **shown} == CLUSTER


def test_figures_of_who_is_dead_or_stands_by_are_left_out() -> None:
    dead = {**HOST, "state": "dead"}
    others = [{**CONTROLLER, "state": "dead"}, {**CONTROLLER, "state": "stands by", "epoch": 0}]
    text = table({**CLUSTER, "hosts": [dead], "controllers": others})
    assert [line.split()[3:7] for line in text.splitlines() if line.startswith("r1")] == [
        ["-", "500", "-", "dead"]
    ]
    first, second = (line.split()[2:] for line in text.splitlines() if line.startswith("c1"))
    assert first == ["dead", "-", "-", "192.0.2.9:4222", "1.0"]
    assert second == ["stands", "by", "1:02:03", "-", "192.0.2.9:4222", "1.0"]


def test_cluster_of_a_controller_without_the_broker_says_that_it_may_be_out_of_date() -> None:
    text = table({**CLUSTER, "server": "", "hosts": [], "controllers": []})
    assert text == (
        "c1 has lost the NATS servers: this is what it heard before\n\nno relay hosts\n\n"
        "no controllers"
    )


def test_table_shows_nothing_that_a_terminal_would_obey() -> None:
    text = table({**CLUSTER, "hosts": [{**HOST, "zone": "\x1b[2J"}]})
    assert "\x1b" not in text


def test_daemon_without_a_cluster_says_so_and_exits_with_1(controller: FakeController) -> None:
    controller.answer = {"ok": False, "code": "refused", "error": "this daemon is in no cluster"}
    result = ask(controller, "cluster")
    assert (result.exit_code, result.output) == (1, "audiofork: this daemon is in no cluster\n")


def test_drain_names_the_relay_host_and_says_nothing(controller: FakeController) -> None:
    controller.answer = {"ok": True}
    for more in ([], ["--undo"]):
        result = ask(controller, "drain", "r1", *more)
        assert (result.exit_code, result.output) == (0, "")
    drain = {"Command": "DrainAudioForkRelay", "Relay": "r1"}
    assert controller.asked == [drain, {**drain, "Undo": "yes"}]


def test_check_of_one_asterisk_is_done_by_its_leader_and_is_of_it_alone(
    controller: FakeController, tmp_path: Path
) -> None:
    controller.answer = {"ok": True, "exit_code": 0}
    result = ask(controller, "check", "--asterisk", "pbx-b", "-c", str(tmp_path / "x.ini"))
    assert result.exit_code == 0
    (asked,) = controller.asked
    assert (asked["Command"], asked["Asterisk"], asked["Only"]) == (
        *("CheckAudioFork", "pbx-b"),
        "pbx-b",
    )
    result = ask(controller, "check", "--relay", "--asterisk", "pbx-b")
    assert (result.exit_code, len(controller.asked)) == (2, 1)


FORGOTTEN: dict[str, Any] = {
    **{"ok": True, "removed": 3, "blanked": 1, "missing": {}},
    "controllers": {
        "pbx/c1": {"removed": 3, "blanked": 1},
        "pbx/c2": {"removed": 0, "blanked": 0},
    },
}


def test_each_controller_says_how_much_it_has_forgotten(controller: FakeController) -> None:
    controller.answer = FORGOTTEN
    result = ask(controller, "history", "--forget", "100", "--yes", "--asterisk", "pbx")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "pbx/c1: 3 entries removed, the number blanked in 1 others",
            "pbx/c2: 0 entries removed",
        ],
    )
    assert controller.asked == [
        {"Command": "ForgetAudioForkCaller", "Number": "100", "Asterisk": "pbx"}
    ]


def test_controller_that_has_not_forgotten_is_named_with_what_to_do(
    controller: FakeController,
) -> None:
    controller.answer = FORGOTTEN | {"missing": {"pbx/c3": "nobody\nanswers"}}
    result = ask(controller, "history", "--forget", "100", "--yes")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.splitlines() == [
        "audiofork: the history of pbx/c3 may still have the number: nobody?answers",
        "Repeat this command when it can be asked: it removes what is left.",
    ]
    result = ask(controller, "history", "--forget", "100", "--yes", "--json")
    assert result.exit_code == 1
    wanted = {name: value for name, value in controller.answer.items() if name != "ok"}
    assert json.loads(result.stdout) == wanted
