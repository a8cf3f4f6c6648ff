"""The snoop tap against an ARI that is the test's."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from audiofork.asterisk.taps.base import LegOrder, fork_id_of
from audiofork.asterisk.taps.snoop import ENTER_TIMEOUT_S, READY_TIMEOUT_S, SnoopTap
from audiofork.asterisk.taps.ways import Audience, Connects
from audiofork.config import Address, AriConfig
from audiofork.errors import (
    AriError,
    AriLoginRefused,
    AriRefused,
    AriUnavailable,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
)
from audiofork.link.messages import LegPart
from tests.control_plane import Clock, FakeAri

FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
LEG_UUID = "6d1c9a52-8a3f-4f5e-9d0b-2f6f3c1e7a90"
IN_LEG, OUT_LEG = f"audiofork-{FORK_ID}-audiofork-in", f"audiofork-{FORK_ID}-audiofork-out"
UNIQUEID = "1700000000.1"

SNOOP = f"/channels/{UNIQUEID}/snoop/{IN_LEG}"
CHANNEL = f"/channels/{IN_LEG}"
VARIABLE, CONTINUE = f"{CHANNEL}/variable", f"{CHANNEL}/continue"


class FakeRelay:
    """Two workers; the second has all forks but one."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.addresses = [Address(host, 9093), Address(host, 9094)]

    def address_of(self, fork_id: str) -> Address:
        return self.addresses[fork_id != FORK_ID]


@pytest.fixture
def ari() -> FakeAri:
    return FakeAri()


def new_tap(ari: FakeAri, app: str = "audiofork", host: str = "127.0.0.1") -> SnoopTap:
    return SnoopTap(ari, AriConfig(app=app), FakeRelay(host))  # type: ignore[arg-type]


@pytest.fixture
def tap(ari: FakeAri) -> SnoopTap:
    return new_tap(ari)


def order(
    part: LegPart = LegPart.IN,
    sample_rate: int = 8000,
    connects: Connects = Connects.APPLICATION,
    *,
    uniqueid: str = UNIQUEID,
    heard_by: Audience | None = None,
) -> LegOrder:
    leg_id = IN_LEG if part is LegPart.IN else OUT_LEG
    return LegOrder(leg_id, LEG_UUID, FORK_ID, part, uniqueid, connects, sample_rate, heard_by)


class Start:
    """A start that is under way, at a time of the test's."""

    def __init__(self, tap: SnoopTap, ari: FakeAri, clock: Clock) -> None:
        self._tap, self.ari, self.clock = tap, ari, clock
        self.task: asyncio.Task[None] | None = None

    async def begin(self, leg: LegOrder | None = None) -> None:
        self.task = asyncio.create_task(self._tap.start(leg or order()))
        await self.clock.settle()

    async def enter(self, leg_id: str = IN_LEG) -> None:
        self.ari.enter(leg_id)
        await self.clock.settle()

    @property
    def paths(self) -> list[str]:
        """What ARI was asked for so far."""
        return [path for path, _ in self.ari.posts]

    def result(self) -> None:
        """Raise what it raised; it has to be over."""
        assert self.task is not None
        self.task.result()

    async def whole(self, leg: LegOrder) -> list[dict[str, str]]:
        """Start a leg without a hitch; return the three queries."""
        await self.begin(leg)
        await self.enter(leg.leg_id)
        self.result()
        return [query for _, query in self.ari.posts]


@pytest.fixture
async def start(tap: SnoopTap, ari: FakeAri, clock: Clock) -> AsyncIterator[Start]:
    """A start; after the test nothing may be left of it."""
    start = Start(tap, ari, clock)
    yield start
    assert start.task is not None
    assert start.task.done()
    assert ari.starting_ids == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- One leg after the other ---------------------------------------------------------------------


async def test_start_says_where_and_sends_on_what_has_entered(start: Start) -> None:
    await start.begin()
    await start.clock.advance(ENTER_TIMEOUT_S - 0.1)
    assert start.paths == [SNOOP]  # Asterisk would refuse the rest
    await start.enter()
    assert start.paths == [SNOOP, VARIABLE, CONTINUE]
    start.result()
    assert start.ari.deleted == []


async def test_start_sends_on_no_channel_that_does_not_know_where(start: Start) -> None:
    gate = start.ari.gates["variable"] = asyncio.Event()
    await start.begin()
    await start.enter()
    assert start.paths == [SNOOP, VARIABLE]
    gate.set()
    await start.clock.settle()
    assert start.paths == [SNOOP, VARIABLE, CONTINUE]
    start.result()


async def test_start_of_a_channel_that_enters_before_the_answer_misses_nothing(
    start: Start,
) -> None:
    gate = start.ari.gates["snoop"] = asyncio.Event()
    await start.begin()
    await start.enter()
    assert start.paths == [SNOOP]
    gate.set()
    await start.clock.settle()
    assert start.paths == [SNOOP, VARIABLE, CONTINUE]
    start.result()


# --- What ARI is told ----------------------------------------------------------------------------


@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
async def test_start_spies_on_the_side_of_the_leg_for_our_application(
    start: Start, part: LegPart
) -> None:
    snoop, *_ = await start.whole(order(part))
    assert snoop == {"spy": part.value, "app": "audiofork"}


@pytest.mark.parametrize(("heard_by", "side"), [(Audience.PARTY, "out"), (Audience.PEER, "in")])
async def test_start_whispers_only_for_a_leg_that_is_heard(
    start: Start, heard_by: Audience, side: str
) -> None:
    snoop, *_ = await start.whole(order(heard_by=heard_by))
    assert snoop == {"spy": "in", "app": "audiofork", "whisper": side}


@pytest.mark.parametrize(
    ("connects", "sample_rate", "extension", "target"),
    [
        (Connects.APPLICATION, 8000, "narrow", "{uuid},127.0.0.1:9093"),
        (Connects.DIAL, 8000, "wide", "AudioSocket/127.0.0.1:9093/{uuid}/c(slin)"),
        (Connects.DIAL, 12000, "wide", "AudioSocket/127.0.0.1:9093/{uuid}/c(slin12)"),
        (Connects.DIAL, 16000, "wide", "AudioSocket/127.0.0.1:9093/{uuid}/c(slin16)"),
        (Connects.DIAL, 44100, "wide", "AudioSocket/127.0.0.1:9093/{uuid}/c(slin44)"),
        (Connects.DIAL, 192000, "wide", "AudioSocket/127.0.0.1:9093/{uuid}/c(slin192)"),
    ],
)
@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
async def test_start_sends_the_leg_to_the_worker_of_the_fork_at_its_rate(
    start: Start,
    part: LegPart,
    connects: Connects,
    sample_rate: int,
    extension: str,
    target: str,
) -> None:
    _, variable, sent_on = await start.whole(order(part, sample_rate, connects))
    assert variable == {"variable": "AUDIOFORK_LEG", "value": target.format(uuid=LEG_UUID)}
    assert sent_on == {"context": "audiofork-leg", "extension": extension, "priority": "1"}


@pytest.mark.parametrize(
    ("connects", "target"),
    [
        (Connects.APPLICATION, f"{LEG_UUID},[::1]:9093"),
        (Connects.DIAL, f"AudioSocket/[::1]:9093/{LEG_UUID}/c(slin)"),
    ],
)
async def test_start_with_ipv6_gives_the_address_in_brackets(
    ari: FakeAri, clock: Clock, connects: Connects, target: str
) -> None:
    start = Start(new_tap(ari, host="::1"), ari, clock)
    _, variable, _ = await start.whole(order(connects=connects))
    assert variable["value"] == target


async def test_start_names_the_application_of_the_configuration(ari: FakeAri, clock: Clock) -> None:
    snoop, *_ = await Start(new_tap(ari, "audiofork-2"), ari, clock).whole(order())
    assert snoop["app"] == "audiofork-2"


async def test_start_quotes_the_uniqueid(start: Start) -> None:
    """It begins with the system's name of asterisk.conf, which may be anything."""
    await start.whole(order(uniqueid="pbx 1/ä?-1.1"))
    assert start.paths[0] == f"/channels/pbx%201%2F%C3%A4%3F-1.1/snoop/{IN_LEG}"


# --- Legs that do not come -----------------------------------------------------------------------


async def test_start_on_a_channel_that_is_gone_finds_none(start: Start) -> None:
    start.ari.faults["snoop"] = AriRefused(404, "Channel not found")
    await start.begin()
    with pytest.raises(NoSuchChannel):
        start.result()
    assert start.paths == [SNOOP]
    assert start.ari.deleted == []


REFUSALS = [
    AriRefused(500, "Snooping on the channel is not possible"),
    AriLoginRefused("audiofork", "Forbidden"),
]


@pytest.mark.parametrize("exc", REFUSALS, ids=lambda exc: type(exc).__name__)
async def test_start_that_ari_refuses_raises_that_the_leg_does_not_come(
    start: Start, exc: AriError
) -> None:
    start.ari.faults["snoop"] = exc
    await start.begin()
    with pytest.raises(LegRefused) as caught:
        start.result()
    assert str(caught.value) == f"ARI: {exc}"
    assert start.paths == [SNOOP]
    assert start.ari.deleted == []


@pytest.mark.parametrize(
    "exc",
    # Its own channel is gone: that says nothing of the target.
    [*REFUSALS, AriRefused(404, "Channel not found")],
    ids=["refused", "login", "gone"],
)
@pytest.mark.parametrize("kind", ["variable", "continue"])
async def test_start_whose_channel_cannot_be_led_on_hangs_it_up_and_is_refused(
    start: Start, kind: str, exc: AriError
) -> None:
    start.ari.faults[kind] = exc
    await start.begin()
    await start.enter()
    with pytest.raises(LegRefused) as caught:
        start.result()
    assert str(caught.value) == f"ARI: {exc}"
    assert start.paths[-1].endswith(kind)
    assert start.ari.deleted == [CHANNEL]


async def test_start_that_ari_does_not_answer_is_uncertain(start: Start) -> None:
    start.ari.faults["snoop"] = AriUnavailable("no answer within 3 s")
    await start.begin()
    with pytest.raises(LegUncertain, match="^ARI: no answer within 3 s$"):
        start.result()


@pytest.mark.parametrize("kind", ["variable", "continue"])
async def test_start_that_ari_does_not_answer_later_hangs_the_channel_up_and_is_uncertain(
    start: Start, kind: str
) -> None:
    start.ari.faults[kind] = AriUnavailable("no answer within 3 s")
    await start.begin()
    await start.enter()
    with pytest.raises(LegUncertain, match="^ARI: no answer within 3 s$"):
        start.result()
    assert start.ari.deleted == [CHANNEL]


async def test_start_waits_for_a_link_that_is_away(start: Start) -> None:
    start.ari.ready = False
    await start.begin()
    await start.clock.advance(READY_TIMEOUT_S - 0.1)
    assert start.paths == []
    start.ari.ready = True
    await start.clock.settle()
    await start.enter()
    assert start.paths == [SNOOP, VARIABLE, CONTINUE]
    start.result()


async def test_start_with_a_link_that_stays_away_is_uncertain(start: Start) -> None:
    start.ari.ready = False
    start.ari.status = "no connection to ARI at http://127.0.0.1:8088/ari: Connection refused"
    await start.begin()
    await start.clock.advance(READY_TIMEOUT_S)
    with pytest.raises(LegUncertain, match=f"^ARI: {start.ari.status}$"):
        start.result()
    assert start.paths == []


async def test_start_whose_link_is_lost_before_the_channel_enters_is_uncertain(
    start: Start,
) -> None:
    await start.begin()
    start.ari.ready = False
    await start.clock.settle()
    with pytest.raises(LegUncertain, match="^ARI: the connection to ARI was lost$"):
        start.result()
    assert start.paths == [SNOOP]
    assert start.ari.deleted == [CHANNEL]


async def test_start_of_a_channel_that_does_not_enter_in_time_hangs_it_up_and_is_refused(
    start: Start,
) -> None:
    await start.begin()
    await start.clock.advance(ENTER_TIMEOUT_S - 0.1)
    assert start.task is not None
    assert not start.task.done()
    await start.clock.advance(0.2)
    with pytest.raises(LegRefused, match="^ARI: the leg did not enter audiofork in time$"):
        start.result()
    assert start.paths == [SNOOP]
    assert start.ari.deleted == [CHANNEL]


@pytest.mark.parametrize(
    "exc", [AriRefused(404, "Channel not found"), AriUnavailable("no answer within 3 s")], ids=str
)
async def test_start_whose_channel_cannot_be_hung_up_says_why_it_should_be(
    start: Start, exc: AriError
) -> None:
    start.ari.faults = {"variable": AriRefused(500, "no"), "delete": exc}
    await start.begin()
    await start.enter()
    with pytest.raises(LegRefused, match="^ARI: 500: no$"):
        start.result()
    assert start.ari.deleted == [CHANNEL]


# --- What legs there are -------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "leg_id"), [(LegPart.IN, IN_LEG), (LegPart.OUT, OUT_LEG)])
def test_first_leg_is_named_by_fork_application_and_side_and_each_further_one_has_a_suffix(
    tap: SnoopTap, part: LegPart, leg_id: str
) -> None:
    assert tap.name_leg(FORK_ID, part, anew=False) == leg_id
    further = {tap.name_leg(FORK_ID, part, anew=True) for _ in range(100)}
    assert len(further) == 100
    for one in further:
        assert one.startswith(f"{leg_id}-")
        assert fork_id_of(one) == FORK_ID


async def test_settle_waits_for_the_first_attempt_to_connect(
    ari: FakeAri, tap: SnoopTap, clock: Clock
) -> None:
    ari.first_attempt.clear()
    settling = asyncio.create_task(tap.settle(1.5))
    await clock.settle()
    assert not settling.done()
    assert ari.settle_timeouts == [1.5]
    ari.first_attempt.set()
    await settling


def test_what_is_missing_is_the_link_s_own_status(ari: FakeAri, tap: SnoopTap) -> None:
    assert tap.missing == ""
    ari.ready = False
    assert tap.missing == "no connection to ARI"


NAME = f"Snoop/{UNIQUEID}-00000001"


@pytest.mark.parametrize("app", ["audiofork", "audiofork-2", "in", "a.b", "0a1b2c3d"])
@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
@pytest.mark.parametrize("anew", [False, True])
def test_owns_what_it_has_named(ari: FakeAri, app: str, part: LegPart, anew: bool) -> None:
    tap = new_tap(ari, app)
    assert tap.owns(NAME, tap.name_leg(FORK_ID, part, anew=anew))


@pytest.mark.parametrize(
    ("app", "other"),
    [
        ("audiofork", "audiofork-2"),
        ("audiofork", "pbx-audiofork"),
        ("audiofork", "a-audiofork-b"),
        ("audiofork", "audiofork-in"),
        ("audiofork", "Audiofork"),
        ("a.b", "a-b"),
        ("in", "audiofork"),
        ("4222", "audiofork"),
    ],
)
@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
@pytest.mark.parametrize("anew", [False, True])
def test_owns_no_leg_of_a_daemon_with_another_application(
    ari: FakeAri, app: str, other: str, part: LegPart, anew: bool
) -> None:
    leg_id = new_tap(ari, other).name_leg(FORK_ID, part, anew=anew)
    assert not new_tap(ari, app).owns(NAME, leg_id)


@pytest.mark.parametrize(
    ("name", "uniqueid"),
    [
        pytest.param(NAME, "1700000000.2", id="snoop-of-others"),
        pytest.param(NAME, f"x{IN_LEG}", id="other-prefix"),
        pytest.param(NAME, f"{IN_LEG}-", id="cut-suffix"),
        pytest.param(NAME, f"audiofork-{FORK_ID}", id="chanspy"),
        pytest.param("AudioSocket/127.0.0.1:9093-1", IN_LEG, id="other-kind"),
        pytest.param("", IN_LEG, id="no-name"),
    ],
)
def test_owns_nothing_that_only_looks_like_a_leg(tap: SnoopTap, name: str, uniqueid: str) -> None:
    assert not tap.owns(name, uniqueid)
