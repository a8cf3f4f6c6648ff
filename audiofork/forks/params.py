"""Parameters that a request gives to its server: `a=1&b=2`, percent-encoded."""

from __future__ import annotations

from urllib.parse import parse_qsl

MAX_PARAMS = 100
MAX_PARAMS_BYTES = 8192  # names and values of one fork, in total


def parse_params(text: str) -> dict[str, str]:
    """Return parameters by name; if a name appears twice, its last value counts.

    Raises:
        ValueError: The text says what is expected.
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_PARAMS,
        )
    except ValueError:  # the value of a parameter may be a secret, so it is not repeated
        raise ValueError(
            f"expected name=value, joined by &, percent-encoded, {MAX_PARAMS} at most"
        ) from None
    if not all(name for name, _ in pairs):
        raise ValueError("a parameter has no name")
    return dict(pairs)


def check_size(params: dict[str, str]) -> None:
    """Raise ValueError if parameters are too long in total."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in params.items())
    if size > MAX_PARAMS_BYTES:
        raise ValueError(f"longer than {MAX_PARAMS_BYTES} bytes, all together")
