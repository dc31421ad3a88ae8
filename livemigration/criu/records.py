"""An image file: one or two magic numbers, then records of a 32-bit size and a protobuf message."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import COMMON_MAGIC, INVENTORY_MAGIC, SERVICE_MAGIC, STATS_MAGIC

M = TypeVar("M", bound=Message)

_U32: Final = struct.Struct("<I")
_DUMP_AGAIN: Final = "dump again, or copy the whole directory again"


MOST_BYTES: Final = 512 << 20
"""No image beside the raw pages is larger: a pagemap of 64 GiB of which every second page is there
takes less."""


def read_file(file: Path, advice: str, most: int = MOST_BYTES) -> bytes:
    """All bytes of a file. Raises ImageError, with `advice` if there is no such file."""
    try:
        size = check_regular(file)
        if size > most:
            raise ImageError(file, f"{size} bytes are too many for such an image", _DUMP_AGAIN)
        return file.read_bytes()
    except FileNotFoundError:
        raise ImageError(file, "no such file", advice) from None
    except OSError as error:
        raise ImageError(file, error.strerror or str(error), "make it readable") from None


def check_regular(file: Path) -> int:
    """A file's size; ImageError if it is another thing, which may never end. Raises OSError."""
    found = file.stat()
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    what = "Is a directory" if stat.S_ISDIR(found.st_mode) else "is no regular file"
    raise ImageError(file, what, _DUMP_AGAIN)


class Records:
    """The records of one image file, in order."""

    def __init__(self, file: Path, magic: int, advice: str, data: bytes | None = None) -> None:
        """Reads the file, if its bytes are not given, and checks its magic numbers.

        Raises ImageError.
        """
        self.file = file
        self._data = read_file(file, advice) if data is None else data
        if magic == INVENTORY_MAGIC:
            expected = [magic]
        else:
            expected = [SERVICE_MAGIC if magic == STATS_MAGIC else COMMON_MAGIC, magic]
        self._at = _U32.size * len(expected)
        header = self._data[: self._at]
        if len(header) < self._at:
            raise ImageError(file, f"cut off after {len(header)} bytes", _DUMP_AGAIN)
        if list(struct.unpack(f"<{len(expected)}I", header)) != expected:
            raise ImageError(
                file,
                f"begins with {header.hex()}, which is not what CRIU begins such an image with",
                "give a directory written by criu dump, on a little-endian machine",
            )

    def next(self, message: type[M]) -> M | None:
        """The next record as an instance of `message`, None at the end. Raises ImageError."""
        if self._at == len(self._data):
            return None
        body = self._at + _U32.size
        if body > len(self._data):
            raise ImageError(self.file, "cut off within a record's size", _DUMP_AGAIN)
        (size,) = _U32.unpack_from(self._data, self._at)
        if size > len(self._data) - body:
            raise ImageError(
                self.file,
                f"cut off: a record of {size} bytes at {self._at}, {len(self._data)} bytes in all",
                _DUMP_AGAIN,
            )
        self._at = body + size
        try:
            return message.FromString(self._data[body : self._at])
        except DecodeError:
            raise ImageError(
                self.file, f"the record of {size} bytes at {body} is no protobuf", _DUMP_AGAIN
            ) from None

    def first(self, message: type[M]) -> M:
        """The next record, which must be there. Raises ImageError."""
        record = self.next(message)
        if record is None:
            raise ImageError(self.file, "has no record", _DUMP_AGAIN)
        return record

    def rest(self, message: type[M]) -> Iterator[M]:
        """All records to come. Raises ImageError."""
        while (record := self.next(message)) is not None:
            yield record

    def required(self, record: Message, field: str) -> Any:
        """A field of a record that must have it. Raises ImageError."""
        if not record.HasField(field):
            raise ImageError(self.file, f"a record has no {field}", _DUMP_AGAIN)
        return getattr(record, field)
