"""TLS contexts for servers: how a server is verified, and which certificate of ours it gets."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import ssl

from audiofork.config import Config, WebSocketConfig
from audiofork.errors import ConfigError, SinkRefused
from audiofork.files import NamedFile, path_below
from audiofork.link.messages import Tls
from audiofork.text import reason_of, why
from audiofork.threads import Threads
from audiofork.tls_contexts import client_context, show_certificate

# Most reads at the same time: this many run only if the reads of files hang.
MAX_READS = 32
MAX_CONTEXTS = 64

TlsContext = ssl.SSLContext | asyncio.Future[ssl.SSLContext]
"""A context, or one whose files are being read; the future may fail with SinkRefused."""


class ClientTls:
    """Keeps the contexts for servers: the configured one, and those of forks with an option T.

    Owned by the worker. It reads the files that forks name in threads, because a request chooses
    the file and a slow file must not block the event loop. Equal wishes share a context.

    Attributes:
        configured: The context for forks without TLS options.
    """

    def __init__(self, config: Config) -> None:
        self._reads: Threads[ssl.SSLContext] = Threads(MAX_READS)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use these settings, and the files as they are now, for forks from now on.

        Raises:
            ConfigError: The authorities or our certificate cannot be used; the settings stay.
        """
        self.configured = configured_tls(config.websocket)
        self._websocket = config.websocket
        self._folder = config.security.tls_dir
        self._contexts: dict[Tls, asyncio.Future[ssl.SSLContext]] = {}

    def context_of(self, wishes: Tls | None) -> TlsContext:
        """Return the context for a fork with these TLS options; never waits."""
        if wishes is None:
            return self.configured
        wishes = self._in_one_spelling(wishes)
        return self._contexts.get(wishes) or self._read(wishes)

    def _in_one_spelling(self, wishes: Tls) -> Tls:
        """Return the wishes with full paths, so that the same files share a context (1 MB each)."""
        folder = self._folder
        paths = (wishes.ca_file, wishes.cert_file, wishes.key_file)
        try:
            ca, cert, key = (
                path and os.path.join(folder, path_below(folder, path)) for path in paths
            )
        except ValueError:
            return wishes  # they will be refused
        return Tls(ca, cert, key, wishes.insecure)

    def _read(self, wishes: Tls) -> asyncio.Future[ssl.SSLContext]:
        ca, cert, key = self._files(wishes)
        try:
            if self._reads.is_full:
                raise OSError(errno.EAGAIN, f"{MAX_READS} other files are being read, none comes")
            reading = functools.partial(_read_wished, ca, cert, key, wishes.insecure)
            context = self._reads.run(reading)
        except OSError as exc:
            return _failed(SinkRefused(f"Options: T: {reason_of(exc)}"))
        self._contexts[wishes] = context
        context.add_done_callback(functools.partial(self._on_read, wishes))
        if len(self._contexts) > MAX_CONTEXTS:
            del self._contexts[next(iter(self._contexts))]
        return context

    def _files(self, wishes: Tls) -> tuple[NamedFile | None, NamedFile | None, NamedFile | None]:
        """Return the files of authorities, certificate and key.

        None means the system's authorities, no certificate, or a key in the certificate's file.
        """
        settings, below = self._websocket, self._folder
        ca = _named(wishes.ca_file, below) or _named(settings.ca_list_file)
        if wishes.cert_file:
            return ca, _named(wishes.cert_file, below), _named(wishes.key_file, below)
        return ca, _named(settings.cert_file), _named(settings.priv_key_file)

    def _on_read(self, wishes: Tls, context: asyncio.Future[ssl.SSLContext]) -> None:
        # `exception()` also marks it as retrieved: asyncio would log it if no fork waits any more.
        failed = context.exception() is not None
        if failed and self._contexts.get(wishes) is context:
            del self._contexts[wishes]  # read again next time: the file may be repaired


def _failed(exc: SinkRefused) -> asyncio.Future[ssl.SSLContext]:
    future: asyncio.Future[ssl.SSLContext] = asyncio.get_running_loop().create_future()
    future.set_exception(exc)
    future.exception()  # marks it as retrieved: asyncio would log it if no fork waits
    return future


def configured_tls(websocket: WebSocketConfig) -> ssl.SSLContext:
    """Return the context for forks without TLS options, with the files as they are now.

    Raises:
        ConfigError: The authorities or our certificate cannot be used.
    """
    try:
        return client_tls(websocket.ca_list_file, websocket.cert_file, websocket.priv_key_file)
    except ConfigError as exc:
        raise ConfigError(f"[websocket] ca_list_file, cert_file: {exc}") from exc


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
    return _context(_named(ca_file), _named(cert_file), _named(key_file), insecure)


def _named(path: str, folder: str | None = None) -> NamedFile | None:
    return NamedFile(path, folder) if path else None


def _read_wished(
    ca: NamedFile | None, cert: NamedFile | None, key: NamedFile | None, insecure: bool
) -> ssl.SSLContext:
    try:
        return _context(ca, cert, key, insecure)
    except ConfigError as exc:
        text = str(exc)
    # Raised outside `except`: else its traceback would keep the context (1 MB) in memory.
    raise SinkRefused(f"Options: T: {text}")


def _context(
    ca: NamedFile | None, cert: NamedFile | None, key: NamedFile | None, insecure: bool
) -> ssl.SSLContext:
    if cert is not None:
        # Tried alone first: loading the system's authorities takes 15 ms, and requests that name a
        # bad certificate may come often.
        _show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert, key)
    try:
        context = client_context(ca or "")
    except OSError as exc:
        raise ConfigError(f"the authorities of {ca} cannot be used: {_why(exc, ca)}") from exc
    if cert is not None:
        _show(context, cert, key)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _show(context: ssl.SSLContext, cert: NamedFile, key: NamedFile | None) -> None:
    try:
        show_certificate(context, cert, key)
    except OSError as exc:
        raise ConfigError(f"the certificate {cert} cannot be used: {_why(exc, cert)}") from exc


def _why(exc: OSError, named: NamedFile | None) -> str:
    """Return the reason, with the file that it concerns unless the caller has named that file."""
    return reason_of(exc) if exc.filename in (None, str(named)) else why(exc)
