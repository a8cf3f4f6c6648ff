"""Look-ups of host names; a slow one cannot delay another.

getaddrinfo resolves names as all programs on this machine do: /etc/hosts, nsswitch.conf with all
its sources (mDNS, containers, directories), search domains, a resolv.conf that changes. A DNS
library would use only DNS and /etc/hosts. But getaddrinfo blocks, for 30 s if no DNS server
answers, and event loops give it few threads: in uvloop two such names delay all others. So each
look-up has a thread of its own, which takes 27 kB while it waits.

getaddrinfo does not return the TTL. So an answer is used for 1 s only, and never outlives its TTL
by more than that. Caches of the system, if any, obey the TTL.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from typing import Any

from audiofork.errors import SinkUnreachable
from audiofork.log import CounterLine
from audiofork.text import reason_of
from audiofork.threads import Threads

log = logging.getLogger(__name__)

# How long an answer is reused; also an answer that the name does not exist.
KEPT_S = 1.0
# Look-ups at the same time (27 MB); names that have resolved before do not obey this limit. It is
# the default limit of forks: more names at once are made up by an attacker.
MAX_LOOKUPS = 1000
# Names remembered as resolved before; the oldest is forgotten.
MAX_KNOWN = 1000

Infos = list[Any]  # as socket.getaddrinfo returns them, with port 0


class Lookups:
    """The look-ups of one event loop; forks that want the same name share one look-up.

    A name that has resolved before is looked up even above MAX_LOOKUPS. So a flood of made-up
    names cannot keep a fork from its server.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._threads: Threads[Infos] = Threads(MAX_LOOKUPS)
        self._answers: dict[str, asyncio.Future[Infos]] = {}  # under way, or of the last second
        self._known: dict[str, None] = {}  # names that have resolved, the latest last
        self._refused = CounterLine(log, "names that were not looked up")

    async def find(self, host: str) -> Infos:
        """Return the addresses of a host, at least one; an IP address needs no look-up.

        Raises:
            socket.gaierror: The host has no address, or no DNS server answers.
            SinkUnreachable: Too many other look-ups are running, or no thread can be started.
            UnicodeError: The host is not a valid name.
        """
        try:
            return _ask(host, socket.AI_NUMERICHOST)  # parses only, so it does not block
        except socket.gaierror:
            pass
        answer = self._answers.get(host)
        if answer is None:
            answer = self._begin(host)
        # Shielded: if this fork is cancelled, other forks may still wait for the same answer.
        return await asyncio.shield(answer)

    def is_under_way(self, host: str) -> bool:
        """Return whether a host is being looked up."""
        answer = self._answers.get(host)
        return answer is not None and not answer.done()

    def _begin(self, host: str) -> asyncio.Future[Infos]:
        try:
            if self._threads.is_full and host not in self._known:
                others = f"{self._threads.running} other names have yet to answer"
                raise OSError(errno.EAGAIN, others)
            answer = self._threads.run(functools.partial(_ask, host))
        except OSError as exc:
            self._refused.count(f"{host}: {reason_of(exc)}")
            raise SinkUnreachable(f"{host} was not looked up: {reason_of(exc)}") from exc
        self._answers[host] = answer
        answer.add_done_callback(functools.partial(self._on_answer, host))
        return answer

    def _on_answer(self, host: str, answer: asyncio.Future[Infos]) -> None:
        self.loop.call_later(KEPT_S, self._answers.pop, host)
        if answer.exception() is None:
            self._known.pop(host, None)
            self._known[host] = None
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]


def _ask(host: str, flags: int = 0) -> Infos:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)


_of_loop: Lookups | None = None


def lookups() -> Lookups:
    """Return the look-ups of the running event loop; a process has one loop, tests have more."""
    global _of_loop
    if _of_loop is None or _of_loop.loop is not asyncio.get_running_loop():
        _of_loop = Lookups()
    return _of_loop
