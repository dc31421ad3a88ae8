"""Each hunk of the patch, switched off: what is then lost, spurious, or hangs.

Every case tells one story twice, with the whole patch and without the hunk. ``written`` is what
the story really changed since clear_refs; the report is pagemap's soft-dirty row.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mm_model import (
    HUNKS,
    MADV_PAGEOUT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    VARIANTS,
    Livelock,
    Machine,
    ModelConfig,
)
from tests.unit.mm_model.kernel_box import (
    BASE,
    RW,
    Region,
    make_machine,
    new_region,
    tracked_region,
)


def rewrite(machine: Machine) -> Region:
    """A page known to the last dump is written."""
    region = tracked_region(machine, 4)
    region.write(1, 2)
    return region


def first_write(machine: Machine) -> Region:
    region = new_region(machine, 4)
    region.mm.clear_refs()
    region.write(1, 2)
    return region


def write_and_swap(machine: Machine) -> Region:
    """Written, then pushed out before anyone looked."""
    region = rewrite(machine)
    region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
    return region


def write_swap_and_read(machine: Machine) -> Region:
    region = write_and_swap(machine)
    region.read(0, 1, 2, 3)
    return region


def swap_unwritten(machine: Machine) -> Region:
    region = tracked_region(machine, 4)
    region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
    return region


def write_swap_and_fork(machine: Machine) -> Region:
    region = write_and_swap(machine)
    region.mm.fork()
    return region


def move(machine: Machine) -> Region:
    region = tracked_region(machine, 4)
    part = Region(region.mm, region.at(1), 2)
    target = BASE + (1 << 30)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    region.mm.mremap(part.start, part.length, part.length, flags, target + part.page_size)
    return Region(region.mm, target, 4)


def clear_only(machine: Machine) -> Region:
    return tracked_region(machine, 4)


def swap_and_clear(machine: Machine) -> Region:
    region = new_region(machine, 4)
    region.write_all()
    region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
    region.mm.clear_refs()
    return region


def protect_and_back(machine: Machine) -> Region:
    region = tracked_region(machine, 4)
    region.mm.mprotect(*region.part(1, 2), PROT_READ)
    region.mm.mprotect(*region.part(1, 2), RW)
    return region


def unmap_and_map(machine: Machine) -> Region:
    region = rewrite(machine)
    region.mm.munmap(*region.part(0, 1))
    return region


Story = Callable[[Machine], Region]
CASES: list[tuple[str, Story, str, str]] = [
    # hunk off, story, report of the whole patch, report without the hunk
    ("have_arch_soft_dirty", rewrite, ".ss.", "...."),
    ("have_arch_soft_dirty", first_write, ".ss.", "...."),
    ("pte_soft_dirty", rewrite, ".ss.", "...."),
    ("pte_soft_dirty", write_swap_and_read, ".ss.", "...."),
    ("pte_mkdirty", rewrite, ".ss.", "...."),
    ("pte_mkdirty", first_write, ".ss.", "...."),
    ("pte_mksoft_dirty", move, ".ss.", "...."),
    ("pte_mksoft_dirty", write_swap_and_read, ".ss.", "...."),
    ("pte_mksoft_dirty", write_and_swap, ".ss.", ".ss."),  # still in the swap entry
    ("swap-bit-exclusive", swap_unwritten, "....", "ssss"),
    ("swap-bit-exclusive", write_swap_and_fork, ".ss.", "...."),
    ("pte_clear_soft_dirty", clear_only, "....", "ssss"),
    ("pte_swp_mksoft_dirty", write_and_swap, ".ss.", "...."),
    ("pte_swp_mksoft_dirty", write_swap_and_read, ".ss.", "...."),
    ("pte_swp_soft_dirty", write_and_swap, ".ss.", "...."),
    ("pte_swp_soft_dirty", write_swap_and_read, ".ss.", "...."),
    ("pte_swp_clear_soft_dirty", swap_and_clear, "....", "ssss"),
    ("pte_modify", protect_and_back, "....", ".ss."),
    ("ptep_set_access_flags", rewrite, ".ss.", "...."),
    ("ptep_set_access_flags", first_write, ".ss.", ".ss."),  # a new entry is written whole
    ("get_and_clear_full_ptes", rewrite, ".ss.", ".ss."),
    ("get_and_clear_full_ptes", unmap_and_map, ".ss.", ".ss."),
]


@pytest.mark.parametrize("dbm", [True, False], ids=["dbm", "no-dbm"])
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize(
    ("off", "story", "with_it", "without"),
    CASES,
    ids=[f"{case[0]}-{case[1].__name__}" for case in CASES],
)
def test_report(
    off: str, story: Story, with_it: str, without: str, page_size: int, dbm: bool
) -> None:
    assert story(make_machine(page_size, dbm=dbm)).soft_dirty == with_it
    assert story(make_machine(page_size, dbm=dbm, off=[off])).soft_dirty == without


@pytest.mark.parametrize("story", list(dict.fromkeys(case[1] for case in CASES)))
def test_the_whole_patch_reports_the_same_on_the_seeds_kernel(story: Story) -> None:
    seed = story(make_machine(kernel="seed"))
    assert seed.soft_dirty == story(make_machine()).soft_dirty


def test_content_is_the_same_whichever_hunk_is_off() -> None:
    def content(off: list[str]) -> list[int]:
        region = write_swap_and_read(make_machine(off=off))
        return [region.word(page) for page in range(4)]

    names = [hunk.name for hunk in HUNKS]
    assert {tuple(content(off)) for off in ([], names, *([name] for name in names))} == {
        (1, 0x5EED, 0x5EED, 1)
    }


def test_swapoff_never_ends_where_the_flag_of_a_swap_entry_stays() -> None:
    machine = make_machine(off=["pte_swp_clear_soft_dirty"])
    region = write_and_swap(machine)
    with pytest.raises(Livelock, match="swapoff") as caught:
        machine.swapoff()
    assert caught.value.address == region.at(1)


def test_clean_swap_entries_do_not_hold_swapoff_up() -> None:
    machine = make_machine(off=["pte_swp_clear_soft_dirty"])
    region = tracked_region(machine, 2)
    region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
    machine.swapoff()
    assert region.present == "pp"


def test_without_soft_dirty_in_the_kernel_new_mappings_are_not_reported_either() -> None:
    region = new_region(make_machine(off=["have_arch_soft_dirty"]), 2)
    region.write(0)
    assert region.soft_dirty == ".."
    assert [vma.soft_dirty for vma in region.mm.vmas()] == [False]


def test_hunks_can_be_off_together() -> None:
    machine = make_machine(off=["pte_modify", "ptep_set_access_flags"])
    region = protect_and_back(machine)
    region.write(0)
    assert region.soft_dirty == ".ss."


PATCHED = {
    "have_arch_soft_dirty",
    "pte_soft_dirty",
    "pte_mkdirty",
    "pte_mksoft_dirty",
    "pte_clear_soft_dirty",
    "pte_swp_mksoft_dirty",
    "pte_swp_soft_dirty",
    "pte_swp_clear_soft_dirty",
    "pmd_soft_dirty",
    "pmd_mksoft_dirty",
    "pmd_clear_soft_dirty",
    "pmd_swp_soft_dirty",
    "pmd_swp_mksoft_dirty",
    "pmd_swp_clear_soft_dirty",
    "pte_modify",
    "get_and_clear_full_ptes",
    "contpte_convert",
    "contpte_ptep_get",
    "contpte_ptep_get_lockless",
    "ptep_set_access_flags",
    "huge_ptep_get",
    "get_clear_contig",
    "huge_ptep_set_access_flags",
}


class TestNames:
    def test_every_function_that_the_patch_adds_or_changes_has_one(self) -> None:
        names = [hunk.name for hunk in HUNKS]
        assert set(names) == PATCHED
        assert len(names) == len(set(names))

    def test_every_one_says_where_it_is_and_what_it_protects(self) -> None:
        for hunk in HUNKS:
            assert hunk.file.startswith("arch/arm64/")
        for hunk in HUNKS + VARIANTS:
            assert hunk.file.startswith(("arch/arm64/", "fs/proc/"))
            assert hunk.function
            assert hunk.protects

    @pytest.mark.parametrize(
        ("wrong", "near"),
        [
            ("pte_modfy", "pte_modify"),
            ("__ptep_set_access_flags", "ptep_set_access_flags"),
            ("swap-bit", "swap-bit-61"),
            ("PTE_MKDIRTY", None),
        ],
    )
    def test_an_unknown_name_is_answered_with_the_nearest(
        self, wrong: str, near: str | None
    ) -> None:
        with pytest.raises(ValueError, match=f"unknown hunk '{wrong}'; did you mean") as caught:
            ModelConfig(hunks_off=frozenset({wrong}))
        assert near is None or f"{near!r}?" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", [hunk.name for hunk in HUNKS])
    def test_every_one_can_be_switched_off(self, name: str) -> None:
        assert ModelConfig(hunks_off=frozenset({name})).hunks_off == {name}
