"""The recordings notice when a hunk is taken out of the model, and what each of them shows.

`make mutate-hunks` does the same with the whole suite; this is the part of it that is quick.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_model import HUNKS
from tests.unit.mm_model.test_hunks_off import CASES as STORIES

from .catalogue import Recording, collected
from .harms import HARMS, harms
from .recordings import CONTPTE_OFF, HUNKS_OFF, WHOLE
from .test_traces import verdict

DESCRIPTORS: Recording = next(r for r in WHOLE if r.file.endswith("-rfc-descriptors.jsonl.gz"))
SINGLE = [r for r in HUNKS_OFF + CONTPTE_OFF if len(r.hunks_off) == 1]
NEUTRAL = {
    name
    for name in {next(iter(r.hunks_off)) for r in SINGLE}
    if not any(r.differs for r in SINGLE if r.hunks_off == {name})
}
"""Hunks and variants whose own recordings the whole patch meets: by these they are neutral."""

UNIT = Path(__file__).parents[1] / "unit" / "mm_model"
UNSEEN = {
    # No recording moved a huge page: compaction found nothing to do in any.
    **dict.fromkeys(
        ("pmd_swp_soft_dirty", "pmd_swp_mksoft_dirty", "pmd_swp_clear_soft_dirty"),
        "test_moving_huge_pages.py",
    ),
    # pagemap shows nothing of hugetlb entries' bits.
    **dict.fromkeys(("huge_ptep_get", "get_clear_contig"), "test_hugetlb.py"),
    "huge_ptep_set_access_flags": "test_hugetlb.py",
}
"""Hunks that no recorded scenario can feel, and the unit tests that tell with from without."""


@pytest.mark.parametrize("name", [each.name for each in HUNKS])
def test_recording_of_the_whole_patch_is_not_met_without_a_hunk(name: str) -> None:
    felt = (
        scenario.name
        for scenario in collected(DESCRIPTORS)
        if not verdict(DESCRIPTORS, scenario, hunks_off=frozenset({name})).agrees
    )
    if next(felt, ""):
        assert name not in UNSEEN
    elif name in UNSEEN:
        assert f'"{name}"' in (UNIT / UNSEEN[name]).read_text("utf-8")
    else:
        # What no recorded scenario can feel is neutral by a recording, or has its story.
        assert name in NEUTRAL or name in {story[0] for story in STORIES}


def test_neutral_by_their_recordings_are_these() -> None:
    """A variant may be what the patch is already (as-ported), or out of these recordings' reach."""
    hugetlb = {"huge_ptep_get", "get_clear_contig", "huge_ptep_set_access_flags"}
    known = {"get_and_clear_full_ptes", "contpte-access-flags-as-ported", "swap-bit-61"}
    assert known <= NEUTRAL <= known | hugetlb


@pytest.mark.parametrize("recording", SINGLE, ids=lambda recording: recording.id)
def test_recorded_kernels_show_these_harms(recording: Recording) -> None:
    (name,) = recording.hunks_off
    assert harms(recording) == HARMS.get(name, frozenset())
