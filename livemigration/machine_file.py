"""Machine files: what the steps of a migration cost on one machine, each cost with its source.

A TOML file, ``schema = "predump.machine/1"``. `predump calibrate` writes them; ready ones are in
`livemigration/machines/`, known by their names. A scenario names one with ``[costs] machine``.

    schema = "predump.machine/1"
    name = "mine"

    [costs]             # the keys of a scenario's [costs]; what is left out keeps its default
    scan_page = 12      # nanoseconds, or "12us"

    [sources]           # for every cost, where it comes from
    scan_page = "measured: median of 7"

    [host]              # what was measured: text or numbers, for people
    [measured.scan]     # and how: median, spread and number of repeats
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from livemigration.costs import CostSpec
from livemigration.spec_errors import first_line, nearest

MACHINE_SCHEMA = "predump.machine/1"


class MachineError(ValueError):
    """A machine file that cannot be used; ``str()`` is one line."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Measured(_Table):
    """One figure: the median of several repeats and how far they lie apart."""

    what: str = Field(description="what was measured, and how")
    unit: str = Field(description="of the figures")
    median: float
    low: float = Field(description="first quartile")
    high: float = Field(description="third quartile")
    repeats: int = Field(ge=1)


class MachineFile(_Table):
    """A machine file's tables."""

    schema_: Literal["predump.machine/1"] = Field(alias="schema")
    name: str = Field(min_length=1, description="what people call the machine")
    description: str = ""
    host: dict[str, str | int | float] = Field(default={}, description="what was measured")
    costs: CostSpec = Field(default=CostSpec(), description="what is known of its costs")
    sources: dict[str, str] = Field(default={}, description="where each cost comes from")
    measured: dict[str, Measured] = Field(default={}, description="the figures behind the costs")

    @model_validator(mode="after")
    def _sources_and_costs_belong_together(self) -> Self:
        given = self.costs.model_fields_set
        if "machine" in given:
            raise ValueError("costs.machine: a machine file cannot name another; leave it out")
        for key in sorted(given - self.sources.keys()):
            raise ValueError(f"costs.{key}: has no source; say in [sources] where it comes from")
        for key in sorted(self.sources.keys() - given):
            raise ValueError(f"sources.{key}: there is no such cost in [costs]")
        return self

    def cost_table(self) -> dict[str, int]:
        """The costs that the file gives, in nanoseconds."""
        return self.costs.model_dump(include=self.costs.model_fields_set)


def ready_machines() -> dict[str, str]:
    """The machines that come with Predump: name -> the text of its file."""
    folder = resources.files("livemigration") / "machines"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".toml")
    }


def load_machine(name: str, base_dir: Path | None = None) -> MachineFile:
    """The machine of that name, or in that file (relative to `base_dir`). Raises MachineError.

    It is a file if the name ends with ``.toml`` or has a ``/`` in it.
    """
    if name.endswith(".toml") or "/" in name:
        path = (base_dir or Path.cwd()) / name
        return read_machine(_text_of(path), str(path))
    ready = ready_machines()
    if name in ready:
        return read_machine(ready[name], name)
    close = nearest(name, ready)
    known = f"did you mean {close!r}?" if close else f"known: {', '.join(ready)}"
    raise MachineError(f"unknown machine {name!r}; {known} (a file's name ends with .toml)")


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise MachineError(
            f"{path}: there is no such file; `predump calibrate -o FILE` writes one"
        ) from error
    except OSError as error:
        raise MachineError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MachineError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def read_machine(text: str, origin: str) -> MachineFile:
    """The machine in a file's `text`; errors name it `origin`. Raises MachineError."""
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MachineError(f"{origin}: is not valid TOML: {error}") from error
    try:
        return MachineFile.model_validate(tables)
    except ValidationError as error:
        raise MachineError(f"{origin}: {first_line(error, MachineFile)}") from error
