"""Page digests, comparison and gathering, against xxhash and NumPy."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from livemigration import digest

PAGE_SIZES = [4096, 16384, 65536]


def make_content(page_size: int, frames: int = 9) -> NDArray[np.uint8]:
    content = np.random.default_rng(page_size).integers(0, 256, (frames, page_size), np.uint8)
    content[0] = 0
    return content


@pytest.mark.parametrize("page_size", PAGE_SIZES)
class TestPageDigests:
    def test_are_xxh3_of_the_pages_bytes(self, page_size: int) -> None:
        content = make_content(page_size)
        rows = np.array([3, 8, 1, 3])
        expected = [xxhash.xxh3_64_intdigest(content[row].tobytes()) for row in rows]
        assert digest.page_digests(content, rows).tolist() == expected

    def test_holes_and_zero_pages_have_the_digest_of_a_page_of_zeros(self, page_size: int) -> None:
        zeros = xxhash.xxh3_64_intdigest(bytes(page_size))
        assert digest.zero_page_digest(page_size) == zeros
        found = digest.page_digests(make_content(page_size), np.array([-1, 0]))
        assert found.tolist() == [zeros, zeros]

    def test_a_frame_full_of_zeros_has_the_same_digest_as_a_hole(self, page_size: int) -> None:
        content = make_content(page_size)
        content[4] = 0
        found = digest.page_digests(content, np.array([4, -1]))
        assert found[0] == found[1]

    def test_of_a_payload_equal_those_of_the_rows_it_came_from(self, page_size: int) -> None:
        content, rows = make_content(page_size), np.array([5, -1, 2])
        payload = digest.gather_bytes(content, rows)
        expected = digest.page_digests(content, rows)
        assert digest.page_digests_of(payload, page_size).tolist() == expected.tolist()

    def test_see_a_change_of_any_single_byte_at_the_edges_of_stripes(self, page_size: int) -> None:
        page = make_content(page_size)[1]
        seen = {digest.digest_of(page)}
        places = [0, 1, 63, 64, 1023, 1024, page_size - 65, page_size - 64, page_size - 1]
        for place in places:
            changed = page.copy()
            changed[place] ^= 1
            seen.add(digest.digest_of(changed))
        assert len(seen) == len(places) + 1


def test_payload_at_an_odd_address_has_the_same_digests() -> None:
    content, rows = make_content(4096), np.array([1, 2])
    for shift in range(9):
        message = digest.gather_bytes(content, rows, b"x" * shift)
        found = digest.page_digests_of(memoryview(message)[shift:], 4096)
        assert found.tolist() == digest.page_digests(content, rows).tolist()


def test_result_goes_into_the_callers_array() -> None:
    out = np.zeros(5, np.uint64)
    content = make_content(4096)
    returned = digest.page_digests(content, np.array([1, 2]), out[1:3])
    assert np.shares_memory(returned, out)
    assert out[0] == out[3] == out[4] == 0
    assert out[1:3].tolist() == digest.page_digests(content, np.array([1, 2])).tolist()


def test_content_that_may_not_be_written_is_fine_and_stays_as_it_is() -> None:
    content = make_content(4096)
    expected = digest.page_digests(content, np.array([1]))
    assert content.flags.writeable
    content.flags.writeable = False
    assert digest.page_digests(content, np.array([1])) == expected


def test_no_rows_no_digests() -> None:
    assert digest.page_digests(make_content(4096), np.array([], np.int64)).size == 0
    assert digest.page_digests_of(b"", 4096).size == 0


def test_row_past_the_end_is_refused_everywhere() -> None:
    content, rows = make_content(4096), np.array([9])
    page = np.zeros(4096, np.uint8)
    for call in (
        lambda: digest.page_digests(content, rows),
        lambda: digest.pages_equal(content, rows, page),
        lambda: digest.gather_pages(content, rows, page),
        lambda: digest.gather_bytes(content, rows),
    ):
        with pytest.raises(IndexError, match="row 9 of a content array of 9 frames"):
            call()


def test_sizes_that_do_not_fit_are_refused() -> None:
    content, rows = make_content(4096), np.array([1, 2])
    with pytest.raises(ValueError, match="not whole pages of 4096 bytes"):
        digest.page_digests_of(bytes(4097), 4096)
    with pytest.raises(ValueError, match="page size 1000"):
        digest.page_digests_of(bytes(1000), 1000)
    with pytest.raises(ValueError, match="2 pages to compare with 1"):
        digest.pages_equal(content, rows, bytes(4096))
    with pytest.raises(ValueError, match="do not fill 4096 bytes"):
        digest.gather_pages(content, rows, np.zeros(4096, np.uint8))
    with pytest.raises(ValueError, match="240 bytes: digests are for 241"):
        digest.digest_of(bytes(240))


class TestMemoryDigest:
    def test_is_blake2b_of_description_digests_and_their_number(self) -> None:
        digests = np.array([1, 2**64 - 1, 7], np.uint64)
        text = struct.pack("<Q", 4) + b"vmas" + struct.pack("<QQQ", 1, 2**64 - 1, 7)
        text += struct.pack("<Q", 3)
        state = hashlib.blake2b(text, digest_size=32, person=b"predump.memory/1")
        assert digest.memory_digest(b"vmas", digests) == state.hexdigest()

    def test_does_not_depend_on_how_the_digests_are_cut(self) -> None:
        digests = np.arange(10, dtype=np.uint64)
        whole = digest.memory_digest(b"v", digests)
        assert digest.memory_digest(b"v", digests[:3], digests[3:3], digests[3:]) == whole

    def test_depends_on_order_length_and_description(self) -> None:
        digests = np.arange(4, dtype=np.uint64)
        found = {
            digest.memory_digest(b"v", digests),
            digest.memory_digest(b"v", digests[::-1]),
            digest.memory_digest(b"v", digests[:3]),
            digest.memory_digest(b"w", digests),
            # The same bytes, with the border between description and digests moved.
            digest.memory_digest(b"v" + bytes(8), digests[1:]),
        }
        assert len(found) == 5


def test_buffer_checksum_is_xxh3_of_any_buffer() -> None:
    for length in (0, 1, 17, 4096, 1 << 20):
        data = np.random.default_rng(length).integers(0, 256, length, np.uint8)
        expected = xxhash.xxh3_64_intdigest(data.tobytes())
        assert digest.buffer_checksum(data) == expected
        assert digest.buffer_checksum(data.tobytes()) == expected
        assert digest.buffer_checksum(memoryview(data.tobytes())) == expected


@pytest.mark.parametrize("page_size", PAGE_SIZES)
class TestContent:
    def test_pages_equal_finds_exactly_the_changed_pages(self, page_size: int) -> None:
        content, rows = make_content(page_size), np.array([1, 2, -1, 0, 3, -1])
        data = np.zeros(6 * page_size, np.uint8)
        digest.gather_pages(content, rows, data)
        assert digest.pages_equal(content, rows, data).all()
        data[2 * page_size - 1] ^= 0x80  # last byte of page 1
        data[5 * page_size] ^= 1  # first byte of page 5
        found = digest.pages_equal(content, rows, data.tobytes())
        assert found.tolist() == [True, False, True, True, True, False]

    def test_gather_copies_rows_and_clears_holes(self, page_size: int) -> None:
        content, rows = make_content(page_size), np.array([7, -1, 1, 0])
        out = np.full(4 * page_size, 0xAA, np.uint8)
        digest.gather_pages(content, rows, out)
        zeros = bytes(page_size)
        expected = content[7].tobytes() + zeros + content[1].tobytes() + zeros
        assert out.tobytes() == expected
        assert digest.gather_bytes(content, rows, b"head") == b"head" + expected


class TestGatherBytes:
    def test_makes_a_real_bytes_object(self) -> None:
        made = digest.gather_bytes(make_content(4096), np.array([1]), b"ab")
        assert type(made) is bytes
        assert made == bytes(made) == made[:2] + made[2:]
        assert hash(made) == hash(bytes(bytearray(made)))
        assert made[2 + 4096 :] == b""
        assert {made: 1}[bytes(bytearray(made))] == 1

    def test_two_results_share_nothing(self) -> None:
        content = make_content(4096)
        first = digest.gather_bytes(content, np.array([1]))
        copy = bytes(bytearray(first))
        content[1] ^= 0xFF
        second = digest.gather_bytes(content, np.array([1]))
        assert first == copy
        assert second != copy

    def test_nothing_to_write_gives_the_empty_bytes(self) -> None:
        none = np.array([], np.int64)
        assert digest.gather_bytes(make_content(4096), none) == b""
        assert digest.gather_bytes(make_content(4096), none, b"only") == b"only"


def test_new_bytes_is_filled_through_its_array() -> None:
    made, space = digest.new_bytes(5)
    space[:] = [104, 101, 108, 108, 111]
    assert made == b"hello"
    assert digest.new_bytes(0)[0] == b""
