"""Where the door listens: by TCP, with TLS, at a Unix socket; and how it closes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
import trustme

from audiofork.config import Address, HttpConfig
from audiofork.doors.http.door import HttpDoor
from audiofork.errors import CannotListen, ConfigError
from tests.doors.http.stage import CONTROLLER, VIEWER, Others, request, staged, write_tokens
from tests.relay.peers import until

START = {"channel": "PJSIP/1-1", "url": "ws://localhost/"}
FORKS = "/api/v1/forks"


async def test_unix_socket_needs_no_token_and_is_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with staged(tmp_path, listen=None, tokens_file="", socket=str(path)) as stage:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("POST", FORKS, "", START, Connection="close"))
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 201 ")
        writer.close()
        (asked,) = stage.others.requests
        assert asked.origin == ("http", f"uid {os.getuid()}")
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("GET", FORKS, host="evil.example", Connection="close"))
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 421 ")
        writer.close()
    assert not path.exists()


async def test_socket_of_another_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    options: dict[str, Any] = {"listen": None, "tokens_file": "", "socket": str(path)}
    async with staged(tmp_path, **options):
        with pytest.raises(ConfigError, match=r"\[http\] socket .*another daemon listens there"):
            await HttpDoor(HttpConfig(**options), Others().parts()).start()
        assert path.exists()


async def test_address_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname())
        config = HttpConfig(listen=address, tokens_file=str(write_tokens(tmp_path)))
        with pytest.raises(CannotListen, match=r"\[http\] listen: cannot listen on 127.0.0.1:"):
            await HttpDoor(config, Others().parts()).start()


async def test_https_is_spoken_with_a_certificate_and_its_cookies_are_secure(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pem = tmp_path / "cert.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    async with staged(tmp_path, cert_file=str(pem)) as stage:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", stage.port, ssl=context, server_hostname="localhost"
        )
        writer.write(request("POST", "/api/v1/session", "", {"token": VIEWER}, Connection="close"))
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Secure" in answer
        for scheme, status in (("https", 200), ("http", 403)):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", stage.port, ssl=context, server_hostname="localhost"
            )
            host = f"localhost:{stage.port}"
            own = {"Origin": f"{scheme}://{host}", "Connection": "close"}
            writer.write(request("GET", FORKS, VIEWER, host=host, **own))
            async with asyncio.timeout(5):
                assert (await reader.read()).startswith(f"HTTP/1.1 {status} ".encode())
            writer.close()
        async with stage.client() as client:  # without TLS
            client.writer.write(request("GET", "/healthz"))
            assert b"HTTP" not in await client.ended()


def test_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    config = HttpConfig(
        listen=Address("127.0.0.1", 0), tokens_file=str(write_tokens(tmp_path)), cert_file="/none"
    )
    with pytest.raises(ConfigError, match=r"\[http\] cert_file, key_file: /none: No such file"):
        HttpDoor(config, Others().parts())


async def test_close_drops_all_clients_soon(tmp_path: Path) -> None:
    others = Others()
    others.go_on.clear()
    async with staged(tmp_path, others) as stage, stage.client() as idle, stage.client() as busy:
        await idle.raw(request("GET", "/healthz"))
        busy.writer.write(request("POST", FORKS, CONTROLLER, START))
        await until(lambda: bool(others.requests))
        async with asyncio.timeout(2):
            await stage.door.close()
        assert await idle.ended() == b""
        assert await busy.ended() == b""
        await stage.door.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", stage.port)
    others.go_on.set()
