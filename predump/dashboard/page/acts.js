// What can be done: start a migration, abort one, give it another policy.
import { $, ask, make, put, say } from "./dom.js";

const named = (list, kind) => list.find((policy) => policy.kind === kind);
const keyNames = (policy) => policy?.keys.map((key) => `${key.name}=${key.default}`).join(", ") ?? "";

function does(policy) {
  return policy ? [policy.does, ...policy.keys.map((key) => `${key.name}: ${key.does} (${key.default})`)].join(" · ") : "";
}

function options(select, names, first) {
  put(select, ...(first ? [make("option", { value: "" }, first)] : []), ...names.map((name) => make("option", { value: name }, name)));
}

const words = (text) => text.split(/[\s,]+/).filter(Boolean);

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

export function startActs(about, chosen) {
  options($("policy"), about.policies.map((policy) => policy.kind));
  const tell = () => {
    const policy = named(about.policies, $("policy").value);
    say($("policy-does"), policy ? `${policy.does} ${keyNames(policy) ? `Settings: ${keyNames(policy)}.` : ""}` : "");
    $("policy-settings").placeholder = keyNames(policy);
    $("policy-settings").disabled = !policy?.keys.length;
  };
  $("policy").addEventListener("change", tell);
  tell();
  $("acts").addEventListener("shown", (event) => {
    $("policy").value = event.detail;
    if (!$("policy").value) $("policy").selectedIndex = 0;
    $("policy-settings").value = "";
    say($("acted"), "");
    tell();
  });
  $("abort").addEventListener("click", () => act("api/abort", { id: chosen() }, "aborted"));
  $("acts").addEventListener("submit", (event) => {
    event.preventDefault();
    const settings = $("policy-settings").disabled ? [] : words($("policy-settings").value);
    act("api/policy", { id: chosen(), settings: [`kind=${$("policy").value}`, ...settings] },
      "changed from the end of this round on");
  });
}

// `started` is called with the id of a migration that has begun.
export function startForm(about, started) {
  const form = $("start-form"), field = (name) => form.elements[name];
  $("new").hidden = !about.control;
  options(field("scenario"), about.scenarios.map((scenario) => scenario.name));
  options(field("policy.kind"), about.policies.map((policy) => policy.kind), "as in the scenario");
  const group = (label, hunks) => make("optgroup", { label }, ...hunks.map((hunk) => make("option", { value: hunk.name }, hunk.name)));
  put(field("hunks.off"), make("option", { value: "" }, "none"), group("hunks of the patch", about.hunks.filter((h) => !h.variant)),
    group("mistakes in or around it", about.hunks.filter((h) => h.variant)));
  const tell = () => {
    const scenario = about.scenarios.find((s) => s.name === field("scenario").value), keys = scenario?.keys ?? {};
    say($("scenario-does"), scenario?.trouble ?? [keys.memory, keys["workload.kind"], keys["workload.rate"], keys["policy.kind"] ? `policy ${keys["policy.kind"]}` : null,
      keys["link.bandwidth"], keys.clock === "wall" ? "real time" : "simulated time"].filter(Boolean).join(", "));
    for (const name of ["memory", "workload.rate", "link.bandwidth"]) field(name).placeholder = keys[name] ?? "default";
    const policy = named(about.policies, field("policy.kind").value);
    say($("start-policy-does"), does(policy));
    field("policy").placeholder = keyNames(policy) || "rounds=2";
    const hunk = about.hunks.find((h) => h.name === field("hunks.off").value);
    say($("start-hunk-does"), hunk ? `${hunk.file}, ${hunk.function}: ${hunk.protects}` : "");
  };
  form.addEventListener("change", tell);
  tell();
  $("new").addEventListener("click", () => { $("start-trouble").hidden = true; $("start").showModal(); });
  $("cancel").addEventListener("click", () => $("start").close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = new FormData(form), settings = [];
    for (const name of ["policy.kind", "memory", "workload.rate", "link.bandwidth", "hunks.off"]) {
      const value = String(given.get(name)).trim();
      if (value) settings.push(`${name}=${value}`);
    }
    settings.push(...words(String(given.get("policy"))).map((text) => `policy.${text}`));
    settings.push(...String(given.get("more")).split("\n").map((line) => line.trim()).filter(Boolean));
    $("go").disabled = true;
    say($("go"), "Starting…");
    $("start-trouble").hidden = true;
    try {
      const { id } = await ask("api/start", { scenario: given.get("scenario"), settings });
      $("start").close();
      say($("acted"), "");
      started(id);
    } catch (error) {
      $("start-trouble").hidden = false;
      say($("start-trouble"), error.message);
    }
    $("go").disabled = false;
    say($("go"), "Start");
  });
}
