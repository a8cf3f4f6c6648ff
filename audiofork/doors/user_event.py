"""The door of user events: requests by `UserEvent: AudioFork`, from the dialplan or over AMI.

What is granted shows in the events of the fork; what is not is answered with an event too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from audiofork.asterisk.ami_protocol import RequestReceived
from audiofork.doors.ami_events import AmiEvents
from audiofork.doors.caller_data import WHAT_TO_DO, decoded, slipped_in
from audiofork.errors import AmiError, RequestRefused
from audiofork.forks.requests import Request, parse_request
from audiofork.forks.tasks import Tasks

log = logging.getLogger(__name__)


class UserEvents:
    """Owned by the daemon, which passes on the requests that come by AMI.

    Args:
        ask: Grants a request, or raises RequestRefused or AmiError.
        answers: Tells Asterisk of a refusal.
    """

    def __init__(self, ask: Callable[[Request], Awaitable[object]], answers: AmiEvents) -> None:
        self._ask = ask
        self._answers = answers
        self._tasks = Tasks()

    def on_request(self, event: RequestReceived) -> None:
        """Grant a request or answer it; never waits."""
        self._tasks.spawn(self._answer(event))

    async def _answer(self, event: RequestReceived) -> None:
        fields = event.fields
        try:
            fields = decoded(fields)
            caller_data = (*event.caller_data, fields.pop("dialled", ""))
            if event.repeated:
                raise RequestRefused(f"{event.repeated}: comes twice")
            if name := slipped_in(fields, caller_data):
                raise RequestRefused(f"{name} is of the caller's number or name; {WHAT_TO_DO}")
            await self._ask(parse_request(fields))
        except RequestRefused as exc:
            self._answers.refused(fields, str(exc))
        except AmiError as exc:
            self._answers.refused(fields, f"Asterisk cannot be asked: {exc}")
        except Exception:
            log.exception("a request could not be handled")
            self._answers.refused(fields, "a fault of the daemon")

    async def finish(self) -> None:
        """Return when every request so far is granted or answered."""
        await self._tasks.finish()

    async def close(self) -> None:
        """Give up what is under way."""
        await self._tasks.cancel()
