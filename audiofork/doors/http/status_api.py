"""The routes of the daemon itself: health, metrics, status, profiles, the check."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from audiofork.doors.exposition import CONTENT_TYPE, OPEN_METRICS_TYPE, wants_open_metrics
from audiofork.doors.http.answers import (
    CheckReport,
    FindingOfCheck,
    MinuteOfSeries,
    ProfileList,
    Readiness,
    SeriesAnswer,
    SeriesQuery,
    Status,
)
from audiofork.doors.http.parts import Parts, RunCheck
from audiofork.doors.http.problems import Kind, Problem
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.sending import answer
from audiofork.reading_json import parsed_json
from audiofork.text import printable

log = logging.getLogger(__name__)

CHECK_AGE_S = 30.0
MAX_FINDINGS = 500
TEXT = "text/plain"


class StatusApi:
    """Answers what is asked of the daemon.

    Args:
        parts: The parts of the daemon.
        viewers: Returns how many clients read the events.
    """

    def __init__(self, parts: Parts, viewers: Callable[[], int]) -> None:
        self._parts = parts
        self._viewers = viewers
        self._checks = Checks(parts.check) if parts.check is not None else None

    def routes(self) -> list[Route]:
        """Return the routes."""
        up = Readiness
        return [
            Route("GET", "/healthz", self.health, None, answers={200: str}, media_type=TEXT),
            Route("GET", "/readyz", self.ready, None, answers={200: up, 503: up}),
            Route(
                *("GET", "/metrics", self.metrics),
                answers={200: str},
                media_type=TEXT,
                problems=(404,),
            ),
            Route("GET", "/api/v1/status", self.status, answers={200: Status}),
            Route(
                *("GET", "/api/v1/series", self.series),
                query=SeriesQuery,
                answers={200: SeriesAnswer},
                problems=(404,),
            ),
            Route("GET", "/api/v1/profiles", self.profiles, answers={200: ProfileList}),
            Route(
                *("GET", "/api/v1/check", self.check),
                answers={200: CheckReport},
                problems=(404, 503),
            ),
        ]

    async def health(self, _call: Call) -> web.StreamResponse:
        """Say ok: the daemon runs."""
        return answer_health()

    async def ready(self, _call: Call) -> web.StreamResponse:
        """Say whether forks can be started: Asterisk is connected, and a relay runs."""
        status = self._parts.status()
        is_ready = status.asterisk.up and status.has_relay
        said = Readiness(is_ready, _up(status.asterisk.up), _up(status.has_relay))
        return answer(said, 200 if is_ready else 503)

    async def metrics(self, call: Call) -> web.StreamResponse:
        """Return all metrics, in Prometheus' text format, or as OpenMetrics if that is accepted."""
        if self._parts.metrics is None:
            raise Problem(404, "this daemon has no metrics", Kind.NOT_AVAILABLE)
        is_open = wants_open_metrics(call.request.headers.get("Accept", ""))
        text = await self._parts.metrics.render(open_metrics=is_open)
        return answer_metrics(text, open_metrics=is_open)

    async def status(self, _call: Call) -> web.StreamResponse:
        """Return the state of Asterisk, the relays, and the daemon's counters."""
        status = dataclasses.replace(
            self._parts.status(),
            viewers=self._viewers(),
            history=(self._parts.history or self._parts.histories) is not None,
        )
        return answer(status)

    async def series(self, call: Call) -> web.StreamResponse:
        """Return what has happened in each minute of the last hours."""
        missing: Mapping[str, str] = {}
        if self._parts.cluster is not None:
            counted, missing = await self._parts.cluster.minutes(call.query.hours)
        elif self._parts.series is not None:
            counted = self._parts.series.minutes(call.query.hours)
        else:
            raise Problem(404, "this daemon keeps no series", Kind.NOT_AVAILABLE)
        minutes = [
            MinuteOfSeries(
                *(one.at, one.started, one.ended, one.failed, one.refused, one.reconnects),
                one.frames_dropped,
            )
            for one in counted
        ]
        return answer(SeriesAnswer(minutes, missing))

    async def profiles(self, _call: Call) -> web.StreamResponse:
        """Return the names of the profiles that a fork may name."""
        return answer(ProfileList(sorted(self._parts.profiles())))

    async def check(self, call: Call) -> web.StreamResponse:
        """Run a check, or return the last one if it is younger than 30 s."""
        if self._checks is None:
            raise Problem(404, "this daemon runs no checks", Kind.NOT_AVAILABLE)
        return answer(await self._checks.report(call.who))


def answer_health() -> web.Response:
    """Return the answer of what runs."""
    return web.Response(text="ok\n")


def answer_metrics(text: str, *, open_metrics: bool) -> web.Response:
    """Return metrics as an answer."""
    content_type = OPEN_METRICS_TYPE if open_metrics else CONTENT_TYPE
    return web.Response(body=text.encode(), headers={"Content-Type": content_type})


def _up(is_up: bool) -> str:
    return "up" if is_up else "down"


class Checks:
    """Runs one check at a time, for all who ask meanwhile and for CHECK_AGE_S.

    Args:
        run: Runs a check, see doors/check_process.py.
        clock: Returns the time in seconds.
    """

    def __init__(self, run: RunCheck, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._running: asyncio.Task[CheckReport] | None = None
        self._last: CheckReport | None = None
        self._ended_at = float("-inf")

    async def report(self, who: str) -> CheckReport:
        """Return the result of a check.

        Args:
            who: Who asks, for the log.

        Raises:
            DaemonBusy: Another one runs, for the command line.
            TimeoutError: It has hung.
        """
        if self._last is not None and self._clock() - self._ended_at < CHECK_AGE_S:
            return self._last
        if self._running is None or self._running.done():
            log.info("check for HTTP client %s", who)
            self._running = asyncio.create_task(self._once())
            # Whoever has asked may have left: then nobody takes its exception.
            self._running.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._running)

    async def _once(self) -> CheckReport:
        began, exit_code = time.time(), 0
        findings: list[FindingOfCheck] = []
        async for part in self._run({"json": "yes"}):
            if "exit_code" in part:
                exit_code = int(part["exit_code"])
            elif len(findings) < MAX_FINDINGS:
                findings.append(_finding_of(str(part.get("line", ""))))
        self._last = CheckReport(round(began, 3), exit_code, findings)
        self._ended_at = self._clock()
        return self._last


def _finding_of(line: str) -> FindingOfCheck:
    """Return a finding by its line of JSON; any other line is an error that ended the check."""
    try:
        fields: Any = parsed_json(line)
        return FindingOfCheck(*(str(fields[name]) for name in ("status", "name", "text", "remedy")))
    except (ValueError, LookupError, TypeError):
        return FindingOfCheck("fail", "check", printable(line, "?"), "")
