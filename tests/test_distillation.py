"""Consistency distillation: a run written out, exact teachers, what is kept, diffusers' models."""

import collections
import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from conftest import (
    AnyRank,
    ConvNet,
    Exact,
    calls_of,
    gaussian,
    make_trainer,
    relative_error,
    resumed,
    run,
    same,
    seeded,
    shake,
)
from torch import nn

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    DiffusersNetwork,
    consistency_function,
    denoiser_from_diffusers,
    euler_step,
    exact_consistency_function,
    gaussian_consistency_function,
    guided,
    heun_step,
    ideal_denoiser,
    karras_schedule,
    ode_trajectory,
    output_scaling,
    skip_scaling,
)
from consistency_models.consistency_training import Levels, squared_error

SOLVERS = pytest.mark.parametrize("solver", [heun_step, euler_step])


def gaussian_denoiser(x, sigma, mean=0.3, std=0.5):
    """The best guess for data from N(mean, std^2)."""
    share = std**2 / (std**2 + sigma**2)
    return mean + share.reshape(-1, *(1,) * (x.ndim - 1)) * (x - mean)


def one_step(objective, net, x, seed=0, **kwargs):
    objective.attach(net)
    return objective.step(net, x, 0, 10, seeded(seed), **kwargs)


def small_diffusers(prediction="epsilon", classes=None):
    """A small random model of diffusers and its scheduler."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes)
    return net.eval(), diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)


# Equals the paper

@pytest.mark.parametrize("decay", [0., 0.7])
@SOLVERS
def test_a_training_run_is_that_of_algorithm_2(solver, decay):
    """Written out, with a teacher that has dropout: the same draws and weights, bit for bit."""
    K, N, x, rate = 5, 7, gaussian(16, 3), 1e-3
    teacher, net, g = shake(AnyRank(dropout=0.5)), AnyRank(dropout=0.2), seeded(7)
    own = copy.deepcopy(net)

    training = ConsistencyDistillation(
        teacher, num_timesteps=N, solver=solver, target_decay=decay, gap_weights=False)
    training.attach(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    torch.manual_seed(0)
    for k in range(K):
        output = training.step(net, x, k, K, g)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        training.follow(net, output)

    def skip(net, x, sigma, sigma_min):
        s = sigma[:, None]
        c_skip = 0.5**2 / ((s - sigma_min) ** 2 + 0.5**2)
        c_out = 0.5 * (s - sigma_min) / (0.5**2 + s**2).sqrt()
        return torch.where(s <= sigma_min, x, c_skip * x + c_out * net(x, sigma))
    def D(x, sigma): return skip(teacher, x, sigma, 0.)
    def f(net, x, sigma): return skip(net, x, sigma, 0.002)
    teacher.eval()
    average, sigmas = copy.deepcopy(own), karras_schedule(N)
    optimizer = torch.optim.SGD(own.parameters(), lr=rate)
    g.manual_seed(7)
    torch.manual_seed(0)
    for k in range(K):
        n = torch.randint(0, N - 1, (16,), generator=g)
        t, s = sigmas[n + 1], sigmas[n]
        x_t = x + t[:, None] * torch.randn(x.shape, generator=g)
        before = torch.get_rng_state()
        predicted = f(own, x_t, t)
        after = torch.get_rng_state()
        with torch.no_grad():
            slope, gap = (x_t - D(x_t, t)) / t[:, None], (s - t)[:, None]
            if solver is heun_step:
                x_s = x_t + gap * slope
                x_s = x_t + gap * (slope + (x_s - D(x_s, s)) / s[:, None]) / 2
            else: x_s = D(x_t, t) + (s / t)[:, None] * (x_t - D(x_t, t))
            torch.set_rng_state(before)
            target = f(average if decay else own, x_s, s)
            torch.set_rng_state(after)
        optimizer.zero_grad()
        (predicted - target).square().mean(1).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), own.parameters(), strict=True):
                a.copy_(decay * a + (1 - decay) * p)

    assert not torch.equal(own.out.bias, AnyRank().out.bias)
    for a, b in zip(net.parameters(), own.parameters(), strict=True): assert torch.equal(a, b)


@pytest.mark.parametrize("solver, order", [(heun_step, 3), (euler_step, 2)])
def test_the_target_is_the_exact_answer_to_the_order_of_the_solver(solver, order):
    """
    With the ideal denoiser of five points as teacher and their exact consistency function as
    student, half the step divides the error of one of Heun's by about eight, of Euler's by four.
    """
    data = gaussian(5, 2, dtype=torch.float64)
    def exact(x, sigma):
        s, answer = sigma[:, None], exact_consistency_function(x, sigma, data, 60, sigma_min=0.5)
        return (answer - skip_scaling(s, 0.5, 0.5) * x) / output_scaling(s, 0.5, 0.5)
    net, x, errors = nn.Linear(1, 1), data.repeat(80, 1), []
    net.forward = exact
    for levels in (11, 21, 41):
        training = ConsistencyDistillation(
            partial(ideal_denoiser, data=data), sigma_min=0.5, sigma_max=3., solver=solver,
            num_timesteps=levels)
        output = one_step(training, net, x)
        errors.append((output.predicted - output.target).square().mean().sqrt())
    assert errors[-1] < 1e-3
    for a, b in zip(errors, errors[1:]): assert abs((a / b).log2() - order) < 0.25


def test_at_the_exact_consistency_function_the_gradient_vanishes_as_the_grid_gets_fine():
    """On Gaussian data; the size of each sample's gradient, which is not small for wider data."""
    def size(std, levels):
        x, net = 0.3 + 0.5 * gaussian(4000, 3, dtype=torch.float64), Exact(4000, 0.3, std)
        training = ConsistencyDistillation(gaussian_denoiser, num_timesteps=levels)
        training.loss(one_step(training, net, x)).sum().backward()
        return net.change.grad.square().mean().sqrt()
    for levels in (20, 40, 80): assert size(0.5, levels) > 3.2 * size(0.5, 2 * levels)
    assert size(0.5, 160) < 0.01 * size(0.55, 160)


def test_the_defaults_are_those_of_the_paper_but_for_the_weights():
    """Section 5.1 of Song et al. (2023); one over the length of the step is iCT's weight."""
    training = ConsistencyDistillation(gaussian_denoiser)
    found = (training.sigma_min, training.sigma_max, training.rho, training.sigma_data,
             training.num_timesteps, training.target_decay)
    assert found == (0.002, 80., 7., 0.5, 18, 0.)
    assert training.solver is heun_step and training.distance is squared_error
    levels = one_step(training, AnyRank(), gaussian(8, 3)).levels
    assert torch.equal(levels.weight, 1 / (levels.upper - levels.lower))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("classes", [None, 4])
def test_a_step_with_a_model_of_diffusers_is_that_of_its_scheduler(prediction, classes):
    """DDIM's step is Euler's in x_0 + sigma z, where both divide by the scale of the samples."""
    net, scheduler = small_diffusers(prediction, classes)
    scheduler.set_timesteps(10)
    given = {"class_labels": torch.tensor([0, 3, 1])} if classes else {}
    D = partial(denoiser_from_diffusers(net, scheduler), **given)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    x = gaussian(3, 1, 8, 8)
    for t, s in zip(scheduler.timesteps, scheduler.timesteps[1:], strict=False):
        upper, lower = sigmas[t], sigmas[s]
        with torch.no_grad():
            theirs = scheduler.step(net(x, t, **given).sample, t, x, eta=0.).prev_sample
            ours = euler_step(D, x * (1 + upper**2).sqrt(), upper.expand(3), lower.expand(3))
        assert torch.allclose(ours / (1 + lower**2).sqrt(), theirs, atol=1e-5)
        x = theirs


@pytest.mark.slow
def test_a_trained_network_is_within_five_per_cent_of_the_exact_answers():
    """An MLP that learns the consistency function of N(0.3, 0.5^2) in two dimensions."""
    net, steps = MLP(2, width=32, depth=1), 1500
    training = ConsistencyDistillation(gaussian_denoiser, num_timesteps=40)
    training.attach(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        output = training.step(net, 0.3 + 0.5 * torch.randn(512, 2), k, steps)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        decay.step()
    for sigma in (0.05, 0.2, 0.5, 1., 3., 10., 80.):
        noisy = 0.3 + 0.5 * gaussian(4000, 2, seed=1) + sigma * gaussian(4000, 2, seed=2)
        exact = gaussian_consistency_function(noisy, sigma, 0.3, 0.5)
        assert relative_error(consistency_function(net)(noisy, sigma), exact) < 0.05


# Keeps its promises

def test_levels_are_neighbors_of_the_grid_and_equally_likely():
    for settings in ({}, {"num_timesteps": 5, "sigma_min": 0.01, "sigma_max": 10., "rho": 3.}):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            training = ConsistencyDistillation(gaussian_denoiser, **settings)
            levels = training.levels(0, 1, gaussian(4000, 1, dtype=dtype), seeded())
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            grid = karras_schedule(**{"num_timesteps": 18, **settings}, dtype=wide)
            assert torch.equal(levels.grid, grid)
            n = torch.searchsorted(grid, levels.lower)
            assert torch.equal(levels.lower, grid[n]) and torch.equal(levels.upper, grid[n + 1])
            shares = n.bincount(minlength=len(grid) - 1) / 4000
            assert (shares * (len(grid) - 1) - 1).abs().max() < 0.25
    levels.grid.mul_(2)
    assert torch.equal(training.levels(0, 1, gaussian(2, 1), seeded()).grid, grid)


def test_a_network_as_teacher_is_a_frozen_copy_without_dropout():
    """Also where it is the network that is trained: then the teacher stays what it was."""
    net, x = shake(AnyRank(dropout=0.5)), gaussian(8, 3)
    before, training = copy.deepcopy(net).eval(), ConsistencyDistillation(net)
    training.attach(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for k in range(3):
        training.loss(training.step(net, x, k, 3)).mean().backward()
        optimizer.step()
    assert not torch.equal(net.out.bias, before.out.bias) and net.training
    assert training.parameters() == []
    assert not any(p.requires_grad for p in training.kept.parameters())
    sigma = torch.linspace(0.1, 5, 8)
    with torch.no_grad(): expected = consistency_function(before, sigma_min=0.)(x, sigma)
    assert torch.equal(training.teacher()(x, sigma), expected)


def test_a_student_that_starts_as_the_teacher_answers_with_its_best_guess():
    """Up to the boundary at sigma_min: far above it both are the same, at it the answer is x."""
    teacher, x = shake(AnyRank()), gaussian(8, 3)
    net = copy.deepcopy(teacher)
    training = ConsistencyDistillation(teacher)
    training.attach(net)
    f, D = consistency_function(net), training.teacher()
    with torch.no_grad():
        assert torch.allclose(f(x, 2.), D(x, torch.full((8,), 2.)), atol=1e-2)
        assert torch.equal(f(x, 0.002), x)


def test_the_teacher_goes_where_the_network_is():
    net = AnyRank().to("meta")
    training = ConsistencyDistillation(AnyRank())
    training.attach(net)
    assert {p.device.type for p in training.kept["denoiser"].parameters()} == {"meta"}
    assert {p.device.type for p in training.denoiser.parameters()} == {"cpu"}


def test_conditions_reach_student_target_and_teacher(images, my_kwarg):
    teacher, net = shake(ConvNet(dropout=0.)), shake(ConvNet(dropout=0.))
    training = ConsistencyDistillation(teacher)
    training.attach(net)
    told, learned = calls_of(training.kept["denoiser"]), calls_of(net)
    training.step(net, images, 0, 1, my_kwarg=my_kwarg)
    assert len(told) == len(learned) == 2
    for *_, kwargs in told + learned: assert torch.equal(kwargs["my_kwarg"], my_kwarg)
    seen = []
    def D(x, sigma, my_kwarg):
        seen.append(my_kwarg)
        return x
    one_step(ConsistencyDistillation(D, solver=euler_step), net, images, my_kwarg=my_kwarg)
    assert len(seen) == 1 and torch.equal(seen[0], my_kwarg)


def test_a_guided_teacher_leads_where_both_its_answers_point():
    teacher = shake(MLP(2, width=8, depth=1, num_classes=3, label_dropout=0.1))
    with torch.no_grad(): teacher.labels.weight.mul_(10)
    net, x, labels = copy.deepcopy(teacher).eval(), gaussian(9, 2), torch.arange(9) % 3
    out = one_step(ConsistencyDistillation(guided(teacher, 2.)), net, x, class_labels=labels)
    plain = consistency_function(net, sigma_min=0.)
    told = consistency_function(net, sigma_min=0., class_labels=labels)
    def D(x, sigma): return 2 * told(x, sigma) - plain(x, sigma)
    g = seeded()
    torch.randint(0, 17, (9,), generator=g)
    noisy = x + out.upper[:, None] * torch.randn(x.shape, generator=g)
    with torch.no_grad():
        lower = heun_step(D, noisy, out.upper, out.levels.lower)
        expected = consistency_function(net, class_labels=labels)(lower, out.levels.lower)
    assert torch.allclose(out.target, expected, atol=1e-5)
    one = one_step(ConsistencyDistillation(guided(teacher, 1.)), net, x, class_labels=labels)
    unguided = one_step(ConsistencyDistillation(teacher), net, x, class_labels=labels)
    assert torch.allclose(one.target, unguided.target, atol=1e-5)
    assert (out.target - unguided.target).abs().max() > 1e-3


@SOLVERS
def test_equal_neighbors_under_dropout_have_no_loss(solver):
    @dataclass(eq=False)
    class Equal(ConsistencyDistillation):
        def levels(self, k, K, x, generator=None):
            levels = super().levels(k, K, x, generator)
            return Levels(upper=levels.upper, lower=levels.upper, grid=levels.grid)
    net = shake(AnyRank(dropout=0.5))
    training = Equal(AnyRank(dropout=0.5), sigma_max=5., solver=solver)
    output = one_step(training, net, gaussian(8, 3))
    assert torch.allclose(output.predicted, output.target, rtol=0, atol=1e-5)
    if solver is heun_step: assert (training.loss(output) == 0).all()
    assert output.predicted.requires_grad and not output.target.requires_grad


def test_an_averaged_target_starts_as_the_network_and_follows_it():
    net, training = shake(AnyRank()), ConsistencyDistillation(gaussian_denoiser, target_decay=0.9)
    training.attach(net)
    old = net.out.weight.detach().clone()
    with torch.no_grad(): net.out.weight.add_(1.)
    assert torch.equal(training.kept["target"].out.weight, old)
    training.follow(net, None)
    assert torch.allclose(training.kept["target"].out.weight, old + 0.1)
    current = ConsistencyDistillation(gaussian_denoiser)
    current.attach(net)
    assert current.target(net) is net and current.state_dict() == {}


@pytest.mark.parametrize("decay", [0., 0.5])
def test_a_run_that_is_stopped_and_resumed_is_the_same(tmp_path, decay):
    """The teacher is kept in the checkpoint; a run is not resumed with another."""
    def objective(seed):
        torch.manual_seed(seed)
        return ConsistencyDistillation(MLP(width=16, depth=1), target_decay=decay)
    whole = run(make_trainer(objective=objective(1)))
    broken = resumed(tmp_path, 10, objective=objective(1))
    assert same(whole, broken)
    assert any(name.startswith("denoiser.") for name in whole.objective.state_dict())
    with pytest.raises(ValueError, match="begun with another teacher"):
        make_trainer(tmp_path, objective=objective(2)).resume()


class Rescaled(ConvNet):
    """Images without classes, which ignore what else is given."""
    def forward(self, x, sigma): return super().forward(x, sigma, torch.zeros(len(x)).long())


READS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu",
         "__array__", "nonzero")


@pytest.mark.parametrize("solver, evaluations", [(heun_step, 2), (euler_step, 1)])
def test_a_step_costs_its_evaluations_and_reads_no_value(monkeypatch, solver, evaluations):
    """Each value that is read from a tensor would wait for the GPU."""
    teacher, net, x, read = Rescaled(dropout=0.), Rescaled(), gaussian(4, 3, 8, 8), []
    training = ConsistencyDistillation(teacher, solver=solver)
    training.attach(net)
    training.step(net, x, 0, 1)   # makes the grid
    told, learned = calls_of(training.kept["denoiser"]), calls_of(net)
    for name in READS:
        own = getattr(torch.Tensor, name)
        def noted(*args, name=name, own=own, **kwargs):
            read.append(name)
            return own(*args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, noted)
    loss = training.loss(training.step(net, x, 0, 1))
    monkeypatch.undo()
    assert loss.shape == (4,) and not read, collections.Counter(read)
    assert len(told) == evaluations and len(learned) == 2


def test_a_model_of_diffusers_is_teacher_and_start_of_a_student():
    """As a network it is copied, frozen and kept; the student's first answers are its guesses."""
    model, scheduler = small_diffusers(classes=4)
    net, x, labels = DiffusersNetwork(model, scheduler), gaussian(2, 1, 8, 8), torch.tensor([1, 3])
    student = copy.deepcopy(net)
    training = ConsistencyDistillation(net)
    output = one_step(training, student, x, class_labels=labels)
    training.loss(output).mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert student.model.conv_out.weight.grad.abs().max() > 0
    D, f = denoiser_from_diffusers(model, scheduler), consistency_function(student, class_labels=labels)
    with torch.no_grad():
        guess = D(x, torch.full((2,), 3.), class_labels=labels)
        assert torch.allclose(f(x, 3.), guess, atol=2e-3 * guess.abs().max())
        *_, (_, _, a) = ode_trajectory(net, 80 * x, (80., 5., 0.5), class_labels=labels)
        *_, (_, _, b) = ode_trajectory(D, 80 * x, (80., 5., 0.5), class_labels=labels)
    assert torch.allclose(a, b, atol=1e-4)
    told = one_step(ConsistencyDistillation(D), student, x, class_labels=labels)
    assert torch.allclose(told.target, output.target, atol=1e-4)


def test_noise_levels_map_to_time_steps_and_back():
    """Known levels to their steps, those between to the parts between, others to the nearest."""
    model, scheduler = small_diffusers()
    net = DiffusersNetwork(model, scheduler)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()
    steps = torch.tensor([0, 1, 500, 998, 999])
    assert torch.allclose(net.time_step(sigmas[steps]), steps.float(), atol=1e-3)
    between = (sigmas[500] * sigmas[501]).sqrt()[None]
    assert torch.allclose(net.time_step(between), torch.tensor([500.5]), atol=1e-3)
    assert torch.equal(net.time_step(torch.tensor([1e-6, 0.002, 1e6])), torch.tensor([0., 0., 999.]))
    x, told = gaussian(1, 1, 8, 8), calls_of(model)
    for sigma, t in ((0.002, 0.), (400., 999.)):
        with torch.no_grad(): guess = denoiser_from_diffusers(model, scheduler)(x, torch.tensor([sigma]))
        assert told[-1][1].tolist() == [t]
        with torch.no_grad(): noise = model(x / (1 + sigma**2) ** 0.5, t).sample
        assert torch.allclose(guess, x - sigma * noise, rtol=1e-4, atol=1e-5)


def test_half_precision_gets_time_steps_that_are_not_rounded():
    model, scheduler = small_diffusers()
    net = DiffusersNetwork(model.bfloat16(), scheduler)
    told, x = calls_of(model), gaussian(2, 1, 8, 8).bfloat16()
    assert net(x, torch.tensor([2., 2.01])).dtype == torch.bfloat16
    assert told[0][0].dtype == torch.bfloat16 and told[0][1].dtype == torch.float32
    assert told[0][1].diff() > 0.5


# Refuses

@pytest.mark.parametrize("name, bad", [
    ("num_timesteps", 1), ("num_timesteps", 0), ("target_decay", 1.1), ("target_decay", -0.1),
    ("sigma_data", 0.)])
def test_settings_that_no_step_can_use_are_refused_when_they_are_given(name, bad):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ConsistencyDistillation(gaussian_denoiser, **{name: bad})


def test_a_solver_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="^solver must be .*got 'heun'"):
        ConsistencyDistillation(gaussian_denoiser, solver="heun")


def test_levels_without_order_are_refused():
    with pytest.raises(ValueError, match="sigma_m"):
        ConsistencyDistillation(gaussian_denoiser, sigma_min=80., sigma_max=0.002)


def test_what_is_no_denoiser_is_refused():
    for bad, what in ((None, "None"), ("digits", "'digits'"), (MLP, "<class")):
        with pytest.raises(TypeError, match=f"^denoiser must be .*got {what}"):
            ConsistencyDistillation(bad).attach(AnyRank())
    model, _ = small_diffusers()
    with pytest.raises(TypeError, match="UNet2DModel of diffusers; give DiffusersNetwork"):
        ConsistencyDistillation(model).attach(AnyRank())


def test_a_bare_model_of_diffusers_is_no_network():
    model, _ = small_diffusers()
    with pytest.raises(ValueError, match="must return a tensor .* got UNet2DOutput"):
        one_step(ConsistencyDistillation(gaussian_denoiser), model, gaussian(2, 1, 8, 8))
    with pytest.raises(ValueError, match="must return a tensor .* got UNet2DOutput"):
        list(ode_trajectory(model, gaussian(2, 1, 8, 8), (80., 1.)))


def test_a_step_without_attach_says_so():
    with pytest.raises(AttributeError, match="call attach"):
        ConsistencyDistillation(AnyRank()).step(AnyRank(), gaussian(4, 3), 0, 1)


def test_schedulers_that_are_no_variance_preserving_ones_are_refused():
    diffusers = pytest.importorskip("diffusers")
    model, scheduler = small_diffusers()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="scheduler must predict .*'flow'"):
        denoiser_from_diffusers(model, scheduler)
    for other in (diffusers.EDMEulerScheduler(), diffusers.FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ValueError, match="^scheduler must"):
            DiffusersNetwork(model, other)
    with pytest.raises(ValueError, match="^sigma_data must be"):
        DiffusersNetwork(*small_diffusers(), sigma_data=0.)
