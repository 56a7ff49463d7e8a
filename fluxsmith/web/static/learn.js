// Watch it learn: a run's checkpoints across and t down, every cell the same noise and prompt.

import { drawer, get, post } from "./api.js";
import { lines, ticks } from "./chart.js";
import { time } from "./film.js";
import { find } from "./models.js";
import { paint } from "./paint.js";
import { after, choice, field, h, number, select, slider, status } from "./ui.js";

export const title = "Watch it learn";
export const lead = "A run's checkpoints across, the way from noise down: the same noise and the same prompt in every cell.";
const STEPS = 10;
const EVERY = 1000; // ms between looks at the run
const COLUMNS = 26; // at the most, evenly over what there is
const CURVES = { loss: "loss", "validation_loss/ema": "validation loss", loss_q1: "loss, t below 1/4", loss_q2: "t 1/4 to 1/2", loss_q3: "t 1/2 to 3/4", loss_q4: "t above 3/4" };

export function mount(root, { models, settings, open }) {
  const { values, set } = settings({ run: "", prompt: "", seed: 0, guidance: 2, shown: "x0", smooth: 0.6, curves: "loss,validation_loss/ema" });
  const told = status();
  const { draw, stop } = drawer(told);
  let gone = false;
  let timer = 0;
  let run = null; // as the server tells of it
  let records = [];
  let model = null;
  let facts = models;
  let busy = false;
  const columns = new Map(); // step -> states
  let chosenCell = [0, 0];

  const state = h("p", { className: "small muted number", role: "status" });
  const buttons = { stop: act("Stop", "stop"), on: act("Go on", "go-on"), now: act("Sample now", "snapshot") };
  function act(text, what) {
    return h("button", { type: "button", onclick: async () => { try { await post(`/api/runs/${encodeURIComponent(values.run)}/${what}`); look(); } catch (error) { told.failed(error.message); } } }, text);
  }
  const base = select("Config", models.map((m) => ({ value: m.name, text: `that of ${m.name}` })), models[0].name, () => {});
  const begin = h("button", { type: "button", className: "primary", onclick: async () => {
    begin.disabled = true;
    try {
      const { name } = await (await post("/api/runs", { model: base.value })).json();
      await runs(name);
    } catch (error) { told.failed(error.message); }
    begin.disabled = false;
  } }, "Train a new one");
  const picker = select("Run", [], values.run, (name) => choose(name));
  const prompt = h("input", { type: "text", value: values.prompt, oninput: () => again({ prompt: prompt.value }) });
  const guidance = slider("Guidance", { min: 0, max: 8, step: 0.1, value: values.guidance, show: (v) => v.toFixed(1), oninput: (v) => again({ guidance: v }) });
  const seed = number("Seed", values.seed, (v) => again({ seed: v }), { min: 0 });
  const which = choice("What is shown of a state", [{ value: "x0", text: "predicted x0" }, { value: "x", text: "x_t" }], values.shown, (shown) => { set({ shown }); paintAll(); });
  const map = h("div", { className: "map" });
  const preview = h("canvas", { role: "img", className: "preview", ariaLabel: "The column under the pointer, played", width: 16, height: 16 });
  const curves = h("div");
  const smooth = slider("Smoothing", { min: 0, max: 0.98, step: 0.01, value: values.smooth, show: (v) => v.toFixed(2), oninput: (v) => { set({ smooth: v }); plot(); } });
  const shownCurves = () => values.curves.split(",");
  const legend = h("div", { className: "legend" }, Object.entries(CURVES).map(([key, name], i) => h("label", { className: `c${i}` },
    h("input", { type: "checkbox", checked: shownCurves().includes(key), onchange: (event) => { const now = shownCurves().filter((k) => k !== key); set({ curves: [...now, ...(event.target.checked ? [key] : [])].filter(Boolean).join(",") }); plot(); } }), h("span", { className: "swatch" }), name)));

  const later = after(250, () => { columns.clear(); fill(); });
  const again = (changes) => { set(changes); later(); };

  async function runs(name) {
    const there = await get("/api/runs");
    picker.fill(there.map((r) => r.name), name);
    picker.element.hidden = !there.length;
    body.hidden = !there.length;
    none.hidden = there.length > 0;
    const known = there.some((r) => r.name === name);
    if (name && !known) told.failed(`There is no run ${name} here (any more).`);
    if (there.length) await choose(known ? name : there.at(-1).name);
  }
  async function choose(name) {
    if (name !== values.run) records = [];
    columns.clear();
    picker.control.value = name;
    set({ run: name });
    records = [];
    model = null;
    map.replaceChildren();
    await look();
  }

  async function look() {
    clearTimeout(timer);
    if (gone || !values.run) return;
    const name = values.run;
    try {
      const now = await get(`/api/runs/${encodeURIComponent(name)}?seen=${records.length}`);
      if (gone || name !== values.run) return;
      if (now.seen < records.length) records = [];
      else records.push(...now.records);
      run = now;
      const share = run.training ? "training" : run.step >= run.steps ? "finished" : "stopped";
      state.textContent = `step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}, ${share}`;
      buttons.stop.disabled = !run.own;
      buttons.on.disabled = run.training || run.step >= run.steps;
      buttons.now.disabled = !run.training || !run.snapshots;
      if (run.problem) told.failed(`The training ended: ${run.problem}`);
      plot();
      await fill();
    } catch (error) { told.failed(error.message); timer = setTimeout(look, 5 * EVERY); return; }
    timer = setTimeout(look, run.training ? EVERY : 5 * EVERY);
  }

  function steps() {
    const all = run?.checkpoints || [];
    return all.length <= COLUMNS ? all : [...new Set(Array.from({ length: COLUMNS }, (_, i) => all[Math.round((i * (all.length - 1)) / (COLUMNS - 1))]))];
  }

  async function fill() {
    if (busy || !run?.checkpoints.length) return;
    busy = true;
    try {
      if (!model) {
        facts = await get("/api/models");
        model = find(facts, run.name);
        if (!model) return;
        if (!values.prompt || !model.prompts.length) { values.prompt = model.prompts.includes("three") ? "three" : model.prompts[0] || ""; prompt.value = values.prompt; }
        guidance.element.hidden = !model.guided;
      }
      lay();
      for (const step of [...steps()].reverse()) {
        if (gone || columns.has(step)) continue;
        const key = JSON.stringify([values.run, values.prompt, values.seed, values.guidance]);
        const drawn = await draw("/api/draw", { model: `${run.name}@${step}`, prompts: [values.prompt], steps: STEPS, guidance: model.guided ? values.guidance : 1, seed: values.seed });
        if (!drawn || gone) return;
        if (key !== JSON.stringify([values.run, values.prompt, values.seed, values.guidance])) return;
        columns.set(step, drawn.states);
        paintColumn(step);
        root.dataset.drawn = columns.size;
      }
    } finally { busy = false; }
  }

  const ROWS = Array.from({ length: 6 }, (_, i) => Math.round((i * STEPS) / 5));
  function lay() {
    const shown = steps();
    if (map.dataset.steps === shown.join()) return;
    map.dataset.steps = shown.join();
    const cell = (step, row) => h("td", {}, h("button", { type: "button", tabIndex: -1, ariaLabel: `step ${step}, t = ${(1 - ROWS[row] / STEPS).toFixed(1)}: not drawn yet`, onclick: () => open("draw", { model: `${run.name}@${step}`, prompt: values.prompt, guidance: values.guidance, steps: STEPS, seed: values.seed, pictures: 1, shown: values.shown, at: ROWS[row] === STEPS ? -1 : ROWS[row] }), onpointerenter: () => play(step), onfocus: () => { mark(shown.indexOf(step), row); play(step); } }, h("canvas", { width: 1, height: 1 })));
    map.replaceChildren(h("table", {}, h("caption", { className: "hidden-text" }, "Checkpoints across, t down. Arrow keys move, Enter opens a cell in Draw."),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "t"), shown.map((step) => h("th", { scope: "col" }, step.toLocaleString("en"))))),
      h("tbody", {}, ROWS.map((at, row) => h("tr", {}, h("th", { scope: "row" }, (1 - at / STEPS).toFixed(1)), shown.map((step) => cell(step, row)))))));
    mark(Math.min(chosenCell[0], shown.length - 1), chosenCell[1]);
    paintAll();
  }
  const cellAt = (column, row) => map.querySelectorAll("tbody tr")[row]?.children[column + 1]?.firstChild;
  function mark(column, row) {
    cellAt(...chosenCell)?.setAttribute("tabindex", -1);
    chosenCell = [column, row];
    cellAt(column, row)?.setAttribute("tabindex", 0);
  }
  map.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-99, 0], End: [99, 0] }[event.key];
    if (!move || !map.contains(document.activeElement)) return;
    event.preventDefault();
    const [column, row] = [Math.max(0, Math.min(steps().length - 1, chosenCell[0] + move[0])), Math.max(0, Math.min(ROWS.length - 1, chosenCell[1] + move[1]))];
    cellAt(column, row)?.focus();
  });
  function paintColumn(step) {
    const column = steps().indexOf(step);
    const states = columns.get(step);
    if (column < 0 || !states) return;
    ROWS.forEach((at, row) => {
      const button = cellAt(column, row);
      if (!button || !states[at]) return;
      paint(button.firstChild, states[at][values.shown], 0, model);
      button.ariaLabel = `${values.prompt} at step ${step}, ${time(states[at].t)}: open in Draw`;
    });
  }
  const paintAll = () => [...columns.keys()].forEach(paintColumn);
  let film = 0;
  function play(step) {
    clearInterval(film);
    const states = columns.get(step);
    if (!states) return;
    let i = 0;
    film = setInterval(() => {
      paint(preview, states[i][values.shown], 0, model);
      i += 1;
      if (i === states.length) clearInterval(film);
    }, 90);
    preview.nextSibling.textContent = `step ${step.toLocaleString("en")}`;
  }

  function plot() {
    const shown = Object.keys(CURVES).filter((key) => shownCurves().includes(key));
    const series = shown.map((key) => {
      let mean = null;
      const own = records.filter((r) => key in r);
      const keep = key.startsWith("validation") ? 0 : values.smooth;
      return { c: Object.keys(CURVES).indexOf(key), points: own.map((r) => [r.step, (mean = mean === null ? r[key] : keep * mean + (1 - keep) * r[key])]) };
    }).filter((s) => s.points.length);
    const all = series.flatMap((s) => s.points);
    if (!all.length) { curves.replaceChildren(h("p", { className: "small muted" }, "The first record comes after a few steps.")); return; }
    const most = Math.max(...all.map((p) => p[1]));
    const width = Math.max(...all.map((p) => p[0]));
    curves.replaceChildren(lines("Loss over the steps", series, { x: { min: 0, max: width, ticks: ticks(0, width, 5) }, y: { min: 0, max: most, ticks: ticks(0, most) }, height: 240, place: curves }));
  }

  const none = h("p", { className: "notice", hidden: true }, "No run yet. Train a new one here, or start the page with a run's folder: ", h("code", {}, "fluxsmith serve output/image/digits/tiny"));
  const body = h("div", { className: "split", hidden: true },
    h("div", { className: "stack" }, h("div", { className: "row" }, state, buttons.stop, buttons.on, buttons.now), map, h("div", { className: "row" }, which.element), told.element,
      h("div", { className: "plate" }, h("h2", {}, "Loss"), curves, legend, smooth.element)),
    h("section", { className: "panel", ariaLabel: "Settings" }, picker.element, field("Prompt", prompt), guidance.element, seed.element,
      h("figure", {}, preview, h("figcaption", { className: "small muted" }, "Point at a column: it plays here."))));
  root.append(h("div", { className: "row end" }, base.element, begin), none, body);
  runs(values.run).catch((error) => told.failed(error.message));
  return () => { gone = true; stop(); clearTimeout(timer); clearInterval(film); };
}
