"""The configuration's file: read, checked, and its sample made.

`etc/audiofork.ini` is generated from `config.py` (`make sample-config`).
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audiofork.config import EXAMPLES, NAMED_SECTIONS, SECTIONS, Config, ControlConfig
from audiofork.config_values import MAX_PORT, text, word
from audiofork.errors import ConfigError
from audiofork.files import read_file

_INTRO = """\
; audiofork.ini: the configuration of audiofork.
;
; Every option stands here with its default. An environment variable AUDIOFORK_SECTION_OPTION
; (AUDIOFORK_ASTERISK_SECRET, say) overrides the file, also in [post_process:NAME], where _ stands
; for : and the like. An unknown section or option is an error.
; SIGHUP makes the daemon read the file again; a file with an error changes nothing. [asterisk],
; [ari], [audiosocket], [relay], [control], [front] and [daemon] journal count from the next start,
; but the secret of [asterisk] and the password of [ari], with their files, from the next login on.
"""


SECTIONS_WITH_SECRETS = ("asterisk", "ari")
"""Those of which a secret may have a file of its own."""


# --- Reading -------------------------------------------------------------------------------------

_Section = TypeVar("_Section")


def load(
    path: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    secrets_of: Sequence[str] = SECTIONS_WITH_SECRETS,
) -> Config:
    """Read a configuration file.

    Args:
        path: An ini file; `;` and `#` begin comments.
        environment: AUDIOFORK_SECTION_OPTION in it overrides the file.
        secrets_of: The sections whose secrets are read where they have a file of their own.

    Raises:
        ConfigError: The file cannot be read or holds something that is not known or not allowed.
    """
    return parse(_content_of(path), environment, source=str(path), secrets_of=secrets_of)


def load_control(path: Path, environment: Mapping[str, str] = os.environ) -> ControlConfig:
    """Read [control] of a configuration file, and nothing else: no secret, no other section.

    Raises:
        ConfigError: The file cannot be read, is no ini file, or that section cannot be used.
    """
    content = _content_of(path)
    ini = _ini_of(content, str(path))
    if ini.has_section("control"):
        _refuse_unknown_options("control", ini, content, str(path))
    return _read_section("control", ControlConfig, ini, environment, content, str(path))


def _content_of(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")  # editors of Windows begin with a mark
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _ini_of(content: str, source: str) -> configparser.RawConfigParser:
    ini = configparser.RawConfigParser(
        inline_comment_prefixes=(";",), comment_prefixes=(";", "#"), default_section=""
    )
    try:
        ini.read_string(content, source)
    except (
        configparser.DuplicateOptionError,
        configparser.DuplicateSectionError,
        configparser.ParsingError,
    ) as exc:
        # Without the cause, which quotes lines of the file: one may hold the secret.
        raise ConfigError(f"{source}:{_what_is_wrong(exc)}") from None
    return ini


def parse(
    content: str,
    environment: Mapping[str, str],
    *,
    source: str,
    secrets_of: Sequence[str] = SECTIONS_WITH_SECRETS,
) -> Config:
    """Parse the text of a configuration file; see `load`."""
    ini = _ini_of(content, source)
    _refuse_unknown(ini, content, source)
    sections: dict[str, Any] = {
        name: _read_section(name, section_type, ini, environment, content, source)
        for name, section_type in SECTIONS.items()
    }
    for kind in NAMED_SECTIONS:
        sections[kind] = {}
    for kind, name in _named(ini):
        section_type = NAMED_SECTIONS[kind]
        sections[kind][name] = _read_section(
            f"{kind}:{name}", section_type, ini, environment, content, source
        )
    config = Config(**sections)
    _check_commands(config, content, source)
    _check_ports(config, source)
    _check_tap(config, source)
    return _with_secrets(config, source, secrets_of)


def _what_is_wrong(
    exc: configparser.DuplicateOptionError
    | configparser.DuplicateSectionError
    | configparser.ParsingError,
) -> str:
    """Return the line and the fault, but nothing of the line's text."""
    if isinstance(exc, configparser.DuplicateOptionError):
        return f"{exc.lineno}: option {exc.option} stands twice in [{exc.section}]"
    if isinstance(exc, configparser.DuplicateSectionError):
        return f"{exc.lineno}: section [{exc.section}] stands twice"
    if isinstance(exc, configparser.MissingSectionHeaderError):
        return f"{exc.lineno}: expected a [section] before the first option"
    return f"{exc.errors[0][0]}: expected option = value or [section]"


def _refuse_unknown(ini: configparser.RawConfigParser, content: str, source: str) -> None:
    for section in ini.sections():
        _refuse_unknown_options(section, ini, content, source)


def _refuse_unknown_options(
    section: str, ini: configparser.RawConfigParser, content: str, source: str
) -> None:
    try:
        known = {option.name for option in dataclasses.fields(_type_of(section))}
    except ValueError as exc:
        line = _line_of(content, section, None)
        raise ConfigError(f"{source}:{line}: {exc}") from None
    for option in ini.options(section):
        if option not in known:
            line = _line_of(content, section, option)
            raise ConfigError(f"{source}:{line}: unknown option {option} in [{section}]")


def _type_of(section: str) -> type[Any]:
    """Return the type of a section; raise ValueError if there is none of its name."""
    if section in SECTIONS:
        return SECTIONS[section]
    kind, _, name = section.partition(":")
    if kind not in NAMED_SECTIONS:
        raise ValueError(f"unknown section [{section}]")
    try:
        word(name)
    except ValueError as exc:
        raise ValueError(f"expected [{kind}:NAME], the name {exc}, got [{section}]") from None
    return NAMED_SECTIONS[kind]


def _named(ini: configparser.RawConfigParser) -> list[tuple[str, str]]:
    """Return the kind and the name of each section that has both."""
    parts = (section.partition(":") for section in ini.sections())
    return [(kind, name) for kind, colon, name in parts if colon]


def _read_section(
    name: str,
    section_type: type[_Section],
    ini: configparser.RawConfigParser,
    environment: Mapping[str, str],
    content: str,
    source: str,
) -> _Section:
    values: dict[str, Any] = {}
    for option in dataclasses.fields(section_type):  # type: ignore[arg-type]
        variable = re.sub(r"\W", "_", f"AUDIOFORK_{name}_{option.name}".upper())
        if variable in environment:
            where, value = variable, environment[variable]
        elif ini.has_option(name, option.name):
            where = f"{source}:{_line_of(content, name, option.name)}"
            value = ini.get(name, option.name)
        else:
            continue
        try:
            values[option.name] = option.metadata["parse"](value.strip())
        except ValueError as exc:
            # What stands before an @ may be a password.
            shown = repr(value) if option.repr and "@" not in value else "the value"
            raise ConfigError(
                f"{where}: [{name}] {option.name}: expected {exc}, got {shown}"
            ) from exc
    return section_type(**values)


def _check_ports(config: Config, source: str) -> None:
    """Refuse an address that has no room for all workers after it."""
    workers = config.relay.workers
    for name in ("listen", "advertise"):
        address = getattr(config.audiosocket, name)
        if address is not None and address.port + workers - 1 > MAX_PORT:
            raise ConfigError(
                f"{source}: [audiosocket] {name}: expected {workers} ports from {address.port} on "
                f"([relay] workers), the last is {MAX_PORT}"
            )


def _check_commands(config: Config, content: str, source: str) -> None:
    """Refuse a section of a command that has none."""
    for name, section in config.post_process.items():
        if not section.command:
            header = f"post_process:{name}"
            where = f"{source}:{_line_of(content, header, None)}"
            raise ConfigError(f"{where}: [{header}] command: expected a command")


def _check_tap(config: Config, source: str) -> None:
    """Refuse a tap that there is no link for."""
    if config.asterisk.tap == "snoop" and not config.ari.url:
        raise ConfigError(f"{source}: [asterisk] tap: snoop needs [ari] url")


def _line_of(content: str, section: str, option: str | None) -> int:
    """Return the number of the line where a section or option stands."""
    current = ""
    for line_number, line in enumerate(content.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped[1:].partition("]")[0]
            if option is None and current == section:
                return line_number
        elif current == section and option is not None:
            name = stripped.replace(":", "=", 1).partition("=")[0].strip().lower()
            if name == option:
                return line_number
    return 0


def _with_secrets(config: Config, source: str, sections: Sequence[str]) -> Config:
    """Read each secret of these sections that has a file of its own from there."""
    for section, option in (("asterisk", "secret"), ("ari", "password")):
        if section not in sections:
            continue
        values = getattr(config, section)
        path = os.path.expandvars(getattr(values, f"{option}_file"))
        if path:
            secret = _secret(Path(path), f"{source}: [{section}] {option}_file")
            values = dataclasses.replace(values, **{option: secret})
            config = dataclasses.replace(config, **{section: values})
    return config


def _secret(path: Path, where: str) -> str:
    try:
        return text(read_file(path).decode("utf-8").strip())
    except OSError as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    except ValueError:  # not UTF-8, or more than one line; the cause would quote the secret
        raise ConfigError(f"{where}: expected one line of text in {path}") from None


# --- The sample ----------------------------------------------------------------------------------


def sample() -> str:
    """Return the text of `etc/audiofork.ini`."""
    parts = [_INTRO]
    for name, section_type in SECTIONS.items():
        parts += _sample_of(section_type, f"[{name}]", {})
    for kind, (name, values) in EXAMPLES.items():
        parts += _sample_of(NAMED_SECTIONS[kind], f";[{kind}:{name}]", values)
    return "\n".join(parts)


def _sample_of(section_type: type[Any], header: str, values: Mapping[str, str]) -> list[str]:
    """Return the paragraphs of a section; an option that `values` lacks has its default."""
    parts = [_comment(section_type.__doc__ or "") + f"{header}\n"]
    for option in dataclasses.fields(section_type):
        line = f"{option.name} = {values.get(option.name, option.metadata['default'])}".rstrip()
        parts.append(_comment(option.metadata["doc"]) + f";{line}\n")
    return parts


def _comment(doc: str) -> str:
    lines = textwrap.wrap(doc, width=96)
    return "".join(f"; {line}\n" for line in lines)
