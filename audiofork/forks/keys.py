"""Tells servers of the keys that the party of a call presses (DTMF)."""

from __future__ import annotations

from audiofork.asterisk.ami_protocol import KeyPressed
from audiofork.forks.events import Emit, Pressed
from audiofork.forks.fork import Fork
from audiofork.forks.table import ForkTable
from audiofork.link.messages import Direction, PressKey, SendCommand


class Keys:
    """Passes each key on to those forks of its channel that report keys to their servers.

    Owned by the registry of forks.

    Args:
        table: All forks.
        send: Sends a command to the relay.
        emit: Called with each event.
    """

    def __init__(self, table: ForkTable, send: SendCommand, emit: Emit) -> None:
        self._table = table
        self._send = send
        self._emit = emit

    def on_pressed(self, event: KeyPressed) -> None:
        """Handle a key; never waits."""
        for fork in self._table.on_channel(event.uniqueid):
            if _is_told(fork):
                fork.progress.keys += 1
                self._send(PressKey(fork.id, event.digit, event.duration_ms))
                self._emit(Pressed(fork.info, event.digit, event.duration_ms))


def _is_told(fork: Fork) -> bool:
    """Return whether the server of a fork is told of a key that the party presses now.

    Keys are part of what the party says: they are muted with it, and absent if only out is carried.
    """
    options = fork.request.options
    if not options.format.has_events or fork.is_ending:
        return False
    is_open = not options.bridged_only or bool(fork.call.bridged)
    return is_open and options.direction is not Direction.OUT and not fork.mute_in
