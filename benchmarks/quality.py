"""Time to quality on the digits: the published recipe against this package's. Run as `python benchmarks/quality.py`.

Three cases train the same `UNet`, with dropout of 0.1, on the same batches, and are judged by the Fréchet distance of
one-step samples in the features of a digit classifier:

- `package`: improved consistency training as this package does it, with the settings of its digits recipe;
- `published code`: raw inputs and raw sigma, a pseudo-Huber loss for each element, dropout drawn anew for the teacher,
  weights averaged tensor by tensor, but the same settings as above;
- `published README`: the same, with the settings of the published README (1,280 final timesteps, lognormal mean 1.1,
  sigma_data 0.5, a constant learning rate of 1e-4).

First each takes the same number of optimiser steps; then the latter two get as many steps as fit into the seconds that
the first one took. Each run has a process of its own, so that its peak of memory can be told. The results go to
`benchmarks/results/quality.json`.
"""
import copy
import math
import multiprocessing
import platform
import resource
import statistics
import time
from functools import partial

import torch
from common import parser, pick_device, wait_for, write

from consistency_models import (
    ImprovedConsistencyTraining,
    UNet,
    frechet_distance,
    improved_timesteps_schedule,
    karras_schedule,
    load_digits,
    lognormal_timestep_distribution,
    measure_sigma_data,
    model_forward_wrapper,
    pseudo_huber_loss,
    train_classifier,
    update_ema_model_,
)
from consistency_models.metrics import real_pairs
from consistency_models.pretrained import sample
from consistency_models.trainer import learning_rate

DROPOUT, BATCH, DECAY = 0.1, 64, 0.99
OURS = {"final_timesteps": 40, "lognormal_mean": -1.1, "sigma_data": None, "peak": 2e-3, "decay": True, "betas": (0.9, 0.99)}
README = {"final_timesteps": 1280, "lognormal_mean": 1.1, "sigma_data": 0.5, "peak": 1e-4, "decay": False, "betas": (0.9, 0.995)}
CASES = {"package": (False, OURS), "published code": (True, OURS), "published README": (True, README)}


def package_loss(net, x, labels, step, steps, settings, generator):
    """The loss of one step as this package computes it"""
    training = ImprovedConsistencyTraining(**{k: settings[k] for k in ("final_timesteps", "lognormal_mean", "sigma_data")})
    output = training(net, x, step, steps, generator=generator, class_labels=labels)
    return (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean()


def published_loss(net, x, labels, step, steps, settings, generator):
    """The loss of one step of the published recipe: two separate dropout masks, and a Huber loss for each element"""
    sigmas = karras_schedule(improved_timesteps_schedule(step, steps, 10, settings["final_timesteps"]))
    n = lognormal_timestep_distribution(len(x), sigmas, settings["lognormal_mean"], 2.0, generator)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    call = partial(model_forward_wrapper, net, sigma_data=settings["sigma_data"], class_labels=labels)
    lower, upper = (sigmas[i].to(x)[:, None, None, None] for i in (n, n + 1))
    predicted = call(x=x + upper * noise, sigma=upper.flatten())
    with torch.no_grad(): target = call(x=x + lower * noise, sigma=lower.flatten())
    c = 0.00054 * math.sqrt(x[0].numel())
    return ((((predicted - target) ** 2 + c**2).sqrt() - c) / (upper - lower)).mean()


def update_tensor_by_tensor(average, net, decay):
    """The moving average as published: two small operations for each tensor"""
    with torch.no_grad():
        for a, p in zip(average.parameters(), net.parameters()): a.mul_(decay).add_(p, alpha=1 - decay)


def peak_memory(device):
    """Peak memory of this process, or of its share of the GPU, in MiB"""
    if device.type == "cuda": return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if platform.system() == "Linux" else 2**20)


def train(case, steps, seed, device):
    """Train one case; returns its averaged network, seconds a step, and how much the peak of memory grew, in MiB"""
    published, settings = CASES[case]
    images, labels = (t.to(device) for t in load_digits())
    settings = settings | {"sigma_data": settings["sigma_data"] or measure_sigma_data(images)}
    torch.manual_seed(seed)
    net = UNet(channels=(32, 64), num_classes=10, dropout=DROPOUT, sigma_data=settings["sigma_data"], precondition=not published).to(device)
    average, optimizer = copy.deepcopy(net).eval(), torch.optim.Adam(net.parameters(), betas=settings["betas"], fused=True)
    compute, update = (published_loss, update_tensor_by_tensor) if published else (package_loss, update_ema_model_)
    generator, order = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
    seconds, before = [], peak_memory(device)
    for step in range(steps):
        start = time.perf_counter()
        for group in optimizer.param_groups: group["lr"] = learning_rate(step, steps, settings["peak"], decay=settings["decay"])
        chosen = torch.randint(len(images), (BATCH,), generator=order).to(device)
        loss = compute(net, images[chosen], labels[chosen], step, steps, settings, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update(average, net, min(DECAY, (step + 1) / (step + 10)))
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return average, statistics.median(seconds), peak_memory(device) - before


def run(case, steps, seed, threads):
    """Train and judge one case"""
    device = pick_device(threads)
    net, seconds, memory = train(case, steps, seed, device)
    images, labels = (t.to(device) for t in load_digits())
    judge = train_classifier(images, labels)
    distance = [frechet_distance(images, sample(net, len(labels), (80.0,), labels, s, images.shape[1:]), judge.features) for s in range(2)]
    return {"case": case, "seed": seed, "steps": steps, "seconds_a_step": seconds, "memory_mib": memory, "distance": statistics.mean(distance)}


def real_halves():
    """The distance of two halves of the real digits, which sampling alone causes"""
    images, labels = load_digits()
    features = train_classifier(images, labels).features
    return statistics.mean(frechet_distance(a, b, features) for a, b, _ in real_pairs(images, images))


def measure(steps, seeds, threads):
    """All runs, one at a time, each in a process of its own"""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for seed in range(seeds):
            same = [pool.apply(run, (case, steps, seed, threads)) for case in CASES]
            budget = same[0]["seconds_a_step"] * steps
            for row in same: yield row | {"budget": "same steps"}
            for row in same[1:]: yield pool.apply(run, (row["case"], round(budget / row["seconds_a_step"]), seed, threads)) | {"budget": "same seconds"}


def main():
    arguments = parser(__doc__, "quality")
    arguments.add_argument("--steps", type=int, default=2000, help="optimiser steps of each run")
    arguments.add_argument("--seeds", type=int, default=2, help="training seeds")
    options = arguments.parse_args()
    pick_device(options.threads)
    print(f"{'case':18} {'budget':13} {'seed':>4} {'steps':>6} {'ms a step':>10} {'MiB':>6} {'distance':>9}")
    rows = []
    for row in measure(options.steps, options.seeds, options.threads):
        rows.append(row)
        print(f"{row['case']:18} {row['budget']:13} {row['seed']:4} {row['steps']:6} {1000 * row['seconds_a_step']:10.1f} "
              f"{row['memory_mib']:6.0f} {row['distance']:9.2f}", flush=True)
    halves = real_halves()
    print(f"two halves of the real digits: {halves:.2f}")
    write(options.out, real_halves=halves, rows=rows)


if __name__ == "__main__": main()
