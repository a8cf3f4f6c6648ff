"""Stands in for the daemon's HTTP door: the same interface, with forks that nobody has.

python -m tests.page.stand_in --forks 1000     # then sign in with the token that it prints
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import secrets
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web

from tests.page import synthetic
from tests.page.synthetic import Fork

PAGE = Path(__file__).parents[2] / "audiofork/doors/http/page"
COOKIE = "audiofork_session"
ROLES = {
    "operator-token-0123456789": ["view", "listen", "control"],
    "looker-token-0123456789": ["view"],
}
OPERATOR, LOOKER = ROLES
RING = 2000
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; media-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LEVELS_S = 0.2
TONES_HZ = {"in": 440, "out": 1200}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StandIn:
    """The interface with synthetic forks; a context manager.

    Args:
        count: How many forks there are at first.
        port: Where it listens, on 127.0.0.1; 0: anywhere.

    Attributes:
        forks: By id; tests change them as they like, and tell by `emit`.
        fixed: Levels by id, in place of the moving ones.
        asked: The changes that were asked for, as (method, id, body).
        status: What is told of Asterisk, ARI and relays.
        broken: The beginning of paths that are answered with an error; empty: none.
        slow_s: Seconds until a fork's own answer comes.
        missing: In a cluster, each Asterisk whose forks are missing, and why.
        silent: Each controller whose history is missing, and why.
    """

    def __init__(self, count: int = 0, port: int = 0) -> None:
        self.forks: dict[str, Fork] = {}
        self.fixed: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.status = status()
        self.broken = ""
        self.slow_s = 0.0
        self.missing: dict[str, str] = {}
        self.silent: dict[str, str] = {}
        self.entries = [synthetic.entry(number) for number in range(140)]
        self.url = ""
        self._port = port
        self._sessions: dict[str, str] = {}
        self._run = secrets.token_hex(4)
        self._ring: list[tuple[int, str, str]] = []
        self._streams: set[_EventStream] = set()
        self._server: web.AppRunner | None = None
        for number in range(count):
            self.add(synthetic.fork(number))

    def add(self, one: Fork) -> Fork:
        """Add a fork without telling of it."""
        self.forks[one["id"]] = one
        return one

    def request(self, one: Fork) -> Fork:
        """Add a fork, and tell that it was requested."""
        self.add(one)
        self.emit("fork.requested", one)
        return one

    def emit(self, name: str, one: Fork | None = None, **fields: Any) -> None:
        """Tell all readers of an event."""
        data: dict[str, Any] = {"at": time.time(), **fields}
        if one is not None:
            kept = ("id", "channel", "uniqueid", "url", "host")
            data["fork"] = {field: one[field] for field in kept}
        number = self._ring[-1][0] + 1 if self._ring else 1
        self._ring.append((number, name, json.dumps(data)))
        del self._ring[:-RING]
        for stream in self._streams:
            stream.put(_rendered(name, json.dumps(data), f"{self._run}-{number}"))

    def end(self, one: Fork, reason: str = "hangup", *, failed: bool = False, **more: Any) -> None:
        """End a fork, and tell."""
        self.forks.pop(one["id"], None)
        self.emit("fork.ended", one, reason=reason, failed=failed, **more)
        self.emit("fork.failed" if failed else "fork.stopped", one, reason=reason, **more)

    def cut(self) -> None:
        """Break all streams of events off."""
        for stream in self._streams:
            stream.end()

    def restart(self) -> None:
        """Forget all events and sessions' streams, as a new run of the daemon."""
        self._run = secrets.token_hex(4)
        self._ring.clear()
        self.cut()

    def sign_out_all(self) -> None:
        """Forget all sessions."""
        self._sessions.clear()

    async def __aenter__(self) -> Self:
        self._server = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.5)
        await self._server.setup()
        site = web.TCPSite(self._server, "127.0.0.1", self._port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._server.addresses[0][1]}/"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self.cut()
        await self._server.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        api, get = "/api/v1", web.get
        app.add_routes(
            [
                get("/", self._index),
                web.static("/page", PAGE),
                web.post(f"{api}/session", self._sign_in),
                web.delete(f"{api}/session", self._sign_out),
                get(f"{api}/session", self._who),
                get(f"{api}/status", self._status),
                get(f"{api}/series", self._series),
                get(f"{api}/events", self._events),
                get(f"{api}/forks", self._list),
                get(f"{api}/forks/{{id}}", self._one),
                web.patch(f"{api}/forks/{{id}}", self._mute),
                web.delete(f"{api}/forks/{{id}}", self._stop),
                get(f"{api}/forks/{{id}}/listen", self._listen),
                get(f"{api}/history", self._history),
                get(f"{api}/history/causes", self._causes),
                get(f"{api}/history/{{id}}", self._entry),
                get(f"{api}/check", self._check),
            ]
        )
        app.on_response_prepare.append(_secure)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        is_api = request.path.startswith("/api/")
        if self.broken and request.path.startswith(self.broken):
            return _problem(503, "Service Unavailable", "Asterisk is away")
        if is_api and request.path != "/api/v1/session":
            needed = {"DELETE": "control", "PATCH": "control"}.get(request.method, "view")
            if request.path.endswith("/listen"):
                needed = "listen"
            roles = self._roles(request)
            if roles is None:
                return _problem(401, "Unauthorized", "a token is needed")
            if needed not in roles:
                return _problem(403, "Forbidden", f"this token does not have the role {needed}")
        return await handler(request)

    def _roles(self, request: web.Request) -> list[str] | None:
        token = self._sessions.get(request.cookies.get(COOKIE, ""))
        return ROLES[token] if token else None

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html")

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        token = (await request.json()).get("token")
        if token not in ROLES:
            return _problem(401, "Unauthorized", "this token is not known")
        session = secrets.token_hex(16)
        self._sessions[session] = token
        response = web.json_response({"name": token.split("-")[0], "roles": ROLES[token]})
        response.set_cookie(COOKIE, session, httponly=True, samesite="Strict")
        return response

    async def _who(self, request: web.Request) -> web.StreamResponse:
        roles = self._roles(request)
        if roles is None:
            return _problem(401, "Unauthorized", "a token is needed")
        name = self._sessions[request.cookies[COOKIE]].split("-")[0]
        return web.json_response({"name": name, "roles": roles})

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        return web.Response(status=204)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({**self.status, "forks": len(self.forks)})

    async def _series(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"minutes": synthetic.minutes(int(request.query["hours"]))})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        start, limit = int(request.query.get("cursor") or 0), int(request.query.get("limit", 100))
        forks = list(self.forks.values())
        following = str(start + limit) if start + limit < len(forks) else ""
        shown = forks[start : start + limit]
        return web.json_response(
            {
                "forks": shown,
                "total": len(forks),
                "next_cursor": following,
                "missing": self.missing,
            }
        )

    async def _one(self, request: web.Request) -> web.StreamResponse:
        one = self.forks.get(request.match_info["id"])
        if one is None:
            return _problem(404, "Not Found", "there is no such fork")
        answer = {**one, "timeline": synthetic.timeline(one)}
        await asyncio.sleep(self.slow_s)
        return web.json_response(answer)

    async def _mute(self, request: web.Request) -> web.StreamResponse:
        one = self.forks.get(request.match_info["id"])
        if one is None:
            return _problem(404, "Not Found", "there is no such fork")
        body = await request.json()
        self.asked.append(("PATCH", one["id"], body))
        sides = {"in": one["muted"] in ("read", "both"), "out": one["muted"] in ("write", "both")}
        sides |= body["mute"]
        words = {(True, True): "both", (True, False): "read", (False, True): "write"}
        one["muted"] = words.get((sides["in"], sides["out"]), "")
        self.emit("fork.muted", one, **sides)
        return web.json_response(one)

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        one = self.forks.get(request.match_info["id"])
        if one is None:
            return _problem(404, "Not Found", "there is no such fork")
        self.asked.append(("DELETE", one["id"], None))
        self.end(one, "stopped")
        return web.Response(status=204)

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        one = self.forks.get(request.match_info["id"])
        if one is None:
            return _problem(404, "Not Found", "there is no such fork")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sides = ["in", "out"]
        await socket.send_json({"sample_rate": 8000, "channels": 2, "sides": sides})
        playing = asyncio.create_task(_play(socket, lambda: one["id"] in self.forks))
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        return socket

    async def _history(self, request: web.Request) -> web.StreamResponse:
        found = [entry for entry in self.entries if _fits(entry, request.query)]
        start, limit = int(request.query.get("cursor") or 0), int(request.query.get("limit", 50))
        following = str(start + limit) if start + limit < len(found) else ""
        return web.json_response(
            {
                "entries": found[start : start + limit],
                "next_cursor": following,
                "missing": self.silent,
            }
        )

    async def _entry(self, request: web.Request) -> web.StreamResponse:
        for one in self.entries:
            if one["fork_id"] == request.match_info["id"]:
                return web.json_response(
                    one | {"timeline": one["timeline"] or synthetic.timeline(one)}
                )
        return _problem(404, "Not Found", "there is no such fork")

    async def _causes(self, request: web.Request) -> web.StreamResponse:
        causes: dict[tuple[str, str], dict[str, Any]] = {}
        for one in self.entries:
            if one["failed"]:
                cause = causes.setdefault(
                    (one["reason"], one["detail"]),
                    {**one, "count": 0, "latest_at": one["ended_at"]},
                )
                cause["count"] += 1
        names = ("reason", "detail", "count", "latest_at", "fork_id")
        found = [{name: cause[name] for name in names} for cause in causes.values()]
        causes_found = sorted(found, key=lambda cause: -cause["count"])
        return web.json_response({"causes": causes_found, "missing": self.silent})

    async def _check(self, request: web.Request) -> web.StreamResponse:
        found = synthetic.findings()
        return web.json_response({"at": time.time(), "exit_code": 1, "findings": found})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        stream = _EventStream(response, self)
        stream.resume(request.headers.get("Last-Event-ID", ""), self._run, self._ring)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)
        return response


class _EventStream:
    """One reader of events, with levels five times a second and figures once."""

    def __init__(self, response: web.StreamResponse, stand_in: StandIn) -> None:
        self._response = response
        self._stand_in = stand_in
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()

    def put(self, text: str) -> None:
        self._queue.put_nowait(text)

    def end(self) -> None:
        self._queue.put_nowait(None)

    def resume(self, last: str, run: str, ring: list[tuple[int, str, str]]) -> None:
        """Begin with what came after an id."""
        if not last:
            return
        its_run, _, number = last.rpartition("-")
        if its_run != run:
            self.put(_rendered("reset", "{}"))
            return
        for one, name, data in ring:
            if one > int(number):
                self.put(_rendered(name, data, f"{run}-{one}"))

    async def serve(self) -> None:
        levels = asyncio.create_task(self._tell_levels())
        try:
            while (text := await self._queue.get()) is not None:
                await self._response.write(text.encode())
        except ConnectionResetError:
            pass  # the browser has left
        finally:
            levels.cancel()

    async def _tell_levels(self) -> None:
        ticks = 0
        while True:
            now = time.time()
            forks = list(self._stand_in.forks.values())
            fixed = self._stand_in.fixed
            levels = {
                one["id"]: fixed.get(one["id"]) or synthetic.levels(one, now) for one in forks
            }
            self.put(_rendered("levels", json.dumps({"levels": levels})))
            if ticks % 5 == 0:
                self.put(_rendered("stats", json.dumps({"forks": _stats(forks)})))
            ticks += 1
            await asyncio.sleep(LEVELS_S)


def status() -> dict[str, Any]:
    """Return what is told of the whole, when all is well."""
    return {
        "version": "0.9.0",
        "run": "1",
        "uptime_s": 93784.0,
        "asterisk": {"up": True, "version": "22.10.1", "text": "", "rtt_ms": 0.4},
        "ari": {"configured": True, "up": True, "text": "", "rtt_ms": 1.2},
        "relays": [
            {"name": "relay 1", "up": True, "forks": 7},
            {"name": "relay 2", "up": True, "forks": 5},
        ],
        "counters": {},
        "viewers": 1,
        "history": True,
    }


def _stats(forks: list[Fork]) -> dict[str, dict[str, Any]]:
    names = ("frames_in", "frames_sent", "frames_dropped", "backlog", "rtt_ms", "state")
    for one in forks:
        if one["state"] == "streaming":
            one["frames_in"] += 50
            one["frames_sent"] += 50
    return {one["id"]: {name: one[name] for name in names} for one in forks}


def _fits(entry: dict[str, Any], query: Any) -> bool:
    since = query.get("since")
    failed = query.get("failed")
    texts = {
        "caller": f"{entry['caller_name']} {entry['caller_number']}",
        "channel": entry["channel"],
        "host": entry["host"],
        "reason": entry["reason"],
        "text": f"{entry['detail']} {entry['caller_name']}",
    }
    return (
        all(query.get(name, "").lower() in text.lower() for name, text in texts.items())
        and (not since or entry["ended_at"] >= float(since))
        and (not failed or entry["failed"] is (failed == "true"))
        and query.get("asterisk", "") in ("", entry.get("asterisk"))
    )


async def _play(socket: web.WebSocketResponse, goes_on: Callable[[], bool]) -> None:
    """Send two tones in pieces of 100 ms."""
    rate, at = 8000, 0
    began = time.monotonic()
    while goes_on():
        samples = (
            int(12000 * math.sin(2 * math.pi * tone * number / rate))
            for number in range(at, at + rate // 10)
            for tone in TONES_HZ.values()
        )
        await socket.send_bytes(struct.pack(f"<{rate // 5}h", *samples))
        at += rate // 10
        await asyncio.sleep(max(0.0, began + at / rate - time.monotonic()))
    await socket.send_json({"ended": "stopped"})
    await socket.close()


def _rendered(name: str, data: str, event_id: str = "") -> str:
    return (f"id: {event_id}\n" if event_id else "") + f"event: {name}\ndata: {data}\n\n"


def _problem(code: int, title: str, detail: str) -> web.Response:
    body = {"type": "about:blank", "title": title, "status": code, "detail": detail}
    return web.json_response(body, status=code, content_type="application/problem+json")


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY)


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.page.stand_in", description=__doc__)
    parser.add_argument("--forks", type=int, default=12)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    async with StandIn(options.forks, options.port) as stand_in:
        print(f"{stand_in.url}\ntoken {OPERATOR}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
