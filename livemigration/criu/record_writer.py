"""Writing image files: magic numbers, then records of a 32-bit size and a protobuf message."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from livemigration.criu.magic import COMMON_MAGIC, INVENTORY_MAGIC, SERVICE_MAGIC, STATS_MAGIC

_U32: Final = struct.Struct("<I")


def header(magic: int) -> bytes:
    """What an image begins with."""
    if magic == INVENTORY_MAGIC:
        return _U32.pack(magic)
    first = SERVICE_MAGIC if magic == STATS_MAGIC else COMMON_MAGIC
    return _U32.pack(first) + _U32.pack(magic)


def record(message: Message) -> bytes:
    """A message with its size before it."""
    body = message.SerializeToString(deterministic=True)
    return _U32.pack(len(body)) + body


def image(magic: int, messages: Iterable[Message]) -> bytes:
    """A whole image file."""
    return header(magic) + b"".join(record(message) for message in messages)


def write_image(file: Path, magic: int, *messages: Message) -> None:
    """Writes an image file. Raises OSError."""
    file.write_bytes(image(magic, messages))
