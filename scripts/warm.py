#!/usr/bin/env python3
"""Compile the model before anything waits for it.

The model's functions are compiled on first use and kept in Numba's cache (in ~/.cache/predump, or
in NUMBA_CACHE_DIR). This runs a tiny migration of every kind of workload, so that containers find
everything compiled. With --tests it also asks the models of both architectures for all that they
can do, each in a process of its own, as the tests do: they would compile the same twice, side by
side. With a warm cache it takes seconds.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

from dest_node.warmup import warm_up as warm_destination
from mm_model import ModelConfig
from predump.conform.operations import Vocabulary
from predump.inprocess import migrate_in_process
from predump.scenario import scenario_from_mapping
from source_node.warmup import warm_up as warm_source

KINDS = ("zipf", "uniform", "hotspot", "sequential", "append-heap", "fork-cow", "swap-pressure")


def scenario(kind: str, verify: str, *, dbm: bool = True, **tables: Any) -> dict[str, Any]:
    """A migration of 2 MiB."""
    return {
        "schema": "predump.scenario/1",
        "name": f"warm-{kind}",
        "seed": 1,
        "memory": "2MiB",
        "cpu": {"dbm": dbm},
        "workload": {"kind": kind, "rate": "2000 pages/s"},
        "policy": {"kind": "fixed", "rounds": 1},
        "verify": {"mode": verify},
        "link": {"bandwidth": "1Gbit/s"},
        **tables,
    }


def migrate() -> bool:
    """Run them all; False if one was not verified."""
    for data in (
        *(scenario(kind, "digest") for kind in KINDS),
        scenario("zipf", "bytes", dbm=False),
        scenario("zipf", "digest", encoding={"kind": "auto"}),
        scenario("zipf", "digest", encoding={"kind": "delta", "codec": "lz4"}),
        scenario("zipf", "digest", policy={"kind": "post-copy"}),
        scenario("zipf", "bytes", policy={"kind": "hybrid", "prefetch": "sequential"}),
    ):
        result = asyncio.run(migrate_in_process(scenario_from_mapping(data)))
        if result.exit_code:
            print(f"{result.name}: not verified: {result.error}", file=sys.stderr)
            return False
    warm_source()
    warm_destination()
    return True


def try_everything(arch: str) -> None:
    """Every operation that the model of an architecture has."""
    Vocabulary.of(ModelConfig(arch=arch))


def main(arguments: list[str]) -> int:
    """Compile what is asked for; 1 if a migration was not verified."""
    if arguments[:1] == ["--arch"]:
        try_everything(arguments[1])
        return 0
    for_tests = arguments == ["--tests"]
    took = "two minutes" if for_tests else "about a minute"
    print(f"compiling the model ({took} where it is not cached yet) ...", flush=True)
    start = time.monotonic()
    beside = [subprocess.Popen([sys.executable, __file__, "--arch", "x86_64"])] if for_tests else []
    verified = migrate()
    if for_tests:
        try_everything("arm64")
    failed = [process for process in beside if process.wait()]
    print(f"compiled in {time.monotonic() - start:.1f} s")
    return 0 if verified and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
