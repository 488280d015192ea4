"""A folder of one's own pictures: how large, how fast, and how good after how long?

A diffusion model and then its student, as `consistency-models train --data FOLDER --labels --mirror
--precision bf16` trains them, for each size of the pictures and each time, which decides the steps and the
span of the average. A tenth of the pictures is held out; two-step samples are compared with
them by the Fréchet distance in the features of a classifier of the subfolders, which are the classes; it
sees pictures of 64 pixels at half their size.
`real` is that distance for as many pictures of the training part. Each run has a process of its own.

    python benchmarks/folder.py PICTURES --sizes 16 32 64 --minutes 1 10
    python benchmarks/folder.py PICTURES --sizes 64 --minutes 60
    python benchmarks/folder.py PICTURES --sizes 64 --minutes 10 --autoencoder FOLDER

With `--autoencoder` both are trained in its latents; its own training, about 14 minutes on a core for emoji, is
not in the time.
The results go to `benchmarks/results/folder.json`, where those of other sizes and times stay. Times are
those of one run alone on the machine, with all threads that `--threads` allows.
"""
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from common import parser, pick_device, write

from consistency_models import frechet_distance, from_pretrained, sample, train_classifier
from consistency_models.data import open_folder
from consistency_models.latents import encode_dataset
from consistency_models.metrics import real_pairs
from consistency_models.pictures import save_grid
from consistency_models.recipes import make_trainer, plan, recipe_for, save_run

SHARES = {"diffusion": 0.7, "cd": 0.3}      # of the time, as in the recipes
SECOND = 1.                                 # noise level of the second step


def place(run):
    """Where a run stands in the table"""
    return run["size"], run.get("latents", False), run["minutes"]


def run(folder, size, minutes, threads, keep, autoencoder):
    """Train both for so many minutes and measure the student"""
    device = pick_device(threads)
    opened = dict(size=size, labels=True, hold_out=0.1)
    data, held = open_folder(folder, mirror=True, **opened), open_folder(folder, train=False, **opened)
    (training, classes), (real, labels) = data.tensors, (t.to(device) for t in held.tensors)
    space = from_pretrained(autoencoder, device) if autoencoder else None
    if space: data = encode_dataset(space, data)
    name = f"{size}{'-latents' if autoencoder else ''}-{minutes:g}"
    latest, found, start = None, {}, time.perf_counter()
    for objective, share in SHARES.items():
        given = {"teacher": latest} if latest else {}
        recipe = recipe_for("images", objective, precision="bf16", **given)
        seconds = plan(make_trainer(data, recipe, space=space), 5)["seconds"]
        recipe["steps"] = max(1, round(60 * minutes * share / seconds))
        recipe["ema_decay"] = max(0., min(recipe["ema_decay"], 1 - 20 / recipe["steps"]))
        trainer = make_trainer(data, recipe, space=space)
        found |= {f"{objective}_{k}": v for k, v in plan(trainer, 5).items()}
        found |= {f"{objective}_steps": recipe["steps"]}
        for _ in trainer.train(): pass
        save_run(trainer, latest := Path(keep) / f"{name}-{objective}", str(folder), recipe, space=space)
    seconds, net = time.perf_counter() - start, from_pretrained(latest, device)
    judge = train_classifier(training.to(device), classes.to(device), 2000)
    draws = [sample(net, len(real), (80., SECOND), labels, s) for s in range(3)]
    save_grid(draws[0][:32], Path(keep) / f"{name}.png", 8)
    distance = lambda x: frechet_distance(real, x, judge.features)
    return {"size": size, "latents": bool(autoencoder), "minutes": minutes, "seconds": seconds, "images": len(data) // 2, "held_out": len(real),
            "channels": list(net.config["channels"]), "patch": net.config["patch"], **found,
            "distance": [distance(x) for x in draws],
            "real": statistics.mean(distance(b) for _, b, _ in real_pairs(real, training.to(device), 3))}


def main():
    made = parser(__doc__, "folder")
    made.add_argument("folder", type=Path)
    made.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    made.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    made.add_argument("--autoencoder", help="train in the latents of the one in this folder")
    made.add_argument("--keep", help="folder for the trained networks and their samples")
    options = made.parse_args()
    keep, threads = options.keep or tempfile.mkdtemp(), options.threads
    for minutes in options.minutes:
        for size in options.sizes:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                r = pool.submit(run, options.folder, size, minutes, threads, keep, options.autoencoder).result()
            kept = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
            kept = [o for o in kept if place(o) != place(r)]
            torch.set_num_threads(threads)
            write(options.out, runs=sorted([*kept, r], key=place), second=SECOND)
            print(f"{size} pixels, {minutes:g} min: {statistics.mean(r['distance']):.0f} (real {r['real']:.0f}), "
                  f"{sum(r[f'{k}_steps'] for k in SHARES):,} steps", flush=True)


if __name__ == "__main__": main()
