import audioop
import math
import random
import struct

import pytest

from testbed.blocks import (
    MAX_AMPLITUDE,
    Report,
    decode,
    find_blocks,
    make_blocks,
    peak,
    report,
    rms_dbfs,
    slin_blocks,
)


def asterisk_sample(code: int) -> int:
    """What main/ulaw.c computes: sign, exponent and mantissa are stored inverted."""
    bits = 255 - code
    exponent, mantissa = (bits & 0x70) >> 4, bits & 0x0F
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return -magnitude if bits & 0x80 else magnitude


def test_decode_equals_asterisk_for_every_code() -> None:
    samples = struct.unpack("<256h", decode(bytes(range(256))))
    assert list(samples) == [asterisk_sample(code) for code in range(256)]


def test_blocks_survive_being_encoded_again() -> None:
    ulaw = b"".join(make_blocks(50))
    assert audioop.lin2ulaw(decode(ulaw), 2) == ulaw


def test_make_blocks_are_distinct_noise_without_zero_codes() -> None:
    blocks = make_blocks(1000, seed=3)
    assert len(set(blocks)) == 1000
    assert {len(block) for block in blocks} == {160}
    assert not {0x7F, 0xFF} & set(b"".join(blocks))
    assert all(-30 < rms_dbfs(decode(block)) < -10 for block in blocks)


def test_make_blocks_depend_on_the_seed_alone() -> None:
    assert make_blocks(5, seed=1) == make_blocks(5, seed=1)
    assert make_blocks(5, seed=1) != make_blocks(5, seed=2)


def test_slin_blocks_keep_the_limit() -> None:
    blocks = slin_blocks(100, seed=1, limit=500)
    assert len(set(blocks)) == 100
    assert {len(block) for block in blocks} == {320}
    assert 400 < peak(b"".join(blocks)) <= 500


@pytest.mark.parametrize(("rate", "size"), [(8000, 320), (16000, 640), (44100, 1764)])
def test_slin_blocks_last_20_ms_at_any_rate(rate: int, size: int) -> None:
    blocks = slin_blocks(50, seed=1, sample_rate=rate)
    assert {len(block) for block in blocks} == {size}
    assert len({block[:16] for block in blocks}) == 50


def test_find_blocks_takes_their_size_from_the_blocks() -> None:
    """A block of 16000 Hz of which only 10 ms arrived is missing."""
    blocks = slin_blocks(20, seed=1, sample_rate=16000)
    stream = bytes(54).join(blocks[:10]) + blocks[10][:320] + b"".join(blocks[11:])
    assert find_blocks(stream, blocks) == [n for n in range(20) if n != 10]


@pytest.fixture(scope="module")
def blocks() -> list[bytes]:
    return [decode(block) for block in make_blocks(20)]


@pytest.mark.parametrize("shift_samples", [0, 1, 79, 160, 1001])
def test_find_blocks_at_any_sample_offset(blocks: list[bytes], shift_samples: int) -> None:
    stream = random.Random(1).randbytes(2 * shift_samples) + b"".join(blocks) + bytes(100)
    assert find_blocks(stream, blocks) == list(range(20))


def test_find_blocks_with_gaps_of_odd_length(blocks: list[bytes]) -> None:
    stream = bytes(54).join(blocks)
    assert find_blocks(stream, blocks) == list(range(20))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param([0, 1, 3], Report(3, 1, 0, 0), id="missing"),
        pytest.param([0, 1, 1, 2, 3], Report(4, 0, 1, 0), id="duplicated"),
        pytest.param([0, 2, 1, 3], Report(4, 0, 0, 1), id="out-of-order"),
        pytest.param([3, 0, 0, 1], Report(3, 1, 1, 2), id="all"),
        pytest.param([], Report(0, 4, 0, 0), id="nothing"),
    ],
)
def test_report_counts(blocks: list[bytes], order: list[int], expected: Report) -> None:
    found = find_blocks(b"".join(blocks[index] for index in order), blocks)
    assert found == order
    assert report(found, 4) == expected
    assert not report(found, 4).intact


def test_report_with_only_some_blocks_sent() -> None:
    assert report([0, 1, 4], [0, 1, 4]).intact


@pytest.mark.parametrize("byte", [0, 160, 319], ids=["first", "middle", "last"])
def test_find_blocks_one_bit_changed_is_missing(blocks: list[bytes], byte: int) -> None:
    stream = bytearray(b"".join(blocks))
    stream[7 * 320 + byte] ^= 1
    assert find_blocks(bytes(stream), blocks) == [n for n in range(20) if n != 7]


def test_find_blocks_cut_short_is_missing(blocks: list[bytes]) -> None:
    assert find_blocks(b"".join(blocks)[:-2], blocks) == list(range(19))


def test_find_blocks_wants_slin() -> None:
    with pytest.raises(ValueError, match="expected slin blocks of at least 320 bytes, got 160"):
        find_blocks(b"", make_blocks(2))


def test_find_blocks_wants_one_length(blocks: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"one length, got lengths \[320, 640\]"):
        find_blocks(b"", [blocks[0], blocks[1] + blocks[2]])


def test_find_blocks_wants_different_beginnings(blocks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="1 blocks begin like another one"):
        find_blocks(b"", [blocks[0], blocks[0]])


def test_loudness() -> None:
    assert rms_dbfs(bytes(320)) == -math.inf
    assert rms_dbfs(struct.pack("<h", -32768) * 160) == 0.0
    assert peak(struct.pack("<3h", 5, -9, 8)) == 9
    assert peak(b"".join(decode(block) for block in make_blocks(100))) <= MAX_AMPLITUDE
