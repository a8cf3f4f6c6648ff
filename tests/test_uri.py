"""URLs of users, as they are requested."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.uri import escaped, uri_of


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        pytest.param(
            "ws://h/live?name=Jürgen&to=a%20b%2Fc",
            "ws://h/live?name=J%C3%BCrgen&to=a%20b%2Fc",
            id="a-letter-beside-an-escape",
        ),
        pytest.param("ws://h/Jürgen/%20", "ws://h/J%C3%BCrgen/%20", id="in-the-path"),
        pytest.param("ws://h/x?ü?ü/ü", "ws://h/x?%C3%BC?%C3%BC/%C3%BC", id="second-?"),
        pytest.param("ws://h?ü", "ws://h?%C3%BC", id="query-without-a-path"),
        pytest.param("ws://h/日本?q=😀", "ws://h/%E6%97%A5%E6%9C%AC?q=%F0%9F%98%80", id="far"),
        pytest.param("ws://h/u\u0308", "ws://h/u%CC%88", id="composed-letters-stay-so"),
        pytest.param("ws://h/100%", "ws://h/100%25", id="%-at-the-end"),
        pytest.param("ws://h/%zz%4g%4?%", "ws://h/%25zz%254g%254?%25", id="%-before-no-hex"),
        pytest.param("ws://h/%%20%c3%BC", "ws://h/%25%20%c3%BC", id="%-before-an-escape"),
        pytest.param("ws://h/%2520", "ws://h/%2520", id="twice-escaped-stays-so"),
        pytest.param("ws://h/%\uff14\uff11", "ws://h/%25%EF%BC%94%EF%BC%91", id="%-full-width"),
        pytest.param("ws://h/[a]?b[]=1", "ws://h/%5Ba%5D?b%5B%5D=1", id="brackets"),
        pytest.param("ws://h/\"'<>", "ws://h/%22'%3C%3E", id="quotes"),
        pytest.param("ws://h/a\\b?c\\d", "ws://h/a%5Cb?c%5Cd", id="backslashes"),
        pytest.param("ws://h/{}|^`", "ws://h/%7B%7D%7C%5E%60", id="other-forbidden-ones"),
        pytest.param("ws://bücher.example:80/ü", "ws://xn--bcher-kva.example:80/%C3%BC", id="IDN"),
        pytest.param("ws://BÜCHER.example", "ws://xn--bcher-kva.example", id="capital-IDN"),
        pytest.param("ws://bücher.example", "ws://xn--bcher-kva.example", id="IDN-alone"),
        pytest.param("ws://\uff11\uff12\uff17\u30020.0.1/", "ws://127.0.0.1/", id="wide-digits"),
        pytest.param("ws://[::1]:80/ü", "ws://[::1]:80/%C3%BC", id="IPv6"),
    ],
)
def test_uri_of_escapes_what_must_be_and_leaves_the_rest(url: str, uri: str) -> None:
    assert uri_of(url) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "ws://example.org",
        "WSS://Example.ORG:8443/A/%2f;b=1,2?a=%2B+b&c=/?:@!$'()*~-._",
        "ws://h/?",
        "ws://h:/",
        "ws://pbx_1:8080//a//b",
        "ws://[2001:db8::1]:80/",
        "ws://[fe80::1%eth0]/",
        "ws://h/a#b",
    ],
)
def test_uri_of_a_uri_is_unchanged(uri: str) -> None:
    assert uri_of(uri) == uri


@pytest.mark.parametrize(
    "authority",
    [
        *("", "a..b", "a" * 64, "ü" * 64, "ex\\ample", "ex%61mple", 'ex"ample', "a b", "a^b"),
        *("u@h", "[::1", "::1", "[::1]x", "[::1]é", "ü[::1]", "[v1.x]", "h:8\u0660", "h:x"),
        *("ex\uff3cample", "ex\uff05ample", "a\uff3bb"),
    ],
)
@pytest.mark.parametrize("rest", ["", "/?token=hunter2", "?token=hunter2"])
def test_uri_of_what_names_no_host_raises_without_telling_the_rest(
    authority: str, rest: str
) -> None:
    with pytest.raises(UnicodeError) as caught:
        uri_of(f"ws://{authority}{rest}")
    assert "hunter2" not in str(caught.value)


_URI_TARGET = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*", re.ASCII)
_HOSTS = st.sampled_from(["h", "a.example:80", "bücher.example", "[::1]:8080", "127.0.0.1"])
_RESTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from([*"%aF0é/?&[]\"\\ '~", "%20", "%c3%bc"])).map("".join),
)


@given(_HOSTS, _RESTS)
@example("h", "%%%")
@example("h", "%\u0664\u0661")
def test_uri_of_anything_is_printable_ascii_and_a_uri_and_means_the_same(
    host: str, rest: str
) -> None:
    uri = uri_of(f"ws://{host}/{rest}")
    assert uri.isascii()
    assert uri.isprintable()
    assert " " not in uri
    assert uri_of(uri) == uri
    target = uri.partition("://")[2].partition("/")[2]
    assert _URI_TARGET.fullmatch(target)
    assert unquote_to_bytes(target) == unquote_to_bytes(rest)


@pytest.mark.slow
@given(st.from_regex(_URI_TARGET, fullmatch=True))
def test_escaped_of_what_is_escaped_properly_is_unchanged(target: str) -> None:
    assert escaped(target) == target


@given(st.text(max_size=40))
def test_uri_of_any_host_is_one_that_the_library_reads_alike(host: str) -> None:
    try:
        uri = uri_of(f"ws://{host}/")
    except UnicodeError:
        return
    assert uri.isascii()
    assert uri.isprintable()
    assert uri_of(uri) == uri
    if not set(host) & set("/?#"):
        parts = urlsplit(uri)
        assert f"ws://{parts.netloc}/" == uri
