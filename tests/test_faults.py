"""Whatever comes in: finite data gives finite answers of the right shape and type, and the rest a clear error."""

import math
from dataclasses import fields, is_dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from consistency_models import (
    MLP,
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    Precondition,
    UNet,
    color_shapes,
    colorize,
    denoise,
    editing_sigmas,
    ema_decay_rate_schedule,
    frechet_distance,
    improved_loss_weighting,
    improved_timesteps_schedule,
    inpaint,
    input_scaling,
    interpolate_latents,
    karras_schedule,
    lognormal_probabilities,
    lognormal_timestep_distribution,
    lpips_loss,
    measure_sigma_data,
    model_forward_wrapper,
    noise_conditioning,
    outpaint,
    output_scaling,
    pseudo_huber_loss,
    skip_scaling,
    stroke_to_image,
    super_resolution,
    super_resolve,
    timesteps_schedule,
    two_moons,
    update_ema_model_,
)
from consistency_models.editing import orthogonal_basis

nan, inf = float("nan"), float("inf")
few = settings(deadline=None, max_examples=30, derandomize=True, database=None)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def plain(x, sigma): return x.tanh()


def finite(result):
    """Is every number in a tensor, a sequence, a dataclass or a plain value finite?"""
    if isinstance(result, torch.Tensor): return result.isfinite().all().item()
    if isinstance(result, (list, tuple)): return all(finite(r) for r in result)
    if is_dataclass(result): return all(finite(getattr(result, f.name)) for f in fields(result))
    return not isinstance(result, float) or math.isfinite(result)


# Strategies

dtypes = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))
shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)
seeds = st.integers(0, 2**32)
models = st.sampled_from((
    plain, lambda x, s: torch.zeros_like(x), lambda x, s: 3 * x,
    lambda x, s: x / (1 + s.reshape(-1, *(1,) * (x.ndim - 1))), Precondition(lambda x, c_noise: x.sin())))


@st.composite
def batches(draw, shape=shapes):
    """Data of any rank from 2 to 5, from all zeros to a thousand."""
    noise = torch.randn(draw(shape), generator=seeded(draw(seeds)), dtype=torch.float64)
    return (draw(st.sampled_from((0., 1e-6, 0.5, 1., 1000.))) * noise).to(draw(dtypes))


@st.composite
def levels(draw):
    """Noise levels, descending, from 10,000 down to `sigma_min`."""
    found = draw(st.lists(st.floats(0.002, 1e4), min_size=1, max_size=5, unique=True))
    return sorted(found, reverse=True)


@st.composite
def masks(draw, shape):
    """A mask that broadcasts to `shape`: hard or soft, with any of its axes missing or of length one."""
    axes = [n if draw(st.booleans()) else 1 for n in shape][draw(st.integers(0, len(shape))):]
    mask = torch.rand(axes, generator=seeded(draw(seeds)))
    return draw(st.sampled_from((mask, mask > 0.5, (mask > 0.5).float(), (mask > 0.5).double(), mask.round().long())))


@st.composite
def runs(draw):
    """Step, run length, initial and final number of levels."""
    K, s0 = draw(st.integers(1, 10**6)), draw(st.integers(2, 30))
    return draw(st.integers(0, K)), K, s0, draw(st.integers(s0, 60))


# Finite in, finite out

@few
@given(st.data(), batches(), runs(), models, st.sampled_from((ConsistencyTraining, ImprovedConsistencyTraining)))
def test_a_training_step_is_finite(data, x, run, model, method):
    k, K, s0, s1 = run
    networks = (model, model) if method is ConsistencyTraining else (model,)
    out = method(initial_timesteps=s0, final_timesteps=s1)(*networks, x, k, K, generator=seeded(data.draw(seeds)))
    assert out.predicted.shape == out.target.shape == x.shape
    assert out.predicted.dtype == out.target.dtype == x.dtype
    assert out.sigmas.shape == (out.num_timesteps,) and s0 <= out.num_timesteps <= s1 + 1
    assert (out.current_sigmas < out.next_sigmas).all() and len(out.next_sigmas) == len(x)
    assert finite(out)


@few
@given(batches(), runs(), models)
def test_an_improved_training_step_gives_a_finite_loss_and_gradient(x, run, model):
    k, K, s0, s1 = run
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    training = ImprovedConsistencyTraining(initial_timesteps=s0, final_timesteps=s1)
    out = training(lambda x, s: scale * model(x, s), x, k, K, generator=seeded())
    assert out.loss_weights.shape == (len(x), *(1,) * (x.ndim - 1)) and (out.loss_weights > 0).all()
    loss = (pseudo_huber_loss(out.predicted, out.target) * out.loss_weights).mean()
    loss.backward()
    assert finite(loss) and finite(scale.grad)
    assert not out.target.requires_grad


@few
@given(batches(), st.floats(1e-4, 0.1), st.floats(1., 1e4), st.floats(0.5, 20.), st.floats(1e-3, 100.))
def test_training_settings_may_vary_widely(x, low, high, rho, data_std):
    options = {"sigma_min": low, "sigma_max": high, "rho": rho, "sigma_data": data_std, "final_timesteps": 40}
    assert finite(ConsistencyTraining(**options)(plain, plain, x, 5, 10, generator=seeded()))
    assert finite(ImprovedConsistencyTraining(**options)(plain, x, 5, 10, generator=seeded()))


@few
@given(st.data(), batches(), levels(), models)
def test_sampling_is_finite_and_keeps_shape_type_and_known_values(data, y, sigmas, model):
    sampler, mask = ConsistencySamplingAndEditing(), data.draw(masks(y.shape))
    clip, start = data.draw(st.booleans()), data.draw(st.booleans())
    generator = seeded(data.draw(seeds))
    x = sampler(model, y, sigmas, mask, clip_denoised=clip, start_from_y=start, generator=generator)
    known = (mask == 0).expand(y.shape)
    assert x.shape == y.shape and x.dtype == y.dtype and finite(x)
    assert torch.equal(x[known], y[known])
    plain_sample = sampler(model, y, sigmas, clip_denoised=clip, generator=generator)
    assert plain_sample.shape == y.shape and plain_sample.dtype == y.dtype and finite(plain_sample)


@few
@given(batches(), levels(), models, st.floats(0, 1), seeds)
def test_interpolation_is_finite_and_keeps_shape_and_type(a, sigmas, model, ratio, seed):
    sampler = ConsistencySamplingAndEditing()
    for b in (a, -a, torch.zeros_like(a), torch.ones_like(a)):
        x = sampler.interpolate(model, a, b, ratio, sigmas, generator=seeded(seed))
        assert x.shape == a.shape and x.dtype == a.dtype and finite(x)


@few
@given(batches(), st.floats(1e-4, 1e4))
def test_the_parameterization_is_finite_and_exact_at_sigma_min(x, sigma):
    sigma = torch.full((len(x),), sigma, dtype=x.dtype)
    y = model_forward_wrapper(plain, x, sigma)
    assert y.shape == x.shape and y.dtype == x.dtype and finite(y)
    assert finite([c(sigma) for c in (skip_scaling, output_scaling, input_scaling, noise_conditioning)])
    assert torch.equal(model_forward_wrapper(plain, x, torch.full_like(sigma, 0.002)), x)


@few
@given(batches(), st.floats(1e-6, 1e6) | st.none(), seeds)
def test_pseudo_huber_lies_between_zero_and_the_norm(x, c, seed):
    y = torch.randn(x.shape, generator=seeded(seed)).to(x.dtype)
    loss, norm = pseudo_huber_loss(x, y, c), (x - y).double().flatten(1).norm(dim=1)
    assert loss.shape == (len(x), *(1,) * (x.ndim - 1)) and loss.dtype == x.dtype and finite(loss)
    assert (loss >= 0).all() and (loss.flatten().double() <= norm * 1.01).all()
    assert torch.equal(loss, pseudo_huber_loss(y, x, c))
    assert torch.equal(pseudo_huber_loss(x, x, c), torch.zeros_like(loss))


@few
@given(st.integers(2, 300), st.floats(1e-4, 0.5), st.floats(1., 1e4), st.floats(0.5, 50.), dtypes)
def test_the_karras_schedule_is_finite_with_exact_ends(N, low, high, rho, dtype):
    sigmas = karras_schedule(N, low, high, rho, dtype=dtype)
    assert sigmas.shape == (N,) and sigmas.dtype == dtype and finite(sigmas)
    assert sigmas[0] == torch.tensor(low, dtype=dtype) and sigmas[-1] == torch.tensor(high, dtype=dtype)
    assert (sigmas.diff() >= 0).all()
    if dtype == torch.float64: assert (sigmas.diff() > 0).all() and finite(improved_loss_weighting(sigmas))


@few
@given(runs())
def test_the_number_of_levels_stays_in_its_bounds(run):
    k, K, s0, s1 = run
    assert s0 <= timesteps_schedule(k, K, s0, s1) <= s1 + 1
    assert s0 + 1 <= improved_timesteps_schedule(k, K, s0, s1) <= s1 + 1
    assert 0 < ema_decay_rate_schedule(timesteps_schedule(k, K, s0, s1), 0.9, s0) < 1


@few
@given(st.integers(2, 300), st.floats(-1000, 1000), st.floats(0, 1e300, exclude_min=True), st.floats(0.5, 50.))
def test_probabilities_are_finite_and_sum_to_one(N, mean, std, rho):
    sigmas = karras_schedule(N, rho=rho, dtype=torch.float64)
    p = lognormal_probabilities(sigmas, mean, std)
    assert finite(p) and (p >= 0).all() and abs(p.sum() - 1) < 1e-9
    n = lognormal_timestep_distribution(20, sigmas, mean, std, generator=seeded())
    assert 0 <= n.min() and n.max() <= N - 2 and (p[n] > 0).all()


# Extremes: refused, or finite

EXTREMES = (
    {"sigma_max": 1e39}, {"sigma_max": 1e300}, {"sigma_min": 1e-300}, {"rho": 1e-3},
    {"sigma_data": 1e-30}, {"sigma_data": 1e30}, {"sigma_data": 1e300},
    {"lognormal_mean": 1e4}, {"lognormal_mean": -1e300}, {"lognormal_std": 1e300}, {"lognormal_std": 1e-300})


@pytest.mark.parametrize("method, options", [
    (method, options) for method in (ConsistencyTraining, ImprovedConsistencyTraining) for options in EXTREMES
    if {*options} <= {f.name for f in fields(method)}], ids=str)
def test_extreme_training_settings_are_refused_at_once_or_finite(method, options):
    """What the constructor accepts must train; a run should not stop when its schedule reaches a later stage."""
    try: training = method(**options, final_timesteps=40, initial_timesteps=10)
    except (ValueError, TypeError): return
    models, x = ((plain, plain) if method is ConsistencyTraining else (plain,)), torch.ones(64, 2)
    for k in (0, 10):
        out = training(*models, x, k, 10, generator=seeded())
        assert finite(out) and (out.current_sigmas < out.next_sigmas).all()


TYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))


@TYPES
@pytest.mark.parametrize("options", EXTREMES[:4], ids=str)
def test_an_extreme_karras_schedule_is_refused_or_finite_and_positive(options, dtype):
    try: sigmas = karras_schedule(10, **options, dtype=dtype)
    except (ValueError, TypeError): return
    assert finite(sigmas) and (sigmas > 0).all() and (sigmas.diff() >= 0).all()


@TYPES
@pytest.mark.parametrize("sigmas", (
    [1e5], [1e20, 1.], [1e39, 1.], [1e300, 1e200], [0.002 * (1 + 1e-12), 0.002]), ids=str)
def test_extreme_sampling_levels_are_refused_or_finite(sigmas, dtype):
    try: x = ConsistencySamplingAndEditing()(plain, torch.zeros(4, 3, dtype=dtype), sigmas, generator=seeded())
    except (ValueError, TypeError): return
    assert x.dtype == dtype and finite(x)


@pytest.mark.parametrize("options", ({"sigma_min": 1e-300}, *EXTREMES[4:7]), ids=str)
def test_extreme_sampler_settings_are_refused_or_finite(options):
    try: x = ConsistencySamplingAndEditing(**options)(plain, torch.ones(4, 3), [80., 0.002], generator=seeded())
    except (ValueError, TypeError): return
    assert finite(x)


@pytest.mark.parametrize("function", (
    lambda x: pseudo_huber_loss(x, x), lambda x: ConsistencySamplingAndEditing()(plain, x, [80., 1.]),
    lambda x: ConsistencySamplingAndEditing().interpolate(plain, x, x, 0.5, [80.]),
    lambda x: ConsistencyTraining()(plain, plain, x, 0, 1).predicted,
    lambda x: ImprovedConsistencyTraining()(plain, x, 0, 1).predicted,
    lambda x: model_forward_wrapper(plain, x, 1.)), ids=("huber", "sampling", "interpolation", "ct", "ict", "forward"))
@pytest.mark.parametrize("shape", ((0, 3), (3, 0), (0, 3, 4, 4)))
def test_an_empty_batch_is_refused_or_empty(function, shape):
    try: result = function(torch.zeros(shape))
    except ValueError: return
    assert len(result) == shape[0] and finite(result)


# Arbitrary bad arguments: a ValueError or a TypeError, or else a finite answer

def step(method, **options):
    """One training step with these settings."""
    training, x = method(**{"final_timesteps": 20, **options}), torch.ones(2, 2)
    return training(plain, plain, x, 10, 10) if method is ConsistencyTraining else training(plain, x, 10, 10)


def sample(**options):
    return ConsistencySamplingAndEditing(**options)(plain, torch.ones(2, 3), [80., 1.])


grid, points, images = karras_schedule(6), torch.ones(3, 2), torch.ones(2, 1, 4, 4)
sampler, labels = ConsistencySamplingAndEditing(), torch.tensor([0, 1, 1])
run = {"current_training_step": 3, "total_training_steps": 10, "initial_timesteps": 3, "final_timesteps": 9}
training = {
    "x": points, "current_training_step": 3, "total_training_steps": 10, "generator": None, "model_kwargs": None}
usual = {
    "sigma_min": 0.002, "sigma_max": 80., "rho": 7., "sigma_data": 0.5, "initial_timesteps": 10, "final_timesteps": 20}
editing = {"sigmas": [80., 1.], "generator": None, "model_kwargs": None}

CALLS = {
    "karras_schedule": (karras_schedule, {"num_timesteps": 5, "sigma_min": 0.002, "sigma_max": 80., "rho": 7.}),
    "timesteps_schedule": (timesteps_schedule, run),
    "improved_timesteps_schedule": (improved_timesteps_schedule, run),
    "ema_decay_rate_schedule": (
        ema_decay_rate_schedule, {"num_timesteps": 5, "initial_ema_decay_rate": 0.9, "initial_timesteps": 2}),
    "lognormal_probabilities": (lognormal_probabilities, {"sigmas": grid, "mean": -1.1, "std": 2.}),
    "lognormal_timestep_distribution": (
        lognormal_timestep_distribution,
        {"num_samples": 4, "sigmas": grid, "mean": -1.1, "std": 2., "generator": None}),
    "improved_loss_weighting": (improved_loss_weighting, {"sigmas": grid}),
    "pseudo_huber_loss": (pseudo_huber_loss, {"input": points, "target": points, "c": 0.1}),
    "lpips_loss": (
        lambda input, target: lpips_loss(input, target, lambda a, b: (a - b).mean((1, 2, 3), keepdim=True)),
        {"input": images, "target": images}),
    "model_forward_wrapper": (
        model_forward_wrapper, {"model": plain, "x": points, "sigma": torch.ones(3)}),
    "ConsistencyTraining": (lambda **o: step(ConsistencyTraining, **o), usual),
    "ImprovedConsistencyTraining": (
        lambda **o: step(ImprovedConsistencyTraining, **o), {**usual, "lognormal_mean": -1.1, "lognormal_std": 2.}),
    "consistency training step": (
        ConsistencyTraining(), {"student_model": plain, "teacher_model": plain, **training}),
    "improved training step": (ImprovedConsistencyTraining(), {"model": plain, **training}),
    "ConsistencySamplingAndEditing": (sample, {"sigma_min": 0.002, "sigma_data": 0.5}),
    "sampling": (sampler, {"model": plain, "y": points, "mask": torch.ones(2), **editing}),
    "transforms": (
        lambda **o: sampler(plain, points, [80.], torch.ones(2), **o),
        {"transform_fn": lambda x: x, "inverse_transform_fn": lambda x: x}),
    "interpolate": (sampler.interpolate, {"model": plain, "a": points, "b": points, "ab_ratio": 0.5, **editing}),
    "inpaint": (inpaint, {"model": plain, "x": points, "mask": torch.ones(2), **editing}),
    "colorize": (colorize, {"model": plain, "gray": images, **editing}),
    "outpaint": (outpaint, {"model": plain, "x": images, "padding": 1, **editing}),
    "super_resolve": (super_resolve, {"model": plain, "low": images, "factor": 2, **editing}),
    "super_resolution": (lambda **o: super_resolution(**o).transform_fn(images), {"factor": 2, "dims": 2}),
    "stroke_to_image": (stroke_to_image, {"model": plain, "painting": images, **editing}),
    "denoise": (denoise, {"model": plain, "x": images, "sigma": 0.5, "generator": None, "model_kwargs": None}),
    "interpolate_latents": (interpolate_latents, {"model": plain, "a": points, "b": points, "weights": 0.5, **editing}),
    "editing_sigmas": (editing_sigmas, {"n": 5, "sigma_min": 0.002}),
    "orthogonal_basis": (orthogonal_basis, {"first": [1., 2.]}),
    "MLP call": (MLP(2, 8, 1, num_classes=2), {"x": points, "sigma": torch.ones(3), "class_labels": labels}),
    "UNet call": (UNet(1, (8,), num_classes=2), {"x": images, "sigma": torch.ones(2), "class_labels": labels[:2]}),
    "two_moons": (two_moons, {"n": 5, "generator": None}),
    "color_shapes": (color_shapes, {"n": 5, "size": 8, "generator": None}),
    "measure_sigma_data": (lambda samples: measure_sigma_data([points, -points], samples), {"samples": 5}),
    "frechet_distance": (
        frechet_distance,
        {"real": torch.rand(9, 2, generator=seeded()), "fake": torch.eye(9, 2), "features": lambda x: x}),
    "update_ema_model_": (
        lambda **o: list(update_ema_model_(**o).parameters()),
        {"ema_model": nn.Linear(2, 2), "online_model": nn.Linear(2, 2), "decay": 0.9})}

ARGUMENTS = [(name, argument) for name, (_, good) in CALLS.items() for argument in good]

JUNK = {
    "None": None, "text": "a", "bytes": b"a", "list": [1.0], "empty list": [], "dict": {"a": 1}, "object": object(),
    "complex": 1j, "complex tensor": torch.tensor(1j), "NaN": nan, "inf": inf, "minus inf": -inf, "minus one": -1,
    "minus a half": -0.5, "huge int": 10**400, "True": True, "two values": torch.tensor([1., 2.]),
    "NaN tensor": torch.tensor(nan), "empty tensor": torch.zeros(0), "0-d tensor": torch.tensor(0.5),
    "7-d tensor": torch.ones((1,) * 7), "ints": torch.tensor([1, 2, 3]), "ragged": [[1.], [1., 2.]], "len": len,
    "int": int, "returns None": lambda *a, **k: None, "fewer samples": lambda x, *a: x[:1]}


def complaint(function, arguments):
    """What is wrong with the outcome of a call that may fail with a ValueError or TypeError alone."""
    try: result = function(**arguments)
    except (ValueError, TypeError): return None
    except Exception as e: return f"{type(e).__name__}: {e}"   # noqa: BLE001
    return None if finite(result) else "the result is not finite"


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_a_bad_argument_raises_value_error_or_type_error(name, argument):
    function, good = CALLS[name]
    assert complaint(function, good) is None
    unchecked = argument == "sigma"   # its values are not looked at in each forward pass
    junk = {kind: value for kind, value in JUNK.items() if finite(value) or not unchecked}
    found = {kind: complaint(function, {**good, argument: value}) for kind, value in junk.items()}
    assert {kind: what for kind, what in found.items() if what} == {}


numbers = st.one_of(
    st.floats(), st.integers(-10**6, 100), st.integers(-10**400, -10**6), st.integers(10**310, 10**400), st.booleans(),
    st.none(), st.text(max_size=3), st.complex_numbers(), st.lists(st.floats(), max_size=3),
    st.fractions(max_denominator=9), st.decimals(allow_nan=False), st.sampled_from(list(JUNK.values())))


@settings(few, max_examples=50, phases=(Phase.generate,))
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", [name for name, (_, good) in CALLS.items() if not {"sigma", "features"} & {*good}])
def test_several_bad_arguments_at_once_raise_value_error_or_type_error(name, data):
    function, good = CALLS[name]
    names = data.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, unique=True))
    arguments = {**good, **{n: data.draw(numbers, label=n) for n in names}}
    assert complaint(function, arguments) is None
