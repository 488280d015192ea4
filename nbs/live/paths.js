// Lesson 12: where the path through a noisy point ends, where a model says that it ends, and how models learn it.
import { button, choice, level, make, note, plot, row, shape, slider } from "./ui.js";
import { bellsDenoiser, halves, heunStep, planeDenoiser, plainNetwork, walk } from "./formulas.js";
import { normal } from "./algorithms.js";

const EDGE = 0.02, SIDE = 0.0172, TOP = 3, HIGH = 1.8;      // the map of answers; the gap is drawn at its left side
const ORANGE = 0x147DEB, PURPLE = 0xC8506E;                 // blue, green, red, as a canvas keeps them
const two = v => Math.abs(v) < 0.005 ? "0.00" : v.toFixed(2).replace("-", "−");
const apart = (a, b) => Math.hypot(...a.map((v, i) => v - b[i]));
const spaced = (n, low, high) => Array.from({ length: n }, (_, i) => low + (high - low) * i / (n - 1));
const within = (v, [low, high]) => Math.min(high, Math.max(low, v));
const density = (v, std) => Math.exp(-v * v / (2 * std * std)) / std;
const NAMES = { CT: "Consistency training", CD: "Distillation" };

// What the page asks of each kind of data: a plot, where in it a noisy point stands, and what lies behind.
// `place(x, σ)` is that place, `side(x)` where gaps are drawn, and `ratio` says which level a place belongs to.

function bellsView({ center, width }) {
  const p = plot({ height: 400, left: 84, label: "Paths from noise, at the right, into two bells of data, at the left",
                   x: { range: [0.0145, TOP], log: true, ticks: [0.02, 0.1, 0.5, 2], label: "noise level σ" },
                   y: { range: [-HIGH, HIGH], ticks: [-1.5, 1.5], show: v => String(v).replace("-", "−") } });
  const denoiser = bellsDenoiser(center, width);
  const canvas = make("canvas", { width: 64, height: 80, className: "live-under" });
  const [, , w, h] = p.svg.getAttribute("viewBox").split(" ");
  Object.assign(canvas.style, { left: `${100 * p.X(EDGE) / w}%`, width: `${100 * (p.X(TOP) - p.X(EDGE)) / w}%`,
                                top: `${100 * p.Y(HIGH) / h}%`, height: `${100 * (p.Y(-HIGH) - p.Y(HIGH)) / h}%` });
  const place = ([x], sigma) => [Math.max(sigma, EDGE), x];
  const back = p.layer("back"), margin = p.layer("margin", false), maps = new Map();
  const heights = spaced(121, -1.2, 1.2), blur = 0.03;
  const heap = (v, i) => `${p.X(0.0145) - Math.min(78, 14 * v)} ${p.Y(heights[i])}`;
  const outline = values => `M${values.map(heap).join("L")}`, bell = v => density(v, Math.hypot(width, blur));
  const bells = heights.map(v => (bell(v - center) + bell(v + center)) / 8);
  for (const x of spaced(16, -6, 6)) back.line(walk(denoiser, [x], TOP).map(each => place(...each)), "faint");
  margin.g.append(shape("path", { d: `${outline(bells)}Z`, class: "fill" }));
  margin.text([0.0145, 0.78], "data", { "text-anchor": "end", dx: -8 });
  margin.text([0.0145, -0.9], "answers", { "text-anchor": "end", dx: -6, class: "c0" });

  // Noise of the top level, evenly spread, and how much of it there is: what the model makes of it
  const noise = spaced(240, -9, 9), mass = noise.map(x => density(x - center, TOP) + density(x + center, TOP));
  const total = mass.reduce((a, b) => a + b);

  // The answers at all points and levels: orange above zero, purple below
  function map(f) {
    const image = new ImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < image.width; i++) for (let j = 0; j < image.height; j++) {
      const x = HIGH - 2 * HIGH * (j + 0.5) / image.height, sigma = EDGE * (TOP / EDGE) ** ((i + 0.5) / image.width);
      const [answer] = f([x], sigma), alpha = 125 * Math.min(1, Math.abs(answer) / center);
      pixels[j * image.width + i] = alpha << 24 | (answer > 0 ? ORANGE : PURPLE);
    }
    const ends = noise.map(x => f([x], TOP)[0]);
    const drawn = heights.map(v => ends.reduce((sum, end, i) => sum + mass[i] / total * density(v - end, blur), 0) / 4);
    return { image, drawn, between: ends.reduce((sum, end, i) => sum + (Math.abs(end) < 0.3) * mass[i] / total, 0) };
  }
  let found;
  return {
    p, place, denoiser, range: [0.03, TOP], x: [0.5], sigma: 2.4,
    el: make("div", { className: "live-over" }, canvas, p.svg),
    side: ([x]) => [SIDE, x],
    move(view, [sigma, x]) { view.sigma = within(sigma, view.range); view.x = [within(x, [-HIGH, HIGH])]; },
    ratio: (view, [sigma]) => sigma / view.sigma,
    behind(f, name) {
      if (!maps.has(name)) maps.set(name, map(f));
      found = maps.get(name);
      canvas.getContext("2d").putImageData(found.image, 0, 0);
      p.layer("samples", false).g.append(shape("path", { d: outline(found.drawn), class: "line c0" }));
    },
    number: ([a]) => ` ${two(a)}`,
    gap(who, x, sigma, end, answer) {
      const off = apart(end, answer), [a, b] = [answer[0], end[0]];
      const where = Math.abs(a) < 0.3 && Math.abs(b) > 0.3 ? ", between the bells, where there are no data" :
        a * b < 0 ? ", in the other bell" : "";
      return `The path through x = ${two(x[0])} at σ = ${level(sigma)} ends at ${two(b)}. ${who} answers ${two(a)}: ` +
        `a gap of ${off < 0.005 ? "less than 0.01" : two(off)}${where}. ` +
        `Of its jumps from σ = ${TOP}, ${Math.round(100 * found.between)}% end between the bells.`;
    },
  };
}

function moonsView({ data: text }) {
  const data = halves(text), [W, H] = [2.2, 1.35];
  const p = plot({ height: 400, left: 14, bottom: 14, label: "The plane: two moons of points, and noise around them",
                   x: { range: [-W, W] }, y: { range: [-H, H] } });
  const denoiser = planeDenoiser(data), z = normal(3, data.length);
  const points = Array.from({ length: data.length / 2 }, (_, i) => [data[2 * i], data[2 * i + 1]]);
  const noisy = (i, sigma) => [points[i][0] + sigma * z[2 * i], points[i][1] + sigma * z[2 * i + 1]];
  const cloud = (g, places, kind) => g.append(shape("path", {
    d: places.map(([a, b]) => `M${p.X(a).toFixed(1)} ${p.Y(b).toFixed(1)}h0`).join(""), class: `line cloud ${kind}` }));
  cloud(p.layer("data").g, points, "faint");
  p.svg.querySelector(".live-axes").remove();
  let streams;
  return {
    p, denoiser, plane: true, place: x => x, side: x => x, range: [-W, W], x: [1.2, -1.1], sigma: 1,
    el: make("div", { className: "live-over" }, p.svg),
    move(view, [x, y]) { view.x = [within(x, view.range), within(y, [-H, H])]; },
    ratio: ({ x }, at, end) => x.reduce((sum, v, i) => sum + (at[i] - end[i]) * (v - end[i]), 0) / apart(x, end) ** 2,
    behind(f, name, sigma) {
      if (streams !== sigma) {
        const back = p.layer("back");
        for (let i = 0; i < 32; i++) back.line(walk(denoiser, noisy(i, sigma), sigma, 12).map(([x]) => x), "faint");
        streams = sigma;
      }
      const count = name === "exact" ? 100 : 400;         // walking takes longer
      const answers = spaced(count, 0, count - 1).map(i => f(noisy(i, sigma), sigma)).sort((a, b) => a[1] - b[1]);
      cloud(p.layer("samples").g, answers, "c0 answers");
      const names = p.layer("names"), low = answers[Math.floor(count / 50)];
      names.text([0.33, 0.68], "data", { "text-anchor": "middle", class: "halo" });
      names.text([low[0], low[1] - 0.16], "answers", { "text-anchor": "end", class: "halo c0" });
    },
    number: () => "",
    gap(who, x, sigma, end, answer) {
      const nearest = Math.min(...points.map(point => apart(point, answer)));
      return `The path through this point at σ = ${level(sigma)} ends at a data point. ${who} answers a place ` +
        `${two(apart(end, answer))} from there, and ${two(nearest)} from the nearest data point. ` +
        "(A moon is about 1.3 wide.)";
    },
  };
}

// A point that is dragged, or moved by the arrow keys: `moved([x, y])` in the plot's coordinates
function handle({ p, range: [low, high] }, name, kind, moved) {
  const dot = shape("circle", { r: 10, class: `dot grip free ${kind}`, tabindex: 0, role: "slider", "aria-label": name,
                                "aria-valuemin": low, "aria-valuemax": high });
  let at;
  dot.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6] }[event.key];
    if (!step) return;
    event.preventDefault();
    moved([p.X.back(p.X(at[0]) + step[0]), p.Y.back(p.Y(at[1]) + step[1])], at);
  });
  p.svg.append(dot);
  return {
    dot, far: ([x, y]) => Math.hypot(p.X(x) - p.X(at[0]), p.Y(y) - p.Y(at[1])),
    put(place, text) {
      at = place;
      const now = { cx: p.X(at[0]), cy: p.Y(at[1]), "aria-valuenow": at[0].toFixed(3), "aria-valuetext": text };
      for (const [key, value] of Object.entries(now)) dot.setAttribute(key, value);
    },
  };
}

// Words beside what is drawn, in pixels of the plot, so that they do not lie on it
function words(p, g) {
  const pixel = ([a, b]) => [p.X(a), p.Y(b)];
  const write = ([x, y], word, kind, anchor = "middle") => {
    const made = shape("text", { x, y: y + 5, "text-anchor": anchor, class: `halo ${kind}` });
    made.textContent = word;
    g.append(made);
  };
  return {
    // above or below a point, away from another one; in the plane, where arrows go up and down too, beside it
    at(place, word, kind, other, beside) {
      const [[x, y], [, away]] = [pixel(place), pixel(other)], right = x < 520;
      if (beside) write([x + (right ? 18 : -18), y], word, kind, right ? "start" : "end");
      else write([within(x, [60, 590]), y + (y <= away ? -22 : 24)], word, kind);
    },
    // at the middle of a short line, if that is long enough
    beside(a, b, word, kind) {
      const [[x, y], [u, v]] = [pixel(a), pixel(b)];
      if (Math.hypot(u - x, v - y) > 24) write([(x + u) / 2 + 18, (y + v) / 2], word, kind, "start");
    },
    // on both sides of an arrow and a path that begin at one point, where they are far apart
    apart(arrow, path) {
      const [start, end] = arrow.map(pixel), length = apart(start, end), walked = path.map(pixel);
      if (length < 130) return;
      const both = [0.35, 0.5, 0.65].map(t => {
        const on = start.map((v, i) => v + t * (end[i] - v));
        const near = walked.find(each => apart(each, start) > t * length) ?? walked.at(-1);
        return { on, near, wide: apart(on, near) };
      });
      const { on, near } = both.reduce((a, b) => b.wide > a.wide ? b : a);
      if (Math.abs(end[1] - start[1]) > Math.abs(end[0] - start[0]) / 2) {
        const left = near[0] > on[0] ? -1 : 1, anchors = left < 0 ? ["end", "start"] : ["start", "end"];
        write([on[0] + 14 * left, on[1]], "jump", "c0", anchors[0]);
        write([near[0] - 14 * left, near[1]], "true path", "", anchors[1]);
      } else {
        const up = near[1] > on[1] ? -1 : 1;
        write([on[0], on[1] + 20 * up], "jump", "c0");
        write([near[0], near[1] - 22 * up], "true path", "");
      }
    },
  };
}

export default async function (el) {
  const known = await (await fetch(new URL("points.json", import.meta.url))).json();
  const views = { bells: bellsView(known.bells), moons: moonsView(known.moons) };
  let view = views.bells, share = 1, ratio = 0.4, playing = null;

  const which = choice("Data", [["bells", "two bells"], ["moons", "two moons"]], "bells", changed);
  const model = choice("Model", [["exact", "exact"], ["CT", "CT"], ["CD", "CD"], ["ECT", "ECT"]], "CT", changed);
  const asked = choice("Show", [["gap", "the gap"], ["loss", "what the loss asks"]], "gap", draw);
  const shown = k => run() ? `step ${(run().steps[k] ?? 0).toLocaleString("en")}` : "none";
  const when = slider("training", { min: 0, max: 1, value: 1, show: shown },
                      k => { pause(); share = k / when.input.max; draw(); });
  const noise = slider("noise level", { min: 0.05, max: 3, step: 0.001, value: 1, show: s => `σ = ${level(s)}`,
                                        of: Math.exp, to: Math.log }, s => { view.sigma = s; draw(); });
  const play = button("Play", () => playing ? pause() : start());
  const said = note(""), stage = make("div"), lowest = row(noise.el);
  el.append(row(which.el, model.el), row(asked.el), stage, said, row(when.el, play), lowest);

  function run() { return known[which.value].runs[model.value]; }
  const networks = new Map();
  function network(steps = 40) {
    if (model.value === "exact") return (x, sigma) => walk(view.denoiser, x, sigma, steps).at(-1)[0];
    const { sizes, sigma_data } = known[which.value], name = `${which.value} ${model.value} ${when.value}`;
    if (!networks.has(name)) networks.set(name, plainNetwork(sizes, halves(run().weights[when.value]), sigma_data));
    return networks.get(name);
  }

  const who = () => {
    const steps = run()?.steps[when.value], many = n => `${n.toLocaleString("en")} steps`;
    if (!run()) return "The exact function";
    if (!steps) return "The untrained network";
    const tuned = steps - known.denoising;
    if (model.value !== "ECT") return `${NAMES[model.value]} after ${many(steps)}`;
    return tuned <= 0 ? `A network that has learned to denoise for ${many(steps)}` :
      `Easy consistency tuning, ${many(tuned)} after ${many(known.denoising)} of denoising,`;
  };
  const say = text => { said.textContent = text.replaceAll("σ = ", "σ\u00a0=\u00a0"); };
  const pair = (answer, target, sigma, below, off) => {
    const lower = model.value === "CD" ? `One step down the teacher's path, at σ = ${level(below)},` :
      `With the same noise at σ = ${level(below)}`;
    const wish = run() ? `The loss asks that they agree: they are ${two(off)} apart.` :
      `Even exact answers can differ, here by ${two(off)}: such a step leaves the path, only the mean follows it.`;
    return `At σ = ${level(sigma)} the student answers${answer || " the end of the blue arrow"}. ${lower} the answer ` +
      `is${target || " the end of the green one"}, the target. ${wish}`;
  };

  function start() {
    if (share === 1) share = 0;
    play.textContent = "Pause";
    playing = setInterval(() => {
      const last = when.input.max;
      share = Math.min(1, (Math.round(share * last) + 1) / last);
      changed();
      if (share === 1) pause();
    }, 600);
    changed();
  }
  function pause() { clearInterval(playing); playing = null; play.textContent = "Play"; }

  for (const each of Object.values(views)) {
    const { p } = each;
    const upper = each.upper = handle(each, "noisy point", "c0", at => { each.move(each, at); draw(); });
    const lower = each.lower = handle(each, "the lower level", "c2", lowered);
    function lowered(at, from) {                    // keys move it from where it is
      const part = place => each.ratio(each, place, each.end);
      ratio = within(from ? ratio + part(at) - part(from) : part(at), [0.05, 0.95]);
      draw();
    }
    let held = upper;
    p.svg.setAttribute("role", "group");
    p.drag((at, event) => {
      const low = asked.value === "loss" && lower.far(at) < Math.min(40, upper.far(at));
      if (event.type === "pointerdown") held = low ? lower : upper;
      if (held === lower) lowered(at); else { each.move(each, at); draw(); }
    });
  }

  // The data, the model or the moment is another one
  function changed() {
    view = views[which.value];
    if (stage.firstChild !== view.el) stage.replaceChildren(view.el);
    const last = (run()?.steps.length ?? 1) - 1;
    when.input.max = last;
    when.value = Math.round(share * last);
    when.input.disabled = play.disabled = !run();
    if (!run()) pause();
    lowest.hidden = which.value === "bells";
    draw();
  }

  function draw() {
    const { p, place, side, x, sigma, denoiser } = view, f = network(), loss = asked.value === "loss";
    const name = run() ? `${model.value} ${when.value}` : "exact", behind = view.plane ? `${name} ${sigma}` : name;
    if (view.shown !== behind) view.behind(network(12), name, sigma);           // few steps: there are many points
    view.shown = behind;
    const path = walk(denoiser, x, sigma), end = view.end = path.at(-1)[0], answer = f(x, sigma);
    const g = p.layer("moves"), text = words(p, p.layer("text", false).g);
    const walked = [...path.filter(([, s]) => s > EDGE || view.plane).map(each => place(...each)), place(end, EDGE)];
    g.line(walked, loss ? "faint" : "strong");
    const bar = (a, b, word) => {
      g.line([side(a), side(b)], "c1 thick");
      text.beside(side(a), side(b), word, "c1");
    };
    view.lower.dot.style.display = loss ? "" : "none";
    if (loss) {
      // Same noise: the clean sample at the path's end, x = x0 + σ z. Distillation steps along the path: Algorithm 2
      const below = ratio * sigma, straight = s => end.map((v, i) => v + s / sigma * (x[i] - v));
      const taught = model.value === "CD", down = spaced(60, Math.log(sigma), Math.log(EDGE)).map(Math.exp);
      const curve = down.map(s => place(straight(s), s));
      const there = taught ? heunStep(denoiser, x, sigma, below) : straight(below);
      const target = f(there, below), off = apart(answer, target);
      g.line(taught ? [place(x, sigma), place(there, below)] : curve, "dashed");
      g.arrow(place(x, sigma), place(answer, EDGE), "c0");
      g.arrow(place(there, below), place(target, EDGE), "c2");
      bar(answer, target, "apart");
      if (view.plane) text.beside(place(x, sigma), place(there, below), taught ? "teacher's step" : "same noise", "");
      else if (!taught) {
        const [s, height] = curve[40], part = from => Math.log(from / s) / Math.log(from / EDGE);
        const others = [[x, answer, sigma], [there, target, below]].map(([[a], [b], from]) => a + part(from) * (b - a));
        text.at([s, Math.max(height, ...others)], "same noise", "", [s, -HIGH]);
      }
      view.lower.put(place(there, below), `σ = ${level(below)}`);
      text.at(place(x, sigma), "student", "c0", place(there, below), view.plane);
      text.at(place(there, below), "target", "c2", place(x, sigma), view.plane);
      say(pair(view.number(answer), view.number(target), sigma, below, off));
    } else {
      g.arrow(place(x, sigma), place(answer, EDGE), "c0");
      bar(answer, end, "gap");
      text.apart([place(x, sigma), place(answer, EDGE)], walked);
      say(view.gap(who(), x, sigma, end, answer));
    }
    view.upper.put(place(x, sigma), `x = ${x.map(two).join(", ")}, σ = ${level(sigma)}`);
  }
  changed();
}
