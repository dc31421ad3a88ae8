"""From runs to a report: the one way through, for the command and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from predump.report.bars import bars
from predump.report.curves import curves
from predump.report.figure import Figure
from predump.report.images import library, write_images
from predump.report.page import report_page
from predump.report.pages import pages
from predump.report.region import region
from predump.report.study import Study, study
from predump.runs import Run


class ReportError(ValueError):
    """A report that cannot be made; ``str()`` is one line for the user."""


def figures_of(sorted_out: Study) -> list[Figure]:
    """Every figure that these runs have something for."""
    return [
        *curves(sorted_out),
        *region(sorted_out),
        *bars(sorted_out),
        *pages(sorted_out),
    ]


def write_report(
    runs: Sequence[Run], page: Path | None, *, title: str, folder: Path | None = None
) -> list[Figure]:
    """Writes the HTML file `page` and the images in `folder`, where they are wanted.

    Returns the figures. Raises ReportError if no run has a result or a file cannot be written, and
    `images.NoConverter` if the package that draws them is missing.
    """
    sorted_out = study(runs)
    if not sorted_out.done:
        failed = sorted_out.failed[0].error if sorted_out.failed else "there are none"
        raise ReportError(f"no run has a result: {failed}")
    figures = figures_of(sorted_out)
    try:
        if page is not None:
            text = report_page(sorted_out, figures, title=title, library=library())
            page.write_text(text, encoding="utf-8")
        if folder is not None:
            write_images(figures, folder)
            captions = (f"## {f.name}\n\n{f.title}. {f.caption}\n" for f in figures)
            (folder / "captions.md").write_text("\n".join(captions), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return figures
