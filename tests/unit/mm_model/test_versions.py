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


@pytest.mark.parametrize(("kernel", "soft_dirty"), [("6.1", "11"), ("6.12", "01")])
def test_ksm_does_not_find_pages_that_may_not_be_accessed_in_6_1(
    kernel: str, soft_dirty: str
) -> None:
    text = "map 0 anon-private 2; clear; fill 0 0 2 0; mprotect 0 0 1 none; ksm 0 0 2"
    results, player = run(kernel, text)
    assert results == [0] * 5
    assert player.show("self", 0, descriptors=False).fields["soft_dirty"] == soft_dirty


@pytest.mark.parametrize(("kernel", "huge"), [("6.1", 512), ("6.12", 0)])
def test_debugfs_does_not_split_what_may_not_be_accessed_in_6_1(kernel: str, huge: int) -> None:
    """Found by fuzzing: 6.1 splits no folio there, and so makes nothing of it soft-dirty."""
    text = "map 0 anon-private 512; hugepage 0 0 512; write 0 0 1; clear; mprotect 0 0 512 none; "
    results, player = run(kernel, text + "thpsplit 0 0 1", frames=4096)
    assert results == [0] * 6
    assert int(player.machine.phys.ctr[LARGE_FOLIOS]) * 512 == huge
    shown = player.show("self", 0, descriptors=False).fields["soft_dirty"]
    assert kernel != "6.1" or shown == 512 * "0"
