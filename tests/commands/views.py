"""A fork as the commands that list and start forks are tested with."""

from __future__ import annotations

from audiofork.forks.view import ForkView

FORK_ID = "3f2a91c0-0000-4000-8000-000000000001"
VIEW = ForkView(
    id=FORK_ID,
    channel="PJSIP/100-0000002a",
    uniqueid="1700000000.42",
    url="wss://example.org/live?token=secret",
    direction="stereo",
    state="streaming",
    age_s=3723.9,
    frames_in=1000,
    frames_sent=990,
    frames_dropped=0,
    muted="",
    tap="snoop",
    sample_rate=16000,
)
