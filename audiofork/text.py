"""Makes texts from outside, and errors, fit to be shown to people."""

from __future__ import annotations

import difflib
import errno
import os
import pwd
import re
import socket
import ssl
from collections.abc import Iterable

# Each takes at most four bytes, and a line of AMI holds 1024, including the header's name.
MAX_REASON_CHARACTERS = 240
# The answer to requesters, who must not see a traceback.
A_BUG = "a bug in audiofork; the log has the details"


def printable(text: str, stand_in: str) -> str:
    """Return a text with `stand_in` for each character that is not printable.

    The result cannot begin a new line in a log or in AMI, or control a terminal.
    """
    if text.isprintable():  # nearly all are, and this is much faster
        return text
    return "".join(character if character.isprintable() else stand_in for character in text)


def harmless(text: str) -> str:
    """Return the beginning of a text, safe for one line of a log or an AMI header."""
    return printable(text, "?")[:MAX_REASON_CHARACTERS]


def did_you_mean(given: str, known: Iterable[str], shape: str = "{}", likeness: float = 0.6) -> str:
    """Return `; did you mean X?` for the known word that is nearest to a given one, or nothing.

    A word that differs only in case, or in - instead of _, is nearest; otherwise one that has
    nearly the same letters.

    Args:
        given: What was given.
        known: The words that would have been right.
        shape: How the word is shown.
        likeness: How similar the two must be; 1: equal.
    """
    by_form = {_form(word): word for word in known}
    form = _form(given)
    nearest = [form] if form in by_form else difflib.get_close_matches(form, by_form, 1, likeness)
    return f"; did you mean {shape.format(by_form[nearest[0]])}?" if nearest else ""


def _form(word: str) -> str:
    return word.strip().lower().replace("-", "_")


# --- Errors --------------------------------------------------------------------------------------


def why(exc: BaseException, authorities: str = "") -> str:
    """Return why something failed, as the end of a sentence that says what failed.

    The text is for people: it contains no error number, no class, no place in a library's source.
    It names the file that an OSError is about.

    Args:
        authorities: The option that names the trusted authorities; the text about an untrusted
            certificate says to add its authority there.
    """
    path = exc.filename if isinstance(exc, OSError) else None
    reason = reason_of(exc, authorities)
    if not isinstance(path, str | bytes) or not path:
        return reason
    return f"{printable(os.fsdecode(path), '?')}: {reason}"


def reason_of(exc: BaseException, authorities: str = "") -> str:
    """Return why something failed as `why` does, without the file: the caller names it itself."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _of_certificate(exc, authorities)
    if isinstance(exc, ssl.SSLError):
        return _of_tls(exc)
    if isinstance(exc, socket.gaierror):
        return _of_name(exc)
    if isinstance(exc, OSError):
        return _of_system(exc)
    if isinstance(exc, UnicodeError):
        return _of_characters(exc)
    if isinstance(exc, EOFError):
        return "the other side closed the connection"
    return plain(str(exc)) or "no reason was given"


def plain(text: str) -> str:
    """Return the text of an exception without the parts meant for programmers of its library."""
    text = re.sub(r"\[Errno (-?\d+)\] ?", "", text)
    return re.sub(r"\[[A-Z0-9]+(: ?[A-Z0-9_/]+)?\] | ?\(_ssl\.c:\d+\)", "", text).strip()


_ADVICE = {
    errno.ECONNREFUSED: "no program listens there",
    errno.ECONNRESET: "the other side broke it off",
    errno.EPIPE: "the other side closed the connection",
    errno.ETIMEDOUT: "nothing answers there: a firewall, or a machine that is off",
    errno.EHOSTUNREACH: "the machine is off, or a router has no route to it",
    errno.ENETUNREACH: "this machine has no route there: ip route",
    errno.EADDRNOTAVAIL: "this machine has no such address: ip addr",
    errno.EADDRINUSE: "another program listens there; as root, ss -ltnp shows which",
    errno.EMFILE: "of this process; see LimitNOFILE= of its service",
    errno.ENFILE: "of the whole machine",
    errno.ENOSPC: "df -h shows which disk is full",
    errno.EDQUOT: "the disk quota of the user is used up",
    errno.EROFS: "by its mount, or by the service's sandbox: ReadWritePaths= makes a path writable",
    errno.EISDIR: "expected a file",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "something with that name already exists",
    errno.ELOOP: "its symbolic links form a loop",
}
_NEED_A_RIGHT = frozenset({errno.EACCES, errno.EPERM})
# Texts that event loops put in place of the reason; the error number still identifies it.
_OF_EVENT_LOOPS = re.compile(r"Connect call failed|error while attempting to bind|\[Errno")


def _of_system(exc: OSError) -> str:
    code, text = exc.errno, exc.strerror or ""
    if isinstance(exc, TimeoutError) and not code:
        return plain(str(exc)) or "no answer in time"
    if not code:
        return _of_several(str(exc))
    if code > 0 and (not text or text == os.strerror(code) or _OF_EVENT_LOOPS.search(text)):
        return _of_number(code)
    return plain(text) or "no reason was given"


def _of_several(text: str) -> str:
    """Return the reasons why an attempt at several addresses failed; only their text is known."""
    codes = dict.fromkeys(int(code) for code in re.findall(r"\[Errno (\d+)\]", text))
    return "; ".join(map(_of_number, codes)) or plain(text) or "no reason was given"


def _of_number(code: int) -> str:
    advice = f"for the user {_user()}" if code in _NEED_A_RIGHT else _ADVICE.get(code)
    return os.strerror(code) + (f" ({advice})" if advice else "")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


_NAMES = {
    socket.EAI_NONAME: "no such host name: neither DNS nor /etc/hosts knows it",
    socket.EAI_NODATA: "the host name has no address in DNS",
    socket.EAI_AGAIN: "the host name cannot be looked up now: no name server answers",
    socket.EAI_FAIL: "the host name cannot be looked up: the name server refuses to answer",
}


def _of_name(exc: socket.gaierror) -> str:
    return _NAMES.get(exc.errno or 0) or plain(exc.strerror or str(exc))


def _of_characters(exc: UnicodeError) -> str:
    if "label" in str(exc):
        return "a part between its dots is empty or has more than 63 characters"
    if isinstance(exc, UnicodeDecodeError):
        line = exc.object.count(b"\n", 0, exc.start) + 1
        return f"line {line} is not UTF-8 (byte 0x{exc.object[exc.start]:02x}): save it as UTF-8"
    return plain(str(exc).rpartition("codec")[2]) if "codec" in str(exc) else plain(str(exc))


# Keys: the numbers in OpenSSL's x509_vfy.h.
_UNTRUSTED = {
    18: "is signed by itself, not by an authority that is trusted here",
    19: "comes from an authority that is not trusted here, and signed itself",
    20: "comes from an authority that is not trusted here",
    21: "comes from an authority that is not trusted here",
}
_CERTIFICATE = {
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired: the server needs a new one",
    23: "was revoked",
    26: "is not made for servers",
}
_OTHER_NAME = frozenset({62, 64})


def _of_certificate(exc: ssl.SSLCertVerificationError, authorities: str) -> str:
    code, message = getattr(exc, "verify_code", 0), getattr(exc, "verify_message", "")
    if code in _UNTRUSTED:
        added = f" to {authorities}" if authorities else ""
        return f"its certificate {_UNTRUSTED[code]}; if it is right, add that authority{added}"
    if code in _OTHER_NAME:
        name = re.search(r"'(.*)'", message)
        asked = name[1] if name else "the one that was asked for"
        return f"its certificate is for other names than {asked}: address it by one of those"
    return f"its certificate {_CERTIFICATE.get(code) or f'is not valid: {plain(message)}'}"


NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
"""Reasons of an SSLError that mean that the other side does not speak TLS."""
_NO_TLS = "the other side does not speak TLS on this port"
_NO_VERSION = "no common version of TLS; 1.2 or later is required"
_NO_CIPHER = "no common cipher"
_OURS_REFUSED = "the other side does not accept our certificate"
_TLS = {
    **dict.fromkeys(NOT_TLS, _NO_TLS),
    **dict.fromkeys(
        (
            *("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW"),
            *("WRONG_SSL_VERSION", "NO_PROTOCOLS_AVAILABLE"),
        ),
        _NO_VERSION,
    ),
    **dict.fromkeys(
        (
            *("SSLV3_ALERT_HANDSHAKE_FAILURE", "SSL/TLS_ALERT_HANDSHAKE_FAILURE"),
            *("NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE", "NO_SUITABLE_GROUPS"),
        ),
        _NO_CIPHER,
    ),
    **dict.fromkeys(
        (
            *("TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE"),
            *("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
            *("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_REVOKED"),
            *("SSL/TLS_ALERT_BAD_CERTIFICATE", "SSL/TLS_ALERT_CERTIFICATE_UNKNOWN"),
            "TLSV1_ALERT_ACCESS_DENIED",
        ),
        _OURS_REFUSED,
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side requires a client certificate",
    "TLSV1_UNRECOGNIZED_NAME": "the other side does not know the host name",
    "TLSV1_ALERT_UNRECOGNIZED_NAME": "the other side does not know the host name",
    "UNEXPECTED_EOF_WHILE_READING": "the other side closed the connection during TLS",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "it contains no PEM certificate",
    "NO_START_LINE": "it contains no PEM data",
    "BAD_DECRYPT": "the passphrase of the key is wrong",
}


def _of_tls(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _TLS["UNEXPECTED_EOF_WHILE_READING"]
    reason = getattr(exc, "reason", None) or ""
    said = reason.replace("_", " ").lower() or plain(exc.strerror or str(exc))
    return _TLS.get(reason) or f"TLS failed: {said or 'no reason was given'}"
