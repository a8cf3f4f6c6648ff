"""The OpenAPI 3.1 document, made of the routes and of the dataclasses that parse and render."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from audiofork import __version__
from audiofork.doors.http.access import COOKIE
from audiofork.doors.http.describing import Describer, summary_of
from audiofork.doors.http.problems import MEDIA_TYPE, ProblemDetails
from audiofork.doors.http.routes import JSON, PARTS, Call, Route
from audiofork.doors.http.schema import Schema
from audiofork.doors.http.sending import answer

PATH = "/api/v1/openapi.json"


class OpenApi:
    """Answers with the document.

    Args:
        routes: All other routes.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        own = Route("GET", PATH, self.show, answers={200: dict[str, Any]})
        self._document = document([*routes, own])
        self.route = own

    async def show(self, _call: Call) -> web.StreamResponse:
        """Return this document."""
        return answer(self._document)


def document(routes: Iterable[Route]) -> Schema:
    """Return the OpenAPI document of some routes."""
    describer = Describer()
    problem = describer.of(ProblemDetails)
    paths: dict[str, Schema] = {}
    for route in routes:
        if route.is_listed:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, describer)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "audiofork",
            "version": __version__,
            "description": "Sends the audio of live Asterisk calls to WebSocket servers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": describer.components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
            "responses": {
                "Problem": {
                    "description": "Why it was not answered (RFC 9457).",
                    "content": {MEDIA_TYPE: {"schema": problem}},
                }
            },
        },
    }


def _operation(route: Route, describer: Describer) -> Schema:
    operation: Schema = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', route.path)}".strip("_"),
        "summary": summary_of(route.handler),
        "responses": _answers(route, describer),
    }
    parameters = _of_path(route.path)
    if route.query is not None:
        parameters += describer.parameters(route.query)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = describer.of(route.body, is_answer=False)
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if route.role is None:
        operation["security"] = []
    else:
        operation["description"] = f"Needs the role {route.role}."
    return operation


def _of_path(path: str) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{PARTS[name]}$"},
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _answers(route: Route, describer: Describer) -> Schema:
    answers: Schema = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            **(
                {}
                if hint is None
                else {"content": {route.media_type: {"schema": describer.of(hint)}}}
            ),
        }
        for status, hint in route.answers.items()
    }
    if 201 in route.answers:
        schema = {"type": "string"}
        answers["201"]["headers"] = {"Location": {"schema": schema, "description": "The fork."}}
    for status in sorted(_problems(route) - set(route.answers)):
        answers[str(status)] = {"$ref": "#/components/responses/Problem"}
    return answers


def _problems(route: Route) -> set[int]:
    """Return the statuses of the errors that a route may have."""
    found = {400, 403, 404, 405, 408, 421, 422, 500, *route.problems}
    if route.role is not None:
        found |= {401, 429, 503}
    if route.body is not None:
        found |= {413, 415}
    return found
