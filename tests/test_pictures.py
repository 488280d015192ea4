"""Pictures: the style of figures, PNG files with our note, and every kind of picture file."""
import io
import struct
import zlib

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import gaussian
from PIL import Image, ImageCms

from consistency_models import ImageFolder
from consistency_models.pictures import (
    FORMATS,
    OTHER_FORMATS,
    image_grid,
    picture_to_tensor,
    read_image,
    refuse_foreign_picture,
    save_grid,
    show_images,
    to_png,
    use_style,
)

RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))
BYTES, WORDS = (255 * RAMP).astype(np.uint8), (65535 * RAMP).astype(np.uint16)
GRAY, HALF = Image.fromarray(BYTES), Image.fromarray(np.uint8(255) * (RAMP > 0.5))
BACKWARD = GRAY.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
COLOR = Image.merge("RGB", (GRAY, BACKWARD, Image.new("L", (16, 16), 255)))


def as_tensor(picture): return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1


def encoded(picture, kind, **options):
    """The content of a file of this kind"""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def in_its_own_folder(tmp_path, name, content):
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_bytes(content)
    return tmp_path / name / name


def read_every_way(path):
    """What a folder, a file and the content of a file give, which must agree"""
    x, content = read_image(path, 3, 16, 16), path.read_bytes()
    assert torch.equal(ImageFolder(path.parent, 16)[0], x)
    assert torch.equal(read_image(content, 3, 16, 16), x)
    return x


def refused_every_way(path, match):
    """Each way says what is wrong; those that know the file name it"""
    for read in (lambda: ImageFolder(path.parent, 16)[0], lambda: read_image(path, 3, 16, 16)):
        with pytest.raises(ValueError, match=f"{path.name} .*{match}"): read()
    with pytest.raises(ValueError, match=match): read_image(path.read_bytes(), 3, 16, 16)


# Equals the paper

def test_pictures_are_scaled_as_torchvision_scales_them():
    from torchvision.transforms import v2
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8))
    for shape in ((60, 40), (40, 61), (20, 30)):
        smooth = noise.resize(shape, Image.Resampling.BICUBIC)
        steps = v2.Compose([v2.Resize(24, antialias=True), v2.CenterCrop(24), v2.ToImage()])
        theirs = steps(smooth).float() / 127.5 - 1           # their crop falls between pixels
        assert (read_image(encoded(smooth, "PNG"), 3, 24, 24) - theirs).abs().mean() < 0.06, shape


# Keeps its promises: figures and bytes

def test_figures_have_the_colors_that_all_can_tell_apart():
    with plt.rc_context():
        use_style()
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == [
            "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def test_a_batch_is_shown_in_rows_with_its_names():
    x = torch.tensor([-1., 0., 1., 9., -9.]).view(5, 1, 1, 1).expand(-1, 1, 2, 2)
    fig = show_images(x, titles=list("abcde"), columns=3, rows=["x", "y"])
    shown = [ax for ax in fig.axes if ax.images]
    assert len(fig.axes) == 6 and [ax.get_title() for ax in shown] == list("abcde")
    assert [t.get_text() for ax in fig.axes for t in ax.texts] == ["x", "y"]
    assert [float(ax.images[0].get_array().max()) for ax in shown] == [0, 0.5, 1, 1, 0]
    assert all(ax.images[0].get_clim() == (0, 1) for ax in shown)
    plt.close(fig)


def test_a_grid_holds_every_pixel_enlarged():
    x = torch.tensor([[-1., 1.], [0., 5.]]).view(1, 1, 2, 2).repeat(3, 1, 1, 1).requires_grad_()
    grid = image_grid(x, columns=2, width=8)
    assert grid.shape == (3, 2 * 8 + 3 * 2, 2 * 8 + 3 * 2) and grid.dtype == torch.uint8
    corners = [grid[:, 2 + i, 2 + j].tolist() for i, j in ((0, 0), (3, 7), (7, 0), (7, 7))]
    assert corners == [[0] * 3, [255] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("channels", (1, 3))
def test_a_png_gives_back_its_bytes(channels):
    image = (255 * torch.rand(channels, 5, 7)).byte()
    picture = Image.open(io.BytesIO(to_png(image)))
    assert picture.info["Software"] == "consistency_models" and picture.size == (7, 5)
    values = torch.from_numpy(np.array(picture)).reshape(5, 7, channels)
    assert torch.equal(values.permute(2, 0, 1), image)


def test_only_pictures_of_ours_are_replaced(tmp_path):
    ours = tmp_path / "new" / "ours.png"
    refuse_foreign_picture(ours)                      # there is none
    for n in (2, 3):
        save_grid(gaussian(n, 1, 8, 8), ours, columns=1)
        refuse_foreign_picture(ours)
        assert Image.open(ours).size == (64 + 4, 66 * n + 2)


@pytest.mark.parametrize("content", (encoded(GRAY, "PNG"), b"no picture", b""))
def test_files_of_others_are_not_replaced(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(FileExistsError, match="a.png was not written by this program"):
        refuse_foreign_picture(tmp_path / "a.png")


def test_a_file_on_which_pillow_fails_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"?")
    for error in (Image.DecompressionBombError("too large"), SyntaxError("broken"), OSError("x")):
        def fail(*_, error=error): raise error
        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(FileExistsError): refuse_foreign_picture(tmp_path / "a.png")


# Keeps its promises: kinds of files

@pytest.mark.parametrize("name, picture, options", (
    ("float.tif", Image.fromarray(RAMP.astype(np.float32)), {}),
    ("words.png", Image.fromarray(WORDS), {}), ("words.tif", Image.fromarray(WORDS), {}),
    ("big.tif", Image.frombytes("I;16B", (16, 16), WORDS.astype(">u2").tobytes()), {}),
    ("gray.jpg", GRAY, {"quality": 100}), ("palette.gif", GRAY.convert("P"), {})))
def test_gray_of_every_type_keeps_its_values(tmp_path, name, picture, options):
    picture.save(tmp_path / name, **options)
    assert (read_every_way(tmp_path / name) - torch.from_numpy(2 * RAMP - 1)).abs().max() < 0.02


@pytest.mark.parametrize("name, mode", (
    ("a.tif", "CMYK"), ("a.jpg", "CMYK"), ("a.jpg", "YCbCr"), ("a.webp", "RGB"), ("a.tif", "RGBX")))
def test_color_of_every_type_keeps_its_values(tmp_path, name, mode):
    COLOR.convert(mode).save(tmp_path / name, **({} if name == "a.tif" else {"quality": 100}))
    assert (read_every_way(tmp_path / name) - as_tensor(COLOR)).abs().mean() < 0.04


def test_black_and_white_stays_black_and_white(tmp_path):
    HALF.convert("1").save(tmp_path / "a.png")
    x = read_every_way(tmp_path / "a.png")
    assert torch.equal(x[0, 0], torch.tensor([-1.] * 8 + [1.] * 8))


def tiff_of_12_bits():
    """Four pixels: 0, the largest value, the middle, 0"""
    row = int("".join(f"{v:012b}" for v in (0, 4095, 2048, 0)), 2).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    notes = b"".join(struct.pack("<HHIHH", t, 3, 1, v, 0) for t, v in tags.items())
    return b"II*\0" + struct.pack("<I", 14) + row + struct.pack("<H", 9) + notes + bytes(4)


def test_twelve_bits_are_not_taken_for_sixteen():
    values = read_image(tiff_of_12_bits(), 1, 1, 4).flatten().tolist()
    assert values == pytest.approx([-1, 1, 0, -1], abs=0.01)


def test_a_tiff_of_16_bits_that_counts_from_white_is_not_a_negative():
    negative = encoded(Image.fromarray(65535 - WORDS), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(negative)).tag_v2[262] == 0
    assert (read_image(negative, 1, 16, 16) - torch.from_numpy(2 * RAMP - 1)).abs().max() < 0.02


def png_of_16_bits(values, kind, transparent=None):
    """A PNG of 16 bits a value; kind 0 is gray, 2 is color, 4 and 6 are these with alpha"""
    def chunk(name, data):
        end = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + end
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if transparent is not None:
        seen_through = struct.pack(f">{len(transparent)}H", *transparent)
        chunks.insert(1, chunk(b"tRNS", seen_through))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("hidden", [(1000, 40000, 65535), (0, 0, 65280)])
def test_one_transparent_color_of_16_bits_is_white(hidden):
    picture = png_of_16_bits(np.array([[(0, 20000, 0), hidden, (30000, 0, 30000)]]), 2, hidden)
    colors = torch.tensor([[0, 20000 >> 8, 0], [255, 255, 255], [30000 >> 8, 0, 30000 >> 8]])
    expected = colors.T[:, None] / 127.5 - 1
    assert torch.allclose(read_image(picture, 3, 1, 3), expected, atol=0.01)


def hidden_black():
    """Files of a picture that is black or nearly black, and transparent in the left half"""
    black = Image.new("L", (16, 16), 0)
    rgba, dark = Image.merge("RGBA", (black, black, black, HALF)), black.copy()
    dark.paste(1, (8, 0, 16, 16))                                  # nearly black where it is seen
    listed = dark.copy()
    listed.putpalette([0, 0, 0, 1, 1, 1] + [0] * 762)
    none, alpha = np.zeros((16, 16), np.uint16), np.uint16(65535) * (RAMP > 0.5)
    return {
        "color with alpha.png": encoded(rgba, "PNG"),
        "color with alpha.tif": encoded(rgba, "TIFF"),
        "color with alpha.webp": encoded(rgba, "WEBP", lossless=True, exact=True),
        "gray with alpha.png": encoded(Image.merge("LA", (black, HALF)), "PNG"),
        "palette with alpha.png": encoded(rgba.convert("P"), "PNG"),
        "some of a palette.png": encoded(listed, "PNG", transparency=b"\0"),
        "one of a palette.png": encoded(listed, "PNG", transparency=0),
        "one of a palette.gif": encoded(listed, "GIF", transparency=0),
        "one gray.png": encoded(dark, "PNG", transparency=0),
        "one color.png": encoded(dark.convert("RGB"), "PNG", transparency=(0, 0, 0)),
        "one gray of 16 bits.png": png_of_16_bits((alpha > 0) * 257, 0, (0,)),
        "gray of 16 bits.png": png_of_16_bits(np.stack([none, alpha], 2), 4),
        "color of 16 bits.png": png_of_16_bits(np.stack([none, none, none, alpha], 2), 6)}


def test_transparent_parts_are_white(tmp_path):
    for name, content in hidden_black().items():
        picture = read_every_way(in_its_own_folder(tmp_path, name, content))
        assert (picture[..., :8] == 1).all() and (picture[..., 8:] < -0.98).all(), name


def test_transparent_parts_take_the_background_that_is_asked_for():
    picture = hidden_black()["color with alpha.png"]
    assert (read_image(picture, 1, 16, 16, background="black") == -1).all()


@pytest.mark.parametrize("exif", (
    b"Exif\0\0junkjunkjunk", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0"))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(exif):
    for kind in ("PNG", "JPEG", "WEBP"):
        x = read_image(encoded(COLOR, kind, exif=exif), 3, 16, 16)
        assert (x - as_tensor(COLOR)).abs().mean() < 0.1, kind


@pytest.mark.parametrize("kind", ("PNG", "JPEG", "WEBP", "TIFF"))
def test_pictures_of_every_format_stand_upright(kind):
    left, right, top, bottom = np.s_[..., :7], np.s_[..., 9:], np.s_[:, :7], np.s_[:, 9:]
    for turn, dark in enumerate((left, right, right, left, top, top, bottom, bottom), start=1):
        exif = Image.Exif()
        exif[274] = turn
        options = {"tiffinfo": {274: turn}} if kind == "TIFF" else {"exif": exif}
        x = read_image(encoded(HALF.convert("RGB"), kind, **options), 3, 16, 16)
        assert x[dark].max() < -0.9 and x.max() > 0.9, turn


# Keeps its promises: shape

def test_a_picture_is_cut_to_the_shape_and_not_stretched():
    wide = Image.new("L", (90, 30), 0)
    wide.paste(255, (30, 0, 60, 30))
    assert (read_image(encoded(wide, "PNG"), 1, 8, 8) > 0.7).all()
    white = (read_image(encoded(wide, "PNG"), 1, 8, 24) > 0).float().mean().item()
    assert white == pytest.approx(1 / 3, abs=0.05)


def test_a_picture_as_long_as_a_scroll_is_cut_before_it_is_scaled(tmp_path, monkeypatch):
    """Scaled first, it would have 64 times 1,280,000 pixels"""
    made, resize = [], Image.Image.resize
    def noted(self, size, *args, **kwargs):
        made.append(tuple(size))
        return resize(self, size, *args, **kwargs)
    monkeypatch.setattr(Image.Image, "resize", noted)
    Image.new("RGB", (1, 20_000), (255, 0, 0)).save(tmp_path / "a.png")
    for x in (ImageFolder(tmp_path, 64)[0], read_image(tmp_path / "a.png", 3, 2, 64)):
        assert (x[0] == 1).all() and (x[1:] == -1).all()
    assert made == [(64, 64), (64, 2)]


def test_the_content_of_a_file_is_read_like_the_file(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    COLOR.save(tmp_path / "a.png")
    expected = read_image(str(tmp_path / "a.png"), 3, 8, 8)
    content = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", "~/a.png", content, bytearray(content), memoryview(content)):
        assert torch.equal(read_image(source, 3, 8, 8), expected)


def test_without_a_shape_or_channels_a_picture_keeps_its_own():
    gray = GRAY, Image.merge("LA", (GRAY, HALF)), HALF.convert("1"), Image.fromarray(WORDS)
    color = COLOR, COLOR.convert("CMYK"), GRAY.convert("P"), COLOR.convert("RGBA")
    assert [len(picture_to_tensor(picture)) for picture in gray + color] == [1] * 4 + [3] * 4
    assert picture_to_tensor(Image.new("L", (5, 3))).shape == (1, 3, 5)


def test_pictures_that_pillow_knows_are_read_or_counted():
    """All but documents, films and tables of numbers"""
    Image.init()
    unknown = Image.registered_extensions().keys() - FORMATS.keys() - OTHER_FORMATS
    assert unknown <= set(".pdf .mpg .mpeg .h5 .hdf .grib .bufr .iim".split())
    assert not FORMATS.keys() & OTHER_FORMATS


# Refuses

def in_lab():
    kinds = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(COLOR, *kinds, outputMode="LAB")


@pytest.mark.parametrize("picture, match", (
    (Image.fromarray((255 * RAMP).astype(np.float32)), r"lie in \[0, 1\]"),
    (Image.fromarray((RAMP * np.nan).astype(np.float32)), r"lie in \[0, 1\]"),
    (Image.fromarray(WORDS.astype(np.int32)), "mode I"), (in_lab(), "mode LAB")))
def test_values_whose_range_is_not_known_are_refused(tmp_path, picture, match):
    picture.save(tmp_path / "a.tif")
    refused_every_way(tmp_path / "a.tif", match)


def truncated(kind):
    """A picture whose end is missing"""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    return content[:len(content) // 2]


def test_a_damaged_picture_is_named(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        path = in_its_own_folder(tmp_path, f"half a {kind}.png", truncated(kind))
        refused_every_way(path, "no picture that can be read")


def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path):
    for content in (b"", b"%PDF-1.4", b"P6 1 1 255\n\0\0\0"):         # the last is a whole PPM
        (tmp_path / "a b.png").write_bytes(content)
        refused_every_way(tmp_path / "a b.png", "none of BMP, GIF")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused_every_way(tmp_path / "a.png", "too large")


@pytest.mark.parametrize("arguments, error, match", (
    ((None, 3, 8, 8), TypeError, "source must be a file or its content"),
    ((b"", 3, 0, 8), ValueError, "height"), ((b"", 3, 8, 2.5), TypeError, "width"),
    ((b"", 2, 8, 8), ValueError, "channels must be 1 or 3, got 2"),
    (("nothing.png", 3, 8, 8), ValueError, "no picture nothing.png"),
    ((".", 3, 8, 8), ValueError, "no picture")))
def test_bad_arguments_of_read_image_are_named(arguments, error, match):
    with pytest.raises(error, match=match): read_image(*arguments)


def test_a_tensor_is_no_picture():
    with pytest.raises(ValueError, match="expected a picture, got Tensor"):
        picture_to_tensor(torch.zeros(3, 8, 8))
