"""The ready scenarios: all of them load, explain themselves, and stand the settings people try."""

from pathlib import Path

import pytest

from predump.overrides import parse_override
from predump.scenario import Scenario, load_scenario

FOLDER = Path(__file__).parents[3] / "scenarios"
FILES = sorted(FOLDER.glob("*.toml"))
PROMISED = {
    *("quickstart", "idle", "hot-writer", "append-heap", "fork-cow", "swap-pressure"),
    *("real-image", "recorded", "contpte", "thp", "ksm", "files", "mremap", "hugetlb"),
}


def load(name: str, *sets: str) -> Scenario:
    """A ready scenario with overrides."""
    return load_scenario(FOLDER / f"{name}.toml", [parse_override(text) for text in sets])


def test_the_promised_scenarios_are_there() -> None:
    assert {path.stem for path in FILES} >= PROMISED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_is_named_as_its_file_and_says_what_it_shows(path: Path) -> None:
    assert load(path.stem).name == path.stem
    comment = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert len(comment) >= 3


@pytest.mark.parametrize("dbm", ["true", "false"])
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("name", [path.stem for path in FILES if path.stem != "real-image"])
def test_scenarios_stand_every_page_size(name: str, page_size: int, dbm: str) -> None:
    # Five PMD-sized pages of 512 MiB do not fit in what suits the others.
    more = ["memory=2560MiB"] if (name, page_size) == ("thp", 65536) else []
    scenario = load(name, f"page_size={page_size}", f"cpu.dbm={dbm}", *more)
    assert scenario.task.pages * page_size == scenario.task.memory
    assert scenario.task.cpu.dbm is (dbm == "true")


def test_quickstart_spells_out_the_defaults_that_it_has() -> None:
    spelled = load("quickstart")
    short = load("idle")
    assert spelled.migration.link == short.migration.link
    assert spelled.migration.verify == short.migration.verify
    assert (spelled.task.cpu, spelled.task.kernel) == (short.task.cpu, short.task.kernel)
    assert spelled.migration.clock == short.migration.clock == "virtual"


@pytest.mark.parametrize("kind", ["fixed", "threshold", "downtime-limit"])
def test_quickstart_takes_every_policy(kind: str) -> None:
    assert load("quickstart", f"policy.kind={kind}").migration.policy.kind == kind


@pytest.mark.parametrize("kind", ["uniform", "hotspot", "sequential", "idle", "append-heap"])
def test_quickstart_takes_other_workloads(kind: str) -> None:
    assert load("quickstart", f"workload.kind={kind}").task.workload.kind == kind
