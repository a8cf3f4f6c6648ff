"""The files of profiles.d, beside the configuration file: profiles and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from audiofork.errors import ConfigError
from audiofork.ini import Ini
from audiofork.text import printable, why

FOLDER = "profiles.d"
_KIND = "profile:"


def folder_of(config: Path) -> Path:
    """Return the folder that belongs to a configuration file; it need not be there."""
    return config.parent / FOLDER


def read_all(config: Path, content_of: Callable[[Path], str]) -> list[Ini]:
    """Return the files of profiles beside a configuration file, sorted by name.

    Those are what ends in .ini. Hidden files, backups and what a package manager leaves are not
    read; neither are files of keys.

    Args:
        config: The configuration file.
        content_of: Returns the text of a file; may raise ConfigError.

    Raises:
        ConfigError: The folder or a file cannot be read, or a file holds something else.
    """
    folder = folder_of(config)
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ConfigError(why(exc)) from exc
    paths = [folder / name for name in names if name.endswith(".ini") and name[0] != "."]
    return [_checked(Ini(content_of(path), str(path))) for path in paths]


def refuse_doubles(inis: list[Ini]) -> None:
    """Refuse a profile that stands in several files.

    Raises:
        ConfigError: There is one; the text names both places.
    """
    first: dict[str, Ini] = {}
    for ini in inis:
        for section in ini.sections():
            if section.startswith(_KIND) and first.setdefault(section, ini) is not ini:
                raise ConfigError(
                    f"{ini.place(section)}: [{section}] stands in {first[section].place(section)}, "
                    "too: keep one, or give one of them another name"
                )


def _checked(ini: Ini) -> Ini:
    for section in ini.sections():
        if not section.startswith(_KIND):
            raise ConfigError(
                f"{ini.place(section)}: expected [profile:NAME], got [{printable(section, '?')}]; "
                f"files in {FOLDER} hold profiles alone"
            )
    return ini
