"""Attacks the daemon, through a real Asterisk: `make attacks`.

python -m testbed.attacks [NAME ...]
"""

from __future__ import annotations

import sys

# Each of these adds its own to ATTACKS.
from testbed.attacks import (
    ATTACKS,
    callers,  # noqa: F401
    legs,  # noqa: F401
    names,  # noqa: F401
    servers,  # noqa: F401
    starts,  # noqa: F401
)

if __name__ == "__main__":
    sys.exit(ATTACKS.main(__doc__))
