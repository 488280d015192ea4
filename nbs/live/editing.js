// Editing: paint over a part of a picture, and the model completes it; or paint on it in colors.

import { load } from "./model.js";
import { painter } from "./painting.js";
import { choice, make, row } from "./ui.js";

const BEGIN = { avatars: { picture: 1, preset: "hair", label: 3 }, mnist: { picture: 3, preset: "bottom" }, digits: { picture: 3, preset: "right" } };

export default async function (el) {
  const place = make("div");
  const begin = async name => {
    const model = await load(name);
    place.replaceChildren();
    painter(place, model, { results: 6, columns: 3, begin: BEGIN[name] });
  };
  const model = choice("Pictures", [["avatars", "faces"], ["mnist", "MNIST"], ["digits", "8×8 digits"]], "avatars", begin);
  el.append(row(model.el), place);
  await begin("avatars");
}
