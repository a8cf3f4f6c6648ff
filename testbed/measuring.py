"""Runs measurements by name and prints their table, for `make faults` and `make attacks`.

A measurement is a coroutine function that stages something on a real Asterisk and returns findings:
a requirement and a result each.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import uvloop

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.progress import Telling
from testbed.sip import SipUser

TELL_S = 10.0  # a measurement may take minutes


class Finding(NamedTuple):
    """One requirement, with what was measured."""

    name: str
    asked: str
    seen: str
    ok: bool

    def __str__(self) -> str:
        return f"{self.name}: required {self.asked}; result {self.seen}: {self.verdict}"

    @property
    def verdict(self) -> str:
        return "ok" if self.ok else "MISSED"


@dataclass
class Scene:
    """Provides what every measurement needs: an Asterisk with the shipped users, and a caller."""

    asterisk: Asterisk
    ami: AmiClient
    caller: SipUser
    options: argparse.Namespace


Measure = Callable[[Scene], Awaitable[list[Finding]]]


class Measurements:
    """Measurements that can be named on the command line.

    Args:
        what: What each of them is called in the head of the table.
        dialplan: Contexts that they need besides the shipped ones.
        manager: AMI users that they need besides the shipped one, as in manager.conf.
    """

    def __init__(self, what: str, dialplan: str = "", manager: str = "") -> None:
        self._what = what
        self._dialplan = dialplan
        self._manager = manager
        self._measures: dict[str, Measure] = {}

    def __call__(self, function: Measure) -> Measure:
        """Register a function as a measurement, by its name."""
        self._measures[function.__name__] = function
        return function

    @property
    def names(self) -> list[str]:
        return list(self._measures)

    def add(self, dialplan: str = "", manager: str = "") -> None:
        """Add the contexts and AMI users that a module of measurements needs."""
        self._dialplan += dialplan
        self._manager += manager

    def main(self, doc: str | None, parser: argparse.ArgumentParser | None = None) -> int:
        """Run what the command line names; return 0 if all requirements are met, else 1.

        Args:
            doc: Its first line describes the command.
            parser: Has the options of its own.
        """
        parser = parser or argparse.ArgumentParser()
        parser.description = (doc or "").partition("\n")[0]
        parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(self._measures))
        options = parser.parse_args()
        unknown = [name for name in options.names if name not in self._measures]
        if unknown:
            parser.error(f"no such measurement: {', '.join(unknown)}")
        findings = uvloop.run(self._run(options.names or list(self._measures), options))
        print(f"\n{table(self._what, findings)}")
        return 0 if all(one.ok for one in findings) else 1

    async def _run(self, names: Sequence[str], options: argparse.Namespace) -> list[Finding]:
        """Run measurements, one after the other, on one Asterisk."""
        findings: list[Finding] = []
        config = {"manager.conf": manager_conf() + self._manager, "ari.conf": ari_conf()}
        with Asterisk(dialplan=self._dialplan + dialplan(), config=config) as asterisk:
            for number, name in enumerate(names, 1):
                async with (
                    AmiClient(asterisk) as ami,
                    SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
                ):
                    scene = Scene(asterisk, ami, caller, options)
                    with Telling(partial(str, f"{name}, {number} of {len(names)}"), TELL_S):
                        found = await self._measures[name](scene)
                for finding in found:
                    print(finding, flush=True)
                findings += found
        return findings


def table(what: str, findings: Sequence[Finding]) -> str:
    """Return findings as a Markdown table."""
    rows = [f"| {one.name} | {one.asked} | {one.seen} | {one.verdict} |" for one in findings]
    return "\n".join([f"| {what} | requirement | result | |", "|---|---|---|---|", *rows])
