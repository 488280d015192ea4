// Puts the live parts into a page. `<div class="live" data-live="NAME">` holds a picture, which stands until NAME.js
// has drawn something, and for good where scripts are off. A part is loaded when it comes near the window.

const wanted = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) { wanted.unobserve(entry.target); begin(entry.target); }
}, { rootMargin: "300px" });

async function begin(place) {
  const live = document.createElement("div"), still = [...place.childNodes];
  live.hidden = true;
  place.append(live);
  say(place, "Loading the live version …");
  try {
    const part = await import(`./${place.dataset.live}.js`);
    await part.default(live);
    still.forEach(node => node.remove());
    place.querySelector(".live-said").remove();
    live.hidden = false;
    place.dataset.ready = "true";
  } catch (error) {
    live.remove();
    say(place, `The live version did not start: ${error.message}`);
  }
}

function say(place, text) {
  place.querySelector(".live-said")?.remove();
  const said = Object.assign(document.createElement("p"), { className: "live-said", textContent: text });
  said.setAttribute("role", "status");
  place.append(said);
}

// What fails later, such as another model that does not load, is said below the part until its next move
addEventListener("unhandledrejection", ({ reason }) => {
  for (const place of document.querySelectorAll(".live[data-ready]")) {
    say(place, `That did not work: ${reason.message}. Try again.`);
    place.addEventListener("input", () => place.querySelector(".live-said")?.remove(), { once: true });
  }
});

document.querySelectorAll(".live[data-live]").forEach(place => wanted.observe(place));
