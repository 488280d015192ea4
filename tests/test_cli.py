"""The command line: every command does its work, says no in one line, and returns the right exit code."""
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

from consistency_models import MLP, ImageFolder, UNet, color_shapes, from_pretrained, load_digits, save_pretrained
from consistency_models.cli import COMMANDS, RECIPES, demo, describe, in_memory, main, make_trainer, named_mask, nearest_distance, open_data, parser_for, recipe_for

COMMAND = [sys.executable, "-c", "import sys; from consistency_models.cli import main; sys.exit(main())"]


@pytest.fixture
def checkpoint(tmp_path):
    """A digit model trained for three steps"""
    assert main(["train", "--data", "digits", "--steps", "3", "--out", str(tmp_path / "run"), "--batch-size", "8"]) == 0
    return str(tmp_path / "run")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "three.png"
    Image.fromarray(((load_digits()[0][3, 0] + 1) * 127.5).byte().numpy()).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Six colour pictures of different sizes"""
    (tmp_path / "pictures").mkdir()
    for i in range(6): Image.new("RGB", (20 + i, 30), (40 * i, 90, 200)).save(tmp_path / "pictures" / f"{i}.png")
    return str(tmp_path / "pictures")


def size_of(path):
    with Image.open(path) as image: return image.size


# Commands

def test_train_leaves_weights_checkpoint_and_card(checkpoint):
    net = from_pretrained(checkpoint)
    assert net.config["num_classes"] == 10 and net.notes["shape"] == [1, 8, 8]
    assert "--steps 3" in net.notes["recipe"]["command"] and "--batch-size 8" in net.notes["recipe"]["command"]


def test_recipe_on_the_card_gives_the_same_weights(checkpoint, tmp_path):
    command = from_pretrained(checkpoint).notes["recipe"]["command"].split()[1:]
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    first, again = (from_pretrained(path) for path in (checkpoint, str(tmp_path / "again")))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_a_card_gives_a_command_for_names_with_spaces(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my pictures").symlink_to(folder)
    assert main(["train", "--data", "my pictures", "--steps", "1", "--batch-size", "2"]) == 0
    assert "'my pictures'" in from_pretrained("runs/my pictures").notes["recipe"]["command"]


@pytest.mark.parametrize("command", [
    ["sample", "digits", "--columns", "0"], ["sample", "digits", "--labels", "inf"], ["sample", "digits", "--labels", "1.7"],
    ["evaluate", "digits", "--seeds", "0"], ["train", "--data", "digits", "--size", "16"], ["train", "--tracker", "wandb"]])
def test_options_that_cannot_be_met_are_refused_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_that_do_not_say_what_is_needed_are_refused(tmp_path, capsys):
    save_pretrained(MLP(width=8, depth=1), tmp_path / "points", shape=[2])
    assert main(["sample", str(tmp_path / "points")]) == 1
    save_pretrained(UNet(channels=(8, 16), num_classes=10), tmp_path / "images", shape=[1, 8, 8])
    assert main(["evaluate", str(tmp_path / "images")]) == 1 and "--data" in capsys.readouterr().err


def test_evaluate_needs_images_with_classes(checkpoint, folder, capsys):
    assert main(["evaluate", checkpoint, "--data", folder]) == 1
    assert "has no classes" in capsys.readouterr().err


def test_evaluate_takes_the_size_of_the_model(tmp_path, monkeypatch):
    assert main(["train", "--data", "shapes", "--size", "16", "--steps", "1", "--batch-size", "2", "--precision", "no", "--out", str(tmp_path)]) == 0
    seen = []
    monkeypatch.setattr("consistency_models.cli.train_classifier", lambda x, *args: seen.append(x.shape[1:]))
    monkeypatch.setattr("consistency_models.cli.recognition_rate", lambda x, *args: 1.)
    monkeypatch.setattr("consistency_models.cli.measure", lambda net, x, *args: seen.append(x.shape[1:]) or {})
    assert main(["evaluate", str(tmp_path)]) == 0 and seen == [(3, 16, 16)] * 2


def test_nearest_neighbours_are_exact_and_copies_are_found():
    x = color_shapes(300, 16, torch.Generator().manual_seed(0))[0]
    d = torch.cdist(x.flatten(1).double(), x.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    torch.testing.assert_close(nearest_distance(x, x), d.min(1).values.float())
    assert (nearest_distance(x[:50], x) == 0).all()


def test_folder_of_a_run_is_named_after_the_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data, name in (("digits", "digits"), (folder, "pictures")):
        assert main(["train", "--data", data, "--steps", "1", "--batch-size", "2"]) == 0
        assert (tmp_path / "runs" / name / "model.safetensors").is_file()


def test_train_on_a_folder(folder, tmp_path, capsys):
    assert main(["train", "--data", folder, "--size", "16", "--steps", "2", "--batch-size=4", "--out", str(tmp_path / "run")]) == 0
    net = from_pretrained(str(tmp_path / "run"))
    assert net.notes["shape"] == [3, 16, 16] and net.config["num_classes"] is None
    assert main(["sample", str(tmp_path / "run"), "--n", "2", "--out", str(tmp_path / "x.png")]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "--labels", "1", "--out", str(tmp_path / "y.png")]) == 1
    assert "no classes" in capsys.readouterr().err and not (tmp_path / "y.png").exists()


def test_interrupted_run_goes_on(tmp_path):
    run, out = ["train", "--data", "digits", "--steps", "150", "--batch-size", "8", "--checkpoint-every", "2", "--out", str(tmp_path)], tmp_path / "checkpoints"
    process = subprocess.Popen([*COMMAND, *run], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("*.safetensors")): time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip().endswith("stopped; go on with --resume") and "Traceback" not in errors
    reached = int(max(p.stem for p in out.glob("*.safetensors")))
    assert 2 <= reached < 150 and not (tmp_path / "model.safetensors").exists()
    assert main([*run, "--resume"]) == 0 and (tmp_path / "model.safetensors").exists()


def test_resume_of_nothing_is_an_error(tmp_path, capsys):
    assert main(["train", "--steps", "2", "--out", str(tmp_path), "--resume"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_second_run_into_a_folder_is_an_error(checkpoint, capsys):
    assert main(["train", "--data", "digits", "--steps", "3", "--out", checkpoint, "--batch-size", "8"]) == 1
    assert "earlier run" in capsys.readouterr().err


def test_sample_writes_a_grid(checkpoint, tmp_path):
    out = str(tmp_path / "new" / "x.png")
    assert main(["sample", checkpoint, "--n", "6", "--columns", "3", "--sigmas", "80,2,0.5", "--labels", "1,2", "--out", out]) == 0
    assert size_of(out) == (3 * 66 + 2, 2 * 66 + 2)


def test_samples_depend_on_the_seed_alone(checkpoint, tmp_path):
    def pixels(seed): 
        assert main(["sample", checkpoint, "--seed", seed, "--out", str(tmp_path / "x.png")]) == 0
        return (tmp_path / "x.png").read_bytes()
    assert pixels("1") == pixels("1") != pixels("2")


def test_edit_keeps_the_known_half(picture, tmp_path):
    out = str(tmp_path / "x.png")
    assert main(["edit", "digits", picture, "--mask", "bottom", "--label", "3", "--n", "2", "--out", out]) == 0
    with Image.open(out) as image: rows = torch.tensor(list(image.convert("L").getdata())).reshape(image.size[1], -1)
    original, first = rows[2:34, 2:66], rows[2:34, 68:132]
    assert torch.equal(original, first) and not torch.equal(rows[34:66, 2:66], rows[34:66, 68:132])


def test_edit_takes_a_painted_mask(picture, tmp_path):
    Image.new("L", (50, 50), 255).save(tmp_path / "mask.png")
    assert main(["edit", "digits", picture, "--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path / "x.png")]) == 0


def test_evaluate_prints_a_table(checkpoint, capsys):
    assert main(["evaluate", checkpoint, "--seeds", "1"]) == 0
    assert len(re.findall(r"\(from [\d.]+ to [\d.]+ over \d\)", capsys.readouterr().out)) == 5


def test_demo_draws_and_measures(tmp_path, capsys):
    demo(str(tmp_path), steps=3)
    assert len(list(tmp_path.glob("*.png"))) == 6 and "asked class recognised" in capsys.readouterr().out


# Help and errors

@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as end: main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and COMMANDS[name].__doc__ in text and "_" not in re.sub(r"[A-Z_]{2,}", "", text)
    assert all(action.help for action in parser_for(name)._actions)


@pytest.mark.parametrize("arguments, code", [([], 0), (["--help"], 0), (["paint"], 2)])
def test_overview(arguments, code, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert all(name in printed.out + printed.err for name in COMMANDS)


@pytest.mark.parametrize("arguments", [
    ["sample", "nothing"], ["sample", "digits", "--n", "0"], ["sample", "digits", "--sigmas", "1,80"], ["sample", "digits", "--sigmas", "a"],
    ["sample", "digits", "--labels", "11"], ["sample", "digits", "--sigmas", "0.001"], ["edit", "digits", "nothing.png"],
    ["train", "--data", "nothing"], ["train", "--data", "./nothing"], ["train", "--steps", "0"], ["train", "--learning-rate", "-1"],
    ["train", "--precision", "int4"], ["train", "--final-timesteps", "3"]])
def test_errors_are_one_line(arguments, tmp_path, capsys):
    extra = ["--out", str(tmp_path / "out")]
    assert main([*arguments, *extra]) == 1
    error, = capsys.readouterr().err.splitlines()
    assert error.startswith(f"consistency-models {arguments[0]}: ")


@pytest.mark.parametrize("arguments", [["sample"], ["sample", "digits", "--n", "many"], ["train", "--colour", "red"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end: main(arguments)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


def test_command_is_installed():
    run = subprocess.run(["consistency-models", "--help"], capture_output=True, text=True, env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"})
    assert run.returncode == 0 and "consistency-models COMMAND" in run.stdout


class Fault(Exception): "Something that nobody foresaw"


@pytest.mark.parametrize("error", [AttributeError("x"), KeyError("x"), IndexError("x"), AssertionError("x"),
                                   TypeError("x"), RuntimeError("x\ny"), ZeroDivisionError("x"), Fault("x")])
def test_a_fault_of_the_program_is_told_from_a_mistake(error, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("consistency_models.cli._load", lambda model: (_ for _ in ()).throw(error))
    command = ["sample", "digits", "--out", str(tmp_path / "x.png")]
    assert main(command) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"consistency-models sample: {type(error).__name__}: ") and "--debug" in line
    assert main([*command, "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "in sample" in shown and shown.splitlines()[-1] == line


def test_a_mistake_shows_its_trace_only_if_asked(capsys):
    for extra, traces in (([], 0), (["--debug"], 1)):
        assert main(["sample", "nothing", *extra]) == 1
        shown = capsys.readouterr().err
        assert shown.count("Traceback") == traces and shown.splitlines()[-1].startswith("consistency-models sample: 'nothing' is no bundled") and "report" not in shown


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch": print("torch meets", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
from consistency_models.cli import main
"""


@pytest.mark.parametrize("name, setting, met", [
    ("consistency-models", {}, "1000"), ("consistency-models.exe", {}, "1000"), ("mine.py", {}, "None"), ("consistency-models", {"GOMP_SPINCOUNT": "7"}, "7"),
    ("consistency-models", {"OMP_WAIT_POLICY": "PASSIVE"}, "None"), ("consistency-models", {"KMP_BLOCKTIME": "0"}, "None")])
def test_the_command_lets_threads_spin_less_before_torch_is_imported(name, setting, met, tmp_path):
    (tmp_path / name).write_text(WATCH)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_WAIT_"))}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), clean.get("PYTHONPATH")]))
    run = subprocess.run([sys.executable, tmp_path / name], env=clean | setting, capture_output=True, text=True, check=True)
    assert run.stdout == f"torch meets {met}\n"


# Files of others

def test_pictures_of_others_are_kept_unless_they_are_named(tmp_path, monkeypatch, picture, capsys):
    monkeypatch.chdir(tmp_path)
    foreign = Path(picture).read_bytes()
    for command, name in ((["sample", "digits", "--n", "2"], "samples.png"), (["edit", "digits", picture, "--n", "1", "--sigmas", "80"], "edits.png")):
        for content in (foreign, b"no picture"):
            Path(name).write_bytes(content)
            assert main(command) == 1 and f"{name} was not written by this program" in capsys.readouterr().err and Path(name).read_bytes() == content
        assert main([*command, "--out", name]) == 0 and Path(name).read_bytes() != foreign
        assert main(command) == 0                                                   # a picture of ours may be replaced
        assert main([*command, "--out", str(tmp_path)]) == 1 and "is a folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def test_the_demo_keeps_pictures_of_others(tmp_path, picture):
    (tmp_path / "trajectory.png").write_bytes(foreign := Path(picture).read_bytes())
    with pytest.raises(FileExistsError, match="trajectory.png"): demo(str(tmp_path), steps=10**9)
    assert (tmp_path / "trajectory.png").read_bytes() == foreign and not (tmp_path / "inpainting.png").exists()


def test_training_into_a_folder_of_others_is_refused_at_the_start(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# Mine")
    assert main(["train", "--steps", "1000000000", "--out", str(tmp_path)]) == 1
    assert "README.md was not written by this package" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, folder):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert main(["train", "--data=~/pictures", "--size", "8", "--steps", "1", "--batch-size", "2", "--out=~/run"]) == 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert main(["train", "--data=~/pictures", "--size", "8", "--steps", "1", "--batch-size", "2", "--start=~/run"]) == 0 and (tmp_path / "runs" / "pictures").is_dir()
    assert main(["sample", "~/run", "--n", "1", "--out=~/new/x.png"]) == 0 and main(["edit", "~/run", "~/white.png", "--mask=~/white.png", "--n", "1", "--out=~/y.png"]) == 0
    assert (tmp_path / "new" / "x.png").is_file() and (tmp_path / "y.png").is_file() and not (tmp_path / "~").exists()


def test_the_run_of_this_folder_bears_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["train", "--data", ".", "--size", "8", "--steps", "1", "--batch-size", "2"]) == 0
    assert (Path(folder) / "runs" / "pictures" / "model.safetensors").is_file()


# Parts

class Items(torch.utils.data.Dataset):
    def __init__(self, *items): self.items = items

    def __len__(self): return len(self.items)

    def __getitem__(self, i): return self.items[i]


IMAGE = torch.zeros(1, 8, 8)


@pytest.mark.parametrize("items, match", [
    ([(IMAGE, "cat")], "classes must be whole numbers 0, 1, 2, ..., but item 0 has 'cat'"),
    ([(IMAGE, 0), (IMAGE, 1.5)], "item 1 has 1.5"), ([(IMAGE, 0), (IMAGE, -1)], "item 1 has -1"),
    ([(IMAGE, torch.ones(40))], "item 0 has tensor"),
    ([(IMAGE, (1, 2))], "item 0 has"), ([{"image": IMAGE, "label": 0}], "item 0 is of type dict"), ([(IMAGE, 0, 0)], "item 0 is of type tuple"),
    (["text"], "item 0 is of type str"), ([], "empty")])
def test_data_that_cannot_be_used_is_refused_by_its_item(items, match):
    with pytest.raises(ValueError, match=re.escape(match)): in_memory(Items(*items))
    if items:
        with pytest.raises(ValueError, match=re.escape(match)): describe(Items(*items))


@pytest.mark.parametrize("second", [(IMAGE,), (torch.zeros(3, 8, 8), 1)])
def test_items_in_memory_are_alike(second):
    with pytest.raises(ValueError, match="item 1 has shape"): in_memory(Items((IMAGE, 0), second))


@pytest.mark.parametrize("labels", [torch.tensor([0.5, 1.0]), torch.tensor([0, -1]), torch.tensor([[0, 1], [1, 0]])])
def test_tensors_of_classes_are_whole_numbers_too(labels):
    with pytest.raises(ValueError, match="classes must be whole numbers"): describe(torch.utils.data.TensorDataset(torch.randn(2, 1, 8, 8), labels))


@pytest.mark.parametrize("image", [torch.zeros(64), torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_images_are_floating_and_have_three_axes(image):
    with pytest.raises(ValueError, match="images must be floating"): describe(Items(image, image))


def test_classes_of_any_whole_type_are_counted():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for labels in ((0, 4, 1), torch.tensor([0, 4, 1]), torch.tensor([0, 4, 1]).to(torch.uint8).numpy()):
        data = Items(*zip(x, labels))
        assert describe(data)["num_classes"] == describe(in_memory(data))["num_classes"] == 5


def test_one_picture_is_a_folder_to_train_on(tmp_path):
    Image.effect_noise((20, 30), 80).save(tmp_path / "only.png")
    assert main(["train", "--data", str(tmp_path), "--size", "8", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]) == 0


def test_white_on_transparent_is_a_mask_of_the_white(tmp_path):
    for mode in ("RGBA", "LA"):
        mask = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
        mask.paste((255, 255, 255, 255), (0, 0, 8, 16))
        mask.convert(mode).save(tmp_path / "mask.png")
        assert torch.equal(named_mask(str(tmp_path / "mask.png"), 8, 8), torch.tensor([1.] * 4 + [0.] * 4).expand(1, 8, 8))


@pytest.mark.parametrize("missing", [RuntimeError("Dataset not found. You can use download=True to download it"), FileNotFoundError("usps.bz2")])
def test_files_that_are_missing_are_fetched(monkeypatch, missing):
    asked = []
    def dataset(name, root, train=True, download=True, size=None):
        asked.append(download)
        if not download: raise missing
        return Items((IMAGE, 0), (IMAGE, 1))
    monkeypatch.setattr("consistency_models.cli.torchvision_dataset", dataset)
    assert len(open_data("USPS")) == 2 and asked == [False, True]


@pytest.mark.parametrize("error, raised", [
    (RuntimeError("h5py is not found"), ValueError), (ValueError("no such split"), ValueError), (PermissionError("data"), PermissionError), (ImportError("scipy"), ImportError),
    (EOFError("the stream ended"), ValueError), (zipfile.BadZipFile("no zip file"), ValueError), (HTTPException("cut off"), ValueError), (MemoryError("too much"), MemoryError)])
def test_other_errors_are_not_taken_for_missing_files(monkeypatch, capsys, error, raised):
    asked = []
    def dataset(name, root, train=True, download=True, size=None):
        asked.append(download)
        raise error
    monkeypatch.setattr("consistency_models.cli.torchvision_dataset", dataset)
    with pytest.raises(raised, match=str(error)): open_data("PCAM")
    assert asked == [False]
    assert main(["train", "--data", "PCAM"]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert str(error) in line and "fault of the program" not in line


@pytest.mark.parametrize("error", [RuntimeError("archive not present"), RuntimeError("Dataset not found.\nYou can download it"), URLError("no network"), EOFError()])
def test_a_set_that_cannot_be_fetched_is_no_fault_of_the_program(monkeypatch, capsys, error):
    def dataset(name, root, train=True, download=True, size=None):
        raise error if download else RuntimeError("not found; use download=True")
    monkeypatch.setattr("consistency_models.cli.torchvision_dataset", dataset)
    assert main(["train", "--data", "ImageNet"]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert ("no network" if isinstance(error, OSError) else f"train: ImageNet: {' '.join(str(error).split()) or 'EOFError'}") in line and "fault" not in line


def test_damaged_items_of_torchvision_are_no_fault_of_the_program(monkeypatch):
    class Damaged(Items):
        def __getitem__(self, i): raise SyntaxError("broken PNG file")
    monkeypatch.setattr("consistency_models.cli.torchvision_dataset", lambda *_, **__: Damaged(0, 1))
    with pytest.raises(ValueError, match="Flowers102: broken PNG file"): open_data("Flowers102")


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("no room"), torch.cuda.OutOfMemoryError("CUDA out of memory"), None])
def test_too_little_memory_is_no_fault_of_the_program(error, monkeypatch, tmp_path, capsys):
    command = ["sample", "digits", "--n", str(10**13), "--out", str(tmp_path / "x.png")]
    if error: monkeypatch.setattr("consistency_models.cli._load", lambda model: (_ for _ in ()).throw(error))
    assert main(command) == 1
    line, = capsys.readouterr().err.splitlines()
    assert "sample: there is not enough memory; ask for less at a time" in line and "fault of" not in line


@pytest.mark.parametrize("error", [Image.DecompressionBombError("too large"), SyntaxError("broken PNG"), ValueError("x"), OSError("x")])
def test_what_pillow_cannot_open_is_not_ours(error, monkeypatch, tmp_path, capsys):
    (tmp_path / "samples.png").write_bytes(b"a picture of somebody")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_: (_ for _ in ()).throw(error))
    assert main(["sample", "digits", "--n", "1"]) == 1
    assert "samples.png was not written by this program" in capsys.readouterr().err
    assert (tmp_path / "samples.png").read_bytes() == b"a picture of somebody"


@pytest.mark.parametrize("command, message", [
    ("demo --out {file}", "out must be a folder, but {file} is a file"), ("demo --out {file}/sub", "out must be a folder, but {file} is a file"),
    ("sample digits --out {file}/x.png", "out must lie in a folder, but {file} is a file"), ("train --steps 1 --out {file}", "out must be a folder, but {file} is a file"),
    ("sample ~/nofolder", "'~/nofolder' is no bundled checkpoint"), ("sample ./nofolder", "'./nofolder' is no bundled checkpoint"), ("sample ''", "'' is no bundled checkpoint"),
    ("sample nofolder/", "'nofolder/' is no bundled checkpoint"), ("train --steps 1 --start ./nofolder --out {file}x", "'./nofolder' is no bundled checkpoint"),
    ("evaluate digits --second 0", "second must be a noise level from 0.002 to below 80"), ("evaluate digits --second 100", "got 100"),
    ("evaluate digits --second 80", "got 80"), ("evaluate digits --second nan", "got nan"), ("evaluate digits --second=-1", "got -1")])
def test_what_cannot_work_is_said_at_once(command, message, tmp_path, monkeypatch, capsys):
    def never(*_, **__): raise AssertionError("too late")
    for name in ("train_classifier", "sample_classes", "_save_grid"): monkeypatch.setattr(f"consistency_models.cli.{name}", never)
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "file.txt").write_text("mine")
    assert main([part.format(file=file) for part in shlex.split(command)]) == 1
    assert message.format(file=file) in capsys.readouterr().err and file.read_text() == "mine"


def test_a_mask_without_white_is_refused(tmp_path):
    for mode, colour in (("L", 0), ("L", 120), ("RGBA", (255, 255, 255, 0))):
        Image.new(mode, (16, 16), colour).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match="mask.png has nothing white"): named_mask(str(tmp_path / "mask.png"), 8, 8)


def test_an_empty_set_has_no_description():
    for data in (Items(), torch.utils.data.TensorDataset(torch.zeros(0, 1, 8, 8))):
        for read in (describe, in_memory, lambda data: make_trainer(data, recipe_for("digits"))):
            with pytest.raises(ValueError, match="the data set is empty"): read(data)


def test_memory_holds_the_same_data(folder):
    data = ImageFolder(folder, 16)
    read = in_memory(data)
    assert len(read) == 6 and all(torch.equal(read[i][0], data[i]) for i in range(6))
    assert in_memory(data, limit=10) is data


def test_every_recipe_makes_a_trainer():
    for name in RECIPES: assert make_trainer(open_data("shapes", 16), recipe_for(name, steps=1, precision="no")).steps == 1


def test_description_of_data():
    assert describe(open_data("digits")) == {"shape": [1, 8, 8], "num_classes": 10, "sigma_data": pytest.approx(0.752, abs=1e-3)}


@pytest.mark.parametrize("name, share", [("top", 0.5), ("bottom", 0.5), ("left", 0.5), ("right", 0.5), ("center", 0.25)])
def test_named_masks(name, share):
    assert named_mask(name, 8, 12).mean() == share


def test_unknown_mask_is_an_error():
    with pytest.raises(ValueError, match="mask must be one of"): named_mask("middle", 8, 8)


def test_training_goes_on_from_trained_weights(tmp_path, capsys):
    run = ["train", "--data", "digits", "--steps", "3", "--batch-size", "8", "--final-timesteps", "20", "--start", "digits", "--out", str(tmp_path)]
    assert main(run) == 0
    before, after = from_pretrained("digits"), from_pretrained(str(tmp_path))
    moved = [(a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters())]
    assert 0 < max(moved) < 0.05 and "--start digits" in after.notes["recipe"]["command"]
    capsys.readouterr()
    assert main(["train", "--data", "shapes", "--size", "8", "--start", "digits", "--out", str(tmp_path / "shapes")]) == 1
    assert "does not fit the data: its in_channels is 1, the data needs 3" in capsys.readouterr().err
    save_pretrained(MLP(width=8, depth=1), tmp_path / "points")
    assert main(["train", "--start", str(tmp_path / "points"), "--out", str(tmp_path / "mlp")]) == 1
    assert "does not fit the data: its in_channels is None" in capsys.readouterr().err


def test_training_follows_the_precision_of_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert main(["train", "--data", "digits", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["notes"]["recipe"]["precision"] == "bf16"
