"""Levels, the pair of answers, the protocol of objectives, and consistency training."""

import copy
import math
import warnings

import pytest
import torch
from conftest import (
    AnyRank,
    devices,
    gaussian,
    gradient_at_gaussian_data,
    relative_error,
    seeded,
    shake,
)
from torch import nn

from consistency_models import (
    MLP,
    ConsistencyFunction,
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    Levels,
    Objective,
    UNet,
    consistency_function,
    consistency_pair,
    gaussian_consistency_function,
    ideal_denoiser,
    karras_schedule,
    pseudo_huber_loss,
    randn_like,
    squared_error,
    timesteps_schedule,
)
from consistency_models.consistency_training import add_noise
from consistency_models.utils import random_state

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def plain(x, sigma): return x.tanh()


def align(levels, x):
    """One level for each sample, ready to multiply `x`."""
    return levels.reshape(-1, *(1,) * (x.ndim - 1))


def step(net, x, k=5, K=10, teacher=None, settings=None, **kwargs):
    """One step of consistency training; the teacher is the model itself unless one is given."""
    return ConsistencyTraining(**settings or {})(net, teacher or net, x, k, K, **kwargs)


def f(net, x, sigma, std=0.5, low=0.002):
    """The consistency function of `net`, written out: appendix C of Song et al. (2023)."""
    c_skip = std**2 / ((sigma - low) ** 2 + std**2)
    c_out = std * (sigma - low) / (std**2 + sigma**2).sqrt()
    at_end = align(sigma <= low, x)
    return torch.where(at_end, x, align(c_skip, x) * x + align(c_out, x) * net(x, sigma))


class RandomDepth(nn.Module):
    """A network that leaves out each sample's update at random."""

    def __init__(self):
        super().__init__()
        self.inner = AnyRank()

    def forward(self, x, sigma):
        return align(torch.bernoulli(torch.full_like(sigma, 0.5)), x) * self.inner(x, sigma)


class NoisyInside(AnyRank):
    """A network that draws noise of its own in every call."""

    def forward(self, x, sigma): return super().forward(x, sigma) + torch.randn_like(x)


class Normalized(AnyRank):
    """A network with batch statistics and dropout."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, sigma): return super().forward(self.norm(x), sigma)


RANDOM_NETWORKS = {
    "dropout, rank 5": (lambda: AnyRank(dropout=0.5), (4, 3, 2, 4, 4)),
    "random depth": (RandomDepth, (16, 3)),
    "noise inside": (NoisyInside, (8, 3)), "BatchNorm and dropout": (Normalized, (16, 3)),
    "UNet with dropout": (lambda: UNet(3, (8, 16), dropout=0.5), (4, 3, 8, 8))}


class Nearer(Objective):
    """A method of one's own: no grid, two levels that come nearer (as in Geng et al. 2024)."""
    sigma_min, sigma_data, distance = 0.002, 0.5, staticmethod(squared_error)

    def levels(self, k, K, x, generator=None):
        upper = (1.5 * randn_like(x.flatten(1)[:, 0], generator)).exp().clamp(min=0.01)
        lower = upper * (1 - 0.5 ** (1 + 4 * k // K))
        return Levels(upper, lower, 1 / (upper - lower))


# Equals the paper

def test_noisy_samples_are_the_sum_of_data_and_noise():
    for shape in ((4,), (4, 3), (4, 3, 2, 2, 2)):
        x, z = gaussian(*shape), gaussian(*shape, seed=1)
        sigma = torch.tensor([0.002, 0.5, 3., 80.])
        assert torch.equal(add_noise(x, z, sigma), x + align(sigma, x) * z)
        assert add_noise(x.bfloat16(), z.bfloat16(), sigma).dtype == torch.bfloat16


def test_a_pair_is_two_answers_with_the_same_noise_and_the_same_dropout():
    """Eq. 10 of Song et al. (2023), in a straight line and bit for bit."""
    net, teacher = shake(AnyRank(dropout=0.5)), shake(AnyRank(dropout=0.5))
    nn.init.ones_(teacher.out.bias)
    x, z = gaussian(8, 3, 4), gaussian(8, 3, 4, seed=1)
    upper, lower = torch.logspace(-2, 1.9, 8), torch.logspace(-2.6, 1.7, 8)
    torch.manual_seed(0)
    found = consistency_pair(*map(consistency_function, (net, teacher)), x, z, Levels(upper, lower))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    predicted = f(net, x + align(upper, x) * z, upper)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(0)
    target = f(teacher, x + align(lower, x) * z, lower).detach()
    assert torch.equal(found[0], predicted) and torch.equal(found[1], target)
    assert found[0].requires_grad and not found[1].requires_grad


def test_the_way_down_may_be_a_step_of_a_solver():
    """Algorithm 2 of Song et al. (2023) with an Euler step: a denoiser, not the same noise."""
    data, x, z = gaussian(20, 2), gaussian(8, 2), gaussian(8, 2, seed=1)
    levels = Levels(torch.linspace(1, 8, 8), torch.linspace(0.5, 7, 8))
    graphs = []
    def euler(x, noise, noisy, levels):
        graphs.append(torch.is_grad_enabled())
        slope = (noisy - ideal_denoiser(noisy, levels.upper, data)) / levels.upper[:, None]
        return noisy + (levels.lower - levels.upper)[:, None] * slope
    g = consistency_function(plain)
    predicted, target = consistency_pair(g, g, x, z, levels, euler)
    noisy = add_noise(x, z, levels.upper)
    assert torch.equal(predicted, g(noisy, levels.upper))
    assert torch.equal(target, g(euler(x, z, noisy, levels), levels.lower))
    assert graphs == [False, True]


def test_consistency_training_is_algorithm_3():
    """Song et al. (2023), written out: the same draws, weights and averages, bit for bit."""
    K, s0, s1, mu0, x = 12, 3, 9, 0.9, gaussian(16, 3)
    net, g = shake(AnyRank(dropout=0.2)), seeded(7)
    student, teacher = copy.deepcopy(net), copy.deepcopy(net)

    training = ConsistencyTraining(
        initial_timesteps=s0, final_timesteps=s1, initial_ema_decay_rate=mu0)
    training.attach(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(0)
    for k in range(K):
        output = training.step(net, x, k, K, g)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        training.follow(net, output)

    optimizer, counts = torch.optim.SGD(student.parameters(), lr=0.1), set()
    g.manual_seed(7)
    torch.manual_seed(0)
    for k in range(K):
        N = math.ceil(math.sqrt(k / K * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
        t = karras_schedule(N)
        n = torch.randint(0, N - 1, (16,), generator=g)
        z = torch.randn(x.shape, generator=g)
        before = torch.get_rng_state()
        predicted = f(student, x + align(t[n + 1], x) * z, t[n + 1])
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        with torch.no_grad(): target = f(teacher, x + align(t[n], x) * z, t[n])
        torch.set_rng_state(after)
        optimizer.zero_grad()
        (predicted - target).square().mean(1).mean().backward()
        optimizer.step()
        mu = math.exp(s0 * math.log(mu0) / N)
        with torch.no_grad():
            for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
                p.lerp_(q, 1 - mu)
        counts.add(N)

    assert len(counts) >= 6
    for ours, theirs in ((net, student), (training.kept["teacher"], teacher)):
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_the_gradient_vanishes_at_the_exact_consistency_function():
    """
    On average over 100,000 samples of Gaussian data: the mean gradient is below a hundredth of its
    root mean square for three directions, three standard errors; for data 10 % wider it is not.
    """
    training = ConsistencyTraining(final_timesteps=1280)
    assert gradient_at_gaussian_data(training, std=0.5) < 0.01
    assert gradient_at_gaussian_data(training, std=0.55) > 0.03


def test_steps_of_the_grid_are_drawn_evenly():
    out = step(plain, gaussian(8000, 3), 0, settings={"initial_timesteps": 5})
    shares = (out.levels.lower[:, None] == out.sigmas).double().mean(0)
    assert torch.allclose(shares[:-1], torch.tensor(0.25).double(), atol=0.02) and shares[-1] == 0


def test_squared_error_is_the_mean_over_the_values_of_each_sample():
    a, b = gaussian(4, 3, 2), gaussian(4, 3, 2, seed=1)
    expected = [((u - v) ** 2).mean() for u, v in zip(a, b, strict=True)]
    assert torch.allclose(squared_error(a, b), torch.stack(expected))
    assert torch.equal(squared_error(a[:, 0, 0], b[:, 0, 0]), (a - b)[:, 0, 0] ** 2)


def test_a_method_of_ten_lines_learns():
    """The consistency function of Gaussian data, from far to near, with no grid and no teacher."""
    mean, std, steps = 0.3, 0.5, 300
    net, method, g = MLP(2, width=32, depth=1), Nearer(), seeded()
    def error(sigma):
        noisy = mean + std * gaussian(2000, 2, seed=1) + sigma * gaussian(2000, 2, seed=2)
        exact = gaussian_consistency_function(noisy, sigma, mean, std)
        return relative_error(consistency_function(net)(noisy, sigma), exact)
    assert error(3.) > 0.5 and error(10.) > 0.5
    method.attach(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, fused=True)
    for k in range(steps):
        for group in optimizer.param_groups: group["lr"] = 5e-3 * (1 - k / steps)
        output = method.step(net, mean + std * torch.randn(256, 2, generator=g), k, steps, g)
        optimizer.zero_grad()
        method.loss(output).mean().backward()
        optimizer.step()
        method.follow(net, output)
    assert output.num_timesteps is output.sigmas is None
    assert error(3.) < 0.2 and error(10.) < 0.2


# Keeps its promises

@devices
def test_the_loss_is_zero_at_equal_levels_whatever_the_network_draws(device):
    """The same noise and masks leave nothing to differ; two calls of the network alone differ."""
    for build, shape in RANDOM_NETWORKS.values():
        net = shake(build()).to(device)
        x, z = (gaussian(*shape, seed=seed).to(device) for seed in (0, 1))
        levels = torch.logspace(-2, 1.9, len(x), device=device)
        g = consistency_function(net)
        answers = consistency_pair(g, g, x, z, Levels(levels, levels))
        assert torch.equal(*answers) and pseudo_huber_loss(*answers).abs().max() == 0
        assert not torch.equal(net(x, levels), net(x, levels))


@devices
def test_the_random_state_after_a_step_is_what_the_student_left(device):
    """Whatever the teacher draws, and where a generator is given for the rest."""
    net, x = AnyRank(dropout=0.5).to(device), gaussian(8, 3).to(device)
    def state(): return random_state(torch.device(device))[device]
    torch.manual_seed(0)
    net(x, torch.ones(8, device=device))
    alone = state()
    for teacher in (net, AnyRank().to(device), NoisyInside().to(device)):
        torch.manual_seed(0)
        step(net, x, teacher=teacher, generator=seeded())
        assert torch.equal(state(), alone)


def test_the_random_state_is_put_back_after_an_error_in_the_teacher(any_rank):
    def broken(x, sigma):
        torch.randn(5)
        raise RuntimeError("broken teacher")
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken teacher"):
        step(any_rank, gaussian(8, 3), teacher=broken, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_come_from_the_generator_alone_else_from_the_global_one():
    x = gaussian(32, 3)
    first, again, other = (step(plain, x, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first.predicted, again.predicted) and torch.equal(first.upper, again.upper)
    assert not torch.equal(first.predicted, other.predicted)
    assert not torch.equal(first.upper, other.upper)
    torch.manual_seed(3)
    assert torch.equal(step(plain, x).predicted, first.predicted)
    assert not torch.equal(step(plain, x).predicted, first.predicted)


def test_the_student_takes_the_gradient_and_the_target_none():
    """The gradient is that of a fixed target, also where the target is the model itself."""
    net, x = shake(AnyRank()).double(), gaussian(8, 3, dtype=torch.float64)
    gradients = []
    for teacher in (net, copy.deepcopy(net)):
        out = step(net, x, teacher=teacher, generator=seeded())
        assert out.predicted.requires_grad and not out.target.requires_grad
        loss = squared_error(out.predicted, out.target).sum()
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(map(torch.equal, *gradients)) and all(g.abs().sum() > 0 for g in gradients[0])
    with torch.no_grad(): assert not step(net, x).predicted.requires_grad
    assert torch.is_grad_enabled() and torch.equal(x, gaussian(8, 3, dtype=torch.float64))


def test_the_networks_are_asked_with_one_level_each_and_all_arguments():
    """Data of any rank; levels in the type of the data, the grid in at least float32."""
    for shape in ((5,), (5, 3), (1, 3, 4), (5, 3, 4, 2), (5, 3, 2, 2, 2)):
        for dtype in DTYPES:
            net, asked = nn.Linear(1, 1), []
            def noted(x, sigma, **kwargs):
                asked.append((x.shape, sigma.shape, x.dtype, sigma.dtype, kwargs))
                return x.tanh()
            net.forward = noted
            out = step(net, gaussian(*shape).to(dtype), labels="some")
            assert asked == 2 * [(shape, shape[:1], dtype, dtype, {"labels": "some"})]
            assert out.predicted.dtype == out.target.dtype == dtype and out.predicted.shape == shape
            assert out.sigmas.dtype == torch.promote_types(dtype, torch.float32)
            assert ConsistencyTraining().loss(out).shape == shape[:1]


def test_bundled_networks_train_in_every_type_and_under_autocast():
    for dtype in DTYPES:
        for net, x in ((MLP(3, 16, 1), gaussian(8, 3)),
                (UNet(3, (8, 16), dropout=0.1), gaussian(2, 3, 8, 8))):
            out = step(shake(net).to(dtype), x.to(dtype))
            squared_error(out.predicted, out.target).sum().backward()
            assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in net.parameters())
    net = shake(AnyRank())
    with torch.autocast("cpu", dtype=torch.bfloat16): out = step(net, gaussian(32, 3))
    squared_error(out.predicted, out.target).sum().backward()
    assert out.predicted.dtype == out.target.dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_levels_are_neighbors_on_the_schedule_of_this_step():
    """The grid is kept; also where other numbers of levels, settings or types came first."""
    for settings in ({}, {"sigma_min": 0.01, "sigma_max": 10.}, {"rho": 3.}):
        for k in (0, 9, 4, 10):
            for dtype in (torch.float32, torch.float64):
                x = gaussian(64, 3, dtype=dtype)
                out = step(plain, x, k,
                    settings={"initial_timesteps": 3, "final_timesteps": 24, **settings})
                N = timesteps_schedule(k, 10, 3, 24)
                assert torch.equal(out.sigmas, karras_schedule(N, **settings, dtype=dtype))
                assert out.num_timesteps == N and out.loss_weights is None
                assert out.levels.weight is None
                n = torch.searchsorted(out.sigmas, out.levels.lower)
                assert torch.equal(out.sigmas[n], out.levels.lower)
                assert torch.equal(out.sigmas[n + 1], out.upper)
                assert out.upper.shape == (64,) and out.levels.grid is out.sigmas


def test_a_grid_that_was_made_in_inference_mode_trains():
    settings = {"final_timesteps": 33, "rho": 6.5}
    with torch.inference_mode(): step(plain, gaussian(4, 3), settings=settings)
    net, scale = shake(AnyRank()), torch.ones((), requires_grad=True)
    out = step(net, gaussian(4, 3), settings=settings)
    (out.predicted.sum() + (scale * out.sigmas).sum()).backward()   # as a learned weight would
    assert net.out.weight.grad.isfinite().all() and scale.grad == out.sigmas.sum()


def test_settings_reach_the_parameterization():
    """With a network that answers zero, the answers are c_skip x, worked out by hand."""
    seen = []
    def zero(x, sigma):
        seen.append((x, sigma))
        return 0 * x
    out = step(zero, gaussian(8, 3, dtype=torch.float64),
        settings={"sigma_min": 0.01, "sigma_data": 2.})
    for (x, sigma), answer in zip(seen, (out.predicted, out.target), strict=True):
        assert torch.allclose(answer, x * align(4 / ((sigma - 0.01) ** 2 + 4), x))


def test_the_teacher_is_kept_averaged_saved_and_loaded():
    net, x = shake(AnyRank()), gaussian(8, 3)
    training, other = ConsistencyTraining(initial_ema_decay_rate=0.5), ConsistencyTraining()
    for method in (training, other): method.attach(net)
    before = copy.deepcopy(net)
    out = training.step(net, x, 0, 10, seeded())
    published = ConsistencyTraining()(net, before, x, 0, 10, seeded())
    assert torch.equal(out.predicted, published.predicted)
    assert torch.equal(out.target, published.target)
    shake(net.double()).float()
    nn.init.ones_(net.out.bias)
    training.follow(net, out)   # N(0) = 2 = s0: the decay is mu0
    teacher = training.kept["teacher"]
    for p, old, new in zip(*(m.parameters() for m in (teacher, before, net)), strict=True):
        assert torch.equal(p, old.lerp(new, 0.5)) and not p.requires_grad
    assert training.parameters() == []
    other.load_state_dict(copy.deepcopy(training.state_dict()))
    targets = [method.step(net, x, 0, 10, seeded()).target for method in (training, other)]
    assert torch.equal(*targets)
    assert torch.equal(targets[0], step(net, x, 0, teacher=teacher, generator=seeded()).target)


def test_the_teacher_of_a_network_in_half_precision_is_averaged_in_float32():
    net, training = shake(AnyRank()).bfloat16(), ConsistencyTraining()
    training.attach(net)
    out = training.step(net, gaussian(8, 3).bfloat16(), 0, 10)
    training.follow(net, out)
    assert {p.dtype for p in training.kept["teacher"].parameters()} == {torch.float32}
    assert out.target.dtype == torch.bfloat16


def test_a_method_needs_only_levels():
    """Its target is the model, and it keeps nothing; what it adds is trained and saved."""
    class Weighing(Nearer):
        def attach(self, net):
            super().attach(net)
            self.kept["weight"] = nn.Linear(1, 1)
            self.kept["frozen"] = nn.Linear(1, 1).requires_grad_(False)
    net, x = shake(AnyRank(dropout=0.5)), gaussian(8, 3)
    bare, more, loaded = Nearer(), Weighing(), Weighing()
    for method in (bare, more, loaded): method.attach(net)
    assert bare.parameters() == [] and bare.state_dict() == {} and bare.target(net) is net
    out = bare.step(net, x, 0, 10, seeded())
    assert bare.follow(net, out) is None and out.upper is out.levels.upper
    assert torch.equal(out.loss_weights, 1 / (out.upper - out.levels.lower)[:, None])
    assert more.parameters() == list(more.kept["weight"].parameters())
    loaded.load_state_dict(more.state_dict())
    assert len(more.state_dict()) == 4
    assert torch.equal(loaded.kept["weight"].weight, more.kept["weight"].weight)


def test_a_method_may_go_down_its_own_way():
    class Still(Nearer):
        def to_lower(self, x, noise, noisy, levels): return 2 * noisy
    asked = []
    def net(x, sigma):
        asked.append(x.clone())
        return x
    Still().step(net, gaussian(8, 3), 0, 10)
    assert torch.equal(asked[1], 2 * asked[0])


def test_the_loss_is_the_distance_of_each_sample_by_its_weight():
    """Whatever shape the distance has; in at least float32: a half type ends at 65,504."""
    net, x = shake(AnyRank()), gaussian(6, 3, 2)
    distances = {
        "sample": squared_error, "(batch, 1, 1)": lambda a, b: squared_error(a, b)[:, None, None],
        "value": lambda a, b: (a - b).square()}
    for distance in distances.values():
        method = Nearer()
        method.distance = distance
        out = method.step(net, x, 0, 10, seeded())
        weights = 1 / (out.upper - out.levels.lower)
        assert torch.allclose(method.loss(out), weights * squared_error(out.predicted, out.target))
    out.predicted, out.target = torch.full((6, 1), 300.).half(), torch.zeros(6, 1).half()
    out.levels.weight = None
    assert method.loss(out).tolist() == [90000.] * 6
    plain_loss = ConsistencyTraining(distance=lambda a, b: (a - b).abs())
    assert torch.equal(plain_loss.loss(out), torch.full((6,), 300.))


def test_a_contradicting_sigma_data_is_told_once_a_call_or_where_the_method_is_attached():
    net, x = MLP(2, 16, 1, sigma_data=0.752), gaussian(4, 2)
    for sigma_data, times in ((0.752, 0), (0.5, 1)):
        training = ConsistencyTraining(sigma_data=sigma_data)
        for call in (lambda: training(net, net, x, 0, 1), lambda: training.attach(net)):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                call()
            assert ["built for 0.752" in str(w.message) for w in said] == [True] * times
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            training.step(net, x, 0, 1)


def test_a_fault_in_the_data_shows_in_the_loss_of_its_sample_alone():
    x = gaussian(4, 3)
    x[1, 0] = torch.nan
    training = ConsistencyTraining()
    loss = training.loss(training(plain, plain, x, 5, 10))
    assert loss.isnan().tolist() == [False, True, False, False]


def test_finite_data_gives_finite_answers_at_the_edges_of_the_settings():
    for x in (torch.zeros(4, 3), 1000 * gaussian(4, 3), 1e-6 * gaussian(4, 3, 2, 2).double()):
        for settings in (
                {}, {"sigma_min": 1e-4, "sigma_max": 1e4, "rho": 20.}, {"sigma_data": 1e-3},
                {"sigma_data": 100.},
                {"initial_timesteps": 2, "final_timesteps": 2},
                {"sigma_min": 0.1, "sigma_max": 1., "rho": 0.5}):
            for k in (0, 10):
                out = step(plain, x, k, settings=settings)
                assert out.predicted.isfinite().all() and out.target.isfinite().all()
                assert (out.levels.lower < out.upper).all()


# Refuses

def test_what_is_no_batch_of_samples_is_refused():
    for bad, error in (
            ([[1., 2.]], TypeError), (None, TypeError), (torch.ones(4, 3).long(), TypeError),
            (torch.ones(4, 3, dtype=torch.complex64), TypeError),
            (torch.zeros(0, 3), ValueError), (torch.tensor(1.), ValueError)):
        with pytest.raises(error, match="^x must"): step(plain, bad)


def test_a_step_outside_the_run_is_refused():
    for k, K in ((11, 10), (-1, 10), (1, 0)):
        with pytest.raises(ValueError, match=f"between 0 and the total, got {k} of {K}"):
            step(plain, gaussian(4, 3), k, K)
    with pytest.raises(ValueError, match="total_training_steps must be at least 1"):
        step(plain, gaussian(4, 3), 0, 0)


@pytest.mark.parametrize("method", [ConsistencyTraining, ImprovedConsistencyTraining])
def test_settings_that_no_step_can_use_are_refused_when_they_are_given(method):
    """Both methods have them."""
    for settings, name in (
            ({"initial_timesteps": 20, "final_timesteps": 10}, "final_timesteps"),
            ({"initial_timesteps": 0}, "initial_timesteps"), ({"sigma_max": 0.002}, "sigma_max"),
            ({"sigma_max": float("inf")}, "sigma_max"), ({"sigma_min": 0.}, "sigma_min"),
            ({"rho": 0.}, "rho"),
            ({"sigma_data": 0.}, "sigma_data"), ({"sigma_data": float("nan")}, "sigma_data"),
            # levels that coincide
            ({"sigma_min": 1., "sigma_max": 1.0001, "final_timesteps": 1280}, "sigmas")):
        with pytest.raises(ValueError, match=f"^{name} must be"): method(**settings)
    with pytest.raises(TypeError, match="^sigma_data must be"): method(sigma_data="0.5")


def test_a_decay_that_makes_no_average_is_refused_when_it_is_given():
    for bad in (0., 1.1, float("nan")):
        with pytest.raises(ValueError, match="^initial_ema_decay_rate"):
            ConsistencyTraining(initial_ema_decay_rate=bad)


def test_networks_that_do_not_fit_are_refused():
    x = gaussian(4, 3)
    for bad in (None, 3, "net"):
        with pytest.raises(TypeError, match="callable"): step(bad, x, teacher=plain)
        with pytest.raises(TypeError, match="callable"): step(plain, x, teacher=bad or "net")
    for bad in (lambda x, sigma: x[:1], lambda x, sigma: None):
        with pytest.raises(ValueError, match=r"shape of x, \(4, 3\)"): step(bad, x)
        with pytest.raises(ValueError, match=r"shape of x, \(4, 3\)"): step(plain, x, teacher=bad)


def test_noise_must_have_the_shape_of_the_samples():
    for shape in ((1, 3), (4, 1), (2, 4, 3)):
        with pytest.raises(ValueError, match=r"noise must have the shape of x, \(4, 3\)"):
            add_noise(torch.zeros(4, 3), torch.ones(shape), torch.ones(4))


def test_what_is_no_generator_is_refused():
    with pytest.raises(TypeError, match="^generator must be"):
        step(plain, gaussian(4, 3), generator=3)


def test_a_method_that_is_not_whole_says_what_is_missing():
    with pytest.raises(NotImplementedError, match=r"Objective must define levels\(k, K, x"):
        Objective().levels(0, 1, gaussian(4, 3))
    with pytest.raises(AttributeError, match=r"no kept; call attach\(net\) first"):
        ConsistencyTraining().step(AnyRank(), gaussian(4, 3), 0, 1)
    summed, x = ConsistencyTraining(distance=lambda a, b: (a - b).square().mean()), gaussian(4, 3)
    with pytest.raises(ValueError, match=r"one value for each sample, got shape \(\)"):
        summed.loss(step(plain, x))
    assert isinstance(consistency_function(plain), ConsistencyFunction)
