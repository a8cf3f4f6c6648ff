"""Runs one of the servers that stand here, and hears what it tells."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE_MODULES = ROOT / ".venv-node/node_modules"
# pipecat and vocode bring much along: seconds to import on a busy machine.
START_TIMEOUT_S = 60.0
_LONGEST_LINE = 1 << 20

Told = dict[str, Any]


class ClientServer:
    """A server out of packages that others wrote, as a process.

    It prints a line of JSON for all that happens, first its port.

    Args:
        name: Its file here, as `pipecat_server.py`; one in Python runs in the environment of its
            name, `.venv-pipecat`.

    Attributes:
        told: What it has told so far, oldest first.
        url: Where it listens.
    """

    def __init__(self, name: str) -> None:
        self._command = command_of(name)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.told: list[Told] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        # A PYTHONPATH would bring packages of another environment, and NLTK_DATA files.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env={**environment, "NODE_PATH": str(NODE_MODULES), "PYTHONWARNINGS": "ignore"},
            limit=_LONGEST_LINE,
        )
        self._reading = asyncio.create_task(self._read())
        told = await self.wait(lambda one: "port" in one, timeout_s=START_TIMEOUT_S)
        self.url = f"ws://127.0.0.1:{told['port']}/"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._reading is not None
        self._process.kill()
        await self._process.wait()
        await self._reading
        self._errors.close()

    def break_off(self) -> None:
        """Let it break its connections without a close frame."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def all_of(self, name: str) -> list[Any]:
        """Return what it has told under a name."""
        return [one[name] for one in self.told if name in one]

    async def wait(self, matches: Callable[[Told], bool], *, timeout_s: float = 10) -> Told:
        """Return the first that it has told and that matches; fails if the process ends."""
        assert self._reading is not None
        seen = 0
        async with asyncio.timeout(timeout_s):
            while True:
                for one in self.told[seen:]:
                    if matches(one):
                        return one
                seen = len(self.told)
                assert not self._reading.done(), f"it has ended: {self._last_words()}"
                self._changed.clear()
                await self._changed.wait()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.told.append(json.loads(line))
            self._changed.set()
        asyncio.get_running_loop().call_soon(self._changed.set)  # when this task is done

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:]


def command_of(name: str) -> list[str]:
    """Return what runs a server."""
    if name.endswith(".js"):
        return ["node", str(HERE / name)]
    return [str(_python_of(name)), str(HERE / name)]


def lack(name: str) -> str:
    """Return why a server cannot be run here; empty: it can be."""
    if name.endswith(".js"):
        if shutil.which("node") is None:
            return "there is no Node.js: apt install nodejs npm, then make clients"
        return "" if (NODE_MODULES / "ws").is_dir() else "ws is not installed: make clients"
    environment = _python_of(name).parents[1]
    if not environment.is_dir():
        return f"{environment.name} is not there: make clients"
    package = environment.name.removeprefix(".venv-")
    if not any(environment.glob(f"lib/*/site-packages/{package}")):
        return f"{package} cannot be had for this Python"
    return ""


def _python_of(name: str) -> Path:
    return ROOT / f".venv-{name.partition('_')[0]}/bin/python"
