"""The page of our own format, docs/json-format.asyncapi.yaml, to hold texts against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

from audiofork.relay.formats.base import Message

ROOT = Path(__file__).parents[3]
PAGE: dict[str, Any] = yaml.safe_load((ROOT / "docs/json-format.asyncapi.yaml").read_text())
MESSAGES: dict[str, Any] = PAGE["components"]["messages"]
_REGISTRY: Registry[Any] = Registry().with_resource("page:", DRAFT7.create_resource(PAGE))


def check(text: Message) -> str:
    """Hold a text against the page, which has to name each of its fields; return what it is."""
    told = json.loads(text)
    name: str = "command" if "command" in told else told["event"]
    payload = {"$ref": f"page:#/components/messages/{name}/payload"}
    known = Draft7Validator.FORMAT_CHECKER
    Draft7Validator(payload, registry=_REGISTRY, format_checker=known).validate(told)
    assert set(told) <= set(MESSAGES[name]["payload"]["properties"])
    if name == "start":
        assert set(told["audio"]) <= set(PAGE["components"]["schemas"]["audio"]["properties"])
    return name
