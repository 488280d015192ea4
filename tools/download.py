"""What does an installation fetch beside the package itself?

    python tools/download.py [--extra NAME] [PACKAGE ...]

The machine is taken to have the named packages (torch, torchvision, matplotlib and ipywidgets if
none are named) with all that they require, in the versions that are installed here. Pip is asked
what it would add for the requirements in settings.ini; that is fetched into a temporary folder and
weighed.
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
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def with_requirements(names):
    """The installed distributions of these names and of all that they require"""
    found, waiting = {}, [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found: continue
        try: found[name] = distribution(name)
        except PackageNotFoundError:
            if wanted.name in names: raise SystemExit(f"{name} is not installed here") from None
            continue
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        for needed in map(Requirement, found[name].requires or []):
            if not needed.marker or any(map(needed.marker.evaluate, extras)): waiting.append(needed)
    return found


def pretend(folder, found):
    """A Python whose pip finds the notes of these distributions, and so takes them for installed"""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    site = Path(subprocess.check_output([python, "-c", SITE], text=True).strip())
    for name, one in found.items():
        notes = site / f"{name.replace('-', '_')}-{one.version}.dist-info"
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir()
        (notes / "METADATA").write_text(one.read_text("METADATA"), encoding="utf-8")
    return python


def fetched(wanted, found, folder):
    """Size and name of each file that pip fetches for these requirements"""
    python, report, files = pretend(folder / "python", found), folder / "report", folder / "files"
    files.mkdir()
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "install", "--dry-run", "--report", report, *wanted], check=True)
    new = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    for one in new:
        pinned = f"{one['name']}=={one['version']}"
        subprocess.run([*pip, "download", "--no-deps", "-d", files, pinned], check=True)
    return [(path.stat().st_size / 1e6, path.name) for path in files.iterdir()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("have", nargs="*", metavar="PACKAGE", help="what the machine has")
    parser.add_argument("--extra", action="append", default=[], help="such as inception")
    options = parser.parse_args()
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    keys = ["requirements", *(f"{extra}_requirements" for extra in options.extra)]
    wanted = [r for key in keys for r in settings["DEFAULT"][key].split()]
    with tempfile.TemporaryDirectory() as folder:
        sizes = fetched(wanted, with_requirements(options.have or USUAL), Path(folder))
    for size, name in sorted(sizes, reverse=True): print(f"{size:8.2f} MB  {name}")
    print(f"{sum(size for size, _ in sizes):8.2f} MB  in {len(sizes)} files")


if __name__ == "__main__": main()
