"""Which files `migrate` reads, and in which language."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from audiofork.commands.dialplan import Kind, kind_of
from audiofork.commands.migrate_includes import MAX_LEVELS, Reader, directives, expand_braces
from audiofork.commands.terminal import EXIT_DONE, EXIT_FAILED
from tests.commands.test_migrate_files import NEEDS_INCLUDE, Said

CALL = "exten => s,1,AudioFork(ws://h/)\n"


def folder_of(tmp_path: Path, files: dict[str, str]) -> Path:
    """Return a folder with these files, by name."""
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def read(*paths: Path, folder: Path | None = None) -> Reader:
    reader = Reader(folder)
    for path in paths:
        reader.read(path)
    return reader


def names(reader: Reader, folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in reader.files]


def told(reader: Reader) -> list[tuple[int, str, bool]]:
    return [(note.line, note.text, note.left) for file in reader.files for note in file.notes]


# --- Includes ---


@pytest.mark.parametrize(
    ("directive", "found"),
    [
        ("#include a.conf", ["a.conf"]),
        ('#include "a.conf"', ["a.conf"]),
        ("#include <a.conf>", ["a.conf"]),
        ('  #INCLUDE\t"a.conf" ; why', ["a.conf"]),
        ('#tryinclude "a.conf"', ["a.conf"]),
        ("#include sub/*.conf", ["sub/c.conf", "sub/d.conf"]),
        ('#include "{a,sub/{c,d}}.conf"', ["a.conf", "sub/c.conf", "sub/d.conf"]),
        ("#include [ab].conf", ["a.conf", "b.conf"]),
        ("#include {folder}/a.conf", ["a.conf"]),
        ("#include a link.conf", ["a link.conf"]),
        (";#include a.conf", []),
        (";-- \n#include a.conf\n--;", []),
        ("include => a", []),
        ("switch => IAX2/a:b@c/d", []),
        ("#tryinclude none.conf", []),
        ("#include", []),
    ],
)
def test_included_files_are_those_that_asterisk_includes(
    tmp_path: Path, directive: str, found: list[str]
) -> None:
    files = ["a.conf", "b.conf", "sub/c.conf", "sub/d.conf", "sub/.e.conf", "a link.conf"]
    folder = folder_of(tmp_path, dict.fromkeys(files, CALL))
    main = folder / "extensions.conf"
    main.write_text(f"[x]\n{directive.replace('{folder}', str(folder))}\n")
    reader = read(main)
    assert names(reader, folder) == ["extensions.conf", *found]
    assert not any(note.left for file in reader.files for note in file.notes)


def test_run_migrates_what_is_included_and_reports_each_file(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "extensions.conf": "#include one.conf\n",
            "one.conf": f"[a]\n{CALL}#include sub/two.conf\n",
            "sub/two.conf": f"[b]\n{CALL}#include sub/three.conf\n",
            "sub/three.conf": "[c]\nexten => s,1,NoOp()\n",
        },
    )
    said = Said()
    assert said.run(folder / "extensions.conf", write=True) == EXIT_DONE
    assert said.notes[:4] == [
        f"{folder}/extensions.conf: nothing to rewrite",
        f"{folder}/one.conf: 1 rewritten; old file: {folder}/one.conf.before-migrate",
        f"{folder}/sub/two.conf: 1 rewritten; old file: {folder}/sub/two.conf.before-migrate",
        f"{folder}/sub/three.conf: nothing to rewrite",
    ]
    for name in ("one.conf", "sub/two.conf"):
        assert "Gosub(audiofork,start" in (folder / name).read_text()
    assert said.notes[4:] == [NEEDS_INCLUDE]


def test_files_that_include_each_other_are_read_once_each(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "extensions.conf": "#include a.conf\n#include a.conf\n#include extensions.conf\n",
            "a.conf": f"{CALL}#include extensions.conf\n#include link.conf\n",
        },
    )
    (folder / "link.conf").symlink_to("a.conf")
    reader = read(folder / "extensions.conf", folder / "a.conf", folder / "link.conf")
    assert names(reader, folder) == ["extensions.conf", "a.conf"]
    assert told(reader) == []
    assert Said().run(folder / "extensions.conf", folder / "a.conf", write=True) == EXIT_DONE
    assert (folder / "a.conf").read_text().count("Gosub") == 1


def test_relative_names_are_looked_for_in_asterisks_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"part.conf": CALL, "sub/extensions.conf": "#include part.conf\n"})
    main = folder / "sub/extensions.conf"
    assert names(read(main, folder=folder), folder) == ["sub/extensions.conf", "part.conf"]
    (note,) = told(read(main))
    assert note[0] == 1
    assert note[1].startswith(f"there is no {folder}/sub/part.conf: Asterisk loads nothing of such")
    assert "--asterisk-config" in note[1]
    assert note[2]


@pytest.mark.parametrize(
    ("line", "why", "left"),
    [
        (
            "#exec /usr/bin/make-dialplan --all",
            "not followed: exec /usr/bin/make-dialplan",
            True,
        ),
        ("switch => Realtime/@extensions", "not followed: switch Realtime/@extensions", True),
        ("eswitch=Realtime/${X}@y", "not followed: eswitch Realtime/${{X}}@y", True),
        ("#include none.conf", "there is no {folder}/none.conf: Asterisk loads nothing", True),
        ("#include none/*.conf", "there is no {folder}/none/*.conf: Asterisk loads nothing", True),
        ("#tryinclude none.conf", "there is no {folder}/none.conf, which is allowed", False),
        ("#include folder", "not followed: {folder}/folder: a folder, not a file", True),
        ("#include pipe", "not followed: {folder}/pipe: not a regular file", True),
        ("#include link", "not followed: {folder}/link: No such file or directory", True),
        ("#include binary", "not followed: {folder}/binary: not a text", True),
    ],
)
def test_what_cannot_be_looked_into_is_told_at_its_line(
    tmp_path: Path, line: str, why: str, left: bool
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\n" + CALL.encode())
    main = tmp_path / "extensions.conf"
    main.write_text(f"[a]\n\n{line}\n{CALL}")
    said = Said()
    assert said.run(main, write=True) == (EXIT_FAILED if left else EXIT_DONE)
    assert said.notes[0].startswith(f"{main}:3: {why.format(folder=tmp_path)}")
    assert f"{main}: 1 rewritten" in said.notes[1]
    assert ("1 left to do by hand" in said.notes[1]) == left


def test_named_files_that_cannot_be_read_do_not_disturb_the_others(tmp_path: Path) -> None:
    good, binary = tmp_path / "extensions.conf", tmp_path / "core"
    good.write_text(CALL)
    binary.write_bytes(b"\0AudioFork(ws://h/)")
    said = Said()
    assert said.run(tmp_path, binary, tmp_path / "none", good, write=True) == EXIT_FAILED
    assert said.notes[:3] == [
        f"{tmp_path}: a folder, not a file",
        f"{binary}: not a text file: it contains NUL bytes",
        f"{tmp_path / 'none'}: No such file or directory",
    ]
    assert "Gosub(audiofork" in good.read_text()
    assert binary.read_bytes() == b"\0AudioFork(ws://h/)"


def test_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "extensions.conf"
    file.touch(0)
    said = Said()
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read all files
    try:
        assert said.run(file) == EXIT_FAILED
    finally:
        os.seteuid(user)
    assert said.notes == [f"{file}: Permission denied"]


@pytest.mark.slow
def test_long_chain_of_includes_ends(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.conf").write_text(f"#include {number + 1}.conf\n")
    reader = read(tmp_path / "0.conf")
    assert len(reader.files) == MAX_LEVELS
    assert "more than 50 files that include one another" in told(reader)[0][1]


def test_braces_that_stand_for_too_many_names_are_left(tmp_path: Path) -> None:
    assert expand_braces("{a,b}{c,d}") == ["ac", "ad", "bc", "bd"]
    assert expand_braces("a{b") == ["a{b"]
    assert expand_braces("{a}") == ["{a}"]
    name = "{a,b}" * 30
    assert expand_braces(name) == [name]


def test_lines_of_directives_are_right() -> None:
    text = "\n;-- \n\n--;\n#include a\n\n#exec b c\n#tryinclude <d>\n"
    assert list(directives(text, Kind.CONF)) == [
        (5, "include", "a"),
        (7, "exec", "b c"),
        (8, "tryinclude", "d"),
    ]


def test_lua_files_that_are_run_are_named(tmp_path: Path) -> None:
    file = tmp_path / "extensions.lua"
    file.write_text("-- dofile('a')\nrequire 'x'\ndofile('/etc/asterisk/b.lua')\n")
    assert told(read(file)) == [(3, "not followed: dofile ('/etc/asterisk/b.lua')", True)]


# --- Without files ---


def test_folder_that_one_may_not_look_into_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr("audiofork.commands.migrate_includes.read_file", refuse)
    said = Said()
    assert said.run(folder=tmp_path) == EXIT_FAILED
    assert said.notes == [f"{tmp_path}/extensions.conf: Permission denied"]


def test_run_without_files_takes_the_dialplans_of_the_folder(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "extensions.conf": "#include extensions_custom.conf\n",
            "extensions_custom.conf": CALL,
            "extensions.lua": 'app.AudioFork("ws://h/")\n',
            "other.conf": CALL,
        },
    )
    said = Said()
    assert said.run(folder=folder) == EXIT_DONE
    assert [note.rpartition("/")[2] for note in said.notes[:3]] == [
        "extensions.conf: nothing to rewrite",
        "extensions_custom.conf: 1 to rewrite with --write",
        "extensions.lua: 1 to rewrite with --write",
    ]


def test_run_without_files_says_that_there_are_none(tmp_path: Path) -> None:
    said = Said()
    assert said.run(folder=tmp_path) == EXIT_FAILED
    assert said.notes == [
        f"{tmp_path}: there is no extensions.conf, extensions.ael, extensions.lua: "
        "name files, or --asterisk-config"
    ]


def test_included_shipped_dialplan_needs_no_other_include(tmp_path: Path) -> None:
    main = tmp_path / "extensions.conf"
    main.write_text(f"#tryinclude extensions_audiofork.conf\n[a]\n{CALL}")
    said = Said()
    assert said.run(main) == EXIT_DONE
    assert NEEDS_INCLUDE not in said.notes


# --- The language ---

CONF = "; a\n[a](+)\nexten => s,1,NoOp()\n"
AEL = "/* [a] */\n\ncontext a {\n s => NoOp();\n}\n"
LUA = "-- [a]\nextensions = {\n  a = {}\n}\n"


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("extensions.conf", "", Kind.CONF),
        ("extensions.AEL", "", Kind.AEL),
        ("extensions.lua", "", Kind.LUA),
        ("part.inc", "", Kind.CONF),
        ("extensions.conf", AEL, Kind.AEL),
        ("part.inc", "abstract context a {\n}\n", Kind.AEL),
        ("part.inc", "macro std(a,b) {\n return;\n}\n", Kind.AEL),
        ("part.inc", "globals\n{\n A=1;\n}\n", Kind.AEL),
        ("extensions.ael", CONF, Kind.CONF),
        ("extensions.ael.old", AEL, Kind.AEL),
        ("extensions.conf", LUA, Kind.LUA),
        ("dialplan", 'app.AudioFork("ws://h/")\n', Kind.LUA),
        ("dialplan", 'function start(c, e)\n app["AudioFork"](c)\nend\n', Kind.LUA),
        ("extensions.lua", CONF, Kind.CONF),
        ("part.inc", "same => n,NoOp()\r\n", Kind.CONF),
        ("part.inc", "\ufeff[a]\r\n", Kind.CONF),
        ("extensions.lua", f"{CONF}{AEL}", Kind.LUA),
    ],
)
def test_language_is_told_by_the_content_then_by_the_name(name: str, text: str, kind: Kind) -> None:
    assert kind_of(Path("/etc/asterisk", name), text) is kind


def test_language_of_a_piece_is_that_of_the_file_that_includes_it(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "extensions.ael": 'context a {\n#include "piece.conf"\n}\n',
            "piece.conf": "_X. => {\n AudioFork(ws://h/);\n}\n",
        },
    )
    said = Said()
    assert said.run(folder / "extensions.ael", write=True) == EXIT_DONE
    assert "?Gosub(audiofork,start,1(ws://h/,s(echo)))" in (folder / "piece.conf").read_text()
