"""One training step of both methods, the pair they share, and the moving average of weights."""

import copy

import pytest
import torch
from conftest import AnyRank, ConvNet, calls_of, devices, gaussian, seeded, shake
from torch import nn

from consistency_models import (
    MLP,
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    UNet,
    consistency_pair,
    improved_timesteps_schedule,
    karras_schedule,
    pseudo_huber_loss,
    timesteps_schedule,
    update_ema_model,
    update_ema_model_,
)

METHODS = (ConsistencyTraining, ImprovedConsistencyTraining)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
each_method = pytest.mark.parametrize("method", METHODS, ids=["CT", "iCT"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def step(method, model, x, k=5, K=10, teacher=None, settings=None, **kwargs):
    """One step of either method; for CT the teacher is the model itself unless one is given."""
    networks = (model, teacher or model) if method is ConsistencyTraining else (model,)
    return method(**settings or {})(*networks, x, k, K, **kwargs)


def align(levels, x):
    """One level for each sample, ready to multiply `x`."""
    return levels.reshape(-1, *(1,) * (x.ndim - 1))


def snapshot(device):
    return torch.cuda.get_rng_state(device) if device == "cuda" else torch.get_rng_state()


class RandomDepth(nn.Module):
    """A network that leaves out each sample's update at random."""

    def __init__(self):
        super().__init__()
        self.inner = AnyRank()

    def forward(self, x, sigma):
        return align(torch.bernoulli(torch.full_like(sigma, 0.5)), x) * self.inner(x, sigma)


class NoisyInside(AnyRank):
    """A network that draws fresh noise in every call."""

    def forward(self, x, sigma): return super().forward(x, sigma) + torch.randn_like(x)


class Normalised(AnyRank):
    """A network with batch statistics and dropout."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, sigma): return super().forward(self.norm(x), sigma)


RANDOM_NETWORKS = {
    "dropout, rank 2": (AnyRank(dropout=0.5), (8, 3)),
    "dropout, rank 4": (AnyRank(dropout=0.5), (4, 3, 5, 5)),
    "dropout, rank 5": (AnyRank(dropout=0.5), (4, 3, 2, 4, 4)),
    "random depth": (RandomDepth(), (16, 3)),
    "noise inside": (NoisyInside(), (8, 3)),
    "UNet with dropout": (UNet(3, (8, 16), dropout=0.5), (4, 3, 8, 8)),
    "BatchNorm and dropout": (Normalised(), (16, 3))}
each_random_network = pytest.mark.parametrize("network, shape", RANDOM_NETWORKS.values(), ids=RANDOM_NETWORKS)


# Shared noise and shared dropout

@devices
@each_method
def test_student_and_teacher_see_the_same_noise(method, device):
    net = AnyRank().to(device, torch.float64)
    calls, x = calls_of(net), gaussian(64, 3, dtype=torch.float64).to(device)
    out = step(method, net, x)
    (x_student, s_student, _), (x_teacher, s_teacher, _) = calls
    assert torch.equal(s_student, out.next_sigmas) and torch.equal(s_teacher, out.current_sigmas)
    z_student, z_teacher = (x_student - x) / align(s_student, x), (x_teacher - x) / align(s_teacher, x)
    assert torch.allclose(z_student, z_teacher, atol=1e-9, rtol=0)
    assert 0.8 < z_student.std() < 1.2 and z_student.flatten().unique().numel() == x.numel()


@devices
@each_random_network
def test_loss_is_zero_at_equal_levels(network, shape, device):
    """The same noise and the same masks leave nothing to differ."""
    net, x = shake(copy.deepcopy(network)).to(device), gaussian(*shape).to(device)
    levels = torch.logspace(-2, 1.9, len(x), device=device)
    predicted, target = consistency_pair(net, net, x, gaussian(*shape, seed=1).to(device), levels, levels)
    assert torch.equal(predicted, target)
    assert pseudo_huber_loss(predicted, target).abs().max() == 0


@each_random_network
def test_two_calls_of_a_random_network_differ(network, shape):
    """Without shared masks the loss at equal levels would not be zero."""
    net, x, levels = shake(copy.deepcopy(network)), gaussian(*shape), torch.ones(shape[0])
    assert not torch.equal(net(x, levels), net(x, levels))


@devices
@each_method
def test_random_state_after_a_step_is_what_the_student_left(method, device):
    net, x = AnyRank(dropout=0.5).to(device), gaussian(8, 3).to(device)
    torch.manual_seed(0)
    net(x, torch.ones(8, device=device))
    alone = snapshot(device)
    torch.manual_seed(0)
    step(method, net, x, generator=seeded())
    assert torch.equal(snapshot(device), alone)


def test_random_state_does_not_depend_on_what_the_teacher_draws():
    student, x, states = AnyRank(dropout=0.5), gaussian(8, 3), []
    for teacher in (AnyRank(), NoisyInside()):
        torch.manual_seed(0)
        step(ConsistencyTraining, student, x, teacher=teacher)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@each_method
def test_random_state_moves_on_from_step_to_step(method):
    net, x = AnyRank(dropout=0.5), gaussian(8, 3)
    calls = calls_of(net)
    for _ in range(2): step(method, net, x)
    assert not torch.equal(calls[0][0], calls[2][0])


def test_random_state_is_put_back_after_an_error_in_the_teacher(any_rank):
    def broken(x, sigma):
        torch.randn(5)
        raise RuntimeError("broken teacher")
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken teacher"):
        step(ConsistencyTraining, any_rank, gaussian(8, 3), teacher=broken, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@each_method
def test_generator_makes_a_step_reproducible(method, any_rank):
    x = gaussian(32, 3)
    first, second, other = (step(method, any_rank, x, generator=seeded(s)) for s in (3, 3, 4))
    for name in ("predicted", "target", "current_sigmas", "next_sigmas"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@each_method
def test_generator_leaves_the_global_state_alone(method, any_rank):
    before = torch.get_rng_state()
    step(method, any_rank, gaussian(8, 3), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@each_method
def test_manual_seed_makes_a_step_reproducible(method):
    net, x, found = shake(AnyRank(dropout=0.5)), gaussian(8, 3), []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(step(method, net, x).predicted)
    assert torch.equal(*found)


# Gradients

@each_method
def test_target_takes_no_gradient_and_predicted_does(method, any_rank):
    out = step(method, any_rank, gaussian(8, 3))
    assert out.predicted.requires_grad and not out.target.requires_grad


def test_teacher_gets_no_gradient():
    student, teacher = shake(AnyRank()), shake(AnyRank())
    out = step(ConsistencyTraining, student, gaussian(8, 3), teacher=teacher)
    (out.predicted - out.target).square().mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in student.parameters())


def test_gradient_of_ict_is_that_of_a_fixed_target():
    net = shake(AnyRank()).double()
    x, z = (gaussian(8, 3, seed=seed, dtype=torch.float64) for seed in (0, 1))
    low, high = torch.full((8,), 1., dtype=torch.float64), torch.full((8,), 2., dtype=torch.float64)
    grads = []
    for teacher in (net, copy.deepcopy(net)):
        predicted, target = consistency_pair(net, teacher, x, z, low, high)
        grads.append(torch.autograd.grad((predicted - target).square().sum(), list(net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@each_method
def test_a_step_under_no_grad_builds_no_graph(method, any_rank):
    with torch.no_grad(): out = step(method, any_rank, gaussian(8, 3))
    assert not out.predicted.requires_grad and torch.is_grad_enabled()


@each_method
def test_data_stays_as_it_was(method, any_rank):
    x = gaussian(8, 3)
    step(method, any_rank, x)
    assert torch.equal(x, gaussian(8, 3))


# Shapes and types

@each_method
@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (5, 3, 4), (5, 3, 4, 2), (5, 3, 2, 2, 2)], ids=str)
def test_one_level_for_each_sample_reaches_the_model(method, shape, any_rank):
    calls = calls_of(any_rank)
    step(method, any_rank, gaussian(*shape))
    assert [(x.shape, sigma.shape) for x, sigma, _ in calls] == 2 * [(shape, shape[:1])]


@each_dtype
@each_method
def test_type_of_the_data_is_kept(method, dtype):
    net, x = shake(AnyRank()).to(dtype), gaussian(8, 3).to(dtype)
    calls = calls_of(net)
    out = step(method, net, x)
    assert out.predicted.dtype == out.target.dtype == dtype
    assert {v.dtype for x, sigma, _ in calls for v in (x, sigma)} == {dtype}
    assert out.sigmas.dtype == torch.promote_types(dtype, torch.float32)


@each_dtype
@each_method
def test_bundled_networks_train_in_every_type(method, dtype):
    for net, x in ((MLP(3, 16, 1), gaussian(8, 3)), (UNet(3, (8, 16), dropout=0.1), gaussian(2, 3, 8, 8))):
        net = shake(net).to(dtype)
        out = step(method, net, x.to(dtype))
        (out.predicted - out.target).square().mean().backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in net.parameters())


@each_method
@pytest.mark.parametrize("net, shape", [
    (AnyRank(), (32, 3)), (MLP(3, 16, 1), (32, 3)), (UNet(3, (8, 16)), (4, 3, 8, 8))], ids=["any rank", "MLP", "UNet"])
def test_autocast_reaches_all_parameters(method, net, shape):
    net, x = shake(copy.deepcopy(net)), gaussian(*shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(method, net, x)
        loss = (out.predicted - out.target).square().mean()
    loss.backward()
    assert out.predicted.dtype == out.target.dtype == torch.float32
    assert not torch.equal(out.predicted, out.target)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


@each_method
def test_autocast_runs_the_network_in_bfloat16(method, any_rank):
    types = []
    any_rank.out.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16): step(method, any_rank, gaussian(8, 3))
    assert types == 2 * [torch.bfloat16]


@each_method
def test_a_step_on_data_in_channels_last_format(method, conv_net, images, my_kwarg):
    results = []
    for x in (images, images.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        results.append(step(method, conv_net.eval(), x, my_kwarg=my_kwarg).predicted)
    assert torch.allclose(*results, atol=1e-4)


# Levels and weights of the output

@each_method
@pytest.mark.parametrize("k", [0, 4, 10])
def test_levels_are_neighbours_on_the_schedule(method, k, any_rank):
    out = step(method, any_rank, gaussian(64, 3), k, settings={"final_timesteps": 40})
    n = torch.searchsorted(out.sigmas, out.current_sigmas)
    assert torch.equal(out.sigmas[n], out.current_sigmas) and torch.equal(out.sigmas[n + 1], out.next_sigmas)
    assert torch.equal(out.sigmas, karras_schedule(out.num_timesteps))
    assert out.current_sigmas.shape == out.next_sigmas.shape == (64,)


@pytest.mark.parametrize("method, schedule", [
    (ConsistencyTraining, timesteps_schedule), (ImprovedConsistencyTraining, improved_timesteps_schedule)],
    ids=["CT", "iCT"])
@pytest.mark.parametrize("k", [0, 3, 6, 10])
def test_number_of_levels_follows_the_schedule(method, schedule, k, any_rank):
    out = step(method, any_rank, gaussian(8, 3), k, settings={"initial_timesteps": 3, "final_timesteps": 24})
    assert out.num_timesteps == len(out.sigmas) == schedule(k, 10, 3, 24)


@each_method
def test_schedule_runs_between_the_sigmas_of_the_settings(method, any_rank):
    out = step(method, any_rank, gaussian(8, 3), settings={"sigma_min": 0.01, "sigma_max": 10., "rho": 3.})
    assert torch.equal(out.sigmas, karras_schedule(out.num_timesteps, 0.01, 10., 3.))


def test_ct_draws_levels_evenly(any_rank):
    out = step(ConsistencyTraining, any_rank, gaussian(8000, 3), 0, settings={"initial_timesteps": 5})
    shares = (out.current_sigmas[:, None] == out.sigmas).double().mean(0)
    assert torch.allclose(shares[:-1], torch.full((4,), 0.25, dtype=torch.float64), atol=0.025) and shares[-1] == 0


def test_ict_draws_levels_from_the_lognormal_of_the_settings(any_rank):
    x, settings = gaussian(4000, 3), {"lognormal_std": 0.5, "final_timesteps": 160}
    for mean in (-2., 1.1):
        out = step(ImprovedConsistencyTraining, any_rank, x, 10, settings={**settings, "lognormal_mean": mean})
        middle = (out.current_sigmas * out.next_sigmas).sqrt().log()
        assert abs(middle.mean() - mean) < 0.05 and abs(middle.std() - 0.5) < 0.05


@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 4), (64, 3, 2, 2), (64, 3, 2, 2, 2)], ids=lambda s: f"{len(s)}-D")
def test_loss_weights_are_one_over_the_step(shape, any_rank):
    out = step(ImprovedConsistencyTraining, any_rank, gaussian(*shape))
    assert out.loss_weights.shape == (64, *(1,) * (len(shape) - 1))
    assert torch.allclose(out.loss_weights.flatten(), 1 / (out.next_sigmas - out.current_sigmas), rtol=1e-3)
    assert (pseudo_huber_loss(out.predicted, out.target) * out.loss_weights).shape == out.loss_weights.shape


def test_ct_has_no_loss_weights(any_rank):
    assert step(ConsistencyTraining, any_rank, gaussian(8, 3)).loss_weights is None


# The call (x, sigma) of the wrapped network

def test_settings_reach_the_parameterization():
    """With a network that answers zero, the student's answer is c_skip x, worked out by hand."""
    net, seen = AnyRank().double(), []
    def zero(x, sigma):
        seen.append((x, sigma))
        return 0 * net(x, sigma)
    settings = {"sigma_min": 0.01, "sigma_data": 2.}
    out = step(ImprovedConsistencyTraining, zero, gaussian(8, 3, dtype=torch.float64), settings=settings)
    for (x, sigma), answer in zip(seen, (out.predicted, out.target), strict=True):
        assert torch.allclose(answer, x * align(4 / ((sigma - 0.01) ** 2 + 4), x))


# Errors

@each_method
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_data_must_be_floating(method, dtype, any_rank):
    with pytest.raises(TypeError, match="x must be"): step(method, any_rank, torch.ones(4, 3).to(dtype))


@each_method
@pytest.mark.parametrize("x", [[[1., 2., 3.]], gaussian(4, 3).numpy(), None], ids=["list", "array", "None"])
def test_data_must_be_a_tensor(method, x, any_rank):
    with pytest.raises(TypeError, match="x must be"): step(method, any_rank, x)


@each_method
@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.tensor(1.)], ids=["empty", "no axis"])
def test_data_must_hold_a_sample(method, x, any_rank):
    with pytest.raises(ValueError, match="x must"): step(method, any_rank, x)


@each_method
@pytest.mark.parametrize("k, K, name", [
    (11, 10, "current_training_step"), (-1, 10, "current_training_step"), (0, 0, "total_training_steps")])
def test_step_must_lie_within_the_run(method, k, K, name, any_rank):
    with pytest.raises(ValueError, match=name): step(method, any_rank, gaussian(4, 3), k, K)


@each_method
@pytest.mark.parametrize("settings, name", [
    ({"initial_timesteps": 20, "final_timesteps": 10}, "final_timesteps"),
    ({"initial_timesteps": 0}, "initial_timesteps"), ({"sigma_max": 0.002}, "sigma_max"),
    ({"sigma_min": 1., "sigma_max": 0.5}, "sigma_max"), ({"sigma_max": float("inf")}, "sigma_max"),
    ({"sigma_min": 0.}, "sigma_min"), ({"sigma_min": -1.}, "sigma_min"), ({"rho": 0.}, "rho"),
    ({"sigma_data": 0.}, "sigma_data"), ({"sigma_data": float("nan")}, "sigma_data")])
def test_bad_settings_are_refused_at_construction(method, settings, name):
    with pytest.raises(ValueError, match=name): method(**settings)


@pytest.mark.parametrize("settings, name", [
    ({"lognormal_std": 0.}, "lognormal_std"), ({"lognormal_std": -2.}, "lognormal_std"),
    ({"lognormal_mean": float("nan")}, "lognormal_mean")])
def test_bad_lognormal_settings_are_refused_at_construction(settings, name):
    with pytest.raises(ValueError, match=name): ImprovedConsistencyTraining(**settings)


@each_method
@pytest.mark.parametrize("model", [None, 3, gaussian(2, 2), "net"], ids=["None", "number", "tensor", "text"])
def test_model_must_be_callable(method, model):
    with pytest.raises(TypeError, match="callable"): step(method, model, gaussian(4, 3), teacher=AnyRank())


def test_teacher_must_be_callable(any_rank):
    with pytest.raises(TypeError, match="callable"): ConsistencyTraining()(any_rank, 3, gaussian(4, 3), 0, 10)


WRONG_SHAPES = {
    "fewer samples": lambda x, sigma: x[:1], "fewer channels": lambda x, sigma: x[:, :1],
    "flat": lambda x, sigma: x.flatten(), "one number": lambda x, sigma: x.mean(),
    "more axes": lambda x, sigma: x[..., None]}
NO_TENSORS = {"None": lambda x, sigma: None, "tuple": lambda x, sigma: (x,), "number": lambda x, sigma: 0.}


@each_method
@pytest.mark.parametrize("model", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_model_must_return_the_shape_of_the_data(method, model):
    with pytest.raises(ValueError, match=r"shape of x, \(4, 3\)"): step(method, model, gaussian(4, 3))


@each_method
@pytest.mark.parametrize("model", NO_TENSORS.values(), ids=NO_TENSORS)
def test_model_must_return_a_tensor(method, model):
    with pytest.raises(TypeError, match="must return a tensor"): step(method, model, gaussian(4, 3))


def test_teacher_must_return_the_shape_of_the_data(any_rank):
    with pytest.raises(ValueError, match="shape of x"):
        step(ConsistencyTraining, any_rank, gaussian(4, 3), teacher=WRONG_SHAPES["fewer samples"])


@each_method
def test_model_kwargs_must_be_a_dictionary(method, any_rank):
    with pytest.raises(TypeError, match="model_kwargs"): step(method, any_rank, gaussian(4, 3), model_kwargs=[1])


# The moving average of weights

class Mixed(nn.Module):
    """Parameters and buffers of many kinds."""

    def __init__(self):
        super().__init__()
        self.net, self.half = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2).bfloat16()
        self.register_buffer("flags", torch.rand(4) > 0.5)
        self.register_buffer("table", torch.randn(3), persistent=False)
        self.scale = nn.Parameter(torch.randn(()))


def tensors(model):
    return {k: v.detach().clone() for k, v in (*model.named_parameters(), *model.named_buffers())}


def test_average_returns_the_average():
    average = AnyRank()
    assert update_ema_model_(average, AnyRank(), 0.9) is average


@pytest.mark.parametrize("decay", [0., 0.1, 0.5, 0.9, 0.9999, 1., torch.tensor(0.75)])
def test_average_is_decay_times_old_plus_the_rest_of_new(decay):
    average, online = AnyRank().double(), AnyRank().double()
    before, new = tensors(average), tensors(online)
    update_ema_model_(average, online, decay)
    for k, v in tensors(average).items():
        assert torch.allclose(v, float(decay) * before[k] + (1 - float(decay)) * new[k], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.95])
def test_average_is_exactly_a_lerp(decay):
    average, online = Mixed(), Mixed()
    old, new = tensors(average), tensors(online)
    expected = {k: torch.lerp(old[k], new[k], 1 - decay) for k, _ in average.named_parameters()}
    after = tensors(update_ema_model_(average, online, decay))
    assert all(torch.equal(after[k], v) for k, v in expected.items())


def test_decay_zero_copies_and_decay_one_keeps():
    average, online = AnyRank(), AnyRank()
    before = tensors(average)
    update_ema_model_(average, online, 1)
    assert all(torch.equal(v, before[k]) for k, v in tensors(average).items())
    update_ema_model_(average, online, 0)
    assert all(torch.equal(v, tensors(online)[k]) for k, v in tensors(average).items())


def test_average_leaves_the_online_model_alone():
    average, online = Mixed(), Mixed()
    before = tensors(online)
    update_ema_model_(average, online, 0.5)
    assert all(torch.equal(v, before[k]) for k, v in tensors(online).items())
    assert all(p.grad is None and p.requires_grad for m in (average, online) for p in m.parameters())


def test_average_copies_integer_and_boolean_buffers():
    average, online = Mixed(), Mixed()
    online.net(gaussian(8, 3))
    online.flags.logical_not_()
    update_ema_model_(average, online, 0.9)
    assert average.net[1].num_batches_tracked == 1 and torch.equal(average.flags, online.flags)


def test_average_copies_floating_buffers_also_those_not_saved():
    average, online = Mixed(), Mixed()
    online.net(gaussian(8, 3))
    update_ema_model_(average, online, 0.5)
    assert torch.equal(average.table, online.table) and torch.equal(average.net[1].running_mean, online.net[1].running_mean)


def test_a_scratch_buffer_that_only_one_model_has_is_no_difference():
    average, online = nn.Linear(2, 2), nn.Linear(2, 2)
    online.register_buffer("scratch", torch.ones(3), persistent=False)
    update_ema_model_(average, online, 0)
    average.register_buffer("scratch", torch.zeros(5), persistent=False)
    update_ema_model_(average, online, 0)
    assert torch.equal(average.weight, online.weight) and average.scratch.shape == (5,)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_averages_in_half_precision_arrive(dtype):
    """Each update is smaller than the rounding; it must not be lost, nor when the average is copied or loaded on the way."""
    average, online = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 1.)
    nn.init.constant_(online.weight, 1.2)
    average, online = average.to(dtype), online.to(dtype)
    for step in range(20_000):
        average = update_ema_model_(average, online, 0.9995)
        if step == 2000: average = copy.deepcopy(average)
        if step == 4000: average.load_state_dict({k: v.clone() for k, v in average.state_dict().items()})
    assert average.weight.dtype == dtype and average.weight.item() == pytest.approx(1.2, abs=0.005)
    assert set(average.state_dict()) == {"weight"}


def test_an_average_in_half_precision_follows_what_is_loaded_into_it():
    average, online = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).bfloat16()
    update_ema_model_(average, online, 0.9)
    average.load_state_dict({k: torch.full_like(v, 3.) for k, v in average.state_dict().items()})
    update_ema_model_(average, online, 1)
    assert torch.equal(average.weight, torch.full_like(average.weight, 3.))


@pytest.mark.parametrize("kinds", [
    (torch.float32, torch.bfloat16), (torch.float64, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
def test_average_and_online_model_may_differ_in_type(kinds):
    average, online = (AnyRank().to(kind) for kind in kinds)
    expected = {k: torch.lerp(v, tensors(online)[k].to(kinds[0]), 0.25) for k, v in tensors(average).items()}
    after = tensors(update_ema_model_(average, online, 0.75))
    assert all(torch.equal(after[k], v) and v.dtype == kinds[0] for k, v in expected.items())


def test_float32_average_follows_small_steps_of_a_bfloat16_model():
    """In bfloat16 an update of one part in ten thousand would be rounded away."""
    average, online = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(average.weight)
    nn.init.constant_(online.weight, 2.)
    for _ in range(10): update_ema_model_(average, online, 0.9999)
    assert average.weight.item() == pytest.approx(2 - 0.9999**10, rel=1e-5)


def test_average_uses_the_fused_multi_tensor_operation(monkeypatch):
    calls, fused = [], torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *args: calls.append(args) or fused(*args))
    net = AnyRank()
    update_ema_model_(net, copy.deepcopy(net), 0.9)
    assert [len(args[0]) for args in calls] == [len(list(net.parameters()))]


def test_average_respects_tied_weights():
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net
    average, online = tied(), tied()
    expected = torch.lerp(average[0].weight, online[0].weight, 0.5)
    update_ema_model_(average, online, 0.5)
    assert average[1].weight is average[0].weight and torch.equal(average[0].weight, expected)


def test_average_of_a_model_without_floating_tensors():
    """There is nothing to average, only a counter to copy."""
    average, online = nn.Identity(), nn.Identity()
    for model, count in ((average, 0), (online, 3)): model.register_buffer("count", torch.tensor(count))
    assert update_ema_model_(average, online, 0.9).count == 3


@pytest.mark.parametrize("decay", [-0.1, 1.1, 2, float("nan"), float("inf")])
def test_decay_must_lie_between_zero_and_one(decay):
    with pytest.raises(ValueError, match="decay"): update_ema_model_(AnyRank(), AnyRank(), decay)


@pytest.mark.parametrize("decay", [None, "0.9", True, [0.9]])
def test_decay_must_be_a_number(decay):
    with pytest.raises(TypeError, match="decay"): update_ema_model_(AnyRank(), AnyRank(), decay)


def without_bias(): return nn.Linear(3, 3, bias=False)


def with_buffer():
    net = nn.Linear(3, 3)
    net.register_buffer("extra", torch.zeros(1))
    return net


@pytest.mark.parametrize("average, online, name", [
    (nn.Linear(3, 3), nn.Linear(4, 3), "weight"), (nn.Linear(3, 3), without_bias(), "bias"),
    (without_bias(), nn.Linear(3, 3), "bias"), (with_buffer(), nn.Linear(3, 3), "extra"),
    (nn.Linear(3, 3), with_buffer(), "extra"), (nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)), "weight"),
    (ConvNet(3), ConvNet(1), "inp.weight")])
def test_models_that_do_not_match_are_refused_by_name_and_kept(average, online, name):
    before = tensors(average)
    with pytest.raises(ValueError, match=rf"do not match: {name} "): update_ema_model_(average, online, 0.9)
    assert all(torch.equal(v, before[k]) for k, v in tensors(average).items())


def test_update_ema_model_does_the_same():
    average, online = AnyRank(), AnyRank()
    expected = tensors(update_ema_model_(copy.deepcopy(average), online, 0.9))
    assert all(torch.equal(v, expected[k]) for k, v in tensors(update_ema_model(average, online, 0.9)).items())
