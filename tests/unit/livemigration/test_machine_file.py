"""Machine files: costs with their sources, ready ones by name, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemigration.costs import CostSpec
from livemigration.machine_file import MachineError, load_machine, read_machine, ready_machines
from livemigration.spec import MigrationSpec
from livemigration.spec_errors import SpecError
from predump.overrides import parse_override
from predump.scenario import Scenario, ScenarioError, load_scenario

HEAD = 'schema = "predump.machine/1"\nname = "mine"\n'
GOOD = f'{HEAD}[costs]\nscan_page = 12\nfreeze = "2ms"\n[sources]\nscan_page = "a"\nfreeze = "b"\n'
SCENARIO = 'schema = "predump.scenario/1"\nworkload = {kind = "idle"}\n'


def scenario(folder: Path, costs: str, *sets: str) -> Scenario:
    file = folder / "scenario.toml"
    file.write_text(f"{SCENARIO}[costs]\n{costs}\n")
    return load_scenario(file, [parse_override(s) for s in sets])


def test_the_ready_machines_can_all_be_read_and_every_cost_has_a_source() -> None:
    names = list(ready_machines())
    assert {"anchors-x86-64", "kvm", "cloud-hypervisor"} <= set(names)
    for name in names:
        machine = load_machine(name)
        assert machine.name == name
        assert machine.description
        assert machine.cost_table().keys() == machine.sources.keys() != set()


def test_the_defaults_are_a_ready_machine_too() -> None:
    costs = load_machine("anchors-x86-64").costs
    assert costs == CostSpec()
    without = {key for key, field in CostSpec.model_fields.items() if not field.default}
    assert CostSpec.model_fields.keys() - without - costs.model_fields_set == set()


def test_costs_may_be_left_out_and_have_units() -> None:
    machine = read_machine(GOOD, "mine.toml")
    assert machine.cost_table() == {"scan_page": 12, "freeze": 2_000_000}
    assert machine.costs.thaw == CostSpec().thaw


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "schema: missing"),
        ('schema = "predump.machine/2"\nname = "x"\n', "schema: 'predump.machine/2'"),
        (HEAD + "[cots]\n", "cots: unknown key 'cots'; did you mean 'costs'?"),
        (HEAD + "[costs]\nscan_pge = 1\n", "costs.scan_pge: unknown key 'scan_pge'; did you mean"),
        (HEAD + "[costs]\nfreeze = -1\n", "costs.freeze: must be at least 0, not -1"),
        (HEAD + "[costs]\nfreeze = 1.5\n", "costs.freeze: 1.5 is no cost; write a whole number"),
        (
            HEAD + "[costs]\nfreeze = 1\n",
            "costs.freeze: has no source; say in [sources] where it comes from",
        ),
        (HEAD + '[sources]\nthaw = "a"\n', "sources.thaw: there is no such cost in [costs]"),
        (
            HEAD + '[measured.scan]\nwhat = "w"\nunit = "ns"\nmedian = 1.0\nlow = 1.0\n',
            "measured.scan.high: missing",
        ),
        ("name = nobody\n", "is not valid TOML: "),
    ],
)
def test_what_is_wrong_with_a_machine_file_is_said_in_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(MachineError) as refused:
        load_machine("bad.toml", tmp_path)
    line = str(refused.value)
    assert line.startswith(f"{file}: {says}")
    assert "\n" not in line
    with pytest.raises(ScenarioError) as refused_too:
        scenario(tmp_path, 'machine = "bad.toml"')
    assert str(refused_too.value) == f"{tmp_path}/scenario.toml: costs.machine: {line}"


def test_a_machine_that_is_not_there(tmp_path: Path) -> None:
    for name, says in (
        ("kvn", "unknown machine 'kvn'; did you mean 'kvm'? (a file's name ends with .toml)"),
        ("none.toml", f"{tmp_path}/none.toml: there is no such file; `predump calibrate -o FILE`"),
        ("./mine", f"{tmp_path}/mine: there is no such file"),
        (".", "unknown machine '.'; known: anchors-x86-64, cloud-hypervisor, kvm"),
    ):
        with pytest.raises(MachineError) as refused:
            load_machine(name, tmp_path)
        assert str(refused.value).startswith(says)
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(MachineError, match=r"folder.toml: cannot be read: Is a directory"):
        load_machine("folder.toml", tmp_path)
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    with pytest.raises(MachineError, match=r"is not UTF-8 text \(byte 128\)"):
        load_machine("binary.toml", tmp_path)


def test_a_scenario_takes_what_it_does_not_say_itself_from_the_machine(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    costs = scenario(tmp_path, 'machine = "mine.toml"\nfreeze = "3ms"').migration.costs
    assert (costs.machine, costs.scan_page, costs.freeze) == ("mine.toml", 12, 3_000_000)
    assert costs.thaw == CostSpec().thaw
    kvm = scenario(tmp_path, "", "costs.machine=kvm", "costs.resume=5ms").migration.costs
    assert (kvm.write_fault, kvm.restore_kib, kvm.resume) == (260, 29, 5_000_000)
    with pytest.raises(ScenarioError, match=r"--set costs.machine=nobody: costs.machine: unknown"):
        scenario(tmp_path, "", "costs.machine=nobody")
    with pytest.raises(ScenarioError, match=r"costs.machine: must be text in quotes, not 5"):
        scenario(tmp_path, "machine = 5")


def test_a_host_gets_every_cost_and_never_the_machines_name_alone(tmp_path: Path) -> None:
    migration = scenario(tmp_path, 'machine = "kvm"').migration
    assert MigrationSpec.from_struct(migration.to_struct()) == migration
    with pytest.raises(SpecError) as refused:
        MigrationSpec.from_struct({"costs": {"machine": "kvm"}})
    assert str(refused.value) == (
        "costs: machine: 'kvm' is read with the scenario file that names it; here every cost must "
        "be given, and write_fault is not"
    )


def test_a_machine_file_names_no_other() -> None:
    table = {**CostSpec().model_dump(), "machine": "kvm"}
    costs = "\n".join(f"{key} = {value!r}" for key, value in table.items())
    with pytest.raises(MachineError, match=r"costs.machine: a machine file cannot name another"):
        read_machine(f"{HEAD}[costs]\n{costs}\n", "mine.toml")
