"""A file system without one free block: nothing is lost, and nobody dies of it.

Each case runs in a process of its own, on a small tmpfs that only it sees (`small_disk`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compose.compose import ROOT

MOUNT = 'mount -t tmpfs -o size=4m none "$1" && shift && exec "$@"'
Case = Callable[[str], list[str]]


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Case:
    """Runs a case; gives the lines that it printed."""
    private = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", tmp_path)
    allowed = subprocess.run([*private, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode != 0:
        pytest.skip(f"this kernel lets users mount nothing of their own: {allowed.stderr.strip()}")

    def run(case: str) -> list[str]:
        module = (sys.executable, "-m", "tests.unit.dest_node.small_disk", case, tmp_path)
        ran = subprocess.run(
            [*private, *module], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr or f"it ended with {ran.returncode}"
        return ran.stdout.splitlines()

    return run


def test_there_is_no_room_for_a_task(on_small_disk: Case, tmp_path: Path) -> None:
    """It is said before the first page comes, and what was taken is given back."""
    said, given_back = on_small_disk("prepare")
    assert said == f"state directory {tmp_path}: No space left on device"
    assert given_back == "True"


def test_a_task_grows_on_its_way(on_small_disk: Case, tmp_path: Path) -> None:
    """It is refused, and the host takes it as soon as there is room."""
    said, taken = on_small_disk("grow")
    assert said == f"state directory {tmp_path}: No space left on device"
    assert taken == "True"


def test_a_task_that_was_taken_over_gets_memory_that_it_never_had(on_small_disk: Case) -> None:
    """The file is as it was at the hand-over; the task's own memory is not in it."""
    assert on_small_disk("hand_over") == ["True", "True"]
