"""Requests that the HTTP door must refuse, by their bytes."""

from __future__ import annotations

import base64
import json
import secrets
from typing import NamedTuple

TOKENS = {name: secrets.token_hex(24) for name in ("view", "listen", "control")}
"""A token for each role."""


class Case(NamedTuple):
    """A request that must be refused: its name, its bytes, and the statuses that refuse it.

    No answer at all refuses it, too: that is 0.
    """

    name: str
    request: bytes
    statuses: tuple[int, ...]


def request(
    path: str = "/api/v1/forks",
    *headers: str,
    method: str = "GET",
    host: str | None = "localhost",
    token: str = "",
    body: bytes = b"",
    version: str = "HTTP/1.1",
) -> bytes:
    """Return a request as bytes: nothing of it is checked, escaped or completed."""
    lines = [f"{method} {path} {version}"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [f"Authorization: Bearer {token}"] if token else []
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode("latin-1") + body


VIEW, LISTEN, CONTROL = TOKENS["view"], TOKENS["listen"], TOKENS["control"]
_KEY = base64.b64encode(b"0123456789abcdef").decode()
_UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
_SOCKET = (*_UPGRADE, f"Sec-WebSocket-Key: {_KEY}")
_START = json.dumps({"channel": "SIP/1", "url": "ws://127.0.0.1:1/"}).encode()
_NO = (400, 404)
_BROKEN = (0, 400, 413, 414, 431, 505)


def cases(fork_id: str, session: str) -> list[Case]:
    """Return all requests that must be refused, of a daemon that has a fork.

    Args:
        fork_id: The id of the fork.
        session: The id of a session that may control.
    """
    refused = [*_strangers(fork_id), *_sessions(fork_id, session), *_other_sites(fork_id)]
    return [*refused, *_paths(), *_broken(), *_bodies()]


def _sessions(fork_id: str, session: str) -> list[Case]:
    fork, ours = f"/api/v1/forks/{fork_id}", f"Cookie: audiofork_session={session}"
    other = f"Cookie: audiofork_session={'x' * len(session)}"
    evil = ("Origin: http://evil.example", "Origin: null", "Origin: https://localhost.evil.example")
    return [
        Case("a session that is made up", request(fork, other), (401,)),
        Case("a session without Origin", request(fork, ours, method="DELETE"), (403,)),
        *(
            Case(f"a session, {one}", request(fork, ours, one, method="DELETE"), (403,))
            for one in evil
        ),
        Case("a session at another name", request(fork, ours, host="evil.example"), (403, 421)),
        Case("a session listens without Origin", request(f"{fork}/listen", ours, *_SOCKET), (403,)),
    ]


def _strangers(fork_id: str) -> list[Case]:
    fork = f"/api/v1/forks/{fork_id}"
    listen = f"{fork}/listen"
    paths = ("/api/v1/forks", "/api/v1/status", "/api/v1/events", "/metrics", fork, listen)
    basic = base64.b64encode(f"view:{VIEW}".encode()).decode()
    return [
        *(Case(f"{path[:20]}: no token", request(path), (401,)) for path in paths),
        Case("a wrong token", request(token="x" * 48), (401, 429)),
        Case("a part of a token", request(token=VIEW[:-1]), (401, 429)),
        Case("a token in the query", request(f"/api/v1/forks?token={VIEW}"), (401, 422, 400)),
        Case("a token by Basic", request("/metrics", f"Authorization: Basic {basic}"), (401,)),
        Case(
            "a token as a cookie", request("/metrics", f"Cookie: audiofork_session={VIEW}"), (401,)
        ),
        Case(
            "two tokens",
            request("/metrics", f"Authorization: Bearer {VIEW}", token=VIEW),
            (400, 401),
        ),
        Case("view starts", request(method="POST", token=VIEW, body=_START), (403,)),
        Case("view stops", request(fork, method="DELETE", token=VIEW), (403,)),
        Case("listen stops", request(fork, method="DELETE", token=LISTEN), (403,)),
        Case("view mutes", request(fork, method="PATCH", token=VIEW, body=b"{}"), (403,)),
        Case("view listens", request(listen, *_SOCKET, token=VIEW), (403,)),
        Case("control listens", request(listen, *_SOCKET, token=CONTROL), (403,)),
    ]


def _other_sites(fork_id: str) -> list[Case]:
    fork, evil = f"/api/v1/forks/{fork_id}", "Origin: http://evil.example"
    listen = f"{fork}/listen"
    hosts = ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1", "a b")
    wrong = (400, 403, 421)
    return [
        *(Case(f"Host: {one}", request(host=one, token=VIEW), wrong) for one in hosts),
        Case("no Host", request(host=None, token=VIEW), (400,)),
        Case("two Hosts", request("/", "Host: localhost"), (400,)),
        Case("Origin: another site", request(fork, evil, method="DELETE", token=CONTROL), (403,)),
        Case("Origin: null", request(fork, "Origin: null", method="DELETE", token=CONTROL), (403,)),
        Case("a WebSocket of another site", request(listen, *_SOCKET, evil, token=LISTEN), (403,)),
        Case(
            "another site asks whether it may",
            request(fork, evil, "Access-Control-Request-Method: DELETE", method="OPTIONS"),
            (401, 403, 405),
        ),
    ]


def _paths() -> list[Case]:
    paths = [
        "/page/../../../../etc/passwd",
        "/page/..%2f..%2f..%2fetc/passwd",
        "/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/page/....//....//etc/passwd",
        "/page//etc/passwd",
        "/page/app.js%00.html",
        "/page/..\\..\\access.py",
        "/page/",
        "//etc/passwd",
        "/etc/passwd",
        "/page.py",
        "/page/%252e%252e/access.py",
        "/api/v1/forks/../../../etc/passwd",
        "/api/v1/forks/%2e%2e%2fstatus",
        "/api/v1/forks/'%20OR%201=1--",
        "/api/v1/history/..%2f..",
        "http://evil.example/",
        "*",
        "",
    ]
    return [Case(f"path {one}", request(one, token=VIEW), (*_NO, 405, 421)) for one in paths]


def _broken() -> list[Case]:
    chunked = "Transfer-Encoding: chunked"
    return [
        *(Case(one, request(method=one), (400, 401, 404, 405)) for one in ("TRACE", "PUT", "X-Y")),
        Case("CONNECT", request("evil.example:443", method="CONNECT"), (*_NO, 405)),
        Case("two lengths", request("/", "Content-Length: 1", "Content-Length: 2"), (400,)),
        Case("a length below 0", request("/", "Content-Length: -1"), (400,)),
        Case(
            "length and chunks", request("/", chunked, "Content-Length: 4", method="POST"), (400,)
        ),
        Case("chunks of xchunked", request("/", "Transfer-Encoding: xchunked"), (400, 404, 501)),
        Case("a folded header", request("/", "X: a\r\n b"), (400,)),
        Case("a blank before the colon", request("/", "X : a"), (400,)),
        Case("a zero in a header", request("/", "X: a\0b"), (400,)),
        Case("HTTP/0.9", b"GET /\r\n\r\n", _BROKEN),
        Case("HTTP/3.0", request("/", version="HTTP/3.0"), _BROKEN),
        Case("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100, _BROKEN),
        Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600, _BROKEN),
        Case("a path of 1 MB", request("/" + "a" * 1_000_000), _BROKEN),
        Case("a header of 1 MB", request("/", "X: " + "a" * 1_000_000), _BROKEN),
        Case("10,000 headers", request("/", *(f"X-{n}: 1" for n in range(10_000))), _BROKEN),
    ]


def _bodies() -> list[Case]:
    def start(name: str, body: bytes, *statuses: int) -> Case:
        return Case(name, request(method="POST", token=CONTROL, body=body), statuses)

    form = request("/api/v1/forks", "Content-Type: text/plain", method="POST", token=CONTROL)
    packed = request(
        "/api/v1/forks", "Content-Encoding: gzip", method="POST", token=CONTROL, body=_START
    )
    return [
        Case("a body as a form sends it", form, (400, 415)),
        Case("a packed body", packed, (400, 415)),
        start("a body of 10 MB", b'{"url": "' + b"a" * 10_000_000 + b'"}', 0, 413),
        start("a hundred thousand brackets", b"[" * 100_000, 400, 413, 422),
        start("a number of 5,000 digits", b'{"url": ' + b"9" * 5000 + b"}", 400, 413, 422),
        start("half a character", b'{"url": "\xff"}', 400, 422),
        start("half a pair of surrogates", b'{"url": "\\ud800", "channel": "SIP/1"}', 400, 422),
        start("a name twice", b'{"url": "ws://127.0.0.1/", "url": 1}', 400, 422),
        start("a list", b"[]", 400, 422),
        start("an unknown name", b'{"url": "@a", "uniqueid": "1.1", "isAdmin": true}', 422),
        start(
            "a line end in a channel", b'{"url":"ws://127.0.0.1/","channel":"SIP/1\\r\\nX: 1"}', 422
        ),
        start("a URL that is not allowed", b'{"url":"ws://192.0.2.1/","uniqueid":"1.1"}', 422),
    ]
