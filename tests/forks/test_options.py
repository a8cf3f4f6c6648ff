import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.asterisk.channels import Target
from audiofork.asterisk.taps.ways import Audience
from audiofork.config import SAMPLE_RATES
from audiofork.errors import RequestRefused
from audiofork.forks.options import (
    MAX_OPTIONS_BYTES,
    Options,
    parse_options,
    split_options,
)
from audiofork.forks.requests import StartFork
from audiofork.link.messages import Beeps, Direction, Handshake, Tls

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


@pytest.mark.parametrize("text", ["y", "D(in)y", "y(1)D(in)", "d(in)"])
def test_parse_options_unknown_letter_is_named(text: str) -> None:
    letter = "d" if "d" in text else "y"
    with pytest.raises(RequestRefused, match=f"unknown option '{letter}'"):
        parse_options(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("d(in)", "unknown option 'd'; did you mean D?"),
        ("D(in)t(on)", "unknown option 't'; did you mean T?"),
        ("X", "unknown option 'X'; did you mean x?"),
        ("q", "unknown option 'q'; there are D T R r F L b B p P k v V W H A s M x c i S a"),
        ('"D(in)"', "unknown option '\"'; the options stand there without quotes"),
        ("\u201cD(in)\u201d", "the options stand there without quotes"),
    ],
)
def test_parse_options_unknown_letter_gets_the_one_that_is_meant_or_all_there_are(
    text: str, hint: str
) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        pytest.param("D", "nothing", id="no-argument"),
        pytest.param("D()", "nothing", id="empty-argument"),
        pytest.param("D(read)", "'read'; read is in", id="word-of-ami"),
        pytest.param("D(sterio)", "'sterio'; did you mean stereo?", id="near-miss"),
        pytest.param("D(7)", "'7'", id="other-word"),
        pytest.param("D(nothing)", "'nothing'", id="the-word-nothing"),
    ],
)
def test_parse_options_bad_direction_is_refused(text: str, given: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert str(caught.value) == f"Options: D takes in, out, both or stereo, not {given}"


@pytest.mark.parametrize("audience", Audience)
def test_parse_options_audience_says_who_hears_the_server(audience: Audience) -> None:
    assert parse_options(f"D(in)k({audience.upper()})").audience is audience
    assert parse_options("D(in)").audience is None


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("k", "nothing"),
        ("k()", "nothing"),
        ("k(in)", "'in'"),
        ("k(pear)", "'pear'; did you mean peer?"),
        ("k(party,peer)", "'party,peer'"),
    ],
)
def test_parse_options_bad_audience_is_refused(text: str, given: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert str(caught.value).startswith(f"Options: k takes party, peer or both, not {given}")


def test_parse_options_first_direction_bad_is_refused_though_the_last_is_good() -> None:
    with pytest.raises(RequestRefused, match="D takes"):
        parse_options("D(x)D(in)")


SWITCHES = {
    "S": Options(keep_time=True),
    "b": Options(bridged_only=True),
    "p": Options(beeps=Beeps(at_start=True)),
    "P": Options(beeps=Beeps(at_end=True)),
    "a": Options(ignored="a"),
}


@pytest.mark.parametrize("letter", list(SWITCHES))
@pytest.mark.parametrize("form", ["{}", "{}()", "{}(3)", "{0}{0}"])
def test_parse_options_switch_needs_no_argument(letter: str, form: str) -> None:
    assert parse_options(form.format(letter)) == SWITCHES[letter]


GAINS = {"v": ("gain_in",), "V": ("gain_out",), "W": ("gain_in", "gain_out")}


@pytest.mark.parametrize("letter", list(GAINS))
@pytest.mark.parametrize(
    ("argument", "gain"), [("-4", -4), ("-1", -1), ("0", 0), (" 3 ", 3), ("4", 4)]
)
def test_parse_options_volume(letter: str, argument: str, gain: int) -> None:
    expected = Options(**dict.fromkeys(GAINS[letter], gain))  # type: ignore[arg-type]
    assert parse_options(f"{letter}({argument})") == expected


def test_parse_options_volume_of_both_and_of_one_the_last_stands() -> None:
    assert parse_options("W(2)v(-1)") == Options(gain_in=-1, gain_out=2)
    assert parse_options("v(-1)W(2)") == Options(gain_in=2, gain_out=2)


NOT_A_NUMBER = ["", " ", "x", "1.5", "--1", "- 1", "+1", "1 2", "0x1", "1e1", "1_0", "٣", "9" * 40]


@pytest.mark.parametrize(
    ("letter", "argument"),
    [
        (letter, argument)
        for letter in "vVWRrB"
        for argument in NOT_A_NUMBER
        if argument or letter != "B"  # which has a default
    ],
)
def test_parse_options_number_that_is_none_is_refused(letter: str, argument: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(f"{letter}({argument})")
    text = str(caught.value)
    assert text.startswith(f"Options: {letter} takes a whole number from ")
    assert text.endswith(f", not {argument!r}" if argument else ", not nothing")


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("v(5)", "-4 to 4"),
        ("v(-5)", "-4 to 4"),
        ("V(5)", "-4 to 4"),
        ("V(-5)", "-4 to 4"),
        ("W(5)", "-4 to 4"),
        ("W(-5)", "-4 to 4"),
        ("R(0)", "1 to 600"),
        ("R(601)", "1 to 600"),
        ("R(-1)", "1 to 600"),
        ("r(-1)", "0 to 1000000"),
        ("r(1000001)", "0 to 1000000"),
        ("B(0)", "1 to 86400"),
        ("B(-1)", "1 to 86400"),
        ("B(86401)", "1 to 86400"),
    ],
)
def test_parse_options_number_out_of_range_is_refused_with_the_limits(
    text: str, limits: str
) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert str(caught.value) == (
        f"Options: {text[0]} takes a whole number from {limits}, not {text[2:-1]!r}"
    )


@pytest.mark.parametrize("text", ["F(0)", "F(30)", "F(1020)", "F(-20)", "F(2_0)", "F(20 20)"])
def test_parse_options_frame_time_that_is_no_multiple_of_20_is_refused(text: str) -> None:
    with pytest.raises(RequestRefused, match="F takes a multiple of 20 from 20 to 1000"):
        parse_options(text)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("L(8000)", (8000,)),
        ("L(16000)", (16000,)),
        ("L(44100)", (44100,)),
        ("L(192000)", (192000,)),
        ("L(0)", (0,)),
        ("L(16000,8000)", (16000, 8000)),
        ("L( 0 , 8000 )", (0, 8000)),
        ("L(8000,16000)", (8000, 16000)),
    ],
)
def test_parse_options_sample_rates_in_the_order_of_the_wish(
    text: str, rates: tuple[int, ...]
) -> None:
    assert parse_options(text) == Options(sample_rates=rates)


def test_parse_options_without_a_sample_rate_leave_it_to_the_configuration() -> None:
    assert parse_options("").sample_rates == ()


@pytest.mark.parametrize(
    "argument",
    [
        *("x", "11025", "8000,16000,48000", "8000,", ",8000", ",", "8000 16000", "8000;16000"),
        *("16000,x", "8000.0", "08000", "+8000", "-8000", "8_000", "8k", "00", "٨٠٠٠", "9" * 4000),
    ],
)
def test_parse_options_bad_sample_rates_are_refused(argument: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(f"L({argument})")
    assert str(caught.value) == (
        "Options: L takes one or two of 0, 8000, 12000, 16000, 24000, 32000, 44100, 48000, 96000, "
        f"192000, with a comma between them, not {argument!r}"
    )


@pytest.mark.parametrize("letter", ["D", "T", "R", "r", "v", "V", "W", "i", "F", "L"])
def test_parse_options_letter_without_its_argument_is_refused(letter: str) -> None:
    for text in (letter, f"{letter}()", f"{letter}p"):
        with pytest.raises(RequestRefused, match=f"^Options: {letter} takes .*, not nothing$"):
            parse_options(text)


@pytest.mark.parametrize(("text", "interval_s"), [("R(1)", 1.0), ("R(600)", 600.0), ("R( 7 )", 7)])
def test_parse_options_interval_says_nothing_of_the_attempts(text: str, interval_s: float) -> None:
    assert parse_options(text) == Options(reconnect_interval_s=interval_s)


@pytest.mark.parametrize(
    ("text", "attempts"), [("r(0)", 0), ("r(1)", 1), ("r(1000000)", 1_000_000)]
)
def test_parse_options_attempts_say_nothing_of_the_interval(text: str, attempts: int) -> None:
    assert parse_options(text) == Options(reconnect_attempts=attempts)


def test_parse_options_interval_and_attempts_without_letters_are_left_to_the_configuration() -> (
    None
):
    options = parse_options("")
    assert (options.reconnect_interval_s, options.reconnect_attempts) == (None, None)


def test_parse_options_interval_and_attempts_together() -> None:
    expected = Options(reconnect_interval_s=10.0, reconnect_attempts=3)
    assert parse_options("R(10)r(3)") == parse_options("r(3)R(10)") == expected


@pytest.mark.parametrize(
    ("text", "interval_s"),
    [("B", 15.0), ("B()", 15.0), ("B(1)", 1.0), ("B(86400)", 86_400.0), ("B(3)B", 15.0)],
)
def test_parse_options_periodic_beep(text: str, interval_s: float) -> None:
    assert parse_options(text) == Options(beeps=Beeps(interval_s=interval_s))


@pytest.mark.parametrize("text", ["B(3)pP", "PpB(3)", "pB(3)P"])
def test_parse_options_beeps_add_up(text: str) -> None:
    assert parse_options(text).beeps == Beeps(interval_s=3.0, at_start=True, at_end=True)


@pytest.mark.parametrize(
    ("argument", "tls"),
    [
        ("on", None),
        (" on ", None),
        ("insecure", Tls(insecure=True)),
        ("ca=/etc/ca.pem", Tls(ca_file="/etc/ca.pem")),
        ("cert=/c.pem", Tls(cert_file="/c.pem")),
        ("cert=/c.pem:key=/k.pem", Tls(cert_file="/c.pem", key_file="/k.pem")),
        ("key=/k.pem:cert=/c.pem", Tls(cert_file="/c.pem", key_file="/k.pem")),
        (
            "on: ca=/ca.pem :cert=/c=c.pem:key=/k.pem",
            Tls(ca_file="/ca.pem", cert_file="/c=c.pem", key_file="/k.pem"),
        ),
        ("on:insecure", Tls(insecure=True)),
        ('"ca=/a (1).pem"', Tls(ca_file="/a (1).pem")),
        ("ca=a.pem", Tls(ca_file="a.pem")),
        ("cert=c.pem:key=sub/k.pem", Tls(cert_file="c.pem", key_file="sub/k.pem")),
    ],
)
def test_parse_options_tls(argument: str, tls: Tls | None) -> None:
    assert parse_options(f"T({argument})") == Options(use_tls=True, tls=tls)


@pytest.mark.parametrize(
    "argument",
    [
        *("no", "0", "off", ":", "on:", "on=1", "insecure=1", "on=", "insecure="),
        *("ca", "ca=", "CA=/a.pem", "ca =/a", "ca= /a", "ca=/a::cert=/b"),
        *("cert=", "cert=/c:key=", "ca= a", "foo=/a", "=/a", "/a"),
    ],
)
def test_parse_options_bad_tls_is_refused(argument: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(f"T({argument})")
    assert str(caught.value) == (
        f"Options: T takes on, insecure, ca=NAME, cert=NAME or key=NAME, not {argument!r}"
    )


def test_parse_options_tls_key_without_cert_is_refused() -> None:
    with pytest.raises(RequestRefused, match="^Options: T takes a key only with a cert$"):
        parse_options("T(key=/k.pem)")


@pytest.mark.parametrize("name", ["AUDIOFORK_NEW", "x", "_x", "__x9", " id ", "a" * 79])
def test_parse_options_id_variable(name: str) -> None:
    assert parse_options(f"i({name})") == Options(id_variable=name.strip())


@pytest.mark.parametrize(
    "name",
    [
        *("9x", "a-b", "a b", "a.b", "a=b", "a,b", "é", "${x}", "x\\)", "a" * 80),
        *("SHELL(id)", "CHANNEL(hangup_handler_push)", "DB(a/b)", "HASH(a)"),
    ],
)
def test_parse_options_id_variable_that_is_no_plain_variable_is_refused(name: str) -> None:
    with pytest.raises(RequestRefused, match="^Options: i takes the name of a channel variable,"):
        parse_options(f"i({name})")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v(1)v(2)", Options(gain_in=2)),
        ("R(1)R(2)", Options(reconnect_interval_s=2.0)),
        ("r(1)r(2)", Options(reconnect_attempts=2)),
        ("F(20)F( 100 )", Options(frame_ms=100)),
        ("F(1000)", Options(frame_ms=1000)),
        ("L(16000,8000)L(0)", Options(sample_rates=(0,))),
        ("B(1)B(2)", Options(beeps=Beeps(interval_s=2.0))),
        ("i(x)i(y)", Options(id_variable="y")),
        ("T(insecure)T(on)", Options(use_tls=True)),
        ("T(ca=/a)T(cert=/b)", Options(use_tls=True, tls=Tls(cert_file="/b"))),
    ],
)
def test_parse_options_letter_that_comes_twice_the_last_stands(
    text: str, expected: Options
) -> None:
    assert parse_options(text) == expected


def test_parse_options_every_letter_at_once() -> None:
    text = (
        "H(X-Call:7)A(t0ken)s(a&b)D(stereo)T(ca=/a)R(9)r(8)F(40)L(16000,8000)bB(7)pPv(1)V(2)i(x)Sa"
    )
    assert parse_options(text) == Options(
        direction=Direction.STEREO,
        gain_in=1,
        gain_out=2,
        keep_time=True,
        bridged_only=True,
        beeps=Beeps(7.0, at_start=True, at_end=True),
        use_tls=True,
        tls=Tls(ca_file="/a"),
        reconnect_interval_s=9.0,
        reconnect_attempts=8,
        frame_ms=40,
        headers=(("X-Call", "7"),),
        authorization="Bearer t0ken",
        subprotocols=("a", "b"),
        sample_rates=(16000, 8000),
        id_variable="x",
        ignored="a",
    )


# --- The handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "headers", "subprotocols"),
    [
        ("H(X-Call:7)", (("X-Call", "7"),), ()),
        ("H( X-Call : a b ;c=d )", (("X-Call", "a b ;c=d"),), ()),
        ("H(A:1&a:2&B:http://x:1/)", (("A", "1"), ("a", "2"), ("B", "http://x:1/")), ()),
        ("H(Empty:)", (("Empty", ""),), ()),
        ("A(t0k/en==)", (("Authorization", "Bearer t0k/en=="),), ()),
        ("A(user:pass:word)", (("Authorization", "Basic dXNlcjpwYXNzOndvcmQ="),), ()),
        ("A(:)", (("Authorization", "Basic Og=="),), ()),
        ("A(t)H(X:1)", (("Authorization", "Bearer t"), ("X", "1")), ()),
        ("s(echo)", (), ("echo",)),
        ("s(v2.bot & v1.bot)", (), ("v2.bot", "v1.bot")),
        ("s(echo)s(other)", (), ("other",)),
    ],
)
def test_parse_options_of_the_handshake(
    text: str, headers: tuple[tuple[str, str], ...], subprotocols: tuple[str, ...]
) -> None:
    assert parse_options(text).handshake == Handshake(headers, subprotocols)


@pytest.mark.parametrize(
    "argument",
    [
        *("", "S3CRET", ":S3CRET", "a:S3CRET&", "a b:S3CRET", "a@b:S3CRET", "a:S3CRÉT", "ä:S3CRET"),
        *("Host:S3CRET", "upgrade:S3CRET", "CONNECTION:S3CRET", "Sec-WebSocket-Key:S3CRET"),
        *("sec-websocket-protocol:S3CRET", "Transfer-Encoding:S3CRET", "Content-Length:S3CRET"),
        *("a:S3CRET\r\nb:c", "a:S3CRET\n", "a:\0S3CRET", "a:S3CRET\ud800"),
        "&".join(f"a{number}:S3CRET" for number in range(33)),
    ],
)
def test_parse_options_bad_headers_are_refused_without_their_values(argument: str) -> None:
    with pytest.raises(RequestRefused, match=r"^Options: H takes ") as caught:
        parse_options(f"H({argument})")
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("argument", ["", "S3CRET S3CRET", "S3CRET\n", "S3CRÉT", "\0S3CRET"])
def test_parse_options_bad_credentials_are_refused_without_them(argument: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(f"A({argument})")
    assert str(caught.value) == "Options: A takes a token without blanks, or user:password"


def test_parse_options_both_a_and_a_header_authorization_are_refused() -> None:
    with pytest.raises(RequestRefused, match="A and H both set the header Authorization"):
        parse_options("A(t)H(authorization:Basic x)")


@pytest.mark.parametrize("argument", ["", "a b", "a&", "&a", "a&a", "a,b", "ä", "a/b", '"'])
def test_parse_options_bad_subprotocols_are_refused(argument: str) -> None:
    with pytest.raises(RequestRefused, match=r"^Options: s takes names of subprotocols|missing"):
        parse_options(f"s({argument})")


@pytest.mark.parametrize(
    "text", ["D(inA(S3CRET))", "L(8000H(a:S3CRET))", "x(json A(S3CRET))", "s(token&S3CRET,b)"]
)
def test_parse_options_refusal_holds_no_secret_behind_a_missing_parenthesis(text: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_options(text)
    assert "S3CRET" not in str(caught.value)


def test_no_secret_of_the_options_is_in_a_repr() -> None:
    text = "A(S3CRET)H(X-Key:S3CRET)s(token&S3CRET)"
    request = StartFork(Target("a"), "ws://h/", parse_options(text), options_text=text)
    assert "S3CRET" not in repr(request) + repr(request.options.handshake)


LETTERS = "DTRrbBpPvVWiSaLFHAsMtn"
arguments = st.one_of(
    st.none(),
    st.integers().map(str),
    st.sampled_from(["in", "on", "insecure", "ca=/a", "cert=/a:key=/b", "name", "", " ", "-"]),
    st.lists(st.sampled_from(["0", "8000", "16000", "48000", "11025", ""])).map(",".join),
    st.text(),
)
letters_with_arguments = st.lists(
    st.tuples(st.sampled_from(LETTERS), arguments).map(
        lambda pair: pair[0] if pair[1] is None else f"{pair[0]}({pair[1]})"
    )
).map("".join)


@given(st.one_of(st.text(), option_strings, letters_with_arguments))
@example("\ud800")
@example("v(٣)")
@example("r(" + "9" * 4090 + ")")
@example("T(" + ":" * 4000 + ")")
def test_parse_options_any_text_gives_options_or_a_refusal(text: str) -> None:
    try:
        options = parse_options(text)
    except RequestRefused as exc:
        refusal = str(exc)
        assert refusal.startswith("Options: ")
    else:
        assert isinstance(options, Options)
        assert -4 <= options.gain_in <= 4
        assert -4 <= options.gain_out <= 4
        assert options.id_variable == "" or options.id_variable.isidentifier()
        for name, value in options.handshake.headers:
            assert (name + value).isascii()
            assert (name + value).isprintable()
        assert options.use_tls or options.tls is None
        assert len(options.sample_rates) <= 2
        assert set(options.sample_rates) <= {0, *SAMPLE_RATES}


# --- x(openai-realtime) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rates"),
    [("", (8000,)), ("c(alaw)", (8000,)), ("L(24000)", (24000,)), ("L(24000,8000)", (24000, 8000))],
)
def test_speech_api_has_mulaw_at_8000_hz_unless_options_say_else(
    text: str, rates: tuple[int, ...]
) -> None:
    options = parse_options(f"x(openai-realtime){text}")
    assert options.wished_rates == rates
    assert not options.tells_of_call


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("L(16000)", r"takes L\(24000\), or no L for 8000 Hz"),
        ("L(24000)c(ulaw)", "has PCM alone at 24000 Hz, leave c or L out"),
        ("D(stereo)", r"has one channel, take D\(in\), D\(out\) or D\(both\)"),
        ("M", "tells of the call in a profile's opening, leave M out"),
    ],
)
def test_option_that_a_speech_api_cannot_have_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestRefused, match=rf"^Options: x\(openai-realtime\) {why}$"):
        parse_options(f"x(openai-realtime){text}")
