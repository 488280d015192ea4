"""From a slider's move to the new picture, in a real browser. Run as `python benchmarks/widgets.py`.

Serves the sampling explorer with Voila, moves the slider of the seed 30 times in headless Chromium, and measures in the
browser how long it takes until the picture has changed and is decoded. The aim on two CPU cores: a median below 150 ms
for digits, 400 ms for MNIST and for emoji, and 250 ms for avatars. The results go to `benchmarks/results/widgets.json`.
"""
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from common import parser, pick_device, write
from playwright.sync_api import sync_playwright

LIMITS = {"digits": 150, "mnist": 400, "avatars": 250, "emoji": 400}  # milliseconds
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
MOVE = """async () => {
    const image = document.querySelector('img.widget-image'), handle = document.querySelector('.noUi-handle'), before = image.src;
    const start = performance.now();
    handle.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
    while (image.src === before) await new Promise(done => setTimeout(done, 1));
    await image.decode();
    return performance.now() - start; }"""


def serve(folder, port):
    """Start Voila and wait until it answers"""
    command = [sys.executable, "-m", "voila", "--no-browser", f"--port={port}", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try: return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) and process
        except OSError: time.sleep(0.2)


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
    arguments.add_argument("--port", type=int, default=8877, help="for Voila")
    arguments.add_argument("--browser", default="/usr/bin/chromium", help="path of Chromium")
    options = arguments.parse_args()
    pick_device(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        for name in LIMITS:
            lines = f"from consistency_models.widgets import *\nlive = sampling_explorer('{name}')\nlive.controls['steps'].value = 1\nlive"
            cell = nbformat.v4.new_code_cell(lines)
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
            nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), Path(folder, f"{name}.ipynb"))
        server, browser = serve(folder, options.port), p.chromium.launch(executable_path=options.browser, args=FLAGS)
        for name, limit in LIMITS.items():
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"http://127.0.0.1:{options.port}/voila/render/{name}.ipynb", timeout=60_000)
            times = milliseconds(page, options.moves)
            rows.append({"model": name, "median_ms": statistics.median(times), "slowest_ms": max(times), "limit_ms": limit})
            print(f"{name}: median {rows[-1]['median_ms']:.0f} ms, slowest {rows[-1]['slowest_ms']:.0f} ms; the aim is {limit} ms", flush=True)
            page.close()
        browser.close()
        server.terminate()
    write(options.out, moves=options.moves, rows=rows)


if __name__ == "__main__": main()
