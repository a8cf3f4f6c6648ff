"""Executes requests that come as `UserEvent: AudioFork`, from the dialplan or over AMI.

An accepted request is answered by the events of its fork, a refused one by an event of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from audiofork.asterisk.ami_protocol import RequestReceived
from audiofork.doors.ami_events import AmiEvents
from audiofork.doors.caller_data import WHAT_TO_DO, decoded, slipped_in
from audiofork.doors.inbox import Inbox
from audiofork.errors import AmiError, Refusal, RequestRefused
from audiofork.forks.look_ups import TOO_MANY
from audiofork.forks.requests import CONNECT, DIALPLAN, Origin, Request, parse_request
from audiofork.forks.tasks import Tasks
from audiofork.text import A_BUG

log = logging.getLogger(__name__)

NOBODY_WAITS = (
    "Command: ConnectAudioFork in a bare UserEvent: nothing would take the call to the server; "
    "use Gosub(audiofork,connect,1(URL)), or name another channel"
)


class UserEvents:
    """Executes the requests in user events. Owned by the daemon, which passes the events on.

    Args:
        ask: Executes a request; raises RequestRefused or AmiError.
        answers: Sends the answer to a refused request to Asterisk.
        is_led_elsewhere: Returns whether another controller of a cluster leads, which has heard the
            same request and answers it; asked where this one does not lead.
    """

    def __init__(
        self,
        ask: Callable[[Request], Awaitable[object]],
        answers: AmiEvents,
        is_led_elsewhere: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._ask = ask
        self._answers = answers
        self._is_led_elsewhere = is_led_elsewhere
        self._tasks = Tasks()
        self._inbox = Inbox(self._begin)

    def on_request(self, event: RequestReceived) -> None:
        """Begin to execute a request; does not wait. A refusal is answered with an event."""
        origin = _origin_of(event)
        if not self._inbox.put(event, origin):
            self._answers.refused(event.fields, TOO_MANY, origin)

    def _begin(self, event: RequestReceived, origin: Origin) -> None:
        self._tasks.spawn(self._answer(event, origin))

    async def _answer(self, event: RequestReceived, origin: Origin) -> None:
        fields = event.fields
        try:
            fields = decoded(fields)
            caller_data = (*event.caller_data, fields.pop("dialled", ""))
            if event.repeated:
                raise RequestRefused(f"{event.repeated}: appears twice")
            if name := slipped_in(fields, caller_data):
                raise RequestRefused(f"{name} is part of the caller's number or name; {WHAT_TO_DO}")
            if _is_left_alone(event):
                raise RequestRefused(NOBODY_WAITS)
            await self._ask(parse_request(fields, origin))
        except RequestRefused as exc:
            if not await self._leaves(exc):
                self._answers.refused(fields, str(exc), origin)
        except AmiError as exc:
            self._answers.refused(fields, f"Asterisk cannot be asked: {exc}", origin)
        except Exception:
            log.exception("a request could not be handled")
            self._answers.refused(fields, A_BUG, origin)

    async def _leaves(self, refused: RequestRefused) -> bool:
        """Return whether the answer to a refused request is another's."""
        if refused.reason is not Refusal.CLUSTER or self._is_led_elsewhere is None:
            return False
        return await self._is_led_elsewhere()

    async def finish(self) -> None:
        """Wait until every request so far is executed or refused."""
        self._inbox.flush()
        await self._tasks.finish()

    async def close(self) -> None:
        """Cancel the requests that are being executed."""
        self._inbox.close()
        await self._tasks.cancel()


def _is_left_alone(event: RequestReceived) -> bool:
    """Return whether a dialplan asks to be connected and does not wait for it, as the Gosub does.

    Only that encodes its values.
    """
    fields = event.fields
    connects = fields.get("command", "").lower() == CONNECT and "encoding" not in fields
    return connects and event.raised_by != "" and event.raised_by == fields.get("uniqueid")


def _origin_of(event: RequestReceived) -> Origin:
    if event.raised_by:
        return Origin(DIALPLAN, event.raised_by)
    # Asterisk does not report which AMI user sent the event.
    named = (event.fields.get(name, "") for name in ("uniqueid", "channel", "audioforkid"))
    return Origin("AMI", next(filter(None, named), ""))
