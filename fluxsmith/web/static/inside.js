// Look inside: where in the picture each word acts, and the network itself, box by box.

import { bytes, drawer, get } from "./api.js";
import { film, time } from "./film.js";
import { GUIDANCE, find, foreign, modelSelect, request, stepsToSee } from "./models.js";
import { colour, paint } from "./paint.js";
import { after, chips, field, h, number, slider, status } from "./ui.js";

export const title = "Look inside";
export const lead = "How much each part of the picture attends to a word, in every block and at every t; and the network that does it.";

const STEPS = { min: 1, max: 50 };

export function mount(root, { models, settings }) {
  const { values, set } = settings({ model: models[0].name, prompt: null, guidance: NaN, steps: NaN, seed: 0, at: 10, shown: "x0", word: 0, box: 6 }, { guidance: GUIDANCE, steps: STEPS });
  let model = find(models, values.model);
  if (!model) throw new Error(`There is no model ${values.model} here.`);
  const told = status();
  const { draw, stop } = drawer(told);
  const looks = h("div", { className: "looks" });
  const words = chips("Word", [], "", (word) => { set({ word: seen.labels.indexOf(word) }); way.redraw(); });
  const remark = h("p", { className: "small muted" });
  let seen = null; // {words, labels, blocks, rows, columns, most, maps}

  const way = film(values, set, (state, which, i) => {
    if (!seen) return;
    const at = Math.min(i, way.states.length - 2); // the last state is not evaluated any more
    const area = seen.rows * seen.columns;
    const [r, g, b] = colour("--accent").match(/\d+/g);
    seen.blocks.forEach((block, j) => {
      const canvas = looks.children[j].firstChild;
      paint(canvas, state[which], 0, model);
      const from = ((at * seen.blocks.length + j) * seen.words.length + values.word) * area;
      const own = seen.maps.subarray(from, from + area);
      const most = Math.max(...own, 1);
      const context = canvas.getContext("2d");
      const [w, hi] = [model.size / seen.columns, model.size / seen.rows];
      own.forEach((v, k) => {
        context.fillStyle = `rgba(${r}, ${g}, ${b}, ${(0.75 * v) / most})`;
        context.fillRect((k % seen.columns) * w, Math.floor(k / seen.columns) * hi, w, hi);
      });
      const mean = (own.reduce((x, y) => x + y, 0) / area / 255) * seen.most;
      looks.children[j].lastChild.textContent = `${block}, ${(100 * mean).toFixed(0)}%`;
      canvas.ariaLabel = `${block} at ${time(state.t)}: on average ${(100 * mean).toFixed(0)}% of the attention goes to ${seen.words[values.word]}`;
    });
  });

  async function full() {
    const more = {};
    const drawn = await draw("/api/inside", { ...request(model, values), prompts: [values.prompt] }, { extra: (event) => Object.assign(more, event) });
    if (!drawn) return;
    seen = { ...more, maps: bytes(more.attention), labels: more.words.map((word, i) => (more.words.indexOf(word) === i ? word : `${word} (${i + 1})`)) };
    values.word = Math.min(values.word, seen.words.length - 1);
    words.fill(seen.labels, seen.labels[values.word]);
    looks.replaceChildren(...seen.blocks.map(() => h("figure", {}, h("canvas", { role: "img" }), h("figcaption"))));
    remark.textContent = `Each part of the picture spreads its attention over ${seen.words.length} word${seen.words.length > 1 ? "s" : ""} and ${seen.rows * seen.columns} parts. Shown is the share that goes to the word, its strongest part in full colour; the number is the mean.`;
    way.load(drawn.states);
    root.dataset.drawn = 1;
  }

  // The network
  const code = h("pre", { tabIndex: 0, ariaLabel: "The code of this part" });
  const heading = h("h2");
  let reveal = () => {};
  let sources = {};
  const flow = h("div", { className: "flow", role: "group", ariaLabel: "The network, from top to bottom" });
  const said = (n) => n.toLocaleString("en");
  function layout() {
    const n = model.network;
    const tokens = (model.latent[1] / model.patch) * (model.latent[2] / model.patch);
    const hidden = n.hidden_size;
    const boxes = [
      ["path", "x_t", `${model.latent.join("×")}: (1 − t) x0 + t noise`],
      ["time", "t", "cos and sin at 128 frequencies"],
      ["text", "prompt", `${n.context_in_dim} numbers a token`],
      ["rope", "image tokens", `${tokens} of ${n.in_channels} → ${hidden}, turned by row and column`],
      ["embedder", "vec", `time + pooled text: ${hidden}`],
      ["embedder", "text tokens", `→ ${hidden}`],
      ["double", `${n.depth} dual-stream block${n.depth === 1 ? "" : "s"}`, `image and text with weights of their own, ${n.num_heads} heads of ${hidden / n.num_heads}, MLP ${said(Math.floor(hidden * n.mlp_ratio))}`, "two"],
      ["modulation", "modulation", "shift, scale, gate from vec"],
      ["attention", "joint attention", "every token to all", "two"],
      ["norm", "norm of q and k", "RMS"],
      ["single", `${n.depth_single_blocks} single-stream blocks`, `one sequence; attention and MLP side by side: ${hidden} → ${said(3 * hidden + Math.floor(hidden * n.mlp_ratio))} → ${hidden}`, "three"],
      ["last", "last layer", `${hidden} → ${n.out_channels || n.in_channels} a token`, "two"],
      ["flux", "the whole", `${said(model.parameters.network)} parameters`],
      ...(model.prediction === "data" ? [["velocity", "velocity v of the predicted data", "(x_t − x0) / max(t, 0.05)", "three"]] : []),
      ["step", "velocity v, a step of Euler", "x + dt · v", "three last"],
    ];
    flow.replaceChildren(...boxes.map(([, head, size, wide = ""], i) => h("button", { type: "button", className: wide, onclick: () => { set({ box: i }); reveal(); } }, head, h("small", {}, size))));
    reveal = () => {
      [...flow.children].forEach((button, k) => { button.ariaExpanded = String(k === values.box); });
      const [name, head] = boxes[values.box] || boxes[6];
      heading.textContent = head;
      code.textContent = sources[name] || "";
    };
    reveal();
  }

  const adopt = (before) => {
    if (before && foreign([values.prompt], before, model)) values.prompt = null;
    values.prompt ??= [...model.prompts].sort((a, b) => b.split(" ").length - a.split(" ").length || b.length - a.length)[0] || "";
    if (before || !Number.isFinite(values.guidance)) values.guidance = model.defaults.guidance;
    if (before || !Number.isFinite(values.steps)) values.steps = stepsToSee(model);
  };
  adopt();
  const soon = after(150, full);
  const change = (changes) => { set(changes); soon(); };
  const prompt = h("input", { type: "text", className: "large", value: values.prompt, autocomplete: "off", spellcheck: false, oninput: () => { offered.mark(prompt.value); change({ prompt: prompt.value }); } });
  const offered = chips("Prompts that this model knows", model.prompts, values.prompt, (v) => { prompt.value = v; change({ prompt: v }); });
  const guidance = slider("Guidance", { ...GUIDANCE, value: values.guidance, oninput: (v) => change({ guidance: v }) });
  const steps = slider("Steps", { ...STEPS, value: values.steps, oninput: (v) => change({ steps: v }) });
  const seed = number("Seed", values.seed, (v) => change({ seed: v }), { min: 0 });
  const chosen = modelSelect(models, values.model, (name) => { stop(); way.load([]); const before = model; model = find(models, name); adopt(before); prompt.value = values.prompt; offered.fill(model.prompts, values.prompt); guidance.element.hidden = !model.guided; guidance.set(values.guidance); steps.set(values.steps); layout(); change({ model: name, word: 0 }); });
  guidance.element.hidden = !model.guided;
  root.append(
    h("div", { className: "stack tight" }, field("Prompt", prompt), offered.element),
    h("div", { className: "split" },
      h("div", { className: "stack" }, h("div", { className: "field" }, h("span", { className: "label" }, "Where this word acts"), words.element), looks, remark, way.element, told.element),
      h("section", { className: "panel", ariaLabel: "Settings" }, chosen.element, guidance.element, steps.element, seed.element)),
    h("div", {}, h("h1", {}, "The network"), h("p", { className: "lead" }, "From top to bottom, with this model's sizes. Every box opens to its code, as the package has it.")),
    h("div", { className: "network" }, flow, h("div", { className: "stack tight" }, heading, code)),
  );
  layout();
  get("/api/code").then((found) => { sources = found; layout(); }).catch((error) => told.failed(error.message));
  full();
  return () => { stop(); way.stop(); };
}
