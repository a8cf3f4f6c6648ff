import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from unicodedata import category

import pytest

from audiofork.config import AsteriskConfig
from audiofork.control.ami import Ami, Event
from audiofork.errors import AmiActionFailed, AmiError

END = "\r\n\r\n"

Headers = list[tuple[str, str]]


def block(*lines: str) -> bytes:
    """Return one message as it stands on the wire."""
    return ("\r\n".join(lines) + END).encode()


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
        answers: What an action is answered with, by its name: a function of the action, which
            returns None for no answer. Other actions succeed.
        actions: Each action in the order of arrival, names of headers in lower case, and `id`
            for the ActionID ("" if there is none).
        raw: The same as text.
        connections: Each connection, the newest last.
        banner: What a client is greeted with.
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
        """Return the next action of that name; those before it are skipped."""
        async with asyncio.timeout(5):
            while (action := await self._arrived.get())["action"] != name:
                pass
        return action

    def count(self, name: str) -> int:
        return sum(action["action"] == name for action in self.actions)

    def send(self, data: bytes) -> None:
        self.connections[-1].send(data)


class AmiRun:
    """An Ami that runs, with what came out of it."""

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
        """Return the events, once all that the server has sent so far is through."""
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
    """Start links to the fake Asterisk; after the test nothing may be left of them."""
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
    """Stands in for `Ami`: answers from a table of channels and keeps what it was told.

    Attributes:
        channels: Name by uniqueid of the channels that Asterisk has.
        faults: What an action raises, by its name.
        gates: An action waits for the event that stands here under its name.
        asterisk_started: Names the run of Asterisk.
        bridged: Uniqueids of the channels that are in a bridge, for Status.
        values: What other variables and functions of any channel hold.
        actions: Each action that was awaited, its headers and its ActionID.
        events: Each event that was raised, with its headers.
        variables: Channel variables by uniqueid or name, whichever was used.
        told: Names of events and values of AUDIOFORK_STATUS in their order.
    """

    def __init__(self) -> None:
        self.channels: dict[str, str] = {}
        self.faults: dict[str, AmiError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.bridged: set[str] = set()
        self.values: dict[str, str] = {}
        self.actions: list[tuple[str, Headers, str]] = []
        self.events: list[tuple[str, dict[str, str]]] = []
        self.variables: dict[str, dict[str, str]] = {}
        self.told: list[str] = []
        self.asterisk_started = "today"

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
        try:
            if name in self.faults:
                raise self.faults[name]
            self._value(name, dict(headers))
        except AmiError as exc:
            on_error(exc)

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
        if name == "Getvar":
            own = {"CHANNEL(name)": self.channels[uniqueid], "CHANNEL(uniqueid)": uniqueid}
            return {**self.values, **own}.get(variable, "")
        self.variables.setdefault(fields["Channel"], {})[variable] = fields["Value"]
        if variable == "AUDIOFORK_STATUS":
            self.told.append(fields["Value"])
        return ""

    def _find(self, key: str, action: str) -> str:
        for uniqueid, name in self.channels.items():
            if key in (uniqueid, name):
                return uniqueid
        raise AmiActionFailed(action, "No such channel")


def _check(headers: Headers) -> None:
    """Fail on what the real link does not take."""
    for name, value in headers:
        assert not {category(character) for character in name + value} & {"Cc", "Cs", "Zl", "Zp"}
        assert len(f"{name}: {value}".encode()) < 1024


class Clock:
    """The loop's time, which stands still until it is told to go on."""

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
