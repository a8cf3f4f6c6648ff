from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiofork.doors.ami_front_protocol import (
    ANSWER_BYTES,
    HELD_BYTES,
    LINE_BYTES,
    LINE_TOO_LONG,
    MAX_HEADERS,
    OWN_ACTIONS,
    TOO_MANY_LINES,
    AsteriskStream,
    ClientStream,
    OwnAction,
)
from audiofork.forks.requests import StartFork, StopFork, parse_request

PING = b"Action: Ping\r\nActionID: 1\r\n\r\n"
START = b"Action: AudioFork\r\nChannel: SIP/1\r\nWsServer: ws://h/\r\nActionID: 7\r\n\r\n"
PROBE_ID = "audiofork-00112233-1"
GREETING = b"Asterisk Call Manager/11.0.0\r\n"
EVENT = b"Event: Hangup\r\nChannel: SIP/1\r\n\r\n"


def take(chunks: list[bytes]) -> tuple[bytes, list[OwnAction]]:
    """Feed chunks, and the end; return what went to Asterisk, and what is ours."""
    stream = ClientStream()
    parts = [part for chunk in chunks for part in stream.feed(chunk)]
    forwarded = b"".join(part for part in parts if isinstance(part, bytes))
    return forwarded + stream.end(), [part for part in parts if isinstance(part, OwnAction)]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


def own(message: bytes) -> OwnAction:
    forwarded, (action,) = take([message])
    assert not forwarded
    return action


# --- What a client sends -------------------------------------------------------------------------


def test_others_actions_are_forwarded_as_they_came() -> None:
    stream = b"garbage\0\xff\r\n\r\n\r\n" + PING + b"Action:Login\nSecret: \xfc\n\n" + PING[:-1]
    for cut in range(len(stream)):
        assert take([stream[:cut], stream[cut:]]) == (stream, [])
    assert take([bytes([byte]) for byte in stream]) == (stream, [])


def test_own_action_is_taken_out_wherever_it_is_split() -> None:
    stream = PING + START + PING + START + START + PING
    for cut in range(len(stream)):
        forwarded, actions = take([stream[:cut], stream[cut:]])
        assert forwarded == PING * 3
        assert actions == [own(START)] * 3


def test_parts_come_in_the_order_of_the_stream() -> None:
    parts = ClientStream().feed(PING + START + PING)
    assert parts == [PING, own(START), PING]


def test_own_action_has_the_first_of_each_known_header() -> None:
    action = own(
        b"channel: \t SIP/1\r\nACTIONID:7\r\nAction: \r\nX-Other: 1\r\nno colon\r\n"
        b"Channel : no\r\nAction: startaudiofork\r\nAction: Ping\r\nChannel: SIP/2\r\n\r\n"
    )
    assert action == OwnAction("startaudiofork", {"channel": "SIP/1", "actionid": "7"}, b"7")


@pytest.mark.parametrize("name", sorted(OWN_ACTIONS))
@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_own_action_is_known_in_any_case_and_with_any_line_end(name: str, end: bytes) -> None:
    message = b"ActionID: 1" + end + b"aCTION:" + name.upper().encode() + end + end
    assert own(message).name == name


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"Action: AudioForks",
            b"Action: AudioFork ",
            b"Action : AudioFork",
            b" Action: AudioFork",
        ),
        *(
            b"Action AudioFork",
            b"XAction: AudioFork",
            b"Action:\0AudioFork",
            b"Action: AudioFork\r",
        ),
        b"Action: Ping\r\nAction: AudioFork",
    ],
)
def test_what_is_not_quite_an_own_action_is_asterisks(line: bytes) -> None:
    message = line + b"\r\n\r\n"
    assert take([message]) == (message, [])


def test_nul_ends_what_counts_of_a_line() -> None:
    assert own(b"Action: AudioFork\0x\r\nActionID: 5\0x\r\n\0more\r\n").action_id == b"5"


def test_line_as_long_as_asterisk_takes_is_read() -> None:
    line = b"Channel: ".ljust(LINE_BYTES - 2, b"x")
    action = own(b"Action: AudioFork\r\n" + line + b"\r\n\r\n")
    assert len(action.fields["channel"]) == LINE_BYTES - 2 - len("Channel: ")
    assert not action.fault


def test_own_action_with_an_endless_line_is_answered_as_asterisk_would() -> None:
    message = b"Action: AudioFork\r\nActionID: 5\r\n" + b"x" * 100_000 + b"\r\n\r\n"
    assert own(message).fault == LINE_TOO_LONG


def test_line_of_which_asterisk_keeps_only_the_cr_ends_the_message() -> None:
    """It keeps the last of LINE_BYTES bytes: a CR, which with its LF makes an empty line."""
    line = b"x" * (LINE_BYTES - 1) + b"\r\n"
    forwarded, actions = take([b"Action: AudioFork\r\n" + line + PING])
    assert forwarded == PING
    assert actions[0].fault == LINE_TOO_LONG


def test_own_action_with_too_many_headers_is_answered_as_asterisk_would() -> None:
    headers = b"".join(b"Header-%d: x\r\n" % number for number in range(10_000))
    assert own(b"Action: AudioFork\r\n" + headers + b"\r\n").fault == TOO_MANY_LINES


def test_last_header_that_fits_counts() -> None:
    others = b"X: y\r\n" * (MAX_HEADERS - 2)
    for headers in (
        (b"Action: AudioFork\r\n", b"ActionID: 5\r\n"),
        (b"ActionID: 5\r\n", b"Action: AudioFork\r\n"),
    ):
        action = own(headers[0] + others + headers[1] + b"\r\n")
        assert (action.action_id, action.fault) == (b"5", "")


def test_message_spoiled_before_it_names_an_action_is_left_to_asterisk() -> None:
    for beginning in (b"x" * LINE_BYTES + b"\r\n", b"X: y\r\n" * (MAX_HEADERS + 1)):
        message = beginning + START
        assert take([message]) == (message, [])


def test_line_without_end_is_not_held() -> None:
    stream = ClientStream()
    sent = 0
    for _ in range(1000):
        sent += sum(len(part) for part in stream.feed(b"x" * 1000) if isinstance(part, bytes))
    assert sent == 1_000_000


def test_message_that_names_no_action_is_held_to_a_limit() -> None:
    stream = ClientStream()
    line = b"X: " + b"y" * 997 + b"\r\n"
    fed = 0
    while not (parts := stream.feed(line)):
        fed += len(line)
        assert fed <= HELD_BYTES
    assert parts == [line * (fed // len(line) + 1)]
    assert stream.feed(START) == [START]


def test_end_gives_back_what_was_held() -> None:
    stream = ClientStream()
    assert stream.feed(b"Act") == []
    assert stream.end() == b"Act"
    assert stream.end() == b""


def test_end_within_an_own_action_gives_nothing() -> None:
    assert take([PING + START[:-2]]) == (PING, [])


def asterisks_view(stream: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """Do what main/manager.c does, byte by byte; leave out our actions.

    Returns what is forwarded, and the name and fault of each action of ours.
    """
    forwarded, actions = bytearray(), []
    raw, inbuf = bytearray(), bytearray()
    name, headers, too_long = "", 0, False
    for byte in stream:
        raw.append(byte)
        inbuf.append(byte)
        if byte != 10:
            if len(inbuf) == 1024:
                inbuf, too_long = inbuf[-1:], True
                name = name or "(spoiled)"
        else:
            line = bytes(inbuf[:-1]).removesuffix(b"\r").split(b"\0")[0]
            inbuf.clear()
            if line:
                headers += 1
                if headers > 128:
                    name = name or "(spoiled)"
                elif line[:7].lower() == b"action:" and line[7:].strip(bytes(range(1, 33))):
                    value = line[7:].lstrip(bytes(range(1, 33))).decode("latin-1")
                    name = name or value.lower()
            else:
                if name in OWN_ACTIONS:
                    fault = LINE_TOO_LONG if too_long else ""
                    actions.append((name, TOO_MANY_LINES if headers > 128 else fault))
                else:
                    forwarded += raw
                raw.clear()
                name, headers, too_long = "", 0, False
        if len(raw) > HELD_BYTES:
            name = name or "(spoiled)"
    return bytes(forwarded) + (b"" if name in OWN_ACTIONS else bytes(raw)), actions


PIECES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            *(PING, START, b"\r\n", b"\n", b"\r", b"\0", b"Action: AudioFork", b"Action:", b": "),
            *(b"Action: StopAudioFork\r\n", b"action:audioforkmute\n", b"ActionID: 1\r\n"),
            *(b"x" * 1022, b"x" * 1023, b"x" * 1024, b"X: y\r\n" * 127, b"X: y\r\n" * 129),
            *((b"X: " + b"y" * 900 + b"\r\n") * 14, b"Action: Login\r\n", b"\r\n\r\n"),
        ]
    ),
)


@pytest.mark.slow
@given(st.lists(PIECES, max_size=20), st.lists(st.integers(0, 10**6), max_size=8))
@example([b"Action: AudioFork\r\n", b"x" * 1023, b"\r\n", PING], [])
def test_any_bytes_in_any_split_are_forwarded_but_for_our_actions(
    pieces: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(pieces)
    forwarded, actions = take(split(stream, cuts))
    expected, expected_actions = asterisks_view(stream)
    if len(stream) <= HELD_BYTES:  # above, where it stops waiting depends on the reads
        assert forwarded == expected
        assert [(action.name, action.fault) for action in actions] == expected_actions
    for action in actions:
        action.success(["id"])
        action.error("why")


@pytest.mark.slow
@given(st.lists(PIECES, max_size=8))
def test_any_bytes_one_by_one_are_forwarded_but_for_our_actions(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    forwarded, actions = take([bytes([byte]) for byte in stream])
    expected, expected_actions = asterisks_view(stream)
    assert forwarded == expected
    assert [(action.name, action.fault) for action in actions] == expected_actions


# --- From an action to a request, and to an answer -----------------------------------------------


def action(name: str, **fields: str) -> OwnAction:
    return OwnAction(name, fields, fields.get("actionid", "").encode())


@pytest.mark.parametrize(
    ("name", "command", "verb", "asked"),
    [
        ("audiofork", "", "startaudiofork", ""),
        ("audiofork", "StartAudioFork", "startaudiofork", "startaudiofork"),
        ("audiofork", "stopaudiofork", "stopaudiofork", "stopaudiofork"),
        ("audiofork", "AudioForkMute", "audioforkmute", "audioforkmute"),
        ("audiofork", "mv a b", "startaudiofork", "mv a b"),
        ("startaudiofork", "", "startaudiofork", ""),
        ("startaudiofork", "mv a b", "startaudiofork", "mv a b"),
        ("startaudiofork", "StopAudioFork", "startaudiofork", "startaudiofork"),
        ("stopaudiofork", "StartAudioFork", "stopaudiofork", "stopaudiofork"),
        ("stopaudiofork", "mv a b", "stopaudiofork", "stopaudiofork"),
        ("audioforkmute", "StartAudioFork", "audioforkmute", "audioforkmute"),
    ],
)
def test_verb_comes_from_the_action_and_only_for_audiofork_from_command(
    name: str, command: str, verb: str, asked: str
) -> None:
    one = action(name, command=command)
    assert one.verb == verb
    assert one.request["command"] == asked


def test_request_of_a_start_has_its_post_process_command() -> None:
    request = parse_request(own(START[:-2] + b"Command: mv a b\r\n\r\n").request)
    assert isinstance(request, StartFork)
    assert (request.post_process, request.url, request.action_id) == ("mv a b", "ws://h/", "7")


@pytest.mark.parametrize(
    ("options", "offered"),
    [(b"", ("echo",)), (b"Options: D(in)\r\n", ("echo",)), (b"Options: s(v2)\r\n", ("v2",))],
)
def test_request_of_a_start_offers_what_the_module_does_unless_it_names_others(
    options: bytes, offered: tuple[str, ...]
) -> None:
    request = parse_request(own(START[:-2] + options + b"\r\n").request)
    assert isinstance(request, StartFork)
    assert request.options.subprotocols == offered


def test_request_of_a_stop_with_any_command_starts_nothing() -> None:
    message = (
        START.replace(b"AudioFork", b"StopAudioFork")[:-2] + b"Command: StartAudioFork\r\n\r\n"
    )
    assert isinstance(parse_request(own(message).request), StopFork)


@pytest.mark.parametrize("name", ["audiofork", "startaudiofork"])
def test_probe_of_a_start_needs_system(name: str) -> None:
    expected = b"Action: ModuleCheck\r\nActionID: p-1\r\nModule: audiofork\r\n\r\n"
    assert action(name, command="StopAudioFork").probe("p-1") == expected


@pytest.mark.parametrize("name", ["stopaudiofork", "audioforkmute"])
def test_probe_of_a_stop_or_mute_needs_system_or_call(name: str) -> None:
    expected = b"Action: Hangup\r\nActionID: p-1\r\nChannel: none/p-1\r\n\r\n"
    assert action(name).probe("p-1") == expected


def test_success_names_the_fork_and_the_action() -> None:
    assert own(START).success(["id-1"]) == (
        b"Response: Success\r\nActionID: 7\r\nAudioForkID: id-1\r\n\r\n"
    )


def test_answer_to_an_action_without_id_has_none() -> None:
    assert action("stopaudiofork").success([]) == b"Response: Success\r\n\r\n"


def test_action_id_comes_back_as_it_came() -> None:
    one = own(b"Action: AudioFork\r\nActionID: \xff\xfe a\tb \r\n\r\n")
    assert one.refusal("x") == b"Response: Error\r\nActionID: \xff\xfe a\tb \r\nMessage: x\r\n\r\n"


@pytest.mark.parametrize("name", sorted(OWN_ACTIONS))
@pytest.mark.parametrize(
    "text",
    [
        "No channel specified",
        "No such channel",
        "No direction specified. Must be read, write or both",
        "No state specified",
    ],
)
def test_texts_of_the_module_stand_alone(name: str, text: str) -> None:
    assert action(name).error(text) == f"Response: Error\r\nMessage: {text}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (action("audiofork"), "Could not start monitoring channel"),
        (action("startaudiofork"), "Could not start monitoring channel"),
        (action("stopaudiofork"), "Could not stop monitoring channel"),
        (action("audiofork", command="StopAudioFork"), "Could not stop monitoring channel"),
        (action("audioforkmute"), "Cannot set mute flag"),
    ],
)
def test_particulars_follow_the_text_of_the_module(one: OwnAction, text: str) -> None:
    expected = f"Response: Error\r\nMessage: {text}: WsServer: no host\r\n\r\n"
    assert one.error("WsServer: no host") == expected.encode()


def test_text_of_an_error_stays_on_its_line() -> None:
    answer = action("audiofork").refusal("a\r\nEvent: b\0\ud800ü")
    assert answer == "Response: Error\r\nMessage: a  Event: b  ü\r\n\r\n".encode()


# --- What Asterisk sends -------------------------------------------------------------------------


def answer(text: str, probe_id: str = PROBE_ID) -> bytes:
    return f"Response: Error\r\nActionID: {probe_id}\r\nMessage: {text}\r\n\r\n".encode()


def test_all_passes_as_it_came_while_nothing_is_awaited() -> None:
    stream = AsteriskStream()
    for chunk in (GREETING, EVENT[:5], EVENT[5:] + EVENT, b"\r\n", answer("x")):
        assert stream.feed(chunk) == (chunk, None)


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (answer("Permission denied"), "Permission denied"),
        (answer("Asterisk is shutting down"), "Asterisk is shutting down"),
        (answer("Module not loaded"), ""),
        (answer("No such channel"), ""),
        (f"Response: Success\r\nActionID: {PROBE_ID}\r\nVersion: \r\n\r\n".encode(), ""),
        (f"Response: Error\r\nActionID: {PROBE_ID}\r\n\r\n".encode(), "Permission denied"),
    ],
)
def test_answer_to_a_probe_is_taken_out_and_read(reply: bytes, refusal: str) -> None:
    stream = AsteriskStream()
    stream.feed(GREETING)
    stream.expect(PROBE_ID)
    assert stream.feed(EVENT + reply + EVENT) == (EVENT + EVENT, refusal)
    assert stream.feed(reply) == (reply, None)


def test_probe_that_was_sent_before_the_greeting_came_is_answered() -> None:
    stream = AsteriskStream()
    stream.expect(PROBE_ID)
    reply = answer("Permission denied")
    assert stream.feed(GREETING[:4]) == (GREETING[:4], None)
    assert stream.feed(GREETING[4:] + reply) == (GREETING[4:], "Permission denied")


def test_event_with_the_id_of_a_probe_passes() -> None:
    stream = AsteriskStream()
    stream.feed(GREETING)
    stream.expect(PROBE_ID)
    event = f"Event: X\r\nActionID: {PROBE_ID}\r\n\r\n".encode()
    assert stream.feed(event + answer("x", f"{PROBE_ID}0")) == (
        event + answer("x", f"{PROBE_ID}0"),
        None,
    )


def test_message_that_is_too_big_for_an_answer_is_not_held() -> None:
    stream = AsteriskStream()
    stream.feed(GREETING)
    stream.expect(PROBE_ID)
    assert stream.feed(EVENT[:10]) == (b"", None)
    big = b"X: " + b"y" * ANSWER_BYTES
    assert stream.feed(big) == (EVENT[:10] + big, None)
    assert stream.feed(b"y" * 10) == (b"y" * 10, None)
    assert stream.feed(b"\r\n\r\n" + answer("Permission denied")) == (
        b"\r\n\r\n",
        "Permission denied",
    )


def test_insert_between_two_messages_goes_at_once() -> None:
    stream = AsteriskStream()
    stream.feed(GREETING)
    assert stream.insert(b"ours") == b"ours"
    stream.feed(EVENT)
    assert stream.insert(b"ours") == b"ours"


def test_insert_after_a_stray_empty_line_goes_at_once() -> None:
    stream = AsteriskStream()
    stream.feed(GREETING + EVENT)
    stream.feed(b"\r\n")
    assert stream.insert(b"ours") == b"ours"


def test_insert_within_the_greeting_waits_for_its_end() -> None:
    stream = AsteriskStream()
    assert stream.insert(b"ours") == b""
    assert stream.feed(GREETING[:9]) == (GREETING[:9], None)
    assert stream.feed(GREETING[9:] + EVENT) == (GREETING[9:] + b"ours" + EVENT, None)


def test_insert_within_a_message_waits_for_its_end_wherever_it_is_cut() -> None:
    for cut in range(1, len(EVENT)):
        stream = AsteriskStream()
        stream.feed(GREETING + EVENT[:cut])
        assert stream.insert(b"ours") == b""
        assert stream.feed(EVENT[cut:] + EVENT) == (EVENT[cut:] + b"ours" + EVENT, None)


MESSAGES = st.lists(
    st.sampled_from(
        [EVENT, b"Response: Success\r\n\r\n", b"\r\n", b"X: " + b"y" * 2000 + b"\r\n\r\n"]
    ),
    max_size=8,
)


@given(MESSAGES, MESSAGES, st.lists(st.integers(0, 10**6), max_size=10))
def test_probe_and_insert_leave_the_stream_whole_in_any_split(
    before: list[bytes], after: list[bytes], cuts: list[int]
) -> None:
    stream = AsteriskStream()
    stream.expect(PROBE_ID)
    out, inserted, refusals = b"", b"", []
    for chunk in split(GREETING + b"".join([*before, answer("x"), *after]), cuts):
        passed, refusal = stream.feed(chunk)
        out += passed
        if refusal is not None:
            refusals.append(refusal)
            inserted = stream.insert(b"{ours}")
            out += inserted
    assert refusals == ["x"]
    first, ours, last = out.partition(b"{ours}")
    assert first + last == GREETING + b"".join([*before, *after])
    assert ours or not stream._between
    assert first.endswith((b"\r\n\r\n", GREETING)) or not ours
