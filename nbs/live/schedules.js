// Lesson 11: on which noise levels a face is decided, where the levels of a grid stand, and how often training asks for
// them. Below, how many levels there are as training goes on.
import { choice, grip, level, make, narrow, note, paint, plot, row, shape, slider } from "./ui.js";
import { normal } from "./algorithms.js";
import {
  face, improvedTimestepsSchedule, karras, lognormalProbabilities, percents, SIGMA_MIN, timestepsSchedule,
} from "./formulas.js";

const AXIS = { range: [0.0016, 100], log: true, ticks: [SIGMA_MIN, 0.01, 0.1, 1, 10, 80], label: "noise level σ" };
const [DECIDED, OPEN] = [0.03, 16];               // the range of the curves of the lesson's figure
const HALF_OPEN = { "eyes?": 0.1, "mouth?": 0.5, "hat?": 2.5 };
const STEPS = 1000;
const RUNS = { iCT: k => improvedTimestepsSchedule(k, STEPS, 10, 160), CT: k => timestepsSchedule(k, STEPS) };
const signed = v => v.toFixed(1).replace("-", "−");
const FACE = narrow ? 48 : 66;                    // how large a face is drawn

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
  const levels = slider("levels N", { min: 2, max: 161, value: 2,
                                      hint: "how many; 161 are the last stage of iCT here" }, draw);
  const rho = slider("ρ", { min: 1, max: 15, step: 0.5, value: 7,
                            hint: "1: even steps; larger: more of them at low noise" }, draw);
  const top = slider("σ max", { min: 2, max: 80, value: 80, show: level, of: i => 2 * 40 ** (i / 100),
                                to: s => Math.round(100 * Math.log(s / 2) / Math.log(40)),
                                hint: "the highest level, from which samples start" }, draw);
  const mean = slider("P mean", { min: -5, max: 3, step: 0.1, value: -1.1, show: signed,
                                  hint: "the middle of the bell, as ln σ" }, draw);
  const std = slider("P std", { min: 0.5, max: 4, step: 0.1, value: 2, show: v => v.toFixed(1),
                                hint: "the width of the bell, in ln σ" }, draw);
  const progress = slider("progress", { min: 0, max: 100, value: 30, show: v => `${v}%` }, train);
  const run = choice("run", [["iCT", "iCT"], ["CT", "CT"]], "iCT", train);
  const step = () => Math.min(STEPS - 1, progress.value * STEPS / 100), numberAt = () => RUNS[run.value](step());
  function train() { levels.value = numberAt(); draw(); }

  const p = plot({ height: FACE + 338, top: FACE + 162, left: 14, x: AXIS, y: { range: [0, 1] },
                   label: "A face under growing noise, the levels of the grid, and how often training asks for each" });
  const [a, b] = [p.X(DECIDED), p.X(OPEN)], middles = [(p.X(0.0016) + a) / 2, (a + b) / 2, (b + p.X(100)) / 2];
  const still = p.layer("still", false), middle = { "text-anchor": "middle" }, [floor] = p.Y.ends;
  still.g.append(shape("rect", { x: a, y: 24, width: b - a, height: floor - 24, class: "zone" }),
                 ...[a, b].map(x => shape("path", { d: `M${x} 24V${floor}`, class: "edge" })));
  const z = normal(4, 768);
  for (let i = 0; i < 7; i++) {
    const sigma = 0.004 * 5 ** i;
    still.g.append(shape("image", { href: noisyFace(sigma, z), x: p.X(sigma) - FACE / 2, y: 26, width: FACE,
                                    height: FACE }));
  }
  const words = { ...HALF_OPEN, "all decided": 0.009, "all open": 28 };
  for (const [said, sigma] of Object.entries(words)) still.write([p.X(sigma), 17], said, middle);

  const told = note("");
  told.style.minHeight = narrow ? "6lh" : "4lh";        // controls below it stay where they are
  function drawLevels() {
    const n = levels.value, sigmas = karras(n, { max: top.value, rho: rho.value });
    const bell = lognormalProbabilities(sigmas, mean.value, std.value);
    const even = bell.map(() => 1 / (n - 1)), centers = bell.map((_, i) => Math.sqrt(sigmas[i] * sigmas[i + 1]));
    const counts = zones(sigmas), steps = zones(centers);
    const [asked, evenly] = [bell, even].map(shares => percents(zones(centers, shares)));
    const ask = counts[1] ? "asks" : "asks for it:";

    const ladder = p.layer("ladder", false);
    const rungs = sigmas.map(s => `M${p.X(s).toFixed(1)} ${FACE + 60}v44`).join("");
    const rails = [FACE + 65, FACE + 99].map(y => `M${p.X(sigmas[0])} ${y}H${p.X(top.value)}`).join("");
    ladder.g.append(shape("path", { d: rungs, class: "ladder", "stroke-width": n > (narrow ? 40 : 60) ? 1 : 2 }),
                    shape("path", { d: rails, class: "ladder", "stroke-width": 3 }));
    const texts = (y, said, kind) =>
      said.forEach((each, i) => ladder.write([middles[i], FACE + y], each, { ...middle, class: kind }));
    texts(51, counts.map((count, i) => i === 1 ? `${count} level${count === 1 ? "" : "s"}` : count), "c0");
    const said = (shares, who) => shares.map((share, i) => i === 1 ? `${who} ${ask} ${share}%`
      : steps[i] ? `${share}%` : "");
    texts(129, said(asked, "bell"), "c1");
    texts(150, said(evenly, "uniform"), "");

    // shares per unit of ln σ, so that the area is the share of the training
    const heights = shares => shares.map((share, i) => share / Math.log(sigmas[i + 1] / sigmas[i]));
    const stairs = shares => [[sigmas[0], 0], ...heights(shares).flatMap((h, i) =>
      [[sigmas[i], h / most], [sigmas[i + 1], h / most]]), [sigmas[n - 1], 0]];
    const most = Math.max(0.25, 1.05 * Math.max(...heights(bell), ...heights(even))), low = p.layer("shares");
    low.line(stairs(bell), "c1 fill");
    low.line(stairs(bell), "c1");
    low.line(stairs(even), "dashed");
    const here = `between ${DECIDED} and ${OPEN}, where a face is decided`, bump = level(Math.exp(mean.value));
    const stand = counts[1] === 1 ? "stands" : "stand", above = counts[2] || "none";
    told.textContent = (counts[1] ? `${counts[1]} of ${n} levels ${stand} ${here}, ${above} above, where all is open. `
        : `None of the ${n} levels stands ${here}: one step leaps over all of that. `)
      + `A uniform choice of steps spends ${evenly[1]}% of the training ${counts[1] ? "in between" : "on it"}, `
      + `the bell around σ = ${bump} spends ${asked[1]}%. (Areas are shares of the training. `
      + "A step counts where its middle is.)";
  }

  const q = plot({ height: 214, right: 36, top: 16, y: { range: [0, 185], ticks: [50, 100, 161] },
                   x: { range: [0, 100], ticks: [0, 25, 50, 75, 100], show: v => `${v}%`, label: "training done" },
                   label: "Number of levels over a run" });
  const curve = of => Array.from({ length: STEPS + 1 }, (_, i) => [100 * i / STEPS, of(Math.min(STEPS - 1, i))]);
  q.layer("now", false);
  const lines = q.layer("lines");
  lines.line(curve(RUNS.iCT), "c2");
  lines.line(curve(RUNS.CT), "dashed");
  lines.text([77, 140], "iCT doubles", { class: "c2 halo", "text-anchor": "end" });
  lines.text([4, 112], "CT, a square root", { class: "halo" });
  const put = grip(q, "progress of training", { min: 0, max: 100, tab: -1 }, v => { progress.value = v; train(); });
  const ran = note("");
  function drawRun() {
    const now = q.layer("now"), n = numberAt();
    if (levels.value !== n) {
      now.line([[0, levels.value], [100, levels.value]], "c0 dashed");
      now.text([101, levels.value], levels.value, { class: "c0", dy: 5 });
    }
    now.dot([progress.value, n], run.value === "iCT" ? "c2" : "");
    put(progress.value, `${progress.value}%, ${n} levels`);
    ran.textContent = `After ${progress.value}% of the training ${run.value} has ${n} levels`
      + (levels.value === n ? "." : `. The ladder has ${levels.value} (dashed); move the progress to follow the run.`)
      + (run.value === "iCT" ? " (11 to 161 here. The paper goes on to 1,281, in much longer runs.)"
        : " (2 to 151, as in the paper.)");
  }
  train();                                        // begins with as many levels as the run has there
  el.append(p.svg, told, row(levels.el, rho.el, top.el, mean.el, std.el), q.svg, row(progress.el, run.el), ran);
}
