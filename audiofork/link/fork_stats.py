"""What a relay counts of each fork."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ForkStats:
    """Counts of 20-ms frames since a fork began; in = sent + dropped + waiting.

    Attributes:
        reconnects: How often a lost connection to the server was opened again.
        messages_ignored: Text messages of the server beyond the limit per second.
        messages_unused: Messages of the server that its format does not know, or that ask for what
            a fork cannot do.
        frames_missing: Frames that steady legs should have brought by now, and did not.
        frames_played: Frames of the server's audio that were played to the party.
        frames_cleared: Those that the server has dropped by a command before they were played.
        frames_unplayed: Those that did not fit into the buffer, or were left at the end.
        underruns: How often the server's audio came too late to be played without a gap.
        commands_refused: What the server asked for and is not allowed to.
        rtt_ms: The smoothed round trip to the server as TCP measures it, in milliseconds; 0 while
            there is no connection.
        unacked_bytes: Bytes written to the connection that the server's TCP has not acknowledged.
    """

    frames_in: int = 0
    frames_sent: int = 0
    frames_dropped: int = 0
    reconnects: int = 0
    messages_ignored: int = 0
    frames_missing: int = 0
    frames_played: int = 0
    frames_cleared: int = 0
    frames_unplayed: int = 0
    underruns: int = 0
    commands_refused: int = 0
    messages_unused: int = 0
    rtt_ms: float = 0.0
    unacked_bytes: int = 0

    def plus(self, later: ForkStats) -> ForkStats:
        """Return the counts of both; what is of the connection is that of the later."""
        own, others = asdict(self), asdict(later)
        both = {name: own[name] + value for name, value in others.items()}
        return ForkStats(**{**both, "rtt_ms": later.rtt_ms, "unacked_bytes": later.unacked_bytes})
