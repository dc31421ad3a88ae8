"""Digests, comparison and gathering of page contents.

Both hosts describe memory by the same numbers, each computed from its own page tables:

* a page's digest is XXH3_64bits (seed 0, default secret) of the page's bytes. The algorithm is that
  of the XXH3 specification (Cyan4973/xxHash, doc/xxhash_spec.md) for inputs longer than 240 bytes,
  so any xxHash implementation can check a digest;
* the digest of a whole memory is BLAKE2b-256 over the address space's description and the page
  digests in address order (`memory_digest`);
* a batch's payload has the same XXH3 as its checksum, computed by the xxhash package in one call
  (`buffer_checksum`).

Everything that looks at page contents is one compiled loop over content rows (``content[row]`` is
one frame's bytes; row 0 is the zero page, -1 means that nothing is there): callers hand over whole
arrays and never loop over pages. The loops release the GIL.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from typing import Any, TypeAlias

import numba
import numpy as np
import xxhash
from llvmlite import ir
from numba.core.cgutils import for_range
from numba.extending import intrinsic
from numpy.typing import NDArray

from livemigration.compiled import compiled

Bytes: TypeAlias = NDArray[np.uint8]
Buffer: TypeAlias = bytes | bytearray | memoryview | Bytes
Words: TypeAlias = NDArray[np.uint64]
Rows: TypeAlias = NDArray[np.int64]

MIN_DIGEST_BYTES = 241
"""Shorter inputs take other paths of XXH3, which pages never need."""

_MEMORY_DIGEST_PERSON = b"predump.memory/1"

# The specification's default secret. Its 64-bit words are read at byte offsets that are multiples
# of 8 within a block, at 121 for the last stripe and at 11 when the lanes are merged.
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def _secret_words(offset: int, count: int) -> Words:
    return np.frombuffer(_SECRET, "<u8", count, offset).astype(np.uint64)


_BLOCK_KEYS = _secret_words(0, 24)  # stripe s of a block uses words s..s+7; scrambling the last 8
_LAST_KEYS = _secret_words(121, 8)
_MERGE_KEYS = _secret_words(11, 8)

_P32_1 = np.uint64(0x9E3779B1)
_P32_2 = np.uint64(0x85EBCA77)
_P32_3 = np.uint64(0xC2B2AE3D)
_P64_1 = np.uint64(0x9E3779B185EBCA87)
_P64_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P64_3 = np.uint64(0x165667B19E3779F9)
_P64_4 = np.uint64(0x85EBCA77C2B2AE63)
_P64_5 = np.uint64(0x27D4EB2F165667C5)
_AVALANCHE = np.uint64(0x165667919E3779F9)

_LOW32 = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)
_S37 = np.uint64(37)
_S47 = np.uint64(47)

_NEIGHBOURS = [1, 0, 3, 2, 5, 4, 7, 6]
_STRIPE_BYTES = 64
_STRIPES_PER_BLOCK = 16  # (192 bytes of secret - 64) / 8 bytes consumed per stripe
_PREFETCH_WORDS = 128
CHUNK_WORDS = 64  # comparisons look at 512 bytes between two tests for an early exit


@compiled
def _scramble(lane: np.uint64, key: np.uint64) -> np.uint64:
    return (lane ^ (lane >> _S47) ^ key) * _P32_1


@compiled
def _fold128(left: np.uint64, right: np.uint64) -> np.uint64:
    """High xor low half of the 128-bit product."""
    ll = (left & _LOW32) * (right & _LOW32)
    hl = (left >> _S32) * (right & _LOW32)
    lh = (left & _LOW32) * (right >> _S32)
    hh = (left >> _S32) * (right >> _S32)
    cross = (ll >> _S32) + (hl & _LOW32) + lh
    high = (hl >> _S32) + (cross >> _S32) + hh
    return high ^ ((cross << _S32) | (ll & _LOW32))


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _accumulate(words: Words, at: int, stripes: int, keys: Words, lanes: Words) -> None:
        for stripe in range(stripes):
            word = words[at + 8 * stripe : at + 8 * stripe + 8]
            keyed = word ^ keys[stripe : stripe + 8]
            lanes += word[_NEIGHBOURS] + (keyed & _LOW32) * (keyed >> _S32)

else:

    @intrinsic
    def _accumulate(
        typing_context: Any, words: Any, at: Any, stripes: Any, keys: Any, lanes: Any
    ) -> Any:
        """Add stripes, eight words from ``words[at]`` on each, to the eight lanes.

        A lane gains its neighbour's word, and the product of the halves of its own word combined
        with a key; the keys move on by one word per stripe. This is all that XXH3 does to most of
        its input. Numba's loop vectoriser does not find it, so it is written for LLVM as what it
        is: a loop over one vector of eight words, for whatever vectors the processor has.

        Each turn asks for the cache line 1 KiB ahead: without that, pages of 16 KiB and more, whose
        loop fills the processor's window, are digested at a third of the speed.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            int64, int32 = ir.IntType(64), ir.IntType(32)
            vector = ir.VectorType(int64, 8)

            def data(index: int) -> Any:
                array_type = signature.args[index]
                return context.make_array(array_type)(context, builder, arguments[index]).data

            def splat(value: int) -> Any:
                return ir.Constant(vector, [value] * 8)

            def pointer(base: Any, index: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(base, [index]), kind.as_pointer())

            prefetch = builder.module.declare_intrinsic(
                "llvm.prefetch",
                [ir.IntType(8).as_pointer()],
                ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), int32, int32, int32]),
            )
            neighbours = ir.Constant(ir.VectorType(int32, 8), list(_NEIGHBOURS))
            input_words, key_words = data(0), data(3)
            target = builder.bitcast(data(4), vector.as_pointer())
            total = builder.alloca(vector, name="lanes")
            builder.store(builder.load(target, align=8), total)
            with for_range(builder, arguments[2], intp=int64) as loop:
                place = builder.add(arguments[1], builder.mul(loop.index, int64(8)))
                ahead = builder.add(place, int64(_PREFETCH_WORDS))
                line = pointer(input_words, ahead, ir.IntType(8))
                builder.call(prefetch, [line, int32(0), int32(3), int32(1)])  # data, to be read
                word = builder.load(pointer(input_words, place, vector), align=1)
                key = builder.load(pointer(key_words, loop.index, vector), align=8)
                keyed = builder.xor(word, key)
                low = builder.and_(keyed, splat(0xFFFFFFFF))
                product = builder.mul(low, builder.lshr(keyed, splat(32)))
                gained = builder.add(product, builder.shuffle_vector(word, word, neighbours))
                builder.store(builder.add(builder.load(total), gained), total)
            builder.store(builder.load(total), target, align=8)
            return context.get_dummy_value()

        integer = numba.types.int64
        return numba.types.void(words, integer, integer, keys, lanes), generate


@compiled
def _xxh3_long(
    words: Words, start: int, last: Words, last_start: int, length: int, lanes: Words
) -> np.uint64:
    """XXH3_64bits of `length` > 240 bytes at ``words[start:]``; ``last[last_start:+8]`` is its end.

    lanes: u64[8], room to work in.
    """
    lanes[0], lanes[1], lanes[2], lanes[3] = _P32_3, _P64_1, _P64_2, _P64_3
    lanes[4], lanes[5], lanes[6], lanes[7] = _P64_4, _P32_2, _P64_5, _P32_1
    stripes = (length - 1) // _STRIPE_BYTES
    at = start
    while stripes >= _STRIPES_PER_BLOCK:
        _accumulate(words, at, _STRIPES_PER_BLOCK, _BLOCK_KEYS, lanes)
        for i in range(8):
            lanes[i] = _scramble(lanes[i], _BLOCK_KEYS[16 + i])
        at += 8 * _STRIPES_PER_BLOCK
        stripes -= _STRIPES_PER_BLOCK
    _accumulate(words, at, stripes, _BLOCK_KEYS, lanes)
    _accumulate(last, last_start, 1, _LAST_KEYS, lanes)
    digest = np.uint64(length) * _P64_1
    for i in range(0, 8, 2):
        digest += _fold128(lanes[i] ^ _MERGE_KEYS[i], lanes[i + 1] ^ _MERGE_KEYS[i + 1])
    digest = (digest ^ (digest >> _S37)) * _AVALANCHE
    return digest ^ (digest >> _S32)


@compiled
def _digest_rows(
    words: Words, rows: Rows, zero_digest: np.uint64, lanes: Words, out: Words
) -> None:
    page_words = words.shape[1]
    flat = words.reshape(words.size)
    for i in range(rows.size):
        row = rows[i]
        if row > 0:
            start = row * page_words
            end = start + page_words - 8
            out[i] = _xxh3_long(flat, start, flat, end, page_words * 8, lanes)
        else:
            out[i] = zero_digest


@compiled
def _digest_all(words: Words, lanes: Words, out: Words) -> None:
    page_words = words.shape[1]
    flat = words.reshape(words.size)
    for i in range(out.size):
        start = i * page_words
        end = start + page_words - 8
        out[i] = _xxh3_long(flat, start, flat, end, page_words * 8, lanes)


@compiled
def _gather_rows(content: Bytes, rows: Rows, out: Bytes) -> None:
    page_size = content.shape[1]
    for i in range(rows.size):
        row = rows[i]
        if row > 0:
            for j in range(page_size):
                out[i, j] = content[row, j]
        else:
            for j in range(page_size):
                out[i, j] = 0


@compiled
def _equal_rows(words: Words, rows: Rows, data: Words, out: NDArray[np.bool_]) -> None:
    for i in range(rows.size):
        row = max(rows[i], 0)  # nothing there reads as row 0, the zero page
        same = True
        for chunk in range(0, words.shape[1], CHUNK_WORDS):
            difference = np.uint64(0)
            for j in range(chunk, chunk + CHUNK_WORDS):
                difference |= words[row, j] ^ data[i, j]
            if difference:
                same = False
                break
        out[i] = same


def _lanes() -> Words:
    return np.empty(8, np.uint64)


def _as_bytes(buffer: Buffer) -> Bytes:
    array = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    return array.reshape(-1)


def page_words(pages: Bytes, page_size: int) -> Words:
    """`pages` as rows of 64-bit words.

    Always read-only, so that Numba compiles one variant for memory that may be written and memory
    that may not.
    """
    if page_size <= 0 or page_size % (8 * CHUNK_WORDS):
        raise ValueError(f"page size {page_size}: must be a multiple of {8 * CHUNK_WORDS}")
    if pages.size % page_size:
        raise ValueError(f"{pages.size} bytes are not whole pages of {page_size} bytes")
    words = pages.reshape(-1).view(np.uint64).reshape(-1, page_size // 8)
    words.flags.writeable = False
    return words


def checked_rows(content: Bytes, rows: Rows) -> Rows:
    """`rows` as compiled code needs them; IndexError for one past the end of `content`."""
    # Compiled code does not check bounds: a row past the end would read foreign memory.
    if rows.size and int(rows.max()) >= content.shape[0]:
        raise IndexError(f"row {int(rows.max())} of a content array of {content.shape[0]} frames")
    return np.ascontiguousarray(rows, dtype=np.int64)


@cache
def zero_page_digest(page_size: int) -> int:
    """The digest of a page of zeros, which also stands for a hole."""
    return digest_of(bytes(page_size))


def digest_of(data: Buffer) -> int:
    """XXH3_64bits of any buffer of at least `MIN_DIGEST_BYTES` bytes, by the code for pages.

    Raises ValueError for shorter ones.
    """
    raw = _as_bytes(data)
    if raw.size < MIN_DIGEST_BYTES:
        raise ValueError(f"{raw.size} bytes: digests are for {MIN_DIGEST_BYTES} bytes and more")
    words = raw[: raw.size // 8 * 8].copy().view(np.uint64)
    last = raw[-_STRIPE_BYTES:].copy().view(np.uint64)
    with np.errstate(over="ignore"):
        return int(_xxh3_long(words, 0, last, 0, raw.size, _lanes()))


def page_digests(content: Bytes, rows: Rows, out: Words | None = None) -> Words:
    """The digest of each page whose content is ``content[rows[i]]``.

    content: u8[frames, page_size], C-contiguous; rows: i64[n], where 0 (the zero page) and negative
    rows (nothing there) both give the digest of a page of zeros; out: u64[n], returned if given.
    Raises IndexError for a row past the end.
    """
    page_size = content.shape[1]
    words = page_words(content, page_size)
    result = np.empty(rows.size, np.uint64) if out is None else out
    zero = np.uint64(zero_page_digest(page_size))
    with np.errstate(over="ignore"):  # for uncompiled runs: hashes wrap around
        _digest_rows(words, checked_rows(content, rows), zero, _lanes(), result)
    return result


def page_digests_of(data: Buffer, page_size: int) -> Words:
    """The digests, u64[n], of n pages that lie one after the other in `data`.

    Raises ValueError if `data` is not whole pages.
    """
    words = page_words(_as_bytes(data), page_size)
    result = np.empty(words.shape[0], np.uint64)
    with np.errstate(over="ignore"):
        _digest_all(words, _lanes(), result)
    return result


def memory_digest(description: bytes, *digests: Words) -> str:
    """The digest of a whole memory: 64 hexadecimal digits.

    description: what the address space looks like, in a canonical form (the batches' VMA records);
    digests: u64[n] page digests in address order; into how many arrays they are cut makes no
    difference.

    It is BLAKE2b with a digest of 32 bytes and the personalisation ``predump.memory/1`` over
    the description's length (u64), the description, all page digests (u64 each) and their number
    (u64), all little-endian.
    """
    state = hashlib.blake2b(digest_size=32, person=_MEMORY_DIGEST_PERSON)
    state.update(len(description).to_bytes(8, "little"))
    state.update(description)
    for part in digests:
        state.update(np.ascontiguousarray(part, dtype="<u8").data)
    state.update(sum(part.size for part in digests).to_bytes(8, "little"))
    return state.hexdigest()


def buffer_checksum(buffer: Buffer) -> int:
    """XXH3_64bits of a batch's payload (of any length)."""
    return xxhash.xxh3_64_intdigest(buffer.data if isinstance(buffer, np.ndarray) else buffer)


def pages_equal(content: Bytes, rows: Rows, data: Buffer) -> NDArray[np.bool_]:
    """Which pages ``content[rows[i]]`` have exactly the bytes of the i-th page in `data`: bool[n].

    Rows as in `page_digests`. Raises ValueError if `data` is not as many pages as there are rows.
    """
    page_size = content.shape[1]
    theirs = page_words(_as_bytes(data), page_size)
    if theirs.shape[0] != rows.size:
        raise ValueError(f"{rows.size} pages to compare with {theirs.shape[0]}")
    result = np.empty(rows.size, np.bool_)
    _equal_rows(page_words(content, page_size), checked_rows(content, rows), theirs, result)
    return result


def gather_pages(content: Bytes, rows: Rows, out: Bytes) -> None:
    """Copy the pages ``content[rows[i]]`` one after the other into `out`, u8[n * page_size].

    Rows as in `page_digests`: zeros where nothing is. Raises ValueError if `out` has another size.
    """
    page_size = content.shape[1]
    if out.size != rows.size * page_size:
        raise ValueError(f"{rows.size} pages of {page_size} bytes do not fill {out.size} bytes")
    frames = content.view()
    frames.flags.writeable = False
    _gather_rows(frames, checked_rows(content, rows), out.reshape(rows.size, page_size))


_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_bytes_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
    ("PyBytes_AsString", ctypes.pythonapi)
)


def new_bytes(size: int) -> tuple[bytes, Bytes]:
    """A bytes object of undefined content, and the array, u8[size], to fill it through.

    bytes objects never change, so Python itself offers no way to fill one in place, and
    ``head + pages.tobytes()`` would copy the pages twice. The C interface does: a bytes object
    made by ``PyBytes_FromStringAndSize(NULL, n)`` has undefined content, which its maker shall
    write before letting anybody else see it. This is safe as long as the caller

    * writes all of the array before handing on, hashing or comparing the object, and nothing after;
    * keeps the object while it uses the array, which is made from an address and owns nothing.
    """
    if size == 0:
        return b"", np.empty(0, np.uint8)  # the one empty object, which the interpreter shares
    made: bytes = _new_bytes(None, size)
    return made, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(_bytes_address(made)))


def gather_bytes(content: Bytes, rows: Rows, prefix: bytes = b"") -> bytes:
    """`prefix` and then the pages ``content[rows[i]]``, as one bytes object written only once.

    Rows as in `page_digests`. Safe for the reasons that `new_bytes` gives: object and array are
    known to this call alone, every byte is written, and an exception in between drops both unseen.
    """
    result, raw = new_bytes(len(prefix) + rows.size * content.shape[1])
    raw[: len(prefix)] = np.frombuffer(prefix, np.uint8)
    gather_pages(content, rows, raw[len(prefix) :])
    return result
