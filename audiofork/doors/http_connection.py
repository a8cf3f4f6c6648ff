"""A connection of the command line to the daemon's HTTP door: its TLS, its token, its errors.

It is http.client's, which is imported anyway: aiohttp would add half to the time of a command.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from audiofork.config_values import http_url
from audiofork.doors.daemon_client import ANSWER_TIMEOUT_S
from audiofork.errors import (
    AmiUnavailable,
    AudioForkError,
    ConfigError,
    DaemonBusy,
    DaemonFault,
    DaemonUnreachable,
    RequestRefused,
)
from audiofork.files import read_file
from audiofork.reading_json import parsed_json
from audiofork.text import printable, reason_of, why
from audiofork.tls_contexts import client_context

API = "/api/v1"
MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 65_536
MAX_TOKEN_FILE_BYTES = 65_536
MAX_SHOWN_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Door:
    """Where a daemon's HTTP door is, and what opens it.

    Attributes:
        url: Of the door, without a path of ours.
        token_file: A file with the token; None: there is none.
        ca_file: The authorities to trust, in PEM; empty: the system's.
    """

    url: str
    token_file: Path | None = None
    ca_file: str = ""

    def checked(self) -> Door:
        """Return it with its URL in the usual form.

        Raises:
            ConfigError: The URL cannot be used, or would show the token to the network.
        """
        try:
            url = http_url(self.url)
        except ValueError as exc:
            raise ConfigError(f"--url: expected {exc}") from None  # what was given may be a secret
        parts = urlsplit(url)
        if parts.scheme == "http" and not _is_here(parts.hostname or ""):
            raise ConfigError(
                f"--url: {url} would send the token in the clear: use https://, or a tunnel "
                "(ssh -L 9080:127.0.0.1:9080 HOST) and http://127.0.0.1:9080"
            )
        return Door(url, self.token_file, self.ca_file)


def _is_here(host: str) -> bool:
    """Return whether a host is this machine, as far as that shows without a look-up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_of(path: Path) -> str:
    """Return the token in a file: its last word; so a line of [http] tokens_file does, too.

    Raises:
        ConfigError: There is none, or others may read it; the text does not show it.
    """
    try:
        content = read_file(path, MAX_TOKEN_FILE_BYTES).decode("ascii")
        is_open = bool(path.stat().st_mode & stat.S_IROTH)
    except OSError as exc:
        raise ConfigError(f"--token-file: {why(exc)}") from exc
    except ValueError:
        raise ConfigError(f"--token-file: expected a token in {path}") from None
    if is_open:
        raise ConfigError(
            f"--token-file: every user of this machine may read {path}: chmod o-r {path}"
        )
    lines = [line for line in map(str.strip, content.splitlines()) if line[:1] not in ("", "#")]
    if len(lines) != 1:
        raise ConfigError(
            f"--token-file: expected one line with a token in {path}, not {len(lines)}"
        )
    token = lines[0].split()[-1]
    if not token.isprintable():
        raise ConfigError(f"--token-file: expected a token in {path}")
    return token


class HttpConnection:
    """Asks the daemon through its HTTP door, one question at a time.

    Raises:
        ConfigError: The token, the URL or the authorities cannot be used.
        DaemonUnreachable: Nobody listens there, or its certificate is not to be trusted.
    """

    def __init__(self, door: Door) -> None:
        self._door = door.checked()
        self.url = self._door.url
        self._headers = {"Accept": "application/json", "User-Agent": "audiofork"}
        if door.token_file is not None:
            self._headers["Authorization"] = f"Bearer {token_of(door.token_file)}"
        self._connection = self.connect()

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def stream(self, path: str) -> tuple[socket.socket, http.client.HTTPResponse] | None:
        """Return a stream of events, with its socket; None: there is none to be had.

        Args:
            path: Below /api/v1, with its query.
        """
        connection = self.connect()
        own_socket = connection.sock  # which getresponse() takes from the connection
        headers = self._headers | {"Accept": "text/event-stream"}
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", self.path(path), headers=headers)
            response = connection.getresponse()
            if response.status == 200:
                return own_socket, response
        connection.close()
        return None

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection.

        Raises:
            ConfigError: The authorities cannot be used.
            DaemonUnreachable: It cannot be made.
        """
        parts = urlsplit(self._door.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            try:
                context = client_context(self._door.ca_file)
            except OSError as exc:
                raise ConfigError(f"--ca-file: {why(exc)}") from exc
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port or 443, timeout=ANSWER_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(
                host, parts.port or 80, timeout=ANSWER_TIMEOUT_S
            )
        try:
            connection.connect()
        except OSError as exc:
            text = f"no daemon at {self._door.url}: {reason_of(exc, '--ca-file')}"
            raise DaemonUnreachable(text) from exc
        return connection

    def path(self, path: str) -> str:
        return f"{urlsplit(self._door.url).path}{API}{path}"

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Send a request, and return its answer; empty if that has no body."""
        content = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        target = self.path(path) + (f"?{urlencode(query)}" if query else "")
        url = self._door.url
        try:
            self._connection.request(method, target, body=content, headers=headers)
            response = self._connection.getresponse()
            limit = MAX_ANSWER_BYTES if response.status < 300 else MAX_ERROR_BYTES
            answer = response.read(limit + 1)
        except TimeoutError as exc:
            text = f"no answer of the daemon at {url} within {ANSWER_TIMEOUT_S:g} s"
            raise DaemonUnreachable(text) from exc
        except (http.client.RemoteDisconnected, http.client.IncompleteRead) as exc:
            raise DaemonUnreachable(f"the daemon at {url} has closed the connection") from exc
        except OSError as exc:
            raise DaemonUnreachable(f"the daemon at {url} is gone: {reason_of(exc)}") from exc
        except http.client.HTTPException:
            raise DaemonUnreachable(not_the_daemon(url)) from None
        if len(answer) > limit:
            raise DaemonUnreachable(not_the_daemon(url))
        if response.status >= 300:
            raise self._error_of(response, answer)
        with self.is_the_daemon():
            return _object_in(answer) if answer else {}

    @contextlib.contextmanager
    def is_the_daemon(self) -> Iterator[None]:
        """Turn errors in an answer that the daemon would not give into DaemonUnreachable."""
        try:
            yield
        except (ValueError, LookupError, TypeError):
            raise DaemonUnreachable(not_the_daemon(self._door.url)) from None

    def _error_of(self, response: http.client.HTTPResponse, answer: bytes) -> AudioForkError:
        """Return what an answer with an error stands for (RFC 9457)."""
        media_type = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "application/problem+json":
            return DaemonUnreachable(f"{not_the_daemon(self._door.url)}: HTTP {response.status}")
        with self.is_the_daemon():
            problem = _object_in(answer)
        text = printable(str(problem.get("detail") or problem.get("title") or ""), "?")
        text = text[:MAX_SHOWN_CHARACTERS] or f"HTTP {response.status}"
        if response.status in (401, 403):
            return DaemonUnreachable(f"the daemon at {self._door.url} refuses: {self._why(text)}")
        kind = str(problem.get("type", ""))
        if response.status == 429 or kind == "/problems/busy":
            return DaemonBusy(text)
        if response.status == 503:
            is_away = kind == "/problems/asterisk-away"
            return AmiUnavailable(text) if is_away else RequestRefused(text)
        return DaemonFault(text) if response.status >= 500 else RequestRefused(text)

    def _why(self, text: str) -> str:
        file = self._door.token_file
        return f"{text} (the token of {file})" if file else f"{text}; --token-file names a token"


def not_the_daemon(url: str) -> str:
    return f"what answers at {url} is not the daemon of audiofork"


def _object_in(answer: bytes) -> dict[str, Any]:
    found = parsed_json(answer)
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    return found
