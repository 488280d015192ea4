"""The trainer: resumed runs equal whole ones bit for bit, shards equal processes, and checkpoints are whole or refused."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset, TensorDataset

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
    learning_rate,
    progress,
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


def test_two_threads_do_not_train_one_trainer():
    trainer, told = make(steps=10_000), []
    states = trainer.train()
    next(states)
    def second():
        with pytest.raises(ValueError, match="another thread"): next(trainer.train())
        told.append(True)
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert told
    states.close()
    thread = threading.Thread(target=run, args=(trainer, 5))
    thread.start()
    thread.join()
    assert trainer.step == 5


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


def test_augmentation_differs_from_sample_to_sample_and_step_to_step():
    data = Augmented(torch.zeros(4, 1, 8, 8), torch.zeros(4))
    batches = make(net=small_unet, data=data, labels=True, steps=2, batch_size=4)._batches()
    x = torch.cat([next(batches)[0] for _ in range(2)]).flatten(1)
    assert len(x.unique(dim=0)) == 8


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_network_trains_the_same_weights():
    plain, compiled = run(make(steps=3)), run(make(steps=3, compile=True))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(plain), weights(compiled)))


# Watching

def test_loss_by_level_is_a_mean_in_each_band():
    losses, state = LossByLevel(bands=4, memory=1.0), next(make().train())
    state.next_sigmas, state.losses = torch.tensor([0.003, 0.003, 70.0, 0.002, 80.0]), torch.tensor([1.0, 3.0, 5.0, 2.0, 7.0])
    losses.update(state)
    assert losses.means[0] == 2 and losses.means[3] == 6 and losses.means[1:3].isnan().all()
    assert len(str(losses)) == 4


def test_an_endless_loss_is_left_out_of_the_means():
    state, losses = next(make(batch_size=4).train()), LossByLevel()
    state.losses[:2] = torch.tensor([torch.inf, torch.nan])
    losses.update(state)
    assert not losses.means[~losses.means.isnan()].isinf().any() and losses.weight.sum() == 2 and len(str(losses)) == 10


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


def test_labels_must_be_there():
    with pytest.raises(ValueError, match="labels"): next(make(labels=True).train())


def test_saving_needs_a_folder():
    with pytest.raises(ValueError, match="out="): make().save()
