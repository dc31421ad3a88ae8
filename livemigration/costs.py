"""What each step of a migration costs in time on the virtual clock.

Every constant is a setting (table ``[costs]`` of a scenario) with a source. The defaults were
measured on an x86-64 host with kernel 6.18 (userfaultfd WP_ASYNC and PAGEMAP_SCAN, whose work per
page is that of soft-dirty) or, where named, published by others; nobody has published arm64
soft-dirty costs. Costs that are 0 by default are those of one implementation: `predump calibrate`
measures them for this one. Times are integer nanoseconds, so that a virtual run gives the same
figures on every machine.

A scenario can take all of them from a machine file (`livemigration.machines`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from livemigration.units import TIME_FORMS, parse_time_ns

KIB = 1024
LARGEST_NS = 3_600_000_000_000
"""One hour: no step of a migration costs more."""


def _nanoseconds(value: object) -> object:
    """Text with a unit, or a bare whole number of nanoseconds; leaves to pydantic what is
    neither.
    """
    if isinstance(value, str):
        return parse_time_ns(value)
    if isinstance(value, bool | float):
        shown = str(value).lower()
        raise ValueError(f"{shown} is no cost; write a whole number of nanoseconds or {TIME_FORMS}")
    return value


TimeNs = Annotated[int, BeforeValidator(_nanoseconds), Field(ge=0, le=LARGEST_NS)]


class CostSpec(BaseModel):
    """The cost model. Times take units (``"1.3us"``); a bare number is nanoseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    machine: str = Field(
        default="",
        description="the machine file, or the name of a ready one, that costs not given here are "
        "taken from; empty: the defaults",
    )
    write_fault: TimeNs = Field(
        default=1_300,
        description="one write fault that sets soft-dirty again (measured: 1,244 to 1,490 ns)",
    )
    scan_page: TimeNs = Field(
        default=51, description="reading one page's pagemap entry (measured: 43 to 96 ns)"
    )
    clear_page: TimeNs = Field(
        default=81, description="clear_refs: write-protecting one page (measured: 81 to 142 ns)"
    )
    copy_kib: TimeNs = Field(
        default=115,
        description="copying 1 KiB of page out of the task (measured: 425-502 ns per 4 KiB)",
    )
    freeze: TimeNs = Field(
        default=100_000, description="stopping the task: signal or freezer, wait, parasite"
    )
    freeze_process: TimeNs = Field(default=50_000, description="the same, for each process")
    thaw: TimeNs = Field(default=50_000, description="letting the task go on after a pre-dump")
    round: TimeNs = Field(
        default=0, description="opening and closing a round: messages, and the answer to the last"
    )
    round_page: TimeNs = Field(
        default=0,
        description="the same for each page of the task: the list of what is there, and dropping "
        "at the destination what is there no more",
    )
    stream_kib: TimeNs = Field(
        default=0,
        description="1 KiB from memory to memory through both nodes, however fast the network is; "
        "0: the network alone decides",
    )
    restore: TimeNs = Field(
        default=5_000_000, description="forking and rebuilding the task around its memory"
    )
    restore_vma: TimeNs = Field(default=10_000, description="mapping one VMA")
    restore_kib: TimeNs = Field(
        default=141,
        description="putting 1 KiB of the final round in place (148 ms/GiB, destination prefault "
        "without THP: cloud-hypervisor#8899)",
    )
    restore_page: TimeNs = Field(
        default=0, description="each page of the task: taken over with what was there already"
    )
    resume: TimeNs = Field(
        default=1_000_000, description="the last step to runnable (1 ms: cloud-hypervisor#7979)"
    )

    zstd_kib: TimeNs = Field(
        default=2_600,
        description="compressing 1 KiB by zstd, level 1 (measured: 1,070 to 2,690 ns); other "
        "levels cost what they take more",
    )
    zstd_random_kib: TimeNs = Field(
        default=155,
        description="the same in a block that does not get smaller (measured: 148 to 204 ns)",
    )
    unzstd_kib: TimeNs = Field(
        default=700, description="decompressing to 1 KiB by zstd (measured: 390 to 875 ns)"
    )
    lz4_kib: TimeNs = Field(
        default=1_500, description="compressing 1 KiB by LZ4 (measured: 820 to 2,660 ns)"
    )
    lz4_random_kib: TimeNs = Field(
        default=125,
        description="the same in a block that does not get smaller (measured: 119 to 152 ns)",
    )
    unlz4_kib: TimeNs = Field(
        default=390, description="decompressing to 1 KiB by LZ4 (measured: 330 to 491 ns)"
    )
    delta_kib: TimeNs = Field(
        default=250,
        description="comparing 1 KiB with the version sent before, and writing what changed "
        "(measured: 135 in the processor's cache, 313 to 334 ns from memory)",
    )
    undelta_kib: TimeNs = Field(
        default=150,
        description="making 1 KiB of page from its delta and the version before (measured: 65 in "
        "the processor's cache, 187 to 257 ns from memory)",
    )
    estimate_page: TimeNs = Field(
        default=350,
        description='encoding "auto": looking at a sample of one page (measured: 333 to 367 ns)',
    )

    remote_fault: TimeNs = Field(
        default=4_500,
        description="post-copy: a fault through userfaultfd and back to the task, without what "
        "the page itself takes (measured: 1.5 to 4.7 us; awake or asleep handler)",
    )
    place_kib: TimeNs = Field(
        default=540,
        description="post-copy: UFFDIO_COPY of 1 KiB that the task waits for (measured: 1.6-2.6 us "
        "per 4 KiB)",
    )

    @model_validator(mode="before")
    @classmethod
    def _machine_was_read(cls, data: object) -> object:
        """A machine's name says where costs are from; they must be there."""
        if isinstance(data, Mapping) and isinstance(data.get("machine"), str) and data["machine"]:
            left = next((key for key in cls.model_fields if key not in data), None)
            if left is not None:
                raise ValueError(
                    f"machine: {data['machine']!r} is read with the scenario file that names it; "
                    f"here every cost must be given, and {left} is not"
                )
        return data

    def freeze_ns(self, processes: int) -> int:
        """Stopping a task of so many processes."""
        return self.freeze + self.freeze_process * processes

    def scan_ns(self, pages: int) -> int:
        """Reading the pagemap of so many pages."""
        return self.scan_page * pages

    def clear_ns(self, pages: int) -> int:
        """clear_refs over so many present pages."""
        return self.clear_page * pages

    def copy_ns(self, size: int) -> int:
        """Copying `size` bytes out of the task."""
        return self.copy_kib * size // KIB

    def round_ns(self, pages: int) -> int:
        """A round of a task that has so many pages, beside scanning and sending."""
        return self.round + self.round_page * pages

    def restore_ns(self, vmas: int, size: int, pages: int = 0) -> int:
        """Rebuilding a task with so many VMAs and pages, `size` bytes of it of the final round."""
        fixed = self.restore + self.restore_vma * vmas + self.restore_page * pages
        return fixed + self.restore_kib * size // KIB

    def delta_ns(self, size: int) -> int:
        """Comparing `size` bytes of pages with the versions sent before."""
        return self.delta_kib * size // KIB

    def undelta_ns(self, size: int) -> int:
        """Making `size` bytes of pages from deltas."""
        return self.undelta_kib * size // KIB
