"""The page with all widgets, and the module that users import them from."""

import pytest
from conftest import picture

from consistency_models import widgets

pytestmark = pytest.mark.usefixtures("no_threads")


# ---------------------------------------------------------------- Keeps its promises

def test_every_widget_is_imported_from_here():
    names = {"app", "editing_explorer", "film", "huber_explorer", "Live", "PaintSurface", "parameterization_explorer",
             "sampling_explorer", "schedule_explorer", "timesteps_explorer", "training_dashboard", "trajectory_explorer"}
    assert names <= set(widgets.__all__) and [n for n in widgets.__all__ if not hasattr(widgets, n)] == []


@pytest.mark.slow
def test_the_app_shows_one_explorer_after_the_other():
    menu, stage = widgets.app().children
    seen = {}
    for name in [*menu.options, menu.options[0]]:
        menu.value = name
        (live,) = stage.children
        assert picture(live)
        assert seen.setdefault(name, live) is live
    assert len(seen) == 8


def test_a_page_of_the_app_that_cannot_be_made_says_why_and_is_tried_again(monkeypatch):
    make, tries = widgets.schedule_explorer, []
    def fails_once():
        tries.append(1)
        if len(tries) == 1: raise OSError("no <weights>")
        return make()
    monkeypatch.setattr(widgets, "schedule_explorer", fails_once)
    menu, stage = widgets.app().children
    menu.value = "Schedule"
    assert "no &lt;weights&gt;" in stage.children[0].value
    menu.value = "Loss"
    menu.value = "Schedule"
    assert picture(stage.children[0])
