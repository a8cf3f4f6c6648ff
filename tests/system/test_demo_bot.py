"""The demo of a bot as a newcomer runs it: real ears, a real voice, a real call."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiofork.commands.receiver import dbfs, peaks_of
from testbed.demo_bot import CUT_OFF_S, FAREWELL, INTERRUPTION, QUESTION
from tests.system.conftest import needs_pairs
from tests.system.test_demo import Demo, audio
from tests.system.test_live_transcription import needs_pocketsphinx

pytestmark = [pytest.mark.asterisk, needs_pocketsphinx]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path, "testbed.demo_bot")
    yield one
    one.process.terminate()
    one.process.communicate()


@needs_pairs()
def test_bot_understands_its_caller_and_is_cut_off_when_he_speaks(demo: Demo) -> None:
    output, _ = demo.process.communicate(timeout=300)
    assert demo.process.returncode == 0, output
    assert demo.processes() == []
    assert re.findall(r"asked: (.*)", output) == [QUESTION, INTERRUPTION, FAREWELL]
    last = re.search(r"the last sound of the bot came (\d+) ms after its caller broke in", output)
    assert last is not None
    assert int(last[1]) <= CUT_OFF_S * 1000
    assert re.search(r"bot +\d+\.\d s +-\d+\.\d dBFS #+", output)
    for name in ("caller", "bot"):
        channels, heard = audio(demo.folder, name)
        assert channels == 1
        assert dbfs(*peaks_of(heard, 1)) > -20


def test_demo_of_a_bot_that_is_interrupted_leaves_nothing_running(demo: Demo) -> None:
    demo.read_until("The caller says: ")
    assert len(demo.processes()) >= 5  # demo, Asterisk, daemon, receiver, bot
    demo.process.send_signal(signal.SIGTERM)
    output, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 130, output
    assert "Traceback" not in output
    assert demo.processes() == []
