"""What to put where, for one who does it himself, or for an Asterisk on another host."""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path

from audiofork import shipped
from audiofork.commands.setup import http_door
from audiofork.commands.setup.asterisk_files import LOOPBACK, PLACEHOLDER, RELOADS
from audiofork.commands.setup.daemon_files import Paths, this_program
from audiofork.config_values import Address

_PERMIT = "permit = 127.0.0.1/255.255.255.255"
_SECRET = """\
install -d {folder} {folder}/profiles.d
(umask 077; python3 -c 'import secrets; print(secrets.token_hex(24))' > {secret})
(umask 077; python3 -c 'import secrets; print("{name} view,listen,control", secrets.token_hex())' \\
  > {tokens})
"""
_INI = """\
[asterisk]
host = {host}
secret_file = {secret}

[ari]
url = http://{http}/ari
password_file = {secret}

[http]
listen = {door}
tokens_file = {handed}
"""
_INI_BEYOND = """
[audiosocket]
listen = {audio}
"""
_FREEPBX = """\
With FreePBX write to manager_custom.conf, http_custom.conf, ari_general_custom.conf, \
ari_additional_custom.conf (the user of ARI) and extensions_custom.conf in place of manager.conf, \
http.conf, ari.conf and extensions.conf."""
_BEYOND = """\
Nobody but this machine should reach the ports of AMI and HTTP there: a private network, a \
firewall, or TLS (tlsenable in manager.conf and http.conf; [asterisk] tls = yes, and https:// in \
[ari] url)."""
_ADDED = {
    "manager.conf": "[general](+)\nenabled = yes\n#include manager_audiofork.conf",
    "http.conf": "[general](+)\nenabled = yes\nbindaddr = {address}",
    "ari.conf": "[general](+)\nenabled = yes\n#include ari_audiofork.conf",
    "extensions.conf": "#include extensions_audiofork.conf",
}
_UNITS = """\
for unit in audiofork audiofork-sweep; do
  sed 's|/opt/audiofork/bin/audiofork|{program}|' {folder}/$unit.service \\
    > /etc/systemd/system/$unit.service; done
systemctl daemon-reload
systemctl enable --now audiofork
audiofork check -c {ini}
"""
_PAGE = "The page is at http://{door}/ then; it asks for the token, the last word of {tokens}."


def text(ini: Path, host: str = LOOPBACK) -> str:
    """Return what to do, with the whole texts and the commands.

    Args:
        ini: The daemon's configuration file.
        host: Where Asterisk is.
    """
    is_here, paths = host == LOOPBACK, Paths(ini)
    ours = LOOPBACK if is_here else _our_address(host)
    names = {
        "host": host,
        "address": _address_of(host),
        "http": str(Address(host, 8088)),
        "audio": str(Address(ours, 9093)),
        "ours": ours,
        "there": "here" if is_here else f"on {host}",
        "secret": str(paths.secret),
        "tokens": str(paths.tokens),
        "name": http_door.TOKEN_NAME,
        "handed": http_door.HANDED,
        "door": str(Address(http_door.HOST, http_door.PORTS[0])),
        "folder": str(ini.parent),
    }
    units = shipped.find(shipped.SERVICE).parent
    unit_commands = _UNITS.format(program=" ".join(this_program()), folder=units, ini=ini)
    parts = [
        "1. Here, as root, make the secret, and a token for the page and the HTTP interface:",
        _code(_SECRET.format(**names)),
        f"2. Here, put into {ini}, each section once:",
        _code((_INI if is_here else _INI + _INI_BEYOND).format(**names)),
        "3. Asterisk's files, {there}, are in /etc/asterisk, unless asterisk -rx 'core show "
        "settings' names another folder.".format(**names),
        *([] if is_here else [_BEYOND]),
        _FREEPBX,
        *_lines_of_asterisk(names, is_here=is_here),
        *_files_of_asterisk(names),
        "4. Have Asterisk, {there}, read them:".format(**names),
        _code("\n".join(f"asterisk -rx '{command}'" for command in RELOADS.values())),
        "5. Here, install the units and start the service, then see whether all is well:",
        _code(unit_commands),
        _PAGE.format(**names),
    ]
    return "\n\n".join(parts)


def _lines_of_asterisk(names: dict[str, str], *, is_here: bool) -> list[str]:
    """Return what is added to Asterisk's own files."""
    parts = []
    for name, lines in _ADDED.items():
        # Debian's manager.conf has 127.0.0.1.
        bind = (
            "enabled = yes\nbindaddr = {address}\n" if name == "manager.conf" else "enabled = yes\n"
        )
        added = lines if is_here else lines.replace("enabled = yes\n", bind)
        parts += [f"At the end of {name}:", _code(added.format(**names))]
    return parts


def _files_of_asterisk(names: dict[str, str]) -> list[str]:
    """Return the shipped files, each with what is to be done with it."""
    parts = []
    for name in (shipped.MANAGER_CONF, shipped.ARI_CONF, shipped.EXTENSIONS_CONF):
        content = shipped.text(name)
        heading = f"{Path(name).name}, {names['there']}"
        if PLACEHOLDER in content:
            heading += (
                f", readable for Asterisk's group alone (chmod 640), with what is in "
                f"{names['secret']} in place of {PLACEHOLDER}"
            )
        permit = f"permit = {names['ours']}"
        is_here = names["ours"] == LOOPBACK
        parts += [f"{heading}:", _code(content if is_here else content.replace(_PERMIT, permit))]
    return parts


def _code(content: str) -> str:
    return textwrap.indent(content.rstrip(), "    ")


def _address_of(host: str) -> str:
    """Return the address of a host: in place of a name Asterisk's AMI listens on all addresses."""
    try:
        return str(socket.getaddrinfo(host, 5038, type=socket.SOCK_DGRAM)[0][4][0])
    except OSError:
        return f"(the address of {host})"


def _our_address(host: str) -> str:
    """Return the address of this machine as a host sees it; nothing is sent."""
    try:
        found = socket.getaddrinfo(host, 5038, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return "(the address of this machine)"
