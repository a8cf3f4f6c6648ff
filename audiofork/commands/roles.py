"""What the commands share that run a daemon, or a part of one, or check it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from audiofork import config_file
from audiofork.commands.terminal import EXIT_CONFIG, EXIT_FAILED, fail
from audiofork.config import Config
from audiofork.errors import CannotListen, ConfigError
from audiofork.url_patterns import ANYWHERE

NATS_MODULES = ("nats", "nkeys")
"""What a cluster needs, and a daemon alone does not."""

# Asterisk would connect to itself there.
_ANY = ("0.0.0.0", "::")


def need_cluster(loaded: Config) -> None:
    """Refuse a configuration without a cluster.

    Raises:
        ConfigError: It has none.
    """
    if not loaded.cluster.servers:
        raise ConfigError("[cluster] servers is empty: it names the NATS servers of the cluster")


def need_one_asterisk(loaded: Config) -> None:
    """Refuse a configuration with several Asterisks.

    Raises:
        ConfigError: It has several, or one with a name.
    """
    for name in loaded.asterisks:
        raise ConfigError(
            f"[asterisk {name}]: only `audiofork control` serves an Asterisk with a name"
        )


def of_relay_host(path: Path) -> Config:
    """Return the configuration of a relay host, with no more secrets than it needs.

    Raises:
        ConfigError: It cannot be used.
    """
    loaded = config_file.load(path, secrets_of=("websocket", "cluster"))
    need_cluster(loaded)
    listen = loaded.audiosocket.listen
    if listen.host in _ANY and loaded.audiosocket.advertise is None:
        raise ConfigError(
            "[audiosocket] advertise: expected the address of this host as Asterisk's machine sees "
            f"it, since the relay host listens on {listen}"
        )
    if loaded.relay.workers != 1:
        raise ConfigError(
            "[relay] workers: expected 1: a relay host is one process; run several, each with a "
            "configuration of its own"
        )
    if not config_file.is_given("security", "allow_urls", path):
        # Its default is for a daemon; here controllers say where audio may go.
        loaded = replace(loaded, security=replace(loaded.security, allow_urls=ANYWHERE))
    return loaded


@contextmanager
def exits_of(path: Path) -> Iterator[None]:
    """Exit with a message and a code where a daemon, or a part of one, cannot run."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name not in NATS_MODULES:
            raise
        fail("a cluster needs the NATS client: pip install 'audiofork[cluster]'", EXIT_FAILED)
    except ConfigError as exc:
        fail(config_file.with_place(str(exc), path), EXIT_CONFIG)
    except CannotListen as exc:
        fail(config_file.with_place(str(exc), path), EXIT_FAILED)
