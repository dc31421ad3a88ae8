"""Reading recordings of real kernels (``tests/data/kernel-traces``) into plain records.

A file holds one JSON object a line, one per scenario: the operations that a probe program
executed on the kernel with what each returned, and snapshots of what the kernel's interface
(pagemap, smaps and, on an instrumented kernel, the page table entries' own bits) then showed.
The README beside the data describes the format; this module knows nothing of the model.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA_DIR = Path(__file__).resolve().parent.parent / "data" / "kernel-traces"

PAGE_FIELDS = ("present", "swap", "soft_dirty", "file", "uffd_wp")
"""Per page strings of '0' and '1' that every kernel shows through pagemap."""

DESCRIPTOR_FIELDS = ("cont", "pte_write", "pte_dirty", "pte_sd", "pte_rdonly")
"""Per page strings that only the instrumented arm64 kernels show: bits of the PTE itself."""


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

    def script(self) -> str:
        """The operation as a line of the script language."""
        span = f"{self.verb} {self.region} {self.page} {self.count}"
        match self.verb:
            case "map":
                return f"map {self.region} {self.kind} {self.count}"
            case "fill":
                return f"{span} {self.value}"
            case "mprotect":
                return f"{span} {self.prot}"
            case "mremap" | "mremap_dontunmap":
                return f"{span} {self.to_region} {self.to_page}"
            case "mexpand":
                return f"{span} {self.new_count}"
            case "uwp":
                return f"{span} {self.value}"
            case "mthp":
                return f"mthp {self.value} {self.mode}"
            case "thp":
                return f"thp {self.mode}"
            case (
                "clear"
                | "clear1"
                | "cclear"
                | "fork"
                | "cexit"
                | "swapoff"
                | "swapon"
                | "compact"
                | "unmerge"
            ):
                return self.verb
            case _:
                return span


@dataclass(frozen=True, slots=True)
class VmaRecord:
    """One line of smaps inside a region; pages are counted from the region's start."""

    start: int
    end: int
    perms: str
    soft_dirty: bool


@dataclass(frozen=True, slots=True)
class RegionState:
    """What the kernel showed of one region: a string a field, one character a 4K page."""

    fields: dict[str, str]
    vmas: tuple[VmaRecord, ...]

    @property
    def npages(self) -> int:
        return len(self.fields["present"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after operation ``after`` (-1: before the first), of the task or its child."""

    after: int
    who: str
    regions: dict[int, RegionState]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One recorded scenario.

    ``killed``: the kernel never came back from the operation after the last of ``ops``, which
    are those that it completed.
    """

    name: str
    arch: str
    kernel: str
    page_size: int
    ops: tuple[Op, ...]
    snaps: tuple[Snapshot, ...]
    killed: bool
    has_descriptors: bool

    @property
    def group(self) -> str:
        """``hand`` or the random generator's profile: anon, vma, shmem, fork, thp, ..."""
        return self.name.split("-")[1] if self.name.startswith("random-") else "hand"


@dataclass(frozen=True, slots=True)
class TraceFile:
    """All scenarios of one recording, in their order."""

    path: Path
    scenarios: dict[str, Scenario]


def _op(record: dict[str, Any]) -> Op:
    known = {
        "op": "verb",
        "rc": "rc",
        "r": "region",
        "i": "page",
        "n": "count",
        "kind": "kind",
        "val": "value",
        "wp": "value",
        "kb": "value",
        "prot": "prot",
        "r2": "to_region",
        "i2": "to_page",
        "newn": "new_count",
        "mode": "mode",
    }
    unknown = record.keys() - known.keys()
    if unknown:
        raise ValueError(f"operation {record!r} has keys that are not known: {sorted(unknown)}")
    return Op(**{known[key]: value for key, value in record.items()})


def _region(record: dict[str, Any]) -> RegionState:
    npages = len(record["present"])
    # The probe leaves a string out when it is all zeros.
    fields = {name: record.get(name, "0" * npages) for name in PAGE_FIELDS + DESCRIPTOR_FIELDS}
    short = [name for name, bits in fields.items() if len(bits) != npages]
    if short:
        raise ValueError(f"strings of unequal length: {short}")
    vmas = tuple(
        VmaRecord(start, end, perms, "sd" in flags.split(","))
        for start, end, perms, _anon_huge_pages, flags in record["vmas"]
    )
    return RegionState(fields, vmas)


def _scenario(record: dict[str, Any]) -> Scenario:
    snaps = tuple(
        Snapshot(
            after=snap["after"],
            who=snap["who"],
            regions={int(key): _region(region) for key, region in snap["regions"].items()},
        )
        for snap in record["snaps"]
    )
    return Scenario(
        name=record["name"],
        arch=record["arch"],
        kernel=record["kernel"],
        page_size=record["page_size"],
        ops=tuple(_op(op) for op in record["ops"]),
        snaps=snaps,
        killed="killed" in record,
        # The instrumented kernel reports a young or read-only PTE in every scenario that maps
        # anything at all, so a file without any of these keys comes from an ordinary kernel.
        has_descriptors=any(
            key.startswith("pte_")
            for snap in record["snaps"]
            for region in snap["regions"].values()
            for key in region
        ),
    )


@cache
def load(relative: str) -> TraceFile:
    """Read ``DATA_DIR/relative``; ValueError names the line that is not a scenario."""
    path = DATA_DIR / relative
    scenarios: dict[str, Scenario] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                scenario = _scenario(json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{relative}, line {number}: {error}") from error
            scenarios[scenario.name] = scenario
    return TraceFile(path, scenarios)
