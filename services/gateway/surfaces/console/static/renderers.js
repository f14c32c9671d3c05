// Which function draws which content. A type that nobody registered is shown by its name and harms nothing.

import { chart } from "./chart.js";
import { codeBlock } from "./code.js";
import { element, icon, json, plain } from "./dom.js";
import { prose } from "./markup.js";
import { audio, file, image, save } from "./media.js";
import { table } from "./table.js";

const renderers = new Map();

export const register = (type, draw) => renderers.set(type, draw);
export const has = (type) => renderers.has(type);

// A figure for one content event. Data that its renderer cannot read is shown like an unknown type, not as a broken page.
export function render(type, data, anchor = "") {
  const draw = renderers.get(type);
  if (!draw) return unknown(type, data, "This console does not know this kind of content.");
  try {
    return draw(data ?? {}, anchor);
  } catch (error) {
    return unknown(type, data, `This content is not what its type says (${plain(error.message, 120)}).`);
  }
}

function unknown(type, data, words) {
  const shown = element("pre", { tabIndex: 0 });
  const box = element("details", { class: "unknown" }, element("summary", {}, icon("box"), element("b", {}, plain(type, 60) || "content"),
    element("span", {}, words)), shown);
  box.addEventListener("toggle", () => (shown.textContent ||= json(data).slice(0, 20_000)), { once: true });
  return box;
}

register("text", (data, anchor) => element("div", { class: "prose" }, ...prose(data.text ?? "", anchor)));
register("code_block", (data) => codeBlock({
  text: data.text, language: data.language, name: data.name, title: data.title,
  note: data.blob_id ? element("p", { class: "note" }, "The beginning only. ", save({ name: "code.txt", ...data }, "Download all")) : null,
}));
register("table", (data) => {
  if (!Array.isArray(data.rows) || !data.rows.every(Array.isArray)) throw new TypeError("rows are no lists");
  const columns = Array.isArray(data.columns) ? data.columns : [];
  const note = data.blob_id ? save({ name: "table.csv", ...data }, "Download all rows") : null;
  return table({ columns, rows: data.rows, title: data.title, total: data.total_rows, note });
});
register("chart", chart);
register("image", image);
register("audio", audio);
register("file", file);
