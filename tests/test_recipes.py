"""Recipes: what trained the bundled models, trainers that fit their data, and cards from which a run can be repeated."""
import json

import pytest
import torch
from conftest import seeded
from torch.utils.data import TensorDataset

from consistency_models.data import color_shapes, open_data
from consistency_models.networks import MLP
from consistency_models.pretrained import from_pretrained, save_pretrained
from consistency_models.recipes import RECIPES, make_trainer, recipe_for, save_run, trained_network

DIGITS = {"shape": [1, 8, 8], "num_classes": 10, "sigma_data": 0.752}


# Equals the paper

def test_recipes_are_those_on_the_cards_of_the_bundled_models():
    """Of MNIST, which was trained in two goes, the first; a precision that is left open is 'no'"""
    for bundled, name in (("digits", "digits"), ("mnist", "MNIST"), ("shapes", "shapes")):
        told = {k: v.split(", then")[0] for k, v in from_pretrained(bundled).notes["recipe"].items() if k in RECIPES[name]}
        made = {k: str("no" if v is None else v) for k, v in RECIPES[name].items()}
        assert {k: (v, float(v)) if v[0].isdigit() else v for k, v in told.items()} == {k: (told[k], float(v)) if v[0].isdigit() else v for k, v in made.items()}


# Keeps its promises

@pytest.mark.slow
def test_every_recipe_makes_a_trainer_that_fits_the_data():
    data = TensorDataset(*color_shapes(300, 16, seeded()))
    for name in RECIPES:
        trainer = make_trainer(data, recipe_for(name, steps=1, precision="no"))
        net = trainer.net
        assert trainer.steps == 1 and trainer.conditions == ("class_labels",)
        assert (net.config["in_channels"], net.config["num_classes"], tuple(net.config["channels"])) == (3, 3, RECIPES[name]["channels"])
        assert trainer.objective.sigma_data == net.sigma_data == pytest.approx(data.tensors[0].std().item(), abs=0.01)
        assert trainer.objective.final_timesteps == RECIPES[name]["final_timesteps"] and trainer.objective.initial_timesteps == 10


def test_data_without_classes_make_a_network_without():
    trainer = make_trainer(TensorDataset(torch.randn(9, 1, 8, 8)), recipe_for("images", steps=1, batch_size=2))
    assert trainer.conditions == () and trainer.net.config["num_classes"] is None and next(trainer.train()).step == 1


def test_changes_leave_the_recipe_itself_alone():
    assert recipe_for("digits", steps=7, precision=None) == RECIPES["digits"] | {"steps": 7} and RECIPES["digits"]["steps"] == 2000
    assert recipe_for("some/folder") == recipe_for("CIFAR10") == RECIPES["images"]


def test_the_seed_decides_the_weights():
    first, again, other = (make_trainer(open_data("digits"), recipe_for("digits", steps=1), seed).net.embed for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))


def test_trained_weights_are_trained_further_with_all_levels_from_the_first_step():
    trainer = make_trainer(open_data("digits"), recipe_for("digits", steps=2, batch_size=8, final_timesteps=20), start="digits")
    before = from_pretrained("digits")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), trainer.net.parameters()))
    assert [state.num_timesteps for state in trainer.train()] == [21, 21]     # levels, one more than the grid's steps
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.net.parameters()))


def test_a_card_tells_what_was_done(tmp_path):
    recipe = recipe_for("digits", steps=1, batch_size=2)
    trainer = make_trainer(open_data("digits"), recipe, seed=5)
    list(trainer.train())
    for command in ("consistency-models train --seed 5", None):
        save_run(trainer, tmp_path, "digits", recipe, command)
        notes = json.loads((tmp_path / "config.json").read_text())["notes"]
        assert notes["shape"] == [1, 8, 8] and notes["recipe"].get("command") == command
        assert notes["recipe"] | {"data": "digits", "seed": 5, "processes": 1, "steps": "1", "precision": "no"} == notes["recipe"]
    assert all(torch.equal(a, b) for a, b in zip(trainer.average.parameters(), from_pretrained(tmp_path).parameters()))


# Refuses

def test_changes_that_no_recipe_has():
    with pytest.raises(ValueError, match="a recipe has channels, .*batch_size.*, but not step"): recipe_for("digits", step=3)


def test_weights_that_do_not_fit_the_data(tmp_path):
    with pytest.raises(ValueError, match="digits does not fit the data: its in_channels is 1, the data needs 3"): trained_network("digits", DIGITS | {"shape": [3, 8, 8]})
    with pytest.raises(ValueError, match="its num_classes is 10, the data needs None"): trained_network("digits", DIGITS | {"num_classes": None})
    save_pretrained(MLP(width=8, depth=1), tmp_path)
    with pytest.raises(ValueError, match="its in_channels is None"): trained_network(tmp_path, DIGITS)


def test_empty_data():
    with pytest.raises(ValueError, match="the data set is empty"): make_trainer(TensorDataset(torch.zeros(0, 1, 8, 8)), recipe_for("digits"))
