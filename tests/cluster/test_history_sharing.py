"""The history of a whole cluster, with real files and a real NATS server between."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path
from typing import Any

import pytest

from audiofork.cluster.broker import Broker
from audiofork.doors.broker_door import BrokerDoor
from audiofork.doors.control_answers import Answers
from audiofork.doors.history_answers import CAUSES, FORGET, HISTORY
from audiofork.doors.history_sharing import HistoryOfCluster, Keeper, OwnHistory, entry_in
from audiofork.doors.http.cluster_history import ClusterHistory
from audiofork.errors import HistoryUnavailable, NoMessage, RequestRefused
from audiofork.forks import history_file, history_search
from audiofork.forks.history import Entry, HistoryQuery
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.history_forgetting import Forgotten
from audiofork.forks.requests import Origin
from audiofork.forks.timelines import Moment
from tests.cluster.conftest import Connect

pytestmark = pytest.mark.nats

ORIGIN = Origin("test", "me")


def fork_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def entry(number: int, ended_at: float | None = None, **more: Any) -> Entry:
    values: dict[str, Any] = {
        **{"fork_id": fork_id(number), "channel": f"PJSIP/{number}-1", "uniqueid": f"{number}.1"},
        **{"caller_number": "100", "caller_name": "Ada", "url": "ws://h/", "host": "h"},
        **{"direction": "in", "profile": "", "format": "raw", "tap": "chanspy"},
        **{"sample_rate": 8000, "requested_at": 1000.0, "started_at": None},
        **{"ended_at": float(number) if ended_at is None else ended_at, "reason": "sink-gone"},
        **{"failed": True, "detail": "Connection refused", "totals": {"frames_in": 7}},
        "timeline": (Moment(1000.0, "requested", "by me"),),
    }
    return Entry(**(values | more))


class Control:
    """A controller with a history that it has written before."""

    def __init__(self, keeper: Keeper, broker: Broker, file: Path | None) -> None:
        self.keeper = keeper
        self.broker = broker
        self.file = file
        self.own = OwnHistory(str(file or ""))
        self.known: list[Keeper] = []
        self.door = BrokerDoor(broker, keeper.subject, lambda: True, self.own)
        self.forgetting = BrokerDoor(broker, keeper.forget_subject, lambda: True, self.own.forget)
        self.all = HistoryOfCluster(broker, keeper.name, {keeper: self.own}, lambda: self.known)

    def keep(self, *entries: Entry) -> None:
        assert self.file is not None
        with closing(HistoryFile(self.file)) as file:
            file.write(list(entries))

    async def search(self, **fields: str) -> dict[str, Any]:
        return await self.all.answer(HISTORY, fields, ORIGIN)

    async def ids(self, **fields: str) -> list[str]:
        return [one["fork_id"] for one in (await self.search(**fields))["entries"]]

    async def forget(self, number: str = "100", **fields: str) -> dict[str, Any]:
        return await self.all.answer(FORGET, {"number": number, **fields}, ORIGIN)

    async def alone(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """Return what it answers for its own history."""
        async with aclosing(self.own(json.dumps(dict(fields)).encode(), ORIGIN)) as answers:
            (answer,) = [one async for one in answers]
        return answer


Begin = Callable[..., Awaitable[Control]]


@pytest.fixture
async def begin(connect: Connect, tmp_path: Path) -> AsyncIterator[Begin]:
    """Return a function that begins one more controller, which stands by."""
    async with AsyncExitStack() as stack:
        controllers: list[Control] = []

        async def one(name: str, asterisk: str = "pbx", *, keeps: bool = True) -> Control:
            broker = await connect(name)
            file = tmp_path / f"{name}.sqlite3" if keeps else None
            control = Control(Keeper(asterisk, name), broker, file)
            for door in (control.door, control.forgetting):
                await door.open()
                stack.push_async_callback(door.close)
            await broker.flush()
            controllers.append(control)
            for other in controllers:
                other.known = [each.keeper for each in controllers]
            return control

        yield one


async def test_entries_of_all_are_merged_by_time_and_say_who_has_kept_them(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    first.keep(entry(1), entry(4))
    second.keep(entry(3))
    other.keep(entry(2))
    for one in (first, second, other):
        found = await one.search()
        assert [
            (each["fork_id"], each["asterisk"], each["controller"]) for each in found["entries"]
        ] == [
            (fork_id(4), "pbx", "c1"),
            (fork_id(3), "pbx", "c2"),
            (fork_id(2), "pbx-b", "b1"),
            (fork_id(1), "pbx", "c1"),
        ]
        assert (found["next_cursor"], found["missing"]) == ("", {})
    assert await second.ids(channel="2.1") == [fork_id(2)]
    assert await second.ids(since="2.5", until="3.5") == [fork_id(3)]


async def test_pages_have_each_entry_once_though_some_have_the_same_time(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    times = [1.0, 2.0, 2.0, 2.0, 2.0, 3.5, 4.0]
    for control, begins in ((first, 10), (second, 20)):
        control.keep(*(entry(begins + n, at) for n, at in enumerate(times)))
    whole = await first.ids()
    assert len(set(whole)) == 14
    for limit in (1, 2, 3, 5, 13, 14):
        found: list[str] = []
        cursor, pages = "", 0
        while pages == 0 or cursor:
            page = await second.search(limit=str(limit), cursor=cursor)
            assert len(page["entries"]) <= limit
            found += [one["fork_id"] for one in page["entries"]]
            cursor, pages = page["next_cursor"], pages + 1
        assert found == whole
        assert pages == -(-14 // limit)


async def test_entries_that_end_meanwhile_do_not_move_the_pages(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    first.keep(entry(1), entry(3))
    second.keep(entry(2), entry(4))
    page = await first.search(limit="2")
    second.keep(entry(5))
    following = await first.search(limit="2", cursor=page["next_cursor"])
    assert [one["fork_id"] for one in following["entries"]] == [fork_id(2), fork_id(1)]


async def test_who_has_not_answered_is_told_and_who_keeps_none_is_not(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    await begin("c3", keeps=False)
    first.keep(entry(1))
    await second.door.close()
    await second.broker.flush()  # so that NATS knows of it
    found = await first.search()
    assert [one["fork_id"] for one in found["entries"]] == [fork_id(1)]
    assert found["missing"] == {"pbx/c2": "nobody answers"}
    causes = await first.all.answer(CAUSES, {}, ORIGIN)
    assert causes["missing"] == {"pbx/c2": "nobody answers"}


async def test_where_nobody_keeps_a_history_that_is_said(begin: Begin) -> None:
    one = await begin("c1", keeps=False)
    await begin("c2", keeps=False)
    with pytest.raises(HistoryUnavailable, match="no controller of the cluster keeps a history"):
        await one.search()


async def test_one_entry_is_found_with_its_timeline_wherever_it_is(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    second.keep(entry(7))
    for given in (fork_id(7), fork_id(7)[:8]):
        (one,) = (await first.search(audioforkid=given))["entries"]
        assert (one["controller"], one["timeline"][0]["text"]) == ("c2", "by me")
    assert await first.ids(audioforkid=fork_id(8)) == []


async def test_causes_are_added_up(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    first.keep(entry(1), entry(2, reason="leg-failed"))
    second.keep(entry(3), entry(4))
    causes = (await first.all.answer(CAUSES, {"since": "0"}, ORIGIN))["causes"]
    assert [(one["reason"], one["count"], one["latest_at"]) for one in causes] == [
        ("sink-gone", 3, 4.0),
        ("leg-failed", 1, 2.0),
    ]
    assert causes[0]["fork_id"] == fork_id(4)


async def test_search_that_is_wrong_is_refused(begin: Begin) -> None:
    one = await begin("c1")
    for fields in ({"limit": "x"}, {"cursor": "x"}, {"since": "x"}):
        with pytest.raises(RequestRefused):
            await one.search(**fields)


async def test_nothing_but_a_search_is_granted_to_other_controllers(begin: Begin) -> None:
    one = await begin("c1")
    one.keep(entry(1))
    for command in ("ForgetAudioForkCaller", "StopAudioFork", "ListAudioForks"):
        answer = await one.alone({"Command": command, "Number": "100"})
        assert answer["error"] == "expected a search of the history"
    for command in ("ListAudioForkHistory", "ListAudioForkCauses", "StopAudioFork"):
        line = json.dumps({"Command": command}).encode()
        async with aclosing(one.own.forget(line, ORIGIN)) as answers:
            assert [each["error"] async for each in answers] == [
                "expected a caller to be forgotten"
            ]
    assert await one.ids() == [fork_id(1)]


async def test_those_of_one_asterisk_are_asked_where_it_is_named(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    for number, one in enumerate((first, second, other)):
        one.keep(entry(number))
    assert await first.ids(asterisk="pbx-b") == [fork_id(2)]
    assert await other.ids(asterisk="pbx") == [fork_id(1), fork_id(0)]
    causes = await first.all.answer(CAUSES, {"asterisk": "pbx-b"}, ORIGIN)
    assert [one["count"] for one in causes["causes"]] == [1]
    with pytest.raises(RequestRefused, match="no Asterisk pbx-c; did you mean pbx-b"):
        await first.search(asterisk="pbx-c")


# --- A caller is forgotten -----------------------------------------------------------------------


async def test_caller_is_forgotten_by_all_and_each_says_how_much(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    await begin("c3", keeps=False)
    first.keep(entry(1), entry(2, caller_number="200"))
    second.keep(entry(3), entry(4), entry(5, caller_number="300", caller_name="for 100"))
    other.keep(entry(6), entry(7, caller_number="200"))
    assert await first.forget() == {
        **{"removed": 4, "blanked": 0, "missing": {}},
        "controllers": {
            "pbx/c1": {"removed": 1, "blanked": 0},
            "pbx/c2": {"removed": 2, "blanked": 0},
            "pbx-b/b1": {"removed": 1, "blanked": 0},
        },
    }
    assert await first.ids() == [fork_id(7), fork_id(5), fork_id(2)]
    again = await second.forget()
    assert (again["removed"], len(again["controllers"])) == (0, 3)


async def test_caller_is_forgotten_by_those_of_one_asterisk_alone(begin: Begin) -> None:
    first, other = await begin("c1"), await begin("b1", "pbx-b")
    first.keep(entry(1))
    other.keep(entry(2))
    done = await first.forget(asterisk="pbx-b")
    assert done["controllers"] == {"pbx-b/b1": {"removed": 1, "blanked": 0}}
    assert await first.ids() == [fork_id(1)]


async def test_who_has_not_forgotten_is_told(begin: Begin) -> None:
    first, second, third = await begin("c1"), await begin("c2"), await begin("c3")
    for number, one in enumerate((first, second, third)):
        one.keep(entry(number))
    await second.forgetting.close()
    await second.broker.flush()  # so that NATS knows of it
    assert third.file is not None
    with closing(HistoryFile(third.file)):  # which locks it
        done = await first.forget()
    assert done["controllers"] == {"pbx/c1": {"removed": 1, "blanked": 0}}
    assert done["missing"].pop("pbx/c2") == "nobody answers"
    assert "locked" in done["missing"].pop("pbx/c3")
    assert done["missing"] == {}
    assert await first.ids() == [fork_id(2), fork_id(1)]


async def test_what_is_no_number_is_refused_before_anybody_is_asked(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await begin("c1")
    monkeypatch.setattr(one.all, "_ask", None)
    with pytest.raises(RequestRefused, match="Number: expected a number"):
        await one.forget("Ada")


async def test_daemon_that_leads_forgets_in_the_file_that_it_has(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    second.keep(entry(1))
    asked: list[dict[str, str]] = []

    async def daemon(line: bytes, origin: Origin) -> Answers:
        asked.append(json.loads(line))
        yield {"ok": True, "removed": 5, "blanked": 2}

    await first.own.leave_to_daemon()
    first.own.begin_to_lead(daemon)
    done = await second.forget()
    assert (done["removed"], done["blanked"], done["missing"]) == (6, 2, {})
    assert done["controllers"]["pbx/c1"] == {"removed": 5, "blanked": 2}
    assert asked == [{"Command": FORGET, "number": "100"}]


@pytest.mark.parametrize("wrong", [{}, {"removed": "1", "blanked": 0}, {"removed": True}])
async def test_answer_without_counts_is_not_taken_for_done(
    begin: Begin, wrong: dict[str, Any]
) -> None:
    one = await begin("c1")

    async def daemon(_line: bytes, _origin: Origin) -> Answers:
        yield {"ok": True, **wrong}

    one.own.begin_to_lead(daemon)
    done = await one.forget()
    assert (done["removed"], done["controllers"]) == (0, {})
    assert done["missing"] == {"pbx/c1": "what it has answered cannot be understood: no counts"}


class Slow:
    """Forgets when it is told to, or gives up; in a thread."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, _path: Path, _number: str, give_up: Callable[[], bool]) -> Forgotten:
        self.has_begun.set()
        for _ in range(3000):  # it always ends
            if give_up():
                raise HistoryUnavailable("it was broken off, and is done in part: ask again")
            if self.may_end.wait(0.01):
                break
        return Forgotten(1, 0)


async def begun_to_forget(
    one: Control, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> asyncio.Task[dict[str, Any]]:
    """Return the forgetting of a caller, which is under way."""
    one.keep(entry(1))
    monkeypatch.setattr(history_file, "forget", slow)
    forgetting = asyncio.create_task(one.forget())
    assert await asyncio.to_thread(slow.has_begun.wait, 30)
    return forgetting


async def test_search_waits_while_a_caller_is_forgotten(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, slow = await begin("c1"), Slow()
    forgetting = await begun_to_forget(one, slow, monkeypatch)
    searching = asyncio.create_task(one.ids())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(one.own._at_file) == 1
    slow.may_end.set()
    assert (await forgetting)["removed"] == 1
    assert await searching == [fork_id(1)]


async def test_who_forgets_gives_up_when_a_daemon_begins_and_that_is_told(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, slow = await begin("c1"), Slow()
    forgetting = await begun_to_forget(one, slow, monkeypatch)
    await one.own.leave_to_daemon()
    assert not one.own._at_file
    broken_off = "it was broken off, and is done in part: ask again"
    assert (await forgetting)["missing"] == {"pbx/c1": broken_off}
    begins = "this controller begins to lead: ask again"
    assert (await one.forget())["missing"] == {"pbx/c1": begins}


async def test_daemon_that_leads_has_the_file_alone_and_answers_itself(begin: Begin) -> None:
    one = await begin("c1")
    one.keep(entry(1))
    fields = {"Command": "ListAudioForkHistory"}
    await one.own.leave_to_daemon()
    assert one.file is not None
    with closing(HistoryFile(one.file)):  # which locks it
        answer = await one.alone(fields)
        assert (answer["code"], answer["error"]) == (
            "history",
            "this controller begins to lead: ask again",
        )

        async def daemon(line: bytes, origin: Origin) -> Answers:
            yield {"ok": True, "entries": [], "next_cursor": "of the daemon"}

        one.own.begin_to_lead(daemon)
        assert (await one.alone(fields))["next_cursor"] == "of the daemon"
        one.own.end_to_lead()
    one.own.take_back()
    assert len((await one.alone(fields))["entries"]) == 1


async def test_who_reads_the_file_gives_up_when_a_daemon_begins(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await begin("c1")
    one.keep(entry(1))
    reads = threading.Event()

    def search(_db: object, _query: object, give_up: Callable[[], bool]) -> None:
        reads.set()
        for _ in range(1000):  # it always ends
            if give_up():
                raise HistoryUnavailable("the search was given up")
            time.sleep(0.01)

    monkeypatch.setattr(history_search, "search", search)
    asked = asyncio.create_task(one.alone({"Command": "ListAudioForkHistory"}))
    assert await asyncio.to_thread(reads.wait, 30)
    await one.own.leave_to_daemon()
    assert one.file is not None
    with closing(HistoryFile(one.file)):  # raises if it is locked
        pass
    assert (await asked)["error"] == "the search was given up"


async def test_controller_that_has_never_led_has_an_empty_history(begin: Begin) -> None:
    one = await begin("c1")
    assert await one.ids() == []
    assert await one.all.answer(CAUSES, {}, ORIGIN) == {"causes": [], "missing": {}}


async def test_http_interface_asks_with_each_field_of_its_query(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    first.keep(entry(1), entry(2, failed=False))
    second.keep(entry(3))
    history = ClusterHistory(first.all.answer, "c1")
    query = HistoryQuery(host="h", failed=True, since=0.5, until=9.5, limit=1)
    entries, cursor, missing = await history.search(query, "")
    assert [(one.fork_id, one.controller) for one in entries] == [(fork_id(3), "c2")]
    assert (bool(cursor), missing) == (True, {})
    found = await history.entry(fork_id(1))
    assert found is not None
    assert (found.asterisk, found.timeline[0].kind) == ("pbx", "requested")
    assert await history.entry(fork_id(9)) is None
    causes, missing = await history.causes(0.0)
    assert ([one.count for one in causes], missing) == ([2], {})
    await second.door.close()
    await second.broker.flush()  # so that NATS knows of it
    causes, missing = await history.causes(0.0)
    assert ([one.count for one in causes], missing) == ([1], {"pbx/c2": "nobody answers"})
    assert (await history.search(query, "pbx"))[2] == {"pbx/c2": "nobody answers"}
    with pytest.raises(RequestRefused, match="the cluster has no Asterisk pbx-b"):
        await history.search(query, "pbx-b")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"fork_id": "x"}, {"ended_at": "x"}, {"totals": 1}, {"totals": {"x": "y"}}),
        *({"timeline": 1}, {"timeline": [1]}, {"failed": 1}, {"totals": {"x": float("nan")}}),
    ],
)
def test_entry_with_a_field_that_cannot_be_is_none(wrong: dict[str, Any]) -> None:
    fields = {
        **{name: getattr(entry(1), name) for name in entry(1).__slots__},
        "timeline": [],
    }
    assert entry_in(fields).fork_id == fork_id(1)
    with pytest.raises(NoMessage):
        entry_in(fields | wrong)
