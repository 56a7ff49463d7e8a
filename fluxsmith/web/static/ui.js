// Elements and controls, each with its label; nothing here knows of models.

export function h(tag, props = {}, ...children) {
  const element = tag in SVG_TAGS ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !(tag in SVG_TAGS) && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null));
  return element;
}
const SVG_TAGS = Object.fromEntries(["svg", "path", "circle", "line", "text", "g", "image", "title", "polyline", "rect"].map((t) => [t, 1]));

let count = 0;
const unique = (name) => `${name}-${(count += 1)}`;

export function field(label, control, output) {
  control.id ||= unique("field");
  return h("div", { className: "field" }, h("div", { className: "head" }, h("label", { htmlFor: control.id }, label), output), control);
}

// A slider with its number beside it. `values` is a list to choose from, or {min, max, step}.
export function slider(label, { min, max, step = 1, value, show = String, oninput, onchange }) {
  const output = h("output", {}, show(value));
  const input = h("input", { type: "range", min, max, step, value });
  const told = () => { output.textContent = show(+input.value); input.setAttribute("aria-valuetext", show(+input.value)); };
  input.addEventListener("input", () => { told(); oninput?.(+input.value); });
  input.addEventListener("change", () => onchange?.(+input.value));
  const element = field(label, input, output);
  told();
  return {
    element,
    input,
    get value() { return +input.value; },
    set(next, range = {}) { Object.assign(input, range); input.value = next; told(); },
  };
}

export function select(label, options, value, onchange) {
  const control = h("select", { onchange: () => onchange(control.value) });
  const fill = (list, chosen) => {
    control.replaceChildren(...list.map((o) => h("option", { value: o.value ?? o, selected: (o.value ?? o) === chosen }, o.text ?? o)));
    control.value = chosen;
  };
  fill(options, value);
  return { element: field(label, control), control, fill, get value() { return control.value; } };
}

export function number(label, value, onchange, props = {}) {
  const control = h("input", { type: "number", value, inputMode: "numeric", ...props });
  control.addEventListener("change", () => control.checkValidity() && control.value !== "" && onchange(+control.value));
  return { element: field(label, control), control };
}

export function choice(label, options, value, onchange, visible = false) {
  const name = unique("choice");
  const inputs = options.map((o) => h("input", { type: "radio", name, value: o.value ?? o, checked: (o.value ?? o) === value, onchange: () => onchange(o.value ?? o) }));
  const element = h("fieldset", { className: "field" }, h("legend", { className: visible ? "label" : "hidden-text" }, label),
    h("div", { className: "choice" }, options.map((o, i) => h("label", {}, inputs[i], o.text ?? o))));
  return { element, set(next) { inputs.forEach((input) => { input.checked = input.value === String(next); }); } };
}

// Buttons of which one is chosen; arrow keys go from one to the next.
export function chips(label, options, value, onchange) {
  const element = h("div", { className: "chips", role: "radiogroup", ariaLabel: label });
  const mark = (chosen) => {
    const there = options.includes(chosen);
    [...element.children].forEach((button, i) => {
      button.setAttribute("aria-checked", options[i] === chosen);
      button.tabIndex = options[i] === chosen || (!there && i === 0) ? 0 : -1;
      if (options[i] === chosen) element.scrollLeft = button.offsetLeft - element.clientWidth / 2;
    });
  };
  const fill = (list, chosen) => {
    options = list;
    element.hidden = !list.length;
    element.replaceChildren(...list.map((option) => h("button", { type: "button", role: "radio", onclick: () => { mark(option); onchange(option); } }, option || "(nothing)")));
    mark(chosen);
  };
  element.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const at = [...element.children].indexOf(document.activeElement);
    const next = element.children[(at + move + options.length) % options.length];
    next.focus();
    next.click();
  });
  fill(options, value);
  return { element, fill, mark };
}

// What is going on: a place in the line, progress where it takes long, a way to stop it, mistakes.
export function status() {
  const text = h("span", { role: "status" });
  const bar = h("progress", { max: 1, hidden: true, ariaLabel: "Progress" });
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const line = h("div", { className: "status" }, bar, text, stop);
  const problem = h("p", { className: "notice bad", role: "alert", hidden: true });
  let timer = 0;
  return {
    element: h("div", {}, line, problem),
    busy(onstop) {
      problem.hidden = true;
      stop.onclick = onstop;
      clearTimeout(timer);
      bar.removeAttribute("value"); // going on, nobody knows how far
      timer = setTimeout(() => { bar.hidden = stop.hidden = false; text.textContent = text.dataset.waiting || "drawing"; }, 700);
    },
    waiting(place) {
      text.dataset.waiting = place ? `${place} ahead of you` : "drawing";
      if (!stop.hidden) text.textContent = text.dataset.waiting;
    },
    progress(share) { bar.value = share; },
    done(words = "") { clearTimeout(timer); bar.hidden = stop.hidden = true; text.textContent = words; },
    // The same message again is not announced again.
    well() { problem.hidden = true; },
    failed(message) { this.done(); if (problem.textContent !== message) problem.textContent = message; problem.hidden = false; },
  };
}

// A function that waits until it was not called for a while. Leaving the view forgets what waits.
const waiting = new Set();
export const forget = () => { waiting.forEach(clearTimeout); waiting.clear(); };
export function after(milliseconds, action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    waiting.delete(timer);
    waiting.add((timer = setTimeout(action, milliseconds)));
  };
}
