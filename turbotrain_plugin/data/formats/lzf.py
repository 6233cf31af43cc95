"""LZF, the compression of ``binary_compressed`` point clouds, bounded by the sizes it is given.

A stream is a row of tokens. Control byte ``c < 32``: ``c + 1`` bytes follow as they are. Else a
copy of what was written before: ``n = c >> 5`` (7: the next byte is added), ``n + 2`` bytes from
``((c & 31) << 8 | next byte) + 1`` bytes back; source and target may overlap.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_RATIO", "compress", "decompress"]

MAX_RATIO: Final = 88
"""Bytes that one byte can stand for: three make a copy of 264."""

_MAX_LITERAL: Final = 32
_MAX_COPY: Final = 264
_MAX_BACK: Final = 8192


def decompress(raw: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that a stream stands for.

    Raises:
        ValueError: When the stream is damaged or stands for another number of bytes.
    """
    out = bytearray()
    at, end = 0, len(raw)
    try:
        while at < end and len(out) <= size:
            control = raw[at]
            at += 1
            if control < _MAX_LITERAL:
                if at + control >= end:
                    raise ValueError("it ends inside a run of bytes")
                out += raw[at : at + control + 1]
                at += control + 1
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += raw[at]
                at += 1
            back = ((control & 31) << 8 | raw[at]) + 1
            at += 1
            _copy(out, back, length)
    except IndexError:
        raise ValueError("it ends inside a copy") from None
    if len(out) != size:
        raise ValueError(f"it stands for another number of bytes than the {size} expected")
    return bytes(out)


def _copy(out: bytearray, back: int, length: int) -> None:
    start = len(out) - back
    if start < 0:
        raise ValueError("a copy begins before the first byte")
    piece = out[start : start + length]
    # Where source and target overlap, the bytes between them repeat.
    out += (piece * (length // len(piece) + 1))[:length] if len(piece) < length else piece


def compress(raw: bytes) -> bytes:
    """Return a stream for ``raw``; greedy, with the last place of every three bytes remembered."""
    out = bytearray()
    last: dict[bytes, int] = {}
    at = literal = 0
    while at + 2 < len(raw):
        key = raw[at : at + 3]
        place = last.get(key, -1)
        last[key] = at
        if place < 0 or at - place > _MAX_BACK:
            at += 1
            continue
        length = _match(raw, place, at)
        _literals(out, raw[literal:at])
        _token(out, at - place, length)
        at += length
        literal = at
    _literals(out, raw[literal:])
    return bytes(out)


def _match(raw: bytes, place: int, at: int) -> int:
    length = 3
    limit = min(_MAX_COPY, len(raw) - at)
    while length < limit and raw[place + length] == raw[at + length]:
        length += 1
    return length


def _literals(out: bytearray, raw: bytes) -> None:
    for start in range(0, len(raw), _MAX_LITERAL):
        piece = raw[start : start + _MAX_LITERAL]
        out.append(len(piece) - 1)
        out += piece


def _token(out: bytearray, back: int, length: int) -> None:
    high, low = divmod(back - 1, 256)
    if length <= 8:
        out += bytes([(length - 2) << 5 | high, low])
    else:
        out += bytes([7 << 5 | high, length - 9, low])
