"""What each speed option of the trainer is worth. Run as `python benchmarks/throughput.py`.

Trains the `UNet` of the MNIST recipe on random images of 28 by 28 pixels: plainly, with each option alone, and with all
of them. The options take turns over several rounds, and the fastest step of each counts, as other work on the machine
only ever slows a step down. On a GPU the batch is larger, and the share of the measured rate of matrix multiplication
is printed too; on a CPU the libraries for convolutions and matrices differ too much for that to mean anything. The results go to `benchmarks/results/throughput.json`.
"""
import time
import warnings
from functools import partial
from itertools import islice

import torch
from common import parser, pick_device, wait_for, write
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from consistency_models import Trainer, UNet

PLAIN = {"patch": 1, "precision": "no", "channels_last": False, "compile": False, "fused": False}
OPTIONS = {
    "plain": {}, "fused optimiser": {"fused": True}, "channels_last": {"channels_last": True}, "bf16": {"precision": "bf16"},
    "compile": {"compile": True}, "patch=2": {"patch": 2},
    "all but compile": {"fused": True, "channels_last": True, "precision": "bf16", "patch": 2},
    "all": {"fused": True, "channels_last": True, "precision": "bf16", "patch": 2, "compile": True}}


def make_trainer(settings, data, batch_size, steps):
    """A trainer of the MNIST recipe's network with these options"""
    patch, fused = settings.pop("patch"), settings.pop("fused")
    torch.manual_seed(0)
    net = UNet(channels=(48, 96), num_classes=10, patch=patch)
    optimizer = partial(torch.optim.Adam, betas=(0.9, 0.99), fused=fused, foreach=not fused)
    return Trainer(net, data, steps=steps, labels=True, batch_size=batch_size, optimizer=optimizer, **settings)


def fastest_step(option, data, batch_size, steps):
    """Seconds of the fastest step; the first three warm up"""
    trainer = make_trainer(PLAIN | OPTIONS[option], data, batch_size, steps + 3)
    times, states = [], trainer.train()
    for _ in islice(states, 3): pass
    for _ in range(steps):
        start = time.perf_counter()
        next(states)
        wait_for(trainer.device)
        times.append(time.perf_counter() - start)
    return min(times)


def operations(option, batch_size):
    """Floating point operations of a step: two evaluations, and a backward pass of twice the cost of one"""
    net = UNet(channels=(48, 96), num_classes=10, patch=(PLAIN | OPTIONS[option])["patch"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 28, 28), torch.ones(1), torch.zeros(1, dtype=torch.long))
    return 4 * counter.get_total_flops() * batch_size


def matrix_rate(device, dtype, size):
    """Operations a second of a large matrix multiplication, the most the device will give"""
    a, times = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def main():
    arguments = parser(__doc__, "throughput")
    arguments.add_argument("--rounds", type=int, default=3, help="how often each option has its turn")
    arguments.add_argument("--steps", type=int, default=8, help="timed steps in a turn")
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    device = pick_device(options.threads)
    batch = 1024 if device.type == "cuda" else 64
    data = TensorDataset(torch.randn(4 * batch, 1, 28, 28).clamp(-1, 1), torch.randint(10, (4 * batch,)))
    best = {name: float("inf") for name in OPTIONS}
    for turn in range(options.rounds):
        for name in best: best[name] = min(best[name], fastest_step(name, data, batch, options.steps))
    rows = []
    print(f"{'option':16} {'images a second':>16} {'times plain':>12} {'of matrix rate':>15}")
    for name, seconds in best.items():
        row = {"option": name, "images_a_second": batch / seconds, "times_plain": best["plain"] / seconds}
        if device.type == "cuda":
            dtype = torch.bfloat16 if "precision" in OPTIONS[name] else torch.float32
            row["share"] = operations(name, batch) / seconds / matrix_rate(device, dtype, 8192)
        rows.append(row)
        print(f"{name:16} {row['images_a_second']:16.0f} {row['times_plain']:12.2f} {row.get('share', float('nan')):15.1%}")
    write(options.out, batch_size=batch, rows=rows)


if __name__ == "__main__": main()
