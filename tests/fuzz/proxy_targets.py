"""What reads the answers of proxies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

from audiofork.config import Proxy
from audiofork.errors import SinkError
from audiofork.relay import proxy

from .fuzzing import Check, Target, split

_HTTP = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"
_SOCKS5 = b"\5\0" + b"\5\0\0\1\x7f\0\0\1\0\1"
_WITH_LOGIN = b"\5\2" + b"\1\0" + b"\5\0\0\3\4host\0\1"


class _Socket:
    """Stands for the event loop, and for a connection that brings these chunks, then its end."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter([chunk for chunk in chunks if chunk])

    async def sock_sendall(self, _connected: object, data: bytes) -> None:
        assert data

    async def sock_recv(self, _connected: object, _most: int) -> bytes:
        return next(self._chunks, b"")


@contextmanager
def _opened() -> Iterator[Check]:
    yield _check


def _check(data: bytes, rng: Random) -> str:
    """Whatever a proxy answers, there is a tunnel, or an error in words."""
    end = _Socket(split(data, rng))
    login = "user:password" if data[1:2] == b"\2" else ""
    wanted = Proxy("socks5" if data[:1] == b"\5" else "http", "127.0.0.1", 1, login)
    with patch.object(proxy, "asyncio", SimpleNamespace(get_running_loop=lambda: end)):
        opening = proxy.open_tunnel(wanted, cast(socket.socket, end), "server.example", 443, None)
        try:
            opening.send(None)
        except StopIteration:
            return "tunnel"
        except Exception as exc:  # noqa: BLE001 (those that it does not document are raised anew)
            error = proxy.failure(exc, "ws://server.example")
    assert isinstance(error, SinkError)
    assert str(error).startswith("ws://server.example: ")
    assert "password" not in str(error)
    return "refused"


TARGETS = (
    Target(
        "proxy",
        corpus=(_HTTP, b"HTTP/1.0 200 \r\n\r\n", _SOCKS5, _WITH_LOGIN),
        tokens=(
            *(b"HTTP/1.1 ", b"HTTP/1.0 407 No\r\n", b"200", b"\r\n", b"\r\n\r\n", b"\n", b": "),
            *(b"Retry-After: 9\r\n", b"Content-Length: 5\r\n", b"x" * 9000, b"a: b\r\n" * 200),
            *(b"\5\0", b"\5\2", b"\5\xff", b"\1\0", b"\1\1", b"\5\1\0\1", b"\5\0\0\4" + bytes(18)),
            *(b"\5\0\0\3\xff", b"\5\0\0\3\0\0\0", b"\4\x5a", b"220 mail ESMTP\r\n", b"\x16\3\1"),
        ),
        share=20,
        opened=_opened,
    ),
)
