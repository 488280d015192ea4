"""The trainer: resumed runs equal whole ones bit for bit, shards equal processes, and checkpoints are whole or refused."""
import copy
import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from consistency_models import (
    MLP,
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    LossByLevel,
    Trainer,
    UNet,
    data_order,
    finish_first,
    from_pretrained,
    learning_rate,
    new_accelerator,
    progress,
    pseudo_huber_loss,
    read_checkpoint,
    shard_seed,
    two_moons,
    watch,
    write_checkpoint,
)

POINTS = two_moons(500, generator=torch.Generator().manual_seed(0))


def make(out=None, net=None, data=None, **settings):
    """A small trainer whose weights start from seed 0"""
    torch.manual_seed(0)
    settings = {"steps": 30, "batch_size": 16, "objective": ImprovedConsistencyTraining(final_timesteps=20)} | settings
    return Trainer(net() if net else MLP(width=16, depth=1), TensorDataset(POINTS) if data is None else data, out=out, **settings)


def run(trainer, until=None):
    """Train up to a step and return the trainer"""
    for state in trainer.train():
        if state.step == until: break
    return trainer


def weights(trainer):
    parts = [trainer.net, trainer.average] + ([trainer.teacher] if trainer.teacher else [])
    return [v for part in parts for v in part.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


# Randomness without memory

def test_each_epoch_shows_each_sample_once():
    order = torch.cat([data_order(7, place, 5) for place in range(0, 35, 5)])
    assert all(sorted(order[i:i + 7].tolist()) == list(range(7)) for i in range(0, 35, 7))


def test_order_can_be_read_from_any_place():
    assert torch.equal(data_order(11, 0, 40, seed=3)[17:29], data_order(11, 17, 12, seed=3))


def test_seeds_of_shards_differ():
    assert len({shard_seed(s, k, i) for s in range(5) for k in range(50) for i in range(8)}) == 2000


def test_same_settings_give_the_same_weights():
    assert same(run(make()), run(make()))


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 8}, {"learning_rate": 2e-3}, {"ema_decay": 0.5}])
def test_other_settings_give_other_weights(change):
    assert not same(run(make()), run(make(**change)))


def test_what_the_loop_body_draws_changes_nothing():
    drawn = make()
    for _ in drawn.train(): torch.rand(7)
    assert same(drawn, run(make()))


class Masks(nn.Module):
    """A network with dropout that notes the masks it drew while it learned"""
    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.seen = nn.Linear(2, 2), nn.Dropout(0.5), []

    def forward(self, x, sigma):
        mask = self.drop(torch.ones(len(x), 64))
        if torch.is_grad_enabled(): self.seen.append(mask)
        return self.layer(x) * mask[:, :2]


def test_dropout_and_noise_differ_between_shards_and_steps():
    trainer = make(net=Masks, accumulate=2, steps=3)
    sigmas = [state.next_sigmas for state in trainer.train()]
    masks = trainer.net.seen
    assert len(masks) == 6 and all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert not torch.equal(*sigmas[0].chunk(2))


class Dropping(nn.Module):
    """A network that drops a tenth of its samples, and notes which, and at which noise levels"""
    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(2, 2), []

    def forward(self, x, sigma):
        kept = x.new_empty(len(x), 1).bernoulli_(0.9)
        if torch.is_grad_enabled(): self.kept.append((kept[:, 0], sigma))
        return self.layer(x) * kept


def test_what_a_network_drops_does_not_depend_on_the_noise_level():
    trainer = run(make(net=Dropping, batch_size=64, steps=50, objective=ImprovedConsistencyTraining(initial_timesteps=40, final_timesteps=40)))
    kept, sigma = (torch.cat(parts) for parts in zip(*trainer.net.kept))
    for chosen in (sigma < 0.1, (sigma >= 0.1) & (sigma < 1), sigma >= 1):
        assert chosen.sum() > 500 and kept[chosen].mean().item() == pytest.approx(0.9, abs=0.05)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(k, 100, 1.0, 10) for k in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(rates[9], rel=0.03) and rates[100] == pytest.approx(0, abs=1e-9)
    assert learning_rate(99, 100, 1.0, 10, decay=False) == 1.0


# Training works

def distance(net):
    """Energy distance of one-step samples to the points"""
    x = ConsistencySamplingAndEditing()(net, POINTS, [80.0], generator=torch.Generator().manual_seed(0))
    return 2 * torch.cdist(x, POINTS).mean() - torch.cdist(x, x).mean() - torch.cdist(POINTS, POINTS).mean()


def test_training_brings_samples_to_the_data():
    trainer = make(net=MLP, steps=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98)
    assert distance(run(trainer).average) < 0.5 * distance(make(net=MLP).average)


def test_state_says_what_happened():
    state = next(make(batch_size=8, accumulate=3).train())
    assert state.losses.shape == state.next_sigmas.shape == (24,) and state.samples == 24 and state.step == 1 and state.num_timesteps == 11
    assert state.loss.ndim == 0 and not state.loss.requires_grad


def test_accumulated_shards_equal_one_batch_of_the_same_samples():
    """The gradient is the mean over all samples, however many passes it takes"""
    gradients = []
    def spy(parameters):
        parameters = list(parameters)
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone() for p in parameters]))
        return optimizer
    trainer = make(accumulate=2, batch_size=16, steps=1, optimizer=spy)
    run(trainer)
    expected = None
    for shard in range(2):
        torch.manual_seed(0)
        net, seed = MLP(width=16, depth=1), shard_seed(0, 0, shard)
        x = POINTS[data_order(500, 16 * shard, 16)]
        output = trainer.objective(net, x, 0, 1, generator=torch.Generator().manual_seed(seed))
        (trainer.loss(output.predicted, output.target) * output.loss_weights).mean().backward()
        grads = [p.grad / 2 for p in net.parameters()]
        expected = grads if expected is None else [a + b for a, b in zip(expected, grads)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], expected))


def test_consistency_training_moves_its_teacher():
    trainer = run(make(objective=ConsistencyTraining(final_timesteps=20)))
    parts = [list(m.parameters())[0] for m in (trainer.net, trainer.average, trainer.teacher)]
    assert not torch.equal(parts[0], parts[2]) and not torch.equal(parts[1], parts[2])


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"clip_norm": 0.1}, {"decay": False, "warmup": 0},
                                      {"optimizer": torch.optim.RAdam}, {"optimizer": torch.optim.SGD}])
def test_settings_train(settings):
    trainer = run(make(steps=5, **settings))
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in weights(trainer) if v.is_floating_point())
    assert not torch.equal(next(trainer.net.parameters()), next(make().net.parameters()))


def test_precision_can_change_within_a_program():
    for precision in ("no", "bf16", "no"): assert make(precision=precision).accelerator.mixed_precision == precision


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
    trainers = {p: make(net=Types, precision=p, objective=ConsistencyTraining(final_timesteps=20)) for p in ("no", "bf16", "no", "bf16")}
    loops = [t.train() for t in trainers.values()]
    with pytest.raises(ValueError, match="fp16"): make(precision="fp16")
    for _ in range(3):
        for loop in loops: next(loop)
    assert trainers["no"].net.seen == {torch.float32} and trainers["bf16"].net.seen == {torch.bfloat16}
    assert [trainers[p].accelerator.mixed_precision for p in ("no", "bf16")] == ["no", "bf16"]


def test_an_accelerator_of_ones_own_is_left_as_it_is():
    own = new_accelerator("bf16")
    make(precision="no")
    with pytest.raises(ValueError): make(precision="fp16")
    assert own.mixed_precision == "bf16" and make(net=Types, accelerator=own).precision == "bf16"


def test_precision_follows_the_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = run(make(net=Types, steps=1))
    assert trainer.net.seen == {torch.bfloat16} and trainer.precision == trainer._facts()["precision"] == "bf16"
    assert make(precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="'no', but Accelerate was told 'bf16'"): make(precision="no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="precision must be .* got 'fp8'"): make()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make(precision="bf16").precision == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_float16_needs_a_gpu():
    with pytest.raises(ValueError, match="fp16.*needs a GPU.*'bf16' or 'no'"): make(precision="fp16")


class Pairs(Dataset):
    """The same digits as a dataset without a tensor behind it"""
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], int(self.y[i])


def digits_and_labels(n=64):
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)


def small_unet():
    return UNet(channels=(8, 16), num_classes=3, dropout=0.2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_what_tensors_in_memory_give(workers):
    x, y = digits_and_labels()
    settings = {"net": small_unet, "labels": True, "steps": 4, "channels_last": True}
    assert same(run(make(data=TensorDataset(x, y), **settings)), run(make(data=Pairs(x, y), workers=workers, **settings)))


class Shifted(TensorDataset):
    """A data set in memory that is not a plain one"""
    def __getitem__(self, i): return (self.tensors[0][i] + torch.randn(2),)


def test_a_subclass_of_tensors_in_memory_is_read_sample_by_sample():
    data = Shifted(torch.zeros(8, 2))
    x, = next(make(data=data, batch_size=8)._batches())
    assert len(x.unique(dim=0)) == 8
    assert same(run(make(data=data, steps=4)), run(make(data=data, steps=4)))


@pytest.mark.parametrize("shape", ["(n,)", "(n, 1)", "(n, d)"])
def test_a_loss_may_have_one_value_for_each_sample_or_more(shape):
    def loss(a, b):
        d = (a - b).square()
        return d if shape == "(n, d)" else d.mean(1, keepdim=shape == "(n, 1)")
    expected = run(make(steps=3, loss=lambda a, b: (a - b).square().mean(1, keepdim=True)))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(weights(run(make(steps=3, loss=loss))), weights(expected)))


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, lambda a, b: (a - b).square().mean(0)])
def test_a_loss_without_a_value_for_each_sample_is_refused(loss):
    with pytest.raises(ValueError, match="each sample"): run(make(loss=loss))


class Failing(Pairs):
    """Raises once, at the 40th sample that is read"""
    read = 0
    def __getitem__(self, i):
        self.read += 1
        if self.read == 40: raise OSError("away")
        return super().__getitem__(i)


def test_an_error_in_the_middle_of_a_step_leaves_no_trace():
    settings = {"net": small_unet, "labels": True, "steps": 4, "accumulate": 2}
    trainer = make(data=Failing(*digits_and_labels()), **settings)
    with pytest.raises(OSError): run(trainer)
    assert same(run(trainer), run(make(data=Pairs(*digits_and_labels()), **settings)))


class CountingSGD(torch.optim.SGD):
    """Counts its steps in plain numbers, and falls with them"""
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] /= group["count"]
            for p in group["params"]: self.state[p]["own"] = self.state[p].get("own", 0) + 1
        super().step(closure)
        assert all(self.state[p]["own"] == group["count"] for p in group["params"])


def test_plain_numbers_of_an_optimiser_survive_a_resume(tmp_path):
    settings = {"optimizer": CountingSGD, "steps": 8, "learning_rate": 0.1}
    run(make(tmp_path, **settings), until=4)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), run(make(**settings)))


@pytest.mark.parametrize("change", [{"dropout": 0.5}, {"sigma_data": 1.}, {"precondition": False}])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, change):
    data = TensorDataset(digits_and_labels()[0])
    run(make(tmp_path, net=lambda: UNet(channels=(8, 16)), data=data, steps=2))
    with pytest.raises(ValueError, match="network"): make(tmp_path, net=lambda: UNet(channels=(8, 16), **change), data=data, steps=2).resume()


class PlainObjective:
    """An objective whose text is its place in memory"""
    def __init__(self): self.inner = ImprovedConsistencyTraining(final_timesteps=20)
    def __call__(self, model, x, *args, **kwargs): return self.inner(model, x, *args, **kwargs)


def test_an_objective_without_a_text_of_its_own_can_be_resumed(tmp_path):
    run(make(tmp_path, objective=PlainObjective()), until=3)
    assert make(tmp_path, objective=PlainObjective()).resume()


def test_numbers_of_other_libraries_serve_as_settings(tmp_path):
    run(make(tmp_path, learning_rate=torch.tensor(1e-3), ema_decay=np.float32(0.9), clip_norm=np.float64(1.), steps=2))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_settings_that_cannot_be_kept_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder"): make(tmp_path / "file")
    with pytest.raises(ValueError, match="precision"): make(precision="bf16", accelerator=make().accelerator)
    with pytest.raises(ValueError, match="accumulate"): make(accelerator=Accelerator(gradient_accumulation_steps=4))


def test_a_second_loop_of_a_trainer_is_refused_while_the_first_lives():
    trainer, told = make(steps=10_000), []
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
    assert run(trainer, 3).step == 3
    states = trainer.train()
    next(states)
    states = trainer.train()          # the first one is gone now
    assert next(states).step == 5
    del states
    thread = threading.Thread(target=run, args=(trainer, 7))
    thread.start()
    thread.join()
    assert trainer.step == 7


def test_a_loop_that_failed_leaves_the_trainer_and_its_folder_free(tmp_path):
    trainer = make(tmp_path, data=Failing(*digits_and_labels()), net=small_unet, labels=True, steps=4)
    with pytest.raises(OSError): run(trainer)
    assert run(trainer).step == 4


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    first = make(tmp_path / "run", checkpoint_every=5)
    states = first.train()
    for _ in range(7): next(states)
    for path in (tmp_path / "run", str(tmp_path / "x" / ".." / "run")):
        second = make(path)
        with pytest.raises(ValueError, match="another run writes to .*run"): next(second.train())
        with pytest.raises(ValueError, match="another run writes to .*run"): second.save()
    first.save()
    assert next(states).step == 8 and [p.stem for p in first.checkpoints()] == ["000000005", "000000007"]
    del states                          # as a notebook forgets it
    gc.collect()
    assert second.resume() and second.step == 8 and same(run(second), run(make()))


@pytest.mark.parametrize("around", [progress, lambda s: watch(s, None, every=10**6), lambda s: watch(progress(s), None, every=10**6)])
def test_closing_a_generator_around_the_loop_writes_the_checkpoint(tmp_path, around):
    inner = make(tmp_path).train()
    outer = around(inner)
    next(outer)
    outer.close()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_handler_of_the_program_hears_ctrl_c():
    heard, before = [], signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        with finish_first(): signal.raise_signal(signal.SIGINT)
    finally: signal.signal(signal.SIGINT, before)
    assert heard == [True]


class Augmented(Pairs):
    """Digits that are shifted by random numbers each time they are read"""
    def __getitem__(self, i): return self.x[i] + torch.randn(1, 8, 8), int(self.y[i])


def test_augmentation_is_the_same_in_any_process_and_after_a_resume(tmp_path):
    settings = {"net": small_unet, "labels": True, "steps": 6, "data": Augmented(*digits_and_labels())}
    whole = run(make(**settings))
    assert same(whole, run(make(workers=2, **settings)))
    run(make(tmp_path, workers=2, **settings), until=3)
    resumed = make(tmp_path, workers=2, **settings)
    assert resumed.resume() and resumed.step == 3 and same(whole, run(resumed))


class Elsewhere(Dataset):
    """Points that are moved by the generators of three libraries"""
    def __len__(self): return 40
    def __getitem__(self, i): return POINTS[i] + torch.tensor([np.random.rand(), random.random()]).float() + torch.rand(2)


def generators(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_what_samples_draw_elsewhere_is_the_same_in_any_process_and_after_a_resume(tmp_path):
    def started(seed):
        np.random.seed(seed)
        random.seed(seed)
        return seed
    whole, loaded = ((started(w), run(make(data=Elsewhere(), steps=6, workers=w)))[1] for w in (0, 2))
    assert same(whole, loaded)
    run(make(tmp_path, data=Elsewhere(), steps=6), until=3)
    resumed = make(tmp_path, data=Elsewhere(), steps=6, workers=2)
    assert resumed.resume() and same(run(resumed), whole)
    x = torch.cat([next(make(data=Elsewhere(), seed=s)._batches()) for s in (0, 1)])
    assert len(x.unique(dim=0)) == 32


class Restless(nn.Module):
    """A network that draws from the generators of three libraries"""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, sigma): return self.layer(x) * (np.random.rand() + random.random() + torch.rand(()))


class NoisySGD(torch.optim.SGD):
    """Adds noise to each step"""
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]: p.add_(torch.randn_like(p), alpha=1e-3 * np.random.rand() * random.random())


@pytest.mark.parametrize("data, workers", [(None, 0), (Elsewhere(), 0), (Elsewhere(), 1)])
def test_the_generators_of_the_program_are_left_as_they_were(data, workers):
    net = Restless()
    before = generators()
    for _ in Trainer(net, data or TensorDataset(POINTS), steps=3, workers=workers, optimizer=NoisySGD).train(): assert generators() == before
    assert generators() == before


def test_networks_and_optimisers_that_draw_elsewhere_are_seeded_too(tmp_path):
    settings = {"net": Restless, "optimizer": NoisySGD, "steps": 6}
    run(make(tmp_path, **settings), until=3)
    np.random.seed(1)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), run(make(**settings)))


def test_augmentation_differs_from_sample_to_sample_and_step_to_step():
    data = Augmented(torch.zeros(4, 1, 8, 8), torch.zeros(4))
    batches = make(net=small_unet, data=data, labels=True, steps=2, batch_size=4)._batches()
    x = torch.cat([next(batches)[0] for _ in range(2)]).flatten(1)
    assert len(x.unique(dim=0)) == 8


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_network_trains_the_same_weights():
    plain, compiled = run(make(steps=3)), run(make(steps=3, compile=True))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(plain), weights(compiled)))


class Dropped(nn.Module):
    """A network in which what is dropped can be read off its answer"""
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x, sigma): return 1e4 * self.drop(torch.ones_like(x)) + self.layer(x)


class Compared:
    """Consistency training that notes how many of the values that student and teacher dropped agree"""
    def __init__(self): self.inner, self.initial_timesteps, self.agreement = ConsistencyTraining(sigma_max=1e-2), 2, []

    def __call__(self, student_model, teacher_model, x, *args, **kwargs):
        def noting(model, answers): return lambda *a: answers.append(model(*a)) or answers[-1]
        one, other = [], []
        output = self.inner(noting(student_model, one), noting(teacher_model, other), x, *args, **kwargs)
        self.agreement.append(((one[0] > 1e4) == (other[0] > 1e4)).float().mean().item())
        assert 0.3 < (one[0] > 1e4).float().mean() < 0.7
        return output


COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")


@pytest.mark.parametrize("how", ["plain", "bf16", "half", "channels last", pytest.param("compile", marks=COMPILER), pytest.param("compiled", marks=COMPILER),
                                 pytest.param("in place", marks=COMPILER)])
def test_student_and_teacher_drop_the_same(how):
    def net():
        made = Dropped().bfloat16() if how == "half" else Dropped()
        if how == "in place": made.compile()
        return torch.compile(made) if how == "compiled" else made
    settings = {"bf16": {"precision": "bf16"}, "compile": {"compile": True}, "channels last": {"channels_last": True}}.get(how, {})
    data = TensorDataset(POINTS.bfloat16() if how == "half" else POINTS)
    trainer = run(make(net=net, data=data, objective=Compared(), batch_size=64, steps=3, **settings))
    assert trainer.objective.agreement == [1.0] * 3


# A fault stops the run

def stopped(trainer):
    """The message of a run that stops, after a look at its weights and checkpoints"""
    before = None
    with pytest.raises(ValueError) as error:
        for _ in trainer.train(): before = [w.clone() for w in weights(trainer)]
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), before or [w.clone() for w in weights(trainer)]))
    for path in trainer.checkpoints(): assert all(v.isfinite().all() for v in read_checkpoint(path)[0].values())
    return str(error.value)


@pytest.mark.parametrize("objective", [ImprovedConsistencyTraining(final_timesteps=20), ConsistencyTraining(final_timesteps=20)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_fault_in_the_data_stops_the_run_and_is_named(tmp_path, objective, bad):
    points, place = POINTS.clone(), 16 * 12 + 3
    index = data_order(500, place, 1).item()
    points[index, 1] = bad
    trainer = make(tmp_path, data=TensorDataset(points), objective=objective, checkpoint_every=5)
    assert "step 13 a loss is not finite" in (message := stopped(trainer)) and f"sample {index} of the data" in message
    assert trainer.step == 12 and [p.stem for p in trainer.checkpoints()] == ["000000010", "000000012"]
    again = make(tmp_path, objective=objective)
    assert again.resume() and same(run(again), run(make(objective=objective)))


def test_a_fault_in_a_data_set_read_sample_by_sample_is_named():
    x, y = digits_and_labels()
    x[data_order(64, 40, 1).item()] = torch.nan
    assert f"sample {data_order(64, 40, 1).item()} of" in stopped(make(data=Pairs(x, y), net=small_unet, labels=True, steps=4))


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
        if bad and self.where == "gradient" and y.requires_grad: y.register_hook(lambda g: g * torch.nan)
        return y * torch.inf if bad and self.where == "loss" else y


@pytest.mark.parametrize("where", ["loss", "gradient", "buffer"])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.}, {"precision": "bf16"}, {"accumulate": 2}])
def test_a_fault_in_the_network_stops_the_run_before_it_leaves_a_trace(tmp_path, where, settings):
    trainer = make(tmp_path, net=lambda: Breaking(where), checkpoint_every=2, **settings)
    assert f"step {-(-5 // settings.get('accumulate', 1))} a {where}" in stopped(trainer)
    trainer.net.where = None
    assert same(run(trainer), run(make(net=lambda: Breaking(None), **settings)))


def test_a_loss_function_that_fails_stops_the_run():
    def loss(a, b):
        d = pseudo_huber_loss(a, b)
        return torch.where(torch.arange(len(d))[:, None] == 3, torch.nan, d)      # no gradient of it is nan
    assert "step 1 a loss" in stopped(make(loss=loss))


def test_a_class_whose_embedding_is_broken_stops_the_run():
    x, _ = digits_and_labels()
    trainer = make(net=small_unet, data=TensorDataset(x, torch.arange(64) // 63), labels=True, steps=9)
    with torch.no_grad(): next(m for m in trainer.net.modules() if isinstance(m, nn.Embedding)).weight[1] = torch.nan
    place = next(p for p in range(64) if data_order(64, p, 1).item() == 63)
    with pytest.raises(ValueError, match=f"step {place // 16 + 1} a loss"): run(trainer)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make(tmp_path)
    list(trainer.net.parameters())[2].data.view(-1)[0] = torch.inf
    with pytest.raises(ValueError, match=r"net\..* is not finite after step 0"): trainer.save()
    assert trainer.checkpoints() == []


def test_a_mask_of_infinities_is_no_fault(tmp_path):
    def masked():
        net = MLP(width=16, depth=1)
        net.register_buffer("mask", torch.full((3,), -torch.inf))
        return net
    run(make(tmp_path, net=masked, steps=2))


# Averages

class Wrapped(nn.Module):
    """A layer as a network; with labels it ignores them"""
    def __init__(self, layer=None):
        super().__init__()
        self.layer = layer or nn.Linear(2, 2)

    def forward(self, x, sigma, class_labels=None): return self.layer(x.to(next(self.layer.parameters()).dtype)).to(x.dtype)


BOTH = pytest.mark.parametrize("objective", [ImprovedConsistencyTraining(final_timesteps=20), ConsistencyTraining(final_timesteps=20)])


@BOTH
def test_an_average_of_a_spectral_norm_has_norm_one(objective):
    trainer = run(make(net=lambda: Wrapped(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))), objective=objective, steps=300, learning_rate=0.01))
    for copied in filter(None, (trainer.average, trainer.teacher)):
        assert torch.linalg.matrix_norm(copied.eval().layer.weight, 2).item() == pytest.approx(1, abs=0.02)
        assert all(torch.equal(a, b) for a, b in zip(copied.buffers(), trainer.net.buffers(), strict=True))


@BOTH
@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(2), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
                                   lambda: nn.utils.weight_norm(nn.Linear(2, 2)), lambda: nn.utils.spectral_norm(nn.Linear(2, 2))])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_with_more_than_weights_train_and_resume(tmp_path, objective, layer):
    settings = {"net": lambda: Wrapped(layer()), "objective": objective, "steps": 8}
    run(make(tmp_path, **settings), until=4)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), whole := run(make(**settings)))
    assert all(torch.equal(a, b) for a, b in zip(whole.average.buffers(), whole.net.buffers()))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_a_network_in_half_precision_are_kept_in_float32(tmp_path, objective, dtype):
    settings = {"net": lambda: Wrapped(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(dtype)), "objective": objective, "steps": 8}
    run(make(tmp_path, **settings), until=4)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), whole := run(make(**settings)))
    for copied in filter(None, (whole.average, whole.teacher)): assert {v.dtype for v in copied.parameters()} == {torch.float32}
    assert {v.dtype for v in whole.net.parameters()} == {dtype}
    assert ConsistencySamplingAndEditing()(whole.average, POINTS, [80.0]).isfinite().all()


# Networks of others

class Lazy(nn.Module):
    """A network that makes a buffer when it is first called"""
    def __init__(self, persistent):
        super().__init__()
        self.layer, self.persistent = nn.Linear(2, 2), persistent

    def forward(self, x, sigma):
        if not hasattr(self, "table"): self.register_buffer("table", torch.full((2,), 2.), persistent=self.persistent)
        return self.layer(x) * self.table


@BOTH
def test_a_buffer_made_in_the_first_call_and_not_saved_is_no_obstacle(tmp_path, objective):
    settings = {"net": lambda: Lazy(False), "objective": objective, "steps": 8}
    run(make(tmp_path, **settings), until=4)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), whole := run(make(**settings)))
    assert ConsistencySamplingAndEditing()(whole.average, POINTS, [80.0]).isfinite().all()


def test_what_a_first_call_adds_for_good_is_refused_before_a_step():
    trainer = make(net=lambda: Lazy(True))
    before = trainer.net.layer.weight.clone()
    with pytest.raises(ValueError, match="call it once, as net.x, sigma.*table"): run(trainer)
    assert trainer.step == 0 and torch.equal(trainer.net.layer.weight, before)
    run(make(net=lambda: trainer.net, steps=2))
    with pytest.raises(ValueError, match="lazy layers.*call it once"): make(net=lambda: Wrapped(nn.LazyLinear(2)))


@COMPILER
def test_a_compiled_network_trains_and_resumes(tmp_path):
    settings = {"net": lambda: torch.compile(MLP(width=16, depth=1)), "steps": 4}
    run(make(tmp_path, **settings), until=2)
    resumed = make(tmp_path, **settings)
    assert resumed.resume() and same(run(resumed), whole := run(make(**settings))) and type(whole.average) is MLP


class Config:
    """A configuration whose text is its place in memory"""


CONFIGS = [Config(), SimpleNamespace(inner=Config()), {(1, 2): {"x", "y"}, None: torch.ones(2), "f": len, "nan": float("nan"), 3: np.float32(2)}]
CONFIGS[2]["self"] = CONFIGS[2]


@pytest.mark.parametrize("config", CONFIGS, ids=["object", "namespace", "odd"])
def test_a_network_with_any_configuration_can_be_resumed(tmp_path, config):
    def net():
        made = Wrapped()
        made.config = copy.deepcopy(config)
        return made
    run(make(tmp_path, net=net), until=3)
    assert make(tmp_path, net=net).resume()


def test_a_frozen_network_is_refused_and_a_partly_frozen_one_keeps_its_part():
    with pytest.raises(ValueError, match=r"requires_grad_\(True\)"): make(net=lambda: from_pretrained("digits"), data=TensorDataset(digits_and_labels()[0]))
    def partly():
        net = Wrapped(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        net.layer[0].requires_grad_(False)
        return net
    trainer, start = make(net=partly, optimizer=partial(torch.optim.AdamW, weight_decay=0.1)), make(net=partly)
    run(trainer)
    for net in (trainer.net, trainer.average):
        assert torch.equal(net.layer[0].weight, start.net.layer[0].weight) and not torch.equal(net.layer[1].weight, start.net.layer[1].weight)


# Watching

def test_loss_by_level_is_a_mean_in_each_band():
    losses, state = LossByLevel(bands=4, memory=1.0), next(make().train())
    state.next_sigmas, state.losses = torch.tensor([0.003, 0.003, 70.0, 0.002, 80.0]), torch.tensor([1.0, 3.0, 5.0, 2.0, 7.0])
    losses.update(state)
    assert losses.means[0] == 2 and losses.means[3] == 6 and losses.means[1:3].isnan().all()
    assert len(str(losses)) == 4


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite_shows(bad):
    state, losses = next(make(batch_size=4).train()), LossByLevel()
    state.next_sigmas, state.losses = torch.tensor([0.003, 1., 1., 70.]), torch.tensor([1., bad, 2., 3.])
    losses.update(state)
    assert str(losses) == "▁····!···█" and losses.weight.sum() == 4


def test_progress_passes_every_state_on(capsys):
    assert [state.step for state in progress(make().train())] == list(range(1, 31))
    assert "30/30" in capsys.readouterr().err


def test_tensorboard_gets_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run(make(tmp_path, tracker="tensorboard", steps=40))
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent)).Reload()
    assert {"loss", "num_timesteps", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [20, 40]


# Checkpoints

@pytest.mark.parametrize("settings", [{}, {"objective": ConsistencyTraining(final_timesteps=20)}, {"accumulate": 2}, {"precision": "bf16"},
                                      {"optimizer": torch.optim.RAdam}])
def test_stopped_and_resumed_equals_whole(tmp_path, settings):
    run(make(tmp_path, **settings), until=13)
    second = make(tmp_path, **settings)
    assert second.resume() and second.step == 13
    assert same(run(second), run(make(**settings)))


def test_fused_optimizer_and_channels_last_resume_bit_for_bit(tmp_path):
    x, y = digits_and_labels()
    settings = {"net": small_unet, "data": TensorDataset(x, y), "labels": True, "channels_last": True, "steps": 8}
    run(make(tmp_path, **settings), until=3)
    second = make(tmp_path, **settings)
    second.resume()
    assert same(run(second), run(make(**settings)))


def test_groups_of_parameters_resume_bit_for_bit(tmp_path):
    """The optimiser numbers parameters by its groups, which need not be in the order of the network"""
    def grouped(parameters):
        kernels, others = [], []
        for p in parameters: (kernels if p.ndim > 1 else others).append(p)
        return torch.optim.AdamW([{"params": others, "weight_decay": 0.0}, {"params": kernels}], fused=True)
    x, y = digits_and_labels()
    settings = {"net": small_unet, "data": TensorDataset(x, y), "labels": True, "channels_last": True, "steps": 8, "optimizer": grouped}
    run(make(tmp_path, **settings), until=3)
    second = make(tmp_path, **settings)
    second.resume()
    assert same(run(second), run(make(**settings)))


def test_an_optimiser_that_cannot_be_stored_is_named(tmp_path):
    class Listing(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]: self.state[p]["past"] = [1, 2]
            return super().step(closure)
    with pytest.raises(TypeError, match="past"): run(make(tmp_path, steps=2, optimizer=Listing))


def test_files_of_others_in_the_folder_are_neither_read_nor_deleted(tmp_path):
    run(make(tmp_path, checkpoint_every=5), until=5)
    for name in ("best", "000000001-good", "zzz"): shutil.copy(tmp_path / "checkpoints/000000005.safetensors", tmp_path / f"checkpoints/{name}.safetensors")
    second = make(tmp_path, checkpoint_every=5)
    assert second.resume() and second.step == 5
    assert [p.stem for p in run(second).checkpoints()] == ["000000025", "000000030"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5


def grouped(parameters, **settings):
    first, second, *others = parameters
    return torch.optim.AdamW([{"params": [first, second], **settings}, {"params": others}])


AdamW = torch.optim.AdamW


@pytest.mark.parametrize("optimizer, named", [
    (torch.optim.SGD, "optimizer is 'AdamW', this trainer's is 'SGD'"), (torch.optim.Adam, "optimizer is 'AdamW', this trainer's is 'Adam'"),
    (partial(AdamW, betas=(0.8, 0.9)), "betas in group 0"), (partial(AdamW, weight_decay=0.5), "weight_decay in group 0"), (partial(AdamW, eps=1e-3), "eps in group 0"),
    (partial(AdamW, amsgrad=True), "amsgrad in group 0"), (partial(AdamW, maximize=True), "maximize in group 0"), (grouped, "parameters in group 0"),
    (lambda p: AdamW(list(p)[::-1]), "parameters in group 0"), (lambda p: AdamW(list(p)[:-1]), "parameters in group 0")])
def test_another_optimiser_does_not_continue_a_run(tmp_path, optimizer, named):
    run(make(tmp_path, optimizer=AdamW), until=3)
    trainer = make(tmp_path, optimizer=optimizer)
    with pytest.raises(ValueError, match=f"another run: its .*{named}"): trainer.resume()
    assert trainer.step == 0 and same(trainer, make())


def test_momentum_and_groups_belong_to_a_run(tmp_path):
    run(make(tmp_path / "a", optimizer=partial(torch.optim.SGD, momentum=0.9)), until=3)
    with pytest.raises(ValueError, match="momentum"): make(tmp_path / "a", optimizer=torch.optim.SGD).resume()
    run(make(tmp_path / "b", optimizer=grouped), until=3)
    with pytest.raises(ValueError, match="weight_decay in group 0 is '0.01', this trainer's is '0.0'"): make(tmp_path / "b", optimizer=partial(grouped, weight_decay=0.)).resume()


@pytest.mark.parametrize("loss", [partial(pseudo_huber_loss, c=1.), lambda a, b: (a - b).square()])
def test_another_loss_does_not_continue_a_run(tmp_path, loss):
    run(make(tmp_path), until=3)
    with pytest.raises(ValueError, match="its loss is '<function pseudo_huber_loss>'"): make(tmp_path, loss=loss).resume()
    run(make(tmp_path / "own", loss=loss), until=3)
    assert make(tmp_path / "own", loss=loss).resume()


@pytest.mark.parametrize("settings", [{"optimizer": partial(AdamW, fused=True)}, {"optimizer": partial(AdamW, foreach=True)}, {"channels_last": True},
                                      {"workers": 1}, {"checkpoint_every": 7}, {"keep": 1}])
def test_ways_of_computing_do_not_belong_to_a_run(tmp_path, settings):
    run(make(tmp_path, optimizer=AdamW), until=3)
    trainer = make(tmp_path, **{"optimizer": AdamW} | settings)
    assert trainer.resume() and trainer.step == 3
    assert bool(trainer.optim.param_groups[0]["fused"]) == ("fused" in str(settings))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(run(trainer)), weights(run(make(optimizer=AdamW)))))


def test_a_checkpoint_of_the_untrained_network_can_be_resumed(tmp_path):
    first = make(tmp_path)
    first.save()
    second = make(tmp_path)
    assert second.resume() and same(run(second), run(make()))
    assert same(run(make(tmp_path / "other")), second)


def test_a_network_keeps_the_precision_it_came_with():
    x, y = digits_and_labels()
    settings = {"data": TensorDataset(x, y), "labels": True, "steps": 2}
    net, seen = run(make(net=small_unet, precision="bf16", **settings)).net, []
    net.inp.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    net(x[:2], torch.ones(2), y[:2])
    run(Trainer(net, batch_size=8, objective=ImprovedConsistencyTraining(final_timesteps=20), **settings))
    assert set(seen) == {torch.float32}


def test_only_the_last_checkpoints_stay(tmp_path):
    trainer = run(make(tmp_path, checkpoint_every=5, keep=3))
    assert [p.stem for p in trainer.checkpoints()] == ["000000020", "000000025", "000000030"]
    assert {p.suffix for p in (tmp_path / "checkpoints").iterdir()} == {".safetensors"}


def test_earlier_run_is_not_overwritten(tmp_path):
    run(make(tmp_path))
    with pytest.raises(ValueError, match="resume"): next(make(tmp_path).train())


def test_nothing_to_resume(tmp_path):
    assert make(tmp_path).resume() is False and make().resume() is False


def test_finished_run_resumes_to_nothing_more(tmp_path):
    run(make(tmp_path))
    again = make(tmp_path)
    again.resume()
    assert list(again.train()) == []


@pytest.mark.parametrize("change, name", [({"steps": 31}, "steps"), ({"seed": 1}, "seed"), ({"batch_size": 8}, "batch_size"), ({"accumulate": 2}, "shards"),
                                          ({"objective": ImprovedConsistencyTraining()}, "objective"), ({"net": lambda: MLP(width=8)}, "network")])
def test_checkpoint_of_another_run_is_refused(tmp_path, change, name):
    run(make(tmp_path))
    with pytest.raises(ValueError, match=name): make(tmp_path, **change).resume()


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize("change", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b[:-50] + bytes(50), lambda b: os.urandom(len(b)),
                                    lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:], lambda b: b"\x80\x04K\x01.", lambda b: b"{}"])
def test_damaged_checkpoint_is_a_clear_error(tmp_path, change):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"x": torch.randn(5000)}, {"step": 1})
    with pytest.raises(ValueError, match="damaged"): read_checkpoint(damaged(path, change))


def test_no_bit_of_a_checkpoint_changes_unseen(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a": torch.randn(4, 6), "b": torch.arange(5)}, {"step": 13, "optimizer": {"state": {}}})
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        try: tensors, facts = read_checkpoint(path)
        except ValueError: continue
        assert facts == {"step": 13, "optimizer": {"state": {}}} and tensors["a"].shape == (4, 6), f"byte {place}"


def test_foreign_safetensors_is_a_clear_error(tmp_path):
    from safetensors.torch import save_file
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no checkpoint of this trainer"): read_checkpoint(tmp_path / "x.safetensors")


def test_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/ran",)
    torch.save(Evil(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError): read_checkpoint(tmp_path / "x.safetensors")
    assert not (tmp_path / "ran").exists()


def test_missing_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"): read_checkpoint(tmp_path / "x.safetensors")


def test_checkpoint_keeps_every_type(tmp_path):
    tensors = {str(d): torch.ones(3).to(d) for d in (torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8)} | {"scalar": torch.tensor(3.0)}
    write_checkpoint(tmp_path / "x.safetensors", tensors, {"a": [1, "ü"]})
    back, facts = read_checkpoint(tmp_path / "x.safetensors")
    assert facts == {"a": [1, "ü"]} and all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


# Killed and interrupted

PROGRAM = """
import sys, time
import torch
torch.set_num_threads(1)
from torch.utils.data import TensorDataset
from consistency_models import ImprovedConsistencyTraining, MLP, Trainer, two_moons
folder, pause = sys.argv[1], float(sys.argv[2])
torch.manual_seed(0)
trainer = Trainer(MLP(width=32), TensorDataset(two_moons(500, generator=torch.Generator().manual_seed(0))), steps=120, batch_size=32,
                  objective=ImprovedConsistencyTraining(final_timesteps=20), out=folder, checkpoint_every=4)
trainer.resume()
print("from", trainer.step, flush=True)
for state in trainer.train(): time.sleep(pause)
from safetensors.torch import save_file
if trainer.accelerator.is_main_process: save_file({**trainer.average.state_dict()}, folder + "/final.safetensors")
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program, folder, pause):
    return subprocess.Popen([sys.executable, program, folder, str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def first_step(process):
    """The step from which the program says it starts"""
    return int(process.stdout.readline().split()[1])


def finished(program, folder):
    """Run to the end and return the bytes of the weights, with the step it started from"""
    process = start(program, folder, 0)
    step = first_step(process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return Path(folder, "final.safetensors").read_bytes(), step


def test_killed_at_any_moment_and_resumed_ends_in_the_same_weights(program, tmp_path):
    whole, _ = finished(program, str(tmp_path / "whole"))
    folder, starts = str(tmp_path / "killed"), []
    for delay in (0.07, 0.23, 0.41):
        process = start(program, folder, 0.01)
        starts.append(first_step(process))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed, last = finished(program, folder)
    assert resumed == whole and 0 < last and starts == sorted(starts)


LOADING = """
import sys, time
import torch
from consistency_models import MLP, Trainer

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.ones(2) * i / 64

if __name__ == "__main__":
    trainer = Trainer(MLP(width=8, depth=1), Slow(), steps=500, batch_size=4, workers=1, out=sys.argv[1])
    try:
        for state in trainer.train(): print(state.step, flush=True)
    except KeyboardInterrupt: print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_ctrl_c_of_a_terminal_reaches_the_loop_and_not_its_loaders(tmp_path):
    (tmp_path / "loading.py").write_text(LOADING)
    process = subprocess.Popen([sys.executable, tmp_path / "loading.py", tmp_path / "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    assert process.stdout.readline() == "1\n"
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted" and process.returncode == 0, errors
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


ENDING = """
import sys
import torch
from torch.utils.data import TensorDataset
from consistency_models import MLP, Trainer, progress
trainer = Trainer(MLP(width=8, depth=1), TensorDataset(torch.randn(64, 2)), steps=50, out=sys.argv[1])
states = progress(trainer.train()) if sys.argv[2] == "progress" else trainer.train()
for _ in range(3): next(states)
"""


@pytest.mark.parametrize("around", ["progress", "nothing"])
def test_a_program_that_ends_within_a_loop_leaves_a_checkpoint(tmp_path, around):
    (tmp_path / "ending.py").write_text(ENDING)
    done = subprocess.run([sys.executable, tmp_path / "ending.py", tmp_path / "run", around], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Error" not in done.stderr and "xception" not in done.stderr, done.stderr
    assert read_checkpoint(tmp_path / "run/checkpoints/000000003.safetensors")[1]["step"] == 3


@pytest.mark.skipif(os.name == "nt", reason="kills")
def test_a_folder_is_taken_for_other_processes_and_free_once_its_run_is_killed(tmp_path):
    """Also where loaders live on for a moment, which were forked from the run"""
    (tmp_path / "loading.py").write_text(LOADING)
    process = subprocess.Popen([sys.executable, tmp_path / "loading.py", tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    trainer = make(tmp_path / "run")
    with pytest.raises(ValueError, match="another run writes to"): next(trainer.train())
    loaders = psutil.Process(process.pid).children(recursive=True)
    for loader in loaders: loader.suspend()
    process.kill()
    process.wait()
    assert next(trainer.train()).step == 1
    for loader in loaders: loader.kill()


def test_interrupt_saves_the_last_whole_step(program, tmp_path):
    process = start(program, str(tmp_path / "run"), 0.02)
    first_step(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*"))[-1]
    assert read_checkpoint(newest)[1]["step"] == int(newest.stem) > 0
    whole, _ = finished(program, str(tmp_path / "whole"))
    assert finished(program, str(tmp_path / "run"))[0] == whole


# More than one process

PAIR = """
import json, sys, time
import torch
torch.set_num_threads(1)
from torch import nn
from torch.utils.data import TensorDataset
from consistency_models import ImprovedConsistencyTraining, Trainer, UNet
folder, accumulate, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
g = torch.Generator().manual_seed(5)
data = TensorDataset(torch.randn(64, 1, 8, 8, generator=g), torch.randint(0, 3, (64,), generator=g))
torch.manual_seed(0)
trainer = Trainer(UNet(channels=(8, 16), num_classes=3, dropout=0.3), data, steps=12, batch_size=8, accumulate=accumulate, labels=True,
                  objective=ImprovedConsistencyTraining(final_timesteps=20), out=folder, clip_norm=1.0, checkpoint_every=1)
trainer.resume()
masks = []
drop = next(m for m in trainer.net.modules() if isinstance(m, nn.Dropout))
drop.register_forward_hook(lambda m, i, o: masks.append((o == 0).float().mean().item()))
sigmas = []
for state in trainer.train():
    sigmas.append(state.next_sigmas.tolist())
    time.sleep(0.1)
    if state.step == steps: break
rank = trainer.accelerator.process_index
json.dump({"sigmas": sigmas, "masks": masks}, open(f"{folder}/rank{rank}.json", "w"))
trainer.accelerator.wait_for_everyone()
if rank == 0: torch.save([p.detach() for p in trainer.average.parameters()], f"{folder}/average.pt")
trainer.accelerator.end_training()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_pair(tmp_path, folder, processes, steps):
    """Start `PAIR` on so many processes, two shards a step in all"""
    (tmp_path / "pair.py").write_text(PAIR)
    folder.mkdir(exist_ok=True)
    base = [sys.executable]
    if processes == 2: base += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    return subprocess.Popen([*base, str(tmp_path / "pair.py"), str(folder), str(2 // processes), str(steps)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})


def launch(tmp_path, folder, processes, steps):
    """Run `PAIR`; returns the averaged weights and what each rank saw"""
    process = start_pair(tmp_path, folder, processes, steps)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return torch.load(folder / "average.pt", weights_only=True), [json.loads(p.read_text()) for p in sorted(folder.glob("rank*.json"))]


def test_two_processes_train_what_one_with_twice_the_batch_trains(tmp_path):
    one, (alone,) = launch(tmp_path, tmp_path / "one", 1, 12)
    two, ranks = launch(tmp_path, tmp_path / "two", 2, 12)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two))
    assert ranks[0]["sigmas"] != ranks[1]["sigmas"] and ranks[0]["masks"] != ranks[1]["masks"]
    assert [a + b for a, b in zip(ranks[0]["sigmas"], ranks[1]["sigmas"])] == alone["sigmas"]


def test_two_processes_killed_and_resumed(tmp_path):
    whole, _ = launch(tmp_path, tmp_path / "whole", 2, 12)
    process = start_pair(tmp_path, tmp_path / "parts", 2, 12)
    while process.poll() is None and not list((tmp_path / "parts").glob("checkpoints/*.safetensors")): time.sleep(0.005)
    launcher = psutil.Process(process.pid)
    for p in [*launcher.children(recursive=True), launcher]: p.kill()
    process.communicate()
    newest = int(max(p.stem for p in (tmp_path / "parts").glob("checkpoints/*.safetensors")))
    resumed, ranks = launch(tmp_path, tmp_path / "parts", 2, 12)
    assert 0 < newest < 12 and [len(r["sigmas"]) for r in ranks] == [12 - newest] * 2
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed))


def test_a_run_of_two_processes_goes_on_in_one(tmp_path):
    whole, _ = launch(tmp_path, tmp_path / "whole", 1, 12)
    launch(tmp_path, tmp_path / "parts", 2, 5)
    resumed, (rank, _) = launch(tmp_path, tmp_path / "parts", 1, 12)
    assert len(rank["sigmas"]) == 7 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, resumed))


UNSEEDED = """
import sys
import torch
from torch.utils.data import TensorDataset
from consistency_models import MLP, ConsistencyTraining, Trainer
trainer = Trainer(MLP(width=8, depth=1), TensorDataset(torch.randn(64, 2)), steps=2, objective=ConsistencyTraining())
parts = [trainer.net, trainer.average, trainer.teacher]
torch.save([p.detach() for part in parts for p in part.parameters()], f"{sys.argv[1]}/{trainer.accelerator.process_index}.pt")
"""


def on_two_processes(*command):
    """What a program prints that Accelerate runs on two processes"""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port()), *command]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_start_from_the_same_averages(tmp_path):
    (tmp_path / "unseeded.py").write_text(UNSEEDED)
    on_two_processes(tmp_path / "unseeded.py", tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert len(ranks[0]) > 6 and all(torch.equal(a, b) for a, b in zip(*ranks, strict=True))


FAULTY = """
import json, sys
import torch
from torch.utils.data import TensorDataset
from consistency_models import MLP, Trainer, data_order
x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
index = data_order(64, 8 * (2 * 3 + 1) + 5, 1).item()          # step 4, second process
x[index] = torch.nan
trainer = Trainer(MLP(width=8, depth=1), TensorDataset(x), steps=6, batch_size=8, out=sys.argv[1], checkpoint_every=2)
try:
    for _ in trainer.train(): pass
except ValueError as e: message = str(e)
weights = [p.isfinite().all().item() for m in (trainer.net, trainer.average) for p in m.parameters()]
found = {"step": trainer.step, "message": message, "finite": all(weights), "index": index}
json.dump(found, open(f"{sys.argv[1]}/{trainer.accelerator.process_index}.json", "w"))
"""


def test_a_fault_that_one_process_meets_stops_all_in_the_same_step(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    on_two_processes(tmp_path / "faulty.py", tmp_path / "run")
    first, second = (json.loads((tmp_path / f"run/{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second): assert found["step"] == 3 and found["finite"] and "in step 4 a loss is not finite" in found["message"]
    assert f"sample {second['index']} of the data" in second["message"] and "this process read are finite" in first["message"]
    assert read_checkpoint(tmp_path / "run/checkpoints/000000003.safetensors")[1]["step"] == 3


def test_the_command_line_trains_on_two_processes(tmp_path):
    printed = on_two_processes(Path(sys.executable).with_name("consistency-models"), "train", "--data", "digits", "--steps", "3", "--out", tmp_path / "run")
    assert printed.count("the weights are in") == 1 and (tmp_path / "run" / "model.safetensors").is_file()


# Errors

@pytest.mark.parametrize("settings, error", [
    ({"steps": 0}, ValueError), ({"steps": 1.5}, TypeError), ({"batch_size": 0}, ValueError), ({"accumulate": 0}, ValueError),
    ({"learning_rate": 0}, ValueError), ({"learning_rate": float("nan")}, ValueError), ({"ema_decay": 1.1}, ValueError), ({"clip_norm": 0}, ValueError),
    ({"precision": "fp8"}, ValueError), ({"net": lambda: "net"}, TypeError), ({"data": []}, ValueError), ({"data": 3}, TypeError),
    ({"tracker": "tensorboard"}, ValueError), ({"warmup": -1}, ValueError), ({"keep": 0}, ValueError), ({"checkpoint_every": 0}, ValueError)])
def test_bad_settings_fail_at_once(settings, error):
    name = next(iter(settings))
    with pytest.raises(error, match=name): make(**settings)


def test_objectives_that_do_not_say_enough_are_refused_before_a_step():
    def bare(student_model, teacher_model, x, step, steps, generator=None): ...
    with pytest.raises(ValueError, match="initial_timesteps"): make(objective=bare)
    def silent(model, x, step, steps, generator=None):
        output = ImprovedConsistencyTraining(final_timesteps=20)(model, x, step, steps, generator)
        output.next_sigmas = None
        return output
    trainer = make(objective=silent)
    with pytest.raises(ValueError, match="next_sigmas"): next(trainer.train())
    assert trainer.step == 0 and same(trainer, make())


class Items(Dataset):
    """Samples that a function makes"""
    def __init__(self, item): self.item = item
    def __len__(self): return 40
    def __getitem__(self, i): return self.item(i)


class Stream(IterableDataset):
    def __len__(self): return 40
    def __iter__(self): return iter(POINTS)


@pytest.mark.parametrize("item, settings, error", [
    (lambda i: {"x": POINTS[i]}, {}, "data must yield tensors x or pairs .* got dict"), (lambda i: "text", {}, "got str"), (lambda i: (), {}, "data must yield"),
    (lambda i: None, {}, "data must yield .*None"), (lambda i: (POINTS[i], None), {}, "data must yield .*None"),
    (lambda i: POINTS[i].double(), {}, r"float64: convert it with .float\(\)"), (lambda i: POINTS[i].double().numpy(), {}, "float64: convert"),
    (lambda i: 0.5, {}, "float64: convert"),
    (lambda i: POINTS[i].half(), {}, "float16: convert"), (lambda i: POINTS[i].byte(), {}, r"floating point, in \[-1, 1\], got torch.uint8; .*127.5"), (lambda i: i, {}, "int64"),
    (lambda i: (POINTS[i], "cat"), {"labels": True}, "labels must be numbers, got str"), (lambda i: (POINTS[i], {"a": 1}), {"labels": True}, "labels must be numbers, got dict")])
def test_samples_that_cannot_be_used_are_refused_at_the_start(item, settings, error):
    with pytest.raises(TypeError, match=error): make(net=Wrapped, data=Items(item), **settings)
    with pytest.raises(TypeError, match=error): next(make(net=Wrapped, data=Items(item), workers=1, **settings).train())


def test_other_data_and_optimisers_that_cannot_be_used_are_refused_at_the_start():
    with pytest.raises(TypeError, match="float64: convert"): make(data=TensorDataset(POINTS.double()))
    with pytest.raises(TypeError, match="length and numbered samples.* got Stream"): make(data=Stream())
    with pytest.raises(ValueError, match="one shape"): run(make(net=Wrapped, data=Items(lambda i: torch.zeros(1 + i % 2))))
    with pytest.raises(TypeError, match="without a closure, which LBFGS needs"): make(optimizer=torch.optim.LBFGS)
    with pytest.raises(TypeError, match="optimizer must make an optimiser from parameters.* got SGD"): make(optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    with pytest.raises(TypeError, match="must make a torch optimiser, got list"): make(optimizer=list)


@pytest.mark.parametrize("item, settings", [(lambda i: POINTS[i].numpy(), {}), (lambda i: [POINTS[i], 1], {"labels": True}), (lambda i: (POINTS[i], "cat"), {}),
                                            (lambda i: POINTS[i].half(), {"precision": "bf16"})])
def test_samples_of_other_types_train(item, settings):
    assert run(make(net=Wrapped, data=Items(item), steps=2, **settings)).step == 2


def test_a_network_in_float64_trains_on_data_in_float64():
    assert {p.dtype for p in run(make(net=lambda: Wrapped().double(), data=TensorDataset(POINTS.double()), steps=2)).average.parameters()} == {torch.float64}


class Line(nn.Module):
    """A network for numbers"""
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x, sigma): return self.slope * x


@pytest.mark.parametrize("data", [TensorDataset(POINTS[:, 0]), Items(lambda i: POINTS[i, 0])])
@pytest.mark.parametrize("objective", [ImprovedConsistencyTraining(final_timesteps=20), ConsistencyTraining(final_timesteps=20)])
def test_samples_of_one_number_train(data, objective):
    states = list(make(net=Line, data=data, objective=objective, steps=5).train())
    assert states[-1].losses.shape == (16,) and states[-1].trainer.net.slope != 1


@pytest.mark.parametrize("folder", ["/dev/null/run", "/dev/null", *["/proc/nope"] * sys.platform.startswith("linux")])
@pytest.mark.skipif(os.name == "nt", reason="folders of Unix")
def test_a_folder_that_cannot_be_written_to_is_noticed_at_the_start(folder):
    with pytest.raises(ValueError, match=f"out must be a folder.* {folder}"): make(folder)


def test_a_folder_whose_checkpoints_are_a_file_is_noticed_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ValueError, match="out must be a folder"): make(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trainer = run(make("~/run", steps=2))
    assert trainer.checkpoints() == [tmp_path / "run/checkpoints/000000002.safetensors"] and make("~/run", steps=2).resume()
    write_checkpoint("~/one.safetensors", {"x": torch.ones(1)}, {})
    assert (tmp_path / "one.safetensors").is_file() and read_checkpoint("~/one.safetensors")[1] == {} and not (tmp_path / "~").exists()


def test_labels_must_be_there():
    with pytest.raises(ValueError, match="labels"): next(make(labels=True).train())


def test_saving_needs_a_folder():
    with pytest.raises(ValueError, match="out="): make().save()


class TwoNames(nn.Module):
    """A layer that has two names, and a weight that two layers share"""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(8, 2), nn.Linear(2, 8)
        self.first, self.c.weight = self.a, self.a.weight

    def forward(self, x, sigma): return self.b((self.first(x) + self.c(x)).tanh())


@pytest.mark.parametrize("compile", (False, True))
def test_layers_of_two_names_are_trained_with_a_teacher(compile):
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        net = TwoNames()
        weight = net.a.weight
        call = torch.compile(net, backend="eager") if compile else net
        trainer = Trainer(call, TensorDataset(torch.randn(64, 2)), steps=20, objective=ConsistencyTraining(), batch_size=8)
        before = weight.detach().clone()
        for _ in trainer.train(): pass
        assert net.a.weight is weight is net.c.weight and weight.requires_grad and not torch.equal(weight, before)
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_a_run_is_not_resumed_while_it_trains(tmp_path):
    trainer = Trainer(MLP(width=16), TensorDataset(POINTS), steps=20, out=tmp_path, checkpoint_every=2)
    loop = trainer.train()
    for _ in range(5): next(loop)
    with pytest.raises(ValueError, match="is training"): trainer.resume()
    assert sum(1 for _ in loop) == 15


def test_a_trainer_that_was_overtaken_does_not_write(tmp_path):
    def new(**settings): return Trainer(MLP(width=16), TensorDataset(POINTS), steps=20, out=tmp_path, checkpoint_every=4, **settings)
    first = new()
    loop = first.train()
    for _ in range(4): next(loop)
    late = new()
    late.resume()
    for _ in loop: pass
    kept = first.checkpoints()
    for refused in (late.save, lambda: next(late.train()), new(seed=1).save):
        with pytest.raises(ValueError, match="holds checkpoints"): refused()
    assert first.checkpoints() == kept
    first.save()


def test_weights_of_another_type_do_not_continue_a_run(tmp_path):
    for _ in Trainer(MLP(width=16), TensorDataset(POINTS), steps=2, out=tmp_path).train(): pass
    with pytest.raises(ValueError, match="types of the weights"): Trainer(MLP(width=16).double(), TensorDataset(POINTS.double()), steps=2, out=tmp_path).resume()


class Normed(nn.Module):
    """A network with or without running statistics"""
    def __init__(self, seed, track):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8, track_running_stats=track), nn.Linear(8, 2))

    def forward(self, x, sigma): return self.layers(x)


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path):
    for _ in Trainer(Normed(0, False), TensorDataset(POINTS), steps=1, out=tmp_path).train(): pass
    net = Normed(1, True)
    trainer = Trainer(net, TensorDataset(POINTS), steps=1, out=tmp_path)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="another network: layers.1.running_mean has shape none there"): trainer.resume()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_an_optimiser_that_fails_half_way_leaves_no_false_checkpoint(tmp_path):
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.count = getattr(self, "count", 0) + 1
            if self.count == 5: raise OSError("a broken card")
    trainer = Trainer(MLP(width=16), TensorDataset(POINTS), steps=20, out=tmp_path, checkpoint_every=3, optimizer=lambda p: Fails(p, lr=1e-3))
    with pytest.raises(OSError, match="broken card"):
        for _ in trainer.train(): pass
    assert [int(p.stem) for p in trainer.checkpoints()] == [3]


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


def test_a_buffer_that_was_nan_from_the_start_is_no_fault_and_one_that_is_replaced_is_put_back(tmp_path):
    data = torch.randn(64, 2)
    for _ in Trainer(Keeps(), TensorDataset(data.clone()), steps=3).train(): pass
    data[7] = torch.nan
    net = Keeps()
    with pytest.raises(ValueError, match="sample 7 of the data"):
        for _ in Trainer(net, TensorDataset(data), steps=50, batch_size=8).train(): pass
    assert net.seen.isfinite().all()


def test_training_needs_no_gradients_outside():
    with torch.no_grad(): assert sum(1 for _ in Trainer(MLP(width=16), TensorDataset(POINTS), steps=2).train()) == 2


def test_data_of_a_double_network_are_double():
    with pytest.raises(TypeError, match=r"\.double\(\)"): Trainer(MLP(width=16).double(), TensorDataset(POINTS), steps=1)
    with pytest.raises(TypeError, match="numbered samples"): Trainer(MLP(width=16), {"x": POINTS}, steps=1)
