"""The command line: what is said, and the exit code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from audiofork import __version__
from audiofork.cli import main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "audiofork.ini"


def test_version_is_told() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"audiofork, version {__version__}\n")


def test_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["fly"]).exit_code == 2


def test_run_without_its_configuration_exits_with_3(config: Path) -> None:
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert "No such file" in result.output


def test_run_with_a_bad_option_names_the_line_and_exits_with_3(config: Path) -> None:
    config.write_text("[asterisk]\nhost = localhost\nprot = 5038\n")
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert f"{config}:3: unknown option prot in [asterisk]" in result.output


def test_run_with_unusable_authorities_exits_with_3(config: Path, tmp_path: Path) -> None:
    config.write_text(f"[websocket]\nca_list_file = {tmp_path}/none.pem\n")
    result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 3
    assert "ca_list_file" in result.output


def test_run_on_a_taken_port_says_so_and_exits_with_1(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(f"[audiosocket]\nlisten = {address}\n")
        result = CliRunner().invoke(main, ["run", "-c", str(config)])
    assert result.exit_code == 1
    assert f"cannot listen on {address}" in result.output
