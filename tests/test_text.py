"""Texts from outside, and errors, as people see them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from audiofork.text import did_you_mean, harmless, plain, reason_of, why

# What only programmers of a library can use: numbers of errors, places in sources, classes.
NOT_FOR_PEOPLE = re.compile(
    r"\[?Errno|_ssl\.c|\[[A-Z0-9]+[:\]]|[A-Z0-9]+_[A-Z0-9_]+|\w(Error|Exception)\b|\w+\(.*'\)|<\w+"
)


def is_for_people(text: str) -> bool:
    return bool(text) and text.isprintable() and not NOT_FOR_PEOPLE.search(text)


# --- Every kind ----------------------------------------------------------------------------------


# A test for each would be a sixth of all tests.
CODES = sorted(errno.errorcode)


def test_every_error_of_the_system_is_told_in_words() -> None:
    for code in CODES:
        text = reason_of(OSError(code, os.strerror(code)))
        assert text.startswith(os.strerror(code))
        assert is_for_people(text), code
        assert text == reason_of(OSError(code, f"[Errno {code}] Connect call failed ('::1', 1)"))


def test_every_error_of_a_file_names_it_once() -> None:
    for code in CODES:
        text = why(OSError(code, os.strerror(code), "/a/b.pem"))
        assert text.startswith(f"/a/b.pem: {os.strerror(code)}")
        assert text.count("/a/b.pem") == 1
        assert is_for_people(text), code


def tls_error(reason: str | None, text: str, kind: type[ssl.SSLError] = ssl.SSLError) -> Any:
    error = kind(1, text)
    error.reason = reason  # type: ignore[assignment]
    return error


# All that Python knows of OpenSSL's.
REASONS = (
    sorted(vars(ssl)["_ssl"].err_names_to_codes)
    if hasattr(vars(ssl).get("_ssl"), "err_names_to_codes")
    else ["WRONG_VERSION_NUMBER", "TLSV1_ALERT_UNKNOWN_CA", "NO_START_LINE"]
)


def test_every_error_of_tls_is_told_in_words() -> None:
    texts = {
        reason: why(
            tls_error(reason, f"[SSL: {reason}] {reason.lower().replace('_', ' ')} (_ssl.c:1)")
        )
        for reason in REASONS
    }
    assert [reason for reason, text in texts.items() if not is_for_people(text)] == []


@pytest.mark.parametrize("code", range(80))
def test_every_fault_of_a_certificate_is_told_in_words_and_what_to_do_where_it_is_not_trusted(
    code: int,
) -> None:
    error = tls_error(
        "CERTIFICATE_VERIFY_FAILED",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: x (_ssl.c:1006)",
        ssl.SSLCertVerificationError,
    )
    error.verify_code, error.verify_message = code, "it is not valid for 'a.example'."
    text = why(error, "[ari] ca_file")
    assert is_for_people(text)
    assert text.startswith("its certificate ")
    assert ("[ari] ca_file" in text) == (code in (18, 19, 20, 21))


@pytest.mark.parametrize(
    "code", [getattr(socket, name) for name in dir(socket) if name.startswith("EAI_")]
)
def test_every_failure_to_look_up_a_name_is_told_in_words(code: int) -> None:
    assert is_for_people(why(socket.gaierror(code, "Name or service not known")))


@pytest.mark.parametrize(
    "exc",
    [
        TimeoutError(),
        EOFError(),
        ConnectionResetError(),
        OSError(),
        OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 113] x"),
        ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)"),
        ssl.SSLError("[SSL] PEM lib (_ssl.c:3905)"),
        UnicodeError("encoding with 'idna' codec failed (UnicodeError: label empty or too long)"),
        UnicodeDecodeError("utf-8", b"a\n\xfcb", 2, 3, "invalid start byte"),
        ValueError(),
        RuntimeError("can't start new thread"),
    ],
    ids=repr,
)
def test_every_other_kind_is_told_in_words(exc: Exception) -> None:
    assert is_for_people(why(exc))


def test_several_addresses_that_fail_are_told_by_their_reasons_each_once() -> None:
    text = "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] x, "
    assert why(OSError(text + "[Errno 101] y")) == (
        "Connection refused (no program listens there); "
        "Network is unreachable (this machine has no route there: ip route)"
    )


def test_text_that_was_made_for_people_stays() -> None:
    assert why(OSError(errno.EFBIG, "larger than 1 MiB", "/a")) == "/a: larger than 1 MiB"
    assert why(OSError(errno.EACCES, "not below /etc ([security] tls_dir)")) == (
        "not below /etc ([security] tls_dir)"
    )
    assert plain("[ari] url, [::1]:80 and [post_process:x] stay") == (
        "[ari] url, [::1]:80 and [post_process:x] stay"
    )


def test_path_that_commands_a_terminal_is_shown_harmless() -> None:
    assert why(OSError(2, "No such file or directory", "/a\x1b[2J\n")) == (
        "/a?[2J?: No such file or directory"
    )


def test_character_that_is_not_utf_8_is_told_with_its_line() -> None:
    exc = UnicodeDecodeError("utf-8", b"a\n\nb\xfc", 4, 5, "unexpected end of data")
    assert why(exc) == "line 3 is not UTF-8 (byte 0xfc): save it as UTF-8"


# --- Real ones -----------------------------------------------------------------------------------


def opened(path: Path) -> None:
    path.read_bytes()


REAL_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: opened(folder / "none"), "none: No such file or directory"),
    "folder": (opened, ": Is a directory (expected a file)"),
    "below a file": (
        lambda folder: opened(folder / "file" / "x"),
        "file/x: Not a directory (a part of the path is a file)",
    ),
    "circle of links": (lambda folder: opened(folder / "loop"), "(its symbolic links form a loop)"),
    "full disk": (lambda _: Path("/dev/full").write_text("x"), "No space left on device (df -h"),
    "there already": (lambda folder: (folder / "file").mkdir(), "File exists (something with that"),
}


@pytest.mark.parametrize(("act", "says"), REAL_FILES.values(), ids=REAL_FILES)
def test_real_failure_of_a_file_is_told_in_words(
    tmp_path: Path, act: Callable[[Path], object], says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r".*") as caught:
        act(tmp_path)
    assert says in why(caught.value)
    assert is_for_people(why(caught.value))


def test_file_that_the_user_may_not_read_names_both(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o000)
    (tmp_path / "secret").chmod(0o000)
    tmp_path.chmod(0o755)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:  # root may read all, so as nobody
        with contextlib.suppress(BaseException):
            os.setegid(65534)
            os.seteuid(65534)
            try:
                os.open(tmp_path / "secret", os.O_RDONLY)
            except OSError as exc:
                os.write(writing, why(exc).rpartition("/")[2].encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as said:
        text = said.read().decode()
    assert text in ("secret: Permission denied (for the user nobody)", "")
    assert text or os.geteuid() != 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_real_refusal_of_either_loop_is_told_alike(loop: str, host: str) -> None:
    async def connect() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        await asyncio.open_connection(host, port)

    with pytest.raises(OSError, match=r".*") as caught:
        (uvloop if loop == "uvloop" else asyncio).run(connect())
    assert why(caught.value).startswith("Connection refused (no program listens there)")
    assert is_for_people(why(caught.value))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_real_port_in_use_of_either_loop_is_told_alike(loop: str) -> None:
    async def listen() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            await asyncio.start_server(lambda *_: None, *taken.getsockname())

    with pytest.raises(OSError, match=r".*") as caught:
        (uvloop if loop == "uvloop" else asyncio).run(listen())
    assert why(caught.value).startswith("Address already in use (another program listens there; ")
    assert is_for_people(why(caught.value))


def test_real_host_name_that_is_none_is_told_in_words() -> None:
    with pytest.raises(UnicodeError) as caught:
        f"{'a' * 64}.example".encode("idna")
    assert is_for_people(why(caught.value))


# --- Did you mean --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("secrt", "secret"),
        ("SECRET", "secret"),
        ("secret-file", "secret_file"),
        (" url ", "url"),
        ("ulr", "url"),
        ("zebra", ""),
        ("", ""),
    ],
)
def test_nearest_word_is_proposed_or_none(given: str, nearest: str) -> None:
    known = ["secret", "secret_file", "url", "host"]
    assert did_you_mean(given, known) == (f"; did you mean {nearest}?" if nearest else "")


def test_harmless_is_one_short_line() -> None:
    assert harmless("a\r\nb\x1b[0m" + "x" * 500) == "a??b?[0m" + "x" * 232
