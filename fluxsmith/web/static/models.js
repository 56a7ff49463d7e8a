// Which model is chosen, and what follows from it.

import { select } from "./ui.js";

// The model of a name, or of NAME@STEP: then it is that run's model with another step.
export function find(models, name) {
  const [run, step] = name.split("@");
  const model = models.find((m) => m.name === run);
  return model && step ? { ...model, name, step: +step } : model;
}

// Models to choose from; with `every`, a run's earlier checkpoints too.
export function modelSelect(models, value, onchange, { label = "Model", every = false } = {}) {
  const text = (name, step) => `${name}, step ${step.toLocaleString("en")}`;
  const names = models.flatMap((m) => [
    { value: m.name, text: text(m.name, m.step) },
    ...m.checkpoints.filter((step) => every && step !== m.step).map((step) => ({ value: `${m.name}@${step}`, text: text(m.name, step) })),
  ]);
  if (!names.some((n) => n.value === value)) names.push({ value, text: text(value.split("@")[0], +value.split("@")[1]) });
  return select(label, names, value, onchange);
}

// How often the network is evaluated for a picture.
export function evaluations(model, { steps, solver, guidance }) {
  const [one, two] = model.solvers[solver] || [1, 2];
  const each = one + (steps - 1) * (two - one);
  return each * (model.doubled && guidance !== 1 && guidance !== 0 ? 2 : 1);
}

export const request = (model, values) => ({
  model: model.name,
  steps: values.steps,
  guidance: model.guided ? values.guidance : 1,
  solver: values.solver || "euler",
  seed: values.seed,
});

export const GUIDANCE = { min: 0, max: 8, step: 0.1, show: (v) => v.toFixed(1) };

// Whether a model draws by the steps alone that it was trained with.
export const few = (model) => model.student && !model.guided;

// Steps that show a way: a few-step student's own, else enough to see it bend.
export const stepsToSee = (model) => (few(model) ? model.defaults.steps : 20);

// Whether these are prompts of the model before that this one doesn't know. What was typed is none.
export const foreign = (prompts, before, model) => prompts.every((p) => before.prompts.includes(p)) && !prompts.every((p) => model.prompts.includes(p));

export const usualPrompt = (model, wanted) => (model.prompts.includes(wanted) ? wanted : model.prompts[0] || "");

// Prompts to begin with: a numeral each where the data are digits, else the first ten.
export function usualPrompts(model, most = 10) {
  const digits = model.prompts.filter((p) => /^\d$/.test(p));
  return (digits.length > 1 ? digits : model.prompts).slice(0, most);
}
