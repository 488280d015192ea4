// Lesson 16: three distances, how hard each of them pulls, and the answer that each finds best if the targets disagree.
import { make, narrow, note, plot, row, shape, slider } from "./ui.js";
import { bestAnswer, erf, pseudoHuberGradient, pseudoHuberLoss } from "./formulas.js";

const CENTER = 0.6, WIDTH = 0.1, REACH = 1;     // of the two bells, and of the axis below them
const FAR = 1.5;                                // the largest error drawn
const ERRORS = Array.from({ length: 601 }, (_, i) => FAR * (i / 300 - 1));
const ANSWERS = Array.from({ length: 91 }, (_, i) => (i - 45) / 50);
const signed = v => String(v).replace("-", "−"), two = v => signed(v.toFixed(2));
const few = v => String(Number(v.toPrecision(2)));
const KINDS = { squared: "c1", "pseudo-Huber": "c0", norm: "c2" };

// One bell as numbers with their shares, four widths to each side
const BELL = Array.from({ length: 81 }, (_, i) => (i - 40) / 10 * WIDTH);
const MASS = BELL.map(u => Math.exp(-0.5 * (u / WIDTH) ** 2));
const TOTAL = MASS.reduce((a, b) => a + b);
const overBell = (center, of) => BELL.reduce((sum, u, i) => sum + MASS[i] / TOTAL * of(center + u), 0);

export default async function (el) {
  const share = slider("share at −0.6", { min: 2, max: 98, value: 70, show: v => `${v}%`,
                                           hint: "how many of the targets are in the left bell" }, draw);
  const bend = slider("c", { min: 0.001, max: 3, step: 0.1, value: 0.3, show: few, of: Math.exp, to: Math.log,
                           hint: "where pseudo-Huber turns from square to norm" }, draw);
  const distances = { squared: e => e * e / 2, "pseudo-Huber": e => pseudoHuberLoss(e, bend.value), norm: Math.abs };
  const pulls = { squared: e => e, "pseudo-Huber": e => pseudoHuberGradient(e, bend.value), norm: Math.sign };

  const small = { width: narrow ? 400 : 320, height: 232, left: 50, right: 6,
                  x: { range: [-FAR, FAR], ticks: [-1, 0, 1], show: signed, label: "error" } };
  const p = plot({ ...small, y: { range: [0, 1.25], ticks: [0, 1], label: "distance" }, label: "Distance by error" });
  const q = plot({ ...small, y: { range: [-1.35, 1.35], ticks: [-1, 0, 1], show: signed, label: "pull" },
                   label: "Pull by error" });
  const r = plot({ height: 400, left: narrow ? 116 : 146, top: 130, y: { range: [0, 1] },
                   x: { range: [-REACH, REACH], ticks: [-0.6, 0, 0.6], show: signed, label: "answer" },
                   label: "What the targets say, and the mean distance of each answer from them" });
  const told = note(""), pulled = note("");

  function drawDistances() {
    const values = p.layer("curves"), pull = q.layer("curves");
    for (const c of [-bend.value, bend.value]) pull.line([[c, -2], [c, 2]], "faint dashed");
    if (bend.value < 1.3) pull.text([bend.value, -1.22], "c", { dx: 5 });
    Object.entries(KINDS).forEach(([name, kind], i) => {
      const said = name === "squared" ? "squared / 2" : name, style = kind + (name === "norm" ? " dashed" : " strong");
      values.line(ERRORS.map(e => [e, distances[name](e)]), style);
      pull.line(ERRORS.map(e => [e, pulls[name](e)]), style);
      values.text([0, 0.85 + 0.145 * i], said, { class: kind, "text-anchor": "middle" });
    });
    const at = e => Object.keys(pulls).map(name => two(pulls[name](e)));
    const [near, far] = [at(0.05), at(1)];
    pulled.textContent = `c = ${few(bend.value)}. An error of 0.05 is pulled back with ${near[0]} `
      + `by the squared error, ${near[1]} by pseudo-Huber, 1 by the norm; `
      + `an error of 1 with ${far[0]}, ${far[1]} and 1. `
      + (bend.value < FAR ? "Below c pseudo-Huber acts like the square, above it like the norm."
        : "All errors drawn here are below c, where pseudo-Huber acts like the square.");
  }

  function drawAnswers() {
    const left = share.value / 100, parts = [[-CENTER, left], [CENTER, 1 - left]], mean = (1 - 2 * left) * CENTER;
    const over = of => parts.reduce((sum, [center, part]) => sum + part * overBell(center, of), 0);
    // mean pull on an answer: exact for square and norm, on a grid over the bells for pseudo-Huber
    const meanPull = {
      squared: a => a - mean,
      "pseudo-Huber": a => over(y => pulls["pseudo-Huber"](a - y)),
      norm: a => parts.reduce((sum, [center, part]) => sum + part * erf((a - center) / (Math.SQRT2 * WIDTH)), 0),
    };
    const bells = r.layer("bells", false), rows = r.layer("rows", false), best = {};
    for (const [center, part] of parts) {
      const outline = BELL.map((u, i) => `L${r.X(center + u)} ${112 - 78 * part * MASS[i]}`).join("");
      bells.g.append(shape("path", { d: `M${r.X(center - 4 * WIDTH)} 112${outline}Z`, class: "fill" }));
      bells.write([r.X(center), 102 - 78 * part], `${Math.round(100 * part)}%`, { "text-anchor": "middle" });
    }
    bells.g.append(shape("path", { d: `M${r.X(-REACH)} 112H${r.X(REACH)}`, class: "line faint" }));
    bells.write([2, 108], "targets");
    Object.entries(KINDS).forEach(([name, kind], i) => {
      const base = 192 + 76 * i, losses = ANSWERS.map(a => over(y => distances[name](a - y)));
      const low = Math.min(...losses), high = Math.max(...losses), height = v => base - 62 * (v - low) / (high - low);
      const a = best[name] = bestAnswer(meanPull[name], -1, 1);
      const d = ANSWERS.map((a, j) => `${j ? "L" : "M"}${r.X(a).toFixed(1)} ${height(losses[j]).toFixed(1)}`).join("");
      rows.g.append(shape("path", { d: `M${r.X(a)} 112V${base}`, class: `line dashed ${kind}` }),
                    shape("path", { d, class: `line strong ${kind}` }),
                    shape("circle", { cx: r.X(a), cy: base, r: 7, class: `dot ${kind}` }));
      bells.write([2, base - 22], name, { class: kind });
      bells.write([2, base - 2], two(a), { class: kind });
    });
    const inside = CENTER - Math.abs(best.norm);
    const middle = inside > 0.9 * CENTER ? "as good as any other between the bells"
      : inside > WIDTH ? "their median, at the inner edge of the larger bell" : "their median: the majority wins";
    told.textContent = `${share.value}% of the targets say about −0.6, ${100 - share.value}% about 0.6. `
      + `The squared error answers ${two(best.squared)}, their mean`
      + (Math.abs(best.squared) < 0.4 ? ", which no target says" : "")
      + `. The norm answers ${two(best.norm)}, ${middle}. `
      + `Pseudo-Huber with c = ${few(bend.value)} answers ${two(best["pseudo-Huber"])}. `
      + "(Each curve is the mean distance of an answer from all targets, scaled to its own range.)";
  }
  function draw() { drawDistances(); drawAnswers(); }
  draw();
  const pair = make("div", { className: "live-pictures", style: `--columns: ${narrow ? 1 : 2}; gap: 12px` },
                    p.svg, q.svg);
  el.append(pair, row(bend.el), pulled, r.svg, row(share.el), told);
}
