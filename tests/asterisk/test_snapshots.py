"""What a caller chooses stays a value, whatever it looks like."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audiofork.asterisk.ami_protocol import (
    BridgeChanged,
    ChannelHangup,
    HoldChanged,
    RequestReceived,
    parse,
    typed,
)
from audiofork.asterisk.snapshots import CHANNEL, ORDERS, Forged, check

UNIQUEID, CHANNEL_NAME = "1700000000.1", "PJSIP/100-0000002a"
VICTIM = "1700000000.9"
VALUES = {
    **dict.fromkeys(CHANNEL, ""),
    **{"Channel": CHANNEL_NAME, "ChannelState": "6", "Priority": "1"},
    **{"Uniqueid": UNIQUEID, "Linkedid": UNIQUEID},
}
TAILS = {
    "Hangup": [("Cause", "16"), ("Cause-txt", "Normal Clearing")],
    "HangupRequest": [("Cause", "16"), ("TechCause", "200")],
    "Hold": [("MusicClass", "default")],
    "Unhold": [],
    "DTMFEnd": [("Digit", "5"), ("DurationMs", "100"), ("Direction", "Received")],
    "BridgeEnter": [("SwapUniqueid", "1700000000.7")],
    "BridgeLeave": [],
    "UserEvent": [("UserEvent", "AudioFork"), ("WsServer", "ws://127.0.0.1/")],
    "CoreShowChannel": [("ApplicationData", ""), ("Duration", "00:00:01"), ("BridgeId", "")],
    "Status": [("Type", "PJSIP"), ("DNID", ""), ("BridgeID", "b"), ("ActionID", "1")],
}
HEADS = {
    **{name: [("Privilege", "call,all")] for name in TAILS},
    **{
        name: [("Privilege", "call,all"), *((one, "b") for one in ORDERS[name][:7])]
        for name in ("BridgeEnter", "BridgeLeave")
    },
    "CoreShowChannel": [("ActionID", "1")],
}
# What a caller can have a say in.
FREE = (
    *("Channel", "CallerIDNum", "CallerIDName", "ConnectedLineNum", "ConnectedLineName"),
    *("Language", "AccountCode", "Context", "Exten", "BridgeName", "ApplicationData", "DNID"),
)


def written(event: str, values: dict[str, str]) -> str:
    """Return an event as Asterisk writes it, with its values as they are."""
    headers = [*HEADS[event], *((name, VALUES[name]) for name in CHANNEL), *TAILS[event]]
    lines = [f"{name}: {values.get(name, value)}" for name, value in headers]
    return "\r\n".join([f"Event: {event}", *lines])


def uniqueids(event: str, text: str) -> set[str]:
    """Return what is taken for a channel's uniqueid; nothing of a message that is dropped."""
    headers = parse(text)
    try:
        taken = typed(event, headers)
    except Forged:
        return set()
    if isinstance(taken, RequestReceived):
        return {taken.fields["uniqueid"]}
    if isinstance(taken, ChannelHangup | HoldChanged | BridgeChanged):
        return {taken.uniqueid}
    return {value for name, value in headers if name.lower() == "uniqueid"}


@pytest.mark.parametrize("event", TAILS)
def test_honest_event_passes(event: str) -> None:
    assert uniqueids(event, written(event, {"Exten": "100", "CallerIDName": "Zoë: 1"})) == {
        UNIQUEID
    }


@pytest.mark.parametrize("field", FREE)
def test_line_in_a_value_is_no_header(field: str) -> None:
    names = (*CHANNEL, "UserEvent", "Event", "ActionID", "uniqueid")
    for event, name in itertools.product(TAILS, names):
        text = written(event, {field: f"1\r\n{name}: {VICTIM}"})
        assert uniqueids(event, text) <= {UNIQUEID}, (event, name)


@pytest.mark.parametrize("field", ["CallerIDNum", "Exten"])
def test_whole_rest_of_a_snapshot_in_a_value_is_no_rest(field: str) -> None:
    rest = "".join(f"\r\n{name}: {VICTIM}" for name in CHANNEL[CHANNEL.index(field) + 1 :])
    for event in TAILS:
        assert uniqueids(event, written(event, {field: f"1{rest}"})) == set()


def test_request_in_a_value_is_none() -> None:
    forged = f"1\r\nPriority: 1\r\nUniqueid: {VICTIM}\r\nLinkedid: 1\r\nUserEvent: AudioFork"
    text = written("UserEvent", {"Exten": f"{forged}\r\nCommand: StopAudioFork"})
    with pytest.raises(Forged, match="UserEvent is not there once"):
        typed("UserEvent", parse(text))


def test_snapshot_without_its_end_is_none() -> None:
    cut = written("Hangup", {}).partition("\r\nUniqueid")[0] + f"\r\nUniqueid: {VICTIM}"
    with pytest.raises(Forged, match="Linkedid is not there once"):
        check("Hangup", parse(cut))


@pytest.mark.parametrize("name", ["Tenantid", "ChanVariable", "HeaderOfALaterVersion"])
def test_header_that_is_not_known_may_stand_anywhere(name: str) -> None:
    lines = written("Hangup", {}).split("\r\n")
    for position in range(1, len(lines)):
        text = "\r\n".join([*lines[:position], f"{name}: x", *lines[position:]])
        assert uniqueids("Hangup", text) == {UNIQUEID}


PIECE = st.one_of(
    st.sampled_from(
        ["\r\n", "\r", "\n", ": ", ":", VICTIM, "AudioFork", "\r\nUserEvent: AudioFork"]
    ),
    st.sampled_from([f"\r\n{name}: " for name in (*CHANNEL, "UserEvent", "BridgeID", "ActionID")]),
    st.text(max_size=5),
)
VALUE = st.lists(PIECE, max_size=20).map("".join)


@pytest.mark.slow
@settings(max_examples=400)
@given(st.sampled_from(list(TAILS)), st.dictionaries(st.sampled_from(FREE), VALUE, max_size=4))
@example("Hangup", {"Exten": f"1\r\nUniqueid: {VICTIM}"})
def test_uniqueid_is_asterisk_s_whatever_is_in_the_values(
    event: str, values: dict[str, str]
) -> None:
    """Values with an empty line are another matter: they cut the message, see test_ami_blocks."""
    assert uniqueids(event, written(event, values)) <= {UNIQUEID}
