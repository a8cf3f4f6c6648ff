import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from audiofork.asterisk import ami as ami_module
from audiofork.asterisk import reconnecting
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import (
    BridgeChanged,
    ChannelHangup,
    Event,
    OriginateFailed,
    RequestReceived,
)
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.backoff import Backoff
from audiofork.config import AsteriskConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiLoginRefused,
    AmiTimeout,
    AmiUnavailable,
)
from tests.control_plane import AmiRun, FakeAsterisk, block, response

RunAmi = Callable[..., AmiRun]


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 0.01)


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def silence(action: dict[str, str]) -> None:
    """Do not answer."""


# --- Login ---------------------------------------------------------------------------------------


async def test_login_gives_the_credentials_then_asks_the_version_and_the_start(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    login, settings, status = asterisk.actions
    assert (login["action"], login["username"], login["secret"]) == (
        "Login",
        "audiofork",
        "hunter2",
    )
    assert settings["action"] == "CoreSettings"
    assert status["action"] == "CoreStatus"
    assert link.ami.status == "connected to Asterisk 22.5.2"
    assert link.ami.version == Version(22, 5, "22.5.2")


async def test_login_with_a_banner_in_pieces_succeeds(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.banner = b"Asterisk Call Ma"
    asterisk.answers["Login"] = lambda action: b"nager/2.8.0\r\n" + response(action)
    await run_ami().up()


async def test_login_without_permission_for_the_version_succeeds(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.answers["CoreSettings"] = lambda action: response(action, "Message: No", ok=False)
    run = run_ami()
    await run.up()
    assert run.ami.status == "connected to Asterisk (version unknown)"
    assert run.ami.version is UNKNOWN


async def test_secret_that_is_rotated_counts_from_the_next_login_on(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    link.ami.take_secret("rotated")
    await link.ami.action("Ping", [])  # the link goes on
    assert asterisk.count("Login") == 1
    asterisk.connections[-1].drop()
    await link.up()
    logins = [action["secret"] for action in asterisk.actions if action["action"] == "Login"]
    assert logins == ["hunter2", "rotated"]


async def test_missing_secret_is_said_and_asterisk_not_bothered(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    run = run_ami(secret="")
    await wait_until(lambda: "no secret" in run.ami.status)
    assert run.ami.status == (
        "no secret for Asterisk's manager interface: set [asterisk] secret_file (`audiofork setup` "
        "does all of it), then systemctl restart audiofork; next try in 60 s"
    )
    assert asterisk.count("Login") == 0
    run.ami.take_secret("hunter2")
    run.ami.retry_now()
    await run.up()


async def test_login_refused_says_so_once_and_pauses_long(
    asterisk: FakeAsterisk,
    run_ami: RunAmi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses = [asyncio.Event(), asyncio.Event()]
    delays_s = record_pauses(monkeypatch, *pauses)
    asterisk.answers["Login"] = lambda action: response(
        action, "Message: Authentication failed", ok=False
    )
    run = run_ami()
    await wait_until(lambda: len(delays_s) == 1)
    assert asterisk.count("Login") == 1
    assert run.ami.status == (
        "Asterisk refused the login of audiofork: Authentication failed; check [asterisk] "
        "username and secret against manager.conf; next try in 60 s"
    )
    with pytest.raises(AmiUnavailable, match="refused the login"):
        await run.ami.action("Ping", [])
    pauses[0].set()
    await wait_until(lambda: len(delays_s) == 2)
    assert delays_s == [60, 60]
    assert asterisk.count("Login") == 2
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "hunter2" not in caplog.text


def core_status(time: str) -> Callable[[dict[str, str]], bytes]:
    return lambda action: response(
        action, "CoreStartupDate: 2026-01-31", f"CoreStartupTime: {time}", "CoreCurrentCalls: 1"
    )


async def test_start_of_asterisk_is_known_before_on_up_at_each_login(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.answers["CoreStatus"] = core_status("23:59:58")
    run = run_ami()
    assert run.ami.asterisk_started == ""
    seen: list[str] = []

    async def note() -> None:
        seen.append(run.ami.asterisk_started)

    run.on_up = note
    await run.up()
    asterisk.connections[-1].drop()
    await run.up()
    asterisk.answers["CoreStatus"] = core_status("23:59:59")
    asterisk.connections[-1].drop()
    await run.up()
    await run.settled()
    assert seen == ["2026-01-31 23:59:58", "2026-01-31 23:59:58", "2026-01-31 23:59:59"]


@pytest.mark.parametrize("ok", [True, False], ids=["without-fields", "refused"])
async def test_start_of_asterisk_that_is_not_told_is_empty(
    asterisk: FakeAsterisk, run_ami: RunAmi, ok: bool
) -> None:
    asterisk.answers["CoreStatus"] = core_status("23:59:58")
    run = run_ami()
    await run.up()
    asterisk.answers["CoreStatus"] = lambda action: response(action, "Message: No", ok=ok)
    asterisk.connections[-1].drop()
    await run.up()
    assert run.ami.asterisk_started == ""


async def test_login_unanswered_is_tried_again(
    asterisk: FakeAsterisk, run_ami: RunAmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 0.2)
    asterisk.answers["Login"] = silence
    run = run_ami()
    await asterisk.received("Login")
    await asterisk.received("Login")
    assert run.ami.status.endswith("Login: no answer within 0.2 s")
    del asterisk.answers["Login"]
    await run.up()


async def test_actions_before_the_login_are_refused(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.answers["Login"] = silence
    run = run_ami()
    with pytest.raises(AmiUnavailable, match="not connected to Asterisk yet"):
        await run.ami.action("Ping", [])
    await asterisk.received("Login")
    with pytest.raises(AmiUnavailable):
        await run.ami.list("CoreShowChannels")
    assert asterisk.count("Ping") == asterisk.count("CoreShowChannels") == 0


# --- Actions -------------------------------------------------------------------------------------


async def test_action_returns_the_headers_of_its_answer(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.answers["Getvar"] = lambda action: response(action, "Variable: A", "Value: Zoë: 1")
    answer = await link.ami.action("Getvar", [("Channel", "PJSIP/1"), ("Variable", "A")])
    assert answer["value"] == "Zoë: 1"
    assert asterisk.actions[-1]["channel"] == "PJSIP/1"


async def test_action_with_a_header_twice_sends_both(asterisk: FakeAsterisk, link: AmiRun) -> None:
    headers = [("Variable", "A=1"), ("Variable", "B=2"), ("Variable", "C=3")]
    await link.ami.action("Originate", headers, action_id="audiofork-1")
    lines = asterisk.raw[-1].split("\r\n")
    assert [line for line in lines if line.startswith("Variable")] == [
        "Variable: A=1",
        "Variable: B=2",
        "Variable: C=3",
    ]
    assert asterisk.actions[-1]["id"] == "audiofork-1"


async def test_action_refused_raises_with_name_and_message(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.answers["Hangup"] = lambda action: response(
        action, "Message: No such channel", ok=False
    )
    with pytest.raises(AmiActionFailed) as caught:
        await link.ami.action("Hangup", [("Channel", "a")])
    assert (caught.value.action, caught.value.message) == ("Hangup", "No such channel")


async def test_actions_at_once_each_get_their_own_answer(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    waiting: list[dict[str, str]] = []

    def answer(action: dict[str, str]) -> bytes | None:
        waiting.append(action)
        if len(waiting) < 3:
            return None
        return b"".join(response(one, f"Value: {one['variable']}") for one in reversed(waiting))

    asterisk.answers["Getvar"] = answer
    answers = await asyncio.gather(
        *(link.ami.action("Getvar", [("Variable", name)]) for name in "abc")
    )
    assert [one["value"] for one in answers] == ["a", "b", "c"]


async def test_action_unanswered_times_out_and_a_late_answer_does_no_harm(
    asterisk: FakeAsterisk, link: AmiRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 0.2)
    asterisk.answers["Getvar"] = silence
    with pytest.raises(AmiTimeout, match=r"^Getvar: no answer within 0\.2 s$"):
        await link.ami.action("Getvar", [])
    asterisk.send(response(asterisk.actions[-1], "Value: late"))
    assert await link.settled() == []


async def test_action_unanswered_is_not_sent_again_after_a_reconnect(
    asterisk: FakeAsterisk, link: AmiRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 0.2)
    asterisk.answers["Originate"] = silence
    with pytest.raises(AmiTimeout):
        await link.ami.action("Originate", [])
    await asterisk.received("Originate")
    pending = asyncio.create_task(link.ami.action("Originate", []))
    await asterisk.received("Originate")
    asterisk.connections[-1].drop()
    with pytest.raises(AmiUnavailable):
        await pending
    await link.up()
    asterisk.send(block("Event: FullyBooted", "Status: Fully Booted"))
    await link.settled()
    assert asterisk.count("Originate") == 2


async def test_link_lost_before_the_answer_raises_at_once(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.answers["Getvar"] = asterisk.answers["CoreShowChannels"] = silence
    pending = [
        asyncio.create_task(link.ami.action("Getvar", [])),
        asyncio.create_task(link.ami.list("CoreShowChannels")),
    ]
    await asterisk.received("CoreShowChannels")
    asterisk.connections[-1].drop()
    async with asyncio.timeout(1):  # far below ACTION_TIMEOUT_S
        results = await asyncio.gather(*pending, return_exceptions=True)
    assert [type(result) for result in results] == [AmiUnavailable, AmiUnavailable]


async def test_action_cancelled_leaves_the_link_working(
    asterisk: FakeAsterisk, link: AmiRun, caplog: pytest.LogCaptureFixture
) -> None:
    asterisk.answers["Getvar"] = silence
    task = asyncio.create_task(link.ami.action("Getvar", []))
    await asterisk.received("Getvar")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    asterisk.send(response(asterisk.actions[-1]))
    await link.settled()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_list_returns_the_entries_alone(asterisk: FakeAsterisk, link: AmiRun) -> None:
    def answer(action: dict[str, str]) -> bytes:
        entries = [
            block("Event: CoreShowChannel", f"ActionID: {action['id']}", f"Channel: PJSIP/{i}")
            for i in range(3)
        ]
        done = block("Event: CoreShowChannelsComplete", f"ActionID: {action['id']}")
        return b"".join([response(action, "EventList: start"), *entries, done])

    asterisk.answers["CoreShowChannels"] = answer
    channels = await link.ami.list("CoreShowChannels")
    assert [channel["channel"] for channel in channels] == ["PJSIP/0", "PJSIP/1", "PJSIP/2"]
    assert link.events == []


async def test_list_sends_its_headers(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.answers["Status"] = lambda action: b"".join(
        [
            response(action, "EventList: start"),
            block("Event: Status", f"ActionID: {action['id']}", "BridgeID: 3f2a91c0"),
            block("Event: StatusComplete", f"ActionID: {action['id']}", "Items: 1"),
        ]
    )
    (entry,) = await link.ami.list("Status", [("Channel", "1700000000.1")])
    assert entry["bridgeid"] == "3f2a91c0"
    assert asterisk.actions[-1]["channel"] == "1700000000.1"


async def test_bridge_event_while_a_list_is_pending_is_an_event_and_no_entry(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.answers["Status"] = lambda action: b"".join(
        [
            response(action, "EventList: start"),
            block("Event: BridgeEnter", "BridgeUniqueid: b", "Uniqueid: 1.1"),
            block("Event: Status", f"ActionID: {action['id']}", "BridgeID: "),
            block("Event: StatusComplete", f"ActionID: {action['id']}"),
        ]
    )
    (entry,) = await link.ami.list("Status", [("Channel", "1.1")])
    assert entry["event"] == "Status"
    assert link.events == [BridgeChanged("1.1", True)]


async def test_list_of_nothing_is_empty(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.answers["CoreShowChannels"] = lambda action: (
        response(action, "EventList: start")
        + block("Event: CoreShowChannelsComplete", f"ActionID: {action['id']}")
    )
    assert await link.ami.list("CoreShowChannels") == []


async def test_list_refused_raises(
    asterisk: FakeAsterisk, link: AmiRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 1)
    asterisk.answers["CoreShowChannels"] = lambda action: response(
        action, "Message: Permission denied", ok=False
    )
    with pytest.raises(AmiActionFailed, match="Permission denied"):
        await link.ami.list("CoreShowChannels")


async def test_list_without_end_times_out(
    asterisk: FakeAsterisk, link: AmiRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 0.2)
    asterisk.answers["CoreShowChannels"] = lambda action: response(action, "EventList: start")
    with pytest.raises(AmiTimeout):
        await link.ami.list("CoreShowChannels")


async def test_events_with_the_id_of_a_list_that_timed_out_are_events(
    asterisk: FakeAsterisk, link: AmiRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "ACTION_TIMEOUT_S", 0.2)
    asterisk.answers["CoreShowChannels"] = silence
    with pytest.raises(AmiTimeout):
        await link.ami.list("CoreShowChannels")
    same_id = f"ActionID: {asterisk.actions[-1]['id']}"
    asterisk.send(block("Event: Hangup", same_id, "Uniqueid: 1.1"))
    assert await link.settled() == [ChannelHangup("1.1")]


async def test_user_event_with_the_id_of_a_pending_list_is_a_request_and_no_entry(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    def answer(action: dict[str, str]) -> bytes:
        same_id = f"ActionID: {action['id']}"
        return (
            response(action, "EventList: start")
            + block("Event: UserEvent", "UserEvent: AudioFork", same_id, "Channel: a")
            + block("Event: CoreShowChannel", same_id, "Channel: b")
            + block("Event: CoreShowChannelsComplete", same_id)
        )

    asterisk.answers["CoreShowChannels"] = answer
    channels = await link.ami.list("CoreShowChannels")
    assert [channel["channel"] for channel in channels] == ["b"]
    (event,) = link.events
    assert isinstance(event, RequestReceived)
    assert event.fields["channel"] == "a"


async def test_events_with_the_id_of_a_pending_action_are_no_answer(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    def answer(action: dict[str, str]) -> bytes:
        same_id = f"ActionID: {action['id']}"
        return (
            block("Event: UserEvent", "UserEvent: AudioFork", same_id, "Channel: a")
            + block("Event: OriginateResponse", same_id, "Response: Failure", "Reason: 0")
            + response(action, "Message: Extension not found", ok=False)
        )

    asterisk.answers["Originate"] = answer
    with pytest.raises(AmiActionFailed, match="Extension not found"):
        await link.ami.action("Originate", [], action_id="audiofork-1")
    assert link.events == [
        RequestReceived({"actionid": "audiofork-1", "channel": "a"}),
        OriginateFailed("audiofork-1", "0"),
    ]


async def test_originate_response_after_the_answer_is_an_event(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    await link.ami.action("Originate", [("Async", "true")], action_id="audiofork-1")
    asterisk.send(
        block(
            "Event: OriginateResponse",
            "ActionID: audiofork-1",
            "Response: Failure",
            "Reason: 3",
        )
    )
    assert await link.settled() == [OriginateFailed("audiofork-1", "3")]


# --- Actions that nobody waits for ---------------------------------------------------------------


async def test_post_sends_the_action_before_it_returns(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    errors: list[AmiError] = []
    link.ami.post("Setvar", [("Variable", "A"), ("Value", "1")], errors.append)
    link.ami.raise_event("AudioForkStarted", [])
    await link.settled()
    assert [action["action"] for action in asterisk.actions[-3:]] == ["Setvar", "UserEvent", "Ping"]
    assert asterisk.actions[-3]["value"] == "1"
    assert errors == []


async def test_post_refused_tells_the_error(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.answers["Setvar"] = lambda action: response(
        action, "Message: No such channel", ok=False
    )
    errors: list[AmiError] = []
    link.ami.post("Setvar", [], errors.append)
    await link.settled()
    (error,) = errors
    assert isinstance(error, AmiActionFailed)
    assert (error.action, error.message) == ("Setvar", "No such channel")


async def test_post_whose_answer_is_lost_with_the_link_tells_the_error(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.answers["Setvar"] = silence
    errors: list[AmiError] = []
    link.ami.post("Setvar", [], errors.append)
    await asterisk.received("Setvar")
    asterisk.connections[-1].drop()
    await link.up()
    assert [type(error) for error in errors] == [AmiUnavailable]
    assert asterisk.count("Setvar") == 1


async def test_post_without_a_link_tells_the_error_at_once(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    errors: list[AmiError] = []
    run_ami().ami.post("Setvar", [], errors.append)
    assert [str(error) for error in errors] == ["not connected to Asterisk yet"]


async def test_log_off_takes_the_goodbye_for_success(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.answers["Logoff"] = lambda action: block(
        "Response: Goodbye", f"ActionID: {action['id']}", "Message: Thanks for all the fish."
    )
    await link.ami.log_off()
    assert asterisk.actions[-1]["action"] == "Logoff"


# --- What may not reach the wire -----------------------------------------------------------------

HOSTILE = {
    "cr": "a\rb",
    "lf": "a\nb",
    "crlf": "a\r\nAction: Hangup",
    "nul": "a\0b",
    "esc": "a\x1bb",
    "del": "a\x7fb",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
async def test_control_characters_never_reach_the_wire(
    asterisk: FakeAsterisk, link: AmiRun, text: str
) -> None:
    before = len(asterisk.actions)
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        await link.ami.action("Setvar", [("Value", text)])
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        await link.ami.action("Setvar", [(text, "value")])
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        await link.ami.action(text, [])
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        await link.ami.action("Setvar", [], action_id=text)
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        await link.ami.list(text)
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        link.ami.raise_event("AudioForkMessage", [("Message", text)])
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        link.ami.raise_event(text, [])
    with pytest.raises(ValueError, match="control characters in the AMI header"):
        link.ami.post("Setvar", [("Value", text)], lambda error: None)
    await link.settled()
    assert [action["action"] for action in asterisk.actions[before:]] == ["Ping"]


@pytest.mark.parametrize("filler", ["a", "é"])
async def test_line_of_1024_bytes_never_reaches_the_wire(
    asterisk: FakeAsterisk, link: AmiRun, filler: str
) -> None:
    longest = filler * (1016 // len(filler.encode()))  # with `Value: `, 1023 bytes
    await link.ami.action("Setvar", [("Value", longest)])
    assert asterisk.actions[-1]["value"] == longest
    with pytest.raises(ValueError, match="Value is longer than 1024 bytes"):
        await link.ami.action("Setvar", [("Value", longest + "a")])
    with pytest.raises(ValueError, match="Value is longer than 1024 bytes"):
        link.ami.raise_event("AudioForkMessage", [("Value", longest + "a")])
    await link.settled()
    assert asterisk.count("Setvar") == 1
    assert asterisk.count("UserEvent") == 0


async def test_secret_that_cannot_be_sent_is_said_and_does_not_end_the_link(
    run_ami: RunAmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_ami(secret="x" * 2000)
    await wait_until(lambda: "Secret" in run.ami.status)
    assert not run.task.done()
    assert "xxx" not in run.ami.status


# --- Raised events -------------------------------------------------------------------------------


async def test_raise_event_sends_it_without_an_action_id_of_ours(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    link.ami.raise_event("AudioForkStarted", [("Channel", "PJSIP/Zoë"), ("AudioForkID", "1")])
    await link.settled()
    assert asterisk.raw[-2] == (
        "Action: UserEvent\r\nUserEvent: AudioForkStarted\r\nChannel: PJSIP/Zoë\r\n"
        "AudioForkID: 1\r\n\r\n"
    )


async def test_raise_event_sends_the_requester_s_action_id(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    link.ami.raise_event("AudioForkStarted", [("ActionID", "7")])
    await link.settled()
    assert asterisk.actions[-2]["id"] == "7"


@pytest.mark.parametrize("headers", [[], [("ActionID", "7")]], ids=["no-id", "requester-id"])
async def test_raise_event_refused_is_logged(
    asterisk: FakeAsterisk,
    link: AmiRun,
    caplog: pytest.LogCaptureFixture,
    headers: list[tuple[str, str]],
) -> None:
    def answer(action: dict[str, str]) -> bytes:
        lines = [f"ActionID: {action['id']}"] if action["id"] else []
        return block("Response: Error", *lines, "Message: Permission denied")

    asterisk.answers["UserEvent"] = answer
    link.ami.raise_event("AudioForkStarted", headers)
    await link.settled()
    assert [record.levelname for record in caplog.records if "Permission" in record.message] == [
        "WARNING"
    ]


async def test_raise_event_that_succeeds_is_not_logged(
    asterisk: FakeAsterisk, link: AmiRun, caplog: pytest.LogCaptureFixture
) -> None:
    asterisk.answers["UserEvent"] = lambda action: block("Response: Success", "Message: Event Sent")
    link.ami.raise_event("AudioForkStarted", [])
    await link.settled()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_raise_event_without_a_link_is_lost_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nothing() -> None: ...

    ami = Ami(AsteriskConfig(), lambda event: None, nothing)
    ami.raise_event("AudioForkStarted", [])
    assert "event AudioForkStarted is lost: not connected to Asterisk yet" in caplog.text


# --- Callbacks ------------------------------------------------------------------------------------


async def test_callback_that_raises_does_not_break_the_link(
    asterisk: FakeAsterisk, link: AmiRun, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(event: Event) -> None:
        link.on_event = link.events.append
        raise RuntimeError("boom")

    link.on_event = fail_once
    asterisk.send(block("Event: Hangup", "Uniqueid: 1") + block("Event: Hangup", "Uniqueid: 2"))
    assert await link.settled() == [ChannelHangup("2")]
    assert "boom" in caplog.text
    assert len(asterisk.connections) == 1


@pytest.mark.parametrize("exc", [AmiTimeout("boom"), RuntimeError("boom")], ids=["ami", "other"])
async def test_on_up_that_raises_does_not_break_the_link(
    asterisk: FakeAsterisk, run_ami: RunAmi, caplog: pytest.LogCaptureFixture, exc: Exception
) -> None:
    async def fail() -> None:
        raise exc

    run = run_ami()
    run.on_up = fail
    await run.up()
    await run.settled()
    assert "boom" in caplog.text
    assert len(asterisk.connections) == 1


# --- The link's life -----------------------------------------------------------------------------


def record_pauses(monkeypatch: pytest.MonkeyPatch, *gates: asyncio.Event) -> list[float]:
    """Make the pauses between attempts wait for these events, one each; return their lengths."""
    delays_s: list[float] = []

    async def pause(ami: Ami, delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) <= len(gates):
            await gates[len(delays_s) - 1].wait()
        else:
            await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Ami, "_pause", pause)
    return delays_s


async def test_reconnect_backs_off_and_begins_anew_after_a_login(
    asterisk: FakeAsterisk,
    run_ami: RunAmi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 0.5)
    gates = [asyncio.Event() for _ in range(8)]
    delays_s = record_pauses(monkeypatch, *gates)
    port = asterisk.port
    await asterisk.stop()
    run = run_ami(port=port)
    for gate in gates[:6]:
        gate.set()
    await wait_until(lambda: len(delays_s) == 7)
    assert delays_s == [0.5, 1, 2, 4, 8, 10, 10]
    assert run.ami.status.startswith(f"no connection to Asterisk at 127.0.0.1:{port}: ")
    assert run.ami.status.endswith("is Asterisk running, and does manager.conf say enabled = yes?")
    assert caplog.text.count("no connection to Asterisk") == 1

    await asterisk.start()
    gates[6].set()
    await run.up()
    asterisk.connections[-1].drop()
    await wait_until(lambda: len(delays_s) == 8)
    assert delays_s[-1] == 0.5
    assert run.ami.status.endswith("Asterisk closed the connection")
    with pytest.raises(AmiUnavailable, match="Asterisk closed the connection"):
        await run.ami.action("Ping", [])
    gates[7].set()
    await run.up()
    await run.settled()


async def test_retry_now_ends_the_pause_and_says_again_what_is_wrong(
    asterisk: FakeAsterisk, run_ami: RunAmi, caplog: pytest.LogCaptureFixture
) -> None:
    asterisk.answers["Login"] = lambda action: response(
        action, "Message: Authentication failed", ok=False
    )
    run = run_ami()
    await wait_until(lambda: "next try in 60 s" in run.ami.status)
    run.ami.retry_now()
    await wait_until(lambda: caplog.text.count("refused the login") == 2)
    assert asterisk.count("Login") == 2
    del asterisk.answers["Login"]
    run.ami.retry_now()
    await run.up()
    await run.settled()


async def test_retry_now_during_an_attempt_that_fails_makes_another_at_once(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.answers["Login"] = silence
    run = run_ami()
    action = await asterisk.received("Login")
    run.ami.retry_now()
    del asterisk.answers["Login"]
    asterisk.send(response(action, "Message: Authentication failed", ok=False))
    await run.up()
    await run.settled()
    assert asterisk.count("Login") == 2


async def test_retry_now_of_a_link_that_is_up_is_not_kept_for_later(
    asterisk: FakeAsterisk, run_ami: RunAmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 60)
    run = run_ami()
    await run.up()
    await run.settled()
    run.ami.retry_now()
    asterisk.connections[-1].drop()
    await wait_until(lambda: "closed the connection" in run.ami.status)
    await asyncio.sleep(0.05)
    assert asterisk.count("Login") == 1


async def test_half_open_link_is_noticed_and_made_anew(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    asterisk.answers["Ping"] = silence
    run = run_ami(ping_interval=0.2)
    await run.up()
    await run.up()
    assert asterisk.count("Ping") == 1
    assert asterisk.count("Login") == 2
    del asterisk.answers["Ping"]
    await run.settled()


async def test_link_that_answers_pings_is_kept(asterisk: FakeAsterisk, run_ami: RunAmi) -> None:
    run = run_ami(ping_interval=0.2)
    await run.up()
    for _ in range(2):
        await asterisk.received("Ping")
    assert len(asterisk.connections) == 1


async def test_round_trip_is_that_of_the_latest_ping_and_unknown_without_a_connection(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    run = run_ami(ping_interval=0.1)
    await run.up()
    assert (run.ami.is_up, run.ami.rtt_s, run.ami.connects) == (True, 0.0, 1)
    await wait_until(lambda: run.ami.rtt_s)
    assert run.ami.rtt_s > 0
    asterisk.connections[-1].drop()
    await wait_until(lambda: not run.ami.is_up)
    assert run.ami.rtt_s == 0.0
    await run.up()
    assert (run.ami.is_up, run.ami.connects) == (True, 2)


async def test_host_that_cannot_be_a_name_is_said_and_does_not_end_the_link(
    run_ami: RunAmi,
) -> None:
    run = run_ami(host="a..b")
    await wait_until(lambda: "a..b" in run.ami.status)
    assert not run.task.done()


async def test_ca_file_that_is_missing_is_said_and_does_not_end_the_link(run_ami: RunAmi) -> None:
    run = run_ami(tls=True, ca_file="/nonexistent")
    await wait_until(lambda: "No such file" in run.ami.status)
    assert not run.task.done()


def _our_tasks() -> list[str]:
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "Ami" in name or "_AmiConnection" in name]


@pytest.mark.parametrize("stage", ["login", "version", "up", "serving", "pause"])
async def test_cancelled_run_leaves_no_task_and_no_socket(
    asterisk: FakeAsterisk, run_ami: RunAmi, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    entered = asyncio.Event()

    async def wait_for_ever() -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    if stage == "login":
        asterisk.answers["Login"] = silence
    if stage == "version":
        asterisk.answers["CoreSettings"] = silence
    run = run_ami()
    if stage == "up":
        run.on_up = wait_for_ever
    if stage in ("login", "version"):
        await asterisk.received({"login": "Login", "version": "CoreSettings"}[stage])
    else:
        await run.up()
    if stage == "up":
        await entered.wait()
    if stage == "pause":
        monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 60)
        run.ami._waits = Backoff(60, 60)
        asterisk.connections[-1].drop()
        await wait_until(lambda: "closed the connection" in run.ami.status)
    await run.cancel()
    assert run.task.cancelled()
    assert _our_tasks() == []
    async with asyncio.timeout(5):
        await asterisk.connections[-1].closed.wait()
    assert len(asterisk.connections) == 1
    with pytest.raises(AmiUnavailable):
        await run.ami.action("Ping", [])


# --- One connection, without a second try --------------------------------------------------------


async def test_connected_logs_in_once_and_closes_after_use(asterisk: FakeAsterisk) -> None:
    events: list[Event] = []
    config = AsteriskConfig(port=asterisk.port, username="audiofork", secret="hunter2")
    async with ami_module.connected(config, events.append) as ami:
        asterisk.send(block("Event: Hangup", "Uniqueid: 1.1"))
        await ami.action("Ping", [])
        (connection,) = asterisk.connections
        assert not connection.closed.is_set()
    assert events == [ChannelHangup("1.1")]
    assert [action["action"] for action in asterisk.actions] == ["Login", "Ping"]
    with pytest.raises(AmiUnavailable):
        await ami.action("Ping", [])
    async with asyncio.timeout(5):
        await connection.closed.wait()


async def test_connected_with_a_refused_login_raises_and_closes(asterisk: FakeAsterisk) -> None:
    asterisk.answers["Login"] = lambda action: response(
        action, "Message: Authentication failed", ok=False
    )
    with pytest.raises(AmiLoginRefused, match="Authentication failed"):
        async with ami_module.connected(AsteriskConfig(port=asterisk.port, secret="x"), print):
            pytest.fail("is let in")
    async with asyncio.timeout(5):
        await asterisk.connections[0].closed.wait()


async def test_connected_without_a_server_raises(asterisk: FakeAsterisk) -> None:
    await asterisk.stop()
    with pytest.raises(OSError, match=str(asterisk.port)):
        async with ami_module.connected(AsteriskConfig(port=asterisk.port, secret="x"), print):
            pytest.fail("is let in")


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
async def tls_asterisk(tmp_path: Path) -> Any:
    """An AMI server with TLS, and the file of the authority that signed its certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = FakeAsterisk(context)
    await server.start()
    yield server, str(tmp_path / "ca.pem")
    await server.stop()


async def test_tls_with_the_right_authority_connects(tls_asterisk: Any, run_ami: RunAmi) -> None:
    server, ca_file = tls_asterisk
    run = run_ami(host="localhost", port=server.port, tls=True, ca_file=ca_file)
    await run.up()
    await run.settled()
    await run.cancel()


@pytest.mark.parametrize(
    ("host", "own_ca", "expected"),
    [
        pytest.param("localhost", True, "add that authority to [asterisk] ca_file", id="authority"),
        pytest.param("127.0.0.1", False, "is for other names than 127.0.0.1", id="name"),
    ],
)
async def test_tls_with_a_certificate_that_does_not_fit_is_refused_with_the_reason(
    tls_asterisk: Any, run_ami: RunAmi, tmp_path: Path, host: str, own_ca: bool, expected: str
) -> None:
    server, ca_file = tls_asterisk
    if own_ca:
        ca_file = str(tmp_path / "other.pem")
        trustme.CA().cert_pem.write_to_path(ca_file)
    run = run_ami(host=host, port=server.port, tls=True, ca_file=ca_file)
    await wait_until(lambda: "no connection" in run.ami.status)
    assert expected in run.ami.status
    await run.cancel()
    assert server.actions == []


async def test_tls_with_a_port_that_has_none_tells_which_port_has(
    asterisk: FakeAsterisk, run_ami: RunAmi
) -> None:
    run = run_ami(tls=True)
    await wait_until(lambda: "no connection" in run.ami.status)
    assert run.ami.status == (
        f"no connection to Asterisk at 127.0.0.1:{asterisk.port}: the other side does not speak "
        "TLS on this port; with tls = yes [asterisk] port is that of tlsbindaddr in manager.conf"
    )


async def test_tls_with_authorities_that_cannot_be_read_names_option_and_file(
    asterisk: FakeAsterisk, run_ami: RunAmi, tmp_path: Path
) -> None:
    run = run_ami(tls=True, ca_file=str(tmp_path))
    await wait_until(lambda: "no connection" in run.ami.status)
    assert run.ami.status.endswith(f": [asterisk] ca_file: {tmp_path}: a folder, not a file")
