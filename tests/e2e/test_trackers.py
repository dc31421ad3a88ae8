"""Whole migrations with userfaultfd write-protection as the tracker, beside soft-dirty."""

import asyncio
from pathlib import Path

import pytest

from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import load_scenario

QUICKSTART = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"
SMALL = ("memory=8MiB", "link.bandwidth=100Mbit/s", "workload.rate='5000 pages/s'")


def migrate(tracker: str, *sets: str) -> Result:
    overrides = [parse_override(s) for s in (*SMALL, f"tracker='{tracker}'", *sets)]
    return asyncio.run(migrate_in_process(load_scenario(QUICKSTART, overrides)))


@pytest.mark.parametrize("kind", ["uniform", "zipf", "sequential"])
def test_both_trackers_send_the_same_pages_of_anonymous_memory(kind: str) -> None:
    soft_dirty, protected = (
        migrate(tracker, f"workload.kind='{kind}'") for tracker in ("soft-dirty", "uffd-wp")
    )
    assert protected.verified and protected.continued_equal is True
    assert protected.pages_lost == soft_dirty.pages_lost == 0
    assert [(r.pages_sent, r.pages_written) for r in protected.rounds] == [
        (r.pages_sent, r.pages_written) for r in soft_dirty.rounds
    ]


@pytest.mark.parametrize("kind", ["append-heap", "fork-cow", "swap-pressure"])
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_nothing_is_lost_over_fork_swap_mremap_and_mappings_that_come_and_go(
    kind: str, page_size: int
) -> None:
    result = migrate("uffd-wp", f"workload.kind='{kind}'", f"page_size={page_size}")
    assert result.verified and result.continued_equal is True
    assert result.pages_lost == 0


def test_it_does_not_need_the_patch() -> None:
    """Mainline arm64 has no soft-dirty, and userfaultfd all the same."""
    result = migrate("uffd-wp", "hunks.off=have_arch_soft_dirty")
    assert result.verified and result.pages_lost == 0


def test_mistakes_of_clear_refs_are_soft_dirtys_alone() -> None:
    mistake = "hunks.off=clear-refs-no-wrprotect"
    lost, kept = migrate("soft-dirty", mistake), migrate("uffd-wp", mistake)
    assert lost.pages_lost > 0 and not lost.verified
    assert kept.pages_lost == 0 and kept.verified
