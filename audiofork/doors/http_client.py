"""The command line's side of the HTTP door.

What concerns a channel is asked for each of its forks: the door knows forks alone.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from audiofork.doors.daemon_client import (
    Forgetting,
    Listing,
    fork_id_of,
    is_channel_name,
    named,
)
from audiofork.doors.http_connection import Door, HttpConnection, not_the_daemon
from audiofork.doors.http_events import Fields, ForkEvents
from audiofork.errors import (
    AudioForkError,
    DaemonUnreachable,
    RequestRefused,
)
from audiofork.forks.params import parse_params
from audiofork.forks.requests import CONNECT
from audiofork.text import printable

# One page of a list. A fork takes some 800 bytes, and 1000 are the default of max_forks.
PAGE = 1000
# How long the progress of a start may be out of date.
BEAT_S = 0.25
# How long the end of a fork that is gone may take to be told.
END_TIMEOUT_S = 2.0


class HttpClient:
    """One connection to the daemon's HTTP door, a DaemonClient.

    Its lists have URLs without their queries. What concerns a channel is asked for each of its
    forks, one after another.

    Attributes:
        missing: In a cluster, whose histories were not among the answers, with the reason.

    Raises:
        ConfigError: The token, the URL or the authorities cannot be used.
        DaemonUnreachable: Nobody listens there, or its certificate is not to be trusted.
    """

    def __init__(self, door: Door) -> None:
        self._http = HttpConnection(door)
        self.missing: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    # --- What the command line asks for ---

    def start(self, channel: str, url: str, **wishes: str) -> str:
        """Start a fork; see DaemonClient."""
        body = {
            "channel" if is_channel_name(channel) else "uniqueid": channel,
            "url": url,
            "options": wishes.get("Options", ""),
            "post_process": wishes.get("PostProcess", ""),
            "params": _params_of(wishes.get("Params", "")),
            "connect": wishes.get("Command", "").lower() == CONNECT,
        }
        with named(channel):
            answer = self._http.ask("POST", "/forks", body=body)
        return _id_in(answer, self._http.url)

    def start_and_follow(
        self, channel: str, url: str, **wishes: str
    ) -> tuple[str, Iterator[dict[str, Any]]]:
        """Start a fork, and follow its start; see DaemonClient."""
        events = self._events()  # before the start: a fork may end at once
        try:
            fork_id = self.start(channel, url, **wishes)
        except BaseException:
            events.close()
            raise
        events.look_for(fork_id)
        return fork_id, self._news(fork_id, events)

    def stop(self, target: str) -> list[str]:
        """Stop forks; see DaemonClient."""
        ids = self._ids_of(target)
        with named(target):
            for fork_id in ids:
                self._http.ask("DELETE", _path_of(fork_id))
        return ids

    def mute(self, target: str, direction: str, on: bool) -> list[str]:
        """Mute or unmute forks; see DaemonClient.

        Raises:
            RequestRefused: Names the forks that were muted before one could not be.
        """
        sides = {"read": ("in",), "write": ("out",), "both": ("in", "out")}[direction.lower()]
        body = {"mute": dict.fromkeys(sides, on)}
        done: list[str] = []
        ids = self._ids_of(target)
        with named(target):
            for fork_id in ids:
                try:
                    self._http.ask("PATCH", _path_of(fork_id), body=body)
                except RequestRefused as exc:
                    if not done:
                        raise
                    raise RequestRefused(f"{exc}; done before: {' '.join(done)}") from exc
                done.append(fork_id)
        return done

    def listing(self) -> Listing:
        """Return all forks; see DaemonClient."""
        forks: list[dict[str, Any]] = []
        legs_left, cursor = 0, ""
        while True:
            query = {"limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
            answer = self._http.ask("GET", "/forks", query)
            with self._http.is_the_daemon():
                forks += map(_checked, answer["forks"])
                legs_left = int(answer.get("legs_left", 0))
                following = str(answer.get("next_cursor", ""))
            if following in ("", cursor):
                return Listing(forks, legs_left)
            cursor = following

    # --- The history ---

    def history(self, fields: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """Return entries of the history, and the cursor of the next page.

        Args:
            fields: As the control socket has them: Channel, Since and others, or AudioForkID.
        """
        if fork_id := fields.get("AudioForkID", ""):
            return self._entry(fork_id), ""
        query = {name.lower(): value for name, value in fields.items() if value}
        if "failed" in query:
            query["failed"] = "true" if query["failed"] == "yes" else "false"
        answer = self._http.ask("GET", "/history", query)
        with self._http.is_the_daemon():
            self.missing |= answer.get("missing", {})
            return [dict(one) for one in answer["entries"]], str(answer["next_cursor"])

    def _entry(self, fork_id: str) -> list[dict[str, Any]]:
        """Return the entry of a fork in a list, which is empty if there is none."""
        try:
            return [self._http.ask("GET", f"/history/{quote(fork_id.lower(), safe='')}")]
        except RequestRefused as exc:
            if str(exc).startswith(("No such fork", "there is nothing")):
                return []
            raise

    def causes(self, since: float) -> list[dict[str, Any]]:
        """Return the causes of failures since a time, in seconds since 1970."""
        answer = self._http.ask("GET", "/history/causes", {"since": repr(since)})
        with self._http.is_the_daemon():
            self.missing |= answer.get("missing", {})
            return [dict(one) for one in answer["causes"]]

    def forget(self, _number: str) -> Forgetting:
        """Refuse: whoever looks at the history from elsewhere may not change it."""
        raise RequestRefused(
            "callers are removed from the history on the daemon's own machine alone: run audiofork "
            "history --forget there, without --url"
        )

    # --- A start ---

    def _events(self) -> ForkEvents:
        """Return what happens to forks from now on; nothing if the daemon does not tell it."""
        query = urlencode({"types": ",".join(ForkEvents.TYPES)})
        stream = self._http.stream(f"/events?{query}")
        return ForkEvents(*stream) if stream else ForkEvents()

    def _news(self, fork_id: str, events: ForkEvents) -> Iterator[dict[str, Any]]:
        """Yield the progress of a start; see DaemonClient."""
        fork: dict[str, Any] = {"id": fork_id, "channel": ""}
        heard: Mapping[str, Fields] = {}
        with contextlib.closing(events):
            while True:
                found = self._fork(fork_id)
                fork = fork if found is None else found
                if found is None and len(heard) < 2:  # its end may come a little later
                    heard = events.wait(END_TIMEOUT_S)
                news = _news_of(fork, heard, is_gone=found is None)
                if news["result"] == "ended" and not news["reason"]:
                    news |= self._end_in_history(fork_id)
                yield news
                if news["result"] != "waiting":
                    return
                heard = events.wait(BEAT_S)

    def _fork(self, fork_id: str) -> dict[str, Any] | None:
        """Return a fork; None: there is none any more."""
        try:
            return self._http.ask("GET", _path_of(fork_id))
        except RequestRefused:
            return None

    def _end_in_history(self, fork_id: str) -> dict[str, Any]:
        """Return the reason and the detail of a fork's end, if the daemon still knows it."""
        end: dict[str, Any] = {}
        with contextlib.suppress(AudioForkError):
            end = dict(*self._entry(fork_id))
        return {"reason": end.get("reason", "unknown"), "detail": end.get("detail", "")}

    # --- Requests ---

    def _ids_of(self, target: str) -> list[str]:
        """Return the ids of the forks that a user has named.

        Raises:
            RequestRefused: There is none.
        """
        if fork_id := fork_id_of(target):
            return [fork_id]
        field = "channel" if is_channel_name(target) else "uniqueid"
        forks = self.listing()[0]
        ids = [fork["id"] for fork in forks if fork.get(field) == target]
        if ids:
            return ids
        for fork in forks:  # a part of an id, as the log shows it
            if len(target) >= 4 and fork["id"].startswith(target.lower()):
                whole, channel = (printable(str(fork.get(one)), "?") for one in ("id", "channel"))
                raise RequestRefused(
                    f"No such fork {target}; did you mean {whole}, on channel {channel}?"
                )
        with named(target):
            raise RequestRefused("No such fork")


def _checked(fork: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fork of a list; raise ValueError or LookupError if it is none."""
    for name in _SHOWN:
        fork[name]
    return {**fork, "id": str(uuid.UUID(fork["id"]))}


# What a list cannot do without.
_SHOWN = (
    *("channel", "uniqueid", "url", "direction", "state", "age_s", "muted", "tap"),
    *("sample_rate", "frames_in", "frames_sent", "frames_dropped"),
)


def _id_in(answer: Mapping[str, Any], url: str) -> str:
    """Return the id of a fork that was started: it is printed, and becomes a part of paths."""
    if fork_id := fork_id_of(str(answer.get("id", ""))):
        return fork_id
    raise DaemonUnreachable(not_the_daemon(url))


def _path_of(fork_id: str) -> str:
    return f"/forks/{quote(fork_id, safe='')}"


def _params_of(text: str) -> dict[str, str]:
    try:
        return parse_params(text)
    except ValueError as exc:
        raise RequestRefused(f"Params: {exc}") from exc


def _news_of(
    fork: Mapping[str, Any], heard: Mapping[str, Fields], *, is_gone: bool
) -> dict[str, Any]:
    """Return the progress of a start with the fields of StartNews.

    Args:
        fork: The fork as it was seen last.
        heard: The events of it.
        is_gone: Whether it was not there any more.
    """
    end = next((heard[one] for one in _ENDS if one in heard), None)
    channel = {} if end is None else {"channel": end["fork"].get("channel", "")}
    news: dict[str, Any] = {"fork": {**fork, **channel}, "ms": _ms_until_started(fork, heard)}
    if news["ms"] is not None:
        return {**news, "result": "streaming"}
    if end is None and not is_gone:
        return {**news, "result": "waiting"}
    why = end or {}
    return {**news, "result": "ended", **{name: why.get(name, "") for name in ("reason", "detail")}}


_ENDS = ("fork.ended", "fork.failed", "fork.stopped")


def _ms_until_started(fork: Mapping[str, Any], heard: Mapping[str, Fields]) -> int | None:
    """Return the milliseconds from a fork's request to its first frame; None: there was none."""
    try:
        at = {moment["kind"]: float(moment["at"]) for moment in reversed(fork["timeline"])}
    except (LookupError, TypeError, ValueError):
        at = {}
    with contextlib.suppress(LookupError, TypeError, ValueError):
        at |= {name.removeprefix("fork."): float(one["at"]) for name, one in heard.items()}
    if "started" in at and "requested" in at:
        return round((at["started"] - at["requested"]) * 1000)
    if "started" in at or fork.get("state") in ("streaming", "reconnecting"):
        return round(float(fork.get("age_s", 0)) * 1000)
    return None
