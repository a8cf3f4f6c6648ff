"""The option string of a fork: Asterisk's grammar, our letters.

The grammar is that of ast_app_parse_options (main/app.c): each letter may have an argument in
parentheses. Parentheses may be nested. If an argument begins with a quote, parentheses inside
quotes do not count. A backslash outside quotes escapes the next character. If a letter comes
twice, the last one is used. Blanks between options are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from audiofork.asterisk.taps.ways import Audience
from audiofork.config import SAMPLE_RATES
from audiofork.config_values import FRAMES_MS
from audiofork.errors import RequestRefused
from audiofork.forks import handshakes
from audiofork.forks.params import MAX_PARAMS
from audiofork.link.messages import Beeps, Codec, Direction, Format, Handshake, Tls
from audiofork.text import did_you_mean

MAX_OPTIONS_BYTES = 4096
MAX_VARIABLE_LENGTH = 79  # Asterisk's AST_MAX_EXTENSION without the final NUL


# A parameter that option M names gets the value of this variable, completed by its name.
PARAM_VARIABLE = "AUDIOFORK_PARAM_"
TWILIO_SAMPLE_RATE = 8000
# What app_audiofork always offered; some servers insist on it.
SUBPROTOCOL_OF_MODULE = "echo"
# What servers of a format expect to be offered, unless option s names others.
_SUBPROTOCOLS = {Format.JAMBONZ: ("audio.jambonz.org",), Format.CHAN_WEBSOCKET: ("media",)}
DEFAULT_BEEP_INTERVAL_S = 15.0
MAX_GAIN = 4
MAX_SAMPLE_RATES = 2  # the preferred rate, and the rate to use instead


@dataclass(frozen=True, slots=True)
class Options:
    """The parsed option string of a request; the defaults stand for options that are missing.

    Attributes:
        direction: Option D.
        gain_in: Option v or W: steps of volume, -4 to 4.
        gain_out: Option V or W, likewise.
        keep_time: Option S.
        bridged_only: Option b.
        beeps: Options B, p and P.
        audience: Option k: who hears the server's audio; None: nobody.
        use_tls: Option T.
        tls: The arguments of T, if it has any except `on`.
        reconnect_interval_s: Option R, in seconds; None for the configured interval.
        reconnect_attempts: Option r; None for the configured number.
        frame_ms: Option F, in milliseconds; None for the configured size.
        headers: Option H: names and values, which may be secrets.
        authorization: Option A: the value of the header Authorization; a secret.
        subprotocols: Option s, the preferred one first; one may be a secret.
        format: Option x, or what is configured; see `with_format`.
        has_format: Whether it is that of option x.
        codec: Option c.
        metadata: Option M.
        param_variables: The argument of M: names of parameters whose values are channel variables.
        sample_rates: Option L, in Hz, the preferred one first; 0: the channel's own rate.
        id_variable: Option i.
        ignored: Letters that are accepted and have no effect.
    """

    direction: Direction = Direction.BOTH
    gain_in: int = 0
    gain_out: int = 0
    keep_time: bool = False
    bridged_only: bool = False
    beeps: Beeps = Beeps()
    audience: Audience | None = None
    use_tls: bool = False
    tls: Tls | None = None
    reconnect_interval_s: float | None = None
    reconnect_attempts: int | None = None
    frame_ms: int | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    authorization: str = field(default="", repr=False)
    subprotocols: tuple[str, ...] = field(default=(), repr=False)
    format: Format = Format.RAW
    has_format: bool = False
    codec: Codec = Codec.SLIN
    metadata: bool = False
    param_variables: tuple[str, ...] = ()
    sample_rates: tuple[int, ...] = ()
    id_variable: str = ""
    ignored: str = ""

    @property
    def tells_of_call(self) -> bool:
        """Whether the server is told of the call."""
        return self.metadata or self.format is not Format.RAW

    @property
    def wished_rates(self) -> tuple[int, ...]:
        """The sample rates that the fork may have, in Hz; empty: as configured."""
        return (TWILIO_SAMPLE_RATE,) if self.format is Format.TWILIO else self.sample_rates

    @property
    def handshake(self) -> Handshake:
        """What options H, A and s add to the request of the WebSocket handshake."""
        own = (("Authorization", self.authorization),) if self.authorization else ()
        offered = self.subprotocols or _SUBPROTOCOLS.get(self.format, ())
        return Handshake((*own, *self.headers), offered)


def parse_options(text: str) -> Options:
    """Parse an option string such as `D(in)`.

    Raises:
        RequestRefused: A letter is unknown, or an argument is missing or not allowed.
    """
    options = Options()
    for letter, argument in split_options(text):
        parser = _PARSERS.get(letter)
        if parser is None:
            raise RequestRefused(f"Options: unknown option {letter!r}{_hint(letter)}")
        options = parser(options, argument)
    if options.authorization and any(n.lower() == "authorization" for n, _ in options.headers):
        raise RequestRefused("Options: A and H both set the header Authorization")
    if options.has_format:
        _check_format(options, f"x({options.format})")
    return options


def with_format(options: Options, default: Format) -> Options:
    """Return the options of a fork with its format: that of its option x, or the default.

    Args:
        options: The options of the fork, including those of its profile.
        default: The format of `[websocket] format`.

    Raises:
        RequestRefused: The default cannot carry what other options ask for.
    """
    if options.has_format:
        return options
    options = replace(options, format=default)
    _check_format(options, f"[websocket] format = {default}")
    return options


def _check_format(options: Options, named: str) -> None:
    """Raise RequestRefused if a format cannot carry what other options ask for.

    Args:
        options: The options.
        named: The option that has set the format, for the error.
    """
    format_ = options.format
    other = "" if options.has_format else ", or name another format by option x"
    if format_ is Format.TWILIO and set(options.sample_rates) - {TWILIO_SAMPLE_RATE}:
        raise RequestRefused(f"Options: {named} has only 8000 Hz, leave L out{other}")
    has_codec = format_ in (Format.RAW, Format.JSON)
    if options.codec is not Codec.SLIN and not has_codec:
        raise RequestRefused(f"Options: {named} has a codec of its own, leave c out{other}")


def _hint(letter: str) -> str:
    """Return a hint to what may be meant by an unknown letter."""
    if letter in _QUOTES:
        return "; the options stand there without quotes"
    if letter.swapcase() in _PARSERS:
        return f"; did you mean {letter.swapcase()}?"
    return f"; there are {' '.join(_PARSERS)}"


_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


def split_options(text: str) -> list[tuple[str, str | None]]:
    """Split an option string into letters and arguments.

    Returns:
        Pairs in the order of the string; an argument is None if there are no parentheses.

    Raises:
        RequestRefused: The string is too long, or a parenthesis is not closed.
    """
    if len(text.encode(errors="replace")) > MAX_OPTIONS_BYTES:
        raise RequestRefused(f"Options: longer than {MAX_OPTIONS_BYTES} bytes")
    pairs: list[tuple[str, str | None]] = []
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        argument = None
        if text[position : position + 1] == "(":
            argument, position = _argument(letter, text, position + 1)
        if not letter.isspace():
            pairs.append((letter, argument))
        elif argument is not None:
            raise RequestRefused("Options: an argument without a letter")
    return pairs


def _argument(letter: str, text: str, start: int) -> tuple[str, int]:
    """Return the argument that begins at `start`, and the position after its parenthesis."""
    quotes_count = text[start : start + 1] == '"'
    quoted = False
    depth = 1
    kept: list[str] = []
    position = start
    while position < len(text):
        character = text[position]
        position += 1
        if character == '"' and quotes_count:
            quoted = not quoted
        elif character == "\\":
            following = text[position : position + 1]
            if quoted and following != '"':
                kept.append(character)
            kept.append(following)
            position += 1
        else:
            if not quoted:
                depth += (character == "(") - (character == ")")
            if depth == 0:
                return "".join(kept), position
            kept.append(character)
    raise RequestRefused(f"Options: missing closing parenthesis of option {letter!r}")


_ON = frozenset({"on", "yes", "true", "1"})

# --- The letters ---------------------------------------------------------------------------------
# Each function takes the options so far and an argument, and returns the new options.


def _bad(letter: str, expected: str, argument: str | None, hint: str = "") -> RequestRefused:
    # Only up to a parenthesis: if one is missing, A or H may follow with a secret.
    known, parenthesis, _ = (argument or "").partition("(")
    given = repr(f"{known}(..." if parenthesis else known) if argument else "nothing"
    return RequestRefused(f"Options: {letter} takes {expected}, not {given}{hint}")


def _number(letter: str, argument: str | None, low: int, high: int) -> int:
    text = (argument or "").strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise _bad(letter, f"a whole number from {low} to {high}", argument)
    number = int(text)
    if not low <= number <= high:
        raise _bad(letter, f"a whole number from {low} to {high}", argument)
    return number


def _direction(options: Options, argument: str | None) -> Options:
    try:
        direction = Direction((argument or "").strip().lower())
    except ValueError:
        hint = _SIDES.get(argument or "") or did_you_mean(argument or "", Direction)
        raise _bad("D", "in, out, both or stereo", argument, hint) from None
    return replace(options, direction=direction)


# Asterisk has other names for the directions.
_SIDES = {"read": "; read is in", "write": "; write is out"}


def _gain_in(options: Options, argument: str | None) -> Options:
    return replace(options, gain_in=_number("v", argument, -MAX_GAIN, MAX_GAIN))


def _gain_out(options: Options, argument: str | None) -> Options:
    return replace(options, gain_out=_number("V", argument, -MAX_GAIN, MAX_GAIN))


def _gain_of_both(options: Options, argument: str | None) -> Options:
    gain = _number("W", argument, -MAX_GAIN, MAX_GAIN)
    return replace(options, gain_in=gain, gain_out=gain)


def _keep_time(options: Options, _argument: str | None) -> Options:
    return replace(options, keep_time=True)


def _bridged_only(options: Options, _argument: str | None) -> Options:
    return replace(options, bridged_only=True)


def _beep_interval(options: Options, argument: str | None) -> Options:
    interval_s = float(_number("B", argument, 1, 86_400)) if argument else DEFAULT_BEEP_INTERVAL_S
    return replace(options, beeps=replace(options.beeps, interval_s=interval_s))


def _beep_at_start(options: Options, _argument: str | None) -> Options:
    return replace(options, beeps=replace(options.beeps, at_start=True))


def _beep_at_end(options: Options, _argument: str | None) -> Options:
    return replace(options, beeps=replace(options.beeps, at_end=True))


def _audience(options: Options, argument: str | None) -> Options:
    try:
        audience = Audience((argument or "").strip().lower())
    except ValueError:
        hint = did_you_mean(argument or "", Audience)
        raise _bad("k", "party, peer or both", argument, hint) from None
    return replace(options, audience=audience)


def _interval(options: Options, argument: str | None) -> Options:
    return replace(options, reconnect_interval_s=float(_number("R", argument, 1, 600)))


def _attempts(options: Options, argument: str | None) -> Options:
    return replace(options, reconnect_attempts=_number("r", argument, 0, 1_000_000))


def _frame_ms(options: Options, argument: str | None) -> Options:
    text = (argument or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) in FRAMES_MS):
        raise _bad("F", "a multiple of 20 from 20 to 1000", argument)
    return replace(options, frame_ms=int(text))


def _sample_rates(options: Options, argument: str | None) -> Options:
    """Parse L(16000), L(0) for the channel's own rate, or L(16000,8000) with a second choice."""
    known = {str(rate): rate for rate in (0, *SAMPLE_RATES)}
    rates = tuple(known.get(part.strip(), -1) for part in (argument or "").split(","))
    if -1 in rates or len(rates) > MAX_SAMPLE_RATES:
        allowed = ", ".join(known)
        raise _bad("L", f"one or two of {allowed}, with a comma between them", argument)
    return replace(options, sample_rates=rates)


def _id_variable(options: Options, argument: str | None) -> Options:
    name = (argument or "").strip()
    # Only a plain variable name: setting a dialplan function could do more than store a value.
    if not (name.isascii() and name.isidentifier() and len(name) <= MAX_VARIABLE_LENGTH):
        raise _bad("i", "the name of a channel variable", argument)
    return replace(options, id_variable=name)


def _ignored(options: Options, _argument: str | None) -> Options:
    return replace(options, ignored="a")


def _tls(options: Options, argument: str | None) -> Options:
    """Parse T(on), T(insecure), T(ca=NAME), T(cert=NAME:key=NAME), or several joined by colons."""
    known = {"ca": "ca_file", "cert": "cert_file", "key": "key_file"}
    tls: dict[str, Any] = {}
    for part in (argument or "").split(":"):
        name, equals, path = part.strip().partition("=")
        if name in known and path and not path.startswith(" "):
            tls[known[name]] = path
        elif name == "insecure" and not equals:
            tls["insecure"] = True
        elif name.lower() not in _ON or equals:
            raise _bad("T", "on, insecure, ca=NAME, cert=NAME or key=NAME", argument)
    if "key_file" in tls and "cert_file" not in tls:
        raise RequestRefused("Options: T takes a key only with a cert")
    return replace(options, use_tls=True, tls=Tls(**tls) if tls else None)


def _headers(options: Options, argument: str | None) -> Options:
    try:
        return replace(options, headers=handshakes.headers(argument or ""))
    except ValueError as exc:  # the argument may be a secret, so it is not repeated
        raise RequestRefused(f"Options: H takes {exc}") from None


def _authorization(options: Options, argument: str | None) -> Options:
    try:
        return replace(options, authorization=handshakes.authorization(argument or ""))
    except ValueError as exc:
        raise RequestRefused(f"Options: A takes {exc}") from None


def _subprotocols(options: Options, argument: str | None) -> Options:
    try:
        return replace(options, subprotocols=handshakes.subprotocols(argument or ""))
    except ValueError as exc:  # some servers expect a token as the second name
        raise RequestRefused(f"Options: s takes {exc}") from None


def _format(options: Options, argument: str | None) -> Options:
    try:
        chosen = Format((argument or "").strip().lower())
    except ValueError:
        raise _bad("x", f"one of {', '.join(Format)}", argument) from None
    return replace(options, format=chosen, has_format=True)


def _codec(options: Options, argument: str | None) -> Options:
    try:
        codec = Codec((argument or "").strip().lower())
    except ValueError:
        raise _bad("c", f"one of {', '.join(Codec)}", argument) from None
    return replace(options, codec=codec)


def _metadata(options: Options, argument: str | None) -> Options:
    """Parse M, or M(name&name)."""
    names = tuple(name.strip() for name in argument.split("&")) if argument else ()
    if not all(name.isascii() and name.isidentifier() for name in names) or any(
        len(PARAM_VARIABLE + name) > MAX_VARIABLE_LENGTH for name in names
    ):
        raise _bad("M", f"nothing, or names of variables without {PARAM_VARIABLE}", argument)
    if len(names) > MAX_PARAMS:
        raise RequestRefused(f"Options: M takes {MAX_PARAMS} names at most")
    return replace(options, metadata=True, param_variables=names)


_PARSERS: dict[str, Callable[[Options, str | None], Options]] = {
    "D": _direction,
    "T": _tls,
    "R": _interval,
    "r": _attempts,
    "F": _frame_ms,
    "L": _sample_rates,
    "b": _bridged_only,
    "B": _beep_interval,
    "p": _beep_at_start,
    "P": _beep_at_end,
    "k": _audience,
    "v": _gain_in,
    "V": _gain_out,
    "W": _gain_of_both,
    "H": _headers,
    "A": _authorization,
    "s": _subprotocols,
    "M": _metadata,
    "x": _format,
    "c": _codec,
    "i": _id_variable,
    "S": _keep_time,
    "a": _ignored,
}


def as_the_module(text: str) -> str:
    """Return an option string that offers the subprotocol of app_audiofork.

    Except if it names others, or a format whose servers expect others; no client of app_audiofork
    does that.

    Raises:
        RequestRefused: See `split_options`.
    """
    # With an argument: in a dialplan, an s may also be part of the name of a variable.
    has_some = any(
        argument
        and (letter == "s" or (letter == "x" and argument.strip().lower() in _SUBPROTOCOLS))
        for letter, argument in split_options(text)
    )
    return text if has_some else f"{text}s({SUBPROTOCOL_OF_MODULE})"
