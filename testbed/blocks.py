"""Makes numbered blocks of audio, and finds them again in what arrived.

A block is 20 ms of noise that occurs once, so its place in a received stream
proves which frames came through, in which order, and that no bit was changed.

µ-law blocks avoid both codes for zero: 0x7F and 0xFF decode to the same sample,
so a block with 0x7F would come back as another one when Asterisk encodes it again.
"""

import audioop
import math
import random
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

FRAMES_PER_S = 50  # of 20 ms
ULAW_BYTES = 160  # 8000 Hz * 0.020 s * 1 byte
MIN_SLIN_BYTES = 320  # 8000 Hz * 0.020 s * 2 bytes

KEY_BYTES = 16  # 8 samples of noise: enough to be unique, and checked to be

# Loud enough to stand out from silence, quiet enough that two mixed blocks do not saturate.
MIN_AMPLITUDE = 100
MAX_AMPLITUDE = 8192


def decode(ulaw: bytes) -> bytes:
    """Decode µ-law of any length to slin, with the values Asterisk's codec_ulaw gives.

    Source: main/ulaw.c, ast_ulaw_init; equal to audioop for all 256 codes.
    """
    return audioop.ulaw2lin(ulaw, 2)


def _block_codes() -> bytes:
    codes = bytearray()
    for code in range(256):
        (sample,) = struct.unpack("<h", decode(bytes([code])))
        if MIN_AMPLITUDE <= abs(sample) <= MAX_AMPLITUDE:
            codes.append(code)
    return bytes(codes)


def make_blocks(count: int, seed: int = 0) -> list[bytes]:
    """Make numbered µ-law blocks of 160 bytes, ready to be RTP payloads.

    The same seed gives the same blocks. No two share their first 8 samples.
    """
    rng = random.Random(seed)
    codes = _block_codes()
    blocks: dict[bytes, bytes] = {}
    while len(blocks) < count:
        block = bytes(rng.choices(codes, k=ULAW_BYTES))
        blocks.setdefault(block[: KEY_BYTES // 2], block)
    return list(blocks.values())


def slin_blocks(
    count: int, seed: int = 0, *, limit: int = MAX_AMPLITUDE, sample_rate: int = 8000
) -> list[bytes]:
    """Make numbered slin blocks of 20 ms, 320 bytes at 8000 Hz, 640 at 16000 Hz.

    Samples are uniform in -limit..limit and use every bit, so most of them do
    not survive µ-law or resampling: look for these blocks only where audio
    stays slin of this rate. In RTP they go through rtp.swap_bytes first.
    """
    rng = random.Random(seed)
    values = range(-limit, limit + 1)
    samples = sample_rate // FRAMES_PER_S
    blocks: dict[bytes, bytes] = {}
    while len(blocks) < count:
        block = struct.pack(f"<{samples}h", *rng.choices(values, k=samples))
        blocks.setdefault(block[:KEY_BYTES], block)
    return list(blocks.values())


def find_blocks(stream: bytes, blocks: Sequence[bytes]) -> list[int]:
    """List the blocks that a stream holds bit-exact, in stream order.

    Args:
        stream: slin, whole samples, from the first one received.
        blocks: slin blocks of one length; µ-law ones go through decode() first.

    Returns:
        Index of each block found, at whatever sample offset it lies. A block
        found twice is listed twice.
    """
    size = _block_size(blocks)
    keys = {block[:KEY_BYTES] for block in blocks}
    if len(keys) < len(blocks):
        raise ValueError(f"{len(blocks) - len(keys)} blocks begin like another one")
    found: list[tuple[int, int]] = []
    for index, block in enumerate(blocks):
        offset = stream.find(block)
        while offset >= 0:
            is_whole_samples = offset % 2 == 0
            if is_whole_samples:
                found.append((offset, index))
            offset = stream.find(block, offset + (size if is_whole_samples else 1))
    return [index for _, index in sorted(found)]


def _block_size(blocks: Sequence[bytes]) -> int:
    sizes = {len(block) for block in blocks}
    if len(sizes) != 1:
        raise ValueError(f"expected blocks of one length, got lengths {sorted(sizes)}")
    (size,) = sizes
    if size < MIN_SLIN_BYTES:
        raise ValueError(f"expected slin blocks of at least {MIN_SLIN_BYTES} bytes, got {size}")
    return size


@dataclass(frozen=True)
class Report:
    """What became of the blocks that were sent. All fields count blocks."""

    found: int  # different ones
    missing: int
    duplicated: int  # arrivals beyond the first of each
    out_of_order: int  # first arrivals after a block with a higher index

    @property
    def intact(self) -> bool:
        """Whether each block arrived once and in order."""
        return not (self.missing or self.duplicated or self.out_of_order)


def report(found: Sequence[int], expected: int | Collection[int]) -> Report:
    """Compare find_blocks() with what was sent.

    Args:
        found: Indices in the order of arrival.
        expected: How many blocks were sent, or the indices of those that were.
    """
    wanted = set(range(expected) if isinstance(expected, int) else expected)
    seen: set[int] = set()
    highest = -1
    out_of_order = 0
    for index in found:
        if index not in seen and index < highest:
            out_of_order += 1
        seen.add(index)
        highest = max(highest, index)
    return Report(
        found=len(seen),
        missing=len(wanted - seen),
        duplicated=len(found) - len(seen),
        out_of_order=out_of_order,
    )


def peak(slin: bytes) -> int:
    """Largest absolute sample, 0 to 32768."""
    return audioop.max(slin, 2)


def rms_dbfs(slin: bytes) -> float:
    """Loudness relative to full scale in dB; minus infinity for digital silence."""
    rms = audioop.rms(slin, 2)
    return 20 * math.log10(rms / 32768) if rms else -math.inf
