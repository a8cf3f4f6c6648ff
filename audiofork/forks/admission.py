"""Decides whether a start is granted, and when it may begin."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase

from audiofork.config import SecurityConfig, WebSocketConfig
from audiofork.errors import Refusal, RequestRefused
from audiofork.files import outside_of, path_below
from audiofork.forks.fairness import FairQueue
from audiofork.forks.fork import effective_url
from audiofork.forks.grants import Grants, granted
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.post_process.commands import is_named
from audiofork.forks.profiles import Profiles
from audiofork.forks.requests import Origin, StartFork
from audiofork.forks.table import ForkTable
from audiofork.forks.url_templates import check_template
from audiofork.forks.urls import check_url
from audiofork.link.messages import Tls
from audiofork.system import FILES_PER_FORK, file_limit, openable, warn_of_low_file_limit
from audiofork.url_patterns import ANYWHERE, is_allowed

LONGEST_WAIT_S = 5.0
_LATE_S = 0.5  # timers are late by less than this
# File descriptors kept free for look-ups, clients of the doors, post-process commands, and the
# reconnects of forks whose server has just gone.
SPARE_FILES = 32
# One count of the free file descriptors is used for this time, or for this many starts.
FILES_LOOK_S = 1.0
FILES_LOOK_STARTS = 50
# How many files a fork may still have to open, by its state.
_FILES_TO_OPEN = {
    ForkState.REQUESTED: FILES_PER_FORK,
    ForkState.ATTACHING: FILES_PER_FORK,
    ForkState.RECONNECTING: FILES_PER_FORK - 1,
}


class Admission:
    """Applies the rules of `[security]`, and queues starts that come too fast.

    Owned by the registry of forks. For each start it calls `check`, which costs almost nothing;
    then `check_room` when the channel is known; then `wait_turn`. In this order a refused start
    does not count against the rate.

    Attributes:
        security: The rules; `configure` changes them.
        refusing: Why every start is refused; empty if starts are accepted.
        playout_buffer_s: Seconds of a server's audio that may wait to be played, in later forks.
        suspended: Why starts wait, or are refused for now; empty if they are not.
    """

    def __init__(
        self,
        security: SecurityConfig,
        playout_buffer_s: float = WebSocketConfig.playout_buffer,
    ) -> None:
        self.playout_buffer_s = playout_buffer_s
        self.refusing = ""
        self.suspended = ""
        self._wait_s = 0.0
        self._resumed = asyncio.Event()
        self._turns = _Turns()
        self._files = _Files()
        self.configure(security)

    def configure(self, security: SecurityConfig) -> None:
        """Use these rules for starts from now on; the rate also applies to starts that wait."""
        self.security = security
        self._turns.set_rate(security.max_starts)
        warn_of_low_file_limit(security.max_forks)

    def refuse_all(self, why: str) -> None:
        """Refuse every start from now on, also the starts that wait."""
        self.refusing = why
        self._turns.stop()
        self._resumed.set()

    def suspend(self, why: str, wait_s: float) -> None:
        """Let starts wait from now on, and refuse them when they have waited for too long.

        Args:
            why: For people.
            wait_s: How long each may wait, in seconds; 0: it is refused at once.
        """
        self.suspended = why
        self._wait_s = wait_s
        self._resumed.clear()

    def resume(self) -> None:
        """Let starts begin again, also those that wait."""
        self.suspended = ""
        self._resumed.set()

    @property
    def is_closed(self) -> bool:
        """Whether no fork may begin now, not even one whose start was granted before."""
        return bool(self.refusing or self.suspended)

    def check_acts(self) -> None:
        """Return if requests may be carried out now, also a start whose turn had come before.

        Raises:
            RequestRefused: It is suspended: another controller may lead by now.
        """
        if self.suspended:
            raise RequestRefused(self.suspended, Refusal.CLUSTER)

    def check(self, request: StartFork, forks: ForkTable) -> None:
        """Check a start against all rules that need no question to Asterisk.

        Args:
            request: The start.
            forks: All forks.

        Raises:
            RequestRefused: The text names the option that forbids it.
        """
        self._check_open()
        self._check_count(forks)
        self.check_rules(request)
        self._turns.check(request.origin)

    def check_rules(self, request: StartFork) -> None:
        """Check a start against the rules of [security], but not against its limits.

        Raises: as `check`.
        """
        security = self.security
        self.check_url(request)
        if request.options.tls is not None:
            _check_tls(request.options.tls, security)
        is_text = bool(request.post_process) and not is_named(request.post_process)
        if is_text and not security.allow_post_process:
            raise RequestRefused(
                "PostProcess: shell commands are not allowed (allow_post_process); @NAME runs the "
                "command of [post_process:NAME]",
                Refusal.NOT_ALLOWED,
            )

    def check_url(self, request: StartFork) -> None:
        """Check whether audio may go to and come from the URL of a request.

        Its fields may hold whatever they will.

        Raises: as `check`.
        """
        url = check_template(effective_url(request))
        security = self.security
        # The administrator has written down where a profile sends audio.
        allowed = ANYWHERE if request.profile else security.allow_urls
        check_url(url, allowed, allow_private=security.allow_private)
        if request.options.audience is not None:
            what = f"Options: k({request.options.audience})"
            _check_speaker(what, request, url, security.allow_speak)

    def check_led(self, request: StartFork) -> None:
        """Check whether a call may be taken from where it is, to the server of a request.

        Raises:
            RequestRefused: `allow_speak` does not name the server.
        """
        url = check_template(effective_url(request))
        what = "Command: ConnectAudioFork, not of the call's own dialplan"
        _check_speaker(what, request, url, self.security.allow_speak)

    def grants_of(self, request: StartFork, profiles: Profiles) -> Grants:
        """Return what the server of a request may do, by these rules and by its profile."""
        allowed = self.security.allow_commands
        return Grants(
            granted(allowed, profiles.commands_of(request)),
            profiles.places_of(request),
            self.playout_buffer_s,
        )

    def _check_open(self) -> None:
        if self.refusing:
            raise RequestRefused(self.refusing, Refusal.STOPPING)
        if self.suspended and not self._wait_s:
            raise RequestRefused(self.suspended, Refusal.CLUSTER)

    def _check_count(self, forks: ForkTable) -> None:
        if forks.bound >= self.security.max_forks:
            text = f"{self.security.max_forks} forks run already (max_forks)"
            raise RequestRefused(text, Refusal.LIMIT)

    def check_room(self, uniqueid: str, forks: ForkTable) -> None:
        """Check that there is room for another fork on a channel.

        Args:
            uniqueid: The uniqueid of the channel.
            forks: All forks; the new one is not bound yet.

        Raises:
            RequestRefused: The limit of forks is reached, on the channel or in total; or too few
                file descriptors are free.
        """
        count = len(forks.on_channel(uniqueid))
        if count >= self.security.max_forks_per_channel:
            raise RequestRefused(
                f"{count} forks run already on the channel (max_forks_per_channel)",
                Refusal.LIMIT,
            )
        self._check_count(forks)
        self._files.check(forks)

    async def wait_turn(self, origin: Origin) -> None:
        """Wait until a start of an origin may begin.

        Raises:
            RequestRefused: That would take longer than LONGEST_WAIT_S, or every start is refused.
        """
        await self._turns.wait(origin)
        if self.suspended and self._wait_s:
            await self._wait_for_resumption()
        self._check_open()

    async def _wait_for_resumption(self) -> None:
        why = self.suspended
        try:
            async with asyncio.timeout(self._wait_s):
                await self._resumed.wait()
        except TimeoutError:
            text = f"{why}; it has waited for {self._wait_s:g} s"
            raise RequestRefused(text, Refusal.CLUSTER) from None


def _check_speaker(what: str, request: StartFork, url: str, allowed: tuple[str, ...]) -> None:
    """Raise RequestRefused unless the server of a request may be heard in calls.

    Args:
        what: What asks for that; the text begins with it.
        request: The request.
        url: Its URL as it is matched.
        allowed: The servers of `allow_speak`.
    """
    if request.profile:
        name = request.server
        is_right = any(fnmatchcase(name, pattern) for pattern in allowed)
    else:
        name = "the server of this URL"
        is_right = is_allowed(url, allowed)
    if not is_right:
        raise RequestRefused(
            f"{what}: {name} may not be heard in calls, "
            f"[security] allow_speak has {' '.join(allowed) or 'none'}",
            Refusal.NOT_ALLOWED,
        )


def _check_tls(tls: Tls, security: SecurityConfig) -> None:
    if tls.insecure and not security.allow_insecure_tls:
        text = "Options: T(insecure) is not allowed (allow_insecure_tls)"
        raise RequestRefused(text, Refusal.NOT_ALLOWED)
    folder = security.tls_dir
    for name, path in (("ca", tls.ca_file), ("cert", tls.cert_file), ("key", tls.key_file)):
        try:
            if path:
                path_below(folder, path)
        except ValueError:
            text = f"Options: T({name}={path}): {outside_of(folder)}"
            raise RequestRefused(text, Refusal.NOT_ALLOWED) from None


class _Turns:
    """Limits the starts to a rate (token bucket); faster starts wait in a fair queue.

    The rate per second is also the largest burst.
    """

    def __init__(self) -> None:
        self._rate = 1
        self._used = 0.0  # how much of the burst was used at `_counted`; it falls with time
        self._counted = 0.0
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def set_rate(self, rate: int) -> None:
        self._rate = rate
        if self._waiting:
            self._go_on()

    def stop(self) -> None:
        """Let all waiting starts continue; later ones do not wait."""
        self._stopped = True
        self._go_on()

    def check(self, origin: Origin) -> None:
        """Raise RequestRefused if a start would wait too long."""
        if self._wait_s(origin) > LONGEST_WAIT_S:
            raise self._too_fast()

    def _too_fast(self) -> RequestRefused:
        text = f"more than {self._rate} starts a second (max_starts)"
        return RequestRefused(text, Refusal.RATE)

    def _wait_s(self, origin: Origin) -> float:
        """Return how many seconds a start would wait if no other start came after it."""
        ahead = self._waiting.ahead_of(origin) + 1
        return max(0.0, self._use() + ahead - self._rate) / self._rate

    def _use(self) -> float:
        """Return how much of the burst is used now."""
        now = asyncio.get_running_loop().time()
        self._used = max(0.0, self._used - (now - self._counted) * self._rate)
        self._counted = now
        return self._used

    async def wait(self, origin: Origin) -> None:
        if self._stopped:
            return
        if not self._waiting and self._use() + 1 <= self._rate:
            self._used += 1
            return
        self.check(origin)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(origin, turn)
        self._go_on()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S + _LATE_S):
                await turn
        except TimeoutError:  # later starts of other origins overtook it in the fair queue
            raise self._too_fast() from None
        finally:
            self._waiting.remove(origin, turn)

    def _go_on(self) -> None:
        """Let starts begin as the rate allows, and set a timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and (self._stopped or self._use() + 1 <= self._rate):
            turn = self._waiting.take()
            if not turn.done():
                self._used += 1
                turn.set_result(None)
        if self._waiting:
            due_s = (self._used + 1 - self._rate) / self._rate
            self._timer = asyncio.get_running_loop().call_later(due_s, self._go_on)


class _Files:
    """Checks whether enough file descriptors are free for another fork.

    That takes a system call for each file. The files of one start are checked each time. The files
    that all forks still have to open are checked rarely, so that the cost of a start does not grow
    with the number of forks.
    """

    def __init__(self) -> None:
        self._starts_left = 0
        self._looked = float("-inf")
        self._scarce = False

    def check(self, forks: ForkTable) -> None:
        """Raise RequestRefused if too few files are left for this start and the other forks."""
        now = asyncio.get_running_loop().time()
        if now >= self._looked + FILES_LOOK_S or not (self._starts_left or self._scarce):
            self._look(forks)
            self._looked = now
        one = SPARE_FILES + FILES_PER_FORK
        if not self._starts_left or openable(one) < one:
            raise RequestRefused(
                "no file descriptors left for another fork; raise LimitNOFILE, now "
                f"{file_limit() or 'unknown'}",
                Refusal.LIMIT,
            )
        self._starts_left -= 1

    def _look(self, forks: ForkTable) -> None:
        sought = set(forks.sought)
        to_open = sum(_FILES_TO_OPEN.get(fork.state, 0) for fork in forks if fork not in sought)
        wanted = SPARE_FILES + to_open + FILES_LOOK_STARTS * FILES_PER_FORK
        left = openable(wanted) - SPARE_FILES - to_open
        self._starts_left = max(0, left // FILES_PER_FORK)
        self._scarce = self._starts_left < FILES_LOOK_STARTS
