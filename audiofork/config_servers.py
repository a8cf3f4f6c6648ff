"""The options of the servers that the daemon sends audio to."""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.config_values import (
    Proxy,
    hosts,
    login,
    multiple_of_20,
    number,
    one_of,
    proxy,
    sample_rate,
    text,
    web_page_or_nothing,
    whole,
)
from audiofork.config_values import option as _option

# As in link.messages.Format.
FORMATS = ("raw", "json", "twilio", "vonage", "jambonz", "chan_websocket")


@dataclass(frozen=True)
class WebSocketConfig:
    """The connections to WebSocket servers; names as in Asterisk's websocket_client.conf."""

    connect_timeout: float = _option(
        "5", number(0.1, 60), "The longest time in seconds for the connection and the handshake."
    )
    reconnect_interval: float = _option(
        "5",
        number(0.25, 600),
        "The longest wait in seconds between two attempts to connect; option R of a fork.",
    )
    reconnect_attempts: int = _option(
        "5",
        whole(0, 1_000_000),
        "The number of failed attempts in a row after which a fork gives up, counted as if they "
        "were reconnect_interval apart; 0: it never gives up; option r of a fork.",
    )
    backlog: float = _option(
        "10",
        number(0, 600),
        "Seconds of audio to keep for a server that is away or too slow.",
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
    format: str = _option(
        "raw",
        one_of(*FORMATS),
        "The protocol spoken with servers: raw, json, twilio, vonage, jambonz or chan_websocket; "
        "option x of a fork or of its profile.",
    )
    latency_budget: float = _option(
        "0.2",
        number(0.02, 10),
        "Seconds of audio that may wait in the connection's buffers; the rest waits in the "
        "backlog.",
    )
    playout_buffer: float = _option(
        "60",
        number(1, 600),
        "Seconds of a server's audio that may wait to be played into the call; the excess is "
        "dropped and counted.",
    )
    ping_interval: float = _option(
        "20",
        number(1, 3600),
        "Seconds between pings; a server that does not answer one counts as gone.",
    )
    ca_list_file: str = _option(
        "",
        text,
        "A PEM file of the authorities that may sign servers' certificates; empty: the system's.",
    )
    cert_file: str = _option(
        "", text, "The daemon's certificate (PEM), for servers that ask for one."
    )
    priv_key_file: str = _option(
        "", text, "The key of the certificate, if it is not in the same file."
    )
    proxy: Proxy = _option(
        "",
        proxy,
        "The proxy for the connections to servers: http://host:port, https://host:port "
        "(ca_list_file verifies its certificate) or socks5://host:port; user:password@ may precede "
        "the host. The proxy resolves the servers' names. Empty or none: no proxy. http_proxy and "
        "similar variables of the environment have no effect.",
        may_be_shown=False,  # a wrong one may contain a password
    )
    proxy_login: str = _option(
        "",
        login,
        "The user:password for the proxy; use proxy_login_file to keep it out of this file.",
        may_be_shown=False,
    )
    proxy_login_file: str = _option(
        "",
        text,
        "A file that contains this user:password; under systemd it may be "
        "${CREDENTIALS_DIRECTORY}/NAME.",
    )
    no_proxy: tuple[str, ...] = _option(
        "localhost 127.0.0.0/8 ::1",
        hosts,
        "Servers to connect to directly, without the proxy: names and addresses, in which * stands "
        "for any text (*.example.org), and networks; empty: none.",
    )


@dataclass(frozen=True)
class TwilioConfig:
    """Reports about streams in Twilio's format, option x(twilio), apart from the WebSocket."""

    status_callback: str = _option(
        "",
        web_page_or_nothing,
        "The URL that gets Twilio's form posts when a stream has started, failed or stopped; the "
        "certificate of an https URL is verified by [websocket] ca_list_file. Empty: off.",
        may_be_shown=False,  # its query may be a secret
    )
