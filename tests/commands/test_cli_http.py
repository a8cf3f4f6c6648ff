"""The command line over HTTP: the same words and exit codes as over the control socket."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner, Result

from audiofork.cli import main
from audiofork.doors import http_client, http_connection, http_events
from tests.commands.http_door import Answer, TalkingDoor, event, problem
from tests.commands.views import FORK_ID, VIEW

TOKEN = "0123456789abcdefghijk"
OTHER_ID = "3f2a91c0-0000-4000-8000-000000000002"
START = ["start", VIEW.channel, "ws://localhost/"]
STREAM = Answer(kind="text/event-stream")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def door() -> Iterator[TalkingDoor]:
    with TalkingDoor() as one:
        one.answer("GET /forks", {"forks": [plain()], "total": 1, "next_cursor": ""})
        one.answer(f"DELETE /forks/{FORK_ID}", Answer(204))
        one.answer(f"PATCH /forks/{FORK_ID}", plain())
        one.answer("POST /forks", Answer(201, {"id": FORK_ID}))
        yield one


def plain(**changes: Any) -> dict[str, Any]:
    view = dataclasses.asdict(VIEW) | {"url": "wss://example.org/live"}
    return view | changes


def ask(url: str, token_file: Path | None, *arguments: str, **more: Any) -> Result:
    token = ["--token-file", str(token_file)] if token_file else []
    return CliRunner().invoke(main, [*arguments, "--url", url, *token], **more)


# --- What is asked -------------------------------------------------------------------------------


def test_list_is_the_same_table_as_over_the_socket(door: TalkingDoor, token_file: Path) -> None:
    result = ask(door.url, token_file, "list")
    assert result.exit_code == 0, result.output
    heading, row = result.output.splitlines()
    assert heading.split()[:2] == ["ID", "CHANNEL"]
    assert row.split()[:6] == [FORK_ID, VIEW.channel, "stereo", "snoop", "16000", "streaming"]
    assert door.asked[0].authorization == f"Bearer {TOKEN}"


def test_list_reads_all_pages(door: TalkingDoor, token_file: Path) -> None:
    door.answer(
        "GET /forks",
        {"forks": [plain()], "total": 2, "next_cursor": "more"},
        {"forks": [plain(id=OTHER_ID)], "total": 2, "next_cursor": ""},
    )
    result = ask(door.url, token_file, "list", "--json")
    assert [fork["id"] for fork in json.loads(result.output)] == [FORK_ID, OTHER_ID]
    assert [one.path for one in door.asked] == [
        "/api/v1/forks?limit=1000",
        "/api/v1/forks?limit=1000&cursor=more",
    ]


def test_list_tells_the_legs_that_are_left(door: TalkingDoor, token_file: Path) -> None:
    door.answer("GET /forks", {"forks": [], "legs_left": 2})
    assert ask(door.url, token_file, "list").output.startswith("no forks\n2 legs of ended forks")


def test_start_sends_the_fields_of_the_request_and_prints_the_id(
    door: TalkingDoor, token_file: Path
) -> None:
    further = ["--options", "D(in)M", "--post-process", "ls", "--params", "ticket=47%2011"]
    result = ask(door.url, token_file, *START, *further, "--no-wait")
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    assert door.asked[0].body == {
        "channel": VIEW.channel,
        "url": "ws://localhost/",
        "options": "D(in)M",
        "post_process": "ls",
        "params": {"ticket": "47 11"},
        "connect": False,
    }


def test_connect_of_a_uniqueid_says_so(door: TalkingDoor, token_file: Path) -> None:
    result = ask(door.url, token_file, "connect", "1700000000.42", "@bot", "--no-wait")
    assert result.exit_code == 0, result.output
    body = door.asked[0].body
    assert (body["uniqueid"], body["url"], body["connect"]) == ("1700000000.42", "@bot", True)


@pytest.mark.parametrize("target", [FORK_ID.upper(), VIEW.channel, VIEW.uniqueid])
def test_stop_of_an_id_a_channel_or_a_uniqueid_stops_its_forks(
    door: TalkingDoor, token_file: Path, target: str
) -> None:
    result = ask(door.url, token_file, "stop", target)
    assert (result.exit_code, result.output) == (0, f"{FORK_ID}\n")
    assert (door.asked[-1].method, door.asked[-1].path) == ("DELETE", f"/api/v1/forks/{FORK_ID}")


@pytest.mark.parametrize(
    ("arguments", "mute"),
    [
        (["on"], {"in": True, "out": True}),
        (["on", "--direction", "READ"], {"in": True}),
        (["off", "--direction", "write"], {"out": False}),
    ],
)
def test_mute_of_a_direction_leaves_the_other(
    door: TalkingDoor, token_file: Path, arguments: list[str], mute: dict[str, bool]
) -> None:
    assert ask(door.url, token_file, "mute", FORK_ID, *arguments).output == f"{FORK_ID}\n"
    assert door.asked[0].body == {"mute": mute}


def test_mute_that_one_fork_of_a_channel_refuses_names_those_that_are_muted(
    door: TalkingDoor, token_file: Path
) -> None:
    door.answer("GET /forks", {"forks": [plain(), plain(id=OTHER_ID)]})
    door.answer(f"PATCH /forks/{OTHER_ID}", problem(409, "AudioForkMute: it has one leg"))
    result = ask(door.url, token_file, "mute", VIEW.channel, "on")
    assert result.exit_code == 1
    assert result.output == f"audiofork: AudioForkMute: it has one leg; done before: {FORK_ID}\n"


def test_channel_without_forks_is_named_with_where_to_look(
    door: TalkingDoor, token_file: Path
) -> None:
    result = ask(door.url, token_file, "stop", "PJSIP/9")
    assert result.exit_code == 1
    told = "audiofork: No such fork: PJSIP/9; audiofork list shows all forks\n"
    assert result.output == told
    part = ask(door.url, token_file, "stop", FORK_ID[:8])
    assert f"No such fork 3f2a91c0; did you mean {FORK_ID}, on channel" in part.output


def test_watch_looks_again_over_one_connection_and_connects_anew_when_it_breaks(
    door: TalkingDoor, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            door.answer("GET /forks", None)
        if len(naps) == 3:
            door.answer("GET /forks", {"forks": []})
        if len(naps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = ask(door.url, token_file, "list", "--watch")
    assert result.exit_code == 0
    assert f"the daemon at {door.url} has closed the connection; trying again" in result.stderr
    assert "the daemon is back" in result.stderr
    assert "no forks" in result.stdout


# --- A start that is waited for ------------------------------------------------------------------


def moments(**at: float) -> list[dict[str, Any]]:
    return [{"at": one, "kind": kind, "text": ""} for kind, one in at.items()]


def test_start_says_after_how_long_the_fork_streams(door: TalkingDoor, token_file: Path) -> None:
    fork = plain(timeline=moments(requested=100.0, started=100.312))
    door.answer(f"GET /forks/{FORK_ID}", fork)
    result = ask(door.url, token_file, *START)
    assert (result.exit_code, result.stdout) == (0, f"{FORK_ID}\n")
    assert result.stderr == "fork 3f2a91c0 streams, 312 ms after the request\n"


def test_start_hears_by_the_stream_of_events_that_a_fork_streams(
    door: TalkingDoor, token_file: Path
) -> None:
    of_it = {"id": FORK_ID, "channel": VIEW.channel}
    door.events = (
        event("fork.requested", {"at": 100.0, "fork": of_it})
        + event("fork.started", {"at": 99.0, "fork": {"id": OTHER_ID}})
        + b": \n\n"
        + event("fork.started", {"at": 100.25, "fork": of_it})
    )
    door.answer("GET /events", STREAM)
    door.answer(f"GET /forks/{FORK_ID}", plain(state="attaching", waits_for="the server"))
    result = ask(door.url, token_file, *START)
    assert result.stderr.splitlines()[-1] == "fork 3f2a91c0 streams, 250 ms after the request"
    assert result.exit_code == 0


def test_start_says_what_it_waits_for_and_leaves_the_fork_after_the_timeout(
    door: TalkingDoor, token_file: Path
) -> None:
    away = plain(
        state="attaching",
        waits_for="the server",
        last_error="Connection refused",
        last_error_s=1.0,
        away_s=5.0,
        attempt=2,
        next_attempt_s=3.2,
    )
    door.answer(f"GET /forks/{FORK_ID}", away)
    result = ask(door.url, token_file, *START, "--timeout", "0.1")
    assert result.exit_code == 1
    text = "has waited 5 s for the server: Connection refused; attempt 2 in 3 s"
    assert f"fork 3f2a91c0 {text}\n" in result.stderr
    assert f"does not stream after 0.1 s: it {text}. It keeps trying" in result.stderr


ENDED = (
    f"audiofork: fork {FORK_ID} of {VIEW.channel} has ended before it streamed: sink-gone "
    "(Connection refused); is the server running, and does the URL name its host and port? "
    "Then start again\n"
)


def test_start_of_a_fork_that_ends_says_why_and_what_to_do(
    door: TalkingDoor, token_file: Path
) -> None:
    end = {"at": 1.0, "reason": "sink-gone", "detail": "Connection refused"}
    end["fork"] = {"id": FORK_ID, "channel": VIEW.channel}
    door.events = event("fork.ended", end)
    door.answer("GET /events", STREAM)
    result = ask(door.url, token_file, *START)
    assert (result.exit_code, result.stderr) == (1, ENDED)


def test_start_without_a_stream_of_events_asks_the_history_how_a_fork_has_ended(
    door: TalkingDoor, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "END_TIMEOUT_S", 0.01)
    entry = {"reason": "sink-gone", "detail": "Connection refused"}
    door.answer(f"GET /history/{FORK_ID}", entry)
    result = ask(door.url, token_file, *START)
    assert result.exit_code == 1
    assert "has ended before it streamed: sink-gone (Connection refused)" in result.stderr


def test_start_whose_fork_nobody_knows_any_more_refers_to_the_log(
    door: TalkingDoor, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "END_TIMEOUT_S", 0.01)
    result = ask(door.url, token_file, *START)
    assert result.exit_code == 1
    assert "has ended before it streamed: unknown; the daemon's log says more" in result.stderr


def test_start_whose_daemon_goes_exits_with_4_and_says_what_becomes_of_the_fork(
    door: TalkingDoor, token_file: Path
) -> None:
    door.answer(f"GET /forks/{FORK_ID}", None)
    result = ask(door.url, token_file, *START)
    assert (result.exit_code, result.stdout) == (4, f"{FORK_ID}\n")
    assert "has closed the connection, before fork" in result.stderr


@pytest.mark.parametrize(
    "stream",
    [
        b"data: [1]\n\n",
        b"data: {\n\n",
        b"data: " + b"x" * (http_events.MAX_EVENT_BYTES + 1),
        event("fork.started", {"fork": "no"}),
    ],
    ids=["list", "broken", "long", "no-fork"],
)
def test_stream_that_makes_no_sense_costs_a_start_nothing(
    door: TalkingDoor, token_file: Path, stream: bytes
) -> None:
    door.events = stream
    door.answer("GET /events", STREAM)
    door.answer(f"GET /forks/{FORK_ID}", plain(timeline=moments(requested=1.0, started=1.5)))
    result = ask(door.url, token_file, *START)
    assert (result.exit_code, result.stderr) == (
        0,
        "fork 3f2a91c0 streams, 500 ms after the request\n",
    )


# --- Refusals and faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        (problem(422, "Options: D takes in"), 1, "audiofork: Options: D takes in\n"),
        (problem(422, "No such channel"), 1, f"audiofork: No such channel: {VIEW.channel}; aster"),
        (problem(409, "D takes"), 1, "audiofork: D takes\n"),
        (problem(429, "too many"), 1, "audiofork: too many\n"),
        (problem(500, "a bug"), 1, "audiofork: a bug\n"),
        (problem(503, "busy", "/problems/busy"), 1, "audiofork: busy\n"),
        (problem(503, "off", "/problems/not-available"), 1, "audiofork: off\n"),
        (problem(503, "gone", "/problems/asterisk-away"), 4, "audiofork: gone\n"),
        (problem(401, "unknown"), 4, " refuses: unknown (the token of "),
        (problem(403, "no role"), 4, " refuses: no role (the token of "),
    ],
)
def test_refusal_is_told_in_the_daemons_words(
    door: TalkingDoor, token_file: Path, refusal: Answer, code: int, words: str
) -> None:
    door.answer("POST /forks", refusal)
    result = ask(door.url, token_file, *START)
    assert result.exit_code == code
    assert words in result.output
    assert TOKEN not in result.output


def test_refusal_cannot_control_the_terminal_nor_fill_it(
    door: TalkingDoor, token_file: Path
) -> None:
    door.answer("POST /forks", problem(422, "a\x1b[2J\nb" + "c" * 5000))
    result = ask(door.url, token_file, *START)
    assert result.output.startswith("audiofork: a?[2J?bccc")
    assert len(result.output) < 1100


@pytest.mark.parametrize(
    "given",
    [
        Answer(200, b"<html>", "text/html"),
        Answer(200, []),
        Answer(200, {"forks": [{}]}),
        Answer(200, {"forks": [plain(id="\x1b[2J")]}),
        Answer(302, b"", "text/html"),
        Answer(404, b"nginx", "text/html"),
        Answer(502, b"nginx", "text/html"),
        Answer(400, b"x" * (http_connection.MAX_ERROR_BYTES + 1), "application/problem+json"),
    ],
)
def test_what_is_not_the_daemon_is_said_to_be_none(
    door: TalkingDoor, token_file: Path, given: Answer
) -> None:
    door.answer("GET /forks", given)
    result = ask(door.url, token_file, "list")
    assert result.exit_code == 4
    assert f"what answers at {door.url} is not the daemon of audiofork" in result.output


def test_peer_that_speaks_another_protocol_is_not_the_daemon(token_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def greet() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"Asterisk Call Manager/9.0.0\r\n")
                peer.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        result = ask(url, token_file, "list")
        thread.join(10)
    assert result.exit_code == 4
    assert "is not the daemon of audiofork" in result.output


def test_answer_that_does_not_come_is_not_waited_for(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "ANSWER_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = ask(url, token_file, "list")
    assert result.exit_code == 4
    assert f"no answer of the daemon at {url} within 0.05 s" in result.output


def test_nobody_there_exits_with_4(token_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    result = ask(url, token_file, "list")
    assert result.exit_code == 4
    assert result.output == (
        f"audiofork: no daemon at {url}: Connection refused (no program listens there)\n"
    )


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def context_of(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_certificate_of_the_ca_file_is_trusted(
    authority: trustme.CA, token_file: Path, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with TalkingDoor(context_of(authority)) as door:
        door.answer("GET /forks", {"forks": []})
        result = ask(door.url, token_file, "list", "--ca-file", str(tmp_path / "ca.pem"))
    assert (result.exit_code, result.output) == (0, "no forks\n")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_token_goes_to_no_server_whose_certificate_is_not_to_be_trusted(
    authority: trustme.CA, token_file: Path, tmp_path: Path, name: str
) -> None:
    """One of an unknown authority; and one of a known authority with another name."""
    more = []
    if name == "localhost":
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        more = ["--ca-file", str(tmp_path / "ca.pem")]
    with TalkingDoor(context_of(authority, name)) as door:
        result = ask(door.url, token_file, "list", *more)
    assert result.exit_code == 4
    assert f"no daemon at {door.url}: " in result.output
    assert "certificate" in result.output
    assert door.asked == []


def test_ca_file_that_is_none_exits_with_3(token_file: Path, tmp_path: Path) -> None:
    result = ask("https://127.0.0.1:1", token_file, "list", "--ca-file", str(tmp_path / "none"))
    assert result.exit_code == 3
    assert f"audiofork: --ca-file: {tmp_path}/none: No such file or directory" in result.output


# --- URL and token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://pbx.example.org:9094", "would send the token in the clear: use https://"),
        ("http://192.0.2.1:9094", "would send the token in the clear: use https://"),
        ("https://me:secret@pbx.example.org", "expected http://host"),
        ("ws://127.0.0.1:1", "expected http://host"),
        ("pbx.example.org:9094", "expected http://host"),
    ],
)
def test_url_that_cannot_be_used_exits_with_3_before_a_connection(
    token_file: Path, url: str, words: str
) -> None:
    result = ask(url, token_file, "list")
    assert result.exit_code == 3
    assert f"audiofork: --url: {words}" in result.output.replace(f"{url} ", "")
    assert "secret" not in result.output


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_plain_http_to_this_machine_is_allowed(token_file: Path, host: str) -> None:
    result = ask(f"http://{host}:1", token_file, "list")
    assert result.exit_code == 4
    assert "no daemon at" in result.output


def test_line_of_the_daemons_tokens_file_does_as_a_token(
    door: TalkingDoor, token_file: Path
) -> None:
    token_file.write_text(f"# NAME ROLES TOKEN\n\nadmin view,control {TOKEN}\n")
    assert ask(door.url, token_file, "list").exit_code == 0
    assert door.asked[0].authorization == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("", 0o600, "expected one line with a token in {}, not 0"),
        (f"{TOKEN}\n{TOKEN}\n", 0o600, "expected one line with a token in {}, not 2"),
        ("Zoë\n", 0o600, "expected a token in {}"),
        ("a\x01b\n", 0o600, "expected a token in {}"),
        (f"{TOKEN}\n", 0o644, "every user of this machine may read {}: chmod o-r {}"),
        (None, 0o600, "{}: No such file or directory"),
    ],
)
def test_token_file_that_cannot_be_used_exits_with_3(
    door: TalkingDoor, token_file: Path, content: str | None, mode: int, words: str
) -> None:
    if content is None:
        token_file.unlink()
    else:
        token_file.write_text(content)
        token_file.chmod(mode)
    result = ask(door.url, token_file, "list")
    assert result.exit_code == 3
    text = words.replace("{}", str(token_file))
    assert result.output == f"audiofork: --token-file: {text}\n"
    assert door.asked == []


def test_without_a_token_the_refusal_says_how_to_give_one(door: TalkingDoor) -> None:
    door.answer("GET /forks", problem(401, "a token is needed"))
    result = ask(door.url, None, "list")
    assert result.exit_code == 4
    assert "refuses: a token is needed; --token-file names a token" in result.output


def test_variables_stand_for_the_options(door: TalkingDoor, token_file: Path) -> None:
    variables = {"AUDIOFORK_URL": door.url, "AUDIOFORK_TOKEN_FILE": str(token_file)}
    result = CliRunner().invoke(main, ["list"], env=variables)
    assert result.exit_code == 0, result.output
    assert door.asked[0].authorization == f"Bearer {TOKEN}"


def test_socket_on_the_command_line_counts_more_than_the_variable(
    door: TalkingDoor, tmp_path: Path
) -> None:
    arguments = ["list", "--socket", str(tmp_path / "control.sock")]
    result = CliRunner().invoke(main, arguments, env={"AUDIOFORK_URL": door.url})
    assert result.exit_code == 4
    assert "control.sock" in result.output
    assert door.asked == []


@pytest.mark.parametrize("option", ["--socket", "--config"])
def test_url_beside_a_socket_is_a_usage_error(token_file: Path, option: str) -> None:
    result = ask("http://127.0.0.1:1", token_file, "list", option, "/x")
    assert result.exit_code == 2
    assert "it takes neither --socket nor --config" in result.output
