"""Look-ups of host names, none of which can hold up another.

getaddrinfo knows what a user of this machine expects of a name: /etc/hosts, nsswitch.conf with
all its sources (mDNS, containers, directories), search domains, a resolv.conf that changes. A
library that speaks DNS itself would know DNS and /etc/hosts. But getaddrinfo blocks, for half a
minute where no server answers, and event loops give it few threads: in uvloop two such names hold
up everybody. So each look-up has a thread of its own, which takes 27 kB while it waits.

getaddrinfo tells no TTL. An answer serves the connects of one second and is asked for anew then,
so none outlives its TTL by more than that; caches of the system obey it, where there are any.
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
from audiofork.threads import Threads

log = logging.getLogger(__name__)

# How long an answer serves, also that there is none.
KEPT_S = 1.0
# Names that are looked up at once, those aside that have answered before. So many forks may be by
# default; more names, which take 27 MB, come of somebody who makes them up.
MAX_LOOKUPS = 1000
MAX_KNOWN = 1000

Infos = list[Any]  # as socket.getaddrinfo returns them, with port 0


class Lookups:
    """The look-ups of one event loop: at most one of each name at a time, whoever wants it.

    A name that has answered before is looked up at any rate: made-up names, however many, keep
    no fork from its server.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._threads: Threads[Infos] = Threads(MAX_LOOKUPS)
        self._answers: dict[str, asyncio.Future[Infos]] = {}  # under way, or of the last second
        self._known: dict[str, None] = {}  # names that have answered, the latest last
        self._refused = CounterLine(log, "names that were not looked up")

    async def find(self, host: str) -> Infos:
        """Return the addresses of a host, one at least; a number is its own at once.

        Raises:
            socket.gaierror: It has none, or no server answers.
            SinkUnreachable: Too many others are being looked up, or there are no more threads.
            UnicodeError: The host is no name.
        """
        try:
            return _ask(host, socket.AI_NUMERICHOST)  # asks nobody
        except socket.gaierror:
            pass
        answer = self._answers.get(host)
        if answer is None:
            answer = self._begin(host)
        # Others may wait for it, too.
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
            self._refused.count(f"{host}: {exc.strerror}")
            raise SinkUnreachable(f"{host} was not looked up: {exc.strerror}") from exc
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
    """Return the look-ups of the running event loop, of which a process has one."""
    global _of_loop
    if _of_loop is None or _of_loop.loop is not asyncio.get_running_loop():
        _of_loop = Lookups()
    return _of_loop
