"""Who leads: a key that its holder renews, and that others may take when it does not.

No wall clock counts: each side measures with its own monotonic clock how long ago it has seen the
key change. The holder stops to trust it before anybody else may take it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from audiofork.cluster.broker import FAULTS
from audiofork.reading_json import parsed_json
from audiofork.text import printable, why

log = logging.getLogger(__name__)

BUCKET = "audiofork-leases"
# Of the time after which others may take it.
_TRUSTED_PART = 0.8
_RENEWALS = 5
# What is seen late is taken late: who waits looks more often than the holder renews.
_LOOKS = 12

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease.

    Attributes:
        name: Of the controller, for people.
        run_id: Distinguishes its runs.
    """

    name: str
    run_id: str

    @classmethod
    def of(cls, value: bytes | None) -> Holder | None:
        """Return the holder in a value; None: it cannot be read, or nobody holds it."""
        try:
            fields = parsed_json(value or b"")
            return cls(printable(str(fields["name"])[:63], "?"), str(fields["run_id"])[:63])
        except (ValueError, TypeError, KeyError):
            return None

    def encode(self) -> bytes:
        return json.dumps({"name": self.name, "run_id": self.run_id}).encode()


class Lease:
    """One lease, from the view of one controller.

    Args:
        bucket: Has the key.
        key: What is led: the name of an Asterisk.
        holder: This controller.
        dead_after_s: How long the key may stay as it is until others take it.
        clock: Returns the time in seconds.

    Attributes:
        epoch: The number of this leadership, greater than each before; 0: there was none.
        renewed_at: When the latest renewal that succeeded was begun, by the clock.
        leader: Who holds it, as far as known.
    """

    def __init__(
        self,
        bucket: KeyValue,
        key: str,
        holder: Holder,
        dead_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._holder = holder
        self._dead_after_s = dead_after_s
        self._clock = clock
        self._revision = 0
        self.epoch = 0
        self.renewed_at = -1e9
        self.leader: Holder | None = None
        self._unanswered_since: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the bucket has not answered for longer than a busy one takes."""
        since = self._unanswered_since
        return since is not None and self._clock() - since > 2 * self._dead_after_s

    @property
    def is_held(self) -> bool:
        """Whether nobody else can hold it now."""
        return self._clock() < self.renewed_at + _TRUSTED_PART * self._dead_after_s

    async def take(self) -> None:
        """Return when it is ours."""
        seen, seen_at = -1, self._clock()
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._dead_after_s):
                    revision = await self._look()
                    if revision != seen and self.leader is not None:  # else nobody has renewed it
                        seen, seen_at = revision, self._clock()
                    free = revision == 0 or self._clock() - seen_at > self._dead_after_s
                    if free and await self._write(revision):
                        self.epoch = self._revision
                        self.renewed_at = began
                        return
            except FAULTS as exc:
                log.debug("the lease of %s cannot be read: %s", self._key, why(exc))
                seen, seen_at = -1, self._clock()  # what happened meanwhile is not known
            left_s = max(0.001, seen_at + self._dead_after_s - self._clock())
            await asyncio.sleep(min(left_s, self._dead_after_s / _LOOKS))

    async def keep(self) -> None:
        """Renew it; return when it is lost, or can be trusted no more."""
        while True:
            await asyncio.sleep(self._dead_after_s / _RENEWALS)
            began = self._clock()
            try:
                async with asyncio.timeout(max(0.05, self._left_s())):
                    if not await self._write(self._revision) and not await self._is_still_ours():
                        return
                    self.renewed_at = began
            except FAULTS as exc:
                log.warning("the lease of %s cannot be renewed: %s", self._key, why(exc) or "late")
            if not self.is_held:
                return

    async def regain(self) -> bool:
        """Take it again after `keep` has returned; return False when another has it, or had it.

        It waits for as long as the bucket cannot be asked.
        """
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._dead_after_s):
                    revision = await self._look()
                    if self.leader != self._holder:
                        return False
                    # If it fails, an earlier renewal of ours is on its way still.
                    if await self._write(revision):
                        self.epoch, self.renewed_at = self._revision, began
                        return True
            except FAULTS as exc:
                log.debug("the lease of %s cannot be read: %s", self._key, why(exc))
            await asyncio.sleep(self._dead_after_s / _RENEWALS)

    def _left_s(self) -> float:
        return self.renewed_at + _TRUSTED_PART * self._dead_after_s - self._clock()

    async def _look(self) -> int:
        """Return the revision of the key; 0: nobody holds it."""
        try:
            entry = await self._answered(self._bucket.get(self._key))
        except KeyNotFoundError:
            self.leader = None
            return 0
        self.leader = Holder.of(entry.value)
        return entry.revision or 0

    async def _write(self, revision: int) -> bool:
        """Write ourselves over a revision; return whether nobody else has written meanwhile."""
        try:
            if revision:
                value = self._holder.encode()
                update = self._bucket.update(self._key, value, last=revision)
                self._revision = await self._answered(update)
            else:
                create = self._bucket.create(self._key, self._holder.encode())
                self._revision = await self._answered(create)
        except KeyWrongLastSequenceError:
            return False
        self.leader = self._holder
        return True

    async def _answered(self, question: Awaitable[_Answer]) -> _Answer:
        """Return what the bucket answers, and note whether it does; raises what it raises."""
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()
        try:
            answer = await question
        except (KeyNotFoundError, KeyWrongLastSequenceError):
            self._unanswered_since = None
            raise
        self._unanswered_since = None
        return answer

    async def _is_still_ours(self) -> bool:
        """Return whether the other writer was this one: an answer may have come too late.

        What is no holder is nobody's: whoever may ask NATS can have it write an answer here.
        """
        revision = await self._look()
        if not revision or self.leader not in (self._holder, None):
            return False
        self._revision = revision
        return await self._write(revision)

    async def release(self) -> None:
        """Let another take it at once, if it is ours."""
        if not self.is_held:
            return
        self.renewed_at = -1e9
        try:
            async with asyncio.timeout(self._dead_after_s):
                await self._bucket.delete(self._key, last=self._revision)
        except FAULTS as exc:
            log.warning("the lease of %s was not given back: %s", self._key, why(exc))
