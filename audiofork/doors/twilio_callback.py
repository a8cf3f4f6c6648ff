"""Tells a web server of the streams in Twilio's format, as Twilio's StatusCallback does."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from audiofork.backoff import Backoff
from audiofork.config import Config
from audiofork.errors import PostFailed
from audiofork.forks.events import DomainEvent, Ended, Requested, Started
from audiofork.link.messages import EndReason, Format
from audiofork.log import CounterLine, without_query
from audiofork.text import harmless, why
from audiofork.tls_contexts import client_context
from audiofork.twilio_sids import Sids, sids_of

if TYPE_CHECKING:
    from audiofork.doors.form_posts import FormPosts

log = logging.getLogger(__name__)

# In a lane one post follows the other, so those of a stream keep their order. Streams share lanes,
# but only those whose posts go to one URL, so that a server that hangs costs no other's posts.
LANES = 8
MAX_WAITING = 125  # posts in each lane
ATTEMPTS = 3
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 2.0
# Ends that are no error.
_IN_ORDER = frozenset({EndReason.HANGUP, EndReason.STOPPED, EndReason.SHUTDOWN})


@dataclass(slots=True)
class _Stream:
    """A fork in Twilio's format.

    Attributes:
        url: Where its posts go.
        name: The name of its profile; without one, its SID.
        has_started: Whether audio has flowed.
    """

    sids: Sids
    url: str
    name: str
    has_started: bool = False


@dataclass(frozen=True, slots=True)
class _Post:
    url: str
    form: Mapping[str, str]

    def __str__(self) -> str:
        """Return which post it is, for the log: without what may be secret."""
        what, sid = self.form["StreamEvent"], self.form["StreamSid"]
        return f"{what} of {sid} to {without_query(self.url)}"


_Lane = asyncio.Queue[_Post]


class TwilioCallback:
    """Posts the beginning, the errors and the end of streams; its callers never wait.

    Owned by the daemon, which subscribes `on_event` to the events of forks. Without a URL
    in the configuration it does nothing. A post that the web server does not take in ATTEMPTS
    attempts, or that MAX_WAITING others are before, is given up, counted, and logged, one line a
    second.

    Args:
        config: The configuration; see `configure`.

    Attributes:
        delivered: How many posts the web server has taken.
        lost: Counts those that it has not.
    """

    def __init__(self, config: Config) -> None:
        self.delivered = 0
        self.lost = CounterLine(log, "status callbacks not delivered")
        self._streams: dict[str, _Stream] = {}  # by fork id
        self._lanes: dict[tuple[str, int], _Lane] = {}  # by URL and number
        self._tasks: list[asyncio.Task[None]] = []
        self._opening: asyncio.Task[FormPosts] | None = None
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use these settings for forks from now on; authorities are read when first needed."""
        self._url = config.twilio.status_callback
        self._ca_file = config.websocket.ca_list_file

    def on_event(self, event: DomainEvent) -> None:
        """Queue what a web server is to be told of an event."""
        if isinstance(event, Requested):
            self._on_requested(event)
        elif isinstance(event, Started | Ended) and event.fork.id in self._streams:
            stream = self._streams[event.fork.id]
            if isinstance(event, Started):
                stream.has_started = True
                self._tell(stream, "stream-started")
            else:
                del self._streams[event.fork.id]
                self._on_ended(event, stream)

    def _on_requested(self, event: Requested) -> None:
        request = event.request
        url = request.status_callback or self._url
        if url and request.options.format is Format.TWILIO:
            sids = sids_of(event.fork.id, event.call)
            self._streams[event.fork.id] = _Stream(sids, url, request.profile or sids.stream)

    def _on_ended(self, event: Ended, stream: _Stream) -> None:
        if event.reason not in _IN_ORDER:
            detail = f": {harmless(event.detail)}" if event.detail else ""
            self._tell(stream, "stream-error", f"{event.reason}{detail}")
        if stream.has_started:
            self._tell(stream, "stream-stopped")

    def _tell(self, stream: _Stream, what: str, error: str = "") -> None:
        post = _Post(stream.url, _form(stream, what, error))
        try:
            self._lane_of(stream).put_nowait(post)
        except asyncio.QueueFull:
            self.lost.count(f"{post}: {MAX_WAITING} others wait")

    def _lane_of(self, stream: _Stream) -> _Lane:
        key = stream.url, int(stream.sids.stream[-4:], 16) % LANES
        if key not in self._lanes:
            self._lanes[key] = asyncio.Queue(MAX_WAITING)
            self._tasks.append(asyncio.create_task(self._serve(self._lanes[key])))
        return self._lanes[key]

    # --- Delivering ---

    async def _serve(self, lane: _Lane) -> None:
        while True:
            post = await lane.get()
            try:
                await self._deliver(post)
            except PostFailed as exc:
                self.lost.count(f"{post}: {harmless(str(exc))}")
            except asyncio.CancelledError:
                self.lost.count(f"{post}: the daemon stops")
                raise
            except Exception:
                self.lost.count(f"{post}: a bug in audiofork")
                log.exception("a status callback failed")
            else:
                self.delivered += 1
            finally:
                lane.task_done()

    async def _deliver(self, post: _Post) -> None:
        """Post a form, in several attempts; raise PostFailed if the last one fails."""
        posts = await self._opened()
        waits = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await posts.post(post.url, post.form)
            except PostFailed as exc:
                if attempt == ATTEMPTS or not exc.retryable:
                    raise
            else:
                return
            await asyncio.sleep(waits.next_s())

    async def _opened(self) -> FormPosts:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(self._opening)
        except OSError as exc:
            self._opening = None  # the file may be mended by the next post
            raise PostFailed(f"[websocket] ca_list_file: {why(exc)}") from exc

    async def _open(self) -> FormPosts:
        """Import the client and read the authorities, apart from the loop that audio goes through.

        Raises:
            OSError: The authorities cannot be used.
        """
        name = "audiofork.doors.form_posts"
        module = await asyncio.to_thread(importlib.import_module, name)
        tls = await asyncio.to_thread(client_context, self._ca_file)
        return cast("FormPosts", module.FormPosts(tls, LANES))

    # --- The end ---

    async def finish(self) -> None:
        """Wait until all posts are delivered or given up; the caller limits the time."""
        for lane in list(self._lanes.values()):
            await lane.join()

    async def close(self) -> None:
        """Give up the posts that wait or are under way, and close the connections."""
        waiting = sum(lane.qsize() for lane in self._lanes.values())
        if waiting:
            self.lost.count("the daemon stops", waiting)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.lost.say_rest()
        if self._opening is not None:
            (posts,) = await asyncio.gather(self._opening, return_exceptions=True)
            if not isinstance(posts, BaseException):
                await posts.close()


def _form(stream: _Stream, what: str, error: str) -> dict[str, str]:
    """Return the fields of Twilio's StatusCallback."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    form = {
        "AccountSid": stream.sids.account,
        "CallSid": stream.sids.call,
        "StreamSid": stream.sids.stream,
        "StreamName": stream.name,
        "StreamEvent": what,
        "Timestamp": now.replace("+00:00", "Z"),
    }
    return {**form, "StreamError": error} if error else form
