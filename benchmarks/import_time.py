"""How long does `import consistency_models` take beside `import torch`? Run as `python benchmarks/import_time.py`.

Each import runs in a fresh process; the two take turns. Exit status 1 if the fastest import of the package takes more
than 1.1 times as long as the fastest import of PyTorch.
"""
import subprocess
import sys
from pathlib import Path
from statistics import median

LIMIT = 1.1  # largest acceptable ratio
ROUNDS = 10
MODULES = "torch", "consistency_models"
PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(module):
    """How long importing `module` takes in a fresh process, without the start of Python itself"""
    command = [sys.executable, "-c", PROGRAM.format(module)]
    root = Path(__file__).resolve().parent.parent
    return float(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)


def measure():
    """The import times of each module; a first round, which may have to compile and to read from disk, is left out"""
    rounds = [[seconds(m) for m in MODULES] for _ in range(ROUNDS + 1)][1:]
    return dict(zip(MODULES, zip(*rounds)))


def main():
    """Print the table; 1 if the ratio exceeds the limit, else 0"""
    times = measure()
    print(f"{'import, seconds':20} {'fastest':>9} {'median':>9}")
    for module, t in times.items(): print(f"{module:20} {min(t):9.3f} {median(t):9.3f}")
    ratios = [f(times["consistency_models"]) / f(times["torch"]) for f in (min, median)]
    print(f"{'ratio':20} {ratios[0]:9.3f} {ratios[1]:9.3f}")
    print(f"the aim for the fastest is a ratio of at most {LIMIT}")
    return int(ratios[0] > LIMIT)


if __name__ == "__main__": sys.exit(main())
