"""Compiled code is kept where every copy of the same sources finds it, and no other does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mm_model

PACKAGE = Path(mm_model.__file__).parent
COMPILE_ONE = (
    "import numpy as np; from mm_model.arm64.pgtable import pte_write; pte_write(np.uint64(0))"
)


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the package in each."""
    for name in ("a", "b"):
        shutil.copytree(
            PACKAGE, tmp_path / name / "mm_model", ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path / "a", tmp_path / "b"


def run(folder: Path, **env: str) -> str:
    """Compiles one function with the package in `folder`; returns Numba's words about its cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE_ONE],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder), "NUMBA_DEBUG_CACHE": "1"} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_another_copy_of_the_same_sources_finds_the_code(
    copies: tuple[Path, Path], tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    assert "data saved to" in run(copies[0], XDG_CACHE_HOME=cache)
    again = run(copies[1], XDG_CACHE_HOME=cache)
    assert "data loaded from" in again
    assert "data saved to" not in again


def test_other_sources_do_not_find_it(copies: tuple[Path, Path], tmp_path: Path) -> None:
    """A change anywhere counts: what a function calls may lie in another file."""
    cache = str(tmp_path / "cache")
    run(copies[0], XDG_CACHE_HOME=cache)
    with (copies[1] / "mm_model" / "errors.py").open("a") as source:
        source.write("# changed\n")
    assert "data loaded from" not in run(copies[1], XDG_CACHE_HOME=cache)


def test_code_that_was_not_used_for_long_is_removed(
    copies: tuple[Path, Path], tmp_path: Path
) -> None:
    places = [tmp_path / "cache" / "predump" / f"mm_model-{name}" for name in ("old", "recent")]
    for days, place in zip((31, 29), places, strict=True):
        place.mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(place, (then, then))
    run(copies[0], XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert [place.exists() for place in places] == [False, True]


def test_a_user_whose_cache_cannot_be_written_compiles_into_a_temporary_folder(
    copies: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tmp").mkdir()
    blocked = str(tmp_path / "file" / "cache")
    said = run(copies[0], XDG_CACHE_HOME=blocked, HOME=blocked, TMPDIR=str(tmp_path / "tmp"))
    assert str(tmp_path / "tmp" / "predump-cache-") in said
