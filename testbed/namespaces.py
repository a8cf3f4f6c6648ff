"""Makes hosts on one machine: network namespaces, and a router between them that drops packets.

Each host has one address, and no way to anything but the other hosts. Where a link is cut, the
router drops its packets and tells neither end, as a network does that has failed.

Needs root. All is gone with the process that made it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_NEW_NET = 0x40000000  # CLONE_NEWNET of sched.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_TOOLS = ("ip", "nsenter")
_SILENTLY = "priority 1 blackhole"


class NamespacesUnavailable(Exception):
    """There can be no network namespaces here; the text says why."""


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        name: For people.
        address: Its IPv4 address.
        namespace: A descriptor of its network namespace.
    """

    name: str
    address: str
    namespace: int

    @property
    def within(self) -> tuple[str, ...]:
        """What a command line begins with, so that the program runs on this host."""
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self.namespace}", "--")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread be on this host, and the threads and processes that it starts."""
        before = _own_namespace()
        _enter(self.namespace)
        try:
            yield
        finally:
            _enter(before)
            os.close(before)

    def ip(self, *commands: str) -> None:
        """Run commands of `ip` on this host."""
        done = subprocess.run(
            [*self.within, "ip", "-batch", "-"],
            input="\n".join(commands),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise NamespacesUnavailable(f"{self.name}: {done.stderr.strip()}")


class Network:
    """Some hosts, and the router between them.

    Raises:
        NamespacesUnavailable: This process may not make any, or a tool is missing.
    """

    def __init__(self) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise NamespacesUnavailable(f"no {' and no '.join(missing)} (iproute2, util-linux)")
        self._hosts: list[Host] = []
        self._cuts: list[str] = []
        self._router = Host("router", "", _new_namespace())
        with self._router.entered():
            try:
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            except OSError as exc:
                raise NamespacesUnavailable(f"the router may not forward: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for host in (self._router, *self._hosts):
            os.close(host.namespace)

    def host(self, name: str) -> Host:
        """Return a new host."""
        number = len(self._hosts) + 1
        network = f"10.181.{number}"
        host = Host(name, f"{network}.2", _new_namespace())
        self._hosts.append(host)
        link, there = f"host{number}", f"/proc/{os.getpid()}/fd/{host.namespace}"
        self._router.ip(
            f"link add {link} type veth peer name eth0 netns {there}",
            f"address add {network}.1/24 dev {link}",
            f"link set {link} up",
        )
        host.ip(
            "link set lo up",
            f"address add {host.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {network}.1",
        )
        return host

    def cut(self, host: Host, *others: Host) -> None:
        """Drop all packets between a host and some others; without others, all of the host's."""
        if others:
            self._drop(*(cut for other in others for cut in _between(host, other)))
        else:
            self._drop(f"from {host.address}", f"to {host.address}")

    def _drop(self, *cuts: str) -> None:
        self._cuts += cuts
        self._router.ip(*(f"rule add {cut} {_SILENTLY}" for cut in cuts))

    def part(self, *sides: Host) -> None:
        """Part some hosts from all others: these reach each other, and so do the others."""
        others = [host for host in self._hosts if host not in sides]
        for host in sides:
            self.cut(host, *others)

    def join(self, host: Host, other: Host) -> None:
        """Heal the link between two hosts that was cut."""
        self._heal(_between(host, other))

    def heal(self) -> None:
        """Drop no packets any more."""
        if self._cuts:
            self._heal(list(self._cuts))

    def _heal(self, cuts: Sequence[str]) -> None:
        self._router.ip(*(f"rule del {cut} {_SILENTLY}" for cut in cuts))
        for cut in cuts:
            self._cuts.remove(cut)


def _between(one: Host, other: Host) -> list[str]:
    return [
        f"from {one.address} to {other.address}",
        f"from {other.address} to {one.address}",
    ]


def _new_namespace() -> int:
    def make() -> int:
        _call("unshare", _NEW_NET)
        return _own_namespace()

    with ThreadPoolExecutor(1) as aside:  # only its thread goes there
        return aside.submit(make).result()


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    _call("setns", namespace, _NEW_NET)


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments):
        raise NamespacesUnavailable(f"{name}: {os.strerror(ctypes.get_errno())}")
