"""Calls functions of OpenSSL that Python's ssl module does not offer."""

from __future__ import annotations

import ctypes
import ssl

_REQUESTED = 1  # SSL_KEY_UPDATE_REQUESTED (openssl/ssl.h)
# In Python's struct of a connection OpenSSL's pointer comes after the head and a reference.
_POINTER_OFFSET = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)


def ask_for_another_key(tls: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Send a KeyUpdate that the peer has to answer with its own (TLS 1.3)."""
    library, connection = _openssl(tls)
    assert library.SSL_key_update(connection, _REQUESTED) == 1
    assert library.SSL_do_handshake(connection) == 1


def ask_for_another_handshake(tls: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Send a HelloRequest (TLS 1.2)."""
    library, connection = _openssl(tls)
    assert library.SSL_renegotiate(connection) == 1
    library.SSL_do_handshake(connection)


def _openssl(tls: ssl.SSLSocket | ssl.SSLObject) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """Return the library that Python uses, and its connection."""
    library = ctypes.CDLL("libssl.so.3")
    inner = tls._sslobj  # type: ignore[union-attr]
    connection = ctypes.c_void_p.from_address(id(inner) + _POINTER_OFFSET)
    library.SSL_get_version.restype = ctypes.c_char_p
    version = library.SSL_get_version(connection)
    assert version.decode() == tls.version()  # so this is it
    return library, connection
