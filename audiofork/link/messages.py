"""Defines the messages between the control plane and the relay.

Commands go down, reports come up. All are small, frozen and made of plain values, so that the
link between the planes can be a function call or a socket.
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


class Format(enum.StrEnum):
    """What is spoken over the WebSocket of a fork."""

    RAW = "raw"
    """Binary messages of audio, as app_audiofork."""
    JSON = "json"
    """The same, and JSON texts for all that happens."""
    TWILIO = "twilio"
    """Twilio's Media Streams."""
    VONAGE = "vonage"
    """Vonage's Voice API."""
    JAMBONZ = "jambonz"
    """jambonz's `listen`."""
    CHAN_WEBSOCKET = "chan_websocket"
    """Asterisk's own channel driver."""
    OPENAI_REALTIME = "openai-realtime"
    """OpenAI's Realtime API."""

    @property
    def has_events(self) -> bool:
        """Whether it has messages for the call, and what happens beside audio, such as keys."""
        return self not in (Format.RAW, Format.OPENAI_REALTIME)

    @property
    def has_mute(self) -> bool:
        """Whether it has a message for sides that are muted, or are not any more."""
        return self is Format.JSON


class Codec(enum.StrEnum):
    """What audio is encoded in on its way to the server."""

    SLIN = "slin"
    """Signed 16-bit little-endian samples."""
    ULAW = "ulaw"
    """G.711 mu-law."""
    ALAW = "alaw"
    """G.711 A-law."""


class ServerCommand(enum.StrEnum):
    """What a server may be allowed to ask for, in the words of its format."""

    AUDIO = "audio"
    """Audio is played to the party, where the fork has a voice."""
    CLEAR = "clear"
    """What waits to be played is dropped."""
    MARK = "mark"
    """A mark comes back once the audio before it has been played."""
    PAUSE = "pause"
    """The server gets no audio until `RESUME`; it is allowed with this."""
    RESUME = "resume"
    """The server gets audio again."""
    HANGUP = "hangup"
    """The channel is hung up."""
    DTMF = "dtmf"
    """Keys are played to the party."""
    TRANSFER = "transfer"
    """The call goes on at another place of the dialplan, of those that the profile allows."""


class LegPart(enum.StrEnum):
    """Which audio a leg of a fork carries."""

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
    SHUTDOWN = "shutdown"
    """The daemon stopped."""
    FAULT = "fault"
    """A bug in the daemon."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How the certificate of a wss:// server is checked, in place of the configured way.

    Attributes:
        ca_file: Path of the trusted authorities, in PEM; empty: as configured.
        cert_file: Path of the certificate that the daemon shows; empty: as configured.
        key_file: Path of its key; empty: the key is in `cert_file`.
        insecure: Whether to accept any certificate.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a fork adds to the HTTP request of the WebSocket handshake.

    Attributes:
        headers: Names and values; a value may be a secret, so none is shown.
        subprotocols: Those that are offered, the preferred one first; some servers expect a token
            as one of them, so none is shown.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    subprotocols: tuple[str, ...] = field(default=(), repr=False)


PLAIN_HANDSHAKE = Handshake()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a profile has a server told, and what the server answers, around the fork's format.

    Attributes:
        opening: A text that is sent at each opening; empty: none.
        opening_answer: Audio waits until the server has sent a text with this in it; empty: audio
            does not wait.
        closing: A text that is sent before the close; empty: none.
        closing_answer: The server has sent all once it has sent a text with this in it; empty: once
            it closes the connection.
        closing_wait_s: How long to wait for that at most, in seconds.
        full_messages: Whether messages of audio that are too short are filled up with silence.
    """

    opening: str = field(default="", repr=False)
    opening_answer: str = ""
    closing: str = field(default="", repr=False)
    closing_answer: str = ""
    closing_wait_s: float = 0.0
    full_messages: bool = False


PLAIN_DIALOGUE = Dialogue()


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a server is told of the call; a caller may have chosen any of it.

    Attributes:
        call: Fields of the call, by name.
        params: Parameters of the request; a value may be a secret.
        resumed: Whether another process has relayed the fork before, whose frames are not counted.
    """

    call: dict[str, str] = field(default_factory=dict, repr=False)
    params: dict[str, str] = field(default_factory=dict, repr=False)
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Beeps:
    """Tones that the party of the forked channel hears.

    Attributes:
        interval_s: Seconds between two periodic tones; 0: no periodic tones.
        at_start: Whether one is played when audio begins to flow.
        at_end: Whether one is played when the fork is stopped.
    """

    interval_s: float = 0.0
    at_start: bool = False
    at_end: bool = False

    @property
    def any(self) -> bool:
        """Whether there are any, so that the leg has to speak to the party."""
        return bool(self.interval_s) or self.at_start or self.at_end


@dataclass(frozen=True, slots=True)
class Voice:
    """How the server's audio is played over a leg of the fork.

    Attributes:
        part: The leg that it is played over.
        steady: Whether the leg gets a frame every 20 ms for ever, silence while the server says
            nothing; else only while it speaks.
        buffer_s: Seconds of audio that may wait to be played; what is more is dropped.
    """

    part: LegPart
    steady: bool = False
    buffer_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ForkSpec:
    """Command: prepare to relay a fork; an `ExpectLeg` follows for each of its legs.

    Attributes:
        fork_id: A UUID in its canonical text form.
        channel: Name of the channel, for the log.
        url: ws:// or wss:// URL of the server.
        direction: Which audio the server gets.
        legs: The legs that Asterisk connects: in, out, or one for each; the mix; or pairs.
        sample_rate: In Hz, of the audio from the legs and to the server.
        gain_in: Volume of in, in steps of a factor of two, -4 to 4; `gain_out`: of out.
        keep_time: Whether to send silence while the only leg brings nothing.
        steady: Whether the legs should bring 50 frames a second; frames short of that are counted
            as missing.
        gate_open: Whether audio flows from the start; see `SetGate`.
        beeps: Tones that tell the party of the fork.
        tls: How the server is checked; None: as configured.
        handshake: What is added to the request of the handshake.
        format: What is spoken over the WebSocket.
        codec: What the audio is encoded in, where the format leaves that open.
        metadata: What the server is told of the call; None: nothing.
        dialogue: What is said around the format.
        reconnect_interval_s: Longest wait between two connects, and time limit of one, in seconds;
            None: as configured.
        reconnect_attempts: Failed connects in a row before the fork ends, 0: no limit; None: as
            configured.
        frame_ms: Milliseconds of audio in one message; None: as configured.
        voice: How the server's audio is played; None: the server is not heard.
        commands: What the server may ask for; all else is counted and ignored.
    """

    fork_id: str
    channel: str
    url: str = field(repr=False)
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
    handshake: Handshake = PLAIN_HANDSHAKE
    format: Format = Format.RAW
    codec: Codec = Codec.SLIN
    metadata: Metadata | None = None
    dialogue: Dialogue = PLAIN_DIALOGUE
    reconnect_interval_s: float | None = None
    reconnect_attempts: int | None = None
    frame_ms: int | None = None
    voice: Voice | None = None
    commands: tuple[ServerCommand, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpectLeg:
    """Command: expect a leg to connect, the first of its part or one that replaces a lost one.

    An earlier leg of the part is closed, and its UUID is not accepted any more.

    Attributes:
        leg_uuid: The UUID that the leg will present. Only Asterisk knows it; it is accepted once.
    """

    fork_id: str
    part: LegPart
    leg_uuid: str = field(repr=False)


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


Command = ForkSpec | ExpectLeg | EndFork | SetMute | SetGate | PressKey | TakeStats | ExpectCheckLeg


@dataclass(frozen=True, slots=True)
class ForkStats:
    """Counts of 20-ms frames since a fork began; in = sent + dropped + waiting.

    Attributes:
        reconnects: How often a lost connection to the server was opened again.
        messages_ignored: Text messages of the server beyond the limit per second.
        frames_missing: Frames that steady legs should have brought by now, and did not.
        frames_played: Frames of the server's audio that were played to the party.
        frames_cleared: Those that the server has dropped by a command before they were played.
        frames_unplayed: Those that did not fit into the buffer, or were left at the end.
        underruns: How often the server's audio came too late to be played without a gap.
        commands_refused: What the server asked for and is not allowed to.
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
        away_s: Seconds since the process died; of several, since the first.
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
    | CommandAsked
    | ForkEnded
)
ForksReport = ForkReport | StatsTaken | StrangersRefused | RelayAway | RelayLost
"""What concerns forks."""
Report = ForksReport | CheckLeg

SendCommand = Callable[[Command], None]
SendReport = Callable[[Report], None]
