import asyncio

import pytest

from audiofork.forks.tasks import Tasks


async def test_finish_waits_for_all_tasks() -> None:
    tasks, gate, done = Tasks(), asyncio.Event(), []

    async def wait() -> None:
        await gate.wait()
        done.append(True)

    tasks.spawn(wait())
    tasks.spawn(wait())
    finishing = asyncio.create_task(tasks.finish())
    await asyncio.sleep(0)
    assert (len(tasks), finishing.done()) == (2, False)
    gate.set()
    await finishing
    assert (done, len(tasks)) == ([True, True], 0)


async def test_cancel_ends_tasks_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    tasks.spawn(asyncio.Event().wait())  # type: ignore[arg-type]
    await tasks.cancel()
    assert (len(tasks), caplog.messages) == (0, [])


async def test_fault_is_logged_with_its_traceback_and_does_not_hold_up_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise RuntimeError("boom")

    tasks = Tasks()
    tasks.spawn(fail())
    await tasks.finish()
    (record,) = caplog.records
    assert record.message == "a task failed unexpectedly"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "boom"
