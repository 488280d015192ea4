"""Calls that people already write against the published package of this name: they run here unchanged."""

import copy
import importlib
import inspect
from dataclasses import dataclass, field, fields
from functools import partial

import pytest
import torch
from conftest import AnyRank, calls_of, gaussian, shake
from torch import nn

import consistency_models
from consistency_models import (
    ConsistencySamplingAndEditing,
    ConsistencyTraining,
    ConsistencyTrainingOutput,
    ImprovedConsistencyTraining,
    karras_schedule,
    pseudo_huber_loss,
)
from consistency_models.consistency_models import ema_decay_rate_schedule
from consistency_models.utils import update_ema_model_

STEPS = 6
SHAPES = ((4, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6))
NAMES = (
    "improved_timesteps_schedule", "timesteps_schedule", "lognormal_timestep_distribution", "model_forward_wrapper",
    "pad_dims_like", "skip_scaling", "output_scaling", "ConsistencyTrainingOutput", "update_ema_model",
    "update_ema_model_", "karras_schedule", "ema_decay_rate_schedule", "improved_loss_weighting", "pseudo_huber_loss",
    "ConsistencyTraining", "ImprovedConsistencyTraining", "ConsistencySamplingAndEditing")

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}-D")
sampler = ConsistencySamplingAndEditing(sigma_min=0.002, sigma_data=0.5)


def adam(network):
    return torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.995))


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def all_differ(before, after):
    return all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def keeps_noise(x, sigma): return x


# ---------------------------------------------------------------- Training

def test_consistency_training_loop(conv_net, images, my_kwarg):
    teacher, student = copy.deepcopy(conv_net), conv_net
    before, optimizer = weights(student), adam(student)
    student_calls, teacher_calls = calls_of(student), calls_of(teacher)
    training = ConsistencyTraining(
        sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5, initial_timesteps=2, final_timesteps=150)
    for step in range(STEPS):
        optimizer.zero_grad()
        output = training(student, teacher, images, step, STEPS, my_kwarg=my_kwarg)
        loss = nn.functional.mse_loss(output.predicted, output.target)
        loss.backward()
        optimizer.step()
        decay = ema_decay_rate_schedule(output.num_timesteps, initial_ema_decay_rate=0.95, initial_timesteps=2)
        update_ema_model_(teacher, student, decay)
    assert loss.isfinite() and 0.95 < decay < 1
    assert all_differ(before, weights(student)) and all_differ(before, weights(teacher))
    assert [kwargs for *_, kwargs in student_calls + teacher_calls] == 2 * STEPS * [{"my_kwarg": my_kwarg}]


def test_improved_consistency_training_loop(conv_net, images, my_kwarg):
    before, optimizer, calls = weights(conv_net), adam(conv_net), calls_of(conv_net)
    training = ImprovedConsistencyTraining(
        sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5, initial_timesteps=10, final_timesteps=1280,
        lognormal_mean=1.1, lognormal_std=2.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        output = training(conv_net, images, step, STEPS, my_kwarg=my_kwarg)
        loss = (pseudo_huber_loss(output.predicted, output.target) * output.loss_weights).mean()
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and loss.shape == ()
    assert all_differ(before, weights(conv_net))
    assert [kwargs for *_, kwargs in calls] == 2 * STEPS * [{"my_kwarg": my_kwarg}]


def test_training_output_has_the_published_fields_first():
    names, x = [f.name for f in fields(ConsistencyTrainingOutput)], torch.zeros(2)
    assert names[:5] == ["predicted", "target", "num_timesteps", "sigmas", "loss_weights"]
    assert ConsistencyTrainingOutput(x, x, 2, x).loss_weights is None


def test_training_takes_keywords_for_everything(any_rank):
    run = {"x": gaussian(4, 3), "current_training_step": 0, "total_training_steps": 10}
    ct = ConsistencyTraining()(student_model=any_rank, teacher_model=any_rank, **run)
    ict = ImprovedConsistencyTraining()(model=any_rank, **run)
    assert ct.num_timesteps == 2 and ct.loss_weights is None
    assert ict.num_timesteps == 11 and ict.loss_weights.shape == (4, 1)


@each_shape
def test_everything_takes_data_of_any_rank(shape, any_rank):
    x, mask = gaussian(*shape), gaussian(*shape, seed=1) > 0
    ct = ConsistencyTraining()(any_rank, any_rank, x, 1, 10)
    ict = ImprovedConsistencyTraining()(any_rank, x, 1, 10)
    assert {r.shape for r in (ct.predicted, ct.target, ict.predicted, ict.target)} == {shape}
    assert ict.loss_weights.shape == (len(x), *(1,) * (len(shape) - 1))
    assert sampler(any_rank, x, [80.0, 1.0]).shape == shape
    assert torch.equal(sampler(any_rank, x, [5.23, 2.25], mask)[~mask], x[~mask])
    assert sampler.interpolate(any_rank, x, x.flip(0), 0.5, [5.23, 2.25]).shape == shape


@dataclass
class Settings:
    """How a LightningModule's settings hold the training objects: as defaults, without a factory."""
    training: ConsistencyTraining = ConsistencyTraining()   # noqa: RUF009
    improved: ImprovedConsistencyTraining = ImprovedConsistencyTraining(final_timesteps=20)   # noqa: RUF009
    sampling: ConsistencySamplingAndEditing = ConsistencySamplingAndEditing()   # noqa: RUF009
    own: ConsistencyTraining = field(default_factory=ConsistencyTraining)


def test_training_and_sampling_objects_can_be_fields_of_dataclasses_and_modules():
    """A module that holds them has no part more: they are no modules"""
    settings, holder = Settings(), nn.Module()
    assert settings.improved.final_timesteps == 20
    assert settings.training is Settings().training and settings.own is not Settings().own
    holder.parts = settings
    for name in ("training", "improved", "sampling"): setattr(holder, name, getattr(settings, name))
    assert not list(holder.children()) and not holder.state_dict()


def test_the_updated_average_is_returned_and_may_be_complex():
    average, online = AnyRank(), AnyRank()
    assert update_ema_model_(average, online, 0.5) is average
    parts = [nn.ParameterList([nn.Parameter(torch.full((2,), v, dtype=torch.cfloat))]) for v in (0, 1)]
    [found] = update_ema_model_(*parts, 0.75).parameters()
    assert torch.allclose(found.detach(), torch.tensor(0.25 + 0j))


# ---------------------------------------------------------------- Sampling and editing

def test_sampling(conv_net, my_kwarg):
    calls = calls_of(conv_net)
    with torch.no_grad():
        samples = sampler(
            conv_net, torch.randn((4, 3, 8, 8)), sigmas=[80.0], clip_denoised=True, verbose=True, my_kwarg=my_kwarg)
    assert samples.shape == (4, 3, 8, 8) and samples.abs().max() <= 1
    [(x, sigma, kwargs)] = calls
    assert x.std() > 60 and sigma.tolist() == [80.] * 4
    assert kwargs == {"my_kwarg": my_kwarg}


def test_inpainting(conv_net, images, my_kwarg):
    calls, mask = calls_of(conv_net), torch.zeros_like(images)
    mask[..., 3:6, 3:6] = 1
    masked = images * (1 - mask)
    with torch.no_grad():
        result = sampler(
            conv_net, masked, sigmas=[5.23, 2.25], mask=mask, clip_denoised=True, verbose=True, my_kwarg=my_kwarg)
    assert torch.equal(result[mask == 0], images[mask == 0])
    assert (result[mask == 1] != 0).all() and result.abs().max() <= 1
    assert [sigma[0].item() for _, sigma, _ in calls] == pytest.approx([5.23, 2.25])
    assert [kwargs for *_, kwargs in calls] == 2 * [{"my_kwarg": my_kwarg}]


def test_interpolation(conv_net, images, my_kwarg):
    calls = calls_of(conv_net)
    with torch.no_grad():
        result = sampler.interpolate(
            conv_net, images, images.flip(0), ab_ratio=0.5, sigmas=[5.23, 2.25], clip_denoised=True, verbose=True,
            my_kwarg=my_kwarg)
    assert result.shape == images.shape and result.abs().max() <= 1
    assert [sigma[0].item() for _, sigma, _ in calls] == pytest.approx([5.23, 2.25])
    assert [kwargs for *_, kwargs in calls] == 2 * [{"my_kwarg": my_kwarg}]


def test_clipping_is_off_unless_asked_for():
    x = torch.zeros(4, 3)
    loose, clipped = (sampler(keeps_noise, x, [80.0], **options) for options in ({}, {"clip_denoised": True}))
    assert loose.abs().max() > 1 and clipped.abs().max() == 1


def test_verbose_decides_about_the_progress_bar(capsys):
    for verbose in (True, False):
        sampler(keeps_noise, torch.zeros(2, 3), sigmas=[5.23, 2.25], verbose=verbose)
        out, err = capsys.readouterr()
        assert out == "" and ("2/2" in err) == verbose and bool(err) == verbose


def test_sigmas_come_in_any_form(any_rank):
    def result(sigmas):
        torch.manual_seed(0)
        return sampler(any_rank, torch.zeros(4, 3), sigmas)

    forms = {
        "tuple": (80.0, 5.0, 1.0), "tensor": torch.tensor([80.0, 5.0, 1.0]), "ints": [80, 5, 1],
        "int tensor": torch.tensor([80, 5, 1]), "generator": (s for s in (80.0, 5.0, 1.0)),
        "reversed": reversed([1.0, 5.0, 80.0]), "mixed iterator": iter([80, 5.0, torch.tensor(1)])}
    expected = result([80.0, 5.0, 1.0])
    assert [name for name, sigmas in forms.items() if not torch.equal(result(sigmas), expected)] == []
    calls = calls_of(any_rank)
    sampler(any_rank, torch.zeros(4, 3), reversed(karras_schedule(5)))
    assert torch.equal(torch.stack([sigma[0] for _, sigma, _ in calls]), karras_schedule(5).flip(0))
    x = gaussian(4, 3)
    sampler.interpolate(any_rank, x, x.flip(0), 0.5, (s for s in (5, 2)))
    assert [sigma[0].item() for _, sigma, _ in calls[5:]] == [5, 2]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.uint8])
def test_masks_come_in_any_type(dtype, any_rank):
    y, mask = gaussian(4, 3, 5), gaussian(4, 3, 5, seed=1) > 0
    torch.manual_seed(0)
    expected = sampler(any_rank, y, [5.23, 2.25], mask.float())
    torch.manual_seed(0)
    result = sampler(any_rank, y, [5.23, 2.25], mask.to(dtype))
    assert torch.equal(result, expected) and result.dtype == y.dtype
    assert torch.equal(result[~mask], y[~mask]) and (result[mask] != y[mask]).all()


# ---------------------------------------------------------------- Keyword arguments of the model

class TakesYAndMask(AnyRank):
    """A network whose own arguments have the names of arguments of the sampler."""

    def forward(self, x, sigma, y, mask, scale):
        return super().forward(x, sigma) * scale * mask + y


CALLS = {
    "CT": lambda net, x, **kwargs: ConsistencyTraining()(net, net, x, 1, 10, **kwargs).predicted,
    "iCT": lambda net, x, **kwargs: ImprovedConsistencyTraining()(net, x, 1, 10, **kwargs).predicted,
    "sampling": lambda net, x, **kwargs: sampler(net, x, [80.0, 1.0], **kwargs),
    "inpainting": lambda net, x, **kwargs: sampler(net, x, [80.0, 1.0], torch.ones(3), **kwargs),
    "interpolation": lambda net, x, **kwargs: sampler.interpolate(net, x, x.flip(0), 0.5, [5.0, 1.0], **kwargs)}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_models_may_be_modules_partials_and_plain_functions(call):
    """`functools.partial` holds arguments whose names the sampler has too"""
    net, x = shake(TakesYAndMask()), gaussian(4, 3)
    calls, own = calls_of(net), {"y": torch.ones(4, 1), "mask": torch.zeros(3)}
    assert call(partial(net, **own), x, scale=2.0).shape == x.shape
    assert [kwargs for *_, kwargs in calls] == 2 * [{**own, "scale": 2.0}]
    assert call(lambda x, sigma, *, shift: x + shift, x, shift=1.0).shape == x.shape


# ---------------------------------------------------------------- Names and signatures

def test_names_can_be_imported_from_where_code_imports_them():
    """By name and with `import *`; an alias is the same function"""
    wanted = dict.fromkeys(("consistency_models", "consistency_models.consistency_models"), NAMES)
    wanted["consistency_models.utils"] = ("pad_dims_like", "update_ema_model_", "update_ema_model")
    for module, names in wanted.items():
        starred = {}
        exec(f"from {module} import *", starred)
        found = importlib.import_module(module)
        for name in names: assert getattr(found, name) is getattr(consistency_models, name) is starred[name]
    assert consistency_models.update_ema_model is update_ema_model_


RUN = ["x", "current_training_step", "total_training_steps"]
ORDER = {
    "ConsistencyTraining.__call__": ["self", "student_model", "teacher_model", *RUN],
    "ImprovedConsistencyTraining.__call__": ["self", "model", *RUN],
    "ConsistencySamplingAndEditing.__call__": [
        "self", "model", "y", "sigmas", "mask", "transform_fn", "inverse_transform_fn", "start_from_y",
        "add_initial_noise", "clip_denoised", "verbose"],
    "ConsistencySamplingAndEditing.interpolate": [
        "self", "model", "a", "b", "ab_ratio", "sigmas", "clip_denoised", "verbose"],
    "model_forward_wrapper": ["model", "x", "sigma", "sigma_data", "sigma_min"],
    "skip_scaling": ["sigma", "sigma_data", "sigma_min"],
    "output_scaling": ["sigma", "sigma_data", "sigma_min"],
    "karras_schedule": ["num_timesteps", "sigma_min", "sigma_max", "rho", "device"],
    "timesteps_schedule": ["current_training_step", "total_training_steps", "initial_timesteps", "final_timesteps"],
    "improved_timesteps_schedule": [
        "current_training_step", "total_training_steps", "initial_timesteps", "final_timesteps"],
    "ema_decay_rate_schedule": ["num_timesteps", "initial_ema_decay_rate", "initial_timesteps"],
    "lognormal_timestep_distribution": ["num_samples", "sigmas", "mean", "std"],
    "pseudo_huber_loss": ["input", "target"],
    "pad_dims_like": ["x", "other"],
    "update_ema_model_": ["ema_model", "online_model"]}


def find(path):
    """The function behind a dotted path into the package."""
    found = consistency_models
    for name in path.split("."): found = getattr(found, name)
    return found


def test_arguments_keep_their_names_and_order():
    found = {path: list(inspect.signature(find(path)).parameters) for path in ORDER}
    assert {path: names[:len(ORDER[path])] for path, names in found.items()} == ORDER


SHARED = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}
DEFAULTS = {
    "ConsistencyTraining": SHARED | {"initial_timesteps": 2, "final_timesteps": 150},
    "ImprovedConsistencyTraining": SHARED | {
        "initial_timesteps": 10, "final_timesteps": 1280, "lognormal_mean": -1.1, "lognormal_std": 2.0},
    "ConsistencySamplingAndEditing": {"sigma_min": 0.002, "sigma_data": 0.5}}


def test_settings_keep_their_names_order_and_defaults():
    for kind, published in DEFAULTS.items():
        parameters = inspect.signature(find(kind)).parameters
        found = [(name, p.default) for name, p in parameters.items()]
        assert found[:len(published)] == list(published.items()), kind


def test_sampler_takes_all_arguments_by_position(any_rank):
    y, mask = gaussian(4, 3), torch.tensor([1., 0., 1.])
    result = sampler(any_rank, y, [80.0], mask, torch.neg, torch.neg, False, True, True, False)
    assert torch.equal(result[:, 1], y[:, 1]) and result[:, [0, 2]].abs().max() <= 1
