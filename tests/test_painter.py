"""The surface to paint on, as far as it needs no browser; test_browser.py paints on it."""

import io
import shutil
import subprocess
from base64 import b64encode

import PIL.Image
import pytest
import torch

from consistency_models import preset_mask
from consistency_models.painter import _STATIC, PaintSurface, _from_url

pytestmark = pytest.mark.usefixtures("no_threads")


# ---------------------------------------------------------------- Keeps its promises

@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
@pytest.mark.parametrize("path", sorted(_STATIC.glob("*.js")), ids=lambda p: p.name)
def test_each_script_is_a_module_with_a_render_function(path, tmp_path):
    module = shutil.copy(path, tmp_path / "script.mjs")     # whose name says what it is
    look = f"import('{module}').then(m => console.log(typeof m.default.render))"
    for arguments, printed in ((["--check", module], ""), (["-e", look], "function\n")):
        node = subprocess.run(["node", *arguments], capture_output=True, text=True)
        assert (node.returncode, node.stdout) == (0, printed), node.stderr


def test_the_surface_sends_its_script_and_its_style():
    surface = PaintSurface()
    assert surface._esm == (_STATIC / "painter.js").read_text() and ".cm-board" in surface._css


def test_masks_and_colors_travel_through_data_urls():
    surface, mask = PaintSurface(width=20, height=12, color="#FF0080"), preset_mask("letters", 12, 20)
    assert surface.layers()[0].sum() == 0 and surface.layers()[1].shape == (3, 12, 20)
    surface.set_mask(mask)
    strokes, colors = surface.layers()
    assert torch.equal(strokes, mask)
    assert colors[:, 3, 3].tolist() == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)


@pytest.mark.parametrize("channels", (1, 3))
def test_a_picture_sets_the_size_and_is_shown_pixel_by_pixel(channels):
    surface, x = PaintSurface(), torch.linspace(-1.2, 1, channels * 60).view(channels, 6, 10)
    surface.set_picture(x)
    assert (surface.width, surface.height) == (10, 6)
    assert (_from_url(surface.image)[:3] - (x.clamp(-1, 1) * 127.5 + 127.5)).abs().max() <= 0.5


# ---------------------------------------------------------------- Refuses

@pytest.mark.parametrize("url", ("hello", "data:image/svg+xml;base64,AAAA", "data:image/png;base64," + "A" * 6_000_000))
def test_what_is_no_small_png_is_refused(url):
    with pytest.raises(ValueError, match="PNG of up to 5 MB"): _from_url(url)


def test_what_only_claims_to_be_a_png_is_refused():
    PIL.Image.new("RGB", (4, 4)).save(file := io.BytesIO(), "GIF")
    with pytest.raises(PIL.UnidentifiedImageError):
        _from_url("data:image/png;base64," + b64encode(file.getvalue()).decode())
