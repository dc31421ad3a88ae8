// The address space: a canvas for each mapping, a square for each block of pages.
// It is filled from below by what the round has sent and has still to send, at its right side by what
// was written since the scan; a frame marks blocks with pages that differ in the end.
import { $, bytes, count, keys, make, pages as inPages, put, say } from "./dom.js";

const SIZE = 12, GAP = 2, STEP = SIZE + GAP;
const RIGHT = 5;           // of a square, for what was written since the scan
const FEW = 12;            // a mapping of so few squares has them beside its name
let shown = null;          // the page map on show
let wrong = [];            // ranges that differ: [pid, start, end] as BigInt, if cells do not tell
let rows = [];             // {vma, canvas, label, columns}
let cursor = null;         // [row, cell] that the reader looks at
let kept = false;          // ... and clicked or moved to, so that it stays when the pointer goes
let colors = null;

function permissions(vma) {
  const bit = (mask, letter) => (vma.prot & mask ? letter : "-");
  return bit(1, "r") + bit(2, "w") + bit(4, "x") + (vma.flags & 1 ? "s" : "p");
}

function range(vma, cell) {
  const size = BigInt(shown.cell_bytes), start = BigInt(vma.start) + BigInt(cell) * size;
  const end = start + size < BigInt(vma.end) ? start + size : BigInt(vma.end);
  return [start, end];
}

const hex = (address) => `0x${address.toString(16)}`;
const sum = (list) => list.reduce((a, b) => a + b, 0);

export function showMap(pages, mismatches, told) {
  shown = pages;
  $("map-card").hidden = !pages;
  if (!pages) return;
  const when = pages.serving && !told.ended ? "over; the task runs at the destination, and the pages left behind come" :
    pages.serving ? "pages were left behind" : told.ended ? "the last one" : pages.over ? "sent" : pages.final ? "frozen" : "under way";
  say($("map-round"), `round ${pages.round}, ${when}; a square is ${bytes(pages.cell_bytes)}` +
    ` (${inPages(pages.cell_bytes / pages.page_size)})` +
    (pages.vmas_left_out ? `; ${count(pages.vmas_left_out)} small mappings are left out` : ""));
  wrong = mismatches.map((m) => [m.pid, BigInt(m.start), BigInt(m.start) + BigInt(m.pages) * BigInt(pages.page_size)]);
  put($("map-keys"), ...keys([
    ["var(--sent)", "sent", count(pages.pages_sent)],
    ["var(--pending)", pages.serving || told.post_copy ? "not there yet" : "pending", count(pages.pages_pending)],
    ["var(--dirty)", "soft-dirty again", count(pages.pages_soft_dirty)],
    ...(told.pages_different ? [["var(--mark)", "differs (framed)", count(told.pages_different)]] : []),
  ]));
  layOut(pages.vmas);
  draw();
  tell();
}

// Elements stay where they are while the mappings do: only then is the page calm.
function layOut(vmas) {
  const name = (vma) => `${vma.pid} ${vma.start}`;
  const there = new Map(rows.map((row) => [name(row.vma), row]));
  const at = cursor && kept ? name(rows[cursor[0]].vma) : null;
  rows = vmas.map((vma) => ({ ...(there.get(name(vma)) ?? fresh(vma)), vma }));
  const found = at === null ? -1 : vmas.findIndex((vma) => name(vma) === at);
  cursor = found < 0 || cursor[1] >= vmas[found].sent.length ? null : [found, cursor[1]];
  if (!cursor) kept = false;
  put($("map"), ...rows.map((row) => row.element));
  const processes = new Set(vmas.map((vma) => vma.pid)).size;
  for (const row of rows) {
    const { vma } = row, figures = `${count(sum(vma.sent))} sent, ${count(sum(vma.pending))} pending, ` +
      `${count(sum(vma.soft_dirty))} soft-dirty` + (vma.different ? `, ${count(sum(vma.different))} differ` : "");
    const about = [processes > 1 ? `process ${vma.pid}` : null, vma.name, bytes(Number(BigInt(vma.end) - BigInt(vma.start)))].filter(Boolean).join(", ");
    row.element.className = vma.sent.length <= FEW ? "vma few" : "vma";
    put(row.label, make("code", {}, `${vma.start}–${vma.end} ${permissions(vma)}`), make("span", {}, about), make("span", {}, figures));
    row.canvas.setAttribute("aria-label", `${vma.start} to ${vma.end}, ${about}: ${figures}. Arrow keys go from square to square.`);
  }
  roam();
}

function fresh(vma) {
  const label = make("p"), canvas = make("canvas", { role: "application", "aria-roledescription": "map of pages", tabindex: "-1" });
  const element = make("div", { class: "vma", "data-key": `${vma.pid} ${vma.start}` }, label, make("div", { class: "squares" }, canvas));
  return { vma, label, canvas, element, columns: 1 };
}

// One canvas is reached with Tab: the one with the cursor, or the first.
function roam() {
  rows.forEach((row, k) => row.canvas.setAttribute("tabindex", k === (cursor?.[0] ?? 0) ? "0" : "-1"));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  colors ??= Object.fromEntries(["cell", "card", "sent", "pending", "dirty", "mark", "text"].map((n) => [n, style.getPropertyValue(`--${n}`)]));
  const scale = window.devicePixelRatio || 1;
  const perCell = shown.cell_bytes / shown.page_size;
  const tall = (n) => (n ? Math.max(1.5, (n / perCell) * SIZE) : 0);
  const widths = rows.map((row) => row.canvas.parentElement.clientWidth);
  for (const [k, row] of rows.entries()) {
    const { vma, canvas } = row, cells = vma.sent.length, width = widths[k];
    row.columns = Math.max(1, Math.floor((width + GAP) / STEP));
    const height = Math.ceil(cells / row.columns) * STEP - GAP;
    const pixels = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) {
      [canvas.width, canvas.height] = pixels;
      canvas.style.height = `${height}px`;
    }
    const to = canvas.getContext("2d");
    to.setTransform(scale, 0, 0, scale, 0, 0);
    to.clearRect(0, 0, width, height);
    const bad = framed(vma);
    for (let c = 0; c < cells; c += 1) {
      const x = (c % row.columns) * STEP, y = Math.floor(c / row.columns) * STEP;
      to.fillStyle = colors.cell;
      to.fillRect(x, y, SIZE, SIZE);
      const sent = tall(vma.sent[c]), pending = tall(vma.pending[c]), dirty = tall(vma.soft_dirty[c]);
      to.fillStyle = colors.sent;
      to.fillRect(x, y + SIZE - sent, SIZE, sent);
      to.fillStyle = colors.pending;
      to.fillRect(x, y + SIZE - sent - pending, SIZE, pending);
      if (dirty) {
        to.fillStyle = colors.card;
        to.fillRect(x + SIZE - RIGHT - 1, y + SIZE - dirty - 1, RIGHT + 1, dirty + 1);
        to.fillStyle = colors.dirty;
        to.fillRect(x + SIZE - RIGHT, y + SIZE - dirty, RIGHT, dirty);
      }
      const here = cursor && cursor[0] === k && cursor[1] === c;
      if (here || bad(c)) {
        to.strokeStyle = here ? colors.text : colors.mark;
        to.lineWidth = 2;
        to.strokeRect(x + 1, y + 1, SIZE - 2, SIZE - 2);
      }
    }
  }
}

// Which squares have pages that differ: the node counts them, or else the listed ranges say so.
function framed(vma) {
  if (vma.different) return (c) => vma.different[c] > 0;
  const found = new Set(), start = BigInt(vma.start), end = BigInt(vma.end), size = BigInt(shown.cell_bytes);
  for (const [pid, from, to] of wrong) {
    if (pid !== vma.pid || to <= start || from >= end) continue;
    const last = ((to < end ? to : end) - start - 1n) / size;
    for (let c = ((from > start ? from : start) - start) / size; c <= last; c += 1n) found.add(Number(c));
  }
  return (c) => found.has(c);
}

function hit(event) {
  const at = rows.findIndex((row) => row.canvas === event.target);
  if (at < 0) return null;
  const row = rows[at], box = row.canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / STEP), line = Math.floor((event.clientY - box.top) / STEP);
  const cell = line * row.columns + column;
  return column >= 0 && column < row.columns && line >= 0 && cell < row.vma.sent.length ? [at, cell] : null;
}

function tell() {
  $("map-copy").hidden = !cursor;
  if (!cursor) {
    say($("map-said"), "A square is filled by its share of pages, on the right by those written since the scan. Point at one, or go to it with Tab and the arrow keys, for addresses and counts.");
    $("map-said").className = "note";
    return;
  }
  $("map-said").className = "";
  const { vma } = rows[cursor[0]], c = cursor[1], [start, end] = range(vma, c);
  const differing = vma.different ? vma.different[c] : Number(wrong.filter(([pid, from, to]) => pid === vma.pid && from < end && to > start)
    .reduce((n, [, from, to]) => n + ((to < end ? to : end) - (from > start ? from : start)) / BigInt(shown.page_size), 0n));
  say($("map-said"), `${hex(start)}–${hex(end)}: ${count(vma.sent[c])} sent, ${count(vma.pending[c])} pending, ` +
    `${count(vma.soft_dirty[c])} soft-dirty of ${inPages(Number(end - start) / shown.page_size)}` +
    (differing ? `, ${differing} differ` : ""));
  $("map-copy").dataset.copy = `${hex(start)}-${hex(end)}`;
  $("map-copy").setAttribute("aria-label", `Copy ${hex(start)} to ${hex(end)}`);
}

function go(to, stays) {
  cursor = to;
  kept = stays && to !== null;
  draw();
  tell();
  roam();
}

export function startMap() {
  const map = $("map");
  map.addEventListener("pointermove", (event) => {
    if (!kept && event.pointerType === "mouse") go(hit(event), false);
  });
  map.addEventListener("click", (event) => {
    const to = hit(event), same = kept && to && cursor && to[0] === cursor[0] && to[1] === cursor[1];
    go(same ? null : to, true);
  });
  map.addEventListener("pointerleave", () => { if (!kept && cursor) go(null, false); });
  map.addEventListener("keydown", (event) => {
    const focused = rows.findIndex((row) => row.canvas === event.target);
    if (focused < 0) return;
    const [r, c] = cursor ?? [focused, -1], row = rows[r];
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row.columns, ArrowUp: -row.columns, Home: -Infinity, End: Infinity,
      PageDown: "next", PageUp: "before" }[event.key];
    if (event.key === "Escape") {
      go(null, false);
      return;
    }
    if (by === undefined) return;
    event.preventDefault();
    go(moved(r, c, by), true);
    const { canvas } = rows[cursor[0]];
    canvas.focus({ preventScroll: true });
    reveal(canvas);
  });
  new ResizeObserver(redrawMap).observe(map);
}

// The square, not only its canvas, which may be higher than the window.
function reveal(canvas) {
  const box = canvas.getBoundingClientRect(), area = $("map").getBoundingClientRect();
  const y = box.top + Math.floor(cursor[1] / rows[cursor[0]].columns) * STEP;
  if (y < area.top + 40) $("map").scrollBy(0, y - area.top - 40);
  else if (y + SIZE > area.bottom - 8) $("map").scrollBy(0, y + SIZE - area.bottom + 8);
  const now = canvas.getBoundingClientRect().top + Math.floor(cursor[1] / rows[cursor[0]].columns) * STEP;
  if (now < 8) scrollBy(0, now - 80);
  else if (now + SIZE > innerHeight) scrollBy(0, now + SIZE - innerHeight + 80);
}

function moved(r, c, by) {
  const last = (k) => rows[k].vma.sent.length - 1;
  if (by === Infinity) return [r, last(r)];
  if (by === -Infinity) return [r, 0];
  if (by === "next") return r + 1 < rows.length ? [r + 1, 0] : [r, last(r)];
  if (by === "before") return r > 0 ? [r - 1, 0] : [r, 0];
  const to = c + by;
  if (to > last(r)) return r + 1 < rows.length ? [r + 1, 0] : [r, last(r)];
  if (to < 0) return r > 0 ? [r - 1, last(r - 1)] : [r, 0];
  return [r, to];
}

export function redrawMap() {
  colors = null;
  if (shown) draw();
}
