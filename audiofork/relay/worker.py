"""The worker: executes the commands of the control plane and sends reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from audiofork.config import Address, Config, WebSocketConfig
from audiofork.link.messages import (
    Adopt,
    Command,
    CountBefore,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HandOver,
    Leave,
    LegPart,
    Listen,
    MoveFork,
    NoteFrames,
    PressKey,
    Report,
    SendReport,
    SetGate,
    SetMute,
    StatsTaken,
    TakeLevels,
    TakeOver,
    TakeStats,
    TellFrame,
)
from audiofork.relay import resampler
from audiofork.relay.check_legs import CheckLegs
from audiofork.relay.client_tls import ClientTls
from audiofork.relay.formats.choice import format_of
from audiofork.relay.latencies import Latencies
from audiofork.relay.levels import Meters
from audiofork.relay.listener import Listener
from audiofork.relay.listening import Listening
from audiofork.relay.pacer import Pacer
from audiofork.relay.pipeline import message_frame_bytes
from audiofork.relay.server_limits import MAX_MESSAGE_BYTES, MAX_SPOKEN_BYTES
from audiofork.relay.session import Session
from audiofork.relay.sink import Sink

log = logging.getLogger(__name__)

# A little more than the time limit of a sink's close.
_CLOSE_TIMEOUT_S = 2.5
# How many forks tell their statistics in one turn of the event loop: half a millisecond.
FORKS_AT_ONCE = 50


class Worker:
    """Owns a listener and the sessions of its forks.

    Attributes:
        sessions: The sessions that run, by fork id.
        address: Where the listener listens, once started.
    """

    def __init__(self, config: Config, report: SendReport) -> None:
        self.sessions: dict[str, Session] = {}
        self.address = config.audiosocket.listen
        self._advertise = config.audiosocket.advertise
        self._report = report
        self._listener = Listener(report, config.audiosocket.allow)
        self._pacer = Pacer()
        self._latencies = Latencies()
        self._check_legs = CheckLegs(self._listener, report)
        self._leg_uuids: dict[str, dict[LegPart, str]] = {}  # the latest of each leg, by fork
        self._meters = Meters()
        self._listenings: dict[str, Listening] = {}  # by fork
        self._tls = ClientTls(config)
        self._take_settings(config)

    def configure(self, config: Config) -> None:
        """Use these settings for new sinks: [websocket], and allow_private of [security].

        Raises:
            ConfigError: The authorities or our certificate cannot be used; the settings stay.
        """
        self._tls.configure(config)
        self._take_settings(config)

    def _take_settings(self, config: Config) -> None:
        self._websocket = config.websocket
        self._allow_private = config.security.allow_private

    async def start(self) -> Address:
        """Listen; return the address with the port that was chosen.

        Raises:
            OSError: The address cannot be used.
        """
        self.address = await self._listener.start(self.address)
        return self.address

    @property
    def addresses(self) -> list[Address]:
        """The addresses that Asterisk connects legs to."""
        return [self._advertise or self.address]

    @property
    def is_listening(self) -> bool:
        """Whether legs can connect."""
        return self._listener.is_listening

    def address_of(self, fork_id: str) -> Address:  # noqa: ARG002 (of LegAddresses)
        """Return the address that Asterisk must connect the leg of a fork to."""
        return self.addresses[0]

    def handle(self, command: Command) -> None:
        """Execute a command of the control plane; never waits."""
        if isinstance(command, ForkSpec):
            self._begin(command)
        elif isinstance(command, TakeStats):
            self._take_stats(command.ticket, iter(list(self.sessions)), {})
        elif isinstance(command, TakeLevels):
            self._report(self._meters.take(self.sessions))
        elif isinstance(command, ExpectCheckLeg):
            self._check_legs.expect(command.leg_uuid)
        elif isinstance(command, Adopt | Leave | MoveFork | CountBefore):
            pass  # not of the worker: see `Handover`, and link/host_moves.py
        elif session := self.sessions.get(command.fork_id):
            if isinstance(command, ExpectLeg):
                self._expect(session, command)
            elif isinstance(command, Listen):
                self._listen(session, is_on=command.is_on)
            else:
                _obey(session, command)

    def _take_stats(self, ticket: int, rest: Iterator[str], stats: dict[str, ForkStats]) -> None:
        """Take the statistics of some forks, then of the rest, then report; audio goes in between.

        Args:
            ticket: That of the command.
            rest: The ids of the other forks; they may have ended meanwhile.
            stats: What was taken so far.
        """
        some = list(islice(rest, FORKS_AT_ONCE))
        for fork_id in some:
            if (session := self.sessions.get(fork_id)) is not None:
                stats[fork_id] = session.stats()
        if len(some) == FORKS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._take_stats, ticket, rest, stats)
            return
        # After the forks: they have brought the latencies up to date.
        latencies = self._latencies
        self._report(StatsTaken(ticket, stats, latencies.cumulative(), latencies.sum_s))

    def _begin(self, spec: ForkSpec) -> None:
        if spec.voice is not None:
            resampler.load_in_background()
        settings = self._settings_of(spec)
        sink = Sink(
            spec.url,
            settings,
            self._tls.context_of(spec.tls),
            frame_bytes=message_frame_bytes(spec),
            allow_private=self._allow_private,
            handshake=spec.handshake,
            format=format_of(spec, settings.frame_ms),
            proxy_tls=self._tls.configured,
            max_bytes=MAX_SPOKEN_BYTES if spec.voice is not None else MAX_MESSAGE_BYTES,
            latencies=self._latencies,
        )
        session = Session(spec, sink, self._on_report, self._pacer)
        self.sessions[spec.fork_id] = session
        self._leg_uuids[spec.fork_id] = {}
        session.start()

    def _expect(self, session: Session, command: ExpectLeg) -> None:
        """Accept a new leg of a part, once; drop its earlier leg and withdraw the earlier UUID."""
        session.drop_leg(command.part)
        uuids = self._leg_uuids[command.fork_id]
        if before := uuids.get(command.part):
            self._listener.withdraw(before)
        uuids[command.part] = command.leg_uuid
        inlet, legs_from = session.inlets[command.part], session.spec.legs_from
        self._listener.issue(command.leg_uuid, inlet, legs_from)

    def _listen(self, session: Session, *, is_on: bool) -> None:
        fork_id = session.spec.fork_id
        if not is_on:
            if (listening := self._listenings.pop(fork_id, None)) is not None:
                listening.stop()
        elif fork_id not in self._listenings:
            self._listenings[fork_id] = Listening(session, self._report)

    def _settings_of(self, spec: ForkSpec) -> WebSocketConfig:
        """Return the settings for one fork's sink: its options override the configuration."""
        settings = self._websocket
        if (interval_s := spec.reconnect_interval_s) is not None:
            settings = replace(settings, reconnect_interval=interval_s, connect_timeout=interval_s)
        if spec.reconnect_attempts is not None:
            settings = replace(settings, reconnect_attempts=spec.reconnect_attempts)
        if spec.frame_ms is not None:
            settings = replace(settings, frame_ms=spec.frame_ms)
        if spec.proxy is not None:  # no_proxy and proxy_login are for the configured one
            settings = replace(settings, proxy=spec.proxy, proxy_login="", no_proxy=())
        return settings

    def _on_report(self, report: Report) -> None:
        if isinstance(report, ForkEnded):
            if (listening := self._listenings.pop(report.fork_id, None)) is not None:
                listening.finish()
            del self.sessions[report.fork_id]
            for leg_uuid in self._leg_uuids.pop(report.fork_id).values():
                self._listener.withdraw(leg_uuid)
        self._report(report)

    async def close(self) -> None:
        """Stop listening, end all forks, and close the connections to their servers."""
        self._listener.stop_listening()  # first: another process may already need the port
        self._check_legs.close()
        self._meters.close()
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(EndReason.SHUTDOWN)
        if sessions:
            waits = [asyncio.create_task(session.done.wait()) for session in sessions]
            _, late = await asyncio.wait(waits, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                log.warning("%d forks did not end in time", len(late))
        await self._listener.close()


def _obey(
    session: Session,
    command: EndFork | SetMute | SetGate | PressKey | NoteFrames | TellFrame | HandOver | TakeOver,
) -> None:
    if isinstance(command, EndFork):
        session.end(command.reason, command.detail)
    elif isinstance(command, SetMute):
        session.set_mute(command)
    elif isinstance(command, PressKey):
        session.press(command)
    elif isinstance(command, NoteFrames):
        session.note_frames()
    elif isinstance(command, TellFrame):
        session.tell_frame()
    elif isinstance(command, HandOver):
        session.hand_over()
    elif isinstance(command, TakeOver):
        tails = command.tail, command.other_tail
        session.take_over(tails, command.latest, is_whole=command.is_whole)
    else:
        session.set_gate(command.is_open)
