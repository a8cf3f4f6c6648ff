"""Connections, to no other address than the one that was checked.

A name may point to one address when it is checked and to another when it is connected to (DNS
rebinding), so it is resolved once, and the connection goes to what came of that.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from audiofork.addresses import IPAddress, address_of, is_public
from audiofork.errors import SinkRefused


async def open_socket(host: str, port: int, *, allow_private: bool) -> socket.socket:
    """Connect to a host, at the first of its addresses that takes a connection.

    Args:
        host: A name or a number, without brackets.
        port: The TCP port.
        allow_private: Whether its address may be other than a public one.

    Returns:
        A connected, non-blocking socket, which the caller closes.

    Raises:
        SinkRefused: It has no public address; the text names one that it has, and the rule.
        OSError: The look-up failed, or no address that may be could be connected to.
        UnicodeError: The host is no name.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    allowed = [
        (family, there)
        for family, *_, there in infos
        if allow_private or is_public(_address(there))
    ]
    if not allowed:
        raise SinkRefused(
            f"{host} resolves to the private address {_address(infos[0][4])}, "
            "which [security] allow_private forbids"
        )
    return await _connect_first(allowed)


def _address(there: tuple[object, ...]) -> IPAddress:
    return address_of(str(there[0]))


async def _connect_first(targets: Sequence[tuple[int, Any]]) -> socket.socket:
    """Return a connection to the first address that takes one, or raise what the last one said."""
    for family, there in targets[:-1]:
        try:
            return await _connect(family, there)
        except OSError:
            continue
    return await _connect(*targets[-1])


async def _connect(family: int, there: Any) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connecting, there)
    except BaseException:
        connecting.close()
        raise
    return connecting
