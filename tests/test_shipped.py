"""The files that come with the package are found wherever it is installed."""

from __future__ import annotations

import configparser
import re
import sysconfig
from pathlib import Path

import pytest

from audiofork import shipped

ROOT = Path(__file__).parent.parent
NAMES = [
    *(getattr(shipped, name) for name in vars(shipped) if name.isupper() and name[0] != "_"),
    "etc/audiofork.ini",
]


def installed_as() -> dict[str, str]:
    """Return where setup.cfg has each shipped file installed, below the prefix."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    section = parser["options.data_files"]
    return {name: folder for folder in section for name in section[folder].split()}


@pytest.mark.parametrize("name", NAMES)
def test_file_is_found_in_a_checkout(name: str) -> None:
    assert shipped.find(name) == ROOT / name


@pytest.mark.parametrize("name", NAMES)
def test_file_is_found_in_the_prefix_that_the_package_is_installed_into(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / installed_as()[name] / Path(name).name
    installed.parent.mkdir(parents=True)
    installed.write_text("here")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "lib/site-packages/audiofork")
    monkeypatch.setattr(sysconfig, "get_path", lambda *of: str(tmp_path))
    assert shipped.text(name) == "here"


def test_every_file_for_asterisk_and_systemd_is_installed() -> None:
    there = {
        str(path.relative_to(ROOT))
        for folder in ("etc", "systemd")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert set(installed_as()) == there


def test_every_file_of_the_page_is_a_part_of_the_package() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    patterns = parser["options.package_data"]["audiofork"].split()
    page = ROOT / "audiofork/doors/http/page"
    there = [path.relative_to(ROOT / "audiofork") for path in page.rglob("*") if path.is_file()]
    assert there
    for path in there:
        assert any(path.match(pattern) for pattern in patterns), path


def test_page_names_its_files_and_nothing_else() -> None:
    page = ROOT / "audiofork/doors/http/page"
    index = (page / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', index))
    scripts = "".join(path.read_text() for path in page.glob("*.js"))
    named |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', scripts)}
    assert named == {f"page/{path.name}" for path in page.iterdir()} - {"page/index.html"}


def test_missing_file_is_an_error_that_names_where_it_was_looked_for() -> None:
    with pytest.raises(FileNotFoundError, match="looked for .*/etc/asterisk/none.conf"):
        shipped.find("etc/asterisk/none.conf")
