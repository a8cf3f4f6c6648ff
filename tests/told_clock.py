"""A clock for code that takes one as a callable."""

from __future__ import annotations


class Clock:
    """A clock that advances only when the test says so; in seconds."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
