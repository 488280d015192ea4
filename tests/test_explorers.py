"""The explorers of samples, formulas and paths, and their pictures."""

import io

import ipywidgets
import pytest
import torch
from conftest import Own, picture, pixels, seeded
from PIL import Image

from consistency_models import explorers as e
from consistency_models import from_pretrained, preset_mask
from consistency_models.live import labeled_grid
from consistency_models.pretrained import sample

pytestmark = pytest.mark.usefixtures("no_threads")
digits = from_pretrained("digits")


# ---------------------------------------------------------------- Equals the paper

def test_the_picture_of_samples_shows_the_noise_the_steps_of_algorithm_1_and_more_samples():
    noise = torch.randn(16, 1, 8, 8, generator=seeded(3))
    first, last = (sample(digits, 16, sigmas, seed=3) for sigmas in ([80.], [80., 0.8]))
    rows = torch.cat([noise[:8], first[:8], last])
    expected = labeled_grid(rows, 8, ["noise", "step 1\nσ = 80", "step 2\nσ = 0.8", "more"])
    assert pixels(e.sampling_picture(digits, 8, 2, [80., 0.8], seed=3)) == pixels(expected)


# ---------------------------------------------------------------- Keeps its promises

def test_levels_are_put_in_order():
    assert e._descending(80, 0.5, 3, 0.5, 80.00000001) == [80, 3, 0.5]


def test_the_picture_is_there_when_the_assignment_returns():
    live = e.sampling_explorer(digits)
    for seed in range(101):
        live.controls["seed"].value = seed
        if seed in (1, 100): assert picture(live) == live.draw(**live.values())


def test_every_control_of_the_sampling_explorer_works():
    live, seen = e.sampling_explorer(digits), []
    moves = {"seed": 5, "label": 3, "rows": 3, "steps": 4, "sigma2": 5., "sigma3": 1.5, "sigma4": 0.2, "clip": False}
    for name, value in moves.items():
        live.controls[name].value = value
        seen.append(picture(live))
    assert len(set(seen)) == len(seen)


def test_only_the_levels_of_steps_that_are_made_are_seen_and_used():
    live = e.sampling_explorer(digits)
    shown = lambda: [live.controls[f"sigma{i}"].layout.display for i in (2, 3, 4)]
    assert shown() == [None, "none", "none"]
    live.controls["steps"].value = 3
    assert shown() == [None, None, "none"]
    live.controls["steps"].value = 1
    assert shown() == ["none"] * 3 and picture(live) == e.sampling_picture(digits, 8, 2, [80.])


def test_a_network_of_ones_own_needs_notes_alone():
    live = e.sampling_explorer(Own())
    assert picture(live) == live.draw(**live.values())


@pytest.mark.parametrize("name", ("schedule", "parameterization", "timesteps", "huber", "trajectory"))
def test_each_control_of_an_explorer_changes_its_picture(name):
    live = getattr(e, f"{name}_explorer")()
    for name, control in live.controls.items():
        before = picture(live)
        if isinstance(control, ipywidgets.Dropdown): control.value = control.options[1]
        else: control.value = control.value * 2 if hasattr(control, "base") else control.max
        assert picture(live) != before, name


def test_a_drawing_becomes_points():
    mask = torch.zeros(1, 11, 11)
    mask[0, 0, 10] = mask[0, 10, 0] = 1
    assert sorted(e._drawn_points(mask).tolist()) == [[-1, -1], [1, 1]]
    assert len(e._drawn_points(torch.ones(1, 40, 40))) == 250


def test_drawing_switches_to_the_drawing():
    live = e.trajectory_explorer()
    live.surface.set_mask(preset_mask("center", 56, 56))
    assert live.controls["points"].value == "your drawing"
    assert picture(live) == e.path_picture(e._drawn_points(preset_mask("center", 56, 56)), live.controls["sigma"].value)


def test_a_film_has_a_frame_for_each_setting():
    live = e.parameterization_explorer()
    film = Image.open(io.BytesIO(e.film(live, [{"sigma_data": s} for s in (0.1, 0.5, 1.)], 400)))
    assert film.format == "PNG" and film.n_frames == 3 and film.info["duration"] == 400


# ---------------------------------------------------------------- Refuses

def test_an_empty_drawing_is_refused_in_words():
    live = e.trajectory_explorer()
    live.controls["points"].value = "your drawing"
    assert "draw something" in live.message.value
