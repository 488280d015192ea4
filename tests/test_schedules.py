"""The noise levels, how many there are, and how often each is visited."""

import math

import pytest
import torch

from consistency_models import (
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    ema_decay_rate_schedule,
    improved_timesteps_schedule,
    karras_schedule,
    lognormal_probabilities,
    lognormal_timestep_distribution,
    timesteps_schedule,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RUNS = (1, 2, 3, 7, 10, 99, 1000)
LEVELS = ((2, 150), (2, 2), (3, 7), (10, 10), (10, 1280), (5, 1000))


def seeded(seed=0): return torch.Generator().manual_seed(seed)


# The Karras schedule

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_timesteps", (2, 3, 18, 40))
@pytest.mark.parametrize("sigma_min, sigma_max, rho", ((0.002, 80., 7.), (0.01, 50., 3.), (0.1, 1., 1.)))
def test_karras_schedule_has_exact_ends_and_ascends(dtype, num_timesteps, sigma_min, sigma_max, rho):
    sigmas = karras_schedule(num_timesteps, sigma_min, sigma_max, rho, dtype=dtype)
    assert sigmas.dtype == dtype and sigmas.shape == (num_timesteps,)
    assert sigmas[0] == torch.tensor(sigma_min, dtype=dtype)
    assert sigmas[-1] == torch.tensor(sigma_max, dtype=dtype)
    assert (sigmas.double().diff() > 0).all()


def test_karras_schedule_is_float32_on_the_cpu_by_default():
    sigmas = karras_schedule(5)
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"


@pytest.mark.parametrize("rho", (0.5, 1., 3., 7., 20.))
def test_karras_schedule_follows_the_paper(rho):
    """Eq. 5 of Karras et al. (2022) runs downwards: sigma_0 is the largest level."""
    N, low, high = 18, 0.002, 80.
    def level(i): return (high ** (1 / rho) + i / (N - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    expected = torch.tensor([level(i) for i in reversed(range(N))], dtype=torch.float64)
    torch.testing.assert_close(karras_schedule(N, low, high, rho, dtype=torch.float64), expected, rtol=1e-6, atol=0)


def test_rho_one_is_linear():
    torch.testing.assert_close(karras_schedule(5, 1., 9., 1.), torch.tensor([1., 3., 5., 7., 9.]))


def test_large_rho_tends_to_geometric_steps():
    ratios = karras_schedule(6, 0.01, 10., 1e5, dtype=torch.float64).log().diff()
    torch.testing.assert_close(ratios, torch.full((5,), math.log(1000) / 5, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bad, error", (
    (1, ValueError), (0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError), ("3", TypeError),
    (None, TypeError), (float("nan"), TypeError)))
def test_karras_schedule_refuses_a_bad_number_of_levels(bad, error):
    with pytest.raises(error, match="num_timesteps"): karras_schedule(bad)


@pytest.mark.parametrize("name, bad", (
    ("sigma_min", 0), ("sigma_min", -1.), ("sigma_min", float("nan")), ("sigma_max", 0.002), ("sigma_max", 0.001),
    ("sigma_max", float("inf")), ("rho", 0), ("rho", -7.), ("rho", float("nan")), ("rho", float("inf"))))
def test_karras_schedule_refuses_bad_values(name, bad):
    with pytest.raises(ValueError, match=name): karras_schedule(5, **{name: bad})


@pytest.mark.parametrize("name", ("sigma_min", "sigma_max", "rho"))
@pytest.mark.parametrize("bad", (None, "1", True, [1.], torch.ones(2)))
def test_karras_schedule_refuses_what_is_no_number(name, bad):
    with pytest.raises(TypeError, match=name): karras_schedule(5, **{name: bad})


# How many levels

@pytest.mark.parametrize("schedule", (timesteps_schedule, improved_timesteps_schedule))
@pytest.mark.parametrize("K", RUNS)
@pytest.mark.parametrize("s0, s1", LEVELS)
def test_number_of_levels_is_an_int_that_grows_within_its_bounds(schedule, K, s0, s1):
    counts = [schedule(k, K, s0, s1) for k in range(K + 1)]
    first = s0 if schedule is timesteps_schedule else s0 + 1
    assert all(type(n) is int for n in counts)
    assert counts == sorted(counts)
    assert counts[0] == first and counts[-1] <= s1 + 1


@pytest.mark.parametrize("K", RUNS)
@pytest.mark.parametrize("s0, s1", LEVELS)
def test_timesteps_schedule_ends_at_its_final_value(K, s0, s1):
    assert timesteps_schedule(K, K, s0, s1) == s1 + 1


@pytest.mark.parametrize("s0, s1", LEVELS)
def test_timesteps_schedule_follows_the_paper(s0, s1):
    """ceil(sqrt(v) - 1) + 1 is the smallest whole number whose square reaches v, up to rounding of v."""
    K = 1000
    for k in range(K + 1):
        n, v = timesteps_schedule(k, K, s0, s1), (k * ((s1 + 1) ** 2 - s0**2) + K * s0**2) / K
        assert (n - 1) ** 2 < v * (1 + 1e-12) and n**2 >= v * (1 - 1e-12)


def test_timesteps_schedule_reaches_the_values_of_the_paper():
    K = 800_000
    assert timesteps_schedule(0, K) == 2 and timesteps_schedule(K, K) == 151


def test_improved_schedule_doubles_in_eight_stages_of_50000_steps():
    K, stages = 400_000, (11, 21, 41, 81, 161, 321, 641, 1281)
    for i, n in enumerate(stages):
        assert improved_timesteps_schedule(50_000 * i, K) == n
        assert improved_timesteps_schedule(50_000 * (i + 1) - 1, K) == n
    assert improved_timesteps_schedule(K, K) == 1281


@pytest.mark.parametrize("K", (24, 100, 1001))
@pytest.mark.parametrize("s0, s1", ((10, 80), (10, 75), (3, 100), (4, 4)))
def test_improved_schedule_follows_the_paper(K, s0, s1):
    stage = math.floor(K / (math.log2(math.floor(s1 / s0)) + 1))
    for k in range(K + 1):
        assert improved_timesteps_schedule(k, K, s0, s1) == min(s0 * 2 ** math.floor(k / stage), s1) + 1


@pytest.mark.parametrize("schedule", (timesteps_schedule, improved_timesteps_schedule))
@pytest.mark.parametrize("arguments, match", (
    ((-1, 10), "current_training_step"), ((11, 10), "current_training_step"), ((1, 0), "total_training_steps"),
    ((0, -5), "total_training_steps"), ((0, 10, 5, 4), "final_timesteps"), ((0, 10, 0, 4), "initial_timesteps"),
    ((0, 10, -2, 4), "initial_timesteps"), ((0, 10, 2, 0), "final_timesteps")))
def test_schedules_refuse_bad_values(schedule, arguments, match):
    with pytest.raises(ValueError, match=match): schedule(*arguments)


@pytest.mark.parametrize("schedule", (timesteps_schedule, improved_timesteps_schedule))
@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("bad", (True, False, 2.5, "2", None, float("nan"), float("inf"), [2], torch.tensor(2.5)))
def test_schedules_refuse_what_is_no_whole_number(schedule, position, bad):
    arguments = [3, 10, 3, 9]
    arguments[position] = bad
    with pytest.raises(TypeError, match="whole number"): schedule(*arguments)


def test_timesteps_schedule_needs_two_levels_to_start_with():
    with pytest.raises(ValueError, match="initial_timesteps"): timesteps_schedule(0, 10, 1, 5)


# The teacher's decay

@pytest.mark.parametrize("N", (1, 2, 17, 151))
@pytest.mark.parametrize("mu, s0", ((0.95, 2), (0.9, 2), (0.5, 10), (1., 2)))
def test_ema_decay_rate_follows_the_paper(N, mu, s0):
    assert ema_decay_rate_schedule(N, mu, s0) == pytest.approx(mu ** (s0 / N), rel=1e-12)


def test_ema_decay_rate_starts_at_its_initial_value_and_rises_towards_one():
    rates = [ema_decay_rate_schedule(N) for N in range(2, 152)]
    assert rates[0] == pytest.approx(0.95)
    assert rates == sorted(rates) and rates[-1] < 1


@pytest.mark.parametrize("arguments", ((0,), (-1,), (10, 0.), (10, -0.1), (10, 1.1), (10, float("nan")), (10, 0.95, 0)))
def test_ema_decay_rate_refuses_bad_values(arguments):
    with pytest.raises(ValueError): ema_decay_rate_schedule(*arguments)


@pytest.mark.parametrize("arguments", (
    (2.5,), (True,), (None,), (10, "0.9"), (10, None), (10, 0.95, 2.5), (10, 0.95, True)))
def test_ema_decay_rate_refuses_bad_types(arguments):
    with pytest.raises(TypeError): ema_decay_rate_schedule(*arguments)


# How often each step is visited

@pytest.mark.parametrize("N", (2, 11, 151, 1281))
@pytest.mark.parametrize("mean", (-1000, -50., -1.1, math.log(80.), 1.1, 50., 1000))
@pytest.mark.parametrize("std", (1e-12, 1e-6, 0.1, 2., 1e3, 1e6))
def test_probabilities_sum_to_one_and_are_finite(N, mean, std):
    p = lognormal_probabilities(karras_schedule(N), mean, std)
    assert p.shape == (N - 1,) and p.isfinite().all() and (p >= 0).all()
    assert abs(p.sum().item() - 1) < 1e-9


@pytest.mark.parametrize("N", (2, 11, 151, 1281))
@pytest.mark.parametrize("mean, std", ((-1.1, 2.), (1.1, 2.), (0., 1.), (-0.4, 1.2)))
def test_probabilities_agree_with_the_formula_of_the_paper(N, mean, std):
    sigmas = karras_schedule(N, dtype=torch.float64)
    bell = [math.erf((math.log(s) - mean) / (math.sqrt(2) * std)) for s in sigmas.tolist()]
    mass = torch.tensor(bell, dtype=torch.float64).diff()
    torch.testing.assert_close(lognormal_probabilities(sigmas, mean, std), mass / mass.sum(), rtol=1e-7, atol=1e-12)


def test_a_narrow_distribution_sits_in_the_step_that_holds_its_mean():
    sigmas = torch.tensor([0.1, 1., 10., 100.])
    for step, centre in enumerate((0.3, 3., 30.)):
        p = lognormal_probabilities(sigmas, math.log(centre), 1e-9)
        assert p.argmax() == step and p.max() == 1


@pytest.mark.parametrize("mean, step", ((-1000, 0), (-30., 0), (30., -1), (1000, -1)))
def test_a_narrow_distribution_outside_the_grid_sits_in_the_nearest_step(mean, step):
    assert lognormal_probabilities(karras_schedule(20), mean, 1e-6)[step] == 1


def test_a_wide_distribution_is_uniform_in_log_sigma():
    sigmas = karras_schedule(20, dtype=torch.float64)
    widths = sigmas.log().diff()
    torch.testing.assert_close(lognormal_probabilities(sigmas, std=1e6), widths / widths.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigmas", ([80., 1.], [1.], [[1., 2.]], [0., 1.], [-1., 1.], [1., 1.], [1., float("nan")]))
def test_probabilities_refuse_a_grid_that_does_not_ascend(sigmas):
    with pytest.raises(ValueError, match="sigmas"): lognormal_probabilities(torch.tensor(sigmas))


@pytest.mark.parametrize("name, bad", (
    ("std", 0.), ("std", -1.), ("std", float("nan")), ("mean", float("inf")), ("mean", 1e5)))
def test_probabilities_refuse_bad_values(name, bad):
    with pytest.raises(ValueError, match=name): lognormal_probabilities(karras_schedule(5), **{name: bad})


@pytest.mark.parametrize("mean, std", ((-1.1, 2.), (1., 0.7)))
def test_draws_follow_the_probabilities(mean, std):
    """Pearson's statistic has mean `cells - 1` and standard deviation sqrt(2 (cells - 1))."""
    draws, sigmas = 20_000, karras_schedule(12)
    expected = draws * lognormal_probabilities(sigmas, mean, std)
    n = lognormal_timestep_distribution(draws, sigmas, mean, std, generator=seeded())
    counts, usual = torch.bincount(n, minlength=11), expected >= 5
    statistic = ((counts - expected)[usual] ** 2 / expected[usual]).sum().item()
    cells = usual.sum().item()
    assert cells >= 5 and statistic < cells - 1 + 5 * math.sqrt(2 * (cells - 1))
    assert counts[~usual].sum() < 100


@pytest.mark.parametrize("N", (2, 3, 40))
@pytest.mark.parametrize("mean, std", ((-1.1, 2.), (50., 1e-9), (-300., 1e-12), (0., 1e6)))
def test_draws_are_indices_of_steps(N, mean, std):
    n = lognormal_timestep_distribution(500, karras_schedule(N), mean, std, generator=seeded())
    assert n.shape == (500,) and n.dtype == torch.long
    assert 0 <= n.min() and n.max() <= N - 2


def test_draws_are_reproducible_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b = (lognormal_timestep_distribution(100, karras_schedule(40), generator=seeded(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, lognormal_timestep_distribution(100, karras_schedule(40), generator=seeded(4)))
    assert torch.equal(before, torch.get_rng_state())


def test_draws_come_from_the_global_generator_by_default():
    torch.manual_seed(5)
    a = lognormal_timestep_distribution(100, karras_schedule(40))
    torch.manual_seed(5)
    assert torch.equal(a, lognormal_timestep_distribution(100, karras_schedule(40)))


@pytest.mark.parametrize("bad, error", (
    (0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError), (None, TypeError)))
def test_draws_refuse_a_bad_count(bad, error):
    with pytest.raises(error, match="num_samples"): lognormal_timestep_distribution(bad, karras_schedule(5))


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool))
def test_schedules_are_no_whole_numbers(dtype):
    with pytest.raises(TypeError, match="dtype"): karras_schedule(5, dtype=dtype)


def test_an_infinite_level_is_refused():
    with pytest.raises(ValueError, match="sigmas"): lognormal_timestep_distribution(3, torch.tensor([1., float("inf")]))


def test_settings_whose_levels_would_coincide_are_refused_at_once():
    for method in (ConsistencyTraining, ImprovedConsistencyTraining):
        with pytest.raises(ValueError, match="ascending"): method(sigma_min=1., sigma_max=1.0001, final_timesteps=1280)
