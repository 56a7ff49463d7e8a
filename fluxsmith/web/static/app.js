// The frame: which view is shown, and its settings in the address (#/draw?prompt=seven&guidance=2).

import { get } from "./api.js";
import { forget, h } from "./ui.js";
import * as draw from "./draw.js";
import * as branch from "./branch.js";
import * as sketch from "./sketch.js";
import * as learn from "./learn.js";
import * as inside from "./inside.js";
import * as compare from "./compare.js";

const VIEWS = { draw, branch, sketch, learn, inside, compare };
const main = document.querySelector("main");
const nav = document.querySelector("nav");
let leave = () => {};
let shows = 0;

const EVERY = 300; // ms: browsers refuse to write the address more than about 100 times in 10 to 30 s
let unwritten = null; // says what the address shall be
let writing = 0;
let here = ""; // the address as it was read or written last: another one is another view's

function write() {
  clearTimeout(writing);
  writing = 0;
  if (unwritten && location.hash === here) {
    try {
      history.replaceState(null, "", unwritten());
    } catch {
      writing = setTimeout(write, EVERY);
      return;
    }
    here = location.hash;
  }
  unwritten = null;
}

nav.append(...Object.entries(VIEWS).map(([name, view]) => h("a", { href: `#/${name}` }, view.title)));

// The settings of a view: read from the address, and written into it where they are not the usual
// ones. `limits` are {min, max} of numbers that have a slider.
function settings(view, usual, limits = {}) {
  const query = new URLSearchParams(location.hash.split("?")[1] || "");
  const found = { ...usual };
  for (const [key, value] of Object.entries(usual)) {
    if (!query.has(key)) continue;
    const text = query.get(key);
    if (typeof value === "boolean") found[key] = text === "true";
    else if (typeof value !== "number") found[key] = text;
    else if (text !== "" && Number.isFinite(+text)) {
      const { min = -Infinity, max = Infinity } = limits[key] || {};
      found[key] = Math.min(max, Math.max(min, +text));
    }
  }
  const address = () => {
    const now = new URLSearchParams();
    for (const [key, value] of Object.entries(found)) if (!Number.isNaN(value) && (value !== usual[key] || key === "model")) now.set(key, value);
    return `#/${view}?${now}`;
  };
  const set = (changes) => {
    Object.assign(found, changes);
    unwritten = address;
    writing ||= setTimeout(write, EVERY);
  };
  return { values: found, set };
}

export function open(view, values = {}) {
  write();
  location.hash = `/${view}?${new URLSearchParams(values)}`;
}

function ready() {
  main.inert = false;
  main.ariaBusy = "false";
}

async function show() {
  const name = location.hash.replace(/^#\/?/, "").split("?")[0];
  const view = VIEWS[name] ? name : "draw";
  leave();
  leave = () => {};
  forget();
  unwritten = null;
  here = location.hash;
  const mine = ++shows;
  const within = main.contains(document.activeElement);
  main.inert = true; // a view that was left takes no input while the next one comes
  for (const link of nav.children) {
    const here = link.hash === `#/${view}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (here) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${VIEWS[view].title} – fluxsmith`;
  if (main.querySelector("h1")) main.ariaBusy = "true";
  else main.replaceChildren(h("p", { className: "muted", role: "status" }, "Opening the models …"));
  try {
    const models = await get("/api/models");
    if (mine !== shows) return; // another view was asked for meanwhile
    if (!models.length && view !== "learn") throw new Error("No model here has a checkpoint yet. Its training can be watched already: choose Watch it learn.");
    const root = h("div", { className: "view" }, h("div", {}, h("h1", {}, VIEWS[view].title), h("p", { className: "lead" }, VIEWS[view].lead)));
    main.replaceChildren(root);
    ready();
    scrollTo(0, 0);
    if (within) main.focus({ preventScroll: true });
    leave = VIEWS[view].mount(root, { models, open, settings: (usual, limits) => settings(view, usual, limits) }) || leave;
  } catch (error) {
    if (mine !== shows) return;
    ready();
    main.replaceChildren(h("p", { className: "notice bad", role: "alert" }, error.message));
  }
}

addEventListener("hashchange", show);
for (const end of ["change", "click", "pagehide"]) addEventListener(end, write); // of a change, or of the view
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
show();
