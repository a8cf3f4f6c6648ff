"""Measures what foreign AMI events cost the daemon: CPU time, and delay of a fork's start.

    python -m bench.ami_flood [--rate 2000] [--seconds 10] [--starts 20]

A private Asterisk runs dialplan loops that raise so many events a second. The daemon is measured
without them, then with them: behind the filters of the shipped AMI user, and without filters.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import SECRET, Daemon, manager_conf
from testbed.recorder import Recorder

# A turn of the loop raises 6 events: 4 Newexten, 1 VarSet, 1 UserEvent. Many small turns, as of
# many calls: events that come together are read together, and cost less.
LOOP_EVENTS_A_SECOND = 580  # as measured; the table tells what came
DIALPLAN = """
[target]
exten => s,1,Answer()
 same => n,Wait(3600)

[flood]
exten => s,1,Answer()
 same => n(turn),Wait(0.01)
 same => n,Set(FLOOD=${EPOCH})
 same => n,UserEvent(Foreign,Note: of no use here)
 same => n,Goto(turn)
"""
# A user as one would write it who has not heard of filters.
UNFILTERED = f"[unfiltered]\nsecret = {SECRET}\nread = all\nwrite = all\nwritetimeout = 5000\n"
TARGET = "bench-target"


async def originate(ami: AmiClient, context: str, uniqueid: str) -> None:
    """Let a Local channel run the context; its other half waits."""
    answer = await ami.action(
        "Originate",
        Channel=f"Local/s@{context}/n",
        ChannelId=uniqueid,
        Application="Wait",
        Data="3600",
        Async="true",
    )
    assert answer["Response"] == "Success", answer


async def event_rate(asterisk: Asterisk, seconds: float) -> float:
    """Return how many events a second an AMI user without filters is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", asterisk.ami_port)
    login = f"Action: Login\r\nUsername: unfiltered\r\nSecret: {SECRET}\r\n\r\n"
    writer.write(login.encode())
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65536):
                received += chunk
    except TimeoutError:
        pass
    writer.close()
    return received.count(b"\r\n\r\nEvent: ") / seconds


async def start_delays(ami: AmiClient, recorder: Recorder, starts: int) -> list[float]:
    """Start forks one after another; return the seconds from each request to its first message."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    for _ in range(starts):
        path = f"/{len(recorder.recordings)}"
        began = loop.time()
        ami.send("UserEvent", UserEvent="AudioFork", Uniqueid=TARGET, WsServer=recorder.url(path))
        recording = await recorder.wait_messages(path, 1)
        delays.append(recording.times[0] - began)
        ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Uniqueid=TARGET)
        await recorder.wait_closed(path)
    return delays


@contextmanager
def running(asterisk: Asterisk, username: str) -> Iterator[Daemon]:
    """Run the daemon as an AMI user."""
    link = f"port = {asterisk.ami_port}\nusername = {username}\nsecret = {SECRET}\n"
    with Daemon(asterisk, {"asterisk": link}) as daemon:
        yield daemon


async def measure(asterisk: Asterisk, name: str, username: str, seconds: float, starts: int) -> str:
    """Return one row of the table."""
    rate = await event_rate(asterisk, 2)
    async with AmiClient(asterisk) as ami, Recorder() as recorder:
        await ami.action("Events", EventMask="off")
        with running(asterisk, username) as daemon:
            used_s = daemon.cpu_s()
            await asyncio.sleep(seconds)
            cpu_percent = 100 * (daemon.cpu_s() - used_s) / seconds
            delays = [1000 * delay for delay in await start_delays(ami, recorder, starts)]
    return (
        f"{name:20}{rate:9.0f}{cpu_percent:11.1f}"
        f"{statistics.median(delays):14.0f}{max(delays):11.0f}"
    )


async def run(rate: int, seconds: float, starts: int) -> None:
    """Print the table."""
    config = {"manager.conf": manager_conf() + UNFILTERED}
    with Asterisk(dialplan=DIALPLAN, config=config) as asterisk:
        async with AmiClient(asterisk) as ami:
            await ami.action("Events", EventMask="off")
            await originate(ami, "target", TARGET)
            print(f"{'':20}{'events/s':>9}{'% of core':>11}{'start ms, p50':>14}{'max':>11}")
            print(await measure(asterisk, "no flood", "unfiltered", seconds, starts))
            for number in range(math.ceil(rate / LOOP_EVENTS_A_SECOND)):
                await originate(ami, "flood", f"bench-flood-{number}")
            await asyncio.sleep(1)  # Asterisk answers before the channels run
            print(await measure(asterisk, "flood, filtered", "audiofork", seconds, starts))
            print(await measure(asterisk, "flood, unfiltered", "unfiltered", seconds, starts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--starts", type=int, default=20)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.rate, arguments.seconds, arguments.starts))
