"""The package runs on fastcore 2, which nbdev does not know yet; other tests run on fastcore 1."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import fastcore, sys
from consistency_models.cli import main
train = ["train", "--data", "digits", "--steps", "2", "--batch-size", "8", "--final-timesteps=12",
         "--checkpoint-every", "1", "--out", sys.argv[1]]
assert main(train) == 0 and main([*train, "--resume"]) == 0
sample = ["sample", sys.argv[1], "--n", "2", "--out", f"{sys.argv[1]}/two.png"]
assert main([*sample, "--labels", "1,2", "--sigmas=80,1"]) == 0
assert main(["sample", sys.argv[1], "--sigmas", "1,80"]) == 1
print(fastcore.__version__)
"""


@pytest.mark.slow
def test_the_command_line_runs_on_fastcore_2(tmp_path):
    site, out = tmp_path / "site", tmp_path / "out"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    install = subprocess.run([*pip, "fastcore==2.*"], capture_output=True, text=True)
    if install.returncode:
        pytest.skip(f"fastcore 2 cannot be installed: {install.stderr.strip().splitlines()[-1]}")
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAM, str(out)]
    environment = os.environ | {"PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.split()[-1].startswith("2"), run.stderr
