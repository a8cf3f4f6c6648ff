"""What setup.py compiles, as Python: that it stands what compiling makes of it."""

from __future__ import annotations

import ast
import enum
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def compiled() -> list[str]:
    """Return the files that setup.py compiles, of which it alone has the list."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED":
            return list(ast.literal_eval(node.value))
    raise AssertionError("no COMPILED in setup.py")


COMPILED = {file.removesuffix(".py").replace("/", "."): ROOT / file for file in compiled()}


def structs(name: str) -> Iterator[type]:
    """Yield the classes of a module that are structs in C: no enums and named tuples."""
    for one in vars(importlib.import_module(name)).values():
        is_own = isinstance(one, type) and one.__module__ == name
        if is_own and not issubclass(one, enum.Enum | tuple):
            yield one


def test_what_is_compiled_is_there() -> None:
    assert COMPILED
    assert [name for name, file in COMPILED.items() if not file.is_file()] == []


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_class_inherits_no_attributes_of_pythons_classes(name: str) -> None:
    """Its struct would lie over them: the first attribute over the table of its methods."""
    inherited = [
        (one.__name__, base.__name__)
        for one in structs(name)
        for base in one.__mro__[1:]
        if base.__module__ not in COMPILED and base.__basicsize__ != object.__basicsize__
    ]
    assert inherited == []
