"""Attacks the daemon, through a real Asterisk: `make attacks`.

python -m testbed.attacks [NAME ...]
"""

from __future__ import annotations

import sys

import testbed.attacks.starts  # noqa: F401 (adds its attacks)
from testbed.attacks import ATTACKS

if __name__ == "__main__":
    sys.exit(ATTACKS.main(__doc__))
