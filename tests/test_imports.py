"""Who imports whom: the relay and what lies between it and the control plane."""

from __future__ import annotations

import ast
from pathlib import Path

import audiofork

ROOT = Path(audiofork.__file__).parent
CONTROL_PLANE = ("asterisk", "forks", "doors", "commands", "daemon", "cli")


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, as `relay.worker`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("audiofork"):
            module = (node.module or "").removeprefix("audiofork").removeprefix(".")
            found |= {module} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {n.removeprefix("audiofork.") for n in names if n.startswith("audiofork.")}
    return found


IMPORTS = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): imports_of(path)
    for path in ROOT.rglob("*.py")
}


def importers_of(room: str, within: str = "") -> set[str]:
    """Return the modules outside a room that import from it."""
    return {
        module
        for module, imported in IMPORTS.items()
        if module.startswith(within)
        and not module.startswith(f"{room}.")
        and any(f"{one}.".startswith(f"{room}.") for one in imported)
    }


def test_the_files_are_found() -> None:
    assert "relay.worker" in IMPORTS["link.inline"]
    assert "link.messages" in IMPORTS["relay.session"]


def test_relay_is_imported_by_the_link_in_the_process_alone() -> None:
    assert importers_of("relay") == {"link.inline"}


def test_relay_and_link_import_nothing_of_the_control_plane() -> None:
    for room in CONTROL_PLANE:
        assert importers_of(room, "relay.") == set()
        assert importers_of(room, "link.") == set()


def test_relay_imports_of_the_link_its_messages_alone_but_for_its_process() -> None:
    for module, imported in IMPORTS.items():
        if module.startswith("relay.") and module != "relay.process":
            assert {one for one in imported if one.startswith("link.")} <= {"link.messages"}, module
