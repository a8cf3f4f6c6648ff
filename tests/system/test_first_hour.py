"""README's way from nothing to a forked call, to the letter, on a system made for it.

`make first-hour` prepares the system and gives this test a network with loopback alone. The system
runs with systemd as PID 1, or with nothing of the kind, as containers do.
"""

from __future__ import annotations

import asyncio
import audioop
import os
import re
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.asterisk import TEMPLATES
from testbed.package.first_hour import (
    PREFIX,
    ROOT_VARIABLE,
    SOURCE,
    SYSTEMD_VARIABLE,
    readme_commands,
    without_systemd,
)
from testbed.package.machine import Machine, booted
from testbed.sip import SipUser

pytestmark = [pytest.mark.package, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent.parent
HAS_SYSTEMD = os.environ.get(SYSTEMD_VARIABLE) != "no"
SIP_PORT = 5060
IN_SOURCE = f"PATH=$PATH:/usr/local/bin; cd /{SOURCE}"
SPOKEN_S = 3


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine on which Asterisk runs, with phones, and audiofork is installed as README says."""
    run = booted if HAS_SYSTEMD else without_systemd
    with run(Path(os.environ[ROOT_VARIABLE])) as one:
        add_phones(etc_of(one))
        if HAS_SYSTEMD:
            one.run("systemctl", "restart", "asterisk")
        else:
            shell(one, "asterisk -U asterisk -G asterisk")
        wait_until_booted(one)
        yield one


def etc_of(machine: Machine) -> Path:
    built = machine.root / PREFIX / "etc/asterisk"
    return built if built.is_dir() else machine.root / "etc/asterisk"


def add_phones(etc: Path) -> None:
    """Give Asterisk the testbed's phones, and the line of README's front."""
    phones = (TEMPLATES / "pjsip.conf").read_text().replace("@sip_port", str(SIP_PORT))
    (etc / "pjsip.conf").write_text(phones)
    (line,) = re.findall(r"(?m)^ same => n,ExecIf\(.*\)$", (ROOT / "README.md").read_text())
    with (etc / "extensions.conf").open("a") as file:
        file.write(f"\n[testbed]\nexten => 100,1,Answer()\n{line}\n same => n,Echo()\n")


def asterisk(machine: Machine, command: str) -> str:
    program = "/" + PREFIX + "/sbin/asterisk" if (machine.root / PREFIX).is_dir() else "asterisk"
    return machine.run(program, "-rx", command, check=False)


def wait_until_booted(machine: Machine) -> None:
    deadline = time.monotonic() + 60
    while "fully booted" not in asterisk(machine, "core waitfullybooted"):
        assert time.monotonic() < deadline, machine.journal("asterisk")
        time.sleep(0.5)


def files_of(machine: Machine) -> dict[str, tuple[int, int, int, bytes]]:
    """Return what is in the folders of Asterisk, of audiofork and of the units."""
    found = {}
    for folder in (etc_of(machine), *(machine.root / f"etc/{n}" for n in ("audiofork", "systemd"))):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                owner = status.st_mode, status.st_uid, status.st_gid
                found[str(path)] = (*owner, path.read_bytes())
    return found


def shell(machine: Machine, command: str) -> str:
    return machine.run("sh", "-c", f"{IN_SOURCE} && {command}", with_errors=True)


async def test_call_is_forked_after_install_and_setup_and_undo_leaves_no_trace(
    machine: Machine,
) -> None:
    _, setup, receive = readme_commands()
    assert (setup, receive) == ("audiofork setup\n", "audiofork receive\n")
    before = files_of(machine)
    began = time.monotonic()
    said = await asyncio.to_thread(shell, machine, f"{setup.strip()} --yes || true")
    took_s = time.monotonic() - began
    await assert_is_green(machine, said)
    if not HAS_SYSTEMD:
        (start,) = re.findall(r"(?m)^  (install -d .* run -c .*)$", said)
        begin(machine, start)
        await asyncio.sleep(2)
    await call(machine, receive)
    (recording,) = (machine.root / SOURCE / "recordings").glob("*.wav")
    heard_s = heard(recording)
    again = await asyncio.to_thread(shell, machine, "audiofork setup --yes || true")
    assert "nothing to change: every file is as setup leaves it" in again
    await assert_is_green(machine, again)
    assert re.search(r"(?m)^ok    daemon: runs", again), again
    undone = await asyncio.to_thread(shell, machine, "audiofork setup --undo")
    assert files_of(machine) == before, undone
    if HAS_SYSTEMD:
        assert machine.show("audiofork", "ActiveState") == "inactive"
        is_packaged = machine.run("dpkg-query", "--show", "audiofork", check=False)
        left = "loaded" if is_packaged else "not-found"
        assert machine.show("audiofork", "LoadState") == left
    assert not (machine.root / "var/lib/audiofork-setup").exists()
    print(f"\nsetup with its check: {took_s:.1f} s; forked {heard_s:.1f} s of a call; undone")


async def assert_is_green(machine: Machine, said: str) -> None:
    """See that the check at the end of a text found no fault, but that this machine is too busy.

    If it is, the check is made again, twice at most.
    """
    for _ in range(2):
        if not re.search(r"(?m)^FAIL .* frames a second, not 50$", said):
            break
        said = await asyncio.to_thread(shell, machine, "audiofork check || true")
    assert not re.search(r"(?m)^FAIL", said), said
    assert "\nok    forks: in by snoop, out by snoop, both by snoop, stereo by snoop" in said


def heard(recording: Path) -> float:
    """Return how many seconds of a call a file has, with a voice on either side."""
    with wave.open(str(recording)) as file:
        assert file.getnchannels() == 2
        frames = file.readframes(file.getnframes())
        seconds: float = file.getnframes() / file.getframerate()
    levels = [audioop.rms(audioop.tomono(frames, 2, *side), 2) for side in ((1, 0), (0, 1))]
    assert min(levels) > 500
    assert seconds > SPOKEN_S - 1
    return seconds


def begin(machine: Machine, command: str) -> None:
    """Run a command of README's in its folder, and go on at once; it ends with the machine."""
    script = f"{IN_SOURCE}; ({command}) >/tmp/said 2>&1 &"
    machine.run("setsid", "sh", "-c", script)


async def call(machine: Machine, receive: str) -> None:
    """Call the extension of README's front, while the companion of README receives."""
    begin(machine, receive.strip())
    await listens(8080)
    async with SipUser("caller", ("127.0.0.1", SIP_PORT)) as caller:
        one = await caller.call("100")
        one.talk()
        await asyncio.sleep(SPOKEN_S)
        await one.hangup()
    await asyncio.sleep(1)  # the end of the fork


async def listens(port: int) -> None:
    """Wait until a program listens on 127.0.0.1; the machine shares the network of this test."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return
