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


def options_of(config: ClusterConfig) -> dict[str, Any]:
    """Return the options of NATS' client for a login.

    Raises:
        ConfigError: The file of the authorities cannot be used.
    """
    try:
        # Also for nats://: a server may ask for TLS all the same.
        options: dict[str, Any] = {"tls": client_context(config.ca_file)}
    except OSError as exc:
        raise ConfigError(f"[cluster] ca_file: {why(exc)}") from exc
    if config.nkey:
        options["nkeys_seed_str"] = config.nkey
    elif config.credentials:
        jwt, seed = _parts_of(config.credentials)
        options["user_jwt_cb"] = jwt.encode
        options["signature_cb"] = lambda nonce: _signed(seed, nonce)
    return options


def needs_tls(config: ClusterConfig) -> bool:
    """Return whether nothing may be sent in the clear."""
    return any(server.startswith("tls:") for server in config.servers)


def _parts_of(credentials: str) -> tuple[str, str]:
    """Return the JWT and the seed in the content of a credentials file, which was checked."""
    blocks = re.findall(r"-+BEGIN [A-Z ]+-+\n([\w.-]+)\n-+END", credentials)
    return blocks[0], blocks[1]


def _signed(seed: str, nonce: str) -> bytes:
    """Return the signature of what the server has sent, as proof that we have the seed."""
    pair = nkeys.from_seed(bytearray(seed.encode()))
    signature: bytes = pair.sign(nonce.encode())
    return base64.b64encode(signature)
