"""Multistep sampling, editing with masks and transforms, interpolation."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from consistency_models import (
    MLP,
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ImprovedConsistencyTraining,
    UNet,
    as_network,
    from_pretrained,
    inpaint,
    karras_schedule,
    model_forward_wrapper,
    sigma_data_of,
    slerp,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIGMAS = [80., 5., 0.5]
sampler = ConsistencySamplingAndEditing()
nan, inf = float("nan"), float("inf")


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def plain(x, sigma):
    """A network that treats each value alone."""
    return x.tanh() + sigma.reshape(-1, *(1,) * (x.ndim - 1)) * 0.01


def knows(truth):
    """A network whose consistency function always answers `truth`."""
    return as_network(lambda x, sigma: truth)


def keeps(x, sigma): return x


def shake(network):
    """Give all parameters random values, so that no layer starts at zero."""
    for i, p in enumerate(network.parameters()): nn.init.normal_(p, std=0.1, generator=seeded(i))
    return network


class Listening:
    """A network that notes what it is given."""
    def __init__(self): self.noisy, self.levels = [], []

    def __call__(self, x, sigma):
        self.noisy.append(x.clone())
        self.levels.append(sigma.clone())
        return x.tanh()


# Algorithm 1

def algorithm_1(network, shape, sigmas, generator, low=0.002, data=0.5):
    """Algorithm 1 of Song et al. (2023), written from the paper in float64."""
    def f(x, s):
        c_skip, c_out = data**2 / ((s - low) ** 2 + data**2), data * (s - low) / math.sqrt(data**2 + s**2)
        return c_skip * x + c_out * network(x, torch.full(shape[:1], s, dtype=torch.float64))
    noisy = sigmas[0] * torch.randn(shape, generator=generator, dtype=torch.float64)
    steps = [(noisy, f(noisy, sigmas[0]))]
    for s in sigmas[1:]:
        noisy = steps[-1][1] + (s**2 - low**2) ** 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        steps.append((noisy, f(noisy, s)))
    return steps


@pytest.mark.parametrize("shape", ((5,), (4, 3), (2, 3, 4), (2, 1, 4, 4), (2, 3, 2, 4, 4)))
@pytest.mark.parametrize("sigmas", ([80.], [80., 0.8], [80., 24.4, 5.84, 0.9, 0.661], [3., 0.002]))
def test_sampling_is_algorithm_1_step_for_step(shape, sigmas):
    expected = algorithm_1(plain, shape, sigmas, seeded(7))
    steps = list(sampler.trajectory(plain, torch.zeros(shape, dtype=torch.float64), sigmas, generator=seeded(7)))
    assert [s for s, _, _ in steps] == sigmas
    for (_, noisy, denoised), (x, y) in zip(steps, expected, strict=True):
        torch.testing.assert_close(noisy, x)
        torch.testing.assert_close(denoised, y)


def test_trajectory_yields_level_noisy_and_denoised_and_ends_with_the_sample():
    y = torch.zeros(4, 3)
    steps = list(sampler.trajectory(plain, y, SIGMAS, generator=seeded()))
    assert all(type(s) is float and noisy.shape == x.shape == y.shape for s, noisy, x in steps)
    assert torch.equal(steps[-1][2], sampler(plain, y, SIGMAS, generator=seeded()))


def test_trajectory_works_only_when_asked():
    model = Listening()
    steps = sampler.trajectory(model, torch.zeros(2, 3), SIGMAS)
    assert model.levels == []
    next(iter(steps))
    assert len(model.levels) == 1


def test_the_reference_does_not_matter_for_plain_sampling():
    a, b = (sampler(plain, y, SIGMAS, generator=seeded()) for y in (torch.zeros(4, 3), torch.full((4, 3), nan)))
    assert torch.equal(a, b)


def test_the_model_sees_one_level_for_each_sample():
    model = Listening()
    sampler(model, torch.zeros(4, 3), SIGMAS)
    assert [s.tolist() for s in model.levels] == [[s] * 4 for s in SIGMAS]


def test_settings_reach_the_skip_parameterization():
    other = ConsistencySamplingAndEditing(sigma_min=0.1, sigma_data=2.)
    noisy = torch.randn(4, 3, generator=seeded()) * 5
    expected = model_forward_wrapper(plain, noisy, torch.tensor(5.), sigma_data=2., sigma_min=0.1)
    torch.testing.assert_close(other(plain, torch.zeros(4, 3), [5.], generator=seeded()), expected)


def test_a_step_at_sigma_min_changes_nothing():
    y = torch.randn(4, 3, generator=seeded())
    assert torch.equal(sampler(plain, y, [0.002], start_from_y=True, add_initial_noise=False), y)


def test_model_arguments_reach_the_model():
    def model(x, sigma, scale, mask): return scale * mask * x
    by_name = sampler(model, torch.zeros(4, 3), [5.], generator=seeded(), scale=2., model_kwargs={"mask": 3.})
    expected = sampler(lambda x, sigma: 6. * x, torch.zeros(4, 3), [5.], generator=seeded())
    torch.testing.assert_close(by_name, expected)


# Noise levels

@pytest.mark.parametrize("sigmas", (
    [], [0.8, 80.], [80., 80.], [80., 0.8, 0.8], [80., 0.001], [0.], [-1.], [80., -0.8], [nan], [80., nan], [inf],
    [inf, 80.]))
@pytest.mark.parametrize("kind", (list, tuple, torch.tensor, iter))
def test_bad_levels_are_refused(sigmas, kind):
    with pytest.raises(ValueError, match="sigmas"): sampler(plain, torch.zeros(2, 3), kind(sigmas))


@pytest.mark.parametrize("sigmas", (
    None, 80., "80", ["80"], [None], [80., "0.8"], [True], torch.tensor(80.), torch.ones(2, 2), [[80.], [0.8]],
    object()))
def test_levels_that_are_no_list_of_numbers_are_refused(sigmas):
    with pytest.raises(TypeError, match="sigmas"): sampler(plain, torch.zeros(2, 3), sigmas)


def test_bad_levels_are_refused_before_the_first_step_is_asked_for():
    with pytest.raises(ValueError, match="descend"): sampler.trajectory(plain, torch.zeros(2, 3), [0.8, 80.])
    with pytest.raises(ValueError, match="flip"): sampler(plain, torch.zeros(2, 3), karras_schedule(10))


def test_levels_come_as_any_iterable_of_numbers():
    y, levels = torch.zeros(2, 3), [80, 8, 1]
    kinds = (levels, tuple(levels), [80., 8., 1.], torch.tensor(levels), torch.tensor(levels, dtype=torch.float64),
             (s for s in levels), [torch.tensor(s) for s in levels])
    results = [sampler(plain, y, sigmas, generator=seeded()) for sigmas in kinds]
    assert all(torch.equal(results[0], r) for r in results)


@pytest.mark.parametrize("N", (2, 18, 40))
@pytest.mark.parametrize("schedule_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reversed_karras_schedule_of_any_type_gives_the_perfect_answer(N, schedule_dtype, dtype):
    truth = (torch.rand(3, 4, generator=seeded()) * 2 - 1).to(dtype)
    sigmas = karras_schedule(N, dtype=schedule_dtype).flip(0)
    x = sampler(knows(truth), truth, sigmas, generator=seeded())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    assert x.dtype == dtype
    torch.testing.assert_close(x, truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("schedule_dtype", DTYPES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_a_reversed_karras_schedule_of_any_type_gives_no_nan(schedule_dtype, dtype):
    sigmas = karras_schedule(12, dtype=schedule_dtype).flip(0)
    for network, shape in ((shake(MLP(2, 16, 1)), (3, 2)), (shake(UNet(1, (8, 16))), (2, 1, 4, 4))):
        x = sampler(network.to(dtype), torch.zeros(shape, dtype=dtype), sigmas, generator=seeded())
        assert x.dtype == dtype and x.isfinite().all()


# Gradients

def test_no_graph_is_built_unless_asked_for():
    network, y = shake(MLP(3, 16, 1)), torch.zeros(4, 3, requires_grad=True)
    for options in ({}, {"mask": torch.tensor([0., 1., 0.5])}, {"start_from_y": True}):
        for _, noisy, x in sampler.trajectory(network, y, SIGMAS, **options):
            assert not noisy.requires_grad and not x.requires_grad
    assert not sampler.interpolate(network, y, y, 0.5, SIGMAS).requires_grad


@pytest.mark.parametrize("options", ({"mask": torch.tensor([0., 1., 0.5])}, {"start_from_y": True}))
def test_no_graph_is_built_without_initial_noise_either(options):
    y = torch.zeros(4, 3, requires_grad=True)
    steps = sampler.trajectory(plain, y, SIGMAS, add_initial_noise=False, **options)
    assert all(noisy.grad_fn is None and x.grad_fn is None for _, noisy, x in steps)


def test_gradients_flow_if_asked_for():
    network, y = shake(MLP(3, 16, 1)), torch.zeros(4, 3, requires_grad=True)
    x = sampler(network, y, SIGMAS, start_from_y=True, enable_grad=True, generator=seeded())
    x.square().sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.out.weight.grad.abs().sum() > 0


def test_sampling_leaves_the_grad_mode_alone():
    for _ in sampler.trajectory(plain, torch.zeros(2, 3), SIGMAS): assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


# Randomness

def test_a_generator_makes_sampling_reproducible():
    y, before = torch.zeros(4, 3), torch.get_rng_state()
    a, b, c = (sampler(plain, y, SIGMAS, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_sampling_draws_from_the_global_generator_by_default():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(sampler(plain, torch.zeros(4, 3), SIGMAS))
    assert torch.equal(*results) and not torch.equal(results[0], sampler(plain, torch.zeros(4, 3), SIGMAS))


# Clipping

def test_clipping_bounds_each_answer():
    def loud(x, sigma): return 10 * x
    y = torch.zeros(4, 3)
    steps = list(sampler.trajectory(loud, y, SIGMAS, clip_denoised=True, generator=seeded()))
    assert all(x.abs().max() == 1 for _, _, x in steps)
    assert sampler(loud, y, SIGMAS, generator=seeded()).abs().max() > 1


def test_clipping_leaves_known_values_alone():
    y = torch.full((2, 3), 4.)
    x = sampler(plain, y, SIGMAS, torch.tensor([0., 1., 1.]), clip_denoised=True)
    assert (x[:, 0] == 4).all() and (x[:, 1:].abs() <= 1).all()


# Masks

REFERENCE = torch.tensor([[0.3, -0., 1e-30, -7.], [0.1, 3e38, -1e-45, 0.7]])


@pytest.mark.parametrize("mask", (
    torch.tensor([0., 0., 1., 0.]), torch.tensor([False, False, True, False]), torch.tensor([0, 0, 1, 0]),
    [0, 0, 1, 0], torch.tensor([0., 0., 1., 0.], dtype=torch.float64),
    torch.tensor([[1., 0., 0., 0.], [0., 0., 0., 1.]]), torch.tensor([[0.], [1.]]), torch.tensor(0.), 0, False,
    torch.zeros(1, 1)))
def test_known_values_come_back_bit_for_bit(mask):
    x = sampler(plain, REFERENCE, SIGMAS, mask, generator=seeded())
    known = (torch.as_tensor(mask) == 0).expand(2, 4)
    assert torch.equal(x[known].view(torch.int32), REFERENCE[known].view(torch.int32))
    assert not (x[~known] == REFERENCE[~known]).any()


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_known_values_come_back_exactly_in_every_type(dtype):
    y = torch.randn(3, 2, 4, 4, generator=seeded()).to(dtype)
    mask = torch.rand(1, 1, 4, 4, generator=seeded()) < 0.5
    x = sampler(plain, y, SIGMAS, mask)
    assert x.dtype == dtype and torch.equal(x[..., ~mask[0, 0]], y[..., ~mask[0, 0]])


@pytest.mark.parametrize("filler", (nan, inf, -inf, 3e38, 1e30))
def test_what_stands_under_the_mask_does_not_matter(filler):
    mask = torch.tensor([0., 1., 1., 0.])
    y = torch.where(mask == 1, filler, torch.rand(3, 4, generator=seeded()))
    x = sampler(plain, y, SIGMAS, mask, generator=seeded())
    assert torch.equal(x, sampler(plain, torch.where(mask == 1, 0., y), SIGMAS, mask, generator=seeded()))
    assert x.isfinite().all()


def test_all_ones_is_plain_sampling():
    y = torch.rand(3, 4, generator=seeded())
    x = sampler(plain, y, SIGMAS, torch.ones(4), generator=seeded())
    assert torch.equal(x, sampler(plain, y, SIGMAS, generator=seeded()))


def test_a_soft_mask_mixes():
    truth, y = torch.full((2, 3), 0.8), torch.full((2, 3), -0.4)
    x = sampler(knows(truth), y, SIGMAS, torch.tensor([0., 0.25, 1.]))
    torch.testing.assert_close(x, torch.tensor([-0.4, 0.75 * -0.4 + 0.25 * 0.8, 0.8]).expand(2, 3))


def test_the_known_part_is_there_from_the_first_step():
    """Algorithm 4 starts from the known values, zeros elsewhere, plus noise."""
    model, y, mask = Listening(), torch.full((2, 3), 100.), torch.tensor([0., 0.5, 1.])
    sampler(model, y, [5.], mask, generator=seeded())
    start = torch.tensor([100., 50., 0.]).expand(2, 3)
    torch.testing.assert_close(model.noisy[0], start + 5 * torch.randn(2, 3, generator=seeded()))


@pytest.mark.parametrize("shape", ((4,), (3, 3), (2, 2), (1, 2, 3), (2, 3, 1), (0,)))
def test_a_mask_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match="mask"): sampler(plain, torch.zeros(2, 3), SIGMAS, torch.ones(shape))


@pytest.mark.parametrize("value", (2., -1., 1.01, nan, inf))
def test_a_mask_with_values_outside_zero_and_one_is_refused(value):
    mask = torch.tensor([0., value, 1.])
    with pytest.raises(ValueError, match="mask"): sampler(plain, torch.zeros(2, 3), SIGMAS, mask)


def test_editing_leaves_its_inputs_alone():
    y, mask = torch.rand(2, 3, generator=seeded()), torch.tensor([0., 0.5, 1.])
    before = y.clone(), mask.clone()
    sampler(plain, y, SIGMAS, mask, start_from_y=True)
    assert torch.equal(y, before[0]) and torch.equal(mask, before[1])


# Transforms

def test_the_transform_is_applied_to_sample_and_reference():
    """With A that reverses the values, a mask for A y speaks of them in reverse order."""
    def reverse(x): return x.flip(1)
    truth, y = torch.full((2, 3), 0.8), torch.tensor([1., 2., 3.]).expand(2, 3)
    x = sampler(knows(truth), y, SIGMAS, torch.tensor([0., 1., 1.]), reverse, reverse)
    torch.testing.assert_close(x, torch.tensor([0.8, 0.8, 3.]).expand(2, 3))


def test_a_transform_may_change_the_shape():
    def rows(x): return x.reshape(len(x), 2, 2)
    def flat(x): return x.reshape(len(x), 4)
    truth, y = torch.zeros(3, 4), torch.tensor([1., 2., 3., 4.]).expand(3, 4)
    x = sampler(knows(truth), y, SIGMAS, torch.tensor([[0.], [1.]]), rows, flat)
    torch.testing.assert_close(x, torch.tensor([1., 2., 0., 0.]).expand(3, 4))


def test_no_transform_is_needed_without_a_mask():
    def fails(x): raise AssertionError("not to be called")
    assert sampler(plain, torch.zeros(2, 3), SIGMAS, None, fails, fails).isfinite().all()


# Samples of a batch do not meet

@pytest.mark.parametrize("options", ({}, {"mask": torch.tensor([0., 1., 0.5])}, {"start_from_y": True}))
def test_samples_of_a_batch_do_not_influence_each_other(options):
    y = torch.rand(4, 3, generator=seeded())
    other = y.clone()
    other[2] = 1e6
    a, b = (sampler(plain, reference, SIGMAS, generator=seeded(), **options) for reference in (y, other))
    assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]])


# Where to start

def test_start_from_y_adds_noise_to_the_reference():
    model, y = Listening(), torch.full((2, 3), 50.)
    sampler(model, y, [5.], start_from_y=True, generator=seeded())
    torch.testing.assert_close(model.noisy[0], y + 5 * torch.randn(2, 3, generator=seeded()))


def test_start_from_y_adds_noise_to_all_of_it_despite_a_mask():
    model, y = Listening(), torch.full((2, 3), 50.)
    sampler(model, y, [5.], torch.tensor([0., 1., 1.]), start_from_y=True, generator=seeded())
    torch.testing.assert_close(model.noisy[0], y + 5 * torch.randn(2, 3, generator=seeded()))


def test_without_initial_noise_the_first_step_sees_the_reference_itself():
    model, y = Listening(), torch.rand(2, 3, generator=seeded())
    sampler(model, y, [5., 1.], start_from_y=True, add_initial_noise=False, generator=seeded())
    assert torch.equal(model.noisy[0], y)
    assert not torch.equal(model.noisy[1], model.noisy[0])


def test_without_initial_noise_the_first_noise_drawn_is_for_the_second_step():
    steps = sampler.trajectory(plain, torch.zeros(2, 3), [5., 1.], add_initial_noise=False, generator=seeded())
    (_, first, answer), (_, second, _) = steps
    assert torch.equal(first, torch.zeros(2, 3))
    torch.testing.assert_close(second, answer + math.sqrt(1 - 0.002**2) * torch.randn(2, 3, generator=seeded()))


# Interpolation

def test_ratio_one_gives_a_and_ratio_zero_gives_b():
    a, b, model = torch.full((3, 8), 2.), torch.full((3, 8), -1.), as_network(keeps)
    torch.testing.assert_close(sampler.interpolate(model, a, b, 1, [0.01], generator=seeded()), a, rtol=0, atol=0.06)
    torch.testing.assert_close(sampler.interpolate(model, a, b, 0, [0.01], generator=seeded()), b, rtol=0, atol=0.06)


def test_each_sample_may_have_its_own_ratio():
    a, b = (torch.rand(3, 8, generator=seeded(i)) for i in (1, 2))
    model, ratios = as_network(keeps), [1., 0.3, 0.]
    x = sampler.interpolate(model, a, b, torch.tensor(ratios), [0.5], generator=seeded())
    for i, ratio in enumerate(ratios):
        alone = sampler.interpolate(model, a, b, ratio, [0.5], generator=seeded())
        torch.testing.assert_close(x[i], alone[i])


def test_interpolation_of_a_sample_does_not_depend_on_its_neighbours():
    a, b = (torch.rand(4, 8, generator=seeded(i)) for i in (1, 2))
    crowd = a.clone()
    crowd[2] = 1e4
    x, y = (sampler.interpolate(plain, first, b, 0.4, SIGMAS, generator=seeded()) for first in (a, crowd))
    assert torch.equal(x[[0, 1, 3]], y[[0, 1, 3]])


def test_interpolation_is_spherical():
    """The formula of Shoemake (1985), sample by sample."""
    a, b = (torch.randn(5, 3, 4, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    for ratio in (0., 0.2, 0.5, 1.):
        for i, x in enumerate(slerp(a, b, ratio)):
            omega = math.acos((a[i] * b[i]).sum() / a[i].norm() / b[i].norm())
            expected = (math.sin(ratio * omega) * a[i] + math.sin((1 - ratio) * omega) * b[i]) / math.sin(omega)
            torch.testing.assert_close(x, expected)


def test_interpolation_keeps_the_length_of_noise():
    """A straight line would lose a third of it half way."""
    a, b = (torch.randn(4, 4096, generator=seeded(i)) for i in (1, 2))
    assert (slerp(a, b, 0.5).norm(dim=1) / 64 - 1).abs().max() < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", (0., 0.3, 0.5, 1.))
def test_identical_and_opposite_samples_interpolate_finitely(dtype, ratio):
    a = torch.randn(4, 6, generator=seeded()).to(dtype)
    assert slerp(a, -a, ratio).isfinite().all() and slerp(a, a * 0, ratio).isfinite().all()
    torch.testing.assert_close(slerp(a, a, ratio), a)
    for b in (a, -a): assert sampler.interpolate(plain, a, b, ratio, [80., 1.], generator=seeded()).isfinite().all()


@pytest.mark.parametrize("angle", (1e-8, 1e-4, 9e-4, 1.1e-3, math.pi - 1e-2, math.pi - 1.1e-3))
def test_nearly_parallel_samples_interpolate_smoothly(angle):
    a, b = torch.tensor([[1., 0.]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
    x = slerp(a, b, 0.25)
    torch.testing.assert_close(x, torch.tensor([[math.cos(0.75 * angle), math.sin(0.75 * angle)]]), rtol=0, atol=1e-3)


def test_interpolation_draws_its_own_noise_for_each_side():
    model = Listening()
    a, b = torch.zeros(2, 5), torch.zeros(2, 5)
    sampler.interpolate(model, a, b, 1., [3.], generator=seeded())
    sampler.interpolate(model, a, b, 0., [3.], generator=seeded())
    g = seeded()
    for noisy in model.noisy: torch.testing.assert_close(noisy, 3 * torch.randn(2, 5, generator=g))


def test_interpolation_passes_on_its_options():
    def model(x, sigma, scale): return scale * x
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    x, y = (sampler.interpolate(model, a, b, 0.5, SIGMAS, clip_denoised=True, generator=seeded(), **options)
            for options in ({"scale": 10.}, {"model_kwargs": {"scale": 10.}}))
    assert torch.equal(x, y) and x.abs().max() == 1


@pytest.mark.parametrize("ratio", (
    -0.1, 1.1, nan, inf, torch.tensor([0.5, 2.]), torch.tensor([0.5] * 3), torch.ones(2, 1), [0.1] * 3))
def test_bad_ratios_are_refused(ratio):
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="ab_ratio"): sampler.interpolate(plain, a, b, ratio, [1.])


@pytest.mark.parametrize("shape", ((2, 4), (3, 3), (2, 3, 1), (3,)))
def test_samples_of_different_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="same shape"):
        sampler.interpolate(plain, torch.zeros(2, 3), torch.zeros(shape), 0.5, [1.])


def test_bad_samples_and_levels_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="floating"): sampler.interpolate(plain, x.long(), x, 0.5, [1.])
    with pytest.raises(TypeError, match="tensor"): sampler.interpolate(plain, x, None, 0.5, [1.])
    with pytest.raises(ValueError, match="descend"): sampler.interpolate(plain, x, x, 0.5, [1., 2.])


# Types, autocast, progress

@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_the_type_of_the_reference_is_kept(dtype):
    y, network = torch.zeros(3, 2, dtype=dtype), shake(MLP(2, 16, 1)).to(dtype)
    mask = torch.tensor([0., 0.5])
    between = sampler.interpolate(network, y, y, 0.5, SIGMAS)
    for x in (sampler(network, y, SIGMAS), sampler(network, y, SIGMAS, mask), between):
        assert x.dtype == dtype and x.isfinite().all()
    assert all(noisy.dtype == x.dtype == dtype for _, noisy, x in sampler.trajectory(network, y, SIGMAS))


def test_sampling_works_under_autocast():
    networks = (shake(MLP(2, 16, 1)), torch.zeros(3, 2)), (shake(UNet(1, (8, 16))), torch.zeros(2, 1, 4, 4))
    for network, y in networks:
        with torch.autocast("cpu", dtype=torch.bfloat16): x = sampler(network, y, SIGMAS, generator=seeded())
        assert x.dtype == torch.float32 and x.isfinite().all()
        torch.testing.assert_close(x, sampler(network, y, SIGMAS, generator=seeded()), rtol=0, atol=0.05)


def test_a_verbose_trajectory_is_an_iterator_and_shows_the_level(capsys):
    steps = sampler.trajectory(plain, torch.zeros(2, 3), SIGMAS, verbose=True)
    assert next(steps)[0] == 80 and len(list(steps)) == 2
    assert "σ = 0.5" in capsys.readouterr().err


def test_a_network_may_work_in_place():
    relu, y = nn.ReLU(inplace=True), torch.randn(3, 4, generator=seeded())
    def through(layer): return sampler(lambda x, s: layer(x), y, [2.], start_from_y=True, add_initial_noise=False)
    before = y.clone()
    assert torch.equal(through(relu), through(nn.ReLU())) and torch.equal(y, before)


def test_verbose_shows_a_bar_and_changes_nothing_else(capsys):
    y = torch.zeros(2, 3)
    quiet = sampler(plain, y, SIGMAS, generator=seeded())
    assert capsys.readouterr() == ("", "")
    loud = sampler(plain, y, SIGMAS, verbose=True, generator=seeded())
    assert "3/3" in capsys.readouterr().err
    assert torch.equal(quiet, loud)


# Other errors

@pytest.mark.parametrize("y, error", (
    (None, TypeError), ([[1.]], TypeError), (torch.ones(2, 3, dtype=torch.long), TypeError),
    (torch.tensor(1.), ValueError)))
def test_a_bad_reference_is_refused(y, error):
    with pytest.raises(error, match="^y "): sampler(plain, y, SIGMAS)


@pytest.mark.parametrize("model, error", (
    (None, TypeError), ("net", TypeError), (lambda x, s: None, TypeError), (lambda x, s: x[:1], ValueError),
    (lambda x, s: x[..., None], ValueError)))
def test_a_bad_model_is_refused(model, error):
    with pytest.raises(error, match="model"): sampler(model, torch.zeros(2, 3), SIGMAS)


@pytest.mark.parametrize("settings, error", (
    ({"sigma_min": 0}, ValueError), ({"sigma_min": -1.}, ValueError), ({"sigma_data": 0.}, ValueError),
    ({"sigma_data": nan}, ValueError), ({"sigma_min": None}, TypeError), ({"sigma_data": "1"}, TypeError)))
def test_bad_settings_are_refused(settings, error):
    with pytest.raises(error, match=next(iter(settings))): ConsistencySamplingAndEditing(**settings)


# One fact in several places

WRAPPED = {
    "bare": lambda net, **kwargs: net, "arguments filled in": partial, "parallel": lambda net, **kwargs: nn.DataParallel(net),
    "compiled": lambda net, **kwargs: torch.compile(net), "its forward": lambda net, **kwargs: net.forward}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_sigma_data_that_contradicts_the_network_is_warned_of_once(wrap, monkeypatch):
    net = MLP(2, 16, 1, sigma_data=0.752)
    monkeypatch.setattr(torch, "compile", lambda model: torch._dynamo.OptimizedModule(model, torch._dynamo.disable()))   # wrapped as ever, not compiled
    wrapped, x = wrap(net), torch.zeros(4, 2)
    assert sigma_data_of(wrapped) == 0.752 and sigma_data_of(plain) is None
    for run in (lambda sigma_data: ConsistencySamplingAndEditing(sigma_data=sigma_data)(wrapped, x, SIGMAS),
                lambda sigma_data: ConsistencySamplingAndEditing(sigma_data=sigma_data).interpolate(wrapped, x, x + 1, 0.5, SIGMAS),
                lambda sigma_data: ConsistencyTraining(sigma_data=sigma_data)(wrapped, wrapped, x, 0, 1),
                lambda sigma_data: ImprovedConsistencyTraining(sigma_data=sigma_data)(wrapped, x, 0, 1)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run(0.752)
            assert said == []
            run(0.5)
        assert len(said) == 1 and "sigma_data is 0.5 here, but the network was built for 0.752" in str(said[0].message)


def test_editing_takes_sigma_data_from_a_network_whose_arguments_are_filled_in():
    net, x, y = from_pretrained("digits"), torch.zeros(2, 1, 8, 8), torch.tensor([3, 4])
    direct = inpaint(net, x, 1., [80.], generator=seeded(), class_labels=y)
    assert torch.equal(inpaint(partial(net, class_labels=y), x, 1., [80.], generator=seeded()), direct)


@pytest.mark.parametrize("value", (None, [0.5, 0.5], torch.ones(3), lambda: 0.5))
def test_a_sigma_data_that_is_no_number_is_none_of_ours(value):
    net = MLP(2, 16, 1)
    net.sigma_data, net.precondition = value, False
    assert sigma_data_of(net) is None and sampler(net, torch.zeros(4, 2), SIGMAS).isfinite().all()
