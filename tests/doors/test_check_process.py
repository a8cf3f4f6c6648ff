"""A check that the daemon has done by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from audiofork.doors import check_process
from audiofork.doors.check_process import BY_THE_DAEMON, CheckProcess
from audiofork.errors import DaemonBusy, RequestRefused


def checking(path: Path, code: str) -> CheckProcess:
    """Return what runs a piece of Python as the check."""
    return CheckProcess(path, (sys.executable, "-c", f"import os, sys, time\n{code}"))


async def answers(check: CheckProcess, **fields: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        return [part async for part in check.run(fields)]


async def first_of(parts: AsyncGenerator[dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(20):
        return await anext(parts)


async def test_each_line_comes_and_then_the_exit_code(tmp_path: Path) -> None:
    code = "print('ok    login', flush=True); print('audiofork: b\\xf6', file=sys.stderr)\n"
    got = await answers(checking(tmp_path / "x.ini", f"{code}sys.exit(4)"))
    assert got == [
        {"line": BY_THE_DAEMON},
        {"line": "ok    login"},
        {"line": "audiofork: b\u00f6"},
        {"exit_code": 4},
    ]


async def test_line_comes_before_the_check_has_ended(tmp_path: Path) -> None:
    check = checking(tmp_path / "x.ini", "print('one', flush=True); time.sleep(60)")
    async with contextlib.aclosing(check.run({})) as parts:
        assert await first_of(parts) == {"line": BY_THE_DAEMON}
        assert await first_of(parts) == {"line": "one"}


async def test_check_is_of_the_daemons_own_file_from_here(tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    got = await answers(checking(path, "print(sys.argv[1:])"))
    assert got[1] == {"line": f"['-c', '{path}']"}
    got = await answers(checking(path, "print(sys.argv[1:])"), taps="yes", config=str(path))
    assert got == [{"line": f"['--taps', '-c', '{path}']"}, {"exit_code": 0}]


async def test_check_of_one_asterisk_is_asked_for_by_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    got = await answers(checking(path, "print(sys.argv[1:])"), only="pbx-b")
    assert got[1] == {"line": f"['--asterisk=pbx-b', '-c', '{path}']"}
    with pytest.raises(RequestRefused, match="Only: expected the name of an Asterisk"):
        await answers(checking(path, "print('never')"), only="pbx b")


async def test_daemon_of_another_configuration_refuses_and_says_which_it_has(
    tmp_path: Path,
) -> None:
    check = checking(tmp_path / "x.ini", "print('never')")
    with pytest.raises(
        RequestRefused, match=f"^it runs with another configuration, {tmp_path}/x.ini$"
    ):
        await answers(check, config=str(tmp_path / "y.ini"))


async def test_file_is_known_by_the_name_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link.ini").symlink_to(tmp_path / "x.ini")
    check = checking(tmp_path / "link.ini", "")
    assert await answers(check, config=str(tmp_path / "x.ini"))
    assert await answers(check, config=str(tmp_path / "link.ini"))


async def test_second_check_at_once_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    check = checking(tmp_path / "x.ini", "print('one', flush=True); time.sleep(60)")
    async with contextlib.aclosing(check.run({})) as parts:
        await first_of(parts)
        with pytest.raises(DaemonBusy, match="ask again"):
            await answers(check)
    async with contextlib.aclosing(check.run({})) as parts:
        assert await first_of(parts) == {"line": BY_THE_DAEMON}


@pytest.mark.parametrize("deaf", [False, True])
async def test_check_that_nobody_waits_for_is_ended(
    tmp_path: Path, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First as Ctrl-C does, so that it hangs up its legs."""
    monkeypatch.setattr(check_process, "END_TIMEOUT_S", 0.2 if deaf else 20.0)
    ended = tmp_path / "ended"
    first = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        if deaf
        else f"import signal\ndef end(*_):\n open('{ended}', 'w'); sys.exit()\n"
        "signal.signal(signal.SIGINT, end)\n"
    )
    # Short sleeps: a signal that comes just before one is seen after it.
    rest = "print(os.getpid(), flush=True)\nfor _ in range(1200): time.sleep(0.05)"
    check = checking(tmp_path / "x.ini", first + rest)
    async with contextlib.aclosing(check.run({})) as parts:
        await first_of(parts)
        pid = int((await first_of(parts))["line"])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert ended.exists() == (not deaf)


async def test_check_that_says_nothing_more_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_process, "LINE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(check_process, "END_TIMEOUT_S", 0.1)
    with pytest.raises(TimeoutError):
        await answers(checking(tmp_path / "x.ini", "time.sleep(60)"))


async def test_check_has_the_daemons_environment_but_what_systemd_tells_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    names = "['CREDENTIALS_DIRECTORY', 'NOTIFY_SOCKET']"
    code = f"print([os.environ.get(name) for name in {names}])"
    got = await answers(checking(tmp_path / "x.ini", code))
    assert got[1] == {"line": "['/run/credentials/x', None]"}
