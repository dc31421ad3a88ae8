"""Searching for disagreements of two models with random operations, shrunk to the shortest.

Sequences are numbered: number N follows from the seed and N alone, so a search finds the same every
time, whatever the machine, as long as it is given enough time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from livemigration.operations import Op
from mm_model import ModelConfig
from predump.conform.differential import Finding, disagreements
from predump.conform.operations import Vocabulary, generate
from predump.conform.shrink import shrink

_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True)
class Shortest:
    """A disagreement and the shortest sequence found that shows it.

    ``tried``     sequences run before and with the one that showed it
    ``generated`` operations of that sequence before shrinking
    """

    finding: Finding
    ops: tuple[Op, ...]
    tried: int
    generated: int


@dataclass(slots=True)
class Progress:
    """How far a search is: sequences and operations run so far, known disagreements passed over."""

    sequences: int = 0
    operations: int = 0
    known: int = 0


Mark = tuple[str, tuple[tuple[str, str], ...]]


def mark(kind: str, ops: Iterable[Op]) -> Mark:
    """What makes two disagreements the same: the harm, and the shortest sequence's operations.

    Without their operands, but for kinds of mapping, protections and modes.
    """
    return kind, tuple((op.verb, op.kind or op.prot or op.mode) for op in ops)


def sequences(seed: int, vocabulary: Vocabulary, limit: int) -> Iterator[tuple[Op, ...]]:
    """``limit`` sequences, themes in turn."""
    for number in range(limit):
        yield generate(seed * _SEED_STRIDE + number, vocabulary)


def shortest_of(
    ops: tuple[Op, ...],
    kind: str,
    reference: ModelConfig,
    other: ModelConfig,
    *,
    blame_reference: bool,
) -> tuple[tuple[Op, ...], Finding]:
    """Shrink ``ops``, which show ``kind``; the sequence and where it shows it."""

    def found(candidate: tuple[Op, ...]) -> dict[str, Finding]:
        return disagreements(candidate, reference, other, blame_reference=blame_reference)

    small = shrink(ops, lambda candidate: kind in found(candidate))
    return small, found(small)[kind]


def search(
    reference: ModelConfig,
    other: ModelConfig,
    *,
    vocabulary: Vocabulary,
    seed: int = 1,
    limit: int = 1 << 40,
    seconds: float | None = None,
    progress: Progress | None = None,
    known: Collection[Mark] = (),
    on_sequence: Callable[[Progress], None] = lambda progress: None,
) -> Shortest | None:
    """The first sequence on which the two disagree, or that one of them never ends, shrunk.

    What shrinks to one of ``known`` is passed over. None if there is no other among ``limit``
    sequences or within ``seconds``.
    """
    progress = progress or Progress()
    end = None if seconds is None else time.monotonic() + seconds
    for ops in sequences(seed, vocabulary, limit):
        if end is not None and time.monotonic() >= end:
            return None
        progress.sequences += 1
        progress.operations += len(ops)
        on_sequence(progress)
        found = disagreements(ops, reference, other)
        if found:
            first = min(found.values(), key=lambda finding: finding.step)
            small, finding = shortest_of(
                ops[: first.step + 1], first.kind, reference, other, blame_reference=True
            )
            if mark(finding.kind, small) in known:
                progress.known += 1
                continue
            return Shortest(finding, small, progress.sequences, len(ops))
    return None


def search_kinds(
    reference: ModelConfig,
    other: ModelConfig,
    *,
    vocabulary: Vocabulary,
    seed: int = 1,
    limit: int = 600,
    patience: int = 150,
) -> dict[str, Shortest]:
    """The shortest sequence for every harm that ``other`` does, among ``limit`` sequences.

    What the reference never comes back from is not the other's fault. Stops early when the last
    ``patience`` sequences brought no new kind.
    """
    shortest: dict[str, Shortest] = {}
    last_news = 0
    for number, ops in enumerate(sequences(seed, vocabulary, limit), start=1):
        found = disagreements(ops, reference, other, blame_reference=False)
        for kind, finding in found.items():
            if kind in shortest:
                continue
            small, where = shortest_of(
                ops[: finding.step + 1], kind, reference, other, blame_reference=False
            )
            shortest[kind] = Shortest(where, small, number, len(ops))
            last_news = number
        if shortest and number - last_news >= patience:
            break
    return shortest
