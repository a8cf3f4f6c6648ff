"""Runs a post-process command: in a process group of its own, for a limited time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping

from audiofork.forks.post_process.template import PostProcess
from audiofork.log import ForkLog
from audiofork.text import printable, why

LIMIT_S = 300.0
GRACE_S = 2.0  # between SIGTERM and SIGKILL
NOT_STARTED = 127  # the exit status that a shell uses for this

# A start blocks the event loop for about 1 ms; several starts are spaced, so that audio is relayed
# between them.
START_SPACING_S = 0.005

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
LANG = "C.UTF-8"

MAX_OUTPUT_LINES = 100
MAX_LINE_CHARACTERS = 500
# A pipe holds 64 KiB. With this interval, a command that prints without end is slowed to 1.3 MB/s
# and costs 20 short reads a second.
READ_BYTES = 65536
READ_INTERVAL_S = 0.05
REAP_INTERVAL_S = 0.01


async def run(
    command: PostProcess,
    values: Mapping[str, str],
    log: ForkLog,
    *,
    limit_s: float = LIMIT_S,
    grace_s: float = GRACE_S,
) -> int:
    """Run a command, and wait until it and all its child processes have ended or time is up.

    It has a process group of its own, the working directory /, and no input. The environment is
    PATH, LANG and, for a shell command, the values. Its output is logged up to a limit of lines.

    Args:
        command: The command.
        values: By the command's names; a missing one counts as empty.
        log: The log of the fork.
        limit_s: Time limit in seconds, also for processes in the background. Then the group gets
            SIGTERM, and after `grace_s` SIGKILL. If the task is cancelled it gets SIGKILL at once.
        grace_s: Seconds between SIGTERM and SIGKILL.

    Returns:
        The exit status of the program; negative: minus the number of the signal that ended it.
    """
    await _turn()
    try:
        running = _Running(command, values, log)
    except (OSError, ValueError) as exc:  # ValueError: an argument or the environment is invalid
        log.warning("post-process: not started: %s", why(exc))
        return NOT_STARTED
    try:
        if not await running.ended_within(limit_s):
            log.warning("post-process: did not end within %g s; stopping it", limit_s)
            running.signal(signal.SIGTERM)
            await running.ended_within(grace_s)
    finally:
        running.signal(signal.SIGKILL)
        status = await running.close()
    log.info("post-process: ended with %d", status)
    return status


_next_start = 0.0


async def _turn() -> None:
    """Wait until START_SPACING_S has passed since the start of another command."""
    global _next_start
    now = time.monotonic()
    begin = max(now, _next_start)
    _next_start = begin + START_SPACING_S
    if begin > now:
        await asyncio.sleep(begin - now)


class _Running:
    """A running process group; logs its output."""

    def __init__(self, command: PostProcess, values: Mapping[str, str], log: ForkLog) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._lines = _Lines(log)
        self._ended = asyncio.Event()
        with contextlib.ExitStack() as opened:
            self._output, output = _pipe(opened)
            # Only the processes of the command hold the writing end of this pipe, so it closes
            # when all have ended. The output pipe cannot show that: it may be redirected.
            self._life, life = _pipe(opened)
            self._process = subprocess.Popen(
                _arguments(command, values),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(command, values),
                pass_fds=[life],
                start_new_session=True,
            )
            opened.pop_all()
        os.close(output)
        os.close(life)
        self._loop.add_reader(self._output, self._read_some)
        self._loop.add_reader(self._life, self._on_all_ended)

    async def ended_within(self, limit_s: float) -> bool:
        """Wait until all processes have ended; return whether they have."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._ended.wait()
        return self._ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all remaining processes of the group."""
        # Safe until `close`: the program is not reaped before, so its pid cannot be reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def close(self) -> int:
        """Log the rest of the output and close the pipes; return the program's exit status."""
        # After SIGKILL this takes milliseconds, unless a disk or network share hangs.
        try:
            for _ in range(200):
                if self._process.poll() is not None:
                    break
                await asyncio.sleep(REAP_INTERVAL_S)
        finally:
            self._close_pipes()
        return -signal.SIGKILL if self._process.returncode is None else self._process.returncode

    def _close_pipes(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._output)
        self._loop.remove_reader(self._life)
        with contextlib.suppress(BlockingIOError):
            self._lines.feed(os.read(self._output, READ_BYTES))
        self._lines.close()
        os.close(self._output)
        os.close(self._life)

    def _on_all_ended(self) -> None:
        self._loop.remove_reader(self._life)
        self._ended.set()

    def _read_some(self) -> None:
        """Read once, then not again before READ_INTERVAL_S."""
        self._loop.remove_reader(self._output)
        try:
            chunk = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            self._read_on()
            return
        if chunk:
            self._lines.feed(chunk)
            self._timer = self._loop.call_later(READ_INTERVAL_S, self._read_on)

    def _read_on(self) -> None:
        self._loop.add_reader(self._output, self._read_some)


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    """Return a pipe whose reading end does not block; `opened` closes both ends after a failure."""
    reading, writing = os.pipe()
    opened.callback(os.close, reading)
    opened.callback(os.close, writing)
    os.set_blocking(reading, False)
    return reading, writing


def _arguments(command: PostProcess, values: Mapping[str, str]) -> list[bytes]:
    return [_bytes(word) for word in command.arguments(values)]


def _environment(command: PostProcess, values: Mapping[str, str]) -> dict[bytes, bytes]:
    variables = {**ENVIRONMENT, "LANG": LANG, **command.environment(values)}
    return {name.encode(): _bytes(value) for name, value in variables.items()}


def _bytes(value: str) -> bytes:
    # Arguments and environment cannot contain NUL; a channel variable never does.
    return value.replace("\0", "").encode("utf-8", "surrogateescape")


class _Lines:
    """Logs the first lines of an output, and counts the bytes of the rest."""

    def __init__(self, log: ForkLog) -> None:
        self._log = log
        self._left = MAX_OUTPUT_LINES
        self._part = b""
        self._unlogged_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Add a part of the output."""
        *lines, self._part = (self._part + chunk).split(b"\n", self._left)
        for line in lines:
            self._say(line)
        self._left -= len(lines)
        kept = MAX_LINE_CHARACTERS * 4 if self._left else 0  # UTF-8 takes up to 4 bytes each
        self._unlogged_bytes += max(len(self._part) - kept, 0)
        self._part = self._part[:kept]

    def _say(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")[:MAX_LINE_CHARACTERS]
        self._log.info("post-process: %s", printable(text, " "))

    def close(self) -> None:
        """Log an incomplete last line, and how many bytes were not logged."""
        if self._part:
            self._say(self._part)
        if self._unlogged_bytes:
            self._log.info("post-process: %d more bytes of output", self._unlogged_bytes)
