"""A controller that serves several Asterisks, one of which fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiofork import control
from audiofork.cluster.beats import ControlBeat
from audiofork.cluster.wandering import Wandering
from audiofork.config import ClusterConfig, Config, HttpConfig, NamedAsterisk
from audiofork.control import Control
from audiofork.control_asterisk import AWAY, NO_LEAD, AsteriskControl, unless
from audiofork.errors import BrokerUnavailable, ConfigError
from audiofork.log import asterisk
from tests.doors.http.stage import write_tokens

CLUSTER = "[cluster]\nservers = nats://127.0.0.1:9\nasterisk = pbx-a\n[asterisk]\n"


def write(path: Path, text: str) -> None:
    path.write_text(text)


class Served:
    """What stands for one Asterisk: it fails some times, then it runs until it is told to stop.

    Attributes:
        runs, left, reloads: How often it was run, left the lead, and was to read its file.
        is_silent: Whether NATS does not say who leads for it.
        named: The Asterisk that lines of the log were of meanwhile.
        goes_on: Set when it runs and does not fail.
    """

    def __init__(self, name: str, *failures: Exception) -> None:
        self.name = name
        self._failures = list(failures)
        self.runs = self.left = self.reloads = self.beats = 0
        self.is_silent = self.leads = False
        self.run_id = "run"
        self.named = ""
        self.goes_on = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        self.runs += 1
        self.named = asterisk.get()
        if self._failures:
            raise self._failures.pop(0)
        self.goes_on.set()
        await stop.wait()

    async def join(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    async def leave(self) -> None:
        self.left += 1

    def beat(self) -> None:
        self.beats += 1

    def reload(self) -> None:
        self.reloads += 1
        self.named = asterisk.get()


class Door:
    """What stands for the HTTP interface.

    Attributes:
        read: The files whose tokens it was to read.
        taken: How often they were to count.
        error: What reading raises.
    """

    def __init__(self) -> None:
        self.read: list[str] = []
        self.taken = 0
        self.error: ConfigError | None = None

    def reading_tokens(self, config: HttpConfig) -> Callable[[], None]:
        self.read.append(config.tokens_file)
        if self.error is not None:
            raise self.error
        return self._take

    def _take(self) -> None:
        self.taken += 1


def controller_of(path: Path, *served: Served) -> Control:
    write(path, CLUSTER + "[asterisk pbx-b]\nport = 7\n")
    cluster = ClusterConfig(servers=("nats://127.0.0.1:9",), asterisk="pbx-a")
    one = Control(path, Config(cluster=cluster, asterisks={"pbx-b": NamedAsterisk()}))
    one.asterisks = list(served)  # type: ignore[arg-type]
    return one


async def serve(one: Control, served: Served) -> None:
    await one._serve(served)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audiofork.ini"


async def test_failure_of_one_gives_its_lead_up_and_is_tried_again_while_the_other_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "FAILED_S", 0.0)
    bad = Served("pbx-b", ConfigError("[asterisk pbx-b]: is gone"), RuntimeError("hunter2"))
    good = Served("pbx-a")
    one = controller_of(path, good, bad)
    serving = [asyncio.create_task(serve(one, served)) for served in (good, bad)]
    async with asyncio.timeout(30):
        await good.goes_on.wait()
        await bad.goes_on.wait()
    assert (bad.runs, bad.left, good.runs, good.left) == (3, 2, 1, 0)
    assert (bad.named, good.named) == ("pbx-b", "pbx-a")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == [
        f"pbx-b: cannot be served here: {path}:5: [asterisk pbx-b]: is gone; trying again in 0 s",
        "pbx-b: cannot be served here: a bug; trying again in 0 s",
    ]
    assert [bool(record.exc_info) for record in caplog.records[-2:]] == [False, True]
    one._stop.set()
    await asyncio.gather(*serving)
    assert (bad.left, good.left) == (3, 1)


async def test_wait_after_a_failure_ends_when_it_is_told_to_stop(path: Path) -> None:
    bad = Served("pbx-b", ConfigError("x"))
    one = controller_of(path, Served("pbx-a"), bad)
    serving = asyncio.create_task(serve(one, bad))
    async with asyncio.timeout(5):
        while not bad.left:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0)
        one._stop.set()
        await serving
    assert bad.runs == 1


async def test_failure_of_the_only_one_ends_the_process(path: Path) -> None:
    bad = Served("pbx-a", ConfigError("x"))
    with pytest.raises(ConfigError):
        await serve(controller_of(path, bad), bad)
    assert (bad.left, bad.named) == (0, "")


async def test_reload_reaches_all_and_tells_of_asterisks_that_count_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served = Served("pbx-a"), Served("pbx-b")
    one = controller_of(path, *served)
    one._reload()
    assert caplog.messages == []
    write(path, CLUSTER + "[asterisk pbx-c]\nport = 7\n")
    one._reload()
    assert [each.reloads for each in served] == [2, 2]
    assert [each.named for each in served] == ["pbx-a", "pbx-b"]
    assert asterisk.get() == ""
    assert caplog.messages == [
        "changes to which Asterisks are served take effect at the next start: pbx-b, pbx-c"
    ]
    write(path, "garbage")
    one._reload()
    (told,) = caplog.messages[1:]
    assert told.startswith("not reloaded, the old configuration stays: ")
    assert [each.reloads for each in served] == [2, 2]


async def test_reload_reads_the_tokens_once_and_leaves_all_as_it_is_where_they_cannot_be_used(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = write_tokens(tmp_path)
    served = Served("pbx-a"), Served("pbx-b")
    one = controller_of(path, *served)
    write(path, f"{CLUSTER}[asterisk pbx-b]\nport = 7\n[http]\ntokens_file = {tokens}\n")
    door = one.doors._http.door = Door()  # type: ignore[assignment]
    one._reload()
    assert (door.read, door.taken) == ([str(tokens)], 1)
    door.error = ConfigError("no tokens")
    one._reload()
    assert (len(door.read), door.taken) == (2, 1)
    assert [each.reloads for each in served] == [1, 1]
    assert "no tokens" in caplog.messages[-1]


async def test_configuration_of_one_is_read_as_its_own_and_an_error_once_it_is_gone(
    path: Path,
) -> None:
    one = controller_of(path)
    write(path, CLUSTER + "[asterisk pbx-b]\nport = 7\n")
    config = Config(cluster=ClusterConfig(asterisk="pbx-b"))
    own = AsteriskControl(path, config, one._broker, one._roster, "run")
    loaded = own.load()
    assert (loaded.cluster.asterisk, loaded.asterisk.port) == ("pbx-b", 7)
    write(path, CLUSTER)
    with pytest.raises(ConfigError, match="no section is of the Asterisk pbx-b any more"):
        own.load()


@pytest.mark.parametrize(("is_up", "told"), [(True, NO_LEAD), (False, AWAY)])
async def test_suspended_forks_are_told_whether_nats_is_away_or_does_not_confirm_the_lead(
    path: Path, *, is_up: bool, told: str
) -> None:
    config = Config(cluster=ClusterConfig(asterisk="pbx-a"))
    broker = SimpleNamespace(is_up=is_up)
    own = AsteriskControl(path, config, broker, controller_of(path)._roster, "run")  # type: ignore[arg-type]
    reasons: list[str] = []
    forks = SimpleNamespace(is_suspended=False, suspend=lambda why, _wait_s: reasons.append(why))
    own.daemon = SimpleNamespace(forks=forks)  # type: ignore[assignment]
    own._relay = SimpleNamespace(forget=lambda: None)  # type: ignore[assignment]
    own.suspend()
    assert reasons == [told]


async def test_what_is_done_until_a_stop_raises_what_it_raises_and_ends_with_the_stop() -> None:
    async def fail() -> None:
        raise ConfigError("x")

    async def wait() -> None:
        await asyncio.Event().wait()

    stop = asyncio.Event()
    with pytest.raises(ConfigError):
        await unless(stop, fail())
    stop.set()
    async with asyncio.timeout(5):
        await unless(stop, wait())


@pytest.mark.parametrize("answered", [0, 1])
async def test_connection_moves_to_another_server_where_none_of_the_leases_answers(
    path: Path, monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    """That is what a NATS server is like that is cut off from the others."""
    moved: list[int] = []

    class Impatient(Wandering):
        def is_due(self, *, is_heard: bool) -> bool:
            return not is_heard

    async def move() -> None:
        moved.append(1)

    monkeypatch.setattr(control, "Wandering", Impatient)
    monkeypatch.setattr(control, "CONTROL_BEAT_S", 0)
    served = [Served("pbx-a"), Served("pbx-b")]
    for number, asterisk_control in enumerate(served):
        asterisk_control.is_silent = number >= answered
    one = controller_of(path, *served)
    monkeypatch.setattr(one._broker, "move", move)
    beating = asyncio.create_task(one._beat())
    async with asyncio.timeout(20):
        while served[1].beats < 3:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0)
    beating.cancel()
    assert bool(moved) == (not answered)


async def test_controller_knows_better_than_its_last_beat_whether_it_leads(path: Path) -> None:
    served = Served("pbx-a")
    one = controller_of(path, served)
    beat = ControlBeat("c1", "pbx-a", served.run_id, leads=True)
    served.leads = True
    assert one._roster.is_led_here(beat)
    served.leads = False  # as while NATS is away
    assert not one._roster.is_led_here(beat)
    assert one._roster.is_led_here(replace(beat, run_id="another"))
    assert one._roster.is_led_here(replace(beat, asterisk="other"))


async def test_each_reason_why_leases_cannot_be_used_is_told_once_in_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "RETRY_S", 0.0)
    faults = [BrokerUnavailable(text) for text in ("full", "full", "off", "full")]
    one = controller_of(path, Served("pbx-a", *faults))

    async def nothing() -> None:
        pass

    parts = ((one._broker, "connect"), (one._roster, "start"), (one.doors, "join"))
    for part, name in parts:
        monkeypatch.setattr(part, name, nothing)
    monkeypatch.setattr(one._registered, "start", lambda: None)
    await one._join()
    texts = [
        f"the leases of the cluster cannot be used: {text}; trying again"
        for text in ("full", "off")
    ]
    assert caplog.messages == texts
