// How the page makes nodes and words. Nothing is ever set as HTML, so no text can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.setAttribute("class", value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !/^(aria-|data-|role$|href$|id$|list$|form$)/.test(key) && !(node instanceof SVGElement)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const element = (name, properties = {}, ...children) => fill(document.createElement(name), properties, children);
export const drawing = (name, properties = {}, ...children) => fill(document.createElementNS(SVG, name), properties, children);
export const $ = (id) => document.getElementById(id);

// One of the icons of icons.svg. It says nothing by itself: what it stands in has the name.
export function icon(name) {
  return drawing("svg", { class: "icon", "aria-hidden": "true", viewBox: "0 0 20 20" }, drawing("use",
    { href: `/console/icons.svg#${name}` }));
}

export function button(label, { kind = "", symbol = "", quiet = false, ...rest } = {}) {
  const drawn = symbol ? icon(symbol) : null;
  const words = quiet ? {} : { text: label };
  return element("button", { type: "button", class: `button ${kind}`, ...(quiet ? { "aria-label": label, title: label } : {}), ...rest },
    drawn, words.text ? element("span", {}, words.text) : null);
}

// Names that others chose (files, agents, threads): without control characters and without marks that turn the reading direction.
export function plain(value, most = 200) {
  const text = String(value ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, " ").trim();
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

export function json(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "";
}

export function money(microusd) {
  const usd = (microusd || 0) / 1e6;
  if (!usd) return "$0";
  return `$${usd.toFixed(usd < 0.01 ? 6 : usd < 1 ? 4 : 2)}`;
}

// What a table of ours says of a name that came from outside; `constructor` is no entry of it.
export const entry = (table, name) => (Object.hasOwn(table, name) ? table[name] : undefined);
export const count = (number) => (Number(number) || 0).toLocaleString("en");

export const some = (number, name) => `${count(number)} ${name}${number === 1 ? "" : "s"}`;

export function bytes(size) {
  if (!(size >= 0)) return "";
  for (const [unit, amount] of [["MiB", 1 << 20], ["KiB", 1 << 10]]) if (size >= amount) return `${(size / amount).toFixed(1)} ${unit}`;
  return `${size} B`;
}

export function lasting(ms) {
  if (!(ms >= 0)) return "—";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.round((ms % 60_000) / 1000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function ago(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (Number.isNaN(seconds)) return "—";
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

export function moment(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

// What a screen reader is told. The same words twice are told twice.
export function announce(text, urgent = false) {
  const box = $(urgent ? "alert" : "announce");
  if (box) box.textContent = box.textContent === text ? `${text}\u00a0` : text;
}

// An empty, failed or loading place: what it is, and what can be done.
export function state(kind, title, words, ...actions) {
  return element("div", { class: `placeholder ${kind}`, ...(kind === "failed" ? { role: "alert" } : {}) },
    kind === "loading" ? element("span", { class: "spinner", "aria-hidden": "true" }) : icon(kind === "failed" ? "warning" : "empty"),
    element("h3", {}, title), words ? element("p", {}, words) : null, actions.length ? element("p", { class: "actions" }, ...actions)
      : null);
}

export function explain(error) {
  if (error.status === 401) return "The API key is not valid.";
  return error.requestId ? `${error.message} (request ${error.requestId})` : error.message;
}

// Text into the clipboard; without permission it is left selected, so that the keyboard can take it.
export async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied.");
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    announce("Selected. Press Control C to copy.");
    return false;
  }
}
