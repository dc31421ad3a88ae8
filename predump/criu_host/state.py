"""What a simulated task is beside its memory, in a file of its own among the images.

CRIU's images have registers; what a simulated task has instead is its specification and where its
workload was. ``predump.json`` holds both, so that a restored task goes on as if it had never been
dumped. Tools copy whole directories, and CRIU's own look only for files that they know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livemigration.criu.errors import ImageError
from livemigration.execution import core_of
from livemigration.spec import TaskSpec
from predump.criu_host.task import SimulatedTask

STATE_FILE: Final = "predump.json"
_MOST_BYTES: Final = 1 << 20
_ADVICE: Final = "copy the directory again, or remove this file: the task is idle then"


class State(BaseModel):
    """The file's content."""

    model_config = ConfigDict(extra="forbid")

    schema_: Literal["predump.criu-task/1"] = Field(alias="schema", default="predump.criu-task/1")
    name: str = Field(max_length=64)
    clock: Literal["virtual", "wall"]
    step_ns: int = Field(ge=0, lt=1 << 62)
    own_net: bool = False
    base_dir: str
    task: TaskSpec
    core: dict[str, Any]
    pids: dict[int, int]


@dataclass(frozen=True, slots=True)
class Core:
    """Where the workload was."""

    workload: dict[str, Any]
    workload_ns: int
    next_pid: int


def write_state(task: SimulatedTask, folder: Path) -> None:
    """Writes the file of a task at rest. Raises OSError."""
    state = State(
        name=task.name,
        clock="wall" if task.wall else "virtual",
        step_ns=task.step_ns,
        own_net=task.own_net,
        base_dir=str(task.base_dir),
        task=task.spec,
        core=json.loads(core_of(task.execution)),
        pids=task.pids,
    )
    (folder / STATE_FILE).write_text(state.model_dump_json(by_alias=True) + "\n")


def read_state(folder: Path) -> tuple[State, Core] | None:
    """The file's content; None where there is none. Raises ImageError."""
    file = folder / STATE_FILE
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageError(file, error.strerror or str(error), _ADVICE) from error
    if len(data) > _MOST_BYTES:
        raise ImageError(file, f"is longer than {_MOST_BYTES} bytes", _ADVICE)
    try:
        state = State.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImageError(file, f"{where}: {first['msg']}", _ADVICE) from error
    core = state.core
    numbers = [core.get("workload_ns"), core.get("next_pid")]
    if not isinstance(core.get("workload"), dict) or not all(
        isinstance(number, int) and 0 <= number < 1 << 62 for number in numbers
    ):
        raise ImageError(file, "core: does not say where the workload was", _ADVICE)
    return state, Core(core["workload"], core["workload_ns"], core["next_pid"])
