"""What must hold on a GPU: the tests marked `needs_cuda`, and their twins on the CPU where there are any."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    AnyRank,
    devices,
    each_method,
    gaussian,
    make_trainer,
    needs_cuda,
    resumed,
    run,
    same,
    seeded,
    shake,
    weights,
    with_method,
)
from torch import nn
from torch.utils.data import TensorDataset

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
    DiffusionTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    Levels,
    Trainer,
    consistency_function,
    consistency_pair,
    inpaint,
    two_moons,
)

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the trainer takes the GPU where there is one")
trainer_devices = pytest.mark.parametrize("device", [pytest.param("cpu", marks=NO_GPU), pytest.param("cuda", marks=needs_cuda)])
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
POINTS = two_moons(500, generator=seeded())


# Generators

def one_step(objective, net, x, generator):
    """What one step of a method compares."""
    objective.attach(net)
    output = objective.step(net, x, 5, 10, generator)
    return torch.stack([output.predicted, output.target])


DRAWS = {
    "diffusion": lambda net, x, g: one_step(DiffusionTraining(), net, x, g),
    "CD": lambda net, x, g: one_step(ConsistencyDistillation(net), net, x, g),
    "ECT": lambda net, x, g: one_step(EasyConsistencyTuning(), net, x, g),
    "sCT": lambda net, x, g: one_step(ContinuousConsistencyTraining(), net, x, g),
    "sCD": lambda net, x, g: one_step(ContinuousConsistencyDistillation(net), net, x, g),
    "CT": lambda net, x, g: ConsistencyTraining()(net, net, x, 5, 10, generator=g).predicted,
    "iCT": lambda net, x, g: ImprovedConsistencyTraining()(net, x, 5, 10, generator=g).predicted,
    "sampling": lambda net, x, g: ConsistencySamplingAndEditing()(net, x, [80., 5., 0.8], generator=g),
    "interpolation": lambda net, x, g: ConsistencySamplingAndEditing().interpolate(net, x, -x, 0.5, [5., 0.8], generator=g),
    "inpainting": lambda net, x, g: inpaint(net, x, torch.ones_like(x), [80., 0.8], generator=g)}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def drawn(draw, device, generator):
    """What `draw` gives for the same network and data on a device."""
    return draw(shake(AnyRank()).to(device, torch.float64), gaussian(4, 3, 8, 8, dtype=torch.float64).tanh().to(device), generator)


@devices
@each_draw
def test_a_generator_of_the_cpu_draws_the_same_for_every_device(draw, device):
    here, there = drawn(draw, "cpu", seeded()), drawn(draw, device, seeded())
    assert there.device.type == device and torch.allclose(here, there.cpu(), rtol=1e-6, atol=1e-6)


@devices
@each_draw
def test_a_generator_of_the_device_decides_alone(draw, device):
    first, again, other = (drawn(draw, device, torch.Generator(device).manual_seed(s)) for s in (0, 0, 1))
    assert first.device.type == device and torch.equal(first, again) and not torch.equal(first, other)


# Precision

def make(out=None, **settings):
    """A small trainer whose weights start from seed 0."""
    torch.manual_seed(0)
    settings = {"steps": 60, "batch_size": 64, "warmup": 0, "objective": ImprovedConsistencyTraining(final_timesteps=20)} | settings
    return Trainer(MLP(width=32, depth=1), TensorDataset(POINTS), out=out, **settings)


def last_loss(trainer):
    """The mean loss of the last 20 of all steps."""
    return sum(state.loss.item() for state in trainer.train() if state.step > trainer.steps - 20) / 20


@trainer_devices
def test_bf16_computes_in_bfloat16_keeps_float32_and_learns_the_same(device):
    expected, seen = last_loss(make(precision="no")), set()
    half = make(precision="bf16")
    assert half.device.type == device
    half.net.inp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    assert last_loss(half) == pytest.approx(expected, rel=0.1)
    assert seen == {torch.bfloat16}
    assert {v.dtype for net in (half.net, half.average) for v in net.state_dict().values()} == {torch.float32}


@needs_cuda
@pytest.mark.parametrize("clip_norm", [None, 1.])
def test_fp16_computes_in_float16_keeps_float32_and_learns_the_same(clip_norm):
    expected, seen = last_loss(make(precision="no", clip_norm=clip_norm, steps=200)), set()
    half = make(precision="fp16", clip_norm=clip_norm, steps=200)
    half.net.inp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    assert last_loss(half) == pytest.approx(expected, rel=0.2)   # the first steps may overflow and are left out
    assert seen == {torch.float16}
    assert {v.dtype for net in (half.net, half.average) for v in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("device, precision", [
    pytest.param("cpu", "no", marks=NO_GPU), pytest.param("cpu", "bf16", marks=NO_GPU),
    *(pytest.param("cuda", p, marks=needs_cuda) for p in ("no", "bf16", "fp16"))])
def test_the_norm_that_is_clipped_is_that_of_the_gradient_itself(device, precision):
    """Not of the loss scaled for float16: a clipped step of plain gradient descent is as long as asked for."""
    trainer = make(precision=precision, clip_norm=1e-3, optimizer=torch.optim.SGD, learning_rate=1., decay=False, steps=30)
    before, lengths = nn.utils.parameters_to_vector(trainer.net.parameters()).detach(), []
    for _ in trainer.train():
        after = nn.utils.parameters_to_vector(trainer.net.parameters()).detach()
        lengths.append((after - before).norm().item())
        before = after
    assert trainer.device.type == device
    taken = [n for n in lengths if n > 0]   # float16 leaves out steps that overflow
    assert len(taken) >= (20 if precision == "fp16" else 30) and taken == pytest.approx([1e-3] * len(taken), rel=0.02)


@needs_cuda
@pytest.mark.parametrize("settings", [{"precision": "fp16"}, {"precision": "fp16", "clip_norm": 0.1}, {"precision": "bf16"}],
                         ids=lambda settings: "-".join(map(str, settings.values())))
def test_stopped_and_resumed_equals_whole_in_half_precision(tmp_path, settings):
    states = make(tmp_path, **settings).train()
    for state in states:
        if state.step == 37: break
    states.close()
    resumed, whole = make(tmp_path, **settings), make(**settings)
    assert resumed.resume() and resumed.step == 37
    for trainer in (resumed, whole):
        for _ in trainer.train(): pass
    for part in ("net", "average"):
        pairs = zip(getattr(resumed, part).parameters(), getattr(whole, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@needs_cuda
@each_method
def test_with_every_method_a_run_in_half_precision_learns_on_the_gpu_and_resumes(tmp_path, monkeypatch, method):
    """U-Nets in channels_last, with all that the methods keep; convolutions that add up in a fixed order"""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings = with_method(method)
    whole, start = run(make_trainer(**settings)), make_trainer(**settings)
    assert {w.device.type for w in weights(whole)} == {"cuda"} and all(w.isfinite().all() for w in weights(whole))
    assert {w.dtype for w in weights(whole)} == {torch.float32}
    assert not any(torch.equal(a, b) for a, b in zip(start.net.parameters(), whole.net.parameters(), strict=True))
    assert same(resumed(tmp_path, 3, **settings), whole)


@trainer_devices
@each_method
def test_with_every_method_half_precision_takes_nearly_the_same_step(device, method):
    """One step of plain gradient descent, against that in float32"""
    steps = []
    for precision in ("no", "bf16"):
        trainer = make_trainer(**with_method(method, precision=precision, steps=1, optimizer=torch.optim.SGD, learning_rate=1e-3, warmup=0, batch_size=64))
        before = [p.detach().clone() for p in trainer.net.parameters()]
        moved = [(p.detach() - b).flatten() for p, b in zip(run(trainer).net.parameters(), before, strict=True)]
        steps.append(torch.cat(moved))
    assert trainer.device.type == device and torch.cosine_similarity(*steps, dim=0) > 0.95


# Compiled

@devices
@needs_compiler
def test_a_compiled_network_drops_the_same_for_student_and_target(device):
    net = nn.ModuleList([MLP(width=16, depth=1), nn.Dropout(0.5)]).to(device)
    compiled, x = torch.compile(lambda x, sigma: net[1](net[0](x, sigma) + 1)), POINTS[:64].to(device)
    f, noise, sigma = consistency_function(compiled), gaussian(64, 2).to(device), torch.logspace(-2, 1.9, 64, device=device)
    predicted, target = consistency_pair(f, f, x, noise, Levels(sigma, sigma))
    assert torch.allclose(predicted, target, atol=1e-4)
    again, _ = consistency_pair(f, f, x, noise, Levels(sigma, sigma))
    assert not torch.allclose(predicted, again, atol=1e-2)   # the next step drops others


@needs_cuda
def test_a_compiled_network_trains_the_same_weights():
    settings = {"steps": 5, "learning_rate": 0.1, "optimizer": torch.optim.SGD, "clip_norm": 1., "decay": False}
    before, plain, compiled = make(**settings), make(**settings), make(compile=True, **settings)
    for trainer in (plain, compiled):
        for _ in trainer.train(): pass
    start, a, b = (nn.utils.parameters_to_vector(trainer.net.parameters()) for trainer in (before, plain, compiled))
    assert (a - start).norm() > 0.1 > 100 * (a - b).norm()


# Killed

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
from safetensors.torch import save_file
from torch.utils.data import TensorDataset
from consistency_models import ImprovedConsistencyTraining, Trainer, UNet
folder, device = sys.argv[1:]
g = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(100, 1, 8, 8, generator=g).tanh(), torch.randint(3, (100,), generator=g))
torch.manual_seed(0)
net = UNet(channels=(8, 16), num_classes=3, dropout=0.2)
trainer = Trainer(net, data, steps=40, batch_size=16, conditions=("class_labels",), channels_last=True, out=folder, checkpoint_every=2,
                  objective=ImprovedConsistencyTraining(final_timesteps=20))
assert trainer.device.type == device, trainer.device
trainer.resume()
print(trainer.step, flush=True)
for state in trainer.train(): print(state.step, flush=True)
save_file({k: v.contiguous() for k, v in trainer.average.state_dict().items()}, folder + "/final.safetensors")
"""


def start(folder, device):
    """Begin or go on with a run in a process of its own, on kernels that add up in a fixed order."""
    chosen = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    return subprocess.Popen([sys.executable, "-c", PROGRAM, folder, device], env=os.environ | chosen,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def next_step(process):
    """The step that it prints next"""
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return int(line)


def finished(folder, device):
    """Run to the end; the step it started from, and the bytes of the averaged weights."""
    process = start(folder, device)
    steps, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return int(steps.split()[0]), Path(folder, "final.safetensors").read_bytes()


@needs_cuda      # test_trainer.py kills runs on the CPU
@pytest.mark.parametrize("device", ["cuda"])
def test_killed_and_resumed_ends_in_the_same_weights(tmp_path, device):
    starts = []
    for steps in (6, 11):
        process = start(str(tmp_path / "killed"), device)
        starts.append(next_step(process))
        for _ in range(steps): next_step(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last, resumed = finished(str(tmp_path / "killed"), device)
    first, whole = finished(str(tmp_path / "whole"), device)
    assert starts[0] == first == 0 < starts[1] < last < 40 and resumed == whole
