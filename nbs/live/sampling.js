// Sampling, step by step. All noise is fixed by the seed, so each slider changes one thing only.

import { normal, steps } from "./algorithms.js";
import { chooseModel } from "./model.js";
import { button, level, levels, make, newest, note, paint, row, select, slider, visible } from "./ui.js";

const COLUMNS = 8, USUAL = [0.8, 0.4, 0.2];

export default async function (el) {
  let model, label, weight;
  const seed = slider("seed", { min: 0, max: 200, value: 1 }, () => redraw());
  const count = slider("steps", { min: 1, max: USUAL.length + 1, value: 2 }, () => { arrange(); redraw(); });
  const sigmas = USUAL.map((value, i) =>
    levels(`level ${i + 2}`, { min: 0.01, max: 79, value }, () => { push(i); redraw(); }));
  const fresh = button("new noise", () => { seed.value = (seed.value + 1) % 201; redraw(); });
  const own = row(), strip = make("div", { role: "img" }), said = note("");

  async function begin(found) {
    model = found;
    const [min, max] = model.weights, options = model.classes.map((name, i) => [String(i), name]);
    label = select("class", [["-1", "each in turn"], ...options], "-1", () => redraw());
    weight = slider("guidance", { min, max, step: 0.25, value: model.weight, show: w => `w = ${w}` }, () => redraw());
    own.replaceChildren(seed.el, label.el, weight.el, count.el);
    await redraw();
  }
  const arrange = () => sigmas.forEach((control, i) => { control.el.hidden = i + 2 > count.value; });

  // levels fall: one that is moved takes the others along
  function push(moved) {
    const to = sigmas[moved].value;
    sigmas.forEach((control, i) => {
      if (i < moved && control.value < to || i > moved && control.value > to) control.value = to;
    });
  }

  const redraw = newest(el, async () => {
    const { size, shape, classes, f } = model, n = count.value, asked = Number(label.value);
    const z = Array.from({ length: n }, (_, i) => normal(1000 * i + seed.value, COLUMNS * size));
    const labels = Array.from({ length: COLUMNS }, (_, i) => asked < 0 ? i % classes.length : asked);
    const options = { labels, weight: weight.value }, shown = [];
    const chosen = [80, ...sigmas.slice(0, n - 1).map(control => control.value)];
    for await (const { sigma, noisy, denoised } of steps((x, s) => f(x, s, options), chosen, z)) {
      const name = shown.length ? `noise of ${level(sigma)} on it` : "noise, σ = 80";
      shown.push([name, visible(noisy, sigma)], [`step ${shown.length / 2 + 1}`, denoised]);
    }
    strip.ariaLabel = `${COLUMNS} samples: ${shown.map(([name]) => name).join(", ")}`;
    while (strip.children.length > shown.length) strip.lastChild.remove();
    shown.forEach(([name, x], i) => {
      const [words, row] = (strip.children[i] ?? strip.appendChild(line())).children;
      words.textContent = name;
      [...row.children].forEach((canvas, j) => paint(canvas, x, shape, j * size));
    });
    said.textContent = words(n, chosen[1], asked < 0 ? classes.slice(0, COLUMNS) : [classes[asked]], options.weight);
  });

  function line() {
    const canvases = Array.from({ length: COLUMNS }, () => make("canvas", { className: "live-pixels" }));
    return make("div", { className: "live-line" }, make("span"), make("div", { className: "live-pictures" }, ...canvases));
  }

  function words(n, second, names, w) {
    const asked = names.length > 1 ? `From left to right: ${names.join(", ")}${names.length < COLUMNS ? ", and again" : ""}. `
      : `All are asked for ${names[0]}. `;
    const strength = w === 0 ? "Guidance 0: the class is hardly heard. "
      : w > model.weight + 2 ? "Strong guidance: the class is plain, and pictures become alike. " : "";
    const much = n === 1 ? "One evaluation of the network for each picture; add a step and look at what it repairs."
      : second > 20 ? `At σ = ${level(second)} all is hidden again: these are new pictures.`
      : `Before step 2, noise of ${level(second)} is put on the first answer: what it hides is decided again.`;
    return asked + strength + much;
  }

  const pictures = await chooseModel(begin);
  arrange();
  el.append(row(pictures.el, fresh), own, row(...sigmas.map(control => control.el)), strip, said);
}
