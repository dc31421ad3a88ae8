"""The judge notices: a recording changed in one place no longer meets the model, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from predump.conform.judge import Difference
from predump.conform.report import difference_lines
from predump.conform.trace import DESCRIPTOR_FIELDS, PAGE_FIELDS, RegionState, Scenario, VmaRecord

from .catalogue import Recording, load
from .recordings import WHOLE
from .test_traces import verdict

DESCRIPTORS = "arm64-6.12.117-softdirty-rfc-descriptors.jsonl.gz"
RECORDING: Recording = next(recording for recording in WHOLE if recording.file == DESCRIPTORS)


@pytest.fixture
def scenario() -> Scenario:
    return load(DESCRIPTORS)["h08-pageout-dirty-swapin-read"]


def with_region(scenario: Scenario, snap: int, region: RegionState) -> Scenario:
    changed = replace(scenario.snaps[snap], regions={0: region})
    return replace(scenario, snaps=(*scenario.snaps[:snap], changed, *scenario.snaps[snap + 1 :]))


def flipped(bits: str, page: int) -> str:
    return bits[:page] + ("1" if bits[page] == "0" else "0") + bits[page + 1 :]


def differences(scenario: Scenario) -> list[Difference]:
    return verdict(RECORDING, scenario).differences


def test_unchanged_recording_is_met(scenario: Scenario) -> None:
    found = verdict(RECORDING, scenario)
    assert found.agrees
    assert found.steps == len(scenario.ops)
    assert found.pages_compared == 8 * len(scenario.snaps)


@pytest.mark.parametrize("field", PAGE_FIELDS + DESCRIPTOR_FIELDS)
@pytest.mark.parametrize("page", [0, 7])
@pytest.mark.parametrize("snap", [0, 3])
def test_one_flipped_bit_is_found(scenario: Scenario, field: str, page: int, snap: int) -> None:
    region = scenario.snaps[snap].regions[0]
    bit = region.fields[field][page]
    fields = region.fields | {field: flipped(region.fields[field], page)}
    (found,) = differences(with_region(scenario, snap, replace(region, fields=fields)))
    assert (found.step, found.what, found.pages) == (
        scenario.snaps[snap].after,
        "pages",
        (page,) * 2,
    )
    assert found.found == f"{field}={bit}"
    assert found.expected == f"{field}={1 - int(bit)}"


def test_pages_that_differ_in_the_same_way_are_one_difference(scenario: Scenario) -> None:
    region = scenario.snaps[0].regions[0]
    bits = region.fields["file"]
    fields = region.fields | {"file": flipped(flipped(flipped(bits, 2), 3), 6)}
    found = differences(with_region(scenario, 0, replace(region, fields=fields)))
    assert [difference.pages for difference in found] == [(2, 3), (6, 6)]


def test_difference_that_stays_is_reported_once(scenario: Scenario) -> None:
    changed = scenario
    for snap, recorded in enumerate(scenario.snaps):
        region = recorded.regions[0]
        fields = region.fields | {"uffd_wp": flipped(region.fields["uffd_wp"], 1)}
        changed = with_region(changed, snap, replace(region, fields=fields))
    (found,) = differences(changed)
    assert (found.step, found.expected) == (scenario.snaps[0].after, "uffd_wp=1")


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
    (found,) = differences(with_region(scenario, 0, region))
    assert (found.what, found.found) == ("vmas", "0-8 rw-p")


def test_other_result_is_found(scenario: Scenario) -> None:
    first, *others = scenario.ops
    (found,) = differences(replace(scenario, ops=(first, replace(others[0], rc=11), *others[1:])))
    assert (found.step, found.what) == (1, "result")
    assert (found.expected, found.found) == ("rc 11", "rc 0")


def test_hang_that_the_model_does_not_have_is_found(scenario: Scenario) -> None:
    cut = replace(scenario, ops=scenario.ops[:3], snaps=(), killed=True)
    (found,) = differences(cut)
    assert (found.step, found.what, found.expected) == (3, "end", "never ends")
    assert found.operation == scenario.ops[3].script()


def test_a_difference_is_told_with_the_entry_and_the_mapping_behind_it(scenario: Scenario) -> None:
    snap = scenario.snaps[0]
    region = snap.regions[0]
    fields = region.fields | {"soft_dirty": flipped(region.fields["soft_dirty"], 0)}
    (found,) = differences(with_region(scenario, 0, replace(region, fields=fields)))
    assert difference_lines(found) == [
        "h08-pageout-dirty-swapin-read, step 4 (pageout 0 0 8), region 0 page 0",
        "    kernel soft_dirty=0",
        "    model  soft_dirty=1",
        "    entry  0x0000000000001014 swap slot 1 EXCLUSIVE SOFT_DIRTY; mapping rw-p",
    ]
