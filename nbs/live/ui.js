// What the live parts are made of: controls, pictures of pixels, and plots as SVG. No framework.

export function make(tag, props = {}, ...children) {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children);
  return made;
}

// On a phone plots have fewer units, so that their text is as large as that of the page.
export const narrow = innerWidth < 520;

let count = 0;
function labelled(name, input, ...after) {
  input.id = `live-${++count}`;
  const label = make("label", { htmlFor: input.id, textContent: name });
  return make("div", { className: "live-control" }, label, input, ...after);
}

// A slider whose value stands beside it, and below it, if given, a hint of what it does. `show` turns a position into
// text, `of` into the value: sliders of noise levels move on a logarithmic axis. `control.value` can be set.
export function slider(name, { min, max, step = 1, value, hint, show = String, of = v => v, to = v => v }, changed) {
  const input = make("input", { type: "range", min: to(min), max: to(max), step, value: to(value) });
  const said = make("output", { ariaLive: "off" });          // the slider itself says its value
  const control = {
    get value() { return of(Number(input.value)); },
    set value(v) { input.value = to(v); told(); },
    input, el: labelled(name, input, said),
  };
  if (hint) {
    const below = make("span", { className: "live-hint", id: `${input.id}-hint`, textContent: hint });
    input.setAttribute("aria-describedby", below.id);
    control.el.append(below);
  }
  function told() { said.textContent = show(control.value); input.setAttribute("aria-valuetext", said.textContent); }
  input.addEventListener("input", () => { told(); changed(control.value); });
  told();
  return control;
}

// A slider of noise levels, on a logarithmic axis
export function levels(name, { min = 0.002, max = 80, value }, changed) {
  const show = s => `σ = ${level(s)}`;
  return slider(name, { min, max, value, step: 0.001, show, of: Math.exp, to: Math.log }, changed);
}

// A noise level as text, with two or three digits
export const level = s => s.toFixed(s >= 9.95 ? 0 : s >= 0.995 ? 1 : s >= 0.0995 ? 2 : 3);

const group = name => make("fieldset", { className: "live-choice" }, make("legend", { textContent: name }));

// One of several, as radio buttons that look like a row of buttons: [[value, text], ...]. `control.value` can be set.
export function choice(name, options, value, changed) {
  const el = group(name), inputs = {}, shared = `live-${++count}`;
  for (const [each, text] of options) {
    const input = inputs[each] = make("input", { type: "radio", name: shared, value: each, checked: each === value });
    input.addEventListener("change", () => { value = each; changed(each); });
    el.append(make("label", {}, input, make("span", { textContent: text })));
  }
  return { el, get value() { return value; }, set value(v) { value = v; inputs[v].checked = true; } };
}

// Buttons that belong together: [[text, clicked], ...]
export function buttons(name, options) {
  const el = group(name);
  el.append(...options.map(([text, clicked]) => button(text, clicked)));
  return el;
}

export function select(name, options, value, changed) {
  const input = make("select");
  for (const [each, text] of options) {
    input.append(make("option", { value: each, textContent: text, selected: each === value }));
  }
  input.addEventListener("change", () => changed(input.value));
  return { get value() { return input.value; }, input, el: labelled(name, input) };
}

export function button(text, clicked) {
  return make("button", { type: "button", textContent: text, onclick: clicked });
}

export const row = (...children) => make("div", { className: "live-row" }, ...children);
// What the present position means, in words
export function note(text) {
  const made = make("p", { className: "live-note", textContent: text });
  made.setAttribute("role", "status");
  return made;
}

// `redraw()` runs `draw`, and once more if it was called in between: the newest move wins. `el` is busy meanwhile.
export function newest(el, draw) {
  let running = null, again = false;
  async function run() {
    el.ariaBusy = "true";
    try {
      do {
        again = false;
        try { await draw(); } catch (error) { if (!again) throw error; }      // what failed is out of date
      } while (again);
    } finally { running = null; el.ariaBusy = "false"; }
  }
  return function redraw() {
    if (running) again = true;
    else running = run();
    return running;
  };
}

// Values in [-1, 1], shape (channels, height, width), on a canvas of that many pixels; CSS makes it large.
export function paint(canvas, x, [channels, height, width], from = 0) {
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = 127.5 * (x[from + (channels > 1 ? c : 0) * size + i] + 1);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Noisy values at the contrast that a picture has
export const visible = (x, sigma) => x.map(v => v / Math.hypot(1, sigma));

export function pictures(n, label) {
  const canvases = Array.from({ length: n }, () => make("canvas", { className: "live-pixels" }));
  const el = make("div", { className: "live-pictures", role: "img" }, ...canvases);
  el.setAttribute("aria-label", label);
  return { canvases, el };
}

const SVG = "http://www.w3.org/2000/svg";
export function shape(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A plot with axes. `x` and `y` are { range: [low, high], log, ticks: [...], label, show }. Classes c0, c1, c2, faint
// and strong set the colors, in light and dark. `layer(name)` is a group that is emptied each time it is asked for.
export function plot({ width = narrow ? 400 : 640, height = 360, x, y, label,
                       left = 52, bottom = 44, right = 14, top = 12 }) {
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "live-plot" });
  svg.setAttribute("aria-label", label);
  const scale = ({ range: [low, high], log }, from, to) => {
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const there = v => from + (to - from) * ((log ? Math.log(v) : v) - a) / (b - a);
    there.ends = [from, to];
    there.back = p => { const v = a + (b - a) * (p - from) / (to - from); return log ? Math.exp(v) : v; };
    return there;
  };
  const X = scale(x, left, width - right), Y = scale(y, height - bottom, top);
  const add = (parent, tag, attributes, text) => {
    const made = shape(tag, attributes);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const axes = add(svg, "g", { class: "live-axes" });
  add(axes, "path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, class: "frame" });
  for (const v of x.ticks ?? []) {
    add(axes, "path", { d: `M${X(v)} ${height - bottom}v5`, class: "frame" });
    add(axes, "text", { x: X(v), y: height - bottom + 19, "text-anchor": "middle" }, (x.show ?? String)(v));
  }
  for (const v of y.ticks ?? []) {
    add(axes, "path", { d: `M${left} ${Y(v)}h-5`, class: "frame" });
    add(axes, "text", { x: left - 8, y: Y(v) + 5, "text-anchor": "end" }, (y.show ?? String)(v));
  }
  if (x.label) add(axes, "text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.label);
  if (y.label) add(axes, "text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle",
                                   transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, y.label);
  const clip = `live-clip-${++count}`;
  const inside = { x: left, y: top, width: width - left - right, height: height - top - bottom };
  add(add(svg, "clipPath", { id: clip }), "rect", inside);
  const layers = {};
  return {
    svg, X, Y,
    layer(name, clipped = true) {
      layers[name] ??= add(svg, "g", clipped ? { "clip-path": `url(#${clip})` } : {});
      layers[name].replaceChildren();
      const g = layers[name];
      const step = ([a, b], i) => `${i ? "L" : "M"}${X(a).toFixed(1)} ${Y(b).toFixed(1)}`;
      return {
        g,
        line: (points, kind = "c0") => add(g, "path", { d: points.map(step).join(""), class: `line ${kind}` }),
        dot: ([a, b], kind = "c0", r = 6) => add(g, "circle", { cx: X(a), cy: Y(b), r, class: `dot ${kind}` }),
        text: ([a, b], text, attributes = {}) => add(g, "text", { x: X(a), y: Y(b), ...attributes }, text),
        // the same at a place in units of the drawing
        write: ([x, y], text, attributes = {}) => add(g, "text", { x, y, ...attributes }, text),
        arrow([a, b], [c, d], kind = "c0") {
          const [x0, y0, x1, y1] = [X(a), Y(b), X(c), Y(d)], angle = Math.atan2(y1 - y0, x1 - x0);
          const wing = turn => `${x1 - 11 * Math.cos(angle + turn)} ${y1 - 11 * Math.sin(angle + turn)}`;
          add(g, "path", { d: `M${x0} ${y0}L${x1} ${y1}`, class: `line strong ${kind}` });
          add(g, "path", { d: `M${x1} ${y1}L${wing(0.4)}L${wing(-0.4)}Z`, class: `dot ${kind}` });
        },
      };
    },
    // where in the plot's coordinates a pointer is
    at(event) {
      const box = svg.getBoundingClientRect(), scale = width / box.width;
      return [X.back((event.clientX - box.left) * scale), Y.back((event.clientY - box.top) * scale)];
    },
    // `moved([x, y])` while a pointer is held down on the plot; the page does not scroll meanwhile
    drag(moved) {
      svg.style.touchAction = "none";
      svg.addEventListener("pointerdown", event => {
        if (event.button) return;
        svg.setPointerCapture(event.pointerId);
        moved(this.at(event), event);
      });
      svg.addEventListener("pointermove", event => {
        if (svg.hasPointerCapture(event.pointerId)) moved(this.at(event), event);
      });
    },
  };
}

// A mark over a plot, with a line down to the x axis, that moves along it: by dragging anywhere in the plot, or by keys
// (`tab: -1` where a slider does the same). `moved(x)` is called with the new place, and `put(x, text)` moves the mark
// there. It stands in the margin: `top` is at least 16. A finger can still scroll the page up and down.
export function grip(p, name, { min, max, tab = 0 }, moved) {
  const [bottom, top] = p.Y.ends;
  const mark = shape("g", { class: "grip c0", tabindex: tab, role: "slider", "aria-label": name,
                            "aria-valuemin": min, "aria-valuemax": max });
  mark.append(shape("path", { d: `M0 ${top}V${bottom}`, class: "line faint" }),
              shape("path", { d: `M0 ${top}l-8 -10v-4h16v4Z`, class: "dot c0" }));
  let at = min, start;
  const to = x => moved(Math.min(max, Math.max(min, x)));
  p.svg.setAttribute("role", "group");
  p.svg.style.cursor = "ew-resize";
  p.svg.append(mark);
  p.drag(([x], event) => {
    if (event.type === "pointerdown") start = event.clientX;
    // a finger that has not yet moved sideways may be about to scroll
    if (event.pointerType !== "touch" || Math.abs(event.clientX - start) > 6) to(x);
  });
  p.svg.style.touchAction = "pan-y";
  mark.addEventListener("keydown", event => {
    const step = { ArrowLeft: -6, ArrowDown: -6, ArrowRight: 6, ArrowUp: 6, PageDown: -60, PageUp: 60 }[event.key];
    const end = { Home: min, End: max }[event.key];
    if (!step && end === undefined) return;
    event.preventDefault();
    to(step ? p.X.back(p.X(at) + step) : end);
  });
  return function put(x, text) {
    at = x;
    mark.setAttribute("transform", `translate(${p.X(x)} 0)`);
    mark.setAttribute("aria-valuenow", x);
    mark.setAttribute("aria-valuetext", text);
  };
}
