"""Sampling against diffusers' `ConsistencyModelPipeline`, with the same network. Run as `python benchmarks/sampling.py`.

One step and two steps of a `UNet2DModel` with random weights: bare (the network's evaluations alone), with this package's
sampler, and with the pipeline. They take turns, and the fastest run of each counts. Needs diffusers, which the dev extra
installs. The results go to `benchmarks/results/sampling.json`.
"""
import time

import torch
from common import parser, pick_device, wait_for, write
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

from consistency_models import DiffusersNetwork, trajectory


def make_network(device):
    """A U-Net of diffusers for color images of 32 by 32 pixels, with random weights"""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32, layers_per_block=2, block_out_channels=(64, 128), resnet_time_scale_shift="scale_shift", num_class_embeds=10,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D")).to(device).eval()


def contenders(network, steps, n, device):
    """Three functions that draw `n` samples in `steps` steps"""
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0, clip_denoised=True)
    pipeline = ConsistencyModelPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    net = DiffusersNetwork(network, scheduler)
    labels, y = torch.zeros(n, dtype=torch.long, device=device), torch.empty(n, 3, 32, 32, device=device)
    x, timestep = torch.randn(n, 3, 32, 32, device=device), torch.full((n,), 1000 * 0.25 * torch.tensor(80.0).log(), device=device)
    timesteps = {1: None, 2: [22, 0]}[steps]

    @torch.no_grad()
    def bare():
        for _ in range(steps): network(x, timestep, class_labels=labels)

    def package(): return list(trajectory(net, y, [80.0, 0.8][:steps], class_labels=labels))

    def diffusers():
        chosen = {"timesteps": timesteps, "num_inference_steps": None} if timesteps else {"num_inference_steps": steps}
        return pipeline(batch_size=n, class_labels=labels, output_type="pt", **chosen)

    return {"bare network": bare, "this package": package, "diffusers": diffusers}


def fastest(runs, seconds, device):
    """The fastest time of each function, which take turns"""
    best, end, turns = {name: float("inf") for name in runs}, time.perf_counter() + seconds, 0
    while turns < 5 or time.perf_counter() < end:
        for name in list(runs) if turns % 2 else reversed(list(runs)):
            start = time.perf_counter()
            runs[name]()
            wait_for(device)
            best[name] = min(best[name], time.perf_counter() - start)
        turns += 1
    return best


def main():
    arguments = parser(__doc__, "sampling")
    arguments.add_argument("--n", type=int, default=16, help="samples in a batch")
    arguments.add_argument("--seconds", type=float, default=40, help="time for each number of steps")
    options = arguments.parse_args()
    device = pick_device(options.threads)
    network, rows = make_network(device), []
    print(f"{'steps':>5} {'':14} {'samples a second':>17} {'time, bare = 1':>15}")
    for steps in (1, 2):
        best = fastest(contenders(network, steps, options.n, device), options.seconds, device)
        for name, seconds in best.items():
            rows.append({"steps": steps, "sampler": name, "samples_a_second": options.n / seconds, "times_bare": seconds / best["bare network"]})
            print(f"{steps:5} {name:14} {options.n / seconds:17.1f} {rows[-1]['times_bare']:15.3f}", flush=True)
    write(options.out, samples=options.n, rows=rows)


if __name__ == "__main__": main()
