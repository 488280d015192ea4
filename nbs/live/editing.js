// Editing: paint over a part of a picture, and the model completes it; or paint on it in colors.

import { chooseModel } from "./model.js";
import { painter } from "./painting.js";
import { make, row } from "./ui.js";

const BEGIN = { avatars: { picture: 4, preset: "hair", label: 2 }, mnist: { picture: 3, preset: "bottom" },
                digits: { picture: 3, preset: "bottom" } };

export default async function (el) {
  const place = make("div");
  const pictures = await chooseModel(model => {
    place.replaceChildren();
    return painter(place, model, { results: 6, columns: 3, begin: BEGIN[model.name] });
  });
  el.append(row(pictures.el), place);
}
