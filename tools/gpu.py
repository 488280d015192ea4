"""The GPU check in one command: run as `make gpu`, or as `python tools/gpu.py` in an environment that is there already.

Its parts, each in a process of its own and within a budget of time:

tests      all tests marked `needs_cuda`
slider     the time from a slider's move to the bytes of the new picture, without a browser
overhead   one-step sampling and one training step against the bare passes of the network (`benchmarks/overhead.py`)
speed      training and sampling with each speed option, as a share of the rate of matrix products in the same run
train      only with `--train NAME`: train a bundled model for `--minutes`, resumable, and save its weights

It ends with a table, which is also written to `gpu.json` in the folder of results. The exit code is 1 if a part failed.
Without a GPU, or with `--quick`, all is shortened and runs on what there is; packages that a bare machine may lack
are hidden from every part but `train`, so that this run shows what is needed.

A bare machine needs torch, torchvision, accelerate, safetensors, numpy and Pillow with what these need, and a C compiler.
The rest are small wheels of pure Python. Where there is a connection:

    python -m pip download --no-deps -d wheels fastcore pytest pluggy iniconfig packaging pygments

On the bare machine, in a clone of this repository that holds the folder `wheels`:

    python -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python tools/gpu.py
"""
import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"tests": 210, "slider": 60, "overhead": 120, "speed": 270, "train": 0}  # seconds of each part, at most
LEAST = 15  # seconds without which no part begins
MAY_LACK = ("IPython", "anywidget", "ipywidgets", "matplotlib", "lpips", "sklearn", "scipy", "torchmetrics", "pandas", "nbdev",
            "playwright", "tensorboard", "diffusers")


# The parts: each is called as `part(options, device, quick, row)`

def tests(options, device, quick, row):
    """The tests marked `needs_cuda`; without a GPU their twins on the CPU. Shortened, nothing is compiled or killed"""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest
    results = {}  # for each test function: what became of its cases, seconds, and the first error

    def chosen(item):
        from conftest import needs_cuda
        twin = getattr(item, "callspec", None) and item.callspec.params.get("device") == "cpu"
        return (needs_cuda.mark in item.iter_markers("skipif") if device.type == "cuda" else twin) and not (quick and re.search("compiled|killed", item.name))

    def error_of(report): return next((line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")), "see the log")

    class Plugin:
        def pytest_collection_modifyitems(self, items): items[:] = filter(chosen, items)

        def pytest_collectreport(self, report):
            if report.failed: results[Path(report.nodeid).name] = [["failed"], 0, error_of(report)]

        def pytest_runtest_logreport(self, report):
            result = results.setdefault(report.nodeid.split("::")[1].split("[")[0], [[], 0, ""])
            if report.failed and not result[2]: result[2] = error_of(report)
            if report.when == "call" or report.outcome != "passed": result[0].append(report.outcome)
            result[1] += report.duration

    files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if re.search(r"\bneeds_cuda\b|^@devices", p.read_text(), re.MULTILINE)]
    settings = ["--continue-on-collection-errors", "-p", "no:cacheprovider", "-W", "ignore", f"--rootdir={ROOT}", "-c", str(ROOT / "pytest.ini")]
    code = pytest.main([*settings, *map(str, files)], plugins=[Plugin()])
    for name, (outcomes, seconds, error) in results.items():
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped") if o in outcomes)
        row(name.removeprefix("test_").replace("_", " "), counts, f"{seconds:.1f} s", " ".join(error.split())[:120], failed="failed" in outcomes)
    if code not in (0, 1): raise RuntimeError(f"pytest ended with {code!r}; the log says why")


def slider(options, device, quick, row):
    """What a widget does when a slider moves: 16 one-step samples, put into one picture, as a PNG"""
    import torch
    from throughput import seconds_each

    from consistency_models import from_pretrained, trajectory
    from consistency_models.pictures import image_grid, to_png
    for name in ("digits", "mnist"):
        net = from_pretrained(name, device)
        y = torch.empty(16, *net.notes["shape"], device=device)
        labels = torch.arange(16, device=device) % net.config["num_classes"]

        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            (_, _, x), = trajectory(net, y, [80.], generator=generator, class_labels=labels)
            return to_png(image_grid(x))

        for seed in range(5): draw(seed)
        times = sorted(1000 * seconds_each(partial(draw, seed), device, 1) for seed in range(30))
        row(f"{name}: 16 samples to PNG, median of 30", times[15], "ms", f"slowest {times[-1]:.3g} ms")


def overhead(options, device, quick, row):
    """How many times as long the library takes as bare code that does the same"""
    import overhead
    for name, (bare, package) in overhead.measure(device, *((1, 1) if quick else (overhead.SECONDS[device.type],))).items():
        row(f"{name} / bare code", package / bare, "times", f"{package:.3g} / {bare:.3g} ms")


SPEED = {"fp32": {}, "tf32": {}, "bf16": {"precision": "bf16"}, "fp32, channels_last": {"channels_last": True},
         "fp32, compile": {"compile": True}, "bf16, channels_last, compile": {"precision": "bf16", "channels_last": True, "compile": True}}


def speed(options, device, quick, row):
    """Training and sampling with each option, in images a second and as a share of the matrix rate of the same type"""
    import torch
    from throughput import matrix_rate, operations, random_images, sampling_seconds, training_seconds
    end, gpu = time.monotonic() + options.seconds, device.type == "cuda"
    batch, turns, together = (4096, 3, 10) if gpu and not quick else (32, 2, 1)
    data, rates = random_images(4 * batch), {}

    def set_tf32(on): torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on

    for name in ("fp32", "tf32", "bf16") if gpu else ("fp32", "bf16"):
        set_tf32(name == "tf32")
        rates[name] = matrix_rate(device, torch.bfloat16 if name == "bf16" else torch.float32, 8192 if gpu else 512)
        row(f"matrix product, {name}", rates[name] / 1e12, "TFLOP/s")
    needed = dict(zip(("train", "sample"), operations(2, device)))
    for name, settings in SPEED.items():
        precision = name.split(",")[0]
        if precision not in rates or (quick and "compile" in name): continue
        if time.monotonic() + (90 if "compile" in name else 20) > end and not quick:
            row(name, "skipped", note="no time left")
            continue
        set_tf32(precision == "tf32")
        settings = settings | {"patch": 2, "fused": True}
        seconds = {"train": training_seconds(settings, data, batch, turns, together),
                   "sample": sampling_seconds(settings, batch, device, turns, together)}
        for kind, s in seconds.items():
            share = f"{needed[kind] * batch / s / rates[precision]:.1%} of the matrix rate; " * gpu  # means nothing on a CPU, see throughput.py
            row(f"{kind}, {name}", batch / s, "images/s", f"{share}batch of {batch}")


def plan(options, device, folder, data, end):
    """The recipe of a run that ends in time, from a measured speed; that of an earlier call, if there was one"""
    from throughput import seconds_each

    from consistency_models.recipes import make_trainer, recipe_for
    path, method = folder / "plan.json", {k: options.recipe[k] for k in ("objective", "teacher") if k in options.recipe}
    recipe = recipe_for(options.train, **method)
    known = recipe.keys() - {"steps"}
    if unknown := options.recipe.keys() - known:
        raise ValueError(f"--recipe knows {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}; the steps follow from --minutes")
    if path.is_file():
        earlier = json.loads(path.read_text())
        if earlier["recipe"] | options.recipe != earlier["recipe"]: raise ValueError(f"--recipe differs from {path} of an earlier run; choose another --out")
        return earlier
    if device.type == "cuda": recipe |= {"precision": "bf16", "batch_size": 8 * recipe["batch_size"]}
    recipe |= options.recipe
    states = make_trainer(data, recipe | {"steps": 60}).train()
    for _ in range(10): next(states)
    seconds = seconds_each(partial(next, states), device, 1, 50)
    chosen = {"recipe": recipe | {"steps": max(1, int(0.92 * (end - time.monotonic()) / seconds))}, "checkpoint_every": max(1, round(20 / seconds))}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chosen, indent=1) + "\n")
    return chosen


def train(options, device, quick, row):
    """Train a model by its recipe, in so many steps that the schedules end in time; the same command goes on with a stopped run"""
    from consistency_models.data import open_data
    from consistency_models.recipes import make_trainer, save_run
    begin = time.monotonic()
    end, folder, data = begin + 60 * options.minutes, options.out / Path(options.train).name, open_data(options.train, root=str(options.data_root))
    chosen = plan(options, device, folder, data, end)
    recipe = chosen["recipe"]
    trainer = make_trainer(data, recipe, out=folder, checkpoint_every=chosen["checkpoint_every"], keep=1)
    went_on = f", from step {trainer.step}" if trainer.resume() else ""
    states, recent = trainer.train(), []
    for state in states:
        recent = [*recent[-99:], state.loss]
        if time.monotonic() > end: states.close()
    ended = trainer.step == trainer.steps
    row(f"{options.train}: step of {trainer.steps:,}{went_on}", trainer.step, "", "" if ended else "no time left; the same command goes on")
    if recent: row(f"{options.train}: loss, mean of the last {len(recent)} steps", sum(recent).item() / len(recent), "", f"{time.monotonic() - begin:.0f} s in all")
    if not ended: return
    save_run(trainer, folder, options.train, recipe)
    row(f"{options.train}: weights", "saved", "", folder / "model.safetensors")


PARTS = {f.__name__: f for f in (tests, slider, overhead, speed, train)}


# Running them

def machine(device):
    """One line on what the figures were measured with"""
    import torch
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"no GPU, {platform.machine()}"
    return f"{name} · {os.cpu_count()} CPU cores · torch {torch.__version__} · Python {platform.python_version()}"


def work(options):
    """One part, in this process: its rows go to standard output, one JSON object a line, and all else to standard error"""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def row(name, value="", unit="", note="", failed=False):
        found = {"part": options.part, "name": name, "value": value, "unit": unit, "note": str(note), "failed": failed}
        print(json.dumps(found), file=rows, flush=True)

    try:
        import torch
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        quick = options.quick or device.type == "cpu"
        print(json.dumps({"machine": machine(device) + " · shortened" * quick}), file=rows, flush=True)
        if quick and options.part != "train": sys.modules.update(dict.fromkeys(MAY_LACK))  # importing these is an ImportError now
        PARTS[options.part](options, device, quick, row)
    except Exception as e:
        traceback.print_exc()
        row("", "failed", note=f"{type(e).__name__}: {' '.join(str(e).split())}"[:200], failed=True)


def run_part(name, options, seconds, log):
    """One part in a process of its own, which has so many seconds; the objects it printed"""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--seconds", str(round(seconds))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True, encoding="utf-8", start_new_session=True)
    problem = None
    try:
        printed, _ = process.communicate(timeout=seconds)
        if process.returncode: problem = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, problem = process.communicate()[0], f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    ends = [{"part": name, "name": "", "value": "failed", "unit": "", "note": f"{problem}; see {log.name}", "failed": True}] if problem else []
    return [json.loads(line) for line in printed.splitlines()] + ends


def figure(value):
    """A text as it is, a number with four digits or more"""
    if isinstance(value, float): return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def table(found):
    """The figures as aligned text, a line each"""
    rows = [f"{r['part']:9} {r['name']:62} {figure(r['value']):>10} {r['unit']:8} {r['note']}".rstrip() for r in found["rows"]]
    return "\n".join([found["machine"], f"{'part':9} {'what':62} {'figure':>10}", *rows])


def check_all(options):
    """Run the parts one after another; print and write what they found; 1 if one failed, else 0"""
    options.out.mkdir(parents=True, exist_ok=True)
    begin, found = time.monotonic(), {"machine": "unknown", "rows": []}
    with open(options.out / "gpu.log", "w", encoding="utf-8") as log:
        for name in options.only:
            ahead = options.only[options.only.index(name) + 1:]
            kept = options.minutes + 0.5 if "train" in ahead else 0
            left = begin + 60 * (options.minutes_total - kept) - time.monotonic()
            limit = left if name == "train" else min(left, LIMITS[name])
            print(f"{name} ...", file=sys.stderr, flush=True)
            skipped = [{"part": name, "name": "", "value": "skipped", "unit": "", "note": "no time left", "failed": False}]
            for item in run_part(name, options, limit, log) if left >= LEAST else skipped:
                if "machine" in item: found["machine"] = item["machine"]
                else: found["rows"].append(item)
            found["seconds"] = round(time.monotonic() - begin)
            (options.out / "gpu.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = sum(r["failed"] for r in found["rows"])
    print(table(found) + f"\n{found['seconds']} s; {failed or 'nothing'} failed; also in {options.out / 'gpu.json'}")
    return int(failed > 0)


def expanded(path):
    """A folder by its path, where ~ is the home folder"""
    return Path(path).expanduser()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expanded, default=expanded(os.environ.get("OUT") or "results/gpu"), help="folder for results; that in $OUT, or results/gpu")
    parser.add_argument("--minutes-total", type=float, default=9, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="shortened, as it is without a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--train", metavar="NAME", help="digits, avatars, MNIST, or a folder of images")
    parser.add_argument("--minutes", type=float, default=3, help="for the training")
    parser.add_argument("--data-root", type=expanded, default=Path("data"), help="where torchvision's files are")
    parser.add_argument("--recipe", type=json.loads, default={}, metavar="JSON", help="changes to the recipe, such as '{\"batch_size\": 256}'")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only or [name for name in PARTS if name != "train" or options.train]
    if "train" in options.only and not options.train: parser.error("the part train needs --train NAME")
    if "train" in options.only and options.minutes + 0.5 > options.minutes_total:
        parser.error(f"training for {options.minutes:g} minutes does not fit into --minutes-total {options.minutes_total:g}; leave half a minute more")
    return work(options) if options.part else check_all(options)


if __name__ == "__main__": sys.exit(main())
