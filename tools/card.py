"""Draw nbs/images/card.png, the picture on cards, and favicon.png, that of the site: `python tools/card.py`.

Everything on it is made by the bundled models: faces and digits from noise, and hidden halves filled in. The faces
have the first seed, 0, the digits the third, 2: with the first, a hidden half of a 7 becomes a 2.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from consistency_models import from_pretrained, inpaint, sample, trajectory

IMAGES = Path(__file__).parent.parent / "nbs/images"
SIDE, GAP = 0.74, 0.05  # of a picture and between pictures, in inches


def seeded(seed):
    """A source of randomness"""
    return torch.Generator().manual_seed(seed)


def drawn_and_filled(name, asked, others, part, seed):
    """Noise, what two steps make of it, the same with a part hidden, and filled in for other classes"""
    net, asked = from_pretrained(name), torch.tensor(asked)
    channels, height, width = net.notes["shape"]
    y = torch.empty(10, channels, height, width)
    (_, noise, _), (_, _, drawn) = trajectory(net, y, [80.0, 0.5], generator=seeded(seed), class_labels=asked)
    hole = torch.zeros(height, width)
    hole[part] = 1
    filled = inpaint(net, drawn, hole, generator=seeded(seed), class_labels=torch.tensor(others))
    return [noise / 240, drawn, torch.where(hole == 1, -0.4, drawn), filled]


def row(fig, images, left, top, name):
    """A row of pictures with its name before it"""
    width, height = fig.get_size_inches()
    middle = 1 - (top + SIDE / 2) / height
    fig.text((left - 0.15) / width, middle, name, ha="right", va="center", fontsize=13)
    for i, x in enumerate(images):
        corner = (left + i * (SIDE + GAP)) / width, 1 - (top + SIDE) / height
        ax = fig.add_axes([*corner, SIDE / width, SIDE / height])
        pixels = ((x + 1) / 2).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
        ax.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
        ax.axis("off")


def draw():
    """The card, 1,200 by 630 pixels"""
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    center = {"ha": "center", "va": "center"}
    font = {"fontsize": 26, "family": "DejaVu Sans Mono", "weight": "bold"}
    fig.text(0.5, 0.945, "consistency_models", **font, **center)
    line = "from noise to a picture in two steps; the same networks fill in what is hidden, untrained for it"
    fig.text(0.5, 0.88, line, fontsize=14, color="0.3", **center)
    faces = drawn_and_filled("avatars", [0, 1] * 5, [2, 3] * 5, slice(7), 0)
    digits = drawn_and_filled("mnist", range(10), range(10), slice(14, None), 2)
    names = ["noise", "two steps", "half hidden", "with a hat", "half hidden", "filled in"]
    for i, (images, name) in enumerate(zip(faces + digits[2:], names)):
        row(fig, images, 2.8, 1.1 + i * (SIDE + GAP) + 0.14 * (i // 2), name)
    fig.savefig(IMAGES / "card.png")


def favicon():
    """A face with a hat, each of its pixels four wide"""
    face = sample(from_pretrained("avatars"), 8, seed=1, labels=2)[6]
    to_pil_image((face + 1) / 2).resize((64, 64), Image.Resampling.NEAREST).save(IMAGES / "favicon.png")


if __name__ == "__main__":
    draw()
    favicon()
