"""What does an installation fetch beside the package itself? python tools/download.py [--extra NAME] [PACKAGE ...]

The machine is taken to have the named packages (torch, torchvision, matplotlib and ipywidgets if none are named) with
whatever these require, in the versions that are installed here. Pip is asked what it would add for the requirements in
settings.ini; that much is fetched into a temporary folder and weighed.
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
USUAL = ["torch", "torchvision", "matplotlib", "ipywidgets"]


def with_requirements(names):
    """The installed distributions of these names and of all that they require"""
    found, open_names = {}, [Requirement(name) for name in names]
    while open_names:
        wanted = open_names.pop()
        name = canonicalize_name(wanted.name)
        if name in found: continue
        try: found[name] = distribution(name)
        except PackageNotFoundError:
            if name in names: raise SystemExit(f"{name} is not installed here")
            continue
        needed = map(Requirement, found[name].requires or [])
        open_names += [r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in {"", *wanted.extras})]
    return found


def pretend(folder, found):
    """A Python whose pip takes the distributions for installed: their notes are there, without their files"""
    venv.create(folder, with_pip=True)
    python = next(p for p in (folder / "bin/python", folder / "Scripts/python.exe") if p.exists())
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    for name, one in found.items():
        notes = Path(site, f"{name.replace('-', '_')}-{one.version}.dist-info")
        if notes.exists(): shutil.rmtree(notes)
        notes.mkdir()
        (notes / "METADATA").write_text(one.read_text("METADATA"), encoding="utf-8")
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("have", nargs="*", metavar="PACKAGE", help="what the machine has; torch, torchvision, matplotlib and ipywidgets if not given")
    parser.add_argument("--extra", action="append", default=[], help="an extra of the package, such as inception")
    options = parser.parse_args()
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    keys = ["requirements", *(f"{extra}_requirements" for extra in options.extra)]
    wanted = [r for key in keys for r in settings["DEFAULT"][key].split()]
    with tempfile.TemporaryDirectory() as folder:
        python, report, files = pretend(Path(folder, "python"), with_requirements(options.have or USUAL)), Path(folder, "report.json"), Path(folder, "files")
        files.mkdir()
        pip = [python, "-m", "pip", "--disable-pip-version-check", "-qq"]
        subprocess.run([*pip, "install", "--dry-run", "--report", report, *wanted], check=True, stdout=sys.stderr)
        added = [f"{m['name']}=={m['version']}" for m in (one["metadata"] for one in json.loads(report.read_text())["install"])]
        if added: subprocess.run([*pip, "download", "--no-deps", "-d", files, *added], check=True, stdout=sys.stderr)
        sizes = sorted(((p.stat().st_size, p.name) for p in files.iterdir()), reverse=True)
    for size, name in sizes: print(f"{size / 1e6:8.2f} MB  {name}")
    print(f"{sum(size for size, _ in sizes) / 1e6:8.2f} MB  in {len(sizes)} files")


if __name__ == "__main__": main()
