"""Stands for the kernel's end of a connection, so that a test says what was acknowledged."""

from __future__ import annotations

import fcntl
from typing import Any, Self

import pytest

from audiofork.relay.unacked import _INFO, _OUTQ


class Kernel:
    """What TCP_INFO tells of a connection, and nothing queued before it.

    It is a transport's socket, and is put in the place of nothing in our modules: what is compiled
    there finds it as well.

    Attributes:
        acked: Bytes that the peer has acknowledged.
        not_sent: Bytes that wait.
        rtt_s: The round trip, in seconds; 0: the kernel does not tell.
        checks: How often it was asked.
    """

    def __init__(self) -> None:
        self.acked = self.not_sent = 0
        self.rtt_s = 0.0
        self.checks = 0

    @classmethod
    def behind_all(cls, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Return one that stands behind each connection from now on."""
        kernel = cls()
        monkeypatch.setattr(fcntl, "ioctl", lambda *_: bytes(_OUTQ.size))
        return kernel

    def getsockopt(self, *_: int) -> bytes:
        self.checks += 1
        return _INFO.pack(round(self.rtt_s * 1e6), self.acked, self.not_sent)

    def fileno(self) -> int:
        return 0


class Transport:
    """What an outlet and its `Unacked` ask of a transport: a socket, and an empty buffer."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def get_extra_info(self, name: str) -> Any:
        return self.kernel if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return 0
