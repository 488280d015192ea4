"""How much time does the library add to the network's own? Run as `python benchmarks/overhead.py`.

Three comparisons, for an MLP on points and a small U-Net on images of 8 by 8 pixels on the CPU, and on a GPU, if there
is one, for a U-Net and a batch for which one forward takes at least ten milliseconds:

- one-step sampling against one bare forward;
- one step of improved consistency training with its loss and backward, against the two forwards and the backward;
- a step of the trainer, against a bare loop: the two forwards, the backward, the optimizer and the average.

For the U-Net, one step of every other method as well, against its own passes (`PASSES`). The ratios are written to
`benchmarks/results/overhead.json`.

On the CPU each alternative runs in processes of its own, with the allocator as it is; the package calls `keep_memory`
as its trainer does, the bare code does not. What counts is CPU time, since a busy machine makes a clock lie: the
median step of each process, and of several processes, which take turns, the fastest. The memory pages that the system
had to hand out in a step are printed too. On a GPU the alternatives take turns in one process, and the fastest step
counts. Exit status 1 if a ratio exceeds its limit.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import torch
from common import write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

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
    average_of,
    keep_memory,
    trajectory,
    two_moons,
)

PASSES = {  # besides the forward and backward of the trained network: forwards, and derivatives
    "diffusion step": (0, 0), "CT step": (1, 0), "iCT step": (1, 0), "CD step": (3, 0), "ECT step": (1, 0),
    "sCT step": (0, 1), "sCD step": (1, 1)}
METHODS = {
    "diffusion step": lambda net: DiffusionTraining(), "CT step": lambda net: ConsistencyTraining(),
    "iCT step": lambda net: ImprovedConsistencyTraining(), "CD step": ConsistencyDistillation,
    "ECT step": lambda net: EasyConsistencyTuning(), "sCT step": lambda net: ContinuousConsistencyTraining(),
    "sCD step": ContinuousConsistencyDistillation}
KINDS = {"points": ("sampling", "iCT step", "training loop"), "images": ("sampling", *PASSES, "training loop")}
LIMITS = {"points": 1.3, "images": 1.05}  # largest acceptable ratios of one step of a method
FORWARD_MS = 10  # on a GPU the batch is doubled until one bare forward takes this long
ROUNDS = 3  # processes of each alternative
SECONDS = {"cpu": 3, "cuda": 4}  # for each alternative, in each round


def network(name, device):
    """A network and a batch of clean samples for it"""
    torch.manual_seed(0)
    if device.type == "cuda":
        net = UNet(in_channels=3, channels=(64, 128)).to(device)
        for size in (2**i for i in count()):
            x = torch.randn(size, 3, 32, 32, device=device).clamp(-1, 1)
            with torch.no_grad():
                if min(milliseconds(lambda: net(x, x.new_ones(len(x))), device)
                        for _ in range(10)) >= FORWARD_MS:
                    return net, x
    if name == "points": return MLP(), two_moons(256)
    return UNet(channels=(32, 64)), torch.randn(64, 1, 8, 8).clamp(-1, 1)


def passes(net, x, sigma, forwards=1, derivatives=0):
    """The passes of the network that a training step cannot do without"""
    predicted = net(x, sigma)
    with torch.no_grad():
        for _ in range(forwards): target = net(x, sigma)
        with sdpa_kernel(SDPBackend.MATH):
            for _ in range(derivatives): target, _ = torch.func.jvp(net, (x, sigma), (x, sigma))
    if not forwards + derivatives: target = x
    (predicted - target).square().mean().backward()


def alternatives(kind, net, x):
    """The bare code and the package's, as functions without arguments"""
    sigma, generator = x.new_full((len(x),), 80.), torch.Generator(x.device).manual_seed(0)
    if kind == "sampling":

        @torch.no_grad()
        def bare(): return net(80 * x, sigma)

        return bare, lambda: list(trajectory(net, x, [80.], generator=generator))
    if kind in PASSES:
        objective = METHODS[kind](net)
        objective.attach(net)

        def bare():
            net.zero_grad()
            passes(net, x, sigma, *PASSES[kind])

        def package():  # the last step, where the schedule is longest
            net.zero_grad()
            objective.loss(objective.step(net, x, 999, 1000, generator=generator)).mean().backward()

        return bare, package
    states = []

    def bare():
        if not states:
            average = average_of(net)
            optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
            states.append((optimizer, list(average.parameters()),
                [p.detach() for p in net.parameters()]))
        optimizer, averages, weights = states[0]
        optimizer.zero_grad()
        passes(net, x, sigma)
        optimizer.step()
        torch._foreach_lerp_(averages, weights, 0.001)

    def package():
        if not states:
            states.append(Trainer(net, TensorDataset(x.cpu()), 10**6, batch_size=len(x)).train())
        next(states[0])

    return bare, package


def milliseconds(run, device):
    """How long `run` takes: on a GPU until it has finished, on the CPU the CPU time"""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda": torch.cuda.synchronize(device)
    start = clock()
    run()
    if device.type == "cuda": torch.cuda.synchronize(device)
    return 1000 * (clock() - start)


def work(name, who, seconds):
    """One side of all comparisons, in this process on the CPU: milliseconds of the median step,
    pages handed out in a step, and peak memory so far in MB"""
    device, found = torch.device("cpu"), []
    if who: keep_memory()
    for kind in KINDS[name]:
        run, times = alternatives(kind, *network(name, device))[who], []
        for _ in range(5): run()
        begin, end = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time() + seconds
        while time.process_time() < end: times.append(milliseconds(run, device))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pages = (usage.ru_minflt - begin) / len(times)
        found.append((statistics.median(times), pages, usage.ru_maxrss / 1024))
    return found


def on_cpu(name, seconds, rounds=ROUNDS):
    """For each comparison, for the bare code and the package's: what the fastest process found"""
    found = [[], []]
    for turn in range(rounds):
        for who in (0, 1) if turn % 2 else (1, 0):
            command = [sys.executable, __file__, "--work", name, str(who), str(seconds)]
            environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode: raise RuntimeError(f"exit code {done.returncode}\n{done.stderr}")
            found[who].append(json.loads(done.stdout.splitlines()[-1]))
    return {kind: [min(f[i] for f in side) for side in found] for i, kind in enumerate(KINDS[name])}


def on_gpu(kind, device, seconds):
    """The batch, and the milliseconds of the fastest step of the bare code and of the package's, which take turns"""
    net, x = network("images", device)
    runs = alternatives(kind, net, x)
    if kind == "training loop":
        runs = alternatives(kind, net, x)[0], alternatives(kind, *network("images", device))[1]
    times, end = ([], []), time.perf_counter() + 2 * seconds
    while len(times[0]) < 10 or time.perf_counter() < end:
        for i in (0, 1) if len(times[0]) % 2 else (1, 0):
            times[i].append(milliseconds(runs[i], device))
    return len(x), [min(t) for t in times]


def measure(device, seconds, rounds=ROUNDS):
    """Milliseconds of the bare code and of the package's, by the name of the comparison"""
    if device.type == "cpu":
        found = {name: on_cpu(name, seconds, rounds) for name in LIMITS}
        return {f"{kind}, {name}": [ms for ms, *_ in found[name][kind]]
                for name in LIMITS for kind in KINDS[name]}
    found = {kind: on_gpu(kind, device, seconds) for kind in KINDS["images"]}
    return {f"{kind}, batch of {size}": times for kind, (size, times) in found.items()}


def main():
    """Print the table; 1 if a ratio exceeds its limit, else 0"""
    if hasattr(os, "getloadavg"):
        print(f"load at the start {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores")
    print(f"{'milliseconds a step':26} {'bare':>9} {'package':>9} {'ratio':>7}   pages a step, peak memory in MB")
    bad, rows = 0, []
    for name, limit in LIMITS.items():
        for kind, sides in on_cpu(name, SECONDS["cpu"]).items():
            (bare, pages, peak), (package, own_pages, own_peak) = sides
            rest = f"{pages:.0f} and {own_pages:.0f}, {peak:.0f} and {own_peak:.0f}"
            line = f"{kind + ', ' + name:26} {bare:9.2f} {package:9.2f} {package / bare:7.3f}"
            print(f"{line}   {rest}", flush=True)
            bad += kind in PASSES and package / bare > limit
            rows.append({"case": f"{kind}, {name}", "bare_ms": bare, "package_ms": package})
    if torch.cuda.is_available():
        for case, (bare, package) in measure(torch.device("cuda"), SECONDS["cuda"]).items():
            print(f"{'GPU, ' + case:26} {bare:9.2f} {package:9.2f} {package / bare:7.3f}",
                flush=True)
            bad += " step" in case and package / bare > LIMITS["images"]
            rows.append({"case": f"GPU, {case}", "bare_ms": bare, "package_ms": package})
    write(Path(__file__).parent / "results/overhead.json", rows=rows)
    print(f"the aim for one step of a method: at most {LIMITS['points']} on points, {LIMITS['images']} on images")
    return int(bad > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=3, metavar=("NAME", "WHO", "SECONDS"),
        help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.work: sys.exit(main())
    name, who, seconds = options.work
    print(json.dumps(work(name, int(who), float(seconds))))
