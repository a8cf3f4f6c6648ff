import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.config import (
    SAMPLE_RATES,
    Address,
    AriConfig,
    AsteriskConfig,
    Config,
    LogConfig,
    Place,
    PostProcessConfig,
    ProfileConfig,
    Proxy,
)
from audiofork.config import SECTIONS as config_sections
from audiofork.config_file import (
    load,
    load_control,
    parse,
    refuse_unknown_variables,
    variable_of,
    with_place,
)
from audiofork.config_sample import sample
from audiofork.config_servers import FORMATS
from audiofork.config_values import SERVER_COMMANDS, host_names
from audiofork.errors import ConfigError
from audiofork.link.messages import Format, ServerCommand

REPOSITORY = Path(__file__).parent.parent
SECTIONS = {
    field.name: field.default_factory
    for field in dataclasses.fields(Config)
    if field.name in config_sections
}
SAMPLE = sample()
OPTIONS = [
    (section, option.name)
    for section, section_type in SECTIONS.items()
    for option in dataclasses.fields(section_type)  # type: ignore[arg-type]
]


NKEY = f"SU{'A' * 56}"
CREDENTIALS = (
    "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n"
    f"-----BEGIN USER NKEY SEED-----\n{NKEY}\n------END USER NKEY SEED------"
)


def read(content: str, **environment: str) -> Config:
    return parse(content, environment, source="test.ini")


def refusal(content: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content, **environment)
    return str(caught.value)


# --- The sample ----------------------------------------------------------------------------------


def test_sample_is_the_file_in_the_repository() -> None:
    assert (REPOSITORY / "etc" / "audiofork.ini").read_text(encoding="utf-8") == SAMPLE


def test_sample_gives_the_defaults() -> None:
    assert read(SAMPLE) == Config()


def test_sample_with_every_option_uncommented_gives_the_defaults_and_the_example() -> None:
    uncommented, count = re.subn(r"(?m)^;(\w+ =|\[)", r"\1", SAMPLE)
    named = [len(fields(one)) + 1 for one in (PostProcessConfig, ProfileConfig)]
    assert count == len(OPTIONS) + sum(named)
    command = "/usr/local/bin/upload", "--from", "^{CALLERID(num)}", "--", "^{UNIQUEID}"
    url = "wss://speech.example.org/live?call={uniqueid}"
    assert read(uncommented) == Config(
        post_process={"upload": PostProcessConfig(command)},
        profile={"speech": ProfileConfig(url, "D(stereo)x(json)")},
    )


@pytest.mark.parametrize(("section", "option"), OPTIONS, ids=[".".join(pair) for pair in OPTIONS])
def test_sample_documents_the_option_in_its_section(section: str, option: str) -> None:
    _, _, rest = SAMPLE.partition(f"\n[{section}]\n")
    of_section, _, _ = rest.partition("\n[")
    assert re.search(rf"(?m)^; .+\n;{option} =", of_section)


def test_empty_file_gives_the_defaults() -> None:
    assert read("") == Config()


def test_by_default_what_is_dangerous_is_off() -> None:
    config = read("")
    assert not config.security.allow_insecure_tls
    assert not config.security.allow_post_process
    assert config.front.listen is None
    assert config.http.listen is None
    assert config.http.socket == ""
    assert config.ari.url == ""


def test_profile_has_its_token_from_a_file_and_lines_of_headers_and_texts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    config = read(
        "[profile:a]\nurl = ws://h/\n"
        f"token_file = {tmp_path}/token\n"
        "headers = X-A: 1\n  X-B: 2\n"
        'opening = {\n  "a": 1\n  }\n'
        "channels = PJSIP/* SIP/*\n"
        "[profile:b]\nurl = ws://h/\n"
    )
    assert config.profile["a"] == ProfileConfig(
        url="ws://h/",
        token="t0ken",
        token_file=f"{tmp_path}/token",
        headers=("X-A: 1", "X-B: 2"),
        opening='{\n"a": 1\n}',
        channels=("PJSIP/*", "SIP/*"),
    )
    assert config.profile["b"].token == ""
    assert "t0ken" not in repr(config)


def test_token_file_that_is_missing_is_told_with_its_line() -> None:
    assert refusal("[profile:a]\nurl = ws://h/\ntoken_file = /none\n").startswith(
        "test.ini:3: [profile:a] token_file: /none: No such file"
    )


def test_urls_that_are_allowed_may_be_those_of_profiles_alone() -> None:
    assert read("[security]\nallow_urls = @*\n").security.allow_urls == ()


# --- Values --------------------------------------------------------------------------------------


def test_every_kind_of_value() -> None:
    config = read(
        """
        [asterisk]
        host = pbx.example.org
        port: 5039
        tls = Yes
        ping_interval = 2.5
        tap = snoop
        [ari]
        url = https://pbx.example.org:8089/ari/
        username = fork
        password = hunter2
        app = fork-2_b.c
        ca_file = /etc/ssl/pbx.pem
        ping_interval = 1
        [audiosocket]
        listen = [::]:0
        advertise = 192.0.2.1:9093
        allow = 192.0.2.0/24, 2001:db8::/32 127.0.0.1
                ::ffff:10.0.0.1
        [security]
        allow_urls = wss://*.example.org, ws://127.0.0.1:8080/
                     WSS://b.example
        allow_private = no
        max_forks = 7
        max_forks_per_channel = 3
        max_starts = 20
        allow_post_process = yes
        [websocket]
        reconnect_interval = 0.25
        reconnect_attempts = 0
        [control]
        socket = /tmp/audiofork.sock
        [front]
        listen = 127.0.0.1:5040
        [log]
        level = debug
        """.replace("\n        ", "\n")
    )
    assert config.asterisk == AsteriskConfig(
        host="pbx.example.org", port=5039, tls=True, ping_interval=2.5, tap="snoop"
    )
    assert config.ari == AriConfig(
        url="https://pbx.example.org:8089/ari",
        username="fork",
        password="hunter2",
        app="fork-2_b.c",
        ca_file="/etc/ssl/pbx.pem",
        ping_interval=1,
    )
    assert config.audiosocket.listen == Address("::", 0)
    assert config.audiosocket.advertise == Address("192.0.2.1", 9093)
    assert config.security.allow_urls == (
        "wss://*.example.org",
        "ws://127.0.0.1:8080/",
        "WSS://b.example",
    )
    assert [str(network) for network in config.audiosocket.allow] == [
        *("192.0.2.0/24", "2001:db8::/32", "127.0.0.1/32", "10.0.0.1/32")
    ]
    assert config.security.allow_private is False
    assert config.security.max_forks == 7
    assert config.security.max_forks_per_channel == 3
    assert config.security.max_starts == 20
    assert config.security.allow_post_process is True
    assert config.security.allow_insecure_tls is False
    assert config.websocket.reconnect_interval == 0.25
    assert config.websocket.reconnect_attempts == 0
    assert config.control.socket == "/tmp/audiofork.sock"
    assert config.front.listen == Address("127.0.0.1", 5040)
    assert config.log == LogConfig(level="debug")


def test_address_as_text_has_brackets_for_ipv6_alone() -> None:
    assert str(Address("::1", 9093)) == "[::1]:9093"
    assert str(Address("127.0.0.1", 9093)) == "127.0.0.1:9093"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", True),
        ("on", True),
        ("TRUE", True),
        ("1", True),
        ("no", False),
        ("off", False),
        ("False", False),
        ("0", False),
    ],
)
def test_yes_or_no_in_each_word(text: str, expected: bool) -> None:
    assert read(f"[asterisk]\ntls = {text}").asterisk.tls is expected


@pytest.mark.parametrize(
    ("line", "value"),
    [
        pytest.param("host = a ; the main one", "a", id="comment-behind-value"),
        pytest.param("host = a\t;b", "a", id="comment-behind-tab"),
        pytest.param("host = a;b", "a;b", id="semicolon-within-value"),
        pytest.param("host = %d%(host)s%%", "%d%(host)s%%", id="percent"),
        pytest.param("host = a = b", "a = b", id="equals-sign"),
        pytest.param("host = ${HOME}", "${HOME}", id="dollar"),
        pytest.param("HOST = a", "a", id="upper-case-name"),
        pytest.param("  ; port = 1\n# port = 2\nhost = a", "a", id="comment-lines"),
        pytest.param("host = Zoë", "Zoë", id="utf-8"),
        pytest.param("host =", "", id="empty"),
    ],
)
def test_text_is_what_stands_there(line: str, value: str) -> None:
    assert read(f"[asterisk]\n{line}\n").asterisk.host == value


@pytest.mark.parametrize(
    ("section", "option", "low", "high"),
    [
        ("asterisk", "port", "1", "65535"),
        ("asterisk", "ping_interval", "1", "3600"),
        ("ari", "ping_interval", "1", "3600"),
        ("websocket", "connect_timeout", "0.1", "60"),
        ("websocket", "reconnect_interval", "0.25", "600"),
        ("websocket", "reconnect_attempts", "0", "1000000"),
        ("websocket", "backlog", "0", "600"),
        ("websocket", "ping_interval", "1", "3600"),
        ("security", "max_forks", "1", "100000"),
        ("security", "max_forks_per_channel", "1", "100000"),
        ("security", "max_starts", "1", "10000"),
    ],
)
def test_number_may_be_as_low_and_as_high_as_the_limits(
    section: str, option: str, low: str, high: str
) -> None:
    for value in (low, high):
        config = read(f"[{section}]\n{option} = {value}")
        assert getattr(getattr(config, section), option) == float(value)
    refusal(f"[{section}]\n{option} = {float(low) - 0.01:g}")
    refusal(f"[{section}]\n{option} = {high}1")


def test_address_may_have_the_highest_port() -> None:
    config = read("[audiosocket]\nlisten = localhost:65535")
    assert config.audiosocket.listen == Address("localhost", 65535)


def test_doors_that_are_emptied_are_none() -> None:
    config = read("[control]\nsocket =\n[front]\nlisten =")
    assert (config.control.socket, config.front.listen) == ("", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("http://127.0.0.1:8088/ari", "http://127.0.0.1:8088/ari"),
        ("http://127.0.0.1:8088/ari//", "http://127.0.0.1:8088/ari"),
        ("HTTPS://pbx.example.org/", "https://pbx.example.org"),
        ("http://[::1]:8088/a/b%20c", "http://[::1]:8088/a/b%20c"),
    ],
)
def test_url_of_ari_has_no_slash_at_its_end(text: str, expected: str) -> None:
    assert read(f"[ari]\nurl = {text}").ari.url == expected


@pytest.mark.parametrize("rate", [0, *SAMPLE_RATES])
def test_sample_rate_may_be_one_that_audiosocket_has_or_nought(rate: int) -> None:
    assert read(f"[websocket]\nsample_rate = {rate}").websocket.sample_rate == rate


def test_url_with_a_semicolon_stays_whole() -> None:
    config = read("[security]\nallow_urls = ws://h/a;b ; a comment")
    assert config.security.allow_urls == ("ws://h/a;b",)


def test_format_may_be_each_that_there_is() -> None:
    for one in Format:
        assert read(f"[websocket]\nformat = {one}").websocket.format == one
    assert len(Format) == len(FORMATS)


# --- Status callbacks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "http://h:8/a?b=%20", "https://h/?hunter2=x&y=@", "http://[::1]"]
)
@pytest.mark.parametrize("section", ["twilio", "profile:a"])
def test_status_callback_is_asked_for_as_it_stands(section: str, text: str) -> None:
    config = read(f"[{section}]\nstatus_callback = {text}")
    values = config.twilio if section == "twilio" else config.profile["a"]
    assert values.status_callback == text
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    "value",
    [
        "h/hunter2",
        "ws://h/hunter2",
        "http://u:hunter2@h/",
        "http:///?hunter2",
        "http://h/?#hunter2",
    ],
)
def test_bad_status_callback_is_an_error_that_does_not_quote_it(value: str) -> None:
    text = refusal(f"[twilio]\nstatus_callback = {value}")
    assert text.startswith("test.ini:2: [twilio] status_callback: expected http://host[:port][/pa")
    assert "hunter2" not in text


# --- Proxies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Proxy()),
        ("none", Proxy()),
        ("http://proxy:3128", Proxy("http", "proxy", 3128)),
        ("https://[::1]:443/", Proxy("https", "::1", 443)),
        ("socks5://10.0.0.1:1080", Proxy("socks5", "10.0.0.1", 1080)),
        ("http://u:p%40%3A%c3%bc:q@h:1", Proxy("http", "h", 1, "u:p@:\u00fc:q")),
        ("http://u:@h:1", Proxy("http", "h", 1, "u:")),
    ],
)
def test_proxy_is_a_url_with_a_port_or_none(text: str, expected: Proxy) -> None:
    assert read(f"[websocket]\nproxy = {text}").websocket.proxy == expected


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("hunter2:3128", "http://, https:// or socks5://, then host:port"),
        ("ftp://h:1", "http://, https:// or socks5://"),
        ("socks5h://h:1", "http://, https:// or socks5://"),
        ("http://h", "host:port"),
        ("http://h:0", "host:port with a port from 1"),
        ("http://h:65536", "host:port with a port up to 65535"),
        ("http://h:1/hunter2", "http://"),
        ("http://u@h:1", "http://"),
        ("http://u:hunter2/@h:1", "http://"),
        ("http://u%3a:hunter2@h:1", "a user without a colon"),
        ("http://u:hunter2%0a@h:1", "one line without control characters"),
        (f"http://u:{'x' * 256}@h:1", "user:password, each of 255 bytes at most"),
    ],
)
@pytest.mark.parametrize("section", ["websocket", "profile:a"])
def test_bad_proxy_is_an_error_that_does_not_quote_it(section: str, value: str, told: str) -> None:
    text = refusal(f"[{section}]\nproxy = {value}")
    assert text.startswith(f"test.ini:2: [{section}] proxy: expected {told}")
    assert text.endswith(", got the value")
    assert "hunter2" not in text


def test_login_of_a_proxy_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "login").write_text("pbx:hunter2:3\n")
    lines = f"proxy = http://other:hunter2@h:1\nproxy_login_file = {tmp_path}/login\n"
    config = read(f"[websocket]\n{lines}[profile:a]\nurl = ws://h/\n{lines}")
    for section in config.websocket, config.profile["a"]:
        assert section.proxy is not None
        login = section.proxy.with_login(section.proxy_login)
        assert login == Proxy("http", "h", 1, "pbx:hunter2:3")
        assert str(login) == "http://h:1"
    assert "hunter2" not in f"{config!r} {config}"


@pytest.mark.parametrize("content", [b"hunter2", b":hunter2", b"u:hunter2\nx", b"u:hunter2\xff"])
def test_login_of_a_proxy_that_is_none_is_an_error_without_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "login").write_bytes(content)
    file = f"proxy_login_file = {tmp_path}/login"
    text = refusal(f"[websocket]\nproxy = http://h:1\n{file}")
    assert text.startswith("test.ini:3: [websocket] proxy_login_file: expected ")
    assert text.endswith(f" in {tmp_path}/login")
    assert "hunter2" not in text


@pytest.mark.parametrize("section", ["websocket", "profile:a"])
@pytest.mark.parametrize("option", ["proxy_login", "proxy_login_file"])
def test_login_without_a_proxy_is_an_error(section: str, option: str) -> None:
    text = refusal(f"[{section}]\n{option} = a:b")
    assert text == f"test.ini:2: [{section}] {option}: [{section}] names no proxy"


def test_no_proxy_takes_names_addresses_and_networks() -> None:
    config = read("[websocket]\nno_proxy = *.Example.org, 10.0.0.0/8 [::1] ::2 a_b")
    assert config.websocket.no_proxy == ("*.example.org", "10.0.0.0/8", "::1", "::2", "a_b")
    assert read("[websocket]\nno_proxy =").websocket.no_proxy == ()
    for bad in "10.0.0.1/8", "http://h", "h:1", "[x", ".example.org":
        text = refusal(f"[websocket]\nno_proxy = a {bad}")
        assert text.startswith("test.ini:2: [websocket] no_proxy: expected names of hosts (*.ex")


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("[asterisk] host", "a\n b", "one line without control characters"),
        ("[asterisk] host", "a\0b", "one line without control characters"),
        ("[asterisk] port", "0", "a whole number from 1 to 65535"),
        ("[asterisk] port", "65536", "a whole number from 1 to 65535"),
        ("[asterisk] port", "5038.0", "a whole number from 1 to 65535"),
        ("[asterisk] port", "-1", "a whole number from 1 to 65535"),
        ("[asterisk] port", "٣", "a whole number from 1 to 65535"),
        ("[asterisk] port", "5038 # usual", "a whole number from 1 to 65535"),
        ("[asterisk] port", "", "a whole number from 1 to 65535"),
        ("[asterisk] tls", "maybe", "yes or no"),
        ("[asterisk] tls", "", "yes or no"),
        ("[asterisk] ping_interval", "0.9", "a number from 1 to 3600"),
        ("[asterisk] ping_interval", "3600.1", "a number from 1 to 3600"),
        ("[asterisk] ping_interval", "nan", "a number from 1 to 3600"),
        ("[asterisk] ping_interval", "inf", "a number from 1 to 3600"),
        ("[asterisk] ping_interval", "ten", "a number from 1 to 3600"),
        ("[asterisk] tap", "mixmonitor", "auto or chanspy or snoop"),
        ("[ari] app", "", "a word of letters, digits, - _ ."),
        ("[ari] app", "..", "a word of letters, digits, - _ ."),
        ("[ari] app", "a,b", "a word of letters, digits, - _ ."),
        ("[ari] app", "Zoë", "a word of letters, digits, - _ ."),
        ("[websocket] sample_rate", "22050", "0 or 8000 or 12000 or 16000 or 24000"),
        ("[websocket] sample_rate", "08000", "0 or 8000 or 12000 or 16000 or 24000"),
        ("[websocket] format", "mulaw", "raw or json or twilio or vonage or jambonz"),
        ("[websocket] reconnect_interval", "0.2", "a number from 0.25 to 600"),
        ("[websocket] reconnect_attempts", "2.5", "a whole number from 0 to 1000000"),
        ("[security] allow_post_process", "always", "yes or no"),
        ("[security] allow_insecure_tls", "2", "yes or no"),
        ("[control] socket", "a\0b", "one line without control characters"),
        ("[front] listen", "5040", "host:port"),
        ("[audiosocket] listen", "9093", "host:port"),
        ("[audiosocket] listen", ":9093", "host:port"),
        ("[audiosocket] listen", "localhost:", "host:port"),
        ("[audiosocket] listen", "localhost:http", "host:port"),
        ("[audiosocket] listen", "localhost:65536", "host:port"),
        ("[audiosocket] listen", "localhost:" + "9" * 5000, "host:port"),
        ("[audiosocket] listen", "", "host:port"),
        ("[audiosocket] listen", "::1", "host:port, or [address]:port for IPv6"),
        ("[audiosocket] listen", "::1:9093", "host:port, or [address]:port for IPv6"),
        ("[audiosocket] listen", "[::1]", "host:port, or [address]:port for IPv6"),
        ("[audiosocket] listen", "[::1:9093", "host:port, or [address]:port for IPv6"),
        ("[audiosocket] listen", "[localhost]:9093", "host:port, or [address]:port for IPv6"),
        ("[audiosocket] advertise", "a/b:9093", "host:port"),
        ("[audiosocket] advertise", "a b:9093", "host:port"),
        ("[websocket] backlog", "600.5", "a number from 0 to 600"),
        ("[audiosocket] allow", "10.0.0.1/8", "networks like 192.0.2.0/24"),
        ("[audiosocket] allow", "pbx.example.org", "networks like 192.0.2.0/24"),
        ("[audiosocket] allow", "10.0.0.0/33", "networks like 192.0.2.0/24"),
        ("[security] allow_private", "never", "yes or no"),
        ("[security] allow_urls", "ws://a example.org", "patterns that begin with ws://"),
        ("[security] allow_urls", "http://a", "patterns that begin with ws://"),
        *(
            ("[security] allow_urls", pattern, "patterns that begin with ws://")
            for pattern in ("*", "wss://", "ws://a/?x", "ws://a:80a", "ws://.a.org")
        ),
        ("[security] allow_speak", "http://a", "@NAME of a profile, @* for all of them, or"),
        ("[security] allow_speak", "speech", "@NAME of a profile, @* for all of them, or"),
        ("[security] allow_commands", "audio xyz", "words of audio, clear, mark, pause, hangup"),
        ("[websocket] playout_buffer", "0", "a number from 1 to 600"),
        ("[profile:a] commands", "xyz", "words of audio, clear, mark, pause, hangup, dtmf, tr"),
        ("[profile:a] transfer_to", "sales", "context,exten or context,exten,priority"),
        ("[profile:a] transfer_to", "a,1,1 b,", "context,exten or context,exten,priority"),
        ("[profile:a] transfer_to", "a,1,1,1", "context,exten or context,exten,priority"),
        ("[log] level", "loud", "debug or info or warning or error"),
        ("[log] format", "xml", "text or json"),
    ],
)
def test_bad_value_is_an_error_that_names_line_section_and_option(
    option: str, value: str, expected: str
) -> None:
    section, _, name = option.partition(" ")
    content = f"; a comment\n{section}\n\n;{name} = 1\n{name} = {value}\n"
    text = refusal(content)
    assert text.startswith(f"test.ini:5: {option}: expected {expected}")
    assert text.endswith(f", got {value.replace(chr(10) + ' ', chr(10))!r}")


def test_what_servers_may_do_is_read_with_its_places() -> None:
    config = read(
        "[security]\nallow_speak = @bot, @sales-* wss://*.example.org/live\n"
        "allow_commands = audio, hangup\n"
        "[profile:bot]\nurl = wss://h/\ncommands = transfer\n"
        "transfer_to = sales,100,1 ivr,s\n  help,_X.,again\n"
    )
    assert config.security.allow_speak == ("@bot", "@sales-*", "wss://*.example.org/live")
    assert config.security.allow_commands == ("audio", "hangup")
    assert config.profile["bot"].commands == ("transfer",)
    assert config.profile["bot"].transfer_to == (
        Place("sales", "100", "1"),
        Place("ivr", "s", "1"),
        Place("help", "_X.", "again"),
    )
    assert [str(place) for place in config.profile["bot"].transfer_to][1] == "ivr,s,1"


def test_misspelt_word_of_what_servers_may_ask_for_is_told_the_right_one() -> None:
    text = refusal("[security]\nallow_commands = audio hang-up\n")
    assert text.endswith("got 'audio hang-up'; did you mean hangup?")


def test_words_of_what_servers_may_ask_for_are_those_of_the_relay() -> None:
    """All but `resume`, which comes with `pause`."""
    assert {*SERVER_COMMANDS, "resume"} == {*ServerCommand}


@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1:8088/ari",
        "ws://127.0.0.1/ari",
        "http:///ari",
        "http://:8088/ari",
        "http://127.0.0.1:0/ari",
        "http://127.0.0.1:65536/ari",
        "http://127.0.0.1:hunter2/ari",
        "http://[::1/ari",
        "http://127.0.0.1/ari?api_key=audiofork:hunter2",
        "http://127.0.0.1/ari?",
        "http://127.0.0.1/ari#hunter2",
        "http://audiofork:hunter2@127.0.0.1/ari",
        "http://127.0.0.1/hunter2 ari",
        "http://127.0.0.1\\ari",
        "http://127.0.0.1/Zoë",
        "http://127.0.0.1/a\0",
    ],
)
def test_bad_url_of_ari_is_an_error_that_does_not_quote_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"[ari]\nurl = {value}")
    assert str(caught.value) == (
        "test.ini:2: [ari] url: expected http://host[:port][/path] or https://, without user, "
        "password, query and fragment, got the value"
    )
    assert "hunter2" not in repr(caught.value.__cause__)


def test_tap_by_snoop_without_ari_is_an_error_that_names_both() -> None:
    assert refusal("[asterisk]\ntap = snoop") == (
        "test.ini:2: [asterisk] tap: snoop needs [ari] url (`audiofork setup` sets ARI up)"
    )


def test_detached_relay_processes_without_a_journal_are_an_error_that_names_both() -> None:
    assert refusal("[relay]\ndetached = yes\n[daemon]\njournal =") == (
        "test.ini:2: [relay] detached: needs [daemon] journal: by it the next daemon finds forks"
    )


def test_bad_value_of_the_second_section_names_its_own_line() -> None:
    content = "[asterisk]\nping_interval = 10\n[websocket]\nping_interval: x=1\n"
    assert refusal(content).startswith("test.ini:4: [websocket] ping_interval: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("\n[foo]\n", "test.ini:2: unknown section [foo]", id="section"),
        pytest.param(
            "[Asterisk]\n",
            "test.ini:1: unknown section [Asterisk]; did you mean [asterisk]?",
            id="upper-case",
        ),
        pytest.param(
            "[DEFAULT]\nport = 1\n", "test.ini:1: unknown section [DEFAULT]", id="default"
        ),
        pytest.param(
            "[log]\nlevel = info\n\nfoo = 1\n",
            "test.ini:4: unknown option foo in [log]",
            id="option",
        ),
        pytest.param(
            "[asterisk]\nport = 1\n[log]\nport = 1\n",
            "test.ini:4: unknown option port in [log]; port is an option of [asterisk]",
            id="option-of-another-section",
        ),
        pytest.param(
            "[log]\nFoo: 1\n", "test.ini:2: unknown option foo in [log]", id="option-with-colon"
        ),
        pytest.param(
            "[log]\nlevel = info\nLEVEL = debug\n",
            "test.ini:3: option level stands twice in [log], in line 2 and in line 3: keep one",
            id="option-twice",
        ),
        pytest.param(
            "[log]\nlevel = info\n[ari]\n[log]\nformat = json\n\nlevel: info\n",
            "test.ini:7: option level stands twice in [log], in line 2 and in line 7: keep one",
            id="option-twice-in-a-section-of-two-parts",
        ),
        pytest.param(
            "[asterisk]\nsecrt = x\n",
            "test.ini:2: unknown option secrt in [asterisk]; did you mean secret?",
            id="near-miss-of-an-option",
        ),
        pytest.param(
            "[asterisk]\nsecret-file = x\n",
            "test.ini:2: unknown option secret-file in [asterisk]; did you mean secret_file?",
            id="hyphen-in-an-option",
        ),
        pytest.param(
            "[web_socket]\n",
            "test.ini:1: unknown section [web_socket]; did you mean [websocket]?",
            id="near-miss-of-a-section",
        ),
        pytest.param(
            "[postprocess:upload]\n",
            "test.ini:1: unknown section [postprocess:upload]; did you mean [post_process:upload]?",
            id="near-miss-of-a-section-with-a-name",
        ),
        pytest.param(
            "[log]\nlevel = Info\n",
            "test.ini:2: [log] level: expected debug or info or warning or error, got 'Info'; "
            "did you mean info?",
            id="choice-in-another-case",
        ),
        pytest.param(
            "[asterisk]\ntap = snop\n",
            "test.ini:2: [asterisk] tap: expected auto or chanspy or snoop, got 'snop'; "
            "did you mean snoop?",
            id="near-miss-of-a-choice",
        ),
        pytest.param(
            "[asterisk]\ntls = ture\n",
            "test.ini:2: [asterisk] tls: expected yes or no, got 'ture'; did you mean true?",
            id="near-miss-of-yes",
        ),
        pytest.param(
            "[relay]\nworkers = 2\n[post_process:a]\ncommand = /a\n  [log]\n[audiosocket]\n"
            "listen = 127.0.0.1:65535\n",
            "test.ini:7: [audiosocket] listen: expected 2 ports from 65535 on ([relay] workers), "
            "the last is 65535",
            id="line-after-a-continued-one-that-looks-like-a-section",
        ),
        pytest.param(
            "; comment\nlevel = info\n",
            "test.ini:2: expected a [section] before the first option",
            id="no-section",
        ),
        pytest.param(
            "[log]\nlevel\n", "test.ini:2: expected option = value or [section]", id="no-value"
        ),
        pytest.param(
            "[http]\nlisten = 127.0.0.1:9080\n",
            "test.ini:2: [http] listen: needs [http] tokens_file, which says who may do what",
            id="http-without-tokens",
        ),
        pytest.param(
            "[http]\nlisten = a:1\ntokens_file = /t\nkey_file = /k\n",
            "test.ini:4: [http] key_file: needs [http] cert_file",
            id="http-key-without-certificate",
        ),
        pytest.param(
            "[http]\nsocket = /s\ncert_file = /c\n",
            "test.ini:3: [http] cert_file: needs [http] listen",
            id="http-certificate-without-address",
        ),
        pytest.param(
            "[http]\nhosts = pbx.example.org:443\n",
            "test.ini:2: [http] hosts: expected names of hosts and addresses, without ports, or "
            "origins like https://pbx.example.org:8443, with blanks between, got "
            "'pbx.example.org:443'",
            id="http-host-with-a-port",
        ),
        pytest.param(
            "[log]\n[asterisk\n", "test.ini:2: expected option = value or [section]", id="bracket"
        ),
        pytest.param(
            "[log]\n= info\n", "test.ini:2: expected option = value or [section]", id="no-name"
        ),
    ],
)
def test_bad_file_is_an_error_that_names_the_line(content: str, expected: str) -> None:
    assert refusal(content) == expected


@given(st.text(), st.dictionaries(st.sampled_from(["AUDIOFORK_LOG_LEVEL", "HOME"]), st.text()))
def test_any_text_gives_a_configuration_or_a_config_error(
    content: str, environment: dict[str, str]
) -> None:
    for text in (content, f"[asterisk]\n{content}", f"[audiosocket]\nlisten = {content}"):
        try:
            assert isinstance(read(text, **environment), Config)
        except ConfigError as exc:
            refusal = str(exc)
            assert refusal


# --- The environment -----------------------------------------------------------------------------


def others(section: str, option: str) -> str:
    """Return a file with the options that one option needs beside it."""
    if option.startswith("proxy_"):
        return "[websocket]\nproxy = http://a:1\n"
    needed = {"listen": "a:1\n", "tokens_file": "/t\n", "cert_file": "/c\n"}
    if section != "http" or option in ("socket", "hosts"):
        return ""
    left_out = {"listen": ("listen", "cert_file"), "cert_file": ("cert_file",)}.get(option, ())
    beside = {name: value for name, value in needed.items() if name not in left_out}
    return "[http]\n" + "".join(f"{name} = {value}" for name, value in beside.items())


@pytest.mark.parametrize(("section", "option"), OPTIONS, ids=[".".join(pair) for pair in OPTIONS])
def test_environment_reaches_the_option(section: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("b:b")
    # Of these, each option takes one.
    for value in (
        "7",
        "3",
        "40",
        "yes",
        "no",
        "::1",
        "h:7",
        "wss://x",
        "nats://h:7",
        NKEY,
        CREDENTIALS,
        "debug",
        "json",
        "keep",
        "chanspy",
        "narrowband",
        "wait",
        "hangup",
        "http://h/ari",
        "http://h:7",
        "16000",
        str(tmp_path / "b"),
    ):
        try:
            rest = others(section, option)
            config = read(rest, **{f"AUDIOFORK_{section}_{option}".upper(): value})
        except ConfigError:
            continue
        if config != read(rest):
            return
    pytest.fail("the environment changes nothing")


def test_environment_overrides_the_file() -> None:
    config = read("[log]\nlevel = debug\nformat = json", AUDIOFORK_LOG_LEVEL=" error ")
    assert config.log == LogConfig(level="error", format="json")


def test_environment_overrides_a_bad_value_of_the_file() -> None:
    assert read("[log]\nlevel = loud", AUDIOFORK_LOG_LEVEL="error").log.level == "error"


def test_environment_with_a_bad_value_is_an_error_that_names_the_variable() -> None:
    assert (
        refusal("[asterisk]\nport = 1", AUDIOFORK_ASTERISK_PORT="x") == "AUDIOFORK_ASTERISK_PORT: "
        "[asterisk] port: expected a whole number from 1 to 65535, got 'x'"
    )


def test_environment_is_the_process_s_own_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOFORK_LOG_LEVEL", "error")
    (tmp_path / "a.ini").touch()
    assert load(tmp_path / "a.ini").log.level == "error"


# --- Files ---------------------------------------------------------------------------------------


def test_load_reads_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes("[asterisk]\nusername = Zoë\n".encode())
    assert load(path, {}).asterisk.username == "Zoë"


def test_load_error_names_the_path_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[log]\nlevel = loud")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}:2: "):
        load(path, {})


@pytest.mark.parametrize(
    "prepare", [lambda path: None, Path.mkdir, lambda p: p.write_bytes(b"\xff")]
)
def test_load_of_what_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, prepare: Callable[[Path], object]
) -> None:
    prepare(tmp_path / "a.ini")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "a.ini"))):
        load(tmp_path / "a.ini", {})


def test_section_that_stands_several_times_is_taken_together() -> None:
    config = read("[ari]\nurl = http://h/ari\n[log]\n[ari]\nusername = x\n[ari]\n;url =\n")
    assert (config.ari.url, config.ari.username) == ("http://h/ari", "x")


def test_load_of_a_file_that_is_missing_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.ini", {})
    assert str(caught.value) == (
        f"{tmp_path}/none.ini: No such file or directory; `audiofork setup` makes one, -c names "
        "another"
    )


def test_load_of_a_folder_says_that_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}: a folder, not a file$"):
        load(tmp_path, {})


def test_load_of_a_file_in_another_encoding_names_the_line_and_not_its_text(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.ini"
    path.write_bytes("[asterisk]\nsecret = hünter2\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value) == f"{path}: line 2 is not UTF-8 (byte 0xfc): save it as UTF-8"
    assert caught.value.__suppress_context__


def test_secret_file_below_a_variable_that_is_not_set_says_who_sets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = refusal("[asterisk]\nsecret_file = ${CREDENTIALS_DIRECTORY}/ami\n")
    assert text == (
        "test.ini:2: [asterisk] secret_file: ${CREDENTIALS_DIRECTORY}/ami: No such file or "
        "directory; systemd sets that variable for the service alone"
    )


def test_secret_file_that_the_environment_names_is_told_by_the_variable() -> None:
    text = refusal("", AUDIOFORK_ASTERISK_SECRET_FILE="/none")
    assert text == (
        "AUDIOFORK_ASTERISK_SECRET_FILE: [asterisk] secret_file: /none: No such file or directory"
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[front] listen: cannot listen", "{}:3: "),
        ("[front] tls_cert_file, tls_key_file: /a", "{}: "),
        ("[log] level: x", "AUDIOFORK_LOG_LEVEL: "),
        ("/etc/a.ini:7: unknown", ""),
        ("no secret", ""),
    ],
)
def test_error_of_what_an_option_names_gets_the_place_of_the_option(
    tmp_path: Path, text: str, place: str
) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[log]\n[front]\nlisten = 127.0.0.1:1\n")
    environment = {"AUDIOFORK_LOG_LEVEL": "info"}
    assert with_place(text, path, environment) == place.format(path) + text


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_error_of_what_an_option_names_gets_the_file_where_that_has_changed(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "a.ini"
    if content is not None:
        path.write_text(content)
    assert with_place("[log] level: x", path, {}) == f"{path}: [log] level: x"


# --- Environment variables that are of no option ---


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("AUDIOFORK_ASTERISK_SECERT", "AUDIOFORK_ASTERISK_SECRET"),
        ("AUDIOFORK_LOGLEVEL", "AUDIOFORK_LOG_LEVEL"),
        ("audiofork_log_level", "AUDIOFORK_LOG_LEVEL"),
        ("AUDIOFORK_POST_PROCESS_UPLOAD_COMAND", "AUDIOFORK_POST_PROCESS_UPLOAD_COMMAND"),
        ("AUDIOFORK_", ""),
        ("AUDIOFORK_ZZZ_QQQ\n", ""),
    ],
)
def test_variable_of_no_option_is_refused_with_the_nearest_there_is(
    name: str, nearest: str
) -> None:
    config = read("[post_process:upload]\ncommand = /opt/a\n")
    with pytest.raises(ConfigError) as caught:
        refuse_unknown_variables(config, {name: "hunter2"})
    text = f"the environment variable {name.strip()}"
    assert str(caught.value).startswith(text)
    hint = f"; did you mean {nearest}?" if nearest else ""
    assert str(caught.value).endswith(f" matches no option{hint}")


def test_variables_of_options_of_the_tests_and_of_others_are_no_error() -> None:
    config = read("[post_process:up-load]\ncommand = /opt/a\n")
    known = {variable_of(section, option): "x" for section, option in OPTIONS}
    others = {
        "AUDIOFORK_POST_PROCESS_UP_LOAD_COMMAND": "/opt/b",
        "AUDIOFORK_TESTBED_KEEP": "1",
        "AUDIOFORK_PACKAGE": "/a.deb",
        "AUDIOFORK_PACKAGE_SUITE": "trixie",
        "AUDIOFORK_DEBIAN_MIRROR": "http://x",
        "_AUDIOFORK_COMPLETE": "bash_source",
        "HOME": "/root",
    }
    refuse_unknown_variables(config, {**known, **others})


# --- The secrets -------------------------------------------------------------------------------

SECRETS = [("asterisk", "secret"), ("ari", "password")]
each_secret = pytest.mark.parametrize(("section", "option"), SECRETS, ids=["ami", "ari"])


@each_secret
def test_secret_is_not_shown_by_repr_and_str(section: str, option: str) -> None:
    config = read(f"[{section}]\n{option} = hunter2")
    values = getattr(config, section)
    assert getattr(values, option) == "hunter2"
    assert "hunter2" not in f"{config!r} {config} {values!r} {values}"


@each_secret
@pytest.mark.parametrize(
    ("content", "environment"),
    [
        pytest.param("{option} = hunter2", {}, id="no-section"),
        pytest.param("[{section}]\n{option} hunter2", {}, id="no-equals-sign"),
        pytest.param("[{section}]\n{option} = hunter2\n{option} = hunter2", {}, id="twice"),
        pytest.param("[{section}]\n{option}s = hunter2", {}, id="misspelt"),
        pytest.param("[{section}]\n{option} = hunter2\n hunter2", {}, id="two-lines"),
        pytest.param("[log]\n{option} = hunter2", {}, id="other-section"),
        pytest.param("", {"AUDIOFORK_{section}_{option}": "hunter2\0"}, id="environment"),
    ],
)
def test_secret_is_not_shown_by_errors(
    section: str, option: str, content: str, environment: dict[str, str]
) -> None:
    content = content.format(section=section, option=option)
    variables = {
        name.format(section=section, option=option).upper(): value
        for name, value in environment.items()
    }
    with pytest.raises(ConfigError) as caught:
        read(content, **variables)
    exc: BaseException | None = caught.value
    while exc is not None:
        assert "hunter2" not in str(exc)
        exc = exc.__cause__


@each_secret
def test_secret_file_is_read_without_mark_and_line_end_and_goes_before_secret(
    section: str, option: str, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    path.write_text("\ufeffhunter2 %;\n")
    config = read(f"[{section}]\n{option} = other\n{option}_file = {path}")
    assert getattr(getattr(config, section), option) == "hunter2 %;"


@each_secret
def test_secret_file_that_is_empty_is_an_error(section: str, option: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("\n")
    assert refusal(f"[{section}]\n{option}_file = {path}") == (
        f"test.ini:2: [{section}] {option}_file: expected the {option} in {path}, which is empty"
    )


def test_token_file_that_is_empty_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("")
    assert refusal(f"[profile:a]\nurl = ws://h/\ntoken_file = {path}") == (
        f"test.ini:3: [profile:a] token_file: expected the token in {path}, which is empty"
    )


def test_secret_files_are_read_each_for_its_own(tmp_path: Path) -> None:
    for section, _ in SECRETS:
        (tmp_path / section).write_text(f"hunter2 of {section}")
    config = read(
        f"[asterisk]\nsecret_file = {tmp_path}/asterisk\n[ari]\npassword_file = {tmp_path}/ari"
    )
    assert config.asterisk.secret == "hunter2 of asterisk"
    assert config.ari.password == "hunter2 of ari"


@each_secret
def test_secret_file_may_stand_below_a_variable(
    section: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "ami").write_text("hunter2")
    config = read(f"[{section}]\n{option}_file = ${{CREDENTIALS_DIRECTORY}}/ami")
    assert getattr(getattr(config, section), option) == "hunter2"


@each_secret
@pytest.mark.parametrize(
    "content",
    [None, b"hunter2\xff", b"hunter2\nhunter2"],
    ids=["missing", "not-utf-8", "two-lines"],
)
def test_secret_file_that_cannot_be_used_is_an_error_without_the_secret(
    section: str, option: str, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    text = refusal(f"[{section}]\n{option}_file = {path}")
    assert text.startswith(f"test.ini:2: [{section}] {option}_file: ")
    assert str(path) in text
    assert "hunter2" not in text


@each_secret
def test_secret_file_that_is_no_file_is_an_error_at_once(
    section: str, option: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = refusal(f"[{section}]\n{option}_file = {tmp_path}/pipe")
    assert text.endswith(f"{tmp_path}/pipe: not a regular file")


def test_configuration_that_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"{path}: .*not a regular file"):
            load(path, {})


@pytest.mark.parametrize("value", ["ws:ok ws//user:hunter2@host", "user:hunter2@host"])
def test_password_in_a_url_is_not_shown_by_errors(value: str) -> None:
    text = refusal(f"[security]\nallow_urls = {value}")
    assert "expected patterns that begin with ws://, wss:// or *://" in text
    assert text.endswith("got the value")


# --- Files that requests may name ---


def test_tls_dir_is_an_absolute_path_or_nothing() -> None:
    assert read("").security.tls_dir == "/etc/audiofork/tls"
    assert read("[security]\ntls_dir = /srv/tls").security.tls_dir == "/srv/tls"
    assert read("[security]\ntls_dir =").security.tls_dir == ""
    text = "[security] tls_dir: expected an absolute path, or nothing, got 'tls'"
    assert text in refusal("[security]\ntls_dir = tls")


# --- Several processes ---


def test_workers_are_as_many_as_cores_if_left_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)))
    assert read("[relay]\nworkers = auto").relay.workers == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(256)))
    assert read("[relay]\nworkers = auto").relay.workers == 64


@pytest.mark.parametrize("value", ["0", "65", "", "two", "-1"])
def test_workers_that_are_no_number_of_processes_are_refused(value: str) -> None:
    expected = "[relay] workers: expected a whole number from 1 to 64, or auto"
    assert expected in refusal(f"[relay]\nworkers = {value}")


@pytest.mark.parametrize("option", ["listen", "advertise"])
def test_workers_need_a_port_each(option: str) -> None:
    content = "[relay]\nworkers = 4\n[audiosocket]\n" + option + " = 127.0.0.1:{}"
    assert read(content.format(65532)).relay.workers == 4
    assert f"[audiosocket] {option}: expected 4 ports from 65533 on" in refusal(
        content.format(65533)
    )


# --- [post_process:NAME] -------------------------------------------------------------------------


def commands(content: str, environment: dict[str, str] | None = None) -> dict[str, tuple[str, ...]]:
    config = parse(content, environment or {}, source="a.ini")
    return {name: section.command for name, section in config.post_process.items()}


def test_commands_are_split_once_as_a_shell_does() -> None:
    content = """[post_process:upload]
command = /opt/up load '^{NOTE} and more' --
    ^{CALLERID(num)} "it's #1"
[log]
level = debug
[post_process:Notify-2.a_b]
command = /opt/notify
"""
    assert commands(content) == {
        "upload": ("/opt/up", "load", "^{NOTE} and more", "--", "^{CALLERID(num)}", "it's #1"),
        "Notify-2.a_b": ("/opt/notify",),
    }


def test_environment_overrides_a_command_that_the_file_has() -> None:
    content = "[post_process:up-load]\ncommand = /opt/a\n"
    environment = {
        "AUDIOFORK_POST_PROCESS_UP_LOAD_COMMAND": "/opt/b ^{X}",
        "AUDIOFORK_POST_PROCESS_OTHER_COMMAND": "/opt/c",
    }
    assert commands(content, environment) == {"up-load": ("/opt/b", "^{X}")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[post_process]\n", "a.ini:1: expected [post_process:NAME], the name a word of"),
        ("[post_process:]\n", "a.ini:1: expected [post_process:NAME]"),
        ("[post_process: a]\n", "a.ini:1: expected [post_process:NAME]"),
        ("[post_process:a b]\n", "a.ini:1: expected [post_process:NAME]"),
        ("[post-process:a]\n", "a.ini:1: unknown section [post-process:a]"),
        ("[log:a]\n", "a.ini:1: unknown section [log:a]"),
        ("[post_process:a]\n", "a.ini:1: [post_process:a] command: expected a command"),
        ("[post_process:a]\ncommand =\n", "command: expected a command"),
        ("[post_process:a]\ncomand = x\n", "a.ini:2: unknown option comand in [post_process:a]"),
        ("[post_process:a]\ncommand = upload\n", "expected the path of a program, from / on"),
        ("[post_process:a]\ncommand = /opt/^{X}\n", "expected the path of a program, from / on"),
        ("[post_process:a]\ncommand = /opt/a 'b\n", "expected words, in quotes"),
        ("[post_process:a]\ncommand = /a ^{X\n", "a.ini:2: [post_process:a] command: expected ^{"),
        ('[post_process:a]\ncommand = /a "b\n c"\n', "words without control characters"),
    ],
)
def test_command_that_cannot_be_is_told_with_its_place(content: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        commands(content)
    assert says in str(refusal.value)


def test_mark_that_editors_of_windows_begin_a_file_with_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "audiofork.ini"
    path.write_bytes(b"\xef\xbb\xbf[asterisk]\nsecret = x\n")
    assert load(path, {}).asterisk.secret == "x"


# --- One section alone ---------------------------------------------------------------------------


def test_control_is_read_alone_with_its_environment_and_its_default(tmp_path: Path) -> None:
    path = tmp_path / "audiofork.ini"
    path.write_text("[asterisk]\nsecret_file = /none\nprot = x\n[control]\nsocket = /a\n[what]\n")
    assert load_control(path, {}).socket == "/a"
    assert load_control(path, {"AUDIOFORK_CONTROL_SOCKET": "/b"}).socket == "/b"
    path.write_text("")
    assert load_control(path, {}) == Config().control


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "[control]\nsokcet = /a\n",
            ":2: unknown option sokcet in [control]; did you mean socket?",
        ),
        ("socket = /a\n", ":1: expected a [section] before the first option"),
    ],
)
def test_fault_of_control_is_told_with_its_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "audiofork.ini"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_control(path, {})
    assert str(caught.value) == f"{path}{told}"


def test_secrets_of_other_sections_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "audiofork.ini"
    path.write_text("[asterisk]\nsecret = x\n[ari]\npassword_file = /none\n")
    assert load(path, {}, secrets_of=["asterisk"]).ari.password == ""
    with pytest.raises(ConfigError, match="password_file"):
        load(path, {})


def test_hosts_of_http_may_be_origins_as_browsers_send_them() -> None:
    given = "PBX.example.org. [::1] https://Two.example.org:443 http://a:8080, https://[::1]:9443"
    assert host_names(given) == (
        *("pbx.example.org", "::1", "https://two.example.org", "http://a:8080"),
        "https://[::1]:9443",
    )
    for bad in ("ftp://a", "https://", "https://a/", "https://a:0", "https://a:65536", "https://*"):
        with pytest.raises(ValueError, match="or origins like"):
            host_names(bad)
