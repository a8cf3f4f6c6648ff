"""The configuration: every option with its default, its check and its description, once.

`config_file.py` reads the file, and makes the sample from what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from audiofork.addresses import IPNetwork

# Named here too, for all who use the configuration.
from audiofork.config_cluster import ClusterConfig as ClusterConfig
from audiofork.config_history import HistoryConfig as HistoryConfig
from audiofork.config_http import HttpConfig as HttpConfig
from audiofork.config_security import SecurityConfig as SecurityConfig
from audiofork.config_servers import TwilioConfig as TwilioConfig
from audiofork.config_servers import WebSocketConfig as WebSocketConfig
from audiofork.config_values import SAMPLE_RATES as SAMPLE_RATES
from audiofork.config_values import Address as Address
from audiofork.config_values import Place as Place
from audiofork.config_values import Proxy as Proxy
from audiofork.config_values import (
    address,
    address_or_nothing,
    http_url_or_nothing,
    lines,
    login,
    music_class,
    networks,
    number,
    one_of,
    places,
    process_count,
    program_and_arguments,
    proxy_or_nothing,
    server_commands,
    text,
    texts,
    web_page_or_nothing,
    whole,
    word,
    words,
    yes_or_no,
)
from audiofork.config_values import option as _option

# --- The sections --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsteriskConfig:
    """The connection to Asterisk's manager interface (AMI)."""

    host: str = _option("127.0.0.1", text, "Where Asterisk's manager interface listens.")
    port: int = _option(
        "5038", whole(1, 65535), "The port of the manager interface; with tls usually 5039."
    )
    username: str = _option("audiofork", text, "The user name, as in manager_audiofork.conf.")
    secret: str = _option(
        "",
        text,
        "The secret of that user; use secret_file to keep it out of this file.",
        may_be_shown=False,
    )
    secret_file: str = _option(
        "",
        text,
        "A file that contains the secret; under systemd it may be ${CREDENTIALS_DIRECTORY}/NAME.",
    )
    tls: bool = _option("no", yes_or_no, "Use TLS for the connection to the manager interface.")
    ca_file: str = _option(
        "",
        text,
        "A PEM file of the authorities that may sign Asterisk's certificate; empty: the system's.",
    )
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; after two checks without an answer, the "
        "daemon closes it and connects again.",
    )
    tap: str = _option(
        "auto",
        one_of("auto", "chanspy", "snoop"),
        "How audio is captured. auto: by ARI snoop if [ari] is configured and reachable when the "
        "fork starts, otherwise by ChanSpy; snoop: by ARI snoop only, forks are refused while ARI "
        "is not reachable; chanspy: by ChanSpy only.",
    )
    chanspy_pairs: str = _option(
        "never",
        one_of("never", "narrowband"),
        "Whether ChanSpy may be used to capture in and out separately, as D(out), D(stereo) and "
        "muting one side require. Its audio is wrong in calls with wideband audio (G.722, Opus, "
        "16-kHz prompts). never: such forks are refused without ARI; narrowband: allowed, because "
        "all audio of this site, including prompts, is at 8000 Hz; a fork in a call with other "
        "audio is refused.",
    )
    dtmf_events: bool = _option(
        "no",
        yes_or_no,
        "Whether each key that a party presses raises an event AudioForkDtmf, in forks that report "
        "keys to their server. Keys may be secrets, such as a card number.",
    )
    on_hold: str = _option(
        "attach",
        one_of("attach", "wait"),
        "What a fork does when it starts in a call on hold, where capturing stops the music on "
        "hold. attach: capture at once; wait: capture when the hold is over.",
    )


@dataclass(frozen=True)
class AriConfig:
    """The connection to Asterisk's REST interface (ARI)."""

    url: str = _option(
        "",
        http_url_or_nothing,
        "The URL of ARI, e.g. http://127.0.0.1:8088/ari; empty: ARI is not used.",
        may_be_shown=False,  # a wrong one may hold a password
    )
    username: str = _option("audiofork", text, "The user name, as in ari_audiofork.conf.")
    password: str = _option(
        "",
        text,
        "The password of that user; use password_file to keep it out of this file.",
        may_be_shown=False,
    )
    password_file: str = _option(
        "",
        text,
        "A file that contains the password; under systemd it may be ${CREDENTIALS_DIRECTORY}/NAME.",
    )
    app: str = _option(
        "audiofork",
        word,
        "The name of the daemon's Stasis application; two daemons that use one Asterisk need "
        "different names.",
    )
    ca_file: str = _option(
        "",
        text,
        "For https: a PEM file of the authorities that may sign Asterisk's certificate; empty: the "
        "system's.",
    )
    ping_interval: float = _option(
        "10",
        number(1, 3600),
        "Seconds between two checks of the connection; after two checks without an answer, the "
        "daemon closes it and connects again.",
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
        "How many processes share the forks. auto: one per core; 1: the daemon's own process "
        "relays. The first listens on the port of [audiosocket] listen, the second on the next "
        "port, and so on; Asterisk connects to the same number of ports from that of advertise "
        "on. With port 0 each process takes any free port.",
    )
    detached: bool = _option(
        "no",
        yes_or_no,
        "Whether these processes outlive the daemon. yes: forks go on without a gap while the "
        "daemon is restarted or upgraded (with [daemon] on_stop = keep) or killed, and the next "
        "one finds them again by its journal; also with workers = 1. The daemon starts those that "
        "do not run, but what it starts ends with its service: under systemd enable "
        "audiofork-relay@0.service, audiofork-relay@1.service and so on, one for each.",
    )
    folder: str = _option(
        "/run/audiofork-relay",
        text,
        "The folder with the sockets of detached processes: 0/relay.sock in it is that of the "
        "first. Only the daemon's user may use it.",
    )
    orphan_timeout: float = _option(
        "60",
        number(1, 86400),
        "How many seconds a detached process goes on without a daemon, then its forks end, and so "
        "does it; a relay host of a cluster without a controller, then the forks end.",
    )


@dataclass(frozen=True)
class ControlConfig:
    """The Unix socket through which the command line talks to the daemon."""

    socket: str = _option(
        "/run/audiofork/control.sock",
        text,
        "The path of the socket; empty: none. Its owner and its group may use it.",
    )


@dataclass(frozen=True)
class FrontConfig:
    """The AMI front, which lets clients of app_audiofork work unchanged."""

    listen: Address | None = _option(
        "",
        address_or_nothing,
        "Where the front listens, e.g. 127.0.0.1:5040; empty: off. Asterisk sees the daemon's "
        "address instead of the clients', so permit and deny of manager.conf cannot tell clients "
        "apart: keep the front on a private network.",
    )
    tls_cert_file: str = _option(
        "", text, "The front's certificate (PEM); if set, clients must use TLS."
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
        "The file that records running forks, so that the next start resumes the forks of a killed "
        "daemon; empty: none. It contains whole URLs, so only its owner may read it.",
    )
    on_stop: str = _option(
        "end",
        one_of("end", "keep"),
        "What SIGTERM does to running forks. end: they end; keep: the next start resumes them. In "
        "a cluster they always go on, with another controller.",
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
        "text", one_of("text", "json"), "text: one line per entry; json: one JSON object per entry."
    )


@dataclass(frozen=True)
class PostProcessConfig:
    """A command to run when a fork has ended, for PostProcess: @NAME; it runs without a shell."""

    command: tuple[str, ...] = _option(
        "",
        program_and_arguments,
        "The path of a program and its arguments, split as a shell does; indented lines continue "
        "it. In each argument, ^{NAME} is replaced by the value of that channel variable or "
        "function. A value may contain any text but stays within its argument: do not use it in "
        "the text of a program (sh -c, python -c, awk), and put -- before a value that may begin "
        "with -.",
        may_be_shown=False,  # an argument may be a token
    )


@dataclass(frozen=True)
class ProfileConfig:
    """A server that a fork may name, WsServer: @NAME, to keep URL and secrets out of dialplans."""

    url: str = _option(
        "",
        text,
        "Where the audio is sent, whatever [security] allow_urls says; may contain fields of the "
        "call, e.g. wss://speech.example.org/live?call={uniqueid}.",
        may_be_shown=False,  # its query may be a secret
    )
    options: str = _option(
        "",
        text,
        "The option string; a fork's own options are added, and win where both have a letter.",
    )
    token: str = _option(
        "",
        text,
        "Sent as Authorization: Bearer; a user:password is sent as Basic.",
        may_be_shown=False,
    )
    token_file: str = _option("", text, "A file that contains the token.")
    token_header: str = _option(
        "", text, "The header that carries the token, if another: Authorization: Token {token}."
    )
    headers: tuple[str, ...] = _option(
        "",
        lines,
        "Headers of the handshake, NAME: VALUE, one per line; indent all lines but the first.",
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
        "A text to send at each opening; fields of the call, such as {caller_number}, are escaped "
        "for a JSON string.",
        may_be_shown=False,
    )
    opening_answer: str = _option(
        "",
        text,
        "A part of the server's answer to the opening, which audio waits for; empty: audio does "
        "not wait.",
    )
    closing: str = _option(
        "",
        texts,
        "A text to send before the close, with the same fields; {messages} is the number of audio "
        "messages on this connection.",
        may_be_shown=False,
    )
    closing_wait: float = _option(
        "5",
        number(0, 25),
        "Seconds that the server has after the closing text, to send its last results.",
    )
    closing_answer: str = _option(
        "", text, "A part of the server's last text, if the server leaves the close to the daemon."
    )
    full_messages: bool = _option(
        "no",
        yes_or_no,
        "Whether to fill up short audio messages, such as the last one, with silence.",
    )
    proxy: Proxy | None = _option(
        "",
        proxy_or_nothing,
        "The proxy for this server, whatever [websocket] no_proxy says; none: no proxy; empty: as "
        "[websocket] says.",
        may_be_shown=False,
    )
    proxy_login: str = _option("", login, "The user:password for this proxy.", may_be_shown=False)
    proxy_login_file: str = _option("", text, "A file that contains this user:password.")
    status_callback: str = _option(
        "",
        web_page_or_nothing,
        "Like [twilio] status_callback, for streams of this profile; empty: as [twilio] says.",
        may_be_shown=False,
    )
    commands: tuple[str, ...] = _option(
        "",
        server_commands,
        "What its server may ask for beside [security] allow_commands, in the same words.",
    )
    transfer_to: tuple[Place, ...] = _option(
        "",
        places,
        "The places of the dialplan that its server may transfer the call to (commands = "
        "transfer), context,exten,priority, with blanks between them.",
    )
    music: str = _option(
        "",
        music_class,
        "The class of musiconhold.conf that the caller of a connected server hears while that is "
        "lost; empty: silence.",
    )
    channels: tuple[str, ...] = _option(
        "*",
        words,
        "The channels that may be forked to this server; * stands for any text: PJSIP/trunk-*.",
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked."""

    asterisk: AsteriskConfig = field(default_factory=AsteriskConfig)
    ari: AriConfig = field(default_factory=AriConfig)
    audiosocket: AudioSocketConfig = field(default_factory=AudioSocketConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)
    twilio: TwilioConfig = field(default_factory=TwilioConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    front: FrontConfig = field(default_factory=FrontConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    log: LogConfig = field(default_factory=LogConfig)
    post_process: Mapping[str, PostProcessConfig] = field(default_factory=dict)
    profile: Mapping[str, ProfileConfig] = field(default_factory=dict)


SECTIONS: dict[str, type[Any]] = {
    "asterisk": AsteriskConfig,
    "ari": AriConfig,
    "audiosocket": AudioSocketConfig,
    "relay": RelayConfig,
    "websocket": WebSocketConfig,
    "twilio": TwilioConfig,
    "security": SecurityConfig,
    "control": ControlConfig,
    "front": FrontConfig,
    "http": HttpConfig,
    "daemon": DaemonConfig,
    "history": HistoryConfig,
    "cluster": ClusterConfig,
    "log": LogConfig,
}

NAMED_SECTIONS: dict[str, type[Any]] = {
    "post_process": PostProcessConfig,
    "profile": ProfileConfig,
}
"""Sections that may appear with several names: `[post_process:NAME]`; `Config` has them by NAME."""

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
"""For each named section, the name and the values that the sample shows."""
