"""The dashboard as its reader has it: in Chromium, by keyboard, by night and on a phone."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page

from predump.dashboard.guard import TOKEN_HEADER
from predump.result import Result
from predump.sweep import ResultStore, run_sweep
from predump.sweep.execute import Cluster
from predump.sweep.grid import grid_from_mapping

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 900}}
SOON_MS = 60_000

SCENARIO = """
schema = "predump.scenario/1"
name = "slow"
clock = "wall"
memory = "24MiB"
[workload]
kind = "hotspot"
rate = "1500 pages/s"
[policy]
kind = "fixed"
rounds = 2
[link]
bandwidth = "100Mbit/s"
[migration]
run_after = "50ms"
"""


@dataclass(frozen=True)
class Serving:
    """A dashboard with nodes of its own."""

    address: str  # HOST:PORT
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request("POST" if body is not None else "GET", path, body, headers or {})
        answer = connection.getresponse()
        told = answer.read().decode()
        connection.close()
        return answer.status, told


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("dashboard")
    scenarios = folder / "scenarios"
    scenarios.mkdir()
    (scenarios / "slow.toml").write_text(SCENARIO)
    workload = {"kind": "uniform", "rate": "500 pages/s"}
    base = {"memory": "1MiB", "workload": workload, "migration": {"run_after": "0s"}}
    axes = {"policy.kind": ["stop-and-copy", "fixed"]}
    grid = grid_from_mapping({"schema": "predump.sweep/1", "base": base, "axes": axes})
    with ResultStore(folder / "two.duckdb") as store, ThreadPoolExecutor(1) as thread:
        run_sweep(grid, store, Cluster(thread, 1))
    port_file, log = folder / "address", folder / "log"
    command = ["dashboard", "--listen", "127.0.0.1:0", "--port-file", port_file]
    command += ["--scenarios", scenarios, "--results", folder / "two.duckdb"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "predump", *map(str, command)], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 240
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Serving(port_file.read_text().strip(), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not port_file.exists()
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()


@dataclass
class Opened:
    """The page, and whatever it complained of or asked for elsewhere."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def start(self, **fields: str) -> None:
        """Starts a migration with the form."""
        self.page.locator("#new").click()
        form = self.page.locator("#start-form")
        form.locator("[name=scenario]").select_option(fields.pop("scenario", "slow.toml"))
        for name, value in fields.items():
            there = form.locator(f"[name='{name}']")
            if there.evaluate("e => e.tagName") == "SELECT":
                there.select_option(value)
            else:
                there.fill(value)
        self.page.locator("#go").click()
        self.page.locator("#start").wait_for(state="hidden", timeout=SOON_MS)

    def until(self, selector: str, text: str | re.Pattern[str] | None = None) -> Locator:
        """Waits for an element that is seen, with a text."""
        found = self.page.locator(selector)
        if text is not None:
            found = found.filter(has_text=text)
        found.first.wait_for(timeout=SOON_MS)
        return found.first


@pytest.fixture
def opened(chromium: Browser, serving: Serving) -> Iterator[Opened]:
    there = open_page(chromium, serving, **DESK)
    yield there
    assert there.said == []
    assert {url for url in there.asked if not url.startswith(serving.url)} == set()
    there.page.context.close()


def open_page(chromium: Browser, serving: Serving, **options: Any) -> Opened:
    page = chromium.new_context(**options).new_page()
    opened = Opened(page)
    page.on("console", lambda message: opened.said.append(message.text))
    page.on("pageerror", lambda error: opened.said.append(str(error)))
    page.on("request", lambda request: opened.asked.append(request.url))
    page.goto(serving.url)
    page.wait_for_selector("html[data-ready]", timeout=SOON_MS)
    return opened


def contrast(page: Page, selector: str) -> float:
    """Of an element's text against the ground (WCAG 2.2)."""
    colors: list[str] = page.evaluate(
        "s => [getComputedStyle(document.querySelector(s)).color,"
        " getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    light = []
    for color in colors:
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        light.append(0.2126 * r + 0.7152 * g + 0.0722 * b)
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_migration_is_started_by_keyboard_and_watched_until_it_is_verified(
    opened: Opened,
) -> None:
    page = opened.page
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "new":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.name") == "scenario"
    page.keyboard.type("slow")
    page.keyboard.press("Tab")
    page.keyboard.type("16MiB")
    page.keyboard.press("Enter")
    page.locator("#start").wait_for(state="hidden", timeout=SOON_MS)

    chip = page.locator("#chip")
    counters, pictures = set(), set()
    deadline = time.monotonic() + 60
    while chip.text_content() != "verified":
        assert time.monotonic() < deadline
        counters.add(page.locator("#map-keys").text_content())
        if page.locator("#map canvas").count():
            pictures.add(page.locator("#map canvas").first.evaluate("c => c.toDataURL()"))
        page.wait_for_timeout(100)
    # Not once, at the end: numbers and squares changed while pages went over.
    assert len(counters) >= 4 and len(pictures) >= 4

    assert page.locator("#rounds .round").count() == 4  # 0, 1, 2 and the final one
    assert page.locator("#rounds .reason").all_text_contents()[-1] == "final round, frozen"
    assert page.locator("#rates svg path.line").count() == 2
    assert "from the freeze to runnable" in (page.locator("#downtime").text_content() or "")
    assert page.locator("#lost-card").is_hidden()
    assert page.locator("#acts").is_hidden()

    page.locator("#map canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    cell = page.locator("#map-said").text_content() or ""
    assert re.match(r"0x1000004000–0x1000008000: \d sent, 0 pending, 0 soft-dirty of 4 pages", cell)


def test_a_lost_page_is_listed_with_its_address(opened: Opened, serving: Serving) -> None:
    hunk = {"hunks.off": "ptep_set_access_flags", "memory": "2MiB"}
    opened.start(scenario="demo", more="workload.rate=2000 pages/s", **hunk)
    opened.until("#chip", "differs")
    listed = [
        re.split(r"\s+", row.inner_text().strip())
        for row in opened.until("#lost tbody").locator("tr").all()
    ]
    newest = json.loads(serving.ask("/api/runs")[1])["runs"][0]["key"]
    result = json.loads(serving.ask(f"/api/runs/{newest}")[1])["result"]
    assert result["pages_different"] > 0 and result["hunks_off"] == ["ptep_set_access_flags"]
    wanted = [
        [
            str(m["pid"]),
            m["start"],
            f"{int(m['start'], 16) + 4096 * m['pages'] - 1:#x}",
            str(m["pages"]),
            str(m["last_round"]),
        ]
        for m in result["mismatches"][:200]
    ]
    assert listed == wanted
    assert f"{result['pages_different']:,} pages differ" in (
        opened.page.locator("#lost-note").text_content() or ""
    )
    assert opened.page.locator("#downtime-card").is_hidden()  # the task never went over


def test_a_migration_gets_another_policy_and_another_one_is_aborted(opened: Opened) -> None:
    page = opened.page
    endless = {"policy.kind": "fixed", "memory": "8MiB", "more": "policy.rounds=900"}
    opened.start(**endless)
    opened.until("#rounds .round")
    page.locator("#policy").select_option("stop-and-copy")
    page.get_by_role("button", name="Change").click()
    opened.until("#chip", "verified")
    opened.until("#rounds .reason", "policy changed to stop-and-copy: ")

    opened.start(**endless)
    opened.until("#rounds .round")
    page.get_by_role("button", name="Abort").click()
    opened.until("#message.bad", "aborted: on request; the source kept the task and resumed it")
    opened.until("#chip.bad", "aborted")
    page.locator("#to-finished").click()
    opened.until("#runs tbody tr", "aborted: on request")


def test_what_cannot_be_started_is_said_in_the_form(opened: Opened) -> None:
    page = opened.page
    page.locator("#new").click()
    page.locator("[name=memory]").fill("lots")
    page.locator("#go").click()
    line = opened.until("#start-trouble").text_content() or ""
    assert line.startswith("memory=lots: ") and "\n" not in line
    opened.said.clear()  # the browser itself notes the status 400
    page.keyboard.press("Escape")
    assert page.locator("#start").is_hidden()


@pytest.mark.parametrize(
    "options", [DESK, DESK | {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_two_finished_runs_side_by_side(
    chromium: Browser, serving: Serving, options: dict[str, Any]
) -> None:
    opened = open_page(chromium, serving, **options)
    page = opened.page
    page.locator("#to-finished").click()
    page.locator("#find").fill("two.duckdb")
    opened.until("#runs tbody tr")
    assert page.locator("#runs tbody tr").count() == 2
    for name in ("stop-and-copy", "fixed"):
        page.get_by_role("button", name=name).click()
    opened.until("#compared .sides > :nth-child(2)")
    table = page.locator("#compared table").inner_text()
    assert re.search(r"policy\.kind\s+stop-and-copy\s+fixed", table)
    assert re.search(r"rounds\s+1\s+\d", table)
    assert page.locator("#compared .sides > *").count() == 2
    # What is on show has an address, and each result is there as it was written.
    assert re.search(r"#finished/0-\d,0-\d$", page.url)
    page.reload()
    opened.until("#compared .sides > :nth-child(2)")
    with page.expect_download() as download:
        page.get_by_role("link", name="Result of B as JSON").click()
    result = Result.model_validate_json(Path(download.value.path()).read_text())
    assert result.policy.kind == "fixed"
    page.locator("#runs thead button", has_text="downtime").click()
    page.locator("#runs thead button", has_text="downtime").click()
    sorted_by = page.locator("#runs th[aria-sort=descending]")
    assert (sorted_by.text_content() or "").startswith("downtime")
    downtimes = [run["downtime_s"] for run in json.loads(serving.ask("/api/runs")[1])["runs"]]
    shown = page.locator("#runs tbody tr td:nth-child(4)").all_text_contents()
    assert shown[0] == f"{max(d for d in downtimes if d is not None) * 1000:.3g}\u00a0ms"
    width = options["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".note", "h2", "#compared .reason", "td.good"):
        assert contrast(page, selector) >= 4.5, selector
    page.locator("#to-live").click()
    opened.until(":is(#detail, #none):visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert contrast(page, "#facts") >= 4.5
    assert opened.said == []
    page.context.close()


def test_other_pages_and_other_names_are_refused(serving: Serving) -> None:
    body = json.dumps({"scenario": "demo"}).encode()
    (token,) = re.findall(r'name="token" content="([^"]+)"', serving.ask("/")[1])
    for headers in (
        {},
        {TOKEN_HEADER: "guessed"},
        {TOKEN_HEADER: token, "Origin": "http://evil.example"},
    ):
        for path in ("/api/start", "/api/abort", "/api/policy"):
            status, told = serving.ask(path, body, headers)
            assert (status, json.loads(told)) == (
                403,
                {"error": "not from the dashboard's own page: load it again"},
            )
    assert serving.ask("/", headers={"Host": "evil.example"})[0] == 421
    for path in ("/api/events", "/api/runs", "/api/results/0-0.json"):
        assert serving.ask(path, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert serving.ask("/api/runs/..%2F..%2Fetc%2Fpasswd")[0] == 404
    assert serving.ask("/../serve.py")[0] == 404
    ours = {TOKEN_HEADER: token}
    for bad, why in (
        (b"{", "the request is not JSON"),
        (b"[]", "the request is not a JSON object"),
        (b'{"scenario": "../../etc/passwd"}', "there is no scenario '../../etc/passwd'"),
        (b'{"scenario": "demo", "settings": [7]}', "settings must be a list of texts KEY=VALUE"),
        (b" " * 70_000, "the request is longer than 65536 bytes"),
    ):
        status, told = serving.ask("/api/start", bad, ours)
        assert (status, json.loads(told)) == (400, {"error": why})


def test_it_ends_in_good_order_while_a_page_is_open_and_others_only_look(tmp_path: Path) -> None:
    port_file = tmp_path / "address"
    command = ["dashboard", "--listen", "0.0.0.0:0", "--port-file", str(port_file)]
    command += ["--mqtt", "mqtt://127.0.0.1:9"]  # the discard port: no broker
    process = subprocess.Popen(
        [sys.executable, "-m", "predump", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        there = Serving(f"127.0.0.1:{port_file.read_text().strip().rpartition(':')[2]}", process)
        assert json.loads(there.ask("/api/about")[1])["control"] is False
        (token,) = re.findall(r'name="token" content="([^"]+)"', there.ask("/")[1])
        status, told = there.ask("/api/start", b'{"scenario": "demo"}', {TOKEN_HEADER: token})
        assert (status, json.loads(told)["error"]) == (403, "this dashboard only looks on")
        connection = http.client.HTTPConnection(there.address, timeout=30)
        connection.request("GET", "/api/events")
        stream = connection.getresponse()
        while b"no connection to the broker" not in stream.readline():
            pass
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert (process.returncode, err) == (0, b"")
        assert out.startswith(b"predump dashboard listening on http://0.0.0.0:")
        stream.read()  # to its proper end: otherwise it would be incomplete
        connection.close()
    finally:
        process.kill()
