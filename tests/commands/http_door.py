"""A stand-in for the daemon's HTTP door, which answers what it is told: for faults."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

PROBLEM = "application/problem+json"


class Answer(NamedTuple):
    """An answer of the door.

    Attributes:
        status: Of HTTP.
        body: An object, or the very bytes.
        kind: Its Content-Type.
    """

    status: int = 200
    body: Any = b""
    kind: str = "application/json"


class Asked(NamedTuple):
    """A request that has come."""

    method: str
    path: str
    authorization: str
    body: Any


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone."""


class TalkingDoor:
    """Serves in threads of its own; a context manager.

    Args:
        context: Of TLS; None: plain HTTP.

    Attributes:
        answers: By METHOD PATH, the path below /api/v1; of several each comes once, the last one
            again and again. None: the connection is closed without one. Others are 404.
        asked: The requests that have come.
        events: What a stream of events holds; then it stays open.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, list[Answer | None]] = {}
        self.asked: list[Asked] = []
        self.events = b""
        self.closing = threading.Event()
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                authorization = self.headers.get("Authorization", "")
                asked = Asked(self.command, self.path, authorization, body)
                door.asked.append(asked)
                answer = door.answer_to(asked)
                if answer is None:
                    self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, bytes) else _bytes_of(answer.body)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                if answer.kind == "text/event-stream":
                    self.end_headers()
                    self.wfile.write(door.events)
                    self.wfile.flush()
                    door.closing.wait(30)
                    self.close_connection = True
                    return
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 (http.server's names)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def answer(self, request: str, *answers: Answer | dict[str, Any] | None) -> None:
        """Have a request answered like that; an object stands for an answer that holds it."""
        self.answers[request] = [
            Answer(body=one) if isinstance(one, dict) else one for one in answers
        ]

    def answer_to(self, asked: Asked) -> Answer | None:
        path = asked.path.partition("?")[0].removeprefix("/api/v1")
        unknown: list[Answer | None] = [problem(404, "No such fork")]
        answers = self.answers.get(f"{asked.method} {path}", unknown)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def __enter__(self) -> TalkingDoor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


def _bytes_of(body: object) -> bytes:
    return json.dumps(body).encode()


def problem(status: int, detail: str, kind: str = "about:blank") -> Answer:
    """Return an answer as RFC 9457 has it."""
    body = {"type": kind, "title": "no", "status": status, "detail": detail}
    return Answer(status, body, PROBLEM)


def event(name: str, fields: object) -> bytes:
    """Return an event of the stream."""
    return f"id: run-1\nevent: {name}\ndata: {json.dumps(fields)}\n\n".encode()
