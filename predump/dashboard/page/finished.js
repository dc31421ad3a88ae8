// Runs that are over: a list to find two in, and the two beside each other.
import { $, ask, bytes, count, make, pages, put, say, seconds, table } from "./dom.js";
import { drawDowntime, drawLater, drawRounds } from "./charts.js";
import { differ } from "./words.js";

const MOST_ROWS = 300;
const COLUMNS = [
  ["", null], ["run", (run) => run.name], ["policy", (run) => run.policy], ["downtime", (run) => run.downtime_s],
  ["total", (run) => run.total_time_s], ["sent", (run) => run.bytes_wire], ["rounds", (run) => run.rounds], ["ended", outcome],
];
let runs = [], chosen = [], troubles = [];
let by = null, up = true;  // the column that the list is sorted by

// `keys`: the runs to show, as in the page's address; otherwise those that were shown stay.
export async function loadRuns(keys) {
  try {
    const told = await ask("api/runs");
    ({ runs, troubles } = told);
    if (keys) chosen = keys.split(",").slice(0, 2);
    const gone = chosen.filter((key) => !runs.some((run) => run.key === key));
    if (keys && gone.length) troubles = [...troubles, "A run of that address is not here any more"];
    chosen = chosen.filter((key) => !gone.includes(key));
    list();
    await compare();
  } catch (error) {
    say($("runs-note"), error.message);
  }
}

function outcome(run) {
  if (run.error) return run.error;
  return run.verified ? "verified" : differ(run.pages_different ?? 0);
}

function found() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = runs.filter((run) => {
    const text = `${run.name} ${run.origin} ${run.policy ?? ""} ${run.migration_id ?? ""} ${(run.hunks_off ?? []).join(" ")} ${outcome(run)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (by === null) return matching;
  const of = COLUMNS[by][1], sign = up ? 1 : -1;
  const missing = (value) => value === null || value === undefined;
  return matching.sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y); // at the end, whichever way
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  });
}

function list() {
  const matching = found(), rows = matching.slice(0, MOST_ROWS);
  const parts = [runs.length ? `${count(matching.length)} of ${count(runs.length)} runs` +
    (rows.length < matching.length ? `, the first ${MOST_ROWS} shown` : "") + "; choose two to see them side by side"
    : "No runs yet: start one, or start the dashboard with --results FILE.", ...troubles];
  say($("runs-note"), parts.join(". "));
  if (!runs.length) { put($("runs")); return; }
  put($("runs"), make("table", {},
    make("thead", {}, make("tr", {}, ...COLUMNS.map(([text, of], k) => make("th", { scope: "col", class: k === 1 || k === 2 ? "word" : null,
      "aria-sort": by === k ? (up ? "ascending" : "descending") : null },
    of ? make("button", { type: "button", "data-sort": k }, text, make("span", { "aria-hidden": "true" }, by === k ? (up ? " ▲" : " ▼") : "")) : make("span", { class: "hidden" }, "chosen"))))),
    make("tbody", {}, ...rows.map(row))));
}

function row(run) {
  const at = chosen.indexOf(run.key);
  const pick = make("button", { type: "button", "aria-pressed": String(at >= 0), "aria-label": `choose ${run.name}`, "data-pick": run.key },
    at === 0 ? "A" : at === 1 ? "B" : "+");
  const said = outcome(run);
  return make("tr", { "data-key": run.key },
    make("td", { class: "word pick" }, pick),
    make("td", { class: "word" }, run.name, make("small", { class: "note" }, ` ${run.origin}`)),
    make("td", { class: "word" }, run.policy ?? ""), make("td", {}, seconds(run.downtime_s)),
    make("td", {}, seconds(run.total_time_s || null)), make("td", {}, bytes(run.bytes_wire)), make("td", {}, count(run.rounds)),
    make("td", { class: run.verified && !run.error ? "good" : "bad", title: said.length > 60 ? said : null }, said.length > 60 ? `${said.slice(0, 59)}…` : said));
}

function clicked(event) {
  const pick = event.target.closest("[data-pick]")?.dataset.pick, sort = event.target.closest("[data-sort]")?.dataset.sort;
  if (pick !== undefined) {
    chosen = chosen.includes(pick) ? chosen.filter((other) => other !== pick) : [...chosen, pick].slice(-2);
    // The address tells what is on show, without a step back for each choice.
    history.replaceState(null, "", `#finished${chosen.length ? `/${chosen.map(encodeURIComponent).join()}` : ""}`);
    list();
    compare();
  } else if (sort !== undefined) {
    up = by === Number(sort) ? !up : true;
    by = Number(sort);
    list();
  }
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
  const most = Math.max(0, ...results.flatMap((r) => r.rounds.map((round) => round.pages_sent)));
  const down = Math.max(0, ...results.filter(went).map((r) => r.downtime_s.total));
  put(element, make("section", { class: "card" }, make("h3", {}, two.length > 1 ? "Side by side" : "One run"), figures(two)),
    make("div", { class: "sides" }, ...two.map((run, k) => side(run, "AB"[k], most, down))));
}

// Only a task that went over was down until it was runnable there.
const went = (result) => result.owner === "destination";

function side(run, letter, most, down) {
  const card = make("section", { class: "card" }, make("div", { class: "bar" }, make("h3", {}, `${letter}: ${run.name}`),
    run.result ? make("a", { href: `api/results/${encodeURIComponent(run.key)}.json`, download: "", "aria-label": `Result of ${letter} as JSON` }, "JSON") : null));
  if (run.error) card.append(make("p", { class: "trouble" }, run.error));
  if (!run.result) {
    if (!run.error) card.append(make("p", { class: "note" }, "no result"));
    return card;
  }
  const { result } = run, rounds = make("div"), downtime = make("div"), later = make("div");
  drawRounds(rounds, result.rounds, most);
  if (went(result)) drawDowntime(downtime, result.downtime_s, result.downtime_s.total, down);
  if (result.post_copy) drawLater(later, result.post_copy);
  card.append(rounds, downtime, later);
  if (result.mismatches.length) {
    const first = result.mismatches.slice(0, 20).map((m) => make("li", {}, make("code", {}, m.start), ` ${pages(m.pages)}, last sent in round ${m.last_round ?? "never"}`));
    card.append(make("p", { class: "bad" }, differ(result.pages_different)), make("ul", {}, ...first));
  }
  return card;
}

function figures(two) {
  const value = (run, of) => (run.result ? of(run.result) ?? null : null);
  const lines = [
    ["downtime", (r) => (went(r) ? r.downtime_s.total : null), seconds],
    ["total time", (r) => (went(r) ? r.total_time_s : null), seconds],
    ["on the wire", (r) => r.bytes_wire, bytes], ["rounds", (r) => r.rounds.length, count],
    ["pages lost", (r) => r.pages_lost, count], ["sent for nothing", (r) => r.pages_spurious, count],
    ["pages that differ", (r) => r.pages_different, count],
    ["waited for pages", (r) => r.post_copy?.stalled_s, seconds],
  ].filter(([, of]) => two.some((run) => value(run, of) !== null)).map(([name, of, show]) => {
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
  return table(["", ...two.map((_, k) => "AB"[k]), ...(two.length > 1 ? ["B / A"] : [])], [...lines, ...settings], { class: "two" });
}

function shown(setting, name) {
  if (setting === undefined) return "-";
  if (name === "memory") return bytes(setting);
  return typeof setting === "string" ? setting : JSON.stringify(setting);
}

export function startFinished() {
  $("find").addEventListener("input", list);
  $("reload").addEventListener("click", () => loadRuns());
  $("runs").addEventListener("click", clicked);
}
