"""What `memtouch.c` does to which page, for tests to compare with what CRIU found.

The constants are those of the C file: keep both in step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("memtouch.c")
PAGE: Final = 4096
PRIVATE: Final = 0x1_0000_1000
SHARED: Final = 0x1_1000_1000
MAPPED: Final = 0x1_2000_1000
MAPPED_STRIDE: Final = 0x100000
HOT, FILLED, ZEROS, READ_ONLY, PRIVATE_PAGES = 32, 256, 288, 320, 384
SHARED_PAGES: Final = 64
STEP_PAGES, STEP_NEW, MAPPED_PAGES = 24, 4, 8
GIVEN_BACK, GIVEN_BACK_PAGES = 240, 8
CHILD_OWN, CHILD_OWN_PAGES = 224, 16
REGIONS_END: Final = MAPPED + 17 * MAPPED_STRIDE

_STATUS: Final = re.compile(r"step=(\d+) passes=(\d+) (PASS|FAIL.*?) *\n?$")


@dataclass(frozen=True, slots=True)
class Status:
    """The line that the program keeps up to date. Anything but PASS as verdict is its end."""

    step: int
    passes: int
    verdict: str

    @classmethod
    def read(cls, text: str) -> Status:
        """From the status file's content. Raises ValueError if it is not whole."""
        found = _STATUS.match(text)
        if found is None:
            raise ValueError(f"no status: {text!r}")
        return cls(int(found[1]), int(found[2]), found[3])


def in_regions(address: int) -> bool:
    """Whether a page is one of those whose stores are known, and not data or stack."""
    return PRIVATE <= address < REGIONS_END


def alive(steps: int) -> set[int]:
    """Private pages that have been written and are still there after so many steps."""
    written = {private_page(page) for page in range(ZEROS)}
    for step in range(1, steps + 1):
        written |= written_by(step)
        if step == 2:
            written -= {private_page(GIVEN_BACK + page) for page in range(GIVEN_BACK_PAGES)}
        if step == 3:
            written -= mapped_pages(1)
    return written


def hot() -> set[int]:
    """Pages that are written all the time."""
    return {private_page(page) for page in range(HOT)}


def written_by(step: int) -> set[int]:
    """Private pages that a step stores to."""
    at = (step - 1) * STEP_PAGES
    rewritten = {private_page(HOT + (at + page) % (CHILD_OWN - HOT)) for page in range(STEP_PAGES)}
    at = (step - 1) * STEP_NEW
    untouched = PRIVATE_PAGES - READ_ONLY
    new = {private_page(READ_ONLY + (at + page) % untouched) for page in range(STEP_NEW)}
    return rewritten | new | mapped_pages(step)


def shared() -> set[int]:
    """Offsets of the shared pages that were written: all but the first of the child's half."""
    return {page * PAGE for page in range(SHARED_PAGES) if page != SHARED_PAGES // 2}


def private_page(page: int) -> int:
    """The address of a private page."""
    return PRIVATE + page * PAGE


def mapped_pages(step: int) -> set[int]:
    """What a step maps and fills."""
    return {MAPPED + step * MAPPED_STRIDE + page * PAGE for page in range(MAPPED_PAGES)}
