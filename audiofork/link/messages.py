"""Defines the messages between the control plane and the relay.

Commands go down, reports come up. All are small, frozen and made of plain values, so that the
link between the planes can be a function call or a socket.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from audiofork.link.fork_spec import PLAIN_HANDSHAKE as PLAIN_HANDSHAKE
from audiofork.link.fork_spec import Beeps as Beeps
from audiofork.link.fork_spec import Codec as Codec
from audiofork.link.fork_spec import Direction as Direction
from audiofork.link.fork_spec import ForkSpec as ForkSpec
from audiofork.link.fork_spec import Format as Format
from audiofork.link.fork_spec import Handshake as Handshake
from audiofork.link.fork_spec import LegPart as LegPart
from audiofork.link.fork_spec import Metadata as Metadata
from audiofork.link.fork_spec import ServerCommand as ServerCommand
from audiofork.link.fork_spec import Tls as Tls
from audiofork.link.fork_spec import Voice as Voice
from audiofork.link.fork_stats import ForkStats as ForkStats
from audiofork.link.held_fork import HeldFork as HeldFork
from audiofork.link.moves import CountBefore as CountBefore
from audiofork.link.moves import FrameCame as FrameCame
from audiofork.link.moves import HandedOver as HandedOver
from audiofork.link.moves import HandOver as HandOver
from audiofork.link.moves import Moved as Moved
from audiofork.link.moves import MoveReady as MoveReady
from audiofork.link.moves import NoteFrames as NoteFrames
from audiofork.link.moves import NotMoved as NotMoved
from audiofork.link.moves import RelayDraining as RelayDraining
from audiofork.link.moves import TakenOver as TakenOver
from audiofork.link.moves import TakeOver as TakeOver
from audiofork.link.moves import TellFrame as TellFrame


class EndReason(enum.StrEnum):
    """Why a fork ended; the first reason is kept."""

    HANGUP = "hangup"
    """The channel was hung up."""
    STOPPED = "stopped"
    """Somebody asked to stop it."""
    SINK_REFUSED = "sink-refused"
    """The WebSocket server refused the connection, or closed it for good."""
    SINK_GONE = "sink-gone"
    """The WebSocket server could not be reached, at first or again after a loss."""
    SINK_CLOSED = "sink-closed"
    """The WebSocket server of a connected fork has closed normally: it is done with the call."""
    LEG_FAILED = "leg-failed"
    """The leg did not connect, or was lost while its channel existed."""
    NO_SUCH_CHANNEL = "no-such-channel"
    """Asterisk does not have the channel."""
    MOVED = "moved"
    """Another relay host has it; of the control plane's forks none ends so."""
    SHUTDOWN = "shutdown"
    """The daemon stopped."""
    FAULT = "fault"
    """A bug in the daemon."""


@dataclass(frozen=True, slots=True)
class ExpectLeg:
    """Command: expect a leg to connect, the first of its part or one that replaces a lost one.

    An earlier leg of the part is closed, and its UUID is not accepted any more.

    Attributes:
        leg_uuid: The UUID that the leg will present. Only Asterisk knows it; it is accepted once.
        leg_id: The id of its channel, which the relay tells the next daemon; see `HeldFork`.
    """

    fork_id: str
    part: LegPart
    leg_uuid: str = field(repr=False)
    leg_id: str = ""


@dataclass(frozen=True, slots=True)
class EndFork:
    """Command: hang up the legs, send the frames that wait, close the sink."""

    fork_id: str
    reason: EndReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SetMute:
    """Command: mute (True) or unmute (False) each side; None leaves a side unchanged."""

    fork_id: str
    mute_in: bool | None = None
    mute_out: bool | None = None


@dataclass(frozen=True, slots=True)
class MoveFork:
    """Command to the relay as a whole: move a fork to another relay; see moves.py.

    The answer is `Moved`, or `NotMoved`.

    Attributes:
        spec: What the second relay is ordered.
        orders: What it is ordered next: its own legs, and what is muted.
        by_bridge: Whether its leg is an end of the call, which can have only one: it gets audio
            when the call is bridged with it, for which `MoveReady` asks; the first leg ends then.
    """

    spec: ForkSpec
    orders: tuple[ExpectLeg | SetMute, ...] = ()
    by_bridge: bool = False

    @property
    def fork_id(self) -> str:
        """The fork."""
        return self.spec.fork_id


@dataclass(frozen=True, slots=True)
class SetGate:
    """Command: open or shut the gate. Frames that arrive while it is shut are not counted."""

    fork_id: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class PressKey:
    """Command: tell the server that the channel's party has pressed a key.

    Attributes:
        digit: 0 to 9, *, #, A to D.
        duration_ms: How long it was pressed, in milliseconds.
    """

    fork_id: str
    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class TakeStats:
    """Command: report the statistics of all forks.

    Attributes:
        ticket: A number that the answer repeats.
    """

    ticket: int


@dataclass(frozen=True, slots=True)
class ExpectCheckLeg:
    """Command: a leg of a check is about to connect; report it, and hang it up."""

    leg_uuid: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TakeLevels:
    """Command: report how loud the forks are, with a `LevelsTaken` of each relay process.

    It also has the next frame of each leg measured, for the next take. So levels cost something
    only as long as somebody takes them, and the first take knows none yet.
    """


@dataclass(frozen=True, slots=True)
class Listen:
    """Command: report what a fork's server gets, as `HeardAudio`, from now on, or no more."""

    fork_id: str
    is_on: bool


@dataclass(frozen=True, slots=True)
class Adopt:
    """Command: report anew what stands of a held fork, and from now on what happens to it."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Command: go on with a fork without this daemon, and keep what happens for the next one."""

    fork_id: str


Command = (
    ForkSpec
    | ExpectLeg
    | EndFork
    | SetMute
    | SetGate
    | PressKey
    | TakeStats
    | ExpectCheckLeg
    | TakeLevels
    | Listen
    | Adopt
    | Leave
    | MoveFork
    | NoteFrames
    | TellFrame
    | HandOver
    | TakeOver
    | CountBefore
)


LATENCY_BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""The upper bounds of `StatsTaken.latency`, in milliseconds; after them comes infinity."""


@dataclass(frozen=True, slots=True)
class LegAttached:
    """Report: Asterisk connected a leg, the first of its part or one that replaces a lost one."""

    fork_id: str
    part: LegPart


@dataclass(frozen=True, slots=True)
class LegLost:
    """Report: a leg was closed, usually by Asterisk; only the control plane can find out why.

    Attributes:
        frames_in: How many frames the legs of the fork had brought, used or not.
        contested: Whether the relay closed it because a second connection presented its UUID: it
            cannot tell which of the two is Asterisk.
    """

    fork_id: str
    part: LegPart
    frames_in: int
    contested: bool = False


@dataclass(frozen=True, slots=True)
class SinkOpened:
    """Report: the WebSocket server accepted the connection.

    Attributes:
        subprotocol: The one of those offered that it has chosen; empty: none.
    """

    fork_id: str
    subprotocol: str = ""


@dataclass(frozen=True, slots=True)
class Streaming:
    """Report: the first frame was sent to the server."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class SinkRetrying:
    """Report: there is no connection to the server; another attempt follows.

    Attributes:
        attempt: The number of that attempt, from 1.
        detail: Why the last one failed, or the connection was lost, for people; any text.
        wait_s: Seconds until that attempt, from now on.
    """

    fork_id: str
    attempt: int
    detail: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SinkResumed:
    """Report: the connection to the server was opened again, and waiting frames are sent.

    Attributes:
        frames_dropped: How many frames were dropped while there was no connection.
    """

    fork_id: str
    frames_dropped: int


@dataclass(frozen=True, slots=True)
class SinkMessage:
    """Report: the server sent a text message."""

    fork_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CommandAsked:
    """Report: the server asks for what the relay cannot do by itself, and is allowed to.

    Attributes:
        command: HANGUP, DTMF or TRANSFER.
        value: Its argument: keys, or the name of a place; any text.
    """

    fork_id: str
    command: ServerCommand
    value: str = ""


@dataclass(frozen=True, slots=True)
class StatsTaken:
    """Report: the answer to `TakeStats`; statistics by fork id.

    Attributes:
        latency: How long frames took from their read to the acknowledgement by the server's TCP:
            for each of LATENCY_BUCKETS_MS, and infinity, how many took no longer. Since the start,
            two frames a second of each fork are measured. Empty: none was.
        latency_sum_s: What these took together, in seconds.
    """

    ticket: int
    stats: dict[str, ForkStats]
    latency: tuple[int, ...] = ()
    latency_sum_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ForkEnded:
    """Report: legs and sink are closed; the last report of a fork."""

    fork_id: str
    reason: EndReason
    detail: str
    stats: ForkStats


@dataclass(frozen=True, slots=True)
class StrangersRefused:
    """Report: connections to the AudioSocket port were refused because no leg has their UUID.

    Attributes:
        count: How many since the last such report.
        address: The address that the last one came from; empty: unknown.
    """

    count: int
    address: str


@dataclass(frozen=True, slots=True)
class CheckLeg:
    """Report: a leg of a check is expected now, or has come and was hung up."""

    leg_uuid: str = field(repr=False)
    has_come: bool


class Levels(NamedTuple):
    """How loud the sides of a fork are: 0 to 32767, or -1 where the side is not captured.

    They are those of a frame since the last take, as the legs bring it: before volume, mute and
    gate. The out of a connected fork is what its server says. 0: nothing comes, or silence.

    Attributes:
        in_peak: The greatest sample of in.
        in_rms: Its root mean square.
        out_peak: As `in_peak`, of out; `out_rms` is as `in_rms`.
        mixed: Whether `in` is both sides, mixed by Asterisk.
    """

    in_peak: int
    in_rms: int
    out_peak: int
    out_rms: int
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class LevelsTaken:
    """Report: the answer of one relay process to `TakeLevels`.

    Attributes:
        fork_ids: The forks that it relays.
        packed: The levels of each, in this order, as five int16. There may be thousands of forks,
            five times a second: as objects they would cost the relay as much as their frames.
    """

    fork_ids: tuple[str, ...]
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, fork_ids: Iterable[str], values: Iterable[int]) -> LevelsTaken:
        """Return the report with the values of `Levels` of all forks, one after the other."""
        return cls(tuple(fork_ids), array("h", values).tobytes())

    @property
    def levels(self) -> dict[str, Levels]:
        """The levels by fork id."""
        values = array("h", self.packed)
        rows = zip(*(values[start::5] for start in range(4)), map(bool, values[4::5]), strict=True)
        return dict(zip(self.fork_ids, map(Levels._make, rows), strict=True))


@dataclass(frozen=True, slots=True)
class HeardAudio:
    """Report: what a fork's server gets, some 100 ms of it, for those who listen to the fork.

    A muted side is silent here, too; but where both sides are captured they stay apart.

    Attributes:
        number: How many frames of 20 ms came before it since `Listen`.
        sample_rate: In Hz.
        sides: What the channels carry: in, out, or both in this order; or the mix.
        samples: int16 little-endian; those of several channels interleaved.
    """

    fork_id: str
    number: int
    sample_rate: int
    sides: tuple[LegPart, ...]
    samples: bytes = field(repr=False)

    @property
    def channels(self) -> int:
        """How many channels there are: 1 or 2."""
        return len(self.sides)


@dataclass(frozen=True, slots=True)
class RelayAway:
    """Report: the process that relayed these forks died, and no other process runs.

    A RelayLost follows as soon as a process can take them, or when none has started in time. Until
    then nothing listens for their legs.
    """

    fork_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelayLost:
    """Report: the process that relayed these forks died, and their statistics are lost.

    Each fork that is still wanted has to be sent again as a `ForkSpec`; the others have ended.

    Attributes:
        away_s: Seconds since the process died, or was heard of last; of several, since the first.
    """

    fork_ids: tuple[str, ...]
    away_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayBack:
    """Report: after a RelayAway, these forks go on where they were."""

    fork_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RelaysFound:
    """Report: which forks an earlier daemon has left is known from now on; see `Relay.held`."""


ForkReport = (
    LegAttached
    | LegLost
    | SinkOpened
    | Streaming
    | SinkRetrying
    | SinkResumed
    | SinkMessage
    | CommandAsked
    | FrameCame
    | HandedOver
    | TakenOver
    | ForkEnded
)
MoveReport = RelayDraining | MoveReady | Moved | NotMoved
"""The reports of forks that move."""
RelaysReport = RelayAway | RelayBack | RelayLost | RelaysFound | MoveReport
"""The reports of what becomes of forks when relays come and go."""
ForksReport = ForkReport | StatsTaken | StrangersRefused | RelaysReport
"""The reports about forks."""
WatchReport = LevelsTaken | HeardAudio
"""The reports for those who watch forks."""
Report = ForksReport | WatchReport | CheckLeg

SendCommand = Callable[[Command], None]
SendReport = Callable[[Report], None]
