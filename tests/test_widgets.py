"""Widgets without a browser: the functions behind them, and the frame that calls them."""

import gc
import io
import itertools
import subprocess
import sys
import threading
import weakref
from datetime import datetime

import ipywidgets
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from consistency_models import Trainer, UNet, from_pretrained, load_digits, preset_mask, to_png
from consistency_models import widgets as w

digits = from_pretrained("digits")


def pixels(png): return torch.tensor(list(Image.open(io.BytesIO(png)).convert("RGB").tobytes()), dtype=torch.uint8)


def picture(live):
    """The picture of an explorer that has no complaint."""
    assert live.message.value == ""
    return live.picture.value


@pytest.fixture(autouse=True)
def no_thread_is_started(monkeypatch):
    """What a thread sets on a widget is not shown on Colab."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread} was started"))


# The frame

def test_errors_are_shown_escaped_and_go_when_all_is_well_again():
    def draw(n):
        if n < 0: raise ValueError("n must be <positive>")
        return to_png(torch.zeros(1, n + 1, 4, dtype=torch.uint8))
    live = w.Live(draw, {"n": ipywidgets.IntSlider(1, min=-5, max=5)})
    before = picture(live)
    live.controls["n"].value = -1
    assert "n must be &lt;positive&gt;" in live.message.value and live.picture.value == before
    live.controls["n"].value = 3
    assert picture(live) != before


def test_whoever_waits_is_told_and_may_interrupt():
    said = []
    def draw(n):
        said.append(live.message.value if n else "")
        if n == 1: raise KeyboardInterrupt
        return to_png(torch.zeros(1, n + 1, 4, dtype=torch.uint8))
    live = w.Live(draw, {"n": ipywidgets.IntSlider(0, max=5)})
    before = picture(live)
    with pytest.raises(KeyboardInterrupt): live.controls["n"].value = 1
    assert "working" in said[-1] and live.message.value == "stopped" and live.picture.value == before
    live.controls["n"].value = 2
    assert picture(live) != before


def test_changes_that_belong_together_are_drawn_once():
    drawn = []
    live = w.Live(lambda **values: drawn.append(values) or b"", {"a": ipywidgets.IntSlider(0), "b": ipywidgets.IntSlider(0)})
    with live.hold(): live.controls["a"].value = live.controls["b"].value = 7
    assert drawn == [{"a": 0, "b": 0}, {"a": 7, "b": 7}]


def test_a_script_with_a_widget_ends():
    run = subprocess.run([sys.executable, "-c", "from consistency_models.widgets import *; editing_explorer('digits')"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr


@pytest.mark.parametrize("make", (w.sampling_explorer, w.editing_explorer))
def test_closing_lets_go_of_everything(make):
    net = from_pretrained("digits")
    live, gone = make(net), weakref.ref(net)
    parts = [live, live.picture, *live.controls.values()]
    del net
    live.close()
    gc.collect()
    assert gone() is None and all(part.comm is None for part in parts)


# Sampling

def test_the_picture_shows_noise_steps_and_more_samples():
    steps = w.sample_steps(digits, 16, [80., 0.8], seed=3)
    assert [sigma for sigma, *_ in steps] == [80., 0.8] and steps[0][2].shape == (16, 1, 8, 8)
    noise, first, last = steps[0][1][:8] / 80, steps[0][2][:8], steps[1][2]
    names = ["noise", "step 1\nσ = 80", "step 2\nσ = 0.8", "more"]
    expected = w.labeled_grid(torch.cat([noise, first, last]), 8, names)
    assert torch.equal(pixels(w.sampling_picture(digits, 8, 2, [80., 0.8], seed=3)), pixels(expected))


def test_a_slider_changes_one_thing():
    first, again, later = ([x for *_, x in w.sample_steps(digits, 4, [80., s], seed=1)] for s in (0.8, 0.8, 0.5))
    assert torch.equal(first[1], again[1]) and torch.equal(first[0], later[0]) and not torch.equal(first[1], later[1])


@pytest.mark.parametrize("shape", ((1, 8, 8), (3, 28, 20), (3, 300, 300)))
def test_a_grid_has_the_width_asked_for_and_keeps_the_pixels(shape):
    x = torch.rand(5, *shape) * 2 - 1
    image = Image.open(io.BytesIO(w.labeled_grid(x, 3, ["one", "two"], list("abcde"), width=600)))
    assert image.width == 600 and image.mode == ("L" if shape[0] == 1 else "RGB")
    bare = Image.open(io.BytesIO(w.labeled_grid(x[:1], 1, width=8 * shape[2] + 8)))
    corner = torch.tensor(bare.getpixel((4, 4))).flatten()
    if shape[2] < 300: assert (corner - (x[0, :, 0, 0] * 127.5 + 127.5)).abs().max() <= 0.5


def test_labels_are_asked_for_or_taken_in_turn():
    assert w._class_labels(digits, -1, 12)["class_labels"].tolist() == [*range(10), 0, 1]
    assert w._class_labels(digits, 7, 3)["class_labels"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("levels, expected", (((), [80.]), ((3, 0.5), [80., 3., 0.5]), ((0.5, 3, 0.5), [80., 3., 0.5]), ((80.,), [80.])))
def test_levels_are_put_in_order(levels, expected):
    assert w.ordered_levels(*levels) == expected


def test_the_picture_is_there_when_the_assignment_returns():
    live = w.sampling_explorer(digits)
    for seed in range(101):
        live.controls["seed"].value = seed
        if seed in (1, 50, 100): assert torch.equal(pixels(picture(live)), pixels(live.draw(**(live.values() | {"seed": seed}))))


def test_every_control_of_the_sampling_explorer_works():
    live, seen = w.sampling_explorer(digits), []
    for name, value in (("seed", 5), ("label", 3), ("rows", 3), ("steps", 4), ("sigma2", 5.), ("sigma3", 1.5), ("sigma4", 0.2), ("clip", False)):
        live.controls[name].value = value
        seen.append(picture(live))
    assert len(set(seen)) == len(seen)


def test_a_model_of_anything_but_images_is_refused():
    net = UNet()
    for net.notes in ({}, {"shape": [2]}):
        with pytest.raises(ValueError, match="shape of its images"): w.load_model(net)


def test_a_network_of_ones_own_needs_notes_alone():
    class Own(torch.nn.Module):
        sigma_data, notes = 0.5, {"shape": [1, 8, 8]}
        def __init__(self):
            super().__init__()
            self.scale, self.drop = torch.nn.Parameter(torch.ones(())), torch.nn.Dropout(0.5)
        def forward(self, x, sigma): return self.drop(self.scale * x.tanh())
    for make in (w.sampling_explorer, w.editing_explorer):
        live = make(Own())
        assert picture(live) == live.draw(**live.values())


# The paint surface

@pytest.mark.parametrize("name", ("top", "center", "random", "letters"))
def test_masks_travel_through_data_urls(name):
    surface, mask = w.PaintSurface(width=20, height=12), preset_mask(name, 12, 20)
    assert surface.layers()[0].sum() == 0
    surface.set_mask(mask)
    assert torch.equal(surface.layers()[0], mask)


@pytest.mark.parametrize("url", ("data:image/svg+xml;base64,AAAA", "hello", "data:image/png;base64," + "A" * 6_000_000, "data:image/png;base64,AAAA"))
def test_other_urls_are_refused(url):
    with pytest.raises((ValueError, OSError)): w.from_data_url(url)


def test_painted_colours_arrive():
    surface = w.PaintSurface(width=4, height=4, colour="#FF0000")
    surface.set_mask(torch.ones(1, 4, 4))
    assert torch.equal(surface.layers()[1][:, 0, 0], torch.tensor([1., -1., -1.]))


# Editing

@pytest.mark.parametrize("model", ("digits", "shapes"))
@pytest.mark.parametrize("task", w.TASKS)
def test_each_task_gives_results_of_the_right_shape(model, task):
    net = digits if model == "digits" else from_pretrained("shapes")
    x = w.example_images(net, 2)[0][:1]
    strokes = (preset_mask("bottom", *x.shape[2:]), torch.ones(3, *x.shape[2:]))
    if task == "colourise" and model == "digits":
        with pytest.raises(ValueError, match="draws in grey"): w.edit_picture(net, task, x, strokes)
        return
    given, results = w.edit_picture(net, task, x, strokes, 3, [80., 1.] if task != "denoise" else [0.5], label=1)
    assert given.shape == x.shape and results.shape == (3, *x.shape[1:]) and results.isfinite().all()
    assert not torch.equal(results[0], results[1])


def test_painting_a_mask_redraws_and_keeps_what_is_known():
    live = w.editing_explorer(digits)
    before = picture(live)
    live.surface.set_mask(preset_mask("left", 8, 8))
    assert picture(live) != before
    x = live.current()
    _, results = w.edit_picture(digits, "inpaint", x, live.surface.layers(), 2, [80., 1.])
    assert torch.equal(results[..., 4:], x[..., 4:].expand(2, -1, -1, -1))


def test_next_picture_and_presets():
    live = w.editing_explorer(digits)
    picture(live)
    image = live.surface.image
    live.preset.value = "left"
    assert torch.equal(live.surface.layers()[0], preset_mask("left", 8, 8))
    live.show_image(1)
    assert live.surface.image != image and live.surface.layers()[0].sum() == 32 and live.controls["label"].value == live.labels[1]
    live.show_image(len(live.images))
    assert live.number == 0


def upload(live, content):
    """Choose a file, as the page does it in ipywidgets 7 or 8; the size is what a page claims."""
    about = {"name": "a.png", "type": "image/png", "size": 1}
    if ipywidgets.__version__ > "8": live.upload.value = ({**about, "last_modified": datetime.now(), "content": memoryview(content)},)
    else: live.upload.set_state({"metadata": [about], "data": [memoryview(content)], "_counter": live.upload._counter + 1})


own = to_png((torch.rand(3, 40, 60) * 255).byte())


@pytest.mark.parametrize("value", (({"name": "a.png", "content": memoryview(own)},), {"a.png": {"metadata": {}, "content": own}}))
def test_uploads_are_read_in_the_form_of_ipywidgets_8_and_of_7(value):
    assert w.read_upload(value, (1, 8, 8)).shape == (1, 1, 8, 8)


def test_uploads_are_scaled_and_checked():
    live = w.editing_explorer(digits)
    upload(live, own)
    assert live.own.shape == (1, 1, 8, 8) and picture(live)
    for bad in (b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"):  # Pillow hands the second to Ghostscript
        upload(live, bad)
        assert "no picture that can be read" in live.message.value
    upload(live, bytes(20_000_000))
    assert "20 MB" in live.message.value


def test_the_same_file_and_the_same_mask_may_be_chosen_again():
    live = w.editing_explorer(digits)
    upload(live, own)
    uploaded = picture(live)
    live.show_image(1)
    assert live.own is None and picture(live) != uploaded
    upload(live, own)
    with live.hold(): live.controls["label"].value = live.labels[0]
    assert torch.equal(pixels(picture(live)), pixels(uploaded))
    live.preset.value = "left"
    live.surface.strokes = ""
    live.preset.value = "left"
    assert torch.equal(live.surface.layers()[0], preset_mask("left", 8, 8))


def test_an_unknown_task_is_refused_and_one_that_does_not_suit_the_model():
    with pytest.raises(ValueError, match="task must be one of"): w.editing_explorer(digits, "sing")
    with pytest.raises(ValueError, match="colour pictures"): w.editing_explorer(digits, "colourise")


def test_another_task_begins_with_a_level_that_suits_it():
    live = w.editing_explorer(digits)
    for task, first in (("denoise", 1.), ("inpaint", 80.)):
        live.controls["task"].value = task
        assert live.controls["first"].value == pytest.approx(first, rel=0.03)


# Formulas, paths, training

@pytest.mark.parametrize("make", (w.schedule_explorer, w.parameterization_explorer, w.timesteps_explorer, w.huber_explorer, w.trajectory_explorer))
def test_each_control_of_an_explorer_changes_its_picture(make):
    live = make()
    for name, control in live.controls.items():
        before = picture(live)
        if isinstance(control, ipywidgets.Dropdown): control.value = control.options[1]
        else: control.value = control.value * 2 if hasattr(control, "base") else control.max
        assert picture(live) != before, name


def test_drawn_points():
    mask = torch.zeros(1, 11, 11)
    mask[0, 0, 10] = mask[0, 10, 0] = 1
    assert sorted(w.drawn_points(mask).tolist()) == [[-1, -1], [1, 1]]
    assert len(w.drawn_points(torch.ones(1, 40, 40))) == 250
    with pytest.raises(ValueError, match="draw something"): w.drawn_points(torch.zeros(1, 4, 4))


def test_drawing_switches_to_the_drawing():
    live = w.trajectory_explorer()
    before = picture(live)
    live.surface.set_mask(preset_mask("center", 56, 56))
    assert picture(live) != before and live.controls["points"].value == "your drawing"


def make_trainer(**settings): return Trainer(UNet(channels=(8, 16)), TensorDataset(load_digits()[0][:64]), batch_size=8, **settings)


def blank(net): return torch.zeros(4, 1, 8, 8)


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed while a test runs."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


def test_a_dashboard_follows_a_run_to_its_end(displayed):
    states = list(w.training_dashboard(make_trainer(steps=6).train(), blank, every=2))
    bar, numbers, image = displayed[0].children
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6] and bar.value == bar.max == 6
    assert "step 6 of 6" in numbers.value and image.value[1:4] == b"PNG"


def test_leaving_the_loop_of_a_dashboard_ends_the_run_with_a_checkpoint(tmp_path, displayed):
    trainer = make_trainer(steps=10**6, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        for state in w.training_dashboard(trainer.train(), blank):
            if state.step == 3: raise KeyboardInterrupt
    again = make_trainer(steps=10**6, out=tmp_path)
    assert again.resume() and again.step == 3


@pytest.mark.parametrize("cut", (lambda states: itertools.islice(states, 3), list, lambda states: map(lambda s: s, states)))
def test_a_dashboard_takes_any_iterator_of_states(cut, displayed):
    states = cut(make_trainer(steps=3).train())
    assert [s.step for s in w.training_dashboard(states, blank)] == [1, 2, 3]


def test_a_dashboard_shows_a_run_of_one_step(displayed):
    for _ in w.training_dashboard(make_trainer(steps=1).train(), blank): pass
    bar, numbers, image = displayed[0].children
    assert bar.value == bar.max == 1 and "step 1 of 1" in numbers.value and image.value[1:4] == b"PNG"


def test_wrong_arguments_of_a_dashboard_are_named_when_it_is_made():
    with pytest.raises(TypeError, match="trainer.train()"): w.training_dashboard(make_trainer(steps=2), blank)
    with pytest.raises(ValueError, match="every must be at least 1"): w.training_dashboard(make_trainer(steps=2).train(), blank, every=0)


def test_an_error_in_a_dashboard_is_not_swallowed(displayed):
    def fails(net): raise ValueError("no samples")
    with pytest.raises(ValueError, match="no samples"):
        for _ in w.training_dashboard(make_trainer(steps=2).train(), fails, every=1): pass


def test_a_film_has_a_frame_for_each_setting():
    live = w.parameterization_explorer()
    picture(live)
    film = Image.open(io.BytesIO(w.film(live, [{"sigma_data": s} for s in (0.1, 0.5, 1.)])))
    assert film.n_frames == 3 and film.format == "PNG"


def test_the_app_shows_one_explorer_after_the_other():
    menu, stage = w.app().children
    seen = {}
    for name in [*menu.options, menu.options[0]]:
        menu.value = name
        (live,) = stage.children
        assert picture(live)
        assert seen.setdefault(name, live) is live
    assert len(seen) == 8


def test_a_page_of_the_app_that_cannot_be_made_says_why_and_is_tried_again(monkeypatch):
    make, tries = w.schedule_explorer, []
    def fails_once():
        tries.append(1)
        if len(tries) == 1: raise OSError("no <weights>")
        return make()
    monkeypatch.setattr(w, "schedule_explorer", fails_once)
    menu, stage = w.app().children
    menu.value = "Schedule"
    assert "no &lt;weights&gt;" in stage.children[0].value
    menu.value = "Loss"
    menu.value = "Schedule"
    assert picture(stage.children[0])
