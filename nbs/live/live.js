// Puts the live parts into a page. `<div class="live" data-live="NAME">` holds a picture, which stands until NAME.js
// has drawn something, and for good where scripts are off. A part is loaded when it comes near the window.

const wanted = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) { wanted.unobserve(entry.target); begin(entry.target); }
}, { rootMargin: "300px" });

async function begin(place) {
  const live = document.createElement("div"), still = [...place.childNodes];
  live.hidden = true;
  place.append(live);
  try {
    const part = await import(`./${place.dataset.live}.js`);
    await part.default(live);
    still.forEach(node => node.remove());
    live.hidden = false;
    place.dataset.ready = "true";
  } catch (error) {
    live.remove();
    const said = Object.assign(document.createElement("p"), { className: "live-error" });
    said.textContent = `The live version did not start: ${error.message}`;
    place.append(said);
    throw error;
  }
}

document.querySelectorAll(".live[data-live]").forEach(place => wanted.observe(place));
