"""The shortest scenario that shows each hunk: searched once, then remembered.

They are found by `hunt` and written by nobody. A search for all hunks takes about a minute, so the
sequences are kept below the user's cache directory, in a file named after a digest of the sources
of model and search: whatever changes there is searched anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import mm_model
from livemigration.operations import INSIDE
from mm_model import VARIANTS, ModelConfig
from mm_model.hunks import hunk
from predump.conform.differential import Finding
from predump.conform.hunt import Shortest, search_kinds
from predump.conform.operations import Vocabulary, parse_script, script
from predump.conform.settings import HUNK_NEEDS

SEED: Final = 1
FRAMES: Final = 1 << 13


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


def _digest() -> str:
    digest = hashlib.sha256()
    for package in (Path(mm_model.__file__).parent, Path(__file__).parent):
        for source in sorted(package.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cache_file() -> Path:
    """Where the sequences are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "predump" / f"shortest-{_digest()}.json"


class ShortestScenarios:
    """Looks sequences up, or searches for them and remembers."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = cache_file() if file is None else file
        self._known = _load(self._file)
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
            on_search(name)
            found = search_kinds(
                config_without(),
                config_without(name),
                vocabulary=vocabulary_for(name, self.vocabulary),
                seed=SEED,
            )
            self._known[name] = found
            _store(self._file, self._known)
        return self._known[name]


def _load(file: Path) -> dict[str, dict[str, Shortest]]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {
            hunk: {kind: _shortest(record) for kind, record in kinds.items()}
            for hunk, kinds in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing there, or a file that was cut off: it is only a cache.
        return {}


def _shortest(record: Mapping[str, Any]) -> Shortest:
    return Shortest(
        finding=Finding(**record["finding"]),
        ops=parse_script("\n".join(record["script"])),
        tried=record["tried"],
        generated=record["generated"],
    )


def _store(file: Path, known: Mapping[str, Mapping[str, Shortest]]) -> None:
    stored = {
        hunk: {
            kind: {
                "finding": asdict(shortest.finding),
                "script": script(shortest.ops),
                "tried": shortest.tried,
                "generated": shortest.generated,
            }
            for kind, shortest in kinds.items()
        }
        for hunk, kinds in known.items()
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(stored), encoding="utf-8")
        new.replace(file)
    except OSError:
        return  # a read-only home: search again next time
