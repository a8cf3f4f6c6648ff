"""Sends millions of inputs, valid ones cut up and recombined, through the check of a parser.

An input depends only on the seed, the name of its target and its number, so that a failed one can
be generated again without those before it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

MAX_INPUT_BYTES = 20_000
_NUMBERS = (b"0", b"1", b"-1", b"9", b"127", b"128", b"255", b"65535", b"65536", b"9" * 30)

Check = Callable[[bytes, Random], str]


@dataclass(frozen=True)
class Target:
    """A parser and its kind of input.

    Attributes:
        corpus: Inputs that the parser accepts.
        tokens: Pieces that mean something to it.
        share: Its share of a run, relative to the other targets.
        opened: Gives the check, which returns in a word how the input fared, and raises if the
            parser did what it should not, be it an exception that it does not document.
        passes_over: How an error in the log begins that the parser may write about an input that
            it cannot read.
    """

    name: str
    corpus: tuple[bytes, ...]
    tokens: tuple[bytes, ...]
    share: int
    opened: Callable[[], AbstractContextManager[Check]]
    passes_over: str = ""


@dataclass
class Result:
    """The results of a target's inputs."""

    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    duration_s: float = 0.0


class Found(Exception):
    """An input that a parser failed on; the text says which one and how to generate it again."""


def run(
    target: Target, seed: int, count: int, first: int = 0, result: Result | None = None
) -> Result:
    """Send this many inputs through a target's check.

    Args:
        target: The target.
        seed: What inputs depend on.
        count: How many.
        first: The number of the first.
        result: Is filled meanwhile, and returned; None: a new one.

    Raises:
        Found: The parser failed on an input.
    """
    result = Result() if result is None else result
    begin = time.perf_counter()
    with logged_faults() as faults, target.opened() as check:
        for number in range(first, first + count):
            rng = Random(f"{seed}/{target.name}/{number}")
            data = make_input(target, rng)
            try:
                outcome = check(data, rng)
                if faults and target.passes_over:
                    assert all(fault.startswith(target.passes_over) for fault in faults), faults
                    outcome = "passed over"
                    faults.clear()
                assert not faults, f"logged: {faults}"
            except Exception as exc:
                raise Found(
                    f"{target.name}: {type(exc).__name__}: {exc}\n"
                    f"input {number} of seed {seed}: {data!r}\n"
                    f"again: python -m tests.fuzz.million --only {target.name} "
                    f"--seed {seed} --first {number} --count 1"
                ) from exc
            result.count += 1
            result.outcomes[outcome] += 1
    result.duration_s = time.perf_counter() - begin
    return result


@contextmanager
def logged_faults() -> Iterator[list[str]]:
    """Yield a list of what the package logs as errors: faults that it has caught."""
    handler = _Faults()
    logger = logging.getLogger("audiofork")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)  # refusals are logged as warnings, a million of them
    logger.propagate = False
    try:
        yield handler.faults
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Faults(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[str] = []
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        self.faults.append(self._formatter.format(record))


# --- Inputs --------------------------------------------------------------------------------------


def make_input(target: Target, rng: Random) -> bytes:
    """Return one input: mostly a valid one that was damaged, else tokens, else noise."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(60))
    if kind < 0.15:
        return b"".join(rng.choices(target.tokens, k=rng.randrange(1, 12)))
    data = bytearray(rng.choice(target.corpus))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4, 8))):
        rng.choice(_DAMAGES)(data, rng, target)
    return bytes(data[:MAX_INPUT_BYTES])


def _span(data: bytearray, rng: Random) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + rng.choice((1, 1, 2, 3, 8, 32)))


def _flip(data: bytearray, rng: Random, target: Target) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: Random, target: Target) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(
            (0, 9, 10, 13, 32, 127, 255, rng.randrange(256))
        )


def _insert_noise(data: bytearray, rng: Random, target: Target) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 16)))


def _insert_token(data: bytearray, rng: Random, target: Target) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(target.tokens)


def _replace_by_token(data: bytearray, rng: Random, target: Target) -> None:
    data[_span(data, rng)] = rng.choice(target.tokens)


def _replace_number(data: bytearray, rng: Random, target: Target) -> None:
    digits = [at for at, byte in enumerate(data[:300]) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice(_NUMBERS)


def _delete(data: bytearray, rng: Random, target: Target) -> None:
    del data[_span(data, rng)]


def _double(data: bytearray, rng: Random, target: Target) -> None:
    span = _span(data, rng)
    data[span.start : span.start] = data[span]


def _repeat(data: bytearray, rng: Random, target: Target) -> None:
    """Reach the limits of sizes and counts."""
    piece = rng.choice(target.tokens) if rng.random() < 0.5 else bytes(data[_span(data, rng)])
    times = rng.choice((2, 8, 60, 130, 260, 1030))
    at = rng.randrange(len(data) + 1)
    data[at:at] = (piece * times)[: MAX_INPUT_BYTES // 4]


def _truncate(data: bytearray, rng: Random, target: Target) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _splice(data: bytearray, rng: Random, target: Target) -> None:
    other = rng.choice(target.corpus)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


def _append(data: bytearray, rng: Random, target: Target) -> None:
    data += rng.choice(target.corpus)


_DAMAGES = (
    *(_flip, _overwrite, _insert_noise, _insert_token, _insert_token, _replace_by_token),
    *(_replace_number, _delete, _double, _truncate, _splice, _splice, _append, _append),
    # The costly one comes once in so many.
    *(_insert_token, _replace_by_token, _flip, _delete, _append, _repeat),
)


def split(data: bytes, rng: Random) -> list[bytes]:
    """Split an input as a connection may: anywhere, and sometimes into single bytes."""
    kind = rng.random()
    if kind < 0.1:
        return [data]
    if kind < 0.2 and 0 < len(data) < 500:
        return [data[at : at + 1] for at in range(len(data))]
    ends = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 4, 10))))
    return [data[begin:end] for begin, end in pairwise([0, *ends, len(data)])]
