"""The benchmark program: what it prints and writes. Its figures are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = run("--quick", "content", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "page digests, 4 KiB pages" in done.stdout
    report = json.loads(file.read_text())
    assert report["schema"] == "predump.bench/1"
    assert report["quick"] is True
    figures = {(f["name"], f["baseline_name"]): f for f in report["figures"]}
    digests = figures["page digests, 64 KiB pages", "memcpy"]
    assert digests["value"] > 0
    assert digests["ratio"] == digests["value"] / digests["baseline"]
    assert digests["reached"] is (digests["value"] >= digests["target"])
    assert figures["compare pages, 4 KiB pages", "memcpy"]["reached"] is None


def test_unknown_group_is_refused_with_those_there_are() -> None:
    done = run("contents")
    assert done.returncode == 2
    there = "model, content, encoding, stream, migration, page-server, speed"
    assert f"no group contents: there are {there}" in done.stderr
