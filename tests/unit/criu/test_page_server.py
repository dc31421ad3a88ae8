"""CRIU's page server, the serving end: what real clients said, and what no real client says."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from livemigration.criu.errors import ImageError
from livemigration.criu.page_server.channel import Channel, PeerLost
from livemigration.criu.page_server.checkpoint import Checkpoint, Limits
from livemigration.criu.page_server.lazy import LazyClient, LazyServer
from livemigration.criu.page_server.protocol import (
    DIALECTS,
    LONG,
    SHORT,
    Command,
    Dialect,
    Message,
    PageServerError,
    Target,
    TargetKind,
    detect,
)
from livemigration.criu.page_server.receiver import Receiver
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pagemap import read_page_set
from livemigration.criu.pagemap_entries import Flavour

from .page_server_peer import PAGE, adding, closing, converse, opening, process

SAMPLES = Path(__file__).parents[2] / "data" / "criu"
TASK = process(7)
both_dialects = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def pages(count: int, first: int = 1) -> bytes:
    """Pages that all differ."""
    return b"".join(bytes([(first + i) % 256]) * PAGE for i in range(count))


@pytest.mark.parametrize(
    ("version", "field", "dialect"),
    [("4.1.1", Flavour.OLD, SHORT), ("4.2.1", Flavour.NEW, LONG)],
)
def test_what_a_real_client_said_makes_the_files_that_a_real_server_made(
    version: str, field: Flavour, dialect: Dialect, tmp_path: Path
) -> None:
    sample = SAMPLES / f"page-server-{version}"

    def begin() -> Checkpoint:
        return Checkpoint(tmp_path, None, page_size=PAGE, flavour=field)

    told = converse((sample / "client-to-server.bin").read_bytes(), tmp_path, make=begin)
    assert told.complete
    assert told.dialect is dialect
    assert told.heard == (sample / "server-to-client.bin").read_bytes()
    expected = {file.name: file.read_bytes() for file in (sample / "dst").iterdir()}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == expected


@both_dialects
def test_holes_are_pages_of_the_parent(dialect: Dialect, tmp_path: Path) -> None:
    first = opening(dialect, TASK) + adding(dialect, TASK, 0x1000, pages(4)) + closing(dialect)
    assert converse(first, tmp_path / "1").heard == struct.pack("<Bi", 0, 0)
    second = (
        dialect.encode(Message(Command.PARENT, target=TASK.to_wire()))
        + dialect.encode(Message(Command.PARENT, target=process(8).to_wire()))
        + opening(dialect, TASK)
        + adding(dialect, TASK, 0x1000, pages=1, flags=1)
        + adding(dialect, TASK, 0x2000, pages(1, 99))
        + adding(dialect, TASK, 0x3000, pages=2, flags=1)
        + closing(dialect)
    )
    told = converse(second, tmp_path / "2", tmp_path / "1")
    assert told.heard == struct.pack("<iiBi", 1, 0, 1, 0)
    assert os.readlink(tmp_path / "2" / "parent") == "../1"
    known = read_page_set(tmp_path / "2", TASK.pagemap_name, PAGE)
    assert known.addresses.tolist() == [0x1000, 0x2000, 0x3000, 0x4000]
    assert known.read(known.addresses).tobytes() == pages(1) + pages(1, 99) + pages(2, 3)
    assert (tmp_path / "2" / "pages-65537.img").stat().st_size == PAGE


@both_dialects
def test_runs_that_follow_one_another_become_one_entry(dialect: Dialect, tmp_path: Path) -> None:
    said = opening(dialect, TASK)
    for at in range(100):
        said += adding(dialect, TASK, 0x10000 + at * PAGE, pages(1, at))
    converse(said + closing(dialect), tmp_path)
    assert (tmp_path / TASK.pagemap_name).stat().st_size < 64
    known = read_page_set(tmp_path, TASK.pagemap_name, PAGE)
    assert known.read(known.addresses).tobytes() == pages(100, 0)


def test_old_commands_and_old_types_are_understood(tmp_path: Path) -> None:
    said = (
        SHORT.encode(Message(Command.OPEN, target=7 << 8 | 11))
        + SHORT.encode(Message(Command.ADD, 0, 1, 0x1000, 7 << 8 | 10))
        + pages(1)
        + SHORT.encode(Message(Command.ADD, 0, 1, 0, 9 << 8 | 28))  # without an OPEN of its own
        + pages(1, 5)
        + SHORT.encode(Message(Command.FORCE_CLOSE))
    )
    told = converse(said, tmp_path)
    assert told.heard == struct.pack("<i", 0)  # the old OPEN has no answer
    assert [(c.target.kind, c.target.id, c.pages) for c in told.counts] == [
        (TargetKind.PROCESS, 7, 1),
        (TargetKind.SHARED, 9, 1),
    ]
    assert (tmp_path / "pagemap-shmem-9.img").exists()


def test_what_fills_the_long_header_does_not_matter(tmp_path: Path) -> None:
    header = bytearray(opening(LONG, TASK))
    header[4:8] = b"\xfe\x7f\x55\xaa"
    assert converse(bytes(header) + closing(LONG), tmp_path).dialect is LONG


@pytest.mark.parametrize(
    ("asked", "dialect"),
    [
        (SHORT.encode(Message(Command.GET, 0, 1, 0x10000, 4242)), SHORT),
        (LONG.encode(Message(Command.GET, 0, 1, 0x10000, 4242)), LONG),
        (LONG.encode(Message(Command.GET, 0, 1024, 0x7FFF00001000, 1)), LONG),
        (SHORT.encode(Message(Command.GET, 0, 1024, 0x7FFF00001000, 1)), SHORT),
    ],
)
def test_a_client_that_asks_for_pages_is_known_by_its_first_command(
    asked: bytes, dialect: Dialect
) -> None:
    assert detect(asked[:24]) is dialect


HOSTILE = {
    "unknown command": (SHORT.encode(Message(99, target=1 << 8 | 1)), "unknown command 0x63"),
    "unknown type": (SHORT.encode(Message(4, target=7 << 8 | 99)), "no process and no shared"),
    "lazy client": (SHORT.encode(Message(7, 0, 1, 0x10000, 7)), "asks for lazy pages"),
    "no close": (opening(SHORT, TASK), "without CLOSE"),
    "cut within a header": (opening(SHORT, TASK) + b"\x06\0", "ended after 2 of 24 bytes"),
    "cut within pages": (
        opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, b"x" * 10, pages=2),
        "8182 bytes before the end",
    ),
    "no pages": (opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages=0), "no range of pages"),
    "unaligned": (opening(SHORT, TASK) + adding(SHORT, TASK, 0x1001, pages=1), "no range of pages"),
    "beyond the end": (
        opening(LONG, TASK) + adding(LONG, TASK, 0x1000, pages=(1 << 64) - 1),
        "no range of pages",
    ),
    "out of order": (
        opening(SHORT, TASK)
        + adding(SHORT, TASK, 0x5000, pages(1))
        + adding(SHORT, TASK, 0x4000, pages(1)),
        "come after those up to 0x6000",
    ),
    "a hole without a parent": (
        opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages=1, flags=1),
        "is not in the parent images",
    ),
    "here and in the parent": (
        opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages=1, flags=5),
        "have the flags 0x5",
    ),
    "unknown flags": (
        opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages=1, flags=0x40),
        "have the flags 0x40",
    ),
    "opened twice": (opening(SHORT, TASK) * 2, "opened a second time"),
    "more than there is room for": (
        opening(LONG, TASK) + adding(LONG, TASK, 0x1000, pages=1 << 50),
        "do not fit",
    ),
    "more after the end": (
        opening(SHORT, TASK) + closing(SHORT) + b"x",
        "more after CLOSE",
    ),
}


@pytest.mark.parametrize(("said", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_peer_that_does_wrong_is_told_off_in_one_line(
    said: bytes, why: str, tmp_path: Path
) -> None:
    with pytest.raises(PageServerError) as error:
        converse(said, tmp_path)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hole_that_the_parent_has_only_in_part_is_refused(tmp_path: Path) -> None:
    first = opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages(2)) + closing(SHORT)
    converse(first, tmp_path / "1")
    hole = opening(SHORT, TASK) + adding(SHORT, TASK, 0x2000, pages=2, flags=1)
    with pytest.raises(PageServerError, match="hole of 2 pages at 0x2000 of process 7"):
        converse(hole, tmp_path / "2", tmp_path / "1")


def test_limits_are_kept(tmp_path: Path) -> None:
    most = Limits(most_bytes=3 * PAGE)
    said = opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages(2))
    with pytest.raises(PageServerError, match="more than 12288 bytes"):
        converse(said + adding(SHORT, TASK, 0x9000, pages(2)), tmp_path / "a", limits=most)
    with pytest.raises(PageServerError, match="more than 1 processes"):
        converse(said + opening(SHORT, process(8)), tmp_path / "b", limits=Limits(most_images=1))


def test_a_page_that_stayed_with_the_process_is_in_no_parent(tmp_path: Path) -> None:
    lazy = adding(SHORT, TASK, 0x1000, pages=1 << 20, flags=2)
    converse(opening(SHORT, TASK) + lazy + closing(SHORT), tmp_path / "1")
    hole = opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages=1, flags=1)
    with pytest.raises(PageServerError, match="not in the parent"):
        converse(hole, tmp_path / "2", tmp_path / "1")


def test_ranges_are_counted_after_they_are_joined(tmp_path: Path) -> None:
    def lazy(*starts: int) -> bytes:
        words = [adding(SHORT, TASK, start, pages=1, flags=2) for start in starts]
        return b"".join([opening(SHORT, TASK), *words, closing(SHORT)])

    most = Limits(most_entries=2)
    converse(lazy(0x1000, 0x2000, 0x3000, 0x9000), tmp_path / "a", limits=most)
    with pytest.raises(PageServerError, match="more than 2 ranges"):
        converse(lazy(0x1000, 0x3000, 0x5000, 0x7000), tmp_path / "b", limits=most)


def test_what_came_before_the_end_stays_and_is_whole_pages(tmp_path: Path) -> None:
    said = opening(SHORT, TASK) + adding(SHORT, TASK, 0x1000, pages(2))
    with pytest.raises(PageServerError):
        converse(said + adding(SHORT, TASK, 0x9000, pages(1)[:100], pages=1), tmp_path)
    known = read_page_set(tmp_path, TASK.pagemap_name, PAGE)
    assert known.read(known.addresses).tobytes() == pages(2)


def test_a_peer_that_trickles_is_given_up() -> None:
    client, server = socket.socketpair()
    with client, Channel(server, 0.2) as channel:
        client.sendall(b"\x04")
        with pytest.raises(PeerLost, match=r"kept silent for 0\.2 s"):
            channel.header(24)


def test_a_dangling_parent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="leads to no directory"):
        Checkpoint(tmp_path / "new", tmp_path / "gone", page_size=PAGE)


@both_dialects
def test_sender_and_receiver_understand_each_other(dialect: Dialect, tmp_path: Path) -> None:
    addresses = np.array([0x1000, 0x2000, 0x8000, 0x20000], np.uint64)
    client, server = socket.socketpair()
    seen: list[bool] = []

    def send() -> None:
        with Sender(Channel(client, 5), dialect, PAGE) as sender:
            seen.append(sender.has_parent(TASK))
            seen.append(sender.open(TASK))
            sender.add(
                addresses[[0, 2, 3]],
                np.array([2, 1, 1], np.uint64),
                np.array([4, 4, 4], np.uint64),
                [memoryview(pages(4))],
            )
            sender.finish()

    sending = threading.Thread(target=send)
    sending.start()
    with Channel(server, 5) as channel:
        receiver = Receiver(channel, lambda: Checkpoint(tmp_path, None, page_size=PAGE))
        with receiver:
            assert receiver.run()
            receiver.confirm()
    sending.join()
    assert seen == [False, False]
    known = read_page_set(tmp_path, TASK.pagemap_name, PAGE)
    assert known.addresses.tolist() == addresses.tolist()
    assert known.read(addresses).tobytes() == pages(4)


def test_a_server_that_hangs_up_is_explained(tmp_path: Path) -> None:
    client, server = socket.socketpair()
    server.close()
    with (
        Sender(Channel(client, 5), SHORT, PAGE) as sender,
        pytest.raises(PageServerError, match=r"--criu-version 4\.2"),
    ):
        sender.open(TASK)


class _Memory:
    page_size = PAGE

    def pages(self, pid: int, address: int, most: int) -> bytes:
        if pid != 7:
            raise PageServerError(f"no process {pid} here")
        return pages(min(most, 3), address // PAGE)


@both_dialects
def test_lazy_pages_are_answered_with_as_many_as_there_are(dialect: Dialect) -> None:
    client, server = socket.socketpair()
    done: list[LazyServer] = []

    def serve() -> None:
        with Channel(server, 5) as channel:
            lazy = LazyServer(channel, _Memory())
            lazy.run()
            done.append(lazy)

    serving = threading.Thread(target=serve)
    serving.start()
    with Channel(client, 5) as channel:
        asking = LazyClient(channel, dialect, PAGE)
        assert bytes(asking.get(7, 0x10000, 2)) == pages(2, 16)
        assert bytes(asking.get(7, 0x20000, 9)) == pages(3, 32)
        asking.finish()
    serving.join()
    assert [(lazy.dialect, lazy.requests, lazy.pages) for lazy in done] == [(dialect, 2, 5)]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (opening(SHORT, TASK), "the client dumps"),
        (SHORT.encode(Message(Command.GET, 0, 0, 0x10000, 7)), "0 pages asked for"),
        (SHORT.encode(Message(Command.GET, 0, 1, 0x10001, 7)), "1 pages asked for"),
        (SHORT.encode(Message(Command.GET, 0, 1, 0x10000, 8)), "no process 8"),
        (SHORT.encode(Message(0x77, target=7)), "unknown command"),
        (b"\x07\0", "ended after 2 of 24 bytes"),
    ],
)
def test_a_lazy_client_that_does_wrong_is_told_off(said: bytes, why: str) -> None:
    client, server = socket.socketpair()
    with client, Channel(server, 5) as channel:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(PageServerError, match=why):
            LazyServer(channel, _Memory()).run()


@pytest.mark.parametrize("number", [1 << 64, -1])
def test_ids_that_do_not_fit_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Target(TargetKind.PROCESS, number).to_wire()
