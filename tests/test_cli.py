"""The command line: every command does its work, says no in one line, and returns the right exit code."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import on_two_processes
from PIL import Image

from consistency_models.cli import COMMANDS, main, named_mask, parser_for
from consistency_models.data import load_avatars, load_digits
from consistency_models.distillation import without_weight
from consistency_models.metrics import train_classifier
from consistency_models.networks import MLP, UNet
from consistency_models.paths import heun_step
from consistency_models.pictures import to_png
from consistency_models.pretrained import from_pretrained, sample, save_pretrained
from consistency_models.schedules import karras_schedule

COMMAND = [sys.executable, "-c", "import sys; from consistency_models.cli import main; sys.exit(main())"]
TRAIN = ["train", "--data", "digits", "--steps", "3", "--batch-size", "8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A digit model trained for three steps"""
    folder = str(tmp_path_factory.mktemp("digits") / "run")
    assert main([*TRAIN, "--out", folder]) == 0
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusion model of the digits trained for three steps"""
    folder = str(tmp_path_factory.mktemp("diffusion") / "run")
    assert main([*TRAIN, "--objective", "diffusion", "--out", folder]) == 0
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "three.png"
    Image.fromarray(((load_digits()[0][3, 0] + 1) * 127.5).byte().numpy()).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Six color pictures of different sizes"""
    (tmp_path / "pictures").mkdir()
    for i in range(6): Image.new("RGB", (20 + i, 30), (40 * i, 90, 200)).save(tmp_path / "pictures" / f"{i}.png")
    return str(tmp_path / "pictures")


@pytest.fixture
def line(capsys):
    """Run a command that must fail; returns the one line that it says, without the name of the command"""
    def fail(command):
        command = shlex.split(command) if isinstance(command, str) else command
        capsys.readouterr()
        assert main(command) == 1
        said, = capsys.readouterr().err.splitlines()
        assert said.startswith(f"consistency-models {command[0]}: ")
        return said.split(": ", 1)[1]
    return fail


def raises(error):
    def fail(*_, **__): raise error
    return fail


def pixels(path):
    """The gray values of a picture"""
    with Image.open(path) as image: return torch.tensor(list(image.convert("L").tobytes())).reshape(image.size[1], -1)


# Keeps its promises

def test_train_leaves_weights_and_a_card_whose_command_gives_them_again(checkpoint, tmp_path):
    net = from_pretrained(checkpoint)
    assert net.config["num_classes"] == 10 and net.notes["shape"] == [1, 8, 8]
    command = net.notes["recipe"]["command"]
    assert command == "consistency-models train --data digits --steps 3 --seed 0 --batch-size 8"
    assert main([*command.split()[1:], "--out", str(tmp_path / "again")]) == 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), from_pretrained(tmp_path / "again").parameters()))


@pytest.mark.slow
def test_a_folder_is_trained_on_and_gives_the_run_its_name(folder, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    Path("my pictures").symlink_to(folder)
    run = ["--size", "16", "--steps", "1", "--batch-size=2"]
    assert main(["train", "--data", "my pictures", *run]) == 0
    net = from_pretrained("runs/my pictures")
    assert "'my pictures'" in net.notes["recipe"]["command"] and net.notes["shape"] == [3, 16, 16] and net.config["num_classes"] is None
    assert main(["sample", "runs/my pictures", "--n", "2", "--out", "x.png"]) == 0
    assert "no classes" in line("sample 'runs/my pictures' --labels 1 --out y.png") and not Path("y.png").exists()
    monkeypatch.chdir(folder)
    assert main(["train", "--data", ".", *run]) == 0 and Path("runs/pictures/model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:none of the 1 pictures")
def test_one_picture_is_a_folder_to_train_on(tmp_path):
    Image.effect_noise((20, 30), 80).save(tmp_path / "only.png")
    assert main(["train", "--data", str(tmp_path), "--size", "8", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path):
    run, out = ["train", "--steps", "100", "--batch-size", "8", "--checkpoint-every", "2", "--out", str(tmp_path)], tmp_path / "checkpoints"
    process = subprocess.Popen([*COMMAND, *run], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("*.pt")): time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip().endswith("stopped; go on with --resume") and "Traceback" not in errors
    reached = int(max(p.stem for p in out.glob("*.pt")))
    assert 2 <= reached < 100 and not (tmp_path / "model.safetensors").exists()
    assert main([*run, "--resume"]) == 0 and (tmp_path / "model.safetensors").exists()


def test_training_goes_on_from_trained_weights(tmp_path, line):
    assert main([*TRAIN, "--final-timesteps", "20", "--start", "digits", "--out", str(tmp_path / "run")]) == 0
    before, after = without_weight(from_pretrained("digits")), from_pretrained(tmp_path / "run")
    moved = [(a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters())]
    assert 0 < max(moved) < 0.05 and "--start digits" in after.notes["recipe"]["command"]
    assert "does not fit the data: its in_channels is 1" in line(["train", "--data", "avatars", "--start", "digits", "--out", str(tmp_path / "x")])


def test_a_diffusion_model_is_trained_sampled_and_distilled(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--objective", "cd", "--teacher", teacher, "--guidance", "1.5"]) == 0
    told = from_pretrained("runs/digits").notes["recipe"]
    assert (told["objective"], told["guidance"], told["final_timesteps"]) == ("cd", "1.5", "18")
    assert told["command"] == shlex.join(["consistency-models", "train", "--data", "digits", "--teacher", teacher, "--guidance", "1.5",
                                          "--steps", "3", "--seed", "0", "--batch-size", "8"])
    assert from_pretrained(teacher).notes["recipe"]["objective"] == "diffusion"
    for model, levels, solver in ((teacher, karras_schedule(18).flip(0), heun_step), ("runs/digits", [80., 0.8], None)):
        assert main(["sample", model, "--n", "1", "--out", "x.png"]) == 0
        x = sample(from_pretrained(model), 1, levels, solver=solver)
        torch.testing.assert_close(pixels("x.png")[2:66:8, 2:66:8] / 127.5 - 1, x[0, 0], atol=0.02, rtol=0)


@pytest.mark.slow
def test_two_processes_train_a_teacher_and_its_student(tmp_path):
    """The second reads the teacher's weights, which the first has saved"""
    (tmp_path / "program.py").write_text("import sys\nfrom consistency_models.cli import main\nsys.exit(main())\n")
    printed = on_two_processes(tmp_path / "program.py", *TRAIN, "--out", tmp_path / "run")
    assert printed.count("a step of 8") == 2 and printed.count("the weights are in") == 2
    assert from_pretrained(tmp_path / "run").notes["recipe"]["processes"] == 2


def test_training_follows_the_precision_of_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert main(["train", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["notes"]["recipe"]["precision"] == "bf16"


def test_sample_writes_the_samples_that_were_asked_for(checkpoint, tmp_path):
    out = tmp_path / "new" / "x.png"
    assert main(["sample", checkpoint, "--n", "6", "--columns", "3", "--sigmas", "80,2,0.5", "--labels", "1,2", "--seed", "4", "--out", str(out)]) == 0
    found = pixels(out)
    assert found.shape == (2 * 66 + 2, 3 * 66 + 2)
    x = sample(from_pretrained(checkpoint), 6, [80., 2., 0.5], [1, 2], seed=4)
    for i in range(6):
        tile = found[2 + 66 * (i // 3):, 2 + 66 * (i % 3):][:64:8, :64:8]
        torch.testing.assert_close(tile / 127.5 - 1, x[i, 0], atol=0.02, rtol=0)


def test_edit_keeps_the_known_half(picture, tmp_path):
    out = str(tmp_path / "x.png")
    assert main(["edit", "digits", picture, "--mask", "bottom", "--label", "3", "--n", "2", "--sigmas", "80,1", "--out", out]) == 0
    found = pixels(out)
    original, first = found[2:66, 2:66], found[2:66, 68:132]
    assert torch.equal(original[:32], first[:32]) and not torch.equal(original[32:], first[32:])


def test_edit_takes_a_painted_mask(picture, tmp_path):
    for mode in ("RGBA", "LA"):         # white on transparent: what is transparent is kept
        mask = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
        mask.paste((255, 255, 255, 255), (0, 0, 8, 16))
        mask.convert(mode).save(tmp_path / "mask.png")
        assert torch.equal(named_mask(str(tmp_path / "mask.png"), 8, 8), torch.tensor([1.] * 4 + [0.] * 4).expand(1, 8, 8))
    out = str(tmp_path / "x.png")
    assert main(["edit", "digits", picture, "--mask", str(tmp_path / "mask.png"), "--n", "1", "--sigmas", "80", "--out", out]) == 0
    found = pixels(out)
    assert torch.equal(found[2:66, 34:66], found[2:66, 100:132]) and not torch.equal(found[2:66, 2:34], found[2:66, 68:100])


def test_masks_have_names():
    for name, share in (("top", 0.5), ("right", 0.5), ("center", 0.25)): assert named_mask(name, 8, 12).mean() == share


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this classifier", "ignore:a Fréchet distance")
def test_evaluate_prints_a_table(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("consistency_models.cli.train_classifier", lambda x, y, steps: train_classifier(x, y, 20))
    assert main(["evaluate", checkpoint, "--seeds", "1"]) == 0
    assert len(re.findall(r"\(from [\d.]+ to [\d.]+ over \d\)", capsys.readouterr().out)) == 6


def test_evaluate_takes_the_size_and_the_data_of_the_model(tmp_path, monkeypatch):
    save_pretrained(UNet(3, (8, 16), num_classes=4), tmp_path, shape=[3, 16, 16], recipe={"data": "avatars"})
    seen = []
    monkeypatch.setattr("consistency_models.cli.train_classifier", lambda x, *args: seen.append(x.shape))
    monkeypatch.setattr("consistency_models.cli.recognition_rate", lambda x, *args: 1.)
    monkeypatch.setattr("consistency_models.cli.measure", lambda draw, x, y, *args: seen.append(x.shape) or seen.append(args[2:]) or {})
    monkeypatch.setattr("consistency_models.cli.count_avatars", lambda x, y: seen.append((x.shape, y.shape)) or {"whole": 0.5})
    assert main(["evaluate", str(tmp_path), "--second", "1.2", "--seeds", "1"]) == 0
    assert seen == [(20_000, 3, 16, 16), (4_000, 3, 16, 16), (1, 1.2)] + 3 * [((4_000, 3, 16, 16), (4_000,))]


@pytest.mark.filterwarnings("ignore:this classifier", "ignore:a Fréchet distance")
def test_a_sorted_folder_is_trained_held_out_and_measured(tmp_path, monkeypatch, capsys):
    """One command from a folder to a model with classes; what was held out comes back for measuring, and only that"""
    for i in range(40):
        place = tmp_path / "pictures" / ("blue" if i % 2 else "red")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (5 * i, 0, 200) if i % 2 else (200, 0, 5 * i)).save(place / f"{i:02}.png")
    run = ["train", "--data", str(tmp_path / "pictures"), "--size", "8", "--labels", "--mirror", "--hold-out", "0.25", "--channels", "8,16",
           "--patch", "2", "--steps", "3", "--batch-size", "8", "--out", str(tmp_path / "run")]
    assert main([*run, "--only-plan"]) == 0 and not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert said.count("images, 3 x 8 x 8, 2 classes; a U-Net with channels [8, 16] and patch 2") == 2 and "then its student" in said
    assert main(run) == 0
    net, teacher = from_pretrained(tmp_path / "run"), from_pretrained(tmp_path / "run" / "teacher")
    assert net.config["num_classes"] == 2 and net.config["patch"] == 2 and "--labels --mirror --hold-out 0.25" in net.notes["recipe"]["command"]
    assert (int(teacher.notes["recipe"]["steps"]), teacher.notes["recipe"]["objective"]) == (7, "diffusion")
    sizes = []
    monkeypatch.setattr("consistency_models.cli.measure", lambda draw, x, y, t, *args: sizes.append((len(x), y.tolist(), len(t))) or {})
    assert main(["evaluate", str(tmp_path / "run"), "--neighbors", str(tmp_path / "near.png")]) == 0
    (n, classes, training), = sizes
    held = len(list((tmp_path / "pictures").rglob("*.png"))) - training // 2
    assert n == held and 4 <= held <= 16 and set(classes) == {0, 1} and net.notes["classes"] == ["blue", "red"]
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "run", "--data", "pictures"]) == 0 and sizes[1] == sizes[0]       # the same folder by another name
    assert main(["sample", "run", "--labels", "red,blue", "--n", "2", "--out", "x.png"]) == 0
    (tmp_path / "pictures" / "red").rename(tmp_path / "pictures" / "scarlet")
    assert main(["evaluate", "run"]) == 1 and "the classes of the model are ['blue', 'red']" in capsys.readouterr().err
    assert pixels(tmp_path / "near.png").shape == (2 * 66 + 2, 10 * 66 + 2)


@pytest.mark.filterwarnings("ignore:this classifier", "ignore:a Fréchet distance")
def test_a_model_without_classes_is_measured_too(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("consistency_models.cli.train_classifier", lambda x, y, steps: train_classifier(x, y, 20))
    assert main(["train", "--data", folder, "--size", "8", "--gray", "--steps", "2", "--batch-size", "2", "--hold-out", "0", "--channels", "8,16",
                 "--patch", "1", "--out", str(tmp_path / "run")]) == 0
    assert from_pretrained(tmp_path / "run").notes["shape"] == [1, 8, 8]
    assert main(["evaluate", str(tmp_path / "run"), "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "tells how one has turned" in said and "recognized" not in said and said.count("(from ") == 4


def test_a_student_without_a_teacher_gets_one_once(tmp_path, line, capsys):
    run = [*TRAIN, "--out", str(tmp_path / "run")]
    assert main(run) == 0
    told = from_pretrained(tmp_path / "run").notes["recipe"]
    assert told["teacher"] == str(tmp_path / "run" / "teacher") and "--teacher" not in told["command"]
    assert "holds an earlier run; go on with --resume" in line(run)
    (tmp_path / "run" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")                 # as if killed between the two
    assert "was made by another command" in line([*run, "--seed", "5", "--resume"])
    before = (tmp_path / "run" / "teacher" / "model.safetensors").stat().st_mtime_ns
    assert main([*run, "--resume"]) == 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "teacher" / "model.safetensors").stat().st_mtime_ns == before


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, folder):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    run = ["train", "--data=~/pictures", "--size", "8", "--steps", "1", "--batch-size", "2"]
    assert main([*run, "--out=~/run"]) == 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert main([*run, "--start=~/run"]) == 0 and (tmp_path / "runs" / "pictures").is_dir()
    assert main(["sample", "~/run", "--n", "1", "--out=~/new/x.png"]) == 0
    assert main(["edit", "~/run", "~/white.png", "--mask=~/white.png", "--n", "1", "--sigmas", "80", "--out=~/y.png"]) == 0
    assert (tmp_path / "new" / "x.png").is_file() and (tmp_path / "y.png").is_file() and not (tmp_path / "~").exists()


def test_help_explains_every_option(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end: main([name, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and " ".join(COMMANDS[name].__doc__.split()) in " ".join(text.split()) and "_" not in re.sub(r"[A-Z_]{2,}", "", text)
        assert all(action.help for action in parser_for(name)._actions)


def test_options_have_the_types_and_defaults_of_their_arguments():
    made = vars(parser_for("train").parse_args(["--learning-rate", "0.1", "--steps", "3", "--resume"]))
    assert (made["learning_rate"], made["steps"], made["resume"], made["data"], made["out"], made["debug"]) == (0.1, 3, True, "digits", None, False)


@pytest.mark.parametrize("arguments, code", [([], 0), (["--help"], 0), (["paint"], 2)], ids=str)
def test_an_overview_names_all_commands(arguments, code, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert all(name in printed.out + printed.err for name in COMMANDS)


def test_wrong_usage_exits_with_2(capsys):
    for arguments in (["sample"], ["sample", "digits", "--n", "many"], ["train", "--color", "red"]):
        with pytest.raises(SystemExit) as end: main(arguments)
        assert end.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_is_installed():
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    run = subprocess.run(["consistency-models", "--help"], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert run.returncode == 0 and "consistency-models COMMAND" in run.stdout


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch": print("torch meets", os.environ.get("GOMP_SPINCOUNT")); sys.stdout.flush(); os._exit(0)
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


# Refuses

def test_a_fault_of_the_program_is_told_from_a_mistake(monkeypatch, tmp_path, capsys):
    command = ["sample", "digits", "--out", str(tmp_path / "x.png")]
    for error in (AttributeError("x"), KeyError("x"), TypeError("x"), RuntimeError("x\ny"), type("Fault", (Exception,), {})("x")):
        monkeypatch.setattr("consistency_models.cli.load_image_model", raises(error))
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
        assert shown.count("Traceback") == traces and "report" not in shown
        assert shown.splitlines()[-1].startswith("consistency-models sample: there is no model 'nothing'")


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("no room"), torch.cuda.OutOfMemoryError("CUDA out of memory"), None], ids=repr)
def test_too_little_memory_is_no_fault_of_the_program(error, monkeypatch, tmp_path, line):
    if error: monkeypatch.setattr("consistency_models.cli.load_image_model", raises(error))
    said = line(["sample", "digits", "--n", str(10**13), "--out", str(tmp_path / "x.png")])
    assert said.startswith("there is not enough memory; ask for less at a time") and "fault of" not in said


@pytest.mark.parametrize("error", [RuntimeError("archive not\npresent"), URLError("no network"), HTTPException("cut off"), EOFError()], ids=repr)
def test_trouble_with_data_is_no_fault_of_the_program(error, monkeypatch, line):
    monkeypatch.setattr("consistency_models.data.torchvision_dataset", raises(error))
    said = line(["train", "--data", "ImageNet"])
    assert (" ".join(str(error).split()) or "EOFError") in said and "fault" not in said


@pytest.mark.parametrize("arguments, match", [
    ("sample digits --n 0", "n must be at least 1"), ("sample digits --columns 0", "columns must"), ("sample digits --sigmas 1,80", "descend"),
    ("sample digits --sigmas a", "numbers separated by commas"), ("sample digits --sigmas 0.001", "sigma_min"), ("sample digits --labels 11", "classes from 0 to 9"),
    ("sample digits --labels 1.7", "labels must be a whole number"), ("sample digits --labels inf", "labels must be a whole number"),
    ("edit digits nothing.png", "there is no picture"), ("edit digits {image} --mask middle", "mask must be one of"),
    ("edit digits {image} --label 10", "classes from 0 to 9"), ("train --data nothing", "torchvision.datasets has no"),
    ("train --data ./nothing", "there is no folder ./nothing"), ("train --data digits --size 16", "no other size"), ("train --steps 0", "steps must"),
    ("train --learning-rate -1", "learning_rate must"), ("train --precision int4", "precision must"), ("train --objective ict --final-timesteps 3", "final_timesteps"),
    ("train --objective cdm", "objective must be one of diffusion, ct"),
    ("train --objective ict --teacher digits", "the recipe of ict has no teacher"), ("train --objective ect --final-timesteps 40", "the recipe of ect has no final_timesteps"),
    ("train --objective scd --teacher digits", "must be a diffusion model, but digits"), ("train --objective cd --teacher nothing", "there is no model 'nothing'"),
    ("train --objective cd --teacher mnist-diffusion", "mnist-diffusion makes images of shape [1, 28, 28], the data has [1, 8, 8]"),
    ("train --tracker wandb", "wandb"), ("train --steps 2 --resume", "no checkpoint"), ("train --channels 8.5,16", "channels must be a whole number"),
    ("train --patch 0", "patch must be at least 1"),
    ("train --guidance -1", "guidance must be"), ("train --guidance 3,1", "one weight, or three"),
    ("train --objective scd --teacher mnist-diffusion --guidance 0,1,8", "for the objective cd"), ("train --gray", "gray is for a folder of images"),
    ("train --hold-out 0.5", "hold_out is for a folder"), ("sample mnist-easy --weight 2", "takes none"),
    ("train --start digits --channels 8,16", "leave channels and patch out"),
    ("evaluate digits --seeds 0", "seeds must be at least 1")], ids=lambda x: x.strip())
def test_mistakes_are_told_in_one_line(arguments, match, tmp_path, picture, line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "" if arguments.startswith("evaluate") else f" --out {tmp_path}/out"
    assert match in line(arguments.format(image=picture) + out)


@pytest.mark.parametrize("command, message", [
    ("demo --out {file}", "out must be a folder, but {file} is a file"), ("sample digits --out {file}/x.png", "out must lie in a folder, but {file} is a file"),
    ("train --steps 1 --out {file}", "out must be a folder, but {file} is a file"), ("sample ''", "there is no model ''"), ("sample ~/nofolder", "there is no model '~/nofolder'"),
    ("train --steps 1 --start ./nofolder --out {file}x", "there is no model './nofolder'"), ("sample digits --out {folder}", "is a folder"),
    ("evaluate digits --second 0", "second must be a noise level from 0.002 to below 80"), ("evaluate digits --second 80", "got 80"), ("evaluate digits --second nan", "got nan")])
def test_what_cannot_work_is_said_before_anything_is_computed(command, message, tmp_path, monkeypatch, line):
    for name in ("train_classifier", "draw", "save_grid"): monkeypatch.setattr(f"consistency_models.cli.{name}", raises(AssertionError("too late")))
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    (file := tmp_path / "file.txt").write_text("mine")
    places = {"file": file, "folder": tmp_path}
    assert message.format(**places) in line(command.format(**places)) and file.read_text() == "mine"


def test_models_that_do_not_say_what_is_needed(tmp_path, folder, checkpoint, line):
    save_pretrained(MLP(width=8, depth=1), tmp_path / "points", shape=[2])
    assert "shape of its images" in line(["sample", str(tmp_path / "points")])
    save_pretrained(UNet(channels=(8, 16), num_classes=10), tmp_path / "images", shape=[1, 8, 8])
    assert "--data" in line(["evaluate", str(tmp_path / "images")])
    assert "must lie in the subfolder of its class" in line(["evaluate", checkpoint, "--data", folder])
    assert "have no other size" in line(["evaluate", checkpoint, "--data", "avatars"])


def test_a_diffusion_model_is_neither_edited_nor_measured(teacher, picture, line, tmp_path):
    for command in (["edit", teacher, picture, "--out", f"{tmp_path}/x.png"], ["evaluate", teacher]):
        assert f"{teacher} is a diffusion model, which needs many small steps; distill it" in line(command)


def test_a_run_of_another_method_is_not_resumed(teacher, line):
    run = [*TRAIN, "--out", teacher, "--resume", "--objective"]
    assert "its objective is 'DiffusionTraining" in line([*run, "ect"]) and main([*run, "diffusion"]) == 0


def test_pictures_of_others_are_kept_unless_they_are_named(tmp_path, monkeypatch, picture, line):
    monkeypatch.chdir(tmp_path)
    foreign = Path(picture).read_bytes()
    for command, name in ((["sample", "digits", "--n", "2"], "samples.png"), (["edit", "digits", picture, "--n", "1", "--sigmas", "80"], "edits.png")):
        for content in (foreign, b"no picture"):
            Path(name).write_bytes(content)
            assert f"{name} was not written by this program" in line(command) and Path(name).read_bytes() == content
        assert main([*command, "--out", name]) == 0 and Path(name).read_bytes() != foreign
        assert main(command) == 0                                                   # a picture of ours may be replaced


def test_training_into_a_folder_of_others_or_of_an_earlier_run(tmp_path, checkpoint, line):
    (tmp_path / "README.md").write_text("# Mine")
    assert "README.md was not written by this package" in line(["train", "--steps", "1000000000", "--out", str(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    assert "earlier run" in line([*TRAIN, "--out", checkpoint])


def test_a_mask_without_white(tmp_path):
    for mode, color in (("L", 0), ("L", 120), ("RGBA", (255, 255, 255, 0))):
        Image.new(mode, (16, 16), color).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match="mask.png has nothing white"): named_mask(str(tmp_path / "mask.png"), 8, 8)


def test_start_from_weights_that_number_the_classes_otherwise_is_refused(line, tmp_path):
    """Folders are classes in alphabetical order, and the faces' model counts bare, glasses, hat, both"""
    x, y, _ = load_avatars(False)
    for i, name in enumerate(("bare", "glasses", "hat", "both")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k, face in enumerate(x[y == i][:3]):
            (tmp_path / "data" / name / f"{k}.png").write_bytes(to_png(((face + 1) * 127.5).round().byte()))
    command = ["train", "--data", str(tmp_path / "data"), "--size", "16", "--labels", "--start", "avatars", "--objective", "ect", "--out", str(tmp_path / "out")]
    assert "avatars numbers the classes bare, glasses, hat, both, the data bare, both, glasses, hat" in line([*command, "--only-plan"])
    for i, name in enumerate(("bare", "glasses", "hat", "both")): (tmp_path / "data" / name).rename(tmp_path / "data" / f"{i}-{name}")
    assert main([*command, "--only-plan"]) == 0
