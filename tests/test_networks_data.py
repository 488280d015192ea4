"""The bundled networks and the metrics."""


import pytest
import torch
from torch import nn

from consistency_models import (
    MLP,
    Classifier,
    Precondition,
    UNet,
    frechet_distance,
    load_digits,
    recognition_rate,
    train_classifier,
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
