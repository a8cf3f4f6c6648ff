import asyncio

from audiofork.forks.fork import Fork, new_fork
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.requests import StartFork, parse_request
from audiofork.forks.table import ForkTable
from tests.control_plane import NAME, START, UNIQUEID, UNKNOWN_ID


def make_fork() -> Fork:
    request = parse_request({**START, "uniqueid": "9.9"})  # which may not be Asterisk's word
    assert isinstance(request, StartFork)
    return new_fork(request, Commands({}))


def test_fork_is_found_by_its_id_at_once_and_by_its_channel_once_that_is_known() -> None:
    table, fork = ForkTable(), make_fork()
    table.add(fork)
    assert (table.get(fork.id), fork in table, len(table)) == (fork, True, 1)
    assert table.on_channel("9.9") == []
    assert table.uniqueids == []
    fork.found(NAME, UNIQUEID, "today")
    table.bind(fork)
    assert (table.on_channel(UNIQUEID), table.uniqueids) == ([fork], [UNIQUEID])


def test_fork_that_is_removed_is_found_by_nothing_and_leaves_the_others() -> None:
    table, forks = ForkTable(), [make_fork(), make_fork()]
    for fork in forks:
        table.add(fork)
        fork.found(NAME, UNIQUEID, "today")
        table.bind(fork)
    gone, stays = forks
    table.remove(gone)
    assert (table.get(gone.id), gone in table) == (None, False)
    assert table.on_channel(UNIQUEID) == list(table) == [stays]
    table.remove(stays)
    assert table.uniqueids == []
    assert list(table) == []


def test_fork_without_a_known_channel_can_be_removed() -> None:
    table, fork = ForkTable(), make_fork()
    table.add(fork)
    table.remove(fork)
    assert (len(table), table.get(UNKNOWN_ID)) == (0, None)


def test_forks_may_end_while_the_table_is_gone_through() -> None:
    table, forks = ForkTable(), [make_fork(), make_fork()]
    for fork in forks:
        table.add(fork)
    for fork in table:
        table.remove(fork)
    assert len(table) == 0


async def test_wait_empty_returns_with_the_last_fork() -> None:
    table, fork = ForkTable(), make_fork()
    await table.wait_empty()
    table.add(fork)
    waiting = asyncio.create_task(table.wait_empty())
    await asyncio.sleep(0)
    assert not waiting.done()
    table.remove(fork)
    await waiting
