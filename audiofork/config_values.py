"""What an option may be: each function turns text into a value, or raises ValueError.

The exception says what would be right, as the rest of a sentence that begins with "expected".
`option` declares one.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from audiofork.addresses import IPNetwork, address_of, network_of
from audiofork.audiosocket import SAMPLE_RATES as RATES_BY_KIND
from audiofork.placeholders import names_in
from audiofork.text import did_you_mean

MAX_WORKERS = 64
MAX_PORT = 65535
# In Hz: those that AudioSocket has a kind of message for.
SAMPLE_RATES = tuple(RATES_BY_KIND.values())
# Of the audio in one message.
FRAMES_MS = range(20, 1001, 20)


_URL_PATTERN = re.compile(
    r"(?i:wss?|\*)://(\[[0-9a-f:.*]+\]|[^.@?#/:\[\]][^@?#/:\[\]]*)(:(\d+|\*))?(/[^?#]*)?"
)

_PROFILE_PATTERN = re.compile(r"@(\*|[A-Za-z0-9][A-Za-z0-9._*-]*)")
_PLACE_PART = re.compile(r"[^\s,;&|\x00-\x1f\x7f]{1,79}")
_MUSIC_CLASS = re.compile(r"[A-Za-z0-9._-]{1,79}")


def option(
    default: str, parse: Callable[[str], Any], doc: str, *, may_be_shown: bool = True
) -> Any:
    """Declare one option.

    Args:
        default: The default, as written in the file.
        parse: Turns the text of the file into a value, or raises ValueError.
        doc: What the sample says about the option.
        may_be_shown: False keeps its value (a secret, for example) out of errors and `repr`.
    """
    metadata = {"default": default, "parse": parse, "doc": doc}
    return field(default=parse(default), repr=may_be_shown, metadata=metadata)


@dataclass(frozen=True)
class Address:
    """A TCP address; `host` is a name or a number, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def of_worker(self, number: int) -> Address:
        """Return the address of a relay process, by that of the first; any port stays any."""
        return replace(self, port=self.port + number) if self.port else self


@dataclass(frozen=True, slots=True)
class Place:
    """A place of the dialplan; its priority is a number or a label."""

    context: str
    exten: str
    priority: str = "1"

    def __str__(self) -> str:
        return f"{self.context},{self.exten},{self.priority}"


# What a server may be allowed to ask for.
SERVER_COMMANDS = ("audio", "clear", "mark", "pause", "hangup", "dtmf", "transfer")


@dataclass(frozen=True)
class Proxy:
    """A proxy that servers are connected to through.

    Attributes:
        scheme: http, https or socks5; empty: there is none, servers are connected to directly.
        host: A name or a number, without brackets.
        port: Its TCP port.
        login: user:password, decoded; empty: it wants none.
    """

    scheme: str = ""
    host: str = ""
    port: int = 0
    login: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.scheme)

    def __str__(self) -> str:
        return f"{self.scheme}://{Address(self.host, self.port)}" if self else NO_PROXY

    def with_login(self, login: str) -> Proxy:
        """Return the proxy with another login; with its own if that is empty."""
        return replace(self, login=login) if self and login else self


NO_PROXY = "none"
_PROXY = re.compile(r"(https?|socks5)://(?:([^:@/?#]+):([^@/?#]*)@)?([^@/?#]+)/?")
MAX_LOGIN_BYTES = 255  # of the user and of the password; the limit of SOCKS5 (RFC 1929, 2)


# Among the URLs that are allowed: the profiles, which always are.
PROFILES_ALONE = "@*"


def text(value: str) -> str:
    if any(character < " " or character == "\x7f" for character in value):
        raise ValueError("one line without control characters")
    return value


def folder_or_nothing(value: str) -> str:
    if value and not text(value).startswith("/"):
        raise ValueError("an absolute path, or nothing")
    return value


def yes_or_no(value: str) -> bool:
    known = configparser.RawConfigParser.BOOLEAN_STATES
    if value.lower() not in known:
        raise NotAChoice(value, ("yes", "no", "true", "false", "on", "off"), "yes or no")
    return known[value.lower()]


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            parsed = float("nan")
        if not low <= parsed <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return parsed

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return parse


def multiple_of_20(value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) not in FRAMES_MS:
        raise ValueError("a multiple of 20 from 20 to 1000")
    return int(value)


def process_count(value: str) -> int:
    if value == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    try:
        return whole(1, MAX_WORKERS)(value)
    except ValueError as exc:
        raise ValueError(f"{exc}, or auto") from None


class NotAChoice(ValueError):
    """Raised for a text that is none of several words.

    Attributes:
        hint: What may have been meant; follows what was given.
    """

    def __init__(self, value: str, choices: Iterable[str], expected: str = "") -> None:
        super().__init__(expected or " or ".join(choices))
        self.hint = did_you_mean(value, choices)


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise NotAChoice(value, choices)
        return value

    return parse


def address(value: str) -> Address:
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or set(host) & set("[]/ ") or bracketed != (":" in host):
        raise ValueError("host:port, or [address]:port for IPv6")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > MAX_PORT:
        raise ValueError("host:port with a port up to 65535")
    return Address(host, int(port))


def address_or_nothing(value: str) -> Address | None:
    return address(value) if value else None


def proxy(value: str) -> Proxy:
    """Return the proxy of a URL; that of `none` or of an empty text stands for no proxy."""
    if value in ("", NO_PROXY):
        return Proxy()
    found = _PROXY.fullmatch(value)
    if found is None:
        raise ValueError(
            "http://, https:// or socks5://, then host:port, perhaps with user:password@ before "
            "it; or none"
        )
    scheme, user, password, authority = found.groups()
    where = address(authority)
    if not where.port:
        raise ValueError("host:port with a port from 1 to 65535")
    given = f"{unquote(user)}:{unquote(password)}" if user is not None else ""
    if user is not None and ":" in unquote(user):
        raise ValueError("a user without a colon")
    return Proxy(scheme, where.host, where.port, login(given))


def proxy_or_nothing(value: str) -> Proxy | None:
    return proxy(value) if value else None


def login(value: str) -> str:
    """Return user:password, or nothing."""
    user, colon, password = text(value).partition(":")
    sizes = [len(part.encode()) for part in (user, password)]
    if value and (not colon or not user or max(sizes) > MAX_LOGIN_BYTES):
        raise ValueError(f"user:password, each of {MAX_LOGIN_BYTES} bytes at most")
    return value


def hosts(value: str) -> tuple[str, ...]:
    """Return names, which may have a * for any text, addresses and networks."""
    found = tuple(value.replace(",", " ").split())
    for one in found:
        if not re.fullmatch(r"[\w*-][\w.*-]*", one):
            try:
                network_of(one.strip("[]"))
            except ValueError:
                raise ValueError(
                    "names of hosts (*.example.org), addresses, and networks like 192.0.2.0/24"
                ) from None
    return tuple(one.strip("[]").rstrip(".").lower() for one in found)


def host_names(value: str) -> tuple[str, ...]:
    """Return names, addresses and origins of this machine, in lower case.

    Names and addresses have neither brackets nor ports; origins, such as
    https://pbx.example.org:8443, have no port that is their scheme's own.
    """
    found = tuple(one.strip("[]") for one in value.replace(",", " ").split())
    expected = (
        "names of hosts and addresses, without ports, or origins like "
        "https://pbx.example.org:8443, with blanks between"
    )
    names: list[str] = []
    for one in found:
        if "://" in one:
            names.append(_origin(one, expected))
            continue
        try:
            is_host = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", one) or address_of(one)
        except ValueError:
            is_host = None
        if not is_host:
            raise ValueError(expected)
        names.append(one.rstrip(".").lower())
    return tuple(names)


def _origin(value: str, expected: str) -> str:
    """Return an origin as browsers send it."""
    shape = r"(https?)://([a-z0-9][a-z0-9._-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
    found = re.fullmatch(shape, value.lower())
    if found is None or not 0 < int(found[3] or 1) < 65536:
        raise ValueError(expected)
    own_port = {"http": 80, "https": 443}[found[1]]
    has_port = found[3] is not None and int(found[3]) != own_port
    return f"{found[1]}://{found[2]}" + (f":{int(found[3])}" if has_port else "")


def networks(value: str) -> tuple[IPNetwork, ...]:
    try:
        return tuple(network_of(network) for network in value.replace(",", " ").split())
    except ValueError:
        raise ValueError("networks like 192.0.2.0/24, or addresses") from None


def url_patterns(value: str) -> tuple[str, ...]:
    patterns = tuple(one for one in value.replace(",", " ").split() if one != PROFILES_ALONE)
    if not all(_URL_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise ValueError(
            "patterns that begin with ws://, wss:// or *://, then host, :port, /path; no user, no "
            "query (and *.example.org, not .example.org)"
        )
    return patterns


def speakers(value: str) -> tuple[str, ...]:
    """Return patterns of URLs, and names of profiles with an @ before them."""
    patterns = tuple(value.replace(",", " ").split())
    if not all(_PROFILE_PATTERN.fullmatch(one) or _URL_PATTERN.fullmatch(one) for one in patterns):
        raise ValueError(
            "@NAME of a profile, @* for all of them, or patterns that begin with ws://, wss:// or "
            "*://, then host, :port, /path; no user, no query"
        )
    return patterns


def server_commands(value: str) -> tuple[str, ...]:
    wanted = tuple(value.replace(",", " ").split())
    for word in wanted:
        if word not in SERVER_COMMANDS:
            raise NotAChoice(word, SERVER_COMMANDS, f"words of {', '.join(SERVER_COMMANDS)}")
    return wanted


def place(value: str) -> Place:
    parts = value.split(",")
    if not 2 <= len(parts) <= 3 or not all(_PLACE_PART.fullmatch(part) for part in parts):
        raise ValueError("context,exten or context,exten,priority, blanks between two of them")
    return Place(*parts)


def music_class(value: str) -> str:
    if value and not _MUSIC_CLASS.fullmatch(value):
        raise ValueError("the name of a class in musiconhold.conf: up to 79 letters, digits, . - _")
    return value


def places(value: str) -> tuple[Place, ...]:
    return tuple(place(one) for one in value.split())


def lines(value: str) -> tuple[str, ...]:
    """Return the lines of a value that goes on in indented lines."""
    return tuple(line.strip() for line in value.splitlines() if line.strip())


def texts(value: str) -> str:
    """Return a text of one or several lines."""
    return "\n".join(lines(value))


def words(value: str) -> tuple[str, ...]:
    return tuple(value.split())


def sample_rate(value: str) -> int:
    allowed = ("0", *map(str, SAMPLE_RATES))
    if value not in allowed:
        raise ValueError(" or ".join(allowed))
    return int(value)


def word(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("a word of letters, digits, - _ . that begins with a letter or a digit")
    return value


def program_and_arguments(value: str) -> tuple[str, ...]:
    """Return a command as the list of its words, split as a shell does; empty: there is none."""
    try:
        words = tuple(shlex.split(value))
    except ValueError as exc:  # shlex's sentences: "No closing quotation"
        raise ValueError(f"words, in quotes where they hold blanks ({exc})") from None
    if any(not word.isprintable() for word in words):
        raise ValueError("words without control characters")
    names_in(words)
    if words and (not words[0].startswith("/") or "^{" in words[0]):
        raise ValueError("the path of a program, from / on and without ^{NAME}, then its arguments")
    return words


def http_url(value: str) -> str:
    """Return a URL that paths can be put behind: without a slash at its end."""
    expected = "http://host[:port][/path] or https://, without user, password, query and fragment"
    try:
        parts = urlsplit(value)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:  # its text may quote the value
        raise ValueError(expected) from None
    is_web = parts.scheme in ("http", "https")
    if not is_web or not host or not re.fullmatch(r"[!-~]+", value) or set(value) & set("@?#\\"):
        raise ValueError(expected)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def web_page_or_nothing(value: str) -> str:
    """Return a URL that is asked for as it is; its query may be a secret."""
    if not value:
        return ""
    before, question_mark, query = value.partition("?")
    try:
        http_url(before)
    except ValueError:
        is_page = False
    else:
        is_page = re.fullmatch(r"[!-~]*", query) is not None and "#" not in query
    if not is_page:
        raise ValueError("http://host[:port][/path][?query] or https://, without user and fragment")
    return value


def http_url_or_nothing(value: str) -> str:
    return http_url(value) if value else ""
