"""What other controllers tell, checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from audiofork.doors import told
from audiofork.errors import (
    AmiUnavailable,
    DaemonBusy,
    DaemonFault,
    HistoryUnavailable,
    NobodyLeads,
    NoMessage,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.series import Minute
from audiofork.forks.timelines import Moment
from tests.doors.http.stage import VIEW

FIELDS: dict[str, Any] = dataclasses.asdict(VIEW)


def test_fork_is_as_it_was_told_but_for_what_this_version_does_not_know() -> None:
    assert told.view_in(FIELDS | {"of_a_later_version": [1]}) == VIEW


@pytest.mark.parametrize(
    "wrong",
    [
        *({"id": "../x"}, {"id": "3F2A"}, {"channel": 1}, {"frames_in": True}, {"frames_in": 1.5}),
        *({"age_s": float("nan")}, {"age_s": 1e300}, {"speaks": 1}, {"away_s": "x"}, {"url": None}),
    ],
)
def test_fork_with_a_field_that_cannot_be_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(NoMessage):
        told.view_in(FIELDS | wrong)


@pytest.mark.parametrize("wrong", [None, [], "x", {}, {"id": VIEW.id}])
def test_what_is_no_fork_is_none(wrong: object) -> None:
    with pytest.raises(NoMessage):
        told.view_in(wrong)


def test_texts_are_cut_off_and_have_no_control_characters() -> None:
    view = told.view_in(FIELDS | {"channel": "a\x1b\n" + "x" * 10_000})
    assert view.channel == "a??" + "x" * (told.MAX_CHARACTERS - 3)


def test_progress_is_as_it_was_told() -> None:
    fields = {"result": "streaming", "fork": FIELDS, "ms": 312, "reason": "", "detail": ""}
    assert told.news_in(fields) == StartNews(StartResult.STREAMING, VIEW, 312)
    wrongs: list[dict[str, Any]] = [{"result": "x"}, {"result": []}, {"ms": "x"}, {"fork": 1}]
    for wrong in wrongs:
        with pytest.raises(NoMessage):
            told.news_in(fields | wrong)


def test_moments_and_minutes_are_as_they_were_told() -> None:
    assert told.moment_in({"at": 1.5, "kind": "muted", "text": "in"}) == Moment(1.5, "muted", "in")
    assert told.minute_in({"at": 60, "ended": 2}) == Minute(60, ended=2)
    wrongs: list[object] = [None, {}, {"at": "x"}, {"at": float("inf")}]
    for strange in wrongs:
        with pytest.raises(NoMessage):
            told.moment_in(strange)
        with pytest.raises(NoMessage):
            told.minute_in(strange)


def test_answer_that_was_granted_is_itself() -> None:
    answer = {"ok": True, "forks": []}
    assert told.granted(answer) is answer


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("refused", "No such fork", RequestRefused("No such fork")),
        ("refused", "No such channel", NoSuchChannel()),
        ("asterisk", "Asterisk cannot be asked: it is away", AmiUnavailable("it is away")),
        ("busy", "another", DaemonBusy("another")),
        ("cluster", "nobody", NobodyLeads("nobody")),
        ("history", "full", HistoryUnavailable("full")),
        ("fault", "a bug", DaemonFault("a bug")),
        ("of a later version", "why\n", RequestRefused("why?")),
        (None, None, RequestRefused("None")),
    ],
)
def test_answer_that_was_not_granted_raises_what_our_own_daemon_would(
    code: object, text: object, expected: Exception
) -> None:
    with pytest.raises(type(expected)) as caught:
        told.granted({"ok": False, "code": code, "error": text})
    assert type(caught.value) is type(expected)
    assert str(caught.value) == str(expected)
