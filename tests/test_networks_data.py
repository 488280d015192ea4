"""The bundled networks, the data sets, and the metrics."""

import math
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from consistency_models import (
    MLP,
    Classifier,
    ImageFolder,
    Precondition,
    UNet,
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


def shake(network):
    """Give all parameters random values, so that no layer starts at zero."""
    for i, p in enumerate(network.parameters()): nn.init.normal_(p, std=0.2, generator=seeded(i))
    return network


def mlp(**options): return shake(MLP(2, 16, 2, **options))


def unet(**options): return shake(UNet(**{"in_channels": 1, "channels": (8, 16), **options}))


def inputs(network, batch=4):
    """Samples and noise levels that fit a network of `NETWORKS`."""
    shape = (2,) if isinstance(network, MLP) else (network.in_channels, 8, 8)
    return torch.randn(batch, *shape, generator=seeded()), torch.logspace(-2, 1.5, batch)


NETWORKS = pytest.mark.parametrize("build", (mlp, unet))


# Networks

@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("dim, width, depth", ((1, 8, 1), (2, 16, 3), (7, 32, 0)))
def test_mlp_returns_the_shape_of_its_points(batch, dim, width, depth):
    x = torch.randn(batch, dim, generator=seeded())
    y = MLP(dim, width, depth)(x, torch.ones(batch))
    assert y.shape == x.shape and y.isfinite().all()


@pytest.mark.parametrize("options, shape", (
    ({}, (2, 1, 8, 8)), ({"in_channels": 3}, (1, 3, 8, 16)), ({"channels": (8,)}, (2, 1, 5, 7)),
    ({"channels": (8, 16, 24)}, (2, 1, 4, 8)), ({"blocks": 2}, (2, 1, 4, 4)), ({"attention": False}, (2, 1, 4, 4)),
    ({"channels": (48, 72)}, (2, 1, 4, 4)), ({"dropout": 0.3}, (2, 1, 4, 4))))
def test_unet_returns_the_shape_of_its_images(options, shape):
    x = torch.randn(shape, generator=seeded())
    y = unet(**options)(x, torch.ones(len(x)))
    assert y.shape == x.shape and y.isfinite().all() and y.abs().sum() > 0


@pytest.mark.parametrize("channels", (50, 100, 72, 33))
def test_unet_takes_any_number_of_channels(channels):
    assert unet(channels=(channels,))(torch.zeros(2, 1, 4, 4), torch.ones(2)).shape == (2, 1, 4, 4)


def test_unet_starts_at_zero():
    x, sigma = inputs(UNet(channels=(8, 16)))
    assert torch.equal(UNet(channels=(8, 16))(x, sigma), torch.zeros_like(x))


@NETWORKS
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_networks_work_in_other_types(build, dtype):
    network = build(num_classes=3)
    (x, sigma), labels = inputs(network), torch.tensor([0, 1, 2, 0])
    expected = network(x, sigma, class_labels=labels)
    y = network.to(dtype)(x.to(dtype), sigma.to(dtype), class_labels=labels)
    assert y.dtype == dtype
    scale = expected.abs().max().item()
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=scale * (1e-5 if dtype == torch.float64 else 0.1))


@NETWORKS
@pytest.mark.parametrize("level", (0.002, 80., 1e4))
def test_networks_stay_finite_at_extreme_levels(build, level):
    network = build()
    x, _ = inputs(network)
    assert network(x * level, torch.full((4,), level)).isfinite().all()


@NETWORKS
def test_networks_depend_on_the_noise_level(build):
    network = build()
    x, _ = inputs(network)
    assert not torch.allclose(network(x / 2, torch.ones(4)), network(x, torch.full((4,), 2.)))


@NETWORKS
def test_class_labels_change_the_answer(build):
    network = build(num_classes=3)
    x, sigma = inputs(network)
    a, b = (network(x, sigma, class_labels=torch.tensor(labels)) for labels in ([0, 1, 2, 0], [0, 1, 1, 0]))
    torch.testing.assert_close(a[[0, 1, 3]], b[[0, 1, 3]])
    assert not torch.allclose(a[2], b[2])


@NETWORKS
def test_class_labels_are_required_or_refused(build):
    with_classes, without = build(num_classes=3), build()
    x, sigma = inputs(without)
    with pytest.raises(ValueError, match="needs class_labels"): with_classes(x, sigma)
    with pytest.raises(ValueError, match="without classes"): without(x, sigma, class_labels=torch.tensor([0, 1, 2, 0]))


@NETWORKS
@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.int16, torch.uint8))
def test_class_labels_may_be_any_whole_numbers(build, dtype):
    network = build(num_classes=3)
    x, sigma = inputs(network)
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(network(x, sigma, class_labels=labels.to(dtype)), network(x, sigma, class_labels=labels))


@NETWORKS
@pytest.mark.parametrize("labels", (
    [0, 1, 2, 0], "0120", 1, torch.tensor([0., 1., 2., 0.]), torch.tensor([1j, 0, 0, 0])))
def test_class_labels_of_the_wrong_type_are_refused(build, labels):
    network = build(num_classes=3)
    with pytest.raises(TypeError, match="class_labels"): network(*inputs(network), class_labels=labels)


@NETWORKS
@pytest.mark.parametrize("labels", ([0, 1, 2, 3], [0, -1, 2, 1], [10**6, 0, 0, 0]))
def test_class_labels_out_of_range_are_refused(build, labels):
    network = build(num_classes=3)
    with pytest.raises(ValueError, match="class_labels"): network(*inputs(network), class_labels=torch.tensor(labels))


@NETWORKS
@pytest.mark.parametrize("labels", ([0, 1, 2], [0, 1, 2, 0, 1], [[0, 1], [1, 0]], [[0, 1, 2, 0]]))
def test_class_labels_of_the_wrong_shape_are_refused(build, labels):
    network = build(num_classes=3)
    with pytest.raises(ValueError, match="class_labels"): network(*inputs(network), class_labels=torch.tensor(labels))


@pytest.mark.parametrize("shape", ((2, 1, 7, 8), (2, 1, 8, 6), (2, 3, 8, 8), (2, 8, 8), (8, 8), (2, 1, 8, 8, 8)))
def test_unet_refuses_images_it_cannot_halve(shape):
    with pytest.raises(ValueError, match="^x must have shape|divisible by 4"):
        unet(channels=(8, 8, 8))(torch.zeros(shape), torch.ones(2))


@pytest.mark.parametrize("shape", ((2, 3), (2, 1), (2,)))
def test_mlp_refuses_points_of_another_length(shape):
    with pytest.raises(ValueError, match="x"): mlp()(torch.zeros(shape), torch.ones(2))


@NETWORKS
@pytest.mark.parametrize("bad", (None, [[1., 2.]], "x"))
def test_networks_refuse_what_is_no_tensor(build, bad):
    with pytest.raises(TypeError, match="x"): build()(bad, torch.ones(1))


@NETWORKS
def test_networks_refuse_whole_numbers(build):
    network = build()
    x, sigma = inputs(network)
    with pytest.raises(TypeError, match="floating"): network(x.long(), sigma)


@NETWORKS
@pytest.mark.parametrize("shape", ((3,), (5,), (4, 1)))
def test_networks_refuse_levels_that_do_not_fit_the_batch(build, shape):
    network = build()
    with pytest.raises(ValueError, match="sigma"): network(inputs(network)[0], torch.ones(shape))


class Watch:
    """Note what the layers `embed` and `inp` of a network are given."""
    def __init__(self, network):
        network.embed.register_forward_pre_hook(lambda layer, args: setattr(self, "sigma", args[0]))
        network.inp.register_forward_pre_hook(lambda layer, args: setattr(self, "x", args[0]))


@NETWORKS
def test_networks_scale_their_inputs(build):
    network = build(sigma_data=0.7)
    watch, (x, sigma) = Watch(network), inputs(network)
    network(x, sigma)
    c_in = 1 / (sigma**2 + 0.49).sqrt()
    torch.testing.assert_close(watch.x, x * c_in.reshape(-1, *(1,) * (x.ndim - 1)))
    torch.testing.assert_close(watch.sigma, sigma.log() / 4)


@NETWORKS
def test_without_preconditioning_networks_see_raw_values(build):
    network = build(precondition=False)
    watch, (x, sigma) = Watch(network), inputs(network)
    network(x, sigma)
    assert torch.equal(watch.x, x) and torch.equal(watch.sigma, sigma)


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


def test_dropout_acts_in_training_mode_alone():
    network = unet(dropout=0.5)
    x, sigma = inputs(network)
    torch.manual_seed(0)
    assert not torch.equal(network(x, sigma), network(x, sigma))
    network.eval()
    assert torch.equal(network(x, sigma), network(x, sigma))


def test_dropout_zero_changes_nothing_in_training_mode():
    network = unet(dropout=0.)
    x, sigma = inputs(network)
    assert torch.equal(network(x, sigma), network(x, sigma))


@NETWORKS
def test_samples_of_a_batch_do_not_influence_each_other(build):
    network = build()
    x, sigma = inputs(network)
    alone = torch.cat([network(x[i:i + 1], sigma[i:i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, sigma), alone, rtol=1e-4, atol=1e-5)


@NETWORKS
def test_all_parameters_receive_gradients(build):
    network = build(num_classes=2)
    network(*inputs(network), class_labels=torch.tensor([0, 1, 0, 1])).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@NETWORKS
def test_networks_survive_saving_and_loading(build, tmp_path):
    network, other = build(), build()
    for p in other.parameters(): nn.init.zeros_(p)
    torch.save(network.state_dict(), tmp_path / "network.pt")
    other.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(network(*inputs(network)), other(*inputs(network)))


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
    for image, colour in ((red, (1., -1., -1.)), (white, (1., 1., 1.)), (green, (-1., 1., -1.))):
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
