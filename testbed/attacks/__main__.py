"""Attacks the daemon, through a real Asterisk: `make attacks`.

python -m testbed.attacks [NAME ...] [--modes MODE,MODE...]
"""

from __future__ import annotations

import argparse
import sys

# Each of these adds its own to ATTACKS.
from testbed.attacks import (
    ATTACKS,
    callers,  # noqa: F401
    http,  # noqa: F401
    legs,  # noqa: F401
    names,  # noqa: F401
    servers,
    starts,  # noqa: F401
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--modes",
        type=lambda text: text.split(","),
        default=servers.MODES,
        help="what the server of the floods does: " + ", ".join(servers.MODES),
    )
    sys.exit(ATTACKS.main(__doc__, parser))
