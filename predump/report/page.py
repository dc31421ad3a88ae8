"""A report as one HTML file: figures, the Vega libraries that draw them, and tables of the runs.

Nothing is fetched when it is opened. Plots are drawn by the browser, at the width that there is and
in the reader's light or dark theme; without scripts the tables are still there.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from predump.report.figure import Figure, Key
from predump.report.quantities import mebibytes, quantity, seconds, shown
from predump.report.study import Done, Study
from predump.report.theme import DARK, LIGHT, SCREEN, Theme, config

MOST_ROWS = 2000
"""Runs in the table; result files have all."""


def report_page(study: Study, figures: Sequence[Figure], *, title: str, library: str) -> str:
    """The HTML text. `library`: JavaScript that defines ``vegaEmbed``."""
    here = files("predump.report")
    themes = {"light": config(LIGHT, SCREEN), "dark": config(DARK, SCREEN)}
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        font=SCREEN,
        light=_variables(LIGHT),
        dark=_variables(DARK),
        lead=_lead(study),
        figures="\n".join(_figure(number, figure) for number, figure in enumerate(figures, 1)),
        tables="\n".join(_tables(study)),
        library=library.replace("</script", "<\\/script"),
        themes=_json(themes),
        script=here.joinpath("page.js").read_text("utf-8"),
    )


def _variables(theme: Theme) -> str:
    plain = {
        "text": theme.text,
        "muted": theme.muted,
        "grid": theme.grid,
        "ground": theme.ground,
    }
    series = {f"series-{number}": color for number, color in enumerate(theme.series)}
    return " ".join(f"--{name}: {value};" for name, value in (plain | series).items())


def _json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _lead(study: Study) -> str:
    varied = ", ".join(
        f"{len(values)} values of <code>{html.escape(key)}</code>"
        for key, values in study.varying.items()
    )
    lines = [
        f"{len(study.done):,} migrations"
        + (f": {varied}" if varied else "")
        + (f"; {len(study.failed):,} failed" if study.failed else "")
        + "."
    ]
    fixed = [
        f"{name} {_fixed(study, key)}"
        for key, name in (
            ("memory", ""),
            ("page_size", "pages of"),
            ("workload.kind", "workload"),
            ("workload.rate", ""),
            ("policy.kind", "policy"),
            ("link.bandwidth", "link"),
            ("link.latency", "latency"),
            ("clock", "clock"),
        )
        if key in study.fixed
    ]
    if fixed:
        lines.append(f"The same in all: {html.escape(', '.join(fixed))}.")
    versions = {d.result.versions.get("predump", "?") for d in study.done}
    clocks = {d.result.clock for d in study.done}
    times = " and ".join("simulated" if c == "virtual" else "measured" for c in sorted(clocks))
    made_with = html.escape(", ".join(sorted(versions)))
    lines.append(f"Times are {times or 'unknown'}. Run with Predump {made_with}.")
    return "\n".join(f'<p class="lead">{line}</p>' for line in lines)


def _fixed(study: Study, key: str) -> str:
    value = study.fixed[key]
    found = quantity(key, value)
    return shown(*found) if found is not None else str(value)


def _figure(number: int, figure: Figure) -> str:
    panels = "\n".join(
        f'<div class="panel">{f"<h3>{html.escape(panel.title)}</h3>" if panel.title else ""}'
        f'<script type="application/json">{_json(panel.spec)}</script>'
        f'<div class="plot" role="img" data-name="{figure.name}-{index}" '
        f'aria-label="{html.escape(f"{figure.title} {panel.title}".strip())}"></div></div>'
        for index, panel in enumerate(figure.panels, 1)
    )
    keys = "".join(f"<li>{_key(key)}</li>" for key in figure.keys)
    legend = f'<ul class="keys">{keys}</ul>' if keys else ""
    if figure.ramp is not None:
        labels = "".join(f"<span>{html.escape(label)}</span>" for label in figure.ramp.labels)
        legend += (
            f'<div class="ramp"><span>{html.escape(figure.ramp.title)}</span>'
            f"<i></i><div>{labels}</div></div>"
        )
    return (
        f'<figure id="{figure.name}">\n<h2>{number}. {html.escape(figure.title)}</h2>\n'
        f'<div class="panels">\n{panels}\n</div>\n{legend}\n'
        f"<figcaption>{html.escape(figure.caption)}</figcaption>\n</figure>"
    )


def _key(key: Key) -> str:
    color = f"var(--series-{key.color % 8})" if isinstance(key.color, int) else key.color
    if color == "text":
        color = "var(--text)"
    inner = f"{_mark(key.shape, color)}{html.escape(key.label)}"
    if not key.series:
        return f'<span class="key">{inner}</span>'
    name = html.escape(key.label, quote=True)
    return f'<button type="button" aria-pressed="false" data-series="{name}">{inner}</button>'


_MARKS = {
    "circle": '<circle cx="11" cy="7" r="4.2"/>',
    "square": '<rect x="7" y="3" width="8" height="8"/>',
    "triangle-up": '<path d="M11 2.2 15.6 11H6.4z"/>',
    "diamond": '<path d="M11 1.6 15 7 11 12.4 7 7z"/>',
    "cross": '<path d="M9.4 2.6h3.2v2.8h2.8v3.2h-2.8v2.8H9.4V8.600H6.600V5.400H9.4z"/>',
    "triangle-down": '<path d="M11 11.8 6.4 3h9.200z"/>',
    "triangle-right": '<path d="M15.6 7 7 11.600V2.400z"/>',
    "x": '<path d="M7 3l8 8M15 3l-8 8" stroke="{color}" stroke-width="1.75"/>',
    "bar": '<rect x="4" y="2" width="14" height="10"/>',
}


def _mark(shape: str, color: str) -> str:
    if shape == "dashes":
        line = '<path d="M1 7h20" fill="none" stroke-width="1.5" stroke-dasharray="5 4"'
        inner = f'{line} stroke="{color}"/>'
    else:
        inner = f'<g fill="{color}">{_MARKS[shape].replace("{color}", color)}</g>'
    return f'<svg viewBox="0 0 22 14" aria-hidden="true">{inner}</svg>'


def _tables(study: Study) -> Iterable[str]:
    keys = [key for key in study.varying if key != "policy.kind"]
    words = ["policy", *keys]
    numbers = ["downtime", "total time", "sent", "rounds", "pages lost", "verified"]
    rows = [_row(done, keys) for done in study.done[:MOST_ROWS]]
    left = len(study.done) - len(rows)
    yield (
        f"<details><summary>All {len(study.done):,} runs</summary>"
        f"{_table(words, numbers, rows)}"
        + (f'<p class="note">{left:,} more are in the result file.</p>' if left else "")
        + "</details>"
    )
    if study.failed:
        rows = [[html.escape(run.origin), html.escape(run.error)] for run in study.failed]
        yield (
            f"<details><summary>{len(rows):,} runs that failed</summary>"
            f"{_table(['run', 'reason'], [], rows)}</details>"
        )


def _row(done: Done, keys: Sequence[str]) -> list[str]:
    result = done.result
    settings = [str(done.run.settings.get(key, "")) for key in keys]
    figures = [
        seconds(result.downtime_s.total),
        seconds(result.total_time_s),
        mebibytes(result.bytes_wire),
        str(len(result.rounds)),
        f"{result.pages_lost:,}",
        "yes" if result.verified else "no",
    ]
    return [html.escape(text) for text in (result.policy.kind, *settings, *figures)]


def _table(words: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th class="word">{html.escape(w)}</th>' for w in words)
    head += "".join(f"<th>{html.escape(n)}</th>" for n in numbers)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="word">{cell}</td>' if k < len(words) else f"<td>{cell}</td>"
            for k, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
