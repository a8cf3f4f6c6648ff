"""The command line's side of the control socket."""

from __future__ import annotations

import grp
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from audiofork import config_file
from audiofork.doors.control_protocol import Code
from audiofork.doors.daemon_client import (
    ANSWER_TIMEOUT_S,
    Forgetting,
    Listing,
    fork_id_of,
    is_channel_name,
    named,
)
from audiofork.errors import (
    AmiUnavailable,
    ConfigError,
    DaemonBusy,
    DaemonFault,
    DaemonUnreachable,
    HistoryUnavailable,
    RequestRefused,
)
from audiofork.reading_json import parsed_json
from audiofork.text import reason_of
from audiofork.unix_sockets import MAX_PATH_BYTES, peer_of

# Longer than the daemon waits for the next line.
CHECK_TIMEOUT_S = 70.0
# Longer than the daemon waits for its disk.
FORGET_TIMEOUT_S = 310.0


def socket_of(path: Path) -> Path:
    """Return the control socket that a configuration file names.

    This reads only [control] and no secret: a user of the socket need not be able to read secrets,
    and an error elsewhere in the file must not prevent a question to a running daemon.

    Raises:
        ConfigError: The file or that section cannot be used, or it switches the socket off.
    """
    socket_path = config_file.load_control(path).socket
    if not socket_path:
        raise ConfigError(f"{path}: [control] socket is empty, so the daemon cannot be asked")
    return Path(socket_path)


class Client:
    """One connection to the daemon, a DaemonClient.

    Args:
        path: The control socket.
        asterisk: In a cluster, the Asterisk that is meant; empty: that of the controller who
            listens there; *: all of them, of which only `listing` can ask.

    Attributes:
        missing: In a cluster, whose histories were not among the answers, with the reason.

    Raises:
        DaemonUnreachable: Nobody listens at the path, or we may not use it.
    """

    def __init__(self, path: Path, asterisk: str = "") -> None:
        self._path = path
        self.missing: dict[str, str] = {}
        self._asterisk = asterisk
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as exc:
            self._socket.close()
            raise DaemonUnreachable(_what_to_do(path, exc)) from exc
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._answers.close()
        self._socket.close()

    @property
    def daemon_pid(self) -> int:
        """The process id of the daemon; 0 if it is in another PID namespace."""
        return peer_of(self._socket).pid

    def start(self, channel: str, url: str, **wishes: str) -> str:
        """Start a fork on a channel, by name or uniqueid; return its id.

        Args:
            channel: The channel.
            url: Where its audio goes.
            wishes: Further fields of the request: Options, PostProcess, Params; another Command.
        """
        with named(channel):
            return str(self._ask(_start(channel, url, wishes))[0])

    def start_and_follow(
        self, channel: str, url: str, **wishes: str
    ) -> tuple[str, Iterator[dict[str, Any]]]:
        """Start a fork, as `start`; return its id, and an iterator over the progress of its start.

        The iterator yields the fields of StartNews at least once a second; the last ones say that
        the fork streams or has ended. It yields nothing if the daemon does not report progress: an
        older daemon, or one with too many waiting clients.
        """
        fields = {**_start(channel, url, wishes), "Wait": "yes"}
        with named(channel):
            answer = self._answer_to(fields)
        return str(answer["forks"][0]), self._news() if answer.get("waits") else iter(())

    def _news(self) -> Iterator[dict[str, Any]]:
        news = {"result": "waiting"}
        while news["result"] == "waiting":
            news = self._answer_to(None)
            yield news

    def stop(self, target: str) -> list[str]:
        """Stop the fork with this id, or every fork of a channel; return their ids."""
        with named(target):
            return self._ask({"Command": "StopAudioFork", **_target(target)})

    def mute(self, target: str, direction: str, on: bool) -> list[str]:
        """Mute or unmute a fork, or every fork of a channel; return their ids.

        Args:
            target: As for `stop`.
            direction: read, write or both.
            on: Whether to mute.
        """
        fields = {"Direction": direction, "State": "1" if on else "0"}
        with named(target):
            return self._ask({"Command": "AudioForkMute", **_target(target), **fields})

    def forks(self) -> list[dict[str, Any]]:
        """Return all forks, each with the fields of ForkView."""
        return self.listing()[0]

    def listing(self) -> Listing:
        """Return all forks."""
        answer = self._answer_to({"Command": "ListAudioForks"})
        left, missing = int(answer.get("legs_left", 0)), answer.get("missing", {})
        return Listing(answer["forks"], left, missing)

    def cluster(self) -> dict[str, Any]:
        """Return who is in the cluster; see cluster_answers.py."""
        return self._answer_to({"Command": "ListAudioForkCluster"})

    def drain(self, relay_host: str, *, undo: bool = False) -> None:
        """Have the forks of a relay host move to others; `undo`: let it take some again.

        Raises:
            RequestRefused: It is not there.
        """
        flag = {"Undo": "yes"} if undo else {}
        self._answer_to({"Command": "DrainAudioForkRelay", "Relay": relay_host, **flag})

    def check(
        self,
        config: Path,
        say: Callable[[str], None],
        *,
        taps: bool = False,
        as_json: bool = False,
    ) -> int:
        """Let the daemon check itself and its Asterisk; return the exit code of the check.

        Args:
            config: The expected configuration: a daemon with another one refuses.
            say: Called with each line of the check.
            taps: Whether to list only the ways to get audio.
            as_json: Whether each line is a JSON object.
        """
        self._socket.settimeout(CHECK_TIMEOUT_S)
        fields = {"Command": "CheckAudioFork", "Config": str(config.resolve())}
        if self._asterisk:  # `Asterisk` says who is to check, and goes no further
            fields["Only"] = self._asterisk
        wishes = {"Taps": taps, "Json": as_json}
        fields |= {name: "yes" for name, wanted in wishes.items() if wanted}
        answer = self._answer_to(fields)
        while "exit_code" not in answer:
            say(str(answer["line"]))
            answer = self._answer_to(None)
        return int(answer["exit_code"])

    def history(self, fields: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """Return entries of the history, each with the fields of Entry, and the next cursor.

        Args:
            fields: What to search for; see history_answers.py.

        Raises:
            HistoryUnavailable: The daemon cannot ask its history.
        """
        answer = self._answer_to({"Command": "ListAudioForkHistory", **fields})
        self.missing |= answer.get("missing", {})
        return answer["entries"], str(answer["next_cursor"])

    def causes(self, since: float) -> list[dict[str, Any]]:
        """Return the causes of failures since a time, with the fields of Cause; see `history`."""
        fields = {"Command": "ListAudioForkCauses", "Since": repr(since)}
        answer = self._answer_to(fields)
        self.missing |= answer.get("missing", {})
        causes: list[dict[str, Any]] = answer["causes"]
        return causes

    def forget(self, number: str) -> Forgetting:
        """Remove a caller from the history, in a cluster from those of all; see `history`."""
        self._socket.settimeout(FORGET_TIMEOUT_S)
        answer = self._answer_to({"Command": "ForgetAudioForkCaller", "Number": number})
        self.missing |= answer.get("missing", {})
        each = {
            name: (int(one["removed"]), int(one["blanked"]))
            for name, one in answer.get("controllers", {}).items()
        }
        # An older daemon blanks none.
        return Forgetting(int(answer["removed"]), int(answer.get("blanked", 0)), each)

    def run_id(self) -> str:
        """Return the id of the daemon's run; empty if the daemon is too old to report it."""
        return str(self._answer_to({"Command": "ListAudioForks"}).get("run", ""))

    def _ask(self, fields: Mapping[str, str]) -> list[Any]:
        forks: list[Any] = self._answer_to(fields)["forks"]
        return forks

    def _answer_to(self, fields: Mapping[str, str] | None) -> dict[str, Any]:
        """Send a request and return its answer; None: wait for a further answer to the last one."""
        try:
            if fields is not None:
                if self._asterisk:
                    fields = {**fields, "Asterisk": self._asterisk}
                self._socket.sendall(json.dumps(fields).encode() + b"\n")
            line = self._answers.readline()
        except TimeoutError as exc:
            limit_s = self._socket.gettimeout()
            text = f"no answer of the daemon at {self._path} within {limit_s:g} s"
            raise DaemonUnreachable(text) from exc
        except OSError as exc:
            text = f"the daemon at {self._path} is gone: {reason_of(exc)}"
            raise DaemonUnreachable(text) from exc
        if not line:
            raise DaemonUnreachable(f"the daemon at {self._path} has closed the connection")
        try:
            return _granted(parsed_json(line))
        except (ValueError, LookupError, TypeError):
            text = f"what answers at {self._path} is not the daemon of audiofork"
            raise DaemonUnreachable(text) from None


def _granted(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["ok"]:
        return answer
    error = str(answer["error"])
    if answer["code"] == Code.ASTERISK:
        raise AmiUnavailable(error)
    if answer["code"] == Code.CLUSTER:
        raise DaemonUnreachable(error)
    if answer["code"] == Code.BUSY:
        raise DaemonBusy(error)
    if answer["code"] == Code.HISTORY:
        raise HistoryUnavailable(error)
    raise DaemonFault(error) if answer["code"] == Code.FAULT else RequestRefused(error)


def _what_to_do(path: Path, exc: OSError) -> str:
    if isinstance(exc, PermissionError):
        advice = f"run this as root, or as a member of {_group_of(path)}"
    elif len(os.fsencode(path)) > MAX_PATH_BYTES:
        return (
            f"no daemon at {path}: the path of a socket has no more than {MAX_PATH_BYTES} bytes; "
            "choose a shorter one in [control] socket"
        )
    elif isinstance(exc, FileNotFoundError | ConnectionRefusedError):
        advice = "is it running (systemctl status audiofork), with this path in [control] socket?"
    else:
        advice = "try again"
    return f"no daemon at {path}: {reason_of(exc)}; {advice}"


def _group_of(path: Path) -> str:
    """Return the group that may use a socket, and how to become a member of it."""
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "the socket's group"
    return f"the group {group} (usermod -aG {group} USER, then log in again)"


def _start(channel: str, url: str, wishes: Mapping[str, str]) -> dict[str, str]:
    return {"Command": "StartAudioFork", **_channel(channel), "WsServer": url, **wishes}


def _channel(channel: str) -> dict[str, str]:
    """Return the field that names a channel: every name has a slash, a uniqueid has none."""
    return {"Channel" if is_channel_name(channel) else "Uniqueid": channel}


def _target(target: str) -> dict[str, str]:
    """Return the field that names a fork or a channel: a UUID is the id of a fork."""
    fork_id = fork_id_of(target)
    return {"AudioForkID": fork_id} if fork_id else _channel(target)
