"""Random operations in the script language, from a seed: what searches and fuzzing run.

Which operations are worth trying is asked of the model itself (`Vocabulary.of`): each verb and each
kind of mapping is tried once, and what raises `NotModelled` stays out. A sequence has a theme, that
is a way to lay out memory and a weight for each verb. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from livemigration.operations import KINDS, MODEL_ONLY, OPERANDS, REGIONS, SPAN_VERBS, Op, parse_op
from mm_model import Livelock, ModelConfig, NotModelled
from predump.conform.replay import Player

PMD_PAGES: Final = 512
_BASIC = "map 0 anon-private 4; write 0 0 4; "
_FILE = "map 0 file-shared 4; write 0 0 4; "
_HUGE = f"map 0 anon-private {PMD_PAGES}; write 0 0 {PMD_PAGES}; "

_PROBES: Final[dict[str, str]] = {
    "map": _BASIC,
    "fill": _BASIC + "fill 0 0 1 7",
    "mprotect": _BASIC + "mprotect 0 0 1 r",
    "mremap": _BASIC + "mremap 0 0 2 1 0",
    "mremap_dontunmap": _BASIC + "mremap_dontunmap 0 0 2 1 0",
    "mexpand": _BASIC + "mexpand 0 0 4 6",
    "mthp": "mthp 64 always; map 0 anon-private 32; write 0 0 32",
    "thp": "thp always; " + _HUGE,
    "hugepage": f"map 0 anon-private {PMD_PAGES}; hugepage 0 0 {PMD_PAGES}; write 0 0 1",
    "nohugepage": f"map 0 anon-private {PMD_PAGES}; nohugepage 0 0 {PMD_PAGES}; write 0 0 1",
    "collapse": _HUGE + f"collapse 0 0 {PMD_PAGES}",
    "thpsplit": _HUGE + f"thpsplit 0 0 {PMD_PAGES}",
    "uffd": _BASIC + "uffd 0 0 4",
    "uwp": _BASIC + "uffd 0 0 4; uwp 0 0 4 1",
    "attach": _FILE + "attach 1 private 4 0",
    "fwrite": _FILE + "fwrite 0 0 1",
    "msync": _FILE + "msync 0 0 4",
    "remove": "map 0 anon-shared 4; write 0 0 4; remove 0 0 1",
    "cwrite": _BASIC + "fork; cwrite 0 0 1",
    "cread": _BASIC + "fork; cread 0 0 1",
    "cclear": _BASIC + "fork; cclear",
    "cexit": _BASIC + "fork; cexit",
    "swapon": _BASIC + "swapoff; swapon",
    "unmerge": _BASIC + "ksm 0 0 4; unmerge",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The verbs and kinds of mapping that every one of some models has.

    ``missing``: verb or kind -> what the model said.
    """

    verbs: frozenset[str]
    kinds: frozenset[str]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, *configs: ModelConfig) -> Vocabulary:
        """Ask each of the models."""
        missing: dict[str, str] = {}
        for verb in sorted({*OPERANDS, *SPAN_VERBS}):
            script = _PROBES.get(verb, _BASIC + Op(verb, 0, count=1).script())
            _probe(verb, script, configs, missing)
        for kind in KINDS:
            _probe(kind, f"map 0 {kind} {PMD_PAGES}; write 0 0 1", configs, missing)
        verbs = frozenset({*OPERANDS, *SPAN_VERBS} - missing.keys())
        return cls(verbs, frozenset(KINDS) - missing.keys(), missing)

    @classmethod
    def everything(cls) -> Vocabulary:
        """All that a program can ask for, for machines that are no model."""
        verbs = frozenset({*OPERANDS, *SPAN_VERBS} - MODEL_ONLY)
        return cls(verbs, frozenset(KINDS) - MODEL_ONLY)

    def without(self, *names: str) -> Vocabulary:
        """The same, less some verbs or kinds."""
        left_out = dict.fromkeys(names, "left out")
        return Vocabulary(
            self.verbs.difference(names),
            self.kinds.difference(names),
            {**self.missing, **left_out},
        )


def _probe(what: str, script: str, configs: Iterable[ModelConfig], missing: dict[str, str]) -> None:
    for config in configs:
        player = Player(config)
        try:
            for line in script.split(";"):
                if line.strip() and player.execute(parse_op(line)) == -_EINVAL and what in KINDS:
                    missing[what] = "the architecture has no such pages"
        except NotModelled as reason:
            missing[what] = str(reason.strerror)
        except Livelock:
            # With a hunk off even this may never end; the operation is there all the same.
            pass
        finally:
            player.machine.release()


_EINVAL: Final = 22

_COMMON: Final = {
    "write": 20,
    "read": 10,
    "clear": 14,
    "dontneed": 3,
    "pageout": 6,
    "mprotect": 8,
    "memwrite": 4,
    "memread": 1,
    "sysread": 2,
    "populate_write": 1,
    "populate_read": 1,
    "fill": 1,
    "clear1": 1,
}
"""What every theme does, by weight."""

_MOVES: Final = {"mremap": 8, "mremap_dontunmap": 3, "munmap": 4, "remap": 4, "mexpand": 3}
_FORKS: Final = {"fork": 6, "cwrite": 12, "cread": 4, "cclear": 3, "cexit": 3}
_FORCED: Final = {"mprotect": 12, "memwrite": 10}
"""Forced writes into what is read-only: where blocks of entries have their own code."""
_CARE: Final = {"free": 3, "cold": 2, "willneed": 2, "mlock": 2, "munlock": 2}
_SWAP: Final = {"pageout": 14, "swapoff": 4, "swapon": 4}


@dataclass(frozen=True, slots=True)
class Theme:
    """How a kind of sequence lays out memory, and what it does besides the common operations.

    ``needs``  verbs or kinds of mapping without which the theme makes no sense
    ``pages``  fewest and most pages of a region, a multiple of ``unit``
    ``block``  pages that belong together: half of the ranges cover whole blocks
    ``first``  lines before everything else
    ``whole``  every range covers whole blocks
    ``prot``   what all of it is protected to before anything is touched
    """

    name: str
    kinds: tuple[str, ...]
    extra: Mapping[str, int]
    needs: tuple[str, ...] = ()
    pages: tuple[int, int] = (4, 20)
    unit: int = 1
    block: int = 1
    regions: int = 1
    first: tuple[str, ...] = ()
    advice: str = ""
    whole: bool = False
    prot: str = ""


_ANON = ("anon-private",)
THEMES: Final = (
    Theme("anon", _ANON, _CARE | {"swapoff": 1, "swapon": 1}),
    Theme("vma", _ANON, _MOVES | {"free": 2}, regions=2),
    Theme("shmem", ("anon-shared", "tmpfs-private", "tmpfs-shared"), {"remove": 1}, regions=2),
    Theme("swap", ("anon-private", "anon-private", "anon-shared"), _SWAP | {"mremap": 2}),
    Theme("fork", ("anon-private", "anon-private", "anon-shared", "tmpfs-private"), _FORKS),
    Theme("files", ("tmpfs-private", "tmpfs-shared"), _FORKS | _MOVES | {"remove": 1}),
    Theme(
        "mthp",
        _ANON,
        _FORCED | {"collapse": 1, "thpsplit": 2, "munmap": 2, "mremap": 3, "free": 2, "mlock": 1},
        needs=("mthp",),
        pages=(16, 48),
        unit=16,
        block=16,
        first=("mthp 64 always",),
    ),
    Theme(
        "mthp-fork",
        _ANON,
        _FORKS | _FORCED | {"swapoff": 1, "swapon": 1},
        needs=("mthp",),
        pages=(16, 32),
        unit=16,
        block=16,
        first=("mthp 64 always",),
    ),
    Theme(
        "thp",
        _ANON,
        {"collapse": 4, "thpsplit": 3, "munmap": 2, "mremap": 4, "nohugepage": 1, "free": 1},
        needs=("hugepage",),
        pages=(512, 1024),
        unit=512,
        block=512,
        advice="hugepage",
    ),
    Theme(
        "thp-fork",
        _ANON,
        _FORKS | {"thpsplit": 1},
        needs=("hugepage",),
        pages=(512, 512),
        unit=512,
        block=512,
        advice="hugepage",
    ),
    Theme(
        "hugetlb64k",
        ("hugetlb64k", "hugetlb64k-shared"),
        {"fork": 4, "cwrite": 4, "munmap": 2, "mremap": 2},
        needs=("hugetlb64k",),
        pages=(16, 32),
        unit=16,
        block=16,
    ),
    Theme(
        "hugetlb64k-read",
        ("hugetlb64k-shared",),
        {"mprotect": 40, "read": 24, "write": 24, "clear": 20, "mremap": 3},
        needs=("hugetlb64k-shared",),
        pages=(32, 64),
        unit=16,
        block=16,
        whole=True,
        prot="r",
    ),
    Theme(
        "hugetlb2m",
        ("hugetlb2m", "hugetlb2m-shared"),
        {"fork": 4, "cwrite": 4, "munmap": 2},
        needs=("hugetlb2m",),
        pages=(512, 1024),
        unit=512,
        block=512,
    ),
    Theme("uffd", _ANON, {"uffd": 4, "uwp": 10} | _SWAP, needs=("uwp",)),
    Theme("ksm", _ANON, {"ksm": 8, "unmerge": 3, "fill": 20}, needs=("ksm",)),
    Theme("migrate", _ANON, _CARE | {"migrate": 10, "migrated": 4}, needs=("migrate",)),
    Theme(
        "migrate-thp",
        _ANON,
        {"migrate": 24, "migrated": 2, "clear": 24, "free": 5, "munmap": 2, "mremap": 4},
        needs=("migrate", "hugepage"),
        pages=(512, 1024),
        unit=512,
        block=512,
        advice="hugepage",
    ),
)


def themes_for(vocabulary: Vocabulary) -> tuple[Theme, ...]:
    """The themes that make sense with these operations."""
    known = vocabulary.verbs | vocabulary.kinds
    return tuple(theme for theme in THEMES if known.issuperset(theme.needs))


def generate(seed: int, vocabulary: Vocabulary, theme: Theme | None = None) -> tuple[Op, ...]:
    """A sequence of operations; ``theme`` None takes one after the other."""
    if theme is None:
        themes = themes_for(vocabulary)
        theme = themes[seed % len(themes)]
    return _Generator(seed, vocabulary, theme).sequence()


class _Generator:
    """Makes one sequence, remembering just enough for most operations to make sense."""

    def __init__(self, seed: int, vocabulary: Vocabulary, theme: Theme) -> None:
        self._random = Random(f"{theme.name} {seed}")
        self._vocabulary = vocabulary
        self._theme = theme
        self._pages: dict[int, int] = {}
        self._ops: list[Op] = []
        self._forked = False
        self._swap = True
        weights = dict(_COMMON)
        for verb, weight in theme.extra.items():
            weights[verb] = max(weight, weights.get(verb, 0))
        self._weights = {v: w for v, w in weights.items() if v in vocabulary.verbs}

    def _below(self, limit: int) -> int:
        # Random.random is the one method whose values Python promises to keep.
        return int(self._random.random() * limit)

    def sequence(self) -> tuple[Op, ...]:
        theme = self._theme
        self._ops = [parse_op(line) for line in theme.first]
        for region in range(theme.regions):
            self._map(region)
        if self._below(4):
            if self._below(3):
                whole = self._pages[0]
                count = whole if self._below(2) else self._count(whole)
                self._ops.append(Op("write", 0, count=count))
            self._ops.append(Op("clear", 0))
        for _ in range(6 + self._below(14)):
            self._step()
        return tuple(self._ops)

    def _map(self, region: int) -> None:
        theme = self._theme
        kinds = [kind for kind in theme.kinds if kind in self._vocabulary.kinds]
        kind = kinds[self._below(len(kinds))] if kinds else "anon-private"
        least, most = (limit // theme.unit for limit in theme.pages)
        pages = theme.unit * (least + self._below(most - least + 1))
        self._pages[region] = pages
        self._ops.append(Op("map", 0, region=region, kind=kind, count=pages))
        if theme.advice:
            self._ops.append(Op(theme.advice, 0, region=region, count=pages))
        if theme.prot:
            self._ops.append(Op("mprotect", 0, region=region, count=pages, prot=theme.prot))

    def _count(self, room: int) -> int:
        few = 1 + self._below(3) if self._below(3) else 1 + self._below(room)
        return min(few, room)

    def _span(self, verb: str) -> Op:
        regions = [region for region, pages in self._pages.items() if pages]
        region = regions[self._below(len(regions))]
        pages, block = self._pages[region], self._theme.block
        page = self._below(pages)
        count = self._count(pages - page)
        shape = self._below(4)
        if shape == 0 or (block > 1 and shape == 1) or self._theme.whole:
            page = page // block * block if block > 1 else 0
            count = min(block, pages - page) if self._below(3) and block > 1 else pages - page
        return Op(verb, 0, region=region, page=page, count=count)

    def _step(self) -> None:
        verb = self._verb()
        match verb:
            case "clear" | "clear1" | "compact" | "unmerge" | "migrated":
                self._ops.append(Op(verb, 0))
            case "fork" | "cexit" | "cclear":
                self._forked = verb != "cexit"
                self._ops.append(Op(verb, 0))
            case "swapoff" | "swapon":
                self._swap = verb == "swapon"
                self._ops.append(Op(verb, 0))
            case "mprotect":
                prot = ("r", "rw", "none", "rw", "r")[self._below(5)]
                self._ops.append(replace(self._span(verb), prot=prot))
            case "fill":
                self._ops.append(replace(self._span(verb), value=self._below(3)))
            case "uwp":
                self._ops.append(replace(self._span(verb), value=self._below(2)))
            case "mremap" | "mremap_dontunmap":
                self._move(self._span(verb))
            case "mexpand":
                op = self._span(verb)
                grown = op.count + 1 + self._below(4)
                self._ops.append(replace(op, new_count=grown))
                end = op.page + grown
                self._pages[op.region] = max(self._pages[op.region], end)
            case _:
                self._ops.append(self._span(verb))

    def _move(self, op: Op) -> None:
        target = len(self._pages) if len(self._pages) < REGIONS and self._below(4) else 0
        if target == op.region:
            return
        page = 0 if self._below(3) else self._below(4)
        self._ops.append(replace(op, to_region=target, to_page=page))
        self._pages[target] = max(self._pages.get(target, 0), page + op.count)

    def _pick(self) -> str:
        at = self._below(sum(self._weights.values()))
        for verb, weight in self._weights.items():
            if at < weight:
                return verb
            at -= weight
        raise AssertionError("weights do not add up")

    def _verb(self) -> str:
        while True:
            verb = self._pick()
            if verb in ("cwrite", "cread", "cclear", "cexit") and not self._forked:
                continue
            if (verb == "swapon" and self._swap) or (verb == "swapoff" and not self._swap):
                continue
            return verb


def script(ops: Iterable[Op]) -> list[str]:
    """The operations as lines of the script language."""
    return [op.script() for op in ops]


def parse_script(text: str) -> tuple[Op, ...]:
    """The operations of a script, one a line or between semicolons; ``#`` starts a comment.

    OperationError on a line that is no operation.
    """
    lines = [line.partition("#")[0] for line in text.splitlines()]
    parts = [part for line in lines for part in line.split(";") if part.strip()]
    return tuple(parse_op(part) for part in parts)
