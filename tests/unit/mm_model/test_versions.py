"""Where kernel profiles differ. Found by `predump conform fuzz` on Debian's 6.1."""

from __future__ import annotations

import errno
import signal

import pytest

from mm_model import ModelConfig
from mm_model.state import LARGE_FOLIOS
from predump.conform.operations import parse_script
from predump.conform.replay import Player


def run(kernel: str, text: str, frames: int = 256) -> tuple[list[int], Player]:
    """The results of a script on a machine with this profile, and the machine."""
    player = Player(ModelConfig(frames=frames, swap_slots=256, kernel=kernel))
    return [player.execute(op) for op in parse_script(text)], player


@pytest.mark.parametrize(("kernel", "present"), [("6.1", "01"), ("6.12", "00")])
def test_populating_goes_past_a_gap_in_6_1(kernel: str, present: str) -> None:
    """Both say ENOMEM; 6.1 has populated what is mapped behind the gap by then."""
    results, player = run(kernel, "map 0 anon-private 2; munmap 0 0 1; populate_read 0 0 2")
    assert results == [0, 0, -errno.ENOMEM]
    assert player.show("self", 0, descriptors=False).fields["present"] == present


@pytest.mark.parametrize(("kernel", "mappings"), [("6.1", 1), ("6.12", 2)])
def test_mapping_never_written_stays_accounted_in_6_1(kernel: str, mappings: int) -> None:
    """Later mprotect(PROT_NONE) takes VM_ACCOUNT off it, and it merges no more with one that is."""
    text = "map 0 anon-private 2; mprotect 0 1 1 none; write 0 0 1; mprotect 0 0 2 r"
    results, player = run(kernel, text)
    assert results == [0, 0, 0, 0]
    assert len(player.show("self", 0, descriptors=False).vmas) == mappings


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_hole_may_be_punched_through_a_mapping_that_is_read_only_now(kernel: str) -> None:
    text = "map 0 tmpfs-shared 2; write 0 0 2; mprotect 0 0 2 r; remove 0 0 1"
    results, player = run(kernel, text)
    assert results == [0, 0, 0, 0]
    assert player.show("self", 0, descriptors=False).fields["present"] == "01"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_reading_beyond_the_end_of_a_file_maps_what_is_there_before_the_signal(kernel: str) -> None:
    text = "map 0 tmpfs-shared 3; write 0 0 3; dontneed 0 0 3; mexpand 0 0 3 4; read 0 3 1"
    results, player = run(kernel, text)
    assert results == [0, 0, 0, 0, signal.SIGBUS]
    assert player.show("self", 0, descriptors=False).fields["present"] == "1110"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_populating_beyond_the_end_of_a_file_is_an_error_and_no_signal(kernel: str) -> None:
    text = "map 0 tmpfs-private 1; mexpand 0 0 1 2; populate_write 0 0 2; write 0 1 1"
    results, _ = run(kernel, text)
    assert results == [0, 0, -errno.EFAULT, signal.SIGBUS]


@pytest.mark.parametrize(("kernel", "mappings"), [("6.1", [(0, 1), (1, 3)]), ("6.12", [(0, 3)])])
def test_new_mapping_in_a_gap_joined_the_next_one_first_in_6_1(
    kernel: str, mappings: list[tuple[int, int]]
) -> None:
    """The one before was never written: it has no anon_vma, the one behind the gap has."""
    text = "map 0 anon-private 3; munmap 0 1 1; write 0 2 1; remap 0 1 1"
    results, player = run(kernel, text)
    assert results == [0, 0, 0, 0]
    shown = player.show("self", 0, descriptors=False).vmas
    assert [(vma.start, vma.end) for vma in shown] == mappings


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_write_beyond_the_end_of_a_private_file_makes_fork_copy_the_mapping(kernel: str) -> None:
    """A private file mapping that was never written is left to the child's own faults."""
    text = "map 0 tmpfs-private 2; read 0 0 2; mexpand 0 0 2 3; "
    results, player = run(kernel, text + "write 0 2 1; fork")
    assert results == [0, 0, 0, signal.SIGBUS, 0]
    assert player.show("child", 0, descriptors=False).fields["present"] == "110"
    _, player = run(kernel, text + "fork")
    assert player.show("child", 0, descriptors=False).fields["present"] == "000"


@pytest.mark.parametrize(
    ("no_access", "soft_dirty"),
    [
        ("mprotect 0 0 1 none", {"6.1": "111", "6.12": "010"}),
        ("mprotect 0 1 1 none", {"6.1": "010", "6.12": "010"}),
        ("mprotect 0 2 1 none", {"6.1": "010", "6.12": "010"}),
        ("mprotect 0 0 3 none", {"6.1": "111", "6.12": "010"}),
    ],
)
def test_ksm_does_not_find_pages_again_that_may_not_be_accessed_in_6_1(
    no_access: str, soft_dirty: dict[str, str]
) -> None:
    """Page 1 merges with page 0, and is what page 2 merges into; if page 0 is found once more."""
    for kernel, expected in soft_dirty.items():
        text = f"map 0 anon-private 3; clear; fill 0 0 3 0; {no_access}; ksm 0 0 3"
        results, player = run(kernel, text)
        assert results == [0] * 5
        assert player.show("self", 0, descriptors=False).fields["soft_dirty"] == expected


def test_page_that_ksm_cannot_find_again_ends_every_search_in_6_1() -> None:
    text = "map 0 anon-private 3; clear; fill 0 0 1 7; fill 0 1 2 0; mprotect 0 0 1 none; ksm 0 0 3"
    for kernel, soft_dirty in {"6.1": "111", "6.12": "101"}.items():
        results, player = run(kernel, text)
        assert results == [0] * 6
        assert player.show("self", 0, descriptors=False).fields["soft_dirty"] == soft_dirty


def test_pages_that_may_not_be_accessed_stay_merged_in_6_1() -> None:
    """Page 1 becomes a copy, which a write fault makes in 6.1, and nobody looks for page 0."""
    text = """map 0 anon-private 2; ksm 0 0 2; fill 0 0 1 0; fill 0 1 1 0; ksm 0 0 1; clear
        mprotect 0 0 1 none; unmerge"""
    for kernel, soft_dirty in {"6.1": "01", "6.12": "00"}.items():
        results, player = run(kernel, text)
        assert results == [0] * 8
        assert player.show("self", 0, descriptors=False).fields["soft_dirty"] == soft_dirty


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_ksm_merges_pages_it_saw_before_ahead_of_new_ones(kernel: str) -> None:
    """Pages 3 and 4 have the checksum of the last scan: they merge before page 2 is looked for."""
    text = "map 0 anon-private 5; clear; fill 0 3 2 0; ksm 0 0 5; fill 0 2 3 0; ksm 0 0 1"
    results, player = run(kernel, text)
    assert results == [0] * 6
    assert player.show("self", 0, descriptors=False).fields["soft_dirty"] == "00001"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_collapse_is_refused_where_nothing_was_ever_mapped(kernel: str) -> None:
    """Even if the range has no whole huge page in it: the mapping is asked for its anon_vma."""
    text = "map 0 anon-private 512; collapse 0 0 1; write 0 0 1; collapse 0 0 1"
    results, _ = run(kernel, text, frames=4096)
    assert results == [0, -errno.EINVAL, 0, 0]


@pytest.mark.parametrize(("kernel", "huge"), [("6.1", 512), ("6.12", 0)])
def test_debugfs_does_not_split_what_may_not_be_accessed_in_6_1(kernel: str, huge: int) -> None:
    """Found by fuzzing: 6.1 splits no folio there, and so makes nothing of it soft-dirty."""
    text = "map 0 anon-private 512; hugepage 0 0 512; write 0 0 1; clear; mprotect 0 0 512 none; "
    results, player = run(kernel, text + "thpsplit 0 0 1", frames=4096)
    assert results == [0] * 6
    assert int(player.machine.phys.ctr[LARGE_FOLIOS]) * 512 == huge
    shown = player.show("self", 0, descriptors=False).fields["soft_dirty"]
    assert kernel != "6.1" or shown == 512 * "0"


HUGE = "map 0 anon-private 512; hugepage 0 0 512; write 0 0 1; "


def test_freed_huge_page_leaves_its_page_table_when_pushed_out_in_6_1() -> None:
    """A read then maps one zero page; 6.12 drops the entry whole, and maps the huge zero page."""
    present = {}
    for kernel in ("6.1", "6.12"):
        results, player = run(kernel, HUGE + "free 0 0 512; pageout 0 0 512", frames=4096)
        assert results == [0] * 5
        assert player.show("self", 0, descriptors=False).fields["present"] == 512 * "0"
        assert int(player.machine.phys.ctr[LARGE_FOLIOS]) == 0
        player.execute(parse_script("read 0 7 1")[0])
        present[kernel] = player.show("self", 0, descriptors=False).fields["present"]
    assert present["6.1"] == 7 * "0" + "1" + 504 * "0"
    assert present["6.12"] == 512 * "1"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_freed_huge_page_stays_if_it_was_written_since(kernel: str) -> None:
    text = HUGE + "free 0 0 512; write 0 3 1; pageout 0 0 512"
    results, player = run(kernel, text, frames=4096)
    assert results == [0] * 6
    assert player.show("self", 0, descriptors=False).fields["present"] == 512 * "1"


@pytest.mark.parametrize("verb", ["pageout", "free"])
@pytest.mark.parametrize(("kernel", "huge"), [("6.1", 0), ("6.12", 1)])
def test_advice_asks_for_the_mappings_of_the_page_in_6_1(kernel: str, huge: int, verb: str) -> None:
    """The child has written page 253, so its parent alone maps that page of the folio they share.

    6.1 splits the folio, for the child as well; 6.12 sees that others map the first page.
    """
    text = HUGE + "fork; cwrite 0 253 1; write 0 1 1; clear; " + verb
    results, player = run(kernel, f"{text} 0 253 1; pageout 0 253 1", frames=4096)
    assert results == [0] * 9
    assert int(player.machine.phys.ctr[LARGE_FOLIOS]) == huge
    shown = player.show("self", 0, descriptors=False).fields
    gone = "swap" if verb == "pageout" else "present"
    assert shown[gone][253] == ("1" if (verb == "pageout") == (kernel == "6.1") else "0")
    assert player.show("child", 0, descriptors=False).fields["present"] == 512 * "1"


@pytest.mark.parametrize(("kernel", "swapped"), [("6.1", ""), ("6.12", "253")])
def test_shared_page_of_a_folio_ends_the_advice_in_6_1(kernel: str, swapped: str) -> None:
    """Page 0 is the child's, too; 6.12 goes on to page 253, which is the parent's own."""
    text = HUGE + "fork; cwrite 0 253 1; write 0 253 1; cold 0 0 512; free 0 0 512; pageout 0 0 512"
    results, player = run(kernel, text, frames=4096)
    assert results == [0] * 9
    assert int(player.machine.phys.ctr[LARGE_FOLIOS]) == 1
    present = player.show("self", 0, descriptors=False).fields["present"]
    assert [str(page) for page, bit in enumerate(present) if bit == "0"] == swapped.split()


@pytest.mark.parametrize(("kernel", "swapped"), [("6.1", 1), ("6.12", 0)])
def test_huge_page_whose_first_page_is_not_shared_is_taken_from_all_in_6_1(
    kernel: str, swapped: int
) -> None:
    """The child has a page 0 of its own, and maps the others of its parent's huge page."""
    player = Player(ModelConfig(frames=4096, swap_slots=2048, kernel=kernel))
    text = HUGE + "fork; cwrite 0 0 1; clear; pageout 0 0 512"
    assert [player.execute(op) for op in parse_script(text)] == [0] * 7
    shown = player.show("self", 0, descriptors=False).fields
    assert shown["swap"] == 512 * str(swapped)
    child = player.show("child", 0, descriptors=False).fields
    assert child["swap"] == "0" + 511 * str(swapped)
    assert child["present"] == "1" + 511 * str(1 - swapped)


@pytest.mark.parametrize(("kernel", "present"), [("6.1", 0), ("6.12", 1)])
def test_freed_huge_page_is_taken_from_all_in_6_1(kernel: str, present: int) -> None:
    text = HUGE + "free 0 0 512; fork; cwrite 0 0 1; pageout 0 0 512"
    results, player = run(kernel, text, frames=4096)
    assert results == [0] * 7
    assert player.show("self", 0, descriptors=False).fields["present"] == 512 * str(present)
    child = player.show("child", 0, descriptors=False).fields["present"]
    assert child == "1" + 511 * str(present)
    assert int(player.machine.phys.ctr[LARGE_FOLIOS]) == present
