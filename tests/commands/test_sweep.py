"""The command `sweep` against a feigned Asterisk: which channels it hangs up, and when not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from audiofork import config_file
from audiofork.asterisk.taps.ways import WAYS
from audiofork.cli import main
from audiofork.commands.sweep import sweep
from audiofork.config import Config
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.errors import AmiUnavailable, DaemonRuns
from audiofork.forks.requests import Request
from audiofork.forks.view import ForkView
from tests.control_plane import FakeAsterisk, block, response

FORK = "3f2a91c0-1111-4222-8333-444455556666"
LEG = f"audiofork-{FORK}"
SPY = f"AudioSocket/127.0.0.1:9093-{FORK}"
SNOOP = "Snoop/1700000000.1-00000001"
ARI = "[ari]\nurl = http://127.0.0.1:8088/ari\npassword = x\n"

OURS = {
    LEG: SPY,
    f"{LEG}-0a1b2c3d": SPY,
    f"{LEG}-audiofork-in": SNOOP,
    f"{LEG}-audiofork-out-0a1b2c3d": SNOOP,
}
OTHERS = {
    "1700000000.1": "PJSIP/100-0000002a",
    "1700000000.2": SNOOP,
    "1700000000.3": SPY,  # the far end of a leg by Dial, which ends with it
    f"{LEG}-4d5e6f70": f"AudioSocket/192.0.2.1:9093-{FORK}",
    f"{LEG}-5e6f7081": f"AudioSocket/127.0.0.1:9092-{FORK}",
    f"{LEG}-6f708192": f"AudioSocket/127.0.0.1:90931-{FORK}",
    f"{LEG}-audiofork-2-in": SNOOP,
}


def channels(present: dict[str, str]) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to CoreShowChannels."""

    def answer(action: dict[str, str]) -> bytes:
        lines = [
            block(
                "Event: CoreShowChannel",
                f"ActionID: {action['id']}",
                f"Channel: {name}",
                f"Uniqueid: {uniqueid}",
            )
            for uniqueid, name in present.items()
        ]
        done = block("Event: CoreShowChannelsComplete", f"ActionID: {action['id']}")
        return b"".join([response(action, "EventList: start"), *lines, done])

    return answer


@pytest.fixture
async def asterisk() -> AsyncIterator[FakeAsterisk]:
    one = FakeAsterisk()
    one.answers["CoreShowChannels"] = channels(OTHERS | OURS)
    await one.start()
    yield one
    await one.stop()


def text_for(asterisk: FakeAsterisk, more: str = "", control: Path | str = "") -> str:
    section = f"[asterisk]\nport = {asterisk.port}\nsecret = x\n"
    return f"{section}[control]\nsocket = {control}\n{more}"


def configured(asterisk: FakeAsterisk, more: str = ARI, control: Path | str = "") -> Config:
    return config_file.parse(text_for(asterisk, more, control), {}, source="audiofork.ini")


def hung_up(asterisk: FakeAsterisk) -> list[str]:
    return [action["channel"] for action in asterisk.actions if action["action"] == "Hangup"]


async def test_legs_of_this_configuration_s_daemon_are_hung_up_and_no_others(
    asterisk: FakeAsterisk,
) -> None:
    assert await sweep(configured(asterisk)) == 4
    assert hung_up(asterisk) == list(OURS)


async def test_nothing_is_hung_up_where_nothing_is_left(asterisk: FakeAsterisk) -> None:
    asterisk.answers["CoreShowChannels"] = channels(OTHERS)
    assert await sweep(configured(asterisk)) == 0
    assert hung_up(asterisk) == []


async def test_legs_of_every_relay_process_are_hung_up(asterisk: FakeAsterisk) -> None:
    names = {f"{LEG}-{port}": f"AudioSocket/127.0.0.1:{port}-{FORK}" for port in range(9092, 9097)}
    asterisk.answers["CoreShowChannels"] = channels(names)
    assert await sweep(configured(asterisk, "[relay]\nworkers = 3\n")) == 3
    assert hung_up(asterisk) == [f"{LEG}-9093", f"{LEG}-9094", f"{LEG}-9095"]


async def test_legs_that_dialled_the_advertised_address_are_hung_up(
    asterisk: FakeAsterisk,
) -> None:
    more = "[audiosocket]\nlisten = 0.0.0.0:9092\nadvertise = 192.0.2.1:9093\n"
    assert await sweep(configured(asterisk, more)) == 1
    assert hung_up(asterisk) == [f"{LEG}-4d5e6f70"]


async def test_legs_of_a_daemon_that_listened_on_any_port_are_known_by_ari_alone(
    asterisk: FakeAsterisk,
) -> None:
    more = f"[audiosocket]\nlisten = 127.0.0.1:0\n{ARI}"
    assert await sweep(configured(asterisk, more)) == 2
    assert hung_up(asterisk) == list(OURS)[2:]


async def test_legs_by_ari_are_nobody_s_where_ari_is_not_configured(
    asterisk: FakeAsterisk,
) -> None:
    """They may be those of another daemon, which lives."""
    assert await sweep(configured(asterisk, "")) == 2
    assert hung_up(asterisk) == list(OURS)[:2]


async def test_legs_by_ari_are_those_of_the_configured_application(
    asterisk: FakeAsterisk,
) -> None:
    assert await sweep(configured(asterisk, f"{ARI}app = audiofork-2\n")) == 3
    assert hung_up(asterisk) == [f"{LEG}-audiofork-2-in", *list(OURS)[:2]]


async def test_leg_that_has_gone_meanwhile_does_not_keep_the_others(
    asterisk: FakeAsterisk,
) -> None:
    asterisk.answers["Hangup"] = lambda action: response(
        action, "Message: No such channel", ok=False
    )
    assert await sweep(configured(asterisk)) == 0
    assert hung_up(asterisk) == list(OURS)


async def no_answer(request: Request) -> list[str]:
    raise AssertionError("nobody asks the daemon for anything")


async def no_forks() -> list[ForkView]:
    raise AssertionError("nobody asks the daemon for its forks")


@contextlib.asynccontextmanager
async def running_daemon(path: Path) -> AsyncIterator[None]:
    """Have a daemon's control socket."""
    control = ControlSocket(path, ControlAnswers(no_answer, no_forks))
    await control.start()
    yield
    for _ in range(5):  # for what was accepted last to be served, and to end
        await asyncio.sleep(0)
    await control.close()


async def test_legs_of_a_daemon_that_lives_are_left_alone(
    asterisk: FakeAsterisk, tmp_path: Path
) -> None:
    settings = configured(asterisk, control=tmp_path / "control.sock")
    async with running_daemon(tmp_path / "control.sock"):
        with pytest.raises(DaemonRuns, match="^the daemon runs, so the legs are wanted; "):
            await sweep(settings)
    assert asterisk.actions == []
    assert await sweep(settings) == 4


async def test_legs_are_left_alone_where_the_control_socket_may_not_be_used(
    asterisk: FakeAsterisk, tmp_path: Path
) -> None:
    """A daemon may run behind it. (A file for a folder stands in for a user without rights.)"""
    (tmp_path / "folder").touch()
    with pytest.raises(DaemonRuns, match="^it is not known whether the daemon runs: .*Not a dir"):
        await sweep(configured(asterisk, control=tmp_path / "folder" / "control.sock"))
    assert asterisk.actions == []


async def test_legs_are_left_alone_where_something_listens_for_them(asterisk: FakeAsterisk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as daemon:
        listen = f"127.0.0.1:{daemon.getsockname()[1]}"
        with pytest.raises(DaemonRuns, match=f"^something listens on {listen}: the daemon runs"):
            await sweep(configured(asterisk, f"[audiosocket]\nlisten = {listen}\n"))
    assert asterisk.actions == []


async def test_legs_are_left_alone_where_a_controller_on_another_host_may_want_them(
    asterisk: FakeAsterisk,
) -> None:
    more = "[cluster]\nservers = nats://127.0.0.1:4222\n"
    with pytest.raises(DaemonRuns, match="may be those of a controller on another host"):
        await sweep(configured(asterisk, more))
    assert hung_up(asterisk) == []


async def test_asterisk_that_goes_meanwhile_raises_why(asterisk: FakeAsterisk) -> None:
    asterisk.answers["Hangup"] = lambda action: asterisk.connections[-1].drop()
    with pytest.raises(AmiUnavailable):
        await sweep(configured(asterisk))


# --- The command ---------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def invoke(path: Path, *arguments: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "-c", str(path)])
    return result.exit_code, result.output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audiofork.ini"


async def test_command_tells_how_many_legs_were_hung_up(asterisk: FakeAsterisk, path: Path) -> None:
    write(path, text_for(asterisk, ARI))
    assert await invoke(path, "sweep") == (0, "4 legs hung up\n")


async def test_command_says_that_legs_by_chanspy_are_not_known_by_a_port_that_changes(
    asterisk: FakeAsterisk, path: Path
) -> None:
    write(path, text_for(asterisk, ARI + "[audiosocket]\nlisten = 127.0.0.1:0\n"))
    assert await invoke(path, "sweep") == (
        0,
        "2 legs hung up\n"
        "legs by ChanSpy cannot be recognized if the port changes: set [audiosocket] listen\n",
    )


async def test_command_while_the_daemon_runs_exits_with_1(
    asterisk: FakeAsterisk, path: Path, tmp_path: Path
) -> None:
    write(path, text_for(asterisk, ARI, tmp_path / "control.sock"))
    async with running_daemon(tmp_path / "control.sock"):
        code, output = await invoke(path, "sweep")
    assert (code, output) == (
        1,
        "audiofork: the daemon runs, so the legs are wanted; it sweeps at its start itself\n",
    )


@pytest.mark.parametrize("command", ["sweep", "check --taps"])
async def test_command_without_asterisk_exits_with_4(path: Path, command: str) -> None:
    write(path, "[asterisk]\nport = 9\nsecret = x\n[control]\nsocket =\n")
    code, output = await invoke(path, *command.split())
    assert code == 4
    assert output.startswith("audiofork: Asterisk cannot be asked")
    assert "Connect" in output


@pytest.mark.parametrize("command", ["sweep", "check --taps"])
async def test_command_that_asterisk_refuses_exits_with_4(
    asterisk: FakeAsterisk, path: Path, command: str
) -> None:
    asterisk.answers["Login"] = lambda action: response(
        action, "Message: Authentication failed", ok=False
    )
    write(path, text_for(asterisk))
    code, output = await invoke(path, *command.split())
    assert code == 4
    assert output.startswith("audiofork: Asterisk cannot be asked")


@pytest.mark.parametrize("command", ["sweep", "check --taps"])
async def test_command_without_its_configuration_exits_with_3(path: Path, command: str) -> None:
    code, output = await invoke(path, *command.split())
    assert code == 3
    assert "No such file" in output


async def test_taps_are_printed_the_best_first_and_nothing_else_is_tried(
    asterisk: FakeAsterisk, path: Path
) -> None:
    write(path, text_for(asterisk))
    code, output = await invoke(path, "check", "--taps")
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == "Asterisk 22.5.2; a fork uses the first of these that suits it:"
    ways = [line for line in lines if line[0].isdigit()]
    assert len(ways) == len(WAYS)
    assert lines[-1] == "   here: yes"
    assert [action["action"] for action in asterisk.actions] == ["Login", "CoreSettings"]
