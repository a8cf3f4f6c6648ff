"""Refuses options that do not go together, once each of them is known to be one."""

from __future__ import annotations

import ipaddress
from typing import Any, Protocol

from audiofork.config import Config
from audiofork.config_asterisk import AsteriskConfig
from audiofork.config_http import fault_of
from audiofork.config_values import MAX_PORT
from audiofork.errors import ConfigError


class Given(Protocol):
    """The given values, see `config_file.py`."""

    def text(self, section: str, option: str) -> str | None: ...
    def place(self, section: str, option: str = "") -> str: ...


def check(config: Config, given: Given) -> None:
    """Check a configuration whose values have been read.

    Raises:
        ConfigError: Some of them do not go together.
    """
    _check_asterisks(config, given)
    _check_places(config, given)
    _check_commands(config, given)
    _check_ports(config, given)
    _check_detached(config, given)
    _check_taps(config, given)
    _check_logins(config, given)
    _check_cluster(config, given)
    _check_http(config, given)


def _check_ports(config: Config, given: Given) -> None:
    """Refuse an address whose port leaves too few ports for all workers."""
    workers = config.relay.workers
    for name in ("listen", "advertise"):
        address = getattr(config.audiosocket, name)
        if address is not None and address.port + workers - 1 > MAX_PORT:
            raise ConfigError(
                f"{given.place('audiosocket', name)}: [audiosocket] {name}: expected {workers} "
                f"ports from {address.port} on ([relay] workers), the last is {MAX_PORT}"
            )


def _check_detached(config: Config, given: Given) -> None:
    """Refuse relay processes whose forks no later daemon would know."""
    if config.relay.detached and not config.daemon.journal:
        place = given.place("relay", "detached")
        raise ConfigError(
            f"{place}: [relay] detached: needs [daemon] journal: by it the next daemon finds forks"
        )


def _check_commands(config: Config, given: Given) -> None:
    """Refuse a post-process section without a command."""
    for name, section in config.post_process.items():
        if not section.command:
            header = f"post_process:{name}"
            raise ConfigError(f"{given.place(header)}: [{header}] command: expected a command")


def _check_asterisks(config: Config, given: Given) -> None:
    """Refuse Asterisks that are one too many, or sections of one that is none."""
    names = config.asterisks
    if not names:
        return
    header = f"asterisk {min(names)}"
    if not config.cluster.servers:
        raise ConfigError(
            f"{given.place(header)}: [{header}]: only a cluster has several Asterisks, and "
            "[cluster] servers names no NATS server: write [asterisk]"
        )
    own = config.cluster.asterisk
    if config.has_unnamed:
        if own in names:
            raise ConfigError(
                f"{given.place(f'asterisk {own}')}: [asterisk {own}]: that is the name of "
                "[asterisk] already, by [cluster] asterisk: keep one of the two sections, or give "
                "one of the two another name"
            )
        return
    without = (
        ("cluster", "asterisk", given.text("cluster", "asterisk") is not None),
        ("ari", "url", bool(config.ari.url)),
        ("front", "listen", config.front.listen is not None),
    )
    for section, option, is_given in without:
        if is_given:
            raise ConfigError(
                f"{given.place(section, option)}: [{section}] {option}: belongs to [asterisk], "
                "which is missing beside [asterisk NAME]"
            )


def _check_places(config: Config, given: Given) -> None:
    """Refuse one Asterisk by two names: two controllers in one would act for its forks."""
    sections: dict[str, AsteriskConfig] = {}
    if config.has_unnamed:
        sections["asterisk"] = config.asterisk
    sections |= {f"asterisk {name}": one.asterisk for name, one in config.asterisks.items()}
    before: dict[tuple[str, int], str] = {}
    for header, one in sections.items():
        other = before.setdefault((_plain(one.host), one.port), header)
        if other != header:
            raise ConfigError(
                f"{given.place(header)}: [{header}]: {one.host}:{one.port} is that of [{other}] "
                "already: each Asterisk has one section"
            )


def _plain(host: str) -> str:
    """Return a host in the one way of the many in which it can be written."""
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address("127.0.0.1" if name == "localhost" else name).compressed
    except ValueError:
        return name


def _check_taps(config: Config, given: Given) -> None:
    """Refuse a tap that needs a connection that is not configured."""
    for name in config.asterisk_names:
        one, end = config.of_asterisk(name), f" {name}" if name in config.asterisks else ""
        if one.asterisk.tap == "snoop" and not one.ari.url:
            place = given.place(f"asterisk{end}", "tap")
            raise ConfigError(
                f"{place}: [asterisk{end}] tap: snoop needs [ari{end}] url "
                "(`audiofork setup` sets ARI up)"
            )


def _check_logins(config: Config, given: Given) -> None:
    """Refuse a login for a proxy that is not configured."""
    sections: dict[str, Any] = {f"profile:{name}": one for name, one in config.profile.items()}
    for header, section in {"websocket": config.websocket, **sections}.items():
        for option in ("proxy_login", "proxy_login_file"):
            if getattr(section, option) and not section.proxy:
                place = given.place(header, option)
                raise ConfigError(f"{place}: [{header}] {option}: [{header}] names no proxy")


def _check_cluster(config: Config, given: Given) -> None:
    """Refuse two logins to NATS."""
    cluster = config.cluster
    if (cluster.nkey or cluster.nkey_file) and (cluster.credentials or cluster.credentials_file):
        option = "nkey_file" if cluster.nkey_file else "nkey"
        place = given.place("cluster", option)
        raise ConfigError(f"{place}: [cluster] {option}: expected an NKey or credentials, not both")


def _check_http(config: Config, given: Given) -> None:
    """Refuse an option of [http] that lacks another one."""
    if found := fault_of(config.http):
        option, fault = found
        raise ConfigError(f"{given.place('http', option)}: [http] {option}: {fault}")
