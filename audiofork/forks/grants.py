"""What a server may do in the call of its fork, as the configuration grants it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from audiofork.config import Place, WebSocketConfig
from audiofork.link.messages import ServerCommand


@dataclass(frozen=True, slots=True)
class Grants:
    """What a server may do; fixed when its fork starts.

    Attributes:
        commands: What it may ask for.
        places: The places of the dialplan that it may transfer the call to.
        buffer_s: Seconds of its audio that may wait to be played.
    """

    commands: tuple[ServerCommand, ...] = ()
    places: tuple[Place, ...] = ()
    buffer_s: float = WebSocketConfig.playout_buffer


def granted(*options: Iterable[str]) -> tuple[ServerCommand, ...]:
    """Return the commands that any of these options allow, each once.

    Args:
        options: Words of [security] allow_commands, and of a profile's commands.
    """
    words = dict.fromkeys(word for option in options for word in option)
    return tuple(ServerCommand(word) for word in words)
