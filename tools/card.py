"""Draw nbs/images/card.png, the picture on the home page and on cards: `python tools/card.py`.

Everything on it is made by the bundled models: digits in one step, hidden halves filled in, coarse
pictures sharpened.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from consistency_models import color_shapes, from_pretrained, inpaint, super_resolve, trajectory

OUT = Path(__file__).parent.parent / "nbs/images/card.png"
SIDE, GAP = 0.74, 0.05  # of a picture and between pictures, in inches


def seeded(seed):
    """A source of randomness"""
    return torch.Generator().manual_seed(seed)


def digits():
    """Noise, what one step makes of it, the same without its lower half, and that half filled in"""
    net, asked = from_pretrained("mnist"), torch.arange(10)
    y = torch.empty(10, 1, 28, 28)
    (_, noise, drawn), = trajectory(net, y, [80.0], generator=seeded(5), class_labels=asked)
    hole = torch.zeros(28, 28)
    hole[14:] = 1
    filled = inpaint(net, drawn, hole, generator=seeded(1), class_labels=asked)
    return [noise / 240, drawn, torch.where(hole == 1, -0.4, drawn), filled]


def shapes():
    """Pictures of 8 by 8 pixels, and the same enlarged four times"""
    net, (images, labels) = from_pretrained("shapes"), color_shapes(10, 32, generator=seeded(7))
    low = torch.nn.functional.avg_pool2d(images, 4)
    return [low, super_resolve(net, low, 4, generator=seeded(0), class_labels=labels)]


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
    line = ("one step from noise to a picture; "
            "the same network fills in and sharpens, untrained for either")
    fig.text(0.5, 0.88, line, fontsize=14, color="0.3", **center)
    names = ["noise", "one step", "half hidden", "filled in", "8 × 8 pixels", "32 × 32"]
    for i, (images, name) in enumerate(zip(digits() + shapes(), names)):
        row(fig, images, 2.8, 1.1 + i * (SIDE + GAP) + 0.14 * (i // 2), name)
    fig.savefig(OUT)


if __name__ == "__main__": draw()
