"""Commands of the configuration, [post_process:NAME], after a fork of a real call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import no_channels, place_call, set_globals

pytestmark = pytest.mark.asterisk

HOSTILE = "a b; touch executed $(touch executed) `touch executed` ' -- #"


@pytest.fixture
async def show(
    asterisk: Asterisk, ami: AmiClient, recorder: Recorder, tmp_path: Path
) -> AsyncIterator[Path]:
    """A program that writes its arguments to a file that its first one names, a line each."""
    program = tmp_path / "show"
    program.write_text(f'#!/bin/sh\ncd {tmp_path}\nfile=$1\nshift\nprintf "%s\\n" "$@" >"$file"\n')
    program.chmod(0o755)
    await set_globals(ami, WSSERVER=recorder.url("/"), OPTIONS="D(in)", POST="@show", NOTE=HOSTILE)
    yield program
    await no_channels(ami)


def section(show: Path, file: str) -> str:
    return f'command = {show} {file} "note: ^{{NOTE}}" ^{{CALLERID(num)}}\n'


async def test_command_of_the_configuration_gets_values_and_is_read_anew(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder, show: Path
) -> None:
    with Daemon(asterisk, {"post_process:show": section(show, "one")}) as daemon:
        for number, file in enumerate(("one", "two"), 1):
            position = len(ami.events)
            target = await place_call(ami, caller, "post")
            target.call.talk()
            await ami.wait_user_event("AudioForkStarted", after=position)
            await target.call.hangup()
            await ami.wait_user_event("AudioForkStopped", PostProcessStatus="0", after=position)
            assert (show.parent / file).read_text().splitlines() == [f"note: {HOSTILE}", "caller"]
            text = daemon.config.read_text().replace(" one ", " two ")
            daemon.config.write_text(text)
            await daemon.reload("reloaded", times=number)
    assert not (show.parent / "executed").exists()
