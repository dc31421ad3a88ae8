"""A hand-over that takes longer than anybody's patience, at a destination that says so."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import dest_node.incoming
from dest_node.server import DestinationConfig, serve_destination
from livemigration.criu.images import Exported, ImageDirectory, export_task
from predump.runner import Hosts, run_scenario
from predump.scenario import scenario_from_mapping
from source_node.server import SourceConfig, serve_source

SLOW_S = 4.0
SCENARIO = {
    "schema": "predump.scenario/1",
    "memory": "1MiB",
    "workload": {"kind": "uniform", "rate": "2000 pages/s"},
    "policy": {"kind": "fixed", "rounds": 1},
    "patience": {"answer": "800ms", "settle": "500ms"},
    "migration": {"run_after": "10ms"},
}


async def test_images_that_take_long_to_write_do_not_part_the_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many GiB on a slow disk: the source asks, hears that it goes on, and waits."""

    def slowly(*arguments: Any, **options: Any) -> Exported:
        time.sleep(SLOW_S)
        return export_task(*arguments, **options)

    monkeypatch.setattr(dest_node.incoming, "export_task", slowly)
    loop = asyncio.get_running_loop()
    source, dest = loop.create_future(), loop.create_future()
    config = DestinationConfig(export_images=str(tmp_path / "images"))
    serving = [
        asyncio.create_task(serve_source(SourceConfig(), source.set_result)),
        asyncio.create_task(serve_destination(config, dest.set_result)),
    ]
    try:
        async with asyncio.timeout(120):
            hosts = Hosts(await source, await dest)
        result = await run_scenario(scenario_from_mapping(SCENARIO), hosts=hosts)
    finally:
        for task in serving:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    assert not result.error
    assert (result.owner, result.exit_code) == ("destination", 0)
    assert len(ImageDirectory.open(tmp_path / "images").processes) == 1
