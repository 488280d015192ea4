"""The frame of all widgets, without a browser."""

import gc
import io
import weakref

import ipywidgets
import pytest
import torch
from conftest import picture
from PIL import Image

from consistency_models import UNet
from consistency_models.live import Live, figure_png, label_menu, labeled_grid, level_slider, weight_slider
from consistency_models.pictures import to_png

pytestmark = pytest.mark.usefixtures("no_threads")


def blank(n): return to_png(torch.zeros(1, n + 1, 4, dtype=torch.uint8))


# ---------------------------------------------------------------- Keeps its promises

def test_errors_are_shown_escaped_and_go_when_all_is_well_again():
    def draw(n):
        if n < 0: raise ValueError("n must be <positive>")
        return blank(n)
    live = Live(draw, {"n": ipywidgets.IntSlider(1, min=-5, max=5)})
    before = picture(live)
    live.controls["n"].value = -1
    assert "n must be &lt;positive&gt;" in live.message.value and live.picture.value == before
    live.controls["n"].value = 3
    assert picture(live) == blank(3)


def test_whoever_waits_is_told_and_may_interrupt():
    said = []
    def draw(n):
        said.append(live.message.value if n else "")
        if n == 1: raise KeyboardInterrupt
        return blank(n)
    live = Live(draw, {"n": ipywidgets.IntSlider(0, max=5)})
    before = picture(live)
    with pytest.raises(KeyboardInterrupt): live.controls["n"].value = 1
    assert "working" in said[-1] and live.message.value == "stopped" and live.picture.value == before
    live.controls["n"].value = 2
    assert picture(live) == blank(2)


def test_changes_that_belong_together_are_drawn_once():
    drawn = []
    controls = {"a": ipywidgets.IntSlider(0), "b": ipywidgets.IntSlider(0)}
    live = Live(lambda **values: drawn.append(values) or b"", controls)
    with live.hold(): live.controls["a"].value = live.controls["b"].value = 7
    live.controls["a"].value = 8
    assert drawn == [{"a": 0, "b": 0}, {"a": 7, "b": 7}, {"a": 8, "b": 7}]


def test_closing_closes_every_part_and_lets_go_of_what_draw_holds():
    net, n, button = UNet(channels=(8,)), ipywidgets.IntSlider(0), ipywidgets.Button()
    live = Live(lambda n, net=net: blank(n), {"n": n}, beside=[ipywidgets.VBox([button])])
    gone = weakref.ref(net)
    del net
    live.close()
    live.close()
    gc.collect()
    assert gone() is None
    assert [part.comm for part in (live, live.picture, live.message, n, button)] == [None] * 5


@pytest.mark.parametrize("shape", ((1, 8, 8), (3, 28, 20)))
def test_a_grid_has_the_width_asked_for_and_keeps_each_pixel(shape):
    x = torch.rand(5, *shape) * 2 - 1
    named = Image.open(io.BytesIO(labeled_grid(x, 3, ["one", "two"], list("abcde"), width=600)))
    assert named.width == 600 and named.mode == ("L" if shape[0] == 1 else "RGB")
    bare = Image.open(io.BytesIO(labeled_grid(x[:1], 1, width=8 * shape[2])))
    places = [(8 * i + 4, 8 * j + 4) for j in range(shape[1]) for i in range(shape[2])]
    found = torch.tensor([bare.getpixel(place) for place in places]).view(-1, shape[0]).T
    assert (found - (x[0].flatten(1) * 127.5 + 127.5)).abs().max() <= 0.5


def test_a_picture_that_is_too_large_is_made_smaller():
    page = Image.open(io.BytesIO(labeled_grid(torch.ones(2, 3, 600, 300), 2, width=300)))
    assert page.width == 300 and 250 < page.height < 320


def test_a_figure_has_the_size_asked_for():
    figure = Image.open(io.BytesIO(figure_png(lambda fig: fig.subplots().plot([1, 2]), 3, 2)))
    assert figure.size == (600, 400)


def test_a_slider_of_levels_starts_on_one_of_its_steps_and_ends_at_80():
    slider = level_slider("σ", 2.)
    steps = torch.tensor([slider.min, slider.value]).tolist()
    assert 10 ** slider.max == pytest.approx(80, abs=1e-9) and 10 ** steps[0] == pytest.approx(0.02, rel=0.03)
    moved = (slider.max - torch.tensor(slider.value, dtype=torch.float64).log10().item()) / slider.step
    assert slider.value == pytest.approx(2, rel=0.03) and moved == pytest.approx(round(moved), abs=1e-6)


def test_the_menu_of_classes_has_each_class_or_none():
    assert label_menu(UNet()).options == (("each in turn", -1),)
    assert weight_slider(UNet(num_classes=2)) == {} and weight_slider(UNet(num_classes=2, usual_weight=1.5))["weight"].value == 1.5
    told = UNet(num_classes=2, usual_weight=1.25)
    told.notes = {"guidance": [0, 1.25, 4]}
    assert (weight_slider(told)["weight"].min, weight_slider(told)["weight"].max) == (0, 4)
    two = UNet(num_classes=2)
    assert label_menu(two).options == (("each in turn", -1), ("0", 0), ("1", 1))
    two.notes = {"classes": ["cat", "dog"]}
    assert label_menu(two).options == (("each in turn", -1), ("cat", 0), ("dog", 1))
