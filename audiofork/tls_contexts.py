"""The TLS contexts of all connections: TLS 1.2 or later, with OpenSSL's defaults.

`audiofork.files` reads certificates and keys; OpenSSL never opens the named files itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from audiofork.files import NamedFile, read_file


def client_context(ca_file: str | NamedFile = "") -> ssl.SSLContext:
    """Return a context that verifies a server's certificate and name.

    Only names in subjectAltName count (RFC 9525, 6.3): authorities do not check a common name.

    Args:
        ca_file: The authorities to trust, in PEM; empty: the system's.

    Raises:
        OSError: The file cannot be used; it is named.
    """
    with contextlib.ExitStack() as copies:
        path = copies.enter_context(_copy_of(_content(ca_file))) if ca_file else None
        try:
            context = ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            raise _fault(ca_file, "contains no PEM certificate") from None
    context.hostname_checks_common_name = False
    _bound_key_exchange(context)
    return _hardened(context)


def _bound_key_exchange(context: ssl.SSLContext) -> None:
    """Exclude key exchanges whose cost the server chooses.

    With DHE the server sends a prime of its own, and with TLS 1.3 it may ask for one of 8192 bits:
    that costs us 0.1 to 0.7 s of CPU time per handshake. ECDHE over P-256 takes a millisecond, and
    each TLS 1.3 server supports it (RFC 8446, 9.1).
    """
    older = [cipher for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    kept = [cipher["name"] for cipher in older if cipher["kea"] == "kx-ecdhe"]
    context.set_ciphers(":".join(kept))
    context.set_ecdh_curve("prime256v1")


def show_certificate(
    context: ssl.SSLContext,
    cert_file: str | Path | NamedFile,
    key_file: str | Path | NamedFile | None = None,
    *,
    may_ask: bool = False,
) -> None:
    """Let a context present our certificate.

    Args:
        cert_file: The certificate, in PEM.
        key_file: Its key; empty or None: in the same file.
        may_ask: Whether the user may be asked on the terminal for the passphrase of the key.

    Raises:
        OSError: A file cannot be used, or they do not belong together; the file is named.
    """
    password = None if may_ask else ""  # with one of no length nobody is asked
    certificate = _content(cert_file)
    key = _content(key_file) if key_file else None
    with contextlib.ExitStack() as copies:
        cert_copy = copies.enter_context(_copy_of(certificate))
        key_copy = copies.enter_context(_copy_of(key)) if key is not None else None
        try:
            context.load_cert_chain(cert_copy, key_copy, password)
        except ssl.SSLError as exc:
            found = _what_is_wrong(exc, certificate, certificate if key is None else key)
            raise _fault(
                cert_file if found.of_certificate else key_file or cert_file, found.text
            ) from None


def server_context(
    cert_file: str | Path, key_file: str | Path | None = None, *, may_ask: bool = False
) -> ssl.SSLContext:
    """Return a context for a server, which asks its clients for no certificate.

    Args, Raises: as of `show_certificate`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    show_certificate(context, cert_file, key_file, may_ask=may_ask)
    return _hardened(context)


def _hardened(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context with TLS 1.2 as the oldest version, and without its renegotiation.

    Another handshake costs more than all other data that a peer may send.
    """
    # Some builds of Python, such as Debian's, leave the version to the system's openssl.cnf.
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class _Wrong(NamedTuple):
    of_certificate: bool
    text: str


def _what_is_wrong(exc: ssl.SSLError, certificate: bytes, key: bytes) -> _Wrong:
    """Return what is wrong with the files; OpenSSL itself says only `PEM lib`."""
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        return _Wrong(True, "contains no PEM certificate")
    if not re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", key):
        return _Wrong(False, "contains no PEM private key")
    if exc.reason == "KEY_VALUES_MISMATCH":
        return _Wrong(False, "the key does not belong to the certificate")
    if re.search(rb"BEGIN ENCRYPTED|Proc-Type: 4,ENCRYPTED", key):
        return _Wrong(False, "the key is encrypted, and its passphrase is missing or wrong")
    if re.search(rb"BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", certificate):
        return _Wrong(False, _DAMAGED)
    return _Wrong(True, _DAMAGED)


_DAMAGED = "a certificate or key in it is damaged"


def _fault(file: str | Path | NamedFile, text: str) -> OSError:
    return OSError(errno.EINVAL, text, str(file))


def _content(file: str | Path | NamedFile) -> bytes:
    return file.read() if isinstance(file, NamedFile) else read_file(file)


@contextlib.contextmanager
def _copy_of(content: bytes) -> Iterator[str]:
    """Yield the path of a copy in memory, because OpenSSL loads only from paths."""
    copy = os.memfd_create("audiofork-pem")
    try:
        os.write(copy, content)
        yield f"/proc/self/fd/{copy}"
    finally:
        os.close(copy)
