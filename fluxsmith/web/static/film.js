// The way from noise, state by state: a slider over the solver's real states only, what is shown of
// each (x_t, or the data that the model predicts there), and a film of it all.

import { choice, h, slider } from "./ui.js";

export const time = (t) => `t = ${t.toFixed(2)}`;

export function film(values, set, onshow) {
  let states = [];
  let playing = 0;
  const scrub = slider("The way from noise", {
    min: 0, max: 1, value: 1,
    show: (i) => (states[i] ? `${time(states[i].t)}, state ${i} of ${states.length - 1}` : ""),
    oninput: (i) => { stop(); show(i); },
    onchange: (i) => stay(i),
  });
  const which = choice("What is shown of a state", [{ value: "x", text: "x_t" }, { value: "x0", text: "predicted x0" }], values.shown, (shown) => { set({ shown }); show(scrub.value); });
  const button = h("button", { type: "button", onclick: () => (playing ? pause() : play()) }, "Play");
  function show(i) { if (states[i]) onshow(states[i], values.shown, i); }
  function stay(i) { set({ at: i === states.length - 1 ? -1 : i }); }
  function pause() { stop(); stay(scrub.value); }
  function stop() { cancelAnimationFrame(playing); playing = 0; button.textContent = "Play"; }
  function play() {
    if (!states.length) return;
    const began = performance.now();
    const last = states.length - 1;
    button.textContent = "Pause";
    const step = (now) => {
      const i = Math.min(last, Math.floor(((now - began) / 2200) * states.length));
      if (scrub.value !== i) { scrub.set(i); show(i); }
      if (i === last) { stop(); set({ at: -1 }); } else playing = requestAnimationFrame(step);
    };
    playing = requestAnimationFrame(step);
  }
  return {
    element: h("div", { className: "film" }, button, scrub.element, which.element),
    stop,
    redraw() { show(scrub.value); },
    load(next) {
      stop();
      states = next;
      const last = states.length - 1;
      scrub.set(values.at < 0 ? last : Math.min(values.at, last), { max: last });
      show(scrub.value);
    },
    get index() { return scrub.value; },
    get states() { return states; },
  };
}
