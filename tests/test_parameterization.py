"""How a network becomes a consistency function: coefficients, boundary, wrappers, exact answers."""

import copy
import functools
import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import AnyRank, calls_of, gaussian, shake
from torch import nn

from consistency_models import (
    MLP,
    ConsistencyFunction,
    Precondition,
    UNet,
    consistency_function,
    gaussian_consistency_function,
    input_scaling,
    karras_schedule,
    model_forward_wrapper,
    noise_conditioning,
    output_scaling,
    skip_scaling,
)
from consistency_models.parameterization import is_network

MEAN, STD = 0.3, 0.5
SIGMAS = (0.05, 0.2, 0.5, 1., 3., 10., 80.)
LEVELS = (0.002, 0.0021, 0.01, 0.1, 0.5, 1., 7., 80., 1000.)
STDS = (0.1, 0.5, 3.)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def double(value): return torch.tensor(value, dtype=torch.float64)


def wild(x, sigma): return 1e4 * torch.randn_like(x)


def plain(x, sigma): return x.tanh()


# Equals the paper

def test_skip_and_output_scaling_are_those_of_consistency_models():
    """Appendix C of Song et al. (2023); with sigma_min = 0 those of Karras et al. (2022)."""
    for low in (0., 0.0005, 0.002):
        for std in STDS:
            for s in LEVELS:
                c_skip = std**2 / ((s - low) ** 2 + std**2)
                c_out = std * (s - low) / math.hypot(std, s)
                assert skip_scaling(double(s), std, low).item() == pytest.approx(c_skip, rel=1e-12)
                assert output_scaling(double(s), std, low).item() == pytest.approx(c_out, rel=1e-12)
    levels = torch.tensor(LEVELS)
    assert torch.equal(skip_scaling(levels), skip_scaling(levels, 0.5, 0.002))
    assert torch.equal(output_scaling(levels), output_scaling(levels, 0.5, 0.002))


def test_input_scaling_and_noise_conditioning_are_those_of_edm():
    for s in LEVELS:
        for std in STDS:
            found = input_scaling(double(s), std).item()
            assert found == pytest.approx(1 / math.hypot(s, std), rel=1e-12)
        assert noise_conditioning(double(s)).item() == pytest.approx(math.log(s) / 4, rel=1e-12)
    levels = torch.tensor(LEVELS)
    assert torch.equal(input_scaling(levels), input_scaling(levels, 0.5))


def test_scaled_input_has_unit_variance():
    clean, noise = (gaussian(100_000, seed=seed, dtype=torch.float64) for seed in (0, 1))
    for s in LEVELS:
        for std in STDS:
            scaled = input_scaling(double(s), std) * (std * clean + s * noise)
            assert scaled.var().item() == pytest.approx(1, rel=0.02)


def test_precondition_gives_its_network_unit_variance_and_c_noise():
    """Table 1 of Karras et al. (2022), rows c_in and c_noise, in the type of the data."""
    def inner(x, c_noise, scale): return scale * x, c_noise
    for dtype in DTYPES:
        sigma = torch.tensor(SIGMAS).to(dtype)
        x = (0.7 * gaussian(7, 4000) + sigma.float()[:, None] * gaussian(7, 4000, seed=1)).to(dtype)
        scaled, c_noise = Precondition(inner, sigma_data=0.7)(x, sigma, scale=2.)
        assert scaled.dtype == c_noise.dtype == dtype
        assert torch.allclose(scaled.float().var(1), torch.tensor(4.), rtol=0.1)
        s = sigma.double()
        expected = 2 * x.double() / (s**2 + 0.49).sqrt()[:, None], s.log() / 4
        torch.testing.assert_close((scaled, c_noise), tuple(e.to(dtype) for e in expected))


def test_consistency_function_is_skip_plus_output():
    """Eq. 5 of Song et al. (2023), a level for each sample."""
    x, net = gaussian(7, 3, 4, dtype=torch.float64), shake(AnyRank()).double()
    s = double(SIGMAS)
    c_skip, c_out = 0.49 / ((s - 0.01) ** 2 + 0.49), 0.7 * (s - 0.01) / (0.49 + s**2).sqrt()
    expected = c_skip[:, None, None] * x + c_out[:, None, None] * net(x, s)
    assert torch.allclose(consistency_function(net, 0.7, 0.01)(x, s), expected, rtol=1e-12)


NETWORKS = {
    "UNet": (shake(UNet(3, (8, 16))), (4, 3, 8, 8)), "MLP as built": (MLP(2, 16, 2), (64, 2)),
    "rank 5": (shake(AnyRank()), (4, 3, 2, 2, 2)), "random answers": (wild, (64, 2))}


@torch.no_grad()
def test_the_answer_at_sigma_min_is_x_exactly():
    """In every type, and however the level is given; for bundled and other networks."""
    for net, shape in NETWORKS.values():
        for dtype in (*DTYPES, torch.float16):
            typed = copy.deepcopy(net).to(dtype) if isinstance(net, nn.Module) else net
            x = (3 * gaussian(*shape)).to(dtype)
            one_each = torch.full(shape[:1], 0.002, dtype=dtype)
            f = consistency_function(typed)
            for sigma in (0.002, double(0.002), one_each, karras_schedule(10)[0], 0.001, 0):
                assert torch.equal(f(x, sigma), x)
            assert not torch.equal(f(x, 1.), x)


def test_the_answer_at_sigma_min_is_x_exactly_for_other_settings():
    for dtype in DTYPES:
        x = gaussian(64, 2).to(dtype)
        for std in STDS:
            for low in (1e-4, 0.01, 0.3, 1.):
                sigma = torch.full((64,), low, dtype=dtype)
                assert torch.equal(model_forward_wrapper(wild, x, sigma, std, low), x)
                assert not torch.equal(model_forward_wrapper(wild, x, 1.5 * sigma, std, low), x)


@torch.no_grad()
def test_the_answer_is_x_where_no_noise_is_left():
    """
    The network is asked at another level, since ln 0 is not finite: also among other levels, and
    where a level is so small that it becomes 0 in half precision.
    """
    for net, shape in NETWORKS.values():
        for dtype in (torch.float32, torch.float16):
            typed = copy.deepcopy(net).to(dtype) if isinstance(net, nn.Module) else net
            x, levels = gaussian(*shape).to(dtype), torch.linspace(0, 3, shape[0])
            f, g = (consistency_function(typed, sigma_min=low) for low in (0., 0.002))
            assert torch.equal(f(x, 0.), x) and torch.equal(g(x, 0.), x)
            for mixed in (f(x, levels), g(x, levels)):
                assert torch.equal(mixed[0], x[0]) and mixed.isfinite().all()
                assert not torch.equal(mixed[1:], x[1:])
    assert consistency_function(plain, sigma_min=0.)(x, 1e-9).sub(x).abs().max() < 1e-4


def slope(x, sigma):
    """dx / dsigma of the probability-flow ODE of Gaussian data."""
    return sigma / (STD**2 + sigma**2) * (x - MEAN)


def runge_kutta(x, grid):
    """Follow the ODE along the levels of `grid`, independently of the package."""
    for s, t in pairwise(grid):
        h = t - s
        a = slope(x, s)
        b = slope(x + h / 2 * a, s + h / 2)
        c = slope(x + h / 2 * b, s + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, t))
    return x


def test_gaussian_consistency_function_solves_the_ode():
    for sigma in SIGMAS:
        for low in (0.002, 0.01):
            grid = [low * (sigma / low) ** (1 - i / 400) for i in range(401)]
            x = MEAN + math.hypot(sigma, STD) * gaussian(100, dtype=torch.float64)
            found = gaussian_consistency_function(x, sigma, MEAN, STD, low)
            assert torch.allclose(found, runge_kutta(x, grid), atol=1e-7)


def test_gaussian_consistency_function_maps_noise_to_data():
    noisy = MEAN + math.hypot(80., STD) * gaussian(100_000)
    data = gaussian_consistency_function(noisy, 80., MEAN, STD)
    assert data.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert data.std().item() == pytest.approx(STD, rel=0.01)


def test_gaussian_consistency_function_survives_the_parameterization():
    """Taken apart into a raw network and put together again, it is the same function."""
    x, sigma = gaussian(7, 2, dtype=torch.float64), double(SIGMAS)
    exact = gaussian_consistency_function(x, sigma, MEAN, STD)
    def raw(x, s): return (exact - skip_scaling(s)[:, None] * x) / output_scaling(s)[:, None]
    assert torch.allclose(consistency_function(raw)(x, sigma), exact)


# Keeps its promises

def test_coefficients_have_at_least_float32_and_are_accurate_in_each_type():
    """bfloat16 levels are rounded, but what follows from them is computed in float32."""
    for s in LEVELS:
        for dtype in (torch.float32, torch.bfloat16):
            level, low = torch.tensor(s, dtype=dtype), torch.tensor(0.002, dtype=dtype).item()
            wide = level.double()
            for found, exact in (
                    (skip_scaling(level), skip_scaling(wide, 0.5, low)),
                    (output_scaling(level), output_scaling(wide, 0.5, low)),
                    (input_scaling(level), input_scaling(wide)),
                    (noise_conditioning(level), noise_conditioning(wide))):
                assert found.dtype == torch.float32
                assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_coefficients_take_numbers_and_lists():
    for c in (skip_scaling, output_scaling, input_scaling, noise_conditioning):
        for sigma in (2, 2., [1, 2], torch.tensor([1, 2])):
            expected = c(torch.as_tensor(sigma, dtype=torch.float32))
            assert c(sigma).dtype == torch.float32 and torch.equal(c(sigma), expected)
        assert c(double(2.)).dtype == torch.float64


def test_shape_and_type_of_the_data_are_kept():
    """Also with levels of another type: computed in float32, answered in the type of the data."""
    for shape in ((4,), (4, 3), (4, 3, 2), (4, 3, 2, 2), (4, 3, 2, 2, 2)):
        for dtype in DTYPES:
            x, levels = gaussian(*shape).to(dtype), torch.tensor(SIGMAS[:4])
            y = consistency_function(plain)(x, levels)
            assert y.shape == shape and y.dtype == dtype
            expected = consistency_function(plain)(x.double(), levels.double())
            torch.testing.assert_close(y, expected.to(dtype))


def test_a_level_is_one_number_or_one_for_each_sample():
    x, f = gaussian(3, 4, dtype=torch.float64), consistency_function(plain)
    for one in (2, 2., [2], torch.tensor(2), double([2.])):
        assert torch.equal(f(x, one), f(x, double([2., 2., 2.])))
    assert torch.equal(f(x, [1, 2, 3]), f(x, double([1., 2., 3.])))
    assert torch.equal(f(x, 0.3), f(x, double([0.3] * 3)))   # as exact as the data, not as float32
    exact = gaussian_consistency_function
    assert torch.equal(exact(x, 0.3), exact(x, double([0.3] * 3)))


def test_the_network_is_asked_with_one_level_each_in_the_type_of_the_data_and_its_arguments():
    net, labels = AnyRank().bfloat16(), torch.arange(4)
    net.forward = lambda x, sigma, labels, scale=1.: scale * x
    calls, x = calls_of(net), gaussian(4, 3).bfloat16()
    f = consistency_function(net, labels=labels, scale=2.)
    for sigma in (3., torch.full((4,), 3.)): f(x, sigma)
    assert len(calls) == 2
    for asked, sigma, kwargs in calls:
        assert torch.equal(asked, x) and sigma.dtype == torch.bfloat16
        assert sigma.tolist() == [3.] * 4
        assert kwargs == {"labels": labels, "scale": 2.}


def test_a_fault_in_a_sample_or_a_level_stays_visible_and_alone():
    x, levels = gaussian(3, 2), torch.tensor([torch.nan, 1., 1.])
    x[2, 1] = torch.nan
    answer = consistency_function(shake(MLP(2, 16, 2)))(x, levels)
    assert answer.isnan().all(1).tolist() == [True, False, True]
    assert consistency_function(plain)(x, 0.002)[2].isnan().tolist() == [False, True]
    assert gaussian_consistency_function(x, levels).isnan().any(1).tolist() == [True, False, True]


def test_no_gradient_is_lost_where_no_noise_is_left():
    net = shake(MLP(2, 16, 2))
    f = consistency_function(net, sigma_min=0.)
    f(gaussian(4, 2), torch.tensor([0., 0., 1., 2.])).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_network_may_work_in_place():
    x = gaussian(4, 2)
    consistency_function(lambda x, sigma: x.mul_(0))(x, 1.)
    assert torch.equal(x, gaussian(4, 2))


def test_the_answer_under_autocast_has_the_type_of_the_data():
    net, types = shake(AnyRank()), []
    net.out.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = consistency_function(net)(gaussian(4, 3), 1.)
    assert types == [torch.bfloat16] and y.dtype == torch.float32


def test_a_consistency_function_comes_back_as_it_is():
    f = consistency_function(plain, sigma_min=0.1)
    assert consistency_function(f) is f and f.sigma_min == 0.1


def wrapped_by_functools(net):
    @functools.wraps(net.forward)
    def call(*args, **kwargs): return net(*args, **kwargs)
    return call


def compiled(net): return torch.compile(net, backend="eager")


WRAPPED = {
    "bare": lambda net: net, "partial": lambda net: partial(net, class_labels=None),
    "parallel": nn.DataParallel, "forward": lambda net: net.forward,
    "functools.wraps": wrapped_by_functools, "compiled": compiled,
    "all of it": lambda net: partial(nn.DataParallel(compiled(net)), class_labels=None)}


def test_what_a_network_says_of_its_data_is_found_through_what_wraps_it():
    net, x = shake(MLP(2, 16, 1, sigma_data=0.752)), gaussian(4, 2)
    expected = model_forward_wrapper(net, x, 3., sigma_data=0.752)
    for wrap in WRAPPED.values():
        wrapped = wrap(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.allclose(consistency_function(wrapped)(x, 3.), expected, atol=1e-6)
            consistency_function(wrapped, sigma_data=0.7521)
        told = "^sigma_data is 0.5 here, but the network was built for 0.752"
        with pytest.warns(UserWarning, match=told):
            consistency_function(wrapped, sigma_data=0.5)


def test_networks_are_told_from_other_functions_through_what_wraps_them():
    net = MLP(2, 16, 1)
    assert all(is_network(wrap(net)) for wrap in WRAPPED.values())
    for other in (plain, partial(plain, sigma=1.), consistency_function(net), torch.tanh, "digits"):
        assert not is_network(other)


def test_a_contradiction_is_told_once_a_call_and_does_not_decide():
    net, x = shake(MLP(2, 16, 1, sigma_data=0.752)), gaussian(4, 2)
    with pytest.warns(UserWarning) as said:
        answer = model_forward_wrapper(net, x, 3., sigma_data=0.5)
    assert len(said) == 1
    assert torch.equal(answer, consistency_function(lambda x, sigma: net(x, sigma), 0.5)(x, 3.))


def test_the_sigma_data_of_a_network_may_be_a_tensor_and_else_is_one_half():
    net, x = nn.Identity(), gaussian(4, 2)
    net.forward = lambda x, sigma: x.tanh()
    def answer(): return consistency_function(net)(x, 3.)
    net.register_buffer("sigma_data", torch.tensor([0.7]))
    assert torch.allclose(answer(), consistency_function(plain, 0.7)(x, 3.))
    del net.sigma_data
    for value in (None, [0.5, 0.5], (lambda: 0.7), "0.7"):
        net.sigma_data = value
        assert torch.equal(answer(), consistency_function(plain, 0.5)(x, 3.))


def test_precondition_is_a_module_that_knows_its_data():
    net = Precondition(nn.Bilinear(3, 1, 3), sigma_data=0.7)
    assert {name for name, _ in net.named_parameters()} == {"net.weight", "net.bias"}
    with pytest.warns(UserWarning, match="built for 0.7"): consistency_function(net, sigma_data=0.5)


def test_gaussian_consistency_function_stays_where_the_path_has_ended():
    x = gaussian(4, 2)
    assert torch.equal(gaussian_consistency_function(x, 0.002), x)
    assert torch.equal(gaussian_consistency_function(x, 0.), x)
    assert gaussian_consistency_function(x.bfloat16(), 1.).dtype == torch.bfloat16


# Refuses

def test_samples_must_be_floating_tensors():
    for bad in ([[1., 2.]], None, torch.ones(2, 2, dtype=torch.long),
            torch.ones(2, 2, dtype=torch.complex64)):
        for call in (consistency_function(plain), gaussian_consistency_function):
            with pytest.raises(TypeError, match="^x must be a"): call(bad, 1.)


def test_levels_that_do_not_fit_the_samples_are_refused():
    f, x = consistency_function(plain), gaussian(4, 3)
    for bad in (torch.ones(3), torch.ones(4, 1), torch.ones(4, 3), []):
        with pytest.raises(ValueError, match=r"shape \(batch,\) for x of shape \(4, 3\), got"):
            f(x, bad)
    for bad in ("a", None, 1j):
        with pytest.raises(TypeError, match="^sigma must be"): f(x, bad)
    with pytest.raises(ValueError, match="sigma must have shape"): f(torch.tensor(1.), 1.)


def test_a_network_must_return_a_tensor_of_the_shape_of_the_data():
    for net, got in (
            (lambda x, s: x[:1], r"\(1, 3\)"), (lambda x, s: x[..., None], r"\(4, 3, 1\)"),
            (lambda x, s: x.mean(), "Tensor"), (lambda x, s: None, "NoneType"),
            (lambda x, s: (x,), "tuple")):
        told = rf"return a tensor of the shape of x, \(4, 3\), got {got}"
        with pytest.raises(ValueError, match=told):
            consistency_function(net)(gaussian(4, 3), 1.)


def test_what_is_no_network_is_refused():
    for bad in (None, 3, gaussian(2, 2), "net"):
        kind = type(bad).__name__
        with pytest.raises(TypeError, match=rf"callable as net\(x, sigma\), got {kind}"):
            consistency_function(bad)


def test_a_consistency_function_takes_no_further_arguments():
    f = consistency_function(plain)
    with pytest.raises(TypeError, match="takes no further arguments.*got class_labels"):
        consistency_function(f, class_labels=1)
    with pytest.raises(TypeError, match="takes no further arguments.*got sigma_data"):
        consistency_function(f, sigma_data=0.5)
    with pytest.raises(TypeError, match="takes no further arguments.*got sigma_min"):
        consistency_function(f, sigma_min=0.1)


def test_an_answer_of_another_shape_is_refused():
    f = ConsistencyFunction(lambda x, sigma: x[:1])
    with pytest.raises(ValueError, match=r"the answer must have the shape of x, \(4, 3\), got \(1, 3\)"):
        f(gaussian(4, 3), 1.)


def test_settings_that_make_no_consistency_function_are_refused():
    for name, bad, error in (
            ("sigma_data", 0., ValueError), ("sigma_data", float("nan"), ValueError),
            ("sigma_data", "1", TypeError),
            ("sigma_min", -1., ValueError), ("sigma_min", None, TypeError)):
        with pytest.raises(error, match=f"^{name} must be"):
            consistency_function(plain, **{name: bad})
