"""The files of profiles.d, as they are read with the configuration beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.config_file import load, load_control, with_place
from audiofork.errors import ConfigError

PROFILE = "[profile:{}]\nurl = ws://{}/\n"


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    """A configuration file with a profile, and an empty folder of profiles beside it."""
    (tmp_path / "profiles.d").mkdir()
    path = tmp_path / "audiofork.ini"
    path.write_text(PROFILE.format("main", "main"))
    return path


def put(ini: Path, name: str, content: str) -> Path:
    path = ini.parent / "profiles.d" / name
    path.write_text(content)
    return path


def refusal(ini: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(ini, {})
    return str(caught.value)


def test_profiles_of_all_files_are_there(ini: Path) -> None:
    put(ini, "b.ini", PROFILE.format("b", "b"))
    put(ini, "a.ini", PROFILE.format("a", "a") + PROFILE.format("c", "c"))
    found = load(ini, {}).profile
    assert {name: profile.url for name, profile in found.items()} == {
        name: f"ws://{name}/" for name in ("main", "a", "c", "b")
    }


def test_folder_that_is_not_there_is_no_error(ini: Path) -> None:
    (ini.parent / "profiles.d").rmdir()
    assert list(load(ini, {}).profile) == ["main"]


@pytest.mark.parametrize(
    "name",
    [".a.ini", "a.ini~", ".a.ini.swp", "a.ini.dpkg-new", "a.ini.dpkg-old", "a.key", "README"],
)
def test_hidden_files_backups_and_keys_are_passed_over(ini: Path, name: str) -> None:
    put(ini, name, "no ini file at all")
    assert list(load(ini, {}).profile) == ["main"]


def test_environment_overrides_and_token_files_are_as_in_the_main_file(ini: Path) -> None:
    key = put(ini, "speech.key", "t0ken\n")
    put(ini, "a.ini", f"{PROFILE.format('a', 'a')}token_file = {key}\n")
    found = load(ini, {"AUDIOFORK_PROFILE_A_URL": "ws://other/"}).profile["a"]
    assert (found.url, found.token) == ("ws://other/", "t0ken")


def test_other_section_is_an_error_with_its_place(ini: Path) -> None:
    path = put(ini, "a.ini", PROFILE.format("a", "a") + "[security]\nallow_urls = *://*\n")
    assert refusal(ini) == (
        f"{path}:3: expected [profile:NAME], got [security]; files in profiles.d hold profiles "
        "alone"
    )


@pytest.mark.parametrize("first", ["audiofork.ini", "profiles.d/a.ini"])
def test_profile_that_stands_twice_is_an_error_with_both_places(ini: Path, first: str) -> None:
    (ini.parent / first).write_text(PROFILE.format("x", "one"))
    second = put(ini, "b.ini", "\n" + PROFILE.format("x", "two"))
    assert refusal(ini) == (
        f"{second}:2: [profile:x] stands in {ini.parent / first}:1, too: keep one, or give one of "
        "them another name"
    )


def test_profile_may_stand_in_parts_in_one_file(ini: Path) -> None:
    put(ini, "a.ini", PROFILE.format("a", "a") + "[profile:a]\noptions = D(in)\n")
    assert load(ini, {}).profile["a"].options == "D(in)"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[profile:a]\nurle = ws://h/\n", ":2: unknown option urle in [profile:a]; did you mean"),
        ("[profile:a]\nclosing_wait = 99\n", ":2: [profile:a] closing_wait: expected a number"),
        ("[profile:a]\nfull_messages = 7\n", ":2: [profile:a] full_messages: expected yes or no"),
        ("url = ws://h/\n", ":1: expected a [section] before the first option"),
        ("[profile:a b]\n", ":1: expected [profile:NAME], the name"),
        ("[profile:a]\ntoken_file = /nowhere/k\n", ":2: [profile:a] token_file: /nowhere/k: No"),
    ],
)
def test_fault_in_a_file_is_told_with_file_and_line(ini: Path, content: str, told: str) -> None:
    path = put(ini, "a.ini", content)
    assert refusal(ini).startswith(f"{path}{told}")


@pytest.mark.parametrize("folder", [True, False])
def test_what_cannot_be_read_is_an_error_that_names_it(ini: Path, folder: bool) -> None:
    path = ini.parent / "profiles.d"
    if folder:
        path.rmdir()
        path.write_text("")
        assert refusal(ini).startswith(f"{path}: Not a directory")
    else:
        (path / "a.ini").symlink_to("/nowhere")
        assert refusal(ini) == f"{path / 'a.ini'}: No such file or directory"


def test_error_of_a_later_time_gets_its_place_in_the_file_of_profiles(ini: Path) -> None:
    path = put(ini, "a.ini", "\n[profile:a]\nurl = http://h/\n")
    assert with_place("[profile:a] url: wrong", ini, {}) == f"{path}:3: [profile:a] url: wrong"


def test_who_needs_no_profiles_does_not_read_their_files(ini: Path) -> None:
    put(ini, "a.ini", "no ini file")
    assert list(load(ini, {}, secrets_of=["asterisk"]).profile) == ["main"]
    load_control(ini, {})
