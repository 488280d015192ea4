"""`make gpu`: what it reports when a part fails or there is no time, and its training run. The whole of it runs in `tools/run.sh`."""
import json
import subprocess
import sys
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from test_project import ROOT

from consistency_models import from_pretrained
from consistency_models.data import open_data
from consistency_models.recipes import recipe_for

pytestmark = pytest.mark.slow
SMALL = {
    "objective": "ict", "label_dropout": 0., "channels": [8, 16], "patch": 1, "steps": 12, "batch_size": 16,
    "learning_rate": 1e-3, "final_timesteps": 20, "ema_decay": 0.9, "precision": "no"}


def check(folder, *arguments):
    """Run the check; its exit code, the rows of its JSON by part, and what it printed"""
    command = [sys.executable, ROOT / "tools/gpu.py", "--quick", "--out", folder, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    return done.returncode, {part: [r for r in rows if r["part"] == part] for part in {r["part"] for r in rows}}, done.stdout


@pytest.fixture
def tool(monkeypatch):
    for folder in ("tools", "benchmarks"): monkeypatch.syspath_prepend(ROOT / folder)
    return import_module("gpu")


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path):
    code, rows, printed = check(tmp_path, "--only", "train", "slider", "--train", "NoSuchData")
    assert code == 1 and "1 failed" in printed
    assert [(r["value"], r["failed"]) for r in rows["train"]] == [("failed", True)] and "NoSuchData" in rows["train"][0]["note"]
    assert [r["name"].split(":")[0] for r in rows["slider"]] == ["digits", "mnist"]
    assert all(r["value"] > 0 and r["unit"] == "ms" and not r["failed"] for r in rows["slider"])
    assert max(map(len, printed.splitlines())) < 180 and "ValueError: torchvision.datasets has no" in printed


def test_without_time_every_part_says_so(tmp_path):
    code, rows, printed = check(tmp_path, "--minutes-total", 0.1)
    assert code == 0 and printed.count("no time left") == 4
    assert {part: [r["value"] for r in found] for part, found in rows.items()} == dict.fromkeys(("tests", "slider", "overhead", "speed"), ["skipped"])


def test_a_part_that_takes_too_long_is_a_failure(tmp_path, tool, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--out", str(tmp_path)])
    with open(tmp_path / "log", "w") as log: [row] = tool.run_part("slider", None, 0.5, log)
    assert row["part"] == "slider" and row["failed"] and row["note"].startswith("stopped after 0 s")


def test_a_training_run_is_planned_from_the_measured_speed(tmp_path, tool, monkeypatch):
    monkeypatch.setattr("throughput.seconds_each", lambda run, *_: 0.5)
    options, device = SimpleNamespace(train="digits", recipe={"channels": [8, 16], "batch_size": 16}), torch.device("cpu")
    made = tool.plan(options, device, tmp_path / "run", open_data("digits"), time.monotonic() + 10_000)
    recipe = recipe_for("digits") | options.recipe
    assert made["recipe"] | {"steps": 2000} == recipe and made["checkpoint_every"] == 40
    assert made["recipe"]["steps"] == pytest.approx(0.92 * 10_000 / 0.5, rel=0.02)
    assert tool.plan(options, device, tmp_path / "run", None, 0) == made   # a later call keeps it
    options.recipe["objective"] = "ect"
    made = tool.plan(options, device, tmp_path / "other", open_data("digits"), time.monotonic() + 10_000)["recipe"]
    assert made["objective"] == "ect" and "final_timesteps" not in made
    for name in ("batchsize", "steps"):
        with pytest.raises(ValueError, match=f"--recipe knows .*batch_size.* got {name}; the steps follow from --minutes"):
            tool.plan(SimpleNamespace(train="digits", recipe={name: 8}), device, tmp_path / "run", None, 0)


def test_a_training_run_out_of_time_goes_on_with_the_same_command(tmp_path):
    folder, command = tmp_path / "digits", ["--only", "train", "--train", "digits", "--minutes"]
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"recipe": SMALL, "checkpoint_every": 5}))
    code, rows, _ = check(tmp_path, *command, 0)
    assert code == 0 and rows["train"][0]["value"] == 1 and "goes on" in rows["train"][0]["note"]
    assert not (folder / "model.safetensors").exists()
    code, rows, _ = check(tmp_path, *command, 5)
    assert code == 0 and rows["train"][0]["name"].endswith("from step 1") and rows["train"][0]["value"] == 12
    net = from_pretrained(folder)
    assert net.config["channels"] == [8, 16] and net.notes["shape"] == [1, 8, 8]
    code, rows, _ = check(tmp_path, *command, 5, "--recipe", '{"batch_size": 8}')
    assert code == 1 and "--recipe differs" in rows["train"][0]["note"]
