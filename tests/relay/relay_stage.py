"""A worker, with legs that the test connects, and what it reports."""

from __future__ import annotations

import uuid
from typing import Any

from audiofork.config import Address, AudioSocketConfig, Config, SecurityConfig, WebSocketConfig
from audiofork.link.messages import (
    Direction,
    ExpectLeg,
    ForkReport,
    ForkSpec,
    LegAttached,
    LegPart,
    Report,
)
from audiofork.relay.worker import Worker
from tests.relay.peers import Leg, until
from tests.relay.pipeline_stage import USUAL_PART


class RelayStage:
    """A worker, and what it reports."""

    def __init__(self, websocket: WebSocketConfig) -> None:
        self.reports: list[Report] = []
        listen = AudioSocketConfig(listen=Address("127.0.0.1", 0))
        self.security = SecurityConfig(tls_dir="/")  # option T may name any file
        config = Config(audiosocket=listen, websocket=websocket, security=self.security)
        self.worker = Worker(config, self.reports.append)
        self.legs: list[Leg] = []
        self.first_parts: dict[str, LegPart] = {}
        self.leg_uuids: dict[tuple[str, LegPart], str] = {}  # those that are good, if not used

    def begin(self, url: str, direction: Direction = Direction.BOTH, **wishes: Any) -> str:
        """Order a fork, by the leg that is usual for the direction; return its id."""
        fork_id = str(uuid.uuid4())
        wishes = {"legs": (USUAL_PART[direction],), **wishes}
        spec = ForkSpec(fork_id, "PJSIP/100-0000002a", url, direction, **wishes)
        self.first_parts[fork_id] = spec.legs[0]
        self.worker.handle(spec)
        for part in spec.legs:
            self.expect(fork_id, part)
        return fork_id

    def expect(self, fork_id: str, part: LegPart) -> None:
        """Order a leg, by a UUID of its own."""
        self.leg_uuids[fork_id, part] = leg_uuid = str(uuid.uuid4())
        self.worker.handle(ExpectLeg(fork_id, part, leg_uuid))

    async def attach(self, fork_id: str, part: LegPart | None = None) -> Leg:
        """Connect the leg of a fork, the first if none is named."""
        part = part or self.first_parts[fork_id]
        before = self.reports.count(LegAttached(fork_id, part))
        leg = await self.connect(self.leg_uuids[fork_id, part])
        await until(lambda: self.reports.count(LegAttached(fork_id, part)) > before)
        return leg

    async def connect(self, presented: str) -> Leg:
        """Connect, and present a UUID."""
        leg = await Leg.connect(self.worker.address)
        self.legs.append(leg)
        leg.send_uuid(presented)
        return leg

    async def reported(self, kind: type[Any], fork_id: str) -> Any:
        """Wait for a report of a fork, and return it."""
        await until(lambda: self.of(fork_id, kind))
        return self.of(fork_id, kind)[0]

    def of(self, fork_id: str, kind: type[Any] = object) -> list[Any]:
        reports = [report for report in self.reports if isinstance(report, ForkReport)]
        return [r for r in reports if r.fork_id == fork_id and isinstance(r, kind)]
