"""A user's own policy through real nodes: run where it was allowed, refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.node import SCENARIO, node, predump

MODULE = """
from livemigration.policy import Decision

class Twice:
    def __init__(self, word):
        self.word = word
    def decide(self, view):
        return Decision(view.round >= 1, f"{self.word} {view.pages_written}")
"""
POLICY = '[policy]\nkind = "mine:Twice"\nword = "sent"\n'


def test_a_source_runs_policies_from_the_folder_that_it_was_given_and_no_others(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(MODULE)
    scenario = folder / "own.toml"
    scenario.write_text(SCENARIO.replace('[policy]\nkind = "fixed"\nrounds = 1\n', POLICY))
    with (
        node("source", tmp_path, "--policies", folder) as willing,
        node("source", tmp_path) as unwilling,
        node("dest", tmp_path) as dest,
    ):

        def migrate(source: str, name: str) -> tuple[int, str]:
            ended = predump(
                *("migrate", "--source", source, "--dest", dest.address),
                *("--scenario", scenario, "--json", tmp_path / name),
            )
            return ended.status, ended.err

        status, said = migrate(willing.address, "result.json")
        assert status == 0, said
        status, said = migrate(unwilling.address, "none.json")
        assert status == 1
        assert "runs no policies of its callers; start it with --policies FOLDER" in said
        # The refusal left no task behind: another migration may begin.
        plain = tmp_path / "plain.toml"
        plain.write_text(SCENARIO)
        ended = predump(
            *("migrate", "--source", unwilling.address, "--dest", dest.address),
            *("--scenario", plain),
        )
        assert ended.status == 0, ended.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert [entry["reason"] for entry in result["rounds"]] == [
        "sent 512", f"sent {result['rounds'][1]['pages_sent']}", "final round, frozen",
    ]  # fmt: skip
