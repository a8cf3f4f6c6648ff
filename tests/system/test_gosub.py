"""The Gosub of the documentation, where all of it is there, and where some of it is missing."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.daemon import dialplan

pytestmark = pytest.mark.asterisk

ROOT = Path(__file__).parents[2]
START = "${DIALPLAN_EXISTS(audiofork,start,1)}"
FORM = "ExecIf(" + START + "?Gosub(audiofork,start,1(%s)):Log(WARNING,no context audiofork))"
# What stands between the parentheses, and what the daemon is sent.
ARGUMENTS = [
    ("ws://127.0.0.1:8080/,D(both)", ["ws://127.0.0.1:8080/", "D(both)", ""]),
    ("ws://h:1/a?b=1&c=2:3?d=4,D(in)v(2),@up", ["ws://h:1/a?b=1&c=2:3?d=4", "D(in)v(2)", "@up"]),
    ('"ws://h:1/?a=1,2:3?",D(in)', ['"ws://h:1/?a=1,2:3?"', "D(in)", ""]),
    ("ws://[::1]:8080/?a=[b]:c,D(in)", ["ws://[::1]:8080/?a=[b]:c", "D(in)", ""]),
    ("wss://h/,,/opt/up a: ^{CHANNEL}?", ["wss://h/", "", "/opt/up a: ^{CHANNEL}?"]),
    ("wss://h/,,/opt/up a\\, b", ["wss://h/", "", "/opt/up a\\, b"]),
    ("", ['ws://v:1/?a,b)c:1:d("', "D(both)", ""]),
]


def extension(name: str, line: str) -> str:
    """Return an extension that runs a line, and tells whether its call went on."""
    lines = [
        "Answer()",
        "Set(AUDIOFORK_WAIT_MS=20)",
        'Set(AUDIOFORK_URL=ws://v:1/?a,b)c:1:d(")',
        "Set(AUDIOFORK_OPTIONS=D(both))",
        line,
        f"UserEvent(WentOn,Extension: {name})",
        "Hangup()",
    ]
    return f"exten => {name},1," + "\n same => n,".join(lines) + "\n"


def documented() -> list[str]:
    """Return the lines of the documentation that fork or end a fork from the dialplan."""
    found: list[str] = []
    for name in ("docs/usage.md", "etc/asterisk/extensions_audiofork.conf"):
        found += re.findall(r"(?m)^(?:;   same => n,| {4})(ExecIf\(.*)$", (ROOT / name).read_text())
    assert len(found) > 8
    return list(dict.fromkeys(found))


DIALPLAN = "[testbed]\n" + "".join(
    [
        *(extension(f"form{n}", FORM % given) for n, (given, _) in enumerate(ARGUMENTS)),
        *(extension(f"doc{n}", line) for n, line in enumerate(documented())),
        extension("bare", "Gosub(audiofork,start,1(ws://h/))"),
    ]
)


@pytest.fixture(scope="module")
def whole() -> Iterator[Asterisk]:
    with Asterisk(dialplan=DIALPLAN + dialplan()) as one:
        yield one


@pytest.fixture(scope="module")
def without_context() -> Iterator[Asterisk]:
    with Asterisk(dialplan=DIALPLAN) as one:
        yield one


async def call(ami: AmiClient, name: str) -> tuple[bool, list[Headers]]:
    """Call an extension; return whether the call went on, and the requests that it made."""
    position = len(ami.events)
    channel = f"Local/{name}@testbed/n"
    await ami.action("Originate", Channel=channel, Application="Wait", Data="9", Async="true")
    # The end of the half that runs the dialplan.
    await ami.wait_event(
        lambda headers: (
            headers.get("Event") == "Hangup"
            and headers["Channel"].startswith(f"Local/{name}@")
            and headers["Channel"].endswith(";2")
        ),
        after=position,
    )
    events = [headers for _, headers in itertools.islice(ami.events, position, None)]
    went_on = any(headers.get("UserEvent") == "WentOn" for headers in events)
    return went_on, [headers for headers in events if headers.get("UserEvent") == "AudioFork"]


@pytest.mark.parametrize("number", range(len(ARGUMENTS)))
async def test_arguments_come_to_the_daemon_as_by_a_bare_gosub(
    whole: Asterisk, number: int
) -> None:
    async with AmiClient(whole) as ami:
        went_on, (request,) = await call(ami, f"form{number}")
    assert went_on
    fields = [request[name] for name in ("WsServer", "Options", "PostProcess")]
    assert [base64.b64decode(field)[1:] for field in fields] == [
        text.encode().replace(b":", b"\xff") for text in ARGUMENTS[number][1]
    ]


async def test_each_line_of_the_documentation_makes_its_request(whole: Asterisk) -> None:
    async with AmiClient(whole) as ami:
        for number in range(len(documented())):
            went_on, requests = await call(ami, f"doc{number}")
            assert (went_on, len(requests)) == (True, 1), documented()[number]


async def test_without_the_context_each_call_goes_on_and_asterisk_logs_why(
    without_context: Asterisk,
) -> None:
    async with AmiClient(without_context) as ami:
        assert await call(ami, "bare") == (False, [])  # what the form is there for
        for number in range(len(documented())):
            assert await call(ami, f"doc{number}") == (True, []), documented()[number]
        assert await call(ami, "form0") == (True, [])
    await without_context.says("WARNING", "Ext. form0: no context audiofork")


async def test_without_func_dialplan_the_call_goes_on_and_asterisk_logs_why(
    whole: Asterisk,
) -> None:
    assert "Unloaded" in whole.cli("module unload func_dialplan.so")
    try:
        async with AmiClient(whole) as ami:
            assert await call(ami, "form0") == (True, [])
    finally:
        whole.cli("module load func_dialplan.so")
    await whole.says("Function DIALPLAN_EXISTS not registered", "no context audiofork")
