"""From a slider's move to the new picture, in a real browser. Run as `python benchmarks/widgets.py`.

Serves the sampling explorer with Voila, moves the slider of the seed 30 times in headless Chromium, and measures in the
browser how long it takes until the picture has changed and is decoded. The aim on two CPU cores: a median below 150 ms
for digits, 400 ms for MNIST and for emoji, and 250 ms for avatars. The results go to `benchmarks/results/widgets.json`.
"""
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
from common import parser, pick_device, write

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from headless import browser, voila  # noqa: E402

LIMITS = {"digits": 150, "mnist": 400, "avatars": 250, "emoji": 400}  # milliseconds
MOVE = """async () => {
    const image = document.querySelector('img.widget-image'), handle = document.querySelector('.noUi-handle'), before = image.src;
    const start = performance.now();
    handle.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
    while (image.src === before) await new Promise(done => setTimeout(done, 1));
    await image.decode();
    return performance.now() - start; }"""


def milliseconds(page, moves):
    """The time of each of so many moves of the slider, after three to warm up"""
    page.wait_for_function("() => document.querySelector('img.widget-image')?.naturalWidth > 50", timeout=60_000)
    page.wait_for_timeout(2000)
    times = []
    for _ in range(moves + 3):
        times.append(page.evaluate(MOVE))
        page.wait_for_timeout(150)
    return times[3:]


def main():
    arguments = parser(__doc__, "widgets")
    arguments.add_argument("--moves", type=int, default=30, help="moves of the slider")
    options = arguments.parse_args()
    pick_device(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in LIMITS:
            lines = f"from consistency_models.widgets import *\nlive = sampling_explorer('{name}')\nlive.controls['steps'].value = 1\nlive"
            cell = nbformat.v4.new_code_cell(lines)
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
            nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), Path(folder, f"{name}.ipynb"))
        with voila(folder) as address, browser() as chromium:
            for name, limit in LIMITS.items():
                page = chromium.new_page(viewport={"width": 1280, "height": 900})
                page.goto(f"{address}/{name}.ipynb", timeout=60_000)
                times = milliseconds(page, options.moves)
                rows.append({"model": name, "median_ms": statistics.median(times), "slowest_ms": max(times), "limit_ms": limit})
                print(f"{name}: median {rows[-1]['median_ms']:.0f} ms, slowest {max(times):.0f} ms; the aim is {limit} ms", flush=True)
                page.close()
    write(options.out, moves=options.moves, rows=rows)


if __name__ == "__main__": main()
