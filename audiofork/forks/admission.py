"""Decides whether a start is granted, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from audiofork.config import SecurityConfig
from audiofork.errors import RequestRefused
from audiofork.files import outside_of, path_below
from audiofork.forks.fork import Fork, effective_url
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.post_process.commands import is_named
from audiofork.forks.requests import StartFork
from audiofork.forks.urls import check_url
from audiofork.link.messages import Tls
from audiofork.system import FILES_PER_FORK, can_open, file_limit, warn_of_low_file_limit

LONGEST_WAIT_S = 5.0
# For what must go on when forks have all the rest: look-ups, clients of the doors, post-process
# commands, and the reconnects of forks whose server has just gone.
SPARE_FILES = 32
# How many files a fork may yet have to open, by its state.
_FILES_TO_OPEN = {
    ForkState.REQUESTED: FILES_PER_FORK,
    ForkState.ATTACHING: FILES_PER_FORK,
    ForkState.RECONNECTING: FILES_PER_FORK - 1,
}


class Admission:
    """The rules of `[security]`, and the queue of starts that came too fast.

    Owned by the registry of forks, which asks for each start, in this order: `check`; `book`, for
    when it is due; `check_channel`, when the channel is known; `wait`, until it is due.

    Attributes:
        security: The rules; `configure` changes them.
        refusing: Why every start is refused; empty: not every one is.
    """

    def __init__(self, security: SecurityConfig) -> None:
        self._ahead = 0.0  # starts that were booked and are not worked off, at `_counted`
        self._counted = 0.0
        self.refusing = ""
        self._refuses = asyncio.Event()
        self.configure(security)

    def configure(self, security: SecurityConfig) -> None:
        """Take the rules for starts from now on."""
        self.security = security
        warn_of_low_file_limit(security.max_forks)

    def refuse_all(self, why: str) -> None:
        """Refuse every start from now on, also those that wait."""
        self.refusing = why
        self._refuses.set()

    def check(self, request: StartFork, forks: Collection[Fork]) -> None:
        """Refuse what is plain without asking anybody.

        Args:
            request: The start.
            forks: Those that there are.

        Raises:
            RequestRefused: The text names the option that forbids it.
        """
        security = self.security
        self._check_open()
        if len(forks) >= security.max_forks:
            raise RequestRefused(f"{security.max_forks} forks run already (max_forks)")
        url = effective_url(request)
        check_url(url, security.allow_urls, allow_private=security.allow_private)
        if request.options.tls is not None:
            _check_tls(request.options.tls, security)
        is_text = bool(request.post_process) and not is_named(request.post_process)
        if is_text and not security.allow_post_process:
            raise RequestRefused(
                "PostProcess: shell commands are not allowed (allow_post_process); @NAME runs the "
                "command of [post_process:NAME]"
            )
        _check_files(forks)

    def _check_open(self) -> None:
        if self.refusing:
            raise RequestRefused(self.refusing)

    def book(self) -> float:
        """Return when the next start is due, in the loop's time.

        As many as may be in a second are due at once; those after them come evenly spaced, in
        the order of their requests.

        Raises:
            RequestRefused: That would be more than LONGEST_WAIT_S from now.
        """
        rate = self.security.max_starts
        now = asyncio.get_running_loop().time()
        ahead = max(0.0, self._ahead - (now - self._counted) * rate) + 1
        wait_s = max(0.0, ahead - rate) / rate
        if wait_s > LONGEST_WAIT_S:
            raise RequestRefused(f"more than {rate} starts a second (max_starts)")
        self._ahead, self._counted = ahead, now
        return now + wait_s

    def check_channel(self, count: int) -> None:
        """Refuse a start on a channel that has so many forks already.

        Raises:
            RequestRefused: They are as many as may be.
        """
        if count >= self.security.max_forks_per_channel:
            raise RequestRefused(
                f"{count} forks run already on the channel (max_forks_per_channel)"
            )

    async def wait(self, due: float) -> None:
        """Return when a start is due.

        Raises:
            RequestRefused: All are refused by now.
        """
        if due > asyncio.get_running_loop().time():
            try:
                async with asyncio.timeout_at(due):
                    await self._refuses.wait()
            except TimeoutError:
                return
        self._check_open()


def _check_tls(tls: Tls, security: SecurityConfig) -> None:
    if tls.insecure and not security.allow_insecure_tls:
        raise RequestRefused("Options: T(insecure) is not allowed (allow_insecure_tls)")
    folder = security.tls_dir
    for name, path in (("ca", tls.ca_file), ("cert", tls.cert_file), ("key", tls.key_file)):
        try:
            if path:
                path_below(folder, path)
        except ValueError:
            raise RequestRefused(f"Options: T({name}={path}): {outside_of(folder)}") from None


def _check_files(forks: Collection[Fork]) -> None:
    """Refuse a start if the files that it and the others have yet to open are not to be had."""
    to_open = sum(_FILES_TO_OPEN.get(fork.state, 0) for fork in forks)
    if not can_open(SPARE_FILES + to_open + FILES_PER_FORK):
        raise RequestRefused(
            "no file descriptors left for another fork; raise LimitNOFILE, now "
            f"{file_limit() or 'unknown'}"
        )
