"""The state directory: one process at a time, a task that is there whole or not at all whenever the
process dies, and damage that is named instead of run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dest_node.incoming import IncomingTask
from dest_node.store import CommitRecord, StateDirectory
from livemigration.errors import BadRequest, NoSpace
from livemigration.ownership import Ownership
from livemigration.snapshot import digest_task
from tests.unit.dest_node.arrived import RAN_NS, arrived
from tests.unit.dest_node.sender import Sender, u64


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(BadRequest) as refused:
        call()
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(folder: Path) -> Iterator[StateDirectory]:
    store = StateDirectory(folder)
    yield store
    store.close()


def started_anew(folder: Path) -> IncomingTask | None:
    """What a process finds that is started with the directory; it ends again at once."""
    store = StateDirectory(folder)
    try:
        return IncomingTask.recover(store)
    finally:
        store.close()


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.task.release()


@pytest.fixture
def committed(folder: Path, sender: Sender) -> Path:
    """The directory of a destination that took a task over and was killed."""
    store = StateDirectory(folder)
    arrived(store, sender).take_over(sender.memory_digest())
    store.close()
    return folder


# -- one process at a time


def test_a_second_user_is_told_in_one_line(folder: Path, store: StateDirectory) -> None:
    assert refusal(lambda: StateDirectory(folder)) == (
        f"state directory {folder} is used by another process; give each host its own"
    )
    store.close()
    StateDirectory(folder).close()


def test_a_second_process_does_not_start(folder: Path, store: StateDirectory) -> None:
    arguments = ["serve", "dest", "--state-dir", str(folder)]
    ran = subprocess.run(
        [sys.executable, "-m", "predump", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"predump: error: state directory {folder} is used by another process; "
        "give each host its own\n"
    )


def test_a_killed_process_leaves_no_lock_behind(folder: Path) -> None:
    hold = (
        "import sys, pathlib, time; from dest_node.store import StateDirectory\n"
        f"s = StateDirectory(pathlib.Path({str(folder)!r})); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert "used by another process" in refusal(lambda: StateDirectory(folder))
        holder.kill()
    StateDirectory(folder).close()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_what_cannot_be_a_directory_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(lambda: StateDirectory(tmp_path / where))
    assert line.startswith(f"state directory {tmp_path / where}: ")


# -- its name


def test_a_directory_keeps_its_name_and_every_one_has_its_own(
    folder: Path, tmp_path: Path, store: StateDirectory
) -> None:
    other = StateDirectory(tmp_path / "other")
    other.close()
    assert store.store_id
    assert store.store_id != other.store_id
    again = StateDirectory(tmp_path / "other")
    again.close()
    assert again.store_id == other.store_id


def test_a_name_that_was_never_written_out_is_made_again(folder: Path) -> None:
    """An empty name would tell the source that this host keeps nothing."""
    folder.mkdir()
    (folder / "store-id").write_text("")
    store = StateDirectory(folder)
    store.close()
    assert store.store_id
    assert (folder / "store-id").read_text() == store.store_id


# -- what is kept


RECORD = CommitRecord(
    migration_id="m-2",
    task=Sender().struct,
    base_dir="/somewhere",
    clock="wall",
    extra_pages=7,
    begin=b"",
    memory_digest="abc",
    rows={1: (u64(4096, 8192), np.array([3, 5])), 2: (u64(), np.zeros(0, dtype=np.int64))},
)


def test_a_new_directory_holds_no_task(store: StateDirectory) -> None:
    assert store.committed() is None


def test_what_is_committed_is_read_back(store: StateDirectory) -> None:
    store.commit(RECORD)
    read = store.committed()
    assert read is not None
    for name in ("migration_id", "task", "base_dir", "clock", "extra_pages", "memory_digest"):
        assert getattr(read, name) == getattr(RECORD, name)
    assert sorted(read.rows) == [1, 2]
    for pid, (addresses, rows) in RECORD.rows.items():
        assert read.rows[pid][0].tolist() == addresses.tolist()
        assert read.rows[pid][1].tolist() == rows.tolist()


def test_a_task_that_was_ended_is_forgotten(store: StateDirectory, folder: Path) -> None:
    store.pages(2, 4096, 2)
    store.commit(RECORD)
    store.forget()
    assert store.committed() is None
    assert sorted(file.name for file in folder.iterdir()) == ["lock", "store-id"]
    store.forget()  # nothing is there any more


def test_pages_are_in_the_file_as_soon_as_they_arrive(store: StateDirectory) -> None:
    pages = store.pages(4, 4096, 4)
    pages.content[2] = 9
    read = store.read_pages(np.array([2, 0]), 4096)
    assert read.tolist() == [9] * 4096 + [0] * 4096


def test_a_running_task_leaves_the_file_as_it_was(store: StateDirectory, folder: Path) -> None:
    pages = store.pages(4, 4096, 2)
    pages.content[1] = 5
    private = store.private_pages(pages, 2)
    private[1:] = 6
    assert store.read_pages(np.array([1]), 4096)[0] == 5
    assert (folder / "pages").stat().st_size == 2 * 4096


def test_pages_beyond_the_room_move_into_the_file_when_it_is_taken(store: StateDirectory) -> None:
    pages = store.pages(64, 4096, 2)
    for row in (1, 2, 40):
        pages.content[row] = row
    assert pages.room == 2
    store.take_room(pages, 50, used=41)
    pages.content[3] = 3  # from now on the file's
    assert pages.room == 50
    assert store.read_pages(np.array([1, 2, 3, 40, 49]), 4096)[::4096].tolist() == [1, 2, 3, 40, 0]
    assert pages.content[[1, 2, 3, 40, 60], 7].tolist() == [1, 2, 3, 40, 0]
    assert store.private_pages(pages, 41)[[1, 2, 3, 40, 60], 7].tolist() == [1, 2, 3, 40, 0]
    store.take_room(pages, 10, used=10)  # there is more already
    assert pages.room == 50


# -- a task that was taken over


def test_a_process_started_anew_has_the_task_and_goes_on_like_one_that_never_moved(
    committed: Path, sender: Sender
) -> None:
    here = started_anew(committed)
    assert here is not None
    assert (here.ownership.state, here.recovered) == (Ownership.COMMITTED, True)
    assert here.request.migration_id == "m-1"
    assert digest_task(here.task).memory_digest == sender.memory_digest()
    # The source's own workload, had it gone on there.
    there = Sender()
    workload = there.workload()
    workload.run_until(there.task, 2 * RAN_NS)
    assert here.execution is not None
    here.execution.workload.run_until(here.task, 2 * RAN_NS)
    assert digest_task(here.task).memory_digest == there.memory_digest()
    there.task.release()


def test_what_the_task_did_after_the_hand_over_is_done_again_not_twice(
    folder: Path, sender: Sender
) -> None:
    store = StateDirectory(folder)
    incoming = arrived(store, sender)
    incoming.take_over(sender.memory_digest())
    assert incoming.execution is not None
    incoming.execution.workload.run_until(incoming.task, 3 * RAN_NS)
    ran_on = digest_task(incoming.task).memory_digest
    store.close()
    again = started_anew(folder)
    assert again is not None
    assert digest_task(again.task).memory_digest == sender.memory_digest() != ran_on
    assert again.execution is not None
    again.execution.workload.run_until(again.task, 3 * RAN_NS)
    assert digest_task(again.task).memory_digest == ran_on


def test_a_task_that_was_not_taken_over_is_not_there_after_a_crash(
    folder: Path, sender: Sender
) -> None:
    store = StateDirectory(folder)
    arrived(store, sender)
    store.close()
    assert started_anew(folder) is None


# -- a crash at every step of the hand-over


class Crash(BaseException):
    """Nothing more of the process happens."""


STEPS = ("fsync", "replace")


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, stop: BaseException) -> list[str]:
    """Lets the step with this number not happen; the list gets the steps before it."""
    done: list[str] = []

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if len(done) == step:
                raise stop
            done.append(f"{name} {Path(arguments[-1]).name}" if name == "replace" else name)
            return call(*arguments)

        return wrapped

    for name in STEPS:
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))
    return done


def _steps(folder: Path) -> list[str]:
    """The steps of an undisturbed hand-over."""
    with pytest.MonkeyPatch.context() as patch:
        store = StateDirectory(folder)
        done = _stop_at(patch, -1, Crash())
        store.commit(RECORD)
        store.close()
    return done


def test_the_small_file_that_says_so_comes_last(tmp_path: Path) -> None:
    assert _steps(tmp_path) == [
        *("fsync", "replace committed.npz"),
        *("fsync", "replace committed.json"),
        "fsync",  # the directory
    ]


@pytest.mark.parametrize("step", range(5))
def test_a_crash_leaves_the_whole_task_or_none(
    folder: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store = StateDirectory(folder)
    incoming = arrived(store, sender)
    with monkeypatch.context() as patch:
        done = _stop_at(patch, step, Crash())
        with pytest.raises(Crash):
            incoming.take_over(sender.memory_digest())
    store.close()
    after = started_anew(folder)
    assert (after is not None) == ("replace committed.json" in done)
    if after is not None:
        assert digest_task(after.task).memory_digest == sender.memory_digest()


@pytest.mark.parametrize("step", range(5))
def test_a_full_disk_leaves_no_task_so_that_the_source_may_go_on(
    folder: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store = StateDirectory(folder)
    incoming = arrived(store, sender)
    with monkeypatch.context() as patch:
        _stop_at(patch, step, OSError(28, "No space left on device"))
        with pytest.raises(NoSpace) as refused:
            incoming.take_over(sender.memory_digest())
    assert str(refused.value) == f"state directory {folder}: No space left on device"
    assert incoming.ownership.state is Ownership.VERIFIED
    assert not list(folder.glob("*.part")), "what could not be written is left over"
    store.close()
    assert started_anew(folder) is None


def test_what_a_crash_left_over_does_not_disturb_the_next_task(
    folder: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateDirectory(folder)
    with monkeypatch.context() as patch:
        _stop_at(patch, 3, Crash())
        with pytest.raises(Crash):
            store.commit(RECORD)
    store.close()
    store = StateDirectory(folder)
    arrived(store, sender).take_over(sender.memory_digest())
    store.close()
    after = started_anew(folder)
    assert after is not None
    assert after.request.migration_id == "m-1"


# -- damage


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: min(file.stat().st_size // 2, 5 * 4096)])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _replace(file: Path) -> None:
    file.write_bytes(b"[1, 2]")


def _flip(file: Path) -> None:
    """One bit, where the syntax of a text does not suffer."""
    data = bytearray(file.read_bytes())
    at = data.index(b"uniform") if b"uniform" in data else len(data) // 2
    data[at] ^= 2
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("committed.json", damage) for damage in (_cut, _empty, _replace, _flip)),
        *(("committed.npz", damage) for damage in (_cut, _empty, _replace, _flip, Path.unlink)),
        *(("pages", damage) for damage in (_cut, _empty, _replace, Path.unlink)),
    ],
)
def test_damage_is_named_and_nothing_is_thrown_away(
    committed: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(committed / name)
    before = {file.name: file.read_bytes() for file in committed.iterdir()}
    line = refusal(lambda: started_anew(committed))
    assert line.startswith(f"{committed / name}: the task that this host took over cannot be read")
    assert line.endswith("back, or move the directory away to start without the task")
    assert {file.name: file.read_bytes() for file in committed.iterdir()} == before


def test_a_page_that_changed_is_found(committed: Path, sender: Sender) -> None:
    with (committed / "pages").open("r+b") as file:
        file.seek(3 * 4096 + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    line = refusal(lambda: started_anew(committed))
    assert line.startswith(f"state directory {committed}: the memory of migration m-1 is not what")
    assert "page file" in line


def test_a_damaged_directory_ends_the_node_with_one_line(committed: Path) -> None:
    _cut(committed / "committed.json")
    ran = subprocess.run(
        [sys.executable, "-m", "predump", "serve", "dest", "--state-dir", str(committed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"predump: error: {committed}/committed.json: ")
    assert ran.stderr.count("\n") == 1


def test_a_directory_that_was_brought_back_works_again(committed: Path, tmp_path: Path) -> None:
    shutil.copytree(committed, tmp_path / "backup")
    _empty(committed / "pages")
    refusal(lambda: started_anew(committed))
    shutil.copy(tmp_path / "backup" / "pages", committed / "pages")
    assert started_anew(committed) is not None


def test_a_format_of_another_version_is_named(committed: Path) -> None:
    head = json.loads((committed / "committed.json").read_text())
    (committed / "committed.json").write_text(json.dumps(head | {"format": "predump.state/9"}))
    assert "predump.state/1" in refusal(lambda: started_anew(committed))
