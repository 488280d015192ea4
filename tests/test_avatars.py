"""Faces that are drawn from their attributes, read back, and counted."""
import pytest
import torch
from conftest import seeded

from consistency_models.avatars import (
    avatar_attributes,
    avatar_classes,
    count_avatars,
    draw_avatars,
    read_avatars,
)
from consistency_models.data import load_avatars

NAMES = list(avatar_attributes())
images, labels, attributes = load_avatars(False)


def column(name): return attributes[:, NAMES.index(name)]


def changed(table, **values):
    table = table.clone()
    for name, value in values.items(): table[:, NAMES.index(name)] = value
    return table


# Equals the design

def test_a_plain_face_by_hand():
    """Background in the corner, a neck of the skin's color, and a forehead with a tenth of white over it"""
    face = changed(torch.zeros(1, 17, dtype=torch.long), hair=avatar_attributes()["hair"].index("short21"))
    drawn = (draw_avatars(face)[0] + 1) * 127.5
    rgb = lambda name: torch.tensor([int(avatar_attributes()[name][0][i:i + 2], 16) for i in (1, 3, 5)]).float()
    torch.testing.assert_close(drawn[:, 0, 0], rgb("background"))
    torch.testing.assert_close(drawn[:, 12, 7], rgb("skin_color"))
    torch.testing.assert_close(drawn[:, 3, 5], 0.9 * rgb("skin_color") + 25.5)


def test_the_parts_lie_in_the_order_of_the_style():
    """Hair covers glasses, a hat covers hair; what lies below cannot be seen through them"""
    hat = changed(attributes[:50], hat=1)
    assert (draw_avatars(hat) != draw_avatars(changed(hat, hat=2))).flatten(1).any(1).all()
    covered = draw_avatars(changed(hat, hair=0)) == draw_avatars(changed(hat, hair=3))
    assert covered[:, :, 1:3, 5:11].all()


@pytest.mark.parametrize("part, rows, mean, std", [
    ("hat", slice(0, 5), (0.243, 0.131, 0.197), 0.564), ("glasses", slice(4, 9), (0.336, 0.210, 0.124), 0.563),
    ("beard", slice(9, 12), (0.614, 0.373, 0.216), 0.469), ("accessories", slice(7, 9), (0.588, 0.395, 0.175), 0.511),
    ("clothing", slice(12, 16), (0.519, 0.407, 0.292), 0.545), ("eyes", slice(5, 8), (0.543, 0.406, 0.293), 0.525)])
def test_each_part_looks_as_the_style_draws_it(part, rows, mean, std):
    """Means and deviation of the rows of a part, over the test faces that have it, as DiceBear itself drew them"""
    drawn = images[column(part) > 0][:, :, rows]
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.tensor(mean), atol=2e-3, rtol=0)
    assert drawn.std().item() == pytest.approx(std, abs=1e-3)


def test_sets_are_those_of_the_style():
    train, classes, table = load_avatars()
    assert train.shape == (20_000, 3, 16, 16) and images.shape == (4000, 3, 16, 16) and len(table) == 20_000
    assert train.min() >= -1 and train.max() <= 1 and 0.54 < train.std() < 0.545
    assert torch.equal(avatar_classes(table), classes) and classes.bincount().tolist() == [12889, 4254, 2123, 734]
    assert len({x.numpy().tobytes() for x in torch.cat([train, images])}) == 24_000                  # all different


# Keeps its promises

def test_what_is_drawn_is_read_again():
    """Exactly, but for what changes no pixel"""
    read, error = read_avatars(images[:300])
    same = (error < 0.01).float().mean()
    assert same > 0.985
    torch.testing.assert_close(error, (images[:300] - draw_avatars(read)).abs().flatten(1).amax(1))
    agree = {name: (read[:, i] == attributes[:300, i]).float().mean() for i, name in enumerate(NAMES)}
    assert min(agree[name] for name in ("background", "skin_color", "glasses", "hat", "mouth")) > 0.985
    assert agree["hat_color"] < 0.5         # of those without a hat nobody can know it


def test_reading_one_face_does_not_depend_on_the_others():
    together, alone = read_avatars(images[:6])[0], [read_avatars(x[None])[0][0] for x in images[:6]]
    assert torch.equal(together, torch.stack(alone))


def test_counts_of_faces_whose_answer_is_known():
    x, asked = images[:200], labels[:200]
    real = count_avatars(x, asked)
    assert real["whole"] > 0.985 and real["asked"] > 0.985 and real["copies"] < 0.03 and 0.12 < real["new_combinations"] < 0.32
    assert count_avatars(x, 3 - asked)["asked"] < 0.02 and count_avatars(x / 2, asked)["asked"] > 0.5
    blurred = count_avatars(torch.nn.functional.avg_pool2d(x, 3, 1, 1))
    assert blurred["whole"] == blurred["copies"] == blurred["values"] == 0 and blurred["pixels"] < 0.8 < 0.999 < real["pixels"]
    for spoiled, whole in ((12, 1), (13, 0)):                                   # of 256 pixels
        worse = x[:20].clone()
        worse[:, :, 0, 2:2 + spoiled] = torch.tensor([-1., 1., -1.])[:, None]
        assert count_avatars(worse)["whole"] == whole and count_avatars(worse)["pixels"] == pytest.approx(1 - spoiled / 256, abs=1e-3)
    known = load_avatars()[0][:100]
    noisy = known + 0.05 * torch.randn(known.shape, generator=seeded())
    found = count_avatars(torch.cat([noisy, x[:100]]))
    assert 0.5 <= found["copies"] < 0.53                                             # noise does not hide a copy
    assert count_avatars(known.double())["new_combinations"] == 0
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"): count_avatars(x[:3], asked[:1])
    one = count_avatars(x[:1].expand(20, -1, -1, -1))
    assert one["values"] == pytest.approx(17 / 208) and one["copies"] == 0


# Refuses

@pytest.mark.parametrize("bad, error, match", [
    (attributes[0], ValueError, r"attributes must be a tensor of shape \(n, 17\)"), (attributes[:, :5], ValueError, "shape"),
    (attributes.float(), TypeError, "whole numbers"), (changed(attributes[:2], hat=11), ValueError, "hat must lie from 0 to 10"),
    (changed(attributes[:2], mouth=-1), ValueError, "mouth must lie from 0 to 22, got -1")])
def test_attributes_that_are_none(bad, error, match):
    for use in (draw_avatars, avatar_classes):
        with pytest.raises(error, match=match): use(bad)


@pytest.mark.parametrize("bad, error, match", [
    (images[0], ValueError, r"images must have shape \(n, 3, 16, 16\)"), (images[:2, :, :8], ValueError, "shape"),
    (images[:2].long(), TypeError, "floating"), (images[:2] * float("nan"), ValueError, "finite")])
def test_images_that_are_no_avatars(bad, error, match):
    with pytest.raises(error, match=match): read_avatars(bad)
