"""Any pages, sent in any pieces and either dialect, arrive as they were; and the fuzzer's cases."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint
from livemigration.criu.page_server.protocol import (
    DIALECTS,
    Dialect,
    HeaderReader,
    Message,
    Target,
    TargetKind,
    detect,
)
from livemigration.criu.page_server.receiver import Receiver
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pagemap import read_page_set
from tests.fuzz.page_server import make_parent, run_case

PAGE = 4096
TARGET = Target(TargetKind.PROCESS, 7)
dialects = st.sampled_from(list(DIALECTS.values()))


@given(
    dialects,
    st.builds(
        Message,
        command=st.sampled_from((1, 2, 3, 4, 5, 6, 7, 0x1023, 0x1024)),
        flags=st.integers(0, 0xFFFF),
        pages=st.integers(0, (1 << 32) - 1),
        address=st.integers(0, (1 << 64) - 1),
        target=st.integers(0, (1 << 64) - 1),
    ),
)
def test_a_header_says_what_was_put_into_it(dialect: Dialect, message: Message) -> None:
    data = dialect.encode(message)
    assert dialect.decode(data) == message
    assert HeaderReader(dialect).take(data) == message


@given(dialects, st.sampled_from((4, 5)), st.integers(1, (1 << 56) - 1), st.sampled_from((1, 2)))
def test_the_first_command_of_a_dump_tells_the_dialect(
    dialect: Dialect, command: int, number: int, kind: int
) -> None:
    first = dialect.encode(Message(command, target=number << 8 | kind))
    assert detect(first[:24]) is dialect
    reader = HeaderReader()
    told = reader.take(first[:24]) or reader.take(first[24:])
    assert told == Message(command, target=number << 8 | kind)


levels = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=40, max_size=40),  # alive
        st.lists(st.booleans(), min_size=40, max_size=40),  # changed
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30)
@given(dialects, levels, st.integers(1, 7))
def test_a_chain_of_rounds_is_the_memory(
    dialect: Dialect, rounds: list[tuple[list[bool], list[bool]]], piece: int
) -> None:
    """Each round sends what is new or changed, and the last directory gives all that is alive."""
    memory: dict[int, bytes] = {}
    parent: Path | None = None
    with tempfile.TemporaryDirectory() as name:
        for number, (alive, changed) in enumerate(rounds):
            before = memory
            memory = {}
            for page in np.flatnonzero(alive).tolist():
                new = page not in before or changed[page]
                memory[page] = bytes([number + 1, page]) * 2048 if new else before[page]
            folder = Path(name) / str(number)
            _send(dialect, memory, before, folder, parent, piece)
            parent = folder
        assert parent is not None
        known = read_page_set(parent, TARGET.pagemap_name, PAGE)
        assert known.addresses.tolist() == [page * PAGE for page in sorted(memory)]
        expected = b"".join(memory[page] for page in sorted(memory))
        assert known.read(known.addresses).tobytes() == expected


def _send(
    dialect: Dialect,
    memory: dict[int, bytes],
    before: dict[int, bytes],
    folder: Path,
    parent: Path | None,
    piece: int,
) -> None:
    client, server = socket.socketpair()

    def send() -> None:
        with Sender(Channel(client, 5), dialect, PAGE) as sender:
            assert sender.open(TARGET) == (parent is not None)
            pages = sorted(memory)
            for at in range(0, len(pages), piece):
                some = pages[at : at + piece]
                flags = [1 if before.get(page) == memory[page] else 4 for page in some]
                sender.add(
                    np.array(some, np.uint64) * np.uint64(PAGE),
                    np.ones(len(some), np.uint64),
                    np.array(flags, np.uint64),
                    b"".join(memory[p] for p, f in zip(some, flags, strict=True) if f == 4),
                )
            if not pages:  # a process without memory: the client would seem to have given up
                return
            sender.finish()

    sending = threading.Thread(target=send)
    sending.start()
    with Channel(server, 5) as channel:
        receiver = Receiver(channel, lambda: Checkpoint(folder, parent, page_size=PAGE))
        with receiver:
            if memory:
                assert receiver.run()
                receiver.confirm()
            else:
                with pytest.raises(Exception, match="without CLOSE"):
                    receiver.run()
    sending.join()


def test_the_fuzzers_first_cases_break_nothing(tmp_path: Path) -> None:
    make_parent(tmp_path)
    for seed in range(120):
        run_case(seed, tmp_path)
