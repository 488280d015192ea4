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

from consistency_models import ImprovedConsistencyTraining, Trainer, UNet, trajectory

PLAIN = {"patch": 1, "precision": "no", "channels_last": False, "compile": False, "fused": False}
OPTIONS = {
    "plain": {}, "fused optimiser": {"fused": True}, "channels_last": {"channels_last": True}, "bf16": {"precision": "bf16"},
    "compile": {"compile": True}, "patch=2": {"patch": 2},
    "all but compile": {"fused": True, "channels_last": True, "precision": "bf16", "patch": 2},
    "all": {"fused": True, "channels_last": True, "precision": "bf16", "patch": 2, "compile": True}}


def make_trainer(settings, data, batch_size, steps):
    """A trainer of the MNIST recipe's network with these settings, which differ from `PLAIN`"""
    settings = PLAIN | settings
    patch, fused = settings.pop("patch"), settings.pop("fused")
    torch.manual_seed(0)
    net = UNet(channels=(48, 96), num_classes=10, patch=patch)
    optimizer = partial(torch.optim.Adam, betas=(0.9, 0.99), fused=fused, foreach=not fused)
    return Trainer(net, data, steps=steps, conditions=("class_labels",), batch_size=batch_size,
                   optimizer=optimizer, **settings)


def random_images(n):
    """Data like MNIST: `n` random images of 28 by 28 pixels with classes"""
    return TensorDataset(torch.randn(n, 1, 28, 28).clamp(-1, 1), torch.randint(10, (n,)))


def seconds_each(run, device, times, together=1):
    """Seconds of one `run`, the fastest of so many times; runs timed together may overlap, as they do on a GPU in use"""
    best = float("inf")
    for _ in range(times):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(together): run()
        wait_for(device)
        best = min(best, (time.perf_counter() - start) / together)
    return best


def training_seconds(settings, data, batch_size, times, together=1):
    """Seconds of the fastest training step; the first three warm up"""
    trainer = make_trainer(settings, data, batch_size, times * together + 3)
    states = trainer.train()
    for _ in islice(states, 3): pass
    return seconds_each(partial(next, states), trainer.device, times, together)


def sampling_seconds(settings, batch_size, device, times, together=1):
    """Seconds for a batch of one-step samples of the same network; the first three warm up"""
    settings = PLAIN | settings
    net = UNet(channels=(48, 96), num_classes=10, patch=settings["patch"]).to(device).eval()
    if settings["channels_last"]: net = net.to(memory_format=torch.channels_last)
    model = torch.compile(net) if settings["compile"] else net
    y, labels = torch.empty(batch_size, 1, 28, 28, device=device), torch.zeros(batch_size, dtype=torch.long, device=device)

    def sample():
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            list(trajectory(model, y, [80.], class_labels=labels))

    for _ in range(3): sample()
    return seconds_each(sample, device, times, together)


def operations(patch, device):
    """Floating point operations for one image: of a training step (both evaluations and the backward pass), and of a sample"""
    net, labels = UNet(channels=(48, 96), num_classes=10, patch=patch).to(device), torch.zeros(2, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as training:
        ImprovedConsistencyTraining()(net, torch.zeros(2, 1, 28, 28, device=device), 0, 10, class_labels=labels).predicted.sum().backward()
    with torch.no_grad(), FlopCounterMode(display=False) as sampling:
        net(torch.zeros(2, 1, 28, 28, device=device), torch.ones(2, device=device), labels)
    return training.get_total_flops() / 2, sampling.get_total_flops() / 2


def matrix_rate(device, dtype, size):
    """Operations a second of a large matrix multiplication, the most the device will give"""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds_each(lambda: a @ a, device, 10)


def main():
    arguments = parser(__doc__, "throughput")
    arguments.add_argument("--rounds", type=int, default=3, help="how often each option has its turn")
    arguments.add_argument("--steps", type=int, default=8, help="timed steps in a turn")
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    device = pick_device(options.threads)
    batch = 1024 if device.type == "cuda" else 64
    data = random_images(4 * batch)
    best = {name: float("inf") for name in OPTIONS}
    for turn in range(options.rounds):
        for name in best: best[name] = min(best[name], training_seconds(OPTIONS[name], data, batch, options.steps))
    rows = []
    print(f"{'option':16} {'images a second':>16} {'times plain':>12} {'of matrix rate':>15}")
    for name, seconds in best.items():
        row = {"option": name, "images_a_second": batch / seconds, "times_plain": best["plain"] / seconds}
        if device.type == "cuda":
            dtype = torch.bfloat16 if "precision" in OPTIONS[name] else torch.float32
            patch = (PLAIN | OPTIONS[name])["patch"]
            row["share"] = operations(patch, device)[0] * batch / seconds / matrix_rate(device, dtype, 8192)
        rows.append(row)
        print(f"{name:16} {row['images_a_second']:16.0f} {row['times_plain']:12.2f} {row.get('share', float('nan')):15.1%}")
    write(options.out, batch_size=batch, rows=rows)


if __name__ == "__main__": main()
