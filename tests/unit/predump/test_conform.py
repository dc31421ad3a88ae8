"""`predump conform`: which model meets a trace, what is told of differences, what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from livemigration.operations import OperationError, parse_op
from mm_model import ModelConfig
from predump.cli import app
from predump.conform.judge import judge
from predump.conform.settings import SettingError, parse_settings, profile_of, settings_of
from predump.conform.trace import completed, parse_scenario, read_trace

RECORDED = Path(__file__).parents[2] / "data" / "kernel-traces"

OPS: list[dict[str, Any]] = [
    {"op": "map", "r": 0, "kind": "anon-private", "n": 4, "rc": 0},
    {"op": "clear", "rc": 0},
    {"op": "write", "r": 0, "i": 1, "n": 2, "rc": 0},
]


def scenario(name: str = "one", **changes: Any) -> dict[str, Any]:
    """A scenario that arm64 6.12 with the whole patch meets."""
    state = {
        "present": "0110",
        "swap": "0000",
        "soft_dirty": "0110",
        "vmas": [[0, 4, "rw-p", 0, ""]],
    }
    recorded = {
        "name": name,
        "arch": "aarch64",
        "kernel": "6.12.117",
        "page_size": 4096,
        "ops": OPS,
        "snaps": [{"after": 2, "who": "self", "regions": {"0": state}}],
    }
    return recorded | changes


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "mine.jsonl", scenario())


def write(path: Path, *scenarios: dict[str, Any]) -> Path:
    text = "".join(json.dumps(recorded) + "\n" for recorded in scenarios)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def conform(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["conform", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# -- the command


def test_a_trace_that_the_model_meets(trace: Path) -> None:
    assert conform(trace) == (
        0,
        "mine.jsonl: 1 scenario, 3 steps, 4 pages compared, 0 differences (aarch64 6.12.117)\n",
        "",
    )


def test_each_difference_is_told_with_step_page_states_entry_and_mapping(trace: Path) -> None:
    code, out, _ = conform(trace, "--hunks-off", "ptep_set_access_flags,pte_mkdirty")
    assert code == 3
    assert out.splitlines() == [
        "one, step 2 (write 0 1 2), region 0 pages 1-2",
        "    kernel soft_dirty=1",
        "    model  soft_dirty=0",
        "    entry  0x00e8000000001f43 VALID USER AF WRITE DIRTY frame 1; mapping rw-p",
        "mine.jsonl: 1 scenario, 3 steps, 4 pages compared, 1 difference (aarch64 6.12.117; "
        "model with hunks_off=pte_mkdirty,ptep_set_access_flags)",
    ]


def test_json_has_every_difference_and_the_settings(trace: Path) -> None:
    code, out, _ = conform(trace, "--hunks-off", "pte_mkdirty", "--set", "dbm=false", "--json")
    assert code == 3
    told = json.loads(out)
    assert (told["schema"], told["differences"]) == ("predump.conform/1", 1)
    (file,) = told["files"]
    assert file["settings"]["hunks_off"] == ["pte_mkdirty"]
    assert file["settings"]["dbm"] is False
    assert (file["scenarios"], file["steps"], file["pages_compared"]) == (1, 3, 4)
    (difference,) = file["differences"]
    assert (difference["step"], difference["region"], difference["pages"]) == (2, 0, [1, 2])
    assert (difference["expected"], difference["found"]) == ("soft_dirty=1", "soft_dirty=0")


def test_only_picks_scenarios_and_every_file_gets_a_line(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl.gz", scenario("h01"), scenario("h02"), scenario("r1"))
    second = write(tmp_path / "b.jsonl", scenario("h03"))
    code, out, _ = conform(first, second, "--only", "^h")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines()] == [
        "a.jsonl.gz: 2 scenarios",
        "b.jsonl: 1 scenario",
    ]


def test_what_is_not_modelled_is_counted_with_its_reason(tmp_path: Path) -> None:
    beyond = [OPS[0], {"op": "frobnicate", "r": 0, "i": 0, "n": 1, "rc": 0}]
    path = write(tmp_path / "t.jsonl", scenario(), scenario("new", ops=beyond, snaps=[]))
    code, out, _ = conform(path)
    assert code == 0
    assert out.splitlines()[0].startswith(
        "t.jsonl: 2 scenarios, 4 steps, 4 pages compared, 0 differences, 1 not modelled to the end"
    )
    assert out.splitlines()[1:] == [
        "  not modelled:    1 scenario   frobnicate: an operation is not modelled yet"
    ]


def test_another_kernel_may_be_tried_on_a_trace(trace: Path) -> None:
    code, out, _ = conform(trace, "--set", "kernel=6.1")
    assert code == 0
    assert "model with kernel=6.1" in out


def test_recorded_livelock_is_met_though_the_record_ends_before_it() -> None:
    trace = RECORDED / "hunks-off" / "pte_mkdirty.jsonl.gz"
    code, out, _ = conform(trace, "--only", "^h25", "--hunks-off", "pte_mkdirty")
    assert code == 0
    assert "1 scenario, 5 steps" in out
    code, out, _ = conform(trace, "--only", "^h25")
    assert code == 3
    assert "(memwrite 0 1 1), end\n    kernel never ends\n    model  rc 0\n" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none.jsonl"], "none.jsonl: there is no such file"),
        (["TRACE", "--only", "("], "--only '(': not a regular expression: missing ), "),
        (["TRACE", "--only", "x"], "TRACE: --only 'x' matches none of its scenarios"),
        (["TRACE", "--set", "dbn=1"], "--set dbn: the model has no such setting; did you mean"),
        (["TRACE", "--set", "dbm"], "--set 'dbm': not KEY=VALUE; "),
        (["TRACE", "--set", "dbm=3"], "--set dbm=3: must be true or false"),
        (["TRACE", "--set", "frames=many"], "--set frames=many: must be a whole number"),
        (["TRACE", "--set", "kernel=5.4"], "kernel profile '5.4': must be one of 6.12, "),
        (["TRACE", "--hunks-off", "pte_mkdrty"], "unknown hunk 'pte_mkdrty'; did you mean"),
    ],
)
def test_bad_input_is_one_line(trace: Path, arguments: list[str], line: str) -> None:
    named = [str(trace) if argument == "TRACE" else argument for argument in arguments]
    code, out, err = conform(*named)
    assert (code, out) == (2, "")
    assert err.startswith(f"predump: error: {line.replace('TRACE', str(trace))}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; a trace has one scenario a line"),
        (b"{}\n", "line 1: not a recorded scenario: no 'snaps'"),
        (b"[1]\n", "line 1: not a recorded scenario: "),
        (b"\xff\xfe\n", "cannot be read as a trace: "),
        (json.dumps(scenario()).encode()[:-9] + b"\n", "line 1: not a recorded scenario: "),
        (2 * (json.dumps(scenario()).encode() + b"\n"), "line 2: a second scenario 'one'"),
        (
            json.dumps(scenario(ops=[{"op": "clear", "rc": "no"}])).encode(),
            "line 1: not a recorded scenario: operation",
        ),
        (
            json.dumps(scenario(arch="sparc")).encode(),
            "arch 'sparc' of the trace: must be one of aarch64, arm64, x86_64",
        ),
    ],
)
def test_file_that_is_no_trace_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    code, _, err = conform(path)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1


def test_damaged_archive_is_refused(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(trace.read_bytes())[:-20])
    code, _, err = conform(path)
    assert code == 2
    assert f"{path}: cannot be read as a trace" in err


# -- which model


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        ("6.1.192", "6.1"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.12.117", "6.12"),
        ("6.13-rc1", "6.12"),
        ("7.0.3", "6.12"),
        ("6.6.9", "6.1"),
        ("5.10.1", "6.1"),
    ],
)
def test_profile_is_the_newest_that_is_not_newer(release: str, profile: str) -> None:
    assert profile_of(release) == profile


def test_release_that_is_no_version_is_refused() -> None:
    with pytest.raises(SettingError, match="kernel 'next' of the trace is no version"):
        profile_of("next")


def test_trace_and_command_line_make_the_settings() -> None:
    settings = settings_of("aarch64", "6.1.9", 16384)
    assert (settings["kernel"], settings["page_size"]) == ("6.1", 16384)
    changes = parse_settings(["cpu.dbm=false", "kernel=6.12", "hunks.off=pte_modify"], "a, b")
    assert changes == {
        "dbm": False,
        "kernel": "6.12",
        "hunks_off": frozenset({"pte_modify", "a", "b"}),
    }


# -- the script language


def test_every_recorded_operation_is_a_line_of_the_language() -> None:
    name = "arm64-6.12.117-softdirty-rfc-fixed-descriptors.jsonl.gz"
    seen = set()
    for recorded in read_trace(RECORDED / name).values():
        for op in recorded.ops:
            parsed = parse_op(op.script())
            assert parsed.script() == op.script()
            seen.add(op.verb)
    assert len(seen) > 40


def test_second_operand_of_a_move_may_be_left_out() -> None:
    assert parse_op("mremap 0 2 4 1") == parse_op("mremap 0 2 4 1 0")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("wirte 0 0 1", "'wirte 0 0 1': there is no operation 'wirte'; did you mean 'write'?"),
        ("write 0 0", "'write 0 0': must be write REGION PAGE COUNT"),
        ("write 0 -1 1", "'write 0 -1 1': page must be a number, not '-1'"),
        ("write 8 0 1", "'write 8 0 1': regions are 0 to 7"),
        ("map 0 heap 4", "'map 0 heap 4': kind must be one of anon-private, anon-shared, "),
        ("mprotect 0 0 1 w", "'mprotect 0 0 1 w': prot must be one of none, r, rw"),
        ("clear 4", "'clear 4': must be clear"),
    ],
)
def test_line_that_is_no_operation_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(OperationError) as refused:
        parse_op(line)
    assert str(refused.value).startswith(complaint)


def test_operation_that_hung_comes_from_the_record_or_from_the_same_script(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.jsonl", scenario(ops=OPS[:2], snaps=[], killed=14))
    other_script = [{"op": "clear1", "rc": 0}, *OPS]
    other = write(tmp_path / "other.jsonl", scenario(ops=other_script))
    whole = write(tmp_path / "whole.jsonl", scenario())
    noted = write(tmp_path / "noted.jsonl", scenario(ops=OPS[:1], snaps=[], killed=9, hung=OPS[2]))
    killed = read_trace(cut)["one"]
    assert completed(killed, []).hung is None
    assert completed(killed, [other]).hung is None
    found = completed(killed, [other, whole]).hung
    assert found is not None
    assert found.script() == "write 0 1 2"
    hung = read_trace(noted)["one"].hung
    assert hung is not None
    assert hung.script() == "write 0 1 2"


@pytest.mark.parametrize(("verb", "agrees"), [("write", True), ("read", False)])
def test_pages_that_the_kernel_moved_move_in_the_model(verb: str, agrees: bool) -> None:
    """Compaction made a dirty page soft-dirty; it cannot have done so with a clean one."""
    ops = [
        {"op": "map", "r": 0, "kind": "anon-private", "n": 2, "rc": 0},
        {"op": verb, "r": 0, "i": 0, "n": 2, "rc": 0},
        {"op": "clear", "rc": 0},
        {"op": "compact", "rc": 0},
    ]
    shown = {"present": "11", "swap": "00", "soft_dirty": "01", "vmas": [[0, 2, "rw-p", 0, ""]]}
    scenario = parse_scenario(
        {
            "name": "moved", "arch": "x86_64", "kernel": "6.1.0", "page_size": 4096, "ops": ops,
            "snaps": [{"after": 3, "who": "self", "regions": {"0": shown}}],
        }
    )  # fmt: skip
    config = ModelConfig(frames=64, arch="x86_64", kernel="6.1")
    assert judge(scenario, config).agrees is agrees
    without_compaction = replace(scenario, ops=(*scenario.ops[:3], scenario.ops[2]))
    assert not judge(without_compaction, config).agrees
