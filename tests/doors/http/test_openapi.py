"""The OpenAPI document: whole, valid, and what the door really does, by schemathesis."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)

from audiofork.config import HttpConfig
from audiofork.doors.http import access
from audiofork.doors.http.door import HttpDoor
from audiofork.doors.http.openapi import PATH
from audiofork.doors.http.tokens import Role
from tests.doors.http.stage import Others, Stage, staged, write_tokens

pytestmark = pytest.mark.slow

ALL = "all-0123456789abcdefgh"
DOCS = Path(__file__).parents[3] / "docs" / "http.md"


async def document(stage: Stage) -> Any:
    return (await stage.get(PATH)).json


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            if name == "$ref":
                yield one
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


async def test_every_route_stands_in_the_document_and_nothing_else(stage: Stage) -> None:
    told = await document(stage)
    named = {(method.upper(), path) for path, one in told["paths"].items() for method in one}
    routes = {(one.method, one.path) for one in stage.door.routes.routes if one.is_listed}
    assert named == routes
    assert len(routes) > 15


async def test_every_route_stands_in_the_docs_with_its_role(stage: Stage) -> None:
    rows = {
        (method, path): role
        for method, path, role in re.findall(
            r"^\| `(\w+) (/[^`?\[]*)[^`]*` \| (\w+|-) \|", DOCS.read_text(), re.MULTILINE
        )
    }
    routes = {
        (one.method, one.path): str(one.role) if one.role else "-"
        for one in stage.door.routes.routes
        if one.path != "/favicon.ico"
    }
    assert rows == routes


async def test_document_leads_nowhere_outside_and_every_reference_somewhere(stage: Stage) -> None:
    told = await document(stage)
    for reference in references(told):
        place = told
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


async def test_every_object_is_described_field_by_field(stage: Stage) -> None:
    told = await document(stage)
    for name, schema in told["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema["description"], name
        assert schema["additionalProperties"] is False, name


async def test_every_operation_says_what_it_does_and_which_role_it_needs(stage: Stage) -> None:
    told = await document(stage)
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            if operation.get("security") != []:
                assert any(f"role {role}." in operation["description"] for role in Role)


async def test_answers_are_as_described(stage: Stage) -> None:
    """Each route by hand, so that a failure is plain; schemathesis tries more below."""
    told = await document(stage)
    stage.others.lines = ['{"status": "ok", "name": "a", "text": "a: b", "remedy": ""}']
    fork = "3f2a91c0-0000-4000-8000-000000000001"
    other = fork[:-1] + "2"
    for path in told["paths"]:
        if "get" not in told["paths"][path] or path.endswith(("/events", "/listen")):
            continue
        answer = await stage.get(path.replace("{id}", other if "history" in path else fork))
        content = told["paths"][path]["get"]["responses"]["200"]["content"]
        (media_type,) = content
        assert answer.headers["content-type"].startswith(media_type)
        if media_type == "application/json":
            schema = {**content[media_type]["schema"], "components": told["components"]}
            Draft202012Validator(schema).validate(answer.json)


# --- Schemathesis --------------------------------------------------------------------------------


class Background:
    """A door in a thread of its own, for a client that blocks.

    Attributes:
        url: Where it is.
        document: Its OpenAPI document.
    """

    def __init__(self, folder: Path) -> None:
        self._ready: Future[tuple[str, Any]] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(folder)))
        self._thread.start()
        self.url, self.document = self._ready.result(20)

    async def _run(self, folder: Path) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        others = Others()
        others.lines = ['{"status": "ok", "name": "a", "text": "a: b", "remedy": ""}']
        async with staged(folder, others) as stage:
            tokens = write_tokens(folder, f"all listen,control {ALL}\n")
            stage.door.reading_tokens(stage.door._config)()
            told = (await stage.get(PATH, ALL)).json
            self._ready.set_result((f"http://127.0.0.1:{stage.port}", told))
            await self._stop.wait()
            tokens.unlink()

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "BAD_TOKENS", 1e9)  # schemathesis tries many
        one = Background(tmp_path_factory.mktemp("door"))
        yield one
        one.stop()


def operations() -> list[tuple[str, str]]:
    """Return the method and the path of each operation that is answered and done with."""
    door = HttpDoor(HttpConfig(socket="/none"), Others().parts())
    return [
        (one.method, one.path) for one in door.routes.routes if one.is_listed and not one.is_stream
    ]


@pytest.fixture(scope="module")
def api(background: Background) -> Any:
    return schemathesis.openapi.from_dict(background.document)


# Its own decorator for pytest needs what pytest 9.2 no longer has.
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), operations())
def test_every_answer_conforms_whatever_is_asked(
    api: Any, background: Background, method: str, path: str, mode: GenerationMode
) -> None:
    cases = api[path][method].as_strategy(generation_mode=mode)
    # What these take, JSON Schema cannot say: one of two fields, and texts with rules of their own.
    is_beyond_words = method in ("POST", "PATCH")
    excluded: list[Any] = [positive_data_acceptance] if is_beyond_words else []

    @settings(
        derandomize=True,
        max_examples=10,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: schemathesis.Case[Any]) -> None:
        headers = {"Authorization": f"Bearer {ALL}"}
        answer = case.call(base_url=background.url, headers=headers, timeout=20)
        # A body that is too long is refused, too; schemathesis does not count that.
        too_long = [negative_data_rejection] if answer.status_code == 413 else []
        case.validate_response(answer, excluded_checks=[*excluded, *too_long], headers=headers)

    try:
        ask()
    except Unsatisfiable:  # nothing can be wrong about it
        assert mode is GenerationMode.NEGATIVE
