"""The way to two hosts of docs/cluster.md, as it stands there, on two hosts in network namespaces.

Of its files and outputs nothing is different but addresses and paths.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import ari_conf, ari_settings, asterisk_settings, dialplan, manager_conf
from testbed.namespaces import Host, NamespacesUnavailable, Network
from testbed.nats import find_server
from tests.relay.peers import until

pytestmark = [pytest.mark.asterisk, pytest.mark.cluster]

GUIDE = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
PBX1, MEDIA1 = "192.0.2.10", "192.0.2.11"
AUDIOFORK = (sys.executable, "-m", "audiofork")


def blocks_of(step: int) -> list[str]:
    """Return the indented blocks of a step of the guide."""
    _, _, text = GUIDE.partition(f"\n{step}. **")
    text = re.split(r"\n(?:\d+\. \*\*|## )", text)[0]
    width = 8 if step >= 10 else 7
    lines = [line[width:] if line.startswith(" " * width) else None for line in text.splitlines()]
    blocks: list[list[str]] = [[]]
    for line, before in zip(lines, [None, *lines], strict=False):
        if line is not None:
            blocks[-1].append(line)
        elif before is not None:
            blocks.append([])
    # A blank line within a block is no indented one.
    return ["\n".join(block) + "\n" for block in blocks if block]


class Site:
    """The two hosts, and what runs on them.

    Args:
        network: Makes the hosts.
        folder: Where their files are.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.pbx1, self.media1 = network.host("pbx1"), network.host("media1")
        self._folder = folder
        self._stack = ExitStack()

    def here(self, text: str) -> str:
        """Return a text of the guide with the addresses and paths of these hosts."""
        text = text.replace(PBX1, self.pbx1.address).replace(MEDIA1, self.media1.address)
        return text.replace("/var/lib/nats", str(self._folder / "nats"))

    def file(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(self.here(text))
        return path

    def run(self, host: Host, *command: str) -> str:
        """Run a command on a host; return what it prints."""
        done = subprocess.run(
            [*host.within, *command],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment(host),
        )
        print(f"{host.name}: {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, host: Host, *command: str) -> subprocess.Popen[bytes]:
        """Start a program on a host; it ends with the site."""
        log = self._stack.enter_context((self._folder / f"{host.name}.log").open("ab"))
        process = subprocess.Popen(
            [*host.within, *command], env=self._environment(host), stdout=log, stderr=log
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process

    def _environment(self, host: Host) -> dict[str, str]:
        # Both have the name of this machine.
        return {**os.environ, "AUDIOFORK_CLUSTER_NAME": host.name}

    def log(self, host: Host) -> str:
        return (self._folder / f"{host.name}.log").read_text()

    def close(self) -> None:
        for host in (self.pbx1, self.media1):
            if (self._folder / f"{host.name}.log").exists():
                print(f"--- {host.name} ---\n{self.log(host)}")
        self._stack.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    try:
        with Network() as network:
            site = Site(network, tmp_path)
            yield site
            site.close()
    except NamespacesUnavailable as exc:
        pytest.skip(f"no network namespaces can be made: {exc}")


def alike(line: str) -> str:
    """Return a line of a check without what is different each time."""
    line = re.sub(r"[\d.]+ ms", "N ms", line)
    line = re.sub(r"version [\d.]+", "version V", line)
    return re.sub(r"may have \d+", "may have N", line)


def told(site: Site, guide: str, output: str) -> None:
    """Compare what a check says with what the guide says that it does, in its order."""
    said = [alike(line) for line in output.splitlines()]
    expected = [alike(line) for line in site.here(guide).splitlines() if line.strip()]
    assert [line for line in said if line in expected] == expected


def test_ten_steps_lead_to_a_fork_that_goes_on_on_the_other_host(
    site: Site, tmp_path: Path
) -> None:
    with site.pbx1.entered():
        asyncio.run(follow(site, tmp_path))


async def follow(site: Site, folder: Path) -> None:
    (folder / "nats").mkdir()
    config = site.file("nats-server.conf", blocks_of(2)[1])
    site.start(site.pbx1, find_server(), "-c", str(config))
    on_pbx1, on_media1 = relay_files(blocks_of(5))
    files = {
        site.pbx1: site.file("relay-pbx1.ini", on_pbx1),
        site.media1: site.file("relay-media1.ini", on_media1),
    }
    relays = {
        host: site.start(host, *AUDIOFORK, "relay", "-c", str(file)) for host, file in files.items()
    }
    for host in relays:
        await until(lambda host=host: "connected to the NATS server" in site.log(host), 30)  # type: ignore[misc]
    checking = (*AUDIOFORK, "check", "--relay", "-c", str(files[site.media1]))
    told(site, blocks_of(6)[1], await asyncio.to_thread(site.run, site.media1, *checking))
    line = site.here(blocks_of(9)[1])
    extension = f"[guide]\nexten => 100,1,Answer()\n{line} same => n,Wait(60)\n"
    additions = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=extension + dialplan(), config=additions) as asterisk:
        ini = site.file(
            "audiofork.ini", controller_ini(asterisk, folder) + "\n".join(blocks_of(7)[:2])
        )
        site.start(site.pbx1, *AUDIOFORK, "control", "-c", str(ini))
        await until(lambda: "connected to ARI" in site.log(site.pbx1), 30)
        check = (*AUDIOFORK, "check", "-c", str(ini))
        told(site, blocks_of(8)[0], await asyncio.to_thread(site.run, site.pbx1, *check))
        await fork_a_call(site, asterisk, relays, files, ini)


def relay_files(blocks: Sequence[str]) -> tuple[str, str]:
    """Return the files of both relay hosts: each has two sections, with a blank line between."""
    assert len(blocks) == 4
    return "\n".join(blocks[:2]), "\n".join(blocks[2:])


def controller_ini(asterisk: Asterisk, folder: Path) -> str:
    """Return what `audiofork setup` would have made."""
    return (
        f"[asterisk]\n{asterisk_settings(asterisk)}[ari]\n{ari_settings(asterisk)}"
        f"[control]\nsocket = {folder}/control.sock\n[history]\nfile =\n"
    )


async def fork_a_call(
    site: Site,
    asterisk: Asterisk,
    relays: Mapping[Host, subprocess.Popen[bytes]],
    files: Mapping[Host, Path],
    ini: Path,
) -> None:
    """Take steps 9 and 10."""
    recordings = ini.parent / "recordings"
    receive = site.here(blocks_of(9)[0]).split()[1:]
    site.start(site.media1, *AUDIOFORK, *receive, "--quiet", "--directory", str(recordings))
    await until(lambda: "listening" in site.log(site.media1), 30)
    async with AmiClient(asterisk) as ami:
        call = {"Channel": "Local/100@guide", "Application": "Milliwatt", "Async": "true"}
        await ami.action("Originate", **call)
        await until(lambda: count(recordings) == 1, 20)
        listed = await asyncio.to_thread(site.run, site.pbx1, *AUDIOFORK, "list", "-c", str(ini))
        heads, row, *_ = (re.split(r"\s{2,}", line) for line in listed.splitlines())
        (first,) = [host for host in relays if host.name == row[heads.index("RELAY")]]
        relays[first].send_signal(signal.SIGKILL)
        await until(lambda: count(recordings) == 2, 30)
        (second,) = [host for host in relays if host is not first]
        site.start(first, *AUDIOFORK, "relay", "-c", str(files[first]))
        await until(lambda: site.log(first).count("connected to the NATS server") > 1, 30)
        relays[second].send_signal(signal.SIGTERM)
        await until(lambda: count(recordings) == 3, 30)
        await until(lambda: relays[second].poll() is not None, 30)


def count(folder: Path) -> int:
    return len(list(folder.glob("*.wav")))
