"""The AMI front of a controller: open whether it leads for the Asterisk or stands by."""

from __future__ import annotations

import contextlib
from typing import Any

from audiofork.config import Config
from audiofork.doors import told
from audiofork.doors.ami_front import Ask, Front
from audiofork.doors.cluster_answers import ClusterAnswers
from audiofork.doors.control_answers import refusal
from audiofork.doors.opening import open_front
from audiofork.errors import AmiUnavailable, DaemonBusy, DaemonFault, NobodyLeads, RequestRefused
from audiofork.forks.requests import Request, fields_of


class ClusterFront:
    """Opens the front of one Asterisk, if it is configured.

    Its actions go to our own daemon while that leads, else to the controller that does.

    Args:
        config: The configuration, as it is for that Asterisk.
        answers: Asks the controller that leads for an Asterisk.
    """

    def __init__(self, config: Config, answers: ClusterAnswers) -> None:
        self._config = config
        self._answers = answers
        self._own: Ask | None = None
        self._front: Front | None = None

    def begin(self, own: Ask) -> None:
        """Ask our own daemon from now on."""
        self._own = own

    def end(self) -> None:
        """Ask it no more."""
        self._own = None

    async def open(self) -> None:
        """Listen, if an address is configured.

        Raises:
            CannotListen: The address cannot be used.
            ConfigError: A certificate cannot be used.
        """
        self._front = await open_front(self._config, self._ask)

    async def close(self) -> None:
        """Stop listening; may be called again."""
        if self._front is not None:
            await self._front.close()
            self._front = None

    async def _ask(self, request: Request) -> list[str]:
        """Have a request granted; return the ids of its forks.

        Raises:
            RequestRefused: It is not.
            AmiUnavailable: Whoever leads does not reach Asterisk, or nobody leads.
        """
        if self._own is not None:
            return await self._own(request)
        ids: list[str] = []
        for fields in fields_of(request):
            ids = [str(one) for one in (await self._forwarded(request, fields)).get("forks", ())]
        return ids

    async def _forwarded(self, request: Request, fields: dict[str, str]) -> dict[str, Any]:
        asked = self._answers.ask(self._config.cluster.asterisk, fields, request.origin)
        try:
            async with contextlib.aclosing(asked) as answers:
                return told.granted(await anext(answers, refusal("no answer")))
        except NobodyLeads as exc:
            raise AmiUnavailable(str(exc)) from exc
        except (DaemonBusy, DaemonFault) as exc:
            raise RequestRefused(str(exc)) from exc
