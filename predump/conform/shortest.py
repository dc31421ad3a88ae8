"""The shortest scenario that shows each hunk, found by search and kept.

They are found by `hunt` and written by nobody: ``python -m predump.conform.shortest`` (`make
shortest`) searches for all hunks, which takes a minute or two, and writes ``shortest.json`` beside
this module. Who asks for one gets it from there after it was run once more: where the model no
longer shows what the file says, the hunk is searched anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from livemigration.operations import INSIDE
from mm_model import HUNKS, VARIANTS, ModelConfig
from mm_model.hunks import hunk
from predump.conform.differential import Finding, disagreements
from predump.conform.hunt import Shortest, search_kinds
from predump.conform.operations import Vocabulary, parse_script, script
from predump.conform.settings import HUNK_NEEDS

SEED: Final = 1
FRAMES: Final = 1 << 13
KEPT: Final = Path(__file__).with_name("shortest.json")


_MENDED: Final = "contpte-access-flags-fixed"
_MENDING: Final = "contpte-access-flags-"


def config_without(*names: str) -> ModelConfig:
    """The model that hunks are searched with, some of them off, and what these need.

    Where the model has contiguous blocks, the patch's own fault in them (on 6.12 a forced write
    never ends) is mended: else every hunk would show it. `predump hunks search` does not mend it.
    """
    off = set(names)
    settings: dict[str, Any] = {"frames": FRAMES, "swap_slots": FRAMES}
    for name in names:
        settings |= HUNK_NEEDS.get(name, {})
    known = {variant.name for variant in VARIANTS}
    if _MENDED in known and not any(name.startswith(_MENDING) for name in off):
        off.add(_MENDED)
    return ModelConfig(**settings, hunks_off=frozenset(off))


def vocabulary_for(name: str, complete: Vocabulary) -> Vocabulary:
    """What to search with for a hunk: hugetlb and moving pages only for those that are about them.

    The more themes there are, the rarer is each; most hunks cannot be felt by these at all.
    """
    place = hunk(name)
    if place.file.endswith("/hugetlbpage.c") or place.function.startswith("pmd_swp_"):
        return complete
    kinds = {kind for kind in complete.kinds if kind.startswith("hugetlb")}
    return complete.without(*kinds, *INSIDE & complete.verbs)


class ShortestScenarios:
    """Looks sequences up, and searches for those that are not there or no longer hold."""

    def __init__(self, file: Path | None = KEPT) -> None:
        """``file``: what an earlier search found; None: everything is searched."""
        self._kept = _load(file) if file is not None else {}
        self._known: dict[str, dict[str, Shortest]] = {}
        self._vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """What the complete model can do."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.of(config_without())
        return self._vocabulary

    def of(
        self, name: str, on_search: Callable[[str], None] = lambda name: None
    ) -> dict[str, Shortest]:
        """The shortest sequence for each kind of harm without a hunk; empty if none was found."""
        if name not in self._known:
            kept = self._kept.get(name)
            if kept is None or not _holds(name, kept):
                on_search(name)
                kept = search_kinds(
                    config_without(),
                    config_without(name),
                    vocabulary=vocabulary_for(name, self.vocabulary),
                    seed=SEED,
                )
            self._known[name] = kept
        return self._known[name]


def _holds(name: str, kept: Mapping[str, Shortest]) -> bool:
    """Whether the model still does what the sequences are kept for, where they say."""
    complete, without = config_without(), config_without(name)
    for kind, shortest in kept.items():
        found = disagreements(shortest.ops, complete, without, blame_reference=False)
        if found.get(kind) != shortest.finding:
            return False
    return True


def _load(file: Path) -> dict[str, dict[str, Shortest]]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {
            hunk: {kind: _shortest(record) for kind, record in kinds.items()}
            for hunk, kinds in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, or damaged: a search finds them again.
        return {}


def _shortest(record: Mapping[str, Any]) -> Shortest:
    return Shortest(
        finding=Finding(**record["finding"]),
        ops=parse_script("\n".join(record["script"])),
        tried=record["tried"],
        generated=record["generated"],
    )


def search_all(file: Path = KEPT) -> None:
    """Searches for every hunk and variant, and writes what was found; says so on stderr."""
    scenarios = ShortestScenarios(None)
    found = {
        each.name: {
            kind: {
                "finding": asdict(shortest.finding),
                "script": script(shortest.ops),
                "tried": shortest.tried,
                "generated": shortest.generated,
            }
            for kind, shortest in scenarios.of(each.name, _say).items()
        }
        for each in (*HUNKS, *VARIANTS)
    }
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _say(name: str) -> None:
    print(f"searching: {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    search_all()
