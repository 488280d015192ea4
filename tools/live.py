"""What the live parts of the site need beside their scripts: `python tools/live.py` writes it into nbs/live.

models/NAME.onnx is the consistency function f(x, sigma, class_labels, weight) of a bundled model, for any batch, with
weights in half precision where they are stored so; models/NAME.json says its shape and classes and holds pictures
to edit. vendor/ holds ONNX Runtime Web, and painter.js is the canvas of the notebooks' widgets. Nothing of that is
in the repository. `--stills` draws the pictures that stand where scripts are off, in a browser and without
controls: nbs/images/live-*.png.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from check_site import serve
from headless import browser
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from consistency_models import consistency_function, from_pretrained
from consistency_models.editor import _examples

ROOT = Path(__file__).parent.parent
LIVE = ROOT / "nbs/live"
RUNTIME = "onnxruntime-web@1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"   # the last for Node
INPUTS = "x", "sigma", "class_labels", "weight"
NAMES = "avatars", "mnist", "digits"
PICTURES = 24
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="live/live.css">
<style>body {{ font: 16px system-ui; margin: 16px }}</style>
<div class="live" data-live="{}"></div><script type="module" src="live/live.js"></script>"""
DRAWN = ".live-control, .live-row, .live-choice, .live-hint, .live button, .cm-bar { display: none !important }"


class F(nn.Module):
    """The consistency function, with everything that is asked as a tensor"""
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, sigma, class_labels, weight):
        return consistency_function(self.net, class_labels=class_labels, weight=weight)(x, sigma)


def examples(net, n):
    """Noisy samples at levels from 0.002 to 80, with labels and weights: what `F` takes"""
    generator = torch.Generator().manual_seed(n)
    sigma = torch.logspace(np.log10(0.002), np.log10(80), n)
    x = sigma.view(-1, 1, 1, 1) * torch.randn(n, *net.notes["shape"], generator=generator)
    return x, sigma, torch.arange(n) % net.labels.num_embeddings, torch.linspace(0, 4, n)


def halve(model):
    """Store weights in half precision, where that changes none of them; they are cast when the model is loaded"""
    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 64: continue
        values = numpy_helper.to_array(tensor)
        if (values.astype(np.float16) != values).any(): continue
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.half"))
        graph.node.insert(0, helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))


def export(net, path):
    """The consistency function of a network as one file"""
    batch = torch.export.Dim("batch", min=1, max=1024)
    given = examples(net, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of the exporter, about itself
        # strict: otherwise `len(x)` is taken for a constant, and the batch is fixed without a word
        program = torch.export.export(F(net).eval(), given, dynamic_shapes=({0: batch},) * 4, strict=True)
        exported = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=["f"], verbose=False)
    model, graph = exported.model_proto, exported.model_proto.graph
    halve(model)
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]              # where each line of Python was
    onnx.checker.check_model(model)
    onnx.save(model, path)


def known(net):
    """What a page has to know of a model"""
    images, labels = _examples(net, 200)
    nth = lambda i: labels[:i].count(labels[i])     # of its class: the pictures take turns
    chosen = sorted(range(len(labels)), key=lambda i: (nth(i), labels[i]))[:PICTURES]
    images, labels = images[chosen], [labels[i] for i in chosen]
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().numpy().tobytes()
    return {"shape": list(net.notes["shape"]), "classes": [str(c) for c in net.notes.get("classes", range(10))],
            "weight": net.usual_weight, "weights": net.notes["guidance"][::2],
            "labels": labels, "pictures": base64.b64encode(pixels).decode()}


def runtime(folder):
    """ONNX Runtime Web, exactly this release"""
    with tempfile.TemporaryDirectory() as there:
        subprocess.run(["npm", "pack", "--silent", RUNTIME], cwd=there, check=True)
        archive, = Path(there).glob("*.tgz")
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != INTEGRITY: raise SystemExit(f"{RUNTIME} has the checksum {found}, not {INTEGRITY}")
        with tarfile.open(archive) as files:
            folder.mkdir(parents=True, exist_ok=True)
            for name in RUNTIME_FILES:
                (folder / name).write_bytes(files.extractfile(f"package/dist/{name}").read())


def main(live=LIVE):
    """Write everything into the folder `live`"""
    (live / "models").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        net = from_pretrained(name).eval()
        export(net, live / f"models/{name}.onnx")
        (live / f"models/{name}.json").write_text(json.dumps(known(net)))
    shutil.copy(ROOT / "consistency_models/static/painter.js", live)
    shutil.copy(ROOT / "consistency_models/static/painter.css", live)
    runtime(live / "vendor")


def visit(page, address, name):
    """Open a page with nothing on it but one part, and wait for its first picture"""
    page.unroute("**/part.html")
    page.route("**/part.html", lambda route: route.fulfill(body=PAGE.format(name), content_type="text/html"))
    page.goto(f"{address}/part.html")
    page.wait_for_selector(".live[data-ready]")


def stills(live=LIVE, out=ROOT / "nbs/images"):
    """The picture that stands for each part, taken in a browser"""
    begins = "export default async function"
    parts = sorted(p.stem for p in live.glob("*.js") if begins in p.read_text(encoding="utf-8"))
    with serve(live.parent) as address, browser() as chromium:
        page = chromium.new_page(viewport={"width": 720, "height": 900})
        for name in parts:
            visit(page, address, name)
            page.wait_for_function("() => !document.querySelector('.live [aria-busy=true]')")
            page.add_style_tag(content=DRAWN)
            page.locator(".live > div").screenshot(path=out / f"live-{name}.png")


if __name__ == "__main__":
    main()
    if "--stills" in sys.argv: stills()
