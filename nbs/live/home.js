// The home page: faces from noise at one slider, and a face on which a part is painted over and drawn anew.

import { normal } from "./algorithms.js";
import { load } from "./model.js";
import { painter } from "./painting.js";
import { button, levels, make, newest, note, paint, pictures, row, visible } from "./ui.js";

const COLUMNS = 8;
const SAYS = [[20, "All is noise, and one evaluation of the network makes faces of it: " +
                   "bare, with glasses, a hat, both, and again."],
              [2, "You see only noise; the network already finds traces of a face in it."],
              [0.3, "Colors and shapes shine through the noise; the network decides the details."],
              [0, "Little noise: the network takes it off and keeps the face."]];

export default async function (el) {
  const model = await load("avatars"), { size, shape } = model;
  let seed = 7;
  const noisy = pictures(COLUMNS, "eight faces with noise"), said = note("");
  const answers = pictures(COLUMNS, "what the network makes of them");
  const labels = Array.from({ length: COLUMNS }, (_, i) => i % model.classes.length);
  const faces = new Float32Array(COLUMNS * size);
  labels.forEach((_, i) => faces.set(model.picture(i), i * size));
  const control = levels("noise", { min: 0.02, max: 80, value: 80 }, () => redraw());

  // One noise for each face, whatever the level: at 80 the network sees noise alone, further down also a face
  const redraw = newest(el, async () => {
    const sigma = control.value, z = normal(seed, COLUMNS * size), x = z.map((v, i) => faces[i] + sigma * v);
    const answer = await model.f(x, sigma, { labels }), seen = visible(x, sigma);
    noisy.canvases.forEach((canvas, i) => paint(canvas, seen, shape, i * size));
    answers.canvases.forEach((canvas, i) => paint(canvas, answer, shape, i * size));
    said.textContent = SAYS.find(([from]) => sigma > from)[1];
  });

  await redraw();
  const fresh = button("new noise", () => { seed++; redraw(); });
  el.append(noisy.el, answers.el, row(control.el, fresh), said, make("hr"));
  painter(el, model, { results: 4, columns: 2, begin: { picture: 0, preset: "hair", label: 2 } });
}
