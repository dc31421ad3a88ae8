"""A scenario whose task comes out of an image directory."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from livemigration.criu.images import CarriedImages, ImageDirectory
from predump.scenario import SCENARIO_SCHEMA, scenario_from_mapping


def scenario_text(directory: Path, workload: str) -> str:
    """A scenario file (TOML) for the task in `directory`, doing what `workload` does by default.

    Raises ImageError if the images cannot be loaded, or ScenarioError for an unknown workload.
    """
    images = ImageDirectory.open(directory)
    CarriedImages.read(directory)  # refuses now what a run would refuse
    memory = max(images.pages, 1) * images.page_size
    named = ", ".join(f"{process.pid} {process.comm}" for process in images.processes[:8])
    lines = [
        f"# The task of a CRIU dump: {' '.join(named.split())}",
        f"schema = {json.dumps(SCENARIO_SCHEMA)}",
        'name = "imported"',
        f"memory = {memory}",
        f"page_size = {images.page_size}",
        "",
        "[source]",
        f"images = {json.dumps(str(directory.resolve()), ensure_ascii=False)}",
        "",
        "[workload]",
        f"kind = {json.dumps(workload)}",
        "",
    ]
    text = "\n".join(lines)
    scenario_from_mapping(tomllib.loads(text), origin=f"--workload {workload}")
    return text
