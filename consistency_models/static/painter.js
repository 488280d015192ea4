// A canvas with a picture and a layer of strokes on it. anywidget calls `render` for each view of a
// `PaintSurface`, whose traits `model.get` reads and `model.set` with `model.save_changes` writes.

function render({ model, el }) {
  const make = (tag, props = {}) => Object.assign(document.createElement(tag), props);

  // canvas: the one that is seen, and a hidden one that holds the strokes, as large as the picture
  const board = make("canvas", { tabIndex: 0, className: "cm-board" });
  board.setAttribute("role", "application");
  board.setAttribute("aria-label", "paint here; arrow keys move, space paints, e erases, z undoes, " +
    (model.get("invertible") ? "i inverts, " : "") + "c clears");
  board.dataset.lmSuppressShortcuts = "true";
  const layer = make("canvas"), picture = new Image();
  const pen = layer.getContext("2d", { willReadFrequently: true }), ctx = board.getContext("2d");
  const size = () => [model.get("width"), model.get("height")];
  let past = [], sent = null, last = null, cursor = null, finger = null, erase = false;

  function show() {
    const [w, h] = size(), k = Math.max(1, Math.round(480 / w));
    board.width = w * k; board.height = h * k;
    ctx.imageSmoothingEnabled = false;
    ctx.fillStyle = "#888"; ctx.fillRect(0, 0, board.width, board.height);
    if (picture.naturalWidth) ctx.drawImage(picture, 0, 0, board.width, board.height);
    ctx.globalAlpha = model.get("opacity");
    ctx.drawImage(layer, 0, 0, board.width, board.height);
    ctx.globalAlpha = 1;
    if (!cursor) return;
    ctx.beginPath();
    ctx.arc((cursor[0] + 0.5) * k, (cursor[1] + 0.5) * k, model.get("brush") * k / 2, 0, 7);
    const [outer, inner] = erase ? ["#fff", "#000"] : ["#000", "#fff"];     // seen on light and on dark
    ctx.strokeStyle = outer; ctx.lineWidth = 5; ctx.stroke();
    ctx.strokeStyle = inner; ctx.lineWidth = 2; ctx.stroke();
  }

  // brush: whole pixels within a circle, and lines as rows of such dabs
  function dab(x, y) {
    const r = model.get("brush") / 2, [w, h] = size();
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.fillStyle = model.get("color");
    for (let i = Math.max(0, Math.floor(x - r)); i <= Math.min(w - 1, x + r); i++)
      for (let j = Math.max(0, Math.floor(y - r)); j <= Math.min(h - 1, y + r); j++)
        if ((i - x) ** 2 + (j - y) ** 2 <= r * r + 0.01) pen.fillRect(i, j, 1, 1);
  }
  function line([x0, y0], [x1, y1]) {
    const n = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let i = 0; i <= n; i++)
      dab(Math.round(x0 + (x1 - x0) * i / n), Math.round(y0 + (y1 - y0) * i / n));
  }

  // changes: remember the state before for undo, send the state after
  function remember() {
    past.push(pen.getImageData(0, 0, ...size()));
    if (past.length > 50) past.shift();
  }
  function send() {
    sent = layer.toDataURL("image/png");
    model.set("strokes", sent); model.save_changes();
    show();
  }
  function change(action) { remember(); action(); send(); }
  function undo() { if (past.length) { pen.putImageData(past.pop(), 0, 0); send(); } }
  function clear() { pen.clearRect(0, 0, ...size()); }
  function invert() {
    const [w, h] = size(), before = pen.getImageData(0, 0, w, h).data;
    clear();
    pen.globalCompositeOperation = "source-over";
    pen.fillStyle = model.get("color"); pen.fillRect(0, 0, w, h);
    const after = pen.getImageData(0, 0, w, h);
    for (let i = 3; i < before.length; i += 4) if (before[i]) after.data[i] = 0;
    pen.putImageData(after, 0, 0);
  }

  // pointer: mouse, pen and finger alike; a captured stroke may leave the canvas and come back
  function place(e) {
    const box = board.getBoundingClientRect(), [w, h] = size();
    return [Math.floor((e.clientX - box.left) / box.width * w),
            Math.floor((e.clientY - box.top) / box.height * h)];
  }
  board.onpointerdown = e => {
    if (e.button > 0 || finger !== null) return;
    board.setPointerCapture(finger = e.pointerId);
    remember();
    last = cursor = place(e); line(last, last); show();
  };
  board.onpointermove = e => {
    if (finger !== null && e.pointerId !== finger) return;          // a second finger does not paint
    cursor = place(e);
    if (last) { line(last, cursor); last = cursor; }
    show();
  };
  board.onpointerup = board.onpointercancel = e => {
    if (e.pointerId !== finger) return;
    finger = last = null;
    send();
  };
  board.onpointerleave = () => { if (!last) { cursor = null; show(); } };

  // keys: all that the mouse does
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const keys = { " ": () => change(() => dab(...cursor)), e: toggle, z: undo,
                 i: () => model.get("invertible") && change(invert), c: () => change(clear) };
  board.onfocus = () => {
    if (board.matches(":focus-visible")) { cursor ||= size().map(n => n >> 1); show(); }
  };
  board.onkeydown = e => {
    const [w, h] = size(), step = steps[e.key];
    if (e.ctrlKey || e.metaKey || e.altKey || !step && !keys[e.key]) return;
    cursor = cursor || [w >> 1, h >> 1];
    if (step) cursor = [Math.min(w - 1, Math.max(0, cursor[0] + step[0])),
                        Math.min(h - 1, Math.max(0, cursor[1] + step[1]))];
    else keys[e.key]();
    e.preventDefault(); e.stopPropagation();
    show();
  };

  // buttons: a mask can be inverted, a painting has a color instead
  const bar = make("div", { className: "cm-bar" });
  function button(text, action) {
    const made = make("button", { textContent: text, type: "button", onclick: action });
    bar.append(made);
    return made;
  }
  function input(type, trait, label, convert, props = {}) {
    const made = make("input", { type, ariaLabel: label, ...props, value: model.get(trait) });
    made.oninput = () => { model.set(trait, convert(made.value)); model.save_changes(); show(); };
    bar.append(made);
  }
  const eraser = button("erase", toggle);
  function toggle() {
    erase = !erase;
    eraser.classList.toggle("cm-on", erase);
    eraser.setAttribute("aria-pressed", erase);
    show();
  }
  button("undo", undo);
  if (model.get("invertible")) button("invert", () => change(invert));
  button("clear", () => change(clear));
  bar.append(make("span", { textContent: "brush" }));
  input("range", "brush", "brush size", Number, { min: 1, max: Math.max(2, size()[0] >> 1) });
  if (!model.get("invertible")) input("color", "color", "color", String);

  // traits: what Python changes, another picture, other strokes, another size
  function resize() { [layer.width, layer.height] = size(); past = []; show(); }
  function load() {
    const url = model.get("strokes");
    if (url === sent) return;
    sent = url;
    if (!url) { clear(); show(); return; }
    const image = new Image();
    image.onload = () => {
      remember();
      if (erase) toggle();
      clear();
      pen.globalCompositeOperation = "source-over"; pen.drawImage(image, 0, 0);
      show();
    };
    image.src = url;
  }
  function look() { picture.src = model.get("image") || "data:,"; show(); }
  picture.onload = show;
  model.on("change:image", look);
  model.on("change:strokes", load);
  model.on("change:width", resize);
  model.on("change:height", resize);
  resize(); look(); load();
  el.append(board, bar);
}

export default { render };
