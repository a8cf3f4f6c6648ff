"""The exceptions of the package; each says whose fault it is.

AudioForkError
+-- ConfigError                   the administrator's: the text says file, line and fault
+-- RequestRefused                the requester's: the text is the answer to give
|   +-- NoSuchChannel
+-- AudioSocketProtocolError      the peer of an AudioSocket connection
|   +-- MessageTooBig
|   +-- BadLength
+-- AmiError                      Asterisk, or the way to it
|   +-- AmiUnavailable            the connection is down
|   +-- AmiLoginRefused
|   +-- AmiTimeout                no answer in time
|   +-- AmiActionFailed           Asterisk answered with an error
+-- AriError                      Asterisk's REST interface, or the way to it
|   +-- AriUnavailable            the connection is down, or no answer in time
|   +-- AriLoginRefused           or our user may not write
|   +-- AriRefused                Asterisk answered with another error
+-- LegError                      a leg that Asterisk was asked for
|   +-- LegRefused                it will not connect
|   +-- LegUncertain              it may connect
+-- SinkError                     the WebSocket server, or the way to it
|   +-- SinkUnreachable           worth another try
|   +-- SinkLost                  was open and is gone; worth another try
|   +-- SinkRefused               the server has said no, or that it is done
|   |   +-- SinkClosed            it is done: it has closed normally
+-- PostFailed                    a web server that is told of forks, or the way to it
+-- BrokerUnavailable             NATS, or the way to it: the cluster's broker
|   +-- NobodyAnswers             nobody takes such requests now
+-- NobodyLeads                   no controller that leads can be asked
+-- NoMessage                     who has sent something over NATS that cannot be used
+-- CannotListen                  the program that uses the address
+-- ReceiverError                 the user of the receiver: it cannot start
+-- SetupError                    the administrator's: this machine cannot be set up
+-- DaemonUnreachable             the daemon is not there, or we may not ask it
+-- DaemonRuns                    a daemon runs where none may run
+-- DaemonBusy                    the daemon does this one at a time, now for another client
+-- DaemonFault                   ours: a bug, reported by the daemon
+-- StartFailed                   a fork was granted and does not stream
+-- HistoryUnavailable            the administrator's: its file cannot be used; or there is none
+-- InvalidTransition             ours: a bug
"""

from __future__ import annotations

import enum

from audiofork.text import reason_of


class AudioForkError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(AudioForkError):
    """The configuration cannot be used; the text names file, line and option."""


class Refusal(enum.StrEnum):
    """Why a request is refused, for counts and for programs; the text says more to people."""

    INVALID = "invalid"
    """It is written wrong, or asks for what cannot be."""
    NOT_ALLOWED = "not-allowed"
    """[security] or the profile forbids it."""
    LIMIT = "limit"
    """As many forks run as may, or as there are file descriptors for."""
    RATE = "rate"
    """Too many requests at once, or too many starts a second."""
    NO_SUCH_CHANNEL = "no-such-channel"
    """Asterisk does not have the channel."""
    NO_SUCH_FORK = "no-such-fork"
    """There is no fork with that id, or none on the channel."""
    CONFLICT = "conflict"
    """The channel, or the fork, is not in a state for it."""
    NO_TAP = "no-tap"
    """This Asterisk, as it is set up, cannot bring the audio that was asked for."""
    STOPPING = "stopping"
    """The daemon stops."""
    ASTERISK = "asterisk"
    """Asterisk cannot be asked, or has refused."""
    CLUSTER = "cluster"
    """The broker of the cluster is away."""


class RequestRefused(AudioForkError):
    """A request cannot be granted; the text tells the requester why.

    Attributes:
        reason: The same as one of a few words.
    """

    def __init__(self, text: str = "", reason: Refusal = Refusal.INVALID) -> None:
        super().__init__(text)
        self.reason = reason


class NoSuchChannel(RequestRefused):
    """The request names a channel that Asterisk does not have, or no longer has."""

    def __init__(self) -> None:
        super().__init__("No such channel", Refusal.NO_SUCH_CHANNEL)


class AudioSocketProtocolError(AudioForkError):
    """The peer of an AudioSocket connection broke the protocol."""


class MessageTooBig(AudioSocketProtocolError):
    """A message announces more payload than any real one has."""

    def __init__(self, kind: int, length_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"message 0x{kind:02x} announces {length_bytes} bytes, "
            f"expected no more than {limit_bytes}"
        )


class BadLength(AudioSocketProtocolError):
    """A message has a length that its kind does not allow."""

    def __init__(self, kind: int, length_bytes: int, expected: str) -> None:
        super().__init__(f"message 0x{kind:02x} has {length_bytes} bytes, expected {expected}")


class AmiError(AudioForkError):
    """Something between the daemon and the Asterisk Manager Interface failed."""


class AmiUnavailable(AmiError):
    """There is no connection to Asterisk now."""


class AmiLoginRefused(AmiError):
    """Asterisk answered the login with an error."""


class AmiTimeout(AmiError):
    """An action was not answered in time."""


class AmiActionFailed(AmiError):
    """Asterisk answered an action with an error."""

    def __init__(self, action: str, message: str) -> None:
        super().__init__(f"{action}: {message}")
        self.action = action
        self.message = message


class AriError(AudioForkError):
    """Something between the daemon and Asterisk's REST interface failed."""


class AriUnavailable(AriError):
    """There is no connection to Asterisk's REST interface now, or no answer in time."""


class AriLoginRefused(AriError):
    """Asterisk does not accept our username and password, or does not let our user write."""

    def __init__(self, username: str, message: str) -> None:
        super().__init__(
            f"Asterisk's REST interface refused {username}: {message}; check [ari] username and "
            "password against ari.conf, where read_only has to be no"
        )


class AriRefused(AriError):
    """Asterisk answered a request to its REST interface with an error.

    Attributes:
        status: The HTTP status, for example 404 for a channel that does not exist.
        message: What Asterisk said, one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class LegError(AudioForkError):
    """A leg was requested from Asterisk, but it is refused or its state is unknown."""


class LegRefused(LegError):
    """Asterisk refused the leg: it will not connect."""


class LegUncertain(LegError):
    """Asterisk did not answer: the leg may connect or not."""


class SinkError(AudioForkError):
    """A WebSocket server cannot be used (any more).

    Attributes:
        retryable: Whether another attempt may succeed.
        retry_after_s: How many seconds the server asked to wait before another attempt.
    """

    retryable = True
    retry_after_s = 0.0


class SinkUnreachable(SinkError):
    """The connect failed, for a reason that may be temporary."""


class SinkLost(SinkError):
    """The connection was open and broke, for a reason that may be temporary."""


class SinkRefused(SinkError):
    """The server said no, said that it is done, or cannot be trusted."""

    retryable = False


class SinkClosed(SinkRefused):
    """The server has closed the connection normally: it is done."""


class PostFailed(AudioForkError):
    """A web server did not take a post.

    Attributes:
        retryable: Whether another attempt may succeed.
    """

    def __init__(self, why: str, *, retryable: bool = True) -> None:
        super().__init__(why)
        self.retryable = retryable


class BrokerUnavailable(AudioForkError):
    """NATS does not answer, or refuses; the text says what it said."""


class NobodyAnswers(BrokerUnavailable):
    """Nobody takes such requests, so this one was not heard."""


class NobodyLeads(AudioForkError):
    """No controller that leads for an Asterisk can be asked; the text says which, and why."""


class NoMessage(AudioForkError, ValueError):
    """What came over NATS is no message, or none that is known here; the text has no secret."""


class CannotListen(AudioForkError):
    """The daemon cannot listen where it should; the text names the option and why."""

    def __init__(self, option: str, address: object, exc: OSError) -> None:
        super().__init__(f"{option}: cannot listen on {address}: {reason_of(exc)}")


class ReceiverError(AudioForkError):
    """The receiver cannot start; the text says why."""


class SetupError(AudioForkError):
    """The command setup cannot do its work; the text says why, and what to do."""


class DaemonUnreachable(AudioForkError):
    """The daemon's control socket cannot be used; the text says what to do about it."""


class DaemonRuns(AudioForkError):
    """A daemon runs where none may run; the text says why."""


class DaemonBusy(AudioForkError):
    """The daemon handles one such request at a time; the text says what to do."""


class DaemonFault(AudioForkError):
    """The daemon met a bug of its own."""


class StartFailed(AudioForkError):
    """A fork was granted and does not stream; the text says why and what to do."""


class HistoryUnavailable(AudioForkError):
    """The history cannot be asked now; the text says why."""


class InvalidTransition(AudioForkError):
    """A fork got an event that its state does not allow: a bug of ours."""
