// A table whose columns can be put in order.

import { button, count, element, plain } from "./dom.js";

const FIRST = 50;

const empty = (cell) => cell === null || cell === undefined || cell === "";
const numeric = (cell) => typeof cell === "number" || (typeof cell === "string" && /^[-+]?[\d,]*\.?\d+\s*%?$/.test(cell.trim()));
const number = (cell) => (typeof cell === "number" ? cell : parseFloat(String(cell).replace(/[,%\s]/g, "")));

function compare(a, b) {
  if (numeric(a) && numeric(b)) return number(a) - number(b);
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function words(cell) {
  if (cell === null || cell === undefined) return element("span", { class: "nothing" }, "—");
  if (typeof cell === "boolean") return cell ? "yes" : "no";
  if (typeof cell === "number") return Math.abs(cell) >= 10_000 ? cell.toLocaleString("en", { maximumFractionDigits: 6 }) : String(cell);
  return typeof cell === "object" ? JSON.stringify(cell) : String(cell);
}

// `format` makes nodes of a cell that is a text; `note` stands below.
export function table({ columns = [], rows = [], title = "", format = null, note = null, total = rows.length }) {
  const body = element("tbody");
  const wide = Math.max(columns.length, ...rows.slice(0, 1000).map((row) => row.length), 0);
  const right = Array.from({ length: wide }, (_, at) => rows.length > 0 && rows.every((row) => empty(row[at]) || numeric(row[at])));
  let order = rows;
  let shown = FIRST;
  const more = button("Show all rows", { kind: "small ghost", onclick: () => ((shown = Infinity), draw()) });

  function draw() {
    body.replaceChildren(...order.slice(0, shown).map((row) => element("tr", {}, ...Array.from({ length: wide }, (_, at) =>
      element("td", right[at] ? { class: "number" } : { dir: "auto" }, ...[format && typeof row[at] === "string" ? format(row[at])
        : words(row[at])].flat())))));
    more.hidden = order.length <= shown;
  }

  const heads = Array.from({ length: wide }, (_, at) => {
    const name = plain(columns[at] ?? `Column ${at + 1}`, 120) || `Column ${at + 1}`;
    const head = element("th", { scope: "col", class: right[at] ? "number" : null, "aria-sort": "none" },
      element("button", { type: "button", class: "sort", onclick: () => sort(head, at) }, name));
    return head;
  });

  function sort(head, at) {
    const next = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
    const sign = next === "ascending" ? 1 : -1;
    // What is empty stands last, whichever way.
    order = [...rows].sort(({ [at]: a }, { [at]: b }) => (empty(a) || empty(b) ? empty(a) - empty(b) : sign * compare(a, b)));
    draw();
  }

  draw();
  const name = plain(title, 300);
  const told = total > rows.length ? `The first ${count(rows.length)} of ${count(total)} rows.` : "";
  return element("figure", { class: "table" },
    element("div", { class: "scroller", tabIndex: 0, role: "region", "aria-label": name || "Table" },
      element("table", {}, name ? element("caption", {}, name) : null, element("thead", {}, element("tr", {}, ...heads)), body)),
    more, told || note ? element("figcaption", {}, told, " ", note) : null);
}
