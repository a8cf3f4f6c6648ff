import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.config import SecurityConfig
from audiofork.errors import RequestRefused
from audiofork.forks.urls import MAX_URL_BYTES, check_url, hosts_at_will

ANY = ("*://*",)


@pytest.mark.parametrize(
    "url",
    [
        "ws://example.org",
        "wss://example.org/",
        "ws://example.org:8080/a/b.c?token=1&x=%20",
        "ws://127.0.0.1:65535/",
        "ws://[::1]/",
        "wss://[2001:db8::1]:8443/a",
        "WS://EXAMPLE.ORG/A",
        "wSs://example.org",
        "ws://bücher.example/ö?ü",
        "ws://xn--bcher-kva.example/",
        "ws://example.org./",
        "ws://pbx_1:8080/",
        "ws://example.org/a..b/...",
        "ws://example.org/?a=../b",
        "ws://example.org/@;a=1",
    ],
)
def test_check_url_good_url_is_allowed(url: str) -> None:
    check_url(url, ANY)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        pytest.param("", "the scheme must be ws or wss", id="empty"),
        pytest.param("example.org", "the scheme must be ws or wss", id="no-scheme"),
        pytest.param("//example.org", "the scheme must be ws or wss", id="scheme-relative"),
        pytest.param("http://example.org", "the scheme must be ws or wss", id="http"),
        pytest.param("https://example.org", "the scheme must be ws or wss", id="https"),
        pytest.param("wsx://example.org", "the scheme must be ws or wss", id="wsx"),
        pytest.param("ws:", "no host", id="scheme-alone"),
        pytest.param("ws://", "no host", id="no-authority"),
        pytest.param("ws:///a", "no host", id="path-alone"),
        pytest.param("ws://:80/", "no host", id="port-alone"),
        pytest.param("ws:example.org", "no host", id="no-slashes"),
        pytest.param("ws://u@example.org", "credentials are not allowed", id="user"),
        pytest.param("ws://u:p@example.org", "credentials are not allowed", id="password"),
        pytest.param("ws://@example.org", "credentials are not allowed", id="empty-user"),
        pytest.param("ws://a.org\\@b.org/", "credentials are not allowed", id="backslash-user"),
        pytest.param("ws://example.org/#a", "a fragment is not allowed", id="fragment"),
        pytest.param("ws://example.org/#", "a fragment is not allowed", id="empty-fragment"),
        pytest.param("ws://example.org#a", "a fragment is not allowed", id="fragment-no-path"),
        pytest.param("ws://example.org:0/", "port 0 is not allowed", id="port-0"),
        pytest.param("ws://example.org:65536/", "not a URL: the port", id="port-65536"),
        pytest.param("ws://example.org:x/", "not a URL: the port is no number", id="port-x"),
        pytest.param("ws://example.org:-1/", "not a URL: the port", id="port-negative"),
        pytest.param("ws://[::1/", "not a URL", id="bracket-open"),
        pytest.param("ws://[::g]/", "not a URL", id="bad-ipv6", marks=()),
        pytest.param("ws://exa mple.org/", "blanks are not allowed", id="blank-in-host"),
        pytest.param("ws://example.org/a b", "blanks are not allowed", id="blank-in-path"),
        pytest.param(" ws://example.org/", "blanks are not allowed", id="blank-before"),
        pytest.param("ws://example.org/\r\nX: y", "blanks are not allowed", id="line-break"),
        pytest.param("ws://example.org/\0", "blanks are not allowed", id="nul"),
        pytest.param("ws://example.org/\t", "blanks are not allowed", id="tab"),
        pytest.param("ws://example.org/\x85", "blanks are not allowed", id="nel"),
        pytest.param("ws://example.org/\u2028", "blanks are not allowed", id="line-separator"),
        pytest.param("ws://example.org/\ud800", "blanks are not allowed", id="surrogate"),
        pytest.param("ws://a..b/", "not a host name", id="empty-label"),
        pytest.param(f"ws://{'a' * 64}.org/", "not a host name", id="long-label"),
        pytest.param(f"ws://ü{'a' * 64}.org/", "not a host name", id="long-idn-label"),
        pytest.param("ws://a.org\\.b.org/", "not a host name", id="backslash-in-host"),
        pytest.param("ws://a%2eorg/", "not a host name", id="escape-in-host"),
        pytest.param("ws://a\uff05org/", "not a host name", id="host-that-nfkc-makes-an-escape"),
        pytest.param("ws://[::1]a.org/", "not a", id="name-behind-brackets"),  # as Python says
        pytest.param("ws://a\u2100b.org/", "not a URL", id="host-that-nfkc-makes-a-path"),
        pytest.param("ws://example.org/a/../b", ".. is not allowed in a path", id="dots"),
        pytest.param("ws://example.org/a/%2E%2e/b", ".. is not allowed", id="escaped-dots"),
        pytest.param("ws://example.org/a%2f..%5Cb", ".. is not allowed", id="escaped-slashes"),
        pytest.param("ws://example.org/ü/%2e%2E/b", ".. is not allowed", id="dots-beside-a-letter"),
        pytest.param("ws://example.org/a\\..\\b", ".. is not allowed", id="backslashes"),
        pytest.param("ws://example.org/a/..", ".. is not allowed", id="dots-at-the-end"),
    ],
)
def test_check_url_bad_url_is_refused_naming_the_rule(url: str, rule: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_url(url, ANY)
    assert str(caught.value).startswith(f"WsServer: {rule}")


@pytest.mark.parametrize(
    "url",
    [
        *("ws:user:hunter2@host", "ws:/user:hunter2@host", "ws:///user:hunter2@host"),
        *("ws://user:hunt/er2@host", "ws://user:hunt?er2@host", "ws://user:hunt#er2@host"),
        *("ws://user:hunt//er2@host/path", "user:hunter2@host", "ws://user:hunter2\\@host"),
        *("wss:user:hunter2@host:443/?a=b", "ws:ws://user:hunter2@host", "ws//user:hunter2@host"),
        *("ws://user:[hunter2/@host", "ws://u:1\u0662/hunter2@host"),
    ],
)
def test_check_url_finds_credentials_wherever_they_stand(url: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_url(url, ANY)
    assert str(caught.value) == "WsServer: credentials are not allowed in a URL"


@pytest.mark.parametrize(
    "url", ["ws://h:80/live/a@b", "ws://[::1]:8080/@", "ws://h?to=a@b", "ws://h:/@"]
)
def test_check_url_at_behind_a_host_is_allowed(url: str) -> None:
    check_url(url, ANY)


@pytest.mark.parametrize(
    "url",
    [
        *("ws://h:hunter2/", "ws://h:hunter2", "ws://[hunter2]/", "ws://hunter2\u2100/"),
        "ws://user:hunter2@example.org/",
        "ws://user:hunter2@example.org:port/",
        "ws://user:hunter2\u2100@example.org/",
        "http://user:hunter2@example.org/",
        "//user:hunter2\u2100@example.org/",
        "ws://user:hunter2@[::1/",
        "ws://example.org:1\u2100/?token=hunter2",
        "ws://example.org:x/?token=hunter2",
        "ws://example.org/..?token=hunter2",
        "ws://[::g]/?token=hunter2",
        "ws://a..b/?token=hunter2",
    ],
)
def test_check_url_refuses_without_telling_what_may_be_secret(url: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_url(url, ANY)
    assert "hunter2" not in str(caught.value)


PRIVATE = "which [security] allow_private forbids"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.1:8080", "10.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),  # digits of full width
        ("127\u30020.0.1", "127.0.0.1"),  # an ideographic full stop
        ("[::1]", "::1"),
        ("[::ffff:169.254.169.254]", "169.254.169.254"),
        ("[fe80::1]", "fe80::1"),
        ("[2002:a00:1::]", "2002:a00:1::"),
    ],
)
def test_check_url_private_address_is_refused_where_the_rule_forbids_it(
    host: str, address: str
) -> None:
    check_url(f"ws://{host}/", ANY)
    with pytest.raises(RequestRefused) as caught:
        check_url(f"ws://{host}/", ANY, allow_private=False)
    assert str(caught.value) == f"WsServer: {address} is a private address, {PRIVATE}"


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "example.org", "localhost"])
def test_check_url_public_address_or_name_is_allowed_without_private_ones(host: str) -> None:
    """What a name points to is checked when it is connected to."""
    check_url(f"ws://{host}/", ANY, allow_private=False)


def test_check_url_of_longest_length_is_allowed() -> None:
    check_url("ws://example.org/".ljust(MAX_URL_BYTES, "a"), ANY)


@pytest.mark.parametrize("filler", ["a", "é"])
def test_check_url_longer_is_refused(filler: str) -> None:
    url = "ws://example.org/" + filler * (MAX_URL_BYTES // len(filler.encode()))
    with pytest.raises(RequestRefused, match="longer than 1000 bytes"):
        check_url(url, ANY)


# --- The patterns of allow_urls ------------------------------------------------------------------


def allowed(url: str, *patterns: str) -> bool:
    try:
        check_url(url, patterns)
    except RequestRefused as exc:
        refusal = str(exc)
        assert "allow_urls" in refusal
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("ws://*", "ws://example.org:8080/a"),
        ("*://example.org", "wss://example.org"),
        ("WSS://Example.ORG", "wss://example.org"),
        ("wss://example.org", "wss://EXAMPLE.org:8443/a?b"),
        ("wss://example.org", "wss://example.org:443"),
        ("wss://example.org:443", "wss://example.org"),
        ("ws://example.org:80", "ws://example.org/a"),
        ("ws://example.org:8080", "ws://example.org:08080/a"),
        ("ws://example.org:*", "ws://example.org:1/a"),
        ("ws://*:8080", "ws://example.org:8080"),
        ("wss://*.example.org", "wss://a.example.org"),
        ("wss://*.example.org", "wss://a.b.example.org/c"),
        ("ws://127.0.0.1:8080/", "ws://127.0.0.1:8080"),
        ("ws://127.0.0.1:8080/", "ws://127.0.0.1:8080/a/b"),
        ("ws://h/*", "ws://h"),
        ("ws://h/a", "ws://h/a"),
        ("ws://h/a", "ws://h/a?token=1"),
        ("ws://h/a/*", "ws://h/a/b/c"),
        ("ws://h/*/c", "ws://h/a/b/c"),
        ("ws://h/a[b]", "ws://h/a[b]"),
        ("ws://[::1]", "ws://[::1]:8080/a"),
        ("ws://[::1]:8080", "ws://[::1]:8080/a"),
        ("ws://[2001:DB8::1]/a", "ws://[2001:db8::1]/a"),
        ("ws://[::1]:*/a", "ws://[::1]:8080/a"),
        ("ws://bücher.example", "ws://BÜCHER.example/"),
        ("ws://bücher.example", "ws://xn--bcher-kva.example/"),
        ("ws://xn--bcher-kva.example", "ws://bücher.example/"),
        ("ws://*.xn--bcher-kva.example:80", "ws://a.bücher.example/"),
        ("ws://*bücher.example", "ws://kochbücher.example/"),
        ("ws://h/jürgen/*", "ws://h/j%C3%BCrgen/a%20b"),
        ("ws://h/j%C3%BCrgen/*", "ws://h/jürgen/a%20b"),
        ("ws://h/jürgen%20/*", "ws://h/jürgen%20/100%"),
        ("ws://h/100%/*", "ws://h/100%25/a"),
    ],
)
def test_check_url_within_pattern_is_allowed(pattern: str, url: str) -> None:
    assert allowed(url, pattern)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("wss://*", "ws://example.org"),
        ("wss://example.org", "ws://example.org:443"),
        ("wss://example.org", "wss://www.example.org"),
        ("wss://example.org", "wss://example.org.evil.net"),
        ("wss://example.org", "wss://evilexample.org"),
        ("wss://example.org", "wss://evil.net/example.org"),
        ("wss://example.org", "wss://evil.net?example.org"),
        ("wss://example.org", "wss://example.org."),
        ("wss://*.example.org", "wss://example.org"),
        ("wss://*.example.org", "wss://evilexample.org"),
        ("wss://*.example.org", "wss://a.example.org.evil.net"),
        ("wss://*.example.org", "wss://evil.net/.example.org"),
        ("wss://*.example.org", "wss://evil.net?.example.org"),
        ("wss://*.example.org", "wss://evil.net:443/a.example.org"),
        ("wss://example.org:443", "wss://example.org:8443"),
        ("ws://example.org:80", "ws://example.org:8080"),
        ("ws://127.0.0.1:8080/", "ws://127.0.0.1/"),
        ("ws://127.0.0.1:8080/", "ws://127.0.0.1:18080/"),
        ("ws://h/a", "ws://h"),
        ("ws://h/a", "ws://h/a/"),
        ("ws://h/a", "ws://h/ab"),
        ("ws://h/a", "ws://h/A"),
        ("ws://h/a/*", "ws://h/a"),
        ("ws://h/a/*", "ws://h/b?x=/a/c"),
        ("ws://h/a?", "ws://h/ab"),
        ("ws://h/[ab]", "ws://h/a"),
        ("ws://h/ü%20", "ws://h/ü%2520"),
        ("ws://h/a%2Fb", "ws://h/a/b"),
        ("ws://h/a/*", "ws://h/a%2Fb"),
        ("ws://*ücher.example", "ws://xn--bcher.example"),
        ("ws://?.example.org", "ws://a.example.org"),
        ("ws://[ab].example.org", "ws://a.example.org"),
        ("ws://[::1]:8080", "ws://[::1]/"),
        ("ws://[::1]", "ws://[::2]/"),
        ("example.org", "ws://example.org"),
    ],
)
def test_check_url_outside_pattern_is_refused(pattern: str, url: str) -> None:
    assert not allowed(url, pattern)


def test_check_url_within_any_of_several_patterns_is_allowed() -> None:
    assert allowed("ws://b/", "ws://a", "ws://b")


def test_check_url_without_patterns_is_refused() -> None:
    assert not allowed("ws://a/")


@given(
    st.one_of(
        st.text(),
        st.text().map("ws://".__add__),
        st.text(".:/@#?[]%\\é 0a").map("wss://".__add__),
    )
)
@example("ws://\u2100")
@example("ws://[")
def test_check_url_any_text_is_allowed_or_refused(url: str) -> None:
    try:
        check_url(url, ANY)
    except RequestRefused as exc:
        refusal = str(exc)
        assert refusal.startswith("WsServer: ")
    else:
        assert url.isprintable()


@pytest.mark.parametrize(
    ("patterns", "at_will"),
    [
        (SecurityConfig().allow_urls, False),
        (("wss://*.example.org", "ws://127.0.0.1:8080/"), False),
        (("*://*",), True),
        (("wss://a.example", "ws://*:8080/live"), True),
        (("ws://*/",), True),
        (("wss://speech.example.org*",), True),
        (("wss://*example.org",), True),
        (("wss://*.*",), True),
        (("wss://*.org",), True),
        (("ws://10.*",), True),
    ],
)
def test_patterns_without_a_host_let_it_be_chosen_at_will(
    patterns: tuple[str, ...], at_will: bool
) -> None:
    assert hosts_at_will(patterns) is at_will


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/", "wss://localhost/a", "ws://[::1]:8080/"])
def test_this_machine_is_allowed_by_default(url: str) -> None:
    check_url(url, SecurityConfig().allow_urls)


@pytest.mark.parametrize(
    "url", ["ws://192.0.2.1/", "wss://example.org/", "ws://localhost.example/"]
)
def test_other_machines_have_to_be_named(url: str) -> None:
    with pytest.raises(RequestRefused, match="allow_urls: name its server there"):
        check_url(url, SecurityConfig().allow_urls)
