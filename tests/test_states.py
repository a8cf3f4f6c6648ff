"""The tables of a fork's life and of a sink's."""

from __future__ import annotations

import enum
import itertools
from typing import Any

import pytest

from audiofork.errors import InvalidTransition
from audiofork.forks.lifecycle import FORK_LIFE, ForkEvent, ForkState
from audiofork.relay.sink_states import SINK_LIFE, SinkEvent, SinkState
from audiofork.states import StateTable

Table = StateTable[Any, Any]

LEGAL_OF_A_FORK: dict[tuple[str, str], str] = {
    ("REQUESTED", "RESOLVED"): "ATTACHING",
    ("REQUESTED", "REFUSED"): "ENDED",
    ("ATTACHING", "FIRST_FRAME"): "STREAMING",
    ("ATTACHING", "LOST"): "ATTACHING",
    ("ATTACHING", "END"): "ENDED",
    ("STREAMING", "LOST"): "RECONNECTING",
    ("STREAMING", "END"): "ENDED",
    ("RECONNECTING", "LOST"): "RECONNECTING",
    ("RECONNECTING", "BACK"): "STREAMING",
    ("RECONNECTING", "END"): "ENDED",
}
LEGAL_OF_A_SINK: dict[tuple[str, str], str] = {
    ("CONNECTING", "ACCEPTED"): "OPEN",
    ("CONNECTING", "RETURNED"): "PROVING",
    ("CONNECTING", "FAILED"): "AWAY",
    ("CONNECTING", "END"): "ENDED",
    ("PROVING", "PROVED"): "OPEN",
    ("PROVING", "LOST"): "AWAY",
    ("PROVING", "END"): "ENDED",
    ("OPEN", "LOST"): "AWAY",
    ("OPEN", "END"): "ENDED",
    ("AWAY", "DUE"): "CONNECTING",
    ("AWAY", "END"): "ENDED",
}
PAIRS = [
    *((FORK_LIFE, LEGAL_OF_A_FORK, *pair) for pair in itertools.product(ForkState, ForkEvent)),
    *((SINK_LIFE, LEGAL_OF_A_SINK, *pair) for pair in itertools.product(SinkState, SinkEvent)),
]


@pytest.mark.parametrize(
    ("table", "legal", "state", "event"),
    PAIRS,
    ids=[f"{state}-{event.name}" for _, _, state, event in PAIRS],
)
def test_next_state_is_in_the_table_or_a_bug(
    table: Table, legal: dict[tuple[str, str], str], state: enum.Enum, event: enum.Enum
) -> None:
    expected = legal.get((state.name, event.name))
    if expected is None:
        with pytest.raises(InvalidTransition, match=f"^{event.name} in state {state.name}$"):
            table.next_state(state, event)
    else:
        assert table.next_state(state, event).name == expected


@pytest.mark.parametrize(
    ("table", "states"), [(FORK_LIFE, ForkState), (SINK_LIFE, SinkState)], ids=["fork", "sink"]
)
def test_every_state_but_the_last_leads_to_the_end(table: Table, states: type[enum.Enum]) -> None:
    reaching = {states["ENDED"]}
    for _ in states:
        reaching |= {state for (state, _), after in table.transitions.items() if after in reaching}
    assert reaching == set(states)


@pytest.mark.parametrize(
    ("table", "first"), [(FORK_LIFE, "REQUESTED"), (SINK_LIFE, "CONNECTING")], ids=["fork", "sink"]
)
def test_diagram_has_each_transition_once(table: Table, first: str) -> None:
    lines = table.diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = [line.strip() for line in lines[1:]]
    expected = [
        f"{state.name} --> {after.name}: {event.value}"
        for (state, event), after in table.transitions.items()
    ]
    assert sorted(arrows) == sorted([f"[*] --> {first}", "ENDED --> [*]", *expected])
