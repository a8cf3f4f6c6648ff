"""A door on loopback, with stand-ins for the daemon's other parts, and a client that asks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from audiofork.config import Address, HttpConfig
from audiofork.doors.event_stream import EventStream
from audiofork.doors.http.answers import (
    AriStatus,
    AsteriskStatus,
    RelayStatus,
    Status,
)
from audiofork.doors.http.door import HttpDoor
from audiofork.doors.http.parts import Heard, Levels, Parts
from audiofork.errors import RequestRefused
from audiofork.forks.events import ForkInfo
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.history import HistoryQuery
from audiofork.forks.requests import Request
from audiofork.forks.view import ForkView
from audiofork.link.messages import EndReason

FORK_ID = "3f2a91c0-0000-4000-8000-000000000001"
OTHER_ID = "3f2a91c0-0000-4000-8000-000000000002"
RUN = "0d0d0d0d-0000-4000-8000-000000000001"
VIEWER = "view-0123456789abcdef"
LISTENER = "listen-0123456789abcdef"
CONTROLLER = "control-0123456789abcdef"
TOKENS = f"""\
# NAME ROLES TOKEN
anna view {VIEWER}
lars listen {LISTENER}
carl control {CONTROLLER}
"""
VIEW = ForkView(
    id=FORK_ID,
    channel="PJSIP/1-1",
    uniqueid="1.1",
    url="wss://user:pw@speech.example.org:8443/live?token=s3cret",
    direction="both",
    state="streaming",
    age_s=1.5,
    frames_in=30,
    frames_sent=20,
    frames_dropped=1,
    backlog=9,
    muted="",
    tap="snoop",
    sample_rate=16000,
)
INFO = ForkInfo(FORK_ID, "PJSIP/1-1", "1.1", VIEW.url)
OTHER_INFO = ForkInfo(OTHER_ID, "PJSIP/2-2", "2.2", "ws://localhost/")
STATUS = Status(
    version="1.2.3",
    run=RUN,
    uptime_s=12.5,
    asterisk=AsteriskStatus(True, "20.5.0", "connected to Asterisk 20.5.0", 0.4),
    ari=AriStatus(False, False, "not configured"),
    relays=[RelayStatus("relay", True, 1)],
    forks=1,
    counters={"requested": 3, "ended": {"hangup": 2}},
)


class Moment(NamedTuple):
    at: float
    kind: str
    text: str


class Minute(NamedTuple):
    at: int
    started: int = 1
    ended: int = 2
    failed: int = 3
    refused: int = 4
    reconnects: int = 5
    frames_dropped: int = 6


@dataclass(frozen=True)
class Cause:
    """Why forks have failed."""

    reason: str
    detail: str
    count: int
    latest_at: float
    fork_id: str


@dataclass(frozen=True)
class Entry:
    """An ended fork."""

    fork_id: str = OTHER_ID
    channel: str = "PJSIP/2-2"
    uniqueid: str = "2.2"
    caller_number: str = "100"
    caller_name: str = "<b>Zo\u00eb</b>"
    url: str = "ws://localhost/"
    host: str = "localhost"
    direction: str = "in"
    profile: str = ""
    format: str = "raw"
    tap: str = "chanspy"
    sample_rate: int = 8000
    requested_at: float = 1000.0
    started_at: float | None = None
    ended_at: float = 1002.5
    reason: str = "sink-gone"
    failed: bool = True
    detail: str = "Connection refused"
    totals: Mapping[str, int | float] = field(default_factory=lambda: {"frames_in": 7})
    timeline: tuple[Moment, ...] = ()


class FakeLevels(NamedTuple):
    in_peak: int
    in_rms: int
    out_peak: int
    out_rms: int


class Sound(NamedTuple):
    sample_rate: int
    sides: tuple[str, ...]
    samples: bytes


class Others:
    """The daemon's other parts: keeps what they are asked, answers what they are told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: Exception | None = None
        self.views = [VIEW]
        self.views_asked = 0
        self.legs_left = 0
        self.news: list[StartNews] = [StartNews(StartResult.STREAMING, VIEW, 312)]
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.status = STATUS
        self.checks = 0
        self.lines: list[str] = []
        self.searched: list[HistoryQuery] = []
        self.on_levels: Callable[[Mapping[str, Levels]], None] | None = None
        self.listeners: list[Callable[[Heard], None]] = []
        self.on_ends: list[Callable[[EndReason], None]] = []
        self.who_listened: list[str] = []
        self.stream = EventStream(RUN, clock=lambda: 1700000000.25)

    async def ask(self, request: Request) -> list[str]:
        self.requests.append(request)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return [FORK_ID]

    async def all(self) -> list[ForkView]:
        self.views_asked += 1
        return list(self.views)

    async def follow(self, fork_id: str) -> AsyncGenerator[StartNews, None]:
        for one in self.news:
            yield one

    async def check(self, fields: Mapping[str, str]) -> AsyncGenerator[dict[str, Any], None]:
        assert dict(fields) == {"json": "yes"}
        self.checks += 1
        for line in self.lines:
            yield {"line": line}
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        yield {"exit_code": 1}

    # --- Those that may be missing ---

    def of(self, fork_id: str) -> tuple[Moment, ...]:
        return (Moment(1000.0, "requested", "by http carl"), Moment(1000.5, "started", ""))

    def minutes(self, hours: int) -> list[Minute]:
        return [Minute(60 * number) for number in range(hours)]

    async def search(self, query: HistoryQuery) -> tuple[list[Entry], str]:
        self.searched.append(query)
        return [Entry()], "next"

    async def entry(self, fork_id: str) -> Entry | None:
        moments = (Moment(1000.0, "requested", ""),)
        return replace(Entry(), timeline=moments) if fork_id == OTHER_ID else None

    async def causes(self, since: float) -> list[Cause]:
        return [Cause("sink-gone", "Connection refused", 3, 1002.5, OTHER_ID)]

    async def render(self, *, open_metrics: bool = False) -> str:
        end = "# EOF\n" if open_metrics else ""
        return f"# TYPE audiofork_forks gauge\naudiofork_forks 1\n{end}"

    def subscribe_levels(
        self, on_levels: Callable[[Mapping[str, Levels]], None]
    ) -> Callable[[], None]:
        self.on_levels = on_levels

        def unsubscribe() -> None:
            self.on_levels = None

        return unsubscribe

    def listen(
        self,
        fork_id: str,
        on_audio: Callable[[Heard], None],
        *,
        who: str,
        on_end: Callable[[EndReason], None],
    ) -> Callable[[], None]:
        if self.error is not None:
            raise self.error
        if fork_id != FORK_ID:
            raise RequestRefused("No such fork")
        self.who_listened.append(who)
        self.listeners.append(on_audio)
        self.on_ends.append(on_end)
        return lambda: self.listeners.remove(on_audio)

    def parts(self, *, whole: bool = True) -> Parts:
        more: dict[str, Any] = {}
        if whole:
            names = ("watching", "timelines", "series", "history", "metrics")
            more = dict.fromkeys(names, self) | {"check": self.check}
        return Parts(
            ask=self.ask,
            views=self.all,
            follow=self.follow,
            status=lambda: self.status,
            profiles=lambda: ["vosk", "deepgram"],
            stream=self.stream,
            legs_left=lambda: self.legs_left,
            **more,
        )


class Answer(NamedTuple):
    """An answer, with the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a door by bytes of its own, so that nothing is made right for it on the way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def raw(self, data: bytes) -> Answer:
        self.writer.write(data)
        return await self.answer(has_body=not data.startswith(b"HEAD"))

    async def answer(self, *, has_body: bool = True) -> Answer:
        async with asyncio.timeout(10):
            head = await self.head()
            length = int(head.headers.get("content-length", "0")) if has_body else 0
            return head._replace(body=await self.reader.readexactly(length))

    async def head(self) -> Answer:
        """Return the status and the headers of an answer; its body is left to be read."""
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return Answer(
            int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs}, b""
        )

    async def ended(self) -> bytes:
        """Return what comes until the door closes the connection."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


def request(
    method: str,
    path: str,
    token: str = "",
    body: Any = None,
    *,
    host: str = "localhost",
    version: str = "1.1",
    **headers: str,
) -> bytes:
    """Return the bytes of a request; `_` in the names of headers stands for a hyphen."""
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content_Type", "application/json")
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Stage:
    """A door that listens, and what it asks."""

    def __init__(self, others: Others, door: HttpDoor) -> None:
        self.others = others
        self.door = door

    @property
    def port(self) -> int:
        assert self.door.address is not None
        return self.door.address.port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(
        self, method: str, path: str, token: str = CONTROLLER, body: Any = None, **more: str
    ) -> Answer:
        """Return the answer to a request on a connection of its own."""
        async with self.client() as client:
            return await client.raw(request(method, path, token, body, **more))

    async def get(self, path: str, token: str = VIEWER, **more: str) -> Answer:
        return await self.ask("GET", path, token, **more)


def write_tokens(folder: Path, text: str = TOKENS) -> Path:
    path = folder / "tokens"
    path.touch(mode=0o640)
    path.write_text(text)
    return path


@contextlib.asynccontextmanager
async def staged(
    tmp_path: Path, others: Others | None = None, *, whole: bool = True, **options: Any
) -> AsyncIterator[Stage]:
    """Yield a door that listens on loopback, with options of [http]."""
    others = others or Others()
    config = HttpConfig(
        **{
            "listen": Address("127.0.0.1", 0),
            "tokens_file": str(write_tokens(tmp_path)),
            **options,
        }
    )
    door = HttpDoor(config, others.parts(whole=whole))
    await door.start()
    try:
        yield Stage(others, door)
    finally:
        async with asyncio.timeout(5):
            await door.close()
