"""Multistep sampling and editing with masks and maps, the published class, interpolation."""

import math
import warnings
from functools import partial

import pytest
import torch
from conftest import seeded, shake
from torch import equal, nn
from torch.testing import assert_close

from consistency_models import (
    MLP,
    ConsistencyFunction,
    ConsistencySamplingAndEditing,
    Operator,
    UNet,
    consistency_function,
    gaussian_consistency_function,
    karras_schedule,
    slerp,
    trajectory,
)

SIGMAS = [80., 5., 0.5]
sampler = ConsistencySamplingAndEditing()
nan, inf = float("nan"), float("inf")


def plain(x, sigma):
    """A network that treats each value alone."""
    return x.tanh() + sigma.reshape(-1, *(1,) * (x.ndim - 1)) * 0.01


def knows(truth):
    """A consistency function that always answers `truth`."""
    return ConsistencyFunction(lambda x, sigma: truth)


def last(*args, **options):
    """The last answer of `trajectory`."""
    *_, (_, _, x) = trajectory(*args, **options)
    return x


def uniform(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=seeded(), dtype=dtype) * 2 - 1


class Listening:
    """A network that notes what it is given."""
    def __init__(self): self.noisy, self.levels, self.others = [], [], []

    def __call__(self, x, sigma, **others):
        self.noisy.append(x.clone())
        self.levels.append(sigma.tolist())
        self.others.append(others)
        return x.tanh()


# Equals the paper

def by_hand(network, y, sigmas, generator, mask=None, A=lambda x: x, A_inv=lambda x: x):
    """Algorithm 1 of Song et al. (2023), with a mask Algorithm 4, and the paper's coefficients."""
    low, data = 0.002, 0.5
    def f(x, s):
        c_skip = data**2 / ((s - low) ** 2 + data**2)
        c_out = data * (s - low) / math.sqrt(data**2 + s**2)
        return c_skip * x + c_out * network(x, torch.full((len(x),), s, dtype=x.dtype))
    def put_back(x): return x if mask is None else A_inv(torch.where(mask == 0, A(y), A(x)))
    x, steps = put_back(torch.zeros_like(y)), []
    for i, s in enumerate(sigmas):
        z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        noisy = x + math.sqrt(s**2 - (low**2 if i else 0)) * z
        x = put_back(f(noisy, s))
        steps.append((noisy, x))
    return steps


@pytest.mark.parametrize("shape, sigmas", (
    ((5,), [80.]), ((4, 3), [80., 24.4, 5.84, 0.9, 0.661]), ((2, 3, 2, 4, 4), [3., 0.002])))
def test_sampling_is_algorithm_1_step_for_step(shape, sigmas):
    y = torch.zeros(shape, dtype=torch.float64)
    steps = list(trajectory(plain, y, sigmas, clip_denoised=False, generator=seeded(7)))
    assert [s for s, _, _ in steps] == sigmas
    expected = by_hand(plain, y, sigmas, seeded(7))
    for (_, noisy, denoised), expected in zip(steps, expected, strict=True):
        assert_close((noisy, denoised), expected, rtol=1e-13, atol=1e-13)


def flipped(x): return x.flip(1)


@pytest.mark.parametrize("maps", ((), (flipped, flipped)), ids=("pixels", "other coordinates"))
def test_editing_is_algorithm_4_step_for_step(maps):
    y, mask = uniform(4, 3, dtype=torch.float64), torch.tensor([0., 1., 1.])
    operator, expected = Operator(mask, *maps), by_hand(plain, y, SIGMAS, seeded(7), mask, *maps)
    steps = trajectory(plain, y, SIGMAS, operator, clip_denoised=False, generator=seeded(7))
    for (_, noisy, x), expected in zip(steps, expected, strict=True):
        assert_close((noisy, x), expected, rtol=1e-13, atol=1e-13)


def test_algorithms_1_and_4_around_a_consistency_function_bit_for_bit():
    f, y, g = consistency_function(plain), uniform(4, 3), seeded(7)
    x = 80. * torch.randn(4, 3, generator=g)
    for s in (80., 5., 0.5):
        if s < 80: x = x + math.sqrt(s**2 - 0.002**2) * torch.randn(4, 3, generator=g)
        x = f(x, s)
    assert equal(last(f, y, SIGMAS, clip_denoised=False, generator=seeded(7)), x)

    mask, g = torch.tensor([0., 1., 1.]), seeded(7)
    x = torch.where(mask == 0, y, 0.) + 80. * torch.randn(4, 3, generator=g)
    for s in (80., 5., 0.5):
        if s < 80: x = x + math.sqrt(s**2 - 0.002**2) * torch.randn(4, 3, generator=g)
        x = torch.where(mask == 0, y, f(x, s))
    assert equal(last(f, y, SIGMAS, Operator(mask), clip_denoised=False, generator=seeded(7)), x)


def test_later_noise_adds_to_the_smallest_level_in_squares():
    """With N(0, 0.5^2) and a large smallest level, samples have variance 0.5^2 + 0.3^2."""
    f = ConsistencyFunction(partial(gaussian_consistency_function, sigma_min=0.3), sigma_min=0.3)
    y, sigmas = torch.empty(20_000, 1), [80., 2., 1., 0.5]
    steps = list(trajectory(f, y, sigmas, clip_denoised=False, generator=seeded()))
    for _, _, x in steps: assert abs(x.var() - 0.34) < 0.012
    for (_, _, before), (sigma, noisy, _) in zip(steps, steps[1:]):
        assert (noisy - before).std() == pytest.approx(math.sqrt(sigma**2 - 0.3**2), rel=0.02)


@pytest.mark.parametrize("schedule, dtype, tolerance", (
    (torch.float32, torch.float32, 1e-5), (torch.bfloat16, torch.bfloat16, 1e-2),
    (torch.float16, torch.float64, 1e-12)))
def test_a_perfect_model_gives_back_the_truth_over_a_whole_schedule(schedule, dtype, tolerance):
    truth, sigmas = uniform(3, 4).to(dtype), karras_schedule(40, dtype=schedule).flip(0)
    x = last(knows(truth), truth, sigmas, generator=seeded())
    assert x.dtype == dtype
    assert_close(x, truth, rtol=0, atol=tolerance)
    net = shake(MLP(4, 16, 1)).to(dtype)
    assert sampler(net, truth, sigmas, generator=seeded()).isfinite().all()


def test_a_step_at_sigma_min_changes_nothing():
    y = uniform(4, 3)
    assert equal(sampler(plain, y, [0.002], start_from_y=True, add_initial_noise=False), y)


def test_slerp_is_the_formula_of_shoemake():
    a, b = (torch.randn(5, 3, 4, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    for weight in (0., 0.2, 0.5, 1.):
        for i, x in enumerate(slerp(a, b, weight)):
            omega = math.acos((a[i] * b[i]).sum() / a[i].norm() / b[i].norm())
            shares = (math.sin(w * omega) / math.sin(omega) for w in (1 - weight, weight))
            assert_close(x, sum(share * end for share, end in zip(shares, (a[i], b[i]))))


def test_the_published_interpolation_mixes_two_noisy_samples_and_jumps():
    """`ab_ratio` is the share of a; each side has its own noise, and the mixture gets no more."""
    a, b, g = uniform(3, 8), uniform(3, 8).flip(0), seeded(5)
    noisy_a, noisy_b = (x + 3. * torch.randn(3, 8, generator=g) for x in (a, b))
    f = consistency_function(plain)
    for share in (1., 0.3, 0.):
        mixed = slerp(noisy_b, noisy_a, share)
        assert_close(mixed, slerp(noisy_a, noisy_b, 1 - share))
        x = sampler.interpolate(plain, a, b, share, [3.], generator=seeded(5))
        assert equal(x, f(mixed, 3.))
        if share == 1: assert_close(x, f(noisy_a, 3.))


# Keeps its promises

def test_a_trajectory_yields_level_noisy_input_and_answer_and_ends_with_the_sample():
    y = torch.zeros(4, 3)
    steps = list(trajectory(plain, y, SIGMAS, clip_denoised=False, generator=seeded()))
    assert all(type(s) is float and noisy.shape == x.shape == y.shape for s, noisy, x in steps)
    assert equal(steps[-1][2], sampler(plain, y, SIGMAS, generator=seeded()))


def test_a_trajectory_works_only_when_asked():
    net = Listening()
    steps = trajectory(net, torch.zeros(2, 3), SIGMAS)
    assert net.levels == []
    next(steps)
    assert net.levels == [[80., 80.]]


def test_the_model_sees_one_level_for_each_sample():
    net = Listening()
    sampler(net, torch.zeros(4, 3), [80., 5., 0.25])
    assert net.levels == [[s] * 4 for s in (80., 5., 0.25)]


def test_answers_are_clamped_except_in_the_published_class():
    y = torch.zeros(4, 3)
    def loud(x, sigma): return 10 * x
    assert all(x.abs().max() == 1 for _, _, x in trajectory(loud, y, SIGMAS, generator=seeded()))
    assert last(loud, y, SIGMAS, clip_denoised=False, generator=seeded()).abs().max() > 1
    for run in (partial(sampler, loud, y), partial(sampler.interpolate, loud, y, y, 0.5)):
        assert run(SIGMAS, generator=seeded()).abs().max() > 1
        assert run(SIGMAS, clip_denoised=True, generator=seeded()).abs().max() == 1


def test_clamping_leaves_known_values_alone():
    x = last(plain, torch.full((2, 3), 4.), SIGMAS, Operator(torch.tensor([0., 1., 1.])))
    assert (x[:, 0] == 4).all() and (x[:, 1:].abs() <= 1).all()


def test_the_reference_does_not_matter_for_plain_sampling():
    references = torch.zeros(4, 3), torch.full((4, 3), nan)
    assert equal(*(last(plain, y, SIGMAS, generator=seeded()) for y in references))


def test_a_consistency_function_and_its_network_give_the_same():
    net, y = shake(MLP(3, 16, 1, sigma_data=0.8)), uniform(4, 3)
    f, mask = consistency_function(net), torch.tensor([0., 0.5, 1.])
    assert equal(last(net, y, SIGMAS, Operator(mask), generator=seeded()),
                       last(f, y, SIGMAS, Operator(mask), generator=seeded()))
    own = ConsistencySamplingAndEditing(sigma_data=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")     # a consistency function knows its sigma_data itself
        x = sampler(f, y, SIGMAS, mask, generator=seeded())
        assert equal(x, own(net, y, SIGMAS, mask, generator=seeded()))
        assert equal(sampler.interpolate(f, y, -y, 0.3, SIGMAS, generator=seeded()),
                           own.interpolate(net, y, -y, 0.3, SIGMAS, generator=seeded()))


def test_the_smallest_level_belongs_to_the_consistency_function():
    f, y = consistency_function(plain, sigma_min=0.1), torch.zeros(4, 3)
    expected = ConsistencySamplingAndEditing(sigma_min=0.1)(plain, y, SIGMAS, generator=seeded())
    assert equal(sampler(f, y, SIGMAS, generator=seeded()), expected)
    x = last(plain, y, SIGMAS, clip_denoised=False, generator=seeded(), sigma_min=0.1)
    assert equal(x, expected)


def test_settings_of_the_published_class_reach_the_skip_parameterization():
    f, noisy = consistency_function(plain, 2., 0.1), 5 * torch.randn(4, 3, generator=seeded())
    other = ConsistencySamplingAndEditing(sigma_min=0.1, sigma_data=2.)
    assert equal(other(plain, torch.zeros(4, 3), [5.], generator=seeded()), f(noisy, 5.))


def test_further_arguments_reach_the_network():
    net, y, labels = Listening(), torch.zeros(2, 3), torch.tensor([1, 2])
    last(net, y, [5.], class_labels=labels)
    sampler(net, y, [5.], class_labels=labels, scale=3)
    sampler.interpolate(net, y, y, 0.5, [5.], class_labels=labels)
    assert all(o["class_labels"] is labels for o in net.others)
    assert [o.get("scale") for o in net.others] == [None, 3, None]


WRAPPED = {
    "arguments filled in": partial, "parallel": nn.DataParallel,
    "its forward": lambda net: net.forward,
    "compiled": lambda net: torch._dynamo.OptimizedModule(net, torch._dynamo.disable())}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_network_keeps_its_sigma_data(wrap):
    net, y = shake(MLP(2, 16, 1, sigma_data=0.752)), torch.zeros(4, 2)
    x, wrapped = last(net, y, SIGMAS, generator=seeded()), wrap(net)
    assert equal(last(wrapped, y, SIGMAS, generator=seeded()), x)
    assert not equal(last(lambda *a: net(*a), y, SIGMAS, generator=seeded()), x)    # does not say
    for run in (lambda s: s(wrapped, y, SIGMAS),
                lambda s: s.interpolate(wrapped, y, y + 1, 0.5, SIGMAS)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run(ConsistencySamplingAndEditing(sigma_data=0.752))
            assert said == []
            run(sampler)
        message, = (str(warning.message) for warning in said)
        assert "sigma_data is 0.5 here, but the network was built for 0.752" in message


def test_levels_come_as_any_iterable_of_numbers():
    y, levels = torch.zeros(2, 3), [80, 8, 1]
    for kind in (tuple, iter, torch.tensor, lambda s: torch.tensor(s).double(),
                 lambda s: [float(v) for v in s], lambda s: [torch.tensor(v) for v in s]):
        assert equal(*(sampler(plain, y, s, generator=seeded()) for s in (levels, kind(levels))))
        assert equal(*(sampler.interpolate(plain, y, y, 0.5, s, generator=seeded())
                       for s in (levels, kind(levels))))


def test_a_level_may_fall_short_of_the_smallest_by_rounding():
    y = torch.zeros(2, 3)
    for sigmas in ([80., 0.002 * (1 - 1e-7)], [0.002 * (1 + 1e-12), 0.002], [1e5, 0.002]):
        assert sampler(plain, y, sigmas).isfinite().all()


def test_no_graph_is_built_and_the_grad_mode_is_left_alone():
    net, y = shake(MLP(3, 16, 1)), torch.zeros(4, 3, requires_grad=True)
    soft = Operator(torch.tensor([0., 1., 0.5]))
    for options in ({}, {"operator": soft}, {"start_from_y": True, "add_initial_noise": False},
                    {"operator": soft, "add_initial_noise": False}):
        for _, noisy, x in trajectory(net, y, SIGMAS, **options):
            assert noisy.grad_fn is None and x.grad_fn is None and torch.is_grad_enabled()
    assert not sampler.interpolate(net, y, y, 0.5, SIGMAS).requires_grad


def test_a_generator_makes_sampling_reproducible_and_leaves_the_global_one_alone():
    y, before = torch.zeros(4, 3), torch.get_rng_state()
    a, b, c = (sampler(plain, y, SIGMAS, generator=seeded(s)) for s in (1, 1, 2))
    assert equal(a, b) and not equal(a, c)
    d, e = (sampler.interpolate(plain, y, y, 0.5, SIGMAS, generator=seeded(1)) for _ in range(2))
    assert equal(d, e) and equal(before, torch.get_rng_state())


def test_noise_comes_from_the_global_generator_by_default():
    y, results = torch.zeros(4, 3), []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(sampler(plain, y, SIGMAS))
    assert equal(*results) and not equal(results[0], sampler(plain, y, SIGMAS))


REFERENCE = torch.tensor([[0.3, -0., 1e-30, -7.], [0.1, 3e38, -1e-45, 0.7]])
MASKS = (
    torch.tensor([0., 0., 1., 0.]), torch.tensor([False, False, True, False]), [0, 0, 1, 0],
    torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]), torch.tensor([[0.], [1.]], dtype=torch.float64),
    0, torch.tensor(1.))


def test_known_values_come_back_bit_for_bit_with_masks_of_all_kinds():
    for mask in MASKS:
        x = sampler(plain, REFERENCE, SIGMAS, mask, generator=seeded())
        known = (torch.as_tensor(mask) == 0).expand(2, 4)
        assert equal(x[known].view(torch.int32), REFERENCE[known].view(torch.int32))
        assert not (x[~known] == REFERENCE[~known]).any()


@pytest.mark.parametrize("dtype, shape, mask", (
    (torch.bfloat16, (3, 2, 4, 4), uniform(1, 4, 4) < 0),
    (torch.float64, (2, 3, 2, 4, 4), uniform(3, 2, 4, 4).clamp(0, 1)),
    (torch.float16, (4, 5), torch.tensor([0, 1, 1, 0, 1]))), ids=("bfloat16", "float64", "float16"))
def test_known_values_and_types_are_kept_in_every_precision_and_rank(dtype, shape, mask):
    y = (3 * uniform(*shape)).to(dtype)
    x = last(plain, y, SIGMAS, Operator(mask), clip_denoised=False)
    known = (mask == 0).expand(shape)
    assert x.dtype == dtype and x.shape == shape
    assert x.isfinite().all() and equal(x[known], y[known])


def test_what_stands_under_the_mask_does_not_matter():
    mask, y = torch.tensor([0., 1., 1., 0.]), uniform(3, 4)
    x = sampler(plain, y, SIGMAS, mask, generator=seeded())
    for filler in (nan, inf, 3e38):
        filled = torch.where(mask == 1, filler, y)
        assert equal(sampler(plain, filled, SIGMAS, mask, generator=seeded()), x)


def test_a_mask_of_ones_is_plain_sampling():
    y = uniform(3, 4)
    x = sampler(plain, y, SIGMAS, torch.ones(4), generator=seeded())
    assert equal(x, sampler(plain, y, SIGMAS, generator=seeded()))


def test_a_soft_mask_mixes_from_the_start_on():
    truth, y, mask = torch.full((2, 3), 0.8), torch.full((2, 3), -0.4), torch.tensor([0., 0.25, 1.])
    (_, noisy, x), = trajectory(knows(truth), y, [5.], Operator(mask), generator=seeded())
    assert_close(noisy, y * (1 - mask) + 5 * torch.randn(2, 3, generator=seeded()))
    assert_close(x, torch.tensor([-0.4, 0.75 * -0.4 + 0.25 * 0.8, 0.8]).expand(2, 3))


def test_editing_leaves_its_inputs_alone():
    y, mask = uniform(2, 3), torch.tensor([0., 0.5, 1.])
    before = y.clone(), mask.clone()
    sampler(plain, y, SIGMAS, mask, start_from_y=True)
    sampler.interpolate(plain, y, y, 0.5, SIGMAS)
    assert equal(y, before[0]) and equal(mask, before[1])


def test_a_map_may_change_the_shape_in_which_the_mask_is_given():
    truth, y = torch.zeros(3, 4), torch.tensor([1., 2., 3., 4.]).expand(3, 4)
    x = sampler(knows(truth), y, SIGMAS, torch.tensor([[0.], [1.]]),
                lambda x: x.reshape(len(x), 2, 2), lambda x: x.reshape(len(x), 4))
    assert_close(x, torch.tensor([1., 2., 0., 0.]).expand(3, 4))


def test_no_map_is_called_without_a_mask():
    def fails(x): raise AssertionError("not to be called")
    assert sampler(plain, torch.zeros(2, 3), SIGMAS, None, fails, fails).isfinite().all()


def test_start_from_y_adds_noise_to_all_of_it_despite_a_mask():
    y, z = torch.full((2, 3), 50.), torch.randn(2, 3, generator=seeded())
    for operator in (None, Operator(torch.tensor([0., 1., 1.]))):
        (_, noisy, _), = trajectory(plain, y, [5.], operator, start_from_y=True, generator=seeded())
        assert_close(noisy, y + 5 * z)


def test_without_initial_noise_the_first_noise_is_that_of_the_second_step():
    y = uniform(2, 3)
    for start, options in ((y, {"start_from_y": True}), (torch.zeros(2, 3), {})):
        (_, first, x), (_, second, _) = trajectory(
            plain, y, [5., 1.], add_initial_noise=False, generator=seeded(), **options)
        assert equal(first, start)
        z = torch.randn(2, 3, generator=seeded())
        assert_close(second, x + math.sqrt(1 - 0.002**2) * z)


def test_samples_of_a_batch_do_not_influence_each_other():
    y = uniform(4, 3)
    other = y.clone()
    other[2] = 1e4
    for run in (lambda y, **o: sampler(plain, y, SIGMAS, torch.tensor([0., 1., 0.5]), **o),
                lambda y, **o: sampler(plain, y, SIGMAS, start_from_y=True, **o),
                lambda y, **o: sampler.interpolate(plain, y, torch.ones(4, 3), 0.4, SIGMAS, **o)):
        a, b = run(y, generator=seeded()), run(other, generator=seeded())
        assert equal(a[[0, 1, 3]], b[[0, 1, 3]]) and not equal(a[2], b[2])


def test_each_sample_may_have_its_own_weight():
    a, b = uniform(3, 8), uniform(3, 8).flip(0)
    for weights in (torch.tensor([1., 0.3, 0.]), [1, 0.3, 0]):
        x = slerp(a, b, weights)
        assert_close(x, torch.stack([slerp(a, b, w)[i] for i, w in enumerate((1., 0.3, 0.))]))
    one, two = (sampler.interpolate(plain, a, b, ratio, [0.5], generator=seeded())
                for ratio in (torch.tensor([1., 0.3, 0.]), 0.3))
    assert_close(one[1], two[1])


def test_slerp_leads_from_a_to_b_and_keeps_the_length_of_noise():
    a, b = (torch.randn(4, 4096, generator=seeded(i)) for i in (1, 2))
    assert_close((slerp(a, b, 0.), slerp(a, b, 1)), (a, b))
    assert (slerp(a, b, 0.5).norm(dim=1) / 64 - 1).abs().max() < 0.05


def test_identical_and_opposite_samples_interpolate_finitely_in_their_type():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a = torch.randn(4, 6, generator=seeded()).to(dtype)
        for b in (a, -a, 0 * a, 0 * a + 1):
            for x in (slerp(a, b, 0.3), sampler.interpolate(plain, a, b, 0.3, [80., 1.])):
                assert x.dtype == dtype and x.shape == a.shape and x.isfinite().all()
        assert_close(slerp(a, a, 0.3), a)


def test_nearly_parallel_samples_interpolate_smoothly():
    for angle in (1e-8, 9e-4, 1.1e-3, math.pi - 1.1e-3):
        a, b = torch.tensor([[1., 0.]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
        expected = torch.tensor([[math.cos(0.75 * angle), math.sin(0.75 * angle)]])
        assert_close(slerp(a, b, 0.75), expected, rtol=0, atol=1e-3)


def test_batches_without_samples_and_samples_without_values_pass():
    for shape in ((0, 3), (3, 0)):
        y = torch.zeros(shape)
        for x in (last(plain, y, SIGMAS), sampler(plain, y, SIGMAS, 1.),
                  sampler.interpolate(plain, y, y, 0.5, SIGMAS)):
            assert x.shape == shape


def test_sampling_works_under_autocast():
    for net, shape in ((shake(MLP(2, 16, 1)), (3, 2)), (shake(UNet(1, (8, 16))), (2, 1, 4, 4))):
        y = torch.zeros(shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = last(net, y, SIGMAS, generator=seeded())
        assert x.dtype == torch.float32
        assert_close(x, last(net, y, SIGMAS, generator=seeded()), rtol=0, atol=0.05)


def test_a_network_may_work_in_place():
    y = uniform(3, 4)
    before = y.clone()
    def through(layer):
        options = {"start_from_y": True, "add_initial_noise": False, "generator": seeded()}
        return list(trajectory(lambda x, sigma: layer(x), y, SIGMAS, **options))
    for one, two in zip(through(nn.ReLU(inplace=True)), through(nn.ReLU())):
        assert all(map(equal, one[1:], two[1:])) and equal(y, before)


def test_verbose_shows_the_level_and_changes_nothing_else(capsys):
    y = torch.zeros(2, 3)
    quiet = sampler(plain, y, SIGMAS, generator=seeded())
    assert capsys.readouterr() == ("", "")
    assert equal(sampler(plain, y, SIGMAS, verbose=True, generator=seeded()), quiet)
    sampler.interpolate(plain, y, y, 0.5, iter(SIGMAS), verbose=True)
    shown = capsys.readouterr().err
    assert shown.count("3/3") == 2 and shown.count("σ = 0.5") >= 2


# Refuses

def test_bad_levels_are_refused_before_the_first_step_is_asked_for():
    a, b = torch.zeros(2, 2, 3)
    for kind in (list, torch.tensor, iter):
        for sigmas in ([], [0.8, 80.], [80., 80.], [80., 0.001], [-1.], [80., nan], [inf]):
            with pytest.raises(ValueError, match="sigmas"): trajectory(plain, a, kind(sigmas))
            with pytest.raises(ValueError, match="sigmas"):
                sampler.interpolate(plain, a, b, 0.5, kind(sigmas))


def test_a_refused_schedule_says_how_to_turn_it_and_whose_smallest_level_counts():
    y, f = torch.zeros(2, 3), consistency_function(plain, sigma_min=0.1)
    with pytest.raises(ValueError, match="flip"): sampler(plain, y, karras_schedule(10))
    with pytest.raises(ValueError, match=r"sigma_min = 0\.1"): trajectory(f, y, [80., 0.05])
    other = ConsistencySamplingAndEditing(sigma_min=0.1)
    with pytest.raises(ValueError, match=r"sigma_min = 0\.1"): other(plain, y, [80., 0.05])
    with pytest.raises(ValueError, match=r"sigma_min = 0\.1"):
        other.interpolate(plain, y, y, 0.5, [80., 0.05])


def test_levels_that_are_no_list_of_numbers_are_refused():
    for sigmas in (None, 80., "80", [80., "0.8"], [True], torch.ones(2, 2)):
        with pytest.raises(TypeError, match="sigmas"): trajectory(plain, torch.zeros(2, 3), sigmas)


def test_a_mask_that_does_not_fit_or_leaves_zero_to_one_is_refused():
    y = torch.zeros(2, 3)
    for shape in ((4,), (3, 3), (1, 2, 3), (0,)):
        with pytest.raises(ValueError, match="^mask of shape"):
            sampler(plain, y, SIGMAS, torch.ones(shape))
    for value in (2., -0.1, nan, 255):
        with pytest.raises(ValueError, match="^mask must lie between 0"):
            sampler(plain, y, SIGMAS, [0, value, 1])
    for mask in ("a", torch.ones(3) * 1j):
        with pytest.raises(TypeError, match="^mask"): sampler(plain, y, SIGMAS, mask)


X, KEPT = torch.zeros(2, 3), knows(torch.zeros(2, 3))
BAD = {     # calls with one bad argument, the error, and what its message says
    "reference": (
        (lambda: trajectory(plain, None, SIGMAS), TypeError, "^y must be a torch tensor"),
        (lambda: sampler(plain, [[1.]], SIGMAS), TypeError, "^y must be a torch tensor"),
        (lambda: trajectory(plain, X.long(), SIGMAS), TypeError, "^y must be a floating"),
        (lambda: trajectory(plain, torch.tensor(1.), SIGMAS), ValueError, "^y must have shape")),
    "network": (
        (lambda: trajectory(None, X, SIGMAS), TypeError, "callable as net"),
        (lambda: sampler(lambda x, s: None, X, SIGMAS), ValueError, "network must return"),
        (lambda: sampler(lambda x, s: x[:1], X, SIGMAS), ValueError, "network must return"),
        (lambda: trajectory(KEPT, X, SIGMAS, class_labels=1), TypeError, "class_labels"),
        (lambda: sampler(KEPT, X, SIGMAS, class_labels=1), TypeError, "class_labels")),
    "operator": (
        (lambda: trajectory(plain, X, SIGMAS, torch.ones(3)), TypeError, "^operator must be"),
        (lambda: sampler(plain, X, SIGMAS, 1., lambda x: None),
         TypeError, "result of transform_fn"),
        (lambda: sampler(plain, X, SIGMAS, 1., inverse_transform_fn=lambda x: None),
         TypeError, "inverse_transform_fn"),
        (lambda: sampler(plain, X, SIGMAS, 1., inverse_transform_fn=lambda x: x[:1]),
         ValueError, "inverse_transform_fn")),
    "settings": (
        (lambda: ConsistencySamplingAndEditing(sigma_min=-1.), ValueError, "sigma_min"),
        (lambda: ConsistencySamplingAndEditing(sigma_data=0.), ValueError, "sigma_data"),
        (lambda: ConsistencySamplingAndEditing(sigma_data="1"), TypeError, "sigma_data"),
        (lambda: sampler(plain, X, SIGMAS, generator=3),
         TypeError, "generator must be a torch.Generator")),
    "weight": (
        (lambda: slerp(X, X, 1.1), ValueError, "^weight must lie"),
        (lambda: sampler.interpolate(plain, X, X, -0.1, [1.]), ValueError, "^ab_ratio must lie"),
        (lambda: sampler.interpolate(plain, X, X, nan, [1.]), ValueError, "^ab_ratio must lie"),
        (lambda: sampler.interpolate(plain, X, X, [0.5] * 3, [1.]),
         ValueError, "^ab_ratio must be one"),
        (lambda: sampler.interpolate(plain, X, X, torch.ones(2, 1), [1.]),
         ValueError, "^ab_ratio must be one"),
        (lambda: sampler.interpolate(plain, X, X, "a", [1.]), TypeError, "^ab_ratio")),
    "ends of an interpolation": (
        (lambda: slerp(X.long(), X.long(), 0.5), TypeError, "^a must be a floating"),
        (lambda: sampler.interpolate(plain, X, X[:1], 0.5, [1.]), ValueError, "same shape"),
        (lambda: sampler.interpolate(plain, X, None, 0.5, [1.]),
         TypeError, "^b must be a torch tensor")),
}


@pytest.mark.parametrize("calls", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(calls):
    for call, error, message in calls:
        with pytest.raises(error, match=message): call()
