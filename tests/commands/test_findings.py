"""How a finding of the check is shown."""

from __future__ import annotations

import json

from audiofork.commands.findings import Finding, Findings, Mark


def test_finding_is_a_line_and_its_remedy_stands_indented_below() -> None:
    remedy = "word " * 40
    lines = str(Finding(Mark.FAIL, "audio: none comes", remedy)).splitlines()
    assert lines[0] == "FAIL  audio: none comes"
    assert len(lines) == 4
    assert all(line.startswith("        word") and len(line) <= 92 for line in lines[1:])
    assert str(Finding(Mark.OK, "login")) == "ok    login"


def test_lines_of_a_file_in_a_remedy_are_kept_as_they_are() -> None:
    remedy = f"In http.conf:\n  [general]\n  enabled = yes\n{'to-be-copied ' * 8}"
    assert str(Finding(Mark.FAIL, "ARI", remedy)).splitlines()[1:] == [
        "        In http.conf:",
        "          [general]",
        "          enabled = yes",
        "        " + "to-be-copied " * 5 + "to-be-copied",
        "        to-be-copied to-be-copied",
    ]


def test_finding_of_one_of_several_asterisks_names_it() -> None:
    found: list[Finding] = []
    findings = Findings(found.append, "pbx-b")
    findings.ok("login: fine")
    findings.fail("clock: late", "Set it.")
    assert [str(one) for one in found] == [
        "ok    pbx-b: login: fine",
        "FAIL  pbx-b: clock: late\n        Set it.",
    ]
    assert json.loads(found[0].as_json()) == {
        **{"status": "ok", "name": "login", "text": "pbx-b: login: fine", "remedy": ""},
        "asterisk": "pbx-b",
    }
