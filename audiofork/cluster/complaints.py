"""Logs what NATS' client reports, with what to do about it."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable

import nats.errors

from audiofork.cluster.buckets import HOSTS
from audiofork.cluster.nats_client import NoTls
from audiofork.config import ClusterConfig
from audiofork.log import CounterLine, Repeats
from audiofork.shipped import NATS_CONF
from audiofork.text import printable, reason_of

log = logging.getLogger(__name__)

# The client tries some times a second, and each time it reports the same.
REPEAT_S = 30.0

# A loss of the connection, which is logged where it is noticed.
_LOSSES = (nats.errors.StaleConnectionError, nats.errors.FlushTimeoutError)
_PERMISSION = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_NO_LOGIN = re.compile(r"authorization violation|authentication (timeout|expired)")
_MAKES_BUCKET = "$js.api.stream.create."
_REGISTERS = f"$kv.{HOSTS}."


class Complaints:
    """What NATS' client reports, each text once in a while.

    Args:
        config: The servers, and how to log in.
        clock: Returns the time in seconds.
    """

    def __init__(self, config: ClusterConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._repeats = Repeats(REPEAT_S, clock)
        self._slow = CounterLine(log, "messages over NATS dropped, they come too fast")

    def forget(self) -> None:
        """Log again what was logged before: a connection has stood meanwhile."""
        self._repeats.forget()

    def say(self, exc: Exception) -> None:
        """Log what the client reports."""
        if isinstance(exc, nats.errors.SlowConsumerError):
            self._slow.count(printable(exc.subject, "?"))
        elif isinstance(exc, _LOSSES):
            log.debug("NATS: %s", exc)
        else:
            text = self._text_of(exc)
            # All works without that one; the relay host goes on to try.
            if self._repeats.are_due(text, again=text != _NOT_REGISTERED):
                log.error("%s", text)

    def _text_of(self, exc: Exception) -> str:
        said = str(exc).lower()
        if found := _PERMISSION.search(said):
            return _not_allowed(found[1], printable(found[2], "?"))
        if isinstance(exc, nats.errors.AuthorizationError) or _NO_LOGIN.search(said):
            return f"NATS refuses the login: {self._login_advice()}; trying again"
        if isinstance(exc, NoTls):
            return (
                "the NATS server offers no TLS, or somebody in between has taken the offer out: "
                "nothing is sent to it; it needs tls { cert_file, key_file } in its configuration, "
                "without allow_non_tls, or nats:// in [cluster] servers if all may go in the "
                "clear; trying again"
            )
        if isinstance(exc, OSError | ssl.SSLError | nats.errors.TimeoutError):
            reason = reason_of(exc, "[cluster] ca_file")
            return f"no NATS server can be reached: {reason}; trying again"
        return f"NATS: {printable(str(exc) or type(exc).__name__, '?')}"

    def _login_advice(self) -> str:
        if self._config.nkey:
            return "its user needs the public key of the seed in [cluster] nkey_file"
        if self._config.credentials:
            return "are the credentials of [cluster] credentials_file of its operator, and valid?"
        return "it wants one: set [cluster] nkey_file or credentials_file"


_NOT_REGISTERED = (
    f"NATS does not allow this relay host to register in the bucket {HOSTS}: controllers hear of "
    "it by its beats alone; compare the permissions of our user with those of its role in "
    f"{NATS_CONF}"
)


def _not_allowed(what: str, subject: str) -> str:
    if subject.startswith(_REGISTERS):
        return _NOT_REGISTERED
    if subject.startswith(_MAKES_BUCKET):
        bucket = subject.removeprefix(_MAKES_BUCKET).removeprefix("kv_")
        return (
            f"the bucket {bucket} is missing, and NATS does not allow us to make it: run "
            "`audiofork buckets` once, with the key of a user who may"
        )
    does = "publish to" if what == "publish" else "subscribe to"
    return (
        f'NATS does not allow us to {does} "{subject}" (in small letters): compare the permissions '
        f"of our user with those of its role in {NATS_CONF}, and the names in them with [cluster] "
        "name and asterisk"
    )
