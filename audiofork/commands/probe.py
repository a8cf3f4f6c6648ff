"""Legs for the command `check`: requests them from Asterisk, and keeps their audio."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import ChannelHangup, Event, KeyPressed, OriginateFailed
from audiofork.asterisk.taps.base import LEG_PREFIX, LegOrder, Tap
from audiofork.asterisk.taps.chanspy import originate_headers
from audiofork.asterisk.taps.ways import Connects
from audiofork.audiosocket import (
    FRAME_BYTES,
    HANGUP_MESSAGE,
    PTIME_MS,
    SAMPLE_RATES,
    Decoder,
    Kind,
    encode,
    frame_bytes,
)
from audiofork.config import Address, AriConfig
from audiofork.errors import AmiActionFailed, AudioSocketProtocolError
from audiofork.link.messages import LegPart

if TYPE_CHECKING:
    from audiofork.asterisk.ari import Ari
    from audiofork.asterisk.taps.snoop import SnoopTap

TONE = 4321  # a sample value that differs from silence and from its own bytes swapped
RESAMPLED_TONE = range(TONE - 43, TONE + 44)  # 1 %; after the first frame it is only 1 or 2 off
LEG_TIMEOUT_S = 6.0  # the Originate's own limit is 5 s
EVENT_TIMEOUT_S = 2.0
OVERTAKEN_S = 0.5  # how much earlier an event on another connection may arrive
READY_TIMEOUT_S = 4.0  # of `Ari` it is 3 s
_TONE_FRAME = encode(Kind.SLIN, TONE.to_bytes(2, "little") * (FRAME_BYTES // 2))


class ProbeLeg:
    """One leg that Asterisk has connected.

    Attributes:
        frames: The audio, each frame with the time of its arrival (loop time).
        closed: Whether Asterisk, or we, ended it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.frames: list[tuple[float, bytes]] = []
        self.closed = False
        self._transport = transport
        self._changed = asyncio.Event()

    def on_audio(self, frame: bytes) -> None:
        self.frames.append((asyncio.get_running_loop().time(), frame))
        self._changed.set()

    def on_closed(self) -> None:
        self.closed = True
        self._changed.set()

    def send_tone(self) -> None:
        """Send one frame in which every sample is TONE."""
        if not self.closed:
            self._transport.write(_TONE_FRAME)

    async def talk(self) -> None:
        """Send the tone, 50 frames a second, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self.send_tone()
            due += PTIME_MS / 1000
            await asyncio.sleep(due - loop.time())

    async def wait_frames(self, count: int, timeout_s: float) -> None:
        """Wait until `count` frames have come, the leg is closed, or `timeout_s` has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(self.frames) < count and not self.closed:
                    self._changed.clear()
                    await self._changed.wait()

    def frames_per_second(self) -> float:
        """Return the frames per second so far; at least two frames must have come."""
        return (len(self.frames) - 1) / (self.frames[-1][0] - self.frames[0][0])

    def has_tone_in_left_alone(self) -> bool:
        """Return whether the tone is in the left channel of the frames and not in the right one."""
        samples = self._samples()
        return TONE in samples[::2] and not any(samples[1::2])

    def is_tone(self, sample_rate: int) -> bool:
        """Return whether these are mono frames of that rate, and most of them are the tone."""
        samples = self._samples()
        is_mono = all(len(frame) == frame_bytes(sample_rate) for _, frame in self.frames)
        return is_mono and sum(sample in RESAMPLED_TONE for sample in samples) > len(samples) / 2

    def _samples(self) -> array.array[int]:
        samples = array.array("h", b"".join(frame for _, frame in self.frames))
        if sys.byteorder == "big":
            samples.byteswap()
        return samples

    def hang_up(self) -> None:
        if not self.closed:
            self._transport.write(HANGUP_MESSAGE)
        self._transport.close()


class Probe:
    """Accepts the expected legs, and closes every other connection; owned by the check."""

    def __init__(self) -> None:
        self._expected: dict[str, asyncio.Future[ProbeLeg]] = {}
        self._transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listen: Address) -> Address:
        """Listen; return the address. The kernel chooses the port if that of `listen` is 0.

        Raises:
            OSError: The address cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), listen.host, listen.port)
        return Address(listen.host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and hang up every leg that is still connected.

        Older versions of Asterisk do not end a silent leg just because its connection ends.
        """
        if self._server is None:
            return
        self._server.close()
        for transport in list(self._transports):
            if not transport.is_closing():
                transport.write(HANGUP_MESSAGE)
            transport.close()
        await self._server.wait_closed()

    def expect(self, leg_uuid: str) -> asyncio.Future[ProbeLeg]:
        """Return a future for the leg that presents this UUID."""
        future: asyncio.Future[ProbeLeg] = asyncio.get_running_loop().create_future()
        self._expected[leg_uuid] = future
        return future

    def take(self, leg_uuid: str, leg: ProbeLeg) -> bool:
        """Deliver a leg, if it is expected."""
        future = self._expected.pop(leg_uuid, None)
        if future is None or future.done():
            return False
        future.set_result(leg)
        return True

    def add(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)

    def remove(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)


class _Connection(asyncio.Protocol):
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._decoder = Decoder()
        self._leg: ProbeLeg | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._probe.add(self._transport)

    def data_received(self, chunk: bytes) -> None:
        try:
            messages = self._decoder.feed(chunk)
        except AudioSocketProtocolError:
            self._transport.close()
            return
        for kind, payload in messages:
            if self._leg is None and kind == Kind.UUID:
                self._identify(str(uuid.UUID(bytes=payload)))
            elif self._leg is not None and kind in SAMPLE_RATES:
                self._leg.on_audio(payload)

    def _identify(self, leg_uuid: str) -> None:
        leg = ProbeLeg(self._transport)
        if self._probe.take(leg_uuid, leg):
            self._leg = leg
        else:
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._probe.remove(self._transport)
        if self._leg is not None:
            self._leg.on_closed()


class LegFailed(Exception):
    """Asterisk connected no leg; `reason` is that of the OriginateResponse, if one came."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Events:
    """The events of Asterisk while the check runs."""

    def __init__(self) -> None:
        self._heard: list[Event] = []
        self._news = asyncio.Event()

    def hear(self, event: Event) -> None:
        self._heard.append(event)
        self._news.set()

    def values(self, value_of: Callable[[Event], str]) -> set[str]:
        """Return the different values of all events so far, but for empty ones."""
        return {value for event in self._heard if (value := value_of(event))}

    async def first(
        self, matches: Callable[[Event], bool], timeout_s: float | None = None
    ) -> Event | None:
        """Return the first event that matches, which may have come already; None if none comes.

        Args:
            matches: Returns whether an event is the wanted one.
            timeout_s: How long to wait; None: EVENT_TIMEOUT_S.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVENT_TIMEOUT_S if timeout_s is None else timeout_s):
                while True:
                    for event in self._heard:
                        if matches(event):
                            return event
                    self._news.clear()
                    await self._news.wait()
        return None


class ProbeLegs:
    """Requests legs from Asterisk.

    Attributes:
        uniqueids: The uniqueids of the legs requested so far.
        news_due: Whether Asterisk should have sent an event about a leg of ours.
    """

    def __init__(self, ami: Ami, probe: Probe, events: Events) -> None:
        self.uniqueids: list[str] = []
        self.news_due = False
        self._ami = ami
        self._probe = probe
        self._events = events

    def is_of_ours(self, event: Event) -> bool:
        """Return whether an event is about one of these legs."""
        if isinstance(event, ChannelHangup):
            return event.uniqueid in self.uniqueids
        return isinstance(event, OriginateFailed) and event.action_id in self.uniqueids

    async def start(self, address: Address, application: str, data: str) -> ProbeLeg:
        """Request a leg that runs an application; return it when it has connected.

        Raises:
            LegFailed: It did not connect.
            AmiError: Asterisk cannot be asked.
        """
        leg_uuid = str(uuid.uuid4())
        arrival = self._probe.expect(leg_uuid)
        uniqueid = await self._originate(leg_uuid, address, application, data)
        return await self._arrived(
            arrival, uniqueid, "the leg went somewhere else, and ended there"
        )

    async def snoop(
        self, tap: Tap, uniqueid: str, sample_rate: int, connects: Connects
    ) -> ProbeLeg:
        """Request a leg from a tap that brings what a channel's party says, as for a fork.

        Raises:
            LegFailed: It did not connect.
            LegError, NoSuchChannel: It could not be requested.
        """
        fork_id, leg_uuid, part = str(uuid.uuid4()), str(uuid.uuid4()), LegPart.IN
        leg_id = tap.name_leg(fork_id, part, anew=False)
        self.uniqueids.append(leg_id)
        arrival = self._probe.expect(leg_uuid)
        await tap.start(LegOrder(leg_id, leg_uuid, fork_id, part, uniqueid, connects, sample_rate))
        return await self._arrived(arrival, leg_id, "the leg ended before it connected")

    async def _arrived(
        self, arrival: asyncio.Future[ProbeLeg], uniqueid: str, ended: str
    ) -> ProbeLeg:
        """Wait for a requested leg and return it; `ended` is the error text if it ended first."""
        news = asyncio.create_task(self._news_of(uniqueid))
        either: set[asyncio.Future[Any]] = {arrival, news}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not arrival.done():
            await self._still_coming(arrival, await news)
        if not arrival.done():
            self._raise(await news, ended)
        news.cancel()
        self.news_due = True
        return arrival.result()

    async def _still_coming(self, arrival: asyncio.Future[ProbeLeg], news: Event | None) -> None:
        """Wait a little for a leg whose channel has ended: its connection may come later."""
        if isinstance(news, ChannelHangup):
            await asyncio.wait([arrival], timeout=OVERTAKEN_S)

    async def press_key(self, uniqueid: str) -> bool:
        """Have Asterisk feign that a leg's party presses a key; return whether it tells of that.

        Raises:
            AmiActionFailed: It does not do that, for this user or at all.
        """
        key = [("Channel", uniqueid), ("Digit", "1"), ("Duration", "100"), ("Receive", "true")]
        await self._ami.action("PlayDTMF", key)

        def is_it(event: Event) -> bool:
            return isinstance(event, KeyPressed) and event.uniqueid == uniqueid

        return await self._events.first(is_it) is not None

    async def knock(self, address: Address, leg_uuid: str) -> None:
        """Make Asterisk connect to another program, and wait until that is over.

        Args:
            address: The address of that program.
            leg_uuid: The UUID to present there.

        Raises: as `start`.
        """
        uniqueid = await self._originate(leg_uuid, address, "Wait", "1")
        news = await self._news_of(uniqueid)
        if not isinstance(news, ChannelHangup):
            self._raise(news, "")

    async def _originate(self, leg_uuid: str, address: Address, application: str, data: str) -> str:
        """Request a leg; return its uniqueid."""
        uniqueid = f"{LEG_PREFIX}check-{uuid.uuid4()}"
        self.uniqueids.append(uniqueid)
        headers = originate_headers(uniqueid, address, leg_uuid, application, data)
        try:
            await self._ami.action("Originate", headers, action_id=uniqueid)
        except AmiActionFailed as exc:
            raise LegFailed(exc.message) from exc
        return uniqueid

    async def _news_of(self, uniqueid: str) -> Event | None:
        """Return the event that ends a leg, if one comes."""

        def ends_it(event: Event) -> bool:
            if isinstance(event, ChannelHangup):
                return event.uniqueid == uniqueid
            return isinstance(event, OriginateFailed) and event.action_id == uniqueid

        news = await self._events.first(ends_it, LEG_TIMEOUT_S)
        self.news_due |= news is not None
        return news

    def _raise(self, news: Event | None, ended: str) -> NoReturn:
        if isinstance(news, OriginateFailed):
            raise LegFailed("cannot connect", news.reason)
        if news is None:
            raise LegFailed(f"no leg came within {LEG_TIMEOUT_S:g} s")
        raise LegFailed(ended)


@dataclass(frozen=True, slots=True)
class OneAddress:
    """Implements `LegAddresses`: every leg comes to one address."""

    address: Address

    @property
    def addresses(self) -> Sequence[Address]:
        return (self.address,)

    def address_of(self, fork_id: str) -> Address:  # noqa: ARG002 (of LegAddresses)
        return self.address


@contextlib.asynccontextmanager
async def snooping(config: AriConfig, address: Address) -> AsyncIterator[tuple[Ari, SnoopTap]]:
    """Yield the snoop tap that the daemon uses, once its connection is up or has failed.

    Its application has a name of its own. With the daemon's name, Asterisk would take the
    application away from the daemon, and with it the legs of its forks.
    """
    from audiofork.asterisk.ari import Ari  # what they import takes 10 MB
    from audiofork.asterisk.taps.snoop import SnoopTap

    # The check itself reports failures; without a handler the log would go to standard error.
    logging.getLogger(Ari.__module__).addHandler(logging.NullHandler())
    own = dataclasses.replace(config, app=f"{config.app}-check")
    async with Ari(own) as ari:
        running = asyncio.create_task(ari.run())
        try:
            await ari.settled(READY_TIMEOUT_S)
            yield ari, SnoopTap(ari, own, OneAddress(address))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
