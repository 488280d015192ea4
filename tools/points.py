"""Write nbs/live/points.json: tiny consistency models of points, at moments of their training: `python tools/points.py`.

Networks without any structure learn the two bells of lesson 12 and the two moons, by the objectives of the package.
The page of that lesson draws them in the reader's browser. About a minute on one core.
"""
import base64
import json
from pathlib import Path

import torch
from torch import nn

from consistency_models import (
    ConsistencyDistillation,
    DiffusionTraining,
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
    Precondition,
    consistency_function,
    ideal_denoiser,
    two_moons,
    update_ema_model_,
)
from consistency_models.paths import two_bells
from consistency_models.utils import average_of

FILE = Path(__file__).parents[1] / "nbs/live/points.json"
STEPS, DENOISING = 5000, 1000           # ECT tunes a diffusion model: so many of its steps only denoise
SIZES = {"bells": (2, 32, 32, 32, 1), "moons": (3, 48, 48, 48, 48, 2)}
KEPT, TOP = {"bells": 12, "moons": 6}, {"bells": 3., "moons": 10.}


class Plain(nn.Sequential):
    """Called as `net(c_in x, c_noise)`; ReLU learns steep borders better than smooth functions do"""
    def __init__(self, sizes):
        layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(*layers[:-1])

    def forward(self, x, c_noise): return super().forward(torch.cat([x, c_noise[:, None]], 1))


def load(text, sizes, sigma_data):
    """A network from its weights in half precision"""
    net = Precondition(Plain(sizes), sigma_data)
    weights = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float16).float()
    nn.utils.vector_to_parameters(weights, net.parameters())
    return net


def text_of(values): return base64.b64encode(values.detach().half().numpy().tobytes()).decode()


def bells_denoiser(x, sigma, center=0.5, width=0.05):
    """The ideal denoiser of all numbers in the two bells: lesson 12"""
    variance = (width**2 + sigma**2)[:, None]
    kept = width**2 / variance
    return kept * x + (1 - kept) * center * (center * x / variance).tanh()


def objectives(name, data, sigma_data):
    """The method of each step"""
    own = {"sigma_max": TOP[name], "sigma_data": sigma_data}
    denoiser = bells_denoiser if name == "bells" else lambda x, sigma: ideal_denoiser(x, sigma, data)
    denoise, tune = DiffusionTraining(sigma_data), EasyConsistencyTuning(sigma_data)
    improved, distill = ImprovedConsistencyTraining(**own), ConsistencyDistillation(denoiser, **own)
    return {"CT": [(improved, STEPS)], "CD": [(distill, STEPS)], "ECT": [(denoise, DENOISING), (tune, STEPS - DENOISING)]}


def train(phases, data, sizes, sigma_data, moments, batch=256):
    """The averaged weights at some moments of a training"""
    torch.manual_seed(0)
    net, k, kept = Precondition(Plain(sizes), sigma_data), 0, {}
    average = average_of(net)
    for objective, steps in phases:
        objective.attach(net)
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            if k in moments: kept[k] = nn.utils.parameters_to_vector(average.parameters()).clone()
            loss = objective.loss(objective.step(net, data[torch.randint(len(data), (batch,))], step, steps)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            update_ema_model_(average, net, min(0.998, k / (k + 10)))       # short at first
            k += 1
    return kept | {k: nn.utils.parameters_to_vector(average.parameters()).clone()}


def spread(kept, number, answers):
    """So many of the moments, with the first and the last, that about as much happens from each to the next.
    The square root lets late and small corrections count too."""
    moments = sorted(kept)
    said = torch.stack([answers(kept[k]) for k in moments])
    way = torch.cat([torch.zeros(1), said.diff(dim=0).abs().sqrt().mean(1).cumsum(0)])
    places = [(way - way[-1] * i / (number - 1)).abs().argmin().item() for i in range(number - 1)]
    return [moments[i] for i in sorted({*places, len(moments) - 1})]


def learn(name, data):
    """Everything that the page knows of a data set: what it is, and networks"""
    sizes, sigma_data = SIZES[name], round(data.std(correction=0).item(), 4)
    sigma = torch.logspace(-1.7, torch.tensor(TOP[name]).log10().item(), 500)[torch.randperm(500)]
    noisy = data[torch.randint(len(data), (500,))] + sigma[:, None] * torch.randn(500, sizes[-1])
    moments = {0} | {round(10 ** (i / 20)) for i in range(20, 74)}
    def answers(weights):
        with torch.no_grad(): return consistency_function(load(text_of(weights), sizes, sigma_data))(noisy, sigma).flatten()
    runs = {}
    for method, phases in objectives(name, data, sigma_data).items():
        own = moments if len(phases) == 1 else {0, 40, 200} | {DENOISING + k for k in moments}
        kept = train(phases, data, sizes, sigma_data, own)
        steps = spread(kept, KEPT[name], answers)
        runs[method] = {"steps": steps, "weights": [text_of(kept[k]) for k in steps]}
    return {"sizes": sizes, "sigma_data": sigma_data, "sigma_max": TOP[name], "runs": runs}


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    moons = two_moons(500).half().float()
    made = {"bells": learn("bells", two_bells(4000)) | {"center": 0.5, "width": 0.05},
            "moons": learn("moons", moons) | {"data": text_of(moons.flatten())}, "denoising": DENOISING}
    FILE.write_text(json.dumps(made, separators=(",", ":")) + "\n")
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__": main()
