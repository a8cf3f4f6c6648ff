"""What reads at the AMI front: both directions of a client's connection."""

from __future__ import annotations

from contextlib import nullcontext
from random import Random

from audiofork.doors.ami_front_protocol import (
    ANSWER_BYTES,
    HELD_BYTES,
    LINE_BYTES,
    AsteriskStream,
    ClientStream,
    OwnAction,
)
from audiofork.errors import RequestRefused
from audiofork.forks.requests import parse_request
from tests.doors.ami_front.test_front_protocol import asterisks_view

from .fuzzing import Target, split
from .request_targets import FIELD_TOKENS, FIELDS, UNUSUAL_TEXT, check_granted

_END = b"\r\n\r\n"
_PROBE_ID = "audiofork-0011223344556677-1"
_PROBE_LINE = f"\r\nActionID: {_PROBE_ID}\r\n".encode()
_OURS = b"Response: ours\r\n\r\n"  # no token, so that it is known among what passes


# --- From the client -----------------------------------------------------------------------------


def check_client(data: bytes, rng: Random) -> str:
    expected, expected_actions = asterisks_view(data)
    chunks = split(data, rng)
    if (
        len(data) > HELD_BYTES
    ):  # where it stops waiting depends on the reads; the model goes byte by byte
        chunks = [data[at : at + 1] for at in range(len(data))]
    forwarded, actions = _take(chunks)
    assert forwarded == expected
    assert [(action.name, action.fault) for action in actions] == expected_actions
    for action in actions:
        _check_action(action)
    return "own action" if actions else "forwarded" if forwarded else "nothing"


def _take(chunks: list[bytes]) -> tuple[bytes, list[OwnAction]]:
    stream = ClientStream()
    forwarded = bytearray()
    actions: list[OwnAction] = []
    for chunk in chunks:
        for part in stream.feed(chunk):
            if isinstance(part, bytes):
                forwarded += part
            else:
                actions.append(part)
        fields = stream._message.fields.values()
        assert len(stream._held) <= HELD_BYTES
        assert len(stream._line) < LINE_BYTES
        assert sum(map(len, fields)) <= 10 * LINE_BYTES
    return bytes(forwarded) + stream.end(), actions


def _check_action(action: OwnAction) -> None:
    """Check that an action of ours is granted or refused, and answered in one message."""
    for answer in (action.success(["id"]), action.refusal("a\r\n\r\nb"), action.probe("id")):
        _check_one_message(answer)
    try:
        request = parse_request(action.request)
    except RequestRefused as exc:
        _check_one_message(action.error(str(exc)))
        return
    check_granted(request)


def _check_one_message(message: bytes) -> None:
    assert message.endswith(_END)
    assert message.count(b"\n\r\n") == 1
    assert all(b": " in line for line in message[: -len(_END)].split(b"\n"))


# --- From Asterisk -------------------------------------------------------------------------------


def check_asterisk(data: bytes, rng: Random) -> str:
    chunks = split(data, rng)
    expect_at, insert_at = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    stream = AsteriskStream()
    out, answers = b"", 0
    for number, chunk in enumerate(chunks):
        if number == expect_at:
            stream.expect(_PROBE_ID)
        if number == insert_at:
            out += stream.insert(_OURS)
        passed, answer = stream.feed(chunk)
        out += passed
        answers += answer is not None
        assert len(stream._held) <= ANSWER_BYTES
    before, ours, after = out.partition(_OURS)
    assert ours or stream._inserts == [_OURS]
    assert not ours or before.endswith(_END) or before.count(b"\n") == 1
    expected, answer_bytes = asterisk_without_answer(data, sum(map(len, chunks[:expect_at])))
    if answer_bytes > ANSWER_BYTES:  # no real one is; whether it is seen depends on the reads
        return "too big"
    assert before + after + stream._held == expected
    assert answers == (answer_bytes > 0)
    return "answer" if answers else "no answer"


def asterisk_without_answer(data: bytes, asked_at: int) -> tuple[bytes, int]:
    """Return what goes to the client, and the size of the answer that is taken out.

    Args:
        data: All that Asterisk sends.
        asked_at: How much of it had come when the probe was sent.
    """
    greeting, end, rest = data.partition(b"\n")
    passed = bytearray(greeting + end)
    message = bytearray()
    answer_bytes = 0
    for at, byte in enumerate(rest, len(passed) + 1):
        message.append(byte)
        if byte != 10 or not (passed[-3:] + message).endswith(_END):
            continue
        is_answer = message.startswith(b"Response: ") and _PROBE_LINE in message
        if is_answer and not answer_bytes and at - len(message) >= asked_at:
            answer_bytes = len(message)
        else:
            passed += message
        message.clear()
    return bytes(passed + message), answer_bytes


_MESSAGES = tuple(line.replace(b"\n", b"\r\n") + _END for line in FIELDS)
_ANSWER = b"Response: Error" + _PROBE_LINE + b"Message: Permission denied" + _END
_GREETING = b"Asterisk Call Manager/11.0.0\r\n"
_EVENT = b"Event: Hangup\r\nChannel: SIP/1\r\nUniqueid: 1.2" + _END

TARGETS = (
    Target(
        "front-client",
        corpus=(
            b"Action: AudioFork\r\n" + _MESSAGES[0],
            b"Action: Ping\r\nActionID: 1\r\n\r\naction: StartAudioFork\r\n" + _MESSAGES[1],
            b"Action: Login\r\nUsername: a\r\nSecret: b\r\n\r\n",
            b"Action: StopAudioFork\n" + _MESSAGES[3] + b"Action: AudioForkMute\r\n" + _MESSAGES[5],
            b"Channel: x\r\nAction:audioforkmute\r\n" + _MESSAGES[6] + b"\r\n",
        ),
        tokens=(
            *(
                b"Action: AudioFork\r\n",
                b"Action: ",
                b"\r\n",
                b"\r\n\r\n",
                b"\n\n",
                b"ActionID: 7\r\n",
            ),
            *(b"x" * 1022, b"x" * 1023, b"x" * 1024, b"X: y\r\n" * 127, b"X: y\r\n" * 129),
            *(b"Command: StopAudioFork\r\n", b"Action: Ping\r\n\r\n", b"\r", b"\0", b":"),
            *(b"StartAudioFork", b"audioforkmute", b"X: " + b"y" * 900 + b"\r\n"),
            (b"X: " + b"y" * 900 + b"\r\n") * 14,  # more than is held
            *FIELD_TOKENS,
        ),
        share=150,
        opened=lambda: nullcontext(check_client),
    ),
    Target(
        "front-asterisk",
        corpus=(
            _GREETING + _EVENT * 2 + _ANSWER + _EVENT,
            _GREETING + _ANSWER + _ANSWER + b"\r\n" + _EVENT,
            b"\n" + _EVENT + b"Response: Success" + _PROBE_LINE + b"\r\n",
            _GREETING + b"Event: UserEvent\r\nX: " + b"y" * 1100 + _END + _ANSWER,
        ),
        tokens=(
            *(_GREETING, _EVENT, _ANSWER, _PROBE_LINE, b"Response: Success", _ANSWER[:-2]),
            *(b"\r\n", b"\n", b"\r", _END, b"\0", b"Message: No such channel\r\n", b"x" * 1024),
            *(b"Event: x\r\n", b"Response: ", b"ActionID: ", *UNUSUAL_TEXT[:12]),
        ),
        share=120,
        opened=lambda: nullcontext(check_asterisk),
    ),
)
