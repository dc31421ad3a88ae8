"""Fault files, what is done to frames, and the table in docs/faults.md."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from livemigration import batch
from livemigration.spec import lazy_of
from livemigration.v1 import common_pb2
from livemigration.v1.destination_node_pb2 import PageRequest
from predump.faults.clock import JumpingClock
from predump.faults.damage import DAMAGES
from predump.faults.memory import Memory, difference
from predump.faults.points import POINTS, Frames, Pages, is_point, order
from predump.faults.spec import (
    FOLDER,
    KINDS,
    CaseSpec,
    FaultError,
    FaultSpec,
    Outcome,
    load_all,
    load_fault,
)
from predump.faults.table import fault_tables
from predump.faults.usage import Usage, usage_of

DOCS = (Path(__file__).parents[3] / "docs" / "faults.md").read_text(encoding="utf-8")
GOOD = """
schema = "predump.fault/1"
about = "The network is gone."
kind = "cut-link"
[[case]]
at = "round-0"
outcome = "rolled-back"
"""


def test_the_tables_in_the_docs_are_what_the_files_say() -> None:
    assert fault_tables(load_all()) in DOCS


def test_every_outcome_is_explained_and_occurs() -> None:
    occur = {case.outcome for fault in load_all() for case in fault.spec.case}
    assert occur == set(get_args(Outcome))
    for outcome in occur:
        assert f"| {outcome} |" in DOCS


def test_every_kind_of_fault_has_a_file_and_is_explained() -> None:
    assert {fault.spec.kind for fault in load_all()} == set(KINDS)
    for kind in KINDS:
        assert f"`{kind}`" in DOCS


@pytest.mark.parametrize(
    "key", [*FaultSpec.model_fields, *(f"case.{key}" for key in CaseSpec.model_fields)]
)
def test_every_key_is_explained(key: str) -> None:
    assert f"`{key}`" in DOCS


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ('"cut-link"', '"cut-lnk"', "kind: 'cut-lnk' is not allowed; allowed: 'cut-link'"),
        ('"round-0"', '"round-9"', "case.0.at: 'round-9' is no point of a migration; known: "),
        ('"rolled-back"', '"fine"', "case.0.outcome: 'fine' is not allowed"),
        ("about =", "abuot =", "unknown key 'abuot'; did you mean 'about'?"),
        ("fault/1", "fault/2", "schema: 'predump.fault/2' is not known here; write schema = \""),
        ("[[case]]", "[scenario]\nmemroy = 1\n[[case]]", "did you mean 'memory'?"),
        ("[[case]]", "lasts = 'soon'\n[[case]]", "lasts: "),
        ('"cut-link"', '"pause-source"', "a source that is paused for good never ends"),
        ('"round-0"', '"pages-100%"', "case.0.at: 'pages-100%' is no point of a migration"),
        ('"round-0"', '"pages-50%"', "case.0: no pages come after the hand-over with mode"),
        ("[[case]]", "[post_copy]\nlost_aftr = '1s'\n[[case]]", "did you mean 'lost_after'?"),
        ("[[case]]", "post_copy = 1\n[[case]]", "post_copy: must be a table"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, was: str, now: str, says: str) -> None:
    file = tmp_path / "fault.toml"
    file.write_text(GOOD.replace(was, now))
    with pytest.raises(FaultError) as refused:
        load_fault(file)
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_a_good_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "gone.toml"
    file.write_text(GOOD)
    fault = load_fault(file)
    assert fault.name == "gone"
    assert fault.scenario.task.memory == 8 << 20


def test_a_case_is_run_with_the_policy_of_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "gone.toml"
    later = '[post_copy]\nlost_after = "700ms"\n[[case]]\nat = "pages-25%"\nmode = "{}"\n'
    for mode, clock in (("post-copy", "wall"), ("hybrid", "virtual")):
        file.write_text(GOOD + (later + 'outcome = "migrated"\n').format(mode))
        first, second = load_fault(file).spec.case
        fault = load_fault(file)
        assert fault.scenario_of(first).migration.policy.kind == "fixed"
        migration = fault.scenario_of(second).migration
        assert (migration.policy.kind, migration.clock) == (mode, clock)
        assert lazy_of(migration.policy).lost_after == "700ms"


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="there are no fault files"):
        load_all(tmp_path)
    assert len(load_all()) == len(list(FOLDER.glob("*.toml")))


def test_points_are_at_the_first_pages_of_a_round() -> None:
    end = common_pb2.RoundEnd()
    frames = Frames()
    seen = [
        frames.reach(message)
        for message in (
            batch.encode_begin(1, 0, common_pb2.RoundBegin()),
            batch.encode_end(2, 0, end),  # a round without pages: its end
            batch.encode_begin(3, 1, common_pb2.RoundBegin(final=True)),
            batch.encode_end(4, 1, end),
            batch.encode_end(5, 1, end),
        )
    ]
    assert seen == ["", "round-0", "", "final", ""]


def test_points_of_a_post_copy_are_shares_of_the_pages_that_were_left_behind() -> None:
    frames = Frames()
    process = common_pb2.Process(pid=1, lazy_start=[0x1000, 0x8000], lazy_pages=[3, 1])
    begin = common_pb2.RoundBegin(
        final=True, processes=[process], post_copy=common_pb2.PostCopyPlan()
    )
    frames.reach(batch.encode_begin(1, 0, begin))
    assert frames.pages is not None
    pages = frames.pages

    def fetched(number: int, start: int, count: int) -> list[str]:
        frame = common_pb2.TransferFrame(
            sequence=number, pid=1, zero_start=[start], zero_pages=[count]
        )
        return pages.reach(frame.SerializeToString())

    assert fetched(1, 0x1000, 1) == ["pages", *(f"pages-{n}%" for n in range(26))]
    assert fetched(1, 0x1000, 1) == []  # asked for once more
    assert fetched(2, 0x2000, 2) == [f"pages-{n}%" for n in range(26, 76)]
    assert sum(int(counts.sum()) for _, _, counts in pages.left_behind) == 4
    assert Pages.over(PageRequest(over=common_pb2.PostCopyRecord()).SerializeToString())
    assert not Pages.over(PageRequest(id=1).SerializeToString())


def test_points_have_an_order() -> None:
    points = [*POINTS[:-1], "pages-1%", "pages-99%", POINTS[-1]]
    assert sorted(set(points), key=order) == points
    assert all(is_point(point) for point in points)
    assert not any(is_point(point) for point in ("pages-0%", "pages-100%", "pages-50", "round-2"))


def test_the_first_page_that_differs_is_named() -> None:
    def memory(*pages: tuple[int, bytes]) -> Memory:
        addresses = np.array([address for address, _ in pages], dtype=np.uint64)
        return {1: (addresses, b"".join(data * 4096 for _, data in pages))}

    expected = memory((0x1000, b"a"), (0x2000, b"b"))
    assert difference(expected, memory((0x1000, b"a"), (0x2000, b"b")), 4096) == ""
    for there, says in (
        (memory((0x1000, b"a"), (0x2000, b"x")), "page 0x2000 of process 1 differs"),
        (memory((0x1000, b"a")), "page 0x2000 of process 1 is missing"),
        ({}, "page 0x1000 of process 1 is missing"),
        (memory((0x1000, b"a"), (0x2000, b"b"), (0x3000, b"c")), "page 0x3000 of process 1 is too"),
        (expected | {2: expected[1]}, "page 0x1000 of process 2 is too much"),
    ):
        assert says in difference(there, expected, 4096)


def test_what_is_done_to_a_frame() -> None:
    message = bytes(range(100))
    held: list[bytes] = []
    done = {kind: damage(message, held) for kind, damage in DAMAGES.items()}
    assert done["duplicate-frames"] == [message, message]
    assert done["reorder-frames"] == [] and held == [message]
    assert done["truncate-frames"] == [message[:75]]
    (corrupt,) = done["corrupt-frames"]
    assert sum(a != b for a, b in zip(corrupt, message, strict=True)) == 1
    assert done["swallow-frames"] == []


def test_the_clock_of_a_process_jumps_and_others_do_not(tmp_path: Path) -> None:
    clock = JumpingClock(tmp_path)
    code = "import time; input(); print(time.time(), time.monotonic(), flush=True)"
    loop = f"while True:\n    {code}\n"
    with subprocess.Popen(
        [sys.executable, "-c", loop.replace("import time; ", "import time\n    ")],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def now() -> list[float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return [float(word) for word in process.stdout.readline().split()]

        wall, steady = now()
        clock.jump(-3600)
        wall_after, steady_after = now()
        process.kill()
    assert wall_after - wall == pytest.approx(-3600, abs=60)
    assert 0 <= steady_after - steady < 60


def test_the_usage_of_a_process_is_told(tmp_path: Path) -> None:
    import os

    before = usage_of(os.getpid())
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        grown = usage_of(os.getpid()).minus(before)
    assert grown.descriptors == 2
    assert before.rss_bytes > 0
    assert Usage(3, 2, 1).minus(Usage(1, 1, 1)) == Usage(2, 1, 0)
