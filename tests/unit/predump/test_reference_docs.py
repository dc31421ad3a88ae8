"""The reference pages name every key and every field that there is."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from livemigration.costs import CostSpec
from livemigration.spec import (
    AutoEncodingSpec,
    CpuSpec,
    DeltaEncodingSpec,
    DowntimeLimitPolicySpec,
    FixedPolicySpec,
    HostSpec,
    HunksSpec,
    HybridPolicySpec,
    KernelSpec,
    LinkSpec,
    PatienceSpec,
    PostCopyPolicySpec,
    RecordSpec,
    SourceSpec,
    TelemetrySpec,
    ThpSpec,
    ThresholdPolicySpec,
    VerifySpec,
)
from predump.result import (
    DeltaCache,
    Downtime,
    EncodingResult,
    Mismatch,
    PageMap,
    PageRange,
    PostCopy,
    ProcessPages,
    Result,
    RoundResult,
)
from predump.scenario import SCENARIO_KEYS, MigrationSection

ROOT = Path(__file__).parents[3]
SCENARIOS = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")

TABLES: dict[str, type[BaseModel]] = {
    "cpu": CpuSpec,
    "kernel": KernelSpec,
    "hunks": HunksSpec,
    "thp": ThpSpec,
    "host": HostSpec,
    "source": SourceSpec,
    "link": LinkSpec,
    "patience": PatienceSpec,
    "verify": VerifySpec,
    "migration": MigrationSection,
    "record": RecordSpec,
    "telemetry": TelemetrySpec,
    "costs": CostSpec,
}


@pytest.mark.parametrize("key", SCENARIO_KEYS)
def test_every_key_at_the_top_of_a_scenario_is_explained(key: str) -> None:
    assert f"`{key}`" in SCENARIOS or f"`[{key}]`" in SCENARIOS


@pytest.mark.parametrize(
    "key", [f"{table}.{key}" for table, model in TABLES.items() for key in model.model_fields]
)
def test_every_key_of_a_table_is_explained(key: str) -> None:
    assert f"`{key}`" in SCENARIOS


@pytest.mark.parametrize(
    "model",
    [FixedPolicySpec, ThresholdPolicySpec, DowntimeLimitPolicySpec, PostCopyPolicySpec],
)
def test_every_policy_is_explained_with_its_defaults(model: type[BaseModel]) -> None:
    row = next(
        line
        for line in SCENARIOS.splitlines()
        if line.startswith(f'| `"{model.model_fields["kind"].default}"`')
    )
    for key, field in model.model_fields.items():
        if key != "kind":
            shown = f'"{field.default}"' if isinstance(field.default, str) else field.default
            assert f"`{key}` = {shown}" in row


def test_the_hybrid_policy_adds_to_what_post_copy_has() -> None:
    row = next(line for line in SCENARIOS.splitlines() if line.startswith('| `"hybrid"`'))
    for key in HybridPolicySpec.model_fields.keys() - PostCopyPolicySpec.model_fields.keys():
        shown = HybridPolicySpec.model_fields[key].default
        assert f"`{key}` = {shown!r}".replace("'", '"') in row


@pytest.mark.parametrize(
    "model",
    [
        *(Result, RoundResult, Downtime, Mismatch, EncodingResult, DeltaCache),
        *(PageMap, ProcessPages, PostCopy, PageRange),
    ],
)
def test_every_field_of_a_result_is_explained(model: type[BaseModel]) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]
    assert [name for name in names if f"`{name}`" not in RESULTS] == []


@pytest.mark.parametrize("model", [DeltaEncodingSpec, AutoEncodingSpec])
def test_every_key_of_an_encoding_is_explained(model: type[BaseModel]) -> None:
    kind = model.model_fields["kind"].default
    row = next(line for line in SCENARIOS.splitlines() if line.startswith(f'| `"{kind}"` |'))
    assert [
        key for key in model.model_fields if key != "kind" and f"encoding.{key}" not in row
    ] == []


def test_every_ready_scenario_is_in_the_list() -> None:
    files = {path.name for path in (ROOT / "scenarios").glob("*.toml")}
    assert {name for name in files if f"| `{name}` |" not in SCENARIOS} == set()
