"""Image directories made by hand: an independent, minimal writer of CRIU's format."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

PAGE = 4096
MAGIC = {
    "pstree": 0x50273030,
    "pagemap": 0x56084025,
    "core": 0x55053847,
    "mm": 0x57492820,
    "files": 0x56303138,
    "memfd": 0x48453499,
}
REGULAR, ANON_PRIVATE, HEAP = 1, 1 << 9, 1 << 5
PARENT, LAZY, PRESENT = 1, 2, 4


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message: numbers as varints, bytes as they are."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(value)
    return out


class ImageBuilder:
    """Writes one directory: by default one process 7 with a mapping of 16 pages at 0x10000."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def write(self, name: str, *records: bytes) -> Path:
        file = self.path / f"{name}.img"
        magic = MAGIC[name.partition("-")[0]]
        body = b"".join(struct.pack("<I", len(record)) + record for record in records)
        file.write_bytes(struct.pack("<II", 0x54564319, magic) + body)
        return file

    def inventory(self, version: int | None = 2) -> None:
        record = message((1, version)) if version is not None else message((8, 12345))
        data = struct.pack("<II", 0x58313116, len(record)) + record
        (self.path / "inventory.img").write_bytes(data)

    def vma(
        self,
        start: int = 0x10000,
        pages: int = 16,
        *,
        status: int = REGULAR | ANON_PRIVATE,
        prot: int = 3,
        flags: int = 0x22,
        shmid: int = 0,
        pgoff: int = 0,
    ) -> bytes:
        end = start + pages * PAGE
        fields = [(1, start), (2, end), (3, pgoff), (4, shmid), (5, prot), (6, flags), (7, status)]
        return message(*fields)

    def process(
        self,
        *vmas: bytes,
        pid: int = 7,
        page_size: int = PAGE,
        brk: tuple[int, int] = (0x900000, 0x900000),
        comm: bytes = b"prog",
    ) -> None:
        self.write(f"core-{pid}", message((1, 1), (3, message((1, 1), (6, comm)))))
        fields: list[tuple[int, int | bytes]] = [(6, brk[0]), (7, brk[1])]
        fields += [(13, value) for value in (16, 0x1234, 6, page_size, 0, 0)]
        fields += [(14, vma) for vma in vmas or (self.vma(),)]
        self.write(f"mm-{pid}", message(*fields))

    def tree(self, *tasks: tuple[int, int]) -> None:
        self.write("pstree", *(message((1, pid), (2, ppid)) for pid, ppid in tasks or ((7, 0),)))

    def pages(
        self,
        *entries: tuple[int, int, int],
        name: str = "pagemap-7",
        pages_id: int = 1,
        dialect: str = "4.2",
        fill: bytes = b"",
        page_size: int = PAGE,
    ) -> None:
        """Entries are (address, pages, flags); page i of the file is all fill[i], or i + 1."""
        records = [message((1, pages_id))]
        for start, count, flags in entries:
            if dialect == "4.2":
                records.append(message((1, start), (2, 0), (4, flags), (5, count)))
            elif dialect == "4.1":
                records.append(message((1, start), (2, count), (4, flags)))
            else:  # before there were flags
                records.append(message((1, start), (2, count), (3, flags & PARENT)))
        self.write(name, *records)
        total = sum(count for _, count, flags in entries if flags & PRESENT)
        values = fill or bytes(i % 255 + 1 for i in range(total))
        data = b"".join(bytes([value]) * page_size for value in values[:total])
        (self.path / f"pages-{pages_id}.img").write_bytes(data)

    def simple(self) -> ImageBuilder:
        """All that one process needs, with pages 0, 1 and 5 of its mapping."""
        self.inventory()
        self.tree()
        self.process()
        self.pages((0x10000, 2, PRESENT), (0x15000, 1, PRESENT | LAZY))
        return self


@pytest.fixture
def images(tmp_path: Path) -> ImageBuilder:
    return ImageBuilder(tmp_path / "images")
