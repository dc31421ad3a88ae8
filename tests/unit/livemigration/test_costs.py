"""The cost model: whole nanoseconds, every constant a setting, each refused when it is no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemigration.costs import CostSpec
from livemigration.spec import MigrationSpec
from livemigration.spec_errors import SpecError
from predump.overrides import parse_override
from predump.scenario import ScenarioError, load_scenario

FORMS = 'write a whole number of nanoseconds or a time like "100us", "300ms" or "1.5s"'
KEYS = [key for key in CostSpec.model_fields if key != "machine"]


def test_costs_add_up_in_whole_nanoseconds() -> None:
    costs = CostSpec(
        freeze=1000,
        freeze_process=10,
        scan_page=3,
        clear_page=5,
        copy_kib=7,
        restore=100,
        restore_vma=20,
        restore_kib=9,
        restore_page=2,
        round=50,
        round_page=4,
    )
    assert costs.freeze_ns(4) == 1040
    assert costs.scan_ns(1000) == 3000
    assert costs.clear_ns(1000) == 5000
    assert costs.copy_ns(4096) == 28
    assert costs.copy_ns(1000) == 6  # rounded down, never a float
    assert costs.restore_ns(3, 2048) == 100 + 60 + 18
    assert costs.restore_ns(3, 2048, pages=7) == 100 + 60 + 18 + 14
    assert costs.round_ns(0) == 50
    assert costs.round_ns(10) == 90


def test_a_gigabyte_of_pages_does_not_lose_precision() -> None:
    costs = CostSpec(copy_kib=115)
    assert costs.copy_ns(64 << 30) == 115 * (64 << 20)


def test_times_may_have_units() -> None:
    costs = MigrationSpec.from_struct({"costs": {"freeze": "1.3us", "thaw": 7, "resume": "0s"}})
    assert (costs.costs.freeze, costs.costs.thaw, costs.costs.resume) == (1300, 7, 0)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, f"true is no cost; {FORMS}"),
        (False, f"false is no cost; {FORMS}"),
        (1.5, f"1.5 is no cost; {FORMS}"),
        (float("nan"), f"nan is no cost; {FORMS}"),
        (float("inf"), f"inf is no cost; {FORMS}"),
        ("5", '\'5\' has no unit; write a time like "100us", "300ms" or "1.5s"'),
        ("soon", '\'soon\' is not understood; write a time like "100us", "300ms" or "1.5s"'),
        (-1, "must be at least 0, not -1"),
        (10**30, f"must be at most 3600000000000, not {10**30}"),
        ("2min 3s", '\'2min 3s\' is not understood; write a time like "100us", "300ms" or "1.5s"'),
        ([1], "must be a whole number, not a list"),
        ({"ns": 1}, "must be a whole number, not a table"),
    ],
)
def test_what_is_no_time_is_refused_with_its_key(key: str, value: object, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        MigrationSpec.from_struct({"costs": {key: value}})
    assert str(refused.value) == f"costs.{key}: {says}"


@pytest.mark.parametrize("value", ["true", "1.5", "2.0", "[]", '"now"'])
def test_a_scenario_file_and_its_overrides_are_refused_alike(tmp_path: Path, value: str) -> None:
    file = tmp_path / "bad.toml"
    head = 'schema = "predump.scenario/1"\nworkload = {kind = "idle"}\n'
    file.write_text(f"{head}[costs]\nfreeze = {value}\n")
    with pytest.raises(ScenarioError) as refused:
        load_scenario(file)
    assert str(refused.value).startswith(f"{file}: costs.freeze: ")
    file.write_text(head)
    with pytest.raises(ScenarioError) as refused:
        load_scenario(file, [parse_override(f"costs.freeze={value}")])
    assert str(refused.value).startswith(f"--set costs.freeze={value}: costs.freeze: ")


def test_every_cost_has_a_description() -> None:
    assert [key for key, field in CostSpec.model_fields.items() if not field.description] == []
