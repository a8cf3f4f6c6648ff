"""The options of [cluster]: servers, and the login to NATS."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.config import Config
from audiofork.config_file import parse
from audiofork.errors import ConfigError
from testbed.nats_keys import Operator, new_key

SERVERS = "[cluster]\nservers = tls://a:4222\n"


def read(content: str, **environment: str) -> Config:
    return parse(content, environment, source="test.ini")


def refusal(content: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content, **environment)
    exc: BaseException | None = caught.value
    while exc is not None:  # what quotes a secret must not be shown by a traceback either
        assert "hunter2" not in str(exc)
        exc = exc.__cause__
    return str(caught.value)


def test_servers_are_all_reached_by_tls_or_none() -> None:
    assert read("[cluster]\nservers = nats://a:1, nats://b:2").cluster.servers == (
        *("nats://a:1", "nats://b:2"),
    )
    assert "expected tls:// before all servers" in refusal(
        "[cluster]\nservers = tls://a:1 nats://b:2"
    )


def test_seed_is_read_from_its_file_below_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    (tmp_path / "nats").write_text(f"{key.seed}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = read(SERVERS + "nkey_file = ${CREDENTIALS_DIRECTORY}/nats")
    assert config.cluster.nkey == key.seed
    assert key.seed not in repr(config)


def test_credentials_are_read_from_their_file(tmp_path: Path) -> None:
    content = Operator().credentials()
    seed = content.partition("BEGIN USER NKEY SEED-----\n")[2].partition("\n")[0]
    (tmp_path / "a.creds").write_text(content.replace("\n", "\r\n"))
    config = read(SERVERS + f"credentials_file = {tmp_path}/a.creds")
    assert seed in config.cluster.credentials
    assert seed not in repr(config)


@pytest.mark.parametrize("option", ["nkey_file", "credentials_file"])
def test_file_that_cannot_be_read_is_an_error_with_its_place(option: str) -> None:
    assert refusal(SERVERS + f"{option} = /none/a") == (
        f"test.ini:3: [cluster] {option}: /none/a: No such file or directory"
    )


@pytest.mark.parametrize("option", ["nkey_file", "credentials_file"])
def test_file_is_not_read_without_a_cluster(option: str) -> None:
    assert read(f"[cluster]\n{option} = /none/a").cluster.servers == ()


@pytest.mark.parametrize(
    ("option", "content", "told"),
    [
        ("nkey_file", "hunter2", "expected the seed of a user's NKey"),
        ("nkey_file", new_key().public, "expected the seed of a user's NKey"),
        ("nkey_file", new_key().seed + "\nhunter2", "expected the seed of a user's NKey"),
        ("nkey_file", "", "expected the nkey in"),
        ("nkey_file", b"\xff", "expected UTF-8 in"),
        ("credentials_file", "hunter2\nhunter2", "expected a credentials file of NATS"),
        ("credentials_file", new_key().seed, "expected a credentials file of NATS"),
    ],
    ids=["no key", "public", "two lines", "empty", "binary", "no credentials", "seed alone"],
)
def test_file_with_something_else_is_an_error_that_does_not_quote_it(
    option: str, content: str | bytes, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal(SERVERS + f"{option} = {file}")
    assert text.startswith(f"test.ini:3: [cluster] {option}: {told}")
    assert str(file) in text


def test_wrong_seed_in_the_configuration_is_not_quoted() -> None:
    assert "got the value" in refusal(SERVERS + "nkey = hunter2")
    assert "got the value" in refusal(SERVERS, AUDIOFORK_CLUSTER_CREDENTIALS="hunter2")


def test_nkey_and_credentials_are_one_too_many(tmp_path: Path) -> None:
    text = refusal(SERVERS + "nkey_file = /a\ncredentials_file = /b")
    assert text == "test.ini:3: [cluster] nkey_file: expected an NKey or credentials, not both"
