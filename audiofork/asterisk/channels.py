"""Questions to Asterisk about its channels."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from dataclasses import dataclass

from audiofork.asterisk.ami import Ami
from audiofork.config import SAMPLE_RATES, Place
from audiofork.errors import AmiActionFailed, NoSuchChannel, RequestRefused
from audiofork.text import printable

MAX_VALUE_BYTES = 1022  # Getvar cuts longer results of a function (main/manager.c)
MAX_QUESTION_BYTES = 900  # a line of AMI has 1024 at most
_COLON = b"\xff"  # replaces a colon on the way: a byte that never occurs in UTF-8
# Some releases of Asterisk 18 omit the last one or two bytes of the data that they encode, unless
# its length is a multiple of three. So two bytes are appended that may be lost.
_TAIL = "~^"
_END = "Ln5e"  # a dot and _TAIL in base64: an answer without it was cut
NO_SUCH_CHANNEL = str(NoSuchChannel())  # Asterisk uses the same words

# Sample rates in Hz of the formats that are not slin or 8000 (main/codec_builtin.c).
_WIDE_FORMATS = {
    "g722": 16000,
    "g719": 48000,
    "opus": 48000,
    "siren7": 16000,
    "siren14": 32000,
    "speex16": 16000,
    "speex32": 32000,
    "silk12": 12000,
    "silk16": 16000,
    "silk24": 24000,
}
_SLIN_RATES = {f"slin{rate // 1000}": rate for rate in SAMPLE_RATES}


def _names(formats: str) -> list[str]:
    """Return the names in Asterisk's text of formats: `(ulaw|alaw)`, or one name."""
    return formats.strip("()").split("|")


def _rate_of(name: str) -> int:
    """Return the sample rate in Hz of a format."""
    return _WIDE_FORMATS.get(name) or _SLIN_RATES.get(name, 8000)


@dataclass(frozen=True, slots=True)
class Target:
    """A channel as a request names it; a uniqueid takes precedence over a name."""

    channel: str = ""
    uniqueid: str = ""


class Channels:
    """Asks Asterisk about channels, which are given by name or uniqueid.

    Every method raises NoSuchChannel if Asterisk does not have the channel, or not any more, and
    AmiError if Asterisk cannot be asked.
    """

    def __init__(self, ami: Ami) -> None:
        self._ami = ami

    async def look_up(self, target: Target) -> tuple[str, str]:
        """Return the name and uniqueid of a channel."""
        key = target.uniqueid or target.channel
        # One after the other: for a channel that does not exist, one question is enough.
        name = await self._known(key, "CHANNEL(name)")
        return printable(name, "?"), await self._known(key, "CHANNEL(uniqueid)")

    async def check_alive(self, uniqueid: str) -> None:
        """Return if the channel still exists."""
        await self._known(uniqueid, "CHANNEL(uniqueid)")

    async def has_place(self, uniqueid: str, place: Place) -> bool:
        """Return whether a channel could go on at a place of the dialplan."""
        return await self._value(uniqueid, f"DIALPLAN_EXISTS({place})") != "0"

    def hang_up(self, uniqueid: str) -> None:
        """Hang up a channel, without waiting; errors are ignored, as it may be gone."""
        # By uniqueid, because an earlier leg of a fork has the same channel name.
        self._ami.post("Hangup", [("Channel", uniqueid)], lambda _: None)

    async def bridge(self, uniqueid: str, other: str) -> None:
        """Bridge a channel with another one, whatever either is doing.

        The other one comes first: what it says until the channel is there is lost.
        """
        await self._ami.action("Bridge", [("Channel1", other), ("Channel2", uniqueid)])

    async def present(self) -> dict[str, str]:
        """Return the names of all channels, by uniqueid."""
        listed = await self._ami.list("CoreShowChannels")
        return {
            one["uniqueid"]: printable(one.get("channel", ""), "?")
            for one in listed
            if one.get("uniqueid")
        }

    async def is_bridged(self, uniqueid: str) -> bool:
        """Return whether the channel is in a bridge."""
        try:
            answer = await self._ami.list("Status", [("Channel", uniqueid)])
        except AmiActionFailed as exc:
            raise _translated(exc) from None
        return any(event.get("bridgeid") for event in answer)

    async def sample_rate(self, uniqueid: str) -> int:
        """Return the rate in Hz of the audio that the channel's party sends and hears."""
        formats = await self._known(uniqueid, "CHANNEL(audionativeformat)")  # e.g. (ulaw|alaw)
        return max(_rate_of(name) for name in _names(formats))

    async def wide_format(self, uniqueid: str) -> str:
        """Return a format above 8000 Hz of a channel or its bridge peers; empty if there is none.

        This does not find prompts that are played at another rate.
        """
        channels = [uniqueid, *await self.bridge_peers(uniqueid)]
        formats = await asyncio.gather(
            *(
                self._format(channel, f"CHANNEL({which})")
                for channel in channels
                for which in ("audionativeformat", "audioreadformat", "audiowriteformat")
            )
        )
        wide = (name for text in formats for name in _names(text) if _rate_of(name) > 8000)
        return next(wide, "")

    async def bridge_peers(self, uniqueid: str) -> set[str]:
        """Return the names of the channels that one is bridged with."""
        peers = await self._value(uniqueid, "BRIDGEPEER")
        return {printable(name, "?") for name in peers.split(",") if name}

    async def _format(self, channel: str, expression: str) -> str:
        try:
            return await self._value(channel, expression)
        except NoSuchChannel:  # the peer has just gone
            return ""

    async def values(self, channel: str, names: Iterable[str]) -> dict[str, str]:
        """Return values of variables and functions of a channel; empty for one that is not set.

        A carriage return in a value is replaced by a line feed.

        Raises:
            RequestRefused: A value is longer than MAX_VALUE_BYTES.
        """
        wanted = list(names)
        values = await asyncio.gather(*(self._value(channel, name) for name in wanted))
        for name, value in zip(wanted, values, strict=True):
            if len(value.encode()) > MAX_VALUE_BYTES:
                raise RequestRefused(f"^{{{name}}}: longer than {MAX_VALUE_BYTES} bytes")
        return dict(zip(wanted, values, strict=True))

    async def at_once(self, channel: str, expressions: Iterable[str]) -> list[str]:
        """Return values of variables and functions of a channel, with one question if they fit.

        Asterisk encodes the values, so each arrives unchanged whatever it contains. A value that is
        longer than a line of AMI is cut.
        """
        wanted = list(expressions)
        values = await self._if_they_fit(channel, wanted)
        if values is not None:
            return values
        middle = len(wanted) // 2
        parts = (wanted[:middle], wanted[middle:])
        first, second = await asyncio.gather(*(self.at_once(channel, part) for part in parts))
        return [*first, *second]

    async def _if_they_fit(self, channel: str, wanted: list[str]) -> list[str] | None:
        """Return values by one question; None if the question or its answer is too long."""
        # REPLACE() puts "${" and "}" around its first argument and evaluates the result. EVAL()
        # would do the same, but is denied to a user without the class system. The dot is there
        # because BASE64_ENCODE() warns of an empty value.
        encoded = "}_${".join(
            f"BASE64_ENCODE(.{one}{_TAIL})" for one in (*map(_value_of, wanted), "")
        )
        if len(encoded) > MAX_QUESTION_BYTES and len(wanted) > 1:
            return None
        answer = await self._evaluated(channel, f"REPLACE({encoded},~)")
        *values, end = answer.split("_")
        if end == _END and len(values) == len(wanted):
            return [_decoded(value) for value in values]
        if len(wanted) > 1:
            return None
        return [_decoded(values[0] if values else end)]  # cut, so it has lost its end

    async def _known(self, channel: str, expression: str) -> str:
        value = await self._value(channel, expression)
        if not value:
            raise NoSuchChannel
        return value

    async def _value(self, channel: str, expression: str) -> str:
        return await self._evaluated(channel, _safely(expression))

    async def _evaluated(self, channel: str, expression: str) -> str:
        headers = [("Channel", channel), ("Variable", expression)]
        try:
            answer = await self._ami.action("Getvar", headers)
        except AmiActionFailed as exc:
            raise _translated(exc) from None
        return answer.get("value", "")


def _value_of(expression: str) -> str:
    """Return an expression for a value that is safe within the parentheses of a function.

    Asterisk first inserts the value, and then looks for `:offset:length` after the parentheses. So
    the value must not contain a colon after a `)`.
    """
    return rf"${{REPLACE({expression},:,\\xff)}}"


def _decoded(value: str) -> str:
    """Decode a value that Asterisk has encoded; if it was cut, return the part that is left."""
    whole = value[: len(value) - len(value) % 4]
    text = base64.b64decode(whole)[1:]
    for tail in (_TAIL.encode(), _TAIL[:1].encode()):
        if text.endswith(tail):
            text = text.removesuffix(tail)
            break
    return text.replace(_COLON, b":").decode("utf-8", "replace")


def _safely(expression: str) -> str:
    """Return an expression that replaces carriage returns in a value by line feeds.

    Asterisk writes a value into its answer unchanged, and a caller may have chosen the value. An
    empty line in it would end the answer, and the rest would look like a message of Asterisk.
    """
    quoted = expression.replace("\\", "\\\\").replace('"', '\\"')
    return rf"REPLACE({quoted},\\r,\n)"


def _translated(exc: AmiActionFailed) -> Exception:
    return NoSuchChannel() if exc.message == NO_SUCH_CHANNEL else exc
