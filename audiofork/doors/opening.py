"""Opens the doors that the configuration asks for, and closes them; user events have their own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from audiofork.config import Config
from audiofork.doors.ami_front import Ask, Front
from audiofork.doors.check_process import CheckProcess
from audiofork.doors.control_answers import ControlAnswers, GiveAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.history_answers import HistoryAnswers
from audiofork.errors import CannotListen, ConfigError
from audiofork.forks.history import History
from audiofork.forks.registry import Forks
from audiofork.text import why

if TYPE_CHECKING:
    from audiofork.doors.detail_answers import DetailAnswers
    from audiofork.doors.event_stream import EventStream
    from audiofork.doors.http.door import HttpDoor
    from audiofork.doors.http.parts import Parts

log = logging.getLogger(__name__)


class SharedDoors(Protocol):
    """Doors that are open whether this daemon runs or not: those of a controller of a cluster."""

    async def serve(self, answers: GiveAnswers) -> None:
        """Answer requests by these from now on."""

    async def stop_serving(self) -> None:
        """Stop that; may be called again."""

    def share(self, stream: EventStream) -> None:
        """Tell other controllers what happens to forks from now on."""

    def serve_front(self, ask: Ask) -> None:
        """Execute by this from now on what clients of the AMI front ask for."""

    def serve_http(self, parts: Parts) -> None:
        """Answer by these from now on, too, what the HTTP interface is asked."""

    def drain(self, name: str, is_on: bool) -> bool:  # noqa: FBT001 (of `ControlAnswers`)
        """Have a relay host drained, or not any more; return whether it is there."""


async def open_socket(path: Path, answers: GiveAnswers) -> ControlSocket | None:
    """Open the control socket; None: it cannot be, and the log says why."""
    control = ControlSocket(path, answers)
    try:
        await control.start()
    except (ConfigError, OSError) as exc:  # forks matter more than these commands
        log.warning("the commands start, stop, mute and list will not work: %s", why(exc))
        return None
    return control


async def open_front(config: Config, ask: Ask) -> Front | None:
    """Open the AMI front; None: no address is configured for it.

    Raises:
        CannotListen: The address cannot be used.
        ConfigError: A certificate cannot be used.
    """
    listen = config.front.listen
    if listen is None:
        return None
    front = Front(config.front, config.asterisk, ask)
    try:
        log.info("AMI front on %s", await front.start())
    except OSError as exc:
        raise CannotListen("[front] listen", listen, exc) from exc
    return front


class Doors:
    """The AMI front, the control socket and the HTTP interface; owned by the daemon.

    Args:
        path: The file of the configuration.
        config: The configuration.
        run_id: Identifies this run of the daemon.
        shared: In a cluster, those that the controller has in place of the control socket.

    Attributes:
        check: Runs checks for their clients.
    """

    def __init__(
        self, path: Path, config: Config, run_id: str, shared: SharedDoors | None = None
    ) -> None:
        self._config = config
        self._run_id = run_id
        self.check = CheckProcess(path)
        self._front: Front | None = None
        self._socket: ControlSocket | None = None
        self._http: HttpDoor | None = None
        self._shared = shared

    async def open(self, forks: Forks, history: History) -> None:
        """Open the front and the control socket, if they are configured.

        Raises:
            CannotListen: The address of the front cannot be used.
            ConfigError: A certificate of the front cannot be used.
        """
        config = self._config
        if self._shared is not None:
            self._shared.serve_front(forks.ask)
        else:
            self._front = await open_front(config, forks.ask)
        if config.control.socket and self._shared is None:
            answers = self._answers_of(forks, history)
            self._socket = await open_socket(Path(config.control.socket), answers)

    async def open_shared(self, forks: Forks, history: History, details: DetailAnswers) -> None:
        """Answer requests at the doors that the controller has, if there is one."""
        if self._shared is not None:
            await self._shared.serve(self._answers_of(forks, history, details))

    def _answers_of(
        self, forks: Forks, history: History, details: DetailAnswers | None = None
    ) -> ControlAnswers:
        return ControlAnswers(
            forks.ask,
            forks.views,
            lambda: forks.legs_left,
            follow=forks.follow,
            check=self.check.run,
            run_id=self._run_id,
            history=HistoryAnswers(history),
            details=details,
            drain=self._shared.drain if self._shared is not None else None,
        )

    def share(self, stream: EventStream) -> None:
        """Tell other controllers, if there are any, what happens to forks."""
        if self._shared is not None:
            self._shared.share(stream)

    async def open_http(self, parts: Parts) -> None:
        """Open the HTTP interface; that of a controller is open already, and asks these, too.

        Args:
            parts: What it asks.

        Raises:
            CannotListen: Its address cannot be used.
            ConfigError: A file that [http] names cannot be used.
        """
        if self._shared is not None:
            self._shared.serve_http(parts)
            return
        from audiofork.doors.http.door import HttpDoor  # its imports take 14 MB of memory

        self._http = HttpDoor(self._config.http, parts)
        await self._http.start()

    def reading(self, new: Config) -> Callable[[], None]:
        """Read the tokens of a new configuration; return what makes them count.

        Those of a controller are read by itself, once for all of its daemons.

        Raises:
            ConfigError: Their file cannot be used.
        """
        if self._http is None:
            return lambda: None
        return self._http.reading_tokens(new.http)

    async def close(self) -> None:
        """Close all doors."""
        if self._shared is not None:
            await self._shared.stop_serving()
        for door in (self._front, self._socket, self._http):
            if door is not None:
                await door.close()
