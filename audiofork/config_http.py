"""The options of the HTTP interface."""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.config_values import Address, address_or_nothing, host_names, text
from audiofork.config_values import option as _option


@dataclass(frozen=True)
class HttpConfig:
    """The HTTP interface for scripts, metrics and the page; see docs/http.md."""

    listen: Address | None = _option(
        "",
        address_or_nothing,
        "Where it listens, e.g. 127.0.0.1:9080; empty: not by TCP. Needs tokens_file. Beyond this "
        "machine use cert_file, or a proxy that speaks TLS: tokens pass in the clear else.",
    )
    socket: str = _option(
        "",
        text,
        "The path of a Unix socket to listen at; empty: none. Its owner and its group may do "
        "everything there, without a token.",
    )
    tokens_file: str = _option(
        "",
        text,
        "The file of the tokens, NAME ROLES TOKEN in each line; ROLES are view, listen, control, "
        "with commas. Others than its owner and group may not read it. Under systemd it may be "
        "${CREDENTIALS_DIRECTORY}/NAME.",
    )
    cert_file: str = _option("", text, "The certificate (PEM) for https; empty: plain http.")
    key_file: str = _option("", text, "The key of the certificate, if it is not in the same file.")
    hosts: tuple[str, ...] = _option(
        "",
        host_names,
        "Names and addresses by which it may be called, besides localhost and the address in "
        "listen: those of a proxy before it, for example. Pages of https://NAME count as its own; "
        "if the proxy has another port or speaks no TLS, write what browsers show, "
        "https://NAME:8443.",
    )

    @property
    def is_open(self) -> bool:
        """Whether there is to be an HTTP interface."""
        return self.listen is not None or bool(self.socket)


def fault_of(config: HttpConfig) -> tuple[str, str] | None:
    """Return the option that lacks another one, and which; None if none does."""
    if config.listen is not None and not config.tokens_file:
        return "listen", "needs [http] tokens_file, which says who may do what"
    if config.key_file and not config.cert_file:
        return "key_file", "needs [http] cert_file"
    if config.cert_file and config.listen is None:
        return "cert_file", "needs [http] listen"
    return None
