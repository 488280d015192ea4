"""Write `consistency_models/data_files/avatars.npz`: the layers of DiceBear's pixel art, and 24,000 faces.

A face is a pile of layers: pixels of one colour and opacity, painted over each other. The layers are
read from the npm package `@dicebear/pixel-art`, whose designs are in the public domain (CC0 1.0); what
each face is made of, from a file with the faces themselves, against which the drawing is checked.

    npm pack @dicebear/pixel-art@9.4.3 && tar xf dicebear-pixel-art-9.4.3.tgz
    python tools/avatars.py package avatars16.npz
"""
import json
import re
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[1] / "consistency_models" / "data_files" / "avatars.npz"


def polygons(path):
    """The closed lines of an SVG path that goes along the axes, as lists of corners"""
    words, found, x, y = re.findall(r"[A-Za-z]|-?[\d.]+", path), [], 0, 0
    while words:
        if words[0].isalpha(): command = words.pop(0)
        if command in "zZ":
            x, y = found[-1][0]
            continue
        if command in "mM": found.append([])
        values = [float(words.pop(0)) for _ in range(2 if command in "mMlL" else 1)]
        if command in "vV": values.insert(0, 0 if command == "v" else x)
        if command in "hH": values.append(0 if command == "h" else y)
        x, y = (x + values[0], y + values[1]) if command.islower() else values
        found[-1].append((x, y))
        if command in "mM": command = "L" if command == "M" else "l"
    return found


def inside(path, even_odd):
    """Which of 16 by 16 pixels lie inside a path"""
    turns = np.zeros((16, 16), int)
    for corners in polygons(path):
        for (x, a), (other, b) in zip(corners, corners[1:] + corners[:1]):
            assert x == other or a == b, "a line that is not along an axis"
            for row in range(round(min(a, b)), min(round(max(a, b)), 16)):
                turns[row, round(x):] += 1 if a < b else -1
    return turns % 2 == 1 if even_odd else turns != 0


def layers(svg):
    """The layers of a drawing, as `(pixels, color, opacity)`"""
    around = ""
    def get(name, *texts, default="1"):
        found = (re.search(rf'(?<![\w-]){name}="([^"]*)"', text) for text in texts)
        return next((f[1] for f in found if f), default)
    for group, path in re.findall(r"<g([^>]*)>|<path([^>]*)/>", svg):
        if not path: around = group
        else:
            pixels = inside(get("d", path), get("fill-rule", path, around) == "evenodd")
            opacity = float(get("fill-opacity", path)) * float(get("opacity", path))
            yield pixels, get("fill", path, around), opacity


def drawings(package):
    """The drawings of the style, from below: `(attribute, name of its code, svg)`"""
    def read(file):
        text = (package / "lib" / file).read_text()
        return re.sub(r"\$\{escape\.xml\(`\$\{colors\.(\w+)\}`\)\}", r"\1_color", text)
    yield "skin_color", None, "".join(re.findall(r"<path[^>]*/>", read("index.js")))
    for part in ("accessories", "clothing", "eyes", "glasses", "beard", "mouth", "hair", "hat"):
        for name, svg in re.findall(r"(\w+): .*=> `(.*)`,", read(f"components/{part}.js")):
            yield part, name, svg.split("</mask>")[0]     # a beard is the path in its mask


def main(package, faces):
    given = np.load(faces)
    vocabulary = json.loads(str(given["vocabulary"]))
    names, found = list(vocabulary), []
    for part, name, svg in drawings(Path(package)):
        code = 0 if name is None else vocabulary[part].index(name)
        for pixels, color, opacity in layers(svg):
            paint = {"#fff": -1, "#000": -2}.get(color)
            paint = names.index(color) if paint is None else paint
            found.append((np.packbits(pixels), names.index(part), code, paint, opacity))
    pixels, part, code, color, opacity = (np.array(column) for column in zip(*found))
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FILE, vocabulary=json.dumps(vocabulary), pixels=pixels, part=part.astype(np.int8),
        code=code.astype(np.int8), color=color.astype(np.int8), opacity=opacity.astype(np.float32),
        train=given["train_attributes"], test=given["test_attributes"])
    print(f"{FILE.name}: {len(found)} layers, {FILE.stat().st_size:,} bytes")
    check(given)


def check(given):
    """How far are the drawings from the faces that were given?"""
    from consistency_models.data import load_avatars
    for name in ("train", "test"):
        images = load_avatars(name == "train")[0].permute(0, 2, 3, 1).numpy()
        off = np.abs((images + 1) * 127.5 - given[name]).max((1, 2, 3))
        print(f"{name}: at most {off.max():.2f} of 255 levels off")
        if off.max() > 2: raise SystemExit("the drawings are not the faces that were given")


if __name__ == "__main__": main(*sys.argv[1:])
