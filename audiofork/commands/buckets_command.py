"""The command line of `buckets`, which makes what the controllers of a cluster may not make."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from audiofork import config_file, log
from audiofork.commands.daemon_options import config_option
from audiofork.commands.roles import exits_of, need_cluster
from audiofork.commands.terminal import EXIT_UNREACHABLE, fail, say
from audiofork.config import ClusterConfig
from audiofork.config_cluster import NAME_RULE, is_name
from audiofork.errors import BrokerUnavailable

TIMEOUT_S = 15.0


@click.command("buckets", short_help="Make the buckets of a cluster.")
@click.argument("asterisks", nargs=-1, required=True, metavar="ASTERISK...")
@config_option
def buckets(asterisks: tuple[str, ...], path: Path) -> None:
    """Make the buckets that NATS keeps for the controllers of each ASTERISK of a cluster.

    Where NATS lets controllers make no buckets, as with the permissions of etc/nats/audiofork.conf,
    do this once for each, with the key of a user who may: AUDIOFORK_CLUSTER_NKEY_FILE=admin.seed
    audiofork buckets pbx-1 pbx-2. What is there keeps its content; each bucket is kept by as many
    servers as [cluster] replicas says.
    """
    for name in asterisks:
        if not is_name(name):
            raise click.BadParameter(f"{name!r}: an Asterisk's name has {NAME_RULE}")
    with exits_of(path):
        loaded = config_file.load(path, secrets_of=("cluster",))
        need_cluster(loaded)
        log.set_up(loaded.log)
        try:
            asyncio.run(_make(loaded.cluster, asterisks))
        except (BrokerUnavailable, TimeoutError) as exc:
            fail(str(exc) or f"NATS: no answer within {TIMEOUT_S:g} s", EXIT_UNREACHABLE)


async def _make(cluster: ClusterConfig, asterisks: tuple[str, ...]) -> None:
    from audiofork.cluster import lease
    from audiofork.cluster.broker import Broker
    from audiofork.cluster.buckets import HOSTS
    from audiofork.cluster.login import INBOXES
    from audiofork.forks.cluster_journal import bucket_of

    broker = Broker(cluster, "audiofork buckets", f"{INBOXES}buckets")
    async with asyncio.timeout(TIMEOUT_S):
        await broker.connect()
        try:
            for name in (lease.BUCKET, HOSTS, *map(bucket_of, asterisks)):
                is_new = await broker.make_bucket(name)
                say(f"{name}: {'made' if is_new else 'is there'}, {cluster.replicas} replicas")
        finally:
            await broker.close()
