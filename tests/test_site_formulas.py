"""The formulas of the site's live parts, through Node, equal those of the package."""
import pytest
import torch
from conftest import javascript

from consistency_models import (
    gaussian_consistency_function,
    improved_timesteps_schedule,
    input_scaling,
    karras_schedule,
    lognormal_probabilities,
    noise_conditioning,
    output_scaling,
    pseudo_huber_loss,
    skip_scaling,
    timesteps_schedule,
)
from consistency_models.data import load_avatars

GRIDS = [(2, 0.002, 80., 7.), (18, 0.002, 80., 1.), (161, 0.002, 10., 15.), (1281, 0.002, 80., 7.)]
BELLS = [(-1.1, 2.), (3., 0.3), (-5., 4.)]
SIGMAS = torch.cat([torch.tensor([0.002, 0.0021, 0.5, 80.]), karras_schedule(40)]).double()


def same(found, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected.double(), **tolerance)


def test_the_levels_are_those_of_karras():
    found = javascript("grids.map(([n, min, max, rho]) => formulas.karras(n, { min, max, rho }))", grids=GRIDS)
    for grid, levels in zip(GRIDS, found): same(levels, karras_schedule(*grid, dtype=torch.float64))


def test_the_error_function_is_exact():
    x = torch.linspace(-7, 7, 701, dtype=torch.float64)
    same(javascript("x.map(formulas.erf)", x=x.tolist()), x.erf(), rtol=0, atol=1e-14)


def test_steps_have_the_probabilities_of_the_lognormal():
    found = javascript("grids.flatMap(([n, min, max, rho]) => bells.map(([mean, std]) => "
                       "formulas.lognormalProbabilities(formulas.karras(n, { min, max, rho }), mean, std)))",
                       grids=GRIDS, bells=BELLS)
    expected = [lognormal_probabilities(karras_schedule(*grid, dtype=torch.float64), *bell)
                for grid in GRIDS for bell in BELLS]
    for p, q in zip(found, expected, strict=True): same(p, q)


@pytest.mark.parametrize("shares, cents", [
    ([0.0859, 0.8961, 0.018], [8, 90, 2]), ([1 / 3] * 3, [34, 33, 33]), ([0, 1, 0], [0, 100, 0]),
    ([0.29, 0.71], [29, 71]), ([0.005, 0.99, 0.005], [1, 99, 0])])
def test_whole_per_cent_add_up(shares, cents):
    assert javascript("formulas.percents(shares)", shares=shares) == cents


@pytest.mark.parametrize("name, ours, counts", [
    ("timestepsSchedule", timesteps_schedule, [(2, 150), (10, 160), (2, 2)]),
    ("improvedTimestepsSchedule", improved_timesteps_schedule, [(10, 1280), (10, 160), (3, 50)])])
def test_the_number_of_levels_grows_as_in_the_package(name, ours, counts):
    found = javascript("counts.map(([a, b]) => "
                       f"Array.from({{ length: 1001 }}, (_, k) => formulas.{name}(k, 1000, a, b)))", counts=counts)
    assert found == [[ours(k, 1000, *pair) for k in range(1001)] for pair in counts]


def test_pseudo_huber_and_its_derivative():
    errors = torch.tensor([-3., -0.4, -0.001, 0., 0.02, 1.], dtype=torch.float64, requires_grad=True)
    for c in (0.001, 0.1, 3.):
        loss = pseudo_huber_loss(errors[:, None], torch.zeros(6, 1, dtype=torch.float64), c)
        pull, = torch.autograd.grad(loss.sum(), errors)
        found = javascript("['Loss', 'Gradient'].map(what => errors.map(e => formulas[`pseudoHuber${what}`](e, c)))",
                           errors=errors.tolist(), c=c)
        same(found[0], loss.detach().flatten())
        same(found[1], pull)


def test_the_best_answer_has_the_least_mean_distance():
    targets = torch.tensor([-0.6] * 7 + [0.6] * 3, dtype=torch.float64)
    tried = torch.linspace(-0.65, 0.65, 130_001, dtype=torch.float64)
    for c in (0.01, 0.3, 2.):
        found = javascript("formulas.bestAnswer(a => targets.reduce((sum, y) => "
                           "sum + formulas.pseudoHuberGradient(a - y, c), 0), -1, 1)", targets=targets.tolist(), c=c)
        mean = sum(pseudo_huber_loss(tried[:, None], y.expand(len(tried), 1), c).flatten() for y in targets) / 10
        assert abs(found - tried[mean.argmin()]) < 2e-5


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.])
def test_coefficients_and_the_answer_for_gaussian_data(sigma_data):
    found = javascript("sigmas.map(s => [...Object.values(formulas.scalings(s, data)), "
                       "formulas.gaussianShrink(s, data)])", sigmas=SIGMAS.tolist(), data=sigma_data)
    shrink = gaussian_consistency_function(torch.ones(len(SIGMAS), 1).double(), SIGMAS, 0., sigma_data).flatten()
    same(found, torch.stack([skip_scaling(SIGMAS, sigma_data), output_scaling(SIGMAS, sigma_data),
                             input_scaling(SIGMAS, sigma_data), noise_conditioning(SIGMAS), shrink], 1))


def test_what_the_network_supplies_leads_to_the_end_of_a_straight_path():
    """For one picture, c_skip (x0 + σ z) + c_out F = x0 + σ_min z, and F is of the size of the noise at both ends."""
    found = javascript("sigmas.map(s => formulas.supplied(s))", sigmas=SIGMAS.tolist())
    parts = torch.tensor(found, dtype=torch.float64)
    skip, out = skip_scaling(SIGMAS), output_scaling(SIGMAS)
    same(skip + out * parts[:, 0], torch.ones_like(SIGMAS))
    same(skip * SIGMAS + out * parts[:, 1], torch.full_like(SIGMAS, 0.002))
    size = ((0.5 * parts[:, 0]) ** 2 + parts[:, 1] ** 2).sqrt()
    assert ((size - 1).abs() < 0.01).all()


def test_the_face_is_one_of_the_lesson():
    face = load_avatars()[0][17].flatten()
    same(javascript("formulas.face()"), face, rtol=0, atol=0.51 / 127.5)        # colors of 8 bits
