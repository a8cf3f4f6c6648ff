"""The parsers under some thousand hostile inputs; `tests.fuzz.million` has the rest."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import million
from .fuzzing import Check, Found, Target, logged_faults, make_input, run, split
from .targets import TARGETS

pytestmark = pytest.mark.slow

NAMES = [target.name for target in TARGETS]
SEED = 1
INPUTS = 600

# A busy machine is no reason for a test to fail, and a run is like the one before it.
patient = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_damaged_inputs_are_stood(target: Target) -> None:
    result = run(target, SEED, INPUTS)
    assert result.count == INPUTS
    assert len(result.outcomes) > 1 or target.name == "server-text"


# Not damaged by chance but built, and made small by hypothesis if one is not stood.
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_inputs_put_together_from_pieces_are_stood(target: Target) -> None:
    pieces = st.sampled_from(target.corpus + target.tokens) | st.binary(max_size=20)

    with logged_faults() as faults, target.opened() as check:

        @patient
        @given(st.lists(pieces, max_size=12).map(b"".join), st.integers(0, 1000))
        def stands(data: bytes, cut: int) -> None:
            check(data, Random(cut))
            assert all(target.passes_over and target.passes_over in fault for fault in faults)
            faults.clear()

        stands()


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_inputs_that_damage_begins_with_are_good_ones(target: Target) -> None:
    with logged_faults() as faults, target.opened() as check:
        outcomes = {check(data, Random(cut)) for data in target.corpus for cut in range(8)}
    assert not outcomes & {"refused", "broken", "nothing", "nothing whole"}
    assert not faults


# --- The machinery -------------------------------------------------------------------------------


def parser(check: Check, **more: str) -> Target:
    return Target("broken", (b"a=1",), (b"=", b"a"), 1, lambda: nullcontext(check), **more)


def failing(data: bytes, rng: Random) -> str:
    if b"==" in data:
        raise KeyError("==")
    return "stood"


def test_input_that_is_not_stood_is_shown_with_how_to_make_it_again() -> None:
    with pytest.raises(Found) as found:
        run(parser(failing), SEED, 10_000)
    text = str(found.value)
    assert text.startswith("broken: KeyError: '=='\ninput ")
    number = int(text.partition("--first ")[2].split()[0])
    data = make_input(parser(failing), Random(f"{SEED}/broken/{number}"))
    assert b"==" in data
    assert repr(data) in text
    with pytest.raises(Found, match=f"input {number} of seed {SEED}"):
        run(parser(failing), SEED, 1, first=number)


def test_fault_that_the_package_caught_and_logged_is_found() -> None:
    def logs(data: bytes, rng: Random) -> str:
        logging.getLogger("audiofork.x").error("cannot read %r", data)
        return "stood"

    with pytest.raises(Found, match="logged: .*cannot read"):
        run(parser(logs), SEED, 1)
    result = run(parser(logs, passes_over="cannot read"), SEED, 5)
    assert result.outcomes == {"passed over": 5}


def test_refusals_that_are_logged_are_no_faults() -> None:
    with logged_faults() as faults:
        logging.getLogger("audiofork.x").warning("refused")
    assert not faults


def test_split_gives_the_whole_back_and_now_and_then_single_bytes() -> None:
    cuts = [split(b"abcdef", Random(seed)) for seed in range(100)]
    assert all(b"".join(chunks) == b"abcdef" for chunks in cuts)
    assert [b"abcdef"] in cuts
    assert [b"a", b"b", b"c", b"d", b"e", b"f"] in cuts
    assert all(b"".join(split(b"", Random(seed))) == b"" for seed in range(100))


def test_million_shares_the_inputs_out_and_says_what_came_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mild = dataclasses.replace(parser(lambda data, rng: "stood"), name="mild", share=3)
    monkeypatch.setattr(million, "TARGETS", (mild, dataclasses.replace(mild, name="b", share=1)))
    assert million.main(["--count", "100", "--seed", "5"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "seed 5"
    assert [line.split()[:3] for line in lines] == [
        ["mild", "75", "inputs"],
        ["b", "25", "inputs"],
        ["total", "100", "inputs"],
    ]


def test_million_fails_with_the_input_that_is_not_stood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(million, "TARGETS", (parser(failing),))
    assert million.main(["--count", "10000", "--seed", "1"]) == 1
    assert "broken: KeyError" in capsys.readouterr().err
