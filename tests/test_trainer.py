"""The order of the data and the loop: shards equal processes, nothing drawn outside matters, faults stop the run."""
import copy
import json
import os
import random
import shutil
import signal
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import (
    CT,
    ICT,
    LABELED,
    POINTS,
    Layer,
    LearnedWeight,
    Pairs,
    dropping_unet,
    each_method,
    images_and_labels,
    make_trainer,
    on_two_processes,
    resumed,
    run,
    same,
    weights,
    with_method,
)
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
    ImprovedConsistencyTraining,
    Trainer,
    ema_decay_rate_schedule,
    from_pretrained,
    guided,
    path_derivative,
    pseudo_huber_loss,
    squared_error,
    update_ema_model_,
)
from consistency_models.checkpoints import read_checkpoint
from consistency_models.trainer import data_order, learning_rate, new_accelerator, shard_seed
from consistency_models.utils import keep_memory

BOTH = pytest.mark.parametrize("objective", [ICT, CT], ids=["iCT", "CT"])
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
slow = pytest.mark.slow


# Equals the paper

def test_each_epoch_shows_each_sample_once_and_can_be_read_from_any_place():
    order = torch.cat([data_order(7, place, 5) for place in range(0, 35, 5)])
    assert all(sorted(order[i:i + 7].tolist()) == list(range(7)) for i in range(0, 35, 7))
    assert torch.equal(data_order(11, 0, 40, seed=3)[17:29], data_order(11, 17, 12, seed=3))


def test_seeds_of_shards_differ():
    assert len({shard_seed(s, k, i) for s in range(5) for k in range(50) for i in range(8)}) == 2000


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(k, 100, 1.0, 10) for k in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(rates[9], rel=0.03)
    assert rates[55] == pytest.approx((1 + np.cos(0.55 * np.pi)) / 2)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert learning_rate(99, 100, 1.0, 10, decay=False) == 1.0


def test_accumulated_shards_equal_one_batch_of_the_same_samples():
    """The gradient is the mean over all samples, however many passes it takes."""
    gradients = []
    def spy(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone()
            for p in parameters]))
        return optimizer
    run(make_trainer(accumulate=2, steps=1, optimizer=spy))
    expected = 0
    for shard in range(2):
        torch.manual_seed(0)
        net = MLP(width=16, depth=1)
        generator = torch.Generator().manual_seed(shard_seed(0, 0, shard))
        output = ICT(net, POINTS[data_order(500, 16 * shard, 16)], 0, 1, generator=generator)
        (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean().backward()
        expected = expected + nn.utils.parameters_to_vector([p.grad / 2 for p in net.parameters()])
    assert torch.allclose(nn.utils.parameters_to_vector(gradients[0]), expected, atol=1e-6)


def test_averages_move_by_their_decay_rates():
    """That for sampling starts young; that of consistency training is Algorithm 3."""
    trainer = make_trainer(objective=CT, ema_decay=0.5)
    average, teacher = (copy.deepcopy(m)
        for m in (trainer.average, trainer.objective.kept["teacher"]))
    for k, state in enumerate(trainer.train()):
        update_ema_model_(average, trainer.net, min(0.5, (k + 1) / (k + 10)))
        update_ema_model_(teacher, trainer.net,
            ema_decay_rate_schedule(state.num_timesteps, 0.95, 2))
    for made, kept in ((average, trainer.average), (teacher, trainer.objective.kept["teacher"])):
        assert all(torch.equal(a, b)
            for a, b in zip(made.parameters(), kept.parameters(), strict=True))


def test_training_brings_samples_to_the_data():
    def distance(net):      # energy distance of one-step samples to the points
        x = ConsistencySamplingAndEditing()(net, POINTS, [80.0],
            generator=torch.Generator().manual_seed(0))
        pairs = ((x, POINTS), (x, x), (POINTS, POINTS))
        across, within, among = (torch.cdist(*pair).mean() for pair in pairs)
        return 2 * across - within - among
    trainer = make_trainer(net=MLP, steps=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98)
    before = distance(trainer.average)
    assert distance(run(trainer).average) < 0.5 * before


PAIR = """
import json, sys
import torch
torch.set_num_threads(1)
from conftest import LearnedWeight, images_and_labels, make_trainer, small_unet
from torch import nn
from torch.utils.data import TensorDataset
folder, accumulate, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
trainer = make_trainer(folder, small_unet, TensorDataset(*images_and_labels()), steps=12, batch_size=8, accumulate=accumulate,
                       conditions=("class_labels",), clip_norm=1.0, checkpoint_every=1, objective=LearnedWeight(final_timesteps=20))
trainer.resume()
masks, levels = [], []
drop = next(m for m in trainer.net.modules() if isinstance(m, nn.Dropout))
drop.register_forward_hook(lambda m, i, o: masks.append((o == 0).float().mean().item()))
for state in trainer.train():
    levels.append(state.upper.tolist())
    if state.step == steps: break
rank = trainer.accelerator.process_index
learned = [p.tolist() for p in trainer.objective.parameters()]
json.dump({"levels": levels, "masks": masks, "learned": learned}, open(f"{folder}/rank{rank}.json", "w"))
trainer.accelerator.wait_for_everyone()
if rank == 0: torch.save([p.detach() for p in (*trainer.average.parameters(), *trainer.objective.parameters())], f"{folder}/weights.pt")
trainer.accelerator.end_training()
"""


def launch(tmp_path, folder, processes, steps=12):
    """Run `PAIR`, two shards a step in all; the weights, and what each rank saw"""
    (tmp_path / "pair.py").write_text(PAIR)
    folder.mkdir(exist_ok=True)
    on_two_processes(tmp_path / "pair.py", folder, 2 // processes, steps, processes=processes)
    return torch.load(folder / "weights.pt"), [json.loads(p.read_text())
        for p in sorted(folder.glob("rank*.json"))]


@slow
def test_two_processes_train_what_one_with_twice_the_shards_trains_and_either_goes_on_for_the_other(
        tmp_path):
    """Also what the objective learns, whose gradients no wrapper averages."""
    one, (alone,) = launch(tmp_path, tmp_path / "one", 1)
    two, ranks = launch(tmp_path, tmp_path / "two", 2)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two, strict=True))
    assert ranks[0]["learned"] == ranks[1]["learned"] and any(v.abs().sum() > 0 for v in two[-2:])
    assert ranks[0]["levels"] != ranks[1]["levels"] and ranks[0]["masks"] != ranks[1]["masks"]
    assert [a + b for a, b in zip(ranks[0]["levels"], ranks[1]["levels"])] == alone["levels"]
    launch(tmp_path, tmp_path / "parts", 2, 5)
    parts, (rank, _) = launch(tmp_path, tmp_path / "parts", 1)
    assert len(rank["levels"]) == 7
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, parts, strict=True))


METHODS_PAIR = """
import sys
import torch
torch.set_num_threads(1)
from conftest import METHODS, make_trainer, run, weights, with_method
folder, accumulate = sys.argv[1], int(sys.argv[2])
found = {}
for name, method in METHODS.items():
    trainer = run(make_trainer(**with_method(method, precision="no", accumulate=accumulate, steps=2, clip_norm=1.)))
    found[name] = [w.clone() for w in weights(trainer)]
torch.save(found, f"{folder}/rank{trainer.accelerator.process_index}.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@slow
def test_with_every_method_two_processes_train_what_one_trains_with_twice_the_shards(tmp_path):
    """Also where the derivative of the network is taken past the wrapper that averages gradients."""
    (tmp_path / "pair.py").write_text(METHODS_PAIR)
    found = []
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        on_two_processes(tmp_path / "pair.py", folder, 3 - processes, processes=processes)
        found += [torch.load(p) for p in sorted(folder.glob("rank*.pt"))]
    alone, first, second = found
    for name in alone:
        pairs = list(zip(alone[name], first[name], second[name], strict=True))
        assert all(torch.equal(a, b) for _, a, b in pairs), name
        assert all(torch.allclose(a, b, atol=1e-5) for a, b, _ in pairs), name


# Keeps its promises: randomness

def test_same_settings_give_the_same_weights_whatever_the_loop_body_draws():
    drawn = make_trainer()
    for _ in drawn.train(): torch.rand(7)
    assert same(drawn, run(make_trainer()))


@pytest.mark.parametrize("change", [{"seed": 1}, {"ema_decay": 0.5}], ids=str)
def test_other_settings_give_other_weights(change):
    assert not same(run(make_trainer()), run(make_trainer(**change)))


class Masks(nn.Module):
    """A network with dropout that notes the masks it drew while it learned, and the noise levels"""
    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.seen, self.levels = nn.Linear(2, 2), nn.Dropout(0.1), [], []

    def forward(self, x, sigma):
        mask = self.drop(torch.ones(len(x), 1))
        if torch.is_grad_enabled():
            self.seen.append(mask[:, 0] > 0)
            self.levels.append(sigma)
        return self.layer(x) * mask


def test_what_is_dropped_differs_between_shards_and_does_not_depend_on_the_noise():
    objective = ImprovedConsistencyTraining(initial_timesteps=40, final_timesteps=40)
    trainer = run(make_trainer(net=Masks, accumulate=2, batch_size=64, steps=30,
        objective=objective))
    seen, levels = trainer.net.seen, trainer.net.levels
    assert all(not torch.equal(a, b) for values in (seen, levels) for i, a in enumerate(values)
        for b in values[:i])
    kept, sigma = torch.cat(seen).float(), torch.cat(levels)
    for chosen in (sigma < 0.1, (sigma >= 0.1) & (sigma < 1), sigma >= 1):
        assert chosen.sum() > 500 and kept[chosen].mean().item() == pytest.approx(0.9, abs=0.05)


class Elsewhere(Dataset):
    """Points that are moved by the generators of three libraries"""
    def __len__(self): return 40
    def __getitem__(self, i):
        return POINTS[i] + torch.tensor([np.random.rand(), random.random()]).float() + torch.rand(2)


def test_what_samples_draw_is_the_same_in_any_process_and_after_a_resume_and_never_twice(tmp_path):
    whole = run(make_trainer(data=Elsewhere(), steps=6))
    np.random.seed(7)
    assert same(whole, run(make_trainer(data=Elsewhere(), steps=6, workers=2)))
    assert same(whole, resumed(tmp_path, 3, data=Elsewhere(), steps=6, workers=2))
    batches = (next(make_trainer(data=Elsewhere(), seed=s)._batches()) for s in (0, 1))
    assert len(torch.cat([*batches]).unique(dim=0)) == 32


class Restless(nn.Module):
    """A network that draws from the generators of three libraries"""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, sigma):
        return self.layer(x) * (np.random.rand() + random.random() + torch.rand(()))


class NoisySGD(torch.optim.SGD):
    """Adds noise to each step"""
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-3 * np.random.rand() * random.random())


class NoisyStart(ImprovedConsistencyTraining):
    """Draws what it keeps"""
    def attach(self, net):
        super().attach(net)
        self.kept["drawn"] = nn.Linear(2, 2)
        nn.init.constant_(self.kept["drawn"].weight, np.random.rand())


@pytest.mark.parametrize("data, workers", [(None, 0), (Elsewhere(), 0), (Elsewhere(), 1)])
def test_the_generators_of_the_program_are_left_as_they_were(data, workers):
    def generators():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    net = Restless()
    before = generators()
    trainer = Trainer(net, data or TensorDataset(POINTS), steps=3, workers=workers,
        optimizer=NoisySGD, objective=NoisyStart())
    for _ in trainer.train(): assert generators() == before
    assert generators() == before


def test_networks_optimizers_and_objectives_that_draw_are_seeded_too(tmp_path):
    settings = {"net": Restless, "optimizer": NoisySGD, "steps": 6}
    whole = run(make_trainer(**settings, objective=NoisyStart()))
    np.random.seed(1)
    assert same(resumed(tmp_path, 3, **settings, objective=NoisyStart()), whole)


# Keeps its promises: data

@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_what_tensors_in_memory_give(workers):
    x, y = images_and_labels()
    settings = LABELED | {"steps": 4, "channels_last": True}
    expected = run(make_trainer(data=TensorDataset(x, y), **settings))
    assert same(expected, run(make_trainer(data=Pairs(x, y), workers=workers, **settings)))


class Shifted(TensorDataset):
    """A data set in memory that is not a plain one"""
    def __getitem__(self, i): return (self.tensors[0][i] + torch.randn(2),)


def test_a_subclass_of_tensors_in_memory_is_read_sample_by_sample():
    x, = next(make_trainer(data=Shifted(torch.zeros(8, 2)), batch_size=8)._batches())
    assert len(x.unique(dim=0)) == 8


class Asked(nn.Module):
    """A network that notes what it is asked with"""
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 2), []

    def forward(self, x, sigma, **kwargs):
        self.seen.append(kwargs)
        return self.layer(x)


def test_columns_of_the_data_reach_the_network_by_their_names():
    columns = torch.arange(500), torch.arange(500.) / 500, torch.ones(500)
    trainer = run(make_trainer(net=Asked, data=TensorDataset(POINTS, *columns),
        conditions=("class_labels", "angle"), steps=1))
    order = data_order(500, 0, 16)
    assert len(trainer.net.seen) == 2      # student and target
    for kwargs in trainer.net.seen:
        assert list(kwargs) == ["class_labels", "angle"]
        assert torch.equal(kwargs["class_labels"], order)
        assert torch.equal(kwargs["angle"], order / 500)
    assert run(make_trainer(net=Asked, data=TensorDataset(POINTS, *columns),
        steps=1)).net.seen == [{}, {}]


class Items(Dataset):
    """Samples that a function makes"""
    def __init__(self, item): self.item = item
    def __len__(self): return 40
    def __getitem__(self, i): return self.item(i)


LABELS = {"conditions": ("class_labels",)}


@pytest.mark.parametrize("item, settings", [
    (lambda i: POINTS[i].numpy(), {}), (lambda i: [POINTS[i], 1], LABELS),
    (lambda i: (POINTS[i].half(), "cat"), {"precision": "bf16"})],
    ids=["numpy", "list", "half and unused text"])
def test_samples_of_other_types_train(item, settings):
    assert run(make_trainer(net=Layer, data=Items(item), steps=2, **settings)).step == 2


class Line(nn.Module):
    """A network for numbers"""
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x, sigma): return self.slope * x


@pytest.mark.parametrize("data, objective",
    [(TensorDataset(POINTS[:, 0]), CT), (Items(lambda i: POINTS[i, 0]), ICT)],
    ids=["memory, CT", "items, iCT"])
def test_samples_of_one_number_train(data, objective):
    states = list(make_trainer(net=Line, data=data, objective=objective, steps=5).train())
    assert states[-1].losses.shape == (16,) and states[-1].trainer.net.slope != 1


# Keeps its promises: the objective

def test_what_an_objective_learns_is_trained_with_the_network_clipped_and_resumed_bit_for_bit(
        tmp_path):
    settings = {"objective": LearnedWeight(final_timesteps=20), "clip_norm": 1e-3,
        "optimizer": torch.optim.SGD, "learning_rate": 1.0}
    trainer = make_trainer(**settings)
    before, lengths = nn.utils.parameters_to_vector(trainer._trained).detach(), []
    for _ in trainer.train():
        after = nn.utils.parameters_to_vector(trainer._trained).detach()
        lengths.append(((after - before).norm() / trainer.optim.param_groups[0]["lr"]).item())
        before = after
    assert lengths == pytest.approx([1e-3] * 30, rel=1e-2)
    assert all(p.abs().sum() > 0 and p.grad is not None for p in trainer.objective.parameters())
    assert same(resumed(tmp_path, 13, **settings), trainer)


@each_method
def test_with_every_method_a_run_in_bfloat16_resumes_bit_for_bit(tmp_path, method):
    """With what the method keeps: averages, a teacher under guidance, a learned weight"""
    settings = with_method(method)
    whole, start = run(make_trainer(**settings)), make_trainer(**settings)
    assert same(resumed(tmp_path, 3, **settings), whole)
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights(whole))
    for before, after in ((start.net, whole.net), (start.average, whole.average)):
        assert not any(torch.equal(a, b)
            for a, b in zip(before.parameters(), after.parameters(), strict=True))
    teachers = [t.objective.kept.denoiser.state_dict() for t in (start, whole)
        if "denoiser" in t.objective.kept]
    assert all(torch.equal(*pair) for pair in zip(*(t.values() for t in teachers)))


def test_a_teacher_is_taken_to_where_the_network_is_and_into_its_type():
    teacher, data = MLP(width=8, depth=1).half(), TensorDataset(POINTS.double())
    for kind in (ConsistencyDistillation, ContinuousConsistencyDistillation):
        trainer = run(make_trainer(net=lambda: MLP(width=16, depth=1).double(), data=data,
            objective=kind(teacher), steps=2))
        kept = trainer.objective.kept.denoiser
        assert {p.dtype for p in kept.parameters()} == {torch.float64}
        assert not any(m.training for m in kept.modules()) and teacher.training
        assert {p.dtype for p in teacher.parameters()} == {torch.float16}


def test_two_trainers_never_share_what_an_objective_keeps():
    objective = ConsistencyTraining(final_timesteps=20)
    first, second = (make_trainer(objective=objective) for _ in range(2))
    run(first)
    assert first.objective.kept["teacher"] is not second.objective.kept["teacher"]
    assert same(second, make_trainer(objective=objective))


class Bare:
    """An objective that inherits from nothing: denoising, with levels of its own and no grid"""
    def attach(self, net): self.followed = 0
    def parameters(self): return []
    def state_dict(self): return {}
    def load_state_dict(self, state): assert state == {}
    def follow(self, net, output): self.followed += 1

    def step(self, model, x, k, K, generator=None, **kwargs):
        upper = torch.rand(len(x), generator=generator) + 0.1
        noise = torch.randn(x.shape, generator=generator)
        return SimpleNamespace(predicted=model(x + upper[:, None] * noise, upper), target=x,
            upper=upper)

    def loss(self, output): return squared_error(output.predicted, output.target)


def test_an_objective_of_ones_own_without_a_grid_trains_and_resumes(tmp_path):
    settings = {"objective": Bare(), "steps": 100, "batch_size": 128, "learning_rate": 0.02}
    trainer = make_trainer(**settings)
    states = list(trainer.train())
    assert states[0].num_timesteps is None and trainer.objective.followed == 100
    assert sum(s.loss for s in states[-10:]) < 0.8 * sum(s.loss for s in states[:10])
    assert same(resumed(tmp_path, 13, **settings), trainer)


def test_the_state_says_what_happened():
    state = next(make_trainer(batch_size=8, accumulate=3).train())
    assert state.losses.shape == state.upper.shape == (24,) and state.samples == 24
    assert state.step == 1
    assert state.num_timesteps == 11 and state.learning_rate == learning_rate(0, 30)
    assert state.loss.ndim == 0 and not state.loss.requires_grad
    assert not torch.equal(*state.upper[:16].chunk(2))


# Keeps its promises: precision, compiled networks, networks of others

@pytest.mark.parametrize("settings",
    [{"precision": "bf16"}, {"clip_norm": 0.1}, {"optimizer": torch.optim.RAdam}], ids=str)
def test_settings_train(settings):
    trainer = run(make_trainer(steps=5, **settings))
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in weights(trainer))
    assert not torch.equal(next(trainer.net.parameters()), next(make_trainer().net.parameters()))


class Types(nn.Module):
    """A linear network that notes in which types it computes"""
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 2), set()

    def forward(self, x, sigma):
        y = self.layer(x)
        self.seen.add(y.dtype)
        return y


def test_each_trainer_keeps_its_precision_whatever_others_are_made():
    trainers = {p: make_trainer(net=Types, precision=p, objective=CT)
        for p in ("no", "bf16", "no", "bf16")}
    loops = [t.train() for t in trainers.values()]
    with pytest.raises(ValueError, match="fp16"): new_accelerator("fp16")
    for _ in range(3):
        for loop in loops: next(loop)
    assert trainers["no"].net.seen == {torch.float32}
    assert trainers["bf16"].net.seen == {torch.bfloat16}
    assert [trainers[p].accelerator.mixed_precision for p in ("no", "bf16")] == ["no", "bf16"]


def test_an_accelerator_of_ones_own_is_left_as_it_is():
    own = new_accelerator("bf16")
    make_trainer(precision="no")
    assert own.mixed_precision == "bf16"
    assert make_trainer(net=Types, accelerator=own).precision == "bf16"
    with pytest.raises(ValueError, match="precision"): make_trainer(precision="no", accelerator=own)
    with pytest.raises(ValueError, match="accumulate"):
        make_trainer(accelerator=Accelerator(gradient_accumulation_steps=4))


def test_precision_follows_the_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = run(make_trainer(net=Types, steps=1))
    assert trainer.net.seen == {torch.bfloat16}
    assert trainer.precision == "bf16" == make_trainer(precision="bf16").precision
    with pytest.raises(ValueError, match="'no', but Accelerate was told 'bf16'"):
        make_trainer(precision="no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="precision must be .* got 'fp8'"): make_trainer()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_trainer(precision="bf16").precision == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_float16_needs_a_gpu():
    with pytest.raises(ValueError, match="fp16.*needs a GPU.*'bf16' or 'no'"):
        make_trainer(precision="fp16")


def test_a_network_keeps_the_precision_it_came_with():
    net = run(make_trainer(net=Types, precision="bf16", steps=2)).net
    net.seen.clear()
    run(Trainer(net, TensorDataset(POINTS), steps=2))
    assert net.seen == {torch.float32}


class Dropped(nn.Module):
    """A network in which what is dropped can be read off its answer"""
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x, sigma): return 1e6 * self.drop(torch.ones_like(x)) + self.layer(x)


class Compared(ConsistencyTraining):
    """Consistency training that notes how many of the values that student and target dropped agree"""
    def step(self, model, *args, **kwargs):
        self.asked, self.answers = model, []
        output = super().step(self.noting(model), *args, **kwargs)
        one, other = (a > 1e5 for a in self.answers)
        assert 0.3 < one.float().mean() < 0.7
        self.agreement = [*getattr(self, "agreement", []), (one == other).float().mean().item()]
        return output

    def target(self, model): return self.noting(super().target(self.asked))

    def noting(self, model):
        def noted(*args):
            self.answers.append(model(*args))
            return self.answers[-1]
        return noted


@pytest.mark.parametrize("how",
    ["plain", "bf16", "half", pytest.param("compile", marks=[needs_compiler, slow]),
                                 pytest.param("in place", marks=[needs_compiler, slow])])
def test_student_and_target_drop_the_same(how):
    def net():
        made = Dropped().bfloat16() if how == "half" else Dropped()
        if how == "in place": made.compile()
        return made
    settings = {"bf16": {"precision": "bf16"}, "compile": {"compile": True}}.get(how, {})
    data = TensorDataset(POINTS.bfloat16() if how == "half" else POINTS)
    trainer = run(make_trainer(net=net, data=data, objective=Compared(), batch_size=64, steps=3,
        **settings))
    assert trainer.objective.agreement == [1.0] * 3


class Answers(ContinuousConsistencyTraining):
    """Keeps the answers that are trained"""
    def step(self, *args, **kwargs):
        output = super().step(*args, **kwargs)
        self.answers = [*getattr(self, "answers", []), output.predicted.detach()]
        return output


@slow
@needs_compiler
def test_a_compiled_network_drops_the_same_where_its_derivative_is_taken():
    """The derivative passes by what was compiled; both must draw the same."""
    known = []
    def noted(*args, **kwargs):
        found = path_derivative(*args, **kwargs)
        known.append(found[0])
        return found
    trainer = run(make_trainer(net=Dropped, objective=Answers(derivative=noted), steps=2,
        compile=True))
    assert all(map(torch.equal, trainer.objective.answers, known)) and len(known) == 2
    assert not torch.equal(*(k > 1e5 for k in known))


@slow
@needs_compiler
@pytest.mark.parametrize("how", ["asked for", "compiled before"])
def test_a_compiled_network_trains_the_same_weights_and_resumes(tmp_path, how):
    def net():
        return torch.compile(MLP(width=16, depth=1)) if how == "compiled before" else MLP(width=16,
            depth=1)
    settings = {"net": net, "steps": 4, "compile": how == "asked for"}
    plain, whole = run(make_trainer(steps=4)), run(make_trainer(**settings))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(plain), weights(whole)))
    assert same(resumed(tmp_path, 2, **settings), whole) and type(whole.average) is MLP


@BOTH
def test_an_average_of_a_spectral_norm_has_norm_one(objective):
    def net(): return Layer(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    trainer = run(make_trainer(net=net, objective=objective, steps=300, learning_rate=0.01))
    for copied in (trainer.average, *trainer.objective.kept.values()):
        assert torch.linalg.matrix_norm(copied.eval().layer.weight, 2).item() == pytest.approx(1,
            abs=0.02)
        assert all(torch.equal(a, b)
            for a, b in zip(copied.buffers(), trainer.net.buffers(), strict=True))


class Lazy(nn.Module):
    """A network that makes a buffer when it is first called"""
    def __init__(self, persistent):
        super().__init__()
        self.layer, self.persistent = nn.Linear(2, 2), persistent

    def forward(self, x, sigma):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.full((2,), 2.), persistent=self.persistent)
        return self.layer(x) * self.table


LAYERS = {"batch norm": lambda: Layer(nn.BatchNorm1d(2)),
    "weight norm": lambda: Layer(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
          "old spectral norm": lambda: Layer(nn.utils.spectral_norm(nn.Linear(2, 2))),
          "lazy": lambda: Lazy(False),
          "half": lambda: Layer(nn.Sequential(nn.Linear(2, 2),
          nn.BatchNorm1d(2)).to(torch.bfloat16))}


@pytest.mark.parametrize("net", LAYERS.values(), ids=LAYERS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_with_more_than_weights_train_and_resume(tmp_path, net):
    settings = {"net": net, "objective": CT, "steps": 8}
    whole = run(make_trainer(**settings))
    assert same(resumed(tmp_path, 4, **settings), whole)
    for copied in (whole.average, *whole.objective.kept.values()):
        assert {v.dtype for v in copied.parameters()} == {torch.float32}
        assert all(torch.equal(a, b) for a, b in zip(copied.buffers(), whole.net.buffers()))
    assert ConsistencySamplingAndEditing()(whole.average, POINTS, [80.0]).isfinite().all()


def test_a_network_in_float64_trains_on_data_in_float64():
    trainer = run(make_trainer(net=lambda: Layer().double(), data=TensorDataset(POINTS.double()),
        steps=2))
    assert {p.dtype for p in trainer.average.parameters()} == {torch.float64}


def test_a_partly_frozen_network_keeps_its_part():
    def partly():
        net = Layer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        net.layer[0].requires_grad_(False)
        return net
    trainer, start = (make_trainer(net=partly,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.1)) for _ in range(2))
    run(trainer)
    for net in (trainer.net, trainer.average):
        assert torch.equal(net.layer[0].weight, start.net.layer[0].weight)
        assert not torch.equal(net.layer[1].weight, start.net.layer[1].weight)


class TwoNames(nn.Module):
    """A layer that has two names, and a weight that two layers share"""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(8, 2), nn.Linear(2, 8)
        self.first, self.c.weight = self.a, self.a.weight

    def forward(self, x, sigma): return self.b((self.first(x) + self.c(x)).tanh())


@pytest.mark.parametrize("compile", (False, True))
def test_layers_of_two_names_are_trained(compile):
    net = TwoNames()
    weight = net.a.weight
    before = weight.detach().clone()
    run(Trainer(torch.compile(net, backend="eager") if compile else net, TensorDataset(POINTS),
        steps=20, objective=CT, batch_size=8))
    assert net.a.weight is weight is net.c.weight and weight.requires_grad
    assert not torch.equal(weight, before)


def test_training_needs_no_gradients_outside():
    with torch.no_grad(): assert run(make_trainer(steps=2)).step == 2


def test_memory_is_kept_where_there_is_glibc_and_nothing_happens_elsewhere(monkeypatch):
    from consistency_models import utils
    told = []
    class Library:
        gnu_get_libc_version = True
        def mallopt(self, *pair): told.append(pair)
    class Other: pass
    for platform, library, variables, expected in (
            ("linux", Library, {}, 2), ("linux", Other, {}, 0), ("darwin", Library, {}, 0),
            ("win32", None, {}, 0),
            ("linux", Library, {"MALLOC_TRIM_THRESHOLD_": "1"}, 0)):
        told.clear()
        with monkeypatch.context() as m:
            m.setattr(sys, "platform", platform)
            m.setattr(utils.ctypes, "CDLL", lambda name, library=library: library())
            for name in utils._OWN_MALLOC: m.delenv(name, raising=False)
            for name, value in variables.items(): m.setenv(name, value)
            keep_memory.__wrapped__()
        assert len(told) == expected, platform


# Keeps its promises: faults

def stopped(trainer):
    """The message of a run that stops, after a look at its weights and checkpoints"""
    before = None
    with pytest.raises(ValueError) as error:
        for _ in trainer.train(): before = [w.clone() for w in weights(trainer)]
    if before: assert all(torch.equal(a, b) for a, b in zip(weights(trainer), before))
    for path in trainer.checkpoints():
        assert all(v.isfinite().all() for v in read_checkpoint(path)["net"].values())
    return str(error.value)


@pytest.mark.parametrize("objective, bad", [(ICT, torch.nan), (CT, torch.inf)],
    ids=["iCT, nan", "CT, inf"])
def test_a_fault_in_the_data_stops_the_run_and_is_named(tmp_path, objective, bad):
    points = POINTS.clone()
    index = data_order(500, 16 * 12 + 3, 1).item()
    points[index, 1] = bad
    trainer = make_trainer(tmp_path, data=TensorDataset(points), objective=objective,
        checkpoint_every=5)
    assert "step 13 a loss is not finite" in (message := stopped(trainer))
    assert f"sample {index} of the data" in message
    assert trainer.step == 12
    assert [p.stem for p in trainer.checkpoints()] == ["000000010", "000000012"]
    again = make_trainer(tmp_path, objective=objective)
    assert again.resume() and same(run(again), run(make_trainer(objective=objective)))


def test_a_fault_in_a_data_set_read_sample_by_sample_is_named():
    x, y = images_and_labels()
    index = data_order(64, 40, 1).item()
    x[index] = torch.nan
    assert f"sample {index} of" in stopped(make_trainer(data=Pairs(x, y), steps=4, **LABELED))


class Breaking(nn.Module):
    """A network in which something is not finite the fifth time that it learns"""
    def __init__(self, where):
        super().__init__()
        self.layer, self.norm, self.where, self.times = nn.Linear(2, 2), nn.BatchNorm1d(2), where, 0
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x, sigma):
        self.times += torch.is_grad_enabled()
        y, bad = self.norm(self.layer(x)), self.times == 5
        if bad and self.where == "buffer": self.count.fill_(torch.nan)
        if bad and self.where == "gradient" and y.requires_grad:
            y.register_hook(lambda g: g * torch.nan)
        return y * torch.inf if bad and self.where == "loss" else y


@pytest.mark.parametrize("where, settings", [
    ("loss", {}), ("gradient", {}), ("buffer", {}),
    ("gradient", {"clip_norm": 1., "precision": "bf16"}),
    ("buffer", {"accumulate": 2})], ids=str)
def test_a_fault_in_the_network_stops_the_run_before_it_leaves_a_trace(tmp_path, where, settings):
    trainer = make_trainer(tmp_path, net=lambda: Breaking(where), checkpoint_every=2, **settings)
    assert f"step {-(-5 // settings.get('accumulate', 1))} a {where}" in stopped(trainer)
    trainer.net.where = None
    assert same(run(trainer), run(make_trainer(net=lambda: Breaking(None), **settings)))


def test_a_fault_in_what_the_objective_learns_stops_the_run():
    class Faulty(LearnedWeight):
        def loss(self, output):
            losses = super().loss(output)
            u = self.kept["u"].weight.sum()
            if not torch.is_grad_enabled() or not losses.requires_grad: return losses
            self.times = getattr(self, "times", 0) + 1
            extra = u * 0
            if self.times == 3: extra.register_hook(lambda g: g * torch.nan)
            return losses + extra
    trainer = make_trainer(objective=Faulty(final_timesteps=20))
    assert "step 3 a gradient is not finite" in stopped(trainer) and trainer.step == 2


def test_a_distance_that_fails_stops_the_run():
    def distance(a, b):
        d = pseudo_huber_loss(a, b)
        return torch.where(torch.arange(len(d))[:, None] == 3, torch.nan,
            d)      # no gradient of it is nan
    assert "step 1 a loss" in stopped(make_trainer(objective=ImprovedConsistencyTraining(
        distance=distance)))


def test_a_gradient_that_is_large_and_finite_is_no_fault():
    objective = ImprovedConsistencyTraining(final_timesteps=20, distance=lambda a,
        b: 1e15 * squared_error(a, b))
    assert run(make_trainer(objective=objective, steps=3)).step == 3


class Keeps(nn.Module):
    """A network whose buffers hold nan until they are used, and are replaced in each call"""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("unused", torch.full((3,), torch.nan))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x, sigma):
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return self.layer(x)


def test_a_buffer_that_was_nan_from_the_start_is_no_fault_and_one_that_is_replaced_is_put_back():
    assert run(make_trainer(net=Keeps, steps=3)).step == 3
    data = POINTS.clone()
    data[7] = torch.nan
    trainer = make_trainer(net=Keeps, data=TensorDataset(data), steps=50)
    assert "sample 7 of the data" in stopped(trainer) and trainer.net.seen.isfinite().all()


FAULTY = """
import json, sys
import torch
from torch.utils.data import TensorDataset
from consistency_models import MLP, ConsistencyTraining, Trainer
from consistency_models.trainer import data_order
x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
index = data_order(64, 8 * (2 * 3 + 1) + 5, 1).item()          # step 4, second process
x[index] = torch.nan
trainer = Trainer(MLP(width=8, depth=1), TensorDataset(x), steps=6, batch_size=8, out=sys.argv[1], checkpoint_every=2,
                  objective=ConsistencyTraining())
start = [p.tolist() for m in (trainer.net, trainer.average, trainer.objective.kept) for p in m.parameters()]
try:
    for _ in trainer.train(): pass
except ValueError as e: message = str(e)
weights = [p.isfinite().all().item() for m in (trainer.net, trainer.average) for p in m.parameters()]
found = {"step": trainer.step, "message": message, "finite": all(weights), "index": index, "start": start}
json.dump(found, open(f"{sys.argv[1]}/{trainer.accelerator.process_index}.json", "w"))
"""


@slow
def test_two_processes_start_from_the_same_averages_and_a_fault_that_one_meets_stops_both(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    on_two_processes(tmp_path / "faulty.py", tmp_path / "run")
    first, second = (json.loads((tmp_path / f"run/{rank}.json").read_text()) for rank in (0, 1))
    assert first["start"] == second["start"]      # the networks were not seeded
    for found in (first, second):
        assert found["step"] == 3 and found["finite"]
        assert "in step 4 a loss is not finite" in found["message"]
    assert f"sample {second['index']} of the data" in second["message"]
    assert "this process read are finite" in first["message"]
    assert read_checkpoint(tmp_path / "run/checkpoints/000000003.pt")["step"] == 3


class Failing(Pairs):
    """Raises once, at the 40th sample that is read"""
    read = 0
    def __getitem__(self, i):
        self.read += 1
        if self.read == 40: raise OSError("away")
        return super().__getitem__(i)


def test_an_error_in_the_middle_of_a_step_leaves_no_trace_and_the_folder_free(tmp_path):
    settings = LABELED | {"steps": 4, "accumulate": 2}
    trainer = make_trainer(tmp_path, data=Failing(*images_and_labels()), **settings)
    with pytest.raises(OSError): run(trainer)
    assert same(run(trainer), run(make_trainer(data=Pairs(*images_and_labels()), **settings)))


# Keeps its promises: one loop

def test_a_second_loop_of_a_trainer_is_refused_while_the_first_lives():
    trainer, told = make_trainer(steps=10_000), []
    states = trainer.train()
    next(states)
    with pytest.raises(ValueError, match="already training"): next(trainer.train())
    def second():
        with pytest.raises(ValueError, match="another thread"): next(trainer.train())
        told.append(True)
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert told and next(states).step == 2
    states.close()
    states = trainer.train()
    next(states)
    states = trainer.train()          # the first one is gone now
    assert next(states).step == 4
    del states
    thread = threading.Thread(target=run, args=(trainer, 7))
    thread.start()
    thread.join()
    assert trainer.step == 7


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_within_a_step_is_heard_by_the_handler_of_the_program_after_it():
    heard, trainer = [], make_trainer(steps=3, net=lambda: Interrupting())
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(trainer.step))
    try: run(trainer)
    finally: signal.signal(signal.SIGINT, before)
    assert heard == [1, 2, 3]


class Interrupting(Layer):
    """A network during whose training Ctrl-C is pressed"""
    def forward(self, x, sigma):
        if torch.is_grad_enabled(): signal.raise_signal(signal.SIGINT)
        return super().forward(x, sigma)


# Refuses

def test_a_run_that_was_begun_by_another_method_or_with_another_teacher(tmp_path):
    settings = with_method(ContinuousConsistencyTraining, steps=2)
    teacher = dropping_unet()
    other = copy.deepcopy(teacher)
    with torch.no_grad(): other.out.bias += 1e-3
    run(make_trainer(tmp_path, **settings | {"objective": ConsistencyDistillation(teacher)}), 1)
    for objective, message in (
            (ContinuousConsistencyTraining(), "its objective is 'ConsistencyDistillation"),
            (ConsistencyDistillation(teacher, num_timesteps=40), "num_timesteps=18.*=40"),
            (ConsistencyDistillation(other), "another teacher"),
            (ConsistencyDistillation(guided(teacher, 1.)), "another network")):
        trainer = make_trainer(tmp_path, **settings | {"objective": objective})
        before = [w.clone() for w in weights(trainer)]
        with pytest.raises(ValueError, match=message): trainer.resume()
        assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))
    assert make_trainer(tmp_path, **settings | {
        "objective": ConsistencyDistillation(copy.deepcopy(teacher))}).resume()
    strong, weak = (ConsistencyDistillation(guided(teacher, w)) for w in (2., 1.5))
    run(make_trainer(tmp_path / "guided", **settings | {"objective": strong}), 1)
    with pytest.raises(ValueError, match="another guidance"):
        make_trainer(tmp_path / "guided", **settings | {"objective": weak}).resume()


class Stream(IterableDataset):
    def __len__(self): return 40
    def __iter__(self): return iter(POINTS)


@pytest.mark.parametrize("settings, error, message", [
    ({"steps": 0}, ValueError, "steps"), ({"accumulate": 1.5}, TypeError, "accumulate"),
    ({"learning_rate": float("nan")}, ValueError, "learning_rate"),
    ({"ema_decay": 1.1}, ValueError, "ema_decay"),
    ({"clip_norm": 0}, ValueError, "clip_norm"), ({"precision": "fp8"}, ValueError, "precision"),
    ({"net": lambda: "net"}, TypeError, "net must be"),
    ({"data": []}, ValueError, "data must hold"),
    ({"data": Stream()}, TypeError, "length and numbered samples.* got Stream"),
    ({"data": {"x": POINTS}}, TypeError, "numbered samples"),
    ({"data": TensorDataset(POINTS.double())}, TypeError, r"float64: convert it with .float\(\)"),
    ({"net": lambda: MLP(width=16).double()}, TypeError, r"convert it with .double\(\)"),
    ({"tracker": "tensorboard"}, ValueError, "out="),
    ({"conditions": "class_labels"}, TypeError, r'such as \("class_labels",\)'),
    ({"conditions": ("class_labels",)}, ValueError,
    r"conditions=\('class_labels',\) needs .* 1 more, got x and 0 more"),
    ({"optimizer": torch.optim.LBFGS}, TypeError, "without a closure, which LBFGS needs"),
    ({"optimizer": list}, TypeError, "torch optimizer, got list"),
    ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, TypeError,
    "from parameters.* got SGD"),
    ({"objective": ImprovedConsistencyTraining}, TypeError,
    "objective must be an Objective.* got ImprovedConsistencyTraining"),
    ({"objective": ConsistencyDistillation}, TypeError,
    "objective must be an Objective.* got ConsistencyDistillation"),
    ({"objective": ConsistencyDistillation("mnist")}, TypeError,
    "denoiser must be a network.* got 'mnist'"),
    ({"objective": ContinuousConsistencyDistillation(MLP)}, TypeError,
    "denoiser must be a network.* got <class"),
    ({"objective": lambda model, x, k, K: x}, TypeError,
    "objective must be an Objective.* without attach, step, loss"),
    ({"net": lambda: Layer(nn.LazyLinear(2))}, ValueError, "lazy layers.*call it once"),
    ({"net": lambda: from_pretrained("digits")}, ValueError, r"requires_grad_\(True\)")],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_bad_settings_fail_at_once(settings, error, message):
    with pytest.raises(error, match=message): make_trainer(**settings)


@pytest.mark.parametrize("item, settings, error", [
    (lambda i: {"x": POINTS[i]}, {},
    r"data must yield tensors x or tuples \(x, column, ...\), got dict"),
    (lambda i: (), {}, "data must yield"),
    (lambda i: None, {}, "data must yield .*None"),
    (lambda i: (POINTS[i], None), {}, "data must yield .*None"),
    (lambda i: POINTS[i].double().numpy(), {}, "float64: convert"),
    (lambda i: POINTS[i].half(), {}, "float16: convert"),
    (lambda i: POINTS[i].byte(), {}, r"floating point, in \[-1, 1\], got torch.uint8; .*127.5"),
    (lambda i: (POINTS[i], "cat"), LABELS, "class_labels must be numbers, got str"),
    (lambda i: (POINTS[i], {"a": 1}), LABELS, "class_labels must be numbers, got dict")],
    ids=["dict", "empty", "None", "label None", "float64", "float16", "bytes", "text label",
    "dict label"])
def test_samples_that_cannot_be_used_are_refused_at_the_start(item, settings, error):
    with pytest.raises(TypeError, match=error):
        make_trainer(net=Layer, data=Items(item), **settings)
    if sys.platform != "linux":
        return                              # workers would have to pickle the item
    with pytest.raises(TypeError, match=error):
        next(make_trainer(net=Layer, data=Items(item), workers=1, **settings).train())


def test_samples_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        run(make_trainer(net=Layer, data=Items(lambda i: torch.zeros(1 + i % 2))))


def test_a_first_call_that_adds_something_for_good_is_refused_before_a_step():
    trainer = make_trainer(net=lambda: Lazy(True))
    before = trainer.net.layer.weight.clone()
    with pytest.raises(ValueError, match="call it once, as net.x, sigma.*table"): run(trainer)
    assert trainer.step == 0 and torch.equal(trainer.net.layer.weight, before)
    assert run(make_trainer(net=lambda: trainer.net, steps=2)).step == 2


class Narrow(Layer):
    """A network that leaves out a value"""
    def forward(self, x, sigma): return super().forward(x, sigma)[:, :1]


@pytest.mark.parametrize("objective", [ICT, ContinuousConsistencyTraining()], ids=["iCT", "sCT"])
def test_a_network_whose_answer_has_another_shape_is_refused_before_a_step(objective):
    trainer = make_trainer(net=Narrow, objective=objective)
    with pytest.raises(ValueError, match=r"must return a tensor of the shape of x, \(16, 2\), got"):
        next(trainer.train())
    assert trainer.step == 0


class Silent(ImprovedConsistencyTraining):
    """Does not say which levels it drew, or gives one loss for all"""
    def step(self, *args, **kwargs):
        output = super().step(*args, **kwargs)
        return SimpleNamespace(**vars(output), upper=None) if self.final_timesteps == 20 else output
    def loss(self, output):
        return torch.zeros(()) if self.final_timesteps == 30 else torch.zeros(16,
            requires_grad=True)


@pytest.mark.parametrize("timesteps, message",
    [(20, "upper must hold one value for each sample.* got None"),
    (30, r"loss\(output\) must .* got \(\)")])
def test_objectives_that_do_not_say_enough_are_refused_before_a_step(timesteps, message):
    trainer = make_trainer(objective=Silent(final_timesteps=timesteps))
    with pytest.raises(ValueError, match=message): next(trainer.train())
    assert trainer.step == 0
    assert torch.equal(next(trainer.net.parameters()), next(make_trainer().net.parameters()))
