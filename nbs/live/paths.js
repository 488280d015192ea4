// Lesson 12: where the path through a noisy point ends, where a model says that it ends, and how models learn it.
import { button, choice, level, levels, make, narrow, note, plot, row, shape, slider } from "./ui.js";
import { bellsDenoiser, halves, heunStep, planeDenoiser, plainNetwork, walk } from "./formulas.js";
import { normal } from "./algorithms.js";
import { json } from "./model.js";

// The map of answers; the gap is drawn at its left side, and left of that the bells
const EDGE = 0.02, LOW = narrow ? 0.0115 : 0.0135, SIDE = Math.sqrt(LOW * EDGE), TOP = 3, HIGH = 1.6;
const REACH = 40;                                           // how near to a handle a finger drags it
const ORANGE = 0x147DEB, PURPLE = 0xC8506E;                 // blue, green, red, as a canvas keeps them
const two = v => Math.abs(v) < 0.005 ? "0.00" : v.toFixed(2).replace("-", "−");
const rounded = a => a.map(v => Number(v.toFixed(2)));
const small = off => off < 0.005 ? "less than 0.01" : two(off);
const apart = (a, b) => Math.hypot(...a.map((v, i) => v - b[i]));
const spaced = (n, low, high) => Array.from({ length: n }, (_, i) => low + (high - low) * i / (n - 1));
const within = (v, [low, high]) => Math.min(high, Math.max(low, v));
const density = (v, std) => Math.exp(-v * v / (2 * std * std)) / std;
const NAMES = { CT: "Consistency training", CD: "Distillation" };

// What the page asks of each kind of data: a plot, where in it a noisy point stands, and what lies behind.
// `place(x, σ)` is that place, `side(x)` where gaps are drawn, and `ratio` says which level a place belongs to.
// The point is at first where jumps land well, and in `clear` where two of them can be told apart.

function bellsView({ center, width }) {
  const left = narrow ? 72 : 84;
  const p = plot({ height: 400, left, label: "Paths from noise, at the right, into two bells of data, at the left",
                   x: { range: [LOW, TOP], log: true, ticks: [0.02, 0.1, 0.5, 2], label: "noise level σ" },
                   y: { range: [-HIGH, HIGH], ticks: [-1.5, 1.5], show: v => String(v).replace("-", "−") } });
  const denoiser = bellsDenoiser(center, width);
  const canvas = make("canvas", { width: 64, height: 80, className: "live-under" });
  const [, , w, h] = p.svg.getAttribute("viewBox").split(" ");
  Object.assign(canvas.style, { left: `${100 * p.X(EDGE) / w}%`, width: `${100 * (p.X(TOP) - p.X(EDGE)) / w}%`,
                                top: `${100 * p.Y(HIGH) / h}%`, height: `${100 * (p.Y(-HIGH) - p.Y(HIGH)) / h}%` });
  const place = ([x], sigma) => [Math.max(sigma, EDGE), x];
  const back = p.layer("back"), margin = p.layer("margin", false), maps = new Map();
  const heights = spaced(121, -1.2, 1.2), blur = 0.03;
  const heap = (v, i) => `${left * (1 - Math.min(0.93, v / 6))} ${p.Y(heights[i])}`;
  const outline = values => `M${values.map(heap).join("L")}`, bell = v => density(v, Math.hypot(width, blur));
  const bells = heights.map(v => (bell(v - center) + bell(v + center)) / 8);
  for (const x of spaced(16, -6, 6)) back.line(walk(denoiser, [x], TOP).map(each => place(...each)), "faint");
  margin.g.append(shape("path", { d: `${outline(bells)}Z`, class: "fill" }));
  margin.text([LOW, 0.78], "data", { "text-anchor": "end", dx: -8 });
  margin.text([LOW, -0.9], "answers", { "text-anchor": "end", dx: -6, class: "c0" });

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
    p, place, denoiser, range: [0.03, TOP], x: [0.3], sigma: 2, part: 0.4, clear: { x: [1.2], sigma: 2 },
    el: make("div", { className: "live-over" }, canvas, p.svg),
    side: ([x]) => [SIDE, x],
    legend: "Orange: the model answers above zero; purple: below.",
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
      const off = apart(rounded(end), rounded(answer)), [a, b] = [answer[0], end[0]];
      const where = Math.abs(a) < 0.3 && Math.abs(b) > 0.3 ? ", between the bells, where there are no data" :
        a * b < 0 ? ", in the other bell" : "";
      return `The path through x = ${two(x[0])} at σ = ${level(sigma)} ends at ${two(b)}. ${who} answers ${two(a)}: ` +
        `a gap of ${small(off)}${where}. ` +
        `Of its jumps from σ = ${TOP}, ${Math.round(100 * found.between)}% end between the bells.`;
    },
  };
}

function moonsView({ data: text }) {
  const data = halves(text), [W, H] = narrow ? [1.6, 1.6] : [2.2, 1.35];
  const p = plot({ height: 400, left: 14, bottom: 14, label: "The plane: two moons of points, and noise around them",
                   x: { range: [-W, W] }, y: { range: [-H, H] } });
  const denoiser = planeDenoiser(data), z = normal(3, data.length);
  const points = Array.from({ length: data.length / 2 }, (_, i) => [data[2 * i], data[2 * i + 1]]);
  const noisy = (i, sigma) => [points[i][0] + sigma * z[2 * i], points[i][1] + sigma * z[2 * i + 1]];
  const cloud = (g, places, kind) => g.append(shape("path", {
    d: places.map(([a, b]) => `M${p.X(a).toFixed(1)} ${p.Y(b).toFixed(1)}h0`).join(""), class: `line cloud ${kind}` }));
  cloud(p.layer("data").g, points, "faint");
  p.svg.querySelector(".live-axes").remove();
  // Noise of level σ leads hardly ever further than 4 σ from the data
  const pulled = (x, sigma) => {
    const near = points.reduce((a, b) => apart(b, x) < apart(a, x) ? b : a), far = apart(near, x);
    return far > 4 * sigma ? near.map((v, i) => v + 4 * sigma / far * (x[i] - v)) : x;
  };
  let streams;
  return {
    p, denoiser, plane: true, place: x => x, side: x => x, range: [-W, W], x: [1.2, -1.1], sigma: 1, part: 0.4,
    el: make("div", { className: "live-over" }, p.svg),
    move(view, [x, y]) {
      view.wish = [within(x, view.range), within(y, [-H, H])];
      view.x = pulled(view.wish, view.sigma);
    },
    level(view, sigma) { view.sigma = sigma; view.x = pulled(view.wish ??= view.x, sigma); },
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
      const low = answers[Math.floor(count / 50)];
      this.names = [[[0.33, 0.72], "data", ""], [[low[0], low[1] - 0.12], "answers", "c0", "end"]];
    },
    number: () => "",
    gap(who, x, sigma, end, answer) {
      const nearest = Math.min(...points.map(point => apart(point, answer)));
      return `The path through this point at σ = ${level(sigma)} ends at or near a data point. ${who} answers ` +
        `a place ${small(apart(end, answer))} from there, and ${small(nearest)} from the nearest data point. ` +
        "(A moon is about 1.3 wide.)";
    },
  };
}

// A point that is dragged, or moved by keys: `keyed(key)` says whether it knows a key. Around it lies what a finger
// takes for the point; elsewhere a finger scrolls the page.
function handle(p, kind, attributes, moved, keyed) {
  const reach = shape("circle", { r: REACH, class: "reach" }), el = shape("g");
  const dot = shape("circle", { r: 10, class: `dot grip free ${kind}`, tabindex: 0, role: "slider", ...attributes });
  let at;
  dot.addEventListener("keydown", event => { if (keyed(event.key)) event.preventDefault(); });
  el.addEventListener("touchstart", event => event.preventDefault(), { passive: false });
  el.append(reach, dot);
  return {
    el, moved,
    far: ([x, y]) => el.style.display ? Infinity : Math.hypot(p.X(x) - p.X(at[0]), p.Y(y) - p.Y(at[1])),
    put(place, value, text) {
      at = place;
      const now = { cx: p.X(at[0]), cy: p.Y(at[1]), "aria-valuenow": value.toFixed(3), "aria-valuetext": text };
      for (const [key, value] of Object.entries(now)) dot.setAttribute(key, value);
      for (const key of ["cx", "cy"]) reach.setAttribute(key, now[key]);
    },
  };
}

// Words beside what is drawn, in units of the drawing. They lie neither on points nor on each other: a word goes to the
// first of its places that is free, or nowhere.
function words({ p, plane, names = [] }) {
  const { width, height } = p.svg.viewBox.baseVal, low = height - (plane ? 20 : 56), layer = p.layer("text", false);
  const pixel = ([a, b]) => [p.X(a), p.Y(b)], box = (x, y, wide, high) => [x - wide, y - high, x + wide, y + high];
  const edge = plane ? 4 : p.X(LOW) - 12, taken = [];
  function write([x, y], word, kind, anchor = "middle") {
    const half = 3.9 * word.length, turn = half * { start: 1, middle: 0, end: -1 }[anchor];
    const middle = within(x + turn, [half + edge, width - half - 4]), at = within(y, [22, low]);
    const [left, top, right, bottom] = box(middle, at, half, 8);
    if (taken.some(([a, b, c, d]) => left < c && right > a && top < d && bottom > b)) return false;
    taken.push([left, top, right, bottom]);
    layer.write([middle - turn, at + 5], word, { "text-anchor": anchor, class: `halo ${kind}` });
    return true;
  }
  const first = (places, word, kind) => places.some(([x, y, anchor]) => write([x, y], word, kind, anchor));
  const beside = (x, y, far, right) => {
    const both = [[x + far, y, "start"], [x - far, y, "end"]];
    return right ? both : both.reverse();
  };
  return {
    pixel, first,
    begin(...points) {
      for (const [x, y] of points.map(pixel)) taken.push(box(x, y, 10, 10));
      for (const [place, ...name] of names) write(pixel(place), ...name);
    },
    // above (-1) or below (1) a point; in the plane, where arrows go up and down too, beside it
    at(place, word, kind, side) {
      const [x, y] = pixel(place), across = beside(x, y, 18, x < width - 120);
      const upright = [[x, y + 23 * side], [x, y - 23 * side]];
      first(plane ? [...across, ...upright] : [...upright, ...across], word, kind);
    },
    // at a short line: above or below it, in the plane beside its middle
    short(a, b, word, kind, right) {
      const [[x, y], [u, v]] = [pixel(a), pixel(b)];
      if (Math.hypot(u - x, v - y) < (plane ? 10 : 5)) return;
      if (!plane) taken.push([x - 2, Math.min(y, v), x + 2, Math.max(y, v)]);
      first(plane ? beside((x + u) / 2, (y + v) / 2, 16, right) :
        [[x, Math.min(y, v) - 14], [x, Math.max(y, v) + 14]], word, kind);
    },
    // on both sides of an arrow and a path that begin at one point, where they are far apart
    apart(arrow, path) {
      const [start, end] = arrow.map(pixel), length = apart(start, end), walked = path.map(pixel);
      if (length < width / 5) return;
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
  const known = await json("points.json");
  const views = { bells: bellsView(known.bells), moons: moonsView(known.moons) };
  let view = views.bells, share = 1, playing = null;

  const which = choice("Data", [["bells", "two bells"], ["moons", "two moons"]], "bells", changed);
  const model = choice("Model", [["exact", "exact"], ["CT", "CT"], ["CD", "CD"], ["ECT", "ECT"]], "CT", changed);
  const asked = choice("Show", [["gap", "the gap"], ["loss", "what the loss asks"]], "gap", draw);
  const when = slider("training", { min: 0, max: 1, value: 1, show: k => run() ? `step ${many(run().steps[k])}` : "" },
                      k => { pause(); share = k / when.input.max; draw(); });
  const noise = levels("noise level", { min: 0.05, max: 3, value: 1 }, s => { view.level(view, s); draw(); });
  const play = button("Play", () => playing ? pause() : start());
  const said = note(""), stage = make("div"), training = row(when.el, play), lowest = row(noise.el);
  el.append(row(which.el, model.el), row(asked.el), stage, said, training, lowest);

  function many(n) { return (n ?? 0).toLocaleString("en"); }
  function run() { return known[which.value].runs[model.value]; }
  const networks = new Map();
  function network(steps = 40) {
    if (model.value === "exact") return (x, sigma) => walk(view.denoiser, x, sigma, steps).at(-1)[0];
    const { sizes, sigma_data } = known[which.value], name = `${which.value} ${model.value} ${when.value}`;
    if (!networks.has(name)) networks.set(name, plainNetwork(sizes, halves(run().weights[when.value]), sigma_data));
    return networks.get(name);
  }

  const who = () => {
    const steps = run()?.steps[when.value];
    if (!run()) return "The exact function";
    if (!steps) return "The untrained network";
    const tuned = steps - known.denoising;
    if (model.value !== "ECT") return `${NAMES[model.value]} after ${many(steps)} steps`;
    return tuned <= 0 ? `A network that has learned to denoise for ${many(steps)} steps` :
      `Easy consistency tuning, ${many(tuned)} steps after ${many(known.denoising)} of denoising,`;
  };
  // The note keeps its largest height, so that what is below it stays in place
  const say = text => {
    said.textContent = [text, view.legend ?? ""].join(" ").replaceAll("σ = ", "σ\u00a0=\u00a0");
    said.style.minHeight = `${said.offsetHeight}px`;
  };
  addEventListener("resize", () => { said.style.minHeight = ""; });
  const pair = (answer, target, sigma, below, off) => {
    const lower = model.value === "CD" ? `One step down the teacher's path, at σ = ${level(below)},` :
      `With the same noise at σ = ${level(below)}`;
    const wish = run() ? `The loss asks that they agree: they are ${small(off)} apart.` :
      `Even exact answers can differ, here by ${small(off)}: such a step leaves the path, only the mean follows it.`;
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
    const { p, place } = each, [low, high] = each.range, { svg } = p;
    const go = at => { each.touched = true; each.move(each, at); draw(); };
    const upper = each.upper = handle(p, "c0", {
      "aria-label": "noisy point", "aria-roledescription": "point in the plane", "aria-valuemin": low,
      "aria-valuemax": high,
    }, go, key => {
      const [a, b] = place(each.x, each.sigma), end = { Home: low, End: high }[key];
      const step = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6],
                     PageUp: [0, -60], PageDown: [0, 60] }[key];
      if (step) go([p.X.back(p.X(a) + step[0]), p.Y.back(p.Y(b) + step[1])]);
      if (end !== undefined) go([end, b]);
      return step || end !== undefined;
    });
    const lowered = part => { each.part = within(part, [0.05, 0.95]); draw(); };
    const lower = each.lower = handle(p, "c2", {
      "aria-label": "the lower level", "aria-valuemin": 0.05, "aria-valuemax": 0.95,
    }, at => lowered(each.ratio(each, at, each.end)), key => {
      // in the plane more noise can lie at any side
      const [right, up] = each.x.length > 1 ? each.x.map((v, i) => v < each.end[i] ? -1 : 1) : [1, 1];
      const by = { ArrowRight: right, ArrowLeft: -right, ArrowUp: up, ArrowDown: -up, PageUp: 10, PageDown: -10 }[key];
      const end = { Home: 0, End: 1 }[key];
      if (by || end !== undefined) lowered(by ? each.part * 1.06 ** by : end);
      return by || end !== undefined;
    });
    each.hands = shape("g");
    each.hands.append(upper.el, lower.el);

    // A mouse moves the nearest point, wherever it is pressed; a finger only one that it touches
    let held = null, finger;
    svg.setAttribute("role", "group");
    p.drag((at, event) => {
      if (event.type === "pointerdown" && !held) {
        const near = lower.far(at) < upper.far(at) ? lower : upper;
        if (event.pointerType === "mouse" || near.far(at) < REACH) [held, finger] = [near, event.pointerId];
      }
      if (event.pointerId === finger) held?.moved(at);
    });
    svg.style.touchAction = "pan-y";
    svg.addEventListener("lostpointercapture", ({ pointerId }) => { if (pointerId === finger) held = null; });
  }

  // The data, the model or the moment is another one
  function changed() {
    view = views[which.value];
    if (stage.firstChild !== view.el) stage.replaceChildren(view.el);
    const last = (run()?.steps.length ?? 1) - 1;
    when.input.max = last;
    when.value = Math.round(share * last);
    training.hidden = !run();
    if (!run()) pause();
    lowest.hidden = !view.plane;
    draw();
  }

  function draw() {
    const { p, place, side, denoiser, plane } = view, loss = asked.value === "loss", first = loss && !view.asked;
    if (first && !view.touched) Object.assign(view, view.clear);
    const { x, sigma } = view, f = network();
    const name = run() ? `${model.value} ${when.value}` : "exact", behind = plane ? `${name} ${sigma}` : name;
    if (view.shown !== behind) view.behind(network(12), name, sigma);           // few steps: there are many points
    view.shown = behind;
    const path = walk(denoiser, x, sigma), end = view.end = path.at(-1)[0], answer = f(x, sigma);
    const from = place(x, sigma), to = place(answer, EDGE);
    const g = p.layer("moves"), text = words(view);
    const walked = [...path.filter(([, s]) => s > EDGE || plane).map(each => place(...each)), place(end, EDGE)];
    g.line(walked, loss ? "faint" : "strong");
    const bar = (a, b, word) => {
      g.line([side(a), side(b)], "c1 strong");
      text.short(side(a), side(b), word, "c1", x[0] < a[0]);
    };
    view.lower.el.style.display = loss ? "" : "none";
    if (loss) {
      // Same noise: the clean sample at the path's end, x = x0 + σ z. Distillation steps along the path: Algorithm 2
      const straight = s => end.map((v, i) => v + s / sigma * (x[i] - v)), taught = model.value === "CD";
      const lesser = s => taught ? heunStep(denoiser, x, sigma, s) : straight(s);
      // how far from the student's arrow the other one begins, in units of the drawing: below it if positive
      const off = part => {
        const [[a, b], [c, d], [u, v]] = [from, to, place(lesser(part * sigma), part * sigma)].map(text.pixel);
        return ((v - b) * (a - c) - (u - a) * (b - d)) / Math.hypot(a - c, b - d);
      };
      if (first && Math.abs(off(view.part)) < 15)
        view.part = spaced(9, 0.2, 0.6).reduce((a, b) => Math.abs(off(b)) > Math.abs(off(a)) ? b : a);
      view.asked = true;
      const below = view.part * sigma, there = lesser(below), target = f(there, below), step = place(there, below);
      const down = spaced(60, Math.log(sigma), Math.log(EDGE)).map(Math.exp);
      const curve = down.map(s => place(straight(s), s)), under = off(view.part) > 0 ? 1 : -1;
      g.line(taught ? [from, step] : curve, "dashed");
      g.arrow(from, to, "c0");
      g.arrow(step, place(target, EDGE), "c2");
      text.begin(from, step);
      text.at(from, "student", "c0", -under);
      text.at(step, "target", "c2", under);
      bar(answer, target, "apart");
      if (plane) {
        const right = step[0] > view.part * from[0] + (1 - view.part) * to[0];      // away from the student's arrow
        text.short(from, step, taught ? "teacher's step" : "same noise", "", right);
      } else if (taught) {
        const [[a, b], [c, d]] = [from, step].map(text.pixel), word = narrow ? "teacher" : "teacher's step";
        const at = side => [(a + c) / 2 + 4, (b + d) / 2 + 22 * side, "start"];
        if (a - c > 40) text.first([at(under), at(-under)], word, "");
      } else {
        const [s, height] = curve[40], part = from => Math.log(from / s) / Math.log(from / EDGE);
        const others = [[x, answer, sigma], [there, target, below]].map(([[a], [b], from]) => a + part(from) * (b - a));
        const [u, v] = text.pixel([s, Math.max(height, ...others)]);
        text.first([[u, v - 22]], "same noise", "");
      }
      view.lower.put(step, view.part, `σ = ${level(below)}`);
      const shown = plane ? apart(answer, target) : apart(rounded(answer), rounded(target));
      say(pair(view.number(answer), view.number(target), sigma, below, shown));
    } else {
      g.arrow(from, to, "c0");
      text.begin(from);
      if (!view.touched) text.at(from, "drag me", "c0", walked[4][1] < from[1] ? -1 : 1);
      bar(answer, end, "gap");
      text.apart([from, to], walked);
      say(view.gap(who(), x, sigma, end, answer));
    }
    view.upper.put(from, from[0], `x = ${x.map(two).join(", ")}, σ = ${level(sigma)}`);
    if (p.svg.lastChild !== view.hands) p.svg.append(view.hands);              // on top, for pointers
  }
  changed();
}
