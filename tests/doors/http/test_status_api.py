"""Health, status, profiles, metrics, series, the check, the history: what is asked of whom."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.doors.http import status_api
from audiofork.doors.http.answers import AsteriskStatus, RelayStatus
from audiofork.doors.http.status_api import Checks
from audiofork.errors import AudioForkError, DaemonBusy
from audiofork.forks.history import HistoryQuery
from tests.doors.http.stage import FORK_ID, OTHER_ID, RUN, STATUS, Others, Stage, staged

LINES = [
    '{"status": "ok", "name": "login", "text": "login: audiofork", "remedy": ""}',
    '{"status": "fail", "name": "ARI", "text": "ARI: no", "remedy": "Do this."}',
]


async def test_health_needs_nothing(stage: Stage) -> None:
    answer = await stage.get("/healthz", "")
    assert (answer.status, answer.body) == (200, b"ok\n")


async def test_ready_is_who_has_asterisk_and_a_relay(stage: Stage) -> None:
    answer = await stage.get("/readyz", "")
    assert answer.status == 200
    assert answer.json == {"ready": True, "asterisk": "up", "relay": "up"}
    stage.others.status = replace(STATUS, asterisk=AsteriskStatus(False, "", "no connection"))
    answer = await stage.get("/readyz", "")
    assert answer.status == 503
    assert answer.json == {"ready": False, "asterisk": "down", "relay": "up"}
    stage.others.status = replace(STATUS, relays=[RelayStatus("1", False, 0)])
    answer = await stage.get("/readyz", "")
    assert answer.status == 503
    assert answer.json == {"ready": False, "asterisk": "up", "relay": "down"}


async def test_status_is_that_of_all_parts(stage: Stage) -> None:
    answer = await stage.get("/api/v1/status")
    assert answer.json == {
        **{"version": "1.2.3", "run": RUN, "uptime_s": 12.5, "forks": 1, "viewers": 0},
        "asterisk": {
            **{"up": True, "version": "20.5.0", "text": "connected to Asterisk 20.5.0"},
            "rtt_ms": 0.4,
        },
        "ari": {"configured": False, "up": False, "text": "not configured", "rtt_ms": None},
        "relays": [{"name": "relay", "up": True, "forks": 1}],
        "counters": {"requested": 3, "ended": {"hangup": 2}},
        "history": True,
        "controller": "",
        "controllers": [],
    }


async def test_profiles_are_named_and_nothing_else_of_them(stage: Stage) -> None:
    assert (await stage.get("/api/v1/profiles")).json == {"profiles": ["deepgram", "vosk"]}


async def test_metrics_are_text(stage: Stage) -> None:
    answer = await stage.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.body.endswith(b"audiofork_forks 1\n")
    answer = await stage.get("/metrics", Accept="application/openmetrics-text;version=1.0.0,*/*")
    content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.headers["content-type"] == content_type
    assert answer.body.endswith(b"# EOF\n")


async def test_series_is_as_long_as_it_is_asked_for(stage: Stage) -> None:
    answer = await stage.get("/api/v1/series?hours=2")
    assert answer.json["minutes"] == [
        {
            **{"at": at, "started": 1, "ended": 2, "failed": 3, "refused": 4, "reconnects": 5},
            "frames_dropped": 6,
        }
        for at in (0, 60)
    ]
    assert len((await stage.get("/api/v1/series")).json["minutes"]) == 6
    for hours in ("0", "25", "x"):
        assert (await stage.get(f"/api/v1/series?hours={hours}")).status == 422


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/api/v1/series", "/api/v1/check", "/api/v1/history"),
        *(f"/api/v1/history/{FORK_ID}", "/api/v1/history/causes"),
    ],
)
async def test_part_that_is_not_there_is_told(tmp_path: Path, path: str) -> None:
    async with staged(tmp_path, whole=False) as stage:
        answer = await stage.get(path)
        assert (answer.status, answer.json["type"]) == (404, "/problems/not-available")
        assert (await stage.get("/api/v1/status")).json["history"] is False
        assert (await stage.get(f"/api/v1/forks/{FORK_ID}")).json["timeline"] == []


# --- The check -----------------------------------------------------------------------------------


async def test_check_is_told_finding_by_finding(stage: Stage) -> None:
    stage.others.lines = [*LINES, "Traceback\x1b[31m", '{"status": 1}']
    answer = await stage.get("/api/v1/check")
    assert answer.status == 200
    assert answer.json["exit_code"] == 1
    assert answer.json["at"] > 1e9
    assert answer.json["findings"] == [
        *map(json.loads, LINES),
        {"status": "fail", "name": "check", "text": "Traceback?[31m", "remedy": ""},
        {"status": "fail", "name": "check", "text": '{"status": 1}', "remedy": ""},
    ]


async def test_those_who_ask_for_a_check_meanwhile_get_the_same(stage: Stage) -> None:
    answers = await asyncio.gather(*(stage.get("/api/v1/check") for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert stage.others.checks == 1
    await stage.get("/api/v1/check")
    assert stage.others.checks == 1


async def test_check_that_is_old_is_made_again() -> None:
    others, now = Others(), 1000.0
    checks = Checks(others.check, lambda: now)
    await checks.report("a")
    now += status_api.CHECK_AGE_S - 1
    await checks.report("a")
    assert others.checks == 1
    now += 1
    await checks.report("a")
    assert others.checks == 2


async def test_check_that_fails_is_told_and_the_next_one_tries_again(stage: Stage) -> None:
    stage.others.error = DaemonBusy("another check runs; ask again in a few seconds")
    answer = await stage.get("/api/v1/check")
    assert (answer.status, answer.json["type"]) == (503, "/problems/busy")
    stage.others.error = None
    assert (await stage.get("/api/v1/check")).status == 200


# --- The history ---------------------------------------------------------------------------------


async def test_history_is_searched_as_asked(stage: Stage) -> None:
    query = (
        "channel=a&caller=b&host=c&reason=d&text=e&failed=true&since=1.5&until=2&limit=7&cursor=f"
    )
    answer = await stage.get(f"/api/v1/history?{query}")
    assert stage.others.searched == [HistoryQuery("a", "b", "c", "d", "e", True, 1.5, 2.0, 7, "f")]
    assert answer.json["next_cursor"] == "next"
    (entry,) = answer.json["entries"]
    assert entry["fork_id"] == OTHER_ID
    assert entry["caller_name"] == "<b>Zo\u00eb</b>"
    assert entry["totals"] == {"frames_in": 7}
    assert entry["timeline"] == []
    await stage.get("/api/v1/history")
    assert stage.others.searched[1] == HistoryQuery()


async def test_history_of_one_asterisk_is_empty_without_a_cluster(stage: Stage) -> None:
    answer = await stage.get("/api/v1/history?asterisk=pbx")
    assert (answer.status, answer.json) == (
        200,
        {"entries": [], "next_cursor": "", "missing": {}},
    )


async def test_history_of_one_has_its_timeline(stage: Stage) -> None:
    answer = await stage.get(f"/api/v1/history/{OTHER_ID}")
    assert answer.json["timeline"] == [{"at": 1000.0, "kind": "requested", "text": ""}]
    assert (await stage.get(f"/api/v1/history/{FORK_ID}")).status == 404


async def test_causes_are_no_fork(stage: Stage) -> None:
    answer = await stage.get("/api/v1/history/causes?since=5")
    assert answer.json["missing"] == {}
    assert answer.json["causes"] == [
        {
            **{"reason": "sink-gone", "detail": "Connection refused", "count": 3},
            **{"latest_at": 1002.5, "fork_id": OTHER_ID},
        }
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [(AudioForkError("the disk is full"), 503), (ValueError("expected that of a page"), 422)],
)
async def test_history_that_cannot_be_asked_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def search(query: HistoryQuery) -> tuple[list[object], str]:
        raise error

    monkeypatch.setattr(stage.others, "search", search)
    answer = await stage.get("/api/v1/history")
    assert answer.status == status
    assert answer.json["detail"].removeprefix("cursor: ") == str(error)
