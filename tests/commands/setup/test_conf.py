"""Asterisk's configuration files are read as Asterisk reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.commands.setup.conf import Conf, Files


def conf(folder: Path, **files: str) -> Conf:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    return Conf(folder, "main.conf", Files())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[general]\nenabled = yes\n", "yes"),
        ("[General]\nEnabled=>no ; why\n", "no"),
        ("\xef\xbb\xbf[general]\r\nenabled = yes\r\n", "yes"),
        ("[general]\nenabled = yes\nenabled = no", "no"),
        ("[general]\nenabled = yes\n[general]\nenabled = no\n", "yes"),
        ("[general]\nenabled = yes\n[other]\n[general](+)\nenabled = no\n", "no"),
        ("[general](!)\nenabled = yes\n", None),
        ("[base](!)\nenabled = yes\n[general](base)\n", "yes"),
        ("[base](!)\nenabled = yes\n[general](base)\nenabled = no\n", "no"),
        (";--\n[general]\nenabled = no\n--;\n[general]\nenabled = yes\n", "yes"),
        ("[general]\n;enabled = yes\n", ""),
        ("enabled = yes\n", None),
        ("[general]\nenabled = \xe4\n", "\xe4"),
    ],
)
def test_last_value_in_the_first_section_that_is_no_template_counts(
    tmp_path: Path, text: str, value: str | None
) -> None:
    section = conf(tmp_path, main=text).section("general")
    assert (section.value("enabled") if section else None) == value


@pytest.mark.parametrize(
    "line",
    [
        '#include "d/*.conf" ',
        "#include <d/one.conf>",
        "#include d/one.conf ; why",
        "#tryinclude d/one.conf",
        "#INCLUDE d/o*.conf",
    ],
)
def test_included_files_are_read_and_go_on_with_the_section(tmp_path: Path, line: str) -> None:
    one = conf(tmp_path, main=f"[general]\n{line}\n", d__one="enabled = yes\n[user]\n")
    general, user = one.section("general"), one.section("user")
    assert general is not None
    assert user is not None
    assert str(general.last("enabled")) == f"{tmp_path}/d/one.conf:1"
    assert str(user) == f"{tmp_path}/d/one.conf:2"
    assert one.includes(tmp_path / "d/one.conf")


def test_absolute_include_is_read(tmp_path: Path) -> None:
    one = conf(tmp_path, main=f"#include {tmp_path}/other.conf\n", other="[user]\n")
    assert one.section("user") is not None


def test_file_that_includes_itself_ends(tmp_path: Path) -> None:
    assert len(conf(tmp_path, main="#include main.conf\n[user]\n").sections("user")) == 11


def test_missing_files_are_no_sections(tmp_path: Path) -> None:
    assert conf(tmp_path).section("general") is None
    assert conf(tmp_path, main="#tryinclude none.conf\n#include n*.conf\n").read == [
        tmp_path / "main.conf"
    ]


def test_script_is_not_run_but_told(tmp_path: Path) -> None:
    one = conf(tmp_path, main="[general]\n#exec /bin/touch here\n")
    assert one.runs_scripts == [f"{tmp_path}/main.conf:2"]


def test_wildcard_is_a_place_for_a_new_file(tmp_path: Path) -> None:
    one = conf(tmp_path, main='#include plain.conf\n#include "d/*.conf"\n#include "e/*/*.conf"\n')
    assert one.wildcard_place("new.conf") == tmp_path / "d/new.conf"
    assert conf(tmp_path, main="#include main_*.conf\n").wildcard_place("new.conf") is None


def test_planned_file_hides_what_is_there(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "main.conf").write_text("#include d/*.conf\n")
    files.planned[tmp_path / "d/new.conf"] = b"[user]\n"
    assert Conf(tmp_path, "main.conf", files).section("user") is not None
    files.planned[tmp_path / "main.conf"] = b""
    assert Conf(tmp_path, "main.conf", files).section("user") is None
