"""What each step of a migration costs in time on the virtual clock.

Every constant is a setting (table ``[costs]`` of a scenario) with a source. The defaults were
measured on an x86-64 host with kernel 6.18 (userfaultfd WP_ASYNC and PAGEMAP_SCAN, whose work per
page is that of soft-dirty) or, where named, published by others; nobody has published arm64
soft-dirty costs. Times are integer nanoseconds, so that a virtual run gives the same figures on
every machine.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
    restore: TimeNs = Field(
        default=5_000_000, description="forking and rebuilding the task around its memory"
    )
    restore_vma: TimeNs = Field(default=10_000, description="mapping one VMA")
    restore_kib: TimeNs = Field(
        default=141,
        description="putting 1 KiB of the final round in place (148 ms/GiB, destination prefault "
        "without THP: cloud-hypervisor#8899)",
    )
    resume: TimeNs = Field(
        default=1_000_000, description="the last step to runnable (1 ms: cloud-hypervisor#7979)"
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

    def restore_ns(self, vmas: int, size: int) -> int:
        """Rebuilding a task with so many VMAs, of which `size` bytes came in the final round."""
        return self.restore + self.restore_vma * vmas + self.restore_kib * size // KIB
