"""The bytes that go through the AMI front, without sockets.

`ClientStream` cuts what a client sends where Asterisk would cut it, and takes the actions of the
daemon's own out. `AsteriskStream` follows where Asterisk's messages end, takes the answers to
probes out, and puts the daemon's answers in between two messages.

A probe asks Asterisk, on the client's own connection, for something harmless that needs the
classes of an action; the answer tells whether the session has them. Asterisk does a session's
actions one by one, so all answers to earlier actions have come when the probe's answer comes.

Source: get_input, do_message, process_message in main/manager.c (Asterisk f0c1c1a).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from audiofork.forks.requests import MUTE, START, STOP
from audiofork.text import printable

LINE_BYTES = 1024  # a longer line spoils its message
MAX_HEADERS = 128
HELD_BYTES = 12 * 1024  # of a message that has not named its action yet
ANSWER_BYTES = 1024  # more than the answer to a probe ever has

AUDIOFORK = "audiofork"
OWN_ACTIONS = frozenset({AUDIOFORK, START, STOP, MUTE})
_FIELDS = frozenset(
    {
        *("channel", "uniqueid", "wsserver", "options", "postprocess"),
        *("audioforkid", "direction", "state", "actionid", "command"),
    }
)
_BLANKS = bytes(range(1, 33))  # what ast_skip_blanks skips
_END = b"\r\n\r\n"

TOO_MANY_LINES = "Too many lines in message or allocation failure"
LINE_TOO_LONG = "Failed to parse message: line too long"

# app_audiofork's texts: what it says without the particulars, and what stands alone.
_FAILED = {
    START: "Could not start monitoring channel",
    STOP: "Could not stop monitoring channel",
    MUTE: "Cannot set mute flag",
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
        name: The action in lower case.
        fields: The headers that requests know, by their names in lower case; the first of each.
        action_id: The ActionID as it came.
        fault: Why Asterisk would not read the message; empty if it would.
    """

    name: str
    fields: dict[str, str]
    action_id: bytes = b""
    fault: str = ""

    @property
    def verb(self) -> str:
        """What is asked for: START, STOP or MUTE.

        Only `AudioFork` takes its verb from Command: Asterisk checks classes by the action, and
        the one for a stop must not start anything.
        """
        command = self.fields.get("command", "").strip().lower()
        if self.name == AUDIOFORK:
            return command if command in (STOP, MUTE) else START
        return self.name

    @property
    def request(self) -> dict[str, str]:
        """The fields of the request, fit for `parse_request`."""
        command = self.fields.get("command", "")
        is_verb = command.strip().lower() in (START, STOP, MUTE)
        if self.verb != START or is_verb:
            command = self.verb
        return {**self.fields, "command": command}

    def probe(self, probe_id: str) -> bytes:
        """Return an action that needs the same classes and changes nothing.

        AudioFork needs `system`, as ModuleCheck does; the others `system` or `call`, as Hangup.
        """
        if self.name in (AUDIOFORK, START):
            asked = "Action: ModuleCheck", "Module: audiofork"
        else:
            asked = "Action: Hangup", f"Channel: none/{probe_id}"
        return "\r\n".join([asked[0], f"ActionID: {probe_id}", asked[1], "\r\n"]).encode()

    def success(self, fork_ids: Iterable[str]) -> bytes:
        """Return the answer that names the forks concerned."""
        lines = [f"AudioForkID: {fork_id}" for fork_id in fork_ids]
        return self._answer(b"Success", lines)

    def error(self, reason: str) -> bytes:
        """Return the answer to a request that was refused, in app_audiofork's words."""
        if reason not in _WHOLE_TEXTS:
            reason = f"{_FAILED[self.verb]}: {reason}"
        return self.refusal(reason)

    def refusal(self, text: str) -> bytes:
        """Return an answer with an error's whole text."""
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
    """One message of a client, as far as Asterisk would know it by now."""

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
        # Asterisk will answer with an error, unless it is already known to be ours to answer.
        if self.fate is _Fate.UNKNOWN:
            self.fate = _Fate.PASS

    def own_action(self) -> OwnAction:
        fault = LINE_TOO_LONG if self.too_long else ""
        if self.headers > MAX_HEADERS:
            fault = TOO_MANY_LINES
        fields = {
            # What is no UTF-8 becomes surrogates, which `parse_request` refuses.
            name: value.decode("utf-8", "surrogateescape")
            for name, value in self.fields.items()
        }
        return OwnAction(self.action, fields, self.fields.get("actionid", b""), fault)


class ClientStream:
    """What one client sends, from its first byte to its last.

    It holds HELD_BYTES at most, of a message that has not named its action yet.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._line = bytearray()  # the unfinished line, as Asterisk would have it in its buffer
        self._message = _Message()

    def feed(self, chunk: bytes) -> list[bytes | OwnAction]:
        """Take what was read; return what is to be forwarded and what is to be answered.

        Args:
            chunk: Any bytes, split anywhere.

        Returns:
            In the order of the stream: bytes for Asterisk, as they came, and actions of ours,
            whose bytes are left out.
        """
        parts: list[bytes | OwnAction] = []
        done = start = position = 0  # handed out; beginning of the message; read
        while position < len(chunk):
            position, line = self._read_line(chunk, position)
            if line:
                self._message.add(line)
            elif line is not None:  # an empty one: the end of the message
                if self._message.fate is _Fate.OWN:
                    self._forward(parts, chunk[done:start], own=start == 0)
                    parts.append(self._message.own_action())
                    done = position
                start, self._message = position, _Message()
        self._forward_rest(parts, chunk, done, start)
        return parts

    def _read_line(self, chunk: bytes, position: int) -> tuple[int, bytes | None]:
        """Return where to go on, and the line if there is a whole one, without its end.

        As Asterisk does: lines end with LF, before which one CR may stand, and NUL ends what
        counts of a line. Of LINE_BYTES without an end all but the last one are forgotten.
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
        """Deal with the end of a chunk, where a message may be under way."""
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
        """Hand out what was held, and a piece; what was held of an own message is dropped."""
        if not own and (self._held or piece):
            parts.append(bytes(self._held) + piece)
        self._held.clear()

    def end(self) -> bytes:
        """Return what was held when the client said its last byte."""
        held = bytes(self._held)
        self._held.clear()
        return held


class AsteriskStream:
    """What Asterisk sends to one client, from the greeting to the last byte.

    It holds ANSWER_BYTES at most, and only while the answer to a probe is awaited.
    """

    def __init__(self) -> None:
        self._greeted = False
        self._between = False  # what was passed ends where a message ends
        self._tail = b""  # the last three bytes passed
        self._held = b""
        self._probe = b""
        self._inserts: list[bytes] = []

    def expect(self, probe_id: str) -> None:
        """Take the answer to a probe out of what comes; there may be one at a time."""
        self._probe = f"\r\nActionID: {probe_id}\r\n".encode()

    def insert(self, message: bytes) -> bytes:
        """Put in a message of ours.

        Returns:
            What is to be sent to the client now; if nothing, `feed` returns it in its place.
        """
        if self._between:
            return message
        self._inserts.append(message)
        return b""

    def feed(self, chunk: bytes) -> tuple[bytes, str | None]:
        """Take what was read.

        Returns:
            What is to be sent to the client; and, if the probe was answered, why Asterisk
            refuses, or nothing if it does not.
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
        """Return where the message that is under way ends, or a number below 1.

        Messages end with an empty line, the greeting with its only line.
        """
        if not self._greeted:
            return rest.find(b"\n") + 1
        found = (self._tail + rest).find(_END)
        return found + len(_END) - len(self._tail) if found >= 0 else -1

    def _is_answer(self, message: bytes) -> bool:
        # The part of a message after the bytes already passed may look like a whole message.
        is_whole = bool(self._probe) and self._between
        return is_whole and message.startswith(b"Response: ") and self._probe in message

    def _pass(self, piece: bytes) -> bytes:
        if not piece:
            return piece
        last = (self._tail + piece[-len(_END) :])[-len(_END) :]
        self._between, self._tail = last == _END, last[1:] if len(last) == len(_END) else last
        return piece


def _refusal(answer: bytes) -> str:
    """Return why a probe was refused, or nothing if it was granted.

    A session with the classes is told that there is no such module or channel.
    """
    lines = answer.decode("utf-8", "replace").split("\r\n")
    text = next((line[9:] for line in lines if line.startswith("Message: ")), "")
    granted = lines[0] == "Response: Success" or text in ("Module not loaded", "No such channel")
    return "" if granted else text or "Permission denied"
