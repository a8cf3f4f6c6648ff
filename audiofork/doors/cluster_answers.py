"""Answers requests at any controller of a cluster.

Where the controller leads, its own daemon answers; else the controller that does, over the broker.
The requests are those of `control_answers.py`, and each may have one field more:

    {"Command": "StopAudioFork", "AudioForkID": "3f2a...", "Asterisk": "pbx-b"}

names the Asterisk that it is for, if it is another one of the cluster than that of this controller,
or if this controller serves several. `Asterisk: *` stands for all of the cluster, for
ListAudioForks alone: each fork then names its Asterisk, and `missing` says of which Asterisk the
forks are not there, and why:

    {"ok": true, "forks": [{"asterisk": "pbx-a", ...}], "legs_left": 0, "missing": {"pbx-b": "..."}}

Where a controller serves several, the same is the answer to ListAudioForks without Asterisk, for
those. CheckAudioFork and DrainAudioForkRelay may be without it, too: a check is of all that the
controller serves, and relay hosts are those of all.

ListAudioForkCluster tells who is in the cluster, as this controller has heard of them last:

    {"ok": true, "name": "c1", "asterisks": ["pbx-a"], "server": "192.0.2.1:4222",
     "hosts": [...], "controllers": [...]}

with the fields of `HostView` and `ControllerView`; `server` is empty while the broker is away.
ListAudioForkHistory, ListAudioForkCauses and ForgetAudioForkCaller ask each controller for what it
has kept, with Asterisk those of that one; see `history_sharing.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Controller, Host, Roster
from audiofork.config import ClusterConfig
from audiofork.config_cluster import is_name
from audiofork.doors.broker_door import STOPPED, ask_leader, no_such_asterisk
from audiofork.doors.control_answers import (
    CHECK,
    CLUSTER,
    DRAIN,
    LIST,
    Answers,
    GiveAnswers,
    command_of,
    parse_line,
    refusal,
)
from audiofork.doors.control_protocol import Code
from audiofork.doors.daemon_client import EVERY_ASTERISK
from audiofork.doors.history_answers import COMMANDS as OF_HISTORY
from audiofork.errors import (
    BrokerUnavailable,
    HistoryUnavailable,
    NobodyAnswers,
    NobodyLeads,
    RequestRefused,
)
from audiofork.forks.requests import Origin
from audiofork.text import A_BUG, printable

log = logging.getLogger(__name__)

# How long somebody may be about to lead: longer than a standby takes to.
FIND_S = 2.0
RETRY_S = 0.1

AnswerHistory = Callable[[str, Mapping[str, str], Origin], Awaitable[dict[str, Any]]]
"""Answers a command that asks the history; see `HistoryOfCluster.answer`."""


@dataclass(frozen=True, slots=True)
class HostView:
    """A relay host as the command cluster shows it.

    Attributes:
        name: Its name in the cluster.
        zone: Where it is; empty: unknown.
        address: What Asterisk connects legs to.
        forks: How many it has, of each Asterisk.
        capacity: The most that it takes.
        cpu: The part of a core that its process used lately.
        version: Of audiofork.
        state: open, draining or dead.
    """

    name: str
    zone: str
    address: str
    forks: int
    capacity: int
    cpu: float
    version: str
    state: str


@dataclass(frozen=True, slots=True)
class ControllerView:
    """A controller as the command cluster shows it.

    Attributes:
        name: Its name in the cluster.
        asterisk: What the cluster calls its Asterisk.
        state: leads, stands by or dead.
        since_s: For how many seconds it led or stood by when it was heard of last.
        epoch: The number of its leadership; 0: it does not lead.
        server: The NATS server that it is connected to.
        version: Of audiofork.
    """

    name: str
    asterisk: str
    state: str
    since_s: float
    epoch: int
    server: str
    version: str


class ClusterAnswers:
    """Answers requests to a controller.

    Owned by the controller. May be called for several requests at a time.

    Args:
        config: The cluster, and our place in it.
        names: The names of the Asterisks that we serve.
        broker: The connection to the broker.
        roster: Who is in the cluster.
        history: Answers a search of the history, of all controllers.
    """

    def __init__(
        self,
        config: ClusterConfig,
        names: Sequence[str],
        broker: Broker,
        roster: Roster,
        history: AnswerHistory,
    ) -> None:
        self._config = config
        self._names = names
        self._broker = broker
        self._roster = roster
        self._history = history
        self._own: dict[str, GiveAnswers] = {}  # of each Asterisk that we lead for
        # Those that wait for an answer of it, with the name of the Asterisk.
        self._inside: dict[asyncio.Task[Any], str] = {}
        self._interrupted: set[asyncio.Task[Any]] = set()

    def begin_to_lead(self, asterisk: str, own: GiveAnswers) -> None:
        """Have requests for an Asterisk of ours answered by its own daemon from now on."""
        self._own[asterisk] = own

    def end_to_lead(self, asterisk: str) -> None:
        """Have them answered by another controller again; end those that our daemon is at."""
        self._own.pop(asterisk, None)
        waiting = {task for task, name in self._inside.items() if name == asterisk}
        self._interrupted |= waiting
        for task in waiting:
            task.cancel()

    def of(self, asterisk: str) -> GiveAnswers:
        """Return what answers requests that are for an Asterisk if they name none."""
        return lambda line, origin: self(line, origin, asterisk)

    async def __call__(self, line: bytes, origin: Origin, asterisk: str = "") -> Answers:
        """Yield the answers to a line: only documented ones, whatever the line contains."""
        try:
            async with contextlib.aclosing(self._answers(line, origin, asterisk)) as answers:
                async for answer in answers:
                    yield answer
        except RequestRefused as exc:
            yield refusal(str(exc))
        except NobodyLeads as exc:
            yield refusal(str(exc), Code.CLUSTER)
        except HistoryUnavailable as exc:
            yield refusal(str(exc), Code.HISTORY)
        except Exception:
            log.exception("a request to the cluster could not be handled")
            yield refusal(A_BUG, Code.FAULT)

    async def _answers(self, line: bytes, origin: Origin, asterisk: str) -> Answers:
        fields, named = _without_asterisk(parse_line(line))
        asterisk = named or asterisk
        command = command_of(fields)
        if command == CLUSTER:
            yield {"ok": True, **self._cluster()}
        elif asterisk == EVERY_ASTERISK:
            if command != LIST:
                raise RequestRefused("Asterisk: * stands for all, for ListAudioForks alone")
            yield {"ok": True, **await self._list_all(self._known(), origin)}
        elif command == LIST and not asterisk and len(self._names) > 1:
            yield {"ok": True, **await self._list_all(self._names, origin)}
        elif asterisk and not is_name(asterisk):
            raise RequestRefused("Asterisk: expected the name of one in the cluster")
        elif command in OF_HISTORY:
            lower = {name.lower(): value for name, value in fields.items()} | {"asterisk": asterisk}
            yield {"ok": True, **await self._history(command, lower, origin)}
        else:
            answers = self.ask(asterisk or self._meant(command), fields, origin)
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield answer

    def _meant(self, command: str) -> str:
        """Return the Asterisk that a request is for which names none.

        Raises:
            RequestRefused: It has to name one.
        """
        if len(self._names) == 1:
            return self._names[0]
        if command in (CHECK, DRAIN):  # they are of none: whoever leads does them
            return next((name for name in self._names if name in self._own), self._names[0])
        raise RequestRefused(
            f"Asterisk: say which one is meant (--asterisk): this controller serves "
            f"{', '.join(self._names)}"
        )

    def _known(self) -> list[str]:
        """Return the names of the Asterisks that the cluster has, as far as known."""
        return sorted({*self._names, *self._roster.asterisks})

    async def ask(
        self, asterisk: str, fields: Mapping[str, str], origin: Origin, find_s: float | None = None
    ) -> Answers:
        """Yield the answers of the controller that leads for an Asterisk.

        Args:
            asterisk: The name of the Asterisk.
            fields: The request.
            origin: Who asks.
            find_s: How long somebody may be about to lead; None: as long as that may take.

        Raises:
            NobodyLeads: There is none, or it is silent.
            RequestRefused: The cluster has no such Asterisk.
        """
        line = json.dumps(fields).encode()
        loop = asyncio.get_running_loop()
        until = loop.time() + (FIND_S if find_s is None else find_s)
        while True:
            if asterisk in self._own:
                answers = self._by_own(asterisk, line, origin)
            else:
                answers = self._forwarded(asterisk, line, origin)
            try:
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        yield answer
                return
            except NobodyAnswers:  # so it was not heard: it may be asked again
                if loop.time() > until or asterisk not in self._known():
                    raise self._nobody(asterisk) from None
            await asyncio.sleep(RETRY_S)

    def _nobody(self, asterisk: str) -> Exception:
        known = self._known()
        if asterisk in known:
            return NobodyLeads(f"no controller of {asterisk} leads at the moment")
        return no_such_asterisk(asterisk, known)

    async def _by_own(self, asterisk: str, line: bytes, origin: Origin) -> Answers:
        """Yield the answers of our own daemon for an Asterisk, as long as it leads.

        Raises:
            NobodyLeads: It does not any more.
        """
        task, own = asyncio.current_task(), self._own[asterisk]
        assert task is not None
        async with contextlib.aclosing(own(line, origin)) as answers:
            while self._own.get(asterisk) is own:
                self._inside[task] = asterisk
                try:
                    answer = await anext(answers)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    if task not in self._interrupted:
                        raise
                    task.uncancel()
                    break
                finally:
                    del self._inside[task]
                    self._interrupted.discard(task)
                yield answer
        raise NobodyLeads(STOPPED)

    async def _forwarded(self, asterisk: str, line: bytes, origin: Origin) -> Answers:
        who = f"{self._config.own_name}, {origin.door} {origin.who}"
        is_answered = False
        try:
            async with contextlib.aclosing(
                ask_leader(self._broker, asterisk, line, who)
            ) as answers:
                async for answer in answers:
                    is_answered = True
                    yield answer
        except NobodyAnswers:
            raise
        except BrokerUnavailable as exc:
            text = f"the controller that leads for {asterisk} cannot be asked: {exc}"
            raise NobodyLeads(text) from exc
        if not is_answered:
            raise NobodyLeads(f"the controller that leads for {asterisk} has not answered")

    # --- The whole cluster ---

    async def _list_all(self, names: Sequence[str], origin: Origin) -> dict[str, Any]:
        lists = await asyncio.gather(*(self._list(name, origin) for name in names))
        forks: list[dict[str, Any]] = []
        missing = {}
        for name, answer in zip(names, lists, strict=True):
            if answer.get("ok"):
                forks += ({"asterisk": name, **fork} for fork in answer.get("forks", ()))
            else:
                missing[name] = answer.get("error", "")
        left = sum(one.get("legs_left", 0) for one in lists)
        return {"forks": forks, "legs_left": left, "missing": missing}

    async def _list(self, asterisk: str, origin: Origin) -> dict[str, Any]:
        """Return the answer to ListAudioForks of one Asterisk."""
        found: dict[str, Any] = {}
        answers = self.ask(asterisk, {"Command": "ListAudioForks"}, origin)
        try:
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    found = answer
        except (NobodyLeads, RequestRefused) as exc:
            return refusal(str(exc), Code.CLUSTER)
        return found

    def _cluster(self) -> dict[str, Any]:
        return {
            "name": self._config.own_name,
            "asterisks": list(self._names),
            "server": self._broker.server if self._broker.is_up else "",
            "hosts": [_host(one) for one in self._roster.hosts],
            "controllers": [_controller(one) for one in self._roster.controllers],
        }


def _without_asterisk(fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the fields but for Asterisk, and what that says; empty: none."""
    rest = {name: value for name, value in fields.items() if name.lower() != "asterisk"}
    named = [value for name, value in fields.items() if name.lower() == "asterisk"]
    return rest, named[-1].strip(" \t") if named else ""


def _host(host: Host) -> dict[str, Any]:
    beat = host.beat
    view = HostView(
        name=beat.name,
        zone=printable(beat.zone, "?"),
        address=str(beat.address),
        forks=beat.forks,
        capacity=beat.capacity,
        cpu=beat.cpu,
        version=printable(beat.version, "?"),
        state=host.state.value,
    )
    return dataclasses.asdict(view)


def _controller(controller: Controller) -> dict[str, Any]:
    beat = controller.beat
    view = ControllerView(
        name=beat.name,
        asterisk=beat.asterisk,
        state=controller.state.value,
        since_s=beat.since_s,
        epoch=beat.epoch,
        server=printable(beat.server, "?"),
        version=printable(beat.version, "?"),
    )
    return dataclasses.asdict(view)
