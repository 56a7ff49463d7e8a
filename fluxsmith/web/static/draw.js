// Draw: from a prompt to pictures, and the way there.

import { drawer, post } from "./api.js";
import { film, time } from "./film.js";
import { GUIDANCE, evaluations, find, foreign, modelSelect, request, usualPrompt } from "./models.js";
import { paint } from "./paint.js";
import { after, chips, choice, field, h, number, select, slider, status } from "./ui.js";

export const title = "Draw";
export const lead = "Say what; the model leads noise to a picture. Every state on the way is there to look at.";
const QUICK = 4; // steps of a first answer
const PICTURES = [1, 4, 9, 16];
const STEPS = { min: 1, max: 100 };

export function mount(root, { models, settings }) {
  const { values, set } = settings({ model: models[0].name, prompt: null, guidance: NaN, steps: NaN, solver: "", seed: 0, pictures: 4, at: -1, shown: "x" }, { guidance: GUIDANCE, steps: STEPS });
  let model = find(models, values.model);
  if (!model) throw new Error(`There is no model ${values.model} here.`);
  if (!PICTURES.includes(values.pictures)) values.pictures = 4;
  adopt();

  function adopt(before) {
    const { steps, guidance, solver } = model.defaults;
    if (before || !Number.isFinite(values.guidance)) values.guidance = guidance;
    if (before || !Number.isFinite(values.steps)) values.steps = steps;
    if (before || !model.solvers[values.solver]) values.solver = solver;
    if (before && foreign([values.prompt], before, model)) values.prompt = null;
    values.prompt ??= usualPrompt(model, "seven");
  }

  const told = status();
  const saved = status();
  let saving = null;
  let at = null; // the step of the run that is shown
  const { draw, stop } = drawer(told, () => { newer = false; });
  const canvases = h("div", { className: "pictures" });
  const save = (kind) => async () => {
    saving?.abort();
    const mine = (saving = new AbortController());
    const name = `${values.prompt || "picture"}-seed${values.seed}.${kind === "gif" ? "gif" : "png"}`;
    const asked = body();
    if (at && !asked.model.includes("@")) asked.model += `@${at}`; // a run in training has newer ones
    saved.busy(() => mine.abort());
    try {
      const blob = await (await post(`/api/save/${kind}`, asked, mine.signal)).blob();
      const link = h("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      saved.done("saved");
    } catch (error) {
      if (mine !== saving) return;
      if (error.name === "AbortError") saved.done("stopped");
      else saved.failed(error.message);
    }
  };
  const body = (steps = values.steps) => ({ ...request(model, { ...values, steps }), prompts: Array(values.pictures).fill(values.prompt) });

  const show = (state, which) => {
    [...canvases.children].forEach((canvas, i) => {
      paint(canvas, state[which], i, model);
      canvas.ariaLabel = `${values.prompt || "no prompt"}, picture ${i + 1} of ${values.pictures}, ${which === "x0" ? "as predicted " : ""}at ${time(state.t)}`;
    });
  };
  const way = film(values, set, show);

  async function full() {
    const drawn = await draw("/api/draw", body());
    if (!drawn) return;
    at = model.checkpoints.length ? drawn.step : null;
    lay();
    way.load(drawn.states);
    const each = (drawn.seconds * 1000) / values.pictures;
    told.done(`${values.pictures} picture${values.pictures > 1 ? "s" : ""} in ${Math.round(drawn.seconds * 1000)} ms, ${evaluations(model, values)} evaluations each`);
    root.dataset.drawn = each.toFixed(1);
  }
  // While a slider moves, each quick drawing is let finish; the next one has the newest settings.
  let hasty = false;
  let newer = false; // settings have changed since it began
  const later = after(140, () => hasty || full());
  async function quick() {
    if (hasty) { newer = true; return; }
    if (values.steps <= QUICK) { later(); return; }
    hasty = true;
    const drawn = await draw("/api/draw", body(QUICK));
    hasty = false;
    if (drawn) {
      way.stop();
      lay();
      show(drawn.states.at(-1), "x");
      canvases.dataset.quick = (+canvases.dataset.quick || 0) + 1;
    }
    if (newer) { newer = false; quick(); } else if (drawn) later();
  }
  const typed = after(80, quick);
  function lay() {
    canvases.style.setProperty("--columns", Math.ceil(Math.sqrt(values.pictures)));
    while (canvases.children.length > values.pictures) canvases.lastChild.remove();
    while (canvases.children.length < values.pictures) canvases.append(h("canvas", { role: "img", width: model.size, height: model.size, ariaLabel: "not drawn yet" }));
  }

  const change = (changes, soon = quick) => { set(changes); soon(); };
  const prompt = h("input", { type: "text", className: "large", value: values.prompt, maxLength: 20_000, autocomplete: "off", spellcheck: false, oninput: () => { change({ prompt: prompt.value }, typed); offered.mark(prompt.value); } });
  const offered = chips("Prompts that this model knows", model.prompts, values.prompt, (chosen) => { prompt.value = chosen; change({ prompt: chosen }); });
  const guidance = slider("Guidance", { ...GUIDANCE, value: values.guidance, oninput: (v) => change({ guidance: v }) });
  const steps = slider("Steps", { ...STEPS, value: values.steps, oninput: (v) => change({ steps: v }) });
  const solver = select("Solver", Object.keys(model.solvers), values.solver, (v) => change({ solver: v }));
  const seed = number("Seed", values.seed, (v) => change({ seed: v }), { min: 0, step: 1 });
  const dice = h("button", { type: "button", onclick: () => { seed.control.value = Math.floor(Math.random() * 1e6); change({ seed: +seed.control.value }); } }, "New noise");
  const pictures = choice("Pictures", PICTURES, values.pictures, (v) => { stop(); way.load([]); change({ pictures: v }); }, true);
  const chosen = modelSelect(models, values.model, (name) => {
    stop(); // what comes would be another model's pictures
    way.load([]);
    at = null;
    const before = model;
    model = find(models, name);
    adopt(before);
    prompt.value = values.prompt;
    guidance.set(values.guidance);
    steps.set(values.steps);
    solver.control.value = values.solver;
    fit();
    change({ model: name, at: -1 });
  });
  function fit() { guidance.element.hidden = !model.guided; offered.fill(model.prompts, values.prompt); }
  fit();

  root.append(
    h("div", { className: "stack tight" }, field("What to draw", prompt), offered.element),
    h("div", { className: "split" },
      h("div", { className: "stack" }, canvases, way.element, told.element),
      h("section", { className: "panel", ariaLabel: "Settings" }, chosen.element, guidance.element, steps.element, solver.element,
        h("div", { className: "pick" }, seed.element, dice), pictures.element,
        h("div", { className: "field" }, h("span", { className: "label" }, "Save"),
          h("div", { className: "row" }, ["png", "gif", "filmstrip"].map((kind) => h("button", { type: "button", onclick: save(kind) }, { png: "PNG", gif: "GIF", filmstrip: "Filmstrip" }[kind]))), saved.element))),
  );
  lay();
  full();
  return () => { newer = false; saving?.abort(); stop(); way.stop(); };
}
