"""``predump.result/1``: its fields, its exit status, and the schema file that describes it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from predump.result import RESULT_SCHEMA, Result, result_schema_text
from tests.unit.predump.make_result import MISMATCH, lossy_result, result_of

SCHEMA_FILE = Path(__file__).parents[3] / "docs" / "schema" / "result-1.json"

# The contract with whoever reads results: these names stay.
PROMISED = {
    *("schema", "migration_id", "clock", "seed", "page_size", "memory_bytes", "policy"),
    *("verified", "continued_equal", "rounds", "downtime_s", "total_time_s", "bytes_wire"),
    *("pages_lost", "pages_spurious", "mismatches", "hunks_off", "wall_s", "versions"),
    *("encoding", "encodings", "encode_s", "delta_cache"),
}
PROMISED_OF_A_ROUND = {
    *("round", "pages_sent", "pages_soft_dirty", "pages_written", "pages_zero", "bytes_wire"),
    *("duration_s", "reason", "encodings", "encode_s", "delta_cache"),
}
PARTS_OF_DOWNTIME = {"total", "freeze", "scan", "dump", "transfer", "restore", "resume"}


def test_every_promised_field_is_there() -> None:
    data = json.loads(lossy_result().to_json())
    assert data["schema"] == RESULT_SCHEMA == "predump.result/1"
    assert set(data) >= PROMISED
    assert set(data["rounds"][0]) >= PROMISED_OF_A_ROUND
    assert set(data["downtime_s"]) == PARTS_OF_DOWNTIME
    assert set(data["mismatches"][0]) == {"pid", "start", "pages", "last_round"}


@pytest.mark.parametrize("result", [result_of(), lossy_result()])
def test_a_result_is_read_back_as_it_was_written(result: Result) -> None:
    assert Result.from_json(result.to_json()) == result
    assert Result.from_json(result.to_json(indent=None).encode()) == result


def test_addresses_are_strings_because_json_numbers_are_doubles() -> None:
    high = 0xFFFF_FFFF_FFFF_F000
    result = lossy_result(mismatches=({**MISMATCH, "start": f"{high:#x}"},))
    start = json.loads(result.to_json())["mismatches"][0]["start"]
    assert int(start, 16) == high


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (result_of(), 0),
        (result_of(continued_equal=None), 0),
        (result_of(continued_equal=False), 3),
        (result_of(verified=False), 3),
        (lossy_result(), 3),
        (lossy_result(mismatches=()), 3),
        (result_of(verified=False, error="the destination was lost"), 1),
        (result_of(error="the destination was lost after the commit"), 1),
    ],
)
def test_exit_status_is_0_only_if_verified_and_3_if_memory_differs(
    result: Result, status: int
) -> None:
    assert result.exit_code == status


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"schema": "predump.result/2"}, "schema: 'predump.result/2' is not allowed; allowed: "),
        ({"verified": 1}, "verified: must be true or false, not 1"),
        ({"pages_lost": -1}, "pages_lost: must be at least 0, not -1"),
        ({"surplus": 1}, "surplus: unknown key 'surplus'"),
        ({"mismatches": [{**MISMATCH, "start": 4096}]}, "mismatches.0.start: must be text"),
        (
            {"mismatches": [{**MISMATCH, "start": "4096"}]},
            "mismatches.0.start: String should match",
        ),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    data = json.loads(result_of().to_json()) | changes
    with pytest.raises(ValueError) as caught:
        Result.from_json(json.dumps(data))
    assert str(caught.value).startswith(f"not a predump.result/1 object: {line}")
    assert "\n" not in str(caught.value)


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^not a predump.result/1 object: .*JSON"):
        Result.from_json("{")


def test_results_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        result_of().verified = False  # type: ignore[misc]


@pytest.mark.parametrize("error", ["two\nlines", " two\r\n\tlines\n", "two\u2028lines"])
def test_an_error_is_one_line_whatever_it_was(error: str) -> None:
    assert result_of(error=error).error == "two lines"


def test_the_schema_file_is_the_one_made_from_the_classes() -> None:
    # `python -m predump.result > docs/schema/result-1.json` renews it.
    assert SCHEMA_FILE.read_text(encoding="utf-8") == result_schema_text()


def test_the_schema_describes_every_field_and_allows_no_other() -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    data = json.loads(lossy_result().to_json())
    assert set(schema["properties"]) == set(schema["required"]) == set(data)
    assert schema["additionalProperties"] is False
    assert [name for name, field in schema["properties"].items() if not field["description"]] == []
