"""`make deb SUITE=bookworm`: the package built within another release of Debian."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.package.roots import NoRoot, layered, root_of

CHECKOUT = Path(__file__).parent.parent.parent
# The other system needs the same as this machine to reach PyPI: settings and trusted authorities.
_PASSED_ON = ("pip_", "http_proxy", "https_proxy", "no_proxy")
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def build(suite: str) -> Path:
    """Build the package for a release of Debian; return its file in `dist`.

    Raises:
        NoRoot: There is no root file system to build it in.
        subprocess.CalledProcessError: It cannot be built; the reason has been printed.
    """
    dist = CHECKOUT / "dist"
    dist.mkdir(exist_ok=True)
    with layered(root_of(suite)) as root:
        copy_checkout(root / "build")
        _nspawn(root, dist)
        built = (root / "built").read_text().strip()
    return dist / Path(built).name


def copy_checkout(target: Path) -> None:
    """Copy all files that git tracks, and new ones that it does not ignore."""
    target.mkdir()
    files = "git ls-files --cached --others --exclude-standard -z"
    packed = "tar --create --null --files-from=- --ignore-failed-read"
    script = f"{files} | {packed} | tar --extract --directory={target}"
    subprocess.run(["sh", "-c", script], cwd=CHECKOUT, check=True)


def _nspawn(root: Path, dist: Path) -> None:
    script = (
        "/build/packaging/build-deb >&2 && cp /build/dist/*.deb /dist && ls /build/dist > /built"
    )
    run_in(root, script, f"--bind={dist}:/dist")


def run_in(root: Path, script: str, *options: str) -> None:
    """Run a script in a root file system, with the network of this machine.

    Args:
        root: The root file system.
        script: For `sh`; what it prints goes to standard error.
        options: Of systemd-nspawn.

    Raises:
        subprocess.CalledProcessError: It failed; the reason has been printed.
    """
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe"]
    command += [f"--directory={root}", f"--machine=audiofork-{os.getpid()}"]
    command += ["--resolv-conf=copy-host", *options]
    if _AUTHORITIES.exists():
        # At another path than the system's own, which a package may install during the script.
        command += [f"--bind-ro={_AUTHORITIES}:/authorities"]
    command += [f"--setenv={name}" for name in os.environ if name.lower().startswith(_PASSED_ON)]
    if _AUTHORITIES.exists():
        command.append("--setenv=PIP_CERT=/authorities")
    subprocess.run(
        [*command, "sh", "-c", script], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )


def main() -> int:
    """Build the package for each release that is named."""
    try:
        for suite in sys.argv[1:]:
            print(build(suite))
    except (NoRoot, subprocess.CalledProcessError) as exc:
        print(f"no package: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
