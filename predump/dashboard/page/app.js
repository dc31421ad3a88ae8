// The page: which view and which migration is on show, and the stream of figures.
import { $, ask, bytes, copier, copying, count, make, pages, put, say, seconds, table } from "./dom.js";
import { startActs, startForm } from "./acts.js";
import { drawDowntime, drawLater, drawRates, drawRounds, startRates, startRounds } from "./charts.js";
import { loadRuns, startFinished } from "./finished.js";
import { redrawMap, showMap, startMap } from "./map.js";
import { cause, differ, meaning, verdict } from "./words.js";

let about = { control: false, policies: [], hunks: [], scenarios: [] };
let status = { hosts: [], trouble: "", feed: "", malformed: 0, finished: 0 };
let order = [], rows = new Map();
let chosen = "";           // the migration on show
let follow = true;         // show whichever began last until the reader chooses one
let stream = null, again = 0;
let detail = null, changed = new Set();
let shownId = "";          // whose policy the form has
let known = false;         // the stream has said which migrations there are

// -- the stream

// A hidden page lets go of its stream: a browser has six connections to one host, for all its tabs.
function connect() {
  clearTimeout(again);
  stream?.close();
  stream = null;
  if (document.hidden) return;
  stream = new EventSource(`api/events?migration=${encodeURIComponent(chosen)}`);
  let first = true;
  stream.addEventListener("overview", (event) => {
    const told = JSON.parse(event.data);
    if (first) rows = new Map();
    first = false;
    takeOverview(told);
  });
  let fresh = true;
  stream.addEventListener("migration", (event) => {
    const told = JSON.parse(event.data);
    takeDetail(fresh || !detail || told.facts === null ? { ...told } : { ...detail, ...told }, fresh ? null : Object.keys(told));
    fresh = false;
  });
  stream.addEventListener("open", () => { first = fresh = true; });
  stream.addEventListener("error", () => {
    trouble("No connection to the dashboard; trying again.");
    if (stream?.readyState === EventSource.CLOSED) again = setTimeout(connect, 2000);
  });
}

document.addEventListener("visibilitychange", connect);

function trouble(text) {
  $("trouble").hidden = !text;
  say($("trouble"), text);
}

function show(id) {
  if (id === chosen) return;
  chosen = id;
  detail = null;
  // Nothing of another one stays under this name, least of all what acts on it.
  $("detail").hidden = $("unknown").hidden = true;
  connect();
  list();
}

// -- the list

function takeOverview(told) {
  known = true;
  const finished = status.finished;
  status = told.status ?? status;
  order = told.order ?? order;
  for (const [name, row] of Object.entries(told)) if (name.startsWith("row ")) rows.set(row.id, row);
  for (const id of rows.keys()) if (!order.includes(id)) rows.delete(id);
  trouble(status.trouble);
  const online = status.hosts.filter((host) => host.status === "online").length;
  const away = status.hosts.length - online;
  say($("feed"), `${status.feed}, ${online} host${online === 1 ? "" : "s"} online` + (away ? `, ${away} offline` : "") +
    (status.malformed ? `, ${count(status.malformed)} malformed messages` : ""));
  if (order.length && follow) show(order[0]);
  list();
  if (finished !== status.finished && !$("finished").hidden) loadRuns();
}

function list() {
  const words = $("list-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = order.map((id) => rows.get(id)).filter(Boolean).filter((row) => {
    const text = `${row.label} ${row.name} ${row.policy} ${row.workload} ${verdict(row)[0]}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  put($("list"), ...found.map((row) => {
    const [word, kind] = verdict(row);
    const down = row.ended && row.verified && row.downtime_s ? `down ${seconds(row.downtime_s)}` : null;
    const figures = [row.policy, row.round === null ? null : `round ${row.round}`, down ?? bytes(row.bytes_wire || null)]
      .filter(Boolean).join(", ");
    const at = new Date(1000 * row.started);
    return make("li", { "data-key": row.id }, make("a", { href: `#live/${encodeURIComponent(row.id)}`, "aria-current": row.id === chosen ? "true" : null },
      make("b", {}, row.name || row.label), " ", make("span", { class: kind }, word),
      make("small", {}, figures), make("small", {}, [row.name ? row.label : null, clock(at)].filter(Boolean).join(", "))));
  }));
  $("list-find-label").hidden = order.length < 6 && !words.length;
  $("none").hidden = found.length > 0;
  say($("none"), order.length ? "None of that name." : about.control ?
    "No migration yet. Start one here, or with predump migrate on these hosts." : "No migration yet: one appears here when a host begins it.");
  if (!order.length) $("detail").hidden = true;
}

function clock(at) {
  if (Number.isNaN(at.getTime())) return "";
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString("en-GB", today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" });
}

$("list").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const links = [...$("list").querySelectorAll("a")], at = links.indexOf(document.activeElement);
  if (by === undefined || at < 0) return;
  event.preventDefault();
  links[Math.min(links.length - 1, Math.max(0, at + by))].focus();
});

// -- one migration

// `parts`: what of it is new; null: all.
function takeDetail(told, parts) {
  detail = told;
  if (parts === null || !told.facts) changed = null;
  else if (changed) parts.forEach((part) => changed.add(part));
  requestAnimationFrame(() => { if (detail === told) showDetail(); });
}

function showDetail() {
  const { facts, rounds, rates, pages: map, mismatches, events } = detail;
  const is = (...names) => changed === null || names.some((name) => changed.has(name));
  $("detail").hidden = !facts;
  $("unknown").hidden = Boolean(facts) || !known;
  if (!facts) {
    say($("unknown"), `Nothing is known of a migration ${chosen}: the hosts have forgotten it, or it is of others.`);
    return;
  }
  if (is("facts")) showFacts(facts);
  if (is("facts", "pages", "mismatches")) showMap(map, mismatches, facts);
  if (is("rounds", "facts")) drawRounds($("rounds"), rounds, undefined, facts.ended || facts.host_lost);
  if (is("rates", "facts")) drawRates($("rates"), rates, facts.page_size ?? 4096);
  if (is("facts", "mismatches")) showLost(facts, mismatches);
  if (is("events")) {
    put($("events"), ...events.map((e) => make("li", {}, make("span", { class: "note" }, `${e.at_s === null ? "" : `${seconds(e.at_s)}, `}${e.role}: `),
      e.message || e.kind)));
    $("log").hidden = !events.length;
  }
  changed = new Set();
}

function showFacts(told) {
  const [word, kind] = verdict(told);
  say($("title"), told.name || told.label);
  $("id").hidden = !told.name;
  say($("id"), told.label);
  say($("chip"), word);
  $("chip").className = `chip ${kind}`;
  document.title = `${word}: ${told.name || told.label} - Predump`;
  $("to-run").hidden = !told.run;
  $("to-run").href = told.run ? `#finished/${told.run}` : "";
  say($("message"), told.error || told.message || "");
  $("message").className = told.error ? "bad" : "";
  say($("meaning"), meaning(told));
  const compared = told.verified || told.pages_different;
  const facts = [
    ["memory", told.memory_bytes ? `${bytes(told.memory_bytes)}, pages of ${bytes(told.page_size)}` : null], ["workload", told.workload],
    ["policy", told.policy], ["time", told.clock === "virtual" ? "simulated" : told.clock ? "real" : null], ["from", told.host],
    ["to", told.destination], ["left out", told.hunks_off.join(", ")], ["on the wire", bytes(told.bytes_wire || null)],
    ["lost", compared && told.pages_lost !== undefined ? pages(told.pages_lost) : null],
    ["sent for nothing", compared && told.pages_spurious !== undefined ? pages(told.pages_spurious) : null],
    ["has the task", told.in_doubt ? "nobody knows: in doubt" : told.owner ? `the ${told.owner}` : null],
    ["destination says", told.ended ? null : told.states.dest], ["total time", told.total_time_s ? seconds(told.total_time_s) : null], ["began", clock(new Date(1000 * told.started))],
    ["messages dropped", told.dropped ? count(told.dropped) : null],
  ].filter(([, value]) => value);
  put($("facts"), ...facts.map(([name, value]) => make("div", { "data-key": name }, make("dt", {}, name), make("dd", {}, value))));
  if (shownId !== told.id) $("acts").dispatchEvent(new CustomEvent("shown", { detail: told.policy ?? "" }));
  shownId = told.id;
  const done = Boolean(told.ended || told.downtime_parts_s);
  // Nobody can call the task back once it is offered, and no policy decides on a frozen one.
  const early = ["prepare", "round"].includes(told.state);
  $("acts").hidden = !about.control || done || told.host_lost || !(early || ["freeze", "final", "verify"].includes(told.state));
  $("redirect").disabled = !early;
  // Only a task that went over has been down for as long as that took.
  $("downtime-card").hidden = !(told.downtime_parts_s && told.total_time_s);
  if (told.downtime_parts_s) drawDowntime($("downtime"), told.downtime_parts_s, told.downtime_s);
  $("later-card").hidden = !told.post_copy;
  if (told.post_copy) drawLater($("later"), told.post_copy);
}

function showLost(told, mismatches) {
  const wrong = told.pages_different ?? 0;
  $("lost-card").hidden = !wrong;
  if (!wrong) { put($("lost")); return; }
  const listed = mismatches.reduce((n, m) => n + m.pages, 0), size = BigInt(told.page_size ?? 4096);
  const end = (m) => `0x${(BigInt(m.start) + BigInt(m.pages) * size - 1n).toString(16)}`;
  say($("lost-note"), `${differ(wrong)} at the destination. ${cause(told)}` + (listed < wrong ? ` The first ${count(listed)}:` : ""));
  put($("lost-why"), ...told.hunks_off.map(hunk),
    told.hunks_off.length ? null : make("p", { class: "note" }, "No hunk of the patch is left out."));
  put($("lost-copy"), mismatches.length ? copier(mismatches.map((m) => `${m.pid} ${m.start}-${end(m)} ${m.pages} ${m.last_round ?? "never"}`).join("\n"), "the list") : null);
  put($("lost"), table(["process", "from", "to", "pages", "last sent in round"], mismatches.map((m) =>
    make("tr", {}, make("td", {}, m.pid), make("td", {}, make("code", {}, m.start)), make("td", {}, make("code", {}, end(m))),
      make("td", {}, count(m.pages)), make("td", {}, m.last_round === null ? "never" : m.last_round)))));
}

// What a hunk that is left out would have done.
function hunk(name) {
  const known = about.hunks.find((h) => h.name === name);
  const command = `predump hunks explain ${name}`;
  return make("div", { class: "hunk", "data-key": name },
    make("p", {}, make("b", {}, known?.variant ? "Changed: " : "Left out: "), make("code", {}, name),
      known ? make("span", { class: "note" }, ` ${known.file}, ${known.function}`) : null),
    known ? make("p", {}, known.protects) : null,
    known ? make("p", { class: "note" }, "Step by step, with the entry's bits: ", make("code", {}, command), " ", copier(command, "the command")) : null);
}

// -- views and themes

function view() {
  const [, name, rest] = /^#(\w+)\/?(.*)$/.exec(location.hash) ?? [null, "live", ""];
  const finished = name === "finished";
  $("live").hidden = finished;
  $("finished").hidden = !finished;
  for (const [id, on] of [["to-live", !finished], ["to-finished", finished]]) {
    if (on) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  const wanted = part(rest);
  if (finished) {
    document.title = "Finished runs - Predump";
    loadRuns(wanted);
    return;
  }
  follow = !wanted;
  if (wanted) show(wanted);
  else if (order.length) show(order[0]);
  $("to-live").href = "#live";
  redraw();
}

function part(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function redraw() {
  redrawMap();
  if (!detail) return;
  changed = null;
  showDetail();
}

const dark = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
function themed() {
  say($("theme"), isDark() ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", `${isDark() ? "Light" : "Dark"} theme`);
  redraw();
}
let kept = null;
try {
  kept = localStorage.getItem("predump-theme");
} catch { /* a browser may keep nothing */ }
if (kept === "dark" || kept === "light") root.dataset.theme = kept;
$("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("predump-theme", root.dataset.theme);
  } catch { /* then for this visit */ }
  themed();
});
dark.addEventListener("change", themed);
addEventListener("resize", () => { if (detail?.facts) drawRates($("rates"), detail.rates, detail.facts.page_size ?? 4096); });
addEventListener("hashchange", view);
$("list-find").addEventListener("input", list);

// Past the list as well; the address keeps saying what is on show.
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  const to = $("live").hidden || $("detail").hidden ? $("content") : $("detail");
  to.focus();
  to.scrollIntoView();
});

copying();
startMap();
startRates();
startRounds(redraw);
startFinished();
try {
  about = await ask("api/about");
} catch (error) {
  trouble(error.message);
}
startActs(about, () => chosen);
startForm(about, (id) => { location.hash = `#live/${encodeURIComponent(id)}`; });
themed();
view();
if (!stream) connect();
root.dataset.ready = "";
