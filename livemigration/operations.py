"""Operations on memory in words: one line each, the language of scripts.

``predump mm`` runs such lines on the model, recordings of real kernels are made of them, and
``workload.kind = "script"`` runs them while a migration is under way. A task has up to 8 regions,
1 GiB apart; an operation names a region, its first page in it and a number of pages.
docs/workloads.md lists the operations.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Final


class OperationError(ValueError):
    """A line that is no operation; ``str()`` is one line."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of the script language; absent operands are 0 or empty, as ``verb`` needs."""

    verb: str
    rc: int
    region: int = 0
    page: int = 0
    count: int = 0
    kind: str = ""
    """Kind of mapping (``map``)."""
    value: int = 0
    """Byte to fill with (``fill``), write-protect or not (``uwp``), size in KiB (``mthp``)."""
    prot: str = ""
    """``r``, ``rw`` or ``none`` (``mprotect``)."""
    to_region: int = 0
    to_page: int = 0
    new_count: int = 0
    mode: str = ""
    """Setting written (``mthp``, ``thp``)."""
    sharing: str = ""
    """``private`` or ``shared`` (``attach``)."""

    def script(self) -> str:
        """The operation as a line of the script language."""
        words = (str(getattr(self, name)) for name in operands_of(self.verb))
        return " ".join((self.verb, *words))


_SPAN: Final = ("region", "page", "count")
_MOVE: Final = (*_SPAN, "to_region", "to_page")

OPERANDS: Final[dict[str, tuple[str, ...]]] = {
    "map": ("region", "kind", "count"),
    "fill": (*_SPAN, "value"),
    "mprotect": (*_SPAN, "prot"),
    "mremap": _MOVE,
    "mremap_dontunmap": _MOVE,
    "mexpand": (*_SPAN, "new_count"),
    "uwp": (*_SPAN, "value"),
    "mthp": ("value", "mode"),
    "thp": ("mode",),
    "attach": ("region", "sharing", "count", "to_region"),
}
"""The operands of each verb in the script's order, where they are not region, page and count."""

for _verb in ("clear", "clear1", "cclear", "fork", "cexit", "swapoff", "swapon", "compact"):
    OPERANDS[_verb] = ()
OPERANDS["migrated"] = ()
OPERANDS["unmerge"] = ()

SPAN_VERBS: Final = frozenset(
    [
        "remap",
        "munmap",
        "write",
        "read",
        "memwrite",
        "memread",
        "sysread",
        "dontneed",
        "free",
        "cold",
        "pageout",
        "willneed",
        "populate_read",
        "populate_write",
        "dontfork",
        "wipeonfork",
        "remove",
        "collapse",
        "hugepage",
        "nohugepage",
        "mlock",
        "munlock",
        "cwrite",
        "cread",
        "ksm",
        "thpsplit",
        "uffd",
        "migrate",
        "fwrite",
        "msync",
    ]
)
"""Verbs whose operands are region, page and count."""

KINDS: Final = (
    "anon-private",
    "anon-shared",
    "tmpfs-private",
    "tmpfs-shared",
    "file-private",
    "file-shared",
    "hugetlb2m",
    "hugetlb2m-shared",
    "hugetlb64k",
    "hugetlb64k-shared",
)
INSIDE: Final = frozenset({"migrate", "migrated"})
"""Steps inside the kernel, which no program can ask for one by one: only a model has them.

``migrate`` begins to move pages to other frames: their entries are migration entries until
``migrated``, or until somebody touches one of the pages.
"""

MODEL_ONLY: Final = INSIDE | {"attach", "fwrite", "msync", "file-private", "file-shared"}
"""Verbs and kinds of mapping that the probe of ``predump conform`` does not have."""
PROTECTIONS: Final = ("none", "r", "rw")
_WORDS: Final = {
    "kind": KINDS,
    "prot": PROTECTIONS,
    "mode": ("always", "madvise", "never"),
    "sharing": ("private", "shared"),
}
REGIONS: Final = 8
"""Regions are 1 GiB apart; a scenario has at most this many."""
BASE: Final = 0x10_0000_0000
"""Address of region 0."""
STRIDE: Final = 1 << 30
"""From one region to the next."""
FILES: Final = ("tmpfs", "file")
"""What a kind of mapping that has a file begins with: in memory, on a disk."""


def operands_of(verb: str) -> tuple[str, ...]:
    """The names of a verb's operands, in the script's order."""
    return OPERANDS.get(verb, _SPAN)


def parse_op(line: str) -> Op:
    """One line of the script language as an operation; OperationError if it is none."""
    verb, *words = line.split() or [""]
    if verb not in OPERANDS and verb not in SPAN_VERBS:
        near = difflib.get_close_matches(verb, [*OPERANDS, *SPAN_VERBS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OperationError(f"{line.strip()!r}: there is no operation {verb!r}{hint}")
    names = operands_of(verb)
    if verb in ("mremap", "mremap_dontunmap") and len(words) == len(names) - 1:
        words.append("0")
    if len(words) != len(names):
        usage = " ".join((verb, *(name.upper() for name in names)))
        raise OperationError(f"{line.strip()!r}: must be {usage}")
    operands: dict[str, Any] = {}
    for name, word in zip(names, words, strict=True):
        operands[name] = _operand(line, name, word)
    for name in ("region", "to_region"):
        if operands.get(name, 0) >= REGIONS:
            raise OperationError(f"{line.strip()!r}: regions are 0 to {REGIONS - 1}")
    return Op(verb, 0, **operands)


def _operand(line: str, name: str, word: str) -> str | int:
    allowed = _WORDS.get(name)
    if allowed is not None:
        if word not in allowed:
            raise OperationError(f"{line.strip()!r}: {name} must be one of {', '.join(allowed)}")
        return word
    # A count may be negative: the recorder's generator made such calls, too.
    digits = word.removeprefix("-") if name == "count" else word
    if not digits.isdecimal() or len(digits) > 9:
        raise OperationError(f"{line.strip()!r}: {name} must be a number, not {word!r}")
    return int(word)
