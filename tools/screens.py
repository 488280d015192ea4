"""Screenshots of the widgets: `python tools/screens.py` writes six PNGs to nbs/images.

A browser opens each widget on a page of Voila, sets its controls or draws with the mouse, as a user would. The models
are bundled; nothing in the pictures is touched. Needs Chromium (`bash tools/browser.sh`).
"""

import io
import math
import sys
import tempfile
from pathlib import Path

import nbformat
from headless import browser, voila
from PIL import Image, ImageChops

OUT = Path(__file__).parent.parent / "nbs/images"
LIVE = """import ipywidgets
from consistency_models import from_pretrained, sample
from consistency_models.live import Live, labeled_grid, level_slider
net = from_pretrained("avatars")
def faces(seed, sigma):
    return labeled_grid(sample(net, 8, [80., sigma], seed=seed), 8, width=900)
Live(faces, {"seed": ipywidgets.IntSlider(0, max=50, description="seed"), "sigma": level_slider("σ", 0.8)})"""
EXPLORER = """from consistency_models.explorers import sampling_explorer
explorer = sampling_explorer("avatars")
with explorer.hold(): explorer.controls["steps"].value = 3
explorer"""
PATHS = "from consistency_models.explorers import trajectory_explorer\ntrajectory_explorer()"
EDITOR = """from consistency_models.widgets import editing_explorer
editor = editing_explorer("avatars")
editor.take_preset({"new": "top"})
editor.controls["label"].value = 2
editor"""

DASHBOARD = """import torch
from consistency_models import sample, training_dashboard
from consistency_models.data import open_data
from consistency_models.recipes import make_trainer, recipe_for
trainer = make_trainer(open_data("digits"), recipe_for("digits", steps=500) | {"channels": (16, 32)})
draw = lambda net: sample(net, 8, [80., 0.8], shape=(1, 8, 8))
for state in training_dashboard(trainer.train(), draw): pass"""


def heart(page):
    """Draw a heart with the mouse"""
    box = page.locator("canvas").first.bounding_box()
    for i in range(61):
        t = 2 * math.pi * i / 60
        u = 16 * math.sin(t) ** 3
        v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        x, y = box["x"] + box["width"] * (0.5 + u / 40), box["y"] + box["height"] * (0.46 - v / 40)
        page.mouse.move(x, y)
        if i == 0: page.mouse.down()
    page.mouse.up()


SCREENS = {"live": (LIVE, None), "explorer": (EXPLORER, None), "paths": (PATHS, heart), "editor": (EDITOR, None),
           "dashboard": (DASHBOARD, None), "app": ("from consistency_models.widgets import app\napp()", None)}


def cut(shot, margin=8):
    """The screenshot without the white around it"""
    box = ImageChops.difference(shot, Image.new("RGB", shot.size, "white")).getbbox()
    left, top, right, bottom = box
    return shot.crop((max(0, left - margin), max(0, top - margin), right + margin, bottom + margin))


def main(names):
    """Take the named screenshots"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            cell = nbformat.v4.new_code_cell(SCREENS[name][0])
            book = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
            nbformat.write(book, Path(folder, f"{name}.ipynb"))
        with voila(folder) as address, browser() as chromium:
            for name in names:
                page = chromium.new_page(viewport={"width": 960, "height": 1000})
                page.goto(f"{address}/{name}.ipynb", timeout=300_000)
                drawn = "() => document.querySelector('img.widget-image')?.naturalWidth > 50"
                page.wait_for_function(drawn, timeout=120_000)
                page.wait_for_timeout(1500)
                if SCREENS[name][1]: SCREENS[name][1](page)
                page.wait_for_timeout(2500)
                shot = cut(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
                shot.quantize(128).save(OUT / f"{name}.png", optimize=True)
                page.close()


if __name__ == "__main__": main(sys.argv[1:] or SCREENS)
