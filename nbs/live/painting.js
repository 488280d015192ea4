// A picture, a canvas on it, and what the model makes of both. The canvas is that of the notebooks' painter.

import surface from "./painter.js";
import { normal, steps } from "./algorithms.js";
import { button, choice, levels, make, newest, note, paint, pictures, row, select } from "./ui.js";

const PRESETS = ["hair", "top", "bottom", "left", "right", "center", "random"];
const UNKNOWN = [80, 2, 1.21, 0.74, 0.45, 0.27, 0.165, 0.1];     // eight levels: lesson 19 finds them as good as forty
const INK = "#D55E00";

document.head.append(make("link", { rel: "stylesheet", href: new URL("./painter.css", import.meta.url).href }));

// what anywidget hands to `render`: values, and somebody to tell of changes
function traits(values, changed) {
  const listeners = {};
  return {
    get: name => values[name],
    set(name, value) { values[name] = value; for (const tell of listeners[`change:${name}`] ?? []) tell(); },
    on: (name, tell) => (listeners[name] ??= []).push(tell),
    save_changes: () => changed(),
  };
}

function png(width, height, fill) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  fill(context, canvas);
  return canvas.toDataURL("image/png");
}

const masks = {
  hair: (i, j, h) => i < 0.4 * h,
  top: (i, j, h) => i < h >> 1, bottom: (i, j, h) => i >= h >> 1, left: (i, j, h, w) => j < w >> 1, right: (i, j, h, w) => j >= w >> 1,
  center: (i, j, h, w) => i >= h >> 2 && i < h - (h >> 2) && j >= w >> 2 && j < w - (w >> 2),
};

function mask(name, height, width) {
  const random = normal(1, height * width), inside = name === "random" ? (i, j) => random[i * width + j] < 0.25 : masks[name];
  return png(width, height, context => {
    context.fillStyle = INK;
    for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) if (inside(i, j, height, width)) context.fillRect(j, i, 1, 1);
  });
}

async function strokes(url, shape) {
  const [channels, height, width] = shape, size = height * width;
  const covered = new Uint8Array(channels * size), colors = new Float32Array(channels * size);
  if (!url) return { covered, colors };
  const image = new Image();
  image.src = url;
  await image.decode();
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  for (let i = 0; i < size; i++) {
    const rgb = [0, 1, 2].map(c => data[4 * i + c] / 127.5 - 1), gray = (rgb[0] + rgb[1] + rgb[2]) / 3;
    for (let c = 0; c < channels; c++) {
      covered[c * size + i] = data[4 * i + 3] > 127;
      colors[c * size + i] = channels > 1 ? rgb[c] : gray;
    }
  }
  return { covered, colors };
}

// The canvas at the left, `results` completions beside it, in `columns`. `begin` says what stands there at first.
export function painter(el, model, { results, columns, begin = {} }) {
  const [, height, width] = model.shape;
  let number = begin.picture ?? 0, seed = 0, given;
  const board = make("div", { className: "live-board" }), shown = pictures(results, `${results} completions`), said = note("");
  const classes = model.classes.map((name, i) => [String(i), name]);
  const label = select("asked for", classes, String(begin.label ?? model.labels[number]), () => redraw());
  const free = levels("freedom", { min: 0.3, max: 20, value: 2.2 }, () => redraw());
  const task = choice("Paint", [["hide", "what to draw anew"], ["color", "with colors"]], "hide", () => start());

  shown.el.style.setProperty("--columns", columns);

  function start(preset = begin.preset) {
    const hide = task.value === "hide";
    given = traits({
      width, height, brush: Math.max(2, Math.round(width / 7)), invertible: hide, opacity: hide ? 0.75 : 1, color: hide ? INK : "#8B2FC9",
      strokes: hide ? mask(preset, height, width) : "", image: "",
    }, () => redraw());
    presets.hidden = !hide;
    free.el.hidden = hide;
    board.replaceChildren();
    surface.render({ model: given, el: board });
    show();
    redraw();
  }
  function show() {
    given.set("image", png(width, height, (_, canvas) => paint(canvas, model.picture(number), model.shape)));
  }
  const fitting = PRESETS.filter(name => name !== "hair" || model.name === "avatars");
  const presets = row(...fitting.map(name => button(name, () => { given.set("strokes", mask(name, height, width)); redraw(); })));

  const redraw = newest(async () => {
    const { covered, colors } = await strokes(given.get("strokes"), model.shape), hide = task.value === "hide";
    const one = model.picture(number), repeat = x => Float32Array.from({ length: results * model.size }, (_, i) => x[i % model.size]);
    const labels = Number(label.value), f = (x, sigma) => model.f(x, sigma, { labels });
    const sigmas = hide ? UNKNOWN : [free.value, 0.4 * free.value];
    const z = sigmas.map((_, i) => normal(1000 * i + seed, results * model.size));
    const about = hide ? { known: repeat(one), mask: repeat(covered) } : { start: repeat(one.map((v, i) => covered[i] ? colors[i] : v)) };
    for await (const { denoised } of steps(f, sigmas, z, about))
      shown.canvases.forEach((canvas, i) => paint(canvas, denoised, model.shape, i * model.size));
    const hidden = covered.reduce((a, b) => a + b, 0) / covered.length;
    said.textContent = hide
      ? `${Math.round(100 * hidden)}% is hidden and drawn anew, ${results} times; every other pixel stays as it is.`
      : hidden ? "Your colors get noise on them, and two evaluations of the network make a picture of both."
        : "Paint on the picture: glasses, a beard, other hair. More freedom, less of your painting.";
  });

  const other = button("next picture", () => {
    number = (number + 1) % model.labels.length;
    label.input.value = model.labels[number];
    if (task.value === "color") given.set("strokes", "");
    show();
    redraw();
  });
  const again = button("other completions", () => { seed++; redraw(); });
  el.append(make("div", { className: "live-painter" }, board, make("div", { className: "live-results" }, shown.el, row(label.el), row(free.el), said)),
            row(task.el, other, again), presets);
  start();
}
