"""Sweeps: one scenario over ranges of its keys, in many processes, into one result file.

`load_grid` reads what to run, `run_sweep` runs what has not been run yet, `ResultStore` keeps it.
docs/sweeps.md describes all three.
"""

from predump.sweep.comparisons import comparisons, load_comparison
from predump.sweep.execute import SweepOutcome, run_sweep
from predump.sweep.grid import Grid, GridError, Point, load_grid
from predump.sweep.store import ResultStore, StoreError

__all__ = [
    "Grid",
    "GridError",
    "Point",
    "ResultStore",
    "StoreError",
    "SweepOutcome",
    "comparisons",
    "load_comparison",
    "load_grid",
    "run_sweep",
]
