"""Reading recordings of real kernels (golden traces) into plain records.

A file holds one JSON object a line, one per scenario: the operations that a probe program
executed on the kernel with what each returned, and snapshots of what the kernel's interface
(pagemap, smaps and, on an instrumented kernel, the page table entries' own bits) then showed.
docs/conform.md describes the format; this module knows nothing of the model.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from livemigration.operations import Op, OperationError

PAGE_FIELDS = ("present", "swap", "soft_dirty", "file", "uffd_wp")
"""Per page strings of '0' and '1' that every kernel shows through pagemap."""

SCAN_FIELD = "scan_soft_dirty"
"""PAGE_IS_SOFT_DIRTY of PAGEMAP_SCAN, where the kernel has it."""
DESCRIPTOR_FIELDS = ("cont", "pte_write", "pte_dirty", "pte_sd", "pte_rdonly")
"""Per page strings that only the instrumented arm64 kernels show: bits of the PTE itself."""


class TraceError(OperationError):
    """A file that is no trace; ``str()`` is one line."""


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
    are those that it completed. ``hung``: that operation, where it is known.
    """

    name: str
    arch: str
    kernel: str
    page_size: int
    ops: tuple[Op, ...]
    snaps: tuple[Snapshot, ...]
    killed: bool
    has_descriptors: bool
    hung: Op | None = None

    @property
    def group(self) -> str:
        """``hand`` or the random generator's profile: anon, vma, shmem, fork, thp, ..."""
        return self.name.split("-")[1] if self.name.startswith("random-") else "hand"


_KEYS: Final = {
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


def _op(record: dict[str, Any]) -> Op:
    unknown = record.keys() - _KEYS.keys()
    if unknown:
        raise ValueError(f"operation {record!r} has keys that are not known: {sorted(unknown)}")
    op = Op(**{_KEYS[key]: value for key, value in record.items()})
    numbers = (op.rc, op.region, op.page, op.count, op.value, op.to_region, op.to_page)
    if not all(type(number) is int for number in (*numbers, op.new_count)):
        raise ValueError(f"operation {record!r}: an operand that must be a number is none")
    return op


def _region(record: dict[str, Any]) -> RegionState:
    npages = len(record["present"])
    # The probe leaves a string out when it is all zeros.
    fields = {name: record.get(name, "0" * npages) for name in PAGE_FIELDS + DESCRIPTOR_FIELDS}
    if record.get("scan_ok"):
        # Left out where it is as in pagemap.
        fields[SCAN_FIELD] = record.get(SCAN_FIELD, fields["soft_dirty"])
    short = [name for name, bits in fields.items() if len(bits) != npages]
    if short:
        raise ValueError(f"strings of unequal length: {short}")
    vmas = tuple(
        VmaRecord(start, end, perms, "sd" in flags.split(","))
        for start, end, perms, _anon_huge_pages, flags in record["vmas"]
    )
    return RegionState(fields, vmas)


def parse_scenario(record: dict[str, Any]) -> Scenario:
    """One line of a trace, parsed as JSON; KeyError, TypeError or ValueError if it is none."""
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
        hung=_op(record["hung"]) if "hung" in record else None,
        # The instrumented kernel reports a young or read-only PTE in every scenario that maps
        # anything at all, so a file without any of these keys comes from an ordinary kernel.
        has_descriptors=any(
            key.startswith("pte_")
            for snap in record["snaps"]
            for region in snap["regions"].values()
            for key in region
        ),
    )


def read_trace(path: Path) -> dict[str, Scenario]:
    """The scenarios of one recording by name, in their order (``.jsonl`` or ``.jsonl.gz``).

    TraceError says in one line what is wrong with the file, and in which line of it.
    """
    scenarios: dict[str, Scenario] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            scenario = parse_scenario(json.loads(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise TraceError(f"{path}, line {number}: not a recorded scenario: {what}") from error
        if scenario.name in scenarios:
            raise TraceError(f"{path}, line {number}: a second scenario {scenario.name!r}")
        scenarios[scenario.name] = scenario
    if not scenarios:
        raise TraceError(f"{path}: is empty; a trace has one scenario a line")
    return scenarios


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            yield from (line.decode("utf-8") for line in file)
    except FileNotFoundError:
        raise TraceError(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: cannot be read as a trace: {reason}") from error


def completed(scenario: Scenario, paths: Iterable[Path]) -> Scenario:
    """The scenario with the operation that hung, if it was killed in one and ``paths`` tell.

    A killed scenario's record ends before that operation, unless the recorder noted it. Recordings
    of the same script on other kernels have it.
    """
    if not scenario.killed or scenario.hung is not None:
        return scenario
    script = [op.script() for op in scenario.ops]
    quoted = json.dumps(scenario.name)
    for path in paths:
        for line in _lines(path):
            # The name comes first in a line; only the scenario of that name is worth parsing.
            if quoted not in line[:200]:
                continue
            twin = parse_scenario(json.loads(line))
            longer = len(twin.ops) > len(script)
            if longer and [op.script() for op in twin.ops[: len(script)]] == script:
                return replace(scenario, hung=twin.ops[len(script)])
    return scenario
