// Lesson 13: what the skip connection keeps, what the network must supply, and how large that is. The data are one
// face, so the right answer is known at every level: its paths are straight lines.
import { grip, level, make, narrow, note, paint, plot, row, shape, slider } from "./ui.js";
import { normal } from "./algorithms.js";
import { face, gaussianShrink, scalings, SIGMA_MIN, supplied } from "./formulas.js";

const TOP = 80, X = { range: [SIGMA_MIN, TOP], log: true, ticks: [SIGMA_MIN, 0.01, 0.1, 1, 10, TOP] };
const between = share => SIGMA_MIN * (TOP / SIGMA_MIN) ** share;         // on the logarithmic axis
const GRID = Array.from({ length: 241 }, (_, i) => between(i / 240));
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
const size = x => Math.sqrt(dot(x, x) / x.length);
const digits = v => v < 0.0995 ? 3 : v < 9.95 ? 2 : 1;
const two = v => Math.abs(v) < 0.0005 ? "0" : v.toFixed(digits(Math.abs(v))).replace("-", "−");

// "c_skip · x" with its subscript, in a page and in a plot
const subscript = text => text.split(/_(\w+)/).map((part, i) => i % 2 ? make("sub", { textContent: part }) : part);
function subscripted(place, text) {
  const drop = part => Object.assign(shape("tspan", { dy: 4, "font-size": "0.75em" }), { textContent: part });
  const rise = part => Object.assign(shape("tspan", { dy: -4 }), { textContent: part });
  place.replaceChildren(...text.split(/_(\w+)/).map((part, i) => i % 2 ? drop(part) : i ? rise(part) : part));
}

// Where near a point of a plot, or above it at the top, a label meets the curves least and no label there before:
// attributes of its text
function near(p, [x, y], width, curves, taken = []) {
  const [left, right] = p.X.ends, [bottom, top] = p.Y.ends, points = curves.flat().map(([a, b]) => [p.X(a), p.Y(b)]);
  const found = [-12, 24, -34, -56, top + 14 - p.Y(y), top + 34 - p.Y(y)].flatMap(dy => [12, -12].map(dx => {
    const from = p.X(x) + dx - (dx < 0 ? width : 0), low = p.Y(y) + dy + 6, box = [from, from + width, low - 20, low];
    const within = ([a, b]) => a > box[0] && a < box[1] && b > box[2] && b < box[3];
    const outside = box[0] < left - 8 || box[1] > right + 12 || box[2] < top - 8 || box[3] > bottom;
    const over = taken.some(other => box[0] < other[1] && other[0] < box[1] && box[2] < other[3] && other[2] < box[3]);
    return { box, dx, dy, cost: 1000 * (outside + over) + points.filter(within).length };
  })).reduce((best, each) => each.cost < best.cost ? each : best);
  taken.push(found.box);
  return { dx: found.dx, dy: found.dy, "text-anchor": found.dx < 0 ? "end" : "start" };
}

export default async function (el) {
  const whole = 0.64, scale = whole / size(face()), clean = face().map(v => scale * v);      // by half a per cent
  // noise of size 1 at a right angle to the face, so that the sizes of mixtures are exactly those of the formulas
  let z = [...normal(4, clean.length)];
  const shared = dot(z, clean) / dot(clean, clean);
  z = z.map((v, i) => v - shared * clean[i]);
  const length = size(z);
  z = z.map(v => v / length);

  // a coarser step than that of `levels`, so that an arrow key can be seen
  const at = slider("noise level", { min: SIGMA_MIN, max: TOP, value: 0.3, show: s => "σ = " + level(s),
                                     of: i => between(i / 400),
                                     to: s => Math.round(400 * Math.log(s / SIGMA_MIN) / Math.log(TOP / SIGMA_MIN)),
                                     hint: "or drag in the plots" }, draw);
  const data = slider("σ data", { min: 0.1, max: 1, step: 0.01, value: whole, show: two,
                                  hint: "what the network takes for the size of the data" }, draw);

  const PARTS = [["x", "noisy, drawn rescaled"], ["c_skip · x", "kept"], ["+ c_out · F", "added"], ["= f", "answer"]];
  const canvases = PARTS.map(() => make("canvas", { className: "live-pixels" }));
  const captions = PARTS.map(() => make("figcaption"));
  const figures = make("div", { className: "live-pictures", style: `--columns: ${narrow ? 2 : 4}; gap: 10px` },
                       ...PARTS.map((_, i) => make("figure", {}, canvases[i], captions[i])));
  canvases.forEach((canvas, i) => {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", PARTS[i].join(", "));
  });
  const sizes = make("p", { className: "live-hint" }, "Size is the root mean square of all values. ",
                     "x is drawn as if it had the size of the face.");
  const p = plot({ height: 252, bottom: 28, top: 18, left: 40, x: X, y: { range: [0, 1.1], ticks: [0.5, 1] },
                   label: "c_skip and c_out by noise level" });
  const q = plot({ height: 246, top: 22, left: 40, x: { ...X, label: "noise level σ" },
                   y: { range: [0.1, 10], log: true, ticks: [1, 10] }, label: "Size of F by noise level" });
  const moved = sigma => { at.value = sigma; draw(); };
  for (const each of [p, q]) { each.layer("curves", each === q); each.layer("now", false); }
  const grips = [p, q].map(each => grip(each, "noise level", { min: SIGMA_MIN, max: TOP, tab: -1 }, moved));
  const told = note(""), sized = note("");

  // sizes of F: of one picture, and of Gaussian data, whose answer is a multiple of x (lesson 13, a closed form)
  const ofPicture = sigma => { const [a, b] = supplied(sigma, data.value); return Math.hypot(a * whole, b); };
  function ofGaussian(sigma) {
    const { skip, out } = scalings(sigma, data.value);
    return Math.abs(gaussianShrink(sigma, whole) - skip) * Math.hypot(whole, sigma) / out;
  }

  function draw() {
    const sigma = Math.max(SIGMA_MIN, at.value), c = scalings(sigma, data.value), [a, b] = supplied(sigma, data.value);
    const x = clean.map((v, i) => v + sigma * z[i]), F = clean.map((v, i) => a * v + b * z[i]);
    const parts = [x, x.map(v => c.skip * v), F.map(v => c.out * v)];
    parts.push(parts[1].map((v, i) => v + parts[2][i]));
    parts.forEach((part, i) => {
      const large = size(part), [name, word] = PARTS[i], br = () => make("br");
      paint(canvases[i], i ? part : x.map(v => whole / large * v), [3, 16, 16]);     // x drawn at the size of the face
      captions[i].replaceChildren(make("strong", {}, ...subscript(name)), br(), word, br(), `size ${two(large)}`);
    });

    const curves = p.layer("curves", false), now = p.layer("now", false);
    const kinds = { skip: "c0", out: "c1" }, names = Object.keys(kinds), taken = [];
    const lines = names.map(name => GRID.map(s => [s, scalings(s, data.value)[name]]));
    lines.forEach((line, i) => curves.line(line, `c${i} strong`));
    for (const name of names.sort((a, b) => c[b] - c[a])) {             // the upper label first
      now.dot([sigma, c[name]], kinds[name]);
      const place = { class: `${kinds[name]} halo`, ...near(p, [sigma, c[name]], 78, lines, taken) };
      subscripted(now.text([sigma, c[name]], "", place), `c_${name} ${two(c[name])}`);
    }

    const norms = q.layer("curves"), here = q.layer("now", false), large = ofPicture(sigma);
    const picture = GRID.map(s => [s, ofPicture(s)]);
    const gaussian = GRID.slice(1).map(s => [s, Math.max(0.01, ofGaussian(s))]);
    norms.line([[SIGMA_MIN, 1], [TOP, 1]], "faint");
    norms.line(picture, "c1 strong");
    norms.line(gaussian, "c2 dashed");
    norms.text([75, 0.125], "for Gaussian data", { class: "c2", "text-anchor": "end" });
    here.dot([sigma, large], "c1");
    here.text([sigma, large], `size of F ${two(large)}`,
              { class: "c1 halo", ...near(q, [sigma, large], 100, [picture, gaussian]) });
    for (const put of grips) put(sigma, `σ = ${level(sigma)}`);

    const share = sigma < data.value / 4 ? "σ is far below σ data: x is kept, and the network is nearly switched off."
      : sigma > 4 * data.value ? "σ is far above σ data: x is hardly kept, and the network answers alone."
      : "σ is near σ data: both have a say.";
    told.replaceChildren(...subscript(`${share} The answer is ${two(c.skip)} · x + ${two(c.out)} · F. `
      + `The network sees ${two(c.in)} · x, which has size ${two(c.in * size(x))}, `
      + `and the level as c_noise = ${two(c.noise)}.`));
    const fits = Math.abs(data.value - whole) < 0.02;
    sized.textContent = "The data here are this one face, so the right F is known: "
      + `it has size ${two(large)} at σ = ${level(sigma)}. `
      + (fits ? `With σ data the size of the face, ${whole}, it is 1 at all levels; `
          + "Gaussian data leave less to supply."
        : `σ data is ${two(data.value)}, the face has ${whole}. `
          + `At σ = ${TOP} F must have size ${two(ofPicture(TOP))}.`);
  }
  draw();
  el.append(figures, sizes, row(at.el, data.el), p.svg, told, q.svg, sized);
}
