"""Zero-shot editing: maps, tasks, exactness, and errors."""

import math
import warnings
from functools import partial

import pytest
import torch
from conftest import seeded
from torch import equal, nn
from torch.nn import functional as F
from torch.testing import assert_close

from consistency_models import (
    ConsistencyFunction,
    ConsistencySamplingAndEditing,
    Operator,
    colorization,
    colorize,
    consistency_function,
    denoise,
    edit,
    editing_sigmas,
    from_pretrained,
    inpaint,
    interpolate_latents,
    karras_schedule,
    outpaint,
    preset_mask,
    slerp,
    stroke_to_image,
    super_resolution,
    super_resolve,
    trajectory,
)
from consistency_models.editing import LUMINANCE, in_basis, join_patches, orthogonal_basis, split_patches

SIGMAS = [80., 5., 0.5]
nan = math.nan


def plain(x, sigma):
    """A network that treats each value alone."""
    return x.tanh() + sigma.reshape(-1, *(1,) * (x.ndim - 1)) * 0.01


def knows(truth):
    """A consistency function that always answers `truth`."""
    return ConsistencyFunction(lambda x, sigma: truth)


def uniform(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=seeded(), dtype=dtype) * 2 - 1


def luminance(x):
    weights = torch.tensor((0.2989, 0.5870, 0.1140), dtype=x.dtype)
    return (x * weights.view(3, 1, 1)).sum(1, keepdim=True)


def means(x, factor):
    """The mean of each patch, by its definition."""
    for axis in range(2, x.ndim): x = x.unflatten(axis, (-1, factor)).mean(axis + 1)
    return x


def low_frequencies(size, keep):
    """A user's own operator: of square images the slowest cosine waves are known."""
    i = torch.arange(size, dtype=torch.float64)
    waves = (math.pi / size * (i + 0.5) * i[:, None]).cos() * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    mask = torch.ones(size, size)
    mask[:keep, :keep] = 0
    return Operator(mask, lambda x: waves.to(x) @ x @ waves.T.to(x),
                    lambda u: waves.T.to(u) @ u @ waves.to(u))


WAVES = low_frequencies(4, 2)
half = torch.tensor([0., 0., 1., 1.]).view(4, 1).expand(4, 4)

TASKS = {   # each as a function of the network and the truth
    "inpaint": (lambda f, x, **o: inpaint(f, torch.where(half == 1, -0.3, x), half, SIGMAS, **o),
        (5, 3, 4, 4)),
    "outpaint": (lambda f, x, **o: outpaint(f, x[..., :-2, 1:], (1, 0, 0, 2), SIGMAS, **o),
        (5, 3, 4, 4)),
    "colorize": (lambda f, x, **o: colorize(f, luminance(x), SIGMAS, **o), (5, 3, 4, 4)),
    "super_resolve": (lambda f, x, **o: super_resolve(f, means(x, 3), 3, SIGMAS, **o),
        (5, 1, 6, 9)),
    "super_resolve 3-d": (lambda f, x, **o: super_resolve(f, means(x, 2), 2, SIGMAS, **o),
        (5, 1, 4, 2, 6)),
    "low frequencies": (lambda f, x, **o: edit(f, x, WAVES, SIGMAS, **o), (5, 3, 4, 4)),
    "denoise": (lambda f, x, **o: denoise(f, x + 0.5, 0.5, **o), (5, 3, 4, 4)),
    "stroke_to_image": (lambda f, x, **o: stroke_to_image(f, x, **o), (5, 3, 4, 4)),
    "interpolate_latents": (lambda f, x, **o: interpolate_latents(f, x, x.flip(-1), 0.3, **o),
        (5, 3, 4, 4)),
}
each_task = pytest.mark.parametrize("task, shape", TASKS.values(), ids=TASKS)
some_tasks = pytest.mark.parametrize(
    "task, shape", [TASKS[name] for name in ("inpaint", "colorize", "interpolate_latents")])


# Equals the paper

@each_task
def test_a_perfect_model_gives_back_the_truth(task, shape):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        truth = uniform(*shape, dtype=dtype)
        x = task(knows(truth), truth, generator=seeded())
        assert x.dtype == dtype
        assert_close(x, truth, rtol=0, atol=tolerance)


def test_maps_turn_and_turn_back():
    maps = ((colorization(), (2, 3, 4, 5)), (super_resolution(3), (2, 1, 6, 9)),
            (super_resolution(4, dims=1), (2, 3, 8)),
            (super_resolution(2, dims=3), (2, 1, 4, 2, 6)))
    for operator, shape in maps:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
            x = uniform(*shape, dtype=dtype)
            u = operator.transform_fn(x)
            assert u.dtype == dtype
            assert_close(operator.inverse_transform_fn(u), x, rtol=0, atol=tolerance)
            assert_close(u.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def test_the_first_coordinates_are_luminance_and_means():
    x = uniform(2, 3, 4, 6, dtype=torch.float64)
    color, patches = colorization(), super_resolution(2)
    assert color.mask.flatten().tolist() == [0, 1, 1] and patches.mask.tolist() == [0, 1, 1, 1]
    length = math.sqrt(0.2989**2 + 0.5870**2 + 0.1140**2)
    assert_close(color.transform_fn(x)[:, :1], luminance(x) / length)
    assert_close(patches.transform_fn(x)[..., 0], 2 * means(x, 2))


def test_a_basis_is_orthogonal_and_starts_in_the_given_direction():
    for first in (LUMINANCE, torch.ones(9), [-1., 2.], [0., 1., 0.], [3.]):
        q, wanted = orthogonal_basis(first), torch.as_tensor(first, dtype=torch.float64)
        assert_close(q.T @ q, torch.eye(len(wanted), dtype=torch.float64))
        assert_close(q[:, 0], wanted / wanted.norm())


def test_numbers_of_the_paper():
    printed = [0.4471, 0.8780, 0.1705]   # appendix D of Song et al. (2023)
    assert orthogonal_basis(LUMINANCE)[:, 0].tolist() == pytest.approx(printed, abs=1e-4)
    levels = []
    def net(x, sigma):
        levels.append(sigma[0].item())
        return plain(x, sigma)
    stroke_to_image(net, torch.zeros(2, 1, 2, 2))
    assert levels == pytest.approx([5.38, 2.24])
    assert editing_sigmas().tolist() == karras_schedule(40, 0.002, 80., 7.).flip(0).tolist()
    assert editing_sigmas(3, 0.1).tolist() == karras_schedule(3, 0.1, 80., 7.).flip(0).tolist()


@pytest.mark.parametrize("task, options", (
    (lambda y, **o: inpaint(plain, y, half, SIGMAS, **o), {"mask": half}),
    (lambda y, **o: edit(plain, y, WAVES, SIGMAS, **o), vars(WAVES)),
    (lambda y, **o: stroke_to_image(plain, y, SIGMAS, **o), {"start_from_y": True}),
    (lambda y, **o: denoise(plain, y, 0.7, **o),
     {"sigmas": [0.7], "start_from_y": True, "add_initial_noise": False})),
    ids=("inpaint", "edit", "stroke_to_image", "denoise"))
def test_tasks_are_calls_of_the_published_class_bit_for_bit(task, options):
    y = uniform(2, 3, 4, 4)
    options = {"sigmas": SIGMAS} | options
    x = ConsistencySamplingAndEditing()(plain, y, **options, generator=seeded())
    assert equal(task(y, clip_denoised=False, generator=seeded()), x)


def test_only_luminance_and_means_of_the_reference_matter():
    y = uniform(2, 3, 4, 4)
    a = colorize(plain, luminance(y), SIGMAS, generator=seeded())
    b = super_resolve(plain, means(y, 2), 2, SIGMAS, generator=seeded())
    for x, operator in ((a, colorization()), (b, super_resolution(2))):
        expected = edit(plain, y, operator, SIGMAS, generator=seeded())
        assert_close(x, expected, rtol=0, atol=2e-5)


def test_latents_are_noises_on_the_sphere_and_weights_the_share_of_the_second():
    (a, b), f = torch.randn(2, 4, 6, generator=seeded()), consistency_function(plain)
    for weights, z in ((0, a), (1., b), (0.25, slerp(a, b, 0.25)),
                       (torch.tensor([0., 1., 1., 0.]), torch.stack([a[0], b[1], b[2], a[3]]))):
        x = interpolate_latents(plain, a, b, weights, clip_denoised=False)
        assert_close(x, f(80 * z, 80.), rtol=1e-4, atol=1e-4)
    x = interpolate_latents(plain, a, b, 0.25, [20.], clip_denoised=False)
    assert_close(x, f(20 * slerp(a, b, 0.25), 20.))


# Keeps its promises

@each_task
def test_a_network_with_its_arguments_and_its_consistency_function_give_the_same(task, shape):
    x = uniform(*shape)
    def net(z, sigma, class_labels): return class_labels * plain(z, sigma)
    net.sigma_data = 0.8
    y = task(net, x, generator=seeded(), class_labels=0.7)
    f, other = (consistency_function(net, 0.8, class_labels=label) for label in (0.7, 0.6))
    assert equal(task(f, x, generator=seeded()), y)
    assert not equal(task(other, x, generator=seeded()), y)
    assert not equal(task(lambda *given: net(*given, 0.7), x, generator=seeded()), y)    # 0.5
    with pytest.raises(TypeError, match="takes no further arguments.* class_labels"):
        task(f, x, class_labels=0.7)


@some_tasks
def test_samples_of_a_batch_do_not_influence_each_other(task, shape):
    x = uniform(*shape)
    other = x.clone()
    other[2] = -0.9 * x[2]
    a, b = (task(plain, reference, generator=seeded()) for reference in (x, other))
    assert equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]]) and not equal(a[2], b[2])


@some_tasks
def test_answers_are_clamped_unless_told_otherwise_and_the_input_is_left_alone(task, shape):
    x = (0.9 * uniform(*shape)).bfloat16()
    before = x.clone()
    def loud(z, sigma): return 100 * torch.arange(z.numel()).sin().view_as(z).to(z)
    y = task(loud, x, generator=seeded())
    assert y.dtype == torch.bfloat16 and y.abs().max() < 3.5 and equal(x, before)
    assert task(loud, x, generator=seeded(), clip_denoised=False).abs().max() > 5


def test_inpainting_and_outpainting_keep_known_values_bit_for_bit():
    x = uniform(5, 3, 4, 4)
    y = inpaint(plain, torch.where(half == 1, 9e9, x), half, generator=seeded())
    assert equal(y[..., :2, :], x[..., :2, :])
    y = outpaint(plain, x, (1, 2, 3, 0), SIGMAS, generator=seeded())
    assert y.shape == (5, 3, 7, 7) and equal(y[..., 3:, 1:-2], x)
    y = outpaint(plain, x, 2, SIGMAS, generator=seeded())
    assert y.shape == (5, 3, 8, 8) and equal(y[..., 2:-2, 2:-2], x)
    assert outpaint(plain, uniform(2, 1, 5), 2, SIGMAS).shape == (2, 1, 9)


def test_luminance_and_means_are_kept_whatever_the_model_answers_also_under_autocast():
    gray, low = uniform(4, 1, 8, 8), uniform(2, 3, 4, 4)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            x = colorize(plain, gray, SIGMAS, generator=seeded())
            y = super_resolve(plain, low, 4, SIGMAS, generator=seeded())
        assert_close(luminance(x), gray, rtol=0, atol=1e-6)
        assert y.shape == (2, 3, 16, 16)
        assert_close(F.avg_pool2d(y, 4), low, rtol=0, atol=1e-6)


def test_editing_walks_the_forty_levels_down_to_the_smallest_by_default():
    def levels_of(task, wrap=lambda net: net, **options):
        levels = []
        def net(x, sigma):
            levels.append(sigma[0].item())
            return plain(x, sigma)
        task(wrap(net), **options)
        return levels
    for task in (lambda f, **o: inpaint(f, torch.zeros(2, 3), torch.ones(3), **o),
                 lambda f, **o: colorize(f, torch.zeros(2, 1, 2, 2), **o),
                 lambda f, **o: super_resolve(f, torch.zeros(2, 1, 2, 2), 2, **o),
                 lambda f, **o: outpaint(f, torch.zeros(2, 1, 2), 1, **o)):
        assert levels_of(task) == karras_schedule(40).flip(0).tolist()
        expected = karras_schedule(40, 0.01).flip(0).tolist()
        assert levels_of(task, partial(consistency_function, sigma_min=0.01)) == expected
        assert levels_of(task, sigma_min=0.01) == expected


def test_editing_takes_sigma_data_from_a_network_however_it_is_wrapped():
    net, x, y = from_pretrained("digits"), torch.zeros(2, 1, 8, 8), torch.tensor([3, 4])
    direct = inpaint(net, x, 1., [80.], generator=seeded(), class_labels=y)
    for wrapped in (partial(net, class_labels=y), partial(nn.DataParallel(net), class_labels=y)):
        assert equal(inpaint(wrapped, x, 1., [80.], generator=seeded()), direct)


def test_one_pair_of_noises_serves_for_many_weights():
    (a, b), weights = torch.randn(2, 1, 2, 3, generator=seeded()), torch.linspace(0, 1, 7)
    walk = interpolate_latents(plain, a, b, weights)
    assert walk.shape == (7, 2, 3)
    one_by_one = [interpolate_latents(plain, a, b, w) for w in weights]
    assert_close(walk, torch.cat(one_by_one))
    assert_close(interpolate_latents(plain, a, b, weights.tolist()), walk)


def test_the_last_answer_of_trajectory_is_the_result():
    y, operator = uniform(2, 3, 4, 4), super_resolution(2)
    *_, (_, _, x) = trajectory(plain, y, SIGMAS, operator, generator=seeded())
    assert equal(edit(plain, y, operator, SIGMAS, generator=seeded()), x)


def test_patches_hold_neighbors_and_join_again():
    for shape, factor in (((2, 3, 4, 6), 2), ((1, 2, 9), 3), ((2, 1, 2, 4, 6), 2)):
        x = uniform(*shape)
        u = split_patches(x, factor)
        sizes = [n // factor for n in shape[2:]]
        assert u.shape == (*shape[:2], *sizes, factor ** len(sizes))
        first, corner = ((..., *(part,) * (len(shape) - 2)) for part in (0, slice(factor)))
        assert equal(u.movedim(-1, 2)[first], x[corner].flatten(2))
        assert equal(join_patches(u, factor), x)


def test_masks_with_names():
    parts = {"top": (slice(3), slice(None)), "bottom": (slice(3, None), slice(None)),
             "left": (slice(None), slice(2)), "right": (slice(None), slice(2, None)),
             "center": (slice(1, 6), slice(1, 4))}
    for name, part in parts.items():
        expected = torch.zeros(1, 7, 5)
        expected[0][part] = 1
        assert equal(preset_mask(name, 7, 5), expected), name
    for name in ("random", "letters"):
        mask = preset_mask(name, 28, 28)
        assert mask.shape == (1, 28, 28) and mask.unique().tolist() == [0, 1]
        assert 0.2 < mask.mean() < 0.8
    assert equal(preset_mask("random", 28, 28, 1), preset_mask("random", 28, 28, 1))
    assert not equal(preset_mask("random", 28, 28, 1), preset_mask("random", 28, 28, 2))
    assert all(0 < preset_mask("center", n, n).mean() <= 1 for n in (2, 3, 8))


RANGES = {
    "inpaint": lambda x, **o: inpaint(plain, x, torch.zeros(4, 4), [5.], **o),
    "outpaint": lambda x, **o: outpaint(plain, x, 1, [5.], **o),
    "colorize": lambda x, **o: colorize(plain, x, [5.], **o),
    "super_resolve": lambda x, **o: super_resolve(plain, x, 2, [5.], **o),
    "stroke_to_image": lambda x, **o: stroke_to_image(plain, x, [5.], **o)}


@pytest.mark.parametrize("task", RANGES.values(), ids=RANGES)
def test_values_of_another_range_are_warned_of_once(task):
    ramp = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    for low, high in ((0, 255), (-3, 0)):
        message = f"values from {low} to {high}, but the model works in"
        with pytest.warns(UserWarning, match=message) as said:
            task(low + (high - low) * ramp)
        assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task(2 * ramp - 1)
        task(ramp[:0])


def test_values_that_are_hidden_or_not_clamped_are_not_warned_of():
    x = torch.tensor([[0.5, 255.]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inpaint(plain, x, torch.tensor([0., 1.]), [5.])
        inpaint(plain, x, torch.tensor([0., 0.]), [5.], clip_denoised=False)


# Refuses

IMAGES, POINTS = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)
BAD = {     # calls with one bad argument, the error, and what its message says
    "images": (
        (lambda: inpaint(plain, IMAGES.long(), 1.), TypeError, "^x must be a floating"),
        (lambda: outpaint(plain, IMAGES.long(), 1), TypeError, "^x must be a floating"),
        (lambda: denoise(plain, IMAGES.long(), 1.), TypeError, "must be a floating"),
        (lambda: stroke_to_image(plain, [[1.]]), TypeError, "^painting must be a torch tensor"),
        (lambda: colorize(plain, [[1.]]), TypeError, "^gray must be a torch tensor"),
        (lambda: colorize(plain, torch.zeros(2, 3, 4, 4)),
         ValueError, r"^gray must have shape \(batch, 1, height, width\)"),
        (lambda: colorize(plain, torch.zeros(1, 4, 4)), ValueError, "^gray must have shape"),
        (lambda: super_resolve(plain, [[1.]], 2), TypeError, "^low must be a torch tensor"),
        (lambda: super_resolve(plain, POINTS, 2),
         ValueError, r"^low must have shape \(batch, channels, ...\)")),
    "mask": (
        (lambda: inpaint(plain, IMAGES, torch.ones(5)), ValueError, "^mask of shape"),
        (lambda: inpaint(plain, IMAGES, torch.ones(1, 2, 1, 4, 4)), ValueError, "^mask of shape"),
        (lambda: inpaint(plain, POINTS, torch.tensor([0, 255, 255])),
         ValueError, "^mask must lie between 0"),
        (lambda: preset_mask("middle", 4, 4),
         ValueError, "^mask must be one of top.* got 'middle'")),
    "operator": (
        (lambda: edit(plain, POINTS, torch.ones(3), SIGMAS), TypeError, "^operator must be"),
        (lambda: edit(plain, IMAGES, super_resolution(3), SIGMAS),
         ValueError, r"factor 3 does not divide the size \(4, 4\)"),
        (lambda: edit(plain, IMAGES, colorization(), SIGMAS),
         ValueError, "needs 3 values along its axis .* got 1"),
        (lambda: in_basis(POINTS, torch.eye(2)), ValueError, "needs 2 values")),
    "direction of a basis": (
        (lambda: orthogonal_basis([0., 0.]), ValueError, "^first must be a direction"),
        (lambda: orthogonal_basis([[1., 2.]]), ValueError, "^first must be a direction"),
        (lambda: orthogonal_basis([]), ValueError, "^first must be a direction"),
        (lambda: orthogonal_basis([nan, 1.]), ValueError, "^first must be a direction"),
        (lambda: orthogonal_basis(["a"]), TypeError, "^first")),
    "factor": (
        (lambda: super_resolve(plain, IMAGES, 2.5), TypeError, "^factor must be a whole number"),
        (lambda: super_resolve(plain, IMAGES, True), TypeError, "^factor must be a whole number"),
        (lambda: super_resolve(plain, IMAGES, 1), ValueError, "^factor must be at least 2"),
        (lambda: super_resolution("2"), TypeError, "^factor must be a whole number"),
        (lambda: super_resolution(2, 0), ValueError, "^dims must be at least 1")),
    "padding": (
        (lambda: outpaint(plain, IMAGES, -1), ValueError, "^padding must be at least 0"),
        (lambda: outpaint(plain, IMAGES, 1.5), TypeError, "^padding must be a whole number"),
        (lambda: outpaint(plain, IMAGES, (1, 2, 3)), ValueError, "^padding must have two numbers"),
        (lambda: outpaint(plain, IMAGES, (1,) * 6), ValueError, "^padding must have two numbers")),
    "levels": (
        (lambda: denoise(plain, POINTS, 0.001), ValueError, "sigma"),
        (lambda: denoise(plain, POINTS, nan), ValueError, "sigma"),
        (lambda: denoise(plain, POINTS, None), TypeError, "sigma"),
        (lambda: inpaint(plain, POINTS, 1., [0.5, 80.]), ValueError, "^sigmas must descend"),
        (lambda: interpolate_latents(plain, POINTS, POINTS, 0.5, []),
         ValueError, "^sigmas must hold")),
    "weights": (
        (lambda: interpolate_latents(plain, POINTS, POINTS, 1.5),
         ValueError, "^weights must lie between 0 and 1"),
        (lambda: interpolate_latents(plain, POINTS, POINTS, [0.5, nan]),
         ValueError, "^weights must lie"),
        (lambda: interpolate_latents(plain, POINTS, POINTS, [0.5] * 3),
         ValueError, r"^weights must .* have shape \(2,\)"),
        (lambda: interpolate_latents(plain, POINTS, POINTS, "a"), TypeError, "^weights"),
        (lambda: interpolate_latents(plain, POINTS, POINTS[:, :2], 0.5),
         ValueError, "^a and b must have the same shape"),
        (lambda: interpolate_latents(plain, POINTS.long(), POINTS, 0.5),
         TypeError, "^a must be a floating")),
    "fixed arguments": (
        (lambda: denoise(plain, POINTS, 1., add_initial_noise=True),
         TypeError, "add_initial_noise"),
        (lambda: inpaint(plain, POINTS, 1., SIGMAS, sampler=None), TypeError, "sampler")),
}


@pytest.mark.parametrize("calls", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(calls):
    for call, error, message in calls:
        with pytest.raises(error, match=message): call()
