// Draw on it: a sketch that the model goes on from, and parts of it that are marked to be drawn anew.

import { base64, drawer } from "./api.js";
import { GUIDANCE, few, find, foreign, modelSelect, request, stepsToSee, usualPrompt } from "./models.js";
import { colour, paint } from "./paint.js";
import { after, chips, choice, field, h, number, slider, status } from "./ui.js";

export const title = "Draw on it";
export const lead = "Begin a picture and let the model finish it; or mark what it shall draw anew.";
const LARGEST = 10 * 2 ** 20; // bytes of a picture to start from
const WIDTH = { min: 0.5, max: 6, step: 0.1, show: (v) => v.toFixed(1) };

// The sketch, its marks, and what Undo goes back to stay while the page is open.
const layer = () => h("canvas");
const [picture, mask] = [layer(), layer()];
const paper = picture.getContext("2d", { willReadFrequently: true });
const past = []; // copies of both
let begun = false;

function copy(canvas) {
  const made = h("canvas", { width: canvas.width, height: canvas.height });
  made.getContext("2d").drawImage(canvas, 0, 0);
  return made;
}

export function mount(root, { models, settings }) {
  const { values, set } = settings({ model: models[0].name, prompt: null, strength: 0.7, guidance: NaN, seed: 0, tool: "brush", width: 1.6, colour: "#ffffff" }, { guidance: GUIDANCE, width: WIDTH });
  let model = find(models, values.model);
  if (!model) throw new Error(`There is no model ${values.model} here.`);
  const told = status();
  const refused = h("p", { className: "notice bad", role: "alert", hidden: true }); // of a file
  const { draw, stop } = drawer(told);
  const cursor = layer();
  const board = h("div", { className: "board", tabIndex: 0, role: "application", ariaLabel: "The sketch. Arrow keys move the brush, the space bar sets it down." }, picture, mask, cursor);
  const results = h("div", { className: "pictures" });
  let spot = [0, 0];
  let last = null;

  function begin(whether) { begun = whether; board.classList.toggle("blank", !begun); }
  function blank() {
    for (const canvas of [picture, mask]) canvas.width = canvas.height = model.size;
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, model.size, model.size);
    begin(false);
  }
  function put(canvas, other) { // in the model's size
    canvas.width = canvas.height = model.size;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(other, 0, 0, model.size, model.size);
  }
  function resize() {
    if (!begun) blank();
    else if (picture.width !== model.size) for (const canvas of [picture, mask]) put(canvas, copy(canvas));
    cursor.width = cursor.height = model.size;
    spot = [model.size / 2, model.size / 2];
    begin(begun);
  }
  const remember = () => { begin(true); past.push([picture, mask].map(copy)); if (past.length > 40) past.shift(); };
  function back() {
    const before = past.pop();
    if (!before) return;
    [picture, mask].forEach((canvas, i) => put(canvas, before[i]));
    begin(true);
    soon();
  }

  function stroke(from, to) {
    const marking = values.tool === "mark";
    const context = (marking ? mask : picture).getContext("2d");
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = values.width * (model.size / 16);
    context.strokeStyle = marking ? colour("--accent") : values.tool === "eraser" ? "#000" : model.channels === 1 ? "#fff" : values.colour;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
  }
  function show() {
    const context = cursor.getContext("2d");
    context.clearRect(0, 0, model.size, model.size);
    if (document.activeElement !== board || !board.matches(":focus-visible")) return;
    context.fillStyle = colour("--accent", 0.9);
    context.fillRect(Math.floor(spot[0]), Math.floor(spot[1]), 1, 1);
  }
  const place = (event) => {
    const box = board.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => v * model.size);
  };
  board.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return;
    board.setPointerCapture(event.pointerId);
    remember();
    last = place(event);
    stroke(last, last);
    soon();
  });
  board.addEventListener("pointermove", (event) => {
    if (!last || !event.isPrimary) return;
    if (!event.buttons) { last = null; return; } // it was let go where we did not hear of it
    const to = place(event);
    stroke(last, to);
    last = to;
    soon();
  });
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, (event) => { if (event.isPrimary) last = null; });
  board.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) spot = spot.map((v, k) => Math.min(model.size - 0.5, Math.max(0.5, v + move[k] * (model.size / 16))));
    else if (event.key === " " || event.key === "Enter") { remember(); stroke(spot, spot); soon(); }
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) back();
    else return;
    event.preventDefault();
    show();
  });
  board.addEventListener("focus", show);
  board.addEventListener("blur", show);

  const pixels = (canvas, channels) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, model.size, model.size);
    const found = new Uint8Array(model.size * model.size * channels);
    for (let i = 0; i < model.size * model.size; i += 1) for (let c = 0; c < channels; c += 1) found[i * channels + c] = channels === 1 ? (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3 : data[4 * i + c];
    return found;
  };
  function marked() {
    const { data } = mask.getContext("2d").getImageData(0, 0, model.size, model.size);
    const found = new Uint8Array(model.size * model.size);
    for (let i = 0; i < found.length; i += 1) found[i] = data[4 * i + 3] > 127 ? 255 : 0;
    return found.some(Boolean) ? base64(found) : null;
  }
  // A picture is noised to one of the solver's own times, so the strength is a number of its steps.
  const most = () => stepsToSee(model) - (few(model) ? 1 : 0); // of few steps, one is left to the sketch
  const anew = () => Math.max(1, Math.min(most(), Math.round(values.strength * stepsToSee(model))));
  async function full() {
    const steps = stepsToSee(model);
    const body = { ...request(model, { ...values, steps }), prompts: Array(4).fill(values.prompt), picture: base64(pixels(picture, model.channels)), mask: marked(), strength: (anew() - 0.5) / steps }; // is rounded up to whole steps
    const drawn = await draw("/api/draw", body, { total: anew() });
    if (!drawn) return;
    const end = drawn.states.at(-1).x;
    results.style.setProperty("--columns", 2);
    results.replaceChildren(...[0, 1, 2, 3].map((i) => {
      const canvas = h("canvas", { role: "img", ariaLabel: `${values.prompt || "no prompt"}, finished in way ${i + 1}` });
      paint(canvas, end, i, model);
      return h("figure", {}, canvas, h("button", { type: "button", className: "small", ariaLabel: `Take way ${i + 1} onto the board`, onclick: () => { remember(); put(picture, canvas); mask.getContext("2d").clearRect(0, 0, model.size, model.size); soon(); } }, "Take over"));
    }));
    root.dataset.drawn = 1;
    told.done(body.mask ? "the marked part drawn anew, four ways" : most() ? "finished in four ways" : "drawn without the sketch, four ways");
  }
  const soon = after(160, full);
  const change = (changes) => { set(changes); soon(); };

  async function load(file) {
    if (!file) return;
    refused.hidden = true;
    try {
      if (file.size > LARGEST) throw new Error(`${file.name} is larger than ${LARGEST / 2 ** 20} MB; choose a smaller picture.`);
      const bitmap = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no picture that this browser can read; choose a PNG or JPEG.`); });
      remember();
      const side = Math.min(bitmap.width, bitmap.height);
      const context = picture.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, model.size, model.size);
      soon();
    } catch (error) { refused.textContent = error.message; refused.hidden = false; }
  }

  const adopt = (before) => {
    if (before && foreign([values.prompt], before, model)) values.prompt = null;
    values.prompt ??= usualPrompt(model, "three");
    if (before || !Number.isFinite(values.guidance)) values.guidance = model.defaults.guidance;
  };
  adopt();
  const prompt = h("input", { type: "text", className: "large", value: values.prompt, autocomplete: "off", spellcheck: false, oninput: () => { offered.mark(prompt.value); change({ prompt: prompt.value }); } });
  const offered = chips("Prompts that this model knows", model.prompts, values.prompt, (v) => { prompt.value = v; change({ prompt: v }); });
  const strength = slider("Strength", { min: 1, value: 1, show: (steps) => `${Math.round((100 * steps) / stepsToSee(model))}% drawn anew`, oninput: (steps) => change({ strength: steps / stepsToSee(model) }) });
  const marksAlone = h("p", { className: "small muted" }, "This model draws in one step, so it can't go on from a sketch: mark what it shall draw anew.");
  const guidance = slider("Guidance", { ...GUIDANCE, value: values.guidance, oninput: (v) => change({ guidance: v }) });
  const tool = choice("What the pen does", [{ value: "brush", text: "Draw" }, { value: "eraser", text: "Erase" }, { value: "mark", text: "Mark" }], values.tool, (v) => set({ tool: v }), true);
  const width = slider("Width of the pen", { ...WIDTH, value: values.width, oninput: (v) => set({ width: v }) });
  const ink = h("input", { type: "color", value: values.colour, oninput: () => set({ colour: ink.value }) });
  const inked = field("Colour", ink);
  const seed = number("Seed", values.seed, (v) => change({ seed: v }), { min: 0 });
  const dice = h("button", { type: "button", onclick: () => { seed.control.value = Math.floor(Math.random() * 1e6); change({ seed: +seed.control.value }); } }, "New noise");
  const file = h("input", { type: "file", accept: "image/*", className: "hidden-text", tabIndex: -1, ariaLabel: "A picture to start from", onchange: () => { load(file.files[0]); file.value = ""; } });
  const clear = () => { remember(); blank(); soon(); };
  const fit = () => {
    guidance.element.hidden = !model.guided;
    inked.hidden = model.channels === 1;
    strength.element.hidden = !most();
    marksAlone.hidden = !strength.element.hidden;
    strength.set(anew(), { max: Math.max(1, most()) });
    resize();
  };
  const chosen = modelSelect(models, values.model, (name) => { stop(); const before = model; model = find(models, name); adopt(before); prompt.value = values.prompt; offered.fill(model.prompts, values.prompt); guidance.set(values.guidance); fit(); change({ model: name }); });
  fit();
  root.append(
    h("div", { className: "stack tight" }, field("What it shall become", prompt), offered.element),
    h("div", { className: "split" },
      h("div", { className: "stack" },
        h("div", { className: "sketch" },
          h("section", { className: "stack tight", ariaLabel: "Your sketch" }, h("h2", {}, "Your sketch"), board,
            h("div", { className: "row" }, h("button", { type: "button", onclick: back }, "Undo"), h("button", { type: "button", onclick: clear }, "Clear"),
              h("button", { type: "button", onclick: () => file.click() }, "Open a picture"), file)),
          h("section", { className: "stack tight", ariaLabel: "How the model finishes it" }, h("h2", {}, "How the model finishes it"), results)),
        refused, told.element),
      h("section", { className: "panel", ariaLabel: "Settings" }, tool.element, width.element, inked, strength.element, marksAlone, guidance.element, h("div", { className: "pick" }, seed.element, dice), chosen.element)),
  );
  full();
  return stop;
}
