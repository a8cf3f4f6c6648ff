"""The dialplan of calls whose other party is a WebSocket server, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from testbed.ami import AmiClient, Headers
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import Target, place_call, set_globals

BOT = """
[testbed]
exten => bot-and-copy,1,UserEvent(AudioFork,WsServer: ${COPY_URL},Options: D(in)S)
exten => bot-and-copy,n,Goto(bot,1)
exten => bot-in-time,1,Set(AUDIOFORK_WAIT_MS=1500)
exten => bot-in-time,n,Goto(bot,1)
exten => bot,1,Answer()
 same => n,Gosub(audiofork,connect,1(${BOT_URL},${BOT_OPTIONS}))
 same => n,UserEvent(Back,Status: ${AUDIOFORK_STATUS},Why: ${AUDIOFORK_REASON})
 same => n,Wait(20)
exten => bot-and-next-bot,1,Answer()
 same => n,Gosub(audiofork,connect,1(${BOT_URL},${BOT_OPTIONS}))
 same => n,UserEvent(Back,Status: ${AUDIOFORK_STATUS},Why: ${AUDIOFORK_REASON})
 same => n,Gosub(audiofork,connect,1(${NEXT_BOT_URL}))
 same => n,UserEvent(BackAgain,Status: ${AUDIOFORK_STATUS},Why: ${AUDIOFORK_REASON})
 same => n,Wait(20)
exten => agent,1,UserEvent(Agent)
 same => n,Dial(Local/third@testbed/n)
exten => next,1,UserEvent(Next)
 same => n,Wait(20)
"""


async def went_on(ami: AmiClient) -> Headers:
    """Return the event by which the dialplan says that it goes on after the server."""
    return await ami.wait_event(lambda h: h.get("UserEvent") == "Back")


async def hear(target: Target, last: bytes, noise: Sequence[bytes]) -> None:
    """Let the caller go on with noise until he has heard a payload that comes back from the server.

    Each stall of a busy machine delays all that comes after it. One that does not come at all is
    for the test to find.

    Args:
        target: The call, which is recorded.
        last: The last payload of what counts.
        noise: What he says meanwhile.
    """
    saying = target.call.play(noise, loop=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while last not in target.call.received_audio():  # noqa: ASYNC110 (RTP has no event)
                await asyncio.sleep(0.05)
    saying.cancel()


async def call_bot(ami: AmiClient, caller: SipUser, recorder: Recorder) -> Target:
    """Call the server at the path /bot of a recorder, and talk."""
    await set_globals(ami, BOT_URL=recorder.url("/bot"), BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    target.call.talk()
    return target
