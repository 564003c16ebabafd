"""Rows in PostgreSQL's binary COPY format, built a column at a time.

Layout (PostgreSQL manual, COPY, "Binary Format"): a header; for each row the number of fields as int16, and for each
field its length as int32 (-1 for NULL) and its bytes, all big-endian; a trailer of -1. Rows with the same fields
present have the same layout, so they are one structured array.
"""

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from collector.template import Floats, Integers

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
TRAILER: Final = struct.pack(">h", -1)

# PostgreSQL counts microseconds from 2000-01-01.
POSTGRES_EPOCH_MICROSECONDS: Final = 946_684_800_000_000

Column = tuple[npt.NDArray[Any], str]
"""A column without NULLs and its type on the wire: >i8, >i4, >i2 or >f8."""


def timestamps(unix_nano: Integers) -> Integers:
    """timestamptz values of Unix nanoseconds."""
    return unix_nano // 1_000 - POSTGRES_EPOCH_MICROSECONDS


def rows(keys: tuple[Column, ...], values: Floats, present: npt.NDArray[np.bool_]) -> list[bytes]:
    """Rows of key columns followed by double precision measures, NULL where not present; without header and trailer.

    ``values`` and ``present`` have shape (rows, measures). Rows are grouped by which measures they have
    (at most 64 measures).
    """
    if not len(values):
        return []
    packed = np.zeros((len(values), 8), dtype=np.uint8)
    bits = np.packbits(present, axis=1)
    packed[:, : bits.shape[1]] = bits
    patterns = packed.view(np.uint64).reshape(-1)
    if (patterns == patterns[0]).all():
        return [_block(keys, values, present[0])]
    distinct, members = np.unique(patterns, return_inverse=True)
    blocks = []
    for number in range(len(distinct)):
        chosen = np.flatnonzero(members == number)
        chosen_keys = tuple((column[chosen], kind) for column, kind in keys)
        blocks.append(_block(chosen_keys, values[chosen], present[chosen[0]]))
    return blocks


def _block(keys: tuple[Column, ...], values: Floats, present: npt.NDArray[np.bool_]) -> bytes:
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for number, (_, kind) in enumerate(keys):
        layout += [(f"kl{number}", ">i4"), (f"k{number}", kind)]
    for number, there in enumerate(present):
        layout.append((f"vl{number}", ">i4"))
        if there:
            layout.append((f"v{number}", ">f8"))
    block = np.empty(len(values), dtype=np.dtype(layout))
    block["fields"] = len(keys) + len(present)
    for number, (column, kind) in enumerate(keys):
        block[f"kl{number}"] = np.dtype(kind).itemsize
        block[f"k{number}"] = column
    for number, there in enumerate(present):
        block[f"vl{number}"] = 8 if there else -1
        if there:
            block[f"v{number}"] = values[:, number]
    return block.tobytes()
