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
from audiofork.errors import BrokerUnavailable
from audiofork.forks.journal import Entry, entry_of_text
from audiofork.forks.sqlite_file import Damaged
from audiofork.log import COMPLAINT_INTERVAL_S, Repeats
from audiofork.text import why

log = logging.getLogger(__name__)

BUCKET = "audiofork-forks"
CHECK_KEY = "check"
"""What `audiofork check` writes to see whether it can, and removes if it may."""
READ_TIMEOUT_S = 5.0
RETRY_S = 0.25
CLOSE_TIMEOUT_S = 1.0
# NATS tells nobody that it has lost what it kept, or that somebody has removed it.
LOOK_INTERVAL_S = 5.0
AT_ONCE = 64


def bucket_of(asterisk: str) -> str:
    """Return the bucket of an Asterisk: that of its own, so that others need not be allowed it."""
    return f"{BUCKET}-{asterisk}"


class ClusterJournal:
    """Keeps entries in a bucket; a fault of the broker never affects a fork.

    What cannot be written waits: the latest entry of each fork. What NATS has lost is written
    again.

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
        self._kept: dict[str, Entry] = {}  # what the bucket has, but for the changes
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
        complaints = Repeats(COMPLAINT_INTERVAL_S, asyncio.get_running_loop().time)
        while self._may_write():
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await self._idle.wait()  # what we have to write comes first
                    bucket, keys = await self._look()
                if not self._idle.is_set():
                    continue
                keys = [key for key in keys if key != CHECK_KEY]
                found = map(_entry, (await self._broker.values(bucket, keys)).values())
                entries = sorted(filter(None, found), key=lambda entry: entry.started)
                self._kept = {entry.fork_id: entry for entry in entries}
                self.works = True
                return entries
            except UNAVAILABLE as exc:
                fault = why(exc) or "no answer"
                if complaints.are_due(fault):
                    log.error("the journal of the cluster cannot be read: %s", fault)
            await asyncio.sleep(RETRY_S)
        return []

    async def _look(self) -> tuple[KeyValue, list[str]]:
        """Return the bucket and its keys; have written again what it has lost.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        expected = self._kept.keys() - self._changes.keys()
        bucket, keys = await self._keys()
        lost = (expected & self._kept.keys()).difference(keys)
        if lost:
            log.error(
                "the journal of the cluster has lost %d running forks: they are written into it "
                "again, from what this controller knows",
                len(lost),
            )
        for fork_id in lost:
            self._change(fork_id, self._kept[fork_id])
        return bucket, keys

    async def _keys(self) -> tuple[KeyValue, list[str]]:
        if self._bucket is not None:
            with contextlib.suppress(BrokerUnavailable):
                return self._bucket, await self._broker.keys(self._name)
        was_there = self._bucket is not None
        self._bucket = await self._broker.bucket(self._name, was_there=was_there)
        return self._bucket, await self._broker.keys(self._name)

    async def _mend(self) -> None:
        """Make the bucket anew where it is gone, with what it has lost."""
        if not self._may_write():
            return
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self._look()
        except UNAVAILABLE as exc:
            log.debug("the journal of the cluster cannot be looked at: %s", why(exc))

    def put(self, entry: Entry) -> None:
        """Write an entry, unless it is there; it replaces one of the same fork. Never waits."""
        if self._kept.get(entry.fork_id) != entry:
            self._kept[entry.fork_id] = entry
            self._change(entry.fork_id, entry)

    def remove(self, fork_id: str) -> None:
        """Remove the entry of a fork, if there is one; never waits."""
        self._kept.pop(fork_id, None)
        self._change(fork_id, None)

    def _change(self, fork_id: str, entry: Entry | None) -> None:
        if fork_id not in self._changes:
            self._order.append(fork_id)
        self._changes[fork_id] = entry
        self._idle.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            if not self._order:
                self._idle.set()
            await self._until_woken()
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
                    await self._mend()

    async def _until_woken(self) -> None:
        """Return when there is something to write; look now and then whether all is there."""
        while not self._wake.is_set():
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                await self._mend()

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
