"""Does what a fork's server asks for, as far as it is allowed to."""

from __future__ import annotations

import logging
from collections.abc import Callable

from audiofork.link.messages import (
    CommandAsked,
    ForkSpec,
    SendReport,
    ServerCommand,
    SinkMessage,
)
from audiofork.log import ForkLog
from audiofork.relay.formats.base import Audio, Command
from audiofork.relay.message_limit import MessageLimit
from audiofork.relay.playout import MOST_MARKS
from audiofork.relay.speaker import Speaker

log = logging.getLogger(__name__)

MAX_MESSAGES_A_SECOND = 20
# Bots set a mark after each piece of audio, and send the pieces faster than real time.
MAX_COMMANDS_A_SECOND = 200
# Longest text passed on, four times what an event shows. The rest would only cost time on the link
# and in the control plane, which searches it for control characters.
MAX_TEXT_LENGTH = 3600
# Longest name of a mark: up to MOST_MARKS of them are kept.
MAX_NAME_LENGTH = 1000

_OF_THE_VOICE = (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)
_GRANTED_WITH = {ServerCommand.RESUME: ServerCommand.PAUSE}  # who may pause may go on
_NO_VOICE = "the fork has no voice (option k)"
_NOT_GRANTED = "it is not granted ([security] allow_commands, or the profile's commands)"
_TOO_MANY = f"more than {MAX_COMMANDS_A_SECOND} commands a second"
_TOO_LONG = f"a value of more than {MAX_NAME_LENGTH} characters"


class ServerCommands:
    """Takes what a server says to the relay: audio, commands, texts. Owned by a session.

    Args:
        spec: The fork: its voice, and what its server may ask for.
        speaker: Plays the audio.
        report: Called with what the control plane has to do or to know.
        pause: Called with whether the server is to get no audio for now.

    Attributes:
        refused: How much the server has asked for and not got.
    """

    def __init__(
        self,
        spec: ForkSpec,
        speaker: Speaker,
        report: SendReport,
        pause: Callable[[bool], None],
    ) -> None:
        self.refused = 0
        self._spec = spec
        self._speaker = speaker
        self._report = report
        self._pause = pause
        self._texts = MessageLimit(MAX_MESSAGES_A_SECOND)
        self._commands = MessageLimit(MAX_COMMANDS_A_SECOND)
        self._asked = MessageLimit(MAX_MESSAGES_A_SECOND)
        self._told: set[tuple[ServerCommand, str]] = set()  # refusals that were logged
        self._is_over = False
        # Looked up once, and not for each frame.
        self._plays = not self._why_refused(ServerCommand.AUDIO)

    @property
    def texts_ignored(self) -> int:
        """How many texts came beyond the limit."""
        return self._texts.exceeded

    def end(self) -> None:
        """Do nothing from now on: the fork ends. Texts are still passed on."""
        self._is_over = True
        self._plays = False

    def on_server_lost(self) -> None:
        """Forget what the server has begun: the next connection starts anew."""
        if self._speaker.playout is not None:
            self._speaker.playout.forget_half_sample()
        self._pause(False)

    def on_text(self, text: str) -> None:
        """Pass a text message on, unless the server sends too many."""
        if self._texts.allows():
            self._report(SinkMessage(self._spec.fork_id, text[:MAX_TEXT_LENGTH]))

    def on_audio(self, audio: Audio) -> None:
        """Play audio, where the fork has a voice."""
        if self._plays:
            self._speaker.put(audio)
        elif not self._is_over:
            self._refuse(ServerCommand.AUDIO, self._why_refused(ServerCommand.AUDIO))

    def on_command(self, command: Command) -> None:
        """Do what the server asks for, or report it to the control plane."""
        if self._is_over:
            return
        if why := self._why_refused(command.command, command.value) or self._do(command):
            self._refuse(command.command, why)

    def _why_refused(self, command: ServerCommand, value: str = "") -> str:
        """Return why a command is not allowed; empty: it is."""
        if self._speaker.playout is None and command in _OF_THE_VOICE:
            return _NO_VOICE
        if _GRANTED_WITH.get(command, command) not in self._spec.commands:
            return _NOT_GRANTED
        if command is ServerCommand.AUDIO:
            return ""  # however much: server_limits.py and the buffer have bounds
        if len(value) > MAX_NAME_LENGTH:
            return _TOO_LONG
        return "" if self._commands.allows() else _TOO_MANY

    def _refuse(self, command: ServerCommand, why: str) -> None:
        """Count a refusal; log the first of its kind."""
        self.refused += 1
        if (command, why) not in self._told:
            self._told.add((command, why))
            ForkLog(log, self._spec.fork_id, self._spec.channel).warning(
                "what the server sends is refused (%s): %s", command.value, why
            )

    def _do(self, command: Command) -> str:
        """Do what is allowed; return why it could not be done, else an empty text."""
        playout = self._speaker.playout
        match command.command:
            case ServerCommand.CLEAR if playout is not None:
                playout.clear()
            case ServerCommand.MARK if playout is not None:
                if not playout.mark(command.value):
                    return f"more than {MOST_MARKS} marks wait"
            case ServerCommand.PAUSE | ServerCommand.RESUME:
                self._pause(command.command is ServerCommand.PAUSE)
            case _:
                return self._ask(command)
        return ""

    def _ask(self, command: Command) -> str:
        if not self._asked.allows():
            return f"more than {MAX_MESSAGES_A_SECOND} such commands a second"
        self._report(CommandAsked(self._spec.fork_id, command.command, command.value))
        return ""
