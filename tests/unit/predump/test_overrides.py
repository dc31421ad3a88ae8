"""``--set KEY=VALUE``: what the value becomes, and where it is put."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predump.overrides import OverrideError, apply_overrides, parse_override


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed=7", 7),
        ("seed = 7", 7),
        ("cpu.dbm=false", False),
        ("workload.theta=0.5", 0.5),
        ("memory=64MiB", "64MiB"),
        ('name="a b"', "a b"),
        ("link.bandwidth=10 Gbit/s", "10 Gbit/s"),
        ("hunks.off=pte_modify", "pte_modify"),
        ('hunks.off=["pte_modify", "pte_mkdirty"]', ["pte_modify", "pte_mkdirty"]),
        ("source.images=", ""),
        ("telemetry.mqtt=mqtt://b:1883/a=b", "mqtt://b:1883/a=b"),
        ("name=1\nseed = 2", "1\nseed = 2"),
        ("kernel.profile=6.12", 6.12),
    ],
)
def test_a_value_is_toml_or_else_the_text_itself(argument: str, value: Any) -> None:
    assert parse_override(argument).value == value


@pytest.mark.parametrize("argument", ["seed", "=1", "a..b=1", ".a=1", "a b=1", "", "a.=1"])
def test_what_is_not_key_equals_value_is_refused(argument: str) -> None:
    with pytest.raises(OverrideError, match="not KEY=VALUE; write for example --set link"):
        parse_override(argument)


def test_overrides_make_the_tables_they_need_and_leave_the_rest() -> None:
    data = {"seed": 1, "link": {"latency": "1ms"}}
    changed = apply_overrides(
        data, [parse_override("link.bandwidth=1Mbit/s"), parse_override("cpu.dbm=false")]
    )
    assert changed == {
        "seed": 1,
        "link": {"latency": "1ms", "bandwidth": "1Mbit/s"},
        "cpu": {"dbm": False},
    }
    assert data == {"seed": 1, "link": {"latency": "1ms"}}


def test_the_last_override_of_a_key_counts() -> None:
    assert apply_overrides({}, [parse_override("seed=1"), parse_override("seed=2")]) == {"seed": 2}


def test_a_key_cannot_go_through_a_value() -> None:
    with pytest.raises(OverrideError, match=r"^--set seed\.x: seed is not a table$"):
        apply_overrides({"seed": 1}, [parse_override("seed.x=1")])


@pytest.mark.parametrize(
    ("key", "covered"),
    [
        ("policy.kind", True),
        ("policy", True),
        ("policy.kind.x", True),
        ("policy.kin", False),
        ("seed", False),
        ("", False),
    ],
)
def test_an_override_covers_its_key_and_what_lies_above_and_under_it(
    key: str, covered: bool
) -> None:
    assert parse_override("policy.kind=fixed").covers(key) is covered


@given(st.one_of(st.integers(-(2**62), 2**62), st.booleans(), st.floats(allow_nan=False)))
def test_toml_values_are_read_as_toml_reads_them(value: int | bool | float) -> None:
    text = str(value).lower()
    assert parse_override(f"key={text}").value == tomllib.loads(f"v = {text}")["v"] == value


@given(st.text(max_size=60))
def test_any_value_is_taken(text: str) -> None:
    override = parse_override(f"key={text}")
    assert override.text == text.strip()
    assert override.as_text().value == text.strip()
