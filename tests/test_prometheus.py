"""The alerts, the example of a scrape and the dashboard: what Prometheus itself says of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from audiofork.doors.exposition import Exposition, Kind
from audiofork.doors.metric_table import METRICS
from testbed import dashboard
from testbed.promtool import PromtoolUnavailable, find_promtool

ROOT = Path(__file__).parent.parent
RULES = ROOT / "etc/prometheus/audiofork.rules.yml"
SCRAPE = ROOT / "etc/prometheus/scrape.example.yml"
DASHBOARD = ROOT / "etc/grafana/audiofork.json"
pytestmark = pytest.mark.slow

PROMTOOL_TIMEOUT_S = 60
# What Prometheus itself records of a target.
OF_PROMETHEUS = {"up"}
# Words of a query that are no metrics: functions, and labels of a grouping.
_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABELS = re.compile(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on|ignoring|without)\s*\([^)]*\)|\"[^\"]*\"")


@pytest.fixture(scope="session")
def promtool() -> list[str]:
    try:
        return find_promtool()
    except PromtoolUnavailable as exc:
        pytest.skip(str(exc))


def run(promtool: list[str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*promtool, *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROMTOOL_TIMEOUT_S,
    )


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


# --- The files are well formed ---


def test_rules_are_right(promtool: list[str]) -> None:
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout
    assert f"{len(alerts())} rules found" in done.stdout


def test_example_of_a_scrape_is_right(promtool: list[str], tmp_path: Path) -> None:
    """With the files that it names, as far as they are to be written by the user."""
    token = tmp_path / "token"
    token.write_text("a-token-of-twenty-characters")
    text = SCRAPE.read_text().replace("/etc/prometheus/audiofork.token", str(token))
    assert str(token) in text
    text = text.replace("/usr/share/audiofork/etc/prometheus/audiofork.rules.yml", str(RULES))
    config = tmp_path / "prometheus.yml"
    config.write_text(text)
    done = run(promtool, "check", "config", "--lint=all", "--lint-fatal", str(config))
    assert done.returncode == 0, done.stdout
    assert "1 rule files found" in done.stdout


def test_metrics_are_as_prometheus_wants_them(promtool: list[str]) -> None:
    text = Exposition()
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            text.histogram(metric, (0.1, 1.0), (1, 2, 3), 4.5)
        elif metric.labels:
            text.each(metric, {tuple("x" for _ in metric.labels): 1})
        else:
            text.one(metric, 1)
    done = run(promtool, "check", "metrics", given=text.text)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_has_a_summary_what_to_do_and_a_severity(rule: dict[str, Any]) -> None:
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert len(rule["annotations"]["description"]) > 100
    assert rule["alert"].startswith("Audiofork")


def test_table_of_the_docs_has_each_alert_with_its_severity() -> None:
    docs = (ROOT / "docs/metrics.md").read_text()
    told = re.findall(r"^\| `(Audiofork\w+)` \| (\w+) \|", docs, re.M)
    assert told == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


# --- Each alert fires when it should, and not before ---


class Case(NamedTuple):
    """What happens, and whether an alert fires after it.

    Attributes:
        alert: The name of the alert.
        fires: Whether it fires.
        series: Values once a minute, in promtool's short form, by the series.
        at: When it is looked at.
    """

    alert: str
    fires: bool
    series: Mapping[str, str]
    at: str = "20m"


def latency(name: str, slow: str, fast: str = "0+1000x30") -> dict[str, str]:
    """Return a histogram: how many are below 0.5 s (or 0.1 s, 2 s), and all."""
    bounds = {"audiofork_loop_lag_seconds": "0.1", "audiofork_start_seconds": "2.0"}
    bound = bounds.get(name, "0.5")
    return {
        f'{name}_bucket{{le="{bound}"}}': fast,
        f'{name}_bucket{{le="10.0"}}': slow,
        f'{name}_bucket{{le="+Inf"}}': slow,
    }


def refused(reason: str) -> str:
    return f'audiofork_requests_refused_total{{reason="{reason}"}}'


LAG, START, LATENCY = (f"audiofork_{name}_seconds" for name in ("loop_lag", "start", "latency"))
CASES = [
    Case("AudioforkDown", True, {"up": "1x10 0x10"}),
    Case("AudioforkDown", False, {"up": "1x19 0"}),
    Case("AudioforkAmiDown", True, {"audiofork_ami_up": "1x10 0x10"}),
    Case("AudioforkAmiDown", False, {"audiofork_ami_up": "0x10 1x10"}),
    Case("AudioforkAriDown", True, {"audiofork_ari_up": "1x10 0x10"}),
    Case("AudioforkAriDown", False, {"audiofork_ari_up": "1x18 0x1"}),
    Case("AudioforkNoRelay", True, {'audiofork_relays{state="up"}': "2x15 0x5"}),
    Case("AudioforkNoRelay", False, {'audiofork_relays{state="up"}': "2x15 1x5"}),
    Case("AudioforkRelayRestarted", True, {"audiofork_relays_lost_total": "0x15 3x5"}),
    Case("AudioforkRelayRestarted", False, {"audiofork_relays_lost_total": "3x20"}),
    Case("AudioforkLoopLate", True, latency(LAG, "0+1200x30")),
    Case("AudioforkLoopLate", False, latency(LAG, "0+1020x30")),
    Case("AudioforkFilesShort", True, {"process_open_fds": "90x20", "process_max_fds": "100x20"}),
    Case("AudioforkFilesShort", False, {"process_open_fds": "80x20", "process_max_fds": "100x20"}),
    Case(
        "AudioforkForksFail",
        True,
        {"audiofork_forks_failed_total": "0+2x20", "audiofork_forks_requested_total": "0+10x20"},
    ),
    Case(
        "AudioforkForksFail",
        False,
        {"audiofork_forks_failed_total": "0+2x20", "audiofork_forks_requested_total": "0+50x20"},
    ),
    Case(  # none was requested, and so none has failed
        "AudioforkForksFail",
        False,
        {"audiofork_forks_failed_total": "5x20", "audiofork_forks_requested_total": "5x20"},
    ),
    Case(
        "AudioforkStartsRefused",
        True,
        {'audiofork_requests_refused_total{reason="limit"}': "0+2x20"},
    ),
    Case(
        "AudioforkStartsRefused",
        False,
        {'audiofork_requests_refused_total{reason="invalid"}': "0+9x20"},
    ),
    Case("AudioforkStartsSlow", True, latency(START, "0+1200x30")),
    Case("AudioforkStartsSlow", False, latency(START, "0+1020x30")),
    Case("AudioforkAttacked", True, {'audiofork_attacks_total{kind="wrong-uuid"}': "0x12 1x8"}),
    Case("AudioforkAttacked", False, {'audiofork_attacks_total{kind="wrong-uuid"}': "7x20"}),
    Case(
        "AudioforkFramesDropped",
        True,
        {"audiofork_frames_dropped_total": "0+10x20", "audiofork_frames_in_total": "0+3000x20"},
    ),
    Case(
        "AudioforkFramesDropped",
        False,
        {"audiofork_frames_dropped_total": "0+1x20", "audiofork_frames_in_total": "0+3000x20"},
    ),
    Case(
        "AudioforkServersAway",
        True,
        {
            'audiofork_forks{state="reconnecting",direction="in"}': "2x20",
            'audiofork_forks{state="streaming",direction="in"}': "8x20",
        },
    ),
    Case(
        "AudioforkServersAway",
        False,
        {
            'audiofork_forks{state="reconnecting",direction="in"}': "1x20",
            'audiofork_forks{state="streaming",direction="in"}': "20x20",
        },
    ),
    Case("AudioforkServersReconnect", True, {"audiofork_server_reconnects_total": "0+1x20"}),
    Case("AudioforkServersReconnect", False, {"audiofork_server_reconnects_total": "0x15 9x5"}),
    Case("AudioforkLatency", True, latency(LATENCY, "0+1020x30")),
    Case("AudioforkLatency", False, latency(LATENCY, "0+1005x30")),
    Case(
        "AudioforkFramesMissing",
        True,
        {"audiofork_frames_missing_total": "0+60x20", "audiofork_frames_in_total": "0+3000x20"},
    ),
    Case(
        "AudioforkFramesMissing",
        False,
        {"audiofork_frames_missing_total": "0+20x20", "audiofork_frames_in_total": "0+3000x20"},
    ),
    Case(
        "AudioforkPlayoutUnderruns",
        True,
        {
            "audiofork_playout_underruns_total": "0+90x20",
            'audiofork_playout_frames_total{fate="played"}': "0+3000x20",
        },
    ),
    Case(
        "AudioforkPlayoutUnderruns",
        False,
        {
            "audiofork_playout_underruns_total": "0+30x20",
            'audiofork_playout_frames_total{fate="played"}': "0+3000x20",
        },
    ),
]
TARGET = 'job="audiofork",instance="a:9080"'


def of_target(series: str) -> str:
    """Return a series with the labels that Prometheus adds."""
    name, brace, labels = series.partition("{")
    return f"{name}{{{TARGET},{labels}" if brace else f"{name}{{{TARGET}}}"


def rules_test(case: Case, **tests: Any) -> dict[str, Any]:
    """Return a test in promtool's form."""
    series = [
        {"series": of_target(series), "values": values} for series, values in case.series.items()
    ]
    return {"name": str(case), "interval": "1m", "input_series": series, **tests}


def file_of(path: Path, *tests: Mapping[str, Any]) -> str:
    """Write a file of tests; return its name."""
    head = {"rule_files": [str(RULES)], "evaluation_interval": "15s"}
    path.write_text(yaml.safe_dump({**head, "tests": list(tests)}))
    return str(path)


def firing(case: Case) -> dict[str, Any]:
    """Return a query in promtool's form, with what comes of it."""
    expr = f'count(ALERTS{{alertstate="firing",alertname="{case.alert}",{TARGET}}})'
    expected = [{"labels": "{}", "value": 1}] if case.fires else []
    return {"expr": expr, "eval_time": case.at, "exp_samples": expected}


def test_each_alert_fires_when_it_should_and_not_before(
    promtool: list[str], tmp_path: Path
) -> None:
    """All in one run, which takes no longer than one of them; it names those that fail."""
    tests = [rules_test(case, promql_expr_test=[firing(case)]) for case in CASES]
    done = run(promtool, "test", "rules", file_of(tmp_path / "test.yml", *tests))
    assert done.returncode == 0, done.stdout


def test_alert_that_does_not_fire_as_expected_is_found(promtool: list[str], tmp_path: Path) -> None:
    case = CASES[-1]
    tests = [rules_test(case, promql_expr_test=[firing(case._replace(fires=not case.fires))])]
    done = run(promtool, "test", "rules", file_of(tmp_path / "test.yml", *tests))
    assert done.returncode != 0
    assert case.alert in done.stdout


def test_texts_of_each_alert_that_fires_are_whole(promtool: list[str], tmp_path: Path) -> None:
    """Promtool shows an alert as it is where another is expected."""
    cases = [case for case in CASES if case.fires]
    tests = [
        rules_test(
            case,
            alert_rule_test=[{"eval_time": case.at, "alertname": case.alert, "exp_alerts": []}],
        )
        for case in cases
    ]
    done = run(promtool, "test", "rules", file_of(tmp_path / "test.yml", *tests))
    assert done.returncode != 0
    told = re.split(r"alertname: (\w+), time: ", done.stdout)[1:]
    assert told[::2] == [case.alert for case in cases]
    for text in told[1::2]:
        _, _, got = text.partition("got:")
        assert "a:9080" in got
        assert "{{" not in got
    assert "error" not in got.lower().replace("on an error", "").replace(
        "latest error", ""
    ).replace("last error", "")
    assert "NaN" not in got


def test_every_alert_is_tried_both_ways() -> None:
    names = {rule["alert"] for rule in alerts()}
    assert {case.alert for case in CASES if case.fires} == names
    assert {case.alert for case in CASES if not case.fires} == names


# --- No metric is asked for that there is not ---


def known() -> set[str]:
    """Return all names that a query may have."""
    parts = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return OF_PROMETHEUS | {
        one.name + part for one in METRICS for part in parts.get(one.kind, ("",))
    }


def asked_for(query: str) -> Iterator[str]:
    """Yield the metrics of a query: the words outside of braces that no parenthesis follows."""
    bare = _LABELS.sub(" ", query)
    for found in _WORDS.finditer(bare):
        if not bare[found.end() :].lstrip().startswith("(") and found[0] not in _OPERATORS:
            yield found[0]


_OPERATORS = {"and", "or", "unless", "by", "without", "on", "ignoring", "le", "bool", "offset"}


def queries() -> Iterator[tuple[str, str]]:
    """Yield each query of the alerts and of the dashboard, with where it is."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_every_metric_that_alerts_and_dashboard_ask_for_is_there() -> None:
    asked = {name: where for where, query in queries() for name in asked_for(query)}
    assert {name: where for name, where in asked.items() if name not in known()} == {}
    assert len(asked) > 30


def test_dashboard_shows_every_metric() -> None:
    shown = {
        name
        for panel in panels()
        for target in panel.get("targets", ())
        for name in asked_for(target["expr"])
    }
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} | shown
    assert [one.name for one in METRICS if one.name not in families] == []


def test_every_label_that_is_asked_for_is_one_of_its_metric() -> None:
    allowed = {one.name: set(one.labels) for one in METRICS}
    for where, query in queries():
        for name, inside in re.findall(r"([a-z_]+)\{([^}]*)\}", query):
            labels = set(re.findall(r"([a-z_]+)\s*[=!~]", inside)) - {"job", "instance"}
            assert labels <= allowed.get(name, set()), (where, name)


def test_every_query_of_the_dashboard_can_be_parsed(promtool: list[str], tmp_path: Path) -> None:
    """As rules, which promtool checks."""
    filled = {"$instance": "a:9080", "$__rate_interval": "1m", "$__range": "6h"}
    rules = []
    for number, (_, query) in enumerate(queries()):
        for variable, value in filled.items():
            query = query.replace(variable, value)
        rules.append({"record": f"a:query{number}", "expr": query})
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = run(promtool, "check", "rules", str(file))
    assert done.returncode == 0, done.stdout


# --- The dashboard ---


def test_dashboard_is_what_its_source_makes() -> None:
    """`python -m testbed.dashboard` writes it."""
    assert DASHBOARD.read_text() == dashboard.as_json()


def test_dashboard_can_be_imported_and_asks_for_its_source_of_data() -> None:
    board = json.loads(DASHBOARD.read_text())
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["definition"] == "label_values(audiofork_build_info, instance)"
    assert board["id"] is None
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]
            assert all('instance=~"$instance"' in one["expr"] for one in panel["targets"])


def test_no_two_panels_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
