"""Film the painter: `python tools/film.py` writes nbs/images/painter.gif.

A browser paints over parts of three faces with the mouse, as a user would, and each move is one frame. The model is
the bundled `avatars`; nothing in the pictures is touched. Needs Chromium (`bash tools/browser.sh`).
"""

import io
import tempfile
from pathlib import Path

import nbformat
from headless import browser, voila
from PIL import Image

OUT = Path(__file__).parent.parent / "nbs/images/painter.gif"
WIDTH = 640
CELL = "from consistency_models.widgets import editing_explorer\neditor = editing_explorer('avatars')\neditor"
# how often "next picture" is pressed, the class that is asked, and the strokes: heights and ends as shares of the picture
SCENES = [(0, "hat", [(0.1 + 0.1 * i, 0.05, 0.95) for i in range(4)]),
          (1, "glasses", [(0.42, 0.1, 0.9), (0.52, 0.1, 0.9)]),
          (1, "both", [(0.1 + 0.1 * i, 0.05, 0.95) for i in range(4)])]


def frame(page, pause=700):
    """The canvas and the results, after the picture has been drawn"""
    page.wait_for_timeout(pause)
    canvas = page.locator("canvas").first.bounding_box()
    picture = page.locator("img.widget-image").last.bounding_box()
    left, top = canvas["x"] - 4, min(canvas["y"], picture["y"]) - 4
    area = {"x": left, "y": top, "width": picture["x"] + picture["width"] - left + 4,
            "height": max(canvas["y"] + canvas["height"], picture["y"] + picture["height"]) - top + 4}
    shot = Image.open(io.BytesIO(page.screenshot(clip=area))).convert("RGB")
    return shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)


def scene(page, number_of_next, name, strokes):
    """The frames of one face, and how long each stands, in milliseconds"""
    for _ in range(number_of_next): page.get_by_text("next picture").click()
    page.locator("select").filter(has_text="glasses").select_option(name)
    page.get_by_role("button", name="clear").click()
    frames, times = [frame(page, 1500)], [900]
    box = page.locator("canvas").first.bounding_box()
    for height, start, end in strokes:
        x, y, w = box["x"], box["y"] + height * box["height"], box["width"]
        for i in range(3):
            reach = start + (end - start) * (i + 1) / 3
            page.mouse.move(x + w * (start + (end - start) * i / 3), y)
            page.mouse.down()
            page.mouse.move(x + w * reach, y, steps=8)
            page.mouse.up()
            frames.append(frame(page, 400))
            times.append(220)
    frames.append(frame(page, 1500))
    return frames, [*times, 2500]


def main():
    """Film all scenes into one file"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel)
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(book, Path(folder, "painter.ipynb"))
        with voila(folder) as address, browser() as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(f"{address}/painter.ipynb")
            drawn = "() => document.querySelector('img.widget-image')?.naturalWidth > 50"
            page.wait_for_function(drawn, timeout=120_000)
            frames, times = map(list, zip(*(scene(page, *s) for s in SCENES)))
    frames, times = sum(frames, []), sum(times, [])
    small = [f.quantize(80) for f in frames]
    small[0].save(OUT, save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True)


if __name__ == "__main__": main()
