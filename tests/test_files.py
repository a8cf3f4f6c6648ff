"""Files that are read, and those that are not."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiofork.files import MAX_FILE_BYTES, NamedFile, path_below, read_below, read_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file in it, beside one that nobody may ask for."""
    inside = tmp_path / "tls"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.pem").write_text("inside")
    (inside / "sub" / "b.pem").write_text("below")
    (tmp_path / "secret").write_text("outside")
    return inside


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        yield tmp_path / "socket"


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_regular_file_is_read_to_the_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MAX_FILE_BYTES)
    assert read_file(path) == b"x" * MAX_FILE_BYTES
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match=r"larger than 1 MiB: '.*/file'"):
        read_file(path)


def test_file_without_an_end_is_no_trouble() -> None:
    """Files of /proc have a size of 0, and those of the kernel's log no end."""
    assert read_file("/proc/self/status")
    with pytest.raises(OSError, match="'/proc/kmsg'|temporarily unavailable"):
        read_file("/proc/kmsg")


@pytest.mark.parametrize("device", ["/dev/ptmx", "/dev/zero", "/dev/null", "/dev/tty", "/dev"])
def test_device_or_folder_is_not_even_opened(device: str) -> None:
    terminals = set(os.listdir("/dev/pts"))
    with pytest.raises(OSError, match=f"(not a regular file|a folder, not a file): '{device}'"):
        read_file(device)
    assert set(os.listdir("/dev/pts")) == terminals


def test_pipe_and_socket_are_refused_and_not_waited_for(tmp_path: Path, bound: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", bound):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        read_file(tmp_path / "missing")


@pytest.mark.parametrize("path", ["a.pem", "./a.pem", "{}/a.pem", "{}//./a.pem"])
def test_file_below_the_folder_is_read(folder: Path, path: str) -> None:
    assert read_below(str(folder), path.format(folder)) == b"inside"
    assert read_below(f"{folder}/", path.format(folder)) == b"inside"
    assert NamedFile(path.format(folder), str(folder)).read() == b"inside"


def test_file_in_a_folder_below_is_read(folder: Path) -> None:
    assert read_below(str(folder), "sub/b.pem") == b"below"


OUTSIDE = [
    *("/etc/passwd", "/nowhere", "../secret", "../missing", "sub/../a.pem", "sub/../../secret"),
    *("{}", "{}/", ".", "", "/", "{}/../secret", "{}x/a.pem", "a.pem\0", "..", "sub/.."),
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_path_outside_is_refused_alike_whether_it_is_there_or_not(folder: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        path_below(str(folder), path.format(folder))
    with pytest.raises(PermissionError) as caught:
        read_below(str(folder), path.format(folder))
    assert caught.value.strerror == f"not a file below {folder} ([security] tls_dir)"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*"/.a\0é~", "..", "a.pem", "sub", "\ud800", "x" * 300])))
def test_any_path_is_read_below_the_folder_or_an_os_error(folder: Path, parts: list[str]) -> None:
    for path in ("".join(parts), f"{folder}/{''.join(parts)}"):
        with contextlib.suppress(OSError):
            assert read_below(str(folder), path) in (b"inside", b"below")


@pytest.mark.parametrize("target", ["../secret", "../missing", "/etc/passwd", "/dev/ptmx", "/x"])
@pytest.mark.parametrize("where", ["link.pem", "sub/link.pem", "way/passwd"])
def test_link_that_leads_out_is_refused_alike(folder: Path, target: str, where: str) -> None:
    (folder / "link.pem").symlink_to(target)
    (folder / "sub" / "link.pem").symlink_to(folder / "link.pem")
    (folder / "way").symlink_to("/etc")
    with pytest.raises(PermissionError) as caught:
        read_below(str(folder), where)
    assert caught.value.strerror == f"not a file below {folder} ([security] tls_dir)"


def test_link_that_stays_inside_is_followed(folder: Path, tmp_path: Path) -> None:
    """As those that a mounted secret of Kubernetes consists of."""
    (folder / "..2026").mkdir()
    (folder / "..2026" / "ca.pem").write_text("mounted")
    (folder / "..data").symlink_to("..2026")
    (folder / "ca.pem").symlink_to("..data/ca.pem")
    (tmp_path / "alias").symlink_to(folder)
    assert read_below(str(folder), "ca.pem") == b"mounted"
    assert read_below(str(tmp_path / "alias"), "ca.pem") == b"mounted"
    assert read_below(str(tmp_path / "alias"), f"{tmp_path}/alias/ca.pem") == b"mounted"


def test_link_that_comes_while_the_path_is_walked_is_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath

    def then_exchanged(path: str) -> str:
        found = real(path)
        if found.endswith("b.pem"):
            (folder / "sub" / "b.pem").unlink()
            (folder / "sub" / "b.pem").symlink_to("../../secret")
        return found

    monkeypatch.setattr("audiofork.files.os.path.realpath", then_exchanged)
    with pytest.raises(OSError, match="not a regular file"):
        read_below(str(folder), "sub/b.pem")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("missing.pem", "No such file or directory: 'missing.pem'"),
        ("missing/a.pem", "No such file or directory: 'missing/a.pem'"),
        ("a.pem/b", "Not a directory: 'a.pem/b'"),
        ("sub", "a folder, not a file: 'sub'"),
    ],
)
def test_what_is_wrong_inside_is_told(folder: Path, path: str, text: str) -> None:
    with pytest.raises(OSError, match=text):
        read_below(str(folder), path)


def test_no_folder_holds_nothing(folder: Path) -> None:
    with pytest.raises(PermissionError) as caught:
        read_below("", str(folder / "a.pem"))
    assert caught.value.strerror == "[security] tls_dir lets requests name no files"


def test_folder_that_is_not_there_is_told_as_the_file_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_below(str(tmp_path / "none"), "a.pem")
