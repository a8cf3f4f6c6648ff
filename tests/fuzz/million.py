"""Puts a million inputs through the parsers: python -m tests.fuzz.million [--seed N]."""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial

from testbed.progress import Telling

from .fuzzing import Found, Result, run
from .targets import TARGETS

TELL_S = 5.0


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    chosen = [target for target in TARGETS if options.only in (None, target.name)]
    shares = sum(target.share for target in chosen)
    total = Result()
    print(f"seed {options.seed}", flush=True)
    for target in chosen:
        count = -(-options.count * target.share // shares)
        result = Result()
        try:
            with Telling(partial(_how_far, target.name, result, count), TELL_S):
                run(target, options.seed, count, options.first, result)
        except Found as found:
            print(found, file=sys.stderr)
            return 1
        _show(target.name, result)
        total.count += result.count
        total.duration_s += result.duration_s
    _show("total", total)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.million", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="of all inputs together")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--only", choices=[target.name for target in TARGETS])
    parser.add_argument("--first", type=int, default=0, help="number of each target's first input")
    return parser.parse_args(arguments)


def _how_far(name: str, result: Result, count: int) -> str:
    return f"{name:18} {result.count:9,} of {count:,}"


def _show(name: str, result: Result) -> None:
    outcomes = ", ".join(
        f"{outcome} {100 * count / result.count:.1f} %"
        for outcome, count in result.outcomes.most_common()
    )
    print(f"{name:18} {result.count:9,} inputs {result.duration_s:6.1f} s  {outcomes}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
