// A model of the page: what is known of it, and its consistency function, which the worker evaluates.

let worker, count = 0;
const waiting = new Map();

function asked(message) {
  if (!worker) {
    worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data: { id, f, error } }) => {
      const { done, failed } = waiting.get(id);
      waiting.delete(id);
      error ? failed(new Error(error)) : done(f);
    };
    worker.onerror = event => {
      for (const { failed } of waiting.values()) failed(new Error(event.message ?? "the worker did not load"));
      waiting.clear();
    };
  }
  return new Promise((done, failed) => {
    waiting.set(++count, { done, failed });
    worker.postMessage({ id: count, ...message });
  });
}

const models = {};

// { shape, classes, weight, weights, sigmas, pictures, picture(i), f(x, sigma, options) }
export function load(name) {
  return models[name] ??= (async () => {
    const [known] = await Promise.all([
      fetch(new URL(`./models/${name}.json`, import.meta.url)).then(answer => {
        if (!answer.ok) throw new Error(`${name} is not there (${answer.status})`);
        return answer.json();
      }),
      asked({ name }),                         // the network begins to load
    ]);
    const bytes = Uint8Array.from(atob(known.pictures), c => c.charCodeAt(0));
    const size = known.shape.reduce((a, b) => a * b);
    return {
      ...known, name, size,
      picture: i => Float32Array.from(bytes.subarray(i * size, (i + 1) * size), byte => byte / 127.5 - 1),
      f: (x, sigma, { labels, weight = known.weight }) => asked({ name, ask: { x, shape: known.shape, sigma, labels, weight } }),
    };
  })();
}
