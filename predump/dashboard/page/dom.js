// Making elements, and figures as people read them. Text is always text, never HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "color") element.style.setProperty("--color", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function put(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null));
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (n) => (n === null || n === undefined ? "" : Math.round(n).toLocaleString("en"));

export function bytes(n) {
  if (n === null || n === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let k = 0;
  while (n >= 1024 && k < units.length - 1) { n /= 1024; k += 1; }
  return `${k && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[k]}`;
}

export function seconds(s) {
  if (s === null || s === undefined) return "";
  if (s === 0) return "0 s";
  const [value, unit] = s < 9.995e-4 ? [s * 1e6, "µs"] : s < 0.9995 ? [s * 1e3, "ms"] : [s, "s"];
  return `${Number(value.toPrecision(3)).toLocaleString("en")} ${unit}`;
}

// Keys of a picture: a colour, what it is, and how much of it.
export function keys(entries) {
  return entries.map(([color, name, value]) =>
    make("li", {}, make("i", { color }), name, value === undefined ? null : make("b", {}, value)));
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
