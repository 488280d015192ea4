"""What the benchmarks share: naming the machine, and writing the results."""
import argparse
import json
import os
import platform
from pathlib import Path

import torch


def parser(doc, name):
    """A parser with the options that every benchmark has; results go to `results/NAME.json` beside this file"""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch on the CPU")
    made.add_argument("--out", type=lambda path: Path(path).expanduser(), default=Path(__file__).parent / "results" / f"{name}.json", help="file for the results")
    return made


def pick_device(threads):
    """The GPU if there is one, else the CPU with so many threads"""
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device):
    """Return when the device has finished"""
    if device.type == "cuda": torch.cuda.synchronize()


def write(path, **results):
    """Write results with the machine they were measured on"""
    threads = torch.get_num_threads()
    cpu = f"{threads} thread{'s' if threads > 1 else ''} on {os.cpu_count()} CPU cores ({platform.machine()})"
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "torch": torch.__version__, **results}, indent=1) + "\n")
