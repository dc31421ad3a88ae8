"""All cases of some faults, in one laboratory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from predump.faults.lab import Laboratory, LocalLaboratory
from predump.faults.spec import CaseSpec, Fault
from predump.faults.trial import Trial, try_case


def laboratory(faults: Sequence[Fault]) -> LocalLaboratory:
    """One that has what these faults need."""
    kinds = {fault.spec.kind for fault in faults}
    return LocalLaboratory(
        max(fault.scenario.task.memory for fault in faults),
        broker="lose-broker" in kinds,
        clock="jump-clock" in kinds,
    )


async def run_faults(
    faults: Sequence[Fault],
    *,
    lab: AbstractAsyncContextManager[Laboratory] | None = None,
    on_case: Callable[[Fault, CaseSpec], None] = lambda fault, case: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Runs every case of every fault, one after the other; without a `lab` on this machine."""
    trials = []
    async with lab or laboratory(faults) as place:
        for fault in faults:
            for case in fault.spec.case:
                on_case(fault, case)
                trial = await try_case(place, fault, case)
                on_trial(trial)
                trials.append(trial)
    return trials
