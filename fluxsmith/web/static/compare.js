// Compare: two models, the same noise and prompts, side by side.

import { drawer } from "./api.js";
import { film, time } from "./film.js";
import { GUIDANCE, evaluations, find, modelSelect, request, usualPrompts } from "./models.js";
import { paint } from "./paint.js";
import { after, field, h, number, slider, status } from "./ui.js";

export const title = "Compare";
export const lead = "Two models begin with the same noise: a teacher and its student, or one model before and after.";

const STEPS = { min: 1, max: 100 };

export function mount(root, { models, settings }) {
  const second = models.find((m) => m.student) || models[1] || models[0];
  const alike = (m) => m !== second && m.size === second.size && m.prompts.join() === second.prompts.join();
  const first = models.find((m) => alike(m) && !m.student) || models.find((m) => m !== second) || second;
  const { values, set } = settings({ model: first.name, other: second.name, prompts: "", seed: 0, at: -1, shown: "x", stepsA: NaN, stepsB: NaN, guidanceA: NaN, guidanceB: NaN }, { stepsA: STEPS, stepsB: STEPS, guidanceA: GUIDANCE, guidanceB: GUIDANCE });
  const told = status();
  const sides = ["A", "B"].map((letter) => {
    const key = letter === "A" ? "model" : "other";
    const side = { letter, key, model: find(models, values[key]), canvases: h("div", { className: "pictures wide" }), drawer: drawer(told), drawn: null };
    if (!side.model) throw new Error(`There is no model ${values[key]} here.`);
    side.own = () => ({ steps: values[`steps${letter}`], guidance: values[`guidance${letter}`], solver: side.model.defaults.solver, seed: values.seed });
    side.adopt = (fresh) => {
      for (const what of ["steps", "guidance"]) if (fresh || !Number.isFinite(values[what + letter])) values[what + letter] = side.model.defaults[what];
    };
    side.adopt(false);
    side.steps = slider("Steps", { ...STEPS, value: values[`steps${letter}`], oninput: (v) => change({ [`steps${letter}`]: v }) });
    side.guidance = slider("Guidance", { ...GUIDANCE, value: values[`guidance${letter}`], oninput: (v) => change({ [`guidance${letter}`]: v }) });
    side.guidance.element.hidden = !side.model.guided;
    side.select = modelSelect(models, values[key], (name) => {
      side.model = find(models, name);
      forget();
      side.adopt(true);
      side.steps.set(values[`steps${letter}`]);
      side.guidance.set(values[`guidance${letter}`]);
      side.guidance.element.hidden = !side.model.guided;
      change({ [key]: name });
    }, { label: letter === "A" ? "First model" : "Second model", every: true });
    return side;
  });
  if (!values.prompts) values.prompts = usualPrompts(sides[0].model, 9).join("\n");
  const prompts = () => values.prompts.split("\n").map((p) => p.trim()).filter(Boolean).slice(0, 16);

  // The states of the other side are those nearest in time.
  const way = film(values, set, (state, which) => sides.forEach((side) => {
    if (!side.drawn) return;
    const states = side.drawn.states;
    const own = states.reduce((best, s) => (Math.abs(s.t - state.t) < Math.abs(best.t - state.t) ? s : best));
    [...side.canvases.children].forEach((figure, i) => {
      paint(figure.firstChild, own[which], i, side.model);
      figure.firstChild.ariaLabel = `${prompts()[i]}, by ${side.model.name} at ${time(own.t)}`;
    });
  }));
  // What is shown is of the models of before.
  function forget() {
    sides.forEach((side) => { side.drawer.stop(); side.drawn = null; side.canvases.replaceChildren(); });
    way.load([]);
  }
  const figures = h("table", { className: "figures" });
  const remark = h("p", { className: "small muted" });

  // `again` is for what the classifier says alone: a film goes on.
  async function full(again = false) {
    const asked = prompts();
    sides.forEach((side) => side.drawer.stop());
    if (!asked.length) { told.failed("Give prompts, one a line."); return; }
    const fresh = []; // both sides change together
    for (const side of sides) {
      const more = {};
      const drawn = await side.drawer.draw("/api/draw", { ...request(side.model, side.own()), prompts: asked, judge: true }, { extra: (event) => Object.assign(more, event) });
      if (!drawn) return;
      fresh.push({ ...drawn, ...more });
    }
    sides.forEach((side, k) => {
      const { seen, right } = (side.drawn = fresh[k]);
      side.canvases.style.setProperty("--columns", Math.ceil(Math.sqrt(asked.length)));
      side.canvases.replaceChildren(...asked.map((prompt, i) => h("figure", {}, h("canvas", { role: "img", ariaLabel: prompt }), h("figcaption", {}, seen && right[i] !== true ? `${prompt}, seen: ${seen[i]}` : prompt))));
    });
    if (again) way.redraw();
    else way.load(sides.reduce((a, b) => (b.drawn.states.length > a.drawn.states.length ? b : a)).drawn.states);
    tell(asked.length);
    root.dataset.drawn = 1;
  }
  function asAsked(right) {
    const known = right.filter((r) => r !== null);
    return known.length ? `${known.filter(Boolean).length} of ${known.length}` : "the data know none of these prompts";
  }
  function tell(n) {
    const [a, b] = sides;
    const rows = [
      ["Network", (s) => `${s.model.parameters.network.toLocaleString("en")} parameters`],
      ["Trained", (s) => `${s.drawn.step.toLocaleString("en")} steps${s.model.student ? ", as a student" : ""}`],
      ["Pictures", (s) => `${s.model.size}×${s.model.size}, ${s.model.data}`],
      ["Evaluations a picture", (s) => evaluations(s.model, s.own())],
      ["Time a picture, now", (s) => `${((1000 * s.drawn.seconds) / n).toFixed(1)} ms`],
      ["As asked, a classifier says", (s) => (s.drawn.right ? asAsked(s.drawn.right) : s.drawn.judge === "training" ? "it is being trained" : "there is none")],
    ];
    figures.replaceChildren(h("thead", {}, h("tr", {}, h("td", {}, h("span", { className: "hidden-text" }, "Figure")), sides.map((s) => h("th", { scope: "col" }, s.model.name)))),
      h("tbody", {}, rows.map(([name, show]) => h("tr", {}, h("th", { scope: "row" }, name), sides.map((s) => h("td", {}, show(s)))))));
    if (sides.some((s) => s.drawn.judge === "training")) timer = setTimeout(() => full(true), 4000);
    const alike = a.model.latent.join() === b.model.latent.join();
    if (!alike) { remark.textContent = "These models draw pictures of different sizes, so their noise differs too."; return; }
    const [x, y] = sides.map((s) => s.drawn.states.at(-1).x);
    let sum = 0;
    for (let i = 0; i < x.length; i += 1) sum += Math.abs(x[i] - y[i]);
    remark.textContent = `Same noise. Their pictures differ by ${(sum / x.length / 2.55).toFixed(1)}% of the range of a pixel, on average.`;
  }
  let timer = 0;
  const soon = after(200, () => { clearTimeout(timer); full(); });
  const change = (changes) => { set(changes); soon(); };
  const listed = h("textarea", { value: values.prompts, rows: 5, spellcheck: false, oninput: () => change({ prompts: listed.value }) });
  const seed = number("Seed", values.seed, (v) => change({ seed: v }), { min: 0 });
  const dice = h("button", { type: "button", onclick: () => { seed.control.value = Math.floor(Math.random() * 1e6); change({ seed: +seed.control.value }); } }, "New noise");
  root.append(h("div", { className: "split" },
    h("div", { className: "stack" },
      h("div", { className: "pair" }, sides.map((side) => h("section", { className: "stack", ariaLabel: side.letter === "A" ? "First model" : "Second model" }, side.select.element, side.canvases))),
      way.element, told.element,
      h("div", { className: "plate" }, h("h2", {}, "Figures"), figures, remark)),
    h("section", { className: "panel", ariaLabel: "Settings" }, field("Prompts, one a line", listed), h("div", { className: "pick" }, seed.element, dice),
      sides.map((side) => h("fieldset", { className: "stack" }, h("legend", {}, side.letter === "A" ? "First model" : "Second model"), side.steps.element, side.guidance.element)))));
  full();
  return () => { sides.forEach((s) => s.drawer.stop()); way.stop(); clearTimeout(timer); };
}
