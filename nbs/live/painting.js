// A picture, a canvas on it, and what the model makes of both. The canvas is that of the notebooks' painter.

import surface from "./painter.js";
import { normal, steps } from "./algorithms.js";
import { button, buttons, choice, levels, make, newest, note, paint, pictures, row, select } from "./ui.js";

const UNKNOWN = [80, 2, 1.21, 0.74, 0.45, 0.27, 0.165, 0.1];     // eight levels: lesson 19 finds them as good as forty
const INK = "#D55E00", PAINT = "#8B2FC9";

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

// What to hide, by name, for the pixel in row i and column j
const chance = normal(1, 10000);
const masks = {
  hair: (i, j, h) => i < 0.4 * h,
  top: (i, j, h) => i < h >> 1,
  bottom: (i, j, h) => i >= h >> 1,
  left: (i, j, h, w) => j < w >> 1,
  right: (i, j, h, w) => j >= w >> 1,
  center: (i, j, h, w) => i >= h >> 2 && i < h - (h >> 2) && j >= w >> 2 && j < w - (w >> 2),
  random: (i, j, h, w) => chance[i * w + j] < 0.25,
};

function painted(inside, color, height, width) {
  return png(width, height, context => {
    context.fillStyle = color;
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) if (inside(i, j, height, width)) context.fillRect(j, i, 1, 1);
    }
  });
}
const mask = (name, height, width) => painted(masks[name], INK, height, width);
const cap = (height, width) => painted((i, j, h, w) => i > 0 && i < 0.3 * h && j > 0.17 * w && j < 0.8 * w, PAINT, height, width);

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

// The canvas at the left, `results` completions beside it, in `columns`. `begin` says what stands there at first. The
// promise is kept when the first completions are done.
export async function painter(el, model, { results, columns, begin }) {
  const { shape, size, classes } = model, [, height, width] = shape;
  let number = begin.picture, seed = 0, given;
  const board = make("div", { className: "live-board" }), shown = pictures(results, `${results} completions`);
  shown.el.style.setProperty("--columns", columns);
  const said = note(""), kept = { hide: mask(begin.preset, height, width), color: model.name === "avatars" ? cap(height, width) : "" };
  const asked = select("asked for", classes.map((name, i) => [String(i), name]),
                       String(begin.label ?? model.labels[number]), () => redraw());
  const free = levels("freedom", { min: 0.3, max: 20, value: 0.8 }, () => redraw());
  const task = choice("Paint", [["hide", "what to draw anew"], ["color", "with colors"]], "hide", () => start());
  const fitting = Object.keys(masks).filter(name => name !== "hair" || model.name === "avatars");
  const presets = buttons("Hide", fitting.map(name => [name, () => { given.set("strokes", mask(name, height, width)); keep(); }]));

  function start() {
    const hide = task.value === "hide", brush = Math.max(2, Math.round(width / 7));
    given = traits({ width, height, brush, invertible: hide, opacity: hide ? 0.75 : 1, color: hide ? INK : PAINT,
                     strokes: kept[task.value], image: "" }, keep);
    presets.hidden = !hide;
    free.el.hidden = hide;
    board.replaceChildren();
    surface.render({ model: given, el: board });
    show();
    return redraw();
  }
  function show() { given.set("image", png(width, height, (_, canvas) => paint(canvas, model.picture(number), shape))); }
  function keep() { kept[task.value] = given.get("strokes"); redraw(); }

  const redraw = newest(el, async () => {
    const hide = task.value === "hide", { covered, colors } = await strokes(kept[task.value], shape), one = model.picture(number);
    const repeat = x => Float32Array.from({ length: results * size }, (_, i) => x[i % size]);
    const labels = Number(asked.value), sigmas = hide ? UNKNOWN : [free.value, 0.4 * free.value];
    const z = sigmas.map((_, i) => normal(1000 * i + seed, results * size));
    const about = hide ? { known: repeat(one), mask: repeat(covered) }
      : { start: repeat(one.map((v, i) => covered[i] ? colors[i] : v)) };
    for await (const { denoised } of steps((x, sigma) => model.f(x, sigma, { labels }), sigmas, z, about)) {
      shown.canvases.forEach((canvas, i) => paint(canvas, denoised, shape, i * size));
    }
    const share = covered.reduce((a, b) => a + b, 0) / covered.length;
    said.textContent = hide ? share ? `${Math.max(1, Math.round(100 * share))}% is hidden and drawn anew, ${results} times; ` +
        "every other pixel stays as it is." : "Nothing is hidden: paint over a part."
      : share ? "Your colors get noise on them, and two evaluations of the network make a picture of both. " +
        "More freedom, less of your painting." : "Nothing is painted yet: a hat, glasses, a beard?";
  });

  const other = button("next picture", () => {
    number = (number + 1) % model.labels.length;
    asked.input.value = model.labels[number];
    if (task.value === "color") { given.set("strokes", ""); kept.color = ""; }
    show();
    redraw();
  });
  const again = button("other completions", () => { seed++; redraw(); });
  el.append(row(task.el, other), make("div", { className: "live-painter" }, make("div", {}, board, presets),
                                      make("div", {}, shown.el, row(asked.el, again), row(free.el), said)));
  await start();
}
