"""What `migrate` writes, and what it reads, as the real Asterisk takes it; without a daemon."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiofork.commands.dialplan import Kind
from audiofork.commands.migrate_includes import Reader
from audiofork.commands.migrate_text import migrate_text
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.daemon import dialplan

pytestmark = pytest.mark.asterisk

WENT_ON = "UserEvent(WentOn,Extension: ${EXTEN})"


@pytest.fixture(scope="module")
def with_context() -> Iterator[Asterisk]:
    with Asterisk(dialplan=dialplan()) as one:
        yield one


@pytest.fixture(scope="module")
def without_context() -> Iterator[Asterisk]:
    with Asterisk(dialplan="") as one:
        yield one


class Loaded:
    """Dialplans in a running Asterisk; a context manager that takes them out again."""

    def __init__(self, asterisk: Asterisk) -> None:
        self._asterisk = asterisk
        self.etc = asterisk.folder / "etc"
        self._before = {path: path.read_bytes() for path in self.etc.iterdir() if path.is_file()}

    def conf(self, content: bytes, name: str = "migrated.conf") -> str:
        """Include a file in extensions.conf; return the whole dialplan as Asterisk shows it."""
        (self.etc / name).write_bytes(content)
        with (self.etc / "extensions.conf").open("a") as main:
            main.write(f"\n#include {name}\n")
        self._asterisk.cli("dialplan reload")
        return self._asterisk.cli("dialplan show")

    def other(self, language: str, text: str) -> str:
        """Load extensions.ael or extensions.lua."""
        if not (self._asterisk.installation.modules / f"pbx_{language}.so").exists():
            pytest.skip(f"this build of Asterisk has no pbx_{language}.so")
        (self.etc / f"extensions.{language}").write_text(text)
        for module in ("res_ael_share", f"pbx_{language}"):
            self._asterisk.cli(f"module load {module}.so")
        return self._asterisk.cli("dialplan show")

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.etc.iterdir():
            if path.is_file() and path not in self._before:
                path.unlink()
        for path, content in self._before.items():
            path.write_bytes(content)
        for name in ("pbx_ael", "pbx_lua", "res_ael_share"):
            self._asterisk.cli(f"module unload {name}.so")
        self._asterisk.cli("dialplan reload")


async def call(ami: AmiClient, context: str, extension: str) -> tuple[bool, list[Headers]]:
    """Call an extension; return whether the call went on, and the requests that it made."""
    position = len(ami.events)
    local = f"Local/{extension}@{context}"
    await ami.action("Originate", Channel=f"{local}/n", Application="Wait", Data="9", Async="true")
    # The end of the half that runs the dialplan.
    await ami.wait_event(
        lambda headers: (
            headers.get("Event") == "Hangup"
            and headers["Channel"].startswith(local)
            and headers["Channel"].endswith(";2")
        ),
        after=position,
    )
    events = [headers for _, headers in ami.events[position:]]
    went_on = any(headers.get("UserEvent") == "WentOn" for headers in events)
    return went_on, [headers for headers in events if headers.get("UserEvent") == "AudioFork"]


def _decoded(value: str) -> str:
    """Return what the shipped dialplan has encoded: behind a dot, with a byte for each colon."""
    return base64.b64decode(value)[1:].replace(b"\xff", b":").decode()


def fields(request: Headers) -> list[str]:
    """Return what a request asks for: URL, the module's options, command; or the id of a stop."""
    names = ["WsServer", "Options", "PostProcess"]
    if request.get("Command") == "StopAudioFork":
        names = ["AudioForkID"]
    encoded = "Encoding" in request
    values = [request.get(name, "") for name in names]
    decoded = [_decoded(value) if encoded else value for value in values]
    return [value.removesuffix("s(echo)") for value in decoded]


# --- Calls with and without the context ---

CALLS = {
    "plain": ("AudioFork(ws://h:1/a?b=1&c=2,D(out))", ["ws://h:1/a?b=1&c=2", "D(out)", ""]),
    "address": ("AudioFork(ws://[::1]:1/?a=[b]:c)", ["ws://[::1]:1/?a=[b]:c", "", ""]),
    "quoted": ('AudioFork("ws://h/?a=1,2:3?",D(in))', ['"ws://h/?a=1,2:3?"', "D(in)", ""]),
    "escaped": (r"AudioFork(ws://h/?a\,b,D(in))", [r"ws://h/?a\,b", "D(in)", ""]),
    "command": ("AudioFork(ws://h/,,up a:, ^{CHANNEL}?)", ["ws://h/", "", r"up a:\, ^{CHANNEL}?"]),
    "variables": ("AudioFork(${URL},${OPTIONS})", ["ws://v:1/?a=b:c", "D(in)", ""]),
    "condition": ("ExecIf($[${X}=1]?AudioFork(ws://h:1,v(2)):NoOp())", ["ws://h:1", "v(2)", ""]),
    "otherwise": ("ExecIf($[${X}=2]?NoOp():AudioFork(ws://h:1,b))", ["ws://h:1", "b", ""]),
    "tried": ("TryExec(AudioFork(${URL},v(2)))", ["ws://v:1/?a=b:c", "v(2)", ""]),
    "stop": ("StopAudioFork(${ID})", ["0-1"]),
    "stop-all": ("StopAudioFork()", [""]),
}
VARIABLES = {
    "URL": "ws://v:1/?a=b:c",
    "OPTIONS": "D(in)",
    "X": "1",
    "ID": "0-1",
    "AUDIOFORK_WAIT_MS": "20",
}
SETTINGS = [f"Set({name}={value})" for name, value in VARIABLES.items()]


def conf(name: str, line: str) -> str:
    lines = ["Answer()", *SETTINGS, line, WENT_ON, "Hangup()"]
    return f"exten => {name},1," + "\n same => n,".join(lines) + "\n"


def ael(name: str, line: str) -> str:
    assigned = [f"Set({name}={value})" for name, value in VARIABLES.items()]
    lines = ["Answer()", *assigned, line, WENT_ON, "Hangup()"]
    return f"  {name} => {{\n    " + ";\n    ".join(lines) + ";\n  }\n"


def of_conf() -> str:
    return "[conf]\n" + "".join(conf(name, line) for name, (line, _) in CALLS.items())


def of_ael() -> str:
    return "context ael {\n" + "".join(ael(name, line) for name, (line, _) in CALLS.items()) + "}\n"


LUA = """extensions = { lua = { plain = function(context, extension)
  app.answer()
  app.AudioFork("ws://h:1/a?b=1&c=2", "D(out)")
  app.UserEvent("WentOn", "Extension: plain")
  app.hangup()
end } }
"""


def load(loaded: Loaded, language: str) -> list[str]:
    """Load the migrated calls in a language; return the names of their extensions."""
    if language == "conf":
        loaded.conf(migrate_text(of_conf(), Kind.CONF).text.encode())
    elif language == "ael":
        loaded.other(language, migrate_text(of_ael(), Kind.AEL).text)
    else:
        loaded.other(language, migrate_text(LUA, Kind.LUA).text)
        return ["plain"]
    return list(CALLS)


@pytest.mark.parametrize("language", ["conf", "ael", "lua"])
async def test_migrated_calls_ask_for_what_they_asked_for(
    with_context: Asterisk, language: str
) -> None:
    with Loaded(with_context) as loaded:
        names = load(loaded, language)
        async with AmiClient(with_context) as ami:
            for name in names:
                went_on, requests = await call(ami, language, name)
                assert (went_on, [fields(one) for one in requests]) == (True, [CALLS[name][1]]), (
                    name
                )


@pytest.mark.parametrize("language", ["conf", "ael", "lua"])
async def test_migrated_calls_go_on_without_the_context(
    without_context: Asterisk, language: str
) -> None:
    with Loaded(without_context) as loaded:
        names = load(loaded, language)
        async with AmiClient(without_context) as ami:
            for name in names:
                went_on, requests = await call(ami, language, name)
                # Lua asks the daemon itself, without the context.
                assert (went_on, len(requests)) == (True, language == "lua"), name
    if language == "conf":
        await without_context.says("WARNING", "Ext. plain: no context audiofork")


async def test_agi_script_goes_on_without_the_context(without_context: Asterisk) -> None:
    answers: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n")
        for command in (b'GOSUB audiofork start 1 "ws://h/"\n', b"VERBOSE on 1\n"):
            writer.write(command)
            answers.append(await reader.readline())
        writer.close()

    # res_agi needs res_speech, and app_stack tells it of GOSUB when it is loaded.
    for command in ("load res_speech", "load res_agi", "unload app_stack", "load app_stack"):
        without_context.cli(f"module {command}.so")
    async with await asyncio.start_server(script, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with Loaded(without_context) as loaded:
            loaded.conf(f"[agi]\n{conf('agi', f'AGI(agi://127.0.0.1:{port})')}".encode())
            async with AmiClient(without_context) as ami:
                assert await call(ami, "agi", "agi") == (True, [])
    assert answers == [b"200 result=-1 Gosub label not found\n", b"200 result=1\n"]


# --- A dialplan of all sorts of lines ---

ODD = (
    b"\xef\xbb\xbf[odd](!)\r\n"
    b"exten => _[1,2]X,1,AudioFork(ws://h/1)\r\n"
    b" same => n(two),AudioFork(ws://h/2) ; AudioFork(ws://h/never)\r\n"
    b"same=n,AudioFork(ws://h/3)\n"
    b"[odder](odd)\n"
    b"exten = s/5551212,1,AudioFork(ws://h/4)\n"
    b";-- AudioFork(ws://h/never)\n same => n,AudioFork(ws://h/never)\n--;\n"
    b";--- a rule ---;\n"
    b" same => n,GotoIf($[1]?two)\n"
    b" same => n(two),AudioFork(ws://h/5,D(in),echo \xe4)\n"
    b"[odder](+)\n"
    b"exten => _X!,1,NoOp() ;-- AudioFork(ws://h/never) --;\n"
    b"\tsame\t=>\tn,\tAudioFork(ws://h/6)\t\n"
    b"exten=>t,1(a),AudioFork(ws://h/7)"
)


def test_dialplan_of_all_sorts_of_lines_has_a_gosub_for_each_call(
    with_context: Asterisk,
) -> None:
    text = ODD.decode("utf-8", "surrogateescape")
    migration = migrate_text(text, Kind.CONF)
    with Loaded(with_context) as loaded:
        shown = loaded.conf(migration.text.encode("utf-8", "surrogateescape"))
        shown = shown.partition("[ Context 'odder'")[2].partition("[ Context")[0]
    assert "AudioFork" not in shown
    found = re.findall(r"ExecIf\(.*?\?Gosub\(audiofork,start,1\(ws://h/(\w+)", shown)
    assert sorted(found) == list("1234567")
    assert [note for note in migration.notes if note.left] == []


# --- Includes ---

INCLUDES = [
    "#include plain.conf",
    '#include "quoted.conf"',
    "#include <bracketed.conf>",
    '  #Include\t"blanks.conf" ; why',
    "#tryinclude tried.conf",
    "#tryinclude missing.conf",
    "#include sub/*.conf",
    '#include "{left,right}.conf"',
    "#include {folder}/absolute.conf",
    ";#include comment.conf",
    ";--\n#include block.conf\n--;",
    "#exec /bin/false",
]


def test_included_files_are_those_that_asterisk_loads(with_context: Asterisk) -> None:
    names = "plain quoted bracketed blanks tried left right absolute comment block".split()
    names += ["sub/a", "sub/b", "sub/.hidden", "sub/nested"]
    with Loaded(with_context) as loaded:
        (loaded.etc / "sub").mkdir(exist_ok=True)
        for name in names:
            more = "#include sub/nested.txt\n" if name == "sub/a" else ""
            suffix = ".txt" if name == "sub/nested" else ".conf"
            context = f"include-{Path(name).name.lstrip('.')}"
            text = f"{more}[{context}]\nexten => s,1,NoOp()\n"
            (loaded.etc / f"{name}{suffix}").write_text(text)
        lines = [line.replace("{folder}", str(loaded.etc)) for line in INCLUDES]
        shown = loaded.conf("\n".join([*lines, ""]).encode())
        reader = Reader(None)
        reader.read(loaded.etc / "extensions.conf")
        read = {found for file in reader.files for found in contexts(file.text)}
    assert read == set(re.findall(r"Context '(include-\w+)'", shown))
    assert len(read) == 11
    assert reader.errors == []


def contexts(text: str) -> list[str]:
    return re.findall(r"^\[(include-\w+)\]", text, re.M)
