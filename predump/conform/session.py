"""A look at the model while operations run: `predump mm`.

A session is one machine with one task. Each line is an operation of the script language, answered
with its result and with what it changed (entries, pagemap, mappings, before and after), or a view.
"""

from __future__ import annotations

import errno
import re
import signal
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from livemigration.operations import KINDS, OPERANDS, SPAN_VERBS, Op, OperationError, parse_op
from mm_model import Livelock, ModelConfig, NotModelled
from predump.conform.descriptors import entry_words
from predump.conform.differential import bit_words
from predump.conform.judge import vma_list
from predump.conform.replay import NO_CHILD, Player
from predump.render import WIDTH

HELP: Final = """\
operations (REGION 0-7; PAGE and COUNT in pages):
  map REGION KIND COUNT         {kinds}
  VERB REGION PAGE COUNT        {spans}
  fill REGION PAGE COUNT BYTE   mprotect REGION PAGE COUNT none|r|rw
  mremap REGION PAGE COUNT TO_REGION [TO_PAGE]   (also mremap_dontunmap)
  mexpand REGION PAGE COUNT NEW_COUNT            uwp REGION PAGE COUNT 0|1
  attach REGION private|shared COUNT TO_REGION   (maps the other region's file)
  mthp KIB always|never         thp always|madvise|never
  {bare}
views: vmas, ptes [REGION [PAGE COUNT]], pagemap [REGION [PAGE COUNT]], stats, reset, help, quit"""

_NUMBERS: Final = re.compile(r"(frame|slot) \d+")

Row = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _State:
    """What one task shows: per region the entries and pagemap of each page, and the mappings."""

    entries: dict[int, list[str]]
    pagemap: dict[int, list[str]]
    vmas: dict[int, str]


class Session:
    """Runs lines. ``page_size`` and all else come from ``config``."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._player = Player(config)
        self._views: dict[str, Callable[[list[str]], Iterator[str]]] = {
            "vmas": self._vmas,
            "ptes": self._ptes,
            "pagemap": self._pagemap,
            "stats": self._stats,
            "reset": self._reset,
            "help": self._help,
        }
        self.stuck = False
        """An operation never ended: a real kernel would be gone now."""

    def run(self, line: str) -> list[str]:
        """What ``line`` says; OperationError if it is neither an operation nor a view."""
        text = line.partition("#")[0].strip()
        if not text:
            return []
        word, *rest = text.split()
        view = self._views.get(word)
        if view is not None:
            return list(view(rest))
        return list(self._operation(parse_op(text)))

    def close(self) -> None:
        """Give the memory back."""
        self._player.machine.release()

    # -- operations ------------------------------------------------------------------------

    def _operation(self, op: Op) -> Iterator[str]:
        before = self._states()
        try:
            yield result_words(self._player.execute(op))
        except NotModelled as reason:
            yield f"not modelled: {reason.strerror}"
            return
        except Livelock as hang:
            self.stuck = True
            yield f"never ends: {hang.strerror}"
        after = self._states()
        for who in dict.fromkeys([*before, *after]):
            yield from _changes(who, before.get(who, _EMPTY), after.get(who, _EMPTY))

    def _tasks(self) -> list[str]:
        return ["self"] if self._player.child is None else ["self", "child"]

    def _states(self) -> dict[str, _State]:
        return {who: self._state(who) for who in self._tasks()}

    def _state(self, who: str) -> _State:
        regions = sorted(self._player.pages)
        vmas = {}
        for region in regions:
            shown = self._player.show(who, region, descriptors=False)
            vmas[region] = vma_list(shown.vmas)
        return _State(
            {region: self._entries(who, region) for region in regions},
            {region: self._bits(who, region) for region in regions},
            vmas,
        )

    def _entries(self, who: str, region: int) -> list[str]:
        player = self._player
        ptes = player.task(who).ptes(player.address(region), player.pages[region])
        return [entry_words(player.machine, int(entry)) for entry in ptes]

    def _bits(self, who: str, region: int) -> list[str]:
        player = self._player
        shown = player.task(who).pagemap(player.address(region), player.pages[region])
        return [bit_words(entry) for entry in shown]

    # -- views -----------------------------------------------------------------------------

    def _chosen(self, arguments: list[str]) -> Iterator[tuple[str, int, int, int]]:
        """Task, region, first page and end of what a view is asked for."""
        if not all(word.isdecimal() for word in arguments) or len(arguments) not in (0, 1, 3):
            raise OperationError(f"{' '.join(arguments)!r}: write REGION, or REGION PAGE COUNT")
        numbers = [int(word) for word in arguments]
        if numbers and numbers[0] not in self._player.pages:
            raise OperationError(f"region {numbers[0]}: nothing was ever mapped there")
        for who in self._tasks():
            for region, npages in sorted(self._player.pages.items()):
                if numbers and numbers[0] != region:
                    continue
                first = numbers[1] if len(numbers) == 3 else 0
                count = numbers[2] if len(numbers) == 3 else npages
                yield who, region, min(first, npages), min(first + count, npages)

    def _vmas(self, arguments: list[str]) -> Iterator[str]:
        if arguments:
            raise OperationError("vmas: takes no operands")
        size = self._player.page_size
        for who in self._tasks():
            for vma in self._player.task(who).vmas():
                region = (vma.start - self._player.address(0)) >> 30
                start = (vma.start - self._player.address(region)) // size
                end = start + (vma.end - vma.start) // size
                letters = (("r", 1), ("w", 2), ("x", 4))
                perms = "".join(letter if vma.prot & bit else "-" for letter, bit in letters)
                kind = f"shared object {vma.shared_id}" if vma.shared_id else "anonymous"
                flags = [perms + ("s" if vma.flags & 1 else "p"), kind]
                flags += ["VM_SOFTDIRTY"] if vma.soft_dirty else []
                flags += ["locked"] if vma.locked else []
                yield (
                    f"{_prefix(who)}{vma.start:#x}-{vma.end:#x}  region {region} "
                    f"{_pages(start, end - 1)}  {'  '.join(flags)}"
                )

    def _ptes(self, arguments: list[str]) -> Iterator[str]:
        for who, region, first, end in self._chosen(arguments):
            player = self._player
            ptes = player.task(who).ptes(player.address(region, first), max(end - first, 0))
            for offset, entry in enumerate(ptes.tolist()):
                words = entry_words(player.machine, entry)
                raw = f"{entry:#018x}  " if entry else ""
                yield f"{_prefix(who)}region {region} page {first + offset}  {raw}{words}"

    def _pagemap(self, arguments: list[str]) -> Iterator[str]:
        for who, region, first, end in self._chosen(arguments):
            rows = list(enumerate(self._bits(who, region)))[first:end]
            for pages, words in _runs(rows):
                yield f"{_prefix(who)}region {region} {pages}  {words}"

    def _stats(self, arguments: list[str]) -> Iterator[str]:
        machine = self._player.machine
        faults = machine.faults
        yield (
            f"faults {faults.minor}: copied {faults.cow}, made writable {faults.wp}, "
            f"from swap {faults.swapin}, zero page {faults.zero}, never ended {faults.livelocks}"
        )
        yield (
            f"frames in use {machine.used_frames}, free {machine.free_frames}; "
            f"swap slots in use {machine.used_swap_slots}"
        )

    def _reset(self, arguments: list[str]) -> Iterator[str]:
        self.close()
        self._player = Player(self._config)
        self.stuck = False
        yield "a new machine"

    def _help(self, arguments: list[str]) -> Iterator[str]:
        bare = sorted(verb for verb, operands in OPERANDS.items() if not operands)
        indent = 32 * " "
        kinds, spans = (
            textwrap.fill(" ".join(words), WIDTH, initial_indent=indent, subsequent_indent=indent)
            for words in (KINDS, sorted(SPAN_VERBS))
        )
        text = HELP.format(kinds=kinds.strip(), spans=spans.strip(), bare=" ".join(bare))
        yield from text.splitlines()


_EMPTY: Final = _State({}, {}, {})


def result_words(rc: int) -> str:
    """``ok``, ``SIGSEGV``, ``EINVAL``, or ``no child``."""
    if rc == NO_CHILD:
        return "no child"
    if rc > 0:
        return signal.Signals(rc).name
    return errno.errorcode.get(-rc, str(rc)) if rc else "ok"


def _prefix(who: str) -> str:
    return "" if who == "self" else f"{who}: "


def _pages(first: int, last: int) -> str:
    return f"page {first}" if first == last else f"pages {first}-{last}"


def _runs(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Neighbouring pages that say the same, but for the numbers of frames and slots."""
    keyed = enumerate(rows)
    for _, group in groupby(keyed, lambda item: (item[1][0] - item[0], _plain(item[1][1]))):
        run = [row for _, row in group]
        yield _pages(run[0][0], run[-1][0]), run[0][1]


def _plain(words: str) -> str:
    return _NUMBERS.sub(r"\1", words)


def _changes(who: str, before: _State, after: _State) -> Iterator[str]:
    for region in sorted(after.entries.keys() | before.entries.keys()):
        old_vmas, new_vmas = before.vmas.get(region, ""), after.vmas.get(region, "")
        if old_vmas != new_vmas:
            yield (
                f"  {_prefix(who)}region {region} mappings  {old_vmas or 'none'}  ->  "
                f"{new_vmas or 'none'}"
            )
        for name, old, new in (
            ("entry", before.entries, after.entries),
            ("pagemap", before.pagemap, after.pagemap),
        ):
            absent = "none" if name == "entry" else "nothing"
            rows = _changed_rows(old.get(region, []), new.get(region, []), absent)
            for pages, words in _runs(rows):
                yield f"  {_prefix(who)}region {region} {pages}  {name}  {words}"


def _changed_rows(old: list[str], new: list[str], absent: str) -> Iterator[Row]:
    length = max(len(old), len(new))
    old, new = (side + [absent] * (length - len(side)) for side in (old, new))
    for page, (was, now) in enumerate(zip(old, new, strict=True)):
        if was != now:
            yield page, f"{was}  ->  {now}"
