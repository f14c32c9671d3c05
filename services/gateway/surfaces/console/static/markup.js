// Markdown of agents as DOM nodes: headings, lists, quotes, tables, code, emphasis, links, citations. Raw HTML is text, and images of
// other addresses are links, because what a model writes must not make this page ask anybody for anything.

import { codeBlock } from "./code.js";
import { element } from "./dom.js";
import { table } from "./table.js";

const INLINE = new RegExp([
  /(?<code>(`+)(?!`).{1,4000}?(?<!`)\2(?!`))/, /(?<strong>\*\*(?=\S)[^\n]{1,2000}?(?<=\S)\*\*)/,
    /(?<strike>~~(?=\S)[^\n]{1,2000}?(?<=\S)~~)/,
  /(?<em>(?<![\w*])\*(?=[^\s*])[^*\n]{1,1000}?(?<=\S)\*(?![\w*])|(?<!\w)_(?=[^\s_])[^_\n]{1,1000}?(?<=\S)_(?!\w))/,
  /(?<image>!\[[^\]\n]{0,500}\]\([^()\s]{1,2000}(?:\s+"[^"\n]*")?\))/, /(?<link>\[[^\]\n]{1,500}\]\([^()\s]{1,2000}(?:\s+"[^"\n]*")?\))/,
  /(?<bare>https?:\/\/[^\s<>"'`)\]]{2,2000})/, /(?<cite>\[[a-z]\d{1,3}\])/, /(?<escaped>\\[\\`*_{}[\]()#+\-.!~|>])/,
].map((one) => one.source).join("|"), "g");
const DEEPEST = 6;

// An address that a reader may follow, or null. Nothing but the web and mail is one.
export function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(words, address) {
  const href = safe(address);
  if (!href) return [words];
  return [element("a", { href, rel: "noopener noreferrer nofollow", target: "_blank", referrerPolicy: "no-referrer", title: href }, words)];
}

function inline(text, anchor, depth = 0) {
  if (depth > DEEPEST) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(...piece(match[0], match.groups, anchor, depth + 1));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function piece(text, found, anchor, depth) {
  if (found.code) {
    const ticks = /^`+/.exec(text)[0].length;
    return [element("code", {}, text.slice(ticks, -ticks).replace(/^ (.*\S.*) $/, "$1"))];
  }
  if (found.strong) return [element("strong", {}, ...inline(text.slice(2, -2), anchor, depth))];
  if (found.strike) return [element("s", {}, ...inline(text.slice(2, -2), anchor, depth))];
  if (found.em) return [element("em", {}, ...inline(text.slice(1, -1), anchor, depth))];
  if (found.escaped) return [text[1]];
  if (found.bare) {
    const end = /[.,;:!?]+$/.exec(text)?.[0] || "";
    const address = text.slice(0, text.length - end.length);
    return [...link(address, address), end];
  }
  if (found.cite) {
    const id = text.slice(1, -1);
    return [element("a", { class: "cite", href: `#${anchor}-${id}`, "data-cite": id, "aria-label": `Source ${id}` }, id)];
  }
  const [, words, address] = /^!?\[([^\]]*)\]\(([^\s)]+)/.exec(text);
  return found.image ? [...link(words || "picture", address), " (picture not loaded)"] : link(words, address);
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

// Items by how far they stand in; what stands further in belongs to the item before it.
function items(lines, anchor, depth = 0) {
  const first = ITEM.exec(lines[0]);
  const numbered = /\d/.test(first[2]);
  const made = element(numbered ? "ol" : "ul", numbered && parseInt(first[2], 10) !== 1 ? { start: parseInt(first[2], 10) } : {});
  for (let index = 0; index < lines.length; ) {
    const [, , , words] = ITEM.exec(lines[index]) || [null, "", "", lines[index].trim()];
    const below = [];
    for (index += 1; index < lines.length; index += 1) {
      const next = ITEM.exec(lines[index]);
      if (next && (depth > DEEPEST || next[1].length <= first[1].length + 1)) break;
      below.push(lines[index]);
    }
    const task = /^\[([ xX])\]\s+/.exec(words);
    const item = element("li", {}, task ? (task[1] === " " ? "☐ " : "☑ ") : null, ...inline(task ? words.slice(task[0].length) : words,
      anchor));
    const nested = below.findIndex((line) => ITEM.test(line));
    const more = nested < 0 ? below : below.slice(0, nested);
    if (more.length) item.append(" ", ...inline(more.map((line) => line.trim()).join(" "), anchor));
    if (nested >= 0) item.append(items(below.slice(nested), anchor, depth + 1));
    made.append(item);
  }
  return made;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
const RULE = /^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?$/;

function block(lines, anchor, depth) {
  const heading = /^(#{1,6})\s+(.*)$/.exec(lines[0]);
  if (heading) {
    const rest = lines.slice(1);
    const level = Math.min(6, heading[1].length + 2);
    return [element(`h${level}`, {}, ...inline(heading[2].trim(), anchor)), ...(rest.length ? block(rest, anchor, depth) : [])];
  }
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(lines[0])) return [element("hr"), ...(lines.length > 1 ? block(lines.slice(1), anchor, depth)
    : [])];
  if (/^\s*>/.test(lines[0]) && depth < DEEPEST) {
    const end = lines.findIndex((line) => !/^\s*>/.test(line));
    const quoted = (end < 0 ? lines : lines.slice(0, end)).map((line) => line.replace(/^\s*> ?/, ""));
    return [element("blockquote", {}, ...blocks(quoted.join("\n"), anchor, depth + 1)), ...(end > 0 ? block(lines.slice(end), anchor,
      depth) : [])];
  }
  if (lines.length > 1 && lines[0].includes("|") && RULE.test(lines[1].trim())) {
    const end = lines.findIndex((line, index) => index > 1 && !line.includes("|"));
    const rows = (end < 0 ? lines.slice(2) : lines.slice(2, end)).map(cells);
    const shown = table({ columns: cells(lines[0]), rows, format: (cell) => inline(cell, anchor) });
    return [shown, ...(end > 0 ? block(lines.slice(end), anchor, depth) : [])];
  }
  const begins = lines.findIndex((line) => ITEM.test(line));
  if (begins === 0) return [items(lines, anchor)];
  if (begins > 0 && /^\s{0,3}([-*+]|1[.)])\s/.test(lines[begins])) {
    return [...block(lines.slice(0, begins), anchor, depth), items(lines.slice(begins), anchor)];
  }
  const nodes = [];
  lines.forEach((line, index) => nodes.push(...(index ? [element("br")] : []), ...inline(line, anchor)));
  return [element("p", {}, ...nodes)];
}

function blocks(text, anchor, depth) {
  return text.split(/\n[ \t]*\n+/).filter((part) => part.trim())
    .flatMap((part) => block(part.replace(/^\n+/, "").trimEnd().split("\n"), anchor, depth));
}

const FENCE = /^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)\n([\s\S]*?)(?:\n?^[ \t]{0,3}\1[`~]*[ \t]*$|(?![\s\S]))/gm;

const MOST_CHARACTERS = 200_000;

// Nodes for a text; `anchor` is the prefix of the ids that citations point to. What is too long or too deep is shown as it is.
export function prose(text, anchor) {
  const source = String(text).replace(/\r\n?/g, "\n");
  if (source.length > MOST_CHARACTERS) return [element("p", { class: "verbatim" }, source)];
  const nodes = [];
  let at = 0;
  try {
    for (const match of source.matchAll(FENCE)) {
      nodes.push(...blocks(source.slice(at, match.index), anchor, 0));
      nodes.push(codeBlock({ text: match[3], language: match[2].trim().split(/\s/)[0] }));
      at = match.index + match[0].length;
    }
    nodes.push(...blocks(source.slice(at), anchor, 0));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return [element("p", { class: "verbatim" }, source)];
  }
  return nodes;
}
