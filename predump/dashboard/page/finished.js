// Runs that are over: a list to find two in, and the two beside each other.
import { $, ask, bytes, count, make, put, say, seconds } from "./dom.js";
import { drawDowntime, drawRounds } from "./charts.js";

const MOST_ROWS = 300;
let runs = [], chosen = [];

export async function loadRuns() {
  try {
    const told = await ask("api/runs");
    runs = told.runs;
    chosen = chosen.filter((key) => runs.some((run) => run.key === key));
    list(told.troubles);
    await compare();
  } catch (error) {
    say($("runs-note"), error.message);
  }
}

function found() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = `${run.name} ${run.origin} ${run.policy ?? ""} ${run.error}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function list(troubles = []) {
  const matching = found(), rows = matching.slice(0, MOST_ROWS);
  const parts = [runs.length ? `${count(matching.length)} of ${count(runs.length)} runs` +
    (rows.length < matching.length ? `, the first ${MOST_ROWS} shown` : "") + "; choose two to see them side by side"
    : "No runs yet: start one, or start the dashboard with --results FILE.", ...troubles];
  say($("runs-note"), parts.join(". "));
  if (!runs.length) { put($("runs")); return; }
  const head = ["", "run", "policy", "downtime", "total", "sent", "rounds", "ended"];
  put($("runs"), make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text, k) => make("th", { scope: "col", class: k === 1 || k === 2 ? "word" : null }, text)))),
    make("tbody", {}, ...rows.map(row))));
}

function row(run) {
  const at = chosen.indexOf(run.key);
  const ended = run.error ? run.error : run.verified ? "verified" : `${count(run.pages_different)} pages differ`;
  const pick = make("button", { type: "button", "aria-pressed": String(at >= 0), "aria-label": `choose ${run.name}`,
    "data-key": run.key, onclick: () => choose(run.key) }, at === 0 ? "A" : at === 1 ? "B" : "+");
  return make("tr", {},
    make("td", { class: "word pick" }, pick),
    make("td", { class: "word" }, run.name, make("small", { class: "note" }, ` ${run.origin}`)),
    make("td", { class: "word" }, run.policy ?? ""), make("td", {}, seconds(run.downtime_s)),
    make("td", {}, seconds(run.total_time_s || null)), make("td", {}, bytes(run.bytes_wire)), make("td", {}, count(run.rounds)),
    make("td", { class: run.verified && !run.error ? "good" : "bad" }, ended.slice(0, 60)));
}

function choose(key) {
  chosen = chosen.includes(key) ? chosen.filter((other) => other !== key) : [...chosen, key].slice(-2);
  list();
  document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  compare();
}

async function compare() {
  const element = $("compared");
  if (!chosen.length) { put(element); return; }
  const asked = chosen.join();
  let two;
  try {
    two = await Promise.all(chosen.map((key) => ask(`api/runs/${encodeURIComponent(key)}`)));
  } catch (error) {
    say($("runs-note"), error.message);
    return;
  }
  if (asked !== chosen.join()) return;
  const results = two.map((run) => run.result).filter(Boolean);
  const pages = Math.max(0, ...results.flatMap((r) => r.rounds.map((round) => round.pages_sent)));
  const down = Math.max(0, ...results.filter(went).map((r) => r.downtime_s.total));
  put(element, make("section", { class: "card" }, make("h3", {}, two.length > 1 ? "Side by side" : "One run"), figures(two)),
    make("div", { class: "sides" }, ...two.map((run, k) => side(run, "AB"[k], pages, down))));
}

// Only a task that went over was down until it was runnable there.
const went = (result) => result.owner === "destination";

function side(run, letter, pages, down) {
  const card = make("section", { class: "card" }, make("h3", {}, `${letter}: ${run.name}`));
  if (!run.result) {
    card.append(make("p", { class: "trouble" }, run.error || "no result"));
    return card;
  }
  const rounds = make("div"), downtime = make("div");
  drawRounds(rounds, run.result.rounds, pages);
  if (went(run.result)) drawDowntime(downtime, run.result.downtime_s, run.result.downtime_s.total, down);
  card.append(rounds, downtime);
  if (run.result.mismatches.length) {
    const first = run.result.mismatches.slice(0, 20).map((m) => make("li", {}, make("code", {}, m.start), ` ${m.pages === 1 ? "1 page" : `${count(m.pages)} pages`}`));
    card.append(make("p", { class: "bad" }, `${count(run.result.pages_different)} pages differ`), make("ul", {}, ...first));
  }
  return card;
}

function figures(two) {
  const value = (run, of) => (run.result ? of(run.result) : null);
  const lines = [
    ["downtime", (r) => (went(r) ? r.downtime_s.total : null), seconds],
    ["total time", (r) => (went(r) ? r.total_time_s : null), seconds],
    ["on the wire", (r) => r.bytes_wire, bytes], ["rounds", (r) => r.rounds.length, count],
    ["pages lost", (r) => r.pages_lost, count], ["sent for nothing", (r) => r.pages_spurious, count],
    ["pages that differ", (r) => r.pages_different, count],
  ].map(([name, of, show]) => {
    const [a, b] = two.map((run) => value(run, of));
    const ratio = a && b !== null && b !== undefined ? `× ${Number((b / a).toPrecision(3)).toLocaleString("en")}` : "";
    return make("tr", {}, make("th", { scope: "row", class: "word" }, name), ...two.map((run) => {
      const there = value(run, of);
      return make("td", {}, there === null ? "-" : show(there));
    }), two.length > 1 ? make("td", {}, ratio) : null);
  });
  const names = new Set(two.flatMap((run) => Object.keys(run.settings)));
  const settings = [...names].filter((name) => two.length > 1 && JSON.stringify(two[0].settings[name]) !== JSON.stringify(two[1].settings[name]))
    .slice(0, 40).map((name) => make("tr", {}, make("th", { scope: "row", class: "word" }, make("code", {}, name)),
      ...two.map((run) => make("td", {}, shown(run.settings[name], name))), make("td")));
  const head = ["", ...two.map((_, k) => "AB"[k]), ...(two.length > 1 ? ["B / A"] : [])];
  return make("div", { class: "scroll" }, make("table", { class: "two" },
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...lines, ...settings)));
}

function shown(setting, name) {
  if (setting === undefined) return "-";
  if (name === "memory") return bytes(setting);
  return typeof setting === "string" ? setting : JSON.stringify(setting);
}

export function startFinished() {
  $("find").addEventListener("input", () => list());
  $("reload").addEventListener("click", loadRuns);
}
