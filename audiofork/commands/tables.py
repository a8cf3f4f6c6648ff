"""Tables of text, as wide as what is in them."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterator, Mapping, Sequence

_INDENT = " " * 10


def aligned(
    columns: Sequence[str], cells: Sequence[Mapping[str, str]], numbers: Container[str]
) -> list[str]:
    """Return rows as lines with a heading.

    Args:
        columns: The names of the columns, which are their headings.
        cells: Each row, by the names of its columns.
        numbers: The columns that are aligned to the right.
    """
    rows = [{name: name for name in columns}, *cells]
    widths = {name: max(len(row[name]) for row in rows) for name in columns}
    return [
        "  ".join(
            row[name].rjust(widths[name]) if name in numbers else row[name].ljust(widths[name])
            for name in columns
        ).rstrip()
        for row in rows
    ]


def wrapped(texts: Sequence[str], width: int) -> Iterator[str]:
    """Yield texts as indented lines, without cutting any."""
    for text in filter(None, texts):
        yield from textwrap.wrap(
            text,
            max(width, len(_INDENT) + 20),
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        )
