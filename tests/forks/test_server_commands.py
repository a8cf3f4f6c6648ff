"""What servers ask for and only Asterisk can do. The registry around it is the real one."""

import asyncio
from typing import Any

import pytest

from audiofork.config import Place, ProfileConfig
from audiofork.errors import AmiActionFailed, AmiUnavailable
from audiofork.forks.events import CommandHandled
from audiofork.forks.server_commands import MAX_COMMANDS, MAX_KEYS, PAUSE_S
from audiofork.link.messages import CommandAsked, EndReason, ForkStats, ServerCommand
from tests.control_plane import NAME, UNIQUEID, Rig

HANGUP, DTMF, TRANSFER = ServerCommand.HANGUP, ServerCommand.DTMF, ServerCommand.TRANSFER
SALES, MENU = Place("sales", "100"), Place("ivr", "s", "again")
BOT = ProfileConfig(
    url="wss://bot.example.org/",
    commands=("hangup", "dtmf", "transfer"),
    transfer_to=(SALES, MENU),
)


@pytest.fixture
async def fork_id(rig: Rig) -> str:
    """A fork that streams to a profile."""
    rig.profiles.configure({"bot": BOT})
    await rig.request(channel=NAME, wsserver="@bot", options="D(in)")
    fork_id = rig.spec.fork_id
    rig.ami.actions.clear()
    return fork_id


async def ask(rig: Rig, fork_id: str, command: ServerCommand, value: str = "") -> None:
    rig.forks.on_report(CommandAsked(fork_id, command, value))
    await rig.clock.settle()


def actions(rig: Rig, name: str) -> list[dict[str, str]]:
    return [dict(headers) for one, headers, _ in rig.ami.actions if one == name]


def outcomes(rig: Rig) -> list[tuple[str, str, str, str]]:
    return [
        (event.command, event.value, event.outcome, event.reason)
        for event in rig.events
        if isinstance(event, CommandHandled)
    ]


def told(rig: Rig) -> dict[str, str]:
    """Return what the latest AudioForkCommand tells beside the fork."""
    name, headers = rig.last_event
    assert name == "AudioForkCommand"
    of_fork = ("AudioForkID", "Channel", "Uniqueid", "WsServer")
    assert [headers[key] for key in of_fork[1:]] == [NAME, UNIQUEID, "@bot"]
    return {key: value for key, value in headers.items() if key not in of_fork}


# --- Hangup --------------------------------------------------------------------------------------


async def test_hangup_ends_the_channel_by_its_uniqueid_and_is_told(
    rig: Rig, fork_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await ask(rig, fork_id, HANGUP)
    assert actions(rig, "Hangup") == [{"Channel": UNIQUEID, "Cause": "16"}]
    assert told(rig) == {"Command": "hangup", "Value": "", "Outcome": "done"}
    assert "the server asked for hangup: done" in caplog.text


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            AmiActionFailed("Hangup", "Permission denied"),
            "Hangup: Permission denied; the AMI user needs write = call",
        ),
        (AmiUnavailable("Asterisk is away"), "Asterisk is away"),
    ],
)
async def test_command_that_asterisk_refuses_has_failed_and_says_why(
    rig: Rig,
    fork_id: str,
    caplog: pytest.LogCaptureFixture,
    fault: AmiActionFailed | AmiUnavailable,
    reason: str,
) -> None:
    rig.ami.faults["Hangup"] = fault
    await ask(rig, fork_id, HANGUP)
    assert told(rig) == {
        "Command": "hangup",
        "Value": "",
        "Outcome": "failed",
        "Reason": reason,
    }
    assert f"the server asked for hangup: failed: {reason}" in caplog.text


async def test_command_for_a_fork_that_ends_does_nothing(rig: Rig, fork_id: str) -> None:
    await rig.request(command="StopAudioFork", audioforkid=fork_id)
    await ask(rig, fork_id, HANGUP)
    assert actions(rig, "Hangup") == []
    assert outcomes(rig) == []


async def test_flood_of_commands_is_cut_counted_and_said_in_one_line(
    rig: Rig, fork_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        rig.forks.on_report(CommandAsked(fork_id, HANGUP))
    await rig.clock.settle()
    assert len(actions(rig, "Hangup")) == len(outcomes(rig)) == MAX_COMMANDS
    assert caplog.text.count("they come too fast") == 1
    (view,) = await rig.forks.views()
    assert view.commands_refused == 50 - MAX_COMMANDS


# --- Keys ----------------------------------------------------------------------------------------


def played(rig: Rig) -> str:
    assert all(key["Channel"] == UNIQUEID for key in actions(rig, "PlayDTMF"))
    return "".join(key["Digit"] for key in actions(rig, "PlayDTMF"))


async def sound(rig: Rig, count: int) -> None:
    """Let so many keys sound, with the pauses between them."""
    for _ in range(count):
        await rig.clock.advance(PAUSE_S)


async def test_keys_are_played_one_after_the_other_by_a_connection_of_their_own(
    rig: Rig, fork_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    assert rig.ami.others_open == 0
    await ask(rig, fork_id, DTMF, " 12a#")
    assert rig.ami.others_open == 1
    assert played(rig) == "1"
    await sound(rig, 3)
    assert played(rig) == "12A#"
    assert outcomes(rig) == []
    await sound(rig, 1)
    assert told(rig) == {"Command": "dtmf", "Value": "of 4 keys", "Outcome": "done"}
    assert "12a#" not in caplog.text.lower()
    assert rig.ami.others_open == 0


async def test_connection_of_keys_is_closed_with_the_daemon(rig: Rig, fork_id: str) -> None:
    await ask(rig, fork_id, DTMF, "123")
    assert rig.ami.others_open == 1
    await rig.forks.close()
    assert rig.ami.others_open == 0


async def test_keys_of_two_commands_do_not_mix(rig: Rig, fork_id: str) -> None:
    rig.forks.on_report(CommandAsked(fork_id, DTMF, "123"))
    rig.forks.on_report(CommandAsked(fork_id, DTMF, "789"))
    await sound(rig, 7)
    assert played(rig) == "123789"


async def test_keys_of_two_calls_take_turns(rig: Rig, fork_id: str) -> None:
    await rig.request(channel="PJSIP/200-0000002b", wsserver="@bot", options="D(in)")
    rig.ami.actions.clear()
    other = rig.spec.fork_id
    rig.ami.gates["PlayDTMF"] = gate = asyncio.Event()
    rig.forks.on_report(CommandAsked(fork_id, DTMF, "11"))
    rig.forks.on_report(CommandAsked(other, DTMF, "22"))
    await rig.clock.settle()
    assert [key["Digit"] for key in actions(rig, "PlayDTMF")] == ["1"]
    gate.set()
    await sound(rig, 4)
    assert [key["Digit"] for key in actions(rig, "PlayDTMF")] == ["1", "2", "1", "2"]


@pytest.mark.parametrize("keys", ["", "12E", "1 2", "w1", "1\n2", "\u0661"])
async def test_what_is_no_key_is_refused(rig: Rig, fork_id: str, keys: str) -> None:
    await ask(rig, fork_id, DTMF, keys)
    assert played(rig) == ""
    assert told(rig)["Outcome"] == "refused"
    assert told(rig)["Reason"] == "not keys: expected 0 to 9, A to D, * and #"


async def test_keys_beyond_those_that_may_wait_are_refused_whole(rig: Rig, fork_id: str) -> None:
    rig.forks.on_report(CommandAsked(fork_id, DTMF, "1" * MAX_KEYS))
    await ask(rig, fork_id, DTMF, "2")
    assert told(rig)["Reason"] == f"{MAX_KEYS} keys wait, and {MAX_KEYS} may"
    await sound(rig, 1)
    await ask(rig, fork_id, DTMF, "3")
    await sound(rig, MAX_KEYS + 2)
    assert played(rig) == "1" * MAX_KEYS + "3"
    await ask(rig, fork_id, DTMF, "4" * MAX_KEYS)  # there is room again
    assert len(outcomes(rig)) == 3


async def test_keys_that_asterisk_refuses_leave_room_for_others(rig: Rig, fork_id: str) -> None:
    rig.ami.faults["PlayDTMF"] = AmiActionFailed("PlayDTMF", "no")
    await ask(rig, fork_id, DTMF, "1" * MAX_KEYS)
    assert outcomes(rig) == [("dtmf", f"of {MAX_KEYS} keys", "failed", "PlayDTMF: no")]
    del rig.ami.faults["PlayDTMF"]
    rig.ami.actions.clear()
    rig.forks.on_report(CommandAsked(fork_id, DTMF, "2"))
    await ask(rig, fork_id, DTMF, "3" * (MAX_KEYS - 1))
    await sound(rig, MAX_KEYS)
    assert played(rig) == "2" + "3" * (MAX_KEYS - 1)


@pytest.mark.parametrize("by", ["stop", "server"])
async def test_keys_that_are_left_when_the_fork_ends_are_not_played(
    rig: Rig, fork_id: str, by: str
) -> None:
    await ask(rig, fork_id, DTMF, "123")
    if by == "stop":
        await rig.request(command="StopAudioFork", audioforkid=fork_id)
    else:
        await rig.ended(fork_id, EndReason.SINK_GONE)
    await sound(rig, 3)
    assert played(rig) == "1"
    assert outcomes(rig) == [("dtmf", "of 3 keys", "refused", "the fork ends")]


# --- Transfer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("sales,100,1", SALES),
        (" sales,100 ", SALES),
        ("ivr,s,again", MENU),
    ],
)
async def test_transfer_sends_the_channel_to_a_place_of_the_profile(
    rig: Rig, fork_id: str, value: str, place: Place
) -> None:
    rig.ami.values[f"DIALPLAN_EXISTS({place})"] = "1"
    await ask(rig, fork_id, TRANSFER, value)
    assert actions(rig, "Redirect") == [
        {
            "Channel": UNIQUEID,
            "Context": place.context,
            "Exten": place.exten,
            "Priority": place.priority,
        }
    ]
    assert told(rig) == {"Command": "transfer", "Value": value.strip(), "Outcome": "done"}


@pytest.mark.parametrize(
    "value",
    ["", "sales", "sales,100,2", "sales,101", "SALES,100", "sales,100,1,1", "x\r\nAction: Hangup"],
)
async def test_transfer_to_another_place_is_refused_with_those_that_are_allowed(
    rig: Rig, fork_id: str, value: str
) -> None:
    await ask(rig, fork_id, TRANSFER, value)
    assert actions(rig, "Redirect") == []
    assert told(rig)["Outcome"] == "refused"
    assert told(rig)["Reason"] == (
        "not a place of the profile's transfer_to, which has sales,100,1 ivr,s,again"
    )


async def test_transfer_to_a_place_that_the_dialplan_lacks_is_refused(
    rig: Rig, fork_id: str
) -> None:
    """A Redirect there would hang the channel up."""
    rig.ami.values["DIALPLAN_EXISTS(sales,100,1)"] = "0"
    await ask(rig, fork_id, TRANSFER, "sales,100")
    assert actions(rig, "Redirect") == []
    assert told(rig)["Reason"] == "there is no such place in the dialplan"


async def test_transfer_of_a_fork_without_a_profile_has_no_place(rig: Rig) -> None:
    fork_id = await rig.stream()
    await ask(rig, fork_id, TRANSFER, "sales,100")
    ((*_, reason),) = outcomes(rig)
    assert reason == "not a place of the profile's transfer_to, which has none"


# --- Counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by_relay", "told"), [(0, "1"), (4, "5")])
async def test_refused_commands_of_both_planes_are_counted_in_the_last_event_and_the_list(
    rig: Rig, fork_id: str, by_relay: int, told: str
) -> None:
    await ask(rig, fork_id, TRANSFER, "elsewhere,1")
    stats: dict[str, Any] = {fork_id: ForkStats(commands_refused=by_relay)}
    rig.stats = stats
    (view,) = await rig.forks.views()
    assert str(view.commands_refused) == told
    await rig.ended(fork_id, EndReason.STOPPED, stats=stats[fork_id])
    name, headers = rig.last_event
    assert (name, headers["CommandsRefused"]) == ("AudioForkStopped", told)
