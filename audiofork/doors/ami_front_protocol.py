"""Parses the bytes that pass through the AMI front; does no I/O.

`ClientStream` splits what a client sends into messages as Asterisk does, and takes out the actions
that the daemon answers. `AsteriskStream` finds the ends of Asterisk's messages, takes out the
answers to probes, and inserts the daemon's answers between two messages.

A probe is an action without effect, sent on the client's own connection, that needs the same
classes as an action of the client; its answer shows whether the session has them. Asterisk executes
the actions of a session one by one, so the answers to all earlier actions come before it.

Source: get_input, do_message, process_message in main/manager.c (Asterisk f0c1c1a).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from audiofork.forks.options import as_the_module
from audiofork.forks.requests import CONNECT, MUTE, START, STOP
from audiofork.text import printable

LINE_BYTES = 1024  # Asterisk refuses a message with a longer line
MAX_HEADERS = 128
HELD_BYTES = 12 * 1024  # kept of a message until it names its action
ANSWER_BYTES = 1024  # longer than any answer to a probe

AUDIOFORK = "audiofork"
OWN_ACTIONS = frozenset({AUDIOFORK, START, STOP, MUTE, CONNECT})
_FIELDS = frozenset(
    {
        *("channel", "uniqueid", "wsserver", "options", "params", "postprocess"),
        *("audioforkid", "direction", "state", "actionid", "command"),
    }
)
_BLANKS = bytes(range(1, 33))  # what ast_skip_blanks skips
_END = b"\r\n\r\n"

TOO_MANY_LINES = "Too many lines in message or allocation failure"
LINE_TOO_LONG = "Failed to parse message: line too long"

# The texts of app_audiofork: those that a reason follows, and those that stand alone.
_FAILED = {
    START: "Could not start monitoring channel",
    STOP: "Could not stop monitoring channel",
    MUTE: "Cannot set mute flag",
    CONNECT: "Could not connect channel",
}
_WHOLE_TEXTS = frozenset(
    {
        "No channel specified",
        "No such channel",
        "No direction specified. Must be read, write or both",
        "Invalid direction specified. Must be read, write or both",
        "No state specified",
    }
)


@dataclass(frozen=True)
class OwnAction:
    """An action that the daemon answers.

    Attributes:
        name: The name of the action, in lower case.
        fields: The first value of each header that a request may have, by name in lower case.
        action_id: The ActionID as the client sent it.
        fault: Why Asterisk would refuse the message unread; empty: it would not.
    """

    name: str
    fields: dict[str, str]
    action_id: bytes = b""
    fault: str = ""

    @property
    def verb(self) -> str:
        """What the client asks for: START, STOP, MUTE or CONNECT.

        Only `AudioFork` takes it from Command. Asterisk checks the permission by the name of the
        action, so an action that may stop forks must not be able to start one.
        """
        command = self.fields.get("command", "").strip().lower()
        if self.name == AUDIOFORK:
            return command if command in (STOP, MUTE, CONNECT) else START
        return self.name

    @property
    def request(self) -> dict[str, str]:
        """The fields of the request, fit for `parse_request`."""
        command = self.fields.get("command", "")
        is_verb = command.strip().lower() in (START, STOP, MUTE, CONNECT)
        if self.verb != START or is_verb:
            command = self.verb
        fields = {**self.fields, "command": command}
        if self.verb == START:
            fields["options"] = as_the_module(fields.get("options", ""))
        return fields

    def probe(self, probe_id: str) -> bytes:
        """Return an action that needs the same classes and changes nothing.

        AudioFork needs `system`, as ModuleCheck does; the others `system` or `call`, as Hangup.
        """
        if self.name in (AUDIOFORK, START, CONNECT):
            asked = "Action: ModuleCheck", "Module: audiofork"
        else:
            asked = "Action: Hangup", f"Channel: none/{probe_id}"
        return "\r\n".join([asked[0], f"ActionID: {probe_id}", asked[1], "\r\n"]).encode()

    def success(self, fork_ids: Iterable[str]) -> bytes:
        """Return the answer that names the forks that were started, stopped or muted."""
        lines = [f"AudioForkID: {fork_id}" for fork_id in fork_ids]
        return self._answer(b"Success", lines)

    def error(self, reason: str) -> bytes:
        """Return the answer to a refused request, in the words of app_audiofork."""
        if reason not in _WHOLE_TEXTS:
            reason = f"{_FAILED[self.verb]}: {reason}"
        return self.refusal(reason)

    def refusal(self, text: str) -> bytes:
        """Return an error with this text, and nothing before it."""
        return self._answer(b"Error", [f"Message: {printable(text, ' ')}"])

    def _answer(self, response: bytes, lines: list[str]) -> bytes:
        head = [b"Response: " + response]
        if self.action_id:
            head.append(b"ActionID: " + self.action_id)
        return b"\r\n".join([*head, *(line.encode() for line in lines), b"\r\n"])


class _Fate(enum.Enum):
    UNKNOWN = "no action is named yet"
    PASS = "Asterisk's"
    OWN = "ours"


@dataclass(slots=True)
class _Message:
    """A message of a client, as far as it was read."""

    fate: _Fate = _Fate.UNKNOWN
    headers: int = 0
    too_long: bool = False
    action: str = ""
    fields: dict[str, bytes] = field(default_factory=dict)

    def add(self, line: bytes) -> None:
        self.headers += 1
        if self.headers > MAX_HEADERS:
            self._spoil()
            return
        if self.fate is _Fate.PASS:
            return
        key, colon, rest = line.partition(b":")
        name, value = key.decode("ascii", "replace").lower(), rest.lstrip(_BLANKS)
        if colon and name == "action" and value and self.fate is _Fate.UNKNOWN:
            self.action = value.decode("ascii", "replace").lower()
            self.fate = _Fate.OWN if self.action in OWN_ACTIONS else _Fate.PASS
        elif colon and name in _FIELDS:
            self.fields.setdefault(name, value)

    def add_endless_line(self) -> None:
        self.too_long = True
        self._spoil()

    def _spoil(self) -> None:
        # Asterisk answers with an error, unless the action is already known to be one of ours.
        if self.fate is _Fate.UNKNOWN:
            self.fate = _Fate.PASS

    def own_action(self) -> OwnAction:
        fault = LINE_TOO_LONG if self.too_long else ""
        if self.headers > MAX_HEADERS:
            fault = TOO_MANY_LINES
        fields = {
            # Bytes that are not UTF-8 become surrogates, which `parse_request` refuses.
            name: value.decode("utf-8", "surrogateescape")
            for name, value in self.fields.items()
        }
        return OwnAction(self.action, fields, self.fields.get("actionid", b""), fault)


class ClientStream:
    """Splits what one client sends, from its first byte to its last.

    It keeps HELD_BYTES at most, of a message that has not named its action yet.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._line = bytearray()  # the unfinished line, as it would be in Asterisk's buffer
        self._message = _Message()

    def feed(self, chunk: bytes) -> list[bytes | OwnAction]:
        """Take what was read; return what to forward to Asterisk and what to answer.

        Args:
            chunk: Any bytes, split anywhere.

        Returns:
            In the order of the stream: bytes for Asterisk, unchanged, and the actions that the
            daemon answers, whose bytes are left out.
        """
        parts: list[bytes | OwnAction] = []
        # The end of what was returned, the start of the message, the end of what was read.
        done = start = position = 0
        while position < len(chunk):
            position, line = self._read_line(chunk, position)
            if line:
                self._message.add(line)
            elif line is not None:  # an empty line ends the message
                if self._message.fate is _Fate.OWN:
                    self._forward(parts, chunk[done:start], own=start == 0)
                    parts.append(self._message.own_action())
                    done = position
                start, self._message = position, _Message()
        self._forward_rest(parts, chunk, done, start)
        return parts

    def _read_line(self, chunk: bytes, position: int) -> tuple[int, bytes | None]:
        """Return where to read on, and the line without its end; None: it is not complete.

        Reads as Asterisk does: a line ends with LF or CR LF, and what follows a NUL in it is
        ignored. Of LINE_BYTES bytes without an end, all but the last byte are dropped.
        """
        room = LINE_BYTES - len(self._line)
        end = chunk.find(b"\n", position, position + room)
        if end >= 0:
            line = bytes(self._line) + chunk[position:end]
            self._line.clear()
            return end + 1, line.removesuffix(b"\r").partition(b"\0")[0]
        self._line += chunk[position : position + room]
        if len(self._line) == LINE_BYTES:
            del self._line[:-1]
            self._message.add_endless_line()
        return min(position + room, len(chunk)), None

    def _forward_rest(
        self, parts: list[bytes | OwnAction], chunk: bytes, done: int, start: int
    ) -> None:
        """Forward or keep the end of a chunk, which may be in the middle of a message."""
        fate = self._message.fate
        if fate is _Fate.PASS:
            self._forward(parts, chunk[done:])
            return
        if fate is _Fate.OWN:
            self._forward(parts, chunk[done:start], own=start == 0)
            return
        if start > 0:
            self._forward(parts, chunk[done:start])
        self._held += chunk[start:]
        if len(self._held) > HELD_BYTES:
            self._message.fate = _Fate.PASS
            self._forward(parts, b"")

    def _forward(self, parts: list[bytes | OwnAction], piece: bytes, *, own: bool = False) -> None:
        """Forward what was kept, and a piece; drop what was kept of an action of our own."""
        if not own and (self._held or piece):
            parts.append(bytes(self._held) + piece)
        self._held.clear()

    def end(self) -> bytes:
        """Return what was kept, at the end of what the client sends."""
        held = bytes(self._held)
        self._held.clear()
        return held


class AsteriskStream:
    """Changes what Asterisk sends to one client, from the greeting to the last byte.

    It keeps ANSWER_BYTES at most, and only while it waits for the answer to a probe.
    """

    def __init__(self) -> None:
        self._greeted = False
        self._between = False  # whether what was passed on ends where a message ends
        self._tail = b""  # the last three bytes that were passed on
        self._held = b""
        self._probe = b""
        self._inserts: list[bytes] = []

    def expect(self, probe_id: str) -> None:
        """Take out the answer to this probe when it comes; there is one probe at a time."""
        self._probe = f"\r\nActionID: {probe_id}\r\n".encode()

    def insert(self, message: bytes) -> bytes:
        """Insert a message of the daemon.

        Returns:
            The message, to be sent to the client now; or nothing, and `feed` returns it after the
            message of Asterisk that is half sent.
        """
        if self._between:
            return message
        self._inserts.append(message)
        return b""

    def feed(self, chunk: bytes) -> tuple[bytes, str | None]:
        """Take what was read from Asterisk.

        Returns:
            The bytes for the client; and None, or if the probe was answered, why Asterisk refuses,
            which is empty if it does not.
        """
        if self._greeted and not self._probe and not self._inserts:
            self._pass(chunk)
            return chunk, None
        out, answer = bytearray(), None
        rest = self._held + chunk
        self._held = b""
        while (end := self._message_end(rest)) > 0:
            message, rest = rest[:end], rest[end:]
            if self._is_answer(message):
                answer, self._probe = _refusal(message), b""
                continue
            out += self._pass(message)
            self._greeted = self._between = True
            out += b"".join(self._inserts)
            self._inserts.clear()
        if self._probe and self._between and len(rest) <= ANSWER_BYTES:
            self._held = rest
        elif rest:
            out += self._pass(rest)
        return bytes(out), answer

    def _message_end(self, rest: bytes) -> int:
        """Return where in `rest` the current message ends; a number below 1: not in it.

        Messages end with an empty line; the greeting is a single line.
        """
        if not self._greeted:
            return rest.find(b"\n") + 1
        found = (self._tail + rest).find(_END)
        return found + len(_END) - len(self._tail) if found >= 0 else -1

    def _is_answer(self, message: bytes) -> bool:
        # What follows the bytes of a message that were passed on may look like a whole message.
        is_whole = bool(self._probe) and self._between
        return is_whole and message.startswith(b"Response: ") and self._probe in message

    def _pass(self, piece: bytes) -> bytes:
        if not piece:
            return piece
        last = (self._tail + piece[-len(_END) :])[-len(_END) :]
        self._between, self._tail = last == _END, last[1:] if len(last) == len(_END) else last
        return piece


def _refusal(answer: bytes) -> str:
    """Return why Asterisk refused a probe; empty: it did not.

    The answer to a session with the classes is that there is no such module or channel.
    """
    lines = answer.decode("utf-8", "replace").split("\r\n")
    text = next((line[9:] for line in lines if line.startswith("Message: ")), "")
    granted = lines[0] == "Response: Success" or text in ("Module not loaded", "No such channel")
    return "" if granted else text or "Permission denied"
