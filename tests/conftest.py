"""Small networks and helpers that several test files share."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    ConsistencyTraining,
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
    DiffusionTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    Trainer,
    UNet,
    gaussian_consistency_function,
    guided,
    output_scaling,
    skip_scaling,
    two_moons,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


torch.set_num_threads(1)   # the tensors are small: threads would wait for each other, above all on a busy machine


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers that are the same in every run."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def shake(network):
    """Give all parameters random values, so that no layer starts at zero."""
    for i, p in enumerate(network.parameters()): nn.init.normal_(p, std=0.2, generator=seeded(i))
    return network


def javascript(expression, folder=Path(__file__).parent.parent / "nbs/live", scripts=("formulas.js",), **given):
    """What an expression is in JavaScript, through Node: it sees the scripts of the site and `given`, by their names"""
    node = shutil.which("node")
    assert node, "no Node.js: run `bash tools/browser.sh`, which installs it"
    lines = [f"import * as {name.rpartition('/')[2].partition('.')[0]} from {json.dumps((folder / name).as_uri())};"
             for name in scripts]
    text = "\n".join(['import { readFileSync } from "fs";', *lines,
                      f"const {{ {', '.join(given)} }} = JSON.parse(readFileSync(0, 'utf8'));",
                      f"process.stdout.write(JSON.stringify(await ({expression})));"])
    ran = subprocess.run([node, "--input-type=module", "-e", text], input=json.dumps(given), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def calls_of(network):
    """A list that collects `(x, sigma, kwargs)` of every later call of `network`."""
    calls = []
    network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((*args, kwargs)), with_kwargs=True)
    return calls


class AnyRank(nn.Module):
    """A network for data of shape `(batch, channels, ...)` with any number of further axes."""

    def __init__(self, channels=3, width=8, dropout=0.):
        super().__init__()
        self.inp, self.noise, self.out = nn.Linear(channels, width), nn.Linear(1, width), nn.Linear(width, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, sigma):
        level = self.noise(sigma.log()[:, None])
        h = self.inp(x.movedim(1, -1)) + level.reshape(len(x), *(1,) * (x.ndim - 2), -1)
        return self.out(self.dropout(h.tanh())).movedim(-1, 1)


class ConvNet(nn.Module):
    """A network for images with dropout; `my_kwarg` holds one class for each image and must be given."""

    def __init__(self, channels=3, width=8, dropout=0.5):
        super().__init__()
        self.inp, self.out = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.noise, self.classes, self.dropout = nn.Linear(1, width), nn.Embedding(4, width), nn.Dropout(dropout)

    def forward(self, x, sigma, my_kwarg):
        level = self.noise(sigma.log()[:, None]) + self.classes(my_kwarg)
        return self.out(self.dropout((self.inp(x) + level[:, :, None, None]).tanh()))


# Gaussian data, where the exact consistency function is known

def relative_error(answer, truth):
    """Root mean square of the error over that of the truth."""
    return ((answer - truth).norm() / truth.norm()).item()


class Exact(nn.Module):
    """
    A raw network whose consistency function is the exact one of N(mean, std^2), with a parameter for
    each of `n` samples and each of three directions in which that function could change.
    """

    def __init__(self, n, mean, std, sigma_min=0.002):
        super().__init__()
        self.mean, self.std, self.sigma_min = mean, std, sigma_min
        self.change = nn.Parameter(torch.zeros(n, 3, dtype=torch.float64))

    def forward(self, x, sigma):
        s = sigma[:, None]
        exact = gaussian_consistency_function(x, sigma, self.mean, self.std, self.sigma_min)
        centered = (x - self.mean) / (s**2 + self.std**2).sqrt()
        directions = torch.stack([torch.ones_like(x), centered, centered.tanh() * s.log()], -1)
        raw = (exact - skip_scaling(s, 0.5, self.sigma_min) * x) / output_scaling(s, 0.5, self.sigma_min)
        return raw + (directions * self.change[:, None]).sum(-1)


def gradient_at_gaussian_data(objective, std, n=100_000, net=Exact):
    """
    The largest mean gradient of `objective` on data from N(0.3, 0.5^2), over its root mean square, at
    the exact consistency function of N(0.3, std^2), or another exact `net`.
    """
    generator, net = seeded(), net(n, 0.3, std, objective.sigma_min)
    x = 0.3 + 0.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator)
    objective.attach(net)
    objective.loss(objective.step(net, x, 10, 10, generator)).sum().backward()
    gradient = net.change.grad
    return (gradient.mean(0) / gradient.square().mean(0).sqrt()).abs().max().item()


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same global random state, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def any_rank():
    return shake(AnyRank())


@pytest.fixture
def conv_net():
    return shake(ConvNet())


@pytest.fixture
def images():
    """Four colour images in [-1, 1], 8 by 8."""
    return gaussian(4, 3, 8, 8).tanh()


@pytest.fixture
def my_kwarg():
    return torch.tensor([0, 1, 2, 3])


# Small runs of the trainer

POINTS = two_moons(500, generator=seeded())


def make_trainer(out=None, net=None, data=None, **settings):
    """A small trainer whose weights start from seed 0; `net` makes the network."""
    torch.manual_seed(0)
    settings = {"steps": 30, "batch_size": 16, "objective": ICT} | settings
    data = TensorDataset(POINTS) if data is None else data
    return Trainer(net() if net else MLP(width=16, depth=1), data, out=out, **settings)


ICT, CT = ImprovedConsistencyTraining(final_timesteps=20), ConsistencyTraining(final_timesteps=20)


def run(trainer, until=None):
    """Train up to a step and return the trainer."""
    for state in trainer.train():
        if state.step == until: break
    return trainer


def weights(trainer):
    """All that the network, its average and the objective keep."""
    parts = trainer.net, trainer.average, trainer.objective
    return [v for part in parts for v in part.state_dict().values()]


def same(a, b):
    """Do two trainers agree to the last bit?"""
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def resumed(folder, until, **settings):
    """A run that is stopped after a step, thrown away, and taken to its end by another trainer."""
    run(make_trainer(folder, **settings), until)
    trainer = make_trainer(folder, **settings)
    assert trainer.resume() and trainer.step == until
    return run(trainer)


class Layer(nn.Module):
    """A layer as a network; with labels it ignores them."""

    def __init__(self, layer=None):
        super().__init__()
        self.layer = layer or nn.Linear(2, 2)

    def forward(self, x, sigma, class_labels=None):
        return self.layer(x.to(next(self.layer.parameters()).dtype)).to(x.dtype)


class LearnedWeight(ImprovedConsistencyTraining):
    """Improved consistency training that learns the weight of each noise level."""

    def attach(self, net):
        super().attach(net)
        p = next(net.parameters())
        self.kept["u"] = nn.Linear(1, 1, device=p.device)

    def loss(self, output):
        u = self.kept["u"](output.upper.float().log()[:, None])[:, 0]
        return super().loss(output) * (-u).exp() + u


class Pairs(Dataset):
    """Images and labels without a tensor behind them."""
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], int(self.y[i])


def images_and_labels(n=64):
    """Noise as images, of three classes."""
    g = seeded(5)
    return torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)


def small_unet():
    """A U-Net for these images."""
    return UNet(channels=(8, 16), num_classes=3, dropout=0.2)


LABELED = {"net": small_unet, "conditions": ("class_labels",)}   # settings of a trainer on them


def dropping_unet():
    """The same with labels left out, as a teacher too, for which no layer may be zero"""
    return shake(UNet(channels=(8, 16), num_classes=3, dropout=0.2, label_dropout=0.3))


METHODS = {     # every objective, with all that it can keep
    "diffusion": DiffusionTraining, "CT": lambda: CT, "iCT": lambda: ICT,
    "CD": lambda: ConsistencyDistillation(guided(dropping_unet(), 1.5), target_decay=0.9),
    "ECT": EasyConsistencyTuning, "sCT": ContinuousConsistencyTraining,
    "sCD": lambda: ContinuousConsistencyDistillation(dropping_unet())}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def with_method(method, **settings):
    """Settings of a trainer of such images by a method, in bfloat16 and the layout of a GPU"""
    return LABELED | {
        "data": TensorDataset(*images_and_labels()), "net": dropping_unet, "objective": method(),
        "steps": 6, "batch_size": 8, "precision": "bf16", "channels_last": True} | settings


def free_port():
    """A port that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def on_two_processes(*command, processes=2, wait=True):
    """What a program prints that Accelerate runs on two processes of the CPU, or on one; or the process, at once."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    tests = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
    if not wait: return process
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return printed


# Widgets

@pytest.fixture
def no_threads(monkeypatch):
    """Fails a test that starts a thread: what a thread sets on a widget is not shown on Colab."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread} was started"))


class Own(nn.Module):
    """A network for pictures of 8 by 8 pixels that is none of the package's, with notes."""
    sigma_data, notes = 0.5, {"shape": [1, 8, 8]}

    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def forward(self, x, sigma): return self.drop(self.scale * x.tanh())


def picture(live):
    """The picture of an explorer that has no complaint."""
    assert live.message.value == ""
    return live.picture.value


def pixels(png):
    """The pixels of a PNG, whatever the way it was packed."""
    with Image.open(io.BytesIO(png)) as image: return image.size, image.convert("RGB").tobytes()
