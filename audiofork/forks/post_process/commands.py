"""The post-process commands of requests: named ones of the configuration, or shell text."""

from __future__ import annotations

from collections.abc import Mapping

from audiofork.config import PostProcessConfig
from audiofork.errors import RequestRefused
from audiofork.forks.post_process.template import PostProcess, prepare, prepare_argv

# Marks a name, because no shell command begins with it.
_MARK = "@"


def is_named(wanted: str) -> bool:
    """Return whether a request names a command of the configuration: @NAME."""
    return wanted.strip().startswith(_MARK)


class Commands:
    """The named commands; owned by the daemon, which calls `configure` when sections change."""

    def __init__(self, sections: Mapping[str, PostProcessConfig]) -> None:
        self.configure(sections)

    def configure(self, sections: Mapping[str, PostProcessConfig]) -> None:
        """Use these sections [post_process:NAME] for forks that begin from now on."""
        self._named = {name: prepare_argv(one.command) for name, one in sections.items()}

    def prepare(self, wanted: str) -> PostProcess:
        """Return the command that a request asks for, ready to run.

        Args:
            wanted: @NAME, or a shell command.

        Raises:
            RequestRefused: There is no command of that name, or the text cannot be made safe.
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
