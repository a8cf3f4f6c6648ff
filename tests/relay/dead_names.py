"""Looks names up by a DNS server that answers few; run by test_lookup.py in a machine of its own.

That is a network and a mount namespace: the server has port 53 there, and resolv.conf names it.
Prints a line for each thing that was found out.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct

import uvloop

from audiofork.relay.lookup import KEPT_S, Lookups
from testbed.name_server import NameServer

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


async def main() -> None:
    async with NameServer("good.example") as server:
        finder = Lookups()
        dead = [asyncio.create_task(finder.find(f"h{n}.dead.example")) for n in range(50)]
        while len(server.asked) < 50:  # noqa: ASYNC110 (the server is another's)
            await asyncio.sleep(0.01)
        same = await asyncio.gather(*(finder.find("a.good.example") for _ in range(30)))
        print("addresses:", {info[4][0] for infos in same for info in infos})
        print("asked once:", server.asked["a.good.example"] == 1)
        print("localhost:", (await finder.find("localhost"))[0][4][0] in ("127.0.0.1", "::1"))
        print("before those:", not any(task.done() for task in dead))
        server.address = "127.0.0.2"
        await asyncio.sleep(KEPT_S + 0.1)
        print("later:", {info[4][0] for info in await finder.find("a.good.example")})
        print("still without an answer:", not any(task.done() for task in dead), flush=True)
        for task in dead:
            task.cancel()


if __name__ == "__main__":
    bring_up_loopback()
    uvloop.run(main())
