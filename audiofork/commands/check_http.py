"""Tries the HTTP door: does it listen, has it tokens, and do these pass in the clear?"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import ssl

from audiofork.addresses import is_loopback
from audiofork.commands import remedies
from audiofork.commands.findings import Findings
from audiofork.config import HttpConfig
from audiofork.config_values import Address
from audiofork.errors import ConfigError
from audiofork.text import reason_of

TIMEOUT_S = 5.0
# What an address that stands for all of the machine is asked at.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def check_http(config: HttpConfig, findings: Findings, *, daemon_runs: bool) -> None:
    """Check [http], if it is configured.

    Args:
        config: The section.
        findings: Gets what is found.
        daemon_runs: Whether the daemon runs, and so should listen.
    """
    if config.listen is None:
        return
    if "$" in os.path.expandvars(config.tokens_file):
        findings.skip("HTTP: systemd hands [http] tokens_file to the service alone")
    elif _check_tokens(config, findings):
        await _check_listens(config, config.listen, findings, daemon_runs)
    if not config.cert_file and not is_loopback(config.listen.host):
        findings.warn(
            f"HTTP: tokens and audio pass in the clear at {config.listen}", remedies.HTTP_TLS
        )


def _check_tokens(config: HttpConfig, findings: Findings) -> bool:
    # aiohttp comes with what is beside it: only where the door is configured.
    from audiofork.doors.http.tokens import read_tokens

    try:
        count = len(read_tokens(config.tokens_file))
    except ConfigError as exc:
        findings.fail(f"HTTP: {exc}", remedies.HTTP_TOKENS)
        return False
    if not count:
        findings.fail(
            f"HTTP: [http] tokens_file: no token in {config.tokens_file}, so nobody may use it",
            remedies.HTTP_TOKENS,
        )
    return bool(count)


async def _check_listens(
    config: HttpConfig, listen: Address, findings: Findings, daemon_runs: bool
) -> None:
    """See whether the daemon answers there; if it does not run, whether it could listen there."""
    try:
        is_it = await asyncio.to_thread(_is_healthy, listen, is_tls=bool(config.cert_file))
        fault = "" if is_it else f"what answers at {listen} is not the daemon"
    except TimeoutError:
        fault = f"no answer at {listen} within {TIMEOUT_S:g} s"
    except OSError as exc:
        fault = f"nobody answers at {listen}: {reason_of(exc)}"
        if not daemon_runs:
            await _check_free(listen, findings)
            return
    if fault:
        findings.fail(f"HTTP: {fault}", remedies.HTTP_LISTEN)
    else:
        scheme = "https" if config.cert_file else "http"
        findings.ok(f"HTTP: the daemon answers at {scheme}://{listen}")


def _is_healthy(listen: Address, *, is_tls: bool) -> bool:
    """Ask for /healthz, which takes no token; the certificate is that of users, not of ours."""
    host = _ANY.get(listen.host, listen.host)
    if is_tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, listen.port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, listen.port, timeout=TIMEOUT_S)
    with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException):
        connection.request("GET", "/healthz", headers={"Host": f"localhost:{listen.port}"})
        response = connection.getresponse()
        return response.status == 200 and response.read(100).strip() == b"ok"
    return False


async def _check_free(listen: Address, findings: Findings) -> None:
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(asyncio.Protocol, listen.host, listen.port)
    except OSError as exc:
        findings.fail(f"HTTP: cannot listen on {listen}: {reason_of(exc)}", remedies.HTTP_LISTEN)
        return
    server.close()
    await server.wait_closed()
    findings.ok(f"HTTP: {listen} is free for it")
