"""Sessions, bad tokens, Host and Origin: the rules, with a clock of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets

import pytest

from audiofork.doors.http.access import (
    BAD_TOKENS,
    IDLE_S,
    MAX_ADDRESSES,
    MAX_SESSIONS_OF_TOKEN,
    RETRY_S,
    SESSION_S,
    Access,
    BadTokens,
    Sessions,
    require,
    require_origin,
)
from audiofork.doors.http.problems import Problem
from audiofork.doors.http.tokens import Client, Role, Tokens, digest_of
from tests.told_clock import Clock

TOKEN, OTHER = "t" * 20, "o" * 20
ANNA, BERT = Client("anna", frozenset({Role.VIEW})), Client("bert", frozenset(Role))
TOKENS = Tokens({digest_of(TOKEN): ANNA, digest_of(OTHER): BERT})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    hosts = ["pbx.example.org", "https://two.example.org:8443", "http://three.example.org"]
    return Access(TOKENS, hosts, listens_at="192.0.2.7", clock=clock)


def status(refused: pytest.ExceptionInfo[Problem]) -> int:
    return refused.value.status


# --- Sessions ------------------------------------------------------------------------------------


def test_session_stands_for_its_token_and_its_id_is_not_the_token(access: Access) -> None:
    session_id = access.sessions.begin(digest_of(TOKEN))
    assert TOKEN not in session_id
    assert len(session_id) >= 43  # 256 bits
    identity = access.identify([], session_id, "192.0.2.1")
    assert identity is not None
    assert identity.client == ANNA
    assert access.identify([], session_id + "x", "192.0.2.1") is None
    assert access.identify([], "", "192.0.2.1") is None


def test_session_ends_when_it_is_old_or_idle(clock: Clock) -> None:
    sessions = Sessions(clock)
    idle, used = sessions.begin(b"a"), sessions.begin(b"a")
    for _ in range(int(SESSION_S / (IDLE_S - 1))):
        clock.now_s += IDLE_S - 1
        assert sessions.token_of(used) == b"a"
    assert sessions.token_of(idle) is None
    clock.now_s = 1000.0 + SESSION_S + 1
    assert sessions.token_of(used) is None


def test_sessions_of_a_token_are_bounded_and_the_oldest_gives_way(clock: Clock) -> None:
    sessions = Sessions(clock)
    other = sessions.begin(b"b")
    ids = [sessions.begin(b"a") for _ in range(MAX_SESSIONS_OF_TOKEN + 3)]
    assert len(sessions) == MAX_SESSIONS_OF_TOKEN + 1
    assert sessions.token_of(ids[2]) is None
    assert sessions.token_of(ids[3]) == b"a"
    assert sessions.token_of(other) == b"b"


def test_old_sessions_take_no_room(clock: Clock) -> None:
    sessions = Sessions(clock)
    sessions.begin(b"a")
    clock.now_s += SESSION_S + 1
    sessions.begin(b"a")
    assert len(sessions) == 1


def test_session_ends_with_its_token(access: Access) -> None:
    gone = access.sessions.begin(digest_of(TOKEN))
    stays = access.sessions.begin(digest_of(OTHER))
    was = access.identify([], gone, "")
    access.take_tokens(Tokens({digest_of(OTHER): BERT}))
    assert access.identify([], gone, "") is None
    assert access.identify([], stays, "") is not None
    assert len(access.sessions) == 1
    assert was is not None
    assert not access.is_current(was)


def test_who_has_other_roles_now_is_no_longer_who_it_was(access: Access) -> None:
    identity = access.identify([f"Bearer {OTHER}"], "", "")
    assert identity is not None
    assert access.is_current(identity)
    access.take_tokens(Tokens({digest_of(OTHER): Client("bert", frozenset({Role.VIEW}))}))
    assert not access.is_current(identity)


def test_session_that_has_ended_is_over_for_those_that_it_began(access: Access) -> None:
    session_id = access.sessions.begin(digest_of(TOKEN))
    identity = access.identify([], session_id, "")
    assert identity is not None
    assert access.is_current(identity)
    access.sessions.end(identity.session)
    assert not access.is_current(identity)


def test_session_in_use_is_not_idle_but_grows_old(access: Access, clock: Clock) -> None:
    session_id = access.sessions.begin(digest_of(TOKEN))
    identity = access.identify([], session_id, "")
    assert identity is not None
    access.sessions.on_stream(identity.session, 1)
    clock.now_s += IDLE_S + 1
    assert access.is_current(identity)
    access.sessions.on_stream(identity.session, -1)
    clock.now_s += IDLE_S - 1
    assert access.is_current(identity)
    clock.now_s += 2
    assert not access.is_current(identity)
    access.sessions.on_stream(identity.session, 1)
    clock.now_s = 1000.0 + SESSION_S + 1
    assert not access.is_current(identity)


async def test_streams_end_in_the_moment_in_which_what_they_came_by_does(access: Access) -> None:
    ended: list[str] = []
    first, second = (access.sessions.begin(digest_of(TOKEN)) for _ in range(2))
    with contextlib.ExitStack() as streams:
        for name, token, session in (
            *(("out", "", first), ("out too", "", first), ("in", "", second)),
            *(("token", f"Bearer {TOKEN}", ""), ("other", f"Bearer {OTHER}", "")),
        ):
            identity = access.identify([token] if token else [], session, "")
            assert identity is not None
            streams.enter_context(access.stream(identity, functools.partial(ended.append, name)))
        access.sessions.end(digest_of(first))
        assert ended == ["out", "out too"]
        access.take_tokens(Tokens({digest_of(OTHER): BERT}))
        assert ended == ["out", "out too", "in", "token"]
        access.take_tokens(Tokens({digest_of(OTHER): ANNA}))
        assert ended == ["out", "out too", "in", "token", "other"]
    assert access._streams == {}
    assert access._timer is None


async def test_stream_ends_when_a_newer_session_takes_its_place(access: Access) -> None:
    ended: list[str] = []
    identity = access.identify([], access.sessions.begin(digest_of(TOKEN)), "")
    assert identity is not None
    with access.stream(identity, lambda: ended.append("x")):
        for _ in range(MAX_SESSIONS_OF_TOKEN - 1):
            access.sessions.begin(digest_of(TOKEN))
        assert ended == []
        access.sessions.begin(digest_of(TOKEN))
        assert ended == ["x"]


async def test_stream_ends_when_its_session_is_too_old(access: Access, clock: Clock) -> None:
    over = asyncio.Event()
    identity = access.identify([], access.sessions.begin(digest_of(TOKEN)), "")
    assert identity is not None
    clock.now_s += SESSION_S - 0.01  # which the stream does not let it be idle in
    access.sessions._by_id[identity.session].used = clock.now_s
    with access.stream(identity, over.set):
        assert not over.is_set()
        clock.now_s += 0.02
        async with asyncio.timeout(5):
            await over.wait()
    assert access._timer is None


async def test_stream_of_a_session_that_has_ended_meanwhile_ends_at_once(access: Access) -> None:
    ended: list[str] = []
    identity = access.identify([], access.sessions.begin(digest_of(TOKEN)), "")
    assert identity is not None
    access.sessions.end(identity.session)
    with access.stream(identity, lambda: ended.append("x")):
        assert ended == ["x"]


# --- Tokens --------------------------------------------------------------------------------------


def test_token_says_who_asks(access: Access) -> None:
    for text in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
        identity = access.identify([text], "", "192.0.2.1")
        assert identity is not None
        assert identity.client == ANNA
    assert access.identify([], "", "192.0.2.1") is None


@pytest.mark.parametrize("given", [["Basic abc"], ["Bearer"], [TOKEN], [f"Bearer {TOKEN}"] * 2])
def test_other_authorization_is_refused(access: Access, given: list[str]) -> None:
    with pytest.raises(Problem) as refused:
        access.identify(given, "", "192.0.2.1")
    assert status(refused) == 401
    assert "WWW-Authenticate" in refused.value.headers


def test_bad_tokens_of_an_address_are_limited_and_a_right_one_still_works(access: Access) -> None:
    for _ in range(BAD_TOKENS):
        with pytest.raises(Problem) as refused:
            access.by_token("wrong", "192.0.2.1")
        assert status(refused) == 401
    with pytest.raises(Problem) as refused:
        access.by_token("wrong", "192.0.2.1")
    assert status(refused) == 429
    assert 0 < int(refused.value.headers["Retry-After"]) <= RETRY_S + 1
    assert access.by_token(TOKEN, "192.0.2.1").client == ANNA
    with pytest.raises(Problem) as refused:
        access.by_token("wrong", "192.0.2.2")
    assert status(refused) == 401


def test_bad_tokens_are_forgotten_one_by_one(clock: Clock) -> None:
    bad = BadTokens(clock)
    assert [bad.count("a") > 0 for _ in range(BAD_TOKENS + 1)] == [False] * BAD_TOKENS + [True]
    clock.now_s += RETRY_S
    assert bad.count("a") == 0
    assert bad.count("a") > 0
    clock.now_s += BAD_TOKENS * RETRY_S
    assert [bad.count("a") > 0 for _ in range(BAD_TOKENS + 1)] == [False] * BAD_TOKENS + [True]


def test_addresses_of_one_ipv6_network_count_as_one(clock: Clock) -> None:
    bad = BadTokens(clock)
    waits = [bad.count(f"2001:db8::{number:x}") for number in range(BAD_TOKENS + 1)]
    assert waits[-1] > 0
    assert bad.count("2001:db8:0:1::1") == 0


def test_addresses_that_are_remembered_are_bounded(clock: Clock) -> None:
    bad = BadTokens(clock)
    for number in range(MAX_ADDRESSES + 50):
        bad.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(bad._full_at) == MAX_ADDRESSES


def test_role_is_needed(access: Access) -> None:
    identity = access.by_token(TOKEN, "")
    assert require(identity, Role.VIEW) is identity
    for role in (Role.LISTEN, Role.CONTROL):
        with pytest.raises(Problem) as refused:
            require(identity, role)
        assert status(refused) == 403
    with pytest.raises(Problem) as refused:
        require(None, Role.VIEW)
    assert status(refused) == 401


def test_user_of_the_unix_socket_may_do_everything(access: Access) -> None:
    identity = access.identify([], "", "", by_socket="uid 1000")
    assert identity is not None
    assert identity.client == Client("uid 1000", frozenset(Role))
    assert access.is_current(identity)


# --- Host and Origin -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:9080", "127.0.0.1:9080", "[::1]:9080", "[::1]", "localhost."),
        *("pbx.example.org", "PBX.example.org:443", "192.0.2.7:9080"),
        *("two.example.org:8443", "two.example.org", "three.example.org", "192.0.2.9:9080"),
    ],
)
def test_names_of_this_daemon_are_taken(access: Access, host: str) -> None:
    assert access.check_host([host], "192.0.2.9") == host.lower()


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", ":80", "a:b"),
        *("192.0.2.8", "localhost@evil.example", "evil.example#localhost", "localhost/x", "[::1"),
        *("xpbx.example.org", "pbx.example.org.evil.example", "localhost?x", "local host"),
    ],
)
def test_other_names_are_refused(access: Access, host: str) -> None:
    with pytest.raises(Problem) as refused:
        access.check_host([host], "192.0.2.7")
    assert status(refused) == 421


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"]])
def test_request_has_one_host(access: Access, hosts: list[str]) -> None:
    with pytest.raises(Problem) as refused:
        access.check_host(hosts, "")
    assert status(refused) == 400


PORT_9080 = "localhost:9080"


@pytest.mark.parametrize(
    ("origin", "host", "is_tls"),
    [
        ("http://localhost:9080", "localhost:9080", False),
        ("HTTP://[::1]:9080", "[::1]:9080", False),
        ("http://localhost", "localhost", False),
        ("http://localhost", "localhost:80", False),
        ("https://localhost:9080", "localhost:9080", True),
        ("https://192.0.2.7", "192.0.2.7:443", True),
        ("https://pbx.example.org", "pbx.example.org", True),
        ("http://pbx.example.org:9080", "pbx.example.org:9080", False),
        # By a proxy that speaks TLS, with the Host of the browser or one of its own.
        ("https://pbx.example.org", "pbx.example.org", False),
        ("https://pbx.example.org:443", "pbx.example.org", False),
        ("https://pbx.example.org", "127.0.0.1:9080", False),
        ("https://two.example.org:8443", "two.example.org", False),
        ("https://two.example.org:8443", "two.example.org:8443", False),
        ("https://two.example.org:8443", "127.0.0.1:9080", False),
        ("http://three.example.org", "three.example.org", False),
    ],
)
def test_own_page_may_ask(access: Access, origin: str, host: str, is_tls: bool) -> None:
    access.check_origin([origin], host, is_tls=is_tls)


@pytest.mark.parametrize(
    ("origin", "host", "is_tls"),
    [
        *((bad, PORT_9080, False) for bad in ("null", "http://evil.example", "", "file://")),
        *((f"{one}://localhost:9080", PORT_9080, False) for one in ("ftp", "chrome-extension")),
        ("http://localhost:9080.evil.example", PORT_9080, False),
        # Other programs of the same machine.
        ("http://localhost:9081", PORT_9080, False),
        ("http://localhost", PORT_9080, False),
        ("http://localhost:80", PORT_9080, False),
        ("https://localhost", PORT_9080, False),
        ("https://localhost:9080", PORT_9080, False),
        ("http://localhost:9080", PORT_9080, True),
        ("http://[::1]", "[::1]:9080", False),
        ("http://192.0.2.7", "192.0.2.7:9080", False),
        ("https://192.0.2.7", "192.0.2.7:9080", False),
        ("http://pbx.example.org:81", "pbx.example.org", False),
        ("http://pbx.example.org", "pbx.example.org", False),  # the proxy may speak TLS
        ("http://pbx.example.org", "127.0.0.1:9080", False),
        ("https://pbx.example.org", "pbx.example.org:9080", False),
        ("https://two.example.org", "two.example.org:8443", False),
        ("https://two.example.org", "two.example.org", False),
        ("http://two.example.org", "two.example.org", False),
        ("https://three.example.org", "three.example.org", False),
    ],
)
def test_page_of_another_site_may_not_ask(
    access: Access, origin: str, host: str, is_tls: bool
) -> None:
    with pytest.raises(Problem) as refused:
        access.check_origin([origin], host, is_tls=is_tls)
    assert status(refused) == 403
    own = f"{'https' if is_tls else 'http'}://{PORT_9080}"
    access.check_origin([own], PORT_9080, is_tls=is_tls)
    with pytest.raises(Problem):
        access.check_origin([own, origin], host, is_tls=is_tls)


def test_session_that_changes_something_says_from_which_page(access: Access) -> None:
    by_session = access.identify([], access.sessions.begin(digest_of(TOKEN)), "")
    by_token = access.by_token(TOKEN, "")
    assert by_session is not None
    for method in ("POST", "PATCH", "DELETE"):
        with pytest.raises(Problem):
            require_origin(by_session, method, [], always=False)
        require_origin(by_session, method, ["http://localhost"], always=False)
        require_origin(by_token, method, [], always=False)
    require_origin(by_session, "GET", [], always=False)
    with pytest.raises(Problem):
        require_origin(by_session, "GET", [], always=True)
    require_origin(by_token, "GET", [], always=True)


def test_ids_of_sessions_come_from_the_systems_randomness(
    access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def token_urlsafe(size: int) -> str:
        asked.append(size)
        return "r" * 43

    monkeypatch.setattr(secrets, "token_urlsafe", token_urlsafe)
    access.sessions.begin(digest_of(TOKEN))
    assert asked == [32]
