"""Scenario files: TOML, ``schema = "predump.scenario/1"``, checked strictly.

`load_scenario` reads a file and puts ``--set`` overrides in; `scenario_from_mapping` does the same
for a program that has the tables already. What is wrong is a `ScenarioError`: one line
``FILE: key: what is wrong, what is allowed``. docs/scenarios.md lists every key.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from livemigration.machine_file import MachineError, load_machine
from livemigration.spec import (
    MigrationSpec,
    Spec,
    TaskSpec,
    TelemetrySpec,
    Time,
    UserPolicySpec,
)
from livemigration.spec_errors import Problem, explain, kinds, members, unknown_name
from livemigration.user_policy import PolicyError, find_module, load_policy, module_name
from livemigration.workload.spec import TraceSpec
from predump.overrides import Override, OverrideError, apply_overrides
from predump.toml_file import read_toml

SCENARIO_SCHEMA = "predump.scenario/1"
Model = TypeVar("Model", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class MigrationSection(Spec):
    """Table ``[migration]``: what belongs to the whole of it."""

    run_after: Time = MigrationSpec.model_fields["run_after"].default


_TASK_KEYS = tuple(TaskSpec.model_fields)
_MIGRATION_KEYS = tuple(key for key in MigrationSpec.model_fields if key != "run_after")
SCENARIO_KEYS = ("schema", "name", *_TASK_KEYS, *_MIGRATION_KEYS, "migration", "telemetry")
"""The keys at the top of a scenario file."""


class ScenarioError(ValueError):
    """A scenario that cannot be used; ``str()`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One migration to run: what `run_scenario` takes. Paths in it are absolute.

    `policies`: where the policy's class is if it is the user's own (a folder, or the name of an
    installed module; `livemigration.user_policy`), else empty.
    """

    name: str
    task: TaskSpec
    migration: MigrationSpec
    telemetry: TelemetrySpec
    policies: tuple[str, ...] = ()


def load_scenario(
    path: str | Path, overrides: Iterable[Override] = (), *, check_paths: bool = True
) -> Scenario:
    """Read the scenario file ``path`` with ``overrides`` put in.

    Relative paths in it are relative to the file. ``check_paths`` false does not look whether they
    exist: on the source host they may, though not here. Raises ScenarioError.
    """
    path = Path(path)
    data = read_toml(path, ScenarioError)
    return scenario_from_mapping(
        data,
        overrides,
        origin=str(path),
        base_dir=path.resolve().parent,
        default_name=_name_from(path.stem),
        check_paths=check_paths,
    )


def scenario_from_mapping(
    data: Mapping[str, Any],
    overrides: Iterable[Override] = (),
    *,
    origin: str = "scenario",
    base_dir: Path | None = None,
    default_name: str = "scenario",
    check_paths: bool = True,
) -> Scenario:
    """The scenario whose tables are ``data``; ``origin`` is what error lines call it.

    Relative paths are taken from ``base_dir`` (default: the working directory). Raises
    ScenarioError.
    """
    # Overrides of a kind come first: they decide which keys of the file still mean anything.
    given = sorted(overrides, key=lambda override: override.path[-1] != "kind")
    data = _drop_keys_of_other_kinds(data, given)
    try:
        problem, scenario = _build_with(data, given, default_name, base_dir or Path.cwd())
    except OverrideError as error:
        raise ScenarioError(str(error)) from error
    if scenario is None:
        assert problem is not None
        raise ScenarioError(_line(problem, origin, given))
    scenario, problem = _with_absolute_paths(scenario, base_dir or Path.cwd(), check_paths)
    if problem is None:
        scenario, problem = _with_policy(scenario, base_dir or Path.cwd(), check_paths)
    if problem is not None:
        raise ScenarioError(_line(problem, origin, given))
    return scenario


def _build_with(
    data: Mapping[str, Any], overrides: Sequence[Override], default_name: str, base_dir: Path
) -> tuple[Problem | None, Scenario | None]:
    """`_build` with overrides put in.

    TOML reads ``kernel.profile=6.12`` as a number where text is meant, so an override that is
    refused as it is gets a second try as text.
    """
    tried = list(overrides)
    problem, scenario = _build(apply_overrides(data, tried), default_name, base_dir)
    while problem is not None:
        as_text = [o.as_text() if o.covers(problem.key) else o for o in tried]
        if as_text == tried:
            break
        tried = as_text
        next_problem, scenario = _build(apply_overrides(data, tried), default_name, base_dir)
        if next_problem is not None and next_problem.key == problem.key:
            break  # no better as text: what was said of the value itself is clearer
        problem = next_problem
    return problem, scenario


def _name_from(stem: str) -> str:
    """A valid name made of a file's name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64]
    return name or "scenario"


def _build(
    data: Mapping[str, Any], default_name: str, base_dir: Path
) -> tuple[Problem | None, Scenario | None]:
    """The scenario, or the first thing that is wrong with it."""
    problems = [
        Problem(key, unknown_name("key", key, SCENARIO_KEYS))
        for key in data
        if key not in SCENARIO_KEYS
    ]
    schema = data.get("schema")
    if schema != SCENARIO_SCHEMA:
        what = "missing" if schema is None else f"{schema!r} is not known here"
        problems.append(Problem("schema", f'{what}; write schema = "{SCENARIO_SCHEMA}"'))
    name = data.get("name", default_name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', at most 64"
        problems.append(Problem("name", f"{name!r} is not a name; allowed: {allowed}"))

    task = _validated(TaskSpec, _part(data, _TASK_KEYS), "", problems)
    telemetry = _validated(TelemetrySpec, data.get("telemetry", {}), "telemetry", problems)
    section = _validated(MigrationSection, data.get("migration", {}), "migration", problems)
    migration_data = _part(data, _MIGRATION_KEYS)
    if "costs" in migration_data:
        migration_data["costs"] = _with_machine(migration_data["costs"], base_dir, problems)
    if section is not None:
        migration_data["run_after"] = section.run_after
    migration = _validated(MigrationSpec, migration_data, "", problems)
    if problems:
        return problems[0], None
    assert task is not None and migration is not None and telemetry is not None
    return None, Scenario(str(name), task, migration, telemetry)


def _with_machine(costs: Any, base_dir: Path, problems: list[Problem]) -> Any:
    """The table ``[costs]`` with all that it does not give itself from the machine that it names.

    Adds what is wrong to ``problems``.
    """
    if not isinstance(costs, Mapping) or not isinstance(costs.get("machine", ""), str):
        return costs  # what it is instead is said when it is validated
    name = costs.get("machine", "")
    if not name:
        return costs
    try:
        known = load_machine(name, base_dir).costs.model_dump(exclude={"machine"})
    except MachineError as error:
        problems.append(Problem("costs.machine", str(error)))
        return {key: value for key, value in costs.items() if key != "machine"}
    return {**known, **costs}


def _part(data: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: data[key] for key in keys if key in data}


def _validated(model: type[Model], data: Any, prefix: str, problems: list[Problem]) -> Model | None:
    """``data`` as ``model``; adds what is wrong to ``problems`` and returns None otherwise."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for problem in explain(error, model):
            key = ".".join(part for part in (prefix, problem.key) if part)
            problems.append(Problem(key, problem.message))
        return None


def _line(problem: Problem, origin: str, overrides: Sequence[Override]) -> str:
    """The error line: says ``--set`` when the key that is wrong came from there."""
    for override in overrides:
        if override.covers(problem.key):
            return f"--set {override.key}={override.text}: {problem}"
    return f"{origin}: {problem}"


def _drop_keys_of_other_kinds(
    data: Mapping[str, Any], overrides: Sequence[Override]
) -> dict[str, Any]:
    """``data`` without the keys that an overridden ``kind`` makes meaningless.

    ``--set policy.kind=fixed`` on a file with a threshold policy would otherwise always end at the
    threshold's own keys.
    """
    result = dict(data)
    for override in overrides:
        if len(override.path) != 2 or override.path[1] != "kind":
            continue
        table_name = override.path[0]
        table = result.get(table_name)
        field = TaskSpec.model_fields.get(table_name) or MigrationSpec.model_fields.get(table_name)
        if field is None or not isinstance(table, Mapping) or table.get("kind") == override.value:
            continue
        if table_name == "policy" and ":" in str(override.value):
            result[table_name] = {}  # a user's own, which has none of the others' keys
            continue
        for model in members(field.annotation):
            if override.value in kinds(model):
                known = model.model_fields
                result[table_name] = {key: table[key] for key in table if key in known}
    return result


def _with_absolute_paths(
    scenario: Scenario, base_dir: Path, check: bool
) -> tuple[Scenario, Problem | None]:
    """The scenario with its paths made absolute, and what is wrong with the first bad one."""
    task = scenario.task
    if task.source.images:
        images = (base_dir / task.source.images).resolve()
        if check and not images.is_dir():
            what = "is not a directory" if images.exists() else "there is no such directory"
            return scenario, Problem(
                "source.images", f"{images}: {what}; name a directory of CRIU images"
            )
        source = task.source.model_copy(update={"images": str(images)})
        task = task.model_copy(update={"source": source})
    if isinstance(task.workload, TraceSpec):
        trace = (base_dir / task.workload.file).resolve()
        if check and not trace.is_file():
            what = "is not a file" if trace.exists() else "there is no such file"
            return scenario, Problem(
                "workload.file", f"{trace}: {what}; `predump workload record` writes trace files"
            )
        workload = task.workload.model_copy(update={"file": str(trace)})
        task = task.model_copy(update={"workload": workload})
    return replace(scenario, task=task), None


def _with_policy(
    scenario: Scenario, base_dir: Path, check: bool
) -> tuple[Scenario, Problem | None]:
    """The scenario with the place of the user's own policy, and what is wrong with that.

    With `check` false a module that is not here is left to the host that has it.
    """
    policy = scenario.migration.policy
    if not isinstance(policy, UserPolicySpec):
        return scenario, None
    name = module_name(policy)
    try:
        found = find_module(name, (str(base_dir.resolve()), name))
        if found is None:
            file = f"{name.replace('.', '/')}.py"
            what = f"there is no {file} in {base_dir} and no installed module {name}"
            return scenario, Problem("policy.kind", what) if check else None
        policy = policy.model_copy(update={"module_sha256": found.sha256})
        load_policy(policy, (found.place,))
    except OSError as error:
        return scenario, Problem("policy.kind", f"{name} cannot be read: {error.strerror}")
    except PolicyError as error:
        return scenario, Problem("policy", str(error))
    migration = scenario.migration.model_copy(update={"policy": policy})
    return replace(scenario, migration=migration, policies=(found.place,)), None
