"""The command `check --relay`: tries what a relay host will need. It asks no Asterisk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable

import audiofork
from audiofork.addresses import is_loopback
from audiofork.cluster.beats import SUBJECT, Beat, beat_of
from audiofork.cluster.broker import FAULTS
from audiofork.cluster.login import inbox_of_relay
from audiofork.commands import remedies, remedies_cluster
from audiofork.commands.check_cluster import Heard, listening_s
from audiofork.commands.check_files import check_file_limit
from audiofork.commands.check_nats import Connection, NatsCheck
from audiofork.commands.findings import Finding, Findings, Outcome
from audiofork.config import Address, Config
from audiofork.link.inline import check_files
from audiofork.link.sessions import DOWN
from audiofork.text import printable, reason_of, why


class RelayCheck:
    """One check of the configuration of a relay host.

    Args:
        config: What the relay host would run with.
        say: Gets each finding as soon as it is there.

    Raises:
        ConfigError: The relay host could not be built with this configuration.
    """

    def __init__(self, config: Config, say: Callable[[Finding], None]) -> None:
        check_files(config)
        self._config = config
        self._findings = Findings(say)
        self._heard = Heard(beat_of)

    async def run(self) -> Outcome:
        """Check everything."""
        cluster, audiosocket = self._config.cluster, self._config.audiosocket
        option = "[cluster] capacity"
        check_file_limit(self._findings, option, cluster.capacity, "audiofork-relay-host@relay")
        self._judge_address(audiosocket.advertise or audiosocket.listen)
        nats = NatsCheck(cluster, self._findings, inbox_of_relay(cluster))
        one = await nats.connect()
        ours: list[Beat] = []
        if one is not None:
            try:
                ours = await self._listen(one)
                await nats.check_registering(one, cluster.own_name)
            except FAULTS as exc:
                self._findings.fail(f"NATS: {why(exc)}", remedies_cluster.UNREACHABLE)
            finally:
                await one.close()
        await self._judge_ourselves(ours)
        return self._findings.outcome

    def _judge_address(self, address: Address) -> None:
        text = f"AudioSocket: Asterisk is told to connect to {address}"
        if is_loopback(address.host):
            self._findings.warn(text, remedies_cluster.LOOPBACK)
        elif not self._config.audiosocket.allow:
            self._findings.warn(
                f"{text}, and anybody may ([audiosocket] allow)", remedies_cluster.ALLOW
            )
        else:
            self._findings.ok(text)

    async def _listen(self, one: Connection) -> list[Beat]:
        """Return the beats of relay hosts of our name, one for each run."""
        name = self._config.cluster.own_name
        await one.client.subscribe(f"{DOWN}.{name}.*")
        for text in await one.refused():
            self._findings.fail(f"NATS: {text}", remedies_cluster.RIGHTS)
        if not one.refusals:
            self._findings.ok(f"NATS: we may hear what controllers order of {name}")
        await one.client.subscribe(f"{SUBJECT}.{name}", cb=self._heard.hear)
        await asyncio.sleep(listening_s(self._config.cluster))
        return list(self._heard.beats.values())

    async def _judge_ourselves(self, ours: list[Beat]) -> None:
        name = f"relay host {self._config.cluster.own_name}"
        if len(ours) > 1:
            self._findings.fail(f"{name}: two have this name", remedies_cluster.SAME_NAME)
        elif ours:
            self._judge_beat(name, ours[0])
        else:
            await self._judge_port(name)

    def _judge_beat(self, name: str, beat: Beat) -> None:
        audiosocket = self._config.audiosocket
        wanted = audiosocket.advertise or audiosocket.listen
        text = f"{name}: runs at {beat.listen}, {beat.forks} of {beat.capacity} forks"
        if wanted.port and beat.listen != str(wanted):
            self._findings.fail(f"{text}, and not at {wanted}", remedies_cluster.OTHER_ADDRESS)
        elif beat.version != audiofork.__version__:
            version = printable(beat.version[:30], "?")
            self._findings.warn(
                f"{text}, version {version}, not {audiofork.__version__} as installed",
                remedies_cluster.VERSION,
            )
        else:
            self._findings.ok(text)

    async def _judge_port(self, name: str) -> None:
        """See whether the relay host, which is not heard of, could listen."""
        listen = self._config.audiosocket.listen
        try:
            server = await asyncio.get_running_loop().create_server(
                asyncio.Protocol, listen.host, listen.port
            )
        except OSError as exc:
            remedy = remedies.LISTEN
            if exc.errno == errno.EADDRINUSE:
                remedy = remedies_cluster.NOT_HEARD
            self._findings.fail(
                f"{name}: it is not heard of, and {listen}: {reason_of(exc)}", remedy
            )
            return
        server.close()
        with contextlib.suppress(OSError):
            await server.wait_closed()
        self._findings.skip(f"{name}: it does not run; {listen} is free for it")
