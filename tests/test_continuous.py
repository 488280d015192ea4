"""Continuous-time training: the tangent against Algorithm 1, exact paths, and what keeps it stable."""

import math
from functools import partial

import pytest
import torch
from conftest import (
    AnyRank,
    Exact,
    gaussian,
    gradient_at_gaussian_data,
    on_two_processes,
    relative_error,
    seeded,
    shake,
)
from torch import nn

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
    UNet,
    consistency_function,
    exact_consistency_function,
    gaussian_consistency_function,
    ideal_denoiser,
    path_derivative,
    path_difference,
    two_moons,
    update_ema_model_,
)
from consistency_models.consistency_training import Levels, consistency_pair
from consistency_models.continuous import LearnedWeight, tangent
from consistency_models.utils import average_of, pad_dims_like, random_state, replay

slow = pytest.mark.slow
MEAN, STD = 0.3, 0.5
LEVELS = (0.05, 0.2, 0.5, 1., 3., 10., 80.)


def gaussian_denoiser(x, sigma):
    """The exact denoiser of N(0.3, 0.5^2)"""
    share = pad_dims_like(STD**2 / (STD**2 + sigma**2), x)
    return MEAN + share * (x - MEAN)


class ExactInFloat32(nn.Module):
    """
    The network whose consistency function is the exact one of N(0.3, 0.5^2), for sigma_data = 0.5 and
    sigma_min = 0, in a form in which no two large numbers cancel.
    """
    def forward(self, x, sigma):
        s = sigma[:, None]
        total = (s**2 + STD**2).sqrt()
        return s / (total + STD) * (MEAN + STD * x / total) / STD


def small_unet(**settings):
    return shake(UNet(1, (8, 16), **{"num_classes": 3} | settings))


# Equals the paper

def algorithm_1(net, x, z, t, slope, r, sigma_data):
    """
    The tangent g of Lu & Song (2024), Algorithm 1, in TrigFlow: `slope` is dx_t/dt, the network is
    -F(x_t / cos t, sigma_data tan t).
    """
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    x_t = cos * x + sin * z
    F = lambda u, t: -net(u * sigma_data / t.cos()[:, None], sigma_data * t.tan())
    answer, J = torch.func.jvp(
        F, (x_t / sigma_data, t), (cos * sin * slope / sigma_data, t.cos() * t.sin()))
    g = -cos**2 * (sigma_data * answer - slope) - r * (cos * sin * x_t + sigma_data * J)
    return answer, g


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("teacher", [None, partial(ideal_denoiser, data=gaussian(5, 3, seed=3).double())])
def test_a_step_is_algorithm_1_in_trigflow(teacher, sigma_data):
    """Target and loss at three stages of the warm-up, with noise of standard deviation sigma_data."""
    net, x = shake(MLP(3, 16, 1, sigma_data=sigma_data)).double(), gaussian(32, 3, dtype=torch.float64)
    settings = {"sigma_data": sigma_data, "warmup": 0.1, "learn_weight": True}
    training = (ContinuousConsistencyDistillation(teacher, **settings) if teacher
                else ContinuousConsistencyTraining(**settings))
    training.attach(net)
    nn.init.constant_(training.kept["weight"].out.bias, 0.7)
    for k in (0, 3, 20):
        out = training.step(net, x, k, 100, seeded(k))
        g = seeded(k)
        sigma = (training.lognormal_mean + training.lognormal_std
                 * torch.randn(32, generator=g, dtype=torch.float64)).exp()
        z = sigma_data * torch.randn(x.shape, generator=g, dtype=torch.float64)
        t = torch.atan(sigma / sigma_data)
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        slope = cos * z - sin * x
        if teacher:     # sigma_data F of the teacher: D = cos t x_t - sin t sigma_data F
            x_t = cos * x + sin * z
            slope = (cos * x_t - teacher(x_t / cos, sigma)) / sin
        F, direction = algorithm_1(net, x, z, t, slope, min(1, k / 10), sigma_data)
        direction = direction / (direction.norm(dim=1, keepdim=True) / math.sqrt(3) + 0.1)
        assert torch.allclose(out.predicted, -F)
        assert torch.allclose(out.target, -(F + direction))
        loss = math.exp(-0.7) * (F - (F + direction)).square().sum(1) / 3 + 0.7
        assert torch.allclose(training.loss(out), loss)


def exact_tangent(net, denoiser, x, sigma, r=1.):
    """The tangent at `x` with the slope of a denoiser"""
    slope = (x - denoiser(x, sigma)) / pad_dims_like(sigma, x)
    return tangent(*path_derivative(net, x, sigma, slope), x, sigma, slope, STD, r)


def test_at_the_exact_function_the_tangent_of_every_sample_is_zero():
    """With the exact denoiser's slope: to 1e-12 in float64, to 1e-5 in float32; not for other data."""
    sigma = torch.tensor(LEVELS).repeat_interleave(100)
    x = MEAN + STD * gaussian(700, 2) + sigma[:, None] * gaussian(700, 2, seed=1)
    assert exact_tangent(ExactInFloat32(), gaussian_denoiser, x, sigma).abs().max() < 1e-5
    x, sigma = x.double(), sigma.double()
    assert exact_tangent(ExactInFloat32(), gaussian_denoiser, x, sigma).abs().max() < 1e-12
    exact = lambda std: Exact(700, MEAN, std, sigma_min=0.).double()
    assert exact_tangent(exact(STD), gaussian_denoiser, x, sigma).abs().max() < 1e-10
    assert exact_tangent(exact(0.55), gaussian_denoiser, x, sigma).square().mean().sqrt() > 0.01


@pytest.mark.parametrize("settings", [{"learn_weight": True}, {"normalize": False}], ids=str)
def test_the_gradient_vanishes_at_the_exact_consistency_function(settings):
    """sCT's on average, to three standard errors of 100,000 samples; sCD's for every sample."""
    training = ContinuousConsistencyTraining(warmup=0, **settings)
    assert gradient_at_gaussian_data(training, std=STD) < 0.01
    assert gradient_at_gaussian_data(training, std=0.55) > 0.03
    distillation = ContinuousConsistencyDistillation(gaussian_denoiser, warmup=0, **settings)
    distillation.attach(net := Exact(1000, MEAN, STD, sigma_min=0.))
    out = distillation.step(net, MEAN + STD * gaussian(1000, 3, dtype=torch.float64), 0, 10, seeded())
    assert (out.target - out.predicted).abs().max() < 1e-8


MOONS = two_moons(50, generator=seeded()).double()
IDEAL = partial(ideal_denoiser, data=MOONS)


def noisy_moons(sigma):
    return MOONS + sigma[:, None] * gaussian(50, 2, seed=1, dtype=torch.float64)


def test_the_tangent_is_the_change_of_the_answer_along_the_exact_path():
    """A central difference over two short steps of the path of 50 points, times sqrt(sigma^2 + sd^2)."""
    net = shake(MLP(width=16, depth=1)).double()
    f = consistency_function(net, sigma_min=0.)
    for sigma in (0.05, 0.4, 2., 20.):
        upper, lower = sigma * 1.001, sigma * 0.999
        path = exact_consistency_function(
            noisy_moons(torch.full((50,), upper)), upper, MOONS, steps=2, sigma_min=lower, path=True)
        middle = ((upper ** (1 / 7) + lower ** (1 / 7)) / 2) ** 7
        change = (f(path[0], upper) - f(path[2], lower)) / (upper - lower)
        g = exact_tangent(net, IDEAL, path[1], torch.full((50,), middle, dtype=torch.float64))
        assert relative_error(g, -math.sqrt(middle**2 + STD**2) * change) < 1e-4


def test_the_tangent_is_the_limit_of_the_pairs_of_distillation():
    """The difference of a pair over its gap comes nearer as the gap shrinks, a hundredfold for 1/100."""
    net, sigma = shake(MLP(width=16, depth=1)).double(), torch.logspace(-1.5, 1.5, 50).double()
    f, cd = consistency_function(net, sigma_min=0.), ConsistencyDistillation(IDEAL)
    cd.attach(net)
    noise = gaussian(50, 2, seed=1, dtype=torch.float64)
    wanted = exact_tangent(net, IDEAL, noisy_moons(sigma), sigma)
    errors = []
    for gap in (1e-2, 1e-4):
        levels = Levels(upper=sigma, lower=sigma * (1 - gap))
        predicted, target = consistency_pair(f, f, MOONS, noise, levels, cd.to_lower)
        quotient = (predicted - target) / (sigma * gap)[:, None]
        errors.append(relative_error(-(sigma**2 + STD**2).sqrt()[:, None] * quotient, wanted))
    assert errors[0] < 0.05 and errors[1] < 0.03 * errors[0]


def test_without_warm_up_the_answer_aims_at_the_clean_sample():
    """
    At r = 0 what remains is denoising: the network is moved a part of the way, cos^2 t sigma_data, to
    where its answer is x - sigma slope.
    """
    net, x, sigma = shake(MLP(width=16, depth=1)).double(), MOONS, torch.logspace(-2, 2, 50).double()
    noise = gaussian(50, 2, seed=1, dtype=torch.float64)
    noisy, s = noisy_moons(sigma), sigma[:, None]
    F, dF = path_derivative(net, noisy, sigma, noise)
    g = tangent(F, dF, noisy, sigma, noise, STD, 0.)
    c_skip, c_out = STD**2 / (s**2 + STD**2), STD * s / (s**2 + STD**2).sqrt()
    assert torch.allclose(g, c_skip * STD * ((x - c_skip * noisy) / c_out - F))
    half, whole = (tangent(F, dF, noisy, sigma, noise, STD, r) for r in (0.5, 1.))
    assert torch.allclose(half, (g + whole) / 2) and not torch.allclose(g, whole, atol=0.1)


def test_the_learned_weight_is_best_at_the_logarithm_of_the_loss():
    net, losses = shake(MLP(width=16, depth=1)), torch.tensor([0.02, 0.5, 3.])
    training = ContinuousConsistencyTraining(learn_weight=True, distance=lambda a, b: losses)
    training.attach(net)
    out = training.step(net, gaussian(3, 2), 0, 10)
    assert torch.equal(training.loss(out), losses)              # it begins with equal weights
    w = losses.log().requires_grad_()
    training.kept["weight"].forward = lambda sigma: w
    loss = training.loss(out)
    loss.sum().backward()
    assert torch.allclose(loss, 1 + losses.log()) and w.grad.abs().max() < 1e-6


@slow
@pytest.mark.parametrize("name", ["sCT", "sCD"])
def test_a_trained_network_is_within_five_per_cent_of_the_exact_answers(name):
    """
    An MLP that learns the consistency function of N(0.3, 0.5^2) in two dimensions. With the noise of
    the samples two values are too few to be normalized: the network would be off by a tenth.
    """
    net, steps = MLP(2, width=32, depth=1), 3000
    settings = {"lognormal_mean": -0.5, "derivative": path_difference}
    training = (ContinuousConsistencyTraining(normalize=False, **settings) if name == "sCT"
                else ContinuousConsistencyDistillation(gaussian_denoiser, **settings))
    training.attach(net)
    average = average_of(net)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, (0.9, 0.99), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        output = training.step(net, MEAN + STD * torch.randn(512, 2), k, steps)
        optimizer.zero_grad()
        training.loss(output).mean().backward()
        optimizer.step()
        decay.step()
        update_ema_model_(average, net, min(0.99, (k + 1) / (k + 10)))
    for sigma in LEVELS:
        noisy = MEAN + STD * gaussian(4000, 2, seed=1) + sigma * gaussian(4000, 2, seed=2)
        exact = gaussian_consistency_function(noisy, sigma, MEAN, STD)
        assert relative_error(consistency_function(average)(noisy, sigma), exact) < 0.05


# Keeps its promises

IMAGES, SIGMA = gaussian(4, 1, 8, 8), torch.tensor([0.05, 0.3, 1., 20.])


def central_difference(net, x, sigma, slope, h=2e-3, **kwargs):
    """
    The change of a network's output with ln sigma along the path, from two calls with one dropout mask;
    no closer, since the networks embed the noise level in float32.
    """
    state, answers = random_state(x.device), []
    for gap in (h, -h):
        moved = x + gap * pad_dims_like(sigma, x) * slope
        with torch.no_grad(), replay(state, x.device): answers.append(net(moved, sigma * (1 + gap), **kwargs))
    return (answers[0] - answers[1]) / (2 * h)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_derivative_of_a_unet_is_a_central_difference(layout):
    """With attention, labels that are left out, and dropout under the replayed mask."""
    net = small_unet(dropout=0.3, label_dropout=0.5).double().to(memory_format=layout)
    x, sigma = IMAGES.double().contiguous(memory_format=layout), SIGMA.double()
    slope, labels = gaussian(4, 1, 8, 8, seed=1).double(), torch.tensor([0, 1, 2, 1])
    state = random_state(x.device)
    def masked(function, *args):
        with replay(state, x.device): return function(*args, class_labels=labels)
    wanted = masked(central_difference, net, x, sigma, slope)
    F, dF = masked(path_derivative, net, x, sigma, slope)
    assert torch.allclose(F, masked(net, x, sigma))
    assert relative_error(dF, wanted) < 1e-3 and dF.dtype == torch.float64
    for other in (torch.zeros_like(slope), 2 * slope):          # both parts of the derivative count
        assert relative_error(masked(path_derivative, net, x, sigma, other)[1], wanted) > 0.05


def test_the_derivative_of_an_mlp_is_a_central_difference():
    net, sigma = shake(MLP(num_classes=3, label_dropout=0.5)).double(), torch.logspace(-2, 1.9, 64).double()
    x, slope, labels = (gaussian(64, 2, dtype=torch.float64), gaussian(64, 2, seed=1, dtype=torch.float64),
                        torch.arange(64) % 3)
    with replay(random_state(x.device), x.device):
        wanted = central_difference(net, x, sigma, slope, class_labels=labels)
    dF = path_derivative(net, x, sigma, slope, class_labels=labels)[1]
    assert relative_error(dF, wanted) < 1e-3


def test_the_difference_is_near_the_derivative_and_has_one_dropout_mask():
    """In float32 to a hundredth for a step of the U-Net; in float64 to the square of the gap."""
    net, both = small_unet(dropout=0.5, num_classes=None), []
    for derivative in (path_derivative, path_difference):
        torch.manual_seed(0)
        both.append(step(net, IMAGES, derivative=derivative))
    exact, near = both
    assert torch.equal(exact.predicted, near.predicted)
    g, wanted = (out.target - out.predicted.detach() for out in (near, exact))
    assert 0 < relative_error(g, wanted) < 1e-2
    net, sigma, state = shake(AnyRank(dropout=0.5)).double(), torch.logspace(-2, 2, 64).double(), random_state(IMAGES.device)
    x, slope = gaussian(64, 3, dtype=torch.float64), gaussian(64, 3, seed=1, dtype=torch.float64)
    def found(function, **kwargs):
        with replay(state, IMAGES.device): return function(net, x, sigma, slope, **kwargs)
    large, small = (found(path_difference, gap=gap) for gap in (1e-2, 1e-3))
    for a, b, wanted in zip(large, small, found(path_derivative)):
        assert relative_error(a, wanted) < 0.1
        assert relative_error(b, wanted) < 0.02 * relative_error(a, wanted)


def test_half_precision_is_for_the_answer_and_not_for_the_derivative():
    net = small_unet(dropout=0.3)
    training = ContinuousConsistencyTraining()
    training.attach(net)
    labels, found = torch.tensor([0, 1, 2, 1]), []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = training.step(net, IMAGES, 10, 10, seeded(), class_labels=labels)
            loss = training.loss(out)
        found.append(out.target - out.predicted.detach())
        assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert out.predicted.dtype == torch.bfloat16
    assert torch.allclose(*found, atol=1e-5)


def step(net, x, k=10, K=10, **settings):
    training = ContinuousConsistencyTraining(**settings)
    training.attach(net)
    return training.step(net, x, k, K, seeded())


def test_the_answer_has_a_gradient_and_its_target_has_none():
    net = shake(AnyRank(dropout=0.5))
    for shape in ((8, 3), (8, 3, 2, 2)):
        out = step(net, gaussian(*shape))
        assert out.predicted.requires_grad and not out.target.requires_grad
        assert out.predicted.shape == out.target.shape == shape and out.levels.weight is None
        assert out.num_timesteps is None and torch.equal(out.upper, out.levels.lower)


def test_the_answer_and_the_derivative_share_a_dropout_mask():
    """With g taken off the target, what is left is the answer with the same mask."""
    net, seen = shake(AnyRank(dropout=0.5)), []
    net.dropout.register_forward_hook(lambda _, x, y: seen.append((y == 0).clone()))
    training = ContinuousConsistencyTraining()
    training.attach(net)
    torch.manual_seed(3)
    training.step(net, gaussian(64, 3), 10, 10, seeded())
    assert len(seen) == 2 and torch.equal(*seen) and 0.3 < seen[0].float().mean() < 0.7
    after = torch.rand(3)
    torch.manual_seed(3)
    net(gaussian(64, 3), torch.ones(64))
    assert torch.equal(after, torch.rand(3))                    # one mask was drawn, not two


def test_the_tangent_counts_in_full_after_the_warm_up():
    """Half of it at half the way, the same for 100 steps and for 1,000; at once where there is no warm-up."""
    net = shake(MLP(3, width=16, depth=1))
    def target(k, K, warmup=0.4): return step(net, gaussian(8, 3), k, K, warmup=warmup, normalize=False).target
    start, half, whole = (target(k, 100) for k in (0, 20, 40))
    assert torch.allclose(half, (start + whole) / 2, atol=1e-4) and not torch.allclose(start, whole, atol=0.1)
    for other in (target(400, 1000), target(100, 100), target(0, 100, 0)): assert torch.equal(other, whole)


def test_normalization_bounds_the_length_and_keeps_the_direction():
    net = shake(MLP(3, width=16, depth=1))
    for p in net.parameters(): p.data *= 3
    short, long = (step(net, gaussian(64, 3), normalize=on) for on in (True, False))
    g, free = (out.target - out.predicted.detach() for out in (short, long))
    size = lambda v: v.square().mean(1).sqrt()
    assert size(free).max() > 20 and 0.5 < size(g).max() < 1
    assert torch.allclose(g, free / (size(free) + 0.1)[:, None], atol=1e-4)


def test_a_teacher_and_its_labels_give_the_slope():
    """The same labels reach network and teacher; a teacher that is a network is kept as a frozen copy."""
    teacher, net = small_unet(), small_unet(dropout=0.5)
    training = ContinuousConsistencyDistillation(teacher)
    training.attach(net)
    copy, labels = training.kept["denoiser"], torch.tensor([0, 1, 2, 1])
    assert copy is not teacher and not any(p.requires_grad for p in copy.parameters())
    levels = Levels(SIGMA, SIGMA)
    slope = training.slope(IMAGES, IMAGES, IMAGES, levels, class_labels=labels)
    denoised = consistency_function(teacher, sigma_min=0., class_labels=labels)(IMAGES, SIGMA)
    assert torch.allclose(slope, (IMAGES - denoised) / SIGMA[:, None, None, None], atol=1e-5)
    for p in teacher.parameters(): p.data.zero_()               # the copy does not follow
    again = training.slope(IMAGES, IMAGES, IMAGES, levels, class_labels=labels)
    assert torch.equal(slope, again)
    out = training.step(net, IMAGES, 10, 10, seeded(), class_labels=labels)
    training.loss(out).mean().backward()
    assert all(p.grad is None for p in copy.parameters()) and net.out.weight.grad.abs().sum() > 0


def test_what_is_learned_with_the_network_is_named_saved_and_given_back():
    net = shake(MLP(width=16, depth=1))
    first, second, plain = (ContinuousConsistencyTraining(learn_weight=on) for on in (True, True, False))
    for training in (first, second, plain): training.attach(net)
    shake(first.kept["weight"])
    second.load_state_dict(first.state_dict())
    out = first.step(net, gaussian(8, 2), 0, 10)
    assert torch.equal(first.loss(out), second.loss(out))
    assert len(first.parameters()) == len(list(LearnedWeight().parameters()))
    assert plain.parameters() == [] and plain.state_dict() == {}
    assert torch.equal(plain.loss(out), (out.predicted - out.target).square().mean(1))


@pytest.mark.parametrize("wrap", [
    nn.DataParallel, partial(torch.compile, backend="eager"),
    lambda net: torch.compile(nn.DataParallel(net), backend="eager")], ids=["parallel", "compiled", "both"])
def test_a_wrapped_network_has_the_derivative_of_the_bare_one(wrap):
    torch.compiler.reset()
    net = shake(MLP(width=16, depth=1))
    for derivative in (path_derivative, path_difference):
        bare, wrapped = (step(n, gaussian(8, 2), derivative=derivative) for n in (net, wrap(net)))
        assert torch.allclose(bare.target, wrapped.target, atol=1e-4) and wrapped.predicted.requires_grad


PARALLEL = """
import sys
import torch
torch.set_num_threads(1)
from conftest import gaussian, seeded, shake
from consistency_models import (
    ContinuousConsistencyTraining, UNet, path_derivative, path_difference)
from torch import distributed, nn

net = shake(UNet(1, (8, 16), dropout=0.3))
training = ContinuousConsistencyTraining(warmup=0, learn_weight=True)
def gradients(model, half):
    training.attach(net)
    torch.manual_seed(half)
    net.zero_grad()
    output = training.step(model, gaussian(4, 1, 8, 8, seed=half), 0, 10, seeded(half))
    training.loss(output).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])

distributed.init_process_group("gloo")
rank = distributed.get_rank()
for training.derivative in (path_derivative, path_difference):
    whole = (gradients(net, 0) + gradients(net, 1)) / 2
    own, shared = gradients(net, rank), gradients(nn.parallel.DistributedDataParallel(net), rank)
    assert torch.allclose(shared, whole, atol=1e-6) and not torch.allclose(own, whole, atol=1e-3)
print("equal", flush=True)
distributed.barrier()
distributed.destroy_process_group()
"""


@slow
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    (tmp_path / "parallel.py").write_text(PARALLEL)
    assert on_two_processes(tmp_path / "parallel.py").count("equal") == 2


# Refuses

def test_settings_that_no_step_can_use_are_refused_when_they_are_given():
    for name, bad, error in (
            ("lognormal_std", 0., ValueError), ("lognormal_mean", math.nan, ValueError),
            ("sigma_data", 0., ValueError), ("warmup", -0.1, ValueError), ("warmup", 1000, ValueError),
            ("warmup", None, TypeError)):
        with pytest.raises(error, match=f"^{name} must be"):
            ContinuousConsistencyTraining(**{name: bad})
        with pytest.raises(error, match=f"^{name} must be"):
            ContinuousConsistencyDistillation(IDEAL, **{name: bad})
    with pytest.raises(TypeError, match="denoiser"): ContinuousConsistencyDistillation()


def test_what_is_no_batch_and_what_was_not_attached_are_refused():
    with pytest.raises(TypeError, match="^x must"): step(shake(AnyRank()), torch.ones(4, 3).long())
    with pytest.raises(ValueError, match="^x must"): step(shake(AnyRank()), torch.zeros(0, 3))
    training, net = ContinuousConsistencyTraining(learn_weight=True), shake(AnyRank())
    out = training.step(net, gaussian(4, 3), 0, 10)
    with pytest.raises(AttributeError, match="attach"): training.loss(out)
