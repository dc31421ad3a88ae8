"""What a migration reports while it goes on and at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from livemigration.encoding.tally import Tally, encoding_name
from livemigration.ownership import Ownership
from livemigration.v1 import common_pb2, source_node_pb2

NS = 1_000_000_000


@dataclass(slots=True)
class Downtime:
    """From the freeze to the task runnable at the destination, by part, in nanoseconds.

    Verification is not among the parts: it is reported apart.
    """

    freeze_ns: int = 0
    scan_ns: int = 0
    dump_ns: int = 0
    transfer_ns: int = 0
    restore_ns: int = 0
    resume_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All parts."""
        return (
            self.freeze_ns
            + self.scan_ns
            + self.dump_ns
            + self.transfer_ns
            + self.restore_ns
            + self.resume_ns
        )

    def to_json(self) -> dict[str, float]:
        """The fields of ``downtime_s`` in a result."""
        return {
            "total": self.total_ns / NS,
            "freeze": self.freeze_ns / NS,
            "scan": self.scan_ns / NS,
            "dump": self.dump_ns / NS,
            "transfer": self.transfer_ns / NS,
            "restore": self.restore_ns / NS,
            "resume": self.resume_ns / NS,
        }

    def to_proto(self) -> common_pb2.DowntimeRecord:
        """As a message."""
        return common_pb2.DowntimeRecord(
            freeze_ns=self.freeze_ns,
            scan_ns=self.scan_ns,
            dump_ns=self.dump_ns,
            transfer_ns=self.transfer_ns,
            restore_ns=self.restore_ns,
            resume_ns=self.resume_ns,
            total_ns=self.total_ns,
        )


@dataclass(slots=True)
class Round:
    """One round's figures; `reason` says why the next step was taken."""

    round: int
    pages_sent: int = 0
    pages_soft_dirty: int = 0
    pages_written: int = 0
    pages_zero: int = 0
    bytes_wire: int = 0
    payload_bytes: int = 0
    duration_ns: int = 0
    frozen_ns: int = 0
    reason: str = ""
    pages_lost: int = 0
    pages_spurious: int = 0
    pages_scanned: int = 0
    page_map: common_pb2.PageMap | None = None
    tally: Tally = field(default_factory=Tally)
    encode_ns: int = 0
    decode_ns: int = 0

    def to_proto(self) -> common_pb2.RoundRecord:
        """As a message."""
        return common_pb2.RoundRecord(
            round=self.round,
            pages_sent=self.pages_sent,
            pages_soft_dirty=self.pages_soft_dirty,
            pages_written=self.pages_written,
            pages_zero=self.pages_zero,
            bytes_wire=self.bytes_wire,
            duration_ns=self.duration_ns,
            reason=self.reason,
            pages_lost=self.pages_lost,
            pages_spurious=self.pages_spurious,
            pages_scanned=self.pages_scanned,
            frozen_ns=self.frozen_ns,
            page_map=self.page_map,
            encodings=self.tally.to_proto(),
            encode_ns=self.encode_ns,
            delta_hits=self.tally.delta_hits,
            delta_misses=self.tally.delta_misses,
            delta_overflows=self.tally.delta_overflows,
        )

    def to_json(self) -> dict[str, object]:
        """The fields of ``rounds[]`` in a result, times in seconds."""
        return {
            "round": self.round,
            "pages_sent": self.pages_sent,
            "pages_soft_dirty": self.pages_soft_dirty,
            "pages_written": self.pages_written,
            "pages_zero": self.pages_zero,
            "bytes_wire": self.bytes_wire,
            "duration_s": self.duration_ns / NS,
            "reason": self.reason,
            "page_map": None if self.page_map is None else _page_map(self.page_map),
            "encodings": [
                {"encoding": encoding_name(e.encoding), "pages": e.pages, "bytes": e.bytes}
                for e in self.tally.to_proto()
            ],
            "encode_s": self.encode_ns / NS,
            "delta_cache": {
                "hits": self.tally.delta_hits,
                "misses": self.tally.delta_misses,
                "overflows": self.tally.delta_overflows,
            },
        }


def _page_map(there: common_pb2.PageMap) -> dict[str, object]:
    return {
        "bin_bytes": there.bin_bytes,
        "processes": [
            {
                "pid": process.pid,
                "start": [f"{address:#x}" for address in process.start],
                "pages": list(process.pages),
            }
            for process in there.processes
        ],
    }


@dataclass(slots=True)
class Outcome:
    """How a migration ended."""

    migration_id: str
    verified: bool = False
    continued: bool = False
    continued_equal: bool = False
    rounds: list[Round] = field(default_factory=list)
    downtime: Downtime = field(default_factory=Downtime)
    total_ns: int = 0
    mismatches: list[common_pb2.Mismatch] = field(default_factory=list)
    mismatched_pages: int = 0
    ownership: Ownership = Ownership.RUNNING
    error: str = ""
    wall_ns: int = 0
    verify_ns: int = 0
    transfer_wall_ns: int = 0
    memory_bytes: int = 0
    operations: int = 0
    memory_digest: str = ""
    post_copy: common_pb2.PostCopyRecord | None = None

    @property
    def pages_lost(self) -> int:
        """What was lost in an earlier round may have been sent since: only the last scan counts."""
        return self.rounds[-1].pages_lost if self.rounds else 0

    @property
    def pages_spurious(self) -> int:
        """In all rounds."""
        return sum(r.pages_spurious for r in self.rounds)

    def to_proto(self) -> source_node_pb2.MigrationResult:
        """As a message."""
        later = self.post_copy or common_pb2.PostCopyRecord()
        return source_node_pb2.MigrationResult(
            migration_id=self.migration_id,
            verified=self.verified,
            continued=self.continued,
            continued_equal=self.continued_equal,
            rounds=[r.to_proto() for r in self.rounds],
            downtime=self.downtime.to_proto(),
            total_ns=self.total_ns,
            bytes_wire=sum(r.bytes_wire for r in self.rounds) + later.bytes_wire,
            payload_bytes=sum(r.payload_bytes for r in self.rounds) + later.payload_bytes,
            pages_lost=self.pages_lost,
            pages_spurious=self.pages_spurious,
            mismatches=self.mismatches,
            mismatched_pages=self.mismatched_pages,
            ownership=self.ownership.value,
            error=self.error,
            wall_ns=self.wall_ns,
            verify_ns=self.verify_ns,
            transfer_wall_ns=self.transfer_wall_ns,
            memory_bytes=self.memory_bytes,
            operations=self.operations,
            memory_digest=self.memory_digest,
            post_copy=self.post_copy,
        )
