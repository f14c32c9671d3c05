// Code: its name, its language, a button that copies it, and colours where the language is one of a few.

import { button, copy, element, entry, plain } from "./dom.js";

const WORDS = {
  python: "and as assert async await break class continue def del elif else except finally for from global if import in is lambda " +
    "None nonlocal not or pass raise return True False try while with yield match case",
  js: "async await break case catch class const continue default delete do else export extends false finally for from function " +
    "if import in instanceof let new null of return static super switch this throw true try typeof undefined var void while " +
    "yield interface type enum",
  sql: "select from where group by order having limit offset insert into values update set delete create table index view drop " +
    "alter join left right inner outer on as and or not null is in exists between like case when then else end distinct union " +
    "all with primary key references",
  shell: "if then else elif fi for in do done while case esac function return export local set unset echo cd exit",
  go: "break case chan const continue default defer else fallthrough for func go goto if import interface map package range " +
    "return select struct switch type var nil true false",
  rust: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub " +
    "ref return self Self static struct super trait true type unsafe use where while",
  java: "abstract boolean break byte case catch char class const continue default do double else enum extends false final finally " +
    "float for if implements import int interface long new null package private protected public return short static super " +
    "switch this throw throws true try void while",
  data: "true false null yes no",
};
const FAMILY = {
  py: "python", python: "python", js: "js", javascript: "js", ts: "js", typescript: "js", jsx: "js", tsx: "js", json: "data", yaml: "data",
  yml: "data", toml: "data", sql: "sql", sh: "shell", bash: "shell", shell: "shell", console: "shell", go: "go", rust: "rust", rs: "rust",
  java: "java", c: "java", cpp: "java", "c++": "java", cs: "java", kotlin: "java",
};
const HASH = new Set(["python", "shell", "data"]);
const MOST_COLOURED = 40_000;

function rule(family) {
  const comment = family === "sql" ? "--[^\\n]*" : HASH.has(family) ? "#[^\\n]*" : "//[^\\n]*|/\\*[\\s\\S]*?\\*/";
  const text = family === "python" ? '"""[\\s\\S]*?"""|' : "";
  const quoted = `(?<s>${text}"(?:[^"\\\\\\n]|\\\\.)*"|'(?:[^'\\\\\\n]|\\\\.)*')`;
  return new RegExp(`(?<c>${comment})|${quoted}|(?<n>\\b\\d[\\d_.]*(?:e[+-]?\\d+)?\\b)|(?<w>[A-Za-z_]\\w*)`, "gi");
}

// The text again, piece by piece: what is coloured in spans, everything else as it is.
export function coloured(text, language) {
  const family = entry(FAMILY, String(language || "").toLowerCase());
  if (!family || text.length > MOST_COLOURED) return [text];
  const words = new Set(WORDS[family].split(" "));
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(rule(family))) {
    const { c, s, n, w } = match.groups;
    const name = c ? "comment" : s ? "string" : n ? "number" : words.has(family === "sql" ? w.toLowerCase() : w) ? "keyword" : "";
    if (!name) continue;
    nodes.push(text.slice(at, match.index), element("span", { class: `tok-${name}` }, match[0]));
    at = match.index + match[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

export function codeBlock({ text, language = "", name = "", title = "", note = null }) {
  const shown = element("code", {}, ...coloured(String(text ?? ""), language));
  const label = plain(name || title || language || "code", 80);
  const taking = button("Copy", { kind: "small ghost", symbol: "copy", onclick: () => copy(String(text ?? ""), shown) });
  return element("figure", { class: "code" },
    element("figcaption", {}, element("span", {}, label), name && language ? element("i", {}, plain(language, 30)) : null, taking),
    element("pre", { tabIndex: 0, role: "region", "aria-label": `Code: ${label}` }, shown), note);
}
