"""The dashboard's page in Chromium, before a board that is told whatever a test wants.

The page is served as `predump dashboard` serves it, in a thread of the test; migrations are
invented, so that states that are rare, hostile or large can be looked at in a moment.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from livemigration.telemetry.messages import Topics, encode
from predump.dashboard.board import LiveBoard
from predump.dashboard.feed import FeedState
from predump.dashboard.finished import Finished
from predump.dashboard.guard import Guard
from predump.dashboard.web import Dashboard, application

SOON_MS = 30_000
BASE = 0x7F00_0000_0000
LONG = "a-long-id-" + "0123456789abcdef" * 6


class Stage:
    """A dashboard that can be told things, lost and found again."""

    def __init__(self) -> None:
        self.board = LiveBoard(Topics())
        self.feed = FeedState("MQTT")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self._ending = False
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Serves, at the same port as before."""
        self._listening = listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen()
        self.port, self._ending = listening.getsockname()[1], False
        dashboard = Dashboard(
            self.board, self.feed, Finished(), None, Guard(), ending=lambda: self._ending
        )
        config = uvicorn.Config(
            application(dashboard), log_level="error", lifespan="off", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = self._server._serve([listening])
        self._serving = asyncio.run_coroutine_threadsafe(serving, self._loop)

    def stop(self) -> None:
        """Is gone, with every connection."""
        self._ending = self._server.should_exit = True
        self._serving.result(30)
        self._listening.close()

    def do(self, call: Callable[[], Any]) -> None:
        """In the loop that the board belongs to."""

        async def done() -> None:
            call()
            self.board.touch()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    def tell(self, kind: Any, migration_id: str, /, **fields: Any) -> None:
        topic = Topics().of(kind, migration_id, "source")
        self.raw(topic, encode(fields))

    def raw(self, topic: str, payload: bytes) -> None:
        self.do(lambda: self.board.apply(topic, payload, retained=True))

    def begin(self, migration_id: str, **fields: Any) -> None:
        """A migration in its first round, of a task of 64 MiB."""
        usual = {"state": "round", "owner": "source", "host": "alpha", "name": "of-a-test"}
        usual |= {"policy": "fixed", "workload": "zipf", "memory_bytes": 2**26, "page_size": 4096}
        usual |= {"started": time.time(), "time": time.time(), "message": "round 0"}
        self.tell("state", migration_id, **{**usual, **fields})

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def page(chromium: Browser, stage: Stage) -> Iterator[Page]:
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    yield page
    page.context.close()
    # That the server is away is Chromium's to say; all else would be a fault of the page.
    assert [line for line in said if "ERR_CONNECTION_REFUSED" not in line] == []


def vma(start: int, cells: int, cell: int, share: float = 0.5, **more: Any) -> dict[str, Any]:
    pages = cell // 4096
    sent = [int(pages * share)] * cells
    return {
        "pid": 1, "start": f"{start:#x}", "end": f"{start + cells * cell:#x}", "name": "",
        "prot": 3, "flags": 34, "sent": sent, "pending": [pages - n for n in sent],
        "soft_dirty": [pages // 4] * cells, **more,
    }  # fmt: skip


def page_map(vmas: list[dict[str, Any]], cell: int, **more: Any) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(sum(v[name]) for v in vmas)

    return {
        "round": 0, "final": False, "over": False, "at_s": 1.0, "bytes_wire": 2**20,
        "page_size": 4096, "cell_bytes": cell, "vmas_left_out": 0, "vmas": vmas,
        "pages_soft_dirty": total("soft_dirty"), "pages_sent": total("sent"),
        "pages_pending": total("pending"), **more,
    }  # fmt: skip


def opened(page: Page, stage: Stage, address: str = "") -> None:
    page.goto(stage.url + address)
    page.wait_for_selector("html[data-ready]", timeout=SOON_MS)


def until(page: Page, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).first.wait_for(timeout=SOON_MS)


def test_what_strangers_publish_is_text_and_harms_nothing(page: Page, stage: Stage) -> None:
    evil = "<img src=x onerror=alert(1)>"
    stage.begin(evil, name=f"{evil}\u202e{'n' * 5000}", message=evil, host=evil, workload=evil)
    stage.tell("round", evil, round=0, pages_sent=2**62, bytes_wire=2**62, duration_s=1e-300,
               pages_written=float("nan"), pages_zero={"a": [evil] * 9}, reason=evil)  # fmt: skip
    stage.tell("pages", evil, **page_map([vma(BASE, 4, 2**20, name=evil)], 2**20))
    stage.tell("event", evil, kind=evil, message=evil)
    stage.raw(f"predump/v1/{'x' * 5000}/source/state", encode({"state": "round"}))
    stage.raw(Topics().of("state", "big", "source"), encode({"state": "s", "x": "y" * 300_000}))
    stage.raw(Topics().of("state", "none", "source"), b"\xff\x00")
    opened(page, stage)
    until(page, "#id", evil)
    until(page, "#message", evil)
    until(page, "#map", evil)
    until(page, "#rounds .reason", evil)
    assert page.locator("img").count() == 0
    assert len(page.locator("#title").text_content() or "") <= 60
    until(page, "#feed", "3 malformed messages")
    page.locator("#list a").first.click()  # a name like that is an address as well
    page.reload()
    until(page, "#id", evil)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_at_once_stay_where_they_are_while_both_change(page: Page, stage: Stage) -> None:
    now = time.time()
    stage.begin("older", name="older", started=now - 10)
    stage.begin("newer", name="newer", started=now - 5)
    opened(page, stage)
    until(page, "#title", "newer")

    def names() -> list[str]:
        return page.locator("#list b").all_text_contents()

    for number in range(6):
        which = ("older", "newer")[number % 2]
        stage.tell("round", which, round=number, pages_sent=1, bytes_wire=1, duration_s=1)
        page.wait_for_timeout(120)
        assert names() == ["newer", "older"]
        assert page.locator("#title").text_content() == "newer"

    # A click takes a while; its row must be the same one when the button comes up again.
    box = page.locator("#list a", has_text="older").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    for number in range(6, 9):
        stage.tell("round", "older", round=number, pages_sent=number, bytes_wire=9, duration_s=1)
        page.wait_for_timeout(250)
    page.mouse.up()
    until(page, "#title", "older")
    assert page.url.endswith("#live/older")
    stage.begin("newest", name="newest", started=now)
    until(page, "#list b", "newest")
    assert page.locator("#title").text_content() == "older"  # it was chosen
    page.go_back()
    until(page, "#title", "newest")


def test_a_selected_address_outlives_new_figures(page: Page, stage: Stage) -> None:
    stage.begin("m")
    stage.tell("pages", "m", **page_map([vma(BASE, 30, 2**20, 0.1)], 2**20))
    opened(page, stage)
    address = page.locator("#map code")
    address.wait_for(timeout=SOON_MS)
    address.dblclick()
    chosen = page.evaluate("getSelection().toString()")
    assert chosen.startswith(f"{BASE:#x}"[:6])
    stage.tell("pages", "m", **page_map([vma(BASE, 30, 2**20, 0.9)], 2**20, at_s=2.0))
    until(page, "#map-keys", "6,900")
    assert page.evaluate("getSelection().toString()") == chosen


def test_a_square_is_pinned_copied_and_left_by_keyboard(page: Page, stage: Stage) -> None:
    stage.begin("m")
    cell = 2**16
    vmas = [vma(BASE + k * 2**28, 1 + k % 3, cell, name=f"[{k}]") for k in range(60)]
    stage.tell("pages", "m", **page_map(vmas, cell))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, stage)
    page.locator("#map canvas").nth(59).wait_for(timeout=SOON_MS)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    for _ in range(45):
        page.keyboard.press("PageDown")
    said = page.locator("#map-said")
    start = BASE + 45 * 2**28
    wanted = f"{start:#x}–{start + cell:#x}: 8 sent, 8 pending, 4 soft-dirty of 16 pages"
    assert said.text_content() == wanted
    focused = page.evaluate(
        "(() => { const b = document.activeElement.getBoundingClientRect();"
        " const m = document.getElementById('map').getBoundingClientRect();"
        " return [document.activeElement.getAttribute('aria-label'), b.top >= m.top,"
        "  b.bottom <= m.bottom + 1, b.bottom <= innerHeight] })()"
    )
    assert focused[0].startswith(f"{start:#x}") and focused[1:] == [True, True, True]
    page.locator("#map-copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == f"{start:#x}-{start + cell:#x}"
    until(page, "#copied", "Copied")
    page.locator("#map canvas").nth(45).focus()
    page.keyboard.press("Escape")
    assert (said.text_content() or "").startswith("A square is filled")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"  # one stop for all of it


def test_pages_that_come_later_are_seen_coming(page: Page, stage: Stage) -> None:
    stage.begin("m", state="serve", owner="destination", policy="post-copy", message="5 pages come")
    half = page_map(
        [vma(BASE, 4, 2**20, 0.25)], 2**20, final=True, serving=True, bytes_wire=5 * 2**20
    )
    stage.tell("pages", "m", **half)
    opened(page, stage)
    until(page, "#chip", "pages come later")
    until(page, "#meaning", "waits there for pages that have not come yet")
    until(page, "#map-keys", "not there yet768")
    until(page, "#facts", "the destination")
    assert page.locator("#acts").is_hidden()
    later = {"pages_lazy": 1024, "faults": 7, "faults_remote": 3, "pages_prefetched": 1000,
             "stalled_s": 0.5, "longest_stall_s": 0.2, "residual_s": 2.0,
             "bytes_wire": 2**22}  # fmt: skip
    stage.begin("m", state="done", owner="destination", verified=True, post_copy=later,
                downtime_s=0.02, downtime_parts_s={"freeze": 0.02}, total_time_s=2.5)  # fmt: skip
    until(page, "#later", "7 times, 500 ms in all, 200 ms at most")
    until(page, "#later", "2 s; 25 % of it waiting")


def test_what_is_lost_is_framed_wherever_it_is_and_the_hunk_explained(
    page: Page, stage: Stage
) -> None:
    stage.begin(
        "m", state="done", verified=False, pages_different=900, pages_lost=900,
        hunks_off=["pte_mkdirty"], page_size=4096,
        mismatches=[{"pid": 1, "start": f"{BASE:#x}", "pages": 2, "last_round": None}],
    )  # fmt: skip
    wrong = [2, 0, 0, 898]
    last = vma(BASE, 4, 2**22, 0.0, different=wrong)
    stage.tell("pages", "m", **page_map([last], 2**22, final=True, over=True))
    opened(page, stage)
    until(page, "#lost-note", "900 pages differ at the destination. They were written and not")
    until(page, "#lost-note", "The first 2:")
    until(page, "#lost-why", "arch/arm64/include/asm/pgtable.h, pte_mkdirty")
    until(page, "#lost-why", "without it every write is lost")
    until(page, "#lost-why", "predump hunks explain pte_mkdirty")
    canvas = page.locator("#map canvas")
    canvas.focus()
    page.keyboard.press("End")
    assert (page.locator("#map-said").text_content() or "").endswith("of 1,024 pages, 898 differ")
    page.keyboard.press("Escape")
    mark = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--mark')")
    framed = canvas.evaluate(
        "(c, mark) => { const to = c.getContext('2d'), k = devicePixelRatio;"
        " to.fillStyle = mark; const want = to.fillStyle;"
        " const line = to.getImageData(0, 6 * k, 60 * k, 1).data;"
        " return [0, 1, 2, 3].map((n) => {"
        "  const p = [...line.slice(4 * (n * 14 + 1) * k)].slice(0, 3);"
        "  return '#' + p.map((v) => v.toString(16).padStart(2, '0')).join('') === want }) }",
        mark,
    )
    assert framed == [True, False, False, True]


def test_a_host_that_begins_anew_has_lost_what_it_was_at(page: Page, stage: Stage) -> None:
    now = time.time()
    presence = Topics().presence("alpha")
    here = {"host": "alpha", "role": "source", "status": "online", "started": now - 60}
    stage.raw(presence, encode(here))
    stage.begin("m", time=now - 30)
    opened(page, stage)
    until(page, "#chip", "pre-dumping")
    stage.raw(presence, encode(here | {"started": now - 1}))
    until(page, "#chip", "host lost")
    until(page, "#meaning", "went away, or began anew")
    stage.begin("m", state="failed", owner="source", error="found after a restart")
    until(page, "#chip", "failed")


def test_a_dashboard_that_is_lost_is_said_and_found_again(page: Page, stage: Stage) -> None:
    stage.begin("m")
    stage.feed.troubles["broker"] = "no connection to the broker at b:1883: refused"
    opened(page, stage, "#live/m")
    until(page, "#trouble", "no connection to the broker at b:1883")
    stage.do(stage.feed.troubles.clear)
    page.locator("#trouble").wait_for(state="hidden", timeout=SOON_MS)
    stage.stop()
    until(page, "#trouble", "No connection to the dashboard; trying again.")
    stage.begin("m", message="round 1, meanwhile")
    stage.start()
    until(page, "#message", "round 1, meanwhile")
    page.locator("#trouble").wait_for(state="hidden", timeout=SOON_MS)


def test_a_hidden_page_lets_go_of_its_stream_and_takes_it_up_again(
    page: Page, stage: Stage
) -> None:
    stage.begin("m")
    opened(page, stage)
    until(page, "#message", "round 0")
    hide = (
        "(h) => { Object.defineProperty(document, 'hidden', {value: h, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')) }"
    )
    page.evaluate(hide, True)
    stage.begin("m", message="nobody looks")
    page.wait_for_timeout(600)
    assert page.locator("#message").text_content() == "round 0"
    page.evaluate(hide, False)
    until(page, "#message", "nobody looks")


def test_two_hundred_are_found_by_name_and_passed_with_one_key(page: Page, stage: Stage) -> None:
    now = time.time()
    for number in range(200):
        stage.begin(f"m{number}", name=f"run-{number}", started=now - number, state="done",
                    verified=True, downtime_s=0.01)  # fmt: skip
    opened(page, stage)
    page.locator("#list a").nth(199).wait_for(timeout=SOON_MS)
    assert page.evaluate("document.documentElement.scrollHeight") < 3000
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    page.locator("#list-find").fill("run-15 fixed")
    page.wait_for_function("document.querySelectorAll('#list a').length === 11")
    page.locator("#list a").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, "#title", "run-150")
    page.locator("#list-find").fill("nothing of that name")
    until(page, "#none", "None of that name.")


def test_everything_is_reached_with_tab_seen_when_it_is_and_left_again(
    page: Page, stage: Stage
) -> None:
    stage.begin("m", state="done", verified=False, pages_different=1, pages_lost=1,
                hunks_off=["pte_modify"],
                mismatches=[{"pid": 1, "start": "0x1000", "pages": 1,
                             "last_round": 0}])  # fmt: skip
    for number in range(3):
        stage.tell("round", "m", round=number, pages_sent=9, bytes_wire=2**20, duration_s=0.5,
                   pages_soft_dirty=5)  # fmt: skip
    stage.tell("pages", "m", **page_map([vma(BASE, 3, 2**20)], 2**20))
    opened(page, stage)
    until(page, "#lost-note", "1 page differs at the destination. It was written and not")
    page.locator("#rates-more summary").focus()
    page.keyboard.press("Enter")
    until(page, "#rates-table td", "2 MiB/s")
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); scrollTo(0, 0)")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        what, outline, inside = page.evaluate(
            "(() => { const e = document.activeElement, b = e.getBoundingClientRect();"
            " return [e.id || e.dataset.copy || e.getAttribute('href') || e.tagName,"
            "  getComputedStyle(e).outlineStyle, b.bottom > 0 && b.top < innerHeight] })()"
        )
        if what == "BODY":
            break
        reached.append(what)
        assert (outline, inside) == ("solid", True), what
    assert what == "BODY", "the focus never leaves the page"
    wanted = ["skip", "to-live", "to-finished", "theme", "#live/m", "CANVAS", "lost", "rates-table"]
    assert [name for name in reached if name in wanted] == wanted
    assert "predump hunks explain pte_modify" in reached
    assert "1 0x1000-0x1fff 1 0" in reached


def test_many_rounds_are_shown_in_part(page: Page, stage: Stage) -> None:
    stage.begin("m")
    for number in range(300):
        stage.tell("round", "m", round=number, pages_sent=300 - number, bytes_wire=2**20,
                   duration_s=0.1, reason=f"reason {number}", pages_soft_dirty=5)  # fmt: skip
    opened(page, stage)
    until(page, "#rounds .reason", "reason 299")
    assert page.locator("#rounds .round").count() == 28
    page.get_by_role("button", name="Show 272 rounds in between").click()
    page.wait_for_function("document.querySelectorAll('#rounds .round').length === 300")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium: Browser, stage: Stage, scheme: Any) -> None:
    """Names, roles, contrast: what axe-core checks, in the states that have most on the page."""
    stage.begin(
        "m", state="done", verified=False, pages_different=3, pages_lost=1, error="it failed",
        hunks_off=["pte_modify"], downtime_s=0.1, downtime_parts_s={"scan": 0.1}, total_time_s=1.0,
        post_copy={"pages_lazy": 5},
        mismatches=[{"pid": 1, "start": f"{BASE:#x}", "pages": 3, "last_round": 1}],
    )  # fmt: skip
    stage.tell("round", "m", round=0, pages_sent=5, pages_zero=1, bytes_wire=9, duration_s=1)
    stage.tell("pages", "m", **page_map([vma(BASE, 4, 2**20), vma(2 * BASE, 40, 2**20)], 2**20))
    stage.tell("event", "m", kind="round", message="round 0")
    context = chromium.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 2400})
    page = context.new_page()
    opened(page, stage)
    page.locator("#map canvas").nth(1).wait_for(timeout=SOON_MS)
    for details in page.locator("details").all():
        details.locator("summary").click()
    found = {"live": Axe().run(page)}
    page.evaluate("document.getElementById('start').showModal()")
    found["form"] = Axe().run(page)
    page.evaluate("document.getElementById('start').close()")
    page.locator("#to-finished").click()
    found["finished"] = Axe().run(page)
    context.close()
    wrong = {
        name: [(v["id"], [n["target"] for n in v["nodes"]]) for v in axe.response["violations"]]
        for name, axe in found.items()
    }
    assert wrong == {"live": [], "form": [], "finished": []}


@pytest.mark.parametrize("width", [320, 1280, 2560])
def test_nothing_is_cut_off_at_any_width(chromium: Browser, stage: Stage, width: int) -> None:
    """320 px is also 1280 px at 400 %, which WCAG asks for."""
    stage.begin(LONG, name="name-" * 12, message="word" * 60,
                destination="host.with.a.long.name.example:7002",
                hunks_off=["pte_modify"])  # fmt: skip
    stage.tell("round", LONG, round=0, pages_sent=5, bytes_wire=9, duration_s=1)
    stage.tell("pages", LONG, **page_map([vma(BASE, 200, 2**20, name="/a/file" * 8)], 2**20))
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, forced_colors="active", reduced_motion="reduce"
    )
    page = context.new_page()
    opened(page, stage)
    until(page, "#facts", "host.with.a.long.name")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = page.evaluate(
        "[...document.querySelectorAll('main :is(a, button, select, input, p, dd, code, canvas)')]"
        ".filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect())"
        ".filter((b) => b.left < 0 || b.right > innerWidth + 1).length"
    )
    assert outside == 0
    assert page.evaluate("matchMedia('(forced-colors: active)').matches")
    key = page.locator("#map-keys i").first if page.locator("#map-keys i").count() else None
    if key is not None:
        assert key.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(0, 114, 178)"
    context.close()


def test_headings_and_lists_are_there_for_those_who_hear_the_page(page: Page, stage: Stage) -> None:
    stage.begin("m", name="heard")
    stage.tell("pages", "m", **page_map([vma(BASE, 3, 2**20, name="[heap]")], 2**20))
    opened(page, stage)
    page.locator("#map canvas").wait_for(timeout=SOON_MS)
    told = page.locator("body").aria_snapshot()
    for line in (
        'heading "Migrations"', 'article "heard"', 'region "Address space"', 'status:',
        f'application "{BASE:#x} to', "[heap], 3 MiB: 384 sent, 384 pending, 192 soft-dirty",
    ):  # fmt: skip
        assert line in told, told
    assert re.search(r"pre-dumping: heard - Predump", page.title())
