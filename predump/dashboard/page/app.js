// The page: which view and which migration is on show, the stream of figures, and what can be done.
import { $, ask, bytes, count, make, put, say, seconds } from "./dom.js";
import { drawDowntime, drawRates, drawRounds } from "./charts.js";
import { loadRuns, startFinished } from "./finished.js";
import { redrawMap, showMap, startMap } from "./map.js";

let about = { control: false, policies: [], hunks: [], scenarios: [] };
let overview = { rows: [], hosts: [], trouble: "", finished: 0 };
let chosen = "";           // the migration on show
let follow = true;         // show whichever is newest until the reader chooses one
let stream = null;
let detail = null;

// -- the stream

function connect() {
  stream?.close();
  stream = new EventSource(`api/events?migration=${encodeURIComponent(chosen)}`);
  stream.addEventListener("overview", (event) => showOverview(JSON.parse(event.data)));
  stream.addEventListener("migration", (event) => showDetail(JSON.parse(event.data)));
  stream.addEventListener("error", () => trouble("No connection to the dashboard; trying again."));
}

function trouble(text) {
  $("trouble").hidden = !text;
  say($("trouble"), text);
}

function show(id) {
  if (id === chosen) return;
  chosen = id;
  connect();
  list();
}

// -- the list

function verdict(row) {
  if (row.host_lost) return ["host lost", "bad"];
  if (row.ended && row.verified === true && !row.failed) return ["verified", "good"];
  if (row.verified === false && (row.ended || row.downtime_s)) return [row.failed ? "failed" : "differs", "bad"];
  if (row.ended) return [row.state, row.failed || row.state === "failed" ? "bad" : ""];
  return [row.state, "busy"];
}

function showOverview(told) {
  const ended = told.finished !== overview.finished;
  overview = told;
  trouble(told.trouble);
  const online = told.hosts.filter((host) => host.status === "online").length;
  const hosts = `${online} host${online === 1 ? "" : "s"} online`;
  say($("feed"), `${told.feed}, ${hosts}` + (told.malformed ? `, ${count(told.malformed)} malformed messages` : ""));
  const newest = told.rows[0]?.id ?? "";
  if (newest && (follow || !told.rows.some((row) => row.id === chosen))) show(newest);
  list();
  if (ended && !$("finished").hidden) loadRuns();
}

function list() {
  const focused = document.activeElement?.dataset?.id;
  put($("list"), ...overview.rows.map((row) => {
    const [word, kind] = verdict(row);
    const figures = [row.round === null ? null : `round ${row.round}`, bytes(row.bytes_wire),
      row.verified && row.downtime_s ? `down ${seconds(row.downtime_s)}` : null].filter(Boolean).join(", ");
    return make("li", {}, make("button", { type: "button", "data-id": row.id, "aria-current": row.id === chosen ? "true" : null,
      onclick: () => { follow = false; show(row.id); } },
      make("b", {}, row.id), " ", make("span", { class: kind }, word), make("small", {}, figures)));
  }));
  if (focused) document.querySelector(`#list [data-id="${CSS.escape(focused)}"]`)?.focus();
  $("none").hidden = overview.rows.length > 0;
  say($("none"), about.control ? "None yet. Start one." : "None yet.");
}

$("list").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const buttons = [...$("list").querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  if (by === undefined || at < 0) return;
  event.preventDefault();
  buttons[Math.min(buttons.length - 1, Math.max(0, at + by))].focus();
});

// -- one migration

function showDetail(told) {
  detail = told;
  $("detail").hidden = !told;
  if (!told) return;
  const [word, kind] = verdict(told);
  say($("title"), told.id);
  say($("chip"), word);
  $("chip").className = `chip ${kind}`;
  say($("message"), told.error || told.message || "");
  $("message").className = told.error ? "bad" : "";
  say($("facts"), [
    told.memory_bytes ? bytes(told.memory_bytes) : null, told.workload, told.policy ? `policy ${told.policy}` : null,
    told.clock === "virtual" ? "simulated time" : told.clock ? "real time" : null, told.host ? `from ${told.host}` : null,
    told.destination ? `to ${told.destination}` : null, told.hunks_off.length ? `without ${told.hunks_off.join(", ")}` : null,
    told.verified !== null && told.pages_lost !== undefined ?
      `${count(told.pages_lost)} pages lost, ${count(told.pages_spurious)} sent for nothing` : null,
    told.owner ? `the ${told.owner} has the task` : null, told.total_time_s ? `total ${seconds(told.total_time_s)}` : null,
  ].filter(Boolean).join(", "));
  const done = Boolean(told.ended || told.downtime_parts_s);
  $("acts").hidden = !about.control || done;
  showMap(told.pages, told.mismatches, told.page_size);
  drawRounds($("rounds"), told.rounds);
  drawRates($("rates"), told.rates, told.page_size ?? 4096);
  // Only a task that went over has been down for as long as that took.
  $("downtime-card").hidden = !(told.downtime_parts_s && told.total_time_s);
  if (told.downtime_parts_s) drawDowntime($("downtime"), told.downtime_parts_s, told.downtime_s);
  showLost(told);
}

function showLost(told) {
  const wrong = told.pages_different ?? 0;
  $("lost-card").hidden = !wrong;
  if (!wrong) { put($("lost")); return; }
  const listed = told.mismatches.reduce((n, m) => n + m.pages, 0);
  say($("lost-note"), `${count(wrong)} pages differ at the destination` +
    (told.pages_lost ? `; ${count(told.pages_lost)} were written and not reported as soft-dirty` : "") +
    (listed < wrong ? `. The first ${count(listed)} of them:` : ":"));
  const size = BigInt(told.page_size ?? 4096), name = `${told.id} ${told.mismatches.length}`;
  if ($("lost").dataset.shown === name && $("lost").firstChild) return;
  $("lost").dataset.shown = name;
  put($("lost"), make("table", {},
    make("thead", {}, make("tr", {}, ...["process", "from", "to", "pages", "last sent in round"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...told.mismatches.map((m) => make("tr", {}, make("td", {}, m.pid), make("td", {}, make("code", {}, m.start)),
      make("td", {}, make("code", {}, `0x${(BigInt(m.start) + BigInt(m.pages) * size - 1n).toString(16)}`)),
      make("td", {}, count(m.pages)), make("td", {}, m.last_round === null ? "never" : m.last_round))))));
}

// -- acting

async function act(path, fields, done) {
  say($("acted"), "…");
  try {
    await ask(path, fields);
    say($("acted"), done);
    $("acted").className = "";
  } catch (error) {
    say($("acted"), error.message);
    $("acted").className = "bad";
  }
}

$("abort").addEventListener("click", () => act("api/abort", { id: chosen }, "aborted"));
$("acts").addEventListener("submit", (event) => {
  event.preventDefault();
  const settings = $("policy-settings").value.split(/[\s,]+/).filter(Boolean);
  act("api/policy", { id: chosen, settings: [`kind=${$("policy").value}`, ...settings] },
    "changed from the end of this round on");
});

function options(select, names, first) {
  put(select, ...(first ? [make("option", { value: "" }, first)] : []), ...names.map((name) => make("option", { value: name }, name)));
}

const form = $("start-form");
$("new").addEventListener("click", () => { $("start-trouble").hidden = true; $("start").showModal(); });
$("cancel").addEventListener("click", () => $("start").close());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(form), settings = [];
  for (const name of ["policy.kind", "memory", "workload.rate", "link.bandwidth", "hunks.off"]) {
    const value = String(given.get(name)).trim();
    if (value) settings.push(`${name}=${value}`);
  }
  settings.push(...String(given.get("more")).split("\n").map((line) => line.trim()).filter(Boolean));
  $("go").disabled = true;
  $("start-trouble").hidden = true;
  try {
    const { id } = await ask("api/start", { scenario: given.get("scenario"), settings });
    $("start").close();
    follow = false;
    location.hash = "#live";
    say($("acted"), "");
    show(id);
  } catch (error) {
    $("start-trouble").hidden = false;
    say($("start-trouble"), error.message);
  }
  $("go").disabled = false;
});

// -- views and themes

function view() {
  const finished = location.hash === "#finished";
  $("live").hidden = finished;
  $("finished").hidden = !finished;
  for (const [id, on] of [["to-live", !finished], ["to-finished", finished]]) {
    if (on) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  if (finished) loadRuns();
  else redraw();
}

function redraw() {
  if (detail) showDetail(detail);
  redrawMap();
}

const dark = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
const kept = localStorage.getItem("predump-theme");
if (kept === "dark" || kept === "light") root.dataset.theme = kept;
$("theme").addEventListener("click", () => {
  const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("predump-theme", root.dataset.theme);
  redraw();
});
dark.addEventListener("change", redraw);
addEventListener("resize", () => { if (detail) drawRates($("rates"), detail.rates, detail.page_size ?? 4096); });
addEventListener("hashchange", view);

startMap();
startFinished();
try {
  about = await ask("api/about");
} catch (error) {
  trouble(error.message);
}
$("new").hidden = !about.control;
options($("policy"), about.policies);
options(form.elements.scenario, about.scenarios);
options(form.elements["policy.kind"], about.policies, "as in the scenario");
options(form.elements["hunks.off"], about.hunks, "none");
view();
connect();
root.dataset.ready = "";
