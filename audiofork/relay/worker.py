"""The relay as the control plane sees it: takes commands, gives reports."""

from __future__ import annotations

import asyncio
import logging
import ssl

from audiofork.config import Address, Config, WebSocketConfig
from audiofork.errors import ConfigError
from audiofork.model import Command, EndReason, ForkEnded, ForkSpec, Report, SendReport
from audiofork.relay.listener import Listener
from audiofork.relay.session import Session
from audiofork.relay.sink import Sink

log = logging.getLogger(__name__)

# A little more than a sink may take to close.
_CLOSE_TIMEOUT_S = 2.5


class Worker:
    """A listener and its sessions.

    Attributes:
        sessions: The sessions that run, by fork id.
        address: Where the listener listens, once started.
    """

    def __init__(self, config: Config, report: SendReport) -> None:
        self.sessions: dict[str, Session] = {}
        self.address = config.audiosocket.listen
        self._report = report
        self._listener = Listener()
        self.configure(config.websocket)

    def configure(self, websocket: WebSocketConfig) -> None:
        """Take the settings for sinks from now on.

        Raises:
            ConfigError: The authorities' file cannot be used.
        """
        self._tls = client_tls(websocket.ca_list_file)
        self._websocket = websocket

    async def start(self) -> Address:
        """Listen; return the address with the port that was chosen.

        Raises:
            OSError: The address cannot be had.
        """
        self.address = await self._listener.start(self.address)
        return self.address

    def handle(self, command: Command) -> None:
        """Obey the control plane; never waits."""
        if isinstance(command, ForkSpec):
            self._begin(command)
        elif session := self.sessions.get(command.fork_id):
            session.end(command.reason, command.detail)

    def _begin(self, spec: ForkSpec) -> None:
        sink = Sink(spec.url, self._websocket, self._tls)
        session = Session(spec, sink, self._on_report)
        self.sessions[spec.fork_id] = session
        self._listener.issue(spec.fork_id, session)
        session.start()

    def _on_report(self, report: Report) -> None:
        if isinstance(report, ForkEnded):
            self._listener.withdraw(report.fork_id)
            del self.sessions[report.fork_id]
        self._report(report)

    async def close(self) -> None:
        """End what still runs, say goodbye to the servers, stop listening."""
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(EndReason.SHUTDOWN)
        if sessions:
            waits = [asyncio.create_task(session.done.wait()) for session in sessions]
            _, late = await asyncio.wait(waits, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                log.warning("%d forks did not end in time", len(late))
        await self._listener.close()


def client_tls(ca_file: str) -> ssl.SSLContext:
    """Return a context that verifies a server's certificate and name.

    Args:
        ca_file: The authorities to trust, in PEM; empty for the system's.

    Raises:
        ConfigError: The file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"[websocket] ca_list_file {ca_file}: {exc}") from exc
