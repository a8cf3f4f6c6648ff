"""Lets hostile callers, servers and AMI users attack the real parts: `make attacks`.

Each attack reports what it did, what the good forks lost, and how the daemon coped. All connections
are on loopback.
"""

from testbed.crowd import LISTEN
from testbed.measuring import Measurements

ATTACKS = Measurements("attack", LISTEN)
"""All attacks: each module of this package adds its own."""
