"""Ready comparisons: grids that ship with Predump, run with ``predump sweep --comparison NAME``.

Every TOML file in this folder is one, called as the file; the comment on its first line says what
it shows. They cover what QEMU's tests/migration-stress/guestperf offers, and what else people ask:
memory is small enough to finish in minutes, and ``--set memory=...`` makes it larger.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable

from livemigration.spec_errors import unknown_name
from predump.overrides import Override
from predump.sweep.grid import Grid, GridError, grid_from_mapping


def comparisons() -> dict[str, str]:
    """What there is: name and what it shows."""
    return {
        name: file.read_text("utf-8").partition("\n")[0].lstrip("# ")
        for name, file in sorted(_files().items())
    }


def load_comparison(name: str, overrides: Sequence[Override] = ()) -> Grid:
    """The grid of a comparison. GridError if there is none of that name."""
    found = _files()
    if name not in found:
        raise GridError(f"--comparison: {unknown_name('comparison', name, list(found))}")
    data = tomllib.loads(found[name].read_text("utf-8"))
    return grid_from_mapping(
        {"name": name, **data}, origin=f"comparison {name}", overrides=overrides
    )


def _files() -> dict[str, Traversable]:
    return {
        file.name.removesuffix(".toml"): file
        for file in files(__name__).iterdir()
        if file.name.endswith(".toml")
    }
