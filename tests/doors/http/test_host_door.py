"""The HTTP door of a relay host: two routes, with the tokens and limits of every door."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import parser

from audiofork.cluster.beats import Beat
from audiofork.cluster.figures import HostFigures
from audiofork.config import Address, HttpConfig
from audiofork.doors import metric_table
from audiofork.doors.exposition import Metric
from audiofork.doors.host_metrics import METRICS, HostMetrics
from audiofork.doors.http.host_door import HostDoor
from audiofork.link.messages import LATENCY_BUCKETS_MS
from tests.doors.http.stage import VIEWER, Answer, Client, request, write_tokens

FIGURES = HostFigures(
    beat=Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0", is_draining=True),
    is_connected=True,
    forks={"pbx-a": 9, "pbx-b": 3},
    controllers={"pbx-a": True, "pbx-b": False},
    counts={"frames_in": 100, "frames_sent": 90, "frames_dropped": 2, "frames_missing": 1},
    waiting=8,
    unacked_bytes=640,
    latency=tuple(range(1, len(LATENCY_BUCKETS_MS) + 2)),
    latency_sum_s=1.5,
)


class Stage:
    """A door with figures that do not change."""

    def __init__(self, folder: Path) -> None:
        self.tokens = write_tokens(folder)
        config = HttpConfig(listen=Address("127.0.0.1", 0), tokens_file=str(self.tokens))
        self.config = config
        self.door = HostDoor(config, self._figures)

    async def _figures(self) -> HostFigures:
        return FIGURES

    @property
    def port(self) -> int:
        assert self.door.address is not None
        return self.door.address.port

    async def get(self, path: str, token: str = VIEWER, **headers: str) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await Client(reader, writer).raw(request("GET", path, token, **headers))
        finally:
            writer.transport.abort()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    one = Stage(tmp_path)
    await one.door.start()
    yield one
    await one.door.close()


async def test_health_needs_no_token_and_metrics_need_one(stage: Stage) -> None:
    health = await stage.get("/healthz", "")
    assert (health.status, health.body) == (200, b"ok\n")
    assert (await stage.get("/metrics", "")).status == 401
    assert (await stage.get("/metrics", "wrong-0123456789abcdef")).status == 401
    assert (await stage.get("/metrics")).status == 200
    for path in ("/", "/api/v1/forks", "/api/v1/openapi.json", "/readyz"):
        assert (await stage.get(path)).status == 404


async def test_metrics_are_those_of_the_table_and_true(stage: Stage) -> None:
    for accept, kind in (("", "text/plain"), ("application/openmetrics-text", "application/open")):
        answer = await stage.get("/metrics", Accept=accept or "*/*")
        assert answer.headers["content-type"].startswith(kind)
    text = (await stage.get("/metrics")).body.decode()
    families = list(parser.text_string_to_metric_families(text))
    known = {one.family: (one.kind.value, one.text) for one in (*METRICS, *metric_table.METRICS)}
    found = {family.name: (family.type, family.documentation) for family in families}
    assert {one.family for one in METRICS} <= found.keys() <= known.keys()
    assert all(known[name] == told for name, told in found.items())
    samples = {
        (sample.name.removeprefix("audiofork_host_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    expected = {
        ("info", "r1", "north"): 1,
        ("broker_up",): 1,
        ("draining",): 1,
        ("capacity",): 500,
        ("forks", "pbx-a"): 9,
        ("forks", "pbx-b"): 3,
        ("controller_up", "pbx-a"): 1,
        ("controller_up", "pbx-b"): 0,
        ("frames_in_total",): 100,
        ("frames_sent_total",): 90,
        ("frames_dropped_total",): 2,
        ("frames_missing_total",): 1,
        ("frames_waiting",): 8,
        ("unacked_bytes",): 640,
        ("latency_seconds_sum",): 1.5,
        ("latency_seconds_count",): len(LATENCY_BUCKETS_MS) + 1,
    }
    assert {key: samples[key] for key in expected} == expected
    assert samples["process_resident_memory_bytes",] > 1_000_000


def test_text_of_a_label_that_a_host_has_chosen_stays_in_its_line() -> None:
    beat = replace(FIGURES.beat, zone='a"\n\\')
    text = HostMetrics().render(replace(FIGURES, beat=beat))
    assert 'zone="a\\"?\\\\"' in text


def test_table_of_the_docs_is_the_code() -> None:
    docs = (Path(__file__).parent.parent.parent.parent / "docs/metrics.md").read_text()
    assert metric_table.as_markdown(METRICS) in docs


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_name_is_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"audiofork_host_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind.value == "counter")
    assert metric.text.endswith(".")


async def test_token_that_is_gone_after_a_reload_counts_no_more(stage: Stage) -> None:
    stage.tokens.write_text("anna view another-0123456789abcdef\n")
    take = stage.door.reading_tokens(stage.config)
    assert (await stage.get("/metrics")).status == 200
    take()
    assert (await stage.get("/metrics")).status == 401
