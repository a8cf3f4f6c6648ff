"""Who leads, by real buckets; the clocks are the tests' own where time counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from audiofork.cluster.lease import BUCKET, MAX_OBEYED_EPOCH, Holder, Lease
from testbed.nats import NatsServer
from tests.cluster.conftest import Connect
from tests.relay.peers import until
from tests.told_clock import Clock

pytestmark = pytest.mark.nats

DEAD_S = 0.5


async def lease_of(connect: Connect, name: str, dead_after_s: float = DEAD_S) -> Lease:
    return await Lease.of(await connect(name), "pbx", Holder(name, f"run of {name}"), dead_after_s)


async def taken(lease: Lease, timeout_s: float = 10) -> Lease:
    async with asyncio.timeout(timeout_s):
        await lease.take()
    return lease


async def test_first_takes_it_and_the_second_waits(connect: Connect) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    assert first.is_held
    assert first.epoch > 0
    keeping = asyncio.create_task(first.keep())
    with pytest.raises(TimeoutError):
        await taken(second, 4 * DEAD_S)
    assert first.is_held
    assert not second.is_held
    assert second.leader == Holder("a", "run of a")
    keeping.cancel()


async def test_second_takes_it_when_the_first_is_silent_and_later_than_that_trusts_it(
    connect: Connect,
) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    trusted_until = first.renewed_at + 0.8 * DEAD_S
    await taken(second)
    assert time.monotonic() > trusted_until
    assert not first.is_held
    assert second.epoch > first.epoch


async def test_first_that_was_stopped_notices_that_another_has_it(connect: Connect) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    await taken(second)
    async with asyncio.timeout(10):
        await first.keep()
    assert not first.is_held
    assert first.leader == Holder("b", "run of b")


async def test_given_back_it_is_taken_long_before_its_holder_would_count_as_dead(
    connect: Connect,
) -> None:
    first, second = await lease_of(connect, "a", 600), await lease_of(connect, "b", 600)
    await taken(first)
    await first.release()
    assert not first.is_held
    await taken(second, 60)
    assert second.epoch > first.epoch


async def test_holder_that_cannot_renew_it_gives_it_up(
    connect: Connect, server: NatsServer
) -> None:
    lease = await taken(await lease_of(connect, "a"))
    server.kill()
    async with asyncio.timeout(30):
        await lease.keep()
    assert not lease.is_held


async def test_it_is_taken_when_the_broker_is_there_again(
    connect: Connect, server: NatsServer
) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    waiting = asyncio.create_task(taken(second))
    server.kill()
    await asyncio.sleep(2 * DEAD_S)
    assert not waiting.done()
    server.start()
    await waiting
    assert second.epoch > first.epoch


async def test_answer_that_came_too_late_does_not_lose_it(connect: Connect) -> None:
    """The renewal was written, and the holder does not know."""
    lease = await taken(await lease_of(connect, "a"))
    await lease._bucket.put("pbx", lease._holder.encode())
    keeping = asyncio.create_task(lease.keep())
    await asyncio.sleep(3 * DEAD_S)
    assert not keeping.done()
    assert lease.is_held
    keeping.cancel()


JUNK = b'{"type":"io.nats.jetstream.api.v1.stream_info_response"}'


async def write_junk(connect: Connect, every_s: float) -> None:
    """Write what is no holder, as answers of NATS are that somebody has sent to this key."""
    bucket = await (await connect("junk")).bucket(BUCKET)
    while True:
        await bucket.put("pbx", JUNK)
        await asyncio.sleep(every_s)


async def test_what_is_no_holder_does_not_take_it_away(connect: Connect) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    keeping = asyncio.create_task(first.keep())
    writing = asyncio.create_task(write_junk(connect, DEAD_S / 3))
    with pytest.raises(TimeoutError):
        await taken(second, 4 * DEAD_S)
    assert not keeping.done()
    assert first.is_held
    for task in (keeping, writing):
        task.cancel()


async def test_what_is_no_holder_keeps_nobody_from_taking_it(connect: Connect) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first)
    trusted_until = first.renewed_at + 0.8 * DEAD_S
    writing = asyncio.create_task(write_junk(connect, DEAD_S / 3))
    await taken(second)
    assert time.monotonic() > trusted_until
    assert second.epoch > first.epoch
    writing.cancel()


# --- Where NATS has lost it ---


async def lose(connect: Connect) -> None:
    """Remove the bucket."""
    broker = await connect("somebody")
    assert broker._stream is not None
    await broker._stream.delete_stream(f"KV_{BUCKET}")


async def test_holder_whose_bucket_is_gone_makes_it_anew_and_goes_on_with_a_greater_epoch(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await lease_of(connect, "a", 3), await lease_of(connect, "b", 3)
    await taken(first, 30)
    before = first.epoch
    keeping, waiting = asyncio.create_task(first.keep()), asyncio.create_task(second.take())
    await until(lambda: second.leader is not None, 30)
    await lose(connect)
    await until(lambda: first.epoch > before or keeping.done(), 30)
    assert first.epoch > before
    assert "bucket audiofork-leases was gone, and is made anew" in caplog.text
    for task in (keeping, waiting):
        task.cancel()


async def test_who_waits_makes_the_bucket_anew_and_takes_it_with_a_greater_epoch_than_the_holder(
    connect: Connect, server: NatsServer
) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    for _ in range(3):
        await taken(first, 30)
        await first.release()
    await taken(first, 30)
    waiting = asyncio.create_task(second.take())
    await until(lambda: second.leader is not None, 30)
    await lose(connect)
    async with asyncio.timeout(30):
        await waiting
    assert second.epoch > first.epoch
    assert not await first.regain()


async def test_holder_that_lost_it_with_its_bucket_does_not_believe_that_another_leads(
    connect: Connect,
) -> None:
    lease = await taken(await lease_of(connect, "a"), 30)
    before = lease.epoch
    await lose(connect)
    async with asyncio.timeout(30):
        assert await lease.regain()
    assert lease.epoch > before
    assert lease.is_held


async def test_who_has_never_known_an_epoch_begins_above_that_which_relay_hosts_obey(
    connect: Connect,
) -> None:
    lease = await taken(await lease_of(connect, "a", 3), 30)
    lease.outbid(5000)
    keeping = asyncio.create_task(lease.keep())
    await until(lambda: lease.epoch > 5000 or keeping.done(), 30)
    assert lease.epoch > 5000
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    epoch = lease.epoch
    await lease.release()
    assert (await taken(await lease_of(connect, "b", 3), 30)).epoch > epoch


async def test_holder_that_another_has_succeeded_does_not_outbid_it(connect: Connect) -> None:
    first, second = await lease_of(connect, "a"), await lease_of(connect, "b")
    await taken(first, 30)
    await taken(second, 30)
    epoch = first.epoch
    first.outbid(second.epoch)
    async with asyncio.timeout(30):
        await first.keep()
    assert not first.is_held
    assert first.epoch == epoch


async def test_epoch_that_cannot_be_is_not_outbid(connect: Connect) -> None:
    lease = await taken(await lease_of(connect, "a"), 30)
    lease.outbid(2**62)
    assert await lease._renew()
    assert lease.epoch < 2**40


@pytest.mark.parametrize("epoch", [2**39, 2**40, 2**50, 2**62])
async def test_epoch_that_somebody_has_written_is_never_beyond_what_relay_hosts_are_believed(
    connect: Connect, epoch: int
) -> None:
    lease = await lease_of(connect, "a")
    await lease._bucket.put("pbx", Holder("x", "y").encode(epoch))
    await taken(lease, 30)
    assert lease.epoch < MAX_OBEYED_EPOCH
    await lease.release()
    following = await taken(await lease_of(connect, "b", 3), 30)
    following.outbid(lease.epoch)
    assert await following._renew()
    assert lease.epoch < following.epoch < MAX_OBEYED_EPOCH


async def test_fault_that_lasts_is_told_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Bucket):
        async def create(self, key: str, value: bytes) -> int:
            if not self.answers.is_set():
                raise APIError(description="no space left on device")
            return 1

        async def get(self, key: str) -> None:
            clock.now_s += 1
            raise KeyNotFoundError

    bucket, clock = Full(), Clock()
    lease = Lease(cast(KeyValue, bucket), bucket.find, "pbx", Holder("a", "run"), 0.05, clock)
    taking = asyncio.create_task(lease.take())
    await until(lambda: "no space left on device" in caplog.text, 30)
    at = clock.now_s
    await until(lambda: clock.now_s > at + 5, 30)
    bucket.answers.set()
    async with asyncio.timeout(30):
        await taking
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2
    assert told[0].startswith("the lease of pbx cannot be used, so nobody leads")
    assert told[1] == "the lease of pbx can be used again"


# --- Whether anybody answers ---


class Bucket:
    """Answers when it is told to: that nobody holds the lease, then that somebody else has it."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def get(self, key: str) -> None:
        await self.answers.wait()
        raise KeyNotFoundError

    async def find(self) -> KeyValue:
        return cast(KeyValue, self)

    async def create(self, key: str, value: bytes) -> int:
        await self.answers.wait()
        raise KeyWrongLastSequenceError


async def test_lease_is_silent_from_a_while_without_an_answer_until_there_is_one() -> None:
    bucket, clock = Bucket(), Clock()
    lease = Lease(cast(KeyValue, bucket), bucket.find, "pbx", Holder("a", "run"), 60, clock)
    told = []
    clock.now_s += 500  # nobody has asked
    told.append(lease.is_silent)
    taking = asyncio.create_task(lease.take())
    await asyncio.sleep(0)
    for seconds in (119, 2):
        clock.now_s += seconds
        told.append(lease.is_silent)
    bucket.answers.set()
    async with asyncio.timeout(20):
        while lease.is_silent:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0)
    clock.now_s += 500  # it waits until it asks again
    told.append(lease.is_silent)
    taking.cancel()
    assert told == [False, False, True, False]


# --- To give up ----------------------------------------------------------------------------------


@contextlib.contextmanager
def told_at_each_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """Yield a list: what is in it is called when NATS has answered, before who asked goes on."""
    calls: list[Callable[[], object]] = []
    request = Client._request_new_style

    async def asked(client: Client, *args: Any, **kwargs: Any) -> Any:
        known = set(client._resp_map)
        asking = asyncio.ensure_future(asyncio.sleep(0))
        asking.add_done_callback(lambda _: hook(client, known))
        return await request(client, *args, **kwargs)

    def hook(client: Client, known: set[str]) -> None:
        for token in set(client._resp_map) - known:
            client._resp_map[token].add_done_callback(lambda _: [call() for call in calls])

    with monkeypatch.context() as patched:
        patched.setattr(Client, "_request_new_style", asked)
        yield calls


async def test_holder_that_is_told_to_end_in_the_moment_of_an_answer_ends(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await taken(await lease_of(connect, "a"))
    with told_at_each_answer(monkeypatch) as calls:
        keeping = asyncio.create_task(lease.keep())
        calls.append(keeping.cancel)
        await asyncio.wait({keeping}, timeout=30)
    assert keeping.cancelled()
