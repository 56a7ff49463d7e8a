// The frame: which view is shown, and its settings in the address (#/draw?prompt=seven&guidance=2).

import { get } from "./api.js";
import { h } from "./ui.js";
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
let written = "";

nav.append(...Object.entries(VIEWS).map(([name, view]) => h("a", { href: `#/${name}` }, view.title)));

// The settings of a view: read from the address, written into it where they are not the usual ones.
function settings(view, usual) {
  const query = new URLSearchParams(location.hash.split("?")[1] || "");
  const found = { ...usual };
  for (const [key, value] of Object.entries(usual)) {
    if (!query.has(key)) continue;
    const text = query.get(key);
    if (typeof value === "boolean") found[key] = text === "true";
    else if (typeof value !== "number") found[key] = text;
    else if (text !== "" && Number.isFinite(+text)) found[key] = +text;
  }
  const write = () => {
    const now = new URLSearchParams();
    for (const [key, value] of Object.entries(found)) if (value !== usual[key] || key === "model") now.set(key, value);
    written = `#/${view}?${now}`;
    history.replaceState(null, "", written);
  };
  return { values: found, set(changes) { Object.assign(found, changes); write(); } };
}

export function open(view, values = {}) {
  location.hash = `/${view}?${new URLSearchParams(values)}`;
}

async function show() {
  const name = location.hash.replace(/^#\/?/, "").split("?")[0];
  const view = VIEWS[name] ? name : "draw";
  leave();
  leave = () => {};
  for (const link of nav.children) {
    const here = link.hash === `#/${view}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (here) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${VIEWS[view].title} – fluxsmith`;
  try {
    const models = await get("/api/models");
    const root = h("div", { className: "view" }, h("div", {}, h("h1", {}, VIEWS[view].title), h("p", { className: "lead" }, VIEWS[view].lead)));
    main.replaceChildren(root);
    leave = VIEWS[view].mount(root, { models, open, settings: (usual) => settings(view, usual) }) || leave;
  } catch (error) {
    main.replaceChildren(h("p", { className: "notice bad", role: "alert" }, error.message));
  }
}

addEventListener("hashchange", () => location.hash !== written && show());
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
show();
