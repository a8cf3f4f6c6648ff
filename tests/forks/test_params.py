import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.forks.params import MAX_PARAMS, MAX_PARAMS_BYTES, check_size, parse_params


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&b=2&a=3", {"a": "3", "b": "2"}),
        ("a=&b=%26%3D%C3%BC+x", {"a": "", "b": "&=ü x"}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_parse_params(text: str, params: dict[str, str]) -> None:
    assert parse_params(text) == params


@pytest.mark.parametrize(
    "text",
    ["a", "=S3CRET", "a=S3CRET&", "&a=S3CRET", "a=%FFS3CRET", "a=S3CRET&b", "x=S3CRET&" * 101],
)
def test_parse_params_that_are_none_are_refused_without_their_values(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (any text but the value's)
        parse_params(text)
    assert "S3CRET" not in str(caught.value)


@given(st.text())
def test_parse_params_any_text_gives_params_or_a_refusal(text: str) -> None:
    try:
        params = parse_params(text)
    except ValueError:
        return
    assert len(params) <= MAX_PARAMS
    assert all(params)


def test_params_of_the_longest_length_are_taken_and_longer_ones_refused() -> None:
    check_size({"a": "x" * (MAX_PARAMS_BYTES - 1)})
    with pytest.raises(ValueError, match="^longer than 8192 bytes, all together$"):
        check_size({"a": "x" * MAX_PARAMS_BYTES})
