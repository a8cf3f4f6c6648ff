"""Starts forks: checks the request, looks up the channel, chooses the tap, orders the relay."""

from __future__ import annotations

from collections.abc import Container, Mapping

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.choice import Choice, Taps
from audiofork.asterisk.taps.connect import LED
from audiofork.errors import Refusal, RequestRefused
from audiofork.forks import call_info, url_templates
from audiofork.forks.admission import Admission
from audiofork.forks.ending import Ending
from audiofork.forks.events import Emit, Requested
from audiofork.forks.fork import Fork, new_fork, record, with_fields
from audiofork.forks.journal import Entry, Journal
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.legs import Legs, waits_itself
from audiofork.forks.life_log import log_requested
from audiofork.forks.lifecycle import ForkEvent
from audiofork.forks.look_ups import LookUps
from audiofork.forks.options import PARAM_VARIABLE
from audiofork.forks.orders import spec_of, wish_of
from audiofork.forks.params import check_size
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.profiles import Profiles, filled, has_texts
from audiofork.forks.requests import DIALPLAN, Origin, StartFork, connected
from audiofork.forks.table import ForkTable
from audiofork.link.messages import Adopt, HeldFork, SendCommand, SetMute


class Starting:
    """Starts new forks, resumed forks, and forks that have lost their relay process.

    Owned by the registry of forks.

    Args:
        ami: Knows the current run of Asterisk.
        taps: Chooses the tap of each fork.
        channels: Asks Asterisk about channels.
        look_ups: Finds the channels of requests.
        table: All forks; new ones are added.
        admission: Grants or refuses starts.
        leaving: Waits until a channel has room for more legs.
        legs: Requests the legs.
        ending: Removes forks that are refused.
        journal: Keeps the running forks on disk.
        send: Sends a command to the relay.
        emit: Called with each event.
        commands: The post-process commands.
        profiles: The servers that requests may name.

    Attributes:
        admission: As the argument.
    """

    def __init__(
        self,
        ami: Ami,
        taps: Taps,
        channels: Channels,
        look_ups: LookUps,
        table: ForkTable,
        admission: Admission,
        leaving: LeavingLegs,
        legs: Legs,
        ending: Ending,
        journal: Journal,
        send: SendCommand,
        emit: Emit,
        commands: Commands,
        profiles: Profiles,
    ) -> None:
        self._ami = ami
        self._taps = taps
        self._channels = channels
        self._look_ups = look_ups
        self._table = table
        self.admission = admission
        self._leaving = leaving
        self._legs = legs
        self._ending = ending
        self._journal = journal
        self._send = send
        self._emit = emit
        self._commands = commands
        self._profiles = profiles

    async def start(self, request: StartFork) -> Fork:
        """Start a fork; return it when its legs have been requested.

        Raises:
            RequestRefused: It is not granted; the text says why.
            AmiError: Asterisk cannot be asked.
        """
        request = self._profiles.apply(request)
        if request.connects:
            request = connected(request)
        self.admission.check(request, self._table)
        fork = new_fork(request, self._commands)
        self._table.add(fork)
        try:
            await self._look_up(fork)
            fork.progress.looked_up.set()  # so that a stop need not wait for the start's turn
            await self.admission.wait_turn(request.origin)
            await self._ask_about_call(fork)
            await self.choose(fork)
            await self._leaving.wait_for_room(fork)
            _check_wanted(fork)
            self.admission.check_acts()
        except BaseException:
            self._ending.forget(fork)
            fork.apply(ForkEvent.REFUSED)
            raise
        finally:
            fork.progress.looked_up.set()
            fork.progress.chosen.set()
        # A relay that goes on reads the fork's files, and dies of them, elsewhere.
        fork.progress.attempts = 0 if self._ending.relay_goes_on else 1
        self._launch(fork)
        return fork

    async def _look_up(self, fork: Fork) -> None:
        """Ask Asterisk for the name and uniqueid of the channel: a request may contain anything."""
        request = fork.request
        channel, uniqueid = await self._look_ups.find(request.target, request.origin)
        if self._taps.is_leg(channel, uniqueid):
            raise RequestRefused("the channel is itself the leg of a fork", Refusal.CONFLICT)
        self.admission.check_room(uniqueid, self._table)
        if request.connects:
            self._check_not_connected(uniqueid, request.origin)
        self._profiles.check_channel(request, channel)
        fork.found(channel, uniqueid, self._ami.asterisk_started)
        self._table.bind(fork)
        if request.connects and not waits_itself(fork):
            await self._check_can_be_led(fork)
        _check_wanted(fork)

    async def _check_can_be_led(self, fork: Fork) -> None:
        """Raise RequestRefused unless the call may be taken from where it is, and can be.

        Without the extension that connects it, Asterisk would hang up a channel sent there.
        """
        self.admission.check_led(fork.request)
        if not await self._channels.has_place(fork.uniqueid, LED):
            raise RequestRefused(
                f"the dialplan has no {LED}, to which the call would have to go: "
                "include the extensions_audiofork.conf of this version (audiofork setup does)",
                Refusal.CONFLICT,
            )

    def _check_not_connected(self, uniqueid: str, origin: Origin) -> None:
        """Raise RequestRefused if a channel has a server as its other party already.

        A channel whose own dialplan asks has it no more: it was sent to another place.
        """
        for other in self._table.on_channel(uniqueid):
            if other.connects and not other.is_ending:
                if (origin.door, origin.who) == (DIALPLAN, uniqueid):
                    self._ending.supersede(other)
                    continue
                text = f"the channel is connected already, by the fork {other.id}"
                raise RequestRefused(text, Refusal.CONFLICT)

    async def _ask_about_call(self, fork: Fork) -> None:
        """Ask Asterisk for what the options and the post-process command need to know."""
        if fork.post_process is not None:
            names = fork.post_process.names
            fork.call.values = await self._channels.values(fork.uniqueid, names)
        await self._tell_of_call(fork)
        await self.know_caller(fork)
        if fork.request.options.bridged_only:
            bridged = await self._channels.is_bridged(fork.uniqueid)
            if fork.call.bridged is None:  # else a newer event has set it meanwhile
                fork.call.bridged = bridged
        _check_wanted(fork)

    async def _tell_of_call(self, fork: Fork) -> None:
        """Ask for the details of the call for the server, and fill in the fields of the URL.

        Raises:
            RequestRefused: The filled URL is not allowed, or the parameters are too long.
        """
        request, call = fork.request, fork.call
        call.dialogue = self._profiles.dialogue_of(request)
        if not (
            request.options.tells_of_call
            or has_texts(call.dialogue)
            or url_templates.names(request.url)
        ):
            return
        asked = await call_info.ask(self._channels, call.channel, call.uniqueid)
        call.info = {"fork_id": fork.id, **asked}
        names = request.options.param_variables
        variables = [PARAM_VARIABLE + name for name in names]
        values = await self._channels.at_once(call.uniqueid, variables) if names else []
        call.params = {**request.params, **dict(zip(names, values, strict=True))}
        try:
            check_size(call.params)
        except ValueError as exc:
            raise RequestRefused(f"Params: {exc}") from None
        call.dialogue = filled(call.dialogue, call.info)
        if url_templates.names(request.url):
            fork.request = with_fields(request, call.info)
            self.admission.check_url(fork.request)

    async def know_caller(self, fork: Fork) -> None:
        """Ask Asterisk who calls; raises as `caller_of`."""
        fork.call.caller = await self.caller_of(fork.uniqueid, fork.call.info)

    async def caller_of(self, uniqueid: str, info: Mapping[str, str]) -> tuple[str, str]:
        """Return the number and the name of the caller, if somebody wants to know them.

        Args:
            uniqueid: The channel.
            info: What is known of the call; if it is, nothing is asked.

        Raises:
            NoSuchChannel: The channel does not exist.
            AmiError: Asterisk cannot be asked.
        """
        return ("", "") if info else await self._look_ups.caller_of(uniqueid)

    async def choose(self, fork: Fork) -> None:
        """Choose the tap (ChanSpy or ARI snoop) and sample rate of a fork, and what it grants.

        Raises:
            RequestRefused: No tap can provide what the fork needs; the text says why.
            NoSuchChannel: The channel does not exist.
            AmiError: Asterisk cannot be asked.
        """
        fork.grants = self.admission.grants_of(fork.request, self._profiles)
        request, rates = fork.request, fork.request.options.wished_rates
        if request.connects:
            choice = await self._taps.connecting(fork.uniqueid, rates)
        else:
            choice = await self._taps.choose(fork.uniqueid, wish_of(fork), rates)
        fork.settle(choice)

    def note_attempts(self, fork: Fork, count: int) -> None:
        """Write to the journal how many runs in a row may have died while starting a fork.

        0 means that a run has survived the start. See `Recovery`: it gives up at MAX_ATTEMPTS.
        """
        if fork.progress.attempts != count:
            fork.progress.attempts = count
            record(fork, self._journal)

    def forget(self, entry: Entry) -> None:
        """Remove a fork of an earlier run from the journal: it ended with that run."""
        self._journal.remove(entry.fork_id)

    def resume(self, fork: Fork) -> None:
        """Start a fork of an earlier run again; its channel exists and its legs are chosen."""
        self._table.add(fork)
        self._table.bind(fork)
        self._launch(fork)

    def adopt(self, fork: Fork, choice: Choice, held: HeldFork, present: Container[str]) -> None:
        """Take over a fork of an earlier run, which its relay process goes on with.

        Args:
            fork: The fork.
            choice: How its legs were made.
            held: What the relay process has told of it.
            present: The uniqueids of all channels.
        """
        fork.grants = self.admission.grants_of(fork.request, self._profiles)
        fork.settle(choice)
        # What the server was told counts, and not what the earlier daemon could note of it.
        fork.mute_in, fork.mute_out = held.mute_in, held.mute_out
        if held.age_s:  # the clock of who has noted its time may differ
            fork.progress.started += fork.age_s - held.age_s
        self._table.add(fork)
        self._table.bind(fork)
        self._begin(fork)
        self._send(Adopt(fork.id))
        self._legs.adopt(fork, held, present)

    def _launch(self, fork: Fork) -> None:
        """Write the fork to the journal, emit Requested, and order the fork and its legs."""
        self._begin(fork)
        self.order(fork, anew=fork.from_earlier_run)

    def _begin(self, fork: Fork) -> None:
        fork.apply(ForkEvent.RESOLVED)
        log_requested(fork)
        record(fork, self._journal)
        self._emit(Requested(fork.info, fork.request, fork.call.info))

    def order(self, fork: Fork, *, anew: bool) -> None:
        """Order a fork from the relay, and its legs from Asterisk.

        The leg of a connected fork is ordered when the server is there: until then the call goes
        on as it is.

        Args:
            fork: The fork.
            anew: Whether it had legs before; see `Legs.order`.
        """
        self._send(spec_of(fork))
        self._mute(fork)
        if not fork.connects:
            self._legs.order(fork, anew=anew)

    def _mute(self, fork: Fork) -> None:
        if fork.mute_in or fork.mute_out:
            self._send(SetMute(fork.id, fork.mute_in, fork.mute_out))


def _check_wanted(fork: Fork) -> None:
    if fork.progress.end_asked is not None:
        text = f"ended before it began: {fork.progress.end_asked}"
        raise RequestRefused(text, Refusal.CONFLICT)
