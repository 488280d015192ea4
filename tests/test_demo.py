"""The demo: six pictures of its own, a table, and nothing of others replaced."""
import pytest
import torch
from conftest import seeded
from PIL import Image
from torch.utils.data import TensorDataset

from consistency_models.data import load_digits
from consistency_models.demo import demo, draw_edits, draw_losses, draw_samples
from consistency_models.metrics import train_classifier
from consistency_models.pictures import NOTE, refuse_foreign_picture
from consistency_models.pretrained import from_pretrained, is_diffusion

PICTURES = {f"{name}.png" for name in ("samples_one_step", "samples_two_steps", "trajectory", "inpainting", "interpolation", "loss_by_noise_level")}


# Keeps its promises

@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a Fréchet distance from")
def test_the_demo_draws_and_measures(tmp_path, monkeypatch, capsys):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("consistency_models.demo.open_data", lambda name: TensorDataset(*(t[:200] for t in load_digits())))
    monkeypatch.setattr("consistency_models.demo.train_classifier", lambda x, y: train_classifier(x, y, 50))
    demo("~/pictures/new", steps=3)
    assert {p.name for p in (tmp_path / "pictures" / "new").iterdir()} == PICTURES | {"diffusion", "consistency"}
    assert is_diffusion(from_pretrained(tmp_path / "pictures" / "new" / "diffusion"))
    printed = capsys.readouterr().out
    assert "trained 3 steps, distilled 3" in printed and "distance of two real sets of 100" in printed and "asked class recognized" in printed


def test_each_picture_shows_what_it_should(tmp_path, monkeypatch):
    """What is handed to the drawing is looked at"""
    import matplotlib.pyplot as plt
    shown, net, (images, labels) = {}, from_pretrained("digits"), load_digits()
    def show_images(x, **options):
        shown[len(shown)] = (x, options)
        return plt.figure()
    monkeypatch.setattr("consistency_models.demo.show_images", show_images)
    draw_samples(net, tmp_path)
    draw_edits(net, images[:10], labels[:10], tmp_path)
    one, two, walk, edits, between = (x for x, _ in shown.values())
    assert one.shape == two.shape == (80, 1, 8, 8) and not torch.equal(one, two) and walk.shape == (60, 1, 8, 8)
    assert torch.equal(edits[:10], images[:10]) and (edits[10:20, :, 4:] == -0.2).all()
    for row in edits[20:].split(10): assert torch.equal(row[:, :, :4], images[:10, :, :4]) and not torch.equal(row[:, :, 4:], images[:10, :, 4:])
    assert between.shape == (120, 1, 8, 8) and not torch.equal(between[0], between[11])


def test_losses_are_averaged_by_level_early_and_late(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    kept = []
    monkeypatch.setattr("consistency_models.demo._save", lambda fig, path: kept.append(fig))
    sigmas = 10 ** torch.empty(20, 500).uniform_(-2.6, 1.9, generator=seeded())
    draw_losses([(s, s * (10 if i < 4 else 1)) for i, s in enumerate(sigmas)], tmp_path)
    early, late = (line.get_ydata() for line in kept[0].axes[0].lines)
    assert (early / late == pytest.approx(10, rel=0.2)) and late == pytest.approx(kept[0].axes[0].lines[0].get_xdata(), rel=0.3)
    plt.close("all")


def test_pictures_say_who_drew_them(tmp_path):
    draw_losses([(torch.tensor([1., 2.]), torch.tensor([1., 2.]))] * 5, tmp_path)
    path = tmp_path / "loss_by_noise_level.png"
    with Image.open(path) as image: assert image.info["Software"] == NOTE["Software"]
    refuse_foreign_picture(path)


# Refuses

def test_pictures_of_others_before_anything_is_trained(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "trajectory.png")
    before = (tmp_path / "trajectory.png").read_bytes()
    with pytest.raises(FileExistsError, match="trajectory.png"): demo(str(tmp_path), steps=10**9)
    assert (tmp_path / "trajectory.png").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["trajectory.png"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (file := tmp_path / "file.txt").write_text("mine")
    for out in (file, file / "sub"):
        with pytest.raises(ValueError, match=f"out must be a folder, but {file} is a file"): demo(str(out), steps=10**9)
    assert file.read_text() == "mine"
