// Lesson 13: what the skip connection keeps, what the network must supply, and how large that is. The data are one
// face, so the right answer is known at every level: its paths are straight lines.
import { grip, level, make, note, paint, plot, row, slider } from "./ui.js";
import { normal, SIGMA_MIN } from "./algorithms.js";
import { face, gaussianShrink, scalings, supplied } from "./formulas.js";

const X = { range: [0.002, 80], log: true, ticks: [0.002, 0.01, 0.1, 1, 10, 80] };
const GRID = Array.from({ length: 241 }, (_, i) => 0.002 * 40000 ** (i / 240));
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
const size = x => Math.sqrt(dot(x, x) / x.length);
const two = v => Math.abs(v) < 0.0005 ? "0" : v.toFixed(Math.abs(v) < 0.0995 ? 3 : 2).replace("-", "−");

export default async function (el) {
  const whole = 0.64, scale = whole / size(face()), clean = face().map(v => scale * v);      // by half a per cent
  // noise of size 1 at a right angle to the face, so that the sizes of mixtures are exactly those of the formulas
  let z = [...normal(4, clean.length)];
  const shared = dot(z, clean) / dot(clean, clean);
  z = z.map((v, i) => v - shared * clean[i]);
  const length = size(z);
  z = z.map(v => v / length);

  // a coarser step than that of `levels`, so that an arrow key can be seen
  const at = slider("noise level", { min: 0.002, max: 80, value: 0.3, show: s => "σ = " + level(s),
                                     of: i => 0.002 * 40000 ** (i / 400),
                                     to: s => Math.round(400 * Math.log(s / 0.002) / Math.log(40000)) }, draw);
  const data = slider("σ data", { min: 0.1, max: 1, step: 0.01, value: whole, show: two }, draw);

  const PARTS = [["x", "noisy"], ["c_skip · x", "kept"], ["+ c_out · F", "added"], ["= f", "answer"]];
  const canvases = PARTS.map(() => make("canvas", { className: "live-pixels" }));
  const captions = PARTS.map(() => make("figcaption"));
  const figures = make("div", { className: "live-pictures", style: "--columns: 4; gap: 10px" },
                       ...PARTS.map((_, i) => make("figure", {}, canvases[i], captions[i])));
  canvases.forEach((canvas, i) => {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", PARTS[i].join(", "));
  });

  const p = plot({ height: 246, bottom: 28, left: 40, x: X, y: { range: [0, 1.1], ticks: [0.5, 1] },
                   label: "c_skip and c_out by noise level" });
  const q = plot({ height: 246, top: 22, left: 40, x: { ...X, label: "noise level σ" },
                   y: { range: [0.1, 10], log: true, ticks: [1, 10] }, label: "Size of F by noise level" });
  const moved = sigma => { at.value = sigma; draw(); };
  for (const each of [p, q]) { each.layer("curves", each === q); each.layer("now", false); }
  const grips = [p, q].map(each => grip(each, "noise level", { min: 0.002, max: 80 }, moved));
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
      captions[i].replaceChildren(make("strong", { textContent: name }), br(), word, br(), `size ${two(large)}`);
    });

    const curves = p.layer("curves", false), now = p.layer("now", false);
    const right = { "text-anchor": "start", dx: 12, dy: -12 }, left = { "text-anchor": "end", dx: -12, dy: -12 };
    // where a label meets neither curve: c_skip falls, so above it on the right; c_out rises, so above it on the left
    const places = [sigma < 9 ? right : left, sigma < 9 && (sigma < 0.02 || c.out > c.skip) ? right : left];
    curves.line(GRID.map(s => [s, scalings(s, data.value).skip]), "c0 thick");
    curves.line(GRID.map(s => [s, scalings(s, data.value).out]), "c1 thick");
    now.line([[sigma, 0], [sigma, 1.1]], "faint");
    // and at the top of the plot while they cross
    const close = Math.abs(c.skip - c.out) < 0.11;
    [["c_skip", "c0", c.skip], ["c_out", "c1", c.out]].forEach(([name, kind, value], i) => {
      now.dot([sigma, value], kind);
      const y = close ? 0.96 - 0.12 * i : value, side = close ? places[0] : places[i];
      now.text([sigma, y], `${name} ${two(value)}`, { class: `${kind} halo`, ...side });
    });

    const sizes = q.layer("curves"), here = q.layer("now", false), large = ofPicture(sigma);
    sizes.line([[0.002, 1], [80, 1]], "faint");
    sizes.line(GRID.map(s => [s, ofPicture(s)]), "c1 thick");
    sizes.line(GRID.slice(1).map(s => [s, Math.max(0.01, ofGaussian(s))]), "c2 dashed");
    here.line([[sigma, 0.1], [sigma, 10]], "faint");
    here.dot([sigma, large], "c1");
    here.text([sigma, large], `size of F ${two(large)}`, { class: "c1 halo", ...(sigma < 3 ? right : left) });
    sizes.text([60, 0.19], "for Gaussian data", { class: "c2", "text-anchor": "end" });
    [[p, 0], [q, 0.1]].forEach(([, y], i) => grips[i](sigma, y, `σ = ${level(sigma)}`));

    const share = sigma < data.value / 4 ? "σ is far below σ data: x is kept, and the network is nearly switched off."
      : sigma > 4 * data.value ? "σ is far above σ data: x is hardly kept, and the network answers alone."
      : "σ is near σ data: both have a say.";
    told.textContent = `${share} The answer is ${two(c.skip)} · x + ${two(c.out)} · F. `
      + `The network sees ${two(c.in)} · x, which has size ${two(c.in * size(x))}, `
      + `and the level as c_noise = ${two(c.noise)}.`;
    const fits = Math.abs(data.value - whole) < 0.02;
    sized.textContent = "The data here are this one face, so the right F is known: "
      + `it has size ${two(large)} at σ = ${level(sigma)}. `
      + (fits ? `With σ data the size of the face, ${whole}, it is 1 at all levels; Gaussian data leave less to supply.`
        : `σ data is ${two(data.value)}, the face has ${whole}. At σ = 80 F must have size ${two(ofPicture(80))}.`);
  }
  draw();
  el.append(figures, row(at.el, data.el), p.svg, told, q.svg, sized);
}
