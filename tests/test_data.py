"""Data: points, digits, avatars, sets of torchvision, folders, names, and sigma_data."""
import inspect
import json
import math
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import gaussian, seeded
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from consistency_models.data import (
    ImageFolder,
    describe,
    eight_gaussians,
    in_memory,
    load_digits,
    measure_sigma_data,
    open_data,
    spiral,
    torchvision_dataset,
    two_moons,
)

MAKERS = pytest.mark.parametrize("make", (two_moons, spiral, eight_gaussians))
TORCHVISION = "consistency_models.data.torchvision_dataset"


def picture(path, color=(255, 0, 0)):
    """A small picture at this place, of the format that its name says"""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".gif": "GIF", ".dib": "BMP", ".png": "PNG", ".apng": "PNG"}
    Image.new("RGB", (4, 4), color).save(path, kinds.get(path.suffix.lower(), "JPEG"))


class Items(Dataset):
    """A data set of these items"""

    def __init__(self, *items): self.items = items

    def __len__(self): return len(self.items)

    def __getitem__(self, i): return self.items[i]


# Equals the paper

def test_the_digits_are_those_of_scikit_learn():
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = load_digits()
    assert torch.equal(images, torch.as_tensor(theirs.images, dtype=torch.float32)[:, None] / 8 - 1)
    assert torch.equal(labels, torch.as_tensor(theirs.target, dtype=torch.long))


def test_two_moons_lie_on_two_half_circles():
    points = two_moons(400, noise=0., generator=seeded()) * 1.5
    for i, side in enumerate((-1., 1.)):
        center = torch.tensor([-side / 2, side / 4])
        torch.testing.assert_close((points[i::2] - center).norm(dim=1), torch.ones(200))
        assert (side * (points[i::2, 1] - center[1]) <= 1e-6).all()


def test_the_spiral_turns_as_often_as_asked():
    points = spiral(2000, noise=0., turns=3., generator=seeded())
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close((6 * math.pi * radius).cos(), angle.cos(), rtol=0, atol=1e-3)
    assert (radius**2).mean().item() == pytest.approx(0.5, abs=0.05)


def test_eight_gaussians_come_with_their_clusters():
    points, labels = eight_gaussians(800, noise=0.01, generator=seeded())
    assert labels.unique().tolist() == list(range(8))
    angle = torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)
    assert torch.equal(angle.round().long() % 8, labels)


def test_sigma_data_is_the_standard_deviation_of_all_values():
    x = gaussian(50, 3, 4)
    pairs = TensorDataset(x, torch.zeros(50))
    expected = x.flatten().double().std().item()
    for data in (x, x.double(), list(x), pairs, [(a, 1) for a in x], [[a, 1] for a in x]):
        assert measure_sigma_data(data) == pytest.approx(expected, rel=5e-6)
    assert round(measure_sigma_data(load_digits()[0]), 3) == 0.752


# Keeps its promises: points and drawn pictures

@MAKERS
def test_what_is_drawn_is_reproducible_and_in_range(make):
    def draw(seed, n=500, **options):
        x = make(n, generator=seeded(seed), **options)
        return x[0] if isinstance(x, tuple) else x
    before = torch.get_rng_state()
    a, b, c = draw(1), draw(1), draw(2)
    assert len(a) == 500 and len(draw(0, 1)) == len(draw(0, 1.)) == 1 and a.dtype == torch.float32
    assert torch.equal(a, b) and not torch.equal(a, c) and a.std(0).min() > 0.2
    exact = draw(0, noise=0.)
    assert exact.abs().max() <= 1 + 1e-6 and a.abs().max() < 1.3
    assert torch.equal(before, torch.get_rng_state())


def test_digits_are_images_with_labels():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert labels.shape == (1797,) and labels.dtype == torch.long
    assert labels.unique().tolist() == list(range(10))


# Keeps its promises: folders

def test_a_folder_gives_all_its_pictures_in_one_shape(tmp_path):
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    Image.new("RGB", (20, 12), (255, 0, 0)).save(tmp_path / "a.png")
    assert len(ImageFolder(tmp_path, 8)) == 1
    Image.new("L", (12, 20), 255).save(tmp_path / "b.PNG")
    Image.new("RGBA", (9, 9), (0, 255, 0, 128)).save(tmp_path / "inner" / "c.png")
    Image.new("P", (8, 8)).save(tmp_path / "inner" / "deep" / "d.gif")
    (tmp_path / "notes.txt").write_text("no image")
    half_green_on_white = -1 / 255, 1., -1 / 255
    colors = (1., -1., -1.), (1., 1., 1.), half_green_on_white, (-1., -1., -1.)
    images = torch.stack(list(ImageFolder(str(tmp_path), 8)))
    torch.testing.assert_close(images, torch.tensor(colors)[..., None, None].expand(4, 3, 8, 8))
    gray = ImageFolder(tmp_path, 15, channels=1)
    assert torch.stack(list(gray)).shape == (4, 1, 15, 15)
    assert torch.equal(pickle.loads(pickle.dumps(gray))[0], gray[0])   # as loaders get it


def test_subfolders_are_classes_where_that_is_asked_for(tmp_path):
    for name in ("b/1.png", "a/2.png", "a/deep/3.png", "c/4.png"): picture(tmp_path / name)
    data = ImageFolder(tmp_path, 4, labels=True)
    assert data.classes == ["a", "b", "c"] and [label for _, label in data] == [0, 0, 1, 2]
    assert describe(data)["num_classes"] == 3 and ImageFolder(tmp_path, 4).classes == []
    picture(tmp_path / "one" / "class" / "5.png")
    with pytest.raises(ValueError, match=r"two subfolders or more, but .* has \['class'\]"): ImageFolder(tmp_path / "one", 4, labels=True)
    picture(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="must lie in the subfolder of its class, but .*loose.png does not"): ImageFolder(tmp_path, 4, labels=True)


def test_a_part_of_a_folder_is_held_out_from_every_class(tmp_path):
    """Both parts are the whole and share nothing; other files change nothing; no class is lost"""
    for i in range(40): picture(tmp_path / f"{i // 20}" / f"{i:02}.png", (6 * i, 0, 0))
    def reds(train, hold_out=0.2): return open_data(str(tmp_path), 4, train=train, labels=True, hold_out=hold_out).tensors
    (x, _), (held, z) = reds(True), reds(False)
    assert len(x) + len(held) == 40 == len(torch.cat([x, held])[:, 0, 0, 0].unique()) and 3 <= len(held) <= 16 and set(z.tolist()) == {0, 1}
    for name in ("0/00.png", "0/07.png"): (tmp_path / name).unlink()
    picture(tmp_path / "0" / "new.png", (1, 0, 0))
    assert not set(reds(False)[0][:, 0, 0, 0].tolist()) & set(x[:, 0, 0, 0].tolist())
    for i in range(3): picture(tmp_path / "lonely" / f"{i}.png")
    assert set(reds(True, 0.9)[1].tolist()) == {0, 1, 2}
    assert len(open_data(str(tmp_path), 4)) == len(open_data(str(tmp_path), 4, train=False)) == 42
    with pytest.warns(UserWarning, match="none of the 42 pictures .* is held out"): open_data(str(tmp_path), 4, hold_out=1e-6)
    with pytest.raises(ValueError, match="hold_out must be finite, at least 0 and at most 0.9"): open_data(str(tmp_path), 4, hold_out=1.)
    with pytest.raises(ValueError, match="mirror is for a folder of images, and digits is none"): open_data("digits", mirror=True)


def test_mirrored_pictures_come_beside_their_originals_in_training_alone(tmp_path):
    Image.effect_noise((4, 4), 80).save(tmp_path / "only.png")
    x, = open_data(str(tmp_path), 4, mirror=True, channels=1).tensors
    assert x.shape == (2, 1, 4, 4) and torch.equal(x[0].flip(-1), x[1]) and not torch.equal(x[0], x[1])
    assert len(open_data(str(tmp_path), 4, train=False, mirror=True)) == 1


def test_hidden_files_and_folders_of_systems_are_skipped(tmp_path):
    ours = ["a.png", "sub/B.JPG", "x.png/inside.png", "日本/ü ä.png"]
    for name in (*ours, ".ipynb_checkpoints/a.png", ".hidden.png", "sub/.git/a.png",
                 "__MACOSX/a.png", "@eaDir/a.png"): picture(tmp_path / name)
    for name in ("._a.jpg", "sub/._B.JPG", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = ImageFolder(tmp_path, 4)
    assert [f.relative_to(tmp_path).as_posix() for f in images.files] == ours
    assert all(x.shape == (3, 4, 4) for x in images)


def test_linked_folders_are_followed_once(tmp_path):
    picture(tmp_path / "else" / "deep" / "b.png")
    picture(tmp_path / "own" / "a.png")
    links = {"link": "else", "again": "else/deep", "loop": "own", "up": "."}
    for name, target in links.items(): (tmp_path / "own" / name).symlink_to(tmp_path / target)
    assert sorted(f.name for f in ImageFolder(tmp_path / "own", 4).files) == ["a.png", "b.png"]


def test_rarer_names_of_the_same_formats_are_read(tmp_path):
    endings = ".jfif .jpe .JIF .jfi .pjpeg .pjp .dib .apng .mpo .JPEG .Gif".split()
    for ending in endings: picture(tmp_path / f"a{ending}")
    images = ImageFolder(tmp_path, 4)
    assert len(images) == len(endings) and all(x.shape == (3, 4, 4) for x in images)


def test_pictures_that_are_left_out_are_counted_and_one_is_named(tmp_path):
    for name in ("a.heic", "b.AVIF"): (tmp_path / name).write_bytes(b"?")
    named = "2 of other kinds, such as .*a.heic"
    with pytest.raises(ValueError, match=f"no images.*{named}"): ImageFolder(tmp_path)
    picture(tmp_path / "c.png")
    with pytest.warns(UserWarning, match=f"{named}, are left out"): images = ImageFolder(tmp_path)
    assert len(images) == 1


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, mnist):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    picture(tmp_path / "pictures" / "a.png")
    assert len(ImageFolder("~/pictures", 4)) == len(open_data("~/pictures", 4)) == 1
    assert len(torchvision_dataset("MNIST", "~", download=False)) == 3


def test_the_survey_of_the_lesson_agrees_with_the_folder(tmp_path):
    path = Path(__file__).parent.parent / "nbs/tutorials/05_your_own_images.ipynb"
    lesson = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    code, = (text for text in lesson if "def survey" in text)
    exec(code, names := {"ImageFolder": ImageFolder, "Image": Image, "torch": torch})
    for name in ("own/a.png", "own/.git/b.png", "else/c.jfif"): picture(tmp_path / name)
    (tmp_path / "own" / "link").symlink_to(tmp_path / "else")
    for name in ("fake.jpg", "d.heic", "._a.png"): (tmp_path / "own" / name).write_bytes(b"?")
    Image.fromarray(np.full((3, 3), 7, np.float32)).save(tmp_path / "own" / "float.tif")
    with pytest.warns(UserWarning, match="1 of other kinds, such as .*d.heic"):
        sizes, broken = names["survey"](tmp_path / "own")
    assert sizes.tolist() == [[4, 4], [4, 4]] and len(broken) == 2
    assert "fake.jpg is no picture" in broken[0]
    assert "float.tif is no picture" in broken[1] and "[0, 1]" in broken[1]


# Keeps its promises: sets of torchvision

@pytest.fixture
def mnist(tmp_path):
    """A folder with MNIST's layout: three training images, two test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    def write(name, values, *shape):
        head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (raw / name).write_bytes(head + bytes(values))
    for part, n in (("train", 3), ("t10k", 2)):
        pixels = [255 * (i // 784 % 2) for i in range(784 * n)]
        write(f"{part}-images-idx3-ubyte", pixels, n, 28, 28)
        write(f"{part}-labels-idx1-ubyte", range(n), n)
    return tmp_path


@pytest.mark.parametrize("download, train, n", ((False, True, 3), (True, False, 2)))
def test_torchvision_data_is_read_from_files_that_are_there(mnist, download, train, n):
    images = torchvision_dataset("MNIST", str(mnist), train=train, download=download)
    assert [label for _, label in images] == list(range(n))
    for i, (image, _) in enumerate(images):
        assert torch.equal(image, torch.full((1, 28, 28), 2. * (i % 2) - 1))
    assert torch.equal(pickle.loads(pickle.dumps(images))[0][0], images[0][0])
    small = torchvision_dataset("MNIST", str(mnist), train=train, download=download, size=8)
    assert small[0][0].shape == (1, 8, 8)


def fake(monkeypatch, name, splits=None):
    """Put a class with the arguments of the true one in its place, and note what it is given"""
    from torchvision import datasets
    seen, signature = {}, inspect.signature(getattr(datasets, name).__init__)
    def init(self, *args, **kwargs):
        seen.update(signature.bind(self, *args, **kwargs).arguments)
        del seen["self"]
        if splits and seen["split"] not in splits: raise ValueError(f"no split {seen['split']}")
    init.__signature__ = signature
    monkeypatch.setattr(datasets, name, type(name, (), {"__init__": init}))
    return seen


@pytest.mark.parametrize("name, training, test", (
    ("CIFAR10", {"train": True}, {"train": False}),
    ("SVHN", {"split": "train"}, {"split": "test"}),
    ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    ("Omniglot", {"background": True}, {"background": False}),
    ("Places365", {"split": "train-standard"}, {"split": "val"})))
def test_each_set_of_torchvision_gets_the_arguments_it_takes(
        monkeypatch, tmp_path, name, training, test):
    seen = fake(monkeypatch, name, ["train-standard", "val"] if name == "Places365" else None)
    for part, wanted in ((True, training), (False, test)):
        torchvision_dataset(name, str(tmp_path), train=part)
        assert seen["root"] == str(tmp_path) and seen["download"] is True
        assert {k: seen[k] for k in wanted} == wanted


def test_download_is_asked_for_only_where_it_can_be(monkeypatch, tmp_path):
    seen = fake(monkeypatch, "FER2013")
    torchvision_dataset("FER2013", str(tmp_path))
    assert "download" not in seen and seen["split"] == "train"


def test_arguments_that_a_class_hands_to_its_parent_are_known(tmp_path, monkeypatch):
    from torchvision import datasets
    seen = {}
    def init(self, root, train=True, transform=None, target_transform=None, download=False):
        seen.update(train=train, download=download)
    monkeypatch.setattr(datasets.MNIST, "__init__", init)
    for options, split in (({}, "balanced"), ({"split": "letters"}, "letters")):
        data = torchvision_dataset("EMNIST", str(tmp_path), train=False, **options)
        assert data.split == split and seen == {"train": False, "download": True}


def test_files_that_are_there_already_are_not_downloaded_again(monkeypatch):
    from torchvision import datasets
    class Stubborn:
        def __init__(self, root, split="train-standard", download=False, transform=None):
            if download: raise RuntimeError("The directory x already exists")
    monkeypatch.setattr(datasets, "Places365", Stubborn)
    assert isinstance(torchvision_dataset("Places365"), Stubborn)


def test_pictures_of_torchvision_go_through_the_same_reader():
    x, y = torchvision_dataset("FakeData", size=16, image_size=(3, 40, 60))[0]
    assert x.shape == (3, 16, 16) and -1 <= x.min() and x.max() <= 1 and type(y) is int


def test_labels_of_torchvision_are_whole_numbers(monkeypatch):
    seen = fake(monkeypatch, "SVHN")
    torchvision_dataset("SVHN")
    label = seen["target_transform"]
    assert [label(y) for y in (3, np.int64(3), torch.tensor(3))] == [3, 3, 3]
    for wrong in ({"boxes": []}, "a caption", [1, 2], 0.5):
        with pytest.raises(ValueError, match=f"no classes.*{type(wrong).__name__}"): label(wrong)


# Keeps its promises: names

def test_a_name_or_a_folder_says_which_data(tmp_path):
    picture(tmp_path / "a.png")
    assert describe(open_data("digits")) == {
        "shape": [1, 8, 8], "num_classes": 10, "sigma_data": pytest.approx(0.752, abs=1e-3)}
    assert describe(open_data(str(tmp_path), 8)) == {
        "shape": [3, 8, 8], "num_classes": None, "sigma_data": pytest.approx(0.94, abs=0.02)}
    train, test = open_data("avatars"), open_data("avatars", 16, train=False)
    assert train[0][0].shape == (3, 16, 16) and (len(train), len(test)) == (20_000, 4_000)


def test_files_that_are_missing_are_fetched(monkeypatch):
    for missing in (RuntimeError("not found. You can use download=True"), FileNotFoundError("bz2")):
        asked = []
        def dataset(name, root, train=True, download=True, size=None, asked=asked, missing=missing):
            asked.append(download)
            if not download: raise missing
            return Items((torch.zeros(1, 8, 8), 0), (torch.zeros(1, 8, 8), 1))
        monkeypatch.setattr(TORCHVISION, dataset)
        assert len(open_data("USPS")) == 2 and asked == [False, True]


def test_memory_holds_the_same_data(tmp_path):
    for i in range(3): picture(tmp_path / f"{i}.png", (90 * i, 0, 0))
    data = ImageFolder(tmp_path, 16)
    held = in_memory(data)
    assert isinstance(held, TensorDataset) and len(held) == 3
    assert all(torch.equal(held[i][0], data[i]) for i in range(3))
    assert in_memory(data, limit=10) is data


def test_classes_of_any_whole_type_are_counted():
    x = gaussian(3, 1, 8, 8)
    for labels in ((0, 4, 1), torch.tensor([0, 4, 1]), np.array([0, 4, 1], np.uint8)):
        data = Items(*zip(x, labels))
        assert describe(data)["num_classes"] == describe(in_memory(data))["num_classes"] == 5


# Keeps its promises: sigma_data

def test_sigma_data_of_half_types_is_computed_in_full():
    x = gaussian(100_000).bfloat16()
    assert measure_sigma_data(x) == pytest.approx(x.double().std().item(), rel=5e-6)


def test_sigma_data_reads_samples_spread_over_the_whole_dataset():
    read = []
    class Noted(Items):
        def __getitem__(self, i):
            read.append(i)
            return torch.tensor([float(i)])
    measure_sigma_data(Noted(*range(1000)), samples=5)
    assert len(read) == len(set(read)) == 5 and read[0] == 0 and read[-1] == 999


def test_sigma_data_does_not_depend_on_the_number_of_threads():
    x, threads, found = gaussian(100_000), torch.get_num_threads(), []
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            found.append(measure_sigma_data(x))
    finally: torch.set_num_threads(threads)
    assert found[0] == found[1]


# Refuses

@MAKERS
def test_a_bad_number_of_samples_is_refused(make):
    for bad, error in ((0, ValueError), (2.5, TypeError), (True, TypeError), ("9", TypeError)):
        with pytest.raises(error, match="^n must"): make(bad)


def test_bad_sizes_are_named(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="size must be at least 1"): ImageFolder(tmp_path, 0)
    with pytest.raises(ValueError, match="channels must be 1 or 3"): ImageFolder(tmp_path, 8, 2)
    with pytest.raises(ValueError, match="8 by 8"): open_data("digits", 16)
    with pytest.raises(ValueError, match="16 by 16"): open_data("avatars", 8)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images \(.apng, .*found in"): ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="no images found: there is no folder .*missing"):
        ImageFolder(tmp_path / "missing")
    with pytest.raises(ValueError, match="there is no folder ./missing"): open_data("./missing")


def test_a_file_that_is_gone_is_named(tmp_path):
    picture(tmp_path / "a.png")
    images = ImageFolder(tmp_path, 4)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="there is no picture .*a.png"): images[0]


@pytest.mark.parametrize("name, match", (
    ("Nonsense", "no 'Nonsense'"), ("CocoDetection", "needs annFile"),
    ("HMDB51", "annotation_path"), ("Sintel", "no transform")))
def test_sets_that_are_no_pictures_with_classes_are_refused(name, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        torchvision_dataset(name, str(tmp_path), download=False)


def test_sets_without_a_test_part_say_so(tmp_path):
    with pytest.raises(ValueError, match="SEMEION of torchvision has no test part"):
        torchvision_dataset("SEMEION", str(tmp_path), train=False)


@pytest.mark.parametrize("error, raised", (
    (RuntimeError("h5py is not found"), ValueError), (PermissionError("data"), PermissionError),
    (ImportError("scipy"), ImportError), (zipfile.BadZipFile("no zip file"), ValueError),
    (MemoryError("too much"), MemoryError)))
def test_other_errors_are_not_taken_for_missing_files(monkeypatch, error, raised):
    asked = []
    def dataset(name, root, train=True, download=True, size=None):
        asked.append(download)
        raise error
    monkeypatch.setattr(TORCHVISION, dataset)
    with pytest.raises(raised, match=str(error)): open_data("PCAM")
    assert asked == [False]


@pytest.mark.parametrize("error, raised, match", (
    (RuntimeError("archive not present"), ValueError, "ImageNet: archive not present"),
    (EOFError(), ValueError, "ImageNet: EOFError"),
    (URLError("no network"), OSError, "no network")))
def test_a_set_that_cannot_be_fetched_is_named(monkeypatch, error, raised, match):
    def dataset(name, root, train=True, download=True, size=None):
        raise error if download else RuntimeError("not found; use download=True")
    monkeypatch.setattr(TORCHVISION, dataset)
    with pytest.raises(raised, match=match): open_data("ImageNet")


def test_damaged_items_of_torchvision_are_named(monkeypatch):
    class Damaged(Items):
        def __getitem__(self, i): raise SyntaxError("broken PNG file")
    monkeypatch.setattr(TORCHVISION, lambda *_, **__: Damaged(0, 1))
    with pytest.raises(ValueError, match="Flowers102: broken PNG file"): open_data("Flowers102")


IMAGE = torch.zeros(1, 8, 8)


@pytest.mark.parametrize("items, match", (
    ([(IMAGE, "cat")], "classes must be whole numbers 0, 1, 2, ..., but item 0 has 'cat'"),
    ([(IMAGE, 0), (IMAGE, 1.5)], "item 1 has 1.5"), ([(IMAGE, 0), (IMAGE, -1)], "item 1 has -1"),
    ([(IMAGE, torch.ones(40))], "item 0 has tensor"), ([(IMAGE, 0, 0)], "item 0 is of type tuple"),
    ([{"image": IMAGE, "label": 0}], "item 0 is of type dict"), ([], "the data set is empty")))
def test_items_that_cannot_be_used_are_named(items, match):
    for read in (in_memory, describe):
        with pytest.raises(ValueError, match=re.escape(match)): read(Items(*items))


def test_items_in_memory_are_alike():
    for other in ((IMAGE,), (torch.zeros(3, 8, 8), 1)):
        with pytest.raises(ValueError, match="item 1 has shape"):
            in_memory(Items((IMAGE, 0), other))


def test_tensors_of_classes_are_whole_numbers_too():
    for labels in (torch.tensor([0.5, 1.]), torch.tensor([0, -1]), torch.tensor([[0, 1], [1, 0]])):
        with pytest.raises(ValueError, match="classes must be whole numbers"):
            describe(TensorDataset(gaussian(2, 1, 8, 8), labels))


def test_images_are_floating_and_have_three_axes():
    for image in (torch.zeros(64), IMAGE.byte()):
        with pytest.raises(ValueError, match="images must be floating"):
            describe(Items(image, image))


def test_sigma_data_refuses_too_little_data_and_what_is_not_finite():
    for data in (torch.zeros(0), torch.zeros(1), [], [torch.zeros(1)]):
        with pytest.raises(ValueError, match="data must hold at least two"):
            measure_sigma_data(data)
    for value in (torch.nan, torch.inf):
        x = torch.zeros(9, 2).index_fill(0, torch.tensor(4), value)
        for data in (x, list(x)):
            with pytest.raises(ValueError, match="finite"): measure_sigma_data(data)


@pytest.mark.parametrize("data, error, match", (
    ([{"image": torch.zeros(2)}], TypeError, "item 0 is of type dict"),
    ([torch.zeros(2), torch.zeros(3)], ValueError, "one shape, but item 1"),
    (iter([1]), TypeError, "length"), (torch.zeros(4, dtype=torch.uint8), TypeError, "floating")))
def test_sigma_data_says_what_it_cannot_measure(data, error, match):
    with pytest.raises(error, match=match): measure_sigma_data(data)
