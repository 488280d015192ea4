"""Widgets without a browser: the functions behind them, and the frame that calls them."""

import io
import threading
import time

import ipywidgets
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from consistency_models import Trainer, UNet, from_pretrained, image_grid, load_digits, preset_mask, to_png
from consistency_models import widgets as w

digits = from_pretrained("digits")


def pixels(png): return torch.tensor(list(Image.open(io.BytesIO(png)).convert("RGB").tobytes()), dtype=torch.uint8)


def settled(live):
    """The picture of an explorer that has nothing left to do."""
    assert live.worker.wait(30) and live.message.value == ""
    return live.picture.value


# The worker

def test_the_newest_request_wins_and_the_last_is_never_lost():
    seen, gate = [], threading.Event()
    worker = w.LatestWins(lambda n: gate.wait(5) and n, seen.append, pytest.fail)
    for n in range(50): worker.ask(n)
    gate.set()
    assert worker.wait(5) and seen[-1] == 49 and len(seen) <= 2


def test_asking_never_waits_for_the_work():
    worker = w.LatestWins(lambda n: time.sleep(0.3), lambda r: None, pytest.fail)
    start = time.perf_counter()
    for n in range(100): worker.ask(n)
    assert time.perf_counter() - start < 0.2 and worker.wait(5)


def test_a_worker_goes_on_after_an_error():
    seen, errors = [], []
    worker = w.LatestWins(lambda n: 1 / n, seen.append, errors.append)
    for n in (0, 2):
        worker.ask(n)
        assert worker.wait(5)
    assert seen == [0.5] and isinstance(errors[0], ZeroDivisionError) and not worker.busy


# The frame

def test_errors_are_shown_escaped_and_go_when_all_is_well_again():
    def draw(n):
        if n < 0: raise ValueError("n must be <positive>")
        return to_png(torch.zeros(1, n + 1, 4, dtype=torch.uint8))
    live = w.Live(draw, {"n": ipywidgets.IntSlider(1, min=-5, max=5)})
    before = settled(live)
    live.controls["n"].value = -1
    assert live.worker.wait(5) and "n must be &lt;positive&gt;" in live.message.value and live.picture.value == before
    live.controls["n"].value = 3
    assert settled(live) != before


def test_closing_lets_go_of_everything():
    live = w.sampling_explorer(digits)
    settled(live)
    parts = [live, live.picture, *live.controls.values()]
    live.close()
    assert live.draw is None and all(part.comm is None for part in parts)


# Sampling

def test_the_picture_is_that_of_the_sampler():
    steps = w.sample_steps(digits, 16, [80., 0.8], seed=3)
    assert len(steps) == 2 and steps[0].shape == (16, 1, 8, 8)
    one = w.sampling_picture(digits, 8, 2, [80.], seed=3)
    assert torch.equal(pixels(one), pixels(to_png(image_grid(steps[0], 8))))


def test_a_slider_changes_one_thing():
    first, again, later = (w.sample_steps(digits, 4, [80., s], seed=1) for s in (0.8, 0.8, 0.5))
    assert torch.equal(first[1], again[1]) and torch.equal(first[0], later[0]) and not torch.equal(first[1], later[1])


def test_labels_are_asked_for_or_taken_in_turn():
    assert w._class_labels(digits, -1, 12)["class_labels"].tolist() == [*range(10), 0, 1]
    assert w._class_labels(digits, 7, 3)["class_labels"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("levels, expected", (((), [80.]), ((3, 0.5), [80., 3., 0.5]), ((0.5, 3, 0.5), [80., 3., 0.5]), ((80.,), [80.])))
def test_levels_are_put_in_order(levels, expected):
    assert w.ordered_levels(*levels) == expected


def test_hundred_moves_end_in_the_last_picture():
    live = w.sampling_explorer(digits)
    for seed in range(101): live.controls["seed"].value = seed
    assert torch.equal(pixels(settled(live)), pixels(w.sampling_picture(digits, 8, 2, [80.], seed=100)))


def test_every_control_of_the_sampling_explorer_works():
    live, seen = w.sampling_explorer(digits), []
    for name, value in (("seed", 5), ("label", 3), ("rows", 3), ("steps", 3), ("sigma2", 5.), ("sigma3", 1.5), ("clip", False)):
        live.controls[name].value = value
        seen.append(settled(live))
    assert len(set(seen)) >= 6


def test_a_model_without_shape_is_refused():
    with pytest.raises(ValueError, match="shape of its samples"): w.load_model(UNet())


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
    before = settled(live)
    live.surface.set_mask(preset_mask("bottom", 8, 8))
    assert settled(live) != before
    x = live.current()
    _, results = w.edit_picture(digits, "inpaint", x, live.surface.layers(), 2, [80., 1.])
    assert torch.equal(results[:, :, :4], x[:, :, :4].expand(2, -1, -1, -1))


def test_next_picture_and_presets():
    live = w.editing_explorer(digits)
    settled(live)
    image = live.surface.image
    live.preset.value = "left"
    assert torch.equal(live.surface.layers()[0], preset_mask("left", 8, 8))
    live.show_image(1)
    assert live.surface.image != image and live.surface.strokes == "" and live.controls["label"].value == live.labels[1]
    live.show_image(len(live.images))
    assert live.number == 0


def upload(content): return {"new": ({"name": "a.png", "type": "image/png", "size": 1, "content": memoryview(content)},)}  # the size is what a page claims


def test_uploads_are_read_scaled_and_checked():
    live = w.editing_explorer(digits)
    settled(live)
    live.take_upload(upload(to_png((torch.rand(3, 40, 60) * 255).byte())))
    assert live.uploaded.shape == (1, 1, 8, 8) and settled(live)
    live.take_upload(upload(b"no picture"))
    assert "no picture that can be read" in live.message.value
    live.take_upload(upload(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"))  # Pillow hands these to Ghostscript
    assert "no picture that can be read" in live.message.value
    live.take_upload(upload(bytes(20_000_000)))
    assert "20 MB" in live.message.value


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task must be one of"): w.editing_explorer(digits, "sing")


# Formulas, paths, training

@pytest.mark.parametrize("make", (w.schedule_explorer, w.parameterization_explorer, w.timesteps_explorer, w.huber_explorer, w.trajectory_explorer))
def test_each_control_of_an_explorer_changes_its_picture(make):
    live = make()
    for name, control in live.controls.items():
        before = settled(live)
        if isinstance(control, ipywidgets.Dropdown): control.value = control.options[1]
        else: control.value = control.value * 2 if hasattr(control, "base") else control.max
        assert settled(live) != before, name


def test_drawn_points():
    mask = torch.zeros(1, 11, 11)
    mask[0, 0, 10] = mask[0, 10, 0] = 1
    assert sorted(w.drawn_points(mask).tolist()) == [[-1, -1], [1, 1]]
    assert len(w.drawn_points(torch.ones(1, 40, 40))) == 250
    with pytest.raises(ValueError, match="draw something"): w.drawn_points(torch.zeros(1, 4, 4))


def test_drawing_switches_to_the_drawing():
    live = w.trajectory_explorer()
    before = settled(live)
    live.surface.set_mask(preset_mask("center", 56, 56))
    assert settled(live) != before and live.controls["points"].value == "your drawing"


def make_trainer(**settings): return Trainer(UNet(channels=(8, 16)), TensorDataset(load_digits()[0][:64]), batch_size=8, **settings)


def blank(net): return torch.zeros(4, 1, 8, 8)


def wait_for(condition, seconds=30):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_closing_a_dashboard_stops_its_run(tmp_path):
    trainer = make_trainer(steps=100_000, out=tmp_path)
    dashboard = w.training_dashboard(trainer, blank, every=10**6)
    wait_for(lambda: trainer.step > 2)
    dashboard.close()
    assert not dashboard.thread.is_alive() and len(trainer.checkpoints()) == 1


def test_a_second_dashboard_of_a_running_trainer_says_so():
    trainer = make_trainer(steps=100_000)
    first = w.training_dashboard(trainer, blank, every=10**6)
    wait_for(lambda: trainer.step > 2)
    second = w.training_dashboard(trainer, blank, every=10**6)
    second.thread.join(30)
    assert "another thread" in second.numbers.value and first.thread.is_alive()
    first.close()


def test_a_dashboard_follows_a_run_to_its_end():
    dashboard = w.training_dashboard(make_trainer(steps=6), blank, every=2)
    dashboard.thread.join(30)
    assert dashboard.bar.value == 6 and dashboard.history[-1][0] == 6 and dashboard.button.disabled
    assert "step 6 of 6" in dashboard.numbers.value and dashboard.picture.value[1:4] == b"PNG"


def test_the_stop_button_ends_a_run_with_a_checkpoint(tmp_path):
    trainer = make_trainer(steps=10**6, out=tmp_path)
    dashboard = w.training_dashboard(trainer, blank, every=10**6)
    while trainer.step < 2: time.sleep(0.01)
    dashboard.button.click()
    dashboard.thread.join(30)
    assert not dashboard.thread.is_alive() and len(trainer.checkpoints()) == 1
    again = make_trainer(steps=10**6, out=tmp_path)
    assert again.resume() and again.step == trainer.step


def test_an_error_in_training_is_shown():
    def fails(net): raise ValueError("no <samples>")
    dashboard = w.training_dashboard(make_trainer(steps=2), fails, every=1)
    dashboard.thread.join(30)
    assert "no &lt;samples&gt;" in dashboard.numbers.value and dashboard.button.disabled


def test_a_film_has_a_frame_for_each_setting():
    live = w.parameterization_explorer()
    settled(live)
    film = Image.open(io.BytesIO(w.film(live, [{"sigma_data": s} for s in (0.1, 0.5, 1.)])))
    assert film.n_frames == 3 and film.format == "PNG"


def test_the_app_holds_all_explorers():
    menu, stack = w.app().children
    assert len(stack.children) == len(menu.options) == 8
    for live in stack.children: settled(live)
