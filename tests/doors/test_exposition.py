"""The text that Prometheus reads, as its own client's parsers read it."""

from __future__ import annotations

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from audiofork.doors.exposition import (
    Exposition,
    Histogram,
    Kind,
    Metric,
    merged,
    wants_open_metrics,
)

PLAIN = Metric("a_total", Kind.COUNTER, 'A text with \\ and "quotes".')
WORDS = Metric("b", Kind.GAUGE, "Words.", {"what": ("x", "y"), "how": ("up", "down")})
FREE = Metric("c_info", Kind.GAUGE, "A version.", {"version": ()})
TIMES = Metric("d_seconds", Kind.HISTOGRAM, "Times.")


def values(text: str) -> dict[tuple[str, ...], float]:
    """Return what the parser finds: by the name and the values of the labels, in their order."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_value_of_a_label_is_there_from_the_beginning() -> None:
    text = Exposition()
    text.each(WORDS, {("y", "down"): 3})
    assert values(text.text) == {
        ("b", "x", "up"): 0,
        ("b", "x", "down"): 0,
        ("b", "y", "up"): 0,
        ("b", "y", "down"): 3,
    }


def test_value_that_is_not_known_is_left_out_and_its_metric_is_told_of() -> None:
    text = Exposition()
    text.one(PLAIN, None)
    text.each(FREE, {})
    assert values(text.text) == {}
    (first, second) = parser.text_string_to_metric_families(text.text)
    assert (first.name, first.type, first.documentation) == ("a", "counter", PLAIN.text)
    assert (second.name, second.type) == ("c_info", "gauge")


def test_great_counts_keep_all_their_digits() -> None:
    text = Exposition()
    text.one(PLAIN, 12_345_678_901)
    assert "a_total 12345678901\n" in text.text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ('22.5 "x"', '22.5 "x"'),
        ("back\\slash", "back\\slash"),
        ('evil"} 1\naudiofork_ami_up 0', 'evil"} 1?audiofork_ami_up 0'),
        ("\x1b[2J\u2028", "?[2J?"),
        ("x" * 5000, "x" * 100),
    ],
)
def test_label_of_any_text_is_one_harmless_value(given: str, shown: str) -> None:
    text = Exposition()
    text.each(FREE, {(given,): 1})
    assert values(text.text) == {("c_info", shown): 1}


def test_histogram_is_cumulative_and_ends_in_infinity() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7):
        histogram.add(seconds)
    text = Exposition()
    text.histogram(TIMES, histogram.bounds_s, histogram.cumulative, histogram.sum_s)
    assert values(text.text) == {
        ("d_seconds_bucket", "0.1"): 2,
        ("d_seconds_bucket", "1.0"): 3,
        ("d_seconds_bucket", "+Inf"): 4,
        ("d_seconds_sum",): pytest.approx(7.65),
        ("d_seconds_count",): 4,
    }


def test_histogram_of_nothing_has_all_its_buckets() -> None:
    text = Exposition()
    text.histogram(TIMES, (0.1, 1.0), (), 0.0)
    assert set(values(text.text).values()) == {0}
    assert len(values(text.text)) == 5


def test_open_metrics_names_counters_without_their_total_and_has_an_end() -> None:
    text = Exposition(open_metrics=True)
    text.one(PLAIN, 5)
    text.each(WORDS, {})
    text.histogram(TIMES, (0.1, 1.0), (1, 2, 2), 0.6)
    families = list(open_parser.text_string_to_metric_families(text.text))  # type: ignore[no-untyped-call]
    assert [family.name for family in families] == ["a", "b", "d_seconds"]
    assert [family.samples[0].name for family in families] == ["a_total", "b", "d_seconds_bucket"]
    assert text.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("text/html, */*", False),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", True),
    ],
)
def test_open_metrics_are_written_for_whom_asks_for_them(accept: str, wants: bool) -> None:
    assert wants_open_metrics(accept) == wants


@pytest.mark.parametrize("open_metrics", [False, True])
def test_texts_of_several_are_one_whose_label_says_which_each_value_is_of(
    open_metrics: bool,
) -> None:
    texts = {}
    for name, count in (("pbx-a", 3), ('pbx-"b"', 4)):
        text = Exposition(open_metrics=open_metrics)
        text.one(PLAIN, count)
        text.each(WORDS, {("x", "up"): count})
        text.each(FREE, {("1.0",): 1})
        text.histogram(TIMES, (0.1,), (1, count), 2.5)
        texts[name] = text.text
    whole = merged(texts, "asterisk", [FREE])
    parse = open_parser if open_metrics else parser
    families = {one.name: one for one in parse.text_string_to_metric_families(whole)}
    assert len(families) == 4
    found = {
        (one.name, *one.labels.values()): one.value
        for family in families.values()
        for one in family.samples
    }
    assert found["a_total", "pbx-a"] == 3
    assert found["a_total", 'pbx-"b"'] == 4
    assert found["b", 'pbx-"b"', "x", "up"] == 4
    assert found["d_seconds_bucket", 'pbx-"b"', "+Inf"] == 4
    assert found["d_seconds_sum", "pbx-a"] == 2.5
    assert found["c_info", "1.0"] == 1
    assert merged({"pbx-a": texts["pbx-a"]}, "asterisk", [FREE]) == texts["pbx-a"]
