"""Opens TCP connections, only to addresses that were checked.

A name may point to one address when it is checked and to another when the connection is opened
(DNS rebinding). So the name is resolved once, and only those addresses are used.

The addresses are tried by Happy Eyeballs (RFC 8305): one that does not answer delays the connect
by 0.25 s, not by the whole connect timeout. `aiohappyeyeballs` does the same, but it loses a
cancellation that comes when an attempt succeeds. The connect timeout is a cancellation: if it were
lost, the handshake that follows would have no time limit.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from audiofork.addresses import IPAddress, address_of, is_public
from audiofork.errors import SinkRefused
from audiofork.relay.lookup import lookups

# How long one attempt runs alone before the next address is tried as well (RFC 8305, 8).
ATTEMPT_DELAY_S = 0.25
# Errors of this machine or a router: there is no route. Any other error says more.
_NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
)

_Target = tuple[int, Any]  # an address family, and an address as its sockets expect it


async def open_socket(host: str, port: int, *, allow_private: bool) -> socket.socket:
    """Connect to a host: to the first of its addresses that accepts a connection.

    Args:
        host: A name or an IP address, without brackets.
        port: The TCP port.
        allow_private: Whether the host may have a private address.

    Returns:
        A connected, non-blocking socket, which the caller closes.

    Raises:
        SinkRefused: The host has no public address; the text names a private one, and the rule.
        SinkUnreachable: Too many other names are being looked up.
        OSError: The look-up failed, or no allowed address accepted a connection. Then it is the
            last error; one that only says that there is no route is used if there is no other.
        UnicodeError: The host is not a valid name.
    """
    infos = await lookups().find(host)
    allowed = [
        (family, _at_port(there, port))
        for family, *_, there in infos
        if allow_private or is_public(_address(there))
    ]
    if not allowed:
        raise SinkRefused(
            f"{host} resolves to the private address {_address(infos[0][4])}, "
            "which [security] allow_private forbids"
        )
    return await _Race(_interleaved(allowed)).run()


def _address(there: tuple[object, ...]) -> IPAddress:
    return address_of(str(there[0]))


def _at_port(there: tuple[Any, ...], port: int) -> tuple[Any, ...]:
    return (there[0], port, *there[2:])


def _interleaved(targets: Iterable[_Target]) -> list[_Target]:
    """Return the targets with the families alternating, beginning with the first target's."""
    families: dict[int, list[_Target]] = {}
    for target in targets:
        families.setdefault(target[0], []).append(target)
    rows = zip_longest(*families.values())
    return [target for row in rows for target in row if target is not None]


class _Race:
    """Attempts to connect; each begins ATTEMPT_DELAY_S after the one before, or when one fails.

    It has no tasks. So when `run()` ends, also by an exception, it closes all other sockets in the
    same turn of the event loop.

    Args:
        targets: Where to connect to; at least one.
    """

    def __init__(self, targets: Iterable[_Target]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = iter(targets)
        self._running: set[socket.socket] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._failures: list[OSError] = []
        self._won: asyncio.Future[socket.socket] = self._loop.create_future()

    async def run(self) -> socket.socket:
        """Return the first connection.

        Raises:
            OSError: All attempts failed.
        """
        winner = None
        try:
            self._begin_next()
            winner = await self._won
            return winner
        finally:
            self._end(winner)

    def _begin_next(self) -> None:
        """Begin one attempt; if it fails at once, begin the next."""
        if self._timer is not None:
            self._timer.cancel()
        if self._won.done():  # `run()` will end in this turn of the event loop
            return
        for target in self._waiting:
            if self._begin(*target):
                self._timer = self._loop.call_later(ATTEMPT_DELAY_S, self._begin_next)
                return
        if not self._running:
            self._won.set_exception(_most_telling(self._failures))

    def _begin(self, family: int, there: Any) -> bool:
        """Begin an attempt; return whether it is under way, or connected already."""
        try:
            attempt = socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:  # the kernel lacks the family, or no descriptor is left
            self._failures.append(exc)
            return False
        self._running.add(attempt)
        try:
            attempt.setblocking(False)
            attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            attempt.connect(there)
        except BlockingIOError:
            self._loop.add_writer(attempt.fileno(), self._on_ready, attempt)
        except OSError as exc:
            self._fail(attempt, exc)
            return False
        else:
            self._won.set_result(attempt)
        return True

    def _on_ready(self, attempt: socket.socket) -> None:
        self._loop.remove_writer(attempt.fileno())
        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(attempt, OSError(code, os.strerror(code)))
            self._begin_next()
        elif not self._won.done():  # two attempts may succeed in one turn
            self._won.set_result(attempt)

    def _fail(self, attempt: socket.socket, exc: OSError) -> None:
        self._failures.append(exc)
        self._running.remove(attempt)
        attempt.close()

    def _end(self, winner: socket.socket | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for attempt in self._running:
            if attempt is not winner:
                # Before close(): uvloop aborts the process if it still watches a closed socket.
                self._loop.remove_writer(attempt.fileno())
                attempt.close()


def _most_telling(failures: list[OSError]) -> OSError:
    telling = [exc for exc in failures if exc.errno not in _NO_ROUTE]
    return (telling or failures)[-1]
