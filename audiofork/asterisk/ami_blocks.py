"""Splits the AMI stream into messages, and drops those that an empty line in a value has split."""

from __future__ import annotations

_END = b"\r\n\r\n"
_BEGINNINGS = (b"Event: ", b"Response: ")


class Blocks:
    """Splits the stream of one connection into messages, without the empty line at their end.

    Asterisk writes values unchanged. An empty line in a value ends its message early, and the rest
    looks like another message. If the rest does not begin as messages do, both parts are dropped.
    If it does, it cannot be distinguished from a message. So an eventfilter (the last one of
    manager_audiofork.conf) keeps Asterisk from sending such events, and `channels` asks for values
    in a way that replaces line ends.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._held: bytes | None = None  # waits until it is clear how the next message begins
        self._is_greeting = True

    @property
    def waiting_bytes(self) -> int:
        """The size in bytes of the incomplete message."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the messages that are complete now, and the parts dropped because of a split.

        Chunks may split messages anywhere; an incomplete message is kept for the next call. The
        first message of a connection is the greeting, which may begin in any way.
        """
        # The end marker may have begun in the last chunk; bytes before that are not searched again.
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
        # A block is whole if it and the one after it begin as messages do.
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
