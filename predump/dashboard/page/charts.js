// Rounds as bars, rates over time, parts of the downtime: three plain pictures.
import { $, bytes, count, keys, make, put, seconds, table } from "./dom.js";
import { PARTS } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const FIRST = 4, LAST = 24;   // of many rounds, so many are shown unless all are asked for
let all = false;

function share(part, whole) {
  return `0 0 ${whole > 0 ? (100 * part) / whole : 0}%`;
}

function track(parts, whole, label) {
  const bar = make("div", { class: "track", role: "img", "aria-label": label });
  for (const [color, value] of parts) {
    const piece = make("i", { color });
    piece.style.flex = share(value, whole);
    bar.append(piece);
  }
  return bar;
}

// `most`: pages of the longest bar, so that two runs can have the same scale.
export function drawRounds(element, rounds, most, ended = true) {
  if (!rounds.length) {
    put(element, make("p", { class: "note" }, ended ? "No round was over." : "The first round is not over yet."));
    return;
  }
  const longest = most ?? Math.max(...rounds.map((r) => r.pages_sent));
  const zeros = rounds.some((r) => r.pages_zero);
  const few = rounds.length <= FIRST + LAST || all;
  const parts = few ? rounds.map((r) => round(r, longest)) : [
    ...rounds.slice(0, FIRST).map((r) => round(r, longest)),
    make("p", { "data-key": "between" }, make("button", { type: "button", "data-all": true },
      `Show ${count(rounds.length - FIRST - LAST)} rounds in between`)),
    ...rounds.slice(-LAST).map((r) => round(r, longest)),
  ];
  put(element, zeros ? make("ul", { class: "keys", "data-key": "keys" }, ...keys([
    ["var(--sent)", "pages with content"], ["var(--p1)", "zero pages"],
  ])) : null, ...parts);
}

function round(r, longest) {
  const figures = `${count(r.pages_sent)} pages, ${bytes(r.bytes_wire)}, ${seconds(r.duration_s)}` +
    (r.pages_written === null ? "" : `; ${count(r.pages_written)} written`);
  return make("div", { class: "round", "data-key": r.round },
    make("span", {}, `${r.round}`),
    track([["var(--sent)", r.pages_sent - (r.pages_zero ?? 0)], ["var(--p1)", r.pages_zero ?? 0]], longest,
      `round ${r.round}: ${figures}`),
    make("span", { class: "figures" }, figures),
    make("span", { class: "reason" }, r.reason ?? ""));
}

export function startRounds(redraw) {
  $("rounds").addEventListener("click", (event) => {
    if (!event.target.closest("[data-all]")) return;
    all = true;
    redraw();
  });
}

export function drawDowntime(element, parts, total, most) {
  const list = Object.entries(PARTS).map(([name, is], k) => [`var(--p${k})`, name, parts?.[name] ?? 0, is]);
  put(element, make("p", {}, make("b", {}, seconds(total)), " from the freeze to runnable at the destination"),
    track(list.map(([color, , value]) => [color, value]), most ?? total, `downtime ${seconds(total)}`),
    make("ul", { class: "keys parts" }, ...list.map(([color, name, value, is]) =>
      make("li", {}, make("i", { color }), name, make("b", {}, seconds(value)), make("span", { class: "note" }, is)))));
}

// How the pages came that were left behind (`post_copy` of a result).
export function drawLater(element, p) {
  const lines = [
    ["left behind", `${count(p.pages_lazy)} pages`],
    ["the task waited", `${count(p.faults)} times, ${seconds(p.stalled_s)} in all, ${seconds(p.longest_stall_s)} at most`],
    ["for pages not yet asked for", `${count(p.faults_remote)} times`],
    ["came before they were needed", `${count(p.pages_prefetched)} pages`],
    ["given back before they came", p.pages_dropped ? `${count(p.pages_dropped)} pages` : null],
    ["on the wire", bytes(p.bytes_wire)],
    ["until the last page", seconds(p.residual_s) + (p.residual_s ? `; ${Math.round(Math.min(100, 100 * p.stalled_s / p.residual_s))} % of it waiting` : "")],
    ["never came", p.pages_missing ? `${count(p.pages_missing)} pages` : null],
    ["the task stands still", p.halted || null],
  ];
  put(element, make("dl", { class: "pairs" }, ...lines.filter(([, value]) => value !== null)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Round figures for an axis from 0: 1, 2 or 5 times a power of `base`.
function ticks(most, number) {
  if (!(most > 0)) return [0];
  const rough = most / number, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, k) => k * step);
}

const mib = (value) => value / 2 ** 20;
const rate = (value) => `${Number(value.toPrecision(3)).toLocaleString("en")} MiB/s`;
const dirtied = (step, size) => (step.dirty === null ? "the task stands still, or nobody knows" :
  `${rate(mib(step.dirty * size))} (${count(step.dirty)} pages/s)`);
const during = (step) => (step.round === null ? "after the rounds" : `round ${step.round}`);

// Steps {round, from, to, transfer (bytes/s), dirty (pages/s)}: both in MiB/s on one axis, so that it
// is seen whether the link is faster than the task.
let told = { rates: [], pageSize: 4096, at: null };

export function drawRates(element, rates, pageSize) {
  told = { ...told, rates, pageSize };
  $("rates-more").hidden = !rates.length;
  if (!rates.length) {
    put(element, make("p", { class: "note" }, "Nothing was sent until now."));
    return;
  }
  const lines = [
    ["var(--sent)", "transfer", rates.map((r) => [r.from, r.to, mib(r.transfer)])],
    ["var(--dirty)", "dirty", rates.filter((r) => r.dirty !== null).map((r) => [r.from, r.to, mib(r.dirty * pageSize)])],
  ];
  const width = Math.max(260, element.clientWidth || 360), height = 206, left = 44, bottom = 34, top = 28;
  const end = Math.max(...rates.map((r) => r.to)), most = 1.05 * Math.max(1e-9, ...lines.flatMap(([, , l]) => l.map((p) => p[2])));
  const x = (t) => left + (t / end) * (width - left - 10), y = (v) => height - bottom - (v / most) * (height - bottom - top);
  const chart = shape("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "transfer rate and dirty rate over time; the table below has the figures" });
  // Where rounds begin, with their numbers where there is room for them.
  let label = -Infinity;
  rates.forEach((r, k) => {
    if (k && rates[k - 1].round === r.round) return;
    const at = x(r.from);
    chart.append(shape("line", { class: "begin", x1: at, x2: at, y1: top - 6, y2: height - bottom }));
    if (at - label < 22 && r.round !== null) return;
    label = Math.max(at, label + 16);
    chart.append(shape("text", { x: label + 3, y: top + 1 }, r.round === null ? "later" : String(r.round)));
  });
  for (const v of ticks(most, 4)) {
    chart.append(shape("line", { class: "rule", x1: left, x2: width - 10, y1: y(v), y2: y(v) }),
      shape("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(Number(v.toPrecision(3)))));
  }
  for (const t of ticks(end, Math.max(3, Math.floor(width / 110)))) {
    chart.append(shape("text", { x: x(t), y: height - bottom + 16, "text-anchor": "middle" }, seconds(Number(t.toPrecision(3)))));
  }
  for (const [color, , points] of lines) {
    let path = "", before = null;
    for (const [from, to, value] of points) {
      path += before === from ? `L${x(from)},${y(value)}` : `M${x(from)},${y(value)}`;
      path += `L${x(to)},${y(value)}`;
      before = to;
    }
    if (path) {
      const line = shape("path", { class: "line", d: path });
      line.style.stroke = color;
      chart.append(line);
    }
  }
  const here = told.at === null ? null : rates.find((r) => r.from <= told.at * end && told.at * end <= r.to);
  if (here) chart.append(shape("line", { class: "here", x1: x(told.at * end), x2: x(told.at * end), y1: top - 6, y2: height - bottom }));
  chart.append(shape("text", { x: left - 38, y: 12 }, "MiB/s"), shape("text", { x: left + 3, y: 12 }, "round"),
    shape("text", { x: width - 10, y: height - 3, "text-anchor": "end" },
      here ? `at ${seconds(told.at * end)}, ${during(here)}` : "time since round 0 began"));
  const step = here ?? rates.at(-1), dirty = here ?? rates.findLast((r) => r.dirty !== null);
  put(element, make("ul", { class: "keys" }, ...keys([
    ["var(--sent)", "transfer", rate(mib(step.transfer))],
    ["var(--dirty)", "dirty", dirty ? dirtied(dirty, pageSize) : "-"],
  ])), chart);
  if ($("rates-more").open) drawTable();
}

function drawTable() {
  put($("rates-table"), table(["round", "from", "to", "transfer", "dirty"], told.rates.map((r) => make("tr", {},
    make("td", {}, r.round === null ? "later" : r.round), make("td", {}, seconds(r.from)), make("td", {}, seconds(r.to)),
    make("td", {}, rate(mib(r.transfer))), make("td", {}, r.dirty === null ? "-" : dirtied(r, told.pageSize))))));
}

export function startRates() {
  const element = $("rates");
  const look = (at) => {
    told.at = at;
    if (told.rates.length) drawRates(element, told.rates, told.pageSize);
  };
  element.addEventListener("pointermove", (event) => {
    const chart = element.querySelector("svg");
    if (!chart) return;
    const box = chart.getBoundingClientRect(), part = (event.clientX - box.left) / box.width * Math.max(260, element.clientWidth);
    const at = (part - 44) / (Math.max(260, element.clientWidth) - 54);
    look(at >= 0 && at <= 1 && event.clientY >= box.top ? at : null);
  });
  element.addEventListener("pointerleave", () => look(null));
  $("rates-more").addEventListener("toggle", () => { if ($("rates-more").open) drawTable(); });
}

