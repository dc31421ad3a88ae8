"""docs/workloads.md names every key with its default, and what it shows works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from livemigration.workload import spec as models
from livemigration.workload.trace import TraceFile
from predump.workload_cli import workload_app
from tests.unit.workload.harness import SECOND, make, pages_of, spec, start
from tests.unit.workload.raw_traces import RECORDS, chunk, footer, header

PAGE = (Path(__file__).parents[3] / "docs" / "workloads.md").read_text(encoding="utf-8")
KINDS: dict[str, type[BaseModel]] = {
    "uniform": models.UniformSpec,
    "zipf": models.ZipfSpec,
    "hotspot": models.HotspotSpec,
    "sequential": models.SequentialSpec,
    "phased": models.PhasedSpec,
    "idle": models.IdleSpec,
    "append-heap": models.AppendHeapSpec,
    "fork-cow": models.ForkCowSpec,
    "swap-pressure": models.SwapPressureSpec,
    "script": models.ScriptSpec,
    "trace": models.TraceSpec,
}
COMMON = ("rate", "write_size", "content", "compressibility")


def section(title: str) -> str:
    """The text below a heading, up to the next one of any level."""
    match = re.search(rf"^#+ {title}.*?\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def rows(text: str) -> dict[str, str]:
    """Key and default of each row of a section's table."""
    return dict(re.findall(r"^\| `([a-z_]+)` \| (.*?) \|", text, re.MULTILINE))


def shown(default: Any, *, required: bool) -> str:
    if required:
        return "(required)"
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_kind_is_there_with_its_default(kind: str) -> None:
    common, own = rows(section("What holds for all kinds")), rows(section(f"`{kind}`"))
    fields = {key: field for key, field in KINDS[kind].model_fields.items() if key != "kind"}
    told = {**{key: text for key, text in common.items() if key in fields}, **own}
    assert told == {
        key: shown(field.default, required=field.is_required()) for key, field in fields.items()
    }


def test_the_keys_of_all_kinds_are_common_to_all_that_write() -> None:
    assert tuple(rows(section("What holds for all kinds"))) == COMMON


def test_phases_have_the_keys_of_their_kinds_but_for_the_content() -> None:
    for kind, model in {
        "uniform": models.UniformPhase,
        "zipf": models.ZipfPhase,
        "hotspot": models.HotspotPhase,
        "sequential": models.SequentialPhase,
        "idle": models.IdlePhase,
    }.items():
        own = set(KINDS[kind].model_fields) - {"content", "compressibility"}
        assert set(model.model_fields) == own | {"duration"}
        assert f"`{kind}`" in section("`phased`")


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_are_valid(text: str) -> None:
    spec(**tomllib.loads(text)["workload"])


@pytest.mark.parametrize("name", ["record", "show", "replay"])
def test_every_option_of_the_commands_is_there(name: str) -> None:
    command = get_command(workload_app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name == "help":
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        assert any(f"`{option}`" in PAGE or f" {option} " in PAGE for option in names), names


def test_every_key_of_a_trace_is_there_and_no_other() -> None:
    text = section("The trace file format")
    keys = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    told = [key for row in keys for key in re.findall(r"`(\w+)`", row)]
    written = [*header(), *chunk(0, RECORDS), *footer(RECORDS)]
    assert told == written


def test_the_program_that_writes_a_trace_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/workloads.md", "exec"), {})  # noqa: S102  our own page
    trace = TraceFile(tmp_path / "example.msgpack")
    assert (trace.footer.records, trace.footer.pages) == (100, 100)
    what = spec("trace", file=str(trace.path), loop=False)
    workload, task = start(what, populate=False)
    assert workload.run_until(task, 50_000_000).ops == 50
    assert workload.run_until(task, SECOND).ops == 50
    assert len(pages_of(task.processes[1])) == 100
    assert make(what).due_ns(7) == 7_000_000
