"""The contexts for servers: the configured one, and those that forks wish for."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path

import pytest

from audiofork.config import Config, SecurityConfig, WebSocketConfig
from audiofork.errors import ConfigError, SinkRefused
from audiofork.files import read_file
from audiofork.link.messages import Tls
from audiofork.relay import client_tls as module
from audiofork.relay.client_tls import ClientTls, client_tls

pytestmark = pytest.mark.usefixtures("nothing_left")


def contexts(folder: Path | str, **websocket: str) -> ClientTls:
    security = SecurityConfig(tls_dir=str(folder))
    return ClientTls(Config(websocket=WebSocketConfig(**websocket), security=security))  # type: ignore[arg-type]


async def context(tls: ClientTls, wishes: Tls | None) -> ssl.SSLContext:
    found = tls.context_of(wishes)
    if isinstance(found, asyncio.Future):
        async with asyncio.timeout(5):
            return await found
    return found


async def refusal(tls: ClientTls, wishes: Tls) -> str:
    with pytest.raises(SinkRefused) as refused:
        await context(tls, wishes)
    return str(refused.value)


async def test_fork_without_wishes_gets_the_configured_one_at_once(ca_file: Path) -> None:
    tls = contexts("", ca_list_file=str(ca_file))
    assert tls.context_of(None) is tls.configured
    assert tls.configured.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("relative", [True, False])
async def test_name_is_taken_below_the_folder_and_so_is_a_path_that_begins_with_it(
    ca_file: Path, relative: bool
) -> None:
    wishes = Tls(ca_file=ca_file.name if relative else str(ca_file))
    found = await context(contexts(ca_file.parent), wishes)
    assert found.cert_store_stats()["x509_ca"] == 1
    assert found.verify_mode is ssl.CERT_REQUIRED


async def test_equal_wishes_share_a_context_until_the_configuration_is_read_anew(
    ca_file: Path,
) -> None:
    tls = contexts(ca_file.parent)
    wishes, others = Tls(ca_file="ca.pem"), Tls(ca_file="ca.pem", insecure=True)
    first = await context(tls, wishes)
    for path in ("ca.pem", "./ca.pem", ".//./ca.pem", str(ca_file), f"{ca_file.parent}/./ca.pem"):
        assert await context(tls, Tls(ca_file=path)) is first
    assert (await context(tls, others)).verify_mode is ssl.CERT_NONE
    tls.configure(Config(security=SecurityConfig(tls_dir=str(ca_file.parent))))
    assert await context(tls, wishes) is not first


async def test_file_that_is_mended_can_be_used(ca_file: Path, tmp_path: Path) -> None:
    tls = contexts(tmp_path)
    (tmp_path / "a.pem").write_text("no certificate")
    text = await refusal(tls, Tls(ca_file="a.pem"))
    assert text.startswith(f"Options: T: the authorities of {tmp_path}/a.pem cannot be used: ")
    (tmp_path / "a.pem").write_bytes(read_file(ca_file))
    assert (await context(tls, Tls(ca_file="a.pem"))).cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("path", ["missing.pem", "ca.pem", "/etc/passwd"])
async def test_certificate_that_cannot_be_used_costs_no_loading_of_authorities(
    ca_file: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    tls = contexts(ca_file.parent)
    made: list[str] = []
    monkeypatch.setattr(module, "client_context", made.append)
    text = await refusal(tls, Tls(cert_file=path))
    assert text.startswith("Options: T: the certificate ")
    assert made == []


@pytest.mark.parametrize("path", ["/etc/passwd", "/nowhere/a.pem", "../ca.pem", "/dev/ptmx"])
async def test_file_outside_is_refused_alike_whether_it_is_there_or_not(
    tmp_path: Path, path: str
) -> None:
    """As admission would have refused it: a fork may come from an older journal."""
    text = await refusal(contexts(tmp_path), Tls(cert_file=path))
    outside = f"not a file below {tmp_path} ([security] tls_dir)"
    assert text == f"Options: T: the certificate {path} cannot be used: {outside}"


async def test_no_folder_lets_a_fork_name_no_file(ca_file: Path) -> None:
    text = await refusal(contexts(""), Tls(ca_file=str(ca_file)))
    assert text.endswith("cannot be used: [security] tls_dir lets requests name no files")


async def test_files_that_do_not_come_hold_up_so_many_wishes_and_no_more(
    ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def read_slowly(folder: str, path: str) -> bytes:
        assert go.wait(10)
        return ca_file.read_bytes()

    monkeypatch.setattr("audiofork.files.read_below", read_slowly)
    tls = contexts(ca_file.parent)
    slow = [tls.context_of(Tls(ca_file=f"{n}.pem")) for n in range(module.MAX_READS)]
    text = await refusal(tls, Tls(ca_file="one-more.pem"))
    assert text == "Options: T: 32 other files are being read, none comes"
    assert await context(tls, None) is tls.configured
    go.set()
    async with asyncio.timeout(5):
        for one in slow:
            assert isinstance(one, asyncio.Future)
            await one
    assert await context(tls, Tls(ca_file="one-more.pem"))


async def test_system_without_more_threads_is_told(
    ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tls = contexts(ca_file.parent)
    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        text = await refusal(tls, Tls(ca_file="ca.pem"))
    assert text == "Options: T: no more threads: can't start new thread"
    assert await context(tls, Tls(ca_file="ca.pem"))


async def test_contexts_that_are_kept_are_limited(
    ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONTEXTS", 2)
    monkeypatch.setattr("audiofork.files.read_below", lambda folder, path: read_file(ca_file))
    tls = contexts(ca_file.parent)
    for path in ("a.pem", "b.pem", "c.pem"):
        await context(tls, Tls(ca_file=path))
    assert [wishes.ca_file for wishes in tls._contexts] == [
        f"{ca_file.parent}/b.pem",
        f"{ca_file.parent}/c.pem",
    ]


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "garbage"])
def test_certificate_that_cannot_be_used_is_a_config_error(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"certificate .*own\.pem cannot be used"):
        client_tls("", str(path))
