"""Improved consistency training: its levels and weights, a run written out, what a step calls."""

import collections
import copy
import importlib
import inspect
import math
import pkgutil

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

import consistency_models
from consistency_models import (
    MLP,
    ImprovedConsistencyTraining,
    consistency_function,
    from_pretrained,
    gaussian_consistency_function,
    improved_timesteps_schedule,
    karras_schedule,
    load_digits,
    lognormal_probabilities,
    pseudo_huber_loss,
)
from consistency_models.distillation import without_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def plain(x, sigma): return x.tanh()


def step(net, x, k=5, K=10, settings=None, **kwargs):
    return ImprovedConsistencyTraining(**settings or {})(net, x, k, K, **kwargs)


# Equals the paper

def test_a_training_run_is_that_of_the_paper():
    """Table 1 of Song & Dhariwal (2023), written out: the same draws and weights, bit for bit."""
    K, s0, s1, mean, std, x = 9, 3, 24, -0.5, 1.5, gaussian(16, 3)
    net, g = shake(AnyRank(dropout=0.2)), seeded(7)
    own = copy.deepcopy(net)

    training = ImprovedConsistencyTraining(
        initial_timesteps=s0, final_timesteps=s1, lognormal_mean=mean, lognormal_std=std)
    training.attach(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for k in range(K):
        output = training.step(net, x, k, K, g)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        training.follow(net, output)

    def f(x, sigma):
        c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        c_out = 0.5 * (sigma - 0.002) / (0.25 + sigma**2).sqrt()
        answer = c_skip[:, None] * x + c_out[:, None] * own(x, sigma)
        return torch.where(sigma[:, None] <= 0.002, x, answer)
    optimizer, counts = torch.optim.SGD(own.parameters(), lr=1e-3), []
    g.manual_seed(7)
    torch.manual_seed(0)
    for k in range(K):
        N = min(s0 * 2 ** math.floor(k / math.floor(K / (math.log2(s1 // s0) + 1))), s1) + 1
        sigmas = karras_schedule(N)
        p = ((sigmas.double().log() - mean) / (math.sqrt(2) * std)).erf().diff()
        n = torch.multinomial(p / p.sum(), 16, replacement=True, generator=g)
        z = torch.randn(x.shape, generator=g)
        weights = (1 / sigmas.double().diff()).float()
        before = torch.get_rng_state()
        predicted = f(x + sigmas[n + 1][:, None] * z, sigmas[n + 1])
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        with torch.no_grad(): target = f(x + sigmas[n][:, None] * z, sigmas[n])
        torch.set_rng_state(after)
        c = 0.00054 * math.sqrt(3)
        loss = ((predicted - target).square().sum(1) + c**2).sqrt() - c
        optimizer.zero_grad()
        (loss * weights[n]).mean().backward()
        optimizer.step()
        counts.append(N)

    assert counts == [4, 4, 7, 7, 13, 13, 25, 25, 25]
    assert not torch.equal(own.out.bias, AnyRank().out.bias)
    assert all(map(torch.equal, net.parameters(), own.parameters()))
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_gradient_vanishes_at_the_exact_consistency_function():
    """
    On average over 100,000 samples of Gaussian data: the mean gradient is below a hundredth of its
    root mean square for three directions, three standard errors; for data 10 % wider it is not.
    """
    training = ImprovedConsistencyTraining()
    assert gradient_at_gaussian_data(training, std=0.5) < 0.01
    assert gradient_at_gaussian_data(training, std=0.55) > 0.03


def test_levels_are_drawn_from_the_lognormal_of_the_settings():
    settings = {"lognormal_std": 0.5, "final_timesteps": 160}
    for mean in (-2., 1.1):
        out = step(plain, gaussian(4000, 3), 10, settings={**settings, "lognormal_mean": mean})
        middle = (out.levels.lower * out.upper).sqrt().log()
        assert abs(middle.mean() - mean) < 0.05 and abs(middle.std() - 0.5) < 0.05


def test_the_defaults_are_those_of_the_paper():
    training = ImprovedConsistencyTraining()
    found = (training.sigma_min, training.sigma_max, training.rho, training.sigma_data,
        training.initial_timesteps,
             training.final_timesteps, training.lognormal_mean, training.lognormal_std)
    assert found == (0.002, 80., 7., 0.5, 10, 1280, -1.1, 2.)
    assert training.distance is pseudo_huber_loss


@pytest.mark.slow
def test_a_trained_network_is_within_five_per_cent_of_the_exact_answers():
    """An MLP that learns the consistency function of N(0.3, 0.5^2) in two dimensions."""
    net, steps = MLP(2, width=32, depth=1), 2000
    training = ImprovedConsistencyTraining(final_timesteps=160, lognormal_mean=0.)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        output = training(net, 0.3 + 0.5 * torch.randn(512, 2), k, steps)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        decay.step()
    for sigma in (0.05, 0.2, 0.5, 1., 3., 10., 80.):
        noisy = 0.3 + 0.5 * gaussian(4000, 2, seed=1) + sigma * gaussian(4000, 2, seed=2)
        exact = gaussian_consistency_function(noisy, sigma, 0.3, 0.5)
        assert relative_error(consistency_function(net)(noisy, sigma), exact) < 0.05


# Keeps its promises

def test_levels_and_weights_are_those_of_this_step():
    """Both are kept; also where other numbers of levels, settings or types came first."""
    for settings in ({}, {"sigma_min": 0.01, "sigma_max": 10.}, {"rho": 3.}):
        for k in (0, 9, 4, 10):
            for dtype in (torch.float32, torch.float64):
                x = gaussian(64, 3, 2, dtype=dtype)
                counts = {"initial_timesteps": 3, "final_timesteps": 24}
                out = step(plain, x, k, settings={**counts, **settings})
                N = improved_timesteps_schedule(k, 10, 3, 24)
                assert torch.equal(out.sigmas, karras_schedule(N, **settings, dtype=dtype))
                n = torch.searchsorted(out.sigmas, out.levels.lower)
                assert torch.equal(out.sigmas[n], out.levels.lower)
                assert torch.equal(out.sigmas[n + 1], out.upper)
                weight = (1 / out.sigmas.double().diff())[n].to(dtype)
                assert torch.allclose(out.levels.weight, weight)
                assert out.num_timesteps == N and out.levels.weight.dtype == dtype
                assert torch.equal(out.loss_weights, out.levels.weight[:, None, None])


def test_other_lognormals_draw_others_on_the_same_grid():
    for mean, std in ((-2., 0.5), (1.1, 0.5), (1.1, 2.)):
        settings = {"lognormal_mean": mean, "lognormal_std": std}
        out = step(plain, gaussian(2000, 1), 0, settings=settings, generator=seeded())
        p = lognormal_probabilities(out.sigmas, mean, std)
        shares = (out.levels.lower[:, None] == out.sigmas[:-1]).double().mean(0)
        assert torch.allclose(shares, p, atol=0.05)


def test_the_loss_is_that_of_the_published_loop():
    for shape in ((8,), (8, 3), (8, 3, 2, 2)):
        out = step(plain, gaussian(*shape), generator=seeded())
        published = pseudo_huber_loss(out.predicted, out.target) * out.loss_weights
        assert published.shape == (8, *(1,) * (len(shape) - 1))
        assert torch.equal(ImprovedConsistencyTraining().loss(out), published.flatten())


def test_the_target_is_the_model_itself_and_nothing_is_kept():
    net, training = shake(AnyRank(dropout=0.5)), ImprovedConsistencyTraining()
    training.attach(net)
    assert training.target(net) is net and training.state_dict() == {}
    assert training.parameters() == []
    torch.manual_seed(1)
    out = training.step(net, gaussian(8, 3), 0, 10, seeded())
    torch.manual_seed(1)
    again = training(net, gaussian(8, 3), 0, 10, seeded())
    assert torch.equal(out.predicted, again.predicted) and torch.equal(out.target, again.target)
    assert training.follow(net, out) is None and not out.target.requires_grad


def test_finite_data_gives_a_finite_loss_and_gradient_in_every_type():
    for x in (torch.zeros(4, 3), 1000 * gaussian(4, 3), 1e-6 * gaussian(4, 3, 2, 2)):
        for dtype in DTYPES:
            for settings in ({}, {"sigma_min": 1e-4, "sigma_max": 1e4},
                    {"lognormal_mean": 3., "lognormal_std": 0.1}):
                scale = torch.ones((), dtype=dtype, requires_grad=True)
                training = ImprovedConsistencyTraining(final_timesteps=40, **settings)
                out = training(lambda x, sigma: scale * x.tanh(), x.to(dtype), 10, 10)
                training.loss(out).mean().backward()
                assert out.predicted.dtype == out.target.dtype == dtype
                assert scale.grad.isfinite() and (out.levels.weight > 0).all()


def test_weights_that_were_made_in_inference_mode_train():
    settings = {"final_timesteps": 33, "rho": 6.5}
    with torch.inference_mode(): step(plain, gaussian(4, 3), settings=settings)
    net, training = shake(AnyRank()), ImprovedConsistencyTraining(**settings)
    training.loss(training(net, gaussian(4, 3), 5, 10)).sum().backward()
    assert net.out.weight.grad.isfinite().all()


def test_a_grid_that_a_caller_changes_changes_for_nobody_else():
    before = step(plain, gaussian(4, 3)).sigmas.clone()
    step(plain, gaussian(4, 3)).sigmas.mul_(2)
    assert torch.equal(step(plain, gaussian(4, 3)).sigmas, before)


CONVERSIONS = ("at_least_float32", "_levels", "one_level_each", "draw_device")
READS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu",
    "__array__", "nonzero")


def checks_and_conversions():
    """All functions of the package that check or convert what comes in, and where each is known."""
    found = collections.defaultdict(list)
    for module in pkgutil.iter_modules(consistency_models.__path__, "consistency_models."):
        module = importlib.import_module(module.name)
        for name, function in vars(module).items():
            if inspect.isfunction(function) and (
                    name.startswith(("check_", "_check_", "as_")) or name in CONVERSIONS
                    or function.__module__ == "consistency_models.checks"):
                found[function].append((module, name))
    return found


def test_one_step_checks_at_the_door_alone(monkeypatch):
    """
    At most ten checks and conversions in a step of the bundled U-Net and its loss, and no value is
    read from a tensor: each would wait for the GPU.
    """
    net, (x, labels), calls = without_weight(from_pretrained("digits")).eval().requires_grad_(), load_digits(), []
    training = ImprovedConsistencyTraining(sigma_data=net.sigma_data)
    training.attach(net)
    def one_step():
        output = training.step(net, x[:8], 5, 1000, seeded(), class_labels=labels[:8])
        return training.loss(output)
    one_step()   # makes the grid of this N

    def noted(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)
        return call
    found = checks_and_conversions()
    assert len(found) >= 15
    for function, places in found.items():
        for module, name in places: monkeypatch.setattr(module, name, noted(name, function))
    for name in READS:
        own = noted(f"Tensor.{name}", getattr(torch.Tensor, name))
        monkeypatch.setattr(torch.Tensor, name, own)
    loss = one_step()
    monkeypatch.undo()
    told = dict(collections.Counter(calls))
    assert loss.isfinite().all() and not [n for n in told if n.startswith("Tensor.")], str(told)
    assert len(calls) <= 10, str(told)


# Refuses

def test_settings_of_the_lognormal_that_no_step_can_use_are_refused_when_they_are_given():
    for name, bad in (
            ("lognormal_std", 0.), ("lognormal_std", -2.), ("lognormal_mean", float("nan"))):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            ImprovedConsistencyTraining(**{name: bad})
    with pytest.raises(ValueError, match="mean 8.0 and std 0.1 has no mass between the levels"):
        ImprovedConsistencyTraining(lognormal_mean=8., lognormal_std=0.1)


def test_what_is_no_batch_and_what_is_no_network_are_refused():
    for bad, error in ((torch.ones(4, 3).long(), TypeError), (torch.zeros(0, 3), ValueError)):
        with pytest.raises(error, match="^x must"): step(plain, bad)
    with pytest.raises(TypeError, match="callable"): step(None, gaussian(4, 3))
    with pytest.raises(ValueError, match="got 11 of 10"): step(plain, gaussian(4, 3), 11)
