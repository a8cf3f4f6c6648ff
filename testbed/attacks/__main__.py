"""Attacks the daemon, through a real Asterisk: `make attacks`.

python -m testbed.attacks [NAME ...]
"""

from __future__ import annotations

import sys

from testbed.attacks import (
    ATTACKS,
    servers,  # noqa: F401 - adds its attacks
)

if __name__ == "__main__":
    sys.exit(ATTACKS.main(__doc__))
