"""The exceptions of the package; each says whose fault it is.

AudioForkError
+-- ConfigError                   the administrator's: file, line, what is wrong
+-- RequestRefused                the requester's: the text is the answer to give
|   +-- NoSuchChannel
+-- AudioSocketProtocolError      the peer of an AudioSocket connection
|   +-- MessageTooBig
|   +-- BadLength
+-- AmiError                      Asterisk, or the way to it
|   +-- AmiUnavailable            the link is down
|   +-- AmiLoginRefused
|   +-- AmiTimeout                no answer in time
|   +-- AmiActionFailed           Asterisk answered with an error
+-- SinkError                     the WebSocket server, or the way to it
|   +-- SinkUnreachable           worth another try
|   +-- SinkLost                  was open and is gone; worth another try
|   +-- SinkRefused               the server has said no, or that it is done
+-- InvalidTransition             ours: a bug
"""

from __future__ import annotations


class AudioForkError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(AudioForkError):
    """The configuration cannot be used; the text names file, line and option."""


class RequestRefused(AudioForkError):
    """A request cannot be granted; the text tells the requester why."""


class NoSuchChannel(RequestRefused):
    """The request names a channel that Asterisk does not have, or has no more."""

    def __init__(self) -> None:
        super().__init__("No such channel")


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
    """There is no link to Asterisk at the moment."""


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


class SinkError(AudioForkError):
    """A WebSocket server cannot be used (any more).

    Attributes:
        retryable: Whether another attempt may fare better.
        retry_after_s: How long the server asked to be left alone.
    """

    retryable = True
    retry_after_s = 0.0


class SinkUnreachable(SinkError):
    """No connection came about, for a reason that may pass."""


class SinkLost(SinkError):
    """The connection was open and broke, for a reason that may pass."""


class SinkRefused(SinkError):
    """The server said no, said that it is done, or cannot be trusted."""

    retryable = False


class CannotListen(AudioForkError):
    """The daemon cannot listen where it should; the text names the option and why."""

    def __init__(self, option: str, address: object, exc: OSError) -> None:
        super().__init__(f"{option}: cannot listen on {address}: {exc.strerror or exc}")


class ReceiverError(AudioForkError):
    """The receiver cannot start; the text says why."""


class DaemonUnreachable(AudioForkError):
    """The daemon's control socket cannot be used; the text says what to do about it."""


class DaemonFault(AudioForkError):
    """The daemon met a bug of its own."""


class InvalidTransition(AudioForkError):
    """A fork got an event that its state does not allow: a bug of ours."""
