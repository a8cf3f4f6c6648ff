"""Reads JSON that others have sent, whatever it holds."""

from __future__ import annotations

import json
from typing import Any


def parsed_json(text: str | bytes, **options: Any) -> Any:
    """Return the value that a text of JSON stands for.

    Args:
        text: The text; bytes are UTF-8, UTF-16 or UTF-32.
        options: Of json.loads.

    Raises:
        ValueError: It is no JSON, has brackets thousands deep, or a number of thousands of digits.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("too many brackets within each other") from None
