"""What Asterisk's files have to have: the users of AMI and ARI, the dialplan, HTTP on loopback.

Lines are added at the end of a file: `[general](+)` goes on with the section that is there, and of
an option that stands several times the last one counts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audiofork import shipped
from audiofork.asterisk.versions import EVENT_FILTERS_BY_NAME, Version
from audiofork.commands.setup.conf import GENERAL, Conf, Section, is_true, real
from audiofork.commands.setup.draft import FOR_ALL, FOR_GROUP, PRIVATE, Draft
from audiofork.commands.setup.find import Asterisk
from audiofork.errors import SetupError

MANAGER, HTTP, ARI, EXTENSIONS = "manager.conf", "http.conf", "ari.conf", "extensions.conf"
RELOADS = {
    MANAGER: "manager reload",
    HTTP: "module reload http",
    ARI: "module reload res_ari.so",
    EXTENSIONS: "dialplan reload",
}
"""What makes Asterisk read a file again, and those that it includes, in the order it is run."""
CONTEXTS = ("audiofork", "audiofork-leg")
LOOPBACK = "127.0.0.1"
PLACEHOLDER = "CHANGE-ME"
USER = "audiofork"
_ANY = ("", "0.0.0.0", "::", "[::]")

# FreePBX makes the others anew; these are its administrator's.
_CUSTOM = {
    MANAGER: "manager_custom.conf",
    HTTP: "http_custom.conf",
    ARI: "ari_general_custom.conf",
    EXTENSIONS: "extensions_custom.conf",
}
_CUSTOM_ARI_USERS = "ari_additional_custom.conf"


@dataclass(frozen=True, slots=True)
class Access:
    """How the daemon reaches Asterisk.

    Attributes:
        host, port: Of AMI.
        url: Of ARI.
    """

    host: str
    port: int
    url: str


class AsteriskFiles:
    """Plans the files of one Asterisk.

    Args:
        asterisk: Whose.
        draft: Gets what is to be written.
        is_ours: Tells whether a file is as an earlier setup has left it.
    """

    def __init__(
        self, asterisk: Asterisk, draft: Draft, is_ours: Callable[[Path], bool] = lambda _: False
    ) -> None:
        self._asterisk = asterisk
        self._draft = draft
        self._is_ours = is_ours

    def secret_of(self, conf: str, user: str) -> str:
        """Return the secret that Asterisk knows a user by; empty: it does not know him."""
        section = self._conf(conf).section(user)
        if section is None or section.value("password_format", "plain") != "plain":
            return ""
        secret = section.value("password" if conf == ARI else "secret")
        return secret.encode("latin-1").decode("utf-8", "replace")

    def plan(self, secret: str, ami_user: str = USER, ari_user: str = USER) -> Access:
        """Plan all of them, for a secret of both users.

        Raises:
            SetupError: Something that is there is in the way.
            OSError: A file cannot be read.
        """
        host, port = self._plan_manager()
        self._plan_ami_user(ami_user, secret, host)
        url = self._plan_http()
        self._plan_ari()
        self._plan_ari_user(ari_user, secret)
        self._plan_extensions()
        self._verify(ami_user, ari_user)
        return Access(host, port, url)

    def reloads_for(self, paths: list[Path]) -> list[str]:
        """Return what Asterisk has to be told when these files have changed."""
        found = []
        for name, command in RELOADS.items():
            concerned = {real(path) for path in self._conf(name).read}
            if concerned.intersection(paths):
                found.append(command)
        return found

    # --- Switched on ---

    def _plan_manager(self) -> tuple[str, int]:
        section = self._switched_on(MANAGER, _ANY)
        port = section.value("port") or section.value("bindport", "5038")
        return _reachable(section.value("bindaddr")), _port(section, port)

    def _plan_http(self) -> str:
        section = self._switched_on(HTTP, _ANY)
        port = _port(section, section.value("bindport", "8088"))
        host = _reachable(section.value("bindaddr"))
        prefix = section.value("prefix").strip("/")
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}/{prefix + '/' if prefix else ''}ari"

    def _plan_ari(self) -> None:
        section = self._conf(ARI).section(GENERAL)
        if section is None or not is_true(section.value("enabled", "yes")):
            self._add_general(ARI, ["enabled = yes"])

    def _switched_on(self, name: str, open_to_all: tuple[str, ...]) -> Section:
        """Have a server switched on; one that was off is on loopback alone then."""
        section = self._conf(name).section(GENERAL)
        address = section.value("bindaddr") if section else ""
        if section is None or not is_true(section.value("enabled")):
            bind = [] if _is_loopback(address) else [f"bindaddr = {LOOPBACK}"]
            self._add_general(name, ["enabled = yes", *bind])
        elif address in open_to_all:
            self._draft.notes.append(
                f"{section}: {name} has it listen on all addresses (bindaddr), and that is left "
                f"as it is: let a firewall keep strangers out, or set bindaddr = {LOOPBACK}"
            )
        found = self._conf(name).section(GENERAL)
        assert found is not None
        return found

    def _add_general(self, name: str, lines: list[str]) -> None:
        there = self._conf(name).section(GENERAL) is not None
        header = f"[{GENERAL}](+)" if there else f"[{GENERAL}]"
        self._draft.append(self._file(name), [header, *lines], self._asterisk.group)

    # --- Users and dialplan ---

    def _plan_ami_user(self, user: str, secret: str, host: str) -> None:
        text = manager_user(shipped.text(shipped.MANAGER_CONF), self._asterisk.version)
        text = _for_user(text, user, secret)
        if host != LOOPBACK:
            text = text.replace("permit = 127.", f"permit = {_network(host)}\npermit = 127.", 1)
        self._plan_user(MANAGER, user, text, "manager_audiofork.conf")

    def _plan_ari_user(self, user: str, secret: str) -> None:
        text = _for_user(shipped.text(shipped.ARI_CONF), user, secret)
        self._plan_user(ARI, user, text, "ari_audiofork.conf")

    def _plan_user(self, conf: str, user: str, text: str, name: str) -> None:
        tree = self._conf(conf)
        section = tree.section(user)
        place = tree.wildcard_place("audiofork.conf", name) or self._asterisk.folder / name
        if section is not None:
            if real(section.path) == real(place) and self._is_ours(place):
                self._write(place, text)
            elif conf == MANAGER:
                self._note_deaf_to_keys(section)
            return
        if self._draft.files.read(place) is not None and not self._is_ours(place):
            self._draft.notes.append(f"{place} was there and is not included: it is replaced")
        self._write(place, text)
        self._include(conf, place, users=True)

    def _note_deaf_to_keys(self, section: Section) -> None:
        """Say that a user who is not ours does not hear of the keys that parties press (DTMF)."""
        classes = {one.strip().lower() for one in section.value("read").split(",")}
        if not classes & {"dtmf", "all"}:
            self._draft.notes.append(
                f"{section}: [{section.name}] is yours and stays as it is; its read lacks dtmf, so "
                "no server is told of the keys that parties press: add dtmf to it if one wants them"
            )

    def _plan_extensions(self) -> None:
        tree, name = self._conf(EXTENSIONS), "extensions_audiofork.conf"
        place = tree.wildcard_place(name, "audiofork.conf") or self._asterisk.folder / name
        others = [
            section
            for context in CONTEXTS
            for section in tree.sections(context)
            if real(section.path) != real(place)
        ]
        if others:
            raise SetupError(
                f"{others[0]} has a context [{others[0].name}] already, and setup would add "
                f"to it what {name} has: rename it, or take it out if it is a copy of that file; "
                "nothing was changed"
            )
        content = shipped.text(shipped.EXTENSIONS_CONF)
        self._draft.write(place, content.encode(), FOR_ALL)
        self._include(EXTENSIONS, place)

    def _write(self, place: Path, text: str) -> None:
        mode = FOR_GROUP if self._asterisk.group else PRIVATE
        self._draft.write(place, text.encode(), mode, self._asterisk.group)

    def _include(self, conf: str, place: Path, *, users: bool = False) -> None:
        if not self._conf(conf).includes(place):
            line = f"#include {place.relative_to(self._asterisk.folder)}"
            self._draft.append(self._file(conf, users=users), [line], self._asterisk.group)

    # --- Files ---

    def _conf(self, name: str) -> Conf:
        return Conf(self._asterisk.folder, name, self._draft.files)

    def _file(self, name: str, *, users: bool = False) -> Path:
        """Return the file to write to for one of Asterisk's."""
        if not self._asterisk.generated:
            return self._asterisk.folder / name
        custom = _CUSTOM_ARI_USERS if users and name == ARI else _CUSTOM[name]
        path = self._asterisk.folder / custom
        if not self._conf(name).includes(path):
            raise SetupError(
                f"{self._asterisk.folder / name} is FreePBX's, which makes it anew, and it does "
                f"not include {custom}, which is its administrator's: add to it "
                f"#include {custom} by FreePBX, or update FreePBX; nothing was changed"
            )
        return path

    def _verify(self, ami_user: str, ari_user: str) -> None:
        """See that Asterisk will take what is planned, as far as its files tell."""
        wanted = {MANAGER: [ami_user], ARI: [ari_user], EXTENSIONS: list(CONTEXTS)}
        for name, sections in wanted.items():
            tree = self._conf(name)
            self._draft.notes += [
                f"{where}: what #exec makes there is not known to setup"
                for where in tree.runs_scripts
            ]
            for section in sections:
                found = tree.sections(section)
                if len(found) != 1:
                    places = ", ".join(map(str, found)) or f"no file that {name} includes"
                    raise SetupError(
                        f"[{section}] has to stand once in {name} and what it includes; it is in "
                        f"{places}; nothing was changed"
                    )
        for name in (MANAGER, HTTP):
            general = self._conf(name).section(GENERAL)
            assert general is not None
            if not is_true(general.value("enabled")):
                raise SetupError(
                    f"{general.last('enabled')}: something after the lines that setup adds "
                    f"switches {name} off again: take it out; nothing was changed"
                )


def manager_user(text: str, version: Version) -> str:
    """Return the shipped AMI user with event filters that a version of Asterisk knows."""
    return text if version.has(EVENT_FILTERS_BY_NAME) else with_older_filters(text)


def with_older_filters(text: str) -> str:
    """Do as the comment of the shipped file says, for an Asterisk without filters by name."""
    text = re.sub(r"(?m)^eventfilter\(.*\n?", "", text)
    return re.sub(r"(?m)^; +(?=eventfilter = )", "", text)


def _for_user(text: str, user: str, secret: str) -> str:
    """Return a shipped file for a user and a secret; a ; would begin a comment."""
    text = text.replace("[audiofork]", f"[{user}]")
    return text.replace(PLACEHOLDER, secret.replace(";", "\\;"))


def _reachable(address: str) -> str:
    """Return the address by which this machine reaches a server that listens on one."""
    return LOOPBACK if address in _ANY else address.strip("[]")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _network(host: str) -> str:
    """Return a host as `permit` takes it."""
    try:
        return f"{host}/{ipaddress.ip_address(host).max_prefixlen}"
    except ValueError:
        return LOOPBACK


def _port(section: Section, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise SetupError(f"{section}: expected a port, got {text!r}; nothing was changed")
    return int(text)
