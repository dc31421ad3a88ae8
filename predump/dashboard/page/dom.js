// Making elements, and figures as people read them. Text is always text, never HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "color") element.style.setProperty("--color", value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Makes the children of an element be as given. What is there already stays the same element, so
// that a click, a selected text, the focus and a screen reader's place outlive a new figure; for the
// same reason who wants to hear of clicks listens on the element, not on its children.
export function put(element, ...children) {
  const fresh = children.filter((child) => child !== null && child !== undefined)
    .map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  const keyed = new Map([...element.childNodes].filter((node) => node.dataset?.key).map((node) => [node.dataset.key, node]));
  let at = element.firstChild;
  for (const node of fresh) {
    const there = node.dataset?.key ? keyed.get(node.dataset.key) : at && !at.dataset?.key ? at : null;
    if (there && there.nodeName === node.nodeName) {
      if (there === at) at = at.nextSibling;
      else element.insertBefore(there, at);
      become(there, node);
    } else element.insertBefore(node, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function become(there, node) {
  if (there === node) return;
  if (there.nodeType === Node.TEXT_NODE) {
    if (there.data !== node.data) there.data = node.data;
    return;
  }
  for (const { name } of [...there.attributes]) {
    if (name !== "style" && name !== "open" && !node.hasAttribute(name)) there.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    if (name !== "style" && there.getAttribute(name) !== value) there.setAttribute(name, value);
  }
  if (there.style.cssText !== node.style.cssText) there.style.cssText = node.style.cssText;
  put(there, ...node.childNodes);
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (n) => (n === null || n === undefined ? "" : Math.round(n).toLocaleString("en"));
export const pages = (n) => (n === 1 ? "1 page" : `${count(n)} pages`);

export function bytes(n) {
  if (n === null || n === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let k = 0;
  while (n >= 1024 && k < units.length - 1) { n /= 1024; k += 1; }
  return `${k && n < 100 && !Number.isInteger(n) ? n.toFixed(1) : Math.round(n)}\u00a0${units[k]}`;
}

export function seconds(s) {
  if (s === null || s === undefined) return "";
  if (s === 0) return "0\u00a0s";
  const [value, unit] = s < 9.995e-4 ? [s * 1e6, "µs"] : s < 0.9995 ? [s * 1e3, "ms"] : [s, "s"];
  return `${Number(value.toPrecision(3)).toLocaleString("en")}\u00a0${unit}`;
}

// Keys of a picture: a colour, what it is, and how much of it.
export function keys(entries) {
  return entries.map(([color, name, value]) =>
    make("li", {}, make("i", { color }), name, value === undefined ? null : make("b", {}, value)));
}

export function table(head, rows, options = {}) {
  return make("table", { class: options.class },
    make("thead", {}, make("tr", {}, ...head.map((text, k) =>
      make("th", { scope: "col", class: options.words?.includes(k) ? "word" : null }, text || make("span", { class: "hidden" }, "figure"))))),
    make("tbody", {}, ...rows));
}

// A button that puts a text on the clipboard; `copying` hears them all.
export const copier = (text, what) => make("button", { type: "button", class: "copy", "data-copy": text, "aria-label": `Copy ${what}` }, "Copy");

export function copying() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      done = "Not allowed"; // a page over plain HTTP from another machine has no clipboard
    }
    say(button, done);
    say($("copied"), `${done}: ${button.getAttribute("aria-label")}`);
    setTimeout(() => say(button, "Copy"), 1500);
  });
}

export async function ask(path, fields) {
  const token = document.querySelector("meta[name=token]").content;
  const options = fields === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-predump-token": token },
    body: JSON.stringify(fields),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the dashboard does not answer");
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error ?? `the dashboard answered ${answer.status}`);
  return told;
}
