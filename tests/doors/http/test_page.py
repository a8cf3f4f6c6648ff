"""The page's files: found by name alone, with their types, and again only if they have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiofork.doors.http import door as door_module
from audiofork.doors.http.page import FOLDER, Page
from audiofork.doors.http.sending import HEADERS
from tests.doors.http.stage import Stage, staged


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html>\u00e4")
    (folder / "app.js").write_text("1")
    (folder / "style.css").write_text("a{}")
    (folder / "favicon.ico").write_bytes(b"\0")
    (folder / "notes.txt").write_text("secret")
    (folder / "deeper").mkdir()
    (tmp_path / "outside.js").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "none.html")
    monkeypatch.setattr(door_module, "Page", lambda: Page(folder))
    return folder


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/index.html", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/favicon.ico", "image/x-icon"),
    ],
)
async def test_page_needs_no_token_and_has_the_headers(
    tmp_path: Path, folder: Path, path: str, content_type: str
) -> None:
    async with staged(tmp_path) as stage:
        answer = await stage.get(path, "")
        assert (answer.status, answer.headers["content-type"]) == (200, content_type)
        for name, value in HEADERS.items():
            expected = "no-cache" if name == "Cache-Control" else value
            assert answer.headers[name.lower()] == expected
        again = await stage.get(path, "", If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["notes.txt", "deeper", "outside.js", "link.html", "none.js"])
async def test_what_is_no_file_of_the_page_is_not_found(
    tmp_path: Path, folder: Path, name: str
) -> None:
    async with staged(tmp_path) as stage:
        assert (await stage.get(f"/page/{name}", "")).status == 404


async def test_door_without_a_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "Page", lambda: Page(tmp_path / "none"))
    async with staged(tmp_path) as stage:
        assert (await stage.get("/", "")).status == 404


async def test_page_of_the_package_is_served(stage: Stage) -> None:
    for path in FOLDER.glob("*.*"):
        assert (await stage.get(f"/page/{path.name}", "")).status == 200
