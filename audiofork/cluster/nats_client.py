"""NATS' client, hardened: against servers without TLS, refusals of servers, and messages that harm.

What is overridden is private to nats-py, which offers no other way; `tests/cluster/test_broker.py`
shows with real servers that it still has its effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

# What asyncio says at the end of each TLS connection of this client, which cannot be helped.
_NOISE = "returning true from eof_received() has no effect when using ssl"
logging.getLogger("asyncio").addFilter(lambda record: record.msg != _NOISE)


CLOSE_TIMEOUT_S = 0.2


class NoTls(nats.errors.Error):
    """Raised where a server offers no TLS although it is to be used."""


class _Transport(TcpTransport):
    """A connection that is over when we leave it.

    TLS would first wait for the other side, for 30 s where that is silent, and for ever where the
    handshake has failed; until then the library would not go on to the next server.
    """

    def __bool__(self) -> bool:
        return True  # else the library takes its own

    def writelines(self, payload: list[bytes]) -> None:
        """Write as asyncio does: what is written after the end is dropped; uvloop would raise."""
        if self._io_writer is not None and not self._io_writer.is_closing():
            super().writelines(payload)  # type: ignore[no-untyped-call]

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        except TimeoutError:
            for writer in (self._io_writer, self._bare_io_writer):
                if writer is not None:
                    writer.transport.abort()


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """Let a task that is cancelled while it waits in here end, even if it just gets its answer.

    Up to Python 3.11 `asyncio.wait_for`, which the library uses, would return the answer: a loop
    that asks again and again would go on, and whoever cancelled it would wait for it for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


class NatsClient(Client):
    """A client that goes on, and goes over TLS where the URL says so.

    Args:
        on_damaged: Called with what is wrong with a message that cannot be read at all.

    Attributes:
        is_guarded: Whether the check of TLS was made, as it is at each connection.
    """

    def __init__(self, on_damaged: Callable[[Exception], None] = lambda _: None) -> None:
        super().__init__()
        self._transport = _Transport()  # type: ignore[no-untyped-call]
        self._on_damaged = on_damaged
        self.is_guarded = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 (of the library)
        # By itself it would go on in the clear, and whoever stands between could have it so.
        server = self._current_server
        assert server is not None, "this is what it has said first"
        self.is_guarded = True
        if initial_connection and server.uri.scheme == "tls" and not info.get("tls_required"):
            raise NoTls("it does not demand TLS")
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """Connect again after a refusal; by itself the client would be closed for good.

        A user may be removed and come back, or log in with a key that is known only then.
        """
        if "permissions violation" in err_msg or "stale connection" in err_msg:
            await super()._process_err(err_msg)
            return
        exc = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(exc)
        await self._process_op_err(exc)

    async def request(self, *args: Any, **kwargs: Any) -> Msg:
        """See the library."""
        with _cancellable():
            return await super().request(*args, **kwargs)

    async def flush(self, *args: Any, **kwargs: Any) -> None:
        """See the library."""
        with _cancellable():
            await super().flush(*args, **kwargs)

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002 (of the library)
        """See the library, which would wait for a lost connection to take what is left."""
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    async def move(self) -> None:
        """Go on at the next server."""
        await self._process_op_err(nats.errors.Error("nats: moved to the next server"))

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Pass a message on. One whose headers cannot be read would end the client's reading."""
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as exc:  # noqa: BLE001 (told by the callback)
            self._on_damaged(exc)
