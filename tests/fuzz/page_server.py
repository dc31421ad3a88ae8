"""Hostile peers of the page server: ``python -m tests.fuzz.page_server --seconds 600 [--seed N]``.

Each case is a function of its seed alone: a conversation, real or made up, with commands left out,
repeated, swapped, their numbers changed, bytes changed or cut off, said to one of the ends here:

* the receiver of dumps, with and without a parent: it may refuse (`MigrationError`, one line) or
  take the dump; what it takes can be read back, and no file is larger than what was said;
* the server of lazy pages, which answers with pages that it has or hangs up;
* our clients, to which a server answers so.

Anything else that is raised, a case that takes longer than its peer's patience allows, descriptors
left open, or memory that grows, ends the run and is printed with its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from livemigration.criu.errors import ImageError
from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint, ImageCount, Limits
from livemigration.criu.page_server.lazy import LazyClient, LazyServer
from livemigration.criu.page_server.lazy_images import LazyImages
from livemigration.criu.page_server.protocol import DIALECTS, Dialect, Message, Target, TargetKind
from livemigration.criu.page_server.receiver import Receiver
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pagemap import read_page_set
from livemigration.errors import MigrationError

PAGE = 4096
PATIENCE_S = 2.0
MOST_S = 20.0
MOST_GROWTH = 64 << 20
MOST_BYTES = 8 << 20
SAMPLES = Path(__file__).parents[1] / "data" / "criu"

_COMMANDS = (1, 2, 3, 4, 5, 6, 7, 0x1023, 0x1024, 0, 8, 0xFFFF)
_FLAGS = (0, 1, 2, 4, 5, 6, 7, 8, 0xFFFF)
_COUNTS = (0, 1, 2, 7, 1024, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, 1 << 52, (1 << 64) - 1)
_ADDRESSES = (0, PAGE, 0x10000000, 0x10000001, 1 << 47, (1 << 64) - PAGE, (1 << 64) - 1)
_TARGETS = (0, 1, 7 << 8 | 1, 7 << 8 | 2, 9 << 8 | 1, 7 << 8 | 99, 7 << 8 | 16, (1 << 64) - 1)


class Broken(Exception):
    """What a case did."""


def said_by(seed: int) -> bytes:
    """The conversation of a case."""
    chance = random.Random(seed)
    name, dialect = chance.choice(list(DIALECTS.items()))
    if chance.random() < 0.2:
        sample = SAMPLES / f"page-server-{name}.1" / "client-to-server.bin"
        return _damaged(chance, sample.read_bytes())
    words = [_word(chance, dialect, at) for at in range(chance.randrange(1, 24))]
    if chance.random() < 0.8:
        words.insert(0, dialect.encode(Message(4, target=7 << 8 | chance.choice((1, 2)))))
    for _ in range(chance.choice((0, 0, 1, 3))):
        at, other = chance.randrange(len(words)), chance.randrange(len(words))
        words[at], words[other] = words[other], words[at]
    if chance.random() < 0.7:
        words.append(dialect.encode(Message(chance.choice((0x1023, 0x1024)))))
    data = b"".join(words)
    return _damaged(chance, data) if chance.random() < 0.3 else data


def _word(chance: random.Random, dialect: Dialect, at: int) -> bytes:
    """A command as a client might say it, or with any number in it changed, and pages."""
    pages = chance.randrange(1, 5)
    address = 0x10000000 + at * 16 * PAGE
    command, flags, target = 6, chance.choice((4, 4, 4, 6, 1, 2)), 7 << 8 | 1
    if chance.random() < 0.25:
        what = chance.randrange(5)
        command = chance.choice(_COMMANDS) if what == 0 else command
        flags = chance.choice(_FLAGS) if what == 1 else flags
        pages = min(chance.choice(_COUNTS), dialect.most_pages) if what == 2 else pages
        address = chance.choice(_ADDRESSES) if what == 3 else address
        target = chance.choice(_TARGETS) if what == 4 else target
    header = dialect.encode(Message(command, flags, pages, address, target))
    if command in (1, 6) and (flags & 4 or command == 1):
        header += bytes([at]) * (min(pages, 64) * PAGE)
    return header


def _damaged(chance: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        if not damaged:
            break
        at = chance.randrange(min(len(damaged), chance.choice((64, 1 << 30))))
        what = chance.randrange(3)
        if what == 0:
            damaged[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del damaged[at : at + chance.choice((1, 8, 24, 4096))]
        else:
            damaged[at:at] = chance.randbytes(chance.choice((1, 4, 8, 24)))
    return bytes(damaged)


def run_case(seed: int, folder: Path) -> None:
    """One case; raises Broken."""
    chance = random.Random(~seed)
    said = said_by(seed)
    began = time.monotonic()
    case = (_to_receiver, _to_receiver, _to_receiver, _to_lazy_server, _to_clients)[seed % 5]
    peer, here = socket.socketpair()
    talking = threading.Thread(target=_talk, args=(peer, said, chance.randrange(1, 1 << 16)))
    talking.start()
    try:
        with Channel(here, PATIENCE_S) as channel:
            case(chance, channel, said, folder)
    except MigrationError as error:
        if "\n" in str(error) or not str(error):
            raise Broken(f"not one line: {error!r}") from error
    except Exception as error:  # whatever it is, it is what is looked for
        raise Broken(f"{type(error).__name__}: {error}") from error
    finally:
        here.close()
        talking.join(MOST_S)
    if talking.is_alive() or time.monotonic() - began > MOST_S:
        raise Broken(f"took more than {MOST_S:g} s")


def _talk(peer: socket.socket, said: bytes, piece: int) -> None:
    """Says it in pieces, hears what comes, and hangs up."""
    with peer, suppress(OSError):
        hearing = threading.Thread(target=_hear, args=(peer,))
        hearing.start()
        try:
            for at in range(0, len(said), piece):
                peer.sendall(said[at : at + piece])
            peer.shutdown(socket.SHUT_WR)
        finally:
            hearing.join()


def _hear(peer: socket.socket) -> None:
    with suppress(OSError):
        while peer.recv(1 << 16):
            pass


def _to_receiver(chance: random.Random, channel: Channel, said: bytes, folder: Path) -> None:
    new = folder / "new"
    parent = folder / "parent-images" if chance.random() < 0.5 else None
    limits = Limits(most_bytes=MOST_BYTES, most_images=8)
    counts: tuple[ImageCount, ...] = ()
    complete = False

    def begin() -> Checkpoint:
        return Checkpoint(new, parent, page_size=PAGE, limits=limits)

    try:
        with Receiver(channel, begin) as receiver:
            try:
                complete = receiver.run()
            finally:
                counts = receiver.counts
        if complete:
            receiver.confirm()
    finally:
        _check_images(new, counts, said)
        shutil.rmtree(new, ignore_errors=True)


def _check_images(new: Path, counts: tuple[ImageCount, ...], said: bytes) -> None:
    """What was taken is what was said, and nothing else."""
    size = (
        sum(file.stat().st_size for file in new.iterdir() if not file.is_symlink())
        if (new.exists())
        else 0
    )
    if size > len(said) + 64 * len(counts):
        raise Broken(f"{size} bytes of files after {len(said)} bytes")
    for count in counts:
        with suppress(ImageError):  # lazy entries, which have no bytes
            known = read_page_set(new, count.target.pagemap_name, PAGE)
            if len(known) != count.pages + count.holes:
                raise Broken(f"{count} became {len(known)} pages")
            known.read(known.addresses)


def _to_lazy_server(chance: random.Random, channel: Channel, said: bytes, folder: Path) -> None:
    LazyServer(channel, LazyImages(folder / "parent-images", PAGE)).run()


def _to_clients(chance: random.Random, channel: Channel, said: bytes, folder: Path) -> None:
    dialect = chance.choice(list(DIALECTS.values()))
    if chance.random() < 0.5:
        client = LazyClient(channel, dialect, PAGE)
        for at in range(8):
            if len(client.get(7, 0x10000000 + at * PAGE, 4)) > 4 * PAGE:
                raise Broken("more than was asked for")
        client.finish()
        return
    sender = Sender(channel, dialect, PAGE)
    sender.has_parent(Target(TargetKind.PROCESS, 7))
    sender.open(Target(TargetKind.PROCESS, 7))
    one = np.ones(1, np.uint64)
    sender.add(one * np.uint64(PAGE), one, one * np.uint64(4), [memoryview(bytes(PAGE))])
    sender.finish()


def make_parent(folder: Path) -> None:
    """Images of process 7 that cases may name as their parent: 64 pages from 0x10000000."""
    with Checkpoint(folder / "parent-images", None, page_size=PAGE) as images:
        images.open(Target(TargetKind.PROCESS, 7))
        image = images.check(0x10000000, 64, 4)
        image.write(memoryview(struct.pack("<Q", 7) * (64 * PAGE // 8)))
        image.present(0x10000000, 64)
        images.finish()


def main() -> int:
    """Runs cases until the time is over; 1 if one of them broke something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.page_server", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, help="only this case")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="predump-fuzz-") as name:
        folder = Path(name)
        make_parent(folder)
        if options.seed is not None:
            run_case(options.seed, folder)
            return 0
        end = time.monotonic() + options.seconds
        first = seed = int(time.time()) * 1000
        before = 0
        while time.monotonic() < end:
            try:
                run_case(seed, folder)
                _check_process(before)
            except Broken as broken:
                print(f"seed {seed}: {broken}")
                return 1
            seed += 1
            if seed == first + 200:  # what is loaded on first use is there by now
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{seed - first} cases, nothing broke; seeds {first} to {seed - 1}")
    return 0


def _check_process(before: int) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if before and most - before > MOST_GROWTH:
        raise Broken(f"memory grew by {(most - before) >> 20} MiB")
    if len(os.listdir("/proc/self/fd")) > 32:
        raise Broken(f"descriptors left open: {sorted(os.listdir('/proc/self/fd'))}")


if __name__ == "__main__":
    sys.exit(main())
