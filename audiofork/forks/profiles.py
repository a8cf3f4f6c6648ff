"""Profiles: servers that the administrator has written down, and requests name, WsServer: @NAME.

So neither a URL nor a secret of it stands in a dialplan, and whoever may start forks need not be
able to send a call anywhere else.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from audiofork.config import Place, ProfileConfig
from audiofork.errors import ConfigError, Refusal, RequestRefused
from audiofork.forks import handshakes
from audiofork.forks.call_info import FIELDS
from audiofork.forks.options import Options, parse_options, with_format
from audiofork.forks.params import parse_params
from audiofork.forks.requests import PROFILE_MARK, StartFork, check_params_are_sent
from audiofork.forks.url_templates import check_template
from audiofork.forks.urls import check_url
from audiofork.link.dialogue import Dialogue
from audiofork.link.messages import Format, ServerCommand
from audiofork.realtime_opening import parse_opening
from audiofork.text import did_you_mean, printable
from audiofork.url_patterns import ANYWHERE

_NO_PROFILE = ProfileConfig()
_TOKEN = "{token}"
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def has_texts(dialogue: Dialogue) -> bool:
    """Return whether a dialogue has texts, which may hold fields of a call."""
    return bool(dialogue.opening or dialogue.closing)


def filled(dialogue: Dialogue, values: Mapping[str, str]) -> Dialogue:
    """Return it with the fields of a call in its texts, escaped as within a string of JSON."""

    def value(found: re.Match[str]) -> str:
        known = found[1] in FIELDS
        return json.dumps(values.get(found[1], ""))[1:-1] if known else found[0]

    return dataclasses.replace(
        dialogue,
        opening=_FIELD.sub(value, dialogue.opening),
        closing=_FIELD.sub(value, dialogue.closing),
    )


class Profiles:
    """The profiles; owned by the daemon, which calls `configure` when sections change.

    Attributes:
        default_format: What forks without option x speak; may be changed for later forks.

    Raises:
        ConfigError: A section cannot be used; the text begins with `[section] option`.
    """

    def __init__(
        self, sections: Mapping[str, ProfileConfig], default_format: Format = Format.RAW
    ) -> None:
        self.default_format = default_format
        self.configure(sections)

    def configure(self, sections: Mapping[str, ProfileConfig]) -> None:
        """Use these sections [profile:NAME] for new forks; raises as the class."""
        for name, section in sections.items():
            _check(name, section)
        self._sections = dict(sections)

    @property
    def names(self) -> list[str]:
        """The names of all profiles."""
        return list(self._sections)

    def apply(self, request: StartFork) -> StartFork:
        """Return a request with what its profile has, if it names one, and the format.

        Its options are added to the profile's; of a letter that both have, its own counts.

        Raises:
            RequestRefused: There is no such profile, or the options do not go together.
        """
        request = self._of_profile(request)
        options = with_format(request.options, self.default_format)
        check_params_are_sent(request.params, options)
        try:
            _check_dialogue(self._section_of(request), options.format)
        except ValueError as exc:
            raise RequestRefused(f"WsServer: {request.server}: {exc}") from None
        return dataclasses.replace(request, options=options)

    def _of_profile(self, request: StartFork) -> StartFork:
        if not request.url.startswith(PROFILE_MARK):
            return request
        name = request.url.removeprefix(PROFILE_MARK)
        if (section := self._sections.get(name)) is None:
            hint = did_you_mean(name, self._sections, f"{PROFILE_MARK}{{}}")
            raise RequestRefused(f"WsServer: no section [profile:{printable(name, '?')}]{hint}")
        options = _options_of(section, request.options_text)
        params = {**parse_params(section.params), **request.params}
        return dataclasses.replace(
            request,
            url=section.url,
            options=options,
            params=params,
            profile=name,
            status_callback=section.status_callback,
            proxy=section.proxy and section.proxy.with_login(section.proxy_login),
        )

    def check_channel(self, request: StartFork, channel: str) -> None:
        """Raise RequestRefused unless a profile may be used for a channel."""
        allowed = self._section_of(request).channels
        if not any(fnmatchcase(channel, pattern) for pattern in allowed):
            text = f"WsServer: {request.server} is not for this channel"
            raise RequestRefused(text, Refusal.NOT_ALLOWED)

    def _section_of(self, request: StartFork) -> ProfileConfig:
        """Return a request's profile; one without anything if it names none."""
        return self._sections.get(request.profile, _NO_PROFILE)

    def commands_of(self, request: StartFork) -> tuple[str, ...]:
        """Return what the server of a request's profile may ask for beside what all may."""
        return self._section_of(request).commands

    def places_of(self, request: StartFork) -> tuple[Place, ...]:
        """Return the places that the server of a request's profile may transfer calls to."""
        return self._section_of(request).transfer_to

    def music_of(self, request: StartFork) -> str:
        """Return the music class of a request's profile; empty: none."""
        return self._section_of(request).music

    def dialogue_of(self, request: StartFork) -> Dialogue:
        """Return what a request's profile has its server told, the fields not filled in."""
        section = self._section_of(request)
        return Dialogue(
            opening=section.opening,
            opening_answer=section.opening_answer,
            closing=section.closing,
            closing_answer=section.closing_answer,
            closing_wait_s=section.closing_wait if section.closing else 0.0,
            full_messages=section.full_messages,
        )


def _options_of(section: ProfileConfig, further: str) -> Options:
    """Return the options of a profile with those of a request, and with its headers and token.

    Of a header that both have, the request's own counts.
    """
    options = parse_options(section.options + further)
    headers = [handshakes.header(line) for line in section.headers]
    if section.token:
        headers.insert(0, _token_header(section))
    given = {name.lower() for name, _ in options.handshake.headers}
    own = [(name, value) for name, value in headers if name.lower() not in given]
    return dataclasses.replace(options, headers=(*own, *options.headers))


def _token_header(section: ProfileConfig) -> tuple[str, str]:
    """Return the name and the value of the header that carries a profile's token.

    Raises:
        ValueError: There is no header of this form; the text does not repeat the token.
    """
    if not section.token_header:
        return "Authorization", handshakes.authorization(section.token)
    if _TOKEN not in section.token_header:
        raise ValueError(f"name: value with {_TOKEN} in it")
    return handshakes.header(section.token_header.replace(_TOKEN, section.token))


def _check_headers(section: ProfileConfig) -> None:
    """Raise ValueError if a header stands twice; the text repeats no value."""
    names = [handshakes.header(line)[0].lower() for line in section.headers]
    if section.token and _token_header(section)[0].lower() in names:
        raise ValueError("no header that the token is sent in")


def _check(name: str, section: ProfileConfig) -> None:
    """Raise ConfigError if a profile cannot be used."""

    def bad(option: str, why: object) -> ConfigError:
        return ConfigError(f"[profile:{name}] {option}: {why}")

    if not section.url:
        raise bad("url", "expected the URL of a server, ws:// or wss://, got nothing")
    try:
        check_url(check_template(section.url), ANYWHERE)
    except RequestRefused as exc:
        raise bad("url", str(exc).removeprefix("WsServer: ")) from None
    if section.token_header and not (section.token or section.token_file):
        raise bad("token_header", "expected token or token_file beside it, got neither")
    token_option = "token_header" if section.token_header else "token"
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("headers", lambda: [handshakes.header(line) for line in section.headers]),
        (token_option, lambda: section.token and _token_header(section)),
        ("headers", lambda: _check_headers(section)),
    )
    for option, check in checks:
        try:
            check()
        except ValueError as exc:
            raise bad(option, f"expected {exc}") from None
    if ServerCommand.TRANSFER in section.commands and not section.transfer_to:
        raise bad("transfer_to", "expected places, since commands has transfer; got nothing")
    try:
        parse_params(section.params)
    except ValueError as exc:
        raise bad("params", exc) from None
    try:
        options = _options_of(section, "")
    except RequestRefused as exc:
        raise bad("options", str(exc).removeprefix("Options: ")) from None
    try:
        _check_dialogue(section, options.format)
    except ValueError as exc:
        raise ConfigError(f"[profile:{name}] {exc}") from None


def _check_dialogue(section: ProfileConfig, format_: Format) -> None:
    """Raise ValueError if a format cannot have what a profile has its server told.

    The text begins with the name of the option.
    """
    if format_ is not Format.OPENAI_REALTIME:
        return
    for option in ("opening_answer", "closing", "closing_answer", "full_messages"):
        if getattr(section, option):
            raise ValueError(f"{option}: x({format_}) has its own, leave it out")
    try:
        parse_opening(section.opening)
    except ValueError as exc:
        raise ValueError(f"opening: x({format_}) expects {exc}") from None
