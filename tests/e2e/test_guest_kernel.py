"""A real kernel: Debian's stock amd64 one, booted in QEMU, records and is fuzzed.

It has soft-dirty tracking for x86-64, whose mm is the generic code that the model follows. The
kernel comes out of its package (scripts/guest-kernel.sh). One guest serves all tests that can share
one; it runs on KVM where that works, else emulated.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mm_model import ModelConfig
from predump.cli import app
from predump.conform.boot import GuestConfig
from predump.conform.check import check_file
from predump.conform.fuzz import fuzz
from predump.conform.guest import Guest
from predump.conform.initramfs import GuestError
from predump.conform.operations import Vocabulary, script
from predump.conform.record import random_requests, record, usable_on
from predump.conform.trace import read_trace

pytestmark = pytest.mark.guest

ROOT = Path(__file__).parents[2]
SCRIPT = """
name tracked
map 0 anon-private 4
snap
write 0 0 2
clear
snap
write 0 1 1
read 0 3 1
snap
pageout 0 0 2
snap
mprotect 0 2 1 none
read 0 2 1
snap
name family
map 0 anon-private 2
write 0 0 2
clear
fork
cwrite 0 1 1
snap
csnap
"""


@pytest.fixture(scope="module")
def kernel() -> Path:
    ran = subprocess.run(
        [str(ROOT / "scripts" / "guest-kernel.sh")], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(ran.stdout.strip())


@pytest.fixture(scope="module")
def guest(kernel: Path) -> Iterator[Guest]:
    with Guest(GuestConfig(kernel, hang_seconds=30)) as booted:
        yield booted


def conform(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["conform", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_probe_finds_a_machine_with_swap(guest: Guest) -> None:
    assert guest.info is not None
    assert (guest.info.arch, guest.info.page_size, guest.info.swap) == ("x86_64", 4096, True)
    assert guest.info.kernel.endswith("-amd64")


def test_recorded_script_says_what_the_kernel_showed(
    guest: Guest, kernel: Path, tmp_path: Path
) -> None:
    """The whole command, with a boot of its own; then the model against what it wrote."""
    source, trace = tmp_path / "mine.txt", tmp_path / "mine.jsonl.gz"
    source.write_text(SCRIPT)
    asked = ["--script", source, "--random", 0, "-o", trace, "--accel", guest.accelerator]
    code, out, _ = conform("record", "--kernel", kernel, *asked)
    assert code == 0
    assert out.startswith(f"{trace}: 2 scenarios recorded on x86_64 ")
    tracked, family = read_trace(trace).values()
    states = [snap.regions[0].fields for snap in tracked.snaps]
    assert [(s["present"], s["swap"], s["soft_dirty"]) for s in states[:4]] == [
        ("0000", "0000", "1111"),
        ("1100", "0000", "0000"),
        ("1101", "0000", "0100"),
        ("0001", "1100", "0100"),
    ]
    assert tracked.ops[-1].rc == 11
    assert [vma.perms for vma in tracked.snaps[-1].regions[0].vmas] == ["rw-p", "---p", "rw-p"]
    assert [(snap.who, snap.regions[0].fields["soft_dirty"]) for snap in family.snaps] == [
        ("self", "00"),
        ("child", "01"),
    ]
    code, out, _ = conform(trace)
    assert code == 0
    assert "2 scenarios, 13 steps, 24 pages compared, 0 differences" in out


def test_model_meets_random_operations_of_the_kernel(guest: Guest, tmp_path: Path) -> None:
    assert guest.info is not None
    model = Vocabulary.of(ModelConfig(frames=4096, swap_slots=4096))
    vocabulary = usable_on(guest.info, model)
    trace = tmp_path / "random.jsonl"
    assert record(guest, random_requests(100, 12, vocabulary), trace) == 12
    report = check_file(trace, {})
    assert report.scenarios == 12
    assert report.steps > 120
    assert report.differences == []
    assert report.not_modelled == {}


def test_everything_that_the_language_has_can_be_recorded(guest: Guest, tmp_path: Path) -> None:
    trace = tmp_path / "everything.jsonl"
    record(guest, random_requests(0, 15, Vocabulary.everything()), trace)
    recorded = read_trace(trace)
    assert len(recorded) == 15
    assert not any(scenario.killed for scenario in recorded.values())
    (huge,) = [each for name, each in recorded.items() if name.startswith("random-thp-fork")]
    assert [(op.verb, op.rc) for op in huge.ops[:2]] == [("map", 0), ("hugepage", 0)]
    assert {vma.perms for snap in huge.snaps[:1] for vma in snap.regions[0].vmas} == {"rw-p"}


def test_fuzzing_agrees_with_the_kernel(guest: Guest) -> None:
    report = fuzz(guest, {}, seed=7000, limit=40)
    assert report.sequences == 40
    assert report.differences == []
    assert sum(report.operations.values()) > 400
    assert report.operations["clear"] > report.failed["clear"] == 0


def test_fuzzing_finds_a_model_that_is_wrong_and_shrinks_what_shows_it(guest: Guest) -> None:
    wrong: dict[str, Any] = {"hunks_off": frozenset({"pte_swp_mksoft_dirty"})}
    if "arch" in {field.name for field in fields(ModelConfig)}:
        wrong["arch"] = "arm64"  # only that one has hunks to take away
    report = fuzz(guest, wrong, seed=1, limit=60)
    assert report.found_in
    assert len(report.script) <= 4
    assert script(report.script)[-1].startswith("pageout 0 ")
    first = report.differences[0]
    assert "soft_dirty=1" in first.expected
    assert "soft_dirty=0" in first.found
    assert report.record["ops"][-1]["op"] == "pageout"


def test_scenario_that_takes_too_long_is_ended_and_says_in_what(guest: Guest) -> None:
    lines = ["map 0 anon-private 200000", *["memread 0 0 200000"] * 60]
    killed = guest.run("slow", lines, hang_seconds=1)
    assert killed["killed"] == 14
    assert killed["hung"]["op"] == "memread"
    assert killed["ops"][0]["rc"] == 0
    after = guest.run("next", ["map 0 anon-private 1", "snap"])
    assert after["snaps"][0]["regions"]["0"]["soft_dirty"] == "1"


def test_image_that_does_not_boot_is_one_line(tmp_path: Path, guest: Guest) -> None:
    image = tmp_path / "vmlinuz"
    image.write_text("no kernel\n")
    guest_config = GuestConfig(image, accelerator="tcg", boot_seconds=60)
    with pytest.raises(GuestError) as refused, Guest(guest_config):
        raise AssertionError("it booted")
    assert str(refused.value).startswith(("the guest is gone: ", "the guest does not answer: "))
    assert "\n" not in str(refused.value)
