"""The fixtures of the control plane.

Scripts from when the tests on a real Asterisk lay here still find what they use.
"""

from tests.control_plane import asterisk, clock, link, rig, run_ami
from tests.system.conftest import (
    DIALPLAN,
    Target,
    channels,
    place_call,
    set_globals,
    start_fork,
    write_slin,
)

__all__ = ["asterisk", "clock", "link", "rig", "run_ami"]
__all__ += ["DIALPLAN", "Target", "channels", "place_call", "set_globals", "start_fork"]
__all__ += ["write_slin"]
