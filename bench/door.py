"""The HTTP interface of a benchmark: it shows forks that no registry has, and what happens to them.

What it shows costs what it costs in the daemon: the statistics of the relay, an object for each
fork, and texts of servers as events.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator

from audiofork import __version__
from audiofork.config import Address, HttpConfig
from audiofork.doors.event_stream import EventStream
from audiofork.doors.http.answers import AriStatus, AsteriskStatus, RelayStatus, Status
from audiofork.doors.http.door import HttpDoor
from audiofork.doors.http.parts import Parts
from audiofork.errors import RequestRefused
from audiofork.forks.events import ForkInfo, MessageReceived
from audiofork.forks.following import StartNews
from audiofork.forks.registry import VIEWS_AT_ONCE
from audiofork.forks.requests import Request
from audiofork.forks.statistics import Statistics
from audiofork.forks.view import ForkView
from audiofork.forks.watching import Watching
from audiofork.link.messages import ForkStats

# Texts of all servers together, as speech services send them: they are most of a site's events.
TEXTS_A_SECOND = 100
_TEXT = '{"type": "partial", "text": "what the caller of this line has said until now"}'


class TalkingDoor(HttpDoor):
    """A door whose forks' servers send texts, from its start to its end."""

    stream: EventStream
    fork_ids: list[str]
    _talking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self._talking = asyncio.create_task(self._talk())

    async def close(self) -> None:
        if self._talking is not None:
            self._talking.cancel()
        await super().close()

    async def _talk(self) -> None:
        infos = [_info(number, fork_id) for number, fork_id in enumerate(self.fork_ids)]
        for info in itertools.cycle(infos):
            self.stream.on_event(MessageReceived(info, _TEXT))
            await asyncio.sleep(1 / TEXTS_A_SECOND)


def door_of(
    statistics: Statistics, watching: Watching, fork_ids: list[str], tokens_file: str
) -> TalkingDoor:
    """Return a door, at any free port of loopback.

    Args:
        statistics: Asks the relay what it has counted.
        watching: Shows levels, and lets listen.
        fork_ids: The forks there are.
        tokens_file: The file of the tokens.
    """

    async def views() -> list[ForkView]:
        stats = (await statistics.take()).stats
        views: list[ForkView] = []
        for number, fork_id in enumerate(fork_ids):
            views.append(_view(number, fork_id, stats.get(fork_id, ForkStats())))
            if len(views) % VIEWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return views

    stream = EventStream(str(uuid.uuid4()))
    config = HttpConfig(listen=Address("127.0.0.1", 0), tokens_file=tokens_file)
    parts = Parts(
        ask=_refuse,
        views=views,
        follow=_nothing,
        status=lambda: _status(len(fork_ids)),
        profiles=list,
        stream=stream,
        watching=watching,
    )
    door = TalkingDoor(config, parts)
    door.stream, door.fork_ids = stream, fork_ids
    return door


async def _refuse(_request: Request) -> list[str]:
    raise RequestRefused("a benchmark starts no forks")


async def _nothing(_fork_id: str) -> AsyncGenerator[StartNews, None]:
    none: tuple[StartNews, ...] = ()
    for news in none:
        yield news


def _status(forks: int) -> Status:
    asterisk = AsteriskStatus(True, "22.0.0", "connected to Asterisk 22.0.0")
    ari = AriStatus(False, False, "not configured")
    relay = RelayStatus("relay", True, forks)
    return Status(__version__, "bench", 0.0, asterisk, ari, [relay], forks, {})


def _info(number: int, fork_id: str) -> ForkInfo:
    return ForkInfo(fork_id, f"PJSIP/{number}-{number:08x}", f"1700000000.{number}", _URL)


_URL = "wss://speech.example.org/live?call=1"


def _view(number: int, fork_id: str, stats: ForkStats) -> ForkView:
    info = _info(number, fork_id)
    return ForkView(
        id=fork_id,
        channel=info.channel,
        uniqueid=info.uniqueid,
        url=info.url,
        direction="in",
        state="streaming",
        age_s=1.0,
        frames_in=stats.frames_in,
        frames_sent=stats.frames_sent,
        frames_dropped=stats.frames_dropped,
        muted="",
        tap="snoop",
        sample_rate=8000,
    )
