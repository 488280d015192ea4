"""Every way to train a consistency model, on one network and one measure.

Six methods train the same network on the same data: consistency training (ct), improved
consistency training (ict), consistency distillation (cd), easy consistency tuning (ect), and
continuous time without a teacher (sct) and with one (scd). cd, ect, sct and scd start from a
diffusion model, whose training counts: it takes 40% of the budget.

The budget is given twice: as a number of network evaluations of one sample, equal for all (a
forward pass of student, target or teacher is one, a forward derivative two; backward passes come on
top); and as seconds of one core, those that ict takes for that number. Samples in one and in two
steps are compared with real data: by the energy distance on moons, by the Fréchet distance in the
features of a digit classifier on the others. `reference` is that distance between two sets of real
data. Each run has a process of its own, so that its peak of memory can be told.

    python benchmarks/methods.py moons digits           three seeds of both budgets, an hour
    python benchmarks/methods.py MNIST --root data      one seed of both; three with --seeds 3
    python benchmarks/methods.py MNIST --keep models    also keeps the trained networks

The results go to `benchmarks/results/methods.json`, where those of other data stay.
"""
import copy
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import torch
from common import parser, write
from torch.utils.data import TensorDataset

from consistency_models import (
    MLP,
    Trainer,
    UNet,
    frechet_distance,
    from_pretrained,
    load_digits,
    measure_sigma_data,
    pseudo_huber_loss,
    sample,
    save_pretrained,
    train_classifier,
    trajectory,
    two_moons,
)
from consistency_models.data import open_data
from consistency_models.metrics import real_pairs
from consistency_models.recipes import OBJECTIVES

COST = {"diffusion": 1, "ct": 2, "ict": 2, "cd": 4, "ect": 2, "sct": 3, "scd": 4}     # of a step
TUNED = ("cd", "ect", "sct", "scd")     # start from a diffusion model
SHARE = 0.4                             # of the budget, for that model
DATA = {
    "moons": dict(evaluations=1_000_000, batch_size=256, learning_rate=2e-3, ema_decay=0.99,
                  rate_in_continuous_time=5e-4, second=0.5, n=4000),
    "digits": dict(evaluations=90_000, batch_size=64, learning_rate=2e-3, ema_decay=0.99,
                   rate_in_continuous_time=1e-3, second=0.8, n=1797),
    "MNIST": dict(evaluations=1_000_000, batch_size=64, learning_rate=1e-3, ema_decay=0.999,
                  rate_in_continuous_time=5e-4, second=0.8, n=10_000),
}
METHODS = {     # what differs from the defaults
    "diffusion": {}, "ct": {"final_timesteps": 40}, "ict": {"final_timesteps": 40},
    "cd": {"distance": pseudo_huber_loss}, "ect": {"stages": 6},
    "sct": {"learn_weight": False}, "scd": {"learn_weight": False},
}


def moons(n, seed): return two_moons(n, generator=torch.Generator().manual_seed(seed))


def load(data, root):
    """Training samples, real samples to compare with, and their classes, or `None` on points"""
    if data == "moons": return moons(20_000, 0), moons(4000, 1), None, None
    if data == "digits": return (load_digits()[0],) * 2 + (load_digits()[1],) * 2
    parts = [open_data(data, None, root, part).tensors for part in (True, False)]
    (train, train_labels), (test, labels) = parts
    return train, test, train_labels, labels


def network(data, sigma_data, seed):
    """The same network for every method"""
    torch.manual_seed(seed)
    if data == "moons": return MLP(2, sigma_data=sigma_data)
    return UNet(1, (32, 64), num_classes=10, patch=1 if data == "digits" else 2,
                sigma_data=sigma_data, label_dropout=0.1)


def objective(method, sigma_data, teacher, **settings):
    """The objective of a method"""
    teachers = () if teacher is None or method not in ("cd", "scd") else (teacher,)
    return OBJECTIVES[method](*teachers, sigma_data=sigma_data, **settings)


def energy_distance(a, b):
    """Energy distance of two sets of points, squared: Székely & Rizzo (2013), Eq. 5"""
    between = lambda u, v: torch.cdist(u, v).mean()
    return (2 * between(a, b) - between(a, a) - between(b, b)).item()


def judge_of(data, keep, x, labels):
    """The classifier in whose features images are compared, trained once; `None` on points"""
    if labels is None: return None
    file = Path(keep) / f"{data}-judge.pt"
    if not file.exists():
        judge = train_classifier(x, labels, 800 if data == "digits" else 3000)
        torch.save(judge, made := file.with_name(f"{os.getpid()}-{file.name}"))
        made.rename(file)
    return torch.load(file, weights_only=False)


def distances(net, data, real, labels, judge, second, n, seed=0):
    """Distance of samples in one step and in two"""
    results = []
    for sigmas in ((80.,), (80., second)):
        if data == "moons":
            *_, (_, _, x) = trajectory(net, torch.empty(n, 2), sigmas, clip_denoised=False,
                                       generator=torch.Generator().manual_seed(seed))
            results.append(energy_distance(x, real[:n]))
        else:
            x = sample(net, n, sigmas, labels[:n], seed, real.shape[1:])
            results.append(frechet_distance(real, x, judge.features))
    return results


def train(data, method, steps, seed, keep, root, teacher=None, points=8, **changes):
    """Train one method; returns the trainer, its CPU seconds, and the curve over training"""
    own = METHODS[method] | changes
    s = dict(DATA[data])
    if method in ("sct", "scd"): s["learning_rate"] = s["rate_in_continuous_time"]
    s |= {k: own.pop(k) for k in s if k in own}
    x, real, labels, real_labels = load(data, root)
    judge = None if method == "diffusion" else judge_of(data, keep, x, labels)
    sigma_data = measure_sigma_data(x)
    net = copy.deepcopy(teacher) if teacher else network(data, sigma_data, seed)
    net.requires_grad_(True)
    columns = (x,) if labels is None else (x, labels)
    trainer = Trainer(net, TensorDataset(*columns), steps,
                      objective(method, sigma_data, teacher, **own),
                      ("class_labels",) * (len(columns) - 1), s["batch_size"],
                      learning_rate=s["learning_rate"], ema_decay=s["ema_decay"], seed=seed,
                      channels_last=data != "moons",
                      precision="bf16" if data == "MNIST" else "no")
    curve, seconds, start = [], 0., time.process_time()
    for state in trainer.train():
        part = max(1, steps // points)
        looked = state.step % part == 0 and state.step < steps - part // 2
        if method != "diffusion" and (looked or state.step == steps):
            seconds += time.process_time() - start
            n = s["n"] if state.step == steps else min(s["n"], 2000)
            found = distances(trainer.average, data, real, real_labels, judge, s["second"], n)
            curve.append([state.step * s["batch_size"] * COST[method], seconds, *found])
            start = time.process_time()
    seconds += time.process_time() - start
    return trainer, seconds, curve


def steps_for(data, method, budget, amount, rates):
    """How many steps are paid by `amount` evaluations, or by as many seconds at these `rates`"""
    if budget == "seconds": return max(1, round(amount / rates[method]))
    return max(1, round(amount / DATA[data]["batch_size"] / COST[method]))


def prepare(data, budget, amount, seed, keep, root="data", rates=None):
    """Train the diffusion model of a budget and seed, if `keep` lacks it; returns seconds a step"""
    torch.set_num_threads(1)
    folder = Path(keep) / f"{data}-diffusion-{budget}-{seed}"
    steps = steps_for(data, "diffusion", budget, SHARE * amount, rates)
    notes = from_pretrained(folder).notes if folder.exists() else {}
    if notes.get("steps") == steps: return notes["seconds"] / steps
    trainer, seconds, _ = train(data, "diffusion", steps, seed, keep, root)
    shape = list(trainer.data[0][0].shape)
    save_pretrained(trainer.average, folder, shape=shape, steps=steps, seconds=seconds)
    return seconds / steps


def run(data, method, budget, amount, seed, keep, root="data", rates=None, **changes):
    """One run; what starts from a diffusion model finds it in the folder `keep`"""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size, tuned = DATA[data]["batch_size"], method in TUNED
    teacher, spent, evaluations = None, 0., 0
    if tuned:
        teacher = from_pretrained(Path(keep) / f"{data}-diffusion-{budget}-{seed}")
        spent, evaluations = teacher.notes["seconds"], teacher.notes["steps"] * size
    steps = steps_for(data, method, budget, (1 - SHARE if tuned else 1) * amount, rates)
    points = 8 if seed == 0 and budget == "evaluations" else 1     # looking takes its time too
    trainer, seconds, curve = train(
        data, method, steps, seed, keep, root, teacher, points, **changes)
    folder, shape = Path(keep) / f"{data}-{method}-{budget}-{seed}", list(trainer.data[0][0].shape)
    save_pretrained(trainer.average, folder, shape=shape, steps=steps)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    curve = [[e + evaluations, t + spent, *rest] for e, t, *rest in curve]
    return {"data": data, "method": method, "budget": budget, "seed": seed, "one": curve[-1][2],
            "two": curve[-1][3], "seconds": seconds + spent, "steps": steps, "memory": memory,
            "evaluations": curve[-1][0], "rate": seconds / steps, "curve": curve}


def reference(data, keep, root):
    """The distance of two sets of real data"""
    x, real, labels, _ = load(data, root)
    if data == "moons": return energy_distance(moons(4000, 2), real)
    features = judge_of(data, keep, x, labels).features
    values = [frechet_distance(a, b, features) for a, b, _ in real_pairs(real, real)]
    return sum(values) / len(values)


def store(path, r, amount_of_diffusion, data, keep, root):
    """Put one run among the results, in the place of an earlier one"""
    kept = read(path)
    same = ("data", "method", "budget", "seed")
    runs = [o for o in kept["runs"] if any(o[k] != r[k] for k in same)] + [r]
    settings = {m: {k: getattr(v, "__name__", v) for k, v in own.items()}
                for m, own in METHODS.items()}
    if data not in kept["reference"]: kept["reference"][data] = reference(data, keep, root)
    if r["budget"] == "evaluations": kept["diffusion"][data] = amount_of_diffusion
    write(path, settings={"data": DATA, "methods": settings, "share": SHARE, "cost": COST},
          runs=runs, reference=kept["reference"], diffusion=kept["diffusion"])
    print(f"{data} {r['method']} {r['budget']} {r['seed']}: {r['one']:.4g} in one step, "
          f"{r['two']:.4g} in two, {r['seconds']:.0f} s", flush=True)


def read(path):
    """The results so far"""
    if path.exists(): return json.loads(path.read_text())
    return {"runs": [], "reference": {}, "diffusion": {}}


def main():
    made = parser(__doc__, "methods")
    made.add_argument("data", nargs="+", choices=DATA)
    made.add_argument("--methods", nargs="+", choices=METHODS,
                      default=[m for m in METHODS if m != "diffusion"])
    made.add_argument("--budgets", nargs="+", default=("evaluations", "seconds"),
                      choices=("evaluations", "seconds"), help="seconds needs the other first")
    made.add_argument("--seeds", type=int, help="training seeds; 3, on MNIST 1, if not given")
    made.add_argument("--root", default="data", help="where torchvision's files are")
    made.add_argument("--keep", help="folder for the trained networks; a diffusion model that is "
                      "there is not trained again")
    made.add_argument("--processes", type=int, default=2, help="runs at a time, one core each")
    options = made.parse_args()
    keep, root = options.keep or tempfile.mkdtemp(), options.root
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, max_tasks_per_child=1) as pool:
        for data, budget in product(options.data, options.budgets):
            seeds = range(options.seeds or (1 if data == "MNIST" else 3))
            kept, amount, rates = read(options.out), DATA[data]["evaluations"], {}
            if budget == "seconds":
                equal = [r for r in kept["runs"] if r["data"] == data and r["budget"] != budget]
                rates = {r["method"]: r["rate"] for r in equal}
                rates["diffusion"] = kept["diffusion"][data]
                amount = statistics.median(r["seconds"] for r in equal if r["method"] == "ict")
                for r in equal:     # those runs of ict are what the seconds are counted by
                    if r["method"] == "ict" and r["seed"] in seeds:
                        store(options.out, r | {"budget": budget}, None, data, keep, root)
            jobs = [pool.submit(prepare, data, budget, amount, s, keep, root, rates) for s in seeds]
            rate = statistics.median(job.result() for job in jobs)
            jobs = [pool.submit(run, data, m, budget, amount, s, keep, root, rates)
                    for s in seeds for m in options.methods if (m, budget) != ("ict", "seconds")]
            for job in as_completed(jobs): store(options.out, job.result(), rate, data, keep, root)


if __name__ == "__main__": main()
