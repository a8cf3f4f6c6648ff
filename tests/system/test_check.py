"""The check on a real Asterisk: each fault that one can have, with what to do about it."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import socket
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audiofork import config_file
from audiofork.asterisk.taps import chanspy
from audiofork.asterisk.versions import CHANSPY_PAIRS, LEG_ENDS_WITH_PEER
from audiofork.commands import check_audio, remedies
from audiofork.commands.check import Check
from audiofork.commands.findings import Finding, Mark, Outcome
from audiofork.config import Config
from audiofork.link.messages import LegPart
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, free_port
from testbed.daemon import (
    ETC,
    SECRET,
    Daemon,
    ari_conf,
    ari_settings,
    asterisk_settings,
    dialplan,
    manager_conf,
)
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import (
    DIALPLAN,
    needs,
    no_channels,
    only_channels,
    place_call,
    start_fork,
)

pytestmark = pytest.mark.asterisk


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let audio come at any pace, which the check judges, unless the test runs alone."""
    if request.node.get_closest_marker("serial") is None:
        monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 10.0)
        monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", 1.0)


READ, WRITE = "read = user,call,dtmf\n", "write = originate,call,user,reporting\n"
READ_ONLY = "read_only = yes"
CARELESS = """
[careless]
exten => _X.,1,Gosub(audiofork,start,1(ws://127.0.0.1/?called=${EXTEN},D(in)))

"""


def user(name: str, read: str, write: str) -> str:
    """Return the shipped AMI user under another name and with other rights."""
    text = manager_conf()
    assert "[audiofork]\n" in text
    assert READ in text
    assert WRITE in text
    text = text.replace("[audiofork]\n", f"[{name}]\n")
    return text.replace(READ, f"read = {read}\n").replace(WRITE, f"write = {write}\n")


def unfiltered(text: str) -> str:
    """Return an AMI user to whom events come with an empty line in a value."""
    return "".join(line for line in text.splitlines(keepends=True) if "[:cntrl:]" not in line)


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
        user("hears-no-keys", "user,call", "originate,call,user,reporting"),
        manager_conf()
        .replace("[audiofork]\n", "[filters-keys]\n")
        .replace("eventfilter(action(include),name(DTMFEnd)) =\n", "")
        .replace("eventfilter = Event: DTMFEnd\n", ""),
        user("may-nothing", "", ""),
        user("system", "user,call", "system,originate,call,user,reporting"),
        unfiltered(user("unfiltered", "user,call", "originate,call,user,reporting")),
        user("elsewhere", "user,call", "all").replace("127.0.0.1/255", "192.0.2.1/255"),
    ]
    reader = ari_conf().replace("[audiofork]", "[reader]").replace("read_only = no", READ_ONLY)
    assert "[reader]" in reader
    assert READ_ONLY in reader
    additions = {"manager.conf": "\n".join(users), "ari.conf": ari_conf() + reader}
    with Asterisk(dialplan=DIALPLAN + CARELESS + dialplan(), config=additions) as one:
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
    return config_file.parse(ini, {}, source="audiofork.ini")


async def findings_of(
    asterisk: Asterisk,
    settings: Config,
    clock: Callable[[], float] = time.time,
    *,
    records: int = 0,
) -> tuple[Outcome, list[Finding]]:
    """Check; afterwards Asterisk has no channel of it, and no call record but so many."""
    before = asterisk.cdr_rows()
    outcome, findings = await check(settings, clock)
    async with AmiClient(asterisk) as ami:
        await no_channels(ami)
    assert len(asterisk.cdr_rows()) == len(before) + records
    return outcome, findings


async def check(
    settings: Config, clock: Callable[[], float] = time.time
) -> tuple[Outcome, list[Finding]]:
    findings: list[Finding] = []
    outcome = await Check(settings, findings.append, clock).run()
    for finding in findings:
        print(finding)
    return outcome, findings


def failures(findings: list[Finding]) -> list[Finding]:
    failed = [finding for finding in findings if finding.mark is Mark.FAIL]
    assert all(finding.remedy for finding in failed)
    return failed


async def only_failure(
    asterisk: Asterisk,
    settings: Config,
    clock: Callable[[], float] = time.time,
    *,
    records: int = 0,
) -> Finding:
    outcome, findings = await findings_of(asterisk, settings, clock, records=records)
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


async def test_asterisk_as_shipped_has_no_fault(checked: Asterisk) -> None:
    outcome, findings = await findings_of(checked, configured(checked))
    assert outcome is Outcome.FINE
    assert failures(findings) == []
    texts = [finding.text for finding in findings]
    (login,) = [text for text in texts if text.startswith("login: audiofork, Asterisk ")]
    assert checked.installation.version in login
    assert "rights: write = originate,call,user,reporting" in texts
    assert "requests: UserEvent(AudioFork) comes back (read = user)" in texts
    assert "hangups: Asterisk tells of them (read = call)" in texts
    assert "keys (DTMF): Asterisk tells of them (read = dtmf)" in texts
    (audio,) = [text for text in texts if text.startswith("audio:")]
    assert audio.endswith("frames a second, in and out mixed by ChanSpy")
    assert texts[-1].startswith("forks: in by chanspy, both by chanspy; out and stereo are refused")
    assert "[ari]" in findings[-1].remedy


@needs(CHANSPY_PAIRS, "ChanSpy that keeps in and out apart")
async def test_narrowband_site_has_in_and_out_apart_by_chanspy(checked: Asterisk) -> None:
    text = asterisk_settings(checked) + "chanspy_pairs = narrowband\n"
    outcome, findings = await findings_of(checked, configured(checked, asterisk=text))
    assert outcome is Outcome.FINE
    texts = [finding.text for finding in findings]
    assert any(text.endswith("frames a second, in and out apart by ChanSpy's D") for text in texts)
    ways = ", ".join(f"{direction} by chanspy" for direction in ("in", "out", "both", "stereo"))
    assert texts[-1] == f"forks: {ways}"


def with_ari(asterisk: Asterisk, more: str = "", /, **sections: str) -> Config:
    return configured(asterisk, **{"ari": ari_settings(asterisk) + more, **sections})


def with_tap(asterisk: Asterisk, tap: str) -> Config:
    text = f"port = {asterisk.ami_port}\nsecret = {SECRET}\ntap = {tap}\n"
    return with_ari(asterisk, asterisk=text)


async def test_asterisk_with_ari_has_no_fault_and_brings_legs_by_it(checked: Asterisk) -> None:
    outcome, findings = await findings_of(checked, with_ari(checked))
    assert failures(findings) == []
    assert outcome is Outcome.FINE
    texts = [finding.text for finding in findings]
    address = f"http://127.0.0.1:{checked.http_port}/ari"
    assert f"ARI: audiofork may write at {address}" in texts
    assert "dialplan: audiofork and audiofork-leg are there, as shipped (version 6)" in texts
    assert any(text.startswith("audio: 5") or text.startswith("audio: 4") for text in texts)
    for rate in (8000, 16000):
        (snoop,) = [text for text in texts if text.startswith(f"snoop at {rate} Hz: ")]
        assert snoop.endswith(" frames a second")
    assert "hangups: Asterisk tells of them (read = call)" in texts


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
    assert "deny and permit must allow this machine" in found.remedy


@pytest.mark.parametrize("right", ["originate", "call", "user", "reporting"])
async def test_missing_write_class_is_named(checked: Asterisk, right: str) -> None:
    found = await only_failure(checked, configured(checked, f"no-{right}"))
    assert found.text == f"rights: no-{right} lacks write = {right}"
    assert "write = originate,call,user,reporting" in found.remedy
    assert 'asterisk -rx "manager reload"' in found.remedy


async def test_user_that_hears_no_user_events_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked, "hears-no-user"))
    assert "UserEvent(AudioFork) does not come back: read = user is missing" in found.text
    assert "read = user,call,dtmf" in found.remedy


async def test_user_to_whom_a_caller_may_forge_events_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked, "unfiltered"))
    assert found.text == "requests: events with an empty line in a value are not held back"
    (line,) = [line for line in manager_conf().splitlines() if line.endswith("[^[:cntrl:]]")][-1:]
    assert line.removeprefix(";").strip() in found.remedy


async def test_caller_data_in_the_dialplan_is_warned_of(checked: Asterisk) -> None:
    _, findings = await findings_of(checked, configured(checked))
    (found,) = [finding for finding in findings if finding.mark is Mark.WARN]
    assert found.text == (
        "caller data: context careless, extension _X., priority 1: EXTEN stands bare in Gosub"
    )
    assert "${URIENCODE(${EXTEN})}" in found.remedy


@pytest.mark.parametrize("username", ["hears-no-keys", "filters-keys"])
async def test_user_that_hears_no_keys_is_warned_of_and_that_is_no_fault(
    checked: Asterisk, username: str
) -> None:
    outcome, findings = await findings_of(checked, configured(checked, username))
    assert outcome is Outcome.FINE
    (found,) = [finding for finding in findings if finding.text.startswith("keys (DTMF): ")]
    assert found.mark is Mark.WARN
    assert "read = dtmf is missing, or an eventfilter holds them back" in found.text
    assert f"in section [{username}]" in found.remedy
    assert "read = user,call,dtmf" in found.remedy


async def test_user_that_hears_no_hangups_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked, "hears-no-call"))
    assert "Asterisk does not tell of them: read = call is missing" in found.text
    assert "read = user,call,dtmf" in found.remedy


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
    monkeypatch.setitem(chanspy.OPTIONS, LegPart.PAIRS, "qulES")
    text = asterisk_settings(checked) + "chanspy_pairs = narrowband\n"
    found = await only_failure(checked, configured(checked, asterisk=text))
    assert found.text.startswith("audio: the ChanSpy of Asterisk ")
    assert checked.installation.version in found.text
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
        "modules.conf": "noload = res_timing_pthread.so\n",
    }
    with Asterisk(dialplan=dialplan(), config=additions) as asterisk:
        found = await only_failure(asterisk, configured(asterisk))
    assert found.text == "audio: none comes of itself: Asterisk has no timing source"
    assert 'asterisk -rx "module load res_timing_pthread.so"' in found.remedy
    assert 'asterisk -rx "timing test"' in found.remedy


async def test_clock_that_differs_from_asterisks_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, configured(checked), lambda: time.time() + 60)
    assert re.fullmatch("clock: 6[01] s ahead of Asterisk's", found.text)
    assert "NTP" in found.remedy


# --- ARI and its legs ----------------------------------------------------------------------------


async def test_ari_that_does_not_listen_is_a_fault(checked: Asterisk, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/ari"
    found = await only_failure(
        checked, with_ari(checked, ari=f"url = {url}\npassword = {SECRET}\n")
    )
    assert found.text == f"ARI at {url}: Connection refused (no program listens there)"
    assert f"\n  bindport = {closed_port}\n" in found.remedy


async def test_wrong_ari_password_is_told_without_quoting_it(checked: Asterisk) -> None:
    section = ari_settings(checked).replace(SECRET, "hunter2")
    found = await only_failure(checked, with_ari(checked, ari=section))
    assert found.text == (
        "ARI: Asterisk's REST interface refused audiofork: Authentication required"
    )
    assert "\n  [audiofork]\n  type = user\n" in found.remedy
    assert "hunter2" not in str(found)


async def test_ari_user_that_may_only_read_is_a_fault(checked: Asterisk) -> None:
    found = await only_failure(checked, with_ari(checked, "username = reader\n"))
    assert found.text == "ARI: Asterisk's REST interface refused reader: Write access denied"
    assert "\n  [reader]\n  read_only = no\n" in found.remedy


async def test_url_that_is_not_that_of_ari_is_a_fault(checked: Asterisk) -> None:
    section = ari_settings(checked).replace("/ari", "/elsewhere/ari")
    found = await only_failure(checked, with_ari(checked, ari=section))
    assert found.text.endswith("/elsewhere/ari: 404: Not Found")
    assert 'asterisk -rx "http show status"' in found.remedy


@pytest.mark.parametrize(
    ("removed", "what"),
    [
        ("context audiofork-leg", "is missing"),
        ("extension narrow@audiofork-leg", "has no extension narrow"),
        ("extension wide@audiofork-leg", "has no extension wide"),
        ("context audiofork", "is missing; a bare Gosub into audiofork ends the call"),
        (
            "extension clean@audiofork",
            "has no extension clean; a bare Gosub into audiofork ends the call",
        ),
    ],
)
@pytest.mark.parametrize("by_ari", [False, True], ids=["chanspy", "ari"])
async def test_missing_part_of_the_dialplan_is_named(
    checked: Asterisk, removed: str, what: str, by_ari: bool
) -> None:
    checked.cli(f"dialplan remove {removed}")
    try:
        found = await only_failure(checked, (with_ari if by_ari else configured)(checked))
    finally:
        checked.cli("dialplan reload")
    context = removed.split("@")[-1].removeprefix("context ")
    assert found.text == f"dialplan: the context {context} {what}"
    assert "\n  #include extensions_audiofork.conf\n" in found.remedy


async def test_edited_or_older_dialplan_is_told(checked: Asterisk) -> None:
    checked.cli("dialplan remove extension version@audiofork")
    older = await only_failure(checked, configured(checked))
    assert older.text.endswith("_audiofork.conf is older (version 0) than this daemon's (6)")
    checked.cli("dialplan reload")
    checked.cli("dialplan add extension extra,1,NoOp into audiofork")
    outcome, findings = await findings_of(checked, configured(checked))
    checked.cli("dialplan remove extension extra@audiofork")
    assert "dialplan: extensions_audiofork.conf has been edited" in [
        finding.text for finding in findings if finding.mark is Mark.WARN
    ]
    assert outcome is Outcome.FINE


async def test_user_without_reporting_learns_of_a_missing_context_from_the_trial(
    checked: Asterisk,
) -> None:
    """What keeps legs out of the call records stands in that context."""
    checked.cli("dialplan remove context audiofork-leg")
    text = f"port = {checked.ami_port}\nusername = no-reporting\nsecret = {SECRET}\n"
    try:
        settings = with_ari(checked, asterisk=text)
        _, findings = await findings_of(checked, settings, records=2)
    finally:
        checked.cli("dialplan reload")
    _, *failed = failures(findings)
    assert [found.text for found in failed] == [
        "snoop at 8000 Hz: the leg ended before it connected",
        "snoop at 16000 Hz: the leg ended before it connected",
    ]
    assert all("#include extensions_audiofork.conf" in found.remedy for found in failed)


# Before that all legs by ARI come by Dial().
@needs(
    LEG_ENDS_WITH_PEER,
    "legs by AudioSocket() that end with their connection",
    module=["app_audiosocket.so", "app_dial.so"],
)
@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("app_audiosocket.so", "snoop at 8000 Hz: the leg ended before it connected"),
        ("app_dial.so", "snoop at 16000 Hz: the leg ended before it connected"),
        ("app_stasis.so", "snoop: ARI: the leg did not enter audiofork-check in time"),
        ("res_ari_events.so", "snoop: no connection to ARI at "),
        ("res_ari_applications.so", "snoop: no connection to ARI at "),
        ("res_ari_channels.so", "ARI at "),
    ],
)
async def test_missing_module_of_ari_or_the_dialplan_is_named(
    checked: Asterisk, module: str, text: str
) -> None:
    with without(checked, module):
        # What keeps legs out of the call records stands in the context that they do not come to.
        records = 2 if module == "app_stasis.so" else 0
        found = await only_failure(checked, with_ari(checked), records=records)
        by_system = with_ari(
            checked,
            asterisk=f"port = {checked.ami_port}\nusername = system\nsecret = {SECRET}\n",
        )
        _, findings = await findings_of(checked, by_system)
    assert found.text.startswith(text)
    assert f'\n  asterisk -rx "module load {module}"\n' in found.remedy
    assert f"modules: {module} not loaded" in [one.text for one in failures(findings)]


@pytest.mark.parametrize("module", ["app_exec.so", "app_verbose.so", "func_base64.so"])
async def test_missing_module_of_the_dialplan_is_named_by_ari(
    checked: Asterisk, module: str
) -> None:
    with without(checked, module):
        found = await only_failure(checked, with_ari(checked))
    assert found.text == f"modules: {module} not loaded, which forks from the dialplan need"
    assert f'\n  asterisk -rx "module load {module}"\n' in found.remedy


@pytest.mark.parametrize("by_ari", [False, True], ids=["chanspy", "ari"])
async def test_missing_func_dialplan_is_named_once(checked: Asterisk, by_ari: bool) -> None:
    with without(checked, "func_dialplan.so"):
        found = await only_failure(checked, (with_ari if by_ari else configured)(checked))
    assert found.text.startswith("dialplan: Asterisk does not know DIALPLAN_EXISTS()")
    assert '\n  asterisk -rx "module load func_dialplan.so"\n' in found.remedy


async def test_user_with_system_finds_all_modules_of_ari(checked: Asterisk) -> None:
    text = f"port = {checked.ami_port}\nusername = system\nsecret = {SECRET}\n"
    outcome, findings = await findings_of(checked, with_ari(checked, asterisk=text))
    assert outcome is Outcome.FINE
    assert Finding(Mark.OK, "modules: loaded") in findings


async def test_snoop_without_a_timing_source_is_a_fault() -> None:
    additions = {
        "manager.conf": manager_conf(),
        "ari.conf": ari_conf(),
        "modules.conf": "noload = res_timing_pthread.so\n",
    }
    with Asterisk(dialplan=dialplan(), config=additions) as asterisk:
        found = await only_failure(asterisk, with_tap(asterisk, "snoop"))
    assert found.text == "snoop: ARI: 500: Snoop channel could not be created"
    assert 'asterisk -rx "module load res_timing_pthread.so"' in found.remedy


@pytest.mark.parametrize("module", ["timerfd", "pthread"])
async def test_timing_module_that_loses_ticks_is_told_by_name(module: str) -> None:
    additions = {
        "manager.conf": manager_conf(),
        "ari.conf": ari_conf(),
        "modules.conf": f"load = res_timing_{module}.so\n",
    }
    with Asterisk(dialplan=dialplan(), config=additions) as asterisk:
        outcome, findings = await findings_of(asterisk, with_ari(asterisk))
    assert outcome is Outcome.FINE
    told = Finding(Mark.SKIP, remedies.TICKS_ARE_LOST) in findings
    assert told == (module == "timerfd")


async def test_missing_chanspy_is_no_fault_where_the_snoop_is_required(checked: Asterisk) -> None:
    with without(checked, "app_chanspy.so"):
        outcome, findings = await findings_of(checked, with_tap(checked, "snoop"))
    assert failures(findings) == []
    assert outcome is Outcome.FINE
    assert Finding(Mark.SKIP, "audio: ChanSpy is not used ([asterisk] tap = snoop)") in findings
    assert any(finding.text.startswith("snoop at 16000 Hz") for finding in findings)


async def test_nothing_of_ari_is_looked_at_where_chanspy_is_required(checked: Asterisk) -> None:
    with without(checked, "res_ari_channels.so"):
        outcome, findings = await findings_of(checked, with_tap(checked, "chanspy"))
    assert failures(findings) == []
    assert outcome is Outcome.FINE
    assert "ARI: not used ([asterisk] tap = chanspy): legs come by ChanSpy, at 8000 Hz" in [
        finding.text for finding in findings
    ]


async def test_who_does_as_the_check_says_comes_from_nothing_to_no_fault() -> None:
    """Each remedy is followed to the letter."""
    off = {"http.conf": "enabled = no\n", "ari.conf": "enabled = no\n"}
    additions = {"manager.conf": manager_conf(), **off}
    with Asterisk(config=additions) as asterisk:
        for name in off:  # not the user's section, but [general]
            (asterisk.folder / "etc" / name).write_text("[general]\nenabled = no\n")
        asterisk.cli("module reload res_ari.so")
        settings = with_ari(asterisk)
        told: list[str] = []
        for _ in range(4):
            outcome, findings = await findings_of(asterisk, settings)
            for found in failures(findings):
                told.append(found.text)
                follow(asterisk, found)
        outcome, findings = await findings_of(asterisk, settings)
        assert failures(findings) == []
        assert outcome is Outcome.FINE
        address = f"http://127.0.0.1:{asterisk.http_port}/ari"
        assert told == [
            f"ARI at {address}: Connection refused (no program listens there)",
            "dialplan: the context audiofork is missing, the context audiofork-leg is missing; "
            "a bare Gosub into audiofork ends the call",
            f"ARI at {address}: 404: Not Found",
            "ARI: Asterisk's REST interface refused audiofork: Authentication required",
        ]


def follow(asterisk: Asterisk, found: Finding) -> None:
    """Do what a remedy says by hand: its indented lines are commands, or lines of a file.

    The file is the one that is named last before them.
    """
    etc = asterisk.folder / "etc"
    shutil.copy(ETC / "asterisk/extensions_audiofork.conf", etc)
    before = ""
    for indented, lines in itertools.groupby(
        found.remedy.splitlines(), lambda line: line.startswith("  ")
    ):
        if not indented:
            before += " ".join(lines)
            continue
        block = [line[2:] for line in lines]
        if block[0].startswith("asterisk -rx"):
            for command in block:
                asterisk.cli(command.removeprefix('asterisk -rx "').removesuffix('"'))
        elif block[0].startswith("install "):
            for command in block:
                command = command.replace(" -g asterisk", "").replace("/etc/asterisk", str(etc))
                subprocess.run(command.split(), check=True, timeout=10)
        else:
            add(
                etc / re.findall(r"\b(?:http|ari_audiofork|ari|extensions)\.conf", before)[-1],
                block,
            )
    secret = etc / "ari_audiofork.conf"
    assert not secret.exists() or secret.stat().st_mode & 0o777 == 0o640


def add(file: Path, lines: list[str]) -> None:
    """Add lines to a file, or let them replace it if they are its section [general]."""
    before = "" if lines[0] == "[general]" else file.read_text()
    file.write_text(before + "\n" + "\n".join(lines).replace("(that of [ari])", SECRET) + "\n")


# --- Beside a daemon -----------------------------------------------------------------------------


async def test_running_daemon_is_reached_at_its_own_port_and_goes_on(checked: Asterisk) -> None:
    with Daemon(checked, {"audiosocket": f"listen = 127.0.0.1:{free_tcp_port()}\n"}) as daemon:
        outcome, findings = await findings_of(checked, config_file.load(daemon.config, {}))
        assert failures(findings) == []
        assert outcome is Outcome.FINE
        texts = [finding.text for finding in findings]
        assert "daemon: runs, 0 forks" in texts
        address = f"127.0.0.1:{daemon.audiosocket_port}"
        assert f"AudioSocket: Asterisk reaches the daemon at {address}, which says so" in texts
        assert any(text.endswith("in and out mixed by ChanSpy") for text in texts)
        assert daemon.exit_code is None
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("workers", [1, 2])
async def test_running_daemon_of_the_same_application_keeps_its_link_and_its_forks(
    checked: Asterisk, workers: int
) -> None:
    sections = {
        "ari": ari_settings(checked),
        "audiosocket": "listen = 127.0.0.1:0\n",
        "relay": f"workers = {workers}\n",
    }
    with Daemon(checked, sections) as daemon:
        await daemon.says("connected to ARI")
        async with (
            SipUser("caller", ("127.0.0.1", checked.sip_port)) as caller,
            AmiClient(checked) as ami,
            Recorder() as recorder,
        ):
            target = await place_call(ami, caller)
            target.call.talk()
            start_fork(ami, target.channel, recorder.url("/before"), "D(stereo)L(16000)")
            before = await recorder.wait_messages("/before", 10)
            began, frames = time.monotonic(), len(before.messages)
            checking_it = asyncio.create_task(check(config_file.load(daemon.config, {})))
            await asyncio.sleep(1.8)  # it snoops now
            start_fork(ami, target.channel, recorder.url("/meanwhile"), "D(in)L(16000)")
            meanwhile = await recorder.wait_messages("/meanwhile", 10)
            outcome, findings = await checking_it
            gone_on = (len(before.messages) - frames) / (time.monotonic() - began)
            assert failures(findings) == []
            assert outcome is Outcome.FINE
            assert any(finding.text.startswith("snoop at 16000 Hz: ") for finding in findings)
            assert "daemon: runs, 1 forks" in [finding.text for finding in findings]
            start_fork(ami, target.channel, recorder.url("/after"), "D(in)L(16000)")
            after = await recorder.wait_messages("/after", 10)
            assert gone_on > 45
            assert {len(message) for message in before.messages} == {1280}
            assert {len(message) for message in meanwhile.messages + after.messages} == {640}
            assert not before.closed
            assert not meanwhile.closed
            await target.call.hangup()
            await recorder.wait_closed("/before")
            await only_channels(ami)
        log = daemon.log()
        assert "took the ARI application" not in log
        assert "no connection to ARI" not in log
        assert log.count("connected to ARI") == 1
        assert "Traceback" not in log


class Foreign:
    """A program that accepts what comes to a port, and keeps it."""

    async def __aenter__(self) -> Foreign:
        self._peers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._keep, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _keep(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers.append(writer)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in self._peers:
            peer.close()


def beside(asterisk: Asterisk, daemon: Daemon, port: int, *, with_socket: bool) -> Config:
    """Return the configuration of a daemon with another port in it."""
    path = daemon.socket if with_socket else ""
    return configured(
        asterisk, audiosocket=f"listen = 127.0.0.1:{port}\n", control=f"socket = {path}\n"
    )


@pytest.mark.parametrize("with_socket", [False, True], ids=["no socket", "socket"])
async def test_foreign_program_on_the_port_does_not_pass_for_the_daemon(
    checked: Asterisk, with_socket: bool
) -> None:
    async with Foreign() as foreign:
        # None, and then one that has another port of the same Asterisk.
        settings = configured(
            checked, audiosocket=f"listen = 127.0.0.1:{foreign.port}\n", control="socket =\n"
        )
        found = await only_failure(checked, settings)
        assert found.text == (
            f"AudioSocket: a program listens on 127.0.0.1:{foreign.port}, and a daemon of this "
            "Asterisk does not say that it is"
        )
        assert "ss -ltnp" in found.remedy
        with Daemon(checked) as daemon:
            settings = beside(checked, daemon, foreign.port, with_socket=with_socket)
            found = await only_failure(checked, settings)
            assert found.text == (
                f"AudioSocket: it is not the daemon that listens on 127.0.0.1:{foreign.port}"
            )


async def test_another_daemon_on_the_port_does_not_pass_for_that_of_the_socket(
    checked: Asterisk,
) -> None:
    with Daemon(checked) as one, Daemon(checked) as other:
        port = other.audiosocket_port
        found = await only_failure(checked, beside(checked, one, port, with_socket=True))
        assert found.text == f"AudioSocket: another daemon listens on 127.0.0.1:{port}"
        settings = beside(checked, other, port, with_socket=True)
        outcome, findings = await findings_of(checked, settings)
        assert (outcome, failures(findings)) == (Outcome.FINE, [])
        # Without a socket either is a daemon that says so.
        outcome, _ = await findings_of(checked, beside(checked, other, port, with_socket=False))
        assert outcome is Outcome.FINE
        for daemon in (one, other):
            assert "attack" not in daemon.log()
            assert "AudioSocket connections closed" not in daemon.log()


async def test_daemon_of_the_port_that_cannot_be_asked_is_a_fault(
    checked: Asterisk, tmp_path: Path
) -> None:
    with Daemon(checked) as daemon:
        port = daemon.audiosocket_port
        settings = configured(
            checked,
            audiosocket=f"listen = 127.0.0.1:{port}\n",
            control=f"socket = {tmp_path}/gone.sock\n",
        )
        found = await only_failure(checked, settings)
    assert found.text == (
        f"daemon: one listens on 127.0.0.1:{port}, but not on [control] socket {tmp_path}/gone.sock"
    )


async def test_port_that_the_running_daemon_does_not_have_yet_is_a_fault(
    checked: Asterisk,
) -> None:
    with Daemon(checked) as daemon:
        port = free_tcp_port()
        found = await only_failure(checked, beside(checked, daemon, port, with_socket=True))
    assert found.text == (f"AudioSocket: the daemon that runs does not listen on 127.0.0.1:{port}")
    assert "systemctl restart audiofork" in found.remedy


@pytest.mark.parametrize("workers", [1, 2])
async def test_check_makes_no_daemon_log_anything(checked: Asterisk, workers: int) -> None:
    first = 20000 + free_tcp_port() % 8000  # two in a row, below those that the kernel hands out
    sections = {
        "ari": ari_settings(checked),
        "audiosocket": f"listen = 127.0.0.1:{first}\n",
        "relay": f"workers = {workers}\n",
    }
    with Daemon(checked, sections) as daemon:
        await daemon.says("connected to ARI")
        before = daemon.log()
        outcome, findings = await findings_of(checked, config_file.load(daemon.config, {}))
        assert (outcome, failures(findings)) == (Outcome.FINE, [])
        ports = [f"127.0.0.1:{first + number}" for number in range(workers)]
        text = f"AudioSocket: Asterisk reaches the daemon at {' and '.join(ports)}, which says so"
        assert text in [finding.text for finding in findings]
        assert daemon.log() == before


async def test_running_daemon_that_asterisk_cannot_reach_is_a_fault(
    checked: Asterisk, closed_port: int
) -> None:
    text = f"listen = 127.0.0.1:{free_tcp_port()}\nadvertise = 127.0.0.1:{closed_port}\n"
    with Daemon(checked, {"audiosocket": text}) as daemon:
        found = await only_failure(checked, config_file.load(daemon.config, {}))
    assert found.text == f"AudioSocket: Asterisk and 127.0.0.1:{closed_port}: cannot connect"


async def test_running_daemon_whose_file_limit_is_too_low_is_a_fault(checked: Asterisk) -> None:
    command = ("prlimit", "--nofile=300:300", sys.executable, "-m", "audiofork", "run")
    with Daemon(checked, command=command) as daemon:
        found = await only_failure(checked, config_file.load(daemon.config, {}))
    assert found.text == ("open files: the daemon may have 300, max_forks = 1000 takes 4400")
    assert "LimitNOFILE=4400" in found.remedy


@pytest.fixture
def secretive(checked: Asterisk, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that alone has the secrets, as the shipped service has them from systemd."""
    (tmp_path / "ami-secret").write_text(f"{SECRET}\n")
    file = "${CREDENTIALS_DIRECTORY}/ami-secret"
    url = f"http://127.0.0.1:{checked.http_port}/ari"
    sections = {
        "asterisk": f"port = {checked.ami_port}\nsecret_file = {file}\n",
        "ari": f"url = {url}\npassword_file = {file}\n",
        "audiosocket": f"listen = 127.0.0.1:{free_tcp_port()}\n",
    }
    given = f"CREDENTIALS_DIRECTORY={tmp_path}"
    with Daemon(
        checked, sections, command=("env", given, sys.executable, "-m", "audiofork", "run")
    ) as one:
        yield one


def run_beside(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audiofork", *arguments, "-c", str(daemon.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


async def test_each_command_works_where_the_daemon_alone_has_the_secrets(
    checked: Asterisk, secretive: Daemon
) -> None:
    async with (
        SipUser("caller", ("127.0.0.1", checked.sip_port)) as caller,
        AmiClient(checked) as ami,
        Recorder() as recorder,
    ):
        target = await place_call(ami, caller)
        target.call.talk()
        url = recorder.url("/fork")
        commands = [
            ["list"],
            ["start", target.channel, url, "--options", "D(in)", "--no-wait"],
            ["mute", target.channel, "on"],
            ["check", "--taps"],
            ["check"],
            ["stop", target.channel],
        ]
        for command in commands:
            done = await asyncio.to_thread(run_beside, secretive, *command)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            assert "FAIL" not in done.stdout
            if command == ["check"]:
                assert done.stdout.startswith("ok    check: by the running daemon")
                assert "daemon: runs, 1 forks" in done.stdout
                assert "snoop at 16000 Hz: " in done.stdout
        fork = await recorder.wait_closed("/fork")
        assert fork.messages
        await target.call.hangup()
        await only_channels(ami)
    here = run_beside(secretive, "check", "--here")
    assert here.returncode == 1
    for subject, option in (("ARI", "[ari] password_file"), ("login", "[asterisk] secret_file")):
        place = rf"{re.escape(str(secretive.config))}:\d+"
        assert re.search(rf"FAIL  {subject}: {place}: {re.escape(option)}: ", here.stdout)
    assert "start the daemon" in " ".join(here.stdout.split())
    assert SECRET not in secretive.log()


async def check_that_has_opened_a_channel(ami: AmiClient, daemon: Daemon) -> Process:
    """Return a command that has the daemon check, as soon as that has begun with the audio."""
    position = len(ami.events)
    opened = asyncio.create_task(
        ami.wait_event(
            lambda h: (
                h.get("Event") == "Newchannel"
                and h["Uniqueid"].startswith("audiofork-check-")
                and str(daemon.audiosocket_port) not in h["Channel"]
            ),
            after=position,
        )
    )
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "audiofork", "check", "-c", str(daemon.config)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({opened, ended}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done():
            opened.result()
            ended.cancel()
            return process
        await asyncio.sleep(0.1)  # the one before has not ended yet


async def test_check_that_nobody_waits_for_any_more_leaves_nothing_in_asterisk(
    checked: Asterisk, secretive: Daemon
) -> None:
    """Its client goes away, and then the daemon itself."""
    async with AmiClient(checked) as ami:
        for ends in ("client", "daemon"):
            process = await check_that_has_opened_a_channel(ami, secretive)
            if ends == "client":
                process.kill()
            else:
                await asyncio.to_thread(secretive.stop)
                assert secretive.exit_code == 0  # else it was killed
            await process.wait()
            await no_channels(ami)
    log = secretive.log()
    assert "Traceback" not in log, log


@pytest.mark.serial  # the daemon's own check judges the pace of audio
async def test_check_by_the_daemon_holds_up_none_of_its_forks(
    checked: Asterisk, secretive: Daemon
) -> None:
    async with (
        SipUser("caller", ("127.0.0.1", checked.sip_port)) as caller,
        AmiClient(checked) as ami,
        Recorder() as recorder,
    ):
        target = await place_call(ami, caller)
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/fork"), "D(stereo)")
        fork = await recorder.wait_messages("/fork", 10)
        began, frames = time.monotonic(), len(fork.messages)
        both = [asyncio.to_thread(run_beside, secretive, "check") for _ in range(2)]
        done = await asyncio.gather(*both)
        gone_on = (len(fork.messages) - frames) / (time.monotonic() - began)
        assert gone_on > 45
        # One at a time.
        assert sorted(one.returncode for one in done) == [0, 1]
        assert [one.stderr for one in done if one.returncode] == [
            "audiofork: another check runs; ask again in a few seconds\n"
        ]
        await target.call.hangup()
        await recorder.wait_closed("/fork")
        await only_channels(ami)
    assert "Traceback" not in secretive.log()
    assert secretive.log().count("connected to ARI") == 1


# --- The command ---------------------------------------------------------------------------------


def run_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audiofork", "check", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.serial
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
    assert fine.stdout.startswith(
        f"skip  check: from here, not by a daemon\nok    configuration: {path}\n"
    )
    assert "FAIL" not in fine.stdout
    path.write_text(text.replace(SECRET, "wrong"))
    fault = run_check(path)
    assert fault.returncode == 1
    assert "\nFAIL  login: " in fault.stdout
    assert "\n        Run audiofork setup, as root on Asterisk" in fault.stdout
    path.write_text(text.replace("secret", "sceret"))
    assert run_check(path).returncode == 3
    path.write_text(text.replace(str(checked.ami_port), str(free_tcp_port())))
    assert run_check(path).returncode == 4


@pytest.mark.serial
def test_command_says_a_fault_of_ari_once_and_not_on_standard_error(
    checked: Asterisk, tmp_path: Path
) -> None:
    path = tmp_path / "audiofork.ini"
    path.write_text(
        f"[asterisk]\nport = {checked.ami_port}\nsecret = {SECRET}\n"
        f"[ari]\n{ari_settings(checked)}"
        "[audiosocket]\nlisten = 127.0.0.1:0\n[control]\nsocket =\n"
    )
    with without(checked, "res_ari_events.so"):
        fault = run_check(path)
    assert (fault.returncode, fault.stderr) == (1, "")
    assert fault.stdout.count("no connection to ARI") == 1
