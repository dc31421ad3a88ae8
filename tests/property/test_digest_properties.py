"""The compiled digest equals the xxhash package's for whatever bytes there are."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration import digest
from livemigration.packing import zero_pages


def random_bytes(seed: int, length: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


@given(seed=st.integers(0, 2**32), stripes=st.integers(4, 200))
def test_whole_stripes(seed: int, stripes: int) -> None:
    data = random_bytes(seed, stripes * 64)
    assert digest.digest_of(data) == xxhash.xxh3_64_intdigest(data.tobytes())


@given(seed=st.integers(0, 2**32), length=st.integers(241, 5000))
def test_any_length(seed: int, length: int) -> None:
    data = random_bytes(seed, length)
    assert digest.digest_of(data) == xxhash.xxh3_64_intdigest(data.tobytes())


@given(pattern=st.binary(min_size=1, max_size=300), length=st.integers(241, 3000))
def test_repetitive_and_extreme_bytes(pattern: bytes, length: int) -> None:
    data = (pattern * (length // len(pattern) + 1))[:length]
    assert digest.digest_of(data) == xxhash.xxh3_64_intdigest(data)


@settings(max_examples=50)
@given(
    page_size=st.sampled_from([4096, 16384, 65536]),
    rows=st.lists(st.integers(-1, 5), max_size=12),
    seed=st.integers(0, 2**32),
    prefix=st.binary(max_size=40),
)
def test_rows_payload_and_numpy_agree(
    page_size: int, rows: list[int], seed: int, prefix: bytes
) -> None:
    content = random_bytes(seed, 6 * page_size).reshape(6, page_size)
    content[0] = 0
    content[2] = 0
    index = np.array(rows, np.int64)
    expected = content[np.maximum(index, 0)]
    message = digest.gather_bytes(content, index, prefix)
    assert message == prefix + expected.tobytes()
    body = memoryview(message)[len(prefix) :]
    digests = [xxhash.xxh3_64_intdigest(page.tobytes()) for page in expected]
    assert digest.page_digests(content, index).tolist() == digests
    assert digest.page_digests_of(body, page_size).tolist() == digests
    assert zero_pages(content, index).tolist() == (~expected.any(axis=1)).tolist()
    assert digest.pages_equal(content, index, body).all()


@settings(max_examples=50)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 4095), st.integers(1, 255)), max_size=10
    )
)
def test_comparison_finds_exactly_the_pages_that_differ(
    changes: list[tuple[int, int, int]],
) -> None:
    content = random_bytes(3, 9 * 4096).reshape(9, 4096)
    rows = np.arange(1, 9)
    theirs = content[1:].copy()
    for page, place, flip in changes:
        theirs[page, place] ^= flip
    expected = (theirs == content[1:]).all(axis=1)
    assert digest.pages_equal(content, rows, theirs).tolist() == expected.tolist()
    same_digest = digest.page_digests(content, rows) == digest.page_digests_of(theirs, 4096)
    assert same_digest.tolist() == expected.tolist()
