"""What reads a cluster: beats, registrations, orders and reports, and who holds a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random

from audiofork.cluster.beats import Beat, ControlBeat, beat_of, control_beat_of
from audiofork.cluster.lease import Holder
from audiofork.cluster.registration import key_subject, registered
from audiofork.config_cluster import is_name
from audiofork.errors import NoMessage
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegPart,
    SetMute,
    SinkRetrying,
    StatsTaken,
)
from audiofork.link.sessions import (
    Down,
    Drain,
    Gone,
    Hello,
    Stamp,
    Up,
    decode_down,
    decode_up,
    pack,
    split,
)
from audiofork.link.stream import Held, Ping, Pong, encode

from .fuzzing import Check, Target

_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\\", b"null", b"true", b"NaN", b"1e999"),
    *(b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"-1", b"0.5", b'"\\u0000"', b'"\\ud800"'),
    *(b'"name"', b'"run_id"', b'"listen"', b'"fork_id"', b'"../a"', b'"a.b"', b'"*"', b'">"'),
    *(b'["ForkSpec", ', b'["EndFork", ', b'["Held", ', b'["StatsTaken", ', b'"x"' * 2000),
)


def _target(name: str, check: Callable[[bytes], str], *corpus: bytes) -> Target:
    def opened() -> AbstractContextManager[Check]:
        return _opened(check)

    return Target(name=name, corpus=corpus, tokens=_TOKENS, share=40, opened=opened)


@contextmanager
def _opened(check: Callable[[bytes], str]) -> Iterator[Check]:
    def checked(data: bytes, _rng: Random) -> str:
        return check(data)

    yield checked


def _check_beat(data: bytes) -> str:
    """Whatever comes as a beat, its name can be a part of a subject, and its numbers are some."""
    found: Beat | ControlBeat
    for read, subject in (
        (beat_of, "audiofork.beat.r1"),
        (lambda subject, value: registered(subject.rpartition(".")[2], value), key_subject("r1")),
        (control_beat_of, _CONTROL.subject),
    ):
        try:
            found = read(subject, data)
        except NoMessage:
            continue
        assert is_name(found.name)
        assert subject.endswith(f".{found.name}")
        if isinstance(found, Beat):
            assert 0 <= found.forks <= 2**53
            assert 0 <= found.cpu <= 2**53
            assert 0 <= found.address.port <= 65535
        return "a beat"
    return "none"


def _checks_of(
    decode: Callable[[bytes], Down | Up], encode: Callable[[Down | Up], bytes]
) -> Callable[[bytes], str]:
    def check(data: bytes) -> str:
        """Whatever comes in a session is a message that would be sent like that, or none."""
        try:
            stamp, line = split(data)
        except NoMessage:
            return "no stamp"
        assert 0 <= stamp.epoch < 2**63
        try:
            message = decode(line)
        except ValueError:  # also what a later version says
            return "no message"
        assert decode(encode(message)) == message
        return "a message"

    return check


def _check_holder(data: bytes) -> str:
    holder = Holder.of(data)
    if holder is None:
        return "none"
    assert holder.name.isprintable()
    assert len(holder.name) <= 63
    return "a holder"


_CONTROL = ControlBeat("c1", "pbx-a", "run", leads=True, since_s=3.5, epoch=7, server="[::1]:4222")
_STAMP = Stamp(3, "0f" * 16, 12)
_SPEC = ForkSpec(_ID, "PJSIP/a", "wss://host.example/live?x=1", Direction.STEREO)

TARGETS = (
    _target(
        "beat",
        _check_beat,
        Beat("r1", "run", "192.0.2.1:9093", "north", 500, 3, 0.2, "1.0.0", clock=1e9).encode(),
        Beat("r1", "run", "[2001:db8::1]:9093", is_draining=True).encode(),
        _CONTROL.encode(),
    ),
    _target(
        "order",
        _checks_of(decode_down, lambda message: encode(message)),
        *(
            pack(_STAMP, message)
            for message in (
                Hello("1.0.0"),
                Ping(),
                Drain(is_on=True),
                _SPEC,
                ExpectLeg(_ID, LegPart.MIX, _ID),
                EndFork(_ID, EndReason.HANGUP),
                SetMute(_ID, mute_in=True),
            )
        ),
    ),
    _target(
        "report",
        _checks_of(decode_up, lambda message: encode(message)),
        *(
            pack(_STAMP, message)
            for message in (
                Pong(),
                Gone(),
                Held(()),
                LegAttached(_ID, LegPart.IN),
                SinkRetrying(_ID, 2, "Connection refused", 1.5),
                ForkEnded(_ID, EndReason.STOPPED, "", ForkStats()),
                StatsTaken(1, {_ID: ForkStats()}),
            )
        ),
    ),
    _target("holder", _check_holder, Holder("c1", _ID).encode()),
)
