"""The fixtures of the control plane."""

from tests.control_plane import asterisk, clock, link, rig, run_ami

__all__ = ["asterisk", "clock", "link", "rig", "run_ami"]
