"""Whatever a caller dials and calls himself, the forks of other calls are none of his."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from audiofork.doors.control_client import Client
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.attacks.callers import CONTROL_CHARACTERS, forged_lines, request_parts
from testbed.daemon import (
    Daemon,
    ari_conf,
    asterisk_settings,
    dialplan,
    manager_conf,
)
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.peers import until
from tests.system.conftest import DIALPLAN, Target, no_forks, place_call, set_globals, start_fork

pytestmark = pytest.mark.asterisk

# Each call raises a request, enters a bridge and leaves it, and is hung up.
HOSTILE = """
[testbed]
exten => _[0-9]!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER},Options: D(in))
 same => n,UserEvent(AudioFork,Command: StopAudioFork)
 same => n,UserEvent(AudioFork,Command: AudioForkMute,Direction: both,State: on)
 same => n,UserEvent(Other)
 same => n,Dial(Local/bridged@testbed/n,,L(200))
 same => n,Hangup()

exten => bridged,1,Answer()
 same => n,Wait(5)

; The name of the channel that is forked has what was dialled in it.
exten => _L!,1,Dial(Local/${EXTEN}@named/n)

[named]
exten => _L!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}/event,Options: D(both))
 same => n,Gosub(audiofork,start,1(${WSSERVER}/gosub,D(both)))
 same => n,UserEvent(Returned,Status: ${AUDIOFORK_STATUS})
 same => n,Echo()

; What was dialled is in the URL, as it should not be (G, Q, U, V) and as it should (E, S, W).
[testbed]
exten => _G!,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER}?called=${EXTEN},D(in)))
 same => n,Goto(returned,s,1)
exten => _Q!,1,Answer()
 same => n,Gosub(audiofork,start,1("${WSSERVER}?called=${EXTEN}"))
 same => n,Goto(returned,s,1)
exten => _U!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}?called=${EXTEN},Options: D(in))
 same => n,Goto(asked,s,1)
exten => _E!,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER}?called=${URIENCODE(${EXTEN})},D(in)))
 same => n,Goto(returned,s,1)
exten => _S!,1,Answer()
 same => n,UserEvent(AudioFork,Options: D(in),WsServer: ${WSSERVER}?called=${URIENCODE(${EXTEN})})
 same => n,Goto(asked,s,1)
exten => _V!,1,Answer()
 same => n,Set(AUDIOFORK_URL=${WSSERVER}?called=${EXTEN})
 same => n,Set(AUDIOFORK_OPTIONS=D(in))
 same => n,Gosub(audiofork,start,1())
 same => n,Goto(returned,s,1)
exten => _W!,1,Answer()
 same => n,Set(AUDIOFORK_URL=${WSSERVER}?called=${URIENCODE(${EXTEN})})
 same => n,Set(AUDIOFORK_OPTIONS=D(in))
 same => n,Gosub(audiofork,start,1())
 same => n,Goto(returned,s,1)

; An agent whose call is forked, and who talks to others: their numbers stay on his channel.
exten => agent,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER}/agent,D(in)))
 same => n(talking),Wait(0.1)
 same => n,GotoIf($["${STEP}" = "talk"]?talking)
 same => n,Gosub(audiofork,mute,1(read,on))
 same => n,UserEvent(Muted)
 same => n(muted),Wait(0.1)
 same => n,GotoIf($["${STEP}" = "mute"]?muted)
 same => n,Gosub(audiofork,stop,1(${AUDIOFORK_ID}))
 same => n,UserEvent(AfterStop,Status: ${AUDIOFORK_STATUS})
 same => n,Wait(600)
exten => meet,1,Answer()
 same => n,Bridge(${AGENT})

[returned]
exten => s,1,UserEvent(Returned,Status: ${AUDIOFORK_STATUS},Reason: ${AUDIOFORK_REASON})
 same => n,Wait(5)

[asked]
exten => s,1,Set(polls=20)
 same => n(poll),Wait(0.1)
 same => n,Set(polls=$[${polls} - 1])
 same => n,GotoIf($["${AUDIOFORK_STATUS}" = "STREAMING" | "${AUDIOFORK_STATUS}" = "FAILED"]?done)
 same => n,GotoIf($[${polls} > 0]?poll)
 same => n(done),Goto(returned,s,1)

"""
# Callers of any name are let in.
ANYBODY = {
    "modules.conf": "load = res_pjsip_endpoint_identifier_ip.so\n",
    "pjsip.conf": """
[global](+)
endpoint_identifier_order = ip,username

[anybody]
type = identify
endpoint = caller
match = 127.0.0.1
""",
}
EMPTY_LINES_COME = "[cntrl:]]{4}"
UNFILTERED = "unfiltered"


def unfiltered_user() -> str:
    """Return the AMI user of an earlier release: nothing holds back events with an empty line."""
    lines = manager_conf().replace("[audiofork]", f"[{UNFILTERED}]").splitlines()
    return "\n".join(line for line in lines if EMPTY_LINES_COME not in line) + "\n"


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {
        **ANYBODY,
        "manager.conf": manager_conf() + unfiltered_user(),
        "ari.conf": ari_conf(),
    }
    with Asterisk(dialplan=DIALPLAN + HOSTILE + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module", params=["audiofork", UNFILTERED])
def settings(request: pytest.FixtureRequest, asterisk: Asterisk) -> dict[str, str]:
    user = f"username = {request.param}\nchanspy_pairs = narrowband\n"
    security = "allow_post_process = yes\n"
    return {"asterisk": asterisk_settings(asterisk) + user, "security": security}


@dataclass
class Victim:
    """A call of somebody else, with a fork of which every frame is wanted."""

    target: Target
    daemon: Daemon
    recorder: Recorder

    @property
    def uniqueid(self) -> str:
        return self.target.uniqueid

    def forks(self) -> list[dict[str, Any]]:
        """Return the forks on this call."""
        with Client(self.daemon.socket) as client:
            return [fork for fork in client.forks() if fork["uniqueid"] == self.uniqueid]

    async def check(self) -> None:
        """Fail unless the call has the one fork, which streams on and is not silent."""
        (fork,) = await asyncio.to_thread(self.forks)
        assert fork["state"] == "streaming"
        recording = self.recorder.at("/victim")[0]
        await self.recorder.wait_messages("/victim", len(recording.messages) + 5)
        assert any(any(message) for message in recording.messages[-25:])


@asynccontextmanager
async def victim_of(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> AsyncIterator[Victim]:
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/victim"), "D(in)")
    recording = await recorder.wait_messages("/victim", 5)
    victim = Victim(target, daemon, recorder)
    yield victim
    await victim.check()
    assert len(recorder.at("/victim")) == 1
    assert max(after - before for before, after in pairwise(recording.times)) < 1
    await target.call.hangup()


async def call_as(
    asterisk: Asterisk, number: str, username: str = "caller", name: str = ""
) -> None:
    """Place a hostile call, see it through its dialplan, and hang up."""
    server = ("127.0.0.1", asterisk.sip_port)
    async with SipUser(username, server, display_name=name) as hostile:
        call = await hostile.call(number)
        call.talk()
        await call.wait_ended(5)


async def test_number_that_was_dialled_is_no_header(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, WSSERVER=recorder.url("/hostile"))
    async with victim_of(daemon, ami, caller, recorder) as victim:
        for tail in forged_lines(victim.uniqueid):
            await call_as(asterisk, quote(f"1{tail}", safe=""))
            await victim.check()


async def test_number_of_the_caller_is_no_header(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, WSSERVER=recorder.url("/hostile"))
    async with victim_of(daemon, ami, caller, recorder) as victim:
        for tail in forged_lines(victim.uniqueid):
            await call_as(asterisk, "1", username=quote(f"1{tail}", safe=""))
            await victim.check()


async def test_name_of_the_caller_is_no_header(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, WSSERVER=recorder.url("/hostile"))
    async with victim_of(daemon, ami, caller, recorder) as victim:
        for name in forged_lines(victim.uniqueid):
            for written in (quote(name, safe=""), name.replace("\r\n", "\\r\\n")):
                await call_as(asterisk, "1", name=f'"{written}" ')
        await victim.check()


@pytest.mark.parametrize("way", "GQUVESW")
async def test_what_was_dialled_becomes_no_field_of_a_request(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, way: str
) -> None:
    made = Path(tempfile.mkdtemp(prefix="a")) / "f"  # a number has 79 characters at most
    async with Recorder() as meant, Recorder() as elsewhere:
        await set_globals(ami, WSSERVER=meant.url("/"))
        for tail in request_parts(elsewhere.url("/"), made):
            position = len(ami.events)
            number = f"{way}1{tail}"
            assert len(number) < 80
            call = await caller.call(quote(number, safe=""))
            call.talk()
            returned = await ami.wait_user_event("Returned", after=position)
            # In E a parenthesis takes the options along, and so remains without.
            if way in "SW" or (way == "E" and tail != "("):
                assert returned["Status"] == "STREAMING"
                path = meant.recordings[-1].path
                assert parse_qs(urlsplit(path).query, keep_blank_values=True) == {
                    "called": [number]
                }
            await call.hangup()
        await no_forks(daemon)
        assert elsewhere.recordings == []
        assert not made.exists()
        made.parent.rmdir()


@pytest.mark.parametrize("part", ["1", *CONTROL_CHARACTERS], ids=ascii)
async def test_name_of_a_channel_is_shown_without_control_characters(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    part: str,
) -> None:
    """The fork works, asked for by the dialplan and by uniqueid, and nobody sees them."""
    await set_globals(ami, WSSERVER=recorder.url(""))
    position, log_begin = len(ami.events), len(daemon.log())
    call = await caller.call("L" + quote(part, safe=""))
    call.talk()
    local = await ami.wait_event(
        lambda event: event.get("Event") == "Newchannel" and event["Channel"].startswith("Local/"),
        after=position,
    )
    with Client(daemon.socket) as client:
        await asyncio.to_thread(
            client.start, local["Uniqueid"], recorder.url("/uniqueid"), Options="D(both)"
        )
        is_forged = "Uniqueid" in part  # what his channel tells by events is dropped then
        for path in ("/uniqueid",) if is_forged else ("/uniqueid", "/event", "/gosub"):
            await recorder.wait_messages(path, 3)
        forks = await asyncio.to_thread(client.forks)
    assert {fork["state"] for fork in forks} == {"streaming"}
    assert all(fork["channel"].isprintable() for fork in forks)
    assert any(fork["channel"].startswith("Local/L") for fork in forks)
    await call.hangup()
    await ami.wait_user_event("AudioForkStopped", after=position, Uniqueid=local["Uniqueid"])
    events = [event for _, event in ami.events[position:]]
    ours = [event for event in events if event.get("UserEvent", "").startswith("AudioFork")]
    for event in ours:
        if event["UserEvent"] != "AudioFork":  # that is the request, with its snapshot
            assert all(value.isprintable() for value in event.values()), event
    log = daemon.log()[log_begin:]
    assert all(line.isprintable() for line in log.split("\n"))
    assert "Fatal error" not in log


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("e%0d%0aUniqueid: 9.9", id="line-end"),
        pytest.param("e%0d%0a%0d%0aXYZ", id="empty-line"),
        pytest.param("e%1b%1b", id="held-back"),
        pytest.param("J%c3%bcrgen, (x)%22", id="honest"),
    ],
)
async def test_who_was_bridged_to_a_channel_keeps_no_request_of_its_dialplan_from_the_daemon(
    daemon: Daemon, asterisk: Asterisk, ami: AmiClient, caller: SipUser, name: str
) -> None:
    async with (
        Recorder() as recorder,
        SipUser(quote(name, safe="%"), ("127.0.0.1", asterisk.sip_port)) as other,
    ):
        await set_globals(ami, WSSERVER=recorder.url("").rstrip("/"), STEP="talk")
        agent = await place_call(ami, caller, "agent")
        agent.call.talk()
        recording = await recorder.wait_messages("/agent", 5)
        await set_globals(ami, AGENT=agent.channel)
        met = await other.call("meet")
        for _ in range(100):
            if await ami.variable(agent.channel, "CONNECTEDLINE(num)"):
                break
            await asyncio.sleep(0.05)
        await met.hangup()
        await set_globals(ami, STEP="mute")
        await ami.wait_user_event("Muted")
        await until(lambda: recording.messages[-1] == bytes(320))
        await set_globals(ami, STEP="stop")
        after = await ami.wait_user_event("AfterStop")
        assert after["Status"] == "STOPPED"
        await agent.call.hangup()
