"""This process as the system sees it: systemd, and the limit on open files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket

log = logging.getLogger(__name__)


def lift_file_limit() -> None:
    """Lift the limit on open files as far as may be: each fork takes two."""
    with contextlib.suppress(ValueError, OSError):  # a hardened service may not even ask
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify(state: str) -> None:
    """Tell systemd, if it started us; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
            notify_socket.sendto(state.encode(), address)
    except OSError as exc:
        log.warning("systemd cannot be told %s: %s", state, exc)


async def feed_watchdog() -> None:
    """Tell systemd twice in each watchdog period that the loop still turns."""
    period_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    while period_us:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_us / 2_000_000)
