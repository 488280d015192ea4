"""Type checkers see the whole public API, patched methods too, and find what is wrong in a user's code."""
import os
import subprocess
import sys

import pytest
import stubs

ROOT = stubs.PACKAGE.parent
RIGHT = """
import torch
from torch import Tensor
from typing import assert_type
from torch.utils.data import TensorDataset

import consistency_models as cm
from consistency_models import (
    ConsistencySamplingAndEditing, ConsistencyTraining, ImprovedConsistencyTraining, Trainer, UNet, from_pretrained,
    inpaint, karras_schedule, pseudo_huber_loss, super_resolution, super_resolve, update_ema_model_)
from consistency_models.consistency_models import MLP
from consistency_models.widgets import sampling_explorer, Live

x = torch.randn(4, 1, 8, 8)
net = UNet(channels=(16, 32), num_classes=10)
training = ImprovedConsistencyTraining(sigma_data=0.75, final_timesteps=20)
output = training(net, x, 0, 100, class_labels=torch.zeros(4, dtype=torch.long))
assert_type(output.predicted, Tensor)
assert output.loss_weights is not None  # as consistency training of 2023 gives none
loss = (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean()
assert_type(ConsistencyTraining()(net, net, x, 0, 100).num_timesteps, int)
update_ema_model_(net, UNet(), 0.99)
sampler = ConsistencySamplingAndEditing(sigma_data=0.75)
assert_type(sampler(net, x, [80.0, 0.8], mask=torch.ones(8, 8), clip_denoised=True, verbose=True), Tensor)
assert_type(sampler(net, x, karras_schedule(5).flip(0), start_from_y=True, extra=1), Tensor)
assert_type(sampler.interpolate(net, x, x, 0.5, [5.0, 1.0]), Tensor)
for sigma, noisy, denoised in sampler.trajectory(net, x, [80.0]): assert_type(sigma, float)
inpaint(net, x, torch.ones(8, 8), class_labels=torch.zeros(4))
super_resolve(net, x, 2, sigmas=[80.0])
trainer = Trainer(net, TensorDataset(x), steps=3, conditions=(), out=None, accelerator=None)
for state in trainer.train(): assert_type(state.loss, Tensor)
trainer.save()
live = sampling_explorer("digits")
assert_type(live, Live)
live.close()
assert_type(cm.__version__, str)
"""
WRONG = {
    'ConsistencyTraining(final_timestep=3)': "final_timestep",
    'karras_schedule("5")': "incompatible type",
    'ConsistencySamplingAndEditing().sample': "no attribute",
    'Trainer(UNet(), steps=3)': "data",
    'Trainer(UNet(), TensorDataset(), steps=3, batchsize=3)': "batchsize",
    'pseudo_huber_loss(1, 2)': "incompatible type",
}


def check(folder, code):
    """What mypy says about a user's file"""
    (folder / "client.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--python-version=3.11", "--ignore-missing-imports", f"--cache-dir={ROOT / '.mypy_cache'}", "client.py"]
    result = subprocess.run(command, cwd=folder, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_right_code_passes(tmp_path):
    printed = check(tmp_path, RIGHT)
    assert printed.startswith("Success"), printed


def test_wrong_code_is_found(tmp_path):
    imports = "from torch.utils.data import TensorDataset\nfrom consistency_models import *\n"
    lines = check(tmp_path, imports + "\n".join(WRONG)).splitlines()
    for number, (code, word) in enumerate(WRONG.items(), start=3):
        assert any(f":{number}: error" in line and word in line for line in lines), (code, lines)


@pytest.mark.parametrize("path", stubs.stubs(), ids=lambda p: p.name)
def test_stubs_are_those_of_the_notebooks(path):
    assert path.read_text(encoding="utf-8") == stubs.stub(path.with_suffix(".py")), "run 'make export' and commit the result"


def test_package_says_that_it_is_typed():
    assert (stubs.PACKAGE / "py.typed").exists()
