"""Fault files, what is done to frames, and the table in docs/faults.md."""

import subprocess
import sys
from pathlib import Path

import pytest

from livemigration import batch
from livemigration.v1 import common_pb2
from predump.faults.clock import JumpingClock
from predump.faults.damage import DAMAGES
from predump.faults.points import Frames
from predump.faults.spec import FOLDER, KINDS, CaseSpec, FaultError, FaultSpec, load_all, load_fault
from predump.faults.table import fault_table
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


def test_the_table_in_the_docs_is_what_the_files_say() -> None:
    assert fault_table(load_all()) in DOCS


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
    assert fault.scenario.task.memory == 16 << 20


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
