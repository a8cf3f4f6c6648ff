"""What `migrate` makes of a dialplan, and what it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.commands.dialplan import Kind
from audiofork.commands.migrate_draft import Migration
from audiofork.commands.migrate_text import migrate_text


def start(url: str, options: str = "", *command: str) -> str:
    """What is written for AudioFork(url,options,command)."""
    exists = "${DIALPLAN_EXISTS(audiofork,start,1)}"
    gosub = f"Gosub(audiofork,start,1({','.join([url, f'{options}s(echo)', *command])}))"
    return f"ExecIf({exists}?{gosub}:Log(WARNING,no context audiofork))"


def stop(arguments: str) -> str:
    """What is written for StopAudioFork(arguments)."""
    return f"ExecIf(${{DIALPLAN_EXISTS(audiofork,stop,1)}}?Gosub(audiofork,stop,1({arguments})))"


START = start("ws://h/", "D(in)")


def conf(text: str) -> Migration:
    return migrate_text(text, Kind.CONF)


def lines(application: str) -> str:
    return f"[a]\nexten => s,1,{application}\n same => n(x),{application}\n"


def left(migration: Migration) -> list[tuple[int, str]]:
    return [(note.line, note.text) for note in migration.notes if note.left]


# --- extensions.conf ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("AudioFork(ws://h/)", start("ws://h/")),
        ("AudioFork(ws://h/,D(in))", START),
        ("audiofork( ws://h/ , D(in) )", START),
        ("AUDIOFORK(ws://h/,D(in),)", START),
        ("AudioFork(ws://h/,,)", start("ws://h/")),
        ("AudioFork(ws://h/,D(in),ls ^{X})", start("ws://h/", "D(in)", "ls ^{X}")),
        ("AudioFork(ws://h/,,ls ^{X})", start("ws://h/", "", "ls ^{X}")),
        ("AudioFork(ws://h/,,a b,c)", start("ws://h/", "", r"a b\,c")),
        ("AudioFork(ws://h/,,a | b)", start("ws://h/", "", "a | b")),
        (r"AudioFork(ws://h/,,a \"b,c\")", start("ws://h/", "", 'a "b,c"')),
        ('AudioFork(ws://h/,,"a b")', start("ws://h/", "", "a b")),
        (r"AudioFork(ws://h/,,a\,b)", start("ws://h/", "", r"a\,b")),
        ("AudioFork(ws://h/,,a (b,c))", start("ws://h/", "", "a (b,c)")),
        ('AudioFork("ws://h/?a,b",D(in))', start('"ws://h/?a,b"', "D(in)")),
        (r"AudioFork(ws://h/?a\,b,D(in))", start(r"ws://h/?a\,b", "D(in)")),
        (r"AudioFork(ws://h/\;a,D(in))", start(r"ws://h/\;a", "D(in)")),
        ('AudioFork(ws://h/,"D(in)")', START),
        ("AudioFork(${URL},${OPTIONS})", start("${URL}", "${OPTIONS}")),
        (
            "AudioFork(ws://h/${CUT(CHANNEL,/,2)},D(in)R(10)r(5)T(on))",
            start("ws://h/${CUT(CHANNEL,/,2)}", "D(in)R(10)r(5)T(on)"),
        ),
        ("StopAudioFork()", stop("")),
        ("StopAudioFork", stop("")),
        ("stopaudiofork(${ID})", stop("${ID}")),
        ("AudioFork,ws://h/,D(in)", START),
        ("AudioFork|ws://h/|D(in)", START),
        ("AudioFork,ws://h/|D(in)", START),
        ("StopAudioFork,${ID}", stop("${ID}")),
        ("Exec(AudioFork(ws://h/,D(in)))", f"Exec({START})"),
        ("TryExec(AudioFork(ws://h/,D(in)))", f"TryExec({START})"),
        ("TryExec( Exec(AudioFork(ws://h/,D(in))))", f"TryExec( Exec({START}))"),
        (
            'ExecIf($["${A?x}" = "1"]?AudioFork(ws://h/,D(in)))',
            f'ExecIf($["${{A?x}}" = "1"]?{START})',
        ),
        (
            "ExecIf($[${A}]?AudioFork(ws://h/,D(in)):StopAudioFork(${I}))",
            f"ExecIf($[${{A}}]?{START}:{stop('${I}')})",
        ),
        (
            "Set(X=${AUDIOFORK(${MY_ID},filename)})",
            "Set(X=${AUDIOFORK_WSSERVER_${REPLACE(MY_ID,-,_)}})",
        ),
        (
            'GotoIf($["${AUDIOFORK(${A}, wsserver)}"=""]?x)',
            'GotoIf($["${AUDIOFORK_WSSERVER_${REPLACE(A,-,_)}}"=""]?x)',
        ),
        (
            "AudioFork(${AUDIOFORK(${A},filename)})",
            start("${AUDIOFORK_WSSERVER_${REPLACE(A,-,_)}}"),
        ),
    ],
)
def test_plain_call_is_rewritten(before: str, after: str) -> None:
    migration = conf(lines(before))
    assert migration.text == lines(after)
    assert left(migration) == []
    assert migration.changes >= 2
    again = conf(migration.text)
    assert (again.text, again.changes) == (migration.text, 0)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("AudioFork()", "it names no server"),
        ("AudioFork", "it names no server"),
        ("AudioFork(ws://h/,D(in)", "the parenthesis is not closed"),
        ("AudioFork(ws://h/)D(in))", "something follows the closing parenthesis"),
        ('AudioFork("ws://h/,D(in))', "its arguments have a quote that is not closed"),
        (r"AudioFork(ws://h/\(\),D(in))", "its arguments have an escaped parenthesis or backslash"),
        ("AudioFork(ws://h/|D(in))", "its arguments contain a |, which has not separated"),
        ('AudioFork(ws://h/,"D(in),x")', "its options have a comma"),
        ("AudioFork(ws://h/,,say 'a',b)", "its command has a comma, and single quotes"),
        (r"AudioFork(ws://h/,,say \"a)", "its command has a lone quote, or a backslash for the"),
        (r"AudioFork(ws://h/,,say a\; b)", "its command has a semicolon"),
        (r"AudioFork(ws://h/,T(ca=\;))", "its options have a semicolon"),
        ("AudioFork(ws://h/ ;-- why --; ,D(in))", "it contains a comment"),
        ("Set(A=AudioFork(ws://h/))", "AudioFork is not a plain application call"),
        ("Set(A=AudioFork)", "AudioFork is not a plain application call"),
        ("Originate(Local/a,app,AudioFork,ws://h/)", "AudioFork is not a plain application call"),
        ("Exec(" * 30 + "AudioFork(ws://h/)" + ")" * 30, "AudioFork is not a plain application"),
        ("Exec(" * 3000 + "AudioFork(ws://h/)" + ")" * 3000, "AudioFork is not a plain app"),
        ("ExecIf(1?${A}(x)?AudioFork(ws://h/))", "AudioFork is not a plain application call"),
        ("Set(A=${AUDIOFORK(${A:1},filename)})", "the function AUDIOFORK: expected "),
        ("Set(A=${AUDIOFORK(0x7f,filename)})", "the function AUDIOFORK: expected "),
        ("Set(A=${AUDIOFORK(${A}", "the function AUDIOFORK: the parenthesis is not closed"),
    ],
)
def test_call_that_is_not_plain_is_left_and_told(line: str, why: str) -> None:
    text = f"[a]\n\nexten => s,1,{line}\n"
    migration = conf(text)
    assert migration.text == text
    assert migration.changes == 0
    ((number, told),) = left(migration)
    assert number == 3
    assert told.startswith(f"left as it is: {why}")


@pytest.mark.parametrize(
    "text",
    [
        "; AudioFork(ws://h/)\n",
        "exten => s,1,NoOp() ; AudioFork(ws://h/)\n",
        ";-- \nexten => s,1,AudioFork(ws://h/)\n ;-- --; AudioFork(x)\n--; \n",
        ";-- never closed\nexten => s,1,AudioFork(ws://h/)\n",
        "exten => s,1,NoOp(${AUDIOFORK_ID} ${AUDIOFORK_WSSERVER})\n",
        "exten => s,1,UserEvent(AudioFork,WsServer: ws://h/)\n",
        "exten => s,1,Verbose(the AudioFork of ${CHANNEL})\n",
        "exten => s,1,MyAudioFork(x)\n same => n,AudioForkX(x)\n",
        "exten => s,hint,PJSIP/audiofork\n",
    ],
)
def test_what_is_no_call_is_left_without_a_word(text: str) -> None:
    assert conf(text) == Migration(text, (), 0)


def test_comments_and_line_ends_around_calls_stay() -> None:
    before = (
        ";---- rule ----;\r\n"
        "exten=>s,1,AudioFork(ws://h/,D(in))   ; here AudioFork(x)\r\n"
        ";-- b --; same => n,AudioFork(ws://h/,D(in))\n"
        "same = n(a),AudioFork(ws://h/,D(in));c"
    )
    after = re.sub(r"AudioFork\(ws://h/,D\(in\)\)", START, before)
    assert conf(before).text == after
    assert conf(before).changes == 3


@pytest.mark.parametrize(
    "line",
    [
        "exten => _[1,2]X,1,%s",
        "exten => a\\,b,1,%s",
        "exten => _[1-3]./100,n(label),%s",
        "exten => s,1(a),%s ;-- c --;",
        " same =>  n(label) , %s",
        "same=hint+1,%s",
        "\ufeffexten => s,1,%s",
        "\texten\t=>\ts,1,\t%s\t\r",
    ],
)
def test_call_is_found_in_whatever_line_asterisk_takes(line: str) -> None:
    migration = conf(line % "AudioFork(ws://h/,D(in))")
    assert migration.text == line % START
    assert migration.notes == ()


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        ("AudioFork(ws://h/,D(in)R(10)r(5))", []),
        ("AudioFork(ws://h/,R(10))", ["R without r: r stays 5; the module set it to 15"]),
        ("AudioFork(ws://h/,r(3))", ["r without R: R stays 5; the module set it to 15"]),
        ("AudioFork(ws://h/,T(on))", ["T: certificates are verified; the module verified none"]),
        ("AudioFork(ws://h/,ab)", ["a has no effect", "b: audio flows only while"]),
        ("AudioFork(ws://h/,S(x))", ["S keeps time"]),
        ("AudioFork(ws://h/,D(in)z)", ["these options are refused: Options: unknown option 'z'"]),
        ("AudioFork(ws://h/,D(up))", ["these options are refused: Options: D takes"]),
        ("AudioFork(ws://h/,${O})", ["its options contain a variable"]),
        ("AudioFork(http://h/)", ["this URL is refused: WsServer: the scheme must be ws or wss"]),
        ("AudioFork(ws://h/${EXTEN})", ["a caller may choose EXTEN so that a comma in it begins"]),
        ("AudioFork(ws://h/${URIENCODE(${EXTEN})})", []),
        ("AudioFork(ws://h/,,ls)", ["a command runs only with [security] allow_post_process"]),
        (
            "AudioFork(ws://h/,,ls ^{EXTEN:1})",
            ["a command runs only with [security] allow_post_process", "are those of the Gosub"],
        ),
        ("StopAudioFork()", ["without an id all forks of the channel end"]),
        ("StopAudioFork(${ID})", []),
    ],
)
def test_differences_are_noted_with_their_line(call: str, parts: list[str]) -> None:
    migration = conf(f"[a]\nexten => s,1,{call}\n")
    assert migration.changes == 1
    assert [note.line for note in migration.notes] == [2] * len(parts)
    for note, part in zip(migration.notes, parts, strict=True):
        assert part in note.text
        assert not note.left


def test_gosub_that_may_end_the_call_is_noted_and_left() -> None:
    text = f"[a]\nexten => s,1,Gosub(audiofork,start,1(ws://h/))\n same => n,{START}\n"
    migration = conf(text)
    assert (migration.text, migration.changes) == (text, 0)
    (note,) = migration.notes
    assert (note.line, note.left) == (2, False)
    assert note.text == (
        "ends the call where the context audiofork is missing: "
        "write ExecIf(${DIALPLAN_EXISTS(audiofork,start,1)}?Gosub(...))"
    )


def test_call_in_a_macro_and_a_context_of_our_name_are_noted() -> None:
    migration = conf("[macro-in]\nexten => s,1,AudioFork(ws://h/)\n[audiofork]\n")
    assert [(note.line, note.text.split(":")[0]) for note in migration.notes] == [
        (2, "in a macro"),
        (3, "the shipped dialplan has a context of this name"),
    ]


def test_shipped_dialplan_is_left_without_a_word() -> None:
    path = Path(__file__).parents[2] / "etc/asterisk/extensions_audiofork.conf"
    assert conf(path.read_text()) == Migration(path.read_text(), (), 0)


# --- AEL ---


def test_ael_statements_are_rewritten() -> None:
    before = """\
context a { // AudioFork(ws://h/);
  s => {
    AudioFork(ws://h/,D(in)); /* AudioFork(x);
    */ if (${X}) AudioFork (ws://h/,D(in)) ; else audiofork(ws://h/,D(in));
    label: StopAudioFork();
    ExecIf($[${X}]?AudioFork(ws://h/,D(in)));
    NoOp(${AUDIOFORK(${ID},filename)});
  }
  _X. => StopAudioFork(${ID});
}
"""
    after = f"""\
context a {{ // AudioFork(ws://h/);
  s => {{
    {START}; /* AudioFork(x);
    */ if (${{X}}) {START} ; else {START};
    label: {stop("")};
    ExecIf($[${{X}}]?{START});
    NoOp(${{AUDIOFORK_WSSERVER_${{REPLACE(ID,-,_)}}}});
  }}
  _X. => {stop("${ID}")};
}}
"""
    migration = migrate_text(before, Kind.AEL)
    assert migration.text == after
    assert (migration.changes, left(migration)) == (7, [])
    assert migrate_text(after, Kind.AEL).text == after


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("AudioFork(ws://h/\n,D(in));", "its arguments span several lines"),
        ("AudioFork(ws://h/,D(in))", "AudioFork is not a plain application call"),
        ("AudioFork(ws://h/;", "AudioFork is not a plain application call"),
        ("StopAudioFork;", "StopAudioFork is not a plain application call"),
        ("Set(A=AudioFork(ws://h/));", "AudioFork is not a plain application call"),
    ],
)
def test_ael_call_that_is_not_plain_is_left_and_told(line: str, why: str) -> None:
    text = f"context a {{\n  s => {{\n    {line}\n}}\n}}\n"
    migration = migrate_text(text, Kind.AEL)
    assert migration.text == text
    assert left(migration) == [(3, f"left as it is: {why}")]


# --- Lua ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            'app.AudioFork("ws://h/", "D(in)")',
            'app.UserEvent("AudioFork", "WsServer: ws://h/", "Options: D(in)s(echo)")',
        ),
        (
            "app.audiofork('ws://h/')",
            'app.UserEvent("AudioFork", "WsServer: ws://h/", "Options: s(echo)")',
        ),
        (
            'app["AudioFork"](\n  "ws://h/,D(in),ls" )',
            'app.UserEvent("AudioFork", "WsServer: ws://h/", "Options: D(in)s(echo)", '
            '"PostProcess: ls")',
        ),
        (
            "app.AudioFork([==['ws://h/']==])",
            'app.UserEvent("AudioFork", "WsServer: \'ws://h/\'", "Options: s(echo)")',
        ),
        (
            r'app.AudioFork("\"ws://h/?a,b\"")',
            r'app.UserEvent("AudioFork", "WsServer: \"ws://h/?a,b\"", "Options: s(echo)")',
        ),
        (
            'app.StopAudioFork("${ID}")',
            'app.UserEvent("AudioFork", "Command: StopAudioFork", "AudioForkID: ${ID}")',
        ),
        ("app.StopAudioFork()", 'app.UserEvent("AudioFork", "Command: StopAudioFork")'),
    ],
)
def test_lua_call_with_plain_strings_is_rewritten(before: str, after: str) -> None:
    migration = migrate_text(f"-- {before}\nx = 1; {before}\n", Kind.LUA)
    comment = f"-- {before}\n" if "\n" not in before else migration.text.partition("x = 1")[0]
    assert migration.text == f"{comment}x = 1; {after}\n" or "\n" in before
    assert migration.text.endswith(f"x = 1; {after}\n")
    assert left(migration) == []
    assert migrate_text(migration.text, Kind.LUA).text == migration.text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('app.AudioFork("ws://" .. host)', "expected plain strings as arguments"),
        ("app.AudioFork(url, options)", "expected plain strings as arguments"),
        ('app.AudioFork "ws://h/"', "expected arguments in parentheses"),
        ("local fork = app.AudioFork", "expected arguments in parentheses"),
        (r'app.AudioFork("ws://h/\n")', "a string has an escape"),
        ('app.AudioFork("ws://h/" --[[ why ]])', "it contains a comment"),
        ('app.AudioFork("ws://h/,,say a,b")', "its command has a comma"),
        ('id = channel.AUDIOFORK("1", "filename"):get()', "the function AUDIOFORK: write channel["),
    ],
)
def test_lua_call_that_is_not_plain_is_left_and_told(line: str, why: str) -> None:
    text = f"--[[ app.AudioFork(1)\n]]\n{line}\n"
    migration = migrate_text(text, Kind.LUA)
    assert migration.text == text
    ((number, told),) = left(migration)
    assert number == 3
    assert told.startswith(f"left as it is: {why}")


@pytest.mark.parametrize(
    "line",
    [
        'app.Exec("AudioFork(ws://h/)")',
        "app.ExecIf('1?StopAudioFork():NoOp()')",
        'local name = "AudioFork"',
        'app[stop and "StopAudioFork" or "NoOp"]()',
        "local a = app; a.AudioFork('ws://h/')",
        "a . StopAudioFork()",
        'app.Originate("Local/a", "app", "AudioFork", "ws://h/")',
    ],
)
def test_lua_call_by_another_way_is_told(line: str) -> None:
    text = f"-- {line}\n{line}\n"
    migration = migrate_text(text, Kind.LUA)
    assert migration.text == text
    ((number, told),) = left(migration)
    assert number == 2
    assert told.endswith("AudioFork is not a plain application call")


@pytest.mark.parametrize(
    "line",
    [
        'app.UserEvent("AudioFork", "WsServer: ws://h/")',
        "app.userevent( 'AudioFork')",
        'app.Verbose("the AudioFork of a call")',
        'require "audiofork"',
        "local audiofork = 1",
        "my.audiofork_id = 1",
    ],
)
def test_lua_that_is_no_call_is_left_without_a_word(line: str) -> None:
    assert migrate_text(f"{line}\n", Kind.LUA) == Migration(f"{line}\n", (), 0)


def test_lua_call_within_a_string_is_left_without_a_word() -> None:
    text = (
        """s = "app.AudioFork('x')" -- app.AudioFork('x')\nt = '-- ' .. [[\napp.AudioFork('x')]]"""
    )
    assert migrate_text(text, Kind.LUA) == Migration(text, (), 0)


# --- Any text ---

PIECES = st.sampled_from(
    [
        "exten => s,1,",
        " same => n,",
        "AudioFork",
        "StopAudioFork",
        "(",
        ")",
        ",",
        "ws://h/",
        "D(in)",
    ]
    + ['"', "\\", ";", ";--", "--;", "\n", "\r\n", "?", ":", "ExecIf(", "Exec(", "${", "}", "["]
    + ["${AUDIOFORK(${A},filename)}", "app.", "app.AudioFork('ws://h/')", "--", "//", "/*", "*/"]
    + ["{", "]", "'", "[[", "]]", " ", "else", "AudioFork(ws://h/);", "|", "[macro-a]"]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))


@given(text=TEXTS, kind=st.sampled_from(Kind))
def test_text_without_the_modules_words_is_unchanged(text: str, kind: Kind) -> None:
    text = re.sub("audiofork", "other", text, flags=re.IGNORECASE)
    assert migrate_text(text, kind) == Migration(text, (), 0)


@given(text=TEXTS, kind=st.sampled_from(Kind))
def test_second_run_changes_nothing_more(text: str, kind: Kind) -> None:
    once = migrate_text(text, kind)
    again = migrate_text(once.text, kind)
    assert (again.text, again.changes) == (once.text, 0)
    assert (once.changes == 0) == (once.text == text)


@given(text=TEXTS, kind=st.sampled_from(Kind))
def test_lines_without_the_modules_words_stay(text: str, kind: Kind) -> None:
    """Only lines that hold one of the words change, and no line comes or goes but in Lua."""
    before, after = text.split("\n"), migrate_text(text, kind).text.split("\n")
    if kind is Kind.LUA:
        return
    assert len(before) == len(after)
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert all("audiofork" in line.lower() for line in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.CONF, "exten => s,1,AudioFork(ws://h/,D(in\n" * 20_000),
        (Kind.CONF, "exten => s,1," + "AudioFork(ws://h/," * 20_000),
        (Kind.CONF, "exten => " + "[a]" * 100_000),
        (Kind.CONF, "exten => s,1,AudioFork(" + "\\" * 100_000),
        (Kind.CONF, "OPT" * 100_000),
        (Kind.AEL, "context a {\n" + "AudioFork(ws://h/;\n" * 20_000),
        (Kind.LUA, "app.AudioFork(\n" * 20_000),
        (Kind.LUA, "app.AudioFork([==[\n" * 20_000),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else value[:25],
)
@pytest.mark.timeout(30)  # were the rest read again at each beginning, it would take longer
def test_text_that_never_closes_what_it_opens_is_left_as_it_is(kind: Kind, text: str) -> None:
    assert migrate_text(text, kind).text == text


# --- The migration guide ---

GUIDE = Path(__file__).parents[2] / "docs/migration.md"
KINDS = {"conf": Kind.CONF, "ael": Kind.AEL, "lua": Kind.LUA}


def guide_blocks() -> dict[tuple[str, str, str], str]:
    """The fenced blocks of docs/migration.md, by language, role (before, after ...) and name."""
    fenced = re.finditer(r"^```(\w+) (\w+) (\w+)\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    return {(match[1], match[2], match[3]): match[4] for match in fenced}


def test_every_block_of_the_guide_is_marked_and_has_its_counterpart() -> None:
    blocks = guide_blocks()
    assert GUIDE.read_text().count("\n```") == 2 * len(blocks)
    before = {(language, name) for language, role, name in blocks if role == "before"}
    after = {(language, name) for language, role, name in blocks if role == "after"}
    assert after - before == {("js", "server")}
    assert before - after == set()


@pytest.mark.parametrize(
    ("language", "name"),
    [(block[0], block[2]) for block in guide_blocks() if block[0] in KINDS and block[1] == "after"],
)
def test_migrate_makes_the_guides_after_of_its_before(language: str, name: str) -> None:
    blocks = guide_blocks()
    migration = migrate_text(blocks[language, "before", name], KINDS[language])
    assert migration.text == blocks[language, "after", name]
    assert left(migration) == []
