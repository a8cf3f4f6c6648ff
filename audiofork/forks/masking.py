"""Hides telephone numbers in what is kept of a call."""

from __future__ import annotations

import re
import unicodedata

MASK = "*"
BLANK = "***"
"""What is left of a number that was forgotten."""
# A number as people write it: +49 (30) 123-456. Shorter ones are no one's telephone.
_NUMBER = re.compile(r"\+?\(?\d(?:[ ()./-]{0,2}\d){2,}")
# One alone, as people write it.
_A_NUMBER = re.compile(r"[ (]*\+?[ ()./-]*[0-9][0-9 ()./-]*")
# The part of a channel's name that Asterisk adds: -0000002a, or -0000002a;1.
_SUFFIX = re.compile(r"-[0-9a-f]{8}(?:;[12])?\Z")
# Digits in a text that are nothing but the caller's number; fewer would be a time, or a port.
LEAST_IN_TEXT = 5


def digits_of(number: str) -> str:
    """Return the digits of a number, without the 00 that some write in place of a +."""
    digits = "".join(str(unicodedata.decimal(one)) for one in number if one.isdecimal())
    return digits.removeprefix("00") or digits


def key_of(number: str) -> str:
    """Return what a number is found by: its digits, so that the way it is written matters not.

    A number that is masked is found as it is, and so is one without digits.
    """
    return number if MASK in number else digits_of(number) or number


def is_number(text: str) -> bool:
    """Return whether a text is a telephone number: digits 0 to 9, perhaps with + ( ) . / - ."""
    return _A_NUMBER.fullmatch(text) is not None


def masked(number: str) -> str:
    """Return a number with all its digits replaced but the last ones: three, or two of few."""
    count = sum(character.isdigit() for character in number)
    hidden = count - min(3 if count > 6 else 2, max(count - 1, 0))
    kept = []
    for character in number:
        if character.isdigit() and hidden:
            kept.append(MASK)
            hidden -= 1
        else:
            kept.append(character)
    return "".join(kept)


def masked_name(name: str) -> str:
    """Return the name of a caller with the numbers in it masked: often it is one."""
    return _NUMBER.sub(lambda found: masked(found[0]), name)


def masked_channel(channel: str) -> str:
    """Return the name of a channel with the numbers in it masked, but for Asterisk's own suffix."""
    suffix = _SUFFIX.search(channel)
    end = suffix.start() if suffix is not None else len(channel)
    return masked_name(channel[:end]) + channel[end:]


def endpoint_of(channel: str) -> str:
    """Return the name of a channel without Asterisk's suffix: the same for each call of a phone."""
    return _SUFFIX.sub("", channel)


class Blanking:
    """Puts BLANK in place of a number that somebody else's call mentions, so that it is forgotten.

    It is found as a word of its own, with or without 00 before it: not within a longer number.

    Args:
        digits: The number's digits.
    """

    def __init__(self, digits: str) -> None:
        self._mention = re.compile(rf"(?<![^\W_])(?:00)?{re.escape(digits)}(?![^\W_])")

    def of(self, text: str) -> str:
        """Return a text without the number."""
        return self._mention.sub(BLANK, text)

    def of_channel(self, channel: str) -> str:
        """Return the name of a channel without it; what Asterisk adds is no number."""
        suffix = _SUFFIX.search(channel)
        end = suffix.start() if suffix is not None else len(channel)
        return self.of(channel[:end]) + channel[end:]


class Masking:
    """Masks the number of one caller, and the name of a channel, wherever they stand in a text.

    Args:
        number: The number; one of fewer than LEAST_IN_TEXT digits is left in texts.
        channel: The name of the channel.
    """

    def __init__(self, number: str, channel: str = "") -> None:
        digits = digits_of(number)
        self._digits = digits if len(digits) >= LEAST_IN_TEXT else ""
        self._channel = channel

    def of(self, text: str) -> str:
        """Return a text with both masked."""
        if self._channel:
            text = text.replace(self._channel, masked_channel(self._channel))
        return text.replace(self._digits, masked(self._digits)) if self._digits else text
