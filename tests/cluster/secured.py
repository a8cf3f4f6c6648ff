"""A NATS server with the shipped configuration: TLS, and a key for each role."""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trustme

from audiofork import shipped
from audiofork.config import ClusterConfig
from testbed.asterisk import free_port
from testbed.nats import NatsServer
from testbed.nats_keys import NKey, new_key

ADMIN, REQUESTS = "admin", "requests-1"
SEVERAL = "pbx-1-and-2"  # the controller of both
RELAYS, ASTERISKS = ("relay-1", "relay-2"), ("pbx-1", "pbx-2")


def _block(text: str, name: str) -> str:
    """Return the lines of a user."""
    found = re.search(rf' +{{\n +nkey: "CHANGE-ME {name}"\n.*?\n      }}\n', text, re.DOTALL)
    assert found is not None
    return found[0]


def _of_several(block: str) -> str:
    """Return the user that has the lines of each Asterisk, made of that of the first."""
    first, second = ASTERISKS
    lines = [
        line + line.replace(first, second)
        if line.strip().startswith('"') and first in line
        else line
        for line in block.splitlines(keepends=True)
    ]
    return "".join(lines).replace(f"CHANGE-ME {first}", f"CHANGE-ME {SEVERAL}")


def sample_for(keys: dict[str, NKey]) -> str:
    """Return the shipped configuration with users for two relay hosts and two Asterisks."""
    text = shipped.text(shipped.NATS_CONF)
    head, mark, requests = text.partition("      # A program that asks for forks")
    text = head + mark + re.sub(r"^      # (.*\n)", r"      \1", requests, flags=re.MULTILINE)
    text = text.replace("      _INBOX.requests-1.\n", "")  # the rest of the sentence before it
    several = _of_several(_block(text, ASTERISKS[0]))
    for first, second in (RELAYS, ASTERISKS):
        block = _block(text, first)
        text = text.replace(block, block + block.replace(first, second))
    text = text.replace(block, block + several)
    for name, key in keys.items():
        text = text.replace(f'"CHANGE-ME {name}"', key.public)
    assert "CHANGE-ME" not in re.sub("#.*", "", text)
    return text


class Secured:
    """The server, and how each user reaches it.

    Attributes:
        server: The server, which runs.
        keys: The keys by user.
        ca_file: The authority that has signed the server's certificate.
        text: Its configuration.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port(socket.SOCK_STREAM)
        self.keys = {name: new_key() for name in (ADMIN, *RELAYS, *ASTERISKS, SEVERAL, REQUESTS)}
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(str(folder / "server.key"))
        for number, pem in enumerate(certificate.cert_chain_pems):
            pem.write_to_path(str(folder / "server.pem"), append=number > 0)
        self.text = self.config_text()
        self.server = NatsServer("n0", folder, self._port, config=self.text)

    def config_text(self) -> str:
        """Return the configuration with the keys that there are."""
        text = sample_for(self.keys)
        for old, new in (
            ("0.0.0.0:4222", f"127.0.0.1:{self._port}"),
            ("/etc/nats", str(self._folder)),
            ("/var/lib/nats", str(self._folder / "store")),
        ):
            assert old in text
            text = text.replace(old, new)
        return text

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"tls://localhost:{self._port}"

    def config(self, user: str, **more: str) -> ClusterConfig:
        """Return the configuration of a relay host or controller that has a user's key."""
        values = {"name": user, "asterisk": user, "nkey": self.keys[user].seed, **more}
        return ClusterConfig(servers=(self.url,), ca_file=str(self.ca_file), **values)  # type: ignore[arg-type]

    def section(self, user: str, **more: str) -> str:
        """Return [cluster] of a configuration file; the key is in a file of its own."""
        file = self._folder / f"{user}.seed"
        file.write_text(self.keys[user].seed + "\n")
        values = {"name": user, "asterisk": user, "nkey_file": str(file), **more}
        lines = "".join(f"{name} = {value}\n" for name, value in values.items())
        return f"[cluster]\nservers = {self.url}\nca_file = {self.ca_file}\n{lines}"


@contextlib.contextmanager
def secured() -> Iterator[Secured]:
    """Run a server with the shipped configuration."""
    with tempfile.TemporaryDirectory(prefix="audiofork-nats-") as folder:
        one = Secured(Path(folder))
        try:
            one.server.start()
            yield one
        finally:
            one.server.kill()
