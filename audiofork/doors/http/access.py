"""Decides who asks, and whether a request may be looked at: tokens, sessions, Host and Origin.

A session is what a browser has in place of a token: its id is in a cookie that no script can read
and no other site's page can send. It lasts as long as its token stands in the file. What goes on by
a session or a token, a stream of events or of audio, ends in the same moment as that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from audiofork.doors.http.problems import Kind, Problem
from audiofork.doors.http.tokens import ALL_ROLES, Client, Role, Tokens, digest_of

COOKIE = "audiofork_session"
SESSION_S = 12 * 3600.0
IDLE_S = 2 * 3600.0
MAX_SESSIONS_OF_TOKEN = 50
MIN_WAIT_S = 0.1
# Of one address: so many at once, and then one in each RETRY_S.
BAD_TOKENS = 10
RETRY_S = 6.0
MAX_ADDRESSES = 2000
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="audiofork"'}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and how that is known.

    Attributes:
        client: Who asks.
        token: The digest of the token; empty at the Unix socket.
        session: The digest of the session's id; empty: there is none.
    """

    client: Client
    token: bytes = b""
    session: bytes = b""


@dataclass(slots=True)
class _Session:
    token: bytes
    began: float
    used: float
    # How many streams go on by it: as long as one does, it is in use.
    streams: int = 0


class Sessions:
    """The sessions of browsers; those of each token have a limit, and the oldest gives way.

    Args:
        clock: Returns the time in seconds.
        on_end: Called when sessions were ended, except by their age.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_end = on_end
        self._by_id: OrderedDict[bytes, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def begin(self, token: bytes) -> str:
        """Return the id of a new session of a token, by the token's digest."""
        now = self._clock()
        self._drop([key for key, one in self._by_id.items() if self._is_old(one, now)])
        own = [key for key, session in self._by_id.items() if session.token == token]
        self._drop(own[: max(0, len(own) - MAX_SESSIONS_OF_TOKEN + 1)])
        session_id = secrets.token_urlsafe(32)
        self._by_id[digest_of(session_id)] = _Session(token, now, now)
        return session_id

    def token_of(self, session_id: str) -> bytes | None:
        """Return the digest of the token of a session; None: there is no such session (any more).

        The id is looked up by its digest, so the time that takes says nothing about other ids.
        """
        session = self._by_id.get(digest_of(session_id))
        now = self._clock()
        if session is None or self._is_old(session, now):
            return None
        session.used = now
        return session.token

    def has(self, key: bytes) -> bool:
        """Return whether a session still lasts, by the digest of its id."""
        session = self._by_id.get(key)
        return session is not None and not self._is_old(session, self._clock())

    def end(self, key: bytes) -> None:
        """End a session, by the digest of its id."""
        self._drop([key])

    def keep_those_of(self, tokens: Tokens) -> None:
        """End the sessions of tokens that are no longer known."""
        gone = [key for key, one in self._by_id.items() if tokens.owner_of(one.token) is None]
        self._drop(gone)

    def on_stream(self, key: bytes, count: int) -> None:
        """Count streams that go on by a session: 1 when one begins, -1 when it is over."""
        session = self._by_id.get(key)
        if session is not None:
            session.streams += count
            session.used = self._clock()

    def lasts_s(self, key: bytes) -> float:
        """Return for how long a session in use lasts at most, in seconds."""
        session = self._by_id.get(key)
        return session.began + SESSION_S - self._clock() if session is not None else 0.0

    def _drop(self, keys: list[bytes]) -> None:
        dropped = [self._by_id.pop(key, None) for key in keys]
        if any(dropped):
            self._on_end()

    @staticmethod
    def _is_old(session: _Session, now: float) -> bool:
        is_idle = not session.streams and now - session.used > IDLE_S
        return is_idle or now - session.began > SESSION_S


class BadTokens:
    """Counts the bad tokens of each address; a bucket that refills, of the latest addresses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def count(self, address: str) -> float:
        """Count a bad token; return the seconds that its sender has to wait, 0: none."""
        key, now = _network_of(address), self._clock()
        # When the bucket will have forgotten everything.
        until = max(self._full_at.pop(key, now), now)
        wait = until + RETRY_S - now - BAD_TOKENS * RETRY_S
        self._full_at[key] = until if wait > 0 else until + RETRY_S
        while len(self._full_at) > MAX_ADDRESSES:
            self._full_at.popitem(last=False)
        return max(0.0, wait)


def _network_of(address: str) -> str:
    """Return the address, or the network that one owner of IPv6 addresses has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)


class Access:
    """Says who asks, and refuses what may not be looked at; owned by the door.

    Args:
        tokens: The tokens; `take_tokens` replaces them.
        hosts: By which names the daemon may be called, besides those of this machine; and the
            origins of proxies before it, https://NAME:PORT. A name stands for https://NAME, too.
        listens_at: The host at which it listens.
        is_tls: Whether it is asked over TLS: then its cookies are sent only so.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        tokens: Tokens,
        hosts: Iterable[str],
        *,
        listens_at: str = "",
        is_tls: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        proxies = frozenset(hosts)
        self._proxy_names = frozenset(one for one in proxies if "://" not in one)
        self._proxy_origins = proxies - self._proxy_names
        names = {_name_of(one.partition("://")[2]) or "" for one in self._proxy_origins}
        names |= self._proxy_names
        self._hosts = (names | {listens_at.lower()}) - {""}
        # A proxy may speak TLS and leave the port out of Host: a page that came in the clear from
        # the same machine's port 80 is not its page, unless `hosts` has that origin.
        self._ambiguous = frozenset(f"http://{name}" for name in names)
        self.is_tls = is_tls
        self.sessions = Sessions(clock, self._look)
        self._streams: dict[Callable[[], None], Identity] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._bad_tokens = BadTokens(clock)

    def take_tokens(self, tokens: Tokens) -> None:
        """Use other tokens from now on; sessions and streams of tokens that are gone end."""
        self._tokens = tokens
        self.sessions.keep_those_of(tokens)
        self._look()

    # --- Whether it is looked at ---

    def check_host(self, hosts: list[str], own_address: str) -> str:
        """Return what a request calls the daemon, in lower case.

        A page whose own name its owner lets point here, to get around the browser's rule of one
        origin (DNS rebinding), sends that name.

        Args:
            hosts: The headers Host.
            own_address: The address that the connection came to; empty at the Unix socket.

        Raises:
            Problem: The request is not meant for this daemon.
        """
        if len(hosts) != 1:
            raise Problem(400, "expected one header Host")
        host = hosts[0].lower()
        name = _name_of(host)
        if name is None or not (
            name in LOCAL_NAMES or name in self._hosts or (own_address and name == own_address)
        ):
            raise Problem(
                421, "Host: not a name of this daemon; [http] hosts has them", Kind.WRONG_HOST
            )
        return host

    def check_origin(self, origins: list[str], host: str, *, is_tls: bool) -> None:
        """Refuse what a page of another site asks, such as one of another port of this machine.

        Args:
            origins: The headers Origin; programs send none.
            host: What `check_host` has returned.
            is_tls: Whether the connection of the request is TLS.

        Raises:
            Problem: It comes from another site.
        """
        called = _bare_origin("https" if is_tls else "http", host)
        if called in self._ambiguous:
            called = ""
        for origin in origins:
            scheme, _, authority = origin.lower().partition("://")
            bare = _bare_origin(scheme, authority)
            if bare not in (called, *self._proxy_origins) and not self._is_proxy(bare, host):
                raise Problem(
                    403, "Origin: a page of another site may not ask this", Kind.WRONG_ORIGIN
                )

    def _is_proxy(self, origin: str, host: str) -> bool:
        """Return whether an origin is that of a proxy of whom only the name is known.

        It speaks TLS at its usual port. A request that came to the same name, but to another port,
        did not come by it.
        """
        scheme, _, name = origin.partition("://")
        name = name.strip("[]")
        if scheme != "https" or name not in self._proxy_names:
            return False
        return _name_of(host) != name or _bare_origin("https", host) == origin

    # --- Who asks ---

    def identify(
        self, authorization: list[str], session_id: str, address: str, *, by_socket: str = ""
    ) -> Identity | None:
        """Return who asks; None: nobody says so.

        Args:
            authorization: The headers Authorization.
            session_id: The cookie; empty: there is none.
            address: Where it comes from.
            by_socket: Who asks at the Unix socket; empty: it was asked by TCP.

        Raises:
            Problem: There is a token, and it is not known.
        """
        if by_socket:
            return Identity(Client(by_socket, ALL_ROLES))
        if authorization:
            scheme, _, token = authorization[0].partition(" ")
            if len(authorization) != 1 or scheme.lower() != "bearer":
                raise Problem(401, "expected Authorization: Bearer TOKEN", headers=_CHALLENGE)
            return self.by_token(token.strip(), address)
        if not session_id:
            return None
        digest = self.sessions.token_of(session_id)
        client = self._tokens.owner_of(digest) if digest is not None else None
        if client is None or digest is None:
            return None
        return Identity(client, digest, digest_of(session_id))

    def by_token(self, token: str, address: str) -> Identity:
        """Return whose a token is.

        Raises:
            Problem: It is not known; or that is so too often.
        """
        digest = self._tokens.find(token)
        client = self._tokens.owner_of(digest) if digest is not None else None
        if client is not None and digest is not None:
            return Identity(client, digest)
        if wait_s := self._bad_tokens.count(address):
            raise Problem(
                429,
                "too many tokens of this address are not known",
                Kind.TOO_MANY_BAD_TOKENS,
                {"Retry-After": str(int(wait_s) + 1), "Connection": "close"},
            )
        raise Problem(401, "this token is not known", headers=_CHALLENGE)

    def is_current(self, identity: Identity) -> bool:
        """Return whether who has asked may still go on: its token is known, its session lasts."""
        if not identity.token:
            return True
        if self._tokens.owner_of(identity.token) != identity.client:
            return False
        return not identity.session or self.sessions.has(identity.session)

    # --- What goes on ---

    @contextlib.contextmanager
    def stream(self, identity: Identity, on_end: Callable[[], None]) -> Iterator[None]:
        """Be the time for which something goes on by a token or a session, which is in use.

        Args:
            identity: Who has asked for it.
            on_end: Called once, at once, when who has asked may no longer go on: the session was
                ended or is too old, the token is gone or has other roles.
        """
        self._streams[on_end] = identity
        self.sessions.on_stream(identity.session, 1)
        self._look()
        try:
            yield
        finally:
            self._streams.pop(on_end, None)
            self.sessions.on_stream(identity.session, -1)
            if not self._streams:
                self._end_timer()

    def _look(self) -> None:
        """End what may not go on, and look again when the next session becomes too old."""
        for on_end, identity in list(self._streams.items()):
            if not self.is_current(identity):
                del self._streams[on_end]
                on_end()
        self._end_timer()
        keys = {identity.session for identity in self._streams.values()} - {b""}
        if keys:
            # Not sooner than that, since timers are a little early.
            wait_s = max(MIN_WAIT_S, min(self.sessions.lasts_s(key) for key in keys))
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def require(identity: Identity | None, role: Role) -> Identity:
    """Return who asks, if it may.

    Raises:
        Problem: It has not said who it is, or has not this role.
    """
    if identity is None:
        raise Problem(401, "expected Authorization: Bearer TOKEN, or a session", headers=_CHALLENGE)
    if role not in identity.client.roles:
        raise Problem(403, f"the token of this request has not the role {role}", Kind.WRONG_ROLE)
    return identity


def require_origin(identity: Identity, method: str, origins: list[str], *, always: bool) -> None:
    """Refuse what a browser's session asks without saying from which page.

    Args:
        identity: Who asks.
        method: How.
        origins: The headers Origin.
        always: Whether even what changes nothing needs one.

    Raises:
        Problem: It has to say so.
    """
    if identity.session and not origins and (always or method not in SAFE_METHODS):
        raise Problem(403, "Origin: missing, and a session needs it here", Kind.WRONG_ORIGIN)


def _name_of(host: str) -> str | None:
    """Return the name in a header Host, without port and brackets; None: it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or "@" in host:
        return None
    return name.rstrip(".")


_PORTS = {"http": ":80", "https": ":443"}


def _bare_origin(scheme: str, authority: str) -> str:
    """Return an origin without the port that is its scheme's own."""
    return f"{scheme}://{authority.removesuffix(_PORTS.get(scheme, ':'))}"
