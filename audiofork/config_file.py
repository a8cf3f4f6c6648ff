"""Reads and checks the configuration file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audiofork import config_checks, profile_files
from audiofork.config import (
    NAMED_SECTIONS,
    SECTIONS,
    Config,
    ControlConfig,
    HistoryConfig,
    NamedAsterisk,
    ProfileConfig,
    history_of,
)
from audiofork.config_asterisk import SECTIONS_OF_ASTERISK
from audiofork.config_cluster import is_name
from audiofork.config_values import NotAChoice, word
from audiofork.errors import ConfigError
from audiofork.files import read_file
from audiofork.ini import Ini
from audiofork.text import did_you_mean, printable, why

SECTIONS_WITH_SECRETS = ("asterisk", "ari", "websocket", "cluster", "profile")
"""The sections with secrets that may be in a file of their own."""

EVERY_SECRET = (*SECTIONS_WITH_SECRETS, "asterisk *", "ari *")
"""Those, and the ones with the name of an Asterisk."""


# --- Reading -------------------------------------------------------------------------------------

_Section = TypeVar("_Section")


def load(
    path: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    secrets_of: Sequence[str] = EVERY_SECRET,
) -> Config:
    """Read a configuration file.

    Args:
        path: An ini file; `;` and `#` begin comments.
        environment: AUDIOFORK_SECTION_OPTION in it overrides the file.
        secrets_of: The sections whose secrets are read from their own files, if they have such. The
            files of profiles.d, which may contain secrets, are read only if profile is among them.
            `asterisk *` stands for each [asterisk NAME].

    Raises:
        ConfigError: A file cannot be read, or contains something unknown or not allowed.
    """
    further = profile_files.read_all(path, _content) if "profile" in secrets_of else []
    return _parsed(_Given(_main(path), environment, further), secrets_of)


def load_control(path: Path, environment: Mapping[str, str] = os.environ) -> ControlConfig:
    """Read [control] of a configuration file, and nothing else: no secret, no other section.

    Raises:
        ConfigError: The file cannot be read, is not an ini file, or that section cannot be used.
    """
    return _load_one("control", ControlConfig, path, environment)


def load_history(
    path: Path, asterisk: str = "", environment: Mapping[str, str] = os.environ
) -> HistoryConfig:
    """Read [history] of a configuration file, and nothing else, as `load_control` does.

    Args:
        path: The file.
        asterisk: Of several Asterisks, the one whose history is meant.
        environment: As for `load`.

    Raises:
        ConfigError: As by `load_control`, or it has to be said which Asterisk is meant.
    """
    history, ini = _load_one("history", HistoryConfig, path, environment), _main(path)
    names = list(_asterisks_of(ini))
    if len(names) == 1 and not ini.has_section("asterisk"):
        asterisk = names[0]
    elif names and not asterisk:
        raise ConfigError(
            f"{path}: say which Asterisk is meant (--asterisk): it has {', '.join(names)}"
        )
    own = history_of(history.file, asterisk) if asterisk in names else history.file
    return dataclasses.replace(history, file=own)


def _load_one(
    name: str, section_type: type[_Section], path: Path, environment: Mapping[str, str]
) -> _Section:
    given = _Given(_main(path), environment)
    if given.ini.has_section(name):
        _refuse_unknown_options(name, given.ini)
    return _read_section(name, section_type, given)


def is_given(
    section: str, option: str, path: Path, environment: Mapping[str, str] = os.environ
) -> bool:
    """Return whether a configuration file, or the environment, says what an option is.

    Raises:
        ConfigError: The file cannot be read, or is not an ini file.
    """
    return _Given(_main(path), environment).text(section, option) is not None


def with_place(text: str, path: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text of an error that begins with `[section] option`, preceded by its place.

    Or with `[section]:`, where it is of no option.

    For errors of files and addresses that options name: those are used long after the file is read.

    Args:
        text: A text that begins otherwise is returned unchanged.
        path: The configuration file.
        environment: As for `load`.
    """
    named = re.match(r"\[([\w:. -]+)\](?: (\w+)|:)", text)
    if named is None:
        return text
    try:
        further = profile_files.read_all(path, _content)
        given = _Given(_main(path), environment, further)
    except ConfigError:  # a file was changed meanwhile
        return f"{path}: {text}"
    return f"{given.place(named[1], named[2] or '')}: {text}"


def _main(path: Path) -> Ini:
    try:
        return Ini(_content(path), str(path))
    except ConfigError as exc:
        if not isinstance(exc.__cause__, FileNotFoundError):
            raise
        raise ConfigError(f"{exc}; `audiofork setup` makes one, -c names another") from exc


def _content(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")  # editors of Windows begin with a mark
    except OSError as exc:
        raise ConfigError(why(exc)) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: {why(exc)}") from None  # the cause quotes the file


def parse(
    content: str,
    environment: Mapping[str, str],
    *,
    source: str,
    secrets_of: Sequence[str] = EVERY_SECRET,
) -> Config:
    """Parse the text of a configuration file; see `load`."""
    return _parsed(_Given(Ini(content, source), environment), secrets_of)


def _parsed(given: _Given, secrets_of: Sequence[str]) -> Config:
    profile_files.refuse_doubles(given.inis)
    for ini in given.inis:
        _refuse_unknown(ini)
    sections: dict[str, Any] = {
        name: _read_section(name, section_type, given) for name, section_type in SECTIONS.items()
    }
    for kind in NAMED_SECTIONS:
        sections[kind] = {}
    for kind, name in (one for ini in given.inis for one in _named(ini)):
        sections[kind][name] = _read_section(f"{kind}:{name}", NAMED_SECTIONS[kind], given)
    asterisks = _read_asterisks(given)
    has_unnamed = not asterisks or given.ini.has_section("asterisk")
    config = Config(**sections, asterisks=asterisks, has_unnamed=has_unnamed)
    config_checks.check(config, given)
    return _with_secrets(config, given, secrets_of)


class _Given:
    """The given values: of the file and the files of profiles; the environment overrides both."""

    def __init__(
        self, ini: Ini, environment: Mapping[str, str], further: Sequence[Ini] = ()
    ) -> None:
        self.ini = ini
        self.inis = [ini, *further]
        self._environment = environment

    def _ini_of(self, section: str) -> Ini:
        return next((ini for ini in self.inis if ini.has_section(section)), self.ini)

    def text(self, section: str, option: str) -> str | None:
        """Return the text of an option; None if it has its default."""
        variable = variable_of(section, option)
        if variable in self._environment:
            return self._environment[variable]
        return self._ini_of(section).get(section, option, fallback=None)

    def place(self, section: str, option: str = "") -> str:
        """Return the place of a value: the variable, FILE:LINE, or FILE if it has its default."""
        variable = variable_of(section, option)
        if variable in self._environment:
            return variable
        return self._ini_of(section).place(section, option)


def variable_of(section: str, option: str) -> str:
    """Return the environment variable that overrides an option of the file."""
    return re.sub(r"\W", "_", f"{_PREFIX}{section}_{option}".upper())


def refuse_unknown_variables(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an environment variable that looks like that of an option, but matches none.

    Raises:
        ConfigError: There is such a variable; the text names it and the nearest known one.
    """
    named = [
        (f"{kind}:{name}", section_type)
        for kind, section_type in NAMED_SECTIONS.items()
        for name in getattr(config, kind)
    ] + [
        (f"{kind} {name}", section_type)
        for kind, section_type in SECTIONS_OF_ASTERISK.items()
        for name in config.asterisks
    ]
    known = {
        variable_of(section, option.name)
        for section, section_type in (*SECTIONS.items(), *named)
        for option in dataclasses.fields(section_type)
    }
    for name in sorted(environment):
        if name.upper().startswith(_PREFIX) and not (name in known or _OTHERS.match(name)):
            rests = [variable.removeprefix(_PREFIX) for variable in sorted(known)]
            hint = did_you_mean(name[len(_PREFIX) :], rests, f"{_PREFIX}{{}}")
            raise ConfigError(
                f"the environment variable {printable(name, '?')} matches no option{hint}"
            )


_PREFIX = "AUDIOFORK_"
# Variables of the tests, of `make demo`, of package tests, and of commands that ask over HTTP.
_OTHERS = re.compile(
    r"AUDIOFORK_(TESTBED_\w+|DEBIAN_MIRROR|PACKAGE(_\w+)?|URL|TOKEN_FILE|CA_FILE)$"
)


def _refuse_unknown(ini: Ini) -> None:
    for section in ini.sections():
        _refuse_unknown_options(section, ini)


def _refuse_unknown_options(section: str, ini: Ini) -> None:
    try:
        known = [option.name for option in dataclasses.fields(_type_of(section))]
    except ValueError as exc:
        raise ConfigError(f"{ini.place(section)}: {exc}") from None
    for option in ini.options(section):
        if option not in known:
            hint = _of_another_section(option) or did_you_mean(option, known)
            raise ConfigError(
                f"{ini.place(section, option)}: unknown option {option} in [{section}]{hint}"
            )


def _of_another_section(option: str) -> str:
    """Return a hint to the section that has an option, if exactly one has it."""
    having = [
        name
        for name, section_type in SECTIONS.items()
        if option in {one.name for one in dataclasses.fields(section_type)}
    ]
    return f"; {option} is an option of [{having[0]}]" if len(having) == 1 else ""


def _type_of(section: str) -> type[Any]:
    """Return the type of a section; raise ValueError if the name is unknown."""
    if section in SECTIONS:
        return SECTIONS[section]
    kind, blank, name = section.partition(" ")
    if blank and kind in SECTIONS_OF_ASTERISK:
        if not is_name(name):
            raise ValueError(
                f"expected [{kind} NAME], the name letters, digits, - and _, 63 at most, "
                f"got [{section}]"
            )
        return SECTIONS_OF_ASTERISK[kind]
    kind, colon, name = section.partition(":")
    if kind not in NAMED_SECTIONS:
        known = [f"{one}:{name}" for one in NAMED_SECTIONS] if colon else SECTIONS
        raise ValueError(f"unknown section [{section}]{did_you_mean(section, known, '[{}]')}")
    try:
        word(name)
    except ValueError as exc:
        raise ValueError(f"expected [{kind}:NAME], the name {exc}, got [{section}]") from None
    return NAMED_SECTIONS[kind]


def _named(ini: Ini) -> list[tuple[str, str]]:
    """Return the kind and the name of each section that has both."""
    parts = (section.partition(":") for section in ini.sections())
    return [(kind, name) for kind, colon, name in parts if colon]


def _asterisks_of(ini: Ini) -> dict[str, set[str]]:
    """Return the names that sections of one Asterisk have, each with the kinds of its sections."""
    found: dict[str, set[str]] = {}
    for section in ini.sections():
        kind, blank, name = section.partition(" ")
        if blank:
            found.setdefault(name, set()).add(kind)
    return found


def _read_asterisks(given: _Given) -> dict[str, NamedAsterisk]:
    """Return what [asterisk NAME] and the sections that belong to it say, by NAME.

    Raises:
        ConfigError: A value is wrong, or there are sections of an Asterisk that is none.
    """
    found = {}
    for name, kinds in _asterisks_of(given.ini).items():
        if "asterisk" not in kinds:
            header = f"{min(kinds)} {name}"
            raise ConfigError(f"{given.place(header)}: [{header}]: there is no [asterisk {name}]")
        found[name] = NamedAsterisk(
            **{
                kind: _read_section(f"{kind} {name}", section_type, given)
                for kind, section_type in SECTIONS_OF_ASTERISK.items()
            }
        )
    return found


def _read_section(name: str, section_type: type[_Section], given: _Given) -> _Section:
    values: dict[str, Any] = {}
    for option in dataclasses.fields(section_type):  # type: ignore[arg-type]
        value = given.text(name, option.name)
        if value is None:
            continue
        try:
            values[option.name] = option.metadata["parse"](value.strip())
        except ValueError as exc:
            # The text before an @ may be a password.
            shown = repr(value) if option.repr and "@" not in value else "the value"
            hint = exc.hint if isinstance(exc, NotAChoice) else ""
            raise ConfigError(
                f"{given.place(name, option.name)}: [{name}] {option.name}: expected {exc}, "
                f"got {shown}{hint}"
            ) from exc
    return section_type(**values)


def _with_secrets(config: Config, given: _Given, sections: Sequence[str]) -> Config:
    """Read the secrets of these sections from their own files, where they have such."""
    read = {name: getattr(config, name) for name in sections if name in SECTIONS_WITH_SECRETS}
    if not config.cluster.servers:
        read.pop("cluster", None)
    if not config.has_unnamed:
        read.pop("asterisk", None)
        read.pop("ari", None)
    for section, option in _SECRETS:
        if section in read:
            read[section] = _with_secret(read[section], section, option, given)
    if "profile" in read:
        read["profile"] = {
            name: _of_profile(profile, name, given) for name, profile in config.profile.items()
        }
    asterisks = {
        name: _of_asterisk(one, name, given, sections) for name, one in config.asterisks.items()
    }
    return dataclasses.replace(config, **read, asterisks=asterisks)


_SECRETS = (
    ("asterisk", "secret"),
    ("ari", "password"),
    ("websocket", "proxy_login"),
    ("cluster", "nkey"),
    ("cluster", "credentials"),
)


def _of_asterisk(
    one: NamedAsterisk, name: str, given: _Given, sections: Sequence[str]
) -> NamedAsterisk:
    """Return the sections of one Asterisk with their secrets."""
    read = {}
    for kind, option in (("asterisk", "secret"), ("ari", "password")):
        header = f"{kind} {name}"
        if header in sections or f"{kind} *" in sections:
            read[kind] = _with_secret(getattr(one, kind), header, option, given)
    return dataclasses.replace(one, **read)


def _of_profile(profile: ProfileConfig, name: str, given: _Given) -> ProfileConfig:
    for option in ("token", "proxy_login"):
        profile = _with_secret(profile, f"profile:{name}", option, given)
    return profile


def _with_secret(values: _Section, section: str, option: str, given: _Given) -> _Section:
    """Return the values of a section with the secret of its file, if it names one."""
    path = os.path.expandvars(getattr(values, f"{option}_file"))
    if not path:
        return values
    where = f"{given.place(section, f'{option}_file')}: [{section}] {option}_file"
    parse = values.__dataclass_fields__[option].metadata["parse"]  # type: ignore[attr-defined]
    try:
        secret = parse(_secret(Path(path), where))
    except ValueError as exc:
        raise ConfigError(f"{where}: expected {exc} in {path}") from None
    if not secret:
        raise ConfigError(f"{where}: expected the {option} in {path}, which is empty")
    return dataclasses.replace(values, **{option: secret})  # type: ignore[type-var]


def _secret(path: Path, where: str) -> str:
    try:
        return read_file(path).decode("utf-8-sig").strip()
    except OSError as exc:
        unset = "$" in str(path)
        hint = "; systemd sets that variable for the service alone" if unset else ""
        raise ConfigError(f"{where}: {why(exc)}{hint}") from exc
    except UnicodeDecodeError:  # its text would quote the secret
        raise ConfigError(f"{where}: expected UTF-8 in {path}") from None
