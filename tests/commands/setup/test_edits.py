"""Lines are added to files of any kind, and no line that was there is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.commands.setup import edits
from audiofork.commands.setup.conf import BOM
from audiofork.errors import SetupError

INCLUDE = "#include ari_audiofork.conf"

ends = st.sampled_from(["\n", "\r\n", ""])
lines = st.one_of(
    st.sampled_from(["[general]", "[general](!)", "[ari]", ";url =", "enabled = no", "#exec x"]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\n;"), max_size=20),
)
texts = st.builds(
    lambda bom, pairs, last: (BOM if bom else "") + "".join(map("".join, pairs)) + last,
    st.booleans(),
    st.lists(st.tuples(lines, st.sampled_from(["\n", "\r\n"])), max_size=8),
    lines,
)


@pytest.mark.slow
@given(texts)
def test_append_keeps_each_byte_before_the_line(text: str) -> None:
    result = edits.append(text, [INCLUDE], "file")
    assert result.startswith(text)
    added = result.removeprefix(text).strip("\r\n")
    assert added == edits.marked(INCLUDE)
    assert result.encode("latin-1")


@given(texts, st.sampled_from(["ari", "asterisk"]))
def test_insert_keeps_each_line_in_its_order(text: str, section: str) -> None:
    result = edits.insert_option(text, section, "url = http://127.0.0.1/ari")
    added = edits.added_lines(text, result)
    assert added[-1:] == [edits.marked("url = http://127.0.0.1/ari")]
    kept = edits.without(result, added)
    assert kept.rstrip("\r\n") == text.rstrip("\r\n")


@given(texts)
def test_without_the_added_lines_a_text_is_as_it_was(text: str) -> None:
    result = edits.append(text, ["[general](+)", "enabled = yes"], "file")
    taken = edits.without(result, edits.added_lines(text, result))
    assert taken in (text, text + "\n", text + "\r\n")


@pytest.mark.parametrize(
    ("text", "end"), [("a\r\nb", "\r\n"), ("a\nb", "\n"), ("", "\n"), ("a\r\n", "\r\n")]
)
def test_line_ends_as_the_others_do(text: str, end: str) -> None:
    assert edits.append(text, ["x = 1"], "file").endswith(f"{edits.MARK}{end}")


@pytest.mark.parametrize("text", ["[a]\n;--\nx", ";-- --; ;--\n", "a ;--"])
def test_append_into_a_comment_without_end_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="here.conf: a comment that begins with ;--"):
        edits.append(text, [INCLUDE], "here.conf")


@pytest.mark.parametrize("text", [";-- x --;\n", ";--- x\n", "a = \\;-- b\n", "; ;--\n--;"])
def test_append_after_a_comment_that_ends_is_not_refused(text: str) -> None:
    assert edits.append(text, [INCLUDE], "file").startswith(text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("[ari]\n;app = x\n;url =\n\n[log]\n", "[ari]\n;app = x\n;url =\nNEW\n\n[log]\n"),
        ("[ari]\napp = x\n[log]\n", "[ari]\nNEW\napp = x\n[log]\n"),
        ("[log]\n;url =", "[log]\n;url =\nHEAD\nNEW\n"),
        ("[ari]", "[ari]\nNEW\n"),
        ("", "HEAD\nNEW\n"),
        ("[ari]\r\nx=1\r\n", "[ari]\r\nNEW\r\nx=1\r\n"),
        (BOM + "[ari]\n", BOM + "[ari]\nNEW\n"),
    ],
)
def test_option_comes_into_its_section(text: str, result: str) -> None:
    new = edits.insert_option(text, "ari", "url = u")
    expected = result.replace("NEW", edits.marked("url = u"))
    assert new == expected.replace("HEAD", edits.marked("[ari]"))


@pytest.mark.parametrize(
    "given",
    [
        "token = hunter2",
        "token: hunter2",
        "proxy_login = pbx:hunter2",
        "proxy = http://pbx:hunter2@proxy.example.org:3128",
        "url = wss://example.org/live?key=hunter2",
        "status_callback = https://example.org/?key=hunter2",
        "headers = X-Key: hunter2",
        "headers =\n    X-One: 1\n    X-Key: hunter2",
        'opening = {"key": "hunter2"}',
        'closing = {"end": true,\n\t"key": "hunter2"}',
        "params = key=hunter2",
        "options = D(in)A(hunter2)",
        "options = D(in)H(X-Key:hunter2)",
    ],
)
@pytest.mark.parametrize("sign", ["", ";"])
def test_diff_shows_no_secret_of_the_daemons_own_file(given: str, sign: str) -> None:
    before = f"[profile:a]\n{sign}{given}\n".encode()
    shown = edits.diff("audiofork.ini", before, before + b"[asterisk]\nport = 5\n")
    assert "hunter2" not in shown
    assert "(not shown)" in shown
    assert "+port = 5" in shown


def test_diff_shows_where_a_proxy_and_a_server_are() -> None:
    text = b"proxy = http://pbx:hunter2@h:3128\nurl = http://127.0.0.1:8088/ari\n  read = all\n"
    assert edits.diff("audiofork.ini", b"", text).splitlines()[-3:] == [
        "+proxy = http://(not shown)@h:3128",
        "+url = http://127.0.0.1:8088/ari",
        "+  read = all",
    ]


def test_diff_shows_no_secret() -> None:
    before = b"[one]\nsecret = hunter2\n;password=hunter2\n pass => hunter2\nmd5secret=hunter2\n"
    shown = edits.diff("file", before, before + b"secret = hunter2\nx = 1\n")
    assert "hunter2" not in shown
    assert "+x = 1" in shown


def test_diff_shows_control_characters_as_question_marks() -> None:
    assert "+a?[2Jb" in edits.diff("file", b"", b"a\x1b[2Jb\n")
