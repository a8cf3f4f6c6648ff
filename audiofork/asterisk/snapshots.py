"""Detects injected headers in Asterisk's events about channels, by the order of headers.

Asterisk writes values unchanged. A caller who dials `1%0d%0aUniqueid:%20X` injects a line into each
event of his call: the text after a line end in a value looks like a header. But Asterisk writes
each of its own headers once, in a fixed order. An injected copy comes twice or at the wrong place,
so the event is recognized as forged. The order is the same in 18.0, 20, 22 and 23
(main/manager_channels.c, main/manager_bridges.c, main/manager.c). Headers that are not in it, such
as new ones of later versions, may be at any place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Headers = list[tuple[str, str]]

CHANNEL = (
    *("Channel", "ChannelState", "ChannelStateDesc", "CallerIDNum", "CallerIDName"),
    *("ConnectedLineNum", "ConnectedLineName", "Language", "AccountCode", "Context", "Exten"),
    *("Priority", "Uniqueid", "Linkedid"),
)
# Headers whose value a caller may have chosen: his own data, and that of the call that he made.
CALLER_DATA = (
    *("Channel", "CallerIDNum", "CallerIDName", "ConnectedLineNum", "ConnectedLineName"),
    *("AccountCode", "Exten"),
)
_BRIDGE = (
    *("BridgeUniqueid", "BridgeType", "BridgeTechnology", "BridgeCreator", "BridgeName"),
    *("BridgeNumChannels", "BridgeVideoSourceMode"),
)
ORDERS = {
    **dict.fromkeys(("Hangup", "HangupRequest", "Hold", "Unhold"), CHANNEL),
    "DTMFEnd": (*CHANNEL, "Digit", "DurationMs", "Direction"),
    **dict.fromkeys(("BridgeEnter", "BridgeLeave"), (*_BRIDGE, *CHANNEL)),
    # It may have an ActionID before these.
    "OriginateResponse": (
        *("Response", "Channel", "Reason", "Uniqueid", "CallerIDNum", "CallerIDName"),
    ),
    "CoreShowChannel": ("ActionID", *CHANNEL, "BridgeId"),
    "Status": (*CHANNEL, "BridgeID", "ActionID"),
}


class Forged(Exception):
    """A message contains lines that Asterisk has not written as headers; the text names one."""


def check(event: str, headers: Headers) -> None:
    """Raise Forged if the known headers of an event are not all there once, in their order.

    Events that have no order here are not checked. In a UserEvent only the snapshot is checked; one
    from an AMI action has none. Its body may contain anything except a second UserEvent header.
    """
    if event == "UserEvent":
        names = [name.lower() for name, _ in headers]
        if names.count("userevent") != 1:
            raise Forged("UserEvent is not there once")
        position = names.index("userevent")
        if _lower(CHANNEL) & set(names[:position]):
            _check_order(headers[:position], CHANNEL)
            _check_body(headers[names.index("channel") : position], headers[position + 1 :])
    else:
        _check_order(headers, ORDERS.get(event, ()))


def _check_body(snapshot: Headers, body: Headers) -> None:
    """Raise Forged if a field of the body was injected by a value of the snapshot."""
    # An injected line appears in the snapshot too, as a header that Asterisk does not write there.
    lines = {name.lower(): value for name, value in snapshot if name not in CHANNEL}
    for name, value in body:
        if (line := lines.get(name.lower())) and value.startswith(line):
            raise Forged(f"{name} is among what the channel tells of itself")


def _check_order(headers: Headers, order: tuple[str, ...]) -> None:
    known = _lower(order)
    present = [name.lower() for name, _ in headers if name.lower() in known]
    wanted = [name.lower() for name in order]
    if present != wanted:
        raise Forged(f"{_first_wrong(present, order)} is not there once, at its place")


def _first_wrong(present: list[str], order: tuple[str, ...]) -> str:
    """Return the name of the first header that comes twice, at a wrong place, or not at all."""
    twice = (name for name in order if present.count(name.lower()) > 1)
    misplaced = (
        name
        for position, name in enumerate(order)
        if present[position : position + 1] != [name.lower()]
    )
    return next(twice, "") or next(misplaced, "")


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}


def repeated(names: Iterable[str]) -> Iterator[str]:
    """Yield the names that have come before, in any case."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            yield name
        seen.add(name.lower())
