"""The editing explorer and the tasks behind it."""

import gc
import subprocess
import sys
import weakref
from datetime import datetime

import ipywidgets
import pytest
import torch
import torch.nn.functional as F
from conftest import Own, picture, pixels

from consistency_models import from_pretrained, preset_mask
from consistency_models.editing import LUMINANCE
from consistency_models.editor import TASKS, _examples, _read_upload, edit_picture, editing_explorer
from consistency_models.pictures import to_png

pytestmark = pytest.mark.usefixtures("no_threads")
digits, faces, mnist = (from_pretrained(name) for name in ("digits", "avatars", "mnist"))
digit, face = _examples(digits)[0][:1], _examples(faces)[0][:1]
own = to_png((torch.rand(3, 40, 60) * 255).byte())


def painted(x, value=1.): return preset_mask("bottom", *x.shape[2:]), torch.full((3, *x.shape[2:]), value)


# ---------------------------------------------------------------- Equals the paper

def test_inpainting_keeps_what_is_not_painted_and_hides_the_rest():
    given, results = edit_picture(digits, "inpaint", digit, painted(digit), 3, [80., 1.])
    assert torch.equal(results[:, :, :4], digit[:, :, :4].expand(3, -1, -1, -1))
    assert torch.equal(given[:, :, :4], digit[:, :, :4]) and given[:, :, 4:].abs().max() == 0
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("net, x", ((digits, digit), (faces, face)), ids=("gray", "color"))
def test_strokes_are_laid_on_the_picture_and_remain_visible(net, x):
    mask, colors = painted(x)
    given, results = edit_picture(net, "stroke to image", x, (mask, colors), 2, [0.3])
    assert torch.equal(given, torch.where(mask == 1, 1., x)) and results[..., -2:, :].mean() > 0.6


@pytest.mark.parametrize("net, x, factor", ((faces, face, 2), (mnist, _examples(mnist)[0][:1], 4)), ids=("two", "four"))
def test_enlarging_keeps_the_averages_of_blocks_of_pixels(net, x, factor):
    given, results = edit_picture(net, "enlarge", x, n=2, sigmas=[80., 1.])
    low = F.avg_pool2d(x, factor)
    assert given.shape == x.shape and torch.allclose(F.avg_pool2d(given, factor), low, atol=1e-5)
    assert (F.avg_pool2d(results, factor) - low).abs().mean() < 0.02


def test_colorizing_keeps_the_luminance():
    given, results = edit_picture(faces, "colorize", face, n=2, sigmas=[80., 1.])
    gray = lambda x: torch.einsum("nchw,c->nhw", x, torch.tensor(LUMINANCE))
    assert torch.allclose(given[:, 0], gray(face), atol=1e-5) and given.shape == face.shape
    assert (gray(results) - gray(face)).abs().mean() < 0.05


def test_denoising_comes_back_near_the_picture():
    given, results = edit_picture(digits, "denoise", digit, n=3, sigmas=[0.2], labels=_examples(digits)[1][0])
    assert 0.15 < (given - digit).std() < 0.25 and (results - digit).square().mean() < 0.2**2     # what is given is noisy
    assert not torch.equal(results[0], results[1])


def test_interpolation_has_the_two_noises_at_its_ends():
    two, five = (edit_picture(digits, "interpolate", digit, n=n, sigmas=[80.], labels=3)[1] for n in (2, 5))
    assert torch.allclose(two, five[[0, -1]], atol=1e-3) and not torch.allclose(five[0], five[2], atol=0.1)


# ---------------------------------------------------------------- Keeps its promises

def test_the_editor_draws_each_task():
    live, seen = editing_explorer(faces), set()
    live.controls["rounds"].value = 1
    for task in TASKS:
        live.controls["task"].value = task
        seen.add(picture(live))
    assert live.controls["task"].options == tuple(TASKS) and len(seen) == 6


def test_every_slider_of_the_editor_changes_the_results():
    live, seen = editing_explorer(digits), []
    for name, value in (("label", 3), ("first", 5.), ("rounds", 2), ("seed", 1), ("n", 2)):
        live.controls[name].value = value
        seen.append(picture(live))
    assert len(set(seen)) == len(seen)


def test_painting_a_mask_redraws():
    live = editing_explorer(digits)
    before = picture(live)
    live.surface.set_mask(preset_mask("left", 8, 8))
    assert picture(live) != before and picture(live) == live.draw(**live.values())


def test_next_picture_takes_its_class_along_and_keeps_the_mask():
    live = editing_explorer(digits)
    image = live.surface.image
    live.preset.value = "left"
    live.show_image(1)
    assert live.surface.image != image and live.controls["label"].value == live.labels[1]
    assert torch.equal(live.surface.layers()[0], preset_mask("left", 8, 8)) and picture(live)
    live.show_image(len(live.images))
    assert live.number == 0


def test_a_painting_goes_with_its_picture():
    live = editing_explorer(faces, "stroke to image")
    live.surface.set_mask(preset_mask("left", 16, 16))
    live.show_image(1)
    assert live.surface.strokes == "" and picture(live)


def test_another_task_begins_with_a_level_that_suits_it():
    live, drawn = editing_explorer(digits), []
    live.draw = lambda task, first, **others: drawn.append((task, round(first))) or b""
    for task in ("denoise", "inpaint"): live.controls["task"].value = task
    assert drawn == [("denoise", 1), ("inpaint", 80)]


@pytest.mark.parametrize("value", (
    ({"name": "a.png", "content": memoryview(own)},), {"a.png": {"metadata": {}, "content": own}}), ids=("8", "7"))
def test_uploads_are_read_in_the_form_of_ipywidgets_8_and_of_7(value):
    assert _read_upload(value, (1, 8, 8)).shape == (1, 1, 8, 8)


def upload(live, content):
    """Choose a file, as the page does it in ipywidgets 7 or 8; the size is what a page claims."""
    about = {"name": "a.png", "type": "image/png", "size": 1}
    if ipywidgets.__version__ > "8":
        live.upload.value = ({**about, "last_modified": datetime(2024, 1, 1), "content": memoryview(content)},)
    else:
        live.upload.set_state({"metadata": [about], "data": [memoryview(content)], "_counter": live.upload._counter + 1})


def test_the_same_file_and_the_same_mask_may_be_chosen_again():
    live = editing_explorer(digits)
    upload(live, own)
    uploaded = picture(live)
    assert live.own.shape == (1, 1, 8, 8)
    live.show_image(1)
    assert live.own is None and picture(live) != uploaded
    upload(live, own)
    live.controls["label"].value = live.labels[0]
    assert pixels(picture(live)) == pixels(uploaded)
    live.preset.value = "left"
    live.surface.strokes = ""
    live.preset.value = "left"
    assert torch.equal(live.surface.layers()[0], preset_mask("left", 8, 8))


def test_a_network_of_ones_own_draws_its_own_examples():
    live = editing_explorer(Own())
    assert picture(live) == live.draw(**live.values()) and live.images.shape == (12, 1, 8, 8) and live.labels == [-1] * 12


def test_closing_lets_go_of_the_network():
    net = from_pretrained("digits")
    live, gone = editing_explorer(net), weakref.ref(net)
    del net
    live.close()
    gc.collect()
    assert gone() is None and live.surface.comm is None and live.upload.comm is None


@pytest.mark.slow
def test_a_script_with_a_widget_ends():
    program = "from consistency_models.widgets import *; editing_explorer('digits')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


# ---------------------------------------------------------------- Refuses

def test_an_unknown_task_is_refused_and_one_that_does_not_suit_the_model():
    with pytest.raises(ValueError, match="task must be one of inpaint"): editing_explorer(digits, "sing")
    with pytest.raises(ValueError, match="model of color pictures"): editing_explorer(digits, "colorize")
    with pytest.raises(ValueError, match="draws in gray"): edit_picture(digits, "colorize", digit)


@pytest.mark.parametrize("content, words", (
    (b"no picture", "no picture that can be read"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n", "no picture that can be read"),  # Pillow hands this to Ghostscript
    (bytes(20_000_000), "20 MB")), ids=("text", "PostScript", "large"))
def test_an_upload_that_is_no_small_picture_is_refused_in_words(content, words):
    live = editing_explorer(digits)
    before = picture(live)
    upload(live, content)
    assert words in live.message.value and live.own is None and live.picture.value == before
