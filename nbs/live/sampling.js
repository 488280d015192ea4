// Sampling, step by step. All noise is fixed by the seed, so each slider changes one thing only.

import { load } from "./model.js";
import { normal, steps } from "./algorithms.js";
import { button, choice, level, levels, make, newest, note, paint, row, select, slider } from "./ui.js";

const MODELS = [["avatars", "faces"], ["mnist", "MNIST"], ["digits", "8×8 digits"]], COLUMNS = 8, MOST = 4;
const USUAL = [80, 0.8, 0.4, 0.2];

export default async function (el) {
  let model;
  const controls = {
    model: choice("Model", MODELS, "avatars", async () => { await change(); redraw(); }),
    seed: slider("seed", { min: 0, max: 200, value: 1 }, () => redraw()),
    count: slider("steps", { min: 1, max: MOST, value: 2 }, () => { arrange(); redraw(); }),
  };
  const sigmas = USUAL.slice(1).map((value, i) => levels(`level ${i + 2}`, { min: 0.01, max: 79, value }, () => redraw()));
  const labels = make("div"), weight = make("div"), rows = make("div", { className: "live-walk", role: "img" });
  const said = note("");

  async function change() {
    model = await load(controls.model.value);
    const options = [["-1", "each in turn"], ...model.classes.map((name, i) => [String(i), name])];
    controls.label = select("class", options, "-1", () => redraw());
    const [min, max] = model.weights;
    controls.weight = slider("guidance", { min, max, step: 0.25, value: model.weight, show: w => `w = ${w}` }, () => redraw());
    labels.replaceChildren(controls.label.el);
    weight.replaceChildren(controls.weight.el);
  }
  const arrange = () => sigmas.forEach((control, i) => { control.el.hidden = i + 2 > controls.count.value; });

  const redraw = newest(async () => {
    const n = controls.count.value, chosen = [80];
    // a level above the one before would not be a step down: it is taken as just below it
    for (const control of sigmas.slice(0, n - 1)) chosen.push(Math.min(control.value, 0.99 * chosen.at(-1)));
    const size = model.size, z = Array.from({ length: n }, (_, i) => normal(1000 * i + controls.seed.value, COLUMNS * size));
    const label = Number(controls.label.value), classes = model.classes.length;
    const asked = { labels: Array.from({ length: COLUMNS }, (_, i) => label < 0 ? i % classes : label), weight: controls.weight.value };
    const f = (x, sigma) => model.f(x, sigma, asked), shown = [];
    for await (const step of steps(f, chosen, z)) {
      shown.push([shown.length ? `noise of ${level(step.sigma)} on it` : "noise, σ = 80", step.noisy, step.sigma],
                 [`step ${shown.length / 2 + 1}`, step.denoised, null]);
    }
    draw(shown);
    const evaluations = n === 1 ? "one evaluation" : `${n} evaluations`;
    said.textContent = `${evaluations[0].toUpperCase()}${evaluations.slice(1)} of the network for each picture. ` + (n === 1
      ? "The whole picture comes out of the noise at once; add a step and look at what it repairs."
      : `Before step 2, noise of σ = ${level(chosen[1])} is put on the first answer: what it hides is decided again.`);
  });

  function draw(shown) {
    rows.setAttribute("aria-label", `${COLUMNS} samples: ${shown.map(([name]) => name).join(", ")}`);
    while (rows.children.length > shown.length) rows.lastChild.remove();
    shown.forEach(([name, x, sigma], i) => {
      let line = rows.children[i];
      if (!line) {
        line = make("div", { className: "live-line" }, make("span"), make("div", { className: "live-pictures" }));
        for (let j = 0; j < COLUMNS; j++) line.lastChild.append(make("canvas", { className: "live-pixels" }));
        rows.append(line);
      }
      line.firstChild.textContent = name;
      // a noisy picture is shown at the contrast that it can have
      const scaled = sigma === null ? x : x.map(v => v / Math.hypot(1, sigma));
      [...line.lastChild.children].forEach((canvas, j) => paint(canvas, scaled, model.shape, j * model.size));
    });
  }

  const fresh = button("new noise", () => { controls.seed.value = (controls.seed.value + 1) % 201; redraw(); });
  await change();
  arrange();
  await redraw();
  el.append(row(controls.model.el, fresh), rows, row(controls.seed.el, labels, weight, controls.count.el, ...sigmas.map(s => s.el)), said);
}
