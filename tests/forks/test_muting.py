import asyncio

import pytest

from audiofork.errors import RequestRefused
from audiofork.link.messages import EndReason, ForkSpec, LegPart, SetMute
from tests.control_plane import NAME, START, UNIQUEID, Rig

PAIRS = LegPart.PAIRS


# --- Mute ----------------------------------------------------------------------------------------


async def mute(rig: Rig, direction: str, state: str, **fields: str) -> list[str]:
    fields = fields or {"channel": NAME}
    return await rig.ask(command="AudioForkMute", direction=direction, state=state, **fields)


async def muted(rig: Rig) -> list[str]:
    return [view.muted for view in await rig.forks.views()]


@pytest.mark.parametrize(
    ("direction", "sides"),
    [("read", (True, False)), ("write", (False, True)), ("both", (True, True))],
)
async def test_mute_silences_the_side_until_it_is_undone(
    rig: Rig, direction: str, sides: tuple[bool, bool]
) -> None:
    fork_id = await rig.stream()
    assert await mute(rig, direction, "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, *sides)
    assert await muted(rig) == [direction]
    await mute(rig, direction, "0")
    assert rig.sent[-1] == SetMute(fork_id, False, False)
    assert await muted(rig) == [""]


async def test_mutes_of_both_sides_add_up(rig: Rig) -> None:
    fork_id = await rig.stream()
    await mute(rig, "read", "on")
    await mute(rig, "write", "on")
    assert rig.sent[-1] == SetMute(fork_id, True, True)
    assert await muted(rig) == ["both"]
    await mute(rig, "read", "off")
    assert rig.sent[-1] == SetMute(fork_id, False, True)
    assert await muted(rig) == ["write"]


@pytest.mark.parametrize("by", [{"channel": NAME}, {"uniqueid": UNIQUEID}], ids=str)
async def test_mute_by_channel_is_for_all_its_forks_and_no_other(
    rig: Rig, by: dict[str, str]
) -> None:
    mine = {await rig.stream(), await rig.attach()}
    await rig.stream(channel="PJSIP/200-0000002b")
    assert set(await mute(rig, "both", "1", **by)) == mine
    assert await muted(rig) == ["both", "both", ""]


async def test_mute_by_id_is_for_one_fork(rig: Rig) -> None:
    await rig.stream()
    second = await rig.stream()
    assert await mute(rig, "read", "1", audioforkid=second) == [second]
    assert await muted(rig) == ["", "read"]


@pytest.mark.parametrize("by_id", [True, False])
async def test_mute_while_the_start_is_looked_up_reaches_the_relay_after_it(
    rig: Rig, by_id: bool
) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    (view,) = await rig.forks.views()
    by = {"audioforkid": view.id} if by_id else {"channel": NAME}
    muting = asyncio.create_task(mute(rig, "read", "1", **by))
    await rig.clock.settle()
    gate.set()
    assert await asked == await muting == [view.id]
    assert [type(command) for command in rig.sent] == [ForkSpec, SetMute]


@pytest.mark.parametrize("command", ["StopAudioFork", "AudioForkMute"])
async def test_stop_or_mute_by_id_of_a_start_that_is_refused_finds_no_fork(
    rig: Rig, command: str
) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**{**START, "channel": "nobody"})
    (view,) = await rig.forks.views()
    fields = {"command": command, "direction": "read", "state": "1", "audioforkid": view.id}
    asked = asyncio.create_task(rig.ask(**fields))
    await rig.clock.settle()
    gate.set()
    with pytest.raises(RequestRefused, match="^No such fork$"):
        await asked
    assert rig.sent == []


# --- What can be muted ---------------------------------------------------------------------------


async def test_mute_while_the_tap_is_chosen_waits_for_it_and_reaches_the_relay_after_the_fork(
    rig: Rig,
) -> None:
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    assert not muting.done()
    assert (rig.sent, await muted(rig)) == ([], [""])
    rig.taps.gate.set()
    await rig.clock.settle()
    assert await muting == rig.live
    assert [type(command) for command in rig.sent] == [ForkSpec, SetMute]


@pytest.mark.parametrize("ends", ["refused", "stopped"])
async def test_mute_while_the_tap_is_chosen_for_a_fork_that_does_not_begin_finds_none(
    rig: Rig, ends: str
) -> None:
    rig.taps.gate = asyncio.Event()
    if ends == "refused":
        rig.taps.faults[UNIQUEID] = RequestRefused("no way")
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    if ends == "stopped":
        await rig.ask(command="StopAudioFork", channel=NAME)
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="^No such fork$"):
        await muting
    assert (rig.sent, rig.journal.entries) == ([], {})


async def test_mute_that_waits_for_one_fork_mutes_no_other_that_has_ended_meanwhile(
    rig: Rig,
) -> None:
    """What it noted of that in the journal would bring the fork back at the next start."""
    ended = await rig.stream()
    rig.taps.gate = asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "both", "1"))
    await rig.clock.settle()
    await rig.ended(ended, EndReason.STOPPED)
    rig.taps.gate.set()
    await rig.clock.settle()
    assert await muting == rig.live
    assert rig.sent[-1] == SetMute(rig.live[0], True, True)
    assert set(rig.journal.entries) == set(rig.live)


# What is to be had when [ari] is not set, in most calls.
MIXED = (LegPart.MIX,)


def why_mixed(fork_id: str) -> str:
    return (
        f"AudioForkMute: fork {fork_id}: in and out come mixed by Asterisk (ChanSpy), so one of "
        "them cannot be muted alone; mute both, or set up [ari] for forks to come"
    )


async def noted(rig: Rig) -> object:
    """Return all that says what is muted, wherever it stands."""
    return len(rig.sent), await muted(rig), dict(rig.journal.entries), list(rig.ami.told)


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_mute_of_one_side_of_a_mixed_fork_is_refused_and_nothing_is_noted(
    rig: Rig, direction: str
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    before = await noted(rig)
    with pytest.raises(RequestRefused) as caught:
        await mute(rig, direction, "1")
    assert str(caught.value) == why_mixed(fork_id)
    assert await noted(rig) == before


async def test_mute_of_one_side_of_a_mixed_fork_by_event_is_answered_with_the_reason(
    rig: Rig,
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    fields = {"command": "AudioForkMute", "channel": NAME, "direction": "read", "state": "1"}
    await rig.request(**fields, actionid="8")
    name, headers = rig.last_event
    assert (name, headers["ActionID"]) == ("AudioForkFailed", "8")
    assert headers["Reason"] == why_mixed(fork_id)
    assert await muted(rig) == [""]


async def test_mute_of_one_side_is_refused_too_for_a_fork_that_turns_out_to_be_mixed(
    rig: Rig,
) -> None:
    rig.taps.parts, rig.taps.gate = MIXED, asyncio.Event()
    await rig.request(**START)
    muting = asyncio.create_task(mute(rig, "read", "1"))
    await rig.clock.settle()
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match="come mixed by Asterisk"):
        await muting
    await rig.clock.settle()
    assert [type(command) for command in rig.sent] == [ForkSpec]
    assert await muted(rig) == [""]


async def test_both_sides_of_a_mixed_fork_are_muted_and_unmuted_at_once(rig: Rig) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    assert await mute(rig, "both", "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, True, True)
    with pytest.raises(RequestRefused, match="come mixed by Asterisk"):
        await mute(rig, "read", "0")
    assert await muted(rig) == ["both"]
    await mute(rig, "both", "0")
    assert rig.sent[-1] == SetMute(fork_id, False, False)


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_state_that_one_side_of_a_mixed_fork_has_already_is_granted(
    rig: Rig, direction: str
) -> None:
    rig.taps.parts = MIXED
    fork_id = await rig.stream()
    assert await mute(rig, direction, "0") == [fork_id]
    await mute(rig, "both", "1")
    assert await mute(rig, direction, "1") == [fork_id]
    assert await muted(rig) == ["both"]


@pytest.mark.parametrize(
    "parts",
    [(LegPart.PAIRS,), (LegPart.IN, LegPart.OUT), (LegPart.IN,), (LegPart.OUT,)],
    ids=lambda parts: "-".join(parts),
)
@pytest.mark.parametrize("direction", ["read", "write"])
async def test_one_side_of_a_fork_that_is_not_mixed_is_muted_alone(
    rig: Rig, direction: str, parts: tuple[LegPart, ...]
) -> None:
    rig.taps.parts = parts
    fork_id = await rig.stream()
    assert await mute(rig, direction, "1") == [fork_id]
    assert rig.sent[-1] == SetMute(fork_id, direction == "read", direction == "write")


@pytest.mark.parametrize("mixed_first", [True, False])
async def test_mute_of_one_side_by_channel_is_refused_for_all_if_one_fork_is_mixed(
    rig: Rig, mixed_first: bool
) -> None:
    kinds = [MIXED, (PAIRS,)] if mixed_first else [(PAIRS,), MIXED]
    fork_ids = {}
    for rig.taps.parts in kinds:
        fork_ids[rig.taps.parts] = await rig.stream()
    before = await noted(rig)
    with pytest.raises(RequestRefused) as caught:
        await mute(rig, "read", "1")
    assert str(caught.value) == why_mixed(fork_ids[MIXED])
    assert await noted(rig) == before
    assert set(await mute(rig, "both", "1")) == set(fork_ids.values())
    assert await muted(rig) == ["both", "both"]
