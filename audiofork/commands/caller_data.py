"""Finds unprotected values of callers in the requests of a dialplan, where a comma adds a field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

_REQUEST = re.compile(
    r"\baudiofork,(start|stop|mute),|\bUserEvent\(\s*AudioFork\s*,"
    # A part of these could be another option or command; a URL stays one URL whatever it contains.
    r"|\bSet\(_*AUDIOFORK_(OPTIONS|POST_PROCESS)=",
    re.I,
)
_CALLERS = {
    *("EXTEN", "CALLERID", "CONNECTEDLINE", "REDIRECTING", "DNID", "RDNIS", "INVALID_EXTEN"),
    *("CALLERIDNUM", "CALLERIDNAME", "CALLINGANI", "DIALEDPEERNUMBER", "DIALEDPEERNAME"),
    *("SIP_HEADER", "PJSIP_HEADER", "PJSIP_HEADERS", "SIPDOMAIN", "SIPCALLID", "SIPURI", "SIPUSER"),
}
# The results of these contain no comma, unless the dialplan requests one.
_SAFE = {
    *("URIENCODE", "BASE64_ENCODE", "FILTER", "LEN", "MD5", "SHA1", "MATH", "FIELDQTY"),
    *("KEYPADHASH", "ISNULL", "EXISTS", "REGEX"),
}
_NAME = re.compile(r"\w+")


def bare(application: str, data: str) -> list[str]:
    """Return the names of the callers' values that a request of a dialplan uses unprotected.

    Args:
        application: The application of a priority, such as Gosub, or ExecIf with another in it.
        data: Its arguments, before Asterisk substitutes variables.
    """
    return bare_in(data) if _REQUEST.search(f"{application}({data})") else []


def bare_in(text: str) -> list[str]:
    """Return the names of the callers' values whose commas would take effect in a text."""
    found: dict[str, None] = {}
    functions: list[str] = []  # the names after each `${` and `$[` that is open
    for match in re.finditer(r"\$\{|\$\[|[{}\[\]]", text):
        if match[0] in "}]":
            del functions[-1:]
            continue
        name = _NAME.match(text, match.end())
        functions.append(name[0].upper() if name and match[0] == "${" else "")
        if functions[-1] in _CALLERS and not _SAFE & set(functions):
            found[functions[-1]] = None
    return list(found)


def warnings(lines: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield a sentence for each priority of a dialplan that uses a caller's value unprotected.

    Args:
        lines: The events of the answer to ShowDialPlan, names in lower case.
    """
    for line in lines:
        for name in bare(line.get("application", ""), line.get("appdata", "")):
            place = "context {context}, extension {extension}, priority {priority}".format_map(line)
            yield f"{place}: {name} stands bare in {line.get('application')}"
