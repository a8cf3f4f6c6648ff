"""How TLS is spoken, by whoever speaks it: TLS 1.2 or later, as OpenSSL's defaults are."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(ca_file: str = "") -> ssl.SSLContext:
    """Return a context that verifies a server's certificate and name.

    A name counts only as a subjectAltName (RFC 9525, 6.3): authorities do not check a common name.

    Args:
        ca_file: The authorities to trust, in PEM; empty: the system's.

    Raises:
        OSError: The file cannot be used; the text may not name it. ssl.SSLError is one.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.hostname_checks_common_name = False
    return _without_renegotiation(context)


def server_context(
    cert_file: str | Path, key_file: str | Path | None = None, *, may_ask: bool = False
) -> ssl.SSLContext:
    """Return a context for a server, which asks its clients for no certificate.

    Args:
        cert_file: Its certificate, in PEM.
        key_file: Its key; empty or None: in the same file.
        may_ask: Whether somebody may be asked on a terminal for the passphrase of the key.

    Raises:
        OSError: A file cannot be used, or they do not belong together. ssl.SSLError is one.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # With a password of no length nobody is asked.
    context.load_cert_chain(cert_file, key_file or None, password=None if may_ask else "")
    return _without_renegotiation(context)


def _without_renegotiation(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let no peer ask for another handshake (TLS 1.2), which costs more than all that it sends."""
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context
