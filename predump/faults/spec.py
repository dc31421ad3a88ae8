"""Fault files: what goes wrong, when in the migration, for how long, and how it must end.

TOML, ``schema = "predump.fault/1"``, checked as strictly as scenarios (`predump.scenario`).
docs/faults.md lists every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from livemigration.spec import Spec, Time
from livemigration.spec_errors import first_line
from livemigration.units import parse_time_ns
from predump.faults.points import POINTS, is_point
from predump.scenario import SCENARIO_SCHEMA, Scenario, ScenarioError, scenario_from_mapping
from predump.toml_file import read_toml

FAULT_SCHEMA = "predump.fault/1"
_CLONE = Path(__file__).resolve().parents[2]
# Beside the package in a clone; where it was installed, in the working directory.
FOLDER = (_CLONE if (_CLONE / "scenarios").is_dir() else Path()) / "scenarios" / "faults"
NS = 1_000_000_000

Kind = Literal[
    "cut-link",
    "silence-link",
    "slow-link",
    "kill-destination",
    "pause-destination",
    "kill-source",
    "pause-source",
    "lose-broker",
    "fill-disk",
    "jump-clock",
    "duplicate-frames",
    "reorder-frames",
    "truncate-frames",
    "corrupt-frames",
    "swallow-frames",
    "slow-destination",
    "slow-caller",
]
Outcome = Literal["migrated", "rolled-back", "taken", "died", "stranded", "set-back"]
Mode = Literal["pre-copy", "post-copy", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)
KINDS: tuple[str, ...] = get_args(Kind)

# Small, so that all of them run in a minute; every page is compared all the same.
BASE: dict[str, Any] = {
    "schema": SCENARIO_SCHEMA,
    "memory": "8MiB",
    "workload": {"kind": "uniform", "rate": "5000 pages/s", "write_size": 64},
    "policy": {"kind": "fixed", "rounds": 1},
    "link": {"bandwidth": "100Mbit/s"},
    "migration": {"run_after": "50ms"},
}
# What a case is run with whose mode is not pre-copy: one on each clock, since what waits for pages
# is other code there.
LATER: dict[Mode, dict[str, Any]] = {
    "post-copy": {
        "memory": "4MiB",
        "clock": "wall",
        "policy": {"kind": "post-copy", "batch": "64KiB"},
    },
    "hybrid": {
        "memory": "4MiB",
        "policy": {"kind": "hybrid", "rounds": 1, "batch": "64KiB"},
    },
}


class FaultError(ValueError):
    """A fault file that cannot be used; ``str()`` is one line for the user."""


def _known_point(text: str) -> str:
    if not is_point(text):
        known = ", ".join((*POINTS, "pages-1% to pages-99%"))
        raise ValueError(f"{text!r} is no point of a migration; known: {known}")
    return text


class CaseSpec(Spec):
    """One ``[[case]]``: the fault at one point, and how it must end."""

    at: Annotated[str, AfterValidator(_known_point)] = Field(description="when it strikes")
    mode: Mode = Field(
        default="pre-copy",
        description='"post-copy" and "hybrid": with that policy, in place of the scenario\'s',
    )
    outcome: Outcome = Field(
        description='"migrated": the destination has the task, verified; "rolled-back": the source '
        'runs it, unharmed; "taken": the source is dead and the destination has it; '
        '"died": the task died with the source; "stranded": the source is dead with pages that '
        'the destination\'s task lacks, which stands still and names them; "set-back": the '
        "destination is dead with what the task did there, and somebody's word brings it back to "
        "where it was frozen"
    )
    doubt: bool = Field(
        default=False,
        description="the source is in doubt first, and settles it when the fault is over",
    )
    says: str = Field(default="", description="a part of what the result says is wrong")

    @model_validator(mode="after")
    def _has_the_point(self) -> Self:
        if self.mode == "pre-copy" and self.at.startswith("pages"):
            raise ValueError(
                f'no pages come after the hand-over with mode "pre-copy", so {self.at!r} is never '
                'reached: write mode = "post-copy" or "hybrid"'
            )
        return self


class FaultSpec(Spec):
    """The whole file but its schema and its scenario."""

    about: str = Field(description="what it stands for, in one sentence")
    kind: Kind = Field(description="what goes wrong")
    lasts: Time = Field(
        default="0s", description="how long, in real time; 0s: until the migration is over"
    )
    rate_kib: int = Field(default=4096, ge=1, description="slow-link: KiB/s")
    delay: Time = Field(default="20ms", description="slow-destination, slow-caller: each time")
    every: bool = Field(default=False, description="...-frames: each frame from then on")
    jump: int = Field(default=0, description="jump-clock: seconds forward, or back below 0")
    case: tuple[CaseSpec, ...] = Field(
        min_length=1, strict=False, description="when, and how it ends"
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.kind == "pause-source" and parse_time_ns(self.lasts) == 0:
            raise ValueError("a source that is paused for good never ends: say how long it lasts")
        return self


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault file as it is used."""

    name: str
    spec: FaultSpec
    scenario: Scenario
    later: Mapping[Mode, Scenario] = field(default_factory=dict)  # of the other modes

    def scenario_of(self, case: CaseSpec) -> Scenario:
        """What a case is run with."""
        return self.later.get(case.mode, self.scenario)

    @property
    def lasts_s(self) -> float:
        """Seconds; 0: until the migration is over."""
        return parse_time_ns(self.spec.lasts) / NS

    @property
    def delay_s(self) -> float:
        """Seconds for each frame or event."""
        return parse_time_ns(self.spec.delay) / NS


def load_fault(path: Path) -> Fault:
    """Reads one file; raises FaultError."""
    data = read_toml(path, FaultError, "fault")
    schema = data.pop("schema", None)
    if schema != FAULT_SCHEMA:
        what = "missing" if schema is None else f"{schema!r} is not known here"
        raise FaultError(f'{path}: schema: {what}; write schema = "{FAULT_SCHEMA}"')
    tables = data.pop("scenario", {})
    post_copy = data.pop("post_copy", {})
    for name, table in (("scenario", tables), ("post_copy", post_copy)):
        if not isinstance(table, dict):
            raise FaultError(f"{path}: {name}: must be a table")
    try:
        spec = FaultSpec.model_validate(data)
    except ValidationError as error:
        raise FaultError(f"{path}: {first_line(error, FaultSpec)}") from error
    try:
        scenario = scenario_from_mapping(
            BASE | tables, origin=f"{path}: scenario", default_name=path.stem
        )
        later = {
            mode: scenario_from_mapping(
                BASE | ours | tables | {"policy": ours["policy"] | post_copy},
                origin=f"{path}: {mode}",
                default_name=path.stem,
            )
            for mode, ours in LATER.items()
        }
    except ScenarioError as error:
        raise FaultError(str(error)) from error
    return Fault(path.stem, spec, scenario, later)


def load_all(folder: Path = FOLDER) -> list[Fault]:
    """Every file of a folder, by name; raises FaultError."""
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise FaultError(f"{folder}: there are no fault files (*.toml) there")
    return [load_fault(path) for path in files]
