"""Makes the format of a fork."""

from __future__ import annotations

from audiofork.link.dialogue import PLAIN_DIALOGUE
from audiofork.link.messages import ForkSpec, Format
from audiofork.relay.formats.base import MessageFormat
from audiofork.relay.formats.chan_websocket import ChanWebSocketFormat
from audiofork.relay.formats.description import Description
from audiofork.relay.formats.dialogue import WithDialogue
from audiofork.relay.formats.jambonz import JambonzFormat
from audiofork.relay.formats.json_events import JsonFormat
from audiofork.relay.formats.raw import RawFormat
from audiofork.relay.formats.twilio import TwilioFormat
from audiofork.relay.formats.vonage import VonageFormat


def format_of(spec: ForkSpec, frame_ms: int) -> MessageFormat:
    """Return the format of a fork.

    Args:
        spec: The fork.
        frame_ms: Audio in a full message, in milliseconds.
    """
    own = _own_format_of(spec, frame_ms)
    if spec.dialogue == PLAIN_DIALOGUE:
        return own
    return WithDialogue(own, spec.dialogue, frame_ms)


def _own_format_of(spec: ForkSpec, frame_ms: int) -> MessageFormat:
    match spec.format:
        case Format.RAW:
            description = Description(spec, frame_ms) if spec.metadata else None
            return RawFormat(spec.codec, description, spec.sample_rate)
        case Format.JSON:
            return JsonFormat(spec, frame_ms)
        case Format.TWILIO:
            return TwilioFormat(spec)
        case Format.VONAGE:
            return VonageFormat(spec)
        case Format.JAMBONZ:
            return JambonzFormat(spec)
        case Format.CHAN_WEBSOCKET:
            return ChanWebSocketFormat(spec)
