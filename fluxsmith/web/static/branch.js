// Branch: one noise and many prompts, or one prompt and many scales, and where their paths part.

import { drawer } from "./api.js";
import { lines } from "./chart.js";
import { film, time } from "./film.js";
import { GUIDANCE, find, foreign, modelSelect, request, stepsToSee, usualPrompt, usualPrompts } from "./models.js";
import { paint } from "./paint.js";
import { after, choice, field, h, number, slider, status } from "./ui.js";

export const title = "Branch";
export const lead = "The same noise, led to different ends: where do the paths part, and when is it decided what a picture shows?";
const SCALES = "0, 1, 1.5, 2, 3, 4, 6, 8";
const MOST = 10; // as many as there are colours
const STEPS = { min: 1, max: 50 };
const SIDE = 420;
const EDGE = 36;

export function mount(root, { models, settings }) {
  const { values, set } = settings({ model: models[0].name, by: "prompts", prompts: null, prompt: null, scales: SCALES, guidance: NaN, steps: NaN, seed: 0, at: -1, shown: "x", marked: -1 }, { guidance: GUIDANCE, steps: STEPS });
  let model = find(models, values.model);
  if (!model) throw new Error(`There is no model ${values.model} here.`);
  adopt();
  function adopt(before) {
    if (before && foreign(prompts(), before, model)) values.prompts = null;
    if (before && foreign([values.prompt], before, model)) values.prompt = null;
    values.prompts ??= usualPrompts(model).join("\n");
    values.prompt ??= usualPrompt(model, "seven");
    if (before || !Number.isFinite(values.steps)) values.steps = stepsToSee(model);
    if (before || !Number.isFinite(values.guidance)) values.guidance = model.defaults.guidance;
    if (!model.guided) values.by = "prompts";
  }

  const told = status();
  const { draw, stop } = drawer(told);
  const map = h("svg", { class: "chart", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
  const places = h("div", { className: "paths" });
  const sure = h("div");
  const words = h("p", { className: "small muted" });
  let paths = []; // {name, c, cells: canvas, states, points, confidence}
  let found = {};
  let again = 0;

  const names = () => (values.by === "scales" ? scales().map((s) => `guidance ${s}`) : prompts());
  const listOf = (text, separator) => text.split(separator).map((part) => part.trim()).filter(Boolean);
  function prompts() { return listOf(values.prompts, "\n").slice(0, MOST); }
  const scales = () => listOf(values.scales, ",").map(Number).filter((s) => Number.isFinite(s) && s >= -20 && s <= 100).slice(0, MOST);

  const way = film(values, set, (state, which, i) => {
    paths.forEach((path) => {
      const own = found.states[path.group][i];
      paint(path.canvas, own[which], path.row, model);
      path.canvas.ariaLabel = `${path.name} at ${time(state.t)}`;
      path.sure.textContent = found.confidence ? `${Math.round(100 * found.confidence[which][path.index][i])}%` : "";
    });
    drawMap(i);
    drawSure(state.t);
  });

  function drawMap(i) {
    if (!found.map) return;
    const all = found.map.flat();
    const least = [0, 1].map((k) => Math.min(...all.map((p) => p[k])));
    const span = Math.max(...[0, 1].map((k) => Math.max(...all.map((p) => p[k])) - least[k])) || 1;
    const high = Math.max(160, 2 * EDGE + ((Math.max(...all.map((p) => p[1])) - least[1]) / span) * (SIDE - 2 * EDGE));
    map.setAttribute("viewBox", `0 0 ${SIDE} ${high}`);
    const put = (p) => [0, 1].map((k) => EDGE + ((p[k] - least[k]) / span) * (SIDE - 2 * EDGE));
    map.replaceChildren(h("title", {}, `The paths of ${paths.length} pictures from one noise, in the plane of their first two principal components`));
    for (const path of paths) {
      const points = found.map[path.index].map(put);
      const dim = values.marked >= 0 && values.marked !== path.index ? " dim" : "";
      const group = h("g", { class: `c${path.c}${dim}` }, h("polyline", { class: "line", points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }));
      points.forEach(([x, y], j) => group.append(h("circle", { class: "dot", cx: x, cy: y, r: j === i ? 5 : 1.8 })));
      const [x, y] = points.at(-1);
      const side = x > SIDE / 2 ? -1 : 1; // to where there is room
      group.append(h("text", { x: x + 9 * side, y: y + 4, "text-anchor": side < 0 ? "end" : "start" }, path.name.replace("guidance ", "")));
      map.append(group);
    }
    const [x, y] = put(found.map[0][0]);
    map.append(h("text", { x, y: y - 10, "text-anchor": "middle" }, "noise"));
    words.textContent = `The plane of the paths' first two principal components holds ${Math.round(100 * found.explained)}% of how they differ. Dots are the solver's states.`;
  }

  function drawSure(t) {
    if (!found.confidence) return;
    const series = paths.map((p) => ({ c: p.c, dim: values.marked >= 0 && values.marked !== p.index, points: found.times.map((at, i) => [1 - at, found.confidence[values.shown][p.index][i]]) }));
    sure.replaceChildren(lines("How sure a classifier is of what was asked for, or of what it sees at the end, over t", series, {
      x: { min: 0, max: 1, ticks: [[0, "t = 1, noise"], [0.5, "0.5"], [1, "t = 0"]] },
      y: { min: 0, max: 1, ticks: [[0, "0%"], [0.5, "50%"], [1, "100%"]] },
      now: 1 - t, height: 220, place: sure }));
  }

  async function ask() {
    clearTimeout(again);
    const many = values.by === "scales";
    const asked = names();
    if (!asked.length) { told.failed(many ? "Give scales as numbers with commas between, such as 1, 2, 4." : "Give prompts, one a line."); return null; }
    const body = { ...request(model, values), prompts: many ? [values.prompt] : asked, scales: many ? scales() : [] };
    const more = {};
    const drawn = await draw("/api/branch", body, { total: values.steps * (many ? asked.length : 1), extra: (event) => Object.assign(more, event) });
    if (!drawn) return null;
    if (more.judge === "training") again = setTimeout(judge, 3000);
    return { ...more, states: drawn.groups, asked, many };
  }
  async function full() {
    const now = await ask();
    if (!now) return;
    found = now;
    const { asked, many } = now;
    paths = asked.map((name, index) => ({ name, index, c: index, group: many ? index : 0, row: many ? 0 : index, canvas: h("canvas", { role: "img" }), sure: h("span", { className: "number muted" }) }));
    places.replaceChildren(...paths.map((path) => h("button", { type: "button", className: `c${path.c}`, ariaPressed: values.marked === path.index, onclick: () => mark(path.index) },
      path.canvas, h("span", { className: "swatch" }), h("b", {}, path.name), path.sure)));
    way.load(found.states[0]);
    root.dataset.drawn = 1;
    if (!found.confidence) tell();
  }
  // Once more, for what the classifier says alone: the paths stay, and a film goes on.
  async function judge() {
    const now = await ask();
    if (!now) return;
    found = now;
    if (found.confidence) way.redraw();
    else tell();
  }
  function tell() {
    sure.replaceChildren(h("p", { className: "small muted" }, found.judge === "training" ? "A classifier of these pictures is being trained, once; its confidence comes as soon as it is there." : `No classifier says what it sees on the way: ${found.judge}`));
  }
  function mark(index) {
    set({ marked: values.marked === index ? -1 : index });
    [...places.children].forEach((button, i) => { button.ariaPressed = i === values.marked; });
    way.redraw();
  }

  const soon = after(200, full);
  const change = (changes) => { clearTimeout(again); set({ marked: -1, ...changes }); soon(); };
  const by = choice("What differs", [{ value: "prompts", text: "Prompts" }, { value: "scales", text: "Guidance" }], values.by, (v) => { change({ by: v }); fit(); }, true);
  const listed = h("textarea", { value: values.prompts, rows: 6, spellcheck: false, oninput: () => change({ prompts: listed.value }) });
  const single = h("input", { type: "text", value: values.prompt, oninput: () => change({ prompt: single.value }) });
  const scaled = h("input", { type: "text", value: values.scales, oninput: () => change({ scales: scaled.value }) });
  const guidance = slider("Guidance", { ...GUIDANCE, value: values.guidance, oninput: (v) => change({ guidance: v }) });
  const steps = slider("Steps", { ...STEPS, value: values.steps, oninput: (v) => change({ steps: v }) });
  const seed = number("Seed", values.seed, (v) => change({ seed: v }), { min: 0 });
  const dice = h("button", { type: "button", onclick: () => { seed.control.value = Math.floor(Math.random() * 1e6); change({ seed: +seed.control.value }); } }, "New noise");
  const chosen = modelSelect(models, values.model, (name) => { stop(); way.load([]); const before = model; model = find(models, name); adopt(before); listed.value = values.prompts; single.value = values.prompt; guidance.set(values.guidance); steps.set(values.steps); fit(); change({ model: name }); });
  const parts = { list: field("Prompts, one a line", listed), one: field("Prompt", single), scales: field("Scales", scaled) };
  function fit() {
    by.element.hidden = !model.guided;
    by.set(values.by);
    const many = values.by === "scales";
    parts.list.hidden = many;
    parts.one.hidden = parts.scales.hidden = !many;
    guidance.element.hidden = many || !model.guided;
  }
  fit();

  root.append(h("div", { className: "split" },
    h("div", { className: "stack" }, places, way.element, told.element,
      h("div", { className: "plates" }, h("div", { className: "plate" }, h("h2", {}, "The map of the paths"), map, words),
        h("div", { className: "plate" }, h("h2", {}, "How sure a classifier is on the way"), sure))),
    h("section", { className: "panel", ariaLabel: "Settings" }, chosen.element, by.element, parts.list, parts.one, parts.scales, guidance.element, steps.element, h("div", { className: "pick" }, seed.element, dice))));
  full();
  return () => { stop(); way.stop(); clearTimeout(again); };
}
