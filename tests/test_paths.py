"""Ideal denoiser, paths and exact consistency function of a finite data set."""

import math
from functools import partial

import pytest
import torch
from conftest import gaussian

from consistency_models import (
    exact_consistency_function,
    gaussian_consistency_function,
    heun_step,
    ideal_denoiser,
    karras_schedule,
)
from consistency_models.paths import draw_bells, draw_jump, two_bells

MEAN, STD = 0.3, 0.5


def double(value): return torch.tensor(value, dtype=torch.float64)


def relative_error(answer, truth):
    """Root mean square of the error over that of the truth."""
    return ((answer - truth).norm() / truth.norm()).item()


def quantiles(n, std=STD):
    """A Gaussian sample of `n` points without sampling error, shape `(n, 1)`."""
    shares = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    return MEAN + std * torch.special.ndtri(shares)


def posterior_mean(x, sigma, data):
    """The mean of the posterior over `data`, one point at a time, with nothing but `math`."""
    total, weights = [0.] * len(x), 0.
    for point in data:
        w = math.exp(-sum((a - b) ** 2 for a, b in zip(x, point, strict=True)) / (2 * sigma**2))
        total, weights = [t + w * p for t, p in zip(total, point, strict=True)], weights + w
    return [t / weights for t in total]


def path_levels(sigma, steps, sigma_min=0.002):
    """Where the points of a path lie: the Karras schedule from `sigma` down."""
    return karras_schedule(steps + 1, sigma_min, sigma, dtype=torch.float64).flip(0)


@pytest.fixture
def points():
    """Twelve points in the plane, most of them well apart."""
    return gaussian(12, 2, dtype=torch.float64)


# Equals the paper

def test_ideal_denoiser_is_the_posterior_mean():
    """Appendix B.3 of Karras et al. (2022), with a level of its own for each sample."""
    data, x = gaussian(40, 3, dtype=torch.float64), gaussian(30, 3, seed=1, dtype=torch.float64)
    sigma = torch.logspace(-0.5, 1.9, 30, dtype=torch.float64)
    rows = zip(x.tolist(), sigma.tolist(), strict=True)
    expected = double([posterior_mean(row, s, data.tolist()) for row, s in rows])
    assert torch.allclose(ideal_denoiser(x, sigma, data), expected, rtol=1e-10, atol=1e-12)


def test_ideal_denoiser_of_many_gaussian_samples_is_the_gaussian_one():
    data = quantiles(4000)
    for sigma in (0.2, 1., 10.):
        x = quantiles(200, math.hypot(STD, sigma))
        exact = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
        assert relative_error(ideal_denoiser(x, sigma, data), exact) < 0.002


def test_ideal_denoiser_ends_at_the_nearest_point_and_starts_at_the_mean():
    data, x = gaussian(40, 2), gaussian(30, 2, seed=1)
    nearest = data[torch.cdist(x, data).argmin(1)]
    assert torch.equal(ideal_denoiser(x, 1e-4, data), nearest)
    assert torch.equal(ideal_denoiser(x, torch.zeros(30), data), nearest)
    assert torch.allclose(ideal_denoiser(x, 1e5, data), data.mean(0).expand(30, 2), atol=1e-4)


def test_path_is_heuns_method_on_the_levels_of_karras(points):
    """Algorithm 1 of Karras et al. (2022), one sample at a time."""
    x = gaussian(5, 2, seed=1, dtype=torch.float64) * 5
    path = exact_consistency_function(x, 5., points, steps=6, path=True)
    levels = path_levels(5., 6)
    expected = [x]
    for s, t in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        now = expected[-1]
        d = (now - ideal_denoiser(now, s, points)) / s
        guess = now + (t - s) * d
        expected.append(now + (t - s) * (d + (guess - ideal_denoiser(guess, t, points)) / t) / 2)
    torch.testing.assert_close(path, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_exact_function_of_a_gaussian_sample_is_the_closed_form():
    for sigma in (0.2, 3., 80.):
        x = quantiles(50, math.hypot(STD, sigma))
        answer = exact_consistency_function(x, sigma, quantiles(2000), steps=100)
        assert relative_error(answer, gaussian_consistency_function(x, sigma, MEAN, STD)) < 0.005


def test_exact_function_of_one_point_is_a_straight_line():
    """With a single data point the noise shrinks in proportion to the level."""
    point, z = double([[[[1., -2.]]]]), gaussian(20, 1, 1, 2, dtype=torch.float64)
    end = exact_consistency_function(point + 80 * z, 80., point)
    assert torch.allclose(end, point + 0.002 * z, rtol=1e-9)
    for steps in (2, 40):
        end = exact_consistency_function(point + 80 * z, 80., point, steps, sigma_min=0.)
        assert torch.allclose(end, point.expand(20, 1, 1, 2))


@pytest.mark.parametrize("sigma", [1., 80.])
def test_exact_function_ends_on_data_points_and_is_constant_along_its_path(points, sigma):
    x = points[torch.arange(60) % 12] + sigma * gaussian(60, 2, seed=1, dtype=torch.float64)
    path = exact_consistency_function(x, sigma, points, steps=80, path=True)
    distance, chosen = torch.cdist(path[-1], points).min(1)
    assert distance.quantile(0.9) < 0.01 and distance.max() < 0.05 and len(chosen.unique()) >= 8
    for i in (10, 40, 70):
        again = exact_consistency_function(path[i], path_levels(sigma, 80)[i], points, steps=80)
        assert (again - path[-1]).norm(dim=1).quantile(0.9) < 0.01


# Keeps its promises

def test_a_step_of_heun_takes_a_guess_that_is_known_and_a_level_for_each_sample(points):
    denoiser, asked = partial(ideal_denoiser, data=points), []
    x = gaussian(3, 2, seed=1, dtype=torch.float64)
    upper, lower = double([80., 2., 0.3]), double([60., 0.1, 0.2])
    def counted(x, sigma):
        asked.append(sigma)
        return denoiser(x, sigma)
    step = heun_step(counted, x, upper, lower)
    known = heun_step(counted, x, upper, lower, denoiser(x, upper))
    assert torch.equal(known, step) and list(map(id, asked)) == [id(upper), id(lower), id(lower)]
    alone = [heun_step(denoiser, x[i:i + 1], upper[i:i + 1], lower[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), step)
    assert heun_step(counted, x.bfloat16(), upper, lower).dtype == torch.bfloat16


def test_a_step_of_heun_to_no_noise_ends_at_the_guess_and_from_none_it_stays(points):
    denoiser, x = partial(ideal_denoiser, data=points), gaussian(2, 2, seed=1, dtype=torch.float64)
    end = heun_step(denoiser, x, double([0.8, 0.]), double([0., 0.]))
    torch.testing.assert_close(end, torch.stack([denoiser(x[:1], 0.8)[0], x[1]]))


def test_type_is_kept_and_answers_stay_finite_far_from_the_data():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        data, x = gaussian(40, 2), (100 * gaussian(30, 2, seed=1)).to(dtype)
        near, end = ideal_denoiser(x, 0.002, data), exact_consistency_function(x, 80., data)
        assert near.dtype == end.dtype == dtype and near.isfinite().all() and end.isfinite().all()
        assert near.abs().max() <= data.abs().max() * 1.01


def test_exact_function_at_the_end_of_the_path_is_the_identity(points):
    x = gaussian(30, 2, seed=1)
    for sigma, low in ((0.002, 0.002), (0.1, 0.1), (0., 0.002), (0., 0.)):
        end = exact_consistency_function(x, torch.full((30,), sigma), points, sigma_min=low)
        assert torch.allclose(end, x, rtol=0, atol=1e-6)


def test_exact_function_may_end_where_no_noise_is_left(points):
    x = points + 0.5 * gaussian(12, 2, seed=1)
    close, end = (exact_consistency_function(x, 0.5, points, sigma_min=low) for low in (1e-4, 0.))
    assert end.isfinite().all() and (close - end).abs().max() < 1e-3


def test_path_starts_at_the_sample_and_ends_at_the_answer(points):
    x = 80 * gaussian(10, 2, seed=1)
    path = exact_consistency_function(x, 80., points, path=True)
    assert path.shape == (41, 10, 2) and path.dtype == x.dtype and torch.equal(path[0], x)
    assert torch.equal(path[-1], exact_consistency_function(x, 80., points))


def test_each_sample_has_its_own_level(points):
    x, sigma = gaussian(4, 2, seed=1, dtype=torch.float64), double([0.002, 0.1, 1., 5.])
    for exact in (ideal_denoiser, exact_consistency_function):
        one_by_one = torch.cat([exact(x[i:i + 1], s, points) for i, s in enumerate(sigma)])
        assert torch.allclose(exact(x, sigma, points), one_by_one)


def test_two_bells_are_drawn_with_paths_that_keep_their_order_and_end_in_the_bells():
    from matplotlib.figure import Figure
    ax, bells = Figure().subplots(), two_bells()
    for side in (bells < 0, bells > 0):
        assert abs(bells[side].mean().abs() - 0.5) < 1e-3 and abs(bells[side].std() - 0.05) < 0.002
    draw_bells(ax)
    levels, paths = ax.lines[0].get_xdata(), torch.stack([torch.as_tensor(line.get_ydata()) for line in ax.lines])
    assert levels[0] == 2 and abs(levels[-1] - 0.02) < 1e-6 and len(paths) == 16
    assert (paths.diff(dim=0) > 0).all() and ((paths[:, -1].abs() - 0.5).abs() < 0.2).all()
    draw_jump(ax, 1.5, 1., 0.02, 0.5)
    arrow, = ax.texts
    assert arrow.xyann == (1.5, 1.) and arrow.xy == (0.02, 0.5)


def test_samples_may_be_images_or_plain_numbers():
    sigma = torch.tensor([0.01, 0.1, 1., 5., 80.])
    data, x = gaussian(20, 1, 4, 4), gaussian(5, 1, 4, 4, seed=1)
    for exact in (ideal_denoiser, exact_consistency_function):
        flat = exact(x.flatten(1), sigma, data.flatten(1))
        assert torch.equal(exact(x, sigma, data).flatten(1), flat)
    data, x = gaussian(30), 3 * gaussian(5, seed=1)
    for exact in (ideal_denoiser, exact_consistency_function,
            partial(exact_consistency_function, path=True)):
        answer = exact(x, sigma, data)
        assert answer.shape[-1:] == x.shape
        assert torch.equal(answer, exact(x[:, None], sigma, data[:, None])[..., 0])


# Refuses

def test_samples_that_do_not_fit_the_data_are_refused(points):
    for exact in (ideal_denoiser, exact_consistency_function):
        with pytest.raises(TypeError, match="^x must be a floating point tensor"):
            exact(torch.zeros(2, 2, dtype=torch.long), 1., points)
        with pytest.raises(ValueError, match=r"one shape, got \(4,\) and \(2,\)"):
            exact(gaussian(3, 4), 1., points)
