"""The relay as the control plane sees it: takes commands, gives reports."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from dataclasses import replace

from audiofork.config import Address, Config, WebSocketConfig
from audiofork.errors import ConfigError
from audiofork.link.messages import (
    Command,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegPart,
    ReopenLeg,
    Report,
    SendReport,
    SetGate,
    SetMute,
    StatsTaken,
    TakeStats,
    Tls,
    leg_uuid,
)
from audiofork.relay.listener import Listener
from audiofork.relay.pipeline import message_frame_bytes
from audiofork.relay.session import Session
from audiofork.relay.sink import Sink
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

# A little more than a sink may take to close.
_CLOSE_TIMEOUT_S = 2.5


class Worker:
    """A listener and its sessions.

    Attributes:
        sessions: The sessions that run, by fork id.
        address: Where the listener listens, once started.
    """

    def __init__(self, config: Config, report: SendReport) -> None:
        self.sessions: dict[str, Session] = {}
        self.address = config.audiosocket.listen
        self._advertise = config.audiosocket.advertise
        self._report = report
        self._listener = Listener(config.audiosocket.allow)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take the settings for sinks from now on: [websocket], and allow_private of [security].

        Raises:
            ConfigError: The authorities or our certificate cannot be used.
        """
        self._tls = configured_tls(config.websocket)
        self._websocket = config.websocket
        self._allow_private = config.security.allow_private

    async def start(self) -> Address:
        """Listen; return the address with the port that was chosen.

        Raises:
            OSError: The address cannot be had.
        """
        self.address = await self._listener.start(self.address)
        return self.address

    @property
    def addresses(self) -> list[Address]:
        """The addresses that Asterisk connects legs to."""
        return [self._advertise or self.address]

    def address_of(self, fork_id: str) -> Address:  # noqa: ARG002 (of LegAddresses)
        """Return the address that Asterisk is to connect the leg of a fork to."""
        return self.addresses[0]

    def handle(self, command: Command) -> None:
        """Obey the control plane; never waits."""
        if isinstance(command, ForkSpec):
            self._begin(command)
        elif isinstance(command, TakeStats):
            stats = {fork_id: session.stats() for fork_id, session in self.sessions.items()}
            self._report(StatsTaken(command.ticket, stats))
        elif session := self.sessions.get(command.fork_id):
            if isinstance(command, ReopenLeg):
                self._issue(session, command.part)
            else:
                _obey(session, command)

    def _begin(self, spec: ForkSpec) -> None:
        try:
            tls = self._tls if spec.tls is None else self._tls_of(spec.tls)
        except ConfigError as exc:
            stats = ForkStats()
            self._report(ForkEnded(spec.fork_id, EndReason.SINK_REFUSED, str(exc), stats))
            return
        sink = Sink(
            spec.url,
            self._settings_of(spec),
            tls,
            frame_bytes=message_frame_bytes(spec),
            allow_private=self._allow_private,
        )
        session = Session(spec, sink, self._on_report)
        self.sessions[spec.fork_id] = session
        for part in spec.legs:
            self._issue(session, part)
        session.start()

    def _issue(self, session: Session, part: LegPart) -> None:
        """Have the leg of a part accepted, once."""
        self._listener.issue(leg_uuid(session.spec.fork_id, part), session.inlets[part])

    def _settings_of(self, spec: ForkSpec) -> WebSocketConfig:
        """Return the settings for one fork's sink: its options go before the configuration."""
        settings = self._websocket
        if (interval_s := spec.reconnect_interval_s) is not None:
            settings = replace(settings, reconnect_interval=interval_s, connect_timeout=interval_s)
        if spec.reconnect_attempts is not None:
            settings = replace(settings, reconnect_attempts=spec.reconnect_attempts)
        if spec.frame_ms is not None:
            settings = replace(settings, frame_ms=spec.frame_ms)
        return settings

    def _tls_of(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for one fork's own TLS options; equal options share one."""
        settings = self._websocket
        own_cert = bool(tls.cert_file)
        return client_tls(
            tls.ca_file or settings.ca_list_file,
            tls.cert_file if own_cert else settings.cert_file,
            tls.key_file if own_cert else settings.priv_key_file,
            tls.insecure,
        )

    def _on_report(self, report: Report) -> None:
        if isinstance(report, ForkEnded):
            session = self.sessions.pop(report.fork_id)
            for part in session.inlets:
                self._listener.withdraw(leg_uuid(report.fork_id, part))
        self._report(report)

    async def close(self) -> None:
        """Stop listening, end the forks that still run, close the connections to their servers."""
        self._listener.stop_listening()  # first: another process may already want the port
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


def _obey(session: Session, command: EndFork | SetMute | SetGate) -> None:
    if isinstance(command, EndFork):
        session.end(command.reason, command.detail)
    elif isinstance(command, SetMute):
        session.set_mute(command)
    else:
        session.set_gate(command.is_open)


def configured_tls(websocket: WebSocketConfig) -> ssl.SSLContext:
    """Return the context for forks without TLS options, with the files as they are now.

    Raises:
        ConfigError: The authorities or our certificate cannot be used.
    """
    client_tls.cache_clear()  # the files may have changed
    try:
        return client_tls(websocket.ca_list_file, websocket.cert_file, websocket.priv_key_file)
    except ConfigError as exc:
        raise ConfigError(f"[websocket] ca_list_file, cert_file: {exc}") from exc


@functools.lru_cache(maxsize=64)
def client_tls(
    ca_file: str, cert_file: str = "", key_file: str = "", insecure: bool = False
) -> ssl.SSLContext:
    """Return a context that verifies a server's certificate and name; TLS 1.2 or later.

    Args:
        ca_file: The authorities to trust, in PEM; empty for the system's.
        cert_file: Our certificate, in PEM; empty for none.
        key_file: Its key; empty if it is in the same file.
        insecure: Verify nothing.

    Raises:
        ConfigError: A file cannot be used; the text names it.
    """
    try:
        context = client_context(ca_file)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(f"the authorities of {ca_file} cannot be used: {exc}") from exc
    try:
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except OSError as exc:
        raise ConfigError(f"the certificate {cert_file} cannot be used: {exc}") from exc
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
