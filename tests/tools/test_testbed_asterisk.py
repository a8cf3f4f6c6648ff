"""The testbed itself: finding, fetching, running and cleaning up Asterisk."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from audiofork.asterisk.versions import CHANSPY_IN_WHOLE, CHANSPY_PAIRS, EVENT_FILTERS_BY_NAME
from testbed import asterisk, daemon, debian
from testbed.asterisk import (
    Asterisk,
    AsteriskFailed,
    AsteriskUnavailable,
    Installation,
    find_installation,
    new_enough,
)
from testbed.debian import Source
from tests.system.conftest import lack

DIALPLAN = """
[testbed]
exten => hello,1,Answer()
 same => n,Playback(hello-world)
"""

# Starts Asterisk, says where, and waits to be killed.
OWNER = """
from testbed.asterisk import Asterisk
asterisk = Asterisk()
asterisk.start()
print(asterisk.pid, asterisk.folder, flush=True)
input()
"""


@pytest.fixture(scope="module")
def installation() -> Installation:
    try:
        return find_installation()
    except AsteriskUnavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(autouse=True)
def no_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(asterisk.KEEP_VARIABLE, raising=False)


def installation_of(
    root: Path, *modules: str, prompts: Path = Path("/nowhere"), technology: str = "PJSIP"
) -> Installation:
    """An installation of nothing but empty modules and a folder of data."""
    for name in modules:
        (root / "modules").mkdir(parents=True, exist_ok=True)
        (root / "modules" / name).touch()
    (root / "data").mkdir(parents=True, exist_ok=True)
    return Installation("20.4.0", (), root / "modules", root / "data", prompts, technology)


def running(pid: int) -> bool:
    """Tell whether the process lives; a zombie that nobody reaps does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s in vain"
        time.sleep(0.01)


def ami_banner(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        return connection.recv(100)


# Running


@pytest.mark.asterisk
def test_two_instances_run_side_by_side_and_leave_nothing(installation: Installation) -> None:
    with Asterisk(installation) as one, Asterisk(installation) as other:
        for instance in (one, other):
            assert ami_banner(instance.ami_port).startswith(b"Asterisk Call Manager")
            assert "chan_audiosocket.so" in instance.cli("module show like chan_audiosocket")
            assert "app_chanspy.so" in instance.cli("module show like app_chanspy")
            assert running(instance.pid)
        assert one.folder != other.folder
    for instance in (one, other):
        assert not running(instance.pid)
        assert not instance.folder.exists()


@pytest.mark.asterisk
def test_log_of_a_start_has_no_complaint(installation: Installation) -> None:
    """All listed modules load, and no configuration file is missing."""
    with Asterisk(installation) as instance:
        complaints = [line for line in instance.log().splitlines() if "ERROR" in line]
        assert complaints == []


@pytest.mark.asterisk
def test_call_plays_a_prompt_and_leaves_a_cdr(installation: Installation) -> None:
    with Asterisk(installation, dialplan=DIALPLAN) as instance:
        instance.cli("channel originate Local/hello@testbed application Wait 3")
        wait_for(lambda: "Playing 'hello-world" in instance.log())
        wait_for(instance.cdr_rows)
        assert any("hello" in row for row in instance.cdr_rows())


@pytest.mark.asterisk
def test_config_is_added_to_files_and_creates_them(installation: Installation) -> None:
    config = {
        "manager.conf": "[second]\nsecret = x\nread = user\n",
        "extensions.conf": "[more]\nexten => 1,1,NoOp()\n",
        "new.conf": "[section]\n",
    }
    with Asterisk(installation, dialplan=DIALPLAN, config=config) as instance:
        users = instance.cli("manager show users")
        assert "second" in users
        assert "testbed" in users
        assert "hello" in instance.cli("dialplan show testbed")
        assert "NoOp" in instance.cli("dialplan show more")
        assert "[section]" in (instance.folder / "etc/new.conf").read_text()


@pytest.mark.asterisk
def test_restart_keeps_ports_and_folder(installation: Installation) -> None:
    with Asterisk(installation) as instance:
        before = instance.folder, instance.ami_port, instance.sip_port, instance.http_port
        pid = instance.pid
        instance.restart()
        assert instance.pid != pid
        assert not running(pid)
        assert running(instance.pid)
        assert before == (
            instance.folder,
            instance.ami_port,
            instance.sip_port,
            instance.http_port,
        )


@pytest.mark.asterisk
def test_restart_after_kill(installation: Installation) -> None:
    with Asterisk(installation) as instance:
        instance.kill()
        assert not running(instance.pid)
        instance.restart()
        assert ami_banner(instance.ami_port).startswith(b"Asterisk Call Manager")


@pytest.mark.asterisk
def test_failing_body_leaves_nothing(installation: Installation) -> None:
    instance = Asterisk(installation)
    with pytest.raises(ZeroDivisionError), instance:
        raise ZeroDivisionError
    assert not running(instance.pid)
    assert not instance.folder.exists()


@pytest.mark.asterisk
def test_keep_leaves_the_folder(installation: Installation) -> None:
    with Asterisk(installation, keep=True) as instance:
        pass
    asterisk.remove_stale_folders()
    try:
        assert "Asterisk PBX Core Initializing" in instance.log()
    finally:
        shutil.rmtree(instance.folder)


@pytest.mark.asterisk
def test_stop_twice_does_nothing(installation: Installation) -> None:
    instance = Asterisk(installation)
    instance.stop()
    instance.start()
    instance.stop()
    instance.stop()


@pytest.mark.asterisk
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_taken_port_is_chosen_anew(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        answers = [port]
        choose = asterisk.free_port
        monkeypatch.setattr(
            asterisk,
            "free_port",
            lambda wanted: answers.pop() if wanted == kind and answers else choose(wanted),
        )
        with Asterisk(installation) as instance:
            assert not answers
            assert port not in (instance.ami_port, instance.sip_port)
            assert running(instance.pid)


@pytest.mark.asterisk
def test_failed_start_tells_the_last_lines_and_leaves_nothing(installation: Installation) -> None:
    instance = Asterisk(installation, config={"modules.conf": "require = no_such_module.so\n"})
    with pytest.raises(AsteriskFailed, match="ended with status .*(?s:.*)no_such_module"):
        instance.start()
    assert not instance.folder.exists()
    assert not running(instance.pid)


@pytest.mark.asterisk
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # threads of other tests
def test_forked_child_does_not_hold_up_stop(installation: Installation) -> None:
    instance = Asterisk(installation)
    instance.start()
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        instance.stop()
        assert not running(instance.pid)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.asterisk
def test_instance_outlives_the_thread_that_started_it(installation: Installation) -> None:
    instance = Asterisk(installation)
    thread = threading.Thread(target=instance.start)
    thread.start()
    thread.join()
    try:
        assert ami_banner(instance.ami_port).startswith(b"Asterisk Call Manager")
    finally:
        instance.stop()


@pytest.mark.asterisk
def test_killed_owner_takes_asterisk_along(installation: Installation) -> None:
    """Asterisk ends at once; the next start sweeps the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        asterisk.remove_stale_folders()
        assert Path(folder).exists()
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not running(int(pid)))
    asterisk.remove_stale_folders()
    wait_for(lambda: not Path(folder).exists())  # another start's sweep may be at it


@pytest.mark.parametrize(
    ("technology", "expected"),
    [
        ("PJSIP", ["app_dial.so", "res_pjsip.so", "chan_pjsip.so"]),
        ("SIP", ["app_dial.so", "chan_sip.so"]),
    ],
)
def test_modules_are_those_there_are_without_those_of_the_other_sip(
    tmp_path: Path, technology: str, expected: list[str]
) -> None:
    names = ("app_dial.so", "res_pjsip.so", "chan_pjsip.so", "chan_sip.so")
    listed = ["[modules]", *(f"load = {name}" for name in (*names, "chan_new.so"))]
    installation = installation_of(tmp_path, *names, technology=technology)
    text = asterisk._modules_to_load("\n".join(listed), installation)
    assert text.splitlines() == ["[modules]", *(f"load = {name}" for name in expected)]


def test_prompts_of_elsewhere_are_linked_into_the_data(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "hello-world.wav").touch()
    installation = installation_of(tmp_path, prompts=prompts)
    (installation.data / "sounds/en").mkdir(parents=True)
    (installation.data / "documentation").mkdir()
    instance = Asterisk(installation)
    instance.folder = tmp_path / "private"
    data = instance._folder_of_data()
    assert (data / "sounds/en/hello-world.wav").exists()
    assert (data / "documentation").is_dir()
    assert [file.name for file in (installation.data / "sounds/en").iterdir()] == []


def test_prompts_of_its_own_are_used_where_they_are(tmp_path: Path) -> None:
    installation = installation_of(tmp_path, prompts=tmp_path / "data/sounds/en")
    assert Asterisk(installation)._folder_of_data() == installation.data


def test_long_temporary_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of Asterisk's control socket has to fit into 107 bytes."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp/" + "x" * 80)
    assert asterisk._parent_folder() == "/tmp"


# Finding


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("16.28.0", False),
        ("18.21.2", False),
        ("18.22.0", True),
        ("19.8.1", False),
        ("20.6.0", False),
        ("20.7", True),
        ("21.1.0", False),
        ("21.2.0", True),
        ("22.0.0", True),
        ("24.1.0", True),
        ("nonsense", False),
    ],
)
def test_new_enough(version: str, expected: bool) -> None:
    assert new_enough(version) is expected


def put_in_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make a shell script the `asterisk` of this machine."""
    program = folder / "asterisk"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def installed_files(root: Path) -> tuple[Path, Path]:
    modules, data = root / "usr/lib/asterisk/modules", root / "var/lib/asterisk"
    modules.mkdir(parents=True)
    (modules / "chan_audiosocket.so").touch()
    (data / "sounds/en").mkdir(parents=True)
    return modules, data


def test_installed_asterisk_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_path(tmp_path, monkeypatch, "echo Asterisk certified/20.7-cert2")
    modules, data = installed_files(tmp_path)
    assert asterisk._installed(tmp_path) == Installation(
        "20.7", (str(tmp_path / "asterisk"),), modules, data, data / "sounds/en"
    )


def test_installed_asterisk_too_old_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_path(tmp_path, monkeypatch, "echo Asterisk 20.6.0")
    installed_files(tmp_path)
    assert asterisk._installed(tmp_path) is None


def test_installed_asterisk_without_audiosocket_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_path(tmp_path, monkeypatch, "echo Asterisk 22.0.0")
    modules, _ = installed_files(tmp_path)
    (modules / "chan_audiosocket.so").unlink()
    assert asterisk._installed(tmp_path) is None


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing installed and nothing cached; the cache folder."""
    monkeypatch.setattr(asterisk, "_installed", lambda: None)
    monkeypatch.delenv(asterisk.PREFIX_VARIABLE, raising=False)
    monkeypatch.setenv(asterisk.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_machine_without_apt_is_told_what_is_missing(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bare_machine))
    with pytest.raises(
        AsteriskUnavailable, match="(?s)no Asterisk.*apt-get and dpkg-deb not found"
    ):
        find_installation()


def test_command_line_tells_why_asterisk_is_unavailable(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(bare_machine))
    assert asterisk.main(["get"]) == 1
    assert "apt-get and dpkg-deb not found" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_failed_fetch_leaves_no_half_cache(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> debian.Origin:
        raise debian.FetchFailed("no such package")

    known = debian.Origin((), (Path("/dev/null"),))
    monkeypatch.setattr(debian, "origin_from_machine", lambda: known)
    monkeypatch.setattr(debian, "origin_from_packages", nothing)
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{refusing.getsockname()[1]}/debian"
        monkeypatch.setenv(debian.MIRROR_VARIABLE, mirror)
        with pytest.raises(AsteriskUnavailable, match="(?s)Failed to fetch.*no such package"):
            find_installation()
    assert [file.name for file in bare_machine.iterdir()] == ["lock"]


def test_damaged_cache_is_named(bare_machine: Path) -> None:
    tree = bare_machine / f"asterisk-sid-{platform.machine()}"
    tree.mkdir(parents=True)
    with pytest.raises(AsteriskUnavailable, match="is damaged: remove it"):
        find_installation()


# A build of one's own


class Build:
    """A prefix as `make install` leaves it: what is named by the variable."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.modules, self.data = prefix / "lib/asterisk/modules", prefix / "var/lib/asterisk"
        self.program = prefix / "sbin/asterisk"
        for folder in (self.modules, self.data / "sounds/en", self.program.parent):
            folder.mkdir(parents=True)
        for name in ("chan_audiosocket.so", "chan_pjsip.so", "chan_sip.so"):
            (self.modules / name).touch()
        (self.data / "sounds/en/hello-world.gsm").touch()
        self.says("echo Asterisk 18.0.0")

    def says(self, script: str) -> None:
        """Make a shell script the program."""
        self.program.write_text(f"#!/bin/sh\n{script}\n")
        self.program.chmod(0o755)

    def without(self, *names: str) -> None:
        for name in names:
            (self.modules / name).unlink()

    def refusal(self) -> str:
        with pytest.raises(AsteriskUnavailable) as caught:
            find_installation()
        start = f"{asterisk.PREFIX_VARIABLE} names {self.prefix}, and "
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setenv(asterisk.PREFIX_VARIABLE, str(tmp_path / "prefix"))
    return Build(tmp_path / "prefix")


def test_named_build_is_used_however_old_its_chanspy(build: Build) -> None:
    found = find_installation()
    assert (found.version, found.modules, found.data) == ("18.0.0", build.modules, build.data)
    assert found.prompts == build.data / "sounds/en"
    assert found.callee == "PJSIP/callee"


def test_named_build_finds_its_libraries_wherever_it_was_moved_to(build: Build) -> None:
    build.says('echo "Asterisk GIT-$LD_LIBRARY_PATH"')
    assert find_installation().version == f"GIT-{build.prefix}/lib"


def test_named_build_of_a_development_branch_is_used(build: Build) -> None:
    build.says("echo Asterisk GIT-22-f0c1c1a")
    assert find_installation().version == "GIT-22-f0c1c1a"


def test_named_build_without_chan_pjsip_calls_by_chan_sip(build: Build) -> None:
    build.without("chan_pjsip.so")
    assert find_installation().callee == "SIP/callee"


def test_named_build_without_prompts_gets_those_of_debian(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts"
    (build.data / "sounds/en/hello-world.gsm").unlink()
    monkeypatch.setattr(asterisk, "_cached", lambda: installation_of(tmp_path, prompts=prompts))
    assert find_installation().prompts == prompts


def test_named_build_without_prompts_where_debians_are_not_to_be_had(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> Installation:
        raise AsteriskUnavailable("no mirror")

    (build.data / "sounds/en/hello-world.gsm").unlink()
    monkeypatch.setattr(asterisk, "_cached", nothing)
    assert build.refusal() == ("it has no English prompts; nor are Debian's to be had:\nno mirror")


def test_named_build_without_a_program(build: Build) -> None:
    build.program.unlink()
    assert build.refusal() == "there is no sbin/asterisk"


def test_named_build_whose_program_does_not_run(build: Build) -> None:
    build.says("echo libssl.so.1.1: cannot open >&2; exit 127")
    assert build.refusal() == "sbin/asterisk does not run: libssl.so.1.1: cannot open"


def test_named_build_without_modules(build: Build) -> None:
    shutil.rmtree(build.prefix / "lib")
    assert build.refusal() == "there is no lib/asterisk/modules"


def test_named_build_without_audiosocket(build: Build) -> None:
    build.without("chan_audiosocket.so")
    assert build.refusal() == f"chan_audiosocket.so is missing in {build.modules}"


def test_named_build_without_any_sip(build: Build) -> None:
    build.without("chan_pjsip.so", "chan_sip.so")
    assert build.refusal() == f"chan_pjsip.so and chan_sip.so are missing in {build.modules}"


def test_named_build_without_data(build: Build) -> None:
    shutil.rmtree(build.data)
    assert build.refusal() == "there is no var/lib/asterisk"


def test_named_build_too_old(build: Build) -> None:
    build.says("echo Asterisk 17.9.4")
    assert build.refusal() == "its Asterisk 17.9.4 is older than 18.0"


# The shipped AMI user


@pytest.mark.parametrize("version", ["18.26.0", "20.11.1", "21.6.0", "22.1.0", "23.0.0"])
def test_manager_conf_filters_by_name_where_asterisk_can(version: str) -> None:
    text = daemon.manager_conf(version)
    assert "\neventfilter(action(include),name(Hangup)) =\n" in text
    assert "\neventfilter(action(exclude),method(regex)) = [[:cntrl:]]{4}[^[:cntrl:]]\n" in text
    assert "\neventfilter = " not in text


@pytest.mark.parametrize("version", ["18.0.0", "18.25.0", "20.10.0", "21.5.0", "22.0.0"])
def test_manager_conf_filters_by_text_where_asterisk_is_older(version: str) -> None:
    lines = daemon.manager_conf(version).splitlines()
    assert [line for line in lines if line.startswith("eventfilter")] == [
        "eventfilter = Event: UserEvent",
        "eventfilter = Event: Hangup",
        "eventfilter = Event: Bridge",
        "eventfilter = Event: OriginateResponse",
        "eventfilter = Event: Hold",
        "eventfilter = Event: Unhold",
        "eventfilter = Event: DTMFEnd",
        "eventfilter = ![[:cntrl:]]{4}[^[:cntrl:]]",
    ]


# What a version cannot do


@pytest.mark.parametrize("version", ["18.22.0", "20.7.0", "22.0.0", "23.4.1", "GIT-22-f0c1c1a"])
def test_nothing_is_lacking_where_asterisk_can(version: str) -> None:
    assert lack(version, CHANSPY_PAIRS, "option D") == ""


@pytest.mark.parametrize("version", ["18.0.0", "18.21.2", "19.8.1", "20.6.0", "21.1.0"])
def test_what_an_older_asterisk_lacks_is_said(version: str) -> None:
    assert lack(version, CHANSPY_PAIRS, "option D") == (
        f"Asterisk {version} has no option D: 18.22, 20.7, 21.2, 22 and later have"
    )


@pytest.mark.asterisk
def test_nothing_is_lacking_in_the_default_asterisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is skipped everywhere proves nothing."""
    monkeypatch.delenv(asterisk.PREFIX_VARIABLE, raising=False)
    version = find_installation().version
    for fact in (CHANSPY_PAIRS, CHANSPY_IN_WHOLE, EVENT_FILTERS_BY_NAME):
        assert lack(version, fact, "that") == ""


# apt's sources


def test_parse_one_line_format() -> None:
    text = """\
# deb http://old.example.org/debian sid main
deb http://mirror.example.org/debian/ bookworm main contrib # ours
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] https://example.org/x stable main
deb-src http://mirror.example.org/debian bookworm main
deb http://flat.example.org/ ./
"""
    assert list(debian.parse_sources("sources.list", text)) == [
        Source("http://mirror.example.org/debian/", ("bookworm",), ("main", "contrib")),
        Source("https://example.org/x", ("stable",), ("main",)),
        Source("http://flat.example.org/", ("./",), ()),
    ]


def test_parse_deb822_format() -> None:
    text = """\
Types: deb deb-src
# a comment between fields
URIs: http://one.example.org/debian http://two.example.org/debian
Suites: trixie
 trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example.org/debian
Suites: trixie
Components: main

types: deb-src
uris: http://source.example.org/debian
suites: trixie
components: main
"""
    suites = ("trixie", "trixie-updates")
    assert list(debian.parse_sources("debian.sources", text)) == [
        Source("http://one.example.org/debian", suites, ("main",)),
        Source("http://two.example.org/debian", suites, ("main",)),
    ]


def test_parse_skips_files_apt_does_not_read() -> None:
    text = "deb http://example.org/debian sid main\n"
    assert list(debian.parse_sources("debian.list.bak", text)) == []


@pytest.mark.parametrize(
    ("uri", "suite", "component"),
    [
        ("http://example.org/debian-security", "bookworm-security", "main"),
        ("http://example.org/debian-security", "buster/updates", "main"),
        ("http://example.org/linux/debian", "bookworm", "stable"),
        ("http://example.org/pgdg", "bookworm-pgdg", "main"),
        ("http://example.org/ubuntu", "noble", "main"),
    ],
)
def test_other_archives_are_no_debian_mirror(uri: str, suite: str, component: str) -> None:
    assert debian.debian_mirrors([Source(uri, (suite,), (component,))]) == []


def test_mirrors_come_once_and_the_likeliest_first() -> None:
    sources = [
        Source("https://example.org/packages", ("stable",), ("main",)),
        Source("http://example.org/debian/", ("bookworm",), ("main",)),
        Source("http://example.org/debian", ("bookworm", "bookworm-updates"), ("main",)),
    ]
    assert debian.debian_mirrors(sources) == [
        "http://example.org/debian",
        "https://example.org/packages",
    ]


def test_origin_from_machine_reads_sources_and_keyring(tmp_path: Path) -> None:
    apt = tmp_path / "etc/apt"
    (apt / "sources.list.d").mkdir(parents=True)
    (apt / "sources.list").write_text("deb http://one.example.org/debian trixie main\n")
    (apt / "sources.list.d/two.sources").write_text(
        "Types: deb\nURIs: http://two.example.org/debian\nSuites: sid\nComponents: main\n"
    )
    keyring = tmp_path / "usr/share/keyrings/debian-archive-keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.touch()
    assert debian.origin_from_machine(tmp_path) == debian.Origin(
        ("http://one.example.org/debian", "http://two.example.org/debian"), (keyring,)
    )


def test_origin_from_machine_falls_back_to_trusted_keys(tmp_path: Path) -> None:
    folder = tmp_path / "etc/apt/trusted.gpg.d"
    folder.mkdir(parents=True)
    for name in ("debian-archive-trixie-stable.asc", "other.gpg"):
        (folder / name).touch()
    origin = debian.origin_from_machine(tmp_path)
    assert origin == debian.Origin((), (folder / "debian-archive-trixie-stable.asc",))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("  default_mirror http://example.org/debian\n", "http://example.org/debian"),
        ('DEF_MIRROR="http://example.org/debian"\n', "http://example.org/debian"),
        ('default_mirror () {\n\tDEF_MIRROR="$1"\n}\n', None),
    ],
    ids=["script", "program", "function"],
)
def test_default_mirror(script: str, expected: str | None) -> None:
    assert debian.default_mirror(script) == expected
