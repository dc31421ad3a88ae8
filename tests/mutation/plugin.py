"""Takes a hunk of the patch out of the model, whatever a test asks for: `scripts/mutate_hunks.py`.

Loaded by that script only (``-p tests.mutation.plugin``). MUTATE_HUNK names the hunk; empty: none.
Every arm64 machine is built as if the hunk were switched off, so what stands in for the hunk is
gone from the model, and tests that hold anything of it must fail.
"""

from __future__ import annotations

import os
from dataclasses import replace

from mm_model import ModelConfig, machine
from mm_model.arch import Arch
from mm_model.config import build_arch

_HUNK = os.environ.get("MUTATE_HUNK", "")


def _without_the_hunk(config: ModelConfig) -> Arch:
    if not _HUNK or config.arch != "arm64":
        return build_arch(config)
    return build_arch(replace(config, hunks_off=config.hunks_off | {_HUNK}))


def pytest_configure() -> None:
    """Before any test module is imported."""
    machine.build_arch = _without_the_hunk
