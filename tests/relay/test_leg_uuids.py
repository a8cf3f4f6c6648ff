"""The UUIDs of legs: issued, used once, void, forgotten."""

from __future__ import annotations

import uuid
from ipaddress import ip_network

import pytest

from audiofork.relay.leg_uuids import REMEMBERED_S, LegUuids, Void

ID = "6d1c9a52-8a3f-4f5e-9d0b-2f6f3c1e7a90"
WIRE = uuid.UUID(ID).bytes


class Stage:
    """UUIDs whose owners and connections are words."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.uuids: LegUuids[str, str] = LegUuids(lambda: self.now_s)

    def age(self, seconds: float) -> None:
        self.now_s += seconds


def test_issued_uuid_is_good_once() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    assert stage.uuids.use(WIRE, "first") == "owner"
    assert stage.uuids.use(WIRE, "second") is None
    assert stage.uuids.void(WIRE) == Void(100, "first")


def test_used_uuid_is_remembered_as_long_as_asterisk_may_come() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    stage.uuids.use(WIRE, "first")
    stage.age(REMEMBERED_S - 0.1)
    assert stage.uuids.void(WIRE) == Void(100, "first")
    stage.age(0.1)
    assert stage.uuids.void(WIRE) is None


def test_withdrawn_uuid_is_remembered_for_one_late_leg() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    stage.uuids.withdraw(ID)
    assert stage.uuids.use(WIRE, "late") is None
    assert stage.uuids.void(WIRE) == Void(100, None)
    assert stage.uuids.void(WIRE) is None


def test_uuid_that_was_used_is_not_withdrawn() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    stage.uuids.use(WIRE, "first")
    stage.uuids.withdraw(ID)
    assert stage.uuids.void(WIRE) == Void(100, "first")


def test_uuid_that_is_issued_again_stays_with_the_first() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    stage.uuids.issue(ID, "thief")
    assert stage.uuids.use(WIRE, "first") == "owner"


HOME = (ip_network("192.0.2.0/24"), ip_network("2001:db8::7"))


@pytest.mark.parametrize(
    ("peer", "is_from_elsewhere"),
    [
        ("192.0.2.9", False),
        ("::ffff:192.0.2.9", False),
        ("2001:db8::7", False),
        ("2001:db8::8", True),
        ("192.0.3.1", True),
        ("", True),
    ],
)
def test_uuid_is_from_elsewhere_until_it_is_forgotten(peer: str, is_from_elsewhere: bool) -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner", HOME)
    assert stage.uuids.is_from_elsewhere(WIRE, peer) is is_from_elsewhere
    stage.uuids.use(WIRE, "first")
    assert stage.uuids.is_from_elsewhere(WIRE, peer) is is_from_elsewhere
    stage.age(REMEMBERED_S)
    stage.uuids.void(WIRE)
    assert not stage.uuids.is_from_elsewhere(WIRE, peer)


def test_uuid_without_networks_is_from_nowhere_else() -> None:
    stage = Stage()
    stage.uuids.issue(ID, "owner")
    assert not stage.uuids.is_from_elsewhere(WIRE, "192.0.2.9")
    assert not stage.uuids.is_from_elsewhere(b"unknown", "192.0.2.9")


def test_unknown_uuid_is_neither_good_nor_remembered() -> None:
    stage = Stage()
    assert stage.uuids.use(WIRE, "first") is None
    assert stage.uuids.void(WIRE) is None


def test_void_uuids_do_not_pile_up() -> None:
    stage = Stage()
    for number in range(1000):
        one = uuid.UUID(int=number)
        stage.uuids.issue(str(one), "owner")
        stage.uuids.use(one.bytes, "leg")
        stage.age(REMEMBERED_S / 10)
    assert len(stage.uuids._void) <= 10
