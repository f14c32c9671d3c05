// Charts in SVG. Beside its colour each series has a dash or a mark of its own, and the numbers are there as a table.

import { drawing, element, entry, plain } from "./dom.js";
import { linear, shape, short, slices, ticks } from "./scales.js";
import { table } from "./table.js";

const WIDTH = 640;
const HEIGHT = 300;
const BOX = { left: 56, right: 16, top: 14, bottom: 44 };
const COLOURS = 8;
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const KINDS = { line: "Line chart", bar: "Bar chart", area: "Area chart", scatter: "Scatter chart", pie: "Pie chart" };

const hue = (index) => `s${index % COLOURS}`;

function mark(index, x, y, size = 3.5) {
  const kind = Math.floor(index) % 4;
  if (kind === 0) return drawing("circle", { cx: x, cy: y, r: size });
  if (kind === 1) return drawing("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size });
  if (kind === 2) return drawing("path", { d: `M${x} ${y - size - 1}L${x + size + 1} ${y + size}H${x - size - 1}Z` });
  return drawing("path", { d: `M${x} ${y - size - 1}L${x + size + 1} ${y}L${x} ${y + size + 1}L${x - size - 1} ${y}Z` });
}

function hint(node, ...words) {
  node.append(drawing("title", {}, words.join(" ")));
  return node;
}

function frame(data, made, x, y, yTicks) {
  const group = drawing("g", { class: "axes" });
  for (const tick of yTicks) {
    group.append(
      drawing("line", { class: tick === 0 ? "zero" : "grid", x1: BOX.left, x2: WIDTH - BOX.right, y1: y(tick), y2: y(tick) }),
      drawing("text", { x: BOX.left - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  const marks = made.named
    ? made.names.map((name, index) => [index, plain(name, 14)]).filter((_, index) => index % Math.ceil(made.names.length / 10) === 0)
    : ticks(...made.x, 6, made.whole).filter((tick) => tick >= made.x[0] && tick <= made.x[1]).map((tick) => [tick, short(tick)]);
  for (const [at, name] of marks) group.append(drawing("text", { x: x(at), y: HEIGHT - BOX.bottom + 18, "text-anchor": "middle" }, name));
  if (data.x_label) group.append(drawing("text", { class: "name", x: (BOX.left + WIDTH - BOX.right) / 2, y: HEIGHT - 6,
    "text-anchor": "middle" }, plain(data.x_label, 60)));
  if (data.y_label) {
    const middle = (BOX.top + HEIGHT - BOX.bottom) / 2;
    group.append(drawing("text", { class: "name", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` },
      plain(data.y_label, 40)));
  }
  return group;
}

function cartesian(data, made) {
  const kind = data.chart_type;
  const grounded = kind === "bar" || kind === "area";
  const low = grounded ? Math.min(0, made.y[0]) : made.y[0];
  const high = grounded ? Math.max(0, made.y[1]) : made.y[1];
  const yTicks = ticks(low === high ? low - 1 : low, low === high ? high + 1 : high);
  const y = linear([yTicks[0], yTicks.at(-1)], [HEIGHT - BOX.bottom, BOX.top]);
  const across = [BOX.left + 10, WIDTH - BOX.right - 10];
  const slot = (across[1] - across[0]) / Math.max(1, made.names.length);
  const x = made.named && (kind === "bar" || made.names.length === 1)
    ? (index) => across[0] + slot * (index + 0.5)
    : linear(made.x, across);
  const at = new Map(made.names.map((name, index) => [name, index]));
  const place = ([px]) => x(made.named ? at.get(String(px)) : px);
  const group = drawing("g", { class: `marks ${kind}` });
  const zero = y(Math.max(yTicks[0], Math.min(0, yTicks.at(-1))));
  made.series.forEach((one, index) => {
    const own = drawing("g", { class: hue(index) });
    const points = kind === "line" || kind === "area" ? (made.named ? one.points : [...one.points].sort((a, b) => a[0] - b[0]))
      : one.points;
    const line = points.map((point, n) => `${n ? "L" : "M"}${place(point).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    if (kind === "area" && points.length) own.append(drawing("path", { class: "wash",
      d: `${line}L${place(points.at(-1))} ${zero}L${place(points[0])} ${zero}Z` }));
    if ((kind === "line" || kind === "area") && points.length) {
      own.append(drawing("path", { class: "stroke", d: line, "stroke-dasharray": DASHES[Math.floor(index / 2) % DASHES.length] || null }));
    }
    if (kind === "bar") {
      const width = Math.min(56, (slot * 0.72) / made.series.length);
      for (const point of points) {
        const left = place(point) - (width * made.series.length) / 2 + width * index;
        const top = Math.min(y(point[1]), zero);
        own.append(hint(drawing("rect", { x: left + 0.5, y: top, width: Math.max(1, width - 1), height: Math.max(1,
          Math.abs(zero - y(point[1]))), rx: 2 }),
          `${plain(one.name, 60)}, ${plain(point[0], 60)}: ${point[1]}`));
      }
    } else if (kind === "scatter" || points.length <= 40) {
      for (const point of points) own.append(hint(mark(index, place(point), y(point[1])),
        `${plain(one.name, 60)}, ${plain(point[0], 60)}: ${point[1]}`));
    }
    group.append(own);
  });
  return [frame(data, made, x, y, yTicks), group];
}

function pie(made) {
  const [cx, cy, radius, hole] = [WIDTH / 2, HEIGHT / 2, 128, 72];
  const at = (fraction, size) => {
    const angle = fraction * 2 * Math.PI - Math.PI / 2;
    return `${(cx + size * Math.cos(angle)).toFixed(2)} ${(cy + size * Math.sin(angle)).toFixed(2)}`;
  };
  const group = drawing("g", { class: "marks pie" });
  slices(made.series[0]?.points || []).forEach(({ name, value, from, to }, index) => {
    const end = to - from > 0.9999 ? to - 0.0001 : to;
    const large = to - from > 0.5 ? 1 : 0;
    const outer = `M${at(from, radius)}A${radius} ${radius} 0 ${large} 1 ${at(end, radius)}`;
    const d = `${outer}L${at(end, hole)}A${hole} ${hole} 0 ${large} 0 ${at(from, hole)}Z`;
    group.append(hint(drawing("path", { class: hue(index), d }), `${plain(name, 60)}: ${value} (${((to - from) * 100).toFixed(1)} %)`));
    if (to - from > 0.06) {
      const [x, y] = at((from + to) / 2, (radius + hole) / 2).split(" ");
      group.append(drawing("text", { class: "share", x, y: Number(y) + 4, "text-anchor": "middle" }, `${Math.round((to - from) * 100)} %`));
    }
  });
  return [group];
}

function legend(names, round) {
  return element("ul", { class: "legend", "aria-hidden": "true" }, ...names.map((name, index) =>
    element("li", {}, drawing("svg", { viewBox: "0 0 12 12", class: `swatch ${hue(index)}` }, mark(round ? 1 : index, 6, 6, 4)),
      plain(name, 60))));
}

function numbers(data, made) {
  const x = plain(data.x_label, 60) || (made.named ? "Name" : "x");
  if (!made.named && data.chart_type === "scatter") {
    return { columns: ["Series", x, plain(data.y_label, 60) || "y"], rows: made.series.flatMap((one) => one.points.map(([px,
      py]) => [one.name, px, py])) };
  }
  const rows = new Map();
  made.series.forEach((one, index) => one.points.forEach(([px, py]) => {
    if (!rows.has(String(px))) rows.set(String(px), [px, ...made.series.map(() => null)]);
    rows.get(String(px))[index + 1] = py;
  }));
  return { columns: [x, ...made.series.map((one) => one.name)], rows: [...rows.values()] };
}

export function chart(data) {
  const made = shape(data);
  const title = plain(data.title, 200);
  const kind = entry(KINDS, data.chart_type);
  const name = plain(data.alt, 1000) || `${kind || "Chart"}${title ? `: ${title}` : ""}`;
  const round = data.chart_type === "pie";
  const names = round ? slices(made.series[0]?.points || []).map((slice) => slice.name) : made.series.map((one) => one.name);
  const drawn = !kind || made.empty || names.length === 0
    ? element("p", { class: "nothing" }, kind ? "This chart has no points."
      : `This console draws no chart of the kind “${plain(data.chart_type, 40)}”.`)
    : drawing("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name }, ...(round ? pie(made)
      : cartesian(data, made)));
  return element("figure", { class: "plot" }, title ? element("figcaption", { class: "heading" }, title) : null, drawn,
    made.empty || (names.length < 2 && !round) ? null : legend(names, round),
    made.empty ? null : element("details", {}, element("summary", {}, "Show the numbers"), table({ ...numbers(data, made), title: title
      || name })));
}
