"""The codecs that audio is sent in: from slin, 16-bit little-endian, to bytes on the wire."""

from __future__ import annotations

import audioop
from collections.abc import Callable

from audiofork.link.messages import Codec

Encode = Callable[[bytes], bytes]
Decode = Callable[[bytes], bytes]


def encoder(codec: Codec) -> Encode:
    """Return what encodes samples; each is taken for itself, so several channels stay so."""
    return _ENCODERS[codec]


def decoder(codec: Codec) -> Decode:
    """Return what decodes bytes on the wire to samples, of which the last may lack a byte."""
    return _DECODERS[codec]


def _as_it_is(samples: bytes) -> bytes:
    return samples


def _ulaw(samples: bytes) -> bytes:
    return audioop.lin2ulaw(samples, 2)


def _alaw(samples: bytes) -> bytes:
    return audioop.lin2alaw(samples, 2)


def _from_ulaw(encoded: bytes) -> bytes:
    return audioop.ulaw2lin(encoded, 2)


def _from_alaw(encoded: bytes) -> bytes:
    return audioop.alaw2lin(encoded, 2)


_DECODERS: dict[Codec, Decode] = {
    Codec.SLIN: _as_it_is,
    Codec.ULAW: _from_ulaw,
    Codec.ALAW: _from_alaw,
}
_ENCODERS: dict[Codec, Encode] = {Codec.SLIN: _as_it_is, Codec.ULAW: _ulaw, Codec.ALAW: _alaw}
BITS = {Codec.SLIN: 16, Codec.ULAW: 8, Codec.ALAW: 8}
