"""What systemd hears of a controller that leads, stands by, and leads again."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from testbed.asterisk import Asterisk
from tests.relay.peers import until
from tests.system.cluster import Cluster, clustered
from tests.system.test_cluster import leads

pytestmark = pytest.mark.asterisk


class Systemd:
    """Listens as systemd does.

    Attributes:
        heard: What it was told.
    """

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while message := self._socket.recv(200):
            self.heard.append(message.decode())

    def count(self, message: str) -> int:
        return self.heard.count(message)


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    return Systemd(tmp_path / "notify")


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk) as one:
        yield one


@pytest.fixture
def watched(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Return what puts the programs that are started from then on under this systemd."""

    def watch() -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")

    return watch


async def test_watchdog_is_fed_by_a_controller_that_stands_by(
    cluster: Cluster, systemd: Systemd, watched: Callable[[], None]
) -> None:
    await leads(cluster.controller("c1"))
    watched()
    second = cluster.controller("c2")
    began = time.monotonic()
    await until(lambda: systemd.count("WATCHDOG=1") >= 4, 10)
    assert time.monotonic() - began < 5
    assert systemd.count("READY=1") == 1
    assert "STATUS=standing by for asterisk" in systemd.heard
    second.stop()
    await until(lambda: systemd.count("STOPPING=1") == 1, 10)


async def test_controller_that_stands_by_again_does_not_say_that_it_stops(
    cluster: Cluster, systemd: Systemd, watched: Callable[[], None]
) -> None:
    """Else systemd waits for its end, and then kills it."""
    watched()
    controller = cluster.controller("c1")
    await leads(controller)
    (server,) = cluster.servers
    server.kill()
    await controller.says("standing by", times=2)
    server.start()
    await controller.says("connected to Asterisk", times=2)
    assert "STOPPING=1" not in systemd.heard
    fed = systemd.count("WATCHDOG=1")
    await until(lambda: systemd.count("WATCHDOG=1") > fed, 10)
    controller.stop()
    await until(lambda: systemd.count("STOPPING=1") == 1, 10)
