"""Checkpoints: whole or not at all, damage noticed, nothing executed, and a resumed run equals a whole one bit for bit."""
import copy
import gc
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import (
    CT,
    ICT,
    LABELED,
    POINTS,
    Layer,
    LearnedWeight,
    images_and_labels,
    make_trainer,
    on_two_processes,
    resumed,
    run,
    same,
    weights,
)
from torch import nn
from torch.utils.data import TensorDataset

from consistency_models import MLP, ImprovedConsistencyTraining, Trainer, UNet, pseudo_huber_loss
from consistency_models.checkpoints import read_checkpoint, write_checkpoint, write_whole

AdamW = torch.optim.AdamW
not_windows = pytest.mark.skipif(os.name == "nt", reason="signals and folders of Unix")
slow = pytest.mark.slow


# Equals a run that never stopped

@pytest.mark.parametrize("settings", [
    {}, {"objective": CT}, {"objective": LearnedWeight(final_timesteps=20)},
    {"accumulate": 2, "optimizer": torch.optim.RAdam},
    {"precision": "bf16"}], ids=["iCT", "CT", "learned weight", "accumulate, RAdam", "bf16"])
def test_stopped_and_resumed_equals_whole(tmp_path, settings):
    assert same(resumed(tmp_path, 13, **settings), run(make_trainer(**settings)))


def grouped(parameters, **settings):
    """Two groups, which need not be in the order of the network"""
    kernels, others = [], []
    for p in parameters: (kernels if p.ndim > 1 else others).append(p)
    return AdamW([{"params": others, "weight_decay": 0.0} | settings, {"params": kernels}],
        fused=True)


@pytest.mark.parametrize("settings", [{}, {"optimizer": grouped}], ids=["one group", "two groups"])
def test_a_fused_optimizer_and_channels_last_resume_bit_for_bit(tmp_path, settings):
    settings = LABELED | {"data": TensorDataset(*images_and_labels()), "channels_last": True,
        "steps": 8} | settings
    assert same(resumed(tmp_path, 3, **settings), run(make_trainer(**settings)))


class Odd(torch.optim.SGD):
    """Keeps numbers, texts, lists, a count for all, and statistics in another type than the weights, and falls with them"""
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] /= group["count"]
            for p in group["params"]:
                state = self.state[p]
                state["own"] = state.get("own", 0) + 1
                state["past"] = [*state.get("past", []), group["count"], "a step", None]
                state["mean"] = state.get("mean",
                    torch.zeros(p.shape, dtype=torch.float64)) + p.grad / 3
                p.grad += 0.1 * state["mean"].to(p.dtype)
        super().step(closure)
        assert all(s["own"] == group["count"] == len(s["past"]) / 3
            and s["mean"].dtype == torch.float64 for s in self.state.values())


@pytest.mark.parametrize("net", [None, lambda: Layer(nn.Linear(2, 2).bfloat16())],
    ids=["float32", "bfloat16"])
def test_all_that_an_optimizer_keeps_survives_a_resume(tmp_path, net):
    settings = {"net": net, "optimizer": Odd, "steps": 8, "learning_rate": 0.1}
    assert same(resumed(tmp_path, 4, **settings), run(make_trainer(**settings)))


def test_an_optimizer_with_more_than_the_usual_parts_keeps_them(tmp_path):
    class Counting(torch.optim.SGD):
        count = 0
        def step(self, closure=None):
            self.count += 1
            super().step(closure)
        def state_dict(self): return super().state_dict() | {"count": self.count}
        def load_state_dict(self, state):
            self.count = state.pop("count")
            super().load_state_dict(state)
    assert resumed(tmp_path, 4, optimizer=Counting, steps=8).optim.count == 8


def test_a_checkpoint_of_the_untrained_network_can_be_resumed(tmp_path):
    make_trainer(tmp_path).save()
    second = make_trainer(tmp_path)
    assert second.resume() and same(run(second), run(make_trainer()))


# Keeps its promises: files

def test_a_checkpoint_keeps_every_type_and_layout(tmp_path):
    types = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8,
        torch.complex64)
    tensors = {str(t): torch.ones(3).to(t) for t in types} | {
        "scalar": torch.tensor(3.0), "empty": torch.ones(0, 2),
        "images": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    rest = {"a": [1, "ü", None], "b": (0.9, True), "c": {0: {"d": -1}}, "numpy": np.float32(0.5)}
    write_checkpoint(tmp_path / "x.pt", tensors | rest)
    back = read_checkpoint(tmp_path / "x.pt")
    assert {k: back[k] for k in rest} == rest and type(back["numpy"]) is float
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype
        and back[k].stride() == v.stride() for k, v in tensors.items())


def test_a_slice_is_saved_without_the_rest(tmp_path):
    write_checkpoint(tmp_path / "x.pt", {"x": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "x.pt").stat().st_size < 10_000


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(path,
        {"a": torch.randn(4, 6), "step": 13, "optimizer": {"betas": (0.9, 0.99)}})
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        with pytest.raises(ValueError, match="damaged"): read_checkpoint(path)


@pytest.mark.parametrize("change", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b + b"\n",
                                    lambda b: b"text" + zlib.crc32(b"text").to_bytes(4, "big"),
                                    lambda b: b[:-4]],
                         ids=["half", "empty", "longer", "text with a checksum",
                         "without a checksum"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path, change):
    path = tmp_path / "x.pt"
    write_checkpoint(path, {"x": torch.randn(5000), "step": 1})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError,
            match="x.pt is damaged, or no checkpoint of this trainer.*; delete it to go on"):
        read_checkpoint(path)


def signed(path):
    """Give a file the checksum of a checkpoint"""
    content = path.read_bytes()
    path.write_bytes(content + zlib.crc32(content).to_bytes(4, "big"))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, old):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/ran",)
    torch.save(Evil(), tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    signed(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no checkpoint of this trainer"):
        read_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_the_oldest_format_of_torch_which_is_an_archive_of_pickles_is_not_opened(tmp_path,
        monkeypatch):
    with tarfile.open(tmp_path / "x.pt", "w") as tar: tar.add(__file__, "storages")
    signed(tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match="no checkpoint"): read_checkpoint(tmp_path / "x.pt")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep/inside/file"
    write_whole(path, b"old")
    with pytest.raises(TypeError): write_whole(path, "a text")
    def full(*_): raise OSError("no space left")
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"): write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    write_whole(str(path), b"new")
    assert path.read_bytes() == b"new" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trainer = run(make_trainer("~/run", steps=2))
    assert trainer.checkpoints() == [tmp_path / "run/checkpoints/000000002.pt"]
    assert make_trainer("~/run", steps=2).resume()
    write_checkpoint("~/one.pt", {"x": 1})
    assert read_checkpoint("~/one.pt") == {"x": 1} and (tmp_path / "one.pt").is_file()
    assert not (tmp_path / "~").exists()


# Keeps its promises: a run's folder

def test_only_the_last_checkpoints_stay_and_files_of_others_are_neither_read_nor_deleted(tmp_path):
    run(make_trainer(tmp_path, checkpoint_every=5), until=5)
    folder = tmp_path / "checkpoints"
    for name in ("best.pt", "000000001-good.pt", "zzz.pt", "00000000x.pt", "000000099.txt"):
        shutil.copy(folder / "000000005.pt", folder / name)
    second = make_trainer(tmp_path, checkpoint_every=5)
    assert second.resume() and second.step == 5
    assert [p.stem for p in run(second).checkpoints()] == ["000000025", "000000030"]
    assert len(list(folder.iterdir())) == 7
    assert [p.stem for p in run(make_trainer(tmp_path / "other", checkpoint_every=5,
        keep=3)).checkpoints()] == ["000000020", "000000025", "000000030"]


def test_nothing_to_resume_and_a_finished_run(tmp_path):
    assert make_trainer(tmp_path).resume() is False and make_trainer().resume() is False
    run(make_trainer(tmp_path))
    again = make_trainer(tmp_path)
    assert again.resume() and list(again.train()) == []


@pytest.mark.parametrize("settings",
    [{"optimizer": partial(AdamW, fused=True)}, {"optimizer": partial(AdamW, foreach=True)},
                                      {"workers": 1, "checkpoint_every": 7}], ids=str)
def test_ways_of_computing_do_not_belong_to_a_run(tmp_path, settings):
    run(make_trainer(tmp_path, optimizer=AdamW), until=3)
    trainer = make_trainer(tmp_path, **{"optimizer": AdamW} | settings)
    assert trainer.resume() and trainer.step == 3
    assert bool(trainer.optim.param_groups[0]["fused"]) == ("fused" in str(settings))
    assert all(torch.allclose(a, b, atol=1e-6)
        for a, b in zip(weights(run(trainer)), weights(run(make_trainer(optimizer=AdamW)))))


def test_statistics_take_the_memory_layout_of_the_weights(tmp_path):
    """A fused optimizer does not look at the layout."""
    settings = LABELED | {"data": TensorDataset(*images_and_labels()), "steps": 6}
    run(make_trainer(tmp_path, **settings), until=3)
    trainer = make_trainer(tmp_path, channels_last=True, **settings)
    trainer.resume()
    saved, other = read_checkpoint(trainer.checkpoints()[-1])["optimizer"]["state"], 0
    for i, p in enumerate(trainer.optim.param_groups[0]["params"]):
        own = trainer.optim.state[p]["exp_avg"]
        assert own.stride() == p.stride() and torch.equal(own, saved[i]["exp_avg"])
        other += own.stride() != saved[i]["exp_avg"].stride()
    assert other > 5


class Config:
    """A configuration whose text is its place in memory"""


ODD = {(1, 2): {"x", "y"}, None: torch.ones(2), "f": len, "nan": float("nan"), 3: np.float32(2)}
ODD["self"] = ODD


@pytest.mark.parametrize("config", [Config(), SimpleNamespace(inner=Config()), ODD],
    ids=["object", "namespace", "odd"])
def test_a_network_with_any_configuration_can_be_resumed(tmp_path, config):
    def net():
        made = Layer()
        made.config = copy.deepcopy(config)
        return made
    run(make_trainer(tmp_path, net=net), until=3)
    assert make_trainer(tmp_path, net=net).resume()


def test_an_objective_without_a_text_of_its_own_can_be_resumed(tmp_path):
    class Plain(ImprovedConsistencyTraining):
        __repr__ = object.__repr__
    run(make_trainer(tmp_path, objective=Plain(final_timesteps=20)), until=3)
    assert make_trainer(tmp_path, objective=Plain(final_timesteps=20)).resume()


def test_numbers_of_other_libraries_serve_as_settings(tmp_path):
    run(make_trainer(tmp_path, learning_rate=torch.tensor(1e-3), ema_decay=np.float32(0.9),
        clip_norm=np.float64(1.), steps=2))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    first = make_trainer(tmp_path / "run", checkpoint_every=5)
    states = first.train()
    for _ in range(7): next(states)
    for path in (tmp_path / "run", str(tmp_path / "x" / ".." / "run")):
        second = make_trainer(path)
        with pytest.raises(ValueError, match="another run writes to .*run"): next(second.train())
        with pytest.raises(ValueError, match="another run writes to .*run"): second.save()
    with pytest.raises(ValueError, match="is training"): first.resume()
    first.save()
    assert next(states).step == 8
    assert [p.stem for p in first.checkpoints()] == ["000000005", "000000007"]
    del states                          # as a notebook forgets it
    gc.collect()
    assert second.resume() and second.step == 8 and same(run(second), run(make_trainer()))


def test_a_trainer_that_was_overtaken_does_not_write(tmp_path):
    first = make_trainer(tmp_path, checkpoint_every=4)
    loop = first.train()
    for _ in range(4): next(loop)
    late = make_trainer(tmp_path, checkpoint_every=4)
    late.resume()
    for _ in loop: pass
    kept = first.checkpoints()
    for refused in (late.save, lambda: next(late.train()), make_trainer(tmp_path, seed=1).save):
        with pytest.raises(ValueError, match="holds checkpoints"): refused()
    assert first.checkpoints() == kept
    first.save()


def test_an_optimizer_that_fails_half_way_leaves_no_false_checkpoint(tmp_path):
    class Fails(torch.optim.SGD):
        count = 0
        def step(self, closure=None):
            super().step()
            self.count += 1
            if self.count == 5: raise OSError("a broken card")
    trainer = make_trainer(tmp_path, checkpoint_every=3, optimizer=Fails)
    with pytest.raises(OSError, match="broken card"): run(trainer)
    assert [int(p.stem) for p in trainer.checkpoints()] == [3]


def test_a_mask_of_infinities_may_be_saved(tmp_path):
    def masked():
        net = MLP(width=16, depth=1)
        net.register_buffer("mask", torch.full((3,), -torch.inf))
        return net
    assert len(run(make_trainer(tmp_path, net=masked, steps=2)).checkpoints()) == 1


# Keeps its promises: killed and interrupted

PROGRAM = """
import sys, time
import torch
torch.set_num_threads(1)
from conftest import CT, POINTS, make_trainer
from consistency_models import MLP
folder, pause = sys.argv[1], float(sys.argv[2])
trainer = make_trainer(folder, steps=120, checkpoint_every=4, objective=CT)
trainer.resume()
print("from", trainer.step, flush=True)
for state in trainer.train(): time.sleep(pause)
torch.save(trainer.average.state_dict(), folder + "/final.pt")
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program, *arguments, **settings):
    """Start a program that may use the helpers of the tests."""
    tests = os.pathsep.join(filter(None,
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen([sys.executable, program, *map(str, arguments)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": tests}, **settings)


def first_step(process):
    """The step from which the program says it starts"""
    return int(process.stdout.readline().split()[1])


def finished(program, folder):
    """Run to the end; the bytes of the weights, and the step it started from"""
    process = start(program, folder, 0)
    step = first_step(process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return Path(folder, "final.pt").read_bytes(), step


@slow
@not_windows
def test_killed_or_interrupted_at_any_moment_and_resumed_ends_in_the_same_weights(program,
        tmp_path):
    whole, _ = finished(program, tmp_path / "whole")
    starts = []
    for delay, how in ((0.07, signal.SIGKILL), (0.23, signal.SIGKILL), (0.41, signal.SIGINT)):
        process = start(program, tmp_path / "killed", 0.01)
        starts.append(first_step(process))
        time.sleep(delay)
        process.send_signal(how)
        process.communicate(timeout=60)
        newest = sorted((tmp_path / "killed/checkpoints").glob("*.pt"))
        assert not newest or read_checkpoint(newest[-1])["step"] == int(newest[-1].stem)
    resumed, last = finished(program, tmp_path / "killed")
    assert resumed == whole and 0 < last and starts == sorted(starts)


LOADING = """
import sys, time
import torch
from consistency_models import MLP, Trainer

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.ones(2) * i / 64

if __name__ == "__main__":
    trainer = Trainer(MLP(width=8, depth=1), Slow(), steps=500, batch_size=4, workers=1, out=sys.argv[1])
    try:
        for state in trainer.train(): print(state.step, flush=True)
    except KeyboardInterrupt: print("interrupted", flush=True)
"""


@slow
@not_windows
def test_ctrl_c_of_a_terminal_reaches_the_loop_and_not_its_loaders(tmp_path):
    (tmp_path / "loading.py").write_text(LOADING)
    process = start(tmp_path / "loading.py", tmp_path / "run", start_new_session=True)
    assert process.stdout.readline() == "1\n"
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted" and process.returncode == 0, errors
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


@slow
@not_windows
def test_a_folder_is_taken_for_other_processes_and_free_once_its_run_is_killed(tmp_path):
    """Also where loaders live on for a moment, which were forked from the run."""
    (tmp_path / "loading.py").write_text(LOADING)
    process = start(tmp_path / "loading.py", tmp_path / "run")
    assert process.stdout.readline() == "1\n"
    trainer = make_trainer(tmp_path / "run")
    with pytest.raises(ValueError, match="another run writes to"): next(trainer.train())
    loaders = psutil.Process(process.pid).children(recursive=True)
    for loader in loaders: loader.suspend()
    process.kill()
    process.wait()
    assert next(trainer.train()).step == 1
    for loader in loaders: loader.kill()


ENDING = """
import sys
from conftest import make_trainer
from consistency_models import progress
states = make_trainer(sys.argv[1]).train()
if sys.argv[2] == "progress": states = progress(states)
for _ in range(3): next(states)
"""


@slow
@pytest.mark.parametrize("around", ["progress", "nothing"])
def test_a_program_that_ends_within_a_loop_leaves_a_checkpoint(tmp_path, around):
    (tmp_path / "ending.py").write_text(ENDING)
    process = start(tmp_path / "ending.py", tmp_path / "run", around)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Error" not in errors and "xception" not in errors, errors
    assert read_checkpoint(tmp_path / "run/checkpoints/000000003.pt")["step"] == 3


PAIR = """
import sys, time
import torch
torch.set_num_threads(1)
from conftest import LearnedWeight, make_trainer
trainer = make_trainer(sys.argv[1], steps=12, checkpoint_every=1, objective=LearnedWeight(final_timesteps=20))
trainer.resume()
for state in trainer.train(): time.sleep(float(sys.argv[2]))
if trainer.accelerator.is_main_process:
    torch.save([trainer.net.state_dict(), trainer.average.state_dict(), trainer.objective.state_dict()], sys.argv[1] + "/final.pt")
trainer.accelerator.end_training()
"""


@slow
def test_two_processes_killed_and_resumed(tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    on_two_processes(tmp_path / "pair.py", tmp_path / "whole", 0)
    process = on_two_processes(tmp_path / "pair.py", tmp_path / "parts", 0.2, wait=False)
    while process.poll() is None and not list((tmp_path / "parts").glob("checkpoints/*.pt")):
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    for p in [*launcher.children(recursive=True), launcher]: p.kill()
    process.communicate()
    assert 0 < int(max(p.stem for p in (tmp_path / "parts").glob("checkpoints/*.pt"))) < 12
    on_two_processes(tmp_path / "pair.py", tmp_path / "parts", 0)
    assert (tmp_path / "parts/final.pt").read_bytes() == (tmp_path / "whole/final.pt").read_bytes()


# Refuses

def test_a_missing_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


def test_runs_of_earlier_versions_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/000000005.safetensors").write_bytes(b"old")
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError,
            match="000000005.safetensors is a checkpoint of an earlier version.*another folder"):
        trainer.resume()
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        next(trainer.train())
    run(make_trainer(tmp_path / "b"), until=3)
    path = tmp_path / "b/checkpoints/000000003.pt"
    state = read_checkpoint(path)
    state["settings"]["format"] -= 1
    write_checkpoint(path, state)
    with pytest.raises(ValueError, match="its format is .*, this trainer's is"):
        make_trainer(tmp_path / "b").resume()


@pytest.mark.parametrize("value, name",
    [(len, "past"), ({1, 2}, "past"), ([torch.ones(1), object()], "past")],
    ids=["function", "set", "in a list"])
def test_what_a_checkpoint_cannot_hold_is_named(tmp_path, value, name):
    with pytest.raises(TypeError, match=f"cannot hold state.optimizer.{name}, of type"):
        write_checkpoint(tmp_path / "x.pt", {"optimizer": {name: value}})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    for part, bad in (("net", torch.inf), ("average", torch.nan), ("objective", torch.nan)):
        trainer = make_trainer(tmp_path, objective=CT)
        kept = trainer.objective.kept if part == "objective" else getattr(trainer, part)
        list(kept.parameters())[2].data.view(-1)[0] = bad
        with pytest.raises(ValueError, match=rf"{part}\..* is not finite after step 0"):
            trainer.save()
        assert trainer.checkpoints() == []


def test_saving_needs_a_folder():
    with pytest.raises(ValueError, match="out="): make_trainer().save()


@not_windows
@pytest.mark.parametrize("folder",
    ["/dev/null/run", "/dev/null", *["/proc/nope"] * sys.platform.startswith("linux")])
def test_a_folder_that_cannot_be_written_to_is_noticed_at_the_start(folder):
    with pytest.raises(ValueError, match=f"out must be a folder.* {folder}"): make_trainer(folder)


def test_a_folder_whose_checkpoints_are_a_file_is_noticed_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ValueError, match="out must be a folder"): make_trainer(tmp_path)


def test_an_earlier_run_is_not_overwritten(tmp_path):
    run(make_trainer(tmp_path))
    with pytest.raises(ValueError, match="resume"): next(make_trainer(tmp_path).train())


@pytest.mark.parametrize("change, name", [
    ({"steps": 31}, "steps"), ({"seed": 1}, "seed"), ({"batch_size": 8}, "batch_size"),
    ({"accumulate": 2}, "shards"),
    ({"objective": CT}, "objective"),
    ({"objective": ImprovedConsistencyTraining(final_timesteps=20,
    distance=partial(pseudo_huber_loss, c=1.))}, "objective"),
    ({"data": TensorDataset(POINTS[:-1])}, "samples"),
    ({"net": lambda: MLP(width=16, depth=1, sigma_data=1.)}, "network"),
    ({"net": lambda: MLP(width=16, depth=1).double(), "data": TensorDataset(POINTS.double())},
    "types of the weights"),
    ({"optimizer": torch.optim.SGD}, "optimizer is 'AdamW', this trainer's is 'SGD'"),
    ({"optimizer": partial(AdamW, betas=(0.8, 0.9))}, "betas in group 0"),
    ({"optimizer": partial(AdamW, amsgrad=True)}, "amsgrad in group 0"),
    ({"optimizer": lambda p: AdamW(p[::-1])}, "parameters in group 0"),
    ({"optimizer": lambda p: AdamW([{"params": p[:2]}, {"params": p[2:]}])},
    "parameters in group 0")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, name):
    run(make_trainer(tmp_path, optimizer=AdamW), until=3)
    trainer = make_trainer(tmp_path, **{"optimizer": AdamW} | change)
    before = [w.clone() for w in weights(trainer)]
    with pytest.raises(ValueError, match=f"another run: its .*{name}"): trainer.resume()
    assert trainer.step == 0 and all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))


def test_columns_and_groups_belong_to_a_run(tmp_path):
    labeled = TensorDataset(POINTS, torch.zeros(500))
    run(make_trainer(tmp_path / "a", data=labeled, net=Layer), until=1)
    with pytest.raises(ValueError, match="its conditions is .*class_labels"):
        make_trainer(tmp_path / "a", data=labeled, net=Layer, conditions=("class_labels",)).resume()
    run(make_trainer(tmp_path / "b", optimizer=grouped), until=3)
    with pytest.raises(ValueError,
            match="weight_decay in group 0 is '0.0', this trainer's is '0.5'"):
        make_trainer(tmp_path / "b", optimizer=partial(grouped, weight_decay=0.5)).resume()


class Normed(nn.Module):
    """A network with or without running statistics"""
    def __init__(self, track):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8, track_running_stats=track),
            nn.Linear(8, 2))

    def forward(self, x, sigma): return self.layers(x)


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path):
    run(make_trainer(tmp_path, net=lambda: Normed(False), steps=1))
    torch.manual_seed(1)
    trainer = Trainer(Normed(True), TensorDataset(POINTS), steps=1, batch_size=16, objective=ICT,
        out=tmp_path)
    before = [w.clone() for w in weights(trainer)]
    with pytest.raises(ValueError,
            match="another network: layers.1.running_mean has shape none there"):
        trainer.resume()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


def test_a_network_of_another_configuration_is_refused(tmp_path):
    data = TensorDataset(images_and_labels()[0])
    run(make_trainer(tmp_path, net=lambda: UNet(channels=(8, 16)), data=data, steps=2))
    with pytest.raises(ValueError, match="network"):
        make_trainer(tmp_path, net=lambda: UNet(channels=(8, 16), dropout=0.5), data=data,
            steps=2).resume()
