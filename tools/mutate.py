"""
Do the tests notice? Seeds small faults into a copy of the package, one at a time, and runs the
tests of the module that holds it:

    python tools/mutate.py                      all modules that have a list
    python tools/mutate.py schedules losses     these

The faults stand in tools/mutations/<module>.txt, in blocks:

    --- what is wrong, in one line
    old text, which the module holds exactly once
    ===
    new text

The last lines tell which were missed; the exit code is 1 if more than one in ten were.
"""

import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tools" / "mutations"
TIMEOUT = 300   # seconds; a fault may make a loop endless
PRELOADED = (   # saves time
    "torch", "torch._dynamo", "torch.testing", "torchvision", "lpips", "diffusers.models.unets.unet_2d")


def mutations(module):
    """The faults of a module, each `(what, old, new)`."""
    blocks = re.split(r"^--- (.*)\n", (LISTS / f"{module}.txt").read_text(), flags=re.M)[1:]
    for what, text in zip(blocks[::2], blocks[1::2], strict=True):
        old, _, new = text.partition("\n===\n")
        yield what, old, new.rstrip("\n")


def copied(folder):
    """A copy of package and tests in `folder`, with links for what is no code."""
    (folder / "consistency_models").mkdir()
    for path in (ROOT / "consistency_models").iterdir():
        target = folder / "consistency_models" / path.name
        if path.suffix == ".py": shutil.copy(path, target)
        elif path.name != "__pycache__": target.symlink_to(path)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pytest.ini", folder)


def tested(folder, module, *flags):
    """Exit code and output of the module's tests in the copy; torch is imported already."""
    log = folder / "log"
    if not (child := os.fork()):
        signal.alarm(TIMEOUT)
        with open(log, "w") as file:
            for stream in (1, 2): os.dup2(file.fileno(), stream)
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", *flags]
        code = pytest.main([*options, f"tests/test_{module}.py"])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (1, "FAILED too slow") if code == -signal.SIGALRM else (code, log.read_text())


def tried(folder, module):
    """Seed each fault of a module and return those that were missed, and how many there are."""
    source = folder / "consistency_models" / f"{module}.py"
    whole, missed, faults = source.read_text(), [], list(mutations(module))
    code, output = tested(folder, module)
    red = re.findall(r"^FAILED (\S+)", output, flags=re.M)
    if code > 1: sys.exit(f"the tests of {module} do not run:\n{output}")
    for name in red: print(f"{module:32} red without a fault, left out: {name}", flush=True)
    for what, old, new in faults:
        if (n := whole.count(old)) != 1:
            print(f"{module:32} STALE  {what}: the old text stands there {n} times", flush=True)
            missed.append(f"{module}: {what}")
            continue
        source.write_text(whole.replace(old, new))
        code, output = tested(folder, module, "-x", *(f"--deselect={name}" for name in red))
        red_now = re.findall(r"^(?:FAILED|ERROR) (?:\S+::)?(.*?)(?: - .*)?$", output, flags=re.M)
        by = next(iter(red_now), "") if code < 2 else "no test runs at all"
        print(f"{module:32} {'found ' if code else 'MISSED'} {what:60} {by}", flush=True)
        if not code: missed.append(f"{module}: {what}")
    source.write_text(whole)
    return missed, len(faults)


def main():
    modules, missed, number = sys.argv[1:] or sorted(p.stem for p in LISTS.glob("*.txt")), [], 0
    for name in PRELOADED: importlib.import_module(name)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for module in modules:
            more, n = tried(Path(folder), module)
            missed, number = missed + more, number + n
    print(f"\n{number - len(missed)} of {number} found")
    for name in missed: print("missed:", name)
    sys.exit(len(missed) * 10 > number)


if __name__ == "__main__": main()
