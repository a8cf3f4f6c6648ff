"""Sessions, bad tokens, Host and Origin: the rules, with a clock of the tests' own."""

from __future__ import annotations

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

TOKEN, OTHER = "t" * 20, "o" * 20
ANNA, BERT = Client("anna", frozenset({Role.VIEW})), Client("bert", frozenset(Role))
TOKENS = Tokens({digest_of(TOKEN): ANNA, digest_of(OTHER): BERT})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access(TOKENS, ["pbx.example.org"], clock=clock)


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
        clock.now += IDLE_S - 1
        assert sessions.token_of(used) == b"a"
    assert sessions.token_of(idle) is None
    clock.now = 1000.0 + SESSION_S + 1
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
    clock.now += SESSION_S + 1
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
    clock.now += RETRY_S
    assert bad.count("a") == 0
    assert bad.count("a") > 0
    clock.now += BAD_TOKENS * RETRY_S
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
    ],
)
def test_names_of_this_daemon_are_taken(access: Access, host: str) -> None:
    assert access.check_host([host], "192.0.2.7") == host.lower()


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


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:9080", "localhost:9080"),
        ("https://pbx.example.org", "pbx.example.org"),
        ("https://pbx.example.org:443", "pbx.example.org"),
        ("https://pbx.example.org", "127.0.0.1:9080"),  # a proxy that sends a Host of its own
        ("HTTP://[::1]:9080", "[::1]:9080"),
    ],
)
def test_own_page_may_ask(access: Access, origin: str, host: str) -> None:
    access.check_origin([origin], host)


@pytest.mark.parametrize(
    "origin",
    [
        *("null", "http://evil.example", "http://localhost:9081", "http://localhost", ""),
        *("file://", "http://localhost:9080.evil.example", "ftp://localhost:9080"),
        *("http://pbx.example.org:81", "chrome-extension://localhost:9080"),
    ],
)
def test_page_of_another_site_may_not_ask(access: Access, origin: str) -> None:
    with pytest.raises(Problem) as refused:
        access.check_origin([origin], "localhost:9080")
    assert status(refused) == 403
    with pytest.raises(Problem):
        access.check_origin(["http://localhost:9080", origin], "localhost:9080")


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
