"""What lackey prints, and how stores become records of a slice and a page."""

from __future__ import annotations

import numpy as np
import pytest

from livemigration.workload.lackey import Coalescer, LackeyParser, Stores
from livemigration.workload.trace import Records

SAMPLE = b"""\
==4711== Lackey, an example Valgrind tool
==4711== Command: /bin/true
==4711==
I  04001090,3
 S 1ffefffe58,8
I  04001093,5
 L 04228e80,8
 M 0421c7cc,4
I  0400109b,2
I  0400109d,7
 S 1ffefffe50,16
 S 1ffefffff8,32
==4711== Counted 0 calls to main()
"""
"""As valgrind 3.19 prints it (addresses are padded to eight digits)."""
STORES = [
    (1, 0x1FFEFFFE58, 8),
    (2, 0x0421C7CC, 4),
    (4, 0x1FFEFFFE50, 16),
    (4, 0x1FFEFFFFF8, 32),
]

Store = tuple[int, int, int]


def parsed(parser: LackeyParser, *pieces: bytes) -> list[Store]:
    found: list[Store] = []
    for piece in pieces:
        stores = parser.feed(piece)
        found += zip(
            stores.times.tolist(), stores.addresses.tolist(), stores.sizes.tolist(), strict=True
        )
    return found


class TestParser:
    def test_stores_and_modifications_are_found_with_their_instruction(self) -> None:
        parser = LackeyParser()
        assert parsed(parser, SAMPLE) == STORES
        assert parser.instructions == 4

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
    def test_pieces_may_end_anywhere(self, size: int) -> None:
        parser = LackeyParser()
        pieces = [SAMPLE[at : at + size] for at in range(0, len(SAMPLE), size)]
        assert parsed(parser, *pieces) == STORES
        assert parser.instructions == 4

    def test_a_line_without_its_end_waits(self) -> None:
        parser = LackeyParser()
        assert parsed(parser, b"I  00,1\n S 10,8") == []
        assert parsed(parser, b"\n") == [(1, 0x10, 8)]

    @pytest.mark.parametrize(
        "line",
        [
            b" S xyz,8",
            b" S 10",
            b" S 10,",
            b" S ,8",
            b" S 10,8x",
            b" S 10,0",
            b" L 10,8",
            b"S 10,8",
            b"",
            b" S",
            b"==1== S 10,8",
            b"what the program itself says",
        ],
    )
    def test_other_lines_are_passed_over(self, line: bytes) -> None:
        parser = LackeyParser()
        assert parsed(parser, b" S 8,8\n" + line + b"\n S 18,8\n") == [(0, 8, 8), (0, 0x18, 8)]
        assert parser.instructions == 0

    def test_the_whole_address_space_is_understood(self) -> None:
        line = b" S ffffffffff600000,1\n M abcdef0123456789,4\n"
        assert parsed(LackeyParser(), line) == [
            (0, 0xFFFFFFFFFF600000, 1),
            (0, 0xABCDEF0123456789, 4),
        ]


def coalesced(stores: list[Store], *, slice_: int, pieces: int = 1) -> list[tuple[int, ...]]:
    coalescer = Coalescer(4096, slice_)
    rows: list[tuple[int, ...]] = []

    def keep(records: Records) -> None:
        rows.extend(
            zip(
                *(
                    getattr(records, name).tolist()
                    for name in ("time", "page", "first", "last", "stores")
                ),
                strict=True,
            )
        )

    length = -(-len(stores) // pieces)
    for at in range(0, len(stores), max(1, length)):
        part = stores[at : at + length]
        keep(
            coalescer.feed(
                Stores(
                    np.array([store[0] for store in part], dtype=np.uint64),
                    np.array([store[1] for store in part], dtype=np.uint64),
                    np.array([store[2] for store in part], dtype=np.uint32),
                )
            )
        )
    keep(coalescer.finish())
    return rows


class TestCoalescer:
    def test_stores_of_a_slice_to_a_page_are_one_record(self) -> None:
        stores = [(3, 0x5010, 8), (5, 0x5100, 4), (9, 0x5008, 8)]
        assert coalesced(stores, slice_=10) == [(3, 5, 8, 0x103, 3)]

    def test_slices_begin_at_multiples_of_their_length(self) -> None:
        stores = [(8, 0x5000, 8), (9, 0x5000, 8), (10, 0x5000, 8), (19, 0x5000, 8), (20, 0x5000, 8)]
        assert coalesced(stores, slice_=10) == [(8, 5, 0, 7, 2), (10, 5, 0, 7, 2), (20, 5, 0, 7, 1)]

    def test_pages_of_a_slice_come_in_the_order_of_their_first_store(self) -> None:
        stores = [(1, 0x9000, 1), (2, 0x3000, 1), (3, 0x6000, 1), (4, 0x3000, 1)]
        assert [row[:2] for row in coalesced(stores, slice_=100)] == [(1, 9), (2, 3), (3, 6)]

    def test_a_store_across_pages_is_one_to_each(self) -> None:
        assert coalesced([(1, 0x5FFC, 8)], slice_=10) == [(1, 5, 0xFFC, 0xFFF, 1), (1, 6, 0, 3, 1)]
        assert coalesced([(1, 0x5FFF, 4098)], slice_=10) == [
            (1, 5, 4095, 4095, 1),
            (1, 6, 0, 4095, 1),
            (1, 7, 0, 0, 1),
        ]

    def test_a_slice_of_one_instruction_keeps_every_store_apart(self) -> None:
        stores = [(at, 0x5000, 8) for at in range(1, 50)]
        assert coalesced(stores, slice_=1) == [(at, 5, 0, 7, 1) for at in range(1, 50)]

    def test_no_stores_are_no_records(self) -> None:
        assert coalesced([], slice_=10) == []

    @pytest.mark.parametrize("pieces", [1, 2, 7, 100, 1000])
    def test_pieces_do_not_matter(self, pieces: int) -> None:
        """Against a plain account of the same stores."""
        generator = np.random.default_rng(5)
        times = np.sort(generator.integers(0, 5000, 1000)).tolist()
        stores = [
            (time, int(generator.integers(0, 20)) * 4096 + int(generator.integers(0, 4000)), 8)
            for time in times
        ]
        plain: dict[tuple[int, int], list[int]] = {}
        for time, address, size in stores:
            page, first = divmod(address, 4096)
            entry = plain.setdefault((time // 250, page), [time, first, first + size - 1, 0])
            entry[1] = min(entry[1], first)
            entry[2] = max(entry[2], first + size - 1)
            entry[3] += 1
        expected = {
            (entry[0], page, entry[1], entry[2], entry[3]) for (_, page), entry in plain.items()
        }
        rows = coalesced(stores, slice_=250, pieces=pieces)
        assert len(rows) == len(expected)
        assert set(rows) == expected
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
