"""A page server beside the node: what `criu dump --page-server` sends here becomes images.

A real page server serves one connection and exits; a tool starts it anew for each round, with
--prev-images-dir. Here the port stays, and each connection becomes the next image directory of a
chain below the node's state directory::

    criu/1/1/  criu/1/2/  criu/1/3/      chain 1: two pre-dumps and a dump, say
    criu/1/1.json ...                    what came, and whether all of it did
    criu/2/1/  ...                       chain 2, since somebody asked for a new one

The parent of a directory is the last complete one before it. One that broke off stays for those
who want to see why, is marked, and is nobody's parent. A process that the parent does not know is
dumped in full by the client. One that it does know must be dumped with --prev-images-dir: without,
CRIU gives up when it is told of a parent. Nothing on the wire tells the two apart before, so a
client that goes away at that word makes the next dump begin a new chain.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain as joined
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint, Limits
from livemigration.criu.page_server.endpoint import Listener
from livemigration.criu.page_server.protocol import PageServerError, Target, TargetKind
from livemigration.criu.page_server.receiver import Receiver
from livemigration.criu.pagemap import read_page_set
from livemigration.digest import memory_digest, page_digests_of
from livemigration.errors import BadRequest, MigrationError
from livemigration.runs import to_runs
from livemigration.v1 import destination_node_pb2

log = logging.getLogger(__name__)

_FOLDER: Final = "criu"
_DIGEST_BYTES: Final = 16 << 20
_U64: Final = struct.Struct("<Q")
_STOPPED: Final = "the node ended while it came"


@dataclass(frozen=True, slots=True)
class CriuPagesConfig:
    """Where to listen, and what to bear.

    connections: at a time; page_size: of the machines that dump, which the protocol does not tell.
    """

    listen: str
    tls: ssl.SSLContext | None = None
    limits: Limits = field(default_factory=Limits)
    connections: int = 4
    page_size: int = 4096


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One process or shared segment of a checkpoint."""

    shared: bool
    id: int
    pages: int
    holes: int


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What came in one connection. `error` is empty if all of it did.

    digest: of all live pages, those of the parents among them; empty if it did not all come.
    """

    chain: int
    number: int
    complete: bool
    dialect: str = ""
    bytes_received: int = 0
    duration_ns: int = 0
    error: str = ""
    digest: str = ""
    images: tuple[ImageRecord, ...] = ()

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CheckpointRecord:
        """Raises ValueError."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["images"] = tuple(ImageRecord(**image) for image in fields["images"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a checkpoint: {error}") from None


class CriuPages:
    """The chains of one node, and the port that fills them."""

    def __init__(self, state_dir: Path, config: CriuPagesConfig) -> None:
        """Listens at once. Raises CannotListen, BadRequest."""
        self._root = state_dir / _FOLDER
        self._config = config
        self._lock = threading.Lock()
        self._records: dict[tuple[int, int], CheckpointRecord] = {}
        self._under_way: set[tuple[int, int]] = set()
        try:
            self._root.mkdir(exist_ok=True)
            self._take_up()
        except OSError as error:
            raise BadRequest(f"{self._root}: {error.strerror}; make it writable") from error
        self._chain = max((chain for chain, _ in self._records), default=1)
        self._listener = Listener(
            config.listen,
            self._serve,
            most=config.connections,
            patience_s=config.limits.patience_s,
            tls=config.tls,
        )

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return self._listener.address

    def close(self) -> None:
        """Ends connections; what they brought stays, and is marked."""
        self._listener.close()

    def new_chain(self) -> int:
        """The next connection has no parent; returns the chain's number."""
        with self._lock:
            if any(chain == self._chain for chain, _ in self._keys()):
                self._chain += 1
            return self._chain

    def describe(self) -> destination_node_pb2.ListCheckpointsReply:
        """What came so far, oldest first, with digests."""
        with self._lock:
            known = sorted(self._records)
        reply = destination_node_pb2.ListCheckpointsReply(address=self.address)
        for key in known:
            record = self._with_digest(key)
            reply.checkpoints.append(
                destination_node_pb2.Checkpoint(
                    chain=record.chain,
                    number=record.number,
                    folder=str(self.folder(*key).resolve()),
                    complete=record.complete,
                    error=record.error,
                    dialect=record.dialect,
                    bytes_received=record.bytes_received,
                    duration_ns=record.duration_ns,
                    digest=record.digest,
                    images=[
                        destination_node_pb2.CheckpointImage(
                            shared=image.shared, id=image.id, pages=image.pages, holes=image.holes
                        )
                        for image in record.images
                    ],
                )
            )
        return reply

    def folder(self, chain: int, number: int) -> Path:
        """The image directory."""
        return self._root / str(chain) / str(number)

    # -- what is on disk

    def _take_up(self) -> None:
        """Finds what processes before this one received."""
        for folder in self._root.glob("*/*/"):
            chain, number = folder.parent.name, folder.name
            if chain.isdecimal() and number.isdecimal():
                key = int(chain), int(number)
                self._records[key] = self._read(*key)

    def _read(self, chain: int, number: int) -> CheckpointRecord:
        try:
            return CheckpointRecord.from_json(self._record_file(chain, number).read_text())
        except FileNotFoundError:
            return CheckpointRecord(chain, number, complete=False, error=_STOPPED)
        except ValueError as error:
            return CheckpointRecord(chain, number, complete=False, error=str(error))

    def _record_file(self, chain: int, number: int) -> Path:
        return self._root / str(chain) / f"{number}.json"

    def _keep(self, record: CheckpointRecord) -> None:
        file = self._record_file(record.chain, record.number)
        part = file.with_suffix(".part")
        key = record.chain, record.number
        try:
            part.write_text(record.to_json() + "\n")
            os.replace(part, file)
        except OSError as error:
            failed = ImageError(file, error.strerror or str(error), "make room")
            with self._lock:  # its number stays taken: the directory is there
                self._records.setdefault(key, replace(record, complete=False, error=str(failed)))
            raise failed from None
        with self._lock:
            self._records[key] = record

    # -- one connection

    def _serve(self, channel: Channel, peer: str) -> None:
        began = time.monotonic_ns()
        place: list[tuple[int, int]] = []

        def begin() -> Checkpoint:
            key, parent = self._take_place()
            place.append(key)
            return Checkpoint(
                self.folder(*key),
                parent,
                page_size=self._config.page_size,
                limits=self._config.limits,
            )

        def record(error: str) -> None:
            if place:
                self._end(place[0], receiver, channel.received, time.monotonic_ns() - began, error)

        with Receiver(channel, begin) as receiver:
            try:
                complete = receiver.run()
            except MigrationError as error:
                why = self._why(receiver, str(error))
                record(why)
                raise PageServerError(why) from None
            if not complete and receiver.told_of_parent:
                self.new_chain()
            # What the client may count on is on disk before it hears of it.
            record("")
            receiver.confirm()
        if complete:
            chain, number = place[0]
            log.info("page server: %s: checkpoint %d of chain %d is here", peer, number, chain)

    def _why(self, receiver: Receiver, error: str) -> str:
        """What ended a connection, with what is done about it."""
        if not receiver.told_of_parent:
            return error
        return (
            f"{error}: was it dumped without --prev-images-dir? The next dump begins chain "
            f"{self.new_chain()}"
        )

    def _take_place(self) -> tuple[tuple[int, int], Path | None]:
        """The next number in the chain, and its parent's folder."""
        with self._lock:
            chain = self._chain
            number = 1 + max((n for c, n in self._keys() if c == chain), default=0)
            self._under_way.add((chain, number))
            whole = [n for (c, n), known in self._records.items() if c == chain and known.complete]
        return (chain, number), self.folder(chain, max(whole)) if whole else None

    def _keys(self) -> Iterator[tuple[int, int]]:
        return joined(self._records, self._under_way)

    def _end(
        self, key: tuple[int, int], receiver: Receiver, received: int, took_ns: int, error: str
    ) -> None:
        """Keeps what is known of a connection; of one that brought no page nothing is kept."""
        try:
            if receiver.counts:
                self._keep(
                    CheckpointRecord(
                        *key,
                        complete=not error,
                        dialect=receiver.dialect.name if receiver.dialect else "",
                        bytes_received=received,
                        duration_ns=took_ns,
                        error=error,
                        images=tuple(
                            ImageRecord(
                                count.target.kind is TargetKind.SHARED,
                                count.target.id,
                                count.pages,
                                count.holes,
                            )
                            for count in receiver.counts
                        ),
                    )
                )
            else:
                shutil.rmtree(self.folder(*key), ignore_errors=True)
        finally:
            with self._lock:
                self._under_way.discard(key)

    # -- digests

    def _with_digest(self, key: tuple[int, int]) -> CheckpointRecord:
        """The record with a digest of all live pages, which is made when first asked for."""
        record = self._records[key]
        if not record.complete or record.digest:
            return record
        try:
            digest = self._digest(record)
        except ImageError as error:
            return replace(record, error=str(error))
        record = replace(record, digest=digest)
        with suppress(ImageError):  # without room it is made again when it is asked for again
            self._keep(record)
        return record

    def _digest(self, record: CheckpointRecord) -> str:
        size = self._config.page_size
        step = max(_DIGEST_BYTES // size, 1)
        description = bytearray(_U64.pack(size))
        digests: list[NDArray[np.uint64]] = []
        folder = self.folder(record.chain, record.number)
        for image in sorted(record.images, key=lambda image: (image.shared, image.id)):
            kind = TargetKind.SHARED if image.shared else TargetKind.PROCESS
            name = Target(kind, image.id).pagemap_name
            pages = read_page_set(folder, name, size)
            starts, counts = to_runs(pages.addresses, size)
            description += name.encode() + b"\0" + _U64.pack(starts.size)
            description += starts.tobytes() + counts.tobytes()
            digests += [
                page_digests_of(pages.read(pages.addresses[at : at + step]), size)
                for at in range(0, len(pages), step)
            ]
        return memory_digest(bytes(description), *digests)
