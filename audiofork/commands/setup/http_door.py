"""The HTTP door of the daemon: on this machine alone, with one token that may do everything."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection
from pathlib import Path

from audiofork.commands.setup.daemon_files import Paths
from audiofork.commands.setup.draft import Draft
from audiofork.config import Config
from audiofork.config_values import Address

HOST = "127.0.0.1"
# The first that is free; by convention none of them belongs to Asterisk or to AudioSocket.
PORTS = range(9080, 9090)
TOKEN_NAME = "admin"
# How the daemon names the file where systemd hands it a copy.
HANDED = "${CREDENTIALS_DIRECTORY}/http-tokens"
_TOKENS = """\
# Who may use the HTTP interface: NAME ROLES TOKEN in each line, the roles view, listen, control
# with commas. After a change: systemctl {verb} audiofork.
{name} view,listen,control {token}
"""

Options = dict[tuple[str, str], str]


def plan_door(draft: Draft, loaded: Config, named: Collection[str], paths: Paths) -> Options:
    """Plan the file of tokens; return the options that audiofork.ini needs besides.

    The daemon's group may read the file. Where it has none that stays, only root may, and systemd
    hands the daemon a copy at each start.

    Args:
        draft: Collects what is to be written.
        loaded: What audiofork.ini says.
        named: The options of [http] that it names; where it names one, the door is the user's own.
        paths: Where things are.
    """
    if named:
        if loaded.http.listen is not None and loaded.http.tokens_file in (
            str(paths.tokens),
            HANDED,
        ):
            _plan_tokens(draft, paths)
        return {}
    port = free_port(ports_of(loaded))
    if port is None:
        draft.notes.append(
            f"ports {PORTS[0]} to {PORTS[-1]} are all in use, so the HTTP interface stays off: "
            "choose one yourself in [http] listen"
        )
        return {}
    _plan_tokens(draft, paths)
    return {
        ("http", "listen"): str(Address(HOST, port)),
        ("http", "tokens_file"): HANDED if _is_handed(paths) else str(paths.tokens),
    }


def _is_handed(paths: Paths) -> bool:
    return paths.units is not None and paths.group_number is None


def _plan_tokens(draft: Draft, paths: Paths) -> None:
    """Plan the file of tokens, unless it is there."""
    if draft.files.read(paths.tokens) is None:
        verb, token = "restart" if _is_handed(paths) else "reload", secrets.token_urlsafe(32)
        content = _TOKENS.format(name=TOKEN_NAME, token=token, verb=verb)
        draft.write_secret(paths.tokens, content.encode(), paths.group_number)


def free_port(taken: Collection[int] = ()) -> int | None:
    """Return the first port of PORTS at which nobody listens; None: there is none.

    Args:
        taken: Ports that somebody will listen at later.
    """
    return next((port for port in PORTS if port not in taken and _is_free(port)), None)


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((HOST, port)):
            return True
    except OSError:
        return False


def ports_of(loaded: Config) -> set[int]:
    """Return the ports that the daemon listens at already."""
    first = loaded.audiosocket.listen.port
    ports = set(range(first, first + loaded.relay.workers)) if first else set()
    return ports | ({loaded.front.listen.port} if loaded.front.listen else set())


def how_to_open(loaded: Config, tokens: Path) -> str:
    """Return how to open the page of a configuration; empty: it has none that is reached by TCP.

    Args:
        loaded: The configuration.
        tokens: The file of tokens that setup makes.
    """
    http = loaded.http
    if http.listen is None:
        return ""
    scheme = "https" if http.cert_file else "http"
    text = f"the page and the HTTP interface: {scheme}://{http.listen}/"
    if http.listen.host == HOST:
        port = http.listen.port
        text += (
            f" on this machine; from another one: ssh -L {port}:{http.listen} "
            f"{socket.gethostname()}, then the same address there"
        )
    file = tokens if http.tokens_file == HANDED else http.tokens_file
    return f"{text}\nit asks for a token: the last word of a line of {file}"
