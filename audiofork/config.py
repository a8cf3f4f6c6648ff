"""The configuration: every option with its default, its check and its description, once.

`config_file.py` reads the file, and `config_sample.py` makes the sample from what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audiofork.addresses import IPNetwork

# Named here too, for all who use the configuration.
from audiofork.config_asterisk import AriConfig as AriConfig
from audiofork.config_asterisk import AsteriskConfig as AsteriskConfig
from audiofork.config_asterisk import FrontConfig as FrontConfig
from audiofork.config_asterisk import NamedAsterisk as NamedAsterisk
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
    words,
    yes_or_no,
)
from audiofork.config_values import option as _option

# --- The sections --------------------------------------------------------------------------------


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
    """The whole configuration, checked.

    Attributes:
        asterisks: Those of [asterisk NAME], by NAME.
        has_unnamed: Whether that of [asterisk] counts: it stands in the file, or there is no other.
    """

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
    asterisks: Mapping[str, NamedAsterisk] = field(default_factory=dict)
    has_unnamed: bool = True

    @property
    def asterisk_names(self) -> tuple[str, ...]:
        """What the cluster calls each Asterisk that a controller with this file serves."""
        return ((self.cluster.asterisk,) if self.has_unnamed else ()) + tuple(self.asterisks)

    def of_asterisk(self, name: str) -> Config:
        """Return the configuration as it is for one Asterisk, as if there were no other.

        Raises:
            KeyError: There is none of that name.
        """
        if self.has_unnamed and name == self.cluster.asterisk:
            return replace(self, asterisks={})
        own = self.asterisks[name]
        cluster = replace(
            self.cluster,
            asterisk=name,
            legs_from=own.asterisk.legs_from or self.cluster.legs_from,
            zone=own.asterisk.zone or self.cluster.zone,
        )
        return replace(
            self,
            asterisk=own.asterisk,
            ari=own.ari,
            front=own.front,
            cluster=cluster,
            # One file has one writer, and the forks of each Asterisk are asked for apart.
            history=replace(self.history, file=history_of(self.history.file, name)),
            asterisks={},
            has_unnamed=True,
        )


def without_secrets(config: Config) -> Config:
    """Return a configuration without the secrets: a reload applies those at the next login."""
    return replace(
        config,
        asterisk=replace(config.asterisk, secret="", secret_file=""),
        ari=replace(config.ari, password="", password_file=""),
        http=replace(config.http, tokens_file=""),
    )


def history_of(file: str, asterisk: str) -> str:
    """Return the history of [asterisk NAME]: beside that of [asterisk], with the name in it."""
    path = Path(file)
    return str(path.with_name(f"{path.stem}-{asterisk}{path.suffix}")) if file else ""


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
