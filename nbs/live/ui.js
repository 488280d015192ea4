// What the live parts are made of: controls, pictures of pixels, and plots as SVG. No framework.

export function make(tag, props = {}, ...children) {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children);
  return made;
}

let count = 0;
function labelled(name, input, ...after) {
  input.id = `live-${++count}`;
  return make("div", { className: "live-control" }, make("label", { htmlFor: input.id, textContent: name }), input, ...after);
}

// A slider whose value stands beside it. `show` turns a position into text, `of` into the value: sliders of noise
// levels move on a logarithmic axis. `control.value` can be set.
export function slider(name, { min, max, step = 1, value, show = String, of = v => v, to = v => v }, changed) {
  const input = make("input", { type: "range", min: to(min), max: to(max), step, value: to(value) });
  const said = make("output");
  const control = {
    get value() { return of(Number(input.value)); },
    set value(v) { input.value = to(v); told(); },
    input, el: labelled(name, input, said),
  };
  function told() { said.textContent = show(control.value); input.setAttribute("aria-valuetext", said.textContent); }
  input.addEventListener("input", () => { told(); changed(control.value); });
  told();
  return control;
}

// A slider of noise levels, on a logarithmic axis
export function levels(name, { min = 0.002, max = 80, value }, changed) {
  return slider(name, { min, max, value, step: 0.001, show: s => "σ = " + level(s), of: Math.exp, to: Math.log }, changed);
}

export const level = s => s >= 9.95 ? s.toFixed(0) : s >= 0.995 ? s.toFixed(1) : s >= 0.0995 ? s.toFixed(2) : s.toFixed(3);

// One of several, as radio buttons that look like a row of buttons: [[value, text], ...]
export function choice(name, options, value, changed) {
  const group = `live-${++count}`, row = make("fieldset", { className: "live-choice" }, make("legend", { textContent: name }));
  const control = { value, el: row };
  for (const [each, text] of options) {
    const input = make("input", { type: "radio", name: group, value: each, checked: each === value });
    input.addEventListener("change", () => { control.value = each; changed(each); });
    row.append(make("label", {}, input, make("span", { textContent: text })));
  }
  return control;
}

export function select(name, options, value, changed) {
  const input = make("select");
  for (const [each, text] of options) input.append(make("option", { value: each, textContent: text, selected: each === value }));
  input.addEventListener("change", () => changed(input.value));
  return { get value() { return input.value; }, input, el: labelled(name, input) };
}

export function button(text, clicked) {
  return make("button", { type: "button", textContent: text, onclick: clicked });
}

export const row = (...children) => make("div", { className: "live-row" }, ...children);
export const note = text => make("p", { className: "live-note", textContent: text });

// `redraw()` runs `draw`, and once more if it was called in between: the newest move wins.
export function newest(draw) {
  let running = null, again = false;
  return function redraw() {
    if (running) { again = true; return running; }
    running = (async () => {
      try { do { again = false; await draw(); } while (again); } finally { running = null; }
    })();
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
export function plot({ width = 640, height = 360, x, y, label, left = 52, bottom = 44, right = 14, top = 12 }) {
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "live-plot" });
  svg.setAttribute("aria-label", label);
  const scale = ({ range: [low, high], log }, from, to) => {
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const there = v => from + (to - from) * ((log ? Math.log(v) : v) - a) / (b - a);
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
  add(add(svg, "clipPath", { id: clip }), "rect", { x: left, y: top, width: width - left - right, height: height - top - bottom });
  const layers = {};
  return {
    svg, X, Y,
    layer(name, clipped = true) {
      layers[name] ??= add(svg, "g", clipped ? { "clip-path": `url(#${clip})` } : {});
      layers[name].replaceChildren();
      const g = layers[name];
      const path = points => points.map(([a, b], i) => `${i ? "L" : "M"}${X(a).toFixed(1)} ${Y(b).toFixed(1)}`).join("");
      return {
        g,
        line: (points, kind = "c0") => add(g, "path", { d: path(points), class: `line ${kind}` }),
        dot: ([a, b], kind = "c0", r = 6) => add(g, "circle", { cx: X(a), cy: Y(b), r, class: `dot ${kind}` }),
        text: ([a, b], text, attributes = {}) => add(g, "text", { x: X(a), y: Y(b), ...attributes }, text),
        arrow([a, b], [c, d], kind = "c0") {
          const [x0, y0, x1, y1] = [X(a), Y(b), X(c), Y(d)], angle = Math.atan2(y1 - y0, x1 - x0);
          const wing = turn => `${x1 - 11 * Math.cos(angle + turn)} ${y1 - 11 * Math.sin(angle + turn)}`;
          add(g, "path", { d: `M${x0} ${y0}L${x1} ${y1}`, class: `line thick ${kind}` });
          add(g, "path", { d: `M${x1} ${y1}L${wing(0.4)}L${wing(-0.4)}Z`, class: `dot ${kind}` });
        },
      };
    },
    // where in the plot's coordinates a pointer is
    at(event) {
      const box = svg.getBoundingClientRect();
      return [X.back((event.clientX - box.left) / box.width * width), Y.back((event.clientY - box.top) / box.height * height)];
    },
    // `moved([x, y])` while a pointer is held down on the plot; the page does not scroll meanwhile
    drag(moved) {
      svg.style.touchAction = "none";
      svg.addEventListener("pointerdown", event => { svg.setPointerCapture(event.pointerId); moved(this.at(event), event); });
      svg.addEventListener("pointermove", event => { if (svg.hasPointerCapture(event.pointerId)) moved(this.at(event), event); });
    },
  };
}

// A point on a plot that moves along the x axis: by dragging anywhere in the plot, or by arrow keys. `moved(x)` is
// called with the new place, and `put(x, y, text)` moves the point there. A finger can still scroll the page up and down.
export function grip(p, name, { min, max, kind = "c0" }, moved) {
  const dot = shape("circle", { r: 9, class: `dot grip ${kind}`, tabindex: 0, role: "slider", "aria-label": name,
                                "aria-valuemin": min, "aria-valuemax": max });
  let at = min, start;
  const to = x => moved(Math.min(max, Math.max(min, x)));
  p.svg.setAttribute("role", "group");
  p.svg.append(dot);
  p.drag(([x], event) => {
    if (event.type === "pointerdown") start = event.clientX;
    // a finger that has not yet moved sideways may be about to scroll
    if (event.pointerType !== "touch" || Math.abs(event.clientX - start) > 6) to(x);
  });
  p.svg.style.touchAction = "pan-y";
  dot.addEventListener("keydown", event => {
    const step = { ArrowLeft: -6, ArrowDown: -6, ArrowRight: 6, ArrowUp: 6, PageDown: -60, PageUp: 60 }[event.key];
    if (step) { event.preventDefault(); to(p.X.back(p.X(at) + step)); }
  });
  return function put(x, y, text) {
    at = x;
    for (const [key, value] of Object.entries({ cx: p.X(x), cy: p.Y(y), "aria-valuenow": x, "aria-valuetext": text }))
      dot.setAttribute(key, value);
  };
}
