"""All measurements of this host as a machine file."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from livemigration.machine_file import MACHINE_SCHEMA, MachineFile, Measured
from predump.calibration.handshake import measure_handshake
from predump.calibration.loopback import measure_loopback
from predump.calibration.memory import PAGE_SIZE, measure_memory
from predump.calibration.nodes import NodeTimes, measure_nodes
from predump.calibration.sample import Sample
from predump.versions import versions

_HANDSHAKES = 40
_LOOPBACK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: memory in bytes, and how often."""

    memory: int
    repeats: int
    name: str


def calibrate(plan: Plan, on_step: Callable[[str], None] = lambda line: None) -> MachineFile:
    """Measures this host. Takes about a minute with 256 MiB and 7 repeats.

    `BadRequest` where the kernel cannot track writes, `NoSpace` where there is no room, `RunError`
    or `CalibrationError` if nodes or their migrations fail.
    """
    load = os.getloadavg()[0]
    on_step("memory: faults, scans, write-protection, copies, digests")
    method, memory = measure_memory(plan.memory // PAGE_SIZE, plan.repeats)
    on_step("the task's thread: stop and go")
    threads = asyncio.run(measure_handshake(_HANDSHAKES))
    on_step("loopback")
    loopback = measure_loopback(min(_LOOPBACK_BYTES, plan.memory), plan.repeats)
    nodes = asyncio.run(measure_nodes(plan.memory, plan.repeats, on_step))
    samples = {**memory, **threads, "loopback": loopback, **_samples_of(nodes)}
    costs, sources = _costs(memory, threads, nodes, plan)
    return MachineFile.model_validate(
        {
            "schema": MACHINE_SCHEMA,
            "name": plan.name,
            "description": f"measured by `predump calibrate` on {platform.node()}",
            "host": _host(method, load),
            "costs": costs,
            "sources": sources,
            "measured": {name: sample.measured() for name, sample in samples.items()},
        }
    )


def _samples_of(nodes: NodeTimes) -> dict[str, Sample]:
    return {
        "freeze": nodes.freeze,
        "resume": nodes.resume,
        "stream": nodes.stream,
        "round_small": nodes.rounds[nodes.small],
        "round_large": nodes.rounds[nodes.large],
        "restore_small": nodes.restores[nodes.small],
        "restore_large": nodes.restores[nodes.large],
    }


def _costs(
    memory: dict[str, Sample], threads: dict[str, Sample], nodes: NodeTimes, plan: Plan
) -> tuple[dict[str, int], dict[str, str]]:
    """The costs in nanoseconds, and for each how it follows from what was measured."""
    scan, clear = memory["scan"].median, memory["write_protect"].median
    freeze, thaw = nodes.freeze.median, threads["thread_thaw"].median
    # What of an empty round is no cost of its own already.
    round_page = nodes.per_page(nodes.rounds) - scan - clear
    round_fixed = nodes.fixed(nodes.rounds) - freeze - thaw
    stream = nodes.stream.median
    found: dict[str, tuple[float, str]] = {
        "write_fault": (memory["write_fault"].median, "measured.write_fault"),
        "scan_page": (scan, "measured.scan"),
        "clear_page": (clear, "measured.write_protect"),
        "copy_kib": (memory["gather"].median, "measured.gather"),
        "freeze": (freeze, "measured.freeze"),
        "freeze_process": (0, "part of freeze: the task has one process"),
        "thaw": (thaw, "measured.thread_thaw"),
        "round": (
            round_fixed,
            "measured.round_small and round_large, taken to a task without pages, less freeze "
            "and thaw",
        ),
        "round_page": (
            round_page,
            "what a page adds between measured.round_small and round_large, less scan_page and "
            "clear_page",
        ),
        "stream_kib": (stream, "measured.stream"),
        "restore": (
            nodes.fixed(nodes.restores),
            "measured.restore_small and restore_large, taken to a task without pages",
        ),
        "restore_vma": (0, "part of restore: the task has one mapping"),
        "restore_kib": (0, "pages are put in place as they arrive, which is in stream_kib"),
        "restore_page": (
            nodes.per_page(nodes.restores),
            "what a page adds between measured.restore_small and restore_large",
        ),
        "resume": (nodes.resume.median, "measured.resume"),
    }
    costs = {key: max(0, round(value)) for key, (value, _) in found.items()}
    return costs, {key: source for key, (_, source) in found.items()}


def _host(method: str, load: float) -> dict[str, str | int | float]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "page_size": PAGE_SIZE,
        "tracker": method,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "predump": versions()["predump"],
    }


def _cpu() -> str:
    """The processor's name, where the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def to_toml(machine: MachineFile) -> str:
    """The file's text."""
    lines = ["# Written by `predump calibrate`; costs are nanoseconds."]
    lines += [f"{key} = {_value(value)}" for key, value in _head(machine).items()]
    lines += _table("host", machine.host)
    lines += _table("costs", machine.cost_table())
    lines += _table("sources", machine.sources)
    for name, figure in machine.measured.items():
        lines += _table(f"measured.{name}", _figure(figure))
    return "\n".join(lines) + "\n"


def _head(machine: MachineFile) -> dict[str, str]:
    return {
        "schema": MACHINE_SCHEMA,
        "name": machine.name,
        "description": machine.description,
    }


def _figure(figure: Measured) -> dict[str, str | int | float]:
    table: dict[str, str | int | float] = figure.model_dump()
    return table


def _table(name: str, values: Mapping[str, str | int | float]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items())]


def _value(value: str | int | float) -> str:
    """A TOML value: strings and numbers are written as in JSON."""
    return json.dumps(value)
