"""`predump calibrate` and `predump accuracy` as a person runs them, with little memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from livemigration.costs import CostSpec
from livemigration.machine_file import load_machine
from tests.e2e.node import predump
from tests.unit.host.kernel_here import PAGE, needs


@pytest.mark.alone  # some costs are differences of times, which others that work would swamp
@needs("wp-async")
def test_a_calibrated_machine_predicts_what_this_host_then_does(tmp_path: Path) -> None:
    machine = tmp_path / "mine.toml"
    made = predump("calibrate", "--memory", "8MiB", "--repeats", "1", "-o", machine, timeout=240)
    assert made.status == 0, made.err
    assert "write_fault" in made.out
    loaded = load_machine(str(machine))
    assert loaded.name == "mine"
    assert loaded.host["page_size"] == PAGE
    # Some of the work takes time on every machine there is.
    for cost in ("write_fault", "copy_kib", "freeze", "round", "stream_kib", "resume"):
        assert loaded.cost_table()[cost] > 0
    assert loaded.cost_table().keys() <= CostSpec.model_fields.keys()

    result, table = tmp_path / "accuracy.json", tmp_path / "accuracy.md"
    ran = predump(
        *("accuracy", "--memory", "4MiB", "--rates", "500 pages/s", "--bandwidths", "100Mbit/s"),
        *("--machine", machine, "-o", result, "-o", table),
        timeout=240,
    )
    assert ran.status == 0, ran.err
    assert table.read_text() in ran.out
    found = json.loads(result.read_text())
    assert found["schema"] == "predump.accuracy/1"
    assert found["machine"]["costs"] == loaded.cost_table()
    (case,) = found["cases"]
    predicted, (measured,) = case["predicted"], case["measured"]
    assert (predicted["clock"], measured["clock"]) == ("virtual", "wall")
    assert predicted["verified"] and measured["verified"]
    pages = (4 << 20) // PAGE
    assert predicted["rounds"][0]["pages_sent"] == measured["rounds"][0]["pages_sent"] == pages
    ours, theirs = predicted["downtime_s"]["total"], measured["downtime_s"]["total"]
    assert case["downtime_error"] == pytest.approx((ours - theirs) / theirs)
    assert found["summary"]["downtime_median"] == pytest.approx(abs(case["downtime_error"]))
