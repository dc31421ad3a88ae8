"""All cases of some faults, in one laboratory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from predump.faults.lab import LocalLaboratory
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
    on_case: Callable[[Fault, CaseSpec], None] = lambda fault, case: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Runs every case of every fault, one after the other."""
    trials = []
    async with laboratory(faults) as lab:
        for fault in faults:
            for case in fault.spec.case:
                on_case(fault, case)
                trial = await try_case(lab, fault, case)
                on_trial(trial)
                trials.append(trial)
    return trials
