"""Zero-shot editing: operators, tasks, exactness, and errors."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consistency_models import (
    LUMINANCE,
    MLP,
    ConsistencySamplingAndEditing,
    Operator,
    as_network,
    color_shapes,
    colorization,
    colorize,
    denoise,
    edit,
    editing_sigmas,
    in_basis,
    inpaint,
    interpolate_latents,
    join_patches,
    karras_schedule,
    model_forward_wrapper,
    orthogonal_basis,
    outpaint,
    preset_mask,
    slerp,
    split_patches,
    stroke_to_image,
    super_resolution,
    super_resolve,
)

SIGMAS = [80., 5., 0.5]


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def plain(x, sigma):
    """A network that treats each value alone."""
    return x.tanh() + sigma.reshape(-1, *(1,) * (x.ndim - 1)) * 0.01


def knows(truth):
    """A network whose consistency function always answers `truth`."""
    return as_network(lambda x, sigma: truth)


def uniform(*shape, dtype=torch.float32): return torch.rand(shape, generator=seeded(), dtype=dtype) * 2 - 1


def grey(x): return (x * torch.tensor(LUMINANCE, dtype=x.dtype).view(3, 1, 1)).sum(1, keepdim=True)


def means(x, factor): return split_patches(x, factor).mean(-1)


def low_frequencies(size, keep):
    """A user's own operator: of square images the slowest cosine waves are known."""
    i = torch.arange(size, dtype=torch.float64)
    waves = (math.pi / size * (i + 0.5) * i[:, None]).cos() * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    mask = torch.ones(size, size)
    mask[:keep, :keep] = 0
    return Operator(mask, lambda x: waves.to(x) @ x @ waves.T.to(x), lambda u: waves.T.to(u) @ u @ waves.to(u))


half = torch.tensor([0., 0., 1., 1.]).view(4, 1).expand(4, 4)

# A perfect model: each task gives back the truth

TASKS = {
    "inpaint": (lambda net, x, **o: inpaint(net, torch.where(half == 1, -0.3, x), half, SIGMAS, **o), (5, 3, 4, 4)),
    "outpaint": (lambda net, x, **o: outpaint(net, x[..., 1:-1, 1:-1], 1, SIGMAS, **o), (5, 3, 4, 4)),
    "outpaint below": (lambda net, x, **o: outpaint(net, x[..., :-2, :], (0, 0, 0, 2), SIGMAS, **o), (5, 3, 4, 4)),
    "colorize": (lambda net, x, **o: colorize(net, grey(x), SIGMAS, **o), (5, 3, 4, 4)),
    "super_resolve": (lambda net, x, **o: super_resolve(net, means(x, 2), 2, SIGMAS, **o), (5, 3, 4, 4)),
    "super_resolve by 3": (lambda net, x, **o: super_resolve(net, means(x, 3), 3, SIGMAS, **o), (5, 1, 6, 9)),
    "super_resolve 1-d": (lambda net, x, **o: super_resolve(net, means(x, 4), 4, SIGMAS, **o), (5, 2, 8)),
    "super_resolve 3-d": (lambda net, x, **o: super_resolve(net, means(x, 2), 2, SIGMAS, **o), (5, 1, 4, 2, 6)),
    "low frequencies": (lambda net, x, **o: edit(net, x, low_frequencies(4, 2), SIGMAS, **o), (5, 3, 4, 4)),
    "denoise": (lambda net, x, **o: denoise(net, x + 0.5, 0.5, **o), (5, 3, 4, 4)),
    "stroke_to_image": (lambda net, x, **o: stroke_to_image(net, x, **o), (5, 3, 4, 4)),
    "interpolate_latents": (lambda net, x, **o: interpolate_latents(net, x, x.flip(-1), 0.3, **o), (5, 3, 4, 4)),
}
each_task = pytest.mark.parametrize("task, shape", TASKS.values(), ids=TASKS)


@each_task
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-5), (torch.float64, 1e-12)))
def test_a_perfect_model_gives_back_the_truth(task, shape, dtype, tolerance):
    truth = uniform(*shape, dtype=dtype)
    x = task(knows(truth), truth, generator=seeded())
    assert x.dtype == dtype
    torch.testing.assert_close(x, truth, rtol=0, atol=tolerance)


@each_task
def test_samples_of_a_batch_do_not_influence_each_other(task, shape):
    x = uniform(*shape)
    other = x.clone()
    other[2] = -0.9 * x[2]
    a, b = (task(plain, reference, generator=seeded()) for reference in (x, other))
    assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]]) and not torch.equal(a[2], b[2])


@each_task
def test_a_trajectory_ends_in_the_result(task, shape):
    x = uniform(*shape)
    steps = list(task(plain, x, generator=seeded(), trajectory=True))
    assert torch.equal(steps[-1][2], task(plain, x, generator=seeded())) and len(steps) in (1, 2, 3)
    assert [s for s, _, _ in steps] == sorted((s for s, _, _ in steps), reverse=True)


@each_task
def test_answers_are_clamped_unless_told_otherwise(task, shape):
    x = 0.9 * uniform(*shape)
    def loud(x, sigma): return 100 * torch.arange(x.numel()).sin().view_as(x)
    assert task(loud, x, generator=seeded()).abs().max() < 3.5
    assert task(loud, x, generator=seeded(), clip_denoised=False).abs().max() > 5


@each_task
def test_model_arguments_sampler_and_generator_arrive(task, shape):
    heard = []
    def model(x, sigma, scale):
        heard.append(scale)
        return scale * x
    x, sampler = uniform(*shape), ConsistencySamplingAndEditing(sigma_min=0.1, sigma_data=1.)
    a, b = (task(model, x, generator=seeded(), sampler=sampler, **given) for given in ({"scale": 2.}, {"model_kwargs": {"scale": 2.}}))
    assert torch.equal(a, b) and set(heard) == {2.}
    assert not torch.equal(a, task(model, x, generator=seeded(), scale=2.))


@each_task
def test_editing_leaves_its_input_alone_and_keeps_bfloat16(task, shape):
    x = uniform(*shape).bfloat16()
    before = x.clone()
    assert task(plain, x, generator=seeded()).dtype == torch.bfloat16 and torch.equal(x, before)


# What is known comes back, whatever the model answers

def test_inpainting_keeps_known_values_bit_for_bit():
    x = uniform(5, 3, 4, 4)
    y = inpaint(plain, torch.where(half == 1, math.nan, x).nan_to_num(9.), half, generator=seeded())
    assert torch.equal(y[..., :2, :], x[..., :2, :])


def test_outpainting_keeps_the_middle_bit_for_bit():
    x = uniform(2, 3, 4, 6)
    y = outpaint(plain, x, (1, 2, 3, 0), generator=seeded())
    assert y.shape == (2, 3, 7, 9) and torch.equal(y[..., 3:, 1:-2], x)
    assert outpaint(plain, uniform(2, 1, 5), 2).shape == (2, 1, 9)


def test_colouring_keeps_the_luminance():
    gray = uniform(4, 1, 8, 8)
    torch.testing.assert_close(grey(colorize(plain, gray, generator=seeded())), gray, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape, factor", (((2, 3, 4, 4), 2), ((2, 1, 2, 3), 4), ((2, 1, 5), 3), ((1, 1, 2, 3, 2), 2)))
def test_super_resolution_keeps_the_means(shape, factor):
    low = uniform(*shape)
    x = super_resolve(plain, low, factor, generator=seeded())
    assert x.shape == (*shape[:2], *(n * factor for n in shape[2:]))
    torch.testing.assert_close(means(x, factor), low, rtol=0, atol=1e-6)


# Operators

@pytest.mark.parametrize("first", (LUMINANCE, torch.ones(4), torch.ones(9), torch.ones(64), [-1., 2.], [3.], [0., 1., 0.]))
def test_a_basis_is_orthogonal_and_starts_in_the_given_direction(first):
    q, wanted = orthogonal_basis(first), torch.as_tensor(first).double()
    torch.testing.assert_close(q.T @ q, torch.eye(len(wanted), dtype=torch.float64))
    torch.testing.assert_close(q[:, 0], wanted / wanted.norm())


def test_the_luminance_axis_is_that_of_the_paper():
    printed = [0.4471, 0.8780, 0.1705]   # appendix D of Song et al. (2023)
    torch.testing.assert_close(orthogonal_basis(LUMINANCE)[:, 0].tolist(), printed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("first", ([0., 0.], [], [[1., 2.]], [math.nan, 1.], [math.inf, 1.]))
def test_a_basis_needs_a_direction(first):
    with pytest.raises(ValueError, match="first must be a direction"): orthogonal_basis(first)


@pytest.mark.parametrize("operator, shape", (
    (colorization(), (2, 3, 4, 5)), (super_resolution(2), (2, 3, 4, 6)), (super_resolution(3), (2, 1, 6, 9)),
    (super_resolution(4, dims=1), (2, 3, 8)), (super_resolution(2, dims=3), (2, 1, 4, 2, 6)), (low_frequencies(4, 2), (2, 3, 4, 4))))
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-6), (torch.float64, 1e-13)))
def test_operators_turn_and_turn_back(operator, shape, dtype, tolerance):
    x = uniform(*shape, dtype=dtype)
    u = operator.transform_fn(x)
    assert u.dtype == dtype and (operator.mask == 0).any() and (operator.mask == 1).any()
    torch.testing.assert_close(operator.inverse_transform_fn(u), x, rtol=0, atol=tolerance)
    torch.testing.assert_close(u.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("shape, factor", (((2, 3, 4, 6), 2), ((1, 2, 9), 3), ((2, 1, 2, 4, 6), 2)))
def test_patches_hold_neighbours_and_join_again(shape, factor):
    x = uniform(*shape)
    u = split_patches(x, factor)
    assert u.shape == (*shape[:2], *(n // factor for n in shape[2:]), factor ** (len(shape) - 2))
    corner = (slice(None), slice(None), *(slice(factor),) * (len(shape) - 2))
    assert torch.equal(u[(slice(None), slice(None), *(0,) * (len(shape) - 2))], x[corner].flatten(2))
    assert torch.equal(join_patches(u, factor), x)


def test_turning_an_axis_and_back_changes_nothing():
    x, q = uniform(2, 5, 9), orthogonal_basis(torch.ones(9))
    torch.testing.assert_close(in_basis(in_basis(x, q), q.T), x)


@pytest.mark.parametrize("operator, shape, task", (
    (Operator(half), (2, 3, 4, 4), lambda y: inpaint(plain, y, half, SIGMAS, generator=seeded())),
    (colorization(), (2, 3, 4, 4), lambda y: colorize(plain, grey(y), SIGMAS, generator=seeded())),
    (super_resolution(2), (2, 3, 4, 4), lambda y: super_resolve(plain, means(y, 2), 2, SIGMAS, generator=seeded()))))
def test_operators_work_through_the_published_arguments(operator, shape, task):
    y = uniform(*shape)
    x = ConsistencySamplingAndEditing()(
        plain, y, SIGMAS, mask=operator.mask, transform_fn=operator.transform_fn, inverse_transform_fn=operator.inverse_transform_fn,
        clip_denoised=True, generator=seeded())
    torch.testing.assert_close(x, task(y), rtol=0, atol=2e-5)


# Noise levels and samplers

class Listening(nn.Module):
    """A network that notes the noise levels it is given."""
    def __init__(self, sigma_data=None):
        super().__init__()
        self.levels = []
        if sigma_data: self.sigma_data = sigma_data

    def forward(self, x, sigma):
        self.levels.append(sigma[0].item())
        return plain(x, sigma)


def test_editing_walks_the_forty_levels_of_the_paper_by_default():
    for task in (lambda net: inpaint(net, torch.zeros(2, 3), torch.ones(3)), lambda net: colorize(net, torch.zeros(2, 1, 2, 2)),
                 lambda net: super_resolve(net, torch.zeros(2, 1, 2, 2), 2), lambda net: outpaint(net, torch.zeros(2, 1, 2), 1)):
        net = Listening()
        task(net)
        assert net.levels == editing_sigmas().tolist() == karras_schedule(40).flip(0).tolist() and net.levels[0] == 80


def test_strokes_take_the_two_levels_of_the_paper():
    net = Listening()
    stroke_to_image(net, torch.zeros(2, 1, 2, 2))
    assert net.levels == pytest.approx([5.38, 2.24])


def test_the_default_levels_end_at_the_samplers_sigma_min():
    net = Listening()
    inpaint(net, torch.zeros(2, 3), torch.ones(3), sampler=ConsistencySamplingAndEditing(sigma_min=0.01))
    assert net.levels[-1] == pytest.approx(0.01)


def test_known_values_stay_exact_under_autocast():
    gray, low = uniform(2, 1, 8, 8), uniform(2, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = colorize(plain, gray, SIGMAS, generator=seeded()), super_resolve(plain, low, 2, SIGMAS, generator=seeded())
    torch.testing.assert_close(grey(x), gray, rtol=0, atol=1e-6)
    torch.testing.assert_close(F.avg_pool2d(y, 2), low, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (8, 3), (28, 28)])
def test_the_centre_is_never_empty(size):
    assert 0 < preset_mask("center", *size).mean() <= 1


def test_a_network_behind_data_parallel_keeps_its_sigma_data():
    net, y, mask = MLP(2, 8, 1, sigma_data=1.3), torch.ones(2, 2), torch.tensor([0., 1.])
    assert torch.equal(*(inpaint(n, y, mask, SIGMAS, generator=seeded()) for n in (net, nn.DataParallel(net))))


def test_the_default_sampler_takes_sigma_data_from_the_model():
    y, mask, own = uniform(3, 4), torch.tensor([0., 1., 1., 0.]), ConsistencySamplingAndEditing(sigma_data=0.8)
    a = inpaint(Listening(sigma_data=0.8), y, mask, generator=seeded())
    assert torch.equal(a, inpaint(Listening(), y, mask, sampler=own, generator=seeded()))
    assert not torch.equal(a, inpaint(Listening(), y, mask, generator=seeded()))


def test_denoising_is_one_evaluation_at_the_level_of_the_noise():
    x = uniform(3, 4) + 2
    expected = model_forward_wrapper(plain, x, torch.full((3,), 0.7))
    torch.testing.assert_close(denoise(plain, x, 0.7, clip_denoised=False), expected)


def test_a_stroke_is_where_sampling_starts():
    painting, seen = uniform(2, 1, 4, 4), []
    def net(x, sigma):
        seen.append(x)
        return plain(x, sigma)
    stroke_to_image(net, painting, [5.], generator=seeded())
    torch.testing.assert_close(seen[0], painting + 5 * torch.randn(painting.shape, generator=seeded()))


# Interpolation of noises

def test_weights_lead_from_the_first_noise_to_the_second():
    a, b = torch.randn(2, 4, 6, generator=seeded())
    def at(z): return model_forward_wrapper(plain, 80 * z, torch.full((len(z),), 80.))
    for weights, z in ((0, a), (1., b), (0.25, slerp(a, b, 0.75)), (torch.tensor([0., 1., 1., 0.]), torch.stack([a[0], b[1], b[2], a[3]]))):
        torch.testing.assert_close(interpolate_latents(plain, a, b, weights, clip_denoised=False), at(z), rtol=1e-4, atol=1e-4)


def test_one_pair_of_noises_serves_for_many_weights():
    a, b = torch.randn(2, 1, 2, 3, generator=seeded())
    walk, weights = interpolate_latents(plain, a, b, torch.linspace(0, 1, 7)), torch.linspace(0, 1, 7)
    single = torch.cat([interpolate_latents(plain, a, b, w) for w in weights])
    assert walk.shape == (7, 2, 3)
    torch.testing.assert_close(walk, single)
    torch.testing.assert_close(interpolate_latents(plain, a, b, weights.tolist()), walk)


@pytest.mark.parametrize("weights, message", (
    (1.5, "weights must lie between 0 and 1"), (-0.1, "weights must lie"), ([0.5, math.nan], "weights must lie"),
    (torch.ones(3) / 2, r"weights must be one number or have shape \(2,\)")))
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message): interpolate_latents(plain, torch.randn(2, 3), torch.randn(2, 3), weights)


def test_noises_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="a and b must have the same shape"): interpolate_latents(plain, torch.randn(2, 3), torch.randn(2, 4), 0.5)


# Errors and warnings

@pytest.mark.parametrize("factor", (2.5, "2", None, True, 1, 0, -2))
def test_a_factor_is_a_whole_number_above_one(factor):
    with pytest.raises((TypeError, ValueError), match="factor"): super_resolve(plain, torch.zeros(2, 1, 4, 4), factor)
    with pytest.raises((TypeError, ValueError), match="factor"): super_resolution(factor)


def test_a_factor_must_divide_the_size():
    with pytest.raises(ValueError, match=r"factor 3 does not divide the size \(4, 6\)"):
        edit(plain, torch.zeros(2, 1, 4, 6), super_resolution(3), SIGMAS)


@pytest.mark.parametrize("shape", ((2, 3, 4, 4), (1, 4, 4), (2, 1)))
def test_colorize_refuses_what_is_no_grey_image(shape):
    with pytest.raises(ValueError, match=r"gray must have shape \(batch, 1, height, width\)"): colorize(plain, torch.zeros(shape))


def test_super_resolution_needs_channels_and_space():
    with pytest.raises(ValueError, match=r"low must have shape \(batch, channels, ...\)"): super_resolve(plain, torch.zeros(2, 3), 2)


@pytest.mark.parametrize("mask", (torch.ones(5), torch.ones(3, 1, 1, 1), torch.ones(1, 2, 3, 4, 4)))
def test_a_mask_must_broadcast(mask):
    with pytest.raises(ValueError, match="mask of shape"): inpaint(plain, torch.zeros(2, 3, 4, 4), mask)


def test_a_mask_of_bytes_is_refused():
    with pytest.raises(ValueError, match="mask must lie between 0"): inpaint(plain, torch.zeros(2, 3), torch.tensor([0, 255, 255]))


@pytest.mark.parametrize("task", (
    lambda x: inpaint(plain, x, torch.zeros(4, 4)), lambda x: colorize(plain, x), lambda x: super_resolve(plain, x, 2),
    lambda x: stroke_to_image(plain, x), lambda x: outpaint(plain, x, 1)))
def test_values_of_another_range_are_warned_of(task):
    with pytest.warns(UserWarning, match="values from 0 to 255, but the model works in"): task(torch.linspace(0, 255, 16).view(1, 1, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task(torch.linspace(-1, 1, 16).view(1, 1, 4, 4))


def test_no_warning_of_values_that_are_hidden_or_not_clamped():
    x = torch.tensor([[0.5, 255.]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inpaint(plain, x, torch.tensor([0., 1.]))
        inpaint(plain, x, torch.tensor([0., 0.]), clip_denoised=False)


@pytest.mark.parametrize("sigma", (0.001, 0., -1., math.nan, math.inf))
def test_a_noise_level_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"): denoise(plain, torch.zeros(2, 3), sigma)
    with pytest.raises(ValueError, match="sigma"): inpaint(plain, torch.zeros(2, 3), torch.ones(3), [80., sigma])


@pytest.mark.parametrize("padding", (-1, 1.5, "1", (1, -2), (1, 2, 3), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)))
def test_bad_padding_is_refused(padding):
    with pytest.raises((TypeError, ValueError), match="padding"): outpaint(plain, torch.zeros(2, 1, 4, 4), padding)


def test_whole_numbers_are_no_images():
    for task in (lambda x: inpaint(plain, x, torch.ones(4, 4)), lambda x: colorize(plain, x), lambda x: super_resolve(plain, x, 2),
                 lambda x: stroke_to_image(plain, x), lambda x: outpaint(plain, x, 1), lambda x: denoise(plain, x, 1.)):
        with pytest.raises(TypeError, match="floating point tensor"): task(torch.zeros(1, 1, 4, 4, dtype=torch.long))


def test_color_shapes_are_coloured_by_a_perfect_model():
    truth = color_shapes(6, size=8, generator=seeded())[0]
    torch.testing.assert_close(colorize(knows(truth), grey(truth)), truth, rtol=0, atol=1e-5)
    blocks = F.avg_pool2d(truth, 4)
    torch.testing.assert_close(super_resolve(knows(truth), blocks, 4), truth, rtol=0, atol=1e-5)
