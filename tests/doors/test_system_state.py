"""The state of the daemon, as the HTTP interface tells it."""

from __future__ import annotations

import json
from types import SimpleNamespace

from audiofork.asterisk.versions import UNKNOWN
from audiofork.doors.http.sending import answer
from audiofork.doors.system_state import SystemState
from audiofork.errors import Refusal
from audiofork.forks.counters import Counters


def test_refusals_are_told_by_their_reasons() -> None:
    counters = Counters()
    counters.refusals.update({Refusal.CLUSTER: 3, Refusal.RATE: 1})
    ami = SimpleNamespace(version=UNKNOWN, is_up=False, status="", rtt_s=0.0)
    relay = SimpleNamespace(workers=[])
    state = SystemState(ami, None, relay, counters, lambda: 0, "run")  # type: ignore[arg-type]
    told = json.loads(answer(state.status()).body)  # type: ignore[arg-type]
    assert told["counters"]["refusals"] == {Refusal.CLUSTER: 3, Refusal.RATE: 1}
