"""What a task does all day: deterministic streams of stores, reads and memory calls.

Operation k of a workload is a function of (specification, seed, k) alone, so it does not matter how
time is cut into slices, on which machine it runs, or that it was migrated in between.

`build_workload` makes a `Workload` of a specification. Both are imported when first asked for:
reading a scenario needs neither NumPy nor a compiler.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livemigration.workload.base import RunStats, Workload, WorkloadError
    from livemigration.workload.build import build_workload

__all__ = ["RunStats", "Workload", "WorkloadError", "build_workload"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from livemigration.workload import base, build

    return getattr(build if name == "build_workload" else base, name)
