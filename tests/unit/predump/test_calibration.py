"""Calibration: how figures become costs, and that each figure is taken from something real."""

from __future__ import annotations

import math
import tomllib

import pytest

from livemigration.machine_file import MachineFile, Measured, read_machine
from predump.calibration.handshake import measure_handshake
from predump.calibration.loopback import measure_loopback
from predump.calibration.machine import to_toml
from predump.calibration.memory import measure_memory
from predump.calibration.nodes import NodeTimes
from predump.calibration.sample import Sample
from tests.unit.host.kernel_here import needs


def test_a_sample_is_its_median_and_quartiles_in_four_digits() -> None:
    measured = Sample("w", "ns", [5, 1, 123456, 3, 2]).measured()
    assert measured == Measured(what="w", unit="ns", median=3, low=2, high=5, repeats=5)
    one = Sample("w", "ns", [123456.7]).measured()
    assert (one.low, one.median, one.high, one.repeats) == (123500, 123500, 123500, 1)


def times(small: float, large: float) -> NodeTimes:
    """Node times of 100 and 1,100 pages."""
    samples = {100: Sample("s", "ns", [small]), 1100: Sample("l", "ns", [large])}
    one = Sample("w", "ns", [1])
    return NodeTimes(100, 1100, samples, samples, one, one, one)


def test_two_sizes_tell_what_a_page_adds_and_what_is_left_without_pages() -> None:
    found = times(small=5_000, large=25_000)
    assert found.per_page(found.rounds) == 20
    assert found.fixed(found.rounds) == 3_000


def test_noise_makes_no_cost_negative() -> None:
    found = times(small=5_000, large=4_000)
    assert found.per_page(found.rounds) == 0
    assert found.fixed(found.rounds) == 5_000
    steep = times(small=1_000, large=100_000)
    assert steep.fixed(steep.rounds) == 0


def test_a_machine_file_is_read_back_as_it_was_written() -> None:
    machine = MachineFile.model_validate(
        {
            "schema": "predump.machine/1",
            "name": 'a "quoted" \\ name',
            "description": "ümlaut\ttab",
            "host": {"cpu": "x", "cpus": 2, "load": 0.5},
            "costs": {"scan_page": 12, "resume": 0},
            "sources": {"scan_page": "measured.scan", "resume": "none"},
            "measured": {
                "scan": Measured(what="w", unit="ns", median=1.5, low=1.0, high=2.0, repeats=3)
            },
        }
    )
    text = to_toml(machine)
    assert read_machine(text, "written") == machine
    assert tomllib.loads(text)["measured"]["scan"]["median"] == 1.5


@needs("wp-async")
def test_the_kernels_work_is_measured_page_by_page() -> None:
    method, samples = measure_memory(pages=512, repeats=2)
    assert method == "wp-async"
    assert samples.keys() == {
        *("first_touch", "write_fault", "scan", "write_protect", "gather", "memcpy", "hash"),
    }
    for sample in samples.values():
        assert len(sample.values) == 2
        assert all(math.isfinite(value) for value in sample.values)
    # A fault is a way into the kernel and back; less than that was none.
    assert min(samples["write_fault"].values) > 50
    assert min(samples["memcpy"].values) > 0


@needs("wp-async")
async def test_a_thread_is_stopped_and_started_in_less_than_it_runs() -> None:
    found = await measure_handshake(3)
    assert found.keys() == {"thread_freeze", "thread_thaw"}
    for sample in found.values():
        assert len(sample.values) == 3
        assert all(value > 0 for value in sample.values)


def test_loopback_carries_every_byte() -> None:
    sample = measure_loopback(3 << 20, 2)
    assert len(sample.values) == 2
    assert all(value > 0 for value in sample.values)


@pytest.mark.parametrize("size", [1, (1 << 20) + 1])
def test_loopback_takes_any_size(size: int) -> None:
    assert measure_loopback(size, 1).median > 0
