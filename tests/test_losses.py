"""Distances between two answers, and the weight of each noise level."""

import math
import warnings
from urllib.error import URLError

import lpips
import pytest
import torch
from conftest import gaussian, seeded

from consistency_models import improved_loss_weighting, karras_schedule, lpips_loss, pseudo_huber_loss
from consistency_models.losses import lpips_network

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def pair(*shape, dtype=torch.float64):
    return gaussian(*shape, dtype=dtype), gaussian(*shape, seed=1, dtype=dtype)


def images(channels=3): return torch.rand(2, channels, 20, 20, generator=seeded()) * 2 - 1


@pytest.fixture(scope="module")
def network():
    """LPIPS with random weights, so that nothing is downloaded."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")   # lpips calls torchvision the old way
        torch.manual_seed(0)
        net = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    return net.eval().requires_grad_(False)


@pytest.fixture
def no_cache():
    """Forget loaded networks before and after."""
    lpips_network.cache_clear()
    yield
    lpips_network.cache_clear()


# Equals the paper

def test_pseudo_huber_is_the_formula_for_each_sample():
    """sqrt(||x - y||^2 + c^2) - c with c = 0.00054 sqrt(d): Song & Dhariwal (2023), section 3.3."""
    for shape in ((4,), (4, 2), (4, 3, 5), (4, 3, 8, 8), (2, 3, 2, 4, 4)):
        x, y = pair(*shape)
        for c in (None, 0.03, 1., 10):
            bend = 0.00054 * math.sqrt(math.prod(shape[1:])) if c is None else c
            rows = (x - y).reshape(len(x), -1).tolist()
            sums = [sum(e**2 for e in row) for row in rows]
            expected = [math.sqrt(s + bend**2) - bend for s in sums]
            loss = pseudo_huber_loss(x, y, c)
            assert loss.shape == (shape[0], *[1] * (len(shape) - 1))
            assert loss.flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_pseudo_huber_gradient_points_along_the_error():
    """d/dx (sqrt(s + c^2) - c) = (x - y) / sqrt(s + c^2)."""
    x, y = pair(4, 6)
    x.requires_grad_()
    pseudo_huber_loss(x, y, 0.5).sum().backward()
    error = (x - y).detach()
    torch.testing.assert_close(x.grad, error / (error.square().sum(1, keepdim=True) + 0.25).sqrt())


def test_small_errors_are_squared_and_large_ones_count_as_their_norm():
    zero = torch.zeros(1, 4, dtype=torch.float64)
    small, large = (pseudo_huber_loss(zero + e, zero, 0.5).item() for e in (1e-4, 1e4))
    assert small == pytest.approx(4e-8 / (2 * 0.5), rel=1e-5)
    assert large == pytest.approx(2e4 - 0.5, rel=1e-6)


def test_weights_are_one_over_the_length_of_each_step():
    """Section 3.1 of Song & Dhariwal (2023)."""
    for N in (2, 11, 1281):
        sigmas = karras_schedule(N, dtype=torch.float64)
        levels = sigmas.tolist()
        expected = [1 / (b - a) for a, b in zip(levels[:-1], levels[1:], strict=True)]
        weights = improved_loss_weighting(sigmas)
        assert weights.tolist() == pytest.approx(expected, rel=1e-9)


# Keeps its promises

def test_pseudo_huber_does_not_mix_samples_and_is_symmetric():
    x, y = pair(3, 4)
    other = x.clone()
    other[1] = 100.
    loss = pseudo_huber_loss(x, y)
    assert torch.equal(loss[[0, 2]], pseudo_huber_loss(other, y)[[0, 2]])
    assert torch.equal(loss, pseudo_huber_loss(y, x))


def test_equal_answers_have_no_distance_and_no_gradient():
    for c in (None, 0.03, 1.):
        x = torch.ones(2, 3, requires_grad=True)
        loss = pseudo_huber_loss(x, torch.ones(2, 3), c)
        loss.sum().backward()
        assert torch.equal(loss, torch.zeros(2, 1)) and torch.equal(x.grad, torch.zeros(2, 3))


def test_pseudo_huber_keeps_the_type_and_sums_half_types_in_float32():
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        x, y = (v.to(dtype) for v in pair(4, 3, 8, 8))
        loss = pseudo_huber_loss(x, y)
        assert loss.dtype == dtype
        wide = pseudo_huber_loss(x.double(), y.double())
        torch.testing.assert_close(loss.double(), wide, rtol=rtol, atol=0)
    far = torch.full((1, 4), 300.).half()   # the square of 300 is more than float16 can hold
    assert pseudo_huber_loss(far, 0 * far).item() == 600


def test_pseudo_huber_hides_no_fault():
    """A value that is not finite shows in distance and gradient of its sample, and in no other."""
    for bad, reached in ((math.nan, [True] * 4), (math.inf, [False, False, True, False])):
        for dtype in DTYPES:
            x, y = (v.to(dtype).requires_grad_() for v in pair(3, 4))
            with torch.no_grad(): x[1, 2] = bad
            loss = pseudo_huber_loss(x, y)
            loss.sum().backward()
            assert loss.isfinite().flatten().tolist() == [True, False, True]
            assert x.grad[1].isnan().tolist() == y.grad[1].isnan().tolist() == reached
            assert x.grad[[0, 2]].isfinite().all()


def test_weights_have_at_least_float32():
    kinds = {torch.float32: torch.float32, torch.float64: torch.float64,
        torch.bfloat16: torch.float32,
             torch.int64: torch.float32}
    for dtype, expected in kinds.items():
        weights = improved_loss_weighting(torch.tensor([1, 2, 4, 8], dtype=dtype))
        assert weights.dtype == expected and weights.tolist() == [1., 0.5, 0.25]
    assert improved_loss_weighting([1., 2., 4.]).tolist() == [1., 0.5]


def test_lpips_is_zero_for_equal_images_and_has_a_gradient_for_others(network):
    for channels in (1, 3):
        x = images(channels).requires_grad_()
        assert torch.equal(lpips_loss(x, x, network, 48), torch.zeros(2, 1, 1, 1))
        loss = lpips_loss(x, torch.zeros_like(x), network, 48)
        loss.sum().backward()
        assert loss.shape == (2, 1, 1, 1) and (loss > 0).all()
        assert x.grad.isfinite().all() and (x.grad.abs().sum((1, 2, 3)) > 0).all()


def test_lpips_of_gray_images_is_that_of_three_equal_channels(network):
    x = images(1)
    color = lpips_loss(x.expand(-1, 3, -1, -1), -x.expand(-1, 3, -1, -1), network, 48)
    torch.testing.assert_close(lpips_loss(x, -x, network, 48), color)


def test_lpips_resizes_to_224_or_the_asked_size_and_keeps_the_type():
    seen = []
    def network(a, b):
        seen.append((*a.shape, *b.shape, a.dtype))
        return (a - b).abs().mean((1, 2, 3), keepdim=True)
    for x, options, size in ((images(1), {}, 224), (images(3).bfloat16(), {"size": 32}, 32)):
        assert lpips_loss(x, -x, network, **options).dtype == x.dtype
        assert seen.pop() == (2, 3, size, size) * 2 + (torch.float32,)


def test_the_default_network_of_lpips_is_fetched_once_and_frozen(monkeypatch, no_cache):
    built = []
    class Stand(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            built.append(net)
            self.weight = torch.nn.Parameter(torch.rand(()))

        def forward(self, a, b): return self.weight * (a - b).abs().mean((1, 2, 3), keepdim=True)
    monkeypatch.setattr(lpips, "LPIPS", Stand)
    before = torch.get_rng_state()
    for _ in range(2): assert not lpips_loss(images(), -images()).requires_grad
    assert built == ["vgg"] and not lpips_network("vgg").training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_download_says_what_to_do_and_is_tried_again(monkeypatch, no_cache):
    def offline(*args, **kwargs): raise URLError("no route to host")
    with monkeypatch.context() as patch:
        patch.setattr(lpips, "LPIPS", offline)
        told = "'alex'.*could not be downloaded.*pseudo_huber_loss"
        with pytest.raises(RuntimeError, match=told):
            lpips_network("alex")
    monkeypatch.setattr(lpips, "LPIPS", lambda net, verbose: torch.nn.Identity())
    assert isinstance(lpips_network("alex"), torch.nn.Identity)


# Refuses

def test_shapes_that_differ_are_refused():
    for a, b in (((4, 3), (4, 2)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((4,), (4, 1)), ((), ()),
            ((3, 0), (3, 0))):
        with pytest.raises(ValueError, match="same shape"):
            pseudo_huber_loss(torch.zeros(a), torch.zeros(b))


def test_what_is_no_floating_tensor_is_refused_by_name():
    for bad in (None, 1., [1., 2.], torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(TypeError, match="^input must be"):
            pseudo_huber_loss(bad, torch.ones(2, 3))
        with pytest.raises(TypeError, match="^target must be"):
            pseudo_huber_loss(torch.ones(2, 3), bad)


def test_a_bend_that_is_no_positive_number_is_refused():
    for bad, error in ((0, ValueError), (-1., ValueError), (math.nan, ValueError), ("1", TypeError),
            (True, TypeError)):
        with pytest.raises(error, match="^c must be"): pseudo_huber_loss(*pair(2, 3), bad)


def test_weights_of_levels_that_do_not_ascend_are_refused():
    for bad in ([80., 1.], [1.], [1., 1.], [0., 1.]):
        with pytest.raises(ValueError, match="^sigmas must be"):
            improved_loss_weighting(torch.tensor(bad))


def test_lpips_refuses_what_are_no_images(network):
    for shape in ((2, 2, 8, 8), (3, 8, 8), (2, 3), (2, 3, 4, 8, 8)):
        with pytest.raises(ValueError, match="^LPIPS"):
            lpips_loss(torch.zeros(shape), torch.zeros(shape), network)
    with pytest.raises(ValueError, match="same shape"): lpips_loss(images(3), images(1), network)
    with pytest.raises(ValueError, match="'vgg', 'alex' or 'squeeze', got 'nonsense'"):
        lpips_network("nonsense")
