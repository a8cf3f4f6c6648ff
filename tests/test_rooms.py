"""Imports between the rooms of audiofork/ go only downwards; docs/architecture.md draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "audiofork"

GROUND = {"addresses", "audiosocket", "backoff", "config", "config_file", "config_values"}
GROUND |= {
    "errors",
    "files",
    "ini",
    "log",
    "placeholders",
    "profile_files",
    "reading_json",
    "realtime_opening",
    "shipped",
    "states",
    "system",
    "text",
}
GROUND |= {"config_asterisk", "config_checks", "config_sample", "config_security", "config_servers"}
GROUND |= {"config_cluster", "config_history", "config_http"}
GROUND |= {"rate_limit", "threads", "twilio_sids", "unix_sockets"}
GROUND |= {"tls_contexts", "uri", "url_patterns", ""}
"""Modules that all rooms may import; the last is the package itself, which has the version."""

ROOMS: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "cluster": set(),
    "link": {"cluster"},
    "asterisk": {"link"},
    "forks": {"asterisk", "link", "cluster"},
    "doors": {"forks", "asterisk", "link", "cluster"},
    "commands": {"doors", "forks", "asterisk", "link", "cluster"},
    "relay": {"link", "cluster"},
    "daemon": {"doors", "forks", "asterisk", "link", "cluster"},
    "control_asterisk": {"daemon", "doors", "forks", "asterisk", "link", "cluster"},
    "control": {"control_asterisk", "daemon", "doors", "forks", "asterisk", "link", "cluster"},
    "cli": {"control", "daemon", "commands", "doors"},
    "__main__": {"cli"},
}
"""What each room may import besides itself and the ground."""

RELAY_STARTERS = {"link.inline", "cli"}
"""Who may import the relay: nobody else knows more of it than its messages."""

OWN_PROCESSES = {"relay.process", "relay.detached", "relay.host", "relay.host_owner"}
"""The processes of the relay, which have the other end of a link."""


def modules() -> dict[str, Path]:
    """Return all modules of the package by their names in it."""
    names = {
        path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix("__init__").rstrip("."): path for path, name in names.items()}


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports of the package, by its name in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            if package == "audiofork":
                yield inside


def room_of(name: str) -> str:
    """Return the room of a module, or of something in one."""
    first = name.partition(".")[0]
    return first if first in ROOMS else ""


def test_each_module_imports_only_what_lies_below_it() -> None:
    above = []
    for name, path in modules().items():
        room = room_of(name)
        assert room or not name, f"{name} is in no room: see ROOMS"
        allowed = {room} | GROUND | ROOMS[room] | ({"relay"} if name in RELAY_STARTERS else set())
        above += [(name, one) for one in imports(path) if room_of(one) not in allowed]
    assert above == []


def test_relay_knows_of_the_link_its_messages_alone_but_for_its_own_processes() -> None:
    for name, path in modules().items():
        if room_of(name) == "relay" and name not in OWN_PROCESSES:
            of_link = {one for one in imports(path) if room_of(one) == "link"}
            messages = ("link.messages.", "link.dialogue.")
            assert all(one.startswith(messages) for one in of_link), name


def attributes_of(constructor: ast.FunctionDef) -> set[str]:
    """Return the names of the attributes that a constructor sets."""
    return {
        node.attr
        for node in ast.walk(constructor)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_no_module_has_more_than_500_lines() -> None:
    long = {name for name, path in modules().items() if len(path.read_text().splitlines()) > 500}
    assert long == set()


def test_no_constructor_sets_more_than_14_attributes() -> None:
    wide = [
        (name, node.lineno)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name == "__init__"
        and len(attributes_of(node)) > 14
    ]
    assert wide == []
