// Rounds as bars, rates over time, parts of the downtime: three plain pictures.
import { bytes, count, keys, make, put, seconds } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const PARTS = ["freeze", "scan", "dump", "transfer", "restore", "resume"];

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
export function drawRounds(element, rounds, most) {
  if (!rounds.length) {
    put(element, make("p", { class: "note" }, "The first round is not over yet."));
    return;
  }
  const longest = most ?? Math.max(...rounds.map((r) => r.pages_sent));
  const zeros = rounds.some((r) => r.pages_zero);
  put(element, zeros ? make("ul", { class: "keys" }, ...keys([
    ["var(--sent)", "pages with content"], ["var(--p1)", "zero pages"],
  ])) : null, ...rounds.map((r) => {
    const figures = `${count(r.pages_sent)} pages, ${bytes(r.bytes_wire)}, ${seconds(r.duration_s)}` +
      (r.pages_written === null ? "" : `; ${count(r.pages_written)} written`);
    return make("div", { class: "round" },
      make("span", {}, `${r.round}`),
      track([["var(--sent)", r.pages_sent - (r.pages_zero ?? 0)], ["var(--p1)", r.pages_zero ?? 0]], longest,
        `round ${r.round}: ${figures}`),
      make("span", { class: "figures" }, figures),
      make("span", { class: "reason" }, r.reason ?? ""));
  }));
}

export function drawDowntime(element, parts, total, most) {
  const list = PARTS.map((name, k) => [`var(--p${k})`, name, parts?.[name] ?? 0]);
  put(element, make("p", {}, make("b", {}, seconds(total)), " from the freeze to runnable at the destination"),
    track(list.map(([color, , value]) => [color, value]), most ?? total, `downtime ${seconds(total)}`),
    make("ul", { class: "keys" }, ...keys(list.map(([color, name, value]) => [color, name, seconds(value)]))));
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round figures for an axis from 0: 1, 2 or 5 times a power of `base`.
function ticks(most, number) {
  if (!(most > 0)) return [0];
  const rough = most / number, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, k) => k * step);
}

// Steps {from, to, transfer (bytes/s), dirty (pages/s)}: both in MiB/s on one axis, so that it is
// seen whether the link is faster than the task.
export function drawRates(element, rates, pageSize) {
  if (!rates.length) {
    put(element, make("p", { class: "note" }, "Nothing was sent yet."));
    return;
  }
  const mib = (value) => value / 2 ** 20;
  const lines = [
    ["var(--sent)", "transfer", rates.map((r) => [r.from, r.to, mib(r.transfer)])],
    ["var(--dirty)", "dirty", rates.filter((r) => r.dirty !== null).map((r) => [r.from, r.to, mib(r.dirty * pageSize)])],
  ];
  const width = Math.max(260, element.clientWidth || 360), height = 190, left = 44, bottom = 34, top = 12;
  const end = Math.max(...rates.map((r) => r.to)), most = 1.05 * Math.max(1e-9, ...lines.flatMap(([, , l]) => l.map((p) => p[2])));
  const x = (t) => left + (t / end) * (width - left - 10), y = (v) => height - bottom - (v / most) * (height - bottom - top);
  const chart = shape("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "transfer rate and dirty rate over time" });
  for (const v of ticks(most, 4)) {
    chart.append(shape("line", { class: "rule", x1: left, x2: width - 10, y1: y(v), y2: y(v) }),
      shape("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(Number(v.toPrecision(3)))));
  }
  for (const t of ticks(end, Math.max(2, Math.floor(width / 110)))) {
    chart.append(shape("text", { x: x(t), y: height - bottom + 16, "text-anchor": "middle" }, seconds(Number(t.toPrecision(3)))));
  }
  chart.append(shape("text", { x: left - 38, y: 4 }, "MiB/s"),
    shape("text", { x: width - 10, y: height - 3, "text-anchor": "end" }, "time since round 0 began"));
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
  const last = (points) => points.at(-1)?.[2];
  const dirty = rates.findLast((r) => r.dirty !== null)?.dirty;
  put(element, make("ul", { class: "keys" }, ...keys(lines.map(([color, name, points]) => {
    const value = last(points);
    const shown = value === undefined ? "-" : `${Number(value.toPrecision(3)).toLocaleString("en")} MiB/s`;
    return [color, name, name === "dirty" && dirty !== undefined ? `${shown} (${count(dirty)} pages/s)` : shown];
  }))), chart);
}
