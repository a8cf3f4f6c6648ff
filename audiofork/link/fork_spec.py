"""What the relay is told of a fork: `ForkSpec`, and the values that it is made of."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from audiofork.addresses import IPNetwork
from audiofork.config import Proxy, WebSocketConfig
from audiofork.link.dialogue import PLAIN_DIALOGUE, Dialogue

LEG_FRAMES_A_SECOND = 50


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
    """The protocol spoken over the WebSocket of a fork."""

    RAW = "raw"
    """Binary messages of audio, as app_audiofork."""
    JSON = "json"
    """The same, with JSON texts for all that happens."""
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
        """Whether it has messages for the call, and for events besides audio, such as keys."""
        return self not in (Format.RAW, Format.OPENAI_REALTIME)

    @property
    def has_mute(self) -> bool:
        """Whether it has a message for sides that are muted, or are not any more."""
        return self is Format.JSON


class Codec(enum.StrEnum):
    """The encoding of the audio on its way to the server."""

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


@dataclass(frozen=True, slots=True)
class Tls:
    """How the certificate of a wss:// server is checked, instead of the configured way.

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
        subprotocols: The offered subprotocols, the preferred one first; some servers expect a
            token as one of them, so none is shown.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    subprotocols: tuple[str, ...] = field(default=(), repr=False)


PLAIN_HANDSHAKE = Handshake()


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
        at_start: Whether a tone is played when audio begins to flow.
        at_end: Whether a tone is played when the fork is stopped.
    """

    interval_s: float = 0.0
    at_start: bool = False
    at_end: bool = False

    @property
    def any(self) -> bool:
        """Whether there are any tones, so that the leg must speak to the party."""
        return bool(self.interval_s) or self.at_start or self.at_end


@dataclass(frozen=True, slots=True)
class Voice:
    """How the server's audio is played over legs of the fork.

    Attributes:
        parts: The legs that it is played over, the same audio over each; at least one.
        steady: Whether the legs get a frame every 20 ms for ever, silence while the server says
            nothing; else only while it speaks.
        buffer_s: Seconds of audio that may wait to be played; what is more is dropped.
    """

    parts: tuple[LegPart, ...]
    steady: bool = False
    buffer_s: float = WebSocketConfig.playout_buffer


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
        format: The protocol spoken over the WebSocket.
        codec: The encoding of the audio, if the format leaves a choice.
        metadata: What the server is told of the call; None: nothing.
        dialogue: What is said around the format.
        reconnect_interval_s: Longest wait between two connects, and time limit of one, in seconds;
            None: as configured.
        reconnect_attempts: Failed connects in a row before the fork ends, 0: no limit; None: as
            configured.
        frame_ms: Milliseconds of audio in one message; None: as configured.
        voice: How the server's audio is played; None: the server is not heard.
        commands: What the server may ask for; all else is counted and ignored.
        proxy: What the server is connected to through; None: as configured.
        way: The name of the way its legs are made, which the relay tells the next daemon.
        holds: Whether nothing is sent until `TakeOver`: another relay has the fork until then.
        turn: In a cluster greater than in all orders before: of two hosts that go on with a fork,
            that with the greater one has it.
        age_s: Seconds since it was requested, for a relay that it goes to later.
        legs_from: Where its legs may come from; empty: from anywhere.
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
    proxy: Proxy | None = None
    way: str = ""
    holds: bool = False
    turn: int = 0
    age_s: float = 0.0
    legs_from: tuple[IPNetwork, ...] = ()

    @property
    def frames_a_second(self) -> int:
        """How many frames come and go over its legs in a second, while all speak."""
        spoken = self.voice.parts if self.voice is not None else ()
        return LEG_FRAMES_A_SECOND * (len(self.legs) + len(spoken))

    @property
    def is_connected(self) -> bool:
        """Whether the server is the other party of the call, so that what it says is out."""
        return self.voice is not None and self.voice.steady and self.legs == (LegPart.IN,)
