import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from audiofork.asterisk.channels import Channels, Target
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    NoSuchChannel,
    RequestRefused,
)
from tests.control_plane import FakeAmi

NAME, UNIQUEID = "PJSIP/100-0000002a", "1700000000.1"


@pytest.fixture
def ami() -> FakeAmi:
    ami = FakeAmi()
    ami.channels = {UNIQUEID: NAME, "2.2": "PJSIP/200-0000002b"}
    return ami


@pytest.fixture
def channels(ami: FakeAmi) -> Channels:
    return Channels(ami)  # type: ignore[arg-type]


async def test_present_has_the_names_of_all_channels(ami: FakeAmi, channels: Channels) -> None:
    ami.channels[""] = "no channel at all"
    assert await channels.present() == {UNIQUEID: NAME, "2.2": "PJSIP/200-0000002b"}


Question = Callable[[Channels], Awaitable[object]]

QUESTIONS: dict[str, Question] = {
    "look_up": lambda channels: channels.look_up(Target("nobody")),
    "check_alive": lambda channels: channels.check_alive("9.9"),
    "is_bridged": lambda channels: channels.is_bridged("9.9"),
    "values": lambda channels: channels.values("9.9", ["A"]),
    "sample_rate": lambda channels: channels.sample_rate("9.9"),
}


@pytest.mark.parametrize(
    "target",
    [Target(NAME), Target("", UNIQUEID), Target("PJSIP/200-0000002b", UNIQUEID)],
    ids=["name", "uniqueid", "uniqueid-goes-first"],
)
async def test_look_up_gives_name_and_uniqueid(channels: Channels, target: Target) -> None:
    assert await channels.look_up(target) == (NAME, UNIQUEID)


async def test_look_up_of_a_channel_without_a_name_finds_none(
    ami: FakeAmi, channels: Channels
) -> None:
    # Asterisk takes a channel's variables for those of no channel while it is destroyed.
    ami.channels["3.3"] = ""
    with pytest.raises(NoSuchChannel):
        await channels.look_up(Target("", "3.3"))


async def test_check_alive_of_a_channel_that_lives_returns(channels: Channels) -> None:
    await channels.check_alive(UNIQUEID)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=list(QUESTIONS))
async def test_question_about_no_channel_raises_no_such_channel(
    channels: Channels, question: Question
) -> None:
    with pytest.raises(NoSuchChannel, match="^No such channel$"):
        await question(channels)


@pytest.mark.parametrize(
    "exc",
    [AmiActionFailed("Getvar", "Permission denied"), AmiTimeout("late"), AmiUnavailable("down")],
    ids=lambda exc: type(exc).__name__,
)
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=list(QUESTIONS))
async def test_question_that_cannot_be_asked_raises_why(
    ami: FakeAmi, channels: Channels, question: Question, exc: AmiError
) -> None:
    ami.faults = {"Getvar": exc, "Status": exc}
    with pytest.raises(type(exc)) as caught:
        await question(channels)
    assert caught.value is exc


@pytest.mark.parametrize("bridged", [True, False])
async def test_is_bridged_asks_for_the_status_of_the_channel_alone(
    ami: FakeAmi, channels: Channels, bridged: bool
) -> None:
    ami.bridged = {UNIQUEID} if bridged else {"2.2"}
    assert await channels.is_bridged(UNIQUEID) is bridged
    assert ami.actions == [("Status", [("Channel", UNIQUEID)], "")]


async def test_values_are_given_by_name_and_empty_if_not_set(
    ami: FakeAmi, channels: Channels
) -> None:
    ami.values = {"A": "one; two", "CALLERID(num)": "100"}
    names = ("CALLERID(num)", "A", "B")
    assert await channels.values(UNIQUEID, names) == {
        "CALLERID(num)": "100",
        "A": "one; two",
        "B": "",
    }
    assert all(dict(headers)["Channel"] == UNIQUEID for _, headers, _ in ami.actions)


async def test_values_of_no_names_ask_nothing(ami: FakeAmi, channels: Channels) -> None:
    assert await channels.values(UNIQUEID, ()) == {}
    assert ami.actions == []


async def test_values_are_asked_for_at_once(ami: FakeAmi, channels: Channels) -> None:
    gate = ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(channels.values(UNIQUEID, "ABC"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(ami.actions) == 3
    gate.set()
    assert await asked == {"A": "", "B": "", "C": ""}


@pytest.mark.parametrize(
    ("formats", "rate"),
    [
        ("(ulaw|alaw)", 8000),
        ("(ulaw)", 8000),
        ("(g722)", 16000),
        ("(alaw|g722)", 16000),
        ("(g722|alaw)", 16000),
        ("(opus|g722|ulaw)", 48000),
        ("(siren14)", 32000),
        ("(silk12)", 12000),
        ("(slin)", 8000),
        ("(slin16)", 16000),
        ("(slin44)", 44100),
        ("(slin192)", 192000),
        ("(a format of tomorrow)", 8000),
        ("ulaw", 8000),
        ("g722", 16000),
        ("(nothing)", 8000),
    ],
)
async def test_sample_rate_is_that_of_the_widest_native_format(
    ami: FakeAmi, channels: Channels, formats: str, rate: int
) -> None:
    ami.values = {"CHANNEL(audionativeformat)": formats}
    assert await channels.sample_rate(UNIQUEID) == rate
    ((_, headers, _),) = ami.actions
    assert dict(headers)["Channel"] == UNIQUEID


async def test_sample_rate_of_a_channel_that_names_no_format_finds_none(
    ami: FakeAmi, channels: Channels
) -> None:
    # Of a channel that does not live Asterisk says nothing; one that does has "(nothing)".
    with pytest.raises(NoSuchChannel):
        await channels.sample_rate(UNIQUEID)


HOSTILE, SHOWN = "Local/1\n\x1b[31m\u2028@x-1;2", "Local/1??[31m?@x-1;2"


async def test_name_is_given_without_control_characters(ami: FakeAmi, channels: Channels) -> None:
    ami.channels = {UNIQUEID: HOSTILE}
    ami.values = {"BRIDGEPEER": f"{HOSTILE},PJSIP/2"}
    assert await channels.look_up(Target(uniqueid=UNIQUEID)) == (SHOWN, UNIQUEID)
    assert await channels.present() == {UNIQUEID: SHOWN}
    assert await channels.bridge_peers(UNIQUEID) == {SHOWN, "PJSIP/2"}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("CALLERID(num)", r"REPLACE(CALLERID(num),\\r,\n)"),
        (r'CUT(X,\,,"1")', r"REPLACE(CUT(X,\\,,\"1\"),\\r,\n)"),
    ],
)
async def test_value_is_asked_for_without_carriage_returns(
    ami: FakeAmi, channels: Channels, name: str, asked: str
) -> None:
    """An empty line in it would end Asterisk's answer."""
    await channels.values(UNIQUEID, [name])
    assert [dict(headers)["Variable"] for _, headers, _ in ami.actions] == [asked]


async def test_value_that_asterisk_may_have_cut_is_refused(
    ami: FakeAmi, channels: Channels
) -> None:
    ami.values = {"A": "x" * 1022, "B": "x" * 1023}
    assert await channels.values(UNIQUEID, ["A"]) == {"A": "x" * 1022}
    with pytest.raises(RequestRefused, match=r"^\^\{B\}: longer than 1022 bytes$"):
        await channels.values(UNIQUEID, ["A", "B"])


async def test_values_at_once_are_one_question_and_come_as_they_are(
    ami: FakeAmi, channels: Channels
) -> None:
    odd = 'a):1:2\r\n\r\nEvent: x, "_}~\\ ü'
    ami.values_of[UNIQUEID] = {"CALLERID(num)": "7", "CALLERID(name)": odd, "A(b,c)": "_"}
    wanted = ["CALLERID(num)", "CALLERID(name)", "NOT_SET", "A(b,c)"]
    assert await channels.at_once(UNIQUEID, wanted) == ["7", odd, "", "_"]
    assert len(ami.actions) == 1


async def test_values_at_once_that_do_not_fit_one_question_take_several(
    ami: FakeAmi, channels: Channels
) -> None:
    values = {f"AUDIOFORK_PARAM_{number:04}": str(number) for number in range(100)}
    ami.values_of[UNIQUEID] = values
    assert await channels.at_once(UNIQUEID, values) == list(values.values())


async def test_values_at_once_that_do_not_fit_one_answer_come_by_several(
    ami: FakeAmi, channels: Channels
) -> None:
    values = {f"V{number}": str(number) * 100 for number in range(20)}
    ami.values_of[UNIQUEID] = values
    assert await channels.at_once(UNIQUEID, values) == list(values.values())
    assert len(ami.actions) > 1


@pytest.mark.parametrize("name", ["LONG", "OTHER"])
async def test_value_at_once_that_is_too_long_is_cut_and_costs_no_other(
    ami: FakeAmi, channels: Channels, name: str
) -> None:
    ami.values_of[UNIQUEID] = {"LONG": "ü" * 2000, "OTHER": "o"}
    long, other = await channels.at_once(UNIQUEID, ["LONG", "OTHER"])
    assert "ü" * 370 <= long.rstrip("\ufffd") <= "ü" * 400
    assert other == "o"


async def test_values_at_once_without_the_module_that_encodes_are_empty(
    ami: FakeAmi, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami, "_encoded", lambda *_: "__")
    assert await channels.at_once(UNIQUEID, ["A", "B"]) == ["", ""]


async def test_values_at_once_are_whole_where_asterisk_leaves_out_what_base64_would_pad(
    ami: FakeAmi, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 18.24.3 does; 18.26.4 does not."""
    values = {f"V{length}": "1234567"[:length] for length in range(8)}
    ami.values_of[UNIQUEID] = values
    whole = ami._encoded
    monkeypatch.setattr(
        ami, "_encoded", lambda *of: re.sub("[^_=]{2}(?:==|[^_=]=)", "", whole(*of))
    )
    assert await channels.at_once(UNIQUEID, values) == list(values.values())


async def test_values_at_once_of_no_channel_raise_no_such_channel(channels: Channels) -> None:
    with pytest.raises(NoSuchChannel):
        await channels.at_once("9.9", ["A"])
