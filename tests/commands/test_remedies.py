"""What is said to do about each fault: as it is printed, and what it does with secrets."""

from __future__ import annotations

import re

import pytest

from audiofork.commands import remedies
from audiofork.commands.findings import Finding, Mark

USER = "audiofork"
ALL = {
    **{name: text for name, text in vars(remedies).items() if name.isupper()},
    "http_conf": remedies.http_conf("http://127.0.0.1:8088/ari"),
    "https": remedies.http_conf("https://192.0.2.1:8089/ari"),
    "ari_user": remedies.ari_user(USER),
    "read_only": remedies.read_only(USER),
    "login": remedies.login(USER),
    "rights": remedies.rights(USER),
    "empty_lines": remedies.empty_lines(USER),
    "load": remedies.load("app_chanspy.so", "res_timing_pthread.so"),
}
TEXTS = {name: text for name, text in ALL.items() if isinstance(text, str) and " " in text}
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


@each_text
def test_indented_lines_are_printed_whole(text: str) -> None:
    """They are commands, or lines of a file."""
    printed = str(Finding(Mark.FAIL, "x", text)).splitlines()
    for line in text.splitlines():
        if line.startswith("  ") and "(" not in line:
            assert f"        {line}" in printed


@each_text
def test_no_secret_comes_into_a_command_or_an_environment(text: str) -> None:
    assert not re.search(r"\$\(|`|AUDIOFORK_\w+(SECRET|PASSWORD)=", text)


@each_text
def test_file_that_gets_a_secret_is_made_for_those_alone_who_may_read_it(text: str) -> None:
    for found in re.finditer(r"\b(secret|password) = \S", text):
        before = text[: found.start()]
        assert re.search(r"install -m 640 -g asterisk \S+ \S+ari_audiofork\.conf\n", before)


@pytest.mark.parametrize(
    "name",
    [
        *("NO_SECRET", "NO_PASSWORD", "UNREACHABLE", "HAVE_ARI", "NO_ARI", "INCLUDE_EXTENSIONS"),
        *("http_conf", "ari_user", "read_only", "login", "rights", "empty_lines"),
    ],
)
def test_what_setup_does_is_said_to_be_its_work_before_the_way_by_hand(name: str) -> None:
    text = TEXTS[name]
    assert text.index("audiofork setup") < re.search("[Bb]y hand[:,]", text).start()  # type: ignore[union-attr]
