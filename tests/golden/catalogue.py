"""Which recordings the model must agree with today, and what was switched on or off for each.

``MODELLED_VERBS`` and ``MODELLED_KINDS`` decide which scenarios are held against the model. They
grow with the model; `test_catalogue.py` states the number of scenarios of every file, so a
scenario never drops out unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from predump.conform.trace import Scenario, read_trace

DATA_DIR = Path(__file__).resolve().parent.parent / "data" / "kernel-traces"

MODELLED_KINDS = frozenset(
    {
        "anon-private",
        "anon-shared",
        "tmpfs-private",
        "tmpfs-shared",
        "hugetlb2m",
        "hugetlb2m-shared",
        "hugetlb64k",
        "hugetlb64k-shared",
    }
)

MODELLED_VERBS = frozenset(
    {
        "map",
        "remap",
        "munmap",
        "mremap",
        "mremap_dontunmap",
        "mexpand",
        "mprotect",
        "mlock",
        "munlock",
        "write",
        "read",
        "fill",
        "memwrite",
        "memread",
        "sysread",
        "clear",
        "clear1",
        "cclear",
        "dontneed",
        "free",
        "cold",
        "pageout",
        "willneed",
        "populate_read",
        "populate_write",
        "dontfork",
        "wipeonfork",
        "fork",
        "cwrite",
        "cread",
        "cexit",
        "swapoff",
        "swapon",
        "ksm",
        "unmerge",
        "compact",
        "uffd",
        "uwp",
        "mthp",
        "thp",
        "thpsplit",
        "remove",
        "hugepage",
        "nohugepage",
        "collapse",
    }
)
"""All that the script language has in the recordings."""


def why_not_modelled(scenario: Scenario) -> str:
    """The first thing in the scenario that the model does not have yet; "" if it has all."""
    for op in scenario.ops:
        if op.verb not in MODELLED_VERBS:
            return op.verb
        if op.verb == "map" and op.kind not in MODELLED_KINDS:
            return op.kind
    return ""


@dataclass(frozen=True, slots=True)
class Recording:
    """One trace file, how the model is set up to meet it, and how many scenarios must agree."""

    file: str
    scenarios: int
    kernel: str = "6.12"
    dbm: bool = True
    hunks_off: frozenset[str] = frozenset()
    differs: int = 0
    """How many of those scenarios the complete patch would *not* meet: the hunk's effect."""

    arch: str = "arm64"

    @property
    def id(self) -> str:
        return self.file.removesuffix(".jsonl.gz")


def hunk_off(name: str, scenarios: int, *, differs: int, dbm: bool = True) -> Recording:
    """A file of ``hunks-off/``: the kernel with the hunk ``name`` reverted."""
    return Recording(
        file=f"hunks-off/{name}{'' if dbm else '-no-dbm'}.jsonl.gz",
        scenarios=scenarios,
        dbm=dbm,
        hunks_off=frozenset({name}),
        differs=differs,
    )


def collected(recording: Recording) -> Iterator[Scenario]:
    """The recording's scenarios that the model must agree with, in the file's order."""
    for scenario in load(recording.file).values():
        if not why_not_modelled(complete(scenario)):
            yield scenario


def complete(scenario: Scenario) -> Scenario:
    """The scenario with all its operations.

    A killed scenario's record ends before the operation that hung; the kernel with the contpte
    fault mended hung in none, so its recording has them all.
    """
    return load(COMPLETE_SCRIPTS)[scenario.name] if scenario.killed else scenario


def with_hung_operation(scenario: Scenario) -> Scenario:
    """The scenario with the operation that the kernel never came back from, if there is one."""
    if not scenario.killed:
        return scenario
    return replace(scenario, hung=complete(scenario).ops[len(scenario.ops)])


@cache
def load(relative: str) -> dict[str, Scenario]:
    """The scenarios of ``DATA_DIR/relative`` by name."""
    return read_trace(DATA_DIR / relative)


COMPLETE_SCRIPTS = "arm64-6.12.117-softdirty-rfc-fixed-descriptors.jsonl.gz"
