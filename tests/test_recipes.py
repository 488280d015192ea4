"""Recipes: what trained the bundled models, trainers that fit their data, and cards from which a run can be repeated."""
import json
import re

import pytest
import torch
from torch.utils.data import TensorDataset

from consistency_models.data import open_data
from consistency_models.diffusion import Guided
from consistency_models.distillation import without_weight
from consistency_models.networks import MLP
from consistency_models.pretrained import from_pretrained, is_diffusion, save_pretrained
from consistency_models.recipes import (
    OBJECTIVES,
    RECIPES,
    make_trainer,
    network_for,
    plan,
    recipe_for,
    save_run,
    teacher_network,
    trained_network,
)

DIGITS = {"shape": [1, 8, 8], "num_classes": 10, "sigma_data": 0.752}
TINY = {"steps": 2, "batch_size": 4, "channels": (8, 16)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusion model of the digits, hardly trained, whose layers differ from those of a new network"""
    folder, recipe = tmp_path_factory.mktemp("teacher"), recipe_for("digits", "diffusion", **TINY)
    trainer = make_trainer(open_data("digits"), recipe, seed=3)
    list(trainer.train())
    save_run(trainer, folder, "digits", recipe)
    return folder


# Equals the paper

def test_recipes_are_those_on_the_cards_of_the_bundled_models():
    """A precision that is left open is 'no'"""
    value = lambda v: float(v) if v[0].isdigit() else v
    for bundled, name, objective in (("digits", "digits", "cd"), ("mnist", "MNIST", "cd"), ("avatars", "avatars", "cd")):
        given = {"teacher": "a"} if objective == "cd" else {}
        made = {k: "no" if v is None else str(v) for k, v in recipe_for(name, objective, **given).items() if k not in ("teacher", "guidance", "label_dropout")}
        recipe = from_pretrained(bundled).notes["recipe"]
        told = {k: v.split(", then")[0] for k, v in recipe.items() if k in made}
        command = recipe["command"].split(";")[2 if bundled == "mnist" else 0]          # that of the student, or of both
        made |= {k.replace("-", "_"): v for k, v in re.findall(r"--(steps|batch-size) (\d+)", command)}
        assert made["objective"] == objective and told.keys() >= RECIPES[name].keys()
        assert {k: value(v) for k, v in told.items()} == {k: value(made[k]) for k in told}


# Keeps its promises

@pytest.mark.slow
def test_every_recipe_makes_a_trainer_that_fits_the_data():
    data = TensorDataset(*(t[:300] for t in open_data("avatars").tensors))
    for name in RECIPES:
        trainer = make_trainer(data, recipe_for(name, steps=1, precision="no"))
        net = trainer.net
        assert trainer.steps == 1 and trainer.conditions == ("class_labels",)
        assert (net.config["in_channels"], net.config["num_classes"], tuple(net.config["channels"])) == (3, 4, RECIPES[name]["channels"] or (64, 128))
        assert trainer.objective.sigma_data == net.sigma_data == pytest.approx(data.tensors[0].std().item(), abs=0.01)
        assert trainer.objective.final_timesteps == RECIPES[name]["final_timesteps"] and trainer.objective.initial_timesteps == 10


def test_data_without_classes_make_a_network_without():
    trainer = make_trainer(TensorDataset(torch.randn(9, 1, 8, 8)), recipe_for("images", steps=1, batch_size=2))
    assert trainer.conditions == () and trainer.net.config["num_classes"] is None and next(trainer.train()).step == 1


def test_changes_leave_the_recipe_itself_alone():
    ict = {"objective": "ict", "label_dropout": 0.}
    assert recipe_for("digits", steps=7, precision=None) == ict | RECIPES["digits"] | {"steps": 7} and RECIPES["digits"]["steps"] == 2000
    assert recipe_for("some/folder") == recipe_for("CIFAR10") == ict | RECIPES["images"]
    assert recipe_for("digits", "diffusion").keys() == recipe_for("digits").keys() - {"final_timesteps"}


def test_networks_of_a_folder_fit_the_size_of_its_images():
    for size in (16, 28, 32, 48, 64, 128):
        trainer = make_trainer(TensorDataset(torch.randn(4, 3, size, size)), recipe_for("images", steps=1, batch_size=2))
        net = trainer.net
        places = size // net.config["patch"]
        assert size % net.factor == 0 and 14 <= places <= 32 and (size // net.factor) <= 8
    own = make_trainer(TensorDataset(torch.randn(4, 3, 64, 64)), recipe_for("images", steps=1, patch=8)).net
    assert own.config["patch"] == 8 and own.config["channels"] == network_for(64)["channels"]
    for size, match in ((256, "no recipe for images of 256 pixels"), (18, "divisible by 4 for the network")):
        with pytest.raises(ValueError, match=match): make_trainer(TensorDataset(torch.randn(4, 3, size, size)), recipe_for("images"))


def test_a_plan_leaves_the_run_as_it_was(teacher):
    """Its numbers are plausible, and the run that follows is the run without it"""
    recipe, ends = recipe_for("digits", "cd", **TINY | {"steps": 3}, teacher=teacher), []
    for planned in (True, False):
        trainer = make_trainer(open_data("digits"), recipe)
        if planned:
            found = plan(trainer)
            assert found["weights"] == sum(p.numel() for p in trainer.net.parameters())
            assert 0 < found["seconds"] < 10 and found["hours"] == pytest.approx(3 * found["seconds"] / 3600)
            assert 20e-9 * found["weights"] < found["gigabytes"] < 1 and trainer.step == 0
        list(trainer.train())
        ends.append(torch.cat([p.detach().flatten() for p in trainer.average.parameters()]))
    assert torch.equal(*ends)


def test_the_seed_decides_the_weights():
    first, again, other = (make_trainer(open_data("digits"), recipe_for("digits", steps=1), seed).net.embed for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))


def test_trained_weights_are_trained_further_with_all_levels_from_the_first_step():
    trainer = make_trainer(open_data("digits"), recipe_for("digits", steps=2, batch_size=8, final_timesteps=20), start="digits")
    before = without_weight(from_pretrained("digits"))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), trainer.net.parameters()))
    assert [state.num_timesteps for state in trainer.train()] == [21, 21]     # levels, one more than the grid's steps
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.net.parameters()))
    diffusion = make_trainer(open_data("digits"), recipe_for("digits", "diffusion", steps=1), start="digits")
    assert diffusion.net.label_dropout == diffusion.net.config["label_dropout"] == 0.1      # so that its student can be guided


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_has_a_recipe_that_trains_a_network_of_its_own(name, teacher):
    taught = name in ("cd", "scd")
    recipe = recipe_for("digits", name, **TINY, **({"teacher": teacher, "guidance": 2.} if taught else {}))
    trainer = make_trainer(open_data("digits"), recipe)
    assert type(trainer.objective) is OBJECTIVES[name] and next(trainer.train()).step == 1
    assert trainer.net.label_dropout == (0. if name in ("ct", "ict") else 0.1)
    assert trainer.objective.sigma_data == trainer.net.sigma_data
    if taught: assert trainer.objective.denoiser.weight == 2.


def test_a_student_starts_from_its_teacher_or_from_what_it_is_given(teacher):
    other = recipe_for("digits", "cd", **TINY | {"channels": (64, 64)}, teacher=teacher)
    for start, expected in ((None, teacher), ("digits", "digits")):
        trainer = make_trainer(open_data("digits"), other, start=start)
        wanted = from_pretrained(expected) if start is None else without_weight(from_pretrained(expected))
        pairs = zip(trainer.net.parameters(), wanted.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.requires_grad for a, b in pairs)
        kept = trainer.objective.kept.denoiser
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), from_pretrained(teacher).parameters(), strict=True))


def test_what_the_start_decides_and_numbers_of_levels_and_steps(teacher):
    make = lambda name, start=None, **changes: make_trainer(open_data("digits"), recipe_for("digits", name, **changes), start=start).objective
    assert make("cd", teacher=teacher).num_timesteps == 18 and make("cd", teacher=teacher, final_timesteps=40).num_timesteps == 40
    assert [make("ct", start).initial_timesteps for start in (None, "digits")] == [2, 40]
    assert [recipe_for("digits", name, teacher=teacher)["steps"] for name in ("cd", "scd")] == [600, 600] and recipe_for("digits", "diffusion")["steps"] == 1400
    assert make("ect").stages == 6 and make("scd", teacher=teacher).learn_weight is False


def test_a_student_does_not_pass_for_the_diffusion_model_it_starts_from(teacher):
    assert is_diffusion(from_pretrained(teacher))
    trainer = make_trainer(open_data("digits"), recipe_for("digits", "cd", teacher=teacher))
    assert not is_diffusion(trainer.net) and not is_diffusion(trainer.average) and trainer.average.notes["shape"] == [1, 8, 8]


def test_a_network_without_classes_leaves_no_labels_out():
    trainer = make_trainer(TensorDataset(torch.randn(9, 1, 8, 8)), recipe_for("images", "ect", steps=1, batch_size=2))
    assert trainer.net.label_dropout == 0 and next(trainer.train()).step == 1


def test_a_card_tells_the_method_and_the_network_that_was_trained(tmp_path, teacher):
    recipe = recipe_for("digits", "cd", **TINY | {"channels": (64, 64)}, teacher=teacher, guidance=1.5)
    trainer = make_trainer(open_data("digits"), recipe)
    list(trainer.train())
    save_run(trainer, tmp_path, "digits", recipe)
    notes = json.loads((tmp_path / "config.json").read_text())["notes"]
    expected = {"objective": "cd", "teacher": str(teacher), "guidance": "1.5", "channels": "[8, 16]", "label_dropout": "0.1", "final_timesteps": "18"}
    assert notes["recipe"] | expected == notes["recipe"] and notes["title"] == "A consistency model of digits"
    assert "Consistency distillation: Algorithm 2" in (tmp_path / "README.md").read_text()
    told = from_pretrained(teacher).notes
    assert told["title"] == "A diffusion model of digits" and told["recipe"]["objective"] == "diffusion" and "final_timesteps" not in told["recipe"]


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
    for name, change in (("ict", {"step": 3}), ("ict", {"teacher": "x"}), ("ict", {"guidance": 2.}), ("diffusion", {"final_timesteps": 9}),
                         ("ect", {"final_timesteps": 9}), ("sct", {"final_timesteps": 9}), ("scd", {"teacher": "x", "final_timesteps": 9})):
        with pytest.raises(ValueError, match=f"the recipe of {name} has no {[*change][-1]}, only objective, .*batch_size"): recipe_for("digits", name, **change)


def test_a_method_that_nobody_knows_and_distillation_without_a_teacher():
    with pytest.raises(ValueError, match="objective must be one of diffusion, ct, .*, got 'cdm'"): recipe_for("digits", "cdm")
    for name in ("cd", "scd"):
        with pytest.raises(ValueError, match=f"{name} needs a teacher"): recipe_for("digits", name, guidance=2.)


def test_teachers_that_do_not_fit(teacher, tmp_path):
    with pytest.raises(ValueError, match="must be a diffusion model, but digits was trained with the objective cd"): teacher_network("digits", DIGITS)
    with pytest.raises(ValueError, match="does not fit the data: its in_channels is 1"): teacher_network(teacher, DIGITS | {"shape": [3, 8, 8]})
    with pytest.raises(ValueError, match="its num_classes is 10, the data needs None"): teacher_network(teacher, DIGITS | {"num_classes": None})
    with pytest.raises(ValueError, match=r"makes images of shape \[1, 8, 8\], the data has \[1, 16, 16\]"): teacher_network(teacher, DIGITS | {"shape": [1, 16, 16]})
    net = trained_network("digits", DIGITS)
    save_pretrained(net, tmp_path)          # without notes, and trained with all labels
    assert type(teacher_network(tmp_path, DIGITS)) is type(net) and isinstance(teacher_network(teacher, DIGITS, 2.), Guided)
    with pytest.raises(ValueError, match="must also answer without labels"): teacher_network(tmp_path, DIGITS, 2.)


def test_weights_that_do_not_fit_the_data(tmp_path):
    with pytest.raises(ValueError, match="digits does not fit the data: its in_channels is 1, the data needs 3"): trained_network("digits", DIGITS | {"shape": [3, 8, 8]})
    with pytest.raises(ValueError, match="its num_classes is 10, the data needs None"): trained_network("digits", DIGITS | {"num_classes": None})
    save_pretrained(MLP(width=8, depth=1), tmp_path)
    with pytest.raises(ValueError, match="its in_channels is None"): trained_network(tmp_path, DIGITS)


def test_empty_data():
    with pytest.raises(ValueError, match="the data set is empty"): make_trainer(TensorDataset(torch.zeros(0, 1, 8, 8)), recipe_for("digits"))
