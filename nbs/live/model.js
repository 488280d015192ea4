// A model of the page: what is known of it, and its consistency function, which the worker evaluates.

import { choice } from "./ui.js";

let worker, count = 0;
const waiting = new Map();

function begin() {
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { id, f, error } }) => {
    const { done, failed } = waiting.get(id);
    waiting.delete(id);
    error ? failed(new Error(error)) : done(f);
  };
  worker.onerror = event => {
    for (const { failed } of waiting.values()) failed(new Error(event.message ?? "the worker did not load"));
    waiting.clear();
    worker = undefined;
  };
}

function asked(message) {
  if (!worker) begin();
  return new Promise((done, failed) => {
    waiting.set(++count, { done, failed });
    worker.postMessage({ id: count, ...message });
  });
}

// A file beside these scripts
export async function json(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} is not there (${answer.status})`);
  return answer.json();
}

// { name, shape, size, classes, labels, weight, weights, picture(i), f(x, sigma, { labels, weight }) }
async function open(name) {
  const [known] = await Promise.all([json(`models/${name}.json`), asked({ name })]);
  const bytes = Uint8Array.from(atob(known.pictures), c => c.charCodeAt(0));
  const { shape } = known, size = shape.reduce((a, b) => a * b);
  return {
    ...known, name, size,
    picture: i => Float32Array.from(bytes.subarray(i * size, (i + 1) * size), byte => byte / 127.5 - 1),
    f: (x, sigma, { labels, weight = known.weight }) => asked({ name, ask: { x, shape, sigma, labels, weight } }),
  };
}

const models = {};

export function load(name) {
  models[name] ??= open(name);
  models[name].catch(() => delete models[name]);
  return models[name];
}

// A choice of models. `begin(model)` gets the first one, and each that is chosen as soon as it is there.
export async function chooseModel(begin) {
  let now = "avatars";
  const options = [["avatars", "faces"], ["mnist", "MNIST"], ["digits", "8×8 digits"]];
  const control = choice("Pictures", options, now, async name => {
    try {
      const model = await load(name);
      if (control.value === name) { now = name; begin(model); }
    } catch (error) {
      if (control.value === name) control.value = now;
      throw error;                             // live.js tells it
    }
  });
  await begin(await load(now));
  return control;
}
