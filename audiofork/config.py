"""The configuration: every option with its default, its check and its description, once.

`config_file.py` reads the file, and makes the sample from what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from audiofork.addresses import IPNetwork

# Named here too, for all who use the configuration.
from audiofork.config_values import SAMPLE_RATES as SAMPLE_RATES
from audiofork.config_values import Address as Address
from audiofork.config_values import (
    address,
    address_or_nothing,
    folder_or_nothing,
    http_url_or_nothing,
    lines,
    multiple_of_20,
    networks,
    number,
    one_of,
    process_count,
    program_and_arguments,
    sample_rate,
    text,
    texts,
    url_patterns,
    whole,
    word,
    words,
    yes_or_no,
)


def _option(
    default: str, parse: Callable[[str], Any], doc: str, *, may_be_shown: bool = True
) -> Any:
    """Declare one option.

    Args:
        default: As it would stand in the file.
        parse: Turns the text of the file into a value; see `config_values`.
        doc: What the sample says of it.
        may_be_shown: False keeps its value, a secret say, out of errors and of `repr`.
    """
    metadata = {"default": default, "parse": parse, "doc": doc}
    return field(default=parse(default), repr=may_be_shown, metadata=metadata)


# --- The sections --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsteriskConfig:
    """The connection to Asterisk's manager interface (AMI)."""

    host: str = _option("127.0.0.1", text, "Where Asterisk's manager interface listens.")
    port: int = _option("5038", whole(1, 65535), "Its port; usually 5039 with tls.")
    username: str = _option("audiofork", text, "The user of manager_audiofork.conf.")
    secret: str = _option(
        "",
        text,
        "The secret of that user; secret_file keeps it out of this file.",
        may_be_shown=False,
    )
    secret_file: str = _option(
        "",
        text,
        "A file that holds the secret; under systemd ${CREDENTIALS_DIRECTORY}/NAME can be used.",
    )
    tls: bool = _option("no", yes_or_no, "Connect to the manager interface by TLS.")
    ca_file: str = _option(
        "",
        text,
        "A PEM file of the authorities that may sign its certificate; empty: the system's.",
    )
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; after two without an answer it is closed "
        "and opened again.",
    )
    tap: str = _option(
        "auto",
        one_of("auto", "chanspy", "snoop"),
        "How audio is captured. auto: by ARI snoop where [ari] is configured and reachable when "
        "the fork starts, otherwise by ChanSpy; snoop: by ARI snoop only, forks are refused while "
        "ARI is not reachable; chanspy: by ChanSpy only.",
    )
    chanspy_pairs: str = _option(
        "never",
        one_of("never", "narrowband"),
        "Whether ChanSpy may be used to capture in and out separately, as D(out), D(stereo) and "
        "muting one side require. Its audio is wrong in calls with wideband audio (G.722, Opus, "
        "16-kHz prompts). never: such forks are refused without ARI; narrowband: all audio of this "
        "site, prompts too, is at 8000 Hz, and a fork in a call that is not is refused.",
    )
    dtmf_events: bool = _option(
        "no",
        yes_or_no,
        "Whether there is an event AudioForkDtmf for each key that a party presses, in forks whose "
        "servers are told of keys. Keys may be secrets, such as the number of a card.",
    )
    on_hold: str = _option(
        "attach",
        one_of("attach", "wait"),
        "What a fork does that starts in a call on hold, where capturing stops the music on hold. "
        "attach: capture at once; wait: capture when the hold is over.",
    )


@dataclass(frozen=True)
class AriConfig:
    """The connection to Asterisk's REST interface (ARI)."""

    url: str = _option(
        "",
        http_url_or_nothing,
        "Where it listens, e.g. http://127.0.0.1:8088/ari; empty: ARI is not used.",
        may_be_shown=False,  # a wrong one may hold a password
    )
    username: str = _option("audiofork", text, "The user of ari_audiofork.conf.")
    password: str = _option(
        "",
        text,
        "The password of that user; password_file keeps it out of this file.",
        may_be_shown=False,
    )
    password_file: str = _option(
        "",
        text,
        "A file that holds the password; under systemd ${CREDENTIALS_DIRECTORY}/NAME can be used.",
    )
    app: str = _option(
        "audiofork",
        word,
        "The name of our Stasis application; two daemons at one Asterisk need different names.",
    )
    ca_file: str = _option(
        "",
        text,
        "For https: a PEM file of the authorities that may sign its certificate; empty: the "
        "system's.",
    )
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; after two without an answer it is closed "
        "and opened again.",
    )


@dataclass(frozen=True)
class AudioSocketConfig:
    """Where Asterisk delivers audio (AudioSocket, plain TCP: keep it on a private network)."""

    listen: Address = _option(
        "127.0.0.1:9093", address, "Where the daemon listens; port 0: any free port."
    )
    advertise: Address | None = _option(
        "",
        address_or_nothing,
        "The address that Asterisk connects to, if that differs from listen.",
    )
    allow: tuple[IPNetwork, ...] = _option(
        "",
        networks,
        "Addresses and networks (192.0.2.0/24) that Asterisk may connect from; empty: any.",
    )


@dataclass(frozen=True)
class RelayConfig:
    """The processes that relay the audio."""

    workers: int = _option(
        "1",
        process_count,
        "How many processes share the forks; auto: one for each core; 1: the daemon's own process "
        "relays. The first listens at the port of [audiosocket] listen, the second at the next "
        "one, and so on; Asterisk connects to as many ports from advertise on. With port 0 each "
        "takes any free port.",
    )


@dataclass(frozen=True)
class WebSocketConfig:
    """The connections to WebSocket servers; names as in Asterisk's websocket_client.conf."""

    connect_timeout: float = _option(
        "5", number(0.1, 60), "Longest time in seconds for the connection and the handshake."
    )
    reconnect_interval: float = _option(
        "5",
        number(0.25, 600),
        "Longest wait in seconds between two attempts to connect; option R of a fork.",
    )
    reconnect_attempts: int = _option(
        "5",
        whole(0, 1_000_000),
        "Attempts in a row until a fork gives up, counted as if they were reconnect_interval "
        "apart; 0: it never does; option r of a fork.",
    )
    backlog: float = _option(
        "10",
        number(0, 600),
        "Seconds of audio that are kept for a server that is away or too slow.",
    )
    frame_ms: int = _option(
        "20",
        multiple_of_20,
        "Milliseconds of audio in one message, a multiple of 20; option F of a fork.",
    )
    sample_rate: int = _option(
        "8000",
        sample_rate,
        "Sample rate in Hz of the audio that is sent; 0: the channel's own; option L of a fork. "
        "More than 8000 needs [ari].",
    )
    latency_budget: float = _option(
        "0.2",
        number(0.02, 10),
        "Seconds of audio that may wait in the connection's buffers; what is more waits in the "
        "backlog.",
    )
    ping_interval: float = _option(
        "20",
        number(1, 3600),
        "Seconds between pings; a server that does not answer one is taken for gone.",
    )
    ca_list_file: str = _option(
        "",
        text,
        "A PEM file of the authorities that may sign servers' certificates; empty: the system's.",
    )
    cert_file: str = _option("", text, "Our certificate (PEM), for servers that ask for one.")
    priv_key_file: str = _option(
        "", text, "The key of the certificate, if it is not in the same file."
    )


@dataclass(frozen=True)
class SecurityConfig:
    """What those who start forks may ask for."""

    allow_urls: tuple[str, ...] = _option(
        "*://127.0.0.1 *://[::1] *://localhost",
        url_patterns,
        "Where audio may be sent: scheme://host[:port][/path], * stands for any text; without a "
        "port or a path, any. The default is this machine alone. Name your servers, e.g. "
        "wss://*.example.org or ws://192.0.2.7:8080/: whoever may start a fork can send any call "
        "there.",
    )
    allow_private: bool = _option(
        "yes",
        yes_or_no,
        "Whether audio may be sent to loopback, private and other addresses that are not public; "
        "no: each name is resolved once, and only public addresses are connected to.",
    )
    allow_insecure_tls: bool = _option(
        "no", yes_or_no, "Whether forks may leave certificates unchecked: option T(insecure)."
    )
    tls_dir: str = _option(
        "/etc/audiofork/tls",
        folder_or_nothing,
        "The folder with the files that option T of a fork may name; empty: none.",
    )
    allow_post_process: bool = _option(
        "no",
        yes_or_no,
        "Whether whoever starts a fork may choose a shell command that runs when it has ended. The "
        "commands of [post_process:NAME] are always allowed.",
    )
    max_forks: int = _option("1000", whole(1, 100_000), "How many forks may run at once.")
    max_forks_per_channel: int = _option(
        "10", whole(1, 100_000), "How many forks of one channel may run at once."
    )
    max_starts: int = _option(
        "100",
        whole(1, 10_000),
        "How many forks may start in a second, and in one burst. More wait, up to 5 s, and those "
        "who ask take turns.",
    )


@dataclass(frozen=True)
class ControlConfig:
    """The Unix socket by which the command line asks the daemon."""

    socket: str = _option(
        "/run/audiofork/control.sock",
        text,
        "Its path; empty: none. Its owner and its group may use it.",
    )


@dataclass(frozen=True)
class FrontConfig:
    """The AMI front, which lets clients of app_audiofork work unchanged."""

    listen: Address | None = _option(
        "",
        address_or_nothing,
        "Where it listens, e.g. 127.0.0.1:5040; empty: off. Asterisk sees the daemon's address in "
        "place of its clients', so permit and deny of manager.conf cannot tell them apart: keep it "
        "on a private network.",
    )
    tls_cert_file: str = _option(
        "", text, "Its certificate (PEM); if set, clients have to connect by TLS."
    )
    tls_key_file: str = _option(
        "", text, "The key of the certificate, if it is not in the same file."
    )


@dataclass(frozen=True)
class DaemonConfig:
    """What happens to running forks when the daemon stops or is killed."""

    journal: str = _option(
        "/var/lib/audiofork/journal.sqlite3",
        text,
        "The file that records running forks, so that the next start resumes those of a killed "
        "daemon; empty: none. It holds whole URLs, so only its owner may read it.",
    )
    on_stop: str = _option(
        "end",
        one_of("end", "keep"),
        "What SIGTERM does to running forks. end: they end; keep: the next start resumes them.",
    )


@dataclass(frozen=True)
class LogConfig:
    """The log, which goes to standard error; systemd passes it to the journal."""

    level: str = _option(
        "info",
        one_of("debug", "info", "warning", "error"),
        "The least severe messages that are logged.",
    )
    format: str = _option(
        "text", one_of("text", "json"), "text: one line an entry; json: one JSON object an entry."
    )


@dataclass(frozen=True)
class PostProcessConfig:
    """A command that a fork may have run when it has ended: PostProcess: @NAME; without a shell."""

    command: tuple[str, ...] = _option(
        "",
        program_and_arguments,
        "The path of a program and its arguments, split as a shell does; may go on in indented "
        "lines. In each argument ^{NAME}, a channel variable or function, is replaced by its "
        "value. A value may hold any text but stays within its argument: do not use it in the text "
        "of a program (sh -c, python -c, awk), and put -- before one that may begin with -.",
        may_be_shown=False,  # an argument may be a token
    )


@dataclass(frozen=True)
class ProfileConfig:
    """A server that a fork may name, WsServer: @NAME, so that no URL or secret is in a dialplan."""

    url: str = _option(
        "",
        text,
        "Where the audio is sent, whatever [security] allow_urls has; may hold fields of the call, "
        "e.g. wss://speech.example.org/live?call={uniqueid}.",
        may_be_shown=False,  # its query may be a secret
    )
    options: str = _option(
        "", text, "The option string; a fork's own is added, and counts for letters of both."
    )
    token: str = _option(
        "", text, "Sent as Authorization: Bearer; user:password as Basic.", may_be_shown=False
    )
    token_file: str = _option("", text, "A file that holds the token.")
    token_header: str = _option(
        "", text, "The header of the token, if another: Authorization: Token {token}."
    )
    headers: tuple[str, ...] = _option(
        "",
        lines,
        "Headers of the handshake, NAME: VALUE, one in a line; further lines are indented.",
        may_be_shown=False,
    )
    params: str = _option(
        "",
        text,
        "Parameters for the server, a=1&b=2, percent-encoded; a fork's own are added.",
        may_be_shown=False,
    )
    opening: str = _option(
        "",
        texts,
        "A text that is sent at each opening; fields of the call, {caller_number}, are escaped as "
        "in a string of JSON.",
        may_be_shown=False,
    )
    opening_answer: str = _option(
        "", text, "A part of the text that audio waits for, the server's answer to the opening."
    )
    closing: str = _option(
        "",
        texts,
        "A text that is sent before the close, likewise; {messages}: how many had audio.",
        may_be_shown=False,
    )
    closing_wait: float = _option(
        "5", number(0, 25), "Seconds that the server has after that text, for its last results."
    )
    closing_answer: str = _option(
        "", text, "A part of the server's last text, if it leaves it to us to close."
    )
    full_messages: bool = _option(
        "no", yes_or_no, "Whether short messages of audio, such as the last, get silence added."
    )
    channels: tuple[str, ...] = _option(
        "*", words, "The channels that may be forked to it; * stands for any text: PJSIP/trunk-*."
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked."""

    asterisk: AsteriskConfig = field(default_factory=AsteriskConfig)
    ari: AriConfig = field(default_factory=AriConfig)
    audiosocket: AudioSocketConfig = field(default_factory=AudioSocketConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    front: FrontConfig = field(default_factory=FrontConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    log: LogConfig = field(default_factory=LogConfig)
    post_process: Mapping[str, PostProcessConfig] = field(default_factory=dict)
    profile: Mapping[str, ProfileConfig] = field(default_factory=dict)


SECTIONS: dict[str, type[Any]] = {
    "asterisk": AsteriskConfig,
    "ari": AriConfig,
    "audiosocket": AudioSocketConfig,
    "relay": RelayConfig,
    "websocket": WebSocketConfig,
    "security": SecurityConfig,
    "control": ControlConfig,
    "front": FrontConfig,
    "daemon": DaemonConfig,
    "log": LogConfig,
}

NAMED_SECTIONS: dict[str, type[Any]] = {
    "post_process": PostProcessConfig,
    "profile": ProfileConfig,
}
"""Those that there may be several of: `[post_process:NAME]`; `Config` has them by NAME."""

EXAMPLES = {
    "post_process": (
        "upload",
        {"command": "/usr/local/bin/upload --from ^{CALLERID(num)} -- ^{UNIQUEID}"},
    ),
    "profile": (
        "speech",
        {
            "url": "wss://speech.example.org/live?call={uniqueid}",
            "options": "D(stereo)x(json)",
        },
    ),
}
"""What the sample shows of them."""
