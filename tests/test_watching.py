"""Watching: the loss by noise level is a mean in each band, and nothing that is put around a run changes it."""
import itertools

import pytest
import torch
from conftest import make_trainer, run, same

from consistency_models import progress, training_dashboard, watch
from consistency_models.watching import LossByLevel, training_figure


def images(net): return torch.zeros(4, 1, 8, 8)


def state_of(levels, losses):
    """A state with these noise levels and losses."""
    state = next(make_trainer(batch_size=4).train())
    state.upper, state.losses = torch.tensor(levels), torch.tensor(losses)
    return state


# Equals the mean

def test_the_loss_by_level_is_a_mean_in_each_band():
    losses = LossByLevel(bands=4, memory=1.0)
    losses.update(state_of([0.003, 0.003, 70.0, 0.002, 80.0], [1.0, 3.0, 5.0, 2.0, 7.0]))
    assert losses.means[0] == 2 and losses.means[3] == 6 and losses.means[1:3].isnan().all()
    assert len(str(losses)) == 4
    assert losses.centers[0] == pytest.approx(0.002 * (80 / 0.002) ** (1 / 8))


def test_the_loss_by_level_forgets_and_takes_levels_outside_its_bands():
    losses = LossByLevel(bands=2, memory=0.5)
    for value in (4.0, 1.0): losses.update(state_of([1e-4, 1e3], [value, 2 * value]))
    assert losses.means.tolist() == pytest.approx([2.0, 4.0])


# Keeps its promises

@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite_shows(bad):
    losses = LossByLevel()
    losses.update(state_of([0.003, 1., 1., 70.], [1., bad, 2., 3.]))
    assert str(losses) == "▁····!···█" and losses.weight.sum() == 4


def test_progress_passes_every_state_on_and_shows_the_numbers(capsys):
    assert [state.step for state in progress(make_trainer().train(), every=10)] == list(range(1,
        31))
    assert "30/30" in (shown := capsys.readouterr().err) and "N 21" in shown
    assert "samples/s" in shown


AROUND = {"progress": progress, "watch": lambda s: watch(s, images, every=10**6),
    "both": lambda s: watch(progress(s), images, every=10**6),
          "dashboard": lambda s: training_dashboard(s, images)}


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed while a test runs."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
    return shown


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_closing_a_generator_around_the_loop_writes_the_checkpoint(tmp_path, around, displayed):
    outer = around(make_trainer(tmp_path).train())
    next(outer)
    outer.close()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_watched_run_ends_in_the_same_weights(displayed):
    def sample(net): return net(torch.randn(8, 2), torch.ones(8)).reshape(4, 1, 2, 2)
    watched = make_trainer(steps=12)
    for _ in training_dashboard(watch(progress(watched.train(), every=7), sample, every=5), sample,
            every=3):
        pass
    assert same(watched, run(make_trainer(steps=12)))


def test_pictures_are_drawn_with_and_without_a_grid(displayed):
    losses = LossByLevel()
    losses.update(state_of([0.01, 1., 10.], [1., 2., 3.]))
    wide, narrow = training_figure(losses, images(None), "samples",
        [(1, 11), (2, 21)]), training_figure(losses, images(None))
    assert [ax.get_ylabel() for ax in wide.axes] == ["weighted loss", "N(k)", ""]
    assert len(narrow.axes) == 2
    state = next(make_trainer(steps=1).train())
    state.num_timesteps = None
    assert list(training_dashboard(iter([state]),
        images)) == [state] == list(progress(iter([state])))
    bar, numbers, image = displayed[0].children
    assert "N " not in numbers.value and image.value[1:4] == b"PNG"


def test_tensorboard_gets_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run(make_trainer(tmp_path, tracker="tensorboard", steps=40))
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent)).Reload()
    assert {"loss", "num_timesteps", "learning_rate"} < set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [20, 40]


def test_a_dashboard_shows_a_run_to_its_end(displayed):
    states = list(training_dashboard(make_trainer(steps=6).train(), images, every=4))
    bar, numbers, image = displayed[0].children
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6] and bar.value == bar.max == 6
    assert "step 6 of 6" in numbers.value and "N 21" in numbers.value
    assert "samples/s" in numbers.value and image.value[1:4] == b"PNG"


@pytest.mark.parametrize("cut", [lambda states: itertools.islice(states, 3), list],
    ids=["slice", "list"])
def test_a_dashboard_takes_any_iterator_of_states(cut, displayed):
    assert [s.step for s in training_dashboard(cut(make_trainer(steps=3).train()), images)] == [1,
        2, 3]


def test_leaving_the_loop_of_a_dashboard_ends_the_run_with_a_checkpoint(tmp_path, displayed):
    with pytest.raises(KeyboardInterrupt):
        for state in training_dashboard(make_trainer(tmp_path).train(), images):
            if state.step == 3: raise KeyboardInterrupt
    again = make_trainer(tmp_path)
    assert again.resume() and again.step == 3


def test_an_error_in_a_dashboard_is_not_swallowed(displayed):
    def fails(net): raise ValueError("no samples")
    with pytest.raises(ValueError, match="no samples"):
        for _ in training_dashboard(make_trainer(steps=2).train(), fails, every=1): pass


# Refuses

def test_wrong_arguments_of_a_dashboard_are_named_when_it_is_made():
    with pytest.raises(TypeError, match="trainer.train()"):
        training_dashboard(make_trainer(steps=2), images)
    with pytest.raises(ValueError, match="every must be at least 1"):
        training_dashboard(make_trainer(steps=2).train(), images, every=0)


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [])
    with pytest.raises(ValueError, match="tracker 'tensorboard' is not installed"):
        make_trainer(tmp_path, tracker="tensorboard")
