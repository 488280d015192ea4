"""Type checkers see the whole public API, from the package's own files, and find what is wrong in a user's code."""
import ast
import os
import re
import subprocess
import sys

import pytest
from test_project import MODULES, PACKAGE, ROOT, parsed

RIGHT = """
import torch
from torch import Tensor
from typing import assert_type
from torch.utils.data import TensorDataset

import consistency_models as cm
from consistency_models import (
    ConsistencyFunction, ConsistencySamplingAndEditing, ConsistencyTraining, ImprovedConsistencyTraining, Operator,
    Trainer, UNet, consistency_function, from_pretrained, inpaint, karras_schedule, pseudo_huber_loss, super_resolution,
    super_resolve, trajectory, update_ema_model_)
from consistency_models.consistency_models import MLP
from consistency_models.widgets import sampling_explorer, Live

x = torch.randn(4, 1, 8, 8)
net = UNet(channels=(16, 32), num_classes=10)
training = ImprovedConsistencyTraining(sigma_data=0.75, final_timesteps=20)
output = training(net, x, 0, 100, class_labels=torch.zeros(4, dtype=torch.long))
assert_type(output.predicted, Tensor)
assert output.loss_weights is not None  # as consistency training of 2023 gives none
loss = (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean()
update_ema_model_(net, UNet(), 0.99)
ct = ConsistencyTraining()(net, net, x, 0, 100)
assert_type(ct.upper, Tensor)
f = consistency_function(from_pretrained("digits"), class_labels=torch.zeros(4, dtype=torch.long))
assert_type(f, ConsistencyFunction)
assert_type(f(x, torch.ones(4)), Tensor)
sampler = ConsistencySamplingAndEditing(sigma_data=0.75)
assert_type(sampler(net, x, [80.0, 0.8], mask=torch.ones(8, 8), clip_denoised=True, verbose=True), Tensor)
assert_type(sampler(net, x, karras_schedule(5).flip(0), start_from_y=True, extra=1), Tensor)
assert_type(sampler.interpolate(net, x, x, 0.5, [5.0, 1.0]), Tensor)
for sigma, noisy, denoised in trajectory(f, x, [80.0], Operator(torch.ones(8, 8))): assert_type(sigma, float)
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
    'check_floating': "not defined",
}


def check(folder, code):
    """What mypy says about a user's file; of the package, as of what is installed, it tells no faults"""
    (folder / "client.py").write_text(code)
    options = ["--python-version=3.11", "--ignore-missing-imports", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={ROOT / '.mypy_cache'}", "client.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return result.stdout + result.stderr


@pytest.mark.slow
def test_right_code_passes_and_wrong_code_is_found(tmp_path):
    printed = check(tmp_path, RIGHT)
    assert printed.startswith("Success"), printed
    imports = "from torch.utils.data import TensorDataset\nfrom consistency_models import *\n"
    lines = check(tmp_path, imports + "\n".join(WRONG)).splitlines()
    found = {code: [line for line in lines if f":{n}: error" in line] for n, code in enumerate(WRONG, start=3)}
    assert [code for code, word in WRONG.items() if not any(word in line for line in found[code])] == [], lines


def test_package_says_that_it_is_typed_and_checkers_can_read_it():
    """No method is added to a class after its cell, which no checker sees; no default of None without its type"""
    assert (PACKAGE / "py.typed").exists() and not list(PACKAGE.glob("*.pyi"))
    unseen = []
    for module, node in ((m, n) for m in MODULES for n in ast.walk(parsed(m)) if isinstance(n, ast.FunctionDef)):
        if any(ast.unparse(d).startswith("patch") for d in node.decorator_list): unseen.append((module, node.name, "@patch"))
        arguments = node.args.posonlyargs + node.args.args
        pairs = list(zip(reversed(arguments), reversed(node.args.defaults))) + list(zip(node.args.kwonlyargs, node.args.kw_defaults))
        for argument, default in pairs:
            if not isinstance(default, ast.Constant) or default.value is not None or not argument.annotation: continue
            if not re.search("None|Any|object|Optional", ast.unparse(argument.annotation)): unseen.append((module, node.name, argument.arg))
    assert unseen == []
