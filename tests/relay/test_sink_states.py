import itertools

import pytest

from audiofork.errors import InvalidTransition
from audiofork.relay.sink_states import TRANSITIONS, SinkEvent, SinkState, diagram, next_state

EVERY_PAIR = list(itertools.product(SinkState, SinkEvent))
LEGAL = {
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


@pytest.mark.parametrize(
    ("state", "event"),
    EVERY_PAIR,
    ids=[f"{state.name}-{event.name}" for state, event in EVERY_PAIR],
)
def test_next_state_is_in_the_table_or_a_bug(state: SinkState, event: SinkEvent) -> None:
    expected = LEGAL.get((state.name, event.name))
    if expected is None:
        with pytest.raises(InvalidTransition, match=f"^{event.name} in state {state.name}$"):
            next_state(state, event)
    else:
        assert next_state(state, event).name == expected


def test_every_state_but_the_last_leads_to_the_end() -> None:
    reaching = {SinkState.ENDED}
    for _ in SinkState:
        reaching |= {state for (state, _), after in TRANSITIONS.items() if after in reaching}
    assert reaching == set(SinkState)


def test_diagram_has_each_transition_once() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = [line.strip() for line in lines[1:]]
    expected = [
        f"{state.name} --> {after.name}: {event.value}"
        for (state, event), after in TRANSITIONS.items()
    ]
    assert sorted(arrows) == sorted(["[*] --> CONNECTING", "ENDED --> [*]", *expected])
