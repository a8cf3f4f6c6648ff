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
    multiple_of_20,
    networks,
    number,
    one_of,
    process_count,
    program_and_arguments,
    sample_rate,
    text,
    url_patterns,
    whole,
    word,
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
    port: int = _option("5038", whole(1, 65535), "Its port; 5039 is usual with tls.")
    username: str = _option("audiofork", text, "The user of manager_audiofork.conf.")
    secret: str = _option("", text, "Its secret; secret_file keeps it apart.", may_be_shown=False)
    secret_file: str = _option(
        "", text, "A file that holds the secret; with systemd, ${CREDENTIALS_DIRECTORY}/NAME works."
    )
    tls: bool = _option("no", yes_or_no, "Speak TLS to the manager interface.")
    ca_file: str = _option("", text, "Authorities that may sign its certificate; empty: system's.")
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; it is given up after two without an answer.",
    )
    tap: str = _option(
        "auto",
        one_of("auto", "chanspy", "snoop"),
        "How audio is captured. auto: by ARI's snoop where [ari] is set and reachable at that "
        "moment, else by ChanSpy; snoop: by ARI alone, forks are refused while it is not "
        "reachable; chanspy: never by ARI.",
    )
    chanspy_pairs: str = _option(
        "never",
        one_of("never", "narrowband"),
        "Whether ChanSpy may bring in and out apart, which D(out), D(stereo) and a mute of one "
        "side need. It gets them wrong in calls with wideband audio (G.722, Opus, 16-kHz prompts). "
        "never: such forks are refused without ARI; narrowband: all audio of this site is at 8000 "
        "Hz, prompts too; a fork in a call that is not is refused.",
    )
    on_hold: str = _option(
        "attach",
        one_of("attach", "wait"),
        "What a fork does in a call that is on hold, where its first leg would stop the music. "
        "attach: take the audio at once; wait: until the hold is over.",
    )


@dataclass(frozen=True)
class AriConfig:
    """The connection to Asterisk's REST interface (ARI)."""

    url: str = _option(
        "",
        http_url_or_nothing,
        "Where it listens, http://127.0.0.1:8088/ari say; empty: off.",
        may_be_shown=False,  # a wrong one may hold a password
    )
    username: str = _option("audiofork", text, "The user of ari_audiofork.conf.")
    password: str = _option(
        "", text, "Its password; password_file keeps it apart.", may_be_shown=False
    )
    password_file: str = _option(
        "",
        text,
        "A file that holds the password; with systemd, ${CREDENTIALS_DIRECTORY}/NAME works.",
    )
    app: str = _option(
        "audiofork",
        word,
        "The name of our Stasis application; two daemons beside one Asterisk need two names.",
    )
    ca_file: str = _option(
        "", text, "Authorities that may sign its certificate, for https; empty: system's."
    )
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; it is given up after two without an answer.",
    )


@dataclass(frozen=True)
class AudioSocketConfig:
    """Where Asterisk brings the audio (AudioSocket: plain TCP, so keep it on a private network)."""

    listen: Address = _option("127.0.0.1:9093", address, "Where the daemon listens; port 0: any.")
    advertise: Address | None = _option(
        "", address_or_nothing, "The address that Asterisk dials; empty: the same as listen."
    )
    allow: tuple[IPNetwork, ...] = _option(
        "",
        networks,
        "Networks (192.0.2.0/24) and addresses that Asterisk may dial from; empty: any.",
    )


@dataclass(frozen=True)
class RelayConfig:
    """What relays the audio."""

    workers: int = _option(
        "1",
        process_count,
        "Processes that share the forks; auto: one for each core. 1: the daemon's own. The second "
        "listens at the next port after [audiosocket] listen, and so on; Asterisk dials the ports "
        "from advertise on likewise. With port 0 each has any.",
    )


@dataclass(frozen=True)
class WebSocketConfig:
    """The connections to WebSocket servers; names as in Asterisk's websocket_client.conf."""

    connect_timeout: float = _option("5", number(0.1, 60), "Seconds for a connect and handshake.")
    reconnect_interval: float = _option(
        "5", number(0.25, 600), "Longest wait in seconds between two attempts; option R of a fork."
    )
    reconnect_attempts: int = _option(
        "5",
        whole(0, 1_000_000),
        "Attempts in a row before a fork gives up, as if all were reconnect_interval apart; 0: for "
        "ever; option r of a fork.",
    )
    backlog: float = _option(
        "10", number(0, 600), "Seconds of audio kept for a server that is not there or too slow."
    )
    frame_ms: int = _option(
        "20", multiple_of_20, "Milliseconds of audio in one message; option F of a fork."
    )
    sample_rate: int = _option(
        "8000",
        sample_rate,
        "Samples a second of the audio sent; 0: the channel's own; option L of a fork. Above 8000 "
        "needs [ari].",
    )
    latency_budget: float = _option(
        "0.2",
        number(0.02, 10),
        "Seconds of audio that may wait in buffers for a slow server; more goes to the backlog.",
    )
    ping_interval: float = _option(
        "20", number(1, 3600), "Seconds between pings; a server that answers none is gone."
    )
    ca_list_file: str = _option(
        "", text, "Authorities that may sign a server's certificate; empty: the system's."
    )
    cert_file: str = _option("", text, "Our certificate in PEM, for servers that ask for one.")
    priv_key_file: str = _option("", text, "Its key, if that is not in the same file.")


@dataclass(frozen=True)
class SecurityConfig:
    """What requests may ask for."""

    allow_urls: tuple[str, ...] = _option(
        "*://127.0.0.1 *://[::1] *://localhost",
        url_patterns,
        "URLs that audio may go to: scheme://host[:port][/path], * stands for any text; without a "
        "port or path, any. The default is this machine alone: name your servers, as "
        "wss://*.example.org or ws://192.0.2.7:8080/, for whoever may start a fork can send any "
        "call there.",
    )
    allow_private: bool = _option(
        "yes",
        yes_or_no,
        "Let audio go to loopback, private and other addresses that are not of the public "
        "internet; no: names are resolved once, and only public addresses are connected to.",
    )
    allow_insecure_tls: bool = _option(
        "no", yes_or_no, "Let a fork ask for no check of certificates: option T(insecure)."
    )
    tls_dir: str = _option(
        "/etc/audiofork/tls",
        folder_or_nothing,
        "The folder of the files that option T of a fork may name; empty: none.",
    )
    allow_post_process: bool = _option(
        "no",
        yes_or_no,
        "Let whoever starts a fork choose a shell command that runs when it has ended. The "
        "commands of [post_process:NAME] need no such leave.",
    )
    max_forks: int = _option("1000", whole(1, 100_000), "Forks at once.")
    max_forks_per_channel: int = _option("10", whole(1, 100_000), "Forks at once of one channel.")
    max_starts: int = _option(
        "100",
        whole(1, 10_000),
        "Starts a second, and so many at once; what is more waits, in turns of those who ask, 5 s "
        "at most.",
    )


@dataclass(frozen=True)
class ControlConfig:
    """The socket behind the commands start, stop, mute and list."""

    socket: str = _option(
        "/run/audiofork/control.sock", text, "A path; empty: none. Its owner and group may use it."
    )


@dataclass(frozen=True)
class FrontConfig:
    """The AMI front: lets existing clients of app_audiofork go on as they are."""

    listen: Address | None = _option(
        "",
        address_or_nothing,
        "Where it listens, 127.0.0.1:5040 say; empty: off. Asterisk sees its clients at the "
        "daemon's address: permit and deny of manager.conf do not tell them apart, so keep it "
        "on a private network.",
    )
    tls_cert_file: str = _option("", text, "Its certificate in PEM; set: clients speak TLS.")
    tls_key_file: str = _option("", text, "Its key, if that is not in the same file.")


@dataclass(frozen=True)
class DaemonConfig:
    """What outlives the daemon."""

    journal: str = _option(
        "/var/lib/audiofork/journal.sqlite3",
        text,
        "A file of the forks that run, by which the next start resumes those of a killed daemon; "
        "empty: none. It holds URLs with their queries; its owner alone may read it.",
    )
    on_stop: str = _option(
        "end",
        one_of("end", "keep"),
        "What SIGTERM does to running forks; keep: the next start resumes them.",
    )


@dataclass(frozen=True)
class LogConfig:
    """The log goes to standard error, which systemd hands to the journal."""

    level: str = _option("info", one_of("debug", "info", "warning", "error"), "What is logged.")
    format: str = _option("text", one_of("text", "json"), "One line of text, or one JSON object.")


@dataclass(frozen=True)
class PostProcessConfig:
    """A command that a fork may name, PostProcess: @NAME, to run when it has ended; no shell."""

    command: tuple[str, ...] = _option(
        "",
        program_and_arguments,
        "The path of a program and its arguments, split once as a shell does; further lines may be "
        "indented. In each ^{NAME}, a channel variable or function, is replaced by its value, "
        "which may hold anything and stays within its argument: so put none into the text of a "
        "program (sh -c, python -c, awk), and -- before one that may begin with -.",
        may_be_shown=False,  # an argument may be a token
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

NAMED_SECTIONS: dict[str, type[Any]] = {"post_process": PostProcessConfig}
"""Those that there may be several of: `[post_process:NAME]`; `Config` has them by NAME."""

EXAMPLES = {
    "post_process": (
        "upload",
        {"command": "/usr/local/bin/upload --from ^{CALLERID(num)} -- ^{UNIQUEID}"},
    ),
}
"""What the sample shows of them."""
