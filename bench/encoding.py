"""Page encodings on one core: blocks of 1 MiB of pages, against copying as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from bench.measure import Line, best
from livemigration import batch
from livemigration.costs import CostSpec
from livemigration.digest import page_words
from livemigration.encoding import delta
from livemigration.encoding.codecs import Codec, Lz4, Zstd
from livemigration.encoding.compressibility import page_classes
from livemigration.encoding.encoder import build_encoder
from livemigration.encoding.remembered import RememberedPages
from livemigration.packing import Packing, encode, pack
from livemigration.spec import AutoEncodingSpec
from livemigration.workload.content import Content
from livemigration.workload.spec import UniformSpec

_BLOCK = 1 << 20
_PAGE = 4096
_PAGES = _BLOCK // _PAGE
_TURNS = 64
_LEVELS = range(2, 20)
_CONTENTS: dict[str, dict[str, object]] = {
    "text": {"content": "text"},
    "half zeros": {"compressibility": 0.5},
    "7/8 zeros": {"content": "zero"},
    "random": {"content": "random"},
}
_Action = Callable[[], object]
Bytes = NDArray[np.uint8]


def encoding_lines(*, quick: bool) -> list[Line]:
    """Group "encoding"."""
    rounds = 3 if quick else 9
    lines = [line for name in _CONTENTS for line in _codec_lines(name, rounds)]
    lines += _delta_lines(rounds)
    lines += _frame_lines(rounds)
    lines += _level_lines(range(2, 4) if quick else _LEVELS, 1 if quick else 3)
    return lines


def _content(name: str) -> Bytes:
    words = np.empty(_BLOCK // 8, np.uint64)
    spec = UniformSpec.model_validate({"kind": "uniform", **_CONTENTS[name]})
    Content.of(spec).words(1, 0, _PAGE // 8, words)
    return words.view(np.uint8)


def _codec_lines(name: str, rounds: int) -> Iterator[Line]:
    data = _content(name)
    target = np.empty_like(data)
    codecs: dict[str, Codec] = {"zstd": Zstd(1), "lz4": Lz4()}
    for codec_name, codec in codecs.items():
        block = codec.compress(data.data)
        copied, forth, back = best(
            [
                lambda: np.copyto(target, data),
                partial(codec.compress, data.data),
                partial(codec.decompress, memoryview(block), _BLOCK),
            ],
            rounds,
        )
        left = f"to {len(block) / _BLOCK:.3f}"
        yield _line(f"{codec_name}, {name}: compress", forth, copied, left)
        yield _line(f"{codec_name}, {name}: decompress", back, copied)


def _line(name: str, taken: float, copied: float, note: str = "") -> Line:
    """GB/s of page bytes against memcpy; the note has the cost model's unit."""
    value, base = _BLOCK / taken / 1e9, _BLOCK / copied / 1e9
    per_kib = f"{taken / _BLOCK * 1024 * 1e9:.0f} ns/KiB"
    note = f"{per_kib}, {note}" if note else per_kib
    return Line("encoding", name, value, "GB/s", base, "memcpy", value / base, note=note)


def _delta_lines(rounds: int) -> Iterator[Line]:
    """One word in every 64 changed, each by itself."""
    before = _content("random")
    words = before.view(np.uint64).reshape(_PAGES, -1).copy()
    words[:, ::64] ^= np.uint64(1)
    after = words.reshape(-1).view(np.uint8)
    # Many times what a processor's caches hold, as in a migration; blocks take turns in it.
    everywhere = np.arange(_TURNS * _PAGES, dtype=np.uint64) * np.uint64(_PAGE)
    places = everywhere.reshape(_TURNS, _PAGES)
    remembered = RememberedPages(everywhere.size, _PAGE)
    for addresses in places:
        assert remembered.remember(1, addresses, before, 0) == _PAGES
    turns = cycle(places)
    pages = page_words(after, _PAGE)
    target, out = np.empty(_BLOCK, np.uint8), np.empty_like(words)
    zstd, lz4 = Zstd(1), Lz4()
    changes = words ^ before.view(np.uint64).reshape(words.shape)

    def slots() -> NDArray[np.int64]:
        return remembered.find(1, next(turns))

    def forth() -> None:
        where = slots()
        change = delta.compare(pages, remembered.pages, where)
        delta.encode(pages, remembered.pages, where, change, np.arange(_PAGES))

    where = slots()
    change = delta.compare(pages, remembered.pages, where)
    parts = delta.encode(pages, remembered.pages, where, change, np.arange(_PAGES))
    block = b"".join(part.tobytes() for part in parts)

    actions: list[_Action] = [
        lambda: np.copyto(target, after),
        forth,
        lambda: delta.decode(memoryview(block), remembered.pages, slots(), out),
        lambda: remembered.remember(1, next(turns), before, 0),
        lambda: page_classes(after, _PAGE),
        lambda: zstd.compress(changes.data.cast("B")),
        lambda: lz4.compress(changes.data.cast("B")),
    ]
    copied, encoded, decoded, kept, classed, by_zstd, by_lz4 = best(actions, rounds)
    yield _line("delta: compare and encode", encoded, copied, f"to {len(block) / _BLOCK:.3f}")
    yield _line("delta: decode", decoded, copied)
    yield _line("delta: remember versions", kept, copied)
    yield _line("delta: zstd of the changes", by_zstd, copied)
    yield _line("delta: lz4 of the changes", by_lz4, copied)
    yield _line("auto: estimate", classed, copied, f"{classed / _PAGES * 1e9:.0f} ns/page")


def _frame_lines(rounds: int) -> Iterator[Line]:
    """Whole frames of random pages, which stay raw, by the raw path and by the automatic choice."""
    content = np.concatenate((np.zeros(_PAGE, np.uint8), _content("random"))).reshape(-1, _PAGE)
    addresses = np.arange(1, _PAGES + 1, dtype=np.uint64) * np.uint64(_PAGE)
    rows = np.arange(1, _PAGES + 1)
    packing: Packing = pack(content, addresses, rows, np.zeros(_PAGES, np.uint64))
    pages, target = content[1:].reshape(-1), np.empty(_BLOCK, np.uint8)
    encoder = build_encoder(
        AutoEncodingSpec(), CostSpec(), bandwidth=10**9, page_size=_PAGE, memory_pages=1 << 14
    )
    assert encoder is not None
    actions: list[_Action] = [
        lambda: np.copyto(target, pages),
        lambda: encode(packing, content, sequence=1, round_number=0, pid=1),
        lambda: encoder.encode(packing, pages, sequence=1, round_number=0, pid=1),
        lambda: batch.checksum(addresses, addresses, addresses, addresses, pages),
    ]
    copied, raw, auto, checked = best(actions, rounds)
    yield _line("frame of 1 MiB, raw", raw, copied)
    yield _line("frame of 1 MiB, auto, all pages unchanged", auto, copied)
    yield _line("checksum of 1 MiB", checked, copied)


def _level_lines(levels: range, rounds: int) -> Iterator[Line]:
    """Geometric mean over two contents of what a level of zstd takes more than level 1."""
    contents = [_content(name).data for name in ("text", "half zeros")]
    codecs = [Zstd(1), *(Zstd(level) for level in levels)]
    times = np.array(
        [best([partial(codec.compress, data) for codec in codecs], rounds) for data in contents]
    )
    means = np.exp(np.log(times).mean(axis=0))
    for level, mean in zip(levels, means[1:].tolist(), strict=True):
        value, base = _BLOCK / mean / 1e9, _BLOCK / means[0] / 1e9
        note = f"{100 * mean / means[0]:.0f} % of level 1's time"
        name = f"zstd, level {level}"
        yield Line("encoding", name, value, "GB/s", base, "level 1", value / base, note=note)
