// Lines over an axis, in SVG: as wide as its place, its numbers readable at any width.

import { h } from "./ui.js";

const H = 220;
const LEFT = 44;
const BOTTOM = 26;
const TOP = 10;

// series: [{name, points: [[x, y]], c: number}]; x and y: {min, max, ticks: [[value, text]], label}
export function lines(title, series, { x, y, now, height = H, place }) {
  const W = Math.min(900, Math.max(280, place.clientWidth || 640)); // so that text keeps its size
  const right = W - 12;
  const at = (value, { min, max }, from, to) => from + ((value - min) / (max - min || 1)) * (to - from);
  const px = (value) => at(value, x, LEFT, right);
  const py = (value) => at(value, y, height - BOTTOM, TOP);
  const svg = h("svg", { class: "chart", viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": title });
  for (const [value, text] of y.ticks) svg.append(h("line", { class: "axis", x1: LEFT, x2: right, y1: py(value), y2: py(value) }), h("text", { x: LEFT - 8, y: py(value) + 4, "text-anchor": "end" }, text));
  for (const [value, text] of x.ticks) svg.append(h("text", { x: px(value), y: height - 6, "text-anchor": value === x.ticks.at(-1)[0] ? "end" : value === x.ticks[0][0] ? "start" : "middle" }, text));
  if (now !== undefined) svg.append(h("line", { class: "now", x1: px(now), x2: px(now), y1: TOP, y2: height - BOTTOM }));
  for (const one of series) {
    if (!one.points.length) continue;
    svg.append(h("polyline", { class: `line c${one.c}${one.dim ? " dim" : ""}`, points: one.points.map(([a, b]) => `${px(a).toFixed(1)},${py(b).toFixed(1)}`).join(" ") }));
  }
  return svg;
}

// A few round values from least to most.
export function ticks(least, most, wanted = 4) {
  const rough = (most - least) / wanted || 1;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(least / step) * step; v <= most + step / 1e6; v += step) found.push([v, String(+v.toPrecision(6))]);
  return found;
}
