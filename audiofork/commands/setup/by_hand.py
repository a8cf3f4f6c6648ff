"""What to put where, for one who does it himself, or for an Asterisk on another host."""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path

from audiofork import shipped
from audiofork.commands.setup.asterisk_files import LOOPBACK

_INI = """\
[asterisk]
host = {host}
secret_file = {secret}

[ari]
url = http://{host}:8088/ari
password_file = {secret}
"""
_BEYOND = """
[audiosocket]
listen = {ours}:9093
"""


def text(ini: Path, host: str = LOOPBACK) -> str:
    """Return what to do, with the whole texts and the commands.

    Args:
        ini: The daemon's configuration file.
        host: Where Asterisk is.
    """
    is_here = host == LOOPBACK
    ours = LOOPBACK if is_here else _our_address(host)
    secret = ini.parent / "ami-secret"
    there = "here" if is_here else f"on {host}"
    settings = (_INI + ("" if is_here else _BEYOND)).format(host=host, secret=secret, ours=ours)
    parts = [
        "1. Here, as root, make the secret:",
        _code(
            f"install -d {ini.parent}\n"
            "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(24))' "
            f"> {secret})"
        ),
        f"2. Here, put into {ini}, each section once:",
        _code(settings),
        f"3. Asterisk's files, {there}, are in /etc/asterisk, unless `asterisk -rx \"core show "
        'settings"` names another folder. With FreePBX write to manager_custom.conf, '
        "http_custom.conf, ari_general_custom.conf, ari_additional_custom.conf (the user of ARI) "
        "and extensions_custom.conf in place of manager.conf, http.conf, ari.conf and "
        "extensions.conf. At the end of manager.conf:",
        _code("[general](+)\nenabled = yes\n#include manager_audiofork.conf"),
        "At the end of http.conf:" if is_here else _HTTP_BEYOND,
        _code(f"[general](+)\nenabled = yes\nbindaddr = {host}"),
        "At the end of ari.conf:",
        _code("[general](+)\nenabled = yes\n#include ari_audiofork.conf"),
        "At the end of extensions.conf:",
        _code("#include extensions_audiofork.conf"),
    ]
    for name in (shipped.MANAGER_CONF, shipped.ARI_CONF, shipped.EXTENSIONS_CONF):
        content = shipped.text(name).replace(
            "permit = 127.0.0.1/255.255.255.255", f"permit = {ours}"
        )
        parts += [_heading(name, secret, there), _code(content)]
    parts += [
        f"4. Have Asterisk, {there}, read them:",
        _code("\n".join(f"asterisk -rx '{command}'" for command in _RELOADS)),
        "5. Here, install the unit and start it, then see whether all is well:",
        _code(
            f"cp {shipped.find(shipped.SERVICE)} {shipped.find(shipped.SWEEP_SERVICE)} "
            "/etc/systemd/system/\n"
            "systemctl daemon-reload && systemctl enable --now audiofork\n"
            f"audiofork check -c {ini}"
        ),
    ]
    return "\n\n".join(parts)


_RELOADS = ("manager reload", "module reload http", "module reload res_ari.so", "dialplan reload")
_HTTP_BEYOND = (
    "At the end of http.conf; nobody but this machine should reach that port, nor that of AMI "
    "(manager.conf, bindaddr): a private network, a firewall, or TLS (tlsenable, and https:// in "
    "[ari] url):"
)


def _heading(name: str, secret: Path, there: str) -> str:
    """Return what is said before a file of Asterisk's."""
    target = Path(name).name
    if name == shipped.EXTENSIONS_CONF:
        return f"{target}, {there}:"
    return (
        f"{target}, {there}, readable for Asterisk's group alone (chmod 640), with the secret "
        f"that is in {secret} in place of CHANGE-ME:"
    )


def _code(content: str) -> str:
    return textwrap.indent(content.rstrip(), "    ")


def _our_address(host: str) -> str:
    """Return the address of this machine as a host sees it; nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 5038, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return "(the address of this machine)"
