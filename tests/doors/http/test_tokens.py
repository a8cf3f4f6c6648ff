"""The file of the tokens: what it may hold, and who may read it."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from audiofork.doors.http.tokens import Client, Role, Tokens, digest_of, read_tokens
from audiofork.errors import ConfigError
from tests.doors.http.stage import CONTROLLER, TOKENS, VIEWER, write_tokens


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read_tokens(str(write_tokens(folder, text)))
    return str(refused.value)


def owner(tokens: Tokens, token: str) -> Client | None:
    digest = tokens.find(token)
    return tokens.owner_of(digest) if digest is not None else None


def test_each_line_is_a_token_with_its_roles(tmp_path: Path) -> None:
    tokens = read_tokens(
        str(write_tokens(tmp_path, TOKENS + "\n  # note\nboth listen,control b" + "x" * 20))
    )
    assert owner(tokens, VIEWER) == Client("anna", frozenset({Role.VIEW}))
    assert owner(tokens, CONTROLLER) == Client("carl", frozenset({Role.VIEW, Role.CONTROL}))
    assert owner(tokens, "b" + "x" * 20) == Client("both", frozenset(Role))
    assert owner(tokens, VIEWER[:-1]) is None
    assert owner(tokens, "") is None
    assert len(tokens) == 4


def test_control_does_not_include_listen_nor_the_other_way_round(tmp_path: Path) -> None:
    tokens = read_tokens(str(write_tokens(tmp_path)))
    controller, listener = owner(tokens, CONTROLLER), owner(tokens, "listen-0123456789abcdef")
    assert controller is not None
    assert Role.LISTEN not in controller.roles
    assert listener is not None
    assert Role.CONTROL not in listener.roles


def test_token_is_compared_with_all_of_them_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = read_tokens(str(write_tokens(tmp_path)))
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return real(first, second)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in (VIEWER, CONTROLLER, "wrong", "x" * 1000):  # the first, the last, none
        compared.clear()
        tokens.find(token)
        assert len(compared) == 3
        assert {len(one) for pair in compared for one in pair} == {32}
        assert {second for _, second in compared} == {digest_of(token)}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("anna view", "tokens:1: expected NAME ROLES TOKEN, and nothing else"),
        ("anna view a b", "tokens:1: expected NAME ROLES TOKEN, and nothing else"),
        ("an/na view " + "x" * 20, "tokens:1: NAME: expected a word of letters, digits"),
        ("anna veiw " + "x" * 20, "ROLES: expected view, listen, control, with commas between "
         "them; did you mean view?"),
        ("anna , " + "x" * 20, "ROLES: expected view, listen, control, with commas between them"),
        ("anna view " + "x" * 19, "TOKEN: expected 20 to 500 characters of ASCII, such as"),
        ("anna view " + "\u00e4" * 20, "TOKEN: expected 20 to 500 characters of ASCII, such as"),
        ("a view " + "x" * 20 + "\na view " + "y" * 20, "tokens:2: expected another name than in"),
        ("a view " + "x" * 20 + "\nb view " + "x" * 20, "tokens:2: expected another token than in"),
        ("".join(f"a{n} view {n:020}\n" for n in range(201)), "tokens:201: expected 200 tokens at"),
    ],
)  # fmt: skip
def test_line_that_is_no_token_is_refused_with_its_place_and_without_the_token(
    tmp_path: Path, text: str, fault: str
) -> None:
    refused = refusal(tmp_path, text)
    assert refused.startswith("[http] tokens_file: ")
    assert fault in refused
    assert "xxxx" not in refused


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0c", "\x0b", "\x85", "\x1c", "\r"])
def test_comment_ends_only_with_its_line(tmp_path: Path, mark: str) -> None:
    path = write_tokens(tmp_path)
    path.write_bytes(f"# old{mark}evil control {'e' * 20}\r\nanna view {VIEWER}\r\n".encode())
    tokens = read_tokens(str(path))
    assert owner(tokens, "e" * 20) is None
    assert owner(tokens, VIEWER) == Client("anna", frozenset({Role.VIEW}))


@pytest.mark.parametrize("blank", ["\u2003", "\x0c", "\x1f", "\xa0"])
def test_only_blanks_and_tabs_part_a_line(tmp_path: Path, blank: str) -> None:
    assert "tokens:1: expected NAME" in refusal(tmp_path, f"anna{blank}view{blank}{'x' * 20}")
    tokens = read_tokens(str(write_tokens(tmp_path, f" anna\tview \t{'x' * 20}\t")))
    assert owner(tokens, "x" * 20) == Client("anna", frozenset({Role.VIEW}))


def test_file_that_every_user_may_read_is_refused(tmp_path: Path) -> None:
    path = write_tokens(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="every user of this machine may read it: chmod o= "):
        read_tokens(str(path))


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_file: .*none: No such file"):
        read_tokens(str(tmp_path / "none"))
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="a folder, not a file"):
        read_tokens(str(tmp_path))
    path = write_tokens(tmp_path)
    path.write_bytes(b"anna view \xff\xfe s3cret")
    with pytest.raises(ConfigError, match="expected UTF-8") as refused:
        read_tokens(str(path))
    assert "s3cret" not in str(refused.value)


def test_path_may_be_that_of_systemds_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert len(read_tokens("${CREDENTIALS_DIRECTORY}/tokens")) == 3
    assert len(read_tokens("")) == 0
