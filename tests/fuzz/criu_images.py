"""Damaged and hostile image directories: ``python -m tests.fuzz.criu_images --seconds 600 [--seed
N]``.

Each case is a function of its seed alone: a directory that real CRIU wrote, or a chain that was
exported here, with a few things changed - bytes, numbers within protobuf records, lengths, files
swapped, left out, made endless or of holes, parents that lead nowhere or in a circle - and then all
that Predump does with directories: opened and read page by page, loaded into the model and exported
again, looked at, compared, deduplicated.

Allowed are an `ImageError` of one line, or a result; what was opened can be read. Anything else
that is raised, a case that takes too long, descriptors left open, or memory that grows ends the
run, and is printed with its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from livemigration.criu.compare import compare
from livemigration.criu.dedup import dedup
from livemigration.criu.images import CarriedImages, ImageDirectory, export_task, load_task
from livemigration.criu.survey import survey
from livemigration.errors import MigrationError
from mm_model import Machine, ModelConfig
from predump.criu_export import export_run
from predump.criu_tables import difference_lines, survey_json
from predump.scenario import scenario_from_mapping

SAMPLES = Path(__file__).parents[1] / "data" / "criu"
MOST_S = 20.0
HANGS_S = 300.0
MOST_GROWTH = 192 << 20
ADDRESS_SPACE = 24 << 30
"""A claim that was believed runs into this limit, not into the machine's memory."""

_MOST_BYTES = 4 << 20
_NUMBERS = (0, 1, 2, 4, 7, 4095, 4096, 65536, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 47, 1 << 52,
            1 << 63, (1 << 64) - 4096, (1 << 64) - 1)  # fmt: skip


class Broken(Exception):
    """What a case did."""


def make_chain(folder: Path) -> Path:
    """Three rounds of a small task with private, shared and file memory."""
    tables = {
        "schema": "predump.scenario/1",
        "memory": "256KiB",
        "workload": {
            "kind": "script",
            "every": "500us",
            "setup": "map 0 anon-private 8; write 0 0 8; map 1 anon-shared 4; write 1 0 4; "
            "map 2 tmpfs-private 4; write 2 1 2",
            "script": "write 0 1 2; write 1 1 1",
        },
        "policy": {"kind": "fixed", "rounds": 1},
        "migration": {"run_after": "1ms"},
    }
    asyncio.run(export_run(scenario_from_mapping(tables), folder / "chain"))
    return folder / "chain"


def make_case(seed: int, chain: Path, folder: Path) -> tuple[Path, Path | None]:
    """Writes the case's directory below `folder`: it, and a page server's beside it if any."""
    chance = random.Random(seed)
    kind = chance.choice(("full-4.1.1", "full-4.2.1", "page-server-4.2.1", "chain", "chain"))
    if kind == "chain":
        shutil.copytree(chain, folder / "case", symlinks=True)
        main, also = folder / "case" / chance.choice("332"), None
        places = sorted((folder / "case").iterdir())
    else:
        shutil.copytree(SAMPLES / kind, folder / "case")
        server = kind.startswith("page-server")
        main = folder / "case/src" if server else folder / "case"
        also = folder / "case/dst" if server else None
        places = [main, also] if also else [main]
    for _ in range(chance.choice((1, 1, 2, 4))):
        _damage(chance, chance.choice(places), folder)
    return main, also


def _damage(chance: random.Random, place: Path, folder: Path) -> None:
    files = sorted(
        file
        for file in place.iterdir()
        if file.is_file() and not file.is_symlink() and file.stat().st_size < _MOST_BYTES
    )
    if not files:
        return
    file = chance.choice(files)
    damages: list[Callable[[], None]] = [
        lambda: _change_bytes(chance, file),
        lambda: _change_number(chance, file),
        lambda: _change_number(chance, file),
        lambda: _change_number(chance, file),
        lambda: _cut(chance, file),
        lambda: _swap(chance, file, chance.choice(files)),
        file.unlink,
        lambda: _replace(chance, file, folder),
        lambda: _relink(chance, place),
    ]
    chance.choice(damages)()


def _change_bytes(chance: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(chance.randrange(1, 5) if data else 0):
        data[chance.randrange(len(data))] = chance.randrange(256)
    file.write_bytes(data)


def _change_number(chance: random.Random, file: Path) -> None:
    """A varint becomes another: sizes of records stay true, so that what it says gets read."""
    data = file.read_bytes()
    at = 4 if file.name == "inventory.img" else 8
    records = []
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        records.append((at, data[at + 4 : at + 4 + size]))
        at += 4 + size
    if file.name.startswith("pages-") or not records:
        return
    at, body = chance.choice(records)
    number = chance.choice(_NUMBERS) ^ chance.choice((0, 0, 1, 4096))
    changed = _with_number(chance, body, _varint(number & (1 << 64) - 1))
    new = len(changed).to_bytes(4, "little") + changed
    file.write_bytes(data[:at] + new + data[at + 4 + len(body) :])


def _with_number(chance: random.Random, body: bytes, number: bytes) -> bytes:
    """One of the message's top-level varints replaced; without any, one is put in front."""
    at, places = 0, []
    while at < len(body):
        key, after = _read(body, at)
        if key & 7 == 0:
            _, end = _read(body, after)
            places.append((after, end))
            at = end
        elif key & 7 == 2:
            size, after = _read(body, after)
            at = after + size
        else:
            break
    if not places:
        return bytes([chance.randrange(1, 16) << 3]) + number + body
    start, end = chance.choice(places)
    return body[:start] + number + body[end:]


def _read(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body):
        value |= (body[at] & 127) << shift
        shift += 7
        at += 1
        if body[at - 1] < 128:
            break
    return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _cut(chance: random.Random, file: Path) -> None:
    """Shorter, longer, or as long as a disk, with a hole."""
    size = file.stat().st_size
    os.truncate(file, chance.choice((0, size // 2, size + 1, size + 4096, 2 * size, 1 << 40)))


def _swap(chance: random.Random, file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    if chance.random() < 0.5:
        other.write_bytes(data)


def _replace(chance: random.Random, file: Path, folder: Path) -> None:
    """By what is no file."""
    file.unlink()
    kind = chance.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to(chance.choice(("/dev/zero", "nowhere", file.name, "/proc/self/mem")))
    else:
        file.touch(mode=0o000)


def _relink(chance: random.Random, place: Path) -> None:
    """The parent: elsewhere, itself, or a file."""
    link = place / "parent"
    link.unlink(missing_ok=True)
    target = chance.choice((".", "..", "../1", "../3", "nowhere", "/", "pages-1.img", "parent"))
    link.symlink_to(target)


def use(main: Path, also: Path | None, out: Path) -> None:
    """All that Predump does with a directory; raises what is not a `MigrationError`."""
    _allowed(lambda: _read_and_load(main, also, out))
    _allowed(lambda: survey_json(survey(main, also)))
    _allowed(lambda: list(difference_lines(compare(main, SAMPLES / "full-4.2.1"))))
    _allowed(lambda: list(difference_lines(compare(main, main))))
    _allowed(lambda: dedup(main, 4096, chain=True))


def _read_and_load(main: Path, also: Path | None, out: Path) -> None:
    images = ImageDirectory.open(main, also)
    for process in images.processes:
        for at in range(0, min(len(process.pages), 4096), 512):
            images.read_pages(process.pid, process.pages.addresses[at : at + 512])
    carried = CarriedImages.read(main, also)
    machine = Machine(ModelConfig(page_size=images.page_size, frames=2048))
    try:
        task = load_task(machine, images)
        export_task(task, out, carried=carried)
        again = ImageDirectory.open(out)
        if again.pages > images.pages:
            raise Broken(f"{again.pages} pages were exported, of {images.pages}")
    finally:
        machine.release()


def _allowed(call: Callable[[], object]) -> None:
    try:
        call()
    except MigrationError as error:
        line = str(error)
        if "\n" in line or not line.strip():
            raise Broken(f"not one line: {line!r}") from error


def run_case(seed: int, chain: Path) -> None:
    """One case in a folder of its own; raises what it did wrong."""
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        main, also = make_case(seed, chain, Path(folder))
        use(main, also, Path(folder) / "out")
        if time.process_time() - began > MOST_S:
            raise Broken(f"took {time.process_time() - began:.0f} s of the processor's time")
    if len(os.listdir("/proc/self/fd")) > before:
        raise Broken("left descriptors open")


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    """Runs until the time is over or a case breaks something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, help="this case alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chain = make_chain(Path(folder))
        if arguments.seed is not None:
            run_case(arguments.seed, chain)
            return 0
        first = seed = random.SystemRandom().randrange(1 << 40)
        for warm in range(64):  # what is compiled and cached on the way is no growth
            run_case(first - 1 - warm, chain)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
        start, until = resident(), time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            faulthandler.dump_traceback_later(HANGS_S, exit=True)
            try:
                run_case(seed, chain)
            except BaseException as error:
                print(f"seed {seed}: {type(error).__name__}: {error}", file=sys.stderr)
                raise
            if resident() - start > MOST_GROWTH:
                print(
                    f"seed {seed}: {resident() - start} bytes more than at first", file=sys.stderr
                )
                return 1
            seed += 1
        faulthandler.cancel_dump_traceback_later()
        grown = (resident() - start) >> 20
        print(f"{seed - first} cases from seed {first}: nothing broke; {grown} MiB more at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
