"""Type checkers see the whole public API in the package's own files, and find wrong calls."""
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
    ConsistencyFunction, ConsistencySamplingAndEditing, ConsistencyTraining,
    ImprovedConsistencyTraining, Operator, Trainer, UNet, consistency_function, from_pretrained,
    inpaint, karras_schedule, pseudo_huber_loss, super_resolve, trajectory, update_ema_model_)
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
mask = torch.ones(8, 8)
assert_type(sampler(net, x, [80.0, 0.8], mask=mask, clip_denoised=True, verbose=True), Tensor)
assert_type(sampler(net, x, karras_schedule(5).flip(0), start_from_y=True, extra=1), Tensor)
assert_type(sampler.interpolate(net, x, x, 0.5, [5.0, 1.0]), Tensor)
for sigma, noisy, denoised in trajectory(f, x, [80.0], Operator(mask)): assert_type(sigma, float)
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
    """What mypy says about a user's file, and not about the package, as of what is installed"""
    (folder / "client.py").write_text(code)
    options = ["--python-version=3.11", "--ignore-missing-imports", "--follow-imports=silent",
               f"--cache-dir={ROOT / '.mypy_cache'}"]
    command = [sys.executable, "-m", "mypy", *options, "client.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return result.stdout + result.stderr


@pytest.mark.slow
def test_right_code_passes_and_wrong_code_is_found(tmp_path):
    printed = check(tmp_path, RIGHT)
    assert printed.startswith("Success"), printed
    imports = "from torch.utils.data import TensorDataset\nfrom consistency_models import *\n"
    lines = check(tmp_path, imports + "\n".join(WRONG)).splitlines()
    for number, (code, word) in enumerate(WRONG.items(), start=3):
        assert any(f":{number}: error" in line and word in line for line in lines), (code, lines)


def unseen(function):
    """What checkers cannot see of a function: that it is a method, or that it takes `None`"""
    if any(ast.unparse(d).startswith("patch") for d in function.decorator_list): return ["@patch"]
    arguments = function.args
    pairs = [*zip(reversed(arguments.posonlyargs + arguments.args), reversed(arguments.defaults)),
             *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    is_none = lambda default: isinstance(default, ast.Constant) and default.value is None
    nones = [argument for argument, default in pairs if is_none(default) and argument.annotation]
    takes_none = re.compile("None|Any|object|Optional")
    return [a.arg for a in nones if not takes_none.search(ast.unparse(a.annotation))]


def test_package_says_that_it_is_typed_and_checkers_can_read_it():
    """No method is added to a class after its cell; no default of `None` without its type"""
    assert (PACKAGE / "py.typed").exists() and not list(PACKAGE.glob("*.pyi"))
    nodes = [(m, n) for m in MODULES for n in ast.walk(parsed(m)) if isinstance(n, ast.FunctionDef)]
    assert [(m, n.name, unseen(n)) for m, n in nodes if unseen(n)] == []
