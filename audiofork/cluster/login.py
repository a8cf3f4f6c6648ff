"""How a controller or relay logs in to NATS: TLS, and the key of [cluster]."""

from __future__ import annotations

import base64
import re
from typing import Any

import nkeys

from audiofork.config import ClusterConfig
from audiofork.errors import ConfigError
from audiofork.text import why
from audiofork.tls_contexts import client_context

# Where NATS' answers go. Only there may ours go: whoever asks chooses the subject.
INBOXES = "_INBOX."


def inbox_of_controller(config: ClusterConfig) -> str:
    """Return below which subject answers to a controller go, which no other user may read."""
    return f"{INBOXES}control.{config.asterisk}"


def inbox_of_relay(config: ClusterConfig) -> str:
    """Return the same for a relay host."""
    return f"{INBOXES}relay.{config.own_name}"


def options_of(config: ClusterConfig, inbox: str) -> dict[str, Any]:
    """Return the options of NATS' client for a login.

    Args:
        config: The servers, and how to log in.
        inbox: Below which subject answers to this client go.

    Raises:
        ConfigError: The file of the authorities cannot be used.
    """
    try:
        # Also for nats://: a server may ask for TLS all the same.
        options: dict[str, Any] = {"tls": client_context(config.ca_file), "inbox_prefix": inbox}
    except OSError as exc:
        raise ConfigError(f"[cluster] ca_file: {why(exc)}") from exc
    if config.nkey:
        options["nkeys_seed_str"] = config.nkey
    elif config.credentials:
        jwt, seed = _parts_of(config.credentials)
        options["user_jwt_cb"] = jwt.encode
        options["signature_cb"] = lambda nonce: _signed(seed, nonce)
    return options


def _parts_of(credentials: str) -> tuple[str, str]:
    """Return the JWT and the seed in the content of a credentials file, which was checked."""
    blocks = re.findall(r"-+BEGIN [A-Z ]+-+\n([\w.-]+)\n-+END", credentials)
    return blocks[0], blocks[1]


def _signed(seed: str, nonce: str) -> bytes:
    """Return the signature of what the server has sent, as proof that we have the seed."""
    pair = nkeys.from_seed(bytearray(seed.encode()))
    signature: bytes = pair.sign(nonce.encode())
    return base64.b64encode(signature)
