"""Answers known in advance: boundary, unit variance, published coefficients, Gaussian data, finite data sets."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import AnyRank, gaussian, shake
from torch import nn

from consistency_models import (
    MLP,
    ImprovedConsistencyTraining,
    Precondition,
    UNet,
    as_network,
    exact_consistency_function,
    gaussian_consistency_function,
    ideal_denoiser,
    input_scaling,
    karras_schedule,
    model_forward_wrapper,
    noise_conditioning,
    output_scaling,
    pseudo_huber_loss,
    skip_scaling,
    slerp,
)
from consistency_models.consistency_training import add_noise

MEAN, STD = 0.3, 0.5
SIGMAS = (0.05, 0.2, 0.5, 1., 3., 10., 80.)
LEVELS = (0.002, 0.0021, 0.01, 0.1, 0.5, 1., 7., 80., 1000.)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_sigma = pytest.mark.parametrize("sigma", SIGMAS)
each_level = pytest.mark.parametrize("sigma", LEVELS)
each_std = pytest.mark.parametrize("std", [0.1, 0.5, 3.])


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def relative_error(answer, truth):
    """Root mean square of the error over that of the truth."""
    return ((answer - truth).norm() / truth.norm()).item()


# f(x, sigma_min) = x

def wild(x, sigma): return 1e4 * torch.randn_like(x)


NETWORKS = {
    "UNet": (shake(UNet(3, (8, 16))), (4, 3, 8, 8)),
    "UNet as built": (UNet(3, (8, 16)), (4, 3, 8, 8)),
    "UNet on raw input": (shake(UNet(3, (8, 16), precondition=False)), (4, 3, 8, 8)),
    "MLP": (shake(MLP(2, 16, 2)), (64, 2)),
    "MLP as built": (MLP(2, 16, 2), (64, 2)),
    "preconditioned": (Precondition(lambda x, c_noise: x.exp() + c_noise[:, None]), (64, 2)),
    "random weights, rank 3": (shake(AnyRank()), (4, 3, 5)),
    "random weights, rank 5": (shake(AnyRank()), (4, 3, 2, 2, 2)),
    "random answers": (wild, (64, 2))}
each_network = pytest.mark.parametrize("network, shape", NETWORKS.values(), ids=NETWORKS)


@torch.no_grad()
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
@each_network
def test_the_answer_is_x_where_no_noise_is_left(network, shape, dtype):
    """Also among other levels, and where a level is so small that it becomes 0 in half precision."""
    if isinstance(network, nn.Module): network = copy.deepcopy(network).to(dtype)
    x, levels = gaussian(*shape).to(dtype), torch.linspace(0, 3, shape[0])
    for sigma_min in (0., 0.002):
        assert torch.equal(model_forward_wrapper(network, x, 0., sigma_min=sigma_min), x)
        mixed = model_forward_wrapper(network, x, levels, sigma_min=sigma_min)
        assert torch.equal(mixed[0], x[0]) and mixed.isfinite().all() and not torch.equal(mixed[1:], x[1:])
    assert model_forward_wrapper(network, x, 1e-9, sigma_min=0.).sub(x).abs().max() < 1e-4


def test_a_level_that_is_nan_gives_nan():
    answer = model_forward_wrapper(MLP(2, 16, 2), gaussian(3, 2), torch.tensor([torch.nan, 1., torch.nan]))
    assert answer.isnan().all(1).tolist() == [True, False, True]


def test_no_gradient_is_lost_where_no_noise_is_left():
    network, x = shake(MLP(2, 16, 2)), gaussian(4, 2)
    model_forward_wrapper(network, x, torch.tensor([0., 0., 1., 2.]), sigma_min=0.).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_exact_answers_hold_down_to_no_noise():
    data, x = gaussian(20, 2), gaussian(5, 2, seed=1)
    nearest = data[torch.cdist(x, data).argmin(1)]
    assert torch.equal(ideal_denoiser(x, torch.zeros(5), data), nearest)
    assert torch.equal(exact_consistency_function(x, torch.zeros(5), data), x)
    assert torch.equal(gaussian_consistency_function(x, 0.), gaussian_consistency_function(x, 0.002))
    close, end = (exact_consistency_function(x, torch.full((5,), 0.5), data, sigma_min=low) for low in (1e-4, 0.))
    assert (close - end).abs().max() < 1e-3


@torch.no_grad()
@each_dtype
@each_network
def test_boundary_condition_is_exact(network, shape, dtype):
    if isinstance(network, nn.Module): network = copy.deepcopy(network).to(dtype)
    x = (3 * gaussian(*shape)).to(dtype)
    assert not torch.equal(model_forward_wrapper(network, x, 1.), x)
    for sigma in (0.002, double(0.002), torch.full(shape[:1], 0.002, dtype=dtype), karras_schedule(10)[0]):
        assert torch.equal(model_forward_wrapper(network, x, sigma), x)


@each_dtype
@each_std
@pytest.mark.parametrize("sigma_min", [1e-4, 0.002, 0.01, 0.3, 1.])
def test_boundary_condition_is_exact_for_other_settings(sigma_min, std, dtype):
    x, sigma = gaussian(64, 2).to(dtype), torch.full((64,), sigma_min, dtype=dtype)
    assert torch.equal(model_forward_wrapper(wild, x, sigma, std, sigma_min), x)
    assert not torch.equal(model_forward_wrapper(wild, x, 1.5 * sigma, std, sigma_min), x)


# Var[c_in x] = 1

@each_level
@each_std
def test_scaled_input_has_unit_variance(sigma, std):
    noisy = std * gaussian(100_000, dtype=torch.float64) + sigma * gaussian(100_000, seed=1, dtype=torch.float64)
    assert (input_scaling(double(sigma), std) * noisy).var().item() == pytest.approx(1, rel=0.02)


def seen_by_first_layer(network, layer, x, sigma):
    """What a network's first layer is given."""
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x, torch.full((len(x),), sigma))
    return seen[0]


@torch.no_grad()
@each_sigma
def test_bundled_networks_see_unit_variance(sigma):
    mlp, unet = MLP(2, 8, 1), UNet(1, (8,))
    points, images = gaussian(20_000, 2), gaussian(100, 1, 16, 16)
    for net, layer, data in ((mlp, mlp.inp, points), (unet, unet.inp, images)):
        noisy = STD * data + sigma * torch.randn_like(data)
        assert seen_by_first_layer(net, layer, noisy, sigma).var().item() == pytest.approx(1, rel=0.05)


@torch.no_grad()
@each_sigma
def test_precondition_gives_unit_variance_and_c_noise(sigma):
    noisy = STD * gaussian(20_000, 2) + sigma * gaussian(20_000, 2, seed=1)
    scaled, c_noise = Precondition(lambda x, c_noise: (x, c_noise))(noisy, torch.full((20_000,), sigma))
    assert scaled.var().item() == pytest.approx(1, rel=0.05)
    assert torch.allclose(c_noise, torch.full((20_000,), math.log(sigma) / 4))


# Coefficients against the papers, in plain Python

@each_level
@each_std
def test_input_scaling_and_noise_conditioning_are_those_of_edm(sigma, std):
    assert input_scaling(double(sigma), std).item() == pytest.approx(1 / math.hypot(sigma, std), rel=1e-12)
    assert noise_conditioning(double(sigma)).item() == pytest.approx(math.log(sigma) / 4, rel=1e-12)


@each_level
@each_std
def test_skip_and_output_scaling_without_sigma_min_are_those_of_edm(sigma, std):
    total = sigma**2 + std**2
    assert skip_scaling(double(sigma), std, 0.).item() == pytest.approx(std**2 / total, rel=1e-12)
    assert output_scaling(double(sigma), std, 0.).item() == pytest.approx(sigma * std / math.sqrt(total), rel=1e-12)


@each_level
@each_std
@pytest.mark.parametrize("low", [0.0005, 0.002])
def test_skip_and_output_scaling_are_those_of_consistency_models(sigma, std, low):
    shifted = sigma - low
    c_skip, c_out = std**2 / (shifted**2 + std**2), std * shifted / math.sqrt(std**2 + sigma**2)
    assert skip_scaling(double(sigma), std, low).item() == pytest.approx(c_skip, rel=1e-12)
    assert output_scaling(double(sigma), std, low).item() == pytest.approx(c_out, rel=1e-12)


@each_level
def test_coefficients_in_float32_and_bfloat16_are_accurate(sigma):
    """bfloat16 levels are rounded, but what follows from them is computed in float32."""
    for dtype in (torch.float32, torch.bfloat16):
        level = torch.tensor(sigma, dtype=dtype)
        low = torch.tensor(0.002, dtype=dtype).item()
        exact = skip_scaling(level.double(), 0.5, low), output_scaling(level.double(), 0.5, low)
        found = skip_scaling(level), output_scaling(level)
        assert all(f.dtype == torch.float32 for f in found)
        assert all(f.item() == pytest.approx(e.item(), rel=1e-5) for f, e in zip(found, exact, strict=True))


@each_sigma
def test_wrapper_is_skip_plus_output(sigma):
    x, net = gaussian(8, 3, 4, dtype=torch.float64), shake(AnyRank()).double()
    answer = net(x, torch.full((8,), sigma, dtype=torch.float64))
    expected = 0.25 / ((sigma - 0.002) ** 2 + 0.25) * x + 0.5 * (sigma - 0.002) / math.hypot(0.5, sigma) * answer
    assert torch.allclose(model_forward_wrapper(net, x, double(sigma)), expected, rtol=1e-12)


# Gaussian data

def slope(x, sigma):
    """dx / dsigma of the probability-flow ODE of Gaussian data."""
    return sigma / (STD**2 + sigma**2) * (x - MEAN)


def runge_kutta(x, grid):
    """Follow the ODE along the levels of `grid`, independently of the package."""
    for s, t in pairwise(grid):
        h = t - s
        a = slope(x, s)
        b = slope(x + h / 2 * a, s + h / 2)
        c = slope(x + h / 2 * b, s + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, t))
    return x


@each_sigma
def test_gaussian_formula_solves_the_ode(sigma):
    grid = [0.002 * (sigma / 0.002) ** (1 - i / 400) for i in range(401)]
    x = MEAN + math.hypot(sigma, STD) * gaussian(100, dtype=torch.float64)
    end = runge_kutta(x, grid)
    assert torch.allclose(gaussian_consistency_function(x, sigma, MEAN, STD), end, atol=1e-7)


def test_gaussian_formula_maps_noise_to_data():
    noisy = MEAN + math.hypot(80., STD) * gaussian(100_000)
    data = gaussian_consistency_function(noisy, 80., MEAN, STD)
    assert data.mean().item() == pytest.approx(MEAN, abs=0.01) and data.std().item() == pytest.approx(STD, rel=0.01)


@each_sigma
def test_gaussian_function_survives_the_parameterization(sigma):
    """Taken apart into a raw network and put together again, it is the same function."""
    x = MEAN + math.hypot(sigma, STD) * gaussian(100, 2, dtype=torch.float64)
    net = as_network(lambda x, s: gaussian_consistency_function(x, s, MEAN, STD))
    exact = gaussian_consistency_function(x, sigma, MEAN, STD)
    assert torch.allclose(model_forward_wrapper(net, x, double(sigma)), exact)


STEPS = 2000


@pytest.fixture(scope="module")
def trained():
    """An MLP that has learnt the consistency function of N(0.3, 0.5^2) in two dimensions."""
    torch.manual_seed(0)
    net = MLP(2, width=32, depth=1)
    training = ImprovedConsistencyTraining(initial_timesteps=10, final_timesteps=160, lognormal_mean=0.)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for k in range(STEPS):
        output = training(net, MEAN + STD * torch.randn(512, 2), k, STEPS)
        loss = (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return net.eval().requires_grad_(False)


@each_sigma
def test_trained_network_is_within_five_per_cent_of_the_gaussian_formula(trained, sigma):
    noisy = MEAN + STD * gaussian(4000, 2, seed=1) + sigma * gaussian(4000, 2, seed=2)
    exact = gaussian_consistency_function(noisy, sigma, MEAN, STD)
    assert relative_error(model_forward_wrapper(trained, noisy, sigma), exact) < 0.05


# Finite data sets: the ideal denoiser

def posterior_mean(x, sigma, data):
    """The mean of the posterior over `data`, one point at a time, with nothing but `math`."""
    total, weights = [0.] * len(x), 0.
    for point in data:
        w = math.exp(-sum((a - b) ** 2 for a, b in zip(x, point, strict=True)) / (2 * sigma**2))
        total, weights = [t + w * p for t, p in zip(total, point, strict=True)], weights + w
    return [t / weights for t in total]


@pytest.mark.parametrize("sigma", [0.3, 1., 5., 80.])
def test_ideal_denoiser_is_the_posterior_mean(sigma):
    data, x = gaussian(40, 3, dtype=torch.float64), gaussian(30, 3, seed=1, dtype=torch.float64)
    expected = double([posterior_mean(row, sigma, data.tolist()) for row in x.tolist()])
    assert torch.allclose(ideal_denoiser(x, sigma, data), expected, rtol=1e-10, atol=1e-12)


def test_ideal_denoiser_takes_a_level_for_each_sample():
    data, x, sigma = gaussian(40, 3), gaussian(5, 3, seed=1), torch.tensor([0.1, 0.5, 1., 5., 80.])
    one_by_one = torch.cat([ideal_denoiser(x[i:i + 1], s, data) for i, s in enumerate(sigma)])
    assert torch.allclose(ideal_denoiser(x, sigma, data), one_by_one)


def test_exact_answers_for_plain_numbers_are_those_for_points_of_one_coordinate():
    data, x, sigma = gaussian(30), 3 * gaussian(5, seed=1), torch.tensor([0.01, 0.1, 1.0, 5.0, 80.0])
    for exact in (ideal_denoiser, exact_consistency_function, partial(exact_consistency_function, path=True)):
        answer = exact(x, sigma, data)
        assert answer.shape[-1:] == x.shape and torch.equal(answer, exact(x[:, None], sigma, data[:, None])[..., 0])
    weights = torch.softmax(-(x[:, None] - data).double() ** 2 / (2 * sigma[:, None].double() ** 2), 1)
    assert torch.allclose(ideal_denoiser(x, sigma, data), (weights @ data.double()).float(), atol=1e-5)
    assert ideal_denoiser(x[:0], 1.0, data).shape == (0,)


def test_ideal_denoiser_works_on_images_as_on_flat_data():
    data, x = gaussian(20, 1, 4, 4), gaussian(5, 1, 4, 4, seed=1)
    assert torch.allclose(ideal_denoiser(x, 0.7, data).flatten(1), ideal_denoiser(x.flatten(1), 0.7, data.flatten(1)))


def test_ideal_denoiser_ends_at_the_nearest_point_and_starts_at_the_mean():
    data, x = gaussian(40, 2), gaussian(30, 2, seed=1)
    nearest = data[torch.cdist(x, data).argmin(1)]
    assert torch.equal(ideal_denoiser(x, 1e-4, data), nearest)
    assert torch.allclose(ideal_denoiser(x, 1e5, data), data.mean(0).expand(30, 2), atol=1e-4)


@each_dtype
def test_ideal_denoiser_keeps_type_and_stays_finite_far_from_the_data(dtype):
    data, x = gaussian(40, 2), (100 * gaussian(30, 2, seed=1)).to(dtype)
    answer = ideal_denoiser(x, 0.002, data)
    assert answer.dtype == dtype and answer.isfinite().all()
    assert answer.abs().max() <= data.abs().max() * 1.01


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1., 3., 10.])
def test_ideal_denoiser_of_many_gaussian_samples_is_the_gaussian_one(sigma):
    data = MEAN + STD * gaussian(40_000, 1, dtype=torch.float64)
    x = MEAN + math.hypot(STD, sigma) * gaussian(200, 1, seed=1, dtype=torch.float64)
    exact = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
    assert relative_error(ideal_denoiser(x, sigma, data), exact) < 0.02


# Finite data sets: the exact consistency function

def quantiles(n, std=STD):
    """A Gaussian sample of `n` points without sampling error, shape `(n, 1)`."""
    return MEAN + std * torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def path_levels(sigma, steps, sigma_min=0.002):
    """Where the points of a path lie: the Karras schedule from `sigma` down."""
    return karras_schedule(steps + 1, sigma_min, sigma, dtype=torch.float64).flip(0)


@pytest.fixture
def points():
    """Twelve points in the plane, most of them well apart."""
    return gaussian(12, 2, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [1., 10., 80.])
def test_exact_function_ends_on_data_points(points, sigma):
    x = points[torch.arange(60) % 12] + sigma * gaussian(60, 2, seed=1, dtype=torch.float64)
    end = exact_consistency_function(x, sigma, points, steps=80)
    distance, chosen = torch.cdist(end, points).min(1)
    assert distance.quantile(0.9) < 0.01 and distance.max() < 0.05
    assert len(chosen.unique()) >= 8


@pytest.mark.parametrize("sigma", [1., 10., 80.])
def test_exact_function_is_constant_along_its_own_path(points, sigma):
    x = points[torch.arange(40) % 12] + sigma * gaussian(40, 2, seed=1, dtype=torch.float64)
    path = exact_consistency_function(x, sigma, points, steps=100, path=True)
    for i in range(10, 101, 15):
        again = exact_consistency_function(path[i], path_levels(sigma, 100)[i], points, steps=100)
        assert (again - path[-1]).norm(dim=1).quantile(0.9) < 0.01


def test_whole_numbers_are_no_samples():
    x = torch.zeros(2, 2, dtype=torch.long)
    for call in (lambda: ideal_denoiser(x, 1., torch.randn(3, 2)), lambda: gaussian_consistency_function(x, 2.),
                 lambda: add_noise(x, x, torch.ones(2)), lambda: slerp(x, x, 0.5)):
        with pytest.raises(TypeError, match="float"): call()


def test_noise_must_have_the_shape_of_the_samples():
    for shape in ((1, 3), (4, 1), (2, 4, 3)):
        with pytest.raises(ValueError, match="shape of x"): add_noise(torch.zeros(4, 3), torch.ones(shape), torch.ones(4))


def test_a_number_is_a_level_of_the_precision_of_the_samples():
    x, net = torch.randn(3, 4, dtype=torch.float64), lambda x, sigma: x.tanh()
    assert torch.equal(model_forward_wrapper(net, x, 0.3), model_forward_wrapper(net, x, torch.full((3,), 0.3, dtype=torch.float64)))
    assert torch.equal(gaussian_consistency_function(x, 0.3), gaussian_consistency_function(x, torch.full((3,), 0.3, dtype=torch.float64)))


def test_path_starts_at_the_sample_and_ends_at_the_answer(points):
    x = 80 * gaussian(10, 2, seed=1, dtype=torch.float64)
    path = exact_consistency_function(x, 80., points, path=True)
    assert path.shape == (41, 10, 2) and torch.equal(path[0], x)
    assert torch.equal(path[-1], exact_consistency_function(x, 80., points))


def test_path_follows_the_slope_of_the_ideal_denoiser(points):
    path = exact_consistency_function(5 * gaussian(10, 2, dtype=torch.float64), 5., points, steps=400, path=True)
    levels = path_levels(5., 400)
    i = 100
    measured = (path[i + 1] - path[i - 1]) / (levels[i + 1] - levels[i - 1])
    expected = (path[i] - ideal_denoiser(path[i], levels[i], points)) / levels[i]
    assert relative_error(measured, expected) < 1e-3


@each_dtype
def test_exact_function_at_sigma_min_is_the_identity(points, dtype):
    x = gaussian(30, 2, seed=1).to(dtype)
    end = exact_consistency_function(x, 0.002, points)
    assert end.dtype == dtype and torch.allclose(end, x, rtol=0, atol=1e-12)
    assert torch.allclose(exact_consistency_function(x, 0.1, points, sigma_min=0.1), x, rtol=0, atol=1e-6)


def test_exact_function_takes_a_level_for_each_sample(points):
    x, sigma = gaussian(4, 2, seed=1, dtype=torch.float64), double([0.002, 0.1, 1., 5.])
    one_by_one = torch.cat([exact_consistency_function(x[i:i + 1], s, points) for i, s in enumerate(sigma)])
    assert torch.allclose(exact_consistency_function(x, sigma, points), one_by_one)
    assert torch.allclose(exact_consistency_function(x, sigma, points)[0], x[0], rtol=0, atol=1e-12)


def test_exact_function_of_one_point_is_a_straight_line():
    """With a single data point the noise shrinks in proportion to the level."""
    point, z = double([[[[1., -2.]]]]), gaussian(20, 1, 1, 2, dtype=torch.float64)
    end = exact_consistency_function(point + 80 * z, 80., point)
    assert torch.allclose(end, point + 0.002 * z, rtol=1e-9)


@each_sigma
def test_exact_function_of_a_large_gaussian_sample_is_the_closed_form(sigma):
    x = quantiles(100, math.hypot(STD, sigma))
    answer = exact_consistency_function(x, sigma, quantiles(2000), steps=100)
    assert relative_error(answer, gaussian_consistency_function(x, sigma, MEAN, STD)) < 0.005


def test_a_random_gaussian_sample_comes_close_too():
    data = MEAN + STD * gaussian(4000, 1, dtype=torch.float64)
    x = quantiles(100, math.hypot(STD, 80.))
    answer = exact_consistency_function(x, 80., data)
    assert relative_error(answer, gaussian_consistency_function(x, 80., MEAN, STD)) < 0.05
