"""Easy tuning: r, the weights and the stages; a run written out; denoising as one end."""

import copy
import math

import pytest
import torch
from conftest import (
    AnyRank,
    gaussian,
    gradient_at_gaussian_data,
    relative_error,
    seeded,
    shake,
)

from consistency_models import (
    MLP,
    DiffusionTraining,
    EasyConsistencyTuning,
    Levels,
    consistency_function,
    gaussian_consistency_function,
    l2_distance,
    squared_error,
)


def plain(x, sigma): return x.tanh()


def step(net, x, k=5, K=10, generator=None, **settings):
    """A step and its objective."""
    tuning = EasyConsistencyTuning(**settings)
    tuning.attach(torch.nn.Identity())
    return tuning, tuning.step(net, x, k, K, generator or seeded())


def formula(t, stage, q=2):
    """r by hand: Geng et al. (2024), with the constants of the authors' code."""
    return max(0., t * (1 - (1 + 8 / (1 + math.exp(t))) / q ** (stage + 1)))


# Equals the paper

def test_r_and_weights_are_the_formula():
    """At five levels in all eight stages, and three values by hand."""
    hand = {(0.5, 0): 0., (0.5, 2): 0.24873, (10., 7): 9.96092}
    for t in (0.02, 0.5, 1.9, 10., 80.):
        for stage in range(8):
            tuning = EasyConsistencyTuning(lognormal_mean=math.log(t), lognormal_std=1e-12)
            levels = tuning.levels(stage, 8, torch.zeros(3, 2, dtype=torch.float64), seeded())
            r = formula(t, stage)
            assert levels.upper.tolist() == pytest.approx([t] * 3)
            assert levels.lower.tolist() == pytest.approx([r] * 3, abs=1e-9)
            assert levels.weight.tolist() == pytest.approx([1 / (t - r)] * 3, rel=1e-6)
            assert hand.get((t, stage), r) == pytest.approx(r, abs=1e-5)


def test_the_stages_are_equal_parts_of_the_run():
    """Eight of 25,000 steps, as in the authors' runs; the step after the last, and short runs."""
    def stage(k, K, **settings):
        tuning = EasyConsistencyTuning(**settings)
        levels = tuning.levels(k, K, torch.zeros(100, 2, dtype=torch.float64), seeded())
        def fits(s):
            r = torch.tensor([formula(t, s, tuning.q) for t in levels.upper.tolist()])
            return torch.allclose(levels.lower, r.double())
        found, = (s for s in range(10) if fits(s))
        return found
    steps = (0, 24_999, 25_000, 49_999, 174_999, 175_000, 199_999, 200_000)
    assert [stage(k, 200_000) for k in steps] == [0, 0, 1, 1, 6, 7, 7, 7]
    assert [stage(k, 3) for k in range(4)] == [0, 2, 5, 7]
    assert stage(0, 1) == 0 and stage(1, 1) == 7
    assert [stage(k, 10, q=4, stages=5) for k in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {stage(k, 10, q=256, stages=1) for k in range(11)} == {0}


def test_a_training_run_is_that_of_the_paper():
    """Algorithm 1 of Geng et al. (2024), written out: the same draws and weights, bit for bit."""
    K, x, q, stages, mean, std = 12, gaussian(16, 3), 3., 4, -0.5, 1.5
    net, g = shake(AnyRank(dropout=0.2)), seeded(7)
    own = copy.deepcopy(net)
    tuning = EasyConsistencyTuning(q=q, stages=stages, lognormal_mean=mean, lognormal_std=std)
    tuning.attach(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for k in range(K):
        output = tuning.step(net, x, k, K, g)
        optimizer.zero_grad()
        tuning.loss(output).mean().backward()
        optimizer.step()
        tuning.follow(net, output)

    def f(x, t):
        c_skip, c_out = 0.25 / (t**2 + 0.25), 0.5 * t / (0.25 + t**2).sqrt()
        answer = c_skip[:, None] * x + c_out[:, None] * own(x, torch.where(t > 0, t, 1.))
        return torch.where(t[:, None] <= 0, x, answer)
    optimizer, clean = torch.optim.SGD(own.parameters(), lr=1e-3), []
    g.manual_seed(7)
    torch.manual_seed(0)
    for k in range(K):
        t = (mean + std * torch.randn(16, generator=g)).exp()
        z = torch.randn(x.shape, generator=g)
        gap = (1 + 8 * torch.sigmoid(-t)) / q ** (math.floor(k / (K / stages)) + 1)
        r = t * (1 - gap).clamp(min=0)
        before = torch.get_rng_state()
        predicted = f(x + t[:, None] * z, t)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        with torch.no_grad(): target = f(x + r[:, None] * z, r)
        torch.set_rng_state(after)
        loss = (predicted - target).reshape(16, -1).norm(dim=1) * (1 / (t - r))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        clean.append((r == 0).sum().item())

    assert clean[0] > 8 and clean[-1] == 0
    assert not torch.equal(own.out.bias, shake(AnyRank()).out.bias)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7)
               for a, b in zip(net.parameters(), own.parameters(), strict=True))


def test_r_of_zero_is_denoising():
    """
    In stage 0 at small levels the target is the clean sample bit for bit, and with a squared error
    the loss is the denoising loss of Karras et al. (2022), but for its weight.
    """
    x, settings = gaussian(32, 3), {"lognormal_mean": -3., "lognormal_std": 1.}
    net = shake(AnyRank(dropout=0.5))
    torch.manual_seed(1)
    tuning, out = step(net, x, 0, **settings, distance=squared_error)
    assert (out.levels.lower == 0).all() and torch.equal(out.target, x)
    denoising = DiffusionTraining(**settings)
    denoising.attach(net)
    torch.manual_seed(1)
    other = denoising.step(net, x, 0, 10, seeded())
    assert torch.equal(out.predicted, other.predicted) and torch.equal(out.upper, other.upper)
    losses = tuning.loss(out) / out.levels.weight, denoising.loss(other) / other.levels.weight
    assert torch.allclose(*losses)


def test_denoising_ends_where_the_formula_says():
    """r leaves 0 at t = ln 7 in stage 0, at ln(5/3) in stage 1, and is never 0 from stage 2 on."""
    x = torch.zeros(5000, 1, dtype=torch.float64)
    for k, end in ((0, math.log(7)), (1, math.log(5 / 3)), (2, 0.), (7, 0.)):
        levels = EasyConsistencyTuning(lognormal_std=4.).levels(k, 8, x, seeded())
        assert torch.equal(levels.lower > 0, levels.upper > end)
        assert (levels.lower < levels.upper).all()


def test_the_gradient_vanishes_at_the_exact_consistency_function_as_the_gap_does():
    """
    On average over 100,000 samples of Gaussian data, the mean gradient as a share of its root mean
    square: less with each smaller gap, and at 1/256 below a hundredth, three standard errors; for
    data 10 % wider it is not.
    """
    gaps = [EasyConsistencyTuning(q=q, stages=1) for q in (4, 16, 64, 256)]
    left = [gradient_at_gaussian_data(tuning, std=0.5) for tuning in gaps]
    assert left[0] > 0.1 and all(b < a / 2 for a, b in zip(left, left[1:], strict=False))
    assert left[-1] < 0.01 and gradient_at_gaussian_data(gaps[-1], std=0.55) > 0.03
    assert gradient_at_gaussian_data(EasyConsistencyTuning(), std=0.5) < 0.01   # its last stage


def test_the_distance_is_the_norm_and_flat_where_both_answers_are_equal():
    for shape in ((4,), (4, 2), (4, 3, 5, 5)):
        a, b = gaussian(*shape, dtype=torch.float64), gaussian(*shape, seed=1, dtype=torch.float64)
        b[0] = a[0]
        a.requires_grad_()
        distance = l2_distance(a, b)
        expected = [math.sqrt(sum(e**2 for e in row)) for row in (a - b).reshape(4, -1).tolist()]
        assert distance.shape == (4,) and distance.tolist() == pytest.approx(expected)
        gradient, = torch.autograd.grad(distance.sum(), a)
        assert (gradient[0] == 0).all()
        assert gradient[1:].reshape(3, -1).norm(dim=1).tolist() == pytest.approx([1.] * 3)


def test_the_defaults_are_those_of_the_authors():
    tuning = EasyConsistencyTuning()
    found = tuning.lognormal_mean, tuning.lognormal_std, tuning.q, tuning.stages, tuning.sigma_min
    assert found == (-1.1, 2., 2., 8, 0.) and tuning.sigma_data == 0.5
    assert tuning.distance is l2_distance


@pytest.mark.slow
def test_a_trained_network_is_within_five_per_cent_of_the_exact_answers():
    """An MLP, from nothing, that learns the consistency function of N(0.3, 0.5^2)."""
    net, steps = MLP(2, width=32, depth=1), 2000
    tuning = EasyConsistencyTuning(lognormal_mean=0., stages=6)
    tuning.attach(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        output = tuning.step(net, 0.3 + 0.5 * torch.randn(512, 2), k, steps)
        optimizer.zero_grad()
        tuning.loss(output).mean().backward()
        optimizer.step()
        decay.step()
    for sigma in (0.05, 0.2, 0.5, 1., 3., 10., 80.):
        noisy = 0.3 + 0.5 * gaussian(4000, 2, seed=1) + sigma * gaussian(4000, 2, seed=2)
        exact = gaussian_consistency_function(noisy, sigma, 0.3, 0.5)
        error = relative_error(consistency_function(net)(noisy, sigma), exact)
        assert error < 0.05, (sigma, error)


# Keeps its promises

def test_equal_neighbors_with_dropout_lose_nothing():
    """Both answers share noise and dropout, so at r = t neither loss nor gradient is left."""
    class Touching(EasyConsistencyTuning):
        def levels(self, k, K, x, generator=None):
            t = super().levels(k, K, x, generator).upper
            return Levels(t, t)
    net, tuning = shake(AnyRank(dropout=0.5)), Touching()
    tuning.attach(net)
    loss = tuning.loss(tuning.step(net, gaussian(8, 3), 9, 10, seeded()))
    loss.sum().backward()
    assert (loss == 0).all() and all((p.grad == 0).all() for p in net.parameters())


def test_levels_are_drawn_from_the_lognormal_of_the_settings():
    for mean, std in ((-2., 0.5), (1.1, 1.5)):
        _, out = step(plain, gaussian(4000, 3), lognormal_mean=mean, lognormal_std=std)
        found = out.upper.log()
        assert abs(found.mean() - mean) < 0.1 and abs(found.std() - std) < 0.05


def test_draws_come_from_the_generator_alone():
    x = gaussian(16, 3)
    first, again, other = (step(plain, x, generator=seeded(s))[1] for s in (3, 3, 4))
    assert torch.equal(first.predicted, again.predicted) and torch.equal(first.target, again.target)
    assert not torch.equal(first.upper, other.upper)


def test_every_type_and_the_finest_gap_train():
    """Levels in at least float32, so that r is told from t in half precision too."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for settings in ({}, {"q": 1e5, "stages": 1}, {"lognormal_std": 6.}):
            scale = torch.ones((), dtype=dtype, requires_grad=True)
            def net(x, sigma, a=scale): return a * x.tanh()
            tuning, out = step(net, gaussian(64, 3).to(dtype), 10, **settings)
            tuning.loss(out).mean().backward()
            assert out.predicted.dtype == out.target.dtype == dtype and scale.grad.isfinite()
            assert out.levels.weight.isfinite().all() and out.upper.dtype != torch.bfloat16
            assert (out.levels.lower < out.upper).all()


def test_there_is_no_grid_and_nothing_is_kept():
    tuning, out = step(plain, gaussian(4, 3))
    assert out.num_timesteps is out.sigmas is None and tuning.state_dict() == {}
    assert tuning.parameters() == [] and tuning.target(plain) is plain


# Refuses

def test_settings_that_no_step_can_use_are_refused_when_they_are_given():
    for name, bad, error in (
            ("q", 1., ValueError), ("q", 0.5, ValueError), ("q", float("nan"), ValueError),
            ("q", "2", TypeError), ("stages", 0, ValueError), ("stages", 2.5, TypeError),
            ("lognormal_std", 0., ValueError), ("lognormal_mean", float("inf"), ValueError),
            ("sigma_data", 0., ValueError)):
        with pytest.raises(error, match=f"^{name} must be"): EasyConsistencyTuning(**{name: bad})


def test_a_gap_that_vanishes_in_rounding_is_refused():
    """The constant gap of the paper with the stages left at eight: 256 ** 8."""
    with pytest.raises(ValueError, match=r"q \*\* stages .* q=256, stages=8; .* stages=1"):
        EasyConsistencyTuning(q=256)
    with pytest.raises(ValueError, match=r"stages=5000"): EasyConsistencyTuning(stages=5000)
    EasyConsistencyTuning(q=4, stages=8)


def test_what_is_no_batch_and_a_step_outside_the_run_are_refused():
    with pytest.raises(TypeError, match="^x must"): step(plain, torch.ones(4, 3).long())
    for k in (-1, 11):
        with pytest.raises(ValueError, match=f"got {k} of 10"): step(plain, gaussian(4, 3), k)
