"""How long frames take to be acknowledged: what is measured, and how it is counted."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from audiofork.link.messages import LATENCY_BUCKETS_MS
from audiofork.relay.latencies import Latencies
from audiofork.relay.unacked import Unacked
from tests.relay.kernels import Kernel, Transport
from tests.relay.peers import FickleServer, StalledServer, numbered, until
from tests.relay.sinks import Start, Waits, all_acknowledged, offer, offer_until_stalled, opened

pytestmark = pytest.mark.usefixtures("nothing_left")


class Watched(Latencies):
    """Keeps what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[float] = []

    def add(self, seconds: float) -> None:
        super().add(seconds)
        self.added.append(round(seconds, 6))


class Stage:
    """The writes of a connection, of a byte each, with a clock and a kernel of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        self.kernel = Kernel.behind_all(monkeypatch)
        self.latencies = Watched()
        transport = cast(asyncio.Transport, Transport(self.kernel))
        self.unacked = Unacked(transport, 1, self.latencies)

    def write(self, count: int, waited_s: float = 0.0) -> None:
        """Write, and mark the last write."""
        for _ in range(count):
            self.unacked.writes.append(b"x")
        self.kernel.rtt_s = 1.0
        self.unacked.update()
        self.unacked.mark(waited_s)

    def after(self, seconds: float, *, acknowledged: int, rtt_s: float) -> list[float]:
        """Return all that was measured, once so many writes more are acknowledged."""
        self.now_s += seconds
        self.kernel.acked += acknowledged
        self.kernel.rtt_s = rtt_s
        self.unacked.update()
        return self.latencies.added


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_write_acknowledged_by_the_next_update_took_the_round_trip(stage: Stage) -> None:
    stage.write(1)
    assert stage.after(0.1, acknowledged=1, rtt_s=0.03) == [0.03]


def test_write_took_no_longer_than_until_it_was_seen_to_be_acknowledged(stage: Stage) -> None:
    stage.write(1)
    assert stage.after(0.01, acknowledged=1, rtt_s=0.03) == [0.01]


def test_write_that_was_not_acknowledged_at_an_update_took_at_least_until_then(
    stage: Stage,
) -> None:
    stage.write(3)
    assert stage.after(0.1, acknowledged=2, rtt_s=0.03) == []
    assert stage.after(0.1, acknowledged=1, rtt_s=0.03) == [0.1]


def test_time_that_a_frame_has_waited_before_its_write_counts(stage: Stage) -> None:
    stage.write(1, waited_s=4.0)
    assert stage.after(0.1, acknowledged=1, rtt_s=0.03) == [4.03]


def test_marks_are_measured_in_their_order_each_by_its_own_write(stage: Stage) -> None:
    stage.write(5, waited_s=0.4)
    stage.write(5, waited_s=0.2)
    assert stage.after(0.1, acknowledged=5, rtt_s=0.0) == [0.4]
    stage.write(5)
    assert stage.after(0.1, acknowledged=10, rtt_s=0.0) == [0.4, 0.3, 0.0]


def test_kernel_that_tells_no_round_trip_has_nothing_measured(stage: Stage) -> None:
    stage.unacked.writes.append(b"x")
    stage.unacked.update()
    stage.unacked.mark(0.0)
    assert stage.after(0.1, acknowledged=1, rtt_s=0.0) == []


def test_counts_are_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    latencies = Latencies()
    assert latencies.cumulative() == ()
    for milliseconds in (0.5, 1, 1.5, LATENCY_BUCKETS_MS[-1], 60_000):
        latencies.add(milliseconds / 1000)
    counts = latencies.cumulative()
    assert counts[:3] == (2, 3, 3)
    assert (counts[-2:], len(counts)) == ((4, 5), len(LATENCY_BUCKETS_MS) + 1)
    assert latencies.sum_s == pytest.approx(70.003)


async def test_one_frame_of_25_is_measured_over_a_real_connection(
    fickle: FickleServer, start: Start
) -> None:
    latencies = Watched()
    sink, _ = start(fickle.url, latencies=latencies)
    await opened(sink)
    for count in range(0, 100, 5):
        offer(sink, numbered(5, count), before=count)
        await asyncio.sleep(0)
    await until(lambda: all_acknowledged(sink))
    assert len(latencies.added) == 4
    assert 0 < max(latencies.added) < 1
    rtt_ms, unacked_bytes = sink.on_the_way()
    assert (0 < rtt_ms < 1000, unacked_bytes) == (True, 0)


async def test_frames_that_a_stalled_server_does_not_take_are_on_their_way_and_not_measured(
    stalled: StalledServer, start: Start
) -> None:
    latencies = Watched()
    sink, _ = start(stalled.url, latencies=latencies)
    await opened(sink)
    sent = offer_until_stalled(sink)
    rtt_ms, unacked_bytes = sink.on_the_way()
    assert rtt_ms > 0
    assert sink._outlet.budget_bytes < unacked_bytes < sent * 400
    assert 5 * len(latencies.added) < sink.frames_sent


async def test_sink_without_a_connection_has_nothing_on_the_way(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url)
    assert sink.on_the_way() == (0.0, 0)
