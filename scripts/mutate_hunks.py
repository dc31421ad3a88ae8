#!/usr/bin/env python3
"""Take each hunk of the patch out of the model in turn: some test must fail each time.

`make mutate-hunks` runs this. A hunk whose loss no test notices is one that the model could lose
unseen: exit status 1. Names on the command line: only these.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from mm_model import HUNKS

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted(
    str(path.relative_to(ROOT))
    for name in ("hunks_off", "contpte", "huge*", "moving_huge*", "features_together", "forcing")
    for path in (ROOT / "tests/unit/mm_model").glob(f"test_{name}.py")
)
SUITES: tuple[tuple[str, ...], ...] = (
    tuple(UNITS),
    ("tests/golden/test_traces.py", "-k", "shows_what and rfc-descriptors"),
)
"""What is run, quickest first; the next only if the one before noticed nothing."""


def first_failure(hunk: str, suite: tuple[str, ...]) -> str:
    """The first test of the suite that fails without the hunk; "" if all pass."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.mutation.plugin"),
            *("-q", "-x", "--tb=no", "-p", "no:cacheprovider", *suite),
        ],
        cwd=ROOT,
        env=os.environ | {"MUTATE_HUNK": hunk},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 0:
        return ""
    failed = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or failed is None:
        raise RuntimeError(f"without {hunk or 'nothing'}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return failed[1]


def main(names: list[str]) -> int:
    """Print a line a hunk; 1 if one is missed by no test."""
    for suite in SUITES:
        if failure := first_failure("", suite):
            print(f"with the whole patch {failure} fails: mend that first", file=sys.stderr)
            return 1
    missed = []
    for hunk in HUNKS:
        if names and hunk.name not in names:
            continue
        start = time.monotonic()
        failure = next(
            (found for suite in SUITES if (found := first_failure(hunk.name, suite))), ""
        )
        missed += [] if failure else [hunk.name]
        took = time.monotonic() - start
        print(f"{hunk.name:28} {failure or 'NO TEST FAILS'}  ({took:.0f} s)", flush=True)
    if missed:
        print(f"no test fails without: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
