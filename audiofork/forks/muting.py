"""Mutes the forks that a request names: all of them, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from audiofork.errors import RequestRefused
from audiofork.forks.events import Emit, Muted
from audiofork.forks.fork import Fork, record, why_not_muted
from audiofork.forks.journal import Journal
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.requests import MuteFork
from audiofork.link.messages import SendCommand, SetMute


class Muting:
    """Mutes and unmutes forks; owned by the registry of forks.

    Args:
        journal: Keeps which sides are muted, for the next start of the daemon.
        send: Sends a command to the relay.
        emit: Called with each event.
    """

    def __init__(self, journal: Journal, send: SendCommand, emit: Emit) -> None:
        self._journal = journal
        self._send = send
        self._emit = emit

    async def mute_all(self, forks: Iterable[Fork], request: MuteFork) -> list[str]:
        """Mute all these forks, or none if one cannot be muted.

        The requester must be able to rely on the answer: a party that should be muted must not be
        heard.

        Returns:
            The ids of the forks that have not ended meanwhile.

        Raises:
            RequestRefused: A fork cannot be muted like that, or all have ended.
        """
        await asyncio.gather(*(fork.progress.chosen.wait() for fork in forks))
        forks = [fork for fork in forks if fork.state is not ForkState.ENDED]
        if not forks:
            raise RequestRefused("No such fork")
        for fork in forks:
            if why := why_not_muted(fork, *_muted_by(request, fork)):
                raise RequestRefused(f"AudioForkMute: {why}")
        for fork in forks:
            self._mute(fork, *_muted_by(request, fork))
        return [fork.id for fork in forks]

    def _mute(self, fork: Fork, mute_in: bool, mute_out: bool) -> None:
        fork.mute(mute_in, mute_out)
        if fork.state is not ForkState.REQUESTED:  # else Starting sends it after ForkSpec
            self._send(SetMute(fork.id, fork.mute_in, fork.mute_out))
            record(fork, self._journal)
            self._emit(Muted(fork.info, mute_in, mute_out))


def _muted_by(request: MuteFork, fork: Fork) -> tuple[bool, bool]:
    """Return whether in and whether out of a fork will be muted after a request."""
    return (
        fork.mute_in if request.mute_in is None else request.mute_in,
        fork.mute_out if request.mute_out is None else request.mute_out,
    )
