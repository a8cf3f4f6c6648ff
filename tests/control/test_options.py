import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.control.options import (
    MAX_OPTIONS_BYTES,
    Options,
    parse_options,
    split_options,
)
from audiofork.errors import RequestRefused
from audiofork.model import Direction

# --- The grammar ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param("S", [("S", None)], id="letter"),
        pytest.param("Sb", [("S", None), ("b", None)], id="two-letters"),
        pytest.param("D(in)", [("D", "in")], id="argument"),
        pytest.param("D(in)S", [("D", "in"), ("S", None)], id="letter-after-argument"),
        pytest.param("D()", [("D", "")], id="empty-argument"),
        pytest.param("D(in)D(out)", [("D", "in"), ("D", "out")], id="letter-twice"),
        pytest.param(" D(in) S\t", [("D", "in"), ("S", None)], id="blanks-between"),
        pytest.param("D( in )", [("D", " in ")], id="blanks-in-argument-stay"),
        pytest.param("A(b(c)d)e", [("A", "b(c)d"), ("e", None)], id="nested"),
        pytest.param("A(())", [("A", "()")], id="nested-empty"),
        pytest.param('A("b)c")', [("A", "b)c")], id="parenthesis-in-quotes"),
        pytest.param('A("b"c"d")', [("A", "bcd")], id="quotes-are-removed"),
        pytest.param('A(b"c)', [("A", 'b"c')], id="quote-not-first-is-itself"),
        pytest.param('A("b\\"c")', [("A", 'b"c')], id="backslash-quote-in-quotes"),
        pytest.param('A("b\\nc")', [("A", "b\\nc")], id="backslash-in-quotes-stays"),
        pytest.param('A("b\\\\")', [("A", "b\\\\")], id="two-backslashes-in-quotes-stay"),
        pytest.param("A(b\\)c)", [("A", "b)c")], id="backslash-parenthesis"),
        pytest.param("A(b\\(c)", [("A", "b(c")], id="backslash-opening-parenthesis"),
        pytest.param("A(b\\\\)", [("A", "b\\")], id="backslash-backslash"),
        pytest.param("A(\\n)", [("A", "n")], id="backslash-letter"),
        pytest.param('A(\\"b)', [("A", '"b')], id="backslash-before-first-quote"),
        pytest.param("((a)", [("(", "a")], id="parenthesis-as-letter"),
        pytest.param(")", [(")", None)], id="closing-parenthesis-as-letter"),
        pytest.param("D\\(in)", [("D", None), ("\\", "in")], id="backslash-as-letter"),
    ],
)
def test_split_options_cuts_as_asterisk_does(
    text: str, expected: list[tuple[str, str | None]]
) -> None:
    assert split_options(text) == expected


@pytest.mark.parametrize(
    "text", ["D(", "D(in", "SD((in)", 'D("in)', "D(in\\)", "D(in\\", 'D("in\\"', "D(in)A("]
)
def test_split_options_without_closing_parenthesis_is_refused_by_letter(text: str) -> None:
    letter = "A" if "A" in text else "D"
    with pytest.raises(RequestRefused, match=f"missing closing parenthesis of option '{letter}'"):
        split_options(text)


def test_split_options_argument_of_a_blank_is_refused() -> None:
    with pytest.raises(RequestRefused, match="an argument without a letter"):
        split_options("D (in)")


def test_split_options_of_longest_length_is_taken() -> None:
    assert len(split_options("S" * MAX_OPTIONS_BYTES)) == MAX_OPTIONS_BYTES


@pytest.mark.parametrize(
    "text", ["S" * (MAX_OPTIONS_BYTES + 1), "é" * (MAX_OPTIONS_BYTES // 2 + 1)], ids=["ascii", "é"]
)
def test_split_options_longer_is_refused(text: str) -> None:
    with pytest.raises(RequestRefused, match="longer than 4096 bytes"):
        split_options(text)


# --- The same, against a model of the C function -------------------------------------------------


def asterisk_parse_options(text: str) -> list[tuple[str, str | None]]:
    """Do what ast_app_parse_options does: it works in place, on a buffer that shrinks.

    Raises:
        ValueError: A closing parenthesis is missing.

    Source: main/app.c, parse_options().
    """
    s = list(text)
    at = 0
    found: list[tuple[str, str | None]] = []
    while at < len(s):
        letter = s[at]
        at += 1
        if at == len(s) or s[at] != "(":
            found.append((letter, None))
            continue
        at += 1
        start, paren, quote = at, 1, False
        parse_quotes = s[at : at + 1] == ['"']
        while at < len(s):
            if s[at] == "(" and not quote:
                paren += 1
            elif s[at] == ")" and not quote:
                paren -= 1
            elif s[at] == '"' and parse_quotes:
                quote = not quote
                del s[at]
                at -= 1
            elif s[at] == "\\":
                if not quote or s[at + 1 : at + 2] == ['"']:
                    del s[at]
                else:
                    at += 1
            if paren == 0:
                break
            at += 1
        if at >= len(s):
            raise ValueError(letter)
        found.append((letter, "".join(s[start:at])))
        at += 1
    return found


option_strings = st.one_of(
    st.text('ab()"\\ ', max_size=24),
    st.lists(st.sampled_from(["D", "(", ")", '("', '")', "\\", '\\"', "\\)", "in", " ", '"'])).map(
        "".join
    ),
)


@given(option_strings)
@example('a("b\\\\")')
@example('a("b\\\\\\")")')
@example('a("")"")')
def test_split_options_agrees_with_asterisk(text: str) -> None:
    try:
        expected = asterisk_parse_options(text)
    except ValueError:
        with pytest.raises(RequestRefused, match=r"closing parenthesis|without a letter"):
            split_options(text)
        return
    # Blanks are letters to Asterisk, which ignores those it does not know.
    if any(letter.isspace() and argument is not None for letter, argument in expected):
        with pytest.raises(RequestRefused, match="without a letter"):
            split_options(text)
    else:
        known = [pair for pair in expected if not pair[0].isspace()]
        assert split_options(text) == known


# --- The letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", list(Direction))
def test_parse_options_direction(direction: Direction) -> None:
    assert parse_options(f"D({direction})") == Options(direction)


def test_parse_options_without_direction_is_both() -> None:
    assert parse_options("") == Options(Direction.BOTH)


def test_parse_options_direction_may_be_upper_case_and_padded() -> None:
    assert parse_options("D( IN )") == Options(Direction.IN)


def test_parse_options_letter_twice_last_stands() -> None:
    assert parse_options("D(in)D(out)") == Options(Direction.OUT)


@pytest.mark.parametrize("text", ["x", "D(in)x", "x(1)D(in)", "d(in)"])
def test_parse_options_unknown_letter_is_named(text: str) -> None:
    letter = "d" if "d" in text else "x"
    with pytest.raises(RequestRefused, match=f"unknown option '{letter}'"):
        parse_options(text)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        pytest.param("D", "nothing", id="no-argument"),
        pytest.param("D()", "nothing", id="empty-argument"),
        pytest.param("D(read)", "'read'", id="other-word"),
        pytest.param("D(in,out)", "'in,out'", id="two-words"),
        pytest.param("D(nothing)", "'nothing'", id="the-word-nothing"),
    ],
)
def test_parse_options_bad_direction_is_refused(text: str, given: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert str(caught.value) == f"Options: D takes in, out, both or stereo, not {given}"


def test_parse_options_first_direction_bad_is_refused_though_the_last_is_good() -> None:
    with pytest.raises(RequestRefused, match="D takes"):
        parse_options("D(x)D(in)")


@given(st.one_of(st.text(), option_strings))
@example("\ud800")
def test_parse_options_any_text_gives_options_or_a_refusal(text: str) -> None:
    try:
        assert isinstance(parse_options(text), Options)
    except RequestRefused as exc:
        assert str(exc).startswith("Options: ")
