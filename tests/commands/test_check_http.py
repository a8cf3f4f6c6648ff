"""What the command check finds of the HTTP door."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from audiofork import config_file
from audiofork.commands import check_http as checking
from audiofork.commands.check_http import check_http
from audiofork.commands.findings import Finding, Findings, Mark
from audiofork.config import HttpConfig
from tests.commands.http_door import Answer, TalkingDoor

OK = Answer(200, b"ok\n", "text/plain")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("admin view,control 0123456789abcdefghij\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def door() -> Iterator[TalkingDoor]:
    with TalkingDoor() as one:
        one.answer("GET /healthz", OK)
        yield one


async def found(listen: str, tokens: Path, *more: str, runs: bool = True) -> list[Finding]:
    lines = ["[http]", f"listen = {listen}", f"tokens_file = {tokens}", *more]
    config = config_file.parse("\n".join(lines), {}, source="test.ini").http
    return await findings_of(config, runs=runs)


async def findings_of(config: HttpConfig, *, runs: bool) -> list[Finding]:
    findings: list[Finding] = []
    await check_http(config, Findings(findings.append), daemon_runs=runs)
    return findings


def marks(findings: list[Finding]) -> list[tuple[Mark, str]]:
    return [(one.mark, one.text) for one in findings]


def at(door: TalkingDoor) -> str:
    return door.url.partition("://")[2]


async def test_door_that_is_not_configured_is_not_mentioned() -> None:
    assert await findings_of(HttpConfig(), runs=True) == []


async def test_daemon_that_answers_is_fine(door: TalkingDoor, tokens: Path) -> None:
    assert marks(await found(at(door), tokens)) == [
        (Mark.OK, f"HTTP: the daemon answers at {door.url}")
    ]
    assert door.asked[0].authorization == ""


async def test_daemon_on_all_addresses_is_asked_at_loopback_and_warned_of(
    door: TalkingDoor, tokens: Path
) -> None:
    listen = f"0.0.0.0:{at(door).rpartition(':')[2]}"
    assert marks(await found(listen, tokens)) == [
        (Mark.OK, f"HTTP: the daemon answers at http://{listen}"),
        (Mark.WARN, f"HTTP: tokens and audio pass in the clear at {listen}"),
    ]


async def test_daemon_with_tls_is_asked_by_tls_and_not_warned_of(
    tokens: Path, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("pbx.example.org").configure_cert(context)
    with TalkingDoor(context) as door:
        door.answer("GET /healthz", OK)
        listen = f"0.0.0.0:{at(door).rpartition(':')[2]}"
        findings = await found(listen, tokens, "cert_file = /unread")
    assert marks(findings) == [(Mark.OK, f"HTTP: the daemon answers at https://{listen}")]


async def test_daemon_that_runs_and_does_not_listen_is_a_fault(tokens: Path, port: int) -> None:
    (finding,) = await found(f"127.0.0.1:{port}", tokens)
    assert finding.mark is Mark.FAIL
    assert finding.text.startswith(f"HTTP: nobody answers at 127.0.0.1:{port}: Connection refused")
    assert "take effect at the next start" in finding.remedy


async def test_other_program_on_the_port_is_a_fault(door: TalkingDoor, tokens: Path) -> None:
    door.answer("GET /healthz", Answer(200, b"<html>", "text/html"))
    for runs in (True, False):
        assert marks(await found(at(door), tokens, runs=runs)) == [
            (Mark.FAIL, f"HTTP: what answers at {at(door)} is not the daemon")
        ]


async def test_program_that_speaks_no_http_is_a_fault(tokens: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        listen = f"127.0.0.1:{server.getsockname()[1]}"

        def greet() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"220 mail\r\n")
                peer.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        findings = await found(listen, tokens)
        thread.join(10)
    assert marks(findings) == [(Mark.FAIL, f"HTTP: what answers at {listen} is not the daemon")]


async def test_program_that_says_nothing_is_a_fault(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
        findings = await found(listen, tokens)
    assert marks(findings) == [(Mark.FAIL, f"HTTP: no answer at {listen} within 0.05 s")]


async def test_port_that_is_free_for_a_daemon_that_does_not_run_is_said_to_be(
    tokens: Path, port: int
) -> None:
    findings = await found(f"127.0.0.1:{port}", tokens, runs=False)
    assert marks(findings) == [(Mark.OK, f"HTTP: 127.0.0.1:{port} is free for it")]


async def test_address_of_another_machine_is_a_fault(tokens: Path) -> None:
    findings = await found("192.0.2.1:9080", tokens, "cert_file = /c", runs=False)
    assert [one.mark for one in findings] == [Mark.FAIL]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("admin view 0123456789abcdefghij\n", 0o644, "every user of this machine may read it"),
        ("admin all 0123456789abcdefghij\n", 0o600, "tokens:1: ROLES: expected view"),
        ("# none\n", 0o600, "no token in "),
        (None, 0o600, "No such file or directory"),
    ],
)
async def test_tokens_that_cannot_be_used_are_a_fault_that_shows_none(
    tokens: Path, content: str | None, mode: int, words: str
) -> None:
    replace(tokens, content, mode)
    (finding,) = await found("127.0.0.1:1", tokens)
    assert finding.mark is Mark.FAIL
    assert words in finding.text
    assert "0123456789" not in finding.text


async def test_tokens_that_systemd_hands_to_the_service_are_no_fault_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (finding,) = await found("127.0.0.1:1", Path("${CREDENTIALS_DIRECTORY}/http-tokens"))
    assert finding.mark is Mark.SKIP


def replace(path: Path, content: str | None, mode: int) -> None:
    path.unlink()
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
