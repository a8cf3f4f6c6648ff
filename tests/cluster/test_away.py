"""A controller and a relay host whose NATS server is away: real programs, without an Asterisk."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.nats import NatsServer
from tests.relay.peers import until

pytestmark = pytest.mark.nats

TIMEOUT_S = 30
AWAY = "the NATS servers of the cluster cannot be reached"


class Program:
    """A program of audiofork."""

    def __init__(self, folder: Path, command: str, config: str) -> None:
        self._file, self._log = folder / f"{command}.ini", folder / f"{command}.log"
        self._file.write_text(config)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._line(command), stderr=log)

    def _line(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "audiofork", *words, "-c", str(self._file)]

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def says(self, text: str) -> None:
        await until(lambda: text in self.log, TIMEOUT_S)

    def ask(self, *words: str) -> str:
        """Return what a command says that asks it."""
        done = subprocess.run(
            self._line(*words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        return done.stdout + done.stderr

    def stop(self) -> int:
        """Have it end, and return its exit code."""
        self._process.terminate()
        return self._process.wait(TIMEOUT_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
async def controller(server: NatsServer, tmp_path: Path) -> AsyncIterator[Program]:
    """A controller that has led, and is suspended."""
    config = (
        "[asterisk]\nport = 1\nusername = a\nsecret = b\n"
        f"[control]\nsocket = {tmp_path / 'control'}\n"
        f"[cluster]\nname = c1\nasterisk = pbx\nlegs_from = 127.0.0.1\nservers = {server.url}\n"
    )
    one = Program(tmp_path, "control", config)
    await one.says("listening for Asterisk's audio")
    await until(lambda: "no forks" in one.ask("list"), TIMEOUT_S)
    server.kill()
    await one.says("pbx: suspended")
    yield one
    one.kill()


async def test_suspended_controller_answers_with_the_reason_and_says_that_it_does_not_lead(
    controller: Program,
) -> None:
    assert AWAY in controller.ask("list")
    assert AWAY in controller.ask("stop", "PJSIP/1")
    listed = controller.ask("cluster")
    assert "stands by" in listed
    assert "leads" not in listed
    assert "Traceback" not in controller.log
    assert "no statistics in time" not in controller.log


async def test_suspended_controller_ends_in_order(controller: Program) -> None:
    assert controller.stop() == 0
    assert "Traceback" not in controller.log


async def test_relay_host_without_forks_ends_in_order(server: NatsServer, tmp_path: Path) -> None:
    config = f"[audiosocket]\nlisten = 127.0.0.1:0\n[cluster]\nname = r1\nservers = {server.url}\n"
    one = Program(tmp_path, "relay", config)
    try:
        await one.says("connected to the NATS server")
        server.kill()
        await one.says("is lost")
        assert one.stop() == 0
        assert "Traceback" not in one.log
    finally:
        one.kill()


async def test_controller_that_cannot_read_its_journal_ends_in_order_and_says_why_once(
    server: NatsServer, tmp_path: Path
) -> None:
    """Three servers are to keep the journal, and there is one; the lease was made before that."""

    def started(name: str, asterisk: str, more: str) -> Program:
        (folder := tmp_path / name).mkdir()
        return Program(
            folder,
            "control",
            "[asterisk]\nport = 1\nusername = a\nsecret = b\n"
            f"[control]\nsocket = {folder / 'control'}\n"
            f"[cluster]\nname = {name}\nasterisk = {asterisk}\nlegs_from = 127.0.0.1\n"
            f"servers = {server.url}\n{more}",
        )

    first = started("c1", "pbx", "")
    await first.says("pbx: leading")
    assert first.stop() == 0
    second = started("c2", "other", "replicas = 3\n")
    await second.says("the journal of the cluster cannot be read")
    await asyncio.sleep(1)
    assert second.stop() == 0
    assert second.log.count("the journal of the cluster cannot be read") == 1
    assert "Traceback" not in second.log
