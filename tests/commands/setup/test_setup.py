"""Setup on a machine of files: what it writes, that it is whole, and that all can be taken back."""

from __future__ import annotations

import errno
import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiofork import config_file, shipped
from audiofork.commands.setup import files
from audiofork.commands.setup.conf import Conf, Files, is_true
from audiofork.commands.setup.edits import MARK
from audiofork.commands.setup.record import Service
from audiofork.commands.setup.system import Systemd
from audiofork.errors import ConfigError, SetupError
from tests.commands.setup.site import FILES, Machine

pytestmark = pytest.mark.slow

RELOADS = ["manager reload", "module reload http", "module reload res_ari.so", "dialplan reload"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def general(machine: Machine, name: str) -> dict[str, str]:
    section = Conf(machine.etc, name, Files()).section("general")
    assert section is not None
    return {one.name: one.value for one in section.settings}


def is_on(machine: Machine, name: str) -> bool:
    section = Conf(machine.etc, name, Files()).section("general")
    assert section is not None
    return is_true(section.value("enabled", "yes" if name == "ari.conf" else "no"))


def test_users_dialplan_http_and_the_configuration_come_into_their_place(machine: Machine) -> None:
    assert machine.setup().do() == 0
    secret = (machine.ini.parent / "ami-secret").read_text().strip()
    assert len(secret) == 48
    for name, user in (("manager.conf", "secret"), ("ari.conf", "password")):
        section = Conf(machine.etc, name, Files()).section("audiofork")
        assert section is not None
        assert section.value(user) == secret
    assert general(machine, "http.conf")["enabled"] == "yes"
    loaded = config_file.load(machine.ini, {})
    assert loaded.ari.url == "http://127.0.0.1:8088/ari"
    assert loaded.asterisk.secret == loaded.ari.password == secret
    dialplan = Conf(machine.etc, "extensions.conf", Files())
    assert dialplan.section("audiofork") is not None
    assert dialplan.section("audiofork-leg") is not None
    assert machine.asked() == RELOADS
    assert machine.checks == [machine.ini]
    assert secret not in machine.last()


def test_secrets_are_for_root_and_asterisk_alone(machine: Machine) -> None:
    machine.setup().do()
    modes = {name: mode & 0o777 for name, (mode, *_) in machine.tree().items()}
    assert modes["etc/audiofork/ami-secret"] == 0o600
    for name in ("manager_audiofork.conf", "ari_audiofork.conf"):
        assert modes[f"etc/asterisk/{name}"] in (0o600, 0o640)
    assert (machine.root / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("has_group", "mode"), [(True, 0o750), (False, 0o755)])
def test_folder_of_profiles_is_for_the_daemons_group_where_there_is_one(
    machine: Machine, has_group: bool, mode: int
) -> None:
    group = grp.getgrgid(os.getegid()).gr_name if has_group else "no group of this name"
    machine.setup(group=group).do()
    folder = machine.ini.parent / "profiles.d"
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert f"{folder}: a new folder, mode {mode:o}, group " in machine.last()


def test_folder_of_profiles_that_stands_stays_as_it_is(machine: Machine) -> None:
    folder = machine.ini.parent / "profiles.d"
    folder.mkdir(mode=0o700, parents=True)
    machine.setup().do()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert machine.setup().undo() == 0
    assert folder.is_dir()


def test_undo_leaves_profiles_that_the_user_has_put_there(machine: Machine) -> None:
    machine.setup().do()
    mine = machine.ini.parent / "profiles.d/mine.ini"
    mine.write_text("[profile:mine]\n")
    machine.setup().undo()
    assert mine.read_text() == "[profile:mine]\n"
    assert f"{mine.parent}: stays, with what is in it that setup did not make" in machine.said


def test_folder_alone_is_made_beside_files_that_are_as_setup_leaves_them(machine: Machine) -> None:
    machine.setup().do()
    folder = machine.ini.parent / "profiles.d"
    folder.rmdir()
    assert machine.setup().do() == 0
    assert folder.is_dir()


def test_profile_whose_token_systemd_hands_to_the_service_is_no_fault_here(
    machine: Machine,
) -> None:
    machine.ini.parent.mkdir(parents=True)
    machine.ini.write_text(
        "[profile:a]\nurl = ws://h/\ntoken_file = ${CREDENTIALS_DIRECTORY}/token\n"
    )
    assert machine.setup().do() == 0


def test_second_run_changes_nothing_and_says_so(machine: Machine) -> None:
    machine.setup().do()
    tree, asked = machine.tree(), machine.asked()
    assert machine.setup().do() == 0
    assert machine.tree() == tree
    assert machine.asked() == asked
    assert "nothing to change: every file is as setup leaves it" in machine.said
    assert len(machine.answers) == 9


def test_undo_after_two_runs_is_byte_identical_with_modes(machine: Machine) -> None:
    tree = machine.tree()
    machine.setup().do()
    machine.setup().do()
    assert machine.setup().undo() == 0
    assert machine.tree() == tree
    assert not (machine.root / "state").exists()
    assert machine.asked() == RELOADS * 2


def test_undo_of_nothing_says_so(machine: Machine) -> None:
    assert machine.setup().undo() == 0
    assert machine.last().startswith("nothing to take back")


def test_dry_run_and_a_no_change_nothing(machine: Machine) -> None:
    tree = machine.tree()
    assert machine.setup().show() == 0
    machine.answers = [False]
    assert machine.setup().do() == 1
    assert machine.tree() == tree
    assert not (machine.root / "state").exists()
    assert not machine.asked()
    assert f"+#include ari_audiofork.conf {MARK}" in machine.last()


# --- What may stand in Asterisk's files ----------------------------------------------------------

BODIES = st.sampled_from(
    [
        b"[general]\nenabled = yes\n",
        b"[general]\r\nenabled = no\r\nport = 5039\r\n",
        b"\xef\xbb\xbf[general]\nenabled = no",
        b"[general](!)\nenabled = yes\n[general]\nbindaddr = 0.0.0.0",
        b"[base](!)\nenabled = no\n[general](base)\n",
        b"[general]\nenabled = yes\n[general]\nenabled = no\n",
        b"; J\xfcrgen\n[general]\n#exec /bin/false\nenabled=0 ; \xff",
        b";-- [general] --;\n[GENERAL]\nEnabled => no\n",
        b"",
    ]
)


@given(st.fixed_dictionaries({name: BODIES for name in FILES if name != "asterisk.conf"}))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_line_is_touched_twice_is_once_and_undo_is_byte_identical(
    tmp_path_factory: pytest.TempPathFactory, bodies: dict[str, bytes]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"), {**FILES, **bodies})
    before = machine.tree()
    machine.setup().do()
    for name, body in bodies.items():
        assert machine.text(name).encode("latin-1").startswith(body)
        if name in ("manager.conf", "http.conf", "ari.conf"):
            assert is_on(machine, name)
    once = machine.tree()
    machine.setup().do()
    assert machine.tree() == once
    machine.setup().undo()
    assert machine.tree() == before


def test_server_that_was_off_is_on_loopback_alone_then(tmp_path: Path) -> None:
    off = b"[general]\nenabled = no\nbindaddr = 0.0.0.0\n"
    machine = Machine(tmp_path, {**FILES, "http.conf": off, "manager.conf": off})
    machine.setup().do()
    for name in ("http.conf", "manager.conf"):
        assert general(machine, name) == {"enabled": "yes", "bindaddr": "127.0.0.1"}


@pytest.mark.parametrize(
    ("http", "url"),
    [
        (b"enabled = yes\nbindaddr = 127.0.0.1\nbindport = 8089\n", "http://127.0.0.1:8089/ari"),
        (b"enabled = yes\nbindaddr = 0.0.0.0\nprefix = pbx\n", "http://127.0.0.1:8088/pbx/ari"),
        (b"enabled = on\nbindaddr = 192.0.2.7\n", "http://192.0.2.7:8088/ari"),
        (b"enabled = 1\nbindaddr = ::1\n", "http://[::1]:8088/ari"),
    ],
)
def test_http_server_that_runs_is_left_as_it_is_and_used(
    tmp_path: Path, http: bytes, url: str
) -> None:
    machine = Machine(tmp_path, {**FILES, "http.conf": b"[general]\n" + http})
    machine.setup().do()
    assert machine.text("http.conf").encode() == b"[general]\n" + http
    assert config_file.load(machine.ini, {}).ari.url == url
    assert ("listen on all addresses" in machine.last()) == (b"0.0.0.0" in http)


def test_other_address_of_ami_is_used_and_may_come_in(tmp_path: Path) -> None:
    text = b"[general]\nenabled = yes\nport = 5039\nbindaddr = 192.0.2.7\n"
    machine = Machine(tmp_path, {**FILES, "manager.conf": text})
    machine.setup().do()
    loaded = config_file.load(machine.ini, {}).asterisk
    assert (loaded.host, loaded.port) == ("192.0.2.7", 5039)
    assert "permit = 192.0.2.7/32\npermit = 127.0.0.1/" in machine.text("manager_audiofork.conf")


def test_wildcard_that_stands_brings_the_file_in(tmp_path: Path) -> None:
    text = FILES["manager.conf"] + b'#include "manager.d/*.conf" \n'
    machine = Machine(tmp_path, {**FILES, "manager.conf": text})
    tree = machine.tree()
    machine.setup().do()
    assert machine.text("manager.conf").encode() == text
    assert "[audiofork]" in machine.text("manager.d/audiofork.conf")
    machine.setup().undo()
    assert machine.tree() == tree


@pytest.mark.parametrize("directive", ["#include", "#tryinclude"])
def test_include_that_stands_is_not_added_again(tmp_path: Path, directive: str) -> None:
    line = f"{directive} extensions_audiofork.conf\n".encode()
    text = FILES["extensions.conf"] + line
    machine = Machine(
        tmp_path, {**FILES, "extensions.conf": text, "extensions_audiofork.conf": b"; an old one\n"}
    )
    machine.setup().do()
    assert machine.text("extensions.conf").encode() == text
    assert "[audiofork-leg]" in machine.text("extensions_audiofork.conf")
    machine.setup().undo()
    assert machine.text("extensions_audiofork.conf") == "; an old one\n"


def test_missing_files_are_made_and_removed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"asterisk.conf": b""})
    tree = machine.tree()
    machine.setup().do()
    assert general(machine, "manager.conf") == {"enabled": "yes", "bindaddr": "127.0.0.1"}
    machine.setup().undo()
    assert machine.tree() == tree


def test_link_is_followed_and_stays(machine: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.conf"
    (machine.etc / "ari.conf").rename(elsewhere)
    (machine.etc / "ari.conf").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    machine.setup().do()
    assert (machine.etc / "ari.conf").is_symlink()
    assert b"#include ari_audiofork.conf" in elsewhere.read_bytes()
    machine.setup().undo()
    assert elsewhere.read_bytes() == before


FREEPBX = {
    "asterisk.conf": b"",
    "manager.conf": b"; Do NOT edit this file as it is auto-generated by FreePBX.\n"
    b"[general]\nenabled = yes\n#include manager_additional.conf\n#include manager_custom.conf\n",
    "http.conf": b"[general]\n#include http_additional.conf\n#include http_custom.conf\n",
    "http_additional.conf": b"enabled=no\nbindaddr=::\nbindport=8088\n",
    "ari.conf": b"[general]\n#include ari_general_additional.conf\n"
    b"#include ari_general_custom.conf\n#include ari_additional.conf\n"
    b"#include ari_additional_custom.conf\n",
    "ari_general_additional.conf": b"enabled=no\n",
    "ari_additional.conf": b"[freepbxuser]\ntype=user\npassword=x\n",
    "extensions.conf": b"#include extensions_additional.conf\n#include extensions_custom.conf\n",
    "extensions_custom.conf": b"[from-internal-custom]\n",
}
CUSTOM = ("manager_custom", "http_custom", "ari_general_custom", "ari_additional_custom")


def test_of_freepbx_the_custom_files_are_written_to_and_no_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path, FREEPBX)
    tree = machine.tree()
    machine.setup().do()
    for name, content in FREEPBX.items():
        if "custom" not in name:
            assert machine.text(name).encode() == content
    for name in CUSTOM:
        assert MARK in machine.text(f"{name}.conf")
    for name in ("http.conf", "ari.conf"):
        assert general(machine, name)["enabled"] == "yes"
    assert machine.asked() == RELOADS
    machine.setup().undo()
    assert machine.tree() == tree


def test_freepbx_without_its_custom_file_is_refused_with_nothing_changed(tmp_path: Path) -> None:
    text = FREEPBX["manager.conf"].replace(b"#include manager_custom.conf\n", b"")
    machine = Machine(tmp_path, {**FREEPBX, "manager.conf": text})
    tree = machine.tree()
    with pytest.raises(SetupError, match=r"does not include manager_custom\.conf"):
        machine.setup().do()
    assert machine.tree() == tree


# --- What is refused, with nothing changed -------------------------------------------------------


def with_file(name: str, content: bytes) -> Callable[[Machine], object]:
    return lambda machine: machine.write(name, content)


def with_ini(text: str) -> Callable[[Machine], object]:
    def write(machine: Machine) -> None:
        machine.ini.parent.mkdir()
        machine.ini.write_text(text)

    return write


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (with_file("extensions.conf", b"\n[audiofork]\n"), r"extensions\.conf:2 has a context"),
        (with_file("ari.conf", b"[general]\n;-- open"), r"a comment that begins with ;--"),
        (with_file("http.conf", b"[general]\nbindport = x\n"), r"expected a port, got 'x'"),
        (with_file("http.conf", b"[general]\nbindport = 0\n"), r"http.conf:1: expected a port, go"),
        (with_file("manager.conf", b"[general]\nport = 65536\n"), r"manager.conf:1: expected a p"),
        (
            with_file("manager.conf", b"[general]\nenabled=yes\n[audiofork]\nsecret=a\n"),
            None,
        ),
        (with_ini("[asterisk]\nprot = 1\n"), "unknown option prot"),
        (with_ini("[asterisk]\nsecret = a\n[ari]\npassword = b\n"), "secret is not the same in"),
        (lambda machine: (machine.etc / "asterisk.conf").unlink(), "there is no asterisk.conf"),
        (lambda machine: machine.program.unlink(), "no Asterisk was found"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_changed(
    machine: Machine,
    spoil: Callable[[Machine], object],
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("audiofork.commands.setup.find._PROGRAM_FOLDERS", ())
    spoil(machine)
    tree = machine.tree()
    if why is None:  # a user that is known already lends his secret
        machine.setup().do()
        assert (machine.ini.parent / "ami-secret").read_text() == "a\n"
        return
    with pytest.raises((SetupError, ConfigError), match=why):
        machine.setup().do()
    assert machine.tree() == tree
    assert not (machine.root / "state").exists()


def test_asterisk_before_18_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"is Asterisk 16\.28\.0; 18 or later is needed"):
        Machine(tmp_path, version="16.28.0").setup().do()


@pytest.mark.parametrize(("version", "old"), [("18.25.0", True), ("18.26.4", False)])
def test_event_filters_fit_the_version(tmp_path: Path, version: str, old: bool) -> None:
    machine = Machine(tmp_path, version=version)
    machine.setup().do()
    text = machine.text("manager_audiofork.conf")
    assert ("\neventfilter = Event: UserEvent\n" in text) == old
    assert ("\neventfilter(action(include)" in text) != old


def test_asterisk_that_does_not_run_is_set_up_all_the_same(tmp_path: Path) -> None:
    machine = Machine(tmp_path, runs=False)
    machine.setup().do()
    assert "start Asterisk: it reads its files then" in machine.said


# --- An audiofork.ini that is there --------------------------------------------------------------


def test_configuration_that_stands_keeps_its_lines_and_gets_what_is_missing(
    machine: Machine,
) -> None:
    text = (
        "\ufeff; J\u00fcrgen\r\n[security]\r\nallow_urls = wss://speech.example.org\r\n"
        "[ari]\r\nurl = http://127.0.0.1:9/ari"
    )
    with_ini(text)(machine)
    tree = machine.tree()
    machine.setup().do()
    result = machine.ini.read_bytes().decode()
    assert result.startswith(text.rpartition("[ari]")[0])
    loaded = config_file.load(machine.ini, {})
    assert loaded.ari.url == "http://127.0.0.1:9/ari"
    assert loaded.ari.password == loaded.asterisk.secret != ""
    assert loaded.security.allow_urls == ("wss://speech.example.org",)
    assert "[ari] url stays; Asterisk's own says http://127.0.0.1:8088/ari" in machine.last()
    machine.setup().undo()
    assert machine.tree() == tree


def test_secret_that_stands_in_the_configuration_is_taken(machine: Machine) -> None:
    with_ini("[asterisk]\nsecret = mine\n")(machine)
    machine.setup().do()
    assert "\nsecret = mine\n" in machine.text("manager_audiofork.conf")
    assert (machine.ini.parent / "ami-secret").read_text() == "mine\n"
    assert "secret_file" not in machine.ini.read_text()
    assert "mine" not in machine.last()


@pytest.mark.parametrize("secret", ["a;b", "a\\\\b", "p\u00e4ss w\u00f6rt", "[x]=>#"])
def test_secret_of_any_characters_reaches_asterisk_as_it_is(machine: Machine, secret: str) -> None:
    machine.ini.parent.mkdir()
    (machine.ini.parent / "ami-secret").write_text(secret + "\n")
    machine.setup().do()
    section = Conf(machine.etc, "manager.conf", Files()).section("audiofork")
    assert section is not None
    assert section.value("secret").encode("latin-1").decode() == secret
    tree = machine.tree()
    machine.setup().do()
    assert machine.tree() == tree


def test_file_of_its_own_is_renewed_for_another_version_of_asterisk(machine: Machine) -> None:
    tree = machine.tree()
    machine.setup().do()
    machine.program.write_text(machine.program.read_text().replace("22.10.1", "20.9.0"))
    machine.setup().do()
    assert "\neventfilter = Event: UserEvent\n" in machine.text("manager_audiofork.conf")
    assert machine.asked() == [*RELOADS, "manager reload"]
    machine.setup().undo()
    assert machine.tree() == tree


@pytest.mark.parametrize("name", ["manager.conf", "manager_audiofork.conf"])
def test_links_that_lead_in_a_circle_are_named_and_nothing_is_changed(
    machine: Machine, name: str
) -> None:
    path = machine.etc / name
    path.unlink(missing_ok=True)
    path.symlink_to("other.conf")
    (machine.etc / "other.conf").symlink_to(name)
    with pytest.raises(OSError, match="Too many levels of symbolic links") as caught:
        machine.setup().do()
    assert caught.value.filename == str(path)
    assert not (machine.etc / "ari_audiofork.conf").exists()


def test_user_that_was_made_by_hand_stays_as_he_is(machine: Machine) -> None:
    user = b"[audiofork]\nsecret = mine\npermit = 192.0.2.0/24\n"
    text = FILES["manager.conf"] + user
    machine.write("manager.conf", text)
    machine.setup().do()
    assert machine.text("manager.conf").encode() == text
    assert not (machine.etc / "manager_audiofork.conf").exists()
    assert "\npassword = mine\n" in machine.text("ari_audiofork.conf")


@pytest.mark.parametrize(
    ("read", "is_told"),
    [("read = user,call", True), ("", True), ("read = user, DTMF", False), ("read = all", False)],
)
def test_user_made_by_hand_who_hears_no_keys_is_told_of(
    machine: Machine, read: str, is_told: bool
) -> None:
    user = f"[audiofork]\nsecret = mine\n{read}\n".encode()
    machine.write("manager.conf", FILES["manager.conf"] + user)
    machine.setup().do()
    assert (" its read lacks dtmf, so no server is told" in machine.last()) is is_told


def test_user_of_an_earlier_setup_gets_the_class_of_keys(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.tree()
    with monkeypatch.context() as patch:
        text = shipped.text
        patch.setattr(shipped, "text", lambda name: text(name).replace("call,dtmf", "call"))
        machine.setup().do()
    assert "\nread = user,call\n" in machine.text("manager_audiofork.conf")
    machine.setup().do()
    assert "\nread = user,call,dtmf\n" in machine.text("manager_audiofork.conf")
    assert "lacks dtmf" not in machine.last()
    machine.setup().undo()
    assert machine.tree() == tree


# --- Taken back where the user has been, too -----------------------------------------------------


def test_undo_leaves_what_the_user_has_added_since(machine: Machine) -> None:
    before = machine.text("ari.conf")
    machine.setup().do()
    machine.write("ari.conf", b"; mine\n" + machine.text("ari.conf").encode() + b"[me]\n")
    machine.setup().undo()
    assert machine.text("ari.conf") == f"; mine\n{before}[me]\n"
    assert "you have changed it since: only the lines of setup are taken out" in machine.last()


def test_undo_names_a_line_of_its_own_that_the_user_has_changed(machine: Machine) -> None:
    machine.setup().do()
    text = machine.text("http.conf").replace(f"enabled = yes {MARK}", f"enabled = no {MARK}")
    machine.write("http.conf", text.encode())
    machine.setup().undo()
    assert f"enabled = no {MARK}" in machine.text("http.conf")
    number = machine.text("http.conf").splitlines().index(f"enabled = no {MARK}") + 1
    assert f"but not line {number}, which you have changed" in machine.last()


def test_undo_sets_aside_a_file_of_its_own_that_the_user_has_changed(machine: Machine) -> None:
    machine.setup().do()
    machine.ini.write_text(machine.ini.read_text() + "; mine\n")
    machine.setup().undo()
    assert not machine.ini.exists()
    aside = machine.ini.with_name("audiofork.ini.undone")
    assert aside.read_text().endswith("; mine\n")
    assert f"what you have changed since is in {aside}" in machine.last()


def test_what_the_user_changed_between_two_runs_outlives_the_undo(machine: Machine) -> None:
    machine.setup().do()
    machine.write("extensions.conf", b"; mine\n[default]\n")
    machine.setup().do()
    assert "#include extensions_audiofork.conf" in machine.text("extensions.conf")
    machine.setup().undo()
    assert machine.text("extensions.conf") == "; mine\n[default]\n"


# --- Interrupted ---------------------------------------------------------------------------------


class Disk:
    """Fails at the n-th file that is written, and from then on for so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, failures: int = 1) -> None:
        self.written = 0
        self._at, self._failures = at, failures
        self._replace = files.replace
        monkeypatch.setattr(files, "replace", self.replace)

    def replace(self, path: Path, content: bytes, **how: object) -> None:
        self.written += 1
        if self._at <= self.written < self._at + self._failures:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self._replace(path, content, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", range(1, 20))
def test_full_disk_at_any_file_leaves_nothing_behind(
    machine: Machine, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.tree()
    disk = Disk(monkeypatch, at)
    with pytest.raises((SetupError, OSError), match="No space left"):
        machine.setup().do()
    assert disk.written >= at
    assert machine.tree() == tree
    assert not (machine.root / "state").exists()
    assert not machine.asked()


@pytest.mark.parametrize("at", [3, 8, 12, 16, 18])
def test_disk_that_stays_full_leaves_what_undo_or_the_next_run_completes(
    machine: Machine, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.tree()
    for complete in ("undo", "do"):
        with monkeypatch.context() as patch:
            Disk(patch, at, 1000)
            with pytest.raises((SetupError, OSError)):
                machine.setup().do()
        assert getattr(machine.setup(), complete)() == 0
        if complete == "undo":
            assert machine.tree() == tree
    assert machine.asked()[-4:] == RELOADS
    machine.setup().undo()
    assert machine.tree() == tree


@pytest.mark.parametrize("at", range(1, 6))
def test_full_disk_in_a_second_run_leaves_what_the_first_has_done(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That run copies http.conf, which the first had no need to touch; extensions.conf it has."""
    on = b"[general]\nenabled = yes\nbindaddr = 127.0.0.1\n"
    machine = Machine(tmp_path, {**FILES, "http.conf": on})
    tree = machine.tree()
    machine.setup().do()
    mine = {"http.conf": b"[general]\n; mine\n", "extensions.conf": b"; mine\n"}
    for name, content in mine.items():
        machine.write(name, content)
    once = machine.tree(), sorted(os.listdir(machine.root / "state"))
    with monkeypatch.context() as patch:
        Disk(patch, at)
        with pytest.raises(SetupError, match="has been taken back"):
            machine.setup().do()
    assert (machine.tree(), sorted(os.listdir(machine.root / "state"))) == once
    machine.setup().do()
    machine.setup().undo()
    for name, content in mine.items():
        assert machine.text(name).encode() == content
        machine.write(name, {**FILES, "http.conf": on}[name])
    assert machine.tree() == tree
    assert not (machine.root / "state").exists()


def test_file_is_there_before_another_includes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asterisk may read its files at any moment, and refuses those whose include is missing."""
    off = b"[general]\nenabled = no\n"
    machine = Machine(tmp_path, {**FILES, "manager.conf": off, "ari.conf": off})
    written: list[str] = []
    done = files.replace

    def replace(path: Path, content: bytes, **how: object) -> None:
        written.append(path.name)
        done(path, content, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "replace", replace)
    machine.setup().do()
    for name in ("manager", "ari", "extensions"):
        assert written.index(f"{name}_audiofork.conf") < written.index(f"{name}.conf")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 20))
def test_run_that_is_killed_at_any_file_is_completed_by_the_next(
    machine: Machine, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is rolled back: the process is gone."""
    tree = machine.tree()
    with monkeypatch.context() as patch:
        disk = Disk(patch, 1000)
        done = disk.replace

        def replace(path: Path, content: bytes, **how: object) -> None:
            if disk.written + 1 == at:
                raise Killed
            done(path, content, **how)

        patch.setattr(files, "replace", replace)
        patch.setattr("audiofork.commands.setup.run.Setup._roll_back", lambda *_: None)
        with pytest.raises(Killed):
            machine.setup().do()
    assert machine.setup().do() == 0
    whole = machine.tree()
    assert machine.asked()[-4:] == RELOADS
    assert machine.setup().undo() == 0
    assert machine.tree() == tree
    assert set(whole) > set(tree)


def test_file_that_changes_while_the_question_is_open_is_not_overwritten(machine: Machine) -> None:
    one = machine.setup()
    one.confirm = lambda _: bool(machine.write("ari.conf", b"; mine\n"))
    with pytest.raises(SetupError, match=r"ari\.conf has been changed meanwhile"):
        one.do()
    assert machine.text("ari.conf") == "; mine\n"
    assert not (machine.etc / "ari_audiofork.conf").exists()


def test_second_setup_at_the_same_time_is_refused(machine: Machine) -> None:
    one = machine.setup()

    def confirm(_: str) -> bool:
        with pytest.raises(SetupError, match="another audiofork setup is at work"):
            machine.setup().do()
        return False

    one.confirm = confirm
    assert one.do() == 1


def test_damaged_record_is_told(machine: Machine) -> None:
    machine.setup().do()
    (machine.root / "state/record.json").write_text("{")
    with pytest.raises(SetupError, match="is damaged"):
        machine.setup().undo()


# --- The service ---------------------------------------------------------------------------------


class FakeSystemctl:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, tuple[int, str]] = {}

    def __call__(self, arguments: list[str]) -> tuple[int, str]:
        self.calls.append(" ".join(arguments))
        return self.answers.get(arguments[0], (0, ""))


@pytest.fixture
def systemctl() -> FakeSystemctl:
    return FakeSystemctl()


def test_service_runs_this_program_and_is_gone_after_the_undo(
    machine: Machine, systemctl: FakeSystemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.commands.setup.daemon_files.refuse_hidden", lambda _: None)
    program = ("/opt/here/bin/audiofork",)
    monkeypatch.setattr("audiofork.commands.setup.daemon_files.this_program", lambda: program)
    units = machine.root / "units"
    units.mkdir()

    machine.setup(units=units, systemd=Systemd(systemctl)).do()
    text = (units / "audiofork.service").read_text()
    assert f"ExecStart=/opt/here/bin/audiofork run -c {machine.ini}\n" in text
    assert f"LoadCredential=ami-secret:{machine.ini.parent}/ami-secret\n" in text
    assert f"LoadCredential=http-tokens:{machine.ini.parent}/http-tokens\n" in text
    assert (units / "audiofork-sweep.service").exists()
    assert systemctl.calls[-3:] == [
        "daemon-reload",
        "enable audiofork.service",
        "restart audiofork.service",
    ]
    systemctl.calls = []
    machine.setup(units=units, systemd=Systemd(systemctl)).do()
    assert systemctl.calls == []
    machine.setup(units=units, systemd=Systemd(systemctl)).undo()
    assert list(units.iterdir()) == []
    assert systemctl.calls == [
        "stop audiofork.service",
        "disable audiofork.service",
        "daemon-reload",
    ]


def test_service_that_ran_before_runs_after_the_undo(
    machine: Machine, systemctl: FakeSystemctl
) -> None:
    systemctl.answers = {"is-enabled": (0, "enabled\n"), "is-active": (0, "active\n")}
    machine.setup(systemd=Systemd(systemctl)).do()
    systemctl.calls = []
    machine.setup(systemd=Systemd(systemctl)).undo()
    assert systemctl.calls == ["daemon-reload", "restart audiofork.service"]


def test_service_that_cannot_be_started_is_told(machine: Machine, systemctl: FakeSystemctl) -> None:
    systemctl.answers = {"restart": (1, "Job for audiofork.service failed\n")}
    machine.setup(systemd=Systemd(systemctl)).do()
    said = "systemctl restart audiofork.service: Job for audiofork.service failed"
    assert said in machine.said


def test_state_of_the_service_is_kept_from_the_first_run() -> None:
    told = {"is-enabled": (0, "enabled\n"), "is-active": (3, "inactive\n")}
    systemd = Systemd(lambda arguments: told[arguments[0]])
    assert systemd.state() == Service(was_enabled=True, was_active=False)


def test_undo_beside_an_asterisk_that_does_not_answer_says_when_it_counts(
    machine: Machine,
) -> None:
    machine.setup().do()
    asked = machine.asked()
    machine.program.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\nexit 1\n')
    machine.said.clear()
    assert machine.setup().undo() == 0
    assert "Asterisk does not answer: what has changed counts from its next start" in machine.said
    assert not [line for line in machine.said if line.startswith("asterisk -rx")]
    assert machine.asked() == asked
