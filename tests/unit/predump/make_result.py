"""A result to test with, any field of which can be another one."""

from typing import Any

from predump.result import Result

ROUND = {
    "round": 0,
    "pages_sent": 65536,
    "pages_soft_dirty": 65536,
    "pages_written": 65536,
    "pages_zero": 0,
    "bytes_wire": 268_500_000,
    "duration_s": 2.15,
    "reason": "first round: everything",
}
FINAL = {
    **ROUND,
    "round": 1,
    "pages_sent": 800,
    "pages_soft_dirty": 800,
    "pages_written": 790,
    "bytes_wire": 3_280_000,
    "duration_s": 0.0263,
    "reason": "goal reached",
}
DOWNTIME = {
    "total": 0.0512,
    "freeze": 0.0001,
    "scan": 0.0033,
    "dump": 0.0008,
    "transfer": 0.0263,
    "restore": 0.0197,
    "resume": 0.001,
}
MISMATCH = {"pid": 1, "start": "0x100000fe000", "pages": 2, "last_round": 0}


def result_of(**changes: Any) -> Result:
    """A verified migration of 256 MiB in two rounds, with ``changes``."""
    fields: dict[str, Any] = {
        "name": "test",
        "migration_id": "m-1",
        "clock": "virtual",
        "seed": 1,
        "page_size": 4096,
        "memory_bytes": 268_435_456,
        "policy": {"kind": "threshold", "max_rounds": 10, "goal_percent": 70},
        "verified": True,
        "continued_equal": True,
        "owner": "destination",
        "error": None,
        "rounds": (ROUND, FINAL),
        "downtime_s": DOWNTIME,
        "verify_s": 0.2,
        "total_time_s": 2.2,
        "bytes_wire": 271_800_000,
        "bytes_pages": 271_712_256,
        "pages_lost": 0,
        "pages_spurious": 10,
        "pages_different": 0,
        "mismatches": (),
        "hunks_off": (),
        "wall_s": 3.1,
        "transfer_wall_s": 1.2,
        "versions": {"predump": "0.1.0"},
    }
    return Result.model_validate(fields | changes)


def lossy_result(**changes: Any) -> Result:
    """The same with a hunk off: two pages lost, both found, the source keeps the task."""
    lossy: dict[str, Any] = {
        "verified": False,
        "continued_equal": None,
        "owner": "source",
        "error": "2 pages differ",
        "total_time_s": 0.0,
        "pages_lost": 2,
        "pages_different": 2,
        "mismatches": (MISMATCH,),
        "hunks_off": ("ptep_set_access_flags",),
    }
    return result_of(**(lossy | changes))
