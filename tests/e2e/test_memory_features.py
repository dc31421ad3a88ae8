"""Whole migrations in which each feature of the memory model happens while rounds run."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from dest_node.incoming import IncomingTask, Request
from dest_node.store import StateDirectory
from livemigration.snapshot import digest_task
from mm_model import FaultStats, Machine
from predump.inprocess import InProcessTransport, migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import load_scenario
from predump.testing.pair import Pair
from tests.e2e.watching import SCENARIOS, Watch, migrate, scenario

EVERY_SIZE = pytest.mark.parametrize("page_size", [4096, 16384, 65536])
DBM = pytest.mark.parametrize("dbm", ["true", "false"])


def assert_moved(result: Result) -> None:
    assert result.exit_code == 0, result.to_json()
    assert result.verified and result.continued_equal is True
    assert result.pages_lost == result.pages_different == 0
    assert result.owner == "destination"


def watched(monkeypatch: pytest.MonkeyPatch, name: str, page_size: int, *sets: str) -> Watch:
    """The scenario, migrated; what happened at the source meanwhile."""
    watch = Watch()
    watch.install(monkeypatch)
    assert_moved(migrate(scenario(name, page_size, *sets)))
    return watch


@EVERY_SIZE
@DBM
def test_contiguous_blocks_unfold_fold_swap_and_split(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    seen = watched(monkeypatch, "contpte", page_size, f"cpu.dbm={dbm}")
    assert seen.shrank("write", "cont") and seen.grew("write", "cont")
    assert seen.shrank("mprotect", "cont")
    assert seen.shrank("dontneed", "cont") and seen.shrank("dontneed", "large")
    assert seen.grew("pageout", "swapped") and seen.shrank("pageout", "cont")
    assert seen.shrank("read", "swapped")
    assert seen.shrank("thpsplit", "large")
    assert seen.grew("cwrite", "copied") and seen.grew("write", "copied")
    assert seen.saw("mremap")


@pytest.mark.parametrize("page_size", [4096, 16384])
@DBM
def test_huge_pages_split_move_and_collapse(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    seen = watched(monkeypatch, "thp", page_size, f"cpu.dbm={dbm}")
    assert seen.saw("write", lambda sight: sight.before.huge == sight.after.huge > 0)
    assert seen.grew("write", "huge")
    assert seen.shrank("mprotect", "huge")
    assert seen.shrank("munmap", "huge")
    assert seen.shrank("thpsplit", "huge") and seen.shrank("thpsplit", "large")
    assert seen.grew("collapse", "huge")
    assert seen.saw("mremap", lambda sight: sight.before.huge == sight.after.huge > 0)


@DBM
def test_folios_of_four_megabytes_split_with_pages_of_64k(
    monkeypatch: pytest.MonkeyPatch, dbm: str
) -> None:
    """A PMD-sized page there has 512 MiB; the same story with the largest handy folio."""
    task = scenario("thp", 4096).task.workload
    texts = [
        re.sub(r"(\d)pmd", lambda match: f"{4 * int(match[1])}MiB", text)
        for text in (task.setup, task.script)  # type: ignore[union-attr]
    ]
    seen = watched(
        monkeypatch,
        "thp",
        65536,
        f"cpu.dbm={dbm}",
        "memory=64MiB",
        "link.bandwidth=4Gbit/s",
        'thp.hugepages={"4096kB" = "always"}',
        f"workload.setup={texts[0]}",
        f"workload.script={texts[1]}",
    )
    assert seen.shrank("dontneed", "large")
    assert seen.shrank("thpsplit", "large")
    assert seen.shrank("dontneed", "cont")
    assert seen.saw("munmap", lambda sight: sight.change("large") < 0)


@EVERY_SIZE
@DBM
def test_equal_pages_merge_and_break_apart(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    seen = watched(monkeypatch, "ksm", page_size, f"cpu.dbm={dbm}")
    assert seen.grew("ksm", "merged")
    assert seen.saw("write", lambda sight: sight.change("copied") > 0 < sight.before.merged)
    assert seen.saw("cwrite", lambda sight: sight.change("copied") > 0 < sight.before.merged)
    assert seen.saw("unmerge", lambda sight: sight.before.merged > sight.after.merged == 0)


@EVERY_SIZE
@DBM
def test_files_are_written_stored_and_copied_on_write(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    seen = watched(monkeypatch, "files", page_size, f"cpu.dbm={dbm}")
    assert seen.grew("write", "dirty") and seen.grew("fwrite", "dirty")
    assert seen.shrank("msync", "dirty")
    assert seen.grew("write", "copied")
    assert seen.grew("pageout", "swapped") and seen.shrank("fwrite", "swapped")
    assert seen.saw("remove") and seen.saw("munmap")


@EVERY_SIZE
@DBM
def test_memory_moves_grows_and_lands_on_other_memory(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    seen = watched(monkeypatch, "mremap", page_size, f"cpu.dbm={dbm}")
    assert seen.saw("mremap", lambda sight: sight.before.swapped == sight.after.swapped > 0)
    assert seen.saw("mremap_dontunmap") and seen.saw("mexpand")


@EVERY_SIZE
@DBM
def test_hugetlb_memory_is_written_forked_and_given_back_and_sent_at_the_end(
    monkeypatch: pytest.MonkeyPatch, page_size: int, dbm: str
) -> None:
    watch = Watch()
    watch.install(monkeypatch)
    result = migrate(scenario("hugetlb", page_size, f"cpu.dbm={dbm}"))
    assert_moved(result)
    huge = (2 << 20) // page_size
    assert watch.saw("cwrite", lambda sight: sight.change("copied") == huge)
    assert watch.shrank("dontneed", "large") and watch.shrank("munmap", "large")
    # Private and shared memory, of which the last operations may have taken a page each.
    assert result.rounds[-1].pages_sent in range(2 * huge, 6 * huge + 1)
    assert all(r.pages_sent < huge for r in result.rounds[:-1] if page_size < 65536)


def test_hugetlb_memory_that_was_written_is_neither_seen_nor_lost() -> None:
    """No soft-dirty, by any hunk of the patch: pagemap shows VM_SOFTDIRTY only."""
    sets = ("workload.script=write 0 0 512", "workload.every=5ms")
    result = migrate(scenario("hugetlb", 4096, *sets))
    assert_moved(result)
    assert [r.pages_sent for r in result.rounds] == [64, 0, 0, 0, 2048]


@EVERY_SIZE
@DBM
@pytest.mark.parametrize(("name", "happened"), [("fork-cow", "cow"), ("swap-pressure", "swapin")])
def test_children_and_swap(
    monkeypatch: pytest.MonkeyPatch, name: str, happened: str, page_size: int, dbm: str
) -> None:
    stats: list[FaultStats] = []
    release = Machine.release

    def noted(machine: Machine) -> None:
        stats.append(machine.faults)
        release(machine)

    monkeypatch.setattr(Machine, "release", noted)
    sets = (
        f"page_size={page_size}",
        f"cpu.dbm={dbm}",
        f"memory={page_size // 4096 * 4}MiB",
        f"link.bandwidth={page_size // 4096 * 50}Mbit/s",
        "workload.rate='20000 pages/s'",
        "migration.run_after=100ms",
    )
    overrides = [parse_override(s) for s in sets]
    assert_moved(migrate(load_scenario(SCENARIOS / f"{name}.toml", overrides)))
    # The source's machine is the first one to be given back, at the hand-over.
    assert getattr(stats[0], happened) > 0


@pytest.mark.parametrize(
    ("mode", "rounds"),
    [("final", [64, 0, 0, 0, 256]), ("rounds", [320, 256, 256, 256, 256])],
)
def test_shared_memory_goes_while_the_task_is_frozen(mode: str, rounds: list[int]) -> None:
    """Also when every round has it: no tracker says what of it has changed."""
    sets = (
        "workload.setup=map 0 anon-private 64; map 1 anon-shared 256; write 0 0 64; write 1 0 256",
        "workload.script=write 1 0 8",
        "policy.kind=fixed",
        "policy.rounds=3",
    )
    result = migrate(scenario("files", 4096, *sets, f"shared_memory={mode}"))
    assert_moved(result)
    assert [r.pages_sent for r in result.rounds] == rounds
    transfer = 256 * 4096 * 8 / 20e6
    assert transfer <= result.downtime_s.transfer < 1.2 * transfer


UNMAPPED = (
    "workload.setup=map 0 anon-shared 256; write 0 0 256; munmap 0 64 192; "
    "map 1 anon-private 8; write 1 0 8",
    "workload.script=" + 40 * "write 1 0 1; " + "mexpand 0 0 64 256; write 0 100 1",
    "workload.every=10ms",
    "link.bandwidth=1Gbit/s",
    "policy.kind=fixed",
    "policy.rounds=2",
    "migration.run_after=405ms",
)
"""A part of shared memory is unmapped until the task is over there."""


@pytest.mark.parametrize(("mode", "early"), [("final", False), ("rounds", True)])
def test_shared_memory_that_is_unmapped_for_a_while_is_there_when_it_is_mapped_again(
    mode: str, early: bool
) -> None:
    """munmap of a part, and over there mremap, which shows it again, as it was."""
    result = migrate(scenario("files", 4096, *UNMAPPED, f"shared_memory={mode}"))
    assert_moved(result)
    *before, final = [r.pages_sent for r in result.rounds]
    assert final >= 256
    assert [count >= 256 for count in before] == [early] * 3


@EVERY_SIZE
def test_shared_memory_given_back_after_it_was_sent_is_a_hole_at_the_destination(
    monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    sets = (
        "workload.setup=map 0 anon-private 16; map 1 anon-shared 16; write 0 0 16; write 1 0 16",
        "workload.script='write 0 0 1; write 0 0 1; remove 1 2 9; write 1 4 1; write 0 0 1'",
        "workload.every=5ms",
        "policy.kind=fixed",
        "policy.rounds=3",
        "shared_memory=rounds",
    )
    for bandwidth in ("2Mbit/s", "20Mbit/s"):  # long after round 0, and while it goes on
        seen = watched(monkeypatch, "files", page_size, *sets, f"link.bandwidth={bandwidth}")
        assert seen.saw("remove")


@pytest.mark.alone
def test_a_huge_page_of_512_megabytes_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """PMD-sized pages with pages of 64K."""
    seen = watched(
        monkeypatch,
        "thp",
        65536,
        "memory=1GiB",
        "link.bandwidth=40Gbit/s",
        "policy.rounds=1",
        "workload.setup=map 0 anon-private 1pmd; hugepage 0 0 1pmd; write 0 0 1pmd",
        "workload.script=write 0 3 4; mprotect 0 16 16 r; write 0 0 8; mprotect 0 16 16 rw",
        "workload.every=20ms",
        "migration.run_after=1ms",
    )
    assert seen.saw("write", lambda sight: sight.before.huge == sight.after.huge == 1)
    assert seen.shrank("mprotect", "huge")


@pytest.mark.parametrize(
    ("name", "page_size", "sets"),
    [
        ("contpte", 16384, ["cpu.dbm=false"]),
        ("files", 4096, ["verify.mode=bytes"]),
        ("thp", 4096, ["tracker=uffd-wp"]),
        ("hugetlb", 4096, []),
    ],
)
def test_two_processes_do_the_same(
    name: str, page_size: int, sets: list[str], predump_pair: Pair
) -> None:
    what = scenario(name, page_size, *sets)
    there = predump_pair.migrate(what)
    assert_moved(there)
    here = migrate(what)
    assert [r.model_dump() for r in there.rounds] == [r.model_dump() for r in here.rounds]


@pytest.mark.parametrize("name", ["contpte", "thp", "ksm", "files", "mremap", "hugetlb"])
def test_userfaultfd_tracks_all_of_it(name: str) -> None:
    assert_moved(migrate(scenario(name, 4096, "tracker=uffd-wp")))


@pytest.mark.parametrize(
    ("name", "page_size", "off"),
    [
        ("contpte", 4096, "contpte-fold-ignores-soft-dirty"),
        ("contpte", 16384, "contpte-fold-ignores-soft-dirty"),
        ("contpte", 65536, "contpte-fold-ignores-soft-dirty"),
        ("contpte", 4096, "ptep_set_access_flags"),
        ("thp", 4096, "pmd_soft_dirty"),
        ("thp", 4096, "ptep_set_access_flags"),
        ("ksm", 4096, "ptep_set_access_flags"),
        ("files", 4096, "pte_mkdirty"),
        ("files", 65536, "ptep_set_access_flags"),
        ("mremap", 4096, "pte_mksoft_dirty"),
    ],
)
def test_without_the_hunk_exactly_the_lost_pages_differ(
    name: str, page_size: int, off: str
) -> None:
    result = migrate(scenario(name, page_size, f"hunks.off={off}"))
    assert result.exit_code == 3 and not result.verified
    assert 0 < result.pages_lost == result.pages_different
    assert result.pages_different == sum(m.pages for m in result.mismatches)
    assert result.owner == "source" and result.continued_equal is None


@pytest.mark.parametrize(
    ("off", "more"),
    [("contpte_convert", 2), ("pte_modify", 1)],
)
def test_without_a_harmless_hunk_more_is_sent_and_nothing_lost(off: str, more: int) -> None:
    complete = migrate(scenario("contpte"))
    result = migrate(scenario("contpte", 4096, f"hunks.off={off}"))
    assert_moved(result)
    assert result.pages_spurious >= more > complete.pages_spurious


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["hunks.off=contpte_ptep_get"], "script line 1: 'write 0 3 5': ELOOP: the fault at "),
        (
            ["workload.script='mprotect 0 0 1cont r; memwrite 0 0 2'"],
            "script line 1: 'memwrite 0 0 2': ELOOP: the fault at ",
        ),
    ],
)
def test_a_fault_that_never_ends_ends_the_migration_and_not_the_host(
    sets: list[str], line: str
) -> None:
    result = migrate(scenario("contpte", 4096, *sets))
    assert result.exit_code == 1 and result.owner == "source"
    assert result.error is not None and result.error.startswith(line)


def test_the_forced_write_ends_with_the_blocks_fault_mended() -> None:
    forced = "workload.script='mprotect 0 0 1cont r; memwrite 0 0 2; mprotect 0 0 1cont rw'"
    assert_moved(migrate(scenario("contpte", 4096, forced, "hunks.off=contpte-access-flags-fixed")))


MERGED_AT_ONCE = (
    "workload.every=9ms",
    "workload.script=write 1 0 32; fill 0 0 64 5; ksm 0 0 64; "
    "write 1 0 32; fill 0 0 64 6; ksm 0 0 64",
)


def test_what_ksm_merges_before_it_is_seen_is_lost_by_the_kernel_itself() -> None:
    """replace_page() of mm/ksm.c makes a new entry, without the soft-dirty bit of the old one."""
    result = migrate(scenario("ksm", 4096, *MERGED_AT_ONCE))
    assert result.exit_code == 3
    assert result.pages_lost == result.pages_different == 63  # of 64: one page's frame is kept


def test_userfaultfd_does_not_lose_what_ksm_merges() -> None:
    assert_moved(migrate(scenario("ksm", 4096, *MERGED_AT_ONCE, "tracker=uffd-wp")))


class KeptTransport(InProcessTransport):
    """A destination that keeps the task in a state directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.store = StateDirectory(folder)

    async def prepare(
        self, migration_id: str, task: dict[str, Any], *, base_dir: str, clock: str,
        extra_pages: int, resident_pages: int,
    ) -> None:  # fmt: skip
        """Makes room in the directory."""
        request = Request(migration_id, task, base_dir, clock, extra_pages)
        self.incoming = IncomingTask.prepare(request, self.store)


@pytest.mark.parametrize(
    ("name", "sets"),
    [("files", ()), ("ksm", ()), ("contpte", ()), ("hugetlb", ()), ("files", UNMAPPED)],
)
def test_a_destination_that_dies_has_all_of_it_again(
    tmp_path: Path, name: str, sets: tuple[str, ...]
) -> None:
    """Files, advice and locks as well: the task goes on from the hand-over as it did before."""
    there = KeptTransport(tmp_path / "state")
    result = asyncio.run(migrate_in_process(scenario(name, 4096, *sets), transport=there))
    assert_moved(result)
    first = there.incoming
    assert first is not None and first.execution is not None
    ops, digest = first.execution.workload.ops_done, digest_task(first.task).memory_digest
    there.store.close()
    store = StateDirectory(tmp_path / "state")
    again = IncomingTask.recover(store)
    assert again is not None and again.execution is not None
    assert again.execution.workload.ops_done < ops
    assert [file.on_disk for file in again.task.files] == [f.on_disk for f in first.task.files]
    asyncio.run(again.execution.run_to(first.execution.workload_ns))
    assert again.execution.workload.ops_done == ops
    assert digest_task(again.task).memory_digest == digest
    store.close()
