"""The fixtures of the control plane, and of the forks of two legs."""

import pytest

from audiofork.link.messages import LegPart
from tests.control_plane import Rig, asterisk, clock, link, rig, run_ami

__all__ = ["asterisk", "clock", "link", "rig", "run_ami"]


@pytest.fixture
def two(rig: Rig) -> Rig:
    """The rig with a tap that has a leg for each side."""
    rig.taps.parts = (LegPart.IN, LegPart.OUT)
    rig.tap.early_hangup_detail = "Asterisk ended the leg before it connected"
    rig.taps.sample_rate = 16000
    return rig
