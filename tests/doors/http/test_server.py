"""A door on loopback: what is looked at before anything is answered, and how answers look."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from audiofork.config import Address, HttpConfig
from audiofork.doors.http import server as server_module
from audiofork.doors.http.access import BAD_TOKENS, COOKIE
from audiofork.doors.http.problems import EXPLAINED, Kind
from audiofork.doors.http.sending import CONTENT_SECURITY_POLICY, HEADERS
from audiofork.doors.http.server import MAX_BODY_BYTES
from audiofork.errors import (
    AmiActionFailed,
    AmiTimeout,
    AmiUnavailable,
    ConfigError,
    DaemonBusy,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.text import A_BUG
from tests.doors.http.stage import (
    CONTROLLER,
    FORK_ID,
    LISTENER,
    TOKENS,
    VIEWER,
    Answer,
    Stage,
    request,
    staged,
    write_tokens,
)

START = {"channel": "PJSIP/1-1", "url": "ws://localhost/"}
FORKS = "/api/v1/forks"
OPEN_TO_ALL = {"/healthz", "/readyz", "/api/v1/session", "/", "/favicon.ico"}


def problem(answer: Answer) -> tuple[int, str]:
    """Return the status and the detail of a problem, which must be one in every respect."""
    assert answer.headers["content-type"] == "application/problem+json"
    fields = answer.json
    assert set(fields) == {"type", "title", "status", "detail", "instance"}
    assert fields["status"] == answer.status
    kind = fields["type"].removeprefix("/problems/")
    assert fields["type"] == "about:blank" or kind in list(Kind)
    assert fields["title"]
    detail: str = fields["detail"]
    return answer.status, detail


# --- Who may ask ---------------------------------------------------------------------------------


async def test_every_route_but_the_open_ones_needs_a_token(stage: Stage) -> None:
    paths = {
        route.path: route.method
        for route in stage.door.routes.routes
        if not route.path.startswith(("/page", "/problems"))
    }
    assert len(paths) > 12
    for path, method in paths.items():
        answer = await stage.ask(method, path.replace("{id}", FORK_ID), "")
        if path in OPEN_TO_ALL and not (path.endswith("session") and method != "POST"):
            assert answer.status not in (401, 403), path
        else:
            assert problem(answer)[0] == 401, path
            assert answer.headers["www-authenticate"] == 'Bearer realm="audiofork"'


async def test_every_method_that_changes_something_needs_control(stage: Stage) -> None:
    for method, path in (
        ("POST", FORKS),
        ("PATCH", f"{FORKS}/{FORK_ID}"),
        ("DELETE", f"{FORKS}/{FORK_ID}"),
    ):
        for token in (VIEWER, LISTENER):
            answer = await stage.ask(method, path, token, START)
            assert problem(answer) == (403, "the token of this request has not the role control")
    assert stage.others.requests == []


async def test_listening_needs_listen(stage: Stage) -> None:
    for token in (VIEWER, CONTROLLER):
        answer = await stage.get(f"{FORKS}/{FORK_ID}/listen", token)
        assert problem(answer) == (403, "the token of this request has not the role listen")


async def test_bad_tokens_are_slowed_down_and_a_right_one_works(stage: Stage) -> None:
    for _ in range(BAD_TOKENS):
        assert problem(await stage.get(FORKS, "wrong"))[0] == 401
    answer = await stage.get(FORKS, "wrong")
    assert problem(answer)[0] == 429
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["connection"] == "close"
    answer = await stage.ask("POST", "/api/v1/session", "", {"token": "wrong"})
    assert problem(answer)[0] == 429
    assert (await stage.get(FORKS)).status == 200


async def test_token_stands_in_no_log_and_in_no_answer(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        await stage.get(FORKS, "wr0ng-t0ken"),
        await stage.get(FORKS),
        await stage.ask("POST", "/api/v1/session", "", {"token": "wr0ng-t0ken"}),
        await stage.ask("POST", FORKS, body=START),
        await stage.get(f"{FORKS}?token=wr0ng-t0ken"),
    ]
    said = caplog.text + str(answers)
    assert not any(token in said for token in (VIEWER, CONTROLLER))
    assert "wr0ng-t0ken" not in caplog.text + str(answers[:4])


async def test_reload_takes_new_tokens_and_drops_old_ones(stage: Stage, tmp_path: Path) -> None:
    config = HttpConfig(listen=Address("127.0.0.1", 0), tokens_file=str(tmp_path / "tokens"))
    write_tokens(tmp_path, TOKENS.replace(VIEWER, "n" * 20))
    take = stage.door.reading_tokens(config)
    assert (await stage.get(FORKS)).status == 200  # until the rest of the configuration is used
    take()
    assert (await stage.get(FORKS)).status == 401
    assert (await stage.get(FORKS, "n" * 20)).status == 200


async def test_reload_of_a_bad_file_leaves_the_tokens(stage: Stage, tmp_path: Path) -> None:
    write_tokens(tmp_path, "anna view short")
    with pytest.raises(ConfigError):
        stage.door.reading_tokens(HttpConfig(tokens_file=str(tmp_path / "tokens")))
    assert (await stage.get(FORKS)).status == 200


# --- The session ---------------------------------------------------------------------------------


async def begun(stage: Stage, token: str = VIEWER, **headers: str) -> str:
    """Begin a session; return the header Set-Cookie."""
    answer = await stage.ask("POST", "/api/v1/session", "", {"token": token}, **headers)
    assert answer.status == 200
    return answer.headers["set-cookie"]


def cookie_of(header: str) -> str:
    return header.partition(";")[0]


async def test_session_begins_by_a_token_and_ends_by_itself(stage: Stage) -> None:
    header = await begun(stage)
    cookie = cookie_of(header)
    assert VIEWER not in header
    assert {part.strip() for part in header.split(";")[1:]} == {
        *("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200")
    }
    answer = await stage.get("/api/v1/session", "", Cookie=cookie)
    assert answer.json == {"name": "anna", "roles": ["view"]}
    assert (await stage.get(FORKS, "", Cookie=cookie)).status == 200
    origin = f"http://localhost:{stage.port}"
    headers = {"Cookie": cookie, "host": f"localhost:{stage.port}"}
    answer = await stage.ask("DELETE", "/api/v1/session", "", **headers)
    assert problem(answer) == (403, "Origin: missing, and a session needs it here")
    answer = await stage.ask("DELETE", "/api/v1/session", "", Origin=origin, **headers)
    assert answer.status == 204
    assert f'{COOKIE}=""' in answer.headers["set-cookie"]
    assert (await stage.get(FORKS, "", Cookie=cookie)).status == 401


async def test_session_has_the_roles_of_its_token(stage: Stage) -> None:
    cookie = cookie_of(await begun(stage))
    origin, host = f"http://localhost:{stage.port}", f"localhost:{stage.port}"
    answer = await stage.ask("POST", FORKS, "", START, Cookie=cookie, Origin=origin, host=host)
    assert problem(answer) == (403, "the token of this request has not the role control")
    cookie = cookie_of(await begun(stage, CONTROLLER))
    answer = await stage.ask("POST", FORKS, "", START, Cookie=cookie)
    assert problem(answer)[0] == 403
    answer = await stage.ask("POST", FORKS, "", START, Cookie=cookie, Origin=origin, host=host)
    assert answer.status == 201


async def test_cookie_of_a_page_that_came_over_tls_is_sent_only_so(tmp_path: Path) -> None:
    async with staged(tmp_path, hosts=("pbx.example.org",)) as stage:
        assert "Secure" in await begun(
            stage, Origin="https://pbx.example.org", host="pbx.example.org"
        )


async def test_what_needs_no_token_does_not_look_at_one(stage: Stage) -> None:
    for path in ("/healthz", "/readyz", "/"):
        for header in ("Bearer wrong", "Basic abc", ""):
            assert (await stage.get(path, "", Authorization=header)).status == 200
    for _ in range(20):
        assert (await stage.get("/healthz", "wrong")).status == 200
    assert (await stage.get(FORKS, "wrong")).status == 401  # none of those has counted


# --- Host and Origin -----------------------------------------------------------------------------


async def test_name_of_another_site_is_refused_on_every_path(stage: Stage) -> None:
    for path in ("/", "/healthz", FORKS, "/nothing", "/metrics"):
        answer = await stage.get(path, host="evil.example")
        assert problem(answer)[0] == 421
    assert (await stage.get(FORKS, host=f"127.0.0.1:{stage.port}")).status == 200


async def test_name_that_is_configured_is_taken(tmp_path: Path) -> None:
    async with staged(tmp_path, hosts=("pbx.example.org",)) as stage:
        assert (await stage.get(FORKS, host="pbx.example.org")).status == 200
        assert (await stage.get(FORKS, host="www.example.org")).status == 421


async def test_two_hosts_or_none_are_refused(stage: Stage) -> None:
    for head in (
        f"GET {FORKS} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        f"GET {FORKS} HTTP/1.1\r\n\r\n",
        f"GET {FORKS} HTTP/1.0\r\n\r\n",
    ):
        async with stage.client() as client:
            assert (await client.raw(head.encode())).status == 400


async def test_whole_url_in_the_request_is_no_way_around_the_host(stage: Stage) -> None:
    async with stage.client() as client:
        head = f"GET http://evil.example{FORKS} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert (await client.raw(head.encode())).status in (400, 404)


async def test_page_of_another_site_is_refused_on_every_path(stage: Stage) -> None:
    for method, path in (("GET", FORKS), ("POST", FORKS), ("GET", "/healthz"), ("GET", "/")):
        answer = await stage.ask(method, path, CONTROLLER, START, Origin="http://evil.example")
        assert problem(answer) == (403, "Origin: a page of another site may not ask this")
    assert stage.others.requests == []


async def test_page_of_another_port_of_this_machine_is_refused(stage: Stage) -> None:
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{stage.port}"
        for origin in (f"http://{name}", f"https://{name}", f"https://{host}"):
            assert problem(await stage.get(FORKS, Origin=origin, host=host))[0] == 403
        assert (await stage.get(FORKS, Origin=f"http://{host}", host=host)).status == 200


async def test_no_site_is_told_that_it_may_read_the_answers(stage: Stage) -> None:
    origin = f"http://localhost:{stage.port}"
    answer = await stage.get(FORKS, Origin=origin, host=f"localhost:{stage.port}")
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = await stage.ask("OPTIONS", FORKS, Origin=origin, host=f"localhost:{stage.port}")
    assert problem(answer)[0] == 405


# --- What answers look like ----------------------------------------------------------------------


async def test_flood_of_requests_that_meet_a_bug_is_one_traceback(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.others.error = ZeroDivisionError("a bug")
    async with stage.client() as client:
        for _ in range(30):
            answer = await client.raw(request("POST", FORKS, CONTROLLER, START))
            assert answer.status == 500
    assert stage.door._bugs._timer is not None  # the second is not over
    stage.door._bugs._on_second()
    records = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert records == [
        "an HTTP request could not be handled",
        "... and 29 more HTTP requests that could not be handled in the last second",
    ]


async def test_every_answer_has_the_headers_errors_too(stage: Stage) -> None:
    stage.others.error = OSError("a bug")
    answers = [
        await stage.get(FORKS),
        await stage.get("/healthz"),
        await stage.get("/nothing"),
        await stage.get(FORKS, "wrong"),
        await stage.get(FORKS, host="evil.example"),
        await stage.ask("PUT", FORKS),
        await stage.ask("POST", FORKS, body=b"x" * (MAX_BODY_BYTES + 1)),
        await stage.ask("POST", FORKS, body=b"{"),
        await stage.ask("POST", FORKS, body=START),
    ]
    async with stage.client() as client:
        answers.append(await client.raw(b"nonsense\r\n\r\n"))
    assert [answer.status for answer in answers] == [
        *(200, 200, 404, 401, 421, 405, 413, 422, 500, 400)
    ]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name.lower()] == value, answer
        if answer.status >= 400:
            problem(answer)
    assert CONTENT_SECURITY_POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; media-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


async def test_bug_is_told_without_its_text_and_logged_with_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.others.error = KeyError("s3cret")
    answer = await stage.ask("POST", FORKS, body=START)
    assert problem(answer) == (500, A_BUG)
    assert "KeyError: 's3cret'" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "kind", "detail"),
    [
        (RequestRefused("WsServer: no host"), 422, Kind.REFUSED, "WsServer: no host"),
        (NoSuchChannel(), 422, Kind.NO_SUCH_CHANNEL, "No such channel"),
        (RequestRefused("No such fork a; did you mean"), 404, Kind.NO_SUCH_FORK, "No such fork a"),
        (AmiUnavailable("not connected"), 503, Kind.ASTERISK_AWAY, "Asterisk cannot be asked: no"),
        (AmiTimeout("no answer"), 503, Kind.ASTERISK_AWAY, "Asterisk cannot be asked: no answer"),
        (AmiActionFailed("Originate", "no"), 422, Kind.REFUSED, "Asterisk has refused: Originate"),
        (DaemonBusy("another"), 503, Kind.BUSY, "another"),
        (TimeoutError(), 503, Kind.BUSY, "the relay does not answer in time"),
        (RequestRefused("a\r\nb\x1b[31m" + "x" * 9000), 422, Kind.REFUSED, "a??b?[31mxxx"),
    ],
)
async def test_refusal_is_a_problem_with_the_sentence_of_the_other_doors(
    stage: Stage, error: Exception, status: int, kind: Kind, detail: str
) -> None:
    stage.others.error = error
    answer = await stage.ask("POST", FORKS, body=START)
    assert problem(answer)[0] == status
    assert answer.json["detail"].startswith(detail)
    assert len(answer.body) < 1000
    assert answer.json["type"] == f"/problems/{kind}"
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_every_kind_of_problem_is_explained_where_its_type_says(stage: Stage) -> None:
    assert set(EXPLAINED) == set(Kind)
    for kind in Kind:
        answer = await stage.get(f"/problems/{kind}", "")
        assert answer.status == 200
        assert answer.body.decode() == EXPLAINED[kind] + "\n"
    assert (await stage.get("/problems/other", "")).status == 404


async def test_head_is_answered_as_get_without_content(stage: Stage) -> None:
    async with stage.client() as client:
        answer = await client.raw(request("HEAD", FORKS, VIEWER))
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 100
        # The next answer follows at once: there was no content.
        assert (await client.raw(request("GET", "/healthz"))).body == b"ok\n"
    answer = await stage.ask("HEAD", "/api/v1/events")
    assert answer.status == 405


async def test_other_methods_are_refused_with_those_that_are_allowed(stage: Stage) -> None:
    answer = await stage.ask("PUT", FORKS)
    assert problem(answer) == (405, "expected GET, POST")
    assert answer.headers["allow"] == "GET, POST"
    for method in ("TRACE", "CONNECT", "BREW"):
        assert (await stage.ask(method, FORKS)).status in (400, 405)


# --- Paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/index.html%00.js",
        "/page/.hidden",
        "/page/",
        "//healthz",
        "/healthz/",
        "/healthz%20",
        "/./healthz",
        "/api/v1/forks/../../../healthz",
        "/api/v1/%66orks",
        "/API/v1/forks",
        f"/api/v1/forks/{FORK_ID}/",
        f"/api/v1/forks/{FORK_ID.upper()}",
        "/api/v1/forks/3f2a",
        f"/api/v1/forks/{FORK_ID}%00",
        "/api/v1/forks;a=b",
        "/" + "a" * 7000,
    ],
)
async def test_path_with_a_trick_leads_nowhere(stage: Stage, path: str) -> None:
    answer = await stage.get(path)
    assert problem(answer) == (404, "there is nothing at this path")


# --- Bodies --------------------------------------------------------------------------------------


async def test_body_that_is_too_big_is_refused_before_it_is_read(stage: Stage) -> None:
    head = request("POST", FORKS, CONTROLLER, Content_Type="application/json")[:-2]
    async with stage.client() as client:
        answer = await client.raw(head + b"Content-Length: 99999999\r\n\r\n{")
        assert problem(answer) == (413, f"expected {MAX_BODY_BYTES} bytes at most")
        await client.ended()
    async with stage.client() as client:  # one that does not say how long it is
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        answer = await client.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        assert answer.status == 413
        await client.ended()


async def test_body_of_the_greatest_size_is_read(stage: Stage) -> None:
    body = json.dumps(START).encode()
    answer = await stage.ask("POST", FORKS, body=body.ljust(MAX_BODY_BYTES))
    assert answer.status == 201


async def test_body_that_does_not_come_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BODY_S", 0.05)
    head = request("POST", FORKS, CONTROLLER, Content_Type="application/json")[:-2]
    async with stage.client() as client:
        answer = await client.raw(head + b"Content-Length: 10\r\n\r\n{")
        assert problem(answer) == (408, "the body did not come in time")
        await client.ended()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/json", "Content_Encoding": "gzip"},
        {"Content_Type": ""},
    ],
)
async def test_body_that_is_no_json_is_refused_by_its_type(
    stage: Stage, headers: dict[str, str]
) -> None:
    answer = await stage.ask("POST", FORKS, body=START, **headers)
    assert problem(answer)[0] == 415
    assert stage.others.requests == []


async def test_json_may_name_its_charset(stage: Stage) -> None:
    answer = await stage.ask(
        "POST", FORKS, body=START, Content_Type="application/json; charset=utf-8"
    )
    assert answer.status == 201


async def test_query_is_strict_on_every_route(stage: Stage) -> None:
    for path in ("/healthz", FORKS, "/api/v1/status", "/api/v1/history", "/api/v1/events"):
        answer = await stage.get(f"{path}?nonsense=1")
        assert problem(answer)[0] == 422
    answer = await stage.get(f"{FORKS}?q={'a' * 5000}")
    assert problem(answer)[0] == 422
