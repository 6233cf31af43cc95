"""A pickle's sizes, checked against the file before the unpickler believes them.

The unpickler reserves what an opcode promises: two gigabytes for a text of which five bytes follow,
or a memo table up to whatever index is named. This walk over the opcodes builds nothing. Runs of
opcodes of fixed length, which is nearly all of a map, are taken by one regular expression.
"""

from __future__ import annotations

import pickletools
import re
from typing import Final

__all__ = ["check_sizes"]

_LINE: Final = pickletools.UP_TO_NEWLINE
_PREFIX: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_FRAME: Final = 0x95
_LONG_BINPUT: Final = ord("r")
_PUT: Final = ord("p")
_STOP: Final = ord(".")

_LENGTHS: Final[dict[int, int]] = {
    ord(opcode.code): 0 if opcode.arg is None else opcode.arg.n for opcode in pickletools.opcodes
}
"""Opcode to the bytes of its argument, or to one of pickletools' marks for variable ones."""


def _fixed_runs() -> re.Pattern[bytes]:
    special = {_FRAME, _LONG_BINPUT, _STOP}
    kinds: dict[int, bytes] = {}
    for code, length in _LENGTHS.items():
        if length >= 0 and code not in special:
            kinds[length] = kinds.get(length, b"") + re.escape(bytes([code]))
    # Bounded runs: the expression remembers every repetition, 40 bytes for each of the file's.
    parts = [b"[%s]" % codes + b"." * length for length, codes in kinds.items()]
    return re.compile(b"(?:" + b"|".join(parts) + b"){1,4096}", re.DOTALL)


_FIXED: Final = _fixed_runs()


def check_sizes(raw: bytes) -> None:
    """Look for an opcode that promises more than the file holds.

    Raises:
        ValueError: When there is one, or the bytes are no opcodes up to a STOP.
    """
    at = 0
    while True:
        while run := _FIXED.match(raw, at):
            at = run.end()
        if at >= len(raw):
            raise ValueError("it ends before its STOP")
        if raw[at] == _STOP:
            return
        at = _after(raw, at)


def _after(raw: bytes, at: int) -> int:
    """Return where the opcode at ``at`` ends, one of variable length or of a size to be checked."""
    code = raw[at]
    length = _LENGTHS.get(code)
    if length is None:
        raise ValueError(f"byte {at} is no opcode")
    if length == _LINE:
        return _after_lines(raw, at)
    prefix = _PREFIX.get(length, length)
    number = int.from_bytes(raw[at + 1 : at + 1 + prefix], "little")
    end = at + 1 + prefix
    if code == _LONG_BINPUT:
        _check(number, len(raw))
    else:
        _check(number, len(raw) - end)
    return end if length >= 0 else end + number


def _after_lines(raw: bytes, at: int) -> int:
    lines = 2 if raw[at : at + 1] in b"ci" else 1  # GLOBAL and INST name a module and a class
    end = at
    for _ in range(lines):
        end = raw.find(b"\n", end + 1)
        if end < 0:
            raise ValueError("it ends inside a line")
    if raw[at] == _PUT:
        digits = raw[at + 1 : end]
        _check(int(digits) if digits.isdigit() and len(digits) < 20 else len(raw) + 1, len(raw))
    return end + 1


def _check(number: int, limit: int) -> None:
    if number > limit:
        raise ValueError(f"it promises {number} bytes or entries where it can hold {limit}")
