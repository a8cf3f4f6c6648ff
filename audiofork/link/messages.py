"""What travels between the control plane and the relay.

Commands go down, reports come up. All are small, frozen and made of plain values, so that the
link between the planes may be a function call or a socket.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field


class Direction(enum.StrEnum):
    """Whose audio a fork carries, seen from the channel, as in ARI."""

    IN = "in"
    """What the channel's own party says (Asterisk's *read*)."""
    OUT = "out"
    """What that party hears (Asterisk's *write*)."""
    BOTH = "both"
    """The two mixed into one."""
    STEREO = "stereo"
    """The two side by side: left in, right out."""


class LegPart(enum.StrEnum):
    """What a leg of a fork brings."""

    IN = "in"
    """Mono frames of in."""
    OUT = "out"
    """Mono frames of out."""
    MIX = "mix"
    """Mono frames of the two, mixed by Asterisk: they cannot be separated any more."""
    PAIRS = "pairs"
    """Frames of in and out interleaved, at 8000 Hz: left in, right out."""


class EndReason(enum.StrEnum):
    """Why a fork ended; the first reason is kept."""

    HANGUP = "hangup"
    """The channel was hung up."""
    STOPPED = "stopped"
    """Somebody asked for it."""
    SINK_REFUSED = "sink-refused"
    """The WebSocket server said no, or said that it is done."""
    SINK_GONE = "sink-gone"
    """The WebSocket server cannot be reached (any more)."""
    LEG_FAILED = "leg-failed"
    """The leg did not connect, or was lost while its channel existed."""
    NO_SUCH_CHANNEL = "no-such-channel"
    """Asterisk does not have the channel."""
    SHUTDOWN = "shutdown"
    """The daemon stops."""
    FAULT = "fault"
    """A bug of ours."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a wss:// server is checked, where a fork does not want the configured way.

    Attributes:
        ca_file: Authorities that may sign its certificate, in PEM; empty: as configured.
        cert_file: Our certificate; empty: as configured.
        key_file: Its key; empty: in the same file.
        insecure: Check nothing.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Beeps:
    """Tones that the target's party hears.

    Attributes:
        interval_s: Time between two periodic ones; 0: none.
        at_start: One when audio begins to flow.
        at_end: One when the fork is stopped.
    """

    interval_s: float = 0.0
    at_start: bool = False
    at_end: bool = False

    @property
    def any(self) -> bool:
        """Whether the leg has to speak to the party at all."""
        return bool(self.interval_s) or self.at_start or self.at_end


@dataclass(frozen=True, slots=True)
class ForkSpec:
    """Command: get ready to relay one fork; for each of its legs an `ExpectLeg` follows.

    Attributes:
        fork_id: A UUID in its canonical text form.
        channel: Name of the channel, for people to read.
        url: ws:// or wss:// URL of the server.
        direction: What the server is to get.
        legs: What comes from Asterisk, one leg for each: in, out, or both of them by a leg each;
            the mix; or pairs.
        sample_rate: Of what the legs bring and the server gets, in Hz.
        gain_in: Steps of volume of in, -4 to 4, each a factor of two; `gain_out` of out.
        keep_time: Put silence where the only leg brings nothing.
        steady: Whether the legs should bring 50 frames a second: fewer are reported as missing.
        gate_open: Whether audio may flow from the start; see `SetGate`.
        beeps: What the party is to hear of the fork.
        tls: None: as configured.
        reconnect_interval_s: Longest wait between two attempts, and limit of one; None: as
            configured.
        reconnect_attempts: Attempts in a row, 0 for ever; None: as configured.
        frame_ms: Milliseconds of audio in one message; None: as configured.
    """

    fork_id: str
    channel: str
    url: str
    direction: Direction
    legs: tuple[LegPart, ...] = (LegPart.MIX,)
    sample_rate: int = 8000
    gain_in: int = 0
    gain_out: int = 0
    keep_time: bool = False
    steady: bool = False
    gate_open: bool = True
    beeps: Beeps = Beeps()
    tls: Tls | None = None
    reconnect_interval_s: float | None = None
    reconnect_attempts: int | None = None
    frame_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ExpectLeg:
    """Command: a leg, the first of its part or one in place of a lost one, is about to connect.

    The part's leg before it is closed, and its UUID void.

    Attributes:
        leg_uuid: What it will present: known to Asterisk and to nobody else, good once.
    """

    fork_id: str
    part: LegPart
    leg_uuid: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EndFork:
    """Command: hang up the legs, deliver the frames that wait, close the sink."""

    fork_id: str
    reason: EndReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SetMute:
    """Command: mute or unmute the sides; None leaves a side as it is."""

    fork_id: str
    mute_in: bool | None = None
    mute_out: bool | None = None


@dataclass(frozen=True, slots=True)
class SetGate:
    """Command: open or shut the gate. Frames that come while it is shut are not counted."""

    fork_id: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class TakeStats:
    """Command: report the statistics of all forks."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ExpectCheckLeg:
    """Command: a leg of a check is about to connect; report it, and hang it up."""

    leg_uuid: str = field(repr=False)


Command = ForkSpec | ExpectLeg | EndFork | SetMute | SetGate | TakeStats | ExpectCheckLeg


@dataclass(frozen=True, slots=True)
class ForkStats:
    """Frames of 20 ms since a fork began; in = sent + dropped + those that still wait.

    Attributes:
        reconnects: How often a lost server came back.
        messages_ignored: Text messages of the server beyond the limit of a second.
        frames_missing: Frames that steady legs should have brought by the clock, and have not.
    """

    frames_in: int = 0
    frames_sent: int = 0
    frames_dropped: int = 0
    reconnects: int = 0
    messages_ignored: int = 0
    frames_missing: int = 0


@dataclass(frozen=True, slots=True)
class LegAttached:
    """Report: Asterisk connected a leg, the first of its part or one in place of a lost one."""

    fork_id: str
    part: LegPart


@dataclass(frozen=True, slots=True)
class LegLost:
    """Report: Asterisk closed a leg; only the control plane can find out why.

    Attributes:
        frames_in: What the fork's legs had brought so far, wanted or not.
        contested: The relay closed it: somebody else has presented its UUID as well, and nobody
            can tell which of the two was Asterisk.
    """

    fork_id: str
    part: LegPart
    frames_in: int
    contested: bool = False


@dataclass(frozen=True, slots=True)
class SinkOpened:
    """Report: the WebSocket server accepted the connection."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class Streaming:
    """Report: the first frame went to the server."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class SinkRetrying:
    """Report: there is no connection, and another attempt will be made."""

    fork_id: str
    attempt: int
    detail: str


@dataclass(frozen=True, slots=True)
class SinkResumed:
    """Report: the connection to the server was opened again, and waiting frames are sent."""

    fork_id: str
    frames_dropped: int


@dataclass(frozen=True, slots=True)
class SinkMessage:
    """Report: the server sent a text message."""

    fork_id: str
    text: str


@dataclass(frozen=True, slots=True)
class StatsTaken:
    """Report: the answer to `TakeStats`; statistics by fork id."""

    ticket: int
    stats: dict[str, ForkStats]


@dataclass(frozen=True, slots=True)
class ForkEnded:
    """Report: legs and sink are closed; the last report of a fork."""

    fork_id: str
    reason: EndReason
    detail: str
    stats: ForkStats


@dataclass(frozen=True, slots=True)
class StrangersRefused:
    """Report: connections were refused whose UUID no leg has, or has no more.

    Attributes:
        count: How many, since the last such report.
        address: Where the last one came from; empty: not known.
    """

    count: int
    address: str


@dataclass(frozen=True, slots=True)
class CheckLeg:
    """Report: a leg of a check is expected now, or has come and was hung up."""

    leg_uuid: str = field(repr=False)
    has_come: bool


@dataclass(frozen=True, slots=True)
class RelayAway:
    """Report: the process that had these forks died, and no other runs.

    A RelayLost follows as soon as one could take them, or when none has come in time. Until then
    a leg would find nobody.
    """

    fork_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelayLost:
    """Report: the process that had these forks died, and their statistics with it.

    Each that is still wanted has to be ordered anew; else it is ended.

    Attributes:
        away_s: How long ago that was, at most.
    """

    fork_ids: tuple[str, ...]
    away_s: float = 0.0


ForkReport = (
    LegAttached
    | LegLost
    | SinkOpened
    | Streaming
    | SinkRetrying
    | SinkResumed
    | SinkMessage
    | ForkEnded
)
ForksReport = ForkReport | StatsTaken | StrangersRefused | RelayAway | RelayLost
"""What concerns forks."""
Report = ForksReport | CheckLeg

SendCommand = Callable[[Command], None]
SendReport = Callable[[Report], None]
