"""The bundled networks, the data sets, and the metrics."""

import inspect
import io
import json
import math
import pickle
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn

from consistency_models import (
    Classifier,
    ImageFolder,
    Precondition,
    colour_shapes,
    eight_gaussians,
    frechet_distance,
    load_digits,
    measure_sigma_data,
    read_image,
    recognition_rate,
    spiral,
    torchvision_dataset,
    train_classifier,
    two_moons,
)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


# Parameterization

@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_precondition_calls_its_network_with_scaled_inputs(dtype):
    class Inner(nn.Module):
        def forward(self, x, c_noise, scale):
            self.seen = x, c_noise
            return scale * x
    inner = Inner()
    x, sigma = torch.randn(4, 3, 2, generator=seeded()).to(dtype), torch.tensor([0.002, 0.5, 3., 80.]).to(dtype)
    y = Precondition(inner, sigma_data=0.7)(x, sigma, scale=2.)
    s = sigma.double()
    expected = x.double() / (s**2 + 0.49).sqrt()[:, None, None], s.log() / 4
    for seen, value in zip(inner.seen, expected, strict=True):
        assert seen.dtype == dtype
        torch.testing.assert_close(seen, value.to(dtype))
    assert torch.equal(y, 2 * inner.seen[0])


def test_precondition_is_a_module_that_holds_its_network():
    wrapped = Precondition(nn.Bilinear(3, 1, 3))
    assert {name for name, _ in wrapped.named_parameters()} == {"net.weight", "net.bias"}


# Points

POINTS = {"two_moons": two_moons, "spiral": spiral, "eight_gaussians": lambda *a, **k: eight_gaussians(*a, **k)[0]}


@pytest.mark.parametrize("name", POINTS)
def test_points_are_reproducible_and_in_range(name):
    make, before = POINTS[name], torch.get_rng_state()
    a, b, c = (make(500, generator=seeded(s)) for s in (1, 1, 2))
    assert a.shape == (500, 2) and a.dtype == torch.float32
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() < 1.3 and a.std(0).min() > 0.2
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", POINTS)
def test_points_without_jitter_lie_in_the_unit_square(name):
    assert POINTS[name](2000, noise=0., generator=seeded()).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("n", (1, 2, 3))
def test_few_points_can_be_drawn(name, n): assert POINTS[name](n).shape == (n, 2)


def test_two_moons_lie_on_two_half_circles():
    points = two_moons(400, noise=0., generator=seeded()) * 1.5
    for i, side in enumerate((-1., 1.)):
        centre = torch.tensor([-side / 2, side / 4])
        torch.testing.assert_close((points[i::2] - centre).norm(dim=1), torch.ones(200))
        assert (side * (points[i::2, 1] - centre[1]) <= 1e-6).all()


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


@pytest.mark.parametrize("make", (two_moons, spiral, eight_gaussians, colour_shapes))
@pytest.mark.parametrize("bad, error", (
    (0, ValueError), (-5, ValueError), (2.5, TypeError), (True, TypeError), ("9", TypeError), (None, TypeError)))
def test_a_bad_number_of_samples_is_refused(make, bad, error):
    with pytest.raises(error, match="^n must"): make(bad)


@pytest.mark.parametrize("make", (two_moons, spiral, eight_gaussians, colour_shapes))
def test_a_whole_float_is_a_number_of_samples_everywhere(make):
    result = make(6.)
    assert len(result[0] if isinstance(result, tuple) else result) == 6


# Images

def test_digits():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert labels.shape == (1797,) and labels.dtype == torch.long and labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("size", (4, 16, 33))
def test_colour_shapes_are_reproducible_and_in_range(size):
    (a, labels), (b, again), (c, _) = (colour_shapes(60, size, generator=seeded(s)) for s in (1, 1, 2))
    assert a.shape == (60, 3, size, size) and a.dtype == torch.float32
    assert torch.equal(a, b) and torch.equal(labels, again) and not torch.equal(a, c)
    assert a.abs().max() <= 1 + 1e-6 and a.std() > 0.3
    assert labels.shape == (60,) and labels.unique().tolist() == [0, 1, 2]


def test_a_shape_has_one_colour_on_one_ground():
    images, _ = colour_shapes(30, 32, generator=seeded())
    for image in images:
        pixels, (ink, paper) = image.flatten(1).T, (image[:, 16, 16], image[:, 0, 0])
        close = [(pixels - colour).abs().amax(1) < 1e-5 for colour in (ink, paper)]
        assert (close[0] | close[1]).float().mean() > 0.75


@pytest.mark.parametrize("bad, error", (
    (0, ValueError), (3, ValueError), (2.5, TypeError), ("8", TypeError), (None, TypeError)))
def test_colour_shapes_refuse_a_bad_size(bad, error):
    with pytest.raises(error, match="size"): colour_shapes(2, bad)


@pytest.fixture
def folder(tmp_path):
    """A colour image, a grey one, a transparent one and a palette image, two of them in subfolders, and a text."""
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    Image.new("RGB", (20, 12), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (12, 20), 255).save(tmp_path / "b.PNG")
    Image.new("RGBA", (9, 9), (0, 255, 0, 128)).save(tmp_path / "inner" / "c.png")
    Image.new("P", (8, 8)).save(tmp_path / "inner" / "deep" / "d.gif")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("size", (8, 15))
def test_image_folder_reads_every_kind_of_image(folder, channels, size):
    images = ImageFolder(folder, size, channels)
    assert len(images) == 4
    for image in images:
        assert image.shape == (channels, size, size) and image.dtype == torch.float32
        assert -1 <= image.min() and image.max() <= 1


def test_image_folder_keeps_colours(folder):
    red, white, green, _ = ImageFolder(str(folder), 8)
    for image, colour in ((red, (1., -1., -1.)), (white, (1., 1., 1.)), (green, (-1 / 255, 1., -1 / 255))):      # half green on white
        torch.testing.assert_close(image, torch.tensor(colour).reshape(3, 1, 1).expand(3, 8, 8))


def test_image_folder_takes_the_middle_of_oblong_images(tmp_path):
    image = Image.new("RGB", (24, 8), (0, 0, 0))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    image.save(tmp_path / "a.png")
    assert torch.equal(ImageFolder(tmp_path, 8)[0], torch.ones(3, 8, 8))


def test_image_folder_refuses_an_empty_or_missing_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images"): ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="no images"): ImageFolder(tmp_path / "missing")


@pytest.mark.parametrize("options, error", (
    ({"size": 0}, ValueError), ({"size": 2.5}, TypeError), ({"size": None}, TypeError), ({"channels": 2}, ValueError),
    ({"channels": 4}, ValueError)))
def test_image_folder_refuses_bad_options(folder, options, error):
    with pytest.raises(error, match=next(iter(options))): ImageFolder(folder, **options)


def test_photos_stand_upright_and_16_bits_keep_their_greys(tmp_path):
    photo = np.zeros((8, 8, 3), np.uint8)
    photo[:, :4] = 255                              # white at the left, to be turned clockwise: white above
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "b.png")
    for upright, ramp in ((ImageFolder(tmp_path, 8)[i][:1] for i in (0, 1)), (read_image(tmp_path / n, 1, 8, 8) for n in ("a.png", "b.png"))):
        assert upright[0, 0].min() == 1 and upright[0, -1].max() == -1
        assert (ramp.flatten() - torch.linspace(-1, 1, 64)).abs().max() < 0.02


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (lambda: ImageFolder(tmp_path, 8)[0], lambda: read_image(tmp_path / "a.png", 1, 8, 8)):
        with pytest.raises(ValueError, match="too large"): read()


# Every way a picture can reach us: a folder, a file, the content of a file

RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))
BYTES, WORDS = (255 * RAMP).astype(np.uint8), (65535 * RAMP).astype(np.uint16)
GREY, HALF = Image.fromarray(BYTES), Image.fromarray(np.where(np.arange(16) < 8, 0, 255).astype(np.uint8)[None].repeat(16, 0))
COLOUR = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT), Image.new("L", (16, 16), 255)))


def read_every_way(path):
    """The picture as the three readers give it, which must agree"""
    ways = ImageFolder(path.parent, 16)[0], read_image(path, 3, 16, 16), read_image(path.read_bytes(), 3, 16, 16)
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])
    return ways[0]


def refused_every_way(path, match):
    """Each reader says what is wrong; those that know the file name it"""
    for read in (lambda: ImageFolder(path.parent, 16)[0], lambda: read_image(path, 3, 16, 16)):
        with pytest.raises(ValueError, match=f"{path.name} .*{match}"): read()
    with pytest.raises(ValueError, match=match): read_image(path.read_bytes(), 3, 16, 16)


def words(mode="I;16B"): return Image.frombytes(mode, (16, 16), WORDS.astype(">u2").tobytes())


@pytest.mark.parametrize("name, picture, options", (
    ("float.tif", Image.fromarray(RAMP.astype(np.float32)), {}), ("words.png", Image.fromarray(WORDS), {}), ("words.tif", Image.fromarray(WORDS), {}),
    ("big.tif", words(), {}), ("grey.png", GREY, {}), ("grey.jpg", GREY, {"quality": 100}), ("palette.png", GREY.convert("P"), {}), ("palette.gif", GREY.convert("P"), {})))
def test_grey_of_every_type_keeps_its_values(tmp_path, name, picture, options):
    picture.save(tmp_path / name, **options)
    assert (read_every_way(tmp_path / name) - torch.from_numpy(2 * RAMP - 1)).abs().max() < 0.02


@pytest.mark.parametrize("name, mode", (("a.tif", "CMYK"), ("a.jpg", "CMYK"), ("a.jpg", "YCbCr"), ("a.png", "RGB"), ("a.webp", "RGB"), ("a.tif", "RGBX")))
def test_colour_of_every_type_keeps_its_values(tmp_path, name, mode):
    COLOUR.convert(mode).save(tmp_path / name, **({"quality": 100} if name != "a.tif" else {}))
    wanted = torch.from_numpy(np.array(COLOUR)).permute(2, 0, 1) / 127.5 - 1
    assert (read_every_way(tmp_path / name) - wanted).abs().mean() < 0.04


def test_black_and_white_stays_black_and_white(tmp_path):
    HALF.convert("1").save(tmp_path / "a.png")
    assert torch.equal(read_every_way(tmp_path / "a.png")[0, 0], torch.tensor([-1.] * 8 + [1.] * 8))


def lab():
    return ImageCms.profileToProfile(COLOUR, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")


@pytest.mark.parametrize("picture, match", (
    (Image.fromarray((255 * RAMP).astype(np.float32)), r"lie in \[0, 1\]"), (Image.fromarray((RAMP - 0.5).astype(np.float32)), r"lie in \[0, 1\]"),
    (Image.fromarray((RAMP * np.nan).astype(np.float32)), r"lie in \[0, 1\]"), (Image.fromarray(WORDS.astype(np.int32)), "mode I"), (lab(), "LAB")))
def test_values_whose_range_is_not_known_are_refused(tmp_path, picture, match):
    picture.save(tmp_path / "a.tif")
    refused_every_way(tmp_path / "a.tif", match)


def tiff_of_12_bits():
    """Four pixels: black, white, grey, black"""
    row = int("".join(f"{v:012b}" for v in (0, 4095, 2048, 0)), 2).to_bytes(6, "big")
    tags = (256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)
    return b"II*\0" + struct.pack("<I", 14) + row + struct.pack("<H", 9) + b"".join(struct.pack("<HHIHH", t, 3, 1, v, 0) for t, v in tags) + bytes(4)


def test_twelve_bits_are_not_taken_for_sixteen():
    assert read_image(tiff_of_12_bits(), 1, 1, 4).flatten().tolist() == pytest.approx([-1, 1, 0, -1], abs=0.01)


def png_of_16_bits(values, kind, transparent=None):
    """A PNG of 16 bits a value; kind 2 is colour, perhaps with one that is transparent, 4 grey with alpha, 6 colour with alpha"""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    seen_through = chunk(b"tRNS", struct.pack(">3H", *transparent)) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + seen_through + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("hidden", [(1000, 40000, 65535), (200, 100, 50), (0, 0, 65280), (65535, 65535, 0)])
def test_one_transparent_colour_of_16_bits_is_white(hidden):
    picture = png_of_16_bits(np.array([[(0, 20000, 0), hidden, (30000, 0, 30000)]]), 2, hidden)
    expected = torch.tensor([[0, 20000 >> 8, 0], [255, 255, 255], [30000 >> 8, 0, 30000 >> 8]]).T[:, None] / 127.5 - 1
    assert torch.allclose(read_image(picture, 3, 1, 3), expected, atol=0.01)


def hidden_black():
    """Pictures that are black, and transparent in the left half"""
    black, alpha = Image.new("L", (16, 16), 0), HALF
    pictures = {"a.png": Image.merge("LA", (black, alpha)), "b.png": Image.merge("RGBA", (black, black, black, alpha)), "c.tif": Image.merge("RGBA", (black, black, black, alpha)),
                "d.webp": Image.merge("RGBA", (black, black, black, alpha)), "e.png": Image.merge("RGBA", (black, black, black, alpha)).convert("P")}
    files = {}
    for name, picture in pictures.items():
        file = io.BytesIO()
        picture.save(file, {"png": "PNG", "tif": "TIFF", "webp": "WEBP"}[name[2:]], **({"lossless": True, "exact": True} if "webp" in name else {}))
        files[name] = file.getvalue()
    for name, mode, see_through in (("f.png", "P", 0), ("g.png", "L", 0), ("h.png", "RGB", (0, 0, 0)), ("i.gif", "P", 0), ("j.png", "P", b"\0")):
        dark = Image.new("L", (16, 16), 0)
        dark.paste(1, (8, 0, 16, 16))                       # nearly black where it shall be seen
        picture = dark.convert("RGB") if mode == "RGB" else dark
        if mode == "P": picture.putpalette([0, 0, 0, 1, 1, 1] + [0] * 762)
        file = io.BytesIO()
        picture.save(file, name[2:].upper(), transparency=see_through)
        files[name] = file.getvalue()
    alpha = np.where(np.arange(16) < 8, 0, 65535)[None].repeat(16, 0)
    files["k.png"] = png_of_16_bits(np.stack([alpha * 0, alpha], 2), 4)
    files["l.png"] = png_of_16_bits(np.stack([alpha * 0, alpha * 0, alpha * 0, alpha], 2), 6)
    return files


@pytest.mark.parametrize("name", hidden_black())
def test_transparent_parts_are_white(tmp_path, name):
    (tmp_path / name).write_bytes(hidden_black()[name])
    picture = read_every_way(tmp_path / name)
    assert (picture[..., :8] == 1).all() and (picture[..., 8:] < -0.98).all()


def test_transparent_parts_take_the_background_that_is_asked_for():
    assert (read_image(hidden_black()["b.png"], 1, 16, 16, background="black") == -1).all()


@pytest.mark.parametrize("kind", ("PNG", "JPEG", "WEBP"))
@pytest.mark.parametrize("exif", (b"Exif\0\0junkjunkjunk", b"Exif\0\0", b"junk", b"Exif\0\0II*\0\xff\xff\xff\xff",
                                  b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0"))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path, kind, exif):
    path = tmp_path / f"a.{kind.lower()}"
    COLOUR.save(path, kind, exif=exif)
    assert (read_every_way(path) - torch.from_numpy(np.array(COLOUR)).permute(2, 0, 1) / 127.5 + 1).abs().mean() < 0.1


@pytest.mark.parametrize("kind", ("PNG", "JPEG", "WEBP", "TIFF"))
@pytest.mark.parametrize("turn, dark", ((1, "left"), (2, "right"), (3, "right"), (5, "top"), (6, "top"), (8, "bottom")))
def test_pictures_of_every_format_stand_upright(tmp_path, kind, turn, dark):
    exif = Image.Exif()
    exif[274] = turn
    path = tmp_path / f"a.{kind.lower()}"
    HALF.convert("RGB").save(path, kind, **({"tiffinfo": {274: turn}} if kind == "TIFF" else {"exif": exif}))
    x = read_every_way(path)
    side = {"left": x[..., :7], "right": x[..., 9:], "top": x[:, :7], "bottom": x[:, 9:]}[dark]
    assert side.max() < -0.9 and x.max() > 0.9


def damaged(kind):
    """A picture whose end is missing"""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()[:len(file.getvalue()) // 2]


@pytest.mark.parametrize("content, match", [(damaged(kind), "no picture that can be read") for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")]
                         + [(b"", "none of BMP, GIF"), (b"no picture", "none of BMP, GIF"), (b"%PDF-1.4", "none of BMP, GIF")])
def test_a_damaged_picture_is_named(tmp_path, content, match):
    (tmp_path / "a b.png").write_bytes(content)
    refused_every_way(tmp_path / "a b.png", match)


def test_a_picture_as_long_as_a_scroll_is_read_at_once(tmp_path):
    Image.new("RGB", (1, 20_000), (255, 0, 0)).save(tmp_path / "a.png")
    start = time.perf_counter()
    x = ImageFolder(tmp_path, 64)[0], read_image(tmp_path / "a.png", 3, 64, 64), read_image(tmp_path / "a.png", 3, 2, 64)
    assert time.perf_counter() - start < 2 and all((image[0] == 1).all() and (image[1:] == -1).all() for image in x)


@pytest.mark.parametrize("width, height", ((48, 48), (60, 40), (40, 61), (333, 250), (20, 30)))
def test_pictures_are_scaled_as_torchvision_scales_them(tmp_path, width, height):
    from torchvision.transforms import v2
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    theirs = v2.Compose([v2.Resize(24, antialias=True), v2.CenterCrop(24), v2.ToImage()])(smooth).float() / 127.5 - 1
    assert (read_image(tmp_path / "a.png", 3, 24, 24) - theirs).abs().mean() < 0.06      # where their crop falls between pixels


def test_a_picture_is_cut_to_the_shape_and_not_stretched():
    file, disc = io.BytesIO(), Image.new("L", (90, 30), 0)
    disc.paste(255, (30, 0, 60, 30))
    disc.save(file, "PNG")
    assert (read_image(file.getvalue(), 1, 8, 8) > 0.7).all() and (read_image(file.getvalue(), 1, 8, 24) > 0).float().mean().item() == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("wrap", (bytes, bytearray, memoryview))
def test_the_content_of_a_file_is_read_like_the_file(tmp_path, wrap):
    COLOUR.save(tmp_path / "a.png")
    assert torch.equal(read_image(wrap((tmp_path / "a.png").read_bytes()), 3, 8, 8), read_image(str(tmp_path / "a.png"), 3, 8, 8))


@pytest.mark.parametrize("arguments, error, name", (
    ((None, 3, 8, 8), TypeError, "source"), ((7, 3, 8, 8), TypeError, "source"), ((b"", 3, 0, 8), ValueError, "height"), ((b"", 3, 8, 2.5), TypeError, "width"),
    (("nothing.png", 3, 8, 8), ValueError, "no picture nothing.png"), ((".", 3, 8, 8), ValueError, "no picture")))
def test_bad_arguments_of_read_image_are_named(arguments, error, name):
    with pytest.raises(error, match=name): read_image(*arguments)


# Which files of a folder are read

def picture(path, colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".gif": "GIF", ".dib": "BMP", ".png": "PNG", ".apng": "PNG"}.get(path.suffix.lower(), "JPEG")
    Image.new("RGB", (4, 4), colour).save(path, kind)


def test_hidden_files_and_folders_of_systems_are_skipped(tmp_path):
    for name in ("a.png", "sub/B.JPG", "日本/ü ä.png", "x.png/inside.png"): picture(tmp_path / name)
    for name in (".ipynb_checkpoints/a-checkpoint.png", ".hidden.png", "sub/.git/a.png", "__MACOSX/a.png", "@eaDir/a.png"): picture(tmp_path / name)
    for name in ("._a.jpg", "sub/._B.JPG", ".DS_Store", "Thumbs.db"): (tmp_path / name).write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = ImageFolder(tmp_path, 4)
    assert [f.relative_to(tmp_path).as_posix() for f in images.files] == ["a.png", "sub/B.JPG", "x.png/inside.png", "日本/ü ä.png"]
    assert all(x.shape == (3, 4, 4) for x in images)


def test_linked_folders_are_followed_once(tmp_path):
    picture(tmp_path / "else" / "deep" / "b.png")
    picture(tmp_path / "own" / "a.png")
    for name, target in (("link", "else"), ("again", "else/deep"), ("loop", "own"), ("up", ".")): (tmp_path / "own" / name).symlink_to(tmp_path / target)
    assert sorted(f.name for f in ImageFolder(tmp_path / "own", 4).files) == ["a.png", "b.png"]


@pytest.mark.parametrize("suffix", (".jfif", ".jpe", ".JIF", ".jfi", ".pjpeg", ".pjp", ".dib", ".apng", ".mpo", ".JPEG", ".Gif"))
def test_rarer_names_of_the_same_formats_are_read(tmp_path, suffix):
    picture(tmp_path / "a.png")
    picture(tmp_path / f"b{suffix}")
    assert len(ImageFolder(tmp_path, 4)) == 2 and ImageFolder(tmp_path, 4)[1].shape == (3, 4, 4)


@pytest.mark.parametrize("suffix", (".heic", ".AVIF", ".svg", ".psd", ".raw", ".CR2", ".jp2", ".jxl", ".tga", ".ppm", ".dng",
                                    ".avifs", ".rgb", ".rgba", ".bw", ".fit", ".pcd", ".wbmp"))
def test_pictures_that_are_left_out_are_counted_and_one_is_named(tmp_path, suffix):
    for name in ("b", "a"): (tmp_path / f"{name}{suffix}").write_bytes(b"?")
    with pytest.raises(ValueError, match=f"no images.*2 of other kinds, such as .*a{suffix}"): ImageFolder(tmp_path)
    picture(tmp_path / "c.png")
    with pytest.warns(UserWarning, match=f"2 of other kinds, such as .*a{suffix}, are left out"): assert len(ImageFolder(tmp_path)) == 1


def test_pictures_that_pillow_knows_are_read_or_counted():
    """All but documents, films and tables of numbers"""
    from PIL import Image

    from consistency_models.data import _KINDS, _OTHERS
    Image.init()
    assert Image.registered_extensions().keys() - _KINDS.keys() - _OTHERS <= {".pdf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".iim"} and not _KINDS.keys() & _OTHERS


def test_the_survey_of_the_lesson_agrees_with_the_folder(tmp_path):
    lesson = json.loads((Path(__file__).parent.parent / "nbs/tutorials/05_your_own_images.ipynb").read_text(encoding="utf-8"))
    code, = ("".join(cell["source"]) for cell in lesson["cells"] if "def survey" in "".join(cell["source"]))
    exec(code, names := {"ImageFolder": ImageFolder, "Image": Image, "torch": torch})
    for name in ("own/a.png", "own/.hidden.png", "own/.git/b.png", "else/c.jfif"): picture(tmp_path / name)
    (tmp_path / "own" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "own" / "notes.txt").write_text("no picture")
    (tmp_path / "own" / "._a.png").write_bytes(b"?")
    for name in ("fake.jpg", "d.heic"): (tmp_path / "own" / name).write_bytes(b"?")
    Image.fromarray(np.full((3, 3), 7, np.float32)).save(tmp_path / "own" / "float.tif")
    with pytest.warns(UserWarning, match="1 of other kinds, such as .*d.heic"): sizes, broken = names["survey"](tmp_path / "own")
    assert sizes.tolist() == [[4, 4], [4, 4]]
    assert len(broken) == 2 and "fake.jpg is no picture" in broken[0] and "float.tif is no picture" in broken[1] and "[0, 1]" in broken[1]


def test_grey_and_colour_may_be_mixed_and_one_picture_is_a_folder(tmp_path):
    GREY.save(tmp_path / "a.png")
    assert len(ImageFolder(tmp_path, 8)) == 1
    COLOUR.save(tmp_path / "b.png")
    assert torch.stack(list(ImageFolder(tmp_path, 8))).shape == (2, 3, 8, 8) and torch.stack(list(ImageFolder(tmp_path, 8, 1))).shape == (2, 1, 8, 8)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, mnist):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    picture(tmp_path / "pictures" / "a.png")
    assert len(ImageFolder("~/pictures", 4)) == 1 and read_image("~/pictures/a.png", 3, 4, 4).shape == (3, 4, 4)
    assert len(torchvision_dataset("MNIST", "~", download=False)) == 3


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_pictures_have_one_channel_or_three(tmp_path, channels):
    with pytest.raises(ValueError, match="channels"): read_image(tmp_path, channels, 8, 8)


def test_image_folder_can_be_sent_to_loader_processes(folder):
    """Where processes are spawned (macOS, Windows), a DataLoader with workers pickles the data set."""
    images = ImageFolder(folder, 8)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[0], images[0])


def write_idx(path, values, shape):
    """Write unsigned bytes in the format of the MNIST files."""
    path.write_bytes(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(values))


@pytest.fixture
def mnist(tmp_path):
    """A folder with MNIST's layout: three training images, two test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 3), ("t10k", 2)):
        write_idx(raw / f"{part}-images-idx3-ubyte", [255 * (i // 784 % 2) for i in range(784 * n)], (n, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", range(n), (n,))
    return tmp_path


@pytest.mark.parametrize("download", (False, True))
@pytest.mark.parametrize("train, n", ((True, 3), (False, 2)))
def test_torchvision_data_is_read_from_files_that_are_there(mnist, download, train, n):
    images = torchvision_dataset("MNIST", str(mnist), train=train, download=download)
    assert len(images) == n
    assert [label for _, label in images] == list(range(n))
    for i, (image, _) in enumerate(images): assert torch.equal(image, torch.full((1, 28, 28), 2. * (i % 2) - 1))


@pytest.mark.parametrize("size", (8, 32))
def test_torchvision_data_is_resized(mnist, size):
    assert torchvision_dataset("MNIST", str(mnist), download=False, size=size)[0][0].shape == (1, size, size)


@pytest.mark.parametrize("name", ("Nonsense", "mnist", ""))
def test_torchvision_data_refuses_an_unknown_name(name, tmp_path):
    with pytest.raises(ValueError, match=repr(name)): torchvision_dataset(name, str(tmp_path), download=False)


def fake(monkeypatch, name, signature):
    """Put a class with these arguments in the place of a set of torchvision, and note what it is given"""
    from torchvision import datasets
    seen = {}
    def init(self, *args, **kwargs):
        seen.update(signature.bind(self, *args, **kwargs).arguments)
        seen.pop("self")
        if seen.get("split") not in (None, *getattr(type(self), "splits", [seen.get("split")])): raise ValueError(f"Unknown value {seen['split']!r} for argument split")
    init.__signature__ = signature
    kind = type(name, (), {"__init__": init})
    monkeypatch.setattr(datasets, name, kind)
    return seen, kind


def like(name):
    """The arguments of the true class"""
    from torchvision import datasets
    return inspect.signature(getattr(datasets, name).__init__)


@pytest.mark.parametrize("name, training, test", (
    ("SVHN", {"split": "train"}, {"split": "test"}), ("STL10", {"split": "train"}, {"split": "test"}), ("CIFAR10", {"train": True}, {"train": False}),
    ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}), ("FGVCAircraft", {"split": "trainval"}, {"split": "test"}), ("LFWPeople", {"split": "train"}, {"split": "test"}),
    ("Omniglot", {"background": True}, {"background": False}), ("Places365", {"split": "train-standard"}, {"split": "val"}), ("USPS", {"train": True}, {"train": False}),
    ("CelebA", {"split": "train"}, {"split": "test"}), ("DTD", {"split": "train"}, {"split": "test"}), ("GTSRB", {"split": "train"}, {"split": "test"})))
def test_each_set_of_torchvision_gets_the_arguments_it_takes(monkeypatch, tmp_path, name, training, test):
    for part, wanted in ((True, training), (False, test)):
        seen, kind = fake(monkeypatch, name, like(name))
        if name == "Places365": kind.splits = ["train-standard", "val"]
        torchvision_dataset(name, str(tmp_path), train=part)
        assert seen["root"] == str(tmp_path) and seen["download"] is True and {k: seen[k] for k in wanted} == wanted


def test_download_is_asked_for_only_where_it_can_be(monkeypatch, tmp_path):
    seen, _ = fake(monkeypatch, "FER2013", like("FER2013"))
    torchvision_dataset("FER2013", str(tmp_path))
    assert "download" not in seen and seen["split"] == "train"


def test_arguments_that_a_class_hands_to_its_parent_are_known(tmp_path, monkeypatch):
    from torchvision import datasets
    seen = {}
    def init(self, root, train=True, transform=None, target_transform=None, download=False): seen.update(train=train, download=download)
    monkeypatch.setattr(datasets.MNIST, "__init__", init)
    for options, split in (({}, "balanced"), ({"split": "letters"}, "letters")):
        assert torchvision_dataset("EMNIST", str(tmp_path), train=False, **options).split == split and seen == {"train": False, "download": True}


@pytest.mark.parametrize("name, match", (("CocoDetection", "needs annFile"), ("HMDB51", "annotation_path"), ("Flickr8k", "ann_file"), 
    ("Sintel", "no transform"), ("CarlaStereo", "no transform")))
def test_sets_that_are_no_pictures_with_classes_are_refused(name, match, tmp_path):
    with pytest.raises(ValueError, match=match): torchvision_dataset(name, str(tmp_path), download=False)


@pytest.mark.parametrize("label, result", ((3, 3), (np.int64(3), 3), (torch.tensor(3), 3), ({"boxes": []}, None), ("a caption", None), ([1, 2], None), (0.5, None)))
def test_labels_of_torchvision_are_whole_numbers(monkeypatch, label, result):
    seen, _ = fake(monkeypatch, "SVHN", like("SVHN"))
    torchvision_dataset("SVHN")
    if result is None:
        with pytest.raises(ValueError, match="no classes"): seen["target_transform"](label)
    else: assert seen["target_transform"](label) == result


def test_sets_without_a_test_part_say_so(tmp_path):
    with pytest.raises(ValueError, match="SEMEION of torchvision has no test part"): torchvision_dataset("SEMEION", str(tmp_path), train=False)


def test_files_that_are_there_already_are_read(monkeypatch):
    from torchvision import datasets
    class Stubborn:
        def __init__(self, root, split="train-standard", download=False, transform=None):
            if download: raise RuntimeError("The directory x already exists. If you want to re-download, delete it")
    monkeypatch.setattr(datasets, "Places365", Stubborn)
    assert isinstance(torchvision_dataset("Places365"), Stubborn)


def test_pictures_of_torchvision_go_through_the_same_reader():
    data = torchvision_dataset("FakeData", size=16, image_size=(3, 40, 60))
    x, y = data[0]
    assert x.shape == (3, 16, 16) and -1 <= x.min() and x.max() <= 1 and type(y) is int
    for picture, channels in ((Image.merge("RGBA", (GREY, GREY, GREY, HALF)), 3),
                              (GREY, 1), (Image.merge("LA", (GREY, HALF)), 1), (COLOUR.convert("CMYK"), 3), (HALF.convert("1"), 1)):
        assert data.transform(picture).shape == (channels, 16, 16)
    with pytest.raises(ValueError, match="expected a picture, got Tensor"): data.transform(torch.zeros(3, 8, 8))


def test_torchvision_data_can_be_sent_to_loader_processes(mnist):
    images = torchvision_dataset("MNIST", str(mnist), download=False)
    assert torch.equal(pickle.loads(pickle.dumps(images))[0][0], images[0][0])


# The standard deviation of the data

def test_sigma_data_of_the_digits(): assert round(measure_sigma_data(load_digits()[0]), 3) == 0.752


def test_sigma_data_of_tensors_and_datasets_agree():
    x = torch.randn(50, 3, 4, generator=seeded())
    pairs = torch.utils.data.TensorDataset(x, torch.zeros(50))
    expected = x.flatten().double().std().item()
    for data in (x, x.double(), list(x), pairs, [(a, 1) for a in x], [[a, 1] for a in x]):
        assert measure_sigma_data(data) == pytest.approx(expected, rel=5e-6)


def test_sigma_data_of_half_types_is_computed_in_full():
    x = torch.randn(100_000, generator=seeded()).bfloat16()
    assert measure_sigma_data(x) == pytest.approx(x.double().std().item(), rel=5e-6)


def test_sigma_data_reads_samples_spread_over_the_whole_dataset():
    read = []
    class Noted(torch.utils.data.Dataset):
        def __len__(self): return 1000

        def __getitem__(self, i):
            read.append(i)
            return torch.tensor([float(i)])
    measure_sigma_data(Noted(), samples=5)
    assert len(read) == len(set(read)) == 5 and read[0] == 0 and read[-1] == 999


@pytest.mark.parametrize("data", (torch.zeros(0), torch.zeros(1), [], [torch.zeros(1)]))
def test_sigma_data_refuses_too_little_data(data):
    with pytest.raises(ValueError, match="data"): measure_sigma_data(data)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_sigma_data_refuses_values_that_are_not_finite(value):
    x = torch.zeros(9, 2)
    x[4, 1] = value
    for data in (x, list(x)):
        with pytest.raises(ValueError, match="finite"): measure_sigma_data(data)


@pytest.mark.parametrize("data, error, match", (
    ([{"image": torch.zeros(2)}], TypeError, "item 0 is of type dict"), ([torch.zeros(2), torch.zeros(3)], ValueError, "one shape"), (iter([1]), TypeError, "length"),
    (torch.zeros(4, dtype=torch.uint8), TypeError, "floating"), (["text"], TypeError, "str")))
def test_sigma_data_says_what_it_cannot_measure(data, error, match):
    with pytest.raises(error, match=match): measure_sigma_data(data)


# Metrics

def flat(x): return x.flatten(1)


def root(c):
    """The symmetric square root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(c)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def gaussian_distance(a, b):
    """Eq. 6 of Heusel et al. (2017), with tr sqrt(C1 C2) = tr sqrt(C1^(1/2) C2 C1^(1/2))."""
    (m1, c1), (m2, c2) = ((x.mean(0), torch.cov(x.T)) for x in (a.double(), b.double()))
    r = root(c1)
    return ((m1 - m2).square().sum() + (c1 + c2 - 2 * root(r @ c2 @ r)).trace()).item()


@pytest.mark.parametrize("n, m, d", ((50, 50, 3), (40, 75, 5), (200, 30, 2)))
def test_frechet_distance_of_gaussians(n, m, d):
    a = torch.randn(n, d, generator=seeded())
    b = torch.randn(m, d, generator=seeded(1)) @ torch.randn(d, d, generator=seeded(2)) + 1
    assert frechet_distance(a, b, flat) == pytest.approx(gaussian_distance(a, b), rel=1e-5)


@pytest.mark.parametrize("scale, shift", ((1., 2.), (3., 0.), (0.5, -1.)))
def test_frechet_distance_after_scaling_and_shifting_is_known(scale, shift):
    a = torch.randn(60, 4, generator=seeded(), dtype=torch.float64)
    expected = ((scale - 1) * a.mean(0) + shift).square().sum() + (scale - 1) ** 2 * torch.cov(a.T).trace()
    assert frechet_distance(a, scale * a + shift, flat) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_is_zero_for_equal_sets_and_symmetric():
    a, b = torch.randn(40, 1, 2, 2, generator=seeded()), torch.rand(30, 1, 2, 2, generator=seeded())
    assert abs(frechet_distance(a, a, flat)) < 1e-9
    assert abs(frechet_distance(a, a.flip(0), flat)) < 1e-6
    assert frechet_distance(a, b, flat) == pytest.approx(frechet_distance(b, a, flat), rel=1e-6)
    assert frechet_distance(a, b, flat) > 0.1


@pytest.mark.parametrize("batch_size", (1, 7, 39, 1000))
def test_frechet_distance_does_not_depend_on_the_batch_size(batch_size):
    a, b = torch.randn(40, 3, generator=seeded()), torch.rand(40, 3, generator=seeded())
    assert frechet_distance(a, b, flat, batch_size) == pytest.approx(frechet_distance(a, b, flat), rel=1e-6)


def test_frechet_distance_is_measured_in_the_features():
    a, b = torch.randn(40, 3, generator=seeded()), torch.rand(40, 3, generator=seeded())
    b[:, :2] = a[:, :2]
    assert abs(frechet_distance(a, b, lambda x: x[:, :2])) < 1e-6 < frechet_distance(a, b, flat)


@pytest.mark.parametrize("bad, error", (
    (torch.zeros(1, 3), ValueError), (torch.zeros(0, 3), ValueError), (None, TypeError),
    (torch.zeros(5, 3, dtype=torch.uint8), TypeError), ([[1., 2., 3.]] * 5, TypeError)))
def test_frechet_distance_refuses_bad_samples(bad, error):
    good = torch.rand(5, 3, generator=seeded())
    with pytest.raises(error, match="real"): frechet_distance(bad, good, flat)
    with pytest.raises(error, match="fake"): frechet_distance(good, bad, flat)


@pytest.mark.parametrize("features", (lambda x: x[:, 0], lambda x: x[:, :, None], lambda x: None))
def test_frechet_distance_refuses_features_that_are_no_rows(features):
    good = torch.rand(5, 3, generator=seeded())
    with pytest.raises((ValueError, TypeError), match="features"): frechet_distance(good, good, features)


def test_frechet_distance_refuses_samples_of_different_shapes():
    with pytest.raises(ValueError): frechet_distance(torch.rand(5, 3), torch.rand(5, 4), flat)


def test_classifier_and_its_features():
    classifier, x = Classifier().eval(), torch.rand(3, 1, 8, 8, generator=seeded())
    assert classifier(x).shape == (3, 10) and classifier.features(x).shape == (3, 64)
    torch.testing.assert_close(classifier(x), classifier.head(classifier.features(x)))


def test_training_a_classifier_is_repeatable_and_leaves_the_random_state():
    images, labels = (x[:200] for x in load_digits())
    before = torch.get_rng_state()
    a, b = (train_classifier(images, labels, steps=12) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a(images), b(images)) and not a.training
    assert not any(p.requires_grad for p in a.parameters())
    assert recognition_rate(images, labels, a) > 0.6


def test_recognition_rate_is_the_share_of_right_answers():
    images = torch.eye(10)[[0, 1, 2, 3]]
    assert recognition_rate(images, torch.tensor([0, 1, 2, 9]), lambda x: x) == 0.75


def test_sigma_data_does_not_depend_on_the_number_of_threads():
    x, threads = torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = measure_sigma_data(x)
        torch.set_num_threads(4)
        together = measure_sigma_data(x)
    finally: torch.set_num_threads(threads)
    assert alone == together and abs(alone / x.double().std() - 1) < 1e-5
