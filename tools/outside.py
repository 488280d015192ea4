"""Run notebooks outside the repository, with the installed package: `python tools/outside.py`.

This is how they meet a reader on Colab. Names of notebooks may be given; without, all run but the page of benchmarks,
which reads results that only a clone has.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NBS = Path(__file__).parent.parent / "nbs"


def runnable(path):
    """A notebook without the cells that are not evaluated"""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "#| eval: false" not in c.source]
    return notebook


def run(path, folder):
    """Run one notebook in a folder; an error in a cell is raised"""
    start = time.perf_counter()
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(runnable(path), timeout=900, kernel_name="python3", resources=place).execute()
    print(f"{path.relative_to(NBS)}: {time.perf_counter() - start:.0f} s", flush=True)


def main(names):
    """Run the named notebooks, or all"""
    found = [p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    paths = [NBS / name for name in names] or sorted(p for p in found if p.stem != "benchmarks")
    with TemporaryDirectory() as folder:
        for path in paths: run(path, folder)


if __name__ == "__main__": main(sys.argv[1:])
