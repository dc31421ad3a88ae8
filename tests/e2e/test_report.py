"""A report as its reader has it: one file, opened in Chromium, by day, by night and on a phone."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from predump.sweep import ResultStore, run_sweep
from predump.sweep.execute import Cluster
from predump.sweep.grid import grid_from_mapping

FIGURES = {
    "downtime": 2,
    "total-time": 2,
    "bytes": 2,
    "convergence": 3,
    "rounds-time": 4,
    "rounds-bytes": 4,
    "downtime-parts": 4,
    "pages": 6,
}
"""Every figure and its number of panels, for the sweep below."""
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 900}}


@dataclass(frozen=True)
class Report:
    page: Path
    images: Path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a small sweep, made by the command."""
    folder = tmp_path_factory.mktemp("report")
    grid = grid_from_mapping(
        {
            "schema": "predump.sweep/1",
            "base": {
                "memory": "1MiB",
                "workload": {"kind": "hotspot", "rate": "500 pages/s"},
                "migration": {"run_after": "0s"},
                "record": {"pages": True, "bins": 32},
            },
            "axes": {
                "policy.kind": ["stop-and-copy", "fixed", "auto-converge"],
                "link.bandwidth": ["100Mbit/s", "1Gbit/s"],
                "workload.rate": ["500 pages/s", "50000 pages/s"],
                "seed": [1, 2],
            },
        }
    )
    with ResultStore(folder / "r.duckdb") as store, ThreadPoolExecutor(1) as thread:
        run_sweep(grid, store, Cluster(thread, 1))
    made = Report(folder / "report.html", folder / "figures")
    command = ["report", folder / "r.duckdb", "-o", made.page, "--figures", made.images]
    ended = subprocess.run(
        [sys.executable, "-m", "predump", *map(str, command), "--title", "Downtime & <rate>"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("24 runs, 8 figures in ")
    return made


@dataclass
class Opened:
    """A page that was opened, and whatever it complained of or asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def open_page(chromium: Browser, file: Path, **options: Any) -> Opened:
    page = chromium.new_context(**options).new_page()
    opened = Opened(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.on("pageerror", lambda error: opened.said.append(str(error)))
    page.on("request", lambda request: opened.asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    return opened


def luminance(rgb: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", rgb)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def fills(page: Page, what: str) -> list[str]:
    """The colours that elements are filled with."""
    found: list[str] = page.evaluate(
        "what => [...document.querySelectorAll(what)].map(e => getComputedStyle(e).fill)", what
    )
    return found


def assert_all_stands_out(page: Page) -> None:
    """Words and points against the ground (WCAG 2.2, 1.4.3 and 1.4.11)."""
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    words = fills(page, "#downtime svg text")
    assert words and all(contrast(word, ground) >= 4.5 for word in words)
    points = set(fills(page, "#downtime .mark-symbol path"))
    assert len(points) == 3
    assert all(contrast(point, ground) >= 3 for point in points)


@pytest.mark.parametrize(
    "options",
    [DESK, DESK | {"color_scheme": "dark"}, PHONE],
    ids=["light", "dark", "phone"],
)
def test_all_figures_render_without_a_word_and_without_a_network(
    chromium: Browser, report: Report, options: dict[str, Any]
) -> None:
    opened = open_page(chromium, report.page, **options)
    page = opened.page
    for name, panels in FIGURES.items():
        plots = page.locator(f"figure#{name} .plot")
        assert plots.count() == panels, name
        for plot in plots.all():
            # What Vega draws for data: more than an empty frame, with a size, with words.
            drawn = plot.locator("svg .mark-symbol path, svg .mark-rect path, svg .mark-line path")
            assert drawn.count() > 0, name
            box = plot.locator("svg.marks").bounding_box()
            assert box is not None and box["width"] > 200 and box["height"] > 60, name
            words = plot.locator("svg text").all_text_contents()
            assert len([word for word in words if word.strip()]) >= 3, name
            assert not [word for word in words if re.search("NaN|undefined|null", word)], name
    assert page.locator("figure").count() == len(FIGURES)
    assert opened.said == []
    assert opened.asked == [report.page.as_uri()]
    width = options["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == "Downtime & <rate>"
    assert_all_stands_out(page)
    page.context.close()


def test_a_reader_picks_one_series_and_changes_the_theme(chromium: Browser, report: Report) -> None:
    opened = open_page(chromium, report.page, **DESK, color_scheme="light")
    page = opened.page

    def opacities() -> set[str]:
        found = page.evaluate(
            "[...document.querySelectorAll('#bytes .mark-symbol path')]"
            ".map(e => e.getAttribute('opacity'))"
        )
        return {str(value) for value in found}

    assert opacities() == {"1"}
    button = page.locator("#bytes .keys button", has_text="fixed")
    button.click()
    page.wait_for_function(
        "document.querySelectorAll('#bytes .mark-symbol path[opacity=\"0.12\"]').length"
    )
    assert opacities() == {"1", "0.12"}
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    page.mouse.move(0, 0)
    page.wait_for_function(
        "!document.querySelectorAll('#bytes .mark-symbol path[opacity=\"0.12\"]').length"
    )
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.wait_for_function("[...document.querySelectorAll('#bytes svg text')].length > 3")
    assert opened.said == []
    page.context.close()


def test_without_scripts_the_table_of_runs_is_there(chromium: Browser, report: Report) -> None:
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(report.page.as_uri())
    assert page.locator("table tbody tr").count() == 24
    page.context.close()


def test_the_same_figures_are_images(report: Report) -> None:
    assert {path.name for path in report.images.iterdir()} == {
        *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
        "captions.md",
    }
    for name, panels in FIGURES.items():
        svg = ET.parse(report.images / f"{name}.svg").getroot()
        space = "{http://www.w3.org/2000/svg}"
        assert svg.tag == f"{space}svg"
        texts = [node.text or "" for node in svg.iter(f"{space}text")]
        assert len(texts) > 3 * panels
        assert not [text for text in texts if re.search("NaN|undefined|null", text)]
        png = (report.images / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        assert width > 1500 and height > 500
    captions = (report.images / "captions.md").read_text()
    assert all(f"## {name}\n" in captions for name in FIGURES)
