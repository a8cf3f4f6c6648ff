import asyncio
import base64
import contextlib
import re
import ssl
import time
import types
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any
from unicodedata import category

import pytest

from audiofork.asterisk import snapshots
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import ChannelHangup, Event, RequestReceived
from audiofork.asterisk.channels import MAX_VALUE_BYTES
from audiofork.asterisk.taps.base import LegOrder
from audiofork.asterisk.taps.choice import Choice
from audiofork.asterisk.taps.connect import DIAL_WAY
from audiofork.asterisk.taps.ways import Connects, Way, Wish
from audiofork.asterisk.versions import Version
from audiofork.config import AsteriskConfig, SecurityConfig
from audiofork.doors.ami_events import AmiEvents
from audiofork.doors.user_event import UserEvents
from audiofork.errors import AmiActionFailed, AmiError, AriError, AriUnavailable
from audiofork.forks import chronicle, view
from audiofork.forks import fork as fork_module
from audiofork.forks.counters import Counters
from audiofork.forks.events import DomainEvent, Events
from audiofork.forks.journal import Entry
from audiofork.forks.leaving import LEAVE_TIMEOUT_S
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.profiles import Profiles
from audiofork.forks.registry import Forks
from audiofork.forks.requests import parse_request
from audiofork.link.messages import (
    Adopt,
    Command,
    Direction,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeldFork,
    LegAttached,
    LegLost,
    LegPart,
    RelayAway,
    RelayLost,
    ServerCommand,
    SinkOpened,
    StatsTaken,
    Streaming,
    TakeLevels,
    TakeStats,
)

END = "\r\n\r\n"

Headers = list[tuple[str, str]]


def raw_block(*lines: str) -> bytes:
    """Return one message as it appears on the wire."""
    return ("\r\n".join(lines) + END).encode()


def block(*lines: str) -> bytes:
    """Return one message; an event is completed by the headers that Asterisk always writes."""
    event = lines[0].removeprefix("Event: ")
    if event == "UserEvent":
        names = [line.partition(":")[0] for line in lines]
        begin = names.index("UserEvent") if "UserEvent" in names else len(lines)
        if not set(names[:begin]) & set(snapshots.CHANNEL):
            return raw_block(*lines)
        snapshot = _completed(lines[1:begin], snapshots.CHANNEL)
        return raw_block(lines[0], *snapshot, *lines[begin:])
    return raw_block(lines[0], *_completed(lines[1:], snapshots.ORDERS.get(event, ())))


def _completed(lines: Sequence[str], order: tuple[str, ...]) -> list[str]:
    """Return lines in the order of headers, with missing headers added, then all other lines."""
    given = {line.partition(":")[0]: line for line in lines if line.partition(":")[0] in order}
    others = [line for line in lines if line not in given.values()]
    return [*(given.get(name, f"{name}: ") for name in order), *others]


def response(action: dict[str, str], *lines: str, ok: bool = True) -> bytes:
    return block(f"Response: {'Success' if ok else 'Error'}", f"ActionID: {action['id']}", *lines)


class Connection:
    """One connection that a FakeAsterisk has accepted."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.closed = asyncio.Event()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def drop(self) -> None:
        self._writer.close()


class FakeAsterisk:
    """An AMI server for the faults that a real one does not show on demand.

    Attributes:
        answers: The answer to an action, by its name: a function of the action, which returns None
            for no answer. Other actions succeed.
        actions: Each action in the order of arrival, names of headers in lower case, and `id`
            for the ActionID ("" if there is none).
        raw: The same as text.
        connections: Each connection, the newest last.
        banner: The greeting for each client.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Callable[[dict[str, str]], bytes | None]] = {
            "CoreSettings": lambda action: response(action, "AsteriskVersion: 22.5.2"),
        }
        self.actions: list[dict[str, str]] = []
        self.raw: list[str] = []
        self.connections: list[Connection] = []
        self.banner = b"Asterisk Call Manager/11.0.0\r\n"
        self._tls = tls
        self._arrived: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
            for connection in self.connections:
                connection.drop()
                await connection.closed.wait()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        self.connections.append(connection)
        writer.write(self.banner)
        try:
            while True:
                self._take(connection, (await reader.readuntil(END.encode())).decode())
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            connection.closed.set()

    def _take(self, connection: Connection, text: str) -> None:
        pairs = [line.split(": ", 1) for line in text.removesuffix(END).split("\r\n")]
        action = {name.lower(): value for name, value in pairs}
        action["id"] = action.get("actionid", "")
        self.raw.append(text)
        self.actions.append(action)
        self._arrived.put_nowait(action)
        answer = self.answers.get(action["action"], response)(action)
        if answer is not None:
            connection.send(answer)

    async def received(self, name: str) -> dict[str, str]:
        """Return the next action of that name; skip those before it."""
        async with asyncio.timeout(5):
            while (action := await self._arrived.get())["action"] != name:
                pass
        return action

    def count(self, name: str) -> int:
        return sum(action["action"] == name for action in self.actions)

    def send(self, data: bytes) -> None:
        self.connections[-1].send(data)


class AmiRun:
    """A running Ami, with the events that it has passed on."""

    def __init__(self, config: AsteriskConfig) -> None:
        self.events: list[Event] = []
        self.on_up: Callable[[], Awaitable[None]] | None = None
        self.on_event: Callable[[Event], None] = self.events.append
        self._up: asyncio.Queue[None] = asyncio.Queue()
        self.ami = Ami(config, lambda event: self.on_event(event), self._note_up)
        self.task = asyncio.create_task(self.ami.run())

    async def _note_up(self) -> None:
        self._up.put_nowait(None)
        if self.on_up is not None:
            await self.on_up()

    async def up(self) -> None:
        """Wait for the next login."""
        async with asyncio.timeout(5):
            await self._up.get()

    async def settled(self) -> list[Event]:
        """Return the events, once everything that the server has sent so far was handled."""
        await self.ami.action("Ping", [])
        return self.events

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def asterisk() -> AsyncIterator[FakeAsterisk]:
    server = FakeAsterisk()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def run_ami(asterisk: FakeAsterisk) -> AsyncIterator[Callable[..., AmiRun]]:
    """Start connections to the fake Asterisk; after the test nothing may be left of them."""
    runs: list[AmiRun] = []

    def start(**config: object) -> AmiRun:
        options = {"port": asterisk.port, "username": "audiofork", "secret": "hunter2"}
        runs.append(AmiRun(AsteriskConfig(**{**options, **config})))  # type: ignore[arg-type]
        return runs[-1]

    yield start
    for run in runs:
        if run.task.done() and not run.task.cancelled():
            run.task.result()  # it never ends by itself: raise what ended it
        await run.cancel()
    async with asyncio.timeout(5):
        for connection in asterisk.connections:
            await connection.closed.wait()


@pytest.fixture
async def link(run_ami: Callable[..., AmiRun]) -> AmiRun:
    """A link that is up."""
    run = run_ami()
    await run.up()
    return run


# --- For what sits above the link ----------------------------------------------------------------


class FakeAmi:
    """Replaces `Ami`: answers from a table of channels, and keeps what it was told.

    Attributes:
        channels: Name by uniqueid of the channels that Asterisk has.
        faults: The exception that an action raises, by its name.
        gates: The event that an action waits for, by its name.
        asterisk_started: Identifies the run of Asterisk.
        version: That of Asterisk.
        bridged: Uniqueids of the channels that are in a bridge, for Status.
        values: What other variables and functions of any channel hold; `values_of`: those of one,
            by its uniqueid.
        actions: Each action that was awaited, its headers and its ActionID.
        posts: Each action that was not, with its headers.
        events: Each event that was raised, with its headers.
        variables: Channel variables by uniqueid or name, whichever was used.
        told: Names of events and values of AUDIOFORK_STATUS in their order.
        others_open: How many further connections there are.
        is_up, rtt_s, connects: As of `Ami`.
    """

    def __init__(self) -> None:
        self.channels: dict[str, str] = {}
        self.faults: dict[str, AmiError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.bridged: set[str] = set()
        self.version = Version.parse("22.5.2")
        self.values: dict[str, str] = {}
        self.values_of: dict[str, dict[str, str]] = {}
        self.posts: list[tuple[str, dict[str, str]]] = []
        self.actions: list[tuple[str, Headers, str]] = []
        self.events: list[tuple[str, dict[str, str]]] = []
        self.variables: dict[str, dict[str, str]] = {}
        self.told: list[str] = []
        self.asterisk_started = "today"
        self.others_open = 0
        self.is_up, self.rtt_s, self.connects = True, 0.0, 1

    async def action(self, name: str, headers: Headers, *, action_id: str = "") -> dict[str, str]:
        await self._take(name, headers, action_id)
        return {"response": "Success", "value": self._value(name, dict(headers))}

    async def list(self, name: str, headers: Headers = ()) -> list[dict[str, str]]:  # type: ignore[assignment]
        bridged = set(self.bridged)  # as it was when Asterisk was asked
        await self._take(name, headers)
        if name == "CoreShowChannels":
            return [{"uniqueid": one, "channel": name} for one, name in self.channels.items()]
        assert name == "Status"
        uniqueid = self._find(dict(headers)["Channel"], name)
        status = {"event": "Status", "channel": self.channels[uniqueid], "bridgeid": ""}
        return [{**status, "bridgeid": "a-bridge"} if uniqueid in bridged else status]

    async def _take(self, name: str, headers: Headers, action_id: str = "") -> None:
        _check(headers)
        self.actions.append((name, list(headers), action_id))
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.faults:
            raise self.faults[name]

    def post(self, name: str, headers: Headers, on_error: Callable[[AmiError], None]) -> None:
        _check(headers)
        self.posts.append((name, dict(headers)))
        try:
            if name in self.faults:
                raise self.faults[name]
            self._value(name, dict(headers))
        except AmiError as exc:
            on_error(exc)

    @contextlib.asynccontextmanager
    async def another(self) -> AsyncIterator["FakeAmi"]:
        self.others_open += 1
        try:
            yield self
        finally:
            self.others_open -= 1

    def raise_event(self, name: str, headers: Headers) -> None:
        _check(headers)
        assert len(dict(headers)) == len(headers)
        self.events.append((name, dict(headers)))
        self.told.append(name)

    def _value(self, name: str, fields: dict[str, str]) -> str:
        """Do what the action asks; return the value of a Getvar."""
        if name not in ("Getvar", "Setvar"):
            return ""
        variable, uniqueid = fields["Variable"], self._find(fields["Channel"], name)
        if safely := re.fullmatch(r"REPLACE\((.*),\\\\r,\\n\)", variable):
            variable = safely[1]
        if at_once := re.fullmatch(r"REPLACE\((BASE64_ENCODE\(.*),~\)", variable):
            return self._encoded(uniqueid, at_once[1])
        if name == "Getvar":
            own = {"CHANNEL(name)": self.channels[uniqueid], "CHANNEL(uniqueid)": uniqueid}
            return {**self.values, **self.values_of.get(uniqueid, {}), **own}.get(variable, "")
        self.variables.setdefault(fields["Channel"], {})[variable] = fields["Value"]
        if variable == "AUDIOFORK_STATUS":
            self.told.append(fields["Value"])
        return ""

    def _encoded(self, uniqueid: str, wanted: str) -> str:
        """Return what Asterisk makes of the expressions that `Channels.at_once` asks for."""
        values = {**self.values, **self.values_of.get(uniqueid, {})}
        texts = [
            values.get(one.removeprefix("${REPLACE(").removesuffix(r",:,\\xff)}"), "").encode()
            for one in re.findall(r"BASE64_ENCODE\(\.(.*?)~\^\)(?=\}_\$\{BASE64|$)", wanted)
        ]
        whole = "_".join(
            base64.b64encode(b"." + text.replace(b":", b"\xff") + b"~^").decode() for text in texts
        )
        return whole[:MAX_VALUE_BYTES]

    def _find(self, key: str, action: str) -> str:
        for uniqueid, name in self.channels.items():
            if key in (uniqueid, name):
                return uniqueid
        raise AmiActionFailed(action, "No such channel")


def _check(headers: Headers) -> None:
    """Fail on headers that the real connection refuses."""
    for name, value in headers:
        assert not {category(character) for character in name + value} & {"Cc", "Cs", "Zl", "Zp"}
        assert len(f"{name}: {value}".encode()) < 1024


class FakeAri:
    """Replaces `Ari`: lets channels enter when the test says so, and keeps its requests.

    Attributes:
        ready: Whether the link is up; `status`: what there is to say of it.
        settle_timeouts: How long each caller of `settled` was ready to wait.
        first_attempt: Set when the first attempt to connect has come to an end.
        posts: Each path with its query; `deleted`: each path.
        faults: What a request raises, by its kind: "snoop", "variable", "continue" or "delete".
        gates: A request waits for the event that stands here under its kind.
        starting_ids: The channels that somebody waits for.
    """

    def __init__(self) -> None:
        self.status = "no connection to ARI"
        self.settle_timeouts: list[float] = []
        self.first_attempt = asyncio.Event()
        self.first_attempt.set()
        self.posts: list[tuple[str, dict[str, str]]] = []
        self.deleted: list[str] = []
        self.faults: dict[str, AriError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self._up = asyncio.Event()
        self._up.set()
        self._starting: dict[str, asyncio.Future[None]] = {}

    @property
    def ready(self) -> bool:
        return self._up.is_set()

    @ready.setter
    def ready(self, ready: bool) -> None:
        if ready:
            self._up.set()
        else:
            self._up.clear()
            for started in self._starting.values():
                started.set_exception(AriUnavailable("the connection to ARI was lost"))

    @property
    def starting_ids(self) -> list[str]:
        return list(self._starting)

    async def settled(self, timeout_s: float) -> None:
        self.settle_timeouts.append(timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.first_attempt.wait()

    async def wait_ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise AriUnavailable(self.status) from None

    @contextlib.contextmanager
    def starting(self, channel_id: str) -> Iterator[asyncio.Future[None]]:
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting[channel_id] = started
        try:
            yield started
        finally:
            del self._starting[channel_id]
            started.cancel()

    def enter(self, channel_id: str) -> None:
        """Let a channel enter the application."""
        self._starting[channel_id].set_result(None)

    async def post(self, path: str, /, **query: str) -> None:
        self.posts.append((path, query))
        kind = path.split("/")[3]
        if kind in self.gates:
            await self.gates[kind].wait()
        if kind in self.faults:
            raise self.faults[kind]

    async def delete(self, path: str, /) -> None:
        self.deleted.append(path)
        if "delete" in self.faults:
            raise self.faults["delete"]


class Clock:
    """The loop's time, which stands still until the test advances it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def settle(self) -> None:
        """Let all run that waits for nothing but its turn."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        await self.settle()
        self.now_s += seconds
        await self.settle()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


# --- For the registry of forks --------------------------------------------------------------------

NAME, UNIQUEID = "PJSIP/100-0000002a", "1700000000.1"
URL = "ws://example.org/a?token=secret"
ANY_URL = ("*://*",)
# What each server may ask for, as long as the configuration says nothing else.
COMMANDS = (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)
WAY = "chanspy/originate"
UNKNOWN_ID = "3f2a91c0-1111-4222-8333-444455556666"
START = {"channel": NAME, "wsserver": URL, "actionid": "7"}
LEG_PREFIX = "audiofork-"
WALL_CLOCK_AHEAD_S = 1_700_000_000.0


class FakeTap:
    """A tap whose legs exist only in the test.

    Attributes:
        orders: Each requested leg.
        fault: The exception that it raises.
        gate: The event that it waits for first.
    """

    name = "chanspy"

    def __init__(self) -> None:
        self.early_hangup_detail = ""
        self.orders: list[LegOrder] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:
        of_part = f"-{part}" if part in (LegPart.IN, LegPart.OUT) else ""
        return LEG_PREFIX + fork_id + of_part + (f"-{len(self.orders)}" if anew else "")

    async def start(self, leg: LegOrder) -> None:
        self.orders.append(leg)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    def owns(self, name: str, uniqueid: str) -> bool:
        raise NotImplementedError("the registry leaves that to Taps")

    @property
    def started(self) -> list[tuple[str, str]]:
        return [(leg.fork_id, leg.uniqueid) for leg in self.orders]

    @property
    def speaking(self) -> list[str]:
        return [leg.fork_id for leg in self.orders if leg.heard_by]

    @property
    def legs(self) -> list[str]:
        return [leg.leg_id for leg in self.orders]


class FakeTaps:
    """A choice between one tap and a refusal.

    Attributes:
        sample_rate: What forks get, and with which `note`.
        parts: What the legs of each fork bring, and whether that `keeps_time`.
        narrowband: Whether the site claims to have no wideband; `wide_in`: what of a call has it
            all the same, by the uniqueid.
        faults: What a choice raises, by the uniqueid.
        gate: Each choice waits for this event.
        asked: Each choice: the uniqueid and the rates that are wished for; `wishes`: all else.
        kept: The legs to keep, by each sweep.
        left: What a sweep shall hang up.
    """

    def __init__(self, tap: FakeTap) -> None:
        self._tap = tap
        self.sample_rate, self.note = 8000, ""
        self.parts: tuple[LegPart, ...] = (LegPart.PAIRS,)
        self.keeps_time = True
        self.narrowband = False
        self.wide_in: dict[str, str] = {}
        self.wishes: list[Wish] = []
        self.faults: dict[str, Exception] = {}
        self.gate: asyncio.Event | None = None
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.kept: list[set[str]] = []
        self.left: list[str] = []

    async def choose(self, uniqueid: str, wish: Wish, wished_rates: Sequence[int] = ()) -> Choice:
        self.asked.append((uniqueid, tuple(wished_rates)))
        self.wishes.append(wish)
        if self.gate is not None:
            await self.gate.wait()
        if uniqueid in self.faults:
            raise self.faults[uniqueid]
        return Choice(self._tap, self._way(), self.sample_rate, self.note)

    def _way(self) -> Way:
        parts = dict.fromkeys(Direction, self.parts)
        how = "as the test says"
        return Way(self._tap.name, how, Connects.ORIGINATE, parts, self.keeps_time, rules=())

    def made_before(self, held: HeldFork, direction: Direction) -> Choice | None:
        if held.way == DIAL_WAY.name and DIAL_WAY.parts.get(direction) == held.legs:
            return Choice(self._tap, DIAL_WAY, held.sample_rate)
        self.parts = held.legs
        return Choice(self._tap, self._way(), held.sample_rate) if held.way == WAY else None

    async def connecting(self, uniqueid: str, wished_rates: Sequence[int] = ()) -> Choice:
        self.asked.append((uniqueid, tuple(wished_rates)))
        return Choice(self._tap, DIAL_WAY, self.sample_rate, self.note)

    async def wide(self, uniqueid: str) -> str:
        return self.wide_in.get(uniqueid, "")

    def why_wide(self, wish: Wish, wide: str) -> str:
        return f"{wish} in a call with {wide}"

    def stray_legs(self, present: Mapping[str, str], keep: Iterable[str]) -> list[str]:
        self.kept.append(set(keep))
        return self.left

    def is_leg(self, name: str, uniqueid: str) -> bool:
        return uniqueid.startswith(LEG_PREFIX) or name.startswith("AudioSocket/us-")


class FakeJournal:
    """A journal without a file; the test sets whether it works."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.works = True

    def put(self, entry: Entry) -> None:
        self.entries[entry.fork_id] = entry

    def remove(self, fork_id: str) -> None:
        self.entries.pop(fork_id, None)


class Rig:
    """A registry between an Asterisk, a tap and a relay that the test controls.

    Attributes:
        events: What the registry has emitted; `counters` counts it.
        hub: Passes it on.
        held: What relay processes have kept of an earlier run.
        knows_held: Whether the relay knows that.
        legs_stay: Whether Asterisk keeps the legs of ended forks, as their channels have no media.
    """

    def __init__(self, clock: Clock, *, outlives_daemon: bool = False) -> None:
        self.clock = clock
        self.held: dict[str, HeldFork] = {}
        self.knows_held = True
        self.ami = FakeAmi()
        self.ami.channels = {UNIQUEID: NAME, "2.2": "PJSIP/200-0000002b"}
        self.tap = FakeTap()
        self.taps = FakeTaps(self.tap)
        self.sent: list[Command] = []  # but for TakeStats and `expected`
        self.expected: list[ExpectLeg] = []
        self.live: list[str] = []  # what the relay has
        self.spec_fault = ""  # why the relay ends a fork at once, if it does
        self.stats: dict[str, ForkStats] | None = {}  # its answer to TakeStats, if any
        self.legs_stay = False
        self.journal = FakeJournal()
        self.events: list[DomainEvent] = []
        self.commands = Commands({})
        self.profiles = Profiles({})
        self.counters = Counters()
        ami_events = AmiEvents(self.ami)  # type: ignore[arg-type]
        self.hub = hub = Events()
        for subscriber in (self.events.append, self.counters.on_event, ami_events.on_event):
            hub.subscribe(subscriber)
        security = SecurityConfig(allow_urls=ANY_URL)
        self.forks = Forks(
            *(self.ami, self.taps, security, self._send, hub.emit, self.journal),  # type: ignore[arg-type]
            commands=self.commands,
            profiles=self.profiles,
            held=lambda: self.held if self.knows_held else None,
            outlives_daemon=outlives_daemon,
            host_of=lambda fork_id: self.hosts.get(fork_id, ""),
        )
        self.hosts: dict[str, str] = {}
        self.user_events = UserEvents(self.forks.ask, ami_events)

    def _send(self, command: Command) -> None:
        if isinstance(command, TakeStats):
            if self.stats is not None:
                self.forks.on_report(StatsTaken(command.ticket, self.stats))
            return
        if isinstance(command, ExpectLeg):
            if not self.spec_fault:
                assert command.fork_id in self.live, "the relay does not know it"
            self.expected.append(command)
            return
        self.sent.append(command)
        if isinstance(command, Adopt):
            del self.held[command.fork_id]
            self.live.append(command.fork_id)
        elif isinstance(command, EndFork) and command.fork_id in self.held:
            del self.held[command.fork_id]
        elif isinstance(command, ForkSpec):
            self.live.append(command.fork_id)
            if self.spec_fault:
                self.live.remove(command.fork_id)
                end = ForkEnded(
                    command.fork_id, EndReason.SINK_REFUSED, self.spec_fault, ForkStats()
                )
                asyncio.get_running_loop().call_soon(self.forks.on_report, end)
        elif not isinstance(command, ExpectCheckLeg | TakeLevels):
            assert command.fork_id in self.live, "the relay does not know it"

    async def request(self, **fields: str) -> None:
        self.user_events.on_request(RequestReceived(fields))
        await self.clock.settle()

    async def start(self, **fields: str) -> str:
        """Start a fork; return its id."""
        before = len(self.sent)
        await self.request(**{**START, **fields})
        (spec,) = self.sent[before:]
        assert isinstance(spec, ForkSpec)
        return spec.fork_id

    def allow(self, **security: Any) -> None:
        self.forks.security = SecurityConfig(**{"allow_urls": ANY_URL, **security})

    async def ask(self, **fields: str) -> list[str]:
        """Execute a request, as doors that wait for the answer do."""
        return await self.forks.ask(parse_request(fields))

    async def attach(self, **fields: str) -> str:
        fork_id = await self.start(**fields)
        self.connect(fork_id, *self.taps.parts)
        self.forks.on_report(SinkOpened(fork_id))
        return fork_id

    async def stream(self, **fields: str) -> str:
        """Start a fork and let its audio flow; return its id."""
        fork_id = await self.attach(**fields)
        self.forks.on_report(Streaming(fork_id))
        return fork_id

    def connect(self, fork_id: str, *parts: LegPart) -> None:
        """Report that these legs have connected."""
        for part in parts:
            self.forks.on_report(LegAttached(fork_id, part))

    async def lose_leg(
        self, fork_id: str, frames_in: int = 50, part: LegPart = LegPart.PAIRS
    ) -> None:
        self.forks.on_report(LegLost(fork_id, part, frames_in))
        await self.clock.settle()

    async def no_relay(self, *fork_ids: str) -> None:
        """Report that the last process that could relay these forks has died."""
        self.forks.on_report(RelayAway(fork_ids))
        await self.clock.settle()

    async def lose_relay(self, *fork_ids: str, away_s: float = 0.0) -> None:
        """Report that the process of these forks has died; Asterisk does what it is told."""
        for fork_id in fork_ids:
            self.live.remove(fork_id)
        before = len(self.hung_up)
        self.forks.on_report(RelayLost(fork_ids, away_s))
        if not self.legs_stay:
            for leg_id in self.hung_up[before:]:
                self.forks.on_event(ChannelHangup(leg_id))
        await self.clock.settle()

    async def ended(
        self, fork_id: str, reason: EndReason, detail: str = "", stats: ForkStats | None = None
    ) -> None:
        """Report the end of a fork, and of the legs that the relay has hung up with it."""
        self.live.remove(fork_id)
        self.forks.on_report(ForkEnded(fork_id, reason, detail, stats or ForkStats()))
        if not self.legs_stay:
            self.legs_gone(fork_id)
        await self.clock.settle()

    def legs_gone(self, fork_id: str) -> None:
        """Let Asterisk report that the legs of a fork are gone."""
        for order in self.tap.orders:
            if order.fork_id == fork_id:
                self.forks.on_event(ChannelHangup(order.leg_id))

    async def obey(self) -> EndFork:
        """Execute the last command, which must be to end a fork."""
        command = self.sent[-1]
        assert isinstance(command, EndFork)
        await self.ended(command.fork_id, command.reason, command.detail)
        return command

    async def stop(self, *, keep: bool = False) -> None:
        """Stop as the daemon does, up to the connection to Asterisk."""
        await self.forks.shut_down(keep=keep)
        await self.user_events.finish()

    async def close(self) -> None:
        """Cancel what is still in progress, as the daemon does."""
        await self.user_events.close()
        await self.forks.close()

    async def shut_down(self) -> None:
        """Shut down the registry, which has no forks and so must not wait."""
        shutdown = asyncio.create_task(self.stop())
        await self.clock.settle()
        done = shutdown.done()
        shutdown.cancel()
        assert done, "waits for forks that are not there"

    @property
    def hung_up(self) -> list[str]:
        """What Asterisk was told to hang up, without waiting for it."""
        return [headers["Channel"] for name, headers in self.ami.posts if name == "Hangup"]

    @property
    def ends(self) -> list[EndFork]:
        return [command for command in self.sent if isinstance(command, EndFork)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a process, while the loop's time goes on."""
        deadline = time.monotonic() + 10
        await self.clock.settle()
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)  # noqa: ASYNC251
            await self.clock.advance(0.01)

    @property
    def spec(self) -> ForkSpec:
        """The last one."""
        return [command for command in self.sent if isinstance(command, ForkSpec)][-1]

    @property
    def last_event(self) -> tuple[str, dict[str, str]]:
        return self.ami.events[-1]

    @property
    def variables(self) -> dict[str, str]:
        return self.ami.variables[UNIQUEID]


@pytest.fixture
async def rig(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Rig]:
    """The rig; after the test nothing may be left in the registry, no task and no timer."""
    feigned = types.SimpleNamespace(monotonic=clock, time=lambda: WALL_CLOCK_AHEAD_S + clock())
    for module in (fork_module, chronicle, view):
        monkeypatch.setattr(module, "time", feigned)
    rig = Rig(clock)
    yield rig
    try:
        # What a task raises, also by an assert of FakeAmi, ends up in the log.
        assert [record for record in caplog.get_records("call") if record.exc_info] == []
        await check_nothing_is_left(rig)
    finally:
        closing = asyncio.create_task(rig.close())
        await rig.until(closing.done)


async def check_nothing_is_left(rig: Rig) -> None:
    for fork_id in list(rig.live):
        await rig.ended(fork_id, EndReason.STOPPED)
    await rig.clock.settle()
    assert len(rig.forks) == 0
    await rig.clock.advance(LEAVE_TIMEOUT_S)  # legs that nobody told of are looked for then
    assert not rig.forks._ending.tasks
    assert not rig.user_events._tasks
    assert not rig.forks._table.uniqueids
    assert not rig.forks._statistics
    assert not rig.forks._legs.leaving.ids
    assert not rig.journal.entries
    assert asyncio.all_tasks() == {asyncio.current_task()}
    sent, told = list(rig.sent), list(rig.ami.told)
    await rig.clock.advance(60)
    assert (rig.sent, rig.ami.told) == (sent, told)
    await rig.shut_down()
