"""Posts forms to a web server; imported only where that is configured: aiohttp takes 10 MB."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp

from audiofork.backoff import is_passing
from audiofork.errors import PostFailed
from audiofork.text import reason_of

TIMEOUT_S = 5.0


class FormPosts:
    """Posts forms, several at once; has to be made within the event loop.

    Proxies of the environment are not used, and redirects are not followed.

    Args:
        tls: How https servers are verified.
        most: How many connections there may be with one server.
    """

    def __init__(self, tls: ssl.SSLContext, most: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0, limit_per_host=most),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def post(self, url: str, form: Mapping[str, str]) -> None:
        """Post a form; return when the server has taken it.

        Raises:
            PostFailed: It has not.
        """
        try:
            async with self._session.post(url, data=form, allow_redirects=False) as response:
                status = response.status
        except TimeoutError:
            raise PostFailed(f"no answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Without the cause: it has the URL, whose query may be a secret.
            raise PostFailed(_reason(exc)) from None
        if not 200 <= status <= 299:
            raise PostFailed(f"the server answered HTTP {status}", retryable=is_passing(status))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _reason(exc: Exception) -> str:
    """Return why a post failed; for a failed connect, aiohttp itself names only the address."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return reason_of(exc.certificate_error, "[websocket] ca_list_file")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return reason_of(exc.os_error)
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the other side closed the connection without an answer"
    if isinstance(exc, OSError) and exc.errno:
        return reason_of(exc)
    return "the server sent something that is no HTTP"
