// The address space: a canvas for each mapping, a square for each block of pages.
// A square is filled from below by what the round has sent and has still to send, and from above by
// what was written since the scan; a frame marks blocks with pages that differ in the end.
import { $, bytes, count, keys, make, put, say } from "./dom.js";

const SIZE = 12, GAP = 2, STEP = SIZE + GAP;
let shown = null;          // the page map on show
let wrong = [];            // ranges that differ: [pid, start, end] as BigInt
let rows = [];             // {vma, canvas, label, columns}
let cursor = null;         // [row, cell] that the reader looks at

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

export function showMap(pages, mismatches, pageSize) {
  shown = pages;
  $("map-title").parentElement.parentElement.hidden = !pages;
  if (!pages) return;
  const when = pages.final ? "frozen" : pages.over ? "done" : "under way";
  say($("map-round"), `round ${pages.round}, ${when}; a square is ${bytes(pages.cell_bytes)}` +
    (pages.vmas_left_out ? `; ${count(pages.vmas_left_out)} small mappings are left out` : ""));
  put($("map-keys"), ...keys([
    ["var(--sent)", "sent", count(pages.pages_sent)],
    ["var(--pending)", "pending", count(pages.pages_pending)],
    ["var(--dirty)", "soft-dirty again", count(pages.pages_soft_dirty)],
    ...(mismatches.length ? [["var(--mark)", "differs (framed)"]] : []),
  ]));
  const size = BigInt(pageSize ?? pages.page_size);
  wrong = mismatches.map((m) => [m.pid, BigInt(m.start), BigInt(m.start) + BigInt(m.pages) * size]);
  layOut(pages.vmas);
  draw();
  tell();
}

// Elements stay where they are while the mappings do: only then is the page calm.
function layOut(vmas) {
  const name = (vma) => `${vma.pid} ${vma.start}`;
  const same = rows.length === vmas.length && vmas.every((vma, k) => name(vma) === name(rows[k].vma));
  if (!same) {
    rows = vmas.map((vma) => {
      const label = make("p"), canvas = make("canvas", { "aria-hidden": "true" });
      const row = { vma, canvas, label, columns: 1 };
      canvas.addEventListener("pointermove", (event) => point(row, event));
      canvas.addEventListener("pointerdown", (event) => point(row, event));
      canvas.addEventListener("pointerleave", () => { cursor = null; draw(); tell(); });
      return row;
    });
    put($("map"), ...rows.map((row) => make("div", { class: "vma" }, row.label, row.canvas)));
    cursor = null;
  }
  rows.forEach((row, k) => {
    const vma = row.vma = vmas[k];
    put(row.label, make("code", {}, `${vma.start}–${vma.end} ${permissions(vma)}`),
      make("span", {}, [`process ${vma.pid}`, vma.name, bytes(Number(BigInt(vma.end) - BigInt(vma.start)))]
        .filter(Boolean).join(", ")),
      make("span", {}, `${count(sum(vma.sent))} sent, ${count(sum(vma.pending))} pending, ` +
        `${count(sum(vma.soft_dirty))} soft-dirty`));
  });
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name);
  const colors = Object.fromEntries(["cell", "sent", "pending", "dirty", "mark", "text"].map((n) => [n, color(`--${n}`)]));
  const scale = window.devicePixelRatio || 1;
  const perCell = shown.cell_bytes / shown.page_size;
  for (const [k, row] of rows.entries()) {
    const { vma, canvas } = row, cells = vma.sent.length;
    const width = canvas.parentElement.clientWidth;
    row.columns = Math.max(1, Math.floor((width + GAP) / STEP));
    const height = Math.ceil(cells / row.columns) * STEP - GAP;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
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
      const tall = (n) => (n ? Math.max(1.5, (n / perCell) * SIZE) : 0);
      const sent = tall(vma.sent[c]), pending = tall(vma.pending[c]), dirty = tall(vma.soft_dirty[c]);
      to.fillStyle = colors.sent;
      to.fillRect(x, y + SIZE - sent, SIZE, sent);
      to.fillStyle = colors.pending;
      to.fillRect(x, y + SIZE - sent - pending, SIZE, pending);
      to.fillStyle = colors.dirty;
      to.fillRect(x, y, SIZE, dirty);
      const here = cursor && cursor[0] === k && cursor[1] === c;
      if (here || bad.has(c)) {
        to.strokeStyle = here ? colors.text : colors.mark;
        to.lineWidth = 2;
        to.strokeRect(x + (here ? -1 : 1), y + (here ? -1 : 1), SIZE + (here ? 2 : -2), SIZE + (here ? 2 : -2));
      }
    }
  }
}

function framed(vma) {
  const found = new Set(), start = BigInt(vma.start), end = BigInt(vma.end), size = BigInt(shown.cell_bytes);
  for (const [pid, from, to] of wrong) {
    if (pid !== vma.pid || to <= start || from >= end) continue;
    const last = ((to < end ? to : end) - start - 1n) / size;
    for (let c = ((from > start ? from : start) - start) / size; c <= last; c += 1n) found.add(Number(c));
  }
  return found;
}

function point(row, event) {
  const box = row.canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / STEP), line = Math.floor((event.clientY - box.top) / STEP);
  const cell = line * row.columns + column;
  const inside = column >= 0 && column < row.columns && cell >= 0 && cell < row.vma.sent.length;
  cursor = inside ? [rows.indexOf(row), cell] : null;
  draw();
  tell();
}

function tell() {
  if (!cursor || !rows[cursor[0]] || cursor[1] >= rows[cursor[0]].vma.sent.length) {
    say($("map-cell"), "");
    return;
  }
  const { vma } = rows[cursor[0]], c = cursor[1], [start, end] = range(vma, c);
  const differing = wrong.filter(([pid, from, to]) => pid === vma.pid && from < end && to > start)
    .reduce((n, [, from, to]) => n + ((to < end ? to : end) - (from > start ? from : start)) / BigInt(shown.page_size), 0n);
  say($("map-cell"), `${hex(start)}–${hex(end)}: ${count(vma.sent[c])} sent, ${count(vma.pending[c])} pending, ` +
    `${count(vma.soft_dirty[c])} soft-dirty of ${count(Number(end - start) / shown.page_size)} pages` +
    (differing ? `, ${differing} differ` : ""));
}

export function startMap() {
  const map = $("map");
  map.addEventListener("keydown", (event) => {
    if (!rows.length) return;
    const [r, c] = cursor ?? [0, -1], row = rows[r];
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row.columns, ArrowUp: -row.columns }[event.key];
    if (event.key === "Escape") cursor = null;
    else if (by === undefined) return;
    else cursor = moved(r, c, by);
    event.preventDefault();
    draw();
    tell();
    if (cursor) rows[cursor[0]].canvas.scrollIntoView({ block: "nearest" });
  });
  new ResizeObserver(() => { if (shown) draw(); }).observe(map);
}

function moved(r, c, by) {
  const to = c + by, cells = rows[r].vma.sent.length;
  if (to >= cells) return r + 1 < rows.length ? [r + 1, 0] : [r, cells - 1];
  if (to < 0) return r > 0 ? [r - 1, rows[r - 1].vma.sent.length - 1] : [r, 0];
  return [r, to];
}

export function redrawMap() {
  if (shown) draw();
}
