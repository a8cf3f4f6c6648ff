"""The Debian package on a system with systemd as PID 1, beside a real Asterisk.

`make package-test` builds it for a release of Debian, and gives these tests a network with loopback
alone, which the system shares with Asterisk, the caller and the server.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks
from testbed.daemon import SECRET, ari_conf, dialplan, manager_conf
from testbed.package.machine import Machine, booted, newer
from testbed.package.roots import root_of
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import DIALPLAN, counts_blocks, place_call
from tests.system.scene import Fork, Scene

pytestmark = [pytest.mark.package, pytest.mark.timeout(300)]

SUITE_VARIABLE = "AUDIOFORK_PACKAGE_SUITE"
PACKAGE_VARIABLE = "AUDIOFORK_PACKAGE"

BLOCKS = make_blocks(3000, seed=71)  # a minute
SPOKEN = 400  # of them, where the call need not last until something has happened
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=72)
BLOCK_S = 0.02
MOST_LOST = 200  # far more than usual: a busy machine takes long to start a process
WHEN_SWEPT = ("audiofork-sweep", "ExecMainStartTimestampMonotonic")
GIVEN_UP_S = 60.0  # 15 attempts to start, on a busy machine


@pytest.fixture(scope="module")
def package() -> Path:
    return Path(os.environ[PACKAGE_VARIABLE])


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, in the network that it shares with the machine."""
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def fresh() -> Iterator[Machine]:
    """A machine that has no audiofork yet."""
    with booted(root_of(os.environ[SUITE_VARIABLE])) as one:
        yield one


@pytest.fixture(scope="module")
def before(fresh: Machine) -> tuple[set[str], str]:
    """The files and accounts of the machine without audiofork."""
    return fresh.files(), accounts(fresh)


def accounts(machine: Machine) -> str:
    return machine.run("cat", "/etc/passwd", "/etc/group")


@pytest.fixture(scope="module")
def installed(fresh: Machine, before: tuple[set[str], str], package: Path) -> Machine:
    fresh.install(package)
    return fresh


@pytest.fixture(scope="module")
def machine(installed: Machine, asterisk: Asterisk) -> Machine:
    """A machine on which the daemon runs, and is connected to Asterisk."""
    set_up(installed, asterisk)
    installed.run("systemctl", "enable", "--now", "audiofork")
    return installed


def set_up(machine: Machine, asterisk: Asterisk) -> None:
    """Give the daemon its secret, and tell it where Asterisk is."""
    secret = machine.root / "etc/audiofork/ami-secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    ini = machine.root / "etc/audiofork/audiofork.ini"
    text = ini.read_text().replace(";port = 5038", f"port = {asterisk.ami_port}")
    text = text.replace(";url =\n", f"url = http://127.0.0.1:{asterisk.http_port}/ari\n")
    ini.write_text(text)


@pytest.fixture
async def scene(asterisk: Asterisk, machine: Machine) -> AsyncIterator[Scene[Recorder]]:
    """The daemon runs; its unit is as if it had just been started by hand."""
    await in_thread(machine, "systemctl", "reset-failed", "audiofork")
    await in_thread(machine, "systemctl", "restart", "audiofork")
    await connected(machine)
    async with (
        Recorder() as recorder,
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
    ):
        yield Scene(asterisk, ami, caller, recorder, {})


async def in_thread(machine: Machine, *command: str) -> str:
    return await asyncio.to_thread(machine.run, *command)


async def connected(machine: Machine) -> None:
    """Wait until the process that runs now has connected to Asterisk by AMI and ARI."""
    async with asyncio.timeout(30):
        while True:
            pid = await asyncio.to_thread(machine.show, "audiofork", "MainPID")
            command = ["journalctl", "--no-pager", "--output=cat", f"_PID={pid}"]
            said = await in_thread(machine, *command)
            if "connected to ARI" in said and "connected to Asterisk" in said:
                return
            await asyncio.sleep(0.2)


def wait_for_journal(machine: Machine, text: str) -> None:
    """Wait until the journal of the unit has a text; it takes a moment to get there."""
    deadline = time.monotonic() + 10
    while text not in machine.journal():
        assert time.monotonic() < deadline, machine.journal()
        time.sleep(0.1)


async def streaming_call(scene: Scene[Recorder]) -> Fork:
    target = await place_call(scene.ami, scene.caller)
    warming_up = target.call.play(WARM_UP, loop=True)
    fork = scene.fork(target, "/", "D(in)")
    await fork.started()
    await scene.server.wait_messages("/", 25)
    warming_up.cancel()
    return fork


async def lost_blocks(scene: Scene[Recorder], fork: Fork) -> int:
    """End the call; return how many blocks are missing between those that were heard, in order."""
    await fork.target.call.play(WARM_UP)
    await fork.hang_up()
    await scene.server.wait_left(timeout_s=10)
    heard = [index for one in scene.server.at("/") for index in find_blocks(one.audio, HEARD)]
    assert heard == sorted(set(heard))
    return heard[-1] - heard[0] + 1 - len(heard)


# --- Installed ------------------------------------------------------------------------------------


def test_installed_package_has_command_user_unit_manuals_and_completion(
    installed: Machine,
) -> None:
    assert installed.run("audiofork", "--version").startswith("audiofork, version ")
    assert installed.run("id", "--name", "--user", "audiofork") == "audiofork"
    state = installed.run("systemctl", "is-enabled", "audiofork", check=False)
    assert state == "disabled"
    listed = set(installed.run("dpkg", "--listfiles", "audiofork").splitlines())
    assert {
        "/etc/audiofork/audiofork.ini",
        "/usr/share/audiofork/etc/asterisk/extensions_audiofork.conf",
        "/usr/share/audiofork/etc/profiles/vosk.ini",
        "/usr/share/bash-completion/completions/audiofork",
        "/usr/share/fish/vendor_completions.d/audiofork.fish",
        "/usr/share/man/man1/audiofork-start.1.gz",
        "/usr/share/zsh/vendor-completions/_audiofork",
    } <= listed
    assert "/etc/audiofork/audiofork.ini" in installed.run(
        "dpkg-query", "--show", "--showformat=${Conffiles}", "audiofork"
    )


def test_folder_of_profiles_is_for_the_daemons_group_alone(installed: Machine) -> None:
    told = installed.run("stat", "--format=%a %U %G", "/etc/audiofork/profiles.d")
    assert told == "750 root audiofork"


def test_start_without_a_secret_fails_once_and_says_so(installed: Machine) -> None:
    said = installed.run("systemctl", "start", "audiofork", check=False, with_errors=True)
    assert "failed" in said
    assert installed.show("audiofork", "NRestarts") == "0"
    wait_for_journal(installed, "Failed to set up credentials")


def test_completion_knows_the_commands(installed: Machine) -> None:
    environment = ["env", "_AUDIOFORK_COMPLETE=bash_complete", "COMP_WORDS=audiofork st"]
    said = installed.run(*environment, "COMP_CWORD=1", "audiofork")
    assert {"plain,start", "plain,stop"} <= set(said.splitlines())


# --- The unit -------------------------------------------------------------------------------------


@counts_blocks
async def test_fork_of_a_call_loses_no_block(scene: Scene[Recorder], machine: Machine) -> None:
    fork = await streaming_call(scene)
    await fork.target.call.play(BLOCKS[:SPOKEN])
    assert await lost_blocks(scene, fork) == 0
    await asyncio.to_thread(wait_for_journal, machine, "ended: hangup")


async def test_member_of_the_group_uses_the_control_socket_and_others_do_not(
    scene: Scene[Recorder], machine: Machine
) -> None:
    fork = await streaming_call(scene)
    others = ["setpriv", "--reuid=65534", "--regid=65534"]
    command = ["audiofork", "list"]
    said = await asyncio.to_thread(
        machine.run, *others, "--clear-groups", *command, check=False, with_errors=True
    )
    assert "Permission denied" in said
    assert fork.target.channel in await in_thread(machine, *others, "--groups=audiofork", *command)
    await fork.hang_up()


async def test_killed_daemon_is_started_at_once_and_takes_its_forks_up(
    scene: Scene[Recorder], machine: Machine
) -> None:
    """And nothing is swept, which could hit its new legs."""
    swept = await asyncio.to_thread(machine.show, *WHEN_SWEPT)
    fork = await streaming_call(scene)
    speaking = fork.target.call.play(BLOCKS[:SPOKEN])
    await asyncio.sleep(1)
    position = len(scene.ami.events)
    await in_thread(machine, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "audiofork")
    resumed = await fork.started(after=position)
    assert resumed["TakenUp"] == "yes"
    await speaking
    lost = await lost_blocks(scene, fork)
    print(f"SIGKILL: {lost} of {SPOKEN} blocks lost")
    assert 0 < lost <= MOST_LOST
    assert await asyncio.to_thread(machine.show, *WHEN_SWEPT) == swept


async def test_upgrade_keeps_the_forks_of_calls(
    scene: Scene[Recorder], machine: Machine, package: Path, tmp_path: Path
) -> None:
    fork = await streaming_call(scene)
    higher = await asyncio.to_thread(newer, package, tmp_path)
    position = len(scene.ami.events)
    speaking = fork.target.call.play(BLOCKS)
    await asyncio.to_thread(machine.install, higher)
    resumed = await fork.started(after=position)
    assert resumed["TakenUp"] == "yes"
    await asyncio.sleep(1)
    speaking.cancel()
    lost = await lost_blocks(scene, fork)
    print(f"upgrade: {lost} blocks lost, {lost * BLOCK_S:.2f} s")
    assert 0 < lost <= MOST_LOST
    versions = await in_thread(machine, "dpkg-query", "--show", "audiofork")
    assert versions.split()[1].startswith("9.")
    await asyncio.to_thread(wait_for_journal, machine, "SIGUSR1: forks that run at the next stop")


@pytest.fixture
def detached(machine: Machine) -> Iterator[None]:
    """A relay process that outlives the daemon, as the manual sets it up."""
    ini = machine.root / "etc/audiofork/audiofork.ini"
    before = ini.read_text()
    ini.write_text(before.replace(";detached = no", "detached = yes"))
    machine.run("systemctl", "stop", "audiofork")
    machine.run("systemctl", "enable", "--now", "audiofork-relay@0")
    yield
    ini.write_text(before)
    machine.run("systemctl", "disable", "--now", "audiofork-relay@0")


@counts_blocks
@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("how", ["killed", "upgraded"])
async def test_forks_of_a_detached_relay_lose_no_block_while_the_daemon_is_away(
    scene: Scene[Recorder], machine: Machine, package: Path, tmp_path: Path, how: str
) -> None:
    relay = await asyncio.to_thread(machine.show, "audiofork-relay@0", "MainPID")
    fork = await streaming_call(scene)
    higher = await asyncio.to_thread(newer, package, tmp_path, 10)
    position = len(scene.ami.events)
    speaking = fork.target.call.play(BLOCKS)
    await asyncio.sleep(1)
    if how == "upgraded":
        await asyncio.to_thread(machine.install, higher)
    else:
        await in_thread(
            machine, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "audiofork"
        )
    assert (await fork.started(after=position))["TakenUp"] == "yes"
    await asyncio.sleep(1)
    speaking.cancel()
    assert await lost_blocks(scene, fork) == 0
    assert len(scene.server.at("/")) == 1
    assert await asyncio.to_thread(machine.show, "audiofork-relay@0", "MainPID") == relay != "0"
    await asyncio.to_thread(wait_for_journal, machine, "and found 1 that went on")


async def test_daemon_that_hangs_is_replaced_by_the_watchdog(
    scene: Scene[Recorder], machine: Machine
) -> None:
    fork = await streaming_call(scene)
    talking = fork.target.call.play(WARM_UP, loop=True)
    position = len(scene.ami.events)
    began = time.monotonic()
    await in_thread(machine, "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "audiofork")
    resumed = await fork.ami.wait_user_event(
        "AudioForkStarted", timeout_s=60, ActionID=fork.action_id, after=position
    )
    print(f"watchdog: streams again after {time.monotonic() - began:.1f} s")
    assert resumed["TakenUp"] == "yes"
    await asyncio.to_thread(wait_for_journal, machine, "Watchdog timeout")
    talking.cancel()
    await fork.hang_up()


@pytest.fixture
def spoiled(machine: Machine) -> Iterator[Path]:
    """The configuration, which the test may spoil; then the daemon is started as it was."""
    ini = machine.root / "etc/audiofork/audiofork.ini"
    before = ini.read_text()
    yield ini
    ini.write_text(before)
    machine.run("systemctl", "reset-failed", "audiofork")
    machine.run("systemctl", "restart", "audiofork")


def test_configuration_that_cannot_be_used_is_not_tried_again(
    machine: Machine, spoiled: Path
) -> None:
    machine.run("systemctl", "stop", "audiofork")
    spoiled.write_text(spoiled.read_text().replace(";level = info", "level = loud"))
    machine.run("systemctl", "reset-failed", "audiofork")
    machine.run("systemctl", "start", "audiofork", check=False)
    assert machine.show("audiofork", "NRestarts") == "0"
    assert machine.show("audiofork", "ExecMainStatus") == "3"
    assert machine.show("audiofork", "ActiveState") == "failed"
    wait_for_journal(machine, "[log] level: expected debug or info")


def test_daemon_that_cannot_start_is_given_up_and_its_legs_are_swept(
    machine: Machine, spoiled: Path
) -> None:
    machine.run("systemctl", "stop", "audiofork")
    ini = spoiled.read_text().replace(";listen = 127.0.0.1:9093", "listen = 192.0.2.1:9093")
    spoiled.write_text(ini)  # an address that no machine has
    machine.run("systemctl", "reset-failed", "audiofork", "audiofork-sweep")
    began = time.monotonic()
    machine.run("systemctl", "start", "audiofork", check=False)
    while machine.show("audiofork", "ActiveState") != "failed":
        assert time.monotonic() - began < GIVEN_UP_S
        time.sleep(0.2)
    print(f"given up after {time.monotonic() - began:.1f} s")
    assert machine.show("audiofork", "NRestarts") == "15"
    while machine.show("audiofork-sweep", "ActiveState") in ("activating", "inactive"):
        if machine.show("audiofork-sweep", "ExecMainExitTimestampMonotonic") != "0":
            break
        assert time.monotonic() - began < GIVEN_UP_S
        time.sleep(0.2)
    assert machine.show("audiofork-sweep", "Result") == "success"


# --- Removed --------------------------------------------------------------------------------------


def test_remove_keeps_the_configuration_and_purge_leaves_nothing(
    machine: Machine, before: tuple[set[str], str]
) -> None:
    """The last one: after it there is nothing to try."""
    files, its_accounts = before
    assert "/var/lib/private/audiofork/journal.sqlite3" in machine.files()
    machine.run("apt-get", "remove", "--yes", "audiofork")
    assert machine.show("audiofork", "ActiveState") == "inactive"
    assert "/etc/audiofork/ami-secret" in machine.files()
    machine.run("apt-get", "purge", "--yes", "audiofork")
    assert machine.files() - files <= {"/var/lib/private"}  # systemd's own folder
    assert accounts(machine) == its_accounts
    units = ["list-unit-files", "--quiet", "audiofork*"]
    assert machine.run("systemctl", *units, check=False) == ""
