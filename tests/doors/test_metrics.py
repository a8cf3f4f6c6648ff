"""The metrics of a daemon: true to what happens, bounded, never decreasing, and well formed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from audiofork.asterisk.versions import Version
from audiofork.cluster.beats import Beat
from audiofork.cluster.roster import Host, HostState
from audiofork.config import Address
from audiofork.doors import metric_table
from audiofork.doors.exposition import Kind, Metric
from audiofork.doors.metric_table import METRICS
from audiofork.doors.metrics import _FORKS_AT_ONCE, Metrics, _RelaysUsed
from audiofork.errors import Refusal, RequestRefused
from audiofork.forks.events import Attack, AttackKind, ForkInfo, Requested, Started
from audiofork.forks.requests import StartFork, parse_request
from audiofork.forks.statistics import STATS_TIMEOUT_S
from audiofork.link.messages import (
    LATENCY_BUCKETS_MS,
    EndReason,
    ForkStats,
    LegPart,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    StatsTaken,
    Streaming,
)
from audiofork.link.relay import WorkerState
from tests.control_plane import NAME, START, Rig

PAIRS = LegPart.PAIRS
AT = Address("127.0.0.1", 9092)
# The labels whose values are no words of ours: there is one at a time, or as many as configured.
FREE_LABELS = {"version", "python", "worker", "host", "controller", "asterisk"}

Samples = dict[tuple[str, ...], float]


@dataclass
class FakeRelay:
    """Stands for the relay, whose statistics come by the rig."""

    workers: list[WorkerState] = field(default_factory=lambda: [WorkerState(AT, True, 0)])


@dataclass
class FakeAriLink:
    """Stands for the connection to ARI."""

    is_up: bool = True
    rtt_s: float = 0.004
    connects: int = 3


HOST = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0")


@dataclass
class FakeCluster:
    """Stands for the cluster of a controller that leads."""

    leads: bool = True
    names: tuple[str, str] = ("c1", "pbx")
    epoch: int = 7
    hosts: list[Host] = field(default_factory=lambda: [Host(HOST, HostState.OPEN)])


class Scene:
    """Metrics of the rig."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.relay = FakeRelay()
        self.metrics = Metrics(
            *(rig.forks, rig.counters, cast(Any, self.relay), cast(Any, rig.ami), None)
        )
        rig.hub.subscribe(self.metrics.on_event)

    async def samples(self) -> Samples:
        """Return all values, by the name and the values of the labels, in their order."""
        return samples_of(await self.metrics.render())


def samples_of(text: str) -> Samples:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
async def scene(rig: Rig) -> AsyncIterator[Scene]:
    scene = Scene(rig)
    yield scene
    scene.metrics.close()


# --- What they are ---


@pytest.mark.parametrize("is_open", [False, True], ids=["prometheus", "openmetrics"])
async def test_names_texts_and_kinds_are_as_the_table_says_and_each_metric_is_there(
    scene: Scene, is_open: bool
) -> None:
    scene.metrics._ari = cast(Any, FakeAriLink())
    scene.metrics._cluster = FakeCluster()
    scene.rig.ami.rtt_s = 0.001
    worker = WorkerState(AT, True, 1, rtt_s=0.002, pid=os.getpid())
    scene.relay.workers = [worker, WorkerState(AT, False, 0)]
    await scene.rig.stream()
    text = await scene.metrics.render(open_metrics=is_open)
    families = list(
        open_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        if is_open
        else parser.text_string_to_metric_families(text)
    )
    found = [(family.name, family.type, family.documentation) for family in families]
    assert sorted(found) == sorted((one.family, one.kind.value, one.text) for one in METRICS)
    assert [family.name for family in families if not family.samples] == []


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_name_is_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"(audiofork|process)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.text.endswith(".")
    assert metric.text.isprintable()
    if metric.kind is Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
        assert not metric.labels


def test_no_two_metrics_have_one_name() -> None:
    assert len({one.family for one in METRICS}) == len(METRICS)


def test_label_of_any_metric_has_few_values_or_is_free_for_a_reason() -> None:
    for one in METRICS:
        assert all(len(values) <= 12 for values in one.labels.values())
        assert {name for name, values in one.labels.items() if not values} <= FREE_LABELS


def test_tables_of_the_docs_are_the_code() -> None:
    docs = (Path(__file__).parent.parent.parent / "docs/metrics.md").read_text()
    assert metric_table.as_markdown() in docs
    assert [reason for reason in Refusal if f"| `{reason}` |" not in docs] == []


@pytest.mark.slow
def test_daemon_without_metrics_does_not_load_them() -> None:
    """So they cost nothing where nobody asks."""
    program = "import audiofork.daemon, sys; sys.exit('audiofork.doors.metrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- No label may have values without bound ---


def labels_of(samples: Samples) -> set[tuple[str, ...]]:
    return set(samples)


async def test_nothing_that_callers_servers_and_requesters_choose_makes_a_series(
    scene: Scene,
) -> None:
    rig = scene.rig
    before = labels_of(await scene.samples())
    for number in range(30):
        evil = f'x{number}"}} 1\n# EOF\r\n\x1b'
        uniqueid = f"1700000{number:03}.1"
        rig.ami.channels[uniqueid] = f"PJSIP/{number}-{evil!r}"
        rig.hub.emit(Attack(list(AttackKind)[number % 3], evil))
        with pytest.raises(RequestRefused):
            await rig.ask(**{**START, "channel": f"nobody-{number}"})
        with pytest.raises(RequestRefused):
            await rig.ask(**{**START, "options": f"D(in)T(ca={number})"})
        fork_id = await rig.stream(
            channel="", uniqueid=uniqueid, wsserver=f"ws://{number}.example.org/?t={number}"
        )
        rig.forks.on_report(SinkMessage(fork_id, evil))
        rig.forks.on_report(SinkRetrying(fork_id, number + 1, evil))
        rig.forks.on_report(SinkResumed(fork_id, number))
        await rig.ended(fork_id, list(EndReason)[number % len(EndReason)], evil)
    after = await scene.samples()
    assert labels_of(after) == before
    assert after["audiofork_forks_started_total",] == 30
    assert sum(value for key, value in after.items() if "refused" in key[0]) > 30


async def test_version_of_asterisk_is_one_value_whatever_it_says(scene: Scene) -> None:
    counts = []
    for text in ("22.5.2", "23.0.0", 'evil"} 1\naudiofork_ami_up 7'):
        scene.rig.ami.version = Version.parse(text)
        found = [key for key in await scene.samples() if key[0] == "audiofork_asterisk_info"]
        counts.append(len(found))
    assert counts == [1, 1, 1]
    assert (await scene.samples())["audiofork_ami_up",] == 1


# --- Counters do not decrease ---


def counters(samples: Samples) -> Samples:
    """Return the values that may not decrease: counters, and those of histograms."""
    names = {one.name for one in METRICS if one.kind is Kind.COUNTER}
    times = {one.name for one in METRICS if one.kind is Kind.HISTOGRAM}
    parts = {name + part for name in times for part in ("_bucket", "_sum", "_count")}
    return {key: value for key, value in samples.items() if key[0] in names | parts}


async def life_of_a_fork(rig: Rig) -> AsyncIterator[None]:
    """Yield after each thing that happens to a fork, and to the relay process that has it."""
    fork_id = await rig.attach()
    yield
    rig.forks.on_report(Streaming(fork_id))
    rig.stats = {fork_id: ForkStats(500, 490, 5, frames_missing=3, frames_played=7, underruns=1)}
    yield
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.5))
    # Frames that were not acknowledged have come back.
    rig.stats = {fork_id: ForkStats(510, 470, 5, frames_missing=3, frames_played=7, underruns=1)}
    yield
    rig.forks.on_report(SinkResumed(fork_id, 2))
    rig.stats = {fork_id: ForkStats(600, 580, 7, 1, frames_missing=3, frames_played=9)}
    yield
    rig.stats = {}  # the process that has it does not answer in time
    yield
    rig.stats = None  # the relay does not answer at all
    yield
    await rig.lose_relay(fork_id)
    rig.live.append(fork_id)
    rig.stats = {fork_id: ForkStats()}
    yield
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(Streaming(fork_id))
    rig.stats = {fork_id: ForkStats(20, 20, 0)}
    yield
    await rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(25, 24, 1))
    rig.stats = {}
    yield
    second = await rig.stream()
    rig.stats = {second: ForkStats(10, 10, 0)}
    yield
    await rig.ended(second, EndReason.STOPPED, stats=ForkStats())  # its relay process has died
    yield


async def test_no_counter_decreases_over_the_whole_life_of_a_fork(scene: Scene) -> None:
    before = counters(await scene.samples())
    async for _ in life_of_a_fork(scene.rig):
        rendering = asyncio.create_task(scene.metrics.render())
        await scene.rig.clock.settle()
        await scene.rig.clock.advance(STATS_TIMEOUT_S)
        after = counters(samples_of(await rendering))
        assert after.keys() == before.keys()
        fallen = {key: (before[key], after[key]) for key in before if after[key] < before[key]}
        assert fallen == {}
        before = after
    assert before["audiofork_frames_in_total",] == 600 + 25 + 10
    assert before["audiofork_frames_sent_total",] == 580 + 24 + 10
    assert before["audiofork_frames_dropped_total",] == 7 + 1
    assert before["audiofork_playout_frames_total", "played"] == 9
    assert before["audiofork_server_reconnects_total",] == 1
    assert before["audiofork_server_retries_total",] == 1
    assert before["audiofork_relays_lost_total",] == 1
    assert before["audiofork_forks_ended_total", "hangup"] == 1


# --- What they say ---


async def test_forks_are_shown_by_state_and_direction(scene: Scene) -> None:
    rig = scene.rig
    rig.allow(max_forks_per_channel=9)
    await rig.start(options="D(in)")
    await rig.stream(options="D(stereo)")
    lost = await rig.stream(options="D(stereo)")
    rig.forks.on_report(SinkRetrying(lost, 1, "gone"))
    samples = await scene.samples()
    forks = {key[1:]: value for key, value in samples.items() if key[0] == "audiofork_forks"}
    assert {key: value for key, value in forks.items() if value} == {
        ("attaching", "in"): 1,
        ("streaming", "stereo"): 1,
        ("reconnecting", "stereo"): 1,
    }
    assert len(forks) == 4 * 4


async def test_frames_that_wait_and_bytes_under_way_are_those_of_all_forks(scene: Scene) -> None:
    rig = scene.rig
    rig.allow(max_forks_per_channel=9)
    first, second = await rig.stream(), await rig.stream()
    rig.stats = {
        first: ForkStats(100, 80, 5, rtt_ms=3.0, unacked_bytes=700),
        second: ForkStats(50, 50, 0, rtt_ms=250.0, unacked_bytes=50),
    }
    samples = await scene.samples()
    assert samples["audiofork_frames_waiting",] == 15
    assert samples["audiofork_unacked_bytes",] == 750
    assert samples["audiofork_server_rtt_max_seconds",] == 0.25


async def test_start_time_is_counted_from_the_request_to_the_first_frame(scene: Scene) -> None:
    fork_id = await scene.rig.attach()
    await scene.rig.clock.advance(0.25)
    scene.rig.forks.on_report(Streaming(fork_id))
    samples = await scene.samples()
    assert samples["audiofork_start_seconds_bucket", "0.2"] == 0
    assert samples["audiofork_start_seconds_bucket", "0.3"] == 1
    assert samples["audiofork_start_seconds_sum",] == 0.25


async def test_fork_that_is_resumed_has_no_start_time(scene: Scene) -> None:
    fork = ForkInfo("a", NAME, "1.1", "ws://a", from_earlier_run=True)
    scene.metrics.on_event(Started(fork, after_s=7.0))
    assert (await scene.samples())["audiofork_start_seconds_count",] == 0


async def test_commands_that_either_plane_has_refused_are_counted(scene: Scene) -> None:
    fork_id = await scene.rig.stream()
    fork = scene.rig.forks._table.get(fork_id)
    assert fork is not None
    fork.progress.commands_refused = 2
    scene.rig.stats = {fork_id: ForkStats(commands_refused=3)}
    assert (await scene.samples())["audiofork_commands_refused_total",] == 5
    await scene.rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(commands_refused=3))
    assert (await scene.samples())["audiofork_commands_refused_total",] == 5


async def test_latencies_are_those_that_the_relay_has_counted(scene: Scene) -> None:
    counts = tuple(range(len(LATENCY_BUCKETS_MS) + 1))
    scene.rig.stats = None
    rendering = asyncio.create_task(scene.metrics.render())
    await scene.rig.clock.settle()
    (ticket,) = scene.rig.forks._statistics._asked
    scene.rig.forks.on_report(StatsTaken(ticket, {}, counts, 2.5))
    samples = samples_of(await rendering)
    assert samples["audiofork_latency_seconds_bucket", "0.001"] == 0
    assert samples["audiofork_latency_seconds_bucket", "+Inf"] == counts[-1]
    assert samples["audiofork_latency_seconds_sum",] == 2.5


async def test_what_waits_is_left_out_and_the_rest_told_if_the_relay_does_not_answer(
    scene: Scene,
) -> None:
    fork_id = await scene.rig.stream()
    scene.rig.stats = {fork_id: ForkStats(100, 80, 5)}
    await scene.samples()
    scene.rig.stats = None
    rendering = asyncio.create_task(scene.metrics.render())
    await scene.rig.clock.advance(STATS_TIMEOUT_S)
    samples = samples_of(await rendering)
    assert samples["audiofork_frames_in_total",] == 100
    assert ("audiofork_frames_waiting",) not in samples


async def test_asterisk_that_is_away_is_told(scene: Scene) -> None:
    ami = scene.rig.ami
    ami.rtt_s, ami.connects = 0.0125, 4
    samples = await scene.samples()
    assert (samples["audiofork_ami_up",], samples["audiofork_ami_connects_total",]) == (1, 4)
    assert samples["audiofork_ami_rtt_seconds",] == 0.0125
    assert ("audiofork_ari_up",) not in samples
    ami.is_up, ami.rtt_s = False, 0.0
    scene.metrics._ari = cast(Any, FakeAriLink(is_up=False, rtt_s=0.0))
    samples = await scene.samples()
    assert (samples["audiofork_ami_up",], samples["audiofork_ari_up",]) == (0, 0)
    assert ("audiofork_ami_rtt_seconds",) not in samples
    assert ("audiofork_ari_rtt_seconds",) not in samples


async def test_relay_processes_are_told_one_by_one(scene: Scene) -> None:
    scene.relay.workers = [
        WorkerState(AT, True, 12, rtt_s=0.003, pid=os.getpid()),
        WorkerState(AT, False, 0),
    ]
    samples = await scene.samples()
    assert samples["audiofork_relays", "up"] == samples["audiofork_relays", "down"] == 1
    assert samples["audiofork_relay_forks", "1"] == 12
    assert samples["audiofork_relay_rtt_seconds", "1"] == 0.003
    assert samples["audiofork_relay_cpu_seconds_total", "1"] > 0
    assert samples["audiofork_relay_resident_memory_bytes", "1"] > 1_000_000
    assert ("audiofork_relay_rtt_seconds", "2") not in samples


async def test_relay_hosts_are_told_by_their_names(scene: Scene) -> None:
    scene.relay.workers = [WorkerState(AT, True, 12, rtt_s=0.003, name="r1")]
    samples = await scene.samples()
    assert samples["audiofork_relay_forks", "r1"] == 12
    assert samples["audiofork_relay_rtt_seconds", "r1"] == 0.003


async def test_cluster_is_told_while_there_is_one(scene: Scene) -> None:
    assert not any(name.startswith("audiofork_relay_host") for name, *_ in await scene.samples())
    assert ("audiofork_leads",) not in await scene.samples()
    scene.metrics._cluster = cluster = FakeCluster()
    cluster.hosts.append(Host(replace(HOST, name="r2"), HostState.DEAD))
    samples = await scene.samples()
    assert (samples["audiofork_leads",], samples["audiofork_epoch",]) == (1, 7)
    assert samples["audiofork_controller_info", "c1", "pbx"] == 1
    states = {state.value: samples["audiofork_relay_hosts", state] for state in HostState}
    assert states == {"open": 1, "draining": 0, "dead": 1}
    assert set(metric_table.HOSTS.labels["state"]) == states.keys()
    of_hosts = {key: value for key, value in samples.items() if "_host_" in key[0]}
    assert of_hosts == {
        ("audiofork_relay_host_forks", "r1"): 12,
        ("audiofork_relay_host_capacity", "r1"): 500,
        ("audiofork_relay_host_cpu_ratio", "r1"): 0.25,
    }
    cluster.leads = False
    assert (await scene.samples())["audiofork_leads",] == 0


def test_cpu_time_of_a_relay_process_that_was_replaced_stays_in_the_sum() -> None:
    used = _RelaysUsed()
    for pid, cpu_s, total in ((7, 5.0, 5.0), (7, 6.0, 6.0), (7, 5.5, 6.0), (8, 0.5, 6.5)):
        used._add(("1",), pid, cpu_s)
        assert used.cpu_s["1",] == total


async def test_process_is_told_of_as_the_kernel_knows_it(scene: Scene) -> None:
    samples = await scene.samples()
    assert samples["process_cpu_seconds_total",] == pytest.approx(time.process_time(), abs=2)
    assert 1e6 < samples["process_resident_memory_bytes",] < 1e10
    assert 3 <= samples["process_open_fds",] < samples["process_max_fds",]
    assert 0 <= time.time() - samples["process_start_time_seconds",] < 86_400
    assert await scene.samples() | {("process_open_fds",): 0}  # may be asked for again


async def test_renderings_at_once_agree(scene: Scene) -> None:
    fork_id = await scene.rig.stream()
    scene.rig.stats = {fork_id: ForkStats(100, 80, 5)}
    texts = await asyncio.gather(*(scene.metrics.render() for _ in range(3)))
    assert {samples_of(text)["audiofork_frames_in_total",] for text in texts} == {100}


async def test_forks_by_the_thousand_are_added_up_in_many_turns_of_the_loop(scene: Scene) -> None:
    """The relay's own part is measured elsewhere: here it has answered already."""
    rig = scene.rig
    request = parse_request(START)
    assert isinstance(request, StartFork)
    ids = [f"{number:08}" for number in range(1000)]
    for fork_id in ids:
        scene.metrics.on_event(Requested(ForkInfo(fork_id, NAME, "1.1", "ws://a"), request))
    rig.stats = {fork_id: ForkStats(1000, 990, 5, rtt_ms=1.0) for fork_id in ids}
    turns = 0
    rendering = asyncio.create_task(scene.metrics.render())
    while not rendering.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 1000 // _FORKS_AT_ONCE
    assert samples_of(await rendering)["audiofork_frames_in_total",] == 1_000_000
