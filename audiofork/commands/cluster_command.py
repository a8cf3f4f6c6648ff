"""The commands cluster and drain: show who is in the cluster; empty a relay host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from audiofork.commands.asking import exit_codes
from audiofork.commands.daemon_options import of_the_daemon
from audiofork.commands.tables import aligned
from audiofork.commands.terminal import say
from audiofork.commands.waiting import clock_time
from audiofork.doors import control_client
from audiofork.text import printable

Fields = Mapping[str, Any]

_HOST_COLUMNS = ("RELAY HOST", "ZONE", "ADDRESS", "FORKS", "CAPACITY", "CPU", "STATE", "VERSION")
_CONTROLLER_COLUMNS = (
    *("CONTROLLER", "ASTERISK", "STATE", "SINCE", "EPOCH", "NATS SERVER", "VERSION"),
)
_NUMBERS = frozenset({"FORKS", "CAPACITY", "CPU", "SINCE", "EPOCH"})


@click.command(short_help="Show the relay hosts and controllers of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@of_the_daemon
def cluster(as_json: bool, path: Path, socket_path: Path | None) -> None:
    """Show the relay hosts and controllers of the cluster, as the controller here sees them.

    It answers whether it leads or stands by. CPU is the part of a core that a relay host used
    lately; SINCE, for how long a controller has led or stood by. What is dead was heard of in
    the last ten minutes.
    """
    with exit_codes():
        socket_path = socket_path or control_client.socket_of(path)
        with control_client.Client(socket_path) as controller:
            found = controller.cluster()
    say(_as_json(found) if as_json else table(found))


@click.command(short_help="Have the forks of a relay host move to others.")
@click.argument("relay_host", metavar="HOST")
@click.option("--undo", is_flag=True, help="Let it take forks again.")
@of_the_daemon
def drain(relay_host: str, undo: bool, path: Path, socket_path: Path | None) -> None:
    """Have the forks of a relay host move to others without a gap; it takes no more then.

    It goes on running: `audiofork cluster` shows how many forks it still has. To stop it is
    enough where it is to end: it is drained first.
    """
    with exit_codes():
        socket_path = socket_path or control_client.socket_of(path)
        with control_client.Client(socket_path) as controller:
            controller.drain(relay_host, undo=undo)


def _as_json(cluster: Fields) -> str:
    """Return a cluster as a JSON object; see doors/cluster_answers.py."""
    shown = {name: value for name, value in cluster.items() if name != "ok"}
    return json.dumps(shown, indent=2)


def table(cluster: Fields) -> str:
    """Return a cluster as two tables, below a line that says so if they may be out of date.

    Args:
        cluster: The answer of a controller.
    """
    parts = []
    if not cluster["server"]:
        name = printable(str(cluster["name"]), "?")
        parts.append(f"{name} has lost the NATS servers: this is what it heard before")
    hosts = [_host_cells(one) for one in cluster["hosts"]]
    parts.append("\n".join(aligned(_HOST_COLUMNS, hosts, _NUMBERS)) if hosts else "no relay hosts")
    controllers = [_controller_cells(one) for one in cluster["controllers"]]
    rows = aligned(_CONTROLLER_COLUMNS, controllers, _NUMBERS)
    parts.append("\n".join(rows) if controllers else "no controllers")
    return "\n\n".join(parts)


def _host_cells(host: Fields) -> dict[str, str]:
    is_dead = host["state"] == "dead"
    cells = {
        "RELAY HOST": host["name"],
        "ZONE": host["zone"] or "-",
        "ADDRESS": host["address"],
        "FORKS": "-" if is_dead else host["forks"],
        "CAPACITY": host["capacity"],
        "CPU": "-" if is_dead else f"{host['cpu']:.0%}",
        "STATE": host["state"],
        "VERSION": host["version"] or "-",
    }
    return {name: printable(str(cell), "?") for name, cell in cells.items()}


def _controller_cells(controller: Fields) -> dict[str, str]:
    is_dead = controller["state"] == "dead"
    cells = {
        "CONTROLLER": controller["name"],
        "ASTERISK": controller["asterisk"],
        "STATE": controller["state"],
        "SINCE": "-" if is_dead else clock_time(controller["since_s"]),
        "EPOCH": controller["epoch"] if controller["epoch"] and not is_dead else "-",
        "NATS SERVER": controller["server"] or "-",
        "VERSION": controller["version"] or "-",
    }
    return {name: printable(str(cell), "?") for name, cell in cells.items()}
