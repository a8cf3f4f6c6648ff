"""Writes metrics as text that Prometheus reads: version 0.0.4 of its format, or OpenMetrics 1.0.

https://prometheus.io/docs/instrumenting/exposition_formats/ and https://openmetrics.io
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product

from audiofork.text import printable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_MOST_CHARACTERS = 100  # of a label's value that is not one of a few words


class Kind(enum.StrEnum):
    """What a metric is."""

    COUNTER = "counter"
    """Only grows; its name ends in _total."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    """Counts of how many were no greater than each bound, their sum and their number."""


@dataclass(frozen=True)
class Metric:
    """A metric, which may have several values that differ in their labels.

    Attributes:
        text: What it says, for people; one line.
        labels: The values that each label may have, all of which are always there; none: it has one
            value at a time, such as a version.
    """

    name: str
    kind: Kind
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Its name as OpenMetrics has it, where the _total of a counter belongs to the values."""
        return self.name.removesuffix("_total") if self.kind is Kind.COUNTER else self.name


class Histogram:
    """Counts values by upper bounds, in seconds."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    @property
    def cumulative(self) -> tuple[int, ...]:
        """How many values are no greater than each bound, and than infinity."""
        return tuple(accumulate(self._counts))


class Exposition:
    """The text, which is written metric by metric.

    Args:
        open_metrics: Whether it is OpenMetrics.
    """

    def __init__(self, *, open_metrics: bool = False) -> None:
        self._open_metrics = open_metrics
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """All that was written."""
        end = ("# EOF\n",) if self._open_metrics else ("",)
        return "\n".join((*self._lines, *end))

    def one(self, metric: Metric, value: float | None) -> None:
        """Write a metric without labels; None: its value is not known."""
        self._head(metric)
        if value is not None:
            self._lines.append(f"{metric.name} {value}")

    def each(self, metric: Metric, values: Mapping[tuple[str, ...], float]) -> None:
        """Write a metric with labels.

        Args:
            metric: The metric.
            values: By the values of its labels, in their order. What a label may be and is not
                given counts as 0.
        """
        self._head(metric)
        known = dict.fromkeys(product(*metric.labels.values()), 0)
        for key, value in {**known, **values}.items():
            labels = _labels(zip(metric.labels, key, strict=True))
            self._lines.append(f"{metric.name}{labels} {value}")

    def histogram(
        self, metric: Metric, bounds_s: Sequence[float], cumulative: Sequence[int], sum_s: float
    ) -> None:
        """Write a histogram.

        Args:
            metric: The metric.
            bounds_s: The upper bounds, in seconds.
            cumulative: How many values are no greater than each, and than infinity; empty: none.
            sum_s: The sum of the values, in seconds.
        """
        self._head(metric)
        counts = cumulative or [0] * (len(bounds_s) + 1)
        for bound, count in zip((*map(float, bounds_s), "+Inf"), counts, strict=True):
            self._lines.append(f'{metric.name}_bucket{{le="{bound}"}} {count}')
        self._lines.append(f"{metric.name}_sum {sum_s}")
        self._lines.append(f"{metric.name}_count {counts[-1]}")

    def _head(self, metric: Metric) -> None:
        name = metric.family if self._open_metrics else metric.name
        text = metric.text.replace("\\", "\\\\")
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {metric.kind}")


def merged(texts: Mapping[str, str], label: str, shared: Collection[Metric]) -> str:
    """Return several texts as one, in which a label says which of them a value is of.

    Args:
        texts: Written by `Exposition`, by the values of the label; one alone is returned as it is.
        label: The name of the label.
        shared: What is the same in all, and is of none: of these all different lines stand once.
    """
    if len(texts) == 1:
        return next(iter(texts.values()))
    unlabelled = {one.family for one in shared}
    families: dict[str, dict[str, None]] = {}  # the lines of each, in order, each once
    ends: dict[str, None] = {}
    for value, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line == "# EOF":
                ends[line] = None
                continue
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
            is_value = not line.startswith("#") and family.removesuffix("_total") not in unlabelled
            with_label = _with_label(line, label, value) if is_value else line
            families.setdefault(family, {})[with_label] = None
    found = [line for lines in families.values() for line in lines]
    return "\n".join((*found, *ends, ""))


def _with_label(line: str, label: str, value: str) -> str:
    """Return a line with one label more."""
    name, brace, rest = line.partition("{")
    pair = f'{label}="{_quoted(value)}"'
    if brace:
        return f"{name}{{{pair},{rest}"
    name, _, number = line.partition(" ")
    return f"{name}{{{pair}}} {number}"


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    inner = ",".join(f'{name}="{_quoted(value)}"' for name, value in pairs)
    return f"{{{inner}}}"


def _quoted(value: str) -> str:
    """Return a value of a label; it may have been anything."""
    harmless = printable(value, "?")[:_MOST_CHARACTERS]
    return harmless.replace("\\", "\\\\").replace('"', '\\"')


def wants_open_metrics(accept: str) -> bool:
    """Return whether the header Accept of a request names OpenMetrics, as Prometheus sends it."""
    return "application/openmetrics-text" in accept
