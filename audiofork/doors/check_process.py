"""Runs the command `check` in the daemon, for a client of the control socket.

The check is a process of its own, started like the daemon. So it has the daemon's secrets and
sandbox, does not delay audio, and needs its memory only for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from audiofork.config_cluster import is_name
from audiofork.errors import DaemonBusy, RequestRefused
from audiofork.system import child_environment

# Between two lines. Everything that a check waits for has a limit of some seconds.
LINE_TIMEOUT_S = 60.0
# On SIGINT the check hangs up its legs. A daemon that stops has 3 s to end everything.
END_TIMEOUT_S = 1.0
BY_THE_DAEMON = "ok    check: by the running daemon, with its secrets and in its sandbox"
_AS_JSON = {
    "status": "ok",
    "name": "check",
    "text": BY_THE_DAEMON.removeprefix("ok").strip(),
    "remedy": "",
}


class CheckProcess:
    """Runs one check at a time.

    Args:
        path: The daemon's configuration.
        command: The command to run; further arguments are appended.
    """

    def __init__(
        self,
        path: Path,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "audiofork", "check", "--here"),
    ) -> None:
        self._path = path.absolute()
        self._command = command
        self._runs = False

    async def run(self, fields: Mapping[str, str]) -> AsyncGenerator[dict[str, Any]]:
        """Yield each line of the check as it comes, in `line`; at the end `exit_code`.

        Close the iterator to stop the check early.

        Args:
            fields: The fields of the request, names in lower case: `config`, the file to check;
                `taps`, not empty if only the ways to get audio are wanted; `json`, not empty if
                each line is to be a finding as a JSON object; `only`, of several Asterisks the one
                that is to be checked.

        Raises:
            RequestRefused: This daemon has another configuration, or a field is wrong.
            DaemonBusy: Another check runs.
            TimeoutError: No further line came in time.
        """
        config = fields.get("config", "")
        if config and Path(config) not in (self._path, self._path.resolve()):
            raise RequestRefused(f"it runs with another configuration, {self._path}")
        only = fields.get("only", "")
        if only and not is_name(only):
            raise RequestRefused("Only: expected the name of an Asterisk")
        if self._runs:
            raise DaemonBusy("another check runs; ask again in a few seconds")
        self._runs = True
        try:
            wanted = [f"--{name}" for name in ("taps", "json") if fields.get(name)]
            wanted += [f"--asterisk={only}"] if only else []
            process = await self._start(*wanted)
            try:
                assert process.stdout is not None
                if not fields.get("taps"):
                    yield {"line": json.dumps(_AS_JSON) if fields.get("json") else BY_THE_DAEMON}
                while line := await _line_of(process.stdout):
                    yield {"line": line.decode(errors="replace").removesuffix("\n")}
                yield {"exit_code": await process.wait()}
            finally:
                await _end(process)
        finally:
            self._runs = False

    async def _start(self, *options: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(*self._command, *options, "-c", str(self._path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child_environment(),
        )


async def _line_of(stream: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(LINE_TIMEOUT_S):
        return await stream.readline()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs; wait until it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            process.kill()
        await process.wait()
