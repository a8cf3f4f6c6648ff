"""The options of what those who start forks, and the servers, may do."""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.config_values import (
    folder_or_nothing,
    server_commands,
    speakers,
    url_patterns,
    whole,
    yes_or_no,
)
from audiofork.config_values import option as _option


@dataclass(frozen=True)
class SecurityConfig:
    """What those who start forks may ask for, and what their servers may do in calls."""

    allow_urls: tuple[str, ...] = _option(
        "*://127.0.0.1 *://[::1] *://localhost",
        url_patterns,
        "Where audio may be sent: scheme://host[:port][/path]; * stands for any text; a port or a "
        "path that is left out may be any. The default is this machine only. Name your servers, "
        "e.g. wss://*.example.org or ws://192.0.2.7:8080/: whoever may start a fork can send any "
        "call there.",
    )
    allow_private: bool = _option(
        "yes",
        yes_or_no,
        "Whether audio may be sent to loopback, private and other addresses that are not public; "
        "no: each name is resolved once, and the daemon connects only to public addresses.",
    )
    allow_speak: tuple[str, ...] = _option(
        "",
        speakers,
        "Which servers may be heard in calls by option k, and which may be connected to calls "
        "whose own dialplan does not ask for it: URLs as in allow_urls, and @NAME for a profile, "
        "@* for all profiles. A profile counts only by its name.",
    )
    allow_commands: tuple[str, ...] = _option(
        "audio clear mark",
        server_commands,
        "What each server may ask for, in its format's words: audio is played to those whom "
        "option k names, clear drops what waits to be played, mark comes back when what came "
        "before it has been played, pause stops what is sent to the server until resume, hangup "
        "hangs the channel up, dtmf plays keys to the party, transfer sends the call to a place "
        "of the profile's transfer_to. Profiles may allow more.",
    )
    allow_insecure_tls: bool = _option(
        "no", yes_or_no, "Whether forks may skip the check of certificates: option T(insecure)."
    )
    tls_dir: str = _option(
        "/etc/audiofork/tls",
        folder_or_nothing,
        "The folder of the files that option T of a fork may name; empty: none.",
    )
    allow_post_process: bool = _option(
        "no",
        yes_or_no,
        "Whether whoever starts a fork may choose a shell command to run when the fork has ended. "
        "The commands of [post_process:NAME] are always allowed.",
    )
    max_forks: int = _option("1000", whole(1, 100_000), "How many forks may run at once.")
    max_forks_per_channel: int = _option(
        "10", whole(1, 100_000), "How many forks of one channel may run at once."
    )
    max_starts: int = _option(
        "100",
        whole(1, 10_000),
        "How many forks may start in one second, and in one burst. Further requests wait up to "
        "5 s, and their requesters take turns.",
    )
