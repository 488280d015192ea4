"""The wheel and the sdist hold everything, and notebooks run with the wheel from outside the repository, as on Colab."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from test_project import FILES, ROOT, relative, settings

pytestmark = pytest.mark.slow
NOTEBOOKS = ["index.ipynb", "18_sampling.ipynb", "34_pretrained.ipynb"]
INSIDE = [relative(p).removeprefix("consistency_models/") for p in FILES if relative(p).startswith("consistency_models/")]


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
    """The Python of an environment that has the wheel, and for the rest what this one has, without the repository"""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", next(dist.glob("*.whl")))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{site}/companions.pth", "w") as file: file.write(sysconfig.get_path("purelib") + "\n")
    return python


def clean_environment():
    """The environment without anything that points to the repository"""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def test_wheel_and_sdist_hold_the_whole_package(dist):
    wheel = zipfile.ZipFile(next(dist.glob("*.whl"))).namelist()
    sdist = tarfile.open(next(dist.glob("*.tar.gz"))).getnames()
    assert len(INSIDE) > 40 and [n for n in INSIDE if f"consistency_models/{n}" not in wheel] == []
    assert [n for n in INSIDE if not any(s.endswith(f"/consistency_models/{n}") for s in sdist)] == []
    assert [n for n in wheel if not n.startswith(("consistency_models/", "consistency_models-"))] == []


def test_package_comes_from_the_wheel(installed, tmp_path):
    program = "import consistency_models as cm; print(cm.__file__, cm.__version__, *cm.bundled_checkpoints())"
    file, version, *names = run(installed, "-c", program, cwd=tmp_path, env=clean_environment()).split()
    assert file.startswith(str(installed.parent.parent)) and version == settings()["version"]
    assert set(names) == {"digits", "mnist", "shapes"}


def test_command_of_the_wheel_samples(installed, tmp_path):
    run(installed.parent / "consistency-models", "sample", "shapes", "--n", "4", "--out", tmp_path / "four.png", cwd=tmp_path, env=clean_environment())
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_outside_the_repository(installed, name):
    assert name in run(installed, ROOT / "tools/outside.py", name, cwd="/", env=clean_environment())


def test_requirements_fit_together():
    assert "No broken requirements" in run(sys.executable, "-m", "pip", "check")
