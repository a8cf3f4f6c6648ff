"""A relay host as a whole, where it needs nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from audiofork.cluster.registration import key_subject
from audiofork.config import Address, ClusterConfig, Config
from audiofork.link.messages import Command, Direction, ForkSpec, SendReport
from audiofork.link.sessions import Hello, Stamp, new_session, pack
from audiofork.relay.host import CALLS_MOVE_S, HostedFork, RelayHost

ADDRESS = Address("127.0.0.1", 4000)
SPEC = ForkSpec("4b2d1a3e-0b7a-4a5e-9c6e-0d2f7a1b3c4d", "PJSIP/1", "ws://h/", Direction.IN)


@dataclass
class Fork:
    spec: ForkSpec


class BusyWorker:
    """Has a fork. Implements `HostedWorker`."""

    addresses = (ADDRESS,)

    def __init__(self, config: Config, report: SendReport) -> None:
        self._forks = {SPEC.fork_id: Fork(SPEC)}

    @property
    def sessions(self) -> Mapping[str, HostedFork]:
        return self._forks

    async def start(self) -> Address:
        return ADDRESS

    def handle(self, command: Command) -> None:
        raise AssertionError(command)

    def configure(self, config: Config) -> None:
        raise AssertionError(config)

    async def close(self) -> None:
        pass


class FailingWorker(BusyWorker):
    """Cannot tell its forks."""

    @property
    def sessions(self) -> Mapping[str, HostedFork]:
        raise LookupError("a fault of ours")


def config_of(**more: Any) -> Config:
    return Config(cluster=ClusterConfig(servers=("nats://127.0.0.1:9",), name="relay1", **more))


async def test_host_that_cannot_beat_ends_with_the_fault() -> None:
    config = config_of()
    host = RelayHost(config, lambda: config, make_worker=FailingWorker)
    with pytest.raises(LookupError, match="a fault of ours"):
        async with asyncio.timeout(30):
            await host.run()


async def test_host_that_is_to_end_stays_drained_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config_of()
    host = RelayHost(config, lambda: config, make_worker=BusyWorker)
    host._drain()  # as by SIGTERM
    host._set_draining(False)
    assert host._state(0.0).is_draining
    assert caplog.messages == ["it stays drained: it ends as soon as its forks have moved"]


async def test_host_registers_again_when_the_first_controller_of_an_asterisk_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of()
    host = RelayHost(config, lambda: config, make_worker=BusyWorker)
    told: list[str] = []
    monkeypatch.setattr(host._presence, "_publish", lambda subject, _payload: told.append(subject))
    hello = pack(Stamp(1, new_session(host._presence.run_id), 0), Hello("1"))
    for _ in range(2):
        host._presence.tell(host._state(0.0))
    for _ in range(2):
        host._on_payload("audiofork.relay.relay1.pbx", hello)
        host._presence.tell(host._state(0.0))
    assert told.count(key_subject("relay1")) == 2


@pytest.mark.parametrize(("drain_timeout", "stay_s"), [(60, 60 - CALLS_MOVE_S), (10, 0), (0, 0)])
async def test_calls_to_servers_are_to_move_when_they_had_time_to_end(
    monkeypatch: pytest.MonkeyPatch, drain_timeout: float, stay_s: float
) -> None:
    config = config_of(drain_timeout=drain_timeout)
    host = RelayHost(config, lambda: config, make_worker=BusyWorker)
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    assert not host._state(0.0).moves_calls
    host._set_draining(True)
    if stay_s:
        now += stay_s - 0.1
        assert not host._state(0.0).moves_calls
        now += 0.2
    assert host._state(0.0).moves_calls
    host._set_draining(False)
    assert not host._state(0.0).moves_calls
