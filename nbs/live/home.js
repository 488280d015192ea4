// The home page: faces from noise at one slider, and a face on which a part is painted over and drawn anew.

import { load } from "./model.js";
import { normal } from "./algorithms.js";
import { button, levels, make, newest, note, paint, pictures, row } from "./ui.js";
import { painter } from "./painting.js";

const COLUMNS = 8;

export default async function (el) {
  const model = await load("avatars");
  let seed = 7;
  const faces = pictures(COLUMNS, "what the network makes of the noise above"), noisy = pictures(COLUMNS, "eight faces with noise"), said = note("");
  const control = levels("noise", { min: 0.02, max: 80, value: 80 }, () => redraw());

  // One noise z for each face, whatever the level: at 80 the network sees noise alone, further down also a face
  const redraw = newest(async () => {
    const sigma = control.value, z = normal(seed, COLUMNS * model.size);
    const labels = Array.from({ length: COLUMNS }, (_, i) => i % model.classes.length);
    const x = z.map((v, i) => start[i] + sigma * v), answer = await model.f(x.slice(), sigma, { labels });
    faces.canvases.forEach((canvas, i) => paint(canvas, answer, model.shape, i * model.size));
    noisy.canvases.forEach((canvas, i) => paint(canvas, x.map(v => v / Math.hypot(1, sigma)), model.shape, i * model.size));
    said.textContent = sigma > 20 ? "All is noise: one evaluation of the network makes a face of it."
      : sigma > 2 ? "Colors and shapes shine through the noise, and the answer begins to keep them."
      : sigma > 0.3 ? "The face can be guessed; the network decides the details."
      : "Little noise: the network takes it off and keeps the face.";
  });
  const start = new Float32Array(COLUMNS * model.size);
  for (let i = 0; i < COLUMNS; i++) start.set(model.picture(i), i * model.size);

  await redraw();
  const fresh = button("new noise", () => { seed++; redraw(); });
  el.append(noisy.el, faces.el, row(control.el, fresh), said, make("hr"));
  painter(el, model, { results: 4, columns: 4, begin: { picture: 0, preset: "hair", label: 2 } });
}
