from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.asterisk.channels import Target
from audiofork.asterisk.snapshots import CHANNEL
from audiofork.errors import RequestRefused
from audiofork.forks.options import Options
from audiofork.forks.requests import (
    MAX_FIELD_BYTES,
    MuteFork,
    StartFork,
    StopFork,
    fields_of,
    parse_request,
)
from audiofork.link.messages import Direction

START = {"Channel": "PJSIP/100-0000002a", "WsServer": "ws://example.org/"}
FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
KNOWN = (
    *("Channel", "Uniqueid", "WsServer", "Options", "AudioForkID", "ActionID"),
    *("PostProcess", "Direction", "State", "Command"),
)


def test_start_with_all_fields() -> None:
    fields = {
        "Command": "StartAudioFork",
        "Channel": "PJSIP/100-0000002a",
        "Uniqueid": "1700000000.1",
        "WsServer": "ws://example.org/",
        "Options": "D(in)",
        "PostProcess": "/opt/upload ^{UNIQUEID}",
        "ActionID": "7",
    }
    assert parse_request(fields) == StartFork(
        Target("PJSIP/100-0000002a", "1700000000.1"),
        "ws://example.org/",
        Options(Direction.IN),
        "/opt/upload ^{UNIQUEID}",
        "7",
        "D(in)",
    )


def test_start_without_command_or_options_has_the_defaults() -> None:
    assert parse_request(START) == StartFork(
        Target("PJSIP/100-0000002a"), "ws://example.org/", Options(), post_process="", action_id=""
    )


def test_start_by_uniqueid_alone() -> None:
    request = parse_request({"Uniqueid": "1.1", "WsServer": "ws://a/"})
    assert request.target == Target("", "1.1")


@pytest.mark.parametrize("change", [str.upper, str.lower, str.swapcase])
def test_names_of_fields_are_case_insensitive(change: Callable[[str], str]) -> None:
    fields = {**START, "Uniqueid": "1.1", "Options": "D(out)", "ActionID": "7", "Command": ""}
    assert parse_request({change(name): value for name, value in fields.items()}) == parse_request(
        fields
    )


@pytest.mark.parametrize("verb", ["StartAudioFork", "startaudiofork", "STARTAUDIOFORK", " ", ""])
def test_verb_of_a_start_is_case_insensitive_or_missing(verb: str) -> None:
    assert isinstance(parse_request({**START, "Command": verb}), StartFork)


@pytest.mark.parametrize("verb", ["StopAudioFork", "stopaudiofork", "STOPAUDIOFORK"])
def test_verb_of_a_stop_is_case_insensitive(verb: str) -> None:
    fields = {"Command": verb, "Channel": "PJSIP/1", "ActionID": "7"}
    assert parse_request(fields) == StopFork(Target("PJSIP/1"), "", "7")


@pytest.mark.parametrize("command", ["Start", "stop", "rm -r *", "/opt/x ^{A} | wc"])
def test_command_that_is_no_verb_is_the_post_process_command_of_a_start(command: str) -> None:
    request = parse_request({**START, "Command": f" {command} "})
    assert isinstance(request, StartFork)
    assert request.post_process == command


def test_post_process_goes_before_a_command_that_is_no_verb() -> None:
    request = parse_request({**START, "Command": "one", "PostProcess": "two"})
    assert isinstance(request, StartFork)
    assert request.post_process == "two"


@pytest.mark.parametrize("command", ["StopAudioFork", "AudioForkMute"])
def test_post_process_of_a_stop_or_mute_means_nothing(command: str) -> None:
    fields = {"Command": command, "Channel": "PJSIP/1", "Direction": "read", "State": "1"}
    assert parse_request({**fields, "PostProcess": "x"}) == parse_request(fields)


def test_blanks_around_values_are_removed() -> None:
    fields = {name: f" \t{value}\t " for name, value in START.items()}
    assert parse_request(fields) == parse_request(START)


def test_field_that_nobody_knows_is_ignored() -> None:
    assert parse_request({**START, "Foo": "x", "": ""}) == parse_request(START)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [{}, {"Channel": ""}, {"Uniqueid": " ", "Channel": "\t"}])
@pytest.mark.parametrize("command", ["StartAudioFork", "StopAudioFork", "AudioForkMute"])
def test_without_channel_is_refused(command: str, channel: dict[str, str]) -> None:
    with pytest.raises(RequestRefused, match="^No channel specified$"):
        parse_request({"Command": command, "WsServer": "ws://a/", **channel})


def test_start_without_url_is_refused() -> None:
    with pytest.raises(RequestRefused, match="^WsServer: missing$"):
        parse_request({"Channel": "PJSIP/1"})


def test_start_with_bad_options_is_refused() -> None:
    with pytest.raises(RequestRefused, match="^Options: unknown option 'y'; there are "):
        parse_request({**START, "Options": "y"})


@pytest.mark.parametrize("command", ["StartAudioFork", "StopAudioFork", "AudioForkMute"])
@pytest.mark.parametrize("name", KNOWN)
def test_control_character_in_a_field_is_refused(command: str, name: str) -> None:
    for character in "\r\n\0\t\x1b\x7f\x85\u2028\ud800":
        fields = {**START, "Command": command, "AudioForkID": FORK_ID}
        fields[name] = fields.get(name, "") + f"a{character}b"
        with pytest.raises(RequestRefused) as caught:
            parse_request(fields)
        expected = f"{name}: control characters are not allowed"
        assert str(caught.value) == expected, ascii(character)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "Options"])
@pytest.mark.parametrize("filler", ["a", "é"])
def test_too_long_field_is_refused(name: str, filler: str) -> None:
    fields = {**START, name: filler * (MAX_FIELD_BYTES // len(filler.encode()) + 1)}
    with pytest.raises(RequestRefused, match=f"^{name}: longer than 1000 bytes$"):
        parse_request(fields)


def test_field_of_longest_length_is_taken() -> None:
    channel = "a" * MAX_FIELD_BYTES
    assert parse_request({**START, "Channel": channel}).target == Target(channel)


def test_too_long_options_are_refused() -> None:
    with pytest.raises(RequestRefused, match="^Options: longer than 4096 bytes$"):
        parse_request({**START, "Options": " " * 4096 + "S" * 4097})


# --- Mute ----------------------------------------------------------------------------------------

MUTE = {"Command": "AudioForkMute", "Channel": "PJSIP/1", "Direction": "read", "State": "1"}


@pytest.mark.parametrize("verb", ["AudioForkMute", "audioforkmute", "AUDIOFORKMUTE"])
def test_verb_of_a_mute_is_case_insensitive(verb: str) -> None:
    assert parse_request({**MUTE, "Command": verb, "ActionID": "7"}) == MuteFork(
        Target("PJSIP/1"), "", mute_in=True, mute_out=None, action_id="7"
    )


@pytest.mark.parametrize(
    ("state", "mute"),
    [
        *((word, True) for word in ("1", "on", "yes", "true", "ON", "Yes", " true ")),
        *((word, False) for word in ("0", "off", "no", "false", "OFF", "No", " False ")),
    ],
)
def test_state_of_a_mute_in_each_word(state: str, mute: bool) -> None:
    request = parse_request({**MUTE, "Direction": "both", "State": state})
    assert isinstance(request, MuteFork)
    assert (request.mute_in, request.mute_out) == (mute, mute)


@pytest.mark.parametrize(
    ("direction", "sides"),
    [
        ("read", (True, None)),
        ("write", (None, True)),
        ("both", (True, True)),
        ("READ", (True, None)),
        (" Write ", (None, True)),
    ],
)
def test_direction_of_a_mute_leaves_the_other_side_as_it_is(
    direction: str, sides: tuple[bool | None, bool | None]
) -> None:
    request = parse_request({**MUTE, "Direction": direction})
    assert isinstance(request, MuteFork)
    assert (request.mute_in, request.mute_out) == sides


def test_mute_by_id_needs_no_channel() -> None:
    request = parse_request({**MUTE, "Channel": "", "AudioForkID": FORK_ID.upper()})
    assert request == MuteFork(Target(), FORK_ID, mute_in=True, mute_out=None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Channel": ""}, "No channel specified"),
        ({"AudioForkID": "1"}, "AudioForkID: not a UUID"),
        ({"Direction": ""}, "No direction specified. Must be read, write or both"),
        ({"Direction": "7"}, "Invalid direction specified. Must be read, write or both"),
        ({"State": ""}, "No state specified"),
        ({"State": "2"}, "State: expected 1, 0, on, off, yes, no, true or false"),
        ({"State": "mute"}, "State: expected 1, 0, on, off, yes, no, true or false"),
        ({"State": "a\nb"}, "State: control characters are not allowed"),
        ({"Direction": "a\nb"}, "Direction: control characters are not allowed"),
    ],
    ids=str,
)
def test_bad_mute_is_refused(change: dict[str, str], text: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request({**MUTE, **change})
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["Direction", "State"])
def test_mute_without_a_field_is_refused(name: str) -> None:
    with pytest.raises(RequestRefused, match=f"^No {name.lower()} specified"):
        parse_request({key: value for key, value in MUTE.items() if key != name})


# --- AudioForkID ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        FORK_ID,
        FORK_ID.upper(),
        FORK_ID.replace("-", ""),
        f"{{{FORK_ID}}}",
        f"urn:uuid:{FORK_ID}",
    ],
)
def test_stop_by_id_in_any_form_of_a_uuid(text: str) -> None:
    fields = {"Command": "StopAudioFork", "AudioForkID": text}
    assert parse_request(fields) == StopFork(Target(), FORK_ID)


@pytest.mark.parametrize("text", ["3f2a91c", FORK_ID + "0", FORK_ID[:-1] + "x", "*", "-"])
def test_stop_by_id_that_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(RequestRefused, match="^AudioForkID: not a UUID$"):
        parse_request({"Command": "StopAudioFork", "Channel": "PJSIP/1", "AudioForkID": text})


@pytest.mark.parametrize("length", range(8, 36))
def test_stop_by_the_beginning_of_an_id_is_left_to_those_who_know_the_forks(length: int) -> None:
    fields = {"Command": "StopAudioFork", "AudioForkID": FORK_ID[:length].upper()}
    assert parse_request(fields) == StopFork(Target(), FORK_ID[:length])


# --- Near misses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Option", "Options"),
        ("optoins", "Options"),
        ("Post-Process", "PostProcess"),
        ("Post_Process", "PostProcess"),
        ("Unique-Id", "Uniqueid"),
    ],
)
def test_field_that_is_nearly_one_is_refused_with_that(name: str, meant: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request({**START, name: "x"})
    assert str(caught.value).endswith(f": no such field; did you mean {meant}?")


def test_field_that_is_nearly_one_is_ignored_where_that_one_is_there_too() -> None:
    fields = {**START, "Options": "D(in)"}
    assert parse_request({**fields, "Option": "x"}) == parse_request(fields)


def test_headers_that_asterisk_puts_into_events_and_actions_are_near_to_no_field() -> None:
    headers = [*CHANNEL, "Action", "UserEvent", "Event", "Privilege", "Variable", "Account"]
    fields = {name: "x" for name in headers if name not in KNOWN}
    stop = {"Command": "StopAudioFork", "AudioForkID": FORK_ID}
    for request in (START, stop):
        assert parse_request({**fields, **request}) == parse_request(request)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("StopAudioFork2", "StopAudioFork"),
        ("StopAudoFork", "StopAudioFork"),
        ("stratAudioFork", "StartAudioFork"),
        ("MuteAudioFork", ""),
        ("AudioForkMut", "AudioForkMute"),
    ],
)
def test_verb_that_is_nearly_one_starts_nothing(command: str, meant: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_request({"Channel": "PJSIP/1", "Command": command})
    hint = f"; did you mean {meant}?"
    assert (hint if meant else f"{command} is none of StartAudioFork, ") in str(caught.value)


@pytest.mark.parametrize(
    ("direction", "hint"),
    [("raed", "did you mean read?"), ("in", "in is read"), ("out", "out is write")],
)
def test_direction_that_is_nearly_one_gets_that(direction: str, hint: str) -> None:
    with pytest.raises(RequestRefused, match=f"read, write or both; {hint}".replace("?", r"\?")):
        parse_request({**MUTE, "Direction": direction})


def test_state_that_is_nearly_one_gets_that() -> None:
    with pytest.raises(RequestRefused, match=r"true or false; did you mean true\?$"):
        parse_request({**MUTE, "State": "ture"})


@pytest.mark.parametrize("blank", ["\u00a0", "\u200b", "\ufeff", " \u00a0 "])
def test_blanks_that_copying_puts_around_values_are_removed(blank: str) -> None:
    fields = {name: f"{blank}{value}{blank}" for name, value in START.items()}
    assert parse_request(fields) == parse_request(START)


def test_colours_of_a_terminal_around_a_value_are_named() -> None:
    with pytest.raises(RequestRefused, match=r"^Channel: .* \(it has the colours of a terminal\)$"):
        parse_request({**START, "Channel": "\x1b[32mPJSIP/1\x1b[0m"})


# --- Anything ------------------------------------------------------------------------------------

names = st.one_of(st.sampled_from([*KNOWN, "channel", "COMMAND"]), st.text())
values = st.one_of(
    st.sampled_from(["StartAudioFork", "StopAudioFork", "AudioForkMute", "ws://a/", FORK_ID]),
    st.sampled_from(["read", "write", "1", "off", "D(in)", "T(on)B(5)pPv(4)", "R(9)r(0)i(x)Sab"]),
    st.text(),
)


@given(
    st.one_of(
        st.dictionaries(names, values),
        st.fixed_dictionaries(dict.fromkeys(KNOWN, values)),
    )
)
@example({"Command": "StopAudioFork", "AudioForkID": "１" * 32})
def test_any_fields_give_a_request_or_a_refusal(fields: dict[str, str]) -> None:
    try:
        request = parse_request(fields)
    except RequestRefused as exc:
        refusal = str(exc)
        assert refusal
    else:
        assert isinstance(request, StartFork | StopFork | MuteFork)
        texts = (request.target.channel, request.target.uniqueid, request.action_id)
        assert all(text.isprintable() for text in texts)


# --- Back to fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {
            **{"Command": "StartAudioFork", "Channel": "PJSIP/1-1", "WsServer": "@vosk"},
            **{"Options": "D(stereo)x(json)", "Params": "a=b%26c&d=", "PostProcess": "x"},
        },
        {"Command": "ConnectAudioFork", "Uniqueid": "1.1", "WsServer": "ws://h/", "ActionID": "7"},
        {"Command": "StopAudioFork", "Channel": "PJSIP/1-1"},
        {"Command": "StopAudioFork", "AudioForkID": "3f2a91c0-0000-4000-8000-000000000001"},
        {"Command": "AudioForkMute", "AudioForkID": "3f2a91c0", "Direction": "read", "State": "on"},
        {"Command": "AudioForkMute", "Channel": "a", "Direction": "both", "State": "off"},
    ],
)
def test_fields_of_a_request_make_the_same_request(fields: dict[str, str]) -> None:
    request = parse_request(fields)
    (again,) = fields_of(request)
    assert parse_request(again) == request


def test_sides_that_become_different_are_two_requests() -> None:
    request = MuteFork(Target("", ""), "3f2a91c0", mute_in=True, mute_out=False)
    sides = [parse_request(fields) for fields in fields_of(request)]
    assert sides == [
        MuteFork(Target("", ""), "3f2a91c0", mute_in=True, mute_out=None),
        MuteFork(Target("", ""), "3f2a91c0", mute_in=None, mute_out=False),
    ]
