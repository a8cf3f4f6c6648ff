"""The options of one Asterisk: the connections to it, and the AMI front before it.

Each of these sections may also stand with a name, `[asterisk NAME]`: those of a further Asterisk
that one controller of a cluster serves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from audiofork.addresses import IPNetwork
from audiofork.config_cluster import name_or_nothing
from audiofork.config_values import (
    Address,
    address_or_nothing,
    http_url_or_nothing,
    networks,
    number,
    one_of,
    text,
    whole,
    word,
    yes_or_no,
)
from audiofork.config_values import option as _option


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
class NamedAsteriskConfig(AsteriskConfig):
    """A further Asterisk of the cluster that a controller serves: its connection, and where it is.

    The options that [asterisk] lacks stand in [cluster] for that one.
    """

    legs_from: tuple[IPNetwork, ...] = _option(
        "",
        networks,
        "Addresses and networks that the audio of this Asterisk comes from, as [cluster] legs_from "
        "is for [asterisk]; empty: as [cluster] says.",
    )
    zone: str = _option(
        "",
        name_or_nothing,
        "Where this Asterisk is, as [cluster] zone; empty: as [cluster] says.",
    )


@dataclass(frozen=True)
class NamedAsterisk:
    """The sections that have the name of one Asterisk."""

    asterisk: NamedAsteriskConfig = field(default_factory=NamedAsteriskConfig)
    ari: AriConfig = field(default_factory=AriConfig)
    front: FrontConfig = field(default_factory=FrontConfig)


SECTIONS_OF_ASTERISK: dict[str, type[Any]] = {
    "asterisk": NamedAsteriskConfig,
    "ari": AriConfig,
    "front": FrontConfig,
}
"""Sections that may have the name of an Asterisk, `[ari NAME]`, by what stands before it."""
