// Lesson 11: on which noise levels a face is decided, where the levels of a grid stand, and how often training asks for
// them. Below, how many levels there are as training goes on.
import { choice, grip, level, make, note, paint, plot, row, shape, slider } from "./ui.js";
import { normal } from "./algorithms.js";
import { face, improvedTimestepsSchedule, karras, lognormalProbabilities, timestepsSchedule } from "./formulas.js";

const AXIS = { range: [0.0016, 100], log: true, ticks: [0.002, 0.01, 0.1, 1, 10, 80], label: "noise level σ" };
const [DECIDED, OPEN] = [0.03, 16];               // the range of the curves of the lesson's figure
const HALF_OPEN = { "eyes?": 0.1, "mouth?": 0.5, "hat?": 2.5 };
const STEPS = 1000;
const RUNS = { iCT: k => improvedTimestepsSchedule(k, STEPS, 10, 160), CT: k => timestepsSchedule(k, STEPS) };
const signed = v => v.toFixed(1).replace("-", "−");
const percent = share => `${Math.round(100 * share)}%`;

// What falls below, into and above the range where a face is decided
function zones(places, weights) {
  const sums = [0, 0, 0];
  places.forEach((place, i) => { sums[place < DECIDED ? 0 : place <= OPEN ? 1 : 2] += weights ? weights[i] : 1; });
  return sums;
}

function noisyFace(sigma, z) {
  const canvas = make("canvas");
  paint(canvas, face().map((v, i) => (v + sigma * z[i]) / Math.max(1, sigma)), [3, 16, 16]);
  return canvas.toDataURL();
}

export default async function (el) {
  const draw = () => { drawLevels(); drawRun(); };
  const levels = slider("levels N", { min: 2, max: 161, value: 18 }, draw);
  const rho = slider("ρ", { min: 1, max: 15, step: 0.5, value: 7 }, draw);
  const top = slider("σ max", { min: 2, max: 80, value: 80, show: level, of: i => 2 * 40 ** (i / 100),
                               to: s => Math.round(100 * Math.log(s / 2) / Math.log(40)) }, draw);
  const mean = slider("P mean", { min: -5, max: 3, step: 0.1, value: -1.1, show: signed }, draw);
  const std = slider("P std", { min: 0.5, max: 4, step: 0.1, value: 2, show: v => v.toFixed(1) }, draw);
  const progress = slider("progress", { min: 0, max: 100, value: 30, show: v => `${v}%` }, train);
  const run = choice("run", [["iCT", "iCT"], ["CT", "CT"]], "iCT", train);
  const step = () => Math.min(STEPS - 1, progress.value * STEPS / 100), numberAt = () => RUNS[run.value](step());
  function train() { levels.value = numberAt(); draw(); }

  const p = plot({ height: 404, top: 228, left: 14, x: AXIS, y: { range: [0, 1] },
                   label: "A face under growing noise, the levels of the grid, and how often training asks for each" });
  const [a, b] = [p.X(DECIDED), p.X(OPEN)], middles = [(p.X(0.0016) + a) / 2, (a + b) / 2, (b + p.X(100)) / 2];
  const still = p.layer("still", false).g;
  const text = (g, x, y, said, kind = "") => {
    const made = shape("text", { x, y, "text-anchor": "middle", class: kind });
    made.textContent = said;
    g.append(made);
  };
  still.append(shape("rect", { x: a, y: 24, width: b - a, height: 336, class: "zone" }),
               ...[a, b].map(x => shape("path", { d: `M${x} 24V360`, class: "edge" })));
  const z = normal(4, 768);
  for (let i = 0; i < 7; i++) {
    const sigma = 0.004 * 5 ** i;
    still.append(shape("image", { href: noisyFace(sigma, z), x: p.X(sigma) - 33, y: 26, width: 66, height: 66 }));
  }
  for (const [said, sigma] of Object.entries(HALF_OPEN)) text(still, p.X(sigma), 17, said);
  text(still, p.X(0.009), 17, "all decided");
  text(still, p.X(28), 17, "all open");

  const told = note("");
  function drawLevels() {
    const n = levels.value, sigmas = karras(n, { max: top.value, rho: rho.value });
    const bell = lognormalProbabilities(sigmas, mean.value, std.value);
    const even = bell.map(() => 1 / (n - 1)), centers = bell.map((_, i) => Math.sqrt(sigmas[i] * sigmas[i + 1]));
    const counts = zones(sigmas), asked = zones(centers, bell), evenly = zones(centers, even);

    const g = p.layer("ladder", false).g;
    const rungs = sigmas.map(s => `M${p.X(s).toFixed(1)} 126V170`).join("");
    const rails = [131, 165].map(y => `M${p.X(sigmas[0])} ${y}H${p.X(top.value)}`).join("");
    g.append(shape("path", { d: rungs, class: "ladder", "stroke-width": n > 60 ? 1 : 2 }),
             shape("path", { d: rails, class: "ladder", "stroke-width": 3 }));
    counts.forEach((count, i) => text(g, middles[i], 117, i === 1 ? `${count} levels` : count, "c0"));
    asked.forEach((share, i) => text(g, middles[i], 195, (i === 1 ? "bell asks " : "") + percent(share), "c1"));
    evenly.forEach((share, i) => text(g, middles[i], 216, (i === 1 ? "uniform asks " : "") + percent(share)));

    // shares per unit of ln σ, so that the area is the share of the training
    const heights = shares => shares.map((share, i) => share / Math.log(sigmas[i + 1] / sigmas[i]));
    const stairs = shares => [[sigmas[0], 0], ...heights(shares).flatMap((h, i) =>
      [[sigmas[i], h / most], [sigmas[i + 1], h / most]]), [sigmas[n - 1], 0]];
    const most = Math.max(0.25, 1.05 * Math.max(...heights(bell))), low = p.layer("shares");
    low.line(stairs(bell), "c1 fill");
    low.line(stairs(bell), "c1");
    low.line(stairs(even), "dashed");
    told.textContent = `${counts[1] || "None"} of ${n} levels stand between ${DECIDED} and ${OPEN}, where a face is `
      + `decided, ${counts[2] || "none"} above, where all is open. `
      + `A uniform choice of steps spends ${percent(evenly[1])} of the training in between, `
      + `the bell around σ = ${level(Math.exp(mean.value))} spends ${percent(asked[1])}. `
      + "(Areas are shares of the training.)";
  }

  const q = plot({ height: 210, right: 32, y: { range: [0, 185], ticks: [50, 100, 161] },
                   x: { range: [0, 100], ticks: [0, 25, 50, 75, 100], show: v => `${v}%`, label: "training done" },
                   label: "Number of levels over a run" });
  const curve = of => Array.from({ length: STEPS + 1 }, (_, i) => [100 * i / STEPS, of(Math.min(STEPS - 1, i))]);
  q.layer("now");
  const lines = q.layer("lines");
  lines.line(curve(RUNS.iCT), "c2");
  lines.line(curve(RUNS.CT), "dashed");
  lines.text([77, 140], "iCT doubles", { class: "c2 halo", "text-anchor": "end" });
  lines.text([4, 112], "CT, a square root", { class: "halo" });
  const put = grip(q, "progress of training", { min: 0, max: 100, kind: "c0" }, v => { progress.value = v; train(); });
  const ran = note("");
  function drawRun() {
    const now = q.layer("now"), n = numberAt();
    if (levels.value !== n) {
      now.line([[0, levels.value], [100, levels.value]], "c0 dashed");
      // where it meets no curve
      const [x, up] = levels.value > 130 ? [21, 5] : levels.value > 90 ? [99, -17] : [99, 5];
      now.text([x, levels.value + up], `above: ${levels.value}`, { class: "c0", "text-anchor": "end" });
    }
    put(progress.value, n, `${progress.value}%, ${n} levels`);
    ran.textContent = `After ${progress.value}% of the training ${run.value} has ${n} levels`
      + (levels.value === n ? "." : ". Above, N is set by hand; move the point to follow the run.")
      + (run.value === "iCT" ? " (11 to 161 here. The paper goes on to 1,281, in much longer runs.)"
        : " (2 to 151, as in the paper.)");
  }
  draw();
  el.append(p.svg, told, row(levels.el, rho.el, top.el, mean.el, std.el), q.svg, row(progress.el, run.el), ran);
}
