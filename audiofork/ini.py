"""An ini file, with the line numbers of its sections and options."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Callable, Iterator

from audiofork.errors import ConfigError


class Ini(configparser.RawConfigParser):
    """The text of an ini file; `;` and `#` begin comments.

    A section may appear several times, and its parts are merged. An option may not.

    Raises:
        ConfigError: The text is not an ini file, or an option appears twice. The error names the
            line, but does not quote it, because it may contain a secret.
    """

    def __init__(self, content: str, source: str) -> None:
        self.source = source
        self._line = 0  # the one that is being read; 0 when all are
        self._section = ""
        self._lines: dict[tuple[str, str], list[int]] = {}
        super().__init__(
            strict=False,  # else sections could stand only once
            inline_comment_prefixes=(";",),
            comment_prefixes=(";", "#"),
            default_section="",
        )
        self.SECTCRE = _Headers(self.SECTCRE, self._on_header)  # type: ignore[assignment]
        try:
            self.read_file(self._numbered(content), source)
        except configparser.ParsingError as exc:
            # Without the cause, which quotes lines of the file.
            raise ConfigError(f"{source}:{_what_is_wrong(exc)}") from None
        self._line = 0
        self._refuse_doubles()

    def _numbered(self, content: str) -> Iterator[str]:
        for self._line, line in enumerate(io.StringIO(content), 1):  # noqa: B020 (read on the way)
            yield line

    def _on_header(self, section: str) -> None:
        self._section = section
        self._note("")

    def optionxform(self, optionstr: str) -> str:
        """Return the name of an option in lower case; while reading the file, record its line."""
        name = optionstr.lower()
        if self._line:
            self._note(name)
        return name

    def _note(self, option: str) -> None:
        self._lines.setdefault((self._section, option), []).append(self._line)

    def _refuse_doubles(self) -> None:
        for (section, option), (first, *others) in self._lines.items():
            if option and others:
                raise ConfigError(
                    f"{self.source}:{others[0]}: option {option} stands twice in [{section}], in "
                    f"line {first} and in line {others[0]}: keep one"
                )

    def place(self, section: str, option: str = "") -> str:
        """Return FILE:LINE of an option, or of a section's first header; FILE if it is missing.

        Args:
            section: Its name.
            option: Its name in lower case; empty for the header.
        """
        lines = self._lines.get((section, option))
        return f"{self.source}:{lines[0]}" if lines else self.source


class _Headers:
    """The pattern of section headers; reports each header that it finds."""

    def __init__(self, pattern: re.Pattern[str], found: Callable[[str], None]) -> None:
        self._pattern = pattern
        self._found = found

    def match(self, line: str) -> re.Match[str] | None:
        match = self._pattern.match(line)
        if match is not None:
            self._found(match["header"])
        return match


def _what_is_wrong(exc: configparser.ParsingError) -> str:
    """Return the line number and the fault, but nothing of the line's text."""
    if isinstance(exc, configparser.MissingSectionHeaderError):
        return f"{exc.lineno}: expected a [section] before the first option"
    return f"{exc.errors[0][0]}: expected option = value or [section]"
