"""The journal of a cluster, on a real NATS server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from audiofork.cluster.broker import Broker
from audiofork.config import ClusterConfig
from audiofork.forks.cluster_journal import CHECK_KEY, ClusterJournal, bucket_of
from audiofork.forks.journal import Entry
from testbed.nats import NatsServer, nats_servers
from tests.relay.peers import until

pytestmark = pytest.mark.nats

TIMEOUT_S = 20
A, B, C = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def entry(fork_id: str, started: float = 0.0) -> Entry:
    return Entry(
        *(fork_id, "PJSIP/1", "1.1", "ws://127.0.0.1/", "", "", "", {}),
        mute_in=False,
        mute_out=False,
        started=started,
        asterisk_started="",
    )


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with nats_servers() as (one,):
        yield one


class Controller:
    """A controller's journal, and whether it leads."""

    def __init__(self, server: NatsServer) -> None:
        self.leads = True
        self.broker = Broker(ClusterConfig(servers=(server.url,)), "test")
        self.journal = ClusterJournal(self.broker, "pbx", lambda: self.leads)

    async def ids(self) -> list[str]:
        return [one.fork_id for one in await self.journal.read()]

    async def close(self) -> None:
        await self.journal.close()
        await self.broker.close()


@pytest.fixture
async def controller(server: NatsServer) -> AsyncIterator[Callable[[], Controller]]:
    """Return a function that makes one; its journal is not open yet."""
    async with AsyncExitStack() as stack:

        def make() -> Controller:
            one = Controller(server)
            stack.push_async_callback(one.close)
            return one

        yield make


async def opened(one: Controller) -> list[str]:
    await one.broker.connect()
    return [entry.fork_id for entry in await one.journal.open()]


async def test_next_leader_finds_what_the_first_has_written_oldest_first(
    controller: Callable[[], Controller],
) -> None:
    first, second = controller(), controller()
    assert await opened(first) == []
    for fork_id, started in ((B, 2.0), (A, 1.0), (C, 3.0)):
        first.journal.put(entry(fork_id, started))
    first.journal.remove(C)
    await first.journal.close()
    assert await opened(second) == [A, B]


async def test_key_that_a_check_could_not_remove_is_no_entry(
    controller: Callable[[], Controller], caplog: pytest.LogCaptureFixture
) -> None:
    one = controller()
    await opened(one)
    await (await one.broker.bucket(bucket_of("pbx"))).put(CHECK_KEY, b"{}")
    caplog.clear()
    assert await one.ids() == []
    assert caplog.messages == []


async def test_what_one_that_does_not_lead_had_to_write_is_never_written(
    controller: Callable[[], Controller],
) -> None:
    first, second = controller(), controller()
    await opened(first)
    first.leads = False
    first.journal.put(entry(A))
    await asyncio.sleep(0.5)
    await first.journal.close()
    assert await opened(second) == []


async def test_entry_that_was_found_as_it_is_is_not_written_again(
    controller: Callable[[], Controller],
) -> None:
    first, second = controller(), controller()
    await opened(first)
    for fork_id in (A, B):
        first.journal.put(entry(fork_id))
    await first.journal.close()
    await opened(second)
    bucket = await second.broker.bucket(bucket_of("pbx"))
    revisions = [(await bucket.get(fork_id)).revision for fork_id in (A, B)]
    for again in (entry(A), replace(entry(B), mute_in=True), entry(A), entry(B)):
        second.journal.put(again)
        await second.journal.read()
    second.journal.put(entry(A))
    await second.journal.close()
    assert (await bucket.get(A)).revision == revisions[0]
    assert (await bucket.get(B)).revision != revisions[1]


async def test_what_waits_is_written_before_it_is_read_when_it_leads_again(
    controller: Callable[[], Controller],
) -> None:
    one = controller()
    await opened(one)
    one.journal.put(entry(A))
    assert await one.ids() == [A]
    one.leads = False
    one.journal.remove(A)
    one.journal.put(entry(B))
    assert await one.ids() == []
    one.leads = True
    assert await one.ids() == [B]


async def test_it_waits_until_it_can_be_read(
    controller: Callable[[], Controller], server: NatsServer
) -> None:
    first, second = controller(), controller()
    await opened(first)
    first.journal.put(entry(A))
    await first.close()
    await second.broker.connect()
    server.kill()
    opening = asyncio.create_task(second.journal.open())
    await asyncio.sleep(3)
    assert not opening.done()
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(TIMEOUT_S):
        assert [one.fork_id for one in await opening] == [A]


async def lose(one: Controller) -> None:
    """Remove the bucket."""
    assert one.broker._stream is not None
    await one.broker._stream.delete_stream(f"KV_{bucket_of('pbx')}")


async def test_all_that_runs_is_written_again_where_the_bucket_is_gone_when_one_changes(
    controller: Callable[[], Controller], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = controller(), controller()
    await opened(first)
    for fork_id, started in ((A, 1.0), (B, 2.0)):
        first.journal.put(entry(fork_id, started))
    assert await first.ids() == [A, B]
    await lose(first)
    first.journal.put(entry(C, 3.0))
    first.journal.remove(B)
    await until(lambda: "works again" in caplog.text and first.journal._idle.is_set(), 30)
    assert await opened(second) == [A, C]
    assert caplog.text.count("was gone, and is made anew") == 1
    assert caplog.text.count("has lost 1 running forks") == 1


async def test_all_that_runs_is_written_again_where_the_bucket_is_gone_and_nothing_changes(
    controller: Callable[[], Controller],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("audiofork.forks.cluster_journal.LOOK_INTERVAL_S", 0.1)
    first, second = controller(), controller()
    await opened(first)
    first.journal.put(entry(A))
    assert await first.ids() == [A]
    await lose(first)
    await until(lambda: "has lost 1 running forks" in caplog.text, 30)
    await until(first.journal._idle.is_set, 30)
    assert await opened(second) == [A]


async def test_what_leads_again_reads_what_it_knows_where_the_bucket_is_gone(
    controller: Callable[[], Controller],
) -> None:
    one = controller()
    await opened(one)
    one.journal.put(entry(A))
    assert await one.ids() == [A]
    await lose(one)
    assert await one.ids() == [A]


async def test_it_does_not_wait_when_we_do_not_lead_any_more(
    controller: Callable[[], Controller], server: NatsServer
) -> None:
    one = controller()
    await one.broker.connect()
    server.kill()
    opening = asyncio.create_task(one.journal.open())
    await asyncio.sleep(0.5)
    one.leads = False
    await until(opening.done, TIMEOUT_S)
    assert opening.result() == []
