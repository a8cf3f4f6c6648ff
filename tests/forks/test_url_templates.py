from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.errors import RequestRefused
from audiofork.forks.call_info import FIELDS
from audiofork.forks.url_templates import MAX_VALUE_BYTES, check_template, filled
from audiofork.forks.urls import MAX_URL_BYTES, check_url
from audiofork.uri import uri_of

URL = "ws://h/a/{exten}/{caller_name}/b?n={caller_name}&u={uniqueid}"


def test_fields_are_filled_in_percent_encoded() -> None:
    values = {"exten": "100", "caller_name": 'Zoë & "Co"', "uniqueid": "1.2"}
    assert filled(URL, values) == (
        "ws://h/a/100/Zo%C3%AB%20%26%20%22Co%22/b?n=Zo%C3%AB%20%26%20%22Co%22&u=1.2"
    )


@pytest.mark.parametrize("url", ["ws://h/", "ws://h/{}", "ws://h/{-}?{1}", 'ws://h/?{"a":1}'])
def test_url_without_a_field_is_left_as_it_is(url: str) -> None:
    assert filled(url, {"a": "x"}) == check_template(url) == url


@pytest.mark.parametrize("url", ["ws://h/?a={calling_number}", "ws://h/{x}", "ws://h/{Exten}"])
def test_field_that_is_not_known_is_refused_with_those_there_are(url: str) -> None:
    with pytest.raises(RequestRefused, match=r"^WsServer: no field \{.*uniqueid.*%7B$"):
        check_template(url)


@pytest.mark.parametrize(
    "url", ["ws://{exten}/", "ws://h:{exten}/", "ws://{exten}.example.org?a", "{exten}://h/"]
)
def test_field_in_the_host_is_refused(url: str) -> None:
    with pytest.raises(RequestRefused, match=r"^WsServer: (a field may stand in the path|the)"):
        check_url(check_template(url), ("*://*",))


def test_url_that_may_get_too_long_is_refused_at_once() -> None:
    url = "ws://h/?" + "&".join("a={caller_name}" for _ in range(8))
    check_template(url)
    with pytest.raises(RequestRefused, match="^WsServer: with 120 bytes for each field"):
        check_template(url + "&a={caller_name}")


@given(st.text(), st.text())
@example("..", "a/../b")
@example(".", ".")
@example("..\\..", "x" * 500)
@example("ü" * 500, "\ud800\r\n")
def test_any_value_stays_in_its_place_and_lets_no_url_be_refused(one: str, other: str) -> None:
    url = filled(URL, {"exten": one, "caller_name": other, "uniqueid": one})
    check_url(url, ("ws://h/a/*/b",))
    assert len(url.encode()) <= MAX_URL_BYTES
    parts = urlsplit(uri_of(url))
    assert parts.path.startswith("/a/")
    assert parts.path.endswith("/b")
    assert parts.path.count("/") == 4
    known = parse_qs(parts.query, keep_blank_values=True)
    assert list(known) == ["n", "u"]
    assert other.encode(errors="replace").startswith(known["n"][0].encode())


def test_long_value_is_cut_between_two_characters() -> None:
    url = filled("ws://h/?{exten}", {"exten": "x" + "ü" * 500})
    value = url.partition("?")[2]
    assert MAX_VALUE_BYTES - 6 < len(value) <= MAX_VALUE_BYTES
    assert unquote(value, errors="strict") == "x" + "ü" * 19


def test_every_field_is_known_by_name() -> None:
    check_template("ws://h/?" + "&".join(f"{{{name}}}" for name in FIELDS[:7]))
    check_template("ws://h/?" + "&".join(f"{{{name}}}" for name in FIELDS[7:14]))
