"""What reads requests: fields, option strings, URLs, post-process commands, configuration."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from random import Random

from websockets.uri import parse_uri

from audiofork import config, config_file, config_sample
from audiofork.errors import ConfigError, RequestRefused
from audiofork.forks.options import Options, parse_options, split_options
from audiofork.forks.post_process.template import prepare
from audiofork.forks.requests import (
    MAX_FIELD_BYTES,
    MuteFork,
    Request,
    StartFork,
    is_beginning_of_id,
    parse_request,
)
from audiofork.forks.urls import MAX_URL_BYTES, check_url
from audiofork.placeholders import MAX_NAMES
from audiofork.uri import uri_of
from tests.forks.test_options import asterisk_parse_options

from .fuzzing import Target

UNUSUAL_TEXT = (
    *(b"\0", b"\r\n", b"\r", b"\n", b"\t", b"\x1b[2J", b"\x7f", b"\xff", b"\xed\xa0\x80", b" "),
    *(b"%0d%0a", b"\\", b"{", b"}", b"${", b"$(", b"`", b",", b";", b"|", b"\xc2\x85"),
    # Line and paragraph separators, direction marks, a soft hyphen, letters whose lower case is
    # another letter or two, digits and dots that are not ASCII.
    *(text.encode() for text in ("\u2028", "\u2029", "\u202e", "\u00ad", "\u212a", "\u0130")),
    *(
        text.encode()
        for text in ("\u017f", "\u0663", "\u00b2", "\uff11", "\u3002", "\u2460", "\U0001f600")
    ),
)
OPTION_TOKENS = (
    *(b"D(in)", b"D(out)", b"D(both)", b"D(stereo)", b"T(on)", b"T(ca=/a)", b"T(insecure)"),
    *(b"T(cert=/a:key=/b)", b"R(5)", b"r(0)", b"b", b"B(15)", b"B", b"p", b"P", b"v(-4)", b"V(4)"),
    *(b"W(0)", b"i(NAME)", b"S", b"a", b"F(40)", b"L(16000)", b"L(0,8000)", b"L(8000,"),
    *(b"(", b")", b'("', b'")', b"\\", b'\\"', b'"', b"x", b" "),
)
URL_TOKENS = (
    *(b"ws://", b"wss://", b"WS://", b"http://", b"//", b"/", b":", b"@", b"#", b"?", b"[", b"]"),
    *(b"[::1]", b"[fe80::1%25eth0]", b"[v1.x]", b"127.0.0.1", b":0", b":80", b":65536", b":+80"),
    *(b"..", b"/../", b"%2e%2e", b"\\", b"u:p@", b".", b".good.example", b"evil.example", b"xn--"),
    *(b"a" * 64, "b\u00fccher".encode(), "\u24d4".encode(), "\u2100".encode(), b"%", b"*", b"?*"),
)
_START = b"Channel: PJSIP/100-0000002a\nWsServer: wss://a.good.example/live?x=1\n"
FIELDS = (
    _START + b"Options: D(stereo)R(5)r(3)i(ID)T(ca=/etc/ca.pem)\nActionID: 42",
    _START + b"Command: StartAudioFork\nPostProcess: /opt/upload ^{CALLERID(num)}",
    _START + b"Command: /opt/upload",
    b"Command: StopAudioFork\nAudioForkID: 3f2a91c0-d1e8-4c52-9a7b-0123456789ab\nActionID: 1",
    b"Command: StopAudioFork\nUniqueid: 1700000000.1",
    b"Command: AudioForkMute\nChannel: SIP/1\nDirection: read\nState: on\nActionID: x",
    b"Command: AudioForkMute\nAudioForkID: {3f2a91c0d1e84c529a7b0123456789ab}\n"
    b"Direction: both\nState: 0",
)
FIELD_TOKENS = (
    *(b"Channel: ", b"\nUniqueid: 1.2", b"\nWsServer: ", b"\nOptions: ", b"\nPostProcess: "),
    *(b"\nAudioForkID: ", b"\nDirection: write", b"\nState: 1", b"\nActionID: ", b"\nCommand: "),
    *(b"StartAudioFork", b"StopAudioFork", b"AudioForkMute", b"\n", b": ", b"\nx: y", b"no"),
    *OPTION_TOKENS[:12],
    *URL_TOKENS[:8],
    *UNUSUAL_TEXT,
)
_PATTERNS = ("ws://a.good.example", "wss://*.good.example:443/live/*", "*://127.0.0.1:*/")


def fields_of(data: bytes) -> dict[str, str]:
    """Return the fields that lines of `name: value` stand for; what is no UTF-8 as surrogates."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    pairs = (line.partition(": ") for line in lines)
    return {name: value for name, colon, value in pairs if colon}


def check_granted(request: Request) -> None:
    """Check that nothing of a request can harm Asterisk, a log or a terminal."""
    texts = [request.target.channel, request.target.uniqueid, request.action_id]
    if isinstance(request, StartFork):
        texts += [request.url, request.post_process]
        check_options(request.options)
        assert request.url
    else:
        given = request.fork_id
        assert not given or is_beginning_of_id(given) or given == str(uuid.UUID(given))
    for text in texts:
        assert text.isprintable()
        assert len(text.encode()) <= MAX_FIELD_BYTES
    if isinstance(request, MuteFork):
        assert not (request.mute_in is None and request.mute_out is None)
    assert any(texts[:2]) or (not isinstance(request, StartFork) and request.fork_id)


def check_refusal(exc: RequestRefused) -> str:
    """Check that the text of a refusal may be shown; return a word for the outcome."""
    assert str(exc)
    assert str(exc).isprintable()
    return "refused"


def check_options(options: Options) -> None:
    assert -4 <= options.gain_in <= 4
    assert -4 <= options.gain_out <= 4
    assert options.id_variable == "" or options.id_variable.isidentifier()
    assert options.use_tls or options.tls is None
    assert 0 <= options.beeps.interval_s <= 86_400
    assert 1 <= (options.reconnect_interval_s or 1) <= 600
    assert 0 <= (options.reconnect_attempts or 0) <= 1_000_000
    assert options.frame_ms is None or options.frame_ms in range(20, 1001, 20)
    assert len(options.sample_rates) <= 2
    assert set(options.sample_rates) <= {0, *config.SAMPLE_RATES}


def check_fields(data: bytes, rng: Random) -> str:
    try:
        request = parse_request(fields_of(data))
    except RequestRefused as exc:
        return check_refusal(exc)
    check_granted(request)
    return type(request).__name__


def check_option_string(data: bytes, rng: Random) -> str:
    text = data.decode("utf-8", "surrogateescape")
    _check_cut(text)
    try:
        options = parse_options(text)
    except RequestRefused as exc:
        return check_refusal(exc)
    check_options(options)
    return "taken"


def _check_cut(text: str) -> None:
    """Check that a string is cut as Asterisk would, whose model is too slow for long ones."""
    if len(text) > 400:
        return
    try:
        expected = asterisk_parse_options(text)
    except ValueError:
        expected = None
    try:
        pairs = split_options(text)
    except RequestRefused as exc:
        blank = expected is not None and any(
            letter.isspace() and argument is not None for letter, argument in expected
        )
        refusal = str(exc)
        assert expected is None or blank, refusal
        return
    assert pairs == [pair for pair in expected or [] if not pair[0].isspace()]


def check_url_string(data: bytes, rng: Random) -> str:
    url = data.decode("utf-8", "surrogateescape")
    try:
        check_url(url, ("ws://*", "wss://*"))
    except RequestRefused as exc:
        refusal = str(exc)
        assert refusal
        if url.isprintable():
            check_refusal(exc)
        return "refused"
    assert url.isprintable()
    assert len(url.encode()) <= MAX_URL_BYTES
    uri = uri_of(url)
    assert uri.isascii()
    assert uri.isprintable()
    assert uri_of(uri) == uri
    for pattern in _PATTERNS:
        _check_pattern(url, pattern)
    _check_private(url)
    return "taken"


def _check_pattern(url: str, pattern: str) -> None:
    """Check that the library would go where the pattern allows, in its own reading of the URL."""
    try:
        check_url(url, (pattern,))
        is_allowed = True
    except RequestRefused:
        is_allowed = False
    where = parse_uri(uri_of(url))
    scheme, _, host_and_port = pattern.partition("://")
    host, _, port = host_and_port.partition("/")[0].partition(":")
    fits = (
        scheme in ("*", "wss" if where.secure else "ws")
        and fnmatchcase(where.host.lower(), host)
        and port in ("", "*", str(where.port))
    )
    assert fits or not is_allowed, f"{pattern} lets {where} pass"
    assert where.username is where.password is None


def _check_private(url: str) -> None:
    """Check that no address of a private network passes where none is wanted."""
    try:
        check_url(url, ("ws://*", "wss://*"), allow_private=False)
        address = ipaddress.IPv4Address(parse_uri(uri_of(url)).host)
    except (RequestRefused, ValueError):  # a name, or IPv6
        return
    assert address.is_global


def check_post_process(data: bytes, rng: Random) -> str:
    command = data.decode("utf-8", "surrogateescape")
    try:
        prepared = prepare(command)
    except RequestRefused as exc:
        if command.isprintable():
            check_refusal(exc)
        return "refused"
    (script,) = prepared.arguments({})[2:]
    assert "^{" not in script or not prepared.names
    assert len(set(prepared.names)) == len(prepared.names) <= MAX_NAMES
    return "with values" if prepared.names else "plain"


def check_config(data: bytes, rng: Random) -> str:
    content = data.decode("utf-8", "replace")
    # A file that the text names would be read.
    environment = {"AUDIOFORK_ASTERISK_SECRET_FILE": ""}
    try:
        config_file.parse(content, environment, source="audiofork.ini")
    except ConfigError as exc:
        refusal = str(exc)
        assert refusal.startswith("audiofork.ini:")
        return "refused"
    return "taken"


def _config_corpus() -> Iterator[bytes]:
    sample = config_sample.sample().encode()
    lines = [line.removeprefix(b";") for line in sample.split(b"\n") if line[:2] != b"; "]
    yield b"\n".join(lines)
    yield b"[asterisk]\nhost = pbx\nsecret = hunter2\ntls = yes\n[log]\nlevel = debug ; why\n"
    yield b"[audiosocket]\nlisten = [::1]:9092\n\n# c\n[security]\nallow_urls = ws://a, wss://*\n"


TARGETS = (
    Target(
        "request-fields",
        corpus=FIELDS,
        tokens=FIELD_TOKENS,
        share=150,
        opened=lambda: nullcontext(check_fields),
    ),
    Target(
        "options",
        corpus=(
            b"D(stereo)T(ca=/a)R(9)r(8)F(40)L(16000,8000)bB(7)pPv(1)V(2)i(x)Sa",
            b'D("in")W(-4)T(cert=/a:key=/b) S a',
            b"D(in)r(0)T(insecure)",
        ),
        tokens=(*OPTION_TOKENS, *UNUSUAL_TEXT),
        share=100,
        opened=lambda: nullcontext(check_option_string),
    ),
    Target(
        "urls",
        corpus=(
            b"ws://127.0.0.1:8080/",
            b"wss://a.good.example/live/x?token=1&x=%20",
            b"ws://a.good.example",
            b"wss://[2001:db8::1]:8443/a",
            "wss://b\u00fccher.good.example:443/live/\u00f6".encode(),
        ),
        tokens=(*URL_TOKENS, *UNUSUAL_TEXT),
        share=100,
        opened=lambda: nullcontext(check_url_string),
    ),
    Target(
        "post-process",
        corpus=(
            b'/opt/upload ^{CALLERID(num)} "^{NOTE}"',
            b"sh /opt/a.sh '^{A}' > /tmp/^{B:1:2} 2>&1 && echo $(date) ${HOME} ^{A}",
            b"/opt/upload " + b" ".join(b"^{V%d}" % number for number in range(MAX_NAMES)),
            b"touch /tmp/x; env A=1 nice -n 5 cat <(echo) | grep -- ^{X} &",
        ),
        tokens=(
            *(b"^{A}", b"^{", b"}", b"$(", b")", b"$((", b"`", b"'", b'"', b"\\", b"$", b"${A}"),
            *(b"eval ", b"sh -c ", b"ssh h ", b"; ", b"| ", b"& ", b"<", b">>", b"<<", b"#", b" "),
            *(b"case x in x) ", b"env ", b"printf -v ", b"((", b"$'", b'$"', *UNUSUAL_TEXT),
        ),
        share=40,
        opened=lambda: nullcontext(check_post_process),
    ),
    Target(
        "configuration",
        corpus=tuple(_config_corpus()),
        tokens=(
            *(b"[asterisk]\n", b"[log]\n", b"[", b"]", b"=", b":", b"\n", b"\n ", b";", b"#"),
            *(b"secret = x\n", b"level = info\n", b"port = 1\n", b"[DEFAULT]\n", b"%(x)s", b"[]\n"),
            *UNUSUAL_TEXT,
        ),
        share=10,
        opened=lambda: nullcontext(check_config),
    ),
)
