"""Runs the relay in the daemon's own process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from audiofork.config import Address, Config
from audiofork.errors import CannotListen
from audiofork.link.messages import Command, HeldFork, SendReport
from audiofork.link.relay import Reports, WorkerState, give
from audiofork.relay.client_tls import configured_tls
from audiofork.relay.worker import Worker


class InlineRelay:
    """Implements `Relay` by one worker, which is called directly.

    Args:
        config: The configuration of the worker.
        report: Called with each report.

    Raises:
        ConfigError: The worker cannot use a file that the configuration names.
    """

    def __init__(self, config: Config, report: SendReport) -> None:
        self._reports = Reports(report)
        self._worker = Worker(config, self._reports.put)

    async def start(self) -> Address:
        try:
            return await self._worker.start()
        except OSError as exc:
            raise CannotListen("[audiosocket] listen", self._worker.address, exc) from exc

    def send(self, command: Command) -> None:
        give(command, self._worker.handle, self._reports.put)

    def configure(self, config: Config) -> None:
        self._worker.configure(config)

    @property
    def addresses(self) -> Sequence[Address]:
        return self._worker.addresses

    def address_of(self, fork_id: str) -> Address:
        return self._worker.address_of(fork_id)

    def host_of(self, fork_id: str) -> str:  # noqa: ARG002 (of Relay)
        return ""

    async def until_expected(self, fork_id: str) -> bool:  # noqa: ARG002 (of Relay)
        """Nothing to wait for: commands are executed at once."""
        return True

    @property
    def outlives_daemon(self) -> bool:
        return False

    @property
    def held(self) -> Mapping[str, HeldFork]:
        return {}

    @property
    def workers(self) -> Sequence[WorkerState]:
        worker = self._worker
        return [WorkerState(worker.address, worker.is_listening, len(worker.sessions))]

    async def close(self) -> None:
        await self._worker.close()
        await self._reports.close()


def check_files(config: Config) -> None:
    """Read the files that a worker will read, without a worker.

    Raises:
        ConfigError: One of them cannot be used.
    """
    configured_tls(config.websocket)
