"""One dataclass for each JSON object and each query: parses it, and renders it.

What a handler is given was checked against its dataclass, and the OpenAPI document describes the
same ones (`describing.py`). Fields may be str, bool, int, float, enums, None, dataclasses, lists,
mappings with texts as names, and unions of such; what is parsed uses only the simpler ones.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from audiofork.reading_json import parsed_json
from audiofork.text import did_you_mean, printable

_Object = TypeVar("_Object")

Schema = dict[str, Any]
MAX_SHOWN = 40  # characters of a bad value that its refusal repeats


class BadValue(ValueError):
    """A JSON object or a query is not what its dataclass says; the text names the field."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a value, beside its type: `Annotated[int, Bounds(minimum=1)]`.

    Attributes:
        pattern: What the whole of a text has to match; `expected` says the same in words.
    """

    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    max_items: int | None = None
    pattern: str | None = None
    expected: str = ""

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of a type with these limits."""
        limits = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "maxLength": self.max_length,
            "maxProperties": self.max_items,
            "pattern": self.pattern and f"^({self.pattern})$",
        }
        return schema | {name: limit for name, limit in limits.items() if limit is not None}

    def fault(self, value: Any) -> str:
        """Return what is expected of a value that breaks a limit; empty: it breaks none."""
        if self.max_length is not None and isinstance(value, str) and len(value) > self.max_length:
            return f"{self.max_length} characters at most"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return self.expected
        if self.max_items is not None and isinstance(value, dict) and len(value) > self.max_items:
            return f"{self.max_items} at most"
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = self.minimum, self.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                return self._range()
        return ""

    def _range(self) -> str:
        low = "" if self.minimum is None else f"at least {self.minimum:g}"
        high = "" if self.maximum is None else f"at most {self.maximum:g}"
        return " and ".join(filter(None, (low, high)))


_TYPES: dict[type, Mapping[str, Any]] = {}


def types_of(cls: type) -> Mapping[str, Any]:
    """Return the type of each field, with its bounds, by its name in JSON."""
    if cls not in _TYPES:
        hints = typing.get_type_hints(cls, include_extras=True)
        _TYPES[cls] = {name_of(one): hints[one.name] for one in dataclasses.fields(cls)}
    return _TYPES[cls]


def name_of(field: dataclasses.Field[Any]) -> str:
    """Return the name of a field in JSON: `in_` is `in` there, which is a word of Python's."""
    return field.name.rstrip("_")


def split(hint: Any) -> tuple[Any, Bounds]:
    """Return a type without its bounds, and these."""
    if get_origin(hint) is Annotated:
        plain, *notes = get_args(hint)
        return plain, next((note for note in notes if isinstance(note, Bounds)), Bounds())
    return hint, Bounds()


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


# --- Parsing -------------------------------------------------------------------------------------


def parse_body(cls: type[_Object], body: bytes) -> _Object:
    """Return the object that a body of JSON holds.

    Raises:
        BadValue: It holds anything else; the text names the field.
    """
    try:
        # Decoded first, because json would guess the encoding of bytes.
        value = parsed_json(body.decode(), parse_constant=_no_constant, object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # ValueError: half a character, \ud800
    except BadValue:
        raise
    except (ValueError, RecursionError):  # RecursionError: of dumps, which may go less deep
        raise BadValue("the body: expected a JSON object in UTF-8") from None
    return _parse_object(cls, value, "")


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadValue(f"{_shown(name)}: given twice")
        found[name] = value
    return found


def _parse_object(cls: type[_Object], value: Any, where: str) -> _Object:
    if not isinstance(value, dict):
        raise BadValue(f"{where or 'the body'}: expected an object, got {_kind(value)}")
    fields = types_of(cls)
    _refuse_unknown(value, fields, where, "field")
    given = {
        name: _parse(fields[name], item, f"{where}.{name}" if where else name)
        for name, item in value.items()
    }
    return _made(cls, given, where)


def _made(cls: type[_Object], given: dict[str, Any], where: str) -> _Object:
    values: dict[str, Any] = {}
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = name_of(one)
        if name in given:
            values[one.name] = given[name]
        elif not has_default(one):
            raise BadValue(f"{where}.{name}: missing" if where else f"{name}: missing")
    return cls(**values)


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field may be left out."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _refuse_unknown(given: Collection[str], known: Collection[str], where: str, what: str) -> None:
    for name in given:
        if name not in known:
            place = f"{where}.{_shown(name)}" if where else _shown(name)
            hint = did_you_mean(name[:MAX_SHOWN], known) or f"; there are {', '.join(known)}"
            raise BadValue(f"{place}: no such {what}{hint if known else ''}")


def _parse(hint: Any, value: Any, where: str) -> Any:
    hint, bounds = split(hint)
    for choice in choices_of(hint):
        if dataclasses.is_dataclass(choice) and isinstance(value, dict):
            return _parse_object(choice, value, where)  # type: ignore[arg-type]
        if _fits(choice, value):
            if fault := bounds.fault(value):
                raise BadValue(f"{where}: expected {fault}")
            return value
    raise BadValue(f"{where}: expected {_expected(hint)}, got {_kind(value)}")


def _fits(hint: Any, value: Any) -> bool:
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(
            value, bool
        )
    if hint is str:
        return isinstance(value, str)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    return False


_NAMES: dict[Any, str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object of strings",
    type(None): "null",
}


def _expected(hint: Any) -> str:
    names = (_NAMES.get(get_origin(one) or one, "an object") for one in choices_of(hint))
    return " or ".join(names)


def _kind(value: Any) -> str:
    """Return what a value is, without the value: it may be a secret, or long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    return {str: "a string", int: "a number", float: "a number", list: "a list"}.get(
        type(value), "null"
    )


def parse_query(cls: type[_Object], pairs: Sequence[tuple[str, str]]) -> _Object:
    """Return the object that the parameters of a query stand for.

    Raises:
        BadValue: One is unknown, given twice, or not of its type; the text names it.
    """
    fields = types_of(cls)
    given: dict[str, Any] = {}
    _refuse_unknown([name for name, _ in pairs], fields, "", "parameter")
    for name, text in pairs:
        if name in given:
            raise BadValue(f"{name}: given twice")
        given[name] = _of_text(fields[name], text, name)
    return _made(cls, given, "")


def _of_text(hint: Any, text: str, name: str) -> Any:
    plain, bounds = split(hint)
    kind = next(one for one in choices_of(plain) if one is not type(None))
    value = _converted(kind, text)
    if value is None:
        raise BadValue(f"{name}: expected {_NAMES[kind]}, got {_shown(text)!r}")
    if fault := bounds.fault(value):
        raise BadValue(f"{name}: expected {fault}")
    return value


_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")


def _converted(kind: Any, text: str) -> Any:
    """Return the value that a text stands for; None: it stands for none of this type."""
    if kind is bool:
        return _FLAGS.get(text.lower())
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) else None
    if kind is float:
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        return number if math.isfinite(number) else None
    return text


def _shown(text: str) -> str:
    """Return what a refusal repeats of a text that somebody has sent."""
    return printable(text, "?")[:MAX_SHOWN]


# --- Rendering -----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value as the types that JSON has; numbers that JSON does not have become null."""
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {name_of(one): plain(getattr(value, one.name)) for one in fields}
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(one) for name, one in value.items()}
    return [plain(one) for one in value]


def as_json(value: Any) -> str:
    """Return a value as JSON, ASCII only and in one line: its texts may hold anything."""
    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
