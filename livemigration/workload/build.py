"""From a specification to the workload that runs."""

from __future__ import annotations

from pathlib import Path

from livemigration.workload.append_heap import AppendHeapWorkload
from livemigration.workload.base import Setting, Workload
from livemigration.workload.fork_cow import ForkCowWorkload
from livemigration.workload.replay import TraceWorkload
from livemigration.workload.script import ScriptWorkload
from livemigration.workload.spec import (
    AppendHeapSpec,
    ForkCowSpec,
    IdleSpec,
    PhasedSpec,
    ScriptSpec,
    SwapPressureSpec,
    TraceSpec,
    WorkloadSpec,
)
from livemigration.workload.swap_pressure import SwapPressureWorkload
from livemigration.workload.writers import IdleWorkload, PhasedWorkload, StoreWorkload


def build_workload(
    spec: WorkloadSpec,
    *,
    seed: int,
    memory_bytes: int,
    page_size: int,
    base_dir: Path = Path(),
) -> Workload:
    """The workload of ``spec`` for a task of ``memory_bytes`` in pages of ``page_size``.

    ``base_dir`` is where the files that the specification names are. Raises WorkloadError (a
    ValueError) with one line if a size does not fit, or a trace cannot be used.
    """
    setting = Setting(seed, memory_bytes, page_size, base_dir)
    match spec:
        case PhasedSpec():
            return PhasedWorkload(spec, setting)
        case IdleSpec():
            return IdleWorkload(spec, setting)
        case AppendHeapSpec():
            return AppendHeapWorkload(spec, setting)
        case ForkCowSpec():
            return ForkCowWorkload(spec, setting)
        case SwapPressureSpec():
            return SwapPressureWorkload(spec, setting)
        case ScriptSpec():
            return ScriptWorkload(spec, setting)
        case TraceSpec():
            return TraceWorkload(spec, setting)
        case _:
            return StoreWorkload(spec, setting)
