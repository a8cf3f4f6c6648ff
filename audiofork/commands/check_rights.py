"""Whether the key of a controller may do all that it needs: `check` tries each, by harmless means.

NATS names what it refuses. What is sent here means nothing to anybody, or is refused by the bucket.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from nats.aio.msg import Msg

from audiofork.cluster import lease
from audiofork.cluster.beats import CONTROL_SUBJECT, SUBJECT, ControlBeat
from audiofork.cluster.broker import FAULTS
from audiofork.commands.check_nats import NEVER, Connection
from audiofork.config import ClusterConfig
from audiofork.doors.broker_door import subject_of
from audiofork.doors.history_sharing import Keeper
from audiofork.doors.shared_events import SUBJECT as EVENTS
from audiofork.forks.cluster_journal import CHECK_KEY, bucket_of
from audiofork.link.sessions import DOWN, UP

# No host can have this name.
_NOBODY = "(check)"


class _Message(NamedTuple):
    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None


async def try_rights(one: Connection, config: ClusterConfig) -> list[str]:
    """Return what NATS refuses of what a controller needs, for people.

    Raises:
        One of FAULTS: The server does not answer.
    """
    one.refusals.clear()

    async def answer(message: Msg) -> None:
        if message.reply == inbox:  # that of ours
            await one.client.publish(inbox, b"")

    inbox = one.client.new_inbox()
    events = f"{EVENTS}.{config.asterisk}"
    subscriptions = [await one.client.subscribe(subject) for subject in _heard(config)]
    subscriptions.append(await one.client.subscribe(events, cb=answer))
    for message in _told(config):
        await one.client.publish(message.subject, message.payload, headers=message.headers)
    await one.client.publish(events, b"", reply=inbox)
    with contextlib.suppress(*FAULTS):  # also as there is no such key
        journal = bucket_of(config.asterisk)
        await one.stream.get_last_msg(f"KV_{journal}", f"$KV.{journal}.{CHECK_KEY}")
    refused = list(dict.fromkeys(map(_named, await one.refused())))
    for subscription in subscriptions:
        await subscription.unsubscribe()
    one.refusals.clear()
    return refused


def _named(refusal: str) -> str:
    """Return what NATS refuses, with the line that lacks where it does not say so."""
    if 'publish to "_inbox.' in refusal.lower():
        return f"{refusal}, in answer to a request: allow_responses is missing"
    return refusal


def _heard(config: ClusterConfig) -> Iterator[str]:
    """Yield the subjects that a controller subscribes to."""
    asterisk = config.asterisk
    itself = Keeper(asterisk, config.own_name)
    yield f"{SUBJECT}.*"
    yield f"{CONTROL_SUBJECT}.*.*"
    yield f"{UP}.{asterisk}.*"
    yield subject_of(asterisk)
    yield itself.subject
    yield itself.forget_subject


def _told(config: ClusterConfig) -> Iterator[_Message]:
    """Yield a message of each kind that a controller sends."""
    asterisk = config.asterisk
    beat = ControlBeat(config.own_name, asterisk, str(uuid.uuid4()), is_last=True)
    yield _Message(beat.subject, beat.encode())
    yield _Message(f"{DOWN}.{_NOBODY}.{asterisk}")
    yield _Message(subject_of(asterisk))  # nobody waits for an answer, so there is none
    yield _Message(Keeper(asterisk, _NOBODY).subject)
    yield _Message(Keeper(asterisk, _NOBODY).forget_subject)
    yield _Message(f"$KV.{lease.BUCKET}.{asterisk}", headers=NEVER)
