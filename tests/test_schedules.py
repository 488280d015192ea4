"""The noise levels, how many there are, and how often each is visited."""

import math

import pytest
import torch
from conftest import seeded

from consistency_models import (
    ema_decay_rate_schedule,
    improved_timesteps_schedule,
    karras_schedule,
    lognormal_probabilities,
    lognormal_timestep_distribution,
    timesteps_schedule,
)
from consistency_models.schedules import draw_steps

nan, inf = float("nan"), float("inf")
COUNTS = pytest.mark.parametrize("schedule", [timesteps_schedule, improved_timesteps_schedule],
    ids=["CT", "iCT"])


def grid(N): return karras_schedule(N, dtype=torch.float64)


# Equals the paper

def test_karras_schedule_is_that_of_edm_in_ascending_order():
    """Eq. 5 of Karras et al. (2022) runs downwards: sigma_0 is the largest level."""
    N, low, high = 18, 0.002, 80.
    for rho in (0.5, 3., 7.):
        first, last = high ** (1 / rho), low ** (1 / rho)
        levels = [(first + i / (N - 1) * (last - first)) ** rho for i in reversed(range(N))]
        expected = torch.tensor(levels, dtype=torch.float64)
        found = karras_schedule(N, low, high, rho, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert torch.equal(karras_schedule(40), karras_schedule(40, 0.002, 80., 7.))
    assert torch.allclose(karras_schedule(5, 1., 9., 1.), torch.tensor([1., 3., 5., 7., 9.]))


def test_number_of_levels_of_ct():
    """ceil(sqrt(v) - 1) + 1 is the smallest number whose square reaches v, up to rounding of v."""
    K = 500
    for s0, s1 in ((2, 150), (5, 9), (10, 10)):
        for k in range(K + 1):
            n, v = timesteps_schedule(k, K, s0, s1), (k * ((s1 + 1) ** 2 - s0**2) + K * s0**2) / K
            assert (n - 1) ** 2 < v * (1 + 1e-12) and n**2 >= v * (1 - 1e-12)
        assert timesteps_schedule(0, K, s0, s1) == s0 and timesteps_schedule(K, K, s0, s1) == s1 + 1
    assert timesteps_schedule(0, K) == 2 and timesteps_schedule(K, K) == 151


def test_number_of_levels_of_ict_doubles_in_eight_stages_of_50000_steps():
    K, stages = 400_000, (11, 21, 41, 81, 161, 321, 641, 1281)
    for i, n in enumerate(stages):
        assert improved_timesteps_schedule(50_000 * i, K) == n
        assert improved_timesteps_schedule(50_000 * (i + 1) - 1, K) == n
    assert improved_timesteps_schedule(K, K) == 1281


def test_number_of_levels_of_ict():
    for K, s0, s1 in ((100, 10, 80), (501, 10, 75), (24, 4, 4)):
        stage = math.floor(K / (math.log2(math.floor(s1 / s0)) + 1))
        for k in range(K + 1):
            expected = min(s0 * 2 ** math.floor(k / stage), s1) + 1
            assert improved_timesteps_schedule(k, K, s0, s1) == expected


def test_decay_of_the_teacher():
    for N, mu, s0 in ((2, 0.95, 2), (17, 0.9, 2), (151, 0.5, 10), (3, 1., 2)):
        assert ema_decay_rate_schedule(N, mu, s0) == pytest.approx(mu ** (s0 / N), rel=1e-12)
    rates = [ema_decay_rate_schedule(N) for N in range(2, 152)]
    assert rates[0] == pytest.approx(0.95) and rates == sorted(rates) and rates[-1] < 1


def test_probability_of_each_step():
    """Section 3.5 of Song & Dhariwal (2023)."""
    sigmas = grid(41)
    for mean, std in ((-1.1, 2.), (1., 0.7)):
        bell = [math.erf((math.log(s) - mean) / (math.sqrt(2) * std)) for s in sigmas.tolist()]
        mass = torch.tensor(bell, dtype=torch.float64).diff()
        found = lognormal_probabilities(sigmas, mean, std)
        torch.testing.assert_close(found, mass / mass.sum(), rtol=1e-7, atol=1e-12)
    assert torch.equal(lognormal_probabilities(sigmas), lognormal_probabilities(sigmas, -1.1, 2.))


def test_a_wide_distribution_is_uniform_in_log_sigma():
    widths = grid(20).log().diff()
    found = lognormal_probabilities(grid(20), std=1e6)
    torch.testing.assert_close(found, widths / widths.sum(), rtol=1e-6, atol=0)


def test_draws_have_the_probabilities_of_the_settings():
    """Pearson's statistic has mean `cells - 1` and standard deviation sqrt(2 (cells - 1))."""
    draws, sigmas = 20_000, karras_schedule(12)
    for mean, std in ((-1.1, 2.), (1., 0.7)):
        expected = draws * lognormal_probabilities(sigmas, mean, std)
        n = lognormal_timestep_distribution(draws, sigmas, mean, std, generator=seeded())
        counts, usual = torch.bincount(n, minlength=11), expected >= 5
        statistic = ((counts - expected)[usual] ** 2 / expected[usual]).sum()
        cells = usual.sum().item()
        assert cells >= 5 and statistic < cells - 1 + 4 * math.sqrt(2 * (cells - 1))
        assert counts[~usual].sum() < 100


# Keeps its promises

def test_karras_schedule_ascends_between_exact_ends():
    for dtype in (None, torch.float64, torch.bfloat16):
        for N, low, high in ((2, 0.002, 80.), (18, 0.01, 50.), (40, 0.1, 1.)):
            sigmas, kind = karras_schedule(N, low, high, dtype=dtype), dtype or torch.float32
            assert sigmas.dtype == kind and sigmas.shape == (N,)
            assert (sigmas.double().diff() > 0).all()
            assert sigmas[[0, -1]].tolist() == torch.tensor([low, high], dtype=kind).tolist()
    assert karras_schedule(3, device="meta").device.type == "meta"


@COUNTS
def test_number_of_levels_is_an_int_that_grows_within_its_bounds(schedule):
    """Also in runs shorter than their stages, and for whole numbers of other kinds."""
    for K, s0, s1 in ((1, 2, 150), (3, 10, 1280), (7, 2, 2), (99, 5, 1000)):
        counts = [schedule(k, K, s0, s1) for k in range(K + 1)]
        assert all(type(n) is int for n in counts) and counts == sorted(counts)
        assert counts[0] == s0 + (schedule is improved_timesteps_schedule) and counts[-1] <= s1 + 1
    assert schedule(torch.tensor(5), 10.0, 3, 9) == schedule(5, 10, 3, 9)


def test_probabilities_are_finite_and_sum_to_one():
    """The last two have all their mass in one step, or all but none."""
    for N, mean, std in ((2, -1.1, 2.), (1281, -1.1, 2.), (151, 0., 1e6), (40, -1.1, 1e-6),
            (11, 20., 2.)):
        p = lognormal_probabilities(karras_schedule(N), mean, std)
        assert p.shape == (N - 1,) and p.dtype == torch.float64 and p.isfinite().all()
        assert (p >= 0).all()
        assert p.sum().item() == pytest.approx(1, abs=1e-9)
    levels = torch.tensor([0.1, 1., 10., 100.])
    assert lognormal_probabilities(levels, math.log(3.), 1e-9).tolist() == [0, 1, 0]


def test_draws_are_indices_of_steps():
    for N in (2, 3, 40):
        n = lognormal_timestep_distribution(500, karras_schedule(N), generator=seeded())
        assert n.shape == (500,) and n.dtype == torch.long and n.min() == 0 and n.max() <= N - 2
    assert draw_steps(torch.tensor([0., 1.]), 4).tolist() == [1, 1, 1, 1]


def test_draws_come_from_the_generator_alone_else_from_the_global_one():
    def draw(source=None): return lognormal_timestep_distribution(100, grid(40), generator=source)
    before, a, b = torch.get_rng_state(), draw(seeded(3)), draw(seeded(3))
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(a, draw(seeded(4)))
    torch.manual_seed(3)
    assert torch.equal(a, draw())


# Refuses

def test_settings_of_the_karras_schedule_that_make_no_levels_are_refused():
    for name, bad, error in (
            ("num_timesteps", 1, ValueError), ("num_timesteps", 2.5, TypeError),
            ("sigma_min", 0, ValueError),
            ("sigma_min", "1", TypeError), ("sigma_max", 0.002, ValueError),
            ("sigma_max", inf, ValueError),
            ("rho", 0, ValueError), ("rho", nan, ValueError), ("dtype", torch.int64, TypeError)):
        with pytest.raises(error, match=f"^{name} must"):
            karras_schedule(**{"num_timesteps": 5, name: bad})


@COUNTS
def test_steps_and_numbers_of_levels_that_do_not_fit_are_refused(schedule):
    for arguments, name in (
            ((-1, 10), "current_training_step"), ((11, 10), "current_training_step"),
            ((0, 0), "total_training_steps"),
            ((0, 10, 0, 4), "initial_timesteps"), ((0, 10, 5, 4), "final_timesteps"),
            ((0, 10, 2, 0), "final_timesteps")):
        with pytest.raises(ValueError, match=f"^{name} must"): schedule(*arguments)


@COUNTS
def test_what_is_no_whole_number_is_refused(schedule):
    for position in range(4):
        for bad in (True, 2.5, "2", None, nan, torch.tensor(2.5)):
            arguments = [3, 10, 3, 9]
            arguments[position] = bad
            with pytest.raises(TypeError, match="whole number"): schedule(*arguments)


def test_ct_needs_two_levels_to_start_with():
    with pytest.raises(ValueError, match="initial_timesteps must be at least 2"):
        timesteps_schedule(0, 10, 1, 5)
    assert improved_timesteps_schedule(0, 10, 1, 5) == 2


def test_settings_of_the_decay_that_make_no_average_are_refused():
    for arguments, error, name in (
            ((0,), ValueError, "num_timesteps"), ((2.5,), TypeError, "num_timesteps"),
            ((10, 0.), ValueError, "initial_ema_decay_rate"),
            ((10, 1.1), ValueError, "initial_ema_decay_rate"),
            ((10, "0.9"), TypeError, "initial_ema_decay_rate"),
            ((10, 0.95, 0), ValueError, "initial_timesteps")):
        with pytest.raises(error, match=f"^{name} must"): ema_decay_rate_schedule(*arguments)


def test_settings_of_the_lognormal_that_make_no_distribution_are_refused():
    for settings, match in (
            ({"std": 0.}, "^std"), ({"std": nan}, "^std"), ({"mean": inf}, "^mean"),
            ({"mean": 1e5}, "no mass between the levels")):
        with pytest.raises(ValueError, match=match):
            lognormal_probabilities(karras_schedule(5), **settings)
    with pytest.raises(ValueError, match="^sigmas must be positive and ascending"):
        lognormal_probabilities([80., 1.])
    with pytest.raises(ValueError, match="^num_samples"):
        lognormal_timestep_distribution(0, karras_schedule(5))
    with pytest.raises(TypeError, match="^num_samples"):
        lognormal_timestep_distribution(2.5, karras_schedule(5))
