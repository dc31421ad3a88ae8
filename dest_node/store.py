"""Where a destination keeps a task's memory, and how a committed task survives its process.

In memory: pages live in this process only, and die with it.

In a state directory: pages live in a file that is mapped (`page_file`), so they are outside of the
process from the moment they arrive. Commit writes which row of the file is which page, and then -
the point of no return - one small file that says that the task is this host's. From then on the
running task works on a private copy-on-write mapping of the same file, so the file stays as it was
at commit. A process started with the same directory finds the task there and goes on from the
commit: the workload is deterministic, so nothing is lost by doing its operations again. This
outlives the process, however it dies; it is not meant to outlive the operating system.

A task that was taken over by post-copy is not whole yet, and runs already: it is not in the
directory before its last page has come, when it is written as it is then. Until that, the directory
says only that there is such a task, so that a process started anew knows that it was lost.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from dest_node.page_file import PageFile
from livemigration.errors import BadRequest, NoSpace
from livemigration.spec import TaskSpec
from livemigration.v1 import common_pb2

_COMMIT = "committed.json"
_TAKEN = "taken-over"
_ROWS = "committed.npz"
_PAGES = "pages"
_STORE_ID = "store-id"
_LOCK = "lock"
_PART = ".part"  # of a file that is being written
_FORMAT = "predump.state/1"


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """A committed task as the state directory keeps it."""

    migration_id: str
    task: dict[str, Any]  # the spec as StartTask took it
    base_dir: str
    clock: str
    extra_pages: int
    begin: bytes  # the final round's RoundBegin: address spaces and core state
    memory_digest: str
    rows: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]]  # pid -> addresses, file rows
    # of each of the task's files: page numbers, file rows; and then, in their order, of what no
    # process maps of its shared memory (livemigration.files.unmapped_pages)
    files: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    post_copy: bytes = b""  # how its pages came (PostCopyRecord), if they came after the task


class StateDirectory:
    """One destination's state directory; at most one process uses it at a time."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise BadRequest(f"state directory {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path = path
            self.store_id = self._read_store_id()
        except BlockingIOError as error:
            os.close(self._lock)
            raise BadRequest(
                f"state directory {path} is used by another process; give each host its own"
            ) from error
        except OSError as error:
            os.close(self._lock)
            raise BadRequest(f"state directory {path}: {error.strerror}") from error

    def _read_store_id(self) -> str:
        """The directory's name for itself, made when it has none. Never empty: that would mean
        that this host keeps nothing.
        """
        file = self.path / _STORE_ID
        known = file.read_text(errors="replace").strip() if file.exists() else ""
        if known:
            return known
        made = uuid.uuid4().hex
        self._write(_STORE_ID, made.encode())
        return made

    def _write(self, name: str, data: bytes) -> None:
        """A whole file or none, whenever the process dies."""
        part = self.path / (name + _PART)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / name)

    def close(self) -> None:
        """Lets another process use the directory; once is enough."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def pages(self, frames: int, page_size: int, room: int) -> PageFile:
        """A new page file with room for so many rows at first.

        `NoSpace` if there is none; the directory then has no page file.
        """
        try:
            pages = PageFile(self.path / _PAGES, frames, page_size)
            pages.take_room(room, 0)
        except OSError as error:
            (self.path / _PAGES).unlink(missing_ok=True)
            raise self._no_space(error) from error
        return pages

    def take_room(self, pages: PageFile, rows: int, used: int) -> None:
        """More of it, see `PageFile`; `NoSpace` if there is none."""
        try:
            pages.take_room(rows, used)
        except OSError as error:
            raise self._no_space(error) from error

    def private_pages(self, pages: PageFile, used: int) -> NDArray[np.uint8]:
        """The same bytes, whose stores stay in this process; `NoSpace` if that cannot be."""
        try:
            return pages.private(used)
        except OSError as error:
            raise self._no_space(error) from error

    def _no_space(self, error: OSError) -> NoSpace:
        return NoSpace(f"state directory {self.path}: {error.strerror}")

    def commit(self, record: CommitRecord) -> None:
        """Writes that the task is this host's. Durable when this returns.

        `NoSpace` if it cannot be written; nothing then says that the task is here.
        """
        try:
            self._write_commit(record)
        except OSError as error:
            (self.path / _COMMIT).unlink(missing_ok=True)
            self._drop_parts()
            raise self._no_space(error) from error

    def note_taken(self, migration_id: str) -> None:
        """Writes that this host runs a task that is not here: by post-copy, before its pages are.

        `NoSpace` if it cannot be written.
        """
        try:
            self._write(_TAKEN, migration_id.encode())
        except OSError as error:
            raise self._no_space(error) from error

    def lost(self) -> str:
        """The migration whose task this host ran, and lost with its process; "" if there is none.

        Only for a process that has just started.
        """
        if (self.path / _COMMIT).exists() or not (self.path / _TAKEN).exists():
            return ""
        return (self.path / _TAKEN).read_text(errors="replace").strip()

    def _write_commit(self, record: CommitRecord) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "begin": np.frombuffer(record.begin, dtype=np.uint8),
            "post_copy": np.frombuffer(record.post_copy, dtype=np.uint8),
        }
        for pid, (addresses, rows) in record.rows.items():
            arrays[f"addresses-{pid}"] = addresses
            arrays[f"rows-{pid}"] = rows
        for number, (pages, rows) in enumerate(record.files):
            arrays[f"file-pages-{number}"] = pages
            arrays[f"file-rows-{number}"] = rows
        part = self.path / (_ROWS + _PART)
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / _ROWS)
        head = {
            "format": _FORMAT,
            "migration_id": record.migration_id,
            "task": record.task,
            "base_dir": record.base_dir,
            "clock": record.clock,
            "extra_pages": record.extra_pages,
            "memory_digest": record.memory_digest,
            "pids": sorted(record.rows),
            "files": len(record.files),
        }
        self._write(_COMMIT, json.dumps(head | {"checksum": _checksum(head)}).encode())
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def committed(self) -> CommitRecord | None:
        """The task that this directory holds, if any; `BadRequest` if it cannot be read."""
        if not (self.path / _COMMIT).exists():
            return None
        head = self._head()
        try:
            with (
                (self.path / _ROWS).open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                begin = arrays["begin"].tobytes()
                common_pb2.RoundBegin.FromString(begin)
                post_copy = arrays["post_copy"].tobytes() if "post_copy" in arrays else b""
                common_pb2.PostCopyRecord.FromString(post_copy)
                rows = {
                    pid: (arrays[f"addresses-{pid}"], arrays[f"rows-{pid}"]) for pid in head["pids"]
                }
                files = [
                    (arrays[f"file-pages-{number}"], arrays[f"file-rows-{number}"])
                    for number in range(head.get("files", 0))
                ]
        except (
            # np.load gives a bare array for a file that is none of ours, which is no context.
            *(OSError, EOFError, TypeError, ValueError, KeyError),
            *(zipfile.BadZipFile, DecodeError),
        ) as error:
            raise self._unreadable(_ROWS, error) from error
        return CommitRecord(
            migration_id=head["migration_id"],
            task=head["task"],
            base_dir=head["base_dir"],
            clock=head["clock"],
            extra_pages=head["extra_pages"],
            begin=begin,
            memory_digest=head["memory_digest"],
            rows=rows,
            files=files,
            post_copy=post_copy,
        )

    def _head(self) -> dict[str, Any]:
        """What the small file says, which is just what was written there."""
        try:
            head = json.loads((self.path / _COMMIT).read_bytes())
            if not isinstance(head, dict) or head.get("format") != _FORMAT:
                raise ValueError(f"it is not of the format {_FORMAT}")
            if head.pop("checksum", None) != _checksum(head):
                raise ValueError("its checksum is wrong")
            TaskSpec.from_struct(head["task"])
        except (OSError, ValueError) as error:
            raise self._unreadable(_COMMIT, error) from error
        return head

    def _unreadable(self, name: str, error: Exception) -> BadRequest:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return BadRequest(
            f"{self.path / name}: the task that this host took over cannot be read "
            f"({' '.join(reason.split())}); bring the file back, or move the directory away to "
            "start without the task"
        )

    def read_pages(self, rows: NDArray[np.int64], page_size: int) -> NDArray[np.uint8]:
        """Pages of the committed task out of the page file: uint8[n * page_size].

        `BadRequest` if the file does not have them.
        """
        try:
            content = np.memmap(self.path / _PAGES, dtype=np.uint8, mode="r")
            whole = content.size // page_size
            if rows.size and int(rows.max()) >= whole:
                raise ValueError(
                    f"{whole} pages of {page_size} bytes, but page {int(rows.max())} is wanted"
                )
            pages = content[: whole * page_size].reshape(whole, page_size)
            return np.ascontiguousarray(pages[rows]).reshape(-1)
        except (OSError, ValueError) as error:
            raise self._unreadable(_PAGES, error) from error

    def forget(self) -> None:
        """Removes the task: ended, or never committed."""
        for name in (_COMMIT, _TAKEN, _ROWS, _PAGES):
            (self.path / name).unlink(missing_ok=True)
        self._drop_parts()

    def _drop_parts(self) -> None:
        """Files that could not be written to their end."""
        for part in self.path.glob(f"*{_PART}"):
            part.unlink(missing_ok=True)


def _checksum(head: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(head, sort_keys=True).encode())
