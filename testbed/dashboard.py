"""Writes etc/grafana/audiofork.json, the dashboard for Grafana: `python -m testbed.dashboard`.

A panel is one line here and fifty in the file; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "etc/grafana/audiofork.json"
_MINE = 'instance=~"$instance"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24  # of Grafana's grid


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        title: Its title.
        text: What it shows and what is normal, for people.
        queries: Queries with the legend of their lines; METRIC{} stands for that of the instance.
        unit: Grafana's name of the unit.
        kind: timeseries or stat.
        width: In columns, of 24.
        stacks: Whether the lines lie on each other.
        wrong: From which value on it is red; None: from none.
    """

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacks: bool = False
    wrong: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of panels, with its title."""

    title: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def _rate(metric: str, by: str = "instance") -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _times(metric: str) -> tuple[tuple[str, str], ...]:
    """Return the queries of a histogram: some quantiles, and the mean."""
    buckets = f"sum by (le) (rate({metric}_bucket{{}}[$__rate_interval]))"
    quantiles = [
        (f"histogram_quantile({part}, {buckets})", f"{part:.0%} are faster")
        for part in (0.5, 0.95, 0.99)
    ]
    rates = [f"sum(rate({metric}_{part}{{}}[$__rate_interval]))" for part in ("sum", "count")]
    return *quantiles, (" / ".join(rates), "mean")


ROWS = (
    Row(
        "Now",
        (
            Panel(
                "Asterisk",
                "1: logged in to AMI. Without it no fork can start.",
                (
                    ("audiofork_ami_up{}", "AMI {{instance}}"),
                    ("audiofork_ari_up{}", "ARI {{instance}}"),
                ),
                kind="stat",
                width=4,
            ),
            Panel(
                "Relays up",
                "Relay processes that accept audio.",
                (('audiofork_relays{state="up"}', "{{instance}}"),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Forks",
                "Forks that exist.",
                (("sum(audiofork_forks{})", "all"),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Failed in the last hour",
                "Forks that ended before their first frame.",
                (("sum(increase(audiofork_forks_failed_total{}[1h]))", "failed"),),
                kind="stat",
                width=4,
                wrong=1,
            ),
            Panel(
                "Dropped in the last hour",
                "Frames of 20 ms.",
                (("sum(increase(audiofork_frames_dropped_total{}[1h]))", "dropped"),),
                kind="stat",
                width=4,
                wrong=1,
            ),
            Panel(
                "Versions",
                "Of audiofork, Python and Asterisk.",
                (
                    ("audiofork_build_info{}", "{{instance}}: {{version}}, Python {{python}}"),
                    ("audiofork_asterisk_info{}", "{{instance}}: Asterisk {{version}}"),
                    ("time() - process_start_time_seconds{}", "{{instance}}: up for, in s"),
                ),
                kind="stat",
                width=4,
            ),
        ),
    ),
    Row(
        "Forks",
        (
            Panel(
                "Forks by state",
                "Reconnecting: the server, a leg or a relay is away.",
                (("sum by (state) (audiofork_forks{})", "{{state}}"),),
                stacks=True,
            ),
            Panel(
                "Forks by direction",
                "Whose audio they carry.",
                (("sum by (direction) (audiofork_forks{})", "{{direction}}"),),
                stacks=True,
            ),
            Panel(
                "Starts",
                "Requests that were granted, forks whose audio flows, and failures.",
                (
                    (_rate("audiofork_forks_requested_total{}"), "requested {{instance}}"),
                    (_rate("audiofork_forks_started_total{}"), "started {{instance}}"),
                    (_rate("audiofork_forks_failed_total{}"), "failed {{instance}}"),
                ),
                unit="ops",
            ),
            Panel(
                "Ends by reason",
                "hangup and stopped are usual.",
                ((_rate("audiofork_forks_ended_total{}", "reason"), "{{reason}}"),),
                unit="ops",
                stacks=True,
            ),
            Panel(
                "Refusals by reason",
                "Valid requests that were not granted.",
                ((_rate("audiofork_requests_refused_total{}", "reason"), "{{reason}}"),),
                unit="ops",
                stacks=True,
            ),
            Panel(
                "Start time",
                "From the request to the first frame that was sent.",
                _times("audiofork_start_seconds"),
                unit="s",
            ),
        ),
    ),
    Row(
        "Audio to servers",
        (
            Panel(
                "Frames",
                "50 a second of each fork that streams.",
                (
                    (_rate("audiofork_frames_in_total{}"), "in {{instance}}"),
                    (_rate("audiofork_frames_sent_total{}"), "sent {{instance}}"),
                ),
                unit="ops",
            ),
            Panel(
                "Lost frames",
                "Dropped: a server was away. Missing: Asterisk brought less.",
                (
                    (_rate("audiofork_frames_dropped_total{}"), "dropped {{instance}}"),
                    (_rate("audiofork_frames_missing_total{}"), "missing {{instance}}"),
                ),
                unit="ops",
            ),
            Panel(
                "Waiting",
                "Frames that wait for their servers, of all forks; usually none.",
                (("audiofork_frames_waiting{}", "{{instance}}"),),
            ),
            Panel(
                "Latency",
                "From the read of a frame to its acknowledgement by the server's TCP.",
                _times("audiofork_latency_seconds"),
                unit="s",
            ),
            Panel(
                "Round trip to the farthest server",
                "As TCP measures it.",
                (("audiofork_server_rtt_max_seconds{}", "{{instance}}"),),
                unit="s",
            ),
            Panel(
                "Under way",
                "Bytes that the servers' TCP has not acknowledged.",
                (("audiofork_unacked_bytes{}", "{{instance}}"),),
                unit="bytes",
            ),
            Panel(
                "Reconnects",
                "Servers that came back, and attempts that failed.",
                (
                    (_rate("audiofork_server_reconnects_total{}"), "reconnects {{instance}}"),
                    (_rate("audiofork_server_retries_total{}"), "failed {{instance}}"),
                ),
                unit="ops",
            ),
            Panel(
                "Legs",
                "Legs that were lost; legs of ended forks that Asterisk cannot end.",
                (
                    (_rate("audiofork_legs_lost_total{}"), "lost a second {{instance}}"),
                    ("audiofork_legs_left{}", "left {{instance}}"),
                ),
            ),
            Panel(
                "Messages of servers",
                "Beyond the limit, of no use, or not allowed.",
                (
                    (_rate("audiofork_messages_ignored_total{}"), "ignored {{instance}}"),
                    (_rate("audiofork_messages_unused_total{}"), "unused {{instance}}"),
                    (_rate("audiofork_commands_refused_total{}"), "refused {{instance}}"),
                ),
                unit="ops",
            ),
        ),
    ),
    Row(
        "Audio of servers",
        (
            Panel(
                "Played",
                "Frames of the servers' audio, by what became of them.",
                ((_rate("audiofork_playout_frames_total{}", "fate"), "{{fate}}"),),
                unit="ops",
                width=12,
                stacks=True,
            ),
            Panel(
                "Underruns",
                "How often a server's audio came too late; callers hear a gap.",
                ((_rate("audiofork_playout_underruns_total{}"), "{{instance}}"),),
                unit="ops",
                width=12,
            ),
        ),
    ),
    Row(
        "Asterisk and attacks",
        (
            Panel(
                "Round trip to Asterisk",
                "Of the latest ping to AMI, and request to ARI.",
                (
                    ("audiofork_ami_rtt_seconds{}", "AMI {{instance}}"),
                    ("audiofork_ari_rtt_seconds{}", "ARI {{instance}}"),
                ),
                unit="s",
            ),
            Panel(
                "Connects to Asterisk",
                "More than one each is a connection that was lost.",
                (
                    ("audiofork_ami_connects_total{}", "AMI {{instance}}"),
                    ("audiofork_ari_connects_total{}", "ARI {{instance}}"),
                ),
            ),
            Panel(
                "Attacks",
                "Attempts that were noticed, and had no effect.",
                ((_rate("audiofork_attacks_total{}", "kind"), "{{kind}}"),),
                unit="ops",
                stacks=True,
            ),
        ),
    ),
    Row(
        "Processes",
        (
            Panel(
                "CPU",
                "Of the daemon, and of its relay processes, in cores.",
                (
                    ("rate(process_cpu_seconds_total{}[$__rate_interval])", "daemon {{instance}}"),
                    (
                        "rate(audiofork_relay_cpu_seconds_total{}[$__rate_interval])",
                        "relay {{worker}} {{instance}}",
                    ),
                ),
            ),
            Panel(
                "Memory",
                "Resident; of the daemon the virtual, too.",
                (
                    ("process_resident_memory_bytes{}", "daemon {{instance}}"),
                    ("process_virtual_memory_bytes{}", "daemon, virtual {{instance}}"),
                    ("audiofork_relay_resident_memory_bytes{}", "relay {{worker}} {{instance}}"),
                ),
                unit="bytes",
            ),
            Panel(
                "File descriptors",
                "A fork needs four.",
                (
                    ("process_open_fds{}", "open {{instance}}"),
                    ("process_max_fds{}", "most {{instance}}"),
                ),
            ),
            Panel(
                "Event loop",
                "How late timers of the daemon are.",
                _times("audiofork_loop_lag_seconds"),
                unit="s",
            ),
            Panel(
                "Relay processes",
                "Round trip of a ping; forks that lost theirs.",
                (
                    ("audiofork_relay_rtt_seconds{}", "relay {{worker}} {{instance}}"),
                    (_rate("audiofork_relays_lost_total{}"), "lost a second {{instance}}"),
                ),
                unit="s",
            ),
            Panel(
                "Forks of each relay",
                "New forks go to the one that has the fewest.",
                (("audiofork_relay_forks{}", "relay {{worker}} {{instance}}"),),
                stacks=True,
            ),
        ),
    ),
    Row(
        "Cluster",
        (
            Panel(
                "Relay hosts",
                "As the controllers that lead have heard of them.",
                (("max by (state) (audiofork_relay_hosts{})", "{{state}}"),),
            ),
            Panel(
                "Forks of each relay host",
                "Of each Asterisk; and how many it takes.",
                (
                    ("max by (host) (audiofork_relay_host_forks{})", "{{host}}"),
                    ("max by (host) (audiofork_relay_host_capacity{})", "{{host}}, most"),
                ),
            ),
            Panel(
                "CPU of each relay host",
                "In cores.",
                (("max by (host) (audiofork_relay_host_cpu_ratio{})", "{{host}}"),),
            ),
            Panel(
                "Controllers that lead",
                "1: it leads; the number of its leadership grows with each change.",
                (
                    ("audiofork_leads{}", "{{instance}}"),
                    ("audiofork_controller_info{}", "{{controller}} of {{asterisk}}"),
                    ("audiofork_epoch{}", "number {{instance}}"),
                ),
            ),
        ),
    ),
)


def as_json() -> str:
    """Return the dashboard as Grafana imports it."""
    board: dict[str, Any] = {
        "id": None,
        "uid": "audiofork",
        "title": "audiofork",
        "description": "Forks of Asterisk's calls: starts, audio, servers, Asterisk, processes.",
        "tags": ["asterisk", "audiofork"],
        "editable": True,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "templating": {"list": [_datasource(), _instance()]},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
    }


def _instance() -> dict[str, Any]:
    query = "label_values(audiofork_build_info, instance)"
    return {
        "name": "instance",
        "label": "Instance",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instances"},
        "current": {"text": "All", "value": "$__all"},
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "sort": 1,
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for row in ROWS:
        at = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "gridPos": at, "panels": []}
        number, top, left = number + 1, top + 1, 0
        height = 4 if row.panels[0].kind == "stat" else 8
        for panel in row.panels:
            if left + panel.width > _WIDTH:
                left, top = 0, top + height
            at = {"x": left, "y": top, "w": panel.width, "h": height}
            yield _panel(panel, number, at)
            number, left = number + 1, left + panel.width
        top += height


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": _of_instance(query),
                "legendFormat": legend,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _of_instance(query: str) -> str:
    """Return a query of the instances that are chosen."""
    return query.replace("{}", f"{{{_MINE}}}").replace("{state=", f"{{{_MINE},state=")


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.wrong is not None:
        steps.append({"color": "red", "value": panel.wrong})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        mode = "normal" if panel.stacks else "none"
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacks else 0,
            "showPoints": "never",
            "stacking": {"mode": mode, "group": "A"},
        }
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value_and_name",
            "colorMode": "value",
            "graphMode": "none",
        }
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


if __name__ == "__main__":
    TARGET.write_text(as_json(), encoding="utf-8")
