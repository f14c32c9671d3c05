// The arithmetic of charts: what is drawn where. Nothing here touches the page.

// Round steps that cover a range, about `wanted` of them; `whole`: none between integers.
export function ticks(low, high, wanted = 5, whole = false) {
  if (!(high > low)) return [low];
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((size) => size >= rough && (!whole || Number.isInteger(size)))
    || 10 * power;
  const found = [];
  for (let index = Math.floor(low / step); found.length < 40; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
    if (index * step >= high) break;
  }
  return found;
}

// A linear scale from values to pixels.
export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

export function short(value) {
  const size = Math.abs(value);
  for (const [unit, amount] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= amount * 10 || (size >= amount && amount > 1e3)) return `${Number((value / amount).toPrecision(3))} ${unit}`;
  }
  return String(Number(value.toPrecision(4)));
}

// What a chart event holds, made sure of: series of [x, y] with finite y; whether x are names or numbers; the ranges.
export function shape(data, most = { series: 20, points: 2000 }) {
  let left = most.points;
  const series = (Array.isArray(data.series) ? data.series : []).slice(0, most.series).map((one, index) => {
    const points = (Array.isArray(one?.points) ? one.points : []).filter((point) => Array.isArray(point)
      && Number.isFinite(point[1])).slice(0, left);
    left -= points.length;
    return { name: String(one?.name ?? "") || `Series ${index + 1}`, points };
  });
  const all = series.flatMap((one) => one.points);
  const named = data.chart_type === "bar" || data.chart_type === "pie" || all.some(([x]) => !Number.isFinite(x));
  const names = named ? [...new Set(all.map(([x]) => String(x)))] : [];
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => y);
  const lowest = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);
  const highest = (values) => values.reduce((most_, value) => Math.max(most_, value), -Infinity);
  return {
    series, names, named, empty: all.length === 0,
    whole: all.every(([x]) => Number.isInteger(x)),
    x: named ? [0, names.length - 1] : [lowest(xs), highest(xs)],
    y: [lowest(ys), highest(ys)],
  };
}

// The pie's slices as fractions of the whole; what is not above zero has none.
export function slices(points) {
  const good = points.filter(([, y]) => y > 0);
  const sum = good.reduce((total, [, y]) => total + y, 0);
  let at = 0;
  return good.map(([name, y]) => {
    const slice = { name: String(name), value: y, from: at / sum, to: (at + y) / sum };
    at += y;
    return slice;
  });
}
