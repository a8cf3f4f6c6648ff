"""The tokens of the HTTP interface, and what each of them lets its owner do."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from audiofork.config_values import word
from audiofork.errors import ConfigError
from audiofork.files import read_file
from audiofork.text import did_you_mean, printable, why

MIN_TOKEN_CHARACTERS = 20
MAX_TOKENS = 200
_TOKEN = re.compile(r"[!-~]{1,500}")
_BLANKS = " \t"
_OPTION = "[http] tokens_file"


class Role(enum.StrEnum):
    """What a token lets its owner do. Each of them includes VIEW."""

    VIEW = "view"
    """See the forks, their events, the history, the metrics."""
    LISTEN = "listen"
    """Hear the audio of forks."""
    CONTROL = "control"
    """Start, stop and mute forks."""


ALL_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks.

    Attributes:
        name: The name of the token, or of the user of the Unix socket; for the log.
        roles: What it may do.
    """

    name: str
    roles: frozenset[Role]


def digest_of(token: str) -> bytes:
    """Return what a token is compared by: of one length, whatever the token's is."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


class Tokens:
    """All tokens, by their digests.

    Args:
        owners: Whose each token is, by its digest.
    """

    def __init__(self, owners: Mapping[bytes, Client]) -> None:
        self._owners = dict(owners)

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, token: str) -> bytes | None:
        """Return the digest of a token if it is known; it takes as long if it is not."""
        given = digest_of(token)
        found = None
        for digest in self._owners:  # always all of them
            if hmac.compare_digest(digest, given):
                found = digest
        return found

    def owner_of(self, digest: bytes) -> Client | None:
        """Return whose a token is, by its digest; None: it is no longer known."""
        return self._owners.get(digest)


def read_tokens(path: str) -> Tokens:
    """Return the tokens of a file.

    Args:
        path: May begin with ${CREDENTIALS_DIRECTORY}; empty: there are no tokens.

    Raises:
        ConfigError: It cannot be used; the text names the line, and repeats no token.
    """
    file = os.path.expandvars(path)
    if not file:
        return Tokens({})
    try:
        mode = os.stat(file).st_mode
        content = read_file(file)
    except OSError as exc:
        raise ConfigError(f"{_OPTION}: {why(exc)}") from exc
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"{_OPTION}: {printable(file, '?')}: every user of this machine may read it: "
            f"chmod o= {printable(file, '?')}"
        )
    try:
        # Not by splitlines: in a comment, it would take a form feed or U+2028 for an end of line.
        lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:  # its text would quote the file
        raise ConfigError(f"{_OPTION}: {printable(file, '?')}: expected UTF-8") from None
    return _parsed(lines, printable(file, "?"))


def _parsed(lines: Iterable[str], file: str) -> Tokens:
    owners: dict[bytes, Client] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip(_BLANKS) or line.lstrip(_BLANKS).startswith("#"):
            continue
        try:
            digest, client = _owner(line)
            if client.name in names or digest in owners:
                what = "name" if client.name in names else "token"
                raise ValueError(f"expected another {what} than in an earlier line")
            if len(owners) >= MAX_TOKENS:
                raise ValueError(f"expected {MAX_TOKENS} tokens at most")
        except ValueError as exc:
            raise ConfigError(f"{_OPTION}: {file}:{number}: {exc}") from None
        owners[digest] = client
        names.add(client.name)
    return Tokens(owners)


def _owner(line: str) -> tuple[bytes, Client]:
    parts = re.split(f"[{_BLANKS}]+", line.strip(_BLANKS))  # split() knows blanks beyond ASCII
    if len(parts) != 3:
        raise ValueError("expected NAME ROLES TOKEN, and nothing else")
    name, roles, token = parts
    try:
        word(name)
    except ValueError as exc:
        raise ValueError(f"NAME: expected {exc}") from None
    if len(token) < MIN_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        raise ValueError(
            f"TOKEN: expected {MIN_TOKEN_CHARACTERS} to 500 characters of ASCII, such as the "
            "output of: openssl rand -hex 24"
        )
    return digest_of(token), Client(name, _roles(roles))


def _roles(text: str) -> frozenset[Role]:
    roles = {Role.VIEW}
    for one in text.split(","):
        if one not in list(Role):
            hint = did_you_mean(one, list(Role))
            raise ValueError(f"ROLES: expected {', '.join(Role)}, with commas between them{hint}")
        roles.add(Role(one))
    return frozenset(roles)
