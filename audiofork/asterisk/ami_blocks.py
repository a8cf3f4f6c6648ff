"""Cuts what comes over AMI into messages, and finds those that a value has cut in two."""

from __future__ import annotations

_END = b"\r\n\r\n"
_BEGINNINGS = (b"Event: ", b"Response: ")


class Blocks:
    """The messages of one connection, each without the empty line that ends it.

    An empty line in a value ends its message early, and lets the rest pass for a message. A rest
    that does not begin as messages do shows it: both are dropped. One that does cannot be told
    from a message. So Asterisk is kept from sending such events (the last eventfilter of
    manager_audiofork.conf), and is asked for values in a way that leaves no line end in them.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._held: bytes | None = None  # a message whose follower has begun with too few bytes
        self._is_greeting = True

    @property
    def waiting_bytes(self) -> int:
        """How long the message that has no end yet is."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the messages that are whole now, and what is dropped since a message was cut.

        Chunks may split messages anywhere; the rest is kept for the next call. The first message
        of a connection may begin as it likes.
        """
        # The end may have begun in the last read; what was before that is not searched again.
        unsearched = max(0, len(self._rest) - len(_END) + 1)
        self._rest += chunk
        if self._held is None and self._rest.find(_END, unsearched) < 0:
            return [], []
        *blocks, rest = bytes(self._rest).split(_END)
        if self._held is not None:
            blocks.insert(0, self._held)
        self._rest = bytearray(rest)
        self._held = blocks.pop() if _too_few_to_judge(rest) else None
        return self._judged(blocks, rest)

    def _judged(self, blocks: list[bytes], rest: bytes) -> tuple[list[bytes], list[bytes]]:
        last = rest if self._held is None else self._held
        begin = [block.startswith(_BEGINNINGS) for block in blocks]
        begin.append(last.startswith(_BEGINNINGS) or (not rest and self._held is None))
        if blocks and self._is_greeting:
            self._is_greeting, begin[0] = False, True
        whole: list[bytes] = []
        cut: list[bytes] = []
        for position, block in enumerate(blocks):
            is_whole = begin[position] and begin[position + 1]
            (whole if is_whole else cut).append(block)
        return whole, cut


def _too_few_to_judge(rest: bytes) -> bool:
    return bool(rest) and any(begin.startswith(rest) for begin in _BEGINNINGS)
