"""Texts of configuration files: lines added to them, taken out again, and shown as a diff.

Lines are only ever added, and each says by its end whose it is. Text is Latin-1 for bytes; see
`conf`.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence

from audiofork.commands.setup.conf import BOM, code_of
from audiofork.errors import SetupError

MARK = "; by audiofork setup"
# Options of Asterisk's files and of the daemon's whose values are not shown.
_SECRET = re.compile(
    r"^(\s*;?\s*(?:secret|password|pass|md5secret|remote_secret|token|proxy_login)\s*(?:=>?|:)\s*)"
    r"\S.*$",
    re.IGNORECASE,
)
# Those whose values may hold secrets and may go on in indented lines.
_SECRET_LINES = re.compile(
    r"^(\s*;?\s*(?:headers|params|opening|closing)\s*[=:]\s*).*$", re.IGNORECASE
)
_URL = re.compile(r"\s*;?\s*(?:url|proxy|status_callback)\s*[=:]", re.IGNORECASE)
_OPTIONS, _HANDSHAKE = re.compile(r"\s*;?\s*options\s*[=:]"), re.compile(r"(?<=[AH]\()[^)]+")
_LOGIN, _QUERY = re.compile(r"(?<=://)\S+(?=@)"), re.compile(r"(?<=\?)\S+")
_NOT_SHOWN = "(not shown)"


def append(text: str, lines: Sequence[str], path: object) -> str:
    """Return a text of Asterisk's with lines at its end.

    Raises:
        SetupError: They would be part of a comment.
    """
    end = line_end(text)
    joint = "" if not text or text.endswith("\n") else end
    added = "".join(marked(line) + end for line in lines)
    result = text + joint + added
    if lines and not code_of(result).rstrip().endswith(lines[-1]):
        raise SetupError(f"{path}: a comment that begins with ;-- is not closed by --; in it")
    return result


def insert_option(text: str, section: str, line: str) -> str:
    """Return a text of audiofork.ini with an option in a section.

    It comes after the line that has it as a comment, else after the section's header, else at the
    end with a header of its own.

    Args:
        line: `name = value`.
    """
    name, end = line.partition("=")[0].strip(), line_end(text)
    lines = lines_of(text)
    header = next((at for at, one in enumerate(lines) if _is_header(one, section)), None)
    if header is None:
        joint = "" if not text or text.endswith("\n") else end
        return text + joint + marked(f"[{section}]") + end + marked(line) + end
    place = header
    for at in range(header + 1, len(lines)):
        if lines[at].lstrip().startswith("["):
            break
        if re.match(rf"\s*[;#]\s*{re.escape(name)}\s*[=:]", lines[at]):
            place = at
    before = "".join(lines[: place + 1])
    joint = "" if before.endswith("\n") else end
    return before + joint + marked(line) + end + "".join(lines[place + 1 :])


def _is_header(line: str, section: str) -> bool:
    return line.removeprefix(BOM).strip().partition("]")[0] == f"[{section}"


def marked(line: str) -> str:
    """Return a line as it is added."""
    return f"{line} {MARK}"


def added_lines(before: str, after: str) -> list[str]:
    """Return the lines that one of the above has added, without their ends."""
    old = Counter(line.rstrip("\r\n") for line in lines_of(before))
    new = Counter(line.rstrip("\r\n") for line in lines_of(after))
    return [line for line in (new - old) if line.endswith(MARK)]


def without(text: str, lines: Collection[str]) -> str:
    """Return a text without lines that were added to it."""
    return "".join(line for line in lines_of(text) if line.rstrip("\r\n") not in lines)


def marked_lines(text: str) -> list[int]:
    """Return the numbers of the lines that say that they were added."""
    numbered = enumerate(lines_of(text), 1)
    return [number for number, line in numbered if line.rstrip().endswith(MARK)]


def lines_of(text: str) -> list[str]:
    """Split a text at its newlines alone, which stay; Latin-1 has other characters that split."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def line_end(text: str) -> str:
    """Return how the lines of a text end."""
    return "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"


def diff(path: object, before: bytes | None, after: bytes) -> str:
    """Return a unified diff of a file, to be shown: secrets are masked."""
    old, new = ([] if one is None else _masked(shown(one)) for one in (before, after))
    source = "/dev/null" if before is None else str(path)
    return "\n".join(difflib.unified_diff(old, new, source, str(path), lineterm=""))


def _masked(text: str) -> list[str]:
    """Return the lines of a text, without what is or may be secret in them."""
    found: list[str] = []
    is_within = False  # a value that may go on
    for line in text.splitlines():
        if is_within and line[:1].isspace() and line.strip():
            found.append(f"{line[: -len(line.lstrip())]}{_NOT_SHOWN}")
            continue
        given = _SECRET_LINES.match(line)
        is_within = given is not None
        if given is not None and given.end(1) < len(line):
            found.append(f"{given[1]}{_NOT_SHOWN}")
        elif _URL.match(line):
            found.append(_QUERY.sub(_NOT_SHOWN, _LOGIN.sub(_NOT_SHOWN, line)))
        elif _OPTIONS.match(line):
            found.append(_HANDSHAKE.sub(_NOT_SHOWN, line))
        else:
            found.append(_SECRET.sub(rf"\1{_NOT_SHOWN}", line))
    return found


def shown(content: bytes) -> str:
    """Return the text of a file, to be shown."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = text.replace("\r\n", "\n")
    return "".join(one if one.isprintable() or one in "\n\t" else "?" for one in text)
