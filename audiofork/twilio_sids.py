"""Identifiers as Twilio's look, made of ours: in messages to servers, and in status callbacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple


class Sids(NamedTuple):
    """The identifiers of one fork; the same in each run of the daemon.

    Attributes:
        account: Of the Asterisk, by its system name.
        call: Of the channel, by its uniqueid.
        stream: Of the fork.
    """

    account: str
    call: str
    stream: str


def sids_of(fork_id: str, call: Mapping[str, str]) -> Sids:
    """Return the identifiers of a fork.

    Args:
        fork_id: A UUID in its canonical text form.
        call: The fields of its call, by name.
    """
    return Sids(
        _sid("AC", call.get("system_name", "")),
        _sid("CA", call.get("uniqueid", fork_id)),
        f"MZ{fork_id.replace('-', '')}",
    )


def _sid(kind: str, text: str) -> str:
    """Return an identifier, the same for the same text."""
    return kind + hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
