"""The check on a real Asterisk: each fault that one can have, with what to do about it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audiofork import check as checking
from audiofork import config
from audiofork.check import Check, Finding, Mark, Outcome
from audiofork.config import Config
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, free_port
from testbed.daemon import SECRET, Daemon, dialplan, manager_conf
from tests.asterisk.conftest import no_channels

pytestmark = pytest.mark.asterisk

READ, WRITE = "read = user,call\n", "write = originate,call,user,reporting\n"


def user(name: str, read: str, write: str) -> str:
    """Return the shipped AMI user under another name and with other rights."""
    text = manager_conf()
    assert "[audiofork]\n" in text and READ in text and WRITE in text
    text = text.replace("[audiofork]\n", f"[{name}]\n")
    return text.replace(READ, f"read = {read}\n").replace(WRITE, f"write = {write}\n")


@pytest.fixture(scope="module")
def checked() -> Iterator[Asterisk]:
    """An Asterisk of these tests' own, whose users lack one right each."""
    users = [
        manager_conf(),
        user("no-originate", "user,call", "call,user,reporting"),
        user("no-call", "user,call", "originate,user,reporting"),
        user("no-user", "user,call", "originate,call,reporting"),
        user("no-reporting", "user,call", "originate,call,user"),
        user("hears-no-user", "call", "originate,call,user,reporting"),
        user("hears-no-call", "user", "originate,call,user,reporting"),
        user("may-nothing", "", ""),
        user("system", "user,call", "system,originate,call,user,reporting"),
        user("elsewhere", "user,call", "all").replace("127.0.0.1/255", "192.0.2.1/255"),
    ]
    with Asterisk(dialplan=dialplan(), config={"manager.conf": "\n".join(users)}) as one:
        yield one


def free_tcp_port() -> int:
    return free_port(socket.SOCK_STREAM)


@pytest.fixture
def closed_port() -> int:
    return free_tcp_port()


def configured(asterisk: Asterisk, username: str = "audiofork", /, **sections: str) -> Config:
    texts = {
        "asterisk": f"port = {asterisk.ami_port}\nusername = {username}\nsecret = {SECRET}\n",
        "audiosocket": "listen = 127.0.0.1:0\n",
        "control": "socket =\n",
        **sections,
    }
    ini = "".join(f"[{name}]\n{text}" for name, text in texts.items())
    return config.parse(ini, {}, source="audiofork.ini")


async def findings_of(
    asterisk: Asterisk, settings: Config, clock: Callable[[], float] = time.time
) -> tuple[Outcome, list[Finding]]:
    """Check; afterwards Asterisk has no channel and no call record of it."""
    findings: list[Finding] = []
    records = asterisk.cdr_rows()
    outcome = await Check(settings, findings.append, clock).run()
    for finding in findings:
        print(finding)
    async with AmiClient(asterisk) as ami:
        await no_channels(ami)
    assert asterisk.cdr_rows() == records
    return outcome, findings


def failures(findings: list[Finding]) -> list[Finding]:
    failed = [finding for finding in findings if finding.mark is Mark.FAIL]
    assert all(finding.remedy for finding in failed)
    return failed


async def only_failure(
    asterisk: Asterisk, settings: Config, clock: Callable[[], float] = time.time
) -> Finding:
    outcome, findings = await findings_of(asterisk, settings, clock)
    assert outcome is Outcome.FAULTS
    failed = failures(findings)
    assert len(failed) == 1, failed
    return failed[0]


@contextmanager
def without(asterisk: Asterisk, module: str) -> Iterator[None]:
    """Do without a module for a while."""
    assert "Unloaded" in asterisk.cli(f"module unload {module}")
    try:
        yield
    finally:
        asterisk.cli(f"module load {module}")


# --- All is well ---------------------------------------------------------------------------------


async def test_asterisk_as_shipped_has_no_fault_within_3_s(checked: Asterisk) -> None:
    began = time.monotonic()
    outcome, findings = await findings_of(checked, configured(checked))
    assert time.monotonic() - began < 3
    assert outcome is Outcome.FINE
    assert failures(findings) == []
    texts = [finding.text for finding in findings]
    assert any(text.startswith("login: audiofork, Asterisk 2") for text in texts)
    assert "rights: write = originate,call,user,reporting" in texts
    assert "requests: UserEvent(AudioFork) comes back (read = user)" in texts
    assert "hangups: Asterisk tells of them (read = call)" in texts
    (audio,) = [text for text in texts if text.startswith("audio:")]
    assert audio.endswith("in and out apart (timing source, ChanSpy with D)")


# --- Login and rights ----------------------------------------------------------------------------


async def test_wrong_secret_is_told_without_quoting_it(checked: Asterisk) -> None:
    text = f"port = {checked.ami_port}\nsecret = hunter2\n"
    found = await only_failure(checked, configured(checked, asterisk=text))
    assert found.text == ("login: Asterisk refused the login of audiofork: Authentication failed")
    assert "username and secret with section [audiofork] of manager.conf" in found.remedy
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("username", ["nobody", "elsewhere"])
async def test_user_that_may_not_log_in_is_a_fault(checked: Asterisk, username: str) -> None:
    found = await only_failure(checked, configured(checked, username))
    assert f"refused the login of {username}" in found.text
    assert "deny and permit must let this machine in" in found.remedy


@pytest.mark.parametrize("right", ["originate", "call", "user", "reporting"])
async def test_missing_write_class_is_named(checked: Asterisk, right: str) -> None:
    found = await only_failure(checked, configured(checked, f"no-{right}"))
    assert found.text == f"rights: no-{right} lacks write = {right}"
    assert "write = originate,call,user,reporting" in found.remedy
    assert 'asterisk -rx "manager reload"' in found.remedy


async def test_user_that_hears_no_user_events_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked, "hears-no-user"))
    assert "UserEvent(AudioFork) does not come back: read = user is missing" in found.text
    assert "read = user,call" in found.remedy


async def test_user_that_hears_no_hangups_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked, "hears-no-call"))
    assert "Asterisk does not tell of them: read = call is missing" in found.text
    assert "read = user,call" in found.remedy


async def test_user_without_any_right_lacks_all_and_nothing_else_is_blamed(
    checked: Asterisk,
) -> None:
    found = await only_failure(checked, configured(checked, "may-nothing"))
    assert found.text == "rights: may-nothing lacks write = originate,call,user,reporting"


# --- Modules, timing, reach ----------------------------------------------------------------------


async def test_missing_chan_audiosocket_is_named(checked: Asterisk) -> None:
    with without(checked, "chan_audiosocket.so"):
        found = await only_failure(checked, configured(checked))
    assert found.text == "AudioSocket: Asterisk has no channel type AudioSocket"
    assert 'asterisk -rx "module load chan_audiosocket.so"' in found.remedy


async def test_missing_chanspy_is_named(checked: Asterisk) -> None:
    with without(checked, "app_chanspy.so"):
        found = await only_failure(checked, configured(checked))
    assert found.text == "audio: ChanSpy does not run"
    assert 'asterisk -rx "module load app_chanspy.so"' in found.remedy


async def test_user_with_system_is_told_the_modules_without_a_leg(checked: Asterisk) -> None:
    with without(checked, "app_chanspy.so"):
        found = await only_failure(checked, configured(checked, "system"))
    assert found.text == "modules: app_chanspy.so not loaded"
    outcome, findings = await findings_of(checked, configured(checked, "system"))
    assert outcome is Outcome.FINE
    assert Finding(Mark.OK, "modules: loaded") in findings


async def test_chanspy_without_d_is_a_fault(
    checked: Asterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ChanSpy that does not know D passes over it; one that is not told of it does the same."""
    monkeypatch.setattr(checking, "PAIR_OPTIONS", "qulES")
    found = await only_failure(checked, configured(checked))
    assert found.text.startswith("audio: the ChanSpy of Asterisk 2")
    assert found.text.endswith("has no option D")


@pytest.mark.parametrize(
    "advertise", ["127.0.0.1:{closed}", "no-such-host.invalid:9093"], ids=["closed", "unknown"]
)
async def test_address_that_asterisk_cannot_reach_is_a_fault(
    checked: Asterisk, advertise: str, closed_port: int
) -> None:
    address = advertise.format(closed=closed_port)
    text = f"listen = 127.0.0.1:0\nadvertise = {address}\n"
    found = await only_failure(checked, configured(checked, audiosocket=text))
    assert found.text == f"AudioSocket: Asterisk and {address}: cannot connect"
    assert "[audiosocket] advertise (empty: listen) must be the address" in found.remedy


async def test_asterisk_without_a_timing_source_is_a_fault() -> None:
    additions = {
        "manager.conf": manager_conf(),
        "modules.conf": "noload = res_timing_timerfd.so\n",
    }
    with Asterisk(dialplan=dialplan(), config=additions) as asterisk:
        found = await only_failure(asterisk, configured(asterisk))
    assert found.text == "audio: none comes of itself: Asterisk has no timing source"
    assert 'asterisk -rx "module load res_timing_timerfd.so"' in found.remedy
    assert 'asterisk -rx "timing test"' in found.remedy


async def test_clock_that_differs_from_asterisks_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked), lambda: time.time() + 60)
    assert found.text == "clock: 60 s ahead of Asterisk's"
    assert "NTP" in found.remedy


# --- Beside a daemon -----------------------------------------------------------------------------


async def test_running_daemon_is_reached_at_its_own_port_and_goes_on(checked: Asterisk) -> None:
    with Daemon(checked, {"audiosocket": f"listen = 127.0.0.1:{free_tcp_port()}\n"}) as daemon:
        outcome, findings = await findings_of(checked, config.load(daemon.config, {}))
        assert failures(findings) == []
        assert outcome is Outcome.FINE
        texts = [finding.text for finding in findings]
        assert "daemon: runs, 0 forks" in texts
        address = f"127.0.0.1:{daemon.audiosocket_port}"
        assert f"AudioSocket: Asterisk reaches the daemon at {address}" in texts
        assert any(text.endswith("(timing source, ChanSpy with D)") for text in texts)
        assert daemon.exit_code is None
        assert "Traceback" not in daemon.log()


async def test_running_daemon_that_asterisk_cannot_reach_is_a_fault(
    checked: Asterisk, closed_port: int
) -> None:
    text = f"listen = 127.0.0.1:{free_tcp_port()}\nadvertise = 127.0.0.1:{closed_port}\n"
    with Daemon(checked, {"audiosocket": text}) as daemon:
        found = await only_failure(checked, config.load(daemon.config, {}))
    assert found.text == f"AudioSocket: Asterisk and 127.0.0.1:{closed_port}: cannot connect"


async def test_running_daemon_whose_file_limit_is_too_low_is_a_fault(checked: Asterisk) -> None:
    command = ("prlimit", "--nofile=300:300", sys.executable, "-m", "audiofork", "run")
    with Daemon(checked, command=command) as daemon:
        found = await only_failure(checked, config.load(daemon.config, {}))
    assert found.text == ("open files: the daemon may have 300, max_forks = 1000 takes 4400")
    assert "LimitNOFILE=4400" in found.remedy


# --- The command ---------------------------------------------------------------------------------


def run_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audiofork", "check", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_command_tells_its_findings_with_remedies_and_exits_with_0_1_3_or_4(
    checked: Asterisk, tmp_path: Path
) -> None:
    path = tmp_path / "audiofork.ini"
    text = (
        f"[asterisk]\nport = {checked.ami_port}\nsecret = {SECRET}\n"
        "[audiosocket]\nlisten = 127.0.0.1:0\n[control]\nsocket =\n"
    )
    path.write_text(text)
    fine = run_check(path)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert fine.stdout.startswith(f"ok    configuration: {path}\n")
    assert "FAIL" not in fine.stdout
    path.write_text(text.replace(SECRET, "wrong"))
    fault = run_check(path)
    assert fault.returncode == 1
    assert "\nFAIL  login: " in fault.stdout
    assert "\n        Compare [asterisk] username and secret" in fault.stdout
    path.write_text(text.replace("secret", "sceret"))
    assert run_check(path).returncode == 3
    path.write_text(text.replace(str(checked.ami_port), str(free_tcp_port())))
    assert run_check(path).returncode == 4
