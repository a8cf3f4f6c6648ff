"""The benchmark beside Asterisk runs, and its rival sends what our forks send.

No test asserts how fast something is.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.link.messages import LegPart
from bench import beside_asterisk, stage
from bench.beside_asterisk import (
    MODULE_PERCENT,
    Cost,
    Measured,
    Rest,
    Spread,
    cost,
    possible_rows,
    row,
    table,
)
from bench.program import ProgramFailed
from bench.stage import KINDS, RIVAL_CONNECTION, Load, Starts, originate_rival, staged
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, Installation
from testbed.blocks import decode, find_blocks, make_blocks
from testbed.recorder import Recorder
from testbed.sip import SipUser

ROOT = Path(__file__).parents[2]
FORKS = 10


# --- On a real Asterisk ---


@pytest.mark.asterisk
@pytest.mark.parametrize("tap", beside_asterisk.TAPS)
async def test_each_kind_of_forks_brings_20_ms_in_a_message_and_ends(
    monkeypatch: pytest.MonkeyPatch, tap: str
) -> None:
    monkeypatch.setattr(stage, "SETTLE_S", 0.5)
    async with staged(2, tap) as scene:
        kinds = possible_rows(list(KINDS), scene.asterisk.installation)
        rest, rows = await beside_asterisk.rows_of(scene, kinds, 1, 0.5)
        assert scene.hot_path == "Python"
        assert rest.asterisk.median > 0
        assert [(one.what, one.message_bytes) for one in rows] == [
            (name, KINDS[name].message_bytes) for name in kinds
        ]
        for one in rows:
            assert one.messages > 0, one.what
        assert scene.server.count()["open"] == 0
        with pytest.raises(ProgramFailed, match=r"320\.0 bytes a message, not 640"):
            await scene.load_of(replace(KINDS["in"], message_bytes=640), 0.5)


@pytest.mark.asterisk
async def test_rival_sends_what_the_caller_says() -> None:
    blocks, around = make_blocks(100, seed=1), make_blocks(25, seed=2)
    async with Recorder() as server:
        config = {"websocket_client.conf": RIVAL_CONNECTION.format(url=server.url())}
        with Asterisk(dialplan=stage.DIALPLAN, config=config) as asterisk:
            async with (
                AmiClient(asterisk) as ami,
                SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
            ):
                call = await caller.call("echo")
                begun = await ami.wait_event(lambda event: event.get("Event") == "Newchannel")
                originate_rival(ami, "rival", begun["Uniqueid"], LegPart.IN)
                warm_up = call.play(around, loop=True)
                recording = await server.wait_messages("/", 25)
                warm_up.cancel()
                await call.play([*blocks, *around])  # which push the last blocks through
    opening, *audio = recording.messages
    assert isinstance(opening, str)
    assert opening.startswith("MEDIA_START ")
    assert {len(message) for message in audio} == {320}
    # Whether it loses some is its own affair.
    found = find_blocks(recording.audio, [decode(block) for block in blocks])
    assert len(found) > 50
    assert found == sorted(found)


def test_unknown_row_is_named_with_those_that_are() -> None:
    command = [sys.executable, "-m", "bench.beside_asterisk", "--rows", "in,out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no row out; there are: in, both, stereo, websocket-in," in done.stderr


# --- What is made of the loads ---


def test_cost_of_a_fork_is_what_exceeds_the_calls_alone_before_and_after() -> None:
    before, after = Load(7.0, 0.5), Load(9.0, 1.5)
    one = cost(Load(28.0, 11.0), before, after, FORKS)
    assert (one.asterisk, one.daemon) == (2.0, 1.0)
    assert one.whole == 3.0


def loads(*messages: float) -> list[Load]:
    return [Load(20.0, 5.0, one, 320.0, 40_000 + round(one)) for one in messages]


def test_row_has_the_median_and_the_spread_of_all_rounds_beside_the_module() -> None:
    costs = [Cost(0.2, 0.3), Cost(0.4, 0.1), Cost(0.3, 0.27)]
    one = row("in", loads(500, 490, 400), costs, [], FORKS)
    assert one.asterisk == Spread(0.3, 0.2, 0.4)
    assert one.daemon == Spread(0.27, 0.1, 0.3)
    assert (one.whole.median, one.whole.least) == (0.5, 0.5)
    assert one.to_module.median == 0.5 / MODULE_PERCENT
    assert (one.messages, one.message_bytes, one.daemon_kib) == (49.0, 320.0, 40_400)


def test_row_is_compared_with_the_module_of_the_same_round_if_that_was_measured() -> None:
    costs = [Cost(0.2, 0.2), Cost(0.3, 0.3), Cost(0.5, 0.0)]
    assert row("in", loads(500, 500, 500), costs, [0.4, 0.3, 0.4], FORKS).to_module == Spread(
        1.25, 1.0, 2.0
    )


def test_rival_takes_nothing_of_the_daemon_that_happens_to_run() -> None:
    one = row("websocket-in", loads(500), [Cost(0.4, 0.1)], [], FORKS)
    assert one.daemon == Spread(0.0, 0.0, 0.0)
    assert one.whole == one.asterisk == Spread(0.4, 0.4, 0.4)


def measured(starts: list[Starts]) -> Measured:
    spread = Spread.of([6.0, 7.0])
    rows = [row(name, loads(500), [Cost(0.2, 0.27)], [], FORKS) for name in ("in", "websocket-in")]
    return Measured("snoop", FORKS, "compiled", Rest(spread, spread, 39_000), rows, starts)


def test_table_has_the_rival_without_a_daemon() -> None:
    lines = list(table(measured([]), "1 rounds of 5 s"))
    assert lines[0] == "10 calls by snoop, hot path: compiled, 1 rounds of 5 s"
    ours, rival = (line.split() for line in lines[-3:-1])
    assert ours[:2] + ours[5:6] + ours[9:10] == ["in", "0.200", "0.270", "0.470"]
    assert ours[13:] == ["2.000", "(2.000", "to", "2.000)", "50.0", "320"]
    assert rival[:2] + rival[5:7] == ["websocket-in", "0.200", "none", "0.200"]
    assert rival[10:] == ["0.851", "(0.851", "to", "0.851)", "50.0", "320"]
    assert lines[-1] == "Memory of the daemon: 39000 KiB without forks, 40500 with in"


def test_starts_are_told_only_if_they_were_measured() -> None:
    assert list(beside_asterisk.starts_table([])) == []
    told = list(beside_asterisk.starts_table([Starts("at once", 200, 199, 1, 1.0, 2.0, 3.0)]))
    assert told[-1].split() == ["at", "once", "200", "199", "1", "1", "2", "3"]


@pytest.mark.parametrize(
    ("started", "refused", "all_started"), [(9, 0, True), (8, 0, False), (9, 1, False)]
)
def test_all_have_started_if_none_is_missing_or_refused(
    started: int, refused: int, all_started: bool
) -> None:
    starts = Starts("at once", 9, started, refused, 1.0, 1.0, 1.0)
    assert measured([starts]).all_started == all_started


def test_rows_of_modules_that_asterisk_does_not_have_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asterisk = Installation("20.4.0", (), tmp_path, tmp_path, tmp_path)
    rows = ["in", "websocket-in", "module-in", "starts"]
    (tmp_path / "app_audiofork.so").touch()
    assert possible_rows(rows, asterisk) == ["in", "module-in", "starts"]
    assert "no chan_websocket.so in this Asterisk" in capsys.readouterr().err
    (tmp_path / "app_audiofork.so").rename(tmp_path / "chan_websocket.so")
    assert possible_rows(rows, asterisk) == ["in", "websocket-in", "starts"]
