"""The AudioSocket server: accepts legs from Asterisk and gives each to its session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable

from audiofork.addresses import IPNetwork, is_among, listen_tcp
from audiofork.config import Address
from audiofork.link.messages import StrangersRefused
from audiofork.log import CounterLine
from audiofork.relay.leg import LET_GO_S, Leg, LegOwner
from audiofork.relay.leg_uuids import LegUuids
from audiofork.relay.read_batching import Patience
from audiofork.relay.tcp import Watched, poller

log = logging.getLogger(__name__)

# Most connections without a UUID. Asterisk sends its UUID within milliseconds.
MAX_STRANGERS = 1000
# Time between two reports of wrong UUIDs: a flood of them must not become a flood of reports. It
# is a little more than the 1 s between two log lines, so that each report gets its line.
REPORT_INTERVAL_S = 1.05
# Most connections that wait to be accepted.
MOST_UNACCEPTED = 1024
MOST_ACCEPTED_AT_ONCE = 64
# Time until it is tried again, when no more could be accepted.
ACCEPT_AGAIN_S = 0.1
# How often it is seen to that legs delay their acknowledgements.
ACKS_INTERVAL_S = 5.0


class Listener:
    """Accepts connections that present an issued UUID: each UUID once, in time.

    A UUID that is presented twice has leaked: both connections are closed then.

    Args:
        report: Called with the number of wrong UUIDs, at most once in REPORT_INTERVAL_S.
        allow: The networks that connections may come from; empty for any.

    Attributes:
        refused: Counts and logs the connections that were refused.
    """

    def __init__(
        self, report: Callable[[StrangersRefused], None], allow: tuple[IPNetwork, ...] = ()
    ) -> None:
        self.refused = CounterLine(log, "AudioSocket connections closed")
        self._allow = allow
        self._uuids: LegUuids[LegOwner, Leg] = LegUuids()
        self._wrong_uuids = _WrongUuids(report)
        self._legs: set[Leg] = set()
        self._all_gone = asyncio.Event()  # no connection is left
        self._all_gone.set()
        self._strangers: dict[Leg, None] = {}  # legs that have sent no UUID yet, oldest first
        self._patiences: dict[int, Patience] = {}  # by the milliseconds of a batch
        self._acks_timer: asyncio.TimerHandle | None = None  # while there is a leg
        self._unaccepted = CounterLine(log, "AudioSocket connections have to wait")
        self._doors: list[_Door] = []

    async def start(self, listen: Address) -> Address:
        """Listen; return the address. The kernel chooses the port if that of `listen` is 0.

        Raises:
            OSError: The address cannot be used.
        """
        sockets = await asyncio.to_thread(listen_tcp, listen.host, listen.port, MOST_UNACCEPTED)
        self._doors = [_Door(self, one) for one in sockets]
        return Address(listen.host, sockets[0].getsockname()[1])

    @property
    def is_listening(self) -> bool:
        """Whether legs can connect."""
        return bool(self._doors)

    def stop_listening(self) -> None:
        """Accept no more connections; existing ones stay."""
        while self._doors:
            self._doors.pop().close()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self.stop_listening()
        for leg in list(self._legs):
            leg.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                await self._all_gone.wait()
        self._wrong_uuids.close()

    def issue(self, leg_uuid: str, owner: LegOwner, legs_from: tuple[IPNetwork, ...] = ()) -> None:
        """Accept the leg that presents this UUID, once, from these networks; empty: from any."""
        self._uuids.issue(leg_uuid, owner, legs_from)

    def withdraw(self, leg_uuid: str) -> None:
        """Stop accepting this UUID; no effect if its leg has connected already."""
        self._uuids.withdraw(leg_uuid)

    # --- For the connections ---

    def admit(self, accepted: socket.socket, peer: str) -> None:
        """Take a connection that has been accepted."""
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Leg(self, accepted, peer)
        except OSError as exc:
            accepted.close()
            self.refused.count(f"{exc.strerror}, from {peer}")

    def let_wait(self, exc: OSError) -> None:
        """Count a connection that cannot be accepted yet: of descriptors there are too few."""
        self._unaccepted.count(str(exc.strerror))

    def allows(self, peer: str) -> bool:
        """Return whether connections from an address are allowed."""
        return not self._allow or is_among(peer, self._allow)

    def add(self, leg: Leg) -> None:
        """Keep a connection until `remove`; if there are too many strangers, refuse the oldest.

        The oldest is no real leg: Asterisk sends the UUID long before its leg is the oldest.
        """
        self._legs.add(leg)
        self._all_gone.clear()
        self._strangers[leg] = None
        if self._acks_timer is None:
            self._await_acks()
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            oldest.refuse(f"no UUID yet, and {MAX_STRANGERS} more connections without one")

    def _await_acks(self) -> None:
        loop = asyncio.get_running_loop()
        self._acks_timer = loop.call_later(ACKS_INTERVAL_S, self._delay_acks)

    def _delay_acks(self) -> None:
        for leg in self._legs:
            leg.delay_acks()
        self._await_acks()

    def claim(self, leg: Leg, presented: bytes) -> LegOwner | None:
        """Return the owner of an issued UUID; refuse the leg and return None if it is wrong."""
        if self._uuids.is_from_elsewhere(presented, leg.peer):
            self._wrong_uuids.count(leg.peer)
            leg.refuse("the UUID of a leg that comes from elsewhere ([cluster] legs_from)")
            return None
        owner = self._uuids.use(presented, leg)
        if owner is not None:
            self._strangers.pop(leg, None)
        else:
            self._refuse_wrong(leg, presented)
        return owner

    def _refuse_wrong(self, leg: Leg, presented: bytes) -> None:
        """Refuse a leg with a wrong UUID; no log line or report shows the UUID itself."""
        void = self._uuids.void(presented)
        if void is not None and void.holder is None:
            leg.refuse("the UUID of a leg that is wanted no more")  # Asterisk was late
            return
        self._wrong_uuids.count(leg.peer)
        leg.refuse("unknown or used UUID")
        if void is not None and void.holder is not None:
            void.holder.contest()

    def patience_for(self, batch_ms: int) -> Patience:
        """Return what sees that no frame of batches of this length waits too long."""
        if batch_ms not in self._patiences:
            self._patiences[batch_ms] = Patience(batch_ms)
        return self._patiences[batch_ms]

    def forget_stranger(self, leg: Leg) -> None:
        """Count a connection no longer among the strangers: it is being closed."""
        self._strangers.pop(leg, None)

    def remove(self, leg: Leg) -> None:
        """Forget a connection that is gone."""
        self._legs.discard(leg)
        if not self._legs:
            self._all_gone.set()
            if self._acks_timer is not None:
                self._acks_timer.cancel()
                self._acks_timer = None
        self._strangers.pop(leg, None)


class _Door(Watched):
    """A listening socket.

    It is watched by the poller of the legs, which is there as long as it is: none need be made
    when a leg comes, and no descriptor might be left.
    """

    __slots__ = ("_listener", "_poller", "_socket", "_timer")

    def __init__(self, listener: Listener, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listener = listener
        self._socket = listening
        self._timer: asyncio.TimerHandle | None = None
        self._poller = poller()
        self._poller.add(listening.fileno(), self, select.EPOLLIN)

    def on_ready(self, events: int) -> None:  # noqa: ARG002 (of the base)
        """Accept the connections that wait; a flood of them must not hold up frames."""
        for _ in range(MOST_ACCEPTED_AT_ONCE):
            try:
                accepted, peer = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone again
                continue
            except OSError as exc:
                self._rest(exc)
                return
            self._listener.admit(accepted, peer[0])

    def fail(self, exc: Exception) -> None:
        """Tell of a fault of ours; the door stays open."""
        context = {"message": "A connection could not be accepted", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)

    def _rest(self, exc: OSError) -> None:
        """Accept nothing for a moment."""
        self._listener.let_wait(exc)
        self._poller.modify(self._socket.fileno(), 0)
        self._timer = asyncio.get_running_loop().call_later(ACCEPT_AGAIN_S, self._go_on)

    def _go_on(self) -> None:
        self._poller.modify(self._socket.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Accept nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._poller.remove(self._socket.fileno())
        self._socket.close()


class _WrongUuids:
    """Counts connections with a wrong UUID; reports the first at once, later ones together."""

    def __init__(self, report: Callable[[StrangersRefused], None]) -> None:
        self._report = report
        self._count = 0  # not reported yet
        self._address = ""
        self._timer: asyncio.TimerHandle | None = None

    def count(self, address: str) -> None:
        self._count += 1
        self._address = address
        if self._timer is None:
            self._say()

    def _say(self) -> None:
        self._timer = None
        if self._count:
            self._say_now()
            self._timer = asyncio.get_running_loop().call_later(REPORT_INTERVAL_S, self._say)

    def _say_now(self) -> None:
        self._report(StrangersRefused(self._count, self._address))
        self._count = 0

    def close(self) -> None:
        """Report those that are not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._count:
            self._say_now()
