"""What `migrate` says of macros and chan_sip, which Asterisk 21 no longer has."""

from __future__ import annotations

import pytest

from audiofork.commands.dialplan import Kind
from audiofork.commands.migrate_gone import macro_of_options
from audiofork.commands.migrate_text import migrate_text


def told(text: str, kind: Kind = Kind.CONF, branch: int | None = None) -> list[tuple[int, str]]:
    return [(note.line, note.text) for note in migrate_text(text, kind, branch).notes if note.left]


def without_return(text: str) -> str:
    """Return what is written in a note, up to where Return() belongs."""
    assert "end with Return()" in text
    return text.partition(", and let each way")[0]


NONE = "Asterisk 21 and later have no macros"
IN_QUEUE = (
    "this argument is a Gosub's context there: write macro-in (before Asterisk 21 as the argument "
    "after it)"
)

CALLS = [
    ("Dial(PJSIP/a,60,M(in))", "M(in) of Dial()", "write U(macro-in)"),
    ("Dial(PJSIP/a,60,gM(in))", "M(in) of Dial()", "write U(macro-in)"),
    ("Dial(PJSIP/a,,tL(6:3)M(in^a^b)A(x))", "M(in^a^b) of Dial()", "write U(macro-in^a^b)"),
    ("Dial(PJSIP/a,60,${OPTS}M(in)${MORE(a)})", "M(in) of Dial()", "write U(macro-in)"),
    ("Dial(PJSIP/a,60,M(${X}))", "M(${X}) of Dial()", "write U(macro-${X})"),
    ("Dial(PJSIP/a,${IF($[1]?M(x):6)},b(c^s^1(M))M(in))", "M(in) of Dial()", "write U(macro-in)"),
    ("dial(PJSIP/a,60,M(in))", "M(in) of dial()", "write U(macro-in)"),
    ("RetryDial(busy,5,3,PJSIP/a,60,gM(in))", "M(in) of RetryDial()", "write U(macro-in)"),
    ("ExecIf($[${X}]?Dial(PJSIP/a,60,M(in)):NoOp())", "M(in) of Dial()", "write U(macro-in)"),
    ("TryExec(Dial(PJSIP/a,60,M(in)))", "M(in) of Dial()", "write U(macro-in)"),
    ("Set(__DIAL_OPTIONS=tTM(in))", "M(in) of these options", "write U(macro-in)"),
    ("Set(GLOBAL(TRUNK_OPTIONS)=M(in^x))", "M(in^x) of these options", "write U(macro-in^x)"),
    ("Queue(q,t,,,60,,in)", "the macro in of Queue()", IN_QUEUE),
    ("Macro(in)", "Macro(in)", "write Gosub(macro-in,s,1)"),
    ("Macro(in,a,${B})", "Macro(in)", "write Gosub(macro-in,s,1(a,${B}))"),
    ("MacroExclusive(in,a)", "MacroExclusive(in)", "write Gosub(macro-in,s,1(a))"),
    ("MacroIf($[1]?in,a:out)", "MacroIf()", "write GosubIf()"),
]


@pytest.mark.parametrize(("call", "what", "instead"), CALLS)
@pytest.mark.parametrize("branch", [None, 21, 22])
def test_macro_is_named_at_its_own_line_with_what_to_write(
    call: str, what: str, instead: str, branch: int | None
) -> None:
    text = f"[a]\nexten => s,1,NoOp()\n\n same => n(x),{call} ; and so on\n"
    ((line, note),) = told(text, branch=branch)
    assert (line, without_return(note)) == (4, f"{what}: {NONE}: {instead}")
    assert migrate_text(text, Kind.CONF).text == text


def test_options_of_a_global_variable_are_looked_into() -> None:
    ((line, note),) = told("[globals]\nDIALOPTIONS=tTM(in)\n")
    assert (line, without_return(note)) == (
        2,
        f"M(in) of these options: {NONE}: write U(macro-in)",
    )


def test_macro_exit_is_named() -> None:
    assert told("exten => s,1,MacroExit()\n") == [(1, f"MacroExit(): {NONE}: write Return()")]


@pytest.mark.parametrize(
    "line",
    [
        "exten => s,1,Dial(PJSIP/a,60,U(macro-in))",
        "exten => s,1,Dial(PJSIP/a,60,m(default))",
        "exten => s,1,Dial(PJSIP/a,60,A(M(x)))",
        "exten => s,1,Dial(PJSIP/M(in),60)",
        "exten => s,1,Dial(PJSIP/a,M(in))",
        "exten => s,1,Dial(PJSIP/a,60,b(x^s^1(M(y))))",
        "exten => s,1,Dial(PJSIP/a,60,${M(x)})",
        "exten => s,1,NoOp(Dial M(in))",
        "exten => s,1,Queue(q,t,,,60,,macro-in)",
        "exten => s,1,Queue(q,t,,,60)",
        "exten => s,1,Set(X=${QUEUE(q,a,b,c,d,e,f)})",
        ";exten => s,1,Macro(in)",
        "exten => s,1,Set(SUM=M(in))",
        "exten => macro,1,NoOp(a macro)",
        "exten => s,1,Goto(a,macro,1)",
        "exten => s,1,Gosub(macro-in,s,1)",
        "[macro-in]",
        "exten => s,1,NoOp(SIP/2.0 200 OK)",
        "exten => s,1,Dial(PJSIP/a)",
        "exten => s,1,CURL(https://h/SIP/a)",
        "exten => s,1,Playback(a-SIP/a)",
        "; SIP/a",
    ],
)
def test_what_asterisk_21_has_is_left_without_a_word(line: str) -> None:
    assert migrate_text(f"[a]\n{line}\n", Kind.CONF).notes == ()


def test_argument_of_queue_that_is_a_context_is_no_macro() -> None:
    assert told("[in]\nexten => s,1,Return()\n[a]\nexten => s,1,Queue(q,,,,,,in)\n") == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("exten => s,1,Dial(SIP/1001,60)", ["SIP/1001"]),
        ("exten => s,1,Dial(PJSIP/a&SIP/${EXTEN:1}@b&SIP/c,60)", ["SIP/${EXTEN:1}@b", "SIP/c"]),
        ("exten => 100,hint,SIP/100", ["SIP/100"]),
        ("exten => s,1,AddQueueMember(q,SIP/a)", ["SIP/a"]),
        ("exten => s,1,SIPAddHeader(X: y)", ["SIPAddHeader()"]),
        ("exten => s,1,Set(X=${SIP_HEADER(To)})", ["SIP_HEADER()"]),
        ("exten => s,1,Set(X=${SIPPEER(a,ip)})", ["SIPPEER()"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("branch", [None, 21, 23])
def test_chan_sip_is_named_where_asterisk_may_have_none(
    line: str, said: list[str], branch: int | None
) -> None:
    notes = told(f"[a]\n{line}\n", branch=branch)
    assert [note.partition(": Asterisk 21")[0] for _, note in notes] == said
    assert {number for number, _ in notes} == {2}
    assert migrate_text(f"[a]\n{line}\n", Kind.CONF, 20).notes == ()


def test_what_to_write_for_a_channel_of_chan_sip_is_told() -> None:
    assert told("exten => s,1,Dial(SIP/1001)\n")[0][1] == (
        "SIP/1001: Asterisk 21 and later have no chan_sip: "
        "write PJSIP/1001, a channel of chan_pjsip"
    )


def test_macros_of_older_asterisks_are_named_and_not_left_to_do() -> None:
    text = "exten => s,1,Dial(SIP/a,60,M(in))\n same => n,Macro(in)\n"
    notes = migrate_text(text, Kind.CONF, 20).notes
    assert [(note.line, note.left) for note in notes] == [(1, False), (2, False)]


def test_macros_are_named_before_and_after_the_rewriting() -> None:
    text = "exten => s,1,AudioFork(ws://h/)\n same => n,Dial(PJSIP/a,60,gM(in))\n"
    once = migrate_text(text, Kind.CONF, 22)
    again = migrate_text(once.text, Kind.CONF, 22)
    assert (once.changes, again.changes) == (1, 0)
    assert once.notes == again.notes
    assert [note.line for note in again.notes] == [2]


def test_macros_and_channels_of_ael_are_named() -> None:
    text = (
        "macro std(a) {\n  Dial(SIP/a,60,M(in));\n  &other(b);\n}\n"
        "context c {\n  s => {\n    if (${X}) Macro(in,\n x);\n  }\n}\n// Macro(a)\n"
    )
    assert [(line, text.partition(": Asterisk")[0]) for line, text in told(text, Kind.AEL)] == [
        (2, "M(in) of Dial()"),
        (2, "SIP/a"),
        (7, "Macro(in)"),
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ('app.Dial("PJSIP/a", 60, "gM(in)")', "M(in) of Dial()"),
        ("app.dial('PJSIP/a', nil, 'M(in^x)')", "M(in^x) of dial()"),
        ('app["Dial"]("PJSIP/a,60,M(in)")', "M(in) of Dial()"),
        ('app.Macro("in", "x")', "Macro(in)"),
        ('app.Dial("SIP/" .. extension)', "SIP/"),
        ('channel.DIAL_OPTIONS = "tM(in)"', "M(in) of these options"),
    ],
)
def test_macros_and_channels_of_lua_are_named(call: str, said: str) -> None:
    ((line, note),) = told(f"-- {call}\n{call}\n", Kind.LUA)
    assert line == 2
    assert note.partition(": Asterisk 21")[0] == said


@pytest.mark.parametrize(
    ("options", "macro"),
    [
        ("M(a)", "a"),
        ("gM(a^${B(c)}^$[1 + (2)])T", "a^${B(c)}^$[1 + (2)]"),
        ("M", None),
        ("M(a", None),
        ("A(M(a))", None),
        ("", None),
    ],
)
def test_macro_of_options(options: str, macro: str | None) -> None:
    assert macro_of_options(options) == macro
