"""Numbers that are hidden, and what a number is found by."""

from __future__ import annotations

import pytest

from audiofork.forks.masking import (
    Blanking,
    Masking,
    digits_of,
    endpoint_of,
    is_number,
    key_of,
    masked,
    masked_channel,
    masked_name,
)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("+4930123456", "+*******456"),
        ("4930123456", "*******456"),
        ("030/12 34-56", "***/** *4-56"),
        ("123456", "****56"),
        ("100", "*00"),
        ("12", "*2"),
        ("7", "*"),
        ("", ""),
        ("anonymous", "anonymous"),
    ],
)
def test_all_digits_but_the_last_are_masked(number: str, shown: str) -> None:
    assert masked(number) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Zoë", "Zoë"),
        ("+49 (30) 123-456", "+** (**) ***-456"),
        ("Desk 12", "Desk 12"),
        ("Office 4711 and 0815", "Office **11 and **15"),
    ],
)
def test_number_in_a_name_is_masked(name: str, shown: str) -> None:
    assert masked_name(name) == shown


@pytest.mark.parametrize(
    ("channel", "shown"),
    [
        ("PJSIP/100-0000002a", "PJSIP/*00-0000002a"),
        ("SIP/4930123456-0000002a", "SIP/*******456-0000002a"),
        ("Local/4930123456@out-0000002a;2", "Local/*******456@out-0000002a;2"),
        ("PJSIP/trunk-12345678", "PJSIP/trunk-12345678"),
        ("DAHDI/1-1", "DAHDI/1-1"),
    ],
)
def test_number_in_the_name_of_a_channel_is_masked_and_not_what_asterisk_adds(
    channel: str, shown: str
) -> None:
    assert masked_channel(channel) == shown


def test_number_of_the_caller_is_masked_in_texts_and_no_other() -> None:
    masking = Masking("+49 30 123456")
    assert masking.of("ws://h/4930123456/8080 in 20000 ms") == "ws://h/*******456/8080 in 20000 ms"


@pytest.mark.parametrize("number", ["", "100", "anonymous"])
def test_short_number_is_left_in_texts_for_it_may_be_anything(number: str) -> None:
    assert Masking(number).of("100 ms at port 100") == "100 ms at port 100"


@pytest.mark.parametrize("number", ["+49 30 123-456", "004930123456", "(49)30123456"])
def test_notations_of_a_number_have_one_key(number: str) -> None:
    assert key_of(number) == digits_of(number) == "4930123456"


def test_key_of_what_is_masked_or_no_number_is_itself() -> None:
    assert (key_of("+****456"), key_of("anonymous"), key_of("")) == ("+****456", "anonymous", "")
    assert (digits_of("00"), digits_of("000")) == ("00", "0")


def test_endpoint_is_the_channel_without_what_asterisk_adds() -> None:
    assert endpoint_of("PJSIP/trunk-a-0000002a") == "PJSIP/trunk-a"
    assert endpoint_of("Local/1@x-0000002a;1") == "Local/1@x"
    assert endpoint_of("PJSIP/100") == "PJSIP/100"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        *(
            (one, True)
            for one in ("100", "+4930123456", "(+49) 30", "+49 (0)30/12.34-5", "(030) 1")
        ),
        *(
            (one, False)
            for one in ("", "+", " ", "²", "٤٩", "１", "49+30", "1*", "++1", "1\0", "1 a")
        ),
    ],
)
def test_number_has_digits_and_perhaps_a_plus_at_its_front(text: str, is_one: bool) -> None:
    assert is_number(text) is is_one


def test_digits_of_other_scripts_are_the_same_number() -> None:
    assert digits_of("+٤٩٣٠²") == "4930"


def test_number_is_blanked_where_it_stands_alone() -> None:
    blanking = Blanking("12345")
    text = "12345, +12345; 0012345_a 112345 123456 a12345"
    assert blanking.of(text) == "***, +***; ***_a 112345 123456 a12345"
    assert blanking.of_channel("SIP/12345-0012345a") == "SIP/***-0012345a"
    assert Blanking("12345678").of_channel("SIP/x-12345678") == "SIP/x-12345678"
