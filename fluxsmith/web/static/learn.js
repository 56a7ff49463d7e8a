// Watch it learn: a run's checkpoints across and t down, every cell the same noise and prompt.

import { drawer, get, post } from "./api.js";
import { lines, ticks } from "./chart.js";
import { time } from "./film.js";
import { GUIDANCE, few, find, usualPrompt } from "./models.js";
import { paint } from "./paint.js";
import { after, choice, field, h, number, select, slider, status } from "./ui.js";

export const title = "Watch it learn";
export const lead = "A run's checkpoints across, the way from noise down: the same noise and the same prompt in every cell.";
const PLAIN = { steps: 10, solver: "euler" }; // of a drawing, but for students of few steps
const ROWS = 6; // at the most
const EVERY = 2000; // ms between looks at a run in training
const SOON = 250; // before its first checkpoint
const SELDOM = 5000; // at one that rests, or that can't be had
const COLUMNS = 26; // at the most, evenly over what there is
const SHARE = 0.02; // of the time while a run trains, that goes into columns which nobody asked for
const SMOOTH = { min: 0, max: 0.98, step: 0.01 };
const CURVES = { loss: "loss", "validation_loss/ema": "validation loss", loss_q1: "loss, t below 1/4", loss_q2: "t 1/4 to 1/2", loss_q3: "t 1/2 to 3/4", loss_q4: "t above 3/4" };

export function mount(root, { models, settings, open }) {
  const { values, set } = settings({ run: "", prompt: null, seed: 0, guidance: NaN, shown: "x0", smooth: 0.6, curves: "loss,validation_loss/ema" }, { guidance: GUIDANCE, smooth: SMOOTH });
  const told = status();
  // Nothing is drawn until something is asked for: true once a person stopped it, or the step whose
  // drawing failed, while that is there.
  let halted = null;
  const { draw, stop } = drawer(told, () => { halted = true; });
  let gone = false;
  let timer = 0;
  let run = null; // as the server tells of it
  let records = [];
  let model = null;
  let facts = models;
  let filling = null;
  let looking = null;
  let rested = 0; // when the next such column may be drawn
  let due = Infinity; // a snapshot later than this step was asked for
  let lost = false; // whether the last look failed
  const columns = new Map(); // step -> states
  let way = { ...PLAIN, rows: [] }; // how the model is drawn with, and which of the states are rows
  let laid = []; // the steps of the columns that are there
  let chosen = { step: 0, row: 0 }; // the cell that Tab comes to

  const count = h("span");
  const phase = h("span", { role: "status" }); // is read out when it changes, unlike the count
  const trouble = h("p", { className: "notice bad", role: "alert", hidden: true }); // of the training
  const buttons = { stop: act("Stop training", "stop"), on: act("Go on", "go-on"), now: act("Sample now", "snapshot") };
  function act(text, what) {
    return h("button", { type: "button", onclick: async () => { try { await post(`/api/runs/${encodeURIComponent(values.run)}/${what}`); if (what === "snapshot") { halted = null; due = run.step; } look(); } catch (error) { told.failed(error.message); } } }, text);
  }
  const base = select("Config", [], "", () => {});
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
  const guidance = slider("Guidance", { ...GUIDANCE, value: values.guidance || 0, oninput: (v) => again({ guidance: v }) });
  const seed = number("Seed", values.seed, (v) => again({ seed: v }), { min: 0 });
  const which = choice("What is shown of a state", [{ value: "x0", text: "predicted x0" }, { value: "x", text: "x_t" }], values.shown, (shown) => { set({ shown }); paintAll(); });
  const map = h("div", { className: "map" });
  const preview = h("canvas", { role: "img", className: "preview", ariaLabel: "The column under the pointer, played", width: 16, height: 16 });
  const curves = h("div");
  const smooth = slider("Smoothing", { ...SMOOTH, value: values.smooth, show: (v) => v.toFixed(2), oninput: (v) => { set({ smooth: v }); plot(); } });
  const shownCurves = () => values.curves.split(",");
  const legend = h("div", { className: "legend" }, Object.entries(CURVES).map(([key, name], i) => h("label", { className: `c${i}` },
    h("input", { type: "checkbox", checked: shownCurves().includes(key), onchange: (event) => { const now = shownCurves().filter((k) => k !== key); set({ curves: [...now, ...(event.target.checked ? [key] : [])].filter(Boolean).join(",") }); plot(); } }), h("span", { className: "swatch" }), name)));

  const later = after(250, () => { columns.clear(); laid = []; fill(true); }); // the cells are empty again
  const again = (changes) => { set(changes); later(); };

  async function runs(name) {
    const there = await get("/api/runs");
    if (gone) return;
    picker.fill(there.map((r) => r.name), name);
    picker.element.hidden = !there.length;
    body.hidden = !there.length;
    none.hidden = there.length > 0;
    const known = there.some((r) => r.name === name);
    missing.textContent = `There is no run ${name} here (any more).`;
    missing.hidden = known || !name;
    if (there.length) await choose(known ? name : there.at(-1).name);
  }
  // What was drawn of a run is forgotten.
  function clear() {
    stop();
    told.done();
    columns.clear();
    records = [];
    model = null;
    filling = null;
    halted = null;
    due = Infinity;
    laid = [];
    map.replaceChildren();
  }
  async function choose(name) {
    clear();
    run = null;
    count.textContent = phase.textContent = "";
    trouble.hidden = true;
    picker.control.value = name;
    if (name !== values.run) set({ run: name, ...(values.run && { guidance: NaN }) }); // a model's own, if another one was there
    await look();
  }

  async function look() {
    clearTimeout(timer);
    if (gone || !values.run) return;
    const mine = (looking = {}); // an older look's answer is not for us any more
    try {
      const now = await get(`/api/runs/${encodeURIComponent(values.run)}?seen=${records.length}`);
      if (gone || mine !== looking) return;
      if (lost) { lost = false; told.well(); }
      if (now.seen < records.length) clear(); // it is trained anew
      else records.push(...now.records);
      run = now;
      const doing = run.stopping ? "stopping" : run.training ? "training" : run.step >= run.steps ? "finished" : "stopped";
      count.textContent = `step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}, `;
      if (phase.textContent !== doing) phase.textContent = doing;
      buttons.stop.disabled = !run.own || run.stopping;
      buttons.on.disabled = run.training || run.step >= run.steps;
      buttons.now.disabled = !run.training || !run.snapshots;
      const ended = `The training ended: ${run.problem}`;
      if (trouble.textContent !== ended) trouble.textContent = ended;
      trouble.hidden = !run.problem;
      sparse.hidden = run.snapshots;
      plot();
      fill();
    } catch (error) {
      if (gone || mine !== looking) return;
      lost = true;
      told.failed(error.message);
      timer = setTimeout(look, SELDOM);
      return;
    }
    timer = setTimeout(look, !run.training ? SELDOM : run.checkpoints.length ? EVERY : SOON);
  }

  function picked() {
    const all = run?.checkpoints || [];
    return all.length <= COLUMNS ? all : [...new Set(Array.from({ length: COLUMNS }, (_, i) => all[Math.round((i * (all.length - 1)) / (COLUMNS - 1))]))];
  }

  // Draws the columns that are missing, one after the other, the newest first. It is called at each
  // look, and begins `anew` where the prompt or another setting has changed. Those that come while
  // the run trains, on the same processors, are drawn now and then, the rest when it has ended.
  async function fill(anew = false) {
    if (anew) { stop(); halted = null; }
    if (!run?.checkpoints.length) return;
    if (!anew && (filling || halted === true || run.checkpoints.includes(halted))) return;
    const mine = (filling = {});
    const asked = anew || !columns.size;
    try {
      if (!model) {
        facts = await get("/api/models");
        if (gone || mine !== filling) return;
        model = find(facts, run.name);
        if (!model) return;
        if (values.prompt === null || !model.prompts.length) values.prompt = usualPrompt(model, "three");
        prompt.value = values.prompt;
        if (!Number.isFinite(values.guidance)) values.guidance = model.defaults.guidance;
        guidance.set(values.guidance);
        guidance.element.hidden = !model.guided;
        const { steps, solver } = few(model) ? model.defaults : PLAIN;
        way = { steps, solver, rows: [...new Set(Array.from({ length: ROWS }, (_, i) => Math.round((i * steps) / (ROWS - 1))))] };
      }
      lay();
      for (const step of [...picked()].reverse()) {
        if (columns.has(step)) continue;
        const began = performance.now();
        if (!asked && run.training && began < rested && step <= due) return;
        const drawn = await draw("/api/draw", { model: `${run.name}@${step}`, prompts: [values.prompt], steps: way.steps, solver: way.solver, guidance: model.guided ? values.guidance : 1, seed: values.seed });
        if (gone || mine !== filling) return;
        if (!drawn) { if (halted !== true) halted = step; return; }
        rested = began + (performance.now() - began) / SHARE;
        if (step > due) due = Infinity;
        columns.set(step, drawn.states);
        paintColumn(step);
        root.dataset.drawn = columns.size;
      }
    } catch (error) { told.failed(error.message); }
    finally { if (mine === filling) filling = null; }
  }

  function lay() {
    const shown = picked();
    if (laid.join() === shown.join()) return;
    laid = shown;
    const { steps, solver, rows } = way;
    const focused = map.contains(document.activeElement);
    const cell = (step, row) => h("td", {}, h("button", { type: "button", tabIndex: -1, ariaLabel: `step ${step}, t = ${(1 - rows[row] / steps).toFixed(1)}: not drawn yet`, onclick: () => open("draw", { model: `${run.name}@${step}`, prompt: values.prompt, guidance: values.guidance, steps, solver, seed: values.seed, pictures: 1, shown: values.shown, at: rows[row] === steps ? -1 : rows[row] }), onpointerenter: () => play(step), onfocus: () => { mark(step, row); if (played !== step) play(step); } }, h("canvas", { width: 1, height: 1 })));
    map.replaceChildren(h("table", {}, h("caption", { className: "hidden-text" }, "Checkpoints across, t down. Arrow keys move, Enter opens a cell in Draw."),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "t"), shown.map((step) => h("th", { scope: "col" }, step.toLocaleString("en"))))),
      h("tbody", {}, rows.map((at, row) => h("tr", {}, h("th", { scope: "row" }, (1 - at / steps).toFixed(1)), shown.map((step) => cell(step, row)))))));
    const nearest = shown.reduce((a, b) => (Math.abs(b - chosen.step) < Math.abs(a - chosen.step) ? b : a));
    mark(nearest, Math.min(chosen.row, rows.length - 1));
    paintAll();
    if (focused) cellAt(chosen.step, chosen.row).focus({ preventScroll: true });
  }
  const cellAt = (step, row) => map.querySelectorAll("tbody tr")[row]?.querySelectorAll("button")[laid.indexOf(step)];
  function mark(step, row) {
    cellAt(chosen.step, chosen.row)?.setAttribute("tabindex", -1);
    chosen = { step, row };
    cellAt(step, row)?.setAttribute("tabindex", 0);
  }
  map.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-99, 0], End: [99, 0] }[event.key];
    if (!move || !map.contains(document.activeElement)) return;
    event.preventDefault();
    const within = (i, list) => Math.max(0, Math.min(list.length - 1, i));
    const column = within(laid.indexOf(chosen.step) + move[0], laid);
    cellAt(laid[column], within(chosen.row + move[1], way.rows))?.focus();
  });
  function paintColumn(step) {
    const states = columns.get(step);
    way.rows.forEach((at, row) => {
      const button = cellAt(step, row);
      if (!button || !states[at]) return;
      button.closest("tr").firstChild.textContent = states[at].t.toFixed(1); // a schedule may bend it
      paint(button.firstChild, states[at][values.shown], 0, model);
      button.ariaLabel = `${values.prompt} at step ${step}, ${time(states[at].t)}: open in Draw`;
    });
  }
  const paintAll = () => [...columns.keys()].forEach(paintColumn);
  let film = 0;
  let played = 0; // the step of the last one
  function play(step) {
    clearInterval(film);
    const states = columns.get(step);
    if (!states) return;
    played = step;
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
      const own = records.filter((r) => key in r);
      const smoothed = smoothly(own.map((r) => r[key]), key.startsWith("validation") ? 0 : values.smooth);
      return { c: Object.keys(CURVES).indexOf(key), points: own.map((r, i) => [r.step, smoothed[i]]) };
    }).filter((s) => s.points.length);
    const all = series.flatMap((s) => s.points);
    if (!all.length) { curves.replaceChildren(h("p", { className: "small muted" }, "The first record comes after a few steps.")); return; }
    const [width, most] = all.reduce((a, b) => [Math.max(a[0], b[0]), Math.max(a[1], b[1])]);
    curves.replaceChildren(lines("Loss over the steps", series, { x: { min: 0, max: width, ticks: ticks(0, width, 5) }, y: { min: 0, max: most, ticks: ticks(0, most) }, height: 240, place: curves }));
  }

  const sparse = h("p", { className: "small muted" }, "This run keeps no snapshots, so its checkpoints alone are columns. Train with ", h("code", {}, "train.snapshots=24"), " to see more.");
  const none = h("p", { className: "notice", hidden: true }, "No run yet. Train a new one here, or start the page with a run's folder: ", h("code", {}, "fluxsmith serve output/image/digits/tiny"));
  const body = h("div", { className: "split", hidden: true },
    h("div", { className: "stack" }, h("div", { className: "row" }, h("p", { className: "small muted number" }, count, phase), buttons.stop, buttons.on, buttons.now), trouble, map, sparse, h("div", { className: "row" }, which.element), told.element,
      h("div", { className: "plate" }, h("h2", {}, "Loss"), curves, legend, smooth.element)),
    h("section", { className: "panel", ariaLabel: "Settings" }, picker.element, field("Prompt", prompt), guidance.element, seed.element,
      h("figure", {}, preview, h("figcaption", { className: "small muted" }, "Point at a column: it plays here."))));
  const missing = h("p", { className: "notice bad", role: "alert", hidden: true });
  const starting = h("div", { className: "row end", hidden: true }, base.element, begin);
  root.append(starting, missing, none, body);
  runs(values.run).catch((error) => told.failed(error.message));
  get("/api/configs").then((names) => {
    starting.hidden = !names.length;
    base.fill(names.map((name) => ({ value: name, text: `that of ${name}` })), names[0]);
  }).catch((error) => told.failed(error.message));
  return () => { gone = true; stop(); clearTimeout(timer); clearInterval(film); };
}

// The mean around each value, whose weights fall by the same factor from one record to the next on
// both sides: a curve that is not late. At 0, the values themselves.
function smoothly(values, factor) {
  const sums = (list) => { // of the values up to each, and of their weights
    let [sum, weight] = [0, 0];
    return list.map((value) => [(sum = factor * sum + value), (weight = factor * weight + 1)]);
  };
  const before = sums(values);
  const behind = sums([...values].reverse()).reverse();
  return values.map((value, i) => (before[i][0] + behind[i][0] - value) / (before[i][1] + behind[i][1] - 1));
}
