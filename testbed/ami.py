"""An AMI client for the tests, which shares no code with the one under test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self

from testbed.asterisk import Asterisk

Headers = dict[str, str]
LOST = "Asterisk has closed the connection"


class AmiClient:
    """Sends actions, keeps every event.

    Attributes:
        events: All events so far, oldest first, each with the time it came at (loop time).
        lost: Asterisk has closed the connection; who waits then fails at once.
    """

    def __init__(self, asterisk: Asterisk) -> None:
        self._asterisk = asterisk
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Headers]] = {}
        self._changed = asyncio.Condition()
        self.events: list[tuple[float, Headers]] = []
        self.lost = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._asterisk.ami_port
        )
        await self._reader.readline()
        self._task = asyncio.create_task(self._read_until_lost())
        answer = await self.action(
            "Login", Username=self._asterisk.ami_username, Secret=self._asterisk.ami_secret
        )
        assert answer["Response"] == "Success", answer
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task.cancel()
        self._writer.close()

    async def _read_until_lost(self) -> None:
        try:
            await self._read()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost = True
        for answered in self._answers.values():
            if not answered.done():
                answered.set_exception(ConnectionError(LOST))
        async with self._changed:
            self._changed.notify_all()

    async def _read(self) -> None:
        while True:
            block = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            pairs = (line.partition(": ") for line in block.split("\r\n") if ":" in line)
            headers = {name: value for name, _, value in pairs}
            answered = self._answers.get(headers.get("ActionID", ""))
            if "Event" not in headers and answered is not None:
                if not answered.done():  # else nobody waits any longer
                    answered.set_result(headers)
                del self._answers[headers["ActionID"]]
                continue
            self.events.append((asyncio.get_running_loop().time(), headers))
            async with self._changed:
                self._changed.notify_all()

    def send(self, name: str, *, action_id: str = "", **headers: str) -> str:
        """Send an action, do not wait; return its ActionID."""
        action_id = action_id or f"testbed-{next(self._ids)}"
        lines = [f"Action: {name}", f"ActionID: {action_id}"]
        lines += [f"{header}: {value}" for header, value in headers.items()]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return action_id

    async def action(self, name: str, *, action_id: str = "", **headers: str) -> Headers:
        """Send an action and return its answer."""
        action_id = self.send(name, action_id=action_id, **headers)
        self._answers[action_id] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(10):
            return await self._answers[action_id]

    async def variable(self, channel: str, name: str) -> str:
        """Return the value of a channel's variable."""
        answer = await self.action("Getvar", Channel=channel, Variable=name)
        return answer.get("Value", "")

    async def wait_event(
        self, matches: Callable[[Headers], bool], *, timeout_s: float = 30, after: int = 0
    ) -> Headers:
        """Return the first event that matches, which may have come already.

        Args:
            matches: Returns whether an event is the wanted one.
            timeout_s: How long to wait.
            after: Leave out the first so many events.
        """
        position = after
        async with asyncio.timeout(timeout_s), self._changed:
            while True:
                while position < len(self.events):
                    headers = self.events[position][1]
                    if matches(headers):
                        return headers
                    position += 1
                if self.lost:
                    raise ConnectionError(LOST)
                await self._changed.wait()

    async def wait_user_event(
        self, name: str, *, timeout_s: float = 30, after: int = 0, **fields: str
    ) -> Headers:
        """Return the first UserEvent of this name that has these headers."""
        return await self.wait_event(
            lambda headers: (
                headers.get("UserEvent") == name
                and all(headers.get(key) == value for key, value in fields.items())
            ),
            timeout_s=timeout_s,
            after=after,
        )
