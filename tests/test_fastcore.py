"""The package runs on fastcore 1.x, which nbdev needs, and on 2.x."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import fastcore, torch, sys
from tempfile import TemporaryDirectory
from consistency_models import MLP, ConsistencySamplingAndEditing, ConsistencyTraining, ImprovedConsistencyTraining, UNet
from consistency_models.cli import main
x = torch.randn(4, 2)
output = ImprovedConsistencyTraining()(MLP(), x, 0, 10)
output.predicted.sum().backward()
ConsistencyTraining()(MLP(), MLP(), x, 0, 10)
assert ConsistencySamplingAndEditing()(MLP(), x, [80.0, 1.0]).shape == x.shape
assert UNet(3, (8, 16))(torch.randn(2, 3, 8, 8), torch.ones(2)).shape == (2, 3, 8, 8)
with TemporaryDirectory() as folder:
    assert main(["train", "--data", "digits", "--steps", "2", "--batch-size", "8", "--final-timesteps=12", "--checkpoint-every", "1", "--out", folder]) == 0
    assert main(["train", "--data", "digits", "--steps", "2", "--batch-size", "8", "--final-timesteps=12", "--checkpoint-every", "1", "--out", folder, "--resume"]) == 0
    assert main(["sample", folder, "--n", "2", "--labels", "1,2", "--sigmas=80,1", "--out", f"{folder}/two.png"]) == 0
    assert main(["sample", folder, "--sigmas", "1,80"]) == 1
print(fastcore.__version__)
"""


def version_in(folder):
    """Run the package with the fastcore in `folder` and return the version it saw."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


@pytest.mark.parametrize("major", ["1", "2"])
def test_runs_on(major, tmp_path):
    bounds = f"fastcore=={major}.*"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), bounds]
    install = subprocess.run(command, capture_output=True, text=True)
    if install.returncode: pytest.skip(f"{bounds} cannot be installed here: {install.stderr.strip().splitlines()[-1]}")
    assert version_in(tmp_path).startswith(major)
