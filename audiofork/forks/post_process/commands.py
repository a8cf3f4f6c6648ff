"""The commands that forks may have run when they have ended: the administrator's, or any text."""

from __future__ import annotations

from collections.abc import Mapping

from audiofork.config import PostProcessConfig
from audiofork.errors import RequestRefused
from audiofork.forks.post_process.template import PostProcess, prepare, prepare_argv

# What no shell command begins with.
_MARK = "@"


def is_named(wanted: str) -> bool:
    """Return whether a request names a command of the configuration: @NAME."""
    return wanted.strip().startswith(_MARK)


class Commands:
    """Owned by the daemon, which tells it the sections [post_process:NAME] as they change."""

    def __init__(self, sections: Mapping[str, PostProcessConfig]) -> None:
        self.configure(sections)

    def configure(self, sections: Mapping[str, PostProcessConfig]) -> None:
        """Take other commands, for forks that begin from now on."""
        self._named = {name: prepare_argv(one.command) for name, one in sections.items()}

    def prepare(self, wanted: str) -> PostProcess:
        """Return what a request asks for, ready to run: @NAME, or else a shell command.

        Raises:
            RequestRefused: There is no such command, or it cannot be made safe.
        """
        if not is_named(wanted):
            return prepare(wanted)
        name = wanted.strip().removeprefix(_MARK)
        if name not in self._named:
            there_are = ", ".join(_MARK + one for one in self._named) or "none"
            raise RequestRefused(
                f"PostProcess: no section [post_process:{name}]; there are: {there_are}"
            )
        return self._named[name]
