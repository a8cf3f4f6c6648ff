"""Every error that the HTTP door answers, as a problem (RFC 9457): application/problem+json."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from audiofork.doors.http.schema import BadValue, as_json
from audiofork.errors import (
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    AudioForkError,
    DaemonBusy,
    DaemonFault,
    NobodyLeads,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.text import A_BUG, printable

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL_CHARACTERS = 500


class Kind(enum.StrEnum):
    """The problems that a program may want to tell apart; /problems/NAME explains each.

    The others have the type about:blank: their status says everything.
    """

    REFUSED = "refused"
    BAD_VALUE = "bad-value"
    NO_SUCH_FORK = "no-such-fork"
    NO_SUCH_CHANNEL = "no-such-channel"
    ASTERISK_AWAY = "asterisk-away"
    NOT_AVAILABLE = "not-available"
    BUSY = "busy"
    CONTROLLER_AWAY = "controller-away"
    OTHER_CONTROLLER = "other-controller"
    TOO_MANY_BAD_TOKENS = "too-many-bad-tokens"
    WRONG_HOST = "wrong-host"
    WRONG_ORIGIN = "wrong-origin"
    WRONG_ROLE = "wrong-role"


EXPLAINED = {
    Kind.REFUSED: "The request is understood and not granted. The detail is the sentence that the "
    "command line and the manager interface would answer.",
    Kind.BAD_VALUE: "The body or the query is not as /api/v1/openapi.json says. The detail names "
    "the field.",
    Kind.NO_SUCH_FORK: "There is no fork with this id now. Ended forks are in the history.",
    Kind.NO_SUCH_CHANNEL: "Asterisk has no such channel, or no longer has it.",
    Kind.ASTERISK_AWAY: "The daemon cannot ask Asterisk now. Try again later.",
    Kind.NOT_AVAILABLE: "This daemon is not configured for that, or what it needs is away. The "
    "detail says what is missing.",
    Kind.BUSY: "The daemon is doing this for somebody else, or has no room for more.",
    Kind.CONTROLLER_AWAY: "No controller that leads for the Asterisk of the call can be asked "
    "now. Another one leads within seconds, as a rule: try again.",
    Kind.OTHER_CONTROLLER: "Only the controller that leads for the Asterisk of the call can do "
    "this. The detail names it: ask there.",
    Kind.TOO_MANY_BAD_TOKENS: "Too many requests from this address had a token that is not known. "
    "One with a right token is still answered.",
    Kind.WRONG_HOST: "The daemon is not called by this name. [http] hosts has the names that it "
    "may be called by.",
    Kind.WRONG_ORIGIN: "A page of another site may not ask this.",
    Kind.WRONG_ROLE: "The token does not have the role that this needs.",
}


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """An error.

    Attributes:
        type: about:blank, or /problems/NAME for one that programs may want to tell apart.
        title: What is wrong, the same for each problem of a type.
        status: The HTTP status.
        detail: What is wrong this time, for people.
        instance: The path that was asked for.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str


class Problem(Exception):
    """Raised by a handler to answer with an error.

    Args:
        status: The HTTP status.
        detail: What is wrong this time, for people.
        kind: What programs may tell it apart by; None: by the status alone.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        kind: Kind | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.headers = dict(headers or {})

    def response(self, path: str) -> web.Response:
        """Return the answer.

        Args:
            path: The path that was asked for, without the query.
        """
        title = HTTPStatus(self.status).phrase
        if self.kind is not None:
            title = self.kind.value.replace("-", " ").capitalize()
        details = ProblemDetails(
            type=f"/problems/{self.kind}" if self.kind else "about:blank",
            title=title,
            status=self.status,
            detail=printable(self.detail, "?")[:MAX_DETAIL_CHARACTERS],
            instance=printable(path, "?")[:MAX_DETAIL_CHARACTERS],
        )
        return web.Response(
            status=self.status,
            body=as_json(details).encode(),
            content_type=MEDIA_TYPE,
            headers=self.headers,
        )


NO_SUCH_FORK = "No such fork"


def problem_of(exc: Problem | BadValue | AudioForkError | TimeoutError) -> Problem:
    """Return the problem that an exception is."""
    if isinstance(exc, Problem):
        return exc
    if isinstance(exc, BadValue):
        return Problem(422, str(exc), Kind.BAD_VALUE)
    if isinstance(exc, NoSuchChannel):
        return Problem(422, str(exc), Kind.NO_SUCH_CHANNEL)
    if isinstance(exc, RequestRefused):
        if str(exc).startswith(NO_SUCH_FORK):
            return Problem(404, str(exc), Kind.NO_SUCH_FORK)
        return Problem(422, str(exc), Kind.REFUSED)
    if isinstance(exc, AmiUnavailable | AmiTimeout):
        text = f"Asterisk cannot be asked: {exc}"
        return Problem(503, text, Kind.ASTERISK_AWAY, {"Retry-After": "5"})
    if isinstance(exc, AmiError):
        return Problem(422, f"Asterisk has refused: {exc}", Kind.REFUSED)
    if isinstance(exc, DaemonFault):
        return a_bug()
    if isinstance(exc, DaemonBusy):
        return Problem(503, str(exc), Kind.BUSY, {"Retry-After": "5"})
    if isinstance(exc, NobodyLeads):
        return Problem(503, str(exc), Kind.CONTROLLER_AWAY, {"Retry-After": "2"})
    if isinstance(exc, TimeoutError):
        return Problem(503, "the relay does not answer in time", Kind.BUSY, {"Retry-After": "5"})
    # What it names is away.
    return Problem(503, str(exc), Kind.NOT_AVAILABLE, {"Retry-After": "30"})


def a_bug() -> Problem:
    """Return the problem of a bug; the log has its traceback."""
    return Problem(500, A_BUG)
