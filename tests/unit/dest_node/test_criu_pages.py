"""The page server beside a node: chains, and peers of which only a line in the log stays."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dest_node.criu_pages import CriuPages, CriuPagesConfig
from livemigration.criu.page_server.checkpoint import Limits
from livemigration.criu.page_server.protocol import SHORT, Command, Message
from livemigration.errors import BadRequest
from livemigration.service import CannotListen
from livemigration.v1 import destination_node_pb2

PAGE = 4096
TASK = 7 << 8 | 1


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[CriuPages]:
    pages = CriuPages(folder, CriuPagesConfig("127.0.0.1:0", **settings))  # type: ignore[arg-type]
    try:
        yield pages
    finally:
        pages.close()


def say(pages: CriuPages, *words: bytes, hang_up: bool = True) -> bytes:
    """Says it, and returns all that is answered until the server hangs up."""
    host, _, port = pages.address.rpartition(":")
    heard = b""
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(b"".join(words))
        if hang_up:
            peer.shutdown(socket.SHUT_WR)
        try:
            while data := peer.recv(4096):
                heard += data
        except ConnectionResetError:
            pass
    return heard


def word(command: int, *, flags: int = 0, pages: int = 0, address: int = 0) -> bytes:
    target = 0 if command == Command.CLOSE else TASK
    return SHORT.encode(Message(command, flags, pages, address, target))


OPEN = word(Command.OPEN2)
CLOSE = word(Command.CLOSE)
ONE_PAGE = word(Command.ADD_F, flags=4, pages=1, address=0x10000) + b"a" * PAGE
SAME_PAGE = word(Command.ADD_F, flags=1, pages=1, address=0x10000)


def came(pages: CriuPages) -> list[destination_node_pb2.Checkpoint]:
    return list(pages.describe().checkpoints)


def test_a_chain_goes_on_after_a_dump_that_broke_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as pages:
        assert say(pages, OPEN, ONE_PAGE, CLOSE) == struct.pack("<Bi", 0, 0)
        assert say(pages, OPEN, ONE_PAGE) == b"\1"
        assert say(pages, OPEN, SAME_PAGE, CLOSE) == struct.pack("<Bi", 1, 0)
        first, broken, third = came(pages)
    assert (first.complete, broken.complete, third.complete) == (True, False, True)
    assert (Path(third.folder) / "parent").readlink() == Path("../1")
    assert first.digest == third.digest
    assert broken.digest == ""
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(broken.error)
    assert "without CLOSE" in broken.error


def test_who_only_looks_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as pages:
        say(pages)
        say(pages, word(Command.PARENT), CLOSE)
        assert came(pages) == []
    assert list((tmp_path / "criu").rglob("pagemap*")) == []
    assert caplog.messages == []


def test_what_came_before_a_restart_is_known_and_what_broke_off_is_marked(tmp_path: Path) -> None:
    with serving(tmp_path) as pages:
        say(pages, OPEN, ONE_PAGE, CLOSE)
    (tmp_path / "criu" / "1" / "2").mkdir()
    with serving(tmp_path) as pages:
        first, second = came(pages)
        assert (first.complete, second.complete) == (True, False)
        assert "ended while it came" in second.error
        assert say(pages, OPEN, SAME_PAGE, CLOSE) == struct.pack("<Bi", 1, 0)
        assert came(pages)[2].number == 3


def test_a_record_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    with serving(tmp_path) as pages:
        say(pages, OPEN, ONE_PAGE, CLOSE)
    (tmp_path / "criu" / "1" / "1.json").write_text('{"chain": 1}')
    with serving(tmp_path) as pages:
        (only,) = came(pages)
        assert not only.complete
        assert "not a record" in only.error


def test_silent_peers_do_not_keep_others_out(tmp_path: Path) -> None:
    with serving(tmp_path, connections=1, limits=Limits(patience_s=0.3)) as pages:
        host, _, port = pages.address.rpartition(":")
        began = time.monotonic()
        with socket.create_connection((host, int(port))):
            assert say(pages, OPEN, ONE_PAGE, CLOSE) == struct.pack("<Bi", 0, 0)
        assert time.monotonic() - began < 10


def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with serving(tmp_path) as pages, pytest.raises(CannotListen, match="Address already in use"):
        CriuPages(tmp_path / "..", CriuPagesConfig(pages.address))


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "criu").write_text("a file")
    with pytest.raises(BadRequest, match="make it writable"):
        CriuPages(tmp_path, CriuPagesConfig("127.0.0.1:0"))


def test_a_dump_whose_record_cannot_be_written_stands_in_nobodys_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is not told that all is kept, and the next one gets the next number."""
    with serving(tmp_path) as pages:
        blocked = tmp_path / "criu" / "1" / "1.part"
        blocked.mkdir(parents=True)
        assert say(pages, OPEN, ONE_PAGE, CLOSE) == b"\0"
        assert say(pages, OPEN, ONE_PAGE, CLOSE) == struct.pack("<Bi", 0, 0)
        first, second = came(pages)
    assert (first.complete, second.complete, second.number) == (False, True, 2)
    assert "make room" in first.error
    assert not (Path(second.folder) / "parent").exists()
    assert len(caplog.messages) == 1


def test_digests_are_told_though_there_is_no_room_to_keep_them(tmp_path: Path) -> None:
    with serving(tmp_path) as pages:
        say(pages, OPEN, ONE_PAGE, CLOSE)
        (tmp_path / "criu" / "1" / "1.part").mkdir()
        (first,), (again,) = came(pages), came(pages)
    assert first.complete and again.complete
    assert first.digest == again.digest != ""
