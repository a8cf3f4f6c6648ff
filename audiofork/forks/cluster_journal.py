"""The journal of a cluster: the running forks in a bucket that NATS keeps, for the next leader."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

from nats.js.kv import KeyValue

from audiofork.cluster.broker import UNAVAILABLE, Broker
from audiofork.forks.journal import Entry, entry_of_text
from audiofork.forks.sqlite_file import Damaged
from audiofork.text import why

log = logging.getLogger(__name__)

BUCKET = "audiofork-forks"
READ_TIMEOUT_S = 5.0
RETRY_S = 0.25
CLOSE_TIMEOUT_S = 1.0
AT_ONCE = 64


def bucket_of(asterisk: str) -> str:
    """Return the bucket of an Asterisk: that of its own, so that others need not be allowed it."""
    return f"{BUCKET}-{asterisk}"


class ClusterJournal:
    """Keeps entries in a bucket; a fault of the broker never affects a fork.

    What cannot be written waits: the latest entry of each fork.

    Args:
        broker: The connection to the broker.
        asterisk: The name of the Asterisk.
        may_write: Returns whether we lead; if not, what is to be written waits as well.
    """

    def __init__(self, broker: Broker, asterisk: str, may_write: Callable[[], bool]) -> None:
        self._broker = broker
        self._may_write = may_write
        self._name = bucket_of(asterisk)
        self._bucket: KeyValue | None = None
        self._found: dict[str, Entry] = {}  # as read, and not changed since
        self._changes: dict[str, Entry | None] = {}
        self._order: deque[str] = deque()
        self._wake = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self.works = False

    async def open(self) -> list[Entry]:
        self._writing = asyncio.create_task(self._write())
        return await self.read()

    async def read(self) -> list[Entry]:
        """Return the entries that an earlier leader left, or this one, oldest first.

        Waits until they can be read, as without them all forks that go on would end; returns none
        when we do not lead any more.
        """
        while self._may_write():
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await self._idle.wait()  # what we have to write comes first
                    self._bucket = await self._broker.bucket(self._name)
                    keys = await self._broker.keys(self._name)
                found = map(_entry, (await self._broker.values(self._bucket, keys)).values())
                entries = sorted(filter(None, found), key=lambda entry: entry.started)
                self._found = {entry.fork_id: entry for entry in entries}
                self.works = True
                return entries
            except UNAVAILABLE as exc:
                log.error("the journal of the cluster cannot be read: %s", why(exc) or "no answer")
            await asyncio.sleep(RETRY_S)
        return []

    def put(self, entry: Entry) -> None:
        """Write an entry, unless it was read so; it replaces one of the same fork. Never waits."""
        if self._found.get(entry.fork_id) != entry:
            self._change(entry.fork_id, entry)

    def remove(self, fork_id: str) -> None:
        """Remove the entry of a fork, if there is one; never waits."""
        self._change(fork_id, None)

    def _change(self, fork_id: str, entry: Entry | None) -> None:
        self._found.pop(fork_id, None)
        if fork_id not in self._changes:
            self._order.append(fork_id)
        self._changes[fork_id] = entry
        self._idle.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            if not self._order:
                self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            while self._order:
                if not self._may_write():
                    await asyncio.sleep(RETRY_S)
                    continue
                count = min(AT_ONCE, len(self._order))
                fork_ids = [self._order.popleft() for _ in range(count)]
                changes = {fork_id: self._changes.pop(fork_id) for fork_id in fork_ids}
                await asyncio.gather(*(self._write_one(*change) for change in changes.items()))
                if not self.works:
                    await asyncio.sleep(RETRY_S)

    async def _write_one(self, fork_id: str, entry: Entry | None) -> None:
        try:
            if self._bucket is None:
                self._bucket = await self._broker.bucket(self._name)
            if entry is None:
                await self._broker.remove(self._name, fork_id)
            else:
                await self._bucket.put(fork_id, json.dumps(asdict(entry)).encode())
        except UNAVAILABLE as exc:
            if self.works:
                log.warning("the journal of the cluster cannot be written: %s", why(exc) or "late")
            self.works = False
            if fork_id not in self._changes:
                self._change(fork_id, entry)
        else:
            if not self.works:
                log.warning("the journal of the cluster works again")
            self.works = True

    async def close(self) -> None:
        """Write all waiting changes, if we lead; waits at most CLOSE_TIMEOUT_S."""
        if self._writing is None:
            return
        if self._may_write():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._idle.wait()
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)


def _entry(value: bytes) -> Entry | None:
    """Return an entry; None: it is none."""
    try:
        return entry_of_text(value)
    except Damaged as exc:
        log.error("an entry of the journal is passed over: %s", exc)
        return None
