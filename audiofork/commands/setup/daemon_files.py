"""The daemon's own files: its secret, audiofork.ini, the units of systemd."""

from __future__ import annotations

import configparser
import grp
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from audiofork import config_file, config_sample, profile_files, shipped
from audiofork.commands.setup import edits
from audiofork.commands.setup.asterisk_files import Access
from audiofork.commands.setup.conf import BOM
from audiofork.commands.setup.draft import FOR_ALL, Draft
from audiofork.config import AsteriskConfig, Config
from audiofork.config_values import text
from audiofork.errors import SetupError
from audiofork.files import read_file

SERVICE, SWEEP = "audiofork.service", "audiofork-sweep.service"
RELAY = "audiofork-relay@.service"
_UNITS = {
    SERVICE: shipped.SERVICE,
    SWEEP: shipped.SWEEP_SERVICE,
    RELAY: shipped.RELAY_SERVICE,
}
# Of a package; those of the administrator, in /etc, hide them.
PACKAGED_UNITS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
# What the units do not let the daemon see, or hide behind folders of its own.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
# An option that takes the place of another.
_TWINS = {"secret_file": "secret", "password_file": "password"}
_NO_SECRETS = {"AUDIOFORK_ASTERISK_SECRET_FILE": "", "AUDIOFORK_ARI_PASSWORD_FILE": ""}


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are; a test has others.

    Attributes:
        ini: The configuration of the daemon; its secret and its tokens are beside it.
        units: Where units of the administrator are; None: systemd does not run here.
        packaged_units: Where those of packages are.
        group: The group of the daemon's user, where there is one that stays.
    """

    ini: Path = Path("/etc/audiofork/audiofork.ini")
    units: Path | None = Path("/etc/systemd/system")
    packaged_units: tuple[Path, ...] = PACKAGED_UNITS
    group: str = "audiofork"

    @property
    def secret(self) -> Path:
        """The file of the secret."""
        return self.ini.parent / "ami-secret"

    @property
    def tokens(self) -> Path:
        """The file of the tokens of the HTTP interface."""
        return self.ini.parent / "http-tokens"

    @property
    def group_number(self) -> int | None:
        """The number of that group; None: systemd makes user and group when the daemon starts."""
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            return None

    @property
    def has_packaged_units(self) -> bool:
        """Whether a package has installed the units."""
        return any((folder / SERVICE).is_file() for folder in self.packaged_units)


def configuration(draft: Draft, ini: Path) -> Config:
    """Return what a configuration file says, without the secrets of files that it names.

    Raises:
        ConfigError: It cannot be used.
        OSError: It cannot be read.
    """
    content = (draft.files.read(ini) or b"").decode("utf-8-sig", "replace")
    return config_file.parse(content, _NO_SECRETS, source=str(ini), secrets_of=())


def common_secret(candidates: dict[str, str]) -> str:
    """Return the secret that several places agree on; a new one if none has any.

    Args:
        candidates: Secrets by the name of their place; empty ones do not count.

    Raises:
        SetupError: They differ.
    """
    there = {place: secret for place, secret in candidates.items() if secret}
    if len(set(there.values())) > 1:
        raise SetupError(
            f"the secret is not the same in {' and '.join(there)}: the daemon has one for AMI and "
            "ARI; make them the same, or take out those that are not needed; nothing was changed"
        )
    return next(iter(there.values()), "") or secrets.token_hex(24)


def secrets_of(loaded: Config, ini: Path, own: Path) -> dict[str, str]:
    """Return the secrets that a configuration has or names, and the one in the usual file."""
    found = {str(own): read_secret(own)}
    for section, option, value, file in (
        ("asterisk", "secret", loaded.asterisk.secret, loaded.asterisk.secret_file),
        ("ari", "password", loaded.ari.password, loaded.ari.password_file),
    ):
        found[f"{ini} [{section}] {option}"] = value
        # With systemd's ${CREDENTIALS_DIRECTORY} it is the usual file.
        if file and "$" not in file and Path(file) != own:
            found[file] = read_secret(Path(file))
    return found


def read_secret(path: Path) -> str:
    """Return the secret in a file; empty: there is none.

    Raises:
        SetupError: It is no line of text.
        OSError: It cannot be read.
    """
    try:
        return text(read_file(path).decode("utf-8").strip())
    except FileNotFoundError:
        return ""
    except ValueError:
        raise SetupError(f"expected one line of text in {path}; nothing was changed") from None


def plan_secret(draft: Draft, path: Path, secret: str) -> None:
    """Plan the file of the secret, unless it is there."""
    if draft.files.read(path) is None:
        draft.write_secret(path, f"{secret}\n".encode())


def options_named(draft: Draft, ini: Path, section: str) -> list[str]:
    """Return the options that a configuration file names in a section, with a value or without."""
    options = _options_of(draft.text(ini), ini)
    return list(options[section]) if options.has_section(section) else []


def _options_of(content: str, ini: Path) -> configparser.RawConfigParser:
    options = configparser.RawConfigParser(
        inline_comment_prefixes=(";",), default_section="", strict=False
    )
    options.read_string(content.removeprefix(BOM), str(ini))
    return options


def plan_ini(
    draft: Draft,
    ini: Path,
    access: Access,
    secret_file: Path,
    more: Mapping[tuple[str, str], str],
) -> None:
    """Plan audiofork.ini: what is set stays, what is missing is added.

    Args:
        draft: Collects what is to be written.
        ini: The file.
        access: Where Asterisk's interfaces are.
        secret_file: The file of their secret.
        more: Further values, by section and option.

    Raises:
        ConfigError: What is there cannot be used.
    """
    wanted = {
        ("asterisk", "host"): access.host if access.host != AsteriskConfig.host else "",
        ("asterisk", "port"): str(access.port) if access.port != AsteriskConfig.port else "",
        ("asterisk", "secret_file"): str(secret_file),
        ("ari", "url"): access.url,
        ("ari", "password_file"): str(secret_file),
        **more,
    }
    is_new = draft.files.read(ini) is None
    content = config_sample.sample() if is_new else draft.text(ini)
    options = _options_of(content, ini)
    for (section, option), value in wanted.items():
        there = dict(options[section]) if options.has_section(section) else {}
        standing = there.get(option)
        if not value or there.get(_TWINS.get(option, "")):
            continue
        if standing is None:
            content = edits.insert_option(content, section, f"{option} = {value}")
        elif standing != value and option in ("host", "port", "url"):
            # not the value: a URL may hold a password
            draft.notes.append(f"{ini}: [{section}] {option} stays; Asterisk's own says {value}")
    if is_new:
        draft.write(ini, content.replace(f" {edits.MARK}", "").encode(), FOR_ALL)
    else:
        draft.change(ini, content, FOR_ALL)
    configuration(draft, ini)


def plan_profiles(draft: Draft, paths: Paths) -> None:
    """Plan the folder of profiles: tokens may stand there, so for the daemon's group alone."""
    folder, group = profile_files.folder_of(paths.ini), paths.group_number
    draft.make_folder(folder, 0o755 if group is None else 0o750, group or 0)


def plan_units(draft: Draft, paths: Paths) -> None:
    """Plan the units, with the path of this program, unless a package has brought them.

    Raises:
        SetupError: The service could not run this program.
    """
    if paths.units is None:
        return
    if paths.has_packaged_units:
        if (own := paths.units / SERVICE).exists():
            draft.notes.append(f"{own} hides the package's: remove it, unless it is yours")
        return
    program = this_program()
    for one in (program[0], sys.executable):
        refuse_hidden(one)
    for name, source in _UNITS.items():
        unit = shipped.text(source)
        unit = unit.replace("/opt/audiofork/bin/audiofork", " ".join(program))
        unit = unit.replace("/etc/audiofork/audiofork.ini", str(paths.ini))
        unit = unit.replace("/etc/audiofork/ami-secret", str(paths.secret))
        unit = unit.replace("/etc/audiofork/http-tokens", str(paths.tokens))
        draft.write(paths.units / name, unit.encode(), FOR_ALL)


def this_program() -> tuple[str, ...]:
    """Return the command that runs this very program."""
    script = Path(sys.executable).with_name("audiofork")
    return (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "audiofork")


def refuse_hidden(program: str, resolve: Callable[[str], str] = os.path.realpath) -> None:
    """Raise SetupError if the service, hardened as it is, could not see a program."""
    for folder in _HIDDEN:
        for path in (program, resolve(program)):
            if path.startswith(f"{folder}/"):
                raise SetupError(
                    f"{program} is below {folder}, which the service may not see: install "
                    "audiofork elsewhere, python3 -m venv /opt/audiofork say, and run "
                    "/opt/audiofork/bin/audiofork setup; nothing was changed"
                )
