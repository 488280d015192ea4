"""Distances between two answers, and the weight of each noise level."""

import math
import warnings
from urllib.error import URLError

import lpips
import pytest
import torch

from consistency_models import improved_loss_weighting, karras_schedule, lpips_loss, pseudo_huber_loss
from consistency_models.losses import lpips_network


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def pair(shape, dtype=torch.float32, scale=1.):
    g = seeded()
    return tuple((scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype) for _ in range(2))


# Pseudo-Huber

@pytest.mark.parametrize("shape", ((4,), (4, 2), (4, 3, 5), (4, 3, 8, 8), (2, 3, 2, 4, 4)))
@pytest.mark.parametrize("c", (None, 0.03, 1., 10))
def test_pseudo_huber_is_the_norm_of_each_sample(shape, c):
    x, y = pair(shape, torch.float64)
    bend = 0.00054 * math.sqrt(math.prod(shape[1:])) if c is None else c
    norms = torch.tensor([sum(e**2 for e in (a - b).flatten().tolist()) for a, b in zip(x, y)], dtype=torch.float64)
    expected = ((norms + bend**2).sqrt() - bend).reshape(-1, *[1] * (len(shape) - 1))
    loss = pseudo_huber_loss(x, y, c)
    assert loss.shape == (shape[0], *[1] * (len(shape) - 1))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_pseudo_huber_multiplies_the_weights_of_each_sample():
    """Shape `(batch, 1, ...)` broadcasts with weights of that shape, not to `(batch, batch)`."""
    x, y = pair((5, 3, 4, 4))
    assert (pseudo_huber_loss(x, y) * torch.ones(5, 1, 1, 1)).shape == (5, 1, 1, 1)


def test_pseudo_huber_does_not_mix_samples():
    x, y = pair((3, 4))
    other = x.clone()
    other[1] = 100.
    assert torch.equal(pseudo_huber_loss(x, y)[[0, 2]], pseudo_huber_loss(other, y)[[0, 2]])


def test_pseudo_huber_is_symmetric():
    x, y = pair((3, 4))
    assert torch.equal(pseudo_huber_loss(x, y), pseudo_huber_loss(y, x))


@pytest.mark.parametrize("c", (None, 0.03, 1.))
def test_pseudo_huber_has_a_finite_zero_gradient_at_zero_error(c):
    x = torch.ones(2, 3, requires_grad=True)
    loss = pseudo_huber_loss(x, torch.ones(2, 3), c)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(2, 1)) and torch.equal(x.grad, torch.zeros(2, 3))


def test_pseudo_huber_gradient_points_along_the_error():
    """d/dx (sqrt(s + c^2) - c) = (x - y) / sqrt(s + c^2)."""
    x, y = pair((4, 6), torch.float64)
    x.requires_grad_()
    pseudo_huber_loss(x, y, 0.5).sum().backward()
    error = (x - y).detach()
    torch.testing.assert_close(x.grad, error / (error.square().sum(1, keepdim=True) + 0.25).sqrt())


def test_small_errors_are_squared_and_keep_their_precision():
    error = torch.full((1, 4), 1e-6)
    loss = pseudo_huber_loss(error, torch.zeros(1, 4), 0.5)
    torch.testing.assert_close(loss, torch.tensor([[4e-12 / (2 * 0.5)]]), rtol=1e-5, atol=0)


def test_large_errors_count_as_their_norm():
    loss = pseudo_huber_loss(torch.full((1, 4), 1e4), torch.zeros(1, 4), 0.5)
    torch.testing.assert_close(loss, torch.tensor([[2e4 - 0.5]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype, rtol", ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)))
def test_pseudo_huber_keeps_the_type(dtype, rtol):
    x, y = pair((4, 3, 8, 8), dtype)
    loss = pseudo_huber_loss(x, y)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), pseudo_huber_loss(x.double(), y.double()), rtol=rtol, atol=0)


def test_pseudo_huber_sums_half_types_in_float32():
    """4096 equal squares would stall at 256 if they were added in bfloat16."""
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert pseudo_huber_loss(x, 0 * x, 1e-3).item() == 64


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_pseudo_huber_hides_no_fault(dtype, bad):
    """A sample that is not finite has no distance and no gradient; the others do not notice."""
    x, y = (v.requires_grad_() for v in pair((3, 4), dtype))
    with torch.no_grad(): x[1, 2] = bad
    loss = pseudo_huber_loss(x, y)
    loss.sum().backward()
    assert not loss[1].isfinite() and not x.grad[1].isfinite().any() and not y.grad[1].isfinite().any()
    assert loss[[0, 2]].isfinite().all() and x.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shapes", (((4, 3), (4, 2)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((4,), (4, 1)), ((), ())))
def test_pseudo_huber_refuses_shapes_that_differ(shapes):
    with pytest.raises(ValueError, match="same shape"): pseudo_huber_loss(*(torch.zeros(s) for s in shapes))


@pytest.mark.parametrize("bad", (0, 0., -1., float("nan"), float("inf")))
def test_pseudo_huber_refuses_a_bad_c(bad):
    with pytest.raises(ValueError, match="^c "): pseudo_huber_loss(*pair((2, 3)), bad)


@pytest.mark.parametrize("bad", ("1", True, [1.], torch.ones(2)))
def test_pseudo_huber_refuses_a_c_that_is_no_number(bad):
    with pytest.raises(TypeError, match="^c "): pseudo_huber_loss(*pair((2, 3)), bad)


@pytest.mark.parametrize("bad", (None, 1., [1., 2.], torch.ones(2, 3, dtype=torch.long)))
def test_pseudo_huber_refuses_what_is_no_floating_tensor(bad):
    with pytest.raises(TypeError, match="input"): pseudo_huber_loss(bad, torch.ones(2, 3))
    with pytest.raises(TypeError, match="target"): pseudo_huber_loss(torch.ones(2, 3), bad)


# The weight of each step

@pytest.mark.parametrize("N", (2, 11, 1281))
def test_weights_are_one_over_the_length_of_each_step(N):
    sigmas = karras_schedule(N, dtype=torch.float64)
    weights = improved_loss_weighting(sigmas)
    expected = [1 / (b - a) for a, b in zip(sigmas.tolist(), sigmas.tolist()[1:])]
    assert weights.shape == (N - 1,)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_weights_favour_low_noise():
    assert (improved_loss_weighting(karras_schedule(40)).diff() < 0).all()


@pytest.mark.parametrize("dtype, expected", (
    (torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32),
    (torch.int64, torch.float32)))
def test_weights_have_at_least_float32(dtype, expected):
    weights = improved_loss_weighting(torch.tensor([1, 2, 4, 8], dtype=dtype))
    assert weights.dtype == expected
    assert torch.equal(weights, torch.tensor([1., 0.5, 0.25], dtype=expected))


@pytest.mark.parametrize("bad", ([80., 1.], [1.], [[1., 2.]], [0., 1.], [-1., 1.], [1., 1.], [1., float("nan")]))
def test_weights_refuse_a_grid_that_does_not_ascend(bad):
    with pytest.raises(ValueError, match="sigmas"): improved_loss_weighting(torch.tensor(bad))


# LPIPS, with random weights so that nothing is downloaded

@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")   # lpips calls torchvision the old way
        torch.manual_seed(0)
        return lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval().requires_grad_(False)


def images(channels=3, size=20): return torch.rand(2, channels, size, size, generator=seeded()) * 2 - 1


@pytest.mark.parametrize("channels", (1, 3))
def test_lpips_is_zero_for_equal_images_and_positive_for_others(network, channels):
    x = images(channels)
    equal, different = lpips_loss(x, x, network, 48), lpips_loss(x, -x, network, 48)
    assert equal.shape == different.shape == (2, 1, 1, 1)
    assert torch.equal(equal, torch.zeros(2, 1, 1, 1)) and (different > 0).all()


def test_lpips_of_grey_images_is_that_of_three_equal_channels(network):
    x = images(1)
    colour = lpips_loss(x.expand(-1, 3, -1, -1), -x.expand(-1, 3, -1, -1), network, 48)
    torch.testing.assert_close(lpips_loss(x, -x, network, 48), colour)


def test_lpips_gives_gradients(network):
    x = images().requires_grad_()
    lpips_loss(x, torch.zeros_like(x), network, 48).mean().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_lpips_resizes_to_the_asked_size():
    seen = []
    def network(a, b):
        seen.append((a.shape, b.shape))
        return (a - b).abs().mean((1, 2, 3), keepdim=True)
    assert lpips_loss(images(1), images(1), network).shape == (2, 1, 1, 1)
    assert lpips_loss(images(3), images(3), network, size=32).shape == (2, 1, 1, 1)
    assert seen == [(torch.Size((2, 3, 224, 224)),) * 2, (torch.Size((2, 3, 32, 32)),) * 2]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_lpips_keeps_the_type(network, dtype):
    x = images().to(dtype)
    loss = lpips_loss(x, -x, network, 48)
    assert loss.dtype == dtype and loss.isfinite().all()


@pytest.mark.parametrize("shape", ((2, 2, 8, 8), (2, 4, 8, 8), (3, 8, 8), (2, 3), (2, 3, 4, 8, 8)))
def test_lpips_refuses_what_are_no_images(network, shape):
    with pytest.raises(ValueError, match="LPIPS"): lpips_loss(torch.zeros(shape), torch.zeros(shape), network)


def test_lpips_refuses_shapes_that_differ(network):
    with pytest.raises(ValueError, match="same shape"): lpips_loss(images(3), images(1), network)


@pytest.fixture
def no_cache():
    """Forget loaded networks before and after."""
    lpips_network.cache_clear()
    yield
    lpips_network.cache_clear()


def test_lpips_network_says_what_to_do_without_a_connection(monkeypatch, no_cache):
    def offline(*args, **kwargs): raise URLError("no route to host")
    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(RuntimeError, match="'vgg'.*could not be downloaded.*pseudo_huber_loss"): lpips_network("vgg")


def test_lpips_loss_fetches_the_default_network_once(monkeypatch, no_cache):
    built = []
    class Stand(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            built.append(net)
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, a, b): return self.weight * (a - b).abs().mean((1, 2, 3), keepdim=True)
    monkeypatch.setattr(lpips, "LPIPS", Stand)
    for _ in range(2): assert not lpips_loss(images(), -images()).requires_grad
    assert built == ["vgg"]


def test_a_failed_download_is_tried_again(monkeypatch, no_cache):
    def offline(*args, **kwargs): raise URLError("no route to host")
    with monkeypatch.context() as patch:
        patch.setattr(lpips, "LPIPS", offline)
        with pytest.raises(RuntimeError): lpips_network("alex")
    monkeypatch.setattr(lpips, "LPIPS", lambda net, verbose: torch.nn.Identity())
    assert isinstance(lpips_network("alex"), torch.nn.Identity)


def test_lpips_network_refuses_an_unknown_name(no_cache):
    with pytest.raises(ValueError, match="nonsense"): lpips_network("nonsense")
