"""What the command `check` finds in Asterisk's dialplan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.taps.ways import CONTEXT, EXTENSIONS
from audiofork.commands import caller_data, remedies
from audiofork.commands.findings import Findings
from audiofork.errors import AmiActionFailed, AmiError

FILE = "extensions_audiofork.conf"
VERSION = 6
"""Of the shipped file, as its extension `version` says; another text has another version."""
FINGERPRINT = "5ab81330167c5522"
"""Of the shipped file, as `fingerprint` makes it of what Asterisk has read."""
# The contexts of the shipped file, with what somebody or something is sent to in each.
REQUESTS = "audiofork"
CONTEXTS = {
    REQUESTS: ("start", "connect", "led", "talk", "stop", "mute", "clean"),
    CONTEXT: (*EXTENSIONS.values(), "music", "player"),
}
MAX_WARNINGS = 10  # of one kind

_DENIED = "Permission denied"
_GUARD = f"DIALPLAN_EXISTS({REQUESTS},start,1)"

Line = Mapping[str, str]


class DialplanCheck:
    """Looks for the shipped contexts, and for requests that a caller could add to.

    Args:
        findings: Gets what comes of it.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    async def run(self, ami: Ami) -> bool:
        """Check it all; return whether legs by ARI may come, as far as can be seen."""
        legs_may_come = await self._check_shipped(ami)
        await self._check_guard(ami)
        await self._check_caller_data(ami)
        return legs_may_come

    async def _check_shipped(self, ami: Ami) -> bool:
        lines: list[Line] = []
        for context in CONTEXTS:
            try:
                lines += await ami.list("ShowDialPlan", [("Context", context)])
            except AmiActionFailed as exc:
                if exc.message == _DENIED:
                    self._findings.skip("dialplan: to look into it needs write = reporting")
                    return True
                # There is no such context.
        lacks = {context: _what_is_missing(lines, context) for context in CONTEXTS}
        missing = [f"the context {context} {what}" for context, what in lacks.items() if what]
        if missing:
            why = "; a bare Gosub into audiofork ends the call" if lacks[REQUESTS] else ""
            text = f"dialplan: {', '.join(missing)}{why}"
            self._findings.fail(text, remedies.INCLUDE_EXTENSIONS)
        else:
            self._compare(lines)
        return not lacks[CONTEXT]

    def _compare(self, lines: list[Line]) -> None:
        """Compare what is whole with what this daemon ships."""
        version = _version(lines)
        if version < VERSION:
            text = f"dialplan: {FILE} is older (version {version}) than this daemon's ({VERSION})"
            self._findings.fail(text, remedies.INCLUDE_EXTENSIONS)
        elif version > VERSION:
            text = f"dialplan: {FILE} is newer (version {version}) than this daemon's ({VERSION})"
            self._findings.fail(text, remedies.NEWER_EXTENSIONS)
        elif fingerprint(lines) != FINGERPRINT:
            self._findings.warn(f"dialplan: {FILE} has been edited", remedies.EDITED_EXTENSIONS)
        else:
            contexts = " and ".join(CONTEXTS)
            self._findings.ok(f"dialplan: {contexts} are there, as shipped (version {VERSION})")

    async def _check_guard(self, ami: Ami) -> None:
        """See whether the condition works by which a Gosub asks for the context."""
        try:
            answer = await ami.action("Getvar", [("Variable", _GUARD)])
        except AmiActionFailed:
            return  # this user may not ask
        if not answer.get("value"):
            self._findings.fail(
                "dialplan: Asterisk does not know DIALPLAN_EXISTS(), so no guarded Gosub forks",
                remedies.load(remedies.GUARD_MODULE),
            )

    async def _check_caller_data(self, ami: Ami) -> None:
        """Warn of requests of the dialplan that a caller could add to."""
        try:
            found = list(caller_data.warnings(await ami.list("ShowDialPlan")))
        except AmiError as exc:  # it may be denied, empty, or too long for the time limit
            self._findings.skip(f"caller data: the dialplan cannot be looked into: {exc}")
            return
        if not found:
            self._findings.ok("caller data: none stands bare in a request of the dialplan")
            return
        *others, last = found[:MAX_WARNINGS]
        for text in others:
            self._findings.warn(f"caller data: {text}", "")
        more = len(found) - MAX_WARNINGS
        suffix = f" (and {more} more)" if more > 0 else ""
        self._findings.warn(f"caller data: {last}{suffix}", remedies.CALLER_DATA)


def _what_is_missing(lines: Iterable[Line], context: str) -> str:
    """Return what a context lacks, as the end of a sentence; empty: nothing."""
    present = {line.get("extension") for line in lines if line.get("context") == context}
    if not present:
        return "is missing"
    missing = [name for name in CONTEXTS[context] if name not in present]
    return f"has no extension {' and '.join(missing)}" if missing else ""


def _version(lines: Iterable[Line]) -> int:
    """Return what the extension `version` says; 0: there is none, or it says nothing."""
    for line in lines:
        if (line.get("context"), line.get("extension")) == (REQUESTS, "version"):
            data = line.get("appdata", "")
            return int(data) if data.isascii() and data.isdigit() else 0
    return 0


def fingerprint(lines: Iterable[Line]) -> str:
    """Return what tells one text of the shipped contexts from each other one.

    Args:
        lines: The events that ShowDialPlan answers with for them, names in lower case.
    """
    names = ("context", "extension", "priority", "extensionlabel", "application", "appdata")
    rows = sorted("\t".join(line.get(name, "") for name in names) for line in lines)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
