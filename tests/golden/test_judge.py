"""The judge notices: a recording changed in one place no longer meets the model, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .catalogue import Recording
from .recordings import WHOLE
from .replay import Disagreement
from .test_traces import judge
from .trace import DESCRIPTOR_FIELDS, PAGE_FIELDS, Op, RegionState, Scenario, VmaRecord, load

DESCRIPTORS = "arm64-6.12.117-softdirty-rfc-descriptors.jsonl.gz"
RECORDING: Recording = next(recording for recording in WHOLE if recording.file == DESCRIPTORS)


@pytest.fixture
def scenario() -> Scenario:
    return load(DESCRIPTORS).scenarios["h08-pageout-dirty-swapin-read"]


def with_region(scenario: Scenario, snap: int, region: RegionState) -> Scenario:
    changed = replace(scenario.snaps[snap], regions={0: region})
    return replace(scenario, snaps=(*scenario.snaps[:snap], changed, *scenario.snaps[snap + 1 :]))


def flipped(bits: str, page: int) -> str:
    return bits[:page] + ("1" if bits[page] == "0" else "0") + bits[page + 1 :]


def only_disagreement(scenario: Scenario) -> Disagreement:
    found = judge(RECORDING, scenario).first_disagreement()
    assert found is not None
    return found


def test_unchanged_recording_is_met(scenario: Scenario) -> None:
    this = judge(RECORDING, scenario)
    assert this.first_disagreement() is None
    assert this.pages_compared == 8 * len(scenario.snaps)


@pytest.mark.parametrize("field", PAGE_FIELDS + DESCRIPTOR_FIELDS)
@pytest.mark.parametrize("page", [0, 7])
@pytest.mark.parametrize("snap", [0, 3])
def test_one_flipped_bit_is_found(scenario: Scenario, field: str, page: int, snap: int) -> None:
    region = scenario.snaps[snap].regions[0]
    fields = region.fields | {field: flipped(region.fields[field], page)}
    found = only_disagreement(with_region(scenario, snap, replace(region, fields=fields)))
    assert found.op_index == scenario.snaps[snap].after
    assert found.what == f"{field} of region 0, self"
    assert found.kernel == flipped(found.model, page)


@pytest.mark.parametrize(
    "vmas",
    [
        (),
        (VmaRecord(0, 8, "rw-p", True),),
        (VmaRecord(0, 8, "r--p", False),),
        (VmaRecord(0, 7, "rw-p", False),),
        (VmaRecord(0, 4, "rw-p", False), VmaRecord(4, 8, "rw-p", False)),
    ],
)
def test_other_vmas_are_found(scenario: Scenario, vmas: tuple[VmaRecord, ...]) -> None:
    region = replace(scenario.snaps[0].regions[0], vmas=vmas)
    assert only_disagreement(with_region(scenario, 0, region)).what == "vmas of region 0, self"


def test_other_result_is_found(scenario: Scenario) -> None:
    first, *others = scenario.ops
    found = only_disagreement(replace(scenario, ops=(first, replace(others[0], rc=11))))
    assert (found.op_index, found.kernel, found.model) == (1, "rc 11", "rc 0")


def test_hang_that_the_model_does_not_have_is_found(scenario: Scenario) -> None:
    cut = replace(scenario, ops=scenario.ops[:3], snaps=(), killed=True)
    this = judge(RECORDING, cut)
    this.ops = scenario.ops
    found = this.first_disagreement()
    assert found is not None
    assert (found.op_index, found.kernel) == (3, "never ends")


def test_disagreement_prints_the_way_to_it() -> None:
    found = Disagreement(
        "random-anon-1",
        2,
        "soft_dirty of region 0, self",
        "0110",
        "0010",
        (
            Op("map", 0, kind="anon-private", count=4).script(),
            Op("clear", 0).script(),
            Op("mprotect", 0, page=1, count=2, prot="r").script(),
        ),
    )
    assert str(found).splitlines() == [
        "random-anon-1, after operation 2: soft_dirty of region 0, self",
        "  kernel 0110",
        "  model  0010",
        "          ^",
        "  pages  1",
        "  operations so far:",
        "      0 map 0 anon-private 4",
        "      1 clear",
        "      2 mprotect 0 1 2 r",
    ]
