"""Scenario files: what they give, and the one line for everything that can be wrong with one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from livemigration.spec import FixedPolicySpec, ThresholdPolicySpec
from livemigration.workload.spec import TraceSpec, UniformSpec, ZipfSpec
from predump.overrides import parse_override
from predump.scenario import ScenarioError, load_scenario, scenario_from_mapping

MINIMAL = """
schema = "predump.scenario/1"
[workload]
kind = "zipf"
"""
FULL = """
schema = "predump.scenario/1"
name = "full"
seed = 3
clock = "wall"
memory = "64MiB"
page_size = 16384
tracker = "soft-dirty"
[cpu]
dbm = false
[kernel]
profile = "6.1"
[hunks]
off = ["pte_modify"]
[workload]
kind = "zipf"
rate = "5MiB/s"
write_size = 128
theta = 0.8
[source]
populate = false
[policy]
kind = "threshold"
max_rounds = 3
goal_percent = 50
[link]
bandwidth = "10Gbit/s"
latency = "1ms"
[verify]
mode = "bytes"
[costs]
write_fault = "2us"
[migration]
run_after = "250ms"
[telemetry]
mqtt = "mqtt://broker:1883"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a scenario file and returns its path."""

    def write_file(text: str) -> Path:
        path = tmp_path / "my scenario.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def error_of(path: Path, *sets: str) -> str:
    """The line that loading ``path`` ends with, without the folder's name."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, [parse_override(argument) for argument in sets])
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


def test_a_schema_and_a_workload_are_enough(write: Write) -> None:
    scenario = load_scenario(write(MINIMAL))
    assert scenario.name == "my-scenario"
    assert isinstance(scenario.task.workload, ZipfSpec)
    assert scenario.migration.policy == ThresholdPolicySpec()
    assert scenario.telemetry.mqtt == ""


def test_every_table_reaches_its_specification(write: Write) -> None:
    scenario = load_scenario(write(FULL))
    task, migration = scenario.task, scenario.migration
    assert (scenario.name, task.seed, migration.clock) == ("full", 3, "wall")
    assert (task.memory, task.page_size, task.pages) == (64 * 2**20, 16384, 4096)
    assert (task.cpu.dbm, task.kernel.profile, task.hunks.off) == (False, "6.1", ("pte_modify",))
    assert task.workload == ZipfSpec(kind="zipf", rate="5MiB/s", write_size=128, theta=0.8)
    assert task.source.populate is False
    assert migration.policy == ThresholdPolicySpec(max_rounds=3, goal_percent=50)
    assert (migration.link.bandwidth_bps, migration.link.latency_ns) == (10**10, 10**6)
    assert migration.verify.mode == "bytes"
    assert migration.costs.write_fault == 2000
    assert migration.run_after_ns == 250_000_000
    assert scenario.telemetry.mqtt == "mqtt://broker:1883"


def test_overrides_replace_what_the_file_says(write: Write) -> None:
    sets = ["memory=128MiB", "migration.run_after=2s", "hunks.off=pte_mkdirty,pte_modify"]
    scenario = load_scenario(write(FULL), [parse_override(argument) for argument in sets])
    assert scenario.task.memory == 128 * 2**20
    assert scenario.migration.run_after_ns == 2 * 10**9
    assert scenario.task.hunks.off == ("pte_mkdirty", "pte_modify")


@pytest.mark.parametrize("profile", ["6.1", "6.12", '"6.12"', "seed"])
def test_a_number_is_taken_as_text_where_text_is_wanted(write: Write, profile: str) -> None:
    scenario = load_scenario(write(FULL), [parse_override(f"kernel.profile={profile}")])
    assert scenario.task.kernel.profile == profile.strip('"')


def test_several_numbers_are_taken_as_text(write: Write) -> None:
    sets = [parse_override("kernel.profile=6.1"), parse_override("name=42")]
    scenario = load_scenario(write(FULL), sets)
    assert (scenario.task.kernel.profile, scenario.name) == ("6.1", "42")


def test_an_error_elsewhere_is_not_blamed_on_a_number_that_became_text(write: Write) -> None:
    path = write(FULL.replace("goal_percent = 50", "goal_percent = 500"))
    assert error_of(path, "kernel.profile=6.12") == (
        "my scenario.toml: policy.goal_percent: must be at most 100, not 500"
    )


def test_another_kind_drops_the_keys_that_only_the_old_one_has(write: Write) -> None:
    sets = ["policy.rounds=2", "policy.kind=fixed", "workload.kind=uniform"]
    scenario = load_scenario(write(FULL), [parse_override(argument) for argument in sets])
    assert scenario.migration.policy == FixedPolicySpec(rounds=2)
    # theta went, rate and write_size mean the same for both and stayed
    assert scenario.task.workload == UniformSpec(kind="uniform", rate="5MiB/s", write_size=128)


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "t.msgpack").write_bytes(b"")
    text = MINIMAL.replace('kind = "zipf"', 'kind = "trace"\nfile = "t.msgpack"')
    scenario = load_scenario(write(f'{text}\n[source]\nimages = "dump"\n'))
    assert scenario.task.source.images == str(tmp_path / "dump")
    assert isinstance(scenario.task.workload, TraceSpec)
    assert scenario.task.workload.file == str(tmp_path / "t.msgpack")


def test_paths_of_another_host_are_not_looked_for(write: Write, tmp_path: Path) -> None:
    scenario = load_scenario(write(f'{MINIMAL}[source]\nimages = "elsewhere"\n'), check_paths=False)
    assert scenario.task.source.images == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            MINIMAL.replace("schema", "shcema"),
            "my scenario.toml: shcema: unknown key 'shcema'; did you mean 'schema'?",
        ),
        (
            MINIMAL.replace("scenario/1", "scenario/2"),
            "my scenario.toml: schema: 'predump.scenario/2' is not known here; "
            'write schema = "predump.scenario/1"',
        ),
        (
            '[workload]\nkind = "idle"\n',
            'my scenario.toml: schema: missing; write schema = "predump.scenario/1"',
        ),
        (
            'schema = "predump.scenario/1"\n',
            "my scenario.toml: workload: missing; this key must be given",
        ),
        (
            f"{MINIMAL}rat = 3\n",
            "my scenario.toml: workload.rat: unknown key 'rat'; did you mean 'rate'?",
        ),
        (
            f"{MINIMAL}[polic]\nkind = 'fixed'\n",
            "my scenario.toml: polic: unknown key 'polic'; did you mean 'policy'?",
        ),
        (
            f"run_after = '1s'\n{MINIMAL}",
            "my scenario.toml: run_after: unknown key 'run_after'; known: clock, costs, cpu, "
            "encoding, host, hunks, kernel, link, memory, migration, name, page_size, patience, "
            "policy, record, schema, seed, shared_memory, source, telemetry, thp, tracker, verify, "
            "workload",
        ),
        (
            f"{MINIMAL}[migration]\nrunafter = '1s'\n",
            "my scenario.toml: migration.runafter: unknown key 'runafter'; "
            "did you mean 'run_after'?",
        ),
        (
            f"memory = 'lots'\n{MINIMAL}",
            "my scenario.toml: memory: 'lots' is not understood; "
            'write a size like "64KiB", "256MiB" or "2GiB"',
        ),
        (
            f"memory = '1000000GiB'\n{MINIMAL}",
            "my scenario.toml: memory: 1000000GiB is more than a task can have; "
            "write at most 64GiB",
        ),
        (
            f"page_size = 4095\n{MINIMAL}",
            "my scenario.toml: page_size: 4095 is not allowed; allowed: 4096, 16384 or 65536",
        ),
        (
            f"seed = 1979-05-27\n{MINIMAL}",
            "my scenario.toml: seed: must be a whole number, not datetime.date(1979, 5, 27)",
        ),
        (
            f"name = '../x'\n{MINIMAL}",
            "my scenario.toml: name: '../x' is not a name; "
            "allowed: letters, digits, '.', '_' and '-', at most 64",
        ),
        (
            f"workload = 3\n{MINIMAL.replace('[workload]', '[cpu]').replace('kind', 'dbm')}",
            "my scenario.toml: cpu.dbm: must be true or false, not 'zipf'",
        ),
        (
            f"{MINIMAL}[telemetry]\nmqtt = 'broker'\n",
            "my scenario.toml: telemetry.mqtt: broker URL 'broker' does not start with mqtt://; "
            "write mqtt://[user:password@]host[:port][/prefix], or mqtts:// for TLS",
        ),
        (
            f"{MINIMAL}[hunks]\noff = ['pte_modfy']\n",
            "my scenario.toml: hunks.off: unknown hunk 'pte_modfy'; did you mean 'pte_modify'?",
        ),
        (
            f"{MINIMAL}[source]\nimages = 'dump'\n",
            "my scenario.toml: source.images: dump: there is no such directory; "
            "name a directory of CRIU images",
        ),
        (
            f"{MINIMAL}[source]\nimages = 'my scenario.toml'\n",
            "my scenario.toml: source.images: my scenario.toml: is not a directory; "
            "name a directory of CRIU images",
        ),
        (
            MINIMAL.replace('kind = "zipf"', 'kind = "trace"\nfile = "t"'),
            "my scenario.toml: workload.file: t: there is no such file; "
            "`predump workload record` writes trace files",
        ),
        (
            "schema = \n",
            "my scenario.toml: is not valid TOML: Invalid value (at line 1, column 10)",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(write: Write, text: str, line: str) -> None:
    assert error_of(write(text)) == line


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "memroy=1MiB",
            "--set memroy=1MiB: memroy: unknown key 'memroy'; did you mean 'memory'?",
        ),
        (
            "link.bandwith=1Gbit/s",
            "--set link.bandwith=1Gbit/s: link.bandwith: unknown key 'bandwith'; "
            "did you mean 'bandwidth'?",
        ),
        ("foo.bar=1", "--set foo.bar=1: foo: unknown key 'foo'; known: "),
        ("seed=1.5", "--set seed=1.5: seed: must be a whole number, not 1.5"),
        ("seed=", "--set seed=: seed: must be a whole number, not ''"),
        (
            "kernel.profile=6.13",
            "--set kernel.profile=6.13: kernel.profile: 6.13 is not allowed; "
            "allowed: '6.1', '6.12' or 'seed'",
        ),
        (
            "policy.kind=fixd",
            "--set policy.kind=fixd: policy: unknown kind 'fixd'; did you mean 'fixed'?",
        ),
        ("cpu=3", "--set cpu=3: cpu: must be a table, not 3"),
        ("seed.x=3", "--set seed.x: seed is not a table"),
        (
            "page_size=65536",
            "my scenario.toml: workload.write_szie: unknown key 'write_szie'; "
            "did you mean 'write_size'?",
        ),
    ],
)
def test_what_is_wrong_with_an_override_names_the_override(
    write: Write, argument: str, line: str
) -> None:
    text = FULL.replace("write_size", "write_szie") if argument.startswith("page_size") else FULL
    got = error_of(write(text), argument)
    assert got.startswith(line) if line.endswith("known: ") else got == line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.toml") == "none.toml: there is no such file"


def test_a_directory_is_not_a_scenario(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    line = error_of(tmp_path / "folder")
    assert line == "folder: is a directory; name a scenario file in it"


def test_a_path_through_a_file_is_refused(write: Write) -> None:
    line = error_of(write(MINIMAL) / "deeper.toml")
    assert line.endswith("cannot be read: Not a directory")


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b'name = "\xff"')
    assert error_of(path) == "binary.toml: is not UTF-8 text (byte 8)"


def test_tables_without_a_file_are_a_scenario_too() -> None:
    data = {"schema": "predump.scenario/1", "workload": {"kind": "idle"}}
    assert scenario_from_mapping(data, default_name="mine").name == "mine"
    with pytest.raises(ScenarioError, match=r"^scenario: seed: must be a whole number"):
        scenario_from_mapping({**data, "seed": "x"})
