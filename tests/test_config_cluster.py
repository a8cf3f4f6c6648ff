"""The options of [cluster]: servers, and the login to NATS."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.config import Config
from audiofork.config_file import load_history, parse, refuse_unknown_variables, with_place
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


# --- Several Asterisks ---------------------------------------------------------------------------

CLUSTER = "[cluster]\nservers = nats://a:1\n"


def test_asterisk_with_a_name_has_what_is_its_own_and_shares_the_rest() -> None:
    config = read(
        CLUSTER + "asterisk = a\nlegs_from = 192.0.2.1\nzone = north\n"
        "[asterisk]\nsecret = one\n[ari]\nurl = http://a/ari\n[front]\nlisten = 127.0.0.1:1\n"
        "[asterisk b]\nhost = b.example.org\nsecret = two\ntap = snoop\nlegs_from = 192.0.2.2\n"
        "[ari b]\nurl = http://b/ari\npassword = three\n[history]\nfile = /h/calls.sqlite3\n"
    )
    assert config.asterisk_names == ("a", "b")
    first, second = config.of_asterisk("a"), config.of_asterisk("b")
    assert (first.asterisk, first.ari, first.front) == (config.asterisk, config.ari, config.front)
    assert (first.cluster, first.history) == (config.cluster, config.history)
    assert (second.asterisk.host, second.asterisk.secret) == ("b.example.org", "two")
    assert (second.ari.url, second.ari.password) == ("http://b/ari", "three")
    assert second.front.listen is None
    assert second.history.file == "/h/calls-b.sqlite3"
    assert [str(one) for one in second.cluster.legs_from] == ["192.0.2.2/32"]
    assert (second.cluster.asterisk, second.cluster.zone) == ("b", "north")
    assert second.cluster.servers == config.cluster.servers
    for one in (first, second):
        assert one.asterisk_names == (one.cluster.asterisk,)
    with pytest.raises(KeyError):
        config.of_asterisk("c")


def test_asterisk_without_a_name_counts_only_where_it_stands_beside_one_with_a_name() -> None:
    assert read(CLUSTER).asterisk_names == ("asterisk",)
    assert read(CLUSTER + "[asterisk b]\n[asterisk a]\nport = 1\n").asterisk_names == ("b", "a")
    assert read(CLUSTER + "[asterisk b]\nhost = b\n[asterisk]\n").asterisk_names == (
        "asterisk",
        "b",
    )


def test_secrets_of_an_asterisk_with_a_name_come_from_files_and_the_environment(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    content = CLUSTER + f"[asterisk pbx-b]\nsecret_file = {tmp_path}/secret\n"
    config = read(
        content,
        AUDIOFORK_ASTERISK_PBX_B_HOST="b.example.org",
        AUDIOFORK_ARI_PBX_B_PASSWORD_FILE=f"{tmp_path}/secret",
        AUDIOFORK_ASTERISK_SECRET_FILE="/none",  # of none that counts
    ).of_asterisk("pbx-b")
    assert (config.asterisk.secret, config.ari.password) == ("hunter2", "hunter2")
    assert config.asterisk.host == "b.example.org"
    assert "hunter2" not in repr(config)
    unread = parse(content, {}, source="test.ini", secrets_of=["asterisk", "asterisk other"])
    assert unread.of_asterisk("pbx-b").asterisk.secret == ""
    one = parse(content, {}, source="test.ini", secrets_of=["asterisk pbx-b"])
    assert one.of_asterisk("pbx-b").asterisk.secret == "hunter2"


def test_variable_of_an_asterisk_that_the_file_has_not_is_unknown() -> None:
    config = read(CLUSTER + "[asterisk b]\n")
    refuse_unknown_variables(config, {"AUDIOFORK_ASTERISK_B_ZONE": "north"})
    with pytest.raises(ConfigError, match="AUDIOFORK_ASTERISK_C_ZONE matches no option"):
        refuse_unknown_variables(config, {"AUDIOFORK_ASTERISK_C_ZONE": "north"})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "[asterisk b]\n",
            "test.ini:1: [asterisk b]: only a cluster has several Asterisks, and [cluster] servers "
            "names no NATS server: write [asterisk]",
        ),
        (
            CLUSTER + "asterisk = b\n[asterisk]\n[asterisk b]\n",
            "test.ini:5: [asterisk b]: that is the name of [asterisk] already, by [cluster] "
            "asterisk: keep one of the two sections, or give one of the two another name",
        ),
        (
            CLUSTER + "asterisk = a\n[asterisk b]\n",
            "test.ini:3: [cluster] asterisk: belongs to [asterisk], which is missing beside "
            "[asterisk NAME]",
        ),
        (
            CLUSTER + "[asterisk b]\n[front]\nlisten = 127.0.0.1:1\n",
            "test.ini:5: [front] listen: belongs to [asterisk], which is missing beside "
            "[asterisk NAME]",
        ),
        (
            CLUSTER + "[asterisk a]\nport = 1\n[asterisk b]\nport = 2\n[asterisk c]\nport = 1\n",
            "test.ini:7: [asterisk c]: 127.0.0.1:1 is that of [asterisk a] already: each Asterisk "
            "has one section",
        ),
        (
            CLUSTER + "[asterisk]\n[asterisk b]\nzone = north\n",
            "test.ini:4: [asterisk b]: 127.0.0.1:5038 is that of [asterisk] already: each Asterisk "
            "has one section",
        ),
        (
            CLUSTER + "[asterisk b]\n[ari c]\nurl = http://c/ari\n",
            "test.ini:4: [ari c]: there is no [asterisk c]",
        ),
        (
            CLUSTER + "[asterisk b]\nport = 1\n[asterisk b]\nport = 2\n",
            "test.ini:6: option port stands twice in [asterisk b], in line 4 and in line 6: keep "
            "one",
        ),
        (
            CLUSTER + "[asterisk b]\nhots = h\n",
            "test.ini:4: unknown option hots in [asterisk b]; did you mean host?",
        ),
        (CLUSTER + "[front b]\nzone = x\n", "test.ini:4: unknown option zone in [front b]"),
        (
            CLUSTER + "[asterisk b.c]\n",
            "test.ini:3: expected [asterisk NAME], the name letters, digits, - and _, 63 at most, "
            "got [asterisk b.c]",
        ),
        (CLUSTER + "[asterisk  b]\n", "test.ini:3: expected [asterisk NAME]"),
        (CLUSTER + "[history b]\n", "test.ini:3: unknown section [history b]"),
        (
            CLUSTER + "[asterisk b]\ntap = snoop\n[ari]\nusername = x\n",
            "test.ini:4: [asterisk b] tap: snoop needs [ari b] url",
        ),
        (
            CLUSTER + "[asterisk b]\nsecret_file = /none/a\n",
            "test.ini:4: [asterisk b] secret_file: /none/a: No such file or directory",
        ),
    ],
)
def test_asterisk_that_cannot_be_one_is_an_error_with_its_place(content: str, told: str) -> None:
    assert refusal(content).startswith(told)


def test_error_of_a_section_with_the_name_of_an_asterisk_gets_its_place(tmp_path: Path) -> None:
    file = tmp_path / "audiofork.ini"
    file.write_text(CLUSTER + "[asterisk b]\n[front b]\nlisten = 127.0.0.1:1\n")
    text = "[front b] listen: in use"
    assert with_place(text, file, {}) == f"{file}:5: {text}"


def test_history_of_an_asterisk_is_found_without_reading_the_rest_of_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "audiofork.ini"
    history = "[history]\nfile = /h/calls.sqlite3\n"
    wrong = "[cluster]\nservers = garbage\n"
    file.write_text(wrong + history)
    assert load_history(file).file == "/h/calls.sqlite3"
    file.write_text(wrong + history + "[asterisk b]\n")
    assert load_history(file).file == load_history(file, "b").file == "/h/calls-b.sqlite3"
    file.write_text(wrong + history + "[asterisk]\n[asterisk b]\n")
    assert load_history(file, "b").file == "/h/calls-b.sqlite3"
    assert load_history(file, "a").file == "/h/calls.sqlite3"
    with pytest.raises(ConfigError, match="say which Asterisk is meant .--asterisk.: it has b$"):
        load_history(file)
    file.write_text("[history]\nfile =\n[asterisk b]\n")
    assert load_history(file).file == ""


@pytest.mark.parametrize(
    "hosts",
    [
        ("pbx.example.org", "PBX.example.org."),
        ("127.0.0.1", "localhost"),
        ("::1", "0:0:0:0:0:0:0:1"),
    ],
)
def test_one_asterisk_by_two_spellings_is_one(hosts: tuple[str, str]) -> None:
    one, other = (
        f"[asterisk {name}]\nhost = {host}\n" for name, host in zip("ab", hosts, strict=True)
    )
    assert "each Asterisk has one section" in refusal(CLUSTER + one + other)
