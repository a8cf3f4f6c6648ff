"""NATS' client, hardened: against servers without TLS, refusals of servers, and messages that harm.

What is overridden is private to nats-py, which offers no other way; `tests/cluster/test_broker.py`
shows with real servers that it still has its effect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client

# What asyncio says at the end of each TLS connection of this client, which cannot be helped.
_NOISE = "returning true from eof_received() has no effect when using ssl"
logging.getLogger("asyncio").addFilter(lambda record: record.msg != _NOISE)


class NoTls(nats.errors.Error):
    """Raised where a server offers no TLS although it is to be used."""


class NatsClient(Client):
    """A client that goes on.

    Args:
        needs_tls: Whether it never speaks in the clear. By itself it takes tls:// for a wish, which
            whoever stands between may deny.
        on_damaged: Called with what is wrong with a message that cannot be read at all.

    Attributes:
        is_guarded: Whether the check of `needs_tls` was made, as it is at each connection.
    """

    def __init__(self, *, needs_tls: bool, on_damaged: Callable[[Exception], None]) -> None:
        super().__init__()
        self._needs_tls = needs_tls
        self._on_damaged = on_damaged
        self.is_guarded = False

    def _connect_command(self) -> bytes:
        """Return the login, the first that is sent to a server, if TLS protects it."""
        self.is_guarded = True
        if self._needs_tls and not self._server_info.get("tls_required"):
            raise NoTls("it does not ask for TLS")
        return super()._connect_command()

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

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Pass a message on. One whose headers cannot be read would end the client's reading."""
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as exc:  # noqa: BLE001 (told by the callback)
            self._on_damaged(exc)
