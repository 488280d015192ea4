"""Widgets driven in a real browser: Voila for most, JupyterLab and Notebook 7 for a start and a restart of the kernel.

They need Chromium, which `bash tools/browser.sh` installs where it is missing. Without it they fail, loudly.
"""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request

import headless
import nbformat
import pytest
import torch
from PIL import Image

from consistency_models import from_pretrained
from consistency_models.pictures import to_png
from consistency_models.widgets import sampling_explorer

pytestmark = pytest.mark.slow
PAGES = {
    "sampling": "sampling_explorer('digits')", "painter": "editing_explorer('digits')", "strokes": "editing_explorer('avatars', 'stroke to image')",
    "paths": "trajectory_explorer()", "schedule": "schedule_explorer()", "app": "app()"}
DASHBOARD = """
import torch
from torch.utils.data import TensorDataset
from consistency_models import Trainer, UNet, load_digits
trainer = Trainer(UNet(channels=(8, 16)), TensorDataset(load_digits()[0]), steps=100_000, batch_size=8)
for state in training_dashboard(trainer.train(), lambda net: torch.zeros(4, 1, 8, 8), every=20): pass
"""
AT_REST = """async () => {     // loaded, and no part of the page has moved for half a second
    const places = () => JSON.stringify([...document.querySelectorAll('img.widget-image, canvas, .noUi-handle')]
        .map(e => e.getBoundingClientRect()).concat(document.documentElement.scrollHeight));
    await document.fonts.ready;
    const before = places();
    await new Promise(done => setTimeout(done, 500));
    return document.readyState === 'complete' && places() === before; }"""
digits = from_pretrained("digits")


def serve(command, address, environment=None):
    """Start a server and wait until it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    for _ in range(300):
        if process.poll() is not None: pytest.fail(f"{command[2]} ended with {process.returncode}")
        try: return process, urllib.request.urlopen(address, timeout=2)
        except OSError: time.sleep(0.2)
    process.kill()
    pytest.fail(f"{command[2]} does not answer")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stop(process):
    process.terminate()
    try: process.wait(10)
    except subprocess.TimeoutExpired: process.kill()


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A folder with a notebook for each page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, line in {**PAGES, "dashboard": DASHBOARD}.items():
        code = f"from consistency_models.widgets import *\n{line}"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        nbformat.write(book, folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def voila(notebooks):
    port = free_port()
    process, _ = serve([sys.executable, "-m", "voila", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", str(notebooks)], f"http://127.0.0.1:{port}/")
    yield f"http://127.0.0.1:{port}/voila/render/"
    stop(process)


@pytest.fixture(scope="module")
def chromium():
    with headless.browser() as found: yield found


@pytest.fixture
def visit(chromium, voila):
    """Open a page by name and wait for its first picture; fails if the page reported an error."""
    contexts, errors = [], []
    def open_page(name, width=1280, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 1000}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"{voila}{name}.ipynb", timeout=60_000)
        page.wait_for_function("() => [...document.querySelectorAll('img.widget-image')].some(i => i.naturalWidth > 50)", timeout=60_000)
        page.wait_for_function(AT_REST, timeout=60_000)
        return page
    yield open_page
    for context in contexts: context.close()
    assert errors == []


def picture(page):
    """The bytes of the explorer's picture as the browser has it."""
    script = """async () => {
        const bytes = new Uint8Array(await (await fetch([...document.querySelectorAll('img.widget-image')].at(-1).src)).arrayBuffer());
        return btoa(bytes.reduce((s, b) => s + String.fromCharCode(b), '')); }"""
    return base64.b64decode(page.evaluate(script))


def shown(png): return Image.open(io.BytesIO(png)).convert("RGB")


def becomes(page, wanted, seconds=20):
    """Wait until the picture is `wanted`, a PNG or a condition on PNGs."""
    fits = wanted if callable(wanted) else lambda png: shown(png).tobytes() == shown(wanted).tobytes()
    end = time.time() + seconds
    while time.time() < end:
        if fits(png := picture(page)): return png
        page.wait_for_timeout(50)
    pytest.fail("the picture did not become what it should")


def slider(page, name): return page.locator(".widget-inline-hbox", has=page.locator("label", has_text=name)).locator(".noUi-handle")


def board(page): return page.locator("canvas.cm-board")


def stroke(page, start, end, steps=8):
    """Drag over the canvas; places are shares of its width and height."""
    box = board(page).bounding_box()
    at = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=steps)
    page.mouse.up()


# Sampling

def samples(**values):
    """The picture of the sampling explorer for these values of its controls."""
    live = sampling_explorer(digits)
    return live.draw(**(live.values() | values))


def test_each_kind_of_control_moves_the_samples(visit):
    page = visit("sampling")
    becomes(page, samples())
    slider(page, "seed").press("ArrowRight")
    becomes(page, samples(seed=1))
    page.locator(".widget-readout").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("42")
    page.keyboard.press("Enter")
    becomes(page, samples(seed=42))
    page.locator("select").first.select_option("7")
    becomes(page, samples(seed=42, label=7))
    slider(page, "steps").press("ArrowRight")
    becomes(page, samples(seed=42, label=7, steps=3))
    assert slider(page, "σ₃").is_visible() and not slider(page, "σ₄").is_visible()


def test_hundred_fast_moves_end_in_the_last_picture(visit):
    page = visit("sampling")
    handle = slider(page, "seed")
    handle.focus()
    for _ in range(100): page.keyboard.press("ArrowRight")
    becomes(page, samples(seed=100))


def test_dragging_with_the_mouse(visit):
    page = visit("sampling")
    before, handle = picture(page), slider(page, "seed")
    handle.hover()
    box = handle.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + box["height"] / 2, steps=15)
    page.mouse.up()
    page.wait_for_function("() => Number(document.querySelector('.widget-readout').innerText) > 20")
    becomes(page, lambda png: png != before)
    seed = int(page.locator(".widget-readout").first.inner_text())
    becomes(page, samples(seed=seed))


# Painting

def share(png, color):
    """How much of the first image, the one that was given, has a color."""
    pixels = shown(png).crop((0, 37, 288, 325)).resize((96, 96), Image.Resampling.NEAREST).tobytes()
    return sum(max(abs(a - b) for a, b in zip(pixels[i:i + 3], color)) < 3 for i in range(0, len(pixels), 3)) / 96**2


def hidden(png): return share(png, (128, 128, 128))


def settle(page):
    """The picture once it has stopped changing."""
    png = picture(page)
    while png != (png := (page.wait_for_timeout(600), picture(page))[1]): pass
    return png


def cleared(page):
    """Take away the mask with which the painter begins, and return its picture."""
    before = settle(page)
    page.get_by_role("button", name="clear").click()
    return becomes(page, lambda png: hidden(png) < hidden(before) - 0.3)


def test_a_stroke_hides_and_the_model_fills(visit):
    page = visit("painter")
    assert hidden(settle(page)) > 0.45     # something to see at once
    start = cleared(page)
    stroke(page, (0.1, 0.8), (0.9, 0.8))
    painted = becomes(page, lambda png: hidden(png) > hidden(start) + 0.1)
    board(page).press("z")
    becomes(page, start)
    stroke(page, (0.1, 0.8), (0.9, 0.8))
    becomes(page, painted)
    page.get_by_role("button", name="clear").click()
    becomes(page, start)


def test_erasing_and_inverting(visit):
    page = visit("painter")
    cleared(page)
    page.get_by_role("button", name="invert").click()
    full = becomes(page, lambda png: hidden(png) > 0.8)
    page.get_by_role("button", name="erase").click()
    stroke(page, (0.1, 0.3), (0.9, 0.3))
    becomes(page, lambda png: hidden(png) < hidden(full) - 0.1)


def test_the_board_works_with_keys(visit):
    page = visit("painter")
    start = cleared(page)
    board(page).focus()
    for key in ("ArrowDown", "ArrowDown", " ", "ArrowLeft", "ArrowLeft", " "): page.keyboard.press(key)
    becomes(page, lambda png: hidden(png) > hidden(start) + 0.01)
    page.keyboard.press("c")
    becomes(page, start)


def test_the_board_works_with_a_finger(visit):
    page = visit("painter", has_touch=True)
    start = cleared(page)
    box = board(page).bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    becomes(page, lambda png: hidden(png) > hidden(start) + 0.01)


def test_presets_next_picture_and_tasks(visit):
    page = visit("painter")
    first = cleared(page)
    page.locator("select", has_text="choose").select_option("left")
    left = becomes(page, lambda png: hidden(png) > hidden(first) + 0.3)
    page.get_by_role("button", name="next picture").click()
    second = becomes(page, lambda png: png not in (first, left) and hidden(png) > 0.3)
    page.locator("select", has_text="inpaint").select_option("enlarge")
    becomes(page, lambda png: png not in (first, second))


def choose(page, file):
    """Upload a file."""
    with page.expect_file_chooser() as chooser: page.get_by_role("button", name="your own").click()
    chooser.value.set_files(file)


def test_uploads_and_their_errors(visit, tmp_path):
    page = visit("painter")
    start = settle(page)
    file = tmp_path / "own.png"
    file.write_bytes(to_png((torch.rand(3, 50, 50) * 255).byte()))
    classes = page.locator("select", has_text="each in turn")
    label = classes.input_value()
    choose(page, file)
    own = becomes(page, lambda png: png != start)
    page.get_by_role("button", name="next picture").click()
    becomes(page, lambda png: png not in (start, own))
    choose(page, file)     # the same again
    classes.select_option(label)
    becomes(page, own)
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    choose(page, bad)
    page.get_by_text("no picture that can be read").wait_for(timeout=10_000)
    assert picture(page) == own


def test_painting_in_color(visit):
    page = visit("strokes")
    start = picture(page)
    page.locator("input[type=color]").fill("#ff0000")
    stroke(page, (0.2, 0.2), (0.8, 0.2))
    png = becomes(page, lambda png: png != start and share(png, (255, 0, 0)) > 0.02)
    assert shown(png).width > 300


# The others

def test_a_formula_follows_its_slider(visit):
    page = visit("schedule")
    before = picture(page)
    slider(page, "levels").press("ArrowRight")
    becomes(page, lambda png: png != before)


def test_points_are_drawn(visit):
    page = visit("paths")
    before = picture(page)
    stroke(page, (0.2, 0.2), (0.8, 0.8))
    becomes(page, lambda png: png != before)
    assert page.locator("select").first.input_value() == "your drawing"


def test_the_app_switches_between_explorers(visit):
    page = visit("app")
    assert not board(page).first.is_visible()
    page.get_by_role("button", name="Inpainting").click()
    board(page).first.wait_for(state="visible", timeout=10_000)
    page.get_by_role("button", name="Sampling").click()
    board(page).first.wait_for(state="hidden", timeout=10_000)


@pytest.mark.parametrize("name, width", (("painter", 700), ("app", 1000)))
def test_the_picture_fills_a_projector(visit, name, width):
    page = visit(name)
    page.wait_for_timeout(500)
    box = page.locator("img.widget-image").last.bounding_box()
    assert box["width"] >= width and box["y"] + box["height"] <= 800


@pytest.mark.parametrize("name", ("painter", "paths", "app"))
def test_pages_fit_a_phone(visit, name):
    page = visit(name, width=400)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("img.widget-image").last.bounding_box()["width"] > 320


# JupyterLab, and Notebook 7, which is built from its parts

@pytest.fixture(scope="module", params=[("jupyterlab", "lab/tree"), ("notebook", "notebooks")], ids=lambda p: p[0])
def jupyter(request, notebooks, tmp_path_factory):
    """The address of a notebook without its name, in either of the two."""
    module, view = request.param
    port, home = free_port(), tmp_path_factory.mktemp(module)
    environment = {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    command = [sys.executable, "-m", module, "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", f"--notebook-dir={notebooks}"]
    process, _ = serve(command, f"http://127.0.0.1:{port}/api", environment)
    yield f"http://127.0.0.1:{port}/{view}"
    stop(process)


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def restart_and_run_all(page):
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_timeout(3000)


@pytest.fixture
def open_in_jupyter(chromium, jupyter):
    """Open a notebook by name, without running it."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    def open_page(name):
        page.goto(f"{jupyter}/{name}.ipynb?reset", timeout=60_000)     # JupyterLab would open the last test's notebook too
        page.locator(".jp-Notebook").wait_for(timeout=60_000)
        return page
    yield open_page
    page.close()


def run_and_wait(page, how):
    page.wait_for_timeout(1000)
    how(page)
    page.wait_for_function("() => [...document.querySelectorAll('img.widget-image')].some(i => i.naturalWidth > 50)", timeout=60_000)


def test_jupyter_shows_a_widget_and_survives_a_restart(open_in_jupyter):
    page = open_in_jupyter("sampling")
    for how in (run_all, restart_and_run_all):
        run_and_wait(page, how)
        slider(page, "seed").press("PageUp")     # Notebook 7 keeps the arrow keys for itself
        becomes(page, samples(seed=5))


def test_jupyter_leaves_the_keys_to_the_painter(open_in_jupyter):
    page = open_in_jupyter("painter")
    run_and_wait(page, run_all)
    start = cleared(page)
    board(page).focus()
    for key in ("ArrowDown", " ", "ArrowLeft", " "): page.keyboard.press(key)
    becomes(page, lambda png: hidden(png) > hidden(start) + 0.01)
    page.keyboard.press("c")
    becomes(page, start)


@pytest.mark.parametrize("jupyter", [("jupyterlab", "lab/tree")], indirect=True, ids=["jupyterlab"])
def test_jupyter_shows_a_run_and_interrupts_it(open_in_jupyter):
    page = open_in_jupyter("dashboard")
    run_and_wait(page, run_all)
    before = picture(page)
    becomes(page, lambda png: png != before)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Interrupt Kernel").click()
    page.get_by_text("KeyboardInterrupt").first.wait_for(timeout=20_000)
    last = picture(page)
    page.wait_for_timeout(1500)
    assert picture(page) == last
