"""What all tests share: how Hypothesis searches, and what collecting thousands of tests costs."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Compilation and two busy cores make single examples slow: time limits are pytest-timeout's job.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}

settings.register_profile("predump", settings(max_examples=100), **_PATIENT)
# `make fuzz`: the same properties, many more examples, other ones every time.
settings.register_profile(
    "fuzz",
    settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5000"))),
    derandomize=False,
    **_PATIENT,
)
# CI must not fail by chance: its examples depend on the test alone.
settings.register_profile("ci", settings.get_profile("predump"), derandomize=True)
LEFT_OUT = {"alone", "compose", "guest"}
"""Marks of tests that `make test` runs by themselves (Makefile)."""

settings.load_profile("ci" if os.environ.get("CI") else "predump")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: looking through it for garbage again and again finds
    nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m 'this or that'`, files that have no such mark need not be imported."""
    wanted = re.findall(r"\w+", config.option.markexpr)
    if not wanted or "not" in wanted or collection_path.suffix != ".py":
        return None
    names = [name for name in wanted if name not in {"and", "or"}]
    return None if _names_a_mark(collection_path, names) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Holds that no file is passed over by the above which has such tests after all."""
    for item in items:
        for mark in item.iter_markers():
            if mark.name in LEFT_OUT and not _names_a_mark(item.path, [mark.name]):
                raise pytest.UsageError(
                    f"{item.path}: write pytest.mark.{mark.name} in this file: `-m {mark.name}` "
                    "looks for files that do"
                )


def _names_a_mark(path: Path, names: list[str]) -> bool:
    marks = "|".join(f"mark.{name}" for name in names)
    return re.search(rf"\b({marks})\b", path.read_text("utf-8")) is not None
