"""State tables: transitions by state and event, and a diagram for docs/architecture.md."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar

from audiofork.errors import InvalidTransition

State = TypeVar("State", bound=enum.Enum)
Event = TypeVar("Event", bound=enum.Enum)


class StateTable(Generic[State, Event]):
    """All possible transitions; a pair of state and event that is not in the table is a bug.

    Args:
        transitions: The next state, by state and event.
        first: The initial state; `last`: the final one.
    """

    def __init__(
        self, transitions: Mapping[tuple[State, Event], State], *, first: State, last: State
    ) -> None:
        self.transitions = transitions
        self._first = first
        self._last = last

    def next_state(self, state: State, event: Event) -> State:
        """Return the next state.

        Raises:
            InvalidTransition: The table does not have the pair.
        """
        try:
            return self.transitions[state, event]
        except KeyError:
            raise InvalidTransition(f"{event.name} in state {state.name}") from None

    def diagram(self) -> str:
        """Return the table as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", f"    [*] --> {self._first.name}"]
        for (state, event), following in self.transitions.items():
            lines.append(f"    {state.name} --> {following.name}: {event.value}")
        lines.append(f"    {self._last.name} --> [*]")
        return "\n".join(lines) + "\n"
