"""What the command `check` finds out of the NATS servers of a cluster, and of what they keep."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import APIError, NotFoundError

from audiofork.addresses import is_loopback
from audiofork.cluster import buckets, login
from audiofork.cluster.broker import FAULTS
from audiofork.cluster.buckets import HOSTS
from audiofork.cluster.lease import BUCKET as LEASES
from audiofork.cluster.nats_client import NatsClient
from audiofork.cluster.registration import key_subject, registered
from audiofork.commands import remedies_cluster as remedies
from audiofork.commands.findings import Findings
from audiofork.config import ClusterConfig
from audiofork.errors import ConfigError, NoMessage
from audiofork.forks.cluster_journal import CHECK_KEY, bucket_of
from audiofork.text import printable, why

CONNECT_TIMEOUT_S = 3
ANSWER_TIMEOUT_S = 2.0
OLDEST = (2, 9)
"""The oldest version that was tried."""
# A server refuses what it does not allow a moment after it has answered.
REFUSAL_S = 0.2
# What has these headers is allowed or not, and never kept by a bucket.
NEVER = {"Nats-Expected-Last-Subject-Sequence": str(2**62)}
# A server that keeps a bucket is heard of each second.
_SILENT_NS = 5_000_000_000
# What JetStream answers that has no room: memory, disk, the limits of its account or its own.
_CANNOT_STORE = (10023, 10028, 10047, 10077)


@dataclass
class Connection:
    """A connection to one NATS server.

    Attributes:
        refusals: What the server has said that it does not allow, or why it was not reached.
    """

    client: NatsClient = field(default_factory=NatsClient)
    refusals: list[str] = field(default_factory=list)

    async def open(self, config: ClusterConfig, server: str, inbox: str) -> None:
        """Connect.

        Args:
            config: How to log in.
            server: The server.
            inbox: Below which subject answers to us go.

        Raises:
            One of FAULTS: The server is not reached, or does not let us in.
            ConfigError: A file that [cluster] names cannot be used.
        """
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
            await self.client.connect(
                [server],
                name="audiofork check",
                error_cb=self._on_error,
                connect_timeout=CONNECT_TIMEOUT_S,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # less than a second
                **login.options_of(config, inbox),
            )

    async def _on_error(self, exc: Exception) -> None:
        self.refusals.append(why(exc, "[cluster] ca_file"))

    async def settle(self) -> None:
        """Return when the server has handled what was sent so far, or refused it.

        Raises:
            One of FAULTS: It does not answer.
        """
        await self.client.flush(timeout=ANSWER_TIMEOUT_S)

    async def refused(self) -> list[str]:
        """Return what the server has refused, also what it says a moment after; as `settle`."""
        await self.settle()
        await asyncio.sleep(REFUSAL_S)
        return self.refusals

    @property
    def stream(self) -> JetStreamContext:
        """What the server keeps."""
        return self.client.jetstream(timeout=ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        await self.client.close()


class NatsCheck:
    """Tries each server of a configuration.

    Args:
        config: The configuration.
        findings: Gets what comes of it.
        inbox: Below which subject answers to us go: that of the role whose key it is.
    """

    def __init__(self, config: ClusterConfig, findings: Findings, inbox: str) -> None:
        self._config = config
        self._findings = findings
        self._inbox = inbox

    async def connect(self) -> Connection | None:
        """Try each server; return the connection to the first that lets us in."""
        found: Connection | None = None
        for server in self._config.servers:
            one = Connection()
            if not await self._try(one, server):
                continue
            if found is None:
                found = one
            else:
                await one.close()
        return found

    async def _try(self, one: Connection, server: str) -> bool:
        """Connect to a server; return whether that works."""
        try:
            await one.open(self._config, server, self._inbox)
            began = time.monotonic()
            await one.settle()
        except ConfigError as exc:
            self._findings.fail(f"NATS: {exc}", remedies.FILES)
            return False
        except FAULTS as exc:
            text = one.refusals[-1] if one.refusals else why(exc)
            self._findings.fail(f"NATS: {server}: {text}", _remedy_of(exc, text))
            await one.close()
            return False
        answer_ms = (time.monotonic() - began) * 1000
        version = one.client.connected_server_version
        text = f"NATS: {server} answers in {answer_ms:.1f} ms, version "
        text += f"{version.major}.{version.minor}.{version.patch}"
        if (version.major, version.minor) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            self._findings.skip(f"{text}: older than {oldest}, the oldest that was tried")
        else:
            self._findings.ok(text)
        self._tell_what_is_open(server)
        return True

    def _tell_what_is_open(self, server: str) -> None:
        url = urlsplit(server)
        if is_loopback(url.hostname or ""):
            return
        faults = []
        if url.scheme != "tls":
            faults.append("goes over the network in the clear")
        if not self._config.nkey and not self._config.credentials:
            faults.append("lets in whoever reaches it")
        if faults:
            self._findings.warn(f"NATS: {server} {' and '.join(faults)}", remedies.OPEN)

    # --- Buckets ---

    async def check_buckets(self, one: Connection) -> bool:
        """See whether a controller can use its buckets; return whether that of leases is there."""
        has_leases = await self._check_bucket(one, LEASES)
        if has_leases:
            await self._check_lease_writing(one)
        journal = bucket_of(self._config.asterisk)
        if has_leases and await self._check_bucket(one, journal):
            await self._check_writing(one, journal)
        return has_leases

    async def read_registered(self, one: Connection) -> set[str] | None:
        """Return the names of the relay hosts that are registered; None: that cannot be known."""
        one.refusals.clear()
        what = f"JetStream: bucket {HOSTS}"
        try:
            self._judge_replicas(HOSTS, await one.stream.stream_info(f"KV_{HOSTS}"))
            keys = await buckets.keys(one.client, HOSTS)
            values = await buckets.values(await one.stream.key_value(HOSTS), keys)
        except NotFoundError:
            self._findings.warn(f"{what} is not there", remedies.REGISTERING)
        except FAULTS as exc:
            text = one.refusals[-1] if one.refusals else why(exc)
            self._findings.warn(f"{what}: {text}", remedies.REGISTERING)
        else:
            return {key for key, value in values.items() if _is_registered(key, value)}
        return None

    async def check_registering(self, one: Connection, name: str) -> None:
        """See whether a relay host may register; what is there stays as it is.

        Raises:
            One of FAULTS: The server does not answer.
        """
        one.refusals.clear()
        await one.client.publish(key_subject(name), b"", headers=NEVER)
        for text in await one.refused():
            self._findings.warn(f"NATS: {text}", remedies.REGISTERING)
        if not one.refusals:
            self._findings.ok(f"NATS: {name} may register in the bucket {HOSTS}")

    async def _check_bucket(self, one: Connection, bucket: str) -> bool:
        """Return whether a bucket is there."""
        try:
            info = await one.stream.stream_info(f"KV_{bucket}")
        except NotFoundError:
            text = f"JetStream: bucket {bucket} is not there yet; the first controller makes it"
            self._findings.skip(text, remedies.START_CONTROLLER)
            return False
        except FAULTS as exc:
            self._refused(one, f"bucket {bucket}", exc)
            return False
        self._judge_replicas(bucket, info)
        return True

    def _refused(self, one: Connection, what: str, exc: Exception) -> None:
        """Tell why JetStream does not do something."""
        if one.refusals:
            self._findings.fail(f"JetStream: {what}: {one.refusals[-1]}", remedies.RIGHTS)
        elif isinstance(exc, APIError) and exc.err_code in _CANNOT_STORE:
            answer = f"NATS cannot store it: {printable(exc.description or '', '?')}"
            self._findings.fail(f"JetStream: {what}: {answer}", remedies.STORING)
        else:
            text = f"JetStream: {what}: {why(exc)}: it is off, or too few servers are there"
            self._findings.fail(text, remedies.JETSTREAM)

    def _judge_replicas(self, bucket: str, info: StreamInfo) -> None:
        wanted = self._config.replicas
        others = (info.cluster.replicas if info.cluster is not None else None) or []
        count = 1 + len(others)  # what is configured does not count where the server is alone
        away = [
            one.name or "?"
            for one in others
            if one.offline or not one.current or (one.active or 0) > _SILENT_NS
        ]
        text = f"JetStream: bucket {bucket} is kept by {count} server{'s' if count > 1 else ''}"
        if away:
            self._findings.warn(f"{text}; not there: {' '.join(sorted(away))}", remedies.AWAY)
        elif count < wanted:
            self._findings.warn(f"{text}, and not by {wanted}", remedies.REPLICAS)
        elif count == 1 and len(self._config.servers) > 1:
            self._findings.warn(f"{text} alone", remedies.ONE_SERVER)
        else:
            self._findings.ok(text)

    async def _check_lease_writing(self, one: Connection) -> None:
        """Write a key beside that of the lease, which nobody reads; it stays, and is one for all.

        To write the lease itself would take it from who holds it, and to remove a key of this
        bucket takes a right to remove all of them.
        """
        one.refusals.clear()
        key = f"{self._config.asterisk}.check"
        try:
            await (await one.stream.key_value(LEASES)).put(key, b"{}")
        except FAULTS as exc:
            if not one.refusals:
                self._refused(one, f"writing to bucket {LEASES}", exc)
                return
            text = f"whether NATS writes to bucket {LEASES} is not known: {one.refusals[-1]}"
            self._findings.skip(f"JetStream: {text}", remedies.CHECK_KEY)
            one.refusals.clear()
        else:
            self._findings.ok(f"JetStream: writes to bucket {LEASES}")

    async def _check_writing(self, one: Connection, bucket: str) -> None:
        began = time.monotonic()
        try:
            store = await one.stream.key_value(bucket)
            await store.put(CHECK_KEY, b"{}")
            write_ms = (time.monotonic() - began) * 1000
            await buckets.remove(one.stream, bucket, CHECK_KEY)
        except FAULTS as exc:
            self._refused(one, f"writing to bucket {bucket}", exc)
        else:
            self._findings.ok(f"JetStream: writes to bucket {bucket}, in {write_ms:.1f} ms")


def _is_registered(key: str, value: bytes) -> bool:
    try:
        return not registered(key, value).is_last
    except NoMessage:
        return False


def _remedy_of(exc: Exception, text: str) -> str:
    if isinstance(exc, ssl.SSLError) or "TLS" in text or "certificate" in text:
        return remedies.TLS
    return remedies.LOGIN if "authorization" in text.lower() else remedies.UNREACHABLE
