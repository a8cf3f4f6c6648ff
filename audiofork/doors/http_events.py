"""What happens to a fork, as the daemon's HTTP door tells it while a command waits for a start."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from audiofork.reading_json import parsed_json

# Of a line of the stream, and of one event.
MAX_EVENT_BYTES = 1 << 20
# Longer than the time between two comments of the stream: so a daemon that has gone is noticed.
SILENCE_S = 40.0

Fields = dict[str, Any]


class ForkEvents:
    """Hears of one fork from the stream of events, in a thread of its own.

    Args:
        own_socket: Of the stream; None: the daemon tells nothing.
        response: The stream.
    """

    TYPES = ("fork.requested", "fork.started", "fork.ended", "fork.stopped", "fork.failed")

    def __init__(
        self,
        own_socket: socket.socket | None = None,
        response: http.client.HTTPResponse | None = None,
    ) -> None:
        self._socket = own_socket
        self._changed = threading.Condition()
        self._wanted = ""
        # Of all forks until it is known which one is wanted: that takes one request.
        self._heard: dict[str, dict[str, Fields]] = {}
        if response is not None and own_socket is not None:
            own_socket.settimeout(SILENCE_S)
            arguments = (own_socket, response)
            threading.Thread(target=self._hear, args=arguments, daemon=True).start()

    def look_for(self, fork_id: str) -> None:
        """Keep what is heard of this fork, and nothing else."""
        with self._changed:
            self._wanted = fork_id
            self._heard = {fork_id: self._heard.get(fork_id, {})}

    def wait(self, timeout_s: float) -> Mapping[str, Fields]:
        """Wait until the fork that is looked for has started or ended.

        Returns:
            The fields of each event of it, by the event's name.
        """
        with self._changed:
            self._changed.wait_for(self._is_decided, timeout_s)
            return dict(self._heard[self._wanted])

    def _is_decided(self) -> bool:
        return not {"fork.requested"}.issuperset(self._heard[self._wanted])

    def close(self) -> None:
        """Hear no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _hear(self, own_socket: socket.socket, response: http.client.HTTPResponse) -> None:
        broken = (OSError, http.client.HTTPException, ValueError)
        with own_socket, contextlib.suppress(*broken), response:
            for name, fields in events_of(response):
                fork = fields.get("fork")
                fork_id = str(fork.get("id", "")) if isinstance(fork, dict) else ""
                if name in self.TYPES and fork_id:
                    self._keep(fork_id, name, fields)

    def _keep(self, fork_id: str, name: str, fields: Fields) -> None:
        with self._changed:
            if self._wanted in ("", fork_id):
                self._heard.setdefault(fork_id, {}).setdefault(name, fields)
                self._changed.notify_all()


def events_of(response: http.client.HTTPResponse) -> Iterator[tuple[str, Fields]]:
    """Yield the name and the fields of each event of a stream (Server-Sent Events).

    Raises:
        OSError: The stream breaks off, or is silent for too long.
        ValueError: An event is too long, or is no JSON object.
    """
    name, data = "", ""
    while line := response.readline(MAX_EVENT_BYTES + 1):
        if len(line) + len(data) > MAX_EVENT_BYTES:
            raise ValueError("an event is too long")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        field, _, value = text.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data += value.removeprefix(" ")
        elif not text:
            if data:
                yield name, _object_in(data)
            name, data = "", ""


def _object_in(text: str) -> Fields:
    found = parsed_json(text)
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    return found
