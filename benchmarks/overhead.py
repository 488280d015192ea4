"""How much time does the library add to the network's own? Run as `python benchmarks/overhead.py`.

Two comparisons on the CPU, and on a GPU if there is one, with a `UNet` and a batch for which one forward takes at
least ten milliseconds: one-step sampling against one bare forward, and one step of improved consistency training with
the pseudo-Huber loss against the two forwards and the backward it cannot do without. The alternatives take turns, and
the fastest run of each counts. Other work on the machine makes the ratio unreliable, so the load is printed. Exit
status 1 if the library takes more than 1.03 times as long.
"""
import os
import sys
import time
from itertools import count

LIMIT = 1.03  # largest acceptable ratio
FORWARD_MS = 10  # the batch is doubled until one bare forward takes this long
SECONDS = {"cpu": 30, "cuda": 15}  # for each comparison
ALLOCATOR = {  # glibc: keep freed memory, else its return to the system decides the figures
    "MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TOP_PAD_": str(2**26)}


def fix_allocator():
    """Start this script afresh, once, with glibc told to keep freed memory"""
    if not sys.platform.startswith("linux") or ALLOCATOR.keys() <= os.environ.keys(): return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})


if __name__ == "__main__": fix_allocator()

import torch

from consistency_models import (
    ImprovedConsistencyTraining,
    UNet,
    pseudo_huber_loss,
    trajectory,
)


def milliseconds(run, device):
    """How long `run` takes, until the device has finished"""
    if device.type == "cuda": torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda": torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def fastest(runs, device, seconds):
    """The fastest time of each of `runs`, which take turns, first one ahead and then the other"""
    times, end = [[] for _ in runs], time.perf_counter() + seconds
    while len(times[0]) < 10 or time.perf_counter() < end:
        order = range(len(runs)) if len(times[0]) % 2 else reversed(range(len(runs)))
        for i in order: times[i].append(milliseconds(runs[i], device))
    return [min(t) for t in times]


def noisy_batch(size, device):
    """`size` noisy color images of 32 by 32 pixels and their noise level"""
    generator = torch.Generator().manual_seed(0)
    return 80 * torch.randn(size, 3, 32, 32, generator=generator).to(device), torch.full((size,), 80.0, device=device)


def large_enough(net, device):
    """The batch size, a power of two, at which one bare forward takes `FORWARD_MS` or more"""
    for size in (2**i for i in count()):
        bare, _ = sampling_runs(net, size, device)
        if min(milliseconds(bare, device) for _ in range(10)) >= FORWARD_MS: return size


def sampling_runs(net, size, device):
    """One forward of the bare network, and one-step sampling"""
    generator = torch.Generator(device).manual_seed(0)
    noisy, sigma = noisy_batch(size, device)
    y = torch.empty_like(noisy)

    @torch.no_grad()
    def bare(): return net(noisy, sigma)

    def library(): return list(trajectory(net, y, [80.0], generator=generator))

    return bare, library


def training_runs(net, size, device):
    """Two forwards and a backward of the bare network, and a step of improved consistency training with its loss"""
    training, generator = ImprovedConsistencyTraining(), torch.Generator(device).manual_seed(0)
    noisy, sigma = noisy_batch(size, device)
    x = (noisy / 80).clamp(-1, 1)

    def bare():
        net.zero_grad()
        predicted = net(noisy, sigma)
        with torch.no_grad(): target = net(noisy, sigma)
        (predicted - target).square().mean().backward()

    def library():  # the last step, where the schedule is longest
        net.zero_grad()
        output = training(net, x, 999, 1000, generator=generator)
        (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean().backward()

    return bare, library


def measure(device, seconds):
    """The batch size, and for each comparison the milliseconds of the bare passes and of the library"""
    torch.manual_seed(0)
    net = UNet(in_channels=3, channels=(64, 128)).to(device)
    size = large_enough(net, device)
    cases = {"one-step sampling": sampling_runs, "iCT step and backward": training_runs}
    return size, {name: fastest(runs(net, size, device), device, seconds) for name, runs in cases.items()}


def main():
    """Print the table; 1 if a ratio exceeds the limit, else 0"""
    if hasattr(os, "getloadavg"): print(f"load at the start {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores")
    print(f"{'fastest run, ms':26} {'bare':>9} {'library':>11} {'ratio':>7}")
    worst = 0
    for name in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        size, times = measure(torch.device(name), SECONDS[name])
        print(f"{name}, batch of {size}")
        for case, (bare, library) in times.items():
            print(f"  {case:24} {bare:9.2f} {library:11.2f} {library / bare:7.3f}", flush=True)
            worst = max(worst, library / bare)
    print(f"largest ratio {worst:.3f}; the aim is at most {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__": sys.exit(main())
