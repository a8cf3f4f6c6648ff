"""What callers choose is found where it stands bare in a request of a dialplan, and there alone."""

from __future__ import annotations

import pytest

from audiofork.commands.caller_data import bare


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("Gosub(audiofork,start,1(ws://h/${EXTEN},D(in)))", ["EXTEN"]),
        ("Gosub(audiofork,start,1(ws://h/${EXTEN:1},D(in)))", ["EXTEN"]),
        ("Gosub(audiofork,start,1(ws://h/${CALLERID(name)},${CALLERID(num)}))", ["CALLERID"]),
        ("Gosub(audiofork,start,1(ws://h/${TOUPPER(${EXTEN})}))", ["EXTEN"]),
        ("Gosub(audiofork,start,1(ws://h/${IF($[1=1]?${EXTEN}:x)}))", ["EXTEN"]),
        ("GosubIf($[1=1]?audiofork,start,1(ws://h/${PJSIP_HEADER(read,X-A)}))", ["PJSIP_HEADER"]),
        ("ExecIf($[1=1]?Gosub(audiofork,start,1(ws://h/${EXTEN})))", ["EXTEN"]),
        (
            "ExecIf(${DIALPLAN_EXISTS(audiofork,start,1)}?Gosub(audiofork,start,1(ws://h/${EXTEN}))"
            ":Log(WARNING,no context audiofork))",
            ["EXTEN"],
        ),
        ("UserEvent(AudioFork,WsServer: ws://h/${CONNECTEDLINE(num)})", ["CONNECTEDLINE"]),
        ("UserEvent( audiofork ,WsServer: ws://h/${DIALEDPEERNUMBER})", ["DIALEDPEERNUMBER"]),
        ("UserEvent(AudioFork,WsServer: ws://h/${SIP_HEADER(X)}${EXTEN})", ["SIP_HEADER", "EXTEN"]),
        ("Gosub(audiofork,start,1(ws://h/${URIENCODE(${A})}${EXTEN}))", ["EXTEN"]),
        ("Set(AUDIOFORK_POST_PROCESS=/opt/upload ${EXTEN})", ["EXTEN"]),
        ("Set(__AUDIOFORK_OPTIONS=D(${CALLERID(num)}))", ["CALLERID"]),
        # None of it can have a comma, or it is none of a caller, or in no request.
        ("Gosub(audiofork,start,1(ws://h/${URIENCODE(${EXTEN})},D(in)))", []),
        ("Gosub(audiofork,start,1(ws://h/${BASE64_ENCODE(${CALLERID(name)})}))", []),
        ("Gosub(audiofork,start,1(ws://h/${FILTER(0-9,${EXTEN})}))", []),
        ("Gosub(audiofork,start,1(ws://h/${UNIQUEID}))", []),
        ("Gosub(audiofork,start,1())", []),
        ("ExecIf(${DIALPLAN_EXISTS(audiofork,start,1)}?Gosub(audiofork,start,1()))", []),
        ("Gosub(audiofork,stop,1(${AUDIOFORK_ID}))", []),
        ("Gosub(audiofork,start,1(ws://h/,D(in),x ^{CALLERID(num)}))", []),
        ("Gosub(other,start,1(${EXTEN}))", []),
        ("UserEvent(AudioForkX,a: ${EXTEN})", []),
        ("Set(AUDIOFORK_URL=ws://h/${EXTEN})", []),
        ("Gosub(audiofork,start,1(}}]]${EXTEN", ["EXTEN"]),
    ],
)
def test_what_a_caller_chooses_is_found(line: str, names: list[str]) -> None:
    application, _, data = line.partition("(")
    assert bare(application, data.removesuffix(")")) == names
