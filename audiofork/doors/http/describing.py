"""Describes the dataclasses of the HTTP interface as JSON Schema, for the OpenAPI document."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from audiofork.doors.http.schema import (
    Schema,
    choices_of,
    has_default,
    name_of,
    plain,
    split,
    types_of,
)

_SIMPLE: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}


class Describer:
    """Describes types; each dataclass once, as a component that others refer to.

    Attributes:
        components: The schema of each dataclass so far, by its name.
    """

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def of(self, hint: Any, *, is_answer: bool = True) -> Schema:
        """Return the schema of a type.

        Args:
            hint: The type, perhaps with bounds.
            is_answer: Whether the daemon sends it: then no field is ever left out.
        """
        hint, bounds = split(hint)
        choices = choices_of(hint)
        if len(choices) > 1:
            return {"anyOf": [bounds.schema(self._of_one(one, is_answer)) for one in choices]}
        return bounds.schema(self._of_one(hint, is_answer))

    def _of_one(self, hint: Any, is_answer: bool) -> Schema:
        if hint in _SIMPLE:
            return dict(_SIMPLE[hint])
        if dataclasses.is_dataclass(hint):
            return self._reference(hint, is_answer)  # type: ignore[arg-type]
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return {"type": "string", "enum": [one.value for one in hint]}
        items = [one for one in get_args(hint) if one is not Ellipsis]
        if issubclass(get_origin(hint), Mapping):
            return {
                "type": "object",
                "additionalProperties": self.of(items[-1], is_answer=is_answer),
            }
        return {"type": "array", "items": self.of(items[0], is_answer=is_answer)}

    def _reference(self, cls: type, is_answer: bool) -> Schema:
        if cls.__name__ not in self.components:
            self.components[cls.__name__] = self._object(cls, is_answer)
        return {"$ref": f"#/components/schemas/{cls.__name__}"}

    def _object(self, cls: type, is_answer: bool) -> Schema:
        told = told_of(cls)
        properties: dict[str, Schema] = {}
        required: list[str] = []
        for one in dataclasses.fields(cls):
            name = name_of(one)
            schema = self.of(types_of(cls)[name], is_answer=is_answer)
            if name in told:
                schema["description"] = told[name]
            if is_answer or not has_default(one):
                required.append(name)
            elif one.default is not dataclasses.MISSING:
                schema["default"] = plain(one.default)
            properties[name] = schema
        return {
            "type": "object",
            "description": summary_of(cls),
            "properties": properties,
            "additionalProperties": False,
            **({"required": required} if required else {}),
        }

    def parameters(self, cls: type) -> list[Schema]:
        """Return the parameters of a query, as OpenAPI describes them."""
        told = told_of(cls)
        return [
            {
                "name": name_of(one),
                "in": "query",
                "description": told.get(name_of(one), ""),
                "schema": self.of(types_of(cls)[name_of(one)], is_answer=False),
                **({} if has_default(one) else {"required": True}),
            }
            for one in dataclasses.fields(cls)
        ]


def summary_of(thing: Any) -> str:
    """Return the first paragraph of a docstring, in one line."""
    first = (thing.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.split())


_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): ((?:.+\n?)(?: {8}.*\n?)*)", re.MULTILINE)


def told_of(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each field."""
    told: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for names, text in _ENTRY.findall(attributes):
            told.update(dict.fromkeys(names.split(", "), " ".join(text.split())))
    return told
