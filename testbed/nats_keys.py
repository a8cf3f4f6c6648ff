"""Makes keys and credentials of NATS, as `nk` and `nsc` do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import nkeys

USER, ACCOUNT, OPERATOR = nkeys.PREFIX_BYTE_USER, nkeys.PREFIX_BYTE_ACCOUNT, 14 << 3


@dataclass(frozen=True)
class NKey:
    """A pair of keys.

    Attributes:
        seed: The secret one.
        public: The other.
    """

    seed: str
    public: str

    def sign(self, data: bytes) -> bytes:
        """Return a signature."""
        signature: bytes = nkeys.from_seed(bytearray(self.seed.encode())).sign(data)
        return signature


def new_key(kind: int = USER) -> NKey:
    """Return new keys of a user, an account or an operator."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return NKey(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwt(name: str, subject: NKey, issuer: NKey, claims: dict[str, Any], **more: Any) -> str:
    body = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "name": name,
        "sub": subject.public,
        "nats": {**claims, "version": 2},
        **more,
    }
    digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    header = _part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{header}.{_part(json.dumps(body).encode())}"
    return f"{signed}.{_part(issuer.sign(signed.encode()))}"


class Operator:
    """An operator with one account, whose users have credentials."""

    def __init__(self) -> None:
        self._key = new_key(OPERATOR)
        self._account, self._system = new_key(ACCOUNT), new_key(ACCOUNT)

    @property
    def config(self) -> str:
        """The lines of a server's configuration that let its users in."""
        operator = _jwt("operator", self._key, self._key, {"type": "operator"})
        limits = {"subs": -1, "conn": -1, "data": -1, "payload": -1, "mem_storage": -1}
        limits |= {"disk_storage": -1, "streams": -1, "consumer": -1, "wildcards": True}
        account = _jwt("A", self._account, self._key, {"type": "account", "limits": limits})
        system = _jwt("SYS", self._system, self._key, {"type": "account"})
        return (
            f"operator: {operator}\nsystem_account: {self._system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self._account.public}: {account}\n"
            f"{self._system.public}: {system} }}\n"
        )

    def credentials(self, lives_s: float = 0) -> str:
        """Return the credentials file of a new user who may do everything.

        Args:
            lives_s: After how many seconds they expire; 0: never.
        """
        user = new_key()
        more = {"exp": int(time.time() + lives_s)} if lives_s else {}
        jwt = _jwt("u", user, self._account, {"type": "user", "subs": -1, "data": -1}, **more)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n"
            "NKEYs are sensitive and should be treated as secrets.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n\n"
            "*************************************************************\n"
        )
