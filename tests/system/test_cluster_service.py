"""A controller as a service: what systemd hears of it, and that it is started again at once."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from testbed.asterisk import Asterisk
from testbed.recorder import Recorder
from tests.relay.peers import until
from tests.system.cluster import Cluster, clustered
from tests.system.scene import Scene, staged
from tests.system.test_cluster import leads

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]


class Systemd:
    """Listens as systemd does.

    Attributes:
        path: The path of its socket.
        heard: What it was told.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
async def scene(asterisk: Asterisk, recorder: Recorder) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, {}) as one:
        yield one


@contextmanager
def under(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have programs that are started meanwhile tell this systemd how they are."""
    with monkeypatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", str(systemd.path))
        patch.setenv("WATCHDOG_USEC", "1000000")
        yield


async def test_watchdog_is_fed_by_a_controller_that_stands_by(
    cluster: Cluster, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leads(cluster.controller("c1"))
    with under(systemd, monkeypatch):
        second = cluster.controller("c2")
    await until(lambda: systemd.count("WATCHDOG=1") >= 4, 30)
    assert systemd.count("READY=1") == 1
    assert "STATUS=standing by for asterisk" in systemd.heard
    second.stop()
    await until(lambda: systemd.count("STOPPING=1") == 1, 30)


async def test_controller_that_stands_by_again_does_not_say_that_it_stops(
    cluster: Cluster, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else systemd waits for its end, and then kills it."""
    with under(systemd, monkeypatch):
        first = cluster.controller("c1")
    await leads(first)
    second = cluster.controller("c2")
    first.signal(signal.SIGSTOP)
    await leads(second)
    first.signal(signal.SIGCONT)
    await first.says("standing by", times=2)
    assert "STOPPING=1" not in systemd.heard
    fed = systemd.count("WATCHDOG=1")
    await until(lambda: systemd.count("WATCHDOG=1") > fed, 30)
    second.stop()
    await first.says("connected to Asterisk", times=2)
    assert "STOPPING=1" not in systemd.heard
    first.stop()
    await until(lambda: systemd.count("STOPPING=1") == 1, 30)


async def test_controller_that_is_alone_leads_again_soon_when_it_is_started_at_once(
    cluster: Cluster, scene: Scene[Recorder]
) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    fork = await scene.talking_fork("/fork", "D(in)")
    await scene.server.wait_messages("/fork", 25)
    position = len(scene.ami.events)
    controller.kill()
    killed_at = time.monotonic()
    await asyncio.to_thread(controller.start)
    await controller.says("connected to Asterisk", times=2)
    print(f"it leads again after {time.monotonic() - killed_at:.2f} s")
    assert (await fork.started(after=position))["TakenUp"] == "yes"
    stopped = await fork.hang_up()
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    assert stopped["FramesIn"] == stopped["FramesSent"]
    assert len(scene.server.recordings) == 1
    await scene.legs(0)
