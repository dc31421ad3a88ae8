"""The broker dies and comes back in the middle of a migration: nobody but telemetry notices."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from predump.overrides import parse_override
from predump.result import Result
from predump.runner import run_scenario
from predump.scenario import load_scenario
from predump.testing.broker import running_broker

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"
SLOW = (
    "clock=wall",
    "memory=16MiB",
    "link.bandwidth=80Mbit/s",
    "workload.rate='2000 pages/s'",
    "policy.kind=fixed",
    "policy.rounds=2",
    "migration.run_after=3s",
)


def _run(url: str, on_event: Any) -> Result:
    scenario = load_scenario(SCENARIO, [parse_override(s) for s in SLOW])
    return asyncio.run(run_scenario(scenario, mqtt=url, on_event=on_event))


def _retained_states(broker: Any, migration_id: str) -> dict[str, dict[str, Any]]:
    """role -> decoded retained state of this migration."""
    return {
        topic.split("/")[-2]: payload
        for topic, payload in broker.retained().items()
        if migration_id in topic and topic.endswith("/state")
    }


@pytest.mark.parametrize("persistence", [False, True])
def test_a_broker_killed_and_started_again_in_mid_run(tmp_path: Path, persistence: bool) -> None:
    with running_broker(tmp_path, persistence=persistence) as broker:
        struck = threading.Event()

        def strike(event: Any) -> None:
            if event["phase"] == "round-done" and not struck.is_set():
                struck.set()
                broker.kill()
                threading.Timer(0.7, broker.start).start()

        result = _run(broker.url, strike)
        assert struck.is_set()
        assert result.exit_code == 0
        assert result.continued_equal is True
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            states = _retained_states(broker, result.migration_id)
            if len(states) == 2 and states["source"].get("state") == "done":
                break
            time.sleep(0.2)
        assert states["source"]["state"] == "done"
        assert states["source"]["owner"] == "destination"
        assert states["source"]["verified"] is True
        assert states["dest"]["owner"] == "destination"
        assert states["source"]["round"] == result.rounds[-1].round


def test_no_broker_at_all_changes_nothing() -> None:
    scenario = load_scenario(
        SCENARIO, [parse_override(s) for s in ("memory=16MiB", "link.bandwidth=100Mbit/s")]
    )
    silent = asyncio.run(run_scenario(scenario))
    lonely = asyncio.run(run_scenario(scenario, mqtt="mqtt://127.0.0.1:1"))
    assert lonely.exit_code == 0
    assert lonely.rounds == silent.rounds
