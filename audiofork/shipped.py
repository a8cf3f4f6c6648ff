"""The files that come with the package: Asterisk's users and dialplan, the units, the sample.

In a checkout they are beside the package. An installed package has them in `share/audiofork` of the
prefix that it was installed into ([options.data_files] of setup.cfg).
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

_PACKAGE = Path(__file__).parent
_SHARE = "share/audiofork"
MANAGER_CONF = "etc/asterisk/manager_audiofork.conf"
ARI_CONF = "etc/asterisk/ari_audiofork.conf"
EXTENSIONS_CONF = "etc/asterisk/extensions_audiofork.conf"
NATS_CONF = "etc/nats/audiofork.conf"
SERVICE = "systemd/audiofork.service"
SWEEP_SERVICE = "systemd/audiofork-sweep.service"
RELAY_SERVICE = "systemd/audiofork-relay@.service"
CONTROL_SERVICE = "systemd/audiofork-control.service"
RELAY_HOST_SERVICE = "systemd/audiofork-relay-host@.service"


def find(name: str) -> Path:
    """Return the path of a shipped file.

    Args:
        name: As in the source tree, for example `etc/asterisk/manager_audiofork.conf`.

    Raises:
        FileNotFoundError: The installation lacks it; the text names where it was looked for.
    """
    places = [folder / name for folder in _folders()]
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in places)
    raise FileNotFoundError(f"a file of the package is missing; looked for {looked}")


def text(name: str) -> str:
    """Return the text of a shipped file; see `find`."""
    return find(name).read_text(encoding="utf-8")


def _folders() -> list[Path]:
    """Return the folders that may contain the files, the folder of a checkout first."""
    checkout = [_PACKAGE.parent] if (_PACKAGE.parent / "setup.cfg").is_file() else []
    # Third: `pip install --target FOLDER` puts the package and `share` side by side.
    prefixes = [sysconfig.get_path("data"), sysconfig.get_path("data", _user_scheme())]
    installed = [Path(prefix, _SHARE) for prefix in prefixes]
    return [*checkout, *installed, _PACKAGE.parent / _SHARE]


def _user_scheme() -> str:
    return sysconfig.get_preferred_scheme("user")
