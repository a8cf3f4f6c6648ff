"""The Asterisks of the benchmark of a cluster: each answers AMI, has calls, and connects legs.

A leg is a real connection to a relay host, which carries no audio. What the control plane asks is
answered as Asterisk does, with as many messages.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import cast

from audiofork.asterisk.snapshots import CHANNEL
from audiofork.audiosocket import HANGUP_MESSAGE, Kind, encode

SECRET = "bench-secret"
URL = "ws://127.0.0.1:9/"  # nobody connects to it
VERSION = "22.5.2"
_END = b"\r\n\r\n"
_NO_SUCH_CHANNEL = "No such channel"
# What `Channels.at_once` finds at the end of an answer, and around each value.
_ASKED, _ANSWER_END = "BASE64_ENCODE(", "Ln5e"
_VALUE = base64.b64encode(b".100~^").decode()

Action = dict[str, str]


class StubAsterisk:
    """One Asterisk with calls that last, each of which gets a fork when `begin` asks for it.

    Args:
        number: Distinguishes it from the others.
        calls: How many calls it has.
        at_once: How many starts may be under way.
        url: The server of the forks.

    Attributes:
        name: What the cluster calls it.
        port: Of AMI; once started.
        asked, streaming: When a start was asked for, and when audio was told to flow, by the
            uniqueid of the call; as time.monotonic().
        taken_up: When a controller that has taken the lead told of the fork, likewise.
        resumed: When a fork was told to go on after a loss, likewise.
        failed: What was told of forks that have failed.
        logged_in: When each controller has logged in.
    """

    def __init__(self, number: int, calls: int, at_once: int, url: str = URL) -> None:
        self.name = f"pbx{number}"
        self.port = 0
        self.calls = {f"17000{number:05d}.{one}": f"PJSIP/{one}-{one:08x}" for one in range(calls)}
        self.legs: dict[str, Leg] = {}
        self.asked: dict[str, float] = {}
        self.streaming: dict[str, float] = {}
        self.taken_up: dict[str, float] = {}
        self.resumed: dict[str, float] = {}
        self.failed: list[str] = []
        self.logged_in: list[float] = []
        self._variables: dict[str, str] = {}  # the global ones
        self._at_once = at_once
        self._url = url
        self._waiting: deque[str] = deque()
        self._sessions: set[_Session] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen for controllers."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Drop all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connecting:
            task.cancel()
        for session in self._sessions:
            session.drop()
        for leg in self.legs.values():
            leg.drop()

    # --- What the benchmark asks for ---

    def begin(self, count: int) -> list[str]:
        """Ask for a fork of so many more calls, some at a time; return their uniqueids."""
        new = [one for one in self.calls if one not in self.asked and one not in self._waiting]
        self._waiting.extend(new[:count])
        self._go_on()
        return new[:count]

    def _go_on(self) -> None:
        under_way = len(self.asked) - len(self.streaming) - len(self.failed)
        while self._waiting and under_way < self._at_once:
            uniqueid = self._waiting.popleft()
            self.asked[uniqueid] = time.monotonic()
            # As the shipped dialplan does it.
            body = f"Command: StartAudioFork\r\nWsServer: {self._url}\r\nOptions: D(in)"
            snapshot = _snapshot(self.calls[uniqueid], uniqueid)
            self._raise(f"Event: UserEvent\r\n{snapshot}\r\nUserEvent: AudioFork\r\n{body}")
            under_way += 1

    def end(self, uniqueid: str) -> None:
        """Hang up a call: its leg ends with it."""
        snapshot = _snapshot(self.calls.pop(uniqueid), uniqueid)
        self._raise(f"Event: HangupRequest\r\n{snapshot}\r\nCause: 16")
        for leg in [leg for leg in self.legs.values() if leg.of == uniqueid]:
            leg.drop()
        self._raise(f"Event: Hangup\r\n{snapshot}\r\nCause: 16")

    def legs_at(self) -> Counter[int]:
        """Return how many legs are connected to each port."""
        return Counter(leg.port for leg in self.legs.values())

    def calls_at(self, port: int) -> list[str]:
        """Return the uniqueids of the calls whose legs are connected to a port."""
        return [leg.of for leg in self.legs.values() if leg.port == port]

    # --- From controllers ---

    def add(self, session: _Session) -> None:
        """Keep a connection of a controller."""
        self._sessions.add(session)

    def remove(self, session: _Session) -> None:
        """Forget it."""
        self._sessions.discard(session)

    def answer(self, action: Action) -> str:
        """Carry out an action; return the answer."""
        known: dict[str, Callable[[Action], str]] = {
            "Login": self._log_in,
            "CoreSettings": lambda action: _success(action, f"AsteriskVersion: {VERSION}"),
            "CoreStatus": lambda action: _success(
                action, "CoreStartupDate: 2026-01-01\r\nCoreStartupTime: 00:00:00"
            ),
            "CoreShowChannels": self._show_channels,
            "Getvar": self._get,
            "Setvar": self._set,
            "Originate": self._originate,
            "Hangup": self._hang_up,
            "UserEvent": self._take_event,
        }
        carry_out = known.get(action["action"], _success)
        return carry_out(action)

    def _log_in(self, action: Action) -> str:
        if action.get("secret") != SECRET:
            return _error(action, "Authentication failed")
        self.logged_in.append(time.monotonic())
        return _success(action, "Message: Authentication accepted")

    def _show_channels(self, action: Action) -> str:
        head = f"ActionID: {action['actionid']}"
        channels = [*self.calls.items(), *((leg_id, leg.name) for leg_id, leg in self.legs.items())]
        events = [
            f"Event: CoreShowChannel\r\n{head}\r\n{_snapshot(name, uniqueid)}\r\n"
            "Application: Dial\r\nDuration: 00:00:10\r\nBridgeId: \r\n\r\n"
            for uniqueid, name in channels
        ]
        begin = _success(action, "EventList: start\r\nMessage: Channels will follow")
        end = f"Event: CoreShowChannelsComplete\r\n{head}\r\nEventList: Complete\r\n"
        return f"{begin}{''.join(events)}{end}ListItems: {len(events)}\r\n\r\n"

    def _get(self, action: Action) -> str:
        channel, asked = action.get("channel", ""), action["variable"]
        if not channel:
            return _success(action, f"Variable: {asked}\r\nValue: {self._variables.get(asked, '')}")
        if channel not in self.calls:
            return _error(action, _NO_SUCH_CHANNEL)
        if "CHANNEL(name)" in asked:
            value = self.calls[channel]
        elif _ASKED in asked:
            value = "_".join([_VALUE] * (asked.count(_ASKED) - 1) + [_ANSWER_END])
        else:
            value = channel
        return _success(action, f"Variable: {asked}\r\nValue: {value}")

    def _set(self, action: Action) -> str:
        if "channel" not in action:  # those of channels are never asked for
            self._variables[action["variable"]] = action.get("value", "")
        elif action["channel"] not in self.calls:
            return _error(action, _NO_SUCH_CHANNEL)
        return _success(action)

    def _originate(self, action: Action) -> str:
        task = asyncio.create_task(self._connect(action))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return _success(action, "Message: Originate successfully queued")

    async def _connect(self, action: Action) -> None:
        _, address, presents, _ = action["channel"].split("/")
        leg_id, of = action["channelid"], action["data"].partition(",")[0]
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        response, reason = "Success", 4
        try:
            await loop.create_connection(
                lambda: Leg(self, leg_id, of, int(port), uuid.UUID(presents)), host, int(port)
            )
        except OSError:
            response, reason = "Failure", 0
        self._raise(
            f"Event: OriginateResponse\r\nActionID: {action['actionid']}\r\n"
            f"Response: {response}\r\nChannel: {action['channel']}\r\n"
            f"Reason: {reason}\r\nUniqueid: {leg_id}\r\n"
            "CallerIDNum: <unknown>\r\nCallerIDName: <unknown>"
        )

    def _hang_up(self, action: Action) -> str:
        leg = self.legs.get(action["channel"])
        if leg is None:
            return _error(action, _NO_SUCH_CHANNEL)
        leg.drop()
        return _success(action)

    def _take_event(self, action: Action) -> str:
        name, uniqueid, now = action["userevent"], action.get("uniqueid", ""), time.monotonic()
        if name == "AudioForkStarted":
            if "takenup" in action:
                self.taken_up[uniqueid] = now
            self.streaming.setdefault(uniqueid, now)
            self._go_on()
        elif name == "AudioForkResumed":
            self.resumed[uniqueid] = now
        elif name in ("AudioForkFailed", "AudioForkStopped"):
            self.failed.append(f"{name} {uniqueid}: {action.get('reason')} {action.get('detail')}")
            self._go_on()
        return _success(action)

    # --- From legs ---

    def on_leg(self, leg: Leg) -> None:
        """Keep a leg that is connected."""
        self.legs[leg.id] = leg

    def on_leg_gone(self, leg: Leg) -> None:
        """Tell that the channel of a leg has ended."""
        del self.legs[leg.id]
        self._raise(f"Event: Hangup\r\n{_snapshot(leg.name, leg.id)}\r\nCause: 16")

    def _raise(self, event: str) -> None:
        for session in self._sessions:
            session.send(f"{event}\r\n\r\n")


def _snapshot(name: str, uniqueid: str) -> str:
    """Return what Asterisk tells of a channel in each of its events."""
    values = {"Channel": name, "ChannelState": "6", "ChannelStateDesc": "Up", "Uniqueid": uniqueid}
    values |= {"CallerIDNum": "100", "Language": "en", "Context": "default", "Priority": "3"}
    return "\r\n".join(f"{one}: {values.get(one, '')}" for one in CHANNEL)


def _success(action: Action, more: str = "") -> str:
    return _response("Success", action, more)


def _error(action: Action, why: str) -> str:
    return _response("Error", action, f"Message: {why}")


def _response(how: str, action: Action, more: str) -> str:
    lines = [f"Response: {how}"]
    if "actionid" in action:
        lines.append(f"ActionID: {action['actionid']}")
    return "\r\n".join([*lines, *([more] if more else [])]) + "\r\n\r\n"


class _Session(asyncio.Protocol):
    """One AMI connection."""

    def __init__(self, asterisk: StubAsterisk) -> None:
        self._asterisk = asterisk
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"Asterisk Call Manager/11.0.0\r\n")
        self._asterisk.add(self)

    def data_received(self, chunk: bytes) -> None:
        *blocks, self._rest = (self._rest + chunk).split(_END)
        answers = [self._asterisk.answer(_parse(block)) for block in blocks]
        self._transport.write("".join(answers).encode())

    def send(self, text: str) -> None:
        """Send an event."""
        self._transport.write(text.encode())

    def drop(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._asterisk.remove(self)


def _parse(block: bytes) -> Action:
    lines: Iterable[tuple[str, str, str]] = (
        line.partition(": ") for line in block.decode().split("\r\n")
    )
    return {name.lower(): value for name, _, value in lines}


class Leg(asyncio.Protocol):
    """A leg's channel, and its connection to a relay host.

    Attributes:
        id: The uniqueid of its channel.
        of: That of the call.
        name: Of its channel.
    """

    def __init__(
        self, asterisk: StubAsterisk, leg_id: str, of: str, port: int, presents: uuid.UUID
    ) -> None:
        self._asterisk = asterisk
        self._presents = presents
        self.id = leg_id
        self.of = of
        self.port = port
        self.name = f"AudioSocket/127.0.0.1:{port}-{presents.hex[:8]}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(encode(Kind.UUID, self._presents.bytes))
        self._asterisk.on_leg(self)

    def data_received(self, chunk: bytes) -> None:
        if chunk == HANGUP_MESSAGE:
            self._transport.close()

    def send(self, message: bytes) -> None:
        """Send a message of AudioSocket."""
        self._transport.write(message)

    def drop(self) -> None:
        """End it."""
        self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._asterisk.on_leg_gone(self)
