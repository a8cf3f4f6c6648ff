"""Lets hostile callers, servers and AMI users attack the real parts: `make attacks`.

Each attack tells what it did, what the good forks lost, and how the daemon stood it. All that is
connected to is on loopback.
"""

from testbed.crowd import LISTEN
from testbed.measuring import Measurements

ATTACKS = Measurements("attack", LISTEN)
"""All attacks: each module of this package adds its own."""
