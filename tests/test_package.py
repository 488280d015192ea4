"""The wheel and the sdist hold everything, and notebooks run with the wheel alone, as on Colab."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from packaging.requirements import Requirement
from test_project import FILES, ROOT, relative, settings

MODELS = {"digits", "mnist", "mnist-continuous", "mnist-diffusion", "mnist-distilled", "mnist-easy", "avatars", "emoji"}

NOTEBOOKS = ["index.ipynb", "34_pretrained.ipynb"]
pytestmark = pytest.mark.slow
INSIDE = [relative(p) for p in FILES if relative(p).startswith("consistency_models/")]


def run(*command, **kwargs):
    """Run a program that must succeed, and return what it prints"""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel and the sdist, built from a copy of what git knows"""
    copy = tmp_path_factory.mktemp("source")
    for path in FILES:
        (copy / relative(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / relative(path), follow_symlinks=False)
    run(sys.executable, "-m", "build", copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The Python of an environment with the wheel, and for the rest what this one has"""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", next(dist.glob("*.whl")))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{site}/companions.pth", "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return python


def clean_environment():
    """The environment without anything that points to the repository"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


# Keeps its promises

def test_wheel_and_sdist_hold_the_whole_package(dist):
    wheel = zipfile.ZipFile(next(dist.glob("*.whl"))).namelist()
    sdist = tarfile.open(next(dist.glob("*.tar.gz"))).getnames()
    assert {f"consistency_models/{name}" for name in (
        "pictures.py", "data_files/digits.npz", "data_files/README.md", "py.typed")} <= set(INSIDE)
    assert len(INSIDE) > 40 and [n for n in INSIDE if n not in wheel] == []
    assert [n for n in INSIDE if not any(s.endswith(f"/{n}") for s in sdist)] == []
    ours = "consistency_models/", "consistency_models-"
    assert [n for n in wheel if not n.startswith(ours)] == []


def test_wheel_asks_for_what_the_settings_say(dist):
    wheel = zipfile.ZipFile(next(dist.glob("*.whl")))
    notes, = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    message, cfg = message_from_bytes(wheel.read(notes)), settings()
    asked = [Requirement(text) for text in message.get_all("Requires-Dist")]
    assert message.get_all("Provides-Extra") == ["dev", "inception"]
    for extra, key in ((None, "requirements"), ("inception", "inception_requirements")):
        plain = {f"{r.name}{r.specifier}" for r in asked
                 if (r.marker is None if extra is None else f'"{extra}"' in str(r.marker))}
        assert plain == set(cfg[key].split())


def test_package_comes_from_the_wheel(installed, tmp_path):
    program = ("import consistency_models as cm; print(cm.__file__, cm.__version__, "
               "len(cm.load_digits()[0]), *cm.bundled_checkpoints())")
    output = run(installed, "-c", program, cwd=tmp_path, env=clean_environment())
    file, version, digits, *names = output.split()
    assert file.startswith(str(installed.parent.parent)) and version == settings()["version"]
    assert digits == "1797" and set(names) == MODELS


def test_command_of_the_wheel_samples(installed, tmp_path):
    run(installed.parent / "consistency-models", "sample", "avatars", "--n", "4",
        "--out", tmp_path / "four.png", cwd=tmp_path, env=clean_environment())
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_outside_the_repository(installed, name):
    assert name in run(installed, ROOT / "tools/outside.py", name, cwd="/", env=clean_environment())


def test_requirements_fit_together():
    assert "No broken requirements" in run(sys.executable, "-m", "pip", "check")
