"""Diffusion: its loss and levels, walks down the path by Heun and Euler, guidance."""

import copy
import inspect
import math
import pickle
from functools import partial

import pytest
import torch
from conftest import (
    AnyRank,
    Exact,
    calls_of,
    gaussian,
    gradient_at_gaussian_data,
    relative_error,
    seeded,
    shake,
)
from torch import nn

from consistency_models import (
    MLP,
    DiffusionTraining,
    UNet,
    consistency_function,
    euler_step,
    guided,
    heun_step,
    ideal_denoiser,
    karras_schedule,
    ode_trajectory,
    output_scaling,
    skip_scaling,
)
from consistency_models.consistency_training import squared_error
from consistency_models.diffusion import as_denoiser

MEAN, STD = 0.3, 0.5
LABELS = torch.tensor([0, 1, 2, 0])
both_solvers = pytest.mark.parametrize("solver", (heun_step, euler_step))


def labeled(**options):
    """A network for points that knows three classes and answers without them too."""
    net = MLP(2, 16, 1, num_classes=3, label_dropout=0.5, sigma_data=0.7, **options)
    return shake(net).eval()


def of_gaussian(x, sigma, mean=MEAN, std=STD):
    """The exact denoiser of N(mean, std^2)."""
    keep = std**2 / (std**2 + torch.as_tensor(sigma, dtype=x.dtype) ** 2)
    return mean + keep.reshape(-1, *(1,) * (x.ndim - 1)) * (x - mean)


def last(walk):
    """Noisy and denoised samples at the end of a walk."""
    *_, (_, noisy, denoised) = walk
    return noisy, denoised


class ExactDenoiser(Exact):
    """The same for the denoiser: with the skip connection of noise level 0, it answers exactly."""

    def forward(self, x, sigma):
        s = sigma[:, None]
        c_skip, c_out = (c(s, 0.5, 0.) for c in (skip_scaling, output_scaling))
        centered = (x - self.mean) / (s**2 + self.std**2).sqrt()
        directions = torch.stack([torch.ones_like(x), centered, centered.tanh() * s.log()], -1)
        raw = (of_gaussian(x, sigma, self.mean, self.std) - c_skip * x) / c_out
        return raw + (directions * self.change[:, None]).sum(-1)


# Equals the paper

@pytest.mark.parametrize("sigma, weight", ((0.1, 104), (0.25, 20), (0.5, 8), (1., 5), (4., 4.0625)))
def test_the_weight_at_five_levels(sigma, weight):
    """(sigma^2 + 0.5^2) / (0.5 sigma)^2, Table 1 of Karras et al. (2022), computed by hand."""
    levels = DiffusionTraining(lognormal_mean=math.log(sigma), lognormal_std=1e-9).levels(
        0, 1, gaussian(3, 2, dtype=torch.float64))
    torch.testing.assert_close(levels.upper, torch.full((3,), sigma, dtype=torch.float64))
    torch.testing.assert_close(levels.weight, torch.full((3,), weight, dtype=torch.float64))
    assert levels.lower.tolist() == [0, 0, 0] and levels.grid is None


def test_levels_are_lognormal():
    levels = DiffusionTraining().levels(0, 1, gaussian(40_000, 1)).upper.log()
    shares = (levels < torch.tensor([[-2.4], [-1.2], [0.]])).double().mean(1)
    assert (shares - torch.special.ndtr(torch.tensor([-1., 0., 1.]))).abs().max() < 0.01
    levels = DiffusionTraining(lognormal_mean=0.4, lognormal_std=0.3).levels(0, 1, gaussian(9000, 1))
    assert abs(levels.upper.log().mean() - 0.4) < 0.02 and abs(levels.upper.log().std() - 0.3) < 0.02


def test_the_defaults_are_those_of_the_paper():
    training = DiffusionTraining()
    assert (training.lognormal_mean, training.lognormal_std) == (-1.2, 1.2)
    assert (training.sigma_data, training.sigma_min) == (0.5, 0)
    assert training.distance is squared_error


def test_a_training_step_is_that_of_the_paper():
    """Eqs. 2 and 7 and Table 1 of Karras et al. (2022) with the same draws, its gradient too."""
    net, x, sd = shake(AnyRank(dropout=0.2)), gaussian(16, 3), 0.7
    own, g = copy.deepcopy(net), seeded(7)
    training = DiffusionTraining(sd, lognormal_mean=-0.5, lognormal_std=1.5)
    training.attach(net)
    torch.manual_seed(0)
    output = training.step(net, x, 3, 10, g)
    training.loss(output).mean().backward()

    g.manual_seed(7)
    torch.manual_seed(0)
    sigma = (-0.5 + 1.5 * torch.randn(16, generator=g)).exp()[:, None]
    noisy = x + sigma * torch.randn(16, 3, generator=g)
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / (sigma**2 + sd**2).sqrt()
    denoised = c_skip * noisy + c_out * own(noisy, sigma[:, 0])
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    (weight * (denoised - x).square()).mean().backward()

    torch.testing.assert_close(output.predicted, denoised)
    torch.testing.assert_close(training.loss(output), (weight * (denoised - x).square()).mean(1))
    assert output.target is x and output.num_timesteps is None
    for p, q in zip(net.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_gradient_vanishes_at_the_exact_denoiser():
    """
    On average over 100,000 samples of Gaussian data: the mean gradient is below a hundredth of its
    root mean square for three directions, three standard errors; for data 10 % wider it is not.
    """
    training = DiffusionTraining()
    assert gradient_at_gaussian_data(training, STD, net=ExactDenoiser) < 0.01
    assert gradient_at_gaussian_data(training, 0.55, net=ExactDenoiser) > 0.03


@pytest.mark.slow
def test_a_trained_network_is_within_five_per_cent_of_the_exact_denoiser():
    """An MLP that learns the denoiser of N(0.3, 0.5^2) in two dimensions, in some ten seconds."""
    net, steps = MLP(2, width=32, depth=1), 2000
    training = DiffusionTraining(lognormal_mean=0., lognormal_std=2.)
    training.attach(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        output = training.step(net, MEAN + STD * torch.randn(512, 2), k, steps)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        decay.step()
    for sigma in (0.05, 0.5, 2., 10., 80.):
        x = MEAN + math.hypot(STD, sigma) * gaussian(2000, 2)
        with torch.no_grad(): answer = as_denoiser(net)(x, sigma)
        assert relative_error(answer, of_gaussian(x, sigma)) < 0.05


@pytest.mark.parametrize("solver, order", ((euler_step, 1), (heun_step, 2)))
def test_solvers_are_of_their_order(solver, order):
    """
    On Gaussian data, where paths are known: with half the step the error of the walk falls to a
    half or a quarter, that of one step to a quarter or an eighth.
    """
    x = MEAN + 10 * gaussian(50, 2, dtype=torch.float64)
    exact = lambda sigma: MEAN + (x - MEAN) * math.hypot(STD, sigma) / math.hypot(STD, 10.)
    def error(steps, until):
        levels = torch.linspace(10, until, steps + 1, dtype=torch.float64)
        noisy, _ = last(ode_trajectory(of_gaussian, x, levels, solver))
        return relative_error(noisy, exact(until))
    walks = [error(steps, 0.5) for steps in (100, 200, 400)]
    jumps = [error(1, 10 - gap) for gap in (0.4, 0.2, 0.1)]
    assert walks[0] < (0.1, 0.003)[order - 1]
    for errors, factor in ((walks, 2**order), (jumps, 2 ** (order + 1))):
        for coarse, fine in zip(errors, errors[1:]): assert 0.9 < coarse / fine / factor < 1.15


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name, solver", (("Euler", euler_step), ("Heun", heun_step)))
def test_walks_equal_those_of_diffusers(name, solver):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, f"{name}DiscreteScheduler")(use_karras_sigmas=True)
    scheduler.set_timesteps(8)
    levels = scheduler.sigmas.unique().flip(0)[:-1]             # without the 0 at its end
    denoiser = partial(ideal_denoiser, data=gaussian(12, 2))
    x = start = levels[0] * gaussian(30, 2, seed=1)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        noise = (x - denoiser(x, sigma)) / sigma
        scheduler.is_scale_input_called = True                  # this model scales its input itself
        x = scheduler.step(noise, t, x).prev_sample
    _, sample = last(ode_trajectory(denoiser, start, levels, solver))
    torch.testing.assert_close(sample, x, rtol=0, atol=1e-5)


def test_guidance_is_a_line_through_both_answers():
    """Weight 1 and 0 give them bit for bit, 3 lies twice their difference beyond."""
    net, x, sigma = labeled(), gaussian(4, 2), torch.logspace(-2, 1.5, 4)
    free, asked = net(x, sigma), net(x, sigma, class_labels=LABELS)
    answer = lambda weight: guided(net, weight)(x, sigma, class_labels=LABELS)
    assert torch.equal(answer(0), free) and torch.equal(answer(1), asked)
    assert not torch.allclose(free, asked)
    torch.testing.assert_close(answer(0.5), (free + asked) / 2)
    torch.testing.assert_close(answer(3), free + 3 * (asked - free))


def test_guidance_of_a_network_is_guidance_of_its_denoiser():
    net, x, sigma = labeled(), gaussian(4, 2), torch.logspace(-2, 1.5, 4)
    def denoiser(x, sigma, class_labels=None):
        given = {} if class_labels is None else {"class_labels": class_labels}
        return as_denoiser(net, **given)(x, sigma)
    ours = as_denoiser(guided(net, 4.), class_labels=LABELS)(x, sigma)
    theirs = as_denoiser(guided(denoiser, 4.), class_labels=LABELS)(x, sigma)
    torch.testing.assert_close(ours, theirs)


# Keeps its promises

@pytest.mark.parametrize("solver, cost", ((heun_step, 2), (euler_step, 1)))
def test_what_a_walk_costs(solver, cost):
    """N levels: 2N - 1 evaluations with Heun, N with Euler."""
    net = labeled()
    calls = calls_of(net)
    for n in (1, 2, 18):
        calls.clear()
        levels = karras_schedule(n).flip(0) if n > 1 else [80.]
        last(ode_trajectory(net, 80 * gaussian(4, 2), levels, solver, class_labels=LABELS))
        assert len(calls) == cost * (n - 1) + 1
        assert all(kwargs["class_labels"] is LABELS for *_, kwargs in calls)


@both_solvers
def test_each_level_is_handed_out_with_the_best_guess_there(solver):
    x, levels = 5 * gaussian(6, 1, 2, 2, dtype=torch.float64), [5., 2., 0.3, 0.]
    denoiser, before = partial(ideal_denoiser, data=gaussian(9, 1, 2, 2)), x.clone()
    walk = list(ode_trajectory(denoiser, x, iter(levels), solver))
    assert [sigma for sigma, *_ in walk] == levels
    assert torch.equal(walk[0][1], before) and torch.equal(x, before)
    for (now, noisy, denoised), (then, later, _) in zip(walk, walk[1:]):
        assert torch.equal(denoised, denoiser(noisy, now))
        each = (torch.full((6,), s, dtype=x.dtype) for s in (now, then))
        torch.testing.assert_close(later, solver(denoiser, noisy, *each))
    torch.testing.assert_close(walk[3][1], walk[2][2])          # the step to 0 is Euler's


def test_a_network_is_walked_through_its_skip_connection_and_a_denoiser_as_it_is():
    net, x = labeled(), 80 * gaussian(4, 2)
    f, levels = consistency_function(net, sigma_min=0., class_labels=LABELS), [80., 3., 0.5, 0.01]
    of_network = last(ode_trajectory(net, x, levels, class_labels=LABELS))
    of_denoiser = last(ode_trajectory(lambda x, sigma: f(x, sigma), x, levels))
    assert torch.equal(of_network[1], of_denoiser[1]) and not of_network[1].requires_grad
    assert torch.equal(as_denoiser(net, class_labels=LABELS)(x, 0.), x)
    seen = []
    def own(x, sigma, **kwargs):
        seen.append(kwargs)
        return 0 * x
    assert last(ode_trajectory(own, x, levels, color=3))[1].abs().max() == 0
    assert len(seen) == 7 and all(kwargs == {"color": 3} for kwargs in seen)


@both_solvers
def test_the_type_of_the_data_is_kept(solver):
    for dtype in (torch.float64, torch.bfloat16):
        noisy, sample = last(ode_trajectory(of_gaussian, (80 * gaussian(4, 2)).to(dtype), [80., 0.5], solver))
        assert noisy.dtype == sample.dtype == dtype
    net = labeled().bfloat16()
    noisy, sample = last(ode_trajectory(net, gaussian(4, 2).bfloat16(), [5., 0.5], solver, class_labels=LABELS))
    assert noisy.dtype == sample.dtype == torch.bfloat16 and sample.isfinite().all()


@both_solvers
def test_a_guess_that_is_known_is_not_asked_for(solver):
    x, seen = gaussian(4, 2), []
    def denoiser(x, sigma):
        seen.append(sigma)
        return x / 2
    upper, lower = torch.full((4,), 2.), torch.full((4,), 1.)
    with_it = solver(denoiser, x, upper, lower, x / 2)
    assert all(sigma is lower for sigma in seen)
    assert torch.equal(with_it, solver(denoiser, x, upper, lower))


def test_a_guided_network_is_a_network():
    """It says what the network knows, is copied and trained as one, and keeps its parameters."""
    net = shake(UNet(1, (8, 16), num_classes=3, label_dropout=0.1, sigma_data=0.7)).eval()
    net.notes = {"shape": [1, 8, 8]}
    strong = guided(net, 2)
    assert isinstance(strong, nn.Module) and strong.sigma_data == 0.7 and strong.notes is net.notes
    assert strong.config is net.config and not hasattr(strong, "something")
    assert list(strong.parameters())[0] is list(net.parameters())[0]
    x, sigma = gaussian(4, 1, 8, 8), torch.ones(4)
    expected = strong(x, sigma, class_labels=LABELS)
    for again in (copy.deepcopy(strong), pickle.loads(pickle.dumps(strong))):
        assert torch.equal(again(x, sigma, class_labels=LABELS), expected)
    f = consistency_function(strong, class_labels=LABELS)
    torch.testing.assert_close(
        f(x, 1.), consistency_function(lambda x, s: strong(x, s, class_labels=LABELS), 0.7)(x, 1.))
    assert not isinstance(guided(of_gaussian, 2), nn.Module)


def test_a_step_keeps_the_type_of_the_data_and_its_loss_is_never_in_half_precision():
    for dtype in (torch.float64, torch.bfloat16):
        net, x, training = shake(AnyRank()).to(dtype), gaussian(4, 3).to(dtype), DiffusionTraining()
        output = training.step(net, x, 0, 1)
        assert output.predicted.dtype == dtype and training.loss(output).dtype != torch.bfloat16
        assert training.loss(output).isfinite().all()


# Refuses

@pytest.mark.parametrize("settings", (
    {"sigma_data": 0.}, {"lognormal_std": 0.}, {"lognormal_mean": math.nan}, {"sigma_data": math.inf}))
def test_settings_that_train_nothing_are_refused(settings):
    (name, _), = settings.items()
    with pytest.raises(ValueError, match=f"^{name} must be finite"): DiffusionTraining(**settings)


def test_samples_that_are_none_are_refused():
    with pytest.raises(TypeError, match="^x must be a floating"):
        DiffusionTraining().step(of_gaussian, torch.zeros(2, 2, dtype=torch.long), 0, 1)
    with pytest.raises(ValueError, match="got 3 of 2"):
        DiffusionTraining().step(of_gaussian, gaussian(2, 2), 3, 2)


def test_a_walk_is_refused_before_it_starts():
    x = gaussian(4, 2)
    for levels in ([0.5, 80.], [], [1., 1.], [1., -1.]):
        with pytest.raises(ValueError, match="sigmas"): ode_trajectory(of_gaussian, x, levels)
    for bad in (torch.zeros(4, 2, dtype=torch.long), [[1., 2.]]):
        with pytest.raises(TypeError, match="^x must"): ode_trajectory(of_gaussian, bad, [80.])
    with pytest.raises(ValueError, match="^x must have shape"):
        ode_trajectory(of_gaussian, torch.tensor(1.), [80.])
    for bad in ("heun", None, nn.Identity):
        with pytest.raises(TypeError, match="^solver must be a function such as heun_step"):
            ode_trajectory(of_gaussian, x, [80.], bad)
    assert inspect.isgenerator(ode_trajectory(of_gaussian, x, [80.]))


def test_a_denoiser_must_answer_in_the_shape_of_the_data():
    with pytest.raises(ValueError, match=r"the answer must have the shape of x, \(4, 2\)"):
        list(ode_trajectory(lambda x, sigma: x[:, :1], gaussian(4, 2), [80.]))


def test_guidance_needs_a_weight_and_a_network_that_answers_without_labels():
    for weight in (-0.5, math.nan):
        with pytest.raises(ValueError, match="^weight must be finite"): guided(labeled(), weight)
    with pytest.raises(TypeError, match="^weight must be a number"): guided(labeled(), "4")
    for wrapped in (partial(labeled(), class_labels=LABELS), labeled().forward):
        with pytest.raises(TypeError, match="^net must be the network itself"): guided(wrapped, 2)
    always = MLP(2, 16, 1, num_classes=3)
    with pytest.raises(ValueError, match="label_dropout="):
        guided(always, 2)(gaussian(4, 2), torch.ones(4), class_labels=LABELS)
