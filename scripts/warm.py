#!/usr/bin/env python3
"""Compile the model before anything waits for it.

The model's functions are compiled on first use and kept in Numba's cache (beside the sources, or
in NUMBA_CACHE_DIR). This runs a tiny migration of every kind of workload in one process, so that
test processes and containers find everything compiled. With a warm cache it takes seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from dest_node.warmup import warm_up as warm_destination
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


def main() -> int:
    """Run them all; 1 if one was not verified."""
    print("compiling the model (about a minute where it is not cached yet) ...", flush=True)
    start = time.monotonic()
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
            return 1
    warm_source()
    warm_destination()
    print(f"compiled in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
