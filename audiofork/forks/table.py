"""The table of all forks, by id and by channel."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterator

from audiofork.forks.fork import Fork
from audiofork.forks.requests import is_beginning_of_id


class ForkTable:
    """All forks; owned by the registry, which shares it with the parts that start and end forks.

    A fork can be found by its id from its request on, and by its channel after the look-up.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Fork] = {}
        self._sought: set[Fork] = set()
        self._by_channel: dict[str, set[Fork]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Fork]:
        """Iterate over a copy of the table, oldest first; forks may end meanwhile."""
        return iter(list(self._by_id.values()))

    def __contains__(self, fork: object) -> bool:
        return isinstance(fork, Fork) and fork.id in self._by_id

    def get(self, fork_id: str) -> Fork | None:
        """Return the fork with this id; None if there is none."""
        return self._by_id.get(fork_id)

    def like(self, given: str) -> Fork | None:
        """Return the fork whose id begins with a text, or nearly matches it; None if none does.

        A text with fewer characters than the log shows of an id matches nothing.
        """
        if is_beginning_of_id(given):
            begins = given.lower()
            return next((fork for fork in self if fork.id.startswith(begins)), None)
        near = difflib.get_close_matches(given, self._by_id, 1, 0.9)
        return self._by_id[near[0]] if near else None

    def on_channel(self, uniqueid: str) -> list[Fork]:
        """Return the forks of a channel."""
        return list(self._by_channel.get(uniqueid, ()))

    @property
    def bound(self) -> int:
        """How many forks have a channel that was looked up."""
        return len(self._by_id) - len(self._sought)

    @property
    def sought(self) -> list[Fork]:
        """The other forks, whose channel is not known yet."""
        return list(self._sought)

    @property
    def uniqueids(self) -> list[str]:
        """The uniqueids of the channels that have forks."""
        return list(self._by_channel)

    def add(self, fork: Fork) -> None:
        """Add a fork by its id only."""
        self._by_id[fork.id] = fork
        self._sought.add(fork)
        self._empty.clear()

    def bind(self, fork: Fork) -> None:
        """Add it by its channel, with the uniqueid that Asterisk has reported."""
        self._by_channel.setdefault(fork.uniqueid, set()).add(fork)
        self._sought.discard(fork)

    def remove(self, fork: Fork) -> None:
        """Remove a fork that is in the table."""
        del self._by_id[fork.id]
        self._sought.discard(fork)
        on_channel = self._by_channel.get(fork.uniqueid, set())
        on_channel.discard(fork)
        if not on_channel:
            self._by_channel.pop(fork.uniqueid, None)
        if not self._by_id:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until there is no fork."""
        await self._empty.wait()
