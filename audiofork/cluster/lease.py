"""Who leads: a key that its holder renews, and that others may take when it does not.

No wall clock counts: each side measures with its own monotonic clock how long ago it has seen the
key change. The holder stops to trust it before anybody else may take it.

Each leadership has an epoch, greater than each before. It is the revision of the key where it is
taken, as NATS counts, unless greater ones are known: NATS may have lost what it kept, and count
from 1 again, while relay hosts still obey none below that which they know. Therefore the key has
the epoch in its value, too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NoStreamResponseError
from nats.js.kv import KeyValue

from audiofork.cluster.broker import FAULTS, UNAVAILABLE, Broker
from audiofork.log import CounterLine
from audiofork.reading_json import parsed_json
from audiofork.text import printable, why

log = logging.getLogger(__name__)

BUCKET = "audiofork-leases"
# Of the time after which others may take it.
_TRUSTED_PART = 0.8
_RENEWALS = 5
# What is seen late is taken late: who waits looks more often than the holder renews.
_LOOKS = 12
# A relay host that says that it obeys a greater one is not believed: no cluster comes so far.
MAX_OBEYED_EPOCH = 2**40
# Nor is a key that says more than half of that: whoever leads after it goes beyond what it says,
# and the next leader learns of that from relay hosts at the latest.
_MAX_EPOCH = MAX_OBEYED_EPOCH // 2
# Where NATS counts anew, leaders of what it kept before may come back: none may meet them.
_SPREAD = 2**16

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
        holder = _holder_of(_fields_of(value))
        return holder if holder != _NOBODY else None

    def encode(self, epoch: int = 0) -> bytes:
        """Return the value of the key for this holder."""
        return json.dumps({"name": self.name, "run_id": self.run_id, "epoch": epoch}).encode()


# Who has given it back leaves this, and so the epoch.
_NOBODY = Holder("", "")


def _fields_of(value: bytes | None) -> dict[str, object]:
    try:
        fields = parsed_json(value or b"")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _holder_of(fields: dict[str, object]) -> Holder | None:
    try:
        return Holder(printable(str(fields["name"])[:63], "?"), str(fields["run_id"])[:63])
    except KeyError:
        return None


class _Seen(NamedTuple):
    """What a look at the key has found.

    Attributes:
        revision: Of the key; 0: there is none.
        holder: Who holds it; None: nobody, or what is there cannot be read.
        is_free: Whether anybody may take it at once.
        is_blank: Whether it was never written, as in a bucket that was made anew.
    """

    revision: int
    holder: Holder | None
    is_free: bool
    is_blank: bool = False


class _Health:
    """Notes whether the bucket answers and the lease works, and tells of a fault that lasts, once.

    Args:
        key: The key of the lease.
        lasting_s: How long a fault may be there until it is told.
        clock: Returns the time in seconds.
    """

    def __init__(self, key: str, lasting_s: float, clock: Callable[[], float]) -> None:
        self._key = key
        self._lasting_s = lasting_s
        self._clock = clock
        self._unanswered_since: float | None = None
        self._worked_at = clock()
        self._revision = 0
        self._told = ""

    @property
    def is_silent(self) -> bool:
        """Whether the bucket has not answered for longer than a busy one takes."""
        since = self._unanswered_since
        return since is not None and self._clock() - since > self._lasting_s

    def on_question(self) -> None:
        """Note that the bucket is asked."""
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()

    def on_answer(self) -> None:
        """Note that it has answered."""
        self._unanswered_since = None

    def on_look(self, revision: int) -> None:
        """Note the revision of the key: somebody may have written it since the last look."""
        if revision != self._revision:
            self.on_work()
        self._revision = revision

    def on_work(self) -> None:
        """Note that the key could be written."""
        self._worked_at = self._clock()
        if self._told:
            log.warning("the lease of %s can be used again", self._key)
        self._told = ""

    def on_fault(self, exc: Exception) -> None:
        """Note that it cannot be read or written."""
        text = why(exc) or "no answer"
        log.debug("the lease of %s cannot be used: %s", self._key, text)
        if self._clock() - self._worked_at > self._lasting_s and not self._told:
            self._told = text
            log.error(
                "the lease of %s cannot be used, so nobody leads: %s; `audiofork check` says what "
                "to do",
                *(self._key, text),
            )


class Lease:
    """One lease, from the view of one controller.

    Args:
        bucket: Has the key.
        find_bucket: Returns the bucket, and makes it where it is gone.
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
        find_bucket: Callable[[], Awaitable[KeyValue]],
        key: str,
        holder: Holder,
        dead_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._find_bucket = find_bucket
        self._key = key
        self._holder = holder
        self._dead_after_s = dead_after_s
        self._clock = clock
        self._revision = 0
        self.epoch = 0
        self.renewed_at = -1e9
        self.leader: Holder | None = None
        self._known_epoch = 0  # no leader before us had a greater one
        self._obeyed_epoch = 0
        self._health = _Health(key, 2 * dead_after_s, clock)
        self._outbid = CounterLine(log, f"{key}: relay hosts obeyed a greater epoch")

    @classmethod
    async def of(cls, broker: Broker, key: str, holder: Holder, dead_after_s: float) -> Lease:
        """Return a lease in its bucket, which is made if there is none.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        bucket = await broker.bucket(BUCKET)
        find_bucket = functools.partial(broker.bucket, BUCKET, was_there=True)
        return cls(bucket, find_bucket, key, holder, dead_after_s)

    @property
    def is_silent(self) -> bool:
        """Whether the bucket has not answered for longer than a busy one takes."""
        return self._health.is_silent

    @property
    def is_held(self) -> bool:
        """Whether nobody else can hold it now."""
        return self._clock() < self.renewed_at + _TRUSTED_PART * self._dead_after_s

    def outbid(self, epoch: int) -> None:
        """Have the epoch of our leadership be greater than one that a relay host obeys.

        The next renewal sees to that: it fails where a leader with that epoch holds the lease.
        """
        if epoch <= MAX_OBEYED_EPOCH:
            self._obeyed_epoch = max(self._obeyed_epoch, epoch)

    async def take(self) -> None:
        """Return when it is ours."""
        revision, since = -1, self._clock()
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._dead_after_s):
                    seen = await self._look()
                    if seen.revision != revision and seen.holder is not None:  # else nobody renews
                        revision, since = seen.revision, self._clock()
                    is_free = seen.is_free or self._clock() - since > self._dead_after_s
                    if is_free and await self._begin(seen.revision):
                        self.renewed_at = began
                        return
            except UNAVAILABLE as exc:
                self._health.on_fault(exc)
                revision, since = -1, self._clock()  # what happened meanwhile is not known
            left_s = max(0.001, since + self._dead_after_s - self._clock())
            await asyncio.sleep(min(left_s, self._dead_after_s / _LOOKS))

    async def keep(self) -> None:
        """Renew it; return when it is lost, or can be trusted no more."""
        while True:
            await asyncio.sleep(self._dead_after_s / _RENEWALS)
            began = self._clock()
            try:
                async with asyncio.timeout(max(0.05, self._left_s())):
                    if not await self._renew() and not await self._is_still_ours():
                        return
                    self.renewed_at = began
            except UNAVAILABLE as exc:
                log.warning("the lease of %s cannot be renewed: %s", self._key, why(exc) or "late")
            if not self.is_held:
                return

    async def regain(self) -> bool:
        """Take it again after `keep` has returned; return False when another has it, or had it.

        It waits for as long as the bucket cannot be asked. Where that is gone nobody has led since.
        """
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._dead_after_s):
                    seen = await self._look()
                    if seen.holder != self._holder and not seen.is_blank:
                        return False
                    # If it fails, an earlier renewal of ours is on its way still.
                    if await self._begin(seen.revision):
                        self.renewed_at = began
                        return True
            except UNAVAILABLE as exc:
                self._health.on_fault(exc)
            await asyncio.sleep(self._dead_after_s / _RENEWALS)

    def _left_s(self) -> float:
        return self.renewed_at + _TRUSTED_PART * self._dead_after_s - self._clock()

    async def _look(self) -> _Seen:
        """Look at the key; where the bucket is gone it is made anew.

        A key that is gone may still be somebody's, who has not noticed yet.
        """
        try:
            entry = await self._answered(self._bucket.get(self._key))
        except KeyNotFoundError as exc:
            self.leader, is_free = None, self._known_epoch == 0
            if exc.entry is not None:  # somebody has removed it
                return _Seen(0, None, is_free)
            self._bucket = await self._find_bucket()
            return _Seen(0, None, is_free, is_blank=True)
        revision, fields = entry.revision or 0, _fields_of(entry.value)
        self._health.on_look(revision)
        self._note(max(revision, _epoch_of(fields)))
        self.leader = Holder.of(entry.value)
        return _Seen(revision, self.leader, is_free=_holder_of(fields) == _NOBODY)

    def _note(self, epoch: int) -> None:
        self._known_epoch = max(self._known_epoch, epoch)

    async def _begin(self, revision: int) -> bool:
        """Write ourselves over a revision, with an epoch greater than all known; as `_write`."""
        self._note(self._obeyed_epoch)
        counts_anew = self._known_epoch > revision
        epoch = self._known_epoch + 1 + (random.randrange(_SPREAD) if counts_anew else 0)
        if not await self._write(revision, epoch):
            return False
        self.epoch = max(epoch, self._revision)
        self._note(self.epoch)
        return True

    async def _renew(self) -> bool:
        """Write ourselves over our own revision; as `_write`."""
        if self._obeyed_epoch <= self.epoch:
            return await self._write(self._revision, self.epoch)
        if not await self._begin(self._revision):
            return False
        self._outbid.count(f"{self._obeyed_epoch}, NATS has lost it: ours is {self.epoch} now")
        return True

    async def _write(self, revision: int, epoch: int) -> bool:
        """Write ourselves over a revision; return False if that is not there any more."""
        value = self._holder.encode(epoch)
        try:
            if revision:
                update = self._bucket.update(self._key, value, last=revision)
                self._revision = await self._answered(update)
            else:
                create = self._bucket.create(self._key, value)
                self._revision = await self._answered(create)
        except (KeyWrongLastSequenceError, NoStreamResponseError):
            return False
        self._note(self._revision)
        self._health.on_work()
        self.leader = self._holder
        return True

    async def _answered(self, question: Awaitable[_Answer]) -> _Answer:
        """Return what the bucket answers, and note whether it does; raises what it raises."""
        self._health.on_question()
        try:
            answer = await question
        except (KeyNotFoundError, KeyWrongLastSequenceError):
            self._health.on_answer()
            raise
        self._health.on_answer()
        return answer

    async def _is_still_ours(self) -> bool:
        """Return whether the other writer was this one: an answer may have come too late.

        What is no holder is nobody's: whoever may ask NATS can have it write an answer here.
        """
        seen = await self._look()
        if seen.is_blank:
            return await self._begin(seen.revision)
        if not seen.revision or seen.is_free or seen.holder not in (self._holder, None):
            return False
        self._revision = seen.revision
        return await self._renew()

    async def release(self) -> None:
        """Let another take it at once, if it is ours."""
        if not self.is_held:
            return
        self.renewed_at = -1e9
        try:
            async with asyncio.timeout(self._dead_after_s):
                value = _NOBODY.encode(self.epoch)
                await self._bucket.update(self._key, value, last=self._revision)
        except FAULTS as exc:
            log.warning("the lease of %s was not given back: %s", self._key, why(exc))


def _epoch_of(fields: dict[str, object]) -> int:
    """Return the epoch in a value; 0: it has none, or one that cannot be."""
    epoch = fields.get("epoch")
    return epoch if type(epoch) is int and 0 <= epoch <= _MAX_EPOCH else 0
