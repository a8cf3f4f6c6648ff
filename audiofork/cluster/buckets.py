"""The buckets of the cluster, as NATS keeps them: each is a stream, and each key a subject of it.

Controllers need no right to make consumers of a stream for what is here: whoever may make one can
have NATS deliver messages to any subject, also to those that he must not publish to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

TIMEOUT_S = 1.0
READ_TIMEOUT_S = 5.0
AT_ONCE = 64

HOSTS = "audiofork-hosts"
HOSTS_TTL_S = 60.0
"""How long the registration of a relay host stays that does not renew it."""


def config_of(bucket: str, replicas: int) -> StreamConfig:
    """Return the configuration of a bucket's stream.

    It is that of a bucket of NATS' own, but a message cannot remove those of other keys
    (`allow_rollup_hdrs`): in the bucket of the leases each controller writes one key.

    That of the relay hosts keeps each entry for a while. NATS does not answer who writes there
    (`no_ack`): whoever may write where it does can have it send the answer to any subject.

    Args:
        bucket: The name of the bucket.
        replicas: How many servers keep each entry.
    """
    is_of_hosts = bucket == HOSTS
    return StreamConfig(
        name=_stream_of(bucket),
        subjects=[f"$KV.{bucket}.>"],
        max_msgs_per_subject=1,
        max_age=HOSTS_TTL_S if is_of_hosts else None,
        no_ack=is_of_hosts,
        storage=StorageType.FILE,
        num_replicas=replicas,
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        allow_rollup_hdrs=False,
        allow_direct=False,
    )


async def make(stream: JetStreamContext, bucket: str, replicas: int) -> bool:
    """Make a bucket, or have it kept by so many servers from now on.

    Returns:
        Whether there was none.
    """
    config = config_of(bucket, replicas)
    try:
        await stream.stream_info(_stream_of(bucket))
    except nats.js.errors.NotFoundError:
        await stream.add_stream(config)
        return True
    await stream.update_stream(config)
    return False


async def keys(client: Client, bucket: str) -> list[str]:
    """Return the keys of a bucket."""
    asked = json.dumps({"subjects_filter": ">"}).encode()
    answer = await client.request(
        f"$JS.API.STREAM.INFO.{_stream_of(bucket)}", asked, timeout=TIMEOUT_S
    )
    found = json.loads(answer.data)
    if "error" in found:
        raise nats.js.errors.APIError.from_error(found["error"])
    subjects = found["state"].get("subjects") or {}
    start = f"$KV.{bucket}."
    return [one.removeprefix(start) for one in subjects if one.startswith(start)]


async def values(bucket: KeyValue, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the values of keys; those that are gone meanwhile are missing.

    They are read one by one: to be sent all of them, as a watcher is, takes a right that may be
    misused.
    """
    found: dict[str, bytes] = {}
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        async with asyncio.timeout(READ_TIMEOUT_S):
            read = await asyncio.gather(*(_value(bucket, key) for key in some))
        found.update({key: one for key, one in zip(some, read, strict=True) if one is not None})
    return found


async def _value(bucket: KeyValue, key: str) -> bytes | None:
    try:
        return (await bucket.get(key)).value or b""
    except KeyNotFoundError:
        return None


async def remove(stream: JetStreamContext, bucket: str, key: str) -> None:
    """Remove a key of a bucket."""
    await stream.purge_stream(_stream_of(bucket), subject=f"$KV.{bucket}.{key}")


def _stream_of(bucket: str) -> str:
    return f"KV_{bucket}"
