"""Trace files written by hand, from what docs/workloads.md says of the format, right and wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import xxhash

Record = tuple[int, int, int, int, int]
"""time, page, first, last, stores"""

RECORDS: list[Record] = [
    (10, 0x4000, 0, 7, 1),
    (10, 0x4001, 4088, 4095, 2),
    (250, 0x4000, 16, 99, 30),
    (400, 0x7FFF0, 100, 163, 4),
    (999, 0x4000, 0, 4095, 5),
]


def header(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "predump.trace/1",
        "command": ["sort", "a file"],
        "page_size": 4096,
        "created_by": "by hand",
        "instructions_per_second": 1_000_000,
        "slice_instructions": 100,
        **changes,
    }


def chunk(number: int, of: Iterable[Record], /, **changes: Any) -> dict[str, Any]:
    """A chunk with the checksum that fits its columns; changes come after that."""
    rows = list(of)
    columns = {
        name: struct.pack(f"<{len(rows)}{kind}", *(row[at] for row in rows))
        for at, (name, kind) in enumerate(
            (("time", "Q"), ("page", "Q"), ("first", "H"), ("last", "H"), ("stores", "I"))
        )
    }
    checksum = xxhash.xxh3_64_intdigest(b"".join(columns.values()))
    return {"chunk": number, "records": len(rows), **columns, "checksum": checksum, **changes}


def footer(*chunks: list[Record], **changes: Any) -> dict[str, Any]:
    rows = [row for rows in chunks for row in rows]
    return {
        "end": True,
        "chunks": len(chunks),
        "records": len(rows),
        "stores": sum(row[4] for row in rows),
        "pages": len({row[1] for row in rows}),
        "instructions": 1000,
        "exit_code": 0,
        "complete": True,
        **changes,
    }


def good_items(*chunks: list[Record]) -> list[dict[str, Any]]:
    """The maps of a sound trace."""
    parts = [chunk(number, rows) for number, rows in enumerate(chunks)]
    return [header(), *parts, footer(*chunks)]


def packed(items: Iterable[Any]) -> bytes:
    return b"".join(msgpack.packb(item) for item in items)


def write(path: Path, items: Iterable[Any]) -> Path:
    path.write_bytes(packed(items))
    return path
