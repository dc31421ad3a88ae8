"""A user's own policy: what is checked when a scenario is read, and what while it decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from livemigration.errors import PolicyFailed, WrongState
from livemigration.policy import Decision, RoundView, build_policy
from livemigration.spec import MigrationSpec, UserPolicySpec
from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.scenario import Scenario, ScenarioError, load_scenario

READY = Path(__file__).parents[3] / "scenarios" / "policies" / "settling.toml"
MODULE = """
from dataclasses import dataclass
from livemigration.policy import Decision

@dataclass
class After:
    rounds: int
    slow: int = 0
    seen = []

    def decide(self, view):
        self.seen.append(view.round)
        return Decision(view.round >= self.rounds, f"seen {self.seen}", self.slow)

class Bare:
    counts_dirty = False
    pre_dumps = False
    def decide(self, view):
        return 1 / (view.round - 1)

class NoDecide:
    pass

class Wrong:
    def decide(self):
        return True

class Picky:
    def __init__(self, level):
        raise ValueError(f"level {level} is unheard of")
    def decide(self, view): ...
"""
VIEW = RoundView(
    round=1, pages_written=1, pages_skipped=0, bytes_wire=4096, duration_ns=1, pages_dirty=0,
    page_size=4096,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def scenario(folder: Path, *policy: str, check_paths: bool = True) -> Scenario:
    file = folder / "scenario.toml"
    lines = ["memory = '1MiB'", "[workload]", "kind = 'idle'", "[policy]", *policy]
    file.write_text("\n".join(['schema = "predump.scenario/1"', *lines]))
    return load_scenario(file, check_paths=check_paths)


def build(folder: Path, **policy: Any) -> Any:
    return build_policy(UserPolicySpec(**policy), (str(folder),))


async def test_a_class_beside_the_scenario_decides_and_gets_the_further_keys(folder: Path) -> None:
    loaded = scenario(folder, "kind = 'mine:After'", "rounds = 2")
    for _ in range(2):  # what the first migration left in the class is not there for the second
        result = await migrate_in_process(loaded)
        assert result.verified
        assert [r.reason for r in result.rounds] == [
            "seen [0]", "seen [0, 1]", "seen [0, 1, 2]", "final round, frozen",
        ]  # fmt: skip


async def test_the_ready_example_stops_when_rounds_stop_shrinking() -> None:
    loaded = load_scenario(READY, [parse_override("memory=4MiB")])
    result = await migrate_in_process(loaded)
    assert result.verified
    assert result.policy.kind == "settling:Settling"
    assert "fewer dirty pages than a round ago" in result.rounds[-2].reason


def test_an_installed_module_is_found_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    loaded = scenario(elsewhere, "kind = 'mine:After'", "rounds = 0")
    assert loaded.policies == ("mine",)
    assert build_policy(loaded.migration.policy, loaded.policies).decide(VIEW).freeze


def test_the_result_says_which_code_decided(folder: Path) -> None:
    def digest() -> str:
        policy = scenario(folder, "kind = 'mine:After'", "rounds = 2").migration.policy
        assert isinstance(policy, UserPolicySpec)
        return policy.module_sha256

    before = digest()
    assert digest() == before
    (folder / "mine.py").write_text(MODULE + "\n")
    assert digest() != before


def test_keys_travel_as_they_are(folder: Path) -> None:
    policy = {"kind": "mine:After", "rounds": 3, "slow": 0.5, "names": ["a", {"b": True}]}
    spec = MigrationSpec.model_validate({"policy": policy})
    again = MigrationSpec.from_struct(spec.to_struct())
    assert again == spec
    assert isinstance(again.policy, UserPolicySpec)
    assert again.policy.options == {k: v for k, v in policy.items() if k != "kind"}


def test_without_a_place_to_look_no_code_is_run() -> None:
    with pytest.raises(WrongState, match=r"start it with --policies FOLDER.*that has mine\.py"):
        build_policy(UserPolicySpec(kind="mine:After"))


def test_only_the_places_that_were_allowed_are_looked_into(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for kind in ("mine:After", "json:JSONDecoder"):
        with pytest.raises(ValueError, match=f"there is no module {kind[:4]} in {bare}$"):
            build(bare, kind=kind)


def test_a_file_that_is_not_the_callers_is_not_run(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not the file that the scenario was read with"):
        build(folder, kind="mine:After", rounds=1, module_sha256="0" * 64)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (["kind = 'nowhere:X'"], r"policy\.kind: there is no nowhere\.py in .* installed module"),
        (["kind = 'mine:Aftr'"], "unknown class 'Aftr'; did you mean 'After'"),
        (["kind = 'mine:NoDecide'"], r"NoDecide has no method decide\(self, view\)"),
        (["kind = 'mine:Wrong'"], r"Wrong has no method decide\(self, view\)"),
        (["kind = 'mine:After'"], "mine:After: needs the key 'rounds'"),
        (["kind = 'mine:After'", "rounds = 1", "slo = 1"], "key 'slo'; did you mean 'slow'"),
        (["kind = 'mine:Bare'", "x = 1"], "mine:Bare: takes no key 'x'"),
        (["kind = 'mine:Picky'", "level = 9"], "refused its keys: ValueError: level 9 is unheard"),
        (["kind = 'mine:'"], r'''policy\.kind: 'mine:' names no class; write "module:Class"'''),
        (["kind = '../mine:After'"], "names no class"),
        (["kind = 'mine:After'", "rounds = 1979-05-27"], "cannot be handed to a policy"),
        (["kind = 'mine:After'", "rounds = inf"], "cannot be handed to a policy"),
        (["kind = 'mine:After'", "rounds = 9007199254740993"], "is too large"),
        (["kind = 'fixed'", "round = 1"], r"policy\.round: unknown key 'round'; did you mean"),
        (["kind = 'fixt'"], "policy: unknown kind 'fixt'; did you mean 'fixed'"),
    ],
)
def test_what_is_wrong_is_one_line_when_the_scenario_is_read(
    folder: Path, policy: list[str], says: str
) -> None:
    with pytest.raises(ScenarioError, match=says) as caught:
        scenario(folder, *policy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module", r"ModuleNotFoundError: .*\(broken\.py, line 1\)"),
        ("\nclass X:\n  def decide(self, view)", "cannot be imported: line 3"),
        ("raise KeyError('why')", "KeyError"),
    ],
)
def test_a_module_that_does_not_load_says_where(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ScenarioError, match=says) as caught:
        scenario(tmp_path, "kind = 'broken:X'")
    assert "\n" not in str(caught.value)


def test_a_module_of_another_host_is_left_to_that_host(tmp_path: Path) -> None:
    loaded = scenario(tmp_path, "kind = 'theirs:X'", "depth = 1", check_paths=False)
    assert loaded.policies == ()


def test_a_kind_given_on_the_command_line_leaves_the_other_kinds_keys_out(folder: Path) -> None:
    scenario(folder, "kind = 'threshold'", "goal_percent = 5")
    loaded = load_scenario(
        folder / "scenario.toml",
        [parse_override("policy.kind=mine:After"), parse_override("policy.rounds=3")],
    )
    assert isinstance(loaded.migration.policy, UserPolicySpec)
    assert loaded.migration.policy.options == {"rounds": 3}


def test_what_the_class_says_of_itself_is_followed(folder: Path) -> None:
    bare = build(folder, kind="mine:Bare")
    assert (bare.name, bare.counts_dirty, bare.pre_dumps) == ("mine:Bare", False, False)
    after = build(folder, kind="mine:After", rounds=1)
    assert (after.counts_dirty, after.pre_dumps) == (True, True)
    assert after.decide(VIEW) == Decision(True, "seen [1]")


@pytest.mark.parametrize(
    ("policy", "view_round", "says"),
    [
        ({"kind": "mine:Bare"}, 1, r"ZeroDivisionError: .*\(mine\.py, line 19\)"),
        ({"kind": "mine:Bare"}, 2, r"returned float after round 2; it must return a .*Decision"),
        ({"kind": "mine:After", "rounds": 9, "slow": 100}, 0, "slow the task down by 100 %"),
        ({"kind": "mine:After", "rounds": 9, "slow": 0.5}, 0, r"by 0\.5 %"),
    ],
)
def test_a_decision_that_is_none_ends_the_migration(
    folder: Path, policy: dict[str, Any], view_round: int, says: str
) -> None:
    with pytest.raises(PolicyFailed, match=says):
        build(folder, **policy).decide(replace(VIEW, round=view_round))


async def test_a_policy_that_fails_leaves_the_task_at_the_source(folder: Path) -> None:
    text = MODULE.replace("pre_dumps = False", "")
    (folder / "mine.py").write_text(text)
    result = await migrate_in_process(scenario(folder, "kind = 'mine:Bare'"))
    assert result.owner == "source"
    assert result.error is not None
    assert "policy mine:Bare returned float after round 0" in result.error
    assert "the source kept the task" in result.error
