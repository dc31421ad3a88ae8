"""`predump hunks`: what goes wrong without each hunk, found by search, not written by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from livemigration.operations import Op, OperationError
from mm_model import ModelConfig
from mm_model.hunks import HUNKS, VARIANTS
from predump.cli import app
from predump.conform import shortest
from predump.conform.differential import disagreements, first_disagreement
from predump.conform.explain import explain
from predump.conform.hunt import Progress, mark, search, search_kinds
from predump.conform.matrix import matrix
from predump.conform.operations import (
    THEMES,
    Vocabulary,
    generate,
    parse_script,
    script,
    themes_for,
)
from predump.conform.shortest import ShortestScenarios, config_without, vocabulary_for
from predump.conform.shrink import shrink
from tests.golden.harms import HARMS

MODELLED = [each.name for each in HUNKS + VARIANTS]
COMPLETE = config_without()
CONTPTE_FIXED = "contpte-access-flags-fixed"
VOCABULARY = Vocabulary.of(COMPLETE)

MOST_SEQUENCES = 6000
ALSO_DOES = {
    # A block takes its last page's bit: lost, as the one scenario shows that felt it, or spurious.
    "contpte-fold-ignores-soft-dirty": frozenset({"spurious"}),
    # A forced write into a block that was never written does end, and marks all of it.
    "contpte-access-flags-as-ported": frozenset({"spurious"}),
}
SEEDS = range(1, 1 + int(os.environ.get("SEARCH_SEEDS", "0")))
"""`make search-hunks` sets how many; without, a few hunks are searched for with one."""
RECORDED = {name: harms for name, harms in HARMS.items() if name in MODELLED}
"""What the recordings of real kernels show without a hunk, or with a variant (tests/golden)."""
FOUND_SOON = ("pte_modify", "pte_swp_mksoft_dirty", "contpte_convert", "ptep_set_access_flags")


def hunks(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["hunks", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def kept() -> ShortestScenarios:
    """What the search found for every hunk, as the command shows it."""
    return ShortestScenarios()


# -- what the search finds


@pytest.mark.parametrize("name", RECORDED)
def test_search_finds_what_real_kernels_do_without_the_hunk(
    kept: ShortestScenarios, name: str
) -> None:
    found = kept.of(name)
    assert set(found) >= RECORDED[name]
    for kind, entry in found.items():
        without = disagreements(entry.ops, COMPLETE, config_without(name))
        assert kind in without, script(entry.ops)
        assert len(entry.ops) <= 6


@pytest.mark.parametrize("name", RECORDED if SEEDS else FOUND_SOON)
def test_search_with_and_without_the_hunk_finds_a_harm_of_the_recordings(name: str) -> None:
    """`make search-hunks` tries all of them, with more seeds."""
    vocabulary = vocabulary_for(name, VOCABULARY)
    for seed in SEEDS or (1,):
        found = search(
            COMPLETE, config_without(name), vocabulary=vocabulary, seed=seed, limit=MOST_SEQUENCES
        )
        assert found is not None, f"seed {seed}"
        harms = RECORDED[name] | ALSO_DOES.get(name, frozenset())
        assert found.finding.kind in harms, f"seed {seed}: {script(found.ops)}"


def test_shortest_scenario_cannot_lose_an_operation(kept: ShortestScenarios) -> None:
    without = config_without("pte_modify")
    entry = kept.of("pte_modify")["spurious"]
    for at in range(len(entry.ops)):
        shorter = entry.ops[:at] + entry.ops[at + 1 :]
        assert "spurious" not in disagreements(shorter, COMPLETE, without)


@pytest.mark.parametrize("name", MODELLED)
def test_kept_scenarios_still_hold(name: str, kept: ShortestScenarios) -> None:
    """Nothing is searched: `make shortest` was run since the model or the search changed."""
    found = kept.of(name, lambda name: pytest.fail(f"searched without {name}"))
    for kind, entry in found.items():
        assert entry.ops == shrink(
            entry.ops,
            lambda ops, kind=kind: (
                kind in disagreements(ops, COMPLETE, config_without(name), blame_reference=False)
            ),
        )


def test_scenario_that_no_longer_holds_is_searched_anew(
    tmp_path: Path, kept: ShortestScenarios
) -> None:
    stored = json.loads(shortest.KEPT.read_text())
    stored["pte_modify"]["spurious"]["script"].remove("clear")
    stale = tmp_path / "stale.json"
    stale.write_text(json.dumps(stored))
    searched: list[str] = []
    scenarios = ShortestScenarios(stale)
    assert scenarios.of("pte_modify", searched.append) == kept.of("pte_modify")
    assert searched == ["pte_modify"]
    assert scenarios.of("pte_modify", pytest.fail) == kept.of("pte_modify")
    scenarios.of("pte_swp_mksoft_dirty", pytest.fail)


@pytest.mark.parametrize("text", ['{"pte_modify": {"spurious"', "[]", '{"pte_modify": 3}'])
def test_damaged_file_of_scenarios_is_as_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "damaged.json"
    file.write_text(text)
    searched: list[str] = []
    assert "spurious" in ShortestScenarios(file).of("pte_modify", searched.append)
    assert searched == ["pte_modify"]


def test_hunk_that_large_folios_need_is_neutral_on_base_pages() -> None:
    anon = Vocabulary(VOCABULARY.verbs - {"mthp", "hugepage"}, frozenset({"anon-private"}))
    without = config_without("get_and_clear_full_ptes")
    assert search_kinds(COMPLETE, without, vocabulary=anon, limit=60) == {}


def test_two_equal_models_agree_on_everything() -> None:
    assert search(COMPLETE, COMPLETE, vocabulary=VOCABULARY, limit=60) is None


def test_hardware_dirty_bits_are_not_felt_on_base_pages() -> None:
    anon = Vocabulary(VOCABULARY.verbs - {"mthp", "hugepage"}, frozenset({"anon-private"}))
    no_dbm = ModelConfig(frames=4096, swap_slots=4096, dbm=False)
    assert search(COMPLETE, no_dbm, vocabulary=anon, limit=60) is None


def test_same_seed_finds_the_same() -> None:
    without = config_without("pte_mksoft_dirty")
    first, again, other = (
        search(COMPLETE, without, vocabulary=VOCABULARY, seed=seed, limit=200) for seed in (5, 5, 6)
    )
    assert first is not None
    assert first == again
    assert other is not None
    assert other.generated != first.generated or other.tried != first.tried


def test_endless_operation_in_both_is_found_and_named() -> None:
    without = config_without("ptep_set_access_flags")
    ops = parse_script("map 0 anon-private 4; write 0 0 4; clear; mprotect 0 0 4 r; memwrite 0 2 1")
    found = first_disagreement(ops, without, without)
    assert found is not None
    assert (found.kind, found.step) == ("endless", 4)
    told = explain(ops, found, without, without)
    assert told.page == "page 2 of region 0"
    assert told.why[0].startswith("In step 4 (memwrite 0 2 1) both models never come back: a forc")
    assert told.steps[-1].first.endswith("<- never ends")


def test_what_the_reference_never_ends_either_is_not_the_hunks_fault() -> None:
    endless = "map 0 anon-private 1; write 0 0 1; clear; mprotect 0 0 1 r; memwrite 0 0 1"
    ops = parse_script(endless)
    broken, whole = config_without("ptep_set_access_flags"), config_without()
    assert set(disagreements(ops, broken, whole)) == {"endless"}
    assert disagreements(ops, broken, whole, blame_reference=False) == {}
    assert set(disagreements(ops, whole, broken, blame_reference=False)) == {"endless"}
    assert search_kinds(broken, broken, vocabulary=VOCABULARY, limit=40) == {}


# -- disagreements in words


@pytest.mark.parametrize(
    ("text", "off", "kind", "step", "shown"),
    [
        ("map 0 anon-private 2; clear; write 0 1 1", "pte_mkdirty", "lost", 2, (1, 1)),
        (
            "map 0 anon-private 4; write 0 0 4; clear; mprotect 0 0 4 r; clear",
            "pte_modify",
            "spurious",
            3,
            (0, 4),
        ),
        (
            "map 0 anon-private 4; write 0 0 4; clear; mremap 0 2 2 1 1",
            "pte_mksoft_dirty",
            "lost",
            3,
            (1, 2),
        ),
    ],
)
def test_first_disagreement_has_kind_step_and_pages(
    text: str, off: str, kind: str, step: int, shown: tuple[int, int]
) -> None:
    found = first_disagreement(parse_script(text), COMPLETE, config_without(off))
    assert found is not None
    assert (found.kind, found.step, (found.page, found.pages)) == (kind, step, shown)


def test_explanation_shows_the_entry_after_each_operation_and_the_cause() -> None:
    ops = parse_script("map 0 anon-private 1; write 0 0 1; clear; write 0 0 1")
    without = config_without("ptep_set_access_flags")
    found = first_disagreement(ops, COMPLETE, without)
    assert found is not None
    told = explain(ops, found, COMPLETE, without)
    assert told.page == "page 0 of region 0"
    assert [(step.operation, step.first, step.second) for step in told.steps] == [
        ("map 0 anon-private 1", "none", "none"),
        ("write 0 0 1", *2 * ("VALID USER AF WRITE DIRTY SOFT_DIRTY frame 1",)),
        ("clear", *2 * ("VALID USER RDONLY AF DIRTY frame 1",)),
        (
            "write 0 0 1",
            "VALID USER AF WRITE DIRTY SOFT_DIRTY frame 1",
            "VALID USER AF WRITE DIRTY frame 1",
        ),
    ]
    assert told.why[:2] == (
        "After step 3 (write 0 0 1) only the first says soft-dirty; its content changed since "
        "step 2 (clear): a pre-dump with the second leaves the page out.",
        "The entries differ from step 3 (write 0 0 1) on: SOFT_DIRTY only in the first.",
    )
    assert told.why[2].startswith("The second lacks ptep_set_access_flags (arch/arm64/mm/fault.c)")


# -- shrinking


def test_shrinking_keeps_only_what_matters() -> None:
    ops = parse_script(
        "map 0 anon-private 20; map 3 tmpfs-shared 12; write 0 0 20; clear; read 3 2 4; clear1;"
        "fill 3 7 2 9; pageout 0 4 9; mremap 3 6 4 5 2; write 5 3 1; mlock 0 0 3"
    )

    def shows(candidate: tuple[Op, ...]) -> bool:
        mapped = any(op.verb == "map" and op.region == 3 and op.count > 4 for op in candidate)
        return mapped and any(op.verb == "pageout" and op.count >= 3 for op in candidate)

    assert script(shrink(ops, shows)) == ["map 3 anon-private 5", "pageout 0 0 3"]


def test_shrinking_renumbers_regions_and_pages_together() -> None:
    ops = parse_script("map 4 anon-private 16; clear; write 4 9 1; dontneed 4 9 1")

    def shows(candidate: tuple[Op, ...]) -> bool:
        named = {op.verb: op for op in candidate}
        if not named.keys() >= {"map", "write", "dontneed"}:
            return False
        mapped, written, dropped = named["map"], named["write"], named["dontneed"]
        same = (written.region, written.page) == (dropped.region, dropped.page)
        return same and mapped.region == written.region and mapped.count > written.page

    assert script(shrink(ops, shows)) == ["map 0 anon-private 1", "write 0 0 1", "dontneed 0 0 1"]


# -- random operations


def test_sequence_follows_from_the_seed() -> None:
    assert generate(7, VOCABULARY) == generate(7, VOCABULARY)
    assert len({generate(seed, VOCABULARY) for seed in range(40)}) == 40


@pytest.mark.parametrize("theme", themes_for(VOCABULARY), ids=lambda theme: theme.name)
def test_sequence_uses_only_what_the_model_has(theme: object) -> None:
    for seed in range(20):
        ops = generate(seed, VOCABULARY, theme)  # type: ignore[arg-type]
        assert 6 < len(ops) < 40
        assert {op.verb for op in ops} <= VOCABULARY.verbs
        assert {op.kind for op in ops if op.verb == "map"} <= VOCABULARY.kinds
        assert parse_script("\n".join(script(ops))) == ops


def test_vocabulary_says_what_is_left_out_and_why() -> None:
    assert {"write", "clear", "fork", "mremap", "swapoff", "memwrite"} <= VOCABULARY.verbs
    assert VOCABULARY.verbs.isdisjoint(VOCABULARY.missing)
    assert all("not modelled" in reason for reason in VOCABULARY.missing.values())
    left_out = {theme.name for theme in THEMES} - {t.name for t in themes_for(VOCABULARY)}
    known = VOCABULARY.verbs | VOCABULARY.kinds
    assert left_out == {theme.name for theme in THEMES if not known.issuperset(theme.needs)}


def test_script_has_comments_and_semicolons() -> None:
    ops = parse_script("map 0 anon-private 4  # four pages\n\nclear; write 0 1 2;\n# end")
    assert script(ops) == ["map 0 anon-private 4", "clear", "write 0 1 2"]
    with pytest.raises(OperationError, match="there is no operation 'clean'"):
        parse_script("clean")


# -- the matrix


def test_matrix_counts_what_each_hunk_does_beyond_the_whole_patch() -> None:
    complete, access, modify = matrix(
        ["ptep_set_access_flags", "pte_modify"], sequences=12, workloads=("sequential",)
    )
    assert complete.hunk == ""
    assert complete.cells["sequential"].lost == 0
    lost = access.beyond(complete)
    assert lost["sequential"].lost == 1024
    assert lost["sequential"].spurious == 0
    assert lost["ops:anon"].lost > 0
    spurious = modify.beyond(complete)
    assert "sequential" not in spurious
    assert spurious["ops:anon"].spurious > 0
    assert all(cell.lost == 0 for cell in spurious.values())


NEUTRAL = {
    "get_and_clear_full_ptes",
    "huge_ptep_set_access_flags",
    "swap-bit-61",  # beyond the offsets of any swap device
    CONTPTE_FIXED,  # what all are held against
}


def test_matrix_shows_every_hunk_but_the_neutral_ones() -> None:
    complete, *rows = matrix(MODELLED, sequences=1, workloads=())
    assert {row.hunk for row in rows if not row.beyond(complete)} == NEUTRAL
    shown = {row.hunk for row in rows if "ops:shortest" in row.beyond(complete)}
    assert shown == set(MODELLED) - NEUTRAL


# -- the commands


def test_list_has_every_hunk_with_its_place_and_shortest_scenario(kept: ShortestScenarios) -> None:
    code, out, _ = hunks()
    assert code == 0
    assert hunks("list")[1] == out
    names = [line.split()[0] for line in out.splitlines() if line[:1].strip()][2:]
    assert names == [each.name for each in (*HUNKS, *VARIANTS)]
    assert max(len(line) for line in out.splitlines()) <= 100
    words = " ".join(out.split())
    assert "spurious: " + "; ".join(script(kept.of("pte_modify")["spurious"].ops)) in words
    code, out, _ = hunks("list", "--json")
    told = {each["name"]: each for each in json.loads(out)["hunks"]}
    assert told["ptep_set_access_flags"]["file"] == "arch/arm64/mm/fault.c"
    assert set(told["ptep_set_access_flags"]["shows"]) == {"lost", "endless"}


def test_explain_prints_the_sequence_with_entries(kept: ShortestScenarios) -> None:
    code, out, _ = hunks("explain", "pte_modify")
    assert code == 0
    assert "  2 clear\n      VALID USER RDONLY AF DIRTY frame 1\n" in out
    assert "\n      without pte_modify    " in out
    assert kept.of("pte_modify")


def test_matrix_command_prints_a_row_for_each_hunk() -> None:
    code, out, _ = hunks("matrix", "pte_mkdirty", "--sequences", "2")
    assert code == 0
    assert "pte_mkdirty" in out
    assert "neutral here" not in out
    code, out, _ = hunks("matrix", "pte_mkdirty", "--sequences", "2", "--json")
    rows = {row["hunk"]: row["workloads"] for row in json.loads(out)["rows"]}
    assert set(rows) == {"", "pte_mkdirty"}
    assert rows["pte_mkdirty"]["sequential"]["lost"] == 1024


def test_search_tells_what_it_found_and_exits_with_3() -> None:
    off = f"hunks_off={CONTPTE_FIXED},pte_swp_mksoft_dirty"
    code, out, _ = hunks("search", "--a", f"hunks_off={CONTPTE_FIXED}", "--b", off)
    assert code == 3
    assert f"first: hunks_off={CONTPTE_FIXED}; second: {off}" in " ".join(out.split())
    assert "\nlost, after " in out
    assert "The second lacks pte_swp_mksoft_dirty" in out
    code, out, _ = hunks("search", "--a", f"hunks_off={CONTPTE_FIXED}", "--b", off, "--json")
    assert code == 3
    assert json.loads(out)["finding"]["kind"] == "lost"


def test_search_that_finds_nothing_exits_with_0() -> None:
    fixed = f"hunks_off={CONTPTE_FIXED}"
    code, out, _ = hunks("search", "--minutes", "0.01", "--a", fixed, "--b", f"{fixed} frames=4096")
    assert code == 0
    assert out.splitlines()[-1].startswith("no disagreement: ")


def test_search_passes_over_what_is_known(tmp_path: Path) -> None:
    anon = Vocabulary(VOCABULARY.verbs - {"mthp", "hugepage"}, frozenset({"anon-private"}))
    without = config_without("pte_modify")
    first = search(COMPLETE, without, vocabulary=anon, limit=100)
    assert first is not None
    known = {mark(first.finding.kind, first.ops)}
    progress = Progress()
    second = search(COMPLETE, without, vocabulary=anon, limit=300, known=known, progress=progress)
    assert second is not None
    assert mark(second.finding.kind, second.ops) not in known
    assert progress.known > 0


def test_search_command_takes_what_it_printed_as_known(tmp_path: Path) -> None:
    known = tmp_path / "known.jsonl"
    fixed = f"hunks_off={CONTPTE_FIXED}"
    arguments = ["--json", "--a", fixed, "--b", f"{fixed},pte_mkdirty"]
    first = hunks("search", *arguments)[1]
    known.write_text("\n" + first)
    told = json.loads(hunks("search", *arguments, "--known", known)[1])
    assert told["known"] > 0
    assert told["sequences"] > json.loads(first)["sequences"]


def test_known_are_the_same_harm_by_the_same_operations_wherever() -> None:
    one, two, other = (
        parse_script(text)
        for text in (
            "write 0 3 1; mprotect 0 0 1 r",
            "write 2 0 9; mprotect 1 1 1 r",
            "mprotect 0 0 1 rw",
        )
    )
    assert mark("lost", one) == mark("lost", two)
    assert mark("lost", one) != mark("endless", one)
    assert mark("lost", one) != mark("lost", other)


@pytest.mark.parametrize("text", ["lost", "{}", '{"finding": {"kind": "lost"}, "script": ["go"]}'])
def test_known_file_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text(text)
    code, out, err = hunks("search", "--known", file)
    assert (code, out) == (2, "")
    assert err == (
        f"predump: error: --known {file}, line 1: not what `hunks search --json` prints\n"
    )
    assert hunks("search", "--known", tmp_path / "none")[0] == 2


def test_search_finds_the_fault_of_the_patch_on_contiguous_blocks_without_being_told() -> None:
    """h74 of the recordings: a forced write into a contiguous block that is read-only.

    Held against itself, the whole patch hangs; against x86-64 its other face comes up first: where
    the block is clean, one write marks all of it.
    """
    for arguments, kind in (([], "lost"), (["--b", "frames=4096"], "endless")):
        code, out, _ = hunks("search", "--json", *arguments)
        assert code == 3
        told = json.loads(out)
        assert told["finding"]["kind"] == kind
        verbs = [line.split()[0] for line in told["script"]]
        assert verbs[-1] == "memwrite" and "mthp" in verbs and len(verbs) <= 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["explain", "pte_modfy"], "unknown hunk 'pte_modfy'; did you mean 'pte_modify'?"),
        (["matrix", "nothing"], "unknown hunk 'nothing'; did you mean "),
        (["search", "--a", "dbn=1"], "--a 'dbn=1': dbn: the model has no such setting; did you m"),
        (["search", "--b", "kernel=2.4"], "kernel profile '2.4': must be one of "),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str) -> None:
    code, out, err = hunks(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"predump: error: {line}")
    assert err.count("\n") == 1
