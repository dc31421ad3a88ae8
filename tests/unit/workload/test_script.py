"""A script workload: what its text may say, and that each line does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from livemigration.operations import BASE, OPERANDS, SPAN_VERBS, STRIDE
from livemigration.task import Task
from livemigration.workload import Workload, WorkloadError
from livemigration.workload.script import StepFailed
from livemigration.workload.script_text import (
    CONT_PAGES,
    REFUSED,
    ScriptTextError,
    pages_per_pmd,
    parse_script,
    peak_pages,
)
from mm_model import MADV_HUGEPAGE, MADV_MERGEABLE, ModelConfig
from mm_model.config import build_arch
from tests.unit.workload.harness import MIB, SECOND, memory_of, spec, start

PAGE = 4096
MS = 10**6


def run(script: str, setup: str = "", **keys: Any) -> tuple[Workload, Task]:
    """Set up, and each operation of the script run once."""
    what = spec("script", script=script, setup=setup, loop=False, **keys)
    workload, task = start(what)
    workload.run_until(task, SECOND)
    return workload, task


def region(number: int, page: int = 0) -> int:
    return BASE + number * STRIDE + page * PAGE


def ops(text: str, page_size: int = PAGE) -> list[str]:
    return [step.op.script() for step in parse_script(text, page_size)]


# -- the text


def test_lines_comments_and_semicolons() -> None:
    text = "# first\nmap 0 anon-private 4; write 0 0 4 # all\n\n  - read 0 5 1\n-collapse 0 0 4\n"
    steps = parse_script(text, PAGE)
    assert [step.line for step in steps] == [2, 2, 4, 5]
    assert [step.may_fail for step in steps] == [False, False, True, True]
    assert ops(text)[2:] == ["read 0 5 1", "collapse 0 0 4"]


@pytest.mark.parametrize(
    ("page_size", "expected"),
    [
        (4096, "write 0 528 32"),
        (16384, "write 0 2176 8"),
        (65536, "write 0 8224 2"),
    ],
)
def test_sizes_are_pages_of_the_page_size(page_size: int, expected: str) -> None:
    assert ops("write 0 1pmd+1cont 128KiB", page_size) == [expected]


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_units_are_those_of_the_model(page_size: int) -> None:
    arch = build_arch(ModelConfig(page_size=page_size))
    assert CONT_PAGES[page_size] == int(arch.cont_mask) + 1
    assert pages_per_pmd(page_size) == int(arch.table_mask) + 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("read 0 0 1\nwirte 0 0 1", "line 2: 'wirte 0 0 1': there is no operation 'wirte'; did"),
        ("write 0 0", "line 1: 'write 0 0': must be write REGION PAGE COUNT"),
        ("write 0 0 2KiB", "line 1: 2KiB is not a whole number of pages of 4KiB"),
        ("write 0 0 1pdm", "line 1: 'write 0 0 1pdm': count must be a number, not '1pdm'"),
        ("fill 0 0 1 1cont", "line 1: 'fill 0 0 1 1cont': value must be a number, not '1cont'"),
        ("write 0 0 0", "line 1: 'write 0 0 0': must be of at least one page"),
        ("write 0 0 -1", "line 1: 'write 0 0 -1': must be of at least one page"),
        ("read 0 262143 2", "line 1: 'read 0 262143 2': ends beyond its region, which has 1GiB"),
        ("mremap 0 0 2 1 262143", "line 1: 'mremap 0 0 2 1 262143': ends beyond its region"),
        ("clear", "line 1: 'clear' belongs to whoever tracks the task's writes"),
        ("thp always", "line 1: 'thp' is a setting of the machine; write it as thp.enabled"),
        ("free 0 0 1", "line 1: 'free' leaves it to the kernel what the pages hold then"),
        ("-", "line 1: '': there is no operation ''"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ScriptTextError) as refused:
        parse_script(text, PAGE)
    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)


def test_a_specification_needs_a_script_of_operations() -> None:
    for keys in ({}, {"script": " # nothing"}, {"script": "wirte 0 0 1"}, {"setup": "x"}):
        with pytest.raises(ValidationError):
            spec("script", **{"script": "read 0 0 1", **keys} if "setup" in keys else keys)


def test_the_pages_of_all_regions_are_added_up() -> None:
    text = "map 0 anon-private 4; map 1 anon-private 8; mremap 0 0 4 2 6; mexpand 1 0 8 20"
    assert peak_pages(parse_script(text, PAGE)) == 4 + 20 + 10


# -- what the operations do


def test_every_operation_runs() -> None:
    """What the language has and scripts may have: none of it is unknown to the workload."""
    special = {
        "map": "map 2 tmpfs-shared 4",
        "attach": "attach 3 private 4 1",
        "fill": "fill 0 0 1 7",
        "mprotect": "mprotect 0 0 1 r",
        "mremap": "mremap 0 0 1 4 0",
        "mremap_dontunmap": "mremap_dontunmap 0 0 1 4 0",
        "mexpand": "mexpand 0 0 4 5",
        "remove": "remove 1 0 1",
        "fwrite": "fwrite 1 0 1",
        "cwrite": "fork; cwrite 0 0 1",
        "cread": "fork; cread 0 0 1",
        "collapse": "map 5 anon-private 1pmd; write 5 0 1pmd; collapse 5 0 1pmd",
        "swapon": "swapoff; swapon",
    }
    setup = "map 0 anon-private 4; write 0 0 4; map 1 file-shared 4; write 1 0 4"
    for verb in sorted({*OPERANDS, *SPAN_VERBS} - REFUSED.keys()):
        line = special.get(verb, verb if OPERANDS.get(verb) == () else f"{verb} 0 0 1")
        workload, task = run(line, setup)
        assert workload.ops_done == len(parse_script(line, PAGE)), verb
        task.release()


def test_each_write_is_news_and_a_fill_is_what_it_says() -> None:
    _, task = run(
        "write 0 0 2; fill 0 1 1 9; sysread 0 2 1",
        "map 0 anon-private 4; fill 0 0 4 1",
        write_size=8,
    )
    mm = task.processes[1]
    first = mm.peek(region(0), PAGE)
    assert sum(byte != 1 for byte in first) in range(1, 9)
    assert mm.peek(region(0, 1), PAGE) == bytes([9]) * PAGE
    assert mm.peek(region(0, 2), PAGE) == bytes(8) + bytes([1]) * (PAGE - 8)


def test_a_forced_write_ignores_the_protection() -> None:
    _, task = run("memwrite 0 1 1", "map 0 anon-private 4; fill 0 0 4 1; mprotect 0 0 4 r")
    mm = task.processes[1]
    assert mm.peek(region(0, 1), 8) != bytes([1]) * 8
    assert mm.peek(region(0, 0), 8) == bytes([1]) * 8


def test_advice_lasts() -> None:
    _, task = run("hugepage 0 0 4; ksm 0 4 4; mlock 0 0 1", "map 0 anon-private 8; fill 0 0 8 1")
    vmas = task.processes[1].vmas()
    assert [(vma.advice, vma.locked) for vma in vmas] == [
        (1 << MADV_HUGEPAGE, True),
        (1 << MADV_HUGEPAGE, False),
        (1 << MADV_MERGEABLE, False),
    ]


def test_files_are_shared_by_their_mappings_and_outlive_them() -> None:
    workload, task = run(
        "attach 1 private 4 0; write 1 0 1; fwrite 0 0 2; munmap 0 0 4",
        "map 0 file-shared 4; fill 0 0 4 3",
        write_size=4096,
    )
    mm = task.processes[1]
    (file,) = task.files
    assert file.pages == 4 and file.on_disk
    stored = task.machine.file_read(file.object_id, 0, 4 * PAGE)
    assert mm.peek(region(1, 0), PAGE) != stored[:PAGE]  # copied before the file was written
    assert mm.peek(region(1, 1), 3 * PAGE) == stored[PAGE:]
    assert stored[2 * PAGE :] == bytes([3]) * (2 * PAGE)
    assert workload.state()["files"] == [[0, 0], [1, 0]]


def test_children_come_one_at_a_time() -> None:
    _, task = run("fork; cwrite 0 0 1; fork; cwrite 0 1 1", "map 0 anon-private 4; fill 0 0 4 1")
    assert sorted(task.processes) == [1, 3]
    parent, child = (task.processes[pid].peek(region(0), 4 * PAGE) for pid in (1, 3))
    assert parent == bytes([1]) * (4 * PAGE)
    assert child[:PAGE] == parent[:PAGE] and child[PAGE : 2 * PAGE] != parent[:PAGE]


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("read 0 0 1\nwrite 1 0 1", "script line 2: 'write 1 0 1': EFAULT: SIGSEGV at"),
        ("munmap 0 0 1; write 0 0 4", "script line 1: 'write 0 0 4': EFAULT: SIGSEGV at"),
        ("map 0 anon-private 4", "script line 1: 'map 0 anon-private 4': EEXIST: "),
        ("cwrite 0 0 1", "script line 1: 'cwrite 0 0 1': ESRCH: there is no child"),
        ("fwrite 0 0 1", "script line 1: 'fwrite 0 0 1': EBADF: region 0 has no file"),
    ],
)
def test_a_failed_operation_names_its_line(script: str, line: str) -> None:
    with pytest.raises(StepFailed) as failed:
        run(script, "map 0 anon-private 4")
    assert str(failed.value).startswith(line)


def test_a_failure_in_the_setup_is_bad_input() -> None:
    with pytest.raises(WorkloadError, match=r"workload\.setup: script line 1: 'read 3 0"):
        start(spec("script", script="read 0 0 1", setup="read 3 0 1"))


def test_an_operation_may_be_let_fail() -> None:
    workload, _ = run("-write 0 2 4; -collapse 0 0 4; write 0 0 1", "map 0 anon-private 4")
    assert workload.ops_done == 3


# -- time and state


def test_operations_come_at_their_times_and_again() -> None:
    what = spec("script", script="write 0 0 1; write 0 1 1; read 0 0 4", every="2ms",
                setup="map 0 anon-private 4")  # fmt: skip
    workload, task = start(what)
    assert workload.run_until(task, 2 * MS).ops == 1
    assert workload.run_until(task, 2 * MS + 1).ops == 1
    stats = workload.run_until(task, 20 * MS)
    assert (stats.ops, stats.stores) == (8, 5)
    assert workload.due_ns(7) == 14 * MS


def test_without_a_loop_it_ends() -> None:
    workload, _ = run("read 0 0 1; read 0 1 1", "map 0 anon-private 2")
    assert workload.ops_done == 2
    assert workload.due_ns(1) == MS
    assert workload.due_ns(2) == 2**62


def test_images_and_scripts_both_bring_memory() -> None:
    workload, task = start(spec("script", script="fork"))
    with pytest.raises(WorkloadError, match="drop one of them"):
        workload.setup(task, populate=False, from_image=True)


def test_the_same_seed_gives_the_same_memory_and_another_does_not() -> None:
    def memory(seed: int) -> Any:
        what = spec("script", script="write 0 0 4", setup="map 0 anon-private 4")
        workload, task = start(what, seed=seed, memory=MIB)
        workload.run_until(task, 10 * MS)
        return memory_of(task)

    assert memory(1) == memory(1) != memory(2)


def test_addresses_are_those_of_predump_mm() -> None:
    _, task = run("write 3 2 1", "map 3 anon-private 4")
    rows = task.processes[1].frames(region(3), 4)
    assert np.flatnonzero(rows > 0).tolist() == [2]
