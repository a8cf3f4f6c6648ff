"""Questions to the history in fields, as the control socket has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from audiofork.config import HistoryConfig
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.history_answers import HistoryAnswers, query_of
from audiofork.errors import HistoryUnavailable, RequestRefused
from audiofork.forks.history import History, HistoryQuery
from audiofork.forks.timelines import Timelines
from tests.commands.histories import ENTRY
from tests.doors.test_control_socket import Client, Registry, connect


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    one = History(HistoryConfig(file=str(tmp_path / "h.sqlite3"), keep_days=36500), Timelines())
    await one.open()
    one._put(ENTRY)
    yield one
    await one.close()


@pytest.fixture
def answers(history: History) -> HistoryAnswers:
    return HistoryAnswers(history)


def test_fields_become_a_query() -> None:
    fields = {
        **{"channel": " PJSIP/1 ", "caller": "1", "host": "h", "reason": "hangup", "text": "t"},
        **{"failed": "yes", "since": "1.5", "until": "2", "limit": "7", "cursor": "1-1"},
    }
    assert query_of(fields) == HistoryQuery(
        "PJSIP/1", "1", "h", "hangup", "t", True, 1.5, 2.0, 7, "1-1"
    )
    assert query_of({}) == HistoryQuery()
    assert query_of({"failed": "no", "since": ""}).failed is False


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"failed": "perhaps"}, "Failed: expected"),
        ({"since": "today"}, "Since: expected seconds since 1970"),
        ({"until": "nan"}, "Until: expected seconds since 1970"),
        ({"since": "1e999"}, "Since: expected seconds since 1970"),
        ({"limit": "-1"}, "Limit: expected a whole number"),
        ({"limit": "9" * 5000}, "Limit: expected a whole number"),
        ({"limit": "x"}, "Limit: expected a whole number"),
        ({"cursor": "x"}, "Cursor: expected one of an earlier answer"),
    ],
    ids=str,
)
async def test_wrong_field_is_refused_by_its_name(
    answers: HistoryAnswers, fields: dict[str, str], why: str
) -> None:
    with pytest.raises(RequestRefused, match=why):
        await answers.answer("listaudioforkhistory", fields)


@pytest.mark.parametrize("number", ["", "Anna", " ", "²", "٤٩", "4930+"])
async def test_forgetting_nobody_is_refused(answers: HistoryAnswers, number: str) -> None:
    with pytest.raises(RequestRefused, match="Number: expected a number"):
        await answers.answer("forgetaudioforkcaller", {"number": number})


async def test_history_that_is_off_is_said() -> None:
    answers = HistoryAnswers(History(HistoryConfig(file=""), Timelines()))
    with pytest.raises(HistoryUnavailable):
        await answers.answer("listaudioforkhistory", {})


# --- Over the socket -----------------------------------------------------------------------------


@pytest.fixture
async def client(tmp_path: Path, answers: HistoryAnswers) -> AsyncIterator[Client]:
    registry = Registry()
    path = tmp_path / "control.sock"
    server = ControlSocket(path, ControlAnswers(registry.ask, registry.list, history=answers))
    await server.start()
    clients: list[Client] = []
    yield await connect(clients, path)
    await clients[0].close()
    await server.close()


async def test_client_searches_looks_groups_and_forgets(client: Client) -> None:
    found = await client.ask({"Command": "ListAudioForkHistory", "Caller": "+4930123456"})
    assert (found["ok"], found["next_cursor"]) == (True, "")
    assert [one["fork_id"] for one in found["entries"]] == [ENTRY.fork_id]
    whole = await client.ask({"Command": "ListAudioForkHistory", "AudioForkID": "3F2A91C0"})
    assert len(whole["entries"][0]["timeline"]) == 3
    assert await client.ask({"Command": "ListAudioForkHistory", "AudioForkID": "nobody"}) == {
        **{"ok": True, "entries": [], "next_cursor": ""}
    }
    causes = await client.ask({"Command": "ListAudioForkCauses", "Since": "0"})
    assert causes["causes"][0]["count"] == 1
    forgotten = await client.ask({"Command": "ForgetAudioForkCaller", "Number": "004930123456"})
    assert forgotten == {"ok": True, "removed": 1, "blanked": 0}
    assert (await client.ask({"Command": "ListAudioForkHistory"}))["entries"] == []


async def test_client_is_told_what_is_wrong(client: Client, history: History) -> None:
    refused = await client.ask({"Command": "ListAudioForkHistory", "Limit": "x"})
    assert (refused["ok"], refused["code"]) == (False, "refused")
    await history.close()
    away: dict[str, Any] = await client.ask({"Command": "ListAudioForkCauses"})
    assert (away["ok"], away["code"]) == (False, "history")
    assert away["error"] == "the history cannot be asked: it is closed"


async def test_socket_without_a_history_refuses(tmp_path: Path) -> None:
    registry, clients = Registry(), list[Client]()
    server = ControlSocket(tmp_path / "c.sock", ControlAnswers(registry.ask, registry.list))
    await server.start()
    client = await connect(clients, tmp_path / "c.sock")
    answer = await client.ask({"Command": "ListAudioForkHistory"})
    assert (answer["code"], answer["error"]) == ("refused", "this daemon has no history")
    await client.close()
    await server.close()
