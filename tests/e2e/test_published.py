"""Published results: each figure is as near as it has to be, and the page says what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.published import FOLDER, PUBLISHED, Published, measure, table

PAGE = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8")


def test_every_anchor_is_measured() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {p.name for p in PUBLISHED}


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_a_published_result_comes_out(published: Published) -> None:
    figures = measure(published)
    far = [f"{f.case}, {f.what}: {100 * f.off:+.1f} %" for f in figures if not f.held]
    assert far == []
    # All but a known few are held, and to something that could fail.
    held = [figure for figure in figures if figure.within is not None]
    assert len(held) >= len(figures) - 1
    assert all(figure.within is not None and figure.within <= 0.14 for figure in held)
    assert table(published, figures) in PAGE
