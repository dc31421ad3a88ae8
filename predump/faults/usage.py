"""What a process holds: to see whether it grows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """At one moment."""

    rss_bytes: int = 0  # without what it maps of files
    descriptors: int = 0
    threads: int = 0

    def minus(self, other: Usage) -> Usage:
        """How much more this is."""
        return Usage(
            self.rss_bytes - other.rss_bytes,
            self.descriptors - other.descriptors,
            self.threads - other.threads,
        )


def usage_of(pid: int) -> Usage:
    """Of a running process of ours; OSError if it is gone."""
    folder = _PROC / str(pid)
    resident, shared = (int(word) for word in (folder / "statm").read_text().split()[1:3])
    return Usage(
        rss_bytes=(resident - shared) * PAGE,
        descriptors=len(os.listdir(folder / "fd")),
        threads=len(os.listdir(folder / "task")),
    )
